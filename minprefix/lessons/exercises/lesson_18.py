"""Lesson 18's exercises: the inputs on which an answer is graded, and the usual mistakes."""

import numpy as np

from minprefix.lessons.exercise import Cases, Rng, exercise


@exercise(
    (
        "argmax(axis=1)",
        "argmax(axis=0)",
        "The argmax runs over the rows. Each row is one query: look for its largest logit along "
        "the vocabulary, axis=1.",
    ),
    (
        "(guesses == answers).sum()",
        "sum(row[a] > 0 for row, a in zip(logits, answers))",
        "A logit above 0 says nothing by itself. The answer has to have the largest logit of its "
        "row.",
    ),
    (
        "int((guesses == answers).sum())",
        "float((guesses == answers).mean())",
        "This is a share. Return how many there are.",
    ),
)
def memorised(rng: Rng) -> Cases:
    """Some right, all right, as many rows as words."""
    for N, V, right in ((6, 9, 3), (5, 7, 5), (4, 4, 1)):
        logits = rng.normal(size=(N, V)) - 0.5
        answers = (logits.argmax(axis=1) + 1 + rng.integers(V - 1, size=N)) % V
        answers[:right] = logits[:right].argmax(axis=1)
        yield logits, answers


@exercise(
    (
        "known.min(axis=1)",
        "known.mean(axis=1)",
        "The mean hides the worst seed. Every seed has to know enough: take the smallest of each "
        "row.",
    ),
    (
        "known.min(axis=1)",
        "known.max(axis=1)",
        "This asks whether some seed knows enough. Every seed has to: take the smallest of each "
        "row.",
    ),
    (">= wanted", "> wanted", "A length that knows exactly the wanted number is enough: write >=."),
    (
        "known.min(axis=1)",
        "known[:, 0]",
        "Only the first seed is looked at. Every seed has to know enough.",
    ),
    (
        "lengths[enough][0]",
        "lengths[enough][-1]",
        "This is the largest length that is enough. Take the first one.",
    ),
)
def fewest_slots(rng: Rng) -> Cases:
    """Means that are enough where a seed is not; exactly enough; never enough."""
    yield np.array([1, 2, 4, 8]), np.array([[2, 7, 1], [9, 4, 6], [7, 1, 2], [6, 6, 6]]), 6
    yield np.array([1, 4, 16]), np.array([[0, 3, 1], [5, 9, 4], [8, 9, 8]]), 8
    yield np.array([1, 3]), np.array([[2, 9], [9, 3]]), 4
    known = np.sort(rng.integers(12, size=(6, 4)), axis=0) + np.arange(6)[:, None]
    yield np.array([1, 2, 3, 5, 8, 13]), known, 8


SIZES = ((5, 3, 4), (2, 6, 3), (7, 1, 5), (4, 4, 6))  # N, P, hs


@exercise(
    (
        "/ q.shape[1] ** 0.5",
        "",
        "The scale is missing: divide the scores by the root of the head size.",
    ),
    ("/ q.shape[1] ** 0.5", "/ q.shape[1]", "The scores are divided by hs. Divide by its root."),
    (
        "/ q.shape[1] ** 0.5",
        "/ len(k) ** 0.5",
        "The scores are divided by the root of the number of slots. The scale is the root of the "
        "head size, which is the number of products in each score.",
    ),
    (
        "softmax(scores)",
        "softmax(scores.T).T",
        "The softmax runs over the queries. Each query shares out 1 among the slots: along the "
        "rows.",
    ),
    (
        "pattern @ v",
        "pattern @ k",
        "The output mixes the keys. Keys are compared with queries, values are mixed.",
    ),
)
def slots_forward(rng: Rng) -> Cases:
    """More slots than queries and fewer, one slot, as many."""
    for N, P, hs in SIZES:
        yield rng.normal(size=(N, hs)), rng.normal(size=(P, hs)), rng.normal(size=(P, hs))


@exercise(
    (
        "(dpattern * pattern).sum(",
        "dpattern.sum(",
        "The row sum adds up dpattern alone. Each term has its share as a factor: sum "
        "dpattern * pattern.",
    ),
    (
        "pattern * (dpattern - row_sum)",
        "pattern * dpattern",
        "The row sum is not subtracted. The slots of a row compete for the same 1.",
    ),
    (
        "/ q.shape[1] ** 0.5",
        "",
        "The scale is missing in dk. The scores were divided by the root of hs, so their gradients "
        "are, too.",
    ),
    (
        "axis=1",
        "axis=0",
        "The row sum runs over the queries. Each query has a softmax of its own: sum over the "
        "slots, axis=1.",
    ),
    (
        "return dk, dv",
        "return dv, dk",
        "The two gradients are returned in the other order: dk first, then dv.",
    ),
)
def slots_backward(rng: Rng) -> Cases:
    """More slots than queries and fewer, one slot, as many."""
    for N, P, hs in SIZES:
        e = np.exp(rng.normal(size=(N, P)))
        pattern = e / e.sum(axis=1, keepdims=True)
        yield rng.normal(size=(N, hs)), rng.normal(size=(N, hs)), rng.normal(size=(P, hs)), pattern


@exercise(
    (
        "on_valid - on_train",
        "on_train - on_valid",
        "The sign is turned around. The gap is positive where the loss on unseen queries is the "
        "larger one.",
    ),
    (
        "on_valid.argmin()",
        "on_train.argmin()",
        "This is the step of the smallest training loss. The best step is that of the smallest "
        "validation loss.",
    ),
    (
        "gap[on_valid.argmin()]",
        "gap.min()",
        "This is the smallest gap. Asked for is the gap at the step of the smallest validation "
        "loss.",
    ),
    (
        "on_valid - on_train",
        "on_valid / on_train",
        "The gap is a difference of the two losses, not their ratio.",
    ),
)
def generalisation_gap(rng: Rng) -> Cases:
    """The best step early, late and first."""
    for steps, at in ((12, 4), (7, 6), (9, 0)):
        on_valid = 1 + np.abs(np.arange(steps) - at) * rng.uniform(0.2, 0.5)
        yield np.linspace(3, 0.1, steps) + 0.1 * rng.uniform(size=steps), on_valid


@exercise(
    (
        "on_valid[step] < on_valid[best]",
        "on_valid[step] <= on_valid[best]",
        "An equal loss counts as a new best here, so the rule waits longer. Only a smaller one "
        "counts: write <.",
    ),
    (
        "step - best == patience",
        "step - best > patience",
        "The rule stops one step late. It stops at the step that is `patience` steps after the "
        "best one.",
    ),
    (
        "step - best == patience",
        "step == patience",
        "The steps are counted from the start. Count those since the best one: step - best.",
    ),
    (
        "on_valid[step] < on_valid[best]",
        "on_valid[step] < on_valid[max(step - 1, 0)]",
        "Each step is compared with the one before it. Compare it with the best so far.",
    ),
    (
        "return best, step",
        "return step, best",
        "The two are returned in the other order: the best step first.",
    ),
)
def early_stop(rng: Rng) -> Cases:
    """A later best that the rule does not see; equal losses; no stop; a fall in small waves."""
    yield np.array([2.0, 1.0, 1.5, 1.4, 1.6, 1.7, 0.5]), 3
    yield np.array([2.0, 1.0, 1.0, 1.0, 1.2, 1.3]), 3
    yield np.array([5.0, 4.0, 3.0, 2.0]), 2
    yield np.array([5.0, 6.0, 4.0, 4.5, 3.0, 3.5, 3.6, 2.0]), 2
    for _ in range(3):
        yield np.cumsum(rng.normal(size=30)) + 10, 4


@exercise(
    (
        "on_test[which, step]",
        "on_test.min()",
        "This is the smallest test loss of all runs. Report that of the chosen run and step.",
    ),
    (
        "on_valid.argmin()",
        "on_test.argmin()",
        "The run is chosen by the test set, so its loss is small partly by luck. Choose by "
        "on_valid.",
    ),
    (
        "on_test[which, step]",
        "on_valid[which, step]",
        "This is the validation loss, by which the run was chosen. Report the test loss.",
    ),
    (
        "on_valid.argmin()",
        "on_valid[:, -1].argmin() * on_valid.shape[1] + on_valid.shape[1] - 1",
        "The length is chosen by the last step. Look for the smallest loss over all lengths and "
        "steps.",
    ),
    (
        "divmod(place, on_valid.shape[1])",
        "divmod(place, on_valid.shape[0])",
        "The flattened array has `steps` entries a row: divide by the number of steps, not by that "
        "of the lengths.",
    ),
)
def chosen_run(rng: Rng) -> Cases:
    """More steps than lengths and fewer; a best step in the middle."""
    for n, steps in ((3, 7), (5, 4), (2, 9), (4, 4)):
        on_valid = rng.uniform(1, 2, size=(n, steps))
        on_valid[n // 2, steps // 2] = 0.5
        on_test = on_valid + rng.uniform(-0.2, 0.2, size=(n, steps))
        on_test[0, 0] = 0.1
        yield on_valid, on_test
