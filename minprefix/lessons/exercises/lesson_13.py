"""Lesson 13's exercises: the inputs on which an answer is graded, and the usual mistakes."""

import numpy as np

from minprefix.lessons.breaking import planted
from minprefix.lessons.exercise import Cases, Rng, exercise
from minprefix.ops import numpy_ops, reference
from minprefix.ops.contract import Array


def _inputs(rng: Rng) -> dict[str, dict[str, Array]]:
    """For each operation its inputs by name, as the lesson has them: two sequences of 3 and 2
    tokens, which share their slots."""
    N, C, NH, P, hs = 5, 4, 2, 3, 4
    tokens = dict.fromkeys(("q", "k", "v"), (N, NH, hs))
    shapes: dict[str, dict[str, tuple[int, ...]]] = {
        "layernorm": {"x": (N, C), "gain": (C,), "bias": (C,)},
        "gelu": {"x": (N, C)},
        "attention": {**tokens, "prefix_k": (NH, P, hs), "prefix_v": (NH, P, hs)},
    }
    return {op: {n: rng.normal(size=s) for n, s in of.items()} for op, of in shapes.items()}


@exercise
def slope_along(rng: Rng) -> Cases:
    """The steps are so large that rounding does not count, and a one-sided difference is seen."""
    for ops, eps in ((reference, 1e-2), (numpy_ops, 1e-3)):
        for op, a in _inputs(rng).items():
            direction = {name: rng.normal(size=values.shape) for name, values in a.items()}
            dout = rng.normal(size=next(iter(a.values())).shape)
            yield ops, op, a, direction, dout, eps


@exercise
def by_complex_step(rng: Rng) -> Cases:
    for op, a in _inputs(rng).items():
        yield reference, op, a, rng.normal(size=next(iter(a.values())).shape), 1e-30


@exercise
def worst(rng: Rng) -> Cases:
    """The second array is wrong, and small beside the first; then one is twice too
    large; then a NaN in the last."""
    right = {"x": 1e3 * rng.normal(size=(4, 3)), "gain": rng.normal(size=3), "y": np.ones(2)}
    found = {name: values.copy() for name, values in right.items()}
    found["gain"][1] += 0.01
    found["x"][0] += 1e-4
    yield found, right
    yield {"x": right["x"], "gain": 2 * right["gain"], "y": right["y"]}, right
    yield {"x": right["x"], "y": np.array([1.0, np.nan]), "gain": 1.1 * right["gain"]}, right


def _gradients(rng: Rng, NH: int, P: int) -> tuple[dict[str, Array], Array]:
    """Of attention over two sequences that share their slots, and dz."""
    shapes = ((5, NH, 4), (5, NH, 4), (5, NH, 4), (NH, P, 4), (NH, P, 4))
    q, k, v, prefix_k, prefix_v = (rng.normal(size=shape) for shape in shapes)
    slots = [prefix_k] * 2, [prefix_v] * 2
    _, cache = reference.attention(q, k, v, *slots, np.array([0, 3, 5]))
    dz = rng.normal(size=q.shape)
    _, dk, dv, dprefix_k, dprefix_v = reference.attention_backward(dz, cache)
    prefix = {"prefix_k": np.sum(dprefix_k, axis=0), "prefix_v": np.sum(dprefix_v, axis=0)}
    return {"k": dk, "v": dv} | prefix, dz


@exercise
def check_attention_laws(rng: Rng) -> Cases:
    """Sound gradients; then one slightly wrong number, below 0; two that cancel between the heads,
    or between the numbers of a head; a NaN; a wrong sign, which only one of the laws sees."""
    for NH, P in ((2, 2), (3, 1)):
        grads, dz = _gradients(rng, NH, P)
        yield grads, dz
    for name in ("prefix_k", "v"):
        for places in (((0, 0, 0),), ((0, 0, 0), (1, 0, 0)), ((0, 0, 0), (0, 0, 1))):
            grads, dz = _gradients(rng, 2, 3)
            for place, wrong in zip(places, (-1e-9, 1e-9), strict=False):
                grads[name][place] += wrong
            yield grads, dz
    for wrong in (np.nan, -1.0):
        grads, dz = _gradients(rng, 2, 3)
        grads["v"] *= wrong
        grads["prefix_v"] *= wrong
        yield grads, dz


@exercise
def future_leak(rng: Rng) -> Cases:
    """Sound implementations, and masks that show too much."""
    bugs = ("no-mask", "mask-shows-the-next-token", "one-sequence-of-the-whole-batch")
    for ops in (reference, numpy_ops, *(planted(bug).reference for bug in bugs)):
        offsets, NH, hs = np.array([0, 3, 5, 9]), 2, 3
        q, k, v = (rng.normal(size=(9, NH, hs)) for _ in range(3))
        prefix_k, prefix_v = ([rng.normal(size=(NH, 2, hs)) for _ in range(3)] for _ in range(2))
        yield ops, q, k, v, prefix_k, prefix_v, offsets


@exercise
def smaller(rng: Rng) -> Cases:
    for n in (3, 1):
        tokens, slots = rng.permutation([1, 2, 4])[:n], rng.permutation([0, 1, 3])[:n]
        yield ([(int(t), int(s)) for t, s in zip(tokens, slots, strict=True)],)
    for pair in ((1, 0), (2, 1)):
        yield ([pair],)


@exercise
def shrink(rng: Rng) -> Cases:
    big = [(3, 2), (2, 0), (2, 1)]
    for bug, case in (
        ("no-mask", big),
        ("prefix-masked-out", big),
        ("scores-unscaled", big),
        ("scores-unscaled", [(3, 0), (2, 0)]),
        ("one-sequence-of-the-whole-batch", big),
    ):
        yield planted(bug).reference, case
