"""Somebody's own rmsnorm, rope, gqa, ... against the piece of that name: on each case its values,
and where these are right, or nothing can be said of them, its gradients by `gradcheck`."""

import inspect
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from minprefix.conformance.check import Expected, Finding, Grade
from minprefix.conformance.diagnosis import relative_error
from minprefix.conformance.implementation import Broken
from minprefix.conformance.rounding import PRECISIONS, rounded
from minprefix.errors import InputError, counted
from minprefix.gradcheck import cases, pieces
from minprefix.gradcheck.arrays import is_real, to_numpy
from minprefix.gradcheck.check import gradcheck
from minprefix.gradcheck.function import Pair, as_upstream, differentiable, outputs, upstream
from minprefix.gradcheck.mistakes import mistake, summand
from minprefix.gradcheck.report import Report
from minprefix.gradcheck.source import Source
from minprefix.ops.contract import Array

#: allowed error relative to the largest value, by the precision of the inputs
TOLERANCE = {"float64": 1e-10, "float32": 2e-5, "float16": 2e-2}

BY_VALUES = "comparison with the right values"

#: how hints begin that say where, and not what
VAGUE = ("is right but for", "is a multiple of the right one in each slice")

LISTED = 3  # so many other cases of a finding are named


def grade(source: Source, only: Sequence[str] = ()) -> Report:
    """The report on the cases of the piece that `source` is named after, or on those in `only`.
    Raises InputError for a case that the piece does not have."""
    every = cases.names(source.piece)
    for name in only:
        if name not in every:
            said = f"{source.piece} has no case {name!r}"
            raise InputError(f"{said}: it has {', '.join(every)}")
    report = Report(source.name)
    seen: dict[tuple[str, str, str], tuple[Finding, list[str]]] = {}
    for name, why in every.items():
        if only and name not in only:
            continue
        case = _Case(source, name)
        with np.errstate(all="ignore"):  # an overflow shows in the numbers
            case.run()
        for tensor, error in case.report.errors.items():
            shown = f"{tensor} in float32" if name == "float32" else tensor
            if error >= report.errors.get(shown, -1.0):
                report.errors[shown] = error
                report.methods[shown] = case.report.methods[tensor]
        for finding in case.report.findings:
            key = (finding.function, finding.tensor, finding.kind)
            if key not in seen:
                if finding.kind != "not implemented":
                    finding.sentence += f" (case {name}: {why})"
                seen[key] = finding, []
            elif finding.kind != "not implemented":
                seen[key][1].append(name)
    for finding, others in seen.values():
        if others:
            more = f" and {len(others) - LISTED} more" if others[LISTED:] else ""
            finding.sentence += f"; also in {', '.join(others[:LISTED])}{more}"
        report.findings.append(finding)
    return report


def values(source: Source, case: str, tensor: str) -> tuple[Array, Array]:
    """One tensor of a case: the source's, and the right one."""
    graded = _Case(source, case)
    graded.compute()
    return graded.got[tensor], graded.right[tensor]


@dataclass
class _Case:
    """One case. `got` and `right`: the source's tensors and the right ones, under the names that
    the source gives its inputs; `piece_name`: what the piece calls them."""

    source: Source
    name: str
    report: Report = field(default_factory=lambda: Report(""))
    got: dict[str, Array] = field(default_factory=dict)
    right: dict[str, Array] = field(default_factory=dict)
    piece_name: dict[str, str] = field(default_factory=dict)

    def inputs(self) -> dict[str, Any]:
        """By the piece's names, in the source's order, and as its kind of arrays. Raises Broken."""
        inputs, own = cases.inputs(self.source.piece, self.name), self.source.asarray
        made = {k: own(a) if own and isinstance(a, np.ndarray) else a for k, a in inputs.items()}
        try:
            signature = inspect.signature(self.source.forward)
        except (TypeError, ValueError):  # written in C
            return made
        if set(signature.parameters) == set(made):
            return {name: made[name] for name in signature.parameters}
        try:
            signature.bind(*made.values())
        except TypeError as error:
            said = f"the cases of {self.source.piece} call it with ({', '.join(made)})"
            give = f"for inputs of another kind, write {self.source.name}_inputs()"
            took = f"{self.source.name} takes {signature}"
            raise Broken("signature", f"{took}, {said}; {give}", "forward") from error
        return made

    def run(self) -> None:
        say, stopped = self.report.say, False
        try:
            self.compute()
        except Broken as error:
            stopped = True
            missing = isinstance(error.__cause__, NotImplementedError)
            kind = "not implemented" if missing else error.kind
            say(kind, error.function, "", "is not written yet" if missing else str(error))
        found = self._compared() if self.got else []
        self.report.findings += found
        wrong_forward = [f for f in found if f.function == "forward" and f.kind == "value"]
        if stopped or (found and not wrong_forward):
            return
        measured = gradcheck(self.source.forward, self.source.backward, *self.inputs().values(),
                             name=self.source.name, source=self._source())  # fmt: skip
        random = [f for f in measured.findings if f.kind == "nondeterministic"]
        if random and found:
            self.report.findings = random  # its numbers are no function's
            return
        self.report.errors = measured.errors | self.report.errors
        self.report.methods = measured.methods | self.report.methods
        self.report.findings += measured.findings
        for finding in wrong_forward:
            if measured:
                fits = "the backward is the gradient of this forward: mend the forward first"
                finding.hints.append(f"is wrong, and {fits}")

    def compute(self) -> None:
        """Fill `got` and `right`. Raises Broken."""
        inputs, piece = self.inputs(), self.source.piece
        names, given = list(inputs), list(inputs.values())
        pair = Pair.of(self.source.forward, self.source.backward, given)
        doubles = {name: _double(inputs[name]) for name in cases.inputs(piece, self.name)}
        out, cache = getattr(pieces, piece)(*doubles.values())
        result, kept = pair.run(given)
        out_name = _out(piece)
        gave = outputs(result)
        if len(gave) != 1:
            said = f"forward gives {counted(len(gave), 'array')}, expected one, {out_name}"
            raise Broken("missing", said, "forward")
        self._add(out_name, out_name, gave[0], out)
        if gave[0].shape != out.shape or gave[0].dtype.kind != "f":
            return
        dout = upstream([self.got[out_name]], 0, 0)
        grads = getattr(pieces, f"{piece}_backward")(dout[0].astype(np.float64), cache)
        real = [name for name in doubles if is_real(doubles[name])]
        rights = dict(zip(real, grads if isinstance(grads, tuple) else [grads], strict=True))
        wanted = differentiable(given, names, None)
        raw = pair.gradients(pair.back(as_upstream(result, dout), kept, given), wanted, len(given))
        for i in wanted:
            own = names[i] if pair.names[i].startswith("input_") else pair.names[i]
            self._add(f"d{own}", names[i], _array(raw[i], f"d{own}"), rights[names[i]])

    def _add(self, tensor: str, piece_name: str, got: Array, right: Array) -> None:
        self.piece_name[tensor] = piece_name
        self.got[tensor], self.right[tensor] = got, right

    def _compared(self) -> list[Finding]:
        dtype = next(str(to_numpy(a).dtype) for a in self.inputs().values() if is_real(a))
        axes = cases.AXES[self.source.piece]
        sizes = {self.piece_name[t]: a for t, a in self.right.items()}
        dimensions = cases.dimensions(axes, sizes)
        expected = Expected(self.right, TOLERANCE[dtype], dimensions, level="ops")
        grade = Grade(reference_in=self._in_precision)
        for tensor, got in self.got.items():
            piece_name = self.piece_name[tensor]
            of_forward = tensor == _out(self.source.piece)
            function = "forward" if of_forward else "backward"
            before = len(grade.findings)
            grade.compare(
                function, tensor, got, expected, axes[piece_name], dtype, self._reproducer(tensor)
            )
            for finding in grade.findings[before:]:
                if finding.kind == "value":
                    shown = piece_name if of_forward else f"d{piece_name}"
                    self._explain(finding, tensor, shown, dimensions)
                    self.report.errors[tensor] = grade.errors[tensor]
                    self.report.methods[tensor] = BY_VALUES
                elif finding.kind == "shape":
                    finding.hints += _not_summed(got, self.right[tensor])
            if of_forward and len(grade.findings) > before:
                break  # the gradients of another function are others
        return grade.findings

    def _explain(
        self, finding: Finding, tensor: str, piece_name: str, dimensions: Mapping[str, float]
    ) -> None:
        """The surest hint: a usual mistake, then a general one, then a part of the formula."""
        made, piece = self.inputs(), self.source.piece
        inputs = {name: _double(made[name]) for name in cases.inputs(piece, self.name)}
        (dout,) = upstream([self.got[_out(piece)]], 0, 0)
        got, want = self.got[tensor].astype(np.float64), self.right[tensor]
        close = 10 * TOLERANCE[str(dout.dtype)]
        about = (piece, inputs, dout.astype(np.float64), piece_name, got, want, close)
        said = mistake(*about)
        if not said and not (finding.hints and not finding.hints[0].startswith(VAGUE)):
            said = summand(*about, dimensions)
        finding.hints = [said] if said else finding.hints

    def _in_precision(self, precision: str) -> Grade:
        """What the piece itself gives in a precision, under the source's names."""
        to, piece = partial(rounded, PRECISIONS[precision][0]), self.source.piece
        f, back = getattr(pieces, piece), getattr(pieces, f"{piece}_backward")
        coarse = _Case(Source(piece, f, back, piece, None, to), self.name)
        coarse.compute()
        by_name = {coarse.piece_name[t]: to(a) for t, a in coarse.got.items()}
        found = {t: by_name[name] for t, name in self.piece_name.items()}
        errors = {t: relative_error(a, self.right[t]) for t, a in found.items()}
        return Grade(found=found, errors=errors)

    def _reproducer(self, tensor: str) -> str:
        """Lines that define `got` and `want`."""
        return (
            "from minprefix.gradcheck.graded import values\n"
            f"{self.source.lines()}"
            f"got, want = values(mine, {self.name!r}, {tensor!r})"
        )

    def _source(self) -> str:
        """Lines that define forward, backward and inputs."""
        return (
            "from minprefix.gradcheck.graded import inputs_of_case\n"
            f"{self.source.lines()}"
            f"inputs = inputs_of_case(mine, {self.name!r})"
        )


def inputs_of_case(source: Source, case: str) -> list[Any]:
    """New inputs of one case, in the source's order."""
    return list(_Case(source, case).inputs().values())


def _out(piece: str) -> str:
    """What the piece calls its result."""
    return "z" if "z" in cases.AXES[piece] else "out"


def _not_summed(got: Array, want: Array) -> list[str]:
    """The axes over which a gradient still has to be summed."""
    for n in range(1, got.ndim + 1):
        for axes in itertools.combinations(range(got.ndim), n):
            a = got.sum(axis=axes)
            if a.size == want.size and relative_error(a.reshape(want.shape), want) < 1e-4:
                listed = f"axis {axes[0]}" if n == 1 else f"axes {', '.join(map(str, axes))}"
                return [f"is right once it is summed over {listed}"]
    return []


def _double(a: Any) -> Any:
    a = to_numpy(a) if hasattr(a, "dtype") else a
    return a.astype(np.float64) if isinstance(a, np.ndarray) and a.dtype.kind == "f" else a


def _array(a: Any, name: str) -> Array:
    try:
        return to_numpy(a)
    except (TypeError, ValueError) as error:
        said = f"{name} is a {type(a).__name__}, expected an array: {error}"
        raise Broken("not an array", said, "backward") from error
