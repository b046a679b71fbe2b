# %% [markdown]
# # Where the time goes
#
# - **You will be able to** say before you measure how long an operation must take at least, find
#   what a training step spends its time on, and tell a gain that is real from one that is a bug.
# - **You need** the whole model ([lesson 6](06_gpt2_from_its_file.py)) and what half a backward
#   leaves out ([lesson 7](07_half_a_backward.py)).
# - **Time** 45 minutes; it runs in 9 seconds.
# - **Difficulty** 2 of 3.
#
# ## Two numbers of your machine
#
# A computer does two things here: it multiplies and adds, and it moves numbers between memory and
# the cores. How fast it does either is a number of the machine, and we can measure both.
#
# - The *peak*: a product of two matrices $(n, n)$ takes $n^3$ multiplications and $n^3$ additions,
#   $2 n^3$ operations on $3 n^2$ numbers. Each number is used $n$ times, so the cores hardly wait.
# - The *bandwidth*: adding 1 to each number of a long array is one operation for a number that is
#   read and written, 8 bytes in float32. The cores mostly wait. The array has to be larger than the
#   *caches*, small and fast memories beside the cores: what fits into one is fetched only once.
#
# An operation on numbers with a decimal point is called a *FLOP*; G is $10^9$.

# %%
import time

import matplotlib.pyplot as plt
import numpy as np


def seconds(work, repeats=5):
    """The fastest of some runs: what disturbs a run only ever makes it slower."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


n = 1024
a, b = np.ones((n, n), np.float32), np.ones((n, n), np.float32)  # (n, n) each
long = np.zeros(64 * 2**20, np.float32)  # (2^26,), 256 MiB: larger than the caches

peak = 2 * n**3 / seconds(lambda: a @ b)  # operations a second
bandwidth = 2 * long.nbytes / seconds(lambda: np.add(long, 1, out=long))  # bytes a second
print(f"peak {peak / 1e9:.0f} GFLOP/s, bandwidth {bandwidth / 1e9:.1f} GB/s")
corner = peak / bandwidth
print(f"in the time of moving one byte it could do {corner:.1f} operations")

# %% [markdown]
# ## The roofline
#
# For any other operation, count two things on paper: its operations, and the bytes that it has to
# move at the very least (each argument read once, each result written once). Their ratio is its
# *intensity*. It cannot finish before the operations are done, nor before the bytes are moved:
#
# $$seconds \ge \max\left(\frac{operations}{peak}, \frac{bytes}{bandwidth}\right), \qquad
# \frac{operations}{second} \le \min(peak, intensity \cdot bandwidth)$$
#
# The right-hand side, drawn over the intensity, is a slope and then a flat top: the *roofline*
# (Williams, Waterman & Patterson, 2009). They meet where the intensity is $peak / bandwidth$, the
# last number that we printed. Left of this corner one waits for memory; right of it one multiplies.
#
# Two operations of GPT-2, on $N$ tokens in float32 (4 bytes a number):
#
# - `linear`, $(N, in)$ times $(in, out)$: $2 \cdot N \cdot in \cdot out$ operations on
#   $4 \, (N \cdot in + in \cdot out + N \cdot out)$ bytes.
# - `gelu` and its backward, on $(N, F)$: the formulas of [lesson 2](02_backward_by_hand.py) have
#   some 25 operations for each of the $N F$ numbers, forward and backward together. `x` and `dout`
#   are read, `out` and `dx` are written: $16 N F$ bytes.
#
# **Predict.** For $N = 1000$, $in = C = 512$, $out = F = 2048$: how many times the work of `gelu`
# does `linear` do, and which of them lies left of the corner?

# %%
N, C, F = 1000, 512, 2048
counted = {
    "linear": (2 * N * C * F, 4 * (N * C + C * F + N * F)),
    "gelu": (25 * N * F, 4 * 4 * N * F),  # with its backward
    "one token": (2 * 1 * C * F, 4 * (1 * C + C * F + 1 * F)),  # linear for a single token
}
for name, (operations, moved) in counted.items():
    intensity = operations / moved
    bound = "memory" if intensity < corner else "arithmetic"
    at_least = max(operations / peak, moved / bandwidth)
    print(
        f"{name:10s} {operations / 1e6:7.1f} M operations, intensity {intensity:6.1f}: "
        f"at least {at_least * 1e3:.2f} ms, bound by {bound}"
    )
assert counted["linear"][0] / counted["gelu"][0] == 2 * C / 25  # 41 times the work
# one token uses each weight once: half an operation a byte, wherever it is computed
assert abs(counted["one token"][0] / counted["one token"][1] - 0.5) < 0.01

# %% [markdown]
# `gelu` does a fortieth of the work, at a hundredth of the intensity. Where the corner lies is a
# matter of the machine: between 3 and 30 on most, lower where other programs take the cores. Left
# of it, `gelu` needs more than a fortieth of the time, however well it is written. A single token,
# which is what decoding computes again and again, waits for the weights: there no clever arithmetic
# helps, only fewer bytes, or more tokens at once.
#
# Now measure. `reference.gelu` is the formula as one writes it: each step makes an array of
# $(N, F)$ in memory, which the next one reads again, and so does its backward. `numpy_ops.gelu`
# works in place, in blocks of rows that stay in a core's cache; and while `x` is there, it computes
# the slope for the backward, too, which is then a single product.
#
# **Predict.** Where in the picture will the two lie: on the roof, or below it?

# %%
from minprefix.ops import numpy_ops, reference

rng = np.random.default_rng(0)
x = rng.normal(size=(N, C)).astype(np.float32)  # (N, C)
weight = rng.normal(size=(C, F)).astype(np.float32)  # (C, F)
bias = np.zeros(F, np.float32)  # (F,)
h, dh = (rng.normal(size=(N, F)).astype(np.float32) for _ in range(2))  # (N, F) each
layers = [weight.copy() for _ in range(32)]  # 128 MiB of weights: no cache holds all


def gelu_both_ways(ops):
    _, cache = ops.gelu(h.copy())  # numpy_ops overwrites what it is given
    ops.gelu_backward(dh.copy(), cache)


def one_token():
    for weight in layers:
        reference.linear(x[:1], weight, bias)


measured = {
    "linear": seconds(lambda: reference.linear(x, weight, bias)),
    "gelu, reference": seconds(lambda: gelu_both_ways(reference)),
    "gelu, numpy_ops": seconds(lambda: gelu_both_ways(numpy_ops)),
    "one token": seconds(one_token) / len(layers),
}
intensities = np.logspace(-1.5, 3.5, 100)
plt.figure(figsize=(6, 4))
plt.loglog(intensities, np.minimum(peak, intensities * bandwidth) / 1e9, "k-", label="the roof")
for (name, took), marker in zip(measured.items(), "os^D", strict=True):
    operations, moved = counted[name.split(",")[0]]
    plt.loglog(operations / moved, operations / took / 1e9, marker, color="0.4", label=name)
    print(f"{name:16s} {took * 1e3:6.2f} ms, {operations / took / 1e9:6.1f} GFLOP/s")
plt.xlabel("intensity: operations for each byte moved")
plt.ylabel("GFLOP/s")
plt.title("What is possible, and what we get")
plt.legend()
plt.tight_layout()
plt.show()

# %% [markdown]
# The product comes near the roof: the library behind NumPy (its *BLAS*) is made for this, and
# there is little left for us to gain. Both `gelu` lie below it, and the one in blocks is several
# times as fast: less is written to memory and fetched again. That is the whole programme of
# `numpy_ops`: leave the products to the library, and let nothing else wait. (The roof was measured
# once, too. On a machine that others use a point may lie above it.)
#
# ## A profile
#
# How much of a training step is products? `Clock` wraps the operations, as `Counting` did in
# lesson 7, and notes for each how long its calls took. We give it a GPT-2 with random weights, 4
# layers of width 512: how long a product takes does not depend on the numbers in it.
#
# **Predict.** Which part of a step is `linear` and `linear_backward`, half or more? Between
# `reference` and `numpy_ops`, whose part shrinks most?

# %%
from minprefix import GPT2, Batch, Config, Prefix, loss_and_grad


class Clock:
    """The functions of `ops`; notes how long each takes, and counts what the products compute."""

    def __init__(self, ops):
        self.ops, self.took, self.products = ops, {}, 0  # took: name -> seconds

    def __getattr__(self, name):
        op = getattr(self.ops, name)

        def timed(*arguments):
            if name in ("linear", "linear_backward"):  # (N, in) x (in, out), or its transpose
                self.products += 2 * len(arguments[0]) * arguments[1].size
            start = time.perf_counter()
            result = op(*arguments)
            self.took[name] = self.took.get(name, 0) + time.perf_counter() - start
            return result

        return timed


config = Config(n_layer=4, n_head=8, n_embd=512, vocab_size=4096, n_positions=256)
model = GPT2.random(config)
prefix = Prefix.normal(config, length=10)
lengths = [31, 44, 60, 38, 52, 71, 47, 35, 66, 54]  # tokens of ten pairs of source and target
targets_from = [n // 2 for n in lengths]  # the second half of each is the target
batch = Batch.pack(
    [rng.integers(0, 4096, n).tolist() for n in lengths], loss_from=targets_from
)  # N = 498 tokens, 251 of them targets

loss_and_grad(model, prefix, batch)  # the first call also finds its memory: not timed
clocks = {}
for name, ops in (("reference", reference), ("numpy", numpy_ops)):
    runs = []
    for _ in range(3):
        clock = Clock(ops)
        start = time.perf_counter()
        loss_and_grad(model, prefix, batch, ops=clock)
        runs.append((time.perf_counter() - start, clock))
    clocks[name] = min(runs, key=lambda run: run[0])

for name, (total, clock) in clocks.items():
    print(f"{name}: {total * 1e3:.0f} ms a step")
    for op, took in sorted(clock.took.items(), key=lambda item: -item[1]):
        print(f"    {op:24s} {took / total:5.0%}")

# %% [markdown]
# The products are two thirds of a step or more, and more of the faster one: what shrinks is the
# rest, most of all `gelu_backward`, of which one product is left.
#
# Is the clock right? The operations of the products can be counted on paper. Per token and layer,
# forward: $C \cdot 3C$ for queries, keys and values, $C \cdot C$ behind the attention,
# $C \cdot 4C$ and $4C \cdot C$ in the MLP; $12 C^2$ multiplications with their additions. Backward,
# for the gradient of the inputs alone, the same again. With $N$ tokens and $L$ layers that is
# $2 \cdot 2 \cdot 12 C^2 \cdot N \cdot L$. The tied head adds $2 \cdot 2 \cdot C \cdot V$ for each
# of $M$ targets, with $V$ tokens in the vocabulary.
#
# But in the top layer only the tokens whose logits are needed go further than keys and values, and
# in the lowest layer nothing needs a gradient below its keys and values
# ([lesson 7](07_half_a_backward.py)).
#
# **Predict.** How much of this full count does a step really do? More than 3/4?

# %%
L, V, N, M = 4, 4096, batch.tokens.size, batch.targets.size
full = 2 * 2 * 12 * C**2 * N * L + 2 * 2 * C * V * M
done = clocks["reference"][1].products
print(f"{done / 1e9:.1f} of {full / 1e9:.1f} G operations: {done / full:.0%}")
assert 0.75 < done / full < 0.95
if clocks["numpy"][1].products == done:
    print("both implementations are asked for the same products")

# %% [markdown]
# Nine tenths. Two of four layers are spared a part of their work; of GPT-2's twelve it is two, too.
#
# ## Why this is faster than a framework here
#
# Four reasons, and none of them is a faster product: everybody calls the same kind of library.
#
# 1. **No padding.** A framework's batch is a rectangle: every sequence is filled up to the longest.
# 2. **Logits only where there is a target.** The head is the largest product of all.
# 3. **Half a backward.** No gradients of weights, none below the lowest keys and values.
# 4. **Nothing waits for memory** that need not: blocks, and in place.
#
# The first two can be counted for our batch.

# %%
rectangle = len(lengths) * max(lengths)
print(f"padding: {rectangle} tokens instead of {N}, {rectangle / N:.2f} times the work")
print(f"logits: {rectangle} rows instead of {M}, {rectangle / M:.2f} times the head")
padded = 2 * 2 * 12 * C**2 * rectangle * L + 2 * 2 * C * V * rectangle
print(f"both together: {padded / done:.2f} times the operations of our step")
assert rectangle == 710
assert padded / done > 1.5

# %% [markdown]
# At the shape of GPT-2, on two cores, the project's own benchmark measures a step at 0.36 to 0.38
# times the time of PyTorch with PEFT on batches like this one, and at 0.64 times where all
# sequences are equally long and every token is a target: then the first two reasons are gone.
# In a clone of this repository `python -m tools.bench train` repeats it on your machine. A ratio of
# two programs, run in turns on one machine, means something; a time alone does not.
#
# ## Break it yourself
#
# Faster code reuses memory. That is where its bugs come from, and they are of one kind: a number is
# right when it is computed, and wrong when it is looked at again. New memory for the output of
# attention costs time at every call, so somebody keeps one buffer for it, and returns that.
#
# Our checks: the result against the reference's, as ever; and the result of a first call, looked at
# again after a second one.

# %%
from minprefix.lessons import caught, planted

NH, hs = 8, 64
shape = (N, NH, hs)
stream = [rng.normal(size=shape) for _ in range(3)]  # q, k, v (N, NH, hs) each
others = [rng.normal(size=shape) for _ in range(3)]  # another batch of the same shape
slots = [rng.normal(size=(NH, 10, hs)) for _ in lengths]  # of each sequence (NH, P, hs)


def z_of(ops, qkv):
    return ops.attention(*qkv, slots, slots, batch.offsets)[0]  # (N, NH, hs)


def check_one_call(ops):
    """The weak check: it looks at once."""
    off = np.abs(z_of(ops, stream) - z_of(reference, stream)).max()
    assert off < 1e-12, f"z is off by {off:.2g}"


def check_two_calls(ops):
    """What a model does: many layers, one after the other."""
    first = z_of(ops, stream)
    kept = first.copy()  # (N, NH, hs)
    z_of(ops, others)
    off = np.abs(first - kept).max()
    assert off == 0, f"the first result has changed by {off:.2g} since it was returned"


for ops in (reference, numpy_ops):
    check_one_call(ops)
    check_two_calls(ops)

# %% [markdown]
# **Predict.** Which of the two checks fires for the planted bug?

# %%
broken = planted("outputs-share-a-buffer")
print(broken)

check_one_call(broken.reference)  # nothing fires: it is right, once
with caught() as error:  # take this line away, and the lesson stops here
    check_two_calls(broken.reference)
print(error)

# %% [markdown]
# What would you have seen without the second check? Every comparison of single calls passes. And
# now it gets worse: look at what the bug does to training.
#
# **Predict.** The output $z$ of attention goes through the linear layer `attn.c_proj`. Which
# gradient needs $z$ again, that of the layer's input or that of its weight? So who notices, the one
# who trains a prefix or the one who trains the model?

# %%
from minprefix import loss_and_weight_grads


def relative_error(a, b):
    """The largest difference, as a part of the largest number."""
    return np.abs(a - b).max() / np.abs(b).max()


dkv = [loss_and_grad(model, prefix, batch, ops=ops)[1] for ops in (broken.reference, reference)]
print(f"gradient of the prefix: off by {relative_error(*dkv):.1g}")  # (L, 2, NH, P, hs)
name = "h.0.attn.c_proj.weight"  # (C, C)
weights = [
    loss_and_weight_grads(model, batch, prefix, ops=ops)[1][name]
    for ops in (broken.reference, reference)
]
print(f"gradient of {name}: off by {relative_error(*weights):.1g}")
assert relative_error(*dkv) < 1e-6
assert relative_error(*weights) > 0.01

# %% [markdown]
# The weight's gradient is $dW = z^\top dout$, the input's is $dout \, W^\top$: only the first needs
# $z$. So a prefix trains as if nothing were wrong. The bug sleeps until someone trains the weights,
# and then the lower layers learn from the output of a higher one. That is why a suite looks at
# every result twice, and why "it trains" is no proof.

# %%
print(broken.see)
print(broken.lesson)

# %% [markdown]
# ## Exercises
#
# **1.** How long must one token of GPT-2 (124 million weights in float32) take on your machine at
# least, if every weight is read once? And sixteen tokens of sixteen texts at once?
#
# <details><summary>Solution 1</summary>
#
# ```python
# one = 124e6 * 4 / bandwidth
# print(f"{one * 1e3:.0f} ms for one token")
# many = max(124e6 * 4 / bandwidth, 16 * 2 * 124e6 / peak)
# print(f"{many * 1e3:.0f} ms for sixteen at once: the same bytes, used sixteen times")
# ```
#
# Until the arithmetic takes longer than the reading, further texts cost nothing.
#
# </details>
#
# **2.** (Graded.) `reference.layernorm` makes five arrays of $(N, C)$ in memory. Write
# `layernorm(x, gain, bias, eps)` with fewer, by `np.subtract(..., out=...)`, `*=` and `+=`. It
# returns `out` $(N, C)$ and `LayernormCache(xhat, rstd, gain)`, with `xhat` $(N, C)$ and `rstd`
# $(N, 1)$. Mind what is yours to overwrite: `x` is not.

# %%
from minprefix.lessons import grade
from minprefix.ops.contract import LayernormCache  # noqa: F401  it is for you


def layernorm(x, gain, bias, eps):
    raise NotImplementedError  # yours


grade(layernorm)

# %% [markdown]
# <details><summary>Solution 2</summary>
#
# ```python
# def layernorm(x, gain, bias, eps):
#     xhat = x - x.mean(axis=-1, keepdims=True)  # (N, C)
#     out = xhat * xhat  # (N, C): first the squares, later the result
#     rstd = 1 / np.sqrt(out.mean(axis=-1, keepdims=True) + eps)  # (N, 1)
#     xhat *= rstd
#     np.multiply(xhat, gain, out=out)
#     out += bias
#     return out, LayernormCache(xhat, rstd, gain)
#
#
# grade(layernorm)
# ```
#
# Two arrays instead of five.
#
# </details>
#
# **3.** Time yours against `reference.layernorm` and `numpy_ops.layernorm` on $(16000, 512)$ and on
# $(4, 512)$ in float32, with `seconds`. Why is there no gain on the small one?
#
# <details><summary>Solution 3</summary>
#
# ```python
# for rows in (16000, 4):
#     small = rng.normal(size=(rows, 512)).astype(np.float32)
#     gain, none = np.ones(512, np.float32), np.zeros(512, np.float32)
#     for ops in (reference, numpy_ops):
#         took = seconds(lambda: ops.layernorm(small, gain, none, 1e-5))
#         print(rows, ops.__name__, f"{took * 1e6:.0f} us")
# ```
#
# Four rows fit into the fastest cache, whatever one does: what is left is the time that Python
# takes to call NumPy, a few microseconds a call.
#
# </details>
#
# Next: [The same on a GPU](15_on_a_gpu.py).
