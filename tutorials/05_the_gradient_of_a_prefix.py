# %% [markdown]
# # The gradient of a prefix
#
# - **You will be able to** derive the gradient of a prefix's keys and values, write it in NumPy for
#   one head and then for many heads and sequences, and prove it in three different ways.
# - **You need** the backward of attention without a prefix: [lesson 4](04_attention.py).
# - **Time** 120 minutes; it runs in 2 seconds.
# - **Difficulty** 4 of 5.
#
# ## Overview
#
# - A prefix gives each sequence $P$ further keys and values. Every token sees all of them.
# - Its gradient comes from the backward of attention that you know. The first $P$ rows of two
#   arrays are the answer.
# - Finite differences confirm about ten digits of this gradient, and the complex step all sixteen.
# - Your backward for many heads and many sequences passes the reference suite.
# - A law finds a real bug without any second gradient. It does not notice a missing scale.
# - With that bug the loss falls as far as without it: from 8.59 to 1.81 in 200 steps, where the
#   right gradient gives 1.80.
#
# ## Forward: slots before the tokens
#
# We take one attention head, as in lesson 4. A sequence has $T$ tokens, and each of them has a
# query, a key and a value: $q, k, v \in \mathbb{R}^{T \times hs}$. A [prefix](glossary.md#prefix)
# adds $P$ keys and $P$ values that belong to no token. Each of these $P$ places is a
# [slot](glossary.md#slot). The slots' keys are $prefix_k$ and their values are $prefix_v$, of the
# shape $(P, hs)$ each. Training changes these numbers and nothing else.
#
# The slots stand before the tokens. A semicolon puts one array above the other:
#
# $$keys = [prefix_k; \; k], \quad values = [prefix_v; \; v] \qquad (P + T, hs)$$
#
# $$scores = \frac{q \; keys^\top}{\sqrt{hs}}, \qquad pattern = \mathrm{softmax}(scores), \qquad
# z = pattern \; values$$
#
# The scores and the pattern have the shape $(T, P+T)$. The output $z$ has the shape $(T, hs)$, as
# before. A slot has no query: with one, the head would compute an output at the slot, and the model
# never reads that output.
#
# Token $i$ sees all $P$ slots and the tokens $0 \dots i$. All other scores are set to $-\infty$
# before the softmax, so their shares are 0 after it. The picture shows which token sees which
# column, for $T = 5$ and $P = 3$.

# %%
import numpy as np

from minprefix.lessons import drawings, grade

rng = np.random.default_rng(0)
T, P, hs = 5, 3, 4
q, k, v = (rng.normal(size=(T, hs)) for _ in range(3))  # (T, hs) each
prefix_k, prefix_v = rng.normal(size=(2, P, hs))  # (P, hs) each


def softmax(scores):  # lesson 3's: each row for itself
    e = np.exp(scores - scores.real.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


drawings.rectangle(T, P, only="forward")

# %% [markdown]
# ### Exercise 5.1: `visible`
#
# *5 minutes · difficulty 1 of 5*
#
# From the numbers $T$ and $P$, compute the mask of the shape $(T, P+T)$. It is `True` where the
# token of the row sees the slot or the token of the column. The first $P$ columns are the slots.


# %%
def visible(T, P):
    shown = ...  # (T, P+T)
    return shown


grade(visible)

# %% [markdown]
# <details><summary>Hint 1</summary>
#
# Number the columns from 0 to $P+T-1$. Which column does token $j$ have?
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# Token $j$ stands in column $P + j$. So row $i$ sees the columns up to $P + i$. Compare a row of
# the column numbers, `np.arange(P + T)[None, :]`, with a column of the row numbers.
#
# </details>


# %% jupyter={"source_hidden": true}
def visible(T, P):
    rows = np.arange(T)[:, None]  # (T, 1)
    columns = np.arange(P + T)[None, :]  # (1, P+T)
    shown = columns <= rows + P  # (T, P+T)
    return shown


# %% [markdown]
# One comparison is enough for slots and tokens: a slot's column is below $P$, so it is never above
# $i + P$. The diagonal of the last visible tokens begins in column $P$, not in column 0.
#
# ### Exercise 5.2: `head_with_slots`
#
# *8 minutes · difficulty 2 of 5*
#
# From `q`, `k`, `v` of the shape $(T, hs)$ and `prefix_k`, `prefix_v` of the shape $(P, hs)$,
# compute `z` of the shape $(T, hs)$ and the pattern of the shape $(T, P+T)$. Use `visible` and
# `softmax`.


# %%
def head_with_slots(q, k, v, prefix_k, prefix_v):
    keys = ...  # (P+T, hs)
    values = ...  # (P+T, hs)
    scores = ...  # before the mask: (T, P+T)
    pattern = ...  # (T, P+T)
    z = ...  # (T, hs)
    return z, pattern


grade(head_with_slots)

# %% [markdown]
# <details><summary>Hint 1</summary>
#
# `np.concatenate` puts arrays above one another. After that, the lines are those of lesson 4.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# `np.where(mask, scores, -np.inf)` hides what the mask does not show. Hide first, then take the
# softmax.
#
# </details>


# %% jupyter={"source_hidden": true}
def head_with_slots(q, k, v, prefix_k, prefix_v):
    T, P, hs = len(q), len(prefix_k), q.shape[1]
    keys = np.concatenate([prefix_k, k])  # (P+T, hs)
    values = np.concatenate([prefix_v, v])  # (P+T, hs)
    scores = q @ keys.T / hs**0.5  # before the mask: (T, P+T)
    pattern = softmax(np.where(visible(T, P), scores, -np.inf))  # (T, P+T)
    z = pattern @ values  # (T, hs)
    return z, pattern


# %% [markdown]
# Only the first two lines are new. The sizes are read from the arguments, so the function works for
# any $T$ and $P$, also for $P = 0$.
#
# **Predict.** How many of the $5 \times 8$ entries of the pattern are exactly 0?

# %%
z, pattern = head_with_slots(q, k, v, prefix_k, prefix_v)
print(pattern.round(2))
hidden = int((pattern == 0).sum())
print(hidden, "entries are 0")
assert hidden == T * (T - 1) // 2
assert (pattern[:, :P] > 0).all(), "a slot is hidden"
assert np.abs(pattern.sum(axis=1) - 1).max() < 1e-14, "a row does not sum to 1"

# %% [markdown]
# **Answer.** Ten. Of the $5 \times 5$ pairs of tokens, ten have their key in the query's future. No
# slot is hidden from any token, so the first three columns have no 0.

# %% [markdown]
# **Recap.** A prefix adds rows above the keys and above the values. The pattern becomes wider by
# $P$ columns. In each row, slots and tokens share one softmax.
#
# ## Backward: one step at a time
#
# The rest of the model and the loss $\ell$ lie behind this head. They give us the upstream
# $dz = \partial \ell / \partial z$, of the shape $(T, hs)$. We go through the lines of the forward
# in reverse order, as in lesson 4, and look for the gradients of the slots. In the rectangle they
# come from the first $P$ columns.

# %%
drawings.rectangle(T, P, only="backward")

# %% [markdown]
# The last line of the forward was $z = pattern \; values$. The value in row $j$ reached every $z_i$
# with the share $pattern_{ij}$, so
#
# $$dvalues = pattern^\top dz, \qquad dpattern = dz \; values^\top$$
#
# ### Exercise 5.3: `values_backward`
#
# *5 minutes · difficulty 2 of 5*
#
# From `dz` of the shape $(T, hs)$, `pattern` of the shape $(T, P+T)$ and the number `P`, compute
# the gradient of the slots' values, `dprefix_v`, and that of the tokens' values, `dv`.


# %%
def values_backward(dz, pattern, P):
    dvalues = ...  # (P+T, hs)
    dprefix_v = ...  # (P, hs)
    dv = ...  # (T, hs)
    return dprefix_v, dv


grade(values_backward)

# %% [markdown]
# <details><summary>Hint 1</summary>
#
# `dvalues` has a row for each row of `values`, in the same order.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# Slots come first. So `dvalues[:P]` belongs to them.
#
# </details>


# %% jupyter={"source_hidden": true}
def values_backward(dz, pattern, P):
    dvalues = pattern.T @ dz  # (P+T, hs)
    dprefix_v = dvalues[:P]  # (P, hs)
    dv = dvalues[P:]  # (T, hs)
    return dprefix_v, dv


# %% [markdown]
# That is half of the gradient of a prefix. Column $j$ of the pattern holds the share of slot $j$ in
# each token's output. The gradient of the slot's value is the sum of the rows of $dz$, each
# multiplied by its share.
#
# The line before was the softmax, of each row by itself. Lesson 3 found its backward:
#
# $$\begin{aligned} dscores_{ij} &= pattern_{ij} \, (dpattern_{ij} - row\_sum_i), \\
# row\_sum_i &= \sum_m dpattern_{im} \, pattern_{im} \end{aligned}$$
#
# The sum runs over all $P + T$ columns, because slots and tokens share the same softmax.
#
# ### Exercise 5.4: `scores_backward`
#
# *8 minutes · difficulty 3 of 5*
#
# From `dz` of the shape $(T, hs)$, `values` of the shape $(P+T, hs)$ and `pattern` of the shape
# $(T, P+T)$, compute `dscores`, of the shape of `pattern`.


# %%
def scores_backward(dz, values, pattern):
    dpattern = ...  # (T, P+T)
    row_sum = ...  # (T, 1)
    dscores = ...  # (T, P+T)
    return dscores


grade(scores_backward)

# %% [markdown]
# <details><summary>Hint 1</summary>
#
# An entry of `dpattern` is the dot product of one row of `dz` and one row of `values`.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# A row is one query. `row_sum` adds up the products of one row: `sum(axis=1, keepdims=True)`. The
# shape $(T, 1)$ can be subtracted from $(T, P+T)$.
#
# </details>
#
# <details><summary>Hint 3</summary>
#
# No mask is needed. Where a key is hidden, the pattern is 0. What does that make of `dscores`?
#
# </details>


# %% jupyter={"source_hidden": true}
def scores_backward(dz, values, pattern):
    dpattern = dz @ values.T  # (T, P+T)
    row_sum = (dpattern * pattern).sum(axis=1, keepdims=True)  # (T, 1)
    dscores = pattern * (dpattern - row_sum)  # (T, P+T)
    return dscores


# %% [markdown]
# The first line of the forward was $scores = q \; keys^\top / \sqrt{hs}$. A query met all keys, and
# a key met all queries. The scale stands in both gradients:
#
# $$dq = \frac{dscores \; keys}{\sqrt{hs}}, \qquad dkeys = \frac{dscores^\top q}{\sqrt{hs}}$$
#
# ### Exercise 5.5: `keys_backward`
#
# *6 minutes · difficulty 2 of 5*
#
# From `dscores` of the shape $(T, P+T)$, `q` of the shape $(T, hs)$, `keys` of the shape
# $(P+T, hs)$ and the number `P`, compute the gradient of the slots' keys, of the tokens' keys and
# of the queries.


# %%
def keys_backward(dscores, q, keys, P):
    dkeys = ...  # (P+T, hs)
    dprefix_k = ...  # (P, hs)
    dk = ...  # (T, hs)
    dq = ...  # (T, hs)
    return dprefix_k, dk, dq


grade(keys_backward)

# %% [markdown]
# <details><summary>Hint 1</summary>
#
# The split is the one that you made for the values.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# A query met the slots' keys as well as the tokens'. So `dq` uses all $P + T$ columns of `dscores`.
#
# </details>


# %% jupyter={"source_hidden": true}
def keys_backward(dscores, q, keys, P):
    hs = q.shape[1]
    dkeys = dscores.T @ q / hs**0.5  # (P+T, hs)
    dprefix_k = dkeys[:P]  # (P, hs)
    dk = dkeys[P:]  # (T, hs)
    dq = dscores @ keys / hs**0.5  # (T, hs)
    return dprefix_k, dk, dq


# %% [markdown]
# The three functions form the backward of the whole head. Put them together.
#
# ### Exercise 5.6: `backward_with_slots`
#
# *10 minutes · difficulty 3 of 5*
#
# From `dz`, `q`, `k`, `v` of the shape $(T, hs)$ and `prefix_k`, `prefix_v` of the shape $(P, hs)$,
# compute the gradients of the five inputs, in the order of the contract. Nothing is kept from a
# forward, so compute the pattern once with `head_with_slots`. Then call the three functions above.


# %%
def backward_with_slots(dz, q, k, v, prefix_k, prefix_v):
    dq, dk, dv, dprefix_k, dprefix_v = ..., ..., ..., ..., ...
    return dq, dk, dv, dprefix_k, dprefix_v


grade(backward_with_slots)

# %% [markdown]
# <details><summary>Hint 1</summary>
#
# The three functions need `keys`, `values` and `pattern`, and none of these is an argument. Compute
# them first.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# `values_backward` and `scores_backward` need the pattern. `keys_backward` needs `dscores`, so it
# comes last.
#
# </details>


# %% jupyter={"source_hidden": true}
def backward_with_slots(dz, q, k, v, prefix_k, prefix_v):
    P = len(prefix_k)
    keys = np.concatenate([prefix_k, k])  # (P+T, hs)
    values = np.concatenate([prefix_v, v])  # (P+T, hs)
    _, pattern = head_with_slots(q, k, v, prefix_k, prefix_v)
    dprefix_v, dv = values_backward(dz, pattern, P)
    dscores = scores_backward(dz, values, pattern)  # (T, P+T)
    dprefix_k, dk, dq = keys_backward(dscores, q, keys, P)
    return dq, dk, dv, dprefix_k, dprefix_v


# %%
dz = rng.normal(size=(T, hs))  # random: lesson 3 shows what an upstream of ones hides
dq, dk, dv, dprefix_k, dprefix_v = backward_with_slots(dz, q, k, v, prefix_k, prefix_v)
print("dprefix_k", dprefix_k.shape, " dprefix_v", dprefix_v.shape)

# %% [markdown]
# **Recap.** No line of this backward treats a slot in a special way. Compute the gradients of all
# $P + T$ keys and values. The first $P$ rows are the gradient of the prefix.
#
# ## Two proofs
#
# The first proof is by finite differences. The loss that belongs to a random $dz$ is
# $\ell = \sum dz \odot z$, as in lesson 4. We move one number of the prefix up and down by
# $\epsilon = 10^{-6}$ and look at $\ell$. The two values agree in about their first six digits. The
# subtraction loses these digits, and about ten of sixteen are left.


# %%
def loss(prefix_k, prefix_v):
    return (dz * head_with_slots(q, k, v, prefix_k, prefix_v)[0]).sum()


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
# The second proof is by the complex step. `head_with_slots` consists of functions that take complex
# numbers, too. So the derivative is the imaginary part of $\ell(x + i\epsilon)$, divided by
# $\epsilon = 10^{-30}$, as in [lesson 2](02_backward_by_hand.py). Nothing is subtracted.
#
# **Predict.** By what factor is the error smaller than with finite differences?


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


def check_prefix_gradient(dprefix_k, dprefix_v):
    """Both halves against the complex step, the values first."""
    error_v = relative_error(dprefix_v, exact_v)
    assert error_v < 1e-13, f"dprefix_v is off by {error_v:.2g} of its largest entry"
    error_k = relative_error(dprefix_k, exact_k)
    assert error_k < 1e-13, f"dprefix_k is off by {error_k:.2g} of its largest entry"


print(f"dprefix_k is off by {relative_error(dprefix_k, exact_k):.1e} of its largest entry")
print(f"dprefix_v is off by {relative_error(dprefix_v, exact_v):.1e}")
check_prefix_gradient(dprefix_k, dprefix_v)
assert relative_error(dprefix_k, exact_k) < 1e-5 * relative_error(of_k, exact_k)

# %% [markdown]
# **Answer.** About a million times: from ten right digits to all sixteen. The error in the first
# proof was the error of finite differences. Our gradient has none of it.

# %% [markdown]
# **Recap.** Finite differences work with any function and leave about ten digits. The complex step
# leaves all sixteen, but the forward has to take complex numbers.
#
# ## Many heads, many sequences
#
# A layer has $NH$ heads, and a batch has $B$ sequences. The queries, keys and values of the batch
# are streams of the shape $(N, NH, hs)$ with their `offsets`, as in lesson 4. The prefix comes as
# two lists with an array of the shape $(NH, P, hs)$ for each sequence: its heads' keys, and its
# heads' values. Two sequences may have prefixes of different lengths.
#
# A forward keeps in its [cache](glossary.md#cache) what its backward needs. You now write this
# backward. The package needs this function to train a prefix.
#
# ### Exercise 5.7: `attention_backward`
#
# *35 minutes · difficulty 5 of 5*
#
# From `dz`, a stream of the shape $(N, NH, hs)$, and the cache of the forward, compute `dq`, `dk`,
# `dv`, `dprefix_k` and `dprefix_v`. Each has the shape of what it is the gradient of, so the last
# two are lists. The cache has
#
# - `cache.q`, `cache.k`, `cache.v`: streams of the shape $(N, NH, hs)$,
# - `cache.offsets`: $B + 1$ numbers,
# - `cache.prefix_k`, `cache.prefix_v`: lists of $B$ arrays of the shape $(NH, P, hs)$,
# - `cache.pattern`: a list of $B$ arrays of the shape $(NH, T, P+T)$.
#
# Divide by `hs**0.5`, not by `np.sqrt(hs)`: a float32 has to stay a float32. Write each line for
# all heads at once. A loop that calls `backward_with_slots` for each head computes every pattern
# again, and `grade` refuses it. If you give the intermediates of a sequence the names below,
# `grade` tells you the first wrong one.


# %%
def attention_backward(dz, cache):
    dprefix_k, dprefix_v = [], []
    for b, pattern in enumerate(cache.pattern):  # (NH, T, P+T)
        dvalues = ...  # (NH, P+T, hs)
        dpattern = ...  # (NH, T, P+T)
        row_sum = ...  # (NH, T, 1)
        dscores = ...  # (NH, T, P+T)
        dkeys = ...  # (NH, P+T, hs)
        dq_b = ...  # (NH, T, hs)
    return ...


grade(attention_backward)

# %% [markdown]
# <details><summary>Hint 1</summary>
#
# Cut one sequence out of the streams and bring its heads to the front:
# `cache.q[start:end].swapaxes(0, 1)` has the shape $(NH, T, hs)$. The last two axes are then those
# of one head.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# `@` multiplies the last two axes for each head. A transposed array is `a.swapaxes(1, 2)`, since
# `a.T` would turn all three axes around. Slots and tokens are joined along `axis=1`.
#
# </details>
#
# <details><summary>Hint 3</summary>
#
# The gradients of a sequence's tokens go back into the stream. With `rows = slice(start, end)`,
# that is `dk[rows] = dkeys[:, P:].swapaxes(0, 1)`. Make `dq`, `dk` and `dv` with `np.zeros_like`
# first.
#
# </details>


# %% jupyter={"source_hidden": true}
def attention_backward(dz, cache):
    dq, dk, dv = (np.zeros_like(a) for a in (cache.q, cache.k, cache.v))  # each (N, NH, hs)
    dprefix_k, dprefix_v = [], []
    for b, pattern in enumerate(cache.pattern):  # (NH, T, P+T)
        rows = slice(cache.offsets[b], cache.offsets[b + 1])
        P, hs = cache.prefix_k[b].shape[1:]
        # heads first: (NH, T, hs)
        q, k, v, dz_b = (a[rows].swapaxes(0, 1) for a in (cache.q, cache.k, cache.v, dz))
        keys = np.concatenate([cache.prefix_k[b], k], axis=1)  # (NH, P+T, hs)
        values = np.concatenate([cache.prefix_v[b], v], axis=1)  # (NH, P+T, hs)
        dvalues = pattern.swapaxes(1, 2) @ dz_b  # (NH, P+T, hs)
        dpattern = dz_b @ values.swapaxes(1, 2)  # (NH, T, P+T)
        row_sum = (dpattern * pattern).sum(axis=2, keepdims=True)  # (NH, T, 1)
        dscores = pattern * (dpattern - row_sum)  # (NH, T, P+T)
        dkeys = dscores.swapaxes(1, 2) @ q / hs**0.5  # (NH, P+T, hs)
        dq_b = dscores @ keys / hs**0.5  # (NH, T, hs)
        dq[rows] = dq_b.swapaxes(0, 1)
        dk[rows] = dkeys[:, P:].swapaxes(0, 1)
        dv[rows] = dvalues[:, P:].swapaxes(0, 1)
        dprefix_k.append(dkeys[:, :P])
        dprefix_v.append(dvalues[:, :P])
    return dq, dk, dv, dprefix_k, dprefix_v


# %% [markdown]
# The third proof compares implementations. The package has this operation twice:
# [reference](../minprefix/ops/reference.py) is written to be read,
# [numpy_ops](../minprefix/ops/numpy_ops.py) to be fast. With one sequence and one head, all three
# have to give the gradient of `backward_with_slots`.

# %%
from minprefix.ops import numpy_ops, reference


def of_one_head(attention, backward, dz, q, k, v, prefix_k, prefix_v):
    """The five gradients of a head, by an operation for streams (N, NH, hs)."""
    streams = [a[:, None] for a in (q, k, v)]  # (T, 1, hs) each: one head
    slots = [prefix_k[None]], [prefix_v[None]]  # of one sequence: (1, P, hs) each
    _, cache = attention(*streams, *slots, np.array([0, len(q)]))
    dq, dk, dv, dprefix_k, dprefix_v = backward(dz[:, None].copy(), cache)
    # [0][0] is head 0 of sequence 0
    return dq[:, 0], dk[:, 0], dv[:, 0], dprefix_k[0][0], dprefix_v[0][0]


inputs = q, k, v, prefix_k, prefix_v
for attention, backward in (
    (reference.attention, attention_backward),
    (reference.attention, reference.attention_backward),
    (numpy_ops.attention, numpy_ops.attention_backward),
):
    grads = of_one_head(attention, backward, dz, *inputs)
    check_prefix_gradient(*grads[3:])
    for got, want in zip(grads, (dq, dk, dv, dprefix_k, dprefix_v), strict=True):
        assert relative_error(got, want) < 1e-13
print("three implementations for many heads agree with the one for one head")

# %% [markdown]
# **Recap.** Many heads are one more axis, which `@` handles. Many sequences are a loop. The
# arithmetic inside is that of one head.
#
# ## A law needs no second gradient
#
# The first [law](glossary.md#law) of lesson 4 holds here, too, and it includes the slots. Add one
# vector to all keys. All scores of a row change by the same number, and the softmax does not
# change. So the loss does not change either, and the gradients of all $P + T$ keys sum to 0:
#
# $$\sum_{j} dkeys_j = 0$$
#
# ### Exercise 5.8: `check_keys_law`
#
# *6 minutes · difficulty 2 of 5*
#
# `dprefix_k` has the shape $(P, hs)$ and `dk` the shape $(T, hs)$. Write a check: it fails an
# `assert` if the law does not hold, and does nothing if it holds. The law speaks of a vector of
# $hs$ sums. Allow each of them $10^{-12}$ for rounding. Let the message say how large the largest
# is.


# %%
def check_keys_law(dprefix_k, dk):
    total = ...  # (hs,)
    largest = ...  # (): one number
    raise NotImplementedError  # your assert


grade(check_keys_law)

# %% [markdown]
# <details><summary>Hint 1</summary>
#
# Both parts count: the slots' keys and the tokens' keys. Sum over the keys, which are the rows.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# A sum can be negative. Compare its size, `np.abs(total)`, and look at the largest entry. A bare
# `np.isclose` allows $10^{-8}$, which is too much here.
#
# </details>


# %% jupyter={"source_hidden": true}
def check_keys_law(dprefix_k, dk):
    total = dprefix_k.sum(axis=0) + dk.sum(axis=0)  # (hs,)
    largest = np.abs(total).max()  # (): one number
    assert largest < 1e-12, f"the gradients of all keys sum to {largest:.2g}, expected 0"


# %% [markdown]
# **Predict.** A backward forgets the factor $1/\sqrt{hs}$ in `dkeys`. Does this law notice?

# %%
check_keys_law(dprefix_k, dk)
check_keys_law(hs**0.5 * dprefix_k, hs**0.5 * dk)  # wrong, and the law holds all the same
print("the law holds for both")

# %% [markdown]
# **Answer.** No. If the right gradients sum to 0, then twice these gradients sum to 0 as well.

# %% [markdown]
# **Recap.** A law needs no second implementation. It does not see a missing scale or a wrong sign.
# A comparison with an exact gradient sees both.
#
# ## A step downhill
#
# Now the gradient trains the slots of our head. The head has to learn to give a certain output,
# $goal$, of the shape $(T, hs)$. The loss and its upstream are
#
# $$\ell = \tfrac12 \sum (z - goal)^2, \qquad dz = z - goal$$
#
# One step of gradient descent moves each number of the prefix against its gradient, by the learning
# rate $rate$ times that gradient. The tokens' $q$, $k$ and $v$ stay as they are.
#
# ### Exercise 5.9: `slot_step`
#
# *8 minutes · difficulty 2 of 5*
#
# Compute the loss before the step, and the slots' keys and values after it. Do not write into the
# arguments: return new arrays. `backward` is a function that takes and returns what
# `backward_with_slots` does. Call it by the name `backward`: we will later give another one.


# %%
def slot_step(q, k, v, prefix_k, prefix_v, goal, rate, backward=backward_with_slots):
    loss = ...  # (): one number
    dz = ...  # (T, hs)
    new_k = ...  # (P, hs)
    new_v = ...  # (P, hs)
    return loss, new_k, new_v


grade(slot_step)

# %% [markdown]
# <details><summary>Hint 1</summary>
#
# `head_with_slots` gives `z`. From `z` you get the loss and `dz`.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# `backward(dz, q, k, v, prefix_k, prefix_v)` gives five gradients. A step uses the last two.
#
# </details>


# %% jupyter={"source_hidden": true}
def slot_step(q, k, v, prefix_k, prefix_v, goal, rate, backward=backward_with_slots):
    z, _ = head_with_slots(q, k, v, prefix_k, prefix_v)
    loss = 0.5 * ((z - goal) ** 2).sum()  # (): one number
    dz = z - goal  # (T, hs)
    *_, dprefix_k, dprefix_v = backward(dz, q, k, v, prefix_k, prefix_v)
    new_k = prefix_k - rate * dprefix_k  # (P, hs)
    new_v = prefix_v - rate * dprefix_v  # (P, hs)
    return loss, new_k, new_v


# %% [markdown]
# Both gradients are taken at the same point, before anything moves. We take 200 steps towards a
# random goal.

# %%
goal = rng.normal(size=(T, hs))


def descend(backward, steps=201, rate=0.3):
    """The loss before each step."""
    slots, losses = (prefix_k, prefix_v), []
    for _ in range(steps):
        loss_before, *slots = slot_step(q, k, v, *slots, goal, rate, backward)
        losses.append(loss_before)
    return losses


sound = descend(backward_with_slots)
print("loss", np.round(sound[::25], 2))
assert sound[-1] < 0.3 * sound[0]

# %% [markdown]
# **Recap.** Training a prefix repeats three steps: a forward, a backward, and a small move of the
# slots against their gradient. Lesson 8 does this with a whole model.
#
# ## Break it yourself
#
# This mistake is easy to make: the row sum of exercise 5.4 runs over the tokens only, as if the
# slots stood outside the softmax.
#
# **Predict.** Which of the two asserts of `check_prefix_gradient` fails? Does the law notice?

# %%
from minprefix.lessons import caught, planted

broken = planted("row-sum-over-the-tokens-alone")
print(broken)


def broken_backward(dz, *inputs):
    ops = broken.reference
    return of_one_head(ops.attention, ops.attention_backward, dz, *inputs)


*_, wrong_dk, _, wrong_k, wrong_v = broken_backward(dz, *inputs)
assert wrong_k.shape == (P, hs)
assert np.isfinite(wrong_k).all()

with caught() as error:  # take this line away, and the lesson stops here
    check_prefix_gradient(wrong_k, wrong_v)
print(error)

with caught() as error:
    check_keys_law(wrong_k, wrong_dk)
print(error)

# %% [markdown]
# **Answer.** The second assert fails. `dprefix_v` is right, because the values do not pass through
# the softmax. The law notices this bug, too.

# %% [markdown]
# What would you have seen without these checks? All shapes are right, and no number is NaN. We
# train with the broken backward, towards the same goal.
#
# **Predict.** Does the loss fall?

# %%
unsound = descend(broken_backward)
print("sound ", np.round(sound[::25], 2))
print("broken", np.round(unsound[::25], 2))
assert unsound[-1] < 0.3 * unsound[0], "it falls, too"
assert np.round([sound[0], sound[-1], unsound[-1]], 2).tolist() == [8.59, 1.80, 1.81]

# %% [markdown]
# **Answer.** It falls as far as with the right gradient, only a little later. The curve of the loss
# does not show the bug.

# %% [markdown]
# ## Remember
#
# - A prefix is $P$ more keys and values in every head. Each token sees all of them.
# - Its gradient is the first $P$ rows of `dkeys` and of `dvalues`.
# - The row sum of the softmax runs over all $P + T$ columns.
# - The scale $1/\sqrt{hs}$ stands in `dq` and in `dkeys`, and not in `dvalues`.
# - The gradients of all keys sum to 0. This law finds some bugs and misses a wrong scale or sign.
# - A falling loss is no proof of a right gradient. Compare every entry with an exact one.
#
# ## Exercises
#
# **1.** With $P$ slots whose keys and values are all 0, is $z$ the same as without a prefix? Give
# the reason first, then compute it.
#
# <details><summary>Solution 1</summary>
#
# No. A key of zeros has the score 0, and $e^0 = 1$ takes part in the softmax like any other term.
# The slots take that share away from the tokens and return a value of 0 for it. So $z$ shrinks.
#
# ```python
# zeros = np.zeros((P, hs))
# z_zeros, _ = head_with_slots(q, k, v, zeros, zeros)
# z_without, _ = head_with_slots(q, k, v, zeros[:0], zeros[:0])
# print(np.abs(z_zeros - z_without).max())
# assert (np.abs(z_zeros) < np.abs(z_without)).all()
# ```
#
# </details>
#
# **2.** Show on paper why $\sum_j dkeys_j = 0$, from the formulas of `dscores` and `dkeys`.
#
# <details><summary>Solution 2</summary>
#
# For every $i$, $\; \sum_j pattern_{ij} \, dpattern_{ij}$ is $row\_sum_i$, and
# $\sum_j pattern_{ij}$ is 1. So
#
# $$\sum_j dscores_{ij} = row\_sum_i - 1 \cdot row\_sum_i = 0$$
#
# $$\sum_j dkeys_j = \sum_i \Big( \sum_j dscores_{ij} \Big) \frac{q_i}{\sqrt{hs}} = 0$$
#
# </details>
#
# **3.** Do the values do all the work in the run with the bug? Let the values alone move, then the
# keys alone with the wrong gradient. How far does the loss fall each time?
#
# <details><summary>Solution 3</summary>
#
# No. The values alone bring the loss from 8.59 to 3.81, and the keys alone, with the wrong
# gradient, to 6.41. Both together reach 1.81. A gradient that is wrong by a third of its largest
# entry still points downhill here. So a falling loss tells little about it.
#
# ```python
# def values_alone(dz, *inputs):
#     *others, dprefix_k, dprefix_v = broken_backward(dz, *inputs)
#     return *others, 0 * dprefix_k, dprefix_v
#
#
# def keys_alone(dz, *inputs):
#     *others, dprefix_v = broken_backward(dz, *inputs)
#     return *others, 0 * dprefix_v
#
#
# reached = [descend(backward)[-1] for backward in (values_alone, keys_alone)]
# print(np.round(reached, 2))
# assert np.round(reached, 2).tolist() == [3.81, 6.41]
# ```
#
# </details>
#
# Next: [GPT-2 from its file](06_gpt2_from_its_file.py).
