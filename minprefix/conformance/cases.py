"""The cases of the ops level: which inputs an op is given. Everything follows from a few sizes and
a seed, so a case is its own reproducer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from minprefix.conformance.contract import ARGUMENTS, FUNCTIONS, TENSORS, results
from minprefix.conformance.implementation import Broken, Implementation
from minprefix.errors import counted
from minprefix.ops import reference
from minprefix.ops.contract import CONSUMED, Array

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
    """Inputs for all functions of an op. `sizes`: see the maker of the op below."""

    op: str
    sizes: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    dtype: str = "float64"
    layout: str = "contiguous"

    def __repr__(self) -> str:
        """What differs from a plain case: it can be pasted."""
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
        return {name: self._cast(a) for name, a in made.items()}

    def _cast(self, a: Any) -> Any:
        if isinstance(a, list):
            return [self._cast(each) for each in a]
        if not isinstance(a, np.ndarray):
            return a
        lay = LAYOUTS[self.layout]
        return lay(a.astype(self.dtype)) if a.dtype.kind == "f" else a

    def expected(self) -> dict[str, Array]:
        """Every tensor of the op by name, from the reference in float64 on the very same numbers.
        That these are right is shown by four other ways to compute them (see the oracle table)."""
        key = repr(self)
        if key not in _EXPECTED:
            _EXPECTED[key] = _compute(self)
        return _EXPECTED[key]

    def tolerance(self) -> float:
        """Where scores are large, the rounding of one is felt in all that follows from it: in a
        backward that keeps their log-sum-exp, say."""
        common, last = abs(self.sizes.get("common", 0.0)), self.sizes.get("last", 1.0)
        return max(TOLERANCE[self.dtype], 1e-12 * common, 1e-10 * last)

    def dimensions(self) -> dict[str, float]:
        """The sizes of this case by their letters, for the diagnosis."""
        i = self.inputs()
        if self.op == "attention":
            N, NH, hs = i["q"].shape
            lengths = np.diff(i["offsets"])
            return {"hs": hs, "NH": NH, "N": N, "B": len(lengths), "T": lengths[0]} | (
                {"P": i["prefix_k"][0].shape[1]} if i["prefix_k"][0].shape[1] else {}
            )
        shapes = {
            "embed": lambda: {"N": len(i["tokens"]), "C": i["wte"].shape[1]},
            "layernorm": lambda: dict(zip("NC", i["x"].shape, strict=True)),
            "linear": lambda: {"N": len(i["x"]), "in": i["x"].shape[1]},
            "gelu": lambda: dict(zip("NF", i["x"].shape, strict=True)),
            "cross_entropy": lambda: dict(zip("MV", i["logits"].shape, strict=True)),
        }
        return shapes[self.op]()


# ---- the makers: sizes -> arguments by name -----------------------------------------------------


def _embed(
    rng: np.random.Generator, N: int = 7, C: int = 5, V: int = 11, n_positions: int = 13
) -> dict[str, Any]:
    return {
        "tokens": rng.integers(0, V, N),
        "positions": rng.integers(0, n_positions, N),
        "wte": rng.normal(0, 1, (V, C)),
        "wpe": rng.normal(0, 1, (n_positions, C)),
        "dx": rng.normal(0, 1, (N, C)),
    }


def _layernorm(
    rng: np.random.Generator,
    N: int = 7,
    C: int = 11,
    centre: float = 0.5,
    spread: float = 1.0,
    eps: float = 1e-5,
) -> dict[str, Any]:
    return {
        "x": centre + spread * rng.normal(0, 1, (N, C)),
        "gain": rng.normal(1, 0.5, C),
        "bias": rng.normal(0, 1, C),
        "eps": eps,
        "dout": rng.normal(0, 1, (N, C)),
    }


def _linear(
    rng: np.random.Generator, N: int = 7, n_in: int = 5, n_out: int = 3, bias: bool = True
) -> dict[str, Any]:
    return {
        "x": rng.normal(0, 1, (N, n_in)),
        "weight": rng.normal(0, 1, (n_in, n_out)),
        "bias": rng.normal(0, 1, n_out) if bias else None,
        "dout": rng.normal(0, 1, (N, n_out)),
    }


def _gelu(rng: np.random.Generator, N: int = 7, F: int = 12, spread: float = 2.0) -> dict[str, Any]:
    x = spread * rng.normal(0, 1, (N, F))
    x[:, 0] = np.abs(x[:, 0])  # all below 0, every result might be nearly 0, and rounding graded
    return {"x": x, "dout": rng.normal(0, 1, (N, F))}


def _attention(
    rng: np.random.Generator,
    lengths: tuple[int, ...] = (5, 3),
    slots: tuple[int, ...] = (3, 3),
    heads: int = 2,
    head_size: int = 7,
    common: float = 0.0,
    spread: float = 1.0,
    last: float = 1.0,
    uneven: bool = False,
) -> dict[str, Any]:
    """`common`: about how much is added to every score, or with `uneven` to those of every second
    query; `spread`: of the queries; `last`: times the key of each sequence's last token."""
    N, shape = sum(lengths), (heads, head_size)
    q, k, v, dz = (rng.normal(0, 1, (N, *shape)) for _ in range(4))
    prefix_k, prefix_v = ([rng.normal(0, 1, (heads, P, head_size)) for P in slots] for _ in "kv")
    q *= spread
    k[np.cumsum(lengths) - 1] *= last
    if common:  # the last coordinate of every query times that of every key
        q[..., -1] = abs(common) ** 0.5
        if uneven:
            q[::2, :, -1] = 0
        k[..., -1] = common / abs(common) ** 0.5 * head_size**0.5
        for a in prefix_k:
            a[..., -1] = common / abs(common) ** 0.5 * head_size**0.5
    return {
        "q": q,
        "k": k,
        "v": v,
        "prefix_k": prefix_k,
        "prefix_v": prefix_v,
        "offsets": np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        "dz": dz,
    }


def _cross_entropy(
    rng: np.random.Generator,
    M: int = 5,
    V: int = 11,
    common: float = 0.0,
    spread: float = 1.0,
    weights: str = "random",
) -> dict[str, Any]:
    given = {"random": rng.uniform(0.2, 2, M), "mean": np.full(M, 1 / M)}[weights]
    return {
        "logits": common + spread * rng.normal(0, 1, (M, V)),
        "targets": rng.integers(0, V, M),
        "weights": given,
    }


MAKERS: dict[str, Callable[..., dict[str, Any]]] = {
    "embed": _embed,
    "layernorm": _layernorm,
    "linear": _linear,
    "gelu": _gelu,
    "attention": _attention,
    "cross_entropy": _cross_entropy,
}


# ---- the table of cases -------------------------------------------------------------------------

#: op -> name -> why, and what the case is
CASES: dict[str, dict[str, tuple[str, dict[str, Any]]]] = {
    "embed": {
        "usual": ("the sum of two rows, and where their gradients go", {}),
        "repeated-tokens": (
            "the gradient of a token that occurs often is the sum over all its places",
            {"sizes": {"N": 9, "V": 2, "n_positions": 3}},
        ),
        "one-token": ("N = 1", {"sizes": {"N": 1}}),
        "float32": ("single precision stays single", {"dtype": "float32"}),
        "strided": ("weights that do not lie in one piece", {"layout": "strided"}),
    },
    "layernorm": {
        "usual": ("mean, variance, gain and bias, and all three ways back", {}),
        "far-from-zero": (
            "a variance computed as E[x^2] - E[x]^2 has lost its digits here",
            {"sizes": {"centre": 1e4}},
        ),
        "tiny-variance": (
            "eps stands inside the root, and decides where the variance is small",
            {"sizes": {"spread": 1e-4, "centre": 0.3}},
        ),
        "large-eps": ("eps is the argument, not 1e-5", {"sizes": {"eps": 0.1}}),
        "one-row": ("N = 1: nothing is normalised over the rows", {"sizes": {"N": 1}}),
        "one-column": ("C = 1: the variance is 0", {"sizes": {"C": 1}}),
        "float32": ("single precision stays single", {"dtype": "float32"}),
        "strided": ("x that does not lie in one piece", {"layout": "strided"}),
    },
    "linear": {
        "usual": ("x W + b, and its two halves of a backward", {}),
        "square": (
            "in = out: a transposed weight has the right shape",
            {"sizes": {"n_in": 5, "n_out": 5}},
        ),
        "no-bias": ("bias is None, as in the head", {"sizes": {"bias": False}}),
        "one-row": ("N = 1, as in decoding", {"sizes": {"N": 1}}),
        "float32": ("single precision stays single", {"dtype": "float32"}),
        "fortran": ("a transposed view of a weight, as the tied head is", {"layout": "fortran"}),
    },
    "gelu": {
        "usual": ("the tanh form and its derivative", {}),
        "near-zero": (
            "the erf form and the tanh form are closest here",
            {"sizes": {"spread": 0.1}},
        ),
        "far-out": ("nothing overflows, the tails are 0 and x", {"sizes": {"spread": 1e3}}),
        "float32": ("single precision stays single", {"dtype": "float32"}),
        "strided": ("x that does not lie in one piece", {"layout": "strided"}),
    },
    "attention": {
        "one-sequence": (
            "one sequence with a prefix",
            {"sizes": {"lengths": (5,), "slots": (3,)}},
        ),
        "usual": ("two sequences with a prefix each", {}),
        "no-prefix": ("P = 0 is plain attention", {"sizes": {"slots": (0, 0)}}),
        "one-token": (
            "T = 1: it sees the prefix and itself",
            {"sizes": {"lengths": (1, 1, 1)} | {"slots": (3, 1, 0)}},
        ),
        "one-head": ("NH = 1", {"sizes": {"heads": 1}}),
        "square": (
            "T = P = hs: nothing has a shape of its own",
            {"sizes": {"lengths": (4, 4), "slots": (4, 4), "head_size": 4, "heads": 4}},
        ),
        "unequal-lengths": (
            "sequences end where offsets say",
            {"sizes": {"lengths": (1, 6, 3), "slots": (2, 2, 2)}},
        ),
        "unequal-prefixes": (
            "each sequence sees its own prefix, of its own length",
            {"sizes": {"lengths": (4, 2, 3), "slots": (5, 0, 1)}},
        ),
        "long-prefix": (
            "a prefix longer than the text",
            {"sizes": {"lengths": (2, 3), "slots": (17, 17)}},
        ),
        "large-scores": (
            "scores around 1e4: exp overflows unless the largest is taken off",
            {"sizes": {"common": 1e4}},
        ),
        "large-negative-scores": (
            "scores around -1e4: a mask of -1e4 hides nothing here",
            {"sizes": {"common": -1e4}},
        ),
        "large-last-key": (
            "a last key of size 1e5: a mask that adds -1e4 lets the tokens before see it",
            {"sizes": {"last": 1e5}},
        ),
        "sharp": ("queries of size 30: the pattern is nearly one-hot", {"sizes": {"spread": 30.0}}),
        "uneven-scores": (
            "scores of one query around 1e4, of the next around 0: a maximum taken over all rows "
            "leaves 0/0",
            {"sizes": {"common": 1e4, "uneven": True}},
        ),
        "float32": ("single precision stays single", {"dtype": "float32"}),
        "strided": (
            "q, k and v are views of one array, as the model gives them",
            {"layout": "strided"},
        ),
    },
    "cross_entropy": {
        "usual": ("a weighted sum of -log softmax, and its gradient", {}),
        "mean": ("weights 1/M: the mean", {"sizes": {"weights": "mean"}}),
        "one-target": ("M = 1", {"sizes": {"M": 1}}),
        "large-logits": (
            "logits around 1e4: exp overflows unless the largest is taken off",
            {"sizes": {"common": 1e4}},
        ),
        "spread-logits": (
            "logits of size 1e4: a probability that underflows keeps a finite loss",
            {"sizes": {"spread": 1e4}},
        ),
        "float32": ("single precision stays single", {"dtype": "float32"}),
        "strided": ("logits that do not lie in one piece", {"layout": "strided"}),
    },
}


def case_of(op: str, name: str) -> Case:
    """The case `name` of the table."""
    return Case(op, **CASES[op][name][1])


# ---- from inputs to tensors ---------------------------------------------------------------------


def flatten(function: str, result: Any) -> dict[str, Any]:
    """What a function gave, by the names of TENSORS. A field that the cache lacks is left out.
    Raises Broken if there are too few or too many results."""
    names = TENSORS[function]
    tops = results(function)
    if len(tops) == 1:
        parts = [result]
    elif isinstance(result, tuple | list) and len(result) == len(tops):
        parts = list(result)
    else:
        n = len(result) if isinstance(result, tuple | list) else 1
        said = f"{function} gave {counted(n, 'result')}, expected {len(tops)}: {', '.join(tops)}"
        raise Broken("missing", said, function)
    flat: dict[str, Any] = {}
    for name in names:
        top, _, cache_field = name.removesuffix("[]").partition(".")
        value = parts[tops.index(top)]
        if cache_field:
            if isinstance(value, dict):
                value = value.get(cache_field)
            else:
                value = getattr(value, cache_field, None)
            if value is None or (name.endswith("[]") and not isinstance(value, Sequence)):
                continue  # a cache of another form
        if name.endswith("[]"):
            if not isinstance(value, Sequence):
                said = f"{name[:-2]} is a {type(value).__name__}, expected one array a sequence"
                raise Broken("missing", said, function)
            stem = name[:-2]
            flat |= {f"{stem}[{b}]": each for b, each in enumerate(value)}
        else:
            flat[name] = value
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


def axes(function: str, tensor: str) -> str:
    """The axes of a tensor by its name, `dprefix_k[1]` as `dprefix_k[]`."""
    stem = tensor.split("[")[0]
    return TENSORS[function][f"{stem}[]" if "[" in tensor else stem]


def owner(op: str, tensor: str) -> str:
    """The function that gives a tensor."""
    for function in FUNCTIONS[op]:
        try:
            axes(function, tensor)
        except KeyError:
            continue
        return function
    raise KeyError(tensor)


def consumed(function: str) -> tuple[str, ...]:
    return CONSUMED.get(function, ())


def reference_cache(op: str, inputs: dict[str, Any]) -> Any:
    """What the reference keeps for the backward of this op."""
    forward = FUNCTIONS[op][0]
    return getattr(reference, forward)(*(inputs[a] for a in ARGUMENTS[forward]))[1]


_EXPECTED: dict[str, dict[str, Array]] = {}  # by the text of the case, which says all


def _compute(case: Case) -> dict[str, Array]:
    inputs = {name: _wide(a) for name, a in case.inputs().items()}
    found: dict[str, Array] = {}
    for function in FUNCTIONS[case.op]:
        arguments = [inputs[a] for a in ARGUMENTS[function] if a != "cache"]
        if "cache" in ARGUMENTS[function]:
            arguments.append(reference_cache(case.op, inputs))
        result = getattr(reference, function)(*arguments)
        found |= {name: np.asarray(a) for name, a in flatten(function, result).items()}
    return found


def _wide(a: Any) -> Any:
    if isinstance(a, list):
        return [_wide(each) for each in a]
    return a.astype(np.float64) if isinstance(a, np.ndarray) and a.dtype.kind == "f" else a
