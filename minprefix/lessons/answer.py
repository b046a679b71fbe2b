"""An answer to a lesson's exercise, called beside ours: its steps are compared by their names, then
what it returns, and the first difference is explained.

The steps are local variables, which are read when the function returns. An answer needs no call of
ours for that, and what it has not written yet, `...`, is no mistake.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from itertools import islice
from typing import Any

import numpy as np

from minprefix.conformance.check import Expected, Finding, Grade
from minprefix.conformance.implementation import told
from minprefix.lessons.exercise import Exercise, Lazy, Mistake, Ours
from minprefix.lessons.trial import Trial, tried

SEED = 20
TOLERANCE = 1e-9
#: a function of the lesson may be called so many times more often than in ours
OFTEN = 10
FORMULA = "compute it from the formula, without trying values out"
AT_ONCE = "and for all rows or heads at once"
#: exceptions that may be a function's right answer
MEANT = (AssertionError, ValueError)


# ---- grading --------------------------------------------------------------------------------


@dataclass
class Graded:
    """`status`: passed, failed, or not written. `says`: sentences, the first what is wrong."""

    name: str
    status: str
    says: list[str]
    right: list[str] = field(default_factory=list)  # the steps that are
    is_lazy: bool = False  # somebody else does the work
    cause: str = ""  # the usual mistake that gives these numbers

    def __str__(self) -> str:
        return "\n  ".join(self.says)


def graded(exercise: Exercise, function: Callable[..., Any], results: bool = True) -> Graded:
    """The answer's first mistake over all inputs. `results`: compare what it returns, too, and not
    its steps alone."""
    ours, n, right = exercise.ours(), 0, list[str]()
    of_ours = ours.function()
    runs = (exercise.cases(np.random.default_rng(SEED)) for _ in range(3))
    for n, (given, also, untouched) in enumerate(zip(*runs, strict=True), 1):
        want = tried(of_ours, also)
        pair = Pair(ours, tried(function, given), want, untouched)
        found = pair.graded(results)
        if found.status == "failed":
            found.cause = _cause(exercise, n, pair.at)
            if pair.at.pick is None and isinstance(want.error or pair.got.error, MEANT):
                found.cause = _cause_of_verdicts(exercise, function)
            found.says[1:1] = [found.cause] if found.cause else pair.hints()
            found.says += [f"input {n}: {sizes}" for sizes in [pair.sizes()] if sizes]
        if found.status != "passed":
            return found
        right = found.right
    inputs = f"{n} inputs" if n > 1 else "one input"
    said = f"{exercise.name}: right on {inputs}" + (f" ({', '.join(right)})" if right else "")
    return Graded(exercise.name, "passed", [said], right)


def _cause(exercise: Exercise, n: int, at: "Difference") -> str:
    """What there is to say where a usual mistake gives these very numbers; "" where none does. Of
    several the one that, as the answer, is right on the inputs before."""
    if at.pick is None:
        return ""
    found = [
        mistake
        for mistake in exercise.mistakes
        for a in _picked(exercise, mistake, n, at.pick)[n - 1 :]
        if _equal(at.got, a) and not _equal(at.want, a)
    ]
    if found[1:]:
        pick, right = at.pick, _picked(exercise, None, n - 1, at.pick)
        found.sort(key=lambda m: not _equal(_picked(exercise, m, n - 1, pick), right))
    return found[0].says if found else ""


def _picked(
    exercise: Exercise, mistake: Mistake | None, n: int, pick: Callable[[Trial], Any]
) -> list[Any]:
    """What ours, or ours with a mistake, gives for the first n inputs; a text where it gives
    nothing."""
    function, values = exercise.ours().function(mistake), list[Any]()
    for arguments in islice(exercise.cases(np.random.default_rng(SEED)), n):
        with np.errstate(all="ignore"):  # a mistake that overflows: no warning of the reader's
            trial = tried(function, arguments)
        try:
            values.append(pick(trial))
        except (KeyError, IndexError, TypeError):
            values.append("nothing")
    return values


def _cause_of_verdicts(exercise: Exercise, function: Callable[..., Any]) -> str:
    """The usual mistake of a check that accepts and refuses the same inputs as this one."""

    def verdicts(of: Callable[..., Any]) -> list[type]:
        with np.errstate(all="ignore"):
            runs = exercise.cases(np.random.default_rng(SEED))
            return [type(tried(of, arguments).error) for arguments in runs]

    these = verdicts(function)
    changed = ((m, verdicts(exercise.ours().function(m))) for m in exercise.mistakes)
    return next((mistake.says for mistake, those in changed if those == these), "")


def _equal(a: Any, b: Any) -> bool:
    return next(differences("", a, b, {}), None) is None


# ---- comparing ------------------------------------------------------------------------------


@dataclass
class Difference:
    """What was compared under this name, and what is wrong with it. `pick`: takes the same thing
    from another trial."""

    name: str = ""
    finding: Finding | None = None
    got: Any = None
    want: Any = None
    pick: Callable[[Trial], Any] | None = None


@dataclass
class Pair:
    """The call of an answer beside that of ours. `untouched`: the arguments as they were."""

    ours: Ours
    got: Trial
    want: Trial
    untouched: tuple[Any, ...]
    at: Difference = field(default_factory=Difference)

    def graded(self, results: bool) -> Graded:
        """Without the cause of a mistake."""
        name, got = self.ours.name, self.got
        if said := self._easy_way():
            return Graded(name, "failed", [f"{name} {said}"], is_lazy=True)
        steps = list(self._steps())
        wrong = next((step for step in steps if step.finding), None)
        right = [step.name for step in (steps[: steps.index(wrong)] if wrong else steps)]
        unfinished = got.is_unfinished()
        if got.unwritten() and not unfinished:
            # a line that is left of the stub is no gap where the result is right without it, and
            # the suite says whether a result is that is not compared here
            unfinished = got.result is None or (results and self._outcome().finding is not None)
        is_compared = not unfinished and (results or got.error is not None)
        outcome = self._outcome() if is_compared else Difference()
        if not unfinished and outcome.finding is None and (results or wrong is None):
            return Graded(name, "passed", [], [step.name for step in steps if not step.finding])
        if unfinished and wrong is None:
            return Graded(name, "not written", [self._not_written(right)], right)
        self.at = wrong or outcome
        assert self.at.finding is not None
        said = f"{name}: {self.at.finding.sentence}"
        if right:
            said += f" ({_are_right(right)})"
        says = [said]
        if wrong and got.error is not None and not unfinished:
            says.append(f"then {self._of_errors()}")
        return Graded(name, "failed", says, right)

    def hints(self) -> list[str]:
        """How the numbers differ, where no usual mistake gives them."""
        finding = self.at.finding
        if finding is None:
            return []
        says = [f"{finding.tensor} {hint}" for hint in finding.hints[:2]]
        if finding.worst:
            place, is_now, should = finding.worst[0]
            where = f"at {place} it" if place else "it"
            says.append(f"{where} is {is_now:.6g}, and should be {should:.6g}")
        return says

    def sizes(self) -> str:
        return ", ".join(f"{letter} = {size:g}" for letter, size in self.dimensions().items())

    def dimensions(self) -> dict[str, float]:
        """The sizes of this input, by the letters in the comments of ours."""
        found: dict[str, float] = {}
        for name, letters in self.ours.steps().items():
            shape = np.shape(self.want.variables.get(name, ()))
            for letter, size in zip(letters.split(), shape, strict=False):
                if letter.isalpha() and len(letters.split()) == len(shape):
                    found.setdefault(letter, size)
        return found

    def _not_written(self, right: Sequence[str]) -> str:
        if not right:
            return f"{self.ours.name}: not written yet"
        unwritten = self.got.unwritten()
        left = [*(name for name in self.ours.steps() if name in unwritten), *unwritten]
        following = f"next: {left[0]}" if left else "what it returns is not written yet"
        return f"{self.ours.name}: {_are_right(right)}; {following}"

    def _easy_way(self) -> str:
        """What there is to say of an answer that lets somebody else do the work."""
        got, want = self.got, self.want
        if isinstance(got.error, Lazy):
            return str(got.error)
        for called in got.package:
            if called not in want.package:
                where = called.removeprefix("minprefix.")
                return f"calls {where} of the package, and ours does not: write it out yourself"
        if got.complex and not want.complex:
            return f"calls {_named(got.complex)} with complex numbers, and ours does not: {FORMULA}"
        for called, times in got.others.items():
            n = want.others[called]
            often = times if called in self.ours.beside else got.tries[called]
            if often > OFTEN * (1 + n):
                by_us = f"{n} times" if n > 1 else "once" if n else "never"
                said = f"calls {_named(called)} {often} times, and ours {by_us}"
                return f"{said}: {FORMULA}, {AT_ONCE}"
        return ""

    def _differs(self, name: str, pick: Callable[[Trial], Any], letters: str = "") -> Difference:
        got, want = pick(self.got), pick(self.want)
        found = differences(name, got, want, self.dimensions(), letters)
        return Difference(name, next(found, None), got, want, pick)

    def _steps(self) -> Iterator[Difference]:
        """The steps that both have, in ours' order."""
        for name, letters in self.ours.steps().items():
            told = self.got.variables.get(name, ...)
            # a list that was still being filled when an exception came is no step
            unfilled = self.got.error is not None and isinstance(told, list | dict)
            if told is not ... and not unfilled and name in self.want.variables:
                yield self._differs(name, _variable(name), letters)

    def _outcome(self) -> Difference:
        """The first difference in what it returns or raises, and in what it leaves of its
        arguments."""
        name, got, want = self.ours.name, self.got, self.want
        if got.error is not None or want.error is not None:
            if isinstance(want.error, MEANT) and isinstance(got.error, type(want.error)):
                return Difference()
            return Difference("", Finding(name, "", "exception", self._of_errors()))
        names, axes = self.ours.returned(), self.ours.steps()
        n = len(names) if len(names) > 1 else 0
        if n and (not isinstance(got.result, tuple | list) or len(got.result) != n):
            shown = ", ".join(each or "..." for each in names)
            said = f"it returns {_kind(got.result)}, and should return {shown}"
            return Difference("", Finding(name, "", "signature", said))
        for i, each in enumerate(names):
            part = each or (f"result {i + 1}" if n else "what it returns")
            found = self._differs(part, _part(i) if n else _result, axes.get(each, ""))
            if found.finding:
                return found
        return self._left_of_arguments()

    def _left_of_arguments(self) -> Difference:
        for i, argument in enumerate(self.ours.definition.args.args[: len(self.untouched)]):
            found = self._differs(argument.arg, _argument(i))
            if found.finding is None:
                continue
            if _equal(self.want.arguments[i], self.untouched[i]):
                said = f"it writes into its argument {argument.arg}, the caller's: make a copy"
                found.finding = Finding(self.ours.name, argument.arg, "modified", said)
            else:
                found.finding.sentence = f"after the call {found.finding.sentence}"
            return found
        return Difference()

    def _of_errors(self) -> str:
        got, want = self.got.error, self.want.error
        should = f", and should raise {type(want).__name__} here" if want is not None else ""
        if want is None and isinstance(got, MEANT):
            should = ", and ours raises nothing here"
        if got is None:
            return f"it returns {_kind(self.got.result)}{should}"
        return f"it raised {told(got, self.got.file)}{should}"


def _named(function: str) -> str:
    return "a lambda" if function == "<lambda>" else function


def _are_right(names: Sequence[str]) -> str:
    return f"{', '.join(names)} {'are' if names[1:] else 'is'} right"


def _variable(name: str) -> Callable[[Trial], Any]:
    return lambda trial: trial.variables[name]


def _part(i: int) -> Callable[[Trial], Any]:
    return lambda trial: trial.result[i]


def _argument(i: int) -> Callable[[Trial], Any]:
    return lambda trial: trial.arguments[i]


def _result(trial: Trial) -> Any:
    if trial.error is not None:
        raise KeyError
    return trial.result


def _kind(a: Any) -> str:
    if a is None:
        return "None"
    kind = type(a).__name__
    return f"an {kind}" if kind[0] in "aeio" or kind == "ndarray" else f"a {kind}"


def differences(
    name: str, got: Any, want: Any, sizes: Mapping[str, float], letters: str = ""
) -> Iterator[Finding]:
    """The findings on a value and all in it. Objects that are no numbers, texts or collections are
    not looked at."""
    if isinstance(want, np.ndarray | np.number | float | int) and not isinstance(want, bool):
        yield from _numbers(name, got, want, sizes, letters)
    elif isinstance(want, bool | np.bool_ | str | bytes | set | type(None)):
        if isinstance(got, np.ndarray) or got != want:
            said = f"{name} is {_short(got)}, and should be {_short(want)}"
            yield Finding("", name, "value", said)
    else:
        parts = _parts(want)
        if parts is not None:
            yield from _collections(name, got, parts, want, sizes)


def _collections(
    name: str, got: Any, parts: Mapping[Any, Any], want: Any, sizes: Mapping[str, float]
) -> Iterator[Finding]:
    others = _parts(got)
    if others is None:
        yield Finding("", name, "shape", f"{name} is {_kind(got)}, and should be {_kind(want)}")
    elif set(others) != set(parts):
        has, should = (_listing(each) for each in (others, parts))
        yield Finding("", name, "shape", f"{name} has {has}, and should have {should}")
    else:
        for key, part in parts.items():
            whose = f"{name}.{key}" if isinstance(key, str) else f"{name}[{key}]"
            yield from differences(whose, others[key], part, sizes)


def _listing(parts: Mapping[Any, Any]) -> str:
    if all(isinstance(key, int) for key in parts):
        return f"{len(parts)} parts"
    return f"the parts {', '.join(map(str, parts))}"


def _parts(a: Any) -> Mapping[Any, Any] | None:
    """What a collection holds."""
    if isinstance(a, Mapping):
        return a
    if hasattr(a, "_fields"):
        return dict(zip(a._fields, a, strict=True))
    if is_dataclass(a) and not isinstance(a, type):
        return {f.name: getattr(a, f.name) for f in fields(a)}
    return dict(enumerate(a)) if isinstance(a, list | tuple) else None


def _short(a: Any) -> str:
    shown = repr(a.item() if isinstance(a, np.generic) else a)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."


def _numbers(
    name: str, got: Any, want: Any, sizes: Mapping[str, float], letters: str
) -> Iterator[Finding]:
    if isinstance(want, np.ndarray) and want.dtype.kind not in "biufc":
        if not np.array_equal(got, want):
            yield Finding("", name, "value", f"{name} differs from {_short(want)}")
        return
    if not isinstance(got, np.ndarray | np.generic | float | int):
        said = f"{name} is {_kind(got)}, and should be "
        shape = f"an array {want.shape}" if np.ndim(want) else f"a number, {want}"
        yield Finding("", name, "not an array", said + shape)
        return
    a, b = np.asarray(got), np.asarray(want)
    if a.dtype.kind == "b" or b.dtype.kind == "b":
        a, b = a.astype(float), b.astype(float)
    if b.dtype.kind == "c":  # a function that takes complex numbers, for the complex step
        a, b = (np.stack([z.real, z.imag]) for z in (a, b))
    rounding = 100 * float(np.finfo(b.dtype).eps) if b.dtype.kind == "f" else 0.0
    tolerance = max(TOLERANCE, rounding)
    grade = Grade()
    letters = letters if len(letters.split()) == b.ndim else ""
    with np.errstate(all="ignore"):
        if not (a.shape == b.shape and np.array_equal(a, b, equal_nan=a.dtype.kind in "fc")):
            grade.compare("", name, a, Expected({name: b}, tolerance, sizes), letters)
    yield from grade.findings
