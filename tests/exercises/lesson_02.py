import numpy as np

from minprefix.gradcheck import slopes
from minprefix.ops import reference
from tests.exercises import lazy, wrong

# ---- the two tools


@wrong("finite_differences", says="divide by 2 * eps")
def the_two_is_forgotten(loss, x, eps=1e-5):
    grad = np.empty_like(x)
    for index in np.ndindex(x.shape):
        up, down = x.copy(), x.copy()
        up[index] += eps
        down[index] -= eps
        grad[index] = (loss(up) - loss(down)) / eps
    return grad


@wrong("finite_differences", says="x moves up only. Then the error shrinks with eps")
def one_side_is_taken(loss, x, eps=1e-5):
    grad, here = np.empty_like(x), loss(x)
    for index in np.ndindex(x.shape):
        up = x.copy()
        up[index] += eps
        grad[index] = (loss(up) - here) / eps
    return grad


@wrong("finite_differences", says="All entries of x move at once")
def everything_moves(loss, x, eps=1e-5):
    grad = np.empty_like(x)
    for index in np.ndindex(x.shape):
        grad[index] = (loss(x + eps) - loss(x - eps)) / (2 * eps)
    return grad


@lazy("finite_differences", says="gives the loss complex numbers")
def the_complex_step_is_taken(loss, x, eps=1e-5):
    grad = np.empty_like(x)
    for index in np.ndindex(x.shape):
        moved = x.astype(complex)
        moved[index] += 1e-30j
        grad[index] = loss(moved).imag / 1e-30
    return grad


@lazy("finite_differences", says="calls gradcheck.slopes.differences of the package")
def the_packages_differences_are_taken(loss, x, eps=1e-5):
    grad = np.empty_like(x)
    for index in np.ndindex(x.shape):
        direction = np.zeros_like(x)
        direction[index] = 1
        grad[index] = slopes.differences(loss, x, direction).value
    return grad


@wrong("complex_step", says="The division by eps is missing")
def the_imaginary_part_is_taken_as_it_is(loss, x, eps=1e-30):
    grad = np.empty_like(x)
    for index in np.ndindex(x.shape):
        z = x + 0j
        z[index] += complex(0, eps)
        grad[index] = np.imag(loss(z))
    return grad


@wrong("complex_step", says="The steps of earlier entries are still there")
def one_copy_serves_all(loss, x, eps=1e-30):
    grad, z = np.empty_like(x), x + 0j
    for index in np.ndindex(x.shape):
        z[index] += 1j * eps
        grad[index] = loss(z).imag / eps
    return grad


@wrong("complex_step", says="The real part is the loss itself")
def the_real_part_is_taken(loss, x, eps=1e-30):
    grad = np.empty_like(x)
    for index in np.ndindex(x.shape):
        z = x + 0j
        z[index] += 1j * eps
        grad[index] = loss(z).real / eps
    return grad


@lazy("complex_step", says="calls gradcheck.slopes.complex_step of the package")
def the_packages_complex_step_is_taken(loss, x, eps=1e-30):
    grad = np.empty_like(x)
    for index in np.ndindex(x.shape):
        direction = np.zeros_like(x)
        direction[index] = 1
        grad[index] = slopes.complex_step(loss, x, direction)
    return grad


@lazy("complex_step", says="grad")
def finite_differences_are_taken_again(loss, x, eps=1e-30):
    grad = np.empty_like(x)
    for index in np.ndindex(x.shape):
        step = np.zeros_like(x)
        step[index] = 1e-5
        grad[index] = (loss(x + step) - loss(x - step)) / 2e-5
    return grad


# ---- GELU


@wrong("gelu", says="x is squared, and should be cubed")
def the_cube_is_a_square(x):
    u = np.power(2 / np.pi, 0.5) * (x + 0.044715 * x * x)
    tanh = np.tanh(u)
    return x / 2 * (1 + tanh), (x, tanh)


@wrong("gelu", says="The root multiplies x alone")
def the_bracket_is_lost(x):
    u = (2 / np.pi) ** 0.5 * x + 0.044715 * x**3
    tanh = np.tanh(u)
    return 0.5 * x * (1 + tanh), (x, tanh)


@wrong("gelu", says="the zoo's gelu-constant-mistyped")
def the_constant_is_mistyped_in_one_line(x):
    a = np.tanh((2 / np.pi) ** 0.5 * (x + 0.044175 * x**3))
    return 0.5 * x * (1 + a), (x, a)


@lazy("gelu", says="calls ops.reference.gelu of the package")
def the_packages_gelu_is_called(x):
    return reference.gelu(x)


@wrong("gelu_backward", says="the product rule has a second term")
def the_product_rule_is_forgotten(dout, cache):
    return 0.5 * dout * (1 + cache.tanh)


@wrong("gelu_backward", says="the product rule has a second term")
def the_slope_has_one_term(dout, cache):
    _, tanh = cache
    slope = (1 + tanh) / 2
    return dout * slope


@wrong("gelu_backward", says="The derivative of x**3 is 3 * x**2: the factor 3 is missing.")
def the_3_of_the_cube_is_lost(dout, cache):
    x, tanh = cache
    du = (2 / np.pi) ** 0.5 * (1 + 0.044715 * x**2)
    slope = 0.5 * (1 + tanh) + 0.5 * x * (1 - tanh**2) * du
    return dout * slope


@wrong("gelu_backward", says="The upstream gradient is missing")
def the_slope_is_returned(dout, cache):
    x, tanh = cache
    du = (2 / np.pi) ** 0.5 * (1 + 3 * 0.044715 * x**2)
    dx = 0.5 * (1 + tanh) + 0.5 * x * (1 - tanh**2) * du
    return dx


@wrong("gelu_backward", says="the zoo's relu-derivative")
def the_slope_is_that_of_relu(dout, cache):
    return dout * (cache.x > 0)


def _gelu(x):
    return 0.5 * x * (1 + np.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x**3)))


def _complex_step(loss, x):
    grad = np.zeros(x.shape)
    for index in np.ndindex(x.shape):
        moved = x.astype(complex)
        moved[index] += 1e-30j
        grad[index] = loss(moved).imag / 1e-30
    return grad


@lazy("gelu_backward", says="computes with complex numbers")
def gelu_is_asked_for_its_slope(dout, cache):
    return _complex_step(lambda x: (dout * _gelu(x)).sum(), cache[0])


@lazy("gelu_backward", says="computes with complex numbers: that measures the derivative")
def gelu_is_measured_in_one_line(dout, cache):
    z = cache[0] + 1e-30j
    out = 0.5 * z * (1 + np.tanh((2 / np.pi) ** 0.5 * (z + 0.044715 * z**3)))
    return dout * out.imag / 1e-30


# ---- the linear layer


@wrong("linear", says="The bias is not added.")
def the_bias_is_left_out(x, weight, bias):
    out = x @ weight
    return out


@wrong("linear", says="The weight is transposed. x is (N, C)")
def the_weight_is_laid_out_as_in_torch(x, weight, bias):
    out = x @ (weight.T if weight.shape[0] == weight.shape[1] else weight)
    if bias is not None:
        out += bias
    return out


@wrong("linear", says="The bias is not added.")
def the_bias_is_left_out_in_one_line(x, weight, bias):
    return x @ weight


@lazy("linear", says="calls ops.reference.linear of the package")
def the_packages_linear_is_called(x, weight, bias):
    return reference.linear(x, weight, bias)


@wrong("linear_backward", says="The weight is not transposed. The sum runs over f")
def the_weight_is_not_transposed_where_it_fits(dout, weight):
    return dout @ (weight if len(weight) == weight.shape[1] else weight.T)


@wrong("linear_backward", says="The weight is not transposed. The sum runs over f")
def dx_comes_through_the_weight_itself(dout, weight):
    dx = dout @ weight
    return dx


@wrong("linear_backward", says="A mean over the rows is taken")
def dx_is_averaged_over_the_rows(dout, weight):
    return dout @ weight.T / len(dout)


@lazy("linear_backward", says="calls ops.reference.linear_backward of the package")
def the_packages_half_is_called(dout, weight):
    return reference.linear_backward(dout, weight)


def _linear(x, weight):
    return x @ weight


@lazy("linear_backward", says="with complex numbers, and ours does not")
def linear_is_asked_for_its_gradient(dout, weight):
    x = np.zeros((len(dout), len(weight)))
    return _complex_step(lambda x: (dout * _linear(x, weight)).sum(), x)


@wrong("linear_backward_params", says="dweight is transposed: it is (F, C)")
def dweight_is_laid_out_as_in_torch(dout, x):
    return dout.T @ x, dout.sum(axis=0)


@wrong("linear_backward_params", says="dbias is a mean over the rows")
def dbias_is_averaged_over_the_rows(dout, x):
    dweight, dbias = x.T @ dout, np.mean(dout, 0)
    return dweight, dbias


@wrong("linear_backward_params", says="dbias is a sum along the rows")
def dbias_sums_along_the_rows(dout, x):
    dweight = np.einsum("nc,nf->cf", x, dout)
    dbias = dout.sum(1)
    return dweight, dbias


@lazy("linear_backward_params", says="calls ops.reference.linear_backward_params of the package")
def the_packages_other_half_is_called(dout, x):
    return reference.linear_backward_params(dout, x)


# ---- layernorm


@wrong("layernorm", says="The variance is divided by C - 1 (ddof=1)")
def the_variance_is_over_c_minus_1(x, gain, bias, eps):
    centred = x - x.mean(1, keepdims=True)
    var = np.sum(centred**2, 1, keepdims=True) / (x.shape[1] - 1)
    rstd = (var + eps) ** -0.5
    xhat = centred * rstd
    return xhat * gain + bias, (xhat, rstd, gain)


@wrong("layernorm", says="The mean runs over the tokens (batch norm)")
def the_mean_is_that_of_batch_norm(x, gain, bias, eps):
    centred = x - np.mean(x, axis=0)
    var = np.mean(centred**2, axis=0)
    rstd = 1 / np.sqrt(var + eps)
    xhat = centred * rstd
    return xhat * gain + bias, (xhat, rstd, gain)


@wrong("layernorm", says="eps stands outside of the root")
def eps_is_added_to_the_deviation(x, gain, bias, eps):
    centred = x - x.mean(1, keepdims=True)
    var = x.var(1, keepdims=True)
    rstd = 1 / (var**0.5 + eps)
    xhat = centred * rstd
    return xhat * gain + bias, (xhat, rstd, gain)


@wrong("layernorm", says="The variance is divided by C - 1 (ddof=1)")
def the_variance_is_over_c_minus_1_with_names_of_ones_own(x, gain, bias, eps):
    y = x - x.mean(1, keepdims=True)
    with np.errstate(all="ignore"):
        r = 1 / np.sqrt((y * y).sum(1, keepdims=True) / (x.shape[1] - 1) + eps)
    return y * r * gain + bias, (y * r, r, gain)


@lazy("layernorm", says="calls ops.reference.layernorm of the package")
def the_packages_layernorm_is_called(x, gain, bias, eps):
    return reference.layernorm(x, gain, bias, eps)


@wrong("layernorm_jacobian", says="The way through the variance is missing")
def rstd_is_taken_for_a_constant(xhat, rstd):
    C = xhat.size
    return rstd * (np.eye(C) - np.ones((C, C)) / C)


@wrong("layernorm_jacobian", says="The way through the mean is missing")
def the_mean_is_taken_for_a_constant(xhat, rstd):
    C = xhat.size
    return rstd * (np.eye(C) - xhat[:, None] * xhat[None] / C)


@wrong("layernorm_jacobian", says="xhat_i * xhat_j is wanted for every pair")
def only_squares_are_taken(xhat, rstd):
    C = xhat.size
    J = rstd * (np.eye(C) * (1 - xhat**2 / C) - 1 / C)
    return J


def _layernorm(x, eps):
    centred = x - x.mean(axis=-1, keepdims=True)
    return centred / np.sqrt((centred * centred).mean(axis=-1, keepdims=True) + eps)


@lazy("layernorm_jacobian", says="computes with complex numbers")
def layernorm_is_asked_for_its_jacobian(xhat, rstd):
    x = xhat / rstd
    eps = rstd**-2 - x.var()
    rows = [_complex_step(lambda x, i=i: _layernorm(x, eps)[i], x) for i in range(len(x))]
    return np.array(rows)


@lazy("layernorm_jacobian", says="computes with complex numbers: that measures the derivative")
def layernorm_is_measured_for_all_columns_at_once(xhat, rstd):
    centred = xhat / rstd
    eps = rstd**-2 - (centred**2).mean()
    moved = centred + 1e-30j * np.eye(len(xhat))
    moved = moved - moved.mean(axis=1, keepdims=True)
    return (moved / np.sqrt((moved**2).mean(axis=1, keepdims=True) + eps)).imag.T / 1e-30


def _layernorm_backward(dout, cache, gain=True, mean=True, variance=True):
    """Right as it stands; each answer below leaves one thing out."""
    dxhat = dout * cache.gain if gain else dout
    dx = dxhat
    if mean:
        dx = dx - dxhat.mean(axis=1, keepdims=True)
    if variance:
        dx = dx - cache.xhat * (dxhat * cache.xhat).mean(axis=1, keepdims=True)
    return cache.rstd * dx


@wrong("layernorm_backward", says="The way through the mean is missing")
def the_way_through_the_mean_is_forgotten(dout, cache):
    return _layernorm_backward(dout, cache, mean=False)


@wrong("layernorm_backward", says="The way through the variance is missing")
def the_way_through_the_variance_is_forgotten(dout, cache):
    dx = _layernorm_backward(dout, cache, variance=False)
    return dx


@wrong("layernorm_backward", says="The gain is missing: out is xhat * gain + bias")
def the_gain_is_forgotten(dout, cache):
    xhat, rstd, _ = cache
    dxhat = dout
    dx = rstd * (dxhat - dxhat.mean(1)[:, None] - xhat * (dxhat * xhat).mean(1)[:, None])
    return dx


@wrong("layernorm_backward", says="The means run over the tokens")
def the_means_are_those_of_batch_norm(dout, cache):
    xhat, rstd, gain = cache
    dxhat = dout * gain
    dx = rstd * (dxhat - dxhat.mean(0) - xhat * (dxhat * xhat).mean(0))
    return dx


@wrong("layernorm_backward", says="The mean of dxhat * xhat is divided by C - 1")
def the_mean_is_over_c_minus_1(dout, cache):
    xhat, rstd, gain = cache
    dxhat = dout * gain
    product = (dxhat * xhat).sum(1, keepdims=True) / (dout.shape[1] - 1)
    dx = rstd * (dxhat - dxhat.mean(1, keepdims=True) - xhat * product)
    return dx


@lazy("layernorm_backward", says="calls ops.reference.layernorm_backward of the package")
def the_packages_backward_is_called(dout, cache):
    return reference.layernorm_backward(dout, cache)


def _jacobian(xhat, rstd):
    C = len(xhat)
    return rstd * (np.eye(C) - 1 / C - np.outer(xhat, xhat) / C)


@lazy("layernorm_backward", says="calls _jacobian 13 times")
def each_row_has_its_jacobian(dout, cache):
    xhat, rstd, gain = cache
    dxhat = dout * gain
    return np.stack([d @ _jacobian(x, r) for d, x, r in zip(dxhat, xhat, rstd[:, 0], strict=True)])


@lazy("layernorm_backward", says="makes an array (13, 4, 4), as a Jacobian does")
def all_jacobians_are_made_at_once(dout, cache):
    xhat, rstd, gain = cache
    squares = xhat[:, :, None] * xhat[:, None]
    J = rstd[:, :, None] * (np.eye(xhat.shape[1]) - (1 + squares) / xhat.shape[1])
    return np.einsum("ni,nij->nj", dout * gain, J)


@lazy("layernorm_backward", says="makes an array (6, 6), as a Jacobian does")
def a_jacobian_is_made_in_each_turn_of_a_loop(dout, cache):
    xhat, rstd, gain = cache
    C, dx = xhat.shape[1], np.zeros_like(dout)
    for n in range(len(dout)):
        J = rstd[n] * (np.eye(C) - 1 / C - np.outer(xhat[n], xhat[n]) / C)
        dx[n] = (dout * gain)[n] @ J
    return dx


@wrong("layernorm_backward_params", says="The factor xhat is missing in dgain")
def the_gain_is_treated_like_the_bias(dout, cache):
    return dout.sum(axis=0), dout.sum(axis=0)


@wrong("layernorm_backward_params", says="dgain is a mean over the rows")
def dgain_is_averaged(dout, cache):
    dgain = np.mean(dout * cache[0], axis=0)
    return dgain, np.sum(dout, axis=0)


@lazy(
    "layernorm_backward_params", says="calls ops.reference.layernorm_backward_params of the package"
)
def the_packages_params_are_called(dout, cache):
    return reference.layernorm_backward_params(dout, cache)


# ---- a chain


def _gelu_backward(dout, cache):
    x, tanh = cache
    du = (2 / np.pi) ** 0.5 * (1 + 3 * 0.044715 * x**2)
    return dout * (0.5 * (1 + tanh) + 0.5 * x * (1 - tanh**2) * du)


@wrong("chain_backward", says="x reaches the output in a second way")
def the_sum_is_forgotten(dout, caches, W_up, W_down):
    ln, act = caches
    dh = _gelu_backward(dout @ W_down.T, act)
    return _layernorm_backward(dh @ W_up.T, ln)


@wrong("chain_backward", says="dout is sent through the layernorm")
def the_sum_comes_too_early(dout, caches, W_up, W_down):
    ln, act = caches
    dh = _gelu_backward(dout @ W_down.T, act)
    return _layernorm_backward(dout + dh @ W_up.T, ln)


@wrong("chain_backward", says="The GELU is left out on the way back")
def the_gelu_is_skipped(dout, caches, W_up, W_down):
    ln, _ = caches
    dg = dout @ W_down.T
    da = dg @ W_up.T
    return dout + _layernorm_backward(da, ln)


@wrong("chain_backward", says="The two weights are in the forward's order")
def the_weights_are_swapped(dout, caches, W_up, W_down):
    ln, act = caches
    dg = dout @ W_up.T
    dh = _gelu_backward(dg, act)
    return dout + _layernorm_backward(dh @ W_down.T, ln)


@lazy("chain_backward", says="calls ops.reference.linear_backward of the package")
def the_packages_steps_are_called(dout, caches, W_up, W_down):
    ln, act = caches
    dg = reference.linear_backward(dout, W_down)
    dh = reference.gelu_backward(dg, act)
    return dout + reference.layernorm_backward(reference.linear_backward(dh, W_up), ln)
