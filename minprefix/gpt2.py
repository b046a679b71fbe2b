"""GPT-2 with a prefix: the forward, and the backward that mirrors it line by line. Read top to
bottom.

    Config                 the numbers of `config.json` that shape the arithmetic
    block_forward          one block, and at once its backward
    forward, backward      through the stack of blocks, from tokens to the last residual stream
    head_loss              from the residual stream to the loss, and at once its backward

Radford et al., 2019 (GPT-2); Li & Liang, 2021 (the prefix). Weights keep the names of the
checkpoint (`h.0.attn.c_attn.weight`), so there is no translation to read. Symbols:
`ops/contract.py`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from minprefix.ops.contract import (
    Array,
    AttentionCache,
    GeluCache,
    LayernormCache,
    Ops,
)

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

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The name and shape of every weight."""
        C, F = self.n_embd, self.n_inner or 4 * self.n_embd
        shapes: dict[str, tuple[int, ...]] = {
            "wte.weight": (self.vocab_size, C),
            "wpe.weight": (self.n_positions, C),
        }
        for i in range(self.n_layer):
            block: dict[str, tuple[int, ...]] = {
                "ln_1.weight": (C,),
                "ln_1.bias": (C,),
                "attn.c_attn.weight": (C, 3 * C),
                "attn.c_attn.bias": (3 * C,),
                "attn.c_proj.weight": (C, C),
                "attn.c_proj.bias": (C,),
                "ln_2.weight": (C,),
                "ln_2.bias": (C,),
                "mlp.c_fc.weight": (C, F),
                "mlp.c_fc.bias": (F,),
                "mlp.c_proj.weight": (F, C),
                "mlp.c_proj.bias": (C,),
            }
            shapes |= {f"h.{i}.{name}": shape for name, shape in block.items()}
        shapes |= {"ln_f.weight": (C,), "ln_f.bias": (C,)}
        if not self.tie_word_embeddings:
            shapes["lm_head.weight"] = (self.vocab_size, C)
        return shapes


# ---- one block --------------------------------------------------------------------------------


class BlockCache(NamedTuple):
    """What the backward of a block needs. The four inputs of linear layers are None unless
    need="all": only the gradients of weights look at them. n is M where the block was asked for M
    rows, else N."""

    ln_1: LayernormCache
    attention: AttentionCache
    rows: Array | None  # (M,)
    ln_2: LayernormCache
    gelu: GeluCache
    ln_1_out: Array | None  # (N, C)
    z: Array | None  # (n, C)
    ln_2_out: Array | None  # (n, C)
    gelu_out: Array | None  # (n, F)


def _block(w: Weights, i: int) -> dict[str, Array]:
    """The weights of block i under their short names."""
    start = f"h.{i}."
    return {name[len(start) :]: a for name, a in w.items() if name.startswith(start)}


def block_forward(
    x: Array,
    w: Weights,
    past: Sequence[KeysValues],
    offsets: Array,
    cfg: Config,
    ops: Ops,
    rows: Array | None = None,
) -> tuple[Array, BlockCache]:
    """x: resid_pre (N, C); past: for each sequence the keys and values it sees first -> resid_post
    (n, C): of the rows (M,), where nobody looks at the others, or of all N."""
    N, C, NH, eps = len(x), cfg.n_embd, cfg.n_head, cfg.layer_norm_epsilon
    a, ln_1 = ops.layernorm(x, w["ln_1.weight"], w["ln_1.bias"], eps)  # (N, C)
    qkv = ops.linear(a, w["attn.c_attn.weight"], w["attn.c_attn.bias"])  # (N, 3C)
    q, k, v = (qkv.reshape(N, 3, NH, C // NH)[:, j] for j in range(3))  # (N, NH, hs) each
    prefix_k, prefix_v = [kv[0] for kv in past], [kv[1] for kv in past]
    z, attention = ops.attention(q, k, v, prefix_k, prefix_v, offsets)  # (N, NH, hs)
    z = z.reshape(N, C)
    if rows is not None:  # the other tokens have given their keys and values: nothing else is used
        x, z = x[rows], z[rows]  # (n, C)
    x = x + ops.linear(z, w["attn.c_proj.weight"], w["attn.c_proj.bias"])  # (n, C)  resid_mid
    m, ln_2 = ops.layernorm(x, w["ln_2.weight"], w["ln_2.bias"], eps)  # (n, C)
    h = ops.linear(m, w["mlp.c_fc.weight"], w["mlp.c_fc.bias"])  # (n, F)
    g, gelu = ops.gelu(h)  # (n, F)
    x = x + ops.linear(g, w["mlp.c_proj.weight"], w["mlp.c_proj.bias"])  # (n, C)  resid_post
    return x, BlockCache(ln_1, attention, rows, ln_2, gelu, a, z, m, g)


class BlockGrads(NamedTuple):
    dx: Array | None  # (N, C)  None where nobody wants it: below it lie only frozen weights
    dpast: PastGrads
    dweights: dict[str, Array]  # short names; empty unless need="all"


def block_backward(
    dx: Array, w: Weights, cache: BlockCache, ops: Ops, need: str, need_dx: bool
) -> BlockGrads:
    """dx: the gradient of resid_post (n, C) -> that of resid_pre, of the past, and of the
    weights."""
    N, NH, hs = cache.attention.q.shape
    dw: dict[str, Array] = {}

    def linear_params(name: str, dout: Array, x: Array | None) -> None:
        if need == "all":
            assert x is not None
            dw[f"{name}.weight"], dw[f"{name}.bias"] = ops.linear_backward_params(dout, x)

    def layernorm_params(name: str, dout: Array, ln: LayernormCache) -> None:
        if need == "all":
            dw[f"{name}.weight"], dw[f"{name}.bias"] = ops.layernorm_backward_params(dout, ln)

    # x = x + linear(g): the gradient goes both ways, around the MLP and through it
    linear_params("mlp.c_proj", dx, cache.gelu_out)
    dg = ops.linear_backward(dx, w["mlp.c_proj.weight"])  # (n, F)
    dh = ops.gelu_backward(dg, cache.gelu)  # (n, F)
    linear_params("mlp.c_fc", dh, cache.ln_2_out)
    dm = ops.linear_backward(dh, w["mlp.c_fc.weight"])  # (n, C)
    layernorm_params("ln_2", dm, cache.ln_2)
    dx = dx + ops.layernorm_backward(dm, cache.ln_2)  # (n, C)  of resid_mid
    # x = x + linear(z): around the attention and through it
    linear_params("attn.c_proj", dx, cache.z)
    dz = ops.linear_backward(dx, w["attn.c_proj.weight"])  # (n, C)
    if cache.rows is not None:  # the loss does not see what the others would have become
        dx, dz = _at(cache.rows, dx, N), _at(cache.rows, dz, N)  # (N, C)
    grads = ops.attention_backward(dz.reshape(N, NH, hs), cache.attention)
    dpast = (grads.dprefix_k, grads.dprefix_v)
    if not need_dx:
        return BlockGrads(None, dpast, dw)
    dqkv = np.stack([grads.dq, grads.dk, grads.dv], axis=1).reshape(N, 3 * NH * hs)  # (N, 3C)
    linear_params("attn.c_attn", dqkv, cache.ln_1_out)
    da = ops.linear_backward(dqkv, w["attn.c_attn.weight"])  # (N, C)
    layernorm_params("ln_1", da, cache.ln_1)
    dx = dx + ops.layernorm_backward(da, cache.ln_1)  # (N, C)  of resid_pre
    return BlockGrads(dx, dpast, dw)


def _at(rows: Array, a: Array, N: int) -> Array:
    """a (M, C) in its rows of N, the others 0."""
    out = np.zeros_like(a, shape=(N, a.shape[1]))  # (N, C)
    out[rows] = a
    return out


# ---- the stack of blocks ----------------------------------------------------------------------


class Cache(NamedTuple):
    tokens: Array  # (N,)
    positions: Array  # (N,)
    blocks: list[BlockCache]


def forward(
    w: Weights,
    cfg: Config,
    tokens: Array,
    positions: Array,
    offsets: Array,
    past: Sequence[Sequence[KeysValues]],
    ops: Ops,
    need: Literal["prefix", "all"] = "prefix",
    rows: Array | None = None,
) -> tuple[Array, Cache]:
    """tokens, positions (N,), offsets (B+1,), past[layer][sequence] -> the last residual stream (n,
    C), of all tokens or of `rows` (M,).

    The past is what a sequence sees before its tokens: a trained prefix, or while decoding the
    prefix and every earlier token. It is the same thing to attention, and there is no other code
    for it.
    """
    x = ops.embed(tokens, positions, w["wte.weight"], w["wpe.weight"])  # (N, C)
    blocks = []
    for i in range(cfg.n_layer):
        wanted = rows if i == cfg.n_layer - 1 else None
        x, cache = block_forward(x, _block(w, i), past[i], offsets, cfg, ops, wanted)
        if need == "prefix":
            cache = cache._replace(ln_1_out=None, z=None, ln_2_out=None, gelu_out=None)
        blocks.append(cache)
    return x, Cache(tokens, positions, blocks)


def backward(
    dx: Array,
    w: Weights,
    cfg: Config,
    cache: Cache,
    ops: Ops,
    need: Literal["prefix", "all"],
    lowest: int,
) -> tuple[list[PastGrads], dict[str, Array]]:
    """dx: the gradient of the last residual stream (n, C), as `forward` gave it -> dpast[layer],
    and with need="all" the gradient of every weight of the stack. A frozen model stops at the
    attention of `lowest`, the lowest layer with a prefix: below it dpast is empty."""
    dpast: list[PastGrads] = []
    dw: dict[str, Array] = {}
    stop = 0 if need == "all" else lowest
    for i in reversed(range(stop, cfg.n_layer)):
        need_dx = i > stop or need == "all"
        grads = block_backward(dx, _block(w, i), cache.blocks[i], ops, need, need_dx)
        dpast.insert(0, grads.dpast)
        dw |= {f"h.{i}.{name}": a for name, a in grads.dweights.items()}
        if grads.dx is not None:
            dx = grads.dx
    if need == "all":
        dw["wte.weight"], dw["wpe.weight"] = ops.embed_backward_params(
            dx, cache.tokens, cache.positions, w["wte.weight"], w["wpe.weight"]
        )
    return [((), ())] * stop + dpast, dw


# ---- the head and the loss --------------------------------------------------------------------


#: logits exist for so many rows at a time: 100 MB of them with GPT-2's vocabulary
HEAD_ROWS = 512


class HeadCache(NamedTuple):
    ln_f: LayernormCache
    dy: Array  # (M, C)  the gradient of ln_f's output
    dhead: Array | None  # (C, V)  the gradient of the head's weight, with need="all"


def head_weight(w: Weights) -> Array:
    """(V, C): `lm_head.weight` where there is one, else the token embedding again (tied)."""
    return w.get("lm_head.weight", w["wte.weight"])


def _last_norm(x: Array, w: Weights, cfg: Config, ops: Ops) -> tuple[Array, LayernormCache]:
    return ops.layernorm(x, w["ln_f.weight"], w["ln_f.bias"], cfg.layer_norm_epsilon)


def head(x: Array, w: Weights, cfg: Config, ops: Ops) -> Array:
    """x: rows of the last residual stream (M, C) -> logits (M, V)."""
    y, _ = _last_norm(x, w, cfg, ops)  # (M, C)
    return ops.linear(y, head_weight(w).T, None)  # (M, V)


def head_loss(
    x: Array,
    targets: Array,
    weights: Array,
    w: Weights,
    cfg: Config,
    ops: Ops,
    need: Literal["nothing", "prefix", "all"] = "nothing",
) -> tuple[np.generic, HeadCache | None]:
    """x (M, C): the rows that predict something, targets and weights (M,) -> loss, cache.

    The loss is where the backward begins: nothing has to come back before the gradient of the
    logits can be formed. So it is formed at once, m rows at a time, and (M, V) numbers never
    exist. With need="nothing" it is not formed, and there is no cache.
    """
    y, ln_f = _last_norm(x, w, cfg, ops)  # (M, C)
    weight = head_weight(w).T  # (C, V)
    loss: Any = 0.0
    dys, dhead = [], None
    for start in range(0, len(y), HEAD_ROWS):
        rows = slice(start, start + HEAD_ROWS)
        logits = ops.linear(y[rows], weight, None)  # (m, V)
        part, cross_entropy = ops.cross_entropy(logits, targets[rows], weights[rows])
        loss = loss + part
        if need == "nothing":
            continue
        dlogits = ops.cross_entropy_backward(cross_entropy)  # (m, V)
        dys.append(ops.linear_backward(dlogits, weight))  # (m, C)
        if need == "all":
            dweight, _ = ops.linear_backward_params(dlogits, y[rows])  # (C, V)
            dhead = dweight if dhead is None else dhead + dweight
    return loss, HeadCache(ln_f, np.concatenate(dys), dhead) if dys else None


def head_loss_backward(
    w: Weights, cache: HeadCache, ops: Ops, need: str
) -> tuple[Array, dict[str, Array]]:
    """-> dx (M, C), and with need="all" the gradients of ln_f and of the head."""
    dw: dict[str, Array] = {}
    if need == "all":
        assert cache.dhead is not None
        dw["lm_head.weight" if "lm_head.weight" in w else "wte.weight"] = cache.dhead.T
        dw["ln_f.weight"], dw["ln_f.bias"] = ops.layernorm_backward_params(cache.dy, cache.ln_f)
    return ops.layernorm_backward(cache.dy, cache.ln_f), dw
