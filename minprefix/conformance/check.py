"""What a check is and what it finds."""

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache, partial
from types import SimpleNamespace
from typing import Any

import numpy as np

from minprefix.conformance.contract import ARGUMENTS
from minprefix.conformance.diagnosis import diagnose, relative_error, worst_entries
from minprefix.conformance.implementation import Broken, Implementation, NotOffered
from minprefix.ops import reference
from minprefix.ops.contract import Array

#: how many findings of a check are explained: what comes later mostly follows from them
EXPLAINED = 4

#: other orders of summation round otherwise: an error up to so many times the reference's own in
#: float32 is called rounding
SLACK = 8

#: errors of what should be 0 are no part of anything: a layernorm of one column may magnify the
#: rounding of its input by 1/sqrt(eps)
OF_NOTHING = 320

#: kinds of findings that say no more than that something was computed in another precision
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
    """What a check said of an implementation. `status`: passed, failed or not implemented."""

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

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class Grade:
    """What a check collects while it runs."""

    findings: list[Finding] = field(default_factory=list)
    errors: dict[str, float] = field(default_factory=dict)
    not_implemented: list[str] = field(default_factory=list)
    found: dict[str, Array] = field(default_factory=dict)  # what was compared, for the zoo
    explained: int = EXPLAINED
    #: what the reference is off by here in float32, under the names of `errors`. It is asked for
    #: only where something is off; None: nothing is called rounding
    in_single: Callable[[], Mapping[str, float]] | None = None

    def rounding(self, name: str, want: Array | None = None) -> float:
        """How large an error float32's rounding explains here."""
        if self.in_single is None:
            return 0.0
        least = float(np.finfo("f4").eps)  # one number may be right by luck
        if want is not None and not want.any():
            least *= OF_NOTHING
        error = self.in_single().get(name, 0.0)
        return SLACK * max(error if math.isfinite(error) else 0.0, least)

    def expect(self, name: str, finding: Finding, exact: bool = False) -> None:
        """Note the finding's error under `name`, and the finding if that is above its tolerance.
        `exact`: there is nothing to round."""
        assert finding.error is not None
        assert finding.tolerance is not None
        self.errors[name] = finding.error
        if finding.error <= finding.tolerance:
            return
        if not exact and finding.error <= self.rounding(name):
            finding.sentence += f": {ROUNDED}"
            if finding.kind != "derivative":  # the forward may be the one that rounds
                finding.kind = "precision"
        self.findings.append(finding)

    def broken(self, function: str, error: Broken, reproducer: str = "") -> None:
        of = error.function or function
        self.findings.append(Finding(of, "", error.kind, str(error), reproducer=reproducer))

    def compare(
        self,
        function: str,
        tensor: str,
        got: Array,
        want: Array,
        tolerance: float,
        axes: str = "",
        dimensions: Mapping[str, float] | None = None,
        others: Mapping[str, Array] | None = None,
        offsets: Sequence[int] | None = None,
        dtype: str | None = None,
        reproducer: str = "",
        where: str = "",
        because: str = "as the inputs are",
    ) -> None:
        """Grade one tensor: shape, finite, values, dtype. `where`: which one of several, in words;
        `because`: why it should have this dtype."""
        shown = tensor + where
        if shown in self.errors:
            raise AssertionError(f"{shown} is compared twice")
        self.found[shown] = got
        letters = f" ({', '.join(axes.split())})" if axes else ""

        def add(kind: str, sentence: str, error: float | None = None) -> None:
            worst, hints = [], list[str]()
            explained = sum(f.kind not in PRECISION for f in self.findings)
            if kind not in PRECISION and explained < self.explained and got.dtype.kind != "c":
                worst = worst_entries(got, want) if got.shape == want.shape else []
                but = {n: a for n, a in (others or {}).items() if n != tensor}
                hints = diagnose(
                    got, want, axes, dimensions or {}, but, tolerance, offsets, rounding
                )
            self.findings.append(
                Finding(
                    function, tensor, kind, sentence, error, tolerance, worst, hints, reproducer
                )
            )

        self.errors[shown], rounding = float("inf"), 0.0
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
        rounded = tolerance < error <= rounding
        if want.size and got.dtype.kind == "f" and not np.isfinite(got).all():
            add("not finite", f"{shown}{letters} is not finite", error)
        elif error > tolerance and not rounded:
            add("value", f"{shown}{letters} {off}" + (f"; it {said}" if other else ""), error)
        elif other:
            add("dtype", f"{shown} {said}", error)
        elif error > tolerance:
            add("precision", f"{shown}{letters} {off}: {ROUNDED}", error)


@dataclass(frozen=True)
class Check:
    """`id`: op or level, a slash, a name; `why`: which mistakes it is there to catch."""

    id: str
    level: str
    op: str
    why: str
    run: Callable[[Implementation, Grade], None] = field(repr=False)

    def collect(self, implementation: Implementation) -> Grade:
        """Never raises for what the implementation does."""
        grade = Grade() if not implementation.in_a_hurry else Grade(explained=0)
        if not implementation.in_a_hurry:
            grade.in_single = partial(_errors_in_single, self)
        try:
            with np.errstate(all="ignore"):  # what overflows is found in the numbers
                self.run(implementation, grade)
        except NotOffered as error:
            grade.not_implemented.append(str(error))
        except Broken as error:
            grade.broken(self.op, error)
        except AssertionError:  # a mistake of the suite
            raise
        except Exception as error:  # a law cannot be computed from a wrong shape, say
            said = f"not to be computed from what it gave: {type(error).__name__}: {error}"
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
        return Result(
            self.id,
            self.level,
            self.op,
            status,
            grade.findings,
            grade.errors,
            sorted(set(grade.not_implemented)),
        )

    def grade(self, implementation: Implementation) -> Result:
        return self.result(self.collect(implementation))


# ---- what float32 leaves ------------------------------------------------------------------------


def _single(a: Array) -> Array:
    return a.astype(np.float32) if a.dtype.kind == "f" else a


#: the reference on float32, whatever it is handed
SINGLE = Implementation(
    SimpleNamespace(**{name: getattr(reference, name) for name in ARGUMENTS}, asarray=_single),
    "the reference in float32",
    in_a_hurry=True,
)


def errors_in_single(run: Callable[[Implementation, Grade], None]) -> Mapping[str, float]:
    """What the reference is off by in float32, where `run` grades it."""
    grade = Grade(explained=0)
    with np.errstate(all="ignore"), contextlib.suppress(NotOffered, Broken):
        run(SINGLE, grade)
    return grade.errors


@cache
def _errors_in_single(check: Check) -> Mapping[str, float]:
    return errors_in_single(check.run)
