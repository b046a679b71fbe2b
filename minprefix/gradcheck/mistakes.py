"""What the usual mistakes in a piece give, and summands of its formulas, each by its name: the
reason of a wrong array is looked up here."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from minprefix.conformance.diagnosis import relative_error
from minprefix.conformance.fitting import explain
from minprefix.gradcheck import cases, pieces
from minprefix.ops.contract import Array

#: how the names of summands begin
PARTS = ("the part", "the row sum's part")

#: tensor -> the name of a mistake, or of a summand -> the numbers
Named = dict[str, dict[str, Array]]


def softmax(dout: Array, x: Array) -> Named:
    out, _ = pieces.softmax(x)
    each = dout * out
    return {
        "out": {"exp(x), not divided by its sum": np.exp(x)},
        "dx": {
            "dout * out: the row sum is missing": each,
            "dout * out * (1 - out): only the diagonal of the Jacobian is taken": each * (1 - out),
            "what one gets with the row sum along the first axis": each - out * each.sum(axis=0),
            "what one gets with a mean for the row sum": each - out * each.mean(-1, keepdims=True),
            "out - dout, as if a cross-entropy followed": out - dout,
            "the row sum's part, -out * sum(dout * out)": -out * each.sum(-1, keepdims=True),
        },
    }


def rmsnorm(dout: Array, x: Array, gain: Array, eps: float) -> Named:
    _, (xhat, rstd, _) = pieces.rmsnorm(x, gain, eps)
    dxhat, rows = dout * gain, tuple(range(x.ndim - 1))

    def dx(dxhat: Array) -> Array:
        return rstd * (dxhat - xhat * (dxhat * xhat).mean(-1, keepdims=True))

    centred = x - x.mean(-1, keepdims=True)
    layernorm = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps) * gain
    mean = rstd * dxhat.mean(-1, keepdims=True)
    root = np.sqrt((x * x).mean(-1, keepdims=True))
    return {
        "out": {
            "layernorm's: rmsnorm subtracts no mean": layernorm,
            "xhat: the gain is missing": xhat,
            "what one gets without eps": pieces.rmsnorm(x, gain, 0.0)[0],
            "what one gets with eps outside of the root": x * gain / (root + eps),
        },
        "dx": {
            "rstd * dout * gain: the way through the mean of squares is missing": rstd * dxhat,
            "what layernorm gives: rmsnorm subtracts no mean": dx(dxhat) - mean,
            "what one gets without the gain": dx(dout),
            "the part through the mean of squares": dx(dxhat) - rstd * dxhat,
        },
        "dgain": {
            "sum(dout * x): it is xhat that the gain multiplies": (dout * x).sum(rows),
            "sum(dout): xhat is missing": dout.sum(rows),
        },
    }


def _turned(rope: Callable[..., Any], back: Callable[..., Any], other: str, forth: str) -> Any:
    """The mistakes of one convention; `other`, `forth`: the other one's functions."""

    def mistakes(dout: Array, x: Array, positions: Array, base: float) -> Named:
        _, cache = rope(x, positions, base)
        cos, sin = cache
        there = f"what {forth} gives: numbers are paired in the other way"
        rows = np.arange(len(x))
        on, turned = back(dout, (cos, -sin)), back(dout, cache)
        # with an angle of 90 degrees, the first of a pair becomes the second
        first = back(np.ones_like(x), (np.zeros_like(cos), np.ones_like(sin))) > 0
        mixed = np.concatenate([dout[..., ::2], dout[..., 1::2]], axis=-1)
        return {
            "out": {
                there: getattr(pieces, forth)(x, positions, base)[0],
                "x turned back: a sine has the wrong sign": back(x, cache),
                "what one gets with the rows' numbers for the positions": rope(x, rows, base)[0],
                "what one gets with base 10000, whatever base is given": rope(x, positions)[0],
                "what one gets with the square root of the base: the exponent is -2i/hs": rope(
                    x, positions, base**0.5
                )[0],
            },
            "dx": {
                there: getattr(pieces, other)(dout, cache),
                "dout turned on by the angle: the backward turns back": on,
                "dout itself: it is not turned back": dout,
                "what one gets where the second sine has the wrong sign": np.where(
                    first, turned, on
                ),
                "what one gets where the first sine has the wrong sign": np.where(
                    first, on, turned
                ),
                "what one gets where dout is paired as neighbours and joined as halves": back(
                    mixed, cache
                ),
            },
        }

    return mistakes


def swiglu(dout: Array, x: Array, W_gate: Array, W_up: Array, W_down: Array) -> Named:
    _, (*_, gate, up, sigmoid) = pieces.swiglu(x, W_gate, W_up, W_down)
    silu, dinner = gate * sigmoid, dout @ W_down.T
    reshaped = dout @ W_down.reshape(W_down.shape[::-1])
    slope = sigmoid + silu * (1 - sigmoid)
    slopes = {
        "what one gets with sigmoid(u) for silu's slope: u s (1 - s) is missing": sigmoid,
        "what one gets with the sigmoid's slope for silu's": sigmoid * (1 - sigmoid),
    }
    gates = {said: dinner * up * s for said, s in slopes.items()}
    gates["what one gets where dgate is not multiplied by x W_up"] = dinner * slope
    through_gate, through_up = (dinner * up * slope) @ W_gate.T, (dinner * silu) @ W_up.T
    by_gate = "what one gets where dup is multiplied by the gate, not by silu of it"
    return {
        "out": {
            "what one gets where silu is taken of x W_up": pieces.swiglu(x, W_up, W_gate, W_down)[0]
        },
        "dx": {
            "what comes through W_gate alone": through_gate,
            "what comes through W_up alone": through_up,
            "what one gets where W_down is reshaped, not transposed": (reshaped * up * slope)
            @ W_gate.T
            + (reshaped * silu) @ W_up.T,
            by_gate: through_gate + (dinner * gate) @ W_up.T,
            **{said: dgate @ W_gate.T + through_up for said, dgate in gates.items()},
        },
        "dW_gate": {said: x.T @ dgate for said, dgate in gates.items()},
        "dW_up": {by_gate: x.T @ (dinner * gate)},
        "dW_down": {"what one gets with silu alone: x W_up is missing": silu.T @ dout},
    }


def gqa(dz: Array, q: Array, k: Array, v: Array) -> Named:
    _, cache = pieces.gqa(q, k, v)
    _, keys, values, pattern, NKV = cache
    T, NH, hs = q.shape
    first = dz.swapaxes(0, 1)
    dpattern = first @ values.swapaxes(1, 2)
    no_sum = pattern * dpattern / hs**0.5

    def grouped(a: Array) -> Array:
        return a.reshape(NKV, NH // NKV, T, hs)

    def dk(dscores: Array) -> Array:
        return dscores.swapaxes(1, 2) @ q.swapaxes(0, 1)

    each = {
        "dk": dk(pieces.softmax_backward(dpattern, (pattern,)) / hs**0.5),
        "dv": pattern.swapaxes(1, 2) @ first,
    }
    found: Named = {
        name: {
            "what the first head of each group sends: all of them send": grouped(a)[:, 0],
            "what the last head of each group sends: all of them send": grouped(a)[:, -1],
            "a mean over the heads of a group: it is their sum": grouped(a).mean(axis=1),
            "what one gets where head h is of group h % NKV, not h // (NH/NKV)": a.reshape(
                NH // NKV, NKV, T, hs
            ).sum(axis=0),
        }
        for name, a in each.items()
    }
    missing = "what one gets without the softmax's row sum"
    found["dk"][missing] = grouped(dk(no_sum)).sum(axis=1)
    found = {name: {s: a.swapaxes(0, 1) for s, a in of.items()} for name, of in found.items()}
    found["dq"] = {missing: (no_sum @ keys).swapaxes(0, 1)}
    untransposed = grouped(pattern @ first).sum(axis=1).swapaxes(0, 1)
    found["dv"]["what one gets where the pattern is not transposed"] = untransposed
    tiled = pieces.gqa(q, *(np.tile(a, (1, NH // NKV, 1)) for a in (k, v)))[0]
    scores = q.swapaxes(0, 1) @ keys.swapaxes(1, 2) / hs**0.5
    seen = (pieces.softmax(scores)[0] @ values).swapaxes(0, 1)
    return found | {
        "z": {
            "what one gets without the causal mask": seen,
            "what one gets where head h looks at keys h % NKV, not h // (NH/NKV)": tiled,
            "what one gets without 1/sqrt(hs)": pieces.gqa(q * hs**0.5, k, v)[0],
        }
    }


def batchnorm(dout: Array, x: Array, gain: Array, bias: Array, eps: float) -> Named:
    _, (xhat, rstd, _) = pieces.batchnorm(x, gain, bias, eps)
    dxhat = dout * gain
    mean, through = dxhat.mean(axis=0), xhat * (dxhat * xhat).mean(axis=0)
    other = dxhat.mean(axis=1, keepdims=True)
    unbiased = (x - x.mean(axis=0)) / np.sqrt(x.var(axis=0, ddof=1) + eps) * gain + bias
    return {
        "out": {
            "what one gets with the variance over N - 1": unbiased,
            "what one gets without eps": pieces.batchnorm(x, gain, bias, 0.0)[0],
        },
        "dx": {
            "rstd * dout * gain: mean and variance are taken for constants": rstd * dxhat,
            "what one gets without the way through the mean": rstd * (dxhat - through),
            "what one gets without the way through the variance": rstd * (dxhat - mean),
            "what one gets with the mean along the other axis": rstd * (dxhat - other - through),
        },
        "dgain": {"sum(dout * x): it is xhat that the gain multiplies": (dout * x).sum(axis=0)},
    }


def conv1d(dout: Array, x: Array, weight: Array, bias: Array, stride: int, padding: int) -> Named:
    turned = weight[:, :, ::-1]
    out, cache = pieces.conv1d(x, weight, bias, stride, padding)
    _, there = pieces.conv1d(x, turned, bias, stride, padding)
    last: Array = np.zeros(cache[2])  # where windows overlap, the last one overwrites
    for k in range(weight.shape[2]):
        part = np.einsum("bot,oc->bct", dout, weight[:, :, k])
        last[:, :, k : k + stride * out.shape[2] : stride][:, :, : out.shape[2]] = part
    return {
        "out": {
            "what one gets with the kernel turned round (a convolution proper)": pieces.conv1d(
                x, turned, bias, stride, padding
            )[0]
        },
        "dx": {
            "what one gets with the kernel turned round": pieces.conv1d_backward(dout, there)[0],
            "what one gets where overlapping windows overwrite each other: they add up": last[
                :, :, padding : last.shape[2] - padding
            ],
        },
    }


def embedding(dout: Array, tokens: Array, table: Array) -> Named:
    once, shifted = np.zeros_like(table), np.zeros_like(table)
    np.add.at(shifted, tokens - 1, dout)
    once[tokens] = dout
    counts = np.bincount(tokens.ravel(), minlength=len(table))[:, None]
    right = pieces.embedding_backward(dout, (tokens, table))
    return {
        "dtable": {
            "what one gets where a token that repeats counts once (np.add.at adds up)": once,
            "a mean over the places of a token: it is their sum": right / np.maximum(counts, 1),
            "what one gets with tokens that count from 1": shifted,
        }
    }


def dropout(dout: Array, x: Array, mask: Array, p: float) -> Named:
    def of(a: Array) -> dict[str, Array]:
        return {
            "what one gets without 1/(1 - p)": a * mask,
            "what one gets without the mask": a / (1 - p),
            "what one gets with 1/(1 - p) twice": a * mask / (1 - p) ** 2,
            "what one gets with 1 - p for 1/(1 - p)": a * mask * (1 - p),
            "what one gets with p and 1 - p swapped": a * mask / p if p else a,
            "what one gets with the mask inverted: True keeps": a * ~mask / (1 - p),
        }

    return {"out": of(x), "dx": of(dout)}


OF: dict[str, Callable[..., Named]] = {
    "softmax": softmax,
    "rmsnorm": rmsnorm,
    "rope": _turned(
        pieces.rope, pieces.rope_backward, "rope_interleaved_backward", "rope_interleaved"
    ),
    "rope_interleaved": _turned(
        pieces.rope_interleaved, pieces.rope_interleaved_backward, "rope_backward", "rope"
    ),
    "swiglu": swiglu,
    "gqa": gqa,
    "batchnorm": batchnorm,
    "conv1d": conv1d,
    "embedding": embedding,
    "dropout": dropout,
}


def mistake(
    piece: str,
    inputs: dict[str, Any],
    dout: Array,
    tensor: str,
    got: Array,
    want: Array,
    close: float,
) -> str:
    """The usual mistake that gives these very numbers, without its subject ("is dout * out: the row
    sum is missing"), or "". `inputs`: by the piece's names, in double precision."""
    for said, a in OF[piece](dout, **inputs).get(tensor, {}).items():
        if a.shape == got.shape and relative_error(got, a) < close < relative_error(want, a):
            return f"is {said}"
    return ""


def summand(
    piece: str,
    inputs: dict[str, Any],
    dout: Array,
    tensor: str,
    got: Array,
    want: Array,
    close: float,
    dimensions: Mapping[str, float],
) -> str:
    """The part of the formula that is wrong, where one part explains it all, or "". `dimensions`:
    sizes by their letters."""
    named = OF[piece](dout, **inputs).get(tensor, {})
    parts = {said: a for said, a in named.items() if said.startswith(PARTS)}
    letters = cases.AXES[piece].get(tensor.removeprefix("d"), "").split()
    return next(iter(explain(got, want, parts, letters, dimensions, close)), "")
