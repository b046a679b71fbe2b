"""The cases of the vectors: those of the suite, and a block, as tensors by name.

A file has no strides, so the cases whose inputs do not lie in one piece are left out: their numbers
are those of `usual`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from typing import Any

import numpy as np

from minprefix.conformance import suite
from minprefix.conformance.cases import CASES, case_of, owner
from minprefix.conformance.cases import axes as axes_of
from minprefix.conformance.check import Check, Grade
from minprefix.conformance.contract import (
    ModelProblem,
    TrainingProblem,
    model_tensors,
    training_tensors,
)
from minprefix.conformance.implementation import Broken, Implementation
from minprefix.conformance.problems import (
    MODEL_CASES,
    SMALL,
    TOLERANCE,
    TRAINING_CASES,
    dimensions,
    expected_decoding,
    expected_model,
    expected_training,
    model_case,
    training_case,
    weights_of,
)
from minprefix.conformance.record import Recorder
from minprefix.gpt2 import block_backward, block_forward
from minprefix.ops import reference
from minprefix.ops.contract import Array

SYMBOLS = {
    "N": "tokens of all sequences, one after the other: sequence b is offsets[b] to offsets[b+1]-1",
    "B": "sequences",
    "T": "length of one sequence",
    "P": "slots of a prefix",
    "L": "layers",
    "NH": "heads",
    "hs": "head size",
    "C": "width, NH * hs",
    "F": "hidden width of the MLP",
    "V": "vocabulary",
    "M": "targets",
    "in": "inputs of a linear layer",
    "out": "outputs of a linear layer",
    "n_positions": "positions",
    "prefixes": "prefixes of the batch",
    "?": "an axis of a parameter, as in the checkpoint",
}

#: what a reader of the files needs and their names do not say
NOTES = {
    "outputs": "a tensor NAME of a case is expected.NAME in its file and NAME in what a program "
    "writes; what is left out is not implemented, and no failure",
    "lists": "one tensor for each sequence (or prefix): NAME[0], NAME[1], ...",
    "bytes": "safetensors: little-endian, row-major; integers are int64",
    "cache": "expected.cache.* is what a backward starts from, for whoever has no forward",
    "layers": "linear weights are (in, out), as in GPT-2's checkpoints; c_attn gives q, k and v, "
    "each of C; gelu is the tanh form",
    "loss_from": "of each sequence the index of the first token that is predicted, from the row "
    "before it",
    "prefix_of": "of each sequence which prefix it sees",
    "prefixes": "[:, 0] are the keys, [:, 1] the values",
    "position_offsets": "of each prefix the position of the first token; in training P",
    "reduction": "the loss is the mean over all targets of the batch, or their sum",
    "training": "step.S.part.M.* are the micro-batches of step S; its loss is the mean over the "
    "targets of all parts; the recorded gradients are then clipped to the global norm `clip` over "
    "all prefixes (null: not); AdamW (Loshchilov & Hutter, 2019), with the rate "
    "lr * (s + 1) / warmup at step s of 0, 1, ..., warmup - 1, and then "
    "lr * (steps - s) / (steps - warmup)",
    "mlp": "kv = reshape(tanh(embedding weight_1 + bias_1) weight_2 + bias_2), row-major over "
    "(P, L, 2, NH, hs)",
}

#: op -> input -> its axes
INPUTS: dict[str, dict[str, str]] = {
    "embed": {
        "tokens": "N",
        "positions": "N",
        "wte": "V C",
        "wpe": "n_positions C",
        "dx": "N C",
    },
    "layernorm": {"x": "N C", "gain": "C", "bias": "C", "dout": "N C"},
    "linear": {"x": "N in", "weight": "in out", "bias": "out", "dout": "N out"},
    "gelu": {"x": "N F", "dout": "N F"},
    "attention": dict.fromkeys(("q", "k", "v", "dz"), "N NH hs")
    | {"prefix_k": "NH P hs", "prefix_v": "NH P hs", "offsets": "B+1"},
    "cross_entropy": {"logits": "M V", "targets": "M", "weights": "M"},
}


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
    """A case of the suite as tensors by name. `settings`: what is no tensor; `dimensions`: the
    sizes by their letters, for the diagnosis."""

    check: Check
    tolerance: float
    settings: Mapping[str, Any]
    dimensions: Mapping[str, int]
    inputs: Mapping[str, Tensor]
    expected: Mapping[str, Tensor]


# ---- the cases ----------------------------------------------------------------------------------


def _op_case(op: str, name: str) -> VectorCase:
    case, check = case_of(op, name), suite.all_checks()[f"{op}/{name}"]
    inputs: dict[str, Tensor] = {}
    settings: dict[str, Any] = {}
    for argument, a in case.inputs().items():
        if isinstance(a, list):
            each = {f"{argument}[{b}]": Tensor(x, INPUTS[op][argument]) for b, x in enumerate(a)}
            inputs |= each
        elif isinstance(a, np.ndarray):
            inputs[argument] = Tensor(a, INPUTS[op][argument])
        else:
            settings[argument] = a  # eps; bias where it is None
    expected = {
        tensor: Tensor(_as(a, case.dtype), axes_of(owner(op, tensor), tensor), owner(op, tensor))
        for tensor, a in case.expected().items()
    }
    sizes = {letter: int(size) for letter, size in case.dimensions().items()}
    return VectorCase(check, case.tolerance(), settings, sizes, inputs, expected)


def _as(a: Array, dtype: str) -> Array:
    return a.astype(dtype) if a.dtype.kind == "f" else a


def _offsets(sequences: Sequence[Sequence[int]]) -> Array:
    return np.concatenate([[0], np.cumsum([len(s) for s in sequences])]).astype(np.int64)


def _integers(numbers: Sequence[int]) -> Array:
    return np.array(numbers, dtype=np.int64)


def _batch(sequences: Any, loss_from: Any, prefix_of: Any) -> dict[str, Tensor]:
    return {
        "tokens": Tensor(_integers([t for s in sequences for t in s]), "N"),
        "offsets": Tensor(_offsets(sequences), "B+1"),
        "loss_from": Tensor(_integers(loss_from), "B"),
        "prefix_of": Tensor(_integers(prefix_of), "B"),
    }


def _weights(weights: Mapping[str, Array], start: str = "weights.") -> dict[str, Tensor]:
    return {start + n: Tensor(a, " ".join("?" * a.ndim)) for n, a in weights.items()}


def _whole_case(
    check: Check, problem: ModelProblem, function: str, axes: Mapping[str, str], found: Any
) -> VectorCase:
    p = problem
    dtype = str(p.prefixes[0].dtype)
    inputs = _batch(p.sequences, p.loss_from, p.prefix_of)
    inputs["position_offsets"] = Tensor(_integers(p.position_offsets), "prefixes")
    inputs |= {f"prefixes[{j}]": Tensor(kv, "L 2 NH P hs") for j, kv in enumerate(p.prefixes)}
    inputs |= _weights(p.weights)
    expected = {n: Tensor(_as(found[n], dtype), letters, function) for n, letters in axes.items()}
    settings = {"config": asdict(p.config), "reduction": p.reduction, "need": p.need}
    return VectorCase(check, TOLERANCE[dtype], settings, dimensions(p), inputs, expected)


def _model_case(name: str) -> VectorCase:
    p = model_case(name)
    axes = model_tensors(p.config, len(p.prefixes), len(p.sequences), p.need)
    check = suite.all_checks()[f"model/{name}"]
    return _whole_case(check, p, "run_model", axes, expected_model(name))


def _decoding_case(check: Check) -> VectorCase:
    name = check.id.partition("/")[2]
    p = replace(model_case(name), need="prefix")
    return _whole_case(check, p, "run_decoding", {"logits": "N V"}, expected_decoding(name))


def _training_case(name: str) -> VectorCase:
    p: TrainingProblem = training_case(name)
    inputs: dict[str, Tensor] = {}
    for s, step in enumerate(p.steps):
        for m, part in enumerate(step):
            batch = _batch(part.sequences, part.loss_from, part.prefix_of)
            inputs |= {f"step.{s}.part.{m}.{n}": t for n, t in batch.items()}
    for i, parameters in enumerate(p.parameters):
        for n, a in parameters.items():
            axes = "L 2 NH P hs" if n == "kv" else " ".join("?" * a.ndim)
            inputs[f"prefix.{i}.{n}"] = Tensor(a, axes)
    inputs |= _weights(p.weights)
    found = expected_training(name)
    expected = {n: Tensor(found[n], a, "run_training") for n, a in training_tensors(p).items()}
    settings = {
        "config": asdict(p.config),
        "steps": len(p.steps),
        "parts": [len(step) for step in p.steps],
        "lr": p.lr,
        "warmup": p.warmup,
        "beta1": p.beta1,
        "beta2": p.beta2,
        "eps": p.eps,
        "weight_decay": p.weight_decay,
        "clip": p.clip,
    }
    check = suite.all_checks()[f"training/{name}"]
    sizes = {"micro-batches": 2, "B": 2}
    return VectorCase(check, TOLERANCE["training"], settings, sizes, inputs, expected)


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
    inputs["offsets"] = Tensor(_offsets([range(T) for T in lengths]), "B+1")
    block = {n[4:]: a for n, a in weights_of(SMALL).items() if n.startswith("h.1.")}
    return inputs | _weights(block)


def _run_block(
    inputs: Mapping[str, Tensor],
    ops: Any,
    forward: Callable[..., Any],
    backward: Callable[..., Any],
) -> dict[str, Array]:
    """Every tensor of the block, by the names of the model without `blocks.0.`."""
    start = "weights."
    w = {n.removeprefix(start): t.array for n, t in inputs.items() if n.startswith(start)}
    B = len(inputs["offsets"].array) - 1
    past = [(inputs[f"prefix_k[{b}]"].array, inputs[f"prefix_v[{b}]"].array) for b in range(B)]
    recorder = Recorder(ops, {f"h.0.{n}": a for n, a in w.items()}, SMALL.head_size)
    out, kept = forward(
        inputs["resid_pre"].array, w, past, inputs["offsets"].array, SMALL, recorder, w.keys()
    )
    out = np.array(out)
    grads = backward(inputs["dresid_post"].array, w, kept, recorder, True)
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
def _block_expected(name: str) -> dict[str, Array]:
    return _run_block(_block_inputs(name), reference, block_forward, block_backward)


def block_check(name: str) -> Check:
    def run(implementation: Implementation, grade: Grade) -> None:
        of = implementation.functions  # a bug of the zoo may have a block of its own
        code = (
            getattr(of, "block_forward", block_forward),
            getattr(of, "block_backward", block_backward),
        )
        want, B = _block_expected(name), len(BLOCKS[name][1])
        try:
            found = _run_block(_block_inputs(name), implementation.functions, *code)
        except Exception as error:
            said = f"block_forward and block_backward raised {type(error).__name__}: {error}"
            raise Broken("exception", said) from error
        for n, axes in _block_axes(B).items():
            if n in found:
                grade.compare("block", n, found[n], want[n], TOLERANCE["float64"], axes)

    return Check(f"block/{name}", "model", "block", BLOCKS[name][0], run)


def _block_case(name: str) -> VectorCase:
    inputs, found = _block_inputs(name), _block_expected(name)
    _, lengths, slots = BLOCKS[name]
    axes = _block_axes(len(lengths))
    order = list(axes)
    turn = order.index("resid_post")
    expected = {
        n: Tensor(found[n], a, "block_forward" if order.index(n) <= turn else "block_backward")
        for n, a in axes.items()
    }
    sizes = {"hs": SMALL.head_size, "B": len(lengths), "N": sum(lengths), "P": slots[0]}
    settings = {"n_head": SMALL.n_head, "layer_norm_epsilon": SMALL.layer_norm_epsilon}
    return VectorCase(
        block_check(name),
        TOLERANCE["float64"],
        settings,
        {letter: n for letter, n in sizes.items() if n > 1},
        inputs,
        expected,
    )


def all_cases() -> dict[str, Callable[[], VectorCase]]:
    """id -> the case, made when it is called: ops, a block, the whole model, training."""
    made: dict[str, Callable[[], VectorCase]] = {}
    for op, named in CASES.items():
        for name in named:
            if case_of(op, name).layout == "contiguous":
                made[f"{op}/{name}"] = partial(_op_case, op, name)
    for name in BLOCKS:
        made[f"block/{name}"] = partial(_block_case, name)
    for name in MODEL_CASES:
        made[f"model/{name}"] = partial(_model_case, name)
    for check in suite.all_checks().values():
        if check.op == "decoding":
            made[check.id] = partial(_decoding_case, check)
    for name in TRAINING_CASES:
        made[f"training/{name}"] = partial(_training_case, name)
    return made
