"""A model and training to grade: the implementation's own, or this project's over its ops."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from minprefix.conformance.cases import parts_of
from minprefix.conformance.contract import FUNCTIONS, OPTIONAL, TENSORS, results
from minprefix.conformance.implementation import Broken, Implementation, NotOffered
from minprefix.ops.contract import Array, AttentionGrads


def whole(implementation: Implementation, function: str) -> Callable[[Any], Any]:
    """The implementation's own function, or the house's over its ops. Raises NotOffered when
    neither is to be had."""
    if implementation.has(function):
        return lambda problem: implementation.call(function, problem)
    needed = [f for fs in FUNCTIONS.values() for f in fs]
    missing = [f for f in needed if f not in OPTIONAL and not implementation.has(f)]
    if missing:
        raise NotOffered(f"{function} (or all ops: {', '.join(missing)} missing)")
    from minprefix.conformance.house import House  # not at the top: training needs more than NumPy

    house = House(Guarded(implementation))
    return lambda problem: getattr(house, function)(problem)


class Guarded:
    """The ops of an implementation, called with care: NumPy arrays in, NumPy arrays out, caches as
    they are."""

    def __init__(self, implementation: Implementation) -> None:
        self._implementation = implementation

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name not in TENSORS:
            raise AttributeError(name)
        mine, names = self._implementation, results(name)
        foreign = mine.has("asarray")

        def call(*arguments: Any) -> Any:
            arguments = tuple(a.own if isinstance(a, _Readable) else a for a in arguments)
            result = mine.call(name, *(map(mine.own, arguments) if foreign else arguments))
            parts = zip(names, parts_of(name, result), strict=True)
            back = [self._back(name, top, a) for top, a in parts]
            if name == "attention_backward":
                return AttentionGrads(*back)
            return back[0] if len(back) == 1 else tuple(back)

        setattr(self, name, call)  # found at once the next time
        return call

    def _back(self, function: str, name: str, a: Any) -> Any:
        if name == "cache":
            return self._readable(a) if function == "attention" else a
        if f"{name}[]" in TENSORS[function] and isinstance(a, Sequence):
            return [self._implementation.asnumpy(each, name) for each in a]
        return self._implementation.asnumpy(a, name)

    def _readable(self, cache: Any) -> Any:
        """The model reads q, k and v of attention's cache."""
        fields = cache if isinstance(cache, dict) else {n: getattr(cache, n, None) for n in _READ}
        if any(fields.get(name) is None for name in "qkv"):
            said = "the cache of attention has no fields q, k and v: the model reads them"
            raise Broken("missing", said, "attention")
        q, k, v = (self._implementation.asnumpy(fields[n], f"cache.{n}") for n in "qkv")
        pattern = fields.get("pattern")
        of_each = pattern if isinstance(pattern, tuple | list) else ()
        patterns = [self._implementation.asnumpy(a, "cache.pattern") for a in of_each]
        return _Readable(cache, q, k, v, patterns)


#: the fields of attention's cache that others than the implementation read
_READ = ("q", "k", "v", "pattern")


@dataclass(frozen=True)
class _Readable:
    """A cache of attention in the implementation's own form, and the fields that others read."""

    own: Any
    q: Array
    k: Array
    v: Array
    pattern: list[Array]
