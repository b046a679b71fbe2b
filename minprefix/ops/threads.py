"""How many threads compute: those of the BLAS behind NumPy, and as many of our own for what lies
between two matrix products.

The BLAS is where the number is kept, so that its own variables (`OPENBLAS_NUM_THREADS`, ...) and
threadpoolctl decide here, too.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from contextvars import copy_context
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

Item = TypeVar("Item")


@cache
def _blas() -> list[Any]:
    """The BLAS libraries that are loaded. None where they cannot be told a number: Apple's, and
    where threadpoolctl is missing, as in a browser."""
    try:
        from threadpoolctl import ThreadpoolController
    except ImportError:
        return []
    return ThreadpoolController().select(user_api="blas").lib_controllers


@cache
def _pool() -> "ThreadPoolExecutor":
    from concurrent.futures import ThreadPoolExecutor

    return ThreadPoolExecutor(256, "minprefix")  # starts no more of them than are asked for


if hasattr(os, "register_at_fork"):  # threads do not survive a fork
    os.register_at_fork(after_in_child=_pool.cache_clear)


def count() -> int:
    """How many threads compute; the machine's choice until `limit` is called."""
    return max((library.num_threads for library in _blas()), default=1)


def limit(n: int) -> None:
    """Compute with n threads from now on. The last bits of a result may depend on the number.

    Raises ValueError for n below 1.
    """
    if n < 1:
        raise ValueError(f"{n} threads: expected at least 1")
    for library in _blas():
        library.set_num_threads(n)


def each(work: Callable[[Item], None], items: Sequence[Item]) -> None:
    """work(item) for every item, on `count()` threads. Items must not write to the same place.

    Their own matrix products are small: one thread each is what they get meanwhile.
    """
    before = count()
    n = min(before, len(items))
    if n <= 1:
        return _all(work, items)
    queue = iter(items)  # whoever is free takes the next one
    others: list[Future[None]] = []
    limit(1)
    try:
        with suppress(RuntimeError):  # the interpreter is ending: this thread does it alone
            for _ in range(n - 1):  # a context of its own: np.errstate holds in these, too
                others.append(_pool().submit(copy_context().run, _all, work, queue))
        _all(work, queue)
    finally:
        _all(lambda _: None, queue)  # after an error nobody begins another item
        errors = [other.exception() for other in others]  # waits for them
        limit(before)
    for error in filter(None, errors):
        raise error
    return None


def _all(work: Callable[[Item], None], items: Iterable[Item]) -> None:
    for item in items:
        work(item)


def row_blocks(n_rows: int, row_bytes: int) -> list[slice]:
    """The rows in blocks that stay in a core's own cache while several passes go over them."""
    size = CACHE_BYTES // max(1, row_bytes) or 1
    return [slice(start, min(start + size, n_rows)) for start in range(0, n_rows, size)]


#: what the libraries read when they are loaded, for a process that is to start with so many
VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)

#: a block of one array; some three of them are in use at a time, and 1 MB is a usual second-level
#: cache
CACHE_BYTES = 1 << 18
