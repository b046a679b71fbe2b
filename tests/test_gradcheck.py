"""`gradcheck` finds what is wrong with a backward, says so, and accuses no right one."""

import json
from typing import Any, NamedTuple

import numpy as np
import pytest

from minprefix.errors import InputError
from minprefix.gradcheck import Report, assert_gradients, gradcheck
from minprefix.methods import lstm
from minprefix.ops import reference

RNG = np.random.default_rng(3)
X, GAIN, BIAS = RNG.normal(0, 1, (4, 5)), RNG.normal(1, 0.2, 5), RNG.normal(0, 1, 5)


def softmax(x: Any) -> Any:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def softmax_backward(dout: Any, x: Any) -> Any:
    y = softmax(x)
    return y * (dout - (dout * y).sum(-1, keepdims=True))


def norm(x: Any, gain: Any, bias: Any) -> Any:
    return reference.layernorm(x, gain, bias, 1e-5)


def norm_backward(dout: Any, cache: Any) -> Any:
    return reference.layernorm_backward(dout, cache), *reference.layernorm_backward_params(
        dout, cache
    )


def said_of(report: Report) -> str:
    assert not report
    first = report.findings[0]
    return f"{first.function}, {first.tensor}: {first.kind}: {first.sentence} {first.hints}"


# ---- right ones pass -----------------------------------------------------------------------------


def test_both_forms_pass_to_the_last_digits():
    for report in (
        gradcheck(softmax, softmax_backward, X),
        gradcheck(norm, norm_backward, X, GAIN, BIAS),
    ):
        assert report, str(report)
        assert set(report.methods.values()) == {"complex step"}
        assert report.error < 1e-13


def test_a_forward_that_takes_no_complex_numbers_is_measured_by_differences():
    def forward(x: Any) -> Any:
        out = np.zeros(x.shape)  # a complex number does not fit in
        out[:] = np.sin(x)
        return out

    report = gradcheck(forward, lambda dout, x: dout * np.cos(x), X)
    assert report, str(report)
    assert report.methods == {"dx": "differences"}
    assert report.error < 1e-9


def test_the_complex_step_is_not_trusted_where_it_fails_silently():
    report = gradcheck(np.abs, lambda dout, x: dout * np.sign(x), X)
    assert report, str(report)
    assert list(report.methods.values()) == ["differences"]


def test_gradients_may_come_as_an_array_a_tuple_with_none_a_named_tuple_or_by_name():
    class Grads(NamedTuple):
        dx: Any
        dy: Any

    def forward(x: Any, ids: Any, y: Any) -> Any:
        return x[ids] * y

    ids = np.array([0, 2, 2, 1])

    def backward(dout: Any, x: Any, ids: Any, y: Any) -> Any:
        dx = np.zeros_like(x)
        np.add.at(dx, ids, dout * y)
        return dx, dout * x[ids]

    x, y = X[:3], X * 2
    assert gradcheck(forward, backward, x, ids, y)
    for wrap in (
        Grads._make,
        lambda g: (g[0], None, g[1]),
        lambda g: {"dx": g[0], "dy": g[1]},
        lambda g: {"x": g[0], "y": g[1]},
    ):
        report = gradcheck(forward, lambda *a, wrap=wrap: wrap(backward(*a)), x, ids, y)
        assert report, str(report)


def test_several_outputs_each_have_an_upstream_gradient():
    def forward(x: Any) -> Any:
        return (np.sin(x), (x**2).sum(-1), x[:2])

    def backward(dout: Any, x: Any) -> Any:
        dx = dout[0] * np.cos(x) + 2 * x * dout[1][:, None]
        dx[:2] += dout[2]
        return dx

    assert gradcheck(forward, backward, X)


def test_single_precision_is_allowed_its_rounding():
    report = gradcheck(softmax, softmax_backward, X.astype(np.float32))
    assert report, str(report)
    assert 1e-9 < report.error < 1e-5


def test_torch_and_jax_arrays():
    torch = pytest.importorskip("torch")

    def forward(x: Any, w: Any) -> Any:
        return torch.tanh(x @ w)

    def backward(dout: Any, x: Any, w: Any) -> Any:
        d = dout * (1 - torch.tanh(x @ w) ** 2)
        return d @ w.T, x.T @ d

    x, w = torch.tensor(X), torch.tensor(X.T.copy())
    assert gradcheck(forward, backward, x, w)
    wrong = gradcheck(forward, lambda *a: tuple(2 * g for g in backward(*a)), x, w)
    assert "2 times the right one" in said_of(wrong)
    jax = pytest.importorskip("jax")

    def of_jax(x: Any) -> Any:
        return jax.nn.softmax(x, -1)

    def back(dout: Any, x: Any) -> Any:
        return jax.vjp(of_jax, x)[1](dout)[0]

    assert gradcheck(of_jax, back, jax.numpy.asarray(X))
    assert "wrong sign" in said_of(gradcheck(of_jax, lambda *a: -back(*a), jax.numpy.asarray(X)))


# ---- wrong ones are found, and named -------------------------------------------------------------


def wrong_softmax(dout: Any, x: Any) -> Any:
    return softmax(x) * dout


def transposed(dout: Any, x: Any, w: Any) -> Any:
    return dout @ w.T, (x.T @ dout).T


def matmul(x: Any, w: Any) -> Any:
    return x @ w


SQUARE = RNG.normal(0, 1, (5, 5))

WRONG: dict[str, tuple[Any, Any, tuple[Any, ...], str]] = {
    "row sum": (softmax, wrong_softmax, (X,), "is a sum over the row missing"),
    "sign": (np.sin, lambda d, x: -d * np.cos(x), (X,), "wrong sign"),
    "multiple": (np.sin, lambda d, x: 3 * d * np.cos(x), (X,), "3 times the right one"),
    "mean for sum": (
        lambda x: x.sum(0),
        lambda d, x: np.broadcast_to(d / 4, x.shape),
        (X,),
        "mean",
    ),
    "transposed": (matmul, transposed, (SQUARE, SQUARE.copy()), "transposed"),
    "shifted": (np.sin, lambda d, x: np.roll(d * np.cos(x), 1, -1), (X,), "shifted by 1"),
    "not summed back": (
        lambda x, b: x + b,
        lambda d, x, b: (d, d),
        (X, BIAS),
        "(4, 5), expected (5,): b is broadcast in the forward",
    ),
    "a part": (
        np.sin,
        lambda d, x: np.where(np.arange(5) == 3, 0, d * np.cos(x)),
        (X,),
        "each slice along axis 1: 1, 1, 1, 0, 1",
    ),
    "one too few": (matmul, lambda d, x, w: d @ w.T, (X, X.T.copy()), "1 gradient, expected 2"),
    "rounded": (
        np.sin,
        lambda d, x: (d * np.cos(x)).astype(np.float32),
        (X,),
        "dx is float32, expected float64",
    ),
    "raises": (np.sin, lambda d, x: d[99], (X,), "backward raised IndexError"),
    "not finite": (lambda x: np.log(x), lambda d, x: d / x, (-np.abs(X),), "not finite"),
    "no array": (np.sin, lambda d, x: "dx", (X,), "is a str"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_backward_is_found_and_explained(name: str):
    forward, backward, inputs, said = WRONG[name]
    assert said in said_of(gradcheck(forward, backward, *inputs))


def test_nothing_that_was_given_may_be_overwritten():
    def backward(dout: Any, x: Any) -> Any:
        dout *= np.cos(x)
        return dout

    report = gradcheck(np.sin, backward, X)
    assert "wrote into dout" in said_of(report)
    assert gradcheck(np.sin, backward, X, consumes=["dout"])

    def centred(x: Any) -> Any:
        x -= x.mean()
        return x * 1

    assert "forward wrote into x" in said_of(gradcheck(centred, lambda d, x: d - d.mean(), X))


def test_a_buffer_that_two_calls_share_is_found():
    kept = np.zeros_like(X)

    def forward(x: Any) -> Any:
        kept[:] = np.cos(x)
        return np.sin(x), kept

    report = gradcheck(forward, lambda dout, cache: dout * cache, X)
    assert "do two calls share a buffer" in said_of(report)


def test_a_backward_that_adds_up_is_found():
    total = np.zeros_like(X)

    def backward(dout: Any, cache: Any) -> Any:
        total[:] += dout * cache
        return total.copy()

    report = gradcheck(lambda x: (np.sin(x), np.cos(x)), backward, X)
    assert any(f.kind == "nondeterministic" for f in report.findings), str(report)


def test_a_random_forward_is_named_so_and_not_blamed_on_the_backward():
    report = gradcheck(lambda x: x * (np.random.random(x.shape) > 0.5), lambda d, x: d, X)
    assert [f.kind for f in report.findings] == ["nondeterministic"]
    assert report.findings[0].function == "forward"


def test_memory_read_in_another_order_is_found():
    def backward(dout: Any, x: Any) -> Any:
        flat = np.cos(np.ravel(x, order="K"))
        return dout * flat.reshape(x.shape)

    assert gradcheck(np.sin, backward, X)

    def by_memory(dout: Any, x: Any) -> Any:
        base = x if x.base is None else x.base
        return dout * np.cos(np.resize(base, x.shape))

    assert "do not lie in one piece" in said_of(gradcheck(np.sin, by_memory, X))


def test_a_jump_at_the_inputs_is_not_held_against_the_backward():
    report = gradcheck(lambda x: np.sign(x), lambda d, x: d * 0, np.zeros((2, 3)))
    assert [f.kind for f in report.findings] == ["not measured"]


def test_a_large_gradient_is_measured_in_a_part():
    x = RNG.normal(0, 1, (60, 70))
    report = gradcheck(np.sin, lambda d, x: 2 * d * np.cos(x), x)
    assert "400 of 4200 entries" in said_of(report)
    assert "2 times" in said_of(report)
    assert len(report.findings[0].worst[0][0]) == 2


# ---- how it is told ------------------------------------------------------------------------------


def test_the_reproducer_shows_the_wrong_and_the_measured_value(capsys: pytest.CaptureFixture[str]):
    report = gradcheck(softmax, wrong_softmax, X)
    exec(report.findings[0].reproducer, {"__name__": "pasted"})
    mine, measured = eval(capsys.readouterr().out)
    index = tuple(report.findings[0].worst[0][0])
    assert [mine, measured] == pytest.approx(report.findings[0].worst[0][1:], rel=1e-9)
    assert len(index) == 2


def test_the_report_is_json_and_an_assertion():
    report = gradcheck(np.sin, lambda d, x: d * np.inf, X)
    told = json.loads(json.dumps(report.as_json(), allow_nan=False))
    assert told["passed"] is False
    assert told["findings"][0]["tensor"] == "dx"
    with pytest.raises(AssertionError, match=r"dx .* is off by"):
        assert_gradients(softmax, wrong_softmax, X)
    assert_gradients(softmax, softmax_backward, X)


def test_only_named_inputs_have_a_gradient():
    report = gradcheck(matmul, lambda d, x, w: d @ w.T, X, X.T.copy(), wrt="x")
    assert report, str(report)
    assert list(report.errors) == ["dx"]
    with pytest.raises(InputError, match="wrt='z': expected one of"):
        gradcheck(matmul, transposed, X, X.T.copy(), wrt="z")


def test_calls_that_make_no_sense_are_answered_with_a_sentence():
    with pytest.raises(InputError, match="expected a function"):
        gradcheck(np.sin, None, X)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="no input is an array of floating-point numbers"):
        gradcheck(np.sin, lambda d, x: d, np.arange(3))
    with pytest.raises(InputError, match="expected \\(out, cache\\) and backward"):
        gradcheck(matmul, lambda d, cache: d, X, X.T.copy())


def test_this_projects_lstm_passes():
    shapes = lstm.shapes(3, 4, layers=1)
    names, arrays = list(shapes), [RNG.normal(0, 0.4, shape) for shape in shapes.values()]

    def forward(x: Any, *parameters: Any) -> Any:
        p = dict(zip(names, parameters, strict=True))
        out, caches = lstm.lstm(x, p, 1)
        return out, (caches, p)

    def backward(dout: Any, cache: Any) -> Any:
        dx, grads = lstm.lstm_backward(dout, *cache)
        return dx, *(grads[name] for name in names)

    report = gradcheck(forward, backward, RNG.normal(0, 1, (5, 3)), *arrays)
    assert report, str(report)
    assert len(report.errors) == 1 + len(names)


def test_the_upstream_gradient_is_not_the_input_that_the_same_seed_draws():
    x = np.random.default_rng(0).normal(size=(3, 4))
    report = gradcheck(lambda x: 2.5 * x, lambda dout, x: 2.5 * x, x)
    assert report.findings[0].hints == ["is 2.5 times x"]


@pytest.mark.parametrize("scale", [1e-150, 1e-6, 1e3, 1e150])
def test_numbers_of_any_size_are_measured(scale: float):
    x = RNG.normal(size=(3, 4)) * scale
    assert_gradients(np.abs, lambda dout, x: np.sign(x) * dout, x)
    assert_gradients(lambda x: x**2, lambda dout, x: 2 * x * dout, x)
    assert_gradients(lambda x: np.abs(x) * x, lambda dout, x: 2 * np.abs(x) * dout, x)


@pytest.mark.parametrize("slope", [np.greater, np.greater_equal])
def test_a_kink_at_the_inputs_is_not_held_against_the_backward(slope: Any):
    report = gradcheck(lambda x: np.maximum(x, 0), lambda dout, x: slope(x, 0) * dout, np.zeros(3))
    assert [f.kind for f in report.findings] == ["not measured"]
    assert report.errors == {}


def test_a_gradient_that_is_not_finite_is_named_so():
    report = gradcheck(np.sin, lambda dout, x: dout * np.cos(x) / (x > -9) / (x < X.max()), X)
    assert [f.kind for f in report.findings] == ["not finite"]
    assert "1 of 20 numbers that are not finite" in said_of(report)


def test_the_backward_is_not_blamed_for_what_the_forward_wrote():
    report = gradcheck(lambda x: np.multiply(x, 2, out=x), lambda dout, x: 2 * dout, X.copy())
    assert [f.function for f in report.findings] == ["forward"]


BIG = np.random.default_rng(5).normal(size=(100, 90))


def test_one_wrong_entry_of_many_is_found():
    def backward(dout: Any, x: Any) -> Any:
        dx = dout * (1 - np.tanh(x) ** 2)
        dx[7, 9] = 0
        return dx

    finding = gradcheck(np.tanh, backward, BIG).findings[0]
    assert [index for index, _, _ in finding.worst] == [[7, 9]]
    assert finding.hints == []  # and none that speaks of the sample
    assert finding.error > 1e-3


def test_a_large_gradient_is_explained_as_a_small_one_is():
    report = gradcheck(np.tanh, lambda dout, x: dout * (1 - np.tanh(x) ** 2) + x, BIG)
    assert "off by 1 times x" in said_of(report)
    report = gradcheck(np.tanh, lambda dout, x: dout * (1 - np.tanh(x) ** 2) / 90, BIG)
    assert "1/the output's axis 1" in said_of(report)


def test_an_entry_near_a_kink_is_not_shown_as_wrong():
    x = np.array([1e-6, 1.0, -2.0])
    report = gradcheck(np.abs, lambda dout, x: dout * np.sign(x) * [1, 1, 2], x)
    assert [index for index, _, _ in report.findings[0].worst] == [[2]]
    report = gradcheck(np.abs, lambda dout, x: dout * np.sign(x), x * [0, 1, 1])
    assert report
    assert "2 of 3 entries" in report.methods["dx"]


def test_brain_floats_reach_the_function_and_are_allowed_their_rounding():
    torch = pytest.importorskip("torch")
    seen = set()

    def forward(x: Any) -> Any:
        seen.add(x.dtype)
        return torch.sin(x)

    x = torch.tensor(X).bfloat16()
    assert_gradients(forward, lambda dout, x: dout * torch.cos(x), x)
    assert torch.bfloat16 in seen
    assert not gradcheck(forward, lambda dout, x: dout * torch.sin(x), x)


def test_an_array_of_objects_is_answered_with_a_sentence():
    with pytest.raises(InputError, match="x is an array of object: expected numbers"):
        gradcheck(lambda x: 2 * x, lambda dout, x: 2 * dout, X.astype(object))


def test_a_gradient_by_a_wrong_name_and_a_bare_number_are_named():
    report = gradcheck(lambda x: 2 * x, lambda dout, x: {"dz": 2 * dout}, X)
    assert "backward gave a gradient of dz: expected those of x" in said_of(report)
    with pytest.raises(InputError, match=r"np\.array\(3\.0\)"):
        gradcheck(lambda x: 2 * x, lambda dout, x: 2 * dout, 1.5)
