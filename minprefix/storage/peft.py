"""A prefix in the two files of PEFT.

adapter_model.safetensors   `prompt_embeddings` (P, L*2*C)
adapter_config.json         the sizes, and the name of the base
"""

from pathlib import Path

import numpy as np

from minprefix.errors import InputError
from minprefix.storage.peft_rivals import PEFT_TYPES
from minprefix.storage.reading import inside, read_json, unexpected
from minprefix.storage.saved import Saved, converted, flatten, unflatten
from minprefix.storage.tensors import map_tensors, other_tensors, tensor_bytes
from minprefix.storage.writing import json_bytes

CONFIG, TENSOR = "adapter_config.json", "adapter_model.safetensors"
#: tried with peft 0.18.1 to 0.21.2; transformers 5.22.2 and 5.23.0 are right
GENERATE_DROPS_IT = (
    "with transformers 5.24.0, PEFT's generate drops the prefix and writes what the base writes: "
    "pass use_cache=False to it, or install transformers 5.23.0"
)


def why_not_peft(saved: Saved) -> str | None:
    """Why PEFT's files cannot express this prefix; None if they can."""
    P = saved.kv.shape[3]
    if P == 0:
        return "it has no slots"
    if saved.layers is not None:
        return f"only layers {', '.join(map(str, saved.layers))} see it"
    if saved.position_offset != P:
        return f"tokens start at position {saved.position_offset}, where PEFT puts them at {P}"
    return None


def peft_files(saved: Saved, base: str | None) -> dict[str, bytes]:
    """The contents of both files, the tensor first."""
    n, _, NH, P, hs = saved.kv.shape
    tensor = {"prompt_embeddings": flatten(saved.kv).astype(np.float32)}
    config = {  # the keys that PEFT writes, in its order
        "auto_mapping": None,
        "base_model_name_or_path": base,
        "encoder_hidden_size": NH * hs if saved.mlp is None else saved.mlp["bias_1"].size,
        "inference_mode": True,
        "init_weights": None,
        "modules_to_save": None,
        "num_attention_heads": NH,
        "num_layers": n,
        "num_transformer_submodules": 1,
        "num_virtual_tokens": P,
        "peft_type": "PREFIX_TUNING",
        "prefix_projection": saved.mlp is not None,
        "revision": None,
        "task_type": "CAUSAL_LM",
        "token_dim": NH * hs,
    }
    return {TENSOR: tensor_bytes(tensor, {"format": "pt"}), CONFIG: json_bytes(config)}


def read_peft(folder: Path, dtype: str) -> Saved:
    """Raises InputError for another kind of adapter, and for files that do not fit each other."""
    path = inside(folder, CONFIG, "a file of the prefix")
    if not path.exists():
        raise InputError(f"{str(folder)!r} has {TENSOR} but no {CONFIG}: copy both")
    config = read_json(path, "PEFT's config")
    if (kind := config.get("peft_type")) != "PREFIX_TUNING":
        others = "; minprefix.json says that it is a prefix"
        if kind not in tuple(PEFT_TYPES):
            others = f", or a rival's: {', '.join(map(repr, PEFT_TYPES))}"
        expected = f"'PREFIX_TUNING'{others}"
        raise unexpected(path, "peft_type", kind, expected)
    numbers = ("num_virtual_tokens", "num_layers", "num_attention_heads", "token_dim")
    for key in numbers:
        if type(config.get(key)) is not int or not 1 <= config[key] < 2**31:
            raise unexpected(path, key, config.get(key), "a whole number from 1")
    P, L, NH, C = (config[key] for key in numbers)
    if C % NH:
        raise InputError(f"{path}: token_dim is {C}, which {NH} heads cannot share equally")
    tensors, _ = map_tensors(folder / TENSOR, "the prefix")
    stored = tensors.get("prompt_embeddings", np.empty(0))
    if len(tensors) != 1 or stored.shape != (P, L * 2 * C) or stored.dtype.kind != "f":
        expected = f"prompt_embeddings {(P, L * 2 * C)} from {CONFIG}"
        raise other_tensors(folder / TENSOR, tensors, expected)
    return Saved(converted(unflatten(stored, L, NH, C // NH), dtype), None, P)
