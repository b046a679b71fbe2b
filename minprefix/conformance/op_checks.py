"""The checks of the ops level that compare with the reference, each op's forward and backward: case
by case, and two calls in a row; and derivatives. `by_hand` and `laws` need no reference."""

import contextlib
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from minprefix.conformance.cases import Case, axes, flatten, numbers, owner, reference_cache
from minprefix.conformance.check import Expected, Finding, Grade
from minprefix.conformance.contract import ARGUMENTS, FUNCTIONS, TENSORS
from minprefix.conformance.diagnosis import relative_error
from minprefix.conformance.implementation import Broken, Implementation, NotOffered
from minprefix.conformance.reasons.ops import Reasons
from minprefix.conformance.rounding import noise, step
from minprefix.ops.contract import CONSUMED, Array

#: arrays of the model's in a cache: kept even where the cache is consumed
PARAMETERS = ("gain", "prefix_k", "prefix_v", "offsets", "targets", "weights")

#: arguments that are one array a sequence
LISTS = ("prefix_k", "prefix_v")


# ---- a case -------------------------------------------------------------------------------------


def tensors(
    implementation: Implementation, case: Case, grade: Grade | None = None
) -> dict[str, Array]:
    """All that the implementation gives for a case, by name: each function called once, in the
    model's order. With a `grade`, a failure is noted there and the rest goes on."""
    found: dict[str, Array] = {}
    cache, have_cache = None, False
    model_own: dict[str, Any] = {}  # arrays of the model's that the forward was given
    for function in FUNCTIONS[case.op]:
        takes_cache = "cache" in ARGUMENTS[function]
        try:
            if takes_cache and not have_cache:  # the forward is missing: lend it the reference's
                lent = reference_cache(case.op, case.inputs())
                cache, have_cache = type(lent)(*map(implementation.own, lent)), True
            # fresh ones: an earlier function may have consumed its own
            own = implementation.arguments(case.inputs()) | {"cache": cache}
            if function == case.op:
                model_own = {a: own[a] for a in PARAMETERS if a in ARGUMENTS[function]}
            look = partial(_kept, implementation, function, own, model_own if takes_cache else {})
            before = {} if grade is None else look()
            result = implementation.call(function, *(own[a] for a in ARGUMENTS[function]))
            if grade is not None:
                after, paste = look(), reproducer(implementation, case, function)
                for which in before:
                    same = which in after and np.array_equal(before[which], after[which], True)
                    if not same:
                        said = f"{function} wrote into {which}, which the contract says is kept"
                        grade.say("modified", function, which, f"{said}: work on a copy", paste)
            found |= numbers(implementation, function, result)
            if any(name.startswith("cache") for name in TENSORS[function]):
                cache, have_cache = result[1], True
        except NotOffered as error:
            if grade is None:
                raise
            grade.not_implemented.append(str(error))
        except Broken as error:
            if grade is None:
                raise
            grade.broken(function, error, reproducer(implementation, case, function))
            if takes_cache or function == case.op:
                break  # the rest needs the results that are missing
    return found


def _kept(
    implementation: Implementation, function: str, own: dict[str, Any], model_own: dict[str, Any]
) -> dict[str, Array]:
    """Copies in NumPy of all that a function must leave alone, each array of a list by itself: the
    arguments that it may not consume, the model's own arrays even if they stand in a consumed
    cache, and the cache if that is kept. An array that asnumpy does not take, being for results, is
    left out."""
    kept = [a for a in ARGUMENTS[function] if a not in CONSUMED.get(function, ())]
    arrays = {a: own[a] for a in kept if a != "cache"} | model_own
    for name in LISTS:
        if name in arrays:
            arrays |= {f"{name}[{b}]": a for b, a in enumerate(arrays.pop(name))}
    if "cache" in kept:
        cache = own["cache"]
        fields = cache._asdict() if hasattr(cache, "_asdict") else cache
        if isinstance(fields, dict):
            arrays |= {f"cache.{name}": a for name, a in fields.items() if name not in model_own}
    found = {}
    for name, a in arrays.items():
        with contextlib.suppress(Broken):
            found[name] = np.array(implementation.asnumpy(a, name))
    return found


def _expected(case: Case, implementation: Implementation) -> Expected:
    offsets, right = case.inputs().get("offsets"), case.expected(implementation)
    boundaries = None if offsets is None else offsets.tolist()
    return Expected(right, case.tolerance(), case.dimensions(), boundaries, "ops")


def grade_case(case: Case, implementation: Implementation, grade: Grade) -> None:
    """Every tensor of the op, compared once."""
    found = tensors(implementation, case, grade)
    reasons = Reasons(case, implementation, found, tensors)
    expected = replace(_expected(case, implementation), reasons=reasons)
    dtype, because = _precision(implementation, case)
    for function in FUNCTIONS[case.op]:
        wanted, got = (
            [name for name in names if owner(case.op, name) == function]
            for names in (expected.tensors, found)
        )
        paste = partial(reproducer, implementation, case, function)
        stems = {name.split("[")[0] for name in got}
        for name in wanted:
            if name in found:
                want = expected.tensors[name]
                # a loss may be a Python number, and whole numbers of any width will do
                kind = dtype if want.dtype.kind == "f" and want.ndim else None
                letters, paste_it = axes(function, name), paste(name)
                grade.compare(
                    function, name, found[name], expected, letters, kind, paste_it, because=because
                )
            elif name.split("[")[0] in stems or (got and "cache." not in name):
                said = f"{name} is missing: expected one for each sequence"
                grade.say("missing", function, name, said, paste())
        for name in got:
            if name not in expected.tensors:
                said = f"{name} is one too many: expected one for each sequence"
                grade.say("missing", function, name, said, paste())


def _precision(implementation: Implementation, case: Case) -> tuple[str, str]:
    """The dtype that results should have, the case's or the one that asarray makes of it; and why,
    with asarray's part in it."""
    dtype = case.dtype
    with contextlib.suppress(Broken):
        taken = implementation.asnumpy(implementation.own(np.zeros(1, case.dtype)), "a")
        dtype = str(taken.dtype) if taken.dtype.kind == "f" else dtype
    made = f", of which asarray makes {dtype}" if dtype != case.dtype else ""
    return dtype, f"as the inputs are{made}"


def reproducer(implementation: Implementation, case: Case, function: str, tensor: str = "") -> str:
    """A few lines that show the failure when they are pasted into Python."""

    def call(f: str) -> str:
        arguments = ("cache" if a == "cache" else f'i["{a}"]' for a in ARGUMENTS[f])
        return f"impl.functions.{f}({', '.join(arguments)})"

    lines = [
        "from minprefix.conformance import Case, flatten, load",
        f"impl, case = load({implementation.name!r}), {case!r}",
        "i = impl.arguments(case.inputs())",
    ]
    if "cache" in ARGUMENTS[function] and implementation.has(case.op):
        lines.append(f"_, cache = {call(case.op)}")
    elif "cache" in ARGUMENTS[function]:
        lines[0] += ", reference_cache"
        lines.append(f"cache = reference_cache({case.op!r}, case.inputs())")
    lines.append(f"result = {call(function)}")
    if tensor:
        lines.append(f'print(flatten("{function}", result)["{tensor}"])')
        lines.append(f'print(case.expected()["{tensor}"])')
    return "\n".join(lines)


# ---- two calls in a row -------------------------------------------------------------------------


def two_calls(op: str, implementation: Implementation, grade: Grade) -> None:
    """The model calls an op in every layer before it calls the first backward."""
    cases = {"second": Case(op, seed=2), "first": Case(op, seed=1)}
    inputs = {which: implementation.arguments(case.inputs()) for which, case in cases.items()}
    for function in FUNCTIONS[op]:
        try:
            raw = _in_turn(implementation, op, function, inputs)
        except NotOffered as error:
            grade.not_implemented.append(str(error))
            continue
        for which, result in raw.items():
            expected = _expected(cases[which], implementation)
            for name, value in numbers(implementation, function, result).items():
                if not name.startswith("cache.") and name in expected.tensors:
                    where, letters = f" of the {which} of two calls", axes(function, name)
                    grade.compare(function, name, value, expected, letters, where=where)


def _in_turn(
    implementation: Implementation, op: str, function: str, inputs: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    """The function on each of the inputs, which keep the cache that it gives: the forwards first
    to last, the rest last to first, as the model does."""
    raw = {}
    for which in list(inputs)[::-1] if function == op else list(inputs):
        own = inputs[which]
        if "cache" in ARGUMENTS[function] and "cache" not in own:
            raise NotOffered(op)
        raw[which] = implementation.call(function, *(own[a] for a in ARGUMENTS[function]))
        if any(name.startswith("cache") for name in TENSORS[function]):
            flatten(function, raw[which])  # raises if there is no cache
            own["cache"] = raw[which][1]
    return raw


# ---- derivatives --------------------------------------------------------------------------------

#: op -> argument of its forward -> the function and the tensor that hold its gradient
GRADIENTS: dict[str, dict[str, tuple[str, str]]] = {
    op: {
        argument: (function, f"d{argument}")
        for argument in ARGUMENTS[op]
        for function in functions
        if {f"d{argument}", f"d{argument}[]"} & TENSORS[function].keys()
    }
    for op, functions in FUNCTIONS.items()
}

#: op -> the gradient that comes in; a loss has none
UPSTREAM = dict.fromkeys(FUNCTIONS, "dout")
UPSTREAM |= {"embed": "dx", "attention": "dz", "cross_entropy": ""}


def derivative(op: str, implementation: Implementation, grade: Grade) -> None:
    case, upstream = Case(op, seed=3), UPSTREAM[op]
    h, tolerance = step(implementation, 1e-6)
    found = tensors(implementation, case, grade)
    first = next(iter(TENSORS[op]))  # the forward's result
    want = case.expected(implementation)[first]
    known = first in found and found[first].shape == want.shape
    forward_error = relative_error(found[first], want) if known else math.inf
    for argument, (function, tensor) in GRADIENTS[op].items():
        gradients = {n: a for n, a in found.items() if n.split("[")[0] == tensor}
        if not gradients:
            continue
        size = 0.0  # of the numbers that cancel in a difference

        def scalar(moved: dict[str, Any]) -> float:
            nonlocal size
            own = implementation.arguments(moved)
            result = implementation.call(op, *(own[a] for a in ARGUMENTS[op]))
            out = implementation.asnumpy(next(iter(flatten(op, result).values())), op)
            terms = out * implementation.given(moved[upstream]) if upstream else out
            size = float(np.abs(terms).sum())
            return float(terms.sum())

        numeric, analytic = _directional(
            implementation, case, argument, list(gradients.values()), scalar
        )
        scale = max(abs(analytic), abs(numeric), 1e-300)
        said = (
            f"{tensor} says that the output changes by {analytic:.6g} along a random direction of "
            f"{argument}, and {op} itself changes by {numeric:.6g}"
        )
        error = abs(numeric - analytic) / scale
        finding = Finding(function, tensor, "derivative", said, error, tolerance)
        finding.reproducer = reproducer(implementation, case, function, next(iter(gradients)))
        rounding = noise(forward_error, size, h) / scale
        grade.expect(f"{tensor} along a direction", finding, rounding)


def _directional(
    implementation: Implementation,
    case: Case,
    argument: str,
    gradients: list[Array],
    f: Callable[[dict[str, Any]], float],
) -> tuple[float, float]:
    """The change of f along one random direction of `argument`: measured, and as the gradient has
    it."""
    rng = np.random.default_rng(17)
    base = case.inputs()[argument]
    parts = base if isinstance(base, list) else [base]
    directions, (h, _) = [rng.normal(0, 1, a.shape) for a in parts], step(implementation, 0)
    # asarray may round them
    up, down = (
        implementation.given([a + s * h * d for a, d in zip(parts, directions, strict=True)])
        for s in (1, -1)
    )

    def at(moved: list[Array]) -> float:
        moved = [a.copy() for a in moved]  # the forward may consume them
        return f(case.inputs() | {argument: moved if isinstance(base, list) else moved[0]})

    numeric = (at(up) - at(down)) / (2 * h)
    analytic = sum(
        float((g * (a - b)).sum()) / (2 * h) if g.shape == a.shape else math.nan
        for g, a, b in zip(gradients, up, down, strict=True)
    )
    return numeric, analytic
