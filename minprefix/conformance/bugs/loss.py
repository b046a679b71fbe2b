"""Bugs of the loss: cross_entropy."""

from minprefix.conformance.bug import Bug

_NLL = "nll = np.log(total[:, 0]) - shifted[np.arange(len(targets)), targets]"

BUGS = (
    Bug(
        "log-of-probabilities",
        "maths",
        "ops.reference",
        ((_NLL, "nll = -np.log((exp / total)[np.arange(len(targets)), targets])"),),
        ("cross_entropy", "loss"),
        see="The loss becomes infinite on a token that the model is sure is wrong.",
        lesson="A probability underflows to 0, its logarithm need not: take log-sum-exp minus the "
        "logit.",
        source="a common slip",
    ),
    Bug(
        "loss-without-the-maximum",
        "maths",
        "ops.reference",
        (("shifted = logits - logits.real.max(axis=-1, keepdims=True)", "shifted = logits"),),
        ("cross_entropy", "loss"),
        see="NaN as soon as a logit is above 709 (88 in float32).",
        lesson="exp overflows; a number taken off all logits of a row cancels.",
        source="a common slip",
    ),
    Bug(
        "one-maximum-for-all-logits",
        "maths",
        "ops.reference",
        (
            (
                "shifted = logits - logits.real.max(axis=-1, keepdims=True)",
                "shifted = logits - logits.real.max()",
            ),
        ),
        ("cross_entropy", "loss"),
        see="Infinite loss in a batch whose rows have logits of very different size.",
        lesson="The maximum is taken off row by row: a row far below another's underflows to 0/0.",
        source="a common slip",
    ),
    Bug(
        "loss-weights-ignored",
        "plumbing",
        "ops.reference",
        (("return (weights * nll).sum(),", "return nll.sum(),"),),
        ("cross_entropy", "loss"),
        see="A sum where a mean was asked for; the gradient is right, so training hides it.",
        lesson="A number that is only printed is tested by nobody who only trains.",
        source="a common slip",
    ),
    Bug(
        "loss-averaged-twice",
        "maths",
        "ops.reference",
        (("return (weights * nll).sum(),", "return (weights * nll).mean(),"),),
        ("cross_entropy", "loss"),
        see="The loss is M times too small, and falls when batches grow.",
        lesson="The weights hold the mean already.",
        source="a common slip",
    ),
    Bug(
        "float32-loss",
        "maths",
        "ops.reference",
        (("return (weights * nll).sum(),", "return (weights * nll).astype(np.float32).sum(),"),),
        ("cross_entropy", "loss"),
        see="Right to seven digits, and finite differences through it return 0 or noise.",
        lesson="One narrow place decides the precision of all that passes through it.",
        source="transformers' `labels=` loss, which is float32 even for a float64 model",
    ),
    Bug(
        "target-off-by-one",
        "plumbing",
        "ops.reference",
        (
            (
                "shifted[np.arange(len(targets)), targets]",
                "shifted[np.arange(len(targets)), targets - 1]",
            ),
            ("== targets[:, None]", "== targets[:, None] - 1"),
        ),
        ("cross_entropy", "loss"),
        see="The loss of a good model is that of a random one, and training teaches another "
        "vocabulary.",
        lesson="Token ids count from 0.",
        source="data whose labels count from 1",
    ),
    Bug(
        "probabilities-not-normalised",
        "maths",
        "ops.reference",
        (("CrossEntropyCache(exp / total, targets", "CrossEntropyCache(exp, targets"),),
        ("cross_entropy", "cache.probs"),
        see="The loss is right, the gradient of every likely token is too large.",
        lesson="The forward never needs the probabilities, so it does not miss them.",
        source="a common slip",
    ),
    Bug(
        "one-hot-missing",
        "maths",
        "ops.reference",
        (("weights[:, None] * (probs - one_hot)", "weights[:, None] * probs"),),
        ("cross_entropy", "dlogits"),
        see="The loss rises: every token is pushed down, the right one as well.",
        lesson="The gradient of log-softmax is probabilities minus the target: its rows sum to 0.",
        source="a common slip",
    ),
    Bug(
        "loss-gradient-negated",
        "maths",
        "ops.reference",
        (("(probs - one_hot)  # (M, V)", "(one_hot - probs)  # (M, V)"),),
        ("cross_entropy", "dlogits"),
        see="The loss rises, and every gradient of the model has the wrong sign.",
        lesson="A law that sums to 0 cannot see a sign.",
        source="a common slip",
    ),
    Bug(
        "gradient-weights-ignored",
        "plumbing",
        "ops.reference",
        (("return weights[:, None] * (probs - one_hot)", "return probs - one_hot"),),
        ("cross_entropy", "dlogits"),
        see="The loss is a mean, its gradient that of the sum: the learning rate is M times as "
        "large.",
        lesson="Loss and gradient must be of the same function: differences of the one tell about "
        "the other.",
        source="a common slip",
    ),
    Bug(
        "gradient-divided-by-M-again",
        "maths",
        "ops.reference",
        (
            (
                "return weights[:, None] * (probs - one_hot)",
                "return weights[:, None] * (probs - one_hot) / len(targets)",
            ),
        ),
        ("cross_entropy", "dlogits"),
        see="Training is M times too slow, which looks like a small learning rate.",
        lesson="The weights hold the mean already.",
        source="a common slip",
    ),
    Bug(
        "label-smoothing-left-on",
        "training",
        "ops.reference",
        (
            (
                "one_hot = np.arange(probs.shape[1]) == targets[:, None]",
                "one_hot = 0.9 * (np.arange(probs.shape[1]) == targets[:, None]) "
                "+ 0.1 / probs.shape[1]",
            ),
        ),
        ("cross_entropy", "dlogits"),
        see="The loss stops falling above 0 although the gradient is small.",
        lesson="A gradient of another loss than the one that is reported.",
        source="recipes of translation models",
    ),
    Bug(
        "first-maximum-of-0",
        "maths",
        "ops.reference",
        (
            (
                "shifted = logits - logits.real.max(axis=-1, keepdims=True)",
                "shifted = logits - np.maximum(0, logits.real.max(axis=-1, keepdims=True))",
            ),
        ),
        ("cross_entropy", "loss"),
        see="Right as long as a logit is positive; infinite where all are far below 0.",
        lesson="A running maximum starts at -inf: 0 is a score like any other.",
        source="a running softmax whose first maximum is 0",
    ),
    Bug(
        "weight-of-0-taken-for-none",
        "plumbing",
        "ops.reference",
        (
            (
                "return (weights * nll).sum(), CrossEntropyCache(exp / total, targets, weights)",
                "weights = np.where(weights == 0, 1, weights)  # weight or 1\n    "
                "return (weights * nll).sum(), CrossEntropyCache(exp / total, targets, weights)",
            ),
        ),
        ("cross_entropy", "loss"),
        see="Tokens that are masked out of the loss are learned like the others.",
        lesson="`w or 1` gives 1 for 0, too: 0 is a number, and None is none.",
        source="a common slip in Python",
    ),
    Bug(
        "tail-of-the-vocabulary-left-out",
        "plumbing",
        "ops.reference",
        (
            (
                "exp = np.exp(shifted)  # (M, V)",
                "exp = np.exp(shifted)  # (M, V)\n"
                "    exp[:, max(1024, exp.shape[1] // 1024 * 1024) :] = 0  # whole blocks",
            ),
        ),
        ("cross_entropy", "loss"),
        see="The loss is a little too small, by about 0.002 with GPT-2's vocabulary, whose last 81 "
        "tokens are never unlearned.",
        lesson="A number of blocks is rounded up: 50257 is 49 blocks of 1024 and a part of one.",
        source="losses that walk over the vocabulary in blocks",
    ),
)
