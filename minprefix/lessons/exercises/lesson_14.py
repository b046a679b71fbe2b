"""Lesson 14's exercises: the inputs on which an answer is graded, and the usual mistakes."""

from minprefix.lessons.exercise import Cases, Lazy, Rng, exercise
from minprefix.lessons.exercises.watched import watched
from minprefix.ops.contract import Array


@exercise(
    (
        "2 * N * n_in * n_out",
        "N * n_in * n_out",
        "The additions are missing: each multiplication is followed by one.",
    ),
    (
        "2 * N * n_in * n_out",
        "N * n_out * (2 * n_in - 1)",
        "The first product of each sum is counted without an addition: count one for it, too, as "
        "it is added to 0. That is how the peak was counted.",
    ),
    (
        "N * n_in + n_in * n_out + N * n_out",
        "N * n_in + N * n_out",
        "The weight is missing: it is read, too, (in, out) numbers.",
    ),
    (
        "N * n_in + n_in * n_out + N * n_out",
        "N * n_in + n_in * n_out",
        "What is written is missing: the result, (N, out) numbers.",
    ),
    ("itemsize * (", "(", "These are numbers, not bytes: each has itemsize bytes."),
)
def linear_work(rng: Rng) -> Cases:
    yield 7, 3, 5, 4
    yield 1, 512, 2048, 4
    N, n_in, n_out = (int(n) for n in rng.integers(2, 99, 3))
    yield N, n_in, n_out, 8


@exercise(
    (
        "work[kind] / speed[kind]",
        "speed[kind] / work[kind]",
        "The ratio is upside down: seconds are the work over the work of one second.",
    ),
    (
        "times[bound]",
        "sum(times.values())",
        "The times are added: all kinds go on at the same time, so the longest one decides.",
    ),
    (
        "max(times, key=times.get)",
        "max(times)",
        "max(times) compares the names, by the alphabet: max(times, key=times.get) compares the "
        "seconds.",
    ),
    (
        "max(times, key=times.get)",
        "max(work, key=work.get)",
        "This is the kind with the largest number, not with the longest time: compare the seconds.",
    ),
    ("max(times", "min(times", "This is the kind that is done first: the slowest one decides."),
)
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


@exercise(
    (" + eps", "", "eps is missing under the root."),
    (
        "axis=-1",
        "axis=0",
        "The mean is taken over the rows: each row has a mean of its own, over its C numbers "
        "(axis=-1).",
    ),
    (
        "out = xhat * xhat",
        "xhat *= xhat\n    out = xhat.copy()",
        "xhat is overwritten by its squares, but it is needed again: write the squares into the "
        "second array.",
    ),
    (
        "rstd = 1 / np.sqrt(out.mean(axis=-1, keepdims=True) + eps)  # (N, 1)\n    xhat *= rstd",
        "rstd = np.sqrt(out.mean(axis=-1, keepdims=True) + eps)\n    xhat /= rstd",
        "This is the standard deviation: rstd is 1 divided by it.",
    ),
    (
        "xhat = x - x.mean(axis=-1, keepdims=True)",
        "xhat = x\n    xhat -= x.mean(axis=-1, keepdims=True)",
        "It writes into x, the caller's: the difference has to be a new array.",
    ),
    (
        "np.multiply(xhat, gain, out=out)\n    out += bias",
        "xhat *= gain\n    xhat += bias\n    out = xhat",
        "xhat is overwritten by the output: the backward needs both, so they are two arrays.",
    ),
    (
        "np.multiply(xhat, gain, out=out)",
        "out *= gain",
        "The squares are still in out: multiply xhat by the gain, and write the result there.",
    ),
)
def layernorm_in_place(rng: Rng) -> Cases:
    for N, C in ((4, 6), (1, 5)):
        x = rng.normal(1, 2, size=(N, C))
        yield _arrays(x, 2), rng.normal(size=C), rng.normal(size=C), 1e-2


@exercise(
    (
        "(L - 1) * N + M",
        "L * N",
        "The top layer is counted for all N tokens: after its attention only M tokens go on.",
    ),
    (
        "3 * C * C * (L - 1) * N",
        "3 * C * C * L * N",
        "The lowest layer's c_attn has no backward: nothing below it needs a gradient.",
    ),
    ("M * C * V", "N * C * V", "The head is counted for all N tokens: only M have a target."),
    (
        "3 * C * C * L * N + after",
        "3 * C * C * ((L - 1) * N + M) + after",
        "c_attn of the top layer is counted for M tokens: all N tokens need keys and values there.",
    ),
    (
        "3 * C * C * (L - 1) * N + after",
        "3 * C * C * (L - 1) * N + after - 9 * C * C * N",
        "The lowest layer has no backward at all: only its c_attn has none. The gradient passes "
        "its MLP and attn.c_proj on the way to its keys and values.",
    ),
    (
        "after + M * C * V  # ()\n    return",
        "after  # ()\n    return",
        "The head's backward is missing: it multiplies (M, C) by (C, V) again.",
    ),
    ("return 2 * (", "return (", "The additions are missing: each multiplication has one."),
    ("9 * C * C", "12 * C * C", "c_attn is counted twice: without it a layer has 9 C^2."),
)
def step_operations(rng: Rng) -> Cases:
    yield 20, 9, 3, 4, 50
    yield 12, 5, 1, 6, 30
    N, L, C, V = (int(n) for n in rng.integers(3, 60, 4))
    yield N, N - 2, L, C, V
