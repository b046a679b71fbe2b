# %% [markdown]
# # The gradient of a prefix
#
# - **You will be able to** derive the gradient of a prefix's keys and values for one attention
#   head, write it in ten lines of NumPy, and prove it in three unlike ways.
# - **You need** the backward of attention without a prefix: [lesson 4](04_attention.py).
# - **Time** 40 minutes; it runs in 2 seconds.
# - **Difficulty** 2 of 3.
#
# ## Forward
#
# One attention head sees a sequence of $T$ tokens. Each token has a query, a key and a value, rows
# of $hs$ numbers (the *head size*): $q, k, v \in \mathbb{R}^{T \times hs}$. Prefix-tuning puts $P$
# further keys and values before them, the *slots*, that belong to no token:
# $k^{pre}, v^{pre} \in \mathbb{R}^{P \times hs}$. They are free numbers, and they are all that is
# trained. There are no queries for them: nobody asks what comes after a slot.
#
# $$K = \begin{bmatrix} k^{pre} \\ k \end{bmatrix}, \quad
# V = \begin{bmatrix} v^{pre} \\ v \end{bmatrix}, \qquad
# scores = \frac{q K^\top}{\sqrt{hs}}, \quad
# pattern = \mathrm{softmax}(scores), \quad z = pattern \, V$$
#
# The softmax is taken of each row. Token $i$ sees all $P$ slots and the tokens $0 \dots i$; the
# scores of what it does not see are $-\infty$ before the softmax, and 0 after it.

# %%
import numpy as np

rng = np.random.default_rng(0)
T, P, hs = 5, 3, 4
q, k, v = (rng.normal(size=(T, hs)) for _ in range(3))
prefix_k, prefix_v = rng.normal(size=(P, hs)), rng.normal(size=(P, hs))

# row i sees column j if j is one of the P slots, or a token that is not in i's future
visible = np.arange(P + T)[None, :] <= np.arange(T)[:, None] + P  # (T, P+T)


def head(q, k, v, prefix_k, prefix_v):
    keys = np.concatenate([prefix_k, k])  # (P+T, hs)
    values = np.concatenate([prefix_v, v])  # (P+T, hs)
    scores = np.where(visible, q @ keys.T / np.sqrt(hs), -np.inf)  # (T, P+T)
    e = np.exp(scores - scores.real.max(axis=1, keepdims=True))  # the maximum cancels
    pattern = e / e.sum(axis=1, keepdims=True)  # (T, P+T), each row sums to 1
    return pattern @ values, pattern  # z (T, hs)


z, pattern = head(q, k, v, prefix_k, prefix_v)

# %% [markdown]
# **Predict.** How many of the $5 \times 8$ entries of the pattern are exactly 0? (Which pairs of a
# query and a key are hidden?)

# %%
print(pattern.round(2))
hidden = int((pattern == 0).sum())
print(hidden, "entries are hidden")
assert hidden == T * (T - 1) // 2  # the tokens in the future; a slot is never hidden
assert np.allclose(pattern.sum(axis=1), 1)

# %% [markdown]
# ## Backward
#
# What lies behind the head (the rest of the model, then the loss $\ell$) tells us
# $dz = \partial \ell / \partial z$, a number for each number of $z$. We walk the lines of the
# forward backwards.
#
# 1. $z = pattern \, V$. So $dV = pattern^\top dz$, and the prefix's values are the first $P$ rows
#    of $V$: $\; dv^{pre} = (pattern^\top dz)_{:P}$. That is half of the answer already. And
#    $dpattern = dz \, V^\top$.
# 2. $pattern = \mathrm{softmax}(scores)$, row by row:
#    $\; dscores_{ij} = pattern_{ij} \, (dpattern_{ij} - \sum_m dpattern_{im} \, pattern_{im})$. The
#    sum runs over all $P + T$ columns: the slots compete with the tokens for the same 1.
# 3. $scores = q K^\top / \sqrt{hs}$. So $dK = dscores^\top q / \sqrt{hs}$, and again the first $P$
#    rows are ours: $\; dk^{pre} = (dscores^\top q)_{:P} / \sqrt{hs}$.
#
# Nothing in these lines knows that a slot is not a token. That is the whole secret of the gradient
# of a prefix: it is the gradient of keys and values, and we keep the rows that have no token.

# %%


def head_backward(dz, q, k, v, prefix_k, prefix_v):
    keys = np.concatenate([prefix_k, k])  # (P+T, hs)
    values = np.concatenate([prefix_v, v])  # (P+T, hs)
    _, pattern = head(q, k, v, prefix_k, prefix_v)
    dvalues = pattern.T @ dz  # (P+T, hs)
    dpattern = dz @ values.T  # (T, P+T)
    row_sum = (dpattern * pattern).sum(axis=1, keepdims=True)  # (T, 1)
    dscores = pattern * (dpattern - row_sum)  # (T, P+T)
    dkeys = dscores.T @ q / np.sqrt(hs)  # (P+T, hs)
    dq = dscores @ keys / np.sqrt(hs)  # (T, hs)
    return dkeys[:P], dvalues[:P], dq, dkeys[P:], dvalues[P:]


dz = rng.normal(size=(T, hs))  # random: lesson 3 shows what an upstream of ones hides
dprefix_k, dprefix_v, dq, dk, dv = head_backward(dz, q, k, v, prefix_k, prefix_v)
print("dprefix_k", dprefix_k.shape, " dprefix_v", dprefix_v.shape)

# %% [markdown]
# ## First proof: finite differences
#
# We need a loss whose gradient with respect to $z$ is $dz$: $\; \ell = \sum dz \odot z$ is one
# ($\odot$ multiplies entry by entry). Move one number of the prefix up and down a little, and look
# at $\ell$:
#
# $$\frac{\partial \ell}{\partial x} \approx \frac{\ell(x + \epsilon) - \ell(x - \epsilon)}{2
# \epsilon}$$
#
# Two numbers that agree in half of their digits are subtracted, so about half of the digits are
# lost.

# %%


def loss(prefix_k, prefix_v):
    return (dz * head(q, k, v, prefix_k, prefix_v)[0]).sum()


def relative_error(a, b):
    """The largest difference, as a part of the largest number: 1 means all wrong."""
    return np.abs(a - b).max() / np.abs(b).max()


def by_finite_differences(eps=1e-6):
    grads = np.zeros((2, P, hs))  # of the keys, of the values
    for index in np.ndindex(grads.shape):
        step = np.zeros((2, P, hs))
        step[index] = eps
        up = loss(prefix_k + step[0], prefix_v + step[1])
        down = loss(prefix_k - step[0], prefix_v - step[1])
        grads[index] = (up - down) / (2 * eps)
    return grads


differences = by_finite_differences()
print("dprefix_k", relative_error(dprefix_k, differences[0]))
print("dprefix_v", relative_error(dprefix_v, differences[1]))
assert relative_error(dprefix_k, differences[0]) < 1e-8
assert relative_error(dprefix_v, differences[1]) < 1e-8

# %% [markdown]
# ## Second proof: the complex step
#
# `head` is built of functions that take complex numbers, too, and for those
# $\ell(x + i\epsilon) = \ell(x) + i\epsilon\, \ell'(x) + O(\epsilon^2)$. The derivative is the
# imaginary part divided by $\epsilon$. Nothing is subtracted, so $\epsilon$ may be $10^{-30}$, and
# every digit is right. (That is why `head` takes the maximum of `scores.real`: a complex number has
# no order. The maximum only keeps `exp` from overflowing, and cancels.)
#
# **Predict.** By what factor will the error shrink against finite differences?

# %%


def by_complex_step(eps=1e-30):
    grads = np.zeros((2, P, hs))
    for index in np.ndindex(grads.shape):
        step = np.zeros((2, P, hs), complex)
        step[index] = 1j * eps
        grads[index] = loss(prefix_k + step[0], prefix_v + step[1]).imag / eps
    return grads


exact = by_complex_step()
print("dprefix_k", relative_error(dprefix_k, exact[0]))
print("dprefix_v", relative_error(dprefix_v, exact[1]))
assert relative_error(dprefix_k, exact[0]) < 1e-13
assert relative_error(dprefix_v, exact[1]) < 1e-13

# %% [markdown]
# ## Third proof: another implementation
#
# The package has this operation for many heads and many sequences at once, twice:
# [reference](../minprefix/ops/reference.py) to be read, [numpy_ops](../minprefix/ops/numpy_ops.py)
# to be fast. It takes a *stream*, all sequences behind one another, and `offsets`, where each of
# them begins and the last one ends. Tokens have the shape $(N, NH, hs)$: $N$ tokens of all
# sequences, $NH$ heads. The prefix of each sequence is one array of a list, $(NH, P, hs)$. We have
# one sequence and one head.

# %%
from minprefix.ops import numpy_ops, reference


def check_prefix_gradient(ops):
    """The operations `ops` against the complex step."""
    stream = [a[:, None] for a in (q, k, v)]  # (T, 1, hs): one head
    _, cache = ops.attention(*stream, [prefix_k[None]], [prefix_v[None]], np.array([0, T]))
    grads = ops.attention_backward(dz[:, None].copy(), cache)
    error_v = relative_error(grads.dprefix_v[0][0], exact[1])
    assert error_v < 1e-13, f"dprefix_v is off by {error_v:.2g} of its largest entry"
    error_k = relative_error(grads.dprefix_k[0][0], exact[0])
    assert error_k < 1e-13, f"dprefix_k is off by {error_k:.2g} of its largest entry"


for ops in (reference, numpy_ops):
    check_prefix_gradient(ops)
print("the package agrees, twice")

# %% [markdown]
# ## A law, for free
#
# Each row of the pattern sums to 1, whatever the scores are. Push all keys in one direction, all by
# the same amount: every score of a row changes by the same number, the softmax does not notice, and
# neither does the loss. So the gradient of all keys together, slots and tokens, must be 0:
#
# $$\sum_{j} dK_j = 0$$
#
# **Predict.** A backward that forgets the factor $1/\sqrt{hs}$: does this law notice?

# %%


def check_law(dprefix_k, dk):
    total = np.abs(dprefix_k.sum(axis=0) + dk.sum(axis=0)).max()
    assert total < 1e-13, f"the gradients of all keys sum to {total:.2g}, expected 0"


check_law(dprefix_k, dk)
check_law(np.sqrt(hs) * dprefix_k, np.sqrt(hs) * dk)  # wrong, and the law holds all the same
print("the law holds for both")

# %% [markdown]
# A law needs no second implementation, and it is blind to a missing scale or a flipped sign. A
# comparison with an exact gradient is not.
#
# ## Break it yourself
#
# A bug that people really ship: the sum in step 2 runs over the tokens only, as if the slots stood
# outside of the softmax. `planted` puts a bug of the zoo, a collection of 162 of them, into a copy
# of the package. `caught` is a guard: it holds the `assert` that fails, so that the lesson goes on.
#
# **Predict.** Which of the two asserts of `check_prefix_gradient` fires? Does the law notice?

# %%
from minprefix.lessons import caught, planted

broken = planted("row-sum-over-the-tokens-alone")
print(broken)

with caught() as error:  # take this line away, and the lesson stops here
    check_prefix_gradient(broken.reference)
print(error)

# %% [markdown]
# `dprefix_v` is right: the values do not pass through the softmax. What would you have seen without
# this check? A loss that falls, since the values learn as they should and the keys are pushed
# somewhere. Only it does not fall as far. No shape is wrong, no number is NaN.

# %%
print(broken.see)
_, cache = broken.reference.attention(
    q[:, None], k[:, None], v[:, None], [prefix_k[None]], [prefix_v[None]], np.array([0, T])
)
wrong = broken.reference.attention_backward(dz[:, None], cache)
assert wrong.dprefix_k[0].shape == (1, P, hs)
assert np.isfinite(wrong.dprefix_k[0]).all()

with caught() as error:  # the law sees this one
    check_law(wrong.dprefix_k[0][0], wrong.dk[:, 0])
print(error)

# %% [markdown]
# ## Exercises
#
# **1.** With $P$ slots of zeros, keys and values, is $z$ the same as without a prefix? Say why
# before you compute it.
#
# <details><summary>Solution 1</summary>
#
# No. A key of zeros has the score 0, and $e^0 = 1$ is a share of the softmax like any other. The
# slots draw that share away from the tokens and give zeros for it: $z$ shrinks.
#
# ```python
# zeros = np.zeros((P, hs))
# z_zeros, pattern_zeros = head(q, k, v, zeros, zeros)
# tokens = pattern_zeros[:, P:]  # (T, T)
# z_without = tokens / tokens.sum(axis=1, keepdims=True) @ v  # the softmax over the tokens alone
# print(np.abs(z_zeros - z_without).max())
# ```
#
# </details>
#
# **2.** Show on paper why $\sum_j dK_j = 0$, from the formula of step 2.
#
# <details><summary>Solution 2</summary>
#
# $\sum_j dscores_{ij} = \sum_j pattern_{ij} \, dpattern_{ij} - (\sum_j pattern_{ij}) \sum_m
# dpattern_{im} \, pattern_{im} = 0$ for every $i$, since a row of the pattern sums to 1. And
# $\sum_j dK_j = \sum_i (\sum_j dscores_{ij}) \, q_i / \sqrt{hs}$.
#
# </details>
#
# **3.** (Graded.) Write `attention_backward(dz, cache)` for many heads and many sequences. The
# cache holds `q, k, v` $(N, NH, hs)$, `offsets` $(B+1)$, and a list with an array for each sequence
# of `prefix_k, prefix_v` $(NH, P, hs)$, where $P$ may differ, and of `pattern` $(NH, T, P+T)$.
# Return `dq, dk, dv, dprefix_k, dprefix_v`, shaped like what they are gradients of. The reference
# suite grades it here; in a file of your own it is `minprefix check my_ops.py`.

# %%
from minprefix.lessons import grade


def attention_backward(dz, cache):
    raise NotImplementedError  # yours


grade(attention_backward)

# %% [markdown]
# <details><summary>Solution 3</summary>
#
# ```python
# def attention_backward(dz, cache):
#     dq, dk, dv = (np.zeros_like(a) for a in (cache.q, cache.k, cache.v))  # (N, NH, hs) each
#     dprefix_k, dprefix_v = [], []
#     for b, pattern in enumerate(cache.pattern):  # (NH, T, P+T)
#         start, end = cache.offsets[b], cache.offsets[b + 1]
#         P, hs = cache.prefix_k[b].shape[1:]
#         # heads first: (NH, T, hs)
#         q, k, v, dz_b = (a[start:end].swapaxes(0, 1) for a in (cache.q, cache.k, cache.v, dz))
#         keys = np.concatenate([cache.prefix_k[b], k], axis=1)  # (NH, P+T, hs)
#         values = np.concatenate([cache.prefix_v[b], v], axis=1)  # (NH, P+T, hs)
#         dvalues = pattern.swapaxes(1, 2) @ dz_b  # (NH, P+T, hs)
#         dpattern = dz_b @ values.swapaxes(1, 2)  # (NH, T, P+T)
#         row_sum = (dpattern * pattern).sum(axis=2, keepdims=True)  # (NH, T, 1)
#         dscores = pattern * (dpattern - row_sum)  # (NH, T, P+T)
#         dkeys = dscores.swapaxes(1, 2) @ q / hs**0.5  # (NH, P+T, hs)
#         dq[start:end] = (dscores @ keys / hs**0.5).swapaxes(0, 1)
#         dk[start:end] = dkeys[:, P:].swapaxes(0, 1)
#         dv[start:end] = dvalues[:, P:].swapaxes(0, 1)
#         dprefix_k.append(dkeys[:, :P])
#         dprefix_v.append(dvalues[:, :P])
#     return dq, dk, dv, dprefix_k, dprefix_v
#
#
# grade(attention_backward)
# ```
#
# (`hs**0.5` and not `np.sqrt(hs)`: the latter is a float64 of NumPy's, and makes float64 of every
# float32 that it meets. The suite notices.)
#
# </details>
#
# Next: [GPT-2 from its file](06_gpt2_from_its_file.py).
