"""Lesson 8's exercises: the inputs on which an answer is graded, and the usual mistakes."""

import numpy as np

from minprefix.conformance.problems import training_problem
from minprefix.lessons.exercise import Cases, Rng, exercise
from minprefix.ops.contract import Array


@exercise
def put_together(rng: Rng) -> Cases:
    """Both reductions; two, three and one micro-batches of unlike counts."""
    for counts, sizes in (([2, 9], (2, 2, 1, 3, 2)), ([5, 1, 8], (1, 2, 2, 1, 3)), ([4], (1,) * 5)):
        for reduction in ("sum", "mean"):
            losses = [float(loss) for loss in rng.uniform(0.1, 3, len(counts))]
            yield losses, list(rng.normal(size=(len(counts), *sizes))), counts, reduction


@exercise
def batch_of_step(rng: Rng) -> Cases:
    """All steps of three epochs: with a smaller last batch, without, and one batch an epoch."""
    for n, size in ((10, 4), (12, 3), (5, 8)):
        seed = int(rng.integers(1, 1000))
        for step in range(3 * -(-n // size)):
            yield step, n, size, seed


@exercise
def zero_slot_backward(rng: Rng) -> Cases:
    """Several tokens, one token, more numbers in a head than tokens."""
    for T, hs in ((5, 3), (1, 4), (2, 7)):
        yield rng.uniform(0.05, 0.5, T), *rng.normal(size=(3, T, hs))


@exercise
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


@exercise
def adamw_run(rng: Rng) -> Cases:
    """Two arrays of unlike shapes over several steps; one array."""
    several: tuple[tuple[dict[str, tuple[int, ...]], int], ...]
    several = (({"a": (2, 3), "b": (4,)}, 3), ({"kv": (1, 2, 1, 2, 3)}, 4))
    for shapes, n in several:
        (start,) = _gradients(rng, shapes, 1)
        rates = [float(lr) for lr in rng.uniform(0.05, 0.2, n)]
        yield start, _gradients(rng, shapes, n), rates, 0.8, 0.95, 1e-8, 0.1


@exercise
def rate_at(rng: Rng) -> Cases:
    """Every step of three schedules; one without warmup."""
    for steps, warmup in ((7, 3), (5, 0), (6, 5)):
        lr = float(rng.uniform(0.01, 1))
        for s in range(steps):
            yield s, steps, lr, warmup


@exercise
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


@exercise
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
