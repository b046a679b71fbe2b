"""Lesson 1's exercises: the inputs on which an answer is graded, and the usual mistakes."""

import numpy as np

from minprefix.lessons.exercise import Cases, Rng, exercise
from minprefix.model import GPT2
from minprefix.prefix import Prefix


@exercise(
    (
        "scores[-1]",
        "scores[0]",
        "The next token is read from the first row, which predicts the second token of the "
        "prompt. Read the last row.",
    ),
    ("ids[start:]", "ids", "The prompt is part of what is returned. Decode the new tokens alone."),
    (
        "model.logits(Batch.pack([ids]), prefix)",
        "model.logits(Batch.pack([ids]))",
        "The prefix is not used. Give it to `model.logits`.",
    ),
    (
        "while len(ids) < start + most:",
        "while len(ids) < most:",
        "`most` counts the new tokens. The tokens of the prompt do not count.",
    ),
    (
        "if best == model.config.eos_token_id:",
        "if False:",
        "It goes on after the end token. Stop when the model chooses it, and leave it out.",
    ),
    (
        "scores[-1]",
        "scores[:, -1]",
        "The last column is read: the scores of one token of the vocabulary. The scores for the "
        "next token are the last row, scores[-1].",
    ),
    (
        "Batch.pack([ids])",
        "Batch.pack([ids[:start]])",
        "The model sees the prompt alone, so it chooses the same token each time. Give it the new "
        "tokens, too.",
    ),
    (
        "Batch.pack([ids])",
        "Batch.pack([ids if len(ids) == start else ids[-1:]])",
        "After the first token the model sees the newest token alone. It remembers nothing of "
        "earlier calls: give it the whole text each time.",
    ),
)
def write_greedily(rng: Rng) -> Cases:
    """Stopped by `most`, stopped by the end token, without a prefix and with one."""
    model = GPT2.load("tiny")
    describe = Prefix.text(model, "describe\n")
    record = "name[Mill and Table], type[film], genre[comedy]\n"
    yield model, record, describe, 3
    yield model, record, describe, 30
    yield model, "chat\nname[Elena Turner], type[person]\n", None, 30
    yield model, record, None, 5


@exercise(
    ("n_layer * 2 *", "n_layer *", "A slot has a key and a value in each head: the 2 is missing."),
    (
        "n_layer * 2 *",
        "2 *",
        "Each layer has keys and values of its own: multiply by the number of layers.",
    ),
    (
        "n_head * length",
        "length",
        "Each head has keys and values of its own: multiply by the number of heads.",
    ),
    ("n / n_weights", "100 * n / n_weights", "This is a percentage. A fraction is n / n_weights."),
    (
        "n / n_weights",
        "n / (n + n_weights)",
        "The fraction is of the model's weights alone: divide by `n_weights`.",
    ),
    (
        "n / n_weights",
        "n_weights / n",
        "The fraction is upside down. It is the prefix's numbers divided by the model's.",
    ),
    (
        "length * head_size",
        "length",
        "A key has `head_size` numbers, and so has a value: multiply by it.",
    ),
)
def prefix_size(rng: Rng) -> Cases:
    yield 4, 5, 32, 10, 1_442_240
    yield 12, 12, 64, 5, 124_439_808
    yield 3, 2, 7, 1, 1000


@exercise(
    (
        "start - 1, len(ids) - 1",
        "start, len(ids)",
        "Row t predicts the token after token t. The rows begin one before `start` and end one "
        "before the last.",
    ),
    (
        "-np.log(p).mean()",
        "-np.log(p).sum()",
        "This is the sum. The loss is the mean over the tokens of the description.",
    ),
    (
        "-np.log(p).mean()",
        "-np.log(p.mean())",
        "The mean is taken too early: it is the mean of the logarithms, not the logarithm of the "
        "mean.",
    ),
    (
        "-np.log(p).mean()",
        "-np.log2(p).mean()",
        "This is in bits. Take the natural logarithm, `np.log`.",
    ),
    (
        "-np.log(p).mean()",
        "np.log(p).mean()",
        "The sign is wrong. A logarithm of a probability is negative, and the loss is positive.",
    ),
    (
        "-np.log(p).mean()",
        "-np.log(p).sum() / len(ids)",
        "It is divided by all tokens of the sequence. Divide by those of the description.",
    ),
    (
        "probabilities[rows, targets]",
        "probabilities[rows][:, targets]",
        "Every target is taken from every row, (M, M). Take one number from each row: "
        "probabilities[rows, targets].",
    ),
)
def description_loss(rng: Rng) -> Cases:
    """The last row predicts nothing, and an early start takes the whole sequence."""
    for T, V, start in ((6, 5, 3), (4, 9, 1), (7, 3, 6)):
        e = np.exp(rng.normal(0, 2, (T, V)))
        yield e / e.sum(axis=1, keepdims=True), rng.integers(0, V, T), start


@exercise(
    (
        "fall / (dkv**2).sum()",
        "fall",
        "`fall` is how far the loss should fall, and s is another number: the loss falls by about "
        "s times the sum of dkv**2.",
    ),
    (
        "fall / (dkv**2).sum()",
        "fall / dkv.sum()",
        "The gradient counts twice: a number moves by s * dkv, and that is multiplied by dkv "
        "again. Divide by the sum of the squares.",
    ),
    (
        "fall / (dkv**2).sum()",
        "fall / (dkv**2).sum() ** 0.5",
        "No root belongs here: the loss falls by s times the sum of the squares.",
    ),
    ("kv - s * dkv", "kv + s * dkv", "This goes uphill. Move against the gradient."),
    (
        "(dkv**2).sum()",
        "(dkv**2).mean()",
        "This is the mean of the squares. Each number of the prefix adds its part, so take the "
        "sum.",
    ),
    (
        "(dkv**2).sum()",
        "abs(dkv).sum()",
        "The gradient counts twice: a number moves by s * dkv, and that is multiplied by dkv "
        "again. Divide by the sum of the squares, not of the sizes.",
    ),
    (
        "(dkv**2).sum()",
        "dkv**2",
        "s is one number for the whole array. Divide by the sum of the squares.",
    ),
)
def step_downhill(rng: Rng) -> Cases:
    for shape, fall in (((2, 2, 3, 4, 5), 1e-3), ((1, 2, 1, 1, 3), 0.5)):
        kv, dkv = rng.normal(size=(2, *shape))
        yield kv, dkv, fall
