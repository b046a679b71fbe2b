"""A batch: a flat stream of tokens with boundaries. It has no padding and no mask."""

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from minprefix.errors import InputError, counted


@dataclass(frozen=True, eq=False)
class Batch:
    """B sequences joined end to end, and which of their tokens are to be predicted.

    Make one with `Batch.pack`. Row `rows[m]` of the stream predicts `targets[m]`, with `weights[m]`
    in the loss.
    """

    tokens: np.ndarray  # (N,) int64
    offsets: np.ndarray  # (B+1,) int64: sequence b is tokens[offsets[b]:offsets[b+1]]
    rows: np.ndarray  # (M,) int64, ascending, each at most once
    targets: np.ndarray  # (M,) int64
    weights: np.ndarray  # (M,) float64
    prefix: np.ndarray  # (B,) int64: which prefix of the list each sequence sees

    @classmethod
    def pack(
        cls,
        sequences: Sequence[Sequence[int] | np.ndarray],
        loss_from: int | Sequence[int] = 1,
        prefix: Sequence[int] | None = None,
        weights: Sequence[Sequence[float] | np.ndarray] | None = None,
    ) -> "Batch":
        """Join `sequences` of token ids.

        `loss_from`: per sequence (or one for all) the index of the first token to predict, 1 to T;
        nothing can predict token 0, and with T no token is predicted. `prefix`: per sequence an
        index into the list of prefixes; all 0 by default. `weights`: per sequence a weight for each
        predicted token, T - loss_from of them; 1 by default.

        Raises InputError for an empty batch or sequence, ids that are not whole non-negative
        numbers, and lists whose lengths do not fit.
        """
        if len(sequences) == 0:
            raise InputError("a batch needs at least one sequence, got none")
        seqs = [_token_ids(b, ids) for b, ids in enumerate(sequences)]
        lengths, B = [len(s) for s in seqs], len(seqs)
        starts = one_each(
            "loss_from", [loss_from] * B if np.ndim(loss_from) == 0 else loss_from, B, "sequence"
        )
        which = one_each("prefix", [0] * B if prefix is None else prefix, B, "sequence")
        for b, (start, T) in enumerate(zip(starts, lengths, strict=True)):
            if not 1 <= start <= T:
                raise InputError(
                    f"loss_from of sequence {b} is {start}: expected 1 to {T}, the index of the "
                    "first token to predict (token 0 has nothing before it)"
                )
        if min(which) < 0:
            raise InputError(f"prefix indices must be 0 or more, got {min(which)}")
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)  # (B+1,)
        rows = [
            np.arange(offsets[b] + starts[b] - 1, offsets[b + 1] - 1) for b in range(B)
        ]  # row i predicts token i + 1
        tokens, all_rows = np.concatenate(seqs), np.concatenate(rows)
        return cls(
            tokens=tokens,
            offsets=offsets,
            rows=all_rows,
            targets=tokens[all_rows + 1],
            weights=_target_weights(weights, [len(r) for r in rows]),
            prefix=np.asarray(which, dtype=np.int64),
        )

    @property
    def lengths(self) -> np.ndarray:
        """(B,) the length T of each sequence."""
        return np.diff(self.offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __repr__(self) -> str:
        prefixes = sorted({int(i) for i in self.prefix})
        return (
            f"Batch({counted(len(self), 'sequence')}, {counted(len(self.tokens), 'token')}, "
            f"{counted(len(self.targets), 'target')}, prefixes {prefixes}, {self.tokens.dtype}, "
            "cpu)"
        )

    def _repr_html_(self) -> str:
        from minprefix.show import notebook

        return notebook.batch(self)


def one_each(name: str, values: Any, n: int, noun: str) -> list[int]:
    """Whole numbers, one for each of n things. Raises InputError."""
    try:
        found = [operator.index(value) for value in values]
    except TypeError as error:
        raise InputError(f"{name} is {values!r}: expected whole numbers") from error
    if len(found) != n:
        raise InputError(
            f"{name} has {counted(len(found), 'entry', 'entries')} for {counted(n, noun)}: "
            "give one each"
        )
    return found


def _target_weights(
    weights: Sequence[Sequence[float] | np.ndarray] | None, counts: list[int]
) -> np.ndarray:
    """(M,): the weight of every target, of which each sequence has so many."""
    if weights is None:
        return np.ones(sum(counts))
    given = [np.asarray(w, dtype=np.float64) for w in weights]
    if not all((w >= 0).all() and np.isfinite(w).all() for w in given):
        raise InputError("weights hold a negative number, NaN or infinity: expected 0 or more")
    if [len(w) for w in given] != counts:
        raise InputError(
            f"weights have lengths {[len(w) for w in given]}: expected one for each predicted "
            f"token, {counts}"
        )
    return np.concatenate(given)


def _token_ids(b: int, ids: Sequence[int] | np.ndarray) -> np.ndarray:
    if isinstance(ids, str):
        raise InputError(f"sequence {b} is text: encode it to token ids first (model.tokenizer)")
    try:
        array = np.asarray(ids)
    except ValueError as error:
        raise InputError(f"sequence {b} is not a flat list of token ids: {ids!r:.60}") from error
    if array.ndim != 1 or array.size == 0:
        raise InputError(
            f"sequence {b} has shape {array.shape}: expected a flat list of at least one token id"
        )
    if array.dtype.kind not in "iu" or array.min() < 0 or array.max() >= 2**63:
        raise InputError(
            f"sequence {b} holds {array.dtype} {array[:4]}...: expected token ids from 0"
        )
    return array.astype(np.int64)
