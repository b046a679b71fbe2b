"""The checks of the ops level that compare with the reference, each op's forward and backward: case
by case, two calls at once, shapes that hypothesis draws; and derivatives. What needs no reference
stands in `by_hand` and `laws`."""

import contextlib
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
    owner,
    reference_cache,
)
from minprefix.conformance.check import Check, Finding, Grade
from minprefix.conformance.contract import ARGUMENTS, FUNCTIONS, TENSORS
from minprefix.conformance.drawn import draw_until_one_fails
from minprefix.conformance.implementation import Broken, Implementation, NotOffered
from minprefix.ops.contract import Array

#: what a cache holds of the model's own: kept even where the cache is consumed
PARAMETERS = ("gain", "prefix_k", "prefix_v", "offsets", "targets", "weights")

#: arguments that are one array a sequence
LISTS = ("prefix_k", "prefix_v")


# ---- a case -------------------------------------------------------------------------------------


def tensors(
    implementation: Implementation, case: Case, grade: Grade | None = None
) -> dict[str, Array]:
    """All that the implementation gives for a case, by name: each function called once, in the
    model's order. With a `grade`, whatever goes wrong is noted there and the rest goes on."""
    found: dict[str, Array] = {}
    forward, cache, have_cache = FUNCTIONS[case.op][0], None, False
    of_forward: dict[str, Any] = {}  # the arguments that the forward was given
    for function in FUNCTIONS[case.op]:
        takes_cache = "cache" in ARGUMENTS[function]
        try:
            if takes_cache and not have_cache:  # the forward is missing: lend it the reference's
                lent = reference_cache(case.op, case.inputs())
                cache, have_cache = type(lent)(*map(implementation.own, lent)), True
            # fresh ones: what an earlier function consumed is no input any more
            own = implementation.arguments(case.inputs()) | {"cache": cache}
            if function == forward:
                of_forward = own
            held = {} if not takes_cache else _fields(implementation, cache)
            kept = {a: own[a] for a in ARGUMENTS[function] if a not in consumed(function)}
            kept.pop("cache", None)
            # the model's own arrays stay its own, whatever a cache may lose
            lasting = {a: of_forward[a] for a in PARAMETERS if takes_cache and a in of_forward}
            was = [] if grade is None else [_flat(implementation, a) for a in (kept, lasting)]
            result = implementation.call(function, *(own[a] for a in ARGUMENTS[function]))
            if grade is not None:
                for before, arrays in zip(was, (kept, lasting), strict=True):
                    _check_kept(implementation, case, function, arrays, before, grade)
                if takes_cache and "cache" not in consumed(function):
                    held = {name: a for name, a in held.items() if name not in lasting}
                    _check_cache(implementation, case, function, held, cache, grade)
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
            if takes_cache or function == forward:
                break  # what follows needs what this did not give
    return found


def _check_kept(
    implementation: Implementation,
    case: Case,
    function: str,
    kept: dict[str, Any],
    before: dict[str, Array],
    grade: Grade,
) -> None:
    """`kept`: arguments that were to be left alone, by name; `before`: what they were when they
    were handed over, in the implementation's own kind and precision."""
    after = _flat(implementation, kept)
    for which, a in before.items():
        if which not in after or not _equal(a, after[which]):
            _modified(implementation, case, function, which, grade)


def _flat(implementation: Implementation, arrays: dict[str, Any]) -> dict[str, Array]:
    """Copies in NumPy, each of a list by itself. What asnumpy does not take back, being for
    results, is left out."""
    found: dict[str, Array] = {}
    for name, a in arrays.items():
        parts = {f"{name}[{j}]": each for j, each in enumerate(a)} if name in LISTS else {name: a}
        for which, each in parts.items():
            with contextlib.suppress(Broken):
                found[which] = np.array(implementation.asnumpy(each, which))
    return found


def _check_cache(
    implementation: Implementation,
    case: Case,
    function: str,
    before: dict[str, Array],
    cache: Any,
    grade: Grade,
) -> None:
    after = _fields(implementation, cache)
    for name, a in before.items():
        if name not in after or not _equal(a, after[name]):
            _modified(implementation, case, function, f"cache.{name}", grade)


def _fields(implementation: Implementation, cache: Any) -> dict[str, Array]:
    """Copies of the arrays of a named tuple or a dictionary, by name."""
    fields = cache._asdict() if hasattr(cache, "_asdict") else cache
    found = {}
    for name, a in fields.items() if isinstance(fields, dict) else ():
        try:
            found[str(name)] = np.array(implementation.asnumpy(a, str(name)))
        except Broken:  # no array: its own business
            continue
    return found


def _equal(a: Array, b: Array) -> bool:
    return np.array_equal(a, b, equal_nan=a.dtype.kind == "f")


def _modified(
    implementation: Implementation, case: Case, function: str, which: str, grade: Grade
) -> None:
    said = f"{function} wrote into {which}, which the contract says is kept: work on a copy"
    reproduce = reproducer(implementation, case, function)
    grade.findings.append(Finding(function, which, "modified", said, reproducer=reproduce))


def grade_case(implementation: Implementation, case: Case, grade: Grade) -> None:
    """Every tensor of the op, compared once."""
    want, boundaries = case.expected(), case.inputs().get("offsets")
    found = tensors(implementation, case, grade)
    offsets = None if boundaries is None else [int(o) for o in boundaries]
    for function in FUNCTIONS[case.op]:
        of_function = [n for n in want if owner(case.op, n) == function]
        got = [n for n in found if owner(case.op, n) == function]
        for name in of_function:
            if name not in found:
                stem = name.split("[")[0]
                if any(g.split("[")[0] == stem for g in got) or (got and "cache." not in name):
                    _miscounted(implementation, case, function, name, "missing", grade)
                continue
            grade.compare(
                function,
                name,
                found[name],
                want[name],
                case.tolerance(),
                axes(function, name),
                case.dimensions(),
                {n: a for n, a in want.items() if not n.startswith("cache.")},
                offsets,
                _dtype(implementation, case) if _has_dtype(want[name]) else None,
                reproducer(implementation, case, function, name),
                because=_because(implementation, case),
            )
        for name in got:
            if name not in want:
                _miscounted(implementation, case, function, name, "one too many", grade)


def _dtype(implementation: Implementation, case: Case) -> str:
    """What results should have: the case's, or what asarray makes of it if that is wider."""
    return str(np.promote_types(case.dtype, _handed_over(implementation, case)))


def _because(implementation: Implementation, case: Case) -> str:
    """Why they should, and who took it away where that is known."""
    given = _handed_over(implementation, case)
    lost = given != _dtype(implementation, case)
    return "as the inputs are" + (f", of which asarray makes {given}" if lost else "")


def _handed_over(implementation: Implementation, case: Case) -> str:
    """The dtype of what asarray makes of the case's arrays; the case's own where nobody knows."""
    taken = _flat(implementation, {"a": implementation.own(np.zeros(1, case.dtype))})
    known = "a" in taken and taken["a"].dtype.kind == "f"
    return str(taken["a"].dtype) if known else case.dtype


def _has_dtype(a: Array) -> bool:
    """A loss may be a Python number, and whole numbers of any width will do."""
    return a.dtype.kind == "f" and a.ndim > 0


def _miscounted(
    implementation: Implementation, case: Case, function: str, name: str, how: str, grade: Grade
) -> None:
    said = f"{name} is {how}: expected one for each sequence"
    reproduce = reproducer(implementation, case, function)
    grade.findings.append(Finding(function, name, "missing", said, reproducer=reproduce))


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
    forward = FUNCTIONS[case.op][0]
    if "cache" in ARGUMENTS[function] and implementation.has(forward):
        lines.append(f"_, cache = {call(forward)}")
    elif "cache" in ARGUMENTS[function]:
        lines[0] += ", reference_cache"
        lines.append(f"cache = reference_cache({case.op!r}, case.inputs())")
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

        def run(implementation: Implementation, grade: Grade, op: str = op) -> None:
            cases = {"second": Case(op, seed=2), "first": Case(op, seed=1)}
            inputs = {w: implementation.arguments(c.inputs()) for w, c in cases.items()}
            for function in FUNCTIONS[op]:
                try:
                    raw = _in_turn(implementation, op, function, inputs)
                except NotOffered as error:
                    grade.not_implemented.append(str(error))
                    continue
                for which, result in raw.items():
                    want = cases[which].expected()
                    for name, value in numbers(implementation, function, result).items():
                        if name.startswith("cache.") or name not in want:
                            continue
                        grade.compare(
                            function,
                            name,
                            value,
                            want[name],
                            cases[which].tolerance(),
                            axes(function, name),
                            cases[which].dimensions(),
                            where=f" of the {which} of two calls",
                        )

        yield Check(
            f"{op}/two-calls",
            "ops",
            op,
            "each function twice in a row: nothing is shared between calls",
            run,
        )


def _in_turn(
    implementation: Implementation, op: str, function: str, inputs: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    """The function on each of the inputs, which keep the cache that it gives: the forwards first
    to last, the rest last to first, as the model does."""
    raw = {}
    order = list(inputs)[::-1] if function == op else list(inputs)
    for which in order:
        own = inputs[which]
        if "cache" in ARGUMENTS[function] and "cache" not in own:
            raise NotOffered(op)
        raw[which] = implementation.call(function, *(own[a] for a in ARGUMENTS[function]))
        if any(name.startswith("cache") for name in TENSORS[function]):
            flatten(function, raw[which])  # raises if there is no cache
            own["cache"] = raw[which][1]
    return raw


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
                grade.expect(
                    f"{tensor} along a direction",
                    Finding(
                        function,
                        tensor,
                        "derivative",
                        f"{tensor} says that the output changes by {analytic:.6g} along a random "
                        f"direction of {argument}, and {forward} itself changes by {numeric:.6g}",
                        error,
                        1e-6,
                        reproducer=reproducer(implementation, case, function, stems[0]),
                    ),
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
            def once(mine: Implementation, given: dict[str, Any], into: Grade) -> None:
                grade_case(mine, Case(op, **given), into)

            strategies = {"sizes": DRAWN_SIZES[op], "seed": _seeds, "layout": _layouts}
            draw_until_one_fails(implementation, grade, strategies, DRAWS, once)

        yield Check(
            f"{op}/drawn",
            "ops",
            op,
            f"{DRAWS} shapes, seeds and layouts that hypothesis draws, and the smallest that fails",
            run,
        )
