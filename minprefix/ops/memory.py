"""Memory that arrays no longer need stays with the process, for the next ones."""

import ctypes
from functools import cache

#: of <malloc.h>
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3


@cache
def keep_freed() -> bool:
    """Ask malloc to keep what is freed, up to the process's peak, from now on; whether it will.

    Every step of training asks for the gigabytes again that the last one gave back. glibc returns
    large blocks to the system at once, which then clears each page of them anew: a tenth of a step.
    For the whole process, so it is a program's to call, as `train` does, or a loop of your own. Of
    no effect where the C library is not glibc.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another library; Windows has no CDLL(None)
        return False
    # The first may be refused, by an old glibc: then the second would only do harm, since either
    # of them stops glibc from raising its thresholds by itself.
    return bool(mallopt(M_MMAP_THRESHOLD, 1 << 30) and mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1))
