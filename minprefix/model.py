"""The model as people use it: weights and tokenizer, a batch with its prefixes, loss and gradients.

The arithmetic is in `gpt2`. This module checks what comes in, and hands it on.
"""

from collections.abc import Collection, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from minprefix import ops as _ops
from minprefix.batch import Batch
from minprefix.budget import no_room_for
from minprefix.errors import InputError, counted
from minprefix.gpt2 import (
    BlockCache,
    Config,
    HeadCache,
    PastGrads,
    Stream,
    Weights,
    backward,
    embedding,
    embedding_backward,
    forward,
    head,
    head_loss,
    head_loss_backward,
)
from minprefix.method import Method
from minprefix.ops.contract import Array, Ops
from minprefix.prefix import Prefix, Prefixes
from minprefix.storage.fingerprint import digest
from minprefix.text import EncodesText

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from minprefix.storage.provenance import Base


@dataclass(eq=False, repr=False)
class GPT2(EncodesText):
    """A GPT-2: its config, its weights by their checkpoint names, and its tokenizer if it came with
    one.

    Nothing here writes to the weights. Loaded ones are read-only arrays, memory maps of their file
    where its precision is the one asked for; to train them, copy them first. Where they live
    decides which implementation computes: `to("cupy")` takes them to the GPU.
    """

    config: Config
    weights: dict[str, Array]
    tokenizer: "Tokenizer | None" = None
    name: str = "unnamed"
    folder: Path | None = None  # that it was loaded from
    _finite: bool = field(default=False, init=False)

    @classmethod
    def load(
        cls, name: str | Path | None = None, dtype: str = "float32", revision: str | None = None
    ) -> "GPT2":
        """From a directory in Hugging Face layout, "tiny" (ships with this package), or a hub name.
        Without a name it is the model that ships, whatever the folders here are called.

        `dtype` is "float32", "float64" or "complex128"; `revision` is for hub names. Raises
        InputError for everything that can be wrong with it (see `minprefix.storage.checkpoint`).
        """
        from minprefix.storage.checkpoint import read_checkpoint

        return cls(*read_checkpoint(name, dtype, revision))

    def save(self, directory: str | Path) -> None:
        """Write `config.json`, `model.safetensors` and the tokenizer in the layout that `load`
        reads."""
        from minprefix.storage.checkpoint import write_checkpoint

        write_checkpoint(directory, self.config, self.to("numpy").weights, self.tokenizer)

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
    def backend(self) -> str:
        """Where the weights live: "numpy" or "cupy"."""
        return _ops.home(self.weights["wte.weight"])

    def to(self, where: str) -> "GPT2":
        """The model with its weights on the GPU ("cupy") or on the host ("numpy"); itself if they
        are there already. Raises InputError if there is no GPU, or too little memory on it."""
        if where == self.backend:
            return self
        try:
            weights = {name: _ops.to(a, where) for name, a in self.weights.items()}
        except MemoryError as error:
            if where != "cupy":
                raise
            raise InputError(no_room_for(self.name, self.n_bytes)) from error
        return self.with_weights(weights)

    def with_weights(self, weights: Weights) -> "GPT2":
        """The model with these weights in place of its own of the same names."""
        own = {**self.weights, **weights}
        changed = GPT2(self.config, own, self.tokenizer, self.name, self.folder)
        changed._finite, changed.lost = self._finite, self.lost
        return changed

    @property
    def n_parameters(self) -> int:
        return sum(a.size for a in self.weights.values())

    @property
    def n_bytes(self) -> int:
        """What the weights take in memory."""
        return sum(a.nbytes for a in self.weights.values())

    def room(self, prefix: Prefix | Method | None = None) -> int:
        """How many tokens a sequence may have whose targets are scored, behind this prefix."""
        return self.config.room(0 if prefix is None else prefix.position_offset)

    def __repr__(self) -> str:
        c = self.config
        return (
            f"GPT2({self.name!r}: {counted(c.n_layer, 'layer')} x {c.n_embd} wide x "
            f"{counted(c.n_head, 'head')}, vocabulary {c.vocab_size}, "
            f"{counted(c.n_positions, 'position')}, {self.n_parameters / 1e6:.2f} M parameters, "
            f"{self.dtype}, {_ops.DEVICES[self.backend]})"
        )

    def _repr_html_(self) -> str:
        from minprefix.show import notebook

        return notebook.model(self)

    def identity(self) -> "Base":
        """What a prefix records of its base: the name, the sizes and both fingerprints."""
        from minprefix.storage.provenance import Base

        c = self.config
        weights, tokenizer = self.fingerprint(), self.tokenizer_fingerprint()
        return Base(self.name, weights, tokenizer, c.n_layer, c.n_head, c.head_size)

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
            with np.errstate(over="ignore", invalid="ignore"):
                total = a.sum()  # NaN and infinity reach it; large numbers may overflow it, too
            if not np.isfinite(total) and not np.isfinite(a).all():
                a = _ops.to(a, "numpy")
                bad = np.argwhere(~np.isfinite(a))[0]
                raise InputError(
                    f"weight {name!r} of model {self.name!r} holds {a[tuple(bad)]} at "
                    f"{bad.tolist()}: expected finite numbers; the file is damaged, fetch it again"
                )
        self._finite = True

    def logits(self, batch: Batch, prefix: Prefixes = None, ops: str | Ops | None = None) -> Array:
        """-> (N, V): for each token of the stream the scores of the token that follows it."""
        implementation = operations(self, ops)
        stream = prepare(self, batch, prefix)
        x = embedding(stream, self.weights, implementation)
        x, _ = forward(x, stream, self.weights, self.config, implementation)
        return head(x, self.weights, self.config, implementation)

    def keys_values(self, tokens: Sequence[int], ops: str | Ops | None = None) -> Array:
        """The keys and values that this text leaves in every layer: (L, 2, NH, T, hs). As a prefix
        they equal prompting with the text."""
        implementation = operations(self, ops)
        stream = prepare(self, Batch.pack([tokens]), None)
        x = embedding(stream, self.weights, implementation)
        _, blocks = forward(x, stream, self.weights, self.config, implementation)
        caches = [block.attn.attention for block in blocks]
        kv = [np.stack([c.k, c.v]) for c in caches]  # each (2, T, NH, hs)
        return np.stack(kv).swapaxes(2, 3)


# ---- the implementation, and where arrays live --------------------------------------------------


def operations(model: GPT2, ops: str | Ops | None) -> Ops:
    """The implementation that is asked for, by default that of the place where the model lives.
    Raises InputError if it works in another place."""
    if ops is None:
        return _ops.get(model.backend)
    if isinstance(ops, str) and _ops.BACKENDS.get(ops, model.backend) != model.backend:
        raise InputError(
            f"the operations are {ops!r} and the weights of model {model.name!r} live with "
            f"{model.backend!r}: model.to({_ops.BACKENDS[ops]!r}) takes them there, or ask for "
            f"{model.backend!r}"
        )
    return _ops.get(ops)


def check_same_place(model: GPT2, prefix: Prefix | Method) -> None:
    """Raises InputError unless both live in one place, and on a GPU have numbers of one type."""
    who = prefix.name if isinstance(prefix, Method) else "the prefix"
    if prefix.backend != model.backend:
        raise InputError(
            f"{who} lives with {prefix.backend!r} and model {model.name!r} with {model.backend!r}: "
            f"{who.split()[-1]}.to({model.backend!r}) takes it there"
        )
    dtype = next(iter(prefix.parameters.values())).dtype
    if model.backend == "cupy" and dtype != model.dtype:
        raise InputError(
            f"{who} has {dtype} numbers and model {model.name!r} {model.dtype}: on the GPU "
            "they have to be of one precision"
        )


# ---- from a batch and its prefixes to the loss and its gradients ------------------------------


def _as_list(model: GPT2, prefix: Prefixes) -> list[Prefix]:
    """A None in a list becomes a prefix of no slots, which no layer sees."""
    if prefix is None:
        return []
    if isinstance(prefix, Batch):
        raise InputError(
            "a Batch stands where a prefix is expected: it is loss_and_grad(model, prefix, batch), "
            "loss(model, batch, prefix) and model.logits(batch, prefix)"
        )
    given: Any = [prefix] if isinstance(prefix, Prefix | Method) else prefix
    for p in given:
        if isinstance(p, Method):
            do = "give it, alone, to loss, loss_and_grad or generate, or call its own logits"
            raise InputError(f"{p.name} is no prefix, and this takes prefixes only: {do}")
    none = np.zeros((0, 2, model.config.n_head, 0, model.config.head_size), model.dtype)
    return [Prefix(none, layers=()).to(model.backend) if p is None else p for p in given]


def prepare(model: GPT2, batch: Batch, prefix: Prefixes, targets_only: bool = False) -> Stream:
    """The batch as `forward` takes it, checked against the model.

    `targets_only`: rows that predict no target are not used. The last token of a sequence is such a
    row, and no token sees it, so it needs no position. Raises InputError for a token outside the
    vocabulary, a sequence without room behind its prefix, a prefix of another shape, and a batch
    that names a prefix which is not there.
    """
    cfg, prefixes = model.config, _as_list(model, prefix)
    model.check_finite()
    _check_prefixes(model, batch, prefixes)
    _check_tokens(model, batch)
    starts = [prefixes[i].position_offset if prefixes else 0 for i in batch.prefix]
    for b, (start, T) in enumerate(zip(starts, batch.lengths, strict=True)):
        room = cfg.room(start) - (not targets_only)
        if room < T:
            last = "; the last token, a target, needs none" if targets_only else ""
            or_else = " or the prefix, or train one with --position-offset 0" if start else ""
            raise InputError(
                f"sequence {b} has {counted(T, 'token')}, model {model.name!r} has room for "
                f"{room} ({cfg.n_positions} positions, the first {start} taken by the prefix"
                f"{last}): shorten the text{or_else}"
            )
    positions = np.concatenate(
        [np.arange(T) + start for T, start in zip(batch.lengths, starts, strict=True)]
    )
    positions = np.minimum(positions, cfg.n_positions - 1)  # of an unused last token
    empty = _ops.to(np.zeros((cfg.n_head, 0, cfg.head_size), model.dtype), model.backend)
    views = [p.by_layer(cfg.n_layer, empty) for p in prefixes] or [[(empty, empty)] * cfg.n_layer]
    past = [[views[j][i] for j in batch.prefix] for i in range(cfg.n_layer)]
    tokens, positions = (_ops.to(a, model.backend) for a in (batch.tokens, positions))
    return Stream(tokens, positions, batch.offsets, past)


def _check_prefixes(model: GPT2, batch: Batch, prefixes: list[Prefix]) -> None:
    for p in prefixes:
        p.check(model.config, model.name)
        check_same_place(model, p)
    named, given = batch.prefix.max(), len(prefixes)
    if named >= max(given, 1):  # without prefixes, every sequence has a 0
        raise InputError(f"the batch names prefix {named} (from 0), and {given} were given")


def _check_tokens(model: GPT2, batch: Batch) -> None:
    V = model.config.vocab_size
    if batch.tokens.max() >= V:
        bad = int(np.argmax(batch.tokens >= V))
        b = np.searchsorted(batch.offsets, bad, "right") - 1
        raise InputError(
            f"token id {batch.tokens[bad]} of sequence {b} lies outside the vocabulary of model "
            f"{model.name!r}, 0 to {V - 1}: was it encoded with another tokenizer?"
        )


def loss_and_grad(
    model: GPT2,
    prefix: Prefix | Sequence[Prefix | None] | Method,
    batch: Batch,
    reduction: str = "mean",
    ops: str | Ops | None = None,
) -> tuple[float, Any]:
    """The loss of the batch's targets and its gradient for the prefix; the model stays frozen.

    `reduction`: "mean" over the weights of the targets, or "sum". `ops`: "numpy", "cupy",
    "reference", or your own; by default those of the place where the model lives. -> loss, dkv of
    the shape of `prefix.kv`; for a list of prefixes a list of gradients, one for each, None where
    the list has None; for a rival the gradient of each parameter, by name. Raises InputError when
    there is nothing to predict, and for all that `prepare` refuses.
    """
    if isinstance(prefix, Method):
        check_same_place(model, prefix)
        return prefix.loss_and_grads(model, batch, reduction, ops)
    if prefix is None:
        raise InputError("there is no prefix to take the gradient for: see loss_and_weight_grads")
    loss, dkvs, _ = loss_backward(model, prefix, batch, reduction, ops)
    if isinstance(prefix, Prefix):
        return loss, dkvs[0]
    return loss, [None if p is None else dkv for p, dkv in zip(prefix, dkvs, strict=True)]


def loss_and_weight_grads(
    model: GPT2,
    batch: Batch,
    prefix: Prefixes = None,
    reduction: str = "mean",
    ops: str | Ops | None = None,
    names: Collection[str] | None = None,
) -> tuple[float, dict[str, Array]]:
    """The loss and its gradient for the weights of these names, by default for every weight of the
    model: full fine-tuning trains on them. Raises InputError for a name that is no weight's."""
    need = frozenset(model.weights if names is None else names)
    loss, _, dweights = loss_backward(model, prefix, batch, reduction, ops, need)
    return loss, dweights


def loss(
    model: GPT2,
    batch: Batch,
    prefix: Prefixes | Method = None,
    reduction: str = "mean",
    ops: str | Ops | None = None,
) -> float:
    """The loss alone."""
    if isinstance(prefix, Method):
        check_same_place(model, prefix)
        return prefix.loss(model, batch, reduction, ops)
    implementation = operations(model, ops)
    return _forward_loss(model, prefix, batch, reduction, implementation, None)[0].item()


def _loss_weights(batch: Batch, reduction: str) -> Array:
    if len(batch.targets) == 0:
        raise InputError("the batch has no targets: loss_from leaves nothing to predict")
    if reduction == "sum":
        return batch.weights
    if reduction == "mean" and batch.weights.sum() <= 0:
        raise InputError("the weights of the targets sum to 0: there is no mean over them")
    if reduction == "mean":
        return batch.weights / batch.weights.sum()
    raise InputError(f"reduction is {reduction!r}: expected 'mean' or 'sum'")


def _forward_loss(
    model: GPT2, prefix: Prefixes, batch: Batch, reduction: str, ops: Ops, need: Set[str] | None
) -> tuple[np.generic, Stream, list[BlockCache], HeadCache | None]:
    w, cfg = model.weights, model.config
    stream, weights = prepare(model, batch, prefix, True), _loss_weights(batch, reduction)
    # only rows that predict a target pay for the top of the model and for logits
    rows, targets = (_ops.to(a, model.backend) for a in (batch.rows, batch.targets))
    x, blocks = forward(embedding(stream, w, ops), stream, w, cfg, ops, need or frozenset(), rows)
    weights = _ops.to(weights.astype(x.real.dtype), model.backend)
    value, cache = head_loss(x, targets, weights, w, cfg, ops, need)
    return value, stream, blocks, cache


def loss_backward(
    model: GPT2,
    prefix: Prefixes,
    batch: Batch,
    reduction: str = "mean",
    ops: str | Ops | None = None,
    need: Set[str] = frozenset(),
) -> tuple[float, list[Array], dict[str, Array]]:
    """The loss, its gradient for the kv of each prefix, and for the weights that `need` names.
    Raises InputError for a name that is no weight's, and for all that `prepare` refuses."""
    unknown = sorted(need - model.weights.keys())
    if unknown:
        raise InputError(
            f"model {model.name!r} has no weight {unknown[0]!r}: its names are the keys of "
            "model.weights"
        )
    w, cfg, implementation = model.weights, model.config, operations(model, ops)
    prefixes = _as_list(model, prefix)
    value, stream, blocks, cache = _forward_loss(
        model, prefix, batch, reduction, implementation, need
    )
    assert cache is not None
    dx, dw_head = head_loss_backward(w, cache, implementation)  # (M, C)
    lowest = min((i for p in prefixes for i in p.layers), default=cfg.n_layer)
    at_the_bottom = bool(need & {"wte.weight", "wpe.weight"})
    dx_0, dpast, dw = backward(dx, w, cfg, blocks, implementation, lowest, at_the_bottom)
    if dx_0 is not None:
        dw |= embedding_backward(dx_0, stream, w, implementation, need)
    for name, a in dw_head.items():  # a tied head and the embedding are one array: both add to it
        dw[name] = dw[name] + a if name in dw else a
    dkvs = [_sum_over_sequences(p, i, batch, dpast, dx.dtype) for i, p in enumerate(prefixes)]
    return value.item(), dkvs, dw


def needed(model: GPT2, need: Literal["prefix", "all"]) -> Set[str]:
    """The weights whose gradient is wanted, for the words of a trace and of the reference suite."""
    return model.weights.keys() if need == "all" else frozenset()


def _sum_over_sequences(
    prefix: Prefix, i: int, batch: Batch, dpast: list[PastGrads], dtype: np.dtype
) -> Array:
    """The gradient of prefix i: the sum over the sequences that see it, and over no others."""
    dkv = np.zeros_like(prefix.kv, dtype)  # (layers, 2, NH, P, hs)
    rows = np.flatnonzero(batch.prefix == i)
    for j, layer in enumerate(prefix.layers):
        dk, dv = dpast[layer]
        dkv[j, 0] = _over(rows, dk, len(batch))
        dkv[j, 1] = _over(rows, dv, len(batch))
    return dkv


def _over(rows: Array, of_each: Sequence[Array], B: int) -> "Array | int":
    """The sum over these sequences of all B; an implementation may have a shorter way to it."""
    if len(of_each) != B:
        raise ValueError(f"attention_backward gave {len(of_each)} prefix gradients, expected {B}")
    total = getattr(of_each, "total", None)
    return total(rows.tolist()) if total and len(rows) else sum(of_each[b] for b in rows)
