"""Lesson 14's exercises: the inputs on which an answer is graded, and the usual mistakes."""

from minprefix.lessons.exercise import Cases, Lazy, Rng, exercise
from minprefix.lessons.exercises.watched import watched
from minprefix.ops.contract import Array


@exercise
def linear_work(rng: Rng) -> Cases:
    yield 7, 3, 5, 4
    yield 1, 512, 2048, 4
    N, n_in, n_out = (int(n) for n in rng.integers(2, 99, 3))
    yield N, n_in, n_out, 8


@exercise
def at_least(rng: Rng) -> Cases:
    """Each kind is the slowest once; kinds that the work lacks."""
    speed = {"operations": 2e11, "bytes": 1e10, "tanhs": 3e8, "new bytes": 2e9}
    yield {"operations": 8e9, "bytes": 2e8}, speed
    yield {"operations": 4e9, "bytes": 2e9, "tanhs": 1e7, "new bytes": 1e7}, speed
    yield {"operations": 4e7, "bytes": 3e7, "tanhs": 2e6}, speed
    yield {"bytes": float(rng.integers(1, 9))}, speed
    yield {"operations": 5.0, "new bytes": 7.0}, {"operations": 1.0, "new bytes": 0.5, "bytes": 1.0}


def _arrays(array: Array, most: int) -> Array:
    """The array; so many new ones of its shape may be made of it."""
    left = most

    def rule(name: str, result: Array, new: bool) -> None:
        nonlocal left
        left -= new and result.shape == array.shape
        if left < 0:
            raise Lazy(
                f"makes more than {most} arrays of the shape (N, C), here {array.shape}: "
                "write into one that is there, by out=..., *= or +="
            )

    return watched(array, rule)


@exercise
def layernorm_in_place(rng: Rng) -> Cases:
    for N, C in ((4, 6), (1, 5)):
        x = rng.normal(1, 2, size=(N, C))
        yield _arrays(x, 2), rng.normal(size=C), rng.normal(size=C), 1e-2


@exercise
def step_operations(rng: Rng) -> Cases:
    yield 20, 9, 3, 4, 50
    yield 12, 5, 1, 6, 30
    N, L, C, V = (int(n) for n in rng.integers(3, 60, 4))
    yield N, N - 2, L, C, V
