"""A trace on disk: trace.safetensors holds the values, trace.json all else."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from minprefix.errors import InputError, brief, counted, listed, quoted
from minprefix.storage import reading, saving, tensors, writing

FORMAT = 1
RECORDS, TENSORS = "trace.json", "trace.safetensors"


def write(folder: Path, records: Sequence[dict[str, Any]], trace_about: dict[str, Any]) -> None:
    """Records as the fields of `trace.record.Record`. Both files are written, or none."""
    entries, values = [], {}
    for n, record in enumerate(records):
        value, is_bool = record["value"], record["value"].dtype == bool
        entry = {k: v for k, v in record.items() if k in _FIELDS}
        entry |= {"shape": list(value.shape), "bool": is_bool, "inputs": list(record["inputs"])}
        entries.append(entry)
        values[str(n)] = value.view(np.uint8) if is_bool else value
    packed = tensors.tensor_bytes(values, {})
    sha = hashlib.sha256(packed).hexdigest()
    about = {"format": FORMAT, "sha256": sha, "about": trace_about, "records": entries}
    contents = {RECORDS: writing.json_bytes(about), TENSORS: packed}
    saving.write_together(folder, contents, (RECORDS, TENSORS))


def read(folder: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """-> the records' fields, and what the trace is about. Raises InputError for a folder without a
    trace, a damaged one, and one of another version."""
    if not folder.is_dir():
        raise InputError(f"trace folder {str(folder)!r} does not exist: give one that was saved")
    saving.finish_save(folder, (RECORDS, TENSORS))
    path = reading.inside(folder, RECORDS, "the trace")
    if not path.exists():
        raise InputError(f"{str(folder)!r} holds no trace: expected {RECORDS} and {TENSORS}")
    about = reading.read_json(path, "the trace")
    if about.get("format") != FORMAT:
        raise InputError(
            f"{path} has format {quoted(about.get('format'))}, this version reads {FORMAT}: "
            "use the minprefix that wrote it"
        )
    stored = reading.inside(folder, TENSORS, "the trace's values")
    values, _ = tensors.map_tensors(stored, "the trace's values")
    with stored.open("rb") as file:
        sha = hashlib.file_digest(file, "sha256").hexdigest()
    if sha != about.get("sha256"):
        was = quoted(about.get("sha256"))
        raise InputError(
            f"{stored} has sha256 {sha[:12]}..., and {RECORDS} records {was}: it is damaged or of "
            "another trace, save the trace again"
        )
    try:
        records = [_read(entry, values[str(n)]) for n, entry in enumerate(about["records"])]
        if len(records) != len(values) or not isinstance(about["about"], dict):
            found = f"{counted(len(records), 'record')} and {counted(len(values), 'value')}"
            raise ValueError(found)
    except (KeyError, TypeError, ValueError) as error:
        said = brief(error)
        raise InputError(f"{path} is damaged ({said}): save the trace again") from error
    return records, about["about"]


#: the fields of a record in trace.json, and what they may be
_FIELDS: dict[str, tuple[type, ...]] = {
    "name": (str,), "direction": (str,), "op": (str,), "inputs": (list,),
    "sequence": (int, type(None)), "inside": (bool,), "formula": (str,), "line": (int,),
    "text": (str,), "shape": (list,), "bool": (bool,),
}  # fmt: skip


def _read(entry: dict[str, Any], value: np.ndarray) -> dict[str, Any]:
    """The fields of a record. Raises ValueError or TypeError if the entry is none."""
    if set(entry) != set(_FIELDS):
        raise ValueError(f"a record with the keys {listed(entry)}")
    for key, kinds in _FIELDS.items():
        if not isinstance(entry[key], kinds):
            raise ValueError(f"{key} is {quoted(entry[key])}")
    if entry["direction"] not in ("forward", "backward"):
        raise ValueError(f"direction is {quoted(entry['direction'])}")
    if not all(isinstance(name, str) for name in entry["inputs"]):
        raise ValueError(f"inputs are {quoted(entry['inputs'])}")
    if entry["shape"] != list(value.shape):
        raise ValueError(f"{quoted(entry['name'])} has the shape {value.shape}")
    fields = {k: v for k, v in entry.items() if k not in ("shape", "bool")}
    value = value.astype(bool) if entry["bool"] else value
    return fields | {"value": value, "inputs": tuple(entry["inputs"])}
