"""The problems of the levels above the ops, and the right answers.

This project's own model computes them over the reference ops in float64; four other ways to compute
them agree (see the oracle table).
"""

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any, Literal

import numpy as np

from minprefix.conformance.cases import wide
from minprefix.conformance.check import Expected
from minprefix.conformance.contract import (
    MethodProblem,
    MicroBatch,
    ModelProblem,
    TrainingProblem,
    model_tensors,
    training_tensors,
)
from minprefix.gpt2 import Config
from minprefix.ops import reference
from minprefix.ops.contract import Array

#: allowed error of a tensor, relative to its largest value: rounding after a whole model
TOLERANCE = {
    "float64": 1e-9,
    "float32": 2e-4,
    "training": 1e-8,  # Adam divides by the root of a small second moment
}

DRAWS = 12  # models that hypothesis draws

SMALL = Config(n_layer=3, n_head=2, n_embd=10, vocab_size=13, n_positions=24)


def weights_of(config: Config, seed: int = 0, dtype: str = "float64") -> dict[str, Array]:
    """Every weight random and large enough for every part of the arithmetic to matter."""
    return {name: a.astype(dtype) for name, a in _drawn_weights(config, seed).items()}


@cache
def _drawn_weights(config: Config, seed: int) -> dict[str, Array]:
    weights = {}
    for name, shape in config.shapes().items():
        rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
        centre = 1.0 if ".ln_" in f".{name}" and name.endswith("weight") else 0.0
        weights[name] = centre + rng.normal(0, 0.3, shape)
    return weights


def texts(rng: np.random.Generator, config: Config, lengths: Sequence[int]) -> list[list[int]]:
    return [rng.integers(0, config.vocab_size, T).tolist() for T in lengths]


def model_problem(
    lengths: tuple[int, ...] = (5, 3, 4),
    loss_from: tuple[int, ...] = (2, 1, 3),
    prefix_of: tuple[int, ...] = (0, 0, 0),
    slots: tuple[int, ...] = (4,),
    position_offsets: tuple[int, ...] | None = None,
    reduction: str = "mean",
    need: Literal["prefix", "all"] = "prefix",
    config: Mapping[str, Any] | None = None,
    dtype: str = "float64",
    seed: int = 0,
) -> ModelProblem:
    """A problem from its sizes; `config`: the differences from `SMALL`."""
    cfg, rng = replace(SMALL, **(config or {})), np.random.default_rng([7, seed])
    return ModelProblem(
        config=cfg,
        weights=weights_of(cfg, seed, dtype),
        sequences=texts(rng, cfg, lengths),
        loss_from=list(loss_from),
        prefix_of=list(prefix_of),
        prefixes=[
            rng.normal(0, 0.7, (cfg.n_layer, 2, cfg.n_head, P, cfg.head_size)).astype(dtype)
            for P in slots
        ],
        position_offsets=list(slots if position_offsets is None else position_offsets),
        reduction=reduction,
        need=need,
    )


#: name -> why, and the arguments of `model_problem`
MODEL_CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "one-sequence": (
        "one sequence, one prefix, every intermediate",
        {"lengths": (5,), "loss_from": (2,), "prefix_of": (0,)},
    ),
    "shared-prefix": ("a prefix that three sequences share: its gradient is the sum", {}),
    "sum": ("the sum over the targets, not their mean", {"reduction": "sum"}),
    "equal-prefixes": (
        "two prefixes of one length: nothing but a number tells them apart",
        {"prefix_of": (1, 0, 1), "slots": (3, 3)},
    ),
    "own-prefixes": (
        "each sequence sees its own prefix, of its own length",
        {"prefix_of": (1, 0, 1), "slots": (2, 5)},
    ),
    "unused-prefix": (
        "a prefix that no sequence sees has a gradient of 0",
        {"prefix_of": (0, 0, 2), "slots": (2, 3, 4)},
    ),
    "no-prefix": (
        "P = 0 is plain GPT-2, with all gradients of weights",
        {"slots": (0,), "need": "all"},
    ),
    "offset-0": ("real tokens from position 0: the other rule", {"position_offsets": (0,)}),
    "one-token-targets": (
        "sequences of one token predict nothing",
        {"lengths": (1, 4, 1), "loss_from": (1, 3, 1)},
    ),
    "weights": ("the gradient of every weight, prefix and all", {"need": "all"}),
    "separate-head": (
        "a head of its own, a hidden width of its own, another eps",
        {
            "need": "all",
            "config": {
                "tie_word_embeddings": False,
                "n_inner": 14,
                "layer_norm_epsilon": 1e-2,
                "n_head": 1,
            },
        },
    ),
    "float32": ("single precision", {"dtype": "float32"}),
}


#: names of model cases -> why they are decoded, too
DECODING_CASES = {
    "one-sequence": "the cache starts as the prefix, and positions go on from P",
    "own-prefixes": "each text has its own prefix in its cache",
    "no-prefix": "without a prefix positions start at 0",
}


def model_case(name: str) -> ModelProblem:
    """The problem `name` of the table."""
    return model_problem(**MODEL_CASES[name][1])


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
    function: str, problem: ModelProblem | MethodProblem | TrainingProblem
) -> Mapping[str, Array]:
    """This project's own, over the reference ops."""
    from minprefix.conformance.house import House  # not at the top: training needs more than NumPy

    found: Mapping[str, Array] = getattr(House(reference), function)(problem)
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
    kinds: tuple[str, ...] = ("flat",), n_steps: int = 1, micro_batches: int = 1, **settings: Any
) -> TrainingProblem:
    """`kinds`: flat or mlp, a prefix each; every step has new sequences, of unequal lengths."""
    cfg, rng = SMALL, np.random.default_rng(11)
    parameters: list[dict[str, Array]] = []
    for j, kind in enumerate(kinds):
        P, out, hidden = 3 + j, 2 * cfg.n_layer * cfg.n_embd, 6
        if kind == "flat":
            shape = (cfg.n_layer, 2, cfg.n_head, P, cfg.head_size)
            parameters.append({"kv": rng.normal(0, 0.7, shape)})
            continue
        shapes: dict[str, tuple[int, ...]] = {"embedding": (P, cfg.n_embd)}
        shapes |= {"weight_1": (cfg.n_embd, hidden), "bias_1": (hidden,)}
        shapes |= {"weight_2": (hidden, out), "bias_2": (out,)}
        sizes = dict.fromkeys(shapes, 0.4) | {"embedding": 1.0}
        parameters.append({n: rng.normal(0, sizes[n], shape) for n, shape in shapes.items()})

    def part(m: int) -> MicroBatch:
        lengths, loss_from = ([4, 6], [1, 4]) if m == 0 else ([3], [2])
        prefix_of = [(b + m) % len(kinds) for b in range(len(lengths))]
        return MicroBatch(texts(rng, cfg, lengths), loss_from, prefix_of)

    steps = [[part(m) for m in range(micro_batches)] for _ in range(n_steps)]
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
}


def training_case(name: str) -> TrainingProblem:
    """The problem `name` of the table."""
    return training_problem(**TRAINING_CASES[name][1])


@cache
def expected_training(name: str) -> Mapping[str, Array]:
    return answer("run_training", training_case(name))


#: function -> its right answer to a problem in float64
RIGHT: dict[str, Callable[[Any], Mapping[str, Array]]] = {
    function: partial(answer, function) for function in ("run_model", "run_method", "run_training")
} | {"run_decoding": decoded}

#: the fields of problems that hold arrays of floats
ARRAYS = ("weights", "prefixes", "parameters", "masks")


# ---- what a check asks ---------------------------------------------------------------------------

#: tensors without which an answer of this function is incomplete; the others may be left out
ASKED: dict[str, Callable[[str], bool]] = {
    "run_model": lambda name: name.startswith(("loss", "prefix.")),
    "run_decoding": lambda name: True,
    "run_method": lambda name: name != "logits",
    "run_training": lambda name: ".gradient." not in name,
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


def drawn_question(sizes: Mapping[str, Any]) -> Question:
    """`sizes`: the arguments of `model_problem`, in float64."""
    problem, source = model_problem(**sizes), f"model_problem(**{sizes!r})"
    if source not in _DRAWN:
        _DRAWN[source] = answer("run_model", problem)
    return _question(source, problem, _DRAWN[source])


_DRAWN: dict[str, Mapping[str, Array]] = {}  # the right answers, by the problem's source


def decoding_question(name: str) -> Question:
    problem, source = replace(model_case(name), need="prefix"), f"model_case({name!r})"
    return _question(source, problem, expected_decoding(name), "run_decoding")


def training_question(name: str) -> Question:
    problem, sizes = training_case(name), {"micro-batches": 2, "B": 2}
    expected = Expected(expected_training(name), TOLERANCE["training"], sizes, None, "training")
    source, axes = f"training_case({name!r})", training_tensors(problem)
    return Question("run_training", source, problem, axes, expected)


#: check -> why, and what it asks
QUESTIONS: dict[str, tuple[str, Callable[[], Question]]] = {
    **{f"model/{n}": (why, partial(model_question, n)) for n, (why, _) in MODEL_CASES.items()},
    **{f"decoding/{n}": (why, partial(decoding_question, n)) for n, why in DECODING_CASES.items()},
    **{f"training/{n}": (w, partial(training_question, n)) for n, (w, _) in TRAINING_CASES.items()},
}
