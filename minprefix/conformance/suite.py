"""All checks, by id, and running them."""

import time
from collections.abc import Sequence
from functools import cache

from minprefix.conformance.by_hand import by_hand_checks
from minprefix.conformance.check import PRECISION, Check, Grade, Result
from minprefix.conformance.contract import FUNCTIONS, LEVELS
from minprefix.conformance.implementation import Implementation
from minprefix.conformance.laws import law_checks
from minprefix.conformance.model_checks import model_checks, training_checks
from minprefix.conformance.op_checks import (
    case_checks,
    derivative_checks,
    drawn_checks,
    two_calls_checks,
)
from minprefix.errors import InputError


@cache
def all_checks() -> dict[str, Check]:
    """id -> check: ops, then the model, then training; within an op, what says most comes first."""
    ops = [
        *case_checks(),
        *by_hand_checks(),
        *two_calls_checks(),
        *derivative_checks(),
        *law_checks(),
        *drawn_checks(),
    ]
    ops.sort(key=lambda check: list(FUNCTIONS).index(check.op))
    return {check.id: check for check in [*ops, *model_checks(), *training_checks()]}


def select(only: Sequence[str] = (), levels: Sequence[str] = ()) -> list[Check]:
    """The checks whose op, level, id or part of an id is one of `only`, of these `levels` (empty:
    all). Raises InputError for a word that names none."""
    for level in levels:
        if level not in LEVELS:
            raise InputError(f"level {level!r}: expected one of {', '.join(LEVELS)}")
    everything = list(all_checks().values())
    for word in only:
        if not word or not any(_named(check, word) for check in everything):
            ops = ", ".join(dict.fromkeys(check.op for check in everything))
            raise InputError(f"--only {word!r} names no check: expected one of {ops}, or an id")
    return [
        check
        for check in everything
        if (not levels or check.level in levels)
        and (not only or any(_named(check, word) for word in only))
    ]


def _named(check: Check, word: str) -> bool:
    return word in (check.op, check.level) or word in check.id


def grade(check: Check, implementation: Implementation, zoo: bool = True) -> Result:
    """One check. With `zoo`, a failure is compared with what each bug of the zoo gives."""
    started = time.perf_counter()
    collected = check.collect(implementation)
    result = check.result(collected)
    if zoo and result.status == "failed":
        result.zoo, result.zoo_distance = _matches(check, collected)
    result.seconds = time.perf_counter() - started
    return result


def _matches(check: Check, collected: Grade) -> tuple[list[str], float]:
    from minprefix.conformance.zoo import matches

    return matches(check, collected)


class Zookeeper:
    """Decides which failures are compared with the zoo: the first two of an op. The later ones
    follow from them, and every bug costs a run of the check. Rounding does not count: few bugs come
    near enough to be run."""

    def __init__(self) -> None:
        self._failed: dict[str, int] = {}  # op -> how many of its checks failed

    def wanted(self, check: Check) -> bool:
        return self._failed.get(check.op, 0) < 2 and not check.id.endswith("/drawn")

    def saw(self, result: Result) -> None:
        if any(f.kind not in PRECISION for f in result.findings):
            self._failed[result.op] = self._failed.get(result.op, 0) + 1


def run(
    implementation: Implementation, checks: Sequence[Check] | None = None, zoo: bool = False
) -> list[Result]:
    """The checks in this very process: fast, and as fragile as the implementation. `run_isolated`
    survives it."""
    results, keeper = [], Zookeeper()
    for check in all_checks().values() if checks is None else checks:
        results.append(grade(check, implementation, zoo and keeper.wanted(check)))
        keeper.saw(results[-1])
    return results
