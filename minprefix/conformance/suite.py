"""All checks, by id, and running them."""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from types import SimpleNamespace
from typing import Any

from minprefix.conformance import cases, problems
from minprefix.conformance.by_hand import by_hand
from minprefix.conformance.cases import Case
from minprefix.conformance.check import PRECISION, Check, Grade, Result
from minprefix.conformance.contract import ARGUMENTS, LEVELS, WHOLE
from minprefix.conformance.implementation import NO_HYPOTHESIS, Implementation, NotOffered
from minprefix.conformance.laws import LAWS
from minprefix.conformance.method_checks import METHOD_CHECKS
from minprefix.conformance.model_checks import MODEL_LAWS, ask
from minprefix.conformance.module_checks import module_checks
from minprefix.conformance.op_calls import many_calls, steady, two_calls
from minprefix.conformance.op_cases import CASES, case_of
from minprefix.conformance.op_checks import derivative, grade_case
from minprefix.conformance.problems import QUESTIONS, answer
from minprefix.conformance.zoo import matches
from minprefix.errors import InputError
from minprefix.ops import reference


@cache
def all_checks() -> dict[str, Check]:
    """id -> check, level by level; the most telling of an op first."""
    checks: list[Check] = []
    pencil = "numbers that one can work out with a pencil"
    again = "each function twice in a row: nothing is shared between calls"
    many = "14 calls, alike and unlike: what was returned stays, and parameters are read anew"
    slope = "the backward is the derivative of this very forward, by central differences"
    drawn = "that hypothesis draws, and the smallest that fails"
    shapes = f"{cases.DRAWS} shapes, seeds and layouts {drawn}"
    for op, named in CASES.items():
        of_op: list[tuple[str, str, Callable[[Implementation, Grade], None]]] = [
            (name, why, partial(grade_case, case_of(op, name))) for name, (why, _) in named.items()
        ]
        of_op += [
            ("by-hand", pencil, partial(by_hand, op)),
            ("two-calls", again, partial(two_calls, op)),
            ("many-calls", many, partial(many_calls, op)),
            ("derivative", slope, partial(derivative, op)),
            *(
                (id_.partition("/")[2], *law)
                for id_, law in LAWS.items()
                if id_.startswith(f"{op}/")
            ),
            ("drawn", shapes, partial(_draw, "grade_op", op)),
        ]
        for name, why, run in of_op:
            case = case_of(op, name) if name in named else Case(op)
            checks.append(Check(f"{op}/{name}", why, partial(steady, case, run)))
    whole = [Check(id_, why, partial(ask, id_)) for id_, (why, _) in QUESTIONS.items()]
    whole += [Check(id_, *each) for id_, each in (MODEL_LAWS | METHOD_CHECKS).items()]
    for op, what in (("model", "models and batches"), ("decoding", "models"), ("training", "runs")):
        each = f"{problems.DRAWS} {what} {drawn}"
        whole.append(Check(f"{op}/drawn", each, partial(_draw, "grade_whole", f"run_{op}")))
    # first of an op what is kept from call to call: it would spoil what the others say
    ops = list(dict.fromkeys(check.op for check in whole))
    whole.sort(
        key=lambda check: (
            LEVELS.index(check.level), ops.index(check.op), not check.id.endswith("/again"),
        )
    )  # fmt: skip
    return {check.id: check for check in [*checks, *whole]}


def _draw(name: str, *given: Any) -> None:
    """A function of `drawn`, if hypothesis is there. Raises NotOffered."""
    try:
        from minprefix.conformance import drawn
    except ModuleNotFoundError as error:
        if error.name != "hypothesis":
            raise
        raise NotOffered(NO_HYPOTHESIS) from error
    getattr(drawn, name)(*given)


def select(
    only: Sequence[str] = (), levels: Sequence[str] = (), module: bool = False
) -> list[Check]:
    """The checks whose op, level, id or part of an id is one of `only`, of these `levels` (empty:
    all). `module`: with those of a module of PyTorch. Raises InputError for a word that names
    none."""
    for level in levels:
        if level not in LEVELS:
            raise InputError(f"level {level!r}: expected one of {', '.join(LEVELS)}")
    every = all_checks() | (module_checks() if module else {})
    chosen = named({id_: check.level for id_, check in every.items()}, only, "check")
    return [every[id_] for id_ in chosen if not levels or every[id_].level in levels]


def check_of(id_: str) -> Check:
    """Of `all_checks`, or of a module's."""
    return all_checks().get(id_) or module_checks()[id_]


def named(level_of: Mapping[str, str], only: Sequence[str], what: str) -> list[str]:
    """The ids whose level, or id or part of it, is one of `only` (empty: all). Raises InputError
    for a word that names none. `level_of`: id -> its level."""

    def meant(word: str, id_: str) -> bool:
        return word in id_ or word == level_of[id_]

    for word in only:
        if not word or not any(meant(word, id_) for id_ in level_of):
            ops = ", ".join(dict.fromkeys(id_.partition("/")[0] for id_ in level_of))
            raise InputError(f"--only {word!r} names no {what}: expected one of {ops}, or an id")
    return [id_ for id_ in level_of if not only or any(meant(word, id_) for word in only)]


def grade(check: Check, implementation: Implementation, zoo: bool = True) -> Result:
    """One check. With `zoo`, a failure is compared with the numbers of each bug of the zoo."""
    started = time.perf_counter()
    clock = implementation.clock
    if clock.is_slow() and not check.id.endswith(_ADAPTS):
        calls = calls_of(check, tuple(implementation.offered()))
        if said := clock.too_long(calls):
            return Result(check.id, check.level, check.op, "not graded", not_graded=said)
    result = judged(check, check.collect(implementation), zoo)
    result.seconds = time.perf_counter() - started
    return result


#: checks that make fewer calls where calls are slow
_ADAPTS = ("/drawn", "/derivative")


@cache
def calls_of(check: Check, offered: tuple[str, ...]) -> Mapping[str, int]:
    """How often a check calls each function of an implementation that offers these: counted on the
    reference."""
    counter = Counter[str]()
    functions = {f: getattr(reference, f) for f in ARGUMENTS if f in offered}
    functions |= {f: partial(answer, f) for f in WHOLE if f in offered}

    class Counted(Implementation):
        def call(self, function: str, *arguments: Any) -> Any:
            if self.has(function):
                counter[function] += 1
            return super().call(function, *arguments)

        def _check_signature(self, *given: Any) -> None:
            pass

    check.collect(Counted(SimpleNamespace(**functions), "the reference"))
    return counter


def judged(check: Check, grade: Grade, zoo: bool) -> Result:
    """The outcome of a check that collected this. With `zoo`: see `grade`."""
    result = check.result(grade)
    if zoo and result.status == "failed":
        result.zoo, result.zoo_distance = matches(check, grade)
    return result


class Zookeeper:
    """Decides which failures are compared with the zoo: the first two of an op. Later ones follow
    from them, and every bug costs a run of the check. Rounding does not count: few bugs come near
    enough to be run."""

    def __init__(self) -> None:
        self._failed = Counter[str]()  # op -> how many of its checks failed

    def wanted(self, check: Check) -> bool:
        return self._failed[check.op] < 2 and not check.id.endswith("/drawn")

    def saw(self, result: Result) -> None:
        if any(f.kind not in PRECISION for f in result.findings):
            self._failed[result.op] += 1


def run(
    implementation: Implementation, checks: Sequence[Check] | None = None, zoo: bool = False
) -> list[Result]:
    """The checks in this process: fast, and an implementation that crashes or hangs takes the
    process with it. `run_isolated` survives that."""
    results, keeper = [], Zookeeper()
    for check in all_checks().values() if checks is None else checks:
        results.append(grade(check, implementation, zoo and keeper.wanted(check)))
        keeper.saw(results[-1])
    return results
