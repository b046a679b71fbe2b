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


@exercise(
    (
        "np.sqrt(np.mean((end - start) ** 2))",
        "np.std(end - start)",
        "np.std subtracts the mean first, and the mean is a part of the size. Take the root of the "
        "mean of the squares.",
    ),
    (
        "return distance / natural",
        "return distance",
        "The distance is not compared with anything. Divide it by the root mean square of "
        "of_tokens.",
    ),
    (
        "np.mean((end - start) ** 2)",
        "np.sum((end - start) ** 2)",
        "The distance is a norm: a sum of squares grows with the number of slots. Take the mean of "
        "the squares.",
    ),
    (
        "np.mean((end - start) ** 2)",
        "np.mean(end**2)",
        "This is how large the prefix is at the end, not how far it moved. Subtract start first.",
    ),
    (
        "np.sqrt(np.mean((end - start) ** 2))",
        "np.mean(np.abs(end - start))",
        "This is the mean of the absolute values. The root mean square squares first, and takes "
        "the root of the mean.",
    ),
    (
        "np.sqrt(np.mean((end - start) ** 2))",
        "np.mean((end - start) ** 2)",
        "The root is missing: this is a mean of squares. Take np.sqrt of it.",
    ),
)
def moved_share(rng: Rng) -> Cases:
    """Prefixes and texts of unlike lengths; a prefix that did not move."""
    for slots, T, far in ((3, 7, 0.5), (6, 2, 3.0), (1, 5, 0.0)):
        start = _prefix(rng, slots)
        yield start, start + far * _prefix(rng, slots), _prefix(rng, T)


@exercise(
    (
        "np.abs(after_first - start).max()",
        "(after_first - start).max()",
        "The largest step may go down, and then it is negative. Take the absolute value before the "
        "largest one.",
    ),
    (
        "np.abs(after_first - start).max()",
        "(after_first.max() - start.max())",
        "These are the largest numbers of the two prefixes, and they may stand in unlike places. "
        "Subtract first, then take the largest absolute value.",
    ),
    (
        "np.abs(after_first - start).max()",
        "np.linalg.norm(after_first - start)",
        "This is the length of the whole step, which grows with the number of slots. Take the "
        "largest absolute value.",
    ),
    (
        "np.abs(after_first - start).max()",
        "np.abs(after_first - start).mean()",
        "This is the mean step. Numbers with hardly any gradient make it small: take the largest.",
    ),
    (
        "/ rates[0]",
        "/ rates.mean()",
        "The rate falls over the run, and the first step has the first rate: divide by rates[0].",
    ),
    (
        "/ rates[0]",
        "/ rates[-1]",
        "This is the rate of the last step. The first step has the first rate: divide by rates[0].",
    ),
    ("/ rates[0]", "", "The step is not in units of the rate. Divide by rates[0]."),
)
def first_step(rng: Rng) -> Cases:
    """The farthest number goes down, then up; a step of the wrong length."""
    for sign, rate, length in ((-1, 0.1, 1.0), (1, 4.0, 1.0), (-1, 0.02, 3.16)):
        start = _prefix(rng, 4)
        step = rng.uniform(-0.9, 0.9, size=start.shape)
        step.flat[rng.integers(step.size)] = sign
        yield start, start + length * rate * step, rate * np.linspace(1, 0.2, 5)


@exercise(
    (
        "(2 * step)",
        "step",
        "The two losses are two steps apart, one up and one down: divide by 2 * step.",
    ),
    (
        "(dkv * direction).sum()",
        "(dkv * direction).mean()",
        "The predicted slope is a mean. All numbers move at once, and what they do adds up: take "
        "the sum.",
    ),
    (
        "(loss_up - loss_down)",
        "(loss_down - loss_up)",
        "The measured slope has the wrong sign: subtract loss_down from loss_up.",
    ),
    (
        "max(abs(predicted), abs(measured))",
        "abs(predicted)",
        "The error is divided by the predicted slope, which is 0 where a gradient is 0. Divide by "
        "the larger of the two.",
    ),
    (
        "max(abs(predicted), abs(measured))",
        "abs(measured)",
        "The error is divided by the measured slope, even where the predicted one is larger. "
        "Divide by the larger of the two.",
    ),
    (
        "max(abs(predicted), abs(measured))",
        "max(predicted, measured)",
        "Slopes may be negative, and then the larger of the two is the smaller size. Take both "
        "absolute values before the larger one.",
    ),
    (
        "(2 * step)",
        "2 * step",
        "Python divides by 2 and then multiplies by step. Put brackets around 2 * step.",
    ),
    (
        "return abs(predicted - measured) / max(abs(predicted), abs(measured))",
        "return abs(predicted - measured)",
        "The error is not relative, so a small gradient always looks right. Divide by the larger "
        "of the two slopes.",
    ),
)
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


@exercise(
    (
        "np.abs(dkv) < 1e-9",
        "dkv < 1e-9",
        "Negative gradients count as zero, however large they are. Compare the absolute value.",
    ),
    (
        "np.abs(dkv) < 1e-9",
        "dkv == 0",
        "Only exact zeros count. A softmax that gives all to one slot leaves gradients such as "
        "1e-20: compare the absolute value with 1e-9.",
    ),
    (
        "axis=(2, 3, 4)",
        "axis=(0, 3, 4)",
        "The layers are mixed: axis 0 is the layer. Keep the axes 0 and 1, and take the mean over "
        "2, 3 and 4.",
    ),
    (
        "np.abs(dkv) < 1e-9",
        "np.abs(dkv) > 1e-9",
        "This is the share of numbers that have a gradient. Asked for is the share of those below "
        "1e-9.",
    ),
    (
        "is_zero.mean(axis=(2, 3, 4))",
        "is_zero.sum(axis=(2, 3, 4))",
        "These are counts. A share is a count divided by how many there are: use mean.",
    ),
)
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


@exercise(
    (
        'source[source.index("[") + 1 : source.index("]")]',
        'source[source.index("[") : source.index("]")]',
        "The name begins with the bracket itself. Begin one character behind it.",
    ),
    (
        "name in target",
        "name.split()[0] in target",
        "Only the first word of the name is looked for, and The or Mill stands in many targets. "
        "Look for the whole name.",
    ),
    (
        "sum(stated) / len(stated)",
        "sum(stated)",
        "This is a count. A share is a count divided by the number of pairs.",
    ),
)
def stated_names(rng: Rng) -> Cases:
    """All right, some turned, all turned, and names with a common first word."""
    first, second, *rest = _pairs(5)
    third = ("name[The Golden Fox], type[film], length[9]", "The Old Fox is a film of 9 minutes.")
    yield ([(first[0], second[1]), third, (second[0], first[1]), *rest],)
    for n, turned in ((4, 0), (6, 3), (5, 5)):
        yield (_pairs(n, turned),)


@exercise(
    (
        "len(each) > 1",
        "len(each) == len(pairs)",
        "This prompt leaks, and the answer does not see it. Two targets that give two prompts are "
        "enough, whatever the placeholder is and whatever the other targets give.",
    ),
    (
        "{fill(template, source, target) for _, target in pairs}",
        "{fill(template, source, target) for _, target in pairs[:1]}",
        "This prompt leaks, and the answer does not see it. Words of the target in the prompt are "
        "no sign of it; fill the template in with the targets of all pairs, and compare.",
    ),
    (
        "for _, target in pairs} for",
        'for target in ["", *(t for _, t in pairs)]} for',
        "An opening that all targets share is no leak, as it says nothing about one of them. Try "
        "the targets of the other pairs, and no other text.",
    ),
    (
        "sum(leaking) / len(leaking)",
        "sum(leaking)",
        "This is a count. A share is a count divided by the number of pairs.",
    ),
)
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


@exercise(
    (
        "range(offset + start - 1, offset + T - 1)",
        "range(offset + start, offset + T)",
        "The rows are those of the targets themselves. Row i predicts token i + 1, so each needed "
        "row is one less.",
    ),
    (
        "range(offset + start - 1, offset + T - 1)",
        "range(start - 1, T - 1)",
        "The rows are counted anew in each sequence. They are rows of the whole stream: add the "
        "lengths of the sequences before.",
    ),
    (
        "range(offset + start - 1, offset + T - 1)",
        "range(offset + start - 1, offset + T)",
        "The last token of each sequence predicts nothing of its own text. The last needed row is "
        "offset + T - 2.",
    ),
    (
        "range(offset + start - 1, offset + T - 1)",
        "range(offset + start - 1, offset + T - 2)",
        "The last needed row is offset + T - 2, and a range leaves its end out: end it at "
        "offset + T - 1.",
    ),
    (
        "return missing, extra",
        "return extra, missing",
        "The two numbers are returned in the other order: missing first, then extra.",
    ),
)
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


@exercise(
    (
        "difference[:changed]",
        "difference[: changed + 1]",
        "Row `changed` has another token itself, so it may differ. Look at the rows before it.",
    ),
    (
        "difference[:changed]",
        "difference[changed + 1 :]",
        "The rows behind the changed token have to see it. Look at the rows before it.",
    ),
    (
        "np.abs(logits - logits_changed)",
        "(logits - logits_changed)",
        "A logit may fall as well as rise. Take the absolute value before the largest one.",
    ),
    (
        "np.abs(logits - logits_changed).max(axis=1)",
        "np.abs(logits - logits_changed)",
        "This counts logits, several of one row. Return how many rows differ anywhere: take the "
        "largest difference of each row first.",
    ),
    (
        "(difference[:changed] > 1e-4).sum()",
        "(difference[:changed] > 1e-4).any()",
        "This says only whether there is such a row. Return how many there are: sum.",
    ),
    (
        "difference[:changed] > 1e-4",
        "difference[:changed] > 0",
        "The last digits of float32 numbers differ without any cause. Compare with 1e-4.",
    ),
)
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


@exercise(
    (
        "logits[start - 1 : -1]",
        "logits[start:]",
        "Each token is compared with the row that it stands in. Row i predicts token i + 1: begin "
        "at start - 1 and leave out the last row.",
    ),
    (
        "logits[start - 1 : -1]",
        "logits[start - 1 :]",
        "This is one row too many: the last row predicts a token that was not written. Leave it "
        "out.",
    ),
    (
        "logits[start - 1 : -1].argmax(axis=1)",
        "logits[start - 1 : -1].argmax(axis=0)",
        "The argmax runs over the rows. Each row has an argmax over the vocabulary: axis=1.",
    ),
    (
        "(expected == written).mean()",
        "(expected == written).all()",
        "This says only whether all of them agree. Return the share: mean.",
    ),
    (
        "(expected == written).mean()",
        "(expected == written).sum()",
        "This is a count. Return the share: mean.",
    ),
)
def decoding_follows(rng: Rng) -> Cases:
    """All, some and none of the new tokens follow; as many rows as words in the vocabulary."""
    for T, start, V, broken in ((9, 4, 7, 0), (8, 3, 8, 2), (6, 5, 11, 1)):
        logits = rng.normal(size=(T, V))
        ids = [int(rng.integers(V)) for _ in range(start)]
        ids += [int(i) for i in logits[start - 1 : -1].argmax(axis=1)]
        for i in range(broken):
            ids[start + i] = (ids[start + i] + 1) % V
        yield ids, logits, start


@exercise(
    (
        "> 1e-3:",
        "> 0.1:",
        "The limit of the slope error is too wide: a row sum without the slots changes a slope by "
        "one or two percent. Ours is 1e-3.",
    ),
    (
        "< 0.05:",
        "< 1:",
        "A healthy prefix of 8 steps moves by less than half of the natural size. A limit of 0.05 "
        "leaves it healthy.",
    ),
    (
        '["losses"].max()',
        '["losses"][-1]',
        "The last loss of a run that was lost may be below a blind guess again. Look at the "
        "largest.",
    ),
    (
        '< 1:\n        return "broken decoding"',
        '< 0.5:\n        return "broken decoding"',
        "Broken decoding can still be right for most tokens. Greedy decoding that works follows "
        "the model at each token, so the limit is 1.",
    ),
    (
        'not 0.95 < first_step(*entries("start", "after_first", "rates")) < 1.05',
        'first_step(*entries("start", "after_first", "rates")) > 1.05',
        "A first step may be too short as well: one that is 0.74 rates long comes from a wrong "
        "correction. Ask for both sides.",
    ),
    (
        "!= (0, 0)",
        "[0] > 0",
        "Only missing rows are asked for. A batch that trains the prompt as well has rows too "
        "many.",
    ),
)
def diagnose(rng: Rng) -> Cases:
    """Patients that the lesson does not show."""
    from minprefix.lessons.clinic import patient

    for name, seed in PATIENTS:
        yield (patient(name, seed),)
