"""Checks and their findings."""

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from types import SimpleNamespace

import numpy as np

from minprefix.conformance.contract import ARGUMENTS, level_of
from minprefix.conformance.diagnosis import diagnose, relative_error, worst_entries
from minprefix.conformance.implementation import Broken, Implementation, NotOffered
from minprefix.ops import reference
from minprefix.ops.contract import Array

#: how many findings of a check are explained: later ones mostly follow from them
EXPLAINED = 4

#: another order of summation rounds differently: an error up to this many times the reference's
#: own in float32 is called rounding
SLACK = 8

#: where the right value is 0, an error has nothing to be relative to: a layernorm of one column may
#: magnify the rounding of its input by 1/sqrt(eps)
OF_NOTHING = 320

#: kinds of findings that only say that something was computed in another precision
PRECISION = ("precision", "dtype")
ROUNDED = "no more than float32's rounding. Is it computed in float32 somewhere?"


@dataclass
class Finding:
    """One thing that is wrong. `kind`: value, shape, dtype, precision, not finite, modified,
    exception, signature, missing, not an array, law, derivative, not computed, time or crash. A
    tensor of kind dtype is right but for its type; one of kind precision is off by no more than
    float32's rounding."""

    function: str
    tensor: str
    kind: str
    sentence: str
    error: float | None = None  # max |delta| / max |right|
    tolerance: float | None = None
    worst: list[tuple[list[int], float, float]] = field(default_factory=list)
    hints: list[str] = field(default_factory=list)
    reproducer: str = ""


@dataclass
class Result:
    """The outcome of a check. `status`: passed, failed or not implemented."""

    check: str
    level: str
    op: str
    status: str
    findings: list[Finding] = field(default_factory=list)
    errors: dict[str, float] = field(default_factory=dict)  # tensor -> relative error
    not_implemented: list[str] = field(default_factory=list)
    zoo: list[str] = field(default_factory=list)  # bugs that give the same numbers
    zoo_distance: float = 0.0  # relative, from those numbers: rounding
    seconds: float = 0.0


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

    def others(self, tensor: str) -> dict[str, Array]:
        """Those that this one may have been swapped with."""

        def near(name: str) -> bool:
            if self.level == "ops":
                return not name.startswith("cache.")
            return self.level != "" and name.split(".")[0] == tensor.split(".")[0]

        return {name: a for name, a in self.tensors.items() if name != tensor and near(name)}


@dataclass
class Grade:
    """What a check collects while it runs."""

    findings: list[Finding] = field(default_factory=list)
    errors: dict[str, float] = field(default_factory=dict)
    not_implemented: list[str] = field(default_factory=list)
    found: dict[str, Array] = field(default_factory=dict)  # what was compared, for the zoo
    explained: int = EXPLAINED
    #: the reference's own errors here in float32, under the names of `errors`. It is called only
    #: where something is off; None: nothing is called rounding
    in_single: Callable[[], Mapping[str, float]] | None = None

    def say(self, kind: str, function: str, tensor: str, said: str, reproducer: str = "") -> None:
        """Note a finding that is no wrong number."""
        self.findings.append(Finding(function, tensor, kind, said, reproducer=reproducer))

    def absent(self, function: str, tensor: str, said: str, reproducer: str = "") -> None:
        """Note a tensor that is missing, or one too many."""
        self.say("missing", function, tensor, said, reproducer)
        self.found[tensor], self.errors[tensor] = np.zeros(0), math.inf

    def broken(self, function: str, error: Broken, reproducer: str = "") -> None:
        self.say(error.kind, error.function or function, "", str(error), reproducer)

    def rounding(self, name: str, want: Array | None = None) -> float:
        """How large an error float32's rounding explains here."""
        if self.in_single is None:
            return 0.0
        least = float(np.finfo("f4").eps)  # one number may be right by luck
        if want is not None and not want.any():
            least *= OF_NOTHING
        error = self.in_single().get(name, 0.0)
        return SLACK * max(error if math.isfinite(error) else 0.0, least)

    def expect(self, name: str, finding: Finding, rounding: float | None = None) -> None:
        """Note the finding's error under `name`, and the finding if that is above its tolerance.
        `rounding`: how large an error float32 explains, where it is not the reference's."""
        assert finding.error is not None
        assert finding.tolerance is not None
        self.errors[name] = finding.error
        if finding.error <= finding.tolerance:
            return
        if finding.error <= (self.rounding(name) if rounding is None else rounding):
            finding.sentence += f": {ROUNDED}"
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
        shown, want, tolerance = tensor + where, expected.tensors[tensor], expected.tolerance
        if shown in self.errors:
            raise AssertionError(f"{shown} is compared twice")
        self.found[shown], self.errors[shown], rounding = got, math.inf, 0.0
        letters = f" ({', '.join(axes.split())})" if axes else ""

        def add(kind: str, sentence: str, error: float | None = None) -> None:
            finding = Finding(function, tensor, kind, sentence, error, tolerance)
            finding.reproducer = reproducer
            explained = sum(f.kind not in PRECISION for f in self.findings)
            if kind not in PRECISION and explained < self.explained and got.dtype.kind != "c":
                finding.worst = worst_entries(got, want) if got.shape == want.shape else []
                others, offsets = expected.others(tensor), expected.offsets
                finding.hints = diagnose(
                    got, want, axes, expected.dimensions, others, tolerance, offsets, rounding
                )
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
        if want.size and got.dtype.kind == "f" and not np.isfinite(got).all():
            add("not finite", f"{shown}{letters} is not finite", error)
        elif error > max(tolerance, rounding):
            add("value", f"{shown}{letters} {off}" + (f"; it {said}" if other else ""), error)
        elif other:
            add("dtype", f"{shown} {said}", error)
        elif error > tolerance:
            add("precision", f"{shown}{letters} {off}: {ROUNDED}", error)


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
            grade = Grade(in_single=cache(partial(errors_in_single, self.run)))
        try:
            with np.errstate(all="ignore"):  # an overflow shows in the numbers
                self.run(implementation, grade)
        except NotOffered as error:
            grade.not_implemented.append(str(error))
        except Broken as error:
            grade.broken(self.op, error)
        except AssertionError:  # a mistake of the suite
            raise
        except Exception as error:  # a law cannot be computed from a wrong shape, say
            said = f"cannot be computed from these results: {type(error).__name__}: {error}"
            grade.broken(self.op, Broken("not computed", said[:300]))
        for finding in grade.findings:
            finding.reproducer = finding.reproducer or (
                "from minprefix.conformance import all_checks, grade, load\n"
                f"check, impl = all_checks()[{self.id!r}], load({implementation.name!r})\n"
                "print(grade(check, impl).findings)"
            )
        return grade

    def result(self, grade: Grade) -> Result:
        status = "failed" if grade.findings else "passed"
        if not grade.findings and grade.not_implemented and not grade.errors:
            status = "not implemented"
        missing = sorted(set(grade.not_implemented))
        return Result(self.id, self.level, self.op, status, grade.findings, grade.errors, missing)

    def grade(self, implementation: Implementation) -> Result:
        return self.result(self.collect(implementation))


def noise(forward_error: float, size: float, h: float) -> float:
    """How far float32's rounding of a forward with numbers of this size moves a central difference
    over 2h; 0 if the forward is right to more digits than float32 has."""
    single = SLACK * float(np.finfo("f4").eps)
    return single * size / (2 * h) if 1e-12 < forward_error <= single else 0.0


# ---- what float32 leaves ------------------------------------------------------------------------


#: the reference in float32, whatever the dtype of its inputs
SINGLE = Implementation(
    SimpleNamespace(
        **{name: getattr(reference, name) for name in ARGUMENTS},
        asarray=lambda a: a.astype(np.float32) if a.dtype.kind == "f" else a,
    ),
    "the reference in float32",
    in_a_hurry=True,
)


def errors_in_single(run: Callable[[Implementation, Grade], None]) -> Mapping[str, float]:
    """The reference's errors in float32, where `run` grades it."""
    grade = Grade(explained=0)
    with np.errstate(all="ignore"), contextlib.suppress(NotOffered, Broken):
        run(SINGLE, grade)
    return grade.errors
