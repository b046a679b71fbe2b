"""A trace: records of named values, in the order in which they were computed."""

import difflib
import fnmatch
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from minprefix.errors import InputError, counted

_BARS = " ▁▂▃▄▅▆▇█"


class Summary(NamedTuple):
    """A tensor on one line. Range, mean and deviation are those of its finite numbers."""

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
    with np.errstate(all="ignore"):  # a trace may also show what went wrong
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
    `sequence`: the sequence of the batch that it belongs to, None for the whole stream. `inputs`:
    the keys of the operation's inputs; weights have their names in the checkpoint.
    """

    name: str
    direction: str  # "forward" or "backward"
    op: str  # of the contract: "attention_backward"; or "add", "split", "given"
    value: np.ndarray
    inputs: tuple[str, ...] = ()
    sequence: int | None = None
    inside: bool = False  # an intermediate of an op, not its result
    formula: str = ""
    line: int = 0  # in the source of the implementation; 0: not known
    text: str = ""  # the line's text
    number: int = -1  # its place in the trace

    @property
    def key(self) -> str:
        """Unique in a trace, unlike the name: `blocks.3.attn.pattern#1`."""
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
        raise unknown(name, (record.name for record in self.records))

    def __contains__(self, name: object) -> bool:
        return name in self._by_key

    def find(self, pattern: str) -> list[Record]:
        """The records whose name or key is, or matches, the pattern: `blocks.*.attn.pattern`.
        Raises InputError with the nearest names if there are none."""
        found = [record for record in self.records if matches(record, pattern)]
        if not found:
            raise unknown(pattern, (record.name for record in self.records))
        return found

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
        from minprefix.trace.saved import write

        for r in self.records:
            if r.value.dtype.kind == "c":
                raise InputError(f"{r.key} is complex, which no safetensors file holds: take .real")
        write(Path(directory), [vars(r) for r in self.records], self.about)

    @staticmethod
    def load(directory: str | Path) -> "Trace":
        """Raises InputError for a folder without a trace, a damaged one, and one of another
        version."""
        from minprefix.trace.saved import read

        records, about = read(Path(directory))
        return Trace([Record(**fields) for fields in records], about)


def unknown(name: str, names: Iterable[str]) -> InputError:
    """A sentence for a name that matches nothing, with the nearest names: near as a whole, or in
    the last part alone, for a pattern such as `*.patern`."""
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
    names = (record.name, record.key)
    return any(fnmatch.fnmatchcase(name, p) for p in every for name in names)
