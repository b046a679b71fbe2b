"""GPT-2 with a prefix: the forward, and the backward that mirrors it line by line. Read it from
top to bottom; each backward stands below its forward.

    Config              the numbers of `config.json` that shape the arithmetic
    embedding           from tokens to the first residual stream
    attention_half      the first half of a block, from residual stream to residual stream
    mlp_half            the second half
    forward             the stack of blocks, from the first residual stream to the last
    head, head_loss     from the last residual stream to the logits, and to the loss

Radford et al., 2019 (GPT-2); Li & Liang, 2021 (the prefix). Weights keep the names of the
checkpoint (`h.0.attn.c_attn.weight`), so there is no translation to read. Symbols:
`ops/contract.py`.

`need` is the set of the weights whose gradient is wanted: empty for a prefix, all of them for full
fine-tuning. A forward keeps, and a backward computes, only what these need.
"""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from minprefix.ops.contract import Array, AttentionCache, GeluCache, LayernormCache, Ops

Weights = Mapping[str, Array]
#: what a sequence of the batch sees before its own tokens: keys and values, (NH, P, hs) each
KeysValues = tuple[Array, Array]
#: its gradients, apart: dprefix_k and dprefix_v, for each sequence (NH, P, hs)
PastGrads = tuple[Sequence[Array], Sequence[Array]]


@dataclass(frozen=True)
class Config:
    """The shape of a GPT-2. Field names are those of `config.json`."""

    n_layer: int
    n_head: int
    n_embd: int
    vocab_size: int
    n_positions: int
    n_inner: int | None = None  # None: 4 * n_embd
    layer_norm_epsilon: float = 1e-5
    tie_word_embeddings: bool = True
    bos_token_id: int | None = None
    eos_token_id: int | tuple[int, ...] | None = None

    @property
    def end_tokens(self) -> tuple[int, ...]:
        """The tokens at which decoding stops; training puts the first of them after a target."""
        ids = self.eos_token_id
        several = () if ids is None else (ids,) if isinstance(ids, int) else ids
        return tuple(i for i in several if 0 <= i < self.vocab_size)

    @property
    def head_size(self) -> int:
        """hs = C / NH."""
        return self.n_embd // self.n_head

    def room(self, start: int = 0) -> int:
        """How many tokens a sequence may have whose first one is at position `start`: one for each
        position from there on, and a last one that is only predicted and needs none."""
        return self.n_positions - start + 1

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The name and shape of every weight."""
        C, F = self.n_embd, self.n_inner or 4 * self.n_embd
        shapes: dict[str, tuple[int, ...]] = {
            "wte.weight": (self.vocab_size, C),
            "wpe.weight": (self.n_positions, C),
        }
        of_layer = ((C,), (C, 3 * C), (C, C), (C,), (C, F), (F, C))
        for i in range(self.n_layer):
            for layer, shape in zip(LAYERS, of_layer, strict=True):
                shapes[f"h.{i}.{layer}.weight"] = shape
                shapes[f"h.{i}.{layer}.bias"] = shape[-1:]
        shapes |= {"ln_f.weight": (C,), "ln_f.bias": (C,)}
        if not self.tie_word_embeddings:
            shapes["lm_head.weight"] = (self.vocab_size, C)
        return shapes


#: the layers of a block that have weights, in the order of the forward
LAYERS = ("ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj")


class Stream(NamedTuple):
    """A batch as the model reads it. The past is what a sequence sees before its own tokens: a
    trained prefix, or while decoding the prefix and every earlier token. Attention makes no
    difference between them, and there is no other code for it."""

    tokens: Array  # (N,)
    positions: Array  # (N,)
    offsets: Array  # (B+1,): sequence b is tokens[offsets[b]:offsets[b+1]]
    past: Sequence[Sequence[KeysValues]]  # past[layer][sequence]


# ---- the embedding ----------------------------------------------------------------------------


def embedding(stream: Stream, w: Weights, ops: Ops) -> Array:
    """-> the first residual stream (N, C)."""
    return ops.embed(stream.tokens, stream.positions, w["wte.weight"], w["wpe.weight"])


def embedding_backward(
    dx: Array, stream: Stream, w: Weights, ops: Ops, need: Set[str]
) -> dict[str, Array]:
    """dx: the gradient of the first residual stream (N, C) -> those of wte and wpe."""
    dwte, dwpe = ops.embed_backward_params(
        dx, stream.tokens, stream.positions, w["wte.weight"], w["wpe.weight"]
    )
    return _wanted({"wte.weight": dwte, "wpe.weight": dwpe}, need)


# ---- the gradients of weights -----------------------------------------------------------------


def _wanted(grads: dict[str, Array], need: Set[str]) -> dict[str, Array]:
    return {name: a for name, a in grads.items() if name in need}


def _needed_input(x: Array, layer: str, need: Set[str]) -> Array | None:
    """The part of its input x (n, in) that a linear layer keeps: all of it for the gradient of the
    weight, no column (n, 0) for that of the bias alone, None for neither."""
    if f"{layer}.weight" in need:
        return x
    return x[:, :0].copy() if f"{layer}.bias" in need else None


def _linear_params(
    dout: Array, x: Array | None, layer: str, ops: Ops, need: Set[str]
) -> dict[str, Array]:
    """x: what `_needed_input` kept."""
    if x is None:
        return {}
    dweight, dbias = ops.linear_backward_params(dout, x)
    return _wanted({f"{layer}.weight": dweight, f"{layer}.bias": dbias}, need)


def _layernorm_params(
    dout: Array, cache: LayernormCache, layer: str, ops: Ops, need: Set[str]
) -> dict[str, Array]:
    if not _wants(need, layer):
        return {}
    dgain, dbias = ops.layernorm_backward_params(dout, cache)
    return _wanted({f"{layer}.weight": dgain, f"{layer}.bias": dbias}, need)


def _wants(need: Set[str], *layers: str) -> bool:
    return any(f"{layer}.{part}" in need for layer in layers for part in ("weight", "bias"))


# ---- a block: its attention -------------------------------------------------------------------


class AttentionHalfCache(NamedTuple):
    """What the backward of the first half needs. n is M where the block was asked for M rows, else
    N."""

    need: Set[str]
    ln_1: LayernormCache
    ln_1_out: Array | None  # (N, C)  these two as `_needed_input` kept them
    attention: AttentionCache
    rows: Array | None  # (M,)
    z: Array | None  # (n, C)


def attention_half(
    x: Array,
    w: Weights,
    past: Sequence[KeysValues],
    offsets: Array,
    cfg: Config,
    ops: Ops,
    need: Set[str] = frozenset(),
    rows: Array | None = None,
) -> tuple[Array, AttentionHalfCache]:
    """x: resid_pre (N, C); past: for each sequence the keys and values it sees first -> resid_mid
    (n, C): of `rows` (M,) where the others are not used any further, or of all N."""
    N, C, NH = len(x), cfg.n_embd, cfg.n_head
    a, ln_1 = ops.layernorm(x, w["ln_1.weight"], w["ln_1.bias"], cfg.layer_norm_epsilon)  # (N, C)
    qkv = ops.linear(a, w["attn.c_attn.weight"], w["attn.c_attn.bias"])  # (N, 3C)
    q, k, v = (qkv.reshape(N, 3, NH, C // NH)[:, j] for j in range(3))  # (N, NH, hs) each
    prefix_k, prefix_v = [kv[0] for kv in past], [kv[1] for kv in past]
    z, attention = ops.attention(q, k, v, prefix_k, prefix_v, offsets)  # (N, NH, hs)
    z = z.reshape(N, C)
    if rows is not None:  # the other tokens have given their keys and values: nothing else is used
        x, z = x[rows], z[rows]  # (n, C)
    x = x + ops.linear(z, w["attn.c_proj.weight"], w["attn.c_proj.bias"])  # (n, C)  resid_mid
    ln_1_out = _needed_input(a, "attn.c_attn", need)
    z_kept = _needed_input(z, "attn.c_proj", need)
    return x, AttentionHalfCache(need, ln_1, ln_1_out, attention, rows, z_kept)


class BlockGrads(NamedTuple):
    dx: Array | None  # (N, C)  None where it is not needed: only frozen weights lie below
    dpast: PastGrads
    dweights: dict[str, Array]  # by their names in the block


def attention_half_backward(
    dx: Array, w: Weights, cache: AttentionHalfCache, ops: Ops, need_dx: bool
) -> BlockGrads:
    """dx: the gradient of resid_mid (n, C) -> that of resid_pre, of the past, and of the weights
    that the forward was told."""
    need = cache.need
    N, NH, hs = cache.attention.q.shape
    # x = x + linear(z): the gradient goes both ways, around the attention and through it
    dw = _linear_params(dx, cache.z, "attn.c_proj", ops, need)
    dz = ops.linear_backward(dx, w["attn.c_proj.weight"])  # (n, C)
    if cache.rows is not None:  # the loss does not depend on the other rows
        dx, dz = _at(cache.rows, dx, N), _at(cache.rows, dz, N)  # (N, C)
    grads = ops.attention_backward(dz.reshape(N, NH, hs), cache.attention)
    dpast = (grads.dprefix_k, grads.dprefix_v)
    if not (need_dx or _wants(need, "attn.c_attn", "ln_1")):
        return BlockGrads(None, dpast, dw)
    dqkv = np.stack([grads.dq, grads.dk, grads.dv], axis=1).reshape(N, 3 * NH * hs)  # (N, 3C)
    dw |= _linear_params(dqkv, cache.ln_1_out, "attn.c_attn", ops, need)
    if not (need_dx or _wants(need, "ln_1")):
        return BlockGrads(None, dpast, dw)
    da = ops.linear_backward(dqkv, w["attn.c_attn.weight"])  # (N, C)
    dw |= _layernorm_params(da, cache.ln_1, "ln_1", ops, need)
    dx = dx + ops.layernorm_backward(da, cache.ln_1)  # (N, C)  of resid_pre
    return BlockGrads(dx, dpast, dw)


def _at(rows: Array, a: Array, N: int) -> Array:
    """a (M, C) in its rows of N, the others 0."""
    out = np.zeros_like(a, shape=(N, a.shape[1]))  # (N, C)
    out[rows] = a
    return out


# ---- a block: its MLP -------------------------------------------------------------------------


class MlpHalfCache(NamedTuple):
    """What the backward of the second half needs."""

    need: Set[str]
    ln_2: LayernormCache
    ln_2_out: Array | None  # (n, C)  these two as `_needed_input` kept them
    gelu: GeluCache
    gelu_out: Array | None  # (n, F)


def mlp_half(
    x: Array, w: Weights, cfg: Config, ops: Ops, need: Set[str] = frozenset()
) -> tuple[Array, MlpHalfCache]:
    """x: resid_mid (n, C) -> resid_post (n, C)."""
    eps = cfg.layer_norm_epsilon
    m, ln_2 = ops.layernorm(x, w["ln_2.weight"], w["ln_2.bias"], eps)  # (n, C)
    h = ops.linear(m, w["mlp.c_fc.weight"], w["mlp.c_fc.bias"])  # (n, F)
    g, gelu = ops.gelu(h)  # (n, F)
    x = x + ops.linear(g, w["mlp.c_proj.weight"], w["mlp.c_proj.bias"])  # (n, C)  resid_post
    ln_2_out = _needed_input(m, "mlp.c_fc", need)
    return x, MlpHalfCache(need, ln_2, ln_2_out, gelu, _needed_input(g, "mlp.c_proj", need))


def mlp_half_backward(
    dx: Array, w: Weights, cache: MlpHalfCache, ops: Ops
) -> tuple[Array, dict[str, Array]]:
    """dx: the gradient of resid_post (n, C) -> that of resid_mid, and of the weights that the
    forward was told."""
    # x = x + linear(g): the gradient goes both ways, around the MLP and through it
    dw = _linear_params(dx, cache.gelu_out, "mlp.c_proj", ops, cache.need)
    dg = ops.linear_backward(dx, w["mlp.c_proj.weight"])  # (n, F)
    dh = ops.gelu_backward(dg, cache.gelu)  # (n, F)
    dw |= _linear_params(dh, cache.ln_2_out, "mlp.c_fc", ops, cache.need)
    dm = ops.linear_backward(dh, w["mlp.c_fc.weight"])  # (n, C)
    dw |= _layernorm_params(dm, cache.ln_2, "ln_2", ops, cache.need)
    dx = dx + ops.layernorm_backward(dm, cache.ln_2)  # (n, C)  of resid_mid
    return dx, dw


# ---- the stack of blocks ----------------------------------------------------------------------


class BlockCache(NamedTuple):
    attn: AttentionHalfCache
    mlp: MlpHalfCache


def block_forward(
    x: Array,
    w: Weights,
    past: Sequence[KeysValues],
    offsets: Array,
    cfg: Config,
    ops: Ops,
    need: Set[str] = frozenset(),
    rows: Array | None = None,
) -> tuple[Array, BlockCache]:
    """resid_pre (N, C) -> resid_post (n, C); w and need by the names in the block, the rest as
    `attention_half` takes it."""
    x, attn = attention_half(x, w, past, offsets, cfg, ops, need, rows)
    x, mlp = mlp_half(x, w, cfg, ops, need)
    return x, BlockCache(attn, mlp)


def block_backward(dx: Array, w: Weights, cache: BlockCache, ops: Ops, need_dx: bool) -> BlockGrads:
    """dx: the gradient of resid_post (n, C) -> that of resid_pre, of the past, and of the
    weights."""
    dx, dw = mlp_half_backward(dx, w, cache.mlp, ops)
    grads = attention_half_backward(dx, w, cache.attn, ops, need_dx)
    return grads._replace(dweights=dw | grads.dweights)


def _block(w: Weights, i: int) -> dict[str, Array]:
    """The weights of block i by their names in it."""
    return {name: w[f"h.{i}.{name}"] for name in _NAMES}


_NAMES = tuple(f"{layer}.{part}" for layer in LAYERS for part in ("weight", "bias"))


def forward(
    x: Array,
    stream: Stream,
    w: Weights,
    cfg: Config,
    ops: Ops,
    need: Set[str] = frozenset(),
    rows: Array | None = None,
) -> tuple[Array, list[BlockCache]]:
    """x: the first residual stream (N, C) -> the last one (n, C), of all tokens or of `rows`
    (M,)."""
    blocks = []
    for i in range(cfg.n_layer):
        its_rows = rows if i == cfg.n_layer - 1 else None
        its_need = {name for name in _NAMES if f"h.{i}.{name}" in need}
        x, cache = block_forward(
            x, _block(w, i), stream.past[i], stream.offsets, cfg, ops, its_need, its_rows
        )
        blocks.append(cache)
    return x, blocks


class Grads(NamedTuple):
    dx: Array | None  # (N, C)  of the first residual stream, with need_dx
    dpast: list[PastGrads]  # by layer; empty ones below the layer where the backward stopped
    dweights: dict[str, Array]


def backward(
    dx: Array,
    w: Weights,
    cfg: Config,
    blocks: Sequence[BlockCache],
    ops: Ops,
    lowest: int,
    need_dx: bool = False,
) -> Grads:
    """dx: the gradient of the last residual stream (n, C), as `forward` gave it -> that of the past
    from layer `lowest` up, of the weights that the forward was told, and with `need_dx` of the
    first residual stream. It stops at the lowest layer where any of these is wanted."""
    dpast: list[PastGrads] = []
    dw: dict[str, Array] = {}
    trained = (i for i, block in enumerate(blocks) if block.attn.need)
    stop = 0 if need_dx else min(lowest, next(trained, lowest))
    for i in reversed(range(stop, cfg.n_layer)):
        grads = block_backward(dx, _block(w, i), blocks[i], ops, need_dx or i > stop)
        dpast.insert(0, grads.dpast)
        dw |= {f"h.{i}.{name}": a for name, a in grads.dweights.items()}
        if grads.dx is not None:
            dx = grads.dx
    return Grads(dx if need_dx else None, [((), ())] * stop + dpast, dw)


# ---- the head and the loss --------------------------------------------------------------------


#: logits exist for so many rows at a time: 100 MB of them with GPT-2's vocabulary
HEAD_ROWS = 512


class HeadCache(NamedTuple):
    need: Set[str]
    ln_f: LayernormCache
    dy: Array  # (M, C)  the gradient of ln_f's output
    dhead: Array | None  # (C, V)  the gradient of the head's weight, if it is needed


def head_name(w: Weights) -> str:
    """The head's weight (V, C): `lm_head.weight`, or the token embedding again (tied)."""
    return "lm_head.weight" if "lm_head.weight" in w else "wte.weight"


def _last_norm(x: Array, w: Weights, cfg: Config, ops: Ops) -> tuple[Array, LayernormCache]:
    return ops.layernorm(x, w["ln_f.weight"], w["ln_f.bias"], cfg.layer_norm_epsilon)


def head(x: Array, w: Weights, cfg: Config, ops: Ops) -> Array:
    """x: rows of the last residual stream (M, C) -> logits (M, V)."""
    y, _ = _last_norm(x, w, cfg, ops)  # (M, C)
    return ops.linear(y, w[head_name(w)].T, None)  # (M, V)


def head_loss(
    x: Array,
    targets: Array,
    weights: Array,
    w: Weights,
    cfg: Config,
    ops: Ops,
    need: Set[str] | None = None,
) -> tuple[np.generic, HeadCache | None]:
    """x (M, C): the rows that predict something, targets and weights (M,) -> loss, cache.

    The loss is where the backward begins: nothing has to come back before the gradient of the
    logits can be formed. So it is formed at once, m rows at a time, and (M, V) numbers never
    exist. need=None asks for the loss alone: no gradient is formed, and there is no cache.
    """
    y, ln_f = _last_norm(x, w, cfg, ops)  # (M, C)
    name = head_name(w)
    weight = w[name].T  # (C, V)
    loss: Any = 0.0
    dys, dhead = [], None
    for start in range(0, len(y), HEAD_ROWS):
        rows = slice(start, start + HEAD_ROWS)
        logits = ops.linear(y[rows], weight, None)  # (m, V)
        part, cross_entropy = ops.cross_entropy(logits, targets[rows], weights[rows])
        loss = loss + part
        if need is None:
            continue
        dlogits = ops.cross_entropy_backward(cross_entropy)  # (m, V)
        dys.append(ops.linear_backward(dlogits, weight))  # (m, C)
        if name in need:
            dweight, _ = ops.linear_backward_params(dlogits, y[rows])  # (C, V)
            dhead = dweight if dhead is None else dhead + dweight
    return loss, None if need is None else HeadCache(need, ln_f, np.concatenate(dys), dhead)


def head_loss_backward(w: Weights, cache: HeadCache, ops: Ops) -> tuple[Array, dict[str, Array]]:
    """-> the gradient of x (M, C), and those of the head and of ln_f where they are needed."""
    dw = {} if cache.dhead is None else {head_name(w): cache.dhead.T}
    dw |= _layernorm_params(cache.dy, cache.ln_f, "ln_f", ops, cache.need)
    return ops.layernorm_backward(cache.dy, cache.ln_f), dw
