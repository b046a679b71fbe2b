"""Lesson 10's exercises: the inputs on which an answer is graded, and the usual mistakes."""

import numpy as np

from minprefix.lessons.exercise import Cases, Rng, exercise

# T, P, hs: more slots than tokens and fewer, one token
SIZES = ((5, 3, 4), (2, 6, 3), (1, 2, 5))


def _pattern(rng: Rng, T: int, P: int, heads: tuple[int, ...] = ()) -> np.ndarray:
    """Shares (..., T, P+T) that sum to 1 in each row, with the tokens in the future hidden."""
    scores = rng.normal(size=(*heads, T, P + T))
    hidden = np.arange(P + T)[None, :] > np.arange(T)[:, None] + P
    e = np.where(hidden, 0, np.exp(scores))
    shares: np.ndarray = e / e.sum(axis=-1, keepdims=True)
    return shares


@exercise
def slots_share(rng: Rng) -> Cases:
    """One head, several heads, no slots."""
    for T, P, _ in SIZES:
        yield _pattern(rng, T, P), P
    yield _pattern(rng, 4, 2, (3,)), 2
    yield _pattern(rng, 4, 0), 0


@exercise
def blend_parts(rng: Rng) -> Cases:
    for T, P, hs in SIZES:
        yield (*rng.normal(size=(3, T, hs)), *rng.normal(size=(2, P, hs)))


@exercise
def relative_attention(rng: Rng) -> Cases:
    """As many slots as tokens; more heads than one; no slots."""
    yield _pattern(rng, 3, 3), 3
    yield _pattern(rng, 5, 2), 2
    yield _pattern(rng, 4, 3, (2,)), 3
    yield _pattern(rng, 4, 0), 0


@exercise
def moved_by_value(rng: Rng) -> Cases:
    """As many rows as columns do not occur; slots in the middle, the first, the last."""
    for T, P, j, hs in ((4, 3, 1, 5), (5, 2, 0, 3), (3, 6, 5, 2)):
        yield _pattern(rng, T, P), j, rng.normal(size=hs)


@exercise
def add_prefix(rng: Rng) -> Cases:
    """Lengths and numbers of slots that differ, no slots, one token; scores of a thousand."""
    for lengths, slots, NH, hs, size in (
        ((4, 3, 2), (3, 0, 5), 2, 4, 1.0),
        ((1, 5), (1, 2), 3, 3, 1.0),
        ((3, 4), (2, 3), 2, 5, 60.0),
    ):
        N = sum(lengths)
        frozen, q = rng.normal(size=(2, N, NH, hs))
        keys = [size * rng.normal(size=(NH, P, hs)) for P in slots]
        values = [rng.normal(size=(NH, P, hs)) for P in slots]
        log_b = rng.normal(0, size, (N, NH, 1)) * size
        yield frozen, log_b, size * q, keys, values, np.cumsum([0, *lengths])


@exercise
def order_gap(rng: Rng) -> Cases:
    """Both orders alike; one entry off; texts in an arbitrary order."""
    for D, off in ((3, 0.0), (4, 0.3), (4, 2.0), (5, 1e-6)):
        texts = [(a, b) for a in range(D) for b in range(D) if a != b]
        texts = [texts[i] for i in rng.permutation(len(texts))]
        of_pair = rng.normal(size=(D, D, D))
        logits = np.array([of_pair[min(text), max(text)] for text in texts])
        logits[1, 2] += off
        yield logits, texts


@exercise
def least_loss(rng: Rng) -> Cases:
    """Groups of unlike sizes, one target for all, targets that repeat in a group."""
    yield np.array([0, 0, 0, 1, 1]), np.array([0, 0, 2, 1, 3])
    yield np.array([5, 5, 7, 7]), np.array([1, 2, 2, 1])
    yield np.array([0, 1, 2]), np.array([4, 4, 4])
    for _ in range(2):
        yield rng.integers(0, 4, 20), rng.integers(0, 5, 20)
