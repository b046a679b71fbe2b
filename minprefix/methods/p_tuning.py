"""P-tuning: prompt tuning through an encoder.

Liu et al., 2021 (section 2.2). The P vectors come out of a small network that is trained in their
place and folded away at the end, as an MLP prefix is. Here it has PEFT's shape (`PromptEncoder`):
an embedding E (P, C), and three linear layers with a ReLU behind the first two:

    h1 = relu(E W1 + b1)     (P, hidden)     du1 = dh1 where h1 > 0
    h2 = relu(h1 W2 + b2)    (P, hidden)     du2 = dh2 where h2 > 0
    prompt = h2 W3 + b3      (P, C)
"""

from typing import Any, ClassVar, Self

import numpy as np

from minprefix.errors import InputError
from minprefix.gpt2 import Config
from minprefix.methods.prompt_tuning import LENGTH, PromptTuning, _checked, check_positions
from minprefix.methods.rival import check_parts, check_shapes
from minprefix.model import GPT2
from minprefix.ops.contract import Array
from minprefix.ops.reference import linear, linear_backward, linear_backward_params
from minprefix.storage.saved import SavedMethod

HIDDEN = 128
_PARTS = (("weight", 2), ("bias", 1))  # of a linear layer, with their axes


class PTuning(PromptTuning):
    """`parameters`: `embedding` (P, C), `weight_1` (C, hidden), `weight_2` (hidden, hidden),
    `weight_3` (hidden, C) and their biases."""

    name: ClassVar[str] = "p-tuning"

    @classmethod
    def start(
        cls, model: GPT2, length: int = LENGTH, hidden: int = HIDDEN, seed: int = 0
    ) -> "PTuning":
        """E from N(0, 1); the linear layers uniform in +-1/sqrt(inputs), as PyTorch starts them."""
        if hidden < 1:
            raise InputError(f"the encoder has a hidden width of {hidden}: expected at least 1")
        rng, C, P = np.random.default_rng(seed), model.config.n_embd, _checked(length)
        parameters = {"embedding": rng.normal(0, 1, (P, C))}
        for i, (n_in, n_out) in enumerate(((C, hidden), (hidden, hidden), (hidden, C)), 1):
            bound = n_in**-0.5
            parameters[f"weight_{i}"] = rng.uniform(-bound, bound, (n_in, n_out))
            parameters[f"bias_{i}"] = rng.uniform(-bound, bound, n_out)
        return cls({name: a.astype(model.dtype) for name, a in parameters.items()})

    @classmethod
    def of(cls, options: dict[str, Any], parameters: dict[str, Array]) -> Self:
        layers = {f"{part}_{i}": axes for i in (1, 2, 3) for part, axes in _PARTS}
        check_parts(cls.name, parameters, {"embedding": 2, **layers})
        return cls(parameters)

    @property
    def length(self) -> int:
        return len(self.parameters["embedding"])

    @property
    def options(self) -> dict[str, Any]:
        hidden = self.parameters["weight_2"].shape[0]
        return super().options | {"encoder": "mlp", "encoder_hidden": hidden}

    def check(self, config: Config, name: str) -> None:
        C, h = config.n_embd, self.parameters["weight_2"].shape[0]
        expected: dict[str, tuple[int, ...]] = {"embedding": (self.length, C)}
        for i, shape in enumerate(((C, h), (h, h), (h, C)), 1):
            expected |= {f"weight_{i}": shape, f"bias_{i}": shape[1:]}
        check_shapes(self, expected, config, name)
        check_positions(self, config, name)

    def prompt(self) -> Array:
        return self._forward()[-1]

    def _forward(self) -> tuple[Array, Array, Array]:
        p = self.parameters
        h1 = _relu(linear(p["embedding"], p["weight_1"], p["bias_1"]))  # (P, hidden)
        h2 = _relu(linear(h1, p["weight_2"], p["bias_2"]))  # (P, hidden)
        return h1, h2, linear(h2, p["weight_3"], p["bias_3"])  # (P, C)

    def prompt_backward(self, dprompt: Array) -> dict[str, Array]:
        p, (h1, h2, _) = self.parameters, self._forward()  # far cheaper than the model
        dweight_3, dbias_3 = linear_backward_params(dprompt, h2)
        du2 = linear_backward(dprompt, p["weight_3"]) * (h2.real > 0)  # (P, hidden)
        dweight_2, dbias_2 = linear_backward_params(du2, h1)
        du1 = linear_backward(du2, p["weight_2"]) * (h1.real > 0)  # (P, hidden)
        dweight_1, dbias_1 = linear_backward_params(du1, p["embedding"])
        return {
            "embedding": linear_backward(du1, p["weight_1"]),
            "weight_1": dweight_1, "bias_1": dbias_1,
            "weight_2": dweight_2, "bias_2": dbias_2,
            "weight_3": dweight_3, "bias_3": dbias_3,
        }  # fmt: skip

    @property
    def saved(self) -> SavedMethod:
        """The prompt, as PEFT saves it, and the encoder."""
        host = self.to("numpy")
        return SavedMethod(self.name, self.options, {"prompt": host.prompt()}, host.parameters)

    def folded(self) -> PromptTuning:
        """The prompt alone, without its encoder."""
        return PromptTuning({"prompt": self.prompt().copy()})


def _relu(x: Array) -> Array:
    return x * (x.real > 0)
