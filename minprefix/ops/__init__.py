"""The contract of operations, and its implementations. Imports nothing of minprefix but its errors.

The array itself tells where it lives: a NumPy array is on the host, a CuPy array on a GPU.
"""

from functools import cache
from typing import Any, cast

from minprefix.errors import InputError
from minprefix.ops import contract, numpy_ops, reference
from minprefix.ops.contract import Array, Ops

__all__ = [
    "BACKENDS",
    "DEVICES",
    "Ops",
    "Unavailable",
    "contract",
    "get",
    "home",
    "numpy_ops",
    "reference",
    "to",
]

#: implementation -> the library whose arrays it takes
BACKENDS = {"numpy": "numpy", "reference": "numpy", "cupy": "cupy"}


class Unavailable(InputError):
    """The GPU cannot be used; the sentence says why, and what to do."""


def get(ops: "str | Ops") -> Ops:
    """An implementation by its name, or any object that has the functions of the contract.

    Raises ValueError for a name that is not in `BACKENDS`, Unavailable for "cupy" without a GPU.
    """
    if not isinstance(ops, str):
        return ops
    if ops not in BACKENDS:
        raise ValueError(
            f"backend {ops!r} does not exist: expected one of {', '.join(sorted(BACKENDS))}"
        )
    if ops == "cupy":
        return _cupy_ops()
    # cast: it keeps caches of its own
    return cast(Ops, numpy_ops) if ops == "numpy" else reference


@cache
def _cupy_ops() -> Ops:
    _check_gpu()
    from minprefix.ops import cupy_ops

    return cast(Ops, cupy_ops)


def _check_gpu() -> None:
    """Raises Unavailable."""
    try:
        import cupy
    except ImportError as error:
        raise Unavailable(
            f"the GPU needs CuPy ({error}): pip install 'minprefix[cuda12]', or [cuda13] where "
            "nvidia-smi names CUDA 13; or stay with --backend numpy"
        ) from error
    runtime = cupy.cuda.runtime
    try:
        found = runtime.getDeviceCount()
    except runtime.CUDARuntimeError as error:
        if "nsufficient" in str(error) and runtime.driverGetVersion() > 0:
            raise Unavailable(
                "the NVIDIA driver is too old: it supports CUDA up to "
                f"{_version(runtime.driverGetVersion())}, this CuPy needs "
                f"{_version(runtime.runtimeGetVersion())}; update the driver, install an older "
                "CuPy, or stay with --backend numpy"
            ) from error
        found, said = 0, f" ({error})"
    else:
        said = ""
    if not found:
        raise Unavailable(
            f"CuPy finds no NVIDIA GPU{said}: see what nvidia-smi says, or stay with --backend "
            "numpy"
        )
    try:
        _ = cupy.cuda.cublas  # products, and below the compiler of the kernels
        cupy.cuda.nvrtc.getVersion()
    except Exception as error:  # each library's loader raises errors of its own kind
        raise Unavailable(
            f"CuPy finds no CUDA libraries ({str(error).splitlines()[0]}): pip install "
            "'minprefix[cuda12]' brings them, [cuda13] where nvidia-smi names CUDA 13"
        ) from error


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


# ---- where arrays live ------------------------------------------------------------------------

#: home -> the device's usual name
DEVICES = {"numpy": "cpu", "cupy": "gpu"}


def home(a: Array) -> str:
    """The array's home, "numpy" or "cupy"."""
    return "cupy" if type(a).__module__.partition(".")[0] == "cupy" else "numpy"


def to(a: Array, where: str) -> Array:
    """The array on the host ("numpy") or on the GPU ("cupy"), not copied if it is there already.
    Raises InputError for another place, Unavailable without a GPU."""
    if where not in DEVICES:
        raise InputError(f"arrays cannot go to {where!r}: expected {' or '.join(DEVICES)}")
    if home(a) == where:
        return a
    if where == "numpy":
        return cast(Any, a).get()
    return cast(Any, get("cupy")).asarray(a)
