# %% [markdown]
# # The same on a GPU
#
# - **You will be able to** say what changes when the same arithmetic runs on a GPU and what must
#   not, why two right answers differ in their last digits, and how a batch without padding becomes
#   a few large products.
# - **You need** attention with a prefix ([lesson 5](05_the_gradient_of_a_prefix.py)) and the
#   roofline ([lesson 14](14_where_the_time_goes.py)). No GPU: what needs one is skipped, and says
#   so.
# - **Time** 40 minutes; it runs in 2 seconds.
# - **Difficulty** 3 of 3.
#
# ## Two memories
#
# A GPU computes on arrays in its own memory. CuPy gives Python such arrays under NumPy's names:
# `cupy.exp`, `a @ b`, `a.sum(axis=0)`. minprefix has its operations for them in
# [cupy_ops](../minprefix/ops/cupy_ops.py), under the same names and with the same shapes as
# [reference](../minprefix/ops/reference.py). Nothing above them knows the difference: where the
# model's weights lie decides who computes.
#
# The first rule is that an array never crosses over unasked. `model.to("cupy")` takes the weights
# to the GPU, `prefix.to("numpy")` brings a prefix home, and a prefix on one side with a model on
# the other is refused.
#
# **Predict.** Has your machine a GPU that CuPy can use? If not, what will the next cell say?

# %%
import numpy as np

from minprefix import GPT2, Batch, Prefix, loss_and_grad
from minprefix.errors import InputError
from minprefix.ops import reference

model = GPT2.load("tiny")
prefix = Prefix.normal(model.config, length=10, std=0.5, seed=0)  # kv (L, 2, NH, P, hs)
try:
    on_gpu = model.to("cupy")
except InputError as reason:
    on_gpu = None
    print("What needs a GPU is skipped here:", reason)
else:
    print(on_gpu)

# %% [markdown]
# Where there is one, the rest is short: the same call, the same numbers to rounding. Where there is
# none, two implementations on the CPU show as much: `reference`, and `numpy_ops`, which
# `loss_and_grad` takes by itself. They add in another order, too.
#
# **Predict.** How many digits of the gradient will agree in float32: all 7, about 5, about 3?

# %%
texts = ["name[The Red Fox], type[restaurant], food[Thai]\n", "name[Mill and Table], type[film]\n"]
batch = Batch.pack([model.encode(text) for text in texts], loss_from=4)
loss, dkv = loss_and_grad(model, prefix, batch)  # dkv (L, 2, NH, P, hs)


def relative_error(a, b):
    """The largest difference, as a part of the largest number."""
    return np.abs(a - b).max() / np.abs(b).max()


if on_gpu is not None:
    gpu_loss, gpu_dkv = loss_and_grad(on_gpu, prefix.to("cupy"), batch)
    other_loss, other_dkv, where = gpu_loss, gpu_dkv.get(), "on the GPU"  # get: CuPy's way home
else:
    other_loss, other_dkv = loss_and_grad(model, prefix, batch, ops=reference)
    where = "by the reference (no GPU)"
error = relative_error(other_dkv, dkv)
print(f"loss {loss:.6f}, {where} {other_loss:.6f}; the gradients differ by {error:.1g}")
assert error < 1e-4

# %% [markdown]
# About 5. One rounding is in the eighth digit, and a gradient is the work of thousands.
#
# ## Why two right answers differ
#
# Floating-point numbers are rounded after every operation, so $(a + b) + c$ and $a + (b + c)$ may
# differ in the last digit. A loop adds from left to right. A GPU has thousands of threads, and runs
# one small program, a *kernel*, in all of them at once: to sum up a row, each thread adds some of
# the numbers, then they add their sums in pairs, in a *tree*. In
# [the kernels](../minprefix/ops/cupy_kernels.cu) that is `block_sum`. Here it is in NumPy:

# %%


def tree_sum(row, threads=256):
    """As `block_sum` adds: thread t takes every 256th number, then halves add to halves."""
    part = np.zeros(threads, row.dtype)  # (threads,), threads a power of two
    for start in range(0, len(row), threads):
        piece = row[start : start + threads]
        part[: len(piece)] += piece
    while len(part) > 1:
        part = part[: len(part) // 2] + part[len(part) // 2 :]
    return part[0]


def left_to_right(row):
    total = row.dtype.type(0)
    for a in row:
        total = total + a
    return total


row = np.random.default_rng(0).normal(size=20_000).astype(np.float32)  # (20000,)
exact = row.astype(np.float64).sum()
size = np.abs(row).sum()  # errors are measured by the numbers that were added
for how in (left_to_right, tree_sum):
    error = abs(how(row) - exact) / size
    print(f"{how.__name__:14s} {how(row):.6f}, off by {error:.1g} of the size")
    assert error < 1e-6

# %% [markdown]
# A tree is not only fast, it is more exact: a number passes through some 90 additions and not
# through 20 000. Neither of the two is wrong.
#
# But one thing must not happen. Many GPU programs let all threads add to one number whenever they
# come along (*atomic* additions). Then the order is another one each time.
#
# **Predict.** Add the same numbers in five random orders. Are the five sums the same bytes? And
# `tree_sum`, called five times?

# %%
rng = np.random.default_rng(1)
by_chance = {left_to_right(row[rng.permutation(len(row))]).tobytes() for _ in range(5)}
by_tree = {tree_sum(row).tobytes() for _ in range(5)}
print(f"random orders: {len(by_chance)} different results; the tree: {len(by_tree)}")
assert len(by_chance) > 1
assert len(by_tree) == 1

# %% [markdown]
# Random orders give different sums. A fixed order gives the same bytes each time, and a run can be
# repeated. That is why no kernel of minprefix adds atomically.
#
# ## Products with fewer bits
#
# NVIDIA's tensor cores multiply several times faster if the factors are first rounded to 11
# significant bits (*TF32*); sums stay in float32. `--matmul tf32` asks for that. A float32 has 24
# significant bits: 1 that is always 1, and 23 that are stored. We can round to 11 here, by clearing
# the last 13 of the stored bits after adding half of their worth.
#
# The largest error of one rounding is half a unit in the last place: $2^{-11}$ of the number.
#
# **Predict.** So the gradient of the prefix, after 4 layers forward and backward: off by about
# $2^{-11} \approx 0.0005$ of its largest entry, by less, or by much more?

# %%


def to_tf32(a):
    # view: the same 32 bits, read as a whole number
    bits = np.ascontiguousarray(a, np.float32).view(np.uint32)
    return ((bits + np.uint32(1 << 12)) & np.uint32(0xFFFFE000)).view(np.float32)


class WithTF32:
    """The reference, with the factors of its linear layers rounded as tensor cores round them."""

    def __getattr__(self, name):
        return getattr(reference, name)

    def linear(self, x, weight, bias):
        return reference.linear(to_tf32(x), to_tf32(weight), bias)

    def linear_backward(self, dout, weight):
        return reference.linear_backward(to_tf32(dout), to_tf32(weight))


numbers = np.random.default_rng(2).normal(size=1000).astype(np.float32)
rounding = np.abs(to_tf32(numbers) / numbers - 1).max()
assert 2**-12 < rounding <= 2**-11
in_float32 = loss_and_grad(model, prefix, batch, ops=reference)[1]
in_tf32 = loss_and_grad(model, prefix, batch, ops=WithTF32())[1]
error = relative_error(in_tf32, in_float32)
print(f"one rounding: up to {rounding:.2g}; the gradient of the prefix: {error:.2g}")
assert 1e-5 < error < 1e-2

# %% [markdown]
# By more: several times one rounding, after four layers there and back. Every product adds an error
# of its own, and errors that go up and down partly cancel. Whether it matters for training is a
# question for an experiment. Whether the *code* is right is a question to be asked in float64:
# there a mistake of a thousandth cannot hide behind the rounding.
#
# ## Padding, where nobody sees it
#
# Attention in `reference` walks the sequences of a batch, one after another. On a GPU a hundred
# small products are a waste: starting a kernel takes some microseconds, whatever it does. So
# `cupy_ops` fills the sequences up into one rectangle inside of attention, and hides the filling.
# This is the idea (`cupy_ops` itself lets the tokens follow their own slots at once, so that all
# filling comes last). With $B$ sequences, $T$ the length of the longest, $P$ the slots of the
# longest prefix:
#
# - $q$ becomes $(B, NH, T, hs)$; keys and values become $(B, NH, P + T, hs)$: first the slots, then
#   the tokens;
# - sequence $b$ has $P_b \le P$ slots, and row $i$ sees column $j$ if $j < P_b$, or if
#   $P \le j \le P + i$;
# - rows behind the end of a sequence are computed for nothing, and thrown away.
#
# The second condition is the causal one. It hides the padded tokens without knowing of them: they
# lie in the future of every token. The first hides the filling of the prefixes.

# %%


def padded_attention(q, k, v, prefix_k, prefix_v, offsets, hide=True):
    """q, k, v (N, NH, hs), for each sequence prefix_k, prefix_v (NH, P, hs) -> z (N, NH, hs)."""
    lengths = np.diff(offsets)  # (B,)
    slots = np.array([a.shape[1] for a in prefix_k])  # (B,): P_b
    B, T, P, (_, NH, hs) = len(lengths), lengths.max(), slots.max(), q.shape
    queries = np.zeros((B, NH, T, hs), q.dtype)
    keys, values = (np.zeros((B, NH, P + T, hs), q.dtype) for _ in range(2))
    for b, n in enumerate(lengths):
        tokens = slice(offsets[b], offsets[b + 1])
        queries[b, :, :n] = q[tokens].swapaxes(0, 1)
        for rectangle, prefix_b, stream in ((keys, prefix_k[b], k), (values, prefix_v[b], v)):
            rectangle[b, :, : slots[b]] = prefix_b
            rectangle[b, :, P : P + n] = stream[tokens].swapaxes(0, 1)
    scores = queries @ keys.swapaxes(2, 3) / hs**0.5  # (B, NH, T, P+T), one call
    i, j = np.arange(T)[:, None], np.arange(P + T)[None, :]  # (T, 1) and (1, P+T)
    held = slots if hide else np.full(B, P)  # (B,)
    visible = (j < held[:, None, None]) | ((j >= P) & (j <= P + i))  # (B, T, P+T)
    pattern = reference.softmax(np.where(visible[:, None], scores, -np.inf))  # (B, NH, T, P+T)
    z = (pattern @ values).swapaxes(1, 2)  # (B, T, NH, hs)
    return np.concatenate([z[b, :n] for b, n in enumerate(lengths)])


rng = np.random.default_rng(3)
NH, hs = 3, 4
offsets = np.array([0, 5, 7, 13])  # three sequences, of 5, 2 and 6 tokens
q, k, v = (rng.normal(size=(13, NH, hs)) for _ in range(3))
prefix_k, prefix_v = ([rng.normal(size=(NH, P, hs)) for P in (4, 1, 0)] for _ in range(2))

z = padded_attention(q, k, v, prefix_k, prefix_v, offsets)
print(f"z {z.shape}, padded against walked:", end=" ")
print(relative_error(z, reference.attention(q, k, v, prefix_k, prefix_v, offsets)[0]))

# %% [markdown]
# Two ways to be sure: against the reference, and against *itself* on each sequence alone. The
# second needs no other implementation, and it is the law that padding must obey: **a sequence
# does not notice its neighbours.**

# %%


def check_against_the_reference(attention):
    want = reference.attention(q, k, v, prefix_k, prefix_v, offsets)[0]
    error = relative_error(attention(q, k, v, prefix_k, prefix_v, offsets), want)
    assert error < 1e-12, f"z is off by {error:.2g} of its largest entry"


def check_neighbours(attention):
    together = attention(q, k, v, prefix_k, prefix_v, offsets)
    for b in range(3):
        own = slice(offsets[b], offsets[b + 1])
        n = offsets[b + 1] - offsets[b]
        alone = attention(q[own], k[own], v[own], prefix_k[b : b + 1], prefix_v[b : b + 1], [0, n])
        error = relative_error(together[own], alone)
        assert error < 1e-12, f"sequence {b} changes by {error:.2g} in the company of the others"


def check_equal_lengths(attention):
    """The weak check: three sequences of one length, with prefixes of one length."""
    even, slots = np.array([0, 4, 8, 12]), [a[:, :1] for a in (prefix_k[0],) * 3]
    streams = [a[:12] for a in (q, k, v)]
    want = reference.attention(*streams, slots, slots, even)[0]
    assert relative_error(attention(*streams, slots, slots, even), want) < 1e-12


for check in (check_against_the_reference, check_neighbours, check_equal_lengths):
    check(padded_attention)
print("three checks pass")

# %% [markdown]
# ## Break it yourself
#
# The filling of the prefixes must be hidden, too. People who stack prefixes of different lengths
# fill the short ones up with zeros, and think that zeros do nothing. The zoo has that bug.
#
# **Predict.** Which of the three checks fire? What is the weight of a slot of zeros?

# %%
from minprefix.lessons import caught, planted

broken = planted("unequal-prefixes-padded-with-zeros")
print(broken)


def attention_with_the_bug(*arguments):
    return broken.reference.attention(*arguments)[0]


check_equal_lengths(attention_with_the_bug)  # nothing fires
with caught() as error:  # take this line away, and the lesson stops here
    check_neighbours(attention_with_the_bug)
print(error)
with caught() as error:
    check_against_the_reference(attention_with_the_bug)
print(error)

# %% [markdown]
# All but the weak one. A key of zeros has the score 0 with every query, and $e^0 = 1$ is a share of
# the softmax like any other: with $P - P_b$ of them a short prefix and its tokens get less. The
# very same numbers come from our own function if we forget to hide the filling:

# %%
inputs = (q, k, v, prefix_k, prefix_v, offsets)
forgotten = padded_attention(*inputs, hide=False)
assert relative_error(forgotten, attention_with_the_bug(*inputs)) < 1e-12
print(broken.see)

# %% [markdown]
# With equal lengths in every test you would have seen nothing; then, one day, answers that depend
# on who else is in the batch.
#
# ## What a GPU is good for
#
# From a data sheet: an NVIDIA H200 moves 4.8 TB/s, and does 67 TFLOP/s in float32 (T is
# $10^{12}$). The roofline of
# [lesson 14](14_where_the_time_goes.py) holds there, too.
#
# **Predict.** Below how many operations for each byte does it wait for its memory? One token of
# GPT-2 (124 million weights of 4 bytes, each read once): how many tokens a second at the very most?

# %%
bandwidth, peak = 4.8e12, 67e12  # bytes and operations a second
print(f"memory is the limit below {peak / bandwidth:.0f} operations a byte")
print(f"at most {bandwidth / (124e6 * 4):,.0f} tokens a second, one text at a time")
assert 13 < peak / bandwidth < 15

# %% [markdown]
# And a kernel does not start for nothing: some 5 microseconds each. A few tokens of the tiny model
# are hundreds of kernels with next to nothing to do, and most of a step is starting them. From
# which size on a GPU pays is a question for the clock, which in a clone of this repository is
# `python -m tools.bench all --backend cupy`.
#
# ## Exercises
#
# **1.** Our rectangle has $3 \times 6$ rows for 13 tokens. For a batch of the lengths 1, 1, 1 and
# 1000, how much of the rectangle is for nothing, and what would you do?
#
# <details><summary>Solution 1</summary>
#
# $4 \cdot 1000 - 1003 = 2997$ of 4000 rows, three quarters, and each of them has $P + T$ scores.
# Sort the sequences by length and compute several rectangles; or let a kernel walk the sequences.
#
# </details>
#
# **2.** (Graded.) Write `attention(q, k, v, prefix_k, prefix_v, offsets)` of the contract with one
# rectangle for all sequences. Return `z` $(N, NH, hs)$ and `AttentionCache(q, k, v, prefix_k,
# prefix_v, offsets, pattern)`, where `pattern` is a list with the array $(NH, T_b, P_b + T_b)$ of
# each sequence: cut the filling off again.

# %%
from minprefix.lessons import grade
from minprefix.ops.contract import AttentionCache  # noqa: F401  it is for you


def attention(q, k, v, prefix_k, prefix_v, offsets):
    raise NotImplementedError  # yours


grade(attention)

# %% [markdown]
# <details><summary>Solution 2</summary>
#
# ```python
# def attention(q, k, v, prefix_k, prefix_v, offsets):
#     lengths, slots = np.diff(offsets), [a.shape[1] for a in prefix_k]
#     B, T, P, (_, NH, hs) = len(lengths), max(lengths), max(slots), q.shape
#     dtype = np.result_type(q, prefix_k[0])
#     queries = np.zeros((B, NH, T, hs), dtype)
#     keys, values = (np.zeros((B, NH, P + T, hs), dtype) for _ in range(2))
#     visible = np.zeros((B, 1, T, P + T), bool)
#     i, j = np.arange(T)[:, None], np.arange(P + T)[None, :]
#     for b, n in enumerate(lengths):
#         tokens = slice(offsets[b], offsets[b + 1])
#         queries[b, :, :n] = q[tokens].swapaxes(0, 1)
#         for rectangle, prefix_b, stream in ((keys, prefix_k[b], k), (values, prefix_v[b], v)):
#             rectangle[b, :, : slots[b]] = prefix_b
#             rectangle[b, :, P : P + n] = stream[tokens].swapaxes(0, 1)
#         visible[b, 0] = (j < slots[b]) | ((j >= P) & (j <= P + i))
#     scores = queries @ keys.swapaxes(2, 3) / hs**0.5  # (B, NH, T, P+T)
#     whole = reference.softmax(np.where(visible, scores, -np.inf))  # (B, NH, T, P+T)
#     z = (whole @ values).swapaxes(1, 2)  # (B, T, NH, hs)
#     z = np.concatenate([z[b, :n] for b, n in enumerate(lengths)])  # (N, NH, hs)
#     kept = [[*range(slots[b]), *range(P, P + n)] for b, n in enumerate(lengths)]
#     pattern = [whole[b, :, :n][:, :, kept[b]] for b, n in enumerate(lengths)]
#     return z, AttentionCache(q, k, v, prefix_k, prefix_v, offsets, pattern)
#
#
# grade(attention)
# ```
#
# </details>
#
# **3.** If you have a GPU: run `minprefix demo --backend cupy --out on_gpu`, and again with
# `--backend numpy --out on_cpu`, and time both. Would the ratio be the same for GPT-2?
#
# <details><summary>Solution 3</summary>
#
# No. On so small a model little of a GPU's time is arithmetic: most of it goes into starting
# kernels. In GPT-2 there are three times as many layers, and each product of one is some twenty
# times as large.
#
# </details>
#
# Next: [The rivals](16_the_rivals.py).
