"""A GPT-2 over batches padded to the longest sequence: einsum, boolean masks, and a whole model
with prefixes, decoding and training. It stands on NumPy and the contract's types alone."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from minprefix.conformance.contract import MicroBatch, ModelProblem, TrainingProblem
from minprefix.gpt2 import Config

Array = np.ndarray

VOCAB_TILE = 4096  # columns of the logits that are exponentiated at a time
ROW_TILE = 128  # tokens whose outer products are added up at a time
ROOM = 16  # the cache of decoding grows by so many tokens
SQRT_2_OVER_PI = 0.7978845608028654
CUBIC = 0.044715


# Embedding


def _sum_by_index(rows: Array, index: Array, like: Array) -> Array:
    """Rows with the same index, added up: sort, then add each run."""
    total = np.zeros_like(like)
    if len(index) == 0:
        return total
    order = np.argsort(index, kind="stable")
    ordered = index[order]
    is_first = np.concatenate([[True], ordered[1:] != ordered[:-1]])
    starts = np.flatnonzero(is_first)
    total[ordered[starts]] = np.add.reduceat(rows[order], starts, axis=0)
    return total


def embed(tokens: Array, positions: Array, wte: Array, wpe: Array) -> Array:
    x = wte[tokens]
    x += wpe[positions]
    return x


def embed_backward_params(
    dx: Array, tokens: Array, positions: Array, wte: Array, wpe: Array
) -> tuple[Array, Array]:
    return _sum_by_index(dx, tokens, wte), _sum_by_index(dx, positions, wpe)


# Layernorm


def layernorm(x: Array, gain: Array, bias: Array, eps: float) -> tuple[Array, dict[str, Array]]:
    centred = x - x.mean(-1, keepdims=True)
    variance = np.einsum("nc,nc->n", centred, centred) / x.shape[-1]
    std = np.sqrt(variance + x.dtype.type(eps))
    normal = centred / std[:, None]
    return normal * gain + bias, {"normal": normal, "std": std, "gain": gain}


def layernorm_backward_params(dout: Array, cache: dict[str, Array]) -> tuple[Array, Array]:
    return np.einsum("nc,nc->c", dout, cache["normal"]), dout.sum(0)


def layernorm_backward(dout: Array, cache: dict[str, Array]) -> Array:
    normal, std = cache["normal"], cache["std"]
    g = dout * cache["gain"]
    width = g.shape[-1]
    along = np.einsum("nc,nc->n", g, normal) / width
    g = g - g.mean(-1, keepdims=True) - normal * along[:, None]
    return g / std[:, None]


# Linear


def linear(x: Array, weight: Array, bias: Array | None) -> Array:
    out = np.einsum("ni,io->no", x, weight, optimize=True)
    if bias is not None:
        out = out + bias
    return out


def linear_backward(dout: Array, weight: Array) -> Array:
    return np.einsum("no,io->ni", dout, weight, optimize=True)


def linear_backward_params(dout: Array, x: Array) -> tuple[Array, Array]:
    dweight = np.zeros((x.shape[1], dout.shape[1]), dout.dtype)
    for start in range(0, len(x), ROW_TILE):
        stop = min(start + ROW_TILE, len(x))
        dweight += np.einsum("ni,no->io", x[start:stop], dout[start:stop], optimize=True)
    return dweight, np.einsum("no->o", dout)


# GELU


def gelu(x: Array) -> tuple[Array, tuple[Array, Array]]:
    square = x * x
    t = np.tanh(SQRT_2_OVER_PI * x * (1 + CUBIC * square))
    return 0.5 * x * (1 + t), (x, t)


def gelu_backward(dout: Array, cache: tuple[Array, Array]) -> Array:
    x, t = cache
    slope = SQRT_2_OVER_PI * (1 + 3 * CUBIC * x * x)
    dx = 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * slope
    dx *= dout
    return dx


# Attention


@dataclass
class Padded:
    """What attention keeps: the padded queries, keys and values, and the pattern over them."""

    q: Array  # (N, NH, hs), as they came
    k: Array
    v: Array
    slots: list[int]  # P of each sequence
    there: Array  # (B, T): is this a token?
    queries: Array  # (B, NH, T, hs)
    keys: Array  # (B, NH, P + T, hs): the prefix stands first, padded to the longest prefix
    values: Array
    weights: Array  # (B, NH, T, P + T)


@lru_cache(maxsize=8)
def _causal(T: int) -> Array:
    mask = np.tri(T, dtype=bool)
    mask.flags.writeable = False
    return mask


def _pad(flat: Array, there: Array) -> Array:
    """(N, NH, hs) -> (B, NH, T, hs), zeros where no token is."""
    boxes = np.zeros((*there.shape, *flat.shape[1:]), flat.dtype)
    boxes[there] = flat
    return boxes.transpose(0, 2, 1, 3)


def _flatten(boxes: Array, there: Array) -> Array:
    """(B, NH, T, hs) -> (N, NH, hs)."""
    return boxes.transpose(0, 2, 1, 3)[there]


def _pad_prefixes(prefixes: Sequence[Array], P: int) -> Array:
    """B arrays (NH, P_b, hs) -> (B, NH, P, hs)."""
    NH, _, hs = prefixes[0].shape
    boxes = np.zeros((len(prefixes), NH, P, hs), prefixes[0].dtype)
    for b, prefix in enumerate(prefixes):
        boxes[b, :, : prefix.shape[1]] = prefix
    return boxes


def _visible(there: Array, slots: list[int]) -> Array:
    """(B, T, P + T): may query i of sequence b look at key j?"""
    B, T = there.shape
    P = max(slots)
    in_prefix = np.arange(P)[None, :] < np.array(slots)[:, None]
    in_prefix = np.broadcast_to(in_prefix[:, None, :], (B, T, P))
    in_tokens = _causal(T)[None] & there[:, None, :]
    return np.concatenate([in_prefix, in_tokens], axis=2)


def _softmax(scores: Array, mask: Array) -> Array:
    scores = np.where(mask, scores, -np.inf)
    scores = scores - scores.max(-1, keepdims=True)
    weights = np.exp(scores)
    return weights / weights.sum(-1, keepdims=True)


def attention(
    q: Array,
    k: Array,
    v: Array,
    prefix_k: Sequence[Array],
    prefix_v: Sequence[Array],
    offsets: Array,
) -> tuple[Array, Padded]:
    lengths = np.diff(offsets)
    there = np.arange(lengths.max())[None, :] < lengths[:, None]
    slots = [p.shape[1] for p in prefix_k]
    P = max(slots)
    queries = _pad(q, there)
    keys = np.concatenate([_pad_prefixes(prefix_k, P), _pad(k, there)], axis=2)
    values = np.concatenate([_pad_prefixes(prefix_v, P), _pad(v, there)], axis=2)
    scale = q.dtype.type(1 / np.sqrt(q.shape[-1]))
    scores = np.einsum("bhid,bhjd->bhij", queries, keys, optimize=True) * scale
    weights = _softmax(scores, _visible(there, slots)[:, None])
    z = np.einsum("bhij,bhjd->bhid", weights, values, optimize=True)
    cache = Padded(q, k, v, slots, there, queries, keys, values, weights)
    return _flatten(z, there), cache


def attention_backward(
    dz: Array, cache: Padded
) -> tuple[Array, Array, Array, list[Array], list[Array]]:
    weights = cache.weights
    dout = _pad(dz, cache.there)
    dvalues = np.einsum("bhij,bhid->bhjd", weights, dout, optimize=True)
    dweights = np.einsum("bhid,bhjd->bhij", dout, cache.values, optimize=True)
    inner = np.einsum("bhij,bhij->bhi", dweights, weights)
    dscores = weights * (dweights - inner[..., None])
    dscores *= 1 / np.sqrt(dz.shape[-1])
    dqueries = np.einsum("bhij,bhjd->bhid", dscores, cache.keys, optimize=True)
    dkeys = np.einsum("bhij,bhid->bhjd", dscores, cache.queries, optimize=True)
    P = max(cache.slots)
    return (
        _flatten(dqueries, cache.there),
        _flatten(dkeys[:, :, P:], cache.there),
        _flatten(dvalues[:, :, P:], cache.there),
        [dkeys[b, :, :p].copy() for b, p in enumerate(cache.slots)],
        [dvalues[b, :, :p].copy() for b, p in enumerate(cache.slots)],
    )


# Cross-entropy


def _tiles(width: int) -> Iterator[slice]:
    for start in range(0, width, VOCAB_TILE):
        yield slice(start, min(start + VOCAB_TILE, width))


def cross_entropy(
    logits: Array, targets: Array, weights: Array
) -> tuple[np.generic, dict[str, Array]]:
    top = logits.max(1, keepdims=True)
    total = np.zeros(len(logits), logits.dtype)
    for tile in _tiles(logits.shape[1]):
        total += np.exp(logits[:, tile] - top).sum(1)
    log_total = np.log(total) + top[:, 0]
    nll = log_total - logits[np.arange(len(targets)), targets]
    cache = {"logits": logits, "log_total": log_total, "goal": targets, "per_row": weights}
    return (weights * nll).sum(), cache


def cross_entropy_backward(cache: dict[str, Array]) -> Array:
    dlogits, per_row = cache["logits"], cache["per_row"]
    for tile in _tiles(dlogits.shape[1]):
        block = np.exp(dlogits[:, tile] - cache["log_total"][:, None])
        dlogits[:, tile] = block * per_row[:, None]
    dlogits[np.arange(len(dlogits)), cache["goal"]] -= per_row
    return dlogits


# A whole GPT-2


@dataclass
class Batch:
    """Sequences as the model reads them: without their last tokens, which are predicted only."""

    tokens: Array  # (N,)
    positions: Array  # (N,)
    offsets: Array  # (B+1,)
    prefix_of: list[int]
    rows: Array  # (M,): the tokens that predict
    targets: Array  # (M,)


def _batch(
    sequences: Sequence[Sequence[int]],
    loss_from: Sequence[int],
    prefix_of: Sequence[int],
    first_position: Sequence[int],
) -> Batch:
    tokens: list[int] = []
    positions: list[int] = []
    offsets, seen, rows, targets = [0], [], [], []
    for sequence, start, which in zip(sequences, loss_from, prefix_of, strict=True):
        read = list(sequence[:-1])
        if not read:
            continue
        base = len(tokens)
        rows += [base + i - 1 for i in range(max(start, 1), len(sequence))]
        targets += list(sequence[max(start, 1) :])
        tokens += read
        positions += range(first_position[which], first_position[which] + len(read))
        offsets.append(len(tokens))
        seen.append(which)
    ints = [np.array(a, dtype=np.int64) for a in (tokens, positions, offsets, rows, targets)]
    return Batch(ints[0], ints[1], ints[2], seen, ints[3], ints[4])


class Model:
    """The weights of a frozen GPT-2, its forward, and its backward."""

    def __init__(self, config: Config, weights: Mapping[str, Array], all_gradients: bool = False):
        self.config = config
        self.weights = weights
        self.all_gradients = all_gradients
        self.dtype = weights["wte.weight"].dtype
        self.gradients: dict[str, Array] = {}

    @property
    def head(self) -> str:
        return "wte.weight" if self.config.tie_word_embeddings else "lm_head.weight"

    def split(self, x: Array) -> tuple[Array, Array, Array]:
        """(N, 3C) -> three times (N, NH, hs)."""
        shape = (len(x), 3, self.config.n_head, self.config.head_size)
        q, k, v = np.moveaxis(x.reshape(shape), 1, 0)
        return q, k, v

    def merge(self, z: Array) -> Array:
        return z.reshape(len(z), -1)

    def layer(self, name: str, x: Array) -> Array:
        return linear(x, self.weights[name + ".weight"], self.weights[name + ".bias"])

    def norm(self, name: str, x: Array) -> tuple[Array, dict[str, Array]]:
        gain, bias = self.weights[name + ".weight"], self.weights[name + ".bias"]
        return layernorm(x, gain, bias, self.config.layer_norm_epsilon)

    def forward(self, batch: Batch, prefixes: Sequence[Array]) -> tuple[Array, list[Any]]:
        """-> logits (M, V), and what the backward needs."""
        W = self.weights
        x = embed(batch.tokens, batch.positions, W["wte.weight"], W["wpe.weight"])
        kept: list[Any] = []
        for i in range(self.config.n_layer):
            a, ln_1 = self.norm(f"h.{i}.ln_1", x)
            q, k, v = self.split(self.layer(f"h.{i}.attn.c_attn", a))
            keys = [prefixes[j][i, 0] for j in batch.prefix_of]
            values = [prefixes[j][i, 1] for j in batch.prefix_of]
            z, looked = attention(q, k, v, keys, values, batch.offsets)
            z = self.merge(z)
            x = x + self.layer(f"h.{i}.attn.c_proj", z)
            m, ln_2 = self.norm(f"h.{i}.ln_2", x)
            post, act = gelu(self.layer(f"h.{i}.mlp.c_fc", m))
            x = x + self.layer(f"h.{i}.mlp.c_proj", post)
            kept.append((a, ln_1, looked, z, m, ln_2, act, post))
        last, ln_f = self.norm("ln_f", x[batch.rows])
        kept.append((last, ln_f))
        return linear(last, W[self.head].T, None), kept

    def layer_backward(self, name: str, dout: Array, x: Array) -> Array:
        if self.all_gradients:
            dweight, dbias = linear_backward_params(dout, x)
            self.gradients[name + ".weight"] = dweight
            self.gradients[name + ".bias"] = dbias
        return linear_backward(dout, self.weights[name + ".weight"])

    def norm_backward(self, name: str, dout: Array, cache: dict[str, Array]) -> Array:
        if self.all_gradients:
            dgain, dbias = layernorm_backward_params(dout, cache)
            self.gradients[name + ".weight"] = dgain
            self.gradients[name + ".bias"] = dbias
        return layernorm_backward(dout, cache)

    def backward(
        self, dlogits: Array, batch: Batch, kept: list[Any], prefixes: Sequence[Array]
    ) -> list[Array]:
        """-> the gradient of each prefix (L, 2, NH, P, hs). Those of weights: `gradients`."""
        dprefixes = [np.zeros_like(p) for p in prefixes]
        last, ln_f = kept.pop()
        dhead, _ = linear_backward_params(last, dlogits) if self.all_gradients else (None, None)
        dlast = self.norm_backward("ln_f", dlogits @ self.weights[self.head], ln_f)
        dx = np.zeros((len(batch.tokens), self.config.n_embd), self.dtype)
        dx[batch.rows] = dlast
        for i in reversed(range(self.config.n_layer)):
            a, ln_1, looked, z, m, ln_2, act, post = kept.pop()
            dact = gelu_backward(self.layer_backward(f"h.{i}.mlp.c_proj", dx, post), act)
            dm = self.layer_backward(f"h.{i}.mlp.c_fc", dact, m)
            dx = dx + self.norm_backward(f"h.{i}.ln_2", dm, ln_2)
            dz = self.layer_backward(f"h.{i}.attn.c_proj", dx, z)
            dz = dz.reshape(len(dz), self.config.n_head, -1)
            dq, dk, dv, dkeys, dvalues = attention_backward(dz, looked)
            for b, j in enumerate(batch.prefix_of):
                dprefixes[j][i, 0] += dkeys[b]
                dprefixes[j][i, 1] += dvalues[b]
            if i == 0 and not self.all_gradients:
                break
            dqkv = np.concatenate([self.merge(d) for d in (dq, dk, dv)], axis=1)
            da = self.layer_backward(f"h.{i}.attn.c_attn", dqkv, a)
            dx = dx + self.norm_backward(f"h.{i}.ln_1", da, ln_1)
        if dhead is not None:
            self.embedding_gradients(dx, dhead, batch)
        return dprefixes

    def embedding_gradients(self, dx: Array, dhead: Array, batch: Batch) -> None:
        W = self.weights
        dwte, dwpe = embed_backward_params(
            dx, batch.tokens, batch.positions, W["wte.weight"], W["wpe.weight"]
        )
        self.gradients["wte.weight"], self.gradients["wpe.weight"] = dwte, dwpe
        if self.config.tie_word_embeddings:
            self.gradients["wte.weight"] = dwte + dhead
        else:
            self.gradients["lm_head.weight"] = dhead


def run_model(problem: ModelProblem) -> dict[str, Array]:
    p = problem
    model = Model(p.config, p.weights, all_gradients=p.need == "all")
    batch = _batch(p.sequences, p.loss_from, p.prefix_of, p.position_offsets)
    M = len(batch.targets)
    each = 1 / M if p.reduction == "mean" else 1.0
    logits, kept = model.forward(batch, p.prefixes)
    shown = logits.copy()
    loss, cache = cross_entropy(logits, batch.targets, np.full(M, each, model.dtype))
    dprefixes = model.backward(cross_entropy_backward(cache), batch, kept, p.prefixes)
    tensors: dict[str, Array] = {"logits": shown, "loss": np.asarray(loss)}
    for i, d in enumerate(dprefixes):
        tensors[f"prefix.{i}.dk"] = d[:, 0]
        tensors[f"prefix.{i}.dv"] = d[:, 1]
    return tensors | {f"d{name}": g for name, g in model.gradients.items()}


# Decoding


class Past:
    """The keys and values of one sequence in all layers: its prefix, then its tokens so far."""

    def __init__(self, prefix: Array):
        L, _, NH, P, hs = prefix.shape
        self.length = P
        self.room = np.zeros((L, 2, NH, P + ROOM, hs), prefix.dtype)
        self.room[:, :, :, :P] = prefix

    def append(self, layer: int, k: Array, v: Array) -> None:
        """k, v (NH, hs): those of the token that is being read."""
        if self.length == self.room.shape[3]:
            more = np.zeros_like(self.room[:, :, :, :1]).repeat(ROOM, axis=3)
            self.room = np.concatenate([self.room, more], axis=3)
        self.room[layer, 0, :, self.length] = k
        self.room[layer, 1, :, self.length] = v

    def look(self, layer: int, q: Array) -> Array:
        """q (NH, hs) -> z (NH, hs)."""
        keys, values = self.room[layer, :, :, : self.length + 1]
        scores = np.einsum("hd,hjd->hj", q, keys) * (1 / np.sqrt(q.shape[-1]))
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        return np.einsum("hj,hjd->hd", weights, values)


def _step(model: Model, tokens: Array, positions: Array, pasts: Sequence[Past]) -> Array:
    """One token of each sequence -> logits (B, V)."""
    W = model.weights
    x = embed(tokens, positions, W["wte.weight"], W["wpe.weight"])
    for i in range(model.config.n_layer):
        a, _ = model.norm(f"h.{i}.ln_1", x)
        q, k, v = model.split(model.layer(f"h.{i}.attn.c_attn", a))
        z = np.empty_like(q)
        for b, past in enumerate(pasts):
            past.append(i, k[b], v[b])
            z[b] = past.look(i, q[b])
        x = x + model.layer(f"h.{i}.attn.c_proj", model.merge(z))
        m, _ = model.norm(f"h.{i}.ln_2", x)
        post, _ = gelu(model.layer(f"h.{i}.mlp.c_fc", m))
        x = x + model.layer(f"h.{i}.mlp.c_proj", post)
    for past in pasts:
        past.length += 1
    last, _ = model.norm("ln_f", x)
    return linear(last, W[model.head].T, None)


def run_decoding(problem: ModelProblem) -> dict[str, Array]:
    p = problem
    model = Model(p.config, p.weights)
    lengths = [len(s) for s in p.sequences]
    pasts = [Past(p.prefixes[j]) for j in p.prefix_of]
    starts = np.concatenate([[0], np.cumsum(lengths)])
    logits = np.zeros((starts[-1], p.config.vocab_size), model.dtype)
    for t in range(max(lengths)):
        alive = [b for b, T in enumerate(lengths) if t < T]
        tokens = np.array([p.sequences[b][t] for b in alive])
        positions = np.array([p.position_offsets[p.prefix_of[b]] + t for b in alive])
        logits[starts[alive] + t] = _step(model, tokens, positions, [pasts[b] for b in alive])
    return {"logits": logits}


# Training


class AdamW:
    """One optimizer for the parameters of all prefixes."""

    def __init__(self, problem: TrainingProblem, parameters: Sequence[dict[str, Array]]):
        self.problem = problem
        self.first = [{n: np.zeros_like(a) for n, a in p.items()} for p in parameters]
        self.second = [{n: np.zeros_like(a) for n, a in p.items()} for p in parameters]

    def rate(self, s: int) -> float:
        p = self.problem
        if s < p.warmup:
            return p.lr * (s + 1) / p.warmup
        return p.lr * (len(p.steps) - s) / (len(p.steps) - p.warmup)

    def clip(self, gradients: Sequence[dict[str, Array]]) -> None:
        limit = self.problem.clip
        if limit is None:
            return
        norm = np.sqrt(sum(np.sum(g * g) for each in gradients for g in each.values()))
        if norm > limit:
            for each in gradients:
                for g in each.values():
                    g *= limit / norm

    def update(
        self, s: int, parameters: Sequence[dict[str, Array]], gradients: Sequence[dict[str, Array]]
    ) -> None:
        p, rate = self.problem, self.rate(s)
        self.clip(gradients)
        for i, each in enumerate(parameters):
            for name, a in each.items():
                g, first, second = gradients[i][name], self.first[i][name], self.second[i][name]
                first *= p.beta1
                first += (1 - p.beta1) * g
                second *= p.beta2
                second += (1 - p.beta2) * g * g
                mean = first / (1 - p.beta1 ** (s + 1))
                spread = np.sqrt(second / (1 - p.beta2 ** (s + 1)))
                a *= 1 - rate * p.weight_decay
                a -= rate * mean / (spread + p.eps)


def _prefix(config: Config, parameters: Mapping[str, Array]) -> tuple[Array, Array | None]:
    """-> the prefix (L, 2, NH, P, hs), and the hidden layer (P, H) where there is one."""
    if "kv" in parameters:
        return parameters["kv"], None
    hidden = parameters["embedding"] @ parameters["weight_1"] + parameters["bias_1"]
    hidden = np.tanh(hidden)
    flat = hidden @ parameters["weight_2"] + parameters["bias_2"]
    boxes = flat.reshape(len(flat), config.n_layer, 2, config.n_head, config.head_size)
    return boxes.transpose(1, 2, 3, 0, 4), hidden


def _prefix_backward(
    dprefix: Array, parameters: Mapping[str, Array], hidden: Array | None
) -> dict[str, Array]:
    if hidden is None:
        return {"kv": dprefix}
    dflat = dprefix.transpose(3, 0, 1, 2, 4).reshape(len(hidden), -1)
    dhidden = (dflat @ parameters["weight_2"].T) * (1 - hidden**2)
    return {
        "embedding": dhidden @ parameters["weight_1"].T,
        "weight_1": parameters["embedding"].T @ dhidden,
        "bias_1": dhidden.sum(0),
        "weight_2": hidden.T @ dflat,
        "bias_2": dflat.sum(0),
    }


def _gradients(
    model: Model, step: Sequence[MicroBatch], parameters: Sequence[Mapping[str, Array]]
) -> tuple[float, list[dict[str, Array]]]:
    """-> the loss of a step, and the gradient of each prefix's parameters."""
    made = [_prefix(model.config, p) for p in parameters]
    prefixes = [np.ascontiguousarray(prefix) for prefix, _ in made]
    first_position = [prefix.shape[3] for prefix in prefixes]
    batches = [_batch(m.sequences, m.loss_from, m.prefix_of, first_position) for m in step]
    M = sum(len(b.targets) for b in batches)
    loss, totals = 0.0, [np.zeros_like(prefix) for prefix in prefixes]
    for batch in batches:
        if len(batch.targets) == 0:
            continue
        logits, kept = model.forward(batch, prefixes)
        each = np.full(len(batch.targets), 1 / M, model.dtype)
        part, cache = cross_entropy(logits, batch.targets, each)
        loss += float(part)
        dprefixes = model.backward(cross_entropy_backward(cache), batch, kept, prefixes)
        for total, d in zip(totals, dprefixes, strict=True):
            total += d
    back = zip(totals, parameters, made, strict=True)
    return loss, [_prefix_backward(d, p, hidden) for d, p, (_, hidden) in back]


def run_training(problem: TrainingProblem) -> dict[str, Array]:
    model = Model(problem.config, problem.weights)
    parameters = [{name: a.copy() for name, a in p.items()} for p in problem.parameters]
    optimizer = AdamW(problem, parameters)
    tensors: dict[str, Array] = {}
    for s, step in enumerate(problem.steps):
        loss, gradients = _gradients(model, step, parameters)
        tensors[f"step.{s}.loss"] = np.asarray(loss)
        optimizer.update(s, parameters, gradients)
        for i, each in enumerate(parameters):
            for name, a in each.items():
                tensors[f"step.{s}.prefix.{i}.{name}"] = a.copy()
    return tensors
