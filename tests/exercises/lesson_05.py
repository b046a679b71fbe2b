import numpy as np

from tests.exercises import wrong


def _backward(dz, cache, row_sum_from=0, scale=True):
    """Right as it stands; each answer below changes one thing."""
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


@wrong("attention_backward", says="the zoo's row-sum-over-the-tokens-alone")
def the_row_sum_leaves_the_slots_out(dz, cache):
    return _backward(dz, cache, row_sum_from=1)


@wrong("attention_backward", says="= sqrt(hs): is 1/sqrt(hs) missing?")
def the_scale_is_forgotten_for_the_slots(dz, cache):
    return _backward(dz, cache, scale=False)


@wrong("attention_backward", says="the zoo's dprefix-k-and-v-swapped")
def keys_and_values_are_swapped(dz, cache):
    dq, dk, dv, dprefix_k, dprefix_v = _backward(dz, cache)
    return dq, dk, dv, dprefix_v, dprefix_k
