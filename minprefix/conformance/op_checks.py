"""The checks of the ops level that compare with the reference, each op's forward and backward, case
by case; and derivatives. `by_hand` and `laws` need no reference; `op_calls` calls more than
once."""

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
from minprefix.conformance.kept import PARAMETERS, kept, litter, shared, written
from minprefix.conformance.reasons.ops import Reasons
from minprefix.conformance.rounding import noise, step
from minprefix.ops.contract import Array

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
            look = partial(kept, implementation, function, own, model_own if takes_cache else {})
            before = {} if grade is None else {name: a.copy() for name, a in look().items()}
            if grade is not None:
                right = case.expected(implementation)
                litter(
                    (a.shape for n, a in right.items() if owner(case.op, n) == function), case.dtype
                )
            result = implementation.call(function, *(own[a] for a in ARGUMENTS[function]))
            if grade is not None:
                _touched(implementation, case, function, before, look(), result, grade)
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


def _touched(
    implementation: Implementation,
    case: Case,
    function: str,
    before: dict[str, Array],
    after: dict[str, Array],
    result: Any,
    grade: Grade,
) -> None:
    """What a call changed that it must keep, and which results lie in the memory of others."""
    paste = reproducer(implementation, case, function)
    for which in written(before, after):
        said = f"{function} wrote into {which}, which the contract says is kept: work on a copy"
        grade.say("modified", function, which, said, paste)
    for name, other in shared(results_of(implementation, function, result), after):
        said = (
            f"{name} lies in the memory of {other}: what is written into one changes the other. "
            "Return a copy"
        )
        grade.say("shared", function, name, said, paste)


def results_of(implementation: Implementation, function: str, result: Any) -> dict[str, Array]:
    """The results by name, without the cache, as NumPy arrays: views where `asnumpy` gives
    views."""
    names = (name for name in TENSORS[function] if not name.startswith("cache."))
    wanted = {name.removesuffix("[]") for name in names}
    found = dict[str, Array]()
    for name, a in flatten(function, result).items():
        if name.split("[")[0] in wanted:
            with contextlib.suppress(Broken):
                found[name] = implementation.asnumpy(a, name)
    return found


def expected_of(case: Case, implementation: Implementation) -> Expected:
    offsets, right = case.inputs().get("offsets"), case.expected(implementation)
    boundaries = None if offsets is None else offsets.tolist()
    sizes, cancels = case.dimensions(), case.cancels()
    return Expected(right, case.tolerance(), sizes, boundaries, "ops", cancels)


def grade_case(case: Case, implementation: Implementation, grade: Grade) -> None:
    """Every tensor of the op, compared once."""
    found = tensors(implementation, case, grade)
    reasons = Reasons(case, implementation, found, tensors)
    expected = replace(expected_of(case, implementation), reasons=reasons)
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
    """A few lines to paste into Python that call the function as the check does. With a tensor they
    leave it in `got`, and what is right in `want`."""
    lines = [
        "from minprefix.conformance import Case, flatten, load",
        f"impl, case = load({implementation.name!r}), {case!r}",
    ]
    lent = "cache" in ARGUMENTS[function] and not implementation.has(case.op)
    if lent:
        lines[0] += ", reference_cache"
        lines.append(f"cache = reference_cache({case.op!r}, case.inputs())")
    # what a function leaves in the cache, or takes from it, the next one meets
    functions = FUNCTIONS[case.op] if "cache" in ARGUMENTS[function] else (function,)
    for f in functions[: functions.index(function) + 1]:
        if f != function and not implementation.has(f):
            continue
        arguments = ("cache" if a == "cache" else f'i["{a}"]' for a in ARGUMENTS[f])
        keep = "result = " if f == function else "_, cache = " if f == case.op else ""
        lines.append("i = impl.arguments(case.inputs())")
        lines.append(f"{keep}impl.functions.{f}({', '.join(arguments)})")
    if tensor:
        lines.append(f'got = impl.asnumpy(flatten("{function}", result)["{tensor}"], "{tensor}")')
        lines.append(f'want = case.expected(impl)["{tensor}"]')
    return "\n".join(lines)


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
