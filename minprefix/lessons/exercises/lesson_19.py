"""Lesson 19's exercises: the inputs on which an answer is graded, and the usual mistakes."""

import numpy as np

from minprefix.lessons.exercise import Cases, Rng, exercise

NAMES = ("The Golden Fox", "Rose", "Anna Baker", "Mill and Table", "Xen", "Port Hale")
#: who is diagnosed: unlike seeds, bugs and rates, and for a fault with two faces both of them
PATIENTS = (
    ("healthy", 22),
    ("rate too small", 23),
    ("rate too large", 24),
    ("leaking template", 22),
    ("shuffled pairs", 25),
    ("wrong rows", 21),
    ("wrong rows", 22),
    ("sees the future", 22),
    ("wrong gradient", 21),
    ("wrong gradient", 22),
    ("wrong optimizer", 21),  # its loss jumps above a blind guess
    ("wrong optimizer", 25),
    ("broken decoding", 23),
)


def _prefix(rng: Rng, slots: int) -> np.ndarray:
    return rng.normal(size=(2, 2, 3, slots, 4))  # (L, 2, NH, P, hs)


def _pairs(n: int, turned: int = 0) -> list[tuple[str, str]]:
    """Records and their descriptions; `turned`: the first so many targets in a circle."""
    names = NAMES[:n]
    targets = [f"{name} is a film that lasts {60 + i} minutes." for i, name in enumerate(names)]
    targets[:turned] = [*targets[1:turned], *targets[: min(turned, 1)]]
    sources = [f"name[{name}], type[film], length[{60 + i}]" for i, name in enumerate(names)]
    return list(zip(sources, targets, strict=True))


@exercise
def moved_share(rng: Rng) -> Cases:
    """Prefixes and texts of unlike lengths; a prefix that did not move."""
    for slots, T, far in ((3, 7, 0.5), (6, 2, 3.0), (1, 5, 0.0)):
        start = _prefix(rng, slots)
        yield start, start + far * _prefix(rng, slots), _prefix(rng, T)


@exercise
def first_step(rng: Rng) -> Cases:
    """The farthest number goes down, then up; a step of the wrong length."""
    for sign, rate, length in ((-1, 0.1, 1.0), (1, 4.0, 1.0), (-1, 0.02, 3.16)):
        start = _prefix(rng, 4)
        step = rng.uniform(-0.9, 0.9, size=start.shape)
        step.flat[rng.integers(step.size)] = sign
        yield start, start + length * rate * step, rate * np.linspace(1, 0.2, 5)


@exercise
def slope_error(rng: Rng) -> Cases:
    """A right gradient downhill, one of half the length, one of 0, one of the wrong sign, and one
    of twice the length, downhill."""
    for wrong, slots, up in ((1.0, 3, -1), (0.5, 2, 1), (0.0, 4, 1), (-1.0, 1, 1), (2.0, 2, -1)):
        dkv, direction, step = _prefix(rng, slots), _prefix(rng, slots), rng.uniform(0.01, 0.1)
        direction *= up * np.sign((dkv * direction).sum())
        slope, loss = (dkv * direction).sum(), 5.0
        yield (
            wrong * dkv,
            direction,
            loss + step * slope + 0.3 * step,
            loss - step * slope - 0.3 * step,
            step,
        )


@exercise
def gradient_is_zero_where(rng: Rng) -> Cases:
    """Two layers of which one has lost much of its gradient; three layers, exact zeros and not."""
    for layers, small in ((2, 1e-20), (3, 0.0)):
        dkv = rng.normal(size=(layers, 2, 2, 3, 4))
        for layer in range(layers):
            for i in (0, 1):
                lost = rng.random(dkv.shape[2:]) < rng.random()
                dkv[layer, i][lost] = small
        dkv[0, 0, 0, 0, :2] = -1e-12, 0
        yield (dkv,)


@exercise
def stated_names(rng: Rng) -> Cases:
    """All right, some turned, all turned, and names with a common first word."""
    first, second, *rest = _pairs(5)
    third = ("name[The Golden Fox], type[film], length[9]", "The Old Fox is a film of 9 minutes.")
    yield ([(first[0], second[1]), third, (second[0], first[1]), *rest],)
    for n, turned in ((4, 0), (6, 3), (5, 5)):
        yield (_pairs(n, turned),)


@exercise
def leaks(rng: Rng) -> Cases:
    """A clean template, whole and partial leaks, targets with a common opening, and sources that
    hold the words of their targets."""
    pairs = _pairs(5)
    yield "{source}\n", pairs
    yield "{source}\n{target}\n", pairs
    yield "record: {source}\n{opening}", pairs
    yield "{target:.4}|{source}", [*pairs, pairs[0]]
    same = [(source, f"It {target}") for source, target in pairs]
    yield "{source}\n{opening}", same
    yield "say: {source}\n", [(f"name[{target}]", target) for _, target in pairs]


@exercise
def wrong_rows(rng: Rng) -> Cases:
    """Right rows; one late in each sequence; from the first token on; one sequence; a mixture."""
    lengths, starts = [7, 4, 9], [3, 2, 8]
    offsets = [0, 7, 11]
    right = [
        row
        for offset, T, start in zip(offsets, lengths, starts, strict=True)
        for row in range(offset + start - 1, offset + T - 1)
    ]
    late = [row for row in right if row not in (2, 8, 18)]
    yield lengths, starts, right
    yield lengths, starts, late
    yield lengths, starts, [*range(6), *range(7, 10), *range(11, 19)]
    yield [6], [2], [2, 3, 4, 5]
    yield lengths, starts, [0, 1, *late, 19]


@exercise
def rows_that_see_ahead(rng: Rng) -> Cases:
    """Rounding alone; one row before, up or down; all rows; the changed row alone."""
    for T, changed, rows, by in (
        (6, 3, (), 0.0),
        (6, 3, (2,), -1.0),
        (5, 4, (0, 1, 2, 3), 0.5),
        (7, 2, (1,), 2e-4),
        (7, 1, (), 0.0),
    ):
        logits = rng.normal(size=(T, 5))
        other = logits.copy()
        other[changed:] += rng.normal(size=(T - changed, 5)) + 2
        other[:changed] += rng.uniform(-1e-6, 1e-6, size=(changed, 5))
        for row in rows:
            other[row, rng.permutation(5)[:3]] -= by
        yield logits, other, changed


@exercise
def decoding_follows(rng: Rng) -> Cases:
    """All, some and none of the new tokens follow; as many rows as words in the vocabulary."""
    for T, start, V, broken in ((9, 4, 7, 0), (8, 3, 8, 2), (6, 5, 11, 1)):
        logits = rng.normal(size=(T, V))
        ids = [int(rng.integers(V)) for _ in range(start)]
        ids += [int(i) for i in logits[start - 1 : -1].argmax(axis=1)]
        for i in range(broken):
            ids[start + i] = (ids[start + i] + 1) % V
        yield ids, logits, start


@exercise
def diagnose(rng: Rng) -> Cases:
    """Patients that the lesson does not show."""
    from minprefix.lessons.clinic import patient

    for name, seed in PATIENTS:
        yield (patient(name, seed),)
