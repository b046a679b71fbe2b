"""Every file that a GPT-2 comes in, against transformers; and every way in which one is broken."""

import contextlib
import json
import re
import shutil
import subprocess
import sys
import warnings
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file, save_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, GenerationConfig, GPT2Config, GPT2LMHeadModel
from transformers.activations import ACT2FN

from minprefix import GPT2, Batch, Config, InputError, Prefix
from minprefix.errors import Note
from minprefix.prefixes.verify import verify
from minprefix.storage import config as config_json
from minprefix.storage import hub, places
from tests.conftest import SHARED_DATA, hf_logits, random_model, relative_error
from tests.test_files import POINTER

CONFIG = Config(
    n_layer=2, n_head=2, n_embd=16, vocab_size=40, n_positions=24, bos_token_id=0, eos_token_id=0
)
IDS = np.random.default_rng(0).integers(0, 40, 15)


def tensors_of(model, dtype=torch.float32, start="transformer."):
    """What a checkpoint of `model` holds, by name."""
    return {
        n if n.startswith("lm_head") else start + n: torch.tensor(np.array(a)).to(dtype)
        for n, a in model.weights.items()
    }


def write_model(folder, tensors, config=CONFIG, **changed):
    """A folder with model.safetensors and config.json, of which some keys are `changed`."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    write_config(folder, {"model_type": "gpt2", **vars(config), **changed})
    return folder


def write_config(folder, raw):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(raw))


def edit_config(folder, **changed):
    write_config(folder, json.loads((folder / "config.json").read_text()) | changed)


def from_transformers(folder):
    """transformers reads the same folder: the oracle for every variant."""
    hf, info = GPT2LMHeadModel.from_pretrained(
        folder, dtype=torch.float64, output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["mismatched_keys"]
    return hf.eval(), info


def assert_like_transformers(folder, within=1e-12):
    """-> the model here in float64, once its logits are those of transformers."""
    ours = GPT2.load(folder, dtype="float64")
    with torch.no_grad():
        want = hf_logits(from_transformers(folder)[0], IDS).numpy()
    assert relative_error(ours.logits(Batch.pack([IDS])), want) < within
    return ours


@pytest.fixture
def good(tmp_path):
    """A whole model folder, for a test to damage."""
    model = random_model(CONFIG, dtype="float32")
    return write_model(tmp_path / "model", tensors_of(model))


# ---- the files in the wild ----


@pytest.mark.parametrize("start", ["transformer.", ""], ids=["prefixed", "bare"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_names_and_precisions_load_with_the_very_values_and_logits(tmp_path, start, dtype):
    tensors = tensors_of(random_model(CONFIG), dtype, start)
    ours = assert_like_transformers(write_model(tmp_path, tensors))
    assert {start + n for n in ours.weights} == set(tensors)
    for name, a in ours.weights.items():
        assert a.dtype == np.float64
        assert np.array_equal(a, tensors[start + name].double().numpy()), name


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex128"])
def test_the_precision_asked_for_is_the_precision_given(good, dtype):
    model = GPT2.load(good, dtype=dtype)
    assert {str(a.dtype) for a in model.weights.values()} == {dtype}
    assert str(model.dtype) == dtype


@pytest.mark.parametrize("start", ["transformer.", ""], ids=["prefixed", "bare"])
@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.float32])
def test_mask_buffers_are_skipped(tmp_path, start, dtype):
    tensors = tensors_of(random_model(CONFIG), start=start)
    for i in range(2):
        mask = torch.tril(torch.ones(24, 24)).view(1, 1, 24, 24).to(dtype)
        tensors[f"{start}h.{i}.attn.bias"] = mask
        tensors[f"{start}h.{i}.attn.masked_bias"] = torch.tensor(-1e4).to(torch.float32)
    ours = assert_like_transformers(write_model(tmp_path, tensors))
    assert set(ours.weights) == set(CONFIG.shapes())


def test_shards_load_as_the_one_file_does(tmp_path, good):
    hf, _ = from_transformers(good)
    hf.float().save_pretrained(tmp_path / "shards", max_shard_size="8KB")
    shards = tmp_path / "shards"
    assert len(list(shards.glob("model-*-of-*.safetensors"))) > 2
    assert not (shards / "model.safetensors").exists()
    sharded = assert_like_transformers(shards)
    assert sharded.fingerprint() == GPT2.load(good).fingerprint()


def test_a_copy_of_the_tied_head_is_the_tied_head(tmp_path, good):
    tensors = load_file(good / "model.safetensors")
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"].clone()
    ours = assert_like_transformers(write_model(tmp_path / "copy", tensors))
    assert "lm_head.weight" not in ours.weights
    assert ours.config.tie_word_embeddings
    assert ours.fingerprint() == GPT2.load(good).fingerprint()


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "said to be tied"])
def test_a_head_of_its_own_is_used(tmp_path, good, tied):
    tensors = load_file(good / "model.safetensors")
    tensors["lm_head.weight"] = torch.randn(40, 16)
    folder = write_model(tmp_path / "own", tensors, tie_word_embeddings=tied)
    ours = assert_like_transformers(folder)
    assert not ours.config.tie_word_embeddings
    logits, plain = (GPT2.load(f).logits(Batch.pack([IDS])) for f in (folder, good))
    assert relative_error(logits, plain) > 0.1  # the head matters
    ours.save(tmp_path / "again")
    assert_like_transformers(tmp_path / "again")


def renamed(tensors, start):
    """As if the whole model had been saved inside of another one."""
    return {start + name: tensor for name, tensor in tensors.items()}


WRAPPED = {
    "compiled": lambda t: renamed(t, "_orig_mod."),
    "parallel": lambda t: renamed(t, "module."),
    "both": lambda t: renamed(t, "module._orig_mod."),
    "both, the other way": lambda t: renamed(t, "_orig_mod.module."),
    "the inner model compiled": lambda t: {
        n.replace("transformer.", "transformer._orig_mod."): a for n, a in t.items()
    },
    "each block compiled": lambda t: {
        re.sub(r"h\.(\d)\.", r"h.\1._orig_mod.", n): a for n, a in t.items()
    },
    "sharded blocks": lambda t: {
        re.sub(r"h\.(\d)\.", r"h.\1._fsdp_wrapped_module._checkpoint_wrapped_module.", n): a
        for n, a in t.items()
    },
    "Lightning": lambda t: renamed(t, "model."),
    "Lightning, compiled": lambda t: renamed(t, "model._orig_mod."),
    "PEFT, merged": lambda t: renamed(t, "base_model.model."),
    "TRL": lambda t: renamed(t, "pretrained_model."),
}


@pytest.mark.parametrize("own_head", [False, True], ids=["tied", "own head"])
@pytest.mark.parametrize("how", WRAPPED)
def test_what_wrapped_the_model_when_it_was_saved_changes_nothing(tmp_path, good, how, own_head):
    tensors = load_file(good / "model.safetensors")
    if own_head:
        tensors["lm_head.weight"] = torch.randn(40, 16)
    plain = GPT2.load(write_model(tmp_path / "plain", tensors))
    wrapped = write_model(tmp_path / "wrapped", WRAPPED[how](tensors))
    assert set(load_file(wrapped / "model.safetensors")) != set(tensors)
    again = GPT2.load(wrapped)
    assert again.fingerprint() == plain.fingerprint()
    assert ("lm_head.weight" in again.weights) == own_head


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "said to be untied"])
@pytest.mark.parametrize("kept", ["lm_head.weight", "transformer.wte.weight"])
def test_a_tied_pair_that_safetensors_stored_under_either_name_is_that_pair(
    tmp_path, good, kept, tied
):
    hf = from_transformers(good)[0].float()
    assert hf.lm_head.weight is hf.transformer.wte.weight
    folder = write_model(tmp_path / "one", {}, tie_word_embeddings=tied)
    save_model(hf, folder / "model.safetensors", {"format": "pt"})
    if kept != "lm_head.weight":  # what a loop over the parameters would do
        state = {n: t for n, t in hf.state_dict().items() if n != "lm_head.weight"}
        save_file(state, folder / "model.safetensors", {"lm_head.weight": kept})
    with safe_open(folder / "model.safetensors", "np") as f:
        assert kept in f.keys()  # noqa: SIM118
        assert kept in f.metadata().values()
        assert len(set(f.keys()) & {"lm_head.weight", "transformer.wte.weight"}) == 1
    ours = GPT2.load(folder)
    assert np.array_equal(ours.weights["wte.weight"], GPT2.load(good).weights["wte.weight"])
    assert ours.config.tie_word_embeddings == tied
    plain = GPT2.load(good).logits(Batch.pack([IDS]))
    assert np.array_equal(ours.logits(Batch.pack([IDS])), plain)


def test_a_tied_pair_of_a_compiled_model_is_found_by_its_wrapped_names(tmp_path, good):
    hf = from_transformers(good)[0].float()
    folder = write_model(tmp_path / "compiled", {})
    save_model(torch.nn.ModuleDict({"_orig_mod": hf}), folder / "model.safetensors")
    assert "_orig_mod.transformer.wte.weight" not in load_file(folder / "model.safetensors")
    assert GPT2.load(folder).fingerprint() == GPT2.load(good).fingerprint()


def test_the_head_alone_is_the_tied_pair_where_the_config_ties_them(tmp_path, good):
    tensors = load_file(good / "model.safetensors")
    tensors["lm_head.weight"] = tensors.pop("transformer.wte.weight")
    folder = write_model(tmp_path / "head", tensors)
    assert GPT2.load(folder).fingerprint() == GPT2.load(good).fingerprint()
    edit_config(folder, tie_word_embeddings=False)
    with pytest.raises(InputError, match=r"tensor 'wte\.weight' is missing"):
        GPT2.load(folder)


def test_layers_that_share_their_weights_were_stored_once(tmp_path, good):
    hf = from_transformers(good)[0].float()
    hf.transformer.h[1].mlp = hf.transformer.h[0].mlp
    folder = write_model(tmp_path / "shared", {})
    save_model(hf, folder / "model.safetensors")
    ours = GPT2.load(folder, dtype="float64")
    with torch.no_grad():
        want = hf_logits(hf.double(), IDS).numpy()
    assert relative_error(ours.logits(Batch.pack([IDS])), want) < 1e-12


HEADS = [
    ["score.weight"],
    ["classifier.weight", "classifier.bias"],
    ["qa_outputs.weight", "qa_outputs.bias"],
    ["multiple_choice_head.summary.weight", "multiple_choice_head.summary.bias"],
    ["v_head.summary.weight", "v_head.summary.bias"],
]


@pytest.mark.parametrize("start", ["", "module."])
@pytest.mark.parametrize("names", HEADS, ids=lambda names: names[0].split(".")[0])
def test_the_head_of_another_task_is_left_out_and_said_once(tmp_path, good, names, start):
    tensors = load_file(good / "model.safetensors") | dict.fromkeys(names, torch.zeros(2, 16))
    tensors = {start + n: t.clone() for n, t in tensors.items()}
    folder = write_model(tmp_path / "task", tensors)
    said = re.escape(", ".join(map(repr, sorted(names)))) + " left out, the head of another task"
    with pytest.warns(Note, match=said):
        ours = GPT2.load(folder)
    with warnings.catch_warnings(action="error"):
        GPT2.load(folder)
    assert ours.fingerprint() == GPT2.load(good).fingerprint()


def test_an_inner_width_of_its_own_is_used(tmp_path):
    config = Config(**{**vars(CONFIG), "n_inner": 24})
    ours = assert_like_transformers(write_model(tmp_path, tensors_of(random_model(config)), config))
    assert ours.weights["h.0.mlp.c_fc.weight"].shape == (16, 24)


def test_what_transformers_writes_today_loads(tmp_path, good):
    from_transformers(good)[0].save_pretrained(tmp_path / "today")
    assert_like_transformers(tmp_path / "today")


SMALL = {
    "activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"], "attn_pdrop": 0.1,
    "bos_token_id": 0, "embd_pdrop": 0.1, "eos_token_id": 0, "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-05, "model_type": "gpt2", "n_ctx": 24, "n_embd": 16, "n_head": 2,
    "n_layer": 2, "n_positions": 24, "resid_pdrop": 0.1, "summary_activation": None,
    "summary_first_dropout": 0.1, "summary_proj_to_labels": True, "summary_type": "cls_index",
    "summary_use_proj": True, "vocab_size": 40,
    "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
}  # fmt: skip
# the keys that the published models have, and those that software and people added since
WRITTEN_BY_4 = SMALL | {
    "_name_or_path": "gpt2", "gradient_checkpointing": False, "n_inner": None,
    "scale_attn_weights": True, "transformers_version": "4.6.0", "use_cache": True,
}  # fmt: skip
WRITTEN_BY_4_36 = WRITTEN_BY_4 | {
    "reorder_and_upcast_attn": False, "scale_attn_by_inverse_layer_idx": False,
    "torch_dtype": "float32", "transformers_version": "4.36.2",
}  # fmt: skip
OF_2019 = {key: value for key, value in SMALL.items() if key != "model_type"} | {
    "finetuning_task": None, "num_labels": 1, "output_attentions": False,
    "output_hidden_states": False, "pruned_heads": {}, "torchscript": False,
}  # fmt: skip
OF_2020 = SMALL | {
    "bad_words_ids": None, "decoder_start_token_id": None, "do_sample": False,
    "early_stopping": False, "eos_token_ids": None, "is_decoder": False, "length_penalty": 1.0,
    "max_length": 20, "min_length": 0, "no_repeat_ngram_size": 0, "num_beams": 1,
    "num_return_sequences": 1, "output_past": True, "prefix": None, "pruned_heads": {},
    "repetition_penalty": 1.0, "temperature": 1.0, "top_k": 50, "top_p": 1.0,
    "use_bfloat16": False, "xla_device": None,
}  # fmt: skip
EMPTY_ADAPTERS = {"adapters": {}, "config_map": {}, "fusion_config_map": {}, "fusions": {}}
PUBLISHED = {
    "gpt2": SMALL,
    "gpt2-medium": SMALL | {"n_special": 0, "predict_special_tokens": True},
    "gpt2-xl": SMALL | {"output_past": True},
    "distilgpt2": SMALL | {
        "_num_labels": 1, "id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0},
    },
    "fine-tuned with 4.6": WRITTEN_BY_4,
    "fine-tuned with 4.36": WRITTEN_BY_4_36,
    "fine-tuned with 4.46": WRITTEN_BY_4_36 | {
        "_attn_implementation_autoset": True, "transformers_version": "4.46.3",
    },
    "fine-tuned with 5": {k: v for k, v in WRITTEN_BY_4_36.items() if k != "torch_dtype"} | {
        "add_cross_attention": False, "dtype": "bfloat16", "pad_token_id": None,
        "tie_word_embeddings": True, "transformers_version": "5.0.0",
    },
    "saved in 2019": OF_2019,
    "saved in 2019, with OpenAI's name of a size": OF_2019 | {"n_vocab": 40},
    "saved in 2020": OF_2020,
    "DialoGPT": SMALL | {"task_specific_params": {"conversational": {"max_length": 1000}}},
    "Chinese, with BERT's tokenizer": SMALL | {
        "tokenizer_class": "BertTokenizer", "gradient_checkpointing": False,
        "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 320}},
    },
    "aitextgen": WRITTEN_BY_4 | {"line_by_line": False, "attn_pdrop": 0.0, "resid_pdrop": 0.0},
    "tokens of its own": WRITTEN_BY_4 | {
        "name_or_path": "gpt2-medium", "sep_token_id": 3, "pad_token_id": 2, "cls_token_id": 1,
        "sep_token": "<sep>", "pad_token": "<pad>",
    },
    "a classifier": WRITTEN_BY_4_36 | {
        "architectures": ["GPT2ForSequenceClassification"], "pad_token_id": 1,
        "id2label": {"0": "NEGATIVE", "1": "POSITIVE"}, "problem_type":
        "single_label_classification", "label2id": {"NEGATIVE": 0, "POSITIVE": 1},
    },
    "a tagger": WRITTEN_BY_4 | {
        "architectures": ["GPT2ForTokenClassification"], "classifier_dropout": 0.1,
    },
    "with a value head": WRITTEN_BY_4_36 | {"architectures": ["GPT2LMHeadModelWithValueHead"]},
    "from a decoder": WRITTEN_BY_4 | {"is_decoder": True, "add_cross_attention": False},
    "LoRA merged into it": WRITTEN_BY_4_36 | {
        "_name_or_path": "outputs/merged", "unsloth_version": "2024.9",
    },
    "an adapter library's, without adapters": WRITTEN_BY_4 | {"adapters": EMPTY_ADAPTERS},
    "switches that are off": WRITTEN_BY_4_36 | {
        "quantization_config": None, "mup_scale": None, "auto_map": {},
        "position_embedding_type": "absolute",
    },
    "a tokenizer with code": WRITTEN_BY_4 | {"auto_map": {"AutoTokenizer": ["x.Tok", None]}},
    "transformers' general names": {
        k: v for k, v in SMALL.items() if k not in ("n_layer", "n_positions", "n_ctx")
    } | {"num_hidden_layers": 2, "hidden_size": 16, "max_position_embeddings": 24},
    "a mask of another size": SMALL | {"n_ctx": 1024},
    "from TensorFlow": WRITTEN_BY_4 | {
        "architectures": ["TFGPT2LMHeadModel"], "tf_legacy_loss": False, "return_dict": True,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_configs_of_published_models_load(good, name):
    write_config(good, PUBLISHED[name])
    ours = GPT2.load(good, dtype="float64")
    if "model_type" not in PUBLISHED[name]:  # which transformers asks for today
        edit_config(good, model_type="gpt2")
    if PUBLISHED[name].get("auto_map"):
        edit_config(good, auto_map=None)  # it would ask whether to run that code
    assert_like_transformers(good)
    assert ours.config == GPT2.load(good).config == CONFIG


REFUSED = {
    "CodeParrot": (
        {"scale_attn_by_inverse_layer_idx": True, "reorder_and_upcast_attn": True},
        r"scale_attn_by_inverse_layer_idx is True, .*; reorder_and_upcast_attn is True, minpref",
    ),
    "Cerebras-GPT": (
        {"activation_function": "gelu", "n_inner": 64},
        r"activation_function is 'gelu', .*tanh form, 'gelu' is its erf form\)",
    ),
    "no scale": ({"scale_attn_weights": False}, "scale_attn_weights is False, minprefix impl"),
    "a decoder": ({"add_cross_attention": True}, "add_cross_attention is True, minprefix impl"),
    "ImageGPT": (
        {"model_type": "imagegpt", "activation_function": "quick_gelu"},
        "model_type is 'imagegpt', minprefix implements 'gpt2'",
    ),
    "GPT-Neo": ({"model_type": "gpt_neo", "num_layers": 2}, "model_type is 'gpt_neo', minprefix"),
    "StarCoder": (
        {"model_type": "gpt_bigcode", "multi_query": True}, "model_type is 'gpt_bigcode', minpr"
    ),
    "GPT, before it had a type": (
        {"model_type": ..., "afn": "gelu", "architectures": ["OpenAIGPTLMHeadModel"]},
        r"has no model_type, and its architectures are \['OpenAIGPTLMHeadModel'\]",
    ),
    "quantised": (
        {"quantization_config": {"bits": 4, "quant_method": "gptq"}},
        "quantization_config is .*'gptq'.*: its weights are quantised: give the model that",
    ),
    "pruned": ({"pruned_heads": {"0": [1]}}, r"pruned_heads is \{'0': \[1\]\}: heads were cut out"),
    "with adapters": (
        {"adapters": EMPTY_ADAPTERS | {"adapters": {"sst-2": "9076f36a74755ac4"}}},
        r"adapters is \{'sst-2': '9076.*save it without them, or merge them first",
    ),
    "with code": (
        {"auto_map": {"AutoModelForCausalLM": "modeling.Mine", "AutoTokenizer": "tok.Mine"}},
        r"auto_map is \{'AutoModelForCausalLM': 'modeling.Mine'\}: .*code of its own, which is nev",
    ),
    "rotary": (
        {"rotary_dim": 8, "position_embedding_type": "rope"},
        "position_embedding_type is 'rope': expected 'absolute'",
    ),
    "stretched": (
        {"rope_theta": 1e4, "alibi": True, "n_kv_heads": 1},
        "unknown keys 'alibi', 'n_kv_heads', 'rope_theta', which may change .*: remove them if you",
    ),
    "two sizes": ({"n_vocab": 41}, "n_vocab is 41 and vocab_size is 40, which are two names"),
    "two widths": ({"hidden_size": 32}, "hidden_size is 32 and n_embd is 16, which are two names"),
    "layers of their own": (
        {"per_layer_config": {"1": {"n_head": 1}}}, "per_layer_config is .*differ from each other"
    ),
    "a mask of no size": ({"n_ctx": "long"}, "n_ctx is 'long': expected a whole number from 1"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_config_that_changes_the_arithmetic_is_refused_with_the_reason(good, name):
    changed, reason = REFUSED[name]
    raw = WRITTEN_BY_4_36 | changed
    write_config(good, {key: value for key, value in raw.items() if value is not ...})
    with pytest.raises(InputError, match=f"config.json:? .*{reason}|config.json: {reason}"):
        GPT2.load(good)


def test_every_key_that_transformers_writes_or_reads_is_known_here():
    """Those that shape the arithmetic are checked, each of the others is let through."""
    public = {*vars(GPT2Config()), *GPT2Config().to_dict(), *vars(GenerationConfig())}
    public |= {f.name for f in fields(GPT2Config)} | GPT2Config.attribute_map.keys()
    checked = {*Config.__dataclass_fields__, *config_json.REQUIRED_VALUES, *config_json.SYNONYMS}
    private = {"_output_attentions", "_post_init_done"}  # of the object, in no file
    assert public - checked - config_json.WITHOUT_EFFECT - {*config_json.EMPTY} == private
    assert not checked & config_json.WITHOUT_EFFECT
    assert len(GPT2Config.attribute_map.keys() & config_json.SYNONYMS) == 4


@pytest.mark.parametrize("name", config_json.TANH_FORM)
def test_every_name_of_the_tanh_form_computes_it(good, name):
    edit_config(good, activation_function=name)
    within = 1e-11 if name == "gelu_fast" else 1e-12  # whose sqrt(2 / pi) has ten digits
    ours = assert_like_transformers(good, within)
    assert ours.fingerprint() == GPT2.load(good).fingerprint()


def test_the_names_of_the_tanh_form_are_those_that_compute_it_in_transformers():
    x = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    tanh = torch.nn.functional.gelu(x, approximate="tanh")
    same = set()
    for name in ACT2FN:
        with contextlib.suppress(TypeError, ImportError, RuntimeError):  # what has parameters
            same |= {name} if (ACT2FN[name](x) - tanh).abs().max() < 1e-12 else set()
    assert same == set(config_json.TANH_FORM)


def test_positions_that_the_mask_never_showed_are_noted(good):
    edit_config(good, n_ctx=16)
    with pytest.warns(Note, match="n_ctx is 16 and n_positions is 24: the positions from 16 on"):
        assert_like_transformers(good)


def test_a_gpt2_that_someone_else_trained_is_that_of_transformers():
    folder = SHARED_DATA / "third-party" / "dangus"
    if not folder.is_dir():
        pytest.skip("a GPT-2 of another author is not on this machine")
    assert "line_by_line" in json.loads((folder / "config.json").read_text())
    ours, (hf, _) = GPT2.load(folder, dtype="float64"), from_transformers(folder)
    ids = np.asarray(ours.encode("He said that he would not go there again. " * 3)[:64])
    with torch.no_grad():
        want = hf_logits(hf, ids).numpy()
    assert relative_error(ours.logits(Batch.pack([ids])), want) < 1e-12


# ---- what is saved here ----


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "own head"])
def test_transformers_loads_what_was_saved_here(tmp_path, tied):
    model = random_model(Config(**{**vars(CONFIG), "tie_word_embeddings": tied}), dtype="float32")
    model.save(tmp_path)
    assert not from_transformers(tmp_path)[1]["unexpected_keys"]
    assert_like_transformers(tmp_path)


def files_of(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir()}


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "own head"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_save_load_save_gives_the_same_bytes(tmp_path, tied, dtype):
    config = Config(**{**vars(CONFIG), "tie_word_embeddings": tied, "n_inner": 24})
    model = random_model(config, dtype=dtype)
    model.tokenizer = word_tokenizer()
    model.save(tmp_path / "a")
    again = GPT2.load(tmp_path / "a", dtype=dtype)
    assert again.config == config
    again.save(tmp_path / "b")
    again.save(tmp_path / "a")  # over the files that it is a memory map of
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")
    assert set(files_of(tmp_path / "a")) == {"config.json", "model.safetensors", "tokenizer.json"}
    for name, a in GPT2.load(tmp_path / "b", dtype=dtype).weights.items():
        assert np.array_equal(a, model.weights[name])


def test_saving_over_another_model_leaves_none_of_it(tmp_path, good):
    old = random_model(CONFIG, 1, "float32")
    old.tokenizer = word_tokenizer()
    old.save(tmp_path / "out")
    new = GPT2.load(good)
    new.save(tmp_path / "out")
    again = GPT2.load(tmp_path / "out")
    assert again.fingerprint() == new.fingerprint()
    assert again.tokenizer is None  # not the other model's


def test_a_complex_model_is_not_for_files(tmp_path, good):
    with pytest.raises(InputError, match=r"complex model is for derivatives.*load it as float32"):
        GPT2.load(good, dtype="complex128").save(tmp_path / "out")


# ---- the memory map ----


def map_of(a):
    while a is not None and not isinstance(a, np.memmap):
        a = a.base
    return a


@pytest.mark.parametrize("shards", [False, True], ids=["one file", "shards"])
def test_float32_weights_are_read_only_views_of_the_file(tmp_path, good, shards):
    if shards:
        from_transformers(good)[0].float().save_pretrained(tmp_path / "s", max_shard_size="8KB")
    folder = tmp_path / "s" if shards else good
    for name, a in GPT2.load(folder).weights.items():
        assert map_of(a) is not None, name
        assert map_of(a).filename.parent == folder
        with pytest.raises(ValueError, match="read-only"):
            a[...] = 0


OPEN = """
import resource, sys
from minprefix import GPT2
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
model = GPT2.load(sys.argv[1])
assert model.weights["wte.weight"].shape == (9_000_000, 16)
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print((after - before) * (1 if sys.platform == "darwin" else 1024))
"""


def test_opening_a_file_of_600_mb_reads_almost_none_of_it(tmp_path):
    config = Config(**{**vars(CONFIG), "vocab_size": 9_000_000})
    write_model(tmp_path, {}, config)
    header, size = {}, 0
    for name, shape in config.shapes().items():
        n = 4 * int(np.prod(shape))
        header[f"transformer.{name}"] = {
            "dtype": "F32", "shape": shape, "data_offsets": [size, size + n]
        }  # fmt: skip
        size += n
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(tmp_path / "model.safetensors", "wb") as f:
        f.write(len(text).to_bytes(8, "little") + text)
        f.truncate(8 + len(text) + size)  # a hole in the file: takes no room on the disk
    assert size > 570e6
    command = [sys.executable, "-c", OPEN, str(tmp_path)]
    grown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert int(grown) < 60e6


# ---- tokenizers ----


def word_tokenizer():
    """Eleven words, spaces between them."""
    vocab = {"<unk>": 0} | {w: i for i, w in enumerate("abcdefghij", 1)}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


def test_gpt2s_own_vocab_and_merges_make_its_tokenizer(good, gpt2_bpe):
    for name in ("vocab.json", "merges.txt"):
        (good / name).write_bytes((gpt2_bpe / name).read_bytes())
    model = GPT2.load(good)
    assert model.encode("Hello world") == [15496, 995]
    assert model.encode("Hello<|endoftext|>") == [15496, 50256]
    theirs = AutoTokenizer.from_pretrained(good)
    for text in ("  two  spaces\n\n\ttab", "naïve 日本語 🙂 don't", "x=1;  // 12345", " lead", ""):
        assert model.encode(text) == theirs(text)["input_ids"]
        assert model.decode(model.encode(text)) == text


def test_a_saved_tokenizer_is_the_same_here_and_in_transformers(tmp_path, good, gpt2_bpe):
    for name in ("vocab.json", "merges.txt"):
        (good / name).write_bytes((gpt2_bpe / name).read_bytes())
    model = GPT2.load(good)
    model.save(tmp_path / "saved")
    again, theirs = GPT2.load(tmp_path / "saved"), AutoTokenizer.from_pretrained(tmp_path / "saved")
    for text in ("Hello world", "Hello<|endoftext|>", "  naïve 日本語 🙂 don't\n", ""):
        ids = model.encode(text)
        assert again.encode(text) == ids
        assert theirs(text)["input_ids"] == ids
        plain = theirs.decode(ids, skip_special_tokens=True)
        assert again.decode(ids) == model.decode(ids) == plain


def test_tokenizer_json_goes_before_vocab_and_merges(good, gpt2_bpe):
    for name in ("vocab.json", "merges.txt"):
        (good / name).write_bytes((gpt2_bpe / name).read_bytes())
    word_tokenizer().save(str(good / "tokenizer.json"))
    assert GPT2.load(good).encode("c a d") == [3, 1, 4]


def test_truncation_and_padding_stored_in_tokenizer_json_are_not_applied(good):
    tokenizer = word_tokenizer()
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=6)
    assert len(tokenizer.encode("a b c d").ids) == 6
    tokenizer.save(str(good / "tokenizer.json"))
    assert GPT2.load(good).encode("a b c d") == [1, 2, 3, 4]


@pytest.mark.parametrize("damage", ["{", "", "[]", '{"model": 1}', "\x00\x01"])
def test_a_damaged_tokenizer_is_a_sentence(good, damage):
    (good / "tokenizer.json").write_text(damage)
    said = (
        r"tokenizer in .*model.* cannot be read .*fetch its file|model/tokenizer\.json.* tokenizer"
    )
    with pytest.raises(InputError, match=said):
        GPT2.load(good)


@pytest.mark.parametrize("damaged", ["vocab.json", "merges.txt"])
def test_damaged_vocab_or_merges_is_a_sentence(good, damaged):
    whole = {"vocab.json": '{"a": 0, "b": 1}', "merges.txt": "#version: 0.2\n"}
    for name, text in (whole | {damaged: "no such thing"}).items():
        (good / name).write_text(text)
    with pytest.raises(InputError, match=rf"model/{damaged}, line 1: .* damaged, fetch"):
        GPT2.load(good)


def test_without_a_tokenizer_text_is_refused_and_ids_still_work(good):
    model = GPT2.load(good)
    assert model.logits(Batch.pack([IDS])).shape == (15, 40)
    with pytest.raises(InputError, match=r"has no tokenizer: put tokenizer\.json, or vocab"):
        model.encode("hello")


# ---- bad input: the folder and its config ----


@pytest.mark.parametrize("path", ["./absent", "absent/deeper/still", "here/absent"])
def test_a_missing_folder_is_named(tmp_path, monkeypatch, path):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=f"model folder '{path}' does not exist: give a folder"):
        GPT2.load(path)


def test_a_file_in_place_of_a_folder_is_named(good):
    with pytest.raises(InputError, match=r"model '.*config.json' is a file: give the folder"):
        GPT2.load(good / "config.json")


def test_a_revision_is_for_names_not_for_folders(good):
    with pytest.raises(InputError, match="is a folder: a revision is for names on the hub"):
        GPT2.load(good, revision="main")


# ---- names: what hides what, and what was meant ----


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The working directory, empty, with no way to a hub: `asked` of `find` are its answers."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(hub, "snapshot", lambda repo, revision: Path("hub") / repo)
    return tmp_path / "here"


def test_without_a_name_it_is_the_model_that_ships_whatever_the_folders_are_called(here, good):
    shutil.copytree(good, here / "tiny")
    with warnings.catch_warnings(action="error"):
        model = GPT2.load()
    assert model.fingerprint() == GPT2.load(places.TINY).fingerprint()
    assert model.name == "tiny"
    with pytest.raises(InputError, match="ships with minprefix: a revision is for names"):
        GPT2.load(revision="main")


def test_a_folder_with_the_name_of_the_model_that_ships_is_used_and_says_what_it_hides(here, good):
    shutil.copytree(good, here / "tiny")
    said = (
        r"model 'tiny' is the folder '.*here/tiny' and hides the model that ships: .*leave out --"
    )
    with pytest.warns(Note, match=said):
        model = GPT2.load("tiny")
    assert model.fingerprint() == GPT2.load(good).fingerprint()
    with warnings.catch_warnings(action="error"):  # a path hides nothing
        assert GPT2.load("./tiny").fingerprint() == model.fingerprint()
        assert GPT2.load(here / "tiny").fingerprint() == model.fingerprint()


@pytest.mark.parametrize(
    ("name", "way"),
    [
        ("gpt2", "give 'openai-community/gpt2'"),
        ("gpt2-xl", "give 'openai-community/gpt2-xl'"),
        ("openai-community/gpt2", "rename the folder"),
    ],
)
def test_a_folder_with_a_name_of_the_hubs_gpt2_is_used_and_says_what_it_hides(
    here, good, name, way
):
    shutil.copytree(good, here / name)
    said = rf"model '{name}' is the folder '.*{name}' and hides that model of the hub: .*{way}"
    with pytest.warns(Note, match=said):
        assert GPT2.load(name).fingerprint() == GPT2.load(good).fingerprint()


@pytest.mark.parametrize("name", ["tiny", "gpt2"])
@pytest.mark.parametrize("what", ["file", "folder"])
def test_what_is_no_model_hides_none_and_that_is_said(here, name, what):
    (here / name).mkdir() if what == "folder" else (here / name).write_text("results")
    with pytest.warns(Note, match=f"here/{name}' holds no model and is passed over for the model"):
        found = places.find(name)
    assert found == (places.TINY if name == "tiny" else Path("hub/openai-community/gpt2"))


def test_a_folder_of_any_other_name_is_used_without_a_word(here, good):
    shutil.copytree(good, here / "mine")
    (here / "empty").mkdir()
    with warnings.catch_warnings(action="error"):
        assert places.find("mine") == Path("mine")
    with pytest.raises(InputError, match=r"model folder 'empty' has no config\.json"):
        GPT2.load("empty")


@pytest.mark.parametrize("name", ["", " "])
def test_an_empty_name_is_not_the_folder_that_one_is_in(here, good, name):
    shutil.copytree(good, here, dirs_exist_ok=True)
    with pytest.raises(InputError, match="the name of the model is empty: give a folder"):
        GPT2.load(name)
    assert GPT2.load(".").fingerprint() == GPT2.load(good).fingerprint()


@pytest.mark.filterwarnings("ignore::minprefix.errors.Note")
def test_a_prefix_is_verified_on_the_model_that_ships_or_on_the_folder_that_has_its_name(
    here, good
):
    shutil.copytree(good, here / "tiny")
    shipped, folder = GPT2.load(), GPT2.load("./tiny")
    folder.name = "tiny"
    Prefix.normal(shipped.config, 3, seed=0).save("of-shipped", shipped)
    Prefix.normal(folder.config, 3, seed=0).save("of-folder", folder)
    for place, base in (("of-shipped", shipped), ("of-folder", folder)):
        (found,) = (f for f in verify(place) if f.what == "base")
        assert found.right, found
        assert base.fingerprint()[:12] in found.text


@pytest.mark.parametrize(
    ("asked", "meant"),
    [
        ("tinny", "tiny"),
        ("Tiny", "tiny"),
        ("tiny/", "tiny"),
        ("gpt-2", "gpt2"),
        ("GPT2", "gpt2"),
        ("gtp2", "gpt2"),
        ("gpt2-small", "gpt2"),
        ("gpt2_medium", "gpt2-medium"),
        ("gpt2-larg", "gpt2-large"),
        ("my-modle", "my-model"),
    ],
)
def test_a_slip_in_a_name_is_told_what_was_meant_before_the_hub_is_asked(
    here, good, asked, meant, monkeypatch
):
    monkeypatch.setattr(hub, "snapshot", lambda *_: pytest.fail("the hub was asked"))
    shutil.copytree(good, here / "my-model")
    (here / "gpt2-larger").mkdir()  # no model
    with pytest.raises(
        InputError, match=f"model '{asked}' is no folder .* mean '{meant}'\\? A name"
    ):
        places.find(asked)


@pytest.mark.parametrize("asked", ["sub/my-modle", "./my-modle", "ABSOLUTE"])
def test_a_slip_in_a_path_is_told_the_folder_that_was_meant(here, good, asked):
    asked = asked.replace("ABSOLUTE", str(here / "my-modle"))
    folder = Path(asked).with_name("my-model")
    shutil.copytree(good, folder)
    with pytest.raises(InputError, match=f"'{asked}' does not exist: .*; did you mean '(.*)'") as e:
        places.find(asked)
    (meant,) = re.findall("did you mean '(.*)'", str(e.value))
    assert places.find(meant).samefile(folder)


def test_a_slip_in_a_name_of_the_hub_is_told_when_the_hub_does_not_have_it(here, monkeypatch):
    def absent(repo, revision):
        raise InputError(f"model {repo!r} is not on the hub")

    monkeypatch.setattr(hub, "snapshot", absent)
    said = r"^model 'openai-comunity/gpt2' is not .*; did you mean 'openai-community/gpt2'\?$"
    with pytest.raises(InputError, match=said):
        places.find("openai-comunity/gpt2")
    with pytest.raises(InputError, match=r"^model 'someone/story-writer' is not on the hub$"):
        places.find("someone/story-writer")


@pytest.mark.parametrize("name", ["distilgpt2", "openai-gpt", "facebook/opt-125m", "gpt2-chinese"])
def test_a_name_that_is_like_none_that_is_known_goes_to_the_hub(here, name):
    assert places.find(name) == Path("hub") / name


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int8", "double", "", None, float])
def test_another_dtype_is_refused(good, dtype):
    with pytest.raises(InputError, match=r"dtype is .*: expected one of float32, float64, complex"):
        GPT2.load(good, dtype=dtype)


def test_a_folder_without_config_says_so(good):
    (good / "config.json").unlink()
    with pytest.raises(InputError, match=r"model folder '.*' has no config\.json"):
        GPT2.load(good)


DEEP = "[" * 100_000


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('{"n_layer": 2,\n oops}', r"config\.json, line 2: not JSON"),
        ("", r"config\.json, line 1: not JSON"),
        ("[1, 2]", r"config\.json holds a list: expected an object"),
        ("3", r"config\.json holds a int: expected an object"),
        (DEEP, r"config\.json.*not JSON"),
        ('{"n_layer": ' + "9" * 5000 + "}", r"config\.json.*not JSON"),
    ],
    ids=["broken", "empty", "list", "number", "deep", "endless number"],
)
def test_a_config_that_is_no_json_object_says_where(good, text, sentence):
    (good / "config.json").write_text(text)
    with pytest.raises(InputError, match=sentence):
        GPT2.load(good)


def test_a_config_that_is_not_utf_8_says_where(good):
    (good / "config.json").write_bytes(b'{\n"model_type": "\xff"}')
    with pytest.raises(InputError, match=r"config\.json, line 2: byte 0xff is not UTF-8"):
        GPT2.load(good)


def test_a_config_that_is_a_folder_is_a_sentence(good):
    (good / "config.json").unlink()
    (good / "config.json").mkdir()
    with pytest.raises(InputError, match=r"cannot read the model's config .*config\.json"):
        GPT2.load(good)


UNSUPPORTED = {
    "model_type": "gpt_neo",
    "activation_function": "gelu",
    "scale_attn_weights": False,
    "scale_attn_by_inverse_layer_idx": True,
    "reorder_and_upcast_attn": True,
    "add_cross_attention": True,
    "is_encoder_decoder": True,
}


def test_every_required_value_has_a_refused_one_here():
    assert set(UNSUPPORTED) == set(config_json.REQUIRED_VALUES)


@pytest.mark.parametrize("key", UNSUPPORTED)
def test_an_unsupported_value_is_refused_by_name(good, key):
    edit_config(good, **{key: UNSUPPORTED[key]})
    value = re.escape(repr(UNSUPPORTED[key]))
    with pytest.raises(InputError, match=rf"config\.json: {key} is {value}, minprefix implements"):
        GPT2.load(good)


@pytest.mark.parametrize("key", config_json.REQUIRED_VALUES)
@pytest.mark.parametrize("value", [None, [], {}, "true", 7])
def test_a_required_value_of_another_type_is_refused(good, key, value):
    edit_config(good, **{key: value})
    with pytest.raises(InputError, match=rf"{key} is {re.escape(repr(value))}, minprefix impl"):
        GPT2.load(good)


@pytest.mark.parametrize("key", ["rotary_dim", "hidden_act", "n_heads"])
def test_an_unknown_key_is_refused_by_name(good, key):
    edit_config(good, **{key: 1})
    with pytest.raises(InputError, match=f"unknown key '{key}'.*remove it if you know"):
        GPT2.load(good)


@pytest.mark.parametrize("key", ["n_layer", "n_head", "n_embd", "vocab_size", "n_positions"])
@pytest.mark.parametrize("value", ["12", 2.0, True, None, 0, -1, [2]])
def test_a_size_that_is_no_whole_number_is_refused(good, key, value):
    edit_config(good, **{key: value})
    wrong = re.escape(repr(value))
    with pytest.raises(InputError, match=f"{key} is {wrong}: expected a whole number from 1"):
        GPT2.load(good)


def test_an_end_token_that_is_no_number_is_refused(good):
    edit_config(good, eos_token_id="0")
    with pytest.raises(InputError, match="expected a whole number, a list of them, or null"):
        GPT2.load(good)


@pytest.mark.parametrize("key", ["n_layer", "n_head", "n_embd", "vocab_size", "n_positions"])
def test_a_missing_size_is_refused(good, key):
    raw = json.loads((good / "config.json").read_text())
    del raw[key]
    write_config(good, raw)
    with pytest.raises(InputError, match=f"{key} is None: expected a whole number from 1"):
        GPT2.load(good)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *[("n_inner", v) for v in ("64", 64.0, 0, -4, True)],
        *[("bos_token_id", v) for v in ("0", 0.0, [0])],
        *[("eos_token_id", v) for v in ("0", 0.0, True, ["0"], [[0]], {"0": 0})],
        *[("layer_norm_epsilon", v) for v in ("1e-5", 0, -1e-5, 1, True, None, float("nan"))],
        *[("tie_word_embeddings", v) for v in ("true", 1, None)],
    ],
)
def test_a_wrong_value_of_an_optional_key_is_refused(good, key, value):
    edit_config(good, **{key: value})
    wrong = re.escape(repr(value))
    with pytest.raises(InputError, match=rf"config\.json: {key} is {wrong}: expected"):
        GPT2.load(good)


def test_a_width_that_the_heads_cannot_share_is_refused(good):
    edit_config(good, n_head=3)
    with pytest.raises(InputError, match="n_embd is 16, which 3 heads cannot share equally"):
        GPT2.load(good)


# ---- bad input: tensors ----


def rewrite(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize("name", CONFIG.shapes())
def test_a_missing_tensor_is_named(good, name):
    rewrite(good, lambda t: t.pop(f"transformer.{name}"))
    with pytest.raises(InputError, match=f"tensor '{re.escape(name)}' is missing: expected shape"):
        GPT2.load(good)


@pytest.mark.parametrize("name", ["h.2.ln_1.weight", "h.0.attn.rotary", "score.weight", "h.0.bias"])
def test_an_extra_tensor_is_named(good, name):
    rewrite(good, lambda t: t.update({f"transformer.{name}": torch.zeros(16)}))
    with pytest.raises(InputError, match=f"holds '{re.escape(name)}': a GPT-2 of 2 layers"):
        GPT2.load(good)


def test_all_extra_tensors_are_named_at_once(good):
    extra = {f"transformer.h.0.extra_{i}": torch.zeros(1) for i in range(10)}
    rewrite(good, lambda t: t.update(extra))
    with pytest.raises(InputError, match=r"holds 'h\.0\.extra_0', .*'h\.0\.extra_7' and 2 more: "):
        GPT2.load(good)


@pytest.mark.parametrize("name", ["wte.weight", "lm_head.weight"])
def test_a_resized_vocabulary_says_which_number_to_write(good, name):
    full = name if name.startswith("lm_head") else f"transformer.{name}"
    rewrite(good, lambda t: t.update({full: torch.zeros(43, 16)}))
    with pytest.raises(InputError, match=r"\(43, 16\) .*resized, set vocab_size to 43 there"):
        GPT2.load(good)


UNMERGED = [
    "base_model.model.transformer.h.0.attn.c_attn.lora_A.default.weight",
    "transformer.h.0.attn.c_attn.base_layer.weight",
    "transformer.wte.lora_embedding_A.default",
    "transformer.h.1.mlp.c_fc.ia3_l.default",
    "base_model.model.score.modules_to_save.default.weight",
    "prompt_encoder.default.embedding.weight",
    "transformer.h.0.attention_adapters.adapters.mine.adapter_down.0.weight",
    "transformer.h.0.attn.c_attn.loras.mine.lora_A",
    "transformer.prefix_tuning.prefix_tunings.mine.control_trans",
]


@pytest.mark.parametrize("name", UNMERGED)
def test_an_adapter_that_was_not_merged_is_refused(good, name):
    rewrite(good, lambda t: t.update({name: torch.zeros(2, 16)}))
    with pytest.raises(InputError, match=f"'{re.escape(name)}': parts of an .*merge_and_unload"):
        GPT2.load(good)


def test_a_head_that_config_and_file_disagree_about_is_named(good):
    edit_config(good, tie_word_embeddings=False)
    with pytest.raises(InputError, match=r"tensor 'lm_head\.weight' is missing"):
        GPT2.load(good)


def test_a_tensor_under_both_of_its_names_is_refused(good):
    rewrite(good, lambda t: t.update({"ln_f.bias": torch.zeros(16)}))
    with pytest.raises(InputError, match=r"tensor 'ln_f\.bias' is there twice, as '.*' and as '"):
        GPT2.load(good)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("wte.weight", (41, 16)),
        ("wte.weight", (40 * 16,)),
        ("wpe.weight", (23, 16)),
        ("h.1.attn.c_attn.weight", (48, 16)),  # (out, in), as other software keeps it
        ("h.1.ln_2.bias", (17,)),
        ("ln_f.weight", (1, 16)),
    ],
)
def test_a_wrongly_shaped_tensor_is_named_with_both_shapes(good, name, shape):
    want = re.escape(str(CONFIG.shapes()[name]))
    rewrite(good, lambda t: t.update({f"transformer.{name}": torch.zeros(shape)}))
    sentence = rf"tensor '{re.escape(name)}' has shape {re.escape(str(shape))}.*expected {want}"
    with pytest.raises(InputError, match=sentence):
        GPT2.load(good)


@pytest.mark.parametrize("name", ["wte.weight", "h.0.mlp.c_fc.bias", "ln_f.bias"])
@pytest.mark.parametrize(
    "dtype", [torch.int64, torch.int32, torch.int8, torch.uint8, torch.bool, torch.complex64]
)
def test_a_tensor_that_is_not_of_floating_point_is_named(good, name, dtype):
    shape = CONFIG.shapes()[name]
    rewrite(good, lambda t: t.update({f"transformer.{name}": torch.ones(shape, dtype=dtype)}))
    with pytest.raises(InputError, match=f"tensor '{re.escape(name)}' .*floating-point numbers"):
        GPT2.load(good)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_a_tensor_of_another_precision_is_named_with_it(good, dtype):
    rewrite(good, lambda t: t.update({"transformer.ln_f.bias": torch.ones(16).to(dtype)}))
    kind = {torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2"}[dtype]
    with pytest.raises(InputError, match=rf"'ln_f\.bias' .*\({kind}\): expected .*or bfloat16\)"):
        GPT2.load(good)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ["wte.weight", "h.1.mlp.c_proj.weight", "ln_f.bias"])
def test_nan_in_weights_is_named_at_the_first_use(good, name, bad):
    rewrite(good, lambda t: t[f"transformer.{name}"].view(-1).__setitem__(5, bad))
    model = GPT2.load(good)  # opening does not read
    at = re.escape(str([int(i) for i in np.unravel_index(5, CONFIG.shapes()[name])]))
    sentence = f"weight '{re.escape(name)}' of model .* holds {bad} at {at}: expected finite"
    with pytest.raises(InputError, match=sentence):
        model.logits(Batch.pack([IDS]))


# ---- bad input: files ----

NOT_WHOLE = r"model\.safetensors is not a whole safetensors file .*fetch or save it again"


def header_size(data):
    return 8 + int.from_bytes(data[:8], "little")


@pytest.mark.parametrize("cut", ["0", "1", "7", "8", "9", "h // 2", "h - 1", "h", "h + 1", "-4"])
def test_a_truncated_file_is_refused(good, cut):
    path = good / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[: eval(cut, {"h": header_size(data)})])
    with pytest.raises(InputError, match=NOT_WHOLE):
        GPT2.load(good)


def test_a_file_with_more_bytes_than_its_header_says_is_refused(good):
    path = good / "model.safetensors"
    path.write_bytes(path.read_bytes() + b"\0" * 4)
    with pytest.raises(InputError, match=NOT_WHOLE):
        GPT2.load(good)


@pytest.mark.parametrize(
    "damage",
    [
        lambda d: b"\xff" * 8 + d[8:],  # a header longer than any file
        lambda d: b"\0" * 8 + d[8:],  # no header
        lambda d: d[:8] + b"x" + d[9:],
        lambda d: d[:8] + b"[" + d[9:],
        lambda d: d.replace(b'"F32"', b'"Z32"', 1),
        lambda d: d.replace(b'"F32"', b'"F64"', 1),
        lambda d: d.replace(b"[16]", b"[61]", 1),
        lambda d: d.replace(b'"shape"', b'"shake"', 1),
        lambda d: d.replace(b'"data_offsets":[', b'"data_offsets":[9', 1)[: len(d)],
        lambda d: d.replace(b"wte", b"w\xffe", 1),
        lambda d: b"\x80\x02}q\x00." + d[6:],  # the start of a pickle
        lambda d: b"not found",
    ],
)
def test_a_corrupt_header_is_refused(good, damage):
    path = good / "model.safetensors"
    before = path.read_bytes()
    path.write_bytes(damage(before))
    assert path.read_bytes() != before
    with pytest.raises(InputError, match=NOT_WHOLE):
        GPT2.load(good)


def test_a_folder_in_place_of_the_weights_is_a_sentence(good):
    (good / "model.safetensors").unlink()
    (good / "model.safetensors").mkdir()
    with pytest.raises(InputError, match=r"cannot read the model .*\.safetensors: Is a directory"):
        GPT2.load(good)


@pytest.fixture(scope="module")
def victim(tmp_path_factory):
    tensors = tensors_of(random_model(CONFIG, dtype="float32"))
    tensors["transformer.h.0.attn.bias"] = torch.ones(1, 1, 24, 24, dtype=torch.bool)
    folder = write_model(tmp_path_factory.mktemp("victim"), tensors)
    return folder, (folder / "model.safetensors").read_bytes()


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_random_damage_ends_in_a_model_or_a_sentence(victim, data):
    folder, whole = victim
    damaged, size = bytearray(whole), header_size(whole)
    if data.draw(st.booleans(), "flip"):
        places = st.integers(0, size - 1)
        for at, byte in data.draw(st.lists(st.tuples(places, st.integers(0, 255)), max_size=4)):
            damaged[at] = byte
    else:
        entry = st.sampled_from([m.start() for m in re.finditer(rb"\d", whole[:size])])
        for at, digit in data.draw(st.lists(st.tuples(entry, st.integers(0, 9)), max_size=3)):
            damaged[at] = ord("0") + digit
    if data.draw(st.integers(0, 3), "cut") == 0:
        del damaged[data.draw(st.integers(0, len(damaged))) :]
    (folder / "model.safetensors").write_bytes(damaged)
    try:
        model = GPT2.load(folder)
    except InputError:
        return
    assert {n: a.shape for n, a in model.weights.items()} == CONFIG.shapes()
    assert model.logits(Batch.pack([IDS])).shape == (15, 40)


anything = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=3,
)


@settings(max_examples=200, deadline=None)
@given(
    key=st.sampled_from([*Config.__dataclass_fields__, *config_json.REQUIRED_VALUES, "lr"]),
    value=anything,
)
def test_any_value_under_any_key_ends_in_a_model_or_a_sentence(victim, key, value):
    folder, whole = victim
    (folder / "model.safetensors").write_bytes(whole)
    kept = (folder / "config.json").read_text()
    said = key
    try:
        edit_config(folder, **{key: value})
        GPT2.load(folder)
    except InputError as error:
        said = str(error)
    finally:
        (folder / "config.json").write_text(kept)
    assert key in said or "tensor" in said


# ---- bad input: shards ----


@pytest.fixture
def sharded(tmp_path, good):
    from_transformers(good)[0].float().save_pretrained(tmp_path / "shards", max_shard_size="8KB")
    return tmp_path / "shards"


def edit_index(folder, change):
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index)
    path.write_text(json.dumps(index))


def test_a_tied_pair_is_found_in_the_metadata_of_its_shard(sharded, good):
    kept, lost = "lm_head.weight", "transformer.wte.weight"
    place = next(p for p in sharded.glob("model-*") if lost in load_file(p))
    tensors = load_file(place)
    save_file(tensors | {kept: tensors.pop(lost)}, place, {lost: kept})
    edit_index(sharded, lambda index: index["weight_map"].pop(lost))
    edit_index(sharded, lambda index: index["weight_map"].update({kept: place.name}))
    edit_config(sharded, tie_word_embeddings=False)
    plain = GPT2.load(good).logits(Batch.pack([IDS]))
    assert np.array_equal(GPT2.load(sharded).logits(Batch.pack([IDS])), plain)


def test_a_missing_shard_is_named(sharded):
    lost = sorted(sharded.glob("model-*.safetensors"))[1]
    lost.unlink()
    with pytest.raises(InputError, match=f"names shard '{lost.name}', which is not in the folder"):
        GPT2.load(sharded)


def test_a_damaged_shard_is_named(sharded):
    shard = sorted(sharded.glob("model-*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(InputError, match=f"{shard.name} is not a whole safetensors file"):
        GPT2.load(sharded)


@pytest.mark.parametrize("outside", ["../model/model.safetensors", "/model.safetensors", "..", ""])
def test_a_shard_outside_the_folder_is_refused(sharded, good, outside):
    assert (sharded / "../model/model.safetensors").exists()
    edit_index(sharded, lambda index: index["weight_map"].update({"transformer.x": outside}))
    with pytest.raises(InputError, match=f"names shard '{outside}', which is not in the folder"):
        GPT2.load(sharded)


@pytest.mark.parametrize("shard", [5, None, ["a"], {"a": 1}])
def test_a_shard_that_is_no_name_is_refused(sharded, shard):
    edit_index(sharded, lambda index: index["weight_map"].update({"transformer.x": shard}))
    with pytest.raises(InputError, match=r"model\.safetensors\.index\.json names shard "):
        GPT2.load(sharded)


def test_a_tensor_that_the_index_names_and_no_shard_holds_is_named(sharded):
    first = sorted(sharded.glob("model-*.safetensors"))[0].name
    edit_index(sharded, lambda index: index["weight_map"].update({"transformer.x": first}))
    with pytest.raises(InputError, match=rf"names tensor 'transformer\.x', but {first} does not"):
        GPT2.load(sharded)


def test_a_tensor_that_two_shards_hold_is_refused(sharded):
    first, *_, last = sorted(sharded.glob("model-*.safetensors"))
    tensors = load_file(last)
    name = next(iter(load_file(first)))
    save_file(tensors | {name: load_file(first)[name] + 1}, last, {"format": "pt"})
    with pytest.raises(InputError, match=f"tensor '.*{re.escape(name)}' is there twice"):
        GPT2.load(sharded)


@pytest.mark.parametrize("weight_map", [None, [], "model.safetensors"])
def test_an_index_without_a_weight_map_is_refused(sharded, weight_map):
    edit_index(sharded, lambda index: index.update(weight_map=weight_map))
    with pytest.raises(InputError, match="has no weight_map: expected the shard of every tensor"):
        GPT2.load(sharded)


def test_an_empty_weight_map_misses_a_tensor(sharded):
    edit_index(sharded, lambda index: index.update(weight_map={}))
    with pytest.raises(InputError, match=r"tensor 'h\.0\.ln_1\.weight' is missing"):
        GPT2.load(sharded)


def test_a_folder_without_weights_says_what_is_expected(good):
    (good / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"has no model\.safetensors: expected that, or shards"):
        GPT2.load(good)


def convert(folder, sentence):
    """Run the command that a sentence gives, in the folder."""
    (command,) = re.findall(r"`python -c \"(.*?)\"`", sentence)
    subprocess.run([sys.executable, "-c", command], cwd=folder, check=True)


@pytest.mark.parametrize("parts", [1, pytest.param(3, marks=pytest.mark.long)])
def test_the_sentence_about_a_pickle_gives_the_command_that_converts_it(good, parts):
    want = GPT2.load(good).fingerprint()
    weights = load_file(good / "model.safetensors")
    weights["lm_head.weight"] = weights["transformer.wte.weight"]  # they share memory, as there
    weights["transformer.wpe.weight"] = weights["transformer.wpe.weight"].T.contiguous().T
    (good / "model.safetensors").unlink()
    for i in range(parts):
        name = "pytorch_model.bin" if parts == 1 else f"pytorch_model-{i + 1:05}-of-{parts:05}.bin"
        torch.save(dict(list(weights.items())[i::parts]), good / name)
    torch.save({"lr": 0.1}, good / "optimizer.pt")
    torch.save({"lr": 0.1}, good / "training_args.bin")
    with pytest.raises(
        InputError, match=r"pytorch_model.*\.bin is a pickle, which can run"
    ) as said:
        GPT2.load(good)
    convert(good, str(said.value))
    assert GPT2.load(good).fingerprint() == want


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("model.ckpt", r"model\.ckpt is a pickle.*never opened: convert it"),
        ("gpt2.pt", r"gpt2\.pt is a pickle"),
        ("weights.PTH", r"weights\.PTH is a pickle"),
        ("tf_model.h5", "tf_model.h5 is TensorFlow's file, which is not read .* save_pretrained"),
        ("flax_model.msgpack", "flax_model.msgpack is Flax's file"),
        ("gpt2-q4.gguf", "gpt2-q4.gguf is llama.cpp's file"),
        ("model.onnx", "model.onnx is ONNX Runtime's file"),
        ("gpt2.safetensors", "if 'gpt2.safetensors' is the whole model, rename it to model.safet"),
        ("training_args.bin", r"expected that, or shards with model\.safetensors\.index\.json"),
        ("optimizer.pt", r"expected that, or shards with model\.safetensors\.index\.json"),
    ],
)
def test_weights_that_are_not_read_are_named_with_what_to_do(good, name, sentence):
    (good / "model.safetensors").rename(good / name)
    with pytest.raises(InputError, match=f"has no model.safetensors: {sentence}"):
        GPT2.load(good)


@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "tokenizer.json", "vocab.json", "merges.txt"]
)
def test_a_model_that_git_lfs_has_not_fetched_says_so(good, name):
    whole = {"vocab.json": '{"a": 0, "b": 1}', "merges.txt": "#version: 0.2\n"}
    for other in whole if name in whole else ():
        (good / other).write_text(whole[other])
    (good / name).write_bytes(POINTER)
    with pytest.raises(InputError, match=rf"{name} is a Git LFS pointer, .*: run `git lfs pull`"):
        GPT2.load(good)


def test_a_shard_or_an_index_that_git_lfs_has_not_fetched_says_so(sharded):
    first = min(sharded.glob("model-*.safetensors"))
    first.write_bytes(POINTER)
    with pytest.raises(InputError, match=f"{first.name} is a Git LFS pointer"):
        GPT2.load(sharded)
    (sharded / "model.safetensors.index.json").write_bytes(POINTER)
    with pytest.raises(InputError, match=r"index\.json is a Git LFS pointer"):
        GPT2.load(sharded)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.bin"])
def test_an_adapter_in_place_of_a_model_is_told_what_it_is(tmp_path, name):
    (tmp_path / name).write_text("{}")
    with pytest.raises(
        InputError, match=r"no config\.json: .*it holds a prefix: give it as --pref"
    ):
        GPT2.load(tmp_path)


def test_a_pickle_is_never_opened(good):
    weights = load_file(good / "model.safetensors")
    torch.save(weights, good / "pytorch_model.bin")
    (good / "model.safetensors").unlink()
    opened = []

    def watch(event, args):
        if event in ("open", "pickle.find_class") and "pytorch_model" in str(args[0]):
            opened.append(event)

    sys.addaudithook(watch)
    sentence = r"no model\.safetensors: pytorch_model\.bin is a pickle.*never opened: convert it"
    with pytest.raises(InputError, match=sentence):
        GPT2.load(good)
    assert opened == []
    (good / "pytorch_model.bin").read_bytes()
    assert opened == ["open"]  # the watch works
