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


@exercise(
    (
        "(loss(x + step) - loss(x - step)) / (2 * eps)",
        "(loss(x + step) - loss(x - step)) / eps",
        "The two points are 2 * eps apart, so divide by 2 * eps.",
    ),
    (
        "(loss(x + step) - loss(x - step)) / (2 * eps)",
        "(loss(x + step) - loss(x)) / eps",
        "x moves up only. Then the error shrinks with eps and not with its square: compare the "
        "loss at x + step with that at x - step.",
    ),
    (
        "(loss(x + step) - loss(x - step)) / (2 * eps)",
        "(loss(x + step) - loss(x)) / (2 * eps)",
        "x moves up only, so the two points are one eps apart: compare the loss at x + step with "
        "that at x - step.",
    ),
    (
        "loss(x + step) - loss(x - step)",
        "loss(x - step) - loss(x + step)",
        "The two losses stand in the other order, which turns the sign. Subtract the loss at "
        "x - step from that at x + step.",
    ),
    (
        "step[index] = eps",
        "step += eps",
        "All entries of x move at once. Only the one at index may move: step is 0 elsewhere.",
    ),
    (
        "(loss(x + step) - loss(x - step)) / (2 * eps)",
        "loss(x + step) - loss(x - step)",
        "The difference of the losses is not divided by the distance of the points, 2 * eps.",
    ),
    (
        "/ (2 * eps)",
        "/ 2 * eps",
        "Python goes from left to right here: it divides by 2 and then multiplies by eps. Put the "
        "divisor in brackets, / (2 * eps).",
    ),
    (
        "loss(x + step) - loss(x - step)",
        "loss(x) - loss(x)",
        "The two losses are those of the same point. Perhaps a step was added to x itself: "
        "`step = x` makes no copy. Begin with np.zeros(x.shape).",
    ),
)
def finite_differences(rng: Rng) -> Cases:
    """Steps so large that a one-sided difference is another number; several shapes."""
    for shape, eps in (((4, 3), 0.1), ((5,), 0.3), ((2, 1, 2), 0.05)):
        yield RealLoss(rng, shape), rng.normal(size=shape), eps


@exercise(
    (
        ".imag / eps",
        ".imag",
        "The division by eps is missing: the imaginary part is eps times the derivative.",
    ),
    (
        ".imag / eps",
        ".real / eps",
        "The real part is the loss itself. The derivative is in the imaginary part: take .imag.",
    ),
    (
        "1j * eps",
        "eps",
        "Nothing is imaginary afterwards. Either the step is real (it should be 1j * eps), or the "
        "copy cannot hold complex numbers (x.astype(complex) can, and x.copy() cannot).",
    ),
    (
        "moved[index] += 1j * eps",
        "moved[index] = 1j * eps",
        "The entry itself is lost: its real part is 0 afterwards. Add the step to it, with +=.",
    ),
    (
        "moved[index] += 1j * eps",
        "moved += 1j * eps",
        "All entries of x move at once. Only the one at index may move.",
    ),
    (
        "    for index in np.ndindex(x.shape):\n        moved = x.astype(complex)  # like x\n",
        "    moved = x.astype(complex)\n    for index in np.ndindex(x.shape):\n",
        "The steps of earlier entries are still there, so each derivative holds the sum of those "
        "before it. Make a new copy of x for each entry.",
    ),
)
def complex_step(rng: Rng) -> Cases:
    """A tiny step, and large ones for which the result is no longer the derivative."""
    for shape, eps in (((4, 3), 1e-30), ((5,), 0.3), ((2, 1, 2), 0.05)):
        yield Loss(rng, shape), rng.normal(size=shape), eps


# ---- GELU -----------------------------------------------------------------------------------


@exercise(
    ("x**3", "x**2", "x is squared, and should be cubed: write x**3."),
    (
        "(2 / np.pi) ** 0.5",
        "2**0.5 / np.pi",
        "The root is taken of 2 alone. It is the root of the quotient: (2 / np.pi) ** 0.5.",
    ),
    (
        "(2 / np.pi) ** 0.5",
        "2 / np.pi**0.5",
        "The root is taken of pi alone, because ** comes before /. Put the quotient in brackets: "
        "(2 / np.pi) ** 0.5.",
    ),
    ("np.tanh(u)", "np.tanh(x)", "tanh is taken of x, and should be taken of u."),
    ("(2 / np.pi) ** 0.5 * ", "", "The factor (2 / np.pi) ** 0.5 is missing."),
    (
        "(2 / np.pi) ** 0.5 * (x + 0.044715 * x**3)",
        "(2 / np.pi) ** 0.5 * x + 0.044715 * x**3",
        "The root multiplies x alone. It multiplies the whole bracket.",
    ),
    ("0.044715", "0.44715", "A 0 of 0.044715 is missing."),
    ("0.5 * x * (1 + tanh)", "x * (1 + tanh)", "The factor 0.5 is missing."),
    (
        "0.5 * x * (1 + tanh)",
        "0.5 * (1 + tanh)",
        "The factor x is missing: this is the share of x that passes, and not what passes.",
    ),
)
def gelu(rng: Rng) -> Cases:
    """Moderate numbers, and some so large that tanh is 1."""
    for N, F, size in ((5, 3, 2.0), (2, 4, 20.0), (1, 1, 0.1)):
        yield (size * rng.normal(size=(N, F)),)


@exercise(
    (
        "3 * 0.044715 * x**2",
        "0.044715 * x**2",
        "The derivative of x**3 is 3 * x**2: the factor 3 is missing.",
    ),
    (
        "3 * 0.044715 * x**2",
        "3 * 0.044715 * x**3",
        "The derivative of x**3 is 3 * x**2: the exponent goes down by one.",
    ),
    (
        "(2 / np.pi) ** 0.5 * ",
        "",
        "The constant factor (2 / np.pi) ** 0.5 stays in the derivative of u.",
    ),
    (
        "0.5 * (1 + tanh) + 0.5 * x * (1 - tanh**2) * du",
        "0.5 * (1 + tanh)",
        "out is a product, and tanh depends on x, too: the product rule has a second term, "
        "0.5 * x * (1 - tanh**2) * du.",
    ),
    (
        "0.5 * (1 + tanh) + 0.5 * x * (1 - tanh**2) * du",
        "0.5 * x * (1 - tanh**2) * du",
        "out is a product, and its factor x depends on x, too: the product rule has a first term, "
        "0.5 * (1 + tanh).",
    ),
    (
        "0.5 * x * (1 - tanh**2)",
        "0.5 * (1 - tanh**2)",
        "The second term of the product rule keeps the first factor as it is: it begins with "
        "0.5 * x.",
    ),
    (
        "(1 - tanh**2)",
        "(1 - tanh)",
        "The derivative of tanh is 1 - tanh**2: the square is missing.",
    ),
    ("(1 - tanh**2) * du", "(1 - tanh**2)", "The chain rule goes on through u: multiply by du."),
    ("dout * slope", "slope", "The upstream gradient is missing: dx is dout times the slope."),
    (
        "x, tanh = cache",
        "x, tanh = cache[0], np.tanh(cache[0])",
        "tanh is taken of x, and should be taken of u. The cache holds it.",
    ),
)
def gelu_backward(rng: Rng) -> Cases:
    """Enough numbers that trying values out is seen."""
    for N, F, size in ((5, 4, 1.5), (2, 3, 4.0), (1, 1, 0.1)):
        _, cache = reference.gelu(size * rng.normal(size=(N, F)))
        yield rng.normal(size=(N, F)), cache._replace(x=by_formula(cache.x))


# ---- the linear layer -----------------------------------------------------------------------


@exercise(
    ("out + bias", "out - bias", "The bias is subtracted. Add it."),
    ("out + bias", "out", "The bias is not added."),
    (
        "x @ weight",
        "x @ weight.T",
        "The weight is transposed. x is (N, C) and weight is (C, F), so x @ weight fits as it is; "
        "a square weight fits both ways, but only one is right.",
    ),
)
def linear(rng: Rng) -> Cases:
    """The square weight first, where a transposed one fits, too; without a bias."""
    for N, C, F in ((4, 5, 5), *SIZES):
        yield rng.normal(size=(N, C)), rng.normal(size=(C, F)), rng.normal(size=F)
    yield rng.normal(size=(3, 2)), rng.normal(size=(2, 4)), None


@exercise(
    (
        "weight.T",
        "weight",
        "The weight is not transposed. The sum runs over f, the second letter of weight: take "
        "weight.T. A square weight fits both ways, but only one is right.",
    ),
    (
        "dout @ weight.T",
        "dout @ weight.T / len(dout)",
        "A mean over the rows is taken. dx has a number for each row: nothing is divided by N.",
    ),
    (
        "dout @ weight.T",
        "dout @ weight.T / dout.shape[1]",
        "A mean over f is taken. The influences add up: take the sum.",
    ),
)
def linear_backward(rng: Rng) -> Cases:
    """The square weight first, where one that is not transposed fits, too."""
    for N, C, F in ((4, 5, 5), *SIZES):
        yield rng.normal(size=(N, F)), rng.normal(size=(C, F))


@exercise(
    (
        "x.T @ dout",
        "dout.T @ x",
        "dweight is transposed: it is (F, C). The weight is (C, F), and so is its gradient: "
        "x.T @ dout.",
    ),
    (
        "x.T @ dout",
        "x @ dout.T",
        "The sum runs over the columns. It should run over the rows, the first letter of both: "
        "x.T @ dout.",
    ),
    (
        "x.T @ dout",
        "x.T @ dout / len(x)",
        "dweight is a mean over the rows. Each row adds its influence: take the sum.",
    ),
    (
        "dout.sum(axis=0)",
        "dout.mean(axis=0)",
        "dbias is a mean over the rows. Each row adds its influence: take the sum.",
    ),
    (
        "dout.sum(axis=0)",
        "dout.sum(axis=1)",
        "dbias is a sum along the rows. The bias has a number for each column, so sum over the "
        "rows: axis=0.",
    ),
    (
        "dout.sum(axis=0)",
        "dout.sum()",
        "dbias is one number. The bias has a number for each column, so sum over the rows only: "
        "axis=0.",
    ),
)
def linear_backward_params(rng: Rng) -> Cases:
    """All sizes equal first, where everything fits everywhere."""
    for N, C, F in ((5, 5, 5), *SIZES):
        yield rng.normal(size=(N, F)), rng.normal(size=(N, C))


# ---- layernorm ------------------------------------------------------------------------------


def _layernorm(rng: Rng, N: int, C: int, scale: float = 1.0) -> tuple[Any, ...]:
    """x far from the mean 0, gain, bias and eps."""
    x = 3 + scale * rng.normal(size=(N, C))
    return x, 1 + rng.normal(size=C), rng.normal(size=C), EPS


@exercise(
    (
        "x - x.mean(axis=1, keepdims=True)",
        "x - x.mean(axis=0, keepdims=True)",
        "The mean runs over the tokens (batch norm). Layernorm works on each row alone: take the "
        "mean over its columns, axis=1.",
    ),
    (
        "x - x.mean(axis=1, keepdims=True)",
        "x - x.mean()",
        "The mean is one number for all rows. Each row has its own: axis=1 and keepdims=True.",
    ),
    (
        "(centred * centred).mean(axis=1, keepdims=True)",
        "centred.var(axis=1, ddof=1, keepdims=True)",
        "The variance is divided by C - 1 (ddof=1). Layernorm divides by C: take the mean of the "
        "squares.",
    ),
    (
        "(centred * centred).mean(axis=1, keepdims=True)",
        "(centred * centred).mean(axis=0, keepdims=True)",
        "The variance runs over the tokens (batch norm). Layernorm works on each row alone: take "
        "the mean over its columns, axis=1.",
    ),
    (
        "(centred * centred).mean(axis=1, keepdims=True)",
        "(centred * centred).sum(axis=1, keepdims=True)",
        "The variance is a sum. It is the mean of the squares, so divide by C.",
    ),
    (
        "(centred * centred).mean(axis=1, keepdims=True)",
        "(centred * centred).mean(axis=1)",
        "keepdims=True is missing: the shape has to be (N, 1), so that each row gets its own "
        "number.",
    ),
    (
        "(centred * centred)",
        "(x * x)",
        "The squares are those of x. The variance is the mean of the squares of centred.",
    ),
    (
        "(centred * centred).mean(axis=1, keepdims=True)",
        "centred.std(axis=1, keepdims=True)",
        "This is the standard deviation, the root of the variance. The root comes in the next "
        "line.",
    ),
    (
        "1 / np.sqrt(var + eps)",
        "1 / (np.sqrt(var) + eps)",
        "eps stands outside of the root. Add it to the variance, under the root.",
    ),
    (
        "1 / np.sqrt(var + eps)",
        "1 / np.sqrt(var)",
        "eps is missing. Add it to the variance, under the root.",
    ),
    (
        "1 / np.sqrt(var + eps)",
        "1 / (var + eps)",
        "The root is missing: rstd is 1 over the root of var + eps.",
    ),
    (
        "1 / np.sqrt(var + eps)",
        "np.sqrt(var + eps)",
        "rstd is 1 over the root, and not the root itself.",
    ),
    ("xhat * gain + bias", "xhat * gain", "The bias is not added."),
    ("xhat * gain + bias", "xhat + bias", "The gain is missing: multiply xhat by it."),
    (
        "xhat * gain + bias",
        "(xhat + bias) * gain",
        "The bias is added before the gain. Multiply by the gain first, then add the bias.",
    ),
)
def layernorm(rng: Rng) -> Cases:
    """A small variance is among them, where eps decides."""
    for N, C, scale in ((4, 6, 1.0), (5, 5, 0.1), (1, 3, 2.0)):
        yield _layernorm(rng, N, C, scale)


@exercise(
    (
        "np.eye(C) - 1 / C - np.outer(xhat, xhat) / C",
        "np.eye(C) - np.outer(xhat, xhat) / C",
        "The way through the mean is missing: subtract 1 / C from every entry.",
    ),
    (
        "np.eye(C) - 1 / C - np.outer(xhat, xhat) / C",
        "np.eye(C) - 1 / C",
        "The way through the variance is missing: rstd depends on x, too. Subtract "
        "xhat_i * xhat_j / C.",
    ),
    (
        "np.outer(xhat, xhat) / C",
        "np.outer(xhat, xhat)",
        "In the way through the variance the factor 1 / C is missing: the variance is a mean.",
    ),
    (
        "np.eye(C) - 1 / C - np.outer",
        "np.eye(C) - 1 / C + np.outer",
        "The way through the variance has the wrong sign: where the variance grows, rstd shrinks.",
    ),
    (
        "np.eye(C) - 1 / C - np.outer",
        "1 - 1 / C - np.outer",
        "[i=j] is 1 only where i = j. Take np.eye(C), which is 0 off the diagonal.",
    ),
    ("rstd * (np", "(np", "The factor rstd is missing: it multiplies all three terms."),
    (
        "np.outer(xhat, xhat) / C",
        "rstd * np.outer(xhat, xhat) / C",
        "In the way through the variance there is one rstd too many: centred * rstd**2 is "
        "xhat * rstd, and that rstd stands in front of the bracket.",
    ),
    (
        "np.outer(xhat, xhat) / C",
        "np.diag(xhat * xhat) / C",
        "xhat_i * xhat_j is wanted for every pair of i and j, and not for i = j alone: take "
        "np.outer.",
    ),
    (
        "np.outer(xhat, xhat)",
        "xhat * xhat",
        "xhat * xhat has C numbers, the squares. xhat_i * xhat_j is wanted for every pair of i "
        "and j, which is a matrix: take np.outer.",
    ),
    (
        "np.outer(xhat, xhat)",
        "(xhat @ xhat)",
        "xhat @ xhat is one number, the sum of the squares. xhat_i * xhat_j is wanted for every "
        "pair of i and j: take np.outer.",
    ),
)
def layernorm_jacobian(rng: Rng) -> Cases:
    """One row each."""
    for C in (6, 12, 2):
        _, (xhat, rstd, _) = reference.layernorm(*_layernorm(rng, 1, C))
        yield by_formula(xhat[0]), float(rstd[0, 0])


@exercise(
    (
        "dxhat - mean_dxhat - xhat * mean_dxhat_xhat",
        "dxhat - xhat * mean_dxhat_xhat",
        "The way through the mean is missing: subtract the row's mean of dxhat.",
    ),
    (
        "dxhat - mean_dxhat - xhat * mean_dxhat_xhat",
        "dxhat - mean_dxhat",
        "The way through the variance is missing: subtract xhat times the row's mean of "
        "dxhat * xhat.",
    ),
    (
        "dxhat - mean_dxhat - xhat * mean_dxhat_xhat",
        "dxhat",
        "Only the direct way is there. x reaches the output through the mean and through the "
        "variance, too.",
    ),
    (
        "mean_dxhat = dxhat.mean",
        "mean_dxhat = dout.mean",
        "The mean is that of dout. The gain comes first: take the means of dxhat.",
    ),
    (
        "mean_dxhat = dxhat.mean(axis=1, keepdims=True)  # (N, 1)\n    mean_dxhat_xhat = (dxhat",
        "mean_dxhat = dout.mean(axis=1, keepdims=True)\n    mean_dxhat_xhat = (dout",
        "The means are those of dout. The gain comes first: take the means of dxhat.",
    ),
    (
        "dout * gain",
        "dout",
        "The gain is missing: out is xhat * gain + bias, so dxhat is dout * gain.",
    ),
    (
        "axis=1",
        "axis=0",
        "The means run over the tokens. Each row has a mean and a variance of its own: take the "
        "means over its columns, axis=1.",
    ),
    (
        "(dxhat * xhat).mean(axis=1, keepdims=True)",
        "(dxhat * xhat).sum(axis=1, keepdims=True)",
        "The sum of dxhat * xhat over the row is not divided by C: it is a mean.",
    ),
    (
        "dxhat.mean(axis=1, keepdims=True)",
        "dxhat.sum(axis=1, keepdims=True)",
        "The sum of dxhat over the row is not divided by C: it is a mean.",
    ),
    (
        "rstd * (dxhat - mean_dxhat - xhat * mean_dxhat_xhat)",
        "dxhat - mean_dxhat - xhat * mean_dxhat_xhat",
        "The factor rstd is missing: it multiplies all three terms.",
    ),
    ("rstd * (dxhat", "(dxhat", "The factor rstd is missing: it multiplies all three terms."),
    (
        "xhat * mean_dxhat_xhat",
        "mean_dxhat_xhat",
        "In the way through the variance a factor is missing: multiply the mean of dxhat * xhat "
        "by xhat.",
    ),
    (
        ").mean(axis=1, keepdims=True)  # (N, 1)\n    dx",
        ").sum(axis=1, keepdims=True) / (xhat.shape[1] - 1)  # (N, 1)\n    dx",
        "The mean of dxhat * xhat is divided by C - 1. The variance is over C, so divide by C.",
    ),
)
def layernorm_backward(rng: Rng) -> Cases:
    """More rows than Jacobians may be made; as many rows as columns; one row."""
    for N, C in ((13, 4), (5, 5), (1, 6)):
        out, cache = reference.layernorm(*_layernorm(rng, N, C))
        yield rng.normal(size=out.shape), cache._replace(xhat=by_formula(cache.xhat, N * C))


@exercise(
    (
        "(dout * xhat).sum(axis=0)",
        "dout.sum(axis=0)",
        "The factor xhat is missing in dgain: out is xhat * gain + bias.",
    ),
    (
        "(dout * xhat).sum(axis=0)",
        "xhat.sum(axis=0)",
        "The upstream gradient is missing in dgain: multiply xhat by dout.",
    ),
    (
        "(dout * xhat).sum(axis=0)",
        "(dout * xhat).mean(axis=0)",
        "dgain is a mean over the rows. Each row adds its influence: take the sum.",
    ),
    (
        "(dout * xhat).sum(axis=0)",
        "(dout * xhat).sum(axis=1)",
        "dgain is a sum along the rows. The gain has a number for each column, so sum over the "
        "rows: axis=0.",
    ),
    (
        "dout.sum(axis=0)",
        "dout.mean(axis=0)",
        "dbias is a mean over the rows. Each row adds its influence: take the sum.",
    ),
    (
        "dout.sum(axis=0)",
        "dout.sum(axis=1)",
        "dbias is a sum along the rows. The bias has a number for each column, so sum over the "
        "rows: axis=0.",
    ),
)
def layernorm_backward_params(rng: Rng) -> Cases:
    """As many rows as columns first, where a sum over the wrong axis fits, too."""
    for N, C in ((5, 5), (13, 4), (1, 6)):
        out, cache = reference.layernorm(*_layernorm(rng, N, C))
        yield rng.normal(size=out.shape), cache


# ---- a chain --------------------------------------------------------------------------------


@exercise(
    (
        "dout + layernorm_backward(da, ln)",
        "layernorm_backward(da, ln)",
        "x reaches the output in a second way: it is added at the end. Add dout.",
    ),
    (
        "gelu_backward(dg, act)",
        "dg",
        "The GELU is left out on the way back: dh is gelu_backward(dg, act).",
    ),
    (
        "linear_backward(dout, W_down)",
        "linear_backward(dout, W_up.T)",
        "The wrong weight is used for dg. The last linear layer of the forward comes first on the "
        "way back: W_down.",
    ),
    (
        "dout + layernorm_backward(da, ln)",
        "dout + da",
        "The layernorm is left out on the way back: pass da to layernorm_backward.",
    ),
    (
        "dout + layernorm_backward(da, ln)",
        "layernorm_backward(dout + da, ln)",
        "dout is sent through the layernorm. x is added after it, so that way goes around: add "
        "dout to the result.",
    ),
    (
        "dg = linear_backward(dout, W_down)  # (N, F)\n    dh = gelu_backward(dg, act)  # (N, F)\n"
        "    da = linear_backward(dh, W_up)",
        "dg = linear_backward(dout, W_up)\n    dh = gelu_backward(dg, act)\n"
        "    da = linear_backward(dh, W_down)",
        "The two weights are in the forward's order. The last linear layer comes first on the way "
        "back: W_down.",
    ),
    (
        "dout + layernorm_backward(da, ln)",
        "da + layernorm_backward(da, ln)",
        "da is added. The sum at the end of the forward hands its upstream gradient on as it is: "
        "add dout.",
    ),
    (
        "dout + layernorm_backward(da, ln)",
        "dout * layernorm_backward(da, ln)",
        "The two ways are multiplied. Influences add up: dout + layernorm_backward(da, ln).",
    ),
)
def chain_backward(rng: Rng) -> Cases:
    """Square weights first, which fit in any order; wide and narrow; one token."""
    for N, C, F in ((5, 4, 4), (4, 3, 8), (1, 6, 2)):
        x, gain, bias, eps = _layernorm(rng, N, C)
        W_up, W_down = rng.normal(size=(C, F)), rng.normal(size=(F, C))
        a, ln = reference.layernorm(x, gain, bias, eps)
        _, act = reference.gelu(reference.linear(a, W_up, rng.normal(size=F)))
        yield rng.normal(size=(N, C)), (ln, act), W_up, W_down
