import numpy as np

from minprefix.ops.contract import AttentionCache
from tests.exercises import wrong


def _softmax(scores):
    e = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def _attention(q, k, v, prefix_k, prefix_v, offsets, seen=None, late_mask=False, power=0.5):
    """Right as it stands; each answer below changes one thing. `seen`: how many columns beside the
    first each row 0 sees, from P."""
    zs, patterns = [], []
    for b in range(len(offsets) - 1):
        rows = slice(offsets[b], offsets[b + 1])
        q_b, k_b, v_b = (a[rows].swapaxes(0, 1) for a in (q, k, v))
        keys = np.concatenate([prefix_k[b], k_b], axis=1)
        values = np.concatenate([prefix_v[b], v_b], axis=1)
        T, P, hs = q_b.shape[1], prefix_k[b].shape[1], q_b.shape[2]
        shift = P if seen is None else seen(P)
        visible = np.arange(P + T)[None, :] <= np.arange(T)[:, None] + shift
        scores = q_b @ keys.swapaxes(1, 2) / hs**power
        if late_mask:
            pattern = _softmax(scores) * visible
        else:
            pattern = _softmax(np.where(visible, scores, -np.inf))
        zs.append((pattern @ values).swapaxes(0, 1))
        patterns.append(pattern)
    return np.concatenate(zs), AttentionCache(q, k, v, prefix_k, prefix_v, offsets, patterns)


@wrong("attention", says="the zoo's mask-at-the-wrong-corner")
def the_mask_does_not_know_of_the_slots(q, k, v, prefix_k, prefix_v, offsets):
    return _attention(q, k, v, prefix_k, prefix_v, offsets, seen=lambda P: 0)


@wrong("attention", says="the zoo's mask-shows-the-next-token")
def the_mask_shows_the_next_token(q, k, v, prefix_k, prefix_v, offsets):
    return _attention(q, k, v, prefix_k, prefix_v, offsets, seen=lambda P: P + 1)


@wrong("attention", says="the zoo's mask-after-the-softmax")
def what_is_hidden_takes_part_in_the_sum(q, k, v, prefix_k, prefix_v, offsets):
    return _attention(q, k, v, prefix_k, prefix_v, offsets, late_mask=True)


@wrong("attention", says="the zoo's scores-unscaled")
def the_scores_are_not_scaled(q, k, v, prefix_k, prefix_v, offsets):
    return _attention(q, k, v, prefix_k, prefix_v, offsets, power=0)


@wrong("attention", says="the zoo's prefix-of-the-first-sequence-for-all")
def all_sequences_see_the_first_ones_slots(q, k, v, prefix_k, prefix_v, offsets):
    B = len(prefix_k)
    z, cache = _attention(q, k, v, prefix_k[:1] * B, prefix_v[:1] * B, offsets)
    return z, cache._replace(prefix_k=prefix_k, prefix_v=prefix_v)
