"""A rival of prefix-tuning on disk, with the record that a prefix has beside it.

adapter_model.safetensors, adapter_config.json   PEFT's: LoRA, prompt tuning and P-tuning
encoder.safetensors                              P-tuning's encoder, which PEFT does not save
method.safetensors                               every other rival: its parameters, by name
minprefix.json                                   as a prefix's, with `method` for `prefix`
"""

from pathlib import Path

import numpy as np

from minprefix.errors import InputError
from minprefix.storage import peft
from minprefix.storage.artifact import (
    ENCODER,
    FILES,
    METHOD,
    check_files,
    of_one_save,
    rival_in,
    write_artifact,
)
from minprefix.storage.peft_rivals import PEFT_TYPES, read_rival, rival_config, rival_tensors
from minprefix.storage.provenance import ABOUT, Base, Evaluation, Provenance, Rival, read_about
from minprefix.storage.reading import inside
from minprefix.storage.saved import SavedMethod, check_finite, converted
from minprefix.storage.saving import write_together
from minprefix.storage.tensors import map_tensors, other_tensors, tensor_bytes, unopened
from minprefix.storage.writing import json_bytes


def write_rival(
    saved: SavedMethod,
    directory: str | Path,
    base: Base | None,
    training: dict[str, object] | None = None,
    metrics: dict[str, object] | None = None,
    evaluation: Evaluation | None = None,
) -> None:
    """See `Method.save`."""
    if base is None:
        raise InputError(
            f"cannot save {saved.name} without its base, which its record names: give the model "
            "that it was trained on"
        )
    if saved.name in PEFT_TYPES.values():
        saved = saved._replace(n_layer=base.n_layer, n_head=base.n_head)
        contents = rival_files(saved, base.name)
    else:
        contents = {METHOD: _bytes(saved.name, saved.parameters)}
    if saved.encoder is not None:
        contents[ENCODER] = _bytes(saved.name, saved.encoder)
    what = Rival(saved.name, saved.options)
    write_artifact(directory, contents, base, what, training, metrics, evaluation)


def rival_files(saved: SavedMethod, base: str | None) -> dict[str, bytes]:
    """The contents of PEFT's two files, the tensors first; `base`: the name of the model."""
    tensors = _bytes(saved.name, rival_tensors(saved), {"format": "pt"})
    return {peft.TENSOR: tensors, peft.CONFIG: json_bytes(rival_config(saved, base))}


def export_rival(saved: SavedMethod, directory: str | Path, base: str | None) -> None:
    """Write PEFT's two files, in place of what may be there; see `artifact.export_peft`. Raises
    InputError for a rival that PEFT does not know."""
    if saved.name not in PEFT_TYPES.values():
        how = "copy the folder itself"
        if saved.name in ("full", "top-layers", "bitfit"):
            how = "fine-tuned weights make a whole model with --merged"
        raise InputError(f"PEFT's files cannot hold {saved.name}: {how}")
    write_together(Path(directory), rival_files(saved, base), FILES)


def _bytes(
    name: str, arrays: dict[str, np.ndarray], metadata: dict[str, str] | None = None
) -> bytes:
    for key, a in arrays.items():
        if a.dtype.kind != "f":
            raise InputError(f"cannot save {name} of {a.dtype}: expected floating-point numbers")
        if not np.isfinite(a).all():
            wrong = f"cannot save {name}, whose {key} holds NaN or infinity"
            raise InputError(f"{wrong}: its training failed")
    return tensor_bytes({key: a.astype(np.float32) for key, a in arrays.items()}, metadata or {})


# ---- reading ----------------------------------------------------------------------------------


def holds_rival(directory: str | Path) -> bool:
    """Whether the files in a folder are a rival's. A prefix's, and whatever else there may be, is
    for `read_prefix` to read or to refuse."""
    folder = Path(directory)
    return folder.is_dir() and of_one_save(
        folder, "", lambda f, _: rival_in(f, read_about(f)) is not None
    )


def read_rival_folder(
    directory: str | Path, dtype: str = "float32"
) -> tuple[SavedMethod, Provenance | None]:
    """What `write_rival` or PEFT wrote, and its record, of the same save."""
    return of_one_save(directory, dtype, _read)


def _read(folder: Path, dtype: str) -> tuple[SavedMethod, Provenance | None]:
    about = read_about(folder)
    name = rival_in(folder, about)
    if name is None:
        raise InputError(f"{str(folder)!r} holds no rival of prefix-tuning: expected {ABOUT}")
    if name not in PEFT_TYPES.values():
        assert about is not None  # PEFT has no such thing
        parameters = _own(_there(folder, METHOD), name, dtype)
        saved = SavedMethod(name, about.method.options if about.method else {}, parameters)
    else:
        config, tensors = (_there(folder, part) for part in (peft.CONFIG, peft.TENSOR))
        saved = read_rival(name, config, tensors, dtype)
        if name == "p-tuning" and about is not None and about.method is not None:
            encoder = _own(_there(folder, ENCODER), name, dtype)
            saved = saved._replace(name=name, options=about.method.options, encoder=encoder)
    if about is not None:
        check_files(folder, about, (peft.TENSOR, METHOD, ENCODER))
        base = about.base
        saved = saved._replace(n_layer=base.n_layer, n_head=base.n_head)
    return saved, about


def _there(folder: Path, name: str) -> Path:
    path = inside(folder, name, "a file of the rival")
    if not path.exists():
        why = unopened([p.name for p in folder.iterdir()], name) or "copy the folder whole"
        raise InputError(f"{str(folder)!r} has no {name}: {why}")
    return path


def _own(path: Path, name: str, dtype: str) -> dict[str, np.ndarray]:
    tensors, _ = map_tensors(path, name)
    if not tensors or any(a.dtype.kind != "f" for a in tensors.values()):
        raise other_tensors(path, tensors, "floating-point numbers")
    parameters = {key: converted(a, dtype) for key, a in tensors.items()}
    for key, a in parameters.items():
        check_finite(a, f"{path}: {key}")
    return parameters
