"""The threads that compute: the BLAS's in matrix products, and as many of our own between them.

The BLAS keeps their number, so that its own variables (`OPENBLAS_NUM_THREADS`, ...) and
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
    """The number of threads; the machine's choice until `limit` is called."""
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

    Meanwhile the BLAS has one thread for each item's own matrix products, which are small.
    """
    before = count()
    n = min(before, len(items))
    if n <= 1:
        return _all(work, items)
    queue = iter(items)  # a thread that is free takes the next one
    others: list[Future[None]] = []
    limit(1)
    try:
        with suppress(RuntimeError):  # the interpreter is ending: this thread does it alone
            for _ in range(n - 1):  # a copied context, so that np.errstate holds there, too
                others.append(_pool().submit(copy_context().run, _all, work, queue))
        _all(work, queue)
    finally:
        _all(lambda _: None, queue)  # after an error no thread begins another item
        errors = [other.exception() for other in others]  # waits for them
        limit(before)
    for error in filter(None, errors):
        raise error
    return None


def _all(work: Callable[[Item], None], items: Iterable[Item]) -> None:
    for item in items:
        work(item)


def row_blocks(n_rows: int, row_bytes: int) -> list[slice]:
    """The rows in blocks that stay in a core's own cache during several passes over them."""
    size = CACHE_BYTES // max(1, row_bytes) or 1
    return [slice(start, min(start + size, n_rows)) for start in range(0, n_rows, size)]


#: the variables that the libraries read when they are loaded, for a new process
VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)

#: bytes of a block of one array; about three arrays are in use at a time, and a second-level cache
#: usually has 1 MB
CACHE_BYTES = 1 << 18
