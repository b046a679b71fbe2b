"""LoRA, prompt tuning and P-tuning in the two files of PEFT.

LORA            base_model.model.transformer.h.0.attn.c_attn.lora_A.weight   (r, in), A^T here
                base_model.model.transformer.h.0.attn.c_attn.lora_B.weight   (out, r), B^T here
PROMPT_TUNING   prompt_embeddings                                            (P, C)
P_TUNING        prompt_embeddings, which its encoder computed: PEFT leaves the encoder out
"""

import re
from pathlib import Path
from typing import Any

import numpy as np

from minprefix.errors import InputError, listed, quoted
from minprefix.storage.reading import read_json, unexpected
from minprefix.storage.saved import SavedMethod, check_finite, converted
from minprefix.storage.tensors import map_tensors, other_tensors

#: PEFT's name of a rival -> ours
PEFT_TYPES = {"LORA": "lora", "PROMPT_TUNING": "prompt-tuning", "P_TUNING": "p-tuning"}
#: GPT-2's linear layers and the sizes of their inputs and outputs, in widths of the model
LAYERS = {"attn.c_attn": (1, 3), "attn.c_proj": (1, 1), "mlp.c_fc": (1, 4), "mlp.c_proj": (4, 1)}
_MATRIX = re.compile(
    r"base_model\.model\.(?:transformer\.)?h\.(0|[1-9]\d{0,8})\."
    rf"({'|'.join(map(re.escape, LAYERS))})\.lora_([AB])\.weight"
)
#: keys that change no number that a saved adapter computes, with any value
_IDLE = {
    "auto_mapping", "base_model_name_or_path", "ensure_weight_tying", "fan_in_fan_out",
    "inference_mode", "megatron_core", "peft_type", "peft_version", "qalora_group_size",
    "revision", "runtime_config", "tokenizer_kwargs", "tokenizer_name_or_path",
    "prompt_tuning_init", "prompt_tuning_init_text", "encoder_dropout", "encoder_hidden_size",
    "encoder_num_layers", "encoder_reparameterization_type",
}  # fmt: skip
#: keys that are read
_READ = {
    "task_type", "r", "lora_alpha", "lora_dropout", "bias", "target_modules", "init_lora_weights",
    "layers_to_transform", "layers_pattern", "num_virtual_tokens", "token_dim", "num_layers",
    "num_attention_heads", "num_transformer_submodules",
}  # fmt: skip


# ---- writing ----------------------------------------------------------------------------------


def rival_tensors(saved: SavedMethod) -> dict[str, np.ndarray]:
    """What PEFT's file of tensors holds."""
    if saved.name != "lora":
        return {"prompt_embeddings": saved.parameters["prompt"].astype(np.float32)}
    return {
        f"base_model.model.transformer.{name}.weight": a.T.astype(np.float32)
        for name, a in saved.parameters.items()
    }


def rival_config(saved: SavedMethod, base: str | None) -> dict[str, Any]:
    """adapter_config.json, with the keys that every version of PEFT knows."""
    common = {
        "auto_mapping": None,
        "base_model_name_or_path": base,
        "inference_mode": True,
        "modules_to_save": None,
        "peft_type": next(kind for kind, name in PEFT_TYPES.items() if name == saved.name),
        "revision": None,
        "task_type": "CAUSAL_LM",
    }
    if saved.name == "lora":
        return dict(sorted((common | _lora_config(saved)).items()))
    P, C = saved.parameters["prompt"].shape
    sizes = {
        "num_attention_heads": saved.n_head,
        "num_layers": saved.n_layer,
        "num_transformer_submodules": 1,
        "num_virtual_tokens": P,
        "token_dim": C,
    }
    if saved.name == "p-tuning":
        how: dict[str, Any] = {
            "encoder_dropout": 0.0,
            "encoder_hidden_size": saved.options["encoder_hidden"],
            "encoder_num_layers": 2,
            "encoder_reparameterization_type": "MLP",
        }
    else:
        how = {
            "prompt_tuning_init": "RANDOM",
            "prompt_tuning_init_text": None,
            "tokenizer_name_or_path": None,
        }
    return dict(sorted((common | sizes | how).items()))


def _lora_config(saved: SavedMethod) -> dict[str, Any]:
    options, alpha = saved.options, saved.options["alpha"]
    layers = [name.removesuffix(".lora_A") for name in saved.parameters if name.endswith("_A")]
    targets = options["targets"]
    if set(layers) != {f"h.{i}.{target}" for i in range(saved.n_layer or 0) for target in targets}:
        targets = layers  # not the same ones in each block: every layer is named
    return {
        "alpha_pattern": {},
        "bias": "none",
        "fan_in_fan_out": True,  # GPT-2's linear layers hold W as (in, out)
        "init_lora_weights": True,
        "layers_pattern": None,
        "layers_to_transform": None,
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "lora_dropout": options.get("dropout", 0.0),
        "r": options["rank"],
        "rank_pattern": {},
        "target_modules": targets,
    }


# ---- reading ----------------------------------------------------------------------------------


def read_rival(name: str, path: Path, tensors: Path, dtype: str) -> SavedMethod:
    """Read PEFT's config at `path`, and its file of tensors, of the rival `name`. Raises InputError
    for a feature that is not there in minprefix, by its key, and for files that do not fit each
    other."""
    config = read_json(path, "PEFT's config")
    expected = next(kind for kind, ours in PEFT_TYPES.items() if ours == name)
    if (kind := config.get("peft_type")) != expected:
        raise unexpected(path, "peft_type", kind, f"{expected!r}, as minprefix.json says")
    _check_config(path, config)
    held, _ = map_tensors(tensors, name)
    read = _read_lora if name == "lora" else _read_prompt
    saved = read(path, config, tensors, held)
    parameters = {key: converted(a, dtype) for key, a in saved.parameters.items()}
    for key, a in parameters.items():
        check_finite(a, f"{tensors}: {key}")
    return saved._replace(parameters=parameters)


def _check_config(path: Path, config: dict[str, Any]) -> None:
    for key in sorted(config.keys() - _IDLE - _READ):
        if config[key] not in (None, False, {}, [], ""):
            raise InputError(
                f"{path}: {quoted(key)[1:-1]} is {quoted(config[key])}: minprefix does not have "
                "that feature of PEFT; train without it, or merge the adapter with PEFT's "
                "merge_and_unload()"
            )
    if config.get("task_type") not in ("CAUSAL_LM", None):
        raise unexpected(path, "task_type", config["task_type"], "'CAUSAL_LM'")


def _whole(path: Path, config: dict[str, Any], key: str, optional: bool = False) -> Any:
    value = config.get(key)
    if optional and value is None:
        return None
    if type(value) is not int or not 1 <= value < 2**31:
        raise unexpected(path, key, value, "a whole number from 1")
    return value


def _read_prompt(
    path: Path, config: dict[str, Any], file: Path, tensors: dict[str, np.ndarray]
) -> SavedMethod:
    P, C = (_whole(path, config, key) for key in ("num_virtual_tokens", "token_dim"))
    if config.get("num_transformer_submodules", 1) not in (1, None):
        found = config["num_transformer_submodules"]
        raise unexpected(path, "num_transformer_submodules", found, "1, for a GPT-2")
    stored = tensors.get("prompt_embeddings", np.empty(0))
    if len(tensors) != 1 or stored.shape != (P, C) or stored.dtype.kind != "f":
        raise other_tensors(file, tensors, f"prompt_embeddings {(P, C)} from {path.name}")
    sizes = (_whole(path, config, key, True) for key in ("num_layers", "num_attention_heads"))
    # PEFT leaves the encoder out: what is left of P-tuning is a prompt
    return SavedMethod("prompt-tuning", {"prompt_length": P}, {"prompt": stored}, None, *sizes)


def _read_lora(
    path: Path, config: dict[str, Any], file: Path, tensors: dict[str, np.ndarray]
) -> SavedMethod:
    r, options = _lora_options(path, config)
    found: dict[tuple[int, str], dict[str, np.ndarray]] = {}  # (block, layer) -> A and B
    for full, a in tensors.items():
        match = _MATRIX.fullmatch(full)
        if match is None or a.dtype.kind != "f" or a.ndim != 2:
            layers = f"GPT-2's {', '.join(LAYERS)}: is it a LoRA of another kind of model?"
            expected = f"lora_A.weight (r, in) and lora_B.weight (out, r) of {layers}"
            raise other_tensors(file, {full: a}, expected)
        i, layer, part = int(match[1]), match[2], match[3]
        if part in found.setdefault((i, layer), {}):
            wrong = f"the tensor h.{i}.{layer}.lora_{part} is there twice"
            raise InputError(f"{file}: {wrong}; save the LoRA again")
        found[i, layer][part] = a
    every = _check_layers(path, config, file, set(found))
    parameters: dict[str, np.ndarray] = {}
    for i, target in sorted(found, key=lambda key: (key[0], list(LAYERS).index(key[1]))):
        pair, (n_in, n_out) = found[i, target], LAYERS[target]
        shapes = {part: a.shape for part, a in sorted(pair.items())}
        C = shapes.get("A", (0, 0))[1] // n_in
        if shapes != {"A": (r, C * n_in), "B": (C * n_out, r)}:
            raise InputError(
                f"{file}: h.{i}.{target} has {shapes}: expected A {(r, C * n_in)} and B "
                f"{(C * n_out, r)}, the rank from {path.name}"
            )
        parameters |= {f"h.{i}.{target}.lora_{part}": pair[part].T.copy() for part in "AB"}
    options["targets"] = [layer for layer in LAYERS if any(layer == key[1] for key in found)]
    n_layer = 1 + max(i for i, _ in found) if every else None
    return SavedMethod("lora", options, parameters, None, n_layer)


def _lora_options(path: Path, config: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """The rank, and the options of `minprefix.methods.LoRA` but for the targets."""
    r = _whole(path, config, "r")
    alpha, dropout = config.get("lora_alpha", 8), config.get("lora_dropout", 0.0)
    if type(alpha) not in (int, float) or not 0 < alpha < 2**53:
        raise unexpected(path, "lora_alpha", alpha, "a positive number")
    if type(dropout) not in (int, float) or not 0 <= dropout < 1:
        raise unexpected(path, "lora_dropout", dropout, "a number from 0, below 1")
    if (bias := config.get("bias", "none")) != "none":
        raise unexpected(path, "bias", bias, "'none': minprefix trains no bias with LoRA")
    start = config.get("init_lora_weights")
    if not (start is None or type(start) is bool or start in ("gaussian", "orthogonal")):
        expected = "true, false, 'gaussian' or 'orthogonal': another start may change the base"
        raise unexpected(path, "init_lora_weights", start, expected)
    options: dict[str, Any] = {"rank": r, "alpha": float(alpha)}
    return r, options | ({"dropout": float(dropout)} if dropout else {})


def _check_layers(
    path: Path, config: dict[str, Any], file: Path, found: set[tuple[int, str]]
) -> bool:
    """Whether every block of the base has a LoRA. Raises InputError unless the layers that have
    matrices are those that the config names."""
    words, only = _targets(path, config), _blocks(path, config)
    every = only is None and all(word.count(".") < 2 for word in words)  # no word names a block
    blocks = sorted({i for i, _ in found}) if only is None else only
    if every and blocks:
        blocks = list(range(min(blocks[-1], len(found)) + 1))  # a gap shows within so many
    named = {
        (i, layer)
        for i in blocks
        for layer in LAYERS
        if any(f".transformer.h.{i}.{layer}".endswith(f".{word}") for word in words)
    }
    if named != found or not found:
        missing, extra = (
            listed(f"h.{i}.{layer}" for i, layer in sorted(layers))
            for layers in (named - found, found - named)
        )
        wrong = f"matrices for {extra}" if found - named else f"no matrices for {missing}"
        raise InputError(
            f"{file} has {wrong}, and target_modules in {path.name} is {quoted(words)}: the files "
            "are not of one save; copy them again, together"
        )
    return every


def _targets(path: Path, config: dict[str, Any]) -> list[str]:
    """The words of target_modules: a layer's name, or the end of one."""
    words = config.get("target_modules")
    if words is None:
        return ["c_attn"]  # PEFT's choice for a GPT-2
    if words == "all-linear":
        return list(LAYERS)
    if isinstance(words, str):
        expected = "a list of names, or 'all-linear': minprefix reads no regular expression"
        raise unexpected(path, "target_modules", words, expected)
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise unexpected(path, "target_modules", words, "a list of names")
    return words


def _blocks(path: Path, config: dict[str, Any]) -> list[int] | None:
    """The blocks of layers_to_transform; None for all."""
    only, pattern = config.get("layers_to_transform"), config.get("layers_pattern")
    only = [only] if type(only) is int else only
    if only is not None and not (
        isinstance(only, list) and all(type(i) is int and 0 <= i < 2**31 for i in only)
    ):
        raise unexpected(path, "layers_to_transform", only, "a list of layers, or null")
    if pattern not in (None, "", [], "h", ["h"]):
        raise unexpected(path, "layers_pattern", pattern, "'h', GPT-2's list of blocks, or null")
    return only
