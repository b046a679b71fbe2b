"""The whole model against transformers and PEFT, and against its own derivatives."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GPT2Config

from minprefix import GPT2, Batch, Config, InputError, Prefix, gpt2, loss, loss_and_grad
from minprefix import loss_and_weight_grads as weight_grads
from minprefix.generate import generate_ids
from minprefix.model import loss_backward, prepare
from minprefix.ops import get as get_ops
from minprefix.ops import numpy_ops, reference
from tests.conftest import hf_logits, random_model, relative_error, to_hf

BACKENDS = pytest.mark.parametrize("ops", ["reference", "numpy"])


def random_prefix(config, length, seed, dtype="float64", **where):
    return Prefix.normal(config, length, std=1.0, seed=seed, dtype=dtype, **where)


shapes = st.fixed_dictionaries(
    {
        "n_layer": st.integers(1, 3),
        "n_head": st.integers(1, 3),
        "head_size": st.sampled_from([6, 8, 10]),  # a layernorm over 2 or 4 cancels nearly all
        "vocab_size": st.integers(5, 40),
        "n_inner": st.sampled_from([None, 12]),
        "tied": st.booleans(),
        "lengths": st.lists(st.integers(2, 10), min_size=1, max_size=4),
        "P": st.lists(st.integers(0, 4), min_size=1, max_size=3),
        "offset": st.sampled_from([None, 0, 3]),
        "seed": st.integers(0, 10**6),
    }
)


@settings(max_examples=25, deadline=None)
@given(shape=shapes)
@pytest.mark.parametrize("ops", ["reference", "numpy"])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_logits_loss_and_every_gradient_agree_with_transformers_in_float64(ops, reduction, shape):
    r = np.random.default_rng(shape["seed"])
    config = Config(
        n_layer=shape["n_layer"],
        n_head=shape["n_head"],
        n_embd=shape["n_head"] * shape["head_size"],
        vocab_size=shape["vocab_size"],
        n_positions=20,
        n_inner=shape["n_inner"],
        tie_word_embeddings=shape["tied"],
    )
    model = random_model(config, shape["seed"])
    prefixes = [
        random_prefix(config, p, i, position_offset=shape["offset"])
        for i, p in enumerate(shape["P"])
    ]
    seqs = [r.integers(0, config.vocab_size, T) for T in shape["lengths"]]
    which = r.integers(0, len(prefixes), len(seqs))
    starts = [int(r.integers(1, T)) for T in shape["lengths"]]
    batch = Batch.pack(seqs, starts, which)

    hf = to_hf(model)
    kvs = [torch.tensor(p.kv, requires_grad=True) for p in prefixes]
    total, n, all_logits = torch.zeros((), dtype=torch.float64), 0, []
    for ids, start, i in zip(seqs, starts, which, strict=True):
        logits = hf_logits(hf, ids, kvs[i], prefixes[i].position_offset)
        all_logits.append(logits)
        # not `labels=`: transformers computes that loss in float32
        total = total + torch.nn.functional.cross_entropy(
            logits[start - 1 : -1], torch.tensor(ids[start:]), reduction="sum"
        )
        n += len(ids) - start
    want = total / n if reduction == "mean" else total
    want.backward()

    assert relative_error(model.logits(batch, prefixes, ops), _np(torch.cat(all_logits))) < 1e-10
    value, dkvs = loss_and_grad(model, prefixes, batch, reduction, ops)
    assert abs(value - want.item()) < 1e-10 * abs(want.item())
    assert abs(loss(model, batch, prefixes, reduction, ops) - value) < 1e-12 * abs(value)
    for i, (dkv, kv) in enumerate(zip(dkvs, kvs, strict=True)):
        grad = np.zeros(kv.shape) if i not in which else kv.grad.numpy()
        assert relative_error(dkv, grad) < 1e-10
    value_all, dweights = weight_grads(model, batch, prefixes, reduction, ops)
    assert value_all == value
    named = {n.removeprefix("transformer."): p for n, p in hf.named_parameters()}
    assert set(dweights) == set(model.weights) == set(named)
    for name, dweight in dweights.items():
        assert relative_error(dweight, named[name].grad.numpy()) < 1e-10, name


def _np(t: torch.Tensor) -> np.ndarray:
    return t.detach().numpy()


@pytest.mark.long
def test_logits_agree_to_1e_4_in_float32_at_the_124m_shape():
    config = Config(n_layer=12, n_head=12, n_embd=768, vocab_size=50257, n_positions=1024)
    model = GPT2.random(config, seed=0)
    assert model.n_parameters == 124_439_808
    hf = to_hf(model)
    ids = np.random.default_rng(1).integers(0, 50257, 48)
    prefix = random_prefix(config, 10, 0, "float32")
    with torch.no_grad():
        want = _np(hf_logits(hf, ids, torch.tensor(prefix.kv), 10))
    assert relative_error(model.logits(Batch.pack([ids]), prefix), want) < 1e-4


# ---- PEFT ----


def peft_model(model, P, projection=False):
    from peft import PrefixTuningConfig, get_peft_model

    kind = PrefixTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=P, prefix_projection=projection
    )
    return get_peft_model(to_hf(model), kind).eval()


@pytest.mark.parametrize("projection", [False, True], ids=["flat", "mlp"])
def test_a_prefix_that_peft_saved_gives_its_logits_here(tmp_path, config, projection):
    torch.manual_seed(0)
    model = random_model(config, dtype="float32")
    theirs = peft_model(model, 6, projection)
    theirs.save_pretrained(tmp_path)
    ours = Prefix.load(tmp_path, model)
    ids = np.random.default_rng(0).integers(0, 50, 12)
    with torch.no_grad():
        want = _np(theirs(torch.tensor(ids)[None]).logits[0])
    got = model.logits(Batch.pack([ids]), ours)
    assert relative_error(got, want) < 1e-4
    bare = model.logits(Batch.pack([ids]))
    assert relative_error(bare, want) > 1e-2  # the prefix matters


@pytest.mark.parametrize("through_mlp", [False, True], ids=["flat", "mlp"])
def test_a_prefix_saved_here_gives_its_logits_in_peft(tmp_path, config, through_mlp):
    from peft import PeftModel

    model = random_model(config, dtype="float32")
    prefix = (
        Prefix.mlp(config, 6, hidden=24)
        if through_mlp
        else random_prefix(config, 6, 0, dtype="float32")
    )
    prefix.save(tmp_path, model)
    theirs = PeftModel.from_pretrained(to_hf(model), str(tmp_path)).eval()
    ids = np.random.default_rng(0).integers(0, 50, 12)
    with torch.no_grad():
        got = _np(theirs(torch.tensor(ids)[None]).logits[0])
    assert relative_error(got, model.logits(Batch.pack([ids]), prefix)) < 1e-4


# ---- derivatives of the whole ----


def test_the_complex_step_confirms_dkv_to_1e_12(config, model):
    prefix = random_prefix(config, 3, 1)
    batch = Batch.pack([[5, 2, 9, 4], [7, 1]], loss_from=[2, 1])
    _, dkv = loss_and_grad(model, prefix, batch, ops="reference")
    h, steps = 1e-30, np.zeros_like(dkv)
    r = np.random.default_rng(0)
    indices = [tuple(r.integers(0, n) for n in dkv.shape) for _ in range(60)]
    for index in indices:
        kv = prefix.kv.astype(complex)
        kv[index] += 1j * h
        w = {n: a.astype(complex) for n, a in model.weights.items()}
        value = complex_loss(GPT2(config, w), batch, Prefix(kv))
        steps[index] = value.imag / h
    at = tuple(np.array(indices).T)
    assert relative_error(dkv[at], steps[at]) < 1e-12


def complex_loss(model, batch, prefix):
    return loss(model, batch, prefix, ops="reference")


@BACKENDS
def test_finite_differences_confirm_dkv_along_random_directions(config, model, ops):
    prefix = random_prefix(config, 3, 1)
    batch = Batch.pack([[5, 2, 9, 4], [7, 1]], loss_from=[2, 1])
    _, dkv = loss_and_grad(model, prefix, batch, ops=ops)
    for seed in range(5):
        d = np.random.default_rng(seed).normal(size=dkv.shape)
        eps = 1e-5
        plus = loss(model, batch, Prefix(prefix.kv + eps * d), ops=ops)
        minus = loss(model, batch, Prefix(prefix.kv - eps * d), ops=ops)
        assert (plus - minus) / (2 * eps) == pytest.approx((d * dkv).sum(), rel=1e-7)


# ---- laws ----


@BACKENDS
def test_p_0_is_plain_gpt2_bit_for_bit(config, model, ops):
    batch = Batch.pack([[5, 2, 9, 4], [7, 1]])
    plain = model.logits(batch, ops=ops)
    assert np.array_equal(model.logits(batch, Prefix.zero(config, 0, dtype="float64"), ops), plain)
    _, dkv = loss_and_grad(model, Prefix.zero(config, 0, dtype="float64"), batch, ops=ops)
    assert dkv.shape == (3, 2, 4, 0, 8)


@BACKENDS
def test_a_prefix_of_a_text_equals_prompting_with_it_to_1e_12(model, ops):
    text, rest = [3, 17, 44, 9, 3], [8, 12, 1, 30]
    prefix = Prefix.text(model, text)
    prompted = model.logits(Batch.pack([text + rest]), ops=ops)[len(text) :]
    assert relative_error(model.logits(Batch.pack([rest]), prefix, ops), prompted) < 1e-12


@BACKENDS
def test_a_batch_with_many_prefixes_equals_separate_runs(config, model, ops):
    r = np.random.default_rng(5)
    prefixes = [random_prefix(config, p, p) for p in (3, 0, 5, 1)]
    seqs = [r.integers(0, 50, T) for T in (4, 9, 2, 6, 5)]
    which, starts = [2, 0, 3, 1, 2], [1, 4, 1, 3, 2]
    batch = Batch.pack(seqs, starts, which)
    logits = model.logits(batch, prefixes, ops)
    value, dkvs = loss_and_grad(model, prefixes, batch, "sum", ops)
    sums, total = [np.zeros_like(p.kv) for p in prefixes], 0.0
    for b, (ids, start, i) in enumerate(zip(seqs, starts, which, strict=True)):
        alone = Batch.pack([ids], start)
        rows = slice(batch.offsets[b], batch.offsets[b + 1])
        assert relative_error(logits[rows], model.logits(alone, prefixes[i], ops)) < 1e-12
        part, dkv = loss_and_grad(model, prefixes[i], alone, "sum", ops)
        sums[i] += dkv
        total += part
    assert value == pytest.approx(total, rel=1e-12)
    for dkv, want in zip(dkvs, sums, strict=True):
        assert relative_error(dkv, want) < 1e-12


def test_the_position_rule_changes_the_logits_and_the_real_positions_are_used(config, model):
    batch = Batch.pack([[5, 2, 9, 4]])
    after = random_prefix(config, 3, 0)
    from_zero = Prefix(after.kv, position_offset=0)
    assert after.position_offset == 3
    a, b = model.logits(batch, after), model.logits(batch, from_zero)
    assert relative_error(a, b) > 1e-3
    shifted = dict(model.weights)
    shifted["wpe.weight"] = np.roll(model.weights["wpe.weight"], -3, axis=0)
    assert np.array_equal(GPT2(config, shifted).logits(batch, from_zero), a)


def test_layers_outside_the_subset_see_no_prefix(config, model):
    batch = Batch.pack([[5, 2, 9, 4], [7, 1, 1]], loss_from=2)
    top = random_prefix(config, 3, 0, layers=[2])
    _, dkv = loss_and_grad(model, top, batch)
    assert dkv.shape == top.kv.shape == (1, 2, 4, 3, 8)
    # the complement of the proof: finite differences see the same gradient
    d = np.random.default_rng(0).normal(size=dkv.shape)
    ends = [loss(model, batch, Prefix(top.kv + s * 1e-5 * d, layers=[2])) for s in (1, -1)]
    assert (ends[0] - ends[1]) / 2e-5 == pytest.approx((d * dkv).sum(), rel=1e-7)
    # layers 0 and 1 do as without a prefix, at the same positions
    none = Prefix.zero(config, 0, position_offset=3, dtype="float64")
    from minprefix import ops
    from minprefix.gpt2 import embedding, forward
    from minprefix.model import prepare

    def resid_before_layer_2(prefix):
        stream, w, numpy = prepare(model, batch, prefix), model.weights, ops.get("numpy")
        _, blocks = forward(embedding(stream, w, numpy), stream, w, config, numpy)
        return blocks[2].attn.ln_1.xhat

    assert np.array_equal(resid_before_layer_2(top), resid_before_layer_2(none))


def test_weights_of_targets_scale_their_share_of_the_loss(model):
    seqs = [[5, 2, 9, 4]]
    parts = [
        loss(model, Batch.pack([s[: i + 1]], i), reduction="sum") for s in seqs for i in (2, 3)
    ]
    weighted = Batch.pack(seqs, 2, weights=[[0.5, 2.0]])
    assert loss(model, weighted, reduction="sum") == pytest.approx(0.5 * parts[0] + 2 * parts[1])
    assert loss(model, weighted) == pytest.approx((0.5 * parts[0] + 2 * parts[1]) / 2.5)


def test_a_frozen_backward_makes_no_weight_gradient_and_stops_at_block_0s_attention(model, config):
    from minprefix.ops import numpy_ops

    class Counting:
        def __init__(self):
            self.calls = []

        def __getattr__(self, name):
            def call(*args):
                self.calls.append(name)
                return getattr(numpy_ops, name)(*args)

            return call

    counting = Counting()
    loss_and_grad(model, random_prefix(config, 2, 0), Batch.pack([[1, 2, 3]]), ops=counting)
    assert not [c for c in counting.calls if c.endswith("_params")]
    # ln_f, and two in each block but the lowest, which needs ln_2 alone
    assert counting.calls.count("layernorm_backward") == 1 + 2 * config.n_layer - 1


def test_a_forward_keeps_the_inputs_of_linear_layers_only_for_the_gradients_of_weights(
    config, model
):
    from minprefix.gpt2 import embedding, forward
    from minprefix.model import prepare

    stream = prepare(model, Batch.pack([[1, 2, 3]]), random_prefix(config, 2, 0))
    x = embedding(stream, model.weights, reference)

    def kept(*need):
        _, blocks = forward(x, stream, model.weights, config, reference, *need)
        return [
            a if a is None else a.shape
            for attn, mlp in blocks
            for a in (attn.ln_1_out, attn.z, mlp.ln_2_out, mlp.gelu_out)
        ]

    assert kept() == [None] * 12
    assert kept(model.weights.keys()) == [(3, 32), (3, 32), (3, 32), (3, 128)] * 3
    some = {"h.1.attn.c_proj.weight", "h.2.mlp.c_proj.bias", "h.0.ln_1.weight"}
    assert kept(some) == [None] * 4 + [None, (3, 32), None, None] + [None] * 3 + [(3, 0)]


@pytest.mark.parametrize(
    "names",
    [
        ["h.0.attn.c_attn.weight"],
        ["h.1.attn.c_attn.weight"],
        ["h.0.mlp.c_fc.bias", "h.2.ln_1.weight", "h.2.attn.c_proj.bias"],
        ["h.1.ln_1.bias", "h.1.ln_2.weight"],
        ["wpe.weight", "ln_f.bias"],
        ["wte.weight"],
        ["lm_head.weight", "h.2.mlp.c_proj.weight", "h.2.attn.c_attn.bias"],
        [],
    ],
)
@BACKENDS
def test_only_the_gradients_that_are_asked_for_come_back_and_they_are_the_same(config, names, ops):
    tied = "lm_head.weight" not in names
    model = random_model(replace(config, tie_word_embeddings=tied))
    batch = Batch.pack([[1, 2, 3, 4, 5], [6, 7, 8]], loss_from=[2, 1], prefix=[1, 0])
    prefixes = [random_prefix(config, 3, 0, layers=[2]), random_prefix(config, 1, 1)]
    every = loss_backward(model, prefixes, batch, ops=ops, need=model.weights.keys())
    value, dkvs, dweights = loss_backward(model, prefixes, batch, ops=ops, need=set(names))
    assert value == every[0]
    assert all(np.array_equal(a, b) for a, b in zip(dkvs, every[1], strict=True))
    assert dweights.keys() == set(names)
    for name in names:
        assert np.array_equal(dweights[name], every[2][name]), name
    _, named = weight_grads(model, batch, prefixes, ops=ops, names=names)
    assert named.keys() == dweights.keys()


@pytest.mark.parametrize(
    ("names", "norms", "attentions", "linears"),
    [
        ([], 1, 0, 1),  # the head and ln_f alone
        (["ln_f.weight"], 1, 0, 1),
        (["h.2.mlp.c_fc.bias"], 2, 1, 4),  # layer 2's MLP and c_proj
        (["h.2.attn.c_attn.weight"], 2, 1, 4),
        (["h.2.ln_1.bias"], 3, 1, 5),
        (["h.1.attn.c_attn.bias"], 4, 2, 8),
        (["wpe.weight"], 7, 3, 13),
    ],
)
def test_a_backward_stops_at_the_lowest_layer_where_something_is_wanted(
    config, model, names, norms, attentions, linears
):
    counting = Counting()
    weight_grads(model, Batch.pack([[1, 2, 3]]), ops=counting, names=names)
    assert len(counting.rows["layernorm_backward"]) == norms
    assert len(counting.rows.get("attention_backward", [])) == attentions
    assert len(counting.rows["linear_backward"]) == linears
    assert len(counting.rows.get("embed_backward_params", [])) == names.count("wpe.weight")
    params = [layer for name in names if "." in (layer := name.rpartition(".")[0])]
    calls = counting.rows.get("linear_backward_params", [])
    calls += counting.rows.get("layernorm_backward_params", [])
    assert len(calls) == len(params) + names.count("ln_f.weight")


def test_a_sequence_has_room_for_a_token_at_each_position_and_one_more(config):
    assert config.room() == config.n_positions + 1
    assert config.room(3) == config.n_positions - 2


def test_a_weight_that_the_model_does_not_have_is_refused(model):
    with pytest.raises(InputError, match=r"no weight 'h.3.ln_1.bias': its names are the keys of"):
        weight_grads(model, Batch.pack([[1, 2, 3]]), names=["wte.weight", "h.3.ln_1.bias"])


@BACKENDS
def test_the_gradient_of_the_first_residual_stream_is_its_central_difference(config, model, ops):
    stream = prepare(model, Batch.pack([[1, 2, 3], [4, 5]]), random_prefix(config, 2, 0))
    w, implementation = model.weights, get_ops(ops)
    x = gpt2.embedding(stream, w, implementation)
    rows, weights = np.array([1, 2, 3]), np.array([1.0, 0.5, 2.0])

    def run(x):
        top, blocks = gpt2.forward(x, stream, w, config, implementation)
        loss, cache = gpt2.head_loss(top[rows], rows, weights, w, config, implementation, set())
        return loss, blocks, cache, top

    _, blocks, cache, top = run(x)
    dx = np.zeros_like(top)
    dx[rows], dw = gpt2.head_loss_backward(w, cache, implementation)
    grads = gpt2.backward(dx.copy(), w, config, blocks, implementation, lowest=2, need_dx=True)
    assert dw == grads.dweights == {}
    direction = np.random.default_rng(0).normal(size=x.shape)
    ends = [run(x + step * direction)[0] for step in (1e-5, -1e-5)]
    assert (ends[0] - ends[1]) / 2e-5 == pytest.approx((grads.dx * direction).sum(), rel=1e-7)
    _, blocks, *_ = run(x)
    frozen = gpt2.backward(dx, w, config, blocks, implementation, lowest=2)
    assert frozen.dx is None
    assert [len(dk) for dk, _ in frozen.dpast] == [0, 0, 2]
    assert np.array_equal(frozen.dpast[2][0][1], grads.dpast[2][0][1])


class Counting:
    """The reference, and how many rows each call of an op was given."""

    def __init__(self):
        self.rows = {}

    def __getattr__(self, name):
        def call(*arguments):
            first = arguments[0]
            self.rows.setdefault(name, []).append(
                len(first) if isinstance(first, np.ndarray) else 0
            )
            return getattr(reference, name)(*arguments)

        return call


@pytest.mark.parametrize("ops", [reference, numpy_ops], ids=["reference", "numpy"])
@pytest.mark.parametrize("need", ["nothing", "prefix", "all"])
def test_logits_some_rows_at_a_time_give_the_same_loss_and_gradients(
    monkeypatch, config, model, ops, need
):
    batch = Batch.pack([[1, 2, 3, 4, 5], [6, 7, 8]])

    def run():
        if need == "nothing":
            return {"loss": np.array(loss(model, batch, ops=ops))}
        if need == "all":
            value, grads = weight_grads(model, batch, ops=ops)
            return grads | {"loss": np.array(value)}
        value, dkv = loss_and_grad(model, random_prefix(config, 3, 0), batch, ops=ops)
        return {"loss": np.array(value), "dkv": dkv}

    at_once = run()
    counting = Counting()
    monkeypatch.setattr(gpt2, "HEAD_ROWS", 4)  # of 6: two parts of unequal size
    for name, a in run().items():
        assert relative_error(a, at_once[name]) < 1e-13, name
    loss(model, batch, ops=counting)
    assert counting.rows["cross_entropy"] == [4, 2]
    x, rows = np.zeros((2, 32)), np.array([0, 1])
    alone = gpt2.head_loss(x, rows, np.ones(2), model.weights, config, reference)
    assert alone[1] is None  # nor is it made where nothing is said
    assert "cross_entropy_backward" not in counting.rows  # the loss alone makes no gradient


def test_the_top_of_the_stack_is_worked_out_only_where_it_predicts(config, model):
    batch = Batch.pack([[1, 2, 3, 4, 5], [6, 7, 8]], loss_from=[4, 2])  # 8 tokens, 2 targets
    counting = Counting()
    loss_and_grad(model, random_prefix(config, 3, 0), batch, ops=counting)
    assert counting.rows["gelu"] == [8, 8, 2]
    assert counting.rows["gelu_backward"] == [2, 8, 8]
    assert counting.rows["attention"] == [8, 8, 8]  # every token gives its key and value
    assert counting.rows["attention_backward"] == [8, 8, 8]


def test_a_float32_backward_is_float32_all_the_way(config):
    seen = []

    class Watching:
        def __getattr__(self, name):
            def call(*arguments):
                seen.extend(a.dtype for a in arguments if isinstance(a, np.ndarray))
                return getattr(numpy_ops, name)(*arguments)

            return call

    batch = Batch.pack([[1, 2, 3, 4, 5], [6, 7, 8]], loss_from=[4, 2])
    prefix = random_prefix(config, 3, 0, dtype="float32")
    loss_and_grad(random_model(config, dtype="float32"), prefix, batch, ops=Watching())
    assert {d for d in seen if d.kind == "f"} == {np.dtype("float32")}


def test_a_backward_stops_at_the_lowest_layer_with_a_prefix(config, model):
    batch = Batch.pack([[1, 2, 3, 4, 5], [6, 7, 8]], prefix=[0, 1])
    everywhere = random_prefix(config, 3, 0)
    for subset, calls in (((1, 2), 2), ((2,), 1), ((), 0)):
        some = Prefix(everywhere.kv[list(subset)], layers=subset)
        counting = Counting()
        found = loss_and_grad(model, [some, some], batch, ops=counting)[1]
        assert len(counting.rows.get("attention_backward", [])) == calls
        assert len(counting.rows.get("gelu_backward", [])) == calls
        # all layers visited: a prefix of the other sequence may reach further down
        lower = Prefix(everywhere.kv, position_offset=3)
        both = loss_and_grad(model, [some, lower], batch)[1][0]
        only = loss_and_grad(model, [some, lower], batch, ops="reference")[1][0]
        assert both.shape == found[0].shape == some.kv.shape
        if both.size:
            assert relative_error(both, only) < 1e-12
            near = finite(model, some, batch)
            assert relative_error(np.where(near, found[0], 0), near) < 1e-6


def finite(model, prefix, batch):
    """Central differences of the loss for the first of two equal prefixes, the second left
    alone."""
    dkv, eps = np.zeros_like(prefix.kv), 1e-5
    other = Prefix(prefix.kv.copy(), layers=prefix.layers)
    for i in np.ndindex(*prefix.kv.shape):
        if i[3] > 0 or i[4] > 1:  # some of them
            continue
        values = []
        for sign in (1, -1):
            kv = prefix.kv.copy()
            kv[i] += sign * eps
            values.append(loss(model, batch, [Prefix(kv, layers=prefix.layers), other]))
        dkv[i] = (values[0] - values[1]) / (2 * eps)
    return dkv


def test_a_batch_in_the_place_of_the_prefix_is_refused_with_the_order(config, model):
    batch, prefix = Batch.pack([[5, 2, 9]], loss_from=1), random_prefix(config, 2, 0)
    order = re.escape("loss_and_grad(model, prefix, batch), loss(model, batch, prefix)")
    for call in (
        lambda: loss_and_grad(model, batch, prefix),
        lambda: loss(model, prefix, batch),
        lambda: model.logits(prefix, batch),
    ):
        with pytest.raises(InputError, match=order):
            call()


def test_an_implementation_that_forgets_a_sequences_gradient_is_refused(config, model):
    from minprefix.ops import reference

    class Forgetful:
        def __getattr__(self, name):
            return getattr(reference, name)

        def attention_backward(self, dz, cache):
            grads = reference.attention_backward(dz, cache)
            return grads._replace(dprefix_v=grads.dprefix_v[:-1])

    prefix = random_prefix(config, 2, 0)
    with pytest.raises(ValueError, match="gave 1 prefix gradients, expected 2"):
        loss_and_grad(model, prefix, Batch.pack([[1, 2, 3], [4, 5]]), ops=Forgetful())


def test_what_a_config_leaves_open_is_as_in_transformers():
    ours, theirs = Config(1, 1, 1, 1, 1), GPT2Config()
    for name in ("n_inner", "layer_norm_epsilon", "tie_word_embeddings"):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert (ours.bos_token_id, ours.eos_token_id) == (None, None)


# ---- what people see ----


def test_a_model_a_prefix_and_a_batch_say_what_they_are_in_one_line(config, model):
    prefix, batch = random_prefix(config, 3, 0), Batch.pack([[1, 2, 3], [4, 5]], prefix=[0, 1])
    assert repr(model) == (
        "GPT2('random': 3 layers x 32 wide x 4 heads, vocabulary 50, 64 positions, 0.04 M "
        "parameters, float64, cpu)"
    )
    assert repr(prefix) == (
        "Prefix(3 slots in layers 0-2 x 4 heads of size 8, tokens from position 3, 576 "
        "parameters, float64, cpu)"
    )
    assert repr(batch) == "Batch(2 sequences, 5 tokens, 3 targets, prefixes [0, 1], int64, cpu)"


# ---- bad input ----


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (
            lambda m: m.logits(Batch.pack([[1, 50]])),
            r"token id 50 of sequence 0 lies outside the vocabulary of model 'random', 0 to 49",
        ),
        (
            lambda m: m.logits(Batch.pack([[1], [2] * 62]), Prefix.zero(m.config, 3)),
            r"sequence 1 has 62 tokens, model 'random' has room for 61 \(64 positions, the first "
            r"3 taken by the prefix\)",
        ),
        (
            lambda m: m.logits(Batch.pack([[1]], prefix=[1]), [Prefix.zero(m.config, 3)]),
            "the batch names prefix 1 .from 0., and 1 were given",
        ),
        (
            lambda m: m.logits(Batch.pack([[1]], prefix=[1])),
            "the batch names prefix 1 .from 0., and 0 were given",
        ),
        (
            lambda m: loss(m, Batch.pack([[1, 2]], 2)),
            "the batch has no targets: loss_from leaves nothing to predict",
        ),
        (
            lambda m: loss(m, Batch.pack([[1, 2]]), reduction="max"),
            "reduction is 'max': expected 'mean' or 'sum'",
        ),
        (
            lambda m: m.logits(Batch.pack([[1]]), Prefix(np.zeros((3, 2, 12, 1, 8)))),
            "prefix has 12 heads of size 8, model 'random' has 4 of size 8: this prefix was "
            "trained on another base",
        ),
        (
            lambda m: m.logits(Batch.pack([[1]]), Prefix(np.zeros((2, 2, 4, 1, 8)))),
            "prefix has keys for layers 0,1, model 'random' has 3 layers: this prefix was "
            "trained on",
        ),
        (lambda m: Batch.pack([]), "a batch needs at least one sequence, got none"),
        (lambda m: Batch.pack([[1], []]), "sequence 1 has shape"),
        (lambda m: Batch.pack([[1.5]]), "sequence 0 holds float64"),
        (lambda m: Batch.pack([[-1]]), "sequence 0 holds int64"),
        (lambda m: Batch.pack(["text"]), "sequence 0 is text: encode it to token ids first"),
        (lambda m: Batch.pack([[1, 2]], 0), "loss_from of sequence 0 is 0: expected 1 to 2"),
        (lambda m: Batch.pack([[1, 2]], [1, 1]), "loss_from has 2 entries for 1 sequence:"),
        (lambda m: Batch.pack([[1, 2]], prefix=[-1]), "prefix indices must be 0 or more, got -1"),
        (lambda m: m.encode("x"), "model 'random' has no tokenizer"),
    ],
)
def test_bad_input_to_the_model_is_a_sentence(model, call, sentence):
    with pytest.raises(InputError, match=sentence):
        call(model)


def test_weights_whose_sum_overflows_are_no_damage(config):
    model = random_model(config, dtype="float32")
    model.weights["wpe.weight"][:2] = 3e38  # of float32's 3.4e38
    model.check_finite()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_in_weights_is_found_at_the_first_use_and_named(model, bad):
    model.weights["h.1.mlp.c_fc.weight"][3, 5] = bad
    with pytest.raises(
        InputError, match=rf"weight 'h.1.mlp.c_fc.weight' .* holds {bad} at \[3, 5\]"
    ):
        model.logits(Batch.pack([[1, 2]]))


def test_one_thing_is_not_said_in_the_plural(tmp_path):
    from minprefix.prefixes.store import PrefixStore
    from minprefix.trace import trace

    model = random_model(Config(1, 1, 4, 9, 8))
    prefix, batch = Prefix.zero(model.config, 1, dtype="float64"), Batch.pack([[3]])
    prefix.save(tmp_path / "p", model)
    seen = trace(model, Batch.pack([[3, 4]]), names="blocks.0.attn.q")
    said = {
        "batch": (batch, "Batch(1 sequence, 1 token, 0 targets, "),
        "two": (Batch.pack([[1, 2], [3]]), "Batch(2 sequences, 3 tokens, 1 target, "),
        "model": (model, "GPT2('random': 1 layer x 4 wide x 1 head, vocabulary 9, 8 positions"),
        "prefix": (prefix, "Prefix(1 slot in layers 0 x 1 head of size 4, tokens from position 1"),
        "store": (PrefixStore(tmp_path, model), "PrefixStore(1 prefix, 0 of them held"),
        "trace": (seen, "Trace(1 record forward, "),
    }
    for name, (thing, text) in said.items():
        assert repr(thing).startswith(text), name
    with pytest.raises(InputError, match="limits has 2 entries for 1 prompt: give one each"):
        generate_ids(model, [[1]], limits=[1, 1])
    with pytest.raises(InputError, match="sequence 0 has 9 tokens, model 'random' has room for 8"):
        model.logits(Batch.pack([[1] * 9]))
    with pytest.raises(InputError, match="prefix length is 9, the model has 8 positions: none"):
        Prefix.zero(model.config, 9)
