"""The checks of the ops level: each op's forward and backward, case by case; what is worked out on
paper; derivatives; the laws; shapes that hypothesis draws."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from hypothesis import strategies as st

from minprefix.conformance.cases import (
    Case,
    axes,
    consumed,
    flatten,
    numbers,
    reference_cache,
)
from minprefix.conformance.check import Check, Finding, Grade
from minprefix.conformance.contract import ARGUMENTS, FUNCTIONS, OPTIONAL, TENSORS
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


# ---- the table of cases -------------------------------------------------------------------------

#: op -> name -> why, and what the case is
CASES: dict[str, dict[str, tuple[str, dict[str, Any]]]] = {
    "embed": {
        "usual": ("the sum of two rows, and where their gradients go", {}),
        "repeated-tokens": (
            "the gradient of a token that occurs often is the sum over all its places",
            {"sizes": {"N": 9, "V": 2, "n_positions": 3}},
        ),
        "one-token": ("N = 1", {"sizes": {"N": 1}}),
        "float32": ("single precision stays single", {"dtype": "float32"}),
        "strided": ("weights that do not lie in one piece", {"layout": "strided"}),
    },
    "layernorm": {
        "usual": ("mean, variance, gain and bias, and all three ways back", {}),
        "far-from-zero": (
            "a variance computed as E[x^2] - E[x]^2 has lost its digits here",
            {"sizes": {"centre": 1e4}},
        ),
        "tiny-variance": (
            "eps stands inside the root, and decides where the variance is small",
            {"sizes": {"spread": 1e-4, "centre": 0.3}},
        ),
        "large-eps": ("eps is the argument, not 1e-5", {"sizes": {"eps": 0.1}}),
        "one-row": ("N = 1: nothing is normalised over the rows", {"sizes": {"N": 1}}),
        "one-column": ("C = 1: the variance is 0", {"sizes": {"C": 1}}),
        "float32": ("single precision stays single", {"dtype": "float32"}),
        "strided": ("x that does not lie in one piece", {"layout": "strided"}),
    },
    "linear": {
        "usual": ("x W + b, and its two halves of a backward", {}),
        "square": (
            "in = out: a transposed weight has the right shape",
            {"sizes": {"n_in": 5, "n_out": 5}},
        ),
        "no-bias": ("bias is None, as in the head", {"sizes": {"bias": False}}),
        "one-row": ("N = 1, as in decoding", {"sizes": {"N": 1}}),
        "float32": ("single precision stays single", {"dtype": "float32"}),
        "fortran": ("a transposed view of a weight, as the tied head is", {"layout": "fortran"}),
    },
    "gelu": {
        "usual": ("the tanh form and its derivative", {}),
        "near-zero": (
            "the erf form and the tanh form are closest here",
            {"sizes": {"spread": 0.1}},
        ),
        "far-out": ("nothing overflows, the tails are 0 and x", {"sizes": {"spread": 1e3}}),
        "float32": ("single precision stays single", {"dtype": "float32"}),
        "strided": ("x that does not lie in one piece", {"layout": "strided"}),
    },
    "attention": {
        "one-sequence": (
            "one sequence with a prefix",
            {"sizes": {"lengths": (5,), "slots": (3,)}},
        ),
        "usual": ("two sequences with a prefix each", {}),
        "no-prefix": ("P = 0 is plain attention", {"sizes": {"slots": (0, 0)}}),
        "one-token": (
            "T = 1: it sees the prefix and itself",
            {"sizes": {"lengths": (1, 1, 1)} | {"slots": (3, 1, 0)}},
        ),
        "one-head": ("NH = 1", {"sizes": {"heads": 1}}),
        "square": (
            "T = P = hs: nothing has a shape of its own",
            {"sizes": {"lengths": (4, 4), "slots": (4, 4), "head_size": 4, "heads": 4}},
        ),
        "unequal-lengths": (
            "sequences end where offsets say",
            {"sizes": {"lengths": (1, 6, 3), "slots": (2, 2, 2)}},
        ),
        "unequal-prefixes": (
            "each sequence sees its own prefix, of its own length",
            {"sizes": {"lengths": (4, 2, 3), "slots": (5, 0, 1)}},
        ),
        "long-prefix": (
            "a prefix longer than the text",
            {"sizes": {"lengths": (2, 3), "slots": (17, 17)}},
        ),
        "large-scores": (
            "scores around 1e4: exp overflows unless the largest is taken off",
            {"sizes": {"common": 1e4}},
        ),
        "large-negative-scores": (
            "scores around -1e4: a mask of -1e4 hides nothing here",
            {"sizes": {"common": -1e4}},
        ),
        "sharp": ("queries of size 30: the pattern is nearly one-hot", {"sizes": {"spread": 30.0}}),
        "uneven-scores": (
            "scores of one query around 1e4, of the next around 0: a maximum taken over all rows "
            "leaves 0/0",
            {"sizes": {"common": 1e4, "uneven": True}},
        ),
        "float32": ("single precision stays single", {"dtype": "float32"}),
        "strided": (
            "q, k and v are views of one array, as the model gives them",
            {"layout": "strided"},
        ),
    },
    "cross_entropy": {
        "usual": ("a weighted sum of -log softmax, and its gradient", {}),
        "mean": ("weights 1/M: the mean", {"sizes": {"weights": "mean"}}),
        "one-target": ("M = 1", {"sizes": {"M": 1}}),
        "large-logits": (
            "logits around 1e4: exp overflows unless the largest is taken off",
            {"sizes": {"common": 1e4}},
        ),
        "spread-logits": (
            "logits of size 1e4: a probability that underflows keeps a finite loss",
            {"sizes": {"spread": 1e4}},
        ),
        "float32": ("single precision stays single", {"dtype": "float32"}),
        "strided": ("logits that do not lie in one piece", {"layout": "strided"}),
    },
}


def case_of(op: str, name: str) -> Case:
    """The case `name` of the table."""
    return Case(op, **CASES[op][name][1])


def _case_checks() -> Iterator[Check]:
    for op, named in CASES.items():
        for name, (why, _) in named.items():
            case = case_of(op, name)

            def run(implementation: Implementation, grade: Grade, case: Case = case) -> None:
                grade_case(implementation, case, grade)

            yield Check(f"{op}/{name}", "ops", op, why, run)


# ---- worked out on paper ------------------------------------------------------------------------


def _by_hand(op: str) -> tuple[list[tuple[str, tuple[Any, ...]]], dict[str, Any]]:
    """Calls (an argument may be "cache") and what they give, small enough to do with a pencil."""

    def f(*rows: Any) -> Array:
        return np.array(rows, dtype=np.float64)

    if op == "embed":
        tokens, positions = np.array([1, 0, 1]), np.array([0, 1, 2])
        wte, wpe = f([1, 2], [3, 4]), f([10, 20], [30, 40], [50, 60])
        return [
            ("embed", (tokens, positions, wte, wpe)),
            ("embed_backward_params", (f([1, 2], [3, 4], [5, 6]), tokens, positions, wte, wpe)),
        ], {
            "x": f([13, 24], [31, 42], [53, 64]),
            "dwte": f([3, 4], [6, 8]),  # token 1 stands at 0 and 2
            "dwpe": f([1, 2], [3, 4], [5, 6]),
        }
    if op == "layernorm":
        # mean 2, variance 1, and with eps = 3 a deviation of sqrt(1 + 3) = 2
        return [
            ("layernorm", (f([1, 3]), f(2, 2), f(0, 1), 3.0)),
            ("layernorm_backward_params", (f([1, 0]), "cache")),
            ("layernorm_backward", (f([1, 0]), "cache")),
        ], {
            "out": f([-1, 2]),
            "cache.xhat": f([-0.5, 0.5]),
            "cache.rstd": f([0.5]),
            "dgain": f(-0.5, 0),
            "dbias": f(1, 0),
            "dx": f([0.375, -0.375]),  # 2 * d/dx0 of c / sqrt(c^2 + 3), c = (x0 - x1) / 2 = -1
        }
    if op == "linear":
        return [
            ("linear", (f([1, 2]), f([1, 2, 3], [4, 5, 6]), f(10, 20, 30))),
            ("linear_backward_params", (f([1, 0, 2]), f([1, 2]))),
            ("linear_backward", (f([1, 0, 2]), f([1, 2, 3], [4, 5, 6]))),
        ], {
            "out": f([19, 32, 45]),
            "dweight": f([1, 0, 2], [2, 0, 4]),
            "dbias": f(1, 0, 2),
            "dx": f([7, 16]),
        }
    if op == "gelu":
        u = math.sqrt(2 / math.pi) * 1.044715  # at x = 1
        slope = 0.5 * (1 + math.tanh(u))
        slope += 0.5 / math.cosh(u) ** 2 * math.sqrt(2 / math.pi) * 1.134145
        return [("gelu", (f([0, 1, -1]),)), ("gelu_backward", (f([2, 1, 1]), "cache"))], {
            "out": f([0, 0.8411919906082768, -0.15880800939172324]),
            "dx": f([1, slope, 1 - slope]),  # the derivative at -x is 1 minus that at x
        }
    if op == "attention":
        # hs = 4, so the scale is 1/2. One token, q = (2, 0, 0, 0): its score with a key is that
        # key's first number. Slot ln 3, token 0: the pattern is 3/4, 1/4.
        ln3 = math.log(3)
        q, k, v = f([[2, 0, 0, 0]]), f([[0, 0, 0, 0]]), f([[0, 4, 0, 0]])
        return [
            (
                "attention",
                (q, k, v, [f([[ln3, 0, 0, 0]])], [f([[8, 0, 0, 0]])], np.array([0, 1])),
            ),
            ("attention_backward", (f([[1, 0, 0, 0]]), "cache")),
        ], {
            "z": f([[6, 1, 0, 0]]),
            "cache.pattern[0]": f([[0.75, 0.25]]),
            # dpattern = (8, 0), its mean under the pattern 6, so dscores = (3/4 * 2, 1/4 * -6)
            "dq": f([[0.75 * ln3, 0, 0, 0]]),
            "dk": f([[-1.5, 0, 0, 0]]),
            "dv": f([[0.25, 0, 0, 0]]),
            "dprefix_k[0]": f([[1.5, 0, 0, 0]]),
            "dprefix_v[0]": f([[0.75, 0, 0, 0]]),
        }
    return [
        ("cross_entropy", (f([0, math.log(3)]), np.array([0]), f(2))),
        ("cross_entropy_backward", ("cache",)),
    ], {
        "loss": np.array(2 * math.log(4)),  # the probabilities are 1/4 and 3/4
        "cache.probs": f([0.25, 0.75]),
        "dlogits": f([-1.5, 1.5]),
    }


def _by_hand_checks() -> Iterator[Check]:
    for op in FUNCTIONS:

        def run(implementation: Implementation, grade: Grade, op: str = op) -> None:
            calls, want = _by_hand(op)
            cache = None
            for function, arguments in calls:
                if cache is None and any(_is_cache(a) for a in arguments):
                    grade.not_implemented.append(function)
                    continue
                own = [cache if _is_cache(a) else implementation.own(a) for a in arguments]
                try:
                    result = implementation.call(function, *own)
                except NotOffered as error:
                    grade.not_implemented.append(str(error))
                    continue
                if function == op and isinstance(result, tuple) and len(result) == 2:
                    cache = result[1]
                for name, got in numbers(implementation, function, result).items():
                    if name in want:
                        grade.compare(function, name, got, want[name], 1e-12, axes(function, name))

        yield Check(f"{op}/by-hand", "ops", op, "numbers that one can work out with a pencil", run)


def _is_cache(a: Any) -> bool:
    return isinstance(a, str) and a == "cache"


# ---- two calls at once --------------------------------------------------------------------------


def _two_calls_checks() -> Iterator[Check]:
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


def _derivative_checks() -> Iterator[Check]:
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


# ---- the laws -----------------------------------------------------------------------------------


def _law(grade: Grade, function: str, tensor: str, law: str, off: Array, scale: float) -> None:
    """`off` should be 0; `scale`: of the numbers that cancel."""
    error = float(np.abs(off).max(initial=0.0)) / max(scale, 1e-300)
    error = error if math.isfinite(error) else math.inf
    name = f"{tensor}: {law}"
    grade.errors[name] = error
    if error > 1e-10:
        grade.findings.append(
            Finding(
                function,
                tensor,
                "law",
                f"{tensor} breaks a law: {law}, and it is off by {error:.2g} of its largest value "
                "(laws need no oracle, and cannot see a missing scale or a flipped sign)",
                error,
                1e-10,
            )
        )


def _sequences(case: Case) -> list[slice]:
    offsets = case.inputs()["offsets"]
    return [slice(offsets[b], offsets[b + 1]) for b in range(len(offsets) - 1)]


LAW_SIZES = {"lengths": (4, 1, 3), "slots": (3, 2, 0)}


def _law_keys(implementation: Implementation, grade: Grade) -> None:
    case = Case("attention", LAW_SIZES, seed=4)
    t = tensors(implementation, case)
    for b, rows in enumerate(_sequences(case)):
        both = [t["dk"][rows].swapaxes(0, 1), t[f"dprefix_k[{b}]"]]
        _law(
            grade,
            "attention_backward",
            f"dk and dprefix_k[{b}]",
            "the sum of dk over prefix and tokens is 0",
            both[0].sum(axis=1) + both[1].sum(axis=1),
            max(np.abs(a).max(initial=0.0) for a in both) or 1.0,
        )


def _law_values(implementation: Implementation, grade: Grade) -> None:
    case = Case("attention", LAW_SIZES, seed=4)
    t, dz = tensors(implementation, case), case.inputs()["dz"]
    for b, rows in enumerate(_sequences(case)):
        total = t["dv"][rows].sum(axis=0) + t[f"dprefix_v[{b}]"].sum(axis=1)
        _law(
            grade,
            "attention_backward",
            f"dv and dprefix_v[{b}]",
            "the sum of dv over prefix and tokens is the sum of dz",
            total - dz[rows].sum(axis=0),
            float(np.abs(dz).max()),
        )


def _law_layernorm(implementation: Implementation, grade: Grade) -> None:
    dx = tensors(implementation, Case("layernorm", seed=4))["dx"]
    law = "each row of dx sums to 0"
    _law(grade, "layernorm_backward", "dx", law, dx.sum(axis=-1), float(np.abs(dx).max()))


def _law_cross_entropy(implementation: Implementation, grade: Grade) -> None:
    d = tensors(implementation, Case("cross_entropy", seed=4))["dlogits"]
    law = "each row of dlogits sums to 0"
    _law(grade, "cross_entropy_backward", "dlogits", law, d.sum(axis=-1), float(np.abs(d).max()))


def _attend(implementation: Implementation, i: dict[str, Any]) -> dict[str, Array]:
    """Forward and backward on given inputs."""
    own = implementation.arguments(i)
    result = implementation.call("attention", *(own[a] for a in ARGUMENTS["attention"]))
    z = numbers(implementation, "attention", result)["z"]
    back = implementation.call("attention_backward", own["dz"], result[1])
    return {"z": z} | numbers(implementation, "attention_backward", back)


def _law_permutation(implementation: Implementation, grade: Grade) -> None:
    case = Case("attention", {"lengths": (4, 2), "slots": (5, 5)}, seed=4)
    order = np.array([3, 0, 4, 1, 2])
    plain, moved = case.inputs(), case.inputs()
    for name in ("prefix_k", "prefix_v"):
        moved[name] = [a[:, order] for a in moved[name]]
    a, b = _attend(implementation, plain), _attend(implementation, moved)
    for name, want in a.items():
        if name.startswith("dprefix"):
            want = want[:, order]
        function = "attention" if name == "z" else "attention_backward"
        law = "permuting the slots permutes their gradients and changes nothing else"
        _law(grade, function, name, law, b[name] - want, float(np.abs(want).max()))


def _law_prompt(implementation: Implementation, grade: Grade) -> None:
    """A prefix that holds the keys and values of the first 3 tokens, against those tokens."""
    whole = Case("attention", {"lengths": (7,), "slots": (2,)}, seed=4).inputs()
    tail = dict(whole)
    for name in ("q", "k", "v", "dz"):
        tail[name] = whole[name][3:]
    whole["dz"] = np.concatenate([np.zeros_like(whole["dz"][:3]), whole["dz"][3:]])
    for name, tokens in (("prefix_k", "k"), ("prefix_v", "v")):
        head = whole[tokens][:3].swapaxes(0, 1)
        tail[name] = [np.concatenate([whole[name][0], head], axis=1)]
    tail["offsets"] = np.array([0, 4])
    a, b = _attend(implementation, whole), _attend(implementation, tail)
    law = "a prefix of the keys and values of tokens equals those tokens"
    _law(grade, "attention", "z", law, b["z"] - a["z"][3:], float(np.abs(a["z"]).max()))
    for short, prefix in (("dk", "dprefix_k[0]"), ("dv", "dprefix_v[0]")):
        want = np.concatenate([a[prefix], a[short].swapaxes(0, 1)], axis=1)
        got = np.concatenate([b[prefix], b[short].swapaxes(0, 1)], axis=1)
        if got.shape == want.shape:
            _law(grade, "attention_backward", prefix, law, got - want, float(np.abs(want).max()))


def _law_batch(implementation: Implementation, grade: Grade) -> None:
    case = Case("attention", {"lengths": (3, 5, 2), "slots": (2, 4, 1)}, seed=4)
    together, i = _attend(implementation, case.inputs()), case.inputs()
    for b, rows in enumerate(_sequences(case)):
        alone = {n: i[n][rows] for n in ("q", "k", "v", "dz")}
        alone |= {n: [i[n][b]] for n in ("prefix_k", "prefix_v")}
        alone["offsets"] = np.array([0, rows.stop - rows.start])
        single = _attend(implementation, alone)
        for name, want in single.items():
            got = together[name.replace("[0]", f"[{b}]")]
            got = got if "[" in name else got[rows]
            function = "attention" if name == "z" else "attention_backward"
            law = f"sequence {b} of a batch is what it is alone"
            if got.shape == want.shape:
                scale = float(np.abs(want).max(initial=0.0)) or 1.0
                _law(grade, function, name, law, got - want, scale)


LAWS: dict[str, tuple[str, str, Callable[[Implementation, Grade], None]]] = {
    "law-keys": ("attention", "law 1: the sum of dk over prefix and tokens is 0", _law_keys),
    "law-values": ("attention", "law 2: the sum of dv is the sum of dz", _law_values),
    "law-rows": ("layernorm", "law 3: each row of dx sums to 0", _law_layernorm),
    "law-logits": (
        "cross_entropy",
        "law 4: each row of dlogits sums to 0",
        _law_cross_entropy,
    ),
    "law-permutation": (
        "attention",
        "law 5: permuting the slots permutes their gradients",
        _law_permutation,
    ),
    "law-prompt": (
        "attention",
        "law 7: a prefix of the keys and values of tokens equals those tokens",
        _law_prompt,
    ),
    "law-batch": ("attention", "law 8: a sequence of a batch is what it is alone", _law_batch),
}


def _law_checks() -> Iterator[Check]:
    for name, (op, why, run) in LAWS.items():
        short = name.removeprefix("law-")
        yield Check(f"{op}/law-{short}", "ops", op, why, run)


# ---- drawn shapes -------------------------------------------------------------------------------

_seeds = st.integers(0, 2**16)
_sizes: dict[str, st.SearchStrategy[dict[str, Any]]] = {
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
            "C": st.integers(2, 16),
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
                "spread": st.sampled_from([0.1, 1.0, 5.0]),
            }
        )
    ),
    "cross_entropy": st.fixed_dictionaries(
        {
            "M": st.integers(1, 8),
            "V": st.integers(2, 16),
            "spread": st.sampled_from([0.1, 1.0, 20.0]),
            "weights": st.sampled_from(["random", "mean"]),
        }
    ),
}
_layouts = st.sampled_from(["contiguous", "strided", "fortran"])
DRAWS = 40


def _drawn_checks() -> Iterator[Check]:
    for op in FUNCTIONS:

        def run(implementation: Implementation, grade: Grade, op: str = op) -> None:
            def once(given: dict[str, Any], into: Grade) -> None:
                grade_case(implementation, Case(op, **given), into)

            strategies = {"sizes": _sizes[op], "seed": _seeds, "layout": _layouts}
            draw_until_one_fails(implementation, grade, strategies, DRAWS, once)

        yield Check(
            f"{op}/drawn",
            "ops",
            op,
            f"{DRAWS} shapes, seeds and layouts that hypothesis draws, and the smallest that fails",
            run,
        )


def op_checks() -> list[Check]:
    """All checks of the level, op by op: cases first, because they say most."""
    made = [
        *_case_checks(),
        *_by_hand_checks(),
        *_two_calls_checks(),
        *_derivative_checks(),
        *_law_checks(),
        *_drawn_checks(),
    ]
    order = list(FUNCTIONS)
    return sorted(made, key=lambda check: order.index(check.op))


REQUIRED = tuple(f for fs in FUNCTIONS.values() for f in fs if f not in OPTIONAL)
