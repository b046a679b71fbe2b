"""AdamW, schedules and clipping against torch and transformers."""

import numpy as np
import pytest
import torch
from transformers import get_cosine_schedule_with_warmup, get_linear_schedule_with_warmup

from minprefix.optim import SCHEDULES, AdamW, clip, global_norm, learning_rate
from tests.conftest import relative_error

SHAPES = {"kv": (3, 2, 4), "bias": (7,), "empty": (0, 2)}


def random_arrays(rng, dtype="float64"):
    return {name: rng.normal(size=shape).astype(dtype) for name, shape in SHAPES.items()}


@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
@pytest.mark.parametrize(("beta1", "beta2", "eps"), [(0.9, 0.999, 1e-8), (0.5, 0.7, 1e-3)])
def test_20_steps_of_adamw_agree_with_torch_in_float64(weight_decay, beta1, beta2, eps):
    rng = np.random.default_rng(0)
    ours = random_arrays(rng)
    theirs = {name: torch.tensor(a, requires_grad=True) for name, a in ours.items()}
    adam = AdamW(beta1, beta2, eps, weight_decay)
    oracle = torch.optim.AdamW(
        theirs.values(), lr=1.0, betas=(beta1, beta2), eps=eps, weight_decay=weight_decay
    )
    for step in range(20):
        lr = float(rng.uniform(1e-3, 1e-1))  # another one each step, as a schedule gives it
        grads = {name: 10.0 ** rng.integers(-4, 3) * g for name, g in random_arrays(rng).items()}
        adam.step(ours, {name: g.copy() for name, g in grads.items()}, lr)
        oracle.param_groups[0]["lr"] = lr
        for name, p in theirs.items():
            p.grad = torch.tensor(grads[name])
        oracle.step()
        for name, a in ours.items():
            assert relative_error(a, theirs[name].detach().numpy()) < 1e-12, (step, name)
    assert adam.t == 20


def test_adamw_changes_the_arrays_in_place_and_keeps_their_type_and_the_gradients():
    rng = np.random.default_rng(0)
    params, grads = random_arrays(rng, "float32"), random_arrays(rng, "float32")
    kept = {name: g.copy() for name, g in grads.items()}
    same = dict(params)
    adam = AdamW(weight_decay=0.1)
    adam.step(params, grads, 0.01)
    for name in SHAPES:
        assert params[name] is same[name]
        assert {a[name].dtype for a in (params, adam.m, adam.v)} == {np.dtype("float32")}
        assert np.array_equal(grads[name], kept[name])


def test_a_parameter_without_a_gradient_stays():
    params = {"a": np.ones(2), "b": np.ones(2)}
    AdamW(weight_decay=0.1).step(params, {"a": np.ones(2)}, 0.1)
    assert (params["b"] == 1).all()
    assert (params["a"] < 1).all()


# ---- schedules ----


def transformers_rates(make, lr, warmup, steps):
    """The rate of every step, as a training loop with that scheduler would use it."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr)
    scheduler, rates = make(optimizer, warmup, steps), []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates, optimizer.param_groups[0]["lr"]


@pytest.mark.parametrize(
    ("schedule", "oracle"),
    [("linear", get_linear_schedule_with_warmup), ("cosine", get_cosine_schedule_with_warmup)],
    ids=["linear", "cosine"],
)
@pytest.mark.parametrize(("warmup", "steps"), [(0, 1), (0, 37), (1, 10), (9, 10), (12, 50)])
def test_schedules_agree_with_transformers_after_the_warm_up(schedule, oracle, warmup, steps):
    want, at_end = transformers_rates(oracle, 3e-3, warmup, steps)
    got = [learning_rate(s, steps, 3e-3, warmup, schedule) for s in range(steps)]
    assert got[warmup:] == pytest.approx(want[warmup:], rel=1e-12, abs=1e-15)
    assert at_end == pytest.approx(0, abs=1e-15)
    assert learning_rate(steps, steps, 3e-3, warmup, schedule) == pytest.approx(0, abs=1e-15)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_warm_up_is_one_step_ahead_of_transformers_so_that_no_step_has_rate_0(schedule):
    got = [learning_rate(s, 40, 3e-3, 8, schedule) for s in range(8)]
    assert got == pytest.approx([3e-3 * (s + 1) / 8 for s in range(8)], rel=1e-15)
    theirs, _ = transformers_rates(get_linear_schedule_with_warmup, 3e-3, 8, 40)
    assert got[:7] == pytest.approx(theirs[1:8], rel=1e-12)
    assert (got[0] > 0, theirs[0]) == (True, 0)
    assert got[7] == learning_rate(8, 40, 3e-3, 8, schedule) == 3e-3


def test_a_constant_schedule_stays_after_the_warm_up():
    assert {learning_rate(s, 40, 3e-3, 8, "constant") for s in range(8, 40)} == {3e-3}


@pytest.mark.parametrize("step", [0, 5], ids=["while warming up", "after"])
def test_an_unknown_schedule_raises(step):
    with pytest.raises(ValueError, match="schedule 'square': expected one of linear, cosine"):
        learning_rate(step, 10, 1e-3, 2, "square")


# ---- clipping ----


@pytest.mark.parametrize("max_norm", [1e-2, 1.0, 1e6])
def test_the_norm_and_the_clipped_gradients_agree_with_torch(max_norm):
    grads = random_arrays(np.random.default_rng(3))
    theirs = [torch.zeros(g.shape, dtype=torch.float64) for g in grads.values()]
    for p, g in zip(theirs, grads.values(), strict=True):
        p.grad = torch.tensor(g)
    want = torch.nn.utils.clip_grad_norm_(theirs, max_norm).item()
    norm = global_norm(grads)
    assert norm == pytest.approx(want, rel=1e-14)
    arrays = dict(grads)
    clip(grads, norm, max_norm)
    for name, p in zip(grads, theirs, strict=True):
        assert grads[name] is arrays[name]
        # torch divides by the norm + 1e-6
        assert relative_error(grads[name], p.grad.numpy()) < 1.1e-6 / norm
    assert global_norm(grads) == pytest.approx(min(norm, max_norm), rel=1e-14)


def test_clipping_leaves_gradients_within_the_limit_bit_for_bit():
    grads = random_arrays(np.random.default_rng(3))
    before = {name: g.copy() for name, g in grads.items()}
    clip(grads, global_norm(grads), global_norm(grads))
    assert all(np.array_equal(grads[name], before[name]) for name in grads)
