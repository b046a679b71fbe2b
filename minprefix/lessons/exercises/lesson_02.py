"""Lesson 2's exercises: the inputs on which an answer is graded, and the usual mistakes."""

from typing import Any

import numpy as np

from minprefix.lessons.exercise import Cases, Lazy, Rng, exercise
from minprefix.lessons.exercises.watched import by_formula
from minprefix.ops import reference
from minprefix.ops.contract import Array

# N, C, F: more rows than an answer may call a function of the lesson, a square weight, one row
SIZES = ((13, 3, 4), (4, 5, 5), (1, 6, 2))
EPS = 1e-2  # so large that a layernorm which leaves it out, or puts it elsewhere, differs


class Loss:
    """sum(a x^3) + sin(sum(b x)): each entry's derivative depends on all of them."""

    def __init__(self, rng: Rng, shape: tuple[int, ...]) -> None:
        self.a, self.b = rng.normal(size=(2, *shape))

    def __call__(self, x: Array) -> Any:
        return (self.a * x**3).sum() + np.sin((self.b * x).sum())


class RealLoss(Loss):
    def __call__(self, x: Array) -> Any:
        if np.iscomplexobj(x):
            raise Lazy(
                "gives the loss complex numbers: that is the next exercise. Here compare the loss "
                "at x + step and at x - step."
            )
        return super().__call__(x)


# ---- the two tools --------------------------------------------------------------------------


@exercise
def finite_differences(rng: Rng) -> Cases:
    """Steps so large that a one-sided difference is another number; several shapes."""
    for shape, eps in (((4, 3), 0.1), ((5,), 0.3), ((2, 1, 2), 0.05)):
        yield RealLoss(rng, shape), rng.normal(size=shape), eps


@exercise
def complex_step(rng: Rng) -> Cases:
    """A tiny step, and large ones for which the result is no longer the derivative."""
    for shape, eps in (((4, 3), 1e-30), ((5,), 0.3), ((2, 1, 2), 0.05)):
        yield Loss(rng, shape), rng.normal(size=shape), eps


# ---- GELU -----------------------------------------------------------------------------------


@exercise
def gelu(rng: Rng) -> Cases:
    """Moderate numbers, and some so large that tanh is 1."""
    for N, F, size in ((5, 3, 2.0), (2, 4, 20.0), (1, 1, 0.1)):
        yield (size * rng.normal(size=(N, F)),)


@exercise
def gelu_backward(rng: Rng) -> Cases:
    """Enough numbers that trying values out is seen."""
    for N, F, size in ((5, 4, 1.5), (2, 3, 4.0), (1, 1, 0.1)):
        _, cache = reference.gelu(size * rng.normal(size=(N, F)))
        yield rng.normal(size=(N, F)), cache._replace(x=by_formula(cache.x))


# ---- the linear layer -----------------------------------------------------------------------


@exercise
def linear(rng: Rng) -> Cases:
    """The square weight first, where a transposed one fits, too; without a bias."""
    for N, C, F in ((4, 5, 5), *SIZES):
        yield rng.normal(size=(N, C)), rng.normal(size=(C, F)), rng.normal(size=F)
    yield rng.normal(size=(3, 2)), rng.normal(size=(2, 4)), None


@exercise
def linear_backward(rng: Rng) -> Cases:
    """The square weight first, where one that is not transposed fits, too."""
    for N, C, F in ((4, 5, 5), *SIZES):
        yield rng.normal(size=(N, F)), rng.normal(size=(C, F))


@exercise
def linear_backward_params(rng: Rng) -> Cases:
    """All sizes equal first, where everything fits everywhere."""
    for N, C, F in ((5, 5, 5), *SIZES):
        yield rng.normal(size=(N, F)), rng.normal(size=(N, C))


# ---- layernorm ------------------------------------------------------------------------------


def _layernorm(rng: Rng, N: int, C: int, scale: float = 1.0) -> tuple[Any, ...]:
    """x far from the mean 0, gain, bias and eps."""
    x = 3 + scale * rng.normal(size=(N, C))
    return x, 1 + rng.normal(size=C), rng.normal(size=C), EPS


@exercise
def layernorm(rng: Rng) -> Cases:
    """A small variance is among them, where eps decides."""
    for N, C, scale in ((4, 6, 1.0), (5, 5, 0.1), (1, 3, 2.0)):
        yield _layernorm(rng, N, C, scale)


@exercise
def layernorm_jacobian(rng: Rng) -> Cases:
    """One row each."""
    for C in (6, 12, 2):
        _, (xhat, rstd, _) = reference.layernorm(*_layernorm(rng, 1, C))
        yield by_formula(xhat[0]), float(rstd[0, 0])


@exercise
def layernorm_backward(rng: Rng) -> Cases:
    """More rows than Jacobians may be made; as many rows as columns; one row."""
    for N, C in ((13, 4), (5, 5), (1, 6)):
        out, cache = reference.layernorm(*_layernorm(rng, N, C))
        yield rng.normal(size=out.shape), cache._replace(xhat=by_formula(cache.xhat, N * C))


@exercise
def layernorm_backward_params(rng: Rng) -> Cases:
    """As many rows as columns first, where a sum over the wrong axis fits, too."""
    for N, C in ((5, 5), (13, 4), (1, 6)):
        out, cache = reference.layernorm(*_layernorm(rng, N, C))
        yield rng.normal(size=out.shape), cache


# ---- a chain --------------------------------------------------------------------------------


@exercise
def chain_backward(rng: Rng) -> Cases:
    """Square weights first, which fit in any order; wide and narrow; one token."""
    for N, C, F in ((5, 4, 4), (4, 3, 8), (1, 6, 2)):
        x, gain, bias, eps = _layernorm(rng, N, C)
        W_up, W_down = rng.normal(size=(C, F)), rng.normal(size=(F, C))
        a, ln = reference.layernorm(x, gain, bias, eps)
        _, act = reference.gelu(reference.linear(a, W_up, rng.normal(size=F)))
        yield rng.normal(size=(N, C)), (ln, act), W_up, W_down
