# %% [markdown]
# # What a prefix can and cannot do
#
# - **You will be able to** write attention with a prefix as a blend of two answers, measure the
#   share λ that goes to the prefix, and say of a task whether a prefix in one layer can learn it
#   at all.
# - **You need** the forward of attention with a prefix:
#   [lesson 5](05_the_gradient_of_a_prefix.py). Training as in
#   [lesson 8](08_training_a_prefix.py) helps.
# - **Time** 110 minutes; it runs in 4 seconds.
# - **Difficulty** 3 of 5.
#
# ## Overview
#
# - The output of a head with a prefix is a blend: $\lambda$ times what the slots answer, plus
#   $1 - \lambda$ times the output without the prefix. It holds to $10^{-12}$ in all 20 heads of the
#   shipped model.
# - A prefix cannot change how the attention is divided *among the tokens* of its own layer. With
#   keys 20 times as long it moves by less than $10^{-10}$.
# - So there is a task that no prefix in one layer learns: its loss stays above $\ln 2 = 0.693$. A
#   trained prefix ends at 0.73. One trained matrix with fewer numbers ends below 0.01.
# - In a model of two layers a prefix learns this task in 100 steps, to a loss below 0.05, since the
#   upper layer reacts to what the lower one adds.
# - In the shipped model, the slots of layer 2 alone serve as well as those of all four layers.
# - A planted bug in the mask is not noticed by the training or by the law. The blend notices it.
#
# ## One softmax, cut in two
#
# One [head](glossary.md#head), as in lesson 5: queries, keys and values of $T$ tokens, $q, k, v$ of
# shape $(T, hs)$, and $P$ [slots](glossary.md#slot) with keys and values of their own, $k^{pre},
# v^{pre}$ of shape $(P, hs)$ (in the code `prefix_k`, `prefix_v`). Token $i$ sees all slots and the
# tokens $0 \dots i$. Before the softmax divides, the entries of row $i$ are, for slot $j$ and for
# token $t$,
#
# $$a_{ij} = \exp \left(\frac{q_i \cdot k^{pre}_j}{\sqrt{hs}}\right), \qquad
# b_{it} = \exp \left(\frac{q_i \cdot k_t}{\sqrt{hs}}\right) \;\; (t \le i)$$
#
# with the sums $\bar a_i = \sum_j a_{ij}$ and $\bar b_i = \sum_t b_{it}$. The softmax divides all
# of them by the same number, $\bar a_i + \bar b_i$:
#
# $$z_i = \frac{\sum_j a_{ij}\, v^{pre}_j + \sum_t b_{it}\, v_t}{\bar a_i + \bar b_i}$$
#
# Let $\lambda_i = \bar a_i / (\bar a_i + \bar b_i)$ be the share of the softmax that falls on the
# slots. The [pattern](glossary.md#pattern) holds these shares, with the slots in its first $P$
# columns.

# %%
import textwrap
from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np

from minprefix import GPT2, Batch, Prefix, loss
from minprefix.data.world import table_to_text
from minprefix.lessons import grade
from minprefix.ops import numpy_ops, reference
from minprefix.optim import AdamW
from minprefix.trace import trace

rng = np.random.default_rng(0)
T, P, hs = 6, 3, 4
q, k, v = (rng.normal(size=(T, hs)) for _ in range(3))
prefix_k, prefix_v = rng.normal(size=(P, hs)), rng.normal(size=(P, hs))

# %% [markdown]
# ### Exercise 10.1: `slots_share`
#
# *3 minutes · difficulty 1 of 5*
#
# `pattern` has the shape $(\dots, T, P+T)$: in front of the last two axes there may be more, such
# as one for the heads. Its first `P` columns are the slots. Return λ for each token, $(\dots, T)$.


# %%
def slots_share(pattern, P):
    lam = ...  # (..., T)
    return lam


grade(slots_share)

# %% [markdown]
# <details><summary>Hint 1</summary>
#
# Each row of the pattern sums to 1. λ is the part of this sum that lies in the first `P` columns.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# `pattern[..., :P]` takes these columns, whatever axes stand in front. Sum over the last axis.
#
# </details>


# %% jupyter={"source_hidden": true}
def slots_share(pattern, P):
    lam = pattern[..., :P].sum(axis=-1)
    return lam


# %% [markdown]
# Now multiply and divide the first sum of $z_i$ by $\bar a_i$, and the second by $\bar b_i$:
#
# $$\begin{aligned} z_i &= \lambda_i \; own_i + (1 - \lambda_i) \; frozen_i \\
# own_i &= \sum_j (a_{ij} / \bar a_i) \; v^{pre}_j \\
# frozen_i &= \sum_t (b_{it} / \bar b_i) \; v_t \end{aligned}$$
#
# These three lines are the core of this lesson. $frozen_i$ is the output of the head without any
# prefix. $own_i$ is what the slots answer to the query $q_i$; no other token occurs in it. The
# number $\lambda_i$, between 0 and 1, blends the two. (He et al. wrote it like this in 2022. In the
# code λ is `lam`, since `lambda` is a word of Python's.)
#
# ### Exercise 10.2: `blend_parts`
#
# *12 minutes · difficulty 3 of 5*
#
# Return `lam` $(T, 1)$, `own` $(T, hs)$ and `frozen` $(T, hs)$ of one head, from `q`, `k`, `v`
# $(T, hs)$ and `prefix_k`, `prefix_v` $(P, hs)$. Mind the mask: token $i$ sees no token behind it.


# %%
def blend_parts(q, k, v, prefix_k, prefix_v):
    a = ...  # (T, P)
    b = ...  # (T, T)
    lam = ...  # (T, 1)
    own = ...  # (T, hs)
    frozen = ...  # (T, hs)
    return lam, own, frozen


grade(blend_parts)

# %% [markdown]
# <details><summary>Hint 1</summary>
#
# `a` and `b` are the exponentials of the scaled scores, not divided by any sum. Set `b` to 0 where
# a token lies ahead: `np.tri(T)` is 1 on and below the diagonal.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# `a.sum(axis=1, keepdims=True)` has the shape $(T, 1)$. Then `a / a_sum` is a softmax over the
# slots alone, and `b / b_sum` one over the tokens alone.
#
# </details>


# %% jupyter={"source_hidden": true}
def blend_parts(q, k, v, prefix_k, prefix_v):
    T, hs = q.shape
    a = np.exp(q @ prefix_k.T / hs**0.5)  # (T, P)
    b = np.exp(q @ k.T / hs**0.5) * np.tri(T)  # (T, T)
    a_sum = a.sum(axis=1, keepdims=True)  # (T, 1)
    b_sum = b.sum(axis=1, keepdims=True)  # (T, 1)
    lam = a_sum / (a_sum + b_sum)  # (T, 1)
    own = a / a_sum @ prefix_v  # (T, hs)
    frozen = b / b_sum @ v  # (T, hs)
    return lam, own, frozen


# %% [markdown]
# The package computes the same in the usual way, without λ. As in lesson 5, `attention` takes the
# stream of all tokens, $(N, NH, hs)$, the slots of each sequence as lists of arrays $(NH, P, hs)$,
# and `offsets`. We have one sequence and one head. It gives $z$ and a cache; `cache.pattern` has
# for each sequence the pattern $(NH, T, P+T)$.

# %%


def attend(ops, prefix_k, prefix_v):
    """z (T, hs) of our sequence, and the cache."""
    tokens = [a[:, None] for a in (q, k, v)]  # (T, 1, hs) each
    z, cache = ops.attention(*tokens, [prefix_k[None]], [prefix_v[None]], np.array([0, len(q)]))
    return z[:, 0], cache


def check_blend(ops):
    lam, own, frozen = blend_parts(q, k, v, prefix_k, prefix_v)
    z, _ = attend(ops, prefix_k, prefix_v)
    alone, _ = attend(ops, prefix_k[:0], prefix_v[:0])  # no slots at all
    error = np.abs(z - (lam * own + (1 - lam) * frozen)).max(axis=1)  # (T,)
    assert error.max() < 1e-13, f"no blend: off by {error.round(2)}"
    error = np.abs(alone - frozen).max()
    assert error < 1e-13, f"without slots, z is not `frozen`: off by {error:.2g}"


for ops in (reference, numpy_ops):
    check_blend(ops)
lam, own, frozen = blend_parts(q, k, v, prefix_k, prefix_v)
_, cache = attend(reference, prefix_k, prefix_v)
share = slots_share(cache.pattern[0][0], P)  # (T,) of the first sequence, the first head
print("lam           ", lam[:, 0].round(3))
print("share of slots", share.round(3))
assert np.allclose(lam[:, 0], share)

# %% [markdown]
# **Recap.** $z = \lambda \, own + (1 - \lambda) \, frozen$. λ is the softmax's share of the slots,
# $own$ is the slots' answer to the token's query, and $frozen$ is the output without a prefix.
#
# ## What follows
#
# Take two tokens $s, t \le i$. How many times as much does $i$ look at $s$ as at $t$? In the
# pattern they are the columns $P + s$ and $P + t$:
#
# $$\frac{pattern_{i,P+s}}{pattern_{i,P+t}} = \frac{b_{is}}{b_{it}} =
# \exp \left(\frac{q_i \cdot (k_s - k_t)}{\sqrt{hs}}\right)$$
#
# The common divisor $\bar a_i + \bar b_i$ has cancelled, and nothing of the prefix is left. **In
# one layer, a prefix cannot change the relative attention among the tokens.** It can draw attention
# away from all of them, by the same factor $1 - \lambda_i$. In return it adds $\lambda_i \, own_i$,
# which depends on the query of token $i$ and on no other token.
#
# ### Exercise 10.3: `relative_attention`
#
# *4 minutes · difficulty 1 of 5*
#
# From a pattern $(\dots, T, P+T)$ return the relative attention among the tokens,
# $(\dots, T, T)$: the columns of the tokens, each row divided by its sum over the tokens.


# %%
def relative_attention(pattern, P):
    tokens = ...  # (..., T, T)
    return ...


grade(relative_attention)

# %% [markdown]
# <details><summary>Hint 1</summary>
#
# The columns of the tokens begin at `P`.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# Sum over the last axis, and keep the axis (`keepdims=True`), so that the division fits each row.
#
# </details>


# %% jupyter={"source_hidden": true}
def relative_attention(pattern, P):
    tokens = pattern[..., P:]
    return tokens / tokens.sum(axis=-1, keepdims=True)


# %% [markdown]
# **Predict.** We make the keys of the slots 20 times as long, so that some queries look almost
# only at slots. By how much will the relative attention among the tokens move?

# %%


def check_relative(ops, length=1):
    _, cache = attend(ops, length * prefix_k, prefix_v)
    _, alone = attend(ops, prefix_k[:0], prefix_v[:0])
    with_prefix, without = cache.pattern[0], alone.pattern[0]  # (1, T, P+T), (1, T, T)
    moved = relative_attention(with_prefix, len(prefix_k)) - relative_attention(without, 0)
    moved = np.abs(moved).max()
    assert moved < 1e-10, f"the relative attention among tokens moved by {moved:.2g}"


lam, _, _ = blend_parts(q, k, v, 20 * prefix_k, prefix_v)
print("lam", lam[:, 0].round(5))
assert lam.max() > 0.999
check_relative(reference)
check_relative(reference, length=20)
print("the relative attention among the tokens has moved by less than 1e-10")

# %% [markdown]
# **Answer.** Not at all, up to rounding, though λ is above 0.999 for some tokens.

# %% [markdown]
# How much can one slot do? With fixed keys, $z$ is a linear function of the values: if the value of
# slot $j$ moves by a row of numbers, then the output of each token moves by its share of that row.
#
# ### Exercise 10.4: `moved_by_value`
#
# *5 minutes · difficulty 2 of 5*
#
# The value of slot `j` is changed by the row `change` $(hs)$; keys and queries stay. Return by how
# much the output $z$ of the head changes, $(T, hs)$. `pattern` has the shape $(T, P+T)$.


# %%
def moved_by_value(pattern, j, change):
    share = ...  # (T, 1)
    return ...


grade(moved_by_value)

# %% [markdown]
# <details><summary>Hint 1</summary>
#
# $z_i$ is the sum of all values, each times its share in row $i$ of the pattern. Only one value
# changes.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# The shares of slot $j$ are a column of the pattern. `pattern[:, j, None]` has the shape $(T, 1)$.
#
# </details>


# %% jupyter={"source_hidden": true}
def moved_by_value(pattern, j, change):
    share = pattern[:, j, None]  # (T, 1)
    return share * change


# %%
pattern = cache.pattern[0][0]  # (T, P+T)
z, _ = attend(reference, prefix_k, prefix_v)
changed = prefix_v.copy()
changed[1] += 5.0
z_changed, _ = attend(reference, prefix_k, changed)
assert np.allclose(z_changed - z, moved_by_value(pattern, 1, np.full(hs, 5.0)))
print("the output of each token moves by", (z_changed - z)[:, 0].round(2))

# %% [markdown]
# All tokens move in the same direction, each by its share. A share is never above λ.
#
# **Recap.** In its own layer, a prefix scales the attention to all tokens by $1 - \lambda_i$ and
# leaves its proportions. A slot's value pushes all tokens in one direction, each by its share.
#
# ## A prefix put onto a finished attention
#
# The blend has a practical side. Suppose that the attention without a prefix is computed already:
# you have $frozen$ and $\ln \bar b$ for each token and head, and the tokens' keys and values are
# gone. The blend still gives the output with any prefix. (Fast attention on a GPU joins pieces of a
# long text in this way.)
#
# Scores may be 1000 and more. There `np.exp` overflows, so work with logarithms. With $m$ the
# largest of the scores $s_j$ of a row,
#
# $$\ln \bar a = m + \ln \sum_j e^{s_j - m}, \qquad
# \lambda = \exp \left(\ln \bar a - \ln (\bar a + \bar b) \right)$$
#
# and `np.logaddexp(x, y)` computes $\ln (e^x + e^y)$ without overflow.
#
# ### Exercise 10.5: `add_prefix`
#
# *25 minutes · difficulty 4 of 5*
#
# `frozen` and `q` are $(N, NH, hs)$, the stream of several sequences; `log_b` is $\ln \bar b$,
# $(N, NH, 1)$. `prefix_k` and `prefix_v` are lists with an array $(NH, P, hs)$ for each sequence;
# $P$ may differ and may be 0. Sequence $b$ has the rows `offsets[b]` to `offsets[b + 1]` of the
# stream. Return the output $z$ with the prefix, $(N, NH, hs)$. Leave `frozen` as it is.


# %%
def add_prefix(frozen, log_b, q, prefix_k, prefix_v, offsets):
    z = frozen.copy()
    for b in range(len(offsets) - 1):
        scores = ...  # (NH, T, P)
        own = ...  # (NH, T, hs)
        log_a = ...  # (NH, T, 1)
        lam = ...  # (NH, T, 1)
    return z


grade(add_prefix)

# %% [markdown]
# <details><summary>Hint 1</summary>
#
# Take one sequence at a time, as in lesson 5: `rows = slice(offsets[b], offsets[b + 1])`, and
# `q[rows].swapaxes(0, 1)` has the shape $(NH, T, hs)$. Skip a sequence without slots. Slots are
# never masked.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# `top = scores.max(axis=2, keepdims=True)` and `a = np.exp(scores - top)`. Then $own$ does not need
# the factor $e^{top}$, which cancels, but `log_a` does: `top + np.log(a_sum)`.
#
# </details>
#
# <details><summary>Hint 3</summary>
#
# `lam = np.exp(log_a - np.logaddexp(log_a, log_b_of_these_rows))`, and then the blend. Swap the
# axes back before you store the rows.
#
# </details>


# %% jupyter={"source_hidden": true}
def add_prefix(frozen, log_b, q, prefix_k, prefix_v, offsets):
    z = frozen.copy()
    for b in range(len(offsets) - 1):
        if prefix_k[b].shape[1] == 0:
            continue
        rows = slice(offsets[b], offsets[b + 1])
        q_b = q[rows].swapaxes(0, 1)  # (NH, T, hs)
        without = frozen[rows].swapaxes(0, 1)  # (NH, T, hs)
        scores = q_b @ prefix_k[b].swapaxes(1, 2) / q.shape[2] ** 0.5  # (NH, T, P)
        top = scores.max(axis=2, keepdims=True)  # (NH, T, 1)
        a = np.exp(scores - top)
        a_sum = a.sum(axis=2, keepdims=True)
        own = a / a_sum @ prefix_v[b]  # (NH, T, hs)
        log_a = top + np.log(a_sum)  # (NH, T, 1)
        lam = np.exp(log_a - np.logaddexp(log_a, log_b[rows].swapaxes(0, 1)))  # (NH, T, 1)
        z[rows] = (lam * own + (1 - lam) * without).swapaxes(0, 1)
    return z


# %% [markdown]
# Here are three sequences with two heads, compared with the package. For `log_b` we take the
# logarithm of the tokens' sum, once more by the mask.

# %%
draw = np.random.default_rng(1)
tokens = draw.normal(0, 3, (3, 9, 2, hs))  # q, k, v of 9 tokens, 2 heads
of_each = np.array([0, 4, 5, 9])
slots = [[draw.normal(size=(2, n, hs)) for n in (3, 0, 5)] for _ in range(2)]  # keys, values
none = [np.zeros((2, 0, hs))] * 3
without, cache = reference.attention(*tokens, none, none, of_each)
log_b = np.zeros((9, 2, 1))
for start, end in pairwise(of_each):
    q_b, k_b = (a[start:end].swapaxes(0, 1) for a in tokens[:2])  # (NH, T, hs)
    b = np.exp(q_b @ k_b.swapaxes(1, 2) / hs**0.5) * np.tri(end - start)  # (NH, T, T)
    log_b[start:end, :, 0] = np.log(b.sum(axis=2)).T
expected, _ = reference.attention(*tokens, *slots, of_each)
assert np.allclose(add_prefix(without, log_b, tokens[0], *slots, of_each), expected)
print("the prefix is put onto a finished attention, without its keys and values")

# %% [markdown]
# **Recap.** $frozen$ and $\ln \bar b$ are all that a prefix needs to know of the tokens. Take λ
# from logarithms of sums, so that nothing overflows.
#
# ## λ in a real stack of layers
#
# The shipped model has 4 layers of 5 heads. It has read records (`name[...], type[...]`) and texts
# about them; the line `describe` before a record is its cue for a description. `Prefix.text` makes
# a prefix of the keys and values that this line leaves in each layer; it is 2 tokens, so $P = 2$.
# A prefix of random numbers, `drawn`, is there to compare.
#
# `trace` runs the model and keeps its intermediates by name: `blocks.2.attn.q` are the queries
# of layer 2, $(T, NH, hs)$, and `blocks.2.attn.pattern#0` is the pattern of the first sequence
# there, $(NH, T, P+T)$. Does our formula hold in each of the 20 heads? (In float64, to see all
# digits.)

# %%
model = GPT2.load("tiny", dtype="float64")
L, NH = model.config.n_layer, model.config.n_head  # 4, 5
text = Prefix.text(model, "describe\n")  # text.kv (L, 2, NH, P, hs), keys and values
drawn = Prefix.normal(model.config, text.length, std=1, seed=0, dtype="float64")

END = model.config.eos_token_id
examples = []  # token ids, and which of them is the first of the description
for record, description in table_to_text(8, "test", seed=0):
    prompt = model.encode(record + "\n")
    examples.append(([*prompt, *model.encode(description), END], len(prompt)))
ids = examples[0][0]  # one record with its description
print(textwrap.fill(model.decode(ids), 78, replace_whitespace=False))

NAMES = [f"blocks.*.attn.{name}" for name in ("q", "k", "v", "z", "pattern")]


def check_blend_in_the_model(prefix):
    seen = trace(model, Batch.pack([ids]), prefix, names=NAMES)
    for i in range(L):
        for h in range(NH):
            names = [f"blocks.{i}.attn.{name}" for name in "qkvz"]
            q, k, v, z = (seen[name].value[:, h] for name in names)  # (T, hs) each
            lam, own, frozen = blend_parts(q, k, v, *prefix.kv[i, :, h])
            error = np.abs(z - (lam * own + (1 - lam) * frozen)).max()
            assert error < 1e-12, f"layer {i}, head {h}: off by {error:.2g}"
            pattern = seen[f"blocks.{i}.attn.pattern#0"].value[h]  # (T, P+T)
            assert np.allclose(lam[:, 0], slots_share(pattern, prefix.length))


check_blend_in_the_model(text)
check_blend_in_the_model(drawn)
print(f"z is the blend in all {L * NH} heads")

# %% [markdown]
# If a token looked at everything alike, λ would be $P / (P + i + 1)$ for token $i$: 2 slots beside
# $i + 1$ tokens. The dashed line shows that. (`shares` reads λ off the patterns of the model, for
# each layer, head and token, $(L, NH, T)$.)
#
# **Predict.** Along the text, λ follows the dashed line down, with a few exceptions. The text has
# one token at which the model has to decide what kind of text to write. Which, and what will λ do
# there?

# %%
from minprefix.show.attention import shares

lam_text, lam_drawn = shares(model, ids, text), shares(model, ids, drawn)  # (L, NH, T) each
newline = examples[0][1] - 1  # the last token of the record's line; the next one is predicted

fig, (left, right) = plt.subplots(2, 1, figsize=(5, 6.4), layout="constrained")
tokens = np.arange(len(ids))
for i, style in enumerate(["-", "-.", ":", (0, (6, 1))]):
    left.plot(tokens, lam_text[i].mean(axis=0), linestyle=style, label=f"layer {i}")
left.plot(tokens, 2 / (tokens + 3), "k--", linewidth=1, label="all alike")
left.annotate("end of line", (newline, 0.62), ha="center")
left.set(title="λ of the text prefix, mean of heads", xlabel="token $i$", ylabel="λ")
left.legend(fontsize=9)
right.imshow(lam_text[:, :, newline], cmap="Greys", vmin=0, vmax=1)  # (L, NH)
for (i, h), share in np.ndenumerate(lam_text[:, :, newline]):
    right.text(h, i, f"{share:.2f}", ha="center", va="center", color="wk"[int(share < 0.5)])
right.set(title="λ at the end of the line", xlabel="head", ylabel="layer")
right.set(xticks=range(NH), yticks=range(L))

at_newline = [lam[:, :, newline].mean(axis=1).round(2) for lam in (lam_text, lam_drawn)]  # (L,)
print("at the end of the line, layers 0 to 3: text  ", at_newline[0])
print("                                       random", at_newline[1])
assert lam_text[..., :5].mean() > 3 * lam_text[..., -5:].mean()  # it falls
assert at_newline[0][2] > 0.5
assert at_newline[1].max() < 0.25
plt.show()

# %% [markdown]
# **Answer.** The newline after the record. In layer 2 more than half of all attention falls on the
# slots there. At the same place, random slots get less than a quarter in each layer.

# %% [markdown]
# **Predict.** Now we give the slots to one layer alone. Which layer will do? The loss is the mean
# over the tokens of 8 descriptions, in nats. Beside it stands the λ of that layer from above, as a
# mean over all tokens and heads.

# %%
starts = [start for _, start in examples]
batch = Batch.pack([ids for ids, _ in examples], loss_from=starts)
one_layer = [Prefix.text(model, "describe\n", layers=[i]) for i in range(L)]
losses = [loss(model, batch, prefix) for prefix in one_layer]
print(f"    no prefix: {loss(model, batch):.4f}")
for i in range(L):
    print(f"layer {i} alone: {losses[i]:.4f}   mean λ {lam_text[i].mean():.3f}")
print(f"   all layers: {loss(model, batch, text):.4f}")
assert losses[2] < 0.1 * min(losses[0], losses[1], losses[3])
assert lam_text[0].mean() > lam_text[2].mean()

# %% [markdown]
# **Answer.** Layer 2. Alone it is as good as all four together.

# %% [markdown]
# Layer 0 has a larger mean λ than layer 2, and its slots alone do little. So a large mean λ is no
# sign of a good prefix. Look at λ at the token where something is decided, and then at what $own$
# is there.
#
# **Recap.** λ can be read off each pattern of a model. It differs by layer, head and token, and its
# mean says little.
#
# ## In one layer, and in the layers above it
#
# "The prefix cannot change the relative attention" holds for a layer whose $q$ and $k$ are given.
# But the $z$ of layer 0 is part of what layer 1 gets to read. There, the queries and keys of the
# tokens themselves have changed.
#
# We compare with the model without slots. Its tokens must stand at the same positions, and with our
# prefix they begin at position 2. That is what `position_offset` says. (`patterns` gives the
# pattern of each layer.)
#
# **Predict.** The text's slots in all layers: in which layers does the relative attention
# change? In layer 2 alone: in which? In layer 3, the top, alone?

# %%
from minprefix.show.attention import patterns

no_slots = Prefix.zero(model.config, 0, position_offset=2, dtype="float64")


def change_by_layer(prefix):
    """How far the relative attention moves at most, in each layer."""
    pairs = zip(patterns(model, ids, prefix), patterns(model, ids, no_slots), strict=True)
    found = []
    for with_prefix, without in pairs:  # (NH, T, P+T), P = 0 where a layer has no prefix
        P = with_prefix.shape[2] - without.shape[2]
        found.append(np.abs(relative_attention(with_prefix, P) - without).max())
    return np.array(found)


in_all, in_2, in_3 = (change_by_layer(prefix) for prefix in (text, one_layer[2], one_layer[3]))
print("slots in all layers", in_all.round(15))
print("in layer 2 alone   ", in_2.round(15))
print("in layer 3 alone   ", in_3.round(15))
assert max(in_all[0], *in_2[:3], *in_3) < 1e-12  # the layer of the slots, and all below it
assert min(*in_all[1:], in_2[3]) > 0.05  # all above it

# %% [markdown]
# **Answer.** In the layers above the lowest one that has slots, and in no other.

# %% [markdown]
# So a prefix in the top layer changes the relative attention nowhere. A prefix further down changes
# it indirectly: it blends something into $z$, and the layers above react to it *as they have
# learned to react*.
#
# **Recap.** Within one layer the relative attention stays. In the layers above it changes, since
# their tokens have other queries and keys.
#
# ## A task that a prefix cannot learn
#
# Petrov, Torr and Bibi ("When do prompting and prefix-tuning work?", 2023) conclude: a prefix can
# bring out what the model already has, and cannot teach it a task for which a layer would have to
# look elsewhere. A failed training would not prove this; the training may have been poor. So here
# is a model that is small enough for a proof.
#
# A text is two unlike digits of 0 to 3 and a question mark: `2 0 ?`. There are 12 of them. A token
# is a row $x$ of $C = 9$ numbers, all 0 but two: a 1 for *what* it is (4 digits, 1 question mark)
# and a 1 for *where* it stands (3 positions). The ninth number, the *mark*, is 0 for every token;
# we need it at the end. There is one layer with one head, $hs = C$, and no MLP and no layernorm.
# The answer is read in the row of the question mark, in its first 4 columns, the digits:
#
# $$q = x\,W_q, \quad k = x\,W_k, \quad v = x\,W_v, \qquad
# logits = GAIN \cdot (x + z)_{?,\,:4}$$
#
# $W_q$ passes on all of $x$, doubled. $W_k$ reads what a token is and not where it stands: its rows
# for the positions are 0. $W_v$ passes on the digit. All three have the shape $(C, C)$ and are
# frozen. $z$ is a mixture of the digits with small numbers, which $GAIN = 20$ makes large enough to
# decide.

# %%
DIGITS, T, GAIN = 4, 3, 20
ASK, WHERE, MARK = DIGITS, DIGITS + 1, DIGITS + 1 + T  # where these coordinates begin
C = MARK + 1  # 9

texts = [(a, b) for a in range(DIGITS) for b in range(DIGITS) if a != b]  # 12 pairs
B = len(texts)
what = np.eye(C)[[[a, b, ASK] for a, b in texts]]  # (B, T, C): row j of eye is a 1 at place j
where = np.eye(C)[WHERE : WHERE + T]  # (T, C)
X = (what + where).reshape(B * T, C)  # the stream of all texts
offsets = np.arange(0, B * T + 1, T)  # (B+1,)
last = offsets[1:] - 1  # (B,)  the rows of the question marks

W_k = np.zeros((C, C))
W_k[:DIGITS] = rng.normal(0, 0.2, (DIGITS, C))  # the digits: random keys
W_k[MARK, ASK] = 8  # a token with a mark would have a key that `?` looks for
reader = {"W_q": 2 * np.eye(C), "W_k": W_k, "W_v": np.diag(np.arange(C) < DIGITS) * 1.0}

# %% [markdown]
# `run` computes the mean loss of the 12 texts. With `need_grads` it also goes backward and gives
# the gradient of the prefix and of the three matrices, layer by layer; lessons 2 to 5 had each of
# these lines. The prefix is `kv` $(layers, 2, P, C)$, as there is one head. All texts share it, so
# its gradient is the sum over the texts. There are two tasks: say the *smaller* of the two digits,
# or say the *first*.

# %%


def run(layers, kv, targets, ops=reference, need_grads=False):
    """-> loss, logits (B, DIGITS), patterns; or loss, dkv, and dW of each layer."""
    x, caches = X, []
    for W, (prefix_k, prefix_v) in zip(layers, kv, strict=True):
        q, k, v = ((x @ W[name])[:, None] for name in ("W_q", "W_k", "W_v"))  # (B*T, 1, C) each
        z, cache = ops.attention(q, k, v, [prefix_k[None]] * B, [prefix_v[None]] * B, offsets)
        caches.append((x, cache))
        x = x + z[:, 0]  # (B*T, C)
    logits = GAIN * x[last, :DIGITS]
    loss, cross_entropy = ops.cross_entropy(logits.copy(), targets, np.full(B, 1 / B))
    if not need_grads:
        return loss, logits, [cache.pattern for _, cache in caches]
    dkv, dW = np.zeros_like(kv), [{} for _ in layers]
    dx = np.zeros_like(x)
    dx[last, :DIGITS] = GAIN * ops.cross_entropy_backward(cross_entropy)
    for i in reversed(range(len(layers))):
        x, cache = caches[i]
        grads = ops.attention_backward(dx[:, None], cache)
        dkv[i] = sum(grads.dprefix_k)[0], sum(grads.dprefix_v)[0]
        for name, d in (("W_q", grads.dq), ("W_k", grads.dk), ("W_v", grads.dv)):
            dW[i][name] = x.T @ d[:, 0]  # (C, C)
            dx = dx + d[:, 0] @ layers[i][name].T  # (B*T, C)
    return loss, dkv, dW


smaller = np.array([min(a, b) for a, b in texts])  # (B,) the targets
first = np.array([a for a, _ in texts])  # (B,)
no_prefix = np.zeros((1, 2, 0, C))
print(f"frozen, smaller: {run([reader], no_prefix, smaller)[0]:.3f}")
print(f"frozen, first:   {run([reader], no_prefix, first)[0]:.3f}")


def check_gradient(layers, eps=1e-6):
    """Of the prefix and each W_k, along a random direction, by finite differences."""
    kv, u = rng.normal(size=(2, len(layers), 2, 3, C))  # 3 slots
    U = rng.normal(size=(C, C))
    _, dkv, dW = run(layers, kv, first, need_grads=True)
    said = (dkv * u).sum() + sum((d["W_k"] * U).sum() for d in dW)
    up, down = (
        run([{**W, "W_k": W["W_k"] + e * U} for W in layers], kv + e * u, first)[0]
        for e in (eps, -eps)
    )
    slope = (up - down) / (2 * eps)
    assert abs(slope - said) < 1e-6 * abs(slope), f"the loss rises by {slope}, not by {said}"


check_gradient([reader])
check_gradient([reader, reader])

# %% [markdown]
# ### The argument
#
# Take two digits $f$ and $g$, and the texts `f g ?` and `g f ?`. The keys and values of the digits
# do not contain the position. So both texts have the same two keys and the same two values, in
# another order. The question mark sees both digits and itself, and its query is the same in both
# texts. A sum does not depend on the order of its terms. So at the question mark the two texts have
# the same $frozen$, the same $\bar b$, the same $\lambda$ and the same $own$, and so the same $z$,
# *for every prefix of every length*.
#
# ### Exercise 10.6: `order_gap`
#
# *8 minutes · difficulty 2 of 5*
#
# A check of this argument. `texts` is a list of $B$ pairs of digits, and row $b$ of `logits`
# $(B, V)$ belongs to `texts[b]`. With each pair `(f, g)` the list also has `(g, f)`, somewhere.
# Return the largest absolute difference between the logits of a text and those of the text in the
# other order.


# %%
def order_gap(logits, texts):
    swapped = ...  # (B,)
    return ...


grade(order_gap)

# %% [markdown]
# <details><summary>Hint 1</summary>
#
# For each text, find the row of its partner. A dictionary from a text to its row helps.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# If `swapped` holds these rows, then `logits[swapped]` has the partners' logits in the order of the
# texts.
#
# </details>


# %% jupyter={"source_hidden": true}
def order_gap(logits, texts):
    row = {text: b for b, text in enumerate(texts)}
    swapped = np.array([row[g, f] for f, g in texts])  # (B,)
    return np.abs(logits - logits[swapped]).max()


# %% [markdown]
# The model gives both texts one answer: a probability $p_f$ for the digit $f$ and $p_g$ for $g$.
# The task `first` wants $f$ from one text and $g$ from the other. The mean loss of the two is
#
# $$\begin{aligned} \frac{1}{2} \left(-\ln\, p_f - \ln\, p_g\right)
# &= -\frac{1}{2} \ln(p_f \, p_g) \\
# &\ge -\frac{1}{2} \ln\, \frac{1}{4} = \ln\, 2 \end{aligned}$$
#
# since $p_f + p_g \le 1$, and then their product is at most $1/4$. No prefix gets below
# $\ln\, 2 = 0.693$, the loss of guessing between the two digits.
#
# The same argument works for any *groups* of texts that get one answer each. If the targets of a
# group are known, the best answer gives each target the probability with which it occurs in the
# group. (For example: three texts of a group want 0, 0 and 2; then $p_0 = 2/3$ and $p_2 = 1/3$.)
#
# ### Exercise 10.7: `least_loss`
#
# *12 minutes · difficulty 3 of 5*
#
# `group` and `targets` are arrays $(B)$ of whole numbers: the group and the target of each text.
# Texts of one group get the same answer. Return the least mean loss over all $B$ texts, in nats,
# that any answers can reach.


# %%
def least_loss(group, targets):
    total = ...
    return ...


grade(least_loss)

# %% [markdown]
# <details><summary>Hint 1</summary>
#
# Go through the groups. In one group, count how often each target occurs:
# `np.unique(targets[group == g], return_counts=True)`.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# A target that occurs $c$ times out of $n$ costs $-\ln (c/n)$ each of these $c$ times. Add up over
# all groups, and divide by $B$ once, at the end.
#
# </details>


# %% jupyter={"source_hidden": true}
def least_loss(group, targets):
    total = 0.0
    for g in np.unique(group):
        _, counts = np.unique(targets[group == g], return_counts=True)  # (K,)
        p = counts / counts.sum()  # (K,)
        total -= (counts * np.log(p)).sum()
    return total / len(targets)


# %% [markdown]
# For `first` the bound is $\ln 2$. For `smaller` it is 0, as both orders want the same digit:
# there, $own$ only has to favour small digits, the smaller the more.
#
# The check runs twelve prefixes of 1 to 50 slots with small and large numbers.

# %%
group = np.array([min(text) * DIGITS + max(text) for text in texts])  # (B,) one for both orders
print(f"least loss: first {least_loss(group, first):.3f}, smaller {least_loss(group, smaller):.3f}")
assert np.isclose(least_loss(group, first), np.log(2))
assert least_loss(group, smaller) == 0


def check_swap(kv):
    loss, logits, _ = run([reader], kv, first)
    assert order_gap(logits, texts) < 1e-9, "the two orders differ"
    assert loss > np.log(2) - 1e-12, f"a loss of {loss} for `first`, below ln 2"


lengths, sizes = (1, 2, 5, 50), (0.1, 1, 5)
for P in lengths:
    for size in sizes:
        check_swap(rng.normal(0, size, (1, 2, P, C)))
print(len(lengths) * len(sizes), "random prefixes: both orders get one answer, no loss below ln 2")

# %% [markdown]
# ### The training
#
# AdamW, 200 steps: 8 slots for each of the two tasks; then no prefix, but one of the frozen
# matrices set free, $W_k$, for `first`. (Full fine-tuning trains it along with the others.) The
# slots have $2 \cdot 8 \cdot 9 = 144$ numbers to train, $W_k$ has 81.
#
# **Predict.** Three losses: which of them get well below $\ln\, 2$, and which does not?

# %%


def train(layers, targets, slots=0, free=(), steps=200, lr=0.05, ops=reference):
    """The loss of each step, the prefix, the layers. It trains the prefix, or what is `free`."""
    layers = [{name: a.copy() for name, a in W.items()} for W in layers]
    kv = np.random.default_rng(1).normal(0, 0.5, (len(layers), 2, slots, C))
    adam, losses = AdamW(), []
    for step in range(steps):
        loss, dkv, dW = run(layers, kv, targets, ops, need_grads=True)
        losses.append(loss)
        if free:
            parameters = {f"{i}.{name}": W[name] for i, W in enumerate(layers) for name in free}
            grads = {f"{i}.{name}": d[name] for i, d in enumerate(dW) for name in free}
        else:
            parameters, grads = {"kv": kv}, {"kv": dkv}
        adam.step(parameters, grads, lr * (1 - step / steps))
    return losses, kv, layers


by_prefix_smaller, kv_smaller, _ = train([reader], smaller, slots=8)
by_prefix_first, kv_first, _ = train([reader], first, slots=8)
by_W_k_first, _, tuned = train([reader], first, free=["W_k"])

for name, losses in (
    ("prefix, smaller", by_prefix_smaller),
    ("prefix, first", by_prefix_first),
    ("W_k, first", by_W_k_first),
):
    print(f"{name:16s} {losses[-1]:.3f}")
check_swap(kv_first)
right = run([reader], kv_smaller, smaller)[1].argmax(axis=1) == smaller
assert right.all()
assert by_prefix_smaller[-1] < 0.4
assert np.log(2) < by_prefix_first[-1] < 0.9
assert by_W_k_first[-1] < 0.01

plt.figure(figsize=(5, 3.4), layout="constrained")
plt.plot(by_prefix_smaller, "-", color="black", label="prefix, the smaller digit")
plt.plot(by_prefix_first, "-.", color="tab:red", label="prefix, the first digit")
plt.plot(by_W_k_first, ":", color="tab:blue", linewidth=2, label="$W_k$, the first digit")
plt.axhline(np.log(2), linestyle="--", linewidth=1, color="grey", label="ln 2")
plt.gca().set(title="12 texts, one layer", xlabel="step", ylabel="loss, nats", ylim=(0, 2))
plt.legend()
plt.show()

# %% [markdown]
# **Answer.** The prefix for `smaller` and the matrix $W_k$ for `first` do. The prefix for `first`
# stays above $\ln\, 2$, as the argument says.

# %% [markdown]
# The prefix for `smaller` gets all 12 texts right. The prefix for `first` does not fail because it
# has too few numbers, and not because the position is missing: it is in $x$. One matrix that reads
# the position is enough, and it has fewer numbers. Here is what has been learned, and in how many
# of the 12 texts the question mark looks more at the first digit than at the second:

# %%
queries, any_token = X[last[:1]] @ reader["W_q"], X[:1]  # (1, C) each; own sees no token
_, own, _ = blend_parts(queries, any_token, any_token, *kv_smaller[0])  # (1, C)
print("own of the trained prefix, at the digits 0 to 3:", own[0, :DIGITS].round(2))
assert (np.diff(own[0, :DIGITS]) < 0).all()  # it favours small digits


def looks(layers, kv):
    """(B,) how many times as much `?` looks at the first digit, in the top layer."""
    top = run(layers, kv, first)[2][-1]  # for each text (1, P+T, T): the pattern of the one head
    at = np.array([pattern[0, -1, -T:] for pattern in top])  # (B, T)  the row of `?`, its tokens
    return at[:, 0] / at[:, 1]


frozen_looks, prefix_looks = looks([reader], no_prefix), looks([reader], kv_first)
W_k_looks = looks(tuned, no_prefix)
for name, ratio in (("frozen", frozen_looks), ("prefix", prefix_looks), ("W_k", W_k_looks)):
    of_2_0 = ratio[texts.index((2, 0))]
    print(f"{name:6} {(ratio > 1).sum():2} of 12; in 2 0 ? {of_2_0:.4g} times as much")
assert np.allclose(prefix_looks, frozen_looks, rtol=1e-10)
assert (frozen_looks > 1).sum() == 6
assert (W_k_looks > 1).all()

# %% [markdown]
# The frozen head looks more at the first digit in 6 of 12 texts, in one order of each pair, since
# it reads what a digit is and not where it stands. With the prefix the ratios are the same, to
# $10^{-10}$. With the trained $W_k$ it looks at the first digit in all 12.
#
# **Recap.** If a layer's keys and values do not contain a fact, a prefix in this layer cannot make
# the head use it. The bound of the loss follows from texts that must get the same answer.
#
# ## One layer more
#
# We keep this layer and put another one below it, `blank`. Its $W_q$ reads where a token stands;
# its $W_k$ and $W_v$ are 0. Without a prefix it adds 0 to each token, so the model of two layers
# gives the same answers as the model of one. Both layers are frozen. The upper layer can do
# something that it never had to do: a token with a mark would get a high score from the question
# mark (the 8 in its $W_k$). No token has a mark.
#
# **Predict.** A prefix in both layers, and the task `first` once more. Does $\ln\, 2$ still hold?

# %%
blank = {
    "W_q": np.diag(np.isin(np.arange(C), range(WHERE, WHERE + T))) * 2.0,
    "W_k": np.zeros((C, C)),
    "W_v": np.zeros((C, C)),
}
two = [blank, reader]
no_prefixes = np.zeros((2, 2, 0, C))
assert np.allclose(run(two, no_prefixes, first)[1], run([reader], no_prefix, first)[1])

by_two_layers, kv_two, _ = train(two, first, slots=8, steps=100)
print(f"loss {by_two_layers[-1]:.5f}; the first digit is looked at more in", end=" ")
print((looks(two, kv_two) > 1).sum(), "of 12 texts")
assert by_two_layers[-1] < 0.05
assert (looks(two, kv_two) > 1).all()

# %% [markdown]
# **Answer.** No. After 100 steps all 12 texts are right.

# %% [markdown]
# The argument breaks where it says that keys and values do not contain the position. In layer 0 the
# query of token 0 is not that of token 1, so λ and $own$ differ, and the prefix can add a mark to
# one token and not to the other. Layer 1 looks for marks. In each layer by itself the law holds as
# before. What does layer 0 add to the mark of each token?

# %%
queries, nothing = X[:T] @ blank["W_q"], np.zeros((T, C))  # of one text; `blank` has k = v = 0
lam, own, _ = blend_parts(queries, nothing, nothing, *kv_two[0])
mark = (lam * own)[:, MARK]  # (T,)
print("the marks of the three tokens:", mark.round(2))
assert mark[0] > mark[1] + 0.3

# %% [markdown]
# The first digit gets a clear mark, and the second hardly any. In this model we wrote the reaction
# to marks into the upper layer by hand. GPT-2 has learned many reactions in its training. Only an
# experiment can tell whether those that your task needs are among them.
#
# **Recap.** In one layer, a prefix blends and never changes the relative attention. In a stack, it
# can also use what the frozen layers above have learned to do.
#
# ## Break it yourself
#
# A bug that is easy to write: the softmax runs over all tokens, those of the future included, and
# the mask multiplies its result by 0 there. What is hidden gets no share, but it has taken part in
# the sum that divides.
#
# **Predict.** We have three checks: that $z$ is the blend (`check_blend`), that the relative
# attention stays (`check_relative`), and the small model, which has to learn `smaller`. Which of
# them notice?

# %%
from minprefix.lessons import caught, planted

broken = planted("mask-after-the-softmax")
print(broken)

with caught() as error:  # take this line away, and the lesson stops here
    check_blend(broken.reference)
print(error)

# %% [markdown]
# **Answer.** `check_blend` notices. The other two say nothing, as the next cell shows.

# %% [markdown]
# Only the last token is right, since nothing is hidden from it.

# %%
check_relative(broken.reference)  # no word: all tokens of a row shrink by one factor
losses, _, _ = train([reader], smaller, slots=8, ops=broken.reference)
print(f"small model: loss {losses[-1]:.6f}, without the bug {by_prefix_smaller[-1]:.6f}")
assert np.allclose(losses, by_prefix_smaller)
print(broken.see)

# %% [markdown]
# The small model learns as if nothing were wrong, since its answer is read at the last token. The
# law of the relative attention holds, too. It is blind to a second bug, in which the keys of the
# prefix take part and its values are forgotten:

# %%
broken = planted("values-of-the-prefix-left-out")
check_relative(broken.reference)  # the pattern is right, to the last digit
with caught() as error:
    check_blend(broken.reference)
print(error)

# %% [markdown]
# ## Remember
#
# - $z = \lambda \, own + (1 - \lambda) \, frozen$, in every head, for every prefix.
# - λ is the sum of the slots' columns of the pattern. It differs by token, head and layer.
# - A prefix leaves the relative attention among the tokens of its layer as it is.
# - Texts that a layer cannot tell apart get one answer. That bounds the loss from below, whatever
#   is trained.
# - In a stack, a prefix also changes what the layers above read. Whether that helps depends on what
#   they have learned.
# - One law can hold in a wrong program. Use checks of unlike kinds.
#
# ## Exercises
#
# **1.** A prefix of one slot. Show on paper that $z_i$ lies on the straight line from $frozen_i$ to
# the slot's value, and check it on our random numbers.
#
# <details><summary>Solution 1</summary>
#
# With one slot $a_{ij} / \bar a_i = 1$, so $own_i = v^{pre}_0$ for every token $i$, and
# $z_i - frozen_i = \lambda_i \, (v^{pre}_0 - frozen_i)$. The query decides how far the output
# moves, and not in which direction.
#
# ```python
# z, _ = attend(reference, prefix_k[:1], prefix_v[:1])  # (T, hs)
# lam, own, frozen = blend_parts(q, k, v, prefix_k[:1], prefix_v[:1])
# assert np.allclose(own, prefix_v[0])
# assert np.allclose(z - frozen, lam * (prefix_v[0] - frozen))
# ```
#
# </details>
#
# **2.** Write by hand, without training, a prefix of one slot with which the small model says the
# *larger* digit of all 12 texts.
#
# <details><summary>Solution 2</summary>
#
# A key of zeros has the score 0, so the slot gets a share of each softmax. The value favours large
# digits. Its steps must outweigh how unevenly the frozen head looks at the two digits. They must
# not be so large that a digit wins that is not in the text.
#
# ```python
# larger = np.array([max(pair) for pair in texts])
# kv = np.zeros((1, 2, 1, C))
# kv[0, 1, 0, :DIGITS] = 0.5 * np.arange(DIGITS)
# _, logits, _ = run([reader], kv, larger)
# assert (logits.argmax(axis=1) == larger).all()
# ```
#
# </details>
#
# **3.** Texts of three unlike digits and a question mark, `f g h ?`, in all orders; the task is to
# say the first digit. One layer, keys without positions. What is the least loss of any prefix?
#
# <details><summary>Solution 3</summary>
#
# All six orders of the same three digits get one answer. Each of the three digits is the target
# twice, so the best answer gives each $1/3$, and the least loss is $\ln 3$.
#
# ```python
# from itertools import permutations
#
# orders = list(permutations(range(DIGITS), 3))
# same = np.array([sum(2**digit for digit in order) for order in orders])
# assert np.isclose(least_loss(same, np.array([order[0] for order in orders])), np.log(3))
# ```
#
# </details>
#
# Next: [many tasks, one model](11_many_tasks.py).
