"""Why the answer of a whole model, of decoding or of training is wrong: where the first wrong
tensor stands, and the mistake that leads to the same numbers."""

import re
import time
from collections.abc import Mapping
from weakref import WeakKeyDictionary

import numpy as np

from minprefix.conformance.diagnosis import relative_error
from minprefix.conformance.implementation import Implementation
from minprefix.conformance.problems import Question
from minprefix.conformance.reasons.mistakes import mistakes
from minprefix.ops.contract import Array
from minprefix.trace.wiring import BLOCK, Place

#: a search ends after so many seconds; each function has so many
SECONDS, SEARCHES = 5.0, 2

_SEARCHES: WeakKeyDictionary[Implementation, dict[str, int]] = WeakKeyDictionary()


def reasons(
    question: Question, implementation: Implementation, found: Mapping[str, Array], close: float
) -> tuple[str, list[str]]:
    """The first wrong tensor of an answer, and sentences about it without their subject. `close`:
    how far apart equal numbers may be, relative to the largest."""
    right = question.expected.tensors
    wrong = [
        name
        for name in question.axes
        if name in found and name in right and not _same(found[name], right[name], close)
    ]
    if not wrong:
        return "", []
    first = wrong[0]
    place = _place(first)
    said = [text] if (text := _where(first, place, found, wrong)) else []
    searches = _SEARCHES.setdefault(implementation, {})
    searches[question.function] = searches.get(question.function, 0) + 1
    if searches[question.function] <= SEARCHES:
        op = place.op if place and place.op not in ("add", "") else ""
        mistake = _mistake(question, found, first, op, close)
        said = [*([f"is what one gets if {mistake}"] if mistake else []), *said]
    return first, said


def _mistake(
    question: Question, found: Mapping[str, Array], first: str, op: str, close: float
) -> str | None:
    """The mistake whose answer has the first wrong tensor, and agrees in most of the others."""
    error = relative_error(found[first], question.expected.tensors[first])
    close = min(10 * close, 0.01 * error if np.isfinite(error) else 10 * close)
    ends, best, agreeing = time.monotonic() + SECONDS, None, 0
    for said, answer in mistakes(question.function, first, op):
        try:
            with np.errstate(all="ignore"):
                given = answer(question.problem)
        except Exception:  # a mistake that this problem does not allow
            continue
        if first in given and _same(found[first], given[first], close):
            agree = sum(n in given and _same(a, given[n], 1e-6) for n, a in found.items())
            if agree > agreeing:
                best, agreeing = said, agree
        if time.monotonic() > ends:
            break
    return best


def _same(got: Array, want: Array, close: float) -> bool:
    want = np.asarray(want)
    return got.shape == want.shape and relative_error(got, want) <= close


# ---- where


def _place(tensor: str) -> Place | None:
    """The operation that gives a tensor of a model, forward or backward, under the names in its
    block."""
    short = re.sub(r"^blocks\.\d+\.|\[\d+\]$", "", tensor)
    if short == "attn.pattern":
        return BLOCK["attn"]
    for name, place in BLOCK.items():
        if short == place.gives or short in place.dx or (place.op == "add" and short == name):
            return place
        if name == "attn.c_attn" and short in ("attn.q", "attn.k", "attn.v"):
            return place
    return None


def _where(
    first: str, place: Place | None, found: Mapping[str, Array], wrong: list[str]
) -> str | None:
    """That what enters the operation is right, if it was given."""
    block = re.match(r"blocks\.\d+\.", first)
    if place is None or block is None:
        return None
    backward = first.rpartition(".")[2].startswith("d")
    enters = [block[0] + n for n in ((place.dout,) if backward else place.takes)]
    if not all(n in found and n not in wrong for n in enters):
        return None
    names = ", ".join(enters)
    verb = "are" if len(enters) > 1 else "is"
    half = "backward" if backward else "forward"
    number = block[0].split(".")[1]
    return (
        f"is the first wrong one, and {names} {verb} right: look at the {half} of {place.name} "
        f"({place.op}) in block {number}"
    )
