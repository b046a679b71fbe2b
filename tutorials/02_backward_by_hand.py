# %% [markdown]
# # Backward by hand
#
# - **You will be able to** derive the backward of GELU, of a linear layer and of layernorm, write
#   each in a few lines of NumPy, and prove it right in two ways.
# - **You need** [lesson 1](01_what_a_prefix_is.py), the matrix product, and two rules from school:
#   $(fg)' = f'g + fg'$ and $f(g(x))' = f'(g(x)) \, g'(x)$.
# - **Time** 60 minutes; it runs in 2 seconds.
# - **Difficulty** 2 of 3.
#
# ## What a gradient is
#
# In lesson 1 a function gave us the loss $\ell$, one number, and its *gradient*: for each of 12,800
# numbers, how fast $\ell$ grows when that number grows. Where does it come from? A model is a chain
# of steps, $x \to out \to \dots \to \ell$. We go back along the chain, step by step.
#
# We write `dx` for $\partial \ell / \partial x$, and it has the shape of `x`. A step need not know
# what the loss is. It is told $dout = \partial \ell / \partial out$, the *upstream* gradient, a
# number for each number of `out`, and it says what that means for its own input:
#
# $$dx_j = \sum_i dout_i \, \frac{\partial out_i}{\partial x_j}$$
#
# This is the chain rule: $x_j$ reaches the loss through every $out_i$, and the ways add up. So each
# step needs two functions, a *forward*, which makes `out` of `x`, and a *backward*, which makes
# `dx` of `dout`. GPT-2 has only six kinds of steps, apart from sums. This lesson takes three.
#
# ## GELU: one number in, one number out
#
# GELU is a smooth kind of switch: it lets positive numbers pass and stops negative ones. GPT-2 has
# it in this form:
#
# $$u = \sqrt{2 / \pi} \, (x + 0.044715 \, x^3), \qquad out = \tfrac12 x \, (1 + \tanh u)$$
#
# It works on every number for itself, so one derivative is all we need. Both factors of $out$ hold
# $x$: the product rule gives two terms. In the second one we go through $\tanh$, whose derivative
# is $1 - \tanh^2$, and through $u$:
#
# $$slope = \tfrac12 (1 + \tanh u) + \tfrac12 x \, (1 - \tanh^2 u) \, u', \qquad
# u' = \sqrt{2 / \pi} \, (1 + 3 \cdot 0.044715 \, x^2)$$
#
# **Predict.** Far to the right GELU is $x$ itself, far to the left it is 0. So the slope goes from
# 0 to 1. Does it stay between them?

# %%
import matplotlib.pyplot as plt
import numpy as np

ROOT = (2 / np.pi) ** 0.5


def gelu(x):
    u = ROOT * (x + 0.044715 * x**3)
    return 0.5 * x * (1 + np.tanh(u))


def gelu_slope(x):
    tanh = np.tanh(ROOT * (x + 0.044715 * x**3))
    du = ROOT * (1 + 3 * 0.044715 * x**2)
    return 0.5 * (1 + tanh) + 0.5 * x * (1 - tanh**2) * du


xs = np.linspace(-4, 4, 201)  # (201,)
print(f"the slope goes from {gelu_slope(xs).min():.3f} to {gelu_slope(xs).max():.3f}")

fig, ax = plt.subplots(figsize=(6, 3.5))
ax.plot(xs, gelu(xs), "-", color="black", label="gelu(x)")
ax.plot(xs, gelu_slope(xs), "--", color="black", label="its slope")
ax.set_ylim(-0.5, 2)
ax.set_xlabel("x")
ax.set_title("GELU and its slope")
ax.grid(alpha=0.4)
ax.legend()
fig.tight_layout()
plt.show()

# %% [markdown]
# It does not: GELU dips below 0, which takes a negative slope, and then has to rise faster than $x$
# to reach it. Is the picture right, though? We made the curve and the slope from formulas of our
# own, and a slip of the pen looks just as smooth.
#
# ## First proof: finite differences
#
# Ask the function itself. Move $x$ up and down a little, and look:
#
# $$f'(x) \approx \frac{f(x + \epsilon) - f(x - \epsilon)}{2 \epsilon}$$
#
# The error has two parts. The curve is not straight between the two points: that part shrinks with
# $\epsilon^2$. And a float64 has 16 digits, of which the subtraction of two nearly equal numbers
# loses most: that part grows with $10^{-16} / \epsilon$.
#
# ## Second proof: the complex step
#
# There is a way without a subtraction. Give the function a complex number, $x + i \epsilon$. For
# every function that is made of $+$, $\times$, $\tanh$, $\exp$ and their like,
#
# $$f(x + i \epsilon) = f(x) + i \epsilon \, f'(x) + O(\epsilon^2),
# \qquad f'(x) \approx \frac{\operatorname{Im} f(x + i \epsilon)}{\epsilon}$$
#
# The value is in the real part and the derivative in the imaginary one, and they do not meet. (The
# term with $\epsilon^2$ is real, too. So after the division the error that is left is of the
# size of $\epsilon^2$.)
#
# **Predict.** Which $\epsilon$ is the best for finite differences: $10^{-2}$, $10^{-5}$, or
# $10^{-12}$? How many digits are right there? And for the complex step?

# %%
steps = 10.0 ** np.arange(-15, 0)  # (15,): 1e-15 ... 0.1
points = np.linspace(-3, 3, 31)  # (31,)
slope = gelu_slope(points)  # (31,)


def relative_error(a, b):
    """The largest difference, as a part of the largest number: 1 means all wrong."""
    return np.abs(a - b).max() / np.abs(b).max()


def error_of_differences(eps):
    return relative_error((gelu(points + eps) - gelu(points - eps)) / (2 * eps), slope)


def error_of_complex_step(eps):
    return relative_error(gelu(points + 1j * eps).imag / eps, slope)


by_differences = [error_of_differences(eps) for eps in steps]
by_complex = [error_of_complex_step(eps) for eps in steps]
best = int(np.argmin(by_differences))
print(f"finite differences: {by_differences[best]:.0e} at eps = {steps[best]:.0e}")
print(f"complex step: {error_of_complex_step(1e-30):.0e} at eps = 1e-30")
assert min(by_differences) < 1e-9
assert error_of_complex_step(1e-30) < 1e-14

fig, ax = plt.subplots(figsize=(6, 3.5))
ax.loglog(steps, by_differences, "o-", color="black", label="finite differences")
shown = np.maximum(by_complex, 1e-17)  # a logarithmic axis has no 0
ax.loglog(steps, shown, "s--", color="0.4", label="complex step")
ax.set_xlabel("eps")
ax.set_ylabel("relative error")
ax.set_title("The slope of GELU, asked of GELU itself")
ax.legend()
fig.tight_layout()
plt.show()

# %% [markdown]
# Both say that the formula is right. Read the picture from the right: both errors shrink with
# $\epsilon^2$. Below $10^{-5}$ finite differences lose digits again, and the complex step does not.
# Differences work with any function, and some ten digits are the best that they give. The complex
# step gives all 16, even at $\epsilon = 10^{-30}$, where $x + \epsilon$ would not differ from $x$.
# From here on we use the complex step, and finite differences as a witness.
#
# ## Many numbers
#
# What flows through GPT-2 is an array `x` of shape $(N, C)$: $N$ tokens, and $C$ numbers for each.
# To test a backward we need a loss and an upstream gradient that belong together. The simplest pair
# is
#
# $$\ell = \sum dout \odot out, \qquad \frac{\partial \ell}{\partial out} = dout$$
#
# where $\odot$ multiplies entry by entry, and `dout` is random. (Not ones: [lesson
# 3](03_softmax_and_cross_entropy.py) shows what these hide.) The two functions below ask a loss for
# its gradient, number by number.

# %%


def complex_step(loss, x, eps=1e-30):
    grad = np.zeros(x.shape)
    for index in np.ndindex(x.shape):
        moved = x.astype(complex)
        moved[index] += 1j * eps
        grad[index] = loss(moved).imag / eps
    return grad  # like x


def finite_differences(loss, x, eps=1e-5):
    grad = np.zeros(x.shape)
    for index in np.ndindex(x.shape):
        step = np.zeros(x.shape)
        step[index] = eps
        grad[index] = (loss(x + step) - loss(x - step)) / (2 * eps)
    return grad  # like x


def check(name, ours, loss, x):
    assert ours.shape == x.shape, f"{name} is {ours.shape}, expected {x.shape}"
    error = relative_error(ours, complex_step(loss, x))
    assert error < 1e-12, f"{name} is off by {error:.2g} of its largest entry"
    witness = relative_error(finite_differences(loss, x), complex_step(loss, x))
    assert witness < 1e-6, f"the two proofs of {name} differ by {witness:.2g}"
    print(f"{name:6}{ours.shape}  off by {error:.0e}, finite differences by {witness:.0e}")


rng = np.random.default_rng(0)
N, C, F = 5, 6, 4  # tokens, numbers of each before and after the linear layer below
x = rng.normal(size=(N, C))
dout = rng.normal(size=(N, C))

# out_nc depends on x_nc alone, so of the sum in the chain rule one term is left
check("dx", dout * gelu_slope(x), lambda x: (dout * gelu(x)).sum(), x)

# %% [markdown]
# ## The linear layer, and its two halves
#
# It makes $F$ numbers of the $C$ that a token has: $out = x W + b$, with `x` $(N, C)$, the weight
# `W` $(C, F)$, the bias `b` $(F)$ and `out` $(N, F)$. Number by number:
#
# $$out_{nf} = \sum_c x_{nc} \, W_{cf} + b_f$$
#
# Now the chain rule, three times: once for each thing that `out` depends on. Ask each time: where
# does this number occur?
#
# - $x_{nc}$ occurs in the row $n$ of `out`, in each of its $F$ numbers, with the factor $W_{cf}$.
# - $W_{cf}$ occurs in the column $f$, in each of the $N$ rows, with the factor $x_{nc}$.
# - $b_f$ occurs in the column $f$, in each of the $N$ rows, with the factor 1.
#
# $$dx_{nc} = \sum_f dout_{nf} \, W_{cf}, \qquad
# dW_{cf} = \sum_n x_{nc} \, dout_{nf}, \qquad
# db_f = \sum_n dout_{nf}$$
#
# `np.einsum` takes such a formula as it stands: it sums over the letters that do not occur on the
# right of the arrow. It is slow, and it says exactly what we mean. In the exercises you will write
# each of these as a matrix product.

# %%
W, b = rng.normal(size=(C, F)), rng.normal(size=F)
dout = rng.normal(size=(N, F))

dx = np.einsum("nf,cf->nc", dout, W)  # (N, C)
dW = np.einsum("nc,nf->cf", x, dout)  # (C, F)
db = np.einsum("nf->f", dout)  # (F,)

check("dx", dx, lambda x: (dout * (x @ W + b)).sum(), x)
check("dW", dW, lambda W: (dout * (x @ W + b)).sum(), W)
check("db", db, lambda b: (dout * (x @ W + b)).sum(), b)

# %% [markdown]
# Look at what stands in the formulas. The backward falls into two halves that have nothing in
# common but `dout`. `dx` needs the weight and not the input; `dW` needs the input and not the
# weight. Who trains the weights needs both halves: `dW` to train this layer, and `dx` to go on to
# the layers below. A frozen model needs the first half alone. It does not compute `dW`, and it need
# not keep `x`.
#
# **Predict.** Count multiplications: one for each term of each sum. Forward, first half, second
# half: which one is the most expensive?

# %%
forward_terms = N * F * C  # for each of N * F numbers a sum of C terms
half_dx = N * C * F
half_dW = C * F * N
print("forward", forward_terms, " dx", half_dx, " dW", half_dW)
assert forward_terms == half_dx == half_dW

# %% [markdown]
# All three are equal. To train all weights costs three parts, to train a prefix two: forward and
# first half. What else may be left out is the matter of [lesson 7](07_half_a_backward.py).
#
# ## Layernorm: every number depends on every other
#
# Each row of `x` $(N, C)$ is moved and stretched so that its mean is 0 and its variance 1; then
# each column gets a factor and a summand of its own, `gain` and `bias`, both $(C)$. For one row of
# $C$ numbers:
#
# $$\begin{aligned}
# centred_i &= x_i - \frac1C \sum_j x_j, & var &= \frac1C \sum_j centred_j^2, \\
# rstd &= \frac{1}{\sqrt{var + EPS}}, & xhat_i &= centred_i \cdot rstd, \\
# out_i &= xhat_i \cdot gain_i + bias_i
# \end{aligned}$$
#
# (`EPS` is a small constant, $10^{-5}$ in GPT-2: a row of equal numbers would be 0/0 without it.)
#
# Back through the last line is easy: $dxhat = dout \odot gain$. But $x_j$ reaches $xhat_i$ by three
# ways: directly where $i = j$, through the mean, and through the variance. Line by line, with
# $[i{=}j]$ for 1 where $i = j$, and 0 elsewhere:
#
# $$\begin{aligned}
# \frac{\partial \, centred_i}{\partial x_j} &= [i{=}j] - \frac1C \\
# \frac{\partial \, var}{\partial x_j}
#   &= \frac2C \sum_i centred_i \left( [i{=}j] - \frac1C \right) = \frac2C \, centred_j \\
# \frac{\partial \, rstd}{\partial x_j}
#   &= -\frac12 \, rstd^3 \cdot \frac2C \, centred_j = -\frac1C \, rstd^2 \, xhat_j
# \end{aligned}$$
#
# (In the second line, the sum over $centred_i$ is 0. In the third, $rstd$ is
# $(var + EPS)^{-1/2}$, whose derivative for $var$ is $-\frac12 \, rstd^3$, and
# $rstd \cdot centred_j = xhat_j$.) The product rule for $centred_i \cdot rstd$ puts them together:
#
# $$J_{ij} = \frac{\partial \, xhat_i}{\partial x_j}
# = rstd \left( [i{=}j] - \frac1C - \frac1C \, xhat_i \, xhat_j \right)$$
#
# $J$ is the *Jacobian* of one row, $(C, C)$: every derivative of every output number. With it the
# chain rule is a product of a row and a matrix, $dx_j = \sum_i dxhat_i \, J_{ij}$.
#
# **Predict.** Add the same number to all $C$ numbers of a row. What does layernorm make of it? And
# what must each row of $J$ sum to, then?

# %%
EPS = 1e-5


def layernorm(x, gain, bias):
    centred = x - x.mean(axis=1, keepdims=True)  # (N, C)
    var = (centred * centred).mean(axis=1, keepdims=True)  # (N, 1)
    rstd = 1 / np.sqrt(var + EPS)  # (N, 1)
    xhat = centred * rstd  # (N, C)
    return xhat * gain + bias, xhat, rstd


def jacobian(xhat, rstd):
    """Of one row: xhat (C,), rstd a number -> (C, C)."""
    C = len(xhat)
    return rstd * (np.eye(C) - 1 / C - np.outer(xhat, xhat) / C)


gain, bias = rng.normal(size=C), rng.normal(size=C)
out, xhat, rstd = layernorm(x, gain, bias)  # (N, C), (N, C), (N, 1)
J = jacobian(xhat[0], rstd[0, 0])  # (C, C)
print(J.round(2))
print("its rows sum to", J.sum(axis=1).round(15))
assert np.abs(J.sum(axis=1)).max() < 1e-13

dout = rng.normal(size=(N, C))
dxhat = dout * gain  # (N, C)
dx = np.stack([dxhat[n] @ jacobian(xhat[n], rstd[n, 0]) for n in range(N)])  # (N, C)
dgain = (dout * xhat).sum(axis=0)  # (C,): each of the N rows uses it
dbias = dout.sum(axis=0)  # (C,), likewise

check("dx", dx, lambda x: (dout * layernorm(x, gain, bias)[0]).sum(), x)
check("dgain", dgain, lambda gain: (dout * layernorm(x, gain, bias)[0]).sum(), gain)
check("dbias", dbias, lambda bias: (dout * layernorm(x, gain, bias)[0]).sum(), bias)

# %% [markdown]
# The mean takes the added number away, so nothing changes: each row of $J$ sums to 0. All three
# gradients are right, and $J$ is wasteful. For GPT-2, with $C = 768$, each token would need a
# matrix of 589,824 numbers, though all of them follow from the 768 of $xhat$ and from $rstd$. Put
# $J$ into $\sum_i dxhat_i \, J_{ij}$ and take the sums term by term. Two of them are means over the
# row, one number for each row:
#
# $$dx_j = rstd \left( dxhat_j - \frac1C \sum_i dxhat_i
# - xhat_j \cdot \frac1C \sum_i dxhat_i \, xhat_i \right)$$
#
# Three terms, three ways: direct, through the mean, through the variance. This is the formula that
# one programs. You will, below.
#
# ## Third proof: another implementation
#
# The package has all of this in [reference](../minprefix/ops/reference.py), to be read, and in
# [numpy_ops](../minprefix/ops/numpy_ops.py), to be fast. What a backward needs of its forward is
# handed over in a `cache`, an array for each name. A fast backward may write into what it is given,
# so we give it copies. And the linear layer's two halves are two functions.

# %%
from minprefix.ops import numpy_ops, reference


def layernorm_loss(x):
    return (dout * layernorm(x, gain, bias)[0]).sum()


def check_layernorm(ops):
    """dx of `ops` against the complex step through our own layernorm."""
    _, cache = ops.layernorm(x, gain, bias, EPS)
    dx = ops.layernorm_backward(dout.copy(), cache)  # (N, C)
    error = relative_error(dx, complex_step(layernorm_loss, x))
    assert error < 1e-12, f"dx is off by {error:.2g} of its largest entry"


def check_law(ops):
    """Each row of dx is a mixture of rows of J, and those sum to 0."""
    _, cache = ops.layernorm(x, gain, bias, EPS)
    total = np.abs(ops.layernorm_backward(dout.copy(), cache).sum(axis=1)).max()
    assert total < 1e-12, f"a row of dx sums to {total:.2g}, expected 0"


for ops in (reference, numpy_ops):
    check_layernorm(ops)
    check_law(ops)
    _, cache = ops.gelu(x.copy())
    dx = ops.gelu_backward(dout.copy(), cache)  # (N, C)
    assert relative_error(dx, dout * gelu_slope(x)) < 1e-12
    upstream = dout[:, :F]  # (N, F)
    dx = ops.linear_backward(upstream, W)  # (N, C)
    assert relative_error(dx, np.einsum("nf,cf->nc", upstream, W)) < 1e-12
    dW, db = ops.linear_backward_params(upstream, x)  # (C, F), (F,)
    assert relative_error(dW, np.einsum("nc,nf->cf", x, upstream)) < 1e-12
    assert relative_error(db, np.einsum("nf->f", upstream)) < 1e-12
print("the package agrees, twice")

# %% [markdown]
# ## A chain
#
# Now steps behind one another. Half of each layer of GPT-2 is this: layernorm, a linear layer that
# makes the rows four times wider, GELU, a linear layer that makes them narrow again. The backward
# has a line for each line of the forward, in reverse order, and each hands its `dx` to the next one
# as `dout`. All weights are frozen: there is no second half in it.

# %%
W_up, b_up = rng.normal(size=(C, 4 * C)), rng.normal(size=4 * C)
W_down, b_down = rng.normal(size=(4 * C, C)), rng.normal(size=C)


def chain(x):
    a, ln = reference.layernorm(x, gain, bias, EPS)  # (N, C)
    h = reference.linear(a, W_up, b_up)  # (N, 4C)
    g, act = reference.gelu(h)  # (N, 4C)
    return reference.linear(g, W_down, b_down), (ln, act)  # (N, C)


def chain_backward(dout, caches):
    ln, act = caches
    dg = reference.linear_backward(dout, W_down)  # (N, 4C)
    dh = reference.gelu_backward(dg, act)  # (N, 4C)
    da = reference.linear_backward(dh, W_up)  # (N, C)
    return reference.layernorm_backward(da, ln)  # (N, C)


_, caches = chain(x)
check("dx", chain_backward(dout, caches), lambda x: (dout * chain(x)[0]).sum(), x)

# %% [markdown]
# ## Break it yourself
#
# A bug that students really write: the way through the mean is forgotten. We plant it, and train
# with it: $x$ goes downhill in small steps, against the wrong gradient.
#
# **Predict.** Will the loss fall? Which checks notice: the law, the complex step, or both?

# %%
from minprefix.lessons import caught, planted

broken = planted("mean-term-dropped")
print(broken)


def descend(ops, steps=5, rate=0.02):
    moving, losses = x.copy(), []
    for _ in range(steps):
        out, cache = ops.layernorm(moving, gain, bias, EPS)
        losses.append(float((dout * out).sum()))
        moving = moving - rate * ops.layernorm_backward(dout.copy(), cache)
    return losses


right, wrong = descend(reference), descend(broken.reference)
print("right ", np.round(right, 2))
print("broken", np.round(wrong, 2))
assert np.all(np.diff(right) < 0)
assert np.all(np.diff(wrong) < 0)

with caught() as error:  # take this line away, and the lesson stops here
    check_law(broken.reference)
print(error)
with caught() as error:
    check_layernorm(broken.reference)
print(error)

# %% [markdown]
# Both checks notice, and the loss does not: it falls exactly as before. The part that is wrong
# pushes all numbers of a row the same way, and layernorm takes that out again. But in a model other
# steps read `x` as well, and they see the push. A falling loss is no proof of a gradient.
#
# And here is the sister of this bug: the way through the variance is forgotten.
#
# **Predict.** Does the law notice this one?

# %%
broken = planted("variance-term-dropped")
print(broken)
check_law(broken.reference)
print("the law holds")
with caught() as error:
    check_layernorm(broken.reference)
print(error)

# %% [markdown]
# It does not: without that term the rows of $J$ still sum to 0. A law is quick and needs no second
# opinion, and it sees one kind of mistake. The comparison with an exact gradient sees both. Use
# both.
#
# A function of your own has no reference. `gradcheck` takes any forward and backward and makes the
# second proof of this lesson, or the first where complex numbers do not get through. It names the
# usual mistakes. At the command line it is `minprefix gradcheck my.py:gelu`.

# %%
from minprefix.gradcheck import gradcheck

print(gradcheck(gelu, lambda dout, x: dout * gelu_slope(x), x))
wrong = gradcheck(gelu, lambda dout, x: 2 * dout * gelu_slope(x), x)
print(wrong.findings[0].hints)
assert not wrong

# %% [markdown]
# ## Exercises
#
# Four of the package's functions, written by you and graded by its reference suite: it runs them on
# many cases and says what looks wrong. In a file of your own it is `minprefix check my_ops.py`.
#
# **1.** (Graded.) Write `gelu_backward(dout, cache)`. `dout` is $(N, F)$; `cache.x` and
# `cache.tanh`, the $\tanh u$ of the forward, are $(N, F)$, too. Return `dx` $(N, F)$.

# %%
from minprefix.lessons import grade


def gelu_backward(dout, cache):
    raise NotImplementedError  # yours


grade(gelu_backward)

# %% [markdown]
# <details><summary>Solution 1</summary>
#
# The slope, with the `tanh` that the forward has kept, times the upstream gradient.
#
# ```python
# def gelu_backward(dout, cache):
#     x, tanh = cache.x, cache.tanh  # (N, F)
#     du = (2 / np.pi) ** 0.5 * (1 + 3 * 0.044715 * x**2)  # (N, F)
#     return dout * (0.5 * (1 + tanh) + 0.5 * x * (1 - tanh**2) * du)  # (N, F)
#
#
# grade(gelu_backward)
# ```
#
# (`** 0.5` and not `np.sqrt`: that one makes a float64 of NumPy's, and makes float64 of every
# float32 that it meets. The suite notices.)
#
# </details>
#
# **2.** (Graded.) Write both halves of the linear layer's backward with `@`, `.T` and `.sum`:
# `linear_backward(dout, weight)` with `dout` $(N, out)$ and `weight` $(in, out)$ returns `dx`
# $(N, in)$; `linear_backward_params(dout, x)` with `x` $(N, in)$ returns `dweight` $(in, out)$ and
# `dbias` $(out)$.

# %%


def linear_backward(dout, weight):
    raise NotImplementedError  # yours


def linear_backward_params(dout, x):
    raise NotImplementedError  # yours


grade(linear_backward, linear_backward_params)

# %% [markdown]
# <details><summary>Solution 2</summary>
#
# A matrix product sums over the inner letter. In $dx_{nc} = \sum_f dout_{nf} \, W_{cf}$ that is
# $f$, the second letter of both: the second one is transposed. In $dW_{cf} = \sum_n x_{nc} \,
# dout_{nf}$ it is $n$, the first of both: the first one is transposed.
#
# ```python
# def linear_backward(dout, weight):
#     return dout @ weight.T  # (N, in)
#
#
# def linear_backward_params(dout, x):
#     return x.T @ dout, dout.sum(axis=0)  # (in, out), (out,)
#
#
# grade(linear_backward, linear_backward_params)
# ```
#
# The shapes alone would have told you, except where a weight is square. There `dout @ weight` runs
# just as well, and is wrong.
#
# </details>
#
# **3.** (Graded.) Write `layernorm_backward(dout, cache)` without a Jacobian. `dout` and
# `cache.xhat` are $(N, C)$, `cache.rstd` is $(N, 1)$, `cache.gain` is $(C)$. Return `dx` $(N, C)$.

# %%


def layernorm_backward(dout, cache):
    raise NotImplementedError  # yours


grade(layernorm_backward)

# %% [markdown]
# <details><summary>Solution 3</summary>
#
# ```python
# def layernorm_backward(dout, cache):
#     xhat, rstd = cache.xhat, cache.rstd  # (N, C), (N, 1)
#     dxhat = dout * cache.gain  # (N, C)
#     through_mean = dxhat.mean(axis=1, keepdims=True)  # (N, 1)
#     through_var = xhat * (dxhat * xhat).mean(axis=1, keepdims=True)  # (N, C)
#     return rstd * (dxhat - through_mean - through_var)  # (N, C)
#
#
# grade(layernorm_backward)
# ```
#
# </details>
#
# Next: [Softmax and cross-entropy](03_softmax_and_cross_entropy.py).
