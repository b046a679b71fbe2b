"""Every intermediate of a run, by the suite's names: a wrapper around the ops that copies what
passes through.

The model's code knows nothing of it. The weight or the cache in a call tells its place in the model
(`trace.wiring`), not the order of the calls: if a model skips a call, or makes one twice, the names
of all the others stay.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from minprefix.ops.contract import Array, Ops
from minprefix.trace.wiring import BLOCK, Place

#: by op: above the blocks, where a weight tells the place; in a block, where none does
_TOP = {
    "layernorm": Place("ln_f", "", ("ln_f.in",), "ln_f.out", "ln_f.dout", ("ln_f.din",)),
    "linear": Place("lm_head", "", (), "logits", "", ()),
}
_INNER = {"gelu": BLOCK["mlp"], "attention": BLOCK["attn"]}
#: a backward that no forward of the model has left a cache for
_UNKNOWN = Place("layernorm", "", (), "", "layernorm.dout", ())
#: values that the suite does not ask for, and the head's dout, which is dlogits
_UNNAMED = ("attn.qkv", "attn.dqkv", "ln_1.dx", "ln_2.dx", "")

#: the head works on so many rows at a time (`gpt2.HEAD_ROWS`)
_IN_BLOCKS = ("logits", "dlogits")


class Recorder:
    """An implementation of the ops that hands everything on to `ops` and keeps copies in
    `tensors`."""

    def __init__(self, ops: Ops, weights: Mapping[str, Array], head_size: int) -> None:
        self.ops = ops
        self.tensors: dict[str, Array] = {}
        self._head_size = head_size
        self._names = {id(a): name.removesuffix(".weight") for name, a in weights.items()}
        self._weights = weights  # kept alive: an id means something only as long as its object
        # (op, id) -> the places that it stands for, and the cache to keep it alive: implementations
        # with a stack of their own may give the same cache, None say, every time
        self._of_cache: dict[tuple[str, int], tuple[list[tuple[str, Place]], Any]] = {}
        self._block = "blocks.0."

    def __getattr__(self, name: str) -> Any:
        """An op; the loss and the gradients of weights are not recorded."""
        op = name.removesuffix("_backward")
        if op in _TOP or op in _INNER:
            return partial(self._forward if op == name else self._backward, op)
        return getattr(self.ops, name)

    def embed(self, *given: Any) -> Array:
        x = self.ops.embed(*given)
        self._keep("blocks.0.", "resid_pre", x)
        return x

    def cross_entropy_backward(self, cache: Any) -> Array:
        dlogits = self.ops.cross_entropy_backward(cache)
        self._keep("", "dlogits", dlogits)
        return dlogits

    def _keep(self, block: str, name: str, a: Any) -> None:
        if name in _IN_BLOCKS and name in self.tensors:
            self.tensors[name] = np.concatenate([self.tensors[name], a])
        elif name not in _UNNAMED:
            self.tensors[f"{block}{name}"] = np.array(a)

    def _at(self, op: str, weight: Array) -> tuple[str, Place]:
        """The block of a weight, and the place in it. A weight that is not the model's own array is
        the transposed view of the head's."""
        name = self._names.get(id(weight), "")
        if not name.startswith("h."):
            return "", _TOP[op]
        _, number, short = name.split(".", 2)
        self._block = f"blocks.{number}."
        return self._block, BLOCK[short]

    def _forward(self, op: str, *given: Any) -> Any:
        block, place = (self._block, _INNER[op]) if op in _INNER else self._at(op, given[1])
        if op == "layernorm" and f"{block}{place.gives}" in self.tensors and block:
            place = BLOCK["ln_2"]  # of a model that takes the first norm's weights twice
        if op in ("layernorm", "attention"):
            for name, a in zip(place.takes, given, strict=False):
                self._keep(block, name, a)
        result = getattr(self.ops, op)(*given)
        if op == "linear":
            self._keep(block, place.gives, result)
            return result
        out, cache = result
        self._keep(block, place.gives, out)
        if op == "attention":
            for b, pattern in enumerate(getattr(cache, "pattern", None) or ()):
                self._keep(block, f"attn.pattern[{b}]", pattern)
        self._of_cache.setdefault((op, id(cache)), ([], cache))[0].append((block, place))
        return result

    def _backward(self, op: str, dout: Array, given: Any) -> Any:
        if op == "linear":
            block, place = self._at(op, given)
        else:  # the cache's last place: a backward goes the other way
            unknown = (self._block, _INNER[op]) if op in _INNER else ("", _UNKNOWN)
            places, _ = self._of_cache.get((op, id(given)), ([unknown], None))
            block, place = places.pop() if len(places) > 1 else places[0]
        if op not in _INNER:
            self._keep(block, place.dout, dout)
        result = getattr(self.ops, f"{op}_backward")(dout, given)
        grads = (result.dq, result.dk, result.dv) if op == "attention" else (result,)
        for name, dx in zip(place.dx, grads, strict=False):
            heads = name == "attn.dz"
            self._keep(block, name, dx.reshape(len(dx), -1, self._head_size) if heads else dx)
        return result
