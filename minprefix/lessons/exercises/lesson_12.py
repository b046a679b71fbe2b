"""Lesson 12's exercises: the inputs on which an answer is graded, and the usual mistakes."""

import numpy as np

from minprefix.lessons.exercise import Cases, Rng, exercise


@exercise(
    (
        "    train = [i for i, name in enumerate(names) if name not in test_names]\n"
        "    test = [i for i, name in enumerate(names) if name in test_names]",
        "    test, train = list(range(n_test)), list(range(n_test, len(names)))",
        "The first records go to the test, and their names stand in the training set, too: a leak. "
        "Decide by the name.",
    ),
    (
        "sum(each in test_names for each in names) >= n_test",
        "len(test_names) >= n_test",
        "Names are counted. The test set has to have so many records, and a name may have several.",
    ),
    (
        "sum(each in test_names for each in names) >= n_test",
        "sum(each in test_names for each in names) > n_test",
        "It goes on although the test set has enough records. Stop at `n_test`.",
    ),
    (
        "for name in names:",
        "for name in sorted(names):",
        "The names are taken in alphabetical order. Take them as they first appear.",
    ),
    (
        "for name in names:",
        "for name in reversed(names):",
        "The names are taken from the end. Take them as they first appear.",
    ),
    (
        "return train, test",
        "return test, train",
        "The two lists are swapped: the training set comes first.",
    ),
)
def split_by_name(rng: Rng) -> Cases:
    """Names that come again later, a name with many records, no test records."""
    yield list("dbadcbad"), 4
    yield list("aaaab"), 2
    yield list("abc"), 0
    yield list("xyzx"), 2
    for n in (4, 7):
        yield [str(name) for name in rng.choice(list("mkpqr"), 12)], n


@exercise(
    (
        "np.mean(on_valid[rate])",
        "np.min(on_valid[rate])",
        "The best seed of each rate is compared. One lucky seed decides then: compare the means.",
    ),
    (
        "rates = sorted(on_valid)",
        "rates = list(on_valid)",
        "The ends are those of the dictionary, which need not be in order. Sort the rates.",
    ),
    ("means.argmin()", "means.argmax()", "This is the worst rate. The lowest loss is the best."),
    (
        "place in (0, len(rates) - 1)",
        "place == len(rates) - 1",
        "Only the largest rate counts as an end here. The smallest is one, too.",
    ),
)
def choose_rate(rng: Rng) -> Cases:
    """Not in order; one lucky seed; the best at either end, and in the middle."""
    yield ({0.03: [0.5, 0.01, 0.9], 0.1: [0.2, 0.3, 0.2], 0.3: [0.6, 0.5, 0.7]},)
    yield ({0.0001: [0.1], 0.001: [0.2], 0.01: [0.4]},)
    yield ({3e-4: [0.3, 0.1], 1e-4: [0.1, 0.1], 1e-3: [0.9, 0.8]},)
    yield ({0.1: [0.3], 0.03: [0.6], 0.3: [0.4]},)
    for _ in range(4):
        yield ({float(rate): list(rng.random(3)) for rate in rng.permutation([1, 3, 10, 30])},)


@exercise(
    (
        "int(np.where(allowed, on_valid, np.inf).argmin())",
        "int(on_valid[allowed].argmin())",
        "The index counts only what is allowed. Return its place in the whole list: set the other "
        "losses to infinity and keep them.",
    ),
    (
        "np.where(allowed, on_valid, np.inf)",
        "on_valid",
        "The limit is ignored. The best on `valid` may have spoilt the other tasks.",
    ),
    (
        "limit * on_others[0]",
        "limit",
        "The limit is a factor of the first loss on the other tasks, and not a loss.",
    ),
    (
        "on_others <= limit * on_others[0]",
        "on_valid <= limit * on_valid[0]",
        "The limit is for the other tasks, and not for `valid`.",
    ),
    (
        "int(np.where(allowed, on_valid, np.inf).argmin())",
        "int(allowed.nonzero()[0][-1])",
        "This is the last measurement that is allowed. Choose the one with the lowest loss on "
        "`valid`.",
    ),
)
def keep_state(rng: Rng) -> Cases:
    """The best is not allowed; one that is not allowed lies before; only the first is allowed."""
    others = np.array([2.0, 6.0, 2.4, 2.8, 2.2, 10.0])
    yield np.array([0.9, 0.2, 0.6, 0.3, 0.4, 0.1]), others, 1.5
    yield np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.4]), others, 1.0
    yield np.array([0.9, 0.2, 0.3, 0.1]), np.array([2.0, 2.5, 7.0, 2.9]), 1.4
    for _ in range(3):
        yield rng.random(9), rng.uniform(0.5, 2, 9), 1.5


@exercise(
    ("ddof=1", "ddof=0", "The standard deviation divides by S. Divide by S - 1: `ddof=1`."),
    (
        "spread / len(losses) ** 0.5",
        "spread / len(losses)",
        "The standard error has the root of S below the line, not S.",
    ),
    (
        "spread / len(losses) ** 0.5",
        "spread / (len(losses) - 1) ** 0.5",
        "S - 1 stands in the standard deviation already. The standard error divides it by the root "
        "of S.",
    ),
    (
        "losses.std(ddof=1)",
        "losses.var(ddof=1)",
        "This is the variance. The standard deviation is its root.",
    ),
    ("losses.mean()", "sorted(losses)[len(losses) // 2]", "This is the median. Return the mean."),
)
def mean_and_error(rng: Rng) -> Cases:
    for n in (5, 2, 11):
        yield (rng.random(n),)


@exercise(
    (
        "abs(differences.mean())",
        "differences.mean()",
        "The observed mean has lost its absolute value: where it is negative, everything counts. A "
        "difference in either direction counts.",
    ),
    (
        "means >= observed * (1 - 1e-9)",
        "means > observed * (1 + 1e-9)",
        "The signs that were found are not counted. They are one of the choices: use >=.",
    ),
    (
        "np.abs((signs * differences).mean(axis=1))",
        "(signs * differences).mean(axis=1)",
        "Only one direction counts here, so the p-value is half of what it should be. Take the "
        "absolute value of each mean.",
    ),
    (
        "(means >= observed * (1 - 1e-9)).mean()",
        "(means >= observed * (1 - 1e-9)).sum()",
        "This is how many. The p-value is the share: divide by 2**S.",
    ),
    (
        "(signs * differences).mean(axis=1)",
        "(signs * (a - a.mean() - b + b.mean())).mean(axis=1)",
        "The signs are flipped of the differences from their mean. Flip those of the differences.",
    ),
)
def sign_flip_p(rng: Rng) -> Cases:
    """b ahead, a ahead, no clear winner; a zero among the differences."""
    for n, shift in ((5, 0.3), (4, -0.4), (6, 0.0), (3, 2.0)):
        yield shift + rng.random(n), rng.random(n)
    yield np.array([0.5, 0.3, 0.2, 0.7]), np.array([0.5, 0.1, 0.4, 0.2])
