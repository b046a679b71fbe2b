import numpy as np

from minprefix import Batch, evaluate
from minprefix.ops import reference
from tests.exercises import lazy, wrong

# ---- softmax


@wrong("softmax_as_written", says="The sum runs over the predictions")
def the_columns_sum_to_1(logits):
    e = np.exp(logits)
    return e / np.sum(e, axis=0)


@wrong("softmax_as_written", says="The sum runs over the whole array")
def everything_sums_to_1(logits):
    return np.exp(logits) / np.exp(logits).sum()


@lazy("softmax_as_written", says="calls ops.reference.softmax of the package")
def the_packages_softmax_is_called_at_once(logits):
    return reference.softmax(logits)


@wrong("softmax", says="exp overflows: the row's largest logit is not subtracted.")
def nothing_is_subtracted(logits):
    with np.errstate(all="ignore"):
        e = np.exp(logits)
        return e / e.sum(axis=1)[:, None]


@wrong("softmax", says="One maximum is taken for all rows")
def one_maximum_for_all(logits):
    with np.errstate(all="ignore"):
        e = np.exp(logits - np.max(logits))
        return e / e.sum(axis=1)[:, None]


@lazy("softmax", says="calls ops.reference.softmax of the package")
def the_packages_softmax_is_called(logits):
    return reference.softmax(logits)


@wrong("softmax_jacobian", says="Only the diagonal is there")
def the_other_probabilities_are_forgotten(probs):
    return np.diag(probs - probs**2)


@wrong("softmax_jacobian", says="The diagonal is missing")
def the_numerator_is_forgotten(probs):
    return -probs[:, None] * probs[None, :]


def _softmax(logits):
    e = np.exp(logits - logits.real.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def _complex_step(f, x):
    grad = np.zeros(x.shape)
    for index in np.ndindex(x.shape):
        moved = x.astype(complex)
        moved[index] += 1e-30j
        grad[index] = f(moved).imag / 1e-30
    return grad


@lazy("softmax_jacobian", says="computes with complex numbers")
def softmax_is_asked_for_its_jacobian(probs):
    logits = np.log(probs)
    rows = [
        _complex_step(lambda x, j=j: _softmax(x[None])[0, j], logits) for j in range(len(probs))
    ]
    return np.array(rows)


@lazy("softmax_jacobian", says="computes with complex numbers: that measures the derivative")
def softmax_is_measured_for_all_columns_at_once(probs):
    e = np.exp(np.log(probs) + 1e-30j * np.eye(len(probs)))
    return (e / e.sum(axis=1, keepdims=True)).imag.T / 1e-30


@wrong("softmax_jacobian", says="probs @ probs is one number")
def the_inner_product_is_taken(probs):
    J = np.diag(probs) - probs @ probs.T
    return J


@wrong("softmax_backward", says="The row sum is missing")
def the_row_sum_is_forgotten(dprobs, probs):
    return dprobs * probs


@wrong("softmax_backward", says="The row sum is not multiplied by probs")
def the_bracket_is_forgotten(dprobs, probs):
    return dprobs * probs - np.sum(dprobs * probs, 1)[:, None]


@wrong("softmax_backward", says="Only the diagonal of the Jacobian is used")
def the_slope_is_that_of_a_sigmoid(dprobs, probs):
    return dprobs * probs * (1 - probs)


def _jacobian(probs):
    return np.diag(probs) - np.outer(probs, probs)


@lazy("softmax_backward", says="as a Jacobian does")
def each_row_has_its_jacobian(dprobs, probs):
    return np.stack([d @ _jacobian(p) for d, p in zip(dprobs, probs, strict=True)])


@lazy("softmax_backward", says="makes an array (13, 4, 4), as a Jacobian does")
def all_jacobians_are_made_at_once(dprobs, probs):
    J = probs[:, :, None] * (np.eye(probs.shape[1]) - probs[:, None])
    return np.einsum("mj,mjk->mk", dprobs, J)


@lazy("softmax_backward", says="makes an array (7, 7), as a Jacobian does")
def a_jacobian_is_made_in_each_turn_of_a_loop(dprobs, probs):
    rows = [d @ (np.diag(p) - np.outer(p, p)) for d, p in zip(dprobs, probs, strict=True)]
    return np.array(rows)


@wrong("softmax_backward", says="probs is one factor too often")
def the_factor_stands_inside_and_outside(dprobs, probs):
    row_sum = (dprobs * probs).sum(axis=1, keepdims=True)
    dlogits = probs * (dprobs - probs * row_sum)
    return dlogits


# ---- what a batch predicts


@wrong("targets_of", says="The rows are those of the targets themselves")
def a_row_predicts_itself(sequences, loss_from):
    tokens, rows, at = np.concatenate(sequences), [], 0
    for s, first in zip(sequences, loss_from, strict=True):
        rows.extend(range(at + first, at + len(s)))
        at += len(s)
    rows = np.array(rows)
    return rows, tokens[rows], np.full(len(rows), 1 / len(rows))


@wrong("targets_of", says="The rows are counted from the beginning of each sequence")
def the_boundaries_are_forgotten(sequences, loss_from):
    tokens = np.concatenate(sequences)
    each = [np.arange(a - 1, len(s) - 1) for s, a in zip(sequences, loss_from, strict=True)]
    rows = np.concatenate(each)
    return rows, tokens[rows + 1], np.ones(len(rows)) / len(rows)


@wrong("targets_of", says="The loss weights are those of a sum")
def the_weights_are_those_of_a_sum(sequences, loss_from):
    batch = np.concatenate(sequences)
    starts = np.cumsum([0] + [len(s) for s in sequences])
    rows = np.concatenate(
        [np.arange(starts[b] + a - 1, starts[b + 1] - 1) for b, a in enumerate(loss_from)]
    )
    return rows, batch[rows + 1], np.ones(len(rows))


@wrong("targets_of", says="This is the mean of the sequences' means")
def each_sequence_counts_the_same(sequences, loss_from):
    tokens, rows, weights, start = np.concatenate(sequences), [], [], 0
    for s, first in zip(sequences, loss_from, strict=True):
        for t in range(first, len(s)):
            rows.append(start + t - 1)
            weights.append(1 / (len(s) - first) / len(sequences))
        start += len(s)
    rows, weights = np.array(rows), np.array(weights)
    targets = tokens[rows + 1]
    return rows, targets, weights


@lazy("targets_of", says="calls batch.Batch.pack of the package")
def the_package_packs(sequences, loss_from):
    packed = Batch.pack(sequences, loss_from=loss_from)
    M = len(packed.rows)
    return packed.rows, packed.targets, packed.weights / M


# ---- the loss


@wrong("log_softmax", says="The logarithm is taken of the probability")
def the_logarithm_is_taken_of_the_quotient(logits):
    e = np.exp(logits - logits.max(axis=1, keepdims=True))
    with np.errstate(all="ignore"):
        return np.log(e / e.sum(axis=1, keepdims=True))


@wrong("log_softmax", says="The maximum is subtracted under the logarithm only")
def the_maximum_is_not_added_again(logits):
    top = logits.max(axis=1, keepdims=True)
    return logits - np.log(np.exp(logits - top).sum(axis=1, keepdims=True))


@lazy("log_softmax", says="The logarithm is taken of the probability")
def the_softmax_of_before_is_used(logits):
    with np.errstate(all="ignore"):
        return np.log(_softmax(logits))


@lazy("log_softmax", says="calls ops.reference.softmax of the package")
def the_packages_softmax_is_logged(logits):
    with np.errstate(all="ignore"):
        return np.log(reference.softmax(logits))


def _forward(logits, targets, weights, shift=True, log_of_probs=False, weighted=True):
    """Right as it stands; each answer below changes one thing."""
    shifted = logits - logits.max(axis=1, keepdims=True) if shift else logits
    with np.errstate(all="ignore"):
        e = np.exp(shifted)
        total = e.sum(axis=1, keepdims=True)
        at = np.arange(len(targets)), targets
        nll = -np.log((e / total)[at]) if log_of_probs else np.log(total[:, 0]) - shifted[at]
        return (weights * nll).sum() if weighted else nll.sum(), (e / total, targets, weights)


@wrong("cross_entropy", says="The weighted sum is divided by M")
def the_mean_is_taken_of_what_has_weights(logits, targets, weights):
    loss, cache = _forward(logits, targets, weights)
    return loss / len(targets), cache


@wrong("cross_entropy", says="The loss weights are not used")
def the_weights_are_forgotten(logits, targets, weights):
    loss, cache = _forward(logits, targets, weights, weighted=False)
    return loss, cache


@wrong("cross_entropy", says="does exp overflow")
def the_largest_logit_is_not_taken_off(logits, targets, weights):
    return _forward(logits, targets, weights, shift=False)


@wrong("cross_entropy", says="is something divided by 0")
def the_logarithm_is_taken_of_probabilities(logits, targets, weights):
    return _forward(logits, targets, weights, log_of_probs=True)


@wrong("cross_entropy", says="Every target's column is taken from every row")
def the_columns_of_all_targets_are_taken(logits, targets, weights):
    shifted = logits - logits.max(1)[:, None]
    log_probs = shifted - np.log(np.exp(shifted).sum(1))[:, None]
    nll = -log_probs[:, targets]
    return (weights * nll).sum(), (np.exp(log_probs), targets, weights)


@lazy("cross_entropy", says="calls ops.reference.cross_entropy of the package")
def the_packages_loss_is_called(logits, targets, weights):
    return reference.cross_entropy(logits, targets, weights)


@wrong("perplexity", says="the mean of the texts' means")
def each_text_counts_the_same(nlls):
    return np.exp(np.mean([np.mean(nll) for nll in nlls]))


@wrong("perplexity", says="The base is 2")
def the_base_is_2(nlls):
    return 2 ** np.concatenate(nlls).mean()


@lazy("perplexity", says="calls evaluate.perplexity of the package")
def the_packages_perplexity_is_called(nlls):
    return evaluate.perplexity(np.concatenate(nlls).mean())


def _one_hot(cache):
    probs, targets, _ = cache
    return np.arange(probs.shape[1]) == targets[:, None]


@wrong("cross_entropy_backward", says="The one-hot is missing")
def the_one_hot_is_forgotten(cache):
    probs, _, weights = cache
    return weights[:, None] * probs


@wrong("cross_entropy_backward", says="The loss weights are missing")
def the_weights_are_forgotten_on_the_way_back(cache):
    dlogits = cache[0] - _one_hot(cache)
    return dlogits


@wrong("cross_entropy_backward", says="The gradient is divided by M")
def the_mean_is_taken_again(cache):
    probs, targets, weights = cache
    return weights[:, None] * (probs - _one_hot(cache)) / len(targets)


@wrong("cross_entropy_backward", says="The sign is turned")
def the_target_is_pushed_down(cache):
    probs, _, weights = cache
    return weights[:, None] * (_one_hot(cache) - probs)


@wrong("cross_entropy_backward", says="Each row has a 1 for every row's target")
def one_is_subtracted_in_all_rows(cache):
    probs, targets, weights = cache
    one_hot = np.zeros_like(probs)
    one_hot[:, targets] = 1
    dlogits = weights[:, None] * (probs - one_hot)
    return dlogits


@lazy("cross_entropy_backward", says="NaN")
def the_gradient_goes_the_long_way(cache):
    probs, targets, weights = cache
    at = np.arange(len(targets)), targets
    dprobs = np.zeros_like(probs)
    with np.errstate(all="ignore"):
        dprobs[at] = -weights / probs[at]
        return probs * (dprobs - (dprobs * probs).sum(axis=1, keepdims=True))


# ---- micro-batches


def _part(b, targets, weight):
    M = len(targets)
    loss, cache = _forward(np.tile(b, (M, 1)), targets, np.full(M, weight))
    return loss, weight * (cache[0] - _one_hot(cache)).sum(axis=0)


@wrong("mean_in_parts", says="This is the mean of the micro-batches' means")
def the_means_are_averaged(b, parts):
    loss, db = 0.0, np.zeros(len(b))
    for targets in parts:
        of_part, grad = _part(b, targets, 1 / len(targets))
        loss += of_part / len(parts)
        db += grad / len(parts)
    return loss, db


@wrong("mean_in_parts", says="This is the sum over all predictions")
def nothing_is_divided(b, parts):
    loss, db = 0.0, np.zeros(len(b))
    for targets in parts:
        of_part, grad = _part(b, targets, 1.0)
        loss, db = loss + of_part, db + grad
    return loss, db


@lazy("mean_in_parts", says="collects the micro-batches, but only one fits into memory")
def the_parts_are_joined(b, parts):
    targets = np.concatenate(list(parts))
    return _part(b, targets, 1 / len(targets))


@lazy("mean_in_parts", says="makes an array (11, 6), with a row for more predictions")
def the_targets_are_copied(b, parts):
    targets = np.concatenate([part.copy() for part in parts])
    return _part(b, targets, 1 / len(targets))
