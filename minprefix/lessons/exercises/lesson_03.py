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


@exercise
def softmax_as_written(rng: Rng) -> Cases:
    """Moderate logits."""
    for M, V in SIZES:
        yield (rng.normal(size=(M, V)),)


@exercise
def softmax(rng: Rng) -> Cases:
    """Rows far apart from each other, rows with one huge logit, and moderate ones."""
    yield (_hard(rng),)
    for M, V in SIZES:
        yield (rng.normal(size=(M, V)),)


@exercise
def softmax_jacobian(rng: Rng) -> Cases:
    """One row each, the first so long that trying values out is seen."""
    for V in (12, 3, 5):
        (probs,) = reference.softmax(rng.normal(size=(1, V)))
        yield (by_formula(probs),)


@exercise
def softmax_backward(rng: Rng) -> Cases:
    """More rows than Jacobians may be made; as many rows as columns; one row."""
    for M, V in SIZES:
        probs = reference.softmax(rng.normal(size=(M, V)))
        yield rng.normal(size=(M, V)), by_formula(probs, M * V)


# ---- what a batch predicts ------------------------------------------------------------------


@exercise
def targets_of(rng: Rng) -> Cases:
    """Sequences of unlike lengths; one with nothing to predict; a single one."""
    for lengths, loss_from in (((4, 2, 6), (2, 1, 3)), ((3, 3, 5), (1, 3, 4)), ((7,), (1,))):
        yield [rng.integers(50, size=T) for T in lengths], list(loss_from)


# ---- the loss -------------------------------------------------------------------------------


@exercise
def log_softmax(rng: Rng) -> Cases:
    """Rows far apart from each other, rows with one huge logit, and moderate ones."""
    yield (_hard(rng),)
    for M, V in SIZES:
        yield (rng.normal(size=(M, V)),)


@exercise
def cross_entropy(rng: Rng) -> Cases:
    """Targets of a probability that rounds to 0 among them."""
    logits = _hard(rng)
    yield logits, *_targets(rng, *logits.shape)
    for M, V in SIZES:
        yield rng.normal(size=(M, V)), *_targets(rng, M, V)


@exercise
def perplexity(rng: Rng) -> Cases:
    """Texts of unlike lengths; a single one."""
    for lengths in ((2, 9, 1), (5, 3), (4,)):
        yield ([3 * rng.random(n) for n in lengths],)


@exercise
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


@exercise
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
