"""The operation of a whole model that gives the first wrong tensor, by itself: what it gives for
the right tensors that enter it, under the wrong formulas of `formulas.txt`, with another tensor of
its block, or with another weight."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from minprefix.conformance.cases import each_float
from minprefix.conformance.contract import ARGUMENTS, FUNCTIONS
from minprefix.conformance.problems import Question
from minprefix.conformance.reasons.wrong import formulas, given
from minprefix.gpt2 import head_name
from minprefix.ops import reference
from minprefix.ops.contract import Array

#: a tensor of a block -> its operation, the layer whose weights it has, the operation's tensor; and
#: the gradient that enters a backward, with what the residual stream adds to its result
_HERE: dict[str, tuple[str, str, str, str, str]] = {
    "ln_1.out": ("layernorm", "ln_1", "out", "", ""),
    "attn.z": ("attention", "", "z", "", ""),
    "attn.out": ("linear", "attn.c_proj", "out", "", ""),
    "ln_2.out": ("layernorm", "ln_2", "out", "", ""),
    "mlp.pre": ("linear", "mlp.c_fc", "out", "", ""),
    "mlp.post": ("gelu", "", "out", "", ""),
    "mlp.out": ("linear", "mlp.c_proj", "out", "", ""),
    "mlp.dpost": ("linear", "mlp.c_proj", "dx", "dresid_post", ""),
    "mlp.dpre": ("gelu", "", "dx", "mlp.dpost", ""),
    "ln_2.dout": ("linear", "mlp.c_fc", "dx", "mlp.dpre", ""),
    "dresid_mid": ("layernorm", "ln_2", "dx", "ln_2.dout", "dresid_post"),
    "attn.dz": ("linear", "attn.c_proj", "dx", "dresid_mid", ""),
    "attn.dq": ("attention", "", "dq", "attn.dz", ""),
    "attn.dk": ("attention", "", "dk", "attn.dz", ""),
    "attn.dv": ("attention", "", "dv", "attn.dz", ""),
    "dresid_pre": ("layernorm", "ln_1", "dx", "ln_1.dout", "dresid_mid"),
    "ln_f.out": ("layernorm", "ln_f", "out", "", ""),
    "logits": ("linear", "lm_head", "out", "", ""),
}

#: layer or operation -> what enters its forward
_TAKES = {
    "ln_1": "resid_pre",
    "attn.c_proj": "attn.z",
    "ln_2": "resid_mid",
    "mlp.c_fc": "ln_2.out",
    "gelu": "mlp.pre",
    "mlp.c_proj": "mlp.post",
    "ln_f": "ln_f.in",
    "lm_head": "ln_f.out",
}


_NONE = np.zeros(0)


class Local:
    """The operation that gives `tensor`, if it is one of a block's and all that enters it is
    known."""

    def __init__(self, question: Question, tensor: str) -> None:
        self.problem: Any = question.problem
        self.right = {n: np.asarray(a, np.float64) for n, a in question.expected.tensors.items()}
        found = re.match(r"blocks\.(\d+)\.(.*)", tensor)
        self.block, short = (int(found[1]), found[2]) if found else (-1, tensor)
        if short == "dresid_post":  # the gradient of the next block's resid_pre
            self.block, short = self.block + 1, "dresid_pre"
        part = re.search(r"\[\d+\]$", short)
        here = _HERE.get(short.replace(part[0], "") if part else short)
        if part and short.startswith("attn.pattern"):
            here = ("attention", "", f"cache.pattern{part[0]}", "", "")
        self.op, self.layer, self.tensor, self.dout, self.added = here or ("",) * 5

    def _tensor(self, short: str) -> Array:
        """Of this block. Raises KeyError if the suite does not have it."""
        return self.right[short if self.block < 0 else f"blocks.{self.block}.{short}"]

    def _weights(self, layer: str) -> tuple[Array, Array | None]:
        every: Mapping[str, Array] = self.problem.weights
        if layer == "lm_head":
            return every[head_name(every)].T.astype(np.float64), None
        weight, bias = (every[f"{self._layer(layer)}.{part}"] for part in ("weight", "bias"))
        return weight.astype(np.float64), bias.astype(np.float64)

    def _layer(self, short: str) -> str:
        """Its name in the checkpoint."""
        return short if self.block < 0 else f"h.{self.block}.{short}"

    def inputs(self) -> dict[str, Any]:
        """Of the operation's functions, by the names of the contract. Raises KeyError."""
        i: dict[str, Any] = {}
        if self.op == "attention":
            i |= {name: self._tensor(f"attn.{name}") for name in "qkv"}
            own = [self.problem.prefixes[j][self.block] for j in self.problem.prefix_of]
            own = each_float(lambda a: a.astype(np.float64), own)
            i |= {"prefix_k": [kv[0] for kv in own], "prefix_v": [kv[1] for kv in own]}
            i["offsets"] = np.cumsum([0, *map(len, self.problem.sequences)])
        else:
            x = self._tensor(_TAKES[self.layer or self.op])
            i["x"] = x.reshape(len(x), -1)
        if self.layer:
            weight, i["bias"] = self._weights(self.layer)
            i |= {"weight": weight, "gain": weight, "eps": self.problem.config.layer_norm_epsilon}
        if self.dout:
            d = self._tensor(self.dout)
            i |= {"dout": d.reshape(len(d), -1), "dz": d.reshape(i["q"].shape) if "q" in i else d}
        if self.op != "linear":
            result = getattr(reference, self.op)(*(i[a] for a in ARGUMENTS[self.op]))
            i["cache"] = result[1]
        return i

    def reason(self, got: Array, close: float) -> str | None:
        """A sentence without its subject."""
        try:
            inputs = self.inputs() if self.op else {}
            base = self._tensor(self.added) if self.added else 0.0
        except (KeyError, ValueError):
            return None
        functions = [f for f in FUNCTIONS.get(self.op, ()) if (f != self.op) == bool(self.dout)]
        for function in functions:
            for wrong in formulas()[function]:
                a = given(wrong, inputs).get(self.tensor, _NONE)
                same = a.size == got.size
                if same and _close(got, base + a.reshape(got.shape), close):
                    return f"is what one gets if {wrong.said}"
        if self.layer and not self.dout:
            return self._other_inputs(got, close)
        return None

    def _other_inputs(self, got: Array, close: float) -> str | None:
        """The right operation with another tensor of its block, or another layer's weights."""
        usual, layer = _TAKES[self.layer], self._layer(self.layer)
        for name, x in self._near():
            for other, weight, bias in self._layers():
                if (name, other) != (usual, layer):
                    a = self._computed(x, weight, bias)
                    if a is not None and _close(got, a, close):
                        return f"is {self.op} of {name} with {other}: expected {usual} with {layer}"
        return None

    def _near(self) -> Iterator[tuple[str, Array]]:
        start = "ln_f." if self.block < 0 else f"blocks.{self.block}."
        for name, a in self.right.items():
            if name.startswith(start) and a.ndim > 1:
                short = name if self.block < 0 else name.removeprefix(start)
                yield short, a.reshape(len(a), -1)

    def _layers(self) -> Iterator[tuple[str, Array, Array | None]]:
        weights: Mapping[str, Array] = self.problem.weights
        if self.layer == "lm_head":
            yield self.layer, *self._weights(self.layer)
        for name, weight in weights.items():
            layer = name.removesuffix(".weight")
            if layer != name and f"{layer}.bias" in weights:
                yield layer, weight, weights[f"{layer}.bias"]

    def _computed(self, x: Array, weight: Array, bias: Array | None) -> Array | None:
        try:
            if self.op == "linear" or bias is None:
                return reference.linear(x, weight, bias)
            return reference.layernorm(x, weight, bias, self.problem.config.layer_norm_epsilon)[0]
        except ValueError:  # not of these shapes
            return None


def _close(got: Array, want: Array, close: float) -> bool:
    if got.shape != want.shape:
        return False
    with np.errstate(all="ignore"):
        return bool(np.abs(got - want).max(initial=0.0) <= close * np.abs(want).max(initial=0.0))
