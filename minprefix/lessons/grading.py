"""An exercise's function, graded by the reference suite."""

import inspect
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from types import SimpleNamespace
from typing import Any

from minprefix.conformance import report
from minprefix.conformance.check import Result
from minprefix.conformance.contract import ARGUMENTS, FUNCTIONS, LEVELS, TENSORS, WHOLE
from minprefix.conformance.implementation import Broken, Implementation
from minprefix.conformance.suite import run, select
from minprefix.errors import InputError
from minprefix.gradcheck.steps import takes_record
from minprefix.lessons import rivals, steps

ALSO = 5  # so many consequences of the first mistakes get a line
LEVEL_OF = {
    "run_model": "model",
    "run_decoding": "model",
    "run_method": "methods",
    "run_training": "training",
}
GRADED = (*ARGUMENTS, *WHOLE, *rivals.TENSORS)


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

    def signature(self, function: str) -> tuple[str, ...]:
        return rivals.ARGUMENTS.get(function) or super().signature(function)


def grade(*functions: Callable[..., Any], only: str = "") -> None:
    """Print the suite's report on these functions. Each has a name of the contract
    (`gelu_backward`, `run_model`, ...), as in a file for `minprefix check`, or one of `rivals`
    (`lora_backward`, ...). `only`: run the checks whose id contains it. A function that has an
    argument `record` tells its steps, and the first wrong one is named (see `steps`).

    Raises InputError for a name that the contract does not have, for two functions of one name, and
    for an `only` that leaves nothing to grade.
    """
    print(said(results(*functions, only=only), functions))
    for function in functions:
        if takes_record(function):
            print(f"\n{steps.said(function)}")


def results(*functions: Callable[..., Any], only: str = "") -> list[Result]:
    """The suite's results for these functions; functions that are not given do not count."""
    names = [getattr(f, "__name__", repr(f)) for f in functions]
    for name in names:
        if name not in GRADED:
            known = ", ".join(GRADED)
            raise InputError(f"the suite does not grade {name!r}: it grades {known}")
    twice = [name for name, n in Counter(names).items() if n > 1]
    if twice or not names:
        given = f"{twice[0]!r} more than once" if twice else "no function"
        raise InputError(f"grade is given {given}: give each function once, as in grade(gelu)")
    ops = {op for op, of_op in FUNCTIONS.items() if set(of_op) & set(names)}
    levels = {LEVEL_OF[name] for name in names if name in LEVEL_OF}
    checks = [
        check
        for check in select()
        if check.op in ops or (check.level in levels and check.level != LEVELS[0])
    ]
    checks += [check for name in names if name in rivals.TENSORS for check in rivals.checks(name)]
    named = [check for check in checks if only in check.id]
    if not named:
        ids = ", ".join(check.id for check in checks)
        raise InputError(f"only={only!r} is in no check of {', '.join(names)}: they are {ids}")
    plain = dict(zip(names, map(_without_record, functions), strict=True))
    yours = Interruptible(SimpleNamespace(**plain), "yours")
    found = run(yours, named, zoo=True)
    for result in found:
        missing = [said.split(":")[0] for said in result.not_implemented]
        result.not_implemented = [name for name in missing if name in names]
        for finding in result.findings:
            finding.reproducer = ""  # it would load a file; a notebook's function is in none
    return found


def _without_record(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function as the suite calls it, which asks for no steps."""
    if not takes_record(function):
        return function

    @wraps(function)
    def call(*arguments: Any) -> Any:
        return function(*arguments, record=lambda name, value: value)

    signature = inspect.signature(function)
    rest = [p for p in signature.parameters.values() if p.name != "record"]
    vars(call)["__signature__"] = signature.replace(parameters=rest)
    return call


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
        graded = [r for r in found if any(_speaks_of(name, r) for name in written)]
        graded = [replace(r, not_implemented=[]) for r in graded]
        lines.insert(0, report.text(graded, ", ".join(written), at_most=ALSO))
    return "\n".join(lines)


def _speaks_of(function: str, result: Result) -> bool:
    """Whether anything that the function returned was graded."""
    if any(finding.function == function for finding in result.findings):
        return True
    if function in LEVEL_OF:
        return bool(result.errors) and result.level == LEVEL_OF[function]
    stems = {name.removesuffix("[]") for name in (TENSORS | rivals.TENSORS)[function]}
    return any(re.split(r"[\[ :]", name)[0] in stems for name in result.errors)
