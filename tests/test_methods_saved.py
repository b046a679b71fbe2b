"""Rivals on disk: their own files, PEFT's files both ways, and what is refused by name."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from safetensors.torch import save_file as save_torch

from minprefix import GPT2, Batch, InputError, Prefix, methods
from minprefix.cli import main
from minprefix.data.pairs import Template, encode_pairs, fingerprint, read_pairs
from minprefix.methods import METHODS
from minprefix.prefixes.store import PrefixStore
from minprefix.prefixes.verify import evaluation, verify
from minprefix.storage import provenance
from minprefix.storage.artifact import FILES
from minprefix.storage.provenance import ABOUT, read_about
from minprefix.storage.run import RUN_FILES, is_ours

IDS = [11, 290, 7, 45, 300, 8]
CONFIG, TENSOR = "adapter_config.json", "adapter_model.safetensors"


@pytest.fixture(scope="module")
def tiny():
    return GPT2.load()


def stirred(method):
    """The method with parameters that training could have left, none of them zero."""
    rng = np.random.default_rng(0)
    for name, a in method.parameters.items():
        method.parameters[name] = (a + rng.normal(0, 0.02, a.shape)).astype(a.dtype)
    return method


MADE = {
    "full": methods.FineTuning.start,
    "top-layers": lambda model: methods.TopLayers.start(model, 2),
    "bitfit": methods.BitFit.start,
    "prompt-tuning": lambda model: methods.PromptTuning.normal(model, 4),
    "p-tuning": lambda model: methods.PTuning.start(model, 3, hidden=16),
    "infix": lambda model: methods.Infix.start(model, 3),
    "lora": lambda model: methods.LoRA.start(
        model, 4, alpha=10, targets=["c_attn", "mlp.c_proj"], dropout=0.1
    ),
    "adapters": methods.Adapters.start,
}
PEFTS = ("prompt-tuning", "p-tuning", "lora")


def made(name, model):
    return stirred(MADE[name](model))


def edit(folder, name, **values):
    held = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps(held | values))


def logits(method, model):
    return method.logits(model, Batch.pack([IDS]))


# ---- its own files ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", MADE)
def test_a_rival_is_loaded_as_it_was_saved_and_saved_again_the_same(tiny, tmp_path, name):
    method = made(name, tiny)
    method.save(tmp_path / "a", tiny, {"template": "{source}{target}"}, {"loss": 1.5})
    loaded = methods.load(tmp_path / "a", tiny)
    assert type(loaded) is type(method)
    assert loaded.options == method.options
    assert loaded.parameters.keys() == method.parameters.keys()
    for key, a in method.parameters.items():
        assert np.array_equal(a, loaded.parameters[key])
    loaded.save(tmp_path / "b", tiny)
    tensors = {path.name for path in (tmp_path / "a").glob("*.safetensors")}
    assert tensors
    for file in tensors:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    about = read_about(tmp_path / "a")
    assert about.prefix is None
    assert (about.method.name, about.method.options) == (name, method.options)
    assert (about.template, about.metrics) == ("{source}{target}", {"loss": 1.5})
    assert about.base == tiny.identity()


def test_the_schema_names_the_rivals_that_there_are():
    schema = json.loads(provenance.SCHEMA.read_text())
    assert schema["properties"]["method"]["properties"]["name"]["enum"] == list(METHODS)
    assert set(MADE) == set(METHODS)


def test_a_prefix_has_the_record_that_it_had(tiny, tmp_path):
    Prefix.normal(tiny.config, 2).save(tmp_path, tiny)
    raw = json.loads((tmp_path / ABOUT).read_text())
    keys = "format saved packages base prefix files training metrics evaluation"
    assert list(raw) == keys.split()
    loaded = methods.load(tmp_path, tiny)
    assert type(loaded) is Prefix


def test_a_record_has_a_prefix_or_a_method(tiny, tmp_path):
    made("lora", tiny).save(tmp_path, tiny)
    shape = {"kind": "flat", "length": 2, "layers": None, "position_offset": 2}
    edit(tmp_path, ABOUT, prefix=shape)
    with pytest.raises(InputError, match="'prefix' and 'method' are both there: expected one"):
        methods.load(tmp_path)


def test_a_rival_takes_the_place_of_a_prefix_and_a_prefix_of_a_rival(tiny, tmp_path):
    Prefix.normal(tiny.config, 2, layers=[1]).save(tmp_path, tiny)
    for name in ("p-tuning", "adapters", "p-tuning"):
        made(name, tiny).save(tmp_path, tiny)
        files = {p.name for p in tmp_path.iterdir()}
        assert files == set(read_about(tmp_path).files) | {ABOUT}
        assert methods.load(tmp_path, tiny).name == name
    Prefix.normal(tiny.config, 2).save(tmp_path, tiny)
    assert {p.name for p in tmp_path.iterdir()} == {CONFIG, TENSOR, ABOUT}
    assert set(FILES) < set(RUN_FILES)


def test_nothing_is_written_for_numbers_that_no_file_can_hold(tiny, tmp_path):
    method = made("lora", tiny)
    method.parameters["h.1.attn.c_attn.lora_B"][0, 0] = np.nan
    with pytest.raises(InputError, match=r"lora, whose .*h\.1\.attn\.c_attn.* holds NaN"):
        method.save(tmp_path / "out", tiny)
    with pytest.raises(InputError, match="cannot save infix without its base"):
        made("infix", tiny).save(tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", MADE)
def test_a_rival_of_another_base_is_refused(tiny, tmp_path, name):
    made(name, tiny).save(tmp_path, tiny)
    again = GPT2.random(tiny.config, seed=1)
    with pytest.raises(InputError, match=rf"{name} in .* was trained on another base: on 'tiny'"):
        methods.load(tmp_path, again)


def test_a_rival_is_no_prefix(tiny, tmp_path, capsys):
    made("lora", tiny).save(tmp_path / "r", tiny)
    Prefix.normal(tiny.config, 2).save(tmp_path / "p", tiny)
    for read in (lambda: Prefix.load(tmp_path / "r"), lambda: PrefixStore(tmp_path, tiny)["r"]):
        with pytest.raises(
            InputError, match="holds lora, a rival of prefix-tuning: expected a pre"
        ):
            read()
    r, p, out = (str(tmp_path / name) for name in ("r", "p", "out"))
    for args in (
        ["diff", p, r],
        ["combine", p, r, "--how", "average", "--out", out],
        ["prune", r, "--keep", "1", "--data", p, "--out", out],
        ["export", r, "--to", "adapters", "--out", out],
    ):
        assert main(args) == 2
        assert "rival" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", MADE)
def test_a_damaged_file_is_a_sentence(tiny, tmp_path, name):
    made(name, tiny).save(tmp_path, tiny)
    file = {"p-tuning": "encoder.safetensors"}.get(name)
    file = file or (TENSOR if name in PEFTS else "method.safetensors")
    whole = (tmp_path / file).read_bytes()
    changed = bytearray(whole)
    changed[-3] ^= 1
    for data, said in (
        (whole[:-5], "is not a whole safetensors file"),
        (bytes(changed), "records sha256"),
        (None, f"has no {file}: copy the folder whole"),
    ):
        (tmp_path / file).unlink()
        if data is not None:
            (tmp_path / file).write_bytes(data)
        with pytest.raises(InputError, match=said):
            methods.load(tmp_path, tiny)
        if data is None:
            break
    (tmp_path / file).write_bytes(whole)
    edit(tmp_path, ABOUT, method={"name": name, "options": {"rank": 99}})
    with pytest.raises(InputError, match=r"method\.options is \{'rank': 99\}, the tensors beside"):
        methods.load(tmp_path, tiny)
    edit(tmp_path, ABOUT, method={"name": "prefix", "options": {}})
    with pytest.raises(InputError, match="expected the name of a rival"):
        methods.load(tmp_path, tiny)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("p-tuning", {"embedding": (3, 160)}),
        ("infix", {"kv": (3, 2)}),
        ("adapters", {"h.0.mlp.c_proj.up": (2, 3)}),
        ("prompt-tuning", {"prompts": (2, 3)}),
        ("top-layers", {"wte.weight": (2, 3)}),
    ],
)
def test_parameters_that_are_not_its_own_are_refused(name, parameters):
    arrays = {key: np.zeros(shape, "float32") for key, shape in parameters.items()}
    with pytest.raises(InputError, match=f"{name} has the "):
        METHODS[name].of({}, arrays)


# ---- PEFT's files -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def theirs():
    """Makes transformers' GPT-2 of the shipped model."""
    from transformers import AutoModelForCausalLM

    return lambda: AutoModelForCausalLM.from_pretrained("weights/tiny").eval()


def torch_logits(model):
    with torch.no_grad():
        return model(torch.tensor([IDS])).logits[0].numpy()[-len(IDS) :]


def assert_equal_logits(a, b):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def configs():
    import peft

    lora = {"task_type": "CAUSAL_LM", "fan_in_fan_out": True, "r": 4, "lora_alpha": 9}
    targets = {
        "lora": ["c_attn", "mlp.c_proj"],
        "lora default": None,
        "lora both c_proj": ["c_proj"],
        "lora all": "all-linear",
        "lora one layer": ["transformer.h.2.mlp.c_fc", "h.1.attn.c_proj"],
    }
    made = {name: peft.LoraConfig(target_modules=t, **lora) for name, t in targets.items()}
    made["lora layers"] = peft.LoraConfig(
        target_modules=["c_attn"], layers_to_transform=[1, 3], **lora
    )
    virtual = {"task_type": "CAUSAL_LM", "num_virtual_tokens": 3}
    made["prompt"] = peft.PromptTuningConfig(**virtual)
    made["p-tuning"] = peft.PromptEncoderConfig(encoder_hidden_size=16, **virtual)
    made["p-tuning lstm"] = peft.PromptEncoderConfig(
        encoder_hidden_size=16, encoder_reparameterization_type="LSTM", **virtual
    )
    return made


NAMES = (
    "lora", "lora default", "lora both c_proj", "lora all", "lora one layer", "lora layers",
    "prompt", "p-tuning", "p-tuning lstm",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_what_peft_made_computes_the_same_here(tiny, theirs, tmp_path, name):
    import peft

    model = peft.get_peft_model(theirs(), configs()[name])
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.05)
    model.eval().save_pretrained(tmp_path / "a")
    method = methods.load(tmp_path / "a", tiny)
    assert_equal_logits(torch_logits(model), logits(method, tiny))
    method.save(tmp_path / "b", tiny)
    assert [is_ours(tmp_path / part) for part in "ab"] == [False, True]
    a, b = (load_file(tmp_path / part / TENSOR) for part in "ab")
    assert a.keys() == b.keys()
    assert all(np.array_equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("name", PEFTS)
def test_peft_computes_the_same_with_what_was_made_here(tiny, theirs, tmp_path, name):
    import peft

    method = made(name, tiny)
    method.save(tmp_path, tiny)
    model = peft.PeftModel.from_pretrained(theirs(), tmp_path).eval()
    assert_equal_logits(torch_logits(model), logits(method, tiny))


def test_a_lora_on_some_layers_alone_is_written_by_their_names(tiny, theirs, tmp_path):
    import peft

    method = made("lora", tiny)
    kept = {k: a for k, a in method.parameters.items() if k[:4] in ("h.1.", "h.3.")}
    method = methods.LoRA(kept, 10.0)
    method.save(tmp_path, tiny)
    assert "h.3.mlp.c_proj" in json.loads((tmp_path / CONFIG).read_text())["target_modules"]
    model = peft.PeftModel.from_pretrained(theirs(), tmp_path).eval()
    assert_equal_logits(torch_logits(model), logits(methods.load(tmp_path, tiny), tiny))


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_half_precision_is_widened(tiny, tmp_path, kind):
    method = made("lora", tiny)
    method.save(tmp_path, tiny)
    (tmp_path / ABOUT).unlink()
    halved = {k: torch.tensor(a).to(kind) for k, a in load_file(tmp_path / TENSOR).items()}
    save_torch(halved, tmp_path / TENSOR)
    loaded = methods.load(tmp_path, tiny)
    for key, a in method.parameters.items():
        assert np.array_equal(loaded.parameters[key], torch.tensor(a).to(kind).float().numpy())


@pytest.mark.parametrize(
    ("name", "values", "said"),
    [
        ("lora", {"use_dora": True}, "use_dora is True: minprefix does not have that feature"),
        ("lora", {"use_rslora": True}, "use_rslora is True: minprefix does not have"),
        ("lora", {"rank_pattern": {"c_attn": 2}}, "rank_pattern is {'c_attn': 2}: minprefix"),
        ("lora", {"alpha_pattern": {"c_attn": 2}}, "alpha_pattern is"),
        ("lora", {"modules_to_save": ["lm_head"]}, r"modules_to_save is \['lm_head'\]: minprefix"),
        ("lora", {"trainable_token_indices": [1]}, "trainable_token_indices is"),
        ("lora", {"layer_replication": [[0, 2]]}, "layer_replication is"),
        ("lora", {"lora_bias": True}, "lora_bias is True"),
        ("lora", {"bias": "all"}, "bias is 'all': expected 'none'"),
        ("lora", {"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa': expected true"),
        ("lora", {"init_lora_weights": "loftq"}, "init_lora_weights is 'loftq': expected true"),
        ("lora", {"loftq_config": {"loftq_bits": 4}}, "loftq_config is"),
        ("lora", {"of_the_future": 1}, "of_the_future is 1: minprefix does not have"),
        ("lora", {"task_type": "SEQ_CLS"}, "task_type is 'SEQ_CLS': expected 'CAUSAL_LM'"),
        (
            "lora",
            {"target_modules": ".*c_attn"},
            r"target_modules is '\.\*c_attn': expected a list",
        ),
        ("lora", {"target_modules": ["c_attn"]}, "target_modules in adapter_config.json is"),
        ("lora", {"target_modules": ["c_attn", "c_proj"]}, "no matrices for 'h.0.attn.c_proj'"),
        ("lora", {"target_modules": 3}, "target_modules is 3: expected a list of names"),
        ("lora", {"layers_to_transform": [0]}, r"matrices for 'h\.1\.attn"),
        ("lora", {"layers_to_transform": "0"}, "layers_to_transform is '0': expected"),
        ("lora", {"layers_pattern": "blocks"}, "layers_pattern is 'blocks': expected 'h'"),
        ("lora", {"r": 5}, r"expected A \(5, 160\) and B \(480, 5\)"),
        ("lora", {"r": 0}, "r is 0: expected a whole number from 1"),
        ("lora", {"lora_alpha": "8"}, "lora_alpha is '8': expected a positive number"),
        ("lora", {"lora_alpha": 0}, "lora_alpha is 0: expected a positive number"),
        ("lora", {"lora_dropout": 1.0}, "lora_dropout is 1.0: expected a number from 0, below 1"),
        ("lora", {"peft_type": "IA3"}, "'IA3': expected .*'LORA', 'PROMPT_TUNING', 'P_TUNING'"),
        ("prompt-tuning", {"num_virtual_tokens": 5}, r"expected prompt_embeddings \(5, 160\)"),
        ("prompt-tuning", {"token_dim": None}, "token_dim is None: expected a whole number"),
        ("prompt-tuning", {"num_transformer_submodules": 2}, "num_transformer_submodules is 2"),
        ("prompt-tuning", {"num_layers": 5}, "base with n_layer 5, model 'tiny' has 4"),
    ],
)
def test_what_is_not_read_of_pefts_is_refused_by_name(tiny, tmp_path, name, values, said):
    made(name, tiny).save(tmp_path, tiny)
    (tmp_path / ABOUT).unlink()
    methods.load(tmp_path, tiny)
    edit(tmp_path, CONFIG, **values)
    with pytest.raises(InputError, match=said):
        methods.load(tmp_path, tiny)


def test_a_lora_of_another_model_is_a_sentence(tiny, tmp_path):
    made("lora", tiny).save(tmp_path, tiny)
    (tmp_path / ABOUT).unlink()
    held = load_file(tmp_path / TENSOR)
    other = {re.sub(r"transformer\.h", "model.layers", k): a for k, a in held.items()}
    save_file(other, tmp_path / TENSOR)
    with pytest.raises(InputError, match="is it a LoRA of another kind of model"):
        methods.load(tmp_path, tiny)
    wide = {k: np.repeat(a, 2, axis=int("lora_A" in k)) for k, a in held.items()}
    save_file(wide, tmp_path / TENSOR)
    with pytest.raises(InputError, match="it was trained on another base"):
        methods.load(tmp_path, tiny)
    shallow = {k: a for k, a in held.items() if "h.3." not in k}
    save_file(shallow, tmp_path / TENSOR)
    with pytest.raises(InputError, match="base with n_layer 3, model 'tiny' has 4"):
        methods.load(tmp_path, tiny)
    save_file({k: a for k, a in held.items() if "h.1." not in k}, tmp_path / TENSOR)
    with pytest.raises(InputError, match=r"no matrices for 'h\.1\.attn"):
        methods.load(tmp_path, tiny)
    twice = {k.replace("transformer.", ""): a for k, a in held.items() if "h.3." in k}
    save_file(held | twice, tmp_path / TENSOR)
    with pytest.raises(InputError, match=r"h\.3\..*is there twice"):
        methods.load(tmp_path, tiny)


# ---- verify -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["lora", *(pytest.param(n, marks=pytest.mark.long) for n in MADE if n != "lora")]
)
def test_verify_computes_again_what_a_rival_recorded(tiny, tmp_path, capsys, name):
    data, out = tmp_path / "data.csv", tmp_path / "r"
    data.write_text("source,target\nname[The Fox],The Fox is a pub.\narea[city],It is central.\n")
    pairs = read_pairs(data)
    method, template = made(name, tiny), Template()
    encoded = encode_pairs(tiny, pairs, template, tiny.room(method))
    training = {
        "template": template.text,
        "data_sha256": fingerprint(data),
        "options": {"data": str(data)},
    }
    recorded = evaluation(tiny, method, pairs, encoded, template, "data")
    method.save(out, tiny, training, None, recorded)
    found = verify(out)
    assert [f.what for f in found] == ["files", "base", "tokenizer", "data", "loss", "samples"]
    assert all(f.right for f in found)
    assert main(["verify", str(out)]) == 0
    assert "all as recorded" in capsys.readouterr().out
    method.save(out, tiny, training, None, replace(recorded, loss=recorded.loss + 0.01))
    assert [f.what for f in verify(out) if not f.right] == ["loss"]
    (out / "mlp.safetensors").write_bytes(b"")
    assert [f.text for f in verify(out)] == ["mlp.safetensors was not saved with the others"]


# ---- the command line -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["lora", "full", "bitfit"])
def test_export_merges_it_into_a_model_that_both_read(tiny, tmp_path, name, capsys):
    from transformers import AutoModelForCausalLM

    method = made(name, tiny)
    method.save(tmp_path / "r", tiny)
    out = tmp_path / "whole"
    assert main(["export", str(tmp_path / "r"), "--merged", "--out", str(out)]) == 0
    expected = logits(method, tiny)
    merged = GPT2.load(out)
    assert np.array_equal(merged.logits(Batch.pack([IDS])), expected)
    assert merged.tokenizer_fingerprint() == tiny.tokenizer_fingerprint()
    hugging = AutoModelForCausalLM.from_pretrained(out).eval()
    assert_equal_logits(torch_logits(hugging), expected)
    if name == "lora":
        base = method.unmerged(merged)
        for key, a in tiny.weights.items():
            assert np.abs(base.weights[key] - a).max() < 1e-6


def test_export_and_import_of_pefts_files(tiny, tmp_path, capsys):
    for name in PEFTS:
        method = made(name, tiny)
        r, p, back = (str(tmp_path / f"{name} {part}") for part in ("r", "p", "back"))
        method.save(r, tiny)
        assert main(["export", r, "--to", "peft", "--base", "gpt2", "--out", p]) == 0
        assert {f.name for f in (tmp_path / f"{name} p").iterdir()} == {CONFIG, TENSOR}
        assert (
            json.loads((tmp_path / f"{name} p" / CONFIG).read_text())["base_model_name_or_path"]
            == "gpt2"
        )
        assert main(["import", p, "--out", back]) == 0
        taken = methods.load(back, tiny)
        assert np.array_equal(logits(taken, tiny), logits(method, tiny))
        assert read_about(back).command == "import"


@pytest.mark.parametrize(
    ("name", "args", "said"),
    [
        ("adapters", ["--merged"], "holds adapters, which cannot be merged: only LoRA"),
        ("p-tuning", ["--merged"], "holds p-tuning, which cannot be merged"),
        ("infix", ["--to", "peft"], "PEFT's files cannot hold infix"),
        ("lora", [], "expected either --to, with the library's name, or --merged"),
        ("lora", ["--to", "peft", "--merged"], "expected either --to"),
        ("lora", ["--merged", "--base", "gpt2"], "--base is for PEFT"),
        ("lora", ["--to", "peft", "--model", "tiny"], "--model is for --merged"),
    ],
)
def test_what_cannot_be_exported_is_a_sentence(tiny, tmp_path, capsys, name, args, said):
    made(name, tiny).save(tmp_path / "r", tiny)
    assert main(["export", str(tmp_path / "r"), *args, "--out", str(tmp_path / "out")]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", MADE)
def test_inspect_says_what_a_rival_is(tiny, tmp_path, capsys, name):
    made(name, tiny).save(tmp_path, tiny, {"data_sha256": "0" * 64}, {"loss": 2.5})
    assert main(["inspect", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert f"rival        {METHODS[name].__name__}(" in said
    assert ("opens this folder as it is" in said) == (name in PEFTS)
    for part in ("sha256 " + tiny.fingerprint(), "loss 2.5", *read_about(tmp_path).files):
        assert part in said
