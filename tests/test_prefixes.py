"""What one does with trained prefixes: compare, combine, verify, take elsewhere."""

import json
import shutil
import warnings

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.numpy import load_file, save_file
from tokenizers import ByteLevelBPETokenizer

from minprefix import GPT2, Batch, Config, InputError, Prefix, ops
from minprefix.cli import main
from minprefix.gpt2 import embedding, forward
from minprefix.model import prepare
from minprefix.prefixes.combine import (
    Experiment,
    average,
    concatenate,
    interpolate,
    prune,
    slot_attention,
)
from minprefix.prefixes.distance import distances
from minprefix.prefixes.verify import verify
from minprefix.storage.artifact import FILES, export_peft
from minprefix.storage.run import differences
from tests.conftest import hf_logits, random_model, relative_error, to_hf

PAIRS = [("name[A], food[Thai]", "A serves Thai food."), ("name[B]", "B is a pub."), ("x", "y z")]


def saved_model(folder, seed=0, words=PAIRS):
    """A small random GPT-2 with a tokenizer, on disk."""
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(
        [f"{s}\n{t}" for s, t in words], 270, special_tokens=["<|endoftext|>"], show_progress=False
    )
    config = Config(2, 2, 16, 270, 64, bos_token_id=0, eos_token_id=0)
    model = random_model(config, seed, dtype="float32")
    model.tokenizer = bpe._tokenizer
    model.save(folder)
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A model, data, and runs of six steps: one flat and validated, one without --valid, one
    through an MLP, one that PEFT cannot express. Nobody writes in here."""
    folder = tmp_path_factory.mktemp("made")
    model = saved_model(folder / "model")
    for name, pairs in (("data", PAIRS * 4), ("valid", PAIRS)):
        lines = [json.dumps({"source": s, "target": t}) + "\n" for s, t in pairs]
        (folder / f"{name}.jsonl").write_text("".join(lines))
    data, valid = ["--data", folder / "data.jsonl"], ["--valid", folder / "valid.jsonl"]
    for name, more in (
        ("flat", [*valid, "--lr", 0.1]),
        ("plain", ["--seed", 3, "--init-std", 0.3]),
        ("mlp", [*valid, "--mlp-hidden", 4]),
        ("odd", [*valid, "--layers", "1", "--position-offset", 0]),
    ):
        argv = ["train", "--model", model, *data, "--out", folder / name, *more, "--steps", 6]
        assert main([str(a) for a in [*argv, "--prefix-length", 4]]) == 0
    return folder


@pytest.fixture
def runs(made, tmp_path):
    """A copy that a test may change; the record still names the files of the original."""
    return shutil.copytree(made, tmp_path / "runs")


@pytest.fixture
def said(capsys):
    """Run a command. -> its exit status, and what it printed; never a traceback."""

    def run(*argv):
        capsys.readouterr()
        status = main([str(a) for a in argv])
        captured = capsys.readouterr()
        if status == 2 and not captured.out:
            assert captured.err.splitlines()[-1].startswith("minprefix: error: ")
        return status, captured.out + captured.err

    return run


def changed(folder, change):
    """Edit minprefix.json."""
    path = folder / "minprefix.json"
    about = json.loads(path.read_text())
    change(about)
    path.write_text(json.dumps(about))


def names_in(folder):
    return sorted(p.name for p in folder.iterdir())


# ---- compare ----


def test_differences_are_the_leaves_with_both_values_and_none_for_what_is_missing():
    a = {"x": 1, "deep": {"same": 2, "lr": 0.1, "list": [1, 2]}, "only": "a", "kind": {"k": 1}}
    b = {"x": 1, "deep": {"same": 2, "lr": 0.2, "list": [1, 3]}, "kind": None, "new": {"y": 0}}
    assert differences(a, b) == [
        ("deep.lr", 0.1, 0.2),
        ("deep.list", [1, 2], [1, 3]),
        ("only", "a", None),
        ("kind", {"k": 1}, None),
        ("new", None, {"y": 0}),
    ]
    assert differences(a, a) == []


def test_distances_are_those_computed_by_hand():
    a, b = np.zeros((2, 2, 1, 1, 2), "float32"), np.zeros((2, 2, 1, 1, 2), "float32")
    a[0, 0, 0, 0], b[0, 0, 0, 0] = (3, 4), (4, 3)  # |a - b| sqrt 2, both sizes 5, cosine 24/25
    a[0, 1, 0, 0], b[0, 1, 0, 0] = (1, 0), (-3, 0)  # opposite: 4 over a mean of 2
    a[1, 0, 0, 0], b[1, 0, 0, 0] = (1, 2), (1, 2)  # equal
    a[1, 1, 0, 0] = (1, 1)  # zeros in b
    rows = distances(Prefix(a, layers=[1, 4]), Prefix(b, layers=[1, 4]))
    assert [(r.layer, r.what) for r in rows] == [
        (1, "keys"),
        (1, "values"),
        (4, "keys"),
        (4, "values"),
    ]
    np.testing.assert_allclose([r.relative for r in rows], [2**0.5 / 5, 2, 0, 2], rtol=1e-12)
    np.testing.assert_allclose([r.cosine for r in rows], [0.96, -1, 1, np.nan], rtol=1e-12)
    zeros = Prefix(np.zeros_like(a))
    assert [r.relative for r in distances(zeros, zeros)] == [0, 0, 0, 0]


def test_prefixes_of_other_shapes_or_layers_have_no_distance(config):
    a = Prefix.normal(config, 3)
    for b in (Prefix.normal(config, 4), Prefix.normal(config, 3, layers=[0, 2])):
        with pytest.raises(InputError, match="a distance is between numbers in the same places"):
            distances(a, b)
    with pytest.raises(InputError, match=r"in layers \[0, 1\] and \[1, 2\]"):
        distances(*(Prefix.normal(config, 3, layers=x) for x in ([0, 1], [1, 2])))


def test_diff_shows_what_differs_in_training_and_how_far_apart_the_layers_are(said, made):
    status, text = said("diff", made / "flat", made / "plain")
    assert status == 0
    lines = {line.split()[0]: line for line in text.splitlines() if line.startswith("  ")}
    assert lines["training.options.lr"].split()[1:] == ["0.1", "|", "None"]
    assert lines["training.settings.seed"].split()[1:] == ["0", "|", "3"]
    assert lines["training.init.init_std"].split()[1:] == ["0.02", "|", "0.3"]
    assert "training.settings.steps" not in lines
    rows = distances(*(Prefix.load(made / name) for name in ("flat", "plain")))
    for k, v in zip(rows[::2], rows[1::2], strict=True):
        shown = [float(x) for x in lines[str(k.layer)].split()[1:]]
        np.testing.assert_allclose(shown, [k.relative, k.cosine, v.relative, v.cosine], atol=1e-4)


def test_diff_of_the_same_of_other_shapes_and_without_a_record(said, made, runs):
    status, text = said("diff", made / "flat", runs / "flat")
    assert (status, text.count("records: the same")) == (0, 1)
    assert "numbers: the same" in text
    status, text = said("diff", made / "flat", made / "odd")
    assert status == 0
    assert "numbers: not comparable, prefixes of shapes (2, 2, 2, 4, 8) and (1," in text
    assert "prefix.position_offset" in text
    (runs / "plain" / "minprefix.json").unlink()
    status, text = said("diff", made / "flat", runs / "plain")
    assert status == 0
    assert "records: B has no minprefix.json, PEFT wrote it" in text
    assert "cosine" in text
    status, text = said("diff", made / "flat", made / "gone")
    assert status == 2
    assert "does not exist" in text


def test_diff_shows_a_dash_where_zeros_have_no_direction(said, made, tmp_path):
    model = GPT2.load(made / "model")
    Prefix.zero(model.config, 4).save(tmp_path / "zero", model)
    status, text = said("diff", made / "flat", tmp_path / "zero")
    assert status == 0
    assert [line.split() for line in text.splitlines()[-2:]] == [
        [layer, "2.0000", "-", "2.0000", "-"] for layer in "01"
    ]


# ---- inspect ----


def test_inspect_shows_all_of_a_run_on_one_screen(said, made):
    status, text = said("inspect", made / "flat")
    assert status == 0
    about = json.loads((made / "flat" / "minprefix.json").read_text())
    assert len(text.splitlines()) <= 40
    assert max(map(len, text.splitlines())) <= 123 + len(str(made))
    flat = text.replace("\n             ", " ")
    training = about["training"]
    for fact in (
        about["saved"], about["base"]["sha256"], about["base"]["tokenizer_sha256"],
        training["data_sha256"], training["valid_sha256"], str(made / "model"),
        str(made / "data.jsonl"), str(made / "valid.jsonl"), *about["files"].values(),
        *(f"{name} {v}" for name, v in about["packages"].items()),
        "4 slots in layers 0,1 x 2 heads of size 8, tokens from position 4",
        "opens this folder as it is", "init 'normal'", "init_std 0.02", "lr 0.1", "steps 6",
        "seed 0", "schedule 'linear'", f"valid_loss {about['metrics']['valid_loss']}",
        "template '{source}\\n{target}'", f"loss {about['evaluation']['loss']:.4f} on 3 pairs",
    ):  # fmt: skip
        assert fact in flat, fact
    _, text = said("inspect", made / "odd")
    assert "cannot express it: only layers 1 see it" in text


# ---- combine ----


@pytest.fixture
def warned():
    """The experiment is announced in every test that makes one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Experiment)
        yield


@pytest.mark.parametrize("rule", [None, 0], ids=["after the slots", "from position 0"])
def test_a_concatenation_is_attended_to_as_both_together(config, model, warned, rule):
    parts = [
        Prefix.normal(config, n, 0.5, n, position_offset=rule, dtype="float64") for n in (2, 3, 1)
    ]
    both = concatenate(parts)
    assert both.kv.shape == (3, 2, 4, 6, 8)
    assert both.position_offset == (6 if rule is None else 0)
    ids = np.array([5, 6, 7, 8])
    kv = torch.cat([torch.tensor(p.kv) for p in parts], dim=3)
    expected = hf_logits(to_hf(model), ids, kv, both.position_offset).detach().numpy()
    assert relative_error(model.logits(Batch.pack([ids]), both), expected) < 1e-10


def test_concatenated_texts_are_the_text_of_both_where_words_do_not_see_each_other(config, warned):
    """In the first layer a token's key and value are its own; and here no position differs."""
    one_layer = random_model(Config(1, 4, 32, vocab_size=50, n_positions=64, eos_token_id=0))
    one_layer.weights["wpe.weight"][:] = one_layer.weights["wpe.weight"][0]
    parts = [Prefix.text(one_layer, ids) for ids in ([3, 4], [5], [6, 7, 8])]
    whole = Prefix.text(one_layer, [3, 4, 5, 6, 7, 8])
    assert relative_error(concatenate(parts).kv, whole.kv) < 1e-12
    assert concatenate(parts).position_offset == whole.position_offset


def test_a_prefix_without_slots_adds_nothing_and_one_alone_is_itself(config, warned):
    none = Prefix.normal(config, 0)
    for offset in (None, 0):
        p = Prefix.normal(config, 3, position_offset=offset)
        for same in (concatenate([p]), concatenate([none, p]), concatenate([p, none])):
            np.testing.assert_array_equal(same.kv, p.kv)
            assert same.position_offset == p.position_offset
        np.testing.assert_array_equal(average([p]).kv, p.kv)


def test_an_average_is_taken_number_by_number_and_an_interpolation_begins_and_ends(config, warned):
    a, b = (Prefix.normal(config, 3, 0.5, s, layers=[0, 2], position_offset=7) for s in (1, 2))
    mean = average([a, b], [1, 3])
    np.testing.assert_allclose(mean.kv, 0.25 * a.kv + 0.75 * b.kv, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(average([a, b]).kv, (a.kv + b.kv) / 2, rtol=1e-5, atol=1e-7)
    for made in (mean, concatenate([a, b])):
        assert (made.layers, made.subset, made.position_offset) == ((0, 2), True, 7)
        assert made.kv.dtype == np.float32
    np.testing.assert_array_equal(interpolate(a, b, 0).kv, a.kv)
    np.testing.assert_array_equal(interpolate(a, b, 1).kv, b.kv)
    beyond = interpolate(a, b, 2)
    np.testing.assert_allclose(beyond.kv, 2 * b.kv - a.kv, rtol=1e-5, atol=1e-6)


def test_derivatives_pass_through_an_average(config, warned):
    p = Prefix.normal(config, 2, dtype="complex128")
    p.kv[...] += 1e-20j
    np.testing.assert_allclose(average([p, p]).kv.imag, 1e-20)


def test_a_folded_mlp_is_averaged_and_does_not_stay_an_mlp(config, warned):
    mlp = Prefix.mlp(config, 3, 4, 1)
    assert type(average([mlp, mlp])) is Prefix
    np.testing.assert_allclose(average([mlp, mlp]).kv, mlp.kv, rtol=1e-6)


@pytest.mark.parametrize("do", [concatenate, average, lambda two: interpolate(*two, 0.5)])
def test_every_mixture_is_announced_as_an_experiment(config, do):
    with pytest.warns(Experiment, match="is an experiment: measure what it does"):
        do([Prefix.normal(config, 2), Prefix.normal(config, 2)])


def test_prefixes_that_do_not_fit_together_are_refused_unannounced(config):
    other = Config(n_layer=3, n_head=2, n_embd=32, vocab_size=50, n_positions=64)
    p = Prefix.normal(config, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for do, others in (
            (concatenate, [Prefix.normal(other, 3), Prefix.normal(config, 3, layers=[0, 1])]),
            (
                average,
                [
                    Prefix.normal(other, 3),
                    Prefix.normal(config, 4),
                    Prefix.normal(config, 3, position_offset=0),
                    Prefix.normal(config, 3, layers=[0, 1]),
                ],
            ),
        ):
            for q in others:
                with pytest.raises(InputError, match="their shapes differ"):
                    do([p, q])
            with pytest.raises(InputError, match="give at least one"):
                do([])
        with pytest.raises(InputError, match=r"tokens start at positions \[0, 3\]"):
            concatenate([p, Prefix.normal(config, 3, position_offset=0)])
        with pytest.raises(InputError, match="1 weight for 2 prefixes: give one each"):
            average([p, p], [1])
        for weights in ([1, -1], [np.nan, 1], [np.inf, 1], [0, 0], [1e308, 1e308]):
            with pytest.raises(InputError, match="expected finite numbers with a finite sum"):
                average([p, p], weights)


# ---- prune ----


def patterns(model, batch, prefix, past):
    """The attention of every layer (NH, T, P+T), sequence by sequence, written out with PyTorch;
    `past`: the keys and values of each layer, None where it sees none."""
    hf, config, hs = to_hf(model), model.config, model.config.head_size
    for b in range(len(batch)):
        ids = batch.tokens[batch.offsets[b] : batch.offsets[b + 1]]
        T, found = len(ids), []
        positions = torch.arange(T) + prefix.position_offset
        x = hf.transformer.wte(torch.tensor(ids)) + hf.transformer.wpe(positions)
        for kv, block in zip(past, hf.transformer.h, strict=True):
            parts = block.attn.c_attn(block.ln_1(x)).split(config.n_embd, dim=-1)
            q, k, v = (part.view(T, config.n_head, hs).transpose(0, 1) for part in parts)
            if kv is not None:
                k, v = torch.cat([kv[0], k], 1), torch.cat([kv[1], v], 1)
            P = k.shape[1] - T
            future = torch.arange(P + T)[None] > torch.arange(T)[:, None] + P
            scores = q @ k.transpose(1, 2) / hs**0.5
            found.append(scores.masked_fill(future, -torch.inf).softmax(-1))
            z = (found[-1] @ v).transpose(0, 1).reshape(T, config.n_embd)
            x = x + block.attn.c_proj(z)
            x = x + block.mlp(block.ln_2(x))
        yield found


def test_the_share_of_each_slot_is_that_of_an_explicit_softmax(config, model):
    prefix = Prefix.normal(config, 3, 0.8, 1, layers=[0, 2], dtype="float64")
    batch, kv = Batch.pack([[5, 6, 7, 8], [9, 10]]), torch.tensor(prefix.kv)
    expected = np.zeros((2, config.n_head, 3))
    for found in patterns(model, batch, prefix, [kv[0], None, kv[1]]):
        for j, layer in enumerate(prefix.layers):
            expected[j] += found[layer][:, :, :3].sum(1).detach().numpy()
    shares = slot_attention(model, prefix, batch)
    assert relative_error(shares, expected / 6) < 1e-10
    # summed over the slots it is the mean of lambda, the share that lands on the prefix
    assert (shares.sum(axis=2) < 1).all()
    assert shares.sum(axis=2).max() > 0.5


def test_a_slot_that_draws_no_attention_can_go_and_nothing_changes(config, model, warned):
    kept = Prefix.normal(config, 4, 0.5, 1, position_offset=6, dtype="float64")
    batch = Batch.pack([[5, 6, 7], [8, 9]])
    stream, w, reference = prepare(model, batch, kept), model.weights, ops.get("reference")
    _, blocks = forward(embedding(stream, w, reference), stream, w, config, reference)
    kv = np.insert(kept.kv, [1, 3], 0, axis=3)  # slots 1 and 4 are new
    for i, block in enumerate(blocks):
        for h in range(config.n_head):  # a key whose score is far down for every query that comes
            q = block.attn.attention.q[:, h]  # (N, hs)
            kv[i, 0, h, [1, 4]] = np.linalg.lstsq(q, np.full(len(q), -1e4), rcond=None)[0]
    wide = Prefix(kv, position_offset=6)
    shares = slot_attention(model, wide, batch)
    assert shares[:, :, [1, 4]].max() < 1e-100
    less = prune(wide, shares, 4)
    np.testing.assert_array_equal(less.kv, kept.kv)
    assert less.position_offset == 6
    expected = model.logits(batch, wide)
    assert relative_error(model.logits(batch, less), expected) < 1e-12


def test_the_slots_that_draw_most_stay_in_their_order_with_layers_and_positions(config, warned):
    prefix = Prefix.normal(config, 5, layers=[0, 2])
    shares = np.zeros((2, 4, 5))
    shares[0, 1] = [0.1, 0.3, 0.0, 0.1, 0.2]
    shares[1, 3] = [0.0, 0.0, 0.05, 0.2, 0.2]  # together 0.1 0.3 0.05 0.3 0.4
    for keep, slots in ((0, []), (1, [4]), (3, [1, 3, 4]), (4, [0, 1, 3, 4]), (5, [0, 1, 2, 3, 4])):
        made = prune(prefix, shares, keep)
        np.testing.assert_array_equal(made.kv, prefix.kv[:, :, :, slots])
        assert (made.layers, made.subset, made.position_offset) == ((0, 2), True, 5)
    assert prune(prefix, shares, 2).kv.shape[3] == 2


def test_pruning_announces_itself_and_refuses_what_does_not_fit(config):
    prefix, shares = Prefix.normal(config, 3), np.ones((3, 4, 3))
    with pytest.warns(Experiment, match="leaving out slots"):
        prune(prefix, shares, 3)
    for keep in (-1, 4):
        with pytest.raises(InputError, match=f"keep is {keep}: expected 0 to 3"):
            prune(prefix, shares, keep)
    with pytest.raises(InputError, match=r"shares have shape \(3, 4, 2\): they belong to another"):
        prune(prefix, shares[:, :, :2], 1)


# ---- export ----


@pytest.mark.parametrize("run", ["flat", "mlp"])
def test_real_peft_loads_an_export_and_says_the_same(said, made, tmp_path, run):
    out = tmp_path / "for-peft"
    status, text = said("export", made / run, "--to", "peft", "--base", "hub/name", "--out", out)
    assert status == 0
    assert "PeftModel.from_pretrained" in text
    assert "transformers 5.24.0, PEFT's generate drops the prefix" in text
    assert "pass use_cache=False" in text
    assert names_in(out) == ["adapter_config.json", "adapter_model.safetensors"]
    tensor = (out / "adapter_model.safetensors").read_bytes()
    assert tensor == (made / run / "adapter_model.safetensors").read_bytes()
    config = json.loads((out / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "hub/name"
    model, ids = GPT2.load(made / "model"), [5, 6, 7, 8]
    theirs = PeftModel.from_pretrained(to_hf(model), out).eval()
    logits = theirs(torch.tensor([ids])).logits[0].detach().numpy()
    ours = model.logits(Batch.pack([ids]), Prefix.load(made / run, model))
    assert relative_error(ours, logits) < 1e-5
    np.testing.assert_array_equal(Prefix.load(out).kv, Prefix.load(made / run).kv)


@pytest.mark.parametrize(
    ("length", "where", "reason"),
    [
        (3, {"position_offset": 0}, "tokens start at position 0, where PEFT puts them at 3"),
        (3, {"layers": [0, 2]}, "only layers 0, 2 see it"),
        (0, {}, "it has no slots"),
    ],
)
def test_what_peft_cannot_express_is_refused_by_name_and_leaves_what_is_there(
    said, config, tmp_path, length, where, reason
):
    prefix = Prefix.normal(config, length, **where)
    with pytest.raises(InputError, match=reason):
        export_peft(prefix.saved, tmp_path / "out", None)
    prefix.save(tmp_path / "p")
    Prefix.normal(config, 2).save(tmp_path / "old")
    before = {p.name: p.read_bytes() for p in (tmp_path / "old").iterdir()}
    call = ["export", tmp_path / "p", "--to", "peft", "--out", tmp_path / "old", "--force"]
    status, text = said(*call)
    assert status == 2
    assert "PEFT cannot express this prefix" in text
    assert reason in text
    assert {p.name: p.read_bytes() for p in (tmp_path / "old").iterdir()} == before


@pytest.mark.parametrize("command", ["export", "combine", "prune"])
def test_a_prefix_or_run_that_is_there_is_replaced_only_with_force_and_then_whole(
    said, made, runs, command
):
    out = runs / "mlp"
    argv = {
        "export": ["export", made / "flat", "--to", "peft"],
        "combine": ["combine", made / "flat", made / "plain", "--how", "average"],
        "prune": ["prune", made / "flat", "--keep", 2, "--data", made / "valid.jsonl", "--model",
                  made / "model"],
    }[command]  # fmt: skip
    (out / "notes.txt").write_text("mine")
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    status, text = said(*argv, "--out", out)
    assert status == 2
    assert f"{out} already holds a run" in text
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before
    for name in FILES:  # a run that was not finished is a run, too
        (out / name).unlink(missing_ok=True)
    assert said(*argv, "--out", out)[0] == 2
    shutil.copytree(made / "mlp", out, dirs_exist_ok=True)
    assert said(*argv, "--out", out, "--force")[0] == 0
    own = {"export": ["adapter_config.json", "adapter_model.safetensors"],
           "prune": ["minprefix.json", "prefix.safetensors"]}.get(command) or [
               "adapter_config.json", "adapter_model.safetensors", "minprefix.json"]  # fmt: skip
    assert names_in(out) == sorted([*own, "notes.txt"])
    Prefix.load(out, GPT2.load(made / "model"))


def test_an_export_does_not_take_the_place_of_its_own_prefix(said, runs):
    out = runs / "mlp"
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    status, text = said("export", out, "--to", "peft", "--out", runs / "flat/../mlp", "--force")
    assert status == 2
    assert "--out is the prefix itself" in text
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before


@pytest.mark.parametrize(
    ("run", "library"), [("flat", "peft"), ("mlp", "peft"), ("odd", "adapters")]
)
def test_what_was_exported_is_imported_as_it_was_with_its_base(said, made, tmp_path, run, library):
    away, back = tmp_path / "away", tmp_path / "back"
    status, text = said("export", made / run, "--to", library, "--out", away)
    assert status == 0, text
    model = ("--model", made / "model")
    status, text = said("import", away, *model, "--out", back)
    assert status == 0, text
    ours, again = (Prefix.load(p, GPT2.load(made / "model")) for p in (made / run, back))
    np.testing.assert_array_equal(again.kv, ours.kv)
    assert (again.layers, again.position_offset) == (ours.layers, ours.position_offset)
    about = json.loads((back / "minprefix.json").read_text())
    assert about["base"]["sha256"] == GPT2.load(made / "model").fingerprint()
    assert about["training"]["library"].lower() == library
    assert said("verify", back, *model)[0] == 0
    status, text = said("import", back, *model, "--out", tmp_path / "again")
    assert (status, "it needs no import" in text) == (2, True)


def test_a_folder_of_the_adapters_library_is_named_so(said, made, tmp_path):
    away = tmp_path / "away"
    assert said("export", made / "odd", "--to", "adapters", "--out", away)[0] == 0
    with pytest.raises(InputError, match="was written by the adapters library: `minprefix import`"):
        Prefix.load(away)
    status, text = said("export", made / "flat", "--to", "adapters", "--out", tmp_path / "no")
    assert (status, "tokens start at position" in text) == (2, True)
    assert not (tmp_path / "no").exists()


# ---- the commands combine and prune ----


def test_combine_records_what_it_was_made_of_and_verify_holds_it_against_that(said, made, tmp_path):
    parts = [made / "flat", made / "plain"]
    status, text = said("combine", *parts, "--how", "concatenate", "--out", tmp_path / "c")
    assert status == 0
    assert text.count("minprefix: note: concatenating prefixes is an experiment") == 1
    assert Prefix.load(tmp_path / "c").length == 8
    call = ["combine", *parts, "--how", "average", "--out", tmp_path / "a"]
    assert said(*call, "--weights", 0.25, 0.75)[0] == 0
    kvs = [Prefix.load(part).kv for part in parts]
    np.testing.assert_allclose(
        Prefix.load(tmp_path / "a").kv, 0.25 * kvs[0] + 0.75 * kvs[1], rtol=1e-5, atol=1e-7
    )
    about = json.loads((tmp_path / "a" / "minprefix.json").read_text())
    assert about["training"]["command"] == "combine --how average"
    assert about["training"]["weights"] == [0.25, 0.75]
    assert about["training"]["template"] == "{source}\n{target}"
    for part, recorded in zip(parts, about["training"]["of"], strict=True):
        own = json.loads((part / "minprefix.json").read_text())
        assert recorded["folder"] == str(part)
        assert recorded["files"] == own["files"]
        assert recorded["training"] == own["training"]
    for name in "ca":
        status, text = said("verify", tmp_path / name)
        assert (status, "none was recorded" in text) == (0, True)
        status, text = said("inspect", tmp_path / name)
        assert str(parts[1]) in text.replace("\n             ", " ")
        assert len(text.splitlines()) <= 40


def test_prune_shows_the_shares_and_the_loss_before_and_after(said, made, tmp_path, capsys):
    model, data = ["--model", made / "model"], ["--data", made / "valid.jsonl"]
    call = ["prune", made / "flat", *model, *data]
    status, text = said(*call, "--keep", 4, "--out", tmp_path / "all")
    assert status == 0
    assert "note: leaving out slots is an experiment" in text
    np.testing.assert_array_equal(Prefix.load(tmp_path / "all").kv, Prefix.load(made / "flat").kv)
    status, text = said(*call, "--keep", 2, "--out", tmp_path / "two")
    assert status == 0
    lines = text.splitlines()
    shares = [float(line.split()[2]) for line in lines if line.startswith("  slot")]
    assert len(shares) == 4
    about = json.loads((tmp_path / "two" / "minprefix.json").read_text())
    before, after = about["training"]["loss"]
    assert f"loss of 4 slots {before:.4f}, of 2 {after:.4f}, of none " in text
    assert about["prefix"]["position_offset"] == 4
    recorded = json.loads((made / "flat" / "minprefix.json").read_text())["evaluation"]
    assert before == pytest.approx(recorded["loss"], rel=1e-5)
    assert said("verify", tmp_path / "two")[0] == 0
    assert said(*call, "--keep", 0, "--out", tmp_path / "no")[0] == 0
    assert "command 'prune', keep 0, loss [" in said("inspect", tmp_path / "no")[1]
    for limit in (0, -3):
        with pytest.raises(SystemExit):
            said(*call, "--keep", 2, "--out", tmp_path / "none", "--limit", limit)
        assert f"--limit: '{limit}': expected a whole number, at least 1" in capsys.readouterr().err


def test_templates_that_differ_are_not_mixed_and_that_is_said(said, made, tmp_path):
    model = GPT2.load(made / "model")
    about = {"command": "train", "template": "{source} -> {target}"}
    Prefix.normal(model.config, 4).save(tmp_path / "p", model, about)
    for other, differ in ((made / "flat", True), (tmp_path / "p", False)):
        call = ["combine", tmp_path / "p", other, "--how", "average", "--out", tmp_path / "out"]
        status, text = said(*call, "--force")
        assert (status, "their templates differ, none is recorded" in text) == (0, differ)
        training = json.loads((tmp_path / "out" / "minprefix.json").read_text())["training"]
        assert ("template" in training) != differ


def test_what_is_made_of_a_prefix_is_of_the_model_that_it_records(said, made, tmp_path):
    base = json.loads((made / "flat" / "minprefix.json").read_text())["base"]
    data = ["--data", made / "valid.jsonl"]
    for call in (
        ["prune", made / "flat", "--keep", 2, *data],
        ["combine", made / "flat", "--how", "average"],
    ):
        out = tmp_path / call[0]
        assert said(*call, "--out", out)[0] == 0
        assert json.loads((out / "minprefix.json").read_text())["base"] == base


def test_the_recorded_revision_of_a_model_is_loaded_and_recorded_again(
    said, made, tmp_path, monkeypatch
):
    here, asked = GPT2.load(made / "model"), []
    here.name = "some/model"

    def load(name, dtype="float32", revision=None):
        asked.append((name, revision))
        return here

    monkeypatch.setattr(GPT2, "load", load)
    about = {"command": "train", "options": {"revision": "v1"}}
    Prefix.normal(here.config, 4).save(tmp_path / "p", here, about)
    export_peft(Prefix.normal(here.config, 4).saved, tmp_path / "from-peft", None)
    calls = {
        "a": ["combine", tmp_path / "p", "--how", "average"],
        "b": ["prune", tmp_path / "a", "--keep", 2, "--data", made / "valid.jsonl"],
        "c": ["import", tmp_path / "from-peft", "--model", "some/model", "--revision", "v1"],
    }
    for name, call in calls.items():
        assert said(*call, "--out", tmp_path / name)[0] == 0
        assert said("verify", tmp_path / name)[0] == 0
    assert asked == [("some/model", "v1")] * 6
    status, text = said(*calls["a"], "--revision", "v2", "--out", tmp_path / "d")
    assert (status, "--revision belongs to a model's name: give --model as" in text) == (2, True)


@pytest.mark.parametrize("command", ["verify", "combine", "prune"])
def test_the_help_names_the_model_that_is_taken_without_model(capsys, command):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "(default: the one that the " in text
    assert 'default "tiny"' not in text


def test_what_cannot_be_combined_is_a_sentence_and_nothing_is_written(said, made, runs, tmp_path):
    out = ["--out", tmp_path / "out"]
    other = random_model(Config(2, 2, 16, 270, 64, eos_token_id=0), 9, "float32")
    Prefix.normal(other.config, 4).save(runs / "other", other)
    Prefix.normal(other.config, 4).save(runs / "nobody's")
    (runs / "mlp" / "minprefix.json").unlink()
    Prefix.normal(other.config, 40).save(runs / "long", GPT2.load(made / "model"))
    for paths, more, sentence in (
        (["flat", "other"], ["--how", "average"], other.fingerprint()[:12]),
        (["flat", "other"], ["--how", "average"], GPT2.load(made / "model").fingerprint()[:12]),
        (["flat", "mlp"], ["--how", "average"], "take it in with `minprefix import` first"),
        (["nobody's"], ["--how", "average"], "does not record its model: give --model"),
        (["flat", "gone"], ["--how", "average"], "gone' does not exist"),
        (["flat", "odd"], ["--how", "average"], "their shapes differ"),
        (["flat", "flat"], ["--how", "average", "--weights", 1], "1 weight for 2 prefixes"),
        (["flat"], ["--how", "concatenate", "--weights", 1], "--weights belong to a mean"),
        (["long", "long"], ["--how", "concatenate"], "position_offset is 80, model"),
    ):
        status, text = said("combine", *(runs / p for p in paths), *more, *out)
        assert status == 2
        assert sentence in text
    assert not (tmp_path / "out").exists()


# ---- verify ----


@pytest.mark.parametrize("run", ["flat", "plain", "mlp", "odd"])
def test_a_run_is_as_recorded_also_after_everything_moved(said, runs, made, run):
    status, text = said("verify", made / run)
    assert status == 0, text
    assert text.endswith("\nall as recorded\n")
    of = "data" if run == "plain" else "valid"
    assert f"on {12 if of == 'data' else 3} pairs of {of}" in text
    assert "3 texts, word for word" in text
    for part in ("model", "data.jsonl", "valid.jsonl"):
        (runs / part).rename(runs / f"moved {part}")
    gone = str(runs / "nowhere")

    def move(about):
        about["base"]["name"] = about["training"]["options"]["data"] = gone
        if run != "plain":
            about["training"]["options"]["valid"] = gone

    changed(runs / run, move)
    status, text = said("verify", runs / run)
    assert status == 2
    assert "not checked  base" in text
    assert "nothing is wrong; " in text
    call = ["verify", runs / run, "--model", runs / "moved model"]
    places = ["--data", runs / "moved data.jsonl"]
    places += [] if run == "plain" else ["--valid", runs / "moved valid.jsonl"]
    status, text = said(*call)
    assert status == 2
    assert f"{gone} is missing: give --data" in text
    assert "needs the recorded " in text
    status, text = said(*call, *places)
    assert status == 0, text


def edit_tensor(runs):
    path = runs / "flat" / "adapter_model.safetensors"
    tensors = {name: a.copy() for name, a in load_file(path).items()}
    tensors["prompt_embeddings"][0, 0] += 1e-6
    save_file(tensors, path, {"format": "pt"})


def edit_model(runs):
    path = runs / "model" / "model.safetensors"
    tensors = {name: a.copy() for name, a in load_file(path).items()}
    tensors["transformer.h.0.ln_1.bias"][0] += 1e-6
    save_file(tensors, path)


def edit_tokenizer(runs):
    saved_model(runs / "other", words=[("a", "b"), ("other words", "than these")])
    shutil.copy(runs / "other" / "tokenizer.json", runs / "model" / "tokenizer.json")


def edit_line(name):
    def edit(runs):
        path = runs / name
        path.write_text(path.read_text().replace("pub", "bar", 1))

    return edit


def edit_evaluation(**change):
    def edit(runs):
        changed(runs / "flat", lambda about: about["evaluation"].update(change))

    return edit


@pytest.mark.parametrize(
    ("edit", "wrong"),
    [
        (edit_tensor, ["files"]),
        (edit_model, ["base"]),
        (edit_tokenizer, ["tokenizer"]),
        (edit_line("data.jsonl"), ["data"]),
        (edit_line("valid.jsonl"), ["valid"]),
        (edit_evaluation(loss=1.25), ["loss"]),
        (edit_evaluation(loss=float("nan")), ["loss"]),
        (edit_evaluation(examples=4), ["loss"]),
        (edit_evaluation(samples=[{"source": "x", "prediction": "Q"}]), ["samples"]),
        (edit_evaluation(loss=9, samples=[{"source": "x", "prediction": ""}]), ["loss", "samples"]),
        (lambda runs: (runs / "flat" / "adapter_model.safetensors").unlink(), ["files"]),
    ],
    ids=["tensor", "base", "tokenizer", "data", "valid", "loss", "nan", "examples", "sample",
         "loss and sample", "missing"],
)  # fmt: skip
def test_each_kind_of_change_is_wrong_and_nothing_else(said, runs, edit, wrong):
    def here(about):
        about["base"]["name"] = str(runs / "model")
        for of in ("data", "valid"):
            about["training"]["options"][of] = str(runs / f"{of}.jsonl")

    changed(runs / "flat", here)
    assert said("verify", runs / "flat")[0] == 0
    edit(runs)
    status, text = said("verify", runs / "flat")
    assert status == 1, text
    assert [line.split()[1] for line in text.splitlines() if line.startswith("WRONG")] == wrong
    assert f"{len(wrong)} of " in text.splitlines()[-1]


@pytest.mark.parametrize("name", ["mlp.safetensors", "ghost", "../flat/minprefix.json"])
def test_a_file_that_was_saved_and_is_not_here_is_wrong(said, runs, name):
    def also(about):
        about["files"][name] = "0" * 64
        about["prefix"]["kind"] = "flat"

    changed(runs / "mlp", also)
    (runs / "mlp" / "mlp.safetensors").unlink()
    status, text = said("verify", runs / "mlp")
    assert status == 1
    assert text.startswith("WRONG        files")


def test_a_changed_mlp_is_wrong(said, runs):
    path = runs / "mlp" / "mlp.safetensors"
    tensors = {n: a.copy() for n, a in load_file(path).items()}
    tensors["bias_1"][0] += 1
    save_file(tensors, path)
    status, text = said("verify", runs / "mlp")
    assert (status, "WRONG        files       mlp.safetensors: sha256" in text) == (1, True)


def test_a_model_of_another_name_is_wrong_not_unknown(said, runs, tmp_path):
    saved_model(tmp_path / "other", seed=5)
    status, text = said("verify", runs / "flat", "--model", tmp_path / "other")
    assert status == 1
    assert "not checked  evaluation  needs the model that it was trained on" in text


def test_what_has_no_record_or_no_such_file_is_a_sentence(said, made, runs):
    (runs / "flat" / "minprefix.json").unlink()
    for call, sentence in (
        (["verify", runs / "flat"], "has no minprefix.json: PEFT wrote it"),
        (["verify", runs / "gone"], "does not exist"),
        (["verify", made / "model"], "holds no prefix"),
        (["verify", made / "flat", "--revision", "x"], "--revision belongs to a model's name"),
        (
            ["verify", made / "plain", "--valid", made / "valid.jsonl"],
            "the prefix records no fingerprint of its valid: leave it out",
        ),
    ):
        status, text = said(*call)
        assert status == 2
        assert sentence in text


@pytest.mark.long
def test_a_demo_is_verified_without_a_file(said, tmp_path, monkeypatch):
    from minprefix.data import demo

    monkeypatch.setattr(demo, "TRAIN", 20)
    monkeypatch.setattr(demo, "VALID", 4)
    monkeypatch.setattr(demo, "TEST", 2)
    monkeypatch.setattr("minprefix.prefixes.verify.SAMPLES", 1)
    monkeypatch.setattr("minprefix.cli.demo.NEW_TOKENS", 2)
    out = tmp_path / "demo"
    assert said("demo", "--out", out, "--steps", 2, "--batch-size", 4, "--seed", 5)[0] == 0
    status, text = said("verify", out)
    assert (status, text.count("the tiny world, sha256")) == (0, 2), text
    changed(out, lambda about: about["training"]["options"].update(seed=6))
    status, text = said("verify", out)
    assert status == 1
    assert "WRONG        data" in text
    changed(out, lambda about: about["training"]["options"].update(seed=10**300))
    assert said("verify", out)[0] == 1


def test_a_run_whose_first_pair_was_too_long_is_saved_and_verified(said, made, runs):
    """What is recorded are samples of sources that have room."""
    data = runs / "data.jsonl"
    long = json.dumps({"source": "B " * 70, "target": "y"}) + "\n"
    data.write_text(long + data.read_text())
    call = ["train", "--model", made / "model", "--data", data, "--steps", 2, "--skip-long"]
    status, text = said(*call, "--out", runs / "new")
    assert status == 0, text
    about = json.loads((runs / "new" / "minprefix.json").read_text())
    assert [s["source"] for s in about["evaluation"]["samples"]] == [s for s, _ in PAIRS]
    status, text = said("verify", runs / "new")
    assert status == 0, text


HOSTILE = [
    ("evaluation.loss", 10**400),
    ("evaluation.loss", float("inf")),
    ("evaluation.loss", -1),
    ("evaluation.examples", 10**30),
    ("evaluation.max_new_tokens", 10**9),
    ("evaluation.samples", [{"source": "", "prediction": ""}]),
    ("evaluation.samples", [{"source": "\ud800", "prediction": "\udfff"}]),
    ("evaluation.samples", [{"source": "B " * 5000, "prediction": "\x1b[2J"}]),
    ("training.template", "{x}"),
    ("training.template", "\ud800{source}{target}"),
    ("training.options.data", "\x00"),
    ("training.options.data", "/dev/zero"),
    ("training.options.data", "x" * 5000),
    ("training.options.data", "\ud800\x1b[31m"),
    ("training.options.source_column", "\ud800"),
    ("training.options.skip_long", {"a": []}),
    ("training.settings", {}),
    ("training.command", "demo"),
    ("training", {"command": "demo", "data_sha256": "0" * 64}),
    ("training.of", [{"folder": "\ud800\x07", "files": 3}]),
    ("training", None),
    ("training", {}),
    ("metrics", {"\ud800\x1b[2J": ["\ud801", {"deep": [[]]}]}),
    ("saved", "\x1b]0;owned\x07\ud800"),
    ("packages", {"\ud800\x1b": "\ud801\x1b[5m"}),
    ("base.name", "\ud800\x1b[31mred"),
    ("base.name", "./\x00"),
    ("base.name", "./" + "x" * 5000),
    ("base.sha256", None),
    ("base.tokenizer_sha256", None),
    ("files", {"\x1b[2J\ud800": "0" * 64}),
    ("prefix.kind", "mlp"),
    ("prefix.position_offset", 10**400),
    ("prefix.layers", [10**400]),
    ("base.n_layer", 10**400),
    ("evaluation", None),
]


@pytest.mark.parametrize(("key", "value"), HOSTILE, ids=lambda v: f"{v!a:.30}")
def test_a_hostile_record_ends_in_a_finding_or_a_sentence_and_steers_no_terminal(
    made, tmp_path, capsys, key, value
):
    folder = shutil.copytree(made / "flat", tmp_path / "p")

    def put(about):
        *parts, last = key.split(".")
        for part in parts:
            about = about[part]
        about[last] = value

    changed(folder, put)
    for argv in (["verify", folder], ["inspect", folder], ["diff", made / "flat", folder]):
        status = main([str(a) for a in argv])
        out, err = capsys.readouterr()
        assert status in (0, 1, 2)
        assert "Traceback" not in err
        assert (err.count("\n") == 1) == (status == 2 and not out)
        out.encode()  # whole characters only
        assert all(c.isprintable() or c == "\n" for c in out), "what only a terminal would see"


def test_findings_can_be_had_in_python(made):
    found = verify(made / "flat", GPT2.load(made / "model"))
    assert [f.what for f in found] == [
        "files", "base", "tokenizer", "data", "valid", "loss", "samples",
    ]  # fmt: skip
    assert all(f.right for f in found)
