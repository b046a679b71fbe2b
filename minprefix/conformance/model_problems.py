"""Models, texts and prefixes to ask an implementation about."""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any, Literal

import numpy as np

from minprefix.conformance.contract import ModelProblem
from minprefix.gpt2 import Config
from minprefix.ops.contract import Array

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
    special: Literal["", "zeros", "low", "shared"] = "",
) -> ModelProblem:
    """A problem from its sizes; `config`: the differences from `SMALL`; `special`: numbers, or
    arrays, that are not like others, see `_special`."""
    cfg, rng = replace(SMALL, **(config or {})), np.random.default_rng([7, seed])
    problem = ModelProblem(
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
    return _special(problem, special) if special else problem


def _special(p: ModelProblem, what: str) -> ModelProblem:
    """`zeros`: a prefix of zeros, biases of 0 and some gains of 0, a text of one token over and
    over. `low`: every score lies about LOW below 0, which moves no softmax. `shared`: one array is
    two prefixes, and one is several weights."""
    w, C, hs = dict(p.weights), p.config.n_embd, p.config.head_size
    sequences, prefixes = list(p.sequences), list(p.prefixes)
    for i in range(p.config.n_layer):
        c_attn = f"h.{i}.attn.c_attn"
        if what == "zeros":
            w[f"{c_attn}.bias"] = 0 * w[f"{c_attn}.bias"]
            for name in ("ln_1", "ln_2"):
                w[f"h.{i}.{name}.weight"][i::3] = 0
        elif what == "low":  # one place of a head has one value in all keys
            height = (LOW * hs**0.5) ** 0.5
            w[f"{c_attn}.weight"][:, C : 2 * C : hs] = 0
            w[f"{c_attn}.bias"][0:C:hs], w[f"{c_attn}.bias"][C : 2 * C : hs] = height, -height
            for kv in prefixes:
                kv[i, 0, :, :, 0] = -height
        else:
            w[f"h.{i}.ln_2.weight"], w[f"h.{i}.ln_1.weight"] = 2 * [w["h.0.ln_1.weight"]]
            w[f"{c_attn}.weight"] = w["h.0.attn.c_attn.weight"]
    if what == "zeros":
        sequences[0], prefixes[0] = [sequences[0][0]] * len(sequences[0]), 0 * prefixes[0]
    elif what == "shared":
        prefixes[1] = prefixes[0]
    return replace(p, weights=w, sequences=sequences, prefixes=prefixes)


LOW = 3e4  # a mask that fills in -1e4 is the largest score then

#: everything that has a default, other than the default
OTHER: dict[str, Any] = {
    "tie_word_embeddings": False,
    "n_inner": 14,
    "layer_norm_epsilon": 1e-2,
    "n_layer": 2,
}

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
    "together": (
        "all at once: a head, a hidden width and an eps of its own, prefixes of unequal lengths "
        "for texts of equal ones, one without slots, one unused, nothing predicted in a text",
        {
            "lengths": (4, 4, 1, 6, 4),
            "loss_from": (1, 3, 1, 2, 4),
            "prefix_of": (0, 2, 1, 3, 0),
            "slots": (3, 0, 5, 2, 4),
            "reduction": "sum",
            "need": "all",
            "config": {**OTHER, "n_embd": 15, "n_head": 5},
        },
    ),
    "offsets": (
        "texts of one length from position 0, from P, from one beyond P and up to the table's end",
        {
            "lengths": (4, 4, 4, 4),
            "loss_from": (2, 1, 3, 1),
            "prefix_of": (2, 0, 3, 1),
            "slots": (3, 2, 3, 2),
            "position_offsets": (0, 2, 9, 6),
            "need": "all",
            "config": {**OTHER, "n_positions": 13},
        },
    ),
    "two-digits": (
        "eleven layers and eleven prefixes: 1 is not 10, and 10 does not come before 2",
        {
            "lengths": (2, 3) * 6,
            "loss_from": (1,) * 12,
            "prefix_of": (10, 3, 1, 0, 2, 9, 5, 4, 7, 8, 6, 1),
            "slots": (1, 2, 1, 1, 1, 2, 1, 1, 1, 1, 2),
            "need": "all",
            "config": {"n_layer": 11, "n_embd": 4, "layer_norm_epsilon": 0.1},
        },
    ),
    "long": (
        "a text beyond 128 tokens, 41 texts, 67 slots, positions beyond 255, ids beyond 1024, more "
        "than 512 targets: nothing fits into one tile or one byte",
        {
            "lengths": (193, 1, 70, 21) + 37 * (8,),
            "loss_from": (1,) * 41,
            "prefix_of": (0, 0, 1, 0) + 18 * (1, 0) + (1,),
            "slots": (67, 3),
            "config": {"n_layer": 1, "n_embd": 4, "vocab_size": 1031, "n_positions": 260},
        },
    ),
    "wide": (
        "heads wider than 64, a hidden layer wider than 512, and no multiple of 8",
        {
            "lengths": (3, 2),
            "loss_from": (1, 1),
            "prefix_of": (0, 0),
            "slots": (2,),
            "config": {"n_layer": 1, "n_embd": 134},
        },
    ),
    "zeros": (
        "a prefix of zeros is a prefix; gains and biases of 0",
        {"prefix_of": (0, 1, 0), "slots": (3, 2), "need": "all", "special": "zeros"},
    ),
    "low-scores": (
        "scores far below -1e4: what is masked stays masked",
        {"prefix_of": (1, 0, 1), "slots": (2, 0), "special": "low", "config": {"n_layer": 1}},
    ),
    "shared-arrays": (
        "one array given as two prefixes and as several weights: each has a gradient of its own",
        {"prefix_of": (1, 0, 1), "slots": (4, 4), "need": "all", "special": "shared"},
    ),
    "float32": (
        "single precision",
        {
            "dtype": "float32",
            "prefix_of": (1, 0, 1),
            "slots": (2, 5),
            "need": "all",
            "config": OTHER,
        },
    ),
}


#: names of model cases -> why they are decoded, too
DECODING_CASES = {
    "one-sequence": "the cache starts as the prefix, and positions go on from P",
    "own-prefixes": "each text has its own prefix in its cache",
    "no-prefix": "without a prefix positions start at 0",
    "together": "a head and an eps of its own; texts of unequal lengths, one of a single token",
    "offsets": "positions go on from where the text began, not from how full the cache is",
    "two-digits": "eleven layers, each with a cache of its own",
    "long": "a cache beyond 256 places, positions and ids beyond 255",
    "shared-arrays": "one array given as two prefixes: each text has a cache of its own",
}


def model_case(name: str) -> ModelProblem:
    """The problem `name` of the table."""
    return model_problem(**MODEL_CASES[name][1])
