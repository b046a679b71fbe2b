"""What a call of a function of the levels above the ops leaves behind: the problem as it was given,
results that are the caller's own, and the same numbers when it is asked again."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import fields, is_dataclass, replace
from functools import cache
from typing import Any, cast

import numpy as np

from minprefix.conformance.check import Finding, Grade
from minprefix.conformance.contract import MethodProblem, ModelProblem, TrainingProblem
from minprefix.conformance.diagnosis import relative_error
from minprefix.conformance.implementation import Broken, Implementation, NotOffered
from minprefix.conformance.method_problems import METHOD_CASES, method_case, method_problem
from minprefix.conformance.model_problems import MODEL_CASES, model_case, model_problem, weights_of
from minprefix.conformance.problems import CLIP_EPS, TOLERANCE, answer, training_case
from minprefix.conformance.whole import whole
from minprefix.errors import counted
from minprefix.ops.contract import Array

Problem = ModelProblem | MethodProblem | TrainingProblem


# ---- the problem stays as it was ----------------------------------------------------------------


def changed(before: Any, now: Any, place: str = "") -> Iterator[tuple[str, Any, Any]]:
    """The places of a problem, as `weights[wte.weight]`, that are no longer what they were, with
    what they were and what they are."""
    if is_dataclass(before):
        for f in fields(before):
            name = f"{place}.{f.name}" if place else f.name
            yield from changed(getattr(before, f.name), getattr(now, f.name), name)
    elif isinstance(before, np.ndarray):
        alike = isinstance(now, np.ndarray) and now.dtype == before.dtype
        if not (alike and np.array_equal(before, now, equal_nan=True)):
            yield place, before, now
    elif isinstance(before, Mapping):
        if list(before) != list(now):
            yield place, before, now
        else:
            for key, a in before.items():
                yield from changed(a, now[key], f"{place}[{key}]")
    elif isinstance(before, list | tuple):
        if len(before) != len(now):
            yield place, before, now
        else:
            for i, (a, b) in enumerate(zip(before, now, strict=True)):
                yield from changed(a, b, f"{place}[{i}]")
    elif before != now:
        yield place, before, now


def note_changes(
    grade: Grade, function: str, before: Problem, now: Problem, reproducer: str = ""
) -> None:
    """A finding if the problem is no longer what it was before the call."""
    places = list(changed(before, now))
    if not places:
        return
    place, was, is_now = places[0]
    arrays = isinstance(was, np.ndarray) and isinstance(is_now, np.ndarray)
    alike = arrays and was.shape == is_now.shape
    grade.found[place] = np.array(is_now) if alike else np.zeros(0)
    grade.errors[place] = relative_error(is_now, was) if alike else np.inf
    more = f" and {counted(len(places) - 1, 'other thing')}" if len(places) > 1 else ""
    said = f"{function} changed {place}{more} of its problem, which is to stay as it was given"
    grade.say("modified", function, place, f"{said}: work on a copy", reproducer)


def sharing(found: dict[str, Array], wrong: Collection[str]) -> dict[str, str]:
    """The wrong tensors that lie in the memory of a later one that is right, and its name. `found`:
    in the order in which they arise."""
    holds, one = dict[tuple[int, tuple[int, ...]], str](), dict[str, str]()
    for name, a in reversed(found.items()):
        place = (a.__array_interface__["data"][0], a.strides)
        if a.size and name not in wrong:
            holds[place] = name
        elif a.size and place in holds:
            one[name] = holds[place]
    return dict(reversed(one.items()))


# ---- the same numbers again ---------------------------------------------------------------------


def numbers(found: Mapping[str, Any], implementation: Implementation) -> dict[str, Array]:
    """Copies in float64."""
    return {n: np.array(implementation.asnumpy(a, n), dtype=np.float64) for n, a in found.items()}


def unlike(
    got: Mapping[str, Array], want: Mapping[str, Array], tolerance: float
) -> dict[str, float]:
    """The tensors of both that differ, in the order of `got`, and by how much."""
    errors = {
        n: relative_error(a, want[n]) if a.shape == want[n].shape else np.inf
        for n, a in got.items()
        if n in want
    }
    return {n: error for n, error in errors.items() if not error <= tolerance}


def most(errors: Mapping[str, float]) -> str:
    """In words which differ: the first of them, by how much, and how many others."""
    name, error = next(iter(errors.items()))
    off = f"by {error:.2g} of its largest value"
    if len(errors) == 1:
        return f"{name} differs {off}"
    return f"{name} and {counted(len(errors) - 1, 'other value')} differ, {name} {off}"


def nondeterministic(function: str, errors: Mapping[str, float], tolerance: float) -> Finding:
    """The finding about tensors that differ between two calls with one problem."""
    said = (
        f"{function} gives other numbers for the same problem the second time: {most(errors)}. Is "
        "something random, not initialised, or left from the call before?"
    )
    name, error = next(iter(errors.items()))
    return Finding(function, name, "nondeterministic", said, error, tolerance)


# ---- calls in turn ------------------------------------------------------------------------------


def _like_own_prefixes() -> Sequence[Problem]:
    p = model_case("own-prefixes")
    other_weights = model_problem(**MODEL_CASES["own-prefixes"][1], seed=1)
    other_eps = replace(p, config=replace(p.config, layer_norm_epsilon=0.1))
    return [p, other_weights, other_eps, model_case("shared-prefix")]


def _like_two_prefixes() -> Sequence[Problem]:
    p = training_case("two-prefixes")
    other_weights = replace(p, weights=weights_of(p.config, 1))
    return [p, other_weights, replace(p, beta1=0.5, lr=0.01, warmup=2)]


def _like_method(name: str) -> Sequence[Problem]:
    p = method_case(name)
    other = method_problem(p.method, **METHOD_CASES[name][1], seed=1)
    return [p, other, replace(p, reduction="sum" if p.reduction == "mean" else "mean")]


#: function -> the problem that is asked again, and what is asked in between: alike in all but one
#: thing, so that what is kept from one would serve the other
IN_TURN: dict[str, Callable[[], Sequence[Problem]]] = {
    "run_model": _like_own_prefixes,
    "run_decoding": _like_own_prefixes,
    "run_training": _like_two_prefixes,
}


@cache
def _in_turn(
    function: str, method: str, clip_eps: float = 0.0
) -> list[tuple[Problem, Mapping[str, Array]]]:
    """The problems, and the right answers."""
    given = _like_method(method) if method else IN_TURN[function]()
    return [(p, answer(function, p, clip_eps)) for p in given]


def again(function: str, method: str, implementation: Implementation, grade: Grade) -> None:
    """`function` called with several problems in turn. `method`: the case of a rival, or none."""
    (problem, right), *others = _in_turn(function, method)
    tolerance = TOLERANCE["training" if function == "run_training" else "float64"]
    if implementation.rounds:
        tolerance = TOLERANCE["float32"]
    run = whole(implementation, function)

    def ask(p: Problem) -> tuple[Mapping[str, Any], dict[str, Array]]:
        found = run(p)
        return found, numbers(found, implementation)

    def note(kind: str, said: str, got: Mapping[str, Array], want: Mapping[str, Array]) -> bool:
        errors = unlike(got, want, 0.0 if kind == "modified" else tolerance)
        for name, error in list(errors.items())[:1]:
            seen = f"{name} of a later call"
            grade.found[seen], grade.errors[seen] = got[name], error
            sentence = f"{said}: {most(errors)}"
            grade.findings.append(Finding(function, name, kind, sentence, error, tolerance))
        return bool(errors)

    mine = deepcopy(problem)
    given, first = ask(mine)
    note_changes(grade, function, problem, mine)
    _, second = ask(deepcopy(problem))
    grade.errors |= dict.fromkeys(first, 0.0)
    random = unlike(second, first, tolerance)
    if random:  # nothing more can be said of it
        grade.findings.append(nondeterministic(function, random, tolerance))
        return
    wrong = unlike(first, right, tolerance)
    if wrong and function == "run_training":  # torch's clipping is right, too
        (_, torchs), *its_others = _in_turn(function, method, CLIP_EPS)
        if len(unlike(first, torchs, tolerance)) < len(wrong):
            wrong, others = unlike(first, torchs, tolerance), its_others
    known = first.keys() - wrong.keys()
    for other, its_right in others:
        said = _blame(function, implementation, other, its_right, known)
        if said is None:
            return  # wrong by itself: the checks of one problem say more of it
        found = {n: a for n, a in ask(deepcopy(other))[1].items() if n in known}
        if note("law", said, found, its_right):
            grade.findings[-1].guess = implementation.anew is None
            return
    now = numbers(given, implementation)
    said = f"later calls of {function} write into what it gave before: give arrays of their own"
    if note("modified", said, now, first):
        return
    said = f"{function} gives another answer to the same problem after other problems"
    if note("law", said, ask(deepcopy(problem))[1], first):
        return
    _change(mine)
    said = f"what {function} gave changes with the arrays of its problem: give copies"
    if note("modified", said, numbers(given, implementation), now):
        return
    anew = {n: a for n, a in ask(mine)[1].items() if n in known}
    anew = {n: anew[n] for n in anew.keys() - unlike(anew, first, tolerance).keys()}
    said = f"the arrays of a problem were changed, and {function} answers as if they were not"
    note("law", said, anew, answer(function, mine))


def _blame(
    function: str,
    implementation: Implementation,
    problem: Problem,
    right: Mapping[str, Array],
    known: Collection[str],
) -> str | None:
    """What it means if these tensors of a later problem are wrong; None: it is wrong about that
    problem also where no earlier one was asked."""
    said = f"{function} is right about one problem and wrong about the next: does it keep something"
    if implementation.anew is None:
        return f"{said} of the first, or hold for its settings alone?"
    anew = implementation.anew()
    try:
        alone = numbers(whole(anew, function)(deepcopy(problem)), anew)
    except (Broken, NotOffered):
        return None
    least = TOLERANCE["float32" if implementation.rounds else "training"]
    if unlike({n: a for n, a in alone.items() if n in known}, right, least):
        return None
    return f"{function} keeps something of an earlier problem, and is wrong about the next"


def _change(problem: Problem) -> None:
    """The numbers of its weights, prefixes and parameters, in place."""
    lists = [getattr(problem, n, ()) for n in ("weights", "prefixes", "parameters")]
    seen: set[int] = set()
    for a in _arrays(lists):
        if id(a) not in seen:
            seen.add(id(a))
            a *= 0.9


def _arrays(given: Any) -> Iterator[Array]:
    if isinstance(given, np.ndarray):
        yield given
    elif isinstance(given, Mapping):
        yield from _arrays(list(given.values()))
    else:
        for each in cast(Sequence[Any], given):
            yield from _arrays(each)
