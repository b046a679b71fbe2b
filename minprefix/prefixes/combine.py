"""One prefix made of others: one after the other, averaged, between two, or with fewer slots.

None of this is in the paper. A prefix was trained as a whole, and the effect of a mixture has to be
measured, so each function warns once that it is an experiment.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from minprefix import ops as _ops
from minprefix.batch import Batch
from minprefix.errors import InputError, Note, counted, note
from minprefix.gpt2 import embedding, forward
from minprefix.model import GPT2, prepare
from minprefix.prefix import Prefix


class Experiment(Note):
    """The warning that nothing is known of a combined prefix before it is measured."""


def _warn(what: str) -> None:
    note(f"{what} is an experiment: measure what it does", Experiment)


def concatenate(prefixes: Sequence[Prefix]) -> Prefix:
    """All slots of all prefixes, in this order: (layers, 2, NH, P1 + P2 + ..., hs).

    Under the usual rule, tokens start after all the slots; prefixes with `position_offset=0` keep
    that. Raises InputError for prefixes of different models, layers or
    position rules.
    """
    _check_fit(prefixes, "concatenate", lengths=False)
    usual = all(p.position_offset == p.length for p in prefixes)
    offsets = {p.position_offset for p in prefixes}
    if not usual and len(offsets) > 1:
        raise InputError(
            f"cannot concatenate prefixes whose tokens start at positions {sorted(offsets)}: "
            "expected one position for all, or each with its tokens after its own slots"
        )
    _warn("concatenating prefixes")
    kv = np.concatenate([p.to("numpy").kv for p in prefixes], axis=3)
    layers = prefixes[0].layers if prefixes[0].subset else None
    return Prefix(kv, layers, None if usual else offsets.pop())


def average(prefixes: Sequence[Prefix], weights: Sequence[float] | None = None) -> Prefix:
    """The mean of keys and of values, slot by slot; `weights` are divided by their sum. Raises
    InputError for prefixes that differ in more than their numbers."""
    _check_fit(prefixes, "average", lengths=True)
    given = [1.0] * len(prefixes) if weights is None else list(weights)
    if len(given) != len(prefixes):
        raise InputError(
            f"{counted(len(given), 'weight')} for {counted(len(prefixes), 'prefix', 'prefixes')}: "
            "give one each"
        )
    total = sum(given)
    if not np.isfinite([*given, total]).all() or abs(total) < 1e-12:
        raise InputError(
            f"weights are {given}: expected finite numbers with a finite sum that is not 0"
        )
    _warn("averaging prefixes")
    mean = sum(
        w / total * p.to("numpy").kv.astype(np.result_type(p.kv.dtype, np.float64))
        for w, p in zip(given, prefixes, strict=True)
    )
    return prefixes[0].like(np.asarray(mean).astype(prefixes[0].kv.dtype))


def interpolate(a: Prefix, b: Prefix, t: float) -> Prefix:
    """(1 - t) a + t b: a at t = 0, b at t = 1, and the straight line beyond."""
    return average([a, b], [1 - t, t])


def _check_fit(prefixes: Sequence[Prefix], verb: str, lengths: bool) -> None:
    if not prefixes:
        raise InputError(f"there is no prefix to {verb}: give at least one")
    first = prefixes[0]
    for p in prefixes[1:]:
        shapes = [(*q.kv.shape[:3], q.kv.shape[4]) for q in (first, p)]
        same = shapes[0] == shapes[1] and first.layers == p.layers
        if lengths:
            same &= first.kv.shape == p.kv.shape and first.position_offset == p.position_offset
        if not same:
            raise InputError(f"cannot {verb} {first} and {p}: their shapes differ")


# ---- pruning ----------------------------------------------------------------------------------


def slot_attention(model: GPT2, prefix: Prefix, batch: Batch) -> np.ndarray:
    """-> (layers, NH, P): the share of the softmax that each slot draws, averaged over the tokens
    of the batch.

    Summed over the slots it is the mean of λ in `(1 - λ) Attn + λ softmax(q · P_k) P_v` (He et
    al., 2022, "Towards a Unified View of Parameter-Efficient Transfer Learning", section 3.1).
    """
    model, prefix = model.to("numpy"), prefix.to("numpy")
    reference = _ops.get("reference")
    stream, w = prepare(model, batch, prefix), model.weights
    _, blocks = forward(embedding(stream, w, reference), stream, w, model.config, reference)
    shares = np.zeros((len(prefix.layers), model.config.n_head, prefix.length))
    for j, layer in enumerate(prefix.layers):
        attention: Any = blocks[layer].attn.attention  # the reference's has the patterns
        for pattern in attention.pattern:  # (NH, T, P+T) of one sequence
            shares[j] += pattern[:, :, : prefix.length].real.sum(axis=1)  # (NH, P)
    return shares / len(batch.tokens)


def prune(prefix: Prefix, shares: np.ndarray, keep: int) -> Prefix:
    """The `keep` slots that draw most attention, all layers and heads together, in their order;
    `shares` from `slot_attention`. Tokens keep their positions, so PEFT cannot express the result.
    Raises InputError if `keep` is not 0 to P."""
    if not 0 <= keep <= prefix.length:
        raise InputError(f"keep is {keep}: expected 0 to {prefix.length}, the number of slots")
    if shares.shape != (len(prefix.layers), prefix.kv.shape[2], prefix.length):
        raise InputError(f"shares have shape {shares.shape}: they belong to another prefix")
    _warn("leaving out slots")
    total = shares.sum(axis=(0, 1))  # (P,)
    slots = np.sort(np.argsort(-total, kind="stable")[:keep])
    kv = prefix.to("numpy").kv[:, :, :, slots]
    return prefix.like(np.ascontiguousarray(kv))
