"""Answers to lesson 5's exercises that look right and are not, and easy ways round them."""

import numpy as np

from minprefix.ops import reference
from minprefix.ops.contract import AttentionCache
from tests.exercises import lazy, wrong


def softmax(scores):
    e = np.exp(scores - scores.real.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def visible(T, P):
    return np.arange(P + T)[None, :] <= np.arange(T)[:, None] + P


def head_with_slots(q, k, v, prefix_k, prefix_v):
    keys, values = np.concatenate([prefix_k, k]), np.concatenate([prefix_v, v])
    shown = np.where(visible(len(q), len(prefix_k)), q @ keys.T / q.shape[1] ** 0.5, -np.inf)
    return softmax(shown) @ values, softmax(shown)


def differences(f, x, eps=1e-6):
    """The gradient of the number f(x), without a formula."""
    grads = np.zeros(x.shape)
    for index in np.ndindex(x.shape):
        step = np.zeros(x.shape)
        step[index] = eps
        grads[index] = (f(x + step) - f(x - step)) / (2 * eps)
    return grads


def complex_step(f, x):
    grads = np.zeros(x.shape)
    for index in np.ndindex(x.shape):
        moved = x.astype(complex)
        moved[index] += 1e-30j
        grads[index] = f(moved).imag / 1e-30
    return grads


# ---- visible ------------------------------------------------------------------------------------


@wrong("visible", says="The mask starts at the wrong corner")
def the_triangle_begins_in_column_0(T, P):
    return np.tril(np.ones((T, P + T), bool))


@wrong("visible", says="Each token is hidden from itself")
def no_token_sees_itself(T, P):
    shown = np.zeros((T, P + T), bool)
    for i in range(T):
        shown[i, : P + i] = True
    return shown


@wrong("visible", says="The slots are hidden")
def the_slots_are_hidden(T, P):
    return np.hstack([np.zeros((T, P), bool), np.tril(np.ones((T, T), bool))])


@lazy("visible", says="calls ops.reference.visible of the package")
def the_packages_own_mask(T, P):
    return reference.visible(T, P)


# ---- head_with_slots ----------------------------------------------------------------------------


@wrong("head_with_slots", says="The scale is missing")
def no_scale(q, k, v, prefix_k, prefix_v):
    keys, values = np.vstack([prefix_k, k]), np.vstack([prefix_v, v])
    scores = np.einsum("ic,jc->ij", q, keys)
    pattern = softmax(np.where(visible(len(q), len(prefix_k)), scores, -np.inf))
    return pattern @ values, pattern


@wrong("head_with_slots", says="The softmax runs over the queries")
def a_softmax_down_the_columns(q, k, v, prefix_k, prefix_v):
    keys, values = np.vstack([prefix_k, k]), np.vstack([prefix_v, v])
    scores = np.where(visible(len(q), len(prefix_k)), q @ keys.T / np.sqrt(q.shape[1]), -np.inf)
    e = np.exp(scores)
    pattern = e / e.sum(axis=0)
    return pattern @ values, pattern


@wrong("head_with_slots", says="The mask comes after the softmax")
def hidden_after_the_softmax(q, k, v, prefix_k, prefix_v):
    keys, values = np.vstack([prefix_k, k]), np.vstack([prefix_v, v])
    pattern = softmax(q @ keys.T / np.sqrt(q.shape[1]))
    pattern[~visible(len(q), len(prefix_k))] = 0
    return pattern @ values, pattern


@wrong("head_with_slots", says="The slots' values stand where their keys should be")
def the_slots_keys_and_values_are_swapped(q, k, v, prefix_k, prefix_v):
    keys, values = np.vstack([prefix_v, k]), np.vstack([prefix_k, v])
    scores = q @ keys.T / np.sqrt(q.shape[1])
    pattern = softmax(np.where(visible(len(q), len(prefix_k)), scores, -np.inf))
    return pattern @ values, pattern


@lazy("head_with_slots", says="calls ops.reference.attention of the package")
def the_packages_attention(q, k, v, prefix_k, prefix_v):
    streams, slots = [a[:, None] for a in (q, k, v)], ([prefix_k[None]], [prefix_v[None]])
    z, cache = reference.attention(*streams, *slots, np.array([0, len(q)]))
    return z[:, 0], cache.pattern[0][0]


# ---- values_backward ----------------------------------------------------------------------------


@wrong("values_backward", says="The last P rows are those of tokens")
def the_slots_are_looked_for_at_the_end(dz, pattern, P):
    dvalues = np.einsum("ij,ic->jc", pattern, dz)
    T = len(dz)
    return dvalues[T:], dvalues[:T]


@wrong("values_backward", says="dvalues is a mean over the queries")
def a_mean_over_the_queries(dz, pattern, P):
    dvalues = np.array([(share[:, None] * dz).mean(axis=0) for share in pattern.T])
    return dvalues[:P], dvalues[P:]


@wrong("values_backward", says="The two gradients are returned in the other order")
def tokens_first(dz, pattern, P):
    dvalues = pattern.T @ dz
    return dvalues[P:], dvalues[:P]


@lazy("values_backward", says="calls ops.reference.attention_backward of the package")
def the_packages_backward_for_the_values(dz, pattern, P):
    zeros = np.zeros((len(dz), 1, dz.shape[1]))
    slots = [np.zeros((1, P, dz.shape[1]))]
    cache = AttentionCache(
        zeros, zeros, zeros, slots, slots, np.array([0, len(dz)]), [pattern[None]]
    )
    grads = reference.attention_backward(dz[:, None], cache)
    return grads.dprefix_v[0][0], grads.dv[:, 0]


# ---- scores_backward ----------------------------------------------------------------------------


@wrong("scores_backward", says="The row sum runs over the tokens alone")
def the_slots_stand_outside_the_softmax(dz, values, pattern):
    T, P = len(dz), len(values) - len(dz)
    dpattern = dz @ values.T
    row_sum = np.zeros((T, 1))
    for i in range(T):
        row_sum[i] = dpattern[i, P:] @ pattern[i, P:]
    return pattern * (dpattern - row_sum)


@wrong("scores_backward", says="The row sum runs over the queries")
def a_sum_down_the_columns(dz, values, pattern):
    dpattern = dz @ values.T
    return pattern * (dpattern - (dpattern * pattern).sum(axis=0))


@wrong("scores_backward", says="The row sum is not subtracted")
def the_softmax_as_if_each_score_stood_alone(dz, values, pattern):
    dpattern = dz @ values.T
    return np.multiply(dpattern, pattern)


@lazy("scores_backward", says="compute it from the formula, without trying values out")
def finite_differences_through_the_softmax(dz, values, pattern):
    with np.errstate(divide="ignore"):
        scores = np.log(pattern)
    shown, hidden = pattern > 0, np.zeros(pattern.shape)

    def loss(moved):
        return (dz * (softmax(np.where(shown, scores + moved, -np.inf)) @ values)).sum()

    return complex_step(loss, hidden)


# ---- keys_backward ------------------------------------------------------------------------------


@wrong("keys_backward", says="The scale is missing in dkeys")
def dkeys_without_the_scale(dscores, q, keys, P):
    dkeys = np.einsum("ij,ic->jc", dscores, q)
    return dkeys[:P], dkeys[P:], dscores @ keys / q.shape[1] ** 0.5


@wrong("keys_backward", says="The scale is missing in dq")
def dq_without_the_scale(dscores, q, keys, P):
    scaled = dscores / q.shape[1] ** 0.5
    return scaled.T[:P] @ q, scaled.T[P:] @ q, dscores @ keys


@wrong("keys_backward", says="dq leaves the slots out")
def dq_of_the_tokens_keys_alone(dscores, q, keys, P):
    scale = q.shape[1] ** -0.5
    dkeys = scale * dscores.T @ q
    return dkeys[:P], dkeys[P:], scale * dscores[:, P:] @ keys[P:]


@lazy("keys_backward", says="compute it from the formula, without trying values out")
def differences_of_the_scores(dscores, q, keys, P):
    dkeys = differences(lambda x: dotted(dscores, q, x), keys)
    return dkeys[:P], dkeys[P:], differences(lambda x: dotted(dscores, x, keys), q)


def dotted(dscores, q, keys):
    return (dscores * (q @ keys.T)).sum() / q.shape[1] ** 0.5


# ---- backward_with_slots ------------------------------------------------------------------------


def _backward(dz, q, k, v, prefix_k, prefix_v, of_pattern="values", of_scores="keys"):
    """Right as it stands."""
    P, hs = prefix_k.shape
    joined = {"keys": np.vstack([prefix_k, k]), "values": np.vstack([prefix_v, v])}
    _, pattern = head_with_slots(q, k, v, prefix_k, prefix_v)
    dvalues, dpattern = pattern.T @ dz, dz @ joined[of_pattern].T
    dscores = pattern * (dpattern - (dpattern * pattern).sum(axis=1, keepdims=True))
    dkeys = dscores.T @ q / hs**0.5
    return dscores @ joined[of_scores] / hs**0.5, dkeys[P:], dvalues[P:], dkeys[:P], dvalues[:P]


@wrong("backward_with_slots", says="The keys stand where the values should be")
def the_pattern_met_the_keys(dz, q, k, v, prefix_k, prefix_v):
    return _backward(dz, q, k, v, prefix_k, prefix_v, of_pattern="keys")


@wrong("backward_with_slots", says="The values stand where the keys should be")
def the_queries_met_the_values(dz, q, k, v, prefix_k, prefix_v):
    return _backward(dz, q, k, v, prefix_k, prefix_v, of_scores="values")


@wrong("backward_with_slots", says="The gradients of the slots' keys and values are swapped")
def the_last_two_are_swapped(dz, q, k, v, prefix_k, prefix_v):
    dq, dk, dv, dprefix_k, dprefix_v = _backward(dz, q, k, v, prefix_k, prefix_v)
    return dq, dk, dv, dprefix_v, dprefix_k


@lazy("backward_with_slots", says="compute it from the formula, without trying values out")
def the_complex_step_of_all_five(dz, *inputs):
    def loss(i, x):
        return (dz * head_with_slots(*inputs[:i], x, *inputs[i + 1 :])[0]).sum()

    return tuple(complex_step(lambda x, i=i: loss(i, x), a) for i, a in enumerate(inputs))


# ---- attention_backward -------------------------------------------------------------------------


def _attention_backward(dz, cache, row_sum_from=0, scale=True):
    """Right as it stands, under names of its own; each answer below changes one thing."""
    dq, dk, dv = (np.zeros_like(a) for a in (cache.q, cache.k, cache.v))
    dprefix_k, dprefix_v = [], []
    for b, pattern in enumerate(cache.pattern):
        start, end = cache.offsets[b], cache.offsets[b + 1]
        P, hs = cache.prefix_k[b].shape[1:]
        q, k, v, dz_b = (a[start:end].swapaxes(0, 1) for a in (cache.q, cache.k, cache.v, dz))
        keys = np.concatenate([cache.prefix_k[b], k], axis=1)
        values = np.concatenate([cache.prefix_v[b], v], axis=1)
        dvalues = pattern.swapaxes(1, 2) @ dz_b
        dpattern = dz_b @ values.swapaxes(1, 2)
        products = (dpattern * pattern)[:, :, P * row_sum_from :]
        dscores = pattern * (dpattern - products.sum(axis=2, keepdims=True))
        dkeys = dscores.swapaxes(1, 2) @ q / np.sqrt(hs)
        dq[start:end] = (dscores @ keys / np.sqrt(hs)).swapaxes(0, 1)
        dk[start:end] = dkeys[:, P:].swapaxes(0, 1)
        dv[start:end] = dvalues[:, P:].swapaxes(0, 1)
        dprefix_k.append(dkeys[:, :P] * (1 if scale else np.sqrt(hs)))
        dprefix_v.append(dvalues[:, :P])
    return dq, dk, dv, dprefix_k, dprefix_v


@wrong("attention_backward", says="The row sum runs over the tokens alone")
def the_row_sum_leaves_the_slots_out(dz, cache):
    return _attention_backward(dz, cache, row_sum_from=1)


@wrong("attention_backward", says="The scale is missing in dkeys")
def the_scale_is_forgotten_for_the_slots(dz, cache):
    return _attention_backward(dz, cache, scale=False)


@wrong("attention_backward", says="The gradients of the slots' keys and values are swapped")
def keys_and_values_are_swapped(dz, cache):
    dq, dk, dv, dprefix_k, dprefix_v = _attention_backward(dz, cache)
    return dq, dk, dv, dprefix_v, dprefix_k


@wrong("attention_backward", says="With the heads in front, axis 1 is the queries")
def a_sum_over_the_queries_of_each_head(dz, cache):
    dq, dk, dv = (np.zeros_like(a) for a in (cache.q, cache.k, cache.v))
    dprefix_k, dprefix_v = [], []
    for b, pattern in enumerate(cache.pattern):
        part = slice(cache.offsets[b], cache.offsets[b + 1])
        P, hs = cache.prefix_k[b].shape[1:]
        q, k, v, dz_b = (a[part].swapaxes(0, 1) for a in (cache.q, cache.k, cache.v, dz))
        values = np.concatenate([cache.prefix_v[b], v], axis=1)
        dpattern = np.einsum("hic,hjc->hij", dz_b, values)
        row_sum = (dpattern * pattern).sum(1, keepdims=True)
        dscores = pattern * (dpattern - row_sum) / hs**0.5
        dkeys = np.einsum("hij,hic->hjc", dscores, q)
        dvalues = np.einsum("hij,hic->hjc", pattern, dz_b)
        keys = np.concatenate([cache.prefix_k[b], k], axis=1)
        dq[part] = np.einsum("hij,hjc->ihc", dscores, keys)
        dk[part], dv[part] = (a[:, P:].swapaxes(0, 1) for a in (dkeys, dvalues))
        dprefix_k.append(dkeys[:, :P])
        dprefix_v.append(dvalues[:, :P])
    return dq, dk, dv, dprefix_k, dprefix_v


@lazy("attention_backward", says="compute it from the formula, without trying values out")
def one_head_after_another(dz, cache):
    dq, dk, dv = (np.zeros_like(a) for a in (cache.q, cache.k, cache.v))
    dprefix_k, dprefix_v = ([np.zeros_like(a) for a in cache.prefix_k] for _ in range(2))
    for b, h in np.ndindex(len(cache.prefix_k), dz.shape[1]):
        own = slice(cache.offsets[b], cache.offsets[b + 1]), h
        streams = [a[own] for a in (dz, cache.q, cache.k, cache.v)]
        grads = backward_with_slots(*streams, cache.prefix_k[b][h], cache.prefix_v[b][h])
        dq[own], dk[own], dv[own], dprefix_k[b][h], dprefix_v[b][h] = grads
    return dq, dk, dv, dprefix_k, dprefix_v


@lazy("attention_backward", says="calls ops.reference.attention_backward of the package")
def the_packages_backward(dz, cache):
    return reference.attention_backward(dz, cache)


# ---- check_keys_law -----------------------------------------------------------------------------


@wrong("check_keys_law", says="Only the slots' keys are summed")
def the_tokens_keys_are_left_out(dprefix_k, dk):
    total = np.sum(dprefix_k, axis=0)
    assert np.all(np.abs(total) < 1e-12), total


@wrong("check_keys_law", says="A sum far below 0 passes")
def a_negative_sum_passes(dprefix_k, dk):
    total = np.concatenate([dprefix_k, dk]).sum(axis=0)
    largest = max(total)
    assert largest < 1e-12, f"the sum is {largest}"


@wrong("check_keys_law", says="All entries are added up to one number")
def one_sum_of_all_entries(dprefix_k, dk):
    total = dprefix_k.sum() + dk.sum()
    assert abs(total) < 1e-12, f"the sum is {total}"


@lazy("check_keys_law", says="it returns None, and should raise AssertionError here")
def a_check_that_always_passes(dprefix_k, dk):
    assert dprefix_k.shape[1] == dk.shape[1], "the gradients do not fit"


# ---- slot_step ----------------------------------------------------------------------------------


def backward_with_slots(dz, q, k, v, prefix_k, prefix_v):
    return _backward(dz, q, k, v, prefix_k, prefix_v)


@wrong("slot_step", says="The keys go uphill")
def both_go_uphill(q, k, v, prefix_k, prefix_v, goal, rate, backward=backward_with_slots):
    z, _ = head_with_slots(q, k, v, prefix_k, prefix_v)
    grads = backward(z - goal, q, k, v, prefix_k, prefix_v)
    return ((z - goal) ** 2).sum() / 2, prefix_k + rate * grads[3], prefix_v + rate * grads[4]


@wrong("slot_step", says="dz is twice as large as it should be")
def the_derivative_of_the_square_alone(
    q, k, v, prefix_k, prefix_v, goal, rate, backward=backward_with_slots
):
    z, _ = head_with_slots(q, k, v, prefix_k, prefix_v)
    dz = 2 * (z - goal)
    grads = backward(dz, q, k, v, prefix_k, prefix_v)
    loss = 0.5 * np.square(z - goal).sum()
    return loss, prefix_k - rate * grads[3], prefix_v - rate * grads[4]


@wrong("slot_step", says="it writes into its argument prefix_k, the caller's: make a copy")
def the_step_is_taken_in_place(
    q, k, v, prefix_k, prefix_v, goal, rate, backward=backward_with_slots
):
    z, _ = head_with_slots(q, k, v, prefix_k, prefix_v)
    *_, dprefix_k, dprefix_v = backward(z - goal, q, k, v, prefix_k, prefix_v)
    prefix_k -= rate * dprefix_k
    prefix_v -= rate * dprefix_v
    return 0.5 * ((z - goal) ** 2).sum(), prefix_k, prefix_v


@wrong("slot_step", says="although another function is given")
def always_the_same_backward(q, k, v, prefix_k, prefix_v, goal, rate, backward=None):
    z, _ = head_with_slots(q, k, v, prefix_k, prefix_v)
    grads = backward_with_slots(z - goal, q, k, v, prefix_k, prefix_v)
    loss = np.square(z - goal).sum() / 2
    return loss, prefix_k - rate * grads[3], prefix_v - rate * grads[4]


@lazy("slot_step", says="compute it from the formula, without trying values out")
def a_step_by_finite_differences(
    q, k, v, prefix_k, prefix_v, goal, rate, backward=backward_with_slots
):
    def loss(x, y):
        return 0.5 * ((head_with_slots(q, k, v, x, y)[0] - goal) ** 2).sum()

    new_k = prefix_k - rate * complex_step(lambda x: loss(x, prefix_v), prefix_k)
    new_v = prefix_v - rate * complex_step(lambda y: loss(prefix_k, y), prefix_v)
    return loss(prefix_k, prefix_v), new_k, new_v
