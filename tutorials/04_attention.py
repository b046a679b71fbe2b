# %% [markdown]
# # Attention and its gradient
#
# - **You will be able to** write attention and its backward, first for one head, then for many
#   heads and many sequences at once with no padding between them; and to choose checks that see a
#   wrong mask, and checks that see a wrong gradient.
# - **You need** the backward of a matrix product, the complex step and finite differences:
#   [lesson 2](02_backward_by_hand.py). The backward of a softmax:
#   [lesson 3](03_softmax_and_cross_entropy.py).
# - **Time** 50 minutes; it runs in 3 seconds.
# - **Difficulty** 2 of 3.
#
# ## One head
#
# Everything else in the model looks at one token at a time. Attention is where tokens look at each
# other. A layer does that several times side by side; each of these is a *head*. To a head, each of
# the $T$ tokens of a sequence brings three rows of $hs$ numbers (the *head size*). A linear layer
# has made them from what the model knows of the token so far; here they are given.
#
# - Its *query*: what am I looking for?
# - Its *key*: by what am I found?
# - Its *value*: what do I hand over to those who find me?
#
# So `q`, `k` and `v` have the shape $(T, hs)$. The *score* of tokens $i$ and $j$ is the dot product
# of the query of $i$ and the key of $j$, divided by $\sqrt{hs}$ (why, comes below). These scores
# are no logits: they rate tokens of the text, not of the vocabulary. Softmax makes shares of each
# row, the *pattern*; and what token $i$ takes home, $z_i$, is the mixture of the values in these
# shares:
#
# $$scores = \frac{q \, k^\top}{\sqrt{hs}}, \qquad pattern = \mathrm{softmax}(scores), \qquad
# z = pattern \; v$$
#
# $scores$ and $pattern$ have the shape $(T, T)$: a row for each token that looks, a column for each
# token that is looked at. $z$ has the shape $(T, hs)$, as $v$ has.
#
# One thing is forbidden. Token $i$ will be asked for token $i + 1$, so it must not look at it, nor
# further. It sees the tokens $0 \dots i$. The scores of the others are set to $-\infty$ before the
# softmax, and $e^{-\infty} = 0$: they have no share. This is the *causal mask*.

# %%
import itertools

import numpy as np


def softmax(scores):
    # as in lesson 3: scores (T, T), each row for itself
    e = np.exp(scores - scores.real.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def head(q, k, v):
    T, hs = q.shape[-2:]
    # row i sees column j if j is not in i's future
    visible = np.arange(T)[None, :] <= np.arange(T)[:, None]  # (T, T)
    # k.swapaxes(-1, -2) is k transposed; with more than two axes it still is, of the last two
    scores = q @ k.swapaxes(-1, -2) / hs**0.5  # (T, T)
    pattern = softmax(np.where(visible, scores, -np.inf))  # (T, T)
    return pattern @ v, pattern  # z (T, hs)


# %% [markdown]
# A head made by hand. Each key says which place its token stands at: key $j$ is 1 in column $j$ and
# 0 elsewhere. Each query asks for the place before its own, with some emphasis: query $i$ is 20 in
# column $i - 1$. The first token has nothing before it, and asks for nothing. The picture shows its
# pattern, and beside it one of random numbers: black is 1, white is 0.
#
# **Predict.** What does the row of `fox` look like in the pattern? And that of `the`, whose query
# is all zeros?

# %%
import matplotlib.pyplot as plt

words = ["the", "red", "fox", "sees", "hens"]
places = np.eye(5)  # (T, T): T = hs = 5 here
_, previous = head(q=20 * np.eye(5, k=-1), k=places, v=places)  # pattern (T, T)
for word, shares in zip(words, previous, strict=True):
    print(f"{word:5}", shares.round(3))
assert (np.diag(previous, k=-1) > 0.99).all(), "each looks at the token before it"
assert previous[0, 0] == 1, "the first token sees itself alone, whatever it asks for"

rng = np.random.default_rng(0)
T, hs = 5, 4
q, k, v = (rng.normal(size=(T, hs)) for _ in range(3))  # (T, hs) each
z, pattern = head(q, k, v)  # (T, hs), (T, T)

figure, axes = plt.subplots(1, 2, figsize=(8, 3.6))
shown = {"made by hand": previous, "drawn at random": pattern}
for ax, (title, shares) in zip(axes, shown.items(), strict=True):
    ax.imshow(shares, cmap="Greys", vmin=0, vmax=1)
    ax.set_xticks(range(5), words)
    ax.set_yticks(range(5), words)
    ax.set_xlabel("who is looked at (key)")
    ax.set_ylabel("who looks (query)")
    ax.set_title(f"A pattern {title}")
figure.tight_layout()
plt.show()

# %% [markdown]
# `fox` looks at `red`: a share of nearly 1 there, and nearly 0 elsewhere. `the` sees itself alone,
# and gives itself 1.
#
# Now the random one. We give token 3 another query, another key and another value.
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
# Row 3 and all later ones: they look at token 3. No earlier one does.
#
# ## Why the scale
#
# Say that the entries of $q$ and $k$ are independent, with the mean 0 and the variance 1. Then
# $q_i \cdot k_j$ is a sum of $hs$ products of variance 1, and its variance is $hs$: the larger the
# heads, the further apart the scores of a row. Softmax then gives most to one token and next to
# nothing to the others. For both its slope is nearly 0 ($pattern_{ij} (1 - pattern_{ij})$, on the
# diagonal of lesson 3's Jacobian), and little is learned.
#
# **Predict.** 50 tokens, heads of size 64, no mask. Equal shares would be 0.02. How large is the
# largest share of a row, on average, with the scale and without: about 0.02, 0.15, or 0.8?

# %%
wide_q, wide_k = rng.normal(size=(2, 50, 64))  # (50, 64) each
raw = wide_q @ wide_k.T  # (50, 50)
for name, scores in (("without", raw), ("with   ", raw / 64**0.5)):
    shares = softmax(scores)  # (50, 50)
    print(f"{name} scale: deviation of the scores {scores.std():.1f},", end=" ")
    print(f"largest share {shares.max(axis=1).mean():.2f}", end=", ")
    print(f"slope {(shares * (1 - shares)).mean():.3f}")
assert softmax(raw).max(axis=1).mean() > 0.7
assert softmax(raw / 8).max(axis=1).mean() < 0.3

# %% [markdown]
# About 0.15 with the scale and 0.8 without. With the scale the scores keep a deviation of 1,
# however wide the heads are.
#
# ## Backward
#
# What lies behind the head tells us $dz = \partial \ell / \partial z$, of shape $(T, hs)$. The
# forward has three formulas. We walk them backwards. In each, we ask where a number was used, and
# sum over all of these places.
#
# 1. $z_i = \sum_j pattern_{ij} \, v_j$. The value of $j$ went to every $i$ that saw it, and each
#    share met one value:
#
#    $$dv_j = \sum_i pattern_{ij} \, dz_i, \qquad dpattern_{ij} = dz_i \cdot v_j$$
#
# 2. $pattern = \mathrm{softmax}(scores)$. Rows know nothing of each other; for any row, with its
#    index $i$ left out, lesson 3 has found
#
#    $$\begin{aligned} dscores_j &= pattern_j \, (dpattern_j - row\_sum), \\
#    row\_sum &= \sum_m dpattern_m \, pattern_m \end{aligned}$$
#
#    Where $j$ is hidden from $i$ the pattern is 0, and so is $dscores$: a constant $-\infty$ stood
#    there, that no query and no key can move.
#
# 3. $scores_{ij} = q_i \cdot k_j / \sqrt{hs}$. The query of $i$ met all keys, the key of $j$ all
#    queries, and the scale is a factor of both:
#
#    $$dq_i = \sum_j dscores_{ij} \, k_j / \sqrt{hs}, \qquad
#    dk_j = \sum_i dscores_{ij} \, q_i / \sqrt{hs}$$
#
# All the sums are matrix products: $dv = pattern^\top dz$, $\; dpattern = dz \, v^\top$,
# $\; dq = dscores \, k / \sqrt{hs}$, $\; dk = dscores^\top q / \sqrt{hs}$.
#
# **Predict.** One row of $dq$ is exactly 0, whatever $dz$ is. Which one, and why?


# %%
def head_backward(dz, q, k, v):
    hs = q.shape[-1]
    _, pattern = head(q, k, v)  # (T, T)
    dv = pattern.swapaxes(-1, -2) @ dz  # (T, hs)
    dpattern = dz @ v.swapaxes(-1, -2)  # (T, T)
    row_sum = (dpattern * pattern).sum(axis=-1, keepdims=True)  # (T, 1)
    dscores = pattern * (dpattern - row_sum)  # (T, T)
    dq = dscores @ k / hs**0.5  # (T, hs)
    dk = dscores.swapaxes(-1, -2) @ q / hs**0.5  # (T, hs)
    return dq, dk, dv


dz = rng.normal(size=(T, hs))  # at random: lesson 3 says why
dq, dk, dv = head_backward(dz, q, k, v)
print("largest entry of each row of dq:", np.abs(dq).max(axis=1).round(3))
assert (dq[0] == 0).all(), "token 0 has no choice, so its query has no gradient"

# %% [markdown]
# Token 0 sees itself alone. Its share is 1 whatever it asks for, so its query changes nothing. Now
# the proof for all of it: the complex step, through $\ell = \sum dz \odot z$, whose upstream is
# $dz$ ($\odot$ multiplies entry by entry).


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
    print(name, relative_error(got, right))
    assert relative_error(got, right) < 1e-13, f"{name} is not the derivative"

# %% [markdown]
# ## Two laws
#
# They hold for every $q$, $k$, $v$ and $dz$, since each row of the pattern sums to 1. (The sums run
# over the tokens: a row of $hs$ numbers on each side.)
#
# - Add one vector to all keys. The scores of a row all change by one number, the softmax does not
#   notice, and $\ell$ stays: $\sum_j dk_j = 0$.
# - Add one vector to all values. Every $z_i$ moves by that vector:
#   $\sum_j dv_j = \sum_i dz_i$.

# %%
print("sum of dk:", np.abs(dk.sum(axis=0)).max())
print("sum of dv minus sum of dz:", np.abs(dv.sum(axis=0) - dz.sum(axis=0)).max())
assert np.abs(dk.sum(axis=0)).max() < 1e-13
assert np.abs(dv.sum(axis=0) - dz.sum(axis=0)).max() < 1e-13

# %% [markdown]
# Laws are quick, and blind to much: `-dk` and `100 * dk` keep the first one, and neither says a
# word about `dq`.
#
# ## Many heads
#
# A layer has $NH$ heads. For the queries, its linear layer gives each token one row of
# $C = NH \cdot hs$ numbers; the first $hs$ belong to head 0, the next to head 1. The same goes for
# keys and values. So $(T, C)$ is reshaped to $(T, NH, hs)$, and that costs nothing: no number
# moves. Now `head` wants $(T, hs)$ in the last two places, with the heads before them:
# $(NH, T, hs)$. NumPy's `@` multiplies the last two axes, and does so for each index of the others.
#
# Here every number says where it is from: 10 times its token, plus its column.
#
# **Predict.** There are two ways to an array of the shape $(NH, T, hs)$. Do both give head 0 the
# columns 0 and 1 of every token?

# %%
labelled = 10 * np.arange(3)[:, None] + np.arange(4)  # (T, C), T = 3, C = 4
two_heads = labelled.reshape(3, 2, 2).swapaxes(0, 1)  # (NH, T, hs), NH = 2, hs = 2
reshaped = labelled.reshape(2, 3, 2)  # (NH, T, hs), too
print("reshape, then swapaxes:", two_heads[0].tolist())
print("reshape alone:         ", reshaped[0].tolist())
assert (two_heads[0] == labelled[:, :2]).all()
assert (reshaped[0] != labelled[:, :2]).any()

# %% [markdown]
# Only the first one does. The second takes half a token for a token, and no shape complains.
#
# ## Many sequences, without padding
#
# The sequences of a batch have unlike lengths. The usual way fills them up to the longest, computes
# all of it, and throws the padding away. Ours is a *stream*: all sequences behind one another, $N$
# tokens in all, and `offsets` says where each begins; one more number says where the last one ends.
# Linear layers, layernorm and GELU work on rows, and need not know. Attention alone does: each
# sequence goes through `head` by itself, with all its heads.

# %%
NH, lengths = 2, [5, 2, 3]
offsets = np.cumsum([0, *lengths])  # (B+1,): B = 3 sequences
N = offsets[-1]
q, k, v, dz = (rng.normal(size=(N, NH, hs)) for _ in range(4))  # (N, NH, hs) each
print("offsets", offsets, " sequences", list(itertools.pairwise(offsets.tolist())))


def attend(q, k, v, offsets):
    zs = []
    for start, end in itertools.pairwise(offsets):
        z, _ = head(*(a[start:end].swapaxes(0, 1) for a in (q, k, v)))  # (NH, T, hs)
        zs.append(z.swapaxes(0, 1))  # (T, NH, hs)
    return np.concatenate(zs)  # (N, NH, hs)


def attend_backward(dz, q, k, v, offsets):
    grads = [np.zeros_like(a) for a in (q, k, v)]  # (N, NH, hs) each
    for start, end in itertools.pairwise(offsets):
        parts = head_backward(*(a[start:end].swapaxes(0, 1) for a in (dz, q, k, v)))
        for grad, part in zip(grads, parts, strict=True):  # part (NH, T, hs)
            grad[start:end] = part.swapaxes(0, 1)
    return grads


z, grads = attend(q, k, v, offsets), attend_backward(dz, q, k, v, offsets)
for b, h in np.ndindex(3, NH):  # each sequence and each head by itself
    rows = slice(offsets[b], offsets[b + 1])
    own = [a[rows, h] for a in (q, k, v)]  # (T, hs) each
    assert np.abs(z[rows, h] - head(*own)[0]).max() < 1e-13, f"sequence {b}, head {h}"
    for got, want in zip(grads, head_backward(dz[rows, h], *own), strict=True):
        assert np.abs(got[rows, h] - want).max() < 1e-13, f"sequence {b}, head {h}"
print("the same as 6 heads one by one")

# %% [markdown]
# Is that what padding gives? We fill up with zeros at the end. The mask needs no change: what
# stands behind a sequence lies in the future of all its tokens. (The rows of the padding get some
# $z$, too, and nobody reads it; $dz$ is 0 there, so nothing comes back from them.)
#
# **Predict.** The padded way computes how many scores for each head, and the stream how many?


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
assert np.abs(unpad(head(*padded)[0]) - z).max() < 1e-13, "z with padding is another"
for name, got, want in zip("qkv", head_backward(pad(dz), *padded), grads, strict=True):
    assert np.abs(unpad(got) - want).max() < 1e-13, f"d{name} with padding is another"
print("z and all gradients are the same")

# %% [markdown]
# 75 and 38: half of the padded scores were for nothing. The price of a stream is one argument, and
# whoever forgets it lets each sequence read those before it:

# %%
as_one = attend(q, k, v, np.array([0, N]))  # (N, NH, hs)
for b, (start, end) in enumerate(itertools.pairwise(offsets)):
    print(f"sequence {b} is off by {np.abs(as_one - z)[start:end].max():.2f}")
assert np.abs(as_one - z)[:5].max() < 1e-13, "the first sequence has none before it"
assert np.abs(as_one - z)[5:].max() > 0.1

# %% [markdown]
# ## The operation of the package
#
# The package's [`attention`](../minprefix/ops/reference.py#attention) takes the stream and two
# lists besides: for each sequence further keys and values, $(NH, P, hs)$, that stand before its
# own. They are the prefixes of this course, and the next lesson is about them. Here $P = 0$: arrays
# of no slots.
#
# Three checks, each of which needs nothing but the operations that it checks. Finite differences
# take the place of the complex step: the fast operations refuse complex numbers.

# %%
from minprefix.ops import numpy_ops, reference


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


def check_laws(ops):
    """In each sequence the sum of dk is 0, the sum of dv is the sum of dz."""
    g = gradients(ops)
    for start, end in itertools.pairwise(offsets):
        off = np.abs(g["dk"][start:end].sum(axis=0)).max()
        assert off < 1e-13, f"dk sums to {off:.2g}, expected 0"
        off = np.abs((g["dv"] - dz)[start:end].sum(axis=0)).max()
        assert off < 1e-13, f"dv sums to another number than dz, by {off:.2g}"


for ops in (reference, numpy_ops):
    check_causal(ops)
    check_gradient(ops)
    check_laws(ops)
    assert np.abs(of_ops(ops, q, k, v)[0] - z).max() < 1e-13, "z is another than ours"
    for got, want in zip(gradients(ops).values(), grads, strict=True):
        assert relative_error(got, want) < 1e-13, "a gradient is another than ours"
print("the package agrees, twice")

# %% [markdown]
# ## Break it yourself
#
# The mask is one line, and `<=` with a 1 too many lets each token see the next one.
#
# **Predict.** `check_causal`, `check_gradient`, `check_laws`: which of them see it?

# %%
from minprefix.lessons import caught, planted

peeking = planted("mask-shows-the-next-token")
print(peeking)

check_gradient(peeking.reference)
check_laws(peeking.reference)
with caught() as error:  # take this line away, and the lesson stops here
    check_causal(peeking.reference)
print(error)

# %% [markdown]
# Only `check_causal`; the other two pass. This is a perfect gradient of the wrong function. What
# would you have seen without that check? We take a small model with random weights, and train all
# of them on throws of a die with 8 faces. Nobody can predict a die: the best loss is
# $\log(8) = 2.08$ nats.
#
# **Predict.** To which loss does the model fall that can peek? And which loss has it with a sound
# mask? (When it writes a text there is no next token to peek at, which comes to the same.)

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
    assert (as_trained < 1) == (name == "peeking"), f"dice at {as_trained:.2f} nats"
assert sound_mask > 3, "whoever learned to peek cannot do without"

# %% [markdown]
# It "predicts" dice, on throws that it has never seen: 0 nats. A loss that is too good to be true
# is not true. With a sound mask it is far worse than guessing.
#
# The second bug is the other way round: a sound forward, and a scale that is forgotten in one line
# of the backward.

# %%
unscaled = planted("scale-forgotten-in-dq")
print(unscaled)

check_causal(unscaled.reference)  # passes
check_laws(unscaled.reference)  # passes: no law speaks of dq
with caught() as error:
    check_gradient(unscaled.reference)
print(error)
ratio = gradients(unscaled.reference)["dq"][1:5] / grads[0][1:5]  # (4, NH, hs)
print(f"dq is {ratio.min():.3f} to {ratio.max():.3f} times the right one")
print("sqrt(hs) is", hs**0.5)

# %% [markdown]
# Every number of $dq$ is twice what it should be, $\sqrt{hs}$ times: the shape fits, the direction
# is right, nothing is NaN, and both laws hold. Only a comparison with another gradient sees it. And
# that comparison was blind to the first bug: neither check can replace the other.
#
# ## Exercises
#
# **1.** Someone pads on the left, hides the padding from all, and gets NaN. Where does it come
# from?
#
# <details><summary>Solution 1</summary>
#
# A token of the padding sees only padding, and that is hidden: its row of scores is $-\infty$ from
# end to end. Its maximum is $-\infty$, and $-\infty - (-\infty)$ is NaN; without taking off the
# maximum it is $0/0$. With the mask $j \le i$ no row is empty, since $i$ sees itself.
#
# ```python
# with np.errstate(invalid="ignore"):
#     print(softmax(np.full((1, 3), -np.inf)))
# ```
#
# </details>
#
# **2.** Let the tokens before the last one change places, keys and values together. What becomes of
# the last row of $z$? What does attention know of the order of words?
#
# <details><summary>Solution 2</summary>
#
# It stays: a sum does not ask for the order of its terms. Apart from the mask, attention knows no
# order. GPT-2 adds a row for the position to that for the token, at the very bottom (lesson 6).
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
# **3.** (Graded.) Write the contract's `attention(q, k, v, prefix_k, prefix_v, offsets)` for
# streams $(N, NH, hs)$. `prefix_k` and `prefix_v` are the two lists, an array $(NH, P, hs)$ for
# each sequence, and the suite comes with $P > 0$, too. Put them before the keys and values of the
# sequence, and let every token see all $P$ of them: row $i$ sees column $j$ for $j \le i + P$, and
# a pattern has the shape $(NH, T, P+T)$. What such slots are good for is the next lesson. Return
# `z` and a cache, in whatever form you like. float32 has to stay float32: divide by `hs**0.5`,
# since `np.sqrt(hs)` is a float64 of NumPy's.

# %%
from minprefix.lessons import grade


def attention(q, k, v, prefix_k, prefix_v, offsets):
    raise NotImplementedError  # yours: return z, cache


grade(attention)

# %% [markdown]
# <details><summary>Solution 3</summary>
#
# ```python
# from minprefix.ops.contract import AttentionCache
#
#
# def attention(q, k, v, prefix_k, prefix_v, offsets):
#     zs, patterns = [], []
#     for b in range(len(offsets) - 1):
#         rows = slice(offsets[b], offsets[b + 1])
#         q_b, k_b, v_b = (a[rows].swapaxes(0, 1) for a in (q, k, v))  # (NH, T, hs) each
#         keys = np.concatenate([prefix_k[b], k_b], axis=1)  # (NH, P+T, hs)
#         values = np.concatenate([prefix_v[b], v_b], axis=1)  # (NH, P+T, hs)
#         T, P, hs = q_b.shape[1], prefix_k[b].shape[1], q_b.shape[2]
#         visible = np.arange(P + T)[None, :] <= np.arange(T)[:, None] + P  # (T, P+T)
#         scores = q_b @ keys.swapaxes(1, 2) / hs**0.5  # (NH, T, P+T)
#         pattern = softmax(np.where(visible, scores, -np.inf))  # (NH, T, P+T)
#         zs.append((pattern @ values).swapaxes(0, 1))  # (T, NH, hs)
#         patterns.append(pattern)
#     z = np.concatenate(zs)  # (N, NH, hs)
#     return z, AttentionCache(q, k, v, prefix_k, prefix_v, offsets, patterns)
#
#
# grade(attention)
# ```
#
# The names of the cache are those that the next lesson's backward looks for.
#
# </details>
#
# Next: [The gradient of a prefix](05_the_gradient_of_a_prefix.py).
