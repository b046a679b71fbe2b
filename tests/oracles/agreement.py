"""Every case of the suite through every oracle that applies: how far apart they are, per tensor."""

import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from minprefix.conformance import op_cases, problems
from minprefix.conformance.cases import Case
from minprefix.conformance.contract import (
    FUNCTIONS,
    TENSORS,
    ModelProblem,
    model_tensors,
    training_tensors,
)
from minprefix.conformance.diagnosis import relative_error
from minprefix.conformance.drawn import DRAWN_SIZES
from tests.oracles import by_reference, by_torch

Array = np.ndarray

#: oracle -> how far it may be from what the suite expects, relative to a tensor's largest value
TARGETS = {
    "PyTorch": 1e-12,
    "transformers": 1e-12,
    "complex step": 1e-13,
    "differences": 1e-8,
    "autograd": 1e-12,
}
ILL = 100.0  # a case whose condition is above this is listed apart
#: what is allowed there, times the condition: about 45 roundings
PER_CONDITION = dict.fromkeys(TARGETS, 1e-14) | {"differences": 1e-10}


@dataclass(frozen=True)
class Score:
    """One tensor of one case, by one oracle. `condition`: how much larger a rounding of the inputs
    is in the outputs; above ILL it widens the target."""

    group: str  # the op, model, decoding or training
    tensor: str  # with its indices
    oracle: str
    case: str
    error: float  # max |delta| / max |expected|; absolute where the expected tensor is 0
    condition: float = 1.0

    @property
    def row(self) -> tuple[str, str]:
        return self.group, generic(self.tensor)

    @property
    def allowed(self) -> float:
        target = TARGETS[self.oracle]
        if self.condition <= ILL:
            return target
        return max(target, PER_CONDITION[self.oracle] * self.condition)

    @property
    def missed(self) -> bool:
        return not self.error <= self.allowed


def generic(tensor: str) -> str:
    """`blocks.2.attn.pattern[1]` as `blocks.i.attn.pattern[]`: a row of the table."""
    tensor = re.sub(r"\[\d+\]", "[]", tensor)
    for word, letter in (("blocks", "i"), ("h", "i"), ("prefix", "j"), ("step", "s")):
        tensor = re.sub(rf"(^|\.)(d?{word})\.\d+\.", rf"\1\2.{letter}.", tensor)
    return tensor


def rows() -> list[tuple[str, str]]:
    """Every tensor of the suite's contract, in its order: what the table must have."""
    found = [
        (op, name) for op, functions in FUNCTIONS.items() for f in functions for name in TENSORS[f]
    ]
    for name in problems.MODEL_CASES:
        p = problems.model_case(name)
        asked = model_tensors(p.config, len(p.prefixes), len(p.sequences), p.need)
        found += [("model", generic(tensor)) for tensor in asked]
    found.append(("decoding", "logits"))
    for name in problems.TRAINING_CASES:
        asked = training_tensors(problems.training_case(name))
        found += [("training", generic(tensor)) for tensor in asked]
    return list(dict.fromkeys(found))


# ---- one case -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Effort:
    """Of how many entries of a tensor the complex step (None: all; of the gradients of a prefix it
    is always all) and the differences are taken. Along one drawn direction, of length 1, that moves
    every entry the differences are always taken."""

    complex_step: int | None
    differences: int
    widths: Array


OPS = Effort(None, 8, by_reference.WIDTHS)
LARGE = Effort(1, 0, by_reference.WIDTHS)
FEW = 4000  # an op's case with more numbers than this is a large one
WHOLE = Effort(4, 0, by_reference.SMOOTH)


def _derivatives(
    point: by_reference.Point, expected: Mapping[str, Array], effort: Effort, seed: str
) -> Iterator[tuple[str, str, float]]:
    """Tensor, oracle, error of the three that differentiate the reference's forward."""
    whole = by_reference.hips(point)
    yield from ((n, "autograd", relative_error(whole[n], expected[n])) for n in point.arrays)
    entries, directions = {}, {}
    for name, a in point.arrays.items():
        rng = np.random.default_rng(zlib.crc32(f"{seed}{name}".encode()))
        order = [np.unravel_index(i, a.shape) for i in rng.permutation(a.size)]
        if a.size:
            kept = name.startswith("prefix.")
            entries[name] = order if kept else order[: effort.complex_step]
            one = [_one(a.shape, index) for index in order[: effort.differences]]
            drawn = rng.normal(0, 1, a.shape)
            directions[name] = [*one, drawn / np.linalg.norm(drawn)]
    for name, slopes in by_reference.complex_step(point, entries).items():
        want = [expected[name][index] for index in entries[name]]
        delta = float(np.abs(slopes - want).max())
        yield name, "complex step", delta / _scale(expected[name])
    for name, slopes in by_reference.differences(point, directions, effort.widths).items():
        delta = [
            abs(slope - float((expected[name] * d).sum()))
            for slope, d in zip(slopes, directions[name], strict=True)
        ]
        yield name, "differences", max(delta) / _scale(expected[name])


def _one(shape: tuple[int, ...], index: tuple[Any, ...]) -> Array:
    a = np.zeros(shape)
    a[index] = 1.0
    return a


def _scale(expected: Array) -> float:
    """The largest value; 1 where there is none, so that the error is absolute."""
    return float(np.abs(expected).max()) or 1.0


def condition(case: Case) -> float:
    """How much larger than the results the numbers are whose rounding becomes an error of theirs:
    scores and logits stand in an exponent; a layernorm takes off the mean, and its backward what
    is common to a row."""
    i = case.inputs()
    if case.op == "attention":
        bounds = [0.0]
        for b, prefix_k in enumerate(i["prefix_k"]):
            now = slice(i["offsets"][b], i["offsets"][b + 1])
            keys = np.concatenate([prefix_k, i["k"][now].swapaxes(0, 1)], axis=1)
            scores = i["q"][now].swapaxes(0, 1) @ keys.swapaxes(1, 2)
            bounds.append(float(np.abs(scores).max()) / keys.shape[2] ** 0.5)
        return max(bounds)
    if case.op == "cross_entropy":
        largest = float(np.abs(case.expected()["dlogits"]).max())
        one_less = float(i["weights"].max()) / largest  # what a probability near 1 loses to the 1
        return max(float(np.abs(i["logits"]).max()), one_less)
    if case.op == "layernorm":
        x, dxhat = np.float64(i["x"]), np.float64(i["dout"] * i["gain"])
        deviation = np.sqrt(x.var(axis=1, keepdims=True) + i["eps"])
        spread = float(x.std(axis=1).max())
        forward = float(np.abs(x).max()) / spread if spread else 1.0
        largest = float(np.abs(case.expected()["dx"]).max())
        return max(forward, float(np.abs(dxhat / deviation).max()) / largest if largest else 0.0)
    return 1.0


def op_scores(name: str, case: Case) -> Iterator[Score]:
    expected, k = case.expected(), condition(case)
    own = by_torch.op(case)
    for tensor in expected:
        yield Score(case.op, tensor, "PyTorch", name, _error(own, expected, tensor), k)
    point = by_reference.op(case)
    effort = OPS if sum(a.size for a in point.arrays.values()) <= FEW else LARGE
    for tensor, oracle, error in _derivatives(point, expected, effort, name):
        yield Score(case.op, tensor, oracle, name, error, k)


def _error(found: Mapping[str, Array], expected: Mapping[str, Array], tensor: str) -> float:
    """Infinite where one of them lacks the tensor, or their shapes differ."""
    if tensor not in found or tensor not in expected:
        return float("inf")
    a, want = found[tensor], expected[tensor]
    return relative_error(a, want) if a.shape == want.shape else float("inf")


def model_condition(problem: ModelProblem, expected: Mapping[str, Array]) -> float:
    """The largest score, which stands in an exponent; that of queries and keys of unlike texts, if
    it is larger."""
    bounds = [0.0]
    for i in range(problem.config.n_layer):
        q, k = (expected[f"blocks.{i}.attn.{letter}"] for letter in "qk")
        bounds.append(float(np.abs(np.einsum("nhd,mhd->hnm", q, k)).max()))
    return max(bounds) / problem.config.head_size**0.5


def model_scores(name: str) -> Iterator[Score]:
    problem = problems.widened(problems.model_case(name))
    expected = problems.expected_model(name)
    k = model_condition(problem, expected)
    asked = model_tensors(
        problem.config, len(problem.prefixes), len(problem.sequences), problem.need
    )
    for oracle, found in (
        ("PyTorch", by_torch.model(problem)),
        ("transformers", by_torch.transformers_model(problem)),
    ):
        for tensor in asked:
            yield Score("model", tensor, oracle, name, _error(found, expected, tensor), k)
    point = by_reference.model(problem, expected)
    for tensor, oracle, error in _derivatives(point, expected, WHOLE, name):
        yield Score("model", tensor, oracle, name, error, k)


def decoding_scores(name: str) -> Iterator[Score]:
    problem = problems.widened(problems.model_case(name))
    expected = problems.expected_decoding(name)
    for oracle, found in (
        ("PyTorch", by_torch.decoding(problem)),
        ("transformers", by_torch.transformers_decoding(problem)),
    ):
        yield Score("decoding", "logits", oracle, name, _error(found, expected, "logits"))


def training_scores(name: str) -> Iterator[Score]:
    problem, expected = problems.training_case(name), problems.expected_training(name)
    for oracle, found in (
        ("PyTorch", by_torch.training(problem)),
        ("transformers", by_torch.transformers_training(problem)),
    ):
        for tensor in training_tensors(problem):
            yield Score("training", tensor, oracle, name, _error(found, expected, tensor))
    for s in range(len(problem.steps)):
        point = by_reference.training_step(problem, s, expected)
        for tensor, oracle, error in _derivatives(point, expected, WHOLE, f"{name}{s}"):
            yield Score("training", tensor, oracle, name, error)


# ---- all cases ----------------------------------------------------------------------------------

DRAWS = 25


def drawn(op: str) -> list[Case]:
    """Cases of the shapes that the suite's own `drawn` checks draw from."""
    found: list[Case] = []

    @settings(
        max_examples=DRAWS,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(sizes=DRAWN_SIZES[op], seed=st.integers(0, 2**16))
    def draw(sizes: dict[str, Any], seed: int) -> None:
        found.append(Case(op, sizes, seed))

    draw()
    return found


def _op_cases() -> Iterator[tuple[str, Case]]:
    for op, named in op_cases.CASES.items():
        yield from ((name, op_cases.case_of(op, name)) for name in named)
        yield from ((f"two calls, seed {seed}", Case(op, seed=seed)) for seed in (1, 2))
        yield from (("drawn", case) for case in drawn(op))


#: enough for every op and every tensor, and quick
LIGHT = {
    "ops": {
        "embed": ("repeated-tokens",),
        "layernorm": ("usual",),
        "linear": ("usual",),
        "gelu": ("usual",),
        "attention": ("unequal-prefixes",),
        "cross_entropy": ("usual",),
    },
    "model": ("own-prefixes", "separate-head"),
    "decoding": ("own-prefixes",),
    "training": ("two-prefixes",),
}


def light() -> Iterator[Score]:
    with _one_thread():
        for op, names in LIGHT["ops"].items():
            for name in names:
                yield from op_scores(name, op_cases.case_of(op, name))
        yield from _whole(LIGHT["model"], LIGHT["decoding"], LIGHT["training"])


def full() -> Iterator[Score]:
    with _one_thread():
        for name, case in _op_cases():
            yield from op_scores(name, case)
        yield from _whole(problems.MODEL_CASES, problems.DECODING_CASES, problems.TRAINING_CASES)


def _whole(
    models: Iterable[str], decodings: Iterable[str], trainings: Iterable[str]
) -> Iterator[Score]:
    for name in models:
        yield from model_scores(name)
    for name in decodings:
        yield from decoding_scores(name)
    for name in trainings:
        yield from training_scores(name)


class _one_thread:
    """PyTorch on one thread: more only wait for each other, the matrices are tiny."""

    def __enter__(self) -> None:
        self._before = torch.get_num_threads()
        torch.set_num_threads(1)

    def __exit__(self, *_: object) -> None:
        torch.set_num_threads(self._before)


def owed(row: tuple[str, str]) -> set[str]:
    """The oracles that apply to a tensor."""
    group, tensor = row
    own = {"PyTorch"} | ({"transformers"} if group in ("model", "decoding", "training") else set())
    is_gradient = re.search(r"^d|\.d\w+$|\.gradient\.", tensor) is not None
    return own | ({"complex step", "differences", "autograd"} if is_gradient else set())


def complete(scores: Sequence[Score]) -> list[str]:
    """Which tensors of the suite's contract lack an oracle that applies to them, as sentences."""
    have: dict[tuple[str, str], set[str]] = {}
    for score in scores:
        have.setdefault(score.row, set()).add(score.oracle)
    lacking = [(row, sorted(owed(row) - have.get(row, set()))) for row in rows()]
    return [
        f"{op}: {tensor} is not confirmed by {', '.join(n)}" for (op, tensor), n in lacking if n
    ]
