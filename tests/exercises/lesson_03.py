import numpy as np

from tests.exercises import wrong


def _forward(logits, targets, weights, shift=True, log_of_probs=False, weighted=True):
    """Right as it stands; each answer below changes one thing."""
    shifted = logits - logits.max(axis=1, keepdims=True) if shift else logits
    with np.errstate(all="ignore"):
        e = np.exp(shifted)
        total = e.sum(axis=1, keepdims=True)
        at = np.arange(len(targets)), targets
        nll = -np.log((e / total)[at]) if log_of_probs else np.log(total[:, 0]) - shifted[at]
        return (weights * nll).sum() if weighted else nll.sum(), (e / total, targets, weights)


@wrong("cross_entropy", says="the zoo's loss-averaged-twice")
def the_mean_is_taken_of_what_has_weights(logits, targets, weights):
    loss, cache = _forward(logits, targets, weights)
    return loss / len(targets), cache


@wrong("cross_entropy", says="the zoo's loss-weights-ignored")
def the_weights_are_forgotten(logits, targets, weights):
    return _forward(logits, targets, weights, weighted=False)


@wrong("cross_entropy", says="does exp overflow")
def the_largest_logit_is_not_taken_off(logits, targets, weights):
    return _forward(logits, targets, weights, shift=False)


@wrong("cross_entropy", says="is something divided by 0")
def the_logarithm_is_taken_of_probabilities(logits, targets, weights):
    return _forward(logits, targets, weights, log_of_probs=True)


def _one_hot(cache):
    probs, targets, _ = cache
    return np.arange(probs.shape[1]) == targets[:, None]


@wrong("cross_entropy_backward", says="the zoo's one-hot-missing")
def the_one_hot_is_forgotten(cache):
    probs, _, weights = cache
    return weights[:, None] * probs


@wrong("cross_entropy_backward", says="the zoo's gradient-weights-ignored")
def the_weights_are_forgotten_on_the_way_back(cache):
    return cache[0] - _one_hot(cache)


@wrong("cross_entropy_backward", says="the zoo's gradient-divided-by-M-again")
def the_mean_is_taken_again(cache):
    probs, targets, weights = cache
    return weights[:, None] * (probs - _one_hot(cache)) / len(targets)


@wrong("cross_entropy_backward", says="dlogits has the wrong sign")
def the_target_is_pushed_down(cache):
    probs, _, weights = cache
    return weights[:, None] * (_one_hot(cache) - probs)
