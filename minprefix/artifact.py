"""A trained prefix on disk: a PEFT directory with provenance beside it.

    adapter_model.safetensors   PEFT's: `prompt_embeddings` (P, L*2*C)
    adapter_config.json         PEFT's
    minprefix.json              ours: fingerprint of the base, layers, positions, how it was trained
    mlp.safetensors             the MLP's parameters, where there is one

What PEFT cannot express (a subset of layers, another position rule, P = 0) is written as
`prefix.safetensors` instead of PEFT's two files, so that PEFT finds nothing it would misread.
"""

from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from minprefix import files
from minprefix.errors import InputError
from minprefix.model import GPT2
from minprefix.prefix import MLPPrefix, Prefix, flatten, unflatten

FORMAT = 1
PEFT_CONFIG, PEFT_TENSOR = "adapter_config.json", "adapter_model.safetensors"
ABOUT, OWN_TENSOR, MLP = "minprefix.json", "prefix.safetensors", "mlp.safetensors"
#: the keys of minprefix.json; an unknown one is refused when reading
ABOUT_KEYS = {
    "format", "minprefix", "base", "base_sha256", "kind", "length", "layers", "position_offset",
    "n_layer", "n_head", "head_size", "training",
}  # fmt: skip


def save_prefix(
    prefix: Prefix,
    directory: str | Path,
    model: GPT2 | None = None,
    training: dict[str, Any] | None = None,
) -> None:
    """Write `prefix` into `directory`. `model` is its base, whose fingerprint is recorded;
    `training` says how it came to be (template, data, settings, metrics). Each file is replaced
    whole; minprefix.json comes last."""
    folder, prefix = Path(directory), prefix.to("numpy")
    n, _, NH, P, hs = prefix.kv.shape
    if prefix.kv.dtype.kind != "f":
        raise InputError(
            f"cannot save a prefix of {prefix.kv.dtype}: expected floating-point numbers"
        )
    if not np.isfinite(prefix.kv).all():
        raise InputError("cannot save a prefix that holds NaN or infinity: its training failed")
    peft = not prefix.subset and prefix.position_offset == P and P > 0
    if peft:
        flat = {"prompt_embeddings": flatten(prefix.kv).astype(np.float32)}
        files.write_tensors(folder / PEFT_TENSOR, flat, {"format": "pt"})
        files.write_json(folder / PEFT_CONFIG, _peft_config(prefix, model))
    else:
        files.write_tensors(folder / OWN_TENSOR, {"kv": prefix.kv.astype(np.float32)}, {})
    if isinstance(prefix, MLPPrefix):
        files.write_tensors(folder / MLP, prefix.parameters, {})
    stale = [OWN_TENSOR] if peft else [PEFT_CONFIG, PEFT_TENSOR]
    stale += [] if isinstance(prefix, MLPPrefix) else [MLP]
    for name in stale:  # of another prefix that stood here before
        (folder / name).unlink(missing_ok=True)
    about = {
        "format": FORMAT,
        "minprefix": version("minprefix"),
        "base": None if model is None else model.name,
        "base_sha256": None if model is None else model.fingerprint(),
        "kind": "mlp" if isinstance(prefix, MLPPrefix) else "flat",
        "length": P,
        "layers": list(prefix.layers) if prefix.subset else None,
        "position_offset": prefix.position_offset,
        "n_layer": n if model is None else model.config.n_layer,
        "n_head": NH,
        "head_size": hs,
        "training": training,
    }
    files.write_json(folder / ABOUT, about)


def _peft_config(prefix: Prefix, model: GPT2 | None) -> dict[str, Any]:
    n, _, NH, P, hs = prefix.kv.shape
    mlp = isinstance(prefix, MLPPrefix)
    return {
        "auto_mapping": None,
        "base_model_name_or_path": None if model is None else model.name,
        "encoder_hidden_size": prefix.parameters["bias_1"].size if mlp else NH * hs,
        "inference_mode": True,
        "init_weights": None,
        "modules_to_save": None,
        "num_attention_heads": NH,
        "num_layers": n,
        "num_transformer_submodules": 1,
        "num_virtual_tokens": P,
        "peft_type": "PREFIX_TUNING",
        "prefix_projection": mlp,
        "revision": None,
        "task_type": "CAUSAL_LM",
        "token_dim": NH * hs,
    }


def load_prefix(directory: str | Path, model: GPT2 | None = None, dtype: str = "float32") -> Prefix:
    """Read what `save_prefix` or PEFT wrote. With `model`: raises InputError for a prefix whose
    recorded base is another (both fingerprints are in the sentence) or whose shape does not fit."""
    folder = Path(directory)
    if not folder.is_dir():
        raise InputError(
            f"prefix folder {str(folder)!r} does not exist: expected one that was saved"
        )
    about = read_about(folder)
    if (folder / PEFT_TENSOR).exists():
        prefix = _read_peft(folder, dtype)
    elif (folder / OWN_TENSOR).exists() and about is not None:
        tensors, _ = files.map_tensors(folder / OWN_TENSOR, "the prefix")
        if set(tensors) != {"kv"} or tensors["kv"].dtype.kind != "f":
            found = {name: (a.shape, str(a.dtype)) for name, a in tensors.items()}
            raise InputError(
                f"{folder / OWN_TENSOR} holds {found}: expected one tensor 'kv' of floating-point "
                "numbers; the prefix is damaged"
            )
        prefix = Prefix(tensors["kv"].astype(dtype), about["layers"], about["position_offset"])
    else:
        raise InputError(
            f"{str(folder)!r} holds no prefix: expected {PEFT_TENSOR} with {PEFT_CONFIG}, or "
            f"{OWN_TENSOR} with {ABOUT}"
        )
    if about is not None:
        _check_about(folder / ABOUT, about, prefix)
    if not np.isfinite(prefix.kv).all():
        raise InputError(f"the prefix in {str(folder)!r} holds NaN or infinity: it is damaged")
    _check_base(folder, about, prefix, model)
    return prefix


def _check_base(
    folder: Path, about: dict[str, Any] | None, prefix: Prefix, model: GPT2 | None
) -> None:
    """Raises InputError if `model` is not the base that the prefix was trained on."""
    if model is None:
        return
    prefix.check(model.config, model.name)
    if about is None or about["base_sha256"] is None:
        return  # PEFT wrote it: nobody knows its base
    recorded, actual = about["base_sha256"], model.fingerprint()
    if recorded != actual:
        raise InputError(
            f"the prefix in {str(folder)!r} was trained on another base: on {about['base']!r} "
            f"(sha256 {recorded[:12]}...), and this is {model.name!r} (sha256 {actual[:12]}...); "
            "give the model that it was trained on"
        )


def load_mlp(directory: str | Path, model: GPT2 | None = None, dtype: str = "float32") -> MLPPrefix:
    """The MLP that was kept beside a folded prefix, to train on. Raises InputError where there is
    none."""
    folder = Path(directory)
    about = read_about(folder)
    if about is None or not (folder / MLP).exists():
        raise InputError(
            f"{str(folder)!r} holds no MLP: the prefix is flat, or PEFT wrote it without"
        )
    tensors, _ = files.map_tensors(folder / MLP, "the prefix's MLP")
    P, C = about["length"], about["n_head"] * about["head_size"]
    out = 2 * C * (about["n_layer"] if about["layers"] is None else len(about["layers"]))
    hidden = tensors["bias_1"].size if "bias_1" in tensors else 0
    expected = {
        "embedding": (P, C),
        "weight_1": (C, hidden),
        "bias_1": (hidden,),
        "weight_2": (hidden, out),
        "bias_2": (out,),
    }
    found = {name: a.shape for name, a in tensors.items()}
    if found != expected or any(a.dtype.kind != "f" for a in tensors.values()):
        raise InputError(
            f"{folder / MLP} holds {found}: expected {expected} of floating-point numbers, from "
            f"{ABOUT}"
        )
    for name, a in tensors.items():
        if not np.isfinite(a).all():
            raise InputError(f"{folder / MLP}: {name} holds NaN or infinity: it is damaged")
    parameters = {name: a.astype(dtype) for name, a in tensors.items()}
    mlp = MLPPrefix(parameters, about["n_head"], about["layers"], about["position_offset"])
    _check_about(folder / ABOUT, about, mlp)
    _check_base(folder, about, mlp, model)
    return mlp


def read_about(folder: Path) -> dict[str, Any] | None:
    """minprefix.json; None where PEFT alone wrote the directory. Raises InputError for another
    format version and for an unknown or missing key."""
    path = folder / ABOUT
    if not path.exists():
        return None
    about = files.read_json(path, "the prefix's provenance")
    if about.get("format") != FORMAT:
        raise InputError(
            f"{path} has format {about.get('format')!r}, this version reads {FORMAT}: use the "
            "minprefix that wrote it"
        )
    for key in sorted(set(about) ^ ABOUT_KEYS):
        state = "unknown" if key in about else "missing"
        raise InputError(f"{path}: key {key!r} is {state}: the file is damaged or edited")
    layers = about["layers"]
    if layers is not None and not (isinstance(layers, list) and all(map(_whole, layers))):
        raise InputError(f"{path}: layers is {layers!r}: expected whole numbers from 0, or null")
    for key in ("length", "position_offset", "n_layer", "n_head", "head_size"):
        if not _whole(about[key]):
            raise InputError(f"{path}: {key} is {about[key]!r}: expected a whole number from 0")
    for key, kind in (("base", str), ("base_sha256", str), ("training", dict)):
        if about[key] is not None and not isinstance(about[key], kind):
            what = "text" if kind is str else "an object"
            raise InputError(f"{path}: {key} is {about[key]!r}: expected {what}, or null")
    template = (about["training"] or {}).get("template")
    if template is not None and not isinstance(template, str):
        raise InputError(f"{path}: the template is {template!r}: expected text")
    return about


def _whole(value: Any) -> bool:
    return type(value) is int and value >= 0


def _check_about(path: Path, about: dict[str, Any], prefix: Prefix) -> None:
    """Raises InputError where minprefix.json and the tensor beside it are not of one save."""
    n, _, NH, P, hs = prefix.kv.shape
    found: dict[str, Any] = {
        "length": P,
        "n_head": NH,
        "head_size": hs,
        "layers": list(prefix.layers) if prefix.subset else None,
        "position_offset": prefix.position_offset,
    }
    if not prefix.subset:
        found["n_layer"] = n
    for key, value in found.items():
        if about[key] != value:
            raise InputError(
                f"{path}: {key} is {about[key]!r}, the tensors beside it have {value!r}: the files "
                "are not of one save; copy them again, together"
            )


def _read_peft(folder: Path, dtype: str) -> Prefix:
    path = folder / PEFT_CONFIG
    if not path.exists():
        raise InputError(f"{str(folder)!r} has {PEFT_TENSOR} but no {PEFT_CONFIG}: copy both")
    config = files.read_json(path, "PEFT's config")
    if config.get("peft_type") != "PREFIX_TUNING":
        raise InputError(
            f"{path}: peft_type is {config.get('peft_type')!r}: expected 'PREFIX_TUNING'; "
            "minprefix reads no other kind of adapter"
        )
    numbers = ("num_virtual_tokens", "num_layers", "num_attention_heads", "token_dim")
    for key in numbers:
        if not isinstance(config.get(key), int) or config[key] < 1:
            raise InputError(
                f"{path}: {key} is {config.get(key)!r}: expected a whole number from 1"
            )
    P, L, NH, C = (config[key] for key in numbers)
    if C % NH:
        raise InputError(f"{path}: token_dim is {C}, which {NH} heads cannot share equally")
    tensors, _ = files.map_tensors(folder / PEFT_TENSOR, "the prefix")
    stored = tensors.get("prompt_embeddings", np.empty(0))
    if len(tensors) != 1 or stored.shape != (P, L * 2 * C) or stored.dtype.kind != "f":
        found = {name: (a.shape, str(a.dtype)) for name, a in tensors.items()}
        raise InputError(
            f"{folder / PEFT_TENSOR} holds {found}: expected prompt_embeddings {(P, L * 2 * C)} "
            f"from {PEFT_CONFIG}"
        )
    kv = unflatten(tensors["prompt_embeddings"], L, NH, C // NH).astype(dtype)
    return Prefix(kv)
