"""Every intermediate of a run, by name: a wrapper around the ops that copies what passes through.

The model's code knows nothing of it. What a tensor is called follows from the weight, the gain or
the cache that comes with it, not from the order of the calls: a model that skips a call, or makes
one twice, keeps the names of all the others.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from minprefix.ops.contract import Array, Ops

#: the weight of a linear layer -> the names of its output, of the gradient that comes in, and of
#: the gradient that goes out
_LINEAR = {
    "attn.c_proj": ("attn.out", "dresid_mid", "attn.dz"),
    "mlp.c_fc": ("mlp.pre", None, "ln_2.dout"),
    "mlp.c_proj": ("mlp.out", "dresid_post", "mlp.dpost"),
}


class Recorder:
    """An implementation of the ops that hands everything on to `ops` and keeps copies in
    `tensors`."""

    def __init__(self, ops: Ops, weights: Mapping[str, Array], head_size: int) -> None:
        self.ops = ops
        self.tensors: dict[str, Array] = {}
        self._head_size = head_size
        self._names = {id(a): name.removesuffix(".weight") for name, a in weights.items()}
        self._weights = weights  # kept alive: an id means something only as long as its object
        # (op, id) -> the names that it stands for, and the cache to keep it: implementations that
        # keep a stack of their own give the same cache, None say, every time
        self._of_cache: dict[tuple[str, int], tuple[list[str], Any]] = {}
        self._block = "blocks.0"

    def __getattr__(self, name: str) -> Any:  # the halves for weights: nothing to record
        return getattr(self.ops, name)

    def _keep(self, name: str, a: Any) -> None:
        self.tensors[name] = np.array(a)

    def _remember(self, op: str, name: str, cache: Any) -> None:
        self._of_cache.setdefault((op, id(cache)), ([], cache))[0].append(name)

    def _recall(self, op: str, cache: Any, unknown: str) -> str:
        """The last name that it was remembered by: a backward goes the other way."""
        names, _ = self._of_cache.get((op, id(cache)), ([unknown], None))
        return names.pop() if len(names) > 1 else names[0]

    def _name(self, a: Array) -> str:
        """`h.3.mlp.c_fc` as `blocks.3.mlp.c_fc`; a weight that is none of the model's own is the
        head's transposed view."""
        name = self._names.get(id(a), "lm_head")
        if name.startswith("h."):
            self._block = ".".join(["blocks", name.split(".")[1]])
            return self._block + name[name.index(".", 2) :]
        return name

    def embed(self, tokens: Array, positions: Array, wte: Array, wpe: Array) -> Array:
        x = self.ops.embed(tokens, positions, wte, wpe)
        self._keep("blocks.0.resid_pre", x)
        return x

    def layernorm(self, x: Array, gain: Array, bias: Array, eps: float) -> tuple[Array, Any]:
        name = self._name(gain)
        if f"{name}.out" in self.tensors:  # a model that takes the first norm's weights twice
            name = name.replace("ln_1", "ln_2")
        into = {"ln_1": "resid_pre", "ln_2": "resid_mid"}.get(name.split(".")[-1])
        self._keep(f"{self._block}.{into}" if into else f"{name}.in", x)
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
        name = self._name(weight)
        layer = name.removeprefix(f"{self._block}.")
        if name == "lm_head":
            self._keep("logits", out)
        elif layer in _LINEAR:
            self._keep(f"{self._block}.{_LINEAR[layer][0]}", out)
        return out

    def linear_backward(self, dout: Array, weight: Array) -> Array:
        name = self._name(weight)
        layer = name.removeprefix(f"{self._block}.")
        _, incoming, outgoing = _LINEAR.get(layer, (None, None, None))
        if incoming:
            self._keep(f"{self._block}.{incoming}", dout)
        dx = self.ops.linear_backward(dout, weight)
        if outgoing:
            shown = dx.reshape(len(dx), -1, self._head_size) if outgoing == "attn.dz" else dx
            self._keep(f"{self._block}.{outgoing}", shown)
        return dx

    def gelu(self, x: Array) -> tuple[Array, Any]:
        out, cache = self.ops.gelu(x)
        self._keep(f"{self._block}.mlp.post", out)
        self._remember("gelu", self._block, cache)
        return out, cache

    def gelu_backward(self, dout: Array, cache: Any) -> Array:
        block = self._recall("gelu", cache, self._block)
        dx = self.ops.gelu_backward(dout, cache)
        self._keep(f"{block}.mlp.dpre", dx)
        return dx

    def attention(
        self,
        q: Array,
        k: Array,
        v: Array,
        prefix_k: Sequence[Array],
        prefix_v: Sequence[Array],
        offsets: Array,
    ) -> tuple[Array, Any]:
        block = self._block
        for name, a in (("q", q), ("k", k), ("v", v)):
            self._keep(f"{block}.attn.{name}", a)
        z, cache = self.ops.attention(q, k, v, prefix_k, prefix_v, offsets)
        self._keep(f"{block}.attn.z", z)
        for b, pattern in enumerate(getattr(cache, "pattern", None) or ()):
            self._keep(f"{block}.attn.pattern[{b}]", pattern)
        self._remember("attention", block, cache)
        return z, cache

    def attention_backward(self, dz: Array, cache: Any) -> Any:
        block = self._recall("attention", cache, self._block)
        grads = self.ops.attention_backward(dz, cache)
        for name in ("dq", "dk", "dv"):
            self._keep(f"{block}.attn.{name}", getattr(grads, name))
        return grads

    def cross_entropy(
        self, logits: Array, targets: Array, weights: Array
    ) -> tuple[np.generic, Any]:
        return self.ops.cross_entropy(logits, targets, weights)

    def cross_entropy_backward(self, cache: Any) -> Array:
        dlogits = self.ops.cross_entropy_backward(cache)
        self._keep("dlogits", dlogits)
        return dlogits
