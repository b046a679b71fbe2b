"""The derivative of the reference's own forward, three ways. `Point` is a scalar function of named
arrays, taken at a place; each way gives the derivative for its arrays, whole or at some entries.

    complex_step   Im f(x + ih) / h with h = 1e-30: no difference is taken, so no digits are lost
                   (Squire & Trapp, 1998)
    differences    central ones of fourth order, at the step width where its neighbours agree best
    hips           HIPS autograd over the source of the reference
"""

import inspect
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import autograd
import autograd.numpy
import numpy as np
from autograd.numpy.numpy_boxes import ArrayBox

from minprefix import gpt2
from minprefix.conformance import cases
from minprefix.conformance.cases import Case
from minprefix.conformance.contract import ARGUMENTS, ModelProblem, TrainingProblem

Array = np.ndarray
Index = tuple[int, ...]


@dataclass
class Point:
    """`f(ops, moved)`: a scalar by these ops, with the arrays of `moved` in their places and every
    other one where it is. `arrays`: where they are, each by the name that the suite gives to the
    gradient."""

    f: Callable[[Any, Mapping[str, Any]], Any]
    arrays: dict[str, Array]


def reference() -> types.ModuleType:
    """The module that the expected values come from."""
    return cases.reference


# ---- the three ways -----------------------------------------------------------------------------


def hips(point: Point) -> dict[str, Array]:
    """The whole derivative of every array."""
    ops = _over_autograd(reference())
    sized = {name: a for name, a in point.arrays.items() if a.size}
    empty = {name: np.zeros(a.shape) for name, a in point.arrays.items() if not a.size}
    boxed = autograd.grad(lambda arrays: point.f(ops, {name: arrays[name] for name in sized}))
    with np.errstate(over="ignore"):  # its tanh' is 1 / cosh^2, which is right to be 0 far out
        return boxed(sized) | empty


_translated: dict[str, types.ModuleType] = {}


def _over_autograd(module: types.ModuleType) -> types.ModuleType:
    """The module's source as it stands, with autograd's NumPy in the place of NumPy."""
    source = inspect.getsource(module)
    if source not in _translated:
        if "import numpy as np\n" not in source:
            raise AssertionError(f"{module.__name__} does not import numpy as np")
        copy = types.ModuleType(f"{module.__name__}_over_autograd")
        exec(source.replace("import numpy as np\n", "import autograd.numpy as np\n"), vars(copy))
        _translated[source] = copy
    return _translated[source]


# What autograd's arrays lack and the source uses
ArrayBox.real = property(autograd.numpy.real)


def complex_step(point: Point, entries: Mapping[str, Sequence[Index]]) -> dict[str, Array]:
    h, ops = 1e-30, reference()
    found = {}
    for name, indices in entries.items():
        moved = point.arrays[name].astype(np.complex128)
        slopes = []
        for index in indices:
            moved[index] += 1j * h
            slopes.append(np.imag(point.f(ops, {name: moved})) / h)
            moved[index] = moved[index].real
        found[name] = np.array(slopes)
    return found


#: offset in steps -> its weight in the derivative: exact for polynomials up to the fourth degree
STENCIL = {-2: 1 / 12, -1: -2 / 3, 1: 2 / 3, 2: -1 / 12}
WIDTHS = 10.0 ** -np.arange(1.5, 6.0, 0.5)
SMOOTH = 10.0 ** -np.arange(2.0, 4.0, 0.5)  # enough for the loss of a model


def differences(
    point: Point, directions: Mapping[str, Sequence[Array]], widths: Array = WIDTHS
) -> dict[str, Array]:
    """The slope along each direction. A step that is too wide leaves out higher derivatives, one
    that is too narrow loses digits: between them, the results of neighbouring widths agree best.
    What the suite expects is not looked at."""
    ops = reference()

    def slope(name: str, direction: Array, h: float) -> float:
        moved = ((weight, point.arrays[name] + n * h * direction) for n, weight in STENCIL.items())
        return sum(weight * float(point.f(ops, {name: a})) for weight, a in moved) / h

    found = {}
    for name, along in directions.items():
        best = []
        for direction in along:
            slopes = np.array([slope(name, direction, h) for h in widths])
            jumps = np.abs(np.diff(slopes))
            best.append(slopes[1:-1][np.argmin(np.maximum(jumps[:-1], jumps[1:]))])
        found[name] = np.array(best)
    return found


# ---- an op --------------------------------------------------------------------------------------

#: op -> its upstream gradient, and what the gradients are for
ARGUMENT_OF = {
    "embed": ("dx", ("wte", "wpe")),
    "layernorm": ("dout", ("x", "gain", "bias")),
    "linear": ("dout", ("x", "weight", "bias")),
    "gelu": ("dout", ("x",)),
    "attention": ("dz", ("q", "k", "v", "prefix_k", "prefix_v")),
    "cross_entropy": (None, ("logits",)),
}


def op(case: Case) -> Point:
    """The sum over the output times the upstream gradient."""
    inputs = {name: cases.wide(a) for name, a in case.inputs().items()}
    upstream, names = ARGUMENT_OF[case.op]
    if case.op == "linear" and inputs["bias"] is None:  # its gradient is expected all the same
        inputs["bias"] = np.zeros(inputs["weight"].shape[1])
    arrays: dict[str, Array] = {}
    for name in names:
        given, each = inputs[name], {"": inputs[name]}
        if isinstance(given, list):
            each = {f"[{b}]": a for b, a in enumerate(given)}
        arrays |= {f"d{name}{index}": np.ascontiguousarray(a) for index, a in each.items()}

    def f(ops: Any, moved: Mapping[str, Any]) -> Any:
        given = dict(inputs)
        for name in names:
            if isinstance(inputs[name], list):
                each = enumerate(inputs[name])
                given[name] = [moved.get(f"d{name}[{b}]", a) for b, a in each]
            else:
                given[name] = moved.get(f"d{name}", inputs[name])
        result = getattr(ops, case.op)(*(given[a] for a in ARGUMENTS[case.op]))
        out = result[0] if isinstance(result, tuple) else result
        return out if upstream is None else (out * inputs[upstream]).sum()

    return Point(f, arrays)


# ---- a whole model ------------------------------------------------------------------------------


class Nudged:
    """Ops that add an array to what passes. The loss's derivative for that array, at 0, is the
    gradient of what it was added to. Layers are told apart by the order of the calls."""

    def __init__(self, ops: Any, nudges: Mapping[str, Any], n_layer: int) -> None:
        blocks = [f"blocks.{i}" for i in range(n_layer)]
        self.ops, self.nudges = ops, nudges
        self._norms = iter([f"{b}.{ln}" for b in blocks for ln in ("ln_1", "ln_2")] + ["ln_f"])
        each = ("qkv", "dresid_mid", "mlp.dpre", "dresid_post")
        self._linears = iter([f"{b}.{name}" for b in blocks for name in each])
        self._head_rows = 0  # the head's rows come in blocks
        self._gelus, self._attentions = iter(blocks), iter(blocks)
        self.embed, self.cross_entropy = ops.embed, ops.cross_entropy

    def _nudged(self, name: str, a: Any) -> Any:
        return a + self.nudges[name] if name in self.nudges else a

    def layernorm(self, x: Any, gain: Any, bias: Any, eps: float) -> tuple[Any, Any]:
        name = next(self._norms)
        if name == "ln_f":
            x = self._nudged("ln_f.din", x)
        out, cache = self.ops.layernorm(x, gain, bias, eps)
        return self._nudged(f"{name}.dout", out), cache

    def linear(self, x: Any, weight: Any, bias: Any) -> Any:
        out, name = self.ops.linear(x, weight, bias), next(self._linears, "dlogits")
        if name != "dlogits" or name not in self.nudges:
            return self._nudged(name, out)
        start, self._head_rows = self._head_rows, self._head_rows + len(out)
        return out + self.nudges[name][start : self._head_rows]

    def gelu(self, x: Any) -> tuple[Any, Any]:
        out, cache = self.ops.gelu(x)
        return self._nudged(f"{next(self._gelus)}.mlp.dpost", out), cache

    def attention(
        self, q: Any, k: Any, v: Any, prefix_k: Any, prefix_v: Any, offsets: Array
    ) -> tuple[Any, Any]:
        at = f"{next(self._attentions)}.attn"
        q, k, v = (self._nudged(f"{at}.d{n}", a) for n, a in (("q", q), ("k", k), ("v", v)))
        z, cache = self.ops.attention(q, k, v, prefix_k, prefix_v, offsets)
        return self._nudged(f"{at}.dz", z), cache


def _loss(
    ops: Any, problem: ModelProblem, weights: Mapping[str, Any], kvs: Sequence[tuple[Any, Any]],
    nudges: Mapping[str, Any],
) -> Any:  # fmt: skip
    """The loss by `minprefix.gpt2`'s forward; kvs: keys and values (L, NH, P, hs) of a prefix."""
    p, L = problem, problem.config.n_layer
    lengths = [len(ids) for ids in p.sequences]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    start = [p.position_offsets[j] for j in p.prefix_of]
    positions = np.concatenate([np.arange(T) + s for T, s in zip(lengths, start, strict=True)])
    tokens = np.concatenate([np.array(ids) for ids in p.sequences])
    rows = np.concatenate(
        [np.arange(o + first, o + T) - 1
         for o, first, T in zip(offsets[:-1], p.loss_from, lengths, strict=True)]
    )  # fmt: skip
    past = [[(kvs[j][0][i], kvs[j][1][i]) for j in p.prefix_of] for i in range(L)]
    nudged = Nudged(ops, nudges, L)
    stream = gpt2.Stream(tokens, positions, offsets, past)
    x = gpt2.embedding(stream, weights, nudged)
    x, _ = gpt2.forward(x, stream, weights, p.config, nudged)
    each = np.full(len(rows), 1.0 if p.reduction == "sum" else 1 / len(rows))
    return gpt2.head_loss(x[rows], tokens[rows + 1], each, weights, p.config, nudged)[0]


def model(problem: ModelProblem, expected: Mapping[str, Array]) -> Point:
    """The loss as a function of the prefixes, of the weights if their gradients are asked for, and
    of everything in between whose gradient has a name."""
    weights = {name: np.float64(a) for name, a in problem.weights.items()}
    arrays: dict[str, Array] = {}
    for j, kv in enumerate(problem.prefixes):
        arrays |= {f"prefix.{j}.dk": np.float64(kv[:, 0]), f"prefix.{j}.dv": np.float64(kv[:, 1])}
    if problem.need == "all":
        arrays |= {f"d{name}": a for name, a in weights.items()}
    between = [n for n in expected if n not in arrays and n.split(".")[-1].startswith("d")]
    arrays |= {name: np.zeros(expected[name].shape) for name in between}

    def f(ops: Any, moved: Mapping[str, Any]) -> Any:
        w = {name: moved.get(f"d{name}", a) for name, a in weights.items()}
        kvs = []
        for j in range(len(problem.prefixes)):
            dk, dv = f"prefix.{j}.dk", f"prefix.{j}.dv"
            kvs.append((moved.get(dk, arrays[dk]), moved.get(dv, arrays[dv])))
        nudges = {name: moved[name] for name in between if name in moved}
        return _loss(ops, problem, w, kvs, nudges)

    return Point(f, arrays)


# ---- training -----------------------------------------------------------------------------------


def training_step(problem: TrainingProblem, s: int, expected: Mapping[str, Array]) -> Point:
    """The loss of step s as a function of all parameters, at what the step before left."""
    at: list[dict[str, Array]] = []
    for i, given in enumerate(problem.parameters):
        before = f"step.{s - 1}.prefix.{i}"
        at.append({n: a if s == 0 else expected[f"{before}.{n}"] for n, a in given.items()})
    arrays = {
        f"step.{s}.prefix.{i}.gradient.{name}": a for i, p in enumerate(at) for name, a in p.items()
    }
    targets = [
        len(ids) - first
        for batch in problem.steps[s]
        for ids, first in zip(batch.sequences, batch.loss_from, strict=True)
    ]

    def f(ops: Any, moved: Mapping[str, Any]) -> Any:
        kvs, slots = [], []
        for i, p in enumerate(at):
            stem = f"step.{s}.prefix.{i}.gradient"
            now = {name: moved.get(f"{stem}.{name}", a) for name, a in p.items()}
            kvs.append(_kv(ops, now, problem.config))
            slots.append(kvs[-1][0].shape[2])
        total = 0.0
        for batch in problem.steps[s]:
            one = ModelProblem(
                problem.config,
                problem.weights,
                batch.sequences,
                batch.loss_from,
                batch.prefix_of,
                [],
                slots,
                "sum",
            )
            total = total + _loss(ops, one, problem.weights, kvs, {})
        return total / sum(targets)

    return Point(f, arrays)


def _kv(ops: Any, p: Mapping[str, Any], config: gpt2.Config) -> tuple[Any, Any]:
    if "kv" in p:
        return p["kv"][:, 0], p["kv"][:, 1]
    h = ops.np.tanh(ops.linear(p["embedding"], p["weight_1"], p["bias_1"]))
    rows = ops.linear(h, p["weight_2"], p["bias_2"])
    shape = (-1, config.n_layer, 2, config.n_head, config.head_size)
    kv = ops.np.transpose(ops.np.reshape(rows, shape), (1, 2, 3, 0, 4))
    return kv[:, 0], kv[:, 1]
