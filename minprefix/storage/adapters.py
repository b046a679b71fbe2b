"""A prefix in the layout of the `adapters` library (AdapterHub), both ways, without that library.

    adapter.safetensors    one flat tensor: (P, layers, 2, NH, hs), row-major, keys before values
    adapter_config.json    prefix_length, and in leave_out the layers that see no prefix

That library gives the first real token position 0, whatever P is, so only prefixes with that rule
can be exported or imported. `tests/adapters_library.md` records the comparison with the library:
with attn_implementation="eager" the logits are equal, in padded batches and while generating, too,
as long as P + T is at most n_positions. With "sdpa", its default, it masks the wrong keys; the
directory does not say which of the two a prefix was trained with.
"""

import os
import re
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from minprefix.errors import InputError, counted, quoted
from minprefix.ops.reference import linear
from minprefix.storage.reading import inside, read_json, unexpected
from minprefix.storage.saved import Saved, check_finite, flatten, unflatten
from minprefix.storage.saving import finish_save, write_together
from minprefix.storage.tensors import map_tensors, other_tensors
from minprefix.storage.writing import json_bytes

CONFIG, TENSORS, HEAD = "adapter_config.json", "adapter.safetensors", "head_config.json"
PICKLE = "pytorch_adapter.bin"
VERSION, KIND = "adapters 1.3.0", "the adapters library's config"
#: how to use an exported prefix there, and how to save one there for import (the library's own
#: use_safetensors=True stops at tensors that share memory)
USE = (
    'GPT2LMHeadModel.from_pretrained(BASE, attn_implementation="eager"), adapters.init(model), '
    "model.load_adapter(DIR, use_safetensors=True, set_active=True), model.eval()"
)
CONVERT = (
    'state = torch.load("pytorch_adapter.bin", weights_only=True); safetensors.torch.save_file('
    '{n: t for n, t in state.items() if ".pool." not in n}, "adapter.safetensors")'
)
#: the library's PrefixTuningConfig, as it is saved; another key could change what is computed
DEFAULTS = {
    "architecture": "prefix_tuning",
    "bottleneck_size": 512,
    "cross_prefix": False,
    "dropout": 0.0,
    "encoder_prefix": True,
    "flat": True,
    "init_weights_seed": None,
    "leave_out": [],
    "non_linearity": "tanh",
    "prefix_length": 30,
    "shared_gating": True,
    "use_gating": False,
}
FLAT = "control_trans"
#: its MLP's parameters; the weights of linear layers are (out, in) there
MLP = (
    "wte.weight",
    "control_trans.0.weight",
    "control_trans.0.bias",
    "control_trans.2.weight",
    "control_trans.2.bias",
)


def is_adapters(folder: Path) -> bool:
    """Whether the library's weights are there. (Its config has the same name as PEFT's.)"""
    return any(os.path.lexists(folder / name) for name in (TENSORS, PICKLE))


def save_adapters(
    saved: Saved, directory: str | Path, name: str = "prefix", n_layer: int | None = None
) -> None:
    """Write a prefix, its MLP folded, as the adapter `name` into a folder of its own. A subset of
    layers needs the model's `n_layer`. Raises InputError for what the library cannot express."""
    folder, kv, layers = Path(directory), saved.kv, saved.layers
    n, _, NH, P, hs = kv.shape
    if saved.position_offset != 0:
        raise InputError(
            f"with this prefix, tokens start at position {saved.position_offset}; the adapters "
            "library starts them at 0: train with --position-offset 0"
        )
    if P == 0 or n == 0:
        empty = f"a prefix of {counted(P, 'slot')} in {counted(n, 'layer')}"
        raise InputError(f"{empty} is empty: there is nothing to export")
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise InputError(f"the adapter's name is {name!r}: expected letters, digits, '-' and '_'")
    if layers and (n_layer is None or n_layer <= layers[-1]):
        where = f"the prefix sits in layers {list(layers)} of {n_layer}"
        raise InputError(f"{where}: the adapters library asks for the others; give the model")
    with np.errstate(over="ignore"):  # an infinity is refused
        written = flatten(kv).reshape(-1).astype(np.float32) if kv.dtype.kind == "f" else None
    if written is None or not np.isfinite(written).all():
        raise InputError(f"cannot export a prefix of {kv.dtype} that is not all finite in float32")
    others = sorted({p.name for p in folder.glob("[!.]*")} - {TENSORS, CONFIG})
    if others:
        raise InputError(f"{str(folder)!r} holds {', '.join(others)}: export into an empty folder")
    left_out = sorted(set(range(n_layer or n)) - set(layers)) if layers else []
    about = {
        "config": DEFAULTS | {"prefix_length": P, "leave_out": left_out},
        "hidden_size": NH * hs,
        "model_class": "GPT2LMHeadModel",
        "model_name": "",
        "model_type": "gpt2",
        "name": name,
        "version": VERSION.replace(" ", "."),
    }
    tensors = save({f"transformer.{_stem(name)}{FLAT}": written}, {"format": "pt"})
    contents = {TENSORS: tensors, CONFIG: json_bytes(about)}
    write_together(folder, contents, contents)


def load_adapters(directory: str | Path, n_head: int) -> Saved:
    """The prefix that the library trained, its MLP folded. The directory does not say how many
    heads it has. Raises InputError for what is damaged or has no counterpart here."""
    folder = Path(directory)
    finish_save(folder, (TENSORS, CONFIG))
    if (folder / PICKLE).exists() and not (folder / TENSORS).exists():
        pickle = f"{str(folder)!r} holds {PICKLE}, and a pickle is never opened here"
        raise InputError(f"{pickle}: convert it where the library is installed, with {CONVERT}")
    about = _read_config(folder / CONFIG)
    head = folder / HEAD
    if head.exists() and read_json(_there(head), KIND).get("config") is not None:
        raise InputError(
            f"{head} is an output layer of the adapter's own, and minprefix has only the "
            "model's: if the prefix was trained without it, save it with with_head=False"
        )
    config, C = about["config"], about["hidden_size"]
    if n_head < 1 or C % n_head:
        raise InputError(f"{folder / CONFIG}: hidden_size is {C}, not a multiple of {n_head} heads")
    tensors = _read_tensors(folder / TENSORS, about)
    with np.errstate(over="ignore", invalid="ignore"):  # refused below
        t = {name: a.astype(np.float32) for name, a in tensors.items()}
        if FLAT in t:  # even if `flat` is false: eject_prefix_tuning leaves it so
            flat = t[FLAT].reshape(config["prefix_length"], -1)
        elif config["non_linearity"] == "tanh":
            first, second = (f"control_trans.{i}" for i in (0, 2))
            h = np.tanh(linear(t["wte.weight"], t[f"{first}.weight"].T, t[f"{first}.bias"]))
            flat = linear(h, t[f"{second}.weight"].T, t[f"{second}.bias"])
        else:
            do = f"call model.eject_prefix_tuning({quoted(about['name'])}) before saving"
            wrong = f"{quoted(config['non_linearity'])}, only 'tanh' is folded here"
            raise InputError(f"{folder / CONFIG}: non_linearity is {wrong}: {do}")
    check_finite(flat, f"the prefix in {str(folder)!r}")
    kv = unflatten(flat, flat.shape[1] // (2 * C), n_head, C // n_head)
    left_out = set(config["leave_out"])
    sees = islice((i for i in count() if i not in left_out), len(kv))
    return Saved(kv, tuple(sees) if left_out else None, position_offset=0)


def _stem(name: str) -> str:
    return f"prefix_tuning.prefix_tunings.{name}.self_prefix."


def _there(path: Path) -> Path:
    path = inside(path.parent, path.name, "a file of the adapters library's directory")
    if not path.exists():
        raise InputError(f"{path} is no file: copy the adapters library's directory whole")
    return path


def _read_config(path: Path) -> dict[str, Any]:
    """Raises InputError for an unknown key, and for a value that no prefix here can express."""
    about = read_json(_there(path), KIND)
    config = about.get("config")
    if not isinstance(config, dict) or config.get("architecture") != "prefix_tuning":
        other = "architecture is not 'prefix_tuning': minprefix reads no other kind of adapter"
        raise InputError(f"{path}: {other}")
    for key in sorted(config.keys() ^ DEFAULTS.keys()):
        state = "unknown" if key in config else "missing"
        raise InputError(f"{path}: key {quoted(key)} is {state}: expected what {VERSION} writes")
    if config["use_gating"] is not False:
        raise InputError(
            f"{path}: use_gating is {quoted(config['use_gating'])}: a gate changes the prefix "
            "with the input, which minprefix does not do; train it without one"
        )
    if about.get("model_type") != "gpt2":
        raise unexpected(path, "model_type", about.get("model_type"), "'gpt2'")
    if not isinstance(about.get("name"), str):
        raise unexpected(path, "name", about.get("name"), "text")
    sizes = config | {"hidden_size": about.get("hidden_size")}
    for key in ("prefix_length", "bottleneck_size", "hidden_size"):
        if type(sizes[key]) is not int or sizes[key] < 1:
            raise unexpected(path, key, sizes[key], "a whole number from 1")
    left_out = config["leave_out"]
    if not isinstance(left_out, list) or any(type(i) is not int for i in left_out):
        raise unexpected(path, "leave_out", left_out, "a list of layers")
    return about


def _read_tensors(path: Path, about: dict[str, Any]) -> dict[str, np.ndarray]:
    """`FLAT` alone, or the tensors that `MLP` names, in the shapes that the config says."""
    tensors, _ = map_tensors(_there(path), "the adapter")
    config, C = about["config"], about["hidden_size"]
    P, h = config["prefix_length"], config["bottleneck_size"]
    root = "transformer." if any(n.startswith("transformer.") for n in tensors) else ""
    stem = root + _stem(about["name"])
    shapes: dict[str, tuple[int, ...]]
    if stem + FLAT in tensors or config["flat"] is not False:
        n = tensors.get(stem + FLAT, np.empty(0)).size // (2 * C * P)
        shapes = {FLAT: (n * 2 * C * P,)}
    else:
        n = tensors.get(f"{stem}control_trans.2.bias", np.empty(0)).size // (2 * C)
        shapes = dict(zip(MLP, [(P, C), (h, C), (h,), (n * 2 * C, h), (n * 2 * C,)], strict=True))
    expected = {stem + part: shape for part, shape in shapes.items()}
    found = {name: a.shape for name, a in tensors.items() if a.dtype.kind == "f"}
    if found != expected or n == 0 or len(found) < len(tensors):
        what = f"{quoted(expected)} of floating-point numbers, for one layer or more"
        raise other_tensors(path, tensors, f"{what}, from {CONFIG}")
    return {n.removeprefix(stem): a for n, a in tensors.items()}
