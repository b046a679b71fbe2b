"""The summands of each formula of the ops, with their signs, for `fitting.explain`."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from minprefix.conformance.reasons.wrong import row_slices
from minprefix.ops import reference
from minprefix.ops.contract import Array

Terms = dict[str, Array]


def _embed(i: Mapping[str, Any], cache: Any) -> dict[str, Terms]:
    tokens, positions = i["wte"][i["tokens"]], i["wpe"][i["positions"]]
    return {"x": {"the token embeddings": tokens, "the position embeddings": positions}}


def _layernorm(i: Mapping[str, Any], cache: Any) -> dict[str, Terms]:
    xhat, rstd, gain = cache
    dxhat, dout = i["dout"] * gain, i["dout"]
    mean = np.broadcast_to(dxhat.mean(axis=-1, keepdims=True), dxhat.shape)
    along_xhat = xhat * (dxhat * xhat).mean(axis=-1, keepdims=True)
    return {
        "out": {
            "xhat gain": xhat * gain,
            "the bias": i["bias"],
            "xhat": xhat,
            "the gain": gain,
            "x": i["x"],
        },
        "dx": {
            "the term of dxhat itself (rstd dxhat)": rstd * dxhat,
            "the term along 1 (- rstd mean(dxhat))": -rstd * mean,
            "the term along xhat (- rstd xhat mean(dxhat xhat))": -rstd * along_xhat,
            "dout": dout,
            "dxhat": dxhat,
            "xhat": xhat,
            "the gain": gain,
        },
        "dgain": {
            "the sum of dout": dout.sum(axis=0),
            "the sum of dout x": (dout * i["x"]).sum(axis=0),
        },
        "dbias": {"dgain": (dout * xhat).sum(axis=0)},
    }


def _linear(i: Mapping[str, Any], cache: Any) -> dict[str, Terms]:
    bias = {} if i["bias"] is None else {"the bias": i["bias"]}
    return {"out": {"x W": i["x"] @ i["weight"]} | bias}


def _gelu(i: Mapping[str, Any], cache: Any) -> dict[str, Terms]:
    x, tanh = cache
    outer = i["dout"] * 0.5 * x * (1 - tanh * tanh) * reference.SQRT_2_OVER_PI
    return {
        "out": {"x / 2": x / 2, "x/2 tanh(u)": x / 2 * tanh},
        "dx": {
            "the first term, dout/2 (1 + tanh u)": i["dout"] * 0.5 * (1 + tanh),
            "dout x/2 tanh' sqrt(2/pi)": outer,
            "dout x/2 tanh' sqrt(2/pi) 3 * 0.044715 x^2": outer * 3 * 0.044715 * x * x,
            "dout": i["dout"],
        },
    }


def _attention(i: Mapping[str, Any], cache: Any) -> dict[str, Terms]:
    """Of each tensor the parts that the prefix, the tokens and the row sum have in it."""
    rows = row_slices(i["offsets"])
    found: dict[str, Terms] = {name: {} for name in ("z", "dq", "dk", "dv")}
    joined: dict[tuple[str, str], list[Array]] = {}
    for b, (s, pattern) in enumerate(zip(rows, cache.pattern, strict=True)):
        q, dz = (i[n][s].swapaxes(0, 1) for n in ("q", "dz"))  # (NH, T, hs)
        keys, values = (
            np.concatenate([i[f"prefix_{n}"][b], i[n][s].swapaxes(0, 1)], axis=1) for n in "kv"
        )
        P, hs = i["prefix_k"][b].shape[1], q.shape[2]
        dpattern = dz @ values.swapaxes(1, 2)
        direct = pattern * dpattern
        summed = -pattern * direct.sum(axis=-1, keepdims=True)
        parts = {
            ("z", "the prefix's part"): pattern[..., :P] @ values[:, :P],
            ("z", "the tokens' part"): pattern[..., P:] @ values[:, P:],
            ("dq", "the prefix's part"): (direct + summed)[..., :P] @ keys[:, :P] / hs**0.5,
            ("dq", "the tokens' part"): (direct + summed)[..., P:] @ keys[:, P:] / hs**0.5,
            ("dq", "the row sum's part"): summed @ keys / hs**0.5,
            ("dk", "the row sum's part"): (summed.swapaxes(1, 2) @ q / hs**0.5)[:, P:],
        }
        for key, part in parts.items():
            joined.setdefault(key, []).append(part.swapaxes(0, 1))
        found[f"dprefix_k[{b}]"] = {
            "the row sum's part": (summed.swapaxes(1, 2) @ q / hs**0.5)[:, :P]
        }
    for (name, said), each in joined.items():
        found[name][said] = np.concatenate(each)
    found["z"] |= {name: i[name] for name in "qkv"}
    return found


def _cross_entropy(i: Mapping[str, Any], cache: Any) -> dict[str, Terms]:
    probs, targets, weights = cache
    one_hot = np.arange(probs.shape[1]) == targets[:, None]
    return {
        "dlogits": {
            "the weighted probabilities": weights[:, None] * probs,
            "the weighted target (-1 at the target)": -weights[:, None] * one_hot,
            "the probabilities": probs,
            "the target's 1": one_hot.astype(float),
        }
    }


#: op -> of its inputs and the reference's cache, tensor -> what it is called -> the summand
TERMS: dict[str, Callable[[Mapping[str, Any], Any], dict[str, Terms]]] = {
    "embed": _embed,
    "layernorm": _layernorm,
    "linear": _linear,
    "gelu": _gelu,
    "attention": _attention,
    "cross_entropy": _cross_entropy,
}
