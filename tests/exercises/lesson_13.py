import numpy as np

from minprefix.ops import numpy_ops
from tests.exercises import lazy, wrong


def loss(ops, op, a, dout):
    """As the lesson has it."""
    if op == "layernorm":
        out = ops.layernorm(a["x"], a["gain"], a["bias"], 1e-5)[0]
    elif op == "gelu":
        out = ops.gelu(a["x"].copy())[0]
    else:
        slots = [a["prefix_k"]] * 2, [a["prefix_v"]] * 2
        out = ops.attention(a["q"], a["k"], a["v"], *slots, np.array([0, 3, 5]))[0]
    return (dout * out).sum()


@wrong("slope_along", says="The slope is twice too large")
def the_step_is_taken_for_the_way_from_down_to_up(ops, op, a, direction, dout, eps):
    ups = {n: a[n] + direction[n] * eps for n in a}
    downs = {n: a[n] - direction[n] * eps for n in a}
    return (loss(ops, op, ups, dout) - loss(ops, op, downs, dout)) / eps


@wrong("slope_along", says="up is off by")
def up_and_down_move_by_half_a_step(ops, op, a, direction, dout, eps):
    up = loss(ops, op, {n: a[n] + eps / 2 * direction[n] for n in a}, dout)
    down = loss(ops, op, {n: a[n] - eps / 2 * direction[n] for n in a}, dout)
    return (up - down) / eps


@wrong("slope_along", says="The second loss is that of the inputs as they are")
def one_side_only(ops, op, a, direction, dout, eps):
    up = loss(ops, op, {n: a[n] + eps * direction[n] for n in a}, dout)
    return (up - loss(ops, op, a, dout)) / eps


@lazy("slope_along", says="_backward")
def the_backward_gives_the_slope(ops, op, a, direction, dout, eps):
    return sum((direction[n] * d).sum() for n, d in gradients(ops, op, a, dout).items())


def gradients(ops, op, a, dout):
    if op == "layernorm":
        cache = ops.layernorm(a["x"], a["gain"], a["bias"], 1e-5)[1]
        dgain, dbias = ops.layernorm_backward_params(dout, cache)
        return {"x": ops.layernorm_backward(dout.copy(), cache), "gain": dgain, "bias": dbias}
    if op == "gelu":
        return {"x": ops.gelu_backward(dout.copy(), ops.gelu(a["x"].copy())[1])}
    slots = [a["prefix_k"]] * 2, [a["prefix_v"]] * 2
    cache = ops.attention(a["q"], a["k"], a["v"], *slots, np.array([0, 3, 5]))[1]
    dq, dk, dv, dprefix_k, dprefix_v = ops.attention_backward(dout, cache)
    return {"q": dq, "k": dk, "v": dv, "prefix_k": sum(dprefix_k), "prefix_v": sum(dprefix_v)}


@wrong("by_complex_step", says="The earlier numbers are still moved")
def the_steps_before_are_not_undone(ops, op, a, dout, eps):
    grads = {name: np.empty(values.shape) for name, values in a.items()}
    for name, values in a.items():
        z = values + 0j
        for i in np.ndindex(z.shape):
            z[i] += eps * 1j
            grads[name][i] = np.imag(loss(ops, op, {**a, name: z}, dout)) / eps
    return grads


@wrong("by_complex_step", says="The division by eps is missing.")
def the_imaginary_part_alone(ops, op, a, dout, eps):
    grads = {name: np.empty(values.shape) for name, values in a.items()}
    for name, values in a.items():
        for i in np.ndindex(values.shape):
            z = values + 0j
            z[i] += eps * 1j
            grads[name][i] = np.imag(loss(ops, op, {**a, name: z}, dout))
    return grads


@lazy("by_complex_step", says="_backward")
def the_backward_gives_the_gradients(ops, op, a, dout, eps):
    return gradients(ops, op, a, dout)


def relative_error(a, b):
    return np.abs(a - b).max() / max(np.abs(b).max(), 1e-300)


@wrong("worst", says="Python's max and nanmax may leave it out")
def pythons_max(found, right):
    return max(relative_error(found[name], right[name]) for name in right)


@wrong("worst", says="This is the mean error")
def the_mean_of_the_errors(found, right):
    return sum(relative_error(found[name], right[name]) for name in right) / len(right)


@lazy("worst", says="off by")
def all_numbers_in_one_array(found, right):
    one, other = (np.concatenate([a[name].ravel() for name in right]) for a in (found, right))
    return relative_error(one, other)


@wrong("check_attention_laws", says="The slots are missing in the keys' law")
def the_tokens_keys_alone(grads, dz):
    keys = np.sum(grads["k"], axis=0)
    values = np.sum(grads["v"], axis=0) + np.sum(grads["prefix_v"], axis=1) - np.sum(dz, axis=0)
    assert (abs(keys) < 1e-12).all()
    assert (abs(values) < 1e-12).all()


@wrong("check_attention_laws", says="The right side is missing in the values' law")
def the_values_sum_to_0_too(grads, dz):
    for name in "kv":
        total = grads[name].sum(axis=0) + grads[f"prefix_{name}"].sum(axis=1)
        keys, values = (total, None) if name == "k" else (keys, total)  # noqa: F821
    assert np.abs(keys).max() < 1e-12
    assert np.abs(values).max() < 1e-12


@wrong("check_attention_laws", says="it returns None, and should raise AssertionError here")
def what_is_below_0_is_small(grads, dz):
    keys = grads["k"].sum(axis=0) + grads["prefix_k"].sum(axis=1)
    values = grads["v"].sum(axis=0) + grads["prefix_v"].sum(axis=1) - dz.sum(axis=0)
    assert keys.max() < 1e-12
    assert values.max() < 1e-12


@wrong("check_attention_laws", says="it returns None, and should raise AssertionError here")
def a_nan_is_not_above_the_tolerance(grads, dz):
    keys = grads["k"].sum(axis=0) + grads["prefix_k"].sum(axis=1)
    values = grads["v"].sum(axis=0) + grads["prefix_v"].sum(axis=1) - dz.sum(axis=0)
    for off in (np.abs(keys).max(), np.abs(values).max()):
        assert not off > 1e-12


@lazy("check_attention_laws", says="it returns None, and should raise AssertionError here")
def one_sum_over_everything(grads, dz):
    assert abs(grads["k"].sum() + grads["prefix_k"].sum()) < 1e-9
    assert abs(grads["v"].sum() + grads["prefix_v"].sum() - dz.sum()) < 1e-9


@lazy("check_attention_laws", says="it raised AssertionError")
def it_always_fails(grads, dz):
    raise AssertionError


@wrong("future_leak", says="The last tokens themselves are counted")
def every_token_counts(ops, q, k, v, prefix_k, prefix_v, offsets):
    there = ops.attention(q, k, v, prefix_k, prefix_v, offsets)[0]
    one = np.zeros(k.shape)
    one[offsets[1:] - 1] = 1
    return np.abs(ops.attention(q, k + one, v + one, prefix_k, prefix_v, offsets)[0] - there).max()


@wrong("future_leak", says="It writes into the caller's keys and values")
def the_callers_arrays_are_moved(ops, q, k, v, prefix_k, prefix_v, offsets):
    before = ops.attention(q, k, v, prefix_k, prefix_v, offsets)[0]
    last = offsets[1:] - 1
    for a in (k, v):
        a[last] += 1
    after = ops.attention(q, k, v, prefix_k, prefix_v, offsets)[0]
    return np.abs(np.delete(after - before, last, axis=0)).max()


@lazy("future_leak", says="calls ops.numpy_ops.attention of the package")
def the_other_program_is_asked(ops, q, k, v, prefix_k, prefix_v, offsets):
    z = ops.attention(q, k, v, prefix_k, prefix_v, offsets)[0]
    return np.abs(z - numpy_ops.attention(q, k, v, prefix_k, prefix_v, offsets)[0]).max()


def smaller(case, least=1, last_slot=True):
    """Right as it stands; each answer below changes one thing."""
    found = [case[:b] + case[b + 1 :] for b in range(len(case)) if len(case) > 1]
    for tokens, slots, least_of in ((1, 0, least), (0, 1, 0 if last_slot else 1)):
        for b, (t, s) in enumerate(case):
            if (t if tokens else s) > least_of:
                found.append([*case[:b], (t - tokens, s - slots), *case[b + 1 :]])
    return found


@wrong("smaller", says="A sequence is left without tokens: keep one.")
def a_sequence_may_be_empty(case):
    return smaller(case, least=0)


@wrong("smaller", says="The last slot is never taken away")
def one_slot_is_kept(case):
    return smaller(case, last_slot=False)


@lazy("smaller", says="what it returns")
def sequences_are_left_out_and_no_more(case):
    return [case[:b] + case[b + 1 :] for b in range(len(case))]


def differs(ops, case):
    """As the lesson has it."""
    rng, NH, hs = np.random.default_rng(0), 2, 4
    offsets = np.cumsum([0, *(tokens for tokens, _ in case)])
    q, k, v = (rng.normal(size=(offsets[-1], NH, hs)) for _ in range(3))
    slots = [[rng.normal(size=(NH, n, hs)) for _, n in case] for _ in range(2)]
    right, _ = numpy_ops.attention(q, k, v, *slots, offsets)
    z, _ = ops.attention(q, k, v, *slots, offsets)
    return not relative_error(z, right) < 1e-10


@wrong("shrink", says="It stops after one move")
def one_move(ops, case):
    for each in smaller(case):
        if differs(ops, each):
            return each
    return case


@wrong("shrink", says="without asking whether the implementation still fails on it")
def always_on(ops, case):
    while smaller(case):
        case = smaller(case)[0]
    return case


@lazy("shrink", says="case has 2 parts, and should have 1 parts")
def the_smallest_of_all_cases(ops, case):
    small = ([(1, 0)], [(2, 0)], [(1, 0), (1, 0)], [(1, 0), (1, 1)], [(1, 1)])
    return next(each for each in small if differs(ops, each))


@wrong("check_attention_laws", says="it returns None, and should raise AssertionError here")
def the_tolerance_is_allcloses_own(grads, dz):
    assert np.allclose(grads["k"].sum(0) + grads["prefix_k"].sum(1), 0)
    assert np.allclose(grads["v"].sum(0) + grads["prefix_v"].sum(1) - dz.sum(0), 0)


@wrong("worst", says="The two arrays are exchanged")
def measured_by_what_was_found(found, right):
    return np.max([relative_error(right[name], a) for name, a in found.items()])


@wrong("shrink", says="It goes through the smaller cases of the first case alone")
def the_list_is_walked_to_its_end(ops, case):
    for each in smaller(case):
        if differs(ops, each):
            case = each
    return case
