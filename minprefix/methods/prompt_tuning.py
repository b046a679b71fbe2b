"""Prompt tuning: P vectors stand before the text, in the place of token embeddings.

Lester et al., 2021; the "embedding only" of Li & Liang, 2021 (section 7.2). They have the positions
0 to P-1, as tokens there would have, and the text begins at P.

The vectors see only each other, so what they leave behind, keys and values in every layer, is the
same for every text: it is a prefix. It has L*2*C numbers a slot, but only those that the frozen
model can make out of C. So a step has two parts. The vectors run through the frozen model, once
for the whole batch; the batch then sees their keys and values as it would see a trained prefix's:

    forward    prompt (P, C) -> kv (L, 2, NH, P, hs)     the frozen model, no targets
               kv, batch     -> loss                     as in prefix-tuning
    backward   loss          -> dkv                      as in prefix-tuning
               dkv           -> dprompt (P, C)           the frozen model: in each layer dk and dv
                                                         join what comes down from above
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Self

import numpy as np

from minprefix.batch import Batch
from minprefix.errors import InputError
from minprefix.gpt2 import BlockCache, Config, Stream, backward, forward
from minprefix.method import Method
from minprefix.methods.rival import Applied, Rival, check_parts, check_shapes
from minprefix.model import GPT2, loss_backward, operations
from minprefix.ops import to
from minprefix.ops.contract import Array, AttentionCache, AttentionGrads, Ops
from minprefix.prefix import Prefix

LENGTH = 10


class PromptTuning(Rival):
    """`parameters`: `prompt` (P, C)."""

    name: ClassVar[str] = "prompt-tuning"

    def __init__(self, parameters: dict[str, Array]) -> None:
        self.parameters = parameters

    # ---- how a prompt starts (Lester et al., section 3.2) ----

    @classmethod
    def normal(
        cls, model: GPT2, length: int = LENGTH, std: float = 0.02, seed: int = 0
    ) -> "PromptTuning":
        """Independent draws from N(0, std^2)."""
        if not 0 <= std < math.inf:
            raise InputError(f"std is {std}: expected 0 or more, finite")
        shape = (check_length(length), model.config.n_embd)
        drawn = np.random.default_rng(seed).normal(0, std, shape)
        return cls({"prompt": drawn.astype(model.dtype)})

    @classmethod
    def vocabulary(cls, model: GPT2, length: int = LENGTH, seed: int = 0) -> "PromptTuning":
        """The embeddings of tokens drawn from the vocabulary."""
        rng = np.random.default_rng(seed)
        return cls.tokens(model, rng.integers(model.config.vocab_size, size=check_length(length)))

    @classmethod
    def text(cls, model: GPT2, text: str, length: int | None = None) -> "PromptTuning":
        """The embeddings of a text's tokens, repeated or cut to `length` where it is given."""
        ids = model.encode(text)
        if not ids:
            raise InputError("the text of a prompt is empty: give at least one token")
        n = len(ids) if length is None else check_length(length)
        return cls.tokens(model, [ids[i % len(ids)] for i in range(n)])

    @classmethod
    def tokens(cls, model: GPT2, ids: Sequence[int] | Array) -> "PromptTuning":
        """The embeddings of these tokens: before it is trained, the same as prompting with them."""
        tokens, V = Batch.pack([ids]).tokens, model.config.vocab_size
        if tokens.max() >= V:
            raise InputError(
                f"token id {tokens.max()} of the prompt lies outside the vocabulary of model "
                f"{model.name!r}, 0 to {V - 1}"
            )
        return cls({"prompt": model.weights["wte.weight"][to(tokens, model.backend)]})

    # ---- the prompt ----

    def prompt(self) -> Array:
        """(P, C)."""
        return self.parameters["prompt"]

    def prompt_backward(self, dprompt: Array) -> dict[str, Array]:
        """dprompt (P, C) -> the gradient of each parameter."""
        return {"prompt": dprompt}

    @property
    def length(self) -> int:
        """P."""
        return len(self.parameters["prompt"])

    @property
    def position_offset(self) -> int:  # type: ignore[override]
        return self.length

    @property
    def options(self) -> dict[str, Any]:
        return {"prompt_length": self.length}

    @classmethod
    def of(cls, options: dict[str, Any], parameters: dict[str, Array]) -> Self:
        check_parts(cls.name, parameters, {"prompt": 2})
        return cls(parameters)

    def check(self, config: Config, name: str) -> None:
        check_shapes(self, {"prompt": (self.length, config.n_embd)}, config, name)
        check_positions(self, config, name)

    # ---- from the prompt to a prefix, and back ----

    def prefix(self, model: GPT2, ops: Ops) -> tuple[Prefix, list[BlockCache]]:
        """The prefix that the prompt leaves in the frozen model, and the cache of that pass."""
        cfg, prompt = model.config, self.prompt()
        x = prompt + model.weights["wpe.weight"][: len(prompt)]  # (P, C)
        x, blocks = forward(x, self._stream(model), model.weights, cfg, ops)
        caches = [block.attn.attention for block in blocks]
        kv = np.stack([np.stack([c.k, c.v]) for c in caches])  # (L, 2, P, NH, hs)
        return Prefix(kv.swapaxes(2, 3)), blocks

    def prefix_backward(
        self, dkv: Array, model: GPT2, blocks: list[BlockCache], ops: Ops
    ) -> dict[str, Array]:
        """dkv (L, 2, NH, P, hs) -> the gradient of each parameter."""
        own: Any = _WithGradients(ops, dkv)
        top = np.zeros_like(self.prompt(), dkv.dtype)  # no target: nothing comes from above
        grads = backward(
            top, model.weights, model.config, blocks, own, model.config.n_layer, need_dx=True
        )
        assert grads.dx is not None  # asked for; wpe is frozen, and takes no part of it
        return self.prompt_backward(grads.dx)

    def _stream(self, model: GPT2) -> Stream:
        """One sequence of P places that sees nothing before itself. No token is looked up."""
        cfg, P = model.config, self.length
        empty = to(np.zeros((cfg.n_head, 0, cfg.head_size), model.dtype), model.backend)
        places = to(np.arange(P), model.backend)
        past = [[(empty, empty)]] * cfg.n_layer
        return Stream(places, places, np.array([0, P]), past)

    # ---- the whole model ----

    def loss_and_grads(
        self,
        model: GPT2,
        batch: Batch,
        reduction: str = "mean",
        ops: str | Ops | None = None,
        rng: "np.random.Generator | None" = None,
    ) -> tuple[float, dict[str, Array]]:
        self.check(model.config, model.name)
        own = operations(model, ops)
        prefix, blocks = self.prefix(model, own)
        loss, (dkv,), _ = loss_backward(model, prefix, batch, reduction, own)
        return loss, self.prefix_backward(dkv, model, blocks, own)

    def applied(self, model: GPT2, ops: Ops) -> Applied:
        return Applied(model, self.prefix(model, ops)[0], ops)


class _WithGradients:
    """The ops, for one backward, where the keys and values of each layer have a gradient of their
    own."""

    def __init__(self, ops: Ops, dkv: Array) -> None:
        self.ops = ops
        self.dkv: Iterator[Array] = iter(dkv[::-1].swapaxes(2, 3))  # (2, P, NH, hs), top first

    def __getattr__(self, name: str) -> Any:
        return getattr(self.ops, name)

    def attention_backward(self, dz: Array, cache: AttentionCache) -> AttentionGrads:
        grads = self.ops.attention_backward(dz, cache)
        dk, dv = next(self.dkv)
        return grads._replace(dk=grads.dk + dk, dv=grads.dv + dv)


def check_length(length: int) -> int:
    if length < 1:
        raise InputError(f"prompt length is {length}: expected at least 1")
    return length


def check_positions(method: Method, config: Config, name: str) -> None:
    """Raises InputError where a method leaves no position for a token."""
    if method.position_offset >= config.n_positions:
        raise InputError(
            f"{method.name} takes {method.position_offset} positions, model {name!r} has "
            f"{config.n_positions}: none is left for a token; make it shorter"
        )
