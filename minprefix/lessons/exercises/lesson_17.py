"""Lesson 17's exercises: the inputs on which an answer is graded, and the usual mistakes."""

import numpy as np

from minprefix.lessons.exercise import Cases, Rng, exercise


@exercise(
    (
        "(logits - logits.max()) / temperature",
        "(logits - logits.max()) * temperature",
        "The logits are multiplied by the temperature, so a large one makes the likely tokens "
        "likelier. Divide by it.",
    ),
    (
        "(logits - logits.max()) / temperature",
        "(logits - logits.max())",
        "The temperature is not used. Divide the logits by it before the softmax.",
    ),
    (
        "np.exp((logits - logits.max()) / temperature)",
        "np.exp(logits / temperature)",
        "Large logits overflow to infinity. Subtract the largest one first; it cancels.",
    ),
    ("p = e / e.sum()", "p = e", "These numbers do not sum to 1. Divide by their sum."),
    (
        "np.exp((logits - logits.max()) / temperature)",
        "np.exp(logits - logits.max()) / temperature",
        "The division comes after exp, where it cancels. Divide inside of exp.",
    ),
)
def temperature_probabilities(rng: Rng) -> Cases:
    """Cold and warm; logits that overflow, and more so when they are divided."""
    for V, temperature, scale in ((5, 0.5, 2.0), (7, 2.0, 3.0), (4, 1.3, 1000.0), (6, 0.2, 700.0)):
        yield scale * (rng.normal(size=V) + 3), temperature


@exercise(
    (
        'np.argsort(-p, kind="stable")',
        "np.argsort(p)[::-1]",
        "Of equal probabilities the later token comes first here: a list that is turned around "
        'turns them around, too. Sort by -p, with kind="stable".',
    ),
    (
        "p[kept] / p[kept].sum()",
        "p[kept] / top_p",
        "The kept ones sum to at least top_p, mostly to more. Divide by their own sum.",
    ),
    (
        ".sum() + 1]",
        ".sum()]",
        "The token that crosses the limit is missing, so the set holds less than top_p. Keep one "
        "more.",
    ),
    (
        'np.argsort(-p, kind="stable")',
        'np.argsort(p, kind="stable")',
        "The least likely tokens come first. Sort by -p.",
    ),
    (
        "p[kept] / p[kept].sum()",
        "p[kept]",
        "The kept probabilities do not sum to 1. Divide by their sum.",
    ),
    (
        "np.cumsum(p[order])",
        "np.cumsum(p)",
        "The sums run over the tokens in their old order. Add up p[order].",
    ),
    (
        "np.cumsum(p[order])",
        "p[order]",
        "Each probability is compared with the limit by itself. Compare the sum of the likeliest "
        "ones: np.cumsum.",
    ),
)
def top_p_set(rng: Rng) -> Cases:
    """A flat and a steep distribution; a first token that is enough; a limit that is met exactly;
    the whole vocabulary."""
    for V, power, top_p in ((6, 1, 0.7), (9, 4, 0.9), (5, 30, 0.3)):
        p = rng.uniform(size=V) ** power
        yield p / p.sum(), top_p
    yield np.array([0.125, 0.5, 0.25, 0.125]), 0.75
    yield np.array([0.125, 0.5, 0.25, 0.125]), 1.0


@exercise(
    (
        "(ends <= u).sum()",
        "(ends < u).sum()",
        "A number that is the beginning of a piece belongs to it, so a piece of probability 0 is "
        "never drawn. Count the ends that are at or below u.",
    ),
    (
        "(ends <= u).sum()",
        "np.abs(ends - u).argmin()",
        "This is the nearest end, which may lie on the other side. Count the ends at or below u.",
    ),
    (
        "(ends <= u).sum()",
        "np.argmax(p)",
        "This is greedy: u does not matter. Find the piece in which u falls.",
    ),
    (
        "np.cumsum(p)",
        "p",
        "The probabilities are compared with u one by one. Lay them end to end: np.cumsum.",
    ),
)
def draw(rng: Rng) -> Cases:
    """In the middle of pieces; exactly between two; tokens of probability 0, the first one too."""
    p = np.array([0.125, 0.25, 0.0, 0.5, 0.125])
    for u in (0.2, 0.125, 0.375, 0.999, 0.6):
        yield p, u
    yield np.array([0.0, 0.75, 0.25]), 0.0
    for _ in range(4):
        p = rng.uniform(size=6)
        yield p / p.sum(), rng.uniform()


@exercise(
    (
        "logits[start - 1 : -1]",
        "logits[start:]",
        "Each token is looked up in the row that it stands in. Row i predicts token i + 1: begin "
        "at start - 1 and leave out the last row.",
    ),
    (
        "chosen.sum()",
        "chosen.mean()",
        "This is the mean over the tokens. The logarithm of a product is the sum.",
    ),
    (
        "chosen.sum()",
        "-chosen.sum()",
        "This is the loss, which has the other sign. A log-probability is at most 0.",
    ),
    (
        "np.exp(shifted).sum(axis=1, keepdims=True)",
        "np.exp(shifted).sum()",
        "One sum for all rows. Each row has a softmax of its own: axis=1.",
    ),
    (
        "rows - rows.max(axis=1, keepdims=True)",
        "1.0 * rows",
        "Large logits overflow in exp. Subtract the largest of each row first.",
    ),
)
def sequence_logprob(rng: Rng) -> Cases:
    """Texts of several tokens and of one; as many rows as words; logits that overflow."""
    for T, start, V, scale in ((7, 3, 5, 1.0), (6, 2, 6, 3.0), (4, 3, 9, 1.0), (5, 1, 4, 500.0)):
        logits = scale * rng.normal(size=(T, V)) + scale
        ids = [int(i) for i in rng.integers(V, size=T)]
        yield logits, ids, start


@exercise(
    (
        "totals[:, None] + logp",
        "logp + 0 * totals[:, None]",
        "What the texts have cost so far is left out. Add their totals to each row.",
    ),
    (
        'np.argsort(-extended.ravel(), kind="stable")',
        "np.argsort(extended.ravel())[::-1]",
        "Of equal totals the later one comes first here: a list that is turned around turns them "
        'around, too. Sort by -extended, with kind="stable".',
    ),
    (
        'np.argsort(-extended.ravel(), kind="stable")',
        'np.argsort(extended.ravel(), kind="stable")',
        "The worst ones come first. Sort by -extended.",
    ),
    (
        "totals[:, None] + logp",
        "totals[:, None] * logp",
        "The log-probabilities are multiplied. A product of probabilities is a sum of logarithms.",
    ),
    (
        "np.divmod(best, logp.shape[1])",
        "np.divmod(best, logp.shape[0])",
        "The place in the long array is row * V + token: divide by V, the length of a row, and not "
        "by the number of texts.",
    ),
    (
        'np.argsort(-extended.ravel(), kind="stable")[:beams]',
        'np.sort(np.argsort(-extended.ravel(), kind="stable")[:beams])',
        "These are the best ones in the order of the texts. Return the best first.",
    ),
)
def beam_step(rng: Rng) -> Cases:
    """More tokens than texts and fewer; one text; a text that nothing of survives; equal totals."""
    for K, V, beams in ((3, 5, 3), (4, 2, 3), (1, 6, 2)):
        p = rng.uniform(size=(K, V))
        logp = np.log(p / p.sum(axis=1, keepdims=True))
        totals = -rng.uniform(0, 2, size=K)
        totals[0] -= 3 * (K > 1)
        yield totals, logp, beams
    yield np.log([0.5, 0.5]), np.log([[0.25, 0.75], [0.75, 0.25]]), 3


WORDS = ("the", "fox", "old", "town", "serves", "golden fox", "in", "food")


def _text(rng: Rng, n: int) -> list[str]:
    return [WORDS[i] for i in rng.integers(len(WORDS), size=n)]


def _near(rng: Rng, text: list[str]) -> list[str]:
    """The text with a word changed, a word twice, or cut."""
    other = list(text)
    other[int(rng.integers(len(other)))] = "new"
    i = int(rng.integers(len(other)))
    return [*other[: i + 1], other[i], *other[i + 1 :]][: len(text) + int(rng.integers(-2, 3))]


@exercise(
    (
        "min(ours.count(gram), theirs.count(gram))",
        "ours.count(gram) * (gram in theirs)",
        "The counts are not clipped. An n-gram counts at most as often as it stands in the "
        "reference: take the smaller of the two counts.",
    ),
    (
        "min(ours.count(gram), theirs.count(gram))",
        "(gram in theirs)",
        "Each different n-gram counts once. One that stands twice in both texts counts twice.",
    ),
    (
        "total = len(ours)",
        "total = len(theirs)",
        "The total is that of the reference. A precision asks which share of the candidate is "
        "right.",
    ),
    (
        "len(words) - n + 1",
        "len(words) - n",
        "The last n-gram is left out: m words have m - n + 1 n-grams.",
    ),
    (
        "total = len(ours)",
        "total = len(set(ours))",
        "The total counts different n-grams. One that stands twice counts twice.",
    ),
)
def ngram_matches(rng: Rng) -> Cases:
    """Words again and again; near texts; a candidate shorter than n."""
    yield ["the"] * 5, ["the", "fox", "the", "the"], 1
    yield ["the", "fox", "in", "the", "fox"], ["the", "fox", "or", "the", "fox", "the"], 2
    for n in (1, 2, 3, 4):
        text = _text(rng, 12)
        yield _near(rng, text), text, n
    yield ["the", "fox"], ["the", "fox", "serves", "food"], 3


@exercise(
    (
        "min(1.0, np.exp(1 - r / c))",
        "np.exp(1 - r / c)",
        "A candidate that is too long gets a reward. The penalty is at most 1.",
    ),
    (
        "1 - r / c",
        "1 - c / r",
        "The fraction is turned around. A short candidate has a small c, so r / c is large.",
    ),
    (
        "min(1.0, np.exp(1 - r / c))",
        "min(1.0, c / r)",
        "This is the share of the length. The penalty is exponential: e to the power of 1 - r / c.",
    ),
)
def brevity_penalty(rng: Rng) -> Cases:
    """Too short, as long, too long, and nothing."""
    yield from ((7, 11), (9, 9), (14, 9), (1, 6), (0, 5))


@exercise(
    ("* penalty", "* 1", "The brevity penalty is missing: multiply by it."),
    (
        "np.prod(matched / total) ** (1 / 4)",
        "np.mean(matched / total)",
        "This is the arithmetic mean of the four precisions. Take the geometric mean: the fourth "
        "root of their product.",
    ),
    (
        "np.prod(matched / total) ** (1 / 4)",
        "np.prod(matched / total)",
        "The fourth root is missing: a geometric mean of four numbers is the fourth root of their "
        "product.",
    ),
    ("100 * penalty", "penalty", "BLEU goes from 0 to 100: multiply by 100."),
    (
        "np.prod(matched / total) ** (1 / 4)",
        "np.mean([(np.prod(m[:, 0] / np.maximum(m[:, 1], 1))) ** (1 / 4) for m in counts])",
        "This is a mean of the BLEUs of the single texts. Add up the counts of all texts first, "
        "then divide.",
    ),
    ("(1, 2, 3, 4)", "(1, 2, 3)", "The 4-grams are left out. BLEU uses n from 1 to 4."),
)
def bleu(rng: Rng) -> Cases:
    """Near texts of unlike lengths; one that has nothing in common; one too short for 4-grams."""
    references = [_text(rng, n) for n in (12, 9, 15)]
    candidates = [
        _near(rng, _near(rng, references[0])),
        references[1][:6],
        _near(rng, references[2]),
    ]
    yield candidates, references
    yield [[*candidates[0], *candidates[0]]], [references[0]]
    yield [*candidates, ["new"] * 7], [*references, references[0]]
    yield [["the", "fox"]], [["the", "fox"]]
    yield [["new"] * 8], [references[0]]
