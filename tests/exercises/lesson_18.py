import numpy as np

from minprefix.ops import reference
from tests.exercises import lazy, wrong


@wrong("memorised", says="Return how many there are")
def share_of_the_rows(logits, answers):
    guesses = np.argmax(logits, axis=1)
    return np.mean(guesses == answers)


@wrong("memorised", says="A logit above 0 says nothing by itself")
def logits_above_0(logits, answers):
    return sum(bool(row[a] > 0) for row, a in zip(logits, answers, strict=True))


@lazy("memorised", says="calls generate._likeliest of the package")
def likeliest_of_the_package(logits, answers):
    from minprefix.generate import _likeliest

    return sum(int(_likeliest(row, 1)[0]) == a for row, a in zip(logits, answers, strict=True))


@wrong("fewest_slots", says="The mean hides the worst seed")
def enough_in_the_mean(lengths, known, wanted):
    for length, row in zip(lengths, known, strict=True):
        if row.mean() >= wanted:
            return int(length)
    return None


@wrong("fewest_slots", says="write >=")
def more_than_wanted(lengths, known, wanted):
    fine = [int(n) for n, row in zip(lengths, known, strict=True) if min(row) > wanted]
    return fine[0] if fine else None


@lazy("fewest_slots", says="it is 4, and should be 8")
def the_lessons_answer(lengths, known, wanted):
    return 4


@wrong("slots_forward", says="The scale is missing")
def without_a_scale(q, k, v):
    e = np.exp(q @ k.T)
    pattern = e / e.sum(axis=1)[:, None]
    return pattern @ v, pattern


@wrong("slots_forward", says="The softmax runs over the queries")
def softmax_of_the_columns(q, k, v):
    e = np.exp(q @ k.T / np.sqrt(q.shape[1]))
    pattern = e / e.sum(axis=0)
    z = pattern @ v
    return z, pattern


@lazy("slots_forward", says="of the package, and ours does not")
def attention_of_the_package(q, k, v):
    zero = np.zeros_like(q)[:, None]
    slots = [k[None]], [v[None]]
    reference.attention(q[:, None], zero, zero, *slots, np.array([0, len(q)]))
    e = np.exp(q @ k.T / q.shape[1] ** 0.5)
    pattern = e / e.sum(axis=1, keepdims=True)
    return pattern @ v, pattern


@wrong("slots_backward", says="The row sum is not subtracted")
def without_the_row_sum(dz, q, v, pattern):
    dscores = pattern * (dz @ v.T)
    return dscores.T @ q / np.sqrt(q.shape[1]), pattern.T @ dz


@wrong("slots_backward", says="The scale is missing in dk")
def scale_forgotten(dz, q, v, pattern):
    dpattern = dz @ v.T
    dscores = pattern * (dpattern - np.sum(dpattern * pattern, axis=1)[:, None])
    dv = pattern.T @ dz
    return dscores.T @ q, dv


@lazy("slots_backward", says="slots_backward calls probe 24 times")
def finite_differences(dz, q, v, pattern):
    return _differences(dz, q, v, pattern)


def _differences(dz, q, v, pattern, eps=1e-6):
    dv = np.zeros_like(v)
    for index in np.ndindex(v.shape):
        up = v.copy()
        up[index] += eps
        dv[index] = (dz * (probe(pattern, up) - probe(pattern, v))).sum() / eps
    return dv, dv


def probe(pattern, v):
    return pattern @ v


@wrong("generalisation_gap", says="The sign is turned around")
def training_minus_validation(on_train, on_valid):
    gap = on_train - on_valid
    return gap[np.argmin(on_valid)], gap[-1]


@wrong("generalisation_gap", says="This is the smallest gap")
def smallest_gap(on_train, on_valid):
    gap = on_valid - on_train
    return min(gap), gap[-1]


@lazy("generalisation_gap", says="at_best")
def at_the_end_twice(on_train, on_valid):
    gap = on_valid - on_train
    return gap[-1], gap[-1]


@wrong("chosen_run", says="Report that of the chosen run and step")
def smallest_on_test(on_valid, on_test):
    which, step = np.unravel_index(on_valid.argmin(), on_valid.shape)
    return which, step, on_test.min()


@wrong("chosen_run", says="The run is chosen by the test set")
def chosen_by_the_test(on_valid, on_test):
    place = np.argmin(on_test)
    which, step = place // on_test.shape[1], place % on_test.shape[1]
    return which, step, on_test[which, step]


@wrong("chosen_run", says="Report the test loss")
def validation_loss(on_valid, on_test):
    which, step = np.unravel_index(on_valid.argmin(), on_valid.shape)
    return which, step, on_valid.min()


@lazy("chosen_run", says="which is off by")
def the_longest_at_the_step_of_the_lesson(on_valid, on_test):
    which = len(on_valid) - 1
    step = int(on_valid[which].argmin())
    return which, step, on_test[which, step]


@wrong("early_stop", says="Only a smaller one counts")
def equal_is_better(on_valid, patience):
    best = 0
    for step, value in enumerate(on_valid):
        if value <= on_valid[best]:
            best = step
        if step - best == patience:
            return best, step
    return best, len(on_valid) - 1


@wrong("early_stop", says="The rule stops one step late")
def one_step_late(on_valid, patience):
    best = 0
    for step in range(len(on_valid)):
        if on_valid[step] < on_valid[best]:
            best = step
        if step - best > patience:
            return best, step
    return best, len(on_valid) - 1


@lazy("early_stop", says="best is off by")
def smallest_of_the_whole_curve(on_valid, patience):
    best = int(np.argmin(on_valid))
    return best, min(best + patience, len(on_valid) - 1)
