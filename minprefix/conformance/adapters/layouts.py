"""The ways in which modules take a prefix's keys and values.

A layout is written as the axes of one tensor: "L 2 B NH P hs", "B P L*2*NH*hs" as PEFT has it. Two
are no tensor: "tuple", for each layer (keys, values) of (B, NH, P, hs), and "cache", transformers'
`DynamicCache` of the same.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

from minprefix.errors import InputError
from minprefix.gpt2 import Config

Tensor = Any

AXES = ("B", "L", "2", "NH", "P", "hs")

#: layouts to try, the usual ones first
OF_AN_ARGUMENT = (
    "L 2 B NH P hs",
    "B L 2 NH P hs",
    "L B 2 NH P hs",
    "2 L B NH P hs",
    "B P L*2*NH*hs",
    "tuple",
    "cache",
    "L 2 NH P hs",
    "B L 2 P NH hs",
    "L 2 B P NH hs",
    "B P L 2 NH hs",
    "P L*2*NH*hs",
    "L 2 P NH hs",
    "P L 2 NH hs",
)
OF_A_PAST = ("cache", "tuple", *(name for name in OF_AN_ARGUMENT if name not in ("cache", "tuple")))
OF_A_PARAMETER = tuple(name for name in OF_AN_ARGUMENT if "P" in name and "B" not in name)


def checked(layout: str) -> str:
    """The layout with a space between its axes. Raises InputError if it is none."""
    if layout in ("tuple", "cache"):
        return layout
    found = " ".join(layout.replace(",", " ").replace("(", " ").replace(")", " ").split())
    found = re.sub(r" ?\* ?", "*", found).replace("2*C", "2*NH*hs")
    letters = sorted(re.split(r"[ *]", found))
    if letters not in (sorted(AXES), sorted(AXES[1:])):
        raise InputError(
            f"LAYOUT is {layout!r}: expected 'tuple', 'cache' or an order of the axes "
            "B L 2 NH P hs (B may be left out), as 'B P L*2*NH*hs'"
        )
    return found


def of_all_rows(layout: str) -> bool:
    """Whether each row of a batch has a prefix of its own."""
    return layout in ("tuple", "cache") or "B" in layout.split()


def laid_out(kv: Tensor, layout: str, config: Config) -> Any:
    """kv (B, L, 2, NH, P, hs), a tensor of PyTorch -> what the module takes. Where all rows share
    one prefix, that of the first."""
    if layout == "tuple":
        return tuple((layer[:, 0], layer[:, 1]) for layer in kv.unbind(1))
    if layout == "cache":
        from transformers import DynamicCache

        cache = DynamicCache()
        for i, layer in enumerate(kv.unbind(1)):
            cache.update(layer[:, 0], layer[:, 1], i)
        return cache
    axes: tuple[str, ...] = AXES
    if not of_all_rows(layout):
        kv, axes = kv[0], AXES[1:]
    sizes = dict(zip(axes, kv.shape, strict=True))
    order = [axes.index(letter) for letter in re.split(r"[ *]", layout)]
    return kv.permute(order).reshape(_shape(layout, sizes))


def shape_of(layout: str, config: Config, P: int) -> tuple[int, ...]:
    """The shape of a parameter in this layout, which has no B."""
    sizes = {"L": config.n_layer, "2": 2, "NH": config.n_head, "P": P, "hs": config.head_size}
    return _shape(layout, sizes)


def _shape(layout: str, sizes: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(math.prod(sizes[a] for a in group.split("*")) for group in layout.split())
