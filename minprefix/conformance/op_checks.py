"""The checks of the ops level that compare with the reference, each op's forward and backward: case
by case, two calls at once, shapes that hypothesis draws; and derivatives. What needs no reference
stands in `by_hand` and `laws`."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from hypothesis import strategies as st

from minprefix.conformance.cases import (
    CASES,
    Case,
    axes,
    case_of,
    consumed,
    flatten,
    numbers,
    reference_cache,
)
from minprefix.conformance.check import Check, Finding, Grade
from minprefix.conformance.contract import ARGUMENTS, FUNCTIONS, TENSORS
from minprefix.conformance.drawn import draw_until_one_fails
from minprefix.conformance.implementation import Broken, Implementation, NotOffered
from minprefix.ops.contract import Array

#: allowed error of a tensor, relative to its largest value. float64: rounding, with room for other
#: orders of summation; float32: what single precision leaves of sums over a few dozen terms
TOLERANCE = {"float64": 1e-10, "float32": 2e-5}


# ---- a case -------------------------------------------------------------------------------------


def tensors(
    implementation: Implementation, case: Case, grade: Grade | None = None
) -> dict[str, Array]:
    """All that the implementation gives for a case, by name: each function called once, in the
    model's order. With a `grade`, whatever goes wrong is noted there and the rest goes on."""
    i, found = case.inputs(), dict[str, Array]()
    cache, have_cache = None, False
    for function in FUNCTIONS[case.op]:
        takes_cache = "cache" in ARGUMENTS[function]
        try:
            if takes_cache and not have_cache:  # the forward is missing: lend it the reference's
                lent = reference_cache(case.op, case.inputs())
                cache, have_cache = type(lent)(*map(implementation.own, lent)), True
            fresh = case.inputs()  # what an earlier function consumed is no input any more
            own = implementation.arguments(fresh) | {"cache": cache}
            result = implementation.call(function, *(own[a] for a in ARGUMENTS[function]))
            if grade is not None:
                _check_kept(implementation, case, function, own, i, grade)
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
            if takes_cache or function == FUNCTIONS[case.op][0]:
                break  # what follows needs what this did not give
    return found


def _check_kept(
    implementation: Implementation,
    case: Case,
    function: str,
    own: dict[str, Any],
    before: dict[str, Any],
    grade: Grade,
) -> None:
    for name in ARGUMENTS[function]:
        if name == "cache" or name in consumed(function) or before[name] is None:
            continue
        was, now = before[name], own[name]
        pairs = zip(was, now, strict=True) if isinstance(was, list) else [(was, now)]
        for j, (a, b) in enumerate(pairs):
            if isinstance(a, np.ndarray):
                same = np.array_equal(a, implementation.asnumpy(b, name), equal_nan=True)
                if not same:
                    which = f"{name}[{j}]" if isinstance(was, list) else name
                    grade.findings.append(
                        Finding(
                            function,
                            which,
                            "modified",
                            f"{function} wrote into its argument {which}, which the contract says "
                            "is kept: work on a copy",
                            reproducer=reproducer(implementation, case, function),
                        )
                    )


def grade_case(implementation: Implementation, case: Case, grade: Grade) -> None:
    """Every tensor of the op, compared once."""
    want, i = case.expected(), case.inputs()
    found = tensors(implementation, case, grade)
    given_ = i.get("offsets")
    offsets = None if given_ is None else [int(o) for o in given_]
    for function in FUNCTIONS[case.op]:
        of_function = [n for n in want if _owner(case.op, n) == function]
        got = [n for n in found if _owner(case.op, n) == function]
        for name in of_function:
            if name not in found:
                stem = name.split("[")[0]
                if any(g.split("[")[0] == stem for g in got) or (got and "cache." not in name):
                    grade.findings.append(
                        Finding(
                            function,
                            name,
                            "missing",
                            f"{name} is missing: expected one for each sequence",
                            reproducer=reproducer(implementation, case, function),
                        )
                    )
                continue
            grade.compare(
                function,
                name,
                found[name],
                want[name],
                TOLERANCE[case.dtype],
                axes(function, name),
                case.dimensions(),
                {n: a for n, a in want.items() if not n.startswith("cache.")},
                offsets,
                case.dtype if want[name].dtype.kind == "f" else None,
                reproducer(implementation, case, function, name),
            )


def _owner(op: str, tensor: str) -> str:
    """The function that gives a tensor."""
    for function in FUNCTIONS[op]:
        try:
            axes(function, tensor)
        except KeyError:
            continue
        return function
    raise KeyError(tensor)


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
    if "cache" in ARGUMENTS[function]:
        lines.append(f"_, cache = {call(FUNCTIONS[case.op][0])}")
    lines.append(f"result = {call(function)}")
    if tensor:
        lines.append(f'print(flatten("{function}", result)["{tensor}"])')
        lines.append(f'print(case.expected()["{tensor}"])')
    return "\n".join(lines)


# ---- case by case -------------------------------------------------------------------------------


def case_checks() -> Iterator[Check]:
    for op, named in CASES.items():
        for name, (why, _) in named.items():
            case = case_of(op, name)

            def run(implementation: Implementation, grade: Grade, case: Case = case) -> None:
                grade_case(implementation, case, grade)

            yield Check(f"{op}/{name}", "ops", op, why, run)


# ---- two calls at once --------------------------------------------------------------------------


def two_calls_checks() -> Iterator[Check]:
    """The model calls an op in every layer before it calls the first backward."""
    for op in FUNCTIONS:
        if "cache" not in ARGUMENTS[FUNCTIONS[op][-1]]:
            continue

        def run(implementation: Implementation, grade: Grade, op: str = op) -> None:
            first, second = Case(op, seed=1), Case(op, seed=2)
            forward, *backwards = FUNCTIONS[op]
            a, b = (implementation.arguments(c.inputs()) for c in (first, second))
            result_a = implementation.call(forward, *(a[n] for n in ARGUMENTS[forward]))
            result_b = implementation.call(forward, *(b[n] for n in ARGUMENTS[forward]))
            for case, inputs, result, which in (
                (second, b, result_b, "second"),
                (first, a, result_a, "first"),
            ):
                found = numbers(implementation, forward, result)
                values = {n: a for n, a in found.items() if not n.startswith("cache.")}
                function_of = dict.fromkeys(values, forward)
                for function in backwards:
                    try:
                        given_ = inputs | {"cache": result[1]}
                        back = implementation.call(
                            function, *(given_[n] for n in ARGUMENTS[function])
                        )
                    except NotOffered as error:
                        grade.not_implemented.append(str(error))
                        continue
                    values |= numbers(implementation, function, back)
                    function_of |= {name: function for name in values if name not in function_of}
                want = case.expected()
                for name, value in values.items():
                    grade.compare(
                        function_of[name],
                        name,
                        value,
                        want[name],
                        TOLERANCE["float64"],
                        axes(function_of[name], name),
                        case.dimensions(),
                        where=f" of the {which} of two calls",
                    )

        yield Check(
            f"{op}/two-calls",
            "ops",
            op,
            "two forwards, then their backwards: nothing is shared between calls",
            run,
        )


# ---- derivatives --------------------------------------------------------------------------------

#: op -> argument -> the function and tensor that hold its gradient
GRADIENTS: dict[str, dict[str, tuple[str, str]]] = {
    "embed": {
        "wte": ("embed_backward_params", "dwte"),
        "wpe": ("embed_backward_params", "dwpe"),
    },
    "layernorm": {
        "x": ("layernorm_backward", "dx"),
        "gain": ("layernorm_backward_params", "dgain"),
        "bias": ("layernorm_backward_params", "dbias"),
    },
    "linear": {
        "x": ("linear_backward", "dx"),
        "weight": ("linear_backward_params", "dweight"),
        "bias": ("linear_backward_params", "dbias"),
    },
    "gelu": {"x": ("gelu_backward", "dx")},
    "attention": {
        "q": ("attention_backward", "dq"),
        "k": ("attention_backward", "dk"),
        "v": ("attention_backward", "dv"),
        "prefix_k": ("attention_backward", "dprefix_k"),
        "prefix_v": ("attention_backward", "dprefix_v"),
    },
    "cross_entropy": {"logits": ("cross_entropy_backward", "dlogits")},
}


def derivative_checks() -> Iterator[Check]:
    for op in FUNCTIONS:

        def run(implementation: Implementation, grade: Grade, op: str = op) -> None:
            case = Case(op, seed=3)
            found = tensors(implementation, case, grade)
            forward = FUNCTIONS[op][0]
            upstream = {"embed": "dx", "attention": "dz", "cross_entropy": ""}.get(op, "dout")
            for argument, (function, tensor) in GRADIENTS[op].items():
                stems = [n for n in found if n.split("[")[0] == tensor]
                if not stems:
                    continue

                def scalar(moved: dict[str, Any]) -> float:
                    own = implementation.arguments(moved)
                    result = implementation.call(forward, *(own[a] for a in ARGUMENTS[forward]))
                    flat = flatten(forward, result)
                    out = implementation.asnumpy(next(iter(flat.values())), forward)
                    return float((out * moved[upstream]).sum()) if upstream else float(out)

                numeric, analytic = _directional(case, argument, [found[n] for n in stems], scalar)
                error = abs(numeric - analytic) / max(abs(analytic), abs(numeric), 1e-300)
                name = f"{tensor} along a direction"
                grade.errors[name] = error
                if not error < 1e-6:
                    grade.findings.append(
                        Finding(
                            function,
                            tensor,
                            "derivative",
                            f"{tensor} says that the output changes by {analytic:.6g} along a "
                            f"random direction of {argument}, and {forward} itself changes by "
                            f"{numeric:.6g}",
                            error,
                            1e-6,
                            reproducer=reproducer(implementation, case, function, stems[0]),
                        )
                    )

        yield Check(
            f"{op}/derivative",
            "ops",
            op,
            "the backward is the derivative of this very forward, by central differences",
            run,
        )


def _directional(
    case: Case, argument: str, gradients: list[Array], f: Callable[[dict[str, Any]], float]
) -> tuple[float, float]:
    """The change of f along one random direction of `argument`: measured, and as the gradient has
    it."""
    rng = np.random.default_rng(17)
    base = case.inputs()[argument]
    parts = base if isinstance(base, list) else [base]
    directions = [rng.normal(0, 1, a.shape) for a in parts]
    h = 1e-5

    def at(sign: int) -> float:
        inputs = case.inputs()
        moved = [a + sign * h * d for a, d in zip(parts, directions, strict=True)]
        inputs[argument] = moved if isinstance(base, list) else moved[0]
        return f(inputs)

    numeric = (at(1) - at(-1)) / (2 * h)
    analytic = sum(
        float((g * d).sum()) if g.shape == d.shape else math.nan
        for g, d in zip(gradients, directions, strict=True)
    )
    return numeric, analytic


# ---- drawn shapes -------------------------------------------------------------------------------

_seeds = st.integers(0, 2**16)
#: no draw grades mere rounding: what nearly cancels (a layernorm over two columns) or underflows (a
#: softmax far out, which may be all of a small tensor) differs between implementations that are
#: right
DRAWN_SIZES: dict[str, st.SearchStrategy[dict[str, Any]]] = {
    "embed": st.fixed_dictionaries(
        {
            "N": st.integers(1, 12),
            "C": st.integers(1, 6),
            "V": st.integers(1, 9),
            "n_positions": st.integers(1, 9),
        }
    ),
    "layernorm": st.fixed_dictionaries(
        {
            "N": st.integers(1, 6),
            "C": st.integers(3, 16),
            "centre": st.sampled_from([0.0, 1.0, -20.0]),
            "spread": st.sampled_from([1e-3, 1.0, 1e3]),
            "eps": st.sampled_from([1e-5, 1e-2]),
        }
    ),
    "linear": st.fixed_dictionaries(
        {
            "N": st.integers(1, 6),
            "n_in": st.integers(1, 8),
            "n_out": st.integers(1, 8),
            "bias": st.booleans(),
        }
    ),
    "gelu": st.fixed_dictionaries(
        {
            "N": st.integers(1, 6),
            "F": st.integers(1, 12),
            "spread": st.sampled_from([0.01, 1.0, 10.0]),
        }
    ),
    "attention": st.lists(
        st.tuples(st.integers(1, 8), st.integers(0, 6)), min_size=1, max_size=4
    ).flatmap(
        lambda pairs: st.fixed_dictionaries(
            {
                "lengths": st.just(tuple(T for T, _ in pairs)),
                "slots": st.just(tuple(P for _, P in pairs)),
                "heads": st.integers(1, 4),
                "head_size": st.integers(1, 9),
                "spread": st.sampled_from([0.1, 1.0, 2.0]),
            }
        )
    ),
    "cross_entropy": st.fixed_dictionaries(
        {
            "M": st.integers(1, 8),
            "V": st.integers(2, 16),
            "spread": st.sampled_from([0.1, 1.0, 2.0]),
            "weights": st.sampled_from(["random", "mean"]),
        }
    ),
}
_layouts = st.sampled_from(["contiguous", "strided", "fortran"])
DRAWS = 40


def drawn_checks() -> Iterator[Check]:
    for op in FUNCTIONS:

        def run(implementation: Implementation, grade: Grade, op: str = op) -> None:
            def once(given: dict[str, Any], into: Grade) -> None:
                grade_case(implementation, Case(op, **given), into)

            strategies = {"sizes": DRAWN_SIZES[op], "seed": _seeds, "layout": _layouts}
            draw_until_one_fails(implementation, grade, strategies, DRAWS, once)

        yield Check(
            f"{op}/drawn",
            "ops",
            op,
            f"{DRAWS} shapes, seeds and layouts that hypothesis draws, and the smallest that fails",
            run,
        )
