"""A rival that adds a path of its own to linear layers: one more implementation of `linear`, which
wraps the one that is there."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np

from minprefix.batch import Batch
from minprefix.methods.rival import Rival
from minprefix.model import GPT2, loss_backward, operations
from minprefix.ops.contract import Array, Ops

#: the linear layers of a block
LINEAR = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")


class OnLinear(Rival):
    """`layers`: the names of those with a path, "h.0.attn.c_attn", say."""

    layers: Sequence[str]

    @abstractmethod
    def path(
        self, layer: str, x: Array, out: Array, ops: Ops, rng: "np.random.Generator | None"
    ) -> tuple[Array, Any]:
        """x (N, in) and out (N, out), the frozen layer's input and output -> what takes the place
        of out, and a cache."""

    @abstractmethod
    def path_grads(self, layer: str, dout: Array, cache: Any, ops: Ops) -> dict[str, Array]:
        """dout (N, out): the gradient of what took the place of out -> those of the layer's own
        parameters, by their names. Called before `path_backward`."""

    @abstractmethod
    def path_backward(
        self, layer: str, dout: Array, cache: Any, ops: Ops
    ) -> tuple[Array, Array | None]:
        """dout (N, out), as above -> the gradient of out itself, which goes on through the frozen
        weight; and the part of dx (N, in) that goes around it, if any."""

    def loss_and_grads(
        self,
        model: GPT2,
        batch: Batch,
        reduction: str = "mean",
        ops: str | Ops | None = None,
        rng: "np.random.Generator | None" = None,
    ) -> tuple[float, dict[str, Array]]:
        self.check(model.config, model.name)
        own: Any = WithPath(operations(model, ops), self, model, rng)
        need = frozenset(f"{layer}.weight" for layer in self.layers)
        loss, _, dweights = loss_backward(model, None, batch, reduction, own, need)
        # in the place of each weight's gradient are those of the path's parameters
        grads: list[Any] = list(dweights.values())
        return loss, {name: a for each in grads for name, a in each.items()}


class WithPath:
    """An implementation of the contract: `ops`, with a path on some linear layers. It is made for
    one pass through the model and back, or with `keep` False for any number of passes forwards.

    A layer is known by its weight, which is the same array in the forward and in the backward. The
    gradient of the frozen weight is never formed: where the model asks for it, the gradients of the
    path's own parameters take its place.
    """

    def __init__(
        self,
        ops: Ops,
        path: OnLinear,
        model: GPT2,
        rng: "np.random.Generator | None" = None,
        keep: bool = True,
    ) -> None:
        self.ops, self.path, self.rng, self.keep = ops, path, rng, keep
        self._layer = {id(model.weights[f"{layer}.weight"]): layer for layer in path.layers}
        self._kept: dict[str, Any] = {}  # layer -> the path's cache
        # the layer of an input, which is held so that its id stays its own
        self._of_input: dict[int, tuple[str, Array]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.ops, name)

    def linear(self, x: Array, weight: Array, bias: Array | None) -> Array:
        out, layer = self.ops.linear(x, weight, bias), self._layer.get(id(weight))
        if layer is None:
            return out
        out, cache = self.path.path(layer, x, out, self.ops, self.rng)
        if self.keep:
            self._kept[layer], self._of_input[id(x)] = cache, (layer, x)
        return out

    def linear_backward(self, dout: Array, weight: Array) -> Array:
        layer = self._layer.get(id(weight))
        if layer is None:
            return self.ops.linear_backward(dout, weight)
        dout, around = self.path.path_backward(layer, dout, self._kept[layer], self.ops)
        dx = self.ops.linear_backward(dout, weight)
        return dx if around is None else dx + around

    def linear_backward_params(self, dout: Array, x: Array) -> tuple[Any, None]:
        layer, _ = self._of_input[id(x)]
        return self.path.path_grads(layer, dout, self._kept[layer], self.ops), None
