"""The numbers of a page: what of each tensor is shown, packed.

A number keeps 3 significant digits, which float16 holds exactly once a power of two is taken out of
each tensor.
"""

import base64
import hashlib
import re
from typing import TYPE_CHECKING, Any

import numpy as np

from minprefix.trace.wiring import without_part

if TYPE_CHECKING:
    from minprefix.batch import Batch
    from minprefix.trace.record import Record, Trace

#: numbers on a page, or so many for each record; 2 bytes each and a third more in base64 keep the
#: file of a small model under 5 MB
MOST_NUMBERS, OF_A_RECORD = 1_600_000, 4_500
#: of the logits of a row: its target, and so many that the model finds likeliest
LIKELIEST = 12

#: the axes of values whose source line has no shape comment
_AXES = {
    "split": ("N", "NH", "hs"),
    "given": ("NH", "P", "hs"),
    "join": ("N", "3C"),
    "linear": ("N", "out"),
    "gelu": ("N", "F"),
    "gelu_backward": ("N", "F"),
    "linear_backward_params": ("out",),
    "attention": ("NH", "T", "P+T"),
}


class Values:
    """The part of each tensor that is shown, packed; equal parts are kept once."""

    def __init__(self, batch: "Batch", trace: "Trace") -> None:
        self.batch = batch
        self.packed: list[list[Any]] = []
        self.picked: dict[str, list[list[int]]] = {}  # first row of a part -> ids, for each row
        self.words: set[int] = set()  # tokens that are shown by their text
        self._at: dict[bytes, int] = {}
        for record in trace:
            if without_part(record.name) == "logits":
                self._pick(record)
        self._largest = self._caps(trace)

    def _pick(self, record: "Record") -> None:
        """Choose the same tokens for the logits and for all that is computed from them."""
        start = first_row(record)
        targets = self.batch.targets[start:][: len(record.value)]
        ids = []
        for row, target in zip(record.value, targets, strict=True):
            best = np.argsort(-row, kind="stable")[: LIKELIEST + 1].tolist()
            ids.append([int(target), *[i for i in best if i != target][:LIKELIEST]])
        self.picked[str(start)] = ids
        self.words |= {i for row in ids for i in row}

    def _caps(self, trace: "Trace") -> dict[bool, int]:
        """The size of the largest tensor that is shown whole: one for attention and the prefix
        (True), one for the others, which are cut first."""
        sizes: dict[bool, list[int]] = {True: [1], False: [1]}
        for record in trace:
            if (axes := axes_of(record)) != ("M", "V"):
                sizes[_first(axes)].append(record.value.size)
        room, caps = max(MOST_NUMBERS, OF_A_RECORD * len(trace)), {}
        for first in (True, False):
            cap = max(sizes[first])
            while cap > 256 and np.minimum(sizes[first], cap).sum() > room:
                cap //= 2
            caps[first] = cap
            room -= int(np.minimum(sizes[first], cap).sum())
        return caps

    def of(self, record: "Record") -> dict[str, Any]:
        """The entries of a record that say what to draw."""
        a, axes, start = np.asarray(record.value, np.float64), axes_of(record), first_row(record)
        more: dict[str, Any] = {"from": start} if start else {}
        if axes == ("M", "V"):
            more["top"] = str(start)
            a = np.take_along_axis(a, np.array(self.picked[str(start)]), axis=1)
        elif record.name == "embed.dwte":
            rows = np.unique(self.batch.tokens)
            a, more["ids"] = a[rows], rows.tolist()
            self.words |= set(rows.tolist())
        if axes[1:2] == ("NH",):  # (N, NH, hs) is shown head by head
            a = a.swapaxes(0, 1)
        whole = a.shape
        while a.size > self._largest[_first(axes)]:
            axis = int(np.argmax(a.shape))
            a = a.take(range(-(-a.shape[axis] // 2)), axis=axis)
        drawn = a.reshape((1,) * (3 - a.ndim) + a.shape)
        if a.shape != whole:
            more["cut"] = True
        more |= {"shape": list(record.shape), "axes": list(axes), "drawn": list(drawn.shape)}
        return more | {"value": self._pack(drawn)}

    def _pack(self, a: np.ndarray) -> int:
        half, power = pack(a)
        data = half.tobytes()
        key = hashlib.sha256(data + bytes(str(power), "ascii")).digest()
        if key not in self._at:
            self._at[key] = len(self.packed)
            self.packed.append([power, base64.b64encode(data).decode()])
        return self._at[key]


def pack(a: np.ndarray) -> tuple[np.ndarray, int]:
    """-> half, power: float16 such that half * 2**power is `a` to 3 significant digits.

    A number under 2**-29 of the largest has fewer, and never becomes 0: it is then a subnormal one,
    which the page shows as "nearly 0".
    """
    finite = np.isfinite(a) & (a != 0)
    size = np.abs(np.where(finite, a, 1.0)).astype(np.float64)
    with np.errstate(over="ignore"):
        step = 10.0 ** (np.floor(np.log10(size)) - 2)
    rounded = np.where(finite & (step > 0), np.round(a / np.where(step > 0, step, 1)) * step, a)
    largest = np.abs(rounded[finite]).max(initial=0)
    power = int(np.ceil(np.log2(largest))) - 15 if largest else 0
    half = np.ldexp(rounded, -power).astype("<f2")
    tiny = np.copysign(np.float16(2.0**-24), a).astype("<f2")
    return np.where((half == 0) & (a != 0), tiny, half).astype("<f2"), power


def _first(axes: tuple[str, ...]) -> bool:
    """Whether it is of attention or of the prefix: these are cut last."""
    return "P" in axes or axes[-1:] == ("P+T",)


def first_row(record: "Record") -> int:
    """Where in the rows of the logits a record begins: they come in parts."""
    found = re.search(r"\.from_(\d+)", record.name)
    return int(found[1]) if found else 0


def axes_of(record: "Record") -> tuple[str, ...]:
    """The symbol of each axis, from the shape comment of its line: ("NH", "T", "P+T")."""
    said = re.search(r"#.*?\(([^()]*)\)", record.text)
    axes = tuple(re.findall(r"[^,\s]+", said[1])) if said else ()
    ndim = record.value.ndim
    if without_part(record.name) in ("head.out", "logits"):
        return ("M", "V")
    guesses = (axes, _AXES.get(record.op, ()), ("N", "C"), ("C",))
    return next((guess for guess in guesses if len(guess) == ndim), ("",) * ndim)
