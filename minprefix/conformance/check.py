"""Checks and their findings."""

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial

import numpy as np

from minprefix.conformance.clock import OutOfTime
from minprefix.conformance.contract import LEVELS, TENSORS, level_of, results
from minprefix.conformance.diagnosis import diagnose, relative_error, worst_entries
from minprefix.conformance.implementation import Broken, Implementation, NotOffered
from minprefix.conformance.rounding import PRECISIONS, REFERENCES, SLACK, is_held, least, words
from minprefix.ops.contract import Array

#: how many findings of a check are explained: later ones mostly follow from them
EXPLAINED = 4

#: level -> the least tolerance of an implementation that is given float32: what single precision
#: leaves of sums over a few dozen terms, and of a whole model
IN_SINGLE = dict.fromkeys(LEVELS, 2e-4) | {"ops": 2e-5}
IN_SINGLE_SAID = (
    "graded in single precision: float64 is rounded to float32, and less than that does not show"
)

#: kinds of findings that only say that something was computed in another precision
PRECISION = ("precision", "dtype")


#: kind of a finding -> what is wrong; docs/check.md shows them
KINDS = {
    "value": "numbers are off by more than rounding",
    "not finite": "there are infinities or NaN where there should be numbers",
    "shape": "the shape is another one",
    "precision": "the numbers are off by what a coarser precision leaves",
    "dtype": "right but for the type",
    "missing": "a result is missing, or is one too many",
    "not an array": "a result is no array of numbers",
    "modified": "something was changed that the contract says is kept",
    "shared": "results, or what a cache keeps, lie in memory that something else writes to",
    "nondeterministic": "the same numbers give other results the next time",
    "law": "results that must fit each other do not",
    "derivative": "a backward is not the derivative of its own forward",
    "exception": "the call raised one",
    "signature": "the function cannot be called as the contract calls it",
    "not computed": "a law cannot be computed from these results",
    "time": "a call did not return in time",
    "crash": "a call ended the process",
    "unreadable": "a file of outputs cannot be read",
}


@dataclass
class Finding:
    """One thing that is wrong. `kind`: one of `KINDS`."""

    function: str
    tensor: str
    kind: str
    sentence: str
    error: float | None = None  # max |delta| / max |right|
    tolerance: float | None = None
    precision: str = ""  # the one whose rounding explains the error: float32, float16 or bfloat16
    worst: list[tuple[list[int], float, float]] = field(default_factory=list)
    hints: list[str] = field(default_factory=list)
    reproducer: str = ""
    guess: bool = False  # gives way to what another check says for certain of the same function


@dataclass
class Result:
    """The outcome of a check. `status`: passed, failed, not implemented, or not graded, where it
    took too long or an earlier check of the op ended the process."""

    check: str
    level: str
    op: str
    status: str
    findings: list[Finding] = field(default_factory=list)
    errors: dict[str, float] = field(default_factory=dict)  # tensor -> relative error
    not_implemented: list[str] = field(default_factory=list)
    not_graded: str = ""  # what was not reached, and why; of a passed check, a part of it
    notes: list[str] = field(default_factory=list)  # what was granted, in a sentence each
    zoo: list[str] = field(default_factory=list)  # bugs that give the same numbers
    zoo_distance: float = 0.0  # relative, from those numbers: rounding
    seconds: float = 0.0
    why: str = ""  # the check's


@dataclass(frozen=True)
class Expected:
    """The right tensors of a case, by name, and what the diagnosis may know of the case.
    `dimensions`: its sizes by their letters; `offsets`: where its sequences begin; `level`: the
    case's, and without one no tensor is taken for a swapped one."""

    tensors: Mapping[str, Array]
    tolerance: float
    dimensions: Mapping[str, float] = field(default_factory=dict)
    offsets: Sequence[int] | None = None
    level: str = ""
    cancels: float = 1.0  # how many times its usual error single precision leaves here
    #: of a tensor, what was given for it and how large an error rounding explains: why it is wrong
    reasons: Callable[[str, Array, float], list[str]] | None = None

    def others(self, tensor: str) -> dict[str, Array]:
        """Those that this one may have been swapped with."""

        def near(name: str) -> bool:
            if self.level == "ops":
                return not name.startswith("cache.")
            return self.level != "" and name.split(".")[0] == tensor.split(".")[0]

        return {name: a for name, a in self.tensors.items() if name != tensor and near(name)}

    def hints(
        self, tensor: str, got: Array, axes: str, tolerance: float, rounding: float
    ) -> list[str]:
        """How and why a wrong tensor differs, in sentences without their subject."""
        want, said = self.tensors[tensor], list[str]()
        if self.reasons and got.shape == want.shape:
            said = self.reasons(tensor, got, max(tolerance, rounding))
        others = self.others(tensor)
        return said + diagnose(
            got, want, axes, self.dimensions, others, tolerance, self.offsets, rounding
        )


@dataclass
class Grade:
    """What a check collects while it runs."""

    findings: list[Finding] = field(default_factory=list)
    errors: dict[str, float] = field(default_factory=dict)
    not_implemented: list[str] = field(default_factory=list)
    not_graded: str = ""  # what was not reached, and why
    notes: list[str] = field(default_factory=list)
    found: dict[str, Array] = field(default_factory=dict)  # what was compared, for the zoo
    explained: int = EXPLAINED
    #: the tolerance at least, where asarray makes float32: single precision is asked for, and what
    #: its rounding explains is right. 0: it is not
    single: float = 0.0
    #: precision -> what this check collects of the reference in it. It is called only where
    #: something is off; None: nothing is called rounding
    reference_in: Callable[[str], "Grade"] | None = None
    #: what asarray makes of an array, where it rounds
    given: Callable[[Array], Array] | None = None

    def another(self) -> "Grade":
        """An empty one that grades alike, but of errors in single precision."""
        return Grade(explained=self.explained, single=self.single, given=self.given)

    def say(self, kind: str, function: str, tensor: str, said: str, reproducer: str = "") -> None:
        """Note a finding that is no wrong number."""
        self.findings.append(Finding(function, tensor, kind, said, reproducer=reproducer))

    def absent(self, function: str, tensor: str, said: str, reproducer: str = "") -> None:
        """Note a tensor that is missing, or one too many. Its name may be of any type."""
        tensor = f"{tensor}"
        self.say("missing", function, tensor, said, reproducer)
        self.found[tensor], self.errors[tensor] = np.zeros(0), math.inf

    def broken(self, function: str, error: Broken, reproducer: str = "") -> None:
        self.say(error.kind, error.function or function, "", str(error), reproducer)

    def rounding(self, name: str, want: Array | None = None, precision: str = "float32") -> float:
        """How large an error the precision's rounding explains here."""
        if self.reference_in is None:
            return 0.0
        error = self.reference_in(precision).errors.get(name, 0.0)
        at_least = least(PRECISIONS[precision][0], want)
        return SLACK * max(error if math.isfinite(error) else 0.0, at_least)

    def coarse(self, name: str, got: Array, want: Array, error: float, rounding: float) -> str:
        """The precision below float32 whose rounding explains this error, or an empty text: the
        coarsest that holds the numbers, or the one that gives them when it holds the inputs.
        `rounding`: what float32 explains."""
        if self.reference_in is None or error <= rounding:
            return ""
        holding = [p for p, (bits, _) in PRECISIONS.items() if is_held(bits, got)]
        telling = [p for p in holding if not is_held(PRECISIONS[p][0], want)]
        if telling and telling[-1] != "float32":
            return telling[-1] if error <= self.rounding(name, want, telling[-1]) else ""
        for precision in list(PRECISIONS)[1:]:
            like = self.reference_in(precision).found.get(name)
            if like is None or like.shape != got.shape:
                continue
            if relative_error(got, like) <= min(max(rounding, 1e-9), 0.1 * error):
                return precision
        return ""

    def expect(self, name: str, finding: Finding, rounding: float | None = None) -> None:
        """Note the finding's error under `name`, and the finding if that is above its tolerance.
        `rounding`: how large an error float32 explains, where it is not the reference's."""
        assert finding.error is not None
        assert finding.tolerance is not None
        self.errors[name] = finding.error
        finding.tolerance = max(finding.tolerance, self.single)
        if finding.error <= finding.tolerance:
            return
        if finding.error <= (self.rounding(name) if rounding is None else rounding):
            if self.single:
                return
            finding.precision = "float32"
            finding.sentence += f": {words('float32', finding.error)}"
            if finding.kind != "derivative":  # the forward may be the one that rounds
                finding.kind = "precision"
        self.findings.append(finding)

    def law(
        self,
        function: str,
        tensor: str,
        law: str,
        off: Array,
        terms: Array,
        tolerance: float = 1e-10,
        rounding: float | None = None,
    ) -> None:
        """`off` should be 0; `terms`: numbers of the size of those that cancel in it."""
        largest = float(np.abs(terms).max(initial=0.0)) or 1.0
        error = float(np.abs(off).max(initial=0.0)) / largest
        error = error if math.isfinite(error) else math.inf
        said = f"a law does not hold for {tensor}: {law}, and it is off by {error:.2g} of the"
        finding = Finding(function, tensor, "law", f"{said} largest value", error, tolerance)
        finding.worst = worst_entries(off, np.zeros_like(off), n=1)
        self.expect(f"{tensor}: {law}", finding, rounding)

    def compare(
        self,
        function: str,
        tensor: str,
        got: Array,
        expected: Expected,
        axes: str = "",
        dtype: str | None = None,
        reproducer: str = "",
        where: str = "",
        because: str = "as the inputs are",
    ) -> None:
        """Grade one tensor: shape, finite, values, dtype. `where`: which one of several, in words;
        `because`: why it should have this dtype."""
        shown, want = tensor + where, expected.tensors[tensor]
        tolerance = max(expected.tolerance, self.single * expected.cancels)
        if shown in self.errors:
            raise AssertionError(f"{shown} is compared twice")
        self.found[shown], self.errors[shown], rounding = got, math.inf, 0.0
        letters = f" ({', '.join(axes.split())})" if axes else ""

        def add(kind: str, sentence: str, error: float | None = None, precision: str = "") -> None:
            finding = Finding(function, tensor, kind, sentence, error, tolerance, precision)
            finding.reproducer = reproducer
            explained = sum(f.kind not in PRECISION for f in self.findings)
            if self.explained and got.shape == want.shape and kind != "dtype":
                finding.worst = worst_entries(got, want, max(tolerance, rounding))
            if reproducer:
                finding.reproducer += f"\n{_printed(finding, dtype)}"
            if kind not in PRECISION and explained < self.explained and got.dtype.kind != "c":
                finding.hints = expected.hints(tensor, got, axes, tolerance, rounding)
            self.findings.append(finding)

        if got.shape != want.shape:
            add("shape", f"{shown} has shape {got.shape}, expected {want.shape}{letters}")
            return
        if got.dtype.kind == "c":
            add("dtype", f"{shown} is {got.dtype}, expected real numbers")
            return
        error = self.errors[shown] = relative_error(got, want)
        other = dtype is not None and str(got.dtype) != dtype
        said = f"is {got.dtype}, expected {dtype} {because}"
        off = f"is off by {error:.2g} of its largest value, {tolerance:.0e} is allowed"
        rounding = self.rounding(shown, want) if error > tolerance else 0.0
        is_off = error > max(tolerance, rounding)
        coarse = self.coarse(shown, got, want, error, rounding) if is_off else ""
        if want.size and got.dtype.kind == "f" and not np.isfinite(got).all():
            add("not finite", f"{shown}{letters} is not finite", error)
        elif is_off and not coarse:
            add("value", f"{shown}{letters} {off}" + (f"; it {said}" if other else ""), error)
        elif other and not coarse:
            add("dtype", f"{shown} {said}", error)
        elif coarse or (error > tolerance and not self.single):
            which = coarse or "float32"
            add("precision", f"{shown}{letters} {off}: {words(which, error)}", error, which)


def _printed(finding: Finding, dtype: str | None) -> str:
    """A line that shows how `got` and `want` differ."""
    wrong, right = "got", "want"
    if finding.kind == "shape":
        wrong, right = "got.shape", "want.shape"
    elif finding.kind == "dtype":
        wrong, right = "got.dtype", repr(dtype) if dtype else "want.dtype"
    elif finding.worst and finding.worst[0][0]:
        index = ", ".join(map(str, finding.worst[0][0]))
        wrong, right = f"got[{index}]", f"want[{index}]"
    return f'print({wrong}, "is wrong,", {right}, "is right")'


@dataclass(frozen=True)
class Check:
    """`id`: op or level, a slash, a name; `why`: which mistakes it is there to catch."""

    id: str
    why: str
    run: Callable[[Implementation, Grade], None] = field(repr=False)

    @property
    def op(self) -> str:
        return self.id.partition("/")[0]

    @property
    def level(self) -> str:
        return level_of(self.op)

    def collect(self, implementation: Implementation) -> Grade:
        """Never raises for what the implementation does."""
        grade = Grade(explained=0)
        if not implementation.in_a_hurry:
            grade = Grade(reference_in=cache(partial(reference_in, self.run)))
            if implementation.rounds:
                grade.given = implementation.given
                grade.single = IN_SINGLE[self.level]
                grade.notes.append(IN_SINGLE_SAID)
        implementation.clock.start()
        try:
            with np.errstate(all="ignore"):  # an overflow shows in the numbers
                self.run(implementation, grade)
        except NotOffered as error:
            grade.not_implemented.append(str(error))
        except OutOfTime as error:
            grade.not_graded, grade.errors = str(error), {}
        except Broken as error:
            grade.broken(self.op, error)
        except AssertionError:  # a mistake of the suite
            raise
        except Exception as error:  # a law cannot be computed from a wrong shape, say
            said = f"cannot be computed from these results: {type(error).__name__}: {error}"
            grade.broken(self.op, Broken("not computed", said[:300]))
        for finding in grade.findings:
            finding.reproducer = self._shown(finding, implementation.name)
        return grade

    def _shown(self, finding: Finding, name: str) -> str:
        """Lines to paste into Python that show what is wrong, and what is right."""
        if finding.kind == "exception" and finding.reproducer:
            given = ", ".join(results(finding.function)) if finding.function in TENSORS else ""
            expected = f"expected: {finding.function} gives {given or 'its results'}"
            return f"print({expected!r})\n{finding.reproducer}"
        if "print(" in finding.reproducer:
            return finding.reproducer
        return (
            "from minprefix.conformance import all_checks, load\n"
            f"for f in all_checks()[{self.id!r}].grade(load({name!r})).findings:\n"
            "    print(f.sentence, *f.worst)  # index, wrong, right"
        )

    def result(self, grade: Grade) -> Result:
        status = "failed" if grade.findings else "passed"
        if not grade.findings and grade.not_implemented and not grade.errors:
            status = "not graded" if grade.not_graded else "not implemented"
        elif status == "passed" and grade.not_graded and not grade.errors:
            status = "not graded"
        missing = sorted(set(grade.not_implemented))
        result = Result(self.id, self.level, self.op, status, grade.findings, grade.errors, missing)
        result.not_graded, result.why = grade.not_graded, self.why
        result.notes = list(dict.fromkeys(grade.notes))
        return result

    def grade(self, implementation: Implementation) -> Result:
        return self.result(self.collect(implementation))


def reference_in(run: Callable[[Implementation, Grade], None], precision: str) -> Grade:
    """What `run` collects of the reference in a precision."""
    grade = Grade(explained=0)
    with np.errstate(all="ignore"), contextlib.suppress(NotOffered, Broken):
        run(REFERENCES[precision], grade)
    return grade
