"""Lesson 5's exercises: the inputs on which an answer is graded, and the usual mistakes."""

import numpy as np

from minprefix.lessons.exercise import Cases, Rng, exercise
from minprefix.ops import reference
from minprefix.ops.contract import Array

# T, P, hs: more slots than tokens and fewer, one token, no slots; hs is no square of another size
SIZES = ((5, 3, 4), (2, 6, 3), (1, 2, 5), (4, 0, 7))

ALL_IN_ONE = (
    "All entries are added up to one number, so errors of unlike sign cancel. Sum over the keys "
    "alone, axis=0: hs sums are left. The largest of their sizes has to be 0."
)


def _patterns(rng: Rng, T: int, P: int) -> np.ndarray:
    """Shares (T, P+T) that sum to 1 in each row, with the tokens in the future hidden."""
    scores = rng.normal(size=(T, P + T))
    scores[np.arange(P + T)[None, :] > np.arange(T)[:, None] + P] = -np.inf
    e = np.exp(scores)
    return e / e.sum(axis=1, keepdims=True)


def _head(rng: Rng, T: int, P: int, hs: int) -> tuple[np.ndarray, ...]:
    """q, k, v (T, hs) and prefix_k, prefix_v (P, hs)."""
    return (*rng.normal(size=(3, T, hs)), *rng.normal(size=(2, P, hs)))


@exercise(
    (
        "rows + P",
        "rows",
        "The mask starts at the wrong corner, as if column 0 were token 0. Token j stands in "
        "column P + j, so row i sees the columns up to P + i.",
    ),
    (
        "columns <= rows + P",
        "columns < rows + P",
        "Each token is hidden from itself. It sees the tokens 0 to i, and i is one of them: write "
        "<= in the place of <.",
    ),
    (
        "columns <= rows + P",
        "columns <= rows + P + 1",
        "The diagonal is one column too far to the right: each token sees the next one. Row i sees "
        "the columns up to P + i.",
    ),
    (
        "columns <= rows + P",
        "(columns >= P) & (columns <= rows + P)",
        "The slots are hidden. Every token sees all of them: the first P columns are True.",
    ),
    (
        "columns <= rows + P",
        "(columns >= len(rows)) | (columns <= rows)",
        "The slots' columns stand behind those of the tokens. The first P columns are the slots.",
    ),
    (
        "columns <= rows + P",
        "columns > rows + P",
        "The mask is the other way round: it is True where a key is hidden. Make it True where a "
        "token sees.",
    ),
)
def visible(rng: Rng) -> Cases:
    """More slots than tokens and fewer, one token, no slots."""
    for T, P, _ in SIZES:
        yield T, P


@exercise(
    (
        "[prefix_k, k]",
        "[k, prefix_k]",
        "The slots' keys stand behind those of the tokens. The mask counts on slots in front: put "
        "prefix_k first.",
    ),
    (
        "[prefix_v, v]",
        "[v, prefix_v]",
        "The slots' values stand behind those of the tokens, so each share meets the value of "
        "another key. Put prefix_v first, as with the keys.",
    ),
    (
        "[prefix_k, k]",
        "[prefix_v, k]",
        "The slots' values stand where their keys should be. Keys are compared with queries, "
        "values are mixed: put prefix_k among the keys.",
    ),
    (
        "/ hs**0.5",
        "",
        "The scale is missing. Divide the scores by the root of the head size, hs**0.5.",
    ),
    ("/ hs**0.5", "/ hs", "The scores are divided by hs. Divide them by its root, hs**0.5."),
    (
        "hs**0.5",
        "keys.shape[0] ** 0.5",
        "The scores are divided by the root of the number of keys. Divide them by the root of the "
        "head size, hs: it is the number of products in each score.",
    ),
    (
        "softmax(np.where(visible(T, P), scores, -np.inf))",
        "softmax(scores)",
        "Nothing is hidden: each token sees the tokens after it. Set the scores to -np.inf where "
        "visible(T, P) is False, and take the softmax after that.",
    ),
    (
        "softmax(np.where(visible(T, P), scores, -np.inf))",
        "softmax(scores) * visible(T, P)",
        "The mask comes after the softmax, so the shares of a row no longer sum to 1. Set the "
        "hidden scores to -np.inf first, and take the softmax after that.",
    ),
    (
        "softmax(np.where(visible(T, P), scores, -np.inf))",
        "softmax(np.where(visible(T, P), scores, 0.0))",
        "The hidden scores are 0, and e to the 0 is 1, so hidden keys keep a share. Set them to "
        "-np.inf.",
    ),
    (
        "softmax(np.where(visible(T, P), scores, -np.inf))",
        "softmax(np.where(visible(T, P), scores, -np.inf).T).T",
        "The softmax runs over the queries: each column sums to 1. Each query shares out 1 among "
        "its keys, so the softmax runs along the rows (the last axis).",
    ),
    (
        "pattern @ values",
        "pattern @ keys",
        "The pattern mixes the keys. Keys are compared with queries; what is mixed are the values: "
        "pattern @ values.",
    ),
)
def head_with_slots(rng: Rng) -> Cases:
    """More slots than tokens and fewer, one token, no slots."""
    for T, P, hs in SIZES:
        yield _head(rng, T, P, hs)


@exercise(
    (
        "pattern.T @ dz",
        "pattern.T @ dz / len(dz)",
        "dvalues is a mean over the queries. A value reached every query that saw it, and the "
        "ways add up: take the sum, pattern.T @ dz.",
    ),
    (
        "pattern.T @ dz",
        "(pattern > 0).T @ dz",
        "Each dz arrives whole, as if every share were 1. The value of j reached z of i with the "
        "share pattern[i, j]: multiply by it, pattern.T @ dz.",
    ),
    (
        "dvalues[:P]",
        "dvalues[len(dvalues) - P :]",
        "The last P rows are those of tokens. The slots stand first: take dvalues[:P].",
    ),
    (
        "return dprefix_v, dv",
        "return dv, dprefix_v",
        "The two gradients are returned in the other order. Return dprefix_v first, then dv.",
    ),
)
def values_backward(rng: Rng) -> Cases:
    """More slots than tokens and fewer, one token, no slots."""
    for T, P, hs in SIZES:
        yield rng.normal(size=(T, hs)), _patterns(rng, T, P), P


@exercise(
    (
        "(dpattern * pattern).sum(",
        "(dpattern * pattern)[:, len(values) - len(dz) :].sum(",
        "The row sum runs over the tokens alone. The slots take part in the softmax, too: sum over "
        "all P + T columns.",
    ),
    (
        "axis=1",
        "axis=0",
        "The row sum runs over the queries. Each query has a softmax of its own: sum over its "
        "keys, axis=1.",
    ),
    (
        "(dpattern * pattern).sum(",
        "dpattern.sum(",
        "The row sum adds up dpattern alone. Each term has its share as a factor: sum "
        "dpattern * pattern.",
    ),
    (
        "(dpattern * pattern).sum(",
        "(dpattern * pattern).mean(",
        "row_sum is a mean. The formula has a sum: no division by P + T.",
    ),
    (
        "pattern * (dpattern - row_sum)",
        "pattern * dpattern",
        "The row sum is not subtracted. The shares of a row compete for the same 1: if one grows, "
        "the others shrink. Subtract row_sum from dpattern.",
    ),
    (
        "pattern * (dpattern - row_sum)",
        "pattern * (1 - pattern) * dpattern",
        "This is the slope of each share by its own score alone. A score also moves the other "
        "shares of its row, and the row sum counts these: pattern * (dpattern - row_sum).",
    ),
    (
        "pattern * (dpattern - row_sum)",
        "pattern * dpattern - row_sum",
        "The row sum is subtracted after the product, so hidden keys get a gradient, too. Subtract "
        "it inside the parentheses: pattern * (dpattern - row_sum).",
    ),
    (
        "dpattern - row_sum",
        "row_sum - dpattern",
        "The sign is turned around. A share that would lower the loss less than its row's mean has "
        "to fall: dpattern - row_sum.",
    ),
    (
        "pattern * (dpattern - row_sum)",
        "dpattern - row_sum",
        "The factor pattern is missing in front of the parentheses, so hidden keys get a gradient, "
        "too. Write pattern * (dpattern - row_sum).",
    ),
)
def scores_backward(rng: Rng) -> Cases:
    """More slots than tokens and fewer, one token, no slots."""
    for T, P, hs in SIZES:
        yield rng.normal(size=(T, hs)), rng.normal(size=(P + T, hs)), _patterns(rng, T, P)


@exercise(
    (
        "dscores.T @ q / hs**0.5",
        "dscores.T @ q",
        "The scale is missing in dkeys. The scores were divided by the root of hs, so their "
        "gradients are, too: divide by hs**0.5.",
    ),
    (
        "dscores @ keys / hs**0.5",
        "dscores @ keys",
        "The scale is missing in dq. The scores were divided by the root of hs, so their gradients "
        "are, too: divide by hs**0.5.",
    ),
    (
        "dscores.T @ q / hs**0.5",
        "dscores.T @ q * hs**0.5",
        "dkeys is multiplied by the root of hs. A constant factor is the same in the backward as "
        "in the forward: divide by hs**0.5.",
    ),
    (
        "dscores.T @ q / hs**0.5",
        "dscores.T @ q / hs",
        "dkeys is divided by hs. The scale of the scores is its root: divide by hs**0.5.",
    ),
    (
        "dscores @ keys / hs**0.5",
        "dscores[:, P:] @ keys[P:] / hs**0.5",
        "dq leaves the slots out. Each query met the slots' keys as well as the tokens': use all "
        "P + T columns of dscores.",
    ),
    (
        "dscores @ keys / hs**0.5",
        "dscores @ keys / len(keys) ** 0.5",
        "dq is divided by the root of the number of keys. Divide it by the root of the head size, "
        "hs.",
    ),
    (
        "return dprefix_k, dk, dq",
        "return dk, dprefix_k, dq",
        "The slots' gradient and the tokens' are returned in the other order. Return dprefix_k "
        "first, then dk, then dq.",
    ),
)
def keys_backward(rng: Rng) -> Cases:
    """More slots than tokens and fewer, one token, no slots. dscores is free: no row sums to 0."""
    for T, P, hs in SIZES:
        q, keys = rng.normal(size=(T, hs)), rng.normal(size=(P + T, hs))
        yield rng.normal(size=(T, P + T)), q, keys, P


@exercise(
    (
        "scores_backward(dz, values, pattern)",
        "scores_backward(dz, keys, pattern)",
        "The keys stand where the values should be: the pattern was multiplied by the values. Give "
        "scores_backward the values.",
    ),
    (
        "keys_backward(dscores, q, keys, P)",
        "keys_backward(dscores, q, values, P)",
        "The values stand where the keys should be: the scores were made from the keys. Give "
        "keys_backward the keys.",
    ),
    (
        "keys_backward(dscores, q, keys, P)",
        "keys_backward(dscores * pattern, q, keys, P)",
        "dscores is multiplied by the pattern once more. scores_backward has done that: give its "
        "result to keys_backward as it is.",
    ),
    (
        "return dq, dk, dv, dprefix_k, dprefix_v",
        "return dq, dk, dv, dprefix_v, dprefix_k",
        "The gradients of the slots' keys and values are swapped. Return dprefix_k before "
        "dprefix_v.",
    ),
    (
        "return dq, dk, dv, dprefix_k, dprefix_v",
        "return dprefix_k, dprefix_v, dq, dk, dv",
        "dprefix_k stands in the place of dq. keys_backward returns dprefix_k, dk, dq, in this "
        "order; backward_with_slots returns dq, dk, dv, dprefix_k, dprefix_v.",
    ),
    (
        "return dq, dk, dv, dprefix_k, dprefix_v",
        "return dq, dk, dprefix_v, dprefix_k, dv",
        "dv and dprefix_v are swapped. values_backward returns dprefix_v first, then dv.",
    ),
)
def backward_with_slots(rng: Rng) -> Cases:
    """More slots than tokens and fewer, one token, no slots."""
    for T, P, hs in SIZES:
        yield rng.normal(size=(T, hs)), *_head(rng, T, P, hs)


@exercise(
    (
        "(dpattern * pattern).sum(",
        "(dpattern * pattern)[:, :, P:].sum(",
        "The row sum runs over the tokens alone. The slots take part in the softmax, too: sum over "
        "all P + T columns.",
    ),
    (
        "(dpattern * pattern).sum(axis=2",
        "(dpattern * pattern).sum(axis=1",
        "The row sum runs over the queries. With the heads in front, axis 1 is the queries and "
        "axis 2 the keys: sum over axis 2.",
    ),
    (
        "pattern * (dpattern - row_sum)",
        "pattern * dpattern",
        "The row sum is not subtracted. The shares of a row compete for the same 1. Write "
        "pattern * (dpattern - row_sum).",
    ),
    (
        "dscores.swapaxes(1, 2) @ q / hs**0.5",
        "dscores.swapaxes(1, 2) @ q",
        "The scale is missing in dkeys. The scores were divided by the root of hs, so their "
        "gradients are, too: divide by hs**0.5.",
    ),
    (
        "dscores @ keys / hs**0.5",
        "dscores @ keys",
        "The scale is missing in dq. The scores were divided by the root of hs, so their gradients "
        "are, too: divide by hs**0.5.",
    ),
    (
        "[cache.prefix_v[b], v]",
        "[cache.prefix_k[b], v]",
        "The slots' keys stand where their values should be. Put cache.prefix_v[b] above v.",
    ),
    (
        "[cache.prefix_k[b], k]",
        "[cache.prefix_v[b], k]",
        "The slots' values stand where their keys should be. Put cache.prefix_k[b] above k.",
    ),
    (
        "dk[rows] = dkeys[:, P:]",
        "dk[rows] = dkeys[:, : dkeys.shape[1] - P]",
        "dk takes the first T rows of dkeys. The first P rows are the slots': the tokens' begin at "
        "P, dkeys[:, P:].",
    ),
    (
        "return dq, dk, dv, dprefix_k, dprefix_v",
        "return dq, dk, dv, dprefix_v, dprefix_k",
        "The gradients of the slots' keys and values are swapped. Return dprefix_k before "
        "dprefix_v.",
    ),
)
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


@exercise(
    (
        " + dk.sum(axis=0)",
        "",
        "Only the slots' keys are summed. The law speaks of all P + T keys: add the sum of dk.",
    ),
    (
        "dprefix_k.sum(axis=0) + dk.sum(axis=0)",
        "dk.sum(axis=0)",
        "Only the tokens' keys are summed. The law speaks of all P + T keys: add the sum of "
        "dprefix_k.",
    ),
    ("dprefix_k.sum(axis=0) + dk.sum(axis=0)", "dprefix_k.sum() + dk.sum()", ALL_IN_ONE),
    (
        "dprefix_k.sum(axis=0) + dk.sum(axis=0)",
        "dprefix_k.mean(axis=0) + dk.mean(axis=0)",
        "The two means are added. There are P slots and T tokens, so the means do not cancel: add "
        "the sums.",
    ),
    (
        "np.abs(total).max()",
        "total.max()",
        "A sum far below 0 passes, because only the largest is compared. Compare sizes: "
        "np.abs(total).",
    ),
    ("np.abs(total).max()", "abs(total.sum())", ALL_IN_ONE),
)
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


@exercise(
    (
        "prefix_k - rate",
        "prefix_k + rate",
        "The keys go uphill. The gradient points to where the loss grows: subtract it.",
    ),
    (
        "prefix_v - rate",
        "prefix_v + rate",
        "The values go uphill. The gradient points to where the loss grows: subtract it.",
    ),
    (
        "dz = z - goal",
        "dz = goal - z",
        "dz has the wrong sign. The derivative of (z - goal)^2 / 2 is z - goal.",
    ),
    (
        "dz = z - goal",
        "dz = 2 * (z - goal)",
        "dz is twice as large as it should be. The 1/2 of the loss cancels the 2 of the square: "
        "dz = z - goal.",
    ),
    ("0.5 * ((z - goal) ** 2).sum()", "((z - goal) ** 2).sum()", "The loss lacks its factor 1/2."),
    (
        "0.5 * ((z - goal) ** 2).sum()",
        "0.5 * ((z - goal) ** 2).mean()",
        "The loss is a mean, but its dz is that of a sum. Take the sum.",
    ),
    (
        "prefix_v - rate * dprefix_v",
        "prefix_v - rate * dprefix_k",
        "The values move by the gradient of the keys. The last two results of backward are "
        "dprefix_k, then dprefix_v.",
    ),
    (
        "= backward(",
        "= backward_with_slots(",
        "The gradients come from backward_with_slots, although another function is given. Call the "
        "argument, backward.",
    ),
)
def slot_step(rng: Rng) -> Cases:
    """Several sizes and rates; another backward."""
    for (T, P, hs), rate in zip(SIZES[:3], (0.3, 0.05, 1.0), strict=True):
        yield *_head(rng, T, P, hs), rng.normal(size=(T, hs)), rate
    yield *_head(rng, 4, 2, 3), rng.normal(size=(4, 3)), 0.5, of_another_function


def of_another_function(dz: Array, *inputs: Array) -> tuple[Array, ...]:
    """Five arrays of the right shapes, and no gradients."""
    return tuple(a * (1 + dz.mean()) for a in inputs)
