"""Lesson 15's exercises: the inputs on which an answer is graded, and the usual mistakes."""

import numpy as np

from minprefix.lessons.exercise import Cases, Lazy, Rng, exercise
from minprefix.lessons.exercises.watched import watched
from minprefix.ops.contract import Array


@exercise
def tree_sum(rng: Rng) -> Cases:
    """Numbers that cancel almost: another order, or more digits, gives another sum altogether."""
    for n, threads in ((40, 4), (75, 2), (200, 8), (301, 64), (3, 4)):
        a = rng.normal(size=n) * 10 ** rng.uniform(-2, 6, n)
        row = np.concatenate([a, -rng.permutation(a)])
        yield row.astype(np.float32), threads


def _stream(rng: Rng, lengths: tuple[int, ...], NH: int, hs: int) -> tuple[Array, Array]:
    offsets = np.cumsum([0, *lengths])
    return rng.normal(size=(offsets[-1], NH, hs)), offsets


#: lengths, NH, hs: unlike lengths; one sequence; NH and T of one size
_STREAMS = (((3, 5, 2), 2, 4), ((4,), 3, 2), ((1, 3), 3, 2))


@exercise
def pad(rng: Rng) -> Cases:
    for of in _STREAMS:
        yield _stream(rng, *of)


@exercise
def unpad(rng: Rng) -> Cases:
    """The filling is not 0: rows behind the end are computed, too."""
    for lengths, NH, hs in _STREAMS:
        rectangle = rng.normal(size=(len(lengths), NH, max(lengths), hs))
        yield rectangle, np.cumsum([0, *lengths])


@exercise
def visible_columns(rng: Rng) -> Cases:
    yield [3, 5, 2], [2, 0, 4]
    yield [2, 2], [1, 3]
    yield [3], [0]


def _at_most(products: int, arrays: list[Array]) -> list[Array]:
    """The arrays, which refuse more products than these."""
    left = products

    def rule(name: str, result: Array, new: bool) -> None:
        nonlocal left
        left -= name == "matmul"
        if left < 0:
            raise Lazy(
                "computes a product for each sequence: fill the sequences up to one rectangle, so "
                f"that {products} products are enough for the whole batch"
            )

    return [watched(a, rule) for a in arrays]


@exercise
def padded_attention(rng: Rng) -> Cases:
    """Unlike lengths and prefixes; without slots; one sequence."""
    for lengths, slots in (((3, 5, 2), (2, 0, 4)), ((1, 3), (0, 0)), ((4,), (2,))):
        NH, hs = 2, 3
        offsets = np.cumsum([0, *lengths])
        arrays = [rng.normal(size=(offsets[-1], NH, hs)) for _ in range(3)]
        arrays += [rng.normal(size=(NH, n, hs)) for _ in range(2) for n in slots]
        q, k, v, *prefixes = _at_most(2, arrays)
        yield q, k, v, prefixes[: len(slots)], prefixes[len(slots) :], offsets


@exercise
def wasted(rng: Rng) -> Cases:
    yield [3, 5, 2], [2, 0, 4]
    yield [1, 1, 1, 1000], [0, 0, 0, 0]
    yield [int(n) for n in rng.integers(1, 60, 7)], [int(n) for n in rng.integers(0, 12, 7)]
