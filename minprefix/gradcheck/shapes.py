"""What shapes and rows of a gradient say about a mistake: a sum that is missing."""

from collections.abc import Mapping

import numpy as np

from minprefix.ops.contract import Array


def summed_to(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Whether an array of `wanted` is broadcast to `shape`."""
    try:
        return np.broadcast_shapes(shape, wanted) == shape
    except ValueError:
        return False


def row_sum(missing: Array, terms: Mapping[str, Array]) -> list[str]:
    """What is missing, if it is a multiple of one term in each row: the trace of a sum over the row
    that the forward takes and the backward forgets."""
    if missing.ndim < 2 or min(missing.shape[-1], missing[..., 0].size) < 2:
        return []
    for name, term in terms.items():
        a = np.broadcast_to(term, missing.shape).astype(np.float64)
        with np.errstate(all="ignore"):
            c = (missing * a).sum(-1, keepdims=True) / (a * a).sum(-1, keepdims=True)
            off = np.abs(missing - c * a).max()
        if off <= 1e-6 * np.abs(missing).max() and np.ptp(c) > 1e-6 * np.abs(c).max():
            return [f"lacks a multiple of {name} in each row: is a sum over the row missing?"]
    return []
