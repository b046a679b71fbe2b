"""A trained prefix on disk: a PEFT directory with provenance beside it.

    adapter_model.safetensors   PEFT's: `prompt_embeddings` (P, L*2*C)
    adapter_config.json         PEFT's
    minprefix.json              ours: how it came to be (see artifact.schema.json)
    mlp.safetensors             the MLP's parameters, where there is one

A rival has `method.safetensors` and `encoder.safetensors` in their place (`rivals`).
What PEFT cannot express (a subset of layers, another position rule, P = 0) is written as
`prefix.safetensors` instead of PEFT's two files, so that PEFT finds nothing it would misread.

All of them are saved as one: a kill leaves the old prefix or the new one (`write_together`).
"""

import hashlib
import json
import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from minprefix.errors import InputError, note, quoted
from minprefix.storage import peft, provenance
from minprefix.storage.adapters import is_adapters
from minprefix.storage.fingerprint import earlier_tokenizer_fingerprint
from minprefix.storage.peft import peft_files, read_peft, why_not_peft
from minprefix.storage.peft_rivals import PEFT_TYPES
from minprefix.storage.provenance import (
    ABOUT,
    Base,
    Evaluation,
    Provenance,
    Rival,
    Shape,
    read_about,
)
from minprefix.storage.reading import inside, read_json
from minprefix.storage.saved import Saved, check_finite, converted
from minprefix.storage.saving import read_together, write_together
from minprefix.storage.tensors import map_tensors, other_tensors, tensor_bytes, unopened
from minprefix.storage.writing import json_bytes

T = TypeVar("T")

OWN_TENSOR, MLP = "prefix.safetensors", "mlp.safetensors"
METHOD, ENCODER = "method.safetensors", "encoder.safetensors"  # a rival's
TENSORS = (peft.TENSOR, OWN_TENSOR)  # a prefix has one of them
TWO_SAVES = "the files are not of one save; copy them again, together"
#: all files that a prefix or a rival may have
FILES = (peft.CONFIG, peft.TENSOR, OWN_TENSOR, MLP, METHOD, ENCODER, ABOUT)


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
        kind = f"a prefix of {saved.kv.dtype}"
        raise InputError(f"cannot save {kind}: expected floating-point numbers")
    if not np.isfinite(saved.kv).all():
        raise InputError("cannot save a prefix that holds NaN or infinity: its training failed")
    base = base or Base(None, None, None, n, NH, hs)
    if why_not_peft(saved):
        contents = {OWN_TENSOR: tensor_bytes({"kv": saved.kv.astype(np.float32)}, {})}
    else:
        contents = peft_files(saved, base.name)
    if saved.mlp is not None:
        contents[MLP] = tensor_bytes(saved.mlp, {})
    layers = None if saved.layers is None else list(saved.layers)
    shape = Shape("flat" if saved.mlp is None else "mlp", P, layers, saved.position_offset)
    write_artifact(directory, contents, base, shape, training, metrics, evaluation)


def write_artifact(
    directory: str | Path,
    contents: dict[str, bytes],
    base: Base,
    what: Shape | Rival,
    training: dict[str, Any] | None,
    metrics: dict[str, Any] | None,
    evaluation: Evaluation | None,
) -> None:
    """Write the files `contents` with the record of what they hold, in place of what may be there:
    all, or nothing."""
    about = Provenance(
        saved=datetime.now(UTC).isoformat(timespec="seconds"),
        packages=provenance.packages(),
        base=base,
        prefix=what if isinstance(what, Shape) else None,
        method=what if isinstance(what, Rival) else None,
        files={
            name: hashlib.sha256(contents[name]).hexdigest()
            for name in sorted(contents, key=lambda name: name == peft.CONFIG)  # tensors first
        },
        training=training,
        metrics=metrics,
        evaluation=evaluation,
    )
    record = json_bytes(about.as_json())
    provenance.check_schema(Path(directory) / ABOUT, json.loads(record))
    write_together(Path(directory), contents | {ABOUT: record}, FILES)


def export_peft(saved: Saved, directory: str | Path, base: str | None) -> None:
    """Write PEFT's two files, in place of whatever prefix is there; `base`: the name or folder
    under which PEFT's user finds the model. The MLP is left out. Raises InputError for what PEFT
    cannot express, and leaves what is there."""
    if reason := why_not_peft(saved):
        how = "train one for all layers and with the usual positions to export it"
        raise InputError(f"PEFT cannot express this prefix: {reason}; {how}")
    write_together(Path(directory), peft_files(saved, base), FILES)


# ---- reading ----------------------------------------------------------------------------------


def read_prefix(directory: str | Path, dtype: str = "float32") -> tuple[Saved, Provenance | None]:
    """What `write_prefix` or PEFT wrote, without the MLP; and its record, of the same save."""
    return of_one_save(directory, dtype, _read_prefix)


def of_one_save(directory: str | Path, dtype: str, read: Callable[[Path, str], T]) -> T:
    """`read(folder, dtype)`, with all files of one save."""
    folder = Path(directory)
    if not folder.is_dir():
        where = f"prefix folder {str(folder)!r} does not exist"
        raise InputError(f"{where}: expected one that was saved")
    return read_together(folder, FILES, lambda: read(folder, dtype))


def _read_prefix(folder: Path, dtype: str) -> tuple[Saved, Provenance | None]:
    about = read_about(folder)
    if (name := rival_in(folder, about)) is not None:
        raise InputError(
            f"{str(folder)!r} holds {name}, a rival of prefix-tuning: expected a prefix; "
            "`minprefix generate`, `evaluate`, `inspect`, `verify` and `export` take it"
        )
    if _file(folder, peft.TENSOR).exists():
        saved = read_peft(folder, dtype)
    elif _file(folder, OWN_TENSOR).exists() and about is not None:
        saved = _read_own(folder, about, dtype)
    elif is_adapters(folder):
        library = "was written by the adapters library"
        raise InputError(f"{str(folder)!r} {library}: `minprefix import` takes it in")
    elif (why := unopened(os.listdir(folder), peft.TENSOR)) is not None:
        raise InputError(f"{str(folder)!r} has no {peft.TENSOR}: {why}")
    else:
        files = f"{peft.TENSOR} with {peft.CONFIG}, or {OWN_TENSOR} with {ABOUT}"
        raise InputError(f"{str(folder)!r} holds no prefix: expected {files}")
    if about is not None:
        _check_record(folder, about, saved)
    check_finite(saved.kv, f"the prefix in {str(folder)!r}")
    if about is not None:
        check_files(folder, about, TENSORS)
    return saved, about


def _read_own(folder: Path, about: Provenance, dtype: str) -> Saved:
    tensors, _ = map_tensors(folder / OWN_TENSOR, "the prefix")
    kv = tensors.get("kv", np.empty(0))
    if len(tensors) != 1 or kv.dtype.kind != "f" or kv.ndim != 5 or kv.shape[1] != 2:
        expected = "'kv' (layers, 2, heads, P, head size) of floating-point numbers"
        raise other_tensors(folder / OWN_TENSOR, tensors, expected)
    assert about.prefix is not None  # `rival_in`
    layers, offset = about.prefix.layers, about.prefix.position_offset
    return Saved(converted(kv, dtype), None if layers is None else tuple(layers), offset)


def rival_in(folder: Path, about: Provenance | None) -> str | None:
    """The name of the rival whose files a folder holds; None for a prefix's, and for others."""
    if about is not None:
        return None if about.method is None else about.method.name
    path = _file(folder, peft.CONFIG)
    kind = read_json(path, "PEFT's config").get("peft_type") if path.exists() else None
    return PEFT_TYPES.get(kind) if isinstance(kind, str) else None


def _file(folder: Path, name: str) -> Path:
    """Where a file of the prefix is, or would be. Raises InputError for a way out of the folder."""
    return inside(folder, name, "a file of the prefix")


def read_mlp(
    directory: str | Path, dtype: str = "float32"
) -> tuple[dict[str, np.ndarray], Provenance]:
    """The parameters of the MLP beside a folded prefix, and the record. Raises InputError where
    there is none."""
    return of_one_save(directory, dtype, _read_mlp)


def _read_mlp(folder: Path, dtype: str) -> tuple[dict[str, np.ndarray], Provenance]:
    about = read_about(folder)
    if about is None or about.prefix is None or not _file(folder, MLP).exists():
        why = "the prefix is flat, or PEFT wrote it without"
        raise InputError(f"{str(folder)!r} holds no MLP: {why}")
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
        wanted = f"{expected} of floating-point numbers, from {ABOUT}"
        raise other_tensors(folder / MLP, tensors, wanted)
    parameters = {name: converted(a, dtype) for name, a in tensors.items()}
    for name, a in parameters.items():
        check_finite(a, f"{folder / MLP}: {name}")
    _check_record(folder, about)
    check_files(folder, about, (MLP,))
    return parameters, about


def check_base(
    directory: str | Path, recorded: Base, base: Base, folder: Path | None, what: str = "the prefix"
) -> None:
    """Raises InputError if `base`, which was loaded from `folder`, is not the recorded one; both
    fingerprints are in the sentence. A fingerprint that either side lacks is not compared."""
    where = f"{what} in {str(directory)!r} was trained"
    for other, was, now in (
        ("another base: on", recorded.sha256, base.sha256),
        ("another tokenizer: that of", recorded.tokenizer_sha256, base.tokenizer_sha256),
    ):
        if was is None or now is None or was == now:
            continue
        if "tokenizer" in other and was == earlier_tokenizer_fingerprint(folder):
            note(
                f"{where} before minprefix read the files beside the tokenizer of "
                f"{recorded.name!r}: a text may be other tokens now"
            )
            continue
        raise InputError(
            f"{where} on {other} {recorded.name!r} (sha256 {was[:12]}...), and this is "
            f"{base.name!r} (sha256 {now[:12]}...); give the model that it was trained on"
        )


def _check_record(folder: Path, about: Provenance, saved: Saved | None = None) -> None:
    """Raises InputError where minprefix.json and the tensors beside it are not of one save."""
    base, own = about.base, about.prefix
    assert own is not None  # `rival_in`
    found: list[tuple[str, Any, Any]] = []  # key, recorded, in the tensors
    if saved is not None:
        n, _, NH, P, hs = saved.kv.shape
        layers = None if saved.layers is None else list(saved.layers)
        found += [
            ("prefix.length", own.length, P),
            ("base.n_head", base.n_head, NH),
            ("base.head_size", base.head_size, hs),
            ("prefix.layers", own.layers, layers),
            ("prefix.position_offset", own.position_offset, saved.position_offset),
            ("base.n_layer", base.n_layer, n if layers is None else base.n_layer),
        ]
    found.append(("prefix.kind", own.kind, "mlp" if MLP in about.files else "flat"))
    for key, recorded, value in found:
        if recorded != value:
            raise InputError(
                f"{folder / ABOUT}: {key} is {quoted(recorded)}, the tensors beside it have "
                f"{quoted(value)}: {TWO_SAVES}"
            )


def check_files(folder: Path, about: Provenance, names: tuple[str, ...]) -> None:
    """Raises InputError where one of these files was not saved with minprefix.json."""
    for name in names:
        if not _file(folder, name).exists():
            continue
        recorded = about.files.get(name)
        actual = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        if recorded != actual:
            was = "nothing of it" if recorded is None else f"sha256 {recorded[:12]}..."
            raise InputError(
                f"{folder / name} has sha256 {actual[:12]}..., and {ABOUT} records {was}: "
                f"{TWO_SAVES}, or remove {ABOUT} if another program wrote the prefix anew"
            )
