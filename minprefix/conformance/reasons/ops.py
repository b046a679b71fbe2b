"""Why a tensor of an op is wrong: known wrong formulas first, then summands that are wrong, then
what moves it."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from minprefix.conformance.cases import Case, axes, flatten, owner, reference_cache, wide
from minprefix.conformance.contract import ARGUMENTS
from minprefix.conformance.diagnosis import IN_SINGLE, relative_error
from minprefix.conformance.fitting import explain
from minprefix.conformance.implementation import Broken, Implementation, NotOffered
from minprefix.conformance.reasons.probe import influence
from minprefix.conformance.reasons.terms import TERMS
from minprefix.conformance.reasons.wrong import Wrong, formulas, given
from minprefix.ops import reference
from minprefix.ops.contract import Array

#: a search through the formulas ends after so many seconds, and each tensor has so many searches
SECONDS, SEARCHES = 3.0, 3

#: op -> a case that tells apart what looks alike in a small one: the last whole block ends at
#: another place for every size that people block by
APART: dict[str, Case] = {
    "embed": Case("embed", {"N": 511, "V": 2047, "C": 3, "n_positions": 550}, seed=8),
    "layernorm": Case("layernorm", {"N": 5, "C": 511, "spread": 0.03, "eps": 1e-3}, seed=8),
    "linear": Case("linear", {"N": 511, "n_in": 63, "n_out": 31}, seed=8),
    "gelu": Case("gelu", {"N": 40, "F": 33}, seed=8),
    "attention": Case("attention", {"lengths": (3, 255), "slots": (2, 255)}, seed=8),
    "cross_entropy": Case("cross_entropy", {"M": 63, "V": 2047}, seed=8),
}


@dataclass
class _Seen:
    """What is known of an implementation: by tensor, without the number of its sequence, the wrong
    formula that was found and how many searches there were; by op, its numbers for `APART`."""

    formula: dict[str, Wrong] = field(default_factory=dict)
    searches: dict[str, int] = field(default_factory=dict)
    apart: dict[str, Mapping[str, Array]] = field(default_factory=dict)


_SEEN: WeakKeyDictionary[Implementation, _Seen] = WeakKeyDictionary()


class Reasons:
    """Of one case, and of all that an implementation gave for it. `run`: what it gives for another
    case; may raise Broken or NotOffered."""

    def __init__(
        self,
        case: Case,
        implementation: Implementation,
        found: Mapping[str, Array],
        run: Callable[[Implementation, Case], Mapping[str, Array]],
    ) -> None:
        self.case, self.implementation, self.found, self.run = case, implementation, found, run
        self.right = case.expected(implementation)
        self.seen = _SEEN.setdefault(implementation, _Seen())

    def __call__(self, tensor: str, got: Array, rounding: float) -> list[str]:
        """Sentences without their subject, as `diagnose` gives them. `rounding`: how far apart
        equal numbers may be, relative to the largest."""
        first = next(iter(self.right))
        follows = tensor != first and not _same(self.found.get(first), self.right[first], 1e-6)
        nothing = not got.any() or got.dtype.kind not in "fiu"
        if self.implementation.in_a_hurry or nothing or follows:
            return []
        with np.errstate(all="ignore"):
            said = self._sibling(tensor, got) or self._formula(tensor, got, rounding)
            said = said or self._summand(tensor, got) or self._moves(tensor)
        return [said] if said else []

    @cached_property
    def inputs(self) -> dict[str, Any]:
        """In float64, and the reference's cache."""
        return _with_cache(self.case, self.implementation)

    def _sibling(self, tensor: str, got: Array) -> str | None:
        """Another sequence's."""
        stem = tensor.split("[")[0]
        for name, other in self.right.items():
            if name != tensor and name.split("[")[0] == stem and _same(other, got, 1e-8):
                return f"is what {name} should be: is it another sequence's, or is memory shared?"
        return None

    # ---- a wrong formula

    def _formula(self, tensor: str, got: Array, rounding: float) -> str | None:
        function, stem = owner(self.case.op, tensor), tensor.split("[")[0]
        error = relative_error(got, self.right[tensor])
        close = max(10 * self.case.tolerance(), rounding)
        close = min(close, 0.01 * error if math.isfinite(error) else close)
        known = self.seen.formula.get(stem)
        if known and _same(given(known, self.inputs).get(tensor), got, close):
            return self._said(known, tensor, got)
        self.seen.searches[stem] = self.seen.searches.get(stem, 0) + 1
        if self.seen.searches[stem] > SEARCHES:
            return None
        alike, ends = [], time.monotonic() + SECONDS
        for wrong in formulas()[function]:
            if _same(given(wrong, self.inputs).get(tensor), got, close):
                alike.append(wrong)
            if time.monotonic() > ends:
                break
        alike = self._apart(alike, tensor) if len(alike) > 1 else alike
        if not alike:
            return None
        self.seen.formula[stem] = alike[0]
        either = f", or if {alike[1].said}" if len(alike) == 2 else ""
        return self._said(alike[0], tensor, got, either)

    def _said(self, wrong: Wrong, tensor: str, got: Array, either: str = "") -> str:
        exact = _same(given(wrong, self.inputs).get(tensor), got, 10 * self.case.tolerance())
        return f"is what one gets if {wrong.said}{either}{'' if exact else IN_SINGLE}"

    def _apart(self, alike: list[Wrong], tensor: str) -> list[Wrong]:
        """Those that agree with most of the other tensors, too, and with a case of many blocks."""

        def agree(wrong: Wrong) -> int:
            numbers = given(wrong, self.inputs)
            return sum(_same(numbers.get(name), a, 1e-7) for name, a in self.found.items())

        agreeing = [agree(wrong) for wrong in alike]
        alike = [w for w, n in zip(alike, agreeing, strict=True) if n == max(agreeing)]
        op = self.case.op
        if len(alike) > 1 and op not in self.seen.apart:
            try:
                self.seen.apart[op] = self.run(self.implementation, APART[op])
            except (Broken, NotOffered):
                self.seen.apart[op] = {}
        mine = self.seen.apart.get(op, {}).get(tensor)
        if mine is None or len(alike) == 1:
            return alike
        inputs = _with_cache(APART[op], self.implementation)
        left = [w for w in alike if _same(given(w, inputs).get(tensor), mine, 1e-7)]
        return left or alike

    # ---- a wrong summand

    def _summand(self, tensor: str, got: Array) -> str | None:
        op, i = self.case.op, self.inputs
        terms = TERMS[op](i, i.get("cache")).get(tensor, {})
        names = axes(owner(op, tensor), tensor).split()
        if op == "gelu" and (said := _tanh_of(tensor, got, i)):
            return said
        found = explain(got, self.right[tensor], terms, names, self.case.dimensions())
        return found[0] if found else None

    # ---- what moves it

    def _moves(self, tensor: str) -> str | None:
        op = self.case.op
        if tensor != next(iter(self.right)) or self.right[tensor].ndim == 0:
            return None
        try:
            return influence(op, self.case.inputs(), partial(_result, reference, op), self._mine)
        except (Broken, NotOffered, ValueError):
            return None

    def _mine(self, inputs: dict[str, Any]) -> Array:
        op, own = self.case.op, self.implementation.arguments(inputs)
        result = self.implementation.call(op, *(own[a] for a in ARGUMENTS[op]))
        return self.implementation.asnumpy(next(iter(flatten(op, result).values())), op)


def _with_cache(case: Case, implementation: Implementation) -> dict[str, Any]:
    inputs = case.inputs()
    inputs = wide(implementation.given(inputs) if implementation.rounds else inputs)
    if case.op not in ("embed", "linear"):
        inputs["cache"] = reference_cache(case.op, inputs)
    return inputs


def _result(functions: Any, op: str, inputs: dict[str, Any]) -> Array:
    result = getattr(functions, op)(*(inputs[a] for a in ARGUMENTS[op]))
    return np.asarray(next(iter(flatten(op, result).values())))


def _same(a: Array | None, b: Array | None, close: float) -> bool:
    return a is not None and b is not None and a.shape == b.shape and relative_error(b, a) <= close


def _tanh_of(tensor: str, got: Array, i: Mapping[str, Any]) -> str | None:
    """The two constants of a GELU, from its values: atanh(2 out / x - 1) = c (x + a x^3)."""
    x = i["x"]
    sure = (np.abs(x) > 0.05) & (np.abs(x) < 2)
    if tensor != "out" or sure.sum() < 10:
        return None
    u = np.arctanh(2 * got[sure] / x[sure] - 1)
    basis = np.stack([x[sure], x[sure] ** 3], axis=1)
    if not np.isfinite(u).all():
        return None
    (c, ca), *_ = np.linalg.lstsq(basis, u, rcond=None)
    if np.abs(basis @ (c, ca) - u).max() > 1e-7 or abs(c) < 1e-6:
        return None
    return (
        f"is x/2 (1 + tanh(u)) with u = {c:.8g} (x + {ca / c:.6g} x^3): expected "
        f"{reference.SQRT_2_OVER_PI:.8g} = sqrt(2/pi) and 0.044715"
    )
