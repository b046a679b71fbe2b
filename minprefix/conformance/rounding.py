"""Which precision's rounding explains a difference: the reference computed in that precision is the
measure."""

import math
from functools import partial
from types import SimpleNamespace

import numpy as np

from minprefix.conformance.contract import ARGUMENTS
from minprefix.conformance.implementation import Implementation
from minprefix.ops import reference
from minprefix.ops.contract import Array

#: another order of summation rounds differently: an error up to this many times the reference's
#: own in a precision is called that precision's
SLACK = 8

#: where the right value is 0, an error has nothing to be relative to: a layernorm of one column may
#: magnify the rounding of its input by 1/sqrt(eps)
OF_NOTHING = 320

#: precision -> the bits of its significand, and its name in a sentence; the finest first
PRECISIONS = {
    "float32": (24, "single precision (float32)"),
    "float16": (11, "half precision (float16) or TF32"),
    "bfloat16": (8, "bfloat16"),
}


def rounded(bits: int, a: Array) -> Array:
    """Floats to the nearest that this many bits hold; other arrays as they are."""
    if a.dtype.kind != "f":
        return a
    if bits == 24:
        return a.astype(np.float32)
    significand, exponent = np.frexp(a)
    return np.asarray(np.ldexp(np.rint(significand * 2**bits) / 2**bits, exponent))


def is_held(bits: int, a: Array) -> bool:
    """Whether all of `a` are numbers of this many bits, as those of a coarser computation are."""
    with np.errstate(all="ignore"):
        return bool(np.array_equal(rounded(bits, a), a, equal_nan=True))


def least(bits: int, want: Array | None) -> float:
    """The error that is granted at least: one number may be right by luck. `want`: the right
    values."""
    return 2.0 ** (1 - bits) * (OF_NOTHING if want is not None and not want.any() else 1)


def words(precision: str, error: float) -> str:
    """What is said of an error that this precision explains."""
    digits = max(1, math.floor(-math.log10(error)))
    held = "1 digit" if digits == 1 else f"{digits} digits"
    return f"right to {held}. Is it computed in {PRECISIONS[precision][1]}?"


def step(implementation: Implementation, tolerance: float) -> tuple[float, float]:
    """The step of a central difference, either way, and the tolerance: in single precision a step
    must be far above the rounding, and leaves an error of its own."""
    return (1e-2, 1e-2) if implementation.rounds else (1e-5, tolerance)


def noise(forward_error: float, size: float, h: float) -> float:
    """How far float32's rounding of a forward with numbers of this size moves a central difference
    over 2h; 0 if the forward is right to more digits than float32 has."""
    single = SLACK * float(np.finfo("f4").eps)
    return single * size / (2 * h) if 1e-12 < forward_error <= single else 0.0


# ---- the reference in a precision ---------------------------------------------------------------


def _reference_in(precision: str) -> Implementation:
    """The reference on inputs of a precision; in float32 it computes there, too."""
    bits, name = PRECISIONS[precision]
    functions = {name: getattr(reference, name) for name in ARGUMENTS}
    whole = SimpleNamespace(**functions, asarray=partial(rounded, bits))
    made = Implementation(whole, f"the reference in {name}", in_a_hurry=True)
    made.rounds = False  # what its inputs lose is a part of its errors
    return made


REFERENCES = {precision: _reference_in(precision) for precision in PRECISIONS}
