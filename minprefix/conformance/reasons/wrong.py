"""Wrong formulas, computed: the reference's text with a mistake in it, run on a case's inputs."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from minprefix.conformance.cases import flatten
from minprefix.conformance.contract import ARGUMENTS
from minprefix.ops import reference
from minprefix.ops.contract import Array

TABLE = Path(__file__).with_name("formulas.txt")


@dataclass(frozen=True)
class Wrong:
    """A mistake that one may have made in `function`: `said` goes on from "it is what one gets if";
    `change`: pairs of a text of the reference's function that stands there once, and its
    replacement; `sized`: it is about the end of a block."""

    function: str
    said: str
    change: tuple[tuple[str, str], ...]
    sized: bool = False


def formulas() -> dict[str, tuple[Wrong, ...]]:
    """function -> what `formulas.txt` has of it; its head explains the format."""
    return table(TABLE)


@cache
def table(path: Path) -> dict[str, tuple[Wrong, ...]]:
    """section -> its rows."""
    found: dict[str, list[Wrong]] = {}
    function, of_all, old = "", dict[str, list[str]](), ""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            function, of_all = line.strip("[]"), {}
        elif line.startswith("n: "):
            of_all = {"n": line[3:].split()}
        elif line.startswith("@"):
            old = line[1:].strip()
        elif line and not line.startswith("#"):
            found.setdefault(function, []).extend(_row(function, line, old, of_all))
    return {name: tuple(each) for name, each in found.items()}


def _row(function: str, line: str, old: str, of_all: Mapping[str, list[str]]) -> list[Wrong]:
    said, *parts = line.split(" ;; ")
    values = dict(of_all)
    if parts[-1].startswith("e: "):
        values |= {"e": parts.pop()[3:].split()}
    letter = next((key for key in values if f"{{{key}}}" in line), "")
    made = []
    for value in values.get(letter, [""]):
        filled = [part.replace(f"{{{letter}}}", value) for part in (said, *parts)]
        pairs = [part.partition(" ==> ")[::2] for part in filled[1:]] if not old else []
        change = tuple(pairs) or ((old, filled[1]),)
        change = tuple((a.replace("\\n", "\n"), b.replace("\\n", "\n")) for a, b in change)
        made.append(Wrong(function, filled[0], change, letter == "n"))
    return made


#: functions of the reference that others are made of, and in which a change may stand
_PARTS = {"attention": ("_heads_first",), "attention_backward": ("_heads_first",)}


@cache
def _text(function: str) -> str:
    names = (function, *_PARTS.get(function, ()))
    return "\n\n".join(inspect.getsource(getattr(reference, name)) for name in names)


@cache
def compiled(wrong: Wrong) -> Callable[..., Any]:
    """The function with the mistake. Raises ValueError if a text that it changes is not there
    exactly once."""
    text = _text(wrong.function)
    for old, new in wrong.change:
        if text.count(old) != 1:
            n = text.count(old)
            raise ValueError(f"{wrong.said!r} changes a text that stands {n} times: {old!r}")
        text = text.replace(old, new)
    names = vars(reference) | {"tiles": tiles}
    exec(compile(text, f"{wrong.function}, if {wrong.said}", "exec"), names)
    made: Callable[..., Any] = names[wrong.function]
    return made


def given(wrong: Wrong, inputs: Mapping[str, Any]) -> dict[str, Array]:
    """What the wrong formula gives for a case's inputs in float64, and the reference's `cache` if
    it takes one: tensors by name; none if it does not go through, as for other shapes."""
    try:
        result = compiled(wrong)(*(inputs[a] for a in ARGUMENTS[wrong.function]))
        return {name: np.asarray(a) for name, a in flatten(wrong.function, result).items()}
    except (ValueError, IndexError, TypeError, ZeroDivisionError):
        return {}


def row_slices(offsets: Array) -> list[slice]:
    """The rows of each sequence."""
    return [slice(int(a), int(b)) for a, b in pairwise(offsets)]


def tiles(
    scores: Array, n: int, start: int, rescale_result: bool, rescale_sum: bool | None
) -> Array:
    """The weights (..., keys) that a running softmax gives over tiles of `n` keys, the first of
    `start` keys if that is not 0. What is not rescaled keeps the maximum that its tile had;
    `rescale_sum` None: the sum is the last tile's alone."""
    ends = [*([start] if start else []), *range(start + n, scores.shape[-1] + n, n)]
    most = np.full((*scores.shape[:-1], 1), -np.inf)
    weights, total, at = np.zeros_like(scores), np.zeros_like(most), 0
    for end in ends:
        tile = slice(at, min(end, scores.shape[-1]))
        new = np.maximum(most, scores[..., tile].max(axis=-1, keepdims=True))
        shift = np.where(np.isfinite(new), new, 0)
        keep, e = np.exp(most - shift), np.exp(scores[..., tile] - shift)
        weights *= keep if rescale_result else 1
        weights[..., tile] = e
        total = total * (keep if rescale_sum else 0 if rescale_sum is None else 1)
        total = total + e.sum(axis=-1, keepdims=True)
        most, at = new, end
    return weights / total
