"""Lesson 1's exercises: the inputs on which an answer is graded, and the usual mistakes."""

import numpy as np

from minprefix.lessons.exercise import Cases, Rng, exercise
from minprefix.model import GPT2
from minprefix.prefix import Prefix


@exercise
def write_greedily(rng: Rng) -> Cases:
    """Stopped by `most`, stopped by the end token, without a prefix and with one."""
    model = GPT2.load("tiny")
    describe = Prefix.text(model, "describe\n")
    record = "name[Mill and Table], type[film], genre[comedy]\n"
    yield model, record, describe, 3
    yield model, record, describe, 30
    yield model, "chat\nname[Elena Turner], type[person]\n", None, 30
    yield model, record, None, 5


@exercise
def prefix_size(rng: Rng) -> Cases:
    yield 4, 5, 32, 10, 1_442_240
    yield 12, 12, 64, 5, 124_439_808
    yield 3, 2, 7, 1, 1000


@exercise
def description_loss(rng: Rng) -> Cases:
    """The last row predicts nothing, and an early start takes the whole sequence."""
    for T, V, start in ((6, 5, 3), (4, 9, 1), (7, 3, 6)):
        e = np.exp(rng.normal(0, 2, (T, V)))
        yield e / e.sum(axis=1, keepdims=True), rng.integers(0, V, T), start


@exercise
def step_downhill(rng: Rng) -> Cases:
    for shape, fall in (((2, 2, 3, 4, 5), 1e-3), ((1, 2, 1, 1, 3), 0.5)):
        kv, dkv = rng.normal(size=(2, *shape))
        yield kv, dkv, fall
