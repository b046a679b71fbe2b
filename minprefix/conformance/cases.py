"""The cases of the ops level: the inputs that each op is given. Everything follows from a few sizes
and a seed, so a case is its own reproducer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from minprefix.conformance.contract import ARGUMENTS, FUNCTIONS, TENSORS, results
from minprefix.conformance.implementation import Broken, Implementation
from minprefix.errors import counted
from minprefix.ops import reference
from minprefix.ops.contract import Array

DRAWS = 40  # cases that hypothesis draws for each op

#: layout -> how an array of the same values lies in memory
LAYOUTS: dict[str, Callable[[Array], Array]] = {
    "contiguous": np.ascontiguousarray,
    "fortran": np.asfortranarray,
    "strided": lambda a: np.repeat(a, 2, axis=-1)[..., ::2] if a.ndim else a,
}

#: allowed error of a tensor, relative to its largest value. float64: rounding, with room for other
#: orders of summation; float32: what single precision leaves of sums over a few dozen terms
TOLERANCE = {"float64": 1e-10, "float32": 2e-5}


@dataclass(frozen=True, repr=False)
class Case:
    """Inputs for all functions of an op. `sizes`: the arguments of the op's maker below."""

    op: str
    sizes: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    dtype: str = "float64"
    layout: str = "contiguous"

    def __repr__(self) -> str:
        """The differences from a plain case, as code that can be pasted."""
        said = [repr(self.op), *([repr(self.sizes)] if self.sizes else [])]
        for name in ("seed", "dtype", "layout"):
            value = getattr(self, name)
            if value != self.__dataclass_fields__[name].default:
                said.append(f"{name}={value!r}")
        return f"Case({', '.join(said)})"

    def inputs(self) -> dict[str, Any]:
        """Fresh arrays for every argument of the op's functions but the caches, by name: the same
        each time. The upstream gradients are random: ones would hide mistakes (the gradient of a
        softmax is 0 for them)."""
        rng = np.random.default_rng([self.seed, sorted(MAKERS).index(self.op)])
        made = MAKERS[self.op](rng, **self.sizes)
        return each_float(lambda a: LAYOUTS[self.layout](a.astype(self.dtype)), made)

    def expected(self, implementation: Implementation | None = None) -> dict[str, Array]:
        """Every tensor of the op by name, from the reference in float64 on the very same numbers;
        of an `implementation`, on those that its `asarray` makes of them. Four other ways to
        compute them agree (see the oracle table)."""
        if implementation is not None and implementation.rounds:
            return self._answer(wide(implementation.given(self.inputs())))
        if repr(self) not in _EXPECTED:
            _EXPECTED[repr(self)] = self._answer(wide(self.inputs()))
        return _EXPECTED[repr(self)]

    def _answer(self, inputs: dict[str, Any]) -> dict[str, Array]:
        found = dict[str, Array]()
        for function in FUNCTIONS[self.op]:
            given = inputs
            if "cache" in ARGUMENTS[function]:
                given = inputs | {"cache": reference_cache(self.op, inputs)}
            result = getattr(reference, function)(*(given[a] for a in ARGUMENTS[function]))
            found |= {name: np.asarray(a) for name, a in flatten(function, result).items()}
        return found

    def tolerance(self) -> float:
        """The rounding of a large score spreads to all that follows from it: in a backward that
        keeps the scores' log-sum-exp, say."""
        common, last = abs(self.sizes.get("common", 0.0)), self.sizes.get("last", 1.0)
        return max(TOLERANCE[self.dtype], 1e-12 * common, 1e-10 * last)

    def cancels(self) -> float:
        """How many times its usual error single precision leaves here: the sharper a pattern, the
        smaller are its gradients beside the numbers that cancel in them; and a large score is
        rounded to a large number, which exp makes a factor."""
        sizes = self.sizes if self.op == "attention" else {}
        large = 0.05 * max(sizes.get("last", 0.0), abs(sizes.get("common", 0.0)))
        return max(1.0, sizes.get("spread", 1.0), large)

    def dimensions(self) -> dict[str, float]:
        """The sizes of this case by their letters, for the diagnosis."""
        i = self.inputs()
        main = {"embed": "dx", "attention": "q", "cross_entropy": "logits"}.get(self.op, "x")
        sizes: dict[str, float] = dict(
            zip(INPUTS[self.op][main].split(), i[main].shape, strict=True)
        )
        if self.op == "attention":
            lengths, P = np.diff(i["offsets"]), i["prefix_k"][0].shape[1]
            sizes = {letter: sizes[letter] for letter in ("hs", "NH", "N")}
            sizes |= {"B": len(lengths), "T": lengths[0]} | ({"P": P} if P else {})
        return sizes


def each_float(f: Callable[[Array], Array], a: Any) -> Any:
    """`f` of every array of floats in `a`, which may be a list or a dictionary of them; an array
    that is given twice stays one."""
    if isinstance(a, list):
        found = {id(each): each_float(f, each) for each in a}
        return [found[id(each)] for each in a]
    if isinstance(a, dict):
        return {name: each_float(f, each) for name, each in a.items()}
    return f(a) if isinstance(a, np.ndarray) and a.dtype.kind == "f" else a


wide = partial(each_float, lambda a: a.astype(np.float64))  # every array of floats in float64


#: op -> input -> its axes
INPUTS: dict[str, dict[str, str]] = {
    "embed": {"tokens": "N", "positions": "N", "wte": "V C", "wpe": "n_positions C", "dx": "N C"},
    "layernorm": {"x": "N C", "gain": "C", "bias": "C", "dout": "N C"},
    "linear": {"x": "N in", "weight": "in out", "bias": "out", "dout": "N out"},
    "gelu": {"x": "N F", "dout": "N F"},
    "attention": dict.fromkeys(("q", "k", "v", "dz"), "N NH hs")
    | {"prefix_k": "NH P hs", "prefix_v": "NH P hs", "offsets": "B+1"},
    "cross_entropy": {"logits": "M V", "targets": "M", "weights": "M"},
}


# ---- the makers: sizes -> arguments by name -----------------------------------------------------


Rng = np.random.Generator
Inputs = dict[str, Any]


def _normals(rng: Rng, **shapes: Any) -> Inputs:
    return {name: rng.normal(0, 1, shape) for name, shape in shapes.items()}


def _embed(
    rng: Rng, N: int = 7, C: int = 5, V: int = 11, n_positions: int = 13, ends: bool = False
) -> Inputs:
    """`ends`: the tables' last and first rows are among those that are read."""
    ids = {"tokens": rng.integers(0, V, N), "positions": rng.integers(0, n_positions, N)}
    if ends:
        for a, rows in zip(ids.values(), (V, n_positions), strict=True):
            a[[0, -1]] = rows - 1, 0
    return ids | _normals(rng, wte=(V, C), wpe=(n_positions, C), dx=(N, C))


def _layernorm(
    rng: Rng,
    N: int = 7,
    C: int = 11,
    centre: float = 0.5,
    spread: float = 1.0,
    eps: float = 1e-5,
    fresh: bool = False,
    zeros: bool = False,
) -> Inputs:
    """`fresh`: gain and bias as training starts, 1 and 0; `zeros`: every second gain is 0, the
    first row of x is constant and the last of dout is 0."""
    made = _normals(rng, x=(N, C), gain=C, bias=C, dout=(N, C))
    x, gain = centre + spread * made["x"], 1 + 0.5 * made["gain"]
    if fresh:
        gain, made["bias"] = np.ones(C), np.zeros(C)
    if zeros:
        x[0], gain[::2], made["dout"][-1] = 0.5, 0, 0
    return made | {"x": x, "gain": gain, "eps": eps}


def _linear(
    rng: Rng, N: int = 7, n_in: int = 5, n_out: int = 3, bias: bool = True, zeros: bool = False
) -> Inputs:
    """`zeros`: the bias but for an entry, a row of x, of weight and of dout are 0."""
    made = {
        "x": rng.normal(0, 1, (N, n_in)),
        "weight": rng.normal(0, 1, (n_in, n_out)),
        "bias": rng.normal(0, 1, n_out if bias else 0),
        "dout": rng.normal(0, 1, (N, n_out)),
    }
    if zeros:
        made["x"][0], made["weight"][-1], made["dout"][-1] = 0, 0, 0
        made["bias"][1:] = 0
    return made if bias else made | {"bias": None}


def _gelu(rng: Rng, N: int = 7, F: int = 12, spread: float = 2.0, rounded: bool = False) -> Inputs:
    x = spread * rng.normal(0, 1, (N, F))
    x[:, 0] = np.abs(x[:, 0])  # all below 0, every result might be nearly 0, and rounding graded
    return {"x": np.round(x) if rounded else x, "dout": rng.normal(0, 1, (N, F))}


def _attention(
    rng: Rng,
    lengths: tuple[int, ...] = (5, 3),
    slots: tuple[int, ...] = (3, 3),
    heads: int = 2,
    head_size: int = 7,
    common: float = 0.0,
    spread: float = 1.0,
    last: float = 1.0,
    uneven: bool = False,
    rounded: bool = False,
    prefix: float = 1.0,
    shared: bool = False,
    silent: bool = False,
) -> Inputs:
    """`common`: about how much is added to every score, or with `uneven` to those of every second
    query; `spread`: of the queries; `last`: times the key of each sequence's last token;
    `rounded`: queries and keys are whole numbers, so that scores are equal; `prefix`: times its
    keys and values; `shared`: all sequences are given the very same two arrays; `silent`: dz is 0
    for the first sequence, and for every second token."""
    N, shape = sum(lengths), (heads, head_size)
    q, k, v, dz = (rng.normal(0, 1, (N, *shape)) for _ in range(4))
    prefix_k, prefix_v = ([rng.normal(0, 1, (heads, P, head_size)) for P in slots] for _ in "kv")
    q *= spread
    k[np.cumsum(lengths) - 1] *= last
    if rounded:
        q, k, *prefix_k = map(np.round, (q, k, *prefix_k))
    if silent:
        dz[: lengths[0]] = dz[::2] = 0
    prefix_k, prefix_v = ([prefix * a for a in each] for each in (prefix_k, prefix_v))
    if common:  # the last coordinate of every query times that of every key
        q[..., -1] = abs(common) ** 0.5
        if uneven:
            q[::2, :, -1] = 0
        k[..., -1] = common / abs(common) ** 0.5 * head_size**0.5
        for a in prefix_k:
            a[..., -1] = common / abs(common) ** 0.5 * head_size**0.5
    if shared:
        prefix_k, prefix_v = ([a] * len(slots) for a, *_ in (prefix_k, prefix_v))
    offsets = np.cumsum([0, *lengths]).astype(np.int64)
    of_slots = {"prefix_k": prefix_k, "prefix_v": prefix_v}
    return {"q": q, "k": k, "v": v, **of_slots, "offsets": offsets, "dz": dz}


def _cross_entropy(
    rng: Rng,
    M: int = 5,
    V: int = 11,
    common: float = 0.0,
    spread: float = 1.0,
    weights: str = "random",
    rounded: bool = False,
    ends: bool = False,
) -> Inputs:
    """`weights`: "random", all 1/M ("mean"), or 1 and 0 in turn ("some"); `rounded`: logits are
    whole numbers, so that there are equal ones; `ends`: targets are the last and the first
    token."""
    given = {
        "random": rng.uniform(0.2, 2, M),
        "mean": np.full(M, 1 / M),
        "some": 1.0 - np.arange(M) % 2,
    }[weights]
    logits, targets = common + spread * rng.normal(0, 1, (M, V)), rng.integers(0, V, M)
    if ends:
        targets = np.where(np.arange(M) % 3, 0, V - 1)
    return {"logits": np.round(logits) if rounded else logits, "targets": targets, "weights": given}


_MAKERS = (_embed, _layernorm, _linear, _gelu, _attention, _cross_entropy)
MAKERS: dict[str, Callable[..., Inputs]] = dict(zip(FUNCTIONS, _MAKERS, strict=True))


# ---- from inputs to tensors ---------------------------------------------------------------------


def parts_of(function: str, result: Any) -> Sequence[Any]:
    """The results of a function, one for each name of `results`. Raises Broken if there are too few
    or too many."""
    names = results(function)
    if len(names) == 1:
        return [result]
    n = len(result) if isinstance(result, tuple | list) else 1
    if n != len(names):
        said = f"{function} gave {counted(n, 'result')}, expected {len(names)}: {', '.join(names)}"
        raise Broken("missing", said, function)
    parts: Sequence[Any] = result
    return parts


def flatten(function: str, result: Any) -> dict[str, Any]:
    """The results of a function, by the names of TENSORS. A field that the cache lacks is left out.
    Raises Broken if there are too few or too many results."""
    parts = dict(zip(results(function), parts_of(function, result), strict=True))
    flat: dict[str, Any] = {}
    for name in TENSORS[function]:
        stem = name.removesuffix("[]")
        top, _, cache_field = stem.partition(".")
        value = parts[top]
        if cache_field:
            has = value.get if isinstance(value, dict) else partial(getattr, value)
            value = has(cache_field, None)
            if value is None or (stem != name and not isinstance(value, Sequence)):
                continue  # a cache of another form
        if stem == name:
            flat[name] = value
        elif isinstance(value, Sequence):
            flat |= {f"{stem}[{b}]": each for b, each in enumerate(value)}
        else:
            said = f"{stem} is a {type(value).__name__}, expected one array a sequence"
            raise Broken("missing", said, function)
    return flat


def numbers(implementation: Implementation, function: str, result: Any) -> dict[str, Array]:
    """`flatten`, as copies in NumPy: a later function may consume a cache. Raises Broken."""
    found = {}
    for name, a in flatten(function, result).items():
        try:
            found[name] = np.array(implementation.asnumpy(a, name))
        except Broken as error:
            if name.startswith("cache."):  # no array: the implementation's own business
                continue
            error.function = function
            raise
    return found


def _general(tensor: str) -> str:
    """`dprefix_k[1]` as `dprefix_k[]`, the name that TENSORS has."""
    return tensor.split("[")[0] + ("[]" if "[" in tensor else "")


def axes(function: str, tensor: str) -> str:
    """The axes of a tensor by its name."""
    return TENSORS[function][_general(tensor)]


def owner(op: str, tensor: str) -> str:
    """The function that gives a tensor."""
    return next(f for f in FUNCTIONS[op] if _general(tensor) in TENSORS[f])


def reference_cache(op: str, inputs: dict[str, Any]) -> Any:
    """The reference's cache for the backward of this op."""
    return getattr(reference, op)(*(inputs[a] for a in ARGUMENTS[op]))[1]


_EXPECTED: dict[str, dict[str, Array]] = {}  # by the text of the case, which says all
