"""Why the answer of a whole model, of decoding or of training is wrong: where the first wrong
tensor stands, and the mistake that leads to the same numbers."""

import re
import time
from collections.abc import Mapping
from weakref import WeakKeyDictionary

import numpy as np

from minprefix.conformance.diagnosis import relative_error
from minprefix.conformance.fitting import explain
from minprefix.conformance.implementation import Implementation
from minprefix.conformance.problems import Question
from minprefix.conformance.reasons.local import Local
from minprefix.conformance.reasons.mistakes import mistakes
from minprefix.ops.contract import Array
from minprefix.trace.wiring import BLOCK, Place

#: a search ends after so many seconds; each function has so many
SECONDS, SEARCHES = 5.0, 2

#: a mistake explains at least this part of an answer's tensors
AGREE = 0.95

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
    enters = _enters(first, place) if place else []
    # where nothing wrong enters an operation, it is to blame
    op = place.op if place and all(n in found and n not in wrong for n in enters) else ""
    said = [text] if place and op and (text := _where(first, place, enters)) else []
    searches = _SEARCHES.setdefault(implementation, {})
    searches[question.function] = searches.get(question.function, 0) + 1

    def mistake() -> str | None:
        if searches[question.function] > SEARCHES:
            return None
        return _mistake(question, found, first, op, close)

    def local() -> str | None:
        return _local(question, found[first], first, close)

    # what an attention sees is mostly decided elsewhere
    order = (mistake, local) if op == "attention" else (local, mistake)
    reason = next((text for each in order if (text := each())), None)
    return first, [reason, *said] if reason else said


def _local(question: Question, got: Array, first: str, close: float) -> str | None:
    want = question.expected.tensors[first]
    error = relative_error(got, want) if got.shape == want.shape else np.inf
    if error == np.inf:
        return None
    said = Local(question, first).reason(got, min(10 * close, 0.01 * error))
    return said or _other_terms(question, first, got)


def _mistake(
    question: Question, found: Mapping[str, Array], first: str, op: str, close: float
) -> str | None:
    """The mistake whose answer has the first wrong tensor, and most of the others."""
    want, close = question.expected.tensors[first], 10 * close
    if found[first].shape == want.shape and (error := relative_error(found[first], want)) < np.inf:
        close = min(close, 0.01 * error)
    forward = [n for n in found if not _is_gradient(n)]
    compared = list(found) if _is_gradient(first) else forward
    ends, best, agreeing = time.monotonic() + SECONDS, None, AGREE * len(compared)
    for said, answer in mistakes(question.function, first, op):
        try:
            with np.errstate(all="ignore"):
                given = answer(question.problem)
        except Exception:  # a mistake that this problem does not allow
            continue
        if first in given and _same(found[first], given[first], close):
            agree = sum(n in given and _same(found[n], given[n], 1e-6) for n in compared)
            if agree > agreeing:
                best, agreeing = said, agree
        if (best and agreeing == len(compared)) or time.monotonic() > ends:
            break
    return best and f"is what one gets if {best}"


def _is_gradient(tensor: str) -> bool:
    return tensor.startswith(("prefix.", "d")) or tensor.rpartition(".")[2].startswith("d")


def _same(got: Array, want: Array, close: float) -> bool:
    want = np.asarray(want)
    # one NaN is like another: a mistake that gives nothing else explains nothing
    says = got.size == 0 or bool(np.isfinite(got).any())
    return says and got.shape == want.shape and relative_error(got, want) <= close


# ---- what it is made of


def _other_terms(question: Question, first: str, got: Array) -> str | None:
    """The first wrong tensor as a sum of others of its block, of which one is missing or too
    many."""
    right, want = question.expected.tensors, question.expected.tensors[first]
    near = [name for name in right if name != first and _beside(name, first)]
    terms = {name: np.asarray(right[name]) for name in near if right[name].shape == want.shape}
    found = explain(got, want, terms, question.axes[first].split())
    return found[0] if found else None


def _beside(name: str, first: str) -> bool:
    """Of the same block or of one next to it, or above the blocks."""
    ours, other = (re.match(r"blocks\.(\d+)\.", each) for each in (first, name))
    if ours is None or other is None:
        return "prefix." not in name and not name.startswith("d")
    return abs(int(ours[1]) - int(other[1])) <= 1


# ---- where


def _top(name: str, op: str, *takes: str) -> Place:
    return Place(name, op, takes, "", "", ())


#: what is no block's
TOP = {
    "blocks.0.resid_pre": _top("embed", "embed"),
    "ln_f.out": _top("ln_f", "layernorm", "ln_f.in"),
    "logits": _top("head", "linear", "ln_f.out"),
    "loss": _top("loss", "cross_entropy", "logits"),
    "dlogits": _top("loss", "cross_entropy", "logits"),
}
TOPS = {place.name for place in TOP.values()}


def _place(tensor: str) -> Place | None:
    """The operation that gives a tensor of a model, forward or backward, under the names in its
    block."""
    short = re.sub(r"^blocks\.\d+\.|\[\d+\]$", "", tensor)
    if tensor in TOP:
        return TOP[tensor]
    if short == "attn.pattern":
        return BLOCK["attn"]
    for name, place in BLOCK.items():
        if short == place.gives or short in place.dx or (place.op == "add" and short == name):
            return place
        if name == "attn.c_attn" and short in ("attn.q", "attn.k", "attn.v"):
            return place
    return None


def _enters(first: str, place: Place) -> list[str]:
    """The tensors that the operation is given, forward or backward."""
    block = re.match(r"blocks\.\d+\.", first)
    dout = ("attn.dq", "attn.dk", "attn.dv") if place.dout == "attn.dqkv" else (place.dout,)
    names = dout if block and _is_gradient(first) else place.takes
    return [(block[0] if block and place.name not in TOPS else "") + name for name in names]


def _where(first: str, place: Place, enters: list[str]) -> str | None:
    """That what enters the operation is right."""
    block = re.match(r"blocks\.(\d+)\.", first)
    if not enters:
        return None
    verb = "are" if len(enters) > 1 else "is"
    half = "backward" if _is_gradient(first) else "forward"
    of_block = f" in block {block[1]}" if block else ""
    return (
        f"is the first wrong one, and {', '.join(enters)} {verb} right: look at the {half} of "
        f"{place.name} ({place.op}){of_block}"
    )
