"""A prefix goes to the real PEFT and comes from it: the same bytes, the same logits, the same text.

On three shapes of model; flat and through an MLP; from random numbers and from a text. In float32,
as PEFT keeps it.
"""

import functools
import itertools
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from peft import PeftModel, PrefixTuningConfig, get_peft_model
from safetensors.numpy import load_file
from transformers import GPT2LMHeadModel

from minprefix import GPT2, Batch, Config, Prefix, loss_and_grad
from minprefix.data.pairs import Encoded
from minprefix.generate import Decoding, generate_ids
from minprefix.optim import AdamW
from minprefix.prefix import MLPPrefix, flatten
from minprefix.show.training import loss_picture, read_run
from minprefix.storage.run import PICTURE
from minprefix.train import Settings, train
from tests.conftest import hf_logits, random_model, relative_error, to_hf

PEFT_FILES = {"adapter_config.json", "adapter_model.safetensors"}
HIDDEN = 7
LENGTHS = (11, 1, 4, 19)  # of the sequences: fewer tokens than the prefix has slots, and more

SHAPES = {
    "wide": Config(n_layer=2, n_head=4, n_embd=48, vocab_size=50, n_positions=64),
    "deep": Config(
        n_layer=5,
        n_head=3,
        n_embd=18,
        vocab_size=61,
        n_positions=40,
        n_inner=20,
        tie_word_embeddings=False,
    ),
    "shipped": None,  # the model in weights/tiny: trained, with a tokenizer
}


class Case(NamedTuple):
    shape: str
    through_mlp: bool
    from_text: bool


CASES = [Case(*c) for c in itertools.product(SHAPES, (False, True), (False, True))]
EACH = pytest.mark.parametrize(
    "case",
    # by default half of them, in which everything occurs
    [
        pytest.param(c, marks=() if c.through_mlp == c.from_text else pytest.mark.long)
        for c in CASES
    ],
    ids=lambda c: (
        f"{c.shape}-{'mlp' if c.through_mlp else 'flat'}-{'text' * c.from_text or 'drawn'}"
    ),
)


@functools.cache
def base(shape: str) -> GPT2:
    config = SHAPES[shape]
    return GPT2.load("tiny") if config is None else random_model(config, dtype="float32")


@functools.cache
def hf(shape: str) -> GPT2LMHeadModel:
    return to_hf(base(shape))


def text(shape: str) -> list[int]:
    model = base(shape)
    if model.tokenizer is not None:
        return model.encode("Describe the place in one sentence:")
    return [3, 17, 44, 9, 3, 28]


def sequences(shape: str) -> list[list[int]]:
    rng = np.random.default_rng(1)
    return [rng.integers(1, base(shape).config.vocab_size, T).tolist() for T in LENGTHS]


# ---- what either side makes ----


def trained_here(case: Case) -> Prefix:
    model = base(case.shape)
    start = Prefix.text(model, text(case.shape))
    if case.through_mlp:
        prefix = Prefix.mlp(model.config, start.length, HIDDEN, seed=2)
        if case.from_text:
            errors = prefix.fit(start.kv, steps=20, lr=1e-2)
            assert errors[-1] < 0.9 * errors[0]
    else:
        prefix = start if case.from_text else Prefix.normal(model.config, start.length, std=1.0)
    adam, batch = AdamW(), Batch.pack(sequences(case.shape))
    for _ in range(3):  # numbers that no rule gives
        _, dkv = loss_and_grad(model, prefix, batch)
        adam.step(prefix.parameters, prefix.backward(dkv), lr=1e-2)
    return prefix


def trained_there(case: Case) -> PeftModel:
    """With PEFT's own modules and PyTorch's own AdamW."""
    torch.manual_seed(0)
    ids = text(case.shape)
    kind = PrefixTuningConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=len(ids),
        prefix_projection=case.through_mlp,
        encoder_hidden_size=HIDDEN if case.through_mlp else None,
    )
    theirs = get_peft_model(to_hf(base(case.shape)), kind)
    encoder = theirs.prompt_encoder["default"]
    if case.from_text:
        # PEFT has no such start: transformers says what keys and values the text leaves
        with torch.no_grad():
            cache = hf(case.shape)(torch.tensor(ids)[None], use_cache=True).past_key_values
        kv = torch.stack([torch.stack([layer.keys[0], layer.values[0]]) for layer in cache.layers])
        flat = kv.permute(3, 0, 1, 2, 4).reshape(len(ids), -1)  # (P, L*2*C)
        if case.through_mlp:
            fit(encoder, flat)
        else:
            encoder.load_prompt_embeddings(flat)
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=1e-2)
    before = theirs.get_prompt_embedding_to_save("default")
    for _ in range(3):
        optimizer.zero_grad()
        for ids in sequences(case.shape):
            if len(ids) > 1:
                logits = theirs(input_ids=torch.tensor(ids)[None]).logits[0, :-1]
                torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:])).backward()
        optimizer.step()
    assert not torch.equal(theirs.get_prompt_embedding_to_save("default"), before)
    return theirs.eval()


def fit(encoder: torch.nn.Module, flat: torch.Tensor) -> None:
    optimizer = torch.optim.Adam(encoder.parameters(), lr=1e-2)
    for _ in range(20):
        optimizer.zero_grad()
        (encoder(torch.arange(len(flat))) - flat).square().mean().backward()
        optimizer.step()


# ---- what is compared ----


def loaded_there(shape: str, folder: Path) -> PeftModel:
    """On a model of its own: PEFT changes the one that it wraps."""
    return PeftModel.from_pretrained(to_hf(base(shape)), str(folder)).eval()


def save_there(theirs: PeftModel, folder: Path) -> None:
    # else PEFT asks the hub for the base by its name, to see whether its vocabulary was changed
    theirs.save_pretrained(folder, save_embedding_layers=False)


def stored(folder: Path) -> bytes:
    (tensor,) = load_file(folder / "adapter_model.safetensors").values()
    assert tensor.dtype == np.float32
    return tensor.tobytes()


def their_tensor(theirs: PeftModel) -> bytes:
    return theirs.get_prompt_embedding_to_save("default").numpy().tobytes()


def loaded_tensor(theirs: PeftModel) -> bytes:
    return theirs.prompt_encoder["default"].embedding.weight.detach().numpy().tobytes()


def their_logits(theirs: PeftModel, seqs: list[list[int]]) -> np.ndarray:
    """Each sequence alone, so that PEFT has nothing to pad."""
    with torch.no_grad():
        rows = [theirs(input_ids=torch.tensor(ids)[None]).logits[0] for ids in seqs]
    return torch.cat(rows).numpy()


def assert_the_same_prefix(model: GPT2, prefix: Prefix, theirs: PeftModel, shape: str) -> None:
    """By what it does: the logits of sequences of unequal lengths, and the text that it writes."""
    seqs = sequences(shape)
    ours, want = model.logits(Batch.pack(seqs), prefix), their_logits(theirs, seqs)
    assert ours.dtype == want.dtype == np.float32
    assert relative_error(ours, want) < 1e-5
    bare = model.logits(Batch.pack(seqs))
    assert relative_error(bare, want) > 1e-2  # the prefix matters
    written = generate_ids(model, seqs, prefix, decoding=Decoding(8))
    assert written == [their_greedy(theirs, ids, 8, model.config.eos_token_id) for ids in seqs]


def their_greedy(theirs: PeftModel, prompt: list[int], n: int, end: int | None) -> list[int]:
    ids = torch.tensor([prompt])
    how = {"do_sample": False, "max_new_tokens": n, "pad_token_id": 0, "eos_token_id": end}
    with torch.no_grad():
        out = theirs.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **how)
    new = out[0, len(prompt) :].tolist()
    return new[: new.index(end)] if end in new else new


# ---- there and back ----


@EACH
def test_a_prefix_trained_here_is_the_same_in_peft_and_comes_back(tmp_path, case):
    model, prefix = base(case.shape), trained_here(case)
    prefix.save(tmp_path / "ours", model)
    theirs = loaded_there(case.shape, tmp_path / "ours")
    flat = flatten(prefix.kv)
    assert flat.dtype == np.float32
    assert loaded_tensor(theirs) == stored(tmp_path / "ours") == flat.tobytes()
    assert_the_same_prefix(model, prefix, theirs, case.shape)

    save_there(theirs, tmp_path / "theirs")
    assert {p.name for p in (tmp_path / "theirs").iterdir()} >= PEFT_FILES
    assert stored(tmp_path / "theirs") == flat.tobytes()
    back = Prefix.load(tmp_path / "theirs", model)
    assert back.kv.tobytes() == prefix.kv.tobytes()
    assert (back.layers, back.position_offset) == (prefix.layers, prefix.position_offset)


@EACH
def test_a_prefix_trained_in_peft_is_the_same_here_and_goes_back(tmp_path, case):
    model, theirs = base(case.shape), trained_there(case)
    save_there(theirs, tmp_path / "theirs")
    prefix = Prefix.load(tmp_path / "theirs", model)
    flat = their_tensor(theirs)  # of an MLP: folded
    assert flatten(prefix.kv).tobytes() == stored(tmp_path / "theirs") == flat
    assert_the_same_prefix(model, prefix, theirs, case.shape)

    prefix.save(tmp_path / "ours", model)
    again = loaded_there(case.shape, tmp_path / "ours")
    assert loaded_tensor(again) == stored(tmp_path / "ours") == flat
    from_theirs = loaded_there(case.shape, tmp_path / "theirs")
    seqs = sequences(case.shape)
    assert np.array_equal(their_logits(again, seqs), their_logits(from_theirs, seqs))


@pytest.mark.parametrize("shape", SHAPES)
def test_a_text_prefix_in_peft_is_prompting_transformers_with_the_text(tmp_path, shape):
    model, start = base(shape), text(shape)
    Prefix.text(model, start).save(tmp_path, model)
    theirs = loaded_there(shape, tmp_path)
    for ids in sequences(shape):
        with torch.no_grad():
            prompted = hf_logits(hf(shape), np.array(start + ids))[len(start) :].numpy()
        assert relative_error(their_logits(theirs, [ids]), prompted) < 1e-5


@pytest.mark.parametrize("through_mlp", [False, True], ids=["flat", "mlp"])
def test_the_folder_of_a_run_with_all_its_files_loads_in_peft(tmp_path, through_mlp):
    model = base("deep")
    kind = functools.partial(MLPPrefix.random, hidden=HIDDEN) if through_mlp else Prefix.normal
    prefix, examples = kind(model.config, 4), [Encoded(ids, 1) for ids in sequences("deep")[::2]]
    settings = Settings(steps=2, batch_size=2, lr=1e-2)
    train(model, prefix, examples, settings, tmp_path, valid=examples, progress=False)
    loss_picture(tmp_path / PICTURE, read_run(tmp_path).lines, "a run")
    prefix.save(tmp_path, model)
    beside = {p.name for p in tmp_path.iterdir()} - PEFT_FILES
    assert beside >= {"minprefix.json", "state.safetensors", "log.jsonl", "loss.png"}
    assert ("mlp.safetensors" in beside) == through_mlp
    theirs = loaded_there("deep", tmp_path)
    assert loaded_tensor(theirs) == flatten(prefix.kv).tobytes()
    assert_the_same_prefix(model, prefix, theirs, "deep")


def test_peft_holds_a_prefix_from_here_and_one_of_its_own_side_by_side(tmp_path):
    """Under two names on one model, of two lengths, as people deploy them."""
    model = base("wide")
    ours, own = trained_here(Case("wide", True, True)), Case("wide", False, False)
    ours.save(tmp_path / "a", model)
    save_there(trained_there(own), tmp_path / "b")
    theirs = loaded_there("wide", tmp_path / "a")
    theirs.load_adapter(str(tmp_path / "b"), "b")
    for name, prefix in (("b", Prefix.load(tmp_path / "b", model)), ("default", ours)):
        theirs.set_adapter(name)
        assert_the_same_prefix(model, prefix, theirs, "wide")
