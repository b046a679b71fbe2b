# %% [markdown]
# # Frozen: half a backward
#
# - **You will be able to** say what a frozen model's backward may leave out and what it may not,
#   predict on paper how many multiply-adds that saves, count them while they happen, and prove that
#   the gradient is still the same.
# - **You need** the two halves of a linear layer's backward: [lesson 2](02_backward_by_hand.py);
#   the blocks of GPT-2: [lesson 6](06_gpt2_from_its_file.py).
# - **Time** 45 minutes; it runs in 4 seconds.
# - **Difficulty** 2 of 3.
#
# ## What frozen means
#
# Nobody moves the weights. So nobody needs their gradients. But the gradient still has to pass
# *through* every layer, down to the prefix of the lowest one. Lesson 2 found two halves in the
# backward of a linear layer, which have nothing to do with each other. With `x` of the shape
# $(N, in)$, the weight `W` $(in, out)$ and the upstream `dout` $(N, out)$:
#
# $$dx = dout \; W^\top \quad (N, in), \qquad dW = x^\top dout \quad (in, out)$$
#
# The first carries the gradient on. The second ends in the weight. A product of $(n, m)$ and
# $(m, p)$ takes $n \cdot m \cdot p$ multiplications, each followed by an addition: *multiply-adds*.
# The forward, $dx$ and $dW$ take $N \cdot in \cdot out$ each; a frozen layer leaves out the last.
#
# ## On paper
#
# What there is to multiply in a GPT-2, forward, in one layer, with $N$ tokens in all:
#
# | | multiply-adds | |
# |---|---|---|
# | `attn.c_attn` | $N \cdot 3 C^2$ | to queries, keys and values |
# | attention | $2 \, C \sum_b T_b (P + T_b)$ | the scores, the mixtures |
# | `attn.c_proj` | $N \cdot C^2$ | back to the stream |
# | `mlp` | $N \cdot 2 C F$ | to $F$ numbers and back |
#
# (Text $b$ has $T_b$ tokens. Each of them meets $P + T_b$ keys. A score takes $hs$ multiply-adds in
# each of the $NH$ heads, and $NH \cdot hs = C$; the mixture of the values takes as many. We count
# every pair of a query and a key, also those that the mask hides.) And once, at the end, the head:
# $N \cdot C V$. Everything else (layernorm, GELU, softmax, sums) touches each number a few times,
# where a product touches it hundreds of times. We leave it out.
#
# Backward, each linear layer costs its forward twice, once for $dx$ and once for $dW$. Attention
# has no weights: from $pattern \; values$ come $dpattern$ and $dvalues$, from $q \, keys^\top$ come
# $dq$ and $dkeys$, four products, all of which carry the gradient on.
#
# Four things can be left out of all this:
#
# 1. every $dW$, since the weights are frozen;
# 2. what lies below the attention of layer 0 (its `c_attn`, its `ln_1`, the embedding): there is
#    nothing there but frozen weights;
# 3. the logits of tokens that predict nothing, for which there is no *target*. Of a record and its
#    description, only the description counts. $M$ rows remain of $N$;
# 4. in the top layer, everything after attention for those same tokens. They have given their keys
#    and values to the others, and nobody will look at them again.
#
# Anyone who trains may leave out the last two, frozen or not. The first two are ours.

# %%
import numpy as np

from minprefix import GPT2, Batch, Prefix
from minprefix.data.world import table_to_text

model = GPT2.load("tiny", dtype="float64")


def pack(pairs):
    """Records with their descriptions; the descriptions are the targets."""
    prompts = [model.encode(source + "\n") for source, _ in pairs]
    texts = [p + model.encode(target) for p, (_, target) in zip(prompts, pairs, strict=True)]
    return Batch.pack(texts, loss_from=[len(p) for p in prompts])


P = 5
batch = pack(list(table_to_text(4, "train", seed=0)))
prefix = Prefix.normal(model.config, length=P, std=0.5, seed=0, dtype="float64")
print(batch)


def on_paper(cfg, lengths, P, rows, frozen):
    """Multiply-adds of one step: texts of these lengths, of which `rows` tokens go to the top."""
    L, C, V, N = cfg.n_layer, cfg.n_embd, cfg.vocab_size, sum(lengths)
    F = cfg.n_inner or 4 * C
    pairs = sum(T * (P + T) for T in lengths)  # of a query and a key
    into = 3 * C**2  # a row's way into the attention
    after = C**2 + 2 * C * F  # and what comes after it
    linear = L * N * into + (L - 1) * N * after + rows * after + rows * C * V
    below = N * into if frozen else 0  # layer 0's c_attn: nobody asks for its dx
    return {
        "forward": linear + L * 2 * pairs * C,
        "dx": linear - below + L * 4 * pairs * C,
        "dW": 0 if frozen else linear,
    }


# %% [markdown]
# ## Counted
#
# The package's model is written once, and is handed the operations that it should use
# ([the contract](../minprefix/ops/contract.py)). So we hand it our own: they count, and then let
# the real ones do the work. Whatever is not counted, `__getattr__` passes on.

# %%
from collections import Counter

from minprefix.ops import numpy_ops


class Counting:
    def __init__(self, ops):
        self.ops, self.counts = ops, Counter()

    def __getattr__(self, name):
        return getattr(self.ops, name)

    def linear(self, x, weight, bias):
        self.counts["forward"] += len(x) * weight.size  # (N, in) @ (in, out)
        return self.ops.linear(x, weight, bias)

    def linear_backward(self, dout, weight):
        self.counts["dx"] += len(dout) * weight.size  # (N, out) @ (out, in)
        return self.ops.linear_backward(dout, weight)

    def linear_backward_params(self, dout, x):
        self.counts["dW"] += len(x) * x.shape[1] * dout.shape[1]  # (in, N) @ (N, out)
        return self.ops.linear_backward_params(dout, x)

    def attention(self, q, k, v, prefix_k, prefix_v, offsets):
        _, NH, hs = q.shape
        T, P = np.diff(offsets), [a.shape[1] for a in prefix_k]  # of each text: (B,) each
        self.product = int((T * (T + P)).sum()) * NH * hs  # over all texts and heads
        self.counts["forward"] += 2 * self.product
        return self.ops.attention(q, k, v, prefix_k, prefix_v, offsets)

    def attention_backward(self, dz, cache):
        self.counts["dx"] += 4 * self.product
        return self.ops.attention_backward(dz, cache)


# %% [markdown]
# Three ways to the gradient of one prefix. *Everything*: a row of logits for every token, and the
# gradient of every weight. *Fine-tuning*: only the rows with a target, and the gradient of every
# weight, which is what one needs to train the whole model. *Frozen*: only those rows, and no
# weight. `loss_backward` is what `loss_and_grad` calls. It gives back the loss, a list with the
# gradient of each prefix, and the gradients of the weights by name; `need` is the set of the
# weights whose gradient it should find: all of them, or none. As in lesson 3, `batch.rows` $(M)$
# are the tokens after which something is to be predicted.
#
# **Predict.** A frozen step against one of fine-tuning: is it a half, two thirds, three quarters?

# %%
from dataclasses import replace

from minprefix.model import loss_backward

N, M = len(batch.tokens), len(batch.rows)
targets, weights = np.zeros(N, int), np.zeros(N)  # (N,) each
targets[batch.rows], weights[batch.rows] = batch.targets, batch.weights
# the same loss, with a row for every token: those that were added weigh 0
every_row = replace(batch, rows=np.arange(N), targets=targets, weights=weights)

every_weight, no_weight = frozenset(model.weights), frozenset()
ways = {
    "everything": (every_row, every_weight),
    "fine-tuning": (batch, every_weight),
    "frozen": (batch, no_weight),
}
dkv, counts = {}, {}
for way, (its_batch, need) in ways.items():
    counting = Counting(numpy_ops)
    _, (dkv[way],), _ = loss_backward(model, prefix, its_batch, "mean", counting, need)
    counts[way] = dict(counting.counts)
    paper = on_paper(model.config, batch.lengths, P, len(its_batch.rows), frozen=not need)
    total = sum(counts[way].values())
    parts = "  ".join(f"{part} {n / 1e6:.1f}" for part, n in counts[way].items())
    print(f"{way:12} {total / 1e6:5.1f} million:  {parts}")
    assert total == sum(paper.values()), f"{way}: paper {paper}, counted {counts[way]}"
    assert all(counts[way].get(part, 0) == n for part, n in paper.items()), way

share = sum(counts["frozen"].values()) / sum(counts["fine-tuning"].values())
print(f"{M} of {N} tokens have a target; frozen is {share:.0%} of fine-tuning")
assert 0.6 < share < 0.7

# %% [markdown]
# What we found on paper, to the last multiply-add, and two thirds: forward and half of the backward
# are left of three parts. It could be a little less, since layer 0 ends early, and a little more,
# since attention has no half to leave out; here the two cancel. (Some small things the package
# computes although nobody asks: in the top layer what the tokens without a target look for and
# find, and $dq$ in layer 0.)
#
# ## Nothing was lost
#
# A count is no proof: a backward that computes nothing has the best count of all. First, the three
# ways must agree.

# %%


def relative_error(a, b):
    """The largest difference, as a part of the largest number: 1 means all wrong."""
    return np.abs(a - b).max() / np.abs(b).max()


for way in ("fine-tuning", "frozen"):  # (L, 2, NH, P, hs) each
    error = relative_error(dkv[way], dkv["everything"])
    print(f"{way:12} off by {error:.1e}")
    assert error < 1e-12, f"{way} has another gradient of the prefix"

# %% [markdown]
# But all three are one code, perhaps with one bug. So, second, the complex step, which needs no
# backward at all. One number at a time would be 6400 forwards. But move all numbers of one layer at
# once, in a random direction $u$, and the derivative along it is a number that a gradient must
# give, too. With $kv_i$, $dkv_i$ and $u_i$, $(2, NH, P, hs)$ each, for those of layer $i$:
#
# $$\left. \frac{\partial}{\partial \epsilon} \, \ell(kv_i + \epsilon u_i) \right|_{\epsilon = 0}
# = \sum dkv_i \odot u_i$$
#
# That is one forward for each layer. A wrong gradient that passes would have to be wrong at a right
# angle to $u_i$, and $u$ was drawn at random.

# %%
import minprefix

L = model.config.n_layer
u = np.random.default_rng(1).normal(size=prefix.kv.shape)  # (L, 2, NH, P, hs)
complex_model = GPT2.load("tiny", dtype="complex128")
exact = np.zeros(L)  # (L,): along u in each layer
for i in range(L):
    moved = prefix.kv.astype(complex)
    moved[i] += 1e-30j * u[i]
    loss = minprefix.loss(complex_model, batch, Prefix(moved), ops="reference")
    exact[i] = loss.imag / 1e-30


def check_gradient(package, layers=range(L)):
    """The prefix gradient of `package`, along u, in each of these layers, from the top down."""
    # a package with a bug planted in it has classes of its own
    its_model, its_prefix = package.GPT2(model.config, model.weights), package.Prefix(prefix.kv)
    _, dkv = package.loss_and_grad(its_model, its_prefix, package.Batch(**vars(batch)))
    along = (dkv * u).sum(axis=(1, 2, 3, 4))  # (L,)
    for i in reversed(layers):
        error = abs(along[i] - exact[i]) / np.abs(exact).max()
        assert error < 1e-12, f"layer {i}: {along[i]:.2g} along u, not {exact[i]:.2g}"


check_gradient(minprefix)
print("right in every layer:", *(f"{number:.1e}" for number in exact))

# %% [markdown]
# ## Where the prefix begins
#
# Nothing says that every layer must have a prefix. `Prefix.normal(..., layers=[3])` gives slots to
# the top layer alone. Below it lie only frozen weights, so the backward may stop there.
#
# **Predict.** How much of the frozen backward is left then: a quarter, or less, or more?

# %%
import matplotlib.pyplot as plt

top = Prefix.normal(model.config, length=P, layers=[L - 1], std=0.5, dtype="float64")
counting = Counting(numpy_ops)
loss_backward(model, top, batch, "mean", counting, no_weight)
counts["top layer"] = dict(counting.counts)
left = counts["top layer"]["dx"] / counts["frozen"]["dx"]
print(f"{left:.0%} of the backward is left")
assert 0.1 < left < 0.4

fig, ax = plt.subplots(figsize=(6.5, 3))
start = np.zeros(len(counts))
for part, hatch, colour in (("forward", "", "0.75"), ("dx", "//", "white"), ("dW", "xx", "0.9")):
    sizes = np.array([c.get(part, 0) for c in counts.values()]) / 1e6
    ax.barh(list(counts), sizes, left=start, hatch=hatch, color=colour, ec="black", label=part)
    start += sizes
ax.invert_yaxis()
ax.set(xlabel="million multiply-adds in a step", title="What is computed, and what is left out")
ax.legend()
fig.tight_layout()
plt.show()

# %% [markdown]
# Less than a quarter. One layer of four, and of that layer neither `c_attn` nor the rows without a
# target; the head, which the gradient has to pass in any case, makes up for some of it. (Whether
# the top layer alone can learn as much is another question. The end of this lesson has a hint, and
# [lesson 8](08_training_a_prefix.py) an answer.)
#
# ## Measured
#
# A multiply-add that is not done takes no time. But time also goes into all that we did not count,
# and a machine has other things to do. We take the best of several runs, by turns, and do not
# `assert` anything about a time: it would hold today and here.
#
# **Predict.** Will a frozen step take two thirds of the time, too?

# %%
from time import perf_counter

from minprefix.lessons import real_gpt2


def measure(model, prefix, batch, runs):
    """Seconds of the best run: fine-tuning, and frozen."""
    best = dict.fromkeys([frozenset(model.weights), no_weight], np.inf)
    for _ in range(runs):
        for need in best:
            began = perf_counter()
            loss_backward(model, prefix, batch, "mean", "numpy", need)
            best[need] = min(best[need], perf_counter() - began)
    return best.values()


def compare(model, batch, runs):
    cfg, slots = model.config, Prefix.normal(model.config, length=P)
    whole, half = measure(model, slots, batch, runs)
    counted = [
        sum(on_paper(cfg, batch.lengths, P, len(batch.rows), f).values()) for f in (False, True)
    ]
    print(f"{model.name}: fine-tuning {whole * 1e3:.0f} ms, frozen {half * 1e3:.0f} ms")
    print(f"  {half / whole:.0%} of the time, {counted[1] / counted[0]:.0%} of the multiply-adds")


compare(GPT2.load("tiny"), batch, runs=12)
real = real_gpt2()
if real is None:
    print("GPT-2 is not at hand: measured on the small model alone")
else:
    lines = [
        f"The {place} is near the river and has been there for years."
        for place in ("mill", "old station", "market hall")
    ]
    compare(real, Batch.pack([real.encode(line) for line in lines]), runs=2)

# %% [markdown]
# Near it, on a machine that is left in peace; on a busy one, anything. The weights' gradients also
# want room: as many numbers as the weights themselves, and AdamW notes down two more for each
# weight. A frozen model needs none of that, and keeps less for its backward (exercise 2).
#
# ## Break it yourself
#
# The obvious way to freeze a model is to leave out too much. Someone reads "frozen layers need no
# gradient", and stops it there. The layer's own gradient is not needed; the one that passes
# through is.
#
# **Predict.** In which layers does `check_gradient` find the prefix's gradient wrong? What does the
# loss do while one trains with it?

# %%
from minprefix.lessons import caught, planted

broken = planted("gradient-stops-below-the-top")
print(broken)

with caught() as error:  # take this line away, and the lesson stops here
    check_gradient(broken)
print(error)
check_gradient(broken, layers=[L - 1])  # passes: the top layer's gradient is right

# %% [markdown]
# Everywhere but in the top layer. What would you have seen without this check? The gradient has the
# right shape. Its count is the same to the last multiply-add: products with zeros are products,
# too. The top layer is right, so with a model of one layer every test passes. And the training
# works:

# %%
from minprefix.optim import AdamW

counting, its_prefix = Counting(numpy_ops), broken.Prefix(prefix.kv)
its_model, its_batch = broken.GPT2(model.config, model.weights), broken.Batch(**vars(batch))
given = its_model, its_prefix, its_batch, "mean", counting, no_weight
_, (wrong,), _ = broken.loss_backward(*given)
assert wrong.shape == prefix.kv.shape
assert counting.counts == counts["frozen"]
print("largest entry, layer by layer:", *(f"{np.abs(layer).max():.1e}" for layer in wrong))

small = GPT2.load("tiny").weights  # float32, which is enough to train in


def train(package, steps=12):
    """The loss before each step."""
    its_model, its_batch = package.GPT2(model.config, small), package.Batch(**vars(batch))
    its_prefix = package.Prefix.normal(model.config, length=P)
    adam, losses = AdamW(), []
    for _ in range(steps):
        loss, dkv = package.loss_and_grad(its_model, its_prefix, its_batch)
        adam.step(its_prefix.parameters, {"kv": dkv}, lr=0.1)
        losses.append(loss)
    return losses


sound_losses, broken_losses = train(minprefix), train(broken)
for name, losses in (("sound", sound_losses), ("broken", broken_losses)):
    print(f"{name:6}", *(f"{loss:.3f}" for loss in losses[::2]))
assert broken_losses[-1] < broken_losses[0]

# %% [markdown]
# The prefix of the top layer learns, so the loss falls. One would say that the learning rate is too
# small, and raise it. Only the gradient, compared in every layer with one that was found in another
# way, tells.
#
# ## Exercises
#
# **1.** GPT-2 with $L = 12$, $C = 768$, $F = 4C$, $V = 50257$; 10 texts of 54 tokens each, of which
# 25 are targets; $P = 10$. How much of *everything* is left if only the rows with a target are
# computed? And how much if, besides, the model is frozen?
#
# <details><summary>Solution 1</summary>
#
# 81%, and then 54%. The head alone is nearly a third of the forward over every row, so it pays to
# ask it only for what is wanted.
#
# ```python
# gpt2 = minprefix.Config(
#     n_layer=12, n_head=12, n_embd=768, vocab_size=50257, n_positions=1024
# )
# lengths = [54] * 10
# everything = sum(on_paper(gpt2, lengths, 10, rows=540, frozen=False).values())
# for frozen in (False, True):
#     left = sum(on_paper(gpt2, lengths, 10, rows=250, frozen=frozen).values()) / everything
#     print(f"frozen {frozen}: {left:.0%}")
#     assert round(100 * left) == (54 if frozen else 81)
# ```
#
# </details>
#
# **2.** $dx = dout \, W^\top$ does not need $x$. Which arrays of a block need not be kept from the
# forward to the backward, if the model is frozen? How many numbers for each token?
#
# <details><summary>Solution 2</summary>
#
# The inputs of the four linear layers: what comes out of `ln_1` $(N, C)$, out of the attention
# $(N, C)$, out of `ln_2` $(N, C)$ and out of GELU $(N, F)$. With $F = 4C$ that is $7C$ numbers for
# each token in each layer. (Layernorm, GELU and attention must keep what they had: their gradients
# depend on it.)
#
# ```python
# from minprefix.gpt2 import embedding, forward
# from minprefix.model import prepare
#
# stream = prepare(model, batch, prefix)
# x = embedding(stream, model.weights, numpy_ops)
# for need, expected in ((every_weight, 7 * model.config.n_embd), (no_weight, 0)):
#     _, blocks = forward(x, stream, model.weights, model.config, numpy_ops, need)
#     halves = [half for block in blocks for half in block]
#     kept = sum(a.size for half in halves for a in half if isinstance(a, np.ndarray))
#     print(f"{len(need)} weights: {kept / N / L:.0f} numbers for each token and layer")
#     assert kept == N * L * expected
# ```
#
# </details>
#
# **3.** (Graded.) Write the half of the backward yourself. Here is the forward of a whole batch, in
# the operations of the package, and what it keeps. You write `run_model(problem)`: call `keep`, and
# walk back from the logits. No operation with `_params` in its name is needed. Where the forward
# says `x = x + ...`, the gradient comes back by two ways, around and through, and they add up.
# Several texts may share a prefix; text $b$ sees number `batch.prefix[b]`. Return a dictionary with
#
# - `loss`, and for each prefix $j$ `prefix.j.dk` and `prefix.j.dv`, $(L, NH, P, hs)$ each;
# - for each layer $i$ the gradient of the stream, `blocks.i.dresid_post` and `blocks.i.dresid_mid`,
#   $(N, C)$ each. These are not the point, but with them the suite finds where it first goes wrong.

# %%
from minprefix.lessons import grade
from minprefix.ops import reference as ops


def names_of(w, i):
    """The weights of block i under their short names: `attn.c_attn.weight` and so on."""
    return {name.removeprefix(f"h.{i}."): a for name, a in w.items() if name.startswith(f"h.{i}.")}


def keep(problem):
    """The loss, the batch, and the caches: four of each block, those of ln_f and of the loss."""
    w, cfg = problem.weights, problem.config
    NH, eps = cfg.n_head, cfg.layer_norm_epsilon
    batch = Batch.pack(problem.sequences, problem.loss_from, problem.prefix_of)
    seen = [problem.prefixes[j] for j in batch.prefix]  # for each text (L, 2, NH, P, hs)
    starts = np.array([problem.position_offsets[j] for j in batch.prefix])  # (B,)
    positions = [s + np.arange(T) for s, T in zip(starts, batch.lengths, strict=True)]
    positions = np.concatenate(positions)  # (N,)
    x = ops.embed(batch.tokens, positions, w["wte.weight"], w["wpe.weight"])  # (N, C)
    blocks = []
    for i in range(cfg.n_layer):
        b = names_of(w, i)
        a, ln_1 = ops.layernorm(x, b["ln_1.weight"], b["ln_1.bias"], eps)  # (N, C)
        qkv = ops.linear(a, b["attn.c_attn.weight"], b["attn.c_attn.bias"])  # (N, 3C)
        q, k, v = qkv.reshape(len(x), 3, NH, -1).swapaxes(0, 1)  # (N, NH, hs) each
        prefix_k, prefix_v = [kv[i, 0] for kv in seen], [kv[i, 1] for kv in seen]
        z, attention = ops.attention(q, k, v, prefix_k, prefix_v, batch.offsets)
        z = z.reshape(x.shape)  # (N, C)
        x = x + ops.linear(z, b["attn.c_proj.weight"], b["attn.c_proj.bias"])  # (N, C)
        m, ln_2 = ops.layernorm(x, b["ln_2.weight"], b["ln_2.bias"], eps)  # (N, C)
        h, gelu = ops.gelu(ops.linear(m, b["mlp.c_fc.weight"], b["mlp.c_fc.bias"]))  # (N, F)
        x = x + ops.linear(h, b["mlp.c_proj.weight"], b["mlp.c_proj.bias"])  # (N, C)
        blocks.append((ln_1, attention, ln_2, gelu))
    y, ln_f = ops.layernorm(x[batch.rows], w["ln_f.weight"], w["ln_f.bias"], eps)  # (M, C)
    logits = y @ w.get("lm_head.weight", w["wte.weight"]).T  # (M, V)
    weights = batch.weights / (batch.weights.sum() if problem.reduction == "mean" else 1)
    loss, cross_entropy = ops.cross_entropy(logits, batch.targets, weights.astype(x.dtype))
    return loss, batch, blocks, ln_f, cross_entropy


def run_model(problem):
    raise NotImplementedError  # yours


grade(run_model)

# %% [markdown]
# <details><summary>Solution 3</summary>
#
# The lines of `keep` from the last to the first. Below the attention of layer 0 there is nothing to
# do.
#
# ```python
# def run_model(problem):
#     w = problem.weights
#     loss, batch, blocks, ln_f, cross_entropy = keep(problem)
#     dkv = [np.zeros_like(kv) for kv in problem.prefixes]  # (L, 2, NH, P, hs) each
#     dlogits = ops.cross_entropy_backward(cross_entropy)  # (M, V)
#     dy = dlogits @ w.get("lm_head.weight", w["wte.weight"])  # (M, C)
#     drows = ops.layernorm_backward(dy, ln_f)  # (M, C)
#     dx = np.zeros_like(drows, shape=(len(batch.tokens), drows.shape[1]))  # (N, C)
#     dx[batch.rows] = drows
#     found = {"loss": np.asarray(loss)}
#     for i in reversed(range(len(blocks))):
#         b, (ln_1, attention, ln_2, gelu) = names_of(w, i), blocks[i]
#         found[f"blocks.{i}.dresid_post"] = dx
#         dh = ops.gelu_backward(ops.linear_backward(dx, b["mlp.c_proj.weight"]), gelu)  # (N, F)
#         dm = ops.linear_backward(dh, b["mlp.c_fc.weight"])  # (N, C)
#         dx = dx + ops.layernorm_backward(dm, ln_2)  # (N, C)
#         found[f"blocks.{i}.dresid_mid"] = dx
#         dz = ops.linear_backward(dx, b["attn.c_proj.weight"])  # (N, C)
#         grads = ops.attention_backward(dz.reshape(attention.q.shape), attention)
#         for j, dk, dv in zip(batch.prefix, grads.dprefix_k, grads.dprefix_v, strict=True):
#             dkv[j][i, 0] += dk  # texts that share a prefix add up
#             dkv[j][i, 1] += dv
#         if i > 0:
#             dqkv = np.stack([grads.dq, grads.dk, grads.dv], axis=1)  # (N, 3, NH, hs)
#             da = ops.linear_backward(dqkv.reshape(len(dx), -1), b["attn.c_attn.weight"])
#             dx = dx + ops.layernorm_backward(da, ln_1)  # (N, C)
#     for j, d in enumerate(dkv):
#         found |= {f"prefix.{j}.dk": d[:, 0], f"prefix.{j}.dv": d[:, 1]}
#     return found
#
#
# grade(run_model)
# ```
#
# </details>
#
# Next: [Training a prefix](08_training_a_prefix.py).
