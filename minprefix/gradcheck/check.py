"""The check: that a backward gives the derivatives of its forward, keeps what it was given, and
gives the same again."""

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from minprefix.conformance.check import Finding
from minprefix.conformance.diagnosis import diagnose, relative_error, worst_entries
from minprefix.conformance.fitting import explain
from minprefix.conformance.implementation import Broken
from minprefix.gradcheck.arrays import is_array, is_real, library, like, to_numpy, wide
from minprefix.gradcheck.function import Pair, as_upstream, differentiable, outputs, upstream
from minprefix.gradcheck.report import Report
from minprefix.gradcheck.reproducer import source_of
from minprefix.gradcheck.shapes import row_sum, summed_to
from minprefix.gradcheck.slopes import Scalar, Slope, gradient, method_of, wrong_entry
from minprefix.ops.contract import Array

#: allowed error of a gradient, relative to its largest value, by the precision it is computed in
TOLERANCE = {"float64": 1e-9, "float32": 1e-4, "float16": 2e-2, "bfloat16": 5e-2}

DIRECTIONS = 3  # random directions for each input, each with another upstream gradient
ENTRIES = 400  # so many entries of a wrong gradient are measured one by one
SECONDS = 10.0  # at most about so long for them

#: a slope that is less certain than this is not used: the forward has a kink or a jump here
CERTAIN = 1e-4
SURE = 1e-2  # that of a single entry, relative to the gradient's largest value


def gradcheck(
    forward: Callable[..., Any],
    backward: Callable[..., Any],
    *inputs: Any,
    wrt: Any = None,
    has_cache: bool | None = None,
    consumes: Collection[str] = (),
    tolerance: float | None = None,
    seed: int = 0,
    name: str | None = None,
    source: str = "",
) -> Report:
    """Compare `backward` with the derivatives of `forward`, which are measured.

    forward(*inputs) -> out             backward(dout, *inputs) -> gradients
    forward(*inputs) -> (out, cache)    backward(dout, cache) -> gradients

    Arrays may be NumPy's, PyTorch's, JAX's or CuPy's. Every input that is an array of
    floating-point numbers has a gradient; `wrt` names those that do where only some have one (names
    or indices). `has_cache` says which of the two forms it is, where that cannot be seen.
    `consumes`: "dout", "cache" or names of inputs that the functions may overwrite. `tolerance`:
    allowed error relative to a gradient's largest value (by default 1e-9 in float64, 1e-4 in
    float32). `seed` draws the upstream gradients and the directions. `source`: lines of
    Python that define forward, backward and inputs, for the reproducers.

    Derivatives are measured along random directions, by the complex step (Squire & Trapp, 1998) or
    by extrapolated central differences (Ridders, 1982), and entry by entry where they differ from
    the backward's. Raises InputError where the call itself makes no sense.
    """
    report = Report(name or str(getattr(forward, "__name__", type(forward).__name__)))
    try:
        with np.errstate(all="ignore"):  # an overflow shows in the numbers
            pair = Pair.of(forward, backward, inputs, has_cache)
            wanted = differentiable(inputs, pair.names, wrt)
            _Check(pair, inputs, wanted, report, seed, source).run(frozenset(consumes), tolerance)
    except Broken as error:
        report.say(error.kind, error.function, "", str(error))
    return report


def assert_gradients(
    forward: Callable[..., Any], backward: Callable[..., Any], *inputs: Any, **options: Any
) -> None:
    """`gradcheck`, for tests: raises AssertionError with the report if it does not pass."""
    report = gradcheck(forward, backward, *inputs, **options)
    if not report:
        raise AssertionError(str(report))


@dataclass
class _Check:
    """One check. `wanted`: indices of the inputs that have a gradient."""

    pair: Pair
    inputs: Sequence[Any]
    wanted: Sequence[int]
    report: Report
    seed: int
    source: str = ""
    values: list[Array] = field(default_factory=list)  # the forward's outputs
    grads: dict[int, Array] = field(default_factory=dict)  # for the first upstream gradient

    def run(self, consumes: frozenset[str], tolerance: float | None) -> None:
        self._forward(consumes)
        if any(f.kind in ("nondeterministic", "not finite") for f in self.report.findings):
            return  # there is no derivative to compare with
        self._backward(consumes)
        if self.grads:
            self._slopes(tolerance)
        if not self.report.findings:
            self._layout()
            self._two_calls()

    # ---- what each function does on its own ------------------------------------------------------

    def _forward(self, consumes: frozenset[str]) -> None:
        given = self.fresh()
        self.values = outputs(self.pair.run(given)[0])
        self._kept("forward", self.inputs, given, consumes)
        again = outputs(self.pair.run(self.fresh())[0])
        for a, b in zip(self.values, again, strict=False):
            if not np.array_equal(a, b, equal_nan=True):
                said = "forward gives other numbers when it is called again with the same inputs: "
                said += "does it draw random numbers (give them as an input), or keep a buffer?"
                self.report.say("nondeterministic", "forward", "", said)
                return
        for a in self.values:
            if a.dtype.kind not in "fc":
                said = f"forward gives {a.dtype}, expected floating-point numbers"
                raise Broken("dtype", said, "forward")
            if not np.isfinite(a).all():
                bad = int((~np.isfinite(a)).sum())
                said = f"forward gives {bad} of {a.size} numbers that are not finite"
                self.report.say("not finite", "forward", "", said)
                return
        dtype = np.result_type(*(to_numpy(self.inputs[i]).dtype for i in self.wanted))
        if self.values[0].dtype.itemsize < dtype.itemsize:
            said = f"forward gives {self.values[0].dtype} where its inputs are {dtype}: are they "
            self.report.say("dtype", "forward", "", said + "rounded on the way?")

    def upstream(self, n: int) -> list[Array]:
        """The n-th upstream gradient."""
        return upstream(self.values, self.seed, n)

    def back(self, dout: Sequence[Array], inputs: Sequence[Any]) -> dict[int, Any]:
        """Forward and backward -> the gradients by input."""
        out, cache = self.pair.run(inputs)
        result = self.pair.back(as_upstream(out, dout), cache, inputs)
        return self.pair.gradients(result, self.wanted, len(self.inputs))

    def _backward(self, consumes: frozenset[str]) -> None:
        given, pair = self.fresh(), self.pair
        out, cache = pair.run(given)
        left = [self._fresh(a) for a in given]  # what the forward wrote into them is its own fault
        dout = as_upstream(out, self.upstream(0))
        kept = [to_numpy(a) for a in (dout if isinstance(dout, tuple) else [dout])]
        result = pair.back(dout, cache, given)
        raw = pair.gradients(result, self.wanted, len(self.inputs))
        for i, a in raw.items():
            if (array := self._array(i, a)) is not None:
                self.grads[i] = array
        self._kept("backward", left, given, consumes)
        now = [to_numpy(a) for a in (dout if isinstance(dout, tuple) else [dout])]
        if "dout" not in consumes and not all(map(np.array_equal, kept, now)):
            said = "backward wrote into dout: work on a copy, or name it in consumes"
            self.report.say("modified", "backward", "dout", said)
        if not consumes & {"dout", "cache"}:
            self._again(pair.back(dout, cache, given))

    def _again(self, result: Any) -> None:
        """A second backward of the same forward."""
        raw = self.pair.gradients(result, self.wanted, len(self.inputs))
        for i, a in self.grads.items():
            second = to_numpy(raw[i])
            if a.shape == second.shape and not np.array_equal(a, second, equal_nan=True):
                said = (
                    f"{self.d(i)} is another one when backward is called again: does it add to a "
                )
                said += "buffer, write into the cache, or draw random numbers?"
                self.report.say("nondeterministic", "backward", self.d(i), said)

    def _array(self, i: int, a: Any) -> Array | None:
        """A gradient in NumPy, if it has the input's shape."""
        try:
            got = to_numpy(a)
        except (TypeError, ValueError) as error:
            said = f"{self.d(i)} is a {type(a).__name__}, expected an array: {error}"
            self.report.say("not an array", "backward", self.d(i), said)
            return None
        x = to_numpy(self.inputs[i])
        if got.shape != x.shape:
            said = f"{self.d(i)} has shape {got.shape}, expected {x.shape}"
            if summed_to(got.shape, x.shape):
                said += f": {self.pair.names[i]} is broadcast in the forward, so its gradient is "
                said += "summed over the axes along which it was repeated"
            elif got.shape == x.shape[::-1]:
                said += ": is it transposed?"
            self.report.say("shape", "backward", self.d(i), said, self.reproducer(i))
            return None
        if bad := int((~np.isfinite(got)).sum()):
            said = f"{self.d(i)} has {bad} of {got.size} numbers that are not finite"
            first = tuple(int(k) for k in np.argwhere(~np.isfinite(got))[0])
            self.report.say("not finite", "backward", self.d(i), said, self.reproducer(i, first))
            return None
        if got.dtype.kind not in "f" or got.dtype.itemsize < x.dtype.itemsize:
            said = f"{self.d(i)} is {got.dtype}, expected {x.dtype} as {self.pair.names[i]} is"
            self.report.say("dtype", "backward", self.d(i), said)
        return got

    def _kept(
        self, which: str, before: Sequence[Any], after: Sequence[Any], consumes: frozenset[str]
    ) -> None:
        for name, a, b in zip(self.pair.names, before, after, strict=True):
            if not is_array(a) or name in consumes:
                continue
            was, now = to_numpy(a), to_numpy(b)
            if not np.array_equal(was, now, equal_nan=was.dtype.kind == "f"):
                said = f"{which} wrote into {name}: work on a copy, or name it in consumes"
                self.report.say("modified", which, name, said)

    # ---- slopes ----------------------------------------------------------------------------------

    def _slopes(self, tolerance: float | None) -> None:
        doubles = [wide(a) for a in self.inputs]
        for i, first in self.grads.items():
            allowed = TOLERANCE[self._precision(i)] if tolerance is None else tolerance
            self._along_directions(i, first, doubles, allowed)

    def _precision(self, i: int) -> str:
        given = (self.values[0], self.grads[i], self.inputs[i])
        kinds = [str(a.dtype).rpartition(".")[2] for a in given]  # torch.float32: float32
        return max(kinds, key=list(TOLERANCE).index)

    def _along_directions(
        self, i: int, first: Array, doubles: Sequence[Any], allowed: float
    ) -> None:
        x, method, worst, known = to_numpy(doubles[i]), "", 0.0, 0
        rng = np.random.default_rng([self.seed, 100 + i])
        for n in range(DIRECTIONS):
            dout, direction = self.upstream(n), rng.normal(0, 1, x.shape)
            got = first if n == 0 else to_numpy(self.back(dout, self.fresh())[i])
            scalar = Scalar(self.pair, doubles, [d.astype(np.float64) for d in dout], i)
            method = method or method_of(scalar, x, direction)
            slope = scalar.slope(x, direction, method)
            least = 10 * float(np.finfo(got.dtype).eps) / allowed * scalar.size(x)
            error, doubt = _apart(got, direction, slope, least)
            if not doubt <= CERTAIN:
                continue
            known += 1
            worst = max(worst, error)
            if error > max(allowed, 20 * doubt):
                measured = self._wrong(i, got, scalar, n, method, error, allowed)
                break
        else:
            measured = bool(known or not x.size)
            if measured:
                self._note(i, worst, method)
            else:
                measured = self._wrong(i, got, scalar, n, method, np.inf, allowed)
        if not measured:
            said = f"the derivative by {self.pair.names[i]} cannot be measured: has the forward a "
            said += "kink or a jump at these inputs? Give others"
            self.report.say("not measured", "forward", self.d(i), said)

    def _note(self, i: int, error: float, method: str) -> None:
        self.report.errors[self.d(i)] = error
        self.report.methods[self.d(i)] = method

    def _wrong(
        self,
        i: int,
        got: Array,
        scalar: Scalar,
        draw: int,
        method: str,
        error: float,
        allowed: float,
    ) -> bool:
        """Measure the gradient entry by entry, and say how the backward's differs, or note that it
        is right where there is no kink. False: too little can be measured."""
        x, mine = to_numpy(wide(self.inputs[i])), got.astype(np.float64).ravel()
        entries, want, doubt = self._entries(x, mine, scalar, method, allowed)
        sure = doubt <= SURE * np.abs(want[np.isfinite(want)]).max(initial=0.0)
        if not sure.all() and (sure.any() or not np.isfinite(error)):
            entries, want, doubt = entries[sure], want[sure], doubt[sure]
            off = np.abs(mine[entries] - want)
            if not (off > np.maximum(allowed * np.abs(want).max(initial=0.0), 20 * doubt)).any():
                known = len(want) > 0 and (len(sure) == x.size or not np.isfinite(error))
                if known:
                    at = f"{method} at {len(want)} of {x.size} entries"
                    self._note(i, relative_error(mine[entries], want), at)
                return known
        n = len(entries)
        shape = x.shape if n == x.size else (n,)
        want, mine = want.reshape(shape), mine[entries].reshape(shape)
        largest = float(np.abs(want).max(initial=0.0)) or 1.0
        error = relative_error(mine, want) if np.isfinite(mine).all() else error
        close = max(allowed, 20 * float(doubt.max(initial=0.0)) / largest)
        said = (
            f"{self.d(i)} {x.shape} is off by {error:.2g} of its largest value, {allowed:.0e} is "
        )
        said += f"allowed (by {method}{'' if n == x.size else f', {n} of {x.size} entries'})"
        finding = Finding("backward", self.d(i), "value", said, error, allowed)
        finding.worst = worst_entries(mine, want)
        if n < x.size:
            flat = [np.unravel_index(int(entries[j[0]]), x.shape) for j, _, _ in finding.worst]
            triples = zip(flat, finding.worst, strict=True)
            finding.worst = [([int(k) for k in at], a, b) for at, (_, a, b) in triples]
        finding.hints = self._hints(i, mine, want, entries, draw, close)
        first = finding.worst[0][0] if finding.worst else [0] * x.ndim
        finding.reproducer = self.reproducer(i, tuple(first), draw)
        self.report.findings.append(finding)
        self._note(i, error, method)
        return True

    def _entries(
        self, x: Array, mine: Array, scalar: Scalar, method: str, allowed: float
    ) -> tuple[Array, Array, Array]:
        """Some entries, as many as time allows -> flat indices, derivatives, the doubt of each."""
        start = time.perf_counter()
        scalar.slope(x, np.ones_like(x), method)
        fit = int(SECONDS / max(time.perf_counter() - start, 1e-6))
        n = min(x.size, ENTRIES, max(fit, 8))
        entries = np.sort(np.random.default_rng(self.seed).choice(x.size, n, replace=False))
        want, doubt = gradient(scalar, x, [int(e) for e in entries], method)
        largest = np.abs(want[np.isfinite(want)]).max(initial=0.0)
        off = np.abs(mine[entries] - want)[doubt <= SURE * largest]
        if n < x.size and not (off > allowed * largest).any():  # it is wrong elsewhere
            entries = np.append(entries, wrong_entry(scalar, x, mine, method))
            last, more = gradient(scalar, x, [int(entries[-1])], method)
            want, doubt = np.append(want, last), np.append(doubt, more)
        return entries, want, doubt

    def _hints(
        self, i: int, mine: Array, want: Array, entries: Array, n: int, close: float
    ) -> list[str]:
        """How the gradient differs from the measured one, for the n-th upstream gradient; both at
        `entries`, as one row if these are not all."""
        x = to_numpy(self.inputs[i])
        partly = want.shape != x.shape
        names = [f"axis {k}" for k in range(want.ndim)]
        sizes: dict[str, float] = {
            f"the output's axis {k}": m for k, m in enumerate(self.values[0].shape)
        }
        sizes |= {f"axis {k}": m for k, m in enumerate(x.shape)}
        others = {self.d(j): a.astype(np.float64) for j, a in self.grads.items() if j != i}
        hints = diagnose(mine, want, "", sizes, {} if partly else others, close)
        if hints and not hints[0].startswith("is right but for"):
            return hints
        hints = [] if partly else hints  # places in the row say nothing
        terms: dict[str, Array] = {"1": np.ones(1)}
        terms |= {self.pair.names[j]: to_numpy(self.inputs[j]) for j in self.wanted}
        for k, (out, dout) in enumerate(zip(self.values, self.upstream(n), strict=True)):
            which = f" {k}" if len(self.values) > 1 else ""
            terms |= {f"dout{which}": dout, f"the output{which}": out}
            terms[f"dout{which} times the output{which}"] = dout * out
        fit = {name: a for name, a in terms.items() if summed_to(x.shape, a.shape)}
        if partly:
            fit = {m: np.broadcast_to(a, x.shape).ravel()[entries] for m, a in fit.items()}
        missing = row_sum(want - mine, {n: a for n, a in fit.items() if not n.startswith("dout")})
        return (explain(mine, want, fit, names, sizes, close) or hints) + missing

    # ---- how arrays lie in memory, and two calls -------------------------------------------------

    def _layout(self) -> None:
        """The same numbers in arrays that do not lie in one piece."""
        given = [
            like(a, np.repeat(to_numpy(a), 2, axis=-1)[..., ::2])
            if is_array(a) and to_numpy(a).ndim and _keeps_layout(a)
            else self._fresh(a)
            for a in self.inputs
        ]
        said = "other numbers for inputs that do not lie in one piece: is memory reinterpreted "
        said += "(reshape, view, ravel with an order)?"
        self._compare(self.back(self.upstream(0), given), said, "value")

    def _two_calls(self) -> None:
        """Two forwards before the backward of the first, as in a network of two layers."""
        if not self.pair.has_cache:
            return
        out, cache = self.pair.run(self.fresh())
        other = [self._moved(a) for a in self.inputs]
        try:
            self.pair.run(other)
        except Broken:
            return  # those inputs are not the caller's
        given = self.fresh()
        found = self.pair.gradients(
            self.pair.back(as_upstream(out, self.upstream(0)), cache, given),
            self.wanted,
            len(self.inputs),
        )
        self._compare(
            found,
            "another one when a second forward ran before: do two calls share a buffer or a cache?",
            "shared",
        )

    def _compare(self, found: dict[int, Any], said: str, kind: str) -> None:
        for i, a in self.grads.items():
            b = to_numpy(found[i])
            close = 1e3 * float(np.finfo(a.dtype).eps)
            if a.shape != b.shape or relative_error(b, a) > close:
                self.report.say(kind, "backward", self.d(i), f"{self.d(i)} is {said}")

    # ---- inputs ----------------------------------------------------------------------------------

    def d(self, i: int) -> str:
        return f"d{self.pair.names[i]}"

    def fresh(self) -> list[Any]:
        return [self._fresh(a) for a in self.inputs]

    def _fresh(self, a: Any) -> Any:
        return like(a, to_numpy(a)) if is_array(a) else a

    def _moved(self, a: Any) -> Any:
        return (
            like(a, to_numpy(a) * np.asarray(1.25, to_numpy(a).dtype))
            if is_real(a)
            else self._fresh(a)
        )

    def reproducer(self, i: int, index: tuple[int, ...] | None = None, draw: int = 0) -> str:
        """Lines that show the backward's value and the measured one when they are pasted."""
        lines = [self.source or source_of(self.pair, self.inputs)]
        lines.insert(0, "from minprefix.gradcheck import entry")
        where = f"inputs, {self.pair.names[i]!r}, {index!r}, seed={self.seed}, draw={draw}"
        where += f", has_cache={self.pair.has_cache}"
        lines.append(f"print(entry(forward, backward, {where}))  # yours, and measured")
        return "\n".join(lines)


def _keeps_layout(a: Any) -> bool:
    """Whether a copy of an array of this library lies as the original does: JAX's has no layout."""
    return library(a) == "numpy"


def _apart(got: Array, direction: Array, slope: Slope, least: float) -> tuple[float, float]:
    """How far the gradient is from the slope along a direction, and how uncertain the slope is;
    relative to numbers of the size of those that are summed, or to `least` where all are mere
    rounding."""
    terms = got.astype(np.float64) * direction
    analytic = float(terms.sum())
    size = max(float(np.sqrt((terms**2).sum())), abs(slope.value), least) or 1.0
    error = abs(analytic - slope.value) / size
    doubt = slope.doubt / size
    return (error if np.isfinite(error) else np.inf), (doubt if np.isfinite(doubt) else np.inf)
