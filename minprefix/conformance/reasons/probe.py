"""What moves what: an implementation called again with one row of an input changed. This shows a
query that sees a later token, a sequence that sees another one, or an input that is not used."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from minprefix.ops.contract import Array

Inputs = dict[str, Any]

#: at most so many rows are moved, of all inputs together: each costs a call
MOST = 80

#: moved by more than the first of these is moved, by less than the second is not
MOVES, STAYS = 1e-7, 1e-13

#: op -> inputs of its forward that are moved, and the axis of their rows, in the order in which a
#: difference is told
_MOVED: dict[str, dict[str, int]] = {
    "embed": {"wte": 0, "wpe": 0},
    "layernorm": {"x": 0, "gain": 0, "bias": 0},
    "linear": {"x": 0, "bias": 0},
    "gelu": {"x": 0},
    "attention": {"k": 0, "v": 0, "prefix_k": 1, "prefix_v": 1, "q": 0},
}


class _Row(NamedTuple):
    """A row of an input, or of the array of one sequence in a list."""

    name: str
    sequence: int  # -1: no list
    at: int
    axis: int

    def __str__(self) -> str:
        which = f"[{self.sequence}]" if self.sequence >= 0 else ""
        return f"{self.name}{which}[{':, ' * self.axis}{self.at}]"


def influence(
    op: str, inputs: Inputs, right: Callable[[Inputs], Array], mine: Callable[[Inputs], Array]
) -> str | None:
    """A row of the op's result that moves with a row of an input and must not, or else one that
    must and does not. `right`, `mine`: the result (rows first) for given inputs."""
    rows = list(_rows(op, inputs))
    if not 0 < len(rows) <= MOST:
        return None
    before, still = (right(inputs), mine(inputs)), ""
    for row in rows:
        moved = _nudged(inputs, row)
        should, does = (
            _by_how_much(f(moved), old) for f, old in zip((right, mine), before, strict=True)
        )
        for i in np.flatnonzero((does > MOVES) & (should < STAYS)):
            return f"moves in row {i} when {row} does, and must not{_relation(inputs, row, int(i))}"
        for i in np.flatnonzero((should > MOVES) & (does < STAYS))[:1]:
            still = still or f"does not move in row {i} when {row} does, and must"
    return still or None


def _rows(op: str, inputs: Inputs) -> Iterator[_Row]:
    for name, axis in _MOVED.get(op, {}).items():
        a = inputs[name]
        each = list(enumerate(a)) if isinstance(a, list) else [] if a is None else [(-1, a)]
        yield from (_Row(name, b, i, axis) for b, one in each for i in range(one.shape[axis]))


def _nudged(inputs: Inputs, row: _Row) -> Inputs:
    def nudged(a: Array) -> Array:
        new = a.copy()
        place = (slice(None),) * row.axis + (row.at,)
        new[place] += np.random.default_rng(row.at).normal(0, 0.3, new[place].shape)
        return new

    a = inputs[row.name]
    if isinstance(a, list):
        return inputs | {row.name: [nudged(e) if b == row.sequence else e for b, e in enumerate(a)]}
    return inputs | {row.name: nudged(a)}


def _by_how_much(a: Array, before: Array) -> Array:
    """Of each row, relative to the largest number."""
    with np.errstate(all="ignore"):
        change = np.abs(a - before).reshape(len(a), -1).max(axis=1, initial=0.0)
        return np.nan_to_num(change / (np.abs(before).max(initial=0.0) or 1.0))


def _relation(inputs: Inputs, row: _Row, i: int) -> str:
    """How a row of attention's result stands to what moved it."""
    if "offsets" not in inputs:
        return ": rows are independent" if row.axis == 0 and row.name == "x" else ""
    offsets = inputs["offsets"]
    own = int(np.searchsorted(offsets, i, "right")) - 1
    other = row.sequence
    if other < 0:
        other = int(np.searchsorted(offsets, row.at, "right")) - 1
    if other != own:
        return f": sequence {own} sees sequence {other}"
    if row.name == "q":
        return ": it is another query's"
    if row.at > i and row.sequence < 0:
        return f": a query sees a later token of its sequence, {row.at - i} on"
    return ""
