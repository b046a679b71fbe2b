"""The rivals' arithmetic: against PyTorch, PEFT and the complex step; decoding; laws."""

from functools import partial

import numpy as np
import pytest

from minprefix import (
    GPT2,
    Batch,
    Config,
    InputError,
    Prefix,
    loss,
    loss_and_grad,
    loss_and_weight_grads,
    methods,
)
from minprefix.conformance.diagnosis import relative_error
from minprefix.data.pairs import Encoded
from minprefix.generate import Decoding, generate_ids
from minprefix.methods import METHODS
from minprefix.methods.p_tuning import PTuning
from minprefix.settings import Settings
from minprefix.trace import trace
from minprefix.train import method_gradient
from tests.oracles import rivals

#: a few of each: a name of the registry, and how it starts
MADE = {
    "full": methods.FineTuning.start,
    "top-layers": lambda m: methods.TopLayers.start(m, 2),
    "bitfit": methods.BitFit.start,
    "prompt-tuning": lambda m: methods.PromptTuning.normal(m, 3, std=0.5),
    "p-tuning": lambda m: PTuning.start(m, 4, 6),
    "p-tuning, lstm": lambda m: PTuning.start(m, 4, 3, encoder="lstm"),
    "infix": lambda m: methods.Infix.start(m, 2, std=0.7),
    "lora": lambda m: methods.LoRA.start(m, 2, 5.0),
    "lora everywhere": lambda m: methods.LoRA.start(m, 3, None, ("c_attn", "c_proj", "c_fc")),
    "adapters": lambda m: methods.Adapters.start(m, 3, std=0.4),
    "adapters, pfeiffer": lambda m: methods.Adapters.start(m, 5, "pfeiffer", std=0.4),
}


def drawn(seed, dtype="float64"):
    """A model and a batch of unlike sequences, and how these were packed."""
    rng = np.random.default_rng(seed)
    NH = int(rng.integers(1, 4))
    sizes = {"n_inner": int(rng.integers(5, 30)), "tie_word_embeddings": seed % 2 == 0}
    cfg = Config(int(rng.integers(2, 4)), NH, NH * int(rng.integers(2, 6)), 23, 30, **sizes)
    model = GPT2.random(cfg, seed, dtype)
    for name, a in model.weights.items():
        model.weights[name] = a * 8 + rng.normal(0, 0.1, a.shape).astype(dtype)
    lengths = rng.integers(2, 9, 4)
    sequences = [rng.integers(0, 23, T).tolist() for T in lengths]
    loss_from = [int(rng.integers(1, T + (b > 0))) for b, T in enumerate(lengths)]
    return model, Batch.pack(sequences, loss_from), sequences, loss_from


def made(kind, model, seed=0):
    """With parameters that training could have left, none of them zero."""
    method, rng = MADE[kind](model), np.random.default_rng(seed)
    for a in method.parameters.values():
        a += rng.normal(0, 0.2, a.shape).astype(a.dtype)
    return method


def worst(found, right):
    assert found.keys() == right.keys()
    return max(relative_error(np.real(found[name]), a) for name, a in right.items())


# ---- gradients ----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", MADE)
def test_the_gradient_is_that_of_autograd(kind, seed):
    model, batch, sequences, loss_from = drawn(seed)
    method = made(kind, model, seed)
    reduction = ("mean", "sum")[seed % 2]
    given = (model.weights, model.config, sequences, loss_from, reduction)
    right_loss, right = rivals.loss_and_grads(method, *given)
    assert all(np.abs(a).max() > 0 for a in right.values())
    for ops in ("reference", "numpy"):
        value, grads = loss_and_grad(model, method, batch, reduction, ops)
        assert value == pytest.approx(right_loss, rel=1e-12)
        assert loss(model, batch, method, reduction, ops) == pytest.approx(value, rel=1e-12)
        assert worst(grads, right) < 1e-10


@pytest.mark.parametrize("kind", MADE)
def test_the_gradient_is_that_of_the_complex_step(kind):
    model, batch, _, _ = drawn(5, "complex128")
    method, rng = made(kind, model), np.random.default_rng(1)
    _, grads = loss_and_grad(model, method, batch, ops="reference")
    for name, p in method.parameters.items():
        for _ in range(3):
            at = tuple(int(rng.integers(n)) for n in p.shape)
            before, p[at] = p[at], p[at] + 1e-30j
            slope = loss(model, batch, method, ops="reference").imag / 1e-30
            p[at] = before
            assert abs(slope - grads[name][at].real) < 1e-12 * np.abs(grads[name]).max()


@pytest.mark.parametrize("kind", ["lora", "lora everywhere"])
def test_the_gradient_with_dropout_is_that_of_the_complex_step(kind):
    model, batch, _, _ = drawn(6, "complex128")
    method = made(kind, model)
    method.dropout = 0.4

    def value_and_grads():
        rng = np.random.default_rng(3)  # the same masks each time
        return method.loss_and_grads(model, batch, "mean", "reference", rng)

    value, grads = value_and_grads()
    assert value != loss(model, batch, method, ops="reference")
    for name, p in list(method.parameters.items())[:6]:
        for at in np.ndindex(*p.shape):
            before, p[at] = p[at], p[at] + 1e-30j
            slope = value_and_grads()[0].imag / 1e-30
            p[at] = before
            assert abs(slope - grads[name][at].real) < 1e-12 * np.abs(grads[name]).max()


@pytest.mark.parametrize("kind", MADE)
def test_micro_batches_make_the_same_gradient(kind):
    model, _, sequences, _ = drawn(2)
    method = made(kind, model)
    chosen = [
        Encoded(ids, len(ids) - 1 - b % 2 * (len(ids) > 2)) for b, ids in enumerate(sequences)
    ]
    whole, parts = (
        method_gradient(model, method, chosen, Settings(steps=1, micro_batch_size=size), 0)
        for size in (None, 3)
    )
    assert parts[0] == pytest.approx(whole[0], rel=1e-12)
    assert worst(parts[1], whole[1]) < 1e-12


def test_every_rival_is_made():
    assert {kind.split()[0].strip(",") for kind in MADE} == set(METHODS)


def test_fine_tuning_trains_the_weights_that_its_name_says():
    model, _, _, _ = drawn(3)
    weights, L = set(model.weights), model.config.n_layer
    trained = {kind: set(MADE[kind](model).parameters) for kind in ("full", "top-layers", "bitfit")}
    assert trained["full"] == weights
    top = tuple(f"h.{i}." for i in (L - 2, L - 1))
    assert trained["top-layers"] == {name for name in weights if name.startswith(top)}
    assert len(trained["top-layers"]) == 2 * 12
    assert trained["bitfit"] == {name for name in weights if model.weights[name].ndim == 1} - {
        name for name in weights if "ln_" in name and name.endswith("weight")
    }
    for name, a in methods.FineTuning.start(model).parameters.items():
        assert a is not model.weights[name]  # the frozen model is not what is trained


# ---- against PEFT -------------------------------------------------------------------------------


def peft_losses_and_grads(config, method, model, sequences, loss_from, fill):
    """Loss and gradients of PEFT's trainable parameters, in float64, one sequence at a time."""
    import peft
    import torch
    from torch.nn import functional as F

    from tests.peft_adapter import gpt2

    torch.manual_seed(0)
    whole = peft.get_peft_model(gpt2(model.config, model.weights).double(), config).double().eval()
    named = {n: p for n, p in whole.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for name, a in fill(method).items():
            (key,) = [n for n in named if n.endswith(name)]
            assert named[key].shape == a.shape, (key, a.shape)
            named[key].copy_(torch.tensor(a))
    P, nll = method.position_offset, []
    for ids, start in zip(sequences, loss_from, strict=True):
        tokens = torch.tensor([ids])
        logits = whole(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits[0, P:]
        nll.append(F.cross_entropy(logits[start - 1 : -1], tokens[0, start:], reduction="none"))
    value = torch.cat(nll).mean()  # not `labels=`, whose loss is computed in float32
    value.backward()
    grads = {k: next(p.grad for n, p in named.items() if n.endswith(k)) for k in fill(method)}
    return value.item(), {name: g.numpy() for name, g in grads.items()}


def lora_names(parts):
    """Ours (in, r), (r, out) -> PEFT's names, transposed."""
    return {f"{name}.default.weight": a.T for name, a in parts.items()}


def encoder_names(parts):
    names = {"embedding.weight": parts["embedding"]}
    for key, a in parts.items():
        if key.startswith("lstm"):
            layer, direction, part = key.split(".")
            where = f"lstm_head.{{}}_l{layer[-1]}{'_reverse' * (direction == 'backward')}"
            if part == "bias":  # PyTorch has two, which add up: the gradient of each is ours
                names |= {where.format("bias_ih"): a, where.format("bias_hh"): a * 0}
            else:
                names[where.format(f"weight_{'i' if part == 'weight_x' else 'h'}h")] = a.T
    for i in range(1, 2 + ("weight_2" in parts) + ("weight_3" in parts)):
        names[f"mlp_head.{2 * i - 2}.weight"] = parts[f"weight_{i}"].T
        names[f"mlp_head.{2 * i - 2}.bias"] = parts[f"bias_{i}"]
    return names


@pytest.mark.parametrize(
    "kind", ["lora", "lora everywhere", "prompt-tuning", "p-tuning", "p-tuning, lstm"]
)
@pytest.mark.filterwarnings("ignore")
def test_the_gradient_is_that_of_peft(kind):
    import peft

    model, batch, sequences, loss_from = drawn(4)
    method = made(kind, model)
    task = {"task_type": "CAUSAL_LM"}
    if kind.startswith("lora"):
        targets = method.options["targets"]
        config = peft.LoraConfig(
            r=method.rank,
            lora_alpha=method.alpha,
            target_modules=targets,
            fan_in_fan_out=True,
            **task,
        )
        names = lora_names
    elif kind == "prompt-tuning":
        config = peft.PromptTuningConfig(num_virtual_tokens=method.length, **task)
        names = lambda parts: {"embedding.weight": parts["prompt"]}  # noqa: E731
    else:
        sizes = {"num_virtual_tokens": method.length, "encoder_hidden_size": method.hidden}
        sizes |= {"encoder_num_layers": 2, "encoder_dropout": 0.0}
        kind = {"encoder_reparameterization_type": method.encoder.upper()}
        config = peft.PromptEncoderConfig(**kind, **sizes, **task)
        names = encoder_names
    right_loss, right = peft_losses_and_grads(
        config, method, model, sequences, loss_from, lambda m: names(m.parameters)
    )
    value, grads = loss_and_grad(model, method, batch)
    assert value == pytest.approx(right_loss, rel=1e-12)
    right = {name: a for name, a in right.items() if "bias_hh" not in name}
    found = {name: a for name, a in names(grads).items() if name in right}
    assert worst(found, right) < 1e-10


# ---- decoding -----------------------------------------------------------------------------------

PROMPTS = [[3, 1, 4, 1, 5], [9], [2, 6, 5]]


def by_whole_passes(model, method, ids, n):
    """Greedy, without a cache."""
    ids, new = list(ids), []
    for _ in range(n):
        row = method.logits(model, Batch.pack([ids], loss_from=[len(ids)]))[-1]
        new.append(int(row.argmax()))
        ids.append(new[-1])
    return new


@pytest.mark.parametrize("kind", MADE)
def test_decoding_with_the_cache_is_decoding_without(kind):
    model, _, _, _ = drawn(7)
    method = made(kind, model)
    greedy = Decoding(max_new_tokens=6)
    found = generate_ids(model, PROMPTS, method, decoding=greedy)
    assert found == [generate_ids(model, [p], method, decoding=greedy)[0] for p in PROMPTS]
    if kind == "infix":  # it stands before the prompt's last token: there is no such whole pass
        return
    assert found == [by_whole_passes(model, method, p, 6) for p in PROMPTS]


def test_an_infix_decodes_what_a_whole_pass_predicts():
    model, _, _, _ = drawn(7)
    method = made("infix", model)
    for prompt in PROMPTS:
        (new,) = generate_ids(model, [prompt], method, decoding=Decoding(max_new_tokens=6))
        batch = Batch.pack([[*prompt, *new]], loss_from=[len(prompt)])
        rows = method.logits(model, batch)[len(prompt) - 1 : -1]
        assert rows.argmax(axis=1).tolist() == new


@pytest.mark.parametrize("kind", MADE)
@pytest.mark.parametrize("how", [{"temperature": 0.8, "seed": 4}, {"beams": 3}])
def test_texts_do_not_depend_on_their_batch(kind, how):
    model, _, _, _ = drawn(8)
    method, decoding = made(kind, model), Decoding(max_new_tokens=5, **how)
    found = generate_ids(model, PROMPTS, method, decoding=decoding)
    for i, prompt in enumerate(PROMPTS):
        assert generate_ids(model, [prompt], method, None, decoding, numbers=[i]) == [found[i]]


def test_which_belongs_to_prefixes():
    model, _, _, _ = drawn(0)
    with pytest.raises(InputError, match="which names prefixes, and lora is none"):
        generate_ids(model, PROMPTS, made("lora", model), which=[0, 0, 0])


# ---- laws ---------------------------------------------------------------------------------------


def test_lora_starts_at_the_base():
    model, batch, _, _ = drawn(0)
    method = methods.LoRA.start(model, 2, 5.0, ("c_attn", "c_proj"))
    assert loss(model, batch, method) == loss(model, batch)
    _, grads = loss_and_grad(model, method, batch)
    for name, a in grads.items():
        assert a.any() == name.endswith("lora_B")  # B is 0, so nothing comes back to A


def test_lora_of_full_rank_takes_the_step_of_full_fine_tuning():
    """With A the identity and s = 1, the gradient of B is that of W."""
    model, batch, _, _ = drawn(1)
    C = model.config.n_embd
    method = methods.LoRA.start(model, C)
    for name, a in method.parameters.items():
        a[...] = np.eye(C) if name.endswith("lora_A") else 0
    _, grads = loss_and_grad(model, method, batch)
    _, full = loss_and_grad(model, methods.FineTuning.start(model), batch)
    for layer in method.layers:
        assert relative_error(grads[f"{layer}.lora_B"], full[f"{layer}.weight"]) < 1e-12


def test_a_merged_lora_is_a_model_and_comes_apart_again():
    model, batch, _, _ = drawn(2)
    method = made("lora everywhere", model)
    merged = method.merged(model)
    assert loss(merged, batch) == pytest.approx(loss(model, batch, method), rel=1e-12)
    assert loss(merged, batch) != pytest.approx(loss(model, batch), rel=1e-3)
    apart = method.unmerged(merged)
    assert worst(apart.weights, model.weights) < 1e-13


def test_adapters_without_up_are_the_base():
    model, batch, _, _ = drawn(0)
    method = made("adapters", model)
    for name, a in method.parameters.items():
        if ".up" in name:
            a[...] = 0
    assert loss(model, batch, method) == loss(model, batch)


def test_a_prompt_of_embeddings_is_prompting_and_is_a_prefix():
    model, batch, sequences, loss_from = drawn(3)
    ids = [5, 2, 19]
    method = methods.PromptTuning.tokens(model, ids)
    texts = Batch.pack([[*ids, *s] for s in sequences], [start + 3 for start in loss_from])
    value = loss(model, batch, method)
    assert value == pytest.approx(loss(model, texts), rel=1e-12)
    assert value == pytest.approx(loss(model, batch, Prefix.text(model, ids)), rel=1e-12)


def test_an_infix_of_a_source_of_one_token_is_a_prefix():
    """Nothing stands before it then."""
    model, _, sequences, _ = drawn(4)
    method = made("infix", model)
    batch = Batch.pack(sequences, 1)
    as_prefix = Prefix(method.parameters["kv"])
    assert loss(model, batch, method) == pytest.approx(loss(model, batch, as_prefix), rel=1e-12)


def test_a_source_does_not_see_the_infix():
    model, _, _, _ = drawn(4)
    ids = [4, 8, 15, 16, 22, 3]
    batch = Batch.pack([ids], loss_from=[4])
    rows = made("infix", model).logits(model, batch)
    assert np.allclose(rows[:3], model.logits(batch)[:3], rtol=1e-12)
    assert not np.allclose(rows[3:], model.logits(batch)[3:], rtol=1e-3)


def test_a_folded_prompt_is_its_encoder():
    model, batch, _, _ = drawn(5)
    method = made("p-tuning", model)
    assert loss(model, batch, method.folded()) == loss(model, batch, method)


# ---- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "sentence"),
    [
        (lambda m: methods.LoRA.start(m, 0), "rank is 0: expected 1 to "),
        (lambda m: methods.LoRA.start(m, 1000), "rank is 1000: expected 1 to "),
        (lambda m: methods.LoRA.start(m, 2, float("nan")), "alpha is nan: expected a positive"),
        (lambda m: methods.LoRA.start(m, 2, 0.0), "alpha is 0.0: expected a positive"),
        (lambda m: methods.LoRA.start(m, 2, dropout=1.0), "dropout is 1.0: expected 0 or more"),
        (lambda m: methods.LoRA.start(m, targets=["c_atn"]), "target 'c_atn' names no linear"),
        (lambda m: methods.LoRA.start(m, targets=[]), "there are no targets"),
        (lambda m: methods.TopLayers.start(m, 9), "top layers are 9: expected 1 to "),
        (lambda m: methods.TopLayers.start(m, 0), "top layers are 0: expected 1 to "),
        (lambda m: methods.PromptTuning.normal(m, 0), "prompt length is 0: expected at least 1"),
        (lambda m: methods.PromptTuning.vocabulary(m, 0), "prompt length is 0"),
        (lambda m: methods.PromptTuning.normal(m, 2, std=-1), "std is -1: expected 0 or more"),
        (lambda m: PTuning.start(m, 2, 0), "hidden width of 0: expected at least 1"),
        (lambda m: PTuning.start(m, 2, encoder="gru"), "encoder is 'gru': expected one of mlp, l"),
        (lambda m: methods.LoRA.start(m, 2.5), "rank is 2.5: expected 1 to "),
        (lambda m: methods.LoRA.start(m, 2, "x"), "alpha is 'x': expected a positive number"),
        (lambda m: methods.LoRA.start(m, targets="c_atn"), "target 'c_atn' names no linear"),
        (lambda m: methods.Adapters.start(m, std=float("nan")), "std is nan: expected 0 or more"),
        (lambda m: methods.PromptTuning.tokens(m, [-1]), "expected token ids from 0"),
        (lambda m: methods.PromptTuning.tokens(m, [23]), "token id 23 of the prompt lies outside"),
        (lambda m: methods.PromptTuning.tokens(m, []), "expected a flat list of at least one"),
        (lambda m: methods.Infix.start(m, 0), "the infix has 0 slots: expected at least 1"),
        (lambda m: methods.Adapters.start(m, 0), "bottleneck is 0: expected a width of at least"),
        (lambda m: methods.Adapters.start(m, 2, "left"), "placement is 'left': expected one of"),
    ],
)
def test_a_start_that_cannot_be_is_a_sentence(start, sentence):
    model, _, _, _ = drawn(0)
    with pytest.raises(InputError, match=sentence):
        start(model)


@pytest.mark.parametrize("kind", MADE)
def test_a_rival_of_another_base_is_refused(kind):
    model, batch, _, _ = drawn(0)
    other = GPT2.random(Config(1, 1, 4, 23, 30), dtype="float64")
    method = made(kind, model)
    for run in (loss_and_grad, lambda m, me, b: loss(m, b, me)):
        with pytest.raises(InputError, match="it was trained on another base"):
            run(other, method, batch)


def test_a_prompt_or_infix_without_room_is_a_sentence():
    model, _, _, _ = drawn(0)
    batch = Batch.pack([[1] * 30], loss_from=[28])
    for kind in ("prompt-tuning", "infix"):
        with pytest.raises(InputError, match="sequence 0 has 30 tokens"):
            loss(model, batch, made(kind, model))
    full = methods.PromptTuning.normal(model, 30)
    with pytest.raises(InputError, match="takes 30 positions, model 'random' has 30: none is left"):
        loss(model, batch, full)


@pytest.mark.parametrize(
    ("kind", "parameters"),
    [
        (methods.LoRA, {"h.0.foo.lora_A": np.ones((2, 1)), "h.0.foo.lora_B": np.ones((1, 2))}),
        (methods.LoRA, {"h.0.attn.c_attn.lora_A": np.ones((2, 1))}),
        (methods.LoRA, {}),
        (methods.FineTuning, {}),
        (methods.BitFit, {"wte.weight": np.ones((2, 2))}),
    ],
)
def test_parameters_that_are_not_a_methods_are_refused(kind, parameters):
    with pytest.raises(InputError, match="expected"):
        kind.of({}, parameters)


def test_an_infix_without_room_for_the_new_tokens_says_the_prompts_own_length():
    model, _, _, _ = drawn(0)
    method = made("infix", model)
    said = "prompt 0 has 27 tokens: with the infix and 5 new tokens it needs 33 of the model's 30"
    with pytest.raises(InputError, match=said):
        generate_ids(model, [[1] * 27], method, decoding=Decoding(max_new_tokens=5))
    assert generate_ids(model, [[1] * 27], method, decoding=Decoding(max_new_tokens=2))


def test_a_rival_on_a_gpu_does_not_adapt_a_model_on_the_host(monkeypatch):
    model, batch, _, _ = drawn(0)
    method = made("lora", model)
    monkeypatch.setattr(methods.LoRA, "backend", "cupy")
    for run in (
        lambda: loss(model, batch, method),
        lambda: loss_and_grad(model, method, batch),
        lambda: generate_ids(model, PROMPTS, method),
    ):
        with pytest.raises(InputError, match="lora lives with 'cupy' and model 'random' with 'nu"):
            run()


def test_a_rival_does_not_stand_in_a_list_of_prefixes():
    model, batch, _, _ = drawn(0)
    with pytest.raises(InputError, match="lora is no prefix"):
        loss(model, batch, [made("lora", model)])


@pytest.mark.parametrize("kind", ["lora", "prompt-tuning", "infix"])
def test_what_takes_prefixes_only_says_so_of_a_rival(kind):
    model, batch, _, _ = drawn(0)
    method = made(kind, model)
    for run in (model.logits, partial(loss_and_weight_grads, model), partial(trace, model)):
        with pytest.raises(InputError, match=f"{kind} is no prefix, and this takes prefixes only"):
            run(batch, method)
