"""Answers to lesson 4's exercises that look right and are not, and easy ways round them."""

import itertools

import numpy as np

from minprefix.ops import reference
from minprefix.ops.contract import AttentionCache
from tests.exercises import lazy, wrong


def softmax(scores):
    e = np.exp(scores - scores.real.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def causal_mask(T):
    return np.arange(T)[None, :] <= np.arange(T)[:, None]


def attention_scores(q, k):
    return q @ k.swapaxes(-1, -2) / q.shape[-1] ** 0.5


def head(q, k, v):
    pattern = softmax(np.where(causal_mask(q.shape[-2]), attention_scores(q, k), -np.inf))
    return pattern @ v, pattern


def complex_step(f, x):
    """The gradient of the number f(x), without a formula."""
    grads = np.zeros(x.shape)
    for index in np.ndindex(x.shape):
        moved = x.astype(complex)
        moved[index] += 1e-30j
        grads[index] = f(moved).imag / 1e-30
    return grads


def no_slots(x, offsets):
    """Keys or values of empty prefixes, for x (N, NH, hs)."""
    return [np.zeros((x.shape[1], 0, x.shape[2]), x.dtype) for _ in offsets[1:]]


# ---- causal_mask --------------------------------------------------------------------------------


@wrong("causal_mask", says="No token sees itself")
def no_token_sees_itself(T):
    return np.tril(np.ones((T, T), bool), k=-1)


@wrong("causal_mask", says="Each token sees itself and those after it")
def the_upper_triangle(T):
    return np.triu(np.ones((T, T), bool))


@wrong("causal_mask", says="Each token sees the next one")
def one_column_too_far(T):
    return np.tril(np.ones((T, T)), k=1) == 1


@lazy("causal_mask", says="calls ops.reference.visible of the package")
def the_packages_mask(T):
    return reference.visible(T, 0)


# ---- attention_scores ---------------------------------------------------------------------------


@wrong("attention_scores", says="The scale is missing")
def no_scale(q, k):
    return np.array([[query @ key for key in k] for query in q])


@wrong("attention_scores", says="The scores are divided by the root of T")
def the_scale_of_the_tokens(q, k):
    return np.dot(q, k.T) / np.sqrt(q.shape[0])


@wrong("attention_scores", says="The scores are divided by hs")
def the_root_is_forgotten(q, k):
    return np.einsum("ic,jc->ij", q, k) / q.shape[1]


@lazy("attention_scores", says="calls ops.reference.attention of the package")
def scores_from_the_packages_pattern(q, k):
    slots = [k[None]], [k[None]]
    streams = [a[:, None] for a in (q, k, k)]
    _, cache = reference.attention(*streams, *slots, np.array([0, len(q)]))
    shown = cache.pattern[0][0][:, : len(k)]
    return np.log(shown) - np.log(shown).mean() + (q @ k.T).mean() / q.shape[1] ** 0.5


# ---- head ---------------------------------------------------------------------------------------


@wrong("head", says="The softmax runs over the queries")
def a_softmax_down_the_columns(q, k, v):
    scores = np.where(causal_mask(len(q)), attention_scores(q, k), -np.inf)
    e = np.exp(scores - scores.max(axis=0))
    pattern = e / e.sum(axis=0)
    return pattern @ v, pattern


@wrong("head", says="The mask comes after the softmax")
def hidden_after_the_softmax(q, k, v):
    pattern = np.tril(softmax(attention_scores(q, k)))
    return pattern @ v, pattern


@wrong("head", says="The hidden scores are 0")
def hidden_scores_are_0(q, k, v):
    scores = np.tril(attention_scores(q, k))
    pattern = softmax(scores)
    return pattern @ v, pattern


@lazy("head", says="calls ops.reference.attention of the package")
def the_packages_attention(q, k, v):
    streams, offsets = [a[:, None] for a in (q, k, v)], np.array([0, len(q)])
    nothing = no_slots(streams[0], offsets)
    z, cache = reference.attention(*streams, nothing, nothing, offsets)
    return z[:, 0], cache.pattern[0][0]


# ---- head_backward ------------------------------------------------------------------------------


@wrong("head_backward", says="The pattern is not transposed in dv")
def dv_without_the_transpose(dz, q, k, v):
    _, pattern = head(q, k, v)
    dv = pattern @ dz
    dpattern = dz @ v.T
    dscores = pattern * (dpattern - np.sum(pattern * dpattern, axis=1)[:, None])
    dscores /= q.shape[1] ** 0.5
    return dscores @ k, dscores.T @ q, dv


@wrong("head_backward", says="The scale is missing in dq")
def the_scale_is_forgotten_in_dq(dz, q, k, v):
    pattern = head(q, k, v)[1]
    dpattern = np.einsum("ic,jc->ij", dz, v)
    dscores = pattern * (dpattern - np.einsum("ij,ij->i", pattern, dpattern)[:, None])
    return dscores @ k, dscores.T @ q / q.shape[1] ** 0.5, pattern.T @ dz


@wrong("head_backward", says="The row sum runs over the queries")
def the_sum_runs_down_the_columns(dz, q, k, v):
    pattern = head(q, k, v)[1]
    dpattern = dz @ v.T
    scaled = pattern * (dpattern - sum(pattern * dpattern)) / np.sqrt(q.shape[1])
    return scaled @ k, scaled.T @ q, pattern.T @ dz


@wrong("head_backward", says="dscores is not transposed in dk")
def dk_without_the_transpose(dz, q, k, v):
    pattern = head(q, k, v)[1]
    dpattern = dz @ v.T
    row_sum = (pattern * dpattern).sum(1, keepdims=True)
    scaled = pattern * (dpattern - row_sum) / np.sqrt(q.shape[1])
    return scaled @ k, scaled @ q, pattern.T @ dz


@lazy("head_backward", says="compute it from the formula, without trying values out")
def the_complex_step_of_all_three(dz, *inputs):
    def loss(i, x):
        return (dz * head(*inputs[:i], x, *inputs[i + 1 :])[0]).sum()

    return tuple(complex_step(lambda x, i=i: loss(i, x), a) for i, a in enumerate(inputs))


# ---- check_laws ---------------------------------------------------------------------------------


@wrong("check_laws", says="The second law compares dv with 0")
def both_sums_are_to_be_0(dk, dv, dz):
    of_keys, of_values = dk.sum(axis=0), dv.sum(axis=0)
    assert np.abs(of_keys).max() < 1e-12
    assert np.abs(of_values).max() < 1e-12


@wrong("check_laws", says="All entries of dk are added up to one number")
def one_sum_of_all_entries(dk, dv, dz):
    of_keys, of_values = dk.sum(), (dv - dz).sum()
    assert abs(of_keys) < 1e-12
    assert abs(of_values) < 1e-12


@wrong("check_laws", says="it returns None, and should raise AssertionError here")
def a_negative_sum_passes(dk, dv, dz):
    of_keys, of_values = dk.sum(axis=0), (dv - dz).sum(axis=0)
    assert max(of_keys) < 1e-12
    assert max(of_values) < 1e-12


@lazy("check_laws", says="it returns None, and should raise AssertionError here")
def a_check_that_always_passes(dk, dv, dz):
    assert dk.shape == dv.shape == dz.shape


# ---- split_heads --------------------------------------------------------------------------------


@wrong("split_heads", says="The axes are not swapped")
def a_reshape_alone(x, NH):
    T, C = x.shape
    return x.reshape(NH, T, C // NH)


@wrong("split_heads", says="Head h got every NH-th column")
def every_other_column(x, NH):
    return np.stack([x[:, h::NH] for h in range(NH)])


@wrong("split_heads", says="The tokens stand first")
def without_the_swap(x, NH):
    return np.stack(np.split(x, NH, axis=1), axis=1)


@lazy("split_heads", says="cannot reshape array")
def the_sizes_of_the_picture(x, NH):
    return x.reshape(3, 2, 2).swapaxes(0, 1)


# ---- merge_heads --------------------------------------------------------------------------------


@wrong("merge_heads", says="The axes are not swapped")
def a_reshape_back(z):
    NH, T, hs = z.shape
    return z.reshape(T, NH * hs)


@wrong("merge_heads", says="The heads stand last")
def heads_side_by_side_number_by_number(z):
    return np.stack(list(z), axis=-1).reshape(z.shape[1], -1)


@lazy("merge_heads", says="cannot reshape array")
def the_sizes_of_the_picture_back(z):
    return z.swapaxes(0, 1).reshape(3, 4)


# ---- attend -------------------------------------------------------------------------------------


@wrong("attend", says="All sequences are taken for one")
def the_offsets_are_ignored(q, k, v, offsets):
    return head(q.swapaxes(0, 1), k.swapaxes(0, 1), v.swapaxes(0, 1))[0].swapaxes(0, 1)


@wrong("attend", says="The heads of each token look at each other")
def heads_taken_for_tokens(q, k, v, offsets):
    bounds = itertools.pairwise(offsets)
    return np.concatenate([head(q[a:b], k[a:b], v[a:b])[0] for a, b in bounds])


@wrong("attend", says="A reshape stands in the place of the swap")
def a_reshape_for_the_swap(q, k, v, offsets):
    NH, hs, zs = q.shape[1], q.shape[2], []
    for a, b in itertools.pairwise(offsets):
        z_b, _ = head(*(x[a:b].reshape(NH, b - a, hs) for x in (q, k, v)))
        zs.append(z_b.swapaxes(0, 1))
    return np.concatenate(zs)


@wrong("attend", says="The heads stand in front in what is appended")
def the_swap_back_is_forgotten(q, k, v, offsets):
    zs = []
    for a, b in itertools.pairwise(offsets):
        zs.append(head(*(x[a:b].swapaxes(0, 1) for x in (q, k, v)))[0])
    return np.concatenate(zs)


@lazy("attend", says="calls ops.reference.attention of the package")
def the_packages_attention_without_slots(q, k, v, offsets):
    nothing = no_slots(q, offsets)
    return reference.attention(q, k, v, nothing, nothing, offsets)[0]


# ---- attend_backward ----------------------------------------------------------------------------


def head_backward(dz, q, k, v):
    pattern, scale = head(q, k, v)[1], q.shape[-1] ** -0.5
    dpattern = dz @ v.swapaxes(-1, -2)
    dscores = pattern * (dpattern - (dpattern * pattern).sum(axis=-1, keepdims=True))
    dk = scale * dscores.swapaxes(-1, -2) @ q
    return scale * dscores @ k, dk, pattern.swapaxes(-1, -2) @ dz


@wrong("attend_backward", says="All sequences are taken for one")
def gradients_across_the_sequences(dz, q, k, v, offsets):
    return [g.swapaxes(0, 1) for g in head_backward(*(a.swapaxes(0, 1) for a in (dz, q, k, v)))]


@wrong("attend_backward", says="All sequences write into the first rows")
def all_in_the_first_rows(dz, q, k, v, offsets):
    grads = np.zeros_like(q), np.zeros_like(k), np.zeros_like(v)
    for a, b in itertools.pairwise(offsets):
        parts = head_backward(*(x[a:b].swapaxes(0, 1) for x in (dz, q, k, v)))
        for grad, part in zip(grads, parts, strict=True):
            for t in range(b - a):
                grad[t] += part[:, t]
    return grads


@wrong("attend_backward", says="head_backward gets its arguments in another order")
def dz_comes_last(dz, q, k, v, offsets):
    found = []
    for a, b in itertools.pairwise(offsets):
        q_b, k_b, v_b, dz_b = (x[a:b].swapaxes(0, 1) for x in (q, k, v, dz))
        found.append([g.swapaxes(0, 1) for g in head_backward(q_b, k_b, v_b, dz_b)])
    return tuple(np.concatenate(parts) for parts in zip(*found, strict=True))


@lazy("attend_backward", says="calls ops.reference.attention_backward of the package")
def the_packages_backward(dz, q, k, v, offsets):
    nothing, patterns = no_slots(q, offsets), []
    for a, b in itertools.pairwise(offsets):
        patterns.append(head(*(x[a:b].swapaxes(0, 1) for x in (q, k, v)))[1])
    cache = AttentionCache(q, k, v, nothing, nothing, offsets, patterns)
    return reference.attention_backward(dz, cache)[:3]


# ---- attention ----------------------------------------------------------------------------------


def _attention(q, k, v, prefix_k, prefix_v, offsets, hide=True, corner=True):
    """Right as it stands; each answer below changes one thing."""
    lengths, slots = np.diff(offsets), [a.shape[1] for a in prefix_k]
    B, T, P, (_, NH, hs) = len(lengths), max(lengths), max(slots), q.shape
    dtype = np.result_type(q, prefix_k[0])
    queries = np.zeros((B, NH, T, hs), dtype)
    padded_k, padded_v = (np.zeros((B, NH, P + T, hs), dtype) for _ in range(2))
    shown = np.zeros((B, 1, T, P + T), bool)
    i, j = np.arange(T)[:, None], np.arange(P + T)[None, :]
    for b, n in enumerate(lengths):
        tokens = slice(offsets[b], offsets[b + 1])
        queries[b, :, :n] = q[tokens].swapaxes(0, 1)
        # as the zoo does it: the filling stands in front of the slots
        for rectangle, prefix_b, stream in ((padded_k, prefix_k[b], k), (padded_v, prefix_v[b], v)):
            rectangle[b, :, P - slots[b] : P] = prefix_b
            rectangle[b, :, P : P + n] = stream[tokens].swapaxes(0, 1)
        held = (j >= P - slots[b]) & (j < P) if hide else j < P
        shown[b, 0] = held | ((j >= P) & (j <= P + i)) if corner else j <= i
    scores = queries @ padded_k.swapaxes(2, 3) / hs**0.5
    whole = softmax(np.where(shown, scores, -np.inf))
    z = (whole @ padded_v).swapaxes(1, 2)
    z = np.concatenate([z[b, :n] for b, n in enumerate(lengths)])
    first = [P - s if hide else 0 for s in slots]
    patterns = [whole[b, :, :n, first[b] : P + n] for b, n in enumerate(lengths)]
    return z, AttentionCache(q, k, v, prefix_k, prefix_v, offsets, patterns)


@wrong("attention", says="the zoo's unequal-prefixes-padded-with-zeros")
def the_filling_of_the_prefixes_is_seen(q, k, v, prefix_k, prefix_v, offsets):
    return _attention(q, k, v, prefix_k, prefix_v, offsets, hide=False)


@wrong("attention", says="The mask starts at the wrong corner")
def the_mask_starts_at_the_wrong_corner(q, k, v, prefix_k, prefix_v, offsets):
    return _attention(q, k, v, prefix_k, prefix_v, offsets, corner=False)


@wrong("attention", says="The scores are divided by the root of the width C")
def scaled_by_the_width(q, k, v, prefix_k, prefix_v, offsets):
    N, C = len(q), q.shape[1] * q.shape[2]
    zs, patterns = [], []
    for b, (a, e) in enumerate(itertools.pairwise(offsets)):
        keys = np.concatenate([prefix_k[b], k[a:e].swapaxes(0, 1)], axis=1)
        values = np.concatenate([prefix_v[b], v[a:e].swapaxes(0, 1)], axis=1)
        scores = q[a:e].swapaxes(0, 1) @ keys.swapaxes(1, 2) / C**0.5
        shown = reference_mask(e - a, prefix_k[b].shape[1])
        pattern = softmax(np.where(shown, scores, -np.inf))
        patterns.append(pattern)
        zs.append((pattern @ values).swapaxes(0, 1))
    z = np.concatenate(zs)
    assert len(z) == N
    return z, AttentionCache(q, k, v, prefix_k, prefix_v, offsets, patterns)


def reference_mask(T, P):
    return np.hstack([np.ones((T, P), bool), causal_mask(T)])


@lazy("attention", says="calls ops.reference.attention of the package")
def the_packages_attention_itself(q, k, v, prefix_k, prefix_v, offsets):
    return reference.attention(q, k, v, prefix_k, prefix_v, offsets)
