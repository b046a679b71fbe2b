"""The ops level's own tests: what is shared between calls and arrays, what is given up from call to
call, and right implementations of unlike forms."""

import inspect
import types
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from minprefix.conformance import Implementation, load, run, select
from minprefix.conformance.contract import ARGUMENTS, FUNCTIONS
from minprefix.conformance.kept import arrays_in, shared
from minprefix.ops import reference


def mine(**functions: Any) -> Implementation:
    """The reference with some functions exchanged."""
    for name, f in functions.items():
        f.__signature__ = inspect.signature(getattr(reference, name))
    given = {name: getattr(reference, name) for name in ARGUMENTS} | functions
    return Implementation(types.SimpleNamespace(**given), "mine")


def results_of(op: str, **functions: Any) -> list[Any]:
    return run(mine(**functions), [c for c in select([f"{op}/"]) if not c.id.endswith("/drawn")])


def failures(op: str, **functions: Any) -> dict[str, tuple[str, str, str]]:
    """check -> function, tensor and kind of its first finding."""
    first = {r.check: r.findings[0] for r in results_of(op, **functions) if r.findings}
    return {check: (f.function, f.tensor, f.kind) for check, f in first.items()}


# ---- results and what they share ----------------------------------------------------------------


def in_turn(name: str, buffers: int) -> Any:
    """The function, whose result lies in one of so many buffers of its shape, used in turn."""
    rings: dict[Any, list[Any]] = {}

    def call(*given: Any) -> Any:
        result = getattr(reference, name)(*given)
        out = result[0] if isinstance(result, tuple) else result
        ring = rings.setdefault((out.shape, out.dtype), [out.copy() for _ in range(buffers)])
        ring.append(ring.pop(0))
        ring[-1][...] = out
        return (ring[-1], *result[1:]) if isinstance(result, tuple) else ring[-1]

    return call


@pytest.mark.parametrize("buffers", [2, 3, 8])
@pytest.mark.parametrize("function", ["embed", "layernorm", "linear_backward", "attention"])
def test_a_buffer_that_comes_back_after_some_calls_is_found(function: str, buffers: int) -> None:
    op = next(op for op, functions in FUNCTIONS.items() if function in functions)
    tensor = {"embed": "x", "layernorm": "out", "linear_backward": "dx", "attention": "z"}[function]
    found = failures(op, **{function: in_turn(function, buffers)})
    assert found == {f"{op}/many-calls": (function, tensor, "shared")}


def test_an_operation_that_writes_into_the_result_of_another_is_found() -> None:
    last: dict[Any, Any] = {}

    def layernorm(x: Any, gain: Any, bias: Any, eps: float) -> Any:
        out, cache = reference.layernorm(x, gain, bias, eps)
        last[out.shape] = out
        return out, cache

    def gelu(x: Any) -> Any:
        out, cache = reference.gelu(x)
        if out.shape in last:
            last[out.shape][...] = out
        return out, cache

    found = failures("layernorm", layernorm=layernorm, gelu=gelu)
    assert found == {"layernorm/many-calls": ("layernorm", "out", "shared")}


def test_a_cache_that_a_later_forward_overwrites_is_the_forwards_mistake() -> None:
    ring = in_turn("gelu", 4)

    def gelu(x: Any) -> Any:
        out, cache = reference.gelu(x)
        return out, {"x": cache.x, "kept": (ring(x)[0], [cache.tanh])}

    def gelu_backward(dout: Any, cache: Any) -> Any:
        x, (out, (tanh,)) = cache["x"], cache["kept"]
        half = np.divide(out, x, out=0.5 + 0 * x, where=x != 0)  # (1 + tanh) / 2
        slope = reference.SQRT_2_OVER_PI * (1 + 3 * 0.044715 * x * x)
        return dout * (half + 0.5 * x * (1 - tanh * tanh) * slope)

    found = failures("gelu", gelu=gelu, gelu_backward=gelu_backward)
    assert found == {"gelu/many-calls": ("gelu", "cache.kept[0]", "shared")}


def test_a_result_that_is_a_view_of_an_argument_is_found() -> None:
    def linear_backward_params(dout: Any, x: Any) -> Any:
        return x.T @ dout, dout[0] if len(dout) == 1 else dout.sum(axis=0)

    found = results_of("linear", linear_backward_params=linear_backward_params)
    (failed,) = [r for r in found if r.findings]
    assert failed.check == "linear/one-row"
    assert failed.findings[0].sentence == (
        "dbias lies in the memory of dout: what is written into one changes the other. Return a "
        "copy"
    )


def test_results_that_are_one_array_are_found() -> None:
    def attention_backward(dz: Any, cache: Any) -> Any:
        grads = reference.attention_backward(dz, cache)
        total = {id(a): 0 for a in cache.prefix_k}
        for a, d in zip(cache.prefix_k, grads.dprefix_k, strict=True):
            total[id(a)] = total[id(a)] + d
        return grads._replace(dprefix_k=[total[id(a)] for a in cache.prefix_k])

    found = failures("attention", attention_backward=attention_backward)
    assert found.keys() == {"attention/same-prefix"}


def test_arrays_that_do_not_change_may_share_memory() -> None:
    a = np.ones(3)
    a.flags.writeable = False
    assert shared({"x": a, "y": a[:2]}, {"z": a}) == []
    b = np.ones(3)
    assert shared({"x": b[:2], "y": b[2:]}, {"z": b[1:]}) == [("x", "z"), ("y", "z")]


@pytest.mark.parametrize("function", ["linear", "linear_backward"])
def test_a_weight_that_is_kept_by_its_identity_is_found(function: str) -> None:
    kept: dict[int, Any] = {}

    def call(a: Any, weight: Any, *bias: Any) -> Any:
        _, copy = kept.setdefault(id(weight), (weight, weight.copy()))  # keeps the weight alive
        return getattr(reference, function)(a, copy, *bias)

    found = results_of("linear", **{function: call})
    (failed,) = [r for r in found if r.findings]
    assert failed.check == "linear/many-calls"
    assert failed.findings[0].function == function
    assert "parameters are the arrays of an earlier one" in failed.findings[0].sentence


def test_a_result_that_follows_its_parameters_is_found() -> None:
    def linear(x: Any, weight: Any, bias: Any) -> Any:
        return Later(lambda: reference.linear(x, weight, bias))

    @dataclass
    class Later:
        work: Any

    given = Implementation(types.SimpleNamespace(linear=linear, asnumpy=lambda a: a.work()), "mine")
    (result,) = run(given, select(["linear/many-calls"]))
    assert result.findings[0].sentence == (
        "out changes when the parameters of its call do: give a new array"
    )


def test_a_list_of_arguments_that_grows_is_found() -> None:
    def attention_backward(dz: Any, cache: Any) -> Any:
        grads = reference.attention_backward(dz, cache)
        cache.prefix_k.append(cache.prefix_k[0])
        return grads

    found = failures("attention", attention_backward=attention_backward)
    assert found["attention/usual"] == ("attention_backward", "the list prefix_k", "modified")


# ---- caches of every form -----------------------------------------------------------------------


class Slots:
    __slots__ = ("inner",)

    def __init__(self, inner: Any) -> None:
        self.inner = inner


@dataclass
class Kept:
    rows: Any


class Plain:
    def __init__(self, xhat: Any) -> None:
        self.a = xhat


#: form -> how it holds an array, the name of the array in it, and how it is taken out
FORMS: dict[str, tuple[Any, str, Any]] = {
    "tuple": (lambda a: (1, a), "cache[1]", lambda c: c[1]),
    "dictionary": (lambda a: {"all": a}, "cache.all", lambda c: c["all"]),
    "dataclass": (Kept, "cache.rows", lambda c: c.rows),
    "object": (Plain, "cache.a", lambda c: c.a),
    "slots": (Slots, "cache.inner", lambda c: c.inner),
    "nested": (
        lambda a: types.SimpleNamespace(parts=[Kept({"x": (a, None)})]),
        "cache.parts[0].rows.x[0]",
        lambda c: c.parts[0].rows["x"][0],
    ),
}


def layernorm_with(form: str, spoil: bool = False) -> dict[str, Any]:
    """The reference's layernorm with a cache of this form, which holds the input; with `spoil`,
    the first backward writes into it."""
    hold, _, take = FORMS[form]

    def layernorm(x: Any, gain: Any, bias: Any, eps: float) -> Any:
        out, cache = reference.layernorm(x, gain, bias, eps)
        rest = np.concatenate([cache.rstd, 0 * cache.xhat + gain], axis=1)
        return out, hold(np.concatenate([cache.xhat, rest], axis=1))

    def whole(cache: Any) -> Any:
        a = take(cache)
        C = a.shape[1] // 2
        return reference.LayernormCache(a[:, :C], a[:, C : C + 1], a[0, C + 1 :])

    def layernorm_backward_params(dout: Any, cache: Any) -> Any:
        grads = reference.layernorm_backward_params(dout, whole(cache))
        take(cache)[...] *= 2 if spoil else 1
        return grads

    def layernorm_backward(dout: Any, cache: Any) -> Any:
        return reference.layernorm_backward(dout, whole(cache))

    return {
        "layernorm": layernorm,
        "layernorm_backward_params": layernorm_backward_params,
        "layernorm_backward": layernorm_backward,
    }


@pytest.mark.parametrize("form", FORMS)
def test_a_cache_of_any_form_passes_and_is_seen_to_be_written_into(form: str) -> None:
    assert failures("layernorm", **layernorm_with(form)) == {}
    found = failures("layernorm", **layernorm_with(form, spoil=True))
    name = FORMS[form][1]
    assert found["layernorm/usual"] == ("layernorm_backward_params", name, "modified")


def test_arrays_are_found_once_and_in_circles_too() -> None:
    a, b = np.ones(2), np.zeros(3)
    held: dict[str, Any] = {"a": a, "again": a, "b": [b, 3, "text", None], "numbers": [0.5, 1.5]}
    held["self"] = held
    found = dict(arrays_in(load("reference"), held, "cache"))
    assert list(found) == ["cache.a", "cache.b[0]", "cache.numbers"]
    assert found["cache.a"] is a


# ---- the same numbers again ---------------------------------------------------------------------


def test_a_random_forward_is_named_by_all_checks_and_nothing_else_is() -> None:
    rng = np.random.default_rng(0)

    def gelu(x: Any) -> Any:
        out, cache = reference.gelu(x)
        return out * (rng.random(out.shape) > 0.1) / 0.9, cache

    found = failures("gelu", gelu=gelu)
    assert len(found) > 8
    assert set(found.values()) == {("gelu", "out", "nondeterministic")}


def test_memory_that_is_never_set_is_not_called_a_wrong_value() -> None:
    def attention_backward(dz: Any, cache: Any) -> Any:
        grads = reference.attention_backward(dz, cache)
        dprefix_k = [np.empty_like(a) for a in cache.prefix_k]
        for a, b in zip(dprefix_k, grads.dprefix_k, strict=True):
            a[:, 1:] = b[:, 1:]  # the first slot is forgotten
        return grads._replace(dprefix_k=dprefix_k)

    given = mine(attention_backward=attention_backward)
    (result,) = run(given, select(["attention/one-sequence"]))
    finding = result.findings[0]
    assert (finding.tensor, finding.kind) == ("dprefix_k[0]", "nondeterministic")
    assert "never set (np.empty)" in finding.sentence


def test_a_count_of_calls_that_changes_a_result_is_found() -> None:
    calls = 0

    def cross_entropy(logits: Any, targets: Any, weights: Any) -> Any:
        nonlocal calls
        calls += 1
        loss, cache = reference.cross_entropy(logits, targets, weights)
        return loss * (1 + 1e-3 * (calls % 5 == 4)), cache

    found = failures("cross_entropy", cross_entropy=cross_entropy)
    assert found["cross_entropy/many-calls"] == ("cross_entropy", "loss", "nondeterministic")


def test_a_wrong_value_that_is_always_the_same_is_a_wrong_value() -> None:
    def gelu_backward(dout: Any, cache: Any) -> Any:
        return 2 * reference.gelu_backward(dout, cache)

    kinds = {f.kind for r in results_of("gelu", gelu_backward=gelu_backward) for f in r.findings}
    assert kinds == {"value", "derivative"}


# ---- causality ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "hidden", ["np.where(visible(T, P), scores, -1e9)", "scores - 1e9 * ~visible(T, P)"]
)
def test_a_mask_of_any_finite_number_breaks_the_law_of_causality(hidden: str) -> None:
    source = inspect.getsource(reference)
    old = "np.where(visible(T, P), scores, -np.inf)"
    assert source.count(old) == 1
    made = types.ModuleType("mine")
    exec(source.replace(old, hidden), vars(made))
    results = run(load(made), select(["attention/law", "attention/large", "attention/usual"]))
    assert {r.check for r in results if r.findings} == {"attention/law-causality"}
    (hint,) = (hint for r in results for f in r.findings for hint in f.hints)
    assert "a large finite number, -1e9 say, hides the later" in hint
