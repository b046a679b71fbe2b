"""GPT-2 with a prefix: the forward, and the backward that mirrors it line by line. Read top to
bottom.

    Config                 the numbers of `config.json` that shape the arithmetic
    forward, backward      through the stack of blocks, from tokens to the last residual stream
    head_loss(_backward)   from the residual stream to the loss
    GPT2                   the weights, and the calls that people make
    loss_and_grad          the loss and the gradient of the prefix

Radford et al., 2019 (GPT-2); Li & Liang, 2021 (the prefix). Weights keep the names of the
checkpoint (`h.0.attn.c_attn.weight`), so there is no translation to read. Symbols:
`ops/contract.py`.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from minprefix import ops as _ops
from minprefix.batch import Batch
from minprefix.errors import InputError
from minprefix.ops.contract import (
    Array,
    AttentionCache,
    CrossEntropyCache,
    GeluCache,
    LayernormCache,
    Ops,
)

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from minprefix.prefix import Prefix

Weights = Mapping[str, Array]
#: what a sequence of the batch sees before its own tokens: keys and values, (NH, P, hs) each
KeysValues = tuple[Array, Array]


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
    eos_token_id: int | None = None

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
    need="all": only the gradients of weights look at them."""

    ln_1: LayernormCache
    attention: AttentionCache
    ln_2: LayernormCache
    gelu: GeluCache
    ln_1_out: Array | None  # (N, C)
    z: Array | None  # (N, C)
    ln_2_out: Array | None  # (N, C)
    gelu_out: Array | None  # (N, F)


def _block(w: Weights, i: int) -> dict[str, Array]:
    """The weights of block i under their short names."""
    start = f"h.{i}."
    return {name[len(start) :]: a for name, a in w.items() if name.startswith(start)}


def block_forward(
    x: Array, w: Weights, past: Sequence[KeysValues], offsets: Array, cfg: Config, ops: Ops
) -> tuple[Array, BlockCache]:
    """x: resid_pre (N, C); past: for each sequence the keys and values it sees first -> resid_post
    (N, C)."""
    N, C, NH, eps = len(x), cfg.n_embd, cfg.n_head, cfg.layer_norm_epsilon
    a, ln_1 = ops.layernorm(x, w["ln_1.weight"], w["ln_1.bias"], eps)  # (N, C)
    qkv = ops.linear(a, w["attn.c_attn.weight"], w["attn.c_attn.bias"])  # (N, 3C)
    q, k, v = (qkv.reshape(N, 3, NH, C // NH)[:, j] for j in range(3))  # (N, NH, hs) each
    prefix_k, prefix_v = [kv[0] for kv in past], [kv[1] for kv in past]
    z, attention = ops.attention(q, k, v, prefix_k, prefix_v, offsets)  # (N, NH, hs)
    z = z.reshape(N, C)
    x = x + ops.linear(z, w["attn.c_proj.weight"], w["attn.c_proj.bias"])  # (N, C)  resid_mid
    m, ln_2 = ops.layernorm(x, w["ln_2.weight"], w["ln_2.bias"], eps)  # (N, C)
    h = ops.linear(m, w["mlp.c_fc.weight"], w["mlp.c_fc.bias"])  # (N, F)
    g, gelu = ops.gelu(h)  # (N, F)
    x = x + ops.linear(g, w["mlp.c_proj.weight"], w["mlp.c_proj.bias"])  # (N, C)  resid_post
    return x, BlockCache(ln_1, attention, ln_2, gelu, a, z, m, g)


class BlockGrads(NamedTuple):
    dx: Array | None  # (N, C)  None below block 0 of a frozen model: nothing there wants it
    dpast: list[KeysValues]  # for each sequence dprefix_k, dprefix_v (NH, P, hs)
    dweights: dict[str, Array]  # short names; empty unless need="all"


def block_backward(
    dx: Array, w: Weights, cache: BlockCache, ops: Ops, need: str, need_dx: bool
) -> BlockGrads:
    """dx: the gradient of resid_post (N, C) -> that of resid_pre, of the past, and of the
    weights."""
    N, C = dx.shape
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
    dg = ops.linear_backward(dx, w["mlp.c_proj.weight"])  # (N, F)
    dh = ops.gelu_backward(dg, cache.gelu)  # (N, F)
    linear_params("mlp.c_fc", dh, cache.ln_2_out)
    dm = ops.linear_backward(dh, w["mlp.c_fc.weight"])  # (N, C)
    layernorm_params("ln_2", dm, cache.ln_2)
    dx = dx + ops.layernorm_backward(dm, cache.ln_2)  # (N, C)  of resid_mid
    # x = x + linear(z): around the attention and through it
    linear_params("attn.c_proj", dx, cache.z)
    dz = ops.linear_backward(dx, w["attn.c_proj.weight"])  # (N, C)
    NH = cache.attention.q.shape[1]
    grads = ops.attention_backward(dz.reshape(N, NH, C // NH), cache.attention)
    dpast = list(zip(grads.dprefix_k, grads.dprefix_v, strict=True))
    if not need_dx:
        return BlockGrads(None, dpast, dw)
    dqkv = np.stack([grads.dq, grads.dk, grads.dv], axis=1).reshape(N, 3 * C)  # (N, 3C)
    linear_params("attn.c_attn", dqkv, cache.ln_1_out)
    da = ops.linear_backward(dqkv, w["attn.c_attn.weight"])  # (N, C)
    layernorm_params("ln_1", da, cache.ln_1)
    dx = dx + ops.layernorm_backward(da, cache.ln_1)  # (N, C)  of resid_pre
    return BlockGrads(dx, dpast, dw)


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
) -> tuple[Array, Cache]:
    """tokens, positions (N,), offsets (B+1,), past[layer][sequence] -> the last residual stream (N,
    C).

    The past is what a sequence sees before its tokens: a trained prefix, or while decoding the
    prefix and every earlier token. It is the same thing to attention, and there is no other code
    for it.
    """
    x = ops.embed(tokens, positions, w["wte.weight"], w["wpe.weight"])  # (N, C)
    blocks = []
    for i in range(cfg.n_layer):
        x, cache = block_forward(x, _block(w, i), past[i], offsets, cfg, ops)
        if need == "prefix":
            cache = cache._replace(ln_1_out=None, z=None, ln_2_out=None, gelu_out=None)
        blocks.append(cache)
    return x, Cache(tokens, positions, blocks)


def backward(
    dx: Array, w: Weights, cfg: Config, cache: Cache, ops: Ops, need: Literal["prefix", "all"]
) -> tuple[list[list[KeysValues]], dict[str, Array]]:
    """dx: the gradient of the last residual stream (N, C) -> dpast[layer][sequence], and with
    need="all" the gradient of every weight of the stack. A frozen model stops at block 0's
    attention: below it lies no prefix."""
    dpast: list[list[KeysValues]] = []
    dw: dict[str, Array] = {}
    for i in reversed(range(cfg.n_layer)):
        grads = block_backward(
            dx, _block(w, i), cache.blocks[i], ops, need, need_dx=i > 0 or need == "all"
        )
        dpast.insert(0, grads.dpast)
        dw |= {f"h.{i}.{name}": a for name, a in grads.dweights.items()}
        if grads.dx is not None:
            dx = grads.dx
    if need == "all":
        dw["wte.weight"], dw["wpe.weight"] = ops.embed_backward_params(
            dx, cache.tokens, cache.positions, w["wte.weight"], w["wpe.weight"]
        )
    return dpast, dw


# ---- the head and the loss --------------------------------------------------------------------


class HeadCache(NamedTuple):
    ln_f: LayernormCache
    ln_f_out: Array  # (M, C)
    cross_entropy: CrossEntropyCache


def head_weight(w: Weights) -> Array:
    """(V, C): `lm_head.weight` where there is one, else the token embedding again (tied)."""
    return w.get("lm_head.weight", w["wte.weight"])


def head(x: Array, w: Weights, cfg: Config, ops: Ops) -> tuple[Array, LayernormCache, Array]:
    """x: rows of the last residual stream (M, C) -> logits (M, V), and what the backward needs."""
    y, ln_f = ops.layernorm(x, w["ln_f.weight"], w["ln_f.bias"], cfg.layer_norm_epsilon)  # (M, C)
    return ops.linear(y, head_weight(w).T, None), ln_f, y  # (M, V)


def head_loss(
    x: Array, targets: Array, weights: Array, w: Weights, cfg: Config, ops: Ops
) -> tuple[np.generic, HeadCache]:
    """x (M, C): the rows that predict something, targets and weights (M,) -> loss, cache."""
    logits, ln_f, y = head(x, w, cfg, ops)  # (M, V)
    loss, cross_entropy = ops.cross_entropy(logits, targets, weights)
    return loss, HeadCache(ln_f, y, cross_entropy)


def head_loss_backward(
    w: Weights, cache: HeadCache, ops: Ops, need: str
) -> tuple[Array, dict[str, Array]]:
    """-> dx (M, C), and with need="all" the gradients of ln_f and of the head."""
    dw: dict[str, Array] = {}
    dlogits = ops.cross_entropy_backward(cache.cross_entropy)  # (M, V)
    dy = ops.linear_backward(dlogits, head_weight(w).T)  # (M, C)
    if need == "all":
        dhead, _ = ops.linear_backward_params(dlogits, cache.ln_f_out)  # (C, V)
        dw["lm_head.weight" if "lm_head.weight" in w else "wte.weight"] = dhead.T
        dw["ln_f.weight"], dw["ln_f.bias"] = ops.layernorm_backward_params(dy, cache.ln_f)
    return ops.layernorm_backward(dy, cache.ln_f), dw


# ---- the model --------------------------------------------------------------------------------


@dataclass(eq=False, repr=False)
class GPT2:
    """A GPT-2: its config, its weights by their checkpoint names, and its tokenizer if it came with
    one.

    Nothing here writes to the weights. Loaded ones are read-only arrays, memory maps of their file
    where its precision is the one asked for; to train them, copy them first.
    """

    config: Config
    weights: dict[str, Array]
    tokenizer: "Tokenizer | None" = None
    name: str = "unnamed"
    _finite: bool = field(default=False, init=False)

    @classmethod
    def load(cls, name: str | Path, dtype: str = "float32", revision: str | None = None) -> "GPT2":
        """From a directory in Hugging Face layout, "tiny" (ships with this package), or a hub name.

        `dtype` is "float32", "float64" or "complex128"; `revision` is for hub names. Raises
        InputError for everything that can be wrong with it (see `minprefix.checkpoint`).
        """
        from minprefix.checkpoint import load_model  # it imports this module

        return load_model(name, dtype=dtype, revision=revision)

    def save(self, directory: str | Path) -> None:
        """Write `config.json`, `model.safetensors` and the tokenizer in the layout that `load`
        reads."""
        from minprefix.checkpoint import save_model

        save_model(self, directory)

    @classmethod
    def random(cls, config: Config, seed: int = 0, dtype: str = "float32") -> "GPT2":
        """GPT-2's initialisation (Radford et al., 2019): N(0, 0.02), biases 0, gains 1, and the
        projections that write to the residual stream scaled by 1 / sqrt(2 L)."""
        rng = np.random.default_rng(seed)
        weights = {}
        for name, shape in config.shapes().items():
            if len(shape) == 1:
                fill = 1.0 if ".ln_" in f".{name}" and name.endswith("weight") else 0.0
                weights[name] = np.full(shape, fill, dtype)
            else:
                std = 0.02 / (2 * config.n_layer) ** 0.5 if "c_proj" in name else 0.02
                weights[name] = rng.normal(0, std, shape).astype(dtype)
        return cls(config, weights, name="random")

    @property
    def dtype(self) -> np.dtype:
        return self.weights["wte.weight"].dtype

    @property
    def n_parameters(self) -> int:
        return sum(a.size for a in self.weights.values())

    def __repr__(self) -> str:
        c = self.config
        return (
            f"GPT2({self.name!r}: {c.n_layer} layers x {c.n_embd} wide x {c.n_head} heads, "
            f"vocabulary {c.vocab_size}, {c.n_positions} positions, {self.n_parameters / 1e6:.2f} "
            f"M parameters, {self.dtype}, cpu)"
        )

    def fingerprint(self) -> str:
        """sha256 over names, shapes and float32 values of all weights: the same for every file
        layout and stored precision of the same model."""
        return digest(self.weights, np.float32)

    def check_finite(self) -> None:
        """Raises InputError naming a weight that holds NaN or infinity. Runs once, at the first
        use: opening a file does not read it."""
        if self._finite:
            return
        for name, a in self.weights.items():
            if not np.isfinite(a.sum(dtype=np.result_type(a.dtype, np.float64))):
                bad = np.argwhere(~np.isfinite(a))[0]
                raise InputError(
                    f"weight {name!r} of model {self.name!r} holds {a[tuple(bad)]} at "
                    f"{bad.tolist()}: expected finite numbers; the file is damaged, fetch it again"
                )
        self._finite = True

    def logits(
        self,
        batch: Batch,
        prefix: "Prefix | Sequence[Prefix] | None" = None,
        ops: str | Ops = "numpy",
    ) -> Array:
        """-> (N, V): for each token of the stream the scores of the token that follows it."""
        implementation = _ops.get(ops)
        stream = prepare(self, batch, prefix)
        x, _ = forward(self.weights, self.config, *stream, implementation)
        return head(x, self.weights, self.config, implementation)[0]

    def keys_values(self, tokens: Sequence[int], ops: str | Ops = "numpy") -> Array:
        """The keys and values that this text leaves in every layer: (L, 2, NH, T, hs). As a prefix
        they equal prompting with the text."""
        implementation = _ops.get(ops)
        stream = prepare(self, Batch.pack([tokens]), None)
        _, cache = forward(self.weights, self.config, *stream, implementation)
        kv = [np.stack([b.attention.k, b.attention.v]) for b in cache.blocks]  # each (2, T, NH, hs)
        return np.stack(kv).swapaxes(2, 3)

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, without special tokens added. Raises InputError without a
        tokenizer."""
        return self._need_tokenizer().encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        return self._need_tokenizer().decode(list(ids))

    def _need_tokenizer(self) -> "Tokenizer":
        if self.tokenizer is None:
            raise InputError(
                f"model {self.name!r} has no tokenizer: put tokenizer.json, or vocab.json and "
                "merges.txt, into its folder"
            )
        return self.tokenizer


def digest(arrays: Weights, dtype: type | None = None) -> str:
    """sha256 over the arrays in the order of their names; `dtype`: convert first (None: the very
    bytes)."""
    sha = hashlib.sha256()
    for name in sorted(arrays):
        a = arrays[name]
        a = np.ascontiguousarray(a if dtype is None else a.real.astype(dtype, copy=False))
        sha.update(f"{name}{a.shape}{a.dtype}".encode())
        sha.update(a.reshape(-1).view(np.uint8).data)
    return sha.hexdigest()


# ---- from a batch and its prefixes to the loss and its gradients ------------------------------


def _as_list(prefix: "Prefix | Sequence[Prefix] | None") -> "list[Prefix]":
    if prefix is None:
        return []
    return list(prefix) if isinstance(prefix, list | tuple) else [prefix]  # type: ignore[list-item]


def prepare(
    model: GPT2, batch: Batch, prefix: "Prefix | Sequence[Prefix] | None"
) -> tuple[Array, Array, Array, list[list[KeysValues]]]:
    """tokens, positions, offsets, past: what `forward` takes, checked against the model.

    Raises InputError for a token outside the vocabulary, a sequence longer than n_positions - P, a
    prefix of another shape, and a batch that names a prefix which is not there.
    """
    cfg, prefixes = model.config, _as_list(prefix)
    model.check_finite()
    for p in prefixes:
        p.check(cfg, model.name)
    if prefixes and batch.prefix.max() >= len(prefixes):
        raise InputError(
            f"the batch names prefix {batch.prefix.max()}, but {len(prefixes)} were given"
        )
    if not prefixes and batch.prefix.any():
        raise InputError(f"the batch names prefix {batch.prefix.max()}, but none was given")
    if batch.tokens.max() >= cfg.vocab_size:
        bad = int(np.argmax(batch.tokens >= cfg.vocab_size))
        raise InputError(
            f"token id {batch.tokens[bad]} of sequence "
            f"{np.searchsorted(batch.offsets, bad, 'right') - 1} lies outside the vocabulary of "
            f"model {model.name!r}, 0 to {cfg.vocab_size - 1}: was it encoded with another "
            "tokenizer?"
        )
    seen = [prefixes[i] if prefixes else None for i in batch.prefix]  # (B,)
    starts = [0 if p is None else p.position_offset for p in seen]
    for b, (start, T) in enumerate(zip(starts, batch.lengths, strict=True)):
        if start + T > cfg.n_positions:
            raise InputError(
                f"sequence {b} has {T} tokens, model {model.name!r} has room for "
                f"{cfg.n_positions - start} ({cfg.n_positions} positions, the first {start} taken "
                "by the prefix): shorten the text or the prefix"
            )
    positions = np.concatenate(
        [np.arange(T) + start for T, start in zip(batch.lengths, starts, strict=True)]
    )
    empty = np.zeros((cfg.n_head, 0, cfg.head_size), model.dtype)
    nothing = [(empty, empty)] * cfg.n_layer
    views = [p.by_layer(cfg.n_layer, empty) for p in prefixes]
    past = [
        [(views[j] if prefixes else nothing)[i] for j in batch.prefix] for i in range(cfg.n_layer)
    ]
    return batch.tokens, positions, batch.offsets, past


def loss_and_grad(
    model: GPT2,
    prefix: "Prefix | Sequence[Prefix]",
    batch: Batch,
    reduction: str = "mean",
    ops: str | Ops = "numpy",
) -> tuple[float, "Array | list[Array]"]:
    """The loss of the batch's targets and its gradient for the prefix; the model stays frozen.

    `reduction`: "mean" over the weights of the targets, or "sum". -> loss, dkv of the shape of
    `prefix.kv`; for a list of prefixes a list of gradients, one for each. Raises InputError when
    there is nothing to predict, and for all that `prepare` refuses.
    """
    loss, dkvs, _ = _loss_backward(model, prefix, batch, reduction, ops, need="prefix")
    return loss, dkvs if isinstance(prefix, list | tuple) else dkvs[0]


def loss_and_weight_grads(
    model: GPT2,
    batch: Batch,
    prefix: "Prefix | Sequence[Prefix] | None" = None,
    reduction: str = "mean",
    ops: str | Ops = "numpy",
) -> tuple[float, dict[str, Array]]:
    """The loss and its gradient for every weight of the model: what full fine-tuning trains on."""
    loss, _, dweights = _loss_backward(model, prefix, batch, reduction, ops, need="all")
    return loss, dweights


def loss(
    model: GPT2,
    batch: Batch,
    prefix: "Prefix | Sequence[Prefix] | None" = None,
    reduction: str = "mean",
    ops: str | Ops = "numpy",
) -> float:
    """The loss alone."""
    stream, weights = prepare(model, batch, prefix), _loss_weights(batch, reduction)
    implementation = _ops.get(ops)
    x, _ = forward(model.weights, model.config, *stream, implementation)
    value, _ = head_loss(
        x[batch.rows], batch.targets, weights, model.weights, model.config, implementation
    )
    return value.item()


def _loss_weights(batch: Batch, reduction: str) -> Array:
    if len(batch.targets) == 0:
        raise InputError("the batch has no targets: loss_from leaves nothing to predict")
    if reduction == "sum":
        return batch.weights
    if reduction == "mean":
        return batch.weights / batch.weights.sum()
    raise InputError(f"reduction is {reduction!r}: expected 'mean' or 'sum'")


def _loss_backward(
    model: GPT2,
    prefix: "Prefix | Sequence[Prefix] | None",
    batch: Batch,
    reduction: str,
    ops: str | Ops,
    need: Literal["prefix", "all"],
) -> tuple[float, list[Array], dict[str, Array]]:
    w, cfg, implementation = model.weights, model.config, _ops.get(ops)
    stream, weights = prepare(model, batch, prefix), _loss_weights(batch, reduction)
    # forward: only rows that predict a target pay for logits
    x, cache = forward(w, cfg, *stream, implementation, need)  # (N, C)
    weights = weights.astype(x.real.dtype)
    value, head_cache = head_loss(x[batch.rows], batch.targets, weights, w, cfg, implementation)
    # backward
    drows, dw_head = head_loss_backward(w, head_cache, implementation, need)  # (M, C)
    dx = np.zeros_like(x)  # (N, C)  a row that predicts nothing has no gradient
    dx[batch.rows] = drows
    dpast, dw = backward(dx, w, cfg, cache, implementation, need)
    for name, a in dw_head.items():  # a tied head and the embedding are one array: both add to it
        dw[name] = dw[name] + a if name in dw else a
    # a prefix that several sequences see gets the sum of their gradients; each sequence only its
    # own
    dkvs = []
    for i, p in enumerate(_as_list(prefix)):
        dkv = np.zeros(p.kv.shape, x.dtype)  # (layers, 2, NH, P, hs)
        for j, layer in enumerate(p.layers):
            for b in np.flatnonzero(batch.prefix == i):
                dk, dv = dpast[layer][b]
                dkv[j, 0] += dk
                dkv[j, 1] += dv
        dkvs.append(dkv)
    return value.item(), dkvs, dw
