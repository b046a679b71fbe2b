"""Lesson 4's exercises: the inputs on which an answer is graded, and the usual mistakes."""

import numpy as np

from minprefix.lessons.exercise import Cases, Rng, exercise

# T, hs: no size is the root of another
SIZES = ((5, 3), (2, 6), (3, 2))
# NH, hs, the lengths of the sequences: one first, so that an answer that stops in it has its steps
STREAMS = ((2, 5, (4,)), (2, 3, (5, 1, 4)), (4, 2, (2, 3)), (1, 5, (3,)))


@exercise
def causal_mask(rng: Rng) -> Cases:
    """Several lengths."""
    for T in (4, 1, 7):
        yield (T,)


@exercise
def attention_scores(rng: Rng) -> Cases:
    """Several sizes."""
    for T, hs in SIZES:
        yield tuple(rng.normal(size=(2, T, hs)))


@exercise
def head(rng: Rng) -> Cases:
    """Several sizes."""
    for T, hs in SIZES:
        yield tuple(rng.normal(size=(3, T, hs)))


@exercise
def head_backward(rng: Rng) -> Cases:
    """Several sizes."""
    for T, hs in SIZES:
        yield tuple(rng.normal(size=(4, T, hs)))


@exercise
def check_laws(rng: Rng) -> Cases:
    """Where both laws hold, exactly and but for rounding, and where one fails: everywhere, below 0
    alone, so that all entries cancel, in one entry. Powers of 2, so that no order of adding
    rounds."""
    for T, hs in SIZES:
        dk, dv, dz = rng.integers(-8, 9, (3, T, hs)).astype(float)
        dk[-1] -= dk.sum(axis=0)
        dv[-1] += dz.sum(axis=0) - dv.sum(axis=0)
        cancels, one, rounded = np.zeros((3, T, hs))
        cancels[0, :2] += 1, -1
        one[-1, -1] += 2**-30
        rounded[0, -1] -= 2**-42
        for off in (cancels, one, rounded, 0 * dk + 1, 0 * dk - 1):
            yield dk + off, dv, dz
            yield dk, dv + off, dz
        yield dk, dv, dz


@exercise
def split_heads(rng: Rng) -> Cases:
    """Several sizes, and one head."""
    for T, NH, hs in ((3, 2, 4), (4, 3, 2), (2, 1, 5)):
        yield rng.normal(size=(T, NH * hs)), NH


@exercise
def merge_heads(rng: Rng) -> Cases:
    """Several sizes, and one head."""
    for NH, T, hs in ((2, 3, 4), (3, 4, 2), (1, 2, 5)):
        yield (rng.normal(size=(NH, T, hs)),)


def _streams(rng: Rng, n: int) -> Cases:
    """n streams (N, NH, hs) and their offsets."""
    for NH, hs, lengths in STREAMS:
        yield *rng.normal(size=(n, sum(lengths), NH, hs)), np.cumsum([0, *lengths])


@exercise
def attend(rng: Rng) -> Cases:
    """One sequence; three, one of a single token; two; one head."""
    yield from _streams(rng, 3)


@exercise
def attend_backward(rng: Rng) -> Cases:
    """One sequence; three, one of a single token; two; one head."""
    yield from _streams(rng, 4)


@exercise
def attention(rng: Rng) -> Cases:
    """One sequence; sequences and prefixes of unlike lengths; one head; no prefix."""
    for (NH, hs, lengths), slots in zip(STREAMS, ((3,), (3, 1, 2), (0, 4), (0,)), strict=True):
        q, k, v = rng.normal(size=(3, sum(lengths), NH, hs))
        prefix_k, prefix_v = ([rng.normal(size=(NH, P, hs)) for P in slots] for _ in range(2))
        yield q, k, v, prefix_k, prefix_v, np.cumsum([0, *lengths])
