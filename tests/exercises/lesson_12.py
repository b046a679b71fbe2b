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


@wrong("early_stop", says="The best of the whole list is taken")
def with_hindsight(valid, patience):
    at = int(np.argmin(valid))
    return at, min(at + patience, len(valid) - 1)


@wrong("early_stop", says="It waits for one measurement too many")
def one_more(valid, patience):
    at, waited = 0, 0
    for i, value in enumerate(valid):
        if value < valid[at]:
            at, waited = i, 0
        elif i:
            waited += 1
        if waited > patience:
            return at, i
    return at, len(valid) - 1


@wrong("early_stop", says="The model of the stop is kept")
def the_last_state(valid, patience):
    at = 0
    for i in range(len(valid)):
        if valid[i] < valid[at]:
            at = i
        if i - at == patience:
            return i, i
    return len(valid) - 1, len(valid) - 1


@lazy("early_stop", says="early_stop: ")
def the_least_of_all(valid, patience):
    return int(np.argmin(valid)), len(valid) - 1


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
