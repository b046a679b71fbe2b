import numpy as np

from minprefix import Batch
from minprefix.ops import reference
from tests.exercises import lazy, wrong

# ---- one stream ----------------------------------------------------------------------------------


def _stream(sequences, first, slots_have_rows=0):
    tokens, offsets, positions = [], [0], []
    for ids, P in zip(sequences, first, strict=True):
        tokens += list(ids)
        positions += range(P, P + len(ids))
        offsets.append(offsets[-1] + len(ids) + slots_have_rows * P)
    return np.array(tokens), np.array(offsets), np.array(positions)


@wrong("stream_of_requests", says="The positions begin at 0")
def no_room_for_the_slots(sequences, which, slots):
    return _stream(sequences, [0] * len(which))


@wrong("stream_of_requests", says="The slots are counted as rows")
def offsets_with_the_slots(sequences, which, slots):
    tokens, offsets, positions = _stream(sequences, [slots[i] for i in which], 1)
    return tokens, offsets, positions


@lazy("stream_of_requests", says="calls batch.Batch.pack of the package")
def by_the_packages_batch(sequences, which, slots):
    batch = Batch.pack(sequences, prefix=which)
    _, _, positions = _stream(sequences, [slots[i] for i in which])
    return batch.tokens, batch.offsets, positions


@wrong("rows_that_see", says="These are the rows of sequence i")
def prefix_i_for_sequence_i(offsets, which, i):
    seen = np.zeros(offsets[-1], dtype=bool)
    if i < len(which):
        seen[offsets[i] : offsets[i + 1]] = True
    return seen


@wrong("rows_that_see", says="This has one entry for each sequence")
def one_entry_a_sequence(offsets, which, i):
    return np.array([j == i for j in which])


@lazy("rows_that_see", says="Only the first sequence that sees the prefix is found")
def the_first_that_sees_it(offsets, which, i):
    seen = np.zeros(offsets[-1], dtype=bool)
    for b, j in enumerate(which):
        if j == i:
            seen[offsets[b] : offsets[b + 1]] = True
            break
    return seen


def _keys(k, offsets, prefix_keys, which, behind=False):
    found = []
    for start, end, i in zip(offsets[:-1], offsets[1:], which, strict=True):
        parts = [np.moveaxis(k[start:end], 1, 0)]
        if prefix_keys[i] is not None:
            parts.insert(1 if behind else 0, prefix_keys[i])
        found.append(np.concatenate(parts, axis=1))
    return found


@wrong("keys_by_sequence", says="The slots stand behind the tokens")
def the_slots_at_the_end(k, offsets, prefix_keys, which):
    return _keys(k, offsets, prefix_keys, which, behind=True)


@wrong("keys_by_sequence", says="Sequence b gets prefix b")
def without_which(k, offsets, prefix_keys, which):
    n = len(prefix_keys)
    return _keys(k, offsets, prefix_keys, [b % n for b in range(len(which))])


@lazy("keys_by_sequence", says="calls ops.reference.attention of the package")
def out_of_the_packages_cache(k, offsets, prefix_keys, which):
    none = np.zeros((k.shape[1], 0, k.shape[2]))
    slots = [none if prefix_keys[i] is None else prefix_keys[i] for i in which]
    _, cache = reference.attention(k, k, k, slots, slots, offsets)
    return _keys(cache.k, offsets, prefix_keys, which)


@wrong("gradients_by_prefix", says="This is a mean of the sequences' means")
def a_mean_over_the_sequences(alone, n_targets, which, prefixes):
    grads = [0 * kv for kv in prefixes]
    for b, i in enumerate(which):
        grads[i] = grads[i] + alone[b] / len(alone)
    return grads


@wrong("gradients_by_prefix", says="Each prefix is divided by its own targets")
def a_mean_for_each_prefix(alone, n_targets, which, prefixes):
    grads = []
    for i, kv in enumerate(prefixes):
        mine = [b for b, j in enumerate(which) if j == i]
        n = sum(n_targets[b] for b in mine)
        grads.append(sum((n_targets[b] * alone[b] / n for b in mine), np.zeros(kv.shape)))
    return grads


@lazy("gradients_by_prefix", says="The last sequence overwrites the others")
def one_sequence_for_each_prefix(alone, n_targets, which, prefixes):
    last = {i: b for b, i in enumerate(which)}
    return [
        n_targets[last[i]] / sum(n_targets) * alone[last[i]] if i in last else np.zeros(kv.shape)
        for i, kv in enumerate(prefixes)
    ]


# ---- the shelf, and mixing -----------------------------------------------------------------------


def _held(asked, sizes, budget, renew=True, again=True):
    held = {}
    for name in asked:
        if renew:
            held.pop(name, None)
        held[name] = sizes[name]
        while sum(held.values()) > budget:
            del held[next(iter(held))]
            if not again:
                break
    return list(held)


@wrong("held_after", says="A name that is asked for again goes to the end")
def first_in_first_out(asked, sizes, budget):
    return _held(asked, sizes, budget, renew=False)


@wrong("held_after", says="One name is removed, and the rest is still too large")
def one_goes_for_one(asked, sizes, budget):
    return _held(asked, sizes, budget, again=False)


@lazy("held_after", says="should have")
def as_many_as_in_the_lesson(asked, sizes, budget):
    last = list(dict.fromkeys(reversed(asked)))[:2]
    return last[::-1]


@wrong("shares_side_by_side", says="The shares are not halved")
def half_of_each(lam_0, lam_1):
    return 0.5 * lam_0, 0.5 * lam_1


@wrong("shares_side_by_side", says="The tokens are forgotten")
def only_the_slots_compete(lam_0, lam_1):
    first, second = lam_0 / (1 - lam_0), lam_1 / (1 - lam_1)
    return first / (first + second), second / (first + second)


@lazy("shares_side_by_side", says="off by")
def as_if_both_were_alone(lam_0, lam_1):
    return lam_0, lam_1


def _head(q, k, v, prefix_k, prefix_v):
    shares = np.exp(q @ np.vstack([prefix_k, k]).T / np.sqrt(q.shape[1]))
    shares *= np.tri(len(q), shares.shape[1], len(prefix_k))
    return shares @ np.vstack([prefix_v, v]) / shares.sum(1, keepdims=True)


def _halves(q, k, v, prefix_0, prefix_1):
    return (_head(q, k, v, *prefix_0) + _head(q, k, v, *prefix_1)) / 2


@wrong("halfway_gap", says="Here the slots stand side by side")
def both_in_one(q, k, v, prefix_0, prefix_1):
    both = np.concatenate([prefix_0, prefix_1], axis=1)
    return _head(q, k, v, *both) - _halves(q, k, v, prefix_0, prefix_1)


@wrong("halfway_gap", says="The sign is wrong")
def the_other_way_round(q, k, v, prefix_0, prefix_1):
    middle = 0.5 * prefix_0 + 0.5 * prefix_1
    return _halves(q, k, v, prefix_0, prefix_1) - _head(q, k, v, *middle)


@lazy("halfway_gap", says="off by")
def a_mean_is_a_mean(q, k, v, prefix_0, prefix_1):
    return np.zeros_like(q)
