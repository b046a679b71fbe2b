"""Lesson 5's exercises: the inputs on which an answer is graded, and the usual mistakes."""

import numpy as np

from minprefix.lessons.exercise import Cases, Rng, exercise
from minprefix.ops import reference
from minprefix.ops.contract import Array

# T, P, hs: more slots than tokens and fewer, one token, no slots; hs is no square of another size
SIZES = ((5, 3, 4), (2, 6, 3), (1, 2, 5), (4, 0, 7))


def _patterns(rng: Rng, T: int, P: int) -> np.ndarray:
    """Shares (T, P+T) that sum to 1 in each row, with the tokens in the future hidden."""
    scores = rng.normal(size=(T, P + T))
    scores[np.arange(P + T)[None, :] > np.arange(T)[:, None] + P] = -np.inf
    e = np.exp(scores)
    return e / e.sum(axis=1, keepdims=True)


def _head(rng: Rng, T: int, P: int, hs: int) -> tuple[np.ndarray, ...]:
    """q, k, v (T, hs) and prefix_k, prefix_v (P, hs)."""
    return (*rng.normal(size=(3, T, hs)), *rng.normal(size=(2, P, hs)))


@exercise
def visible(rng: Rng) -> Cases:
    """More slots than tokens and fewer, one token, no slots."""
    for T, P, _ in SIZES:
        yield T, P


@exercise
def head_with_slots(rng: Rng) -> Cases:
    """More slots than tokens and fewer, one token, no slots."""
    for T, P, hs in SIZES:
        yield _head(rng, T, P, hs)


@exercise
def values_backward(rng: Rng) -> Cases:
    """More slots than tokens and fewer, one token, no slots."""
    for T, P, hs in SIZES:
        yield rng.normal(size=(T, hs)), _patterns(rng, T, P), P


@exercise
def scores_backward(rng: Rng) -> Cases:
    """More slots than tokens and fewer, one token, no slots."""
    for T, P, hs in SIZES:
        yield rng.normal(size=(T, hs)), rng.normal(size=(P + T, hs)), _patterns(rng, T, P)


@exercise
def keys_backward(rng: Rng) -> Cases:
    """More slots than tokens and fewer, one token, no slots. dscores is free: no row sums to 0."""
    for T, P, hs in SIZES:
        q, keys = rng.normal(size=(T, hs)), rng.normal(size=(P + T, hs))
        yield rng.normal(size=(T, P + T)), q, keys, P


@exercise
def backward_with_slots(rng: Rng) -> Cases:
    """More slots than tokens and fewer, one token, no slots."""
    for T, P, hs in SIZES:
        yield rng.normal(size=(T, hs)), *_head(rng, T, P, hs)


@exercise
def attention_backward(rng: Rng) -> Cases:
    """One sequence, so that an answer that stops in it has its steps; sequences and prefixes of
    unlike lengths; one sequence of one token; no slots; so many heads that a function called for
    each of them is called too often."""
    for NH, hs, lengths, slots in (
        (2, 5, (4,), (3,)),
        (2, 5, (3, 1, 4), (2, 3, 1)),
        (3, 2, (1,), (4,)),
        (2, 3, (4,), (0,)),
        (12, 2, (2,), (1,)),
    ):
        N = sum(lengths)
        q, k, v, dz = rng.normal(size=(4, N, NH, hs))
        prefix_k, prefix_v = ([rng.normal(size=(NH, P, hs)) for P in slots] for _ in range(2))
        offsets = np.cumsum([0, *lengths])
        yield dz, reference.attention(q, k, v, prefix_k, prefix_v, offsets)[1]


@exercise
def check_keys_law(rng: Rng) -> Cases:
    """Where the law holds, exactly and but for rounding, and where it fails: everywhere, below 0
    alone, so that all entries together cancel, and in one entry. Powers of 2, so that no order of
    adding rounds."""
    for T, P, hs in SIZES:
        right = rng.integers(-8, 9, (P + T, hs)).astype(float)
        right[-1] -= right.sum(axis=0)
        rounded, cancels, one = right.copy(), right.copy(), right.copy()
        rounded[0, -1] += 2**-42
        cancels[0, :2] += 1, -1
        one[-1, -1] += 2**-30
        for dkeys in (right + 1, right, rounded, right - 1, cancels, one):
            yield dkeys[:P], dkeys[P:]


@exercise
def slot_step(rng: Rng) -> Cases:
    """Several sizes and rates; another backward."""
    for (T, P, hs), rate in zip(SIZES[:3], (0.3, 0.05, 1.0), strict=True):
        yield *_head(rng, T, P, hs), rng.normal(size=(T, hs)), rate
    yield *_head(rng, 4, 2, 3), rng.normal(size=(4, 3)), 0.5, of_another_function


def of_another_function(dz: Array, *inputs: Array) -> tuple[Array, ...]:
    """Five arrays of the right shapes, and no gradients."""
    return tuple(a * (1 + dz.mean()) for a in inputs)
