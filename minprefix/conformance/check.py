"""What a check is and what it finds."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from minprefix.conformance.diagnosis import diagnose, relative_error, worst_entries
from minprefix.conformance.implementation import Broken, Implementation, NotOffered
from minprefix.ops.contract import Array

#: how many findings of a check are explained: what comes later mostly follows from them
EXPLAINED = 4


@dataclass
class Finding:
    """One thing that is wrong. `kind`: value, shape, dtype, not finite, modified, exception,
    signature, missing, not an array, law, derivative, not computed, time or crash."""

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
    ) -> None:
        """Grade one tensor: shape, dtype, finite, values. `where`: which one of several, in
        words."""
        shown = tensor + where
        if shown in self.errors:
            raise AssertionError(f"{shown} is compared twice")
        self.found[shown] = got
        letters = f" ({', '.join(axes.split())})" if axes else ""

        def add(kind: str, sentence: str, error: float | None = None) -> None:
            worst, hints = [], list[str]()
            if len(self.findings) < self.explained and got.dtype.kind != "c":
                worst = worst_entries(got, want) if got.shape == want.shape else []
                but = {n: a for n, a in (others or {}).items() if n != tensor}
                hints = diagnose(got, want, axes, dimensions or {}, but, tolerance, offsets)
            self.findings.append(
                Finding(
                    function, tensor, kind, sentence, error, tolerance, worst, hints, reproducer
                )
            )

        self.errors[shown] = float("inf")
        if got.shape != want.shape:
            add("shape", f"{shown} has shape {got.shape}, expected {want.shape}{letters}")
            return
        if got.dtype.kind == "c":
            add("dtype", f"{shown} is {got.dtype}, expected real numbers")
            return
        error = self.errors[shown] = relative_error(got, want)
        if dtype is not None and str(got.dtype) != dtype:
            add("dtype", f"{shown} is {got.dtype}, expected {dtype} as the inputs are", error)
        elif want.size and got.dtype.kind == "f" and not np.isfinite(got).all():
            add("not finite", f"{shown}{letters} is not finite", error)
        elif error > tolerance:
            add(
                "value",
                f"{shown}{letters} is off by {error:.2g} of its largest value, "
                f"{tolerance:.0e} is allowed",
                error,
            )


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
        grade = Grade(explained=0 if implementation.in_a_hurry else EXPLAINED)
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
