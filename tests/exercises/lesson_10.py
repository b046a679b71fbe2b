from itertools import pairwise

import numpy as np

from minprefix.ops import reference
from tests.exercises import lazy, wrong

# ---- the share, the parts, the pattern -----------------------------------------------------------


@wrong("slots_share", says="This is the share of the tokens")
def the_columns_behind(pattern, P):
    lam = np.sum(pattern[..., P:], axis=-1)
    return lam


@wrong("slots_share", says="take the sum")
def a_mean_over_the_slots(pattern, P):
    return np.mean(pattern[..., :P], axis=-1)


@lazy("slots_share", says="off by")
def as_if_all_keys_were_alike(pattern, P):
    T = pattern.shape[-2]
    return np.broadcast_to(P / (P + 1 + np.arange(T)), pattern.shape[:-1])


def _parts(q, k, v, prefix_k, prefix_v, mask=True, of_all=False):
    root = np.sqrt(q.shape[1])
    a, b = np.exp(q @ prefix_k.T / root), np.exp(q @ k.T / root)
    if mask:
        b = np.where(np.tri(len(q)) > 0, b, 0)
    A, B = a.sum(1)[:, None], b.sum(1)[:, None]
    own = a @ prefix_v / (A + B if of_all else A)
    return A / (A + B), own, b @ v / B


@wrong("blend_parts", says="The mask is missing")
def the_future_is_seen(*arguments):
    return _parts(*arguments, mask=False)


@wrong("blend_parts", says="`own` has λ in it already")
def own_is_divided_by_the_whole_sum(*arguments):
    return _parts(*arguments, of_all=True)


@wrong("blend_parts", says="This is the ratio of the two sums")
def odds_in_the_place_of_the_share(q, k, v, prefix_k, prefix_v):
    lam, own, frozen = _parts(q, k, v, prefix_k, prefix_v)
    return lam / (1 - lam), own, frozen


@lazy("blend_parts", says="calls ops.reference.attention of the package")
def frozen_by_the_package(q, k, v, prefix_k, prefix_v):
    none = [np.zeros((1, 0, q.shape[1]))]
    stream = [a[:, None] for a in (q, k, v)]
    frozen, _ = reference.attention(*stream, none, none, np.array([0, len(q)]))
    lam, own, _ = _parts(q, k, v, prefix_k, prefix_v)
    return lam, own, frozen[:, 0]


@wrong("relative_attention", says="The rows are divided by the sum of the whole pattern")
def divided_by_the_whole_row(pattern, P):
    return pattern[..., P:] / pattern.sum(-1)[..., None]


@wrong("relative_attention", says="The sum runs over the queries")
def each_column_sums_to_1(pattern, P):
    tokens = pattern[..., P:]
    return tokens / tokens.sum(-2, keepdims=True)


@lazy("relative_attention", says="relative_attention: it raised")
def for_one_head_alone(pattern, P):
    tokens = pattern[:, P:]
    sums = tokens.sum(axis=1)
    T, _ = tokens.shape
    return tokens / sums.reshape(T, 1)


@wrong("moved_by_value", says="The shares of slot j are column j")
def the_row_of_the_pattern(pattern, j, change):
    return pattern[j, :][:, None] * change


@wrong("moved_by_value", says="Each token moves by the whole change")
def without_the_share(pattern, j, change):
    return np.array([change for _ in pattern])


@lazy("moved_by_value", says="All tokens move alike here")
def one_move_for_all(pattern, j, change):
    return np.tile(pattern[:, j].mean() * change, (len(pattern), 1))


# ---- a prefix put onto a finished attention ------------------------------------------------------


def _add(frozen, log_b, q, prefix_k, prefix_v, offsets, scaled=True, safe=True, shrink=True):
    z = np.array(frozen)
    for b, (start, end) in enumerate(pairwise(offsets)):
        if not prefix_k[b].size:
            continue
        for h in range(q.shape[1]):
            scores = q[start:end, h] @ prefix_k[b][h].T
            if scaled:
                scores = scores / np.sqrt(q.shape[-1])
            most = scores.max(1, keepdims=True) if safe else 0
            with np.errstate(all="ignore"):
                parts = np.exp(scores - most)
                total = parts.sum(1, keepdims=True)
                logs = most + np.log(total)
                lam = np.exp(logs - np.logaddexp(logs, log_b[start:end, h]))
                rest = (1 - lam if shrink else 1) * frozen[start:end, h]
                z[start:end, h] = lam * (parts / total @ prefix_v[b][h]) + rest
    return z


@wrong("add_prefix", says="The scores are not scaled")
def unscaled(*arguments):
    return _add(*arguments, scaled=False)


@wrong("add_prefix", says="np.exp overflows")
def without_the_largest_score(*arguments):
    return _add(*arguments, safe=False)


@wrong("add_prefix", says="The tokens' answer keeps its full weight")
def the_slots_answer_is_added_on_top(*arguments):
    return _add(*arguments, shrink=False)


@lazy("add_prefix", says="calls ops.reference.attention of the package")
def attention_over_the_slots_and_over_made_up_tokens(frozen, log_b, q, prefix_k, prefix_v, offsets):
    """The usual attention, with one token that stands for all: its score is log_b."""
    rest = np.concatenate([q, np.ones_like(log_b)], axis=2)
    keys = np.concatenate([np.zeros_like(q), log_b], axis=2)
    none = [np.zeros((q.shape[1], 0, q.shape[2] + 1))] * len(prefix_k)
    reference.attention(rest, keys, rest, none, none, offsets)
    return _add(frozen, log_b, q, prefix_k, prefix_v, offsets)


# ---- the argument --------------------------------------------------------------------------------


@wrong("order_gap", says="Each text is compared with the one before it")
def neighbours_are_compared(logits, texts):
    return max(np.abs(logits[b] - logits[b - 1]).max() for b in range(len(texts)))


@wrong("order_gap", says="A mean hides a difference in one text")
def the_mean_difference(logits, texts):
    partner = [texts.index((g, f)) for f, g in texts]
    return np.mean(np.abs(logits - logits[partner]))


@lazy("order_gap", says="off by")
def what_the_argument_promises(logits, texts):
    return 0.0


@wrong("least_loss", says="This is the mean over the groups")
def a_mean_of_the_groups_entropies(group, targets):
    found = []
    for g in set(group.tolist()):
        chosen = targets[group == g]
        p = np.bincount(chosen) / len(chosen)
        p = p[p > 0]
        found.append(-(p * np.log(p)).sum())
    return np.mean(found)


@wrong("least_loss", says="All targets of a group get the same probability")
def the_logarithm_of_how_many(group, targets):
    each = [np.log(len(set(targets[group == g].tolist()))) for g in group]
    return np.mean(each)


@lazy("least_loss", says="off by")
def the_bound_of_the_text(group, targets):
    return np.log(2)


@wrong("add_prefix", says="λ and 1 - λ are swapped")
def the_shares_are_swapped(frozen, log_b, q, prefix_k, prefix_v, offsets):
    z = np.array(frozen)
    for b in range(len(prefix_k)):
        at = slice(offsets[b], offsets[b + 1])
        if prefix_k[b].shape[1]:
            s = np.einsum("thc,hpc->thp", q[at], prefix_k[b]) / np.sqrt(q.shape[2])
            most = s.max(-1, keepdims=True)
            e = np.exp(s - most)
            total = e.sum(-1, keepdims=True)
            answer = np.einsum("thp,hpc->thc", e / total, prefix_v[b])
            log = most + np.log(total)
            share = np.exp(log_b[at] - np.logaddexp(log, log_b[at]))
            z[at] = share * answer + (1 - share) * frozen[at]
    return z
