"""The distance between two prefixes, layer by layer."""

from typing import NamedTuple

import numpy as np

from minprefix.errors import InputError
from minprefix.prefix import Prefix


class Distance(NamedTuple):
    """Of the keys or the values of one layer."""

    layer: int
    what: str  # "keys" or "values"
    relative: float  # |a - b| / the mean of |a| and |b|, Euclidean: 0 equal, 2 at most
    cosine: float  # of all numbers as one vector; NaN where one is all zeros


def distances(a: Prefix, b: Prefix) -> list[Distance]:
    """How far two prefixes are apart, slot by slot, in each layer.

    Slots have no order to attention: two prefixes with the same slots in another order do the same
    and are far apart here. Raises InputError for prefixes of different shapes or layers.
    """
    if a.kv.shape != b.kv.shape or a.layers != b.layers:
        raise InputError(
            f"prefixes of shapes {a.kv.shape} and {b.kv.shape}, in layers {list(a.layers)} and "
            f"{list(b.layers)}: a distance is between numbers in the same places"
        )
    found = []
    one, two = (p.to("numpy").kv.astype(np.float64) for p in (a, b))  # (layers, 2, NH, P, hs)
    for j, layer in enumerate(a.layers):
        for i, what in enumerate(("keys", "values")):
            x, y = one[j, i].ravel(), two[j, i].ravel()
            size_x, size_y = np.linalg.norm(x), np.linalg.norm(y)
            mean = (size_x + size_y) / 2
            relative = float(np.linalg.norm(x - y) / mean) if mean else 0.0
            both = size_x * size_y
            cosine = float(x @ y / both) if both else float("nan")
            found.append(Distance(layer, what, relative, cosine))
    return found
