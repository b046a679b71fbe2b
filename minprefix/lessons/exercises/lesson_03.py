"""Lesson 3's exercises: the inputs on which an answer is graded, and the usual mistakes."""

import weakref
from collections.abc import Iterator

import numpy as np

from minprefix.lessons.exercise import Cases, Lazy, Rng, exercise
from minprefix.lessons.exercises.watched import by_formula, watched
from minprefix.ops import reference
from minprefix.ops.contract import Array

# M, V: more rows than an answer may call a function of the lesson, as many rows as columns, one row
SIZES = ((13, 4), (5, 5), (1, 7))


def _hard(rng: Rng) -> Array:
    """(3, 4): rows around 1000, -1000 and 0, in which one logit is far above the others."""
    logits = rng.normal(size=(3, 4)) + np.array([[1000.0], [-1000.0], [0.0]])
    logits[2, 1] += 2000
    return logits


def _targets(rng: Rng, M: int, V: int) -> tuple[Array, Array]:
    """targets (M,) and loss weights (M,), which are not those of a mean."""
    return rng.integers(V, size=M), 0.2 + rng.random(M)


# ---- softmax --------------------------------------------------------------------------------


@exercise(
    (
        "e.sum(axis=1, keepdims=True)",
        "e.sum(axis=0, keepdims=True)",
        "The sum runs over the predictions, so each column sums to 1. Each row has to: sum over "
        "the vocabulary, axis=1.",
    ),
    (
        "e.sum(axis=1, keepdims=True)",
        "e.sum()",
        "The sum runs over the whole array. Each row has to sum to 1: axis=1 and keepdims=True.",
    ),
    (
        "e / e.sum(axis=1, keepdims=True)",
        "logits / logits.sum(axis=1, keepdims=True)",
        "The logits themselves are divided, and some of them are negative. Divide e, which is "
        "np.exp(logits).",
    ),
    ("np.exp(logits)", "np.exp(-logits)", "The sign is turned: a larger logit means likelier."),
    ("np.exp(logits)", "2**logits", "The base is 2. It is e: use np.exp."),
)
def softmax_as_written(rng: Rng) -> Cases:
    """Moderate logits."""
    for M, V in SIZES:
        yield (rng.normal(size=(M, V)),)


@exercise(
    (
        "np.exp(logits - top)",
        "np.exp(logits)",
        "exp overflows: the row's largest logit is not subtracted.",
    ),
    (
        "logits.max(axis=1, keepdims=True)",
        "logits.max()",
        "One maximum is taken for all rows. In a row that is far below it, exp gives 0 everywhere: "
        "take each row's own.",
    ),
    (
        "logits.max(axis=1, keepdims=True)",
        "logits.max(axis=0, keepdims=True)",
        "The maximum runs over the predictions. Each row has a largest logit of its own: axis=1.",
    ),
    (
        "e.sum(axis=1, keepdims=True)",
        "e.sum(axis=0, keepdims=True)",
        "The sum runs over the predictions, so each column sums to 1. Each row has to: sum over "
        "the vocabulary, axis=1.",
    ),
    (
        "logits.max(axis=1, keepdims=True)",
        "logits.min(axis=1, keepdims=True)",
        "The smallest logit is subtracted. Then the others can overflow still: take the largest.",
    ),
    (
        "logits.max(axis=1, keepdims=True)",
        "logits.max(axis=1)",
        "keepdims=True is missing: the shape has to be (M, 1), so that each row gets its own "
        "number.",
    ),
    (
        "logits - top",
        "logits / top",
        "The logits are divided by the largest one, and only a subtraction cancels: take "
        "logits - top.",
    ),
)
def softmax(rng: Rng) -> Cases:
    """Rows far apart from each other, rows with one huge logit, and moderate ones."""
    yield (_hard(rng),)
    for M, V in SIZES:
        yield (rng.normal(size=(M, V)),)


@exercise(
    (
        "np.diag(probs) - np.outer(probs, probs)",
        "-np.outer(probs, probs)",
        "The diagonal is missing. A logit is in its own numerator, too: add np.diag(probs).",
    ),
    (
        "np.diag(probs) - np.outer(probs, probs)",
        "np.diag(probs) + np.outer(probs, probs)",
        "The second part has the wrong sign: a larger denominator makes every probability smaller.",
    ),
    (
        "np.diag(probs) - np.outer(probs, probs)",
        "np.diag(probs * (1 - probs))",
        "Only the diagonal is there. A logit changes all probabilities of its row, through the "
        "denominator.",
    ),
    (
        "np.diag(probs)",
        "np.eye(len(probs))",
        "The diagonal is 1 - probs_j**2. [j=k] has the factor probs_j: take np.diag(probs).",
    ),
    (
        "np.diag(probs)",
        "probs[:, None]",
        "probs_j is added in the whole row. [j=k] is 1 on the diagonal only: take np.diag(probs).",
    ),
    (
        "np.outer(probs, probs)",
        "probs * probs",
        "probs * probs has V numbers, the squares. probs_j * probs_k is wanted for every pair of "
        "j and k, which is a matrix: take np.outer.",
    ),
    (
        "np.outer(probs, probs)",
        "(probs @ probs)",
        "probs @ probs is one number, the sum of the squares. probs_j * probs_k is wanted for "
        "every pair of j and k: take np.outer.",
    ),
)
def softmax_jacobian(rng: Rng) -> Cases:
    """One row each, the first so long that trying values out is seen."""
    for V in (12, 3, 5):
        (probs,) = reference.softmax(rng.normal(size=(1, V)))
        yield (by_formula(probs),)


@exercise(
    (
        "dprobs - row_sum",
        "dprobs",
        "The row sum is missing: the probabilities of a row share 1, so one that grows makes the "
        "others smaller.",
    ),
    (
        "axis=1",
        "axis=0",
        "The sum runs over the predictions. Each row has a softmax of its own: sum over the "
        "vocabulary, axis=1.",
    ),
    (
        "(dprobs * probs).sum(axis=1, keepdims=True)",
        "dprobs.sum(axis=1, keepdims=True)",
        "The row sum is that of dprobs alone. It is the sum of dprobs * probs.",
    ),
    (
        "(dprobs * probs).sum(axis=1, keepdims=True)",
        "dprobs.mean(axis=1, keepdims=True)",
        "The plain mean of dprobs is subtracted. The mean has to be weighted with the "
        "probabilities: the sum of dprobs * probs.",
    ),
    (
        "(dprobs * probs).sum(axis=1, keepdims=True)",
        "(dprobs * probs).mean(axis=1, keepdims=True)",
        "The row sum is divided by V. The probabilities sum to 1 already: take the sum.",
    ),
    (
        "probs * (dprobs - row_sum)",
        "probs * dprobs - row_sum",
        "The row sum is not multiplied by probs. It is the same for the whole row, but its share "
        "is probs_k: probs * (dprobs - row_sum).",
    ),
    (
        "probs * (dprobs - row_sum)",
        "dprobs - row_sum",
        "The factor probs is missing: a token with the probability 0 has the gradient 0.",
    ),
    (
        "probs * (dprobs - row_sum)",
        "probs * (1 - probs) * dprobs",
        "Only the diagonal of the Jacobian is used. Each logit changes all probabilities of its "
        "row.",
    ),
    (
        "probs * (dprobs - row_sum)",
        "probs * (row_sum - dprobs)",
        "The sign is turned: a logit whose dprobs is above the row sum has a positive gradient.",
    ),
    (
        "(dprobs * probs).sum(axis=1, keepdims=True)",
        "(dprobs * probs).sum(axis=1)",
        "keepdims=True is missing: the shape has to be (M, 1), so that each row gets its own "
        "number.",
    ),
    (
        "dprobs - row_sum",
        "dprobs - probs * row_sum",
        "probs is one factor too often: probs_k stands in front of the bracket already, so the "
        "bracket is dprobs - row_sum.",
    ),
)
def softmax_backward(rng: Rng) -> Cases:
    """More rows than Jacobians may be made; as many rows as columns; one row."""
    for M, V in SIZES:
        probs = reference.softmax(rng.normal(size=(M, V)))
        yield rng.normal(size=(M, V)), by_formula(probs, M * V)


# ---- what a batch predicts ------------------------------------------------------------------


@exercise(
    (
        "start + first - 1, start + T - 1",
        "start + first, start + T",
        "The rows are those of the targets themselves. A row predicts the token after it, so each "
        "row is one smaller.",
    ),
    (
        "start + first - 1, start + T - 1",
        "start + first - 1, start + T",
        "The last row of a sequence is among them. The token after it belongs to the next "
        "sequence, so it predicts nothing.",
    ),
    (
        "start + first - 1, start + T - 1",
        "start + first, start + T - 1",
        "The first prediction is missing. Token start + first is predicted by the row before it.",
    ),
    (
        "start + first - 1, start + T - 1",
        "start, start + T - 1",
        "The tokens before loss_from are predicted, too. They are given: begin with the row "
        "before token start + first.",
    ),
    (
        "start + first - 1, start + T - 1",
        "first - 1, T - 1",
        "The rows are counted from the beginning of each sequence. Count them from the beginning "
        "of the stream: add the lengths of the sequences before.",
    ),
    (
        "tokens[rows + 1]",
        "tokens[rows]",
        "The targets are the rows' own tokens. A row predicts the token after it: "
        "tokens[rows + 1].",
    ),
    ("1 / len(rows)", "1.0", "The loss weights are those of a sum. For the mean each is 1 / M."),
    (
        "1 / len(rows)",
        "1 / len(tokens)",
        "The loss weights are 1 / N. The mean is over the M predictions, so each is 1 / M.",
    ),
    (
        "np.full(len(rows), 1 / len(rows))",
        "np.concatenate([np.full(len(s) - a, 1 / max(1, len(s) - a) / len(sequences))"
        " for s, a in zip(sequences, loss_from, strict=True)])",
        "This is the mean of the sequences' means. In the mean over all predictions each counts "
        "the same: 1 / M.",
    ),
)
def targets_of(rng: Rng) -> Cases:
    """Sequences of unlike lengths; one with nothing to predict; a single one."""
    for lengths, loss_from in (((4, 2, 6), (2, 1, 3)), ((3, 3, 5), (1, 3, 4)), ((7,), (1,))):
        yield [rng.integers(50, size=T) for T in lengths], list(loss_from)


# ---- the loss -------------------------------------------------------------------------------


@exercise(
    (
        "logits - logits.max(axis=1, keepdims=True)",
        "logits",
        "The row's largest logit is not subtracted, so exp overflows.",
    ),
    (
        "logits - logits.max(axis=1, keepdims=True)",
        "logits - logits.max()",
        "One maximum is taken for all rows. In a row that is far below it the sum is 0, and its "
        "logarithm is infinite: take each row's own.",
    ),
    (
        "shifted - np.log(total)",
        "logits - np.log(total)",
        "The maximum is subtracted under the logarithm only. It has to cancel: subtract it from "
        "the first term, too (shifted).",
    ),
    (
        "shifted - np.log(total)",
        "shifted / np.log(total)",
        "The logarithm of a quotient is a difference: shifted - np.log(total).",
    ),
    (
        "shifted - np.log(total)",
        "np.log(total) - shifted",
        "The sign is turned: this is minus the logarithm.",
    ),
    (
        "shifted - np.log(total)",
        "np.log(np.exp(shifted) / total)",
        "The logarithm is taken of the probability, which may be 0 after rounding. Do not take "
        "exp in the first term: shifted - np.log(total).",
    ),
    (
        "np.exp(shifted).sum(axis=1, keepdims=True)",
        "np.exp(shifted).sum(axis=0, keepdims=True)",
        "The sum runs over the predictions. Each row has a sum of its own: axis=1.",
    ),
    (
        "shifted - np.log(total)",
        "shifted - total",
        "The sum itself is subtracted. Subtract its logarithm, np.log(total).",
    ),
)
def log_softmax(rng: Rng) -> Cases:
    """Rows far apart from each other, rows with one huge logit, and moderate ones."""
    yield (_hard(rng),)
    for M, V in SIZES:
        yield (rng.normal(size=(M, V)),)


@exercise(
    (
        "log_probs[np.arange(len(targets)), targets]",
        "log_probs[:, targets]",
        "Every target's column is taken from every row, (M, M). Take one number from each row: "
        "log_probs[np.arange(M), targets].",
    ),
    (
        "-log_probs",
        "log_probs",
        "The minus is missing: the logarithm of a probability is negative, and a loss is not.",
    ),
    ("(weights * nll).sum()", "nll.sum()", "The loss weights are not used: sum weights * nll."),
    (
        "(weights * nll).sum()",
        "(weights * nll).mean()",
        "The weighted sum is divided by M. The loss weights say already whether it is a mean.",
    ),
    (
        "(weights * nll).sum()",
        "nll.mean()",
        "The plain mean is taken. The loss weights say what each prediction counts: sum "
        "weights * nll.",
    ),
    (
        "(weights * nll).sum()",
        "(weights * nll).sum() / weights.sum()",
        "The loss is divided by the sum of the loss weights. It is the weighted sum as it stands.",
    ),
    (
        "(weights * nll).sum()",
        "(weights[:, None] * nll).sum()",
        "Every loss weight multiplies every nll, (M, M). Both arrays are (M): weights * nll.",
    ),
    (
        "probs = np.exp(log_probs)",
        "probs = log_probs",
        "The cache holds logarithms. The backward needs probabilities: np.exp(log_probs).",
    ),
)
def cross_entropy(rng: Rng) -> Cases:
    """Targets of a probability that rounds to 0 among them."""
    logits = _hard(rng)
    yield logits, *_targets(rng, *logits.shape)
    for M, V in SIZES:
        yield rng.normal(size=(M, V)), *_targets(rng, M, V)


@exercise(
    (
        "np.concatenate(nlls).mean()",
        "np.mean([nll.mean() for nll in nlls])",
        "This is the mean of the texts' means, in which a token of a short text counts more. Join "
        "the arrays first.",
    ),
    (
        "np.concatenate(nlls).mean()",
        "np.concatenate(nlls).sum()",
        "The sum is taken. Divide it by the number of tokens.",
    ),
    (
        "np.concatenate(nlls).mean()",
        "sum(nll.sum() for nll in nlls) / len(nlls)",
        "The sum is divided by the number of texts. Divide it by the number of tokens.",
    ),
    ("np.exp(mean)", "2**mean", "The base is 2, but the losses are in nats: take np.exp."),
    (
        "np.exp(mean)",
        "np.exp(np.concatenate(nlls)).mean()",
        "The mean is taken after exp. Take it first: the perplexity is exp of the mean loss.",
    ),
    (
        "np.concatenate(nlls).mean()",
        "np.mean([np.exp(nll.mean()) for nll in nlls])",
        "This is the mean of the texts' perplexities. Join the arrays, take the mean loss, and "
        "take exp at the end.",
    ),
    ("np.exp(mean)", "np.exp(-mean)", "The sign is turned: a perplexity is 1 or more."),
)
def perplexity(rng: Rng) -> Cases:
    """Texts of unlike lengths; a single one."""
    for lengths in ((2, 9, 1), (5, 3), (4,)):
        yield ([3 * rng.random(n) for n in lengths],)


@exercise(
    (
        "weights[:, None] * (probs - one_hot)",
        "weights[:, None] * probs",
        "The one-hot is missing: nothing pulls the target's logit up.",
    ),
    (
        "weights[:, None] * (probs - one_hot)",
        "probs - one_hot",
        "The loss weights are missing: multiply each row by its own.",
    ),
    (
        "(probs - one_hot)",
        "(one_hot - probs)",
        "The sign is turned: a larger logit of the target makes the loss smaller, so its gradient "
        "is negative.",
    ),
    (
        "weights[:, None] * (probs - one_hot)",
        "weights[:, None] * (probs - one_hot) / len(targets)",
        "The gradient is divided by M. The loss weights say already whether it is a mean.",
    ),
    (
        "weights[:, None] * (probs - one_hot)",
        "weights[:, None] * probs - one_hot",
        "The loss weights multiply probs alone. They multiply the whole difference.",
    ),
    (
        "np.arange(probs.shape[1]) == targets[:, None]",
        "np.arange(probs.shape[1]) == targets[:, None] + 1",
        "The one-hot is one column too far to the right. Targets count from 0.",
    ),
    (
        "np.arange(probs.shape[1]) == targets[:, None]",
        "np.isin(np.arange(probs.shape[1]), targets)[None] & (probs > -1)",
        "Each row has a 1 for every row's target (as with one_hot[:, targets] = 1). Each row has "
        "one target: one_hot[np.arange(M), targets] = 1.",
    ),
)
def cross_entropy_backward(rng: Rng) -> Cases:
    """The first has targets of the probability 0, by which nobody can divide."""
    logits = _hard(rng)
    targets, weights = np.array([0, 3, 2]), 0.2 + rng.random(3)
    yield (reference.cross_entropy(logits, targets, weights)[1],)
    for M, V in SIZES:
        targets, weights = _targets(rng, M, V)
        yield (reference.cross_entropy(rng.normal(size=(M, V)), targets, weights)[1],)


# ---- micro-batches --------------------------------------------------------------------------


class MicroBatches:
    """Yields one micro-batch at a time, an array of targets, and looks whether the ones before
    are still held."""

    def __init__(self, parts: list[list[int]]) -> None:
        self.parts = parts

    def __iter__(self) -> Iterator[Array]:
        out: list[weakref.ref[Array]] = []
        for part in self.parts:
            if sum(ref() is not None for ref in out) > 1:
                raise Lazy(
                    "collects the micro-batches, but only one fits into memory: compute the loss "
                    "and the gradient of each, and add them up."
                )
            targets = np.array(part)
            out.append(weakref.ref(targets))
            yield targets

    def __len__(self) -> int:
        return len(self.parts)


@exercise(
    (
        "np.full(size, 1 / M)",
        "np.full(size, 1 / (size * len(parts)))",
        "This is the mean of the micro-batches' means, in which a prediction of a small one counts "
        "more. Give each prediction the loss weight 1 / M.",
    ),
    (
        "np.full(size, 1 / M)",
        "np.full(size, 1 / size)",
        "The means of the micro-batches are added up. Give each prediction the loss weight 1 / M, "
        "with M predictions in all.",
    ),
    (
        "np.full(size, 1 / M)",
        "np.ones(size)",
        "This is the sum over all predictions. For the mean each has the loss weight 1 / M.",
    ),
    (
        "cross_entropy_backward(cache).sum(axis=0)",
        "cross_entropy_backward(cache).mean(axis=0)",
        "db is a mean over the rows of a micro-batch. b is used in each of them, and the "
        "influences add up: take the sum.",
    ),
    (
        "db += cross_entropy_backward(cache)",
        "db = cross_entropy_backward(cache)",
        "db is that of the last micro-batch alone. Add to it: db += ...",
    ),
    (
        "loss += of_part",
        "loss = of_part",
        "The loss is that of the last micro-batch alone. Add to it: loss += ...",
    ),
)
def mean_in_parts(rng: Rng) -> Cases:
    """Micro-batches of unlike sizes; of one prediction each; a single one."""
    for V, sizes in ((6, (3, 1, 5, 2)), (4, (1, 1, 1)), (5, (4,))):
        largest = max(sizes) * V

        def one_at_a_time(_: str, result: Array, is_new: bool, largest: int = largest) -> None:
            if result.size > largest:
                raise Lazy(
                    f"makes an array {result.shape}, with a row for more predictions than any "
                    "micro-batch has, but only one fits into memory: compute the loss and the "
                    "gradient of each, and add them up."
                )

        b = watched(rng.normal(size=V), one_at_a_time)
        yield b, MicroBatches([list(rng.integers(V, size=n)) for n in sizes])
