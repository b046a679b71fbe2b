"""Arrays of several libraries, as NumPy arrays and back. A library is found from the array; none
is imported that the caller does not use."""

import sys
from typing import Any

import numpy as np

from minprefix.ops.contract import Array

#: the first part of the name of an array's module -> the library
_LIBRARIES = {"torch": "torch", "jax": "jax", "jaxlib": "jax", "cupy": "cupy"}


def library(a: Any) -> str:
    """ "torch", "jax", "cupy", or "numpy" for all else."""
    return _LIBRARIES.get(type(a).__module__.partition(".")[0], "numpy")


def to_numpy(a: Any) -> Array:
    """A copy of an array in NumPy. Raises TypeError for what is no array of numbers."""
    kind = library(a)
    if kind == "torch":
        a = a.detach().cpu()
        a = (a.float() if str(a.dtype) == "torch.bfloat16" else a).resolve_conj().numpy()
    elif kind == "cupy":
        a = a.get()
    found = np.array(a)
    if found.dtype.name == "bfloat16":  # JAX's, which NumPy has no kind for
        found = found.astype(np.float32)
    if found.dtype.kind not in "fciub":
        raise TypeError(f"{type(a).__name__} of {found.dtype} is no array of numbers")
    return found


def like(a: Any, values: Array) -> Any:
    """`values` as an array of the library that `a` is of, and on its device."""
    kind = library(a)
    if kind == "numpy":
        return values
    module = sys.modules["jax.numpy" if kind == "jax" else kind]  # the array's: it is imported
    made = module.tensor(values, device=a.device) if kind == "torch" else module.asarray(values)
    half = values.dtype == np.float32 and str(a.dtype).endswith("bfloat16")  # NumPy has none
    if not half:
        return made
    return made.to(a.dtype) if kind == "torch" else made.astype(a.dtype)


def is_array(a: Any) -> bool:
    return library(a) != "numpy" or isinstance(a, np.ndarray)


def is_real(a: Any) -> bool:
    """Whether `a` is an array of real floating-point numbers: only those have a gradient."""
    if not is_array(a):
        return False
    return "float" in str(a.dtype)


def wide(a: Any) -> Any:
    """In double precision, if it is a real array."""
    return like(a, to_numpy(a).astype(np.float64)) if is_real(a) else a
