"""The contract, fast: the formulas of `reference`, in place and block by block, on every core.

Read `reference` first. The BLAS computes large matrix products, and there is nothing to gain there;
the work between them waits for memory. So that work runs over blocks of rows that stay in a core's
own cache (`threads`), and nothing is kept that a backward can compute again. The answers are the
same to rounding. Arrays must be real floating-point; `reference` takes complex ones, too.
"""

from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from minprefix.ops.contract import Array, AttentionGrads, CrossEntropyCache, LayernormCache
from minprefix.ops.reference import (
    SQRT_2_OVER_PI,
    embed,
    embed_backward_params,
    layernorm_backward_params,
    linear_backward,
    linear_backward_params,
)
from minprefix.ops.threads import each, row_blocks

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


def _slices(n: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, n)) for start in range(0, n, size)]


def _own(a: Array) -> None:
    if not isinstance(a, np.ndarray):
        raise TypeError(
            f"the numpy operations were given a {type(a).__module__}.{type(a).__qualname__}, which "
            "may live on the GPU: expected NumPy arrays; model.to('numpy') and prefix.to('numpy') "
            "bring them back"
        )


def layernorm(x: Array, gain: Array, bias: Array, eps: float) -> tuple[Array, LayernormCache]:
    _own(x)
    N, C = x.shape
    xhat, out = np.empty_like(x), np.empty_like(x)  # (N, C), (N, C)
    rstd = np.empty((N, 1), x.dtype)  # (N, 1)

    def block(rows: slice) -> None:
        h, r, o = xhat[rows], rstd[rows], out[rows]
        np.subtract(x[rows], x[rows].mean(axis=-1, keepdims=True), out=h)
        np.einsum("nc,nc->n", h, h, out=r[:, 0])
        r /= C
        r += eps
        np.sqrt(r, out=r)
        np.reciprocal(r, out=r)
        h *= r
        np.multiply(h, gain, out=o)
        o += bias

    each(block, row_blocks(N, C * x.itemsize))
    return out, LayernormCache(xhat, rstd, gain)


def layernorm_backward(dout: Array, cache: LayernormCache) -> Array:
    N, C = dout.shape

    def block(rows: slice) -> None:
        xhat, dx = cache.xhat[rows], dout[rows]  # dx in the place of dout, dxhat before that
        dx *= cache.gain
        mean_dxhat_xhat = np.einsum("nc,nc->n", dx, xhat)[:, None] / C
        dx -= dx.mean(axis=-1, keepdims=True)
        dx -= xhat * mean_dxhat_xhat
        dx *= cache.rstd[rows]

    each(block, row_blocks(N, C * dout.itemsize))
    return dout


def linear(x: Array, weight: Array, bias: Array | None) -> Array:
    _own(x)
    columns = min(128, SMALL_PRODUCT // max(1, x.size) // 16 * 16)
    if len(x) > 1 and 32 <= columns < weight.shape[1] // 8 and weight.T.flags.c_contiguous:
        out = _few_rows(x, weight, columns)
    else:
        out = x @ weight  # (N, out)
    if bias is not None:
        out += bias
    return out


#: M N K up to which OpenBLAS multiplies without packing its matrices first (measured on AVX-512)
SMALL_PRODUCT = 8 * 10**5


def _few_rows(x: Array, weight: Array, columns: int) -> Array:
    """x @ weight for an x of few rows and a weight whose columns are contiguous, as the head's are.
    The BLAS would pack the weight before it multiplies, which takes longer than reading it. Many
    products that are too small to be packed read the weight only once."""
    (N, C), V = x.shape, weight.shape[1]
    n, dtype = V // columns, np.result_type(x, weight)
    out = np.empty((N, V), dtype)
    whole = slice(n * columns)
    weights = weight.T[whole].reshape(n, columns, C).swapaxes(1, 2)
    outs = out[:, whole].reshape(N, n, columns).swapaxes(0, 1)

    def part(some: slice) -> None:
        np.matmul(x, weights[some], out=outs[some])

    each(part, _slices(n, 64))
    out[:, n * columns :] = x @ weight[:, n * columns :]
    return out


class GeluCache(NamedTuple):
    slope: Array  # (N, F)  d out / d x, in the place of x


def gelu(x: Array) -> tuple[Array, GeluCache]:
    """Computes the slope at once, while x and its tanh are in a core's cache. The backward is then
    one product, and keeps one array instead of two."""
    _own(x)
    N, F = x.shape
    out = np.empty_like(x)  # (N, F)

    def block(rows: slice) -> None:
        x_b = x[rows]
        square = x_b * x_b
        h = square * (0.044715 * SQRT_2_OVER_PI)  # becomes (1 + tanh u) / 2
        h += SQRT_2_OVER_PI
        h *= x_b
        np.tanh(h, out=h)
        h *= 0.5
        h += 0.5
        np.multiply(x_b, h, out=out[rows])
        # slope = h + x dh/dx, and dh/dx = 2 h (1 - h) du/dx: slope = h (1 + (1 - h) 2 x du/dx)
        slope = square
        slope *= 6 * 0.044715 * SQRT_2_OVER_PI
        slope += 2 * SQRT_2_OVER_PI
        slope *= x_b
        slope *= 1 - h
        slope += 1
        np.multiply(slope, h, out=x_b)

    each(block, row_blocks(N, F * x.itemsize))
    return out, GeluCache(x)


def gelu_backward(dout: Array, cache: GeluCache) -> Array:
    dout *= cache.slope
    return dout


def _refuse_complex(dtype: np.dtype) -> None:
    """The maximum of complex numbers does not cancel as a constant does, so the gradient would be
    wrong."""
    if dtype.kind == "c":
        raise TypeError(f"the numpy operations take no {dtype}: use ops='reference'")


@lru_cache(maxsize=64)
def _hidden(T: int, dtype: np.dtype) -> Array:
    """(T, T): -inf where the token lies in the query's future, else 0."""
    mask = np.triu(np.full((T, T), -np.inf, dtype), 1)
    mask.flags.writeable = False  # it is shared by every call
    return mask


class AttentionCache(NamedTuple):
    """The patterns, (NH, T, P+T) for every sequence and layer, would fill the memory, so they are
    not kept. The backward computes them again, as in Dao et al., 2022 (FlashAttention)."""

    q: Array  # (N, NH, hs)
    k: Array  # (N, NH, hs)
    v: Array  # (N, NH, hs)
    prefix_k: Sequence[Array]  # B arrays (NH, P, hs)
    prefix_v: Sequence[Array]  # B arrays (NH, P, hs)
    offsets: Array  # (B+1,)


#: queries in a block; they see no key after the block's last token
QUERIES = 128


class Part(NamedTuple):
    """Some heads (nh of them) of one sequence: the work of one thread."""

    b: int
    heads: slice
    rows: slice  # of the stream

    def of(self, a: Array) -> Array:
        """(N, NH, hs) -> (nh, T, hs), a view."""
        return a[self.rows, self.heads].swapaxes(0, 1)

    def queries(self, q: Array) -> Array:
        """(nh, T, hs), with the 1/sqrt(hs) of the scores already in them."""
        return self.of(q) * q.shape[2] ** -0.5

    def joined(self, prefix: Sequence[Array], a: Array) -> Array:
        """(nh, P+T, hs): the prefix and the tokens."""
        return np.concatenate([prefix[self.b][self.heads], self.of(a)], axis=1)


def parts(q: Array, prefix_k: Sequence[Array], offsets: Array) -> list[Part]:
    """Parts of as many heads as keep a block of scores in a core's cache."""
    NH, found = q.shape[1], []
    for b, (start, end) in enumerate(pairwise(offsets.tolist())):
        T = end - start
        head_bytes = min(T, QUERIES) * (prefix_k[b].shape[1] + T) * q.itemsize
        rows = slice(start, end)
        found += [Part(b, heads, rows) for heads in row_blocks(NH, head_bytes)]
    return found


def query_blocks(T: int) -> list[slice]:
    return _slices(T, QUERIES)


def _exp_scores(q: Array, keys: Array, queries: slice) -> tuple[Array, Array]:
    """e (nh, queries, keys up to the last of them), and its row sums: pattern = e / total."""
    P, n = keys.shape[1] - q.shape[1], queries.stop - queries.start
    e = q[:, queries] @ keys[:, : P + queries.stop].swapaxes(1, 2)  # the scores first
    if n > 1:
        e[:, :, P + queries.start :] += _hidden(n, e.dtype)
    e -= e.max(axis=-1, keepdims=True)
    np.exp(e, out=e)
    return e, e.sum(axis=-1, keepdims=True)


def attention(
    q: Array,
    k: Array,
    v: Array,
    prefix_k: Sequence[Array],
    prefix_v: Sequence[Array],
    offsets: Array,
) -> tuple[Array, AttentionCache]:
    _own(q)
    N, NH, hs = q.shape
    dtype = np.result_type(q, *prefix_k)
    _refuse_complex(dtype)
    z = np.empty((N, NH, hs), dtype)  # (N, NH, hs)
    if len(prefix_k) == N:
        _attention_of_single_tokens(q, k, v, prefix_k, prefix_v, z)
        return z, AttentionCache(q, k, v, prefix_k, prefix_v, offsets)

    def part(p: Part) -> None:
        q_b, keys, values = p.queries(q), p.joined(prefix_k, k), p.joined(prefix_v, v)
        P, z_b = keys.shape[1] - q_b.shape[1], p.of(z)
        for queries in query_blocks(q_b.shape[1]):
            e, total = _exp_scores(q_b, keys, queries)
            np.matmul(e, values[:, : P + queries.stop], out=z_b[:, queries])
            z_b[:, queries] /= total  # z has fewer numbers than the pattern

    each(part, parts(q, prefix_k, offsets))
    return z, AttentionCache(q, k, v, prefix_k, prefix_v, offsets)


#: sequences that share one softmax
TOGETHER = 20


def _attention_of_single_tokens(
    q: Array, k: Array, v: Array, prefix_k: Sequence[Array], prefix_v: Sequence[Array], z: Array
) -> None:
    """Attention where each sequence has one token, as in decoding; writes z. The long keys and
    values before it are not copied, no mask is needed, and many sequences share one softmax."""
    q = q * q.shape[2] ** -0.5

    def part(some: slice) -> None:
        keys, values, q_s, z_s = prefix_k[some], prefix_v[some], q[some], z[some]
        W = max(a.shape[1] for a in keys)
        e = np.full((*q_s.shape[:2], W + 1), -np.inf, z.dtype)  # the token's own key stands last
        for b, a in enumerate(keys):
            np.matmul(a, q_s[b, :, :, None], out=e[b, :, : a.shape[1], None])
        e[:, :, W] = np.einsum("nhd,nhd->nh", q_s, k[some])
        e -= e.max(axis=-1, keepdims=True)
        np.exp(e, out=e)
        np.multiply(e[:, :, W:], v[some], out=z_s)
        for b, a in enumerate(values):
            z_s[b] += (e[b, :, None, : a.shape[1]] @ a)[:, 0]
        z_s /= e.sum(axis=-1, keepdims=True)

    each(part, _slices(len(q), TOGETHER))


def attention_backward(dz: Array, cache: AttentionCache) -> AttentionGrads:
    q, k, v, prefix_k, prefix_v, offsets = cache
    N, NH, hs = q.shape
    dq, dk, dv = np.empty((3, N, NH, hs), dz.dtype)  # (N, NH, hs) each
    dprefix_k = [np.empty(a.shape, dz.dtype) for a in prefix_k]
    dprefix_v = [np.empty(a.shape, dz.dtype) for a in prefix_v]

    def part(p: Part) -> None:
        q_b, keys, values = p.queries(q), p.joined(prefix_k, k), p.joined(prefix_v, v)
        P, dz_b, dq_b = keys.shape[1] - q_b.shape[1], p.of(dz), p.of(dq)
        dkeys, dvalues = np.zeros_like(keys), np.zeros_like(values)
        for queries in query_blocks(q_b.shape[1]):
            seen = slice(P + queries.stop)
            e, total = _exp_scores(q_b, keys, queries)
            # z = e @ values / total: dividing dz divides every gradient that follows from it
            du = dz_b[:, queries] / total
            dvalues[:, seen] += e.swapaxes(1, 2) @ du
            dscores = du @ values[:, seen].swapaxes(1, 2)  # dpattern / total first
            # pattern = softmax(scores), scores = q @ keys^T / sqrt(hs)
            dscores -= np.einsum("hts,hts->ht", dscores, e)[:, :, None] / total
            dscores *= e
            np.matmul(dscores, keys[:, seen], out=dq_b[:, queries])
            dkeys[:, seen] += dscores.swapaxes(1, 2) @ q_b[:, queries]
        dq_b *= hs**-0.5
        p.of(dk)[...], p.of(dv)[...] = dkeys[:, P:], dvalues[:, P:]
        dprefix_k[p.b][p.heads], dprefix_v[p.b][p.heads] = dkeys[:, :P], dvalues[:, :P]

    each(part, parts(q, prefix_k, offsets))
    return AttentionGrads(dq, dk, dv, dprefix_k, dprefix_v)


def cross_entropy(
    logits: Array, targets: Array, weights: Array
) -> tuple[np.generic, CrossEntropyCache]:
    _own(logits)
    _refuse_complex(logits.dtype)
    M = len(logits)
    nll = np.empty(M, logits.dtype)  # (M,)

    def block(rows: slice) -> None:
        probs, n = logits[rows], len(logits[rows])  # in the place of the logits
        probs -= probs.max(axis=-1, keepdims=True)
        nll[rows] = -probs[np.arange(n), targets[rows]]
        np.exp(probs, out=probs)
        total = probs.sum(axis=-1, keepdims=True)
        nll[rows] += np.log(total[:, 0])
        probs /= total

    each(block, row_blocks(M, logits[:1].nbytes))
    return (weights * nll).sum(), CrossEntropyCache(logits, targets, weights)


def cross_entropy_backward(cache: CrossEntropyCache) -> Array:
    dlogits, targets, weights = cache  # (M, V)  in the place of the probabilities
    dlogits[np.arange(len(targets)), targets] -= 1

    def block(rows: slice) -> None:
        dlogits[rows] *= weights[rows, None]

    each(block, row_blocks(len(dlogits), dlogits[:1].nbytes))
    return dlogits
