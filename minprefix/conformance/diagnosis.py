"""From two arrays that should be equal to a sentence about how they differ.

A wrong gradient is rarely noise. It is the right one times something, or at the wrong place, or
another tensor, or right in a part; the sentence that says so tells where to look.
"""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from minprefix.conformance.fitting import named
from minprefix.ops.contract import Array

#: numbers that are equal but for float32's rounding are equal to this at worst
COARSEST = 1e-5
IN_SINGLE = " (to float32's rounding)"


def _off(got: Array, want: Array) -> Array:
    with np.errstate(all="ignore"):
        return np.abs(got.real.astype(np.float64) - want)


def relative_error(got: Array, want: Array) -> float:
    """max |got - want| / max |want|; where the right tensor is 0, max |got|. A number that is not
    finite in both alike is no difference; in one alone the error is infinite."""
    got, want = (np.asarray(np.real(a), np.float64) for a in (got, want))
    with np.errstate(all="ignore"):
        apart = ~((got == want) | (np.isnan(got) & np.isnan(want)))
        if not apart.any():
            return 0.0
        error = float(np.abs(got[apart] - want[apart]).max())
    scale = float(np.abs(want[np.isfinite(want)]).max(initial=0.0))
    error = error / scale if scale > 0 else error
    return error if math.isfinite(error) else math.inf


def worst_entries(
    got: Array, want: Array, rounding: float = 0.0, n: int = 3
) -> list[tuple[list[int], float, float]]:
    """Index, value and right value of the n entries that are furthest off; but of the first, only
    of those that are off by more than `rounding` of the largest value, and more than a hundredth
    of the first, which has its own."""
    delta = _off(got, want).ravel()
    delta = np.where(np.isfinite(delta), delta, np.inf)
    found: list[tuple[list[int], float, float]] = []
    scale = float(np.abs(want[np.isfinite(want)]).max(initial=0.0)) or 1.0
    for i in np.argsort(-delta, kind="stable")[:n]:
        if delta[i] > (max(rounding * scale, 0.01 * delta.max()) if found else 0):
            index = np.unravel_index(i, want.shape)
            found.append(([int(j) for j in index], float(got[index]), float(want[index])))
    return found


def diagnose(
    got: Array,
    want: Array,
    axes: str,
    dimensions: Mapping[str, float],
    others: Mapping[str, Array],
    tolerance: float,
    offsets: Sequence[int] | None = None,
    rounding: float = 0.0,
) -> list[str]:
    """Sentences without their subject ("is 2.65 times the right one"), the surest first.

    `axes`: the letters of the tensor's axes; `dimensions`: what they stand for; `others`: the right
    values of the other tensors of the case, by name; `offsets`: where sequences begin on axis N;
    `rounding`: how large an error float32's rounding explains.
    """
    names = axes.split() if len(axes.split()) == want.ndim else [f"axis {i}" for i in range(9)]
    close = max(tolerance, 1e-9) * 10
    if got.shape != want.shape:
        if said := _transposed(got, want, close):
            return [said]
        reshaped = got.size == want.size and _same(got.reshape(want.shape), want, close)
        return ["has the right numbers in another shape: is a reshape missing?"] * bool(reshaped)
    if want.size == 0:
        return []
    if not np.isfinite(got).all():
        return [_not_finite(got)]
    if relative_error(got, want) <= close:
        return []  # rounding has no meaning
    if not got.any():
        return ["is 0 everywhere"]
    if want.size > 1 and not want.any():
        return ["should be 0 everywhere"]
    coarse = min(rounding, COARSEST)
    for closeness in (close, coarse) if coarse > close else (close,):
        for guess in (
            _multiple(got, want, dimensions, closeness),
            _other(got, others, closeness),
            _moved(got, want, names, closeness),
            _multiple_in_slices(got, want, names, closeness),
            _constant(got, want, names, closeness),
        ):
            if guess:
                return [guess + (IN_SINGLE if closeness > close else "")]
    noisy = coarse > close and _noisy(got, want, coarse)
    place = _place(got, want, names, coarse if noisy else close, offsets)
    return [place + (IN_SINGLE if noisy else "")] if place else []


def _noisy(got: Array, want: Array, coarse: float) -> bool:
    """Whether most of it is right to `coarse`, and most of that is off by a little, as float32
    leaves it. A mistake in a part leaves the rest exact, one everywhere is small here and there."""
    delta = _off(got, want) / max(np.abs(want).max(), 1e-300)
    right = delta[delta <= coarse]
    return bool(len(right) > delta.size / 2 and (right > 1e-12).sum() > len(right) / 2)


def _same(a: Array, b: Array, close: float) -> bool:
    return a.shape == b.shape and relative_error(a, b) <= close


def _transposed(got: Array, want: Array, close: float) -> str | None:
    for order in list(itertools.permutations(range(want.ndim)))[1:]:
        if _same(got, want.transpose(order), close):
            return f"is transposed: axes {list(order)} of the right one"
    return None


def _not_finite(got: Array) -> str:
    bad = ~np.isfinite(got)
    what = "NaN" if np.isnan(got).any() else "infinite"
    where = f"is {what}"
    if got.ndim:
        first = np.argwhere(bad)[0].tolist()
        where = f"holds {int(bad.sum())} {what} of {bad.size}, the first at {first}"
    return f"{where}: does exp overflow, is something divided by 0, or is a whole row masked out?"


def _multiple(got: Array, want: Array, dimensions: Mapping[str, float], close: float) -> str | None:
    c = float(np.vdot(want, got) / np.vdot(want, want))
    if c == 0 or not math.isfinite(c) or relative_error(got, c * want) > close * min(1, abs(c)):
        return None
    if want.size == 1:  # one number is a multiple of any other: only a known one says something
        name = named(c, dimensions)
        return f"is {c:.4g} times the right one{name}" if name else None
    if abs(c - 1) <= 10 * close:
        return None
    if abs(c + 1) < close:
        return "has the wrong sign"
    return f"is {c:.4g} times the right one everywhere{named(c, dimensions)}"


def _other(got: Array, others: Mapping[str, Array], close: float) -> str | None:
    for name, other in others.items():
        if other.size > 1 and other.any():
            if _same(got, other, close):
                return f"is what {name} should be: are the two swapped?"
            if _same(got, -other, close):
                return f"is minus what {name} should be"
    return None


def _moved(got: Array, want: Array, names: Sequence[str], close: float) -> str | None:
    """The right numbers at other places: axes swapped, reversed, shifted or in another order."""
    if said := _transposed(got, want, close):
        return said
    for axis in range(want.ndim):
        n = want.shape[axis]
        if n < 2 or n > 256:
            continue
        partner = _partners(got, want, axis, close)
        if partner == list(range(n)):
            continue
        along = names[axis]
        known = [(i, j) for i, j in enumerate(partner) if j is not None]
        if len({j for _, j in known}) == n:  # all are there
            if partner == list(range(n))[::-1]:
                return f"is reversed along {along}"
            for shift in range(1, n):
                if partner == [(i - shift) % n for i in range(n)]:
                    signed = shift if shift <= n // 2 else shift - n
                    return f"is shifted by {signed} along {along}"
            return f"has the slices along {along} in another order: {partner} of the right one"
        shifts = {j - i for i, j in known}
        if len(known) >= max(2, n // 2) and len(shifts) == 1 and shifts != {0}:
            return f"is shifted by {-shifts.pop()} along {along}"
        if len({j for _, j in known}) == 1 and len(known) == n:
            return f"repeats slice {known[0][1]} along {along}"
    return None


def _partners(got: Array, want: Array, axis: int, close: float) -> list[int | None]:
    """For each slice of `got` the slice of `want` that it equals; its own first."""
    a, b = np.moveaxis(got, axis, 0), np.moveaxis(want, axis, 0)
    n = len(a)
    a, b = a.reshape(n, -1), b.reshape(n, -1)
    if b.shape[1] < 2 or not all(row.any() for row in b):
        return list(range(n))  # too little to tell one slice from another
    scale = np.abs(want).max()
    delta = np.abs(a[:, None] - b[None]).max(axis=-1) / scale  # (n, n)
    nearest = [i if delta[i, i] <= close else int(delta[i].argmin()) for i in range(n)]
    return [j if delta[i, j] <= close else None for i, j in enumerate(nearest)]


def _multiple_in_slices(got: Array, want: Array, names: Sequence[str], close: float) -> str | None:
    for axis in range(want.ndim):
        n = want.shape[axis]
        a, b = (np.moveaxis(x, axis, 0).reshape(n, -1) for x in (got, want))
        if n < 2 or b.shape[1] < 2 or not all(row.any() for row in b):
            continue
        c = (a * b).sum(axis=1) / (b * b).sum(axis=1)  # (n,)
        if not np.isfinite(c).all() or np.abs(c - 1).max() <= 10 * close:
            return None
        if np.abs(a - c[:, None] * b).max() > close * np.abs(b).max():
            continue
        listed = ", ".join(f"{each:.4g}" for each in c[:6]) + (", ..." if n > 6 else "")
        return f"is a multiple of the right one in each slice along {names[axis]}: {listed}"
    return None


def _constant(got: Array, want: Array, names: Sequence[str], close: float) -> str | None:
    delta = got.astype(np.float64) - want
    scale = np.abs(want).max()
    if want.size > 1 and np.abs(delta - delta.flat[0]).max() <= close * scale:
        return f"is off by {delta.flat[0]:.4g} everywhere"
    for axis in reversed(range(want.ndim)):
        if want.ndim > 1 and want.shape[axis] > 1:
            spread = np.abs(delta - delta.mean(axis=axis, keepdims=True)).max()
            if spread <= close * scale:
                return f"is off by one number all along {names[axis]}: is a mean or a bias missing?"
    return None


def _place(
    got: Array, want: Array, names: Sequence[str], close: float, offsets: Sequence[int] | None
) -> str | None:
    """Where it is wrong, if it is right elsewhere."""
    wrong = _off(got, want) > close * max(np.abs(want).max(), 1e-300)
    said = []
    for axis in range(want.ndim):
        n = want.shape[axis]
        bad = np.flatnonzero(np.moveaxis(wrong, axis, 0).reshape(n, -1).any(axis=1))
        if 0 < len(bad) < n:
            said.append(f"{names[axis]} = {_listed(bad)} of 0..{n - 1}")
            start = int(bad[0])
            if start % 8 == 0 < start and len(bad) == n - start:
                said[-1] += f" (right up to {start}: a block's end?)"
            if names[axis] == "N" and offsets is not None and len(offsets) > 2:
                hit = sorted({int(np.searchsorted(offsets, i, "right")) - 1 for i in bad})
                said[-1] += f" (sequence {_listed(hit)} of 0..{len(offsets) - 2})"
    return f"is right but for {', '.join(said)}" if said else None


def _listed(numbers: Iterable[int]) -> str:
    """0, 1, 2, 5 as "0..2, 5"."""
    parts = []
    for _, run in itertools.groupby(enumerate(numbers), lambda pair: pair[1] - pair[0]):
        each = [int(j) for _, j in run]
        parts.append(str(each[0]) if len(each) == 1 else f"{each[0]}..{each[-1]}")
    return ", ".join(parts[:5]) + (", ..." if len(parts) > 5 else "")
