import numpy as np

from tests.exercises import wrong


def _backward(dz, cache, row_sum=True, scale=True):
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
        taken = (dpattern * pattern).sum(axis=2, keepdims=True) if row_sum else 0
        dscores = pattern * (dpattern - taken) / (hs**0.5 if scale else 1)
        dkeys = dscores.swapaxes(1, 2) @ q
        dq[start:end] = (dscores @ keys).swapaxes(0, 1)
        dk[start:end] = dkeys[:, P:].swapaxes(0, 1)
        dv[start:end] = dvalues[:, P:].swapaxes(0, 1)
        dprefix_k.append(dkeys[:, :P])
        dprefix_v.append(dvalues[:, :P])
    return dq, dk, dv, dprefix_k, dprefix_v


@wrong("attention_backward", says="= sqrt(hs): is 1/sqrt(hs) missing?")
def the_division_is_taken_out(dz, cache):
    return _backward(dz, cache, scale=False)


@wrong("attention_backward", says="the zoo's row-sum-dropped")
def the_row_sum_is_lost_in_the_rewriting(dz, cache):
    return _backward(dz, cache, row_sum=False)
