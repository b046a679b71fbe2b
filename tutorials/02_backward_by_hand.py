# %% [markdown]
# # Backward by hand
#
# - **You will be able to** measure any gradient in two ways; derive the backward of GELU, of a
#   linear layer and of layernorm; write each in a few lines of NumPy, and prove it right.
# - **You need** [lesson 1](01_what_a_prefix_is.py), the matrix product, two rules from school,
#   $(pq)' = p'q + pq'$ and $p(q(x))' = p'(q(x)) \, q'(x)$, and partial derivatives: for a function
#   $p$ of several variables, $\partial p / \partial x_1$ is its derivative for $x_1$ while all
#   other variables stay fixed.
# - **Time** 190 minutes; it runs in 2 seconds.
# - **Difficulty** 3 of 5.
#
# ## Overview
#
# - A gradient can be measured. Finite differences give about 10 correct digits, and the complex
#   step gives 15 or more. You write both, and later lessons use them.
# - A model is a chain of steps. Each step needs a backward, which follows from the chain rule. You
#   write three: GELU, a linear layer and layernorm.
# - The backward of a linear layer has two halves. Each costs as many multiplications as the
#   forward. A frozen layer needs only one of them.
# - Layernorm mixes the numbers of a row. Its derivative is a matrix with $C^2$ numbers, and its
#   backward does without that matrix.
# - A wrong backward can train as well as a right one: with the planted bug the loss falls just as
#   before. Two checks notice it. A second bug is invisible to one of the two.
#
# ## What a gradient is
#
# In lesson 1 a function gave us the loss $\ell$, one number, and its
# [gradient](glossary.md#gradient): for each of 12,800 numbers of the prefix, how fast $\ell$ grows
# when that number grows. This lesson shows how such a gradient is computed. A model is a chain of
# steps, $x \to out \to \dots \to \ell$. The [forward](glossary.md#forward-and-backward) goes along
# the chain and computes the loss. The *backward* goes back, step by step, and computes the
# gradient.
#
# We write `dx` for $\partial \ell / \partial x$. It has the shape of `x`. A step does not need to
# know what the loss is. It receives $dout = \partial \ell / \partial out$, the [upstream
# gradient](glossary.md#upstream-gradient), with one number for each number of `out`. From this it
# computes the gradient of its own input:
#
# $$dx_j = \sum_i dout_i \, \frac{\partial out_i}{\partial x_j}$$
#
# This is the [chain rule](glossary.md#chain-rule) for several variables. The number $x_j$
# influences the loss through every $out_i$, and the influences add up.
#
# An example with numbers: $x = (3, 2)$, and the step is $out_1 = x_1 x_2$, $out_2 = x_1 + x_2$. The
# upstream gradient is $dout = (10, 1)$. Then
#
# $$dx_1 = 10 \cdot x_2 + 1 \cdot 1 = 21, \qquad dx_2 = 10 \cdot x_1 + 1 \cdot 1 = 31$$
#
# GPT-2 has only six kinds of steps, apart from sums: embedding, linear layer, GELU, layernorm,
# attention, and the loss. This lesson takes three of them.
#
# **Recap.** A forward makes `out` from `x`. A backward makes `dx` from `dout`: it sums over every
# number of `out` that depends on `x`. `dx` always has the shape of `x`.
#
# ## Two tools that measure a gradient
#
# You are going to derive formulas, and a formula can contain a slip. So you first build two tools
# that measure a gradient without any formula. Both only call the function that computes the loss.
#
# The first tool moves one number of `x` up and down by a small $\epsilon$ and compares the losses.
# These are [finite differences](glossary.md#finite-difference), here for a loss of one number $x$:
#
# $$\ell'(x) \approx \frac{\ell(x + \epsilon) - \ell(x - \epsilon)}{2 \epsilon}$$
#
# As in lesson 1, replace each `...` and run the cell. From here on most functions compute their
# result in several lines. `grade` compares your variables with ours, by their names and in their
# order, and it explains the first wrong one.
#
# ### Exercise 2.1: `finite_differences`
#
# *10 minutes · difficulty 2 of 5*
#
# `loss` is a function: it takes an array and returns one number. `x` is an array of any shape.
# Return `grad`, an array of the same shape: for each entry of `x`, the finite difference in which
# only this entry moves. Leave `x` itself as it is. (`np.ndindex(x.shape)` goes over all entries:
# for a matrix its `index` is $(0, 0)$, $(0, 1)$ and so on, and `x[index]` is that entry.)

# %%
import matplotlib.pyplot as plt
import numpy as np

from minprefix.lessons import caught, grade, planted


def finite_differences(loss, x, eps=1e-5):
    grad = np.zeros(x.shape)
    for index in np.ndindex(x.shape):
        step = ...  # like x
        grad[index] = ...
    return grad


grade(finite_differences)

# %% [markdown]
# <details><summary>Hint 1</summary>
#
# Make an array `step` of the shape of `x` that is 0 everywhere except at `index`.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# `x + step` and `x - step` are new arrays, so `x` stays as it is. They are $2 \epsilon$ apart.
#
# </details>


# %% jupyter={"source_hidden": true}
def finite_differences(loss, x, eps=1e-5):
    grad = np.zeros(x.shape)
    for index in np.ndindex(x.shape):
        step = np.zeros(x.shape)  # like x
        step[index] = eps
        grad[index] = (loss(x + step) - loss(x - step)) / (2 * eps)
    return grad


# %% [markdown]
# The example from above, with $\ell = 10 \cdot out_1 + 1 \cdot out_2$. This loss has the upstream
# gradient $(10, 1)$.


# %%
def small_example(x):
    return 10 * x[0] * x[1] + (x[0] + x[1])


measured = finite_differences(small_example, np.array([3.0, 2.0]))  # (2,)
print(measured)
assert np.abs(measured - [21, 31]).max() < 1e-8

# %% [markdown]
# Finite differences have two sources of error. The curve is not straight between the two points:
# that error shrinks with $\epsilon^2$. And a float64 has about 16 digits. The subtraction of two
# nearly equal numbers loses most of them: that error grows like $10^{-16} / \epsilon$.
#
# The second tool needs no subtraction. It gives the function a complex number, $x + i \epsilon$.
# For every function that is made of $+$, $\times$, $\tanh$, $\exp$ and similar ones,
#
# $$\begin{aligned}
# \ell(x + i \epsilon) &= \ell(x) + i \epsilon \, \ell'(x) + O(\epsilon^2), \\
# \ell'(x) &\approx \frac{\operatorname{Im} \ell(x + i \epsilon)}{\epsilon}
# \end{aligned}$$
#
# The value is in the real part, and the derivative is in the imaginary part. They do not mix. (The
# term with $\epsilon^2$ is real. The next term, with $\epsilon^3$, is imaginary again. After the
# division by $\epsilon$ it leaves an error of the order $\epsilon^2$.) This tool is the
# [complex step](glossary.md#complex-step).
#
# ### Exercise 2.2: `complex_step`
#
# *6 minutes · difficulty 2 of 5*
#
# The arguments and the result are those of `finite_differences`. Here `moved` is a complex copy of
# `x` in which one entry has the imaginary part $\epsilon$. The result is an array of real numbers.


# %%
def complex_step(loss, x, eps=1e-30):
    grad = np.zeros(x.shape)
    for index in np.ndindex(x.shape):
        moved = ...  # like x
        grad[index] = ...
    return grad


grade(complex_step)

# %% [markdown]
# <details><summary>Hint 1</summary>
#
# `x.astype(complex)` is a copy that can hold complex numbers. Python writes $i$ as `1j`.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# `loss(moved)` is a complex number, and `.imag` is its imaginary part.
#
# </details>


# %% jupyter={"source_hidden": true}
def complex_step(loss, x, eps=1e-30):
    grad = np.zeros(x.shape)
    for index in np.ndindex(x.shape):
        moved = x.astype(complex)  # like x
        moved[index] += 1j * eps
        grad[index] = loss(moved).imag / eps
    return grad


# %% [markdown]
# People forget the copy. With one `moved` for all entries, the imaginary parts of the earlier
# entries stay in it, and each derivative contains the sum of the earlier ones.
#
# **Recap.** Both tools call the loss and need no formula. Finite differences work with any
# function. The complex step needs a function that complex numbers pass through, and it subtracts
# nothing.
#
# ## GELU: one number in, one number out
#
# GELU is a smooth switch: it lets large positive numbers pass and stops large negative ones. GPT-2
# uses it in this form:
#
# $$u = \sqrt{2 / \pi} \, (x + 0.044715 \, x^3), \qquad out = \tfrac12 x \, (1 + \tanh u)$$
#
# In GPT-2 its input is an array of the shape $(N, F)$: $N$ tokens, with $F$ numbers for each. GELU
# works on each number alone.
#
# ### Exercise 2.3: `gelu`
#
# *4 minutes · difficulty 1 of 5*
#
# `x` has the shape $(N, F)$. Return `out`, and a [cache](glossary.md#cache): what the backward will
# need from the forward. Here this is the pair `(x, tanh)`, where `tanh` is $\tanh u$.
#
# The package has a function of this name, too. So `grade` also runs the package's own checks of
# it, the [reference suite](glossary.md#reference-suite), on your function. Some of them give it
# float32 arrays and want float32 back. So write the root as `(2 / np.pi) ** 0.5`:
# `np.sqrt(2 / np.pi)` is a float64 of NumPy's, and it makes every float32 array float64.


# %%
def gelu(x):
    u = ...  # (N, F)
    tanh = ...  # (N, F)
    out = ...  # (N, F)
    return out, (x, tanh)


grade(gelu)

# %% [markdown]
# <details><summary>Hint 1</summary>
#
# Each of the three lines is one formula from above, written in Python. `x**3` is $x^3$.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# `np.tanh` works on every entry of an array. The last line is `0.5 * x * (1 + tanh)`.
#
# </details>


# %% jupyter={"source_hidden": true}
def gelu(x):
    u = (2 / np.pi) ** 0.5 * (x + 0.044715 * x**3)  # (N, F)
    tanh = np.tanh(u)  # (N, F)
    out = 0.5 * x * (1 + tanh)  # (N, F)
    return out, (x, tanh)


# %% [markdown]
# We know no formula for its slope yet. But you have a tool that measures it.
#
# **Predict.** Far to the right GELU is nearly $x$, with slope 1. Far to the left it is nearly 0,
# with slope 0. Does the slope stay between 0 and 1?

# %%
xs = np.linspace(-4, 4, 201)  # (201,)
measured = complex_step(lambda x: gelu(x)[0].sum(), xs)  # (201,)
print(f"the slope goes from {measured.min():.3f} to {measured.max():.3f}")
assert measured.min() < -0.1
assert measured.max() > 1.1

fig, ax = plt.subplots(figsize=(5, 3.2))
ax.plot(xs, gelu(xs)[0], "-", color="black", label="gelu(x)")
ax.plot(xs, measured, "--", color="black", label="its slope, measured")
ax.set_ylim(-0.5, 2)
ax.set_xlabel("x")
ax.set_ylabel("value, or slope")
ax.set_title("GELU and its slope")
ax.grid(alpha=0.4)
ax.legend()
fig.tight_layout()
plt.show()

# %% [markdown]
# **Answer.** It does not. GELU dips below 0 on the left, so its slope is negative there. To the
# right of 0 it has to rise faster than $x$ to catch up with it, so its slope is larger than 1
# there.

# %% [markdown]
# (The loss here is the sum of all outputs. Each output depends on one entry of `xs` only. So each
# entry of the gradient is the slope of GELU at one point.)
#
# A measurement is slow: it takes one forward for each number. A model needs the formula. $out$ is a
# product, and both factors contain $x$. So the product rule gives two terms. In the second term,
# the chain rule goes through $\tanh$, whose derivative is $1 - \tanh^2$, and then through $u$:
#
# $$slope = \tfrac12 (1 + \tanh u) + \tfrac12 x \, (1 - \tanh^2 u) \, du, \qquad
# du = \frac{\partial u}{\partial x}$$
#
# ### Exercise 2.4: `gelu_backward`
#
# *10 minutes · difficulty 2 of 5*
#
# Derive `du` on paper, and write the backward. `dout` has the shape $(N, F)$. The cache is the one
# that `gelu` returns: `x` and `tanh`, $(N, F)$ each. Return `dx`. In the chain rule only one term
# of the sum is left, because $out_{nf}$ depends on $x_{nf}$ alone.


# %%
def gelu_backward(dout, cache):
    x, tanh = cache  # (N, F) each
    du = ...  # (N, F)
    slope = ...  # (N, F)
    dx = ...  # (N, F)
    return dx


grade(gelu_backward)

# %% [markdown]
# <details><summary>Hint 1</summary>
#
# The derivative of $x^3$ is $3 x^2$. The derivative of $x$ is 1.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# `du` is $\sqrt{2 / \pi} \, (1 + 3 \cdot 0.044715 \, x^2)$. `dx` is the upstream gradient times the
# slope, entry by entry.
#
# </details>


# %% jupyter={"source_hidden": true}
def gelu_backward(dout, cache):
    x, tanh = cache
    du = (2 / np.pi) ** 0.5 * (1 + 3 * 0.044715 * x**2)  # (N, F)
    slope = 0.5 * (1 + tanh) + 0.5 * x * (1 - tanh**2) * du  # (N, F)
    dx = dout * slope  # (N, F)
    return dx


# %% [markdown]
# Ours uses the `tanh` from the cache. A $\tanh$ is slow compared with a multiplication, so it is
# worth keeping.
#
# Now the formula and the two tools can check each other. We measure the slope at 31 points with
# many step sizes $\epsilon$, and compare with the formula.
#
# **Predict.** Which $\epsilon$ is best for finite differences: $10^{-2}$, $10^{-5}$ or $10^{-12}$?
# How many digits are right there? And how many with the complex step?

# %%
steps = 10.0 ** np.arange(-15, 0)  # (15,): 1e-15 ... 0.1
points = np.linspace(-3, 3, 31)  # (31,)
slope = gelu_backward(np.ones(31), gelu(points)[1])  # (31,): with dout = 1, dx is the slope


def relative_error(a, b):
    """The largest difference, as a part of the largest number of b: 1 means all wrong."""
    return np.abs(a - b).max() / np.abs(b).max()


def error_of(tool, eps):
    """Each point is measured alone: then no sum adds rounding errors of its own."""
    found = [tool(lambda x: gelu(x)[0][0], point[None], eps)[0] for point in points]
    return relative_error(np.array(found), slope)


by_differences = [error_of(finite_differences, eps) for eps in steps]
by_complex = [error_of(complex_step, eps) for eps in steps]
best = int(np.argmin(by_differences))
print(f"finite differences: {by_differences[best]:.0e} at eps = {steps[best]:.0e}")
print(f"complex step: {error_of(complex_step, 1e-30):.0e} at eps = 1e-30")
assert 1e-12 < min(by_differences) < 1e-9
assert error_of(complex_step, 1e-30) < 2e-15

fig, ax = plt.subplots(figsize=(5, 3.2))
ax.loglog(steps, by_differences, "o-", color="black", label="finite differences")
shown = np.maximum(by_complex, 1e-17)  # a logarithmic axis has no 0
ax.loglog(steps, shown, "s--", color="0.4", label="complex step")
ax.set_xlabel("eps")
ax.set_ylabel("relative error")
ax.set_title("The slope of GELU, measured")
ax.legend()
fig.tight_layout()
plt.show()

# %% [markdown]
# **Answer.** $10^{-5}$ is the best of the three, with about ten correct digits. Read the picture
# from the right: both errors shrink with $\epsilon^2$. Below $10^{-5}$ finite differences lose
# digits again, and the complex step does not. It has 15 digits or more, even at
# $\epsilon = 10^{-30}$, where $x + \epsilon$ would be rounded to $x$.

# %% [markdown]
# From here on we use the complex step as the proof, and finite differences as a witness.
#
# To test a backward we need a loss and an upstream gradient that belong together. The simplest pair
# is
#
# $$\ell = \sum dout \odot out, \qquad \frac{\partial \ell}{\partial out} = dout$$
#
# where $\odot$ multiplies entry by entry, and `dout` is random. (It must not be all ones: [lesson
# 3](03_softmax_and_cross_entropy.py) shows what ones hide.)


# %%
def check(name, ours, loss, x):
    assert ours.shape == x.shape, f"{name} is {ours.shape}, expected {x.shape}"
    exact = complex_step(loss, x)
    error = relative_error(ours, exact)
    assert error < 1e-12, f"{name} is off by {error:.2g} of its largest entry"
    witness = relative_error(finite_differences(loss, x), exact)
    assert witness < 1e-6, f"the two tools differ by {witness:.2g} on {name}"
    print(f"{name:8}{ours.shape!s:8} off by {error:.0e}, finite differences by {witness:.0e}")


rng = np.random.default_rng(0)
N, C, F = 5, 6, 8  # tokens; the width of the model; the width between two linear layers
x, dout = rng.normal(size=(N, F)), rng.normal(size=(N, F))
check("dx", gelu_backward(dout, gelu(x)[1]), lambda x: (dout * gelu(x)[0]).sum(), x)

# %% [markdown]
# **Recap.** For a step that works on each number alone, `dx` is `dout` times the slope. The forward
# keeps in a cache what the backward needs. To test a backward, take the loss
# `(dout * out).sum()` with a random `dout`, and compare with the complex step.
#
# ## The linear layer, and its two halves
#
# A linear layer makes $F$ numbers from the $C$ numbers of each token: $out = x W + b$. Here `x` is
# $(N, C)$, the weight matrix $W$ is $(C, F)$, the bias $b$ is $(F)$ and `out` is $(N, F)$. Number
# by number:
#
# $$out_{nf} = \sum_c x_{nc} \, W_{cf} + b_f$$
#
# ### Exercise 2.5: `linear`
#
# *3 minutes · difficulty 1 of 5*
#
# Write the forward. `x` is $(N, C)$ and `weight` is $(C, F)$. `bias` is $(F)$, or `None`: then
# nothing is added.


# %%
def linear(x, weight, bias):
    out = ...  # (N, F)
    return out


grade(linear)

# %% [markdown]
# <details><summary>Hint 1</summary>
#
# The sum over $c$ is a matrix product, `@`. NumPy adds a bias of the shape $(F)$ to every row.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# Test for the missing bias with `if bias is not None`. A comparison with an array would compare
# every entry.
#
# </details>


# %% jupyter={"source_hidden": true}
def linear(x, weight, bias):
    out = x @ weight
    if bias is not None:
        out = out + bias  # (N, F)
    return out


# %% [markdown]
# Now the backward. `out` depends on three things, and we apply the chain rule to each of them. Ask
# each time: in which numbers of `out` does this number occur, and with which factor?
#
# $x_{nc}$ occurs in row $n$ of `out`, in all $F$ numbers of that row, with the factor $W_{cf}$. So
# the sum runs over $f$:
#
# $$dx_{nc} = \sum_f dout_{nf} \, W_{cf}$$
#
# ### Exercise 2.6: `linear_backward`
#
# *5 minutes · difficulty 2 of 5*
#
# Write this sum as one matrix product. `dout` is $(N, F)$ and `weight` is $(C, F)$. Return `dx`,
# $(N, C)$.


# %%
def linear_backward(dout, weight):
    dx = ...  # (N, C)
    return dx


grade(linear_backward)

# %% [markdown]
# <details><summary>Hint 1</summary>
#
# A matrix product sums over the *last* letter of its left factor and the *first* letter of its
# right factor. Here $f$ is the last letter of both.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# `weight.T` has the shape $(F, C)$.
#
# </details>


# %% jupyter={"source_hidden": true}
def linear_backward(dout, weight):
    dx = dout @ weight.T  # (N, C)
    return dx


# %% [markdown]
# The shapes alone would have told you, except where $C = F$. There `dout @ weight` runs just as
# well, and its result is wrong. GPT-2 has such a square matrix in each block,
# `attn.c_proj`.
#
# ### Exercise 2.7: `linear_backward_params`
#
# *10 minutes · difficulty 3 of 5*
#
# This time the derivation is yours. Answer the two questions from above for $W_{cf}$ and for $b_f$,
# write down $dW_{cf}$ and $db_f$ as sums, and then write both with `@`, `.T` and `.sum`. `dout` is
# $(N, F)$ and `x` is $(N, C)$. Return `dweight`, $(C, F)$, and `dbias`, $(F)$.


# %%
def linear_backward_params(dout, x):
    dweight = ...  # (C, F)
    dbias = ...  # (F,)
    return dweight, dbias


grade(linear_backward_params)

# %% [markdown]
# <details><summary>Hint 1</summary>
#
# $W_{cf}$ occurs in column $f$ of `out`, in each of its $N$ rows. So does $b_f$.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# In row $n$ the factor of $W_{cf}$ is $x_{nc}$, and that of $b_f$ is 1. Both sums run over $n$.
#
# </details>
#
# <details><summary>Hint 3</summary>
#
# $dW_{cf} = \sum_n x_{nc} \, dout_{nf}$. The letter $n$ is the first letter of both factors, so the
# left one has to be transposed.
#
# </details>


# %% jupyter={"source_hidden": true}
def linear_backward_params(dout, x):
    dweight = x.T @ dout  # (C, F)
    dbias = dout.sum(axis=0)  # (F,)
    return dweight, dbias


# %% [markdown]
# Compare with your derivation:
#
# $$dW_{cf} = \sum_n x_{nc} \, dout_{nf}, \qquad db_f = \sum_n dout_{nf}$$
#
# Both are sums over the tokens, and not means: if a batch has twice as many tokens, there are twice
# as many influences. `np.einsum` takes such a formula as it stands. It sums over the letters that
# do not occur to the right of the arrow. It is slow, but it serves as a second opinion.

# %%
x, dout = rng.normal(size=(N, C)), rng.normal(size=(N, F))
W, b = rng.normal(size=(C, F)), rng.normal(size=F)

dx = linear_backward(dout, W)  # (N, C)
dW, db = linear_backward_params(dout, x)  # (C, F), (F,)
check("dx", dx, lambda x: (dout * linear(x, W, b)).sum(), x)
check("dW", dW, lambda W: (dout * linear(x, W, b)).sum(), W)
check("db", db, lambda b: (dout * linear(x, W, b)).sum(), b)
assert relative_error(dx, np.einsum("nf,cf->nc", dout, W)) < 1e-14
assert relative_error(dW, np.einsum("nc,nf->cf", x, dout)) < 1e-14
assert relative_error(db, np.einsum("nf->f", dout)) < 1e-14

# %% [markdown]
# Look at what the two functions need. The backward of a linear layer has two halves, and `dout` is
# all that they share. `dx` needs the weight and not the input. `dW` needs the input and not the
# weight. If you train the weights, you need both halves: `dW` to train this layer, and `dx` to go
# on to the layers below.

# %%
from minprefix.lessons import drawings

drawings.graph()

# %% [markdown]
# A [frozen](glossary.md#frozen) layer needs `dx` only. It does not compute `dW`, and it need not
# keep `x`. In the next picture $W_2$ is frozen. `dx` still goes through its layer, because $W_1$
# below it is trained.

# %%
drawings.graph(frozen=("W_2",))

# %% [markdown]
# **Predict.** Count multiplications: one for each term of each sum. Which of the three is the most
# expensive: the forward, the half with `dx`, or the half with `dW`?

# %%
forward_terms = N * F * C  # for each of N * F numbers a sum of C terms
terms_of_dx = N * C * F
terms_of_dW = C * F * N
print("forward", forward_terms, " dx", terms_of_dx, " dW", terms_of_dW)
assert forward_terms == terms_of_dx == terms_of_dW

# %% [markdown]
# **Answer.** All three cost the same. To train all weights costs three parts. To train only a
# prefix costs two: the forward and the half with `dx`.

# %% [markdown]
# [Lesson 7](07_half_a_backward.py) shows what else a frozen model can leave out.
#
# **Recap.** `dx = dout @ W.T`, `dW = x.T @ dout`, `db = dout.sum(axis=0)`. To find such a formula,
# ask where a number occurs and with which factor. The two halves are independent, and a frozen
# layer needs only the first one.
#
# ## Layernorm: every number depends on every other
#
# [Layernorm](glossary.md#layernorm) shifts and stretches each row of `x` $(N, C)$ so that its mean
# is 0 and its variance is 1. Then each column $i$ is multiplied by a number of its own, $gain_i$,
# and another one, $bias_i$, is added. For one row of $C$ numbers:
#
# $$\begin{aligned}
# centred_i &= x_i - \frac1C \sum_j x_j, & var &= \frac1C \sum_j centred_j^2, \\
# rstd &= \frac{1}{\sqrt{var + eps}}, & xhat_i &= centred_i \cdot rstd, \\
# out_i &= xhat_i \cdot gain_i + bias_i
# \end{aligned}$$
#
# (`eps` is a small constant, $10^{-5}$ in GPT-2. Without it, a row of equal numbers would give 0/0.
# It has nothing to do with the $\epsilon$ of the two tools.)
#
# ### Exercise 2.8: `layernorm`
#
# *8 minutes · difficulty 2 of 5*
#
# Write the forward for all $N$ rows at once. Return `out`, and the cache `(xhat, rstd, gain)`.


# %%
def layernorm(x, gain, bias, eps):
    centred = ...  # (N, C)
    var = ...  # (N, 1)
    rstd = ...  # (N, 1)
    xhat = ...  # (N, C)
    out = ...  # (N, C)
    return out, (xhat, rstd, gain)


grade(layernorm)

# %% [markdown]
# <details><summary>Hint 1</summary>
#
# A mean over a row runs over the columns, which is `axis=1`. `keepdims=True` gives it the shape
# $(N, 1)$, so that it can be subtracted from `x`.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# The variance is the mean of `centred * centred`, so it divides by $C$ and not by $C - 1$.
#
# </details>


# %% jupyter={"source_hidden": true}
def layernorm(x, gain, bias, eps):
    centred = x - x.mean(axis=1, keepdims=True)  # (N, C)
    var = (centred * centred).mean(axis=1, keepdims=True)  # (N, 1)
    rstd = 1 / np.sqrt(var + eps)  # (N, 1)
    xhat = centred * rstd  # (N, C)
    out = xhat * gain + bias  # (N, C)
    return out, (xhat, rstd, gain)


# %% [markdown]
# Back through the last line is easy: $dxhat = dout \odot gain$. The rest is harder, because $x_j$
# reaches $xhat_i$ in three ways: directly if $i = j$, through the mean, and through the variance.
# We take the lines one after another. $[i{=}j]$ is 1 if $i = j$, and 0 otherwise.
#
# $$\begin{aligned}
# \frac{\partial \, centred_i}{\partial x_j} &= [i{=}j] - \frac1C \\
# \frac{\partial \, var}{\partial x_j}
#   &= \frac2C \sum_i centred_i \left( [i{=}j] - \frac1C \right) = \frac2C \, centred_j \\
# \frac{\partial \, rstd}{\partial x_j}
#   &= -\frac12 \, rstd^3 \cdot \frac2C \, centred_j = -\frac1C \, rstd^2 \, xhat_j
# \end{aligned}$$
#
# - In the second line the sum of the squares runs over $i$, because $j$ is taken. Each square has
#   the derivative $2 \, centred_i$ times the first line. Then $[i{=}j]$ leaves $centred_j$. The
#   part with $1/C$ is 0, because the centred numbers of a row sum to 0.
# - In the third line $rstd$ is $(var + eps)^{-1/2}$. Its derivative for $var$ is
#   $-\frac12 \, rstd^3$. And $rstd \cdot centred_j$ is $xhat_j$.
#
# The last step is $xhat_i = centred_i \cdot rstd$. Both factors depend on $x_j$, so the product
# rule puts the first and the third line together. The result is
# $J_{ij} = \partial \, xhat_i / \partial x_j$, a matrix of the shape $(C, C)$: the
# [Jacobian](glossary.md#jacobian) of one row. It holds the derivative of every output number for
# every input number.
#
# ### Exercise 2.9: `layernorm_jacobian`
#
# *15 minutes · difficulty 3 of 5*
#
# Do the last step: apply the product rule, and write the result with $xhat$ and $rstd$ alone. Here
# `xhat` is one row, $(C)$, and `rstd` is a number. Return `J`, $(C, C)$.


# %%
def layernorm_jacobian(xhat, rstd):
    J = ...  # (C, C)
    return J


grade(layernorm_jacobian)

# %% [markdown]
# <details><summary>Hint 1</summary>
#
# Put the two derivatives into
#
# $$J_{ij} = rstd \, \frac{\partial \, centred_i}{\partial x_j}
# + centred_i \, \frac{\partial \, rstd}{\partial x_j}$$
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# In the second term there is $centred_i \cdot rstd^2 = xhat_i \cdot rstd$. So
# $J_{ij} = rstd \left( [i{=}j] - \frac1C - \frac1C \, xhat_i \, xhat_j \right)$.
#
# </details>
#
# <details><summary>Hint 3</summary>
#
# `np.eye(C)` is the matrix of $[i{=}j]$, and `np.outer(xhat, xhat)` is that of $xhat_i \, xhat_j$.
#
# </details>


# %% jupyter={"source_hidden": true}
def layernorm_jacobian(xhat, rstd):
    C = len(xhat)
    J = rstd * (np.eye(C) - 1 / C - np.outer(xhat, xhat) / C)  # (C, C)
    return J


# %% [markdown]
# In one formula:
#
# $$J_{ij} = rstd \left( [i{=}j] - \frac1C - \frac1C \, xhat_i \, xhat_j \right)$$
#
# The three terms are the three ways: direct, through the mean, through the variance.
#
# **Predict.** Add the same number to all $C$ numbers of a row. How does the output of layernorm
# change? So what must each row of $J$ sum to?

# %%
EPS = 1e-5  # GPT-2's
gain, bias = rng.normal(size=C), rng.normal(size=C)
out, (xhat, rstd, _) = layernorm(x, gain, bias, EPS)  # (N, C), (N, C), (N, 1)
J = layernorm_jacobian(xhat[0], rstd[0, 0])  # (C, C)
print(J.round(2))
print("its rows sum to", J.sum(axis=1).round(15))
assert relative_error(layernorm(x + 7, gain, bias, EPS)[0], out) < 1e-13
assert np.abs(J.sum(axis=1)).max() < 1e-13

# %% [markdown]
# **Answer.** The mean removes the added number, so nothing changes. $\sum_j J_{ij}$ says how fast
# $xhat_i$ changes if all numbers of the row grow together. So each row of $J$ sums to 0.

# %% [markdown]
# With $J$ the chain rule is $dx_j = \sum_i dxhat_i \, J_{ij}$, a row times a matrix, for each of
# the $N$ rows. This is right, as the check below shows. But it is wasteful: in GPT-2, with
# $C = 768$, each token would need a matrix of 589,824 numbers. All of them follow from the 768
# numbers of $xhat$ and from $rstd$.

# %%
assert 768 * 768 == 589_824
dout = rng.normal(size=(N, C))
dxhat = dout * gain  # (N, C)
jacobians = [layernorm_jacobian(xhat[n], rstd[n, 0]) for n in range(N)]  # N times (C, C)
dx = np.stack([dxhat[n] @ jacobians[n] for n in range(N)])  # (N, C)


def layernorm_loss(x):
    return (dout * layernorm(x, gain, bias, EPS)[0]).sum()


check("dx", dx, layernorm_loss, x)

# %% [markdown]
# ### Exercise 2.10: `layernorm_backward`
#
# *25 minutes · difficulty 4 of 5*
#
# Put the formula for $J_{ij}$ into $\sum_i dxhat_i \, J_{ij}$ and work out the sum, term by term,
# until no matrix is left. Then write the backward without a Jacobian and without a loop. `dout` is
# $(N, C)$. Return `dx`, $(N, C)$.


# %%
def layernorm_backward(dout, cache):
    xhat, rstd, gain = cache  # (N, C), (N, 1), (C,)
    dxhat = ...  # (N, C)
    dx = ...  # (N, C)
    return dx


grade(layernorm_backward)

# %% [markdown]
# <details><summary>Hint 1</summary>
#
# $\sum_i dxhat_i \, [i{=}j]$ is $dxhat_j$. In the other two terms, move everything that does not
# depend on $i$ in front of the sum.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# Two means over the row remain, one number for each row: $\frac1C \sum_i dxhat_i$, and
# $\frac1C \sum_i dxhat_i \, xhat_i$. Compute each with `keepdims=True`.
#
# </details>
#
# <details><summary>Hint 3</summary>
#
# $$\begin{aligned} dx_j = rstd \Big( & dxhat_j - \frac1C \sum_i dxhat_i \\
# & - xhat_j \cdot \frac1C \sum_i dxhat_i \, xhat_i \Big) \end{aligned}$$
#
# </details>


# %% jupyter={"source_hidden": true}
def layernorm_backward(dout, cache):
    xhat, rstd, gain = cache
    dxhat = dout * gain  # (N, C)
    mean_dxhat = dxhat.mean(axis=1, keepdims=True)  # (N, 1)
    mean_dxhat_xhat = (dxhat * xhat).mean(axis=1, keepdims=True)  # (N, 1)
    dx = rstd * (dxhat - mean_dxhat - xhat * mean_dxhat_xhat)  # (N, C)
    return dx


# %% [markdown]
# The three ways are still there: direct, through the mean, through the variance. Students often
# leave the second or the third one out. [Break it yourself](#break-it-yourself) shows what happens
# then.
#
# ### Exercise 2.11: `layernorm_backward_params`
#
# *5 minutes · difficulty 2 of 5*
#
# The other half, for a layernorm that is trained: `dgain` and `dbias`, both $(C)$. Only the last
# line of the forward counts, $out_{ni} = xhat_{ni} \cdot gain_i + bias_i$. Ask where $gain_i$
# occurs.


# %%
def layernorm_backward_params(dout, cache):
    xhat, rstd, gain = cache  # (N, C), (N, 1), (C,)
    dgain = ...  # (C,)
    dbias = ...  # (C,)
    return dgain, dbias


grade(layernorm_backward_params)

# %% [markdown]
# <details><summary>Hint 1</summary>
#
# $gain_i$ occurs in column $i$, in each of the $N$ rows, with the factor $xhat_{ni}$.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# The sums run over the rows: `axis=0`. $bias_i$ occurs in the same places, with the factor 1.
#
# </details>


# %% jupyter={"source_hidden": true}
def layernorm_backward_params(dout, cache):
    xhat, _, _ = cache
    dgain = (dout * xhat).sum(axis=0)  # (C,)
    dbias = dout.sum(axis=0)  # (C,)
    return dgain, dbias


# %%
_, cache = layernorm(x, gain, bias, EPS)
dgain, dbias = layernorm_backward_params(dout, cache)  # (C,), (C,)
check("dx", layernorm_backward(dout, cache), layernorm_loss, x)
check("dgain", dgain, lambda gain: (dout * layernorm(x, gain, bias, EPS)[0]).sum(), gain)
check("dbias", dbias, lambda bias: (dout * layernorm(x, gain, bias, EPS)[0]).sum(), bias)

# %% [markdown]
# **Recap.** In layernorm each input number reaches each output number of its row: directly, through
# the mean and through the variance. The Jacobian holds all these derivatives, and a backward does
# without it. If a number added to a whole row changes nothing, then each row of `dx` sums to 0.
#
# ## A third proof: another implementation
#
# The package has the same functions, with the same names and arguments, in two implementations:
# [reference](../minprefix/ops/reference.py) is written to be read, and
# [numpy_ops](../minprefix/ops/numpy_ops.py) to be fast. A fast backward may write into the arrays
# that it is given, so we give it copies.

# %%
from minprefix.ops import numpy_ops, reference


def check_layernorm(ops):
    """dx of `ops` against the complex step through our own layernorm."""
    _, cache = ops.layernorm(x, gain, bias, EPS)
    dx = ops.layernorm_backward(dout.copy(), cache)  # (N, C)
    error = relative_error(dx, complex_step(layernorm_loss, x))
    assert error < 1e-12, f"dx is off by {error:.2g} of its largest entry"


def check_law(ops):
    """Each row of dx is a sum of multiples of J's rows, and these sum to 0."""
    _, cache = ops.layernorm(x, gain, bias, EPS)
    total = np.abs(ops.layernorm_backward(dout.copy(), cache).sum(axis=1)).max()
    assert total < 1e-12, f"a row of dx sums to {total:.2g}, expected 0"


upstream = rng.normal(size=(N, F))
for ops in (reference, numpy_ops):
    check_layernorm(ops)
    check_law(ops)
    _, cache = ops.gelu(x.copy())
    dx = ops.gelu_backward(dout.copy(), cache)  # (N, C)
    assert relative_error(dx, gelu_backward(dout, gelu(x)[1])) < 1e-12
    dx = ops.linear_backward(upstream, W)  # (N, C)
    assert relative_error(dx, linear_backward(upstream, W)) < 1e-12
    for theirs, mine in zip(
        ops.linear_backward_params(upstream, x), linear_backward_params(upstream, x), strict=True
    ):
        assert relative_error(theirs, mine) < 1e-12
print("the package agrees, twice")

# %% [markdown]
# **Recap.** Two implementations that were written apart and agree to 12 digits hardly share a slip.
# A [law](glossary.md#law), such as "each row of `dx` sums to 0", needs no second implementation at
# all.
#
# ## A chain
#
# The steps can now be joined. The second half of each block of GPT-2 is this: layernorm, a linear
# layer that makes the rows wider, GELU, and a linear layer that makes them narrow again. The result
# is added to the input. (Lesson 6 gives a name to `x` and to this sum: they are the
# [residual stream](glossary.md#residual-stream).)


# %%
def chain(x, gain, bias, W_up, b_up, W_down, b_down, eps):
    a, ln = layernorm(x, gain, bias, eps)  # (N, C)
    h = linear(a, W_up, b_up)  # (N, F)
    g, act = gelu(h)  # (N, F)
    out = x + linear(g, W_down, b_down)  # (N, C)
    return out, (ln, act)


# %% [markdown]
# ### Exercise 2.12: `chain_backward`
#
# *10 minutes · difficulty 3 of 5*
#
# Write its backward. Use the functions that you have. The backward has a line for each line of the
# forward, in reverse order. Each line passes its result to the next one as `dout`. All weights are
# frozen, so only `dx` is wanted. `W_up` is $(C, F)$ and `W_down` is $(F, C)$. `caches` is
# `(ln, act)`.


# %%
def chain_backward(dout, caches, W_up, W_down):
    ln, act = caches
    dg = ...  # (N, F)
    dh = ...  # (N, F)
    da = ...  # (N, C)
    dx = ...  # (N, C)
    return dx


grade(chain_backward)

# %% [markdown]
# <details><summary>Hint 1</summary>
#
# `dg` is the gradient of the input of the last linear layer. `linear_backward` gives it.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# `x` occurs twice in the forward: in the layernorm and in the sum. The influences add up.
#
# </details>


# %% jupyter={"source_hidden": true}
def chain_backward(dout, caches, W_up, W_down):
    ln, act = caches
    dg = linear_backward(dout, W_down)  # (N, F)
    dh = gelu_backward(dg, act)  # (N, F)
    da = linear_backward(dh, W_up)  # (N, C)
    dx = dout + layernorm_backward(da, ln)  # (N, C)
    return dx


# %%
W_up, b_up = rng.normal(size=(C, F)), rng.normal(size=F)
W_down, b_down = rng.normal(size=(F, C)), rng.normal(size=C)
others = (gain, bias, W_up, b_up, W_down, b_down, EPS)
_, caches = chain(x, *others)
dx = chain_backward(dout, caches, W_up, W_down)  # (N, C)
check("dx", dx, lambda x: (dout * chain(x, *others)[0]).sum(), x)

# %% [markdown]
# Neither bias occurs in the backward, and the caches hold neither `a` nor `g`. Those two would only
# be needed for `dW`.
#
# **Recap.** The backward of a chain goes through the steps in reverse order. Where an array is used
# twice in the forward, its gradient has two summands.
#
# ## Break it yourself
#
# We [plant a bug](glossary.md#planted-bug) that students really write: the way through the mean is
# forgotten. Then we train with it. The simplest training of all changes $x$ itself, downhill, in
# small steps.
#
# **Predict.** Will the loss fall? Which checks notice the bug: the law, the complex step, or both?

# %%
broken = planted("mean-term-dropped")
print(broken)


def descend(ops, steps=5, rate=0.02):
    moving, losses = x.copy(), []
    for _ in range(steps):
        out, cache = ops.layernorm(moving, gain, bias, EPS)
        losses.append(float((dout * out).sum()))
        moving = moving - rate * ops.layernorm_backward(dout.copy(), cache)
    return np.array(losses)


right, wrong = descend(reference), descend(broken.reference)
print("right ", right.round(2))
print("broken", wrong.round(2))
assert np.all(np.diff(right) < 0)
assert relative_error(wrong, right) < 1e-12, "the two trainings differ"

with caught() as error:  # take this line away, and the lesson stops here
    check_law(broken.reference)
print(error)
with caught() as error:
    check_layernorm(broken.reference)
print(error)

# %% [markdown]
# **Answer.** The loss falls as before, to 12 digits, and both checks notice the bug. The missing
# term pushes all numbers of a row in the same direction, and the layernorm removes such a push.

# %% [markdown]
# In a model other steps read `x` as well, and they do not remove the push. A falling loss is no
# proof of a gradient.
#
# The second bug is its sister: the way through the variance is forgotten.
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
# **Answer.** It does not. Without that term the rows of $J$ still sum to 0.

# %% [markdown]
# A law is quick and needs no second implementation, but it sees only one kind of mistake. The
# comparison with a measured gradient sees both. Use both.
#
# For a function of your own, the package's `gradcheck` does the work of this lesson. It takes any
# forward and backward and compares them by the complex step, or by finite differences where complex
# numbers do not pass. It names the usual mistakes. On the command line it is
# `minprefix gradcheck my.py:gelu`.

# %%
from minprefix.gradcheck import gradcheck


def forward(x):
    return gelu(x)[0]


print(gradcheck(forward, lambda dout, x: gelu_backward(dout, gelu(x)[1]), x))
wrong = gradcheck(forward, lambda dout, x: 2 * gelu_backward(dout, gelu(x)[1]), x)
print(wrong.findings[0].hints)
assert not wrong

# %% [markdown]
# **Recap.** A gradient is proved by a comparison, not by a falling loss. A law is a cheap first
# check. The complex step is the check that decides.
#
# ## Remember
#
# - `dx` has the shape of `x`: $dx_j = \sum_i dout_i \, \partial out_i / \partial x_j$.
# - To find a backward, ask for each number: where does it occur in the forward, and with which
#   factor? Then add up.
# - Linear layer: `dx = dout @ W.T`, `dW = x.T @ dout`, `db = dout.sum(axis=0)`. A frozen layer
#   needs `dx` only.
# - Layernorm: three ways lead from `x` to the output, and the backward has three terms.
# - The backward of a chain runs in reverse order. An array that is used twice gets two summands.
# - Test a backward with the loss `(dout * out).sum()`, a random `dout`, and the complex step.
# - A falling loss does not prove that a gradient is right, and a law sees one kind of mistake only.
#
# ## Exercises
#
# **1.** *RMSNorm* is layernorm without the mean: $rrms = 1 / \sqrt{\frac1C \sum_j x_j^2 + eps}$ and
# $out_i = x_i \cdot rrms \cdot gain_i$. Newer models than GPT-2 use it. Derive its `dx` on paper,
# and prove it with your tools. Does each row of its `dx` sum to 0? (20 minutes, difficulty 3 of 5.)
#
# <details><summary>Solution 1</summary>
#
# With $xhat_i = x_i \cdot rrms$ and $dxhat = dout \odot gain$, one way is missing, the one through
# the mean: $dx_j = rrms \left( dxhat_j - xhat_j \cdot \frac1C \sum_i dxhat_i \, xhat_i \right)$. A
# number added to a whole row does change the output, so the rows of `dx` need not sum to 0.
#
# ```python
# def rmsnorm(x):
#     rrms = 1 / np.sqrt((x * x).mean(axis=1, keepdims=True) + EPS)  # (N, 1)
#     return x * rrms * gain, x * rrms, rrms
#
#
# _, xhat_rms, rrms = rmsnorm(x)
# dxhat = dout * gain  # (N, C)
# dx = rrms * (dxhat - xhat_rms * (dxhat * xhat_rms).mean(axis=1, keepdims=True))  # (N, C)
# check("dx", dx, lambda x: (dout * rmsnorm(x)[0]).sum(), x)
# print("its rows sum to", dx.sum(axis=1).round(2))
# assert np.abs(dx.sum(axis=1)).max() > 0.1
# ```
#
# </details>
#
# **2.** The complex step has a condition: complex numbers must pass through the function. Measure
# the gradient of `np.abs(x).sum()` with both tools. Which one is wrong, and why does it give no
# error? (5 minutes, difficulty 2 of 5.)
#
# <details><summary>Solution 2</summary>
#
# The gradient is the sign of each number, and finite differences find it. For a complex number
# `np.abs` is $\sqrt{a^2 + b^2}$, which is real. The imaginary part is lost, so the complex step
# returns 0 everywhere, without a warning. The same happens with `.real`, or with a conversion to
# float. This is one reason why `check` asks both tools.
#
# ```python
# def size(x):
#     return np.abs(x).sum()
#
#
# assert np.abs(finite_differences(size, x) - np.sign(x)).max() < 1e-6
# assert np.abs(complex_step(size, x)).max() == 0
# ```
#
# </details>
#
# Next: [Softmax and cross-entropy](03_softmax_and_cross_entropy.py).
