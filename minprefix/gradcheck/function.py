"""A forward and its backward, called in the form in which people write them."""

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from minprefix.conformance.implementation import Broken
from minprefix.errors import InputError, counted
from minprefix.gradcheck.arrays import is_array, is_real, like, to_numpy
from minprefix.ops.contract import Array


@dataclass(frozen=True)
class Pair:
    """A forward, its backward, and the names of the forward's inputs.

    forward(*inputs) -> out             backward(dout, *inputs) -> gradients
    forward(*inputs) -> (out, cache)    backward(dout, cache) -> gradients

    `out` is an array, or a tuple of arrays that all come with an upstream gradient of their own.
    The gradients are those of the inputs that are arrays of floating-point numbers, in their order:
    one array, a sequence, or a mapping by the input's name, with or without a leading d. A sequence
    may hold one entry for each input, None for those without a gradient.
    """

    forward: Callable[..., Any]
    backward: Callable[..., Any]
    names: tuple[str, ...]
    has_cache: bool

    @classmethod
    def of(
        cls,
        forward: Callable[..., Any],
        backward: Callable[..., Any],
        inputs: Sequence[Any],
        has_cache: bool | None = None,
    ) -> "Pair":
        """`has_cache`: whether the forward returns (out, cache); None: found from what it returns
        and from what the backward takes. Calls the forward once. Raises InputError where the two
        do not fit together, and Broken where the forward raises."""
        for which, f in (("forward", forward), ("backward", backward)):
            if not callable(f):
                raise InputError(f"{which} is {f!r}: expected a function")
        names = _names(forward, len(inputs))
        for name, a in zip(names, inputs, strict=True):
            if is_array(a) and getattr(a.dtype, "kind", "") in ("O", "U", "S"):
                raise InputError(f"{name} is an array of {a.dtype}: expected numbers")
        if has_cache is None:
            result = called("forward", forward, [_copy(a) for a in inputs])
            has_cache = _returns_cache(result, backward, names)
        return cls(forward, backward, names, has_cache)

    def run(self, inputs: Sequence[Any]) -> tuple[Any, Any]:
        """-> what the forward gives: out as it is, and the cache (None without one)."""
        result = called("forward", self.forward, inputs)
        if not self.has_cache:
            return result, None
        if not isinstance(result, tuple | list) or len(result) != 2:
            said = f"forward gave a {type(result).__name__}, expected (out, cache)"
            raise Broken("missing", said, "forward")
        return result[0], result[1]

    def back(self, dout: Any, cache: Any, inputs: Sequence[Any]) -> Any:
        arguments = [cache] if self.has_cache else inputs
        return called("backward", self.backward, [dout, *arguments])

    def gradients(self, result: Any, wanted: Collection[int], n: int) -> dict[int, Any]:
        """The backward's result by the index of the input, of `n`; `wanted`: those that have a
        gradient. Raises Broken if one of them is missing."""
        order = sorted(wanted)
        if isinstance(result, Mapping):
            found = {i: _of_name(result, self.names[i]) for i in order}
            known = {name for each in self.names for name in (each, f"d{each}")}
            others = [str(name) for name in result if name not in known]
            if others and any(a is None for a in found.values()):
                named = ", ".join(self.names[i] for i in order)
                said = f"backward gave a gradient of {others[0]}: expected those of {named}"
                raise Broken("missing", said, "backward")
        elif is_array(result) or np.isscalar(result):
            found = {order[0]: result} if len(order) == 1 else {}
            if not found:
                self._too_few(1, order)
        elif not isinstance(result, tuple | list):
            said = f"backward gave a {type(result).__name__}, expected one gradient for each input"
            raise Broken("missing", said, "backward")
        elif len(result) == len(order):
            found = dict(zip(order, result, strict=True))
        elif len(result) == n:
            found = {i: result[i] for i in order}
        else:
            self._too_few(len(result), order)
        for i, a in found.items():
            if a is None:
                raise Broken(
                    "missing",
                    f"backward gave no gradient of {self.names[i]}: name those that it gives, as "
                    f"wrt={tuple(self.names[j] for j in order if found[j] is not None)!r}",
                    "backward",
                )
        return found

    def _too_few(self, n: int, order: Sequence[int]) -> None:
        of = ", ".join(self.names[i] for i in order)
        said = f"backward gave {counted(n, 'gradient')}, expected {len(order)}: those of {of}"
        raise Broken("missing", said, "backward")


def called(which: str, f: Callable[..., Any], arguments: Sequence[Any]) -> Any:
    """Raises Broken if it raises."""
    try:
        return f(*arguments)
    except (Exception, SystemExit) as error:
        said = f"{which} raised {type(error).__name__}: {error}"[:300].replace("\n", " ")
        raise Broken("exception", said, which) from error


def outputs(out: Any, which: str = "forward") -> list[Array]:
    """The forward's outputs in NumPy. Raises Broken if one of them is no array of numbers."""
    found = []
    for a in out if isinstance(out, tuple | list) else [out]:
        try:
            found.append(to_numpy(a))
        except (TypeError, ValueError) as error:
            said = f"{which} gave a {type(a).__name__}, expected an array: {error}"
            raise Broken("not an array", said, which) from error
    if not found:
        raise Broken("missing", f"{which} gave an empty {type(out).__name__}: no array", which)
    return found


def as_upstream(out: Any, values: Sequence[Array]) -> Any:
    """Copies of upstream gradients in the form that `out` has."""
    if not isinstance(out, tuple | list):
        return like(out, values[0].copy()) if is_array(out) else values[0].copy()
    return tuple(like(a, d.copy()) for a, d in zip(out, values, strict=True))


def upstream(values: Sequence[Array], seed: int, n: int) -> list[Array]:
    """The n-th upstream gradient of these outputs. Random: ones would hide mistakes (a softmax has
    no gradient then). Not the numbers of default_rng(seed), from which inputs are often drawn: dout
    would be equal to x."""
    rng = np.random.default_rng([seed, n, 1])
    return [rng.normal(0, 1, a.shape).astype(a.dtype) for a in values]


def _copy(a: Any) -> Any:
    return like(a, to_numpy(a)) if is_array(a) else a


def _of_name(result: Mapping[str, Any], name: str) -> Any:
    return result.get(f"d{name}", result.get(name))


def _positional(f: Callable[..., Any]) -> list[str] | None:
    """The names of its positional parameters; None where it takes any number, or does not say."""
    try:
        parameters = inspect.signature(f).parameters.values()
    except (TypeError, ValueError):
        return None
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return None
    return [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]


def _names(forward: Callable[..., Any], n: int) -> tuple[str, ...]:
    names = _positional(forward) or []
    return tuple(names[i] if i < len(names) else f"input_{i}" for i in range(n))


def _returns_cache(result: Any, backward: Callable[..., Any], names: Sequence[str]) -> bool:
    """Whether the forward gave (out, cache)."""
    takes = _positional(backward)
    pair = isinstance(result, tuple | list) and len(result) == 2
    if takes is None:
        return pair
    if pair and len(takes) >= 2 and takes[1:2] != list(names[:1]):
        return True
    if len(takes) < 1 + len(names):
        gave = "(out, cache)" if pair else f"a {type(result).__name__}"
        raise InputError(
            f"backward takes ({', '.join(takes)}) and forward gives {gave}: expected (out, cache) "
            f"and backward(dout, cache), or backward(dout, {', '.join(names)})"
        )
    return False


def differentiable(inputs: Sequence[Any], names: Sequence[str], wrt: Any) -> list[int]:
    """The indices of the inputs whose gradients are checked: the arrays of floating-point numbers,
    or those that `wrt` names. Raises InputError."""
    real = [i for i, a in enumerate(inputs) if is_real(a)]
    if wrt is None:
        if not real:
            said = "no input is an array of floating-point numbers: no gradient to check"
            if any(isinstance(a, float) for a in inputs):
                said += ". Give a number as an array, as np.array(3.0)"
            raise InputError(said)
        return real
    chosen = [wrt] if isinstance(wrt, str | int) else list(wrt)
    found = []
    for each in chosen:
        i = names.index(each) if each in names else each
        if not isinstance(i, int) or i not in real:
            listed = ", ".join(names[j] for j in real)
            raise InputError(f"wrt={each!r}: expected one of the floating-point inputs: {listed}")
        found.append(i)
    return sorted(found)
