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
# One attention head, as in lesson 4: a sequence of $T$ tokens, each with a query, a key and a
# value, $q, k, v \in \mathbb{R}^{T \times hs}$. Prefix-tuning puts $P$ further keys and values
# before them, the *slots*, that belong to no token: $prefix_k$ and $prefix_v$, of the shape
# $(P, hs)$. They are free numbers, and they are all that is trained. There are no queries for them:
# nobody asks what comes after a slot. With the semicolon for "one above the other":
#
# $$keys = [prefix_k; \; k], \quad values = [prefix_v; \; v] \qquad (P + T, hs)$$
#
# $$scores = \frac{q \; keys^\top}{\sqrt{hs}}, \qquad pattern = \mathrm{softmax}(scores), \qquad
# z = pattern \; values$$
#
# The scores and the pattern have the shape $(T, P+T)$, and $z$ has $(T, hs)$ as before. The softmax
# is taken of each row. Token $i$ sees all $P$ slots and the tokens $0 \dots i$; the scores of what
# it does not see are $-\infty$ before the softmax, and their shares are 0 after it.

# %%
import numpy as np

rng = np.random.default_rng(0)
T, P, hs = 5, 3, 4
q, k, v = (rng.normal(size=(T, hs)) for _ in range(3))  # (T, hs) each
prefix_k, prefix_v = rng.normal(size=(2, P, hs))  # (P, hs) each

# row i sees column j if j is a slot, or a token that is not in i's future
visible = np.arange(P + T)[None, :] <= np.arange(T)[:, None] + P  # (T, P+T)


def head(q, k, v, prefix_k, prefix_v):
    keys = np.concatenate([prefix_k, k])  # (P+T, hs)
    values = np.concatenate([prefix_v, v])  # (P+T, hs)
    # from here on as in lesson 4
    scores = np.where(visible, q @ keys.T / hs**0.5, -np.inf)  # (T, P+T)
    e = np.exp(scores - scores.real.max(axis=1, keepdims=True))
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
# Ten: of the $5 \times 5$ pairs of tokens those with the key in the future. No slot is hidden from
# anyone, so the first three columns are full.
#
# ## Backward
#
# What lies behind the head (the rest of the model, then the loss $\ell$) tells us
# $dz = \partial \ell / \partial z$, of the shape $(T, hs)$. We walk the lines of the forward
# backwards, as in lesson 4, and look for the rows of the slots.
#
# 1. $z = pattern \; values$. So $dvalues = pattern^\top dz$, and the first $P$ of its $P + T$ rows
#    are the slots': $\; dprefix_v = dvalues_{:P}$. That is half of the answer already. And
#    $dpattern = dz \; values^\top$.
# 2. $pattern = \mathrm{softmax}(scores)$, row by row:
#
#    $$\begin{aligned} dscores_{ij} &= pattern_{ij} \, (dpattern_{ij} - rowsum_i), \\
#    rowsum_i &= \sum_m dpattern_{im} \, pattern_{im} \end{aligned}$$
#
#    The sum runs over all $P + T$ columns: the slots compete with the tokens for the same 1.
# 3. $scores = q \; keys^\top / \sqrt{hs}$. So
#
#    $$dq = \frac{dscores \; keys}{\sqrt{hs}}, \quad dkeys = \frac{dscores^\top q}{\sqrt{hs}}$$
#
#    and again the first $P$ rows are the slots': $\; dprefix_k = dkeys_{:P}$.
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
    dkeys = dscores.T @ q / hs**0.5  # (P+T, hs)
    dq = dscores @ keys / hs**0.5  # (T, hs)
    return dkeys[:P], dvalues[:P], dq, dkeys[P:], dvalues[P:]


dz = rng.normal(size=(T, hs))  # random: lesson 3 shows what an upstream of ones hides
dprefix_k, dprefix_v, dq, dk, dv = head_backward(dz, q, k, v, prefix_k, prefix_v)
print("dprefix_k", dprefix_k.shape, " dprefix_v", dprefix_v.shape)

# %% [markdown]
# ## First proof: finite differences
#
# The loss that fits a random $dz$ is $\ell = \sum dz \odot z$, as before. Move one number of the
# prefix up and down by $\epsilon = 10^{-6}$, and look at $\ell$. The two values agree in their
# first six digits or so; the subtraction loses these, and some ten of sixteen are left.

# %%


def loss(prefix_k, prefix_v):
    return (dz * head(q, k, v, prefix_k, prefix_v)[0]).sum()


def relative_error(a, b):
    """The largest difference, as a part of the largest number: 1 means all wrong."""
    return np.abs(a - b).max() / np.abs(b).max()


def finite_differences(f, x, eps=1e-6):
    grads = np.zeros(x.shape)
    for index in np.ndindex(x.shape):
        step = np.zeros(x.shape)
        step[index] = eps
        grads[index] = (f(x + step) - f(x - step)) / (2 * eps)
    return grads  # like x


of_k = finite_differences(lambda x: loss(x, prefix_v), prefix_k)  # (P, hs)
of_v = finite_differences(lambda x: loss(prefix_k, x), prefix_v)  # (P, hs)
print(f"dprefix_k is off by {relative_error(dprefix_k, of_k):.1e} of its largest entry")
print(f"dprefix_v is off by {relative_error(dprefix_v, of_v):.1e}")
assert relative_error(dprefix_k, of_k) < 1e-8
assert relative_error(dprefix_v, of_v) < 1e-8

# %% [markdown]
# ## Second proof: the complex step
#
# `head` is built of functions that take complex numbers, too. So the derivative is the imaginary
# part of $\ell(x + i\epsilon)$, divided by $\epsilon = 10^{-30}$, as in
# [lesson 2](02_backward_by_hand.py). Nothing is subtracted.
#
# **Predict.** By what factor will the error shrink against finite differences?

# %%


def complex_step(f, x, eps=1e-30):
    grads = np.zeros(x.shape)
    for index in np.ndindex(x.shape):
        moved = x.astype(complex)
        moved[index] += 1j * eps
        grads[index] = f(moved).imag / eps
    return grads  # like x


exact_k = complex_step(lambda x: loss(x, prefix_v), prefix_k)  # (P, hs)
exact_v = complex_step(lambda x: loss(prefix_k, x), prefix_v)  # (P, hs)
print(f"dprefix_k is off by {relative_error(dprefix_k, exact_k):.1e} of its largest entry")
print(f"dprefix_v is off by {relative_error(dprefix_v, exact_v):.1e}")
assert relative_error(dprefix_k, exact_k) < 1e-13
assert relative_error(dprefix_v, exact_v) < 1e-13

# %% [markdown]
# About a million: from ten digits to all sixteen. What the first proof measured was its own error,
# not ours.
#
# ## Third proof: another implementation
#
# The package has this operation for many heads and many sequences at once, twice:
# [reference](../minprefix/ops/reference.py) to be read, [numpy_ops](../minprefix/ops/numpy_ops.py)
# to be fast. It takes the stream of lesson 4, $(N, NH, hs)$ with its `offsets`, and two lists: for
# each sequence the keys of its slots, and the values, $(NH, P, hs)$ each. We have one sequence and
# one head.

# %%
from minprefix.ops import numpy_ops, reference


def check_prefix_gradient(ops):
    """The operations `ops` against the complex step."""
    stream = [a[:, None] for a in (q, k, v)]  # (T, 1, hs) each: one head
    slots = [prefix_k[None]], [prefix_v[None]]  # of one sequence: (1, P, hs) each
    _, cache = ops.attention(*stream, *slots, np.array([0, T]))
    grads = ops.attention_backward(dz[:, None].copy(), cache)
    # [0][0] is head 0 of sequence 0
    error_v = relative_error(grads.dprefix_v[0][0], exact_v)
    assert error_v < 1e-13, f"dprefix_v is off by {error_v:.2g} of its largest entry"
    error_k = relative_error(grads.dprefix_k[0][0], exact_k)
    assert error_k < 1e-13, f"dprefix_k is off by {error_k:.2g} of its largest entry"


for ops in (reference, numpy_ops):
    check_prefix_gradient(ops)
print("the package agrees, twice")

# %% [markdown]
# ## A law, for free
#
# The first law of lesson 4 holds here, too, and the slots are in it. Push all keys in one
# direction, all by the same amount: every score of a row changes by the same number, the softmax
# does not notice, and neither does the loss. So the gradients of all $P + T$ keys sum to 0:
#
# $$\sum_{j} dkeys_j = 0$$
#
# **Predict.** A backward that forgets the factor $1/\sqrt{hs}$: does this law notice?

# %%


def check_law(dprefix_k, dk):
    total = np.abs(dprefix_k.sum(axis=0) + dk.sum(axis=0)).max()
    assert total < 1e-13, f"the gradients of all keys sum to {total:.2g}, expected 0"


check_law(dprefix_k, dk)
check_law(hs**0.5 * dprefix_k, hs**0.5 * dk)  # wrong, and the law holds all the same
print("the law holds for both")

# %% [markdown]
# A law needs no second implementation, and it is blind to a missing scale or a flipped sign. A
# comparison with an exact gradient is not.
#
# ## Break it yourself
#
# A bug that people really ship: the sum in step 2 runs over the tokens only, as if the slots stood
# outside of the softmax.
#
# **Predict.** Which of the two asserts of `check_prefix_gradient` fires? Does the law notice?

# %%
from minprefix.lessons import caught, planted

broken = planted("row-sum-over-the-tokens-alone")
print(broken)

with caught() as error:  # take this line away, and the lesson stops here
    check_prefix_gradient(broken.reference)
print(error)

stream, slots = [a[:, None] for a in (q, k, v)], ([prefix_k[None]], [prefix_v[None]])
_, cache = broken.reference.attention(*stream, *slots, np.array([0, T]))
wrong = broken.reference.attention_backward(dz[:, None].copy(), cache)
assert wrong.dprefix_k[0].shape == (1, P, hs)
assert np.isfinite(wrong.dprefix_k[0]).all()
with caught() as error:
    check_law(wrong.dprefix_k[0][0], wrong.dk[:, 0])
print(error)

# %% [markdown]
# `dprefix_v` is right: the values do not pass through the softmax. It is the second assert that
# fires, and the law sees this bug, too.
#
# What would you have seen without them? No shape is wrong, no number is NaN. Let us train with it:
# $z$ should become a random $goal$, the loss is $\frac12 \sum (z - goal)^2$, and its upstream is
# $dz = z - goal$.
#
# **Predict.** Will the loss fall?

# %%
goal = rng.normal(size=(T, 1, hs))  # like the stream: one head


def descend(ops, steps=201, rate=0.3):
    """The loss before each step; prefix_k and prefix_v go downhill."""
    slots, losses = [prefix_k[None].copy(), prefix_v[None].copy()], []
    for _ in range(steps):
        stream = (a[:, None] for a in (q, k, v))
        z, cache = ops.attention(*stream, [slots[0]], [slots[1]], np.array([0, T]))
        losses.append(0.5 * ((z - goal) ** 2).sum())
        grads = ops.attention_backward(z - goal, cache)
        slots[0] -= rate * grads.dprefix_k[0]
        slots[1] -= rate * grads.dprefix_v[0]
    return losses


sound, unsound = descend(reference), descend(broken.reference)
print("sound ", np.round(sound[::25], 2))
print("broken", np.round(unsound[::25], 2))
assert sound[-1] < 0.3 * sound[0]
assert unsound[-1] < 0.3 * unsound[0], "it falls, too"

# %% [markdown]
# As well as with the right gradient. The values learn as they should and make up for keys that are
# pushed somewhere; on the curve nobody would see it.
#
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
# assert (np.abs(z_zeros) < np.abs(z_without)).all()
# ```
#
# </details>
#
# **2.** Show on paper why $\sum_j dkeys_j = 0$, from the formulas of steps 2 and 3.
#
# <details><summary>Solution 2</summary>
#
# For every $i$, $\; \sum_j pattern_{ij} \, dpattern_{ij}$ is $rowsum_i$, and $\sum_j pattern_{ij}$
# is 1, so
#
# $$\sum_j dscores_{ij} = rowsum_i - 1 \cdot rowsum_i = 0$$
#
# $$\sum_j dkeys_j = \sum_i \Big( \sum_j dscores_{ij} \Big) \frac{q_i}{\sqrt{hs}} = 0$$
#
# </details>
#
# **3.** (Graded.) Write `attention_backward(dz, cache)` for many heads and many sequences. `dz`,
# `cache.q`, `cache.k` and `cache.v` are streams $(N, NH, hs)$, with `cache.offsets` $(B+1)$. The
# rest are lists with an array for each sequence: `cache.prefix_k` and `cache.prefix_v`
# $(NH, P, hs)$, where $P$ may differ from one to the next, and `cache.pattern` $(NH, T, P+T)$.
# Return `dq, dk, dv, dprefix_k, dprefix_v`, shaped like what they are gradients of. (Write
# `hs**0.5`, as in lesson 4: float32 has to stay float32.)
#
# Where the report names a wrong gradient and you do not see why, let the function tell its steps.
# Give it a third argument, `record`, and write `record("dscores", dscores)` where that step is
# computed, for each sequence. `grade` compares `dvalues`, `dpattern`, `row_sum`, `dscores`, `dkeys`
# and `dq`, heads first as above, and names the first that is wrong.

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
# </details>
#
# Next: [GPT-2 from its file](06_gpt2_from_its_file.py).
