"""The checks that call an op's functions more than once: nothing is shared between calls, nothing
that was returned changes, and the same numbers give the same results."""

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from minprefix.conformance.cases import Case, axes, numbers, owner
from minprefix.conformance.check import Finding, Grade
from minprefix.conformance.contract import ARGUMENTS, FUNCTIONS, TENSORS
from minprefix.conformance.diagnosis import relative_error
from minprefix.conformance.implementation import Broken, Implementation, NotOffered
from minprefix.conformance.kept import arrays_in, litter, written
from minprefix.conformance.op_checks import expected_of, results_of, tensors
from minprefix.ops.contract import Array

# ---- the same numbers again ---------------------------------------------------------------------

#: kinds of findings about numbers: of two calls that differ no more is said
NUMBERS = ("value", "not finite", "precision", "law", "derivative", "shared")

NONDETERMINISTIC = (
    "Is something drawn at random, never set (np.empty) or kept from one call to the next?"
)


def steady(
    case: Case,
    run: Callable[[Implementation, Grade], None],
    implementation: Implementation,
    grade: Grade,
) -> None:
    """A check of an op; where numbers are wrong, that a function gives other ones each time is said
    in their place. `case`: the numbers that it is asked again with."""
    run(implementation, grade)
    if implementation.in_a_hurry or not any(f.kind in NUMBERS for f in grade.findings):
        return
    varies = _varying(implementation, case)
    if not varies or any(f.kind == "nondeterministic" for f in grade.findings):
        return
    (name, apart), *_ = varies.items()
    function = owner(case.op, name)
    concerned = FUNCTIONS[case.op] if function == case.op else (function,)
    said = (
        f"{name} of calls with the same numbers differs by {apart:.2g} of its largest value. "
        f"{NONDETERMINISTIC}"
    )
    others = [f for f in grade.findings if f.kind not in NUMBERS or f.function not in concerned]
    grade.findings[:] = [*others, Finding(function, name, "nondeterministic", said, apart)]


def _varying(implementation: Implementation, case: Case) -> dict[str, float]:
    """The tensors that are not the same in each of three calls, in order, and how far apart."""
    several: list[dict[str, Array]] = []
    with contextlib.suppress(Broken, NotOffered):
        for _ in range(3):
            several.append(tensors(implementation, case, Grade()))
    found, right = {}, case.expected(implementation)
    for name, a in several[0].items() if several else ():
        alike = [t[name] for t in several if name in t and t[name].shape == a.shape]
        if name in right and right[name].shape == a.shape:
            apart = max(_apart_by(a, b, right[name]) for b in alike)
            if apart > 100 * case.tolerance():
                found[name] = apart
    return found


def _apart_by(a: Array, b: Array, right: Array) -> float:
    """How far apart two results are, relative to the largest right value: both may be garbage."""
    differ = ~((a == b) | (np.isnan(a) & np.isnan(b)))
    off = np.abs(a[differ] - b[differ]).max(initial=0.0)
    return float(off / (np.abs(right).max(initial=0.0) or 1.0)) if np.isfinite(off) else math.inf


# ---- two calls ----------------------------------------------------------------------------------


def two_calls(op: str, implementation: Implementation, grade: Grade) -> None:
    """The model calls an op in every layer before it calls the first backward."""
    cases = {"second": Case(op, seed=2), "first": Case(op, seed=1)}
    calls = {
        which: _Call(case, implementation.arguments(case.inputs())) for which, case in cases.items()
    }
    for function in FUNCTIONS[op]:
        try:
            for call in list(calls.values())[:: -1 if function == op else 1]:
                _in_turn(implementation, call, function)
        except NotOffered as error:
            grade.not_implemented.append(str(error))
            continue
        for which, call in calls.items():
            expected = expected_of(call.case, implementation)
            for name, value in numbers(implementation, function, call.raw[function]).items():
                if name.startswith("cache.") or name not in expected.tensors:
                    continue
                where, letters = f" of the {which} of two calls", axes(function, name)
                before = len(grade.findings)
                grade.compare(function, name, value, expected, letters, where=where)
                first, most = call.copies[name], max(expected.tolerance, grade.single)
                for finding in grade.findings[before:]:
                    if first.shape == value.shape and relative_error(
                        first, expected.tensors[name]
                    ) <= max(most, 0.1 * grade.errors[name + where]):
                        finding.hints.insert(0, OVERWRITTEN)


OVERWRITTEN = "was right when the call returned, and the other call wrote into it"


def _in_turn(implementation: Implementation, call: "_Call", function: str) -> None:
    """The function on the inputs of a call, which keeps what it gives. Raises NotOffered and
    Broken."""
    if "cache" in ARGUMENTS[function] and "cache" not in call.own:
        raise NotOffered(call.case.op)
    result = implementation.call(function, *(call.own[a] for a in ARGUMENTS[function]))
    call.raw[function] = result
    call.copies |= numbers(implementation, function, result)
    if any(name.startswith("cache") for name in TENSORS[function]):
        call.own["cache"] = result[1]


# ---- many calls ---------------------------------------------------------------------------------

#: op -> sizes that give every op results of one shape, so that buffers kept by shape are the same
ALIKE: dict[str, dict[str, Any]] = {
    "embed": {"N": 6, "C": 6, "V": 6, "n_positions": 6},
    "layernorm": {"N": 6, "C": 6},
    "linear": {"N": 6, "n_in": 6, "n_out": 6},
    "gelu": {"N": 6, "F": 6},
    "attention": {"lengths": (4, 2), "slots": (3, 1), "heads": 2, "head_size": 3},
    "cross_entropy": {"M": 6, "V": 6},
}

#: op -> what is different in two of the calls
UNLIKE: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "embed": ({"N": 3}, {"V": 9, "n_positions": 8}),
    "layernorm": ({"N": 3}, {"eps": 0.1}),
    "linear": ({"N": 3}, {"bias": False}),
    "gelu": ({"N": 3}, {"F": 9}),
    "attention": ({"slots": (1, 3)}, {"lengths": (2, 4)}),
    "cross_entropy": ({"M": 3}, {"V": 9}),
}

#: the seeds of the calls that are alike: in no order, so that a buffer that comes back after some
#: number of calls holds other numbers. -1 and -2: one of the unlike calls
ORDER = (1, 2, 3, -1, 1, 3, 2, 2, -2, 1, 3, 3, 2, 1)

#: op -> arguments that the model's owner changes in place between steps: an optimizer does
REWRITTEN: dict[str, tuple[str, ...]] = {
    "embed": ("wte", "wpe"),
    "layernorm": ("gain", "bias"),
    "linear": ("weight", "bias"),
    "gelu": (),
    "attention": ("prefix_k", "prefix_v"),
    "cross_entropy": ("targets", "weights"),
}


@dataclass
class _Call:
    """One of many: what it was given, what it returned, and copies of that from before the next."""

    case: Case
    own: dict[str, Any]
    raw: dict[str, Any] = field(default_factory=dict)  # function -> its result
    copies: dict[str, Array] = field(default_factory=dict)  # tensor -> its numbers
    cached: dict[str, Array] = field(default_factory=dict)  # array of the cache -> its numbers


def many_calls(op: str, implementation: Implementation, grade: Grade) -> None:
    """All forwards, then all backwards, the last first, as layer after layer does; at the end one
    call with the first one's arrays, in which other numbers stand."""
    sizes = {seed: ALIKE[op] | (UNLIKE[op][-seed - 1] if seed < 0 else {}) for seed in set(ORDER)}
    cases = [Case(op, sizes[seed], abs(seed)) for seed in ORDER]
    calls = [_Call(case, implementation.arguments(case.inputs())) for case in cases]
    missing, caches = set[str](), list[str]()
    for functions, in_turn in ((FUNCTIONS[op][:1], calls), (FUNCTIONS[op][1:], calls[::-1])):
        for call in in_turn:
            _call(implementation, call, functions, missing)
        caches += _changed_caches(implementation, calls) if functions[0] == op else []
        _others(implementation, op)
        for function in functions:
            if function in missing:
                continue
            before = len(grade.findings)
            _judge(implementation, function, calls, caches, grade)
            if len(grade.findings) > before:
                return  # what comes after follows from it
    _rewritten(implementation, calls[0], missing, grade)
    grade.not_implemented += sorted(missing)


def _call(
    implementation: Implementation, call: _Call, functions: tuple[str, ...], missing: set[str]
) -> None:
    """Call these functions of an op, and keep what they give in `call`. Raises Broken."""
    op = call.case.op
    for function in functions:
        takes = ARGUMENTS[function]
        if function in missing or ("cache" in takes and op not in call.raw):
            missing.add(function)
            continue
        given = call.own
        if function != op:  # fresh ones: an earlier function may have consumed its own
            kept = {"cache": given.get("cache")}
            kept |= {a: given[a] for a in REWRITTEN[op] if a in given}
            given = implementation.arguments(call.case.inputs()) | kept
        right = call.case.expected(implementation)
        litter((a.shape for a in right.values()), call.case.dtype)
        try:
            result = implementation.call(function, *(given[a] for a in takes))
        except NotOffered:
            missing.add(function)
            continue
        call.raw[function] = result
        call.copies |= numbers(implementation, function, result)
        if any(name.startswith("cache") for name in TENSORS[function]):
            call.own["cache"] = result[1]
            found = arrays_in(implementation, result[1], "cache")
            call.cached = {name: a.copy() for name, a in found}


def _changed_caches(implementation: Implementation, calls: list[_Call]) -> list[str]:
    """The arrays of caches that later forwards wrote into. That may be well: a wrong backward will
    tell."""
    return [
        name
        for call in calls
        for name in written(
            call.cached, dict(arrays_in(implementation, call.own.get("cache"), "cache"))
        )
    ]


def _others(implementation: Implementation, op: str) -> None:
    """A call of every function of the other ops. What is wrong with them is not said here."""
    for other, sizes in ALIKE.items():
        if other != op:
            case = Case(other, sizes, seed=5)
            with contextlib.suppress(Broken):
                call = _Call(case, implementation.arguments(case.inputs()))
                _call(implementation, call, FUNCTIONS[other], set())


def _judge(
    implementation: Implementation,
    function: str,
    calls: list[_Call],
    caches: list[str],
    grade: Grade,
) -> None:
    """Whether what a function gave is the same for the same numbers, right, and still there. The
    first of these that fails is noted."""
    op = calls[0].case.op
    names = results_of(implementation, function, calls[0].raw[function])
    most = max(calls[0].case.tolerance(), grade.single)
    apart = {name: _apart(calls, name) for name in names}
    for name in names:
        expected = [expected_of(call.case, implementation) for call in calls]
        wrong = [
            relative_error(call.copies[name], right.tensors[name]) > most
            for call, right in zip(calls, expected, strict=True)
            if call.copies[name].shape == right.tensors[name].shape
        ]
        if caches and (apart[name] > most or (any(wrong) and not all(wrong))):
            said = (
                f"{caches[0]} of one call is written into by a later call of {op}, although the "
                "first one's backward needs it: each call needs arrays of its own"
            )
            grade.say("shared", op, caches[0], said)
            return
        if apart[name] > most:
            said = (
                f"{name} of two calls with the same numbers differs by {apart[name]:.2g} of its "
                f"largest value. {NONDETERMINISTIC}"
            )
            grade.say("nondeterministic", function, name, said)
            return
        n = wrong.index(True) if any(wrong) else 0
        where, letters = f" of call {n + 1} of {len(calls)}", axes(function, name)
        got = calls[n].copies[name]
        grade.compare(function, name, got, expected[n], letters, where=where)
    for n, call in enumerate(calls, 1):
        for name in _lost(implementation, function, call):
            said = f"{name} of call {n} of {len(calls)} was overwritten by a later call"
            grade.say("shared", function, name, f"{said}: give a new array each time")
            now = results_of(implementation, function, call.raw[function])[name]
            grade.found[f"{name} in the end"] = np.array(now)
            grade.errors[f"{name} in the end"] = relative_error(now, call.copies[name])
            return


def _apart(calls: list[_Call], name: str) -> float:
    """How far apart the results of calls with the same numbers are at most."""
    first: dict[str, Array] = {}
    off = 0.0
    for call in calls:
        got = call.copies[name]
        other = first.setdefault(repr(call.case), got)
        off = max(off, relative_error(got, other) if got.shape == other.shape else math.inf)
    return off


def _lost(implementation: Implementation, function: str, call: _Call) -> list[str]:
    """The results of a call that are not what they were when it returned."""
    now = results_of(implementation, function, call.raw[function])
    return written({name: call.copies[name] for name in now}, now)


def _rewritten(
    implementation: Implementation, first: _Call, missing: set[str], grade: Grade
) -> None:
    """Other numbers in the parameters of a call that is over: its results stay, and the next call
    sees the new numbers, though it is given the same arrays."""
    case = Case(first.case.op, first.case.sizes, seed=7)
    call = _Call(case, implementation.arguments(case.inputs()))
    for name in REWRITTEN[case.op]:
        if not _overwrite(implementation, first.own[name], call.own[name]):
            return  # arrays that never change, or of which asnumpy gives copies
        call.own[name] = first.own[name]
    for function in first.raw:
        for name in _lost(implementation, function, first):
            said = f"{name} changes when the parameters of its call do: give a new array"
            grade.say("shared", function, name, said)
            return
    _call(implementation, call, FUNCTIONS[case.op], missing)
    expected = expected_of(case, implementation)
    where = (
        " of a call whose parameters are the arrays of an earlier one with other numbers in them"
    )
    for function, result in call.raw.items():
        for name in results_of(implementation, function, result):
            letters = axes(function, name)
            grade.compare(function, name, call.copies[name], expected, letters, where=where)


def _overwrite(implementation: Implementation, old: Any, new: Any) -> bool:
    """Put the numbers of `new` into `old`, both of the implementation's own kind. -> whether that
    can be done."""
    views, numbers_of = (dict(arrays_in(implementation, a, "a")) for a in (old, new))
    for name, a in views.items():
        if not a.flags.writeable:
            return False
        a[...] = numbers_of[name]
    now = dict(arrays_in(implementation, old, "a"))
    return now.keys() == numbers_of.keys() and not written(numbers_of, now)
