"""Lesson 8's exercises: the inputs on which an answer is graded, and the usual mistakes."""

import numpy as np

from minprefix.conformance.problems import training_problem
from minprefix.lessons.exercise import Cases, Rng, exercise
from minprefix.ops.contract import Array


@exercise(
    (
        "np.array(counts) / M",
        "np.ones(len(counts)) / len(counts)",
        "The means are averaged as if all micro-batches had equally many targets. A mean over few "
        "targets has to count less: its share is its count, divided by M.",
    ),
    (
        "np.array(counts) / M",
        "np.ones(len(counts)) / M",
        "The means are treated as sums. A mean has been divided by its count already: multiply it "
        "by its count, and divide by M.",
    ),
    (
        "np.array(counts) / M",
        "np.ones(len(counts))",
        "The means are added up. Each has to count as its part of all targets: count / M.",
    ),
    (
        "np.ones(len(counts)) / M",
        "np.array(counts) / M",
        "The sums are weighted by their counts, but a sum with many targets is large already. "
        "Divide every sum by M.",
    ),
    (
        "np.ones(len(counts)) / M",
        "np.ones(len(counts))",
        "The sums are added and not divided. The mean over all targets is asked for: divide by M.",
    ),
    (
        "np.ones(len(counts)) / M",
        "np.ones(len(counts)) / len(counts)",
        "The sums are divided by the number of micro-batches. Divide by M, the number of all "
        "targets.",
    ),
    (
        "M = sum(counts)",
        "M = counts[-1]",
        "M is the number of targets of the last micro-batch. It counts the targets of all.",
    ),
    (
        "M = sum(counts)",
        "M = len(counts)",
        "M is the number of micro-batches. It is the number of all targets: add up the counts.",
    ),
)
def put_together(rng: Rng) -> Cases:
    """Both reductions; two, three and one micro-batches of unlike counts."""
    for counts, sizes in (([2, 9], (2, 2, 1, 3, 2)), ([5, 1, 8], (1, 2, 2, 1, 3)), ([4], (1,) * 5)):
        for reduction in ("sum", "mean"):
            losses = [float(loss) for loss in rng.uniform(0.1, 3, len(counts))]
            yield losses, list(rng.normal(size=(len(counts), *sizes))), counts, reduction


@exercise(
    (
        "-(-n // size)",
        "n // size",
        "The division is rounded down, so the smaller batch at the end of each epoch is left out. "
        "Round up: -(-n // size).",
    ),
    (
        "-(-n // size)",
        "n // size + 1",
        "If n is a multiple of size, each epoch gets a batch too many, and that one is empty. "
        "Round up: -(-n // size).",
    ),
    (
        "-(-n // size)",
        "n / size",
        "The number of batches is a fraction here. The smaller batch at the end is a batch, too: "
        "round up, -(-n // size).",
    ),
    (
        "[seed, epoch]",
        "seed",
        "Every epoch has the same order, because the epoch is not part of the seed. Use "
        "default_rng([seed, epoch]).",
    ),
    (
        "[seed, epoch]",
        "[seed, step]",
        "Every step has an order of its own, so an epoch repeats some examples and leaves others "
        "out. One order holds for a whole epoch: default_rng([seed, epoch]).",
    ),
    (
        "[seed, epoch]",
        "[epoch, seed]",
        "Seed and epoch are swapped in the list. Use default_rng([seed, epoch]).",
    ),
    (
        "order[i * size : (i + 1) * size]",
        "order[i : i + size]",
        "The batches overlap: each begins one example after the last. Batch i begins at i * size.",
    ),
    (
        "order[i * size : (i + 1) * size]",
        "order[step * size : (step + 1) * size]",
        "From the second epoch on the batches are empty. Count the batches anew in each epoch: i, "
        "and not step.",
    ),
    (
        "order[i * size : (i + 1) * size]",
        "np.arange(n)[i * size : (i + 1) * size]",
        "The examples come in their own order. Take them from order, the epoch's permutation.",
    ),
)
def batch_of_step(rng: Rng) -> Cases:
    """All steps of three epochs: with a smaller last batch, without, and one batch an epoch."""
    for n, size in ((10, 4), (12, 3), (5, 8)):
        seed = int(rng.integers(1, 1000))
        for step in range(3 * -(-n // size)):
            yield step, n, size, seed


@exercise(
    (
        "-share * row_sum",
        "share * row_sum",
        "The sign of dscores is wrong. Its formula is pattern * (dpattern - row_sum), and the "
        "slot's dpattern is 0: a minus is left.",
    ),
    (
        "-share * row_sum",
        "0 * row_sum",
        "dscores is 0. The slot's dpattern is 0, but the row sum is still subtracted from it: a "
        "slot of zeros takes its share away from others.",
    ),
    (
        "-share * row_sum",
        "-row_sum",
        "The share is missing in dscores. The softmax's backward multiplies by the pattern: "
        "-share * row_sum.",
    ),
    (
        " / np.sqrt(q.shape[1])",
        "",
        "The scale is missing in dkey. The scores were divided by the root of hs, so their "
        "gradients are, too.",
    ),
    (
        "np.sqrt(q.shape[1])",
        "np.sqrt(q.shape[0])",
        "dkey is divided by the root of T, the number of tokens. Divide by the root of the head "
        "size, the second axis of q.",
    ),
    (
        "axis=1",
        "axis=0",
        "The row sum runs over the tokens. Each token i has a row sum of its own, dz_i . z_i: sum "
        "over the head size, axis=1.",
    ),
    (
        "(dz * z).sum(axis=1)",
        "(dz * q).sum(axis=1)",
        "The row sum uses q. The weighted mean of the values is z: dz_i . z_i.",
    ),
    (
        "(dz * z).sum(axis=1)",
        "np.zeros(len(share))",
        "The row sum is 0 here. Only this slot has values of zeros. The row sum runs over all "
        "slots and tokens, and their weighted mean is z: dz_i . z_i.",
    ),
    (
        "(dz * z).sum(axis=1)",
        "share * (dz * z).sum(axis=1)",
        "The row sum is multiplied by the share. The shares of all slots and tokens are in z "
        "already: dz_i . z_i. The slot's own share comes in with dscores.",
    ),
    (
        "share @ dz",
        "dz.sum(axis=0)",
        "The shares are missing in dvalue. The value reached z of token i with the share of i: "
        "share @ dz.",
    ),
)
def zero_slot_backward(rng: Rng) -> Cases:
    """Several tokens, one token, more numbers in a head than tokens."""
    for T, hs in ((5, 3), (1, 4), (2, 7)):
        yield rng.uniform(0.05, 0.5, T), *rng.normal(size=(3, T, hs))


_MOMENTS = """new_m = beta1 * m + (1 - beta1) * g  # (n,)
    new_v = beta2 * v + (1 - beta2) * g * g  # (n,)
"""
_HATS = """m_hat = new_m / (1 - beta1**t)  # (n,)
    v_hat = new_v / (1 - beta2**t)  # (n,)
"""
_LAST = """pull = decay * p  # (n,)
"""
_BETWEEN = "    direction = m_hat / (np.sqrt(v_hat) + eps)  # (n,)\n    "


@exercise(
    (
        "new_v / (1 - beta2**t)",
        "new_v",
        "The bias correction of v is missing. v starts at 0 and is too small for some thousand "
        "steps: divide it by 1 - beta2**t.",
    ),
    (
        "return new_p, new_m, new_v",
        "return new_p, m_hat, v_hat",
        "The corrected moments are returned. The next step needs the moments without their "
        "corrections: new_m and new_v.",
    ),
    (
        _HATS,
        "m_hat = new_m\n    v_hat = new_v\n",
        "The bias corrections are missing. The moments start at 0 and are too small at first: "
        "divide m by 1 - beta1**t, and v by 1 - beta2**t.",
    ),
    (
        _HATS,
        "m_hat = new_m / (1 - beta1 ** (t + 1))\n    v_hat = new_v / (1 - beta2 ** (t + 1))\n",
        "The bias corrections are one step ahead. t is counted from 1, and this step is t itself: "
        "1 - beta1**t.",
    ),
    (
        _HATS,
        "m_hat = new_m / (1 - beta1)\n    v_hat = new_v / (1 - beta2)\n",
        "The bias corrections are those of the first step. They fade with time: the exponent t is "
        "missing, 1 - beta1**t.",
    ),
    (
        "np.sqrt(v_hat) + eps",
        "np.sqrt(v_hat + eps)",
        "eps stands under the root. There 1e-8 weighs as much as 1e-4 outside of it, and slows "
        "down numbers with small gradients: add it after the root, np.sqrt(v_hat) + eps.",
    ),
    (
        "np.sqrt(v_hat) + eps",
        "v_hat + eps",
        "The root is missing. v is a mean of squares, and only its root has the unit of a "
        "gradient: divide by np.sqrt(v_hat) + eps.",
    ),
    (
        "np.sqrt(v_hat) + eps",
        "np.sqrt(v_hat)",
        "eps is missing, so a number without gradient is 0/0. Add eps to the root.",
    ),
    (
        f"{_MOMENTS}    {_HATS}{_BETWEEN}{_LAST}",
        f"g = g + decay * p\n    {_MOMENTS}    {_HATS}{_BETWEEN}pull = 0 * p\n",
        "The decay is added to the gradient, so it passes through both moments and is divided by "
        "the root of v. That is Adam with L2. In AdamW it stays outside: decay * p is added to the "
        "direction.",
    ),
    (
        "direction + pull",
        "direction",
        "The decay is forgotten. Besides the direction, every number is pulled towards 0: add "
        "decay * p before you multiply by lr.",
    ),
    (
        "p - lr * (direction + pull)",
        "p - lr * direction - pull",
        "The decay is not multiplied by the rate. In the formula lr stands before both: "
        "lr * (direction + decay * p).",
    ),
    (
        "pull = decay * p",
        "pull = decay * g",
        "The decay is that of the gradient. It pulls the parameter itself towards 0: decay * p.",
    ),
    (
        "p - lr * (direction + pull)",
        "p + lr * (direction + pull)",
        "The step goes uphill. The gradient points to where the loss grows: subtract.",
    ),
    (
        "p - lr * (direction + pull)",
        "p - lr * direction + pull",
        "The parentheses are missing, so the decay pushes away from 0. lr multiplies direction and "
        "pull, and both are subtracted: lr * (direction + pull).",
    ),
    (
        "(1 - beta2) * g * g",
        "(1 - beta2) * g",
        "v is a running mean of the gradients. It is one of their squares: g * g.",
    ),
    (
        _MOMENTS,
        _MOMENTS.replace("beta1", "beta3").replace("beta2", "beta1").replace("beta3", "beta2"),
        "The two betas are swapped: beta1 belongs to m, beta2 to v.",
    ),
    (
        _MOMENTS,
        "new_m = (1 - beta1) * m + beta1 * g\n    new_v = (1 - beta2) * v + beta2 * g * g\n",
        "beta and 1 - beta are swapped. A running mean keeps most of its old value: beta times the "
        "moment, 1 - beta times what is new.",
    ),
    (
        _MOMENTS,
        "new_m = beta1 * m + g\n    new_v = beta2 * v + g * g\n",
        "The new gradient has its whole weight, so the moments are sums and no means. Multiply it "
        "by 1 - beta.",
    ),
    (
        "new_m / (1 - beta1**t)",
        "m / (1 - beta1**t)",
        "m_hat is made of the old m. This step's gradient has to be in it: use the new m.",
    ),
    (
        "new_v / (1 - beta2**t)",
        "v / (1 - beta2**t)",
        "v_hat is made of the old v. This step's gradient has to be in it: use the new v.",
    ),
)
def adamw_step(rng: Rng) -> Cases:
    """A later step first: at step 1 a decay in the gradient looks like none. Then moments of 0."""
    for n, t, eps, decay in ((3, 5, 0.02, 0.3), (4, 1, 1e-8, 0.1), (6, 300, 1e-8, 0.05)):
        p, g, m = rng.normal(size=(3, n))
        v = rng.uniform(0.1, 2, n)
        if t == 1:
            m, v = np.zeros(n), np.zeros(n)
        yield p, g, m, v, t, 0.05, 0.8, 0.95, eps, decay


def _gradients(rng: Rng, shapes: dict[str, tuple[int, ...]], n: int) -> list[dict[str, Array]]:
    return [{name: rng.normal(size=shape) for name, shape in shapes.items()} for _ in range(n)]


@exercise(
    (
        "{name: a.copy() for name, a in params.items()}",
        "params",
        "Every entry of the list shows the last step: it holds the arrays that you go on changing, "
        "and no copies. Store copies of the arrays, in a new dictionary for each step.",
    ),
    (
        "v = {name: np.zeros_like(a) for name, a in start.items()}",
        "v = m",
        "m and v share their arrays, so one overwrites the other. Make zeros for each of the two.",
    ),
    (
        "m[name], v[name], t, lr",
        "0 * g, 0 * g, t, lr",
        "The moments start anew at each step, so nothing is remembered. Make m and v once, before "
        "the loop over the steps, and store the new ones that adamw_step returns.",
    ),
    (
        "m[name], v[name], t, lr",
        "m[name], v[name], 1, lr",
        "Each step is taken for the first one: t stays 1. Count the steps, from 1.",
    ),
    (
        "m[name], v[name], t, lr",
        "m[name], v[name], t + 1, lr",
        "The steps are counted from 2. The first one has t = 1.",
    ),
    (
        "m[name], v[name], t, lr",
        "m[name], v[name], t - 1, lr",
        "The steps are counted from 0, so 1 - beta**t is 0 at the first one. The first step has "
        "t = 1.",
    ),
    (
        "m[name], v[name], t, lr",
        "m[name], v[name], (t - 1) * len(grads) + list(grads).index(name) + 1, lr",
        "t grows with each array, and it should grow with each step. Count outside of the loop "
        "over the names.",
    ),
    (
        "m[name], v[name], t, lr,",
        "m[name], v[name], t, rates[0],",
        "Every step has the first rate. Take the rate of the step.",
    ),
    (
        "params[name], g, m[name]",
        "start[name], g, m[name]",
        "Each step begins at the start. Begin where the step before has ended.",
    ),
)
def adamw_run(rng: Rng) -> Cases:
    """Two arrays of unlike shapes over several steps; one array."""
    several: tuple[tuple[dict[str, tuple[int, ...]], int], ...]
    several = (({"a": (2, 3), "b": (4,)}, 3), ({"kv": (1, 2, 1, 2, 3)}, 4))
    for shapes, n in several:
        (start,) = _gradients(rng, shapes, 1)
        rates = [float(lr) for lr in rng.uniform(0.05, 0.2, n)]
        yield start, _gradients(rng, shapes, n), rates, 0.8, 0.95, 1e-8, 0.1


@exercise(
    (
        "(s + 1) / warmup",
        "s / warmup",
        "The warmup begins with a rate of 0, so the first batch is wasted. Steps are counted from "
        "0: write (s + 1) / warmup.",
    ),
    (
        "(s - warmup) / (steps - warmup)",
        "(s + 1 - warmup) / (steps - warmup)",
        "The fall begins one step early, and the last step has a rate of 0. The first step after "
        "the warmup still has the whole rate: (s - warmup) / (steps - warmup).",
    ),
    (
        "(steps - warmup)",
        "max(1, steps - 1 - warmup)",
        "The last step has a rate of 0. It would come at step `steps`, which does not take place: "
        "divide by steps - warmup.",
    ),
    (
        "(s - warmup) / (steps - warmup)",
        "s / steps",
        "The fall is counted from the first step. It begins after the warmup: (s - warmup) of "
        "(steps - warmup) steps are done.",
    ),
    (
        "(s - warmup) / (steps - warmup)",
        "(s - warmup) / steps",
        "The fall does not end at 0: it has only steps - warmup steps. Divide by that.",
    ),
    (
        "s < warmup",
        "s <= warmup",
        "The warmup lasts one step too long, and its last rate is larger than lr. It has the steps "
        "0 to warmup - 1: write <.",
    ),
    (
        "lr * (1 - (s - warmup) / (steps - warmup))",
        "lr",
        "The rate does not fall after the warmup. The formula has a second case.",
    ),
)
def rate_at(rng: Rng) -> Cases:
    """Every step of three schedules; one without warmup."""
    for steps, warmup in ((7, 3), (5, 0), (6, 5)):
        lr = float(rng.uniform(0.01, 1))
        for s in range(steps):
            yield s, steps, lr, warmup


_CLIP = """norm = np.sqrt(sum((g * g).sum() for g in grads.values()))  # ()
    scale = limit / max(limit, norm)  # ()
    return {name: scale * g for name, g in grads.items()}"""


@exercise(
    (
        _CLIP,
        "def of(prefix):\n"
        "        own = [g for name, g in grads.items() if name.split('.')[0] == prefix]\n"
        "        return np.sqrt(sum((g * g).sum() for g in own))\n"
        "    norm = of('0')\n"
        "    return {k: limit / max(limit, of(k.split('.')[0])) * g for k, g in grads.items()}",
        "Each prefix is shortened by its own norm. Then one prefix is shortened and its neighbour "
        "is not, and the whole step gets another direction. Take one norm over all arrays of all "
        "prefixes.",
    ),
    (
        _CLIP,
        "norm = 0.0\n"
        "    return {k: limit / max(limit, np.sqrt((g * g).sum())) * g for k, g in grads.items()}",
        "Each array is shortened by its own norm. Take one norm over all arrays of all prefixes, "
        "and multiply all of them by one scale.",
    ),
    (
        "np.sqrt(sum((g * g).sum() for g in grads.values()))",
        "sum(np.sqrt((g * g).sum()) for g in grads.values())",
        "The norms of the arrays are added up. Add up the squares of all numbers, and take one "
        "root at the end.",
    ),
    (
        "np.sqrt(sum((g * g).sum() for g in grads.values()))",
        "sum((g * g).sum() for g in grads.values())",
        "The root is missing: this is the square of the norm.",
    ),
    (
        "np.sqrt(sum((g * g).sum() for g in grads.values()))",
        "np.sqrt((list(grads.values())[-1] ** 2).sum())",
        "This is the norm of the last array alone. One norm is asked for, over all arrays: add up "
        "all squares first, and then multiply every array by the same scale.",
    ),
    (
        "limit / max(limit, norm)",
        "min(1.0, limit / (norm + 1e-6))",
        "1e-6 is added to the norm, which makes the scale too small. limit / max(limit, norm) "
        "never divides by 0, without such a number.",
    ),
    (
        "np.sqrt(sum((g * g).sum() for g in grads.values()))",
        "max(np.abs(g).max() for g in grads.values())",
        "This is the largest entry. The norm is the root of the sum of all squares.",
    ),
    (
        "limit / max(limit, norm)",
        "limit / max(1e-300, norm)",
        "Small gradients are lengthened to the limit. Below the limit they stay as they are: the "
        "scale is at most 1.",
    ),
    (
        "return {name: scale * g for name, g in grads.items()}",
        "return {name: np.clip(g, -limit, limit) for name, g in grads.items()}",
        "Each entry is cut off at the limit, which changes the direction. Multiply all entries by "
        "one scale.",
    ),
)
def clip_together(rng: Rng) -> Cases:
    """Two prefixes, one of them through a network; one array; a norm below the limit; zeros. The
    last prefix's gradient is the largest."""
    shapes = {
        "0.kv": (1, 2, 1, 2, 3),
        "1.embedding": (2, 3),
        "1.weight_1": (3, 4),
        "1.bias_1": (4,),
    }
    for limit in (0.5, 3.0, 1000.0):
        (grads,) = _gradients(rng, shapes, 1)
        for i, name in enumerate(grads):
            grads[name] *= 1.0 + i
        yield grads, limit
    yield {"0.kv": rng.normal(size=(1, 2, 2, 1, 2))}, 0.1
    yield {"0.kv": np.zeros((1, 2, 1, 1, 2))}, 1.0


@exercise(
    (
        "grads = clip_together(grads, problem.clip)",
        "grads = {n: g for i in range(len(prefixes)) for n, g in clip_together({k: a for k, a in "
        "grads.items() if k.startswith(f'{i}.')}, problem.clip).items()}",
        "Each prefix is shortened by its own norm. Take one norm over all arrays of all prefixes: "
        "call clip_together once, with all of them.",
    ),
    (
        "grads = clip_together(grads, problem.clip)",
        "grads = {n: clip_together({n: g}, problem.clip)[n] for n, g in grads.items()}",
        "Each array is shortened by its own norm. Call clip_together once, with all of them.",
    ),
    (
        "grads = clip_together(grads, problem.clip)",
        "grads = dict(grads)",
        "The limit is not applied. Call clip_together with all gradients, before the step.",
    ),
    (
        'counts, "sum")',
        'counts, "mean")',
        "The sums of the micro-batches are treated as means. put_together has to know how "
        "loss_and_grad was called.",
    ),
    (
        'reduction="sum"',
        'reduction="mean"',
        "loss_and_grad gives means unless you ask for sums, and put_together was told that these "
        'are sums. Call it with reduction="sum".',
    ),
    (
        "Batch.pack(b.sequences, b.loss_from, b.prefix_of)",
        "Batch.pack(b.sequences, b.loss_from)",
        "Every sequence sees the first prefix, because Batch.pack was not told otherwise. Give it "
        "b.prefix_of.",
    ),
    (
        "v[name], s + 1, lr_s",
        "v[name], s, lr_s",
        "adamw_step counts the steps from 1, and s begins at 0, where 1 - beta**t is 0. Give it "
        "s + 1.",
    ),
    (
        "len(part.targets)",
        "len(part.tokens)",
        "The tokens are counted, and the targets should be: only they are in the loss.",
    ),
    (
        "rate_at(s, ",
        "rate_at(s + 1, ",
        "The rate is that of the next step. Steps are counted from 0.",
    ),
    (
        "params[name][...] = p",
        "params[name] = p",
        "The prefix does not move: the name in the dictionary was given a new array, and the "
        "prefix still has the old one. Write into its array, params[name][...] = p.",
    ),
    (
        "v = {name: np.zeros_like(a) for name, a in params.items()}",
        "v = m",
        "m and v share their arrays, so one overwrites the other. Make zeros for each of the two.",
    ),
    (
        "v[name], s + 1, lr_s",
        "v[name], 1, lr_s",
        "Each step is taken for the first one. adamw_step counts the steps from 1: give it s + 1.",
    ),
    (
        "*settings\n",
        "problem.beta1, problem.beta2, problem.eps, 0.0\n",
        "The decay is forgotten. Give problem.weight_decay to adamw_step.",
    ),
)
def run_training(rng: Rng) -> Cases:
    """One step of a flat prefix and one through a network, in two micro-batches; then three."""
    for n_steps in (1, 3):
        yield (
            training_problem(
                ("flat", "mlp"),
                n_steps,
                micro_batches=2,
                lr=0.05,
                warmup=n_steps // 2,
                weight_decay=0.1,
                clip=0.1,
            ),
        )
