"""Lesson 9's exercises: the inputs on which an answer is graded, and the usual mistakes."""

from minprefix.batch import Batch
from minprefix.conformance.problems import training_problem
from minprefix.lessons.exercise import Cases, Rng, exercise
from minprefix.model import GPT2
from minprefix.ops.contract import Array
from minprefix.optim import AdamW

#: L, NH, P, hs, hidden: no two are equal, one slot, one head
SIZES = ((3, 2, 4, 5, 6), (2, 3, 1, 4, 7), (4, 1, 3, 2, 5))


def _network(rng: Rng, L: int, NH: int, P: int, hs: int, hidden: int) -> dict[str, Array]:
    C, out = NH * hs, 2 * L * NH * hs
    shapes: dict[str, tuple[int, ...]] = {
        "embedding": (P, C),
        "weight_1": (C, hidden),
        "bias_1": (hidden,),
        "weight_2": (hidden, out),
        "bias_2": (out,),
    }
    return {name: rng.normal(0, 0.5, shape) for name, shape in shapes.items()}


@exercise
def unflatten_rows(rng: Rng) -> Cases:
    """Sizes of which no two are equal; one slot; one head."""
    for L, NH, P, hs, _ in SIZES:
        yield rng.normal(size=(P, 2 * L * NH * hs)), NH, hs


@exercise
def flatten_kv(rng: Rng) -> Cases:
    """Sizes of which no two are equal; one slot; one head."""
    for L, NH, P, hs, _ in SIZES:
        yield (rng.normal(size=(L, 2, NH, P, hs)),)


@exercise
def mlp_kv(rng: Rng) -> Cases:
    """Sizes of which no two are equal; one slot; one head."""
    for L, NH, P, hs, hidden in SIZES:
        yield _network(rng, L, NH, P, hs, hidden), NH


@exercise
def count_numbers(rng: Rng) -> Cases:
    """Sizes of which no two are equal; P is not 2L."""
    yield from ((7, 30, 13, 4), (3, 5, 11, 2), (5, 12, 8, 3))


@exercise
def mlp_kv_backward(rng: Rng) -> Cases:
    """Sizes of which no two are equal; one slot; one head. h belongs to no forward, so that it has
    to be used as it is given."""
    for L, NH, P, hs, hidden in SIZES:
        parameters = _network(rng, L, NH, P, hs, hidden)
        yield rng.normal(size=(L, 2, NH, P, hs)), parameters, rng.uniform(-0.9, 0.9, (P, hidden))


@exercise
def train_network(rng: Rng) -> Cases:
    """Three steps and one, of a small model in float64."""
    for n_steps in (3, 1):
        problem = training_problem(("mlp",), n_steps, seed=int(rng.integers(100)), lr=0.1)
        model = GPT2(problem.config, dict(problem.weights))
        parameters = {name: a.copy() for name, a in problem.parameters[0].items()}
        batches = [Batch.pack(part.sequences, part.loss_from) for (part,) in problem.steps]
        yield model, parameters, batches, [0.1 / (s + 1) for s in range(n_steps)], AdamW()


@exercise
def carried_along(rng: Rng) -> Cases:
    """Several slots, of which another one has the gradient each time."""
    for P, hidden, j in ((4, 6, 2), (3, 5, 0), (2, 3, 1)):
        yield rng.uniform(-0.9, 0.9, (P, hidden)), j


@exercise
def folded_rows(rng: Rng) -> Cases:
    """Both kinds of prefix, in several sizes."""
    for L, NH, P, hs, hidden in SIZES:
        yield (_network(rng, L, NH, P, hs, hidden),)
        yield ({"kv": rng.normal(size=(L, 2, NH, P, hs))},)
