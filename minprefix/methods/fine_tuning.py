"""Fine-tuning: the model's own weights, all or some of them.

Full fine-tuning trains every weight (Radford et al., 2019); fine-tuning of the top layers the last
k blocks (Li & Liang, 2021, the baseline FT-TOP2); BitFit the biases alone (Ben Zaken et al., 2022).
There is no new arithmetic: the backward of `gpt2` gives the gradient of every weight that it is
asked for, and no other.
"""

from collections.abc import Iterable
from typing import Any, ClassVar, Self

import numpy as np

from minprefix.batch import Batch
from minprefix.errors import InputError, listed
from minprefix.gpt2 import Config
from minprefix.methods.rival import Applied, Rival, check_shapes
from minprefix.model import GPT2, loss_backward
from minprefix.ops.contract import Array, Ops


class FineTuning(Rival):
    """`parameters`: the trained weights, by their names in the checkpoint."""

    name: ClassVar[str] = "full"

    def __init__(self, parameters: dict[str, Array]) -> None:
        self.parameters = parameters

    @classmethod
    def start(cls, model: GPT2) -> Self:
        """From the weights of the model, copied: every one of them."""
        return cls._copied(model, model.weights)

    @classmethod
    def _copied(cls, model: GPT2, names: Iterable[str]) -> Self:
        return cls({name: model.weights[name].copy() for name in names})

    @property
    def options(self) -> dict[str, Any]:
        return {}

    @classmethod
    def of(cls, options: dict[str, Any], parameters: dict[str, Array]) -> Self:
        if not parameters:
            raise InputError(f"{cls.name} has no weights: expected at least one")
        return cls(parameters)

    def check(self, config: Config, name: str) -> None:
        shapes = config.shapes()
        check_shapes(self, {key: shapes.get(key, ()) for key in self.parameters}, config, name)

    def loss_and_grads(
        self,
        model: GPT2,
        batch: Batch,
        reduction: str = "mean",
        ops: str | Ops | None = None,
        rng: "np.random.Generator | None" = None,
    ) -> tuple[float, dict[str, Array]]:
        need = frozenset(self.parameters)
        loss, _, dweights = loss_backward(self.merged(model), None, batch, reduction, ops, need)
        return loss, dweights

    def applied(self, model: GPT2, ops: Ops) -> Applied:
        return Applied(self.merged(model), None, ops)

    def merged(self, model: GPT2) -> GPT2:
        """The model with the trained weights in place of its own."""
        self.check(model.config, model.name)
        return model.with_weights(self.parameters)


class TopLayers(FineTuning):
    """The blocks of the k layers nearest to the loss. Nothing below them needs a gradient."""

    name: ClassVar[str] = "top-layers"

    @classmethod
    def start(cls, model: GPT2, k: int = 2) -> Self:
        """Raises InputError unless k is 1 to L."""
        L = model.config.n_layer
        if not 1 <= k <= L:
            raise InputError(f"top layers are {k}: expected 1 to {L}, the layers of {model.name!r}")
        top = tuple(f"h.{i}." for i in range(L - k, L))
        return cls._copied(model, [name for name in model.weights if name.startswith(top)])

    @property
    def options(self) -> dict[str, Any]:
        return {"top_layers": len({name.split(".")[1] for name in self.parameters})}

    @classmethod
    def of(cls, options: dict[str, Any], parameters: dict[str, Array]) -> Self:
        if other := [name for name in parameters if name[:2] != "h."]:
            raise InputError(
                f"{cls.name} has the weights {listed(other)}: expected those of blocks"
            )
        return cls(parameters)


class BitFit(FineTuning):
    """The biases of every linear layer and layernorm."""

    name: ClassVar[str] = "bitfit"

    @classmethod
    def start(cls, model: GPT2) -> Self:
        return cls._copied(model, [name for name in model.weights if name.endswith(".bias")])

    @classmethod
    def of(cls, options: dict[str, Any], parameters: dict[str, Array]) -> Self:
        if other := [name for name in parameters if not name.endswith(".bias")]:
            raise InputError(f"{cls.name} has the weights {listed(other)}: expected biases")
        return super().of(options, parameters)
