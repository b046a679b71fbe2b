"""Every intermediate of a run, by the suite's names: a wrapper around the ops that copies what
passes through.

The model's code knows nothing of it. The weight or the cache in a call tells its place in the model
(`trace.wiring`), not the order of the calls: if a model skips a call, or makes one twice, the names
of all the others stay.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from minprefix.ops.contract import Array, Ops
from minprefix.trace.wiring import BLOCK, Place

Arrays = Sequence[Array]  # one for each sequence of the batch

GELU, ATTENTION = BLOCK["mlp"], BLOCK["attn"]
#: values that the suite does not ask for
_UNNAMED = ("attn.qkv", "attn.dqkv")


class Recorder:
    """An implementation of the ops that hands everything on to `ops` and keeps copies in
    `tensors`."""

    def __init__(self, ops: Ops, weights: Mapping[str, Array], head_size: int) -> None:
        self.ops = ops
        self.tensors: dict[str, Array] = {}
        self._head_size = head_size
        self._names = {id(a): name.removesuffix(".weight") for name, a in weights.items()}
        self._weights = weights  # kept alive: an id means something only as long as its object
        # (op, id) -> the names that it stands for, and the cache to keep it alive: implementations
        # with a stack of their own may give the same cache, None say, every time
        self._of_cache: dict[tuple[str, int], tuple[list[str], Any]] = {}
        self._block = "blocks.0"

    def __getattr__(self, name: str) -> Any:  # cross_entropy, gradients of weights: not recorded
        return getattr(self.ops, name)

    def _keep(self, name: str, a: Any) -> None:
        self.tensors[name] = np.array(a)

    def _keep_in_block(self, name: str, a: Any) -> None:
        if name not in _UNNAMED:
            self._keep(f"{self._block}.{name}", a)

    def _remember(self, op: str, name: str, cache: Any) -> None:
        self._of_cache.setdefault((op, id(cache)), ([], cache))[0].append(name)

    def _recall(self, op: str, cache: Any, unknown: str) -> str:
        """The last name that it was remembered by: a backward goes the other way."""
        names, _ = self._of_cache.get((op, id(cache)), ([unknown], None))
        return names.pop() if len(names) > 1 else names[0]

    def _name(self, a: Array) -> str:
        """`h.3.mlp.c_fc` as `blocks.3.mlp.c_fc`. A weight that is not the model's own array is the
        transposed view of the head's."""
        name = self._names.get(id(a), "lm_head")
        if name.startswith("h."):
            self._block = ".".join(["blocks", name.split(".")[1]])
            return self._block + name[name.index(".", 2) :]
        return name

    def _place(self, name: str) -> Place | None:
        """The place in its block; None for ln_f and the head."""
        return BLOCK.get(name.removeprefix(f"{self._block}."))

    def embed(self, tokens: Array, positions: Array, wte: Array, wpe: Array) -> Array:
        x = self.ops.embed(tokens, positions, wte, wpe)
        self._keep("blocks.0.resid_pre", x)
        return x

    def layernorm(self, x: Array, gain: Array, bias: Array, eps: float) -> tuple[Array, Any]:
        name = self._name(gain)
        if f"{name}.out" in self.tensors:  # a model that takes the first norm's weights twice
            name = name.replace("ln_1", "ln_2")
        place = self._place(name)
        self._keep(f"{self._block}.{place.takes[0]}" if place else f"{name}.in", x)
        out, cache = self.ops.layernorm(x, gain, bias, eps)
        self._keep(f"{name}.out", out)
        self._remember("layernorm", name, cache)
        return out, cache

    def layernorm_backward(self, dout: Array, cache: Any) -> Array:
        name = self._recall("layernorm", cache, "layernorm")
        self._keep(f"{name}.dout", dout)
        dx = self.ops.layernorm_backward(dout, cache)
        if name == "ln_f":
            self._keep("ln_f.din", dx)
        return dx

    def linear(self, x: Array, weight: Array, bias: Array | None) -> Array:
        out = self.ops.linear(x, weight, bias)
        place = self._place(self._name(weight))
        if place is None:
            self._keep("logits", out)
        else:
            self._keep_in_block(place.gives, out)
        return out

    def linear_backward(self, dout: Array, weight: Array) -> Array:
        place = self._place(self._name(weight))
        if place is not None:
            self._keep_in_block(place.dout, dout)
        dx = self.ops.linear_backward(dout, weight)
        if place is not None:
            heads = place.name == "attn.c_proj"
            shown = dx.reshape(len(dx), -1, self._head_size) if heads else dx
            self._keep_in_block(place.dx[0], shown)
        return dx

    def gelu(self, x: Array) -> tuple[Array, Any]:
        out, cache = self.ops.gelu(x)
        self._keep_in_block(GELU.gives, out)
        self._remember("gelu", self._block, cache)
        return out, cache

    def gelu_backward(self, dout: Array, cache: Any) -> Array:
        block = self._recall("gelu", cache, self._block)
        dx = self.ops.gelu_backward(dout, cache)
        self._keep(f"{block}.{GELU.dx[0]}", dx)
        return dx

    def attention(
        self, q: Array, k: Array, v: Array, prefix_k: Arrays, prefix_v: Arrays, offsets: Array
    ) -> tuple[Array, Any]:
        for name, a in zip(ATTENTION.takes, (q, k, v), strict=True):
            self._keep_in_block(name, a)
        z, cache = self.ops.attention(q, k, v, prefix_k, prefix_v, offsets)
        self._keep_in_block(ATTENTION.gives, z)
        for b, pattern in enumerate(getattr(cache, "pattern", None) or ()):
            self._keep_in_block(f"attn.pattern[{b}]", pattern)
        self._remember("attention", self._block, cache)
        return z, cache

    def attention_backward(self, dz: Array, cache: Any) -> Any:
        block = self._recall("attention", cache, self._block)
        grads = self.ops.attention_backward(dz, cache)
        for name, a in zip(ATTENTION.dx, (grads.dq, grads.dk, grads.dv), strict=True):
            self._keep(f"{block}.{name}", a)
        return grads

    def cross_entropy_backward(self, cache: Any) -> Array:
        dlogits = self.ops.cross_entropy_backward(cache)
        self._keep("dlogits", dlogits)
        return dlogits
