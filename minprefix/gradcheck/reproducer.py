"""Lines of Python that show one wrong entry of a gradient, and the function that they call."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from minprefix.gradcheck.arrays import is_array, like, to_numpy, wide
from minprefix.gradcheck.function import Pair, as_upstream, differentiable, outputs, upstream
from minprefix.gradcheck.slopes import Scalar, method_of


def entry(
    forward: Callable[..., Any],
    backward: Callable[..., Any],
    inputs: Sequence[Any],
    name: str,
    index: tuple[int, ...] | None,
    seed: int = 0,
    draw: int = 0,
    has_cache: bool | None = None,
) -> tuple[Any, Any]:
    """One entry of the gradient of the input `name`: as the backward gives it, and as it is
    measured, for an upstream gradient that `gradcheck` draws. `index` None: the shapes of both
    gradients."""
    pair = Pair.of(forward, backward, inputs, has_cache)
    which = pair.names.index(name)
    given = [like(a, to_numpy(a)) if is_array(a) else a for a in inputs]
    out, cache = pair.run(given)
    dout = upstream(outputs(out), seed, draw)
    result = pair.back(as_upstream(out, dout), cache, given)
    wanted = differentiable(inputs, pair.names, None)
    got = to_numpy(pair.gradients(result, wanted, len(inputs))[which])
    x = to_numpy(wide(inputs[which]))
    if index is None:
        return got.shape, x.shape
    scalar = Scalar(pair, [wide(a) for a in inputs], [d.astype(np.float64) for d in dout], which)
    one = np.zeros_like(x)
    one[index] = 1.0
    return got[index].item(), scalar.slope(x, one, method_of(scalar, x, one)).value


#: inputs of up to so many numbers are written out in a reproducer
WRITTEN_OUT = 300


def source_of(pair: Pair, inputs: Sequence[Any]) -> str:
    """Lines that define forward, backward and inputs, as far as text can."""
    lines = [_imported(pair.forward, "forward"), _imported(pair.backward, "backward")]
    numpy = all(not is_array(a) or isinstance(a, np.ndarray) for a in inputs)
    if not numpy or sum(np.size(a) for a in inputs) > WRITTEN_OUT:
        return "\n".join([*lines, "inputs = ...  # those that gradcheck was given"])
    return "\n".join(["import numpy as np", *lines, "inputs = [", *map(_literal, inputs), "]"])


def _imported(f: Callable[..., Any], role: str) -> str:
    module, name = getattr(f, "__module__", None), getattr(f, "__qualname__", "<")
    if module in (None, "__main__") or "<" in name or "." in name:
        shown = name if name.isidentifier() else "..."
        return f"{role} = {shown}  # as it was given to gradcheck"
    return f"from {module} import {name} as {role}"


def _literal(a: Any) -> str:
    if not isinstance(a, np.ndarray):
        return f"    {a!r},"
    return f"    np.array({a.tolist()!r}, {str(a.dtype)!r}),"
