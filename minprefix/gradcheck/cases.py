"""The inputs on which somebody's own rmsnorm, rope, gqa, ... is compared with the piece of that
name: sizes that differ from each other, and numbers that a mistake cannot hide behind."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from minprefix.ops.contract import Array

Inputs = dict[str, Any]  # by the names of the piece's arguments, in their order

#: piece -> the axes of its inputs and of what it returns; a gradient has those of its input
AXES: dict[str, dict[str, str]] = {
    "softmax": {"x": "N V", "out": "N V"},
    "rmsnorm": {"x": "N C", "gain": "C", "out": "N C"},
    "rope": {"x": "T NH hs", "out": "T NH hs"},
    "rope_interleaved": {"x": "T NH hs", "out": "T NH hs"},
    "swiglu": {"x": "N C", "W_gate": "C F", "W_up": "C F", "W_down": "F C", "out": "N C"},
    "gqa": {"q": "T NH hs", "k": "T NKV hs", "v": "T NKV hs", "z": "T NH hs"},
    "batchnorm": {"x": "N C", "gain": "C", "bias": "C", "out": "N C"},
    "conv1d": {"x": "B in T", "weight": "out in K", "bias": "out", "out": "B out T'"},
    "embedding": {"table": "V C", "out": "B T C"},
    "dropout": {"x": "N C", "out": "N C"},
}


def _normal(**shapes: tuple[int, ...]) -> Inputs:
    rng = np.random.default_rng(sum(map(sum, shapes.values())))
    return {name: rng.normal(size=shape) for name, shape in shapes.items()}


def _softmax(*shape: int, scale: float = 1.0, shift: float = 0.0) -> Inputs:
    return {"x": _normal(x=shape)["x"] * scale + shift}


def _ties() -> Inputs:
    return {"x": np.array([[2.0, 2.0, -1.0, 2.0], [0.0, 0.0, 0.0, 0.0]])}


def _rmsnorm(*shape: int, eps: float = 1e-5, scale: float = 1.0, shift: float = 0.0) -> Inputs:
    a = _normal(x=shape, gain=shape[-1:])
    return {"x": a["x"] * scale + shift, "gain": a["gain"], "eps": eps}


def _zeros(make: Callable[[], Inputs], name: str, where: Any) -> Inputs:
    inputs = make()
    inputs[name][where] = 0.0
    return inputs


def _rope(NH: int, hs: int, positions: list[int], base: float = 10000.0) -> Inputs:
    x = _normal(x=(len(positions), NH, hs))["x"]
    return {"x": x, "positions": np.array(positions), "base": base}


def _swiglu(N: int, C: int, F: int, scale: float = 1.0) -> Inputs:
    a = _normal(x=(N, C), W_gate=(C, F), W_up=(C, F), W_down=(F, C))
    return a | {"W_gate": a["W_gate"] * scale}


def _gqa(T: int, NH: int, NKV: int, hs: int, scale: float = 1.0) -> Inputs:
    a = _normal(q=(T, NH, hs), k=(T, NKV, hs), v=(T, NKV, hs))
    return a | {"q": a["q"] * scale}


def _batchnorm(N: int, C: int, eps: float = 1e-5) -> Inputs:
    return _normal(x=(N, C), gain=(C,), bias=(C,)) | {"eps": eps}


def _conv1d(B: int, n_in: int, T: int, n_out: int, K: int, stride: int, padding: int) -> Inputs:
    a = _normal(x=(B, n_in, T), weight=(n_out, n_in, K), bias=(n_out,))
    return a | {"stride": stride, "padding": padding}


def _embedding(V: int, C: int, tokens: list[list[int]]) -> Inputs:
    return {"tokens": np.array(tokens), "table": _normal(table=(V, C))["table"]}


def _dropout(*shape: int, p: float, kept: float | None = None) -> Inputs:
    """`kept`: the share of True in the mask, where that is not 1 - p."""
    mask = np.random.default_rng(1).random(shape) < (1 - p if kept is None else kept)
    return {"x": _normal(x=shape)["x"], "mask": mask, "p": p}


_TURNS: dict[str, tuple[str, Callable[[], Inputs]]] = {
    "usual": ("positions from 0 on", partial(_rope, 3, 6, [0, 1, 2, 3, 4])),
    "positions": ("positions that do not start at 0, and jump", partial(_rope, 2, 8, [7, 3, 90])),
    "base": ("another base", partial(_rope, 2, 6, [4, 5, 6, 7], base=500.0)),
    "one-pair": ("a head of one pair: only speed 1", partial(_rope, 3, 2, [1, 2])),
    "far": ("position 4000", partial(_rope, 1, 4, [4000, 3999])),
}

#: piece -> case -> why it is there, and what makes it
CASES: dict[str, dict[str, tuple[str, Callable[[], Inputs]]]] = {
    "softmax": {
        "usual": ("rows and columns differ in number", partial(_softmax, 3, 5)),
        "three-axes": ("the last axis, whatever stands before it", partial(_softmax, 2, 3, 4)),
        "far": ("numbers near 1000: exp overflows", partial(_softmax, 3, 5, shift=1000.0)),
        "wide": ("300 columns", partial(_softmax, 2, 300)),
        "ties": ("equal numbers, also for the maximum", _ties),
        "one-column": ("out is 1, dx is 0", partial(_softmax, 3, 1)),
    },
    "rmsnorm": {
        "usual": ("the mean is not 0", partial(_rmsnorm, 5, 7, shift=0.5)),
        "three-axes": ("dgain is summed over all but the last axis", partial(_rmsnorm, 2, 3, 4)),
        "small": ("so small that eps counts", partial(_rmsnorm, 3, 6, eps=1e-3, scale=1e-2)),
        "square": ("any axis fits the shapes", partial(_rmsnorm, 4, 4)),
        "zero-row": ("a row of 0", partial(_zeros, partial(_rmsnorm, 4, 3, eps=0.1), "x", 1)),
        "zero-gain": ("a gain of 0", partial(_zeros, partial(_rmsnorm, 4, 5), "gain", 2)),
        "one-column": ("out is the sign, nearly", partial(_rmsnorm, 3, 1, eps=0.5)),
    },
    "rope": _TURNS,
    "rope_interleaved": _TURNS,
    "swiglu": {
        "usual": ("all sizes differ", partial(_swiglu, 5, 4, 6)),
        "square": ("a transposed matrix fits, too", partial(_swiglu, 3, 3, 3)),
        "steep": ("gates in the hundreds: exp overflows", partial(_swiglu, 4, 3, 5, scale=300.0)),
        "one-row": ("one token", partial(_swiglu, 1, 5, 3)),
        "zero": ("a row of 0: the slope there is 1/2", partial(
            _zeros, partial(_swiglu, 3, 4, 5), "x", 0)),
    },
    "gqa": {
        "usual": ("groups of 3", partial(_gqa, 5, 6, 2, 4)),
        "one-kv-head": ("all heads share one (multi-query)", partial(_gqa, 4, 3, 1, 5)),
        "no-groups": ("as many heads of keys as of queries", partial(_gqa, 3, 2, 2, 4)),
        "square": ("any axis fits the shapes", partial(_gqa, 4, 4, 2, 4)),
        "one-token": ("it sees itself: the pattern is 1", partial(_gqa, 1, 4, 2, 3)),
        "sharp": ("scores so large that few keys count", partial(_gqa, 5, 4, 2, 3, scale=30.0)),
        "long": ("70 tokens: more than a tile", partial(_gqa, 70, 2, 1, 2)),
    },
    "batchnorm": {
        "usual": ("more rows than columns", partial(_batchnorm, 6, 4)),
        "square": ("any axis fits the shapes", partial(_batchnorm, 4, 4)),
        "eps": ("an eps that counts", partial(_batchnorm, 5, 3, eps=0.5)),
        "two-rows": ("the least that has a variance", partial(_batchnorm, 2, 5, eps=0.1)),
        "constant": ("a column without variance", partial(
            _zeros, partial(_batchnorm, 5, 4, eps=0.1), "x", (slice(None), 1))),
        "zero-gain": ("a gain of 0", partial(_zeros, partial(_batchnorm, 5, 4), "gain", 1)),
    },
    "conv1d": {
        "usual": ("padding that keeps the length", partial(_conv1d, 5, 2, 7, 4, 3, 1, 1)),
        "stride": ("windows that overlap by one", partial(_conv1d, 3, 2, 9, 4, 3, 2, 0)),
        "left-over": ("the last numbers are in no window", partial(_conv1d, 2, 3, 8, 2, 3, 3, 0)),
        "holes": ("a stride above the kernel's width", partial(_conv1d, 2, 2, 9, 3, 2, 4, 1)),
        "even": ("an even kernel, padded by more than half", partial(_conv1d, 2, 3, 5, 4, 2, 1, 2)),
        "one-tap": ("a linear layer", partial(_conv1d, 2, 3, 4, 5, 1, 1, 0)),
        "square": ("a transposed kernel fits, too", partial(_conv1d, 3, 3, 6, 3, 3, 1, 1)),
    },
    "embedding": {
        "usual": ("tokens that repeat, and some that do not occur", partial(
            _embedding, 7, 3, [[0, 1, 1, 5], [4, 0, 6, 1]])),
        "one-token": ("the same all over", partial(_embedding, 4, 5, [[3, 3, 3], [3, 3, 3]])),
        "row": ("one sequence of one token", partial(_embedding, 3, 2, [[2]])),
        "wide": ("300 rows", partial(_embedding, 300, 2, [[299, 0, 256], [255, 299, 1]])),
    },
    "dropout": {
        "usual": ("some are dropped", partial(_dropout, 4, 5, p=0.3)),
        "half": ("p = 1 - p", partial(_dropout, 3, 4, p=0.5)),
        "none": ("p = 0 and nothing is dropped", partial(_dropout, 3, 4, p=0.0)),
        "all": ("everything is dropped, by chance", partial(_dropout, 2, 3, p=0.6, kept=0.0)),
        "unlucky": ("fewer are kept than p says", partial(_dropout, 5, 4, p=0.2, kept=0.4)),
    },
}  # fmt: skip

#: cases that every piece has: how the usual one is laid out, and its precision
LAYOUTS = {
    "strided": "arrays that are views, with gaps between their numbers",
    "float32": "single precision in, single precision out",
}


def names(piece: str) -> dict[str, str]:
    """The cases of a piece, and why each is there."""
    return {name: why for name, (why, _) in CASES[piece].items()} | LAYOUTS


def inputs(piece: str, case: str) -> Inputs:
    """New arrays at each call."""
    made = CASES[piece]["usual" if case in LAYOUTS else case][1]()
    if case in LAYOUTS:
        change = {"strided": _strided, "float32": _single}[case]
        made = {k: change(a) if isinstance(a, np.ndarray) else a for k, a in made.items()}
    return made


def dimensions(axes: Mapping[str, str], arrays: Mapping[str, Array]) -> dict[str, float]:
    """The size of each letter, from arrays that have as many axes as letters."""
    found: dict[str, float] = {}
    for name, letters in axes.items():
        a = arrays.get(name)
        if a is not None and a.ndim == len(letters.split()):
            found |= dict(zip(letters.split(), a.shape, strict=True))
    return found


def _strided(a: Array) -> Array:
    """Every second number of a larger array, along the first axis and along the last."""
    room = np.zeros([2 * n for n in a.shape], a.dtype)
    view = room[tuple(slice(1, None, 2) for _ in a.shape)]
    view[...] = a
    return view


def _single(a: Array) -> Array:
    return a.astype(np.float32) if a.dtype.kind == "f" else a
