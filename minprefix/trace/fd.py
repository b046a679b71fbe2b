"""Is an entry of a gradient right? A central difference tells: move the entry of the value that it
is the gradient of, run the forward again, and look at the loss, all in float64 and in the
reference's own text.

The gradient `blocks.2.attn.dscores` belongs to the value `blocks.2.attn.scores`. `Nudged` moves one
entry of that value and nothing else, by writing into it when it is made: a tracer sees the very
array with which the forward goes on.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np

from minprefix import gpt2
from minprefix.batch import Batch
from minprefix.errors import InputError, counted
from minprefix.model import GPT2, loss, loss_backward, needed
from minprefix.ops.contract import Array
from minprefix.prefix import Prefix, Prefixes
from minprefix.trace.record import Record, Trace, unknown
from minprefix.trace.tracer import Arrays, Tracer
from minprefix.trace.wiring import Wiring

Index = tuple[int, ...]
Kind = TypeVar("Kind", bound=Tracer)

#: the step, relative to the root mean square of the tensor that is moved: differences over one and
#: over two steps cancel each other's error of second order, and rounding stays small
STEP = 1e-3
#: the rounding of the loss, relative to it
ROUNDING = 64 * float(np.finfo(np.float64).eps)
#: the error that a right central difference may have, relative to the gradient
TOLERANCE = 1e-6


def _d(name: str) -> str:
    """blocks.0.attn.q -> blocks.0.attn.dq"""
    above, dot, last = name.rpartition(".")
    return f"{above}{dot}d{last}"


class Difference(NamedTuple):
    """A central difference of the loss, and the backward's number beside it."""

    moved: str  # a value of the forward, a weight, or an op's argument
    entry: Index  # the entry of it that was moved
    step: float
    numeric: float
    analytic: float | None  # None where no line of the backward computes it
    resolves: float  # a smaller error cannot be seen: the loss is rounded, the step is finite

    @property
    def apart(self) -> float:
        return abs(self.numeric - (np.nan if self.analytic is None else self.analytic))

    @property
    def agrees(self) -> bool:
        return self.apart <= self.resolves + TOLERANCE * abs(self.numeric)


class Nudged(Tracer):
    """Keeps nothing, and moves an entry of the value `key` by `part` of the value's size."""

    key: str = ""
    entry: Index = ()
    part: float = 0.0
    scale: float | None = None  # that size; None until the value has been made

    def _keep(self, record: Record) -> None:
        if record.key == self.key and isinstance(record.value, np.ndarray):  # not the loss
            self.scale = _move(record.value, self.entry, self.part)
        super()._keep(record)

    def layernorm(self, x: Array, gain: Array, bias: Array, eps: float) -> tuple[Array, Any]:
        if self.key == f"{self._of_weight(gain).name}.x":
            x = x.copy()  # the residual stream itself stays as it is
            self.scale = _move(x, self.entry, self.part)
        return super().layernorm(x, gain, bias, eps)

    def attention(
        self, q: Array, k: Array, v: Array, prefix_k: Arrays, prefix_v: Arrays, offsets: Array
    ) -> tuple[Array, Any]:
        own_k, own_v = [a.copy() for a in prefix_k], [a.copy() for a in prefix_v]
        return super().attention(q, k, v, own_k, own_v, offsets)  # sequences may share a prefix


def _move(a: Array, index: Index, part: float) -> float:
    """Write into a -> the root mean square that it had, its size."""
    size = float(np.sqrt((a * a).mean())) or 1.0
    a[index] += part * size
    return size


class Differences:
    """Central differences of the loss of one batch. `text`: the source text of an implementation
    (`Tracer.of_text`), instead of the reference."""

    def __init__(
        self,
        model: GPT2,
        batch: Batch,
        prefix: Prefixes = None,
        need: Literal["prefix", "all"] = "prefix",
        text: str | None = None,
    ) -> None:
        self._model, self.batch, self.need, self.text = model, batch, need, text
        self.prefix: Prefix | list[Prefix | None] | None
        if prefix is None or isinstance(prefix, Prefix):
            self.prefix = _double(prefix)
        else:
            self.prefix = [_double(p) for p in prefix]
        self._run = Trace([])  # the last run, with the records that were asked for

    @cached_property
    def model(self) -> GPT2:
        """In float64."""
        model = self._model
        weights = {n: a.astype(np.float64, copy=False) for n, a in model.weights.items()}
        return GPT2(model.config, weights, model.tokenizer, model.name)

    def at(self, key: str, index: Index) -> Difference:
        """For entry `index` of a gradient, or of a value of the forward. Raises InputError for a
        record that is neither, and for an index outside it."""
        record = self._record(key)
        index = inside(record, index)
        moved, there, analytic = key, index, self._gradient(record, index)
        if record.direction == "backward":
            (moved, there), analytic = self._belongs(record, index), float(record.value[index])
        runs = [self._loss(moved, there, n * STEP, key) for n in (-2, -1, 1, 2)]
        (a, b, c, d), step = (loss for loss, _ in runs), STEP * runs[0][1]
        near, far = (c - b) / (2 * step), (d - a) / (4 * step)
        resolves = ROUNDING * abs(b) / step + 0.01 * abs(near - far)
        return Difference(moved, there, step, (4 * near - far) / 3, analytic, resolves)

    def _record(self, key: str) -> Record:
        """In float64."""
        if key not in self._run:
            tracer = self._tracer(Tracer, self.model, (key, _d(key)))
            need = needed(self.model, self.need)
            loss_backward(self.model, self.prefix, self.batch, "mean", tracer, need)
            if key not in tracer.calls:
                raise unknown(key, tracer.calls)
            self._run = Trace(tracer.kept())
        return self._run[key]

    def _gradient(self, record: Record, index: Index) -> float | None:
        """The backward's gradient of a value of the forward, if it computes one."""
        key = _d(record.key)
        if key not in self._run or self._run[key].value.size != record.value.size:
            return None
        return float(self._run[key].value.reshape(record.shape)[index])

    def _belongs(self, record: Record, index: Index) -> tuple[str, Index]:
        """The value or weight, and the entry in it, that an entry of a gradient belongs to."""
        name, _, part = record.name.partition(".from_")  # logits that come in parts
        site, dot, last = name.rpartition(".")
        if not last.startswith("d"):
            raise _no_gradient(record.key)
        config, value = self.model.config, f"{site}{dot}{last[1:]}"
        start = 0 if record.sequence is None else int(self.batch.offsets[record.sequence])
        weight = Wiring(config.n_layer, ["lm_head.weight"]).weight_of.get(record.name)
        if site == "head":
            if len(self.batch.targets) > gpt2.HEAD_ROWS or weight is None:
                said = "the head has no bias" if weight is None else "it covers some of the rows"
                raise InputError(f"fd can move nothing whose gradient is {record.key}: {said}")
            return weight, index[::-1]  # the model's is (V, C)
        if weight is not None:
            return weight, index
        if last == "dx":
            return f"{site}.x", index
        if name == "ln_f.dout":
            return "ln_f.out", (index[0] + int(part or 0), *index[1:])
        if last == "dz":
            top = site == f"blocks.{config.n_layer - 1}.attn"
            row = int(self.batch.rows[index[0]]) if top else index[0]
            return value, (row, *divmod(index[1], config.head_size))
        if last == "dz_b":
            head, t, j = index
            return f"{site}.z", (start + t, head, j)
        if last in ("dq", "dk", "dv"):
            return value, (start + index[0], *index[1:])
        if record.sequence is not None:
            value += f"#{record.sequence}"
        return f"{value}.from_{part}" if part else value, index

    def _loss(self, moved: str, index: Index, part: float, key: str) -> tuple[float, float]:
        """The loss of a forward with one entry moved, and the size of the moved tensor."""
        weights = dict(self.model.weights)
        weights.setdefault("lm_head.weight", weights["wte.weight"])  # tied: here they move apart
        if moved in weights:
            weights[moved] = weights[moved].copy()
            size = _move(weights[moved], index, part)
            model = GPT2(self.model.config, weights, self.model.tokenizer, self.model.name)
            tracer = self._tracer(Tracer, model, ())
            return loss(model, self.batch, self.prefix, ops=tracer), size
        nudged = self._tracer(Nudged, self.model, ())
        nudged.key, nudged.entry, nudged.part = moved, index, part
        value = loss(self.model, self.batch, self.prefix, ops=nudged)
        if nudged.scale is None:
            raise _no_gradient(key)
        return value, nudged.scale

    def _tracer(self, kind: type[Kind], model: GPT2, names: Sequence[str]) -> Kind:
        if self.text is None:
            return kind(model, names=names)
        return kind.of_text(self.text, model, names=names)


def inside(record: Record, index: Index) -> Index:
    """The index with all its numbers counted from the front. Raises InputError if it does not name
    one entry of the record."""
    shape = record.shape
    within = all(-n <= i < n for i, n in zip(index, shape, strict=False))
    if len(index) != len(shape) or not within:
        raise InputError(
            f"{list(index)} is no entry of {record.key} {shape}: give "
            f"{counted(len(shape), 'number')}, each below its size"
        )
    return tuple(i % n for i, n in zip(index, shape, strict=True))


def _no_gradient(key: str) -> InputError:
    return InputError(
        f"{key} is not the gradient of a value of the forward, but a step on the way to one: ask "
        "at a gradient, such as dscores or dprefix_k"
    )


def _double(prefix: Prefix | None) -> Prefix | None:
    if prefix is None:
        return None
    return prefix.like(prefix.kv.astype(np.float64))
