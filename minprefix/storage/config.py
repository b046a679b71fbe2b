"""config.json and generation_config.json of a GPT-2 in Hugging Face's layout.

A value that would change the arithmetic and is not implemented is refused by name.
"""

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from minprefix.errors import InputError, listed, note, quoted
from minprefix.gpt2 import Config
from minprefix.storage.reading import inside, read_json, unexpected
from minprefix.storage.tensors import ADAPTER_FILES
from minprefix.storage.tokenizer import end_token
from minprefix.storage.writing import write_json

if TYPE_CHECKING:
    from tokenizers import Tokenizer

#: GPT-2's activation, the tanh form of GELU, under each name that transformers has for it
TANH_FORM = ("gelu_new", "gelu_pytorch_tanh", "gelu_fast", "gelu_accurate", "gelu_python_tanh")
#: keys that shape the arithmetic, with the values that are implemented
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
#: keys that change the model unless they are empty: how, and what to do
EMPTY = {
    "pruned_heads": "heads were cut out of the model: give one that has all of them",
    "per_layer_config": "its layers differ from each other: give a GPT-2 whose layers are alike",
    "quantization_config": "its weights are quantised: give the model that they were made from",
    "compression_config": "its weights are compressed: give the model that they were made from",
    "auto_map": "it computes with code of its own, which is never run here: give a GPT-2 without",
    "adapters": "adapters were added to its layers: save it without them, or merge them first",
}
#: keys without effect on the arithmetic, almost all of them transformers' own
WITHOUT_EFFECT = {
    key
    for keys in json.loads(Path(__file__).with_name("config_keys.json").read_bytes()).values()
    for key in keys
}
GENERATION = "generation_config.json"
#: a size in config.json: products of sizes up to this have few enough digits to print
LARGEST = 2**63 - 1


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
        where = f"model folder {str(folder)!r} has no config.json"
        raise InputError(f"{where}: it is not a model in Hugging Face's layout{hint}")
    raw = read_json(path, "the model's config")
    classes = raw.get("architectures")
    if "model_type" not in raw and (  # which a config of 2019 has not
        not {"n_layer", "n_head", "n_embd"} <= raw.keys()
        or (classes and "GPT2" not in quoted(classes))
    ):
        raise InputError(
            f"{path} has no model_type, and its architectures are {quoted(classes)}: expected the "
            "config of a GPT-2, with model_type 'gpt2'"
        )
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
    for key in [key for key in SYNONYMS if key in raw]:
        name, value = SYNONYMS[key], raw.pop(key)
        if values.setdefault(name, value) != value:
            both = f"{key} is {quoted(value)} and {name} is {quoted(values[name])}"
            raise InputError(f"{path}: {both}, which are two names of one number: remove one")
    _check_rest(path, raw)
    _check_numbers(path, values, raw.get("n_ctx"))
    for key in ("bos_token_id", "eos_token_id"):
        values[key] = _token_ids(path, key, values.get(key), values["vocab_size"])
    return Config(**values)


def _check_rest(path: Path, raw: dict[str, Any]) -> None:
    """Raises InputError for a key that changes the model, and for an unknown key, unless its value
    is null or empty."""
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
        raise unexpected(path, "position_embedding_type", form, "'absolute', which is GPT-2's")
    if unknown := sorted(given.keys() - WITHOUT_EFFECT - {*REQUIRED_VALUES, "n_ctx"}):
        keys, them = ("key", "it") if len(unknown) == 1 else ("keys", "them")
        raise InputError(
            f"{path}: unknown {keys} {listed(unknown)}, which may change the model: remove {them} "
            "if you know that the model stays the same"
        )


def _check_numbers(path: Path, values: dict[str, Any], n_ctx: Any) -> None:
    """`n_ctx` was the size of GPT-2's mask, when it had one of its own."""
    for key in ("n_layer", "n_head", "n_embd", "vocab_size", "n_positions"):
        if not _is_size(values.get(key)):
            raise unexpected(path, key, values.get(key), "a whole number from 1")
    for key, value in (("n_inner", values.get("n_inner")), ("n_ctx", n_ctx)):
        if value is not None and not _is_size(value):
            raise unexpected(path, key, value, "a whole number from 1, or null")
    if n_ctx is not None and n_ctx < values["n_positions"]:
        note(
            f"{path}: n_ctx is {n_ctx} and n_positions is {values['n_positions']}: the positions "
            f"from {n_ctx} on were probably never trained"
        )
    eps = values.get("layer_norm_epsilon", 1e-5)
    if not isinstance(eps, float | int) or not 0 < eps < 1:
        raise unexpected(path, "layer_norm_epsilon", eps, "a small positive number")
    tied = values.get("tie_word_embeddings", True)
    if not isinstance(tied, bool):
        raise unexpected(path, "tie_word_embeddings", tied, "true or false")
    C, NH = values["n_embd"], values["n_head"]
    if C % NH:
        raise InputError(f"{path}: n_embd is {C}, which {NH} heads cannot share equally")


def _is_size(value: Any) -> bool:
    return type(value) is int and 1 <= value <= LARGEST


def _token_ids(path: Path, key: str, value: Any, vocab_size: int) -> int | tuple[int, ...] | None:
    """A special token that a file gives, without the ids that no token has: other software uses
    such an id to say "none"."""
    several = isinstance(value, list) and key == "eos_token_id"
    ids = list(value) if several else [] if value is None else [value]
    if any(type(i) is not int for i in ids):
        also = "a list of them, " if key == "eos_token_id" else ""
        raise unexpected(path, key, value, f"a whole number, {also}or null")
    for i in ids:
        if not 0 <= i < vocab_size:
            where = f"outside the vocabulary, 0 to {vocab_size - 1}"
            note(f"{path}: {key} {quoted(i)} lies {where}: it has no effect")
    return _as_field(i for i in ids if 0 <= i < vocab_size)


def _as_field(ids: Iterable[int]) -> int | tuple[int, ...] | None:
    """Several token ids, one, or none."""
    each = tuple(dict.fromkeys(ids))
    return each if len(each) > 1 else each[0] if each else None


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
    if ends:
        return _as_field([*(i for i in (*config.end_tokens[:1], named) if i in ends), *ends])
    raw |= read_json(folder / "config.json", "the model's config")
    return named if named is not None and named < V and "eos_token_id" not in raw else None


def write_config(config: Config, folder: Path, dtype: np.dtype) -> None:
    raw = {"architectures": ["GPT2LMHeadModel"], "dtype": str(dtype), **vars(config)}
    raw |= {key: allowed[0] for key, allowed in REQUIRED_VALUES.items()}
    write_json(folder / "config.json", dict(sorted(raw.items())))
