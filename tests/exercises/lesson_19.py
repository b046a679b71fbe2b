import numpy as np

from minprefix.batch import Batch
from minprefix.lessons.clinic import fill
from minprefix.optim import global_norm
from tests.exercises import lazy, wrong


@wrong("moved_share", says="Subtract start first")
def size_at_the_end(start, end, of_tokens):
    return ((end**2).mean() / (of_tokens**2).mean()) ** 0.5


@wrong("moved_share", says="a sum of squares grows with the number of slots")
def norm_of_the_distance(start, end, of_tokens):
    distance = np.linalg.norm(end - start)
    natural = np.sqrt((of_tokens**2).mean())
    return distance / natural


@lazy("moved_share", says="calls optim.global_norm of the package")
def norms_of_the_package(start, end, of_tokens):
    distance = global_norm({"kv": end - start}) / start.size**0.5
    return distance / (global_norm({"kv": of_tokens}) / of_tokens.size**0.5)


@wrong("first_step", says="Take the absolute value before the largest one")
def largest_step_up(start, after_first, rates):
    step = after_first - start
    return np.max(step) / rates[0]


@wrong("first_step", says="The rate falls over the run")
def in_mean_rates(start, after_first, rates):
    farthest = np.max(np.abs(after_first - start))
    return farthest / np.mean(rates)


@lazy("first_step", says="should be 3.16")
def one_as_it_should_be(start, after_first, rates):
    return 1.0


@wrong("slope_error", says="divide by 2 * step")
def one_step_apart(dkv, direction, loss_up, loss_down, step):
    predicted = np.sum(dkv * direction)
    measured = (loss_up - loss_down) / step
    return np.abs(predicted - measured) / max(np.abs(predicted), np.abs(measured))


@wrong("slope_error", says="which is 0 where a gradient is 0")
def relative_to_the_prediction(dkv, direction, loss_up, loss_down, step):
    slope = np.sum(dkv * direction)
    shown = (loss_up - loss_down) / (2 * step)
    with np.errstate(divide="ignore"):
        return np.abs(slope - shown) / np.abs(slope)


@lazy("slope_error", says="calls conformance.diagnosis.relative_error of the package")
def error_of_the_package(dkv, direction, loss_up, loss_down, step):
    from minprefix.conformance.diagnosis import relative_error

    slopes = np.sum(dkv * direction), (loss_up - loss_down) / (2 * step)
    small, large = sorted(map(abs, slopes))
    relative_error(np.array(small), np.array(large))
    return abs(slopes[0] - slopes[1]) / large


@wrong("gradient_is_zero_where", says="Compare the absolute value")
def negative_ones_count(dkv):
    return np.mean(dkv < 1e-9, axis=(2, 3, 4))


@wrong("gradient_is_zero_where", says="Only exact zeros count")
def exact_zeros_alone(dkv):
    is_zero = dkv == 0
    return is_zero.mean(axis=(2, 3, 4))


@lazy("gradient_is_zero_where", says="(3, 2)")
def two_layers_typed_in(dkv):
    zero = np.abs(dkv) < 1e-9
    return np.array(
        [[zero[0, 0].mean(), zero[0, 1].mean()], [zero[1, 0].mean(), zero[1, 1].mean()]]
    )


@wrong("stated_names", says="Look for the whole name")
def first_word_of_the_name(pairs):
    names = [source.split("[")[1].split("]")[0] for source, _ in pairs]
    return sum(n.split(" ")[0] in t for n, (_, t) in zip(names, pairs, strict=True)) / len(pairs)


@wrong("stated_names", says="Begin one character behind it")
def with_its_bracket(pairs):
    stated = [s[s.find("[") : s.find("]")] in target for s, target in pairs]
    return sum(stated) / len(stated)


@lazy("stated_names", says="calls data.world.read_record of the package")
def record_of_the_package(pairs):
    from minprefix.data.world import read_record

    [read_record(source) for source, _ in pairs]
    return sum(s.split("]")[0][5:] in target for s, target in pairs) / len(pairs)


@wrong("leaks", says="Two targets that give two prompts are enough")
def each_target_its_own_prompt(template, pairs):
    found = [len({fill(template, s, t) for _, t in pairs}) == len(pairs) for s, _ in pairs]
    return sum(found) / len(found)


@wrong("leaks", says="This is a count")
def how_many_leak(template, pairs):
    return sum(len({fill(template, source, t) for _, t in pairs}) > 1 for source, _ in pairs)


@wrong("leaks", says="it is 1, and should be 0")
def the_targets_word_stands_in_the_prompt(template, pairs):
    return sum(t.split(" ")[0] in fill(template, s, t) for s, t in pairs) / len(pairs)


@lazy("leaks", says="off by 1 of its largest value")
def looks_for_the_placeholder(template, pairs):
    return float("{target}" in template)


@wrong("wrong_rows", says="Row i predicts token i + 1")
def rows_of_the_targets(lengths, loss_from, rows):
    needed, offset = set(), 0
    for T, start in zip(lengths, loss_from, strict=True):
        needed |= set(range(offset + start, offset + T))
        offset += T
    return len(needed - set(rows)), len(set(rows) - needed)


@wrong("wrong_rows", says="add the lengths of the sequences before")
def counted_anew(lengths, loss_from, rows):
    needed = set()
    for T, start in zip(lengths, loss_from, strict=True):
        needed |= set(range(start - 1, T - 1))
    return len(needed - set(rows)), len(set(rows) - needed)


@lazy("wrong_rows", says="calls batch.Batch.pack of the package")
def packed_again(lengths, loss_from, rows):
    needed = set(Batch.pack([[0] * T for T in lengths], loss_from).rows.tolist())
    return len(needed - set(rows)), len(set(rows) - needed)


@wrong("rows_that_see_ahead", says="Look at the rows before it")
def the_changed_row_counts(logits, logits_changed, changed):
    difference = np.abs(logits - logits_changed).max(axis=1)
    return int(np.sum(difference[: changed + 1] > 1e-4))


@wrong("rows_that_see_ahead", says="Compare with 1e-4")
def rounding_counts(logits, logits_changed, changed):
    return int((logits[:changed] != logits_changed[:changed]).any(axis=1).sum())


@lazy("rows_that_see_ahead", says="off by")
def only_row_0(logits, logits_changed, changed):
    return changed * int(abs(logits[0] - logits_changed[0]).max() > 1e-4)


@wrong("decoding_follows", says="Row i predicts token i + 1")
def the_row_it_stands_in(ids, logits, start):
    expected = np.argmax(logits[start:], axis=1)
    return np.mean(expected == np.array(ids[start:]))


@wrong("decoding_follows", says="This is a count")
def how_many_follow(ids, logits, start):
    expected = np.argmax(logits[start - 1 : -1], axis=1)
    return np.sum(expected == np.array(ids[start:]))


@lazy("decoding_follows", says="off by")
def the_first_token_alone(ids, logits, start):
    return float(np.argmax(logits[start - 1]) == ids[start])


def _by(chart, slope=1e-3, order=("optimizer", "rate"), moved=0.05, two_sides=True):
    """A tree of questions, right as it stands; each answer below changes one thing."""
    prompts = [
        {fill(chart["template"], s, t) for _, t in chart["pairs"]} for s, _ in chart["pairs"]
    ]
    if any(len(each) > 1 for each in prompts):
        return "leaking template"
    if sum(s.split("]")[0][5:] in t for s, t in chart["pairs"]) < len(chart["pairs"]) / 2:
        return "shuffled pairs"
    targets = sum(len(i) - start for i, start in zip(chart["ids"], chart["loss_from"], strict=True))
    if targets != len(chart["rows"]):
        return "wrong rows"
    before = abs(chart["logits"] - chart["logits_changed"])[: chart["changed"]]
    if before.max() > 1e-4:
        return "sees the future"
    predicted = (chart["dkv"] * chart["direction"]).sum()
    measured = (chart["loss_up"] - chart["loss_down"]) / (2 * chart["step"])
    if abs(predicted - measured) > slope * max(abs(predicted), abs(measured)):
        return "wrong gradient"
    if order[0] == "rate" and max(chart["losses"]) > np.log(1024):
        return "rate too large"
    first = abs(chart["after_first"] - chart["start"]).max() / chart["rates"][0]
    if first > 1.05 or (two_sides and first < 0.95):
        return "wrong optimizer"
    way = ((chart["end"] - chart["start"]) ** 2).mean() / (chart["of_tokens"] ** 2).mean()
    if way**0.5 < moved:
        return "rate too small"
    if max(chart["losses"]) > np.log(1024):
        return "rate too large"
    new, start = chart["decoded"], chart["decoded_from"]
    greedy = chart["decoded_logits"].argmax(axis=1)[start - 1 : -1]
    return "healthy" if list(greedy) == new[start:] else "broken decoding"


@wrong("diagnose", says="changes a slope by one or two percent")
def a_coarse_slope(chart):
    return _by(chart, slope=0.2)


@wrong("diagnose", says="Ask for both sides")
def a_short_step_is_fine(chart):
    return _by(chart, two_sides=False)


@wrong("diagnose", says="A limit of 0.05 leaves it healthy")
def a_healthy_prefix_has_moved_little(chart):
    return _by(chart, moved=1)


@lazy("diagnose", says=", and should be '")
def the_answers_of_the_lessons_ward_by_heart(chart):
    first = round(float(chart["losses"][0]), 3)
    known = {0.105: "wrong optimizer", 0.114: "healthy", 0.107: "wrong gradient"}
    return known.get(first, "rate too small" if chart["losses"].max() < 1 else "rate too large")


@wrong("rows_that_see_ahead", says="This counts logits, several of one row")
def each_number_counts(logits, logits_changed, changed):
    return (np.abs(logits[:changed] - logits_changed[:changed]) > 1e-4).sum()


@wrong("slope_error", says="Take both absolute values before the larger one")
def the_larger_slope_with_its_sign(dkv, direction, loss_up, loss_down, step):
    p, m = (dkv * direction).sum(), (loss_up - loss_down) / (2 * step)
    return abs(p - m) / max(p, m)


@wrong("slope_error", says="The error is divided by the measured slope")
def relative_to_the_measurement(dkv, direction, loss_up, loss_down, step):
    p, m = (dkv * direction).sum(), (loss_up - loss_down) / (2 * step)
    return abs((p - m) / m)


@wrong("wrong_rows", says="a range leaves its end out")
def a_range_that_ends_early(lengths, loss_from, rows):
    needed, offset = set(), 0
    for T, start in zip(lengths, loss_from, strict=True):
        needed.update(range(offset + start - 1, offset + T - 2))
        offset += T
    return len(needed - set(rows)), len(set(rows) - needed)


@wrong("diagnose", says="what it returns is 'rate too large', and should be 'wrong optimizer'")
def the_loss_before_its_cause(chart):
    return _by(chart, order=("rate", "optimizer"))
