"""Reading and writing GPT-2 in Hugging Face's layout: config.json, safetensors, and the tokenizer
(`minprefix.storage.tokenizer`); a folder or a hub name.

A value that would change the arithmetic and is not implemented is refused by name. Nothing is ever
unpickled.
"""

import contextlib
import difflib
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from minprefix.errors import InputError, counted, listed, note, quoted
from minprefix.gpt2 import Config
from minprefix.storage import hub
from minprefix.storage.reading import inside, read_json
from minprefix.storage.tensors import ADAPTER_FILES, map_tensors, write_tensors
from minprefix.storage.tokenizer import end_token, read_tokenizer, write_tokenizer
from minprefix.storage.writing import write_json

if TYPE_CHECKING:
    from tokenizers import Tokenizer

#: the model that ships: beside the package in a wheel, beside the package's folder in a clone
_HERE = Path(__file__).parents[1]
TINY = next(
    (p for p in (_HERE / "weights/tiny", _HERE.parent / "weights/tiny") if p.exists()), None
)

SHIPPED = "tiny"  #: its name
NEAR = 0.75  #: how alike two names are that one may be a slip of the other (difflib's ratio)

#: GPT-2's own names on the hub, and the commits that this package was written against
PINNED = {
    "gpt2": ("openai-community/gpt2", "607a30d783dfa663caf39e06633721c8d4cfcd7e"),
    "gpt2-medium": ("openai-community/gpt2-medium", "6dcaa7a952f72f9298047fd5137cd6e4f05f41da"),
    "gpt2-large": ("openai-community/gpt2-large", "32b71b12589c2f8d625668d2335a01cac3249519"),
    "gpt2-xl": ("openai-community/gpt2-xl", "15ea56dee5df4983c59b2538573817e1667135e2"),
}
PINNED |= {full: (full, revision) for full, revision in PINNED.values()}

#: GPT-2's activation, the tanh form of GELU, under each name that transformers has for it
TANH_FORM = ("gelu_new", "gelu_pytorch_tanh", "gelu_fast", "gelu_accurate", "gelu_python_tanh")
#: keys of config.json that shape the arithmetic and have one implemented value (or a few)
REQUIRED_VALUES: dict[str, tuple[Any, ...]] = {
    "model_type": ("gpt2",),
    "activation_function": TANH_FORM,
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "reorder_and_upcast_attn": (False,),
    "add_cross_attention": (False,),
    "is_encoder_decoder": (False,),
}
#: a second name of a number: transformers' own, and OpenAI's
SYNONYMS = {
    "hidden_size": "n_embd",
    "max_position_embeddings": "n_positions",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
    "n_vocab": "vocab_size",
}
#: keys that change the model unless they are empty: why, and what to do
EMPTY = {
    "pruned_heads": "heads were cut out of the model: give one that has all of them",
    "per_layer_config": "its layers differ from each other: give a GPT-2 whose layers are alike",
    "quantization_config": "its weights are quantised: give the model that they were made from",
    "compression_config": "its weights are compressed: give the model that they were made from",
    "auto_map": "it computes with code of its own, which is never run here: give a GPT-2 without",
    "adapters": "adapters were added to its layers: save it without them, or merge them first",
}
#: keys that are no part of the arithmetic, almost all of them transformers' own
WITHOUT_EFFECT = {
    # names
    "_name_or_path", "name_or_path", "architectures", "tokenizer_class", "transformers_version",
    "_commit_hash", "finetuning_task", "task_specific_params", "custom_pipelines", "prefix",
    "unsloth_version", "unsloth_fixed", "adapter_transformers_version",
    # tokens
    "bos_token", "eos_token", "pad_token", "sep_token", "unk_token", "cls_token", "mask_token",
    "additional_special_tokens", "pad_token_id", "sep_token_id", "unk_token_id", "cls_token_id",
    "mask_token_id", "decoder_start_token_id", "eos_token_ids", "pad_token_ids",
    # settings of generation
    "max_length", "min_length", "max_new_tokens", "min_new_tokens", "max_time", "stop_strings",
    "do_sample", "early_stopping", "num_beams", "num_beam_groups", "diversity_penalty",
    "length_penalty", "num_return_sequences", "temperature", "top_k", "top_p", "min_p", "top_h",
    "typical_p", "epsilon_cutoff", "eta_cutoff", "penalty_alpha", "repetition_penalty",
    "encoder_repetition_penalty", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size",
    "bad_words_ids", "force_words_ids", "constraints", "sequence_bias", "token_healing",
    "guidance_scale", "forced_bos_token_id", "forced_eos_token_id", "suppress_tokens",
    "begin_suppress_tokens", "exponential_decay_length_penalty", "remove_invalid_values",
    "renormalize_logits", "watermarking_config", "dola_layers", "low_memory",
    "prompt_lookup_num_tokens", "max_matching_ngram_size", "target_lookbehind",
    "speculation_type", "use_mtp", "is_assistant", "num_assistant_tokens",
    "num_assistant_tokens_schedule", "assistant_confidence_threshold", "assistant_lookbehind",
    "assistant_early_exit", "assistant_ensemble_weight", "cache_implementation", "cache_config",
    "max_cache_len", "prefill_chunk_size", "compile_config", "disable_compile",
    "continuous_batching_config", "generation_config", "_from_model_config",
    "return_legacy_cache",
    # what is returned
    "output_attentions", "output_hidden_states", "output_scores", "output_logits",
    "output_past", "return_dict", "return_dict_in_generate", "use_return_dict", "use_cache",
    # how it is computed
    "dtype", "torch_dtype", "fp16", "bf16", "use_bfloat16", "torchscript", "tf_legacy_loss",
    "gradient_checkpointing", "chunk_size_feed_forward", "attn_implementation",
    "_attn_implementation", "_attn_implementation_autoset", "_attn_implementation_internal",
    "_flash_attn_2_enabled", "experts_implementation", "_experts_implementation_internal",
    "model_parallel", "device_map", "tie_encoder_decoder", "is_decoder",
    "cross_attention_hidden_size",
    # training of the base, and dropout in it
    "attn_pdrop", "embd_pdrop", "resid_pdrop", "classifier_dropout", "hidden_dropout",
    "initializer_range",
    # the heads of other tasks
    "id2label", "label2id", "num_labels", "_num_labels", "num_choices", "problem_type",
    "predict_special_tokens", "n_special", "summary_activation", "summary_first_dropout",
    "summary_proj_to_labels", "summary_type", "summary_use_proj",
    # what people's training scripts leave behind
    "line_by_line", "mlm", "mlm_probability", "block_size", "overwrite_cache",
    "overwrite_output_dir", "seed", "train_file", "validation_file", "train_data_file",
    "eval_data_file", "text_column_name", "learning_rate", "weight_decay", "warmup_steps",
    "num_train_epochs", "max_steps", "label_smoothing_factor",
}  # fmt: skip
#: parts of a tensor's name that say only how the model was run when it was saved: torch.compile,
#: DataParallel, FSDP, checkpointing; and, in front, what held it: Lightning, PEFT, TRL
WRAPPERS = {"_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
HOLDERS = re.compile(r"((base_|pretrained_)?model\.)+")
GENERATION = "generation_config.json"
MASK_BUFFER = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)")
#: the heads of transformers' classifiers, taggers, question answerers and double heads, and TRL's
OTHER_HEAD = re.compile(r"(score|classifier|qa_outputs|multiple_choice_head|v_head|value_head)\..+")
#: what PEFT and the adapters library add to a model
ADAPTER = re.compile(
    r"(.*\.)?(lora_\w+|loras|base_layer|modules_to_save|original_module|hada_\w+|lokr_\w+|ia3_\w+"
    r"|oft_\w+|vera_\w+|prompt_\w+|prefix_tuning\w*|(\w+_)?adapters?)(\..*)?"
)
DTYPES = ("float32", "float64", "complex128")
#: of any size or number in config.json, so that products of them have digits that can be printed
LARGEST = 2**63 - 1


class Checkpoint(NamedTuple):
    """A GPT-2 as its folder holds it."""

    config: Config
    weights: dict[str, np.ndarray]  # by their names without `transformer.`
    tokenizer: "Tokenizer | None"
    name: str
    folder: Path


def read_checkpoint(
    name: str | Path | None, dtype: str = "float32", revision: str | None = None
) -> Checkpoint:
    """See `GPT2.load`. The weights are read-only, and memory maps of their file where its precision
    is the one asked for, so that opening costs almost nothing."""
    if dtype not in DTYPES:
        raise InputError(f"dtype is {dtype!r}: expected one of {', '.join(DTYPES)}")
    folder = find(name, revision)
    config = read_config(folder)
    weights = read_weights(folder, config)
    tokenizer = read_tokenizer(folder)
    config = replace(config, eos_token_id=read_end_tokens(folder, config, tokenizer))
    if "lm_head.weight" in weights:  # one that is not the embedding
        config = replace(config, tie_word_embeddings=False)
    with np.errstate(over="ignore", invalid="ignore"):  # what turns infinite is found at first use
        weights = {n: a.astype(dtype, copy=False) for n, a in weights.items()}
    for a in weights.values():
        a.flags.writeable = False
    return Checkpoint(config, weights, tokenizer, SHIPPED if name is None else str(name), folder)


def find(name: str | Path | None, revision: str | None = None) -> Path:
    """The folder of a model: the model that ships for None; `name` itself if it is a folder, and a
    note says which model that hides; the shipped model for "tiny"; else a snapshot from the hub
    (the pinned commit for GPT-2's own names). Raises InputError for a name that is none of these,
    with one that is spelled like it."""
    text, path = str(name), Path("" if name is None else name)
    if not text.strip():  # of a shell's variable that is not set; Path takes it for this folder
        raise InputError(
            'the name of the model is empty: give a folder, "tiny" for the model that ships, or a '
            "name on the hub"
        )
    known = name is None or text in (SHIPPED, *PINNED)
    # unlike path.is_dir, also for a name that no file could have
    is_folder = name is not None and os.path.isdir(path)
    if is_folder and not (known and not os.path.lexists(path / "config.json")):
        if revision is not None:
            raise InputError(f"model {text!r} is a folder: a revision is for names on the hub")
        if known:
            _note_hidden(text, path)
        return path
    if known and name is not None and os.path.lexists(path):
        note(f"{str(path.absolute())!r} holds no model and is passed over for the model {text!r}")
    if name is None or text in (SHIPPED, "weights/tiny"):
        if revision is not None:
            raise InputError(
                "model 'tiny' ships with minprefix: a revision is for names on the hub"
            )
        if TINY is None:
            raise InputError(
                "the model that ships is not beside the package: install minprefix again, or give "
                "a folder"
            )
        return TINY
    if os.path.isfile(path) and not known:
        raise InputError(f"model {text!r} is a file: give the folder that config.json is in")
    near = None if known else _nearest(text)
    meant = "" if near is None else f"; did you mean {near!r}?"
    local = text.startswith((".", "/", "~")) or len(path.parts) > 2
    if local or (len(path.parts) == 2 and path.parent.is_dir()):
        raise InputError(
            f"model folder {text!r} does not exist: give a folder with config.json and "
            'model.safetensors, "tiny" for the model that ships, or a name on the hub like "gpt2"'
            f"{meant}"
        )
    if near is not None and "/" not in text.rstrip(
        "/"
    ):  # the hub's names have one, but for those of old
        raise InputError(
            f"model {text!r} is no folder here and no name that is known{meant} A name on the hub "
            'is like "openai-community/gpt2"'
        )
    repo, pinned = PINNED.get(text, (text, None))
    try:
        return hub.snapshot(repo, revision or pinned)
    except InputError as error:
        raise (error if near is None else InputError(f"{error}{meant}")) from error.__cause__


def _note_hidden(name: str, path: Path) -> None:
    """Say what a folder with the name of a model that is known hides, and how to get that one."""
    if name == SHIPPED:
        hidden = "the model that ships: to use that one, give no name (leave out --model)"
    elif name != PINNED[name][0]:
        hidden = f"that model of the hub: to use that one, give {PINNED[name][0]!r}"
    else:
        hidden = "that model of the hub: to use that one, rename the folder"
    note(f"model {name!r} is the folder {str(path.absolute())!r} and hides {hidden}")


def _nearest(name: str) -> str | None:
    """The name of a known model or the folder of a model, in the same place, that is spelled almost
    like that."""
    parent, last = os.path.split(name.rstrip("/"))
    names = {n.lower(): n for n in (SHIPPED, *PINNED)} | {"gpt2-small": "gpt2"}
    with contextlib.suppress(OSError, ValueError):
        for folder in os.listdir(parent or "."):
            path = os.path.join(parent, folder)
            if folder != last and os.path.isfile(os.path.join(path, "config.json")):
                names.setdefault(path.lower(), path)
    found = difflib.get_close_matches(name.lower(), names, 1, NEAR)
    return names[found[0]] if found else None


# ---- config.json ------------------------------------------------------------------------------


def read_config(folder: Path) -> Config:
    """Raises InputError for a missing file, a missing or malformed number, and every unsupported
    value or unknown key, by name."""
    path = inside(folder, "config.json", "the model's config")
    if not path.exists():
        hint = ""
        if any((folder / name).exists() for name in ADAPTER_FILES):
            hint = "; it holds a prefix: give it as --prefix, and its base as --model"
        elif below := sorted(folder.glob("snapshots/*/config.json")):
            hint = f"; it is a cache of the hub's: give {str(below[-1].parent)!r}"
        raise InputError(
            f"model folder {str(folder)!r} has no config.json: it is not a model in Hugging Face's "
            f"layout{hint}"
        )
    raw = read_json(path, "the model's config")
    _check_type(path, raw)
    wrong = [
        f"{key} is {quoted(raw[key])}, minprefix implements {' or '.join(map(repr, allowed))}"
        for key, allowed in REQUIRED_VALUES.items()
        if key in raw and raw[key] not in allowed
    ]
    if wrong:
        erf = raw.get("activation_function") in ("gelu", "gelu_python")
        form = " (these are GELU's tanh form, 'gelu' is its erf form)" if erf else ""
        raise InputError(f"{path}: {'; '.join(wrong)}{form}: this model computes something else")
    fields = Config.__dataclass_fields__
    values = {key: raw.pop(key) for key in fields if key in raw}
    _take_synonyms(path, raw, values)
    _check_rest(path, raw)
    _check_numbers(path, values)
    _check_context(path, raw.get("n_ctx"), values["n_positions"])
    for key in ("bos_token_id", "eos_token_id"):
        values[key] = _token_ids(path, key, values.get(key), values["vocab_size"])
    return Config(**values)


def _check_type(path: Path, raw: dict[str, Any]) -> None:
    """Raises InputError for another kind of model. Those of 2019 do not say which kind they are:
    the names of their sizes and tensors do."""
    kind, classes = raw.get("model_type"), raw.get("architectures")
    if "model_type" in raw and kind not in REQUIRED_VALUES["model_type"]:
        raise InputError(
            f"{path}: model_type is {quoted(kind)}, minprefix implements 'gpt2': this model "
            "computes something else"
        )
    if "model_type" not in raw and (
        not {"n_layer", "n_head", "n_embd"} <= raw.keys()
        or (classes and "GPT2" not in quoted(classes))
    ):
        raise InputError(
            f"{path} has no model_type, and its architectures are {quoted(classes)}: expected "
            "the config of a GPT-2, with model_type 'gpt2'"
        )


def _take_synonyms(path: Path, raw: dict[str, Any], values: dict[str, Any]) -> None:
    """Raises InputError where two names of one number disagree."""
    for key, name in SYNONYMS.items():
        if key not in raw:
            continue
        value = raw.pop(key)
        if values.setdefault(name, value) != value:
            raise InputError(
                f"{path}: {key} is {quoted(value)} and {name} is {quoted(values[name])}, "
                "which are two names of one number: remove the wrong one"
            )


def _check_rest(path: Path, raw: dict[str, Any]) -> None:
    """Raises InputError for what changes the model, and for every key of which that is unknown; one
    that is null or empty says nothing."""
    given = {key: value for key, value in raw.items() if value not in (None, {}, [])}
    for key, why in EMPTY.items():
        value = given.pop(key, None)
        if key == "adapters" and isinstance(value, dict):  # the library writes its empty tables
            value = value.get("adapters")
        if key == "auto_map" and isinstance(value, dict):
            value = {name: code for name, code in value.items() if name != "AutoTokenizer"}
        if value:
            raise InputError(f"{path}: {key} is {quoted(value)}: {why}")
    form = given.pop("position_embedding_type", "absolute")
    if form != "absolute":
        raise InputError(
            f"{path}: position_embedding_type is {quoted(form)}, GPT-2's is 'absolute': this "
            "model computes something else"
        )
    unknown = sorted(given.keys() - WITHOUT_EFFECT - {*REQUIRED_VALUES, "n_ctx"})
    if unknown:
        one = len(unknown) == 1
        raise InputError(
            f"{path}: unknown {'key' if one else 'keys'} {listed(unknown)}: nobody can say "
            f"here whether {'it changes' if one else 'they change'} the model; remove "
            f"{'it' if one else 'them'} if you know that {'it does' if one else 'they do'} not"
        )


def _check_context(path: Path, context: Any, positions: int) -> None:
    """`n_ctx` was the size of GPT-2's mask, when it had one of its own."""
    if context is None:
        return
    if not _whole(context, 1):
        raise InputError(
            f"{path}: n_ctx is {quoted(context)}: expected a whole number from 1, such as "
            "n_positions, or nothing"
        )
    if context < positions:
        note(
            f"{path}: n_ctx is {context} and n_positions is {positions}: the positions from "
            f"{context} on were probably never trained"
        )


def _check_numbers(path: Path, values: dict[str, Any]) -> None:
    for key in ("n_layer", "n_head", "n_embd", "vocab_size", "n_positions"):
        if not _whole(values.get(key), 1):
            raise InputError(
                f"{path}: {key} is {quoted(values.get(key))}: expected a whole number from 1"
            )
    inner = values.get("n_inner")
    if inner is not None and not _whole(inner, 1):
        raise InputError(
            f"{path}: n_inner is {quoted(inner)}: expected a whole number from 1, or null"
        )
    eps = values.get("layer_norm_epsilon", 1e-5)
    if not isinstance(eps, float | int) or not 0 < eps < 1:
        raise InputError(
            f"{path}: layer_norm_epsilon is {quoted(eps)}: expected a small positive number"
        )
    tied = values.get("tie_word_embeddings", True)
    if not isinstance(tied, bool):
        raise InputError(f"{path}: tie_word_embeddings is {quoted(tied)}: expected true or false")
    if values["n_embd"] % values["n_head"]:
        raise InputError(
            f"{path}: n_embd is {values['n_embd']}, which {values['n_head']} heads cannot share "
            "equally"
        )


def _whole(value: Any, least: int) -> bool:
    return type(value) is int and least <= value <= LARGEST


def _token_ids(path: Path, key: str, value: Any, vocab_size: int) -> int | tuple[int, ...] | None:
    """What config.json or generation_config.json gives for a special token, without the ids that no
    token has: other software counts on such an id to mean none."""
    several = isinstance(value, list) and key == "eos_token_id"
    ids = list(value) if several else [] if value is None else [value]
    if any(type(i) is not int for i in ids):
        also = "a list of them, " if key == "eos_token_id" else ""
        raise InputError(
            f"{path}: {key} is {quoted(value)}: expected a whole number, {also}or null"
        )
    for i in ids:
        if not 0 <= i < vocab_size:
            note(
                f"{path}: {key} {quoted(i)} lies outside the vocabulary, 0 to "
                f"{vocab_size - 1}: it has no effect"
            )
    known = tuple(dict.fromkeys(i for i in ids if 0 <= i < vocab_size))
    return known if len(known) > 1 else known[0] if known else None


def read_end_tokens(
    folder: Path, config: Config, tokenizer: "Tokenizer | None"
) -> int | tuple[int, ...] | None:
    """The tokens at which decoding stops: those of generation_config.json, else of config.json,
    else, where neither file says anything, the one that the tokenizer's files name.

    The first of them is the one that training appends: that of config.json if it is among them,
    else the tokenizer's. Raises InputError for what is no token id.
    """
    V = config.vocab_size
    path = inside(folder, GENERATION, "how the model decodes")
    raw = read_json(path, "how the model decodes") if path.exists() else {}
    stop = _token_ids(path, "eos_token_id", raw.get("eos_token_id"), V)
    ends = replace(config, eos_token_id=stop).end_tokens or config.end_tokens
    named = end_token(folder, tokenizer)
    if named is not None and not 0 <= named < V:
        named = None
    if not ends and named is not None:
        told = "eos_token_id" in read_json(folder / "config.json", "the model's config")
        return None if told or "eos_token_id" in raw else named
    preferred = [i for i in (*config.end_tokens[:1], named) if i in ends]
    ends = tuple(dict.fromkeys([*preferred, *ends]))
    return ends if len(ends) > 1 else ends[0] if ends else None


def write_config(config: Config, folder: Path, dtype: np.dtype) -> None:
    raw = {"architectures": ["GPT2LMHeadModel"], "dtype": str(dtype), **vars(config)}
    raw |= {key: allowed[0] for key, allowed in REQUIRED_VALUES.items()}
    write_json(folder / "config.json", dict(sorted(raw.items())))


# ---- weights ----------------------------------------------------------------------------------


def read_weights(folder: Path, config: Config) -> dict[str, np.ndarray]:
    """Every weight under its name without the `transformer.` prefix, memory-mapped. Raises
    InputError for a missing, extra, doubled or wrongly shaped tensor, by name."""
    weights = _by_plain_name(folder)
    if config.tie_word_embeddings and "wte.weight" not in weights and "lm_head.weight" in weights:
        weights["wte.weight"] = weights["lm_head.weight"]  # one tensor, saved under either name
    blocks = {name.split(".")[1] for name in weights if name.startswith("h.")}
    if config.n_layer > len(blocks):  # before a list of shapes is made for a billion layers
        lost = next(i for i in range(len(blocks) + 1) if str(i) not in blocks)
        raise InputError(
            f"{folder}: tensor 'h.{lost}.ln_1.weight' is missing: expected shape "
            f"({config.n_embd},); config.json says {counted(config.n_layer, 'layer')}, is the file "
            "whole?"
        )
    shapes = config.shapes()
    if "lm_head.weight" in weights and config.tie_word_embeddings:
        wte, head = weights.get("wte.weight"), weights["lm_head.weight"]
        if head is wte or np.array_equal(head, np.empty(0) if wte is None else wte):
            del weights["lm_head.weight"]  # a second copy of the tied head
        else:
            shapes["lm_head.weight"] = shapes["wte.weight"]
    for name, shape in shapes.items():
        if name not in weights:
            raise InputError(
                f"{folder}: tensor {name!r} is missing: expected shape {shape}; is the file whole "
                "and does config.json belong to it?"
            )
        if weights[name].shape != shape or weights[name].dtype.kind != "f":
            raise _misshaped(folder, name, weights[name], shape)
    extra = sorted(set(weights) - set(shapes))
    if extra:
        raise InputError(
            f"{folder}: unexpected {'tensor' if len(extra) == 1 else 'tensors'} "
            f"{listed(extra)}: config.json describes a GPT-2 of "
            f"{counted(config.n_layer, 'layer')} without {'it' if len(extra) == 1 else 'them'}"
        )
    return {name: weights[name] for name in shapes}


def _by_plain_name(folder: Path) -> dict[str, np.ndarray]:
    """The tensors without what wrapped the model, without mask buffers, and without the head of
    another task, which is said. Raises InputError for one that is there twice, and for adapters."""
    weights: dict[str, np.ndarray] = {}
    origin: dict[str, str] = {}
    others: list[str] = []
    adapters: list[str] = []
    for full, a in _read_tensors(folder).items():
        bare = ".".join(part for part in full.split(".") if part not in WRAPPERS)
        bare = bare[held.end() :] if (held := HOLDERS.match(bare)) else bare
        name = bare.removeprefix("transformer.")
        if MASK_BUFFER.fullmatch(name):
            continue
        if ADAPTER.fullmatch(name):
            adapters.append(full)
        elif OTHER_HEAD.fullmatch(bare):
            others.append(bare)
            continue
        if name in weights:
            raise InputError(
                f"{folder}: tensor {quoted(name)} is there twice, as "
                f"{quoted(origin[name])} and as {quoted(full)}: save the model again"
            )
        weights[name], origin[name] = a, full
    if adapters:
        raise InputError(
            f"{folder}: {listed(sorted(adapters))}: parts of an adapter, such as LoRA, that "
            "was not merged into the model: load it with peft, call merge_and_unload(), save what "
            "that returns, and give its folder"
        )
    if others:
        note(
            f"{folder}: {listed(sorted(others))} left out, the head of another task: "
            "minprefix uses the language model alone"
        )
    return weights


def _misshaped(folder: Path, name: str, a: np.ndarray, shape: tuple[int, ...]) -> InputError:
    kind = a.dtype.names[0] if a.dtype.names else a.dtype  # see map_tensors
    rows = ""
    if name in ("wte.weight", "lm_head.weight") and a.ndim == 2 and a.shape[1:] == shape[1:]:
        rows = f"; if the vocabulary was resized, set vocab_size to {a.shape[0]} there"
    return InputError(
        f"{folder}: tensor {name!r} has shape {a.shape} ({kind}): expected {shape} of "
        f"floating-point numbers (float64, float32, float16 or bfloat16), from config.json{rows}"
    )


def _read_tensors(folder: Path) -> dict[str, np.ndarray]:
    single = inside(folder, "model.safetensors", "the model")
    if single.exists():
        return _with_shared(*map_tensors(single, "the model"))
    index = inside(folder, "model.safetensors.index.json", "the index of shards")
    if not index.exists():
        raise hub.no_weights(f"model folder {str(folder)!r}", os.listdir(folder))
    shard_of = read_json(index, "the index of shards").get("weight_map")
    if not isinstance(shard_of, dict):
        raise InputError(f"{index} has no weight_map: expected the shard of every tensor")
    tensors: dict[str, np.ndarray] = {}
    metadata: dict[str, str] = {}
    odd = [shard for shard in shard_of.values() if not isinstance(shard, str)]
    if odd:
        raise _no_shard(index, odd[0])
    for shard in sorted(set(shard_of.values())):
        if shard in ("", "..") or Path(shard).name != shard or len(shard) > 255:
            raise _no_shard(index, shard)  # what leads out of the folder is not in it
        path = inside(folder, shard, "a shard of the model")
        if not path.exists():
            raise _no_shard(index, shard)
        held, said = map_tensors(path, "the model")
        for name in set(held) & set(tensors):
            raise InputError(
                f"{folder}: tensor {quoted(name)} is there twice, in {shard!r} and before it"
            )
        tensors |= held
        metadata |= said
    tensors = _with_shared(tensors, metadata)
    lost = sorted(set(shard_of) - set(tensors))
    if lost:
        raise InputError(
            f"{index} names tensor {quoted(lost[0])}, but {shard_of[lost[0]]} does not hold it"
        )
    return tensors


def _with_shared(tensors: dict[str, np.ndarray], metadata: dict[str, str]) -> dict[str, np.ndarray]:
    """safetensors.torch.save_model stores one of the names of a shared tensor, and in the metadata
    for each of the others which one that is."""
    shared = {name: tensors[kept] for name, kept in metadata.items() if kept in tensors}
    return shared | tensors


def _no_shard(index: Path, shard: Any) -> InputError:
    return InputError(f"{index} names shard {quoted(shard)}, which is not in the folder")


def write_checkpoint(
    directory: str | Path,
    config: Config,
    weights: dict[str, np.ndarray],
    tokenizer: "Tokenizer | None",
) -> None:
    """See `GPT2.save`. Names carry the `transformer.` prefix, as `transformers` writes them."""
    folder, dtype = Path(directory), weights["wte.weight"].dtype
    if dtype.kind == "c":
        raise InputError("a complex model is for derivatives, not for files: load it as float32")
    tensors = {
        name if name.startswith("lm_head") else f"transformer.{name}": a
        for name, a in weights.items()
    }
    write_tensors(folder / "model.safetensors", tensors, {"format": "pt"})
    write_config(config, folder, dtype)
    write_tokenizer(tokenizer, folder)
    # another model that stood here before may have left one, and it outranks config.json
    (folder / GENERATION).unlink(missing_ok=True)
