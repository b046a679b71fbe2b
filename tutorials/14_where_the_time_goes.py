# %% [markdown]
# # Where the time goes
#
# - **You will be able to** say before you measure how long an operation must take at least, find
#   what a training step spends its time on, and tell a gain that is real from one that is a bug.
# - **You need** the whole model ([lesson 6](06_gpt2_from_its_file.py)) and what half a backward
#   leaves out ([lesson 7](07_half_a_backward.py)).
# - **Time** 90 minutes; it runs in 9 seconds.
# - **Difficulty** 2 of 5.
#
# ## Overview
#
# - You measure four numbers of your machine: operations, bytes, tanhs and bytes of new memory a
#   second. They say how long an operation must take at least.
# - GELU does a fiftieth of a product's operations, and takes more than a fiftieth of its time.
#   Reading and writing its arrays does not explain that. You count what else it does: tanhs, and
#   new memory.
# - You count the operations of a training step on paper. A counter in the program finds exactly
#   the same number.
# - Padding and logits that nobody needs make a step 1.7 times as large.
# - A buffer that is used twice passes every check of one call, trains a prefix as if nothing were
#   wrong, and spoils the gradients of the weights.
#
# All times are of the machine on which the lesson runs, and change from run to run. Where the text
# says "on our machine", it means two cores of an Intel Xeon with AVX-512. Yours may say otherwise:
# then ask why.
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
# One floating-point addition or multiplication is called a *FLOP*; G is $10^9$.

# %%
import time

import matplotlib.pyplot as plt
import numpy as np

from minprefix.lessons import grade


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
# **Recap.** The peak says how fast a machine computes, the bandwidth how fast it moves numbers.
# Their ratio says how much work each byte has to bring, so that the cores do not wait.
#
# ## The roofline
#
# For any other operation, count two things on paper: its operations, and the bytes that it has to
# move at the very least (each argument read once, each result written once). Their ratio is its
# *intensity*. It cannot finish before the operations are done, nor before the bytes are moved:
#
# $$seconds \ge \max\left(\frac{operations}{peak}, \frac{bytes}{bandwidth}\right), \qquad
# \frac{operations}{second} \le \min(peak, intensity \cdot bandwidth)$$
#
# The right-hand side, drawn over the intensity, is a slope and then a flat top: the
# [*roofline*](glossary.md#roofline) (Williams, Waterman & Patterson, 2009). They meet at the
# *corner*, where the intensity is $peak / bandwidth$. Left of the corner memory is the limit; right
# of it, arithmetic is.
#
# ### Exercise 14.1: `linear_work`
#
# *5 minutes · difficulty 1 of 5*
#
# A linear layer multiplies `x` $(N, in)$ by a weight $(in, out)$ and writes $(N, out)$; we leave
# its bias out. Return its operations and the bytes that it moves at the very least. A number has
# `itemsize` bytes. (The shape `()` means one number.)


# %%
def linear_work(N, n_in, n_out, itemsize):
    operations = ...  # ()
    moved = ...  # ()
    return operations, moved


grade(linear_work)

# %% [markdown]
# <details><summary>Hint 1</summary>
#
# Each of the $N \cdot out$ results is a sum of $in$ products: so many multiplications, and as many
# additions.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# Two arrays are read and one is written. Add their sizes.
#
# </details>


# %% jupyter={"source_hidden": true}
def linear_work(N, n_in, n_out, itemsize):
    operations = 2 * N * n_in * n_out  # ()
    moved = itemsize * (N * n_in + n_in * n_out + N * n_out)  # ()
    return operations, moved


# %% [markdown]
# A machine may have more limits than two, and we shall need four. So let both the work and the
# machine be dictionaries: how much there is of each kind, and how much of it the machine does in a
# second.
#
# ### Exercise 14.2: `at_least`
#
# *6 minutes · difficulty 2 of 5*
#
# `work` is, for example, `{"operations": 2e9, "bytes": 1e7}`, and `speed` has a number for each of
# these kinds, and maybe for others. All kinds of work can go on at the same time. Return the
# seconds that the work takes at least, and the name of the kind that decides it.


# %%
def at_least(work, speed):
    least = ...  # ()  seconds
    bound = ...
    return least, bound


grade(at_least)

# %% [markdown]
# <details><summary>Hint 1</summary>
#
# `{kind: work[kind] / speed[kind] for kind in work}` has the seconds of each kind.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# If they go on at the same time, the work is done when the slowest kind is done.
# `max(times, key=times.get)` is the name of the largest.
#
# </details>


# %% jupyter={"source_hidden": true}
def at_least(work, speed):
    times = {kind: work[kind] / speed[kind] for kind in work}
    bound = max(times, key=times.get)
    least = times[bound]  # ()  seconds
    return least, bound


# %% [markdown]
# Three operations of GPT-2, in float32 (4 bytes a number): `linear` on $N$ tokens; `linear` on one
# token, which is what decoding computes again and again; and GELU. For GELU and its backward on
# $(N, F)$, the formulas of [lesson 2](02_backward_by_hand.py) have some 20 additions and
# multiplications and one tanh for each of the $N F$ numbers. `x` and `dout` are read, `out` and
# `dx` are written: $16 N F$ bytes.
#
# **Predict.** For $N = 1000$, $in = C = 512$, $out = F = 2048$: `linear` does more
# operations than GELU: by which factor? Which of the three are limited by memory?

# %%
N, C, F = 1000, 512, 2048
counted = {
    "linear": linear_work(N, C, F, 4),
    "gelu": (20 * N * F, 4 * 4 * N * F),  # with its backward, without its tanh
    "one token": linear_work(1, C, F, 4),
}
machine = {"operations": peak, "bytes": bandwidth}
for name, (operations, moved) in counted.items():
    shortest, bound = at_least({"operations": operations, "bytes": moved}, machine)
    print(
        f"{name:10s} {operations / 1e6:7.1f} M operations, {operations / moved:5.1f} a byte: "
        f"at least {shortest * 1e3:5.2f} ms, bound by {bound}"
    )
intensity = {name: operations / moved for name, (operations, moved) in counted.items()}
assert 51 < counted["linear"][0] / counted["gelu"][0] < 52
assert intensity["gelu"] == 1.25
assert 0.49 < intensity["one token"] < 0.51
assert intensity["linear"] > 100

# %% [markdown]
# **Answer.** `linear` does 51 times the operations of GELU, and has more than a hundred for each
# byte. GELU has 1.25, a single token half an operation. Where the corner lies depends on the
# machine. If it lies right of 1.25, as it does on our machine, memory limits both on paper.

# %% [markdown]
# A single token uses each weight once. Faster arithmetic does not help there. Only fewer bytes
# help, or more tokens at once.
#
# **Recap.** Count operations and bytes before you measure. The larger of the two times is the least
# that an operation can take.
#
# ## What GELU really waits for
#
# Now measure. `reference.gelu` is the formula as one writes it: each step makes an array of
# $(N, F)$ in memory, which the next one reads again, and so does its backward. `numpy_ops.gelu`
# works in place, on all cores, in blocks of rows that stay in a core's cache. While `x` is there,
# it also computes the slope for the backward. The backward is then a single product.
#
# **Predict.** The roof says how long GELU takes at least. By which factor will `reference` miss it,
# and by which `numpy_ops`? If its bytes are what GELU waits for, the second should come near.

# %%
from minprefix.ops import numpy_ops, reference

rng = np.random.default_rng(0)
x = rng.normal(size=(N, C)).astype(np.float32)  # (N, C)
weight = rng.normal(size=(C, F)).astype(np.float32)  # (C, F)
bias = np.zeros(F, np.float32)  # (F,)
h, dh = (rng.normal(size=(N, F)).astype(np.float32) for _ in range(2))  # (N, F) each
h_own, dh_own = h.copy(), dh.copy()  # numpy_ops overwrites what it is given
layers = [weight.copy() for _ in range(32)]  # 128 MiB of weights: no cache holds all


def gelu_both_ways(ops):
    np.copyto(h_own, h)
    np.copyto(dh_own, dh)
    _, cache = ops.gelu(h_own)
    ops.gelu_backward(dh_own, cache)


def one_token():
    for weight in layers:
        reference.linear(x[:1], weight, bias)


measured = {
    "linear": seconds(lambda: reference.linear(x, weight, bias)),
    "gelu, reference": seconds(lambda: gelu_both_ways(reference)),
    "gelu, numpy_ops": seconds(lambda: gelu_both_ways(numpy_ops)),
    "one token": seconds(one_token) / len(layers),
}
for name, took in measured.items():
    operations, moved = counted[name.split(",")[0]]
    shortest, _ = at_least({"operations": operations, "bytes": moved}, machine)
    print(f"{name:16s} {took * 1e3:6.2f} ms, {took / shortest:4.1f} times the least")
assert measured["gelu, numpy_ops"] > measured["linear"] / 51

# %% [markdown]
# **Answer.** On our machine both miss it, `reference` by a much larger factor. So the bytes of its
# arguments and results are not all that GELU waits for.

# %% [markdown]
# Two things are missing in the count:
#
# - A tanh is no single operation. It takes as long as many additions, and how many depends on the
#   processor: NumPy has a faster tanh for those with AVX-512.
# - New memory has a price. When a program writes to a new array for the first time, the operating
#   system has to find a page of memory for it and to clear it.
#
# We measure both. Such a limit, which only some operations have, is called a *ceiling*. Where it
# lies below the roof, it decides.
#
# **Predict.** What takes longest: a tanh of all $N F$ numbers, a product of all of them into an
# array that is there, or a product into a new array?

# %%
from minprefix.ops.threads import each, row_blocks

there = np.empty_like(h)  # (N, F)
there[:] = 0  # now its memory is no longer new


def tanh_on_all_cores():
    each(lambda rows: np.tanh(h[rows], out=there[rows]), row_blocks(N, F * h.itemsize))


def into_new_arrays(n=8):
    return [h * h for _ in range(n)]  # all are kept: none can take the memory of another


passes = {
    "tanh on one core": seconds(lambda: np.tanh(h, out=there)),
    "tanh on all cores": seconds(tanh_on_all_cores),
    "into an array that is there": seconds(lambda: np.multiply(h, h, out=there)),
    "into a new array": seconds(into_new_arrays) / 8,
}
for name, took in passes.items():
    print(f"{name:28s} {took * 1e3:6.2f} ms")
machine["tanhs"] = N * F / min(passes["tanh on one core"], passes["tanh on all cores"])
machine["new bytes"] = h.nbytes / passes["into a new array"]

# %% [markdown]
# **Answer.** The cell says it for your machine. On ours it is the new array, by a factor of
# several. On a processor without AVX-512 it may be tanh.

# %% [markdown]
# Now GELU's bound with all four numbers. `numpy_ops` makes one new array, its output: its backward
# writes into `dout`. The formula of `reference` has 21 steps besides tanh, forward and backward,
# and each of them reads and writes $(N, F)$. NumPy can use some of the arrays again that nobody
# needs any more, but not all.

# %%
work = {"operations": counted["gelu"][0], "bytes": counted["gelu"][1], "tanhs": N * F}
bounds = {
    "gelu, numpy_ops": at_least(work | {"new bytes": h.nbytes}, machine),
    "gelu, reference": at_least(work | {"bytes": 22 * 2 * h.nbytes}, machine),
}
for name, (shortest, bound) in bounds.items():
    print(f"{name:16s} at least {shortest * 1e3:6.2f} ms, bound by {bound}", end="; ")
    print(f"{measured[name] * 1e3:6.2f} ms measured")
on_new = 22 * passes["into a new array"]
print(f"22 steps into new arrays would take {on_new * 1e3:.2f} ms")

intensities = np.logspace(-1.5, 3.5, 100)
plt.figure(figsize=(5, 5), layout="constrained")
plt.loglog(intensities, np.minimum(peak, intensities * bandwidth) / 1e9, label="the roof")
for kind, amount, style in (("tanhs", N * F, "--"), ("new bytes", h.nbytes, ":")):
    # as fast as this GELU would be if it did nothing else
    ceiling = counted["gelu"][0] / (amount / machine[kind]) / 1e9
    plt.axhline(ceiling, linestyle=style, color="grey", label=f"GELU's ceiling: {kind}")
for (name, took), marker in zip(measured.items(), "os^D", strict=True):
    operations, moved = counted[name.split(",")[0]]
    plt.loglog(operations / moved, operations / took / 1e9, marker, label=name)
plt.xlabel("intensity: operations for each byte moved")
plt.ylabel("GFLOP/s")
plt.title("What is possible, and what we get")
plt.legend(fontsize=9)
plt.show()

# %% [markdown]
# (The roof was measured once, too. On a machine that others use a point may lie above it. `linear`
# comes near the roof: the library behind NumPy, its *BLAS*, is made for this, and there is little
# left for us to gain.)
#
# `numpy_ops` leaves the products to the library, and saves between them. It does so by two means:
# blocks that stay in a cache, and fewer new arrays. The second is yours to try.
#
# ### Exercise 14.3: `layernorm_in_place`
#
# *12 minutes · difficulty 3 of 5*
#
# Layernorm computes, over the $C$ numbers of each row,
#
# $$rstd = \frac{1}{\sqrt{variance(x) + \epsilon}}, \qquad xhat = (x - mean(x)) \cdot rstd, \qquad
# out = gain \odot xhat + bias$$
#
# `reference.layernorm` makes five arrays of $(N, C)$. Make only the two that are returned, `out`
# and `xhat`. Return `rstd` $(N, 1)$, too. Do not overwrite `x`: it belongs to the caller.


# %%
def layernorm_in_place(x, gain, bias, eps):
    xhat = ...  # (N, C)
    out = ...  # (N, C)
    rstd = ...  # (N, 1)
    return out, xhat, rstd


grade(layernorm_in_place)

# %% [markdown]
# <details><summary>Hint 1</summary>
#
# $x - mean$ is the first array, and becomes `xhat` when `rstd` is known. `xhat *= rstd` makes no
# array.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# For the variance you need the squares. Put them into the second array, and later the result in
# their place.
#
# </details>
#
# <details><summary>Hint 3</summary>
#
# `np.multiply(xhat, gain, out=out)` writes into an array that is there. `out += bias`, too.
#
# </details>


# %% jupyter={"source_hidden": true}
def layernorm_in_place(x, gain, bias, eps):
    xhat = x - x.mean(axis=-1, keepdims=True)  # (N, C)
    out = xhat * xhat  # (N, C)  the squares, and later the result
    rstd = 1 / np.sqrt(out.mean(axis=-1, keepdims=True) + eps)  # (N, 1)
    xhat *= rstd
    np.multiply(xhat, gain, out=out)
    out += bias
    return out, xhat, rstd


# %%
gain, none = np.ones(C, np.float32), np.zeros(C, np.float32)  # (C,) each
rows = rng.normal(size=(8000, C)).astype(np.float32)  # (8000, C)
for name, layernorm in (
    ("reference", reference.layernorm),
    ("in place", layernorm_in_place),
    ("numpy_ops", numpy_ops.layernorm),
):
    print(f"{name:10s} {seconds(lambda f=layernorm: f(rows, gain, none, 1e-5)) * 1e3:6.2f} ms")
assert np.array_equal(
    layernorm_in_place(rows, gain, none, 1e-5)[0], reference.layernorm(rows, gain, none, 1e-5)[0]
)

# %% [markdown]
# **Recap.** If an operation misses its bound by far, a limit is missing in the count. Find it,
# measure it, and count again. For GELU the missing ones are tanh and new memory.
#
# ## A profile
#
# How much of a training step is products? `Clock` wraps the operations, as `Counting` did in
# lesson 7, and notes for each how long its calls took. We give it a GPT-2 with random weights, 4
# layers of width 512: how long a product takes does not depend on the numbers in it.
#
# **Predict.** How much of a step do `linear` and `linear_backward` take together: half of it, or
# more? Which operation's share shrinks most from `reference` to `numpy_ops`?

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
# **Answer.** On our machine the products take two thirds of a step or more, and a larger share
# with `numpy_ops`. The rest shrinks, most of all `gelu_backward`: only one product of it is left.

# %% [markdown]
# Is the clock right? The operations of the products can be counted on paper. For each token and
# layer, forward: $C \cdot 3C$ multiplications for queries, keys and values (`attn.c_attn`),
# $C \cdot C$ behind the attention (`attn.c_proj`), $C \cdot 4C$ and $4C \cdot C$ in the MLP, each
# with an addition. Backward, for the gradient of the inputs alone, as many again. The head
# multiplies $(M, C)$ by $(C, V)$ for the $M$ targets, forward and backward.
#
# Two things are left out ([lesson 7](07_half_a_backward.py)):
#
# - in the top layer, only the $M$ tokens that predict a target go further than queries, keys and
#   values;
# - in the lowest layer, nothing needs a gradient below the attention, so `attn.c_attn` has no
#   backward.
#
# ### Exercise 14.4: `step_operations`
#
# *15 minutes · difficulty 3 of 5*
#
# How many operations (multiplications and additions) do the products of a training step take, for a
# prefix in all $L$ layers? Attention's own products do not count here. Let `forward` and `backward`
# count multiplications, and double their sum at the end.


# %%
def step_operations(N, M, L, C, V):
    forward = ...  # ()  multiplications
    backward = ...  # ()  multiplications
    return ...


grade(step_operations)

# %% [markdown]
# <details><summary>Hint 1</summary>
#
# Split a layer in two: $3 C^2$ multiplications of `c_attn` for all $N$ tokens, and $9 C^2$ for what
# comes after attention.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# What comes after attention is computed for $(L - 1) N + M$ tokens, forward and backward alike.
#
# </details>


# %% jupyter={"source_hidden": true}
def step_operations(N, M, L, C, V):
    after = 9 * C * C * ((L - 1) * N + M)
    forward = 3 * C * C * L * N + after + M * C * V  # ()
    backward = 3 * C * C * (L - 1) * N + after + M * C * V  # ()
    return 2 * (forward + backward)


# %% [markdown]
# **Predict.** Which part of the operations is left with these two savings? More than 3/4?

# %%
L, V, N, M = 4, 4096, batch.tokens.size, batch.targets.size
without = 2 * 2 * 12 * C**2 * N * L + 2 * 2 * C * V * M
done = clocks["reference"][1].products
print(f"{done / 1e9:.1f} of {without / 1e9:.1f} G operations: {done / without:.0%}")
assert done == step_operations(N, M, L, C, V) == clocks["numpy"][1].products
assert 0.85 < done / without < 0.9

# %% [markdown]
# **Answer.** Nearly nine tenths. Your count and the clock's agree to the last operation, for both
# implementations.

# %% [markdown]
# **Recap.** A profile says where the time goes. A count on paper says whether the profile is right,
# and what the work would be without our savings.
#
# ## What a framework computes in addition
#
# A framework calls the same kind of library for its products. Four things differ:
#
# 1. **No [padding](glossary.md#padding).** A framework's batch is a rectangle: every sequence is
#    filled up to the longest.
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
assert 1.65 < padded / done < 1.9

# %% [markdown]
# At the shape of GPT-2, on two cores, the project's own [benchmark](../BENCHMARKS.md) measures a
# step at 0.36 to 0.38 times the time of PyTorch with PEFT on batches like this one. Where all
# sequences are equally long and every token is a target, it is 0.64 times: then the first two
# reasons are gone. In a clone of this repository `python -m tools.bench train` repeats it on your
# machine.
#
# **Recap.** A ratio of two programs, run in turns on one machine, means something. A time alone
# does not.
#
# ## Break it yourself
#
# Faster code reuses memory. That is where its bugs come from, and they are of one kind: a number is
# right when it is computed, and wrong when it is looked at again. New memory for the output of
# attention costs time at every call. In this bug attention keeps one buffer for it, and returns
# that.
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
# **Predict.** Which of the two checks fires for the planted bug? And in training: the output $z$ of
# attention goes through the linear layer `attn.c_proj`. Which gradient needs $z$ again, that of the
# layer's input or that of its weight? So does the training of a prefix notice, or the training of
# the model?

# %%
from minprefix import loss_and_weight_grads


def relative_error(a, b):
    """The largest difference, as a part of the largest number."""
    return np.abs(a - b).max() / np.abs(b).max()


broken = planted("outputs-share-a-buffer")
print(broken)

check_one_call(broken.reference)  # nothing fires: it is right, once
with caught() as error:  # take this line away, and the lesson stops here
    check_two_calls(broken.reference)
print(error)

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
print(broken.see)
print(broken.lesson)

# %% [markdown]
# **Answer.** The second check fires. The weight's gradient is $dW = z^\top dout$, the input's is
# $dout \, W^\top$: only the first needs $z$. So a prefix trains as if nothing were wrong. A
# training of the weights gets a gradient of the lower layers from the output of a higher one.

# %% [markdown]
# This is why the [reference suite](glossary.md#reference-suite) looks at every result twice, and
# why "it trains" is no proof.
#
# ## Remember
#
# - The least time of an operation is the longest of: operations over peak, bytes over bandwidth,
#   and any other work over its own speed.
# - The intensity, operations for each byte, says which of the first two decides.
# - An operation that misses its bound by far has a limit that you have not counted. GELU has two:
#   tanh, and new memory.
# - Predict first, in milliseconds. Then measure, more than once, and take the fastest run.
# - Less work beats faster work: no padding, no logits without a target, half a backward.
# - Code that reuses memory has to be looked at twice: after its own call, and after the next one.
#
# ## Exercises
#
# **1.** (5 minutes, difficulty 1 of 5.) How long must one token of GPT-2 (124 million weights in
# float32) take on your machine at least, if every weight is read once? And sixteen tokens of
# sixteen texts at once?
#
# <details><summary>Solution 1</summary>
#
# ```python
# weights = {"bytes": 124e6 * 4}
# for texts in (1, 16):
#     least, bound = at_least(weights | {"operations": texts * 2 * 124e6}, machine)
#     print(f"{texts} at once: {least * 1e3:.0f} ms, bound by {bound}")
# ```
#
# The same bytes are used sixteen times. Until the arithmetic takes longer than the reading, further
# texts cost nothing.
#
# </details>
#
# **2.** (An experiment, 5 minutes, difficulty 2 of 5.) Time `layernorm_in_place`,
# `reference.layernorm` and `numpy_ops.layernorm` on $(4, 512)$ in float32. Why is there less to
# gain than on 8000 rows?
#
# <details><summary>Solution 2</summary>
#
# ```python
# for layernorm in (reference.layernorm, layernorm_in_place, numpy_ops.layernorm):
#     took = seconds(lambda f=layernorm: f(rows[:4], gain, none, 1e-5), repeats=50)
#     print(f"{layernorm.__module__} {took * 1e6:.0f} us")
# ```
#
# Four rows fit into the fastest cache, whatever one does. What is left is the time that Python
# takes to call NumPy, about a microsecond a call.
#
# </details>
#
# Next: [The same on a GPU](15_on_a_gpu.py).
