"""P-tuning: prompt tuning through an encoder.

Liu et al., 2021 (section 3.2, equation 4). The P vectors come out of a small network that is
trained in their place and folded away at the end, as an MLP prefix is. Here it has the shapes of
PEFT's `PromptEncoder`. An embedding E (P, C) goes through three linear layers ("mlp"):

    h1 = relu(E W1 + b1)     (P, hidden)     du1 = dh1 where h1 > 0
    h2 = relu(h1 W2 + b2)    (P, hidden)     du2 = dh2 where h2 > 0
    prompt = h2 W3 + b3      (P, C)

or ("lstm") through two layers of a bidirectional LSTM (`methods.lstm`) and then through two linear
ones, of which the first is as wide as the LSTM's output.
"""

from itertools import pairwise
from typing import Any, ClassVar, Self

import numpy as np

from minprefix.errors import InputError
from minprefix.gpt2 import Config
from minprefix.methods.lstm import lstm, lstm_backward
from minprefix.methods.lstm import shapes as lstm_shapes
from minprefix.methods.prompt_tuning import LENGTH, PromptTuning, check_length, check_positions
from minprefix.methods.rival import check_parts, check_shapes
from minprefix.model import GPT2
from minprefix.ops.contract import Array
from minprefix.ops.reference import linear, linear_backward, linear_backward_params
from minprefix.storage.saved import SavedMethod

HIDDEN = 128
ENCODERS = ("mlp", "lstm")
#: of the LSTM, as PEFT has them
LAYERS = 2


class PTuning(PromptTuning):
    """`parameters`: `embedding` (P, C), the `weight_1`, `bias_1` and so on of the linear layers,
    and those of the LSTM (`lstm.shapes`) where there is one."""

    name: ClassVar[str] = "p-tuning"

    @classmethod
    def start(
        cls,
        model: GPT2,
        length: int = LENGTH,
        hidden: int = HIDDEN,
        seed: int = 0,
        encoder: str = "mlp",
    ) -> "PTuning":
        """E from N(0, 1); the rest uniform, as PyTorch starts it: in +-1/sqrt(inputs) for a linear
        layer, in +-1/sqrt(hidden) for the LSTM."""
        if hidden < 1:
            raise InputError(f"the encoder has a hidden width of {hidden}: expected at least 1")
        if encoder not in ENCODERS:
            raise InputError(f"encoder is {encoder!r}: expected one of {', '.join(ENCODERS)}")
        rng, C, P = np.random.default_rng(seed), model.config.n_embd, check_length(length)
        parameters = {"embedding": rng.normal(0, 1, (P, C))}
        for name, shape in _shapes(C, hidden, encoder).items():
            n_in = shape[0] if name.startswith("weight") else hidden
            if name.startswith("bias"):  # of the layer before it in this order
                n_in = len(parameters[name.replace("bias", "weight")])
            parameters[name] = rng.uniform(-(n_in**-0.5), n_in**-0.5, shape)
        return cls({name: a.astype(model.dtype) for name, a in parameters.items()})

    @classmethod
    def of(cls, options: dict[str, Any], parameters: dict[str, Array]) -> Self:
        kind = "lstm" if any(name.startswith("lstm") for name in parameters) else "mlp"
        axes = {name: len(shape) for name, shape in _shapes(1, 1, kind).items()}
        check_parts(cls.name, parameters, {"embedding": 2, **axes})
        return cls(parameters)

    @property
    def length(self) -> int:
        return len(self.parameters["embedding"])

    @property
    def encoder(self) -> str:
        """ "mlp" or "lstm"."""
        return "mlp" if "weight_3" in self.parameters else "lstm"

    @property
    def hidden(self) -> int:
        """The width of the MLP, or of each direction of the LSTM."""
        if self.encoder == "mlp":
            return self.parameters["weight_2"].shape[0]
        return self.parameters["lstm_0.forward.weight_h"].shape[0]

    @property
    def options(self) -> dict[str, Any]:
        return super().options | {"encoder": self.encoder, "encoder_hidden": self.hidden}

    def check(self, config: Config, name: str) -> None:
        shapes = _shapes(config.n_embd, self.hidden, self.encoder)
        check_shapes(self, {"embedding": (self.length, config.n_embd), **shapes}, config, name)
        check_positions(self, config, name)

    def prompt(self) -> Array:
        return self._forward()[-1][-1]

    def _forward(self) -> tuple[list[Any], list[Array]]:
        """The LSTM's caches, and the input of each linear layer, the prompt after them."""
        p, caches = self.parameters, list[Any]()
        h = [p["embedding"]]
        if self.encoder == "lstm":
            out, caches = lstm(h[0], p, LAYERS)
            h = [out]
        last = 3 if self.encoder == "mlp" else 2
        for i in range(1, last):
            h.append(_relu(linear(h[-1], p[f"weight_{i}"], p[f"bias_{i}"])))  # (P, hidden)
        return caches, [*h, linear(h[-1], p[f"weight_{last}"], p[f"bias_{last}"])]

    def prompt_backward(self, dprompt: Array) -> dict[str, Array]:
        p, (caches, h) = self.parameters, self._forward()  # far cheaper than the model
        grads, dout = dict[str, Array](), dprompt
        for i in reversed(range(1, len(h))):
            grads[f"weight_{i}"], grads[f"bias_{i}"] = linear_backward_params(dout, h[i - 1])
            dout = linear_backward(dout, p[f"weight_{i}"])
            if i > 1:  # through the ReLU
                dout = dout * (h[i - 1].real > 0)  # (P, hidden)
        if self.encoder == "lstm":
            dout, parts = lstm_backward(dout, caches, p)
            grads |= parts
        return {"embedding": dout, **grads}

    @property
    def saved(self) -> SavedMethod:
        """The prompt, as PEFT saves it, and the encoder."""
        host = self.to("numpy")
        return SavedMethod(self.name, self.options, {"prompt": host.prompt()}, host.parameters)

    def folded(self) -> PromptTuning:
        """The prompt alone, without its encoder."""
        return PromptTuning({"prompt": self.prompt().copy()})


def _shapes(C: int, hidden: int, encoder: str) -> dict[str, tuple[int, ...]]:
    """The name and shape of every parameter but the embedding."""
    found, widths = dict[str, tuple[int, ...]](), [C, hidden, hidden, C]
    if encoder == "lstm":
        found, widths = lstm_shapes(C, hidden, LAYERS), [2 * hidden, 2 * hidden, C]
    for i, shape in enumerate(pairwise(widths), 1):
        found |= {f"weight_{i}": shape, f"bias_{i}": shape[1:]}
    return found


def _relu(x: Array) -> Array:
    return x * (x.real > 0)
