"""Arrays that see what an exercise's answer computes with them, and refuse the easy way round."""

from collections.abc import Callable
from typing import Any

import numpy as np

from minprefix.lessons.exercise import Lazy
from minprefix.ops.contract import Array

#: the function's name, the result, and whether the result is a new array -> nothing, or raises Lazy
Rule = Callable[[str, Array, bool], None]


PRODUCTS = ("einsum", "dot", "tensordot", "inner", "vdot", "multi_dot")


class Watched(np.ndarray[Any, Any]):
    """An array like any other. After each operation on it that gives an array, its rule is called;
    the result, a view and a copy have the same rule."""

    rule: Rule | None

    def __array_finalize__(self, obj: Any) -> None:
        self.rule = getattr(obj, "rule", None)

    def __array_ufunc__(
        self, ufunc: np.ufunc, method: str, *inputs: Any, out: Any = None, **kwargs: Any
    ) -> Any:
        if out is not None:
            kwargs["out"] = tuple(map(_plain, out))
        result = getattr(ufunc, method)(*map(_plain, inputs), **kwargs)
        if result is NotImplemented or not isinstance(result, np.ndarray):
            return result
        if self.rule is not None:
            self.rule(ufunc.__name__, result, out is None)
        if out is not None:
            return out[0]
        return watched(result, self.rule)

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        result = super().__array_function__(func, types, args, kwargs)
        if self.rule is not None and isinstance(result, np.ndarray):
            # einsum and its like multiply without a ufunc
            name = "matmul" if func.__name__ in PRODUCTS else func.__name__
            self.rule(name, _plain(result), not np.may_share_memory(result, self))
        return result


def _plain(a: Any) -> Any:
    return a.view(np.ndarray) if isinstance(a, Watched) else a


def watched(a: Array, rule: Rule | None) -> Watched:
    view = a.view(Watched)
    view.rule = rule
    return view


def by_formula(a: Array, largest: int | None = None) -> Watched:
    """An array for an exercise whose answer is a formula. It refuses complex numbers, by which a
    derivative is measured, and a result of more than `largest` numbers, such as a Jacobian."""

    def rule(_: str, result: Array, is_new: bool) -> None:
        if result.dtype.kind == "c":
            raise Lazy(
                "computes with complex numbers: that measures the derivative. Derive the formula, "
                "and write it."
            )
        if largest is not None and is_new and result.size > largest:
            raise Lazy(
                f"makes an array {result.shape}, as a Jacobian does. Work out the sum on paper "
                "until no matrix is left, and write that formula."
            )

    return watched(a, rule)
