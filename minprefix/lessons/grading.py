"""Answers to exercises, graded by their steps and by the reference suite."""

import difflib
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from minprefix.conformance import report
from minprefix.conformance.check import Result
from minprefix.conformance.contract import ARGUMENTS, FUNCTIONS, LEVELS, TENSORS, WHOLE
from minprefix.conformance.implementation import Broken, Implementation
from minprefix.conformance.suite import run, select
from minprefix.errors import InputError
from minprefix.lessons.answer import Graded, graded
from minprefix.lessons.exercise import all_exercises

ALSO = 5  # so many consequences of the first mistakes get a line
LEVEL_OF = {
    "run_model": "model",
    "run_decoding": "model",
    "run_method": "methods",
    "run_training": "training",
}
SUITE = (*ARGUMENTS, *WHOLE)


class Interruptible(Implementation):
    """Ctrl-C, or a notebook's stop button, ends the grading of a function that hangs. The suite
    alone would take it for the function's answer and go on."""

    def call(self, function: str, *arguments: Any) -> Any:
        try:
            return super().call(function, *arguments)
        except Broken as error:
            if isinstance(error.__cause__, KeyboardInterrupt):
                raise error.__cause__ from None
            raise


def grade(*functions: Callable[..., Any], only: str = "") -> None:
    """Print what is wrong with these answers to exercises, or that they are right. An answer has
    its exercise's name. Its steps, which are its local variables, are compared with ours first. A
    function of the contract (`gelu_backward`, `run_model`, ...) then goes through the reference
    suite, as in a file for `minprefix check`. `only`: run the checks whose id contains it.

    Raises InputError for a name that is no exercise, for two functions of one name, and for an
    `only` that leaves nothing to grade.
    """
    named = _named(functions)
    answers = {
        name: graded(exercise, named[name], results=name not in SUITE)
        for name, exercise in all_exercises().items()
        if name in named
    }
    left = {name: f for name, f in named.items() if name not in answers}
    begun = [name for name, answer in answers.items() if name in SUITE and _is_begun(answer)]
    tried = tuple(f for name, f in named.items() if name in left or name in begun)
    found = results(*tried, only=only) if tried else []
    # another way to the right results has other steps
    right = {name for name in begun if _passes(name, found)}
    for name in begun:
        if answers[name].status == "passed" and name not in right:  # its steps have other names
            whole = graded(all_exercises()[name], named[name])
            answers[name] = whole if whole.cause else answers[name]
    for name, answer in answers.items():
        if name not in SUITE or (answer.status != "passed" and name not in right):
            print(answer)
    if not tried:
        return
    text = said(found, tried)
    wrong = any(answers[name].status == "failed" for name in begun if name not in right)
    # what follows from the wrong step is not explained again
    print(text.splitlines()[-1] if wrong else text)


def _is_begun(answer: Graded) -> bool:
    return answer.status != "not written" and not answer.is_lazy


def _passes(function: str, found: list[Result]) -> bool:
    """Whether the suite grades it, and finds nothing wrong with it."""
    wrong = any(f.function == function for result in found for f in result.findings)
    missing = any(function in result.not_implemented for result in found)
    return not wrong and not missing and any(_speaks_of(function, result) for result in found)


def _named(functions: Sequence[Callable[..., Any]]) -> dict[str, Callable[..., Any]]:
    names = [getattr(f, "__name__", repr(f)) for f in functions]
    known = (*all_exercises(), *SUITE)
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, 3, 0.5)
            hint = f"did you mean {' or '.join(near)}?" if near else "give it the exercise's name"
            raise InputError(f"no lesson has an exercise {name!r}: {hint}")
    twice = [name for name, n in Counter(names).items() if n > 1]
    if twice or not names:
        given = f"{twice[0]!r} more than once" if twice else "no function"
        raise InputError(f"grade is given {given}: give each function once, as in grade(gelu)")
    return dict(zip(names, functions, strict=True))


def results(*functions: Callable[..., Any], only: str = "") -> list[Result]:
    """The suite's results for these functions; functions that are not given do not count."""
    names = list(_named(functions))
    ops = {op for op, of_op in FUNCTIONS.items() if set(of_op) & set(names)}
    levels = {LEVEL_OF[name] for name in names if name in LEVEL_OF}
    checks = [
        check
        for check in select()
        if check.op in ops or (check.level in levels and check.level != LEVELS[0])
    ]
    named = [check for check in checks if only in check.id]
    if not named:
        ids = ", ".join(check.id for check in checks)
        raise InputError(f"only={only!r} is in no check of {', '.join(names)}: they are {ids}")
    yours = Interruptible(SimpleNamespace(**_named(functions)), "yours")
    found = run(yours, named, zoo=True)
    for result in found:
        missing = [said.split(":")[0] for said in result.not_implemented]
        if result.check.endswith("/many-calls") and result.op not in names:
            missing = []  # a backward waits there for a cache of its own forward
        result.not_implemented = [name for name in missing if name in names]
        for finding in result.findings:
            finding.reproducer = ""  # it would load a file; a notebook's function is in none
    return found


def said(found: list[Result], functions: tuple[Callable[..., Any], ...]) -> str:
    """The report of `minprefix check` for these functions alone, with a line for each function that
    it does not mention."""
    names = [f.__name__ for f in functions]
    written = [name for name in names if any(_speaks_of(name, r) for r in found)]
    missing = {name for r in found for name in r.not_implemented}
    rest = [name for name in names if name not in written]
    not_yet = [name for name in rest if name in missing]
    lines = [f"{', '.join(not_yet)}: not written yet"] if not_yet else []
    if unseen := [name for name in rest if name not in missing]:
        lines.append(f"{', '.join(unseen)}: not graded, what runs before has to run first")
    for name in written:
        checks = [r.check for r in found if name in r.not_implemented]
        if checks:
            more = f" and {len(checks) - ALSO} more" if checks[ALSO:] else ""
            lines.append(f"{name}: not written yet for {', '.join(checks[:ALSO])}{more}")
    if written:
        spoken = [r for r in found if any(_speaks_of(name, r) for name in written)]
        spoken = [replace(r, not_implemented=[]) for r in spoken]
        lines.insert(0, report.text(spoken, ", ".join(written), at_most=ALSO))
    return "\n".join(lines)


def _speaks_of(function: str, result: Result) -> bool:
    """Whether anything that the function returned was graded."""
    if any(finding.function == function for finding in result.findings):
        return True
    if function in LEVEL_OF:
        return bool(result.errors) and result.level == LEVEL_OF[function]
    stems = {name.removesuffix("[]") for name in TENSORS[function]}
    return any(re.split(r"[\[ :]", name)[0] in stems for name in result.errors)
