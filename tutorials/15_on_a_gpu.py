# %% [markdown]
# # The same on a GPU
#
# - **You will be able to** say what changes when the same arithmetic runs on a GPU and what must
#   not, why two right answers differ in their last digits, and how a batch without padding becomes
#   a few large products.
# - **You need** attention with a prefix ([lesson 5](05_the_gradient_of_a_prefix.py)) and the
#   roofline ([lesson 14](14_where_the_time_goes.py)). You need no GPU: the lesson skips
#   what needs one, and says so.
# - **Time** 100 minutes; it runs in 2 seconds.
# - **Difficulty** 3 of 5.
#
# ## Overview
#
# - The same operations run on the CPU and on a GPU, under the same names and with the same shapes.
# - Two right answers differ in float32, because they add in another order. You write the order of a
#   GPU's kernel: its error is smaller than that of a loop, and it gives the same bytes each time.
# - Rounding the factors of all linear layers to 11 bits changes the gradient of the prefix by
#   several times one rounding.
# - You fill the sequences of a batch up to a rectangle, hide the filling and cut it off again: the
#   result is the same to rounding.
# - Four texts of 1, 1, 1 and 1000 tokens waste 75% of their rectangle.
# - A slot of zeros that is not hidden takes a share of the softmax.
#
# **What is measured here, and what is not.** This lesson measures everything that it can on a CPU:
# errors of sums, errors of rounded products, work wasted by padding, calls in a step. The GPU code
# of this project has never run on a GPU (its [page](../docs/gpu.md) says what was tested instead).
# So sentences about a GPU's speed give a source: its data sheet, or an assumption that you can
# change.
#
# ## Two memories
#
# A GPU computes on arrays in its own memory. CuPy gives Python such arrays under NumPy's names:
# `cupy.exp`, `a @ b`, `a.sum(axis=0)`. minprefix has its operations for them in
# [cupy_ops](../minprefix/ops/cupy_ops.py), under the same names and with the same shapes as
# [reference](../minprefix/ops/reference.py). The model's code above them is the same. The place of
# the model's weights decides which operations run.
#
# No array moves to the other side unless you ask for it. `model.to("cupy")` takes the weights to
# the GPU, `prefix.to("numpy")` brings a prefix home, and a prefix on one side with a model on the
# other is refused.

# %%
import numpy as np

from minprefix import GPT2, Batch, Prefix, loss_and_grad
from minprefix.errors import InputError
from minprefix.lessons import grade
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
# Where there is a GPU, the rest is short: the same call on arrays of the other side. Where there is
# none, we compare two implementations on the CPU: `reference`, and `numpy_ops`, which
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
# **Answer.** About 5. One rounding changes the eighth digit, and a gradient has been rounded
# thousands of times.

# %% [markdown]
# **Recap.** An implementation for another machine has the same operations and the same shapes. Its
# float32 numbers agree in about five digits, and not in all.
#
# ## Why two right answers differ
#
# Floating-point numbers are rounded after every operation, so $(a + b) + c$ and $a + (b + c)$ may
# differ in the last digit. A loop adds from left to right. A GPU has thousands of threads, and runs
# one small program, a *kernel*, in all of them at once. To sum up a row, each thread adds some of
# the numbers. Then they add their sums in pairs, in a *tree*. In
# [the kernels](../minprefix/ops/cupy_kernels.cu) that is `block_sum`.
#
# ### Exercise 15.1: `tree_sum`
#
# *10 minutes · difficulty 2 of 5*
#
# Add the numbers of `row` in the order of `block_sum`, in the row's own precision:
#
# 1. Thread $t$ (from 0) takes the numbers at $t$, $t + threads$, $t + 2 \, threads$ and so on, and
#    adds them in this order, beginning with 0.
# 2. As long as there is more than one sum, the second half of the sums is added to the first half:
#    sum $t$ and sum $t + half$.
#
# `threads` is a power of two. Return the one number that is left.


# %%
def tree_sum(row, threads):
    part = ...  # a sum for each thread
    return ...


grade(tree_sum)

# %% [markdown]
# <details><summary>Hint 1</summary>
#
# `part = np.zeros(threads, row.dtype)`. Row by row, `row[start : start + threads]` has one number
# for each thread; the last piece may be shorter.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# `half = len(part) // 2`, and then `part[:half] + part[half:]`, while `half` is above 0.
#
# </details>


# %% jupyter={"source_hidden": true}
def tree_sum(row, threads):
    part = np.zeros(threads, row.dtype)  # a sum for each thread
    for start in range(0, len(row), threads):
        piece = row[start : start + threads]
        part[: len(piece)] += piece
    while len(part) > 1:
        half = len(part) // 2
        part = part[:half] + part[half:]
    return part[0]


# %% [markdown]
# **Predict.** Which order makes the smaller error on 20,000 numbers in float32, the loop or the
# tree of 256 threads? Through how many additions does a number pass in each?


# %%
def left_to_right(row):
    total = row.dtype.type(0)
    for a in row:
        total = total + a
    return total


row = np.random.default_rng(0).normal(size=20_000).astype(np.float32)  # (20000,)
exact = row.astype(np.float64).sum()
size = np.abs(row).sum()  # errors are measured by the numbers that were added
errors = {}
for name, total in (("left to right", left_to_right(row)), ("tree", tree_sum(row, 256))):
    errors[name] = abs(total - exact) / size
    print(f"{name:14s} {total:.6f}, off by {errors[name]:.1g} of the size")
    assert errors[name] < 1e-6
assert errors["tree"] < errors["left to right"]
additions = -(-len(row) // 256) + 8  # of one thread, and 2^8 = 256
print(f"a number passes through at most {len(row)} additions, or {additions}")

# %% [markdown]
# **Answer.** The tree. A number passes through at most 87 additions, and not through 20,000.
# Neither of the two sums is wrong.

# %% [markdown]
# One thing must not happen. A program could let all threads add to one number whenever they come
# along (*atomic* additions). Then nobody fixes the order, and it may be another one each time. We
# imitate that by random orders.
#
# **Predict.** Add the same numbers in five random orders. Are the five sums the same bytes? And
# `tree_sum`, called five times?

# %%
rng = np.random.default_rng(1)
by_chance = {left_to_right(row[rng.permutation(len(row))]).tobytes() for _ in range(5)}
by_tree = {tree_sum(row, 256).tobytes() for _ in range(5)}
print(f"random orders: {len(by_chance)} different results; the tree: {len(by_tree)}")
assert len(by_chance) > 1
assert len(by_tree) == 1

# %% [markdown]
# **Answer.** Random orders give different sums. A fixed order gives the same bytes each time.

# %% [markdown]
# **Recap.** The order of additions decides the last digits. With a fixed order a run can be
# repeated. That is why no kernel of minprefix adds atomically.
#
# ## Products with fewer bits
#
# NVIDIA's tensor cores multiply faster if the factors are first rounded to 11 significant bits
# (*TF32*); the sums stay in float32. (For an H200 the data sheet says 989 TFLOP/s with sparse
# factors and half of that without, against 67 in float32. We have measured none of these.)
# `--matmul tf32` asks for that. A float32 has 24 significant bits: 1 that is always 1, and 23 that
# are stored. Here we round to 11 ourselves: we add half of the last bit's worth, and clear the last
# 13 of the stored bits.
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
    """The reference, with the factors of its linear layers rounded as TF32 rounds them."""

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
print(f"that is {error / rounding:.1f} times one rounding")
assert 1 < error / rounding < 20

# %% [markdown]
# **Answer.** By more: several times one rounding. Every product adds an error of its own, and
# errors that go up and down partly cancel.

# %% [markdown]
# **Recap.** Whether such errors matter for training is a question for an experiment. Whether the
# *code* is right is a question for float64: there a mistake of a thousandth cannot hide behind the
# rounding.
#
# ## Padding, where nobody sees it
#
# Attention in `reference` walks the sequences of a batch, one after another, with small products
# for each. To start a kernel costs some time, whatever the kernel computes, so a GPU wants few
# large products. That is why `cupy_ops` fills the sequences up to one rectangle inside attention,
# and hides the filling. This is [padding](glossary.md#padding). We now build the rectangle.
# (`cupy_ops` itself lets the tokens follow their own slots at once, so that all filling comes
# last.)

# %%
from minprefix.lessons import drawings

drawings.padded(lengths=(5, 2, 6), prefixes=(4, 1, 0))

# %% [markdown]
# With $B$ sequences, $T$ the length of the longest and $P$ the slots of the longest prefix, queries
# become $(B, NH, T, hs)$. Keys and values become $(B, NH, P + T, hs)$: first the slots, then the
# tokens.
#
# ### Exercise 15.2: `pad`
#
# *8 minutes · difficulty 2 of 5*
#
# From a [stream](glossary.md#stream) $(N, NH, hs)$ with [offsets](glossary.md#offsets) $(B+1)$ make
# a rectangle $(B, NH, T, hs)$. The tokens of sequence $b$ are
# `stream[offsets[b] : offsets[b + 1]]`. They stand at the start of its row; the filling behind them
# is 0.


# %%
def pad(stream, offsets):
    lengths = ...  # (B,)
    rectangle = ...  # (B, NH, T, hs)
    return rectangle


grade(pad)

# %% [markdown]
# <details><summary>Hint 1</summary>
#
# `np.diff(offsets)` has the lengths. Begin with zeros, and write each sequence into its row.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# A piece of the stream is $(T_b, NH, hs)$, and its place in the rectangle $(NH, T_b, hs)$: swap the
# first two axes.
#
# </details>


# %% jupyter={"source_hidden": true}
def pad(stream, offsets):
    lengths = np.diff(offsets)  # (B,)
    _, NH, hs = stream.shape
    rectangle = np.zeros((len(lengths), NH, max(lengths), hs), stream.dtype)  # (B, NH, T, hs)
    for b, n in enumerate(lengths):
        rectangle[b, :, :n] = stream[offsets[b] : offsets[b + 1]].swapaxes(0, 1)
    return rectangle


# %% [markdown]
# ### Exercise 15.3: `unpad`
#
# *5 minutes · difficulty 1 of 5*
#
# The way back: from a rectangle $(B, NH, T, hs)$ to the stream $(N, NH, hs)$, without the filling.


# %%
def unpad(rectangle, offsets):
    pieces = ...  # a list: (T_b, NH, hs) of each sequence
    return ...


grade(unpad)

# %% [markdown]
# <details><summary>Hint 1</summary>
#
# The tokens of sequence $b$ are the first `offsets[b + 1] - offsets[b]` of its row.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# `np.concatenate` joins the pieces. Swap the axes of each; a `reshape` would mix tokens and heads.
#
# </details>


# %% jupyter={"source_hidden": true}
def unpad(rectangle, offsets):
    pieces = [rectangle[b, :, :n].swapaxes(0, 1) for b, n in enumerate(np.diff(offsets))]
    return np.concatenate(pieces)


# %% [markdown]
# Now the mask. Sequence $b$ has $P_b \le P$ slots. Row $i$ of it sees column $j$ in two cases:
#
# - $j < P_b$: the column is a slot of this sequence. The filling of its prefix is not.
# - $P \le j \le P + i$: the column is a token that is not in the future. This is the [causal
#   mask](glossary.md#causal-mask). It hides the filling behind a sequence without knowing of it,
#   because that filling lies in the future of every token of the sequence.
#
# Rows behind the end of a sequence are computed for nothing, and thrown away.
#
# ### Exercise 15.4: `visible_columns`
#
# *12 minutes · difficulty 3 of 5*
#
# `lengths` and `slots` are lists with the tokens and the slots of each sequence. Return an array of
# bool, $(B, T, P + T)$, that is true where row $i$ of sequence $b$ sees column $j$.


# %%
def visible_columns(lengths, slots):
    held = ...  # (B, 1, P+T)
    causal = ...  # (T, P+T)
    return ...


grade(visible_columns)

# %% [markdown]
# <details><summary>Hint 1</summary>
#
# `i = np.arange(T)[:, None]` is $(T, 1)$ and `j = np.arange(P + T)` is $(P + T)$. NumPy makes
# $(T, P + T)$ of a comparison of the two.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# `np.array(slots)[:, None, None]` is $(B, 1, 1)$.
#
# </details>


# %% jupyter={"source_hidden": true}
def visible_columns(lengths, slots):
    T, P = max(lengths), max(slots)
    i, j = np.arange(T)[:, None], np.arange(P + T)
    held = j < np.array(slots)[:, None, None]  # (B, 1, P+T)
    causal = (j >= P) & (j <= P + i)  # (T, P+T)
    return held | causal


# %% [markdown]
# A prefix is a stream, too, of slots instead of tokens. So `pad` also makes a rectangle of all
# prefixes.


# %%
def pad_slots(prefixes):
    """A prefix (NH, P_b, hs) for each sequence -> (B, NH, P, hs)."""
    offsets = np.cumsum([0, *(a.shape[1] for a in prefixes)])
    return pad(np.concatenate([a.swapaxes(0, 1) for a in prefixes]), offsets)


# %% [markdown]
# ### Exercise 15.5: `padded_attention`
#
# *15 minutes · difficulty 4 of 5*
#
# Put it together: `q`, `k` and `v` are $(N, NH, hs)$, `prefix_k` and `prefix_v` lists with an array
# $(NH, P_b, hs)$ for each sequence. Return `z` $(N, NH, hs)$. Two products for the whole batch are
# enough, and no more are allowed. `reference.softmax` is yours to call.


# %%
def padded_attention(q, k, v, prefix_k, prefix_v, offsets):
    queries = ...  # (B, NH, T, hs)
    keys = ...  # (B, NH, P+T, hs)
    values = ...  # (B, NH, P+T, hs)
    scores = ...  # (B, NH, T, P+T)
    pattern = ...  # (B, NH, T, P+T)
    z = ...  # (N, NH, hs)
    return z


grade(padded_attention)

# %% [markdown]
# <details><summary>Hint 1</summary>
#
# The slots come before the tokens:
# `np.concatenate([pad_slots(prefix_k), pad(k, offsets)], axis=2)`.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# `visible_columns(...)[:, None]` is $(B, 1, T, P + T)$, the same for all heads. Where it is false,
# the score has to be `-np.inf`.
#
# </details>
#
# <details><summary>Hint 3</summary>
#
# The division by $\sqrt{hs}$ is as in lesson 4. At the end, `unpad`.
#
# </details>


# %% jupyter={"source_hidden": true}
def padded_attention(q, k, v, prefix_k, prefix_v, offsets):
    lengths, slots = np.diff(offsets), [a.shape[1] for a in prefix_k]
    queries = pad(q, offsets)  # (B, NH, T, hs)
    keys = np.concatenate([pad_slots(prefix_k), pad(k, offsets)], axis=2)  # (B, NH, P+T, hs)
    values = np.concatenate([pad_slots(prefix_v), pad(v, offsets)], axis=2)  # (B, NH, P+T, hs)
    scores = queries @ keys.swapaxes(2, 3) / q.shape[-1] ** 0.5  # (B, NH, T, P+T)
    seen = visible_columns(lengths, slots)[:, None]  # the same for all heads
    pattern = reference.softmax(np.where(seen, scores, -np.inf))  # (B, NH, T, P+T)
    z = unpad(pattern @ values, offsets)  # (N, NH, hs)
    return z


# %% [markdown]
# There are two ways to be sure: against the reference, and against *itself* on each sequence alone.
# The second needs no other implementation, and it is the law that padding must obey: **a sequence
# does not notice its neighbours.**

# %%
rng = np.random.default_rng(3)
NH, hs = 3, 4
offsets = np.array([0, 5, 7, 13])  # three sequences, of 5, 2 and 6 tokens
q, k, v = (rng.normal(size=(13, NH, hs)) for _ in range(3))
prefix_k, prefix_v = ([rng.normal(size=(NH, n, hs)) for n in (4, 1, 0)] for _ in range(2))


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
# **Recap.** A rectangle turns many small products into two large ones. The mask hides the filling
# of the prefixes; the causal mask hides the rest. No sequence may notice its neighbours.
#
# ## What the filling costs
#
# A rectangle computes $B \cdot T \cdot (P + T)$ scores in each head. What is needed is
# $\sum_b T_b (P_b + T_b)$. (As in lesson 7, we count every pair of a query and a key of one
# sequence, also those that the mask hides.)
#
# ### Exercise 15.6: `wasted`
#
# *5 minutes · difficulty 1 of 5*
#
# Which part of the rectangle's scores is computed for nothing? Return it as a number from 0 to 1.
# `lengths` and `slots` are lists as above. (The shape `()` means one number.)


# %%
def wasted(lengths, slots):
    computed = ...  # ()
    needed = ...  # ()
    return ...


grade(wasted)

# %% [markdown]
# <details><summary>Hint 1</summary>
#
# $T$ and $P$ are the largest of all sequences.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# `zip(lengths, slots)` gives the two numbers of each sequence.
#
# </details>


# %% jupyter={"source_hidden": true}
def wasted(lengths, slots):
    T, P = max(lengths), max(slots)
    computed = len(lengths) * T * (P + T)  # ()
    needed = sum(n * (own + n) for n, own in zip(lengths, slots, strict=True))  # ()
    return 1 - needed / computed


# %% [markdown]
# **Predict.** 64 texts have between 20 and 80 tokens, and 10 slots each. How much of one rectangle
# is wasted? And if we sort the texts by length, and make 2, 4 or 8 rectangles?

# %%
lengths = sorted(np.random.default_rng(4).integers(20, 81, 64).tolist())
shares = {}
for n in (1, 2, 4, 8):
    groups = [part.tolist() for part in np.array_split(lengths, n)]
    scores = [len(part) * max(part) * (10 + max(part)) for part in groups]
    wastes = [wasted(part, [10] * len(part)) for part in groups]
    shares[n] = float(np.average(wastes, weights=scores))
    print(f"{n} rectangles: {shares[n]:.0%} of the scores for nothing")
extreme = wasted([1, 1, 1, 1000], [0] * 4)
print(f"lengths 1, 1, 1 and 1000: {extreme:.0%}")
assert shares[1] > 0.4
assert shares[1] > shares[2] > shares[4] > shares[8]
assert 0.74 < extreme < 0.76

# %% [markdown]
# **Answer.** About half of one rectangle, 29% of two, 19% of four and 10% of eight. Twice as many
# rectangles are twice as many products.

# %% [markdown]
# **Recap.** Padding trades work for fewer calls. It pays where a call is expensive beside its work,
# and if the lengths are alike. How expensive a call is has to be measured on the machine.
#
# ## What a GPU might be good for
#
# From a data sheet: an NVIDIA H200 moves 4.8 TB/s, and does 67 TFLOP/s in float32 (T is $10^{12}$).
# The roofline of [lesson 14](14_where_the_time_goes.py) holds there, too. And let us assume that
# starting a kernel takes 5 microseconds. We have not measured that; change the number if you know a
# better one.
#
# **Predict.** Below how many operations for each byte does the GPU wait for its memory? One token
# of GPT-2 (124 million weights of 4 bytes, each read once): how many tokens a second at the very
# most? And a step of our small model: do its operations take longer, or the starting of its
# kernels?


# %%
class Counting:
    """The functions of `ops`; counts the calls, and what the products compute."""

    def __init__(self, ops):
        self.ops, self.calls, self.flops = ops, 0, 0

    def __getattr__(self, name):
        op = getattr(self.ops, name)

        def counted(*arguments):
            self.calls += 1
            if name in ("linear", "linear_backward"):  # (N, in) x (in, out), or its transpose
                self.flops += 2 * len(arguments[0]) * arguments[1].size
            return op(*arguments)

        return counted


bandwidth, peak, start = 4.8e12, 67e12, 5e-6  # bytes and operations a second; seconds
print(f"memory is the limit below {peak / bandwidth:.0f} operations a byte")
print(f"at most {bandwidth / (124e6 * 4):,.0f} tokens a second, one text at a time")
assert 13 < peak / bandwidth < 15
count = Counting(reference)
loss_and_grad(model, prefix, batch, ops=count)
print(f"a step: {count.calls} operations, {count.flops / 1e6:.0f} million FLOP in products")
print(f"at the peak {count.flops / peak * 1e6:.1f} us; starting {count.calls * start * 1e6:.0f} us")
assert count.calls * start > 10 * count.flops / peak

# %% [markdown]
# **Answer.** Below 14 operations a byte. At most some 9,700 tokens a second. On paper, starting a
# kernel for each operation takes far longer than all products of the step.

# %% [markdown]
# **Recap.** This is a bound and an assumption, not a measurement. From which size on a GPU pays is
# a question for the clock: in a clone of this repository, `python -m tools.bench all --backend
# cupy`.
#
# ## Break it yourself
#
# The filling of the prefixes must be hidden, too. People who stack prefixes of different lengths
# fill the short ones up with zeros, and think that zeros do nothing. The [zoo](glossary.md#zoo) has
# that bug.
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
# **Answer.** All but the weak one. A key of zeros has the score 0 with every query, and $e^0 = 1$
# is a share of the softmax like any other. With $P - P_b$ of them, a short prefix and its tokens
# get less.

# %% [markdown]
# Your own function gives the same numbers if we fill the prefixes up with zeros before it sees
# them:


# %%
def filled(prefixes, P):
    return [np.concatenate([a, np.zeros((NH, P - a.shape[1], hs))], axis=1) for a in prefixes]


forgotten = padded_attention(q, k, v, filled(prefix_k, 4), filled(prefix_v, 4), offsets)
with_the_bug = attention_with_the_bug(q, k, v, prefix_k, prefix_v, offsets)
assert relative_error(forgotten, with_the_bug) < 1e-12
print(broken.see)

# %% [markdown]
# With equal lengths in every test you would have seen nothing. In use, the answer to a request
# would depend on the other requests of its batch.
#
# ## Remember
#
# - The operations keep their names and shapes on another machine. The order of additions changes.
# - Sums in another order differ in the last digits. A fixed order gives the same bytes each time.
# - Compare in float64: there rounding cannot hide a mistake.
# - A rectangle needs a mask for the filling of the prefixes; the causal mask hides the rest.
# - A slot of zeros has the score 0, and $e^0 = 1$ is a share like any other.
# - A sequence must not notice its neighbours. Test with unequal lengths and unequal prefixes.
# - Say what was measured, and on which machine. A data sheet is no measurement.
#
# ## Exercises
#
# **1.** (Paper, 5 minutes, difficulty 2 of 5.) A batch has the lengths 1, 1, 1 and 1000. How many
# of the rectangle's rows are for nothing, and what would you do?
#
# <details><summary>Solution 1</summary>
#
# $4 \cdot 1000 - 1003 = 2997$ of 4000 rows, three quarters, and each of them has $P + T$ scores.
# Sort the sequences by length and compute several rectangles; or let a kernel walk the sequences.
#
# </details>
#
# **2.** (An experiment, 10 minutes, difficulty 2 of 5.) On your CPU, is one rectangle faster than a
# walk over the sequences? Time `padded_attention` against `reference.attention` for 64 sequences of
# 2 tokens, and for 4 sequences of 100, with $NH = 12$ and $hs = 64$. Predict first.
#
# <details><summary>Solution 2</summary>
#
# ```python
# import time
#
# for B, n in ((64, 2), (4, 100)):
#     case = [np.ones((B * n, 12, 64)) for _ in range(3)]
#     slots = [np.ones((12, 4, 64))] * B
#     for attend in (reference.attention, padded_attention):
#         begun = time.perf_counter()
#         attend(*case, slots, slots, np.arange(B + 1) * n)
#         print(B, n, attend.__name__, f"{(time.perf_counter() - begun) * 1e3:.1f} ms")
# ```
#
# In our runs it was slower in both cases. `pad` and `unpad` call NumPy for each sequence, too, and
# the rectangle computes the scores that are then hidden. On a CPU a small product costs little to
# start, so padding has nothing to save.
#
# </details>
#
# **3.** If you have a GPU: run `minprefix demo --backend cupy --out on_gpu`, and again with
# `--backend numpy --out on_cpu`, and time both. Do you expect the same ratio for GPT-2?
#
# <details><summary>Solution 3</summary>
#
# We have not measured it. By the count above, most of a step of so small a model would be starting
# kernels. GPT-2 has three times as many layers, and each product of one is some twenty times as
# large, so the GPU should gain more there. If your measurement says otherwise, believe the
# measurement.
#
# </details>
#
# Next: [The rivals](16_the_rivals.py).
