"""Which term of a formula is wrong: a wrong array as the right one plus a multiple of something.

A fit proves something only where it has far more equations than free numbers and leaves nothing but
rounding. The simplest comes first: one number for the whole array, one in each row, two terms.
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from minprefix.ops.contract import Array

#: a ratio that is one of these powers of a dimension: its name and the suspicion
SUSPICIONS = {
    ("hs", 0.5): "sqrt(hs): is 1/sqrt(hs) missing?",
    ("hs", -0.5): "1/sqrt(hs): is the scale applied twice, or is hs used instead of sqrt(hs)?",
    ("hs", 1.0): "hs: is it multiplied by sqrt(hs) instead of divided by it?",
    ("hs", -1.0): "1/hs",
    ("alpha/r", 1.0): "alpha/r: is the scale applied twice?",
    ("alpha/r", -1.0): "r/alpha: is the scale alpha/r missing?",
}
SUM_FOR_MEAN = "is a sum taken where a mean belongs?"
MEAN_FOR_SUM = "is a mean taken where a sum belongs?"

#: so many equations more than free numbers make a fit more than luck
SPARE = 5


def explain(
    got: Array,
    want: Array,
    terms: Mapping[str, Array],
    names: Sequence[str] = (),
    dimensions: Mapping[str, float] | None = None,
    tolerance: float = 1e-10,
) -> list[str]:
    """Sentences without their subject ("is off by -1 times the row sum: is it missing?"), the
    simplest explanation only; none if nothing fits.

    `terms`: arrays that broadcast to the shape of `want`, by what they are called. One that is a
    summand of the right formula is best given with the sign it has there: its factor is then told.
    `names`: of the axes; `dimensions`: sizes by their letters, to give a factor its name;
    `tolerance`: what an entry may be off by, relative to the largest right one.
    """
    if got.shape != want.shape or want.size <= SPARE or not np.isfinite(got).all():
        return []
    with np.errstate(all="ignore"):
        fit = _Fit(np.asarray(got, np.float64), np.asarray(want, np.float64), tolerance)
        c = _coefficient(fit.want, fit.got)
        if not np.abs(fit.delta).max() > 10 * fit.most or fit.leaves_nothing(got - c * want):
            return []  # right, or a multiple of it, which is no summand's fault
        usable = {
            name: np.broadcast_to(np.asarray(term, np.float64), want.shape)
            for name, term in terms.items()
            if np.isfinite(term).all() and np.any(term)
        }
        for said in _explanations(fit, usable, list(names), dimensions or {}):
            return [said]
    return []


class _Fit:
    """A difference, and what may be left of it."""

    def __init__(self, got: Array, want: Array, tolerance: float) -> None:
        self.got, self.want, self.delta = got, want, got - want
        largest = np.abs(want).max() or np.abs(got).max()
        self.most = max(tolerance, 1e-9) * 10 * largest
        # a small error must be explained, too, not only be small
        self.left = min(self.most, 1e-4 * np.abs(self.delta).max())

    def leaves_nothing(self, rest: Array) -> bool:
        return bool(np.abs(rest).max() <= self.left)


def _explanations(
    fit: _Fit, terms: Mapping[str, Array], names: list[str], dimensions: Mapping[str, float]
) -> Iterator[str]:
    for name, term in terms.items():
        c = _coefficient(term, fit.got)
        if c and np.count_nonzero(term) > SPARE and fit.leaves_nothing(fit.got - c * term):
            times = "minus " if np.isclose(c, -1) else f"{c:.4g} times "
            yield f"is {'' if np.isclose(c, 1) else times}{name}{named(c, dimensions)}"
    for name, term in terms.items():
        c = _coefficient(term, fit.delta)
        if c and np.count_nonzero(term) > SPARE and fit.leaves_nothing(fit.delta - c * term):
            yield f"is off by {c:.4g} times {name}{_factor(1 + c, dimensions)}"
    for along, each in _slices(fit, np.ones_like(fit.want), names):
        yield f"is off by one number in each {along}: {_first(each)}: is a sum over it missing?"
    for name, term in terms.items():
        for along, each in _slices(fit, term, names):
            yield f"is off by a multiple of {name} in each {along}: {_first(each)}"
    for (a, s), (b, t) in itertools.combinations(terms.items(), 2):
        both = np.stack([s.ravel(), t.ravel()], axis=1)
        x, _, rank, _ = np.linalg.lstsq(both, fit.delta.ravel(), rcond=None)
        enough = rank == 2 and len(both) > 2 + SPARE
        if enough and fit.leaves_nothing(fit.delta.ravel() - both @ x):
            first, second = (_factor(1 + each, dimensions) for each in x)
            yield f"is off by {x[0]:.4g} times {a}{first} and {x[1]:.4g} times {b}{second}"


def _coefficient(term: Array, of: Array) -> float:
    c = float(np.vdot(term, of) / np.vdot(term, term))
    return c if math.isfinite(c) else 0.0


def _slices(fit: _Fit, term: Array, names: list[str]) -> Iterator[tuple[str, Array]]:
    """Where the difference is another multiple of the term in each row, or in each slice along one
    axis: which, and the multiples."""
    ndim = fit.want.ndim
    kept_axes: list[tuple[int, ...]] = [(i,) for i in range(ndim)] if ndim > 1 else []
    kept_axes += [tuple(range(ndim - 1))] if ndim > 2 else []
    for kept in kept_axes:
        rest = tuple(i for i in range(ndim) if i not in kept)
        n = math.prod(fit.want.shape[i] for i in rest)
        if n < 3 or (n - 1) * (fit.want.size // n) <= SPARE:
            continue
        norm = (term * term).sum(axis=rest, keepdims=True)
        c = (term * fit.delta).sum(axis=rest, keepdims=True) / np.where(norm == 0, 1, norm)
        if np.abs(c).max() > 0 and fit.leaves_nothing(fit.delta - c * term):
            letters = [names[i] if len(names) == ndim else f"axis {i}" for i in kept]
            row = "row" if len(kept) == ndim - 1 and kept == tuple(range(ndim - 1)) else "slice"
            yield f"{row} (along {', '.join(letters)})", c.ravel()


def _first(c: Array) -> str:
    return ", ".join(f"{each:.4g}" for each in c[:6]) + (", ..." if len(c) > 6 else "")


def _factor(c: float, dimensions: Mapping[str, float]) -> str:
    """What a summand's own factor means."""
    for known, said in ((0.0, ": is it missing?"), (-1.0, ": has it the wrong sign?")):
        if abs(c - known) < 1e-6:
            return said
    if abs(c - 2) < 1e-6:
        return ": is it counted twice, or added where it does not belong?"
    said = named(c, dimensions)
    return f" (it is in it {c:.4g} times{said})" if said else ""


def named(c: float, dimensions: Mapping[str, float]) -> str:
    """What a factor of `c` makes one suspect."""
    for sign, minus in ((1, ""), (-1, "-")):
        for (letter, power), suspicion in SUSPICIONS.items():
            size = dimensions.get(letter, 0)
            if size > 1 and math.isclose(sign * c, size**power, rel_tol=1e-6):
                return f": {c:.4g} = {minus}{suspicion}"
        for factor, said in ((2.0, "counted twice"), (0.5, "halved")):
            if math.isclose(sign * c, factor, rel_tol=1e-6):
                return f": {said}{' and negated' if minus else ''}?"
        for letter, size in dimensions.items():
            for power, over, said in ((1, "", SUM_FOR_MEAN), (-1, "1/", MEAN_FOR_SUM)):
                if size > 1 and math.isclose(sign * c, float(size) ** power, rel_tol=1e-6):
                    return f": {c:.4g} = {minus}{over}{letter}: {said}"
    return ""
