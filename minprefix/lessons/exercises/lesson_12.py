"""Lesson 12's exercises: the inputs on which an answer is graded, and the usual mistakes."""

import numpy as np

from minprefix.lessons.exercise import Cases, Rng, exercise


@exercise
def split_by_name(rng: Rng) -> Cases:
    """Names that come again later, a name with many records, no test records."""
    yield list("dbadcbad"), 4
    yield list("aaaab"), 2
    yield list("abc"), 0
    yield list("xyzx"), 2
    for n in (4, 7):
        yield [str(name) for name in rng.choice(list("mkpqr"), 12)], n


@exercise
def choose_rate(rng: Rng) -> Cases:
    """Not in order; one lucky seed; the best at either end, and in the middle."""
    yield ({0.03: [0.5, 0.01, 0.9], 0.1: [0.2, 0.3, 0.2], 0.3: [0.6, 0.5, 0.7]},)
    yield ({0.0001: [0.1], 0.001: [0.2], 0.01: [0.4]},)
    yield ({3e-4: [0.3, 0.1], 1e-4: [0.1, 0.1], 1e-3: [0.9, 0.8]},)
    yield ({0.1: [0.3], 0.03: [0.6], 0.3: [0.4]},)
    for _ in range(4):
        yield ({float(rate): list(rng.random(3)) for rate in rng.permutation([1, 3, 10, 30])},)


@exercise
def keep_state(rng: Rng) -> Cases:
    """The best is not allowed; one that is not allowed lies before; only the first is allowed."""
    others = np.array([2.0, 6.0, 2.4, 2.8, 2.2, 10.0])
    yield np.array([0.9, 0.2, 0.6, 0.3, 0.4, 0.1]), others, 1.5
    yield np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.4]), others, 1.0
    yield np.array([0.9, 0.2, 0.3, 0.1]), np.array([2.0, 2.5, 7.0, 2.9]), 1.4
    for _ in range(3):
        yield rng.random(9), rng.uniform(0.5, 2, 9), 1.5


@exercise
def mean_and_error(rng: Rng) -> Cases:
    for n in (5, 2, 11):
        yield (rng.random(n),)


@exercise
def sign_flip_p(rng: Rng) -> Cases:
    """b ahead, a ahead, no clear winner; a zero among the differences."""
    for n, shift in ((5, 0.3), (4, -0.4), (6, 0.0), (3, 2.0)):
        yield shift + rng.random(n), rng.random(n)
    yield np.array([0.5, 0.3, 0.2, 0.7]), np.array([0.5, 0.1, 0.4, 0.2])
