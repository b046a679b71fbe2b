import numpy as np

from tests.exercises import lazy, wrong

# ---- a split and a rate --------------------------------------------------------------------------


@wrong("split_by_name", says="a leak")
def by_position(names, n_test):
    return list(range(n_test, len(names))), list(range(n_test))


@wrong("split_by_name", says="Names are counted")
def so_many_names(names, n_test):
    chosen = list(dict.fromkeys(names))[:n_test]
    sides = [name in chosen for name in names]
    return list(np.flatnonzero(np.logical_not(sides))), list(np.flatnonzero(sides))


@lazy("split_by_name", says="should have")
def the_records_of_one_name_are_dropped(names, n_test):
    """No name on both sides, as what would leak is thrown away."""
    test = list(range(n_test))
    known = {names[i] for i in test}
    return [i for i in range(len(names)) if i not in test and names[i] not in known], test


@wrong("choose_rate", says="One lucky seed decides")
def the_best_single_run(on_valid):
    rates = sorted(on_valid)
    best = min(rates, key=lambda rate: min(on_valid[rate]))
    return best, best in (rates[0], rates[-1])


@wrong("choose_rate", says="Only the largest rate counts as an end here")
def one_end(on_valid):
    best = min(on_valid, key=lambda rate: sum(on_valid[rate]) / len(on_valid[rate]))
    return best, best == max(on_valid)


@lazy("choose_rate", says="result 2 is")
def the_middle_one_is_always_fine(on_valid):
    best = min(on_valid, key=lambda rate: sum(on_valid[rate]))
    return best, False


# ---- stopping ------------------------------------------------------------------------------------


@wrong("keep_state", says="The index counts only what is allowed")
def an_index_into_what_is_left(on_valid, on_others, limit):
    left = [v for v, o in zip(on_valid, on_others, strict=True) if o <= limit * on_others[0]]
    return left.index(min(left))


@wrong("keep_state", says="The limit is a factor")
def an_absolute_limit(on_valid, on_others, limit):
    fine = [i for i in range(len(on_valid)) if on_others[i] <= limit]
    return min(fine, key=lambda i: on_valid[i]) if fine else 0


@wrong("keep_state", says="This is the last measurement that is allowed")
def the_latest(on_valid, on_others, limit):
    return max(i for i, o in enumerate(on_others) if o <= limit * on_others[0])


@lazy("keep_state", says="The limit is ignored")
def the_least_on_valid(on_valid, on_others, limit):
    return int(np.argmin(on_valid))


# ---- several seeds -------------------------------------------------------------------------------


@wrong("mean_and_error", says="The standard deviation divides by S")
def numpys_default(losses):
    deviation = np.std(losses)
    return np.mean(losses), deviation, deviation / np.sqrt(len(losses))


@wrong("mean_and_error", says="not S")
def divided_by_the_number(losses):
    deviation = np.std(losses, ddof=1)
    return np.mean(losses), deviation, deviation / len(losses)


@lazy("mean_and_error", says="off by")
def half_of_the_range(losses):
    half = (max(losses) - min(losses)) / 2
    return np.mean(losses), half, half / np.sqrt(len(losses))


def _flipped(gaps):
    """The mean for each choice of signs."""
    found = [0.0]
    for gap in gaps:
        found = [total + sign * gap for total in found for sign in (1, -1)]
    return np.array(found) / len(gaps)


@wrong("sign_flip_p", says="Only one direction counts here")
def one_sided(a, b):
    gaps = a - b
    return np.mean(_flipped(gaps) >= abs(gaps.mean()) - 1e-12)


@wrong("sign_flip_p", says="The signs that were found are not counted")
def strictly_above(a, b):
    gaps = a - b
    return np.mean(np.abs(_flipped(gaps)) > abs(gaps.mean()) + 1e-12)


@lazy("sign_flip_p", says="off by")
def by_counting_who_is_ahead(a, b):
    """The smallest p that so many seeds allow, whatever the numbers."""
    return 2 / 2 ** len(a)
