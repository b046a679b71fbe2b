# %% [markdown]
# # Attention and its gradient
#
# - **You will be able to** write attention and its backward, first for one head, then for many
#   heads and many sequences at once with no padding between them; and to choose checks that see a
#   wrong mask, and checks that see a wrong gradient.
# - **You need** the backward of a matrix product, the complex step and finite differences:
#   [lesson 2](02_backward_by_hand.py). The backward of a softmax:
#   [lesson 3](03_softmax_and_cross_entropy.py).
# - **Time** 140 minutes; it runs in 3 seconds.
# - **Difficulty** 3 of 5.
#
# ## Overview
#
# - A head mixes the values of the tokens that a token sees. A head made by hand looks at the token
#   before its own, with a share above 0.99.
# - Without the scale $1/\sqrt{hs}$, the largest of 50 shares is 0.78 on average. With it, the
#   largest share is 0.14.
# - The complex step confirms all gradients of a head to fifteen digits.
# - A stream without padding gives the same numbers as padded sequences. It needs 38 scores for each
#   head, and padding needs 75.
# - A model whose mask shows the next token predicts dice, with a loss of 0.00. The gradient check
#   does not see this bug.
# - With a scale forgotten, $dq$ is twice as large as it should be. The mask's check and two laws do
#   not see that bug.
#
# ## One head
#
# All other parts of the model look at one token at a time. In [attention](glossary.md#attention),
# tokens look at each other. A layer does this several times side by side. Each of these is an
# attention head, or [head](glossary.md#head) for short. A head gets three rows of $hs$ numbers for
# each of the $T$ tokens of a sequence; $hs$ is the *head size*. A linear layer has computed these
# rows. Here they are given.
#
# - The [query](glossary.md#query) describes what this token looks for.
# - The [key](glossary.md#key) describes what this token offers. Queries are compared with it.
# - The [value](glossary.md#value) is what other tokens get from this token.
#
# So `q`, `k` and `v` have the shape $(T, hs)$. The [score](glossary.md#scores) of tokens $i$ and
# $j$ is the dot product of the query of $i$ and the key of $j$, divided by $\sqrt{hs}$. The next
# section shows what the division is for. Softmax turns each row of scores into shares that sum to
# 1, the [pattern](glossary.md#pattern). The output $z_i$ is the sum of the values, each multiplied
# by its share:
#
# $$scores = \frac{q \, k^\top}{\sqrt{hs}}, \qquad pattern = \mathrm{softmax}(scores), \qquad
# z = pattern \; v$$
#
# $scores$ and $pattern$ have the shape $(T, T)$: one row for each query, one column for each key.
# $z$ has the shape $(T, hs)$, like $v$.
#
# One thing is forbidden. The model uses $z_i$ to predict token $i + 1$, so token $i$ must not see
# that token or a later one. It sees the tokens $0 \dots i$. All other scores are set to $-\infty$
# before the softmax. Since $e^{-\infty} = 0$, those tokens get no share. This is the
# [causal mask](glossary.md#causal-mask).

# %%
import itertools

import numpy as np

from minprefix.lessons import grade

rng = np.random.default_rng(0)
T, hs = 5, 4
q, k, v = (rng.normal(size=(T, hs)) for _ in range(3))  # (T, hs) each


def softmax(scores):  # lesson 3's: each row for itself
    e = np.exp(scores - scores.real.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


# %% [markdown]
# ### Exercise 4.1: `causal_mask`
#
# *4 minutes · difficulty 1 of 5*
#
# From the number $T$, compute the mask of the shape $(T, T)$. It is `True` where the token of the
# row sees the token of the column.


# %%
def causal_mask(T):
    mask = ...  # (T, T)
    return mask


grade(causal_mask)

# %% [markdown]
# <details><summary>Hint 1</summary>
#
# Draw the square for $T = 3$ on paper. Row 0 has one `True`, row 2 has three.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# `np.arange(T)[None, :]` is a row of the column numbers, and `np.arange(T)[:, None]` is a column of
# the row numbers. Comparing the two gives the whole square.
#
# </details>


# %% jupyter={"source_hidden": true}
def causal_mask(T):
    mask = np.arange(T)[None, :] <= np.arange(T)[:, None]  # (T, T)
    return mask


# %% [markdown]
# `np.tril(np.ones((T, T), bool))` is the same mask. Ours says the rule: column $j$ is visible from
# row $i$ if $j \le i$.
#
# ### Exercise 4.2: `attention_scores`
#
# *4 minutes · difficulty 1 of 5*
#
# From `q` and `k`, both of the shape $(T, hs)$, compute the scores of the shape $(T, T)$, with the
# scale and without a mask.


# %%
def attention_scores(q, k):
    scores = ...  # (T, T)
    return scores


grade(attention_scores)

# %% [markdown]
# <details><summary>Hint 1</summary>
#
# Row $i$, column $j$ is the dot product of `q[i]` and `k[j]`. One matrix product computes all of
# them.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# `q @ k.T` has the shape $(T, T)$. The head size is `q.shape[-1]`.
#
# </details>


# %% jupyter={"source_hidden": true}
def attention_scores(q, k):
    hs = q.shape[-1]
    scores = q @ k.swapaxes(-1, -2) / hs**0.5  # (T, T)
    return scores


# %% [markdown]
# `k.swapaxes(-1, -2)` is `k.T` for an array with two axes. With more axes it still swaps the last
# two only. We will soon have more.
#
# ### Exercise 4.3: `head`
#
# *8 minutes · difficulty 2 of 5*
#
# From `q`, `k` and `v` of the shape $(T, hs)$, compute `z` of the shape $(T, hs)$ and the pattern
# of the shape $(T, T)$. Use `causal_mask`, `attention_scores` and `softmax`.


# %%
def head(q, k, v):
    pattern = ...  # (T, T)
    z = ...  # (T, hs)
    return z, pattern


grade(head)

# %% [markdown]
# <details><summary>Hint 1</summary>
#
# The order is: scores, mask, softmax, values.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# `np.where(mask, scores, -np.inf)` keeps the scores where the mask is `True`.
#
# </details>


# %% jupyter={"source_hidden": true}
def head(q, k, v):
    T = q.shape[-2]
    scores = attention_scores(q, k)  # before the mask: (T, T)
    pattern = softmax(np.where(causal_mask(T), scores, -np.inf))  # (T, T)
    z = pattern @ v  # (T, hs)
    return z, pattern


# %% [markdown]
# Ours reads $T$ from `q.shape[-2]`, not from `len(q)`. The two are the same here. They will differ
# when more axes stand in front.
#
# We make a head by hand. Each key says at which place its token stands: key $j$ is 1 in column $j$
# and 0 elsewhere. Each query asks for the place before its own: query $i$ is 20 in column $i - 1$.
# No place comes before the first token, so its query is 0 everywhere. The picture shows this
# pattern above one of random numbers. Black is 1, white is 0.
#
# **Predict.** How does the row of `fox` look in the pattern? And the row of `the`, whose query is
# all zeros?

# %%
import matplotlib.pyplot as plt

words = ["the", "red", "fox", "sees", "hens"]
places = np.eye(5)  # (T, hs): T = hs = 5 here
_, previous = head(q=20 * np.eye(5, k=-1), k=places, v=places)  # pattern (T, T)
for word, shares in zip(words, previous, strict=True):
    print(f"{word:5}", shares.round(3))
assert (np.diag(previous, k=-1) > 0.99).all(), "each looks at the token before it"
assert previous[0, 0] == 1, "the first token sees itself alone, whatever its query is"

z, pattern = head(q, k, v)  # (T, hs), (T, T)
figure, axes = plt.subplots(2, 1, figsize=(4.2, 7))
shown = {"made by hand": previous, "of random numbers": pattern}
for ax, (title, shares) in zip(axes, shown.items(), strict=True):
    ax.imshow(shares, cmap="Greys", vmin=0, vmax=1)
    ax.set_xticks(range(5), words)
    ax.set_yticks(range(5), words)
    ax.set_xlabel("key (the token that is looked at)")
    ax.set_ylabel("query (the token that looks)")
    ax.set_title(f"A pattern {title}")
figure.tight_layout()
plt.show()

# %% [markdown]
# **Answer.** `fox` looks at `red`: its share is nearly 1, and the others are nearly 0. `the` sees
# only itself, so its share is 1.

# %% [markdown]
# Now we take the random head. Token 3 gets another query, another key and another value.
#
# **Predict.** Which rows of $z$ change?

# %%
other = [a.copy() for a in (q, k, v)]
for a in other:
    a[3] = rng.normal(size=hs)
changed = np.abs(head(*other)[0] - z).max(axis=1)  # (T,)
print("change of each row of z:", changed.round(3))
assert changed[:3].max() < 1e-13, "a token sees a later one"
assert changed[3:].min() > 1e-3

# %% [markdown]
# **Answer.** Row 3 and all later rows change, because they look at token 3. No earlier row does.

# %% [markdown]
# **Recap.** A head has three steps. It compares each query with the keys that the query may see.
# The softmax turns each row of scores into shares. The shares mix the values.
#
# ## What the scale is for
#
# Let the entries of $q$ and $k$ be independent, with mean 0 and variance 1. Then $q_i \cdot k_j$ is
# a sum of $hs$ products of variance 1, and its variance is $hs$. Larger heads have scores that are
# further apart. Softmax then gives most to one token and almost nothing to the others. The slope of
# each share by its own score is $pattern_{ij} (1 - pattern_{ij})$, as lesson 3 has shown. It is
# nearly 0 for a share near 0 and for one near 1, and then little gradient reaches the scores.
#
# **Predict.** Take 50 tokens and heads of size 64, without a mask. Equal shares would be 0.02. How
# large is the largest share of a row, on average, with the scale and without: about 0.02, 0.14 or
# 0.8?

# %%
wide_q, wide_k = rng.normal(size=(2, 50, 64))  # (50, 64) each
raw = wide_q @ wide_k.T  # (50, 50)
for name, scores in (("without", raw), ("with   ", raw / 64**0.5)):
    shares = softmax(scores)  # (50, 50)
    print(f"{name} scale: scores with a standard deviation of {scores.std():.1f},", end=" ")
    print(f"largest share {shares.max(axis=1).mean():.2f}", end=", ")
    print(f"slope {(shares * (1 - shares)).mean():.3f}")
assert abs(softmax(raw).max(axis=1).mean() - 0.78) < 0.005
assert abs(softmax(raw / 8).max(axis=1).mean() - 0.14) < 0.005

# %% [markdown]
# **Answer.** 0.14 with the scale and 0.78 without it.

# %% [markdown]
# **Recap.** With the scale $1/\sqrt{hs}$, the scores of such numbers have a standard deviation of
# about 1 for every head size.
#
# ## Backward
#
# The rest of the model and the loss $\ell$ give us $dz = \partial \ell / \partial z$, of the shape
# $(T, hs)$. The forward has three formulas. We go through them in reverse order. For each number we
# ask where it was used, and we sum over these places.
#
# 1. $z_i = \sum_j pattern_{ij} \, v_j$. The value of $j$ went to every $i$ that saw it, and each
#    share was multiplied by one value:
#
#    $$dv_j = \sum_i pattern_{ij} \, dz_i, \qquad dpattern_{ij} = dz_i \cdot v_j$$
#
# 2. $pattern = \mathrm{softmax}(scores)$. Each row is independent of the others. Lesson 3 found for
#    row $i$
#
#    $$\begin{aligned} dscores_{ij} &= pattern_{ij} \, (dpattern_{ij} - row\_sum_i), \\
#    row\_sum_i &= \sum_m dpattern_{im} \, pattern_{im} \end{aligned}$$
#
#    Where $j$ is hidden from $i$, the pattern is 0, and so is $dscores$. The forward had the
#    constant $-\infty$ there, and no query or key changes a constant.
#
# 3. $scores_{ij} = q_i \cdot k_j / \sqrt{hs}$. The query of $i$ met all keys, and the key of $j$
#    met all queries. The scale is a factor of both gradients:
#
#    $$dq_i = \sum_j dscores_{ij} \, k_j / \sqrt{hs}, \qquad
#    dk_j = \sum_i dscores_{ij} \, q_i / \sqrt{hs}$$
#
# All sums but `row_sum` are matrix products.
#
# ### Exercise 4.4: `head_backward`
#
# *20 minutes · difficulty 4 of 5*
#
# From `dz`, `q`, `k` and `v`, all of the shape $(T, hs)$, compute `dq`, `dk` and `dv`, of the same
# shape. Get the pattern from `head`. Write each sum as a matrix product: the indices tell which
# factor has to be transposed.


# %%
def head_backward(dz, q, k, v):
    pattern = head(q, k, v)[1]  # (T, T)
    dv = ...  # (T, hs)
    dpattern = ...  # (T, T)
    row_sum = ...  # (T, 1)
    dscores = ...  # (T, T)
    dq = ...  # (T, hs)
    dk = ...  # (T, hs)
    return dq, dk, dv


grade(head_backward)

# %% [markdown]
# <details><summary>Hint 1</summary>
#
# In $A B$, the sum runs over the columns of $A$ and the rows of $B$. In the formula of $dv_j$ it
# runs over $i$, and $i$ is the row of $pattern_{ij}$. So the pattern has to be transposed.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# `dpattern` is `dz @ v.T`. `row_sum` has one number for each query: `sum(axis=-1, keepdims=True)`.
#
# </details>
#
# <details><summary>Hint 3</summary>
#
# `dq` is `dscores @ ...`, and `dk` is `dscores.T @ ...`. Both are divided by `hs**0.5`.
#
# </details>


# %% jupyter={"source_hidden": true}
def head_backward(dz, q, k, v):
    hs = q.shape[-1]
    pattern = head(q, k, v)[1]  # (T, T)
    dv = pattern.swapaxes(-1, -2) @ dz  # (T, hs)
    dpattern = dz @ v.swapaxes(-1, -2)  # (T, T)
    row_sum = (dpattern * pattern).sum(axis=-1, keepdims=True)  # (T, 1)
    dscores = pattern * (dpattern - row_sum)  # (T, T)
    dq = dscores @ k / hs**0.5  # (T, hs)
    dk = dscores.swapaxes(-1, -2) @ q / hs**0.5  # (T, hs)
    return dq, dk, dv


# %% [markdown]
# The square shape $(T, T)$ is a trap: a product with the pattern or with `dscores` also runs if the
# transpose is forgotten. Only the numbers show it. As in `head`, ours counts the axes from the end:
# `swapaxes(-1, -2)`, not `.T`, and `axis=-1`, not `axis=1`.
#
# **Predict.** One row of $dq$ is exactly 0 for every $dz$. Which one, and why?

# %%
dz = rng.normal(size=(T, hs))  # at random: lesson 3 says why
dq, dk, dv = head_backward(dz, q, k, v)
print("largest entry of each row of dq:", np.abs(dq).max(axis=1).round(3))
assert (dq[0] == 0).all(), "token 0 has no choice, so its query has no gradient"
assert (np.abs(dq[1:]).max(axis=1) > 0).all()

# %% [markdown]
# **Answer.** Row 0. Token 0 sees only itself, and its share is 1 for every query. So its query
# changes nothing.

# %% [markdown]
# Now we prove all of it with the complex step. The loss is $\ell = \sum dz \odot z$, whose upstream
# is $dz$ ($\odot$ multiplies entry by entry).


# %%
def complex_step(f, x, eps=1e-30):
    """The derivative of the number f(x) for each entry of x."""
    grads = np.zeros(x.shape)
    for index in np.ndindex(x.shape):
        moved = x.astype(complex)
        moved[index] += 1j * eps
        grads[index] = f(moved).imag / eps
    return grads


def relative_error(a, b):
    """The largest difference, as a part of the largest number: 1 means all wrong."""
    return np.abs(a - b).max() / np.abs(b).max()


exact = {
    "dq": complex_step(lambda x: (dz * head(x, k, v)[0]).sum(), q),
    "dk": complex_step(lambda x: (dz * head(q, x, v)[0]).sum(), k),
    "dv": complex_step(lambda x: (dz * head(q, k, x)[0]).sum(), v),
}
for (name, right), got in zip(exact.items(), (dq, dk, dv), strict=True):
    print(f"{name} is off by {relative_error(got, right):.0e} of its largest entry")
    assert relative_error(got, right) < 2e-15, f"{name} is not the derivative"

# %% [markdown]
# Two [laws](glossary.md#law) hold for all $q$, $k$, $v$ and $dz$, because each row of the pattern
# sums to 1. The sums run over the tokens, so each side is a row of $hs$ numbers.
#
# - Add one vector to all keys. The scores of a row all change by the same number, and the pattern
#   does not change. So the loss does not change. Its slope along this vector is $\sum_j dk_j$, and
#   that must be 0.
# - Add one vector to all values. Every $z_i$ moves by that vector. So the slope of the loss along
#   it is both $\sum_j dv_j$ and $\sum_i dz_i$, and the two must be equal.
#
# ### Exercise 4.5: `check_laws`
#
# *8 minutes · difficulty 2 of 5*
#
# `dk`, `dv` and `dz` have the shape $(T, hs)$. Write a check: it fails an `assert` if one of the
# laws does not hold, and does nothing if both hold. Allow each of the sums $10^{-12}$ for rounding.


# %%
def check_laws(dk, dv, dz):
    of_keys = ...  # (hs,), 0 if the first law holds
    of_values = ...  # (hs,), 0 if the second law holds
    raise NotImplementedError  # your two asserts


grade(check_laws)

# %% [markdown]
# <details><summary>Hint 1</summary>
#
# Sum over the tokens, which are the rows. Each law speaks of $hs$ numbers.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# A sum that is wrong can be negative. `np.abs(of_keys).max()` is the largest deviation. A bare
# `np.allclose` allows $10^{-8}$, which is too much here.
#
# </details>


# %% jupyter={"source_hidden": true}
def check_laws(dk, dv, dz):
    of_keys = dk.sum(axis=0)  # (hs,)
    of_values = dv.sum(axis=0) - dz.sum(axis=0)  # (hs,)
    off = np.abs(of_keys).max()
    assert off < 1e-12, f"dk sums to {off:.2g}, expected 0"
    off = np.abs(of_values).max()
    assert off < 1e-12, f"dv sums to another number than dz, by {off:.2g}"


# %%
check_laws(dk, dv, dz)
check_laws(-dk, dv, dz)  # wrong, and both laws hold all the same
check_laws(100 * dk, dv, dz)

# %% [markdown]
# **Recap.** The forward has two matrix products and the backward has four, one for each factor. The
# backward of the softmax stands between them. Laws are quick and miss a lot: `-dk` and `100 * dk`
# pass them, and no law speaks of `dq`.
#
# ## Many heads
#
# A layer has $NH$ heads. A linear layer gives each token one row of $C = NH \cdot hs$ numbers for
# its queries. The first $hs$ numbers belong to head 0, the next to head 1, and so on. The same
# holds for keys and values. `head` wants $(T, hs)$ in the last two axes, so the heads come before
# them: $(NH, T, hs)$. NumPy's `@` multiplies the last two axes and does so for each index of the
# others. So our `head` and `head_backward` take such arrays as they are. A version with `.T` or
# `len(q)` does not: run our cells if you go on with your own code.
#
# ### Exercise 4.6: `split_heads`
#
# *8 minutes · difficulty 2 of 5*
#
# From `x` of the shape $(T, C)$ and the number `NH`, compute the array of the shape $(NH, T, hs)$.
# Entry $[h, t]$ is the piece $h$ of row $t$.


# %%
def split_heads(x, NH):
    heads = ...  # (NH, T, hs)
    return heads


grade(split_heads)

# %% [markdown]
# <details><summary>Hint 1</summary>
#
# `reshape` moves no number in memory: it only counts the rows differently. Which shape with three
# axes has the same order in memory as $(T, C)$?
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# That shape is $(T, NH, hs)$. After the reshape, swap two axes.
#
# </details>


# %% jupyter={"source_hidden": true}
def split_heads(x, NH):
    T, C = x.shape
    pieces = x.reshape(T, NH, C // NH)  # (T, NH, hs)
    heads = pieces.swapaxes(0, 1)  # (NH, T, hs)
    return heads


# %% [markdown]
# The next cell compares two ways to the shape $(NH, T, hs)$. Each number is its place in memory.
#
# **Predict.** Does `x.reshape(NH, T, hs)` alone give head 0 the columns 0 and 1 of every token?

# %%
from minprefix.lessons import drawings

numbered = np.arange(12).reshape(3, 4)  # (T, C): T = 3, C = 4
split = split_heads(numbered, NH=2)  # (NH, T, hs)
reshaped = numbered.reshape(2, 3, 2)  # (NH, T, hs), too
print("reshape, then swapaxes:", split[0].tolist())
print("reshape alone:         ", reshaped[0].tolist())
assert (split[0] == numbered[:, :2]).all()
assert (reshaped[0] != numbered[:, :2]).any()
drawings.heads(T=3, NH=2, hs=2, wrong=True)

# %% [markdown]
# **Answer.** No. Without the swap, head 0 gets both halves of token 0 and one half of token 1. The
# shape is right, so no error is raised.

# %% [markdown]
# After attention, the next linear layer wants a row of $C$ numbers for each token again.
#
# ### Exercise 4.7: `merge_heads`
#
# *4 minutes · difficulty 2 of 5*
#
# From `z` of the shape $(NH, T, hs)$, compute the array of the shape $(T, C)$, so that
# `merge_heads(split_heads(x, NH))` is `x`.


# %%
def merge_heads(z):
    tokens = ...  # (T, NH, hs)
    merged = ...  # (T, C)
    return merged


grade(merge_heads)

# %% [markdown]
# <details><summary>Hint 1</summary>
#
# Undo the two steps of `split_heads`, the last one first.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# The pieces of a token have to stand side by side before you join them, so the axes come first.
#
# </details>


# %% jupyter={"source_hidden": true}
def merge_heads(z):
    NH, T, hs = z.shape
    tokens = z.swapaxes(0, 1)  # (T, NH, hs)
    merged = tokens.reshape(T, NH * hs)  # (T, C)
    return merged


# %% [markdown]
# **Recap.** To split heads, reshape to $(T, NH, hs)$ and swap the first two axes. To merge them,
# swap first and reshape then. A reshape alone mixes tokens with heads.
#
# ## Many sequences, without padding
#
# The sequences of a batch have different lengths. The usual way fills all of them up to the longest
# with [padding](glossary.md#padding), computes everything, and throws the padding away. Ours is a
# [stream](glossary.md#stream): all sequences stand behind one another, $N$ tokens in all. The
# [offsets](glossary.md#offsets) are the $B + 1$ places where a sequence begins or the last one
# ends. Linear layers, layernorm and GELU work on single rows, so they need no offsets. Attention
# alone needs them: each sequence goes through `head` by itself.

# %%
NH, lengths = 2, [5, 2, 3]
offsets = np.cumsum([0, *lengths])  # (B+1,): B = 3 sequences
N = offsets[-1]
q, k, v, dz = (rng.normal(size=(N, NH, hs)) for _ in range(4))  # (N, NH, hs) each
print("offsets", offsets, " sequences", list(itertools.pairwise(offsets.tolist())))

# %% [markdown]
# ### Exercise 4.8: `attend`
#
# *12 minutes · difficulty 3 of 5*
#
# From the streams `q`, `k` and `v` of the shape $(N, NH, hs)$ and the `offsets`, compute the stream
# `z` of the same shape. The streams have an axis for the heads already, so nothing has to be split.
# Call `head` once for each sequence, with all its heads at once.
# `itertools.pairwise(offsets)` gives the start and the end of each sequence.


# %%
def attend(q, k, v, offsets):
    zs = []
    for start, end in itertools.pairwise(offsets):
        z_b = ...  # (NH, T, hs)
    z = ...  # (N, NH, hs)
    return z


grade(attend)

# %% [markdown]
# <details><summary>Hint 1</summary>
#
# `q[start:end]` has the shape $(T, NH, hs)$. `head` wants $(NH, T, hs)$.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# `head` returns `z_b` with the heads first. Bring the tokens back to the front, then append it to
# `zs`. After the loop, `np.concatenate(zs)` is the stream.
#
# </details>


# %% jupyter={"source_hidden": true}
def attend(q, k, v, offsets):
    zs = []
    for start, end in itertools.pairwise(offsets):
        q_b, k_b, v_b = (a[start:end].swapaxes(0, 1) for a in (q, k, v))  # (NH, T, hs) each
        z_b = head(q_b, k_b, v_b)[0]  # (NH, T, hs)
        zs.append(z_b.swapaxes(0, 1))  # (T, NH, hs)
    z = np.concatenate(zs)  # (N, NH, hs)
    return z


# %% [markdown]
# ### Exercise 4.9: `attend_backward`
#
# *10 minutes · difficulty 3 of 5*
#
# From `dz`, `q`, `k` and `v`, streams of the shape $(N, NH, hs)$, and the `offsets`, compute `dq`,
# `dk` and `dv` of the same shape. Use `head_backward`, once for each sequence.


# %%
def attend_backward(dz, q, k, v, offsets):
    dq, dk, dv = ..., ..., ...
    return dq, dk, dv


grade(attend_backward)

# %% [markdown]
# <details><summary>Hint 1</summary>
#
# Start with `np.zeros_like(q)` and fill in the rows of one sequence after the other.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# As in `attend`, swap the axes on the way in and on the way out.
#
# </details>


# %% jupyter={"source_hidden": true}
def attend_backward(dz, q, k, v, offsets):
    grads = [np.zeros_like(a) for a in (q, k, v)]  # each (N, NH, hs)
    for start, end in itertools.pairwise(offsets):
        parts = head_backward(*(a[start:end].swapaxes(0, 1) for a in (dz, q, k, v)))
        for grad, part in zip(grads, parts, strict=True):  # part (NH, T, hs)
            grad[start:end] = part.swapaxes(0, 1)
    dq, dk, dv = grads
    return dq, dk, dv


# %%
z, grads = attend(q, k, v, offsets), attend_backward(dz, q, k, v, offsets)
for b, h in np.ndindex(3, NH):  # each sequence and each head by itself
    rows = slice(offsets[b], offsets[b + 1])
    own = [a[rows, h] for a in (q, k, v)]  # (T, hs) each
    assert np.abs(z[rows, h] - head(*own)[0]).max() < 1e-13, f"sequence {b}, head {h}"
    for got, want in zip(grads, head_backward(dz[rows, h], *own), strict=True):
        assert np.abs(got[rows, h] - want).max() < 1e-13, f"sequence {b}, head {h}"
print("the same as 6 heads one by one")

# %% [markdown]
# Does padding give the same numbers? We fill up with zeros at the end. The mask needs no change:
# the padding lies in the future of all tokens of its sequence. The rows of the padding get some
# $z$, too, but nothing reads it. Its $dz$ is 0, so no gradient comes from there.
#
# **Predict.** How many scores does the padded way compute for each head? And the stream?


# %%
def pad(a):
    padded = np.zeros((3, max(lengths), NH, hs))  # (B, T, NH, hs)
    for b, T in enumerate(lengths):
        padded[b, :T] = a[offsets[b] : offsets[b + 1]]
    return padded.swapaxes(1, 2)  # (B, NH, T, hs)


def unpad(padded):
    kept = [padded[b, :, :T].swapaxes(0, 1) for b, T in enumerate(lengths)]
    return np.concatenate(kept)  # (N, NH, hs)


padded = [pad(a) for a in (q, k, v)]
print("scores, padded:", 3 * max(lengths) ** 2)
print("scores, stream:", sum(T * T for T in lengths))
assert (3 * max(lengths) ** 2, sum(T * T for T in lengths)) == (75, 38)
assert np.abs(unpad(head(*padded)[0]) - z).max() < 1e-13, "z differs with padding"
for name, got, want in zip("qkv", head_backward(pad(dz), *padded), grads, strict=True):
    assert np.abs(unpad(got) - want).max() < 1e-13, f"d{name} differs with padding"
print("z and all gradients are the same")

# %% [markdown]
# **Answer.** 75 and 38. About half of the padded scores are computed for nothing.

# %% [markdown]
# A stream has a price: the offsets. If attention forgets them, each sequence reads those before it.

# %%
as_one = attend(q, k, v, np.array([0, N]))  # (N, NH, hs)
for b, (start, end) in enumerate(itertools.pairwise(offsets)):
    print(f"sequence {b} is off by {np.abs(as_one - z)[start:end].max():.2f}")
assert np.abs(as_one - z)[:5].max() < 1e-13, "the first sequence has none before it"
assert np.abs(as_one - z)[5:].max() > 0.1

# %% [markdown]
# **Recap.** A stream holds all sequences without padding. Attention cuts it at the offsets, and
# treats each sequence by itself.
#
# ## The operation of the package
#
# The package's [`attention`](../minprefix/ops/reference.py#attention) takes two lists besides the
# streams. They hold further keys and values for each sequence, $(NH, P, hs)$ each, which stand
# before its own. These are the prefixes of this course, and the next lesson is about them. For
# attention they are just $P$ more columns that every token sees.
#
# ### Exercise 4.10: `attention`
#
# *25 minutes · difficulty 4 of 5*
#
# From the streams `q`, `k` and `v` of the shape $(N, NH, hs)$, the lists `prefix_k` and `prefix_v`
# with an array of the shape $(NH, P, hs)$ for each sequence, and the `offsets`, compute the stream
# `z`. Put the prefix's keys before the keys of the sequence, and the prefix's values before its
# values. The scores and the pattern of a sequence then have the shape $(NH, T, P+T)$. Every token
# sees all $P$ columns of the prefix: row $i$ sees column $j$ if $j \le i + P$.
#
# $P$ may differ from one sequence to the next, and it may be 0. Divide by `hs**0.5`: `np.sqrt(hs)`
# is a float64, and a float32 has to stay a float32. The cache is what the backward will need: the
# inputs and the pattern of each sequence. The last line of the stub makes it, so the loop has to
# append each pattern to `patterns`. `grade` compares `z` only. The cell after ours reads the
# patterns, too.

# %%
from minprefix.ops.contract import AttentionCache


def attention(q, k, v, prefix_k, prefix_v, offsets):
    zs, patterns = [], []
    for b in range(len(offsets) - 1):
        keys = ...  # (NH, P+T, hs)
        values = ...  # (NH, P+T, hs)
        mask = ...  # True where a key is seen: (T, P+T)
        scores = ...  # before the mask: (NH, T, P+T)
        pattern = ...  # (NH, T, P+T)
        z_b = ...  # (NH, T, hs)
    z = ...  # (N, NH, hs)
    return z, AttentionCache(q, k, v, prefix_k, prefix_v, offsets, patterns)


grade(attention)

# %% [markdown]
# <details><summary>Hint 1</summary>
#
# Begin as in `attend`: cut out one sequence, heads first. Join along `axis=1`, which is the axis of
# the tokens.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# The mask is `causal_mask` with $P$ more columns on the left. Compare `np.arange(P + T)[None, :]`
# with `np.arange(T)[:, None] + P`.
#
# </details>
#
# <details><summary>Hint 3</summary>
#
# `attention_scores(q_b, keys)` works here, too: it transposes only the last two axes.
#
# </details>


# %% jupyter={"source_hidden": true}
def attention(q, k, v, prefix_k, prefix_v, offsets):
    zs, patterns = [], []
    for b in range(len(offsets) - 1):
        rows = slice(offsets[b], offsets[b + 1])
        q_b, k_b, v_b = (a[rows].swapaxes(0, 1) for a in (q, k, v))  # each (NH, T, hs)
        T, P, hs = q_b.shape[1], prefix_k[b].shape[1], q_b.shape[2]
        keys = np.concatenate([prefix_k[b], k_b], axis=1)  # (NH, P+T, hs)
        values = np.concatenate([prefix_v[b], v_b], axis=1)  # (NH, P+T, hs)
        mask = np.arange(P + T)[None, :] <= np.arange(T)[:, None] + P
        scores = q_b @ keys.swapaxes(1, 2) / hs**0.5  # before the mask: (NH, T, P+T)
        pattern = softmax(np.where(mask, scores, -np.inf))  # (NH, T, P+T)
        z_b = pattern @ values  # (NH, T, hs)
        zs.append(z_b.swapaxes(0, 1))  # (T, NH, hs)
        patterns.append(pattern)
    z = np.concatenate(zs)  # (N, NH, hs)
    return z, AttentionCache(q, k, v, prefix_k, prefix_v, offsets, patterns)


# %% [markdown]
# We write three checks of such operations. Each needs only the operation that it checks. They use
# finite differences in the place of the complex step, because the fast operations refuse complex
# numbers. Here $P = 0$. We check our `attention` and the package's two implementations. Ours
# borrows the backward of one of these; the next lesson writes it.

# %%
from types import SimpleNamespace

from minprefix.ops import numpy_ops, reference

ours = SimpleNamespace(attention=attention, attention_backward=reference.attention_backward)


def of_ops(ops, q, k, v):
    """z (N, NH, hs) and the cache of the operations `ops`, without a prefix."""
    nothing = [np.zeros((NH, 0, hs)) for _ in lengths]
    return ops.attention(q.copy(), k.copy(), v.copy(), nothing, nothing, offsets)


def gradients(ops):
    grads = ops.attention_backward(dz.copy(), of_ops(ops, q, k, v)[1])
    return {"dq": grads.dq, "dk": grads.dk, "dv": grads.dv}


def check_causal(ops):
    """Token 3 of the first sequence may move rows 3 and 4 of z, and no others."""
    other = [a.copy() for a in (q, k, v)]
    for a in other:
        a[3] = -a[3]
    change = of_ops(ops, *other)[0] - of_ops(ops, q, k, v)[0]  # (N, NH, hs)
    moved = np.flatnonzero(np.abs(change).max(axis=(1, 2)) > 1e-12).tolist()
    assert moved == [3, 4], f"token 3 moves the rows {moved} of z, expected [3, 4]"


def check_gradient(ops, eps=1e-6):
    """The backward is the derivative of the forward, whatever that computes."""
    inputs = {"q": q, "k": k, "v": v}
    for name, x in inputs.items():
        differences = np.zeros_like(x)
        for index in np.ndindex(x.shape):
            step = np.zeros_like(x)
            step[index] = eps
            up = of_ops(ops, **(inputs | {name: x + step}))[0]
            down = of_ops(ops, **(inputs | {name: x - step}))[0]
            differences[index] = (dz * (up - down)).sum() / (2 * eps)
        error = relative_error(gradients(ops)["d" + name], differences)
        assert error < 1e-7, f"d{name} is off by {error:.2g} of its largest entry"


def check_laws_of_each_sequence(ops):
    g = gradients(ops)
    for start, end in itertools.pairwise(offsets):
        for h in range(NH):
            check_laws(*(a[start:end, h] for a in (g["dk"], g["dv"], dz)))


for ops in (ours, reference, numpy_ops):
    check_causal(ops)
    check_gradient(ops)
    check_laws_of_each_sequence(ops)
    assert np.abs(of_ops(ops, q, k, v)[0] - z).max() < 1e-13, "z is another than attend's"
    for got, want in zip(gradients(ops).values(), grads, strict=True):
        assert relative_error(got, want) < 1e-13, "a gradient is another than attend_backward's"
print("three implementations agree with attend and attend_backward")

# %% [markdown]
# **Recap.** Three checks need no second implementation: what a token may change, whether the
# backward is the derivative of the forward, and two laws.
#
# ## Break it yourself
#
# The mask is one line. With a 1 too many in it, each token sees the next one.
#
# **Predict.** Which of the three checks see this bug?

# %%
from minprefix.lessons import caught, planted

peeking = planted("mask-shows-the-next-token")
print(peeking)

check_gradient(peeking.reference)
check_laws_of_each_sequence(peeking.reference)
with caught() as error:  # take this line away, and the lesson stops here
    check_causal(peeking.reference)
print(error)

# %% [markdown]
# **Answer.** Only `check_causal`. The other two pass, because this is a right gradient of a wrong
# function.

# %% [markdown]
# What would you have seen without that check? We take a small model with random weights, and train
# all of them on throws of a die with 8 faces. AdamW, the optimizer of lesson 8, takes the steps.
# Nobody can predict a die: the best possible loss is $\log(8) = 2.08$ nats.
#
# **Predict.** How far does the loss fall for a model that can peek? And for the same model, if we
# then give it a sound mask? (A model that writes a text has no next token to peek at, so this is
# like writing.)

# %%
from minprefix import GPT2, Batch
from minprefix.gpt2 import Config
from minprefix.model import loss, loss_and_weight_grads
from minprefix.optim import AdamW


def train_on_dice(ops, steps=80):
    config = Config(n_layer=1, n_head=2, n_embd=32, vocab_size=8, n_positions=12)
    model, adam, dice = GPT2.random(config, seed=0), AdamW(), np.random.default_rng(1)
    for _ in range(steps):
        batch = Batch.pack(list(dice.integers(0, 8, (16, 12))))  # 16 times 12 throws
        _, dweights = loss_and_weight_grads(model, batch, ops=ops)  # dweights: by name
        adam.step(model.weights, dweights, 1e-2)
    fresh = Batch.pack(list(dice.integers(0, 8, (100, 12))))  # throws never seen
    return loss(model, fresh, ops=ops), loss(model, fresh, ops=reference)


for name, ops in (("sound", reference), ("peeking", peeking.reference)):
    as_trained, sound_mask = train_on_dice(ops)
    print(f"{name:8} as trained {as_trained:.2f}, with a sound mask {sound_mask:.2f}")
    assert (as_trained < 0.005) == (name == "peeking"), f"dice at {as_trained:.2f} nats"
assert sound_mask > 3, "a model that learned to peek cannot do without"

# %% [markdown]
# **Answer.** It falls to 0.00 nats, on throws that the model has never seen. No model can predict
# dice, so this loss is too good to be true. With a sound mask the same model is far worse than
# guessing.

# %% [markdown]
# The second bug is the other way round. The forward is right, and one line of the backward forgets
# the scale.
#
# **Predict.** Which of the three checks see this bug?

# %%
unscaled = planted("scale-forgotten-in-dq")
print(unscaled)

check_causal(unscaled.reference)  # passes
check_laws_of_each_sequence(unscaled.reference)  # passes: no law speaks of dq
with caught() as error:
    check_gradient(unscaled.reference)
print(error)
ratio = gradients(unscaled.reference)["dq"][1:5] / grads[0][1:5]  # (4, NH, hs)
print(f"dq is {ratio.min():.3f} to {ratio.max():.3f} times the right one")
print("sqrt(hs) is", hs**0.5)
assert np.abs(ratio - hs**0.5).max() < 1e-9

# %% [markdown]
# **Answer.** Only `check_gradient`. Every number of $dq$ is $\sqrt{hs} = 2$ times as large as it
# should be. The shape and the direction are right, and nothing is NaN.

# %% [markdown]
# `check_gradient` did not see the first bug, and `check_causal` does not see the second. So you
# need both.
#
# ## Remember
#
# - Scores compare queries with keys. The pattern is their softmax, row by row. Values are mixed by
#   the pattern.
# - The mask comes before the softmax. Token $i$ sees the tokens $0 \dots i$, itself included.
# - The scale is $1/\sqrt{hs}$, and it stands in $dq$ and in $dk$ again.
# - Split heads with a reshape and a swap of two axes, never with a reshape alone.
# - Without padding, attention is the only operation that needs the offsets.
# - A gradient check compares a backward with its own forward. It cannot see a wrong forward.
# - If a loss is better than possible, look for a leak.
#
# ## Exercises
#
# **1.** Someone pads on the left, hides the padding from all tokens, and gets NaN. Where does it
# come from?
#
# <details><summary>Solution 1</summary>
#
# A token of the padding sees only padding, and all of it is hidden. So its row of scores is
# $-\infty$ everywhere. The maximum of the row is $-\infty$, and $-\infty - (-\infty)$ is NaN. With
# the mask $j \le i$ no row is empty, since token $i$ sees itself.
#
# ```python
# with np.errstate(invalid="ignore"):
#     print(softmax(np.full((1, 3), -np.inf)))
# ```
#
# </details>
#
# **2.** Let the tokens before the last one change places, keys and values together. Does the last
# row of $z$ change? What does attention know of the order of words?
#
# <details><summary>Solution 2</summary>
#
# It does not change: the order of its terms does not change a sum. Apart from the mask, attention
# knows no order. GPT-2 adds a row for the position to the row for the token, before the first layer
# (lesson 6).
#
# ```python
# order = [2, 0, 3, 1, 4]
# q_0, k_0, v_0 = (a[:5, 0] for a in (q, k, v))  # (T, hs): sequence 0, head 0
# z_moved, _ = head(q_0, k_0[order], v_0[order])
# print(np.abs(z_moved - z[:5, 0]).max(axis=1).round(3))  # the last is 0
# assert np.abs(z_moved - z[:5, 0])[4].max() < 1e-13
# ```
#
# </details>
#
# Next: [The gradient of a prefix](05_the_gradient_of_a_prefix.py).
