"""LoRA: a frozen weight W (in, out) becomes W + (alpha / r) A B, of rank r.

Hu et al., 2021 (section 4.1). A (in, r) starts at random, B (r, out) at zero, so training starts at
the base. With s = alpha / r, u = x A and dropout on the x that A sees:

    out = x W + b + s u B             du = s dout B^T        (N, r)
                                      dB = s u^T dout        (r, out)
                                      dA = x^T du            (in, r)
                                      dx = dout W^T + du A^T (N, in)

dW = x^T dout (in, out), which full fine-tuning needs, is never formed. After training, A B can be
added to W: the merged model is as fast as its base.
"""

import math
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np

from minprefix.errors import InputError, listed
from minprefix.gpt2 import Config
from minprefix.methods.paths import LINEAR, OnLinear
from minprefix.methods.rival import Applied, check_parts, check_shapes
from minprefix.model import GPT2
from minprefix.ops import home, to
from minprefix.ops.contract import Array, Ops
from minprefix.prefix import dropout_mask

RANK = 8


class _Cache(NamedTuple):
    x: Array  # (N, in)  as A sees it
    u: Array  # (N, r)
    mask: Array | None  # (N, in)


class LoRA(OnLinear):
    """`parameters`: for each layer `h.0.attn.c_attn.lora_A` (in, r) and `.lora_B` (r, out).

    `targets`: the linear layers of each block that have them. `alpha`: r where it is None, so that
    s = 1. `dropout`: on the input of A, in training.
    """

    name: ClassVar[str] = "lora"

    def __init__(
        self, parameters: dict[str, Array], alpha: float | None = None, dropout: float = 0.0
    ) -> None:
        self.parameters = parameters
        self.layers = [key.removesuffix(".lora_A") for key in parameters if key.endswith(".lora_A")]
        if not self.layers:
            raise InputError("LoRA without a matrix: expected a lora_A and a lora_B for a layer")
        self.rank = parameters[f"{self.layers[0]}.lora_A"].shape[1]
        self.alpha = self.rank if alpha is None else alpha
        if not isinstance(self.alpha, int | float) or not 0 < self.alpha < math.inf:
            raise InputError(f"alpha is {alpha!r}: expected a positive number")
        self.alpha = float(self.alpha)
        if not 0 <= dropout < 1:
            raise InputError(f"dropout is {dropout}: expected 0 or more, below 1")
        self.dropout = dropout

    @classmethod
    def start(
        cls,
        model: GPT2,
        rank: int = RANK,
        alpha: float | None = None,
        targets: Sequence[str] = ("attn.c_attn",),
        dropout: float = 0.0,
        seed: int = 0,
    ) -> "LoRA":
        """A uniform in +-1/sqrt(in), as PyTorch's linear layers and PEFT's LoRA; B zero. Raises
        InputError for a rank below 1 or above a matrix's own, and for an unknown target."""
        rng, parameters = np.random.default_rng(seed), dict[str, Array]()
        for i in range(model.config.n_layer):
            for target in check_targets(targets):
                layer = f"h.{i}.{target}"
                n_in, n_out = model.weights[f"{layer}.weight"].shape
                if not isinstance(rank, int) or not 1 <= rank <= min(n_in, n_out):
                    raise InputError(
                        f"rank is {rank}: expected 1 to {min(n_in, n_out)}, the rank of {layer} "
                        f"({n_in} x {n_out})"
                    )
                bound = n_in**-0.5
                A = rng.uniform(-bound, bound, (n_in, rank))
                parameters[f"{layer}.lora_A"] = A.astype(model.dtype)
                parameters[f"{layer}.lora_B"] = np.zeros((rank, n_out), model.dtype)
        return cls(parameters, alpha, dropout)

    @property
    def scale(self) -> float:
        """s = alpha / r."""
        return self.alpha / self.rank

    @property
    def options(self) -> dict[str, Any]:
        targets = sorted({layer.split(".", 2)[2] for layer in self.layers}, key=LINEAR.index)
        said = {"rank": self.rank, "alpha": self.alpha, "targets": targets}
        return said | ({"dropout": self.dropout} if self.dropout else {})

    @classmethod
    def of(cls, options: dict[str, Any], parameters: dict[str, Array]) -> Self:
        layers = sorted({key.rpartition(".")[0] for key in parameters})
        every = {f"{layer}.lora_{matrix}": 2 for layer in layers for matrix in "AB"}
        check_parts(cls.name, parameters, every)
        if other := [n for n in layers if not n.startswith("h.") or not n.endswith(LINEAR)]:
            raise InputError(f"lora is on {listed(other)}: expected {listed(LINEAR)} of blocks")
        return cls(parameters, options.get("alpha"), options.get("dropout", 0.0))

    def check(self, config: Config, name: str) -> None:
        shapes, r = config.shapes(), self.rank
        expected: dict[str, tuple[int, ...]] = {}
        for layer in self.layers:
            n_in, n_out = shapes.get(f"{layer}.weight", (0, 0))
            expected |= {f"{layer}.lora_A": (n_in, r), f"{layer}.lora_B": (r, n_out)}
        check_shapes(self, expected, config, name)

    # ---- the path of a layer ----

    def path(
        self, layer: str, x: Array, out: Array, ops: Ops, rng: "np.random.Generator | None"
    ) -> tuple[Array, _Cache]:
        A, B = self._of(layer)
        mask = None
        if rng is not None and self.dropout:
            mask = to(dropout_mask(x.shape, self.dropout, rng).astype(x.dtype), home(x))
            x = x * mask
        u = ops.linear(x, A, None)  # (N, r)
        return out + self.scale * ops.linear(u, B, None), _Cache(x, u, mask)

    def path_backward(
        self, layer: str, dout: Array, cache: _Cache, ops: Ops
    ) -> tuple[Array, Array]:
        A, _ = self._of(layer)
        around = ops.linear_backward(self._du(layer, dout, ops), A)  # (N, in)
        return dout, around if cache.mask is None else around * cache.mask

    def path_grads(self, layer: str, dout: Array, cache: _Cache, ops: Ops) -> dict[str, Array]:
        dA, _ = ops.linear_backward_params(self._du(layer, dout, ops), cache.x)  # (in, r)
        dB, _ = ops.linear_backward_params(dout, cache.u)  # (r, out)
        return {f"{layer}.lora_A": dA, f"{layer}.lora_B": self.scale * dB}

    def _du(self, layer: str, dout: Array, ops: Ops) -> Array:
        return self.scale * ops.linear_backward(dout, self._of(layer)[1])  # (N, r)

    def _of(self, layer: str) -> tuple[Array, Array]:
        return self.parameters[f"{layer}.lora_A"], self.parameters[f"{layer}.lora_B"]

    # ---- the whole model ----

    def applied(self, model: GPT2, ops: Ops) -> Applied:
        return Applied(self.merged(model), None, ops)

    def merged(self, model: GPT2) -> GPT2:
        """The model with W + s A B in the place of each W: a GPT-2 as any other."""
        self.check(model.config, model.name)
        return model.with_weights(self._added(model, self.scale))

    def unmerged(self, model: GPT2) -> GPT2:
        """The base again, to rounding, from a merged model."""
        self.check(model.config, model.name)
        return model.with_weights(self._added(model, -self.scale))

    def _added(self, model: GPT2, scale: float) -> dict[str, Array]:
        """W + scale A B for each layer, by the weight's name."""
        weights = {}
        for layer in self.layers:
            A, B = self._of(layer)
            weights[f"{layer}.weight"] = model.weights[f"{layer}.weight"] + scale * (A @ B)
        return weights


def check_targets(targets: Sequence[str]) -> list[str]:
    """The linear layers of a block that these words name, as PEFT reads them: a word is the end of
    a layer's name, so "c_proj" is both of that name. Raises InputError, with the names that there
    are, for a word that names none."""
    named = []
    for word in [targets] if isinstance(targets, str) else targets:
        found = [layer for layer in LINEAR if layer == word or layer.endswith(f".{word}")]
        if not found:
            raise InputError(
                f"target {word!r} names no linear layer of a GPT-2 block: expected "
                f"{listed(LINEAR)}, or the end of one"
            )
        named += found
    if not named:
        raise InputError(f"there are no targets: expected at least one of {listed(LINEAR)}")
    return sorted(set(named), key=LINEAR.index)
