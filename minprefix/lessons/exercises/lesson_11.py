"""Lesson 11's exercises: the inputs on which an answer is graded, and the usual mistakes."""

import numpy as np

from minprefix.lessons.exercise import Cases, Rng, exercise

#: the lengths of the sequences, which prefix each sees, the slots of each prefix
BATCHES = (
    ((4, 2, 3), (1, 0, 1), (2, 5)),
    ((1, 3, 1, 2), (2, 0, 2, 1), (3, 0, 1)),
    ((5,), (0,), (4,)),
)


@exercise
def stream_of_requests(rng: Rng) -> Cases:
    """Unlike lengths, a prefix that two see, no slots, one sequence."""
    for lengths, which, slots in BATCHES:
        sequences = [[int(i) for i in rng.integers(0, 90, T)] for T in lengths]
        yield sequences, list(which), list(slots)


@exercise
def rows_that_see(rng: Rng) -> Cases:
    for lengths, which, slots in BATCHES:
        for i in range(len(slots) + 1):  # the last one is seen by none
            yield np.cumsum([0, *lengths]), list(which), i


@exercise
def keys_by_sequence(rng: Rng) -> Cases:
    """None in the list, a prefix that two see, as many heads as tokens."""
    for NH, hs, (lengths, which, slots) in zip((3, 2, 5), (4, 3, 2), BATCHES, strict=True):
        k = rng.normal(size=(sum(lengths), NH, hs))
        keys = [rng.normal(size=(NH, P, hs)) if P else None for P in slots]
        yield k, np.cumsum([0, *lengths]), keys, list(which)


@exercise
def gradients_by_prefix(rng: Rng) -> Cases:
    """Prefixes of unlike length, one that nobody sees; several that see one; one sequence."""
    for which, n_targets, slots in (
        ((0, 1, 0, 0), (3, 7, 1, 5), (2, 4, 1)),
        ((1, 1), (2, 9), (3, 3)),
        ((0,), (4,), (2,)),
    ):
        prefixes = [rng.normal(size=(2, 2, 3, P, 4)) for P in slots]
        alone = [rng.normal(size=prefixes[i].shape) for i in which]
        yield alone, list(n_targets), list(which), prefixes


@exercise
def held_after(rng: Rng) -> Cases:
    """Asked for again; two that go for one; a budget that is filled exactly."""
    sizes = {"a": 10, "b": 20, "c": 35, "d": 5, "e": 30}
    yield list("abadc"), sizes, 62
    yield list("abdac"), sizes, 50
    yield list("abde"), sizes, 50
    yield list("cabd"), sizes, 35
    yield list("aab"), sizes, 30
    for budget in (40, 60, 70):
        yield [str(name) for name in rng.choice(list(sizes), 20)], sizes, budget


@exercise
def shares_side_by_side(rng: Rng) -> Cases:
    for T in (5, 1):
        yield rng.uniform(0.01, 0.95, T), rng.uniform(0.01, 0.95, T)
    yield np.array([0.0, 0.5]), np.array([0.5, 0.5])


@exercise
def halfway_gap(rng: Rng) -> Cases:
    for T, P, hs in ((5, 3, 4), (1, 2, 3), (4, 1, 2)):
        yield (*rng.normal(size=(3, T, hs)), *rng.normal(0, 2, (2, 2, P, hs)))
