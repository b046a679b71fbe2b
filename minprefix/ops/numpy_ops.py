"""The contract, fast: the formulas of `reference`, in place and without joining prefix and tokens.

Read `reference` first. Where a line differs from it, it saves a pass over memory; the answers are
the same to rounding. Floating-point arrays only: for complex ones there is `reference`.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from minprefix.ops.contract import (
    Array,
    AttentionCache,
    AttentionGrads,
    CrossEntropyCache,
    GeluCache,
    LayernormCache,
)
from minprefix.ops.reference import (
    SQRT_2_OVER_PI,
    embed,
    embed_backward_params,
    layernorm_backward_params,
    linear_backward,
    linear_backward_params,
)

__all__ = [
    "attention",
    "attention_backward",
    "cross_entropy",
    "cross_entropy_backward",
    "embed",
    "embed_backward_params",
    "gelu",
    "gelu_backward",
    "layernorm",
    "layernorm_backward",
    "layernorm_backward_params",
    "linear",
    "linear_backward",
    "linear_backward_params",
]


def layernorm(x: Array, gain: Array, bias: Array, eps: float) -> tuple[Array, LayernormCache]:
    xhat = x - x.mean(axis=-1, keepdims=True)  # (N, C)
    rstd = np.einsum("nc,nc->n", xhat, xhat)[:, None]  # (N, 1)
    rstd /= x.shape[-1]
    rstd += eps
    np.sqrt(rstd, out=rstd)
    np.reciprocal(rstd, out=rstd)
    xhat *= rstd
    out = xhat * gain
    out += bias
    return out, LayernormCache(xhat, rstd, gain)


def layernorm_backward(dout: Array, cache: LayernormCache) -> Array:
    xhat, rstd, gain = cache
    C = xhat.shape[-1]
    dx = np.multiply(dout, gain, out=dout)  # (N, C)  dxhat, in the place of dout
    mean_dxhat_xhat = np.einsum("nc,nc->n", dx, xhat)[:, None] / C  # (N, 1)
    dx -= dx.mean(axis=-1, keepdims=True)
    dx -= xhat * mean_dxhat_xhat
    dx *= rstd
    return dx


def linear(x: Array, weight: Array, bias: Array | None) -> Array:
    out = x @ weight  # (N, out)
    if bias is not None:
        out += bias
    return out


def gelu(x: Array) -> tuple[Array, GeluCache]:
    tanh = x * x  # (N, F)
    tanh *= 0.044715
    tanh += 1
    tanh *= x
    tanh *= SQRT_2_OVER_PI
    np.tanh(tanh, out=tanh)
    out = tanh + 1
    out *= x
    out *= 0.5
    return out, GeluCache(x, tanh)


def gelu_backward(dout: Array, cache: GeluCache) -> Array:
    x, tanh = cache
    du_dx = x * x  # (N, F)
    du_dx *= 3 * 0.044715 * SQRT_2_OVER_PI
    du_dx += SQRT_2_OVER_PI
    slope = tanh * tanh  # (N, F)
    np.subtract(1, slope, out=slope)
    slope *= du_dx
    slope *= x
    slope += tanh
    slope += 1
    slope *= 0.5
    dout *= slope
    return dout


def _refuse_complex(dtype: np.dtype) -> None:
    """The largest of complex numbers is no constant that cancels: the answer would be wrong."""
    if dtype.kind == "c":
        raise TypeError(f"the numpy operations take no {dtype}: use ops='reference'")


@lru_cache(maxsize=64)
def _hidden(T: int, dtype: np.dtype) -> Array:
    """(T, T): -inf where a token lies in a query's future, else 0. A prefix slot is never
    hidden."""
    mask = np.triu(np.full((T, T), -np.inf, dtype), 1)
    mask.flags.writeable = False  # it is shared by every call
    return mask


def attention(
    q: Array,
    k: Array,
    v: Array,
    prefix_k: Sequence[Array],
    prefix_v: Sequence[Array],
    offsets: Array,
) -> tuple[Array, AttentionCache]:
    N, NH, hs = q.shape
    dtype = np.result_type(q, *prefix_k)
    _refuse_complex(dtype)
    z = np.empty((N, NH, hs), dtype)
    patterns = []
    for b in range(len(offsets) - 1):
        rows = slice(offsets[b], offsets[b + 1])
        q_b, k_b, v_b = (a[rows].swapaxes(0, 1) for a in (q, k, v))  # (NH, T, hs) each
        T, P = q_b.shape[1], prefix_k[b].shape[1]
        pattern = np.empty((NH, T, P + T), dtype)  # the scores first, then what becomes of them
        np.matmul(q_b, prefix_k[b].swapaxes(1, 2), out=pattern[:, :, :P])
        np.matmul(q_b, k_b.swapaxes(1, 2), out=pattern[:, :, P:])
        pattern *= hs**-0.5
        if T > 1:
            pattern[:, :, P:] += _hidden(T, dtype)
        pattern -= pattern.max(axis=-1, keepdims=True)
        np.exp(pattern, out=pattern)
        pattern /= pattern.sum(axis=-1, keepdims=True)
        z_b = pattern[:, :, P:] @ v_b  # (NH, T, hs)
        if P:
            z_b += pattern[:, :, :P] @ prefix_v[b]
        z[rows] = z_b.swapaxes(0, 1)
        patterns.append(pattern)
    return z, AttentionCache(q, k, v, prefix_k, prefix_v, offsets, patterns)


def attention_backward(dz: Array, cache: AttentionCache) -> AttentionGrads:
    q, k, v, prefix_k, prefix_v, offsets, patterns = cache
    dq, dk, dv = (np.empty(q.shape, dz.dtype) for _ in range(3))  # (N, NH, hs) each
    dprefix_k, dprefix_v = [], []
    for b, pattern in enumerate(patterns):
        rows = slice(offsets[b], offsets[b + 1])
        q_b, k_b, v_b, dz_b = (a[rows].swapaxes(0, 1) for a in (q, k, v, dz))  # (NH, T, hs) each
        P, hs = prefix_k[b].shape[1], q_b.shape[2]
        # z = pattern @ values
        dvalues = pattern.swapaxes(1, 2) @ dz_b  # (NH, P+T, hs)
        dscores = np.empty_like(pattern)  # (NH, T, P+T)  dpattern first, then what becomes of it
        np.matmul(dz_b, prefix_v[b].swapaxes(1, 2), out=dscores[:, :, :P])
        np.matmul(dz_b, v_b.swapaxes(1, 2), out=dscores[:, :, P:])
        # pattern = softmax(scores), scores = q @ keys^T / sqrt(hs)
        dscores -= np.einsum("hts,hts->ht", dscores, pattern)[:, :, None]
        dscores *= pattern
        dscores *= hs**-0.5
        dq_b = dscores[:, :, P:] @ k_b  # (NH, T, hs)
        if P:
            dq_b += dscores[:, :, :P] @ prefix_k[b]
        dkeys = dscores.swapaxes(1, 2) @ q_b  # (NH, P+T, hs)
        dprefix_k.append(dkeys[:, :P])
        dprefix_v.append(dvalues[:, :P])
        dq[rows] = dq_b.swapaxes(0, 1)
        dk[rows] = dkeys[:, P:].swapaxes(0, 1)
        dv[rows] = dvalues[:, P:].swapaxes(0, 1)
    return AttentionGrads(dq, dk, dv, dprefix_k, dprefix_v)


def cross_entropy(
    logits: Array, targets: Array, weights: Array
) -> tuple[np.generic, CrossEntropyCache]:
    _refuse_complex(logits.dtype)
    rows = np.arange(len(targets))
    logits -= logits.max(axis=-1, keepdims=True)  # (M, V)
    nll = -logits[rows, targets]  # (M,)
    probs = np.exp(logits, out=logits)  # (M, V)  in the place of the logits
    total = probs.sum(axis=-1, keepdims=True)  # (M, 1)
    nll += np.log(total[:, 0])
    probs /= total
    return (weights * nll).sum(), CrossEntropyCache(probs, targets, weights)


def cross_entropy_backward(cache: CrossEntropyCache) -> Array:
    dlogits, targets, weights = cache  # (M, V)  in the place of the probabilities
    dlogits[np.arange(len(targets)), targets] -= 1
    dlogits *= weights[:, None]
    return dlogits
