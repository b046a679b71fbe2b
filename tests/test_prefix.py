"""How a prefix starts, what it is, and the MLP in front of it, against PyTorch and PEFT."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DynamicCache

from minprefix import (
    GPT2,
    Batch,
    Config,
    InputError,
    MLPPrefix,
    Prefix,
    loss,
    loss_and_grad,
    loss_and_weight_grads,
)
from minprefix.ops import numpy_ops, reference
from minprefix.prefix import dropout_mask, flatten, unflatten
from tests.conftest import random_model, relative_error, to_hf

BACKENDS = pytest.mark.parametrize("ops", [reference, numpy_ops], ids=["reference", "numpy"])
BATCH = Batch.pack([[5, 2, 9, 4, 1], [7, 1, 3]], loss_from=[2, 1])

# ---- how a prefix starts ----


def test_normal_draws_have_mean_0_and_the_given_std(config):
    kv = Prefix.normal(config, 60, std=0.3, seed=1, dtype="float64").kv
    n = kv.size
    assert abs(kv.mean()) < 4 * 0.3 / n**0.5
    assert abs(kv.std() / 0.3 - 1) < 4 / (2 * n) ** 0.5
    assert abs((np.abs(kv) < 0.3).mean() - 0.6827) < 4 * (0.22 / n) ** 0.5  # a normal's, not a box
    assert Prefix.normal(config, 60).kv.std() == pytest.approx(0.02, rel=0.05)


def test_uniform_draws_fill_the_interval_up_to_the_bound(config):
    kv = Prefix.uniform(config, 60, bound=0.3, seed=1, dtype="float64").kv
    assert -0.3 <= kv.min() < -0.299
    assert 0.299 < kv.max() < 0.3
    assert kv.std() == pytest.approx(0.3 / 3**0.5, rel=0.02)
    assert np.abs(Prefix.uniform(config, 60).kv).max() == pytest.approx(0.05, rel=0.01)


@pytest.mark.parametrize("start", [Prefix.normal, Prefix.uniform, Prefix.mlp])
def test_one_seed_decides_the_draws(config, start):
    first = start(config, 4, seed=3)
    assert np.array_equal(start(config, 4, seed=3).kv, first.kv)
    assert not np.isclose(start(config, 4, seed=4).kv, first.kv).any(axis=-1).any()
    # keys, values, layers, heads and slots have draws of their own
    rows = first.kv.reshape(-1, config.head_size)
    assert len(np.unique(rows, axis=0)) == len(rows)


@pytest.mark.parametrize("start", [Prefix.normal, Prefix.uniform, Prefix.mlp, MLPPrefix.random])
def test_the_seed_is_0_and_the_numbers_are_float32_where_nothing_is_said(config, start):
    kv = start(config, 2).kv
    assert kv.dtype == np.float32
    assert np.array_equal(kv, start(config, 2, seed=0).kv)


def test_draws_without_spread_are_zeros(config):
    assert not Prefix.normal(config, 2, std=0).kv.any()
    assert not Prefix.uniform(config, 2, bound=0).kv.any()


@pytest.mark.parametrize("start", [Prefix.normal, Prefix.uniform, Prefix.zero, Prefix.mlp])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_start_has_the_shape_and_the_type_that_were_asked_for(config, start, dtype):
    whole = start(config, 5, dtype=dtype)
    assert whole.kv.shape == (3, 2, 4, 5, 8)
    assert {a.dtype for a in whole.parameters.values()} == {np.dtype(dtype)}
    assert whole.kv.dtype == dtype
    assert (whole.length, whole.layers, whole.position_offset) == (5, (0, 1, 2), 5)
    part = start(config, 5, layers=[0, 2], position_offset=0, dtype=dtype)
    assert part.kv.shape == (2, 2, 4, 5, 8)
    assert (part.length, part.layers, part.position_offset) == (5, (0, 2), 0)
    assert start(config, 5).kv.dtype == np.float32


def test_zero_is_all_zeros_and_not_the_same_as_no_prefix(config, model):
    prefix = Prefix.zero(config, 4, dtype="float64", position_offset=0)
    assert not prefix.kv.any()
    with_zeros, without = model.logits(BATCH, prefix), model.logits(BATCH)
    assert relative_error(with_zeros, without) > 1e-2  # zero keys take their share of the softmax


def test_a_zero_start_trains_its_values_long_before_its_keys(config, model):
    _, dkv = loss_and_grad(model, Prefix.zero(config, 4, dtype="float64"), BATCH)
    dk, dv = (np.linalg.norm(dkv[:, i]) for i in range(2))
    assert 0 < dk < 0.3 * dv


def test_a_text_start_is_the_past_key_values_of_transformers(model):
    ids = [3, 17, 44, 9, 3]
    with torch.no_grad():
        out = to_hf(model)(torch.tensor([ids]), past_key_values=DynamicCache(), use_cache=True)
    want = np.stack(
        [np.stack([layer.keys[0], layer.values[0]]) for layer in out.past_key_values.layers]
    )
    prefix = Prefix.text(model, ids)
    assert relative_error(prefix.kv, want) < 1e-12
    assert (prefix.length, prefix.layers, prefix.position_offset) == (5, (0, 1, 2), 5)
    assert not prefix.subset
    part = Prefix.text(model, np.array(ids), layers=[1, 2], position_offset=2)
    assert np.array_equal(part.kv, prefix.kv[1:])
    assert (part.layers, part.position_offset, part.subset) == ((1, 2), 2, True)


def test_a_text_start_encodes_text(config, model, monkeypatch):
    monkeypatch.setattr(model, "encode", lambda text: {"summarize": [4, 8]}[text])
    assert np.array_equal(Prefix.text(model, "summarize").kv, Prefix.text(model, [4, 8]).kv)


# ---- the MLP ----


def torch_mlp(prefix: MLPPrefix) -> torch.nn.Sequential:
    """The same network, as PEFT builds it: Embedding -> Linear -> Tanh -> Linear."""
    p = {name: torch.tensor(a) for name, a in prefix.parameters.items()}
    P, C = p["embedding"].shape
    h, out = p["weight_2"].shape
    net = torch.nn.Sequential(
        torch.nn.Embedding(P, C), torch.nn.Linear(C, h), torch.nn.Tanh(), torch.nn.Linear(h, out)
    ).double()
    state = {
        "0.weight": p["embedding"],
        "1.weight": p["weight_1"].T,
        "1.bias": p["bias_1"],
        "3.weight": p["weight_2"].T,
        "3.bias": p["bias_2"],
    }
    net.load_state_dict(state)
    return net


def torch_kv(net, prefix: MLPPrefix, hs: int) -> torch.Tensor:
    P, n = prefix.length, len(prefix.layers)
    flat = net(torch.arange(P))  # (P, n*2*C), row-major over (P, n, 2, NH, hs)
    return flat.reshape(P, n, 2, prefix.n_head, hs).permute(1, 2, 3, 0, 4)


@pytest.mark.parametrize("layers", [None, [1, 2]])
@pytest.mark.parametrize("P", [1, 4])
def test_the_mlp_and_all_its_gradients_agree_with_pytorch(config, layers, P):
    prefix = Prefix.mlp(config, P, hidden=7, seed=2, layers=layers, dtype="float64")
    net = torch_mlp(prefix)
    kv = torch_kv(net, prefix, config.head_size)
    assert relative_error(prefix.kv, kv.detach().numpy()) < 1e-12
    dkv = np.random.default_rng(0).normal(size=prefix.kv.shape)
    kv.backward(torch.tensor(dkv))
    grads = prefix.backward(dkv)
    want = {
        "embedding": net[0].weight.grad,
        "weight_1": net[1].weight.grad.T,
        "bias_1": net[1].bias.grad,
        "weight_2": net[3].weight.grad.T,
        "bias_2": net[3].bias.grad,
    }
    assert set(grads) == set(want) == set(prefix.parameters)
    for name, grad in want.items():
        assert relative_error(grads[name], grad.numpy()) < 1e-12, name


def test_the_mlp_agrees_with_pefts_prefix_encoder(config):
    from peft import PrefixEncoder, PrefixTuningConfig

    prefix = Prefix.mlp(config, 5, hidden=9, seed=1, dtype="float64")
    theirs = PrefixEncoder(
        PrefixTuningConfig(
            task_type="CAUSAL_LM",
            num_virtual_tokens=5,
            token_dim=config.n_embd,
            num_layers=config.n_layer,
            encoder_hidden_size=9,
            prefix_projection=True,
        )
    ).double()
    ours = torch_mlp(prefix)
    theirs.embedding.load_state_dict(ours[0].state_dict())
    theirs.transform[0].load_state_dict(ours[1].state_dict())
    theirs.transform[2].load_state_dict(ours[3].state_dict())
    flat = theirs(torch.arange(5)[None])[0].detach().numpy()
    assert relative_error(flatten(prefix.kv), flat) < 1e-12


def test_the_mlp_starts_as_pytorchs_layers_do(config):
    wide = Config(n_layer=2, n_head=2, n_embd=64, vocab_size=5, n_positions=600)
    p = Prefix.mlp(wide, 200, hidden=100, seed=0, dtype="float64").parameters
    assert p["embedding"].std() == pytest.approx(1, rel=0.05)
    assert abs(p["embedding"].mean()) < 0.05
    for n_in, names in ((64, ("weight_1", "bias_1")), (100, ("weight_2", "bias_2"))):
        for name in names:
            assert 0.9 < np.abs(p[name]).max() * n_in**0.5 <= 1, name
            assert abs(p[name].std() * (3 * n_in) ** 0.5 - 1) < 0.15, name


def test_the_gradient_of_the_loss_reaches_every_parameter_of_the_mlp(config, model):
    prefix = Prefix.mlp(config, 3, hidden=6, seed=1, dtype="float64")
    _, dkv = loss_and_grad(model, prefix, BATCH)
    grads = prefix.backward(dkv)
    for name, grad in grads.items():
        d = np.random.default_rng(0).normal(size=grad.shape)
        ends = []
        for sign in (1, -1):
            moved = prefix.parameters | {name: prefix.parameters[name] + sign * 1e-5 * d}
            ends.append(loss(model, BATCH, MLPPrefix(moved, config.n_head)))
        assert (ends[0] - ends[1]) / 2e-5 == pytest.approx((d * grad).sum(), rel=1e-6), name


def test_a_zero_last_layer_leaves_no_gradient_below_it(config, model):
    prefix = Prefix.mlp(config, 3, hidden=6, seed=1, dtype="float64")
    prefix.parameters["weight_2"][:] = 0
    prefix.parameters["bias_2"][:] = 0
    assert not prefix.kv.any()
    _, dkv = loss_and_grad(model, prefix, BATCH)
    grads = prefix.backward(dkv)
    for name in ("embedding", "weight_1", "bias_1"):
        assert not grads[name].any(), name
    for name in ("weight_2", "bias_2"):
        assert grads[name].any(), name
    # which is why it does not start so
    fresh = Prefix.mlp(config, 3, hidden=6, seed=1, dtype="float64")
    _, dkv = loss_and_grad(model, fresh, BATCH)
    assert all(grad.any() for grad in fresh.backward(dkv).values())


@pytest.mark.parametrize("start", [Prefix.mlp, MLPPrefix.random])
def test_the_mlp_is_512_wide_by_default_and_works_with_one_unit(config, start):
    assert start(config, 2).parameters["weight_1"].shape == (32, 512)
    one = start(config, 2, hidden=1, dtype="float64")
    assert one.kv.shape == (3, 2, 4, 2, 8)
    assert one.backward(np.ones(one.kv.shape))["weight_1"].shape == (32, 1)


@pytest.mark.parametrize("where", [{}, {"layers": [0, 2]}, {"position_offset": 1}], ids=str)
@pytest.mark.parametrize("start", [Prefix.normal, Prefix.mlp])
def test_folding_keeps_the_keys_the_values_and_the_place(config, model, start, where):
    prefix = start(config, 4, seed=1, dtype="float64", **where)
    flat = prefix.fold()
    assert type(flat) is Prefix
    assert np.array_equal(flat.kv, prefix.kv)
    assert (flat.layers, flat.subset, flat.position_offset) == (
        prefix.layers,
        prefix.subset,
        prefix.position_offset,
    )
    assert np.array_equal(model.logits(BATCH, flat), model.logits(BATCH, prefix))
    flat.kv[:] = 0  # a copy: nothing of the prefix is lost
    assert prefix.kv.any()


@pytest.mark.parametrize("start", [Prefix.normal, Prefix.mlp])
def test_a_mask_scales_the_gradient_as_it_scales_the_keys_and_values(config, model, start):
    prefix = start(config, 4, seed=1, dtype="float64", layers=[0, 2], position_offset=1)
    mask = dropout_mask(prefix.kv.shape, 0.4, np.random.default_rng(0))
    masked = prefix.masked(mask)
    assert np.array_equal(masked.kv, prefix.kv * mask)
    assert (masked.layers, masked.subset, masked.position_offset) == ((0, 2), True, 1)
    _, dkv = loss_and_grad(model, masked, BATCH)
    d = np.random.default_rng(1).normal(size=dkv.shape)
    ends = [
        loss(model, BATCH, Prefix((prefix.kv + s * 1e-5 * d) * mask, [0, 2], 1)) for s in (1, -1)
    ]
    assert (ends[0] - ends[1]) / 2e-5 == pytest.approx((d * dkv * mask).sum(), rel=1e-6)


@pytest.mark.parametrize("start", [Prefix.normal, Prefix.mlp])
def test_a_mask_leaves_a_prefix_of_all_layers_one_of_all_layers(config, start):
    prefix = start(config, 2)
    masked = prefix.masked(np.ones(prefix.kv.shape))
    assert (masked.layers, masked.subset, masked.position_offset) == ((0, 1, 2), False, 2)


def test_fitting_takes_one_number_and_takes_none(model):
    smallest = Config(n_layer=1, n_head=1, n_embd=1, vocab_size=5, n_positions=5)
    prefix = Prefix.mlp(smallest, 1, hidden=2, dtype="float64")
    onto = prefix.kv + np.array([1.0, 2.0]).reshape(1, 2, 1, 1, 1)
    assert prefix.fit(onto, steps=1) == [pytest.approx(2.5)]
    empty = Prefix.mlp(smallest, 0, hidden=2, dtype="float64")
    assert empty.fit(empty.kv) == []


def test_fitting_lowers_the_error_and_says_what_it_was(config, model):
    onto = Prefix.text(model, [3, 17, 44])
    prefix = Prefix.mlp(config, 3, hidden=16, seed=0, dtype="float64")
    start = ((prefix.kv - onto.kv) ** 2).mean()
    errors = prefix.fit(onto.kv, steps=60, lr=1e-2)
    end = ((prefix.kv - onto.kv) ** 2).mean()
    assert len(errors) == 60
    assert errors[0] == pytest.approx(start, rel=1e-12)
    assert end < 0.5 * start
    assert end < errors[-1] < errors[30] < errors[0]


def test_fitting_is_500_steps_of_adam_at_1e_4_on_the_mean_squared_error(config):
    onto = Prefix.normal(config, 2, std=1.0, seed=5, dtype="float64")

    def fresh():
        return Prefix.mlp(config, 2, hidden=5, seed=0, dtype="float64")

    prefix = fresh()
    net, target = torch_mlp(prefix), torch.tensor(onto.kv)
    parameters, adam, want = list(net.parameters()), {}, []
    for t in range(1, 21):
        error = ((torch_kv(net, prefix, config.head_size) - target) ** 2).mean()
        want.append(error.item())
        grads = torch.autograd.grad(error, parameters)
        for i, (p, g) in enumerate(zip(parameters, grads, strict=True)):  # Kingma & Ba, alg. 1
            m, v = adam.get(i, (0, 0))
            adam[i] = m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
            p.data -= 1e-4 * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
    assert np.allclose(prefix.fit(onto.kv, steps=20), want, rtol=1e-12, atol=0)
    final = torch_kv(net, prefix, config.head_size).detach().numpy()
    assert relative_error(prefix.kv, final) < 1e-9

    by_default, named = fresh(), fresh()
    assert len(by_default.fit(onto.kv)) == 500
    named.fit(onto.kv, steps=500, lr=1e-4)
    # asked for at the start it is the same
    asked = Prefix.mlp(config, 2, hidden=5, seed=0, onto=onto, dtype="float64")
    assert np.array_equal(by_default.kv, named.kv)
    assert np.array_equal(by_default.kv, asked.kv)


# ---- layout and dropout ----


@settings(deadline=None)
@given(n=st.integers(1, 4), NH=st.integers(1, 4), P=st.integers(0, 5), hs=st.integers(1, 6))
def test_flatten_and_unflatten_are_inverse_and_row_major_as_in_peft(n, NH, P, hs):
    flat = np.arange(P * n * 2 * NH * hs).reshape(P, n * 2 * NH * hs)
    kv = unflatten(flat, n, NH, hs)
    want = flat.reshape(P, n, 2, NH, hs).transpose(1, 2, 3, 0, 4)
    assert kv.shape == (n, 2, NH, P, hs)
    assert np.array_equal(kv, want)
    assert np.array_equal(flatten(kv), flat)
    for p, layer, half, head, i in np.ndindex(P, n, 2, NH, hs):
        at = ((layer * 2 + half) * NH + head) * hs + i
        assert kv[layer, half, head, p, i] == flat[p, at]


def test_dropout_zeroes_its_share_and_scales_the_rest_so_that_the_mean_stays():
    mask = dropout_mask((50, 2, 40, 10), 0.3, np.random.default_rng(0))
    n = mask.size
    assert set(np.unique(mask)) == {0, 1 / 0.7}
    assert abs((mask == 0).mean() - 0.3) < 4 * (0.21 / n) ** 0.5
    assert abs(mask.mean() - 1) < 4 * (0.3 / 0.7 / n) ** 0.5
    again = dropout_mask((50, 2, 40, 10), 0.3, np.random.default_rng(0))
    assert np.array_equal(again, mask)
    # no axis shares a draw
    assert all((mask.std(axis=i) > 0).any() for i in range(4))
    assert (dropout_mask((3, 4), 0.0, np.random.default_rng(0)) == 1).all()


def test_dropout_keeps_a_draw_that_equals_the_rate():
    class Draws:
        def random(self, shape):
            return np.arange(4).reshape(shape) / 4  # of [0, 1): a share of 1/4 lies below 1/4

    assert np.array_equal(dropout_mask((2, 2), 0.25, Draws()) * 0.75, [[0, 1], [1, 1]])


# ---- laws ----


@pytest.mark.parametrize("layers", [None, [0, 2]])
def test_the_order_of_slots_does_not_matter(config, model, layers):
    prefix = Prefix.normal(config, 6, std=1.0, seed=0, layers=layers, dtype="float64")
    order = np.random.default_rng(1).permutation(6)
    shuffled = Prefix(prefix.kv[:, :, :, order], layers)
    assert relative_error(model.logits(BATCH, shuffled), model.logits(BATCH, prefix)) < 1e-12
    _, dkv = loss_and_grad(model, prefix, BATCH)
    _, dshuffled = loss_and_grad(model, shuffled, BATCH)
    assert relative_error(dshuffled, dkv[:, :, :, order]) < 1e-10
    # keys without their values are another prefix
    torn = prefix.kv.copy()
    torn[:, 0] = torn[:, 0][:, :, order]
    assert (
        relative_error(model.logits(BATCH, Prefix(torn, layers)), model.logits(BATCH, prefix))
        > 1e-3
    )


@BACKENDS
def test_a_prefix_mixes_its_own_attention_with_the_tokens_by_its_share_of_the_softmax(ops):
    """z = (1 - lambda) Attn(q, K, V) + lambda softmax(q . P_k) P_v."""
    r = np.random.default_rng(0)
    T, NH, P, hs = 6, 3, 4, 5
    q, k, v = (r.normal(size=(T, NH, hs)) for _ in range(3))
    prefix_k, prefix_v = (r.normal(size=(NH, P, hs)) for _ in range(2))
    offsets, nothing = np.array([0, T]), np.zeros((NH, 0, hs))
    z, _ = ops.attention(q, k, v, [prefix_k], [prefix_v], offsets)
    alone, _ = ops.attention(q, k, v, [nothing], [nothing], offsets)
    _, cache = reference.attention(q, k, v, [prefix_k], [prefix_v], offsets)  # for its pattern
    _, bare = reference.attention(q, k, v, [nothing], [nothing], offsets)
    scores = np.einsum("thi,hpi->htp", q, prefix_k) / hs**0.5
    on_prefix = np.exp(scores) / np.exp(scores).sum(axis=-1, keepdims=True)
    from_prefix = np.einsum("htp,hpi->thi", on_prefix, prefix_v)
    lam = cache.pattern[0][:, :, :P].sum(axis=-1).T[:, :, None]  # (T, NH, 1)
    assert lam.min() > 0.05
    assert lam.max() < 0.95
    assert relative_error(z, (1 - lam) * alone + lam * from_prefix) < 1e-12
    # so among the tokens the shares stay as they were
    among_tokens = cache.pattern[0][:, :, P:] / (1 - lam).transpose(1, 0, 2)
    assert relative_error(among_tokens, bare.pattern[0]) < 1e-12


def test_a_prefix_of_no_slots_works_everywhere(config, model):
    for prefix in (
        Prefix.normal(config, 0, dtype="float64"),
        Prefix.mlp(config, 0, hidden=4, dtype="float64"),
    ):
        assert prefix.kv.shape == (3, 2, 4, 0, 8)
        assert np.array_equal(model.logits(BATCH, prefix), model.logits(BATCH))
        _, dkv = loss_and_grad(model, prefix, BATCH)
        grads = prefix.backward(dkv)
        for name, grad in grads.items():
            assert grad.shape == prefix.parameters[name].shape
            assert not grad.any()
        assert prefix.fold().length == 0


# ---- bad input ----


@pytest.mark.parametrize("start", [Prefix.normal, Prefix.uniform, Prefix.zero, Prefix.mlp])
@pytest.mark.parametrize(
    ("length", "where", "sentence"),
    [
        (-1, {}, "prefix length is -1: expected 0 or more"),
        (
            64,
            {},
            "prefix length is 64, the model has 64 positions: none would be left for a token; "
            r"shorten the prefix, or train with --position-offset 0 \(position_offset=0\)",
        ),
        (
            99,
            {},
            "prefix length is 99, the model has 64 positions: none would be left for a token; "
            r"shorten the prefix, or train with --position-offset 0 \(position_offset=0\)",
        ),
        (2, {"layers": [3]}, "layer 3 does not exist: the model has layers 0 to 2"),
        (2, {"layers": [1, 0]}, r"layers \[1, 0\]: expected 2 different ones from 0, ascending"),
        (2, {"layers": [1, 1]}, r"layers \[1, 1\]: expected 2 different ones from 0, ascending"),
        (2, {"layers": [-1, 1]}, r"layers \[-1, 1\]: expected 2 different ones from 0, ascending"),
        (2, {"position_offset": -2}, "position_offset is -2: expected 0 or more"),
    ],
)
def test_a_bad_length_layer_or_position_is_a_sentence(config, start, length, where, sentence):
    with pytest.raises(InputError, match=f"^{sentence}$"):
        start(config, length, **where)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (
            lambda m: Prefix(np.zeros((3, 4, 1, 8))),
            r"prefix has shape \(3, 4, 1, 8\): expected \(layers, 2, heads, P, head size\)",
        ),
        (
            lambda m: Prefix(np.zeros((3, 1, 4, 1, 8))),
            r"prefix has shape \(3, 1, 4, 1, 8\): expected \(layers, 2, heads, P, head size\)",
        ),
        (
            lambda m: Prefix(np.zeros((3, 2, 4, 1, 8)), layers=[0, 1]),
            r"layers \[0, 1\]: expected 3 different ones from 0, ascending",
        ),
        (
            lambda m: Prefix.mlp(m.config, 2, hidden=0),
            "the MLP has a hidden width of 0: expected at least 1",
        ),
        (
            lambda m: Prefix.mlp(m.config, 2, onto=Prefix.zero(m.config, 3)),
            r"cannot fit a prefix of shape \(3, 2, 4, 2, 8\) to one of \(3, 2, 4, 3, 8\)",
        ),
        (
            lambda m: Prefix(np.zeros((3, 3, 4, 1, 8))),
            r"prefix has shape \(3, 3, 4, 1, 8\): expected \(layers, 2, heads, P, head size\)",
        ),
        (
            lambda m: Prefix(np.zeros((3, 2, 4, 1, 8), int)),
            "prefix has int64 numbers: expected floating-point ones",
        ),
        (lambda m: Prefix.normal(m.config, 2, std=-0.1), "std is -0.1: expected 0 or more, finite"),
        (
            lambda m: Prefix.normal(m.config, 2, std=np.inf),
            "std is inf: expected 0 or more, finite",
        ),
        (
            lambda m: Prefix.normal(m.config, 2, std=np.nan),
            "std is nan: expected 0 or more, finite",
        ),
        (
            lambda m: Prefix.uniform(m.config, 2, bound=-0.1),
            "bound is -0.1: expected 0 or more, finite",
        ),
        (
            lambda m: Prefix.uniform(m.config, 2, bound=np.inf),
            "bound is inf: expected 0 or more, finite",
        ),
        (
            lambda m: Prefix.text(m, []),
            "the text of a text prefix is empty: give at least one token",
        ),
        (lambda m: Prefix.text(m, "summarize"), "model 'random' has no tokenizer.*"),
        (lambda m: Prefix.text(m, [50]), "token id 50 of sequence 0 lies outside the vocabulary.*"),
        (lambda m: Prefix.text(m, [1] * 65), "sequence 0 has 65 tokens, model 'random' has room.*"),
        (
            lambda m: Prefix.text(m, [1, 2], layers=[7]),
            "layer 7 does not exist: the model has layers 0 to 2",
        ),
        (
            lambda m: Prefix(np.zeros((3, 2, 4, 1, 9))).check(m.config, "base"),
            "prefix has 4 heads of size 9, model 'base' has 4 of size 8: this prefix was trained "
            "on another base",
        ),
        (
            lambda m: Prefix(np.zeros((4, 2, 4, 1, 8))).check(m.config, "base"),
            "prefix has keys for layers 0-3, model 'base' has 3 layers: this prefix was trained on "
            "another base",
        ),
        (
            lambda m: Prefix(np.zeros((1, 2, 4, 1, 8)), layers=[3]).check(m.config, "base"),
            "prefix has keys for layers 3, model 'base' has 3 layers: this prefix was trained on "
            "another base",
        ),
        (
            lambda m: Prefix.mlp(Config(2, 4, 32, 50, 64), 2).check(m.config, "base"),
            "prefix has keys for layers 0,1, model 'base' has 3 layers: this prefix was trained on "
            "another base",
        ),
        (
            lambda m: Prefix(np.zeros((3, 2, 4, 1, 8)), position_offset=64).check(m.config, "base"),
            "position_offset is 64, model 'base' has positions 0 to 63: none is left for a token; "
            r"shorten the prefix, or train with --position-offset 0 \(position_offset=0\)",
        ),
    ],
)
def test_a_bad_prefix_is_a_sentence(model, call, sentence):
    with pytest.raises(InputError, match=f"^{sentence}$"):
        call(model)


@pytest.mark.parametrize("layers", [None, [0], [2], [0, 1, 2], []])
def test_a_prefix_of_the_models_shape_passes_the_check(config, model, layers):
    prefix = Prefix.normal(config, 2, layers=layers, dtype="float64")
    prefix.check(config, "base")
    assert np.isfinite(model.logits(BATCH, prefix)).all()


def test_a_prefix_in_no_layer_fits_a_model_of_one_layer():
    single = Config(n_layer=1, n_head=4, n_embd=32, vocab_size=50, n_positions=64)
    Prefix.normal(single, 2, layers=[]).check(single, "base")


def test_keys_for_other_layers_than_were_named_are_not_passed_over(config):
    prefix = Prefix.zero(config, 2)
    prefix.parameters["kv"] = prefix.kv[:2]
    with pytest.raises(ValueError, match="shorter"):
        prefix.by_layer(3, np.zeros((4, 0, 8)))


def test_the_longest_prefix_leaves_one_position(config, model):
    prefix = Prefix.normal(config, 63, dtype="float64")
    assert model.logits(Batch.pack([[4]]), prefix).shape == (1, 50)
    with pytest.raises(InputError, match=r"sequence 0 has 2 tokens, .* has room for 1 \(64 pos"):
        model.logits(Batch.pack([[4, 4]]), prefix)


@pytest.mark.parametrize("start", [Prefix.normal, Prefix.uniform, Prefix.zero, Prefix.mlp])
def test_a_prefix_longer_than_the_model_works_where_tokens_start_at_position_0(start):
    short = Config(n_layer=2, n_head=2, n_embd=8, vocab_size=50, n_positions=11)
    prefix, model = start(short, 30, position_offset=0), random_model(short, dtype="float32")
    prefix.check(short, "short")
    assert model.room(prefix) == 12
    assert np.isfinite(model.logits(Batch.pack([[4] * 11]), prefix)).all()


def test_the_last_target_needs_no_position(config, model):
    """It equals a model with one position more, whatever that one holds."""
    weights = model.weights | {
        "wpe.weight": np.vstack([model.weights["wpe.weight"], np.full(32, 9)])
    }
    longer = GPT2(replace(config, n_positions=65), weights)
    prefix = Prefix.normal(config, 3, dtype="float64")
    full = np.random.default_rng(0).integers(0, 50, 62).tolist()
    assert model.room(prefix) == len(full)
    batch = Batch.pack([full, full[:9], full[:5]], loss_from=[60, 1, 5])
    value, dkv = loss_and_grad(model, prefix, batch)
    wanted, dwanted = loss_and_grad(longer, prefix, batch)
    assert value == wanted == loss(model, batch, prefix)
    assert np.array_equal(dkv, dwanted)
    _, dweights = loss_and_weight_grads(model, batch, prefix)
    _, dmore = loss_and_weight_grads(longer, batch, prefix)
    assert np.array_equal(dweights["wpe.weight"], dmore["wpe.weight"][:64])
    assert not dmore["wpe.weight"][64].any()
    for too_long in (
        lambda: model.logits(batch, prefix),
        lambda: longer.logits(batch, Prefix.zero(config, 4)),
    ):
        with pytest.raises(InputError, match=r"sequence 0 has 62 tokens, .* has room for 61"):
            too_long()
    one_more = Batch.pack([[*full, 1]])
    with pytest.raises(InputError, match=r"room for 62 .*the last token, a target, needs none"):
        loss(model, one_more, prefix)


@pytest.mark.parametrize("start", [Prefix.normal, Prefix.uniform, Prefix.mlp])
def test_a_negative_seed_is_a_sentence(config, start):
    with pytest.raises(InputError, match=r"^seed is -1: expected 0 or more$"):
        start(config, 2, seed=-1)


def test_an_unknown_option_of_a_start_raises(config):
    with pytest.raises(TypeError, match="lenght"):
        Prefix.normal(config, lenght=3)


def test_a_prefix_says_what_it_is_and_how_much_of_it_is_trained(config):
    flat = Prefix.zero(config, 3, layers=[0, 2], position_offset=0)
    through = Prefix.mlp(config, 3, hidden=6)
    assert repr(flat) == (
        "Prefix(3 slots in layers 0,2 x 4 heads of size 8, tokens from position 0, "
        "384 parameters, float32, cpu)"
    )
    trained = 3 * 32 + (32 + 1) * 6 + (6 + 1) * (3 * 2 * 32)
    assert repr(through) == (
        "MLPPrefix(3 slots in layers 0-2 x 4 heads of size 8, tokens from position 3, "
        f"{trained} parameters, float32, cpu)"
    )


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        ([0, 1, 2], "0-2"),
        ([1, 2, 3, 4], "1-4"),
        ([0, 1], "0,1"),
        ([0, 2, 3], "0,2,3"),
        ([3], "3"),
        ([], "none"),
    ],
)
def test_a_prefix_names_its_layers_in_the_shortest_way(layers, said):
    deep = Config(n_layer=6, n_head=4, n_embd=32, vocab_size=50, n_positions=64)
    assert f"slots in layers {said} x 4 heads" in repr(Prefix.zero(deep, 3, layers=layers))
