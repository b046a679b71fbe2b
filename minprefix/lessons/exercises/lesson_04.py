"""Lesson 4's exercises: the inputs on which an answer is graded, and the usual mistakes."""

import numpy as np

from minprefix.lessons.exercise import Cases, Rng, exercise

# T, hs: no size is the root of another
SIZES = ((5, 3), (2, 6), (3, 2))
# NH, hs, the lengths of the sequences: one first, so that an answer that stops in it has its steps
STREAMS = ((2, 5, (4,)), (2, 3, (5, 1, 4)), (4, 2, (2, 3)), (1, 5, (3,)))


@exercise(
    (
        "<=",
        "<",
        "No token sees itself, so row 0 sees nothing at all. Token i sees the tokens 0 to i, and i "
        "is one of them: write <= in the place of <.",
    ),
    (
        "<= np.arange(T)[:, None]",
        "<= np.arange(T)[:, None] + 1",
        "Each token sees the next one, which it will be asked to predict. Row i ends at column i: "
        "column <= row.",
    ),
    (
        "<=",
        ">=",
        "Each token sees itself and those after it. Rows are queries and columns are keys: row i "
        "sees column j where j <= i.",
    ),
    (
        "<=",
        ">",
        "The mask is True where a key is hidden. Make it True where a token sees: column <= row.",
    ),
    (
        "np.arange(T)[None, :] <= np.arange(T)[:, None]",
        "np.where(np.arange(T)[None, :] <= np.arange(T)[:, None], 0.0, -np.inf)",
        "These are numbers to add to the scores. The mask asked for here is True where a token "
        "sees and False elsewhere; head makes -np.inf of the rest.",
    ),
)
def causal_mask(rng: Rng) -> Cases:
    """Several lengths."""
    for T in (4, 1, 7):
        yield (T,)


@exercise(
    ("/ hs**0.5", "", "The scale is missing. Divide by the root of the head size, hs**0.5."),
    ("/ hs**0.5", "/ hs", "The scores are divided by hs. Divide by its root, hs**0.5."),
    (
        "/ hs**0.5",
        "* hs**0.5",
        "The scores are multiplied by the root of hs. Divide by it: larger heads have larger "
        "scores, and the scale makes up for that.",
    ),
    (
        "/ hs**0.5",
        "/ len(q) ** 0.5",
        "The scores are divided by the root of T. Each score adds up hs products, so divide by the "
        "root of hs, q.shape[-1].",
    ),
    (
        "q @ k.swapaxes(-1, -2)",
        "k @ q.swapaxes(-1, -2)",
        "Rows and columns are swapped. A row belongs to a query: put q on the left.",
    ),
)
def attention_scores(rng: Rng) -> Cases:
    """Several sizes."""
    for T, hs in SIZES:
        yield tuple(rng.normal(size=(2, T, hs)))


@exercise(
    (
        "softmax(np.where(causal_mask(T), scores, -np.inf))",
        "softmax(scores)",
        "Nothing is hidden, so each token sees the tokens after it. Set the scores to -np.inf "
        "where causal_mask(T) is False, and take the softmax after that.",
    ),
    (
        "softmax(np.where(causal_mask(T), scores, -np.inf))",
        "softmax(scores) * causal_mask(T)",
        "The mask comes after the softmax, so the shares of a row no longer sum to 1. Set the "
        "hidden scores to -np.inf first, and take the softmax after that.",
    ),
    (
        "-np.inf",
        "0.0",
        "The hidden scores are 0, and e to the 0 is 1, so hidden keys keep a share. Set them to "
        "-np.inf.",
    ),
    (
        "softmax(np.where(causal_mask(T), scores, -np.inf))",
        "softmax(np.where(causal_mask(T), scores, -np.inf).T).T",
        "The softmax runs over the queries: each column sums to 1. Each query shares out 1 among "
        "its keys, so the softmax runs along the rows (the last axis).",
    ),
    (
        "softmax(np.where(causal_mask(T), scores, -np.inf))",
        "softmax(np.where(causal_mask(T), scores / q.shape[-1] ** 0.5, -np.inf))",
        "The scale is applied twice. attention_scores has divided by the root of hs already.",
    ),
    (
        "np.where(causal_mask(T), scores, -np.inf)",
        "np.where(causal_mask(T), -np.inf, scores)",
        "The two parts of np.where are swapped, so the tokens that are seen get -np.inf. Write "
        "np.where(causal_mask(T), scores, -np.inf).",
    ),
    (
        "np.where(causal_mask(T), scores, -np.inf)",
        "scores + causal_mask(T) * -np.inf",
        "A product with the mask makes NaN, because 0 times infinity is NaN. Choose with np.where "
        "instead: np.where(causal_mask(T), scores, -np.inf).",
    ),
    (
        "pattern @ v",
        "pattern @ k",
        "The pattern mixes the keys. Keys are compared with queries; what is mixed are the values: "
        "pattern @ v.",
    ),
    (
        "pattern @ v",
        "pattern.T @ v",
        "The pattern is transposed. Row i of the pattern holds the shares of query i, and z[i] is "
        "the sum of the values with these shares: pattern @ v.",
    ),
)
def head(rng: Rng) -> Cases:
    """Several sizes."""
    for T, hs in SIZES:
        yield tuple(rng.normal(size=(3, T, hs)))


@exercise(
    (
        "pattern.swapaxes(-1, -2) @ dz",
        "pattern @ dz",
        "The pattern is not transposed in dv. dv[j] sums over the queries i, which are the rows of "
        "the pattern: pattern.T @ dz.",
    ),
    (
        "dz @ v.swapaxes(-1, -2)",
        "v @ dz.swapaxes(-1, -2)",
        "dpattern is transposed. Its rows are queries, and dz belongs to them: dz @ v.T.",
    ),
    (
        "dz @ v.swapaxes(-1, -2)",
        "dz @ k.swapaxes(-1, -2)",
        "The keys stand where the values should be. The pattern was multiplied by the values: "
        "dz @ v.T.",
    ),
    (
        "(dpattern * pattern).sum(axis=-1",
        "(dpattern * pattern).sum(axis=-2",
        "The row sum runs over the queries. Each query has a softmax of its own: sum over its "
        "keys, the last axis.",
    ),
    (
        "(dpattern * pattern).sum(",
        "dpattern.sum(",
        "The row sum adds up dpattern alone. Each term has its share as a factor: sum "
        "dpattern * pattern.",
    ),
    (
        "pattern * (dpattern - row_sum)",
        "pattern * dpattern",
        "The row sum is not subtracted. The shares of a row compete for the same 1: if one grows, "
        "the others shrink. Subtract row_sum from dpattern.",
    ),
    (
        "pattern * (dpattern - row_sum)",
        "dpattern - row_sum",
        "The factor pattern is missing, so hidden keys get a gradient, too. Write "
        "pattern * (dpattern - row_sum).",
    ),
    (
        "dscores @ k / hs**0.5",
        "dscores @ k",
        "The scale is missing in dq. The scores were divided by the root of hs, so their gradients "
        "are, too: divide by hs**0.5.",
    ),
    (
        "dscores @ k / hs**0.5",
        "dscores @ q / hs**0.5",
        "The queries stand where the keys should be. Each query was multiplied by the keys, so dq "
        "is made of keys: dscores @ k.",
    ),
    (
        "dscores.swapaxes(-1, -2) @ q / hs**0.5",
        "dscores.swapaxes(-1, -2) @ k / hs**0.5",
        "The keys stand where the queries should be. Each key was multiplied by the queries, so dk "
        "is made of queries: dscores.T @ q.",
    ),
    (
        "dscores @ k / hs**0.5",
        "dscores.swapaxes(-1, -2) @ k / hs**0.5",
        "dscores is transposed in dq. dq[i] sums over the keys j, which are the columns of "
        "dscores: dscores @ k.",
    ),
    (
        "dscores.swapaxes(-1, -2) @ q / hs**0.5",
        "dscores.swapaxes(-1, -2) @ q",
        "The scale is missing in dk. The scores were divided by the root of hs, so their gradients "
        "are, too: divide by hs**0.5.",
    ),
    (
        "dscores.swapaxes(-1, -2) @ q / hs**0.5",
        "dscores @ q / hs**0.5",
        "dscores is not transposed in dk. dk[j] sums over the queries i, which are the rows of "
        "dscores: dscores.T @ q.",
    ),
    ("return dq, dk, dv", "return dk, dq, dv", "dq and dk are swapped. Return dq, dk, dv."),
)
def head_backward(rng: Rng) -> Cases:
    """Several sizes."""
    for T, hs in SIZES:
        yield tuple(rng.normal(size=(4, T, hs)))


@exercise(
    (
        "dv.sum(axis=0) - dz.sum(axis=0)",
        "dv.sum(axis=0)",
        "The second law compares dv with 0. Adding a vector to all values moves every z, so the "
        "sum of dv is the sum of dz: subtract dz.sum(axis=0).",
    ),
    (
        "dk.sum(axis=0)",
        "dk.sum()",
        "All entries of dk are added up to one number, so errors of unlike sign cancel. Sum over "
        "the tokens alone, axis=0: hs sums are left, and each has to be 0.",
    ),
    (
        "dk.sum(axis=0)",
        "dk.sum(axis=1)",
        "dk is summed over the hs numbers of each token. The law sums over the tokens: axis=0.",
    ),
    (
        "dv.sum(axis=0) - dz.sum(axis=0)",
        "dv.sum() - dz.sum()",
        "All entries of dv and of dz are added up, so errors of unlike sign cancel. Sum over the "
        "tokens alone, axis=0.",
    ),
)
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


@exercise(
    (
        "x.reshape(T, NH, C // NH)",
        "x.reshape(T, C // NH, NH).swapaxes(1, 2)",
        "Head h got every NH-th column, beginning with column h. It should get a piece of hs "
        "columns side by side: reshape to (T, NH, hs).",
    ),
    (
        "pieces.swapaxes(0, 1)",
        "x.reshape(NH, T, C // NH)",
        "The axes are not swapped: a reshape alone mixes tokens with heads. Reshape to "
        "(T, NH, hs), then swap the first two axes.",
    ),
    (
        "pieces.swapaxes(0, 1)",
        "pieces",
        "The tokens stand first. Swap the first two axes: pieces.swapaxes(0, 1).",
    ),
    (
        "pieces.swapaxes(0, 1)",
        "x.T.reshape(NH, T, C // NH)",
        "x.T has the tokens last, so a reshape of it mixes tokens with the numbers of a head. "
        "Reshape x to (T, NH, hs), then swap the first two axes.",
    ),
)
def split_heads(rng: Rng) -> Cases:
    """Several sizes, and one head."""
    for T, NH, hs in ((3, 2, 4), (4, 3, 2), (2, 1, 5)):
        yield rng.normal(size=(T, NH * hs)), NH


@exercise(
    (
        "tokens.reshape(T, NH * hs)",
        "z.reshape(T, NH * hs)",
        "The axes are not swapped: a reshape alone mixes tokens with heads. Swap the first two "
        "axes, then reshape.",
    ),
    (
        "tokens.reshape(T, NH * hs)",
        "z.transpose(1, 2, 0).reshape(T, NH * hs)",
        "The heads stand last, so the numbers of a head are no longer side by side. Bring the axes "
        "to (T, NH, hs) before the reshape.",
    ),
)
def merge_heads(rng: Rng) -> Cases:
    """Several sizes, and one head."""
    for NH, T, hs in ((2, 3, 4), (3, 4, 2), (1, 2, 5)):
        yield (rng.normal(size=(NH, T, hs)),)


def _streams(rng: Rng, n: int) -> Cases:
    """n streams (N, NH, hs) and their offsets."""
    for NH, hs, lengths in STREAMS:
        yield *rng.normal(size=(n, sum(lengths), NH, hs)), np.cumsum([0, *lengths])


@exercise(
    (
        "itertools.pairwise(offsets)",
        "[(0, len(q))]",
        "All sequences are taken for one, so each of them sees those before it. Call head for the "
        "tokens from each offset to the next.",
    ),
    (
        "a[start:end].swapaxes(0, 1) for",
        "a[start:end].reshape(a.shape[1], end - start, a.shape[2]) for",
        "A reshape stands in the place of the swap, and mixes tokens with heads. Bring the heads "
        "to the front with swapaxes(0, 1).",
    ),
    (
        "z_b.swapaxes(0, 1)",
        "z_b.reshape(end - start, q.shape[1], q.shape[2])",
        "A reshape stands in the place of the second swap, and mixes heads with tokens. Bring the "
        "tokens to the front with swapaxes(0, 1).",
    ),
    (
        "z_b.swapaxes(0, 1)",
        "z_b",
        "The heads stand in front in what is appended. A stream begins with the tokens: append "
        "z_b.swapaxes(0, 1).",
    ),
    (
        "a[start:end].swapaxes(0, 1) for a in (q, k, v))  # (NH, T, hs) each\n"
        "        z_b = head(q_b, k_b, v_b)[0]  # (NH, T, hs)\n"
        "        zs.append(z_b.swapaxes(0, 1))",
        "a[start:end] for a in (q, k, v))  # (NH, T, hs) each\n"
        "        z_b = head(q_b, k_b, v_b)[0]  # (NH, T, hs)\n"
        "        zs.append(z_b)",
        "The heads of each token look at each other, as if they were tokens: head takes the last "
        "two axes. Bring the heads to the front with swapaxes(0, 1), and back after that.",
    ),
)
def attend(rng: Rng) -> Cases:
    """One sequence; three, one of a single token; two; one head."""
    yield from _streams(rng, 3)


@exercise(
    (
        "itertools.pairwise(offsets)",
        "[(0, len(q))]",
        "All sequences are taken for one, so gradients flow from each to those before it. Call "
        "head_backward for the tokens from each offset to the next.",
    ),
    (
        "part.swapaxes(0, 1)",
        "part.reshape(end - start, q.shape[1], q.shape[2])",
        "A reshape stands in the place of the second swap, and mixes heads with tokens. Bring the "
        "tokens to the front with swapaxes(0, 1).",
    ),
    (
        "for a in (dz, q, k, v)",
        "for a in (q, k, v, dz)",
        "head_backward gets its arguments in another order. It takes dz, q, k, v.",
    ),
    (
        "dq, dk, dv = grads",
        "dk, dq, dv = grads",
        "dq and dk are swapped. head_backward returns dq, dk, dv, in this order.",
    ),
    (
        "a[start:end].swapaxes(0, 1) for a in (dz, q, k, v)))\n"
        "        for grad, part in zip(grads, parts, strict=True):  # part (NH, T, hs)\n"
        "            grad[start:end] = part.swapaxes(0, 1)",
        "a[start:end] for a in (dz, q, k, v)))\n"
        "        for grad, part in zip(grads, parts, strict=True):  # part (NH, T, hs)\n"
        "            grad[start:end] = part",
        "The heads of each token look at each other, as if they were tokens: head_backward takes "
        "the last two axes. Bring the heads to the front with swapaxes(0, 1), and back after that.",
    ),
    (
        "grad[start:end] = part.swapaxes(0, 1)",
        "grad[: end - start] += part.swapaxes(0, 1)",
        "All sequences write into the first rows. Write the gradients of a sequence into its own "
        "rows, from start to end.",
    ),
)
def attend_backward(rng: Rng) -> Cases:
    """One sequence; three, one of a single token; two; one head."""
    yield from _streams(rng, 4)


@exercise(
    (
        "np.arange(T)[:, None] + P",
        "np.arange(T)[:, None]",
        "The mask starts at the wrong corner, as if column 0 were token 0. Token j stands in "
        "column P + j, so row i sees the columns up to P + i.",
    ),
    (
        "np.arange(P + T)[None, :] <= np.arange(T)[:, None] + P",
        "np.arange(P + T)[None, :] < np.arange(T)[:, None] + P",
        "Each token is hidden from itself. Row i sees the columns up to P + i, that one included: "
        "write <=.",
    ),
    (
        "np.arange(T)[:, None] + P",
        "np.arange(T)[:, None] + P + 1",
        "The diagonal is one column too far to the right: each token sees the next one. Row i sees "
        "the columns up to P + i.",
    ),
    (
        "[prefix_k[b], k_b]",
        "[k_b, prefix_k[b]]",
        "The prefix's keys stand behind those of the sequence. Put prefix_k[b] first.",
    ),
    (
        "[prefix_v[b], v_b]",
        "[v_b, prefix_v[b]]",
        "The prefix's values stand behind those of the sequence. Put prefix_v[b] first.",
    ),
    (
        "[prefix_k[b], k_b]",
        "[prefix_v[b], k_b]",
        "The prefix's values stand where its keys should be. Put prefix_k[b] above k_b.",
    ),
    (
        "[prefix_v[b], v_b]",
        "[prefix_k[b], v_b]",
        "The prefix's keys stand where its values should be. Put prefix_v[b] above v_b.",
    ),
    (
        "/ hs**0.5",
        "",
        "The scale is missing. Divide the scores by the root of the head size, hs**0.5.",
    ),
    ("/ hs**0.5", "/ hs", "The scores are divided by hs. Divide them by its root, hs**0.5."),
    (
        "/ hs**0.5",
        "/ (q.shape[1] * hs) ** 0.5",
        "The scores are divided by the root of the width C. Each head adds up hs products: divide "
        "by the root of the head size, hs**0.5.",
    ),
    (
        "softmax(np.where(mask, scores, -np.inf))",
        "softmax(scores) * mask",
        "The mask comes after the softmax, so the shares of a row no longer sum to 1. Set the "
        "hidden scores to -np.inf first, and take the softmax after that.",
    ),
    (
        "softmax(np.where(mask, scores, -np.inf))",
        "softmax(np.where(mask, scores, -np.inf).swapaxes(1, 2)).swapaxes(1, 2)",
        "The softmax runs over the queries. Each query shares out 1 among its keys: the softmax "
        "runs along the last axis.",
    ),
    (
        "z_b.swapaxes(0, 1)",
        "z_b",
        "The heads stand in front in what is appended. A stream begins with the tokens: append "
        "z_b.swapaxes(0, 1).",
    ),
)
def attention(rng: Rng) -> Cases:
    """One sequence; sequences and prefixes of unlike lengths; one head; no prefix."""
    for (NH, hs, lengths), slots in zip(STREAMS, ((3,), (3, 1, 2), (0, 4), (0,)), strict=True):
        q, k, v = rng.normal(size=(3, sum(lengths), NH, hs))
        prefix_k, prefix_v = ([rng.normal(size=(NH, P, hs)) for P in slots] for _ in range(2))
        yield q, k, v, prefix_k, prefix_v, np.cumsum([0, *lengths])
