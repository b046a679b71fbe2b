"""What a trace is made of: records of named values, in the order in which they were computed."""

import difflib
import fnmatch
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from minprefix.errors import InputError, brief, counted, listed, quoted
from minprefix.storage.reading import inside, read_json
from minprefix.storage.saving import finish_save, write_together
from minprefix.storage.tensors import map_tensors, tensor_bytes
from minprefix.storage.writing import json_bytes

FORMAT = 1
RECORDS, TENSORS = "trace.json", "trace.safetensors"
_BARS = " ▁▂▃▄▅▆▇█"


class Summary(NamedTuple):
    """Of a tensor, on one line. Range, mean and deviation are of its finite numbers."""

    least: float
    most: float
    mean: float
    std: float
    nan: int  # how many are NaN or infinite
    zero: int  # how many are 0
    histogram: tuple[int, ...]  # 10 bins from least to most

    def __str__(self) -> str:
        most = max(self.histogram, default=0)
        bars = "".join(_BARS[-(-8 * n // most) if most else 0] for n in self.histogram)
        bad = f", {self.nan} not finite" if self.nan else ""
        zero = f", {self.zero} zeros" if self.zero else ""
        return (
            f"[{self.least:.3g}, {self.most:.3g}] mean {self.mean:.3g} std {self.std:.3g} "
            f"|{bars}|{zero}{bad}"
        )


def summarise(a: np.ndarray) -> Summary:
    with np.errstate(all="ignore"):  # a trace is for looking at what went wrong, too
        real = np.asarray(a).real.astype(np.float64, copy=False)
        finite = real[np.isfinite(real)]
        nan, zero = real.size - finite.size, int((real == 0).sum())
        if not finite.size:
            return Summary(np.nan, np.nan, np.nan, np.nan, nan, zero, (0,) * 10)
        least, most = float(finite.min()), float(finite.max())
        width = most / 2 - least / 2  # halves: the whole may be more than a float64 holds
        bins = np.minimum((finite / 2 - least / 2) / (width or 1) * 10, 9).astype(int)
        counts = np.bincount(bins, minlength=10)
        mean, std = float(finite.mean()), float(finite.std())
    return Summary(least, most, mean, std, nan, zero, tuple(counts.tolist()))


@dataclass(eq=False)
class Record:
    """A value that was computed.

    `name` is the field's (`blocks.3.attn.pattern`; a gradient is `d` + name: `.dpattern`).
    `sequence`: of which sequence of the batch it is, None where it is of the whole stream. `inputs`
    are the keys of what the operation was given, weights under the names of the checkpoint.
    """

    name: str
    direction: str  # "forward" or "backward"
    op: str  # of the contract: "attention_backward"; or "add", "split", "given"
    value: np.ndarray
    inputs: tuple[str, ...] = ()
    sequence: int | None = None
    inside: bool = False  # an intermediate of an op, not what it gives back
    formula: str = ""
    line: int = 0  # in the source of the implementation; 0: not known
    text: str = ""  # that line
    number: int = -1  # its place in the trace

    @property
    def key(self) -> str:
        """Unlike the name, one of its kind in a trace: `blocks.3.attn.pattern#1`."""
        return self.name if self.sequence is None else f"{self.name}#{self.sequence}"

    @property
    def shape(self) -> tuple[int, ...]:
        return self.value.shape

    @cached_property
    def summary(self) -> Summary:
        return summarise(self.value)

    def __repr__(self) -> str:
        return f"{self.key} {self.shape} {self.value.dtype} {self.summary}"

    def _repr_html_(self) -> str:
        from minprefix.show import notebook

        return notebook.record(self)


@dataclass(eq=False)
class Trace:
    """The records of a forward and a backward, in order. `about`: what was traced."""

    records: list[Record]
    about: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for number, record in enumerate(self.records):
            record.number = number

    @cached_property
    def _by_key(self) -> dict[str, Record]:
        return {record.key: record for record in self.records}

    def __len__(self) -> int:
        return len(self.records)

    def __iter__(self) -> Iterator[Record]:
        return iter(self.records)

    def __getitem__(self, name: str) -> Record:
        """By key, or by name where only one sequence has it. Raises InputError with the nearest
        names."""
        if not isinstance(name, str):
            raise InputError(f"a trace is asked by name, not by {name!r}: see its .records")
        if name in self._by_key:
            return self._by_key[name]
        found = [record for record in self.records if record.name == name]
        if len(found) == 1:
            return found[0]
        if found:
            keys = ", ".join(record.key for record in found[:4])
            raise InputError(f"{name!r} is of {len(found)} sequences: name one of {keys}")
        raise self._no(name)

    def __contains__(self, name: object) -> bool:
        return name in self._by_key

    def find(self, pattern: str) -> list[Record]:
        """Those whose name or key is, or matches, the pattern: `blocks.*.attn.pattern`. Raises
        InputError with the nearest names if there are none."""
        found = [record for record in self.records if matches(record, pattern)]
        if not found:
            raise self._no(pattern)
        return found

    def _no(self, name: str) -> InputError:
        return unknown(name, (record.name for record in self.records))

    @property
    def nbytes(self) -> int:
        return sum(record.value.nbytes for record in self.records)

    def __repr__(self) -> str:
        forward = sum(record.direction == "forward" for record in self.records)
        return (
            f"Trace({counted(forward, 'record')} forward, {len(self) - forward} backward, "
            f"{self.nbytes / 1e6:.1f} MB, {self.about.get('implementation', '')})"
        )

    def _repr_html_(self) -> str:
        from minprefix.show import notebook

        return notebook.trace(self)

    # ---- on disk ----

    def save(self, directory: str | Path) -> None:
        """Write trace.safetensors, the values, and trace.json, all else; both or none."""
        entries, values = [], {}
        for r in self.records:
            entry = {k: v for k, v in vars(r).items() if k in _FIELDS}
            more = {"shape": list(r.shape), "bool": r.value.dtype == bool}
            entries.append(entry | {"inputs": list(r.inputs)} | more)
            if r.value.dtype.kind == "c":
                raise InputError(f"{r.key} is complex, which no safetensors file holds: take .real")
            values[str(r.number)] = r.value.view(np.uint8) if r.value.dtype == bool else r.value
        tensors = tensor_bytes(values, {})
        sha = hashlib.sha256(tensors).hexdigest()
        about = {"format": FORMAT, "sha256": sha, "about": self.about, "records": entries}
        contents = {RECORDS: json_bytes(about), TENSORS: tensors}
        write_together(Path(directory), contents, (RECORDS, TENSORS))

    @staticmethod
    def load(directory: str | Path) -> "Trace":
        """Raises InputError for a folder without a trace, a damaged one, and one of another
        version."""
        folder = Path(directory)
        if not folder.is_dir():
            raise InputError(
                f"trace folder {str(folder)!r} does not exist: give one that was saved"
            )
        finish_save(folder, (RECORDS, TENSORS))
        path = inside(folder, RECORDS, "the trace")
        if not path.exists():
            raise InputError(f"{str(folder)!r} holds no trace: expected {RECORDS} and {TENSORS}")
        about = read_json(path, "the trace")
        if about.get("format") != FORMAT:
            raise InputError(
                f"{path} has format {quoted(about.get('format'))}, this version reads "
                f"{FORMAT}: use the minprefix that wrote it"
            )
        stored = inside(folder, TENSORS, "the trace's values")
        values, _ = map_tensors(stored, "the trace's values")
        with stored.open("rb") as file:
            sha = hashlib.file_digest(file, "sha256").hexdigest()
        if sha != about.get("sha256"):
            was = quoted(about.get("sha256"))
            raise InputError(
                f"{stored} has sha256 {sha[:12]}..., and {RECORDS} records {was}: it is damaged "
                "or of another trace, save the trace again"
            )
        try:
            records = [_read(entry, values[str(n)]) for n, entry in enumerate(about["records"])]
            if len(records) != len(values) or not isinstance(about["about"], dict):
                raise ValueError(
                    f"{counted(len(records), 'record')} and {counted(len(values), 'value')}"
                )
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path} is damaged ({brief(error)}): save the trace again") from (
                error
            )
        return Trace(records, about["about"])


#: the fields of a record in trace.json, and what they may be
_FIELDS: dict[str, tuple[type, ...]] = {
    "name": (str,), "direction": (str,), "op": (str,), "inputs": (list,),
    "sequence": (int, type(None)), "inside": (bool,), "formula": (str,), "line": (int,),
    "text": (str,), "shape": (list,), "bool": (bool,),
}  # fmt: skip


def _read(entry: dict[str, Any], value: np.ndarray) -> Record:
    """Raises ValueError or TypeError for what is no record."""
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
    own = {k: v for k, v in entry.items() if k not in ("shape", "bool")}
    own["inputs"] = tuple(entry["inputs"])
    return Record(value=value.astype(bool) if entry["bool"] else value, **own)


def unknown(name: str, names: Iterable[str]) -> InputError:
    """A name that matches nothing, as a sentence with the nearest ones: near as a whole, or in its
    last part alone, where one writes `*.patern`."""
    known = list(dict.fromkeys(names))
    near = difflib.get_close_matches(name, known, n=4, cutoff=0.5)
    if not near:
        last = name.rpartition(".")[2].partition("#")[0]
        parts = {full.rpartition(".")[2] for full in known}
        close = difflib.get_close_matches(last, sorted(parts), n=1)
        near = [full for full in known if full.rpartition(".")[2] in close][:4]
    said = f"near it are {', '.join(near)}" if near else f"the first are {', '.join(known[:4])}"
    return InputError(f"nothing in the trace is called {name!r}: {said}")


def matches(record: Record, patterns: str | Sequence[str]) -> bool:
    every = [patterns] if isinstance(patterns, str) else patterns
    return any(
        fnmatch.fnmatchcase(record.name, p) or fnmatch.fnmatchcase(record.key, p) for p in every
    )
