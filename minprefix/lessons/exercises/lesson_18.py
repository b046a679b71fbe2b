"""Lesson 18's exercises: the inputs on which an answer is graded, and the usual mistakes."""

import numpy as np

from minprefix.lessons.exercise import Cases, Rng, exercise


@exercise
def memorised(rng: Rng) -> Cases:
    """Some right, all right, as many rows as words."""
    for N, V, right in ((6, 9, 3), (5, 7, 5), (4, 4, 1)):
        logits = rng.normal(size=(N, V)) - 0.5
        answers = (logits.argmax(axis=1) + 1 + rng.integers(V - 1, size=N)) % V
        answers[:right] = logits[:right].argmax(axis=1)
        yield logits, answers


@exercise
def fewest_slots(rng: Rng) -> Cases:
    """Means that are enough where a seed is not; exactly enough; never enough."""
    yield np.array([1, 2, 4, 8]), np.array([[2, 7, 1], [9, 4, 6], [7, 1, 2], [6, 6, 6]]), 6
    yield np.array([1, 4, 16]), np.array([[0, 3, 1], [5, 9, 4], [8, 9, 8]]), 8
    yield np.array([1, 3]), np.array([[2, 9], [9, 3]]), 4
    known = np.sort(rng.integers(12, size=(6, 4)), axis=0) + np.arange(6)[:, None]
    yield np.array([1, 2, 3, 5, 8, 13]), known, 8


SIZES = ((5, 3, 4), (2, 6, 3), (7, 1, 5), (4, 4, 6))  # N, P, hs


@exercise
def slots_forward(rng: Rng) -> Cases:
    """More slots than queries and fewer, one slot, as many."""
    for N, P, hs in SIZES:
        yield rng.normal(size=(N, hs)), rng.normal(size=(P, hs)), rng.normal(size=(P, hs))


@exercise
def slots_backward(rng: Rng) -> Cases:
    """More slots than queries and fewer, one slot, as many."""
    for N, P, hs in SIZES:
        e = np.exp(rng.normal(size=(N, P)))
        pattern = e / e.sum(axis=1, keepdims=True)
        yield rng.normal(size=(N, hs)), rng.normal(size=(N, hs)), rng.normal(size=(P, hs)), pattern


@exercise
def generalisation_gap(rng: Rng) -> Cases:
    """The best step early, late and first."""
    for steps, at in ((12, 4), (7, 6), (9, 0)):
        on_valid = 1 + np.abs(np.arange(steps) - at) * rng.uniform(0.2, 0.5)
        yield np.linspace(3, 0.1, steps) + 0.1 * rng.uniform(size=steps), on_valid


@exercise
def early_stop(rng: Rng) -> Cases:
    """A later best that the rule does not see; equal losses; no stop; a fall in small waves."""
    yield np.array([2.0, 1.0, 1.5, 1.4, 1.6, 1.7, 0.5]), 3
    yield np.array([2.0, 1.0, 1.0, 1.0, 1.2, 1.3]), 3
    yield np.array([5.0, 4.0, 3.0, 2.0]), 2
    yield np.array([5.0, 6.0, 4.0, 4.5, 3.0, 3.5, 3.6, 2.0]), 2
    for _ in range(3):
        yield np.cumsum(rng.normal(size=30)) + 10, 4


@exercise
def chosen_run(rng: Rng) -> Cases:
    """More steps than lengths and fewer; a best step in the middle."""
    for n, steps in ((3, 7), (5, 4), (2, 9), (4, 4)):
        on_valid = rng.uniform(1, 2, size=(n, steps))
        on_valid[n // 2, steps // 2] = 0.5
        on_test = on_valid + rng.uniform(-0.2, 0.2, size=(n, steps))
        on_test[0, 0] = 0.1
        yield on_valid, on_test
