import numpy as np

from minprefix.ops import reference
from tests.exercises import lazy, wrong


def _tree(row, threads, dtype, pairs):
    """Right with the row's dtype and without pairs."""
    sums = np.array([_in_order(row[t::threads], dtype) for t in range(threads)])
    while len(sums) > 1:
        half = len(sums) // 2
        sums = sums[::2] + sums[1::2] if pairs else sums[:half] + sums[half:]
    return sums[0]


def _in_order(numbers, dtype):
    total = dtype.type(0)
    for a in numbers:
        total += a
    return total


@wrong("tree_sum", says="Neighbours are added")
def neighbours_are_paired(row, threads):
    return _tree(row, threads, row.dtype, pairs=True)


@wrong("tree_sum", says="The sums are float64")
def the_sums_have_more_digits_than_the_row(row, threads):
    part = np.array([row[t::threads].astype(float).sum() for t in range(threads)])
    while part.size > 1:
        part = part[: part.size // 2] + part[part.size // 2 :]
    return part[0]


@lazy("tree_sum", says="what it returns is")
def numpy_adds(row, threads):
    return row.sum()


@wrong("pad", says="The filling stands in front")
def the_filling_comes_first(stream, offsets):
    sizes = np.diff(offsets)
    out = np.zeros((len(sizes), stream.shape[1], max(sizes), stream.shape[2]))
    for b, n in enumerate(sizes):
        out[b, :, max(sizes) - n :] = stream[offsets[b] : offsets[b + 1]].swapaxes(0, 1)
    return out


@wrong("pad", says="A reshape mixes tokens and heads")
def the_axes_are_reshaped(stream, offsets):
    sizes, (NH, hs) = np.diff(offsets), stream.shape[1:]
    out = np.zeros((len(sizes), NH, max(sizes), hs))
    for b, n in enumerate(sizes):
        out[b, :, :n] = stream[offsets[b] : offsets[b + 1]].reshape(NH, n, hs)
    return out


@lazy("pad", says="it raised ValueError")
def as_if_all_had_one_length(stream, offsets):
    B = len(offsets) - 1
    return stream.reshape(B, -1, *stream.shape[1:]).swapaxes(1, 2)


@wrong("unpad", says="The filling is still there")
def the_filling_is_kept(rectangle, offsets):
    return np.concatenate(list(rectangle.swapaxes(1, 2)))


@wrong("unpad", says="A reshape mixes tokens and heads")
def the_way_back_is_a_reshape(rectangle, offsets):
    B, NH, _, hs = rectangle.shape
    sizes = np.diff(offsets)
    return np.concatenate([rectangle[b, :, : sizes[b]].reshape(-1, NH, hs) for b in range(B)])


@lazy("unpad", says="what it returns")
def the_first_rows_of_all(rectangle, offsets):
    B, NH, T, hs = rectangle.shape
    return rectangle.swapaxes(1, 2).reshape(B * T, NH, hs)[: offsets[-1]]


@wrong("visible_columns", says="The mask begins at the wrong corner")
def the_diagonal_begins_at_the_slots(lengths, slots):
    row, column = np.arange(max(lengths))[:, None], np.arange(max(slots) + max(lengths))
    own = column < np.array(slots)[:, None, None]
    return own | ((column >= max(slots)) & (column <= row))


@wrong("visible_columns", says="The filling of the short prefixes is seen")
def all_slots_are_seen(lengths, slots):
    row, column = np.arange(max(lengths))[:, None], np.arange(max(slots) + max(lengths))
    own = column < np.array(slots)[:, None, None]
    return own | (column <= max(slots) + row)


@lazy("visible_columns", says="calls ops.reference.visible of the package")
def the_packages_mask_for_all(lengths, slots):
    return np.stack([reference.visible(max(lengths), max(slots))] * len(lengths))


def _attention(q, k, v, prefix_k, prefix_v, offsets, hidden=-np.inf, scale=True):
    """Right as it stands; each answer below changes one thing."""
    lengths, slots = np.diff(offsets), [a.shape[1] for a in prefix_k]
    B, T, P, (_, NH, hs) = len(lengths), max(lengths), max(slots), q.shape
    rows = np.zeros((B, NH, T, hs))
    both = np.zeros((2, B, NH, P + T, hs))
    mask = np.zeros((B, 1, T, P + T), bool)
    i, j = np.arange(T)[:, None], np.arange(P + T)
    for b, n in enumerate(lengths):
        own = slice(offsets[b], offsets[b + 1])
        rows[b, :, :n] = q[own].swapaxes(0, 1)
        for one, slot, stream in zip(both, (prefix_k[b], prefix_v[b]), (k, v), strict=True):
            one[b, :, : slots[b]] = slot
            one[b, :, P : P + n] = stream[own].swapaxes(0, 1)
        mask[b, 0] = (j < slots[b]) | ((j >= P) & (j <= P + i))
    scaled = rows @ both[0].swapaxes(2, 3) / (hs**0.5 if scale else 1)
    shares = np.exp(np.where(mask, scaled, hidden))
    shares /= shares.sum(axis=-1, keepdims=True)
    out = (shares @ both[1]).swapaxes(1, 2)
    return np.concatenate([out[b, :n] for b, n in enumerate(lengths)])


@wrong("padded_attention", says="it has to be -inf")
def hidden_scores_are_0(q, k, v, prefix_k, prefix_v, offsets):
    return _attention(q, k, v, prefix_k, prefix_v, offsets, hidden=0)


@wrong("padded_attention", says="The division by sqrt(hs) is missing")
def the_scores_are_not_scaled(q, k, v, prefix_k, prefix_v, offsets):
    return _attention(q, k, v, prefix_k, prefix_v, offsets, scale=False)


@lazy("padded_attention", says="computes a product for each sequence")
def the_sequences_are_walked(q, k, v, prefix_k, prefix_v, offsets):
    zs = []
    for b in range(len(offsets) - 1):
        own = slice(offsets[b], offsets[b + 1])
        queries = q[own].swapaxes(0, 1)
        keys = np.concatenate([prefix_k[b], k[own].swapaxes(0, 1)], axis=1)
        values = np.concatenate([prefix_v[b], v[own].swapaxes(0, 1)], axis=1)
        P, T = prefix_k[b].shape[1], queries.shape[1]
        scores = queries @ keys.swapaxes(1, 2) / q.shape[-1] ** 0.5
        seen = np.arange(P + T) <= np.arange(T)[:, None] + P
        zs.append((reference.softmax(np.where(seen, scores, -np.inf)) @ values).swapaxes(0, 1))
    return np.concatenate(zs)


@wrong("wasted", says="These are rows, not scores")
def rows_are_counted(lengths, slots):
    return 1 - np.mean(lengths) / max(lengths)


@wrong("wasted", says="This is the part that is needed")
def the_part_that_is_needed(lengths, slots):
    T, P = max(lengths), max(slots)
    of_all = sum(t * (s + t) for t, s in zip(lengths, slots, strict=True))
    return of_all / (len(slots) * T * (P + T))


@lazy("wasted", says="what it returns is")
def the_number_of_the_lesson(lengths, slots):
    return 0.75 - 0.0007485


@wrong("tree_sum", says="NumPy's sum adds in an order of its own")
def numpy_sums_up_each_thread(row, threads):
    part = np.array([row[t::threads].sum() for t in range(threads)], row.dtype)
    while len(part) > 1:
        half = len(part) // 2
        part = part[:half] + part[half:]
    return part[0]


@wrong("padded_attention", says="The mask comes after the softmax")
def the_pattern_is_masked(q, k, v, prefix_k, prefix_v, offsets):
    lengths, slots = np.diff(offsets), [a.shape[1] for a in prefix_k]
    rectangles = []
    for stream, prefixes in ((k, prefix_k), (v, prefix_v)):
        both = np.zeros((len(lengths), q.shape[1], max(slots) + max(lengths), q.shape[2]))
        for b, n in enumerate(lengths):
            both[b, :, : slots[b]] = prefixes[b]
            tokens = stream[offsets[b] : offsets[b + 1]].swapaxes(0, 1)
            both[b, :, max(slots) : max(slots) + n] = tokens
        rectangles.append(both)
    queries = np.zeros((len(lengths), q.shape[1], max(lengths), q.shape[2]))
    for b, n in enumerate(lengths):
        queries[b, :, :n] = q[offsets[b] : offsets[b + 1]].swapaxes(0, 1)
    scores = queries @ rectangles[0].swapaxes(2, 3) / q.shape[2] ** 0.5
    i, j = np.arange(max(lengths))[:, None], np.arange(scores.shape[-1])
    seen = (j < np.array(slots)[:, None, None]) | (j >= max(slots)) & (j <= max(slots) + i)
    pattern = reference.softmax(scores) * seen[:, None]
    z = pattern @ rectangles[1]
    return np.concatenate([z[b, :, :n].swapaxes(0, 1) for b, n in enumerate(lengths)])
