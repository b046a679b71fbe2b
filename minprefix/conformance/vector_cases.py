"""The cases of the vectors: those of the suite, and a block, as tensors by name.

A file has no strides, so the cases whose inputs do not lie in one piece are left out: their numbers
are those of `usual`. Nor are there cases with more than `MOST` numbers, nor `LARGE` ones: the files
stay small.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from typing import Any

import numpy as np

from minprefix.conformance import suite
from minprefix.conformance.cases import INPUTS, Case, axes, owner
from minprefix.conformance.check import Check, Expected, Grade
from minprefix.conformance.contract import MicroBatch, ModelProblem, TrainingProblem, model_tensors
from minprefix.conformance.implementation import Broken, Implementation
from minprefix.conformance.model_problems import SMALL, weights_of
from minprefix.conformance.op_cases import CASES, case_of
from minprefix.conformance.problems import QUESTIONS, TOLERANCE
from minprefix.conformance.record import Recorder
from minprefix.gpt2 import block_backward, block_forward
from minprefix.ops import reference
from minprefix.ops.contract import Array


@dataclass(frozen=True)
class Tensor:
    """`function`: whose result an expected tensor is, "" of an input."""

    array: Array
    axes: str
    function: str = ""

    def about(self) -> dict[str, Any]:
        said = {"dtype": str(self.array.dtype), "shape": list(self.array.shape), "axes": self.axes}
        return said | ({"function": self.function} if self.function else {})


@dataclass(frozen=True)
class VectorCase:
    """A case of the suite as tensors by name. `settings`: its values that are no tensors;
    `dimensions`: the sizes by their letters, for the diagnosis."""

    check: Check
    tolerance: float
    settings: Mapping[str, Any]
    dimensions: Mapping[str, float]
    inputs: Mapping[str, Tensor]
    expected: Mapping[str, Tensor]


# ---- the cases ----------------------------------------------------------------------------------


def _op_case(id_: str) -> VectorCase:
    op, _, name = id_.partition("/")
    case = case_of(op, name)
    inputs: dict[str, Tensor] = {}
    settings: dict[str, Any] = {}
    for argument, a in case.inputs().items():
        if isinstance(a, list):
            inputs |= {f"{argument}[{b}]": Tensor(x, INPUTS[op][argument]) for b, x in enumerate(a)}
        elif isinstance(a, np.ndarray):
            inputs[argument] = Tensor(a, INPUTS[op][argument])
        else:
            settings[argument] = a  # eps; bias where it is None
    expected = {}
    for tensor, a in case.expected().items():
        function = owner(op, tensor)
        expected[tensor] = Tensor(_in(case.dtype, a), axes(function, tensor), function)
    check, sizes = suite.all_checks()[id_], case.dimensions()
    return VectorCase(check, case.tolerance(), settings, sizes, inputs, expected)


def _in(dtype: str, a: Array) -> Array:
    return a.astype(dtype) if a.dtype.kind == "f" else a


def _offsets(lengths: Sequence[int]) -> Tensor:
    return Tensor(np.cumsum([0, *lengths], dtype=np.int64), "B+1")


def _integers(numbers: Sequence[int], axes: str) -> Tensor:
    return Tensor(np.array(numbers, dtype=np.int64), axes)


def _batch(batch: ModelProblem | MicroBatch) -> dict[str, Tensor]:
    return {
        "tokens": _integers([t for ids in batch.sequences for t in ids], "N"),
        "offsets": _offsets([len(ids) for ids in batch.sequences]),
        "loss_from": _integers(batch.loss_from, "B"),
        "prefix_of": _integers(batch.prefix_of, "B"),
    }


def _parameters(named: Mapping[str, Array], start: str) -> dict[str, Tensor]:
    letters = {n: "L 2 NH P hs" if n == "kv" else " ".join("?" * a.ndim) for n, a in named.items()}
    return {start + n: Tensor(a, letters[n]) for n, a in named.items()}


def _whole_case(id_: str) -> VectorCase:
    question, check = QUESTIONS[id_][1](), suite.all_checks()[id_]
    p, right = question.problem, question.expected
    inputs: dict[str, Tensor] = {}
    settings: dict[str, Any] = {"config": asdict(p.config)}
    if isinstance(p, ModelProblem):
        dtype = str(p.prefixes[0].dtype)
        inputs |= _batch(p)
        inputs["position_offsets"] = _integers(p.position_offsets, "prefixes")
        inputs |= {f"prefixes[{j}]": Tensor(kv, "L 2 NH P hs") for j, kv in enumerate(p.prefixes)}
        settings |= {"reduction": p.reduction, "need": p.need}
    else:
        assert isinstance(p, TrainingProblem)  # the methods have no vectors
        dtype = "float64"
        for s, step in enumerate(p.steps):
            for m, part in enumerate(step):
                inputs |= {f"step.{s}.part.{m}.{n}": t for n, t in _batch(part).items()}
        for i, parameters in enumerate(p.parameters):
            inputs |= _parameters(parameters, f"prefix.{i}.")
        settings |= {"steps": len(p.steps), "parts": [len(step) for step in p.steps]}
        numbers = ("lr", "warmup", "beta1", "beta2", "eps", "weight_decay", "clip")
        settings |= {name: getattr(p, name) for name in numbers}
    inputs |= _parameters(p.weights, "weights.")
    expected = {
        name: Tensor(_in(dtype, right.tensors[name]), letters, question.function)
        for name, letters in question.axes.items()
    }
    return VectorCase(check, right.tolerance, settings, right.dimensions, inputs, expected)


# ---- a block alone: the suite itself has no check of it ------------------------------------------

#: name -> why, the lengths and the slots of the sequences
BLOCKS: dict[str, tuple[str, tuple[int, ...], tuple[int, ...]]] = {
    "usual": (
        "one block forward and backward, with the gradients of its weights; three sequences, a "
        "prefix each",
        (5, 3, 4),
        (2, 5, 1),
    ),
    "no-prefix": ("a block of plain GPT-2", (4, 2), (0, 0)),
}


def _block_inputs(name: str) -> dict[str, Tensor]:
    _, lengths, slots = BLOCKS[name]
    rng = np.random.default_rng([13, len(lengths)])
    N, C, heads, hs = sum(lengths), SMALL.n_embd, SMALL.n_head, SMALL.head_size
    inputs = {n: Tensor(rng.normal(0, 1, (N, C)), "N C") for n in ("resid_pre", "dresid_post")}
    for b, P in enumerate(slots):
        for n in ("prefix_k", "prefix_v"):
            inputs[f"{n}[{b}]"] = Tensor(rng.normal(0, 0.7, (heads, P, hs)), "NH P hs")
    inputs["offsets"] = _offsets(lengths)
    block = {n[4:]: a for n, a in weights_of(SMALL).items() if n.startswith("h.1.")}
    return inputs | _parameters(block, "weights.")


def _run_block(
    name: str, ops: Any, forward: Callable[..., Any], backward: Callable[..., Any]
) -> dict[str, Array]:
    """Every tensor of the block, by the names of the model without `blocks.0.`."""
    i, start = {n: t.array for n, t in _block_inputs(name).items()}, "weights."
    w = {n.removeprefix(start): a for n, a in i.items() if n.startswith(start)}
    past = [(i[f"prefix_k[{b}]"], i[f"prefix_v[{b}]"]) for b in range(len(i["offsets"]) - 1)]
    recorder = Recorder(ops, {f"h.0.{n}": a for n, a in w.items()}, SMALL.head_size)
    out, kept = forward(i["resid_pre"], w, past, i["offsets"], SMALL, recorder, w.keys())
    out = np.array(out)
    grads = backward(i["dresid_post"], w, kept, recorder, True)
    found = {n.removeprefix("blocks.0."): a for n, a in recorder.tensors.items()}
    found |= {"resid_post": out, "dresid_pre": grads.dx}
    for b, (dk, dv) in enumerate(zip(*grads.dpast, strict=True)):
        found |= {f"attn.dprefix_k[{b}]": dk, f"attn.dprefix_v[{b}]": dv}
    return found | {f"d{n}": a for n, a in grads.dweights.items()}


def _block_axes(B: int) -> dict[str, str]:
    """Name -> axes, in the order in which they arise; the block's inputs are not among them."""
    one = replace(SMALL, n_layer=1)
    named = model_tensors(one, 0, B, "all")
    mine = {n.removeprefix("blocks.0."): a for n, a in named.items() if n.startswith("blocks.0.")}
    back = [n for n in mine if n.startswith("d") or ".d" in n]
    axes = {n: a for n, a in mine.items() if n not in back} | {"resid_post": "N C"}
    axes |= {n: mine[n] for n in back if n != "ln_1.dout"}
    axes |= {f"attn.dprefix_{n}[{b}]": "NH P hs" for n in "kv" for b in range(B)}
    axes |= {"ln_1.dout": "N C", "dresid_pre": "N C"}
    weights = {f"d{n[5:]}": a for n, a in named.items() if n.startswith("dh.0.")}
    return {n: a for n, a in axes.items() if n not in ("resid_pre", "dresid_post")} | weights


@cache
def _block_expected(name: str) -> Expected:
    found = _run_block(name, reference, block_forward, block_backward)
    _, lengths, slots = BLOCKS[name]
    sizes = {"hs": SMALL.head_size, "B": len(lengths), "N": sum(lengths), "P": slots[0]}
    return Expected(found, TOLERANCE["float64"], {a: n for a, n in sizes.items() if n > 1})


def block_check(name: str) -> Check:
    return Check(f"block/{name}", BLOCKS[name][0], partial(_grade_block, name))


def _grade_block(name: str, implementation: Implementation, grade: Grade) -> None:
    ops = implementation.functions  # a bug of the zoo may have a block of its own
    forward = getattr(ops, "block_forward", block_forward)
    backward = getattr(ops, "block_backward", block_backward)
    try:
        found = _run_block(name, ops, forward, backward)
    except Exception as error:
        said = f"block_forward and block_backward raised {type(error).__name__}: {error}"
        raise Broken("exception", said) from error
    for tensor, letters in _block_axes(len(BLOCKS[name][1])).items():
        if tensor in found:
            grade.compare("block", tensor, found[tensor], _block_expected(name), letters)


def _block_case(name: str) -> VectorCase:
    right, function, expected = _block_expected(name), "block_forward", {}
    for tensor, letters in _block_axes(len(BLOCKS[name][1])).items():
        expected[tensor] = Tensor(right.tensors[tensor], letters, function)
        if tensor == "resid_post":
            function = "block_backward"
    settings = {"n_head": SMALL.n_head, "layer_norm_epsilon": SMALL.layer_norm_epsilon}
    check, inputs = block_check(name), _block_inputs(name)
    return VectorCase(check, right.tolerance, settings, right.dimensions, inputs, expected)


#: of the inputs of an op's case
MOST = 2000
LARGE = (
    *("model/long", "decoding/long", "model/wide"),  # a tensor of theirs is a megabyte
    *("model/two-digits", "decoding/two-digits", "training/unused-prefix"),  # eleven of everything
    *("model/shared-arrays", "decoding/shared-arrays"),  # a file cannot tell that two are one
    *("model/zeros", "model/low-scores", "model/offsets"),
)


def _for_a_file(case: Case) -> bool:
    inputs = (a for given in case.inputs().values() for a in _each(given))
    return case.layout == "contiguous" and sum(np.size(a) for a in inputs) <= MOST


def _each(given: Any) -> list[Any]:
    return given if isinstance(given, list) else [given]


def all_cases() -> dict[str, Callable[[], VectorCase]]:
    """id -> the case, made when it is called: ops, a block, the whole model, training."""
    ops = [
        f"{op}/{name}"
        for op, named in CASES.items()
        for name in named
        if _for_a_file(case_of(op, name))
    ]
    return {
        **{id_: partial(_op_case, id_) for id_ in ops},
        **{f"block/{name}": partial(_block_case, name) for name in BLOCKS},
        **{id_: partial(_whole_case, id_) for id_ in QUESTIONS if id_ not in LARGE},
    }
