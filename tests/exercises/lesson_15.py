import numpy as np

from minprefix.ops.contract import AttentionCache
from minprefix.ops.reference import softmax
from tests.exercises import wrong


def _attention(q, k, v, prefix_k, prefix_v, offsets, hide=True, corner=True):
    """Right as it stands; each answer below changes one thing."""
    lengths, slots = np.diff(offsets), [a.shape[1] for a in prefix_k]
    B, T, P, (_, NH, hs) = len(lengths), max(lengths), max(slots), q.shape
    dtype = np.result_type(q, prefix_k[0])
    queries = np.zeros((B, NH, T, hs), dtype)
    keys, values = (np.zeros((B, NH, P + T, hs), dtype) for _ in range(2))
    visible = np.zeros((B, 1, T, P + T), bool)
    i, j = np.arange(T)[:, None], np.arange(P + T)[None, :]
    for b, n in enumerate(lengths):
        tokens = slice(offsets[b], offsets[b + 1])
        queries[b, :, :n] = q[tokens].swapaxes(0, 1)
        # as the zoo does it: the filling stands in front of the slots
        for rectangle, prefix_b, stream in ((keys, prefix_k[b], k), (values, prefix_v[b], v)):
            rectangle[b, :, P - slots[b] : P] = prefix_b
            rectangle[b, :, P : P + n] = stream[tokens].swapaxes(0, 1)
        held = (j >= P - slots[b]) & (j < P) if hide else j < P
        visible[b, 0] = held | ((j >= P) & (j <= P + i)) if corner else j <= i
    scores = queries @ keys.swapaxes(2, 3) / hs**0.5
    whole = softmax(np.where(visible, scores, -np.inf))
    z = (whole @ values).swapaxes(1, 2)
    z = np.concatenate([z[b, :n] for b, n in enumerate(lengths)])
    first = [P - s if hide else 0 for s in slots]
    pattern = [whole[b, :, :n, first[b] : P + n] for b, n in enumerate(lengths)]
    return z, AttentionCache(q, k, v, prefix_k, prefix_v, offsets, pattern)


@wrong("attention", says="the zoo's unequal-prefixes-padded-with-zeros")
def the_filling_of_the_prefixes_is_seen(q, k, v, prefix_k, prefix_v, offsets):
    return _attention(q, k, v, prefix_k, prefix_v, offsets, hide=False)


@wrong("attention", says="the zoo's mask-at-the-wrong-corner")
def the_mask_starts_at_the_wrong_corner(q, k, v, prefix_k, prefix_v, offsets):
    return _attention(q, k, v, prefix_k, prefix_v, offsets, corner=False)
