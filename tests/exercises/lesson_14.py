import numpy as np

from minprefix import GPT2, Batch, Config, Prefix, loss_and_grad
from minprefix.ops import reference
from tests.exercises import lazy, wrong


@wrong("linear_work", says="The additions are missing")
def multiplications_only(N, n_in, n_out, itemsize):
    return n_out * n_in * N, (n_in * (N + n_out) + N * n_out) * itemsize


@wrong("linear_work", says="The weight is missing")
def the_weight_is_thought_to_be_there(N, n_in, n_out, itemsize):
    return 2 * n_out * n_in * N, N * (n_in + n_out) * itemsize


@lazy("linear_work", says="moved is off by")
def every_number_is_float32(N, n_in, n_out, itemsize):
    operations = 2 * n_out * n_in * N
    moved = 4 * (n_in * (N + n_out) + N * n_out)
    return operations, moved


@wrong("at_least", says="The times are added")
def one_after_the_other(work, speed):
    each = {kind: amount / speed[kind] for kind, amount in work.items()}
    return sum(each.values()), sorted(each, key=each.get)[-1]


@wrong("at_least", says="The ratio is upside down")
def speed_over_work(work, speed):
    each = {kind: speed[kind] / amount for kind, amount in work.items()}
    bound = sorted(each, key=each.get)[-1]
    return each[bound], bound


@lazy("at_least", says="raised KeyError")
def two_kinds_and_no_more(work, speed):
    arithmetic, memory = (work[kind] / speed[kind] for kind in ("operations", "bytes"))
    if "tanhs" in work and work["tanhs"] / speed["tanhs"] > max(arithmetic, memory):
        return work["tanhs"] / speed["tanhs"], "tanhs"
    return max((arithmetic, "operations"), (memory, "bytes"))


@wrong("layernorm_in_place", says="It writes into x, the caller's")
def the_input_is_overwritten(x, gain, bias, eps):
    x -= x.mean(axis=-1, keepdims=True)
    squares = x * x
    rstd = 1 / np.sqrt(squares.mean(axis=-1, keepdims=True) + eps)
    x *= rstd
    np.multiply(x, gain, out=squares)
    squares += bias
    return squares, x, rstd


@wrong("layernorm_in_place", says="xhat is overwritten by the output")
def the_cache_holds_the_output(x, gain, bias, eps):
    xhat = x - x.mean(axis=-1, keepdims=True)
    rstd = 1 / np.sqrt((xhat * xhat).mean(axis=-1, keepdims=True) + eps)
    xhat *= rstd
    out = xhat  # another name, not another array
    out *= gain
    out += bias
    return out, xhat, rstd


@lazy("layernorm_in_place", says="makes more than 2 arrays of the shape (N, C)")
def the_formula_as_one_writes_it(x, gain, bias, eps):
    centered = x - x.mean(axis=-1, keepdims=True)
    rstd = 1 / np.sqrt((centered**2).mean(axis=-1, keepdims=True) + eps)
    xhat = centered * rstd
    return xhat * gain + bias, xhat, rstd


@lazy("layernorm_in_place", says="makes more than 2 arrays of the shape (N, C)")
def the_reference_does_it(x, gain, bias, eps):
    out, cache = reference.layernorm(x, gain, bias, eps)
    return out, cache.xhat, cache.rstd


@wrong("step_operations", says="The top layer is counted for all N tokens")
def no_layer_is_spared(N, M, L, C, V):
    multiplications = 12 * C**2 * N * L + M * C * V + (12 * L - 3) * C**2 * N + M * C * V
    return 2 * multiplications


@wrong("step_operations", says="The head is counted for all N tokens")
def logits_for_every_token(N, M, L, C, V):
    rows = L * N - N + M
    there = 3 * C**2 * N * L + 9 * C**2 * rows + N * C * V
    back = 3 * C**2 * N * (L - 1) + 9 * C**2 * rows + N * C * V
    return 2 * there + 2 * back


@lazy("step_operations", says="of the package, and ours does not")
def a_step_is_run_and_counted(N, M, L, C, V):
    cfg = Config(L, 1, C, V, N + 1)
    total = 0

    class Counting:
        def __getattr__(self, name):
            def counted(*arguments):
                nonlocal total
                if name in ("linear", "linear_backward"):
                    total += 2 * len(arguments[0]) * arguments[1].size
                return getattr(reference, name)(*arguments)

            return counted

    batch = Batch.pack([[0] * (N + 1)], loss_from=N + 1 - M)
    loss_and_grad(GPT2.random(cfg), Prefix.normal(cfg, 1), batch, ops=Counting())
    return total


@wrong("at_least", says="max(times) compares the names")
def the_last_name_of_the_alphabet(work, speed):
    times = {kind: work[kind] / speed[kind] for kind in work}
    return times[max(times)], max(times)


@wrong("step_operations", says="c_attn of the top layer is counted for M tokens")
def the_top_layer_for_targets_alone(N, M, L, C, V):
    forward = 12 * C**2 * ((L - 1) * N + M) + M * C * V
    backward = forward - 3 * C**2 * N
    return 2 * (forward + backward)
