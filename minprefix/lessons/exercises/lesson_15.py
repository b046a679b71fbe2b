"""Lesson 15's exercises: the inputs on which an answer is graded, and the usual mistakes."""

import numpy as np

from minprefix.lessons.exercise import Cases, Lazy, Rng, exercise
from minprefix.lessons.exercises.watched import watched
from minprefix.ops.contract import Array


@exercise(
    (
        "part[:half] + part[half:]",
        "part[::2] + part[1::2]",
        "Neighbours are added: thread t adds the sum of thread t + half, not that of t + 1.",
    ),
    (
        "    part = np.zeros(threads, row.dtype)  # a sum for each thread\n"
        "    for start in range(0, len(row), threads):\n"
        "        piece = row[start : start + threads]\n"
        "        part[: len(piece)] += piece\n",
        "    part = np.array([row[t::threads].copy().sum() for t in range(threads)])\n",
        "NumPy's sum adds in an order of its own: add the numbers of a thread one after the other.",
    ),
    (
        "np.zeros(threads, row.dtype)",
        "np.zeros(threads)",
        "The sums are float64: keep the row's own precision, row.dtype.",
    ),
    (
        "    for start in range(0, len(row), threads):\n"
        "        piece = row[start : start + threads]\n",
        "    for start in range(-(-len(row) // threads)):\n"
        "        piece = row[start :: -(-len(row) // threads)]\n",
        "A thread takes neighbours: thread t takes every threads-th number, from the one at t on.",
    ),
)
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


@exercise(
    (
        "stream[offsets[b] : offsets[b + 1]]",
        "stream[:n]",
        "Every row begins with the first sequence's tokens: those of b begin at offsets[b].",
    ),
    (
        "rectangle[b, :, :n]",
        "rectangle[b, :, rectangle.shape[2] - n :]",
        "The filling stands in front: the tokens come first, from row 0 on.",
    ),
    (
        "stream[offsets[b] : offsets[b + 1]].swapaxes(0, 1)",
        "stream[offsets[b] : offsets[b + 1]].reshape(NH, n, hs)",
        "A reshape mixes tokens and heads: it keeps the order of the numbers. Swap the axes.",
    ),
)
def pad(rng: Rng) -> Cases:
    for of in _STREAMS:
        yield _stream(rng, *of)


@exercise(
    (
        "rectangle[b, :, :n].swapaxes(0, 1)",
        "rectangle[b].swapaxes(0, 1)",
        "The filling is still there: take the first n tokens of each sequence.",
    ),
    (
        "rectangle[b, :, :n]",
        "rectangle[b, :, offsets[b] : offsets[b + 1]]",
        "The offsets count in the stream: in the rectangle every sequence begins at 0.",
    ),
    (
        "rectangle[b, :, :n].swapaxes(0, 1)",
        "rectangle[b, :, :n].reshape(n, *rectangle.shape[1::2])",
        "A reshape mixes tokens and heads: it keeps the order of the numbers. Swap the axes.",
    ),
)
def unpad(rng: Rng) -> Cases:
    """The filling is not 0: rows behind the end are computed, too."""
    for lengths, NH, hs in _STREAMS:
        rectangle = rng.normal(size=(len(lengths), NH, max(lengths), hs))
        yield rectangle, np.cumsum([0, *lengths])


@exercise(
    (
        "j <= P + i",
        "j <= i",
        "The mask begins at the wrong corner: token i stands in column P + i.",
    ),
    ("j <= P + i", "j < P + i", "A token does not see itself: row i sees column P + i, too."),
    (
        "(j >= P) & (j <= P + i)",
        "j <= P + i",
        "The filling of the short prefixes is seen: a column left of P is a slot, so whether it is "
        "seen depends on slots alone.",
    ),
    (
        "held | causal",
        "causal",
        "Nobody sees the slots: row i sees a column that is a slot of its sequence, too.",
    ),
    (
        "held = j < np",
        "held = j <= np",
        "One column too many is a slot: the slots of sequence b are the columns 0 to P_b - 1.",
    ),
    (
        "return held | causal",
        "return j <= np.array(slots)[:, None, None] + i",
        "The tokens begin at the sequence's own P_b: in the rectangle they begin in column P, for "
        "every sequence.",
    ),
    (
        "return held | causal",
        "return (held | causal) & (i < np.array(lengths)[:, None, None])",
        "The rows behind the end of a sequence see nothing: leave them as the two cases say. A row "
        "that sees no column has no softmax, only NaN.",
    ),
)
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


@exercise(
    (
        "np.where(seen, scores, -np.inf)",
        "scores",
        "The mask is missing: the future and the filling have to have a score of -inf.",
    ),
    (
        "np.where(seen, scores, -np.inf)",
        "np.where(seen, scores, 0)",
        "A hidden score is 0, and exp(0) = 1 is a share like any other: it has to be -inf.",
    ),
    (
        "reference.softmax(np.where(seen, scores, -np.inf))",
        "np.where(seen, reference.softmax(scores), 0)",
        "The mask comes after the softmax, so the rows no longer sum to 1: hide the scores first, "
        "with -inf.",
    ),
    (" / q.shape[-1] ** 0.5", "", "The division by sqrt(hs) is missing in the scores."),
    (
        "visible_columns(lengths, slots)[:, None]",
        "visible_columns(lengths, [max(slots)] * len(slots))[:, None]",
        "The filling of the short prefixes is seen: a slot of zeros has a share of the softmax.",
    ),
)
def padded_attention(rng: Rng) -> Cases:
    """Unlike lengths and prefixes; without slots; one sequence."""
    for lengths, slots in (((3, 5, 2), (2, 0, 4)), ((1, 3), (0, 0)), ((4,), (2,))):
        NH, hs = 2, 3
        offsets = np.cumsum([0, *lengths])
        arrays = [rng.normal(size=(offsets[-1], NH, hs)) for _ in range(3)]
        arrays += [rng.normal(size=(NH, n, hs)) for _ in range(2) for n in slots]
        q, k, v, *prefixes = _at_most(2, arrays)
        yield q, k, v, prefixes[: len(slots)], prefixes[len(slots) :], offsets


@exercise(
    ("T * (P + T)", "T * T", "The slots are missing: each query meets P + T keys."),
    (
        "n * (own + n) for n, own in zip(lengths, slots, strict=True)",
        "n * (P + n) for n in lengths",
        "The filling of the short prefixes is counted as needed: sequence b has its own P_b slots.",
    ),
    (
        "1 - needed / computed",
        "computed - needed",
        "This is how many scores are wasted: divide by those that are computed.",
    ),
    (
        "1 - needed / computed",
        "computed / needed - 1",
        "The waste is divided by what is needed: which part of the computed scores is it?",
    ),
    ("1 - needed / computed", "needed / computed", "This is the part that is needed: 1 less it."),
    (
        "T, P = max(lengths), max(slots)\n"
        "    computed = len(lengths) * T * (P + T)  # ()\n"
        "    needed = sum(n * (own + n) for n, own in zip(lengths, slots, strict=True))  # ()\n"
        "    return 1 - needed / computed",
        "return 1 - sum(lengths) / (len(lengths) * max(lengths))",
        "These are rows, not scores: a row of the rectangle has P + T scores.",
    ),
)
def wasted(rng: Rng) -> Cases:
    yield [3, 5, 2], [2, 0, 4]
    yield [1, 1, 1, 1000], [0, 0, 0, 0]
    yield [int(n) for n in rng.integers(1, 60, 7)], [int(n) for n in rng.integers(0, 12, 7)]
