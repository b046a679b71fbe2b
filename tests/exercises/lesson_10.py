import numpy as np

from tests.exercises import wrong


def _answer_of(q, keys, values, seen, hidden_in_the_sum, scale):
    scores = q @ keys.swapaxes(1, 2) / scale
    top = np.where(seen, scores, -np.inf).max(axis=2, keepdims=True)
    e = np.exp(scores - top)
    hidden = np.where(seen, e, 0)
    total = (e if hidden_in_the_sum else hidden).sum(axis=2, keepdims=True)
    return hidden / total @ values, top + np.log(total)


def _attention(arguments, own_answers=True, hidden_in_the_sum=False, scaled=True):
    """Right as it stands; each answer below changes one thing."""
    q, k, v, prefix_k, prefix_v, offsets = arguments
    scale = q.shape[2] ** 0.5 if scaled else 1
    z = np.empty_like(q)
    for b in range(len(offsets) - 1):
        rows = slice(offsets[b], offsets[b + 1])
        q_b, k_b, v_b = (a[rows].swapaxes(0, 1) for a in (q, k, v))
        seen = np.tri(q_b.shape[1], dtype=bool)
        z_b, log_b = _answer_of(q_b, k_b, v_b, seen, hidden_in_the_sum, scale)
        if prefix_k[b].shape[1]:
            own, log_a = _answer_of(q_b, prefix_k[b], prefix_v[b], True, False, scale)
            with np.errstate(over="ignore"):
                lam = 1 / (1 + np.exp(log_b - log_a))
            z_b = (lam * own if own_answers else 0) + (1 - lam) * z_b
        z[rows] = z_b.swapaxes(0, 1)
    return z, None


@wrong("attention", says="the zoo's values-of-the-prefix-left-out")
def the_slots_take_their_share_and_answer_nothing(*arguments):
    return _attention(arguments, own_answers=False)


@wrong("attention", says="the zoo's mask-after-the-softmax")
def the_sum_over_the_tokens_runs_into_the_future(*arguments):
    return _attention(arguments, hidden_in_the_sum=True)


@wrong("attention", says="the zoo's scores-unscaled")
def the_scores_are_not_divided_by_the_root(*arguments):
    return _attention(arguments, scaled=False)
