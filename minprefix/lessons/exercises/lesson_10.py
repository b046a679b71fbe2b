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


@exercise(
    (
        "pattern[..., :P]",
        "pattern[..., P:]",
        "This is the share of the tokens, 1 - λ. The slots are the first P columns.",
    ),
    (
        ".sum(axis=-1)",
        ".mean(axis=-1)",
        "This is the mean of a slot's shares. λ is what falls on all slots together: take the sum.",
    ),
    (
        "pattern[..., :P].sum(axis=-1)",
        "pattern[:, :P].sum(axis=1)",
        "It takes the second axis, which is the columns only where no axis stands in front. Index "
        "from the end: `...` and axis=-1.",
    ),
    (
        "pattern[..., :P].sum(axis=-1)",
        "pattern[..., :P].sum(axis=-1) / pattern[..., P:].sum(axis=-1)",
        "This is the ratio of slots to tokens. λ is the share of the whole row, which sums to 1.",
    ),
)
def slots_share(rng: Rng) -> Cases:
    """One head, several heads, no slots."""
    for T, P, _ in SIZES:
        yield _pattern(rng, T, P), P
    yield _pattern(rng, 4, 2, (3,)), 2
    yield _pattern(rng, 4, 0), 0


@exercise(
    (
        " * np.tri(T)",
        "",
        "The mask is missing: a token sees those behind it. Set b to 0 where the token lies ahead.",
    ),
    (
        "np.tri(T)",
        "np.tri(T).T",
        "The mask is the other way round: row i has to keep the columns 0 to i.",
    ),
    (
        "np.tri(T)",
        "np.tri(T, k=-1)",
        "Each token is hidden from itself. Token i sees the tokens 0 to i, and i is one of them.",
    ),
    (
        " / hs**0.5",
        "",
        "The scores are not scaled. Divide them by the root of the head size before the "
        "exponential.",
    ),
    (
        "a_sum / (a_sum + b_sum)",
        "a_sum / b_sum",
        "This is the ratio of the two sums, and it can be above 1. λ is the slots' part of the "
        "whole: divide by a_sum + b_sum.",
    ),
    (
        "a_sum / (a_sum + b_sum)",
        "b_sum / (a_sum + b_sum)",
        "This is 1 - λ, the share of the tokens. λ has the slots' sum above the line.",
    ),
    (
        "a / a_sum @ prefix_v",
        "a @ prefix_v",
        "`own` is not divided by its sum. Its shares over the slots have to sum to 1.",
    ),
    (
        "a / a_sum @ prefix_v",
        "a / (a_sum + b_sum) @ prefix_v",
        "`own` has λ in it already: it is divided by the sum over slots and tokens. Divide by the "
        "slots' sum alone.",
    ),
    (
        "np.exp(q @ k.T / hs**0.5) * np.tri(T)",
        "np.exp(q @ k.T / hs**0.5 * np.tri(T))",
        "The mask stands inside of exp, and exp(0) is 1. Multiply by it after exp.",
    ),
)
def blend_parts(rng: Rng) -> Cases:
    for T, P, hs in SIZES:
        yield (*rng.normal(size=(3, T, hs)), *rng.normal(size=(2, P, hs)))


@exercise(
    (
        "tokens.sum(axis=-1, keepdims=True)",
        "pattern.sum(axis=-1, keepdims=True)",
        "The rows are divided by the sum of the whole pattern, which is 1. Divide by the sum over "
        "the tokens.",
    ),
    (
        "axis=-1",
        "axis=-2",
        "The sum runs over the queries. Each row is divided by its own sum over the keys, the last "
        "axis.",
    ),
    (
        "pattern[..., P:]",
        "pattern[..., :P]",
        "These are the columns of the slots. The tokens begin at column P.",
    ),
    (
        "tokens.sum(axis=-1, keepdims=True)",
        "tokens.max(axis=-1, keepdims=True)",
        "The rows are divided by their largest share. Divide by the sum, so that each row sums to "
        "1.",
    ),
)
def relative_attention(rng: Rng) -> Cases:
    """As many slots as tokens; more heads than one; no slots."""
    yield _pattern(rng, 3, 3), 3
    yield _pattern(rng, 5, 2), 2
    yield _pattern(rng, 4, 3, (2,)), 3
    yield _pattern(rng, 4, 0), 0


@exercise(
    (
        "pattern[:, j, None]",
        "pattern[j, :, None]",
        "This is row j, what token j looks at. The shares of slot j are column j.",
    ),
    (
        "share * change",
        "change + 0 * share",
        "Each token moves by the whole change. It moves by its share of slot j only.",
    ),
    (
        "share * change",
        "share.mean() * change + 0 * share",
        "All tokens move alike here. Each has a share of its own.",
    ),
    (
        "pattern[:, j, None]",
        "pattern[:, : j + 1].sum(axis=1, keepdims=True)",
        "The shares of several slots are added. Only the value of slot j has changed.",
    ),
)
def moved_by_value(rng: Rng) -> Cases:
    """As many rows as columns do not occur; slots in the middle, the first, the last."""
    for T, P, j, hs in ((4, 3, 1, 5), (5, 2, 0, 3), (3, 6, 5, 2)):
        yield _pattern(rng, T, P), j, rng.normal(size=hs)


@exercise(
    (
        " / q.shape[2] ** 0.5",
        "",
        "The scores are not scaled. Divide them by the root of the head size.",
    ),
    (
        "scores - top",
        "scores",
        "Where scores are large, np.exp overflows. Subtract the largest score of each row first.",
    ),
    (
        "top + np.log(a_sum)",
        "np.log(a_sum)",
        "The largest score is missing in the logarithm of the sum: add `top` again.",
    ),
    (
        "log_a - np.logaddexp",
        "log_b[rows].swapaxes(0, 1) - np.logaddexp",
        "λ and 1 - λ are swapped. λ has the slots' sum above the line, and it is the share of "
        "their answer, `own`.",
    ),
    (
        "lam * own + (1 - lam) * without",
        "lam * own + without",
        "The tokens' answer keeps its full weight. The slots take their share from it: multiply "
        "`frozen` by 1 - λ.",
    ),
    (
        "a / a_sum @ prefix_v[b]",
        "prefix_v[b].mean(axis=1, keepdims=True)",
        "The slots' values are averaged without looking at the query. Weight them by a softmax of "
        "their scores.",
    ),
)
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


@exercise(
    (
        "logits[swapped]",
        "np.roll(logits, 1, axis=0)",
        "Each text is compared with the one before it in the list. Find the text with the two "
        "digits swapped.",
    ),
    (
        "logits[swapped]",
        "logits[::-1]",
        "The list is compared with itself backwards. The partner of a text may stand anywhere: "
        "look it up.",
    ),
    (".max()", ".mean()", "A mean hides a difference in one text. Return the largest difference."),
    (
        "np.abs(logits - logits[swapped]).max()",
        "float((logits.argmax(axis=1) != logits[swapped].argmax(axis=1)).max())",
        "Only the likeliest digits are compared. Two texts may agree there and still get other "
        "logits.",
    ),
)
def order_gap(rng: Rng) -> Cases:
    """Both orders alike; one entry off; texts in an arbitrary order."""
    for D, off in ((3, 0.0), (4, 0.3), (4, 2.0), (5, 1e-6)):
        texts = [(a, b) for a in range(D) for b in range(D) if a != b]
        texts = [texts[i] for i in rng.permutation(len(texts))]
        of_pair = rng.normal(size=(D, D, D))
        logits = np.array([of_pair[min(text), max(text)] for text in texts])
        logits[1, 2] += off
        yield logits, texts


@exercise(
    (
        "counts * np.log(p)).sum()\n    return total / len(targets)",
        "p * np.log(p)).sum()\n    return total / len(np.unique(group))",
        "This is the mean over the groups. The mean runs over all texts, so a large group counts "
        "more.",
    ),
    (
        "(counts * np.log(p)).sum()",
        "counts.sum() * np.log(1 / len(counts))",
        "All targets of a group get the same probability here. One that occurs more often should "
        "get more.",
    ),
    (
        "(counts * np.log(p)).sum()",
        "counts.sum() * np.log(p.max())",
        "Each text is charged for the most frequent target. A text is charged for its own one.",
    ),
    ("np.log(p)", "np.log2(p)", "This is in bits. A loss is in nats: take the natural logarithm."),
    (
        "/ len(targets)",
        "/ len(np.unique(group))",
        "The sum is divided by the number of groups. Divide by the number of texts.",
    ),
    (
        "total / len(targets)",
        "total",
        "This is the sum over all texts. The mean loss is asked for: divide by their number.",
    ),
)
def least_loss(rng: Rng) -> Cases:
    """Groups of unlike sizes, one target for all, targets that repeat in a group."""
    yield np.array([0, 0, 0, 1, 1]), np.array([0, 0, 2, 1, 3])
    yield np.array([5, 5, 7, 7]), np.array([1, 2, 2, 1])
    yield np.array([0, 1, 2]), np.array([4, 4, 4])
    for _ in range(2):
        yield rng.integers(0, 4, 20), rng.integers(0, 5, 20)
