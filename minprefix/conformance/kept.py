"""What a function must leave alone, and which of its results share memory: seen in the arrays
themselves, whatever holds them."""

import contextlib
import itertools
import numbers
import types
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from minprefix.conformance.contract import ARGUMENTS
from minprefix.conformance.implementation import Broken, Implementation
from minprefix.ops.contract import CONSUMED, Array

#: arrays of the model's in a cache: kept even where the cache is consumed
PARAMETERS = ("gain", "prefix_k", "prefix_v", "offsets", "targets", "weights")

DEEPEST = 6  # a cache may hold a cache that holds a list

_HOLD_NONE = (numbers.Number, str, bytes, type, types.ModuleType, types.FunctionType)


def arrays_in(
    implementation: Implementation,
    value: Any,
    name: str,
    seen: dict[int, Any] | None = None,
    deep: int = DEEPEST,
) -> Iterator[tuple[str, Array]]:
    """Every array in `value`, which may be one, or hold some as a list, a tuple, a dictionary or an
    object does, by names such as `prefix_k[1]` and `cache.rows.q`; as NumPy arrays, which are views
    where `asnumpy` gives views. `seen`: what is not given again, by id."""
    seen = {} if seen is None else seen
    if value is None or id(value) in seen or isinstance(value, _HOLD_NONE):
        return
    seen[id(value)] = value  # kept alive: an id means something only as long as its object
    if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        if value and all(isinstance(each, float) for each in value):
            yield name, np.array(value)
            return
        parts = {f"{name}[{j}]": each for j, each in enumerate(value)}
    elif isinstance(value, np.ndarray) or hasattr(value, "__array__"):
        with contextlib.suppress(Broken):  # asnumpy may be for results alone
            yield name, implementation.asnumpy(value, name)
        return
    else:
        parts = {f"{name}.{field}": each for field, each in _fields(value).items()}
    if deep:
        for part, each in parts.items():
            yield from arrays_in(implementation, each, part, seen, deep - 1)


def _fields(value: Any) -> Mapping[str, Any]:
    """What an object holds, by its names."""
    if isinstance(value, Mapping):
        return {str(key): each for key, each in value.items()}
    if hasattr(value, "_asdict"):
        return dict(value._asdict())
    slots = itertools.chain(*(getattr(c, "__slots__", ()) for c in type(value).__mro__))
    named = {slot: getattr(value, slot) for slot in slots if hasattr(value, slot)}
    return named | dict(getattr(value, "__dict__", {}))


def kept(
    implementation: Implementation, function: str, own: dict[str, Any], model_own: dict[str, Any]
) -> dict[str, Array]:
    """All that a function must leave alone, by name: the arguments that it may not consume, the
    model's own arrays even if they stand in a consumed cache, and the cache if that is kept."""
    left_alone = [a for a in ARGUMENTS[function] if a not in CONSUMED.get(function, ())]
    found, seen = dict[str, Array](), dict[int, Any]()
    for name, value in ({a: own[a] for a in left_alone if a != "cache"} | model_own).items():
        found |= arrays_in(implementation, value, name, seen)
        if isinstance(value, list):
            found[f"the list {name}"] = np.array([id(each) for each in value])
    if "cache" in left_alone:
        found |= arrays_in(implementation, own["cache"], "cache", seen)
    return found


def written(before: Mapping[str, Array], after: Mapping[str, Array]) -> list[str]:
    """The names of what changed or is gone; what was added is no loss."""
    return [
        name
        for name, a in before.items()
        if name not in after or not np.array_equal(a, after[name], equal_nan=a.dtype.kind == "f")
    ]


def shared(results: Mapping[str, Array], others: Mapping[str, Array]) -> list[tuple[str, str]]:
    """The pairs of a result and another, or of a result and one of `others`, that lie in the same
    memory."""
    pairs = [*itertools.combinations(results.items(), 2)]
    pairs += itertools.product(results.items(), others.items())
    return [(a, b) for (a, x), (b, y) in pairs if _overlap(x, y)]


def _overlap(x: Array, y: Array) -> bool:
    if not (x.flags.writeable or y.flags.writeable):
        return False  # of a library whose arrays never change, as JAX's
    return bool(np.shares_memory(x, y))


_LITTER = itertools.count(1)


def litter(shapes: Iterable[tuple[int, ...]], dtype: str) -> None:
    """Leave numbers in free memory of these sizes, other ones each time: a function that does not
    set all of an array that it took with np.empty then gives other numbers each time, too."""
    number = 100.0 + next(_LITTER)
    held = [np.full(shape, number, dtype) for shape in shapes for _ in range(3)]
    del held
