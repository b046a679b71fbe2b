"""Infix-tuning: trained keys and values between the source and the target.

Li & Liang, 2021 (section 7.3: [x; INFIX; y]). The source does not see them, the target sees both;
so the infix cannot change how the source is read. It stands before the last token of the source,
because that token predicts the first one of the target. With that, a sequence of attention falls
into two, each an ordinary one:

    the source without its last token    sees itself
    the rest                             sees the source's keys and values, the infix, and itself

The rest has the positions behind the infix, as if its P slots were tokens. No gradient of the infix
comes through the source, because the source does not see it: what comes back to the source's keys
and values is dropped.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, Self

import numpy as np

from minprefix.batch import Batch
from minprefix.errors import InputError, counted
from minprefix.generate import Decoding, generate_ids
from minprefix.gpt2 import Config
from minprefix.method import Method
from minprefix.methods.prompt_tuning import LENGTH, check_positions
from minprefix.methods.rival import check_parts, check_shapes
from minprefix.model import GPT2, loss, loss_backward, operations
from minprefix.ops import home, to
from minprefix.ops.contract import Array, AttentionCache, AttentionGrads, Ops
from minprefix.prefix import Prefix


class Infix(Method):
    """`parameters`: `kv` (L, 2, NH, P, hs), as a prefix's."""

    name: ClassVar[str] = "infix"

    def __init__(self, parameters: dict[str, Array]) -> None:
        self.parameters = parameters

    @classmethod
    def start(cls, model: GPT2, length: int = LENGTH, std: float = 0.02, seed: int = 0) -> "Infix":
        """Independent draws from N(0, std^2)."""
        if length < 1:
            raise InputError(f"the infix has {length} slots: expected at least 1")
        kv = Prefix.normal(model.config, length, std, seed, dtype=str(model.dtype)).kv
        return cls({"kv": kv})

    @property
    def length(self) -> int:
        """P."""
        return int(self.parameters["kv"].shape[3])

    @property
    def position_offset(self) -> int:  # type: ignore[override]
        return self.length

    @property
    def options(self) -> dict[str, Any]:
        return {"infix_length": self.length}

    @classmethod
    def of(cls, options: dict[str, Any], parameters: dict[str, Array]) -> Self:
        check_parts(cls.name, parameters, {"kv": 5})
        return cls(parameters)

    def check(self, config: Config, name: str) -> None:
        shape = (config.n_layer, 2, config.n_head, self.length, config.head_size)
        check_shapes(self, {"kv": shape}, config, name)
        check_positions(self, config, name)

    def _inside(self, model: GPT2, batch: Batch, ops: str | Ops | None) -> tuple[Prefix, Any]:
        """What the model sees as its past, and the ops that put it in its place."""
        self.check(model.config, model.name)
        for b, T in enumerate(batch.lengths):
            if model.config.room(self.length) < T:
                raise InputError(
                    f"sequence {b} has {T} tokens, model {model.name!r} has room for "
                    f"{model.config.room(self.length)} beside the infix: shorten the text"
                )
        own = _Between(operations(model, ops), batch, self.length)
        return Prefix(self.parameters["kv"], position_offset=0), own

    def loss_and_grads(
        self,
        model: GPT2,
        batch: Batch,
        reduction: str = "mean",
        ops: str | Ops | None = None,
        rng: "np.random.Generator | None" = None,
    ) -> tuple[float, dict[str, Array]]:
        past, own = self._inside(model, batch, ops)
        value, (dkv,), _ = loss_backward(model, past, batch, reduction, own)
        return value, {"kv": dkv}

    def loss(
        self, model: GPT2, batch: Batch, reduction: str = "mean", ops: str | Ops | None = None
    ) -> float:
        past, own = self._inside(model, batch, ops)
        return loss(model, batch, past, reduction, own)

    def logits(self, model: GPT2, batch: Batch, ops: str | Ops | None = None) -> Array:
        past, own = self._inside(model, batch, ops)
        return model.logits(batch, past, own)

    def generate_ids(
        self,
        model: GPT2,
        prompts: Sequence[Sequence[int]],
        decoding: Decoding | None = None,
        ops: str | Ops | None = None,
        numbers: Sequence[int] | None = None,
        limits: Sequence[int] | None = None,
    ) -> list[list[int]]:
        """The prompt is the source. All of it but its last token, and the infix, are a prefix of
        that token."""
        self.check(model.config, model.name)
        most = (decoding or Decoding()).max_new_tokens
        asked = [most] * len(prompts) if limits is None else limits  # their number is checked below
        for i, (ids, limit) in enumerate(zip(prompts, asked, strict=False)):
            needed = len(ids) + self.length + min(limit, most) - 1  # the last one is not fed
            if needed > model.config.n_positions:
                raise InputError(
                    f"prompt {i} has {counted(len(ids), 'token')}: with the infix and "
                    f"{counted(min(limit, most), 'new token')} it needs {needed} of the model's "
                    f"{model.config.n_positions} positions; shorten it or lower max_new_tokens"
                )
        pasts = []
        for ids in prompts:
            kv, T = self.parameters["kv"], len(ids) - 1
            if T > 0:
                kv = np.concatenate([model.keys_values(ids[:-1], ops), kv], axis=3)
            pasts.append(Prefix(kv, position_offset=max(T, 0) + self.length))
        last, which = [ids[-1:] for ids in prompts], range(len(prompts))
        return generate_ids(model, last, pasts, which, decoding, ops, numbers, limits)


class _Between:
    """The ops, for one batch: the past of a sequence stands between its two parts."""

    def __init__(self, ops: Ops, batch: Batch, P: int) -> None:
        self.ops, self.P = ops, P
        starts, ends = batch.offsets[:-1], batch.offsets[1:]
        first = np.searchsorted(batch.rows, starts)  # the first row that predicts a target
        rows = np.append(batch.rows, batch.offsets[-1])[first]
        self.starts, self.ends = starts, ends
        self.splits = np.minimum(rows, ends - 1)  # the row of the last token of each source

    def __getattr__(self, name: str) -> Any:
        return getattr(self.ops, name)

    def embed(self, tokens: Array, positions: Array, wte: Array, wpe: Array) -> Array:
        shift = np.zeros(len(tokens), np.int64)
        for split, end in zip(self.splits, self.ends, strict=True):
            shift[split:end] = self.P
        # the last token is perhaps not used, and has no position then
        shifted = np.minimum(to(positions, "numpy") + shift, len(wpe) - 1)
        return self.ops.embed(tokens, to(shifted, home(positions)), wte, wpe)

    def attention(
        self,
        q: Array,
        k: Array,
        v: Array,
        prefix_k: Sequence[Array],
        prefix_v: Sequence[Array],
        offsets: Array,
    ) -> tuple[Array, AttentionCache]:
        offsets_of_parts, past_k, past_v = [0], list[Array](), list[Array]()
        each = zip(self.starts, self.splits, self.ends, prefix_k, prefix_v, strict=True)
        for start, split, end, own_k, own_v in each:
            source_k, source_v = (a[start:split].swapaxes(0, 1) for a in (k, v))  # (NH, T, hs)
            if split > start:
                offsets_of_parts.append(split)
                past_k.append(own_k[:, :0])
                past_v.append(own_v[:, :0])
            offsets_of_parts.append(end)
            past_k.append(np.concatenate([source_k, own_k], axis=1))
            past_v.append(np.concatenate([source_v, own_v], axis=1))
        return self.ops.attention(q, k, v, past_k, past_v, np.array(offsets_of_parts))

    def attention_backward(self, dz: Array, cache: AttentionCache) -> AttentionGrads:
        grads = self.ops.attention_backward(dz, cache)
        dprefix_k, dprefix_v, part = list[Array](), list[Array](), 0
        for start, split in zip(self.starts, self.splits, strict=True):
            part += bool(split > start)  # the source's part sees no past
            dprefix_k.append(grads.dprefix_k[part][:, split - start :])
            dprefix_v.append(grads.dprefix_v[part][:, split - start :])
            part += 1
        return grads._replace(dprefix_k=dprefix_k, dprefix_v=dprefix_v)
