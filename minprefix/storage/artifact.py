"""A trained prefix on disk: a PEFT directory with provenance beside it.

    adapter_model.safetensors   PEFT's: `prompt_embeddings` (P, L*2*C)
    adapter_config.json         PEFT's
    minprefix.json              ours: how it came to be (see artifact.schema.json)
    mlp.safetensors             the MLP's parameters, where there is one

What PEFT cannot express (a subset of layers, another position rule, P = 0) is written as
`prefix.safetensors` instead of PEFT's two files, so that PEFT finds nothing it would misread.

All of them are saved as one: a kill leaves the old prefix or the new one (`write_together`).
"""

import hashlib
import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from minprefix.errors import InputError, listed, note, quoted
from minprefix.storage.adapters import is_adapters
from minprefix.storage.fingerprint import earlier_tokenizer_fingerprint
from minprefix.storage.peft import CONFIG as PEFT_CONFIG
from minprefix.storage.peft import TENSOR as PEFT_TENSOR
from minprefix.storage.peft import peft_files, read_peft, why_not_peft
from minprefix.storage.provenance import (
    ABOUT,
    Base,
    Evaluation,
    Provenance,
    Shape,
    check_schema,
    packages,
    read_about,
)
from minprefix.storage.reading import inside
from minprefix.storage.saved import Saved, converted
from minprefix.storage.saving import read_together, write_together
from minprefix.storage.tensors import map_tensors, tensor_bytes, unopened
from minprefix.storage.writing import json_bytes

OWN_TENSOR, MLP = "prefix.safetensors", "mlp.safetensors"
TENSORS = (PEFT_TENSOR, OWN_TENSOR)  # a prefix has one of them
#: all files that a prefix may have
FILES = (PEFT_CONFIG, PEFT_TENSOR, OWN_TENSOR, MLP, ABOUT)


def write_prefix(
    saved: Saved,
    directory: str | Path,
    base: Base | None = None,
    training: dict[str, Any] | None = None,
    metrics: dict[str, Any] | None = None,
    evaluation: Evaluation | None = None,
) -> None:
    """See `Prefix.save`: all of it takes the place of what may be there, or nothing does.

    Raises InputError for numbers that no file can hold, if the disk refuses, and if another process
    writes there.
    """
    n, _, NH, P, hs = saved.kv.shape
    if saved.kv.dtype.kind != "f":
        raise InputError(
            f"cannot save a prefix of {saved.kv.dtype}: expected floating-point numbers"
        )
    if not np.isfinite(saved.kv).all():
        raise InputError("cannot save a prefix that holds NaN or infinity: its training failed")
    base = base or Base(None, None, None, n, NH, hs)
    if why_not_peft(saved):
        kv = {"kv": saved.kv.astype(np.float32)}
        contents = {OWN_TENSOR: tensor_bytes(kv, {})}
    else:
        contents = peft_files(saved, base.name)
    if saved.mlp is not None:
        contents[MLP] = tensor_bytes(saved.mlp, {})
    about = Provenance(
        saved=datetime.now(UTC).isoformat(timespec="seconds"),
        packages=packages(),
        base=base,
        prefix=Shape(
            kind="flat" if saved.mlp is None else "mlp",
            length=P,
            layers=None if saved.layers is None else list(saved.layers),
            position_offset=saved.position_offset,
        ),
        files={
            name: hashlib.sha256(contents[name]).hexdigest()
            for name in sorted(contents, key=lambda name: name == PEFT_CONFIG)  # tensors first
        },
        training=training,
        metrics=metrics,
        evaluation=evaluation,
    )
    contents[ABOUT] = json_bytes(about.as_json())
    check_schema(Path(directory) / ABOUT, json.loads(contents[ABOUT]))
    write_together(Path(directory), contents, FILES)


def export_peft(saved: Saved, directory: str | Path, base: str | None) -> None:
    """Write PEFT's two files, in place of whatever prefix is there; `base`: the name or folder
    under which PEFT's user finds the model. The MLP is left out. Raises InputError for what PEFT
    cannot express, and leaves what is there."""
    if reason := why_not_peft(saved):
        raise InputError(
            f"PEFT cannot express this prefix: {reason}; train one for all layers and with the "
            "usual positions to export it"
        )
    write_together(Path(directory), peft_files(saved, base), FILES)


# ---- reading ----------------------------------------------------------------------------------


def read_prefix(directory: str | Path, dtype: str = "float32") -> tuple[Saved, Provenance | None]:
    """What `write_prefix` or PEFT wrote, without the MLP; and its record, of the same save."""
    folder = _folder(directory)
    return read_together(folder, FILES, lambda: _read_prefix(folder, dtype))


def _read_prefix(folder: Path, dtype: str) -> tuple[Saved, Provenance | None]:
    about = read_about(folder)
    if _file(folder, PEFT_TENSOR).exists():
        saved = read_peft(folder, dtype)
    elif _file(folder, OWN_TENSOR).exists() and about is not None:
        saved = _read_own(folder, about, dtype)
    elif is_adapters(folder):
        raise InputError(
            f"{str(folder)!r} was written by the adapters library: `minprefix import` takes it in"
        )
    else:
        if (why := unopened(os.listdir(folder), PEFT_TENSOR)) is not None:
            raise InputError(f"{str(folder)!r} has no {PEFT_TENSOR}: {why}")
        raise InputError(
            f"{str(folder)!r} holds no prefix: expected {PEFT_TENSOR} with {PEFT_CONFIG}, or "
            f"{OWN_TENSOR} with {ABOUT}"
        )
    if about is not None:
        _check_about(folder, about, saved)
    if not np.isfinite(saved.kv).all():
        raise InputError(f"the prefix in {str(folder)!r} holds NaN or infinity: it is damaged")
    if about is not None:
        _check_files(folder, about, TENSORS)
    return saved, about


def _read_own(folder: Path, about: Provenance, dtype: str) -> Saved:
    tensors, _ = map_tensors(folder / OWN_TENSOR, "the prefix")
    kv = tensors.get("kv", np.empty(0))
    if len(tensors) != 1 or kv.dtype.kind != "f" or kv.ndim != 5 or kv.shape[1] != 2:
        found = listed((name, a.shape, str(a.dtype)) for name, a in tensors.items())
        raise InputError(
            f"{folder / OWN_TENSOR} holds {found}: expected one tensor 'kv' (layers, 2, heads, P, "
            "head size) of floating-point numbers; the prefix is damaged"
        )
    layers = about.prefix.layers
    return Saved(
        converted(kv, dtype),
        None if layers is None else tuple(layers),
        about.prefix.position_offset,
    )


def _folder(directory: str | Path) -> Path:
    folder = Path(directory)
    if not folder.is_dir():
        raise InputError(
            f"prefix folder {str(folder)!r} does not exist: expected one that was saved"
        )
    return folder


def _file(folder: Path, name: str) -> Path:
    """Where a file of the prefix is, or would be. Raises InputError for a way out of the folder."""
    return inside(folder, name, "a file of the prefix")


def read_mlp(
    directory: str | Path, dtype: str = "float32"
) -> tuple[dict[str, np.ndarray], Provenance]:
    """The parameters of the MLP beside a folded prefix, and the record. Raises InputError where
    there is none."""
    folder = _folder(directory)
    return read_together(folder, FILES, lambda: _read_mlp(folder, dtype))


def _read_mlp(folder: Path, dtype: str) -> tuple[dict[str, np.ndarray], Provenance]:
    about = read_about(folder)
    if about is None or not _file(folder, MLP).exists():
        raise InputError(
            f"{str(folder)!r} holds no MLP: the prefix is flat, or PEFT wrote it without"
        )
    tensors, _ = map_tensors(folder / MLP, "the prefix's MLP")
    base, own = about.base, about.prefix
    P, C = own.length, base.n_head * base.head_size
    out = 2 * C * (base.n_layer if own.layers is None else len(own.layers))
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
            f"{folder / MLP} holds {listed(found.items())}: expected {expected} of "
            f"floating-point numbers, from {ABOUT}"
        )
    parameters = {name: converted(a, dtype) for name, a in tensors.items()}
    for name, a in parameters.items():
        if not np.isfinite(a).all():
            raise InputError(f"{folder / MLP}: {name} holds NaN or infinity: it is damaged")
    _check_kind(folder, about)
    _check_files(folder, about, (MLP,))
    return parameters, about


def check_base(directory: str | Path, recorded: Base, base: Base, folder: Path | None) -> None:
    """Raises InputError if `base`, which was loaded from `folder`, is not the recorded one; both
    fingerprints are in the sentence. A fingerprint that either side lacks is not compared."""
    for what, was, now in (
        ("base", recorded.sha256, base.sha256),
        ("tokenizer", recorded.tokenizer_sha256, base.tokenizer_sha256),
    ):
        if was is None or now is None or was == now:
            continue
        if what == "tokenizer" and was == earlier_tokenizer_fingerprint(folder):
            note(
                f"the prefix in {str(directory)!r} was trained before minprefix read the files "
                f"beside the tokenizer of {recorded.name!r}: a text may be other tokens now"
            )
            continue
        on = f"on {recorded.name!r}" if what == "base" else f"that of {recorded.name!r}"
        raise InputError(
            f"the prefix in {str(directory)!r} was trained on another {what}: {on} (sha256 "
            f"{was[:12]}...), and this is {base.name!r} (sha256 {now[:12]}...); give the model "
            "that it was trained on"
        )


def _check_about(folder: Path, about: Provenance, saved: Saved) -> None:
    """Raises InputError where minprefix.json and the tensor beside it are not of one save."""
    n, _, NH, P, hs = saved.kv.shape
    whole = saved.layers is None
    found = [
        ("prefix.length", about.prefix.length, P),
        ("base.n_head", about.base.n_head, NH),
        ("base.head_size", about.base.head_size, hs),
        ("prefix.layers", about.prefix.layers, None if whole else list(saved.layers or ())),
        ("prefix.position_offset", about.prefix.position_offset, saved.position_offset),
    ]
    if whole:
        found.append(("base.n_layer", about.base.n_layer, n))
    for key, recorded, value in found:
        if recorded != value:
            raise _two_saves(folder, key, recorded, value)
    _check_kind(folder, about)


def _check_kind(folder: Path, about: Provenance) -> None:
    kind = "mlp" if MLP in about.files else "flat"
    if about.prefix.kind != kind:
        raise _two_saves(folder, "prefix.kind", about.prefix.kind, kind)


def _two_saves(folder: Path, key: str, recorded: Any, value: Any) -> InputError:
    return InputError(
        f"{folder / ABOUT}: {key} is {quoted(recorded)}, the tensors beside it have "
        f"{quoted(value)}: the files are not of one save; copy them again, together"
    )


def _check_files(folder: Path, about: Provenance, names: tuple[str, ...]) -> None:
    """Raises InputError where one of these files is not the one that was saved with
    minprefix.json."""
    for name in names:
        if not _file(folder, name).exists():
            continue
        recorded = about.files.get(name)
        actual = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        if recorded != actual:
            was = "nothing of it" if recorded is None else f"sha256 {recorded[:12]}..."
            raise InputError(
                f"{folder / name} has sha256 {actual[:12]}..., and {ABOUT} records {was}: the "
                f"files are not of one save; copy them again, together, or remove {ABOUT} if "
                "another program wrote the prefix anew"
            )
