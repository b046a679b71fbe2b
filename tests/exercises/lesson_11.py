import numpy as np

from minprefix import GPT2, Batch, Prefix, loss, loss_and_grad
from tests.exercises import wrong


def _of_each_sequence(problem):
    """Its number of targets, its loss, its prefix and the gradient of that one, from a run of its
    own."""
    model = GPT2(problem.config, dict(problem.weights))
    offsets = problem.position_offsets
    prefixes = [
        Prefix(kv, position_offset=o) for kv, o in zip(problem.prefixes, offsets, strict=True)
    ]
    each = zip(problem.sequences, problem.loss_from, problem.prefix_of, strict=True)
    for ids, start, i in each:
        if start < len(ids):
            alone = Batch.pack([ids], loss_from=start)
            if prefixes:
                value, dkv = loss_and_grad(model, prefixes[i], alone, reduction="sum")
            else:
                value, dkv = loss(model, alone, reduction="sum"), None
            yield len(ids) - start, value, i, dkv


def _run(problem, add):
    """`add(dkvs, i, dkv)` changes dkvs in place; right where it is dkvs[i] += dkv."""
    dkvs = [np.zeros_like(kv) for kv in problem.prefixes]
    total, M = 0.0, 0
    for count, value, i, dkv in _of_each_sequence(problem):
        total, M = total + value, M + count
        if dkv is not None:
            add(dkvs, i, dkv)
    n = M if problem.reduction == "mean" else 1
    found = {"loss": np.array(total / n)}
    for i, dkv in enumerate(dkvs):
        found |= {f"prefix.{i}.dk": dkv[:, 0] / n, f"prefix.{i}.dv": dkv[:, 1] / n}
    return found


@wrong("run_model", says="the zoo's shared-prefix-last-sequence-wins")
def each_sequence_overwrites_the_one_before(problem):
    def add(dkvs, i, dkv):
        dkvs[i][...] = dkv

    return _run(problem, add)


@wrong("run_model", says="the zoo's gradient-of-all-rows-for-every-prefix")
def every_prefix_of_that_shape_gets_every_gradient(problem):
    def add(dkvs, i, dkv):
        for each in dkvs:
            if each.shape == dkv.shape:
                each += dkv

    return _run(problem, add)


@wrong("run_model", says="the zoo's shared-prefix-averaged")
def a_mean_over_the_sequences_of_a_prefix(problem):
    def add(dkvs, i, dkv):
        dkvs[i] += dkv / list(problem.prefix_of).count(i)

    return _run(problem, add)
