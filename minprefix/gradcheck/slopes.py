"""Derivatives that are measured, not derived: by the complex step where the function lets it
through, and otherwise by differences whose step is chosen by the error that it measures."""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from minprefix.conformance.implementation import Broken
from minprefix.gradcheck.arrays import is_real, library, like, to_numpy
from minprefix.gradcheck.function import Pair, outputs
from minprefix.ops.contract import Array

COMPLEX, DIFFERENCES = "complex step", "differences"

#: the first step of the differences, relative to the size of the input, and by how much each next
#: one is smaller
FIRST, SHRINK, STEPS = 0.05, 2.0, 12

UNSURE = 1e-6  # a relative error from which on another first step is tried

KINK = 1e-6  # a smaller one, relative to the slope, is rounding

TINY = 1e-30  # a complex step has no rounding, so it can be as small as this


@dataclass(frozen=True)
class Slope:
    """A derivative, how large its error is about, how it was measured, and by how much the slopes
    to the two sides differ at the point itself (a kink)."""

    value: float
    error: float
    method: str
    kink: float = 0.0

    @property
    def doubt(self) -> float:
        return max(self.error, self.kink)


@dataclass(frozen=True)
class Scalar:
    """sum(out * dout) as a function of input `which`; all in double precision, where the forward
    gives that."""

    pair: Pair
    inputs: Sequence[Any]
    dout: Sequence[Array]
    which: int

    def __call__(self, a: Array) -> Any:
        """Raises Broken."""
        given = list(self.inputs)
        if a.dtype.kind == "c":  # PyTorch multiplies no real matrix with a complex one
            given = [_complex(each) for each in given]
        given[self.which] = like(self.inputs[self.which], a)
        out = outputs(self.pair.run(given)[0])
        return sum((o * d).sum() for o, d in zip(out, self.dout, strict=True))

    def size(self, x: Array) -> float:
        """How steep it would be if it came from 0: the size that a derivative's rounding has."""
        out = outputs(self.pair.run(self.inputs)[0])
        total = sum(np.abs(o * d).sum() for o, d in zip(out, self.dout, strict=True))
        return float(total) / (float(np.abs(x).max(initial=0.0)) or 1.0)

    def slope(self, x: Array, direction: Array, method: str) -> Slope:
        if method == COMPLEX:
            return Slope(complex_step(self, x, direction), 0.0, COMPLEX)
        return differences(self, x, direction)


def _complex(a: Any) -> Any:
    return like(a, to_numpy(a).astype(np.complex128)) if library(a) != "numpy" and is_real(a) else a


def complex_step(f: Callable[[Array], Any], x: Array, direction: Array) -> float:
    """The derivative of f at x along a direction, exact to rounding: Im f(x + ih d) / h (Squire &
    Trapp, 1998). f must be analytic: neither abs, nor a buffer of real numbers. Raises TypeError
    where it gives a real number."""
    value = f(x + 1j * TINY * direction)
    if "complex" not in str(value.dtype):
        raise TypeError("the forward gives real numbers for complex ones")
    return float(np.imag(value)) / TINY


def differences(f: Callable[[Array], Any], x: Array, direction: Array, steps: int = STEPS) -> Slope:
    """The derivative of f at x along a direction, by central differences at ever smaller steps that
    are extrapolated to step 0 (Ridders, 1982); the step is the one whose neighbours agree best.
    The first step suits numbers near 1; where that is no good, one that suits the size of x."""
    size = float(np.abs(direction).max(initial=0.0))
    if size == 0.0:
        return Slope(0.0, 0.0, DIFFERENCES)
    largest = float(np.abs(x).max(initial=0.0))
    found = _extrapolated(f, x, direction, FIRST * max(largest, 1.0) ** 0.5 / size, steps)
    if not found.doubt <= UNSURE * abs(found.value) and largest > 0.0 and not 0.1 < largest < 10:
        other = _extrapolated(f, x, direction, FIRST * largest / size, steps)
        found = other if not found.doubt <= other.doubt else found
    return found


def _extrapolated(
    f: Callable[[Array], Any], x: Array, direction: Array, h: float, steps: int
) -> Slope:
    """Ridders' method from a first step h on."""
    best, least, kink = math.nan, math.inf, math.inf
    middle, bend = float(np.real(f(x))), math.nan
    row: list[float] = []
    for i in range(steps):
        above, below = (float(np.real(f(x + s * direction))) for s in (h, -h))
        rounding = 2.0**-53 * max(abs(above), abs(below)) / h
        # half the difference of the slopes to both sides: it falls as h, unless there is a kink
        bend, before = (above + below - 2 * middle) / (2 * h), bend
        kink = min(kink, abs(2 * bend - before)) if i else kink
        new = [(above - below) / (2 * h)]
        factor = 1.0
        for j in range(i):  # Neville: the error is a series in h^2
            factor *= SHRINK**2
            new.append((factor * new[j] - row[j]) / (factor - 1))
            error = max(abs(new[j + 1] - new[j]), abs(new[j + 1] - row[j]), rounding)
            if error <= least:
                best, least = new[j + 1], error
        if i > 3 and abs(new[-1] - row[-1]) >= 4 * least:
            break  # smaller steps only add rounding
        row, h = new, h / SHRINK
    return Slope(best, least, DIFFERENCES, kink if kink > KINK * abs(best) else 0.0)


def method_of(scalar: Scalar, x: Array, direction: Array) -> str:
    """The complex step where the forward lets it through: it takes complex numbers, gives them
    back, and agrees with differences. A forward that uses abs, or compares, may only seem to."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", np.exceptions.ComplexWarning)
            exact = complex_step(scalar, x, direction)
    except (Broken, TypeError, ValueError, RuntimeError, np.exceptions.ComplexWarning):
        return DIFFERENCES
    rough = differences(scalar, x, direction)
    close = 1e-6 * max(abs(exact), abs(rough.value)) + 100 * rough.error
    return COMPLEX if math.isfinite(exact) and abs(exact - rough.value) <= close else DIFFERENCES


def gradient(scalar: Scalar, x: Array, entries: Sequence[int], method: str) -> tuple[Array, Array]:
    """The derivatives along single entries of x (flat indices), and the doubt of each."""
    found, doubt = np.zeros(len(entries)), np.zeros(len(entries))
    for n, i in enumerate(entries):
        direction = np.zeros(x.size)
        direction[i] = 1.0
        slope_ = scalar.slope(x, direction.reshape(x.shape), method)
        found[n], doubt[n] = slope_.value, slope_.doubt
    return found, doubt


def wrong_entry(scalar: Scalar, x: Array, got: Array, method: str) -> int:
    """The flat index of an entry of `got` that is not the derivative, where one is known to be
    wrong: the entries are halved, and the half whose slope is further off is kept."""
    direction = np.random.default_rng(0).normal(0, 1, x.size)

    def off(entries: Array) -> float:
        along = np.zeros(x.size)
        along[entries] = direction[entries]
        found = scalar.slope(x, along.reshape(x.shape), method).value
        return found - float(got.astype(np.float64).ravel() @ along)

    left = np.arange(x.size)
    whole = off(left)
    while left.size > 1:
        half, rest = np.array_split(left, 2)
        of_half = off(half)
        first = not abs(of_half) < abs(whole - of_half)
        left, whole = (half, of_half) if first else (rest, whole - of_half)
    return int(left[0])
