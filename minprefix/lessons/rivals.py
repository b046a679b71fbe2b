"""Checks of the exercises on prefix-tuning's rivals: functions that the suite's contract does not
have, on a few small cases, with the usual mistakes by name.

`lora_backward` is held against the gradient of the whole weight, formed as LoRA never forms it;
`prompt_backward` against the package's own prompt tuning.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import numpy as np

from minprefix.conformance.check import Check, Expected, Grade
from minprefix.conformance.contract import LEVELS
from minprefix.conformance.diagnosis import relative_error
from minprefix.conformance.implementation import Broken, Implementation
from minprefix.gpt2 import BlockCache, Config
from minprefix.methods import PromptTuning
from minprefix.model import GPT2
from minprefix.ops import reference
from minprefix.ops.contract import Array

#: function -> its arguments
ARGUMENTS = {
    "lora_backward": ("dout", "x", "W", "A", "B", "s"),
    "prompt_backward": ("dkv", "w", "blocks", "ops"),
}
#: function -> the tensors that it gives, and their axes
TENSORS: dict[str, dict[str, str]] = {
    "lora_backward": {"dx": "N in", "dA": "in r", "dB": "r out"},
    "prompt_backward": {"dprompt": "P C"},
}
TOLERANCE = 1e-10

#: tensor -> what people say of it, and the numbers that this mistake gives
Mistakes = Mapping[str, Mapping[str, Array]]


class Exercise(Check):
    @property
    def level(self) -> str:
        return LEVELS[0]


class Case(NamedTuple):
    arguments: dict[str, object]
    expected: Expected
    mistakes: Mistakes


def lora_case(N: int, n_in: int, n_out: int, r: int, s: float, start: bool = False) -> Case:
    """`start`: B is 0, as before the first step."""
    rng = np.random.default_rng(N)
    sizes = {"dout": (N, n_out), "x": (N, n_in), "W": (n_in, n_out), "A": (n_in, r)}
    a = {name: rng.normal(size=shape) for name, shape in sizes.items()}
    dout, x, W, A = a.values()
    B = np.zeros((r, n_out)) if start else rng.normal(size=(r, n_out))
    dW = x.T @ dout  # (in, out)
    frozen, low = dout @ W.T, dout @ B.T @ A.T  # (N, in)  the two ways back to x
    right = {"dx": frozen + s * low, "dA": s * dW @ B.T, "dB": s * A.T @ dW}
    mistakes = {
        "dx": {
            "is what comes through W alone: the way through A and B is missing": frozen,
            "is what comes through A and B alone: the way through W is missing": s * low,
            "is what one gets where s is forgotten on the way through A and B": frozen + low,
            "is what one gets where s stands twice on that way": frozen + s**2 * low,
        }
    }
    for name in ("dA", "dB"):
        mistakes[name] = {
            "is what one gets where s is forgotten": right[name] / s,
            "is what one gets where s stands twice": right[name] * s,
            "is a mean over the N rows: it has to be their sum": right[name] / N,
        }
    dimensions = {"N": N, "in": n_in, "out": n_out, "r": r}
    expected = Expected(right, TOLERANCE, dimensions, level="ops")
    return Case(a | {"B": B, "s": s}, expected, mistakes)


def prompt_case(P: int, n_layer: int, n_head: int = 2, hs: int = 3) -> Case:
    cfg = Config(n_layer, n_head, n_head * hs, vocab_size=5, n_positions=8)
    model, rng = GPT2.random(cfg, seed=P, dtype="float64"), np.random.default_rng(P)
    # large weights: the rows of the prompt look at each other in earnest
    weights = {name: a + rng.normal(0, 0.3, a.shape) for name, a in model.weights.items()}
    model = GPT2(cfg, weights, name="the exercise's")
    prompt = PromptTuning({"prompt": rng.normal(size=(P, cfg.n_embd))})
    dkv = rng.normal(size=(n_layer, 2, n_head, P, hs))

    def caches() -> list[BlockCache]:
        return prompt.prefix(model, reference)[1]  # a backward may consume them

    def dprompt(dkv: Array) -> Array:
        return prompt.prefix_backward(dkv, model, caches(), reference)["prompt"]

    keys, values, top = dkv.copy(), dkv.copy(), dkv.copy()
    keys[:, 1], values[:, 0], top[:-1] = 0, 0, 0
    mistakes = {
        "is what the keys send alone: dv of the texts is not added": dprompt(keys),
        "is what the values send alone: dk of the texts is not added": dprompt(values),
        "is what one gets where dk and dv change places": dprompt(dkv[:, ::-1]),
    }
    if n_layer > 1:
        mistakes |= {
            "is what the top layer sends alone: each layer has a part of dkv": dprompt(top),
            "is what one gets where dkv is taken from the first layer up": dprompt(dkv[::-1]),
        }
    blocks = [(b.attn.ln_1, b.attn.attention, b.mlp.ln_2, b.mlp.gelu) for b in caches()]
    arguments = {"dkv": dkv, "w": weights, "blocks": blocks, "ops": reference}
    expected = Expected({"dprompt": dprompt(dkv)}, TOLERANCE, {"P": P, "L": n_layer}, level="ops")
    return Case(arguments, expected, {"dprompt": mistakes})


#: function -> case -> why it is there, and what makes it
CASES: dict[str, dict[str, tuple[str, Callable[[], Case]]]] = {
    "lora_backward": {
        "usual": ("all sizes differ, and s is not 1", partial(lora_case, 7, 5, 6, 3, 2.5)),
        "square": ("any order of factors fits the shapes", partial(lora_case, 4, 4, 4, 4, 0.5)),
        "rank-one": ("A is one column, B one row", partial(lora_case, 3, 4, 6, 1, 2.0)),
        "start": ("B is 0: A has no gradient", partial(lora_case, 5, 3, 4, 2, 2.0, start=True)),
    },
    "prompt_backward": {
        "usual": ("several layers, several rows", partial(prompt_case, 4, 3)),
        "one-layer": ("nothing comes from a layer above", partial(prompt_case, 3, 1)),
        "one-row": ("a row that sees only itself", partial(prompt_case, 1, 2)),
    },
}


def checks(function: str) -> list[Check]:
    """Those of one exercise."""
    return [
        Exercise(f"{function}/{name}", why, partial(_grade, function, make))
        for name, (why, make) in CASES[function].items()
    ]


def _grade(
    function: str, make: Callable[[], Case], implementation: Implementation, grade: Grade
) -> None:
    case, untouched = make(), make()
    got = implementation.call(function, *(case.arguments[a] for a in ARGUMENTS[function]))
    axes = TENSORS[function]
    given = got if len(axes) > 1 else (got,)
    if not isinstance(given, tuple) or len(given) != len(axes):
        said = f"{function} returns {type(got).__name__}: expected {', '.join(axes)}"
        raise Broken("signature", said, function)
    for (name, letters), a in zip(axes.items(), given, strict=True):
        before = len(grade.findings)
        a = implementation.asnumpy(a, name)
        grade.compare(function, name, a, case.expected, letters)
        for finding in grade.findings[before:]:
            finding.hints = _named(case, name, a) or finding.hints
    for name, argument in case.arguments.items():
        if isinstance(argument, np.ndarray) and not np.array_equal(
            argument, np.asarray(untouched.arguments[name])
        ):
            grade.say("modified", function, name, f"{function} writes into its argument {name}")


def _named(case: Case, tensor: str, a: Array) -> list[str]:
    """The mistake that gives these very numbers, if it is a usual one."""
    return [
        said
        for said, wrong in case.mistakes[tensor].items()
        if a.shape == wrong.shape
        and relative_error(a, wrong) < TOLERANCE
        and relative_error(case.expected.tensors[tensor], wrong) > TOLERANCE
    ][:1]
