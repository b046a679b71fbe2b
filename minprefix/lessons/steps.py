"""The steps of an exercise's function: one that has an argument `record` tells them by their names,
`record("dscores", dscores)`, and the first wrong one is named."""

from collections.abc import Callable
from typing import Any

import numpy as np

from minprefix.gradcheck.steps import grade_steps, steps_of
from minprefix.ops import reference
from minprefix.ops.contract import Array, AttentionCache

Record = Callable[[str, Array], Array]

#: function -> its steps, in their order, and their axes; a step is told once for each sequence
STEPS: dict[str, dict[str, str]] = {
    "attention": {"scores": "NH T P+T", "pattern": "NH T P+T", "z": "T NH hs"},
    "attention_backward": {
        "dvalues": "NH P+T hs",
        "dpattern": "NH T P+T",
        "row_sum": "NH T 1",
        "dscores": "NH T P+T",
        "dkeys": "NH P+T hs",
        "dq": "NH T hs",
    },
}

HS = 5  # its root is no size of the case


def _stream() -> tuple[Any, ...]:
    """q, k, v (N, NH, hs) of two sequences, their prefixes (NH, P, hs), and offsets."""
    rng = np.random.default_rng(5)
    q, k, v = (rng.normal(size=(7, 2, HS)) for _ in "qkv")
    prefix_k, prefix_v = ([rng.normal(size=(2, P, HS)) for P in (3, 1)] for _ in "kv")
    return q, k, v, prefix_k, prefix_v, np.array([0, 4, 7])


def _backward_inputs() -> tuple[Array, AttentionCache]:
    z, cache = reference.attention(*_stream())
    return np.random.default_rng(6).normal(size=z.shape), cache


def attention(
    q: Array, k: Array, v: Array, prefix_k: Any, prefix_v: Any, offsets: Array, record: Record
) -> None:
    for b in range(len(offsets) - 1):
        rows = slice(offsets[b], offsets[b + 1])
        q_b, k_b, v_b = (a[rows].swapaxes(0, 1) for a in (q, k, v))  # (NH, T, hs) each
        keys = np.concatenate([prefix_k[b], k_b], axis=1)  # (NH, P+T, hs)
        values = np.concatenate([prefix_v[b], v_b], axis=1)  # (NH, P+T, hs)
        T, P = q_b.shape[1], prefix_k[b].shape[1]
        scores = record("scores", q_b @ keys.swapaxes(1, 2) / HS**0.5)
        shown = np.where(reference.visible(T, P), scores, -np.inf)
        pattern = record("pattern", reference.softmax(shown))
        record("z", (pattern @ values).swapaxes(0, 1))


def attention_backward(dz: Array, cache: AttentionCache, record: Record) -> None:
    for b, pattern in enumerate(cache.pattern):
        rows = slice(cache.offsets[b], cache.offsets[b + 1])
        q, k, v, dz_b = (a[rows].swapaxes(0, 1) for a in (cache.q, cache.k, cache.v, dz))
        keys = np.concatenate([cache.prefix_k[b], k], axis=1)  # (NH, P+T, hs)
        values = np.concatenate([cache.prefix_v[b], v], axis=1)  # (NH, P+T, hs)
        record("dvalues", pattern.swapaxes(1, 2) @ dz_b)
        dpattern = record("dpattern", dz_b @ values.swapaxes(1, 2))
        row_sum = record("row_sum", (dpattern * pattern).sum(axis=2, keepdims=True))
        dscores = record("dscores", pattern * (dpattern - row_sum))
        record("dkeys", dscores.swapaxes(1, 2) @ q / HS**0.5)
        record("dq", dscores @ keys / HS**0.5)


#: function -> the right one, and what both are called with
RIGHT: dict[str, tuple[Callable[..., None], Callable[[], Any]]] = {
    "attention": (attention, _stream),
    "attention_backward": (attention_backward, _backward_inputs),
}


def said(function: Callable[..., Any]) -> str:
    """What there is to say of the steps that the function tells."""
    name = function.__name__
    if name not in RIGHT:
        return f"{name} has an argument record, but only {' and '.join(RIGHT)} have known steps"
    right, inputs = RIGHT[name]
    expected = steps_of(right, inputs())
    told = {f"{step}[{b}]": axes for step, axes in STEPS[name].items() for b in (0, 1)}
    report = grade_steps(function, inputs(), expected, told, {"hs": HS})
    report.name = f"{name}, step by step"
    if report:
        return f"{report.name}: all {len(report.errors)} steps that it tells are right"
    return str(report)
