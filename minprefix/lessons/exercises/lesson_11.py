"""Lesson 11's exercises: the inputs on which an answer is graded, and the usual mistakes."""

import numpy as np

from minprefix.lessons.exercise import Cases, Rng, exercise

#: the lengths of the sequences, which prefix each sees, the slots of each prefix
BATCHES = (
    ((4, 2, 3), (1, 0, 1), (2, 5)),
    ((1, 3, 1, 2), (2, 0, 2, 1), (3, 0, 1)),
    ((5,), (0,), (4,)),
)


@exercise(
    (
        "start + np.arange(len(ids))",
        "np.arange(len(ids))",
        "The positions begin at 0. Behind a prefix of P slots, the first token stands at position "
        "P.",
    ),
    (
        "slots[i] for i in which",
        "slots[i % len(slots)] for i in range(len(which))",
        "Sequence b is taken to see prefix b. It sees prefix which[b].",
    ),
    (
        "np.concatenate(each)",
        "np.arange(len(tokens)) + np.repeat(starts, [len(ids) for ids in sequences])",
        "The positions run on from one sequence into the next. Each sequence starts anew.",
    ),
    (
        "np.cumsum([0] + [len(ids) for ids in sequences])",
        "np.cumsum([len(ids) for ids in sequences])",
        "The first offset, 0, is missing: there are B + 1 of them.",
    ),
    (
        "np.cumsum([0] + [len(ids) for ids in sequences])",
        "np.cumsum([0] + [len(ids) + slots[i] for ids, i in zip(sequences, which)])",
        "The slots are counted as rows. A slot has no token, so the stream has no row for it.",
    ),
)
def stream_of_requests(rng: Rng) -> Cases:
    """Unlike lengths, a prefix that two see, no slots, one sequence."""
    for lengths, which, slots in BATCHES:
        sequences = [[int(i) for i in rng.integers(0, 90, T)] for T in lengths]
        yield sequences, list(which), list(slots)


@exercise(
    (
        "np.repeat(which, lengths) == i",
        "np.repeat(np.arange(len(which)), lengths) == i",
        "These are the rows of sequence i. Ask which prefix each sequence sees.",
    ),
    (
        "np.repeat(which, lengths) == i",
        "np.array(which) == i",
        "This has one entry for each sequence. Each of its rows needs one.",
    ),
    (
        "np.repeat(which, lengths) == i",
        "np.repeat(np.arange(len(which)) == list(which).index(i), lengths) if i in which "
        "else np.zeros(offsets[-1], dtype=bool)",
        "Only the first sequence that sees the prefix is found. Several may see it.",
    ),
)
def rows_that_see(rng: Rng) -> Cases:
    for lengths, which, slots in BATCHES:
        for i in range(len(slots) + 1):  # the last one is seen by none
            yield np.cumsum([0, *lengths]), list(which), i


@exercise(
    (
        "[prefix_keys[i], keys]",
        "[keys, prefix_keys[i]]",
        "The slots stand behind the tokens. They belong in front.",
    ),
    (
        "enumerate(which)",
        "enumerate(b % len(prefix_keys) for b in range(len(which)))",
        "Sequence b gets prefix b. It sees prefix which[b].",
    ),
    (
        "offsets[b] : offsets[b + 1]",
        "0 : offsets[b + 1]",
        "The keys of the sequences before are there, too. Begin at offsets[b].",
    ),
    (
        ".swapaxes(0, 1)",
        ".reshape(k.shape[1], -1, k.shape[2])",
        "A reshape mixes heads and tokens. Swap the two axes.",
    ),
)
def keys_by_sequence(rng: Rng) -> Cases:
    """None in the list, a prefix that two see, as many heads as tokens."""
    for NH, hs, (lengths, which, slots) in zip((3, 2, 5), (4, 3, 2), BATCHES, strict=True):
        k = rng.normal(size=(sum(lengths), NH, hs))
        keys = [rng.normal(size=(NH, P, hs)) if P else None for P in slots]
        yield k, np.cumsum([0, *lengths]), keys, list(which)


@exercise(
    (
        "n / M * dkv",
        "dkv / len(which)",
        "This is a mean of the sequences' means: a target of a short text counts more than one of "
        "a long text. Weight each gradient by its number of targets.",
    ),
    (
        "grads[i] += n / M * dkv",
        "grads[i] = n / M * dkv",
        "The last sequence overwrites the others. Add up all that see the prefix.",
    ),
    (
        "n / M * dkv",
        "n / sum(m for m, j in zip(n_targets, which) if j == i) * dkv",
        "Each prefix is divided by its own targets. The loss is the mean over all targets of the "
        "batch, so divide by M.",
    ),
    (
        "n / M * dkv",
        "n * dkv",
        "This is the gradient of the sum. The loss of the batch is a mean: divide by M.",
    ),
    (
        "n / M * dkv",
        "dkv / M",
        "A mean over the n targets of a sequence has to become a sum first: multiply by n.",
    ),
)
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


@exercise(
    (
        "if name in held:\n            held.remove(name)\n        held.append(name)",
        "if name not in held:\n            held.append(name)",
        "The place of a name is that of its first request. A name that is asked for again goes to "
        "the end.",
    ),
    (
        "held.pop(0)",
        "held.pop(-2)",
        "The wrong one goes. Remove the name that was asked for longest ago, at the front.",
    ),
    (
        "while sum(sizes[each] for each in held) > budget:",
        "if sum(sizes[each] for each in held) > budget:",
        "One name is removed, and the rest is still too large. Go on while it is above the budget.",
    ),
    (
        "while sum(sizes[each] for each in held) > budget:",
        "while sum(sizes[each] for each in held) >= budget:",
        "Names that fill the budget exactly may stay. Remove only above it.",
    ),
)
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


@exercise(
    (
        "whole = 1 + odds_0 + odds_1",
        "whole = odds_0 + odds_1",
        "The tokens are forgotten: they keep a share, too. Add 1 for them to the two odds.",
    ),
    (
        "return odds_0 / whole, odds_1 / whole",
        "return lam_0 / 2, lam_1 / 2",
        "The shares are not halved: three sums compete, and how much each loses depends on the "
        "other. Start from the odds.",
    ),
    (
        "return odds_0 / whole, odds_1 / whole",
        "return lam_0 * (1 - lam_1), lam_1 * (1 - lam_0)",
        "This treats the two as if they drew one after the other. All three sums stand in one "
        "divisor: start from the odds.",
    ),
    (
        "lam_0 / (1 - lam_0)",
        "1 / (1 - lam_0)",
        "This is the whole sum over the tokens' sum. The odds have the slots' sum above the line: "
        "λ / (1 - λ).",
    ),
)
def shares_side_by_side(rng: Rng) -> Cases:
    for T in (5, 1):
        yield rng.uniform(0.01, 0.95, T), rng.uniform(0.01, 0.95, T)
    yield np.array([0.0, 0.5]), np.array([0.5, 0.5])


@exercise(
    (
        "(prefix_0 + prefix_1) / 2",
        "np.concatenate([prefix_0, prefix_1], axis=1)",
        "Here the slots stand side by side. The mean of the prefixes has as many slots as each.",
    ),
    (
        "(prefix_0 + prefix_1) / 2",
        "np.stack([prefix_0[0], (prefix_0[1] + prefix_1[1]) / 2])",
        "Only the values are halfway. The keys are, too.",
    ),
    (
        "z_halfway - z_mean",
        "z_mean - z_halfway",
        "The sign is wrong: the output with the mean prefix comes first.",
    ),
    ("(z_0 + z_1) / 2", "z_0 + z_1", "This is the sum of the two outputs. Take their mean."),
)
def halfway_gap(rng: Rng) -> Cases:
    for T, P, hs in ((5, 3, 4), (1, 2, 3), (4, 1, 2)):
        yield (*rng.normal(size=(3, T, hs)), *rng.normal(0, 2, (2, 2, P, hs)))
