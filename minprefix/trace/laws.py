"""The laws of `minprefix.ops.contract` that one operation of a trace can show."""

from typing import NamedTuple

import numpy as np

from minprefix.ops.contract import Array
from minprefix.trace.record import Record, Trace

#: how far rounding may leave a sum from 0, in units of the last place
ROUNDING = 1e4


class Law(NamedTuple):
    """`off`: how far the sum is from its right value, relative to the sum of the sizes."""

    text: str
    off: float
    holds: bool


def laws(trace: Trace, record: Record) -> list[Law]:
    """The laws at the operation of this record. Laws 5 to 8 compare several runs."""
    if record.op == "layernorm_backward":
        return _of_rows(trace, record, "law 3: each row of {} sums to 0")
    if record.op == "cross_entropy_backward":
        return _of_rows(trace, record, "law 4: each row of {} sums to 0")
    if record.op not in ("attention", "attention_backward"):
        return []
    site = record.name.rpartition(".")[0]
    every = range(len(trace.about["offsets"]) - 1)
    sequences = every if record.sequence is None else [record.sequence]
    return [law for b in sequences for law in _of_attention(trace, record.op, site, b)]


def _of_rows(trace: Trace, record: Record, text: str) -> list[Law]:
    """For the operation's result, which is this record or the first such record after it."""
    after = (r for r in trace.records[record.number :] if r.op == record.op and not r.inside)
    return [_law(text.format(end.key), end.value, -1) for end in [*after][:1]]


def _of_attention(trace: Trace, op: str, site: str, b: int) -> list[Law]:
    of, found = f", sequence {b}", []
    value = {r.key.removeprefix(f"{site}."): r.value for r in trace if r.name.startswith(site)}
    rows = slice(trace.about["offsets"][b], trace.about["offsets"][b + 1])

    def joined(name: str) -> Array:
        """(NH, P+T, hs): the prefix's gradients, then the tokens'."""
        tokens = value[f"d{name}"][rows].swapaxes(0, 1)
        return np.concatenate([value.get(f"dprefix_{name}#{b}", tokens[:, :0]), tokens], axis=1)

    if op == "attention":
        if f"pattern#{b}" in value:
            text = f"each row of pattern sums to 1{of}: law 2 rests on it"
            found.append(_law(text, value[f"pattern#{b}"], -1, 1.0))
        return found
    if "dk" in value:
        text = f"law 1: dk sums to 0 over all keys, prefix and tokens{of}"
        found.append(_law(text, joined("k"), 1))
    if "dv" in value and f"dz_b#{b}" in value:
        text = f"law 2: dv over all values sums to dz over the queries{of}"
        found.append(_law(text, joined("v"), 1, value[f"dz_b#{b}"].sum(axis=1)))
    return found


def _law(text: str, a: Array, axis: int, want: "Array | float" = 0.0) -> Law:
    summed = float(np.abs(a).sum(axis=axis).max(initial=0.0)) or 1.0
    off = float(np.abs(a.sum(axis=axis) - want).max(initial=0.0)) / summed
    return Law(text, off, off <= ROUNDING * np.finfo(a.dtype).eps)
