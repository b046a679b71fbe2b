"""The problems of the levels above the ops, and the right answers.

This project's own model computes them over the reference ops in float64; four other ways to compute
them agree (see the oracle table).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any, Literal

import numpy as np

from minprefix.conformance.cases import wide
from minprefix.conformance.check import Expected
from minprefix.conformance.contract import (
    OF_A_MODULE,
    MethodProblem,
    MicroBatch,
    ModelProblem,
    TrainingProblem,
    model_tensors,
    training_tensors,
)
from minprefix.conformance.model_problems import (
    DECODING_CASES,
    MODEL_CASES,
    OTHER,
    SMALL,
    model_case,
    model_problem,
    texts,
    weights_of,
)
from minprefix.ops import reference
from minprefix.ops.contract import Array

#: allowed error of a tensor, relative to its largest value: rounding after a whole model
TOLERANCE = {
    "float64": 1e-9,
    "float32": 2e-4,
    "training": 1e-8,  # Adam divides by the root of a small second moment
}

DRAWS = 12  # models that hypothesis draws


def widened(problem: ModelProblem) -> ModelProblem:
    """The same problem in float64."""
    return replace(problem, weights=wide(problem.weights), prefixes=wide(problem.prefixes))


def dimensions(problem: ModelProblem) -> dict[str, int]:
    """The sizes of a problem by their letters, for the diagnosis."""
    c, B = problem.config, len(problem.sequences)
    N = sum(len(s) for s in problem.sequences)
    M, P = N - sum(problem.loss_from), problem.prefixes[0].shape[3]
    sizes = {"hs": c.head_size, "M": M, "B": B, "N": N, "P": P, "L": c.n_layer}
    return {letter: n for letter, n in sizes.items() if n > 1}


def answer(
    function: str, problem: ModelProblem | MethodProblem | TrainingProblem, clip_eps: float = 0.0
) -> Mapping[str, Array]:
    """This project's own, over the reference ops. `clip_eps`: added to a norm that is clipped."""
    from minprefix.conformance.house import House  # not at the top: training needs more than NumPy

    found: Mapping[str, Array] = getattr(House(reference, clip_eps), function)(problem)
    return found


@cache
def expected_model(name: str) -> Mapping[str, Array]:
    return answer("run_model", widened(model_case(name)))


@cache
def expected_decoding(name: str) -> Mapping[str, Array]:
    return decoded(widened(model_case(name)))


def decoded(problem: ModelProblem) -> Mapping[str, Array]:
    """The logits of every token, from whole sequences: no cache is involved."""
    rows = []
    for ids, which in zip(problem.sequences, problem.prefix_of, strict=True):
        # the loss of a sequence with one token more has a row of logits for each token of this one
        one = replace(problem, sequences=[[*ids, 0]], loss_from=[1], prefix_of=[which])
        rows.append(answer("run_model", one)["logits"])
    return {"logits": np.concatenate(rows)}


# ---- training ----------------------------------------------------------------------------------


def training_problem(
    kinds: tuple[str, ...] = ("flat",),
    n_steps: int = 1,
    micro_batches: int = 1,
    rotate: bool = False,
    config: Mapping[str, Any] | None = None,
    seed: int = 11,
    **settings: Any,
) -> TrainingProblem:
    """`kinds`: flat or mlp, a prefix each; every step has new sequences, of unequal lengths.
    `rotate`: a step uses two prefixes, the first one the last two, and each begins with the prefix
    after the one that the last began with. `config`: the differences from `SMALL`."""
    cfg, rng = replace(SMALL, **(config or {})), np.random.default_rng(seed)
    parameters: list[dict[str, Array]] = []
    for j, kind in enumerate(kinds):
        P, out, hidden = 3 + j % 3, 2 * cfg.n_layer * cfg.n_embd, 6
        if kind == "flat":
            shape = (cfg.n_layer, 2, cfg.n_head, P, cfg.head_size)
            parameters.append({"kv": rng.normal(0, 0.7, shape)})
            continue
        shapes: dict[str, tuple[int, ...]] = {"embedding": (P, cfg.n_embd)}
        shapes |= {"weight_1": (cfg.n_embd, hidden), "bias_1": (hidden,)}
        shapes |= {"weight_2": (hidden, out), "bias_2": (out,)}
        sizes = dict.fromkeys(shapes, 0.4) | {"embedding": 1.0}
        parameters.append({n: rng.normal(0, sizes[n], shape) for n, shape in shapes.items()})

    def part(s: int, m: int) -> MicroBatch:
        lengths, loss_from = ([4, 6], [1, 4]) if m == 0 else ([3], [2])
        first = m + (len(kinds) - 2 + s if rotate else 0)
        prefix_of = [(b + first) % len(kinds) for b in range(len(lengths))]
        return MicroBatch(texts(rng, cfg, lengths), loss_from, prefix_of)

    steps = [[part(s, m) for m in range(micro_batches)] for s in range(n_steps)]
    return TrainingProblem(cfg, weights_of(cfg), parameters, steps, **settings)


#: name -> why, and the arguments of `training_problem`. The limits of `clip` lie between the norms
#: of a run's gradients, so that some steps are clipped and some are not
TRAINING_CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "one-step": ("one step of AdamW on a flat prefix", {"lr": 0.05, "weight_decay": 0.1}),
    "ten-steps": (
        "ten steps: both moments, their bias corrections, the schedule, decay, clipping",
        {"n_steps": 10, "lr": 0.05, "weight_decay": 0.1, "warmup": 3, "clip": 0.14},
    ),
    "unclipped": (
        "a gradient below the limit is left alone",
        {"n_steps": 2, "lr": 0.05, "clip": 1e6},
    ),
    "large-eps": (
        "eps stands outside the root, after the bias correction",
        {"n_steps": 3, "lr": 0.05, "eps": 0.1},
    ),
    "mlp": (
        "ten steps on a prefix through an MLP",
        {"kinds": ("mlp",), "n_steps": 10, "lr": 0.01, "weight_decay": 0.1, "clip": 0.6},
    ),
    "micro-batches": (
        "a step in two unequal parts is the mean over all their targets",
        {"n_steps": 3, "micro_batches": 2, "lr": 0.05},
    ),
    "two-prefixes": (
        "a flat prefix and an MLP in one batch, one norm over both",
        {"kinds": ("flat", "mlp"), "n_steps": 3, "micro_batches": 2, "lr": 0.05, "clip": 0.2},
    ),
    "another-recipe": (
        "all settings but the defaults at once, on another model; twelve steps: 10 comes after 9",
        {
            "kinds": ("mlp", "flat"),
            "n_steps": 12,
            "micro_batches": 2,
            "config": OTHER,
            "lr": 0.02,
            "warmup": 1,
            "beta1": 0.7,
            "beta2": 0.9,
            "eps": 1e-4,
            "weight_decay": 0.2,
            "clip": 0.4,
        },
    ),
    "unused-prefix": (
        "eleven prefixes, of which each step uses two: the others have a gradient of 0, and AdamW "
        "moves them all the same; the rate rises up to the last step but one",
        {
            "kinds": ("flat", "mlp") + 9 * ("flat",),
            "n_steps": 5,
            "rotate": True,
            "lr": 0.05,
            "warmup": 4,
            "beta1": 0.8,
            "beta2": 0.95,
            "weight_decay": 0.1,
        },
    ),
}


def training_case(name: str) -> TrainingProblem:
    """The problem `name` of the table."""
    return training_problem(**TRAINING_CASES[name][1])


@cache
def expected_training(name: str) -> Mapping[str, Array]:
    return answer("run_training", training_case(name))


#: what torch.nn.utils.clip_grad_norm_ adds to a norm that is clipped
CLIP_EPS = 1e-6

#: function -> its right answer to a problem in float64
RIGHT: dict[str, Callable[[Any], Mapping[str, Array]]] = {
    function: partial(answer, function) for function in ("run_model", "run_method", "run_training")
} | {"run_decoding": decoded, **dict.fromkeys(OF_A_MODULE, partial(answer, "run_model"))}

#: the fields of problems that hold arrays of floats
ARRAYS = ("weights", "prefixes", "parameters", "masks")


# ---- what a check asks ---------------------------------------------------------------------------

#: tensors without which an answer of this function is incomplete; the others may be left out
ASKED: dict[str, Callable[[str], bool]] = {
    "run_model": lambda name: name.startswith(("loss", "prefix.")),
    "run_decoding": lambda name: True,
    "run_method": lambda name: name != "logits",
    "run_training": lambda name: ".gradient." not in name,
    **dict.fromkeys(OF_A_MODULE, lambda name: True),
}


@dataclass(frozen=True)
class Question:
    """A problem for a function of `Whole`, and the right answer. `source`: Python that makes the
    problem; `axes`: of every tensor that may be given, in the order in which they arise."""

    function: str
    source: str
    problem: ModelProblem | MethodProblem | TrainingProblem
    axes: Mapping[str, str]
    expected: Expected


def _question(
    source: str, p: ModelProblem, right: Mapping[str, Array], function: str = "run_model"
) -> Question:
    axes = {"logits": "N V"}
    if function == "run_model":
        axes = model_tensors(p.config, len(p.prefixes), len(p.sequences), p.need)
    tolerance, offsets = TOLERANCE[str(p.prefixes[0].dtype)], np.cumsum([0, *map(len, p.sequences)])
    wanted = {name: right[name] for name in axes if name in right}
    expected = Expected(wanted, tolerance, dimensions(p), offsets.tolist(), "model")
    return Question(function, source, p, axes, expected)


def model_question(name: str, need: Literal["prefix", "all"] | None = None) -> Question:
    """`need`: other than the case's own."""
    problem = model_case(name)
    problem = replace(problem, need=need or problem.need)
    return _question(f"model_case({name!r})", problem, expected_model(name))


def drawn_question(function: str, sizes: Mapping[str, Any]) -> Question:
    """`sizes`: the arguments of `model_problem` or `training_problem`, in float64."""
    problem: Any
    if function == "run_training":
        problem, source = training_problem(**sizes), f"training_problem(**{sizes!r})"
    else:
        sizes = dict(sizes) | ({"need": "prefix"} if function == "run_decoding" else {})
        problem, source = model_problem(**sizes), f"model_problem(**{sizes!r})"
    if (function, source) not in _DRAWN:
        _DRAWN[function, source] = RIGHT[function](problem)
    right = _DRAWN[function, source]
    if function == "run_training":
        return _training(source, problem, right)
    return _question(source, problem, right, function)


#: the right answers, by the function and the problem's source
_DRAWN: dict[tuple[str, str], Mapping[str, Array]] = {}


def decoding_question(name: str) -> Question:
    problem, source = replace(model_case(name), need="prefix"), f"model_case({name!r})"
    return _question(source, problem, expected_decoding(name), "run_decoding")


def training_question(name: str) -> Question:
    return _training(f"training_case({name!r})", training_case(name), expected_training(name))


def _training(source: str, p: TrainingProblem, right: Mapping[str, Array]) -> Question:
    sizes = {"micro-batches": 2, "B": 2}
    expected = Expected(right, TOLERANCE["training"], sizes, None, "training")
    return Question("run_training", source, p, training_tensors(p), expected)


#: check -> why, and what it asks
QUESTIONS: dict[str, tuple[str, Callable[[], Question]]] = {
    **{f"model/{n}": (why, partial(model_question, n)) for n, (why, _) in MODEL_CASES.items()},
    **{f"decoding/{n}": (why, partial(decoding_question, n)) for n, why in DECODING_CASES.items()},
    **{f"training/{n}": (w, partial(training_question, n)) for n, (w, _) in TRAINING_CASES.items()},
}
