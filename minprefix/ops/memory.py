"""Keep freed memory in the process, for the arrays of the next step."""

import ctypes
from functools import cache

#: of <malloc.h>
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3


@cache
def keep_freed() -> bool:
    """Ask malloc to keep freed memory from now on, up to the process's peak. -> whether it will.

    Every training step needs the gigabytes again that the last one freed. glibc returns large
    blocks to the system at once, and the system then clears their pages anew: a tenth of a step.
    The setting holds for the whole process, so a program calls this, as `train` does, or your own
    training loop. It has no effect where the C library is not glibc.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another library; Windows has no CDLL(None)
        return False
    # An old glibc may refuse the first. Then the second would only do harm, because either of them
    # stops glibc from raising its thresholds by itself.
    return bool(mallopt(M_MMAP_THRESHOLD, 1 << 30) and mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1))
