"""Reading and writing GPT-2 in Hugging Face's layout: config.json, safetensors, tokenizer; a folder
or a hub name.

A value that would change the arithmetic and is not implemented is refused by name. Nothing is ever
unpickled.
"""

import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from minprefix import files, hub
from minprefix.errors import InputError, counted
from minprefix.gpt2 import Config
from minprefix.model import GPT2

if TYPE_CHECKING:
    from tokenizers import Tokenizer

#: the model that ships: beside the package in a wheel, beside the package's folder in a clone
_HERE = Path(__file__).parent
TINY = next(
    (p for p in (_HERE / "weights/tiny", _HERE.parent / "weights/tiny") if p.exists()), None
)

#: GPT-2's own names on the hub, and the commits that this package was written against
PINNED = {
    "gpt2": ("openai-community/gpt2", "607a30d783dfa663caf39e06633721c8d4cfcd7e"),
    "gpt2-medium": ("openai-community/gpt2-medium", "6dcaa7a952f72f9298047fd5137cd6e4f05f41da"),
    "gpt2-large": ("openai-community/gpt2-large", "32b71b12589c2f8d625668d2335a01cac3249519"),
    "gpt2-xl": ("openai-community/gpt2-xl", "15ea56dee5df4983c59b2538573817e1667135e2"),
}
PINNED |= {full: (full, revision) for full, revision in PINNED.values()}

#: keys of config.json that shape the arithmetic and have one implemented value (or a few)
REQUIRED_VALUES: dict[str, tuple[Any, ...]] = {
    "model_type": ("gpt2",),
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"),  # one formula under two names
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "reorder_and_upcast_attn": (False,),
    "add_cross_attention": (False,),
    "is_encoder_decoder": (False,),
}
#: keys that change nothing here: dropout while training the base, a classification head,
#: bookkeeping, and how other software decodes
WITHOUT_EFFECT = {
    "_name_or_path", "_num_labels", "architectures", "attn_pdrop", "chunk_size_feed_forward",
    "do_sample", "dtype", "embd_pdrop", "finetuning_task", "gradient_checkpointing", "id2label",
    "initializer_range", "label2id", "max_length", "n_ctx", "n_special", "num_labels",
    "output_attentions", "output_hidden_states", "output_past", "pad_token_id",
    "predict_special_tokens", "problem_type", "resid_pdrop", "return_dict",
    "summary_activation", "summary_first_dropout", "summary_proj_to_labels", "summary_type",
    "summary_use_proj", "task_specific_params", "torch_dtype", "transformers_version",
    "use_cache",
}  # fmt: skip
MASK_BUFFER = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)")
DTYPES = ("float32", "float64", "complex128")
#: of any size or number in config.json, so that products of them have digits that can be printed
LARGEST = 2**63 - 1


def load_model(name: str | Path, dtype: str = "float32", revision: str | None = None) -> GPT2:
    """See `GPT2.load`. Opening costs almost nothing where the file's precision is the one asked
    for."""
    if dtype not in DTYPES:
        raise InputError(f"dtype is {dtype!r}: expected one of {', '.join(DTYPES)}")
    folder = find(name, revision)
    config = read_config(folder)
    weights = read_weights(folder, config)
    if "lm_head.weight" in weights and config.tie_word_embeddings:
        config = Config(**{**vars(config), "tie_word_embeddings": False})
    with np.errstate(over="ignore", invalid="ignore"):  # what turns infinite is found at first use
        weights = {n: a.astype(dtype, copy=False) for n, a in weights.items()}
    for a in weights.values():
        a.flags.writeable = False  # frozen
    return GPT2(config, weights, read_tokenizer(folder), str(name))


def find(name: str | Path, revision: str | None = None) -> Path:
    """The folder of a model: `name` itself if it is one, the shipped model for "tiny", else a
    snapshot from the hub (the pinned commit for GPT-2's own names)."""
    path = Path(name)
    if os.path.isdir(path):  # unlike path.is_dir, also for a name that no file could have
        if revision is not None:
            raise InputError(f"model {str(name)!r} is a folder: a revision is for names on the hub")
        return path
    if str(name) in ("tiny", "weights/tiny") and TINY is not None:
        if revision is not None:
            raise InputError(
                "model 'tiny' ships with minprefix: a revision is for names on the hub"
            )
        return TINY
    if os.path.isfile(path):
        raise InputError(f"model {str(name)!r} is a file: give the folder that config.json is in")
    local = str(name).startswith((".", "/", "~")) or len(path.parts) > 2
    if local or (len(path.parts) == 2 and path.parent.is_dir()):
        raise InputError(
            f"model folder {str(name)!r} does not exist: give a folder with config.json and "
            'model.safetensors, "tiny" for the model that ships, or a name on the hub like "gpt2"'
        )
    repo, pinned = PINNED.get(str(name), (str(name), None))
    return hub.snapshot(repo, revision or pinned)


# ---- config.json ------------------------------------------------------------------------------


def read_config(folder: Path) -> Config:
    """Raises InputError for a missing file, a missing or malformed number, and every unsupported
    value or unknown key, by name."""
    path = files.inside(folder, "config.json", "the model's config")
    if not path.exists():
        raise InputError(
            f"model folder {str(folder)!r} has no config.json: it is not a model in Hugging Face's "
            "layout"
        )
    raw = files.read_json(path, "the model's config")
    if "model_type" not in raw:
        raise InputError(f"{path} has no model_type: expected 'gpt2'")
    for key, allowed in REQUIRED_VALUES.items():
        if key in raw and raw[key] not in allowed:
            raise InputError(
                f"{path}: {key} is {files.shown(raw[key])}, minprefix implements "
                f"{' or '.join(map(repr, allowed))}: this model computes something else"
            )
    fields = Config.__dataclass_fields__
    unknown = sorted(set(raw) - set(fields) - set(REQUIRED_VALUES) - WITHOUT_EFFECT)
    if unknown:
        raise InputError(
            f"{path}: unknown key {files.shown(unknown[0])}: nobody can say here whether it "
            "changes the model; remove it if you know that it does not"
        )
    values = {key: raw[key] for key in fields if key in raw}
    _check_numbers(path, values)
    return Config(**values)


def _check_numbers(path: Path, values: dict[str, Any]) -> None:
    for key in ("n_layer", "n_head", "n_embd", "vocab_size", "n_positions"):
        if not _whole(values.get(key), 1):
            raise InputError(
                f"{path}: {key} is {files.shown(values.get(key))}: expected a whole number from 1"
            )
    for key, least in (("n_inner", 1), ("bos_token_id", 0), ("eos_token_id", 0)):
        value = values.get(key)
        if value is not None and not _whole(value, least):
            raise InputError(
                f"{path}: {key} is {files.shown(value)}: expected a whole number from {least}, or "
                "null"
            )
        if key.endswith("token_id") and value is not None and value >= values["vocab_size"]:
            raise InputError(
                f"{path}: {key} is {value}, outside the vocabulary of {values['vocab_size']}: give "
                "a token of it, or null if there is none"
            )
    eps = values.get("layer_norm_epsilon", 1e-5)
    if not isinstance(eps, float | int) or not 0 < eps < 1:
        raise InputError(
            f"{path}: layer_norm_epsilon is {files.shown(eps)}: expected a small positive number"
        )
    tied = values.get("tie_word_embeddings", True)
    if not isinstance(tied, bool):
        raise InputError(
            f"{path}: tie_word_embeddings is {files.shown(tied)}: expected true or false"
        )
    if values["n_embd"] % values["n_head"]:
        raise InputError(
            f"{path}: n_embd is {values['n_embd']}, which {values['n_head']} heads cannot share "
            "equally"
        )


def _whole(value: Any, least: int) -> bool:
    return type(value) is int and least <= value <= LARGEST


def write_config(config: Config, folder: Path, dtype: np.dtype) -> None:
    raw = {"architectures": ["GPT2LMHeadModel"], "dtype": str(dtype), **vars(config)}
    raw |= {key: allowed[0] for key, allowed in REQUIRED_VALUES.items()}
    files.write_json(folder / "config.json", dict(sorted(raw.items())))


# ---- weights ----------------------------------------------------------------------------------


def read_weights(folder: Path, config: Config) -> dict[str, np.ndarray]:
    """Every weight under its name without the `transformer.` prefix, memory-mapped. Raises
    InputError for a missing, extra, doubled or wrongly shaped tensor, by name."""
    tensors = _read_tensors(folder)
    weights: dict[str, np.ndarray] = {}
    for full, a in tensors.items():
        name = full.removeprefix("transformer.")
        if MASK_BUFFER.fullmatch(name):
            continue
        if name in weights:
            raise InputError(
                f"{folder}: tensor {files.shown(name)} is there twice, with and without "
                "'transformer.'"
            )
        weights[name] = a
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
        if np.array_equal(weights["lm_head.weight"], weights.get("wte.weight", np.empty(0))):
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
            raise InputError(
                f"{folder}: tensor {name!r} has shape {weights[name].shape} "
                f"({weights[name].dtype}): expected {shape} of floating-point numbers, from "
                "config.json"
            )
    extra = sorted(set(weights) - set(shapes))
    if extra:
        raise InputError(
            f"{folder}: unexpected tensor {files.shown(extra[0])}: config.json describes a GPT-2 "
            f"of {counted(config.n_layer, 'layer')} without it"
        )
    return {name: weights[name] for name in shapes}


def _read_tensors(folder: Path) -> dict[str, np.ndarray]:
    single = files.inside(folder, "model.safetensors", "the model")
    if single.exists():
        return files.map_tensors(single, "the model")[0]
    index = files.inside(folder, "model.safetensors.index.json", "the index of shards")
    if not index.exists():
        pickled = sorted(p.name for p in folder.glob("*.bin"))
        hint = (
            f"{files.said(pickled[0])} is a pickle, which can run any code and is never opened: "
            "convert it with transformers' save_pretrained"
            if pickled
            else "expected that, or shards with model.safetensors.index.json"
        )
        raise InputError(f"model folder {str(folder)!r} has no model.safetensors: {hint}")
    shard_of = files.read_json(index, "the index of shards").get("weight_map")
    if not isinstance(shard_of, dict):
        raise InputError(f"{index} has no weight_map: expected the shard of every tensor")
    tensors: dict[str, np.ndarray] = {}
    odd = [shard for shard in shard_of.values() if not isinstance(shard, str)]
    if odd:
        raise _no_shard(index, odd[0])
    for shard in sorted(set(shard_of.values())):
        if shard in ("", "..") or Path(shard).name != shard or len(shard) > 255:
            raise _no_shard(index, shard)  # what leads out of the folder is not in it
        path = files.inside(folder, shard, "a shard of the model")
        if not path.exists():
            raise _no_shard(index, shard)
        held = files.map_tensors(path, "the model")[0]
        for name in set(held) & set(tensors):
            raise InputError(
                f"{folder}: tensor {files.shown(name)} is there twice, in {shard!r} and before it"
            )
        tensors |= held
    lost = sorted(set(shard_of) - set(tensors))
    if lost:
        raise InputError(
            f"{index} names tensor {files.shown(lost[0])}, but {shard_of[lost[0]]} does not hold it"
        )
    return tensors


def _no_shard(index: Path, shard: Any) -> InputError:
    return InputError(f"{index} names shard {files.shown(shard)}, which is not in the folder")


def save_model(model: GPT2, directory: str | Path) -> None:
    """See `GPT2.save`. Names carry the `transformer.` prefix, as `transformers` writes them."""
    folder = Path(directory)
    if model.dtype.kind == "c":
        raise InputError("a complex model is for derivatives, not for files: load it as float32")
    tensors = {
        name if name.startswith("lm_head") else f"transformer.{name}": a
        for name, a in model.to("numpy").weights.items()
    }
    files.write_tensors(folder / "model.safetensors", tensors, {"format": "pt"})
    write_config(model.config, folder, model.dtype)
    if model.tokenizer is not None:
        files.write_text(folder / "tokenizer.json", model.tokenizer.to_str(pretty=True))
    else:  # that of another model that stood here before
        (folder / "tokenizer.json").unlink(missing_ok=True)


# ---- tokenizer --------------------------------------------------------------------------------


#: a tokenizer has to encode and decode this, or it would fail in the middle of the work
PROBE = (
    bytes(range(32, 127)).decode()
    + "\t\n  aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa \u00e4\u65e5\U0001f642 don't"
)


def read_tokenizer(folder: Path) -> "Tokenizer | None":
    """From tokenizer.json, or from vocab.json and merges.txt; None if there is neither.

    Raises InputError for one that cannot be read, and for one that cannot encode and decode a short
    text.
    """
    whole, vocab, merges = (
        files.inside(folder, name, "the tokenizer")
        for name in ("tokenizer.json", "vocab.json", "merges.txt")
    )
    if not whole.exists() and vocab.exists() != merges.exists():
        there, missing = (vocab, merges) if vocab.exists() else (merges, vocab)
        raise InputError(
            f"{str(folder)!r} has {there.name} but no {missing.name}: the tokenizer needs both"
        )
    if not whole.exists() and not vocab.exists():
        return None
    try:
        tokenizer = _whole_tokenizer(whole) if whole.exists() else _bpe(vocab, merges)
        tokenizer.no_truncation()  # a stored limit would drop text without a word
        tokenizer.no_padding()
        tokenizer.decode(tokenizer.encode(PROBE, add_special_tokens=False).ids)
        return tokenizer
    except (InputError, MemoryError, KeyboardInterrupt):
        raise
    except BaseException as error:  # the library raises bare Exception, and Rust's panics, which
        raise InputError(  # are no Exception
            f"the tokenizer in {str(folder)!r} cannot be read ({files.said(error)}): fetch its "
            "files again"
        ) from error


def _whole_tokenizer(path: Path) -> "Tokenizer":
    from tokenizers import Tokenizer

    raw = files.read_json(path, "the tokenizer")
    if _holds(raw, "Precompiled"):
        raise InputError(
            f"{path} has a 'Precompiled' normalizer, which no GPT-2 has and whose few bytes can "
            "ask for any amount of memory: give the tokenizer that belongs to the model"
        )
    return Tokenizer.from_str(json.dumps(raw, ensure_ascii=False))


def _holds(value: Any, kind: str) -> bool:
    """Whether a part of a tokenizer is of that type."""
    parts = [value]
    while parts:
        part = parts.pop()
        if isinstance(part, dict):
            if part.get("type") == kind:
                return True
            parts += part.values()
        elif isinstance(part, list):
            parts += part
    return False


def _bpe(vocab: Path, merges: Path) -> "Tokenizer":
    """Byte-level BPE from GPT-2's own two files, which the library would read with less care: it
    leaves out what is no number and cuts large ones."""
    from tokenizers import ByteLevelBPETokenizer

    ids = files.read_json(vocab, "the tokenizer's vocabulary")
    for token, i in ids.items():
        if type(i) is not int or not 0 <= i < 2**32:
            raise InputError(
                f"{vocab}: token {files.shown(token)} has id {files.shown(i)}: expected a whole "
                "number from 0; the file is damaged, fetch it again"
            )
    if len(set(ids.values())) < len(ids):
        raise InputError(f"{vocab}: two tokens have one id: the file is damaged, fetch it again")
    pairs = []
    lines = files.read_text(merges, "the tokenizer's merges", files.LARGEST_JSON).split("\n")
    for n, line in enumerate(lines, 1):
        pair = tuple(line.split(" "))
        if line.startswith("#version") or (not line and n == len(lines)):
            continue
        if len(pair) != 2 or not all(pair):
            raise InputError(
                f"{merges}, line {n}: {files.shown(line)}: expected two tokens, a blank between "
                "them; the file is damaged, fetch it again"
            )
        pairs.append(pair)
    tokenizer = ByteLevelBPETokenizer(ids, pairs)._tokenizer
    tokenizer.add_special_tokens(["<|endoftext|>"])
    return tokenizer
