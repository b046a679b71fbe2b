"""GPT-2 by tiles, as flash attention does it: nothing of size (T, P+T) is ever made.

Attention runs over tiles of queries and keys with a running maximum and a running sum (Dao et al.,
2022), and its backward makes each tile of the pattern again. Linear, embed and cross-entropy run
over panels of the width and of the vocabulary. Score tiles live in buffers that are used again.
"""

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from minprefix.conformance.contract import ModelProblem, TrainingProblem

QUERIES = 64  # rows of a score tile
KEYS = 64  # columns of a score tile
PANEL = 256  # columns of a matrix product
ROWS = 128  # tokens at a time
VOCAB = 1024  # entries of the vocabulary at a time


class Workspace:
    """Buffers by name and type. One is made anew only where the one that is there is too small."""

    def __init__(self):
        self.buffers = {}

    def take(self, name, shape, dtype):
        size = math.prod(shape)
        key = (name, np.dtype(dtype))
        if key not in self.buffers or self.buffers[key].size < size:
            self.buffers[key] = np.empty(size, dtype)
        return self.buffers[key][:size].reshape(shape)

    def zeros(self, name, shape, dtype):
        buffer = self.take(name, shape, dtype)
        buffer.fill(0)
        return buffer


work = Workspace()


def spans(start, stop, step):
    """[start, stop) in pieces of `step`; the last may be shorter."""
    return [(lo, min(lo + step, stop)) for lo in range(start, stop, step)]


# --- embed -----------------------------------------------------------------------------------


def embed(tokens, positions, wte, wpe):
    x = np.empty((len(tokens), wte.shape[1]), wte.dtype)
    for lo, hi in spans(0, len(tokens), ROWS):
        np.take(wte, tokens[lo:hi], axis=0, out=x[lo:hi])
        x[lo:hi] += wpe[positions[lo:hi]]
    return x


def add_rows(total, index, dx):
    """total[index[n]] += dx[n] for each n: the rows are sorted by index, and each run of equal ones
    is summed, panel by panel of the vocabulary."""
    order = np.argsort(index, kind="stable")
    ordered = index[order]
    for lo, hi in spans(0, len(total), VOCAB):
        first, last = np.searchsorted(ordered, (lo, hi))
        if first == last:
            continue
        here = ordered[first:last]
        starts = np.flatnonzero(np.concatenate(([True], here[1:] != here[:-1])))
        total[here[starts]] += np.add.reduceat(dx[order[first:last]], starts, axis=0)
    return total


def embed_backward_params(dx, tokens, positions, wte, wpe):
    dwte = add_rows(np.zeros(wte.shape, wte.dtype), tokens, dx)
    dwpe = add_rows(np.zeros(wpe.shape, wpe.dtype), positions, dx)
    return dwte, dwpe


# --- layernorm -------------------------------------------------------------------------------


def row_moments(x):
    """Mean and variance of each row, joined panel by panel (Chan, Golub & LeVeque, 1979)."""
    N, C = x.shape
    mean = np.zeros((N, 1), x.dtype)
    square = np.zeros((N, 1), x.dtype)  # sum of squared distances from the mean
    for lo, hi in spans(0, C, PANEL):
        panel = x[:, lo:hi]
        its_mean = panel.mean(axis=1, keepdims=True)
        its_square = ((panel - its_mean) ** 2).sum(axis=1, keepdims=True)
        step = its_mean - mean
        mean += step * ((hi - lo) / hi)
        square += its_square + step * step * (lo * (hi - lo) / hi)
    return mean, square / C


def layernorm(x, gain, bias, eps):
    mean, variance = row_moments(x)
    rstd = 1 / np.sqrt(variance + eps)
    xhat = (x - mean) * rstd
    return xhat * gain + bias, (xhat, rstd, gain)


def layernorm_backward(dout, cache):
    xhat, rstd, gain = cache
    N, C = xhat.shape
    total = np.zeros((N, 1), xhat.dtype)  # sum of dxhat
    along = np.zeros((N, 1), xhat.dtype)  # sum of dxhat * xhat
    dx = np.empty_like(xhat)
    for lo, hi in spans(0, C, PANEL):
        np.multiply(dout[:, lo:hi], gain[lo:hi], out=dx[:, lo:hi])
        total += dx[:, lo:hi].sum(axis=1, keepdims=True)
        along += (dx[:, lo:hi] * xhat[:, lo:hi]).sum(axis=1, keepdims=True)
    for lo, hi in spans(0, C, PANEL):
        dx[:, lo:hi] -= (total + xhat[:, lo:hi] * along) / C
    dx *= rstd
    return dx


def layernorm_backward_params(dout, cache):
    xhat, _, gain = cache
    dgain = np.zeros_like(gain)
    dbias = np.zeros_like(gain)
    for lo, hi in spans(0, len(xhat), ROWS):
        dgain += (dout[lo:hi] * xhat[lo:hi]).sum(axis=0)
        dbias += dout[lo:hi].sum(axis=0)
    return dgain, dbias


# --- linear ----------------------------------------------------------------------------------


def linear(x, weight, bias):
    fan_in, fan_out = weight.shape
    out = np.empty((len(x), fan_out), x.dtype)
    for left, right in spans(0, fan_out, PANEL):
        panel = out[:, left:right]
        panel[...] = 0 if bias is None else bias[left:right]
        for lo, hi in spans(0, fan_in, PANEL):
            product = work.take("product", panel.shape, out.dtype)
            panel += np.matmul(x[:, lo:hi], weight[lo:hi, left:right], out=product)
    return out


def linear_backward(dout, weight):
    fan_in, fan_out = weight.shape
    dx = np.zeros((len(dout), fan_in), dout.dtype)
    for left, right in spans(0, fan_out, PANEL):
        for lo, hi in spans(0, fan_in, PANEL):
            product = work.take("product", (len(dout), hi - lo), dx.dtype)
            dx[:, lo:hi] += np.matmul(dout[:, left:right], weight[lo:hi, left:right].T, out=product)
    return dx


def linear_backward_params(dout, x):
    dweight = np.zeros((x.shape[1], dout.shape[1]), dout.dtype)
    dbias = np.zeros(dout.shape[1], dout.dtype)
    product = work.take("dweight", dweight.shape, dweight.dtype)
    for lo, hi in spans(0, len(x), ROWS):
        dweight += np.matmul(x[lo:hi].T, dout[lo:hi], out=product)
        dbias += dout[lo:hi].sum(axis=0)
    return dweight, dbias


# --- gelu ------------------------------------------------------------------------------------

SLOPE = math.sqrt(2 / math.pi)
CUBIC = 0.044715


def gelu(x):
    """The derivative is made here, where tanh is at hand: the backward is one product. It is
    written over x, which nobody needs any longer."""
    out = np.empty_like(x)
    for lo, hi in spans(0, len(x), ROWS):
        rows = x[lo:hi]
        square = rows * rows
        tanh = np.tanh(SLOPE * rows * (1 + CUBIC * square))
        half = 0.5 * (1 + tanh)
        inner = SLOPE * (1 + 3 * CUBIC * square)
        out[lo:hi] = rows * half
        x[lo:hi] = half + 0.5 * rows * (1 - tanh * tanh) * inner
    return out, {"derivative": x}


def gelu_backward(dout, cache):
    dx = dout
    dx *= cache["derivative"]
    return dx


# --- attention -------------------------------------------------------------------------------


@dataclass
class Kept:
    """What attention keeps: what it was given, its result, and the log of each row's sum."""

    q: np.ndarray  # (N, NH, hs)
    k: np.ndarray
    v: np.ndarray
    prefix_k: list  # B arrays (NH, P, hs)
    prefix_v: list
    offsets: np.ndarray  # (B+1,)
    z: np.ndarray  # (N, NH, hs)
    lse: np.ndarray  # (NH, N)


def key_tiles(P, last):
    """The tiles of keys that queries before token `last` see: first the prefix's, then the tokens'.
    Each is (of the prefix?, lo, hi)."""
    tiles = [(True, lo, hi) for lo, hi in spans(0, P, KEYS)]
    return tiles + [(False, lo, hi) for lo, hi in spans(0, last, KEYS)]


def score_tile(q, keys, of_prefix, first, lo, scale):
    """q (NH, R, hs), keys (NH, S, hs) -> scores (NH, R, S) in a buffer, the future at -inf. `first`
    and `lo` are the indices of the first query and the first key."""
    shape = (q.shape[0], q.shape[1], keys.shape[1])
    scores = work.take("scores", shape, q.dtype)
    np.matmul(q, keys.transpose(0, 2, 1), out=scores)
    scores *= scale
    if not of_prefix and lo + shape[2] > first + 1:
        query = np.arange(first, first + shape[1])[:, None]
        key = np.arange(lo, lo + shape[2])[None, :]
        np.copyto(scores, -np.inf, where=key > query)
    return scores


def attend(q, k, v, pk, pv):
    """One sequence, heads first: q, k, v (NH, T, hs), pk, pv (NH, P, hs) -> z (NH, T, hs),
    lse (NH, T)."""
    NH, T, hs = q.shape
    z = np.empty_like(q)
    lse = np.empty((NH, T), q.dtype)
    scale = 1 / math.sqrt(hs)
    for first, last in spans(0, T, QUERIES):
        rows = last - first
        highest = np.full((NH, rows), -np.inf, q.dtype)
        total = np.zeros((NH, rows), q.dtype)
        mixed = work.zeros("mixed", (NH, rows, hs), q.dtype)
        for of_prefix, lo, hi in key_tiles(pk.shape[1], last):
            keys, values = (pk, pv) if of_prefix else (k, v)
            s = score_tile(q[:, first:last], keys[:, lo:hi], of_prefix, first, lo, scale)
            higher = np.maximum(highest, s.max(axis=2))
            shrink = np.exp(highest - higher)
            s -= higher[:, :, None]
            np.exp(s, out=s)
            total *= shrink
            total += s.sum(axis=2)
            mixed *= shrink[:, :, None]
            mixed += s @ values[:, lo:hi]
            highest = higher
        z[:, first:last] = mixed / total[:, :, None]
        lse[:, first:last] = highest + np.log(total)
    return z, lse


def attention(q, k, v, prefix_k, prefix_v, offsets):
    z = np.empty_like(q)
    lse = np.empty((q.shape[1], len(q)), q.dtype)
    for b, (start, stop) in enumerate(pairwise(offsets)):
        here = slice(start, stop)
        heads_first = [a[here].transpose(1, 0, 2) for a in (q, k, v)]
        its_z, lse[:, here] = attend(*heads_first, prefix_k[b], prefix_v[b])
        z[here] = its_z.transpose(1, 0, 2)
    return z, Kept(q, k, v, prefix_k, prefix_v, offsets, z.copy(), lse)


def attend_backward(dz, q, k, v, pk, pv, z, lse):
    """One sequence, heads first. Tiles of keys outside, tiles of queries inside: dk and dv of a
    tile are complete when its loop ends."""
    _, T, hs = q.shape
    P = pk.shape[1]
    scale = 1 / math.sqrt(hs)
    dq, dk, dv = np.zeros_like(q), np.zeros_like(k), np.zeros_like(v)
    dpk, dpv = np.zeros_like(pk), np.zeros_like(pv)
    delta = (dz * z).sum(axis=2)  # (NH, T): the sum of pattern * dpattern over the keys
    for of_prefix, lo, hi in key_tiles(P, T):
        keys, values = (pk, pv) if of_prefix else (k, v)
        dkeys, dvalues = (dpk, dpv) if of_prefix else (dk, dv)
        for first, last in spans(0, T, QUERIES):
            if not of_prefix and last <= lo:
                continue  # the whole tile is in the future
            rows = slice(first, last)
            pattern = score_tile(q[:, rows], keys[:, lo:hi], of_prefix, first, lo, scale)
            pattern -= lse[:, rows, None]
            np.exp(pattern, out=pattern)
            dvalues[:, lo:hi] += pattern.transpose(0, 2, 1) @ dz[:, rows]
            dscores = work.take("dscores", pattern.shape, q.dtype)
            np.matmul(dz[:, rows], values[:, lo:hi].transpose(0, 2, 1), out=dscores)
            dscores -= delta[:, rows, None]
            dscores *= pattern
            dscores *= scale
            dq[:, rows] += dscores @ keys[:, lo:hi]
            dkeys[:, lo:hi] += dscores.transpose(0, 2, 1) @ q[:, rows]
    return dq, dk, dv, dpk, dpv


def attention_backward(dz, cache):
    dq, dk, dv = (np.empty_like(a) for a in (cache.q, cache.k, cache.v))
    dprefix_k, dprefix_v = [], []
    for b, (start, stop) in enumerate(pairwise(cache.offsets)):
        here = slice(start, stop)
        split = [a[here].transpose(1, 0, 2) for a in (dz, cache.q, cache.k, cache.v)]
        z, lse = cache.z[here].transpose(1, 0, 2), cache.lse[:, here]
        grads = attend_backward(*split, cache.prefix_k[b], cache.prefix_v[b], z, lse)
        for whole, part in zip((dq, dk, dv), grads[:3], strict=True):
            whole[here] = part.transpose(1, 0, 2)
        dprefix_k.append(grads[3])
        dprefix_v.append(grads[4])
    return dq, dk, dv, dprefix_k, dprefix_v


# --- cross-entropy ---------------------------------------------------------------------------


def cross_entropy(logits, targets, weights):
    M, V = logits.shape
    highest = np.full(M, -np.inf, logits.dtype)
    total = np.zeros(M, logits.dtype)
    chosen = np.zeros(M, logits.dtype)  # the logit of the target
    for lo, hi in spans(0, V, VOCAB):
        panel = logits[:, lo:hi]
        higher = np.maximum(highest, panel.max(axis=1))
        total *= np.exp(highest - higher)
        total += np.exp(panel - higher[:, None]).sum(axis=1)
        highest = higher
        inside = np.flatnonzero((targets >= lo) & (targets < hi))
        chosen[inside] = panel[inside, targets[inside] - lo]
    lse = highest + np.log(total)
    loss = ((lse - chosen) * weights).sum()
    return loss, (logits, lse, targets, weights)


def cross_entropy_backward(cache):
    logits, lse, targets, weights = cache
    for lo, hi in spans(0, logits.shape[1], VOCAB):
        panel = logits[:, lo:hi]
        panel -= lse[:, None]
        np.exp(panel, out=panel)
        panel *= weights[:, None]
    logits[np.arange(len(targets)), targets] -= weights
    return logits


# --- the whole model -------------------------------------------------------------------------


class Layer:
    """One block: ln_1, attention, ln_2, mlp, with what its backward needs."""

    def __init__(self, model, i):
        self.name = f"blocks.{i}"
        self.i = i
        self.NH = model.config.n_head
        self.eps = model.config.layer_norm_epsilon
        self.model = model

    def weight(self, name):
        full = f"h.{self.i}.{name}"
        return self.model.weights[f"{full}.weight"], self.model.weights[f"{full}.bias"]

    def keep(self, name, dweight, dbias):
        self.model.add(f"h.{self.i}.{name}.weight", dweight)
        self.model.add(f"h.{self.i}.{name}.bias", dbias)

    def forward(self, x, keys, values, offsets):
        seen = self.model.seen
        N, C = x.shape
        seen[f"{self.name}.resid_pre"] = x
        self.ln_1_out, self.ln_1 = layernorm(x, *self.weight("ln_1"), self.eps)
        qkv = linear(self.ln_1_out, *self.weight("attn.c_attn"))
        q, k, v = (qkv[:, j * C : (j + 1) * C].reshape(N, self.NH, -1) for j in range(3))
        z, self.kept = attention(q, k, v, keys, values, offsets)
        self.z = z.reshape(N, C)
        seen |= {f"{self.name}.attn.q": q, f"{self.name}.attn.k": k, f"{self.name}.attn.v": v}
        seen[f"{self.name}.attn.z"] = z
        x = x + linear(self.z, *self.weight("attn.c_proj"))
        seen[f"{self.name}.resid_mid"] = x
        self.ln_2_out, self.ln_2 = layernorm(x, *self.weight("ln_2"), self.eps)
        self.post, self.gelu = gelu(linear(self.ln_2_out, *self.weight("mlp.c_fc")))
        seen[f"{self.name}.mlp.post"] = self.post
        return x + linear(self.post, *self.weight("mlp.c_proj"))

    def backward(self, dx, every):
        """dx (N, C) of what this block gave -> dx of what it was given, dprefix_k, dprefix_v."""
        seen = self.model.seen
        N, C = dx.shape
        seen[f"{self.name}.dresid_post"] = dx
        if every:
            self.keep("mlp.c_proj", *linear_backward_params(dx, self.post))
        dpre = gelu_backward(linear_backward(dx, self.weight("mlp.c_proj")[0]), self.gelu)
        dln_2 = linear_backward(dpre, self.weight("mlp.c_fc")[0])
        if every:
            self.keep("mlp.c_fc", *linear_backward_params(dpre, self.ln_2_out))
            self.keep("ln_2", *layernorm_backward_params(dln_2, self.ln_2))
        dx = dx + layernorm_backward(dln_2, self.ln_2)
        seen[f"{self.name}.dresid_mid"] = dx
        dz = linear_backward(dx, self.weight("attn.c_proj")[0]).reshape(N, self.NH, -1)
        if every:
            self.keep("attn.c_proj", *linear_backward_params(dx, self.z))
        dq, dk, dv, dprefix_k, dprefix_v = attention_backward(dz, self.kept)
        seen |= {f"{self.name}.attn.dq": dq, f"{self.name}.attn.dk": dk}
        seen[f"{self.name}.attn.dv"] = dv
        dqkv = np.concatenate([a.reshape(N, C) for a in (dq, dk, dv)], axis=1)
        dln_1 = linear_backward(dqkv, self.weight("attn.c_attn")[0])
        if every:
            self.keep("attn.c_attn", *linear_backward_params(dqkv, self.ln_1_out))
            self.keep("ln_1", *layernorm_backward_params(dln_1, self.ln_1))
        return dx + layernorm_backward(dln_1, self.ln_1), dprefix_k, dprefix_v


class Model:
    """A GPT-2 whose gradients are summed until `grads` is emptied."""

    def __init__(self, config, weights):
        self.config = config
        self.weights = weights
        self.seen = {}
        self.grads = {}

    def add(self, name, gradient):
        self.grads[name] = self.grads[name] + gradient if name in self.grads else gradient

    @property
    def head(self):
        """(C, V)"""
        tied = self.config.tie_word_embeddings
        return self.weights["wte.weight" if tied else "lm_head.weight"].T

    def forward(self, sequences, loss_from, prefix_of, prefixes, starts):
        """-> logits (M, V) and targets (M,)."""
        lengths = [len(s) for s in sequences]
        self.offsets = np.concatenate(([0], np.cumsum(lengths)))
        self.tokens = np.concatenate([np.asarray(s, np.int64) for s in sequences])
        self.positions = np.concatenate(
            [starts[p] + np.arange(n) for p, n in zip(prefix_of, lengths, strict=True)]
        )
        self.prefix_of = prefix_of
        self.rows = np.concatenate(
            [
                self.offsets[b] + np.arange(first - 1, n - 1)
                for b, (first, n) in enumerate(zip(loss_from, lengths, strict=True))
            ]
        )
        targets = np.concatenate(
            [np.asarray(s[first:], np.int64) for s, first in zip(sequences, loss_from, strict=True)]
        )
        wte, wpe = self.weights["wte.weight"], self.weights["wpe.weight"]
        x = embed(self.tokens, self.positions, wte, wpe)
        self.layers = [Layer(self, i) for i in range(self.config.n_layer)]
        for i, layer in enumerate(self.layers):
            keys = [prefixes[p][i, 0] for p in prefix_of]
            values = [prefixes[p][i, 1] for p in prefix_of]
            x = layer.forward(x, keys, values, self.offsets)
        gain, bias = self.weights["ln_f.weight"], self.weights["ln_f.bias"]
        eps = self.config.layer_norm_epsilon
        self.ln_f_out, self.ln_f = layernorm(x[self.rows], gain, bias, eps)
        logits = linear(self.ln_f_out, self.head, None)
        self.seen["logits"] = logits.copy()
        return logits, targets

    def backward(self, dlogits, prefixes, every=False):
        """-> the gradient of each prefix (L, 2, NH, P, hs)."""
        self.seen["dlogits"] = dlogits
        dprefixes = [np.zeros_like(prefix) for prefix in prefixes]
        dln_f = linear_backward(dlogits, self.head)
        if every:
            tied = self.config.tie_word_embeddings
            dhead = linear_backward_params(dlogits, self.ln_f_out)[0].T
            self.add("wte.weight" if tied else "lm_head.weight", dhead)
            dgain, dbias = layernorm_backward_params(dln_f, self.ln_f)
            self.add("ln_f.weight", dgain)
            self.add("ln_f.bias", dbias)
        dx = np.zeros((len(self.tokens), self.config.n_embd), dlogits.dtype)
        dx[self.rows] = layernorm_backward(dln_f, self.ln_f)
        for i in reversed(range(self.config.n_layer)):
            dx, dkeys, dvalues = self.layers[i].backward(dx, every)
            for b, p in enumerate(self.prefix_of):
                dprefixes[p][i, 0] += dkeys[b]
                dprefixes[p][i, 1] += dvalues[b]
        if every:
            wte, wpe = self.weights["wte.weight"], self.weights["wpe.weight"]
            dwte, dwpe = embed_backward_params(dx, self.tokens, self.positions, wte, wpe)
            self.add("wte.weight", dwte)
            self.add("wpe.weight", dwpe)
        return dprefixes


def run_model(problem: ModelProblem):
    model = Model(problem.config, problem.weights)
    prefixes = problem.prefixes
    starts = problem.position_offsets
    logits, targets = model.forward(
        problem.sequences, problem.loss_from, problem.prefix_of, prefixes, starts
    )
    share = 1 / len(targets) if problem.reduction == "mean" else 1.0
    loss, cache = cross_entropy(logits, targets, np.full(len(targets), share, logits.dtype))
    dprefixes = model.backward(cross_entropy_backward(cache), prefixes, problem.need == "all")
    results = dict(model.seen) | {"loss": loss}
    for i, d in enumerate(dprefixes):
        results |= {f"prefix.{i}.dk": d[:, 0], f"prefix.{i}.dv": d[:, 1]}
    return results | {f"d{name}": gradient for name, gradient in model.grads.items()}


# --- decoding --------------------------------------------------------------------------------


class Past:
    """The keys and values of one sequence in every layer: the prefix, then its tokens. There is
    room for `CHUNK` more tokens at first, and it doubles when it is full."""

    CHUNK = 16

    def __init__(self, prefix):
        L, _, NH, P, hs = prefix.shape
        self.length = P
        self.store = np.empty((L, 2, NH, P + self.CHUNK, hs), prefix.dtype)
        self.store[:, :, :, :P] = prefix

    def put(self, i, k, v):
        """k, v (NH, hs) of the newest token, in layer i."""
        room = self.store.shape[3]
        if self.length == room:
            wider = np.zeros(
                (*self.store.shape[:3], 2 * room, self.store.shape[4]), self.store.dtype
            )
            wider[:, :, :, :room] = self.store
            self.store = wider
        self.store[i, 0, :, self.length] = k
        self.store[i, 1, :, self.length] = v

    def see(self, i):
        """Keys and values of layer i with the newest token's: (NH, length + 1, hs)."""
        return self.store[i, :, :, : self.length + 1]


def attend_one(q, keys, values):
    """q (NH, hs), keys and values (NH, S, hs) -> z (NH, hs), by tiles of keys."""
    NH, hs = q.shape
    highest = np.full((NH, 1), -np.inf, q.dtype)
    total = np.zeros((NH, 1), q.dtype)
    mixed = np.zeros((NH, hs), q.dtype)
    for lo, hi in spans(0, keys.shape[1], KEYS):
        s = np.einsum("hd,hsd->hs", q, keys[:, lo:hi]) / math.sqrt(hs)
        higher = np.maximum(highest, s.max(axis=1, keepdims=True))
        shrink = np.exp(highest - higher)
        s = np.exp(s - higher)
        total = total * shrink + s.sum(axis=1, keepdims=True)
        mixed = mixed * shrink + np.einsum("hs,hsd->hd", s, values[:, lo:hi])
        highest = higher
    return mixed / total


def decode_step(model, tokens, positions, pasts):
    """The next token of each running sequence: tokens, positions (A,) -> logits (A, V)."""
    config, weights = model.config, model.weights
    eps, A = config.layer_norm_epsilon, len(tokens)
    x = embed(tokens, positions, weights["wte.weight"], weights["wpe.weight"])
    for i in range(config.n_layer):
        layer = Layer(model, i)
        qkv = linear(layernorm(x, *layer.weight("ln_1"), eps)[0], *layer.weight("attn.c_attn"))
        q, k, v = qkv.reshape(A, 3, config.n_head, -1).transpose(1, 0, 2, 3)
        z = np.empty_like(q)
        for a, past in enumerate(pasts):
            past.put(i, k[a], v[a])
            z[a] = attend_one(q[a], *past.see(i))
        x = x + linear(z.reshape(A, -1), *layer.weight("attn.c_proj"))
        inner = linear(layernorm(x, *layer.weight("ln_2"), eps)[0], *layer.weight("mlp.c_fc"))
        x = x + linear(gelu(inner)[0], *layer.weight("mlp.c_proj"))
    for past in pasts:
        past.length += 1
    out = layernorm(x, weights["ln_f.weight"], weights["ln_f.bias"], eps)[0]
    return linear(out, model.head, None)


def run_decoding(problem: ModelProblem):
    model = Model(problem.config, problem.weights)
    lengths = [len(s) for s in problem.sequences]
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    pasts = [Past(problem.prefixes[p]) for p in problem.prefix_of]
    starts = [problem.position_offsets[p] for p in problem.prefix_of]
    logits = None
    for t in range(max(lengths)):
        running = [b for b, length in enumerate(lengths) if t < length]
        tokens = np.array([problem.sequences[b][t] for b in running])
        positions = np.array([starts[b] + t for b in running])
        step = decode_step(model, tokens, positions, [pasts[b] for b in running])
        if logits is None:
            logits = np.empty((offsets[-1], step.shape[1]), step.dtype)
        logits[[offsets[b] + t for b in running]] = step
    return {"logits": logits}


# --- training --------------------------------------------------------------------------------


class Reparametrised:
    """kv = tanh(embedding weight_1 + bias_1) weight_2 + bias_2, and its backward."""

    def __init__(self, config, parameters):
        self.shape = (config.n_layer, 2, config.n_head, config.head_size)
        self.p = parameters

    def forward(self):
        p = self.p
        self.hidden = np.tanh(linear(p["embedding"], p["weight_1"], p["bias_1"]))
        flat = linear(self.hidden, p["weight_2"], p["bias_2"])
        return flat.reshape(-1, *self.shape).transpose(1, 2, 3, 0, 4)

    def backward(self, dkv):
        p = self.p
        dflat = dkv.transpose(3, 0, 1, 2, 4).reshape(dkv.shape[3], -1)
        dweight_2, dbias_2 = linear_backward_params(dflat, self.hidden)
        dhidden = linear_backward(dflat, p["weight_2"]) * (1 - self.hidden**2)
        dweight_1, dbias_1 = linear_backward_params(dhidden, p["embedding"])
        dembedding = linear_backward(dhidden, p["weight_1"])
        return {
            "embedding": dembedding,
            "weight_1": dweight_1,
            "bias_1": dbias_1,
            "weight_2": dweight_2,
            "bias_2": dbias_2,
        }


class Flat:
    """The prefix is its own parameter."""

    def __init__(self, config, parameters):
        self.p = parameters

    def forward(self):
        return self.p["kv"]

    def backward(self, dkv):
        return {"kv": dkv}


class AdamW:
    """Loshchilov & Hutter (2019). Decay is not part of the gradient."""

    def __init__(self, problem):
        self.problem = problem
        self.first = {}
        self.second = {}
        self.t = 0

    def rate(self, s):
        problem = self.problem
        if s < problem.warmup:
            return problem.lr * (s + 1) / problem.warmup
        return problem.lr * (len(problem.steps) - s) / (len(problem.steps) - problem.warmup)

    def step(self, parameters, gradients):
        """{name: array} each. The parameters change in place."""
        problem = self.problem
        rate = self.rate(self.t)
        self.t += 1
        for name, g in gradients.items():
            m = self.first.setdefault(name, np.zeros_like(g))
            v = self.second.setdefault(name, np.zeros_like(g))
            m += (1 - problem.beta1) * (g - m)
            v += (1 - problem.beta2) * (g * g - v)
            mhat = m / (1 - problem.beta1**self.t)
            vhat = v / (1 - problem.beta2**self.t)
            w = parameters[name]
            w -= rate * (mhat / (np.sqrt(vhat) + problem.eps) + problem.weight_decay * w)


def clip(gradients, limit):
    norm = math.sqrt(sum(float((g * g).sum()) for g in gradients.values()))
    if limit is not None and norm > limit:
        return {name: g * (limit / norm) for name, g in gradients.items()}
    return gradients


def gradient_of(problem, model, makers, batches):
    """-> the loss of a step and {(prefix, name): gradient}, over its micro-batches."""
    count = sum(
        len(s) - first
        for batch in batches
        for s, first in zip(batch.sequences, batch.loss_from, strict=True)
    )
    loss = 0.0
    prefixes = [maker.forward() for maker in makers]
    starts = [prefix.shape[3] for prefix in prefixes]
    dprefixes = [np.zeros_like(prefix) for prefix in prefixes]
    for batch in batches:
        logits, targets = model.forward(
            batch.sequences, batch.loss_from, batch.prefix_of, prefixes, starts
        )
        weights = np.full(len(targets), 1 / count, logits.dtype)
        its_loss, cache = cross_entropy(logits, targets, weights)
        loss += its_loss
        for total, d in zip(
            dprefixes, model.backward(cross_entropy_backward(cache), prefixes), strict=True
        ):
            total += d
    gradients = {}
    for i, (maker, d) in enumerate(zip(makers, dprefixes, strict=True)):
        gradients |= {(i, name): g for name, g in maker.backward(d).items()}
    return loss, gradients


def run_training(problem: TrainingProblem):
    model = Model(problem.config, problem.weights)
    own = [{name: a.copy() for name, a in p.items()} for p in problem.parameters]
    makers = [(Flat if "kv" in p else Reparametrised)(problem.config, p) for p in own]
    parameters = {(i, name): a for i, p in enumerate(own) for name, a in p.items()}
    optimizer = AdamW(problem)
    results = {}
    for s, batches in enumerate(problem.steps):
        loss, gradients = gradient_of(problem, model, makers, batches)
        optimizer.step(parameters, clip(gradients, problem.clip))
        results[f"step.{s}.loss"] = loss
        for (i, name), a in parameters.items():
            results[f"step.{s}.prefix.{i}.{name}"] = a.copy()
    return results
