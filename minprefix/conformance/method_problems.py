"""The problems of the level `methods`, and the right answers: prefix-tuning's rivals, as this
project computes them over the reference ops in float64."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np

from minprefix.conformance.check import Expected
from minprefix.conformance.contract import MethodProblem, method_tensors
from minprefix.conformance.model_problems import SMALL, texts, weights_of
from minprefix.conformance.problems import TOLERANCE, Question, answer
from minprefix.method import Method
from minprefix.methods import (
    Adapters,
    BitFit,
    FineTuning,
    Infix,
    LoRA,
    PromptTuning,
    PTuning,
    TopLayers,
)
from minprefix.model import GPT2
from minprefix.ops.contract import Array
from minprefix.prefix import dropout_mask

#: method -> what makes one for a model
_START: dict[str, Callable[..., Method]] = {
    "full": FineTuning.start,
    "top-layers": TopLayers.start,
    "bitfit": BitFit.start,
    "prompt-tuning": PromptTuning.normal,
    "p-tuning": PTuning.start,
    "infix": Infix.start,
    "lora": LoRA.start,
    "adapters": Adapters.start,
}


def method_problem(
    method: str,
    lengths: tuple[int, ...] = (5, 3, 4),
    loss_from: tuple[int, ...] = (2, 1, 3),
    reduction: str = "mean",
    config: Mapping[str, Any] | None = None,
    seed: int = 0,
    **start: Any,
) -> MethodProblem:
    """A problem from its sizes; `config`: the differences from `SMALL`; `start`: the arguments of
    the method's own start. Every parameter is random, B of LoRA, too."""
    cfg = replace(SMALL, **({"n_layer": 2} | dict(config or {})))
    rng, weights = np.random.default_rng([9, seed]), weights_of(cfg, seed)
    made = _START[method](GPT2(cfg, dict(weights), name="the suite's"), **start)
    sequences, parameters, masks = texts(rng, cfg, lengths), dict[str, Array](), dict[str, Array]()
    if not isinstance(made, FineTuning):
        parameters = {n: rng.normal(0, 0.5, a.shape) for n, a in made.parameters.items()}
    if isinstance(made, LoRA) and made.dropout:
        draws = np.random.default_rng(seed)
        for layer in made.layers:
            shape = (sum(lengths), len(weights[f"{layer}.weight"]))
            masks[layer] = dropout_mask(shape, made.dropout, draws)
    return MethodProblem(
        cfg, weights, sequences, list(loss_from), method, made.options, parameters, reduction,
        masks, seed,
    )  # fmt: skip


_APART: dict[str, Any] = {"tie_word_embeddings": False, "n_inner": 14, "layer_norm_epsilon": 1e-2}
_ALL = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")

#: name -> why, and the arguments of `method_problem`
METHOD_CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "full/tied": ("every weight; the tied head's gradient joins the embedding's", {}),
    "full/separate-head": (
        "a head of its own; the sum over the targets",
        {"config": _APART, "reduction": "sum"},
    ),
    "top-layers/one": ("the last block alone, and not the first", {"k": 1}),
    "top-layers/two": (
        "the last two of eleven blocks: 9 and 10, though 10 comes before 2 as text",
        {"k": 2, "config": {"n_layer": 11, "n_embd": 4, "layer_norm_epsilon": 0.1}},
    ),
    "bitfit/usual": ("the biases of every linear layer and layernorm, and nothing else", {}),
    "prompt-tuning/usual": (
        "three vectors before three sequences: positions 0 to 2, the text from 3",
        {"length": 3},
    ),
    "prompt-tuning/one-vector": (
        "one vector; sequences of one token predict nothing; a head of its own; the sum over the "
        "targets",
        {
            "length": 1,
            "lengths": (1, 4, 2),
            "loss_from": (1, 3, 1),
            "reduction": "sum",
            "config": _APART,
        },
    ),
    "p-tuning/usual": ("the prompt through an encoder", {"length": 3, "hidden": 6}),
    "p-tuning/wide": (
        "an encoder that is wider than the model, which has a head of its own",
        {"length": 2, "hidden": 17, "config": _APART},
    ),
    "p-tuning/lstm": (
        "the prompt through an LSTM of two layers that reads it both ways",
        {"length": 3, "hidden": 4, "encoder": "lstm"},
    ),
    "infix/usual": (
        "sources of unequal lengths; one has a single token, before which the infix stands",
        {"length": 3},
    ),
    "infix/nothing-predicted": (
        "sequences of one token, and one of which nothing is predicted; a head of its own; the sum "
        "over the targets",
        {
            "length": 2,
            "lengths": (4, 1, 5),
            "loss_from": (4, 1, 2),
            "reduction": "sum",
            "config": _APART,
        },
    ),
    "lora/usual": ("one matrix a block, and alpha is not r", {"rank": 2, "alpha": 3.0}),
    "lora/all-linear": (
        "every linear layer: what goes down passes each low-rank path",
        {"rank": 3, "alpha": 2.0, "targets": _ALL, "config": _APART, "reduction": "sum"},
    ),
    "lora/one-token-targets": (
        "sequences of one token predict nothing; alpha = r; eleven layers",
        {
            "rank": 1,
            "targets": ("mlp.c_fc",),
            "lengths": (1, 4, 2),
            "loss_from": (1, 3, 1),
            "config": {"n_layer": 11, "n_embd": 4, "layer_norm_epsilon": 0.1},
        },
    ),
    "lora/dropout": (
        "dropout stands before A alone, and its mask comes back in dA and dx",
        {"rank": 2, "alpha": 3.0, "targets": ("attn.c_attn", "mlp.c_fc"), "dropout": 0.4},
    ),
    "adapters/houlsby": ("behind the attention and behind the MLP", {"bottleneck": 3}),
    "adapters/pfeiffer": (
        "behind the MLP alone; a head of its own; the sum over the targets",
        {"bottleneck": 4, "placement": "pfeiffer", "config": _APART, "reduction": "sum"},
    ),
}


def method_case(name: str) -> MethodProblem:
    """The problem `name` of the table."""
    return method_problem(name.partition("/")[0], **METHOD_CASES[name][1])


@cache
def expected_method(name: str) -> Mapping[str, Array]:
    return answer("run_method", method_case(name))


def method_question(name: str) -> Question:
    p, right = method_case(name), expected_method(name)
    shapes = p.config.shapes() | {key: a.shape for key, a in p.parameters.items()}
    trained = {key: shapes[key] for key in shapes if f"d{key}" in right}
    axes, N = method_tensors(trained), sum(map(len, p.sequences))
    if p.masks:
        del axes["logits"]
    sizes = {"N": N, "M": N - sum(p.loss_from), "B": len(p.sequences), "L": p.config.n_layer}
    if p.method == "lora":
        sizes["alpha/r"] = p.options["alpha"] / p.options["rank"]
    expected = Expected(right, TOLERANCE["float64"], sizes, None, "methods")
    return Question("run_method", f"method_case({name!r})", p, axes, expected)
