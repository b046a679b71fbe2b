"""Grading by intermediates: a function tells its steps by their names, each is compared at its
place, and the first wrong one is explained.

A function may tell them in any of these ways:

    def f(x, record): ...; scores = record("scores", q @ k.T)     an argument `record`
    def f(x): ...; yield "scores", scores                         a generator of names and values
    def f(x): ...; return {"scores": scores, "z": z}              a mapping
    def f(x): ...; return z, {"scores": scores}                   a mapping as the second result
    def f(x): ...; return z, Cache(scores, pattern)               a cache whose fields have names

`record` returns the value that it is given. A name that is told several times, as in a loop, and a
list of arrays get an index: scores[0], scores[1]. What a function returns besides is `out`.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np

from minprefix.conformance.check import Expected, Grade
from minprefix.conformance.implementation import Broken
from minprefix.errors import InputError
from minprefix.gradcheck.arrays import is_array, to_numpy
from minprefix.gradcheck.function import called
from minprefix.gradcheck.report import Report
from minprefix.ops.contract import Array

Steps = dict[str, Array]


def steps_of(function: Callable[..., Any], inputs: Mapping[str, Any] | Sequence[Any]) -> Steps:
    """What a function tells of its steps, in the order in which they arise. Raises Broken where it
    raises, or tells something that is no array."""
    told: list[tuple[str, Any]] = []

    def record(name: str, value: Any) -> Any:
        told.append((name, to_numpy(value) if is_array(value) else value))
        return value

    given, named = ([], dict(inputs)) if isinstance(inputs, Mapping) else (list(inputs), {})
    if takes_record(function):
        named["record"] = record
    name = getattr(function, "__name__", type(function).__name__)
    result = called(name, lambda: _exhausted(function(*given, **named)), [])
    known = {name for name, _ in told}
    return _numbered([*told, *((n, a) for n, a in _told_by(result) if n not in known)])


def takes_record(function: Callable[..., Any]) -> bool:
    """Whether it has an argument `record`."""
    try:
        return "record" in inspect.signature(function).parameters
    except (TypeError, ValueError):
        return False


def grade_steps(
    function: Callable[..., Any],
    inputs: Mapping[str, Any] | Sequence[Any],
    expected: Mapping[str, Array],
    axes: Mapping[str, str] | None = None,
    dimensions: Mapping[str, float] | None = None,
    tolerance: float = 1e-9,
) -> Report:
    """Compare a function's steps with the right ones, in the order of `expected` (`steps_of` gives
    them for a right function of the same kind). One finding: the first wrong step, which steps
    before it are right, and which follow. Steps that the function does not tell are not graded.

    `axes`: step -> the letters of its axes ("NH T T"), and `dimensions`: their sizes, for the
    explanation; `tolerance`: relative to a step's largest value. Raises InputError where the
    arguments make no sense.
    """
    if not expected:
        raise InputError("expected is empty: give the right steps, as steps_of(right, inputs)")
    if not isinstance(expected, Mapping):
        said = f"expected is a {type(expected).__name__}: give a dictionary, as steps_of gives one"
        raise InputError(said)
    if is_array(inputs):
        raise InputError("inputs is an array: give a list of the arguments, as [x]")
    if not callable(function):
        raise InputError(f"function is {function!r}: expected a function")
    report = Report(getattr(function, "__name__", type(function).__name__))
    try:
        steps = steps_of(function, inputs)
    except Broken as error:
        report.say(error.kind, error.function, "", str(error))
        return report
    shared = [name for name in expected if name in steps]
    unknown = [name for name in steps if name not in expected and name != "out"]
    if unknown or not shared:
        said = f"{unknown[0]} is none of the steps" if unknown else "no step is told"
        report.say("missing", report.name, "", f"{said}: expected {', '.join(expected)}")
        if not shared:
            return report
    _compare(report, steps, expected, shared, axes or {}, dimensions or {}, tolerance)
    return report


def _compare(
    report: Report,
    steps: Steps,
    expected: Mapping[str, Array],
    shared: Sequence[str],
    axes: Mapping[str, str],
    dimensions: Mapping[str, float],
    tolerance: float,
) -> None:
    right = Expected(expected, tolerance, dimensions, level="ops")
    grade = Grade()
    wrong = {}
    for name in shared:
        before = len(grade.findings)
        letters = axes.get(name, axes.get(name.partition("[")[0], ""))
        grade.compare(report.name, name, steps[name], right, letters)
        if len(grade.findings) > before:
            wrong[name] = grade.findings[-1]
        report.errors[name], report.methods[name] = grade.errors[name], "comparison"
    if wrong:
        name, finding = next(iter(wrong.items()))
        before_it = shared[: shared.index(name)]
        finding.sentence += f". {_listed(before_it, 'right')}" if before_it else ""
        follow = list(wrong)[1:]
        finding.sentence += f"; {_listed(follow, 'wrong, too')}" if follow else ""
        report.findings.insert(0, finding)


def _listed(names: Sequence[str], what: str) -> str:
    if len(names) == 1:
        return f"{names[0]} is {what}"
    shown = [*names[:4], f"{len(names) - 4} more"] if len(names) > 5 else list(names)
    return f"{', '.join(shown[:-1])} and {shown[-1]} are {what}"


def _exhausted(result: Any) -> Any:
    """A generator's pairs, copied when they arise; what it returns at last is `out`."""
    if not inspect.isgenerator(result):
        return result
    last: Any = None

    def pairs() -> Iterable[tuple[str, Any]]:
        nonlocal last
        last = yield from result

    told = [(n, to_numpy(a) if is_array(a) else a) for n, a in pairs()]
    return dict(_numbered_pairs(told)) | ({} if last is None else {"out": last})


def _told_by(result: Any) -> Iterable[tuple[str, Any]]:
    """The names and values in what a function returns."""
    if isinstance(result, Mapping):
        return list(result.items())
    if isinstance(result, tuple) and not hasattr(result, "_fields") and len(result) == 2:
        named = _named(result[1])
        if named is not None:
            return [*named, ("out", result[0])]
    named = _named(result)
    if named is not None:
        return named
    return [] if result is None else [("out", result)]


def _named(a: Any) -> list[tuple[str, Any]] | None:
    """The fields of a mapping, a named tuple, a dataclass or another object that has some."""
    if isinstance(a, Mapping):
        return list(a.items())
    if hasattr(a, "_fields"):
        return list(zip(a._fields, a, strict=True))
    if is_dataclass(a) and not isinstance(a, type):
        return [(field.name, getattr(a, field.name)) for field in fields(a)]
    if is_array(a) or not hasattr(a, "__dict__"):
        return None
    return list(vars(a).items())


def _numbered_pairs(pairs: Iterable[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """The same, with an index where a name stands more than once."""
    listed = list(pairs)
    names = [name for name, _ in listed]
    seen: dict[str, int] = {}
    found = []
    for name, value in listed:
        if names.count(name) > 1:
            seen[name] = seen.get(name, -1) + 1
            name = f"{name}[{seen[name]}]"
        found.append((name, value))
    return found


def _numbered(told: Iterable[tuple[str, Any]]) -> Steps:
    """As NumPy's arrays; what is neither an array nor a number is no step."""
    steps: Steps = {}
    for name, value in _numbered_pairs(told):
        each = value if isinstance(value, list) else [value]
        for i, a in enumerate(each):
            if is_array(a) or isinstance(a, float | np.generic):
                steps[f"{name}[{i}]" if isinstance(value, list) else name] = to_numpy(a)
    return steps
