"""Pieces of today's networks that GPT-2 does not have, to be read: each forward is followed at once
by its backward.

A forward returns its result and a cache, the backward takes the incoming gradient and that cache,
and gives the gradients of the arrays in the forward's order. The functions are pure (they write
into nothing that they were given) and have no dtype of their own: float32, float64 and complex128
pass through, so that the complex step gives their derivatives to machine precision.

`B` sequences, `T` their length, `N` rows, `C` width, `F` inner width, `NH` heads, `NKV` heads of
keys and values, `hs` head size, `V` vocabulary, `K` taps of a kernel.
"""

from typing import Any

import numpy as np

from minprefix.ops.contract import Array

#: what a forward keeps for its backward; the backward's first line says what is in it
Cache = tuple[Any, ...]

# ---- softmax: out = exp(x) / sum exp(x)      Bridle, 1990


def softmax(x: Array) -> tuple[Array, Cache]:
    """x (..., V) -> out (..., V), cache. Over the last axis; a row may hold -inf, but not only."""
    e = np.exp(x - x.real.max(axis=-1, keepdims=True))  # the maximum cancels, exp cannot overflow
    out = e / e.sum(axis=-1, keepdims=True)
    return out, (out,)


def softmax_backward(dout: Array, cache: Cache) -> Array:
    """dout (..., V) -> dx (..., V)."""
    (out,) = cache
    # every x of a row is in the row's sum: what the row gets in all is taken back from each
    row_sum = (dout * out).sum(axis=-1, keepdims=True)  # (..., 1)
    return out * (dout - row_sum)


# ---- rmsnorm: out = x / sqrt(mean(x^2) + eps) * gain      Zhang & Sennrich, 2019, eq. 4


def rmsnorm(x: Array, gain: Array, eps: float = 1e-5) -> tuple[Array, Cache]:
    """x (..., C), gain (C,) -> out (..., C), cache. The mean is taken over the last axis."""
    rstd = 1 / np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps)  # (..., 1)
    xhat = x * rstd
    return xhat * gain, (xhat, rstd, gain)


def rmsnorm_backward(dout: Array, cache: Cache) -> tuple[Array, Array]:
    """dout (..., C) -> dx (..., C), dgain (C,)."""
    xhat, rstd, gain = cache
    dgain = (dout * xhat).reshape(-1, len(gain)).sum(axis=0)
    dxhat = dout * gain
    # x reaches xhat in two ways: directly and through the mean of squares
    mean_dxhat_xhat = (dxhat * xhat).mean(axis=-1, keepdims=True)  # (..., 1)
    return rstd * (dxhat - xhat * mean_dxhat_xhat), dgain


# ---- rope: each pair (a, b) of a head's numbers is turned by an angle of its position
#      (a, b) -> (a cos - b sin, b cos + a sin)      Su et al., 2021, eq. 34
#
# `rope` pairs number i with number i + hs/2, as Llama's and GPT-NeoX's code does ("rotate half").
# `rope_interleaved` pairs the neighbours 2i and 2i + 1, as the paper and GPT-J do. The two are the
# same but for the order of a head's numbers, and weights trained with one are useless in the other.


def rope(x: Array, positions: Array, base: float = 10000.0) -> tuple[Array, Cache]:
    """x (T, NH, hs), positions (T,) of integers -> out (T, NH, hs), cache. hs is even."""
    cos, sin = _turns(x, positions, base)
    a, b = np.split(x, 2, axis=-1)  # (T, NH, hs/2) each
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1), (cos, sin)


def rope_backward(dout: Array, cache: Cache) -> Array:
    """dout (T, NH, hs) -> dx (T, NH, hs): turned back by the same angles."""
    cos, sin = cache
    da, db = np.split(dout, 2, axis=-1)
    return np.concatenate([da * cos + db * sin, db * cos - da * sin], axis=-1)


def rope_interleaved(x: Array, positions: Array, base: float = 10000.0) -> tuple[Array, Cache]:
    """x (T, NH, hs), positions (T,) of integers -> out (T, NH, hs), cache. hs is even."""
    cos, sin = _turns(x, positions, base)
    a, b = x[..., ::2], x[..., 1::2]  # (T, NH, hs/2) each
    return np.stack([a * cos - b * sin, b * cos + a * sin], axis=-1).reshape(x.shape), (cos, sin)


def rope_interleaved_backward(dout: Array, cache: Cache) -> Array:
    """dout (T, NH, hs) -> dx (T, NH, hs)."""
    cos, sin = cache
    da, db = dout[..., ::2], dout[..., 1::2]
    return np.stack([da * cos + db * sin, db * cos - da * sin], axis=-1).reshape(dout.shape)


def _turns(x: Array, positions: Array, base: float) -> tuple[Array, Array]:
    """cos and sin of position * base^(-2i/hs) for pair i: (T, 1, hs/2) each, in x's precision."""
    hs = x.shape[-1]
    speed = base ** (-2 * np.arange(hs // 2) / hs)  # (hs/2,)
    angle = positions[:, None, None] * speed
    return np.cos(angle).astype(x.real.dtype), np.sin(angle).astype(x.real.dtype)


# ---- swiglu: out = (silu(x W_gate) * (x W_up)) W_down, silu(u) = u sigmoid(u)
#      Shazeer, 2020, eq. 6


def swiglu(x: Array, W_gate: Array, W_up: Array, W_down: Array) -> tuple[Array, Cache]:
    """x (N, C), W_gate (C, F), W_up (C, F), W_down (F, C) -> out (N, C), cache."""
    gate, up = x @ W_gate, x @ W_up  # (N, F) each
    sigmoid = 0.5 * (1 + np.tanh(gate / 2))  # 1 / (1 + exp(-gate)), which overflows nowhere
    return (gate * sigmoid * up) @ W_down, (x, W_gate, W_up, W_down, gate, up, sigmoid)


def swiglu_backward(dout: Array, cache: Cache) -> tuple[Array, Array, Array, Array]:
    """dout (N, C) -> dx (N, C), dW_gate (C, F), dW_up (C, F), dW_down (F, C)."""
    x, W_gate, W_up, W_down, gate, up, sigmoid = cache
    silu = gate * sigmoid
    dW_down = (silu * up).T @ dout
    dinner = dout @ W_down.T  # (N, F)
    dup = dinner * silu
    dgate = dinner * up * (sigmoid + silu * (1 - sigmoid))  # silu' = s + u s (1 - s)
    return dgate @ W_gate.T + dup @ W_up.T, x.T @ dgate, x.T @ dup, dW_down


# ---- gqa: causal attention in which NH/NKV heads of queries share a head of keys and values
#      Ainslie et al., 2023


def gqa(q: Array, k: Array, v: Array) -> tuple[Array, Cache]:
    """q (T, NH, hs), k (T, NKV, hs), v (T, NKV, hs) -> z (T, NH, hs), cache. NH is a multiple of
    NKV; query head h looks at head h // (NH/NKV) of the keys, and token i at tokens 0..i."""
    T, NH, hs = q.shape
    keys, values = (a.repeat(NH // k.shape[1], axis=1).swapaxes(0, 1) for a in (k, v))
    scores = q.swapaxes(0, 1) @ keys.swapaxes(1, 2) / hs**0.5  # (NH, T, T)
    visible = np.tri(T, dtype=bool)  # query i sees keys 0..i
    pattern, _ = softmax(np.where(visible, scores, -np.inf))
    return (pattern @ values).swapaxes(0, 1), (q, keys, values, pattern, k.shape[1])


def gqa_backward(dz: Array, cache: Cache) -> tuple[Array, Array, Array]:
    """dz (T, NH, hs) -> dq (T, NH, hs), dk (T, NKV, hs), dv (T, NKV, hs)."""
    q, keys, values, pattern, NKV = cache
    T, NH, hs = q.shape
    dz = dz.swapaxes(0, 1)  # (NH, T, hs)
    dvalues = pattern.swapaxes(1, 2) @ dz
    dpattern = dz @ values.swapaxes(1, 2)  # (NH, T, T)
    dscores = softmax_backward(dpattern, (pattern,)) / hs**0.5
    dq = dscores @ keys
    dkeys = dscores.swapaxes(1, 2) @ q.swapaxes(0, 1)
    # what was repeated is summed: the heads of a group
    dk, dv = (a.reshape(NKV, NH // NKV, T, hs).sum(axis=1) for a in (dkeys, dvalues))
    return dq.swapaxes(0, 1), dk.swapaxes(0, 1), dv.swapaxes(0, 1)


# ---- batchnorm: out = (x - mean) / sqrt(var + eps) * gain + bias, over the rows of the batch
#      Ioffe & Szegedy, 2015, algorithm 1 (in training)


def batchnorm(x: Array, gain: Array, bias: Array, eps: float = 1e-5) -> tuple[Array, Cache]:
    """x (N, C), gain (C,), bias (C,) -> out (N, C), cache. The statistics are the batch's own."""
    centred = x - x.mean(axis=0)
    rstd = 1 / np.sqrt((centred * centred).mean(axis=0) + eps)  # (C,)  over N, not N - 1
    xhat = centred * rstd
    return xhat * gain + bias, (xhat, rstd, gain)


def batchnorm_backward(dout: Array, cache: Cache) -> tuple[Array, Array, Array]:
    """dout (N, C) -> dx (N, C), dgain (C,), dbias (C,)."""
    xhat, rstd, gain = cache
    dgain, dbias = (dout * xhat).sum(axis=0), dout.sum(axis=0)
    dxhat = dout * gain
    # x reaches xhat in three ways: directly, through the mean and through the variance
    dx = rstd * (dxhat - dxhat.mean(axis=0) - xhat * (dxhat * xhat).mean(axis=0))
    return dx, dgain, dbias


# ---- conv1d: out[b, o, t] = bias[o] + sum_{c, k} x[b, c, stride t + k - padding] weight[o, c, k]
#      a cross-correlation, as in LeCun et al., 1989: the kernel is not turned round


def conv1d(
    x: Array, weight: Array, bias: Array, stride: int = 1, padding: int = 0
) -> tuple[Array, Cache]:
    """x (B, in, T), weight (out, in, K), bias (out,) -> out (B, out, T'), cache. T' is
    (T + 2 padding - K) // stride + 1; what is outside x counts as 0."""
    K = weight.shape[2]
    padded = np.pad(x, [(0, 0), (0, 0), (padding, padding)])
    windows = np.lib.stride_tricks.sliding_window_view(padded, K, axis=2)[:, :, ::stride]
    out = np.einsum("bctk,ock->bot", windows, weight) + bias[:, None]
    return out, (windows, weight, padded.shape, stride, padding)


def conv1d_backward(dout: Array, cache: Cache) -> tuple[Array, Array, Array]:
    """dout (B, out, T') -> dx (B, in, T), dweight (out, in, K), dbias (out,)."""
    windows, weight, shape, stride, padding = cache
    dweight = np.einsum("bot,bctk->ock", dout, windows)
    dpadded = np.zeros(shape, dout.dtype)
    reach = stride * (dout.shape[2] - 1) + 1
    for k in range(weight.shape[2]):  # a number of x is in up to K windows: each adds its part
        part = np.einsum("bot,oc->bct", dout, weight[:, :, k])
        dpadded[:, :, k : k + reach : stride] += part
    dx = dpadded[:, :, padding : shape[2] - padding]
    return dx, dweight, dout.sum(axis=(0, 2))


# ---- embedding: out[b, t] = table[tokens[b, t]]      Bengio et al., 2003


def embedding(tokens: Array, table: Array) -> tuple[Array, Cache]:
    """tokens (B, T) of integers below V, table (V, C) -> out (B, T, C), cache."""
    return table[tokens], (tokens, table)


def embedding_backward(dout: Array, cache: Cache) -> Array:
    """dout (B, T, C) -> dtable (V, C): a token that stands n times gets n parts."""
    tokens, table = cache
    dtable = np.zeros(table.shape, dout.dtype)
    np.add.at(dtable, tokens, dout)
    return dtable


# ---- dropout: out = x * mask / (1 - p)      Srivastava et al., 2014, in its "inverted" form


def dropout(x: Array, mask: Array, p: float) -> tuple[Array, Cache]:
    """x of any shape, mask of x's shape and of bool (True: kept), p the share that is dropped,
    0 <= p < 1 -> out as x, cache. The mask is given, so that the function is one of its inputs."""
    return x * mask / (1 - p), (mask, p)


def dropout_backward(dout: Array, cache: Cache) -> Array:
    """dout as x -> dx as x."""
    mask, p = cache
    return dout * mask / (1 - p)
