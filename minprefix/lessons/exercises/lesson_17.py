"""Lesson 17's exercises: the inputs on which an answer is graded, and the usual mistakes."""

import numpy as np

from minprefix.lessons.exercise import Cases, Rng, exercise


@exercise
def temperature_probabilities(rng: Rng) -> Cases:
    """Cold and warm; logits that overflow, and more so when they are divided."""
    for V, temperature, scale in ((5, 0.5, 2.0), (7, 2.0, 3.0), (4, 1.3, 1000.0), (6, 0.2, 700.0)):
        yield scale * (rng.normal(size=V) + 3), temperature


@exercise
def top_p_set(rng: Rng) -> Cases:
    """A flat and a steep distribution; a first token that is enough; a limit that is met exactly;
    the whole vocabulary."""
    for V, power, top_p in ((6, 1, 0.7), (9, 4, 0.9), (5, 30, 0.3)):
        p = rng.uniform(size=V) ** power
        yield p / p.sum(), top_p
    yield np.array([0.125, 0.5, 0.25, 0.125]), 0.75
    yield np.array([0.125, 0.5, 0.25, 0.125]), 1.0


@exercise
def draw(rng: Rng) -> Cases:
    """In the middle of pieces; exactly between two; tokens of probability 0, the first one too."""
    p = np.array([0.125, 0.25, 0.0, 0.5, 0.125])
    for u in (0.2, 0.125, 0.375, 0.999, 0.6):
        yield p, u
    yield np.array([0.0, 0.75, 0.25]), 0.0
    for _ in range(4):
        p = rng.uniform(size=6)
        yield p / p.sum(), rng.uniform()


@exercise
def sequence_logprob(rng: Rng) -> Cases:
    """Texts of several tokens and of one; as many rows as words; logits that overflow."""
    for T, start, V, scale in ((7, 3, 5, 1.0), (6, 2, 6, 3.0), (4, 3, 9, 1.0), (5, 1, 4, 500.0)):
        logits = scale * rng.normal(size=(T, V)) + scale
        ids = [int(i) for i in rng.integers(V, size=T)]
        yield logits, ids, start


@exercise
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


@exercise
def ngram_matches(rng: Rng) -> Cases:
    """Words again and again; near texts; a candidate shorter than n."""
    yield ["the"] * 5, ["the", "fox", "the", "the"], 1
    yield ["the", "fox", "in", "the", "fox"], ["the", "fox", "or", "the", "fox", "the"], 2
    for n in (1, 2, 3, 4):
        text = _text(rng, 12)
        yield _near(rng, text), text, n
    yield ["the", "fox"], ["the", "fox", "serves", "food"], 3


@exercise
def brevity_penalty(rng: Rng) -> Cases:
    """Too long, too short, as long, and nothing."""
    yield from ((14, 9), (7, 11), (9, 9), (1, 6), (0, 5))


@exercise
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
