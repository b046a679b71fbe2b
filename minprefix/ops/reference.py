"""The arithmetic of GPT-2 with a prefix, to be read: each forward is followed at once by its
backward.

Pure (it writes into nothing it was given) and without a dtype of its own: float32, float64 and
complex128 all pass through it, so that the complex step gives its derivatives to machine precision.
Shapes, and what the letters mean, are in `contract.py`.
"""

from collections.abc import Sequence

import numpy as np

from minprefix.ops.contract import (
    Array,
    AttentionCache,
    AttentionGrads,
    CrossEntropyCache,
    GeluCache,
    LayernormCache,
)

# ---- embed: x[n] = wte[token] + wpe[position]


def embed(tokens: Array, positions: Array, wte: Array, wpe: Array) -> Array:
    return wte[tokens] + wpe[positions]  # (N, C)


def embed_backward_params(
    dx: Array, tokens: Array, positions: Array, wte: Array, wpe: Array
) -> tuple[Array, Array]:
    dwte = np.zeros_like(wte, dtype=dx.dtype)  # (V, C)
    np.add.at(dwte, tokens, dx)  # not dwte[tokens] += dx, which counts a repeated token once
    dwpe = np.zeros_like(wpe, dtype=dx.dtype)  # (n_positions, C)
    np.add.at(dwpe, positions, dx)
    return dwte, dwpe


# ---- layernorm: out = (x - mean) / sqrt(var + eps) * gain + bias      Ba, Kiros & Hinton, 2016


def layernorm(x: Array, gain: Array, bias: Array, eps: float) -> tuple[Array, LayernormCache]:
    centred = x - x.mean(axis=-1, keepdims=True)  # (N, C)
    var = (centred * centred).mean(axis=-1, keepdims=True)  # (N, 1)  biased: over C, not C - 1
    rstd = 1 / np.sqrt(var + eps)  # (N, 1)
    xhat = centred * rstd  # (N, C)
    return xhat * gain + bias, LayernormCache(xhat, rstd, gain)


def layernorm_backward(dout: Array, cache: LayernormCache) -> Array:
    xhat, rstd, gain = cache
    dxhat = dout * gain  # (N, C)
    # x reaches xhat in three ways: directly, through the mean and through the variance
    mean_dxhat = dxhat.mean(axis=-1, keepdims=True)  # (N, 1)
    mean_dxhat_xhat = (dxhat * xhat).mean(axis=-1, keepdims=True)  # (N, 1)
    return rstd * (dxhat - mean_dxhat - xhat * mean_dxhat_xhat)  # (N, C)


def layernorm_backward_params(dout: Array, cache: LayernormCache) -> tuple[Array, Array]:
    return (dout * cache.xhat).sum(axis=0), dout.sum(axis=0)  # (C,), (C,)


# ---- linear: out = x W + b


def linear(x: Array, weight: Array, bias: Array | None) -> Array:
    out = x @ weight  # (N, out)
    return out if bias is None else out + bias


def linear_backward(dout: Array, weight: Array) -> Array:
    return dout @ weight.T  # (N, in)


def linear_backward_params(dout: Array, x: Array) -> tuple[Array, Array]:
    return x.T @ dout, dout.sum(axis=0)  # (in, out), (out,)


# ---- gelu: out = x/2 * (1 + tanh(sqrt(2/pi) * (x + 0.044715 x^3)))      Hendrycks & Gimpel, 2016

SQRT_2_OVER_PI = 0.7978845608028654


def gelu(x: Array) -> tuple[Array, GeluCache]:
    tanh = np.tanh(SQRT_2_OVER_PI * (x + 0.044715 * x * x * x))  # (N, F)
    return 0.5 * x * (1 + tanh), GeluCache(x, tanh)


def gelu_backward(dout: Array, cache: GeluCache) -> Array:
    x, tanh = cache
    du_dx = SQRT_2_OVER_PI * (1 + 3 * 0.044715 * x * x)  # u is what tanh is taken of
    return dout * (0.5 * (1 + tanh) + 0.5 * x * (1 - tanh * tanh) * du_dx)  # (N, F)


# ---- attention: z = softmax(q K^T / sqrt(hs)) V with K = [prefix_k; k], V = [prefix_v; v]
#      Vaswani et al., 2017, eq. 1; Li & Liang, 2021, eq. 3


def softmax(scores: Array) -> Array:
    """Over the last axis. The maximum is a constant that cancels; it is taken of the real part, so
    that a complex step passes through, and keeps exp from overflowing."""
    e = np.exp(scores - scores.real.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def visible(T: int, P: int) -> Array:
    """(T, P+T) of bool: query i sees the P slots of the prefix and the tokens 0..i."""
    return np.arange(P + T)[None, :] <= np.arange(T)[:, None] + P


def attention(
    q: Array,
    k: Array,
    v: Array,
    prefix_k: Sequence[Array],
    prefix_v: Sequence[Array],
    offsets: Array,
) -> tuple[Array, AttentionCache]:
    zs, patterns = [], []
    for b in range(len(offsets) - 1):
        q_b, keys, values = _heads_first(b, q, k, v, prefix_k, prefix_v, offsets)
        T, P, hs = q_b.shape[1], prefix_k[b].shape[1], q_b.shape[2]
        scores = q_b @ keys.swapaxes(1, 2) / hs**0.5  # (NH, T, P+T)
        pattern = softmax(np.where(visible(T, P), scores, -np.inf))  # (NH, T, P+T)
        zs.append((pattern @ values).swapaxes(0, 1))  # (T, NH, hs)
        patterns.append(pattern)
    z = np.concatenate(zs)  # (N, NH, hs)
    return z, AttentionCache(q, k, v, prefix_k, prefix_v, offsets, patterns)


def attention_backward(dz: Array, cache: AttentionCache) -> AttentionGrads:
    q, k, v, prefix_k, prefix_v, offsets, patterns = cache
    dqs, dks, dvs, dprefix_k, dprefix_v = [], [], [], [], []
    for b, pattern in enumerate(patterns):
        q_b, keys, values = _heads_first(b, q, k, v, prefix_k, prefix_v, offsets)
        P, hs = prefix_k[b].shape[1], q_b.shape[2]
        dz_b = dz[offsets[b] : offsets[b + 1]].swapaxes(0, 1)  # (NH, T, hs)
        # z = pattern @ values
        dvalues = pattern.swapaxes(1, 2) @ dz_b  # (NH, P+T, hs)
        dpattern = dz_b @ values.swapaxes(1, 2)  # (NH, T, P+T)
        # pattern = softmax(scores): the row sum runs over all P+T columns, prefix and tokens alike;
        # dscores is 0 where a key is hidden, because its pattern is 0
        row_sum = (dpattern * pattern).sum(axis=-1, keepdims=True)  # (NH, T, 1)
        dscores = pattern * (dpattern - row_sum)  # (NH, T, P+T)
        # scores = q @ keys^T / sqrt(hs)
        dq_b = dscores @ keys / hs**0.5  # (NH, T, hs)
        dkeys = dscores.swapaxes(1, 2) @ q_b / hs**0.5  # (NH, P+T, hs)
        # keys = [prefix_k; k]: the prefix is simply the first P rows
        dprefix_k.append(dkeys[:, :P])  # (NH, P, hs)
        dprefix_v.append(dvalues[:, :P])  # (NH, P, hs)
        dqs.append(dq_b.swapaxes(0, 1))  # (T, NH, hs)
        dks.append(dkeys[:, P:].swapaxes(0, 1))  # (T, NH, hs)
        dvs.append(dvalues[:, P:].swapaxes(0, 1))  # (T, NH, hs)
    dq, dk, dv = np.concatenate(dqs), np.concatenate(dks), np.concatenate(dvs)  # (N, NH, hs) each
    return AttentionGrads(dq, dk, dv, dprefix_k, dprefix_v)


def _heads_first(
    b: int,
    q: Array,
    k: Array,
    v: Array,
    prefix_k: Sequence[Array],
    prefix_v: Sequence[Array],
    offsets: Array,
) -> tuple[Array, Array, Array]:
    """Sequence b alone: its queries, and its prefix and tokens joined to one list of keys and of
    values."""
    rows = slice(offsets[b], offsets[b + 1])
    q_b, k_b, v_b = (a[rows].swapaxes(0, 1) for a in (q, k, v))  # (NH, T, hs) each
    keys = np.concatenate([prefix_k[b], k_b], axis=1)  # (NH, P+T, hs)
    values = np.concatenate([prefix_v[b], v_b], axis=1)  # (NH, P+T, hs)
    return q_b, keys, values


# ---- cross_entropy: loss = sum_m weights[m] * -log softmax(logits[m])[targets[m]]


def cross_entropy(
    logits: Array, targets: Array, weights: Array
) -> tuple[np.generic, CrossEntropyCache]:
    shifted = logits - logits.real.max(axis=-1, keepdims=True)  # (M, V)
    exp = np.exp(shifted)  # (M, V)
    total = exp.sum(axis=-1, keepdims=True)  # (M, 1)
    # log(total) - shifted, not log(probs): a probability that underflows to 0 keeps a finite loss
    nll = np.log(total[:, 0]) - shifted[np.arange(len(targets)), targets]  # (M,)
    return (weights * nll).sum(), CrossEntropyCache(exp / total, targets, weights)


def cross_entropy_backward(cache: CrossEntropyCache) -> Array:
    probs, targets, weights = cache
    one_hot = np.arange(probs.shape[1]) == targets[:, None]  # (M, V)
    return weights[:, None] * (probs - one_hot)  # (M, V)
