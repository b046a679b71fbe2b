"""Bottleneck adapters: a small network behind a sublayer of each block, with a way around it.

Houlsby et al., 2019 (figure 2): behind the attention and behind the MLP; Pfeiffer et al., 2021:
behind the MLP alone. With h (N, C) the sublayer's output, before it is added to the residual
stream, and a bottleneck of width m:

    a = gelu(h D + b_D)    (N, m)     da = dout U^T, dz = gelu'(.) da     (N, m)
    out = h + a U + b_U    (N, C)     dU = a^T dout, db_U = sum of dout
                                      dD = h^T dz,   db_D = sum of dz
                                      dh = dout + dz D^T                  (N, C)

Both papers leave the nonlinearity open; this is GPT-2's own.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np

from minprefix.errors import InputError
from minprefix.gpt2 import Config
from minprefix.methods.paths import OnLinear, WithPath
from minprefix.methods.rival import Applied, check_parts, check_shapes
from minprefix.model import GPT2
from minprefix.ops.contract import Array, GeluCache, Ops

#: placement -> the layers of a block that end in an adapter
PLACEMENTS = {"houlsby": ("attn.c_proj", "mlp.c_proj"), "pfeiffer": ("mlp.c_proj",)}
#: the standard deviation of the start: near the identity (Houlsby et al., section 3.6)
STD = 0.01
BOTTLENECK = 8


@dataclass
class _Cache:
    h: Array  # (N, C)
    a: Array  # (N, m)
    gelu: GeluCache
    dz: Array | None = None  # (N, m)  once the gradients of the parameters are there


class Adapters(OnLinear):
    """`parameters`: for each layer `h.0.mlp.c_proj.down` (C, m), `.down_bias` (m,), `.up` (m, C)
    and `.up_bias` (C,)."""

    name: ClassVar[str] = "adapters"

    def __init__(self, parameters: dict[str, Array]) -> None:
        self.parameters = parameters
        self.layers = [key.removesuffix(".up") for key in parameters if key.endswith(".up")]
        if not self.layers:
            raise InputError("no adapter: expected a down and an up for at least one layer")

    @classmethod
    def start(
        cls,
        model: GPT2,
        bottleneck: int = BOTTLENECK,
        placement: str = "houlsby",
        seed: int = 0,
        std: float = STD,
    ) -> "Adapters":
        """Weights from N(0, std^2), biases zero. Raises InputError for a width below 1 and an
        unknown placement."""
        if placement not in PLACEMENTS:
            raise InputError(f"placement is {placement!r}: expected one of {', '.join(PLACEMENTS)}")
        if not 0 <= std < math.inf:
            raise InputError(f"std is {std}: expected 0 or more, finite")
        if bottleneck < 1:
            raise InputError(f"bottleneck is {bottleneck}: expected a width of at least 1")
        rng, C, m = np.random.default_rng(seed), model.config.n_embd, bottleneck
        parameters: dict[str, Array] = {}
        for i in range(model.config.n_layer):
            for target in PLACEMENTS[placement]:
                layer = f"h.{i}.{target}"
                parameters |= {
                    f"{layer}.down": rng.normal(0, std, (C, m)),
                    f"{layer}.down_bias": np.zeros(m),
                    f"{layer}.up": rng.normal(0, std, (m, C)),
                    f"{layer}.up_bias": np.zeros(C),
                }
        return cls({name: a.astype(model.dtype) for name, a in parameters.items()})

    @property
    def options(self) -> dict[str, Any]:
        placed = tuple(layer.removeprefix("h.0.") for layer in self.layers if layer[:4] == "h.0.")
        placement = next((p for p, layers in PLACEMENTS.items() if layers == placed), "other")
        return {
            "bottleneck": self.parameters[f"{self.layers[0]}.up"].shape[0],
            "placement": placement,
        }

    @classmethod
    def of(cls, options: dict[str, Any], parameters: dict[str, Array]) -> Self:
        parts = {"down": 2, "down_bias": 1, "up": 2, "up_bias": 1}
        layers = {key.rpartition(".")[0] for key in parameters}
        every = {
            f"{layer}.{part}": axes for layer in sorted(layers) for part, axes in parts.items()
        }
        check_parts(cls.name, parameters, every)
        return cls(parameters)

    def check(self, config: Config, name: str) -> None:
        C, m = config.n_embd, self.parameters[f"{self.layers[0]}.up"].shape[0]
        expected: dict[str, tuple[int, ...]] = {}
        for layer in self.layers:
            there = f"{layer}.weight" in config.shapes()
            for part, shape in (("down", (C, m)), ("down_bias", (m,)), ("up", (m, C))):
                expected[f"{layer}.{part}"] = shape if there else ()
            expected[f"{layer}.up_bias"] = (C,)
        check_shapes(self, expected, config, name)

    # ---- the path of a layer ----

    def path(
        self, layer: str, x: Array, out: Array, ops: Ops, rng: "np.random.Generator | None"
    ) -> tuple[Array, _Cache]:
        D, b_D, U, b_U = self._of(layer)
        a, gelu = ops.gelu(ops.linear(out, D, b_D))  # (N, m)
        return out + ops.linear(a, U, b_U), _Cache(out, a, gelu)

    def path_grads(self, layer: str, dout: Array, cache: _Cache, ops: Ops) -> dict[str, Array]:
        U = self.parameters[f"{layer}.up"]
        dU, db_U = ops.linear_backward_params(dout, cache.a)  # (m, C), (C,)
        dz = cache.dz = ops.gelu_backward(ops.linear_backward(dout, U), cache.gelu)  # (N, m)
        dD, db_D = ops.linear_backward_params(dz, cache.h)  # (C, m), (m,)
        parts = {"down": dD, "down_bias": db_D, "up": dU, "up_bias": db_U}
        return {f"{layer}.{part}": a for part, a in parts.items()}

    def path_backward(self, layer: str, dout: Array, cache: _Cache, ops: Ops) -> tuple[Array, None]:
        assert cache.dz is not None  # the contract's order: gradients of parameters come first
        return dout + ops.linear_backward(cache.dz, self._of(layer)[0]), None  # dh (N, C)

    def _of(self, layer: str) -> tuple[Array, ...]:
        parts = ("down", "down_bias", "up", "up_bias")
        return tuple(self.parameters[f"{layer}.{part}"] for part in parts)

    # ---- the whole model ----

    def applied(self, model: GPT2, ops: Ops) -> Applied:
        with_adapters: Any = WithPath(ops, self, model, keep=False)
        return Applied(model, None, with_adapters)
