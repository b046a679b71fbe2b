import numpy as np

from tests.exercises import wrong


@wrong("gelu_backward", says="the zoo's gelu-second-term-dropped")
def the_product_rule_is_forgotten(dout, cache):
    return 0.5 * dout * (1 + cache.tanh)


@wrong("gelu_backward", says="the zoo's gelu-factor-3-lost")
def the_3_of_the_cube_is_lost(dout, cache):
    x, tanh = cache.x, cache.tanh
    du = (2 / np.pi) ** 0.5 * (1 + 0.044715 * x**2)
    return dout * (0.5 * (1 + tanh) + 0.5 * x * (1 - tanh**2) * du)


@wrong("gelu_backward", says="the zoo's relu-derivative")
def the_slope_is_that_of_relu(dout, cache):
    return dout * (cache.x > 0)


@wrong("linear_backward", says="the zoo's gradient-through-the-weight-itself")
def the_weight_is_not_transposed_where_it_fits(dout, weight):
    return dout @ (weight if len(weight) == weight.shape[1] else weight.T)


@wrong("linear_backward", says="1/N: is a mean taken where a sum belongs?")
def dx_is_averaged_over_the_rows(dout, weight):
    return dout @ weight.T / len(dout)


@wrong("linear_backward_params", says="the zoo's dweight-transposed")
def dweight_is_laid_out_as_in_torch(dout, x):
    return dout.T @ x, dout.sum(axis=0)


@wrong("linear_backward_params", says="the zoo's dbias-averaged-over-rows")
def dbias_is_averaged_over_the_rows(dout, x):
    return x.T @ dout, dout.mean(axis=0)


def _layernorm_backward(dout, cache, gain=True, mean=True, variance=True):
    """Right as it stands; each answer below leaves one thing out."""
    dxhat = dout * cache.gain if gain else dout
    dx = dxhat
    if mean:
        dx = dx - dxhat.mean(axis=1, keepdims=True)
    if variance:
        dx = dx - cache.xhat * (dxhat * cache.xhat).mean(axis=1, keepdims=True)
    return cache.rstd * dx


@wrong("layernorm_backward", says="the zoo's mean-term-dropped")
def the_way_through_the_mean_is_forgotten(dout, cache):
    return _layernorm_backward(dout, cache, mean=False)


@wrong("layernorm_backward", says="the zoo's variance-term-dropped")
def the_way_through_the_variance_is_forgotten(dout, cache):
    return _layernorm_backward(dout, cache, variance=False)


@wrong("layernorm_backward", says="the zoo's gain-forgotten-in-backward")
def the_gain_is_forgotten(dout, cache):
    return _layernorm_backward(dout, cache, gain=False)
