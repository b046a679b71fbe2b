# %% [markdown]
# # The rivals
#
# - **You will be able to** say of prompt tuning, LoRA, adapters and full fine-tuning what each one
#   trains and what it can change in attention, write the backward of LoRA, of an adapter and of a
#   prompt by hand, and choose one of them for a reason.
# - **You need** λ and the relative attention: [lesson 10](10_what_a_prefix_can_do.py); the two
#   halves of a backward: [lesson 7](07_half_a_backward.py).
# - **Time** 140 minutes; it runs in 5 seconds.
# - **Difficulty** 4 of 5.
#
# ## Overview
#
# - The five methods train very unequal counts of numbers: in our small model 800 for a prompt,
#   6,400 for a prefix, about 20,000 for LoRA and for adapters, 1,442,240 for all weights.
# - You write LoRA, an adapter and the way from a prefix's gradient to a prompt's, and prove all
#   five gradients by a slope.
# - Only LoRA and full fine-tuning change the relative attention in their own layer. A prefix and an
#   adapter of layer 1 change it first in layer 2.
# - In a model of one layer, a LoRA of 32 numbers learns a task that an adapter of 152 cannot learn.
# - A prompt *is* a prefix: the frozen model computes it from the prompt's vectors.
# - A gradient that is wrong by a constant factor leaves AdamW's curve as it was.
#
# ## Five ways to adapt one model
#
# "And how is that different from LoRA?" Here are [prefix](glossary.md#prefix)-tuning and four of
# its [rivals](glossary.md#rival), on the same model and the same batch:
#
# | method | what is trained | source |
# |---|---|---|
# | prefix | keys and values of $P$ slots in each layer | Li & Liang, 2021 |
# | prompt | $P$ vectors in the place of token embeddings | Lester et al., 2021 |
# | LoRA | $A$ $(in, r)$ and $B$ $(r, out)$; $W$ becomes $W + s A B$ | Hu et al., 2021 |
# | adapters | a small network behind each sublayer | Houlsby et al., 2019 |
# | full | every weight | Radford et al., 2019 |
#
# The first two leave the model as it is and give it something to look at. LoRA and full fine-tuning
# change its weights. An [adapter](glossary.md#adapter) adds a layer of its own.
#
# In this lesson $A$ and $B$ are LoRA's two matrices. (Elsewhere $B$ is the number of sequences.)
# $h$ $(N, C)$ is a *sublayer's* output: what the attention or the MLP is about to add to the
# residual stream. An adapter replaces $h$ by $h + gelu(h D + b_D) \, U + b_U$. The weight $D$ (for
# "down") is $(C, m)$, the weight $U$ ("up") is $(m, C)$, and $b_D$ $(m)$ and $b_U$ $(C)$ are their
# biases. The width $m$ is small, so an adapter is also called a *bottleneck*.
#
# ### Exercise 16.1: `trained_numbers`
#
# *12 minutes · difficulty 2 of 5*
#
# How many numbers does each method train? The model is a GPT-2 with $L$ layers, width $C$, $V$
# tokens in its vocabulary and `n_positions` positions. Its MLP is $4C$ wide, and its head is the
# token embedding again. The methods are:
#
# - a prefix of $P$ slots in each layer, and a prompt of $P$ vectors;
# - LoRA of rank $r$ on each layer's `attn.c_attn`, whose weight is $(C, 3C)$;
# - adapters of width $m$ behind the attention and behind the MLP of each layer, with their biases;
# - full fine-tuning: all weights, biases and layernorms ([lesson 6](06_gpt2_from_its_file.py) lists
#   them).
#
# Return a dictionary with the five names as below.

# %%
import numpy as np

from minprefix.lessons import grade


def trained_numbers(L, C, V, n_positions, P, r, m):
    prefix, prompt = ..., ...
    lora = ...
    adapters = ...
    full = ...
    return {"prefix": prefix, "prompt": prompt, "LoRA": lora, "adapters": adapters, "full": full}


grade(trained_numbers)

# %% [markdown]
# <details><summary>Hint 1</summary>
#
# A prefix's array has the shape $(L, 2, NH, P, hs)$, and $NH \cdot hs = C$.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# The weights of one layer are $(C, 3C)$, $(C, C)$, $(C, 4C)$ and $(4C, C)$. Each has a bias as long
# as its output. Each of the two layernorms has a gain and a bias of $C$ numbers. A third layernorm
# stands behind the last layer.
#
# </details>


# %% jupyter={"source_hidden": true}
def trained_numbers(L, C, V, n_positions, P, r, m):
    prefix, prompt = L * 2 * P * C, P * C
    lora = L * (C * r + r * 3 * C)
    adapters = L * 2 * (C * m + m + m * C + C)
    weights = C * 3 * C + C * C + C * 4 * C + 4 * C * C
    biases = 3 * C + C + 4 * C + C
    layernorms = 2 * 2 * C
    full = V * C + n_positions * C + L * (weights + biases + layernorms) + 2 * C
    return {"prefix": prefix, "prompt": prompt, "LoRA": lora, "adapters": adapters, "full": full}


# %% [markdown]
# **Predict.** The small model of this repository has $L = 4$, $C = 160$, $V = 1024$ and 256
# positions. Which two of the five methods train almost equally many numbers for $P = 5$, $r = 8$
# and $m = 8$? Which of them begin exactly at the model's own loss?

# %%
from minprefix import GPT2, Batch, Prefix, loss, loss_and_grad
from minprefix.data.world import table_to_text
from minprefix.methods import Adapters, FineTuning, LoRA, PromptTuning

model = GPT2.load("tiny", dtype="float64")
L, C, V = model.config.n_layer, model.config.n_embd, model.config.vocab_size
P, r, m = 5, 8, 8

pairs = list(table_to_text(2, "train", seed=0))
prompts = [model.encode(source + "\n") for source, _ in pairs]
ids = [p + model.encode(target) for p, (_, target) in zip(prompts, pairs, strict=True)]
batch = Batch.pack(ids, loss_from=[len(p) for p in prompts])

methods = {
    "prefix": Prefix.normal(model.config, P, std=0.5, dtype="float64"),
    "prompt": PromptTuning.normal(model, P, std=0.5),
    "LoRA": LoRA.start(model, rank=r),
    "adapters": Adapters.start(model, bottleneck=m),
    "full": FineTuning.start(model),
}
on_paper = trained_numbers(L, C, V, model.config.n_positions, P, r, m)
start_loss = {name: loss(model, batch, method) for name, method in methods.items()}
for name, method in methods.items():
    n = method.n_parameters
    print(f"{name:9s} {n:9,d} numbers, {n / model.n_parameters:7.2%} of the model", end="")
    print(f"; loss {start_loss[name]:.3f}")
    assert n == on_paper[name]
alone = loss(model, batch)
print(f"the model alone: loss {alone:.3f}")
assert start_loss["LoRA"] == start_loss["full"] == alone
assert 0 < abs(start_loss["adapters"] - alone) < 0.01

# %% [markdown]
# **Answer.** LoRA trains 20,480 numbers, the adapters 21,824. LoRA begins exactly at the model,
# because its $B$ begins at 0. Full fine-tuning does, too. An adapter begins near the model, with
# small $D$ and $U$. A prefix and a prompt cannot begin there, because each slot draws some
# attention.

# %% [markdown]
# **Recap.** The methods differ in what they train and in how much of it. The count alone does not
# say what a method can learn. The rest of this lesson asks for that.
#
# ## An adapter, there and back
#
# With $N$ rows, an adapter computes
#
# $$z = h D + b_D \quad (N, m), \qquad a = gelu(z) \quad (N, m), \qquad
# out = h + a \, U + b_U \quad (N, C)$$
#
# ### Exercise 16.2: `adapter`
#
# *5 minutes · difficulty 1 of 5*
#
# Compute `out` $(N, C)$. `ops` holds the operations of the package: `ops.linear(x, weight, bias)`,
# and `ops.gelu(z)`, which returns the pair of the output and a cache. You may also write `@`.


# %%
def adapter(h, D, b_D, U, b_U, ops):
    z = ...  # (N, m)
    a = ...  # (N, m)
    out = ...  # (N, C)
    return out


grade(adapter)

# %% [markdown]
# <details><summary>Hint 1</summary>
#
# The adapter has a way around it: its input is added to what it computes.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# `ops.gelu(z)[0]` is the output of the GELU. `h @ D + b_D` and `ops.linear(h, D, b_D)` are the
# same.
#
# </details>


# %% jupyter={"source_hidden": true}
def adapter(h, D, b_D, U, b_U, ops):
    z = ops.linear(h, D, b_D)  # (N, m)
    a = ops.gelu(z)[0]  # (N, m)
    out = h + ops.linear(a, U, b_U)  # (N, C)
    return out


# %% [markdown]
# ### Exercise 16.3: `adapter_backward`
#
# *12 minutes · difficulty 3 of 5*
#
# From `dout` $(N, C)$ compute the gradients of the input, $dh$, and of the four parameters, in the
# order `dh, dD, db_D, dU, db_U`. First compute `z` and `a` again. `ops.gelu_backward(da, cache)`
# takes the cache that `ops.gelu` gave. From [lesson 2](02_backward_by_hand.py) you know
# `ops.linear_backward(dout, weight)` and `ops.linear_backward_params(dout, x)`.


# %%
def adapter_backward(dout, h, D, b_D, U, b_U, ops):
    z = ...  # (N, m)
    a, cache = ops.gelu(z)
    da = ...  # (N, m)
    dz = ...  # (N, m)
    dU = ...  # (m, C)
    db_U = ...  # (C,)
    dD = ...  # (C, m)
    db_D = ...  # (m,)
    dh = ...  # (N, C)
    return dh, dD, db_D, dU, db_U


grade(adapter_backward)

# %% [markdown]
# <details><summary>Hint 1</summary>
#
# Read the forward backwards. Both `h` and `a @ U` are summands of `out`, so both get `dout`.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# `h` is used twice: in the way around, and in `h @ D`. Its gradient is the sum of both.
#
# </details>


# %% jupyter={"source_hidden": true}
def adapter_backward(dout, h, D, b_D, U, b_U, ops):
    z = ops.linear(h, D, b_D)  # (N, m)
    a, cache = ops.gelu(z)
    da = ops.linear_backward(dout, U)  # (N, m)
    dz = ops.gelu_backward(da, cache)  # (N, m)
    dU, db_U = ops.linear_backward_params(dout, a)  # (m, C)
    dD, db_D = ops.linear_backward_params(dz, h)  # (C, m)
    dh = dout + ops.linear_backward(dz, D)  # (N, C)
    return dh, dD, db_D, dU, db_U


# %% [markdown]
# Beside yours: people forget a part of the last line. Without `dout` in it, no layer below the
# adapter would learn that $h$ itself reaches the output.
#
# We check both functions: the forward against the package's adapter, the backward against a slope.

# %%
from minprefix.ops import reference

N, rng = 6, np.random.default_rng(3)
behind = "h.0.attn.c_proj"  # the layer whose output it replaces
package = Adapters.start(model, bottleneck=m, std=0.3)
own = [package.parameters[f"{behind}.{part}"] for part in ("down", "down_bias", "up", "up_bias")]
h, dout = rng.normal(size=(N, C)), rng.normal(size=(N, C))
out, _ = package.path(behind, h, h, reference, None)
assert np.allclose(adapter(h, *own, reference), out, rtol=1e-12)

inputs = [h, *own]
direction = [rng.normal(size=a.shape) for a in inputs]
up, down = (
    (dout * adapter(*(a + s * d for a, d in zip(inputs, direction, strict=True)), reference)).sum()
    for s in (1e-5, -1e-5)
)
grads = adapter_backward(dout, *inputs, reference)
said = sum((g * d).sum() for g, d in zip(grads, direction, strict=True))
print(f"the slope is {(up - down) / 2e-5:.6f}, the gradients say {said:.6f}")
assert abs((up - down) / 2e-5 - said) < 1e-6 * abs(said)

# %% [markdown]
# **Recap.** An adapter is two small products with a GELU between them, and a way around. Its
# backward has one more summand, which is the way around.
#
# ## LoRA: the gradient of W is never formed
#
# With $x$ $(N, in)$ and $u = xA$ $(N, r)$, a layer with [LoRA](glossary.md#lora) computes
#
# $$out = x W + b + s \, u B, \qquad s = \alpha / r$$
#
# $\alpha$ and $r$ are chosen once, so $s$ is a constant.
#
# ### Exercise 16.4: `lora`
#
# *5 minutes · difficulty 1 of 5*
#
# Compute `out` $(N, out)$ and form no array of the shape $(in, out)$. (`b` may be any bias
# $(out)$.)


# %%
def lora(x, W, b, A, B, s):
    u = ...  # (N, r)
    out = ...  # (N, out)
    return out


grade(lora)

# %% [markdown]
# <details><summary>Hint 1</summary>
#
# Multiply `x` by `A` first. `A @ B` has the shape $(in, out)$, and you do not need it.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# Python multiplies from left to right: in `s * u @ B` and in `s * (u @ B)` all arrays are narrow.
#
# </details>


# %% jupyter={"source_hidden": true}
def lora(x, W, b, A, B, s):
    u = x @ A  # (N, r)
    out = x @ W + b + s * (u @ B)  # (N, out)
    return out


# %% [markdown]
# After the training, an array of $(in, out)$ does no harm: $s A B$ can be added to $W$
# once and for all.
#
# ### Exercise 16.5: `merged_weight`
#
# *2 minutes · difficulty 1 of 5*
#
# Return the one weight $(in, out)$ that does what $W$, $A$, $B$ and $s$ do together.


# %%
def merged_weight(W, A, B, s):
    return ...  # (in, out)


grade(merged_weight)

# %% [markdown]
# <details><summary>Hint 1</summary>
#
# In $x W + s \, x A B$, take $x$ out of both terms.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# $x W + s \, x A B = x \, (W + s \, A B)$.
#
# </details>


# %% jupyter={"source_hidden": true}
def merged_weight(W, A, B, s):
    return W + s * (A @ B)


# %% [markdown]
# Full fine-tuning needs $dW = x^\top dout$ $(in, out)$, with $N \cdot in \cdot out$ multiply-adds.
# LoRA's gradients follow from it by the chain rule: $dA = s \; dW B^\top$ and $dB = s A^\top dW$.
# But you can multiply in another order, so that $dW$ never exists.
#
# ### Exercise 16.6: `lora_backward`
#
# *12 minutes · difficulty 3 of 5*
#
# The shapes: `dout` $(N, out)$, `x` $(N, in)$, `W` $(in, out)$, `A` $(in, r)$, `B` $(r, out)$, and
# a number `s`. Return `dx`, `dA` and `dB`, and form no array of the shape $(in, out)$.


# %%
def lora_backward(dout, x, W, A, B, s):
    du = ...  # (N, r)
    dA = ...  # (in, r)
    dB = ...  # (r, out)
    dx = ...  # (N, in)
    return dx, dA, dB


grade(lora_backward)

# %% [markdown]
# <details><summary>Hint 1</summary>
#
# $du$ is the gradient of $u = xA$, and $u$ enters `out` as $s \, u B$. Put the $s$ into $du$, and
# use $du$ twice.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# In $dA = s \, x^\top dout \, B^\top$ begin at the right: $dout \, B^\top$ is $(N, r)$. In
# $dB = s \, A^\top x^\top dout$ begin at the left.
#
# </details>
#
# <details><summary>Hint 3</summary>
#
# $x$ reaches `out` in two ways: through $W$, and through $A$ and $B$.
#
# </details>


# %% jupyter={"source_hidden": true}
def lora_backward(dout, x, W, A, B, s):
    du = s * (dout @ B.T)  # (N, r)
    dA = x.T @ du  # (in, r)
    dB = s * ((x @ A).T @ dout)  # (r, out)
    dx = dout @ W.T + du @ A.T  # (N, in)
    return dx, dA, dB


# %% [markdown]
# Now check it on the model. We merge a LoRA whose $B$ is no longer 0 into the weights. Full
# fine-tuning gives $dW$ of the merged model. The package's LoRA has to give the gradients that
# follow from it, and it computes them without $dW$.
#
# **Predict.** How many multiply-adds do $du$, $dA$ and $dB$ take together, and how many times as
# many does $dW$ take, for $in = C = 160$, $out = 3C$ and $r = 8$? And what is $dA$ at the start,
# while $B$ is 0?

# %%
rng = np.random.default_rng(0)
fresh = LoRA.start(model, rank=r)
for key, a in methods["LoRA"].parameters.items():
    if key.endswith("lora_B"):
        a += rng.normal(0, 0.05, a.shape)


def gradients(method, ops="numpy"):
    """The gradient of each parameter, by name."""
    _, grads = loss_and_grad(model, method, batch, ops=ops)
    return {"kv": grads} if isinstance(method, Prefix) else grads


lora_method = methods["LoRA"]
layer = "h.1.attn.c_attn"
A, B = lora_method.parameters[f"{layer}.lora_A"], lora_method.parameters[f"{layer}.lora_B"]
s = lora_method.scale
merged = lora_method.merged(model)  # an ordinary GPT-2
assert np.array_equal(
    merged.weights[f"{layer}.weight"], merged_weight(model.weights[f"{layer}.weight"], A, B, s)
)
_, dweights = loss_and_grad(merged, FineTuning.start(merged), batch)
dW = dweights[f"{layer}.weight"]  # (C, 3C)
by_lora = gradients(lora_method)
assert np.allclose(by_lora[f"{layer}.lora_A"], s * dW @ B.T, rtol=1e-8, atol=1e-12)
assert np.allclose(by_lora[f"{layer}.lora_B"], s * A.T @ dW, rtol=1e-8, atol=1e-12)

n_in, n_out, N = C, 3 * C, len(batch.tokens)
by_dW = N * n_in * n_out
by_rank = N * n_out * r + N * n_in * r + N * r * n_out  # du, dA, dB
print(f"{by_dW:,} multiply-adds for dW, {by_rank:,} for du, dA and dB: 1 in {by_dW / by_rank:.1f}")
at_start = gradients(fresh)
largest = {k: np.abs(at_start[f"{layer}.lora_{k}"]).max() for k in "AB"}
print("at the start, largest entry of dA", largest["A"], "and of dB", largest["B"].round(5))
assert largest["A"] == 0 < largest["B"]
assert 8 < by_dW / by_rank < 9

# %% [markdown]
# **Answer.** Together $N r \, (2 \cdot out + in)$, about one in nine of the multiply-adds of $dW$.
# At the start $B = 0$, so $du = s \; dout \, B^\top$ is 0, and $dA$ with it. Only $B$ moves in the
# first step.

# %% [markdown]
# The merged model has no extra layer and no extra slot, so it takes as many operations as its base.
# The LoRA can also be taken out of it again, up to rounding. An adapter cannot be merged: there is
# a GELU inside.

# %%
assert abs(loss(merged, batch) - loss(model, batch, lora_method)) < 1e-12
apart = lora_method.unmerged(merged)
error = max(np.abs(apart.weights[n] - a).max() for n, a in model.weights.items())
print(f"merged and taken apart again: off by {error:.1e}")
assert error < 1e-14

# %% [markdown]
# All five methods give their gradient in the same way. Is it right? As in lesson 7, we move all
# parameters a little in a random direction. The slope of the loss has to be the sum of the products
# of the gradient and the direction.


# %%
def check_gradient(method, ops="numpy", eps=1e-5):
    direction = {key: rng.normal(size=a.shape) for key, a in method.parameters.items()}
    said = sum((direction[key] * d).sum() for key, d in gradients(method, ops).items())

    def move(step):  # by so much along the direction
        for key, a in method.parameters.items():
            a += step * direction[key]
        return method

    up, down = loss(model, batch, move(eps)), loss(model, batch, move(-2 * eps))
    move(eps)  # back to where it was
    slope = (up - down) / (2 * eps)
    error = abs(said - slope) / abs(slope)
    assert error < 1e-5, f"the loss rises by {slope:.6g} along the direction, not by {said:.6g}"


for method in methods.values():
    check_gradient(method)
print("the gradient is the slope of the loss, for all five")

# %% [markdown]
# **Recap.** LoRA multiplies in the order that keeps every array narrow: $(N, r)$, never
# $(in, out)$. After training it can be merged into $W$, and an adapter cannot.
#
# ## What each one can change in attention
#
# Lesson 10 found a law: in one layer, a prefix cannot change the *relative* attention among the
# tokens. These are the tokens' columns of the pattern, divided by their sum. We now ask the same of
# the others. Each method may act in layer 1 alone: a prefix there; LoRA or full fine-tuning on that
# layer's `c_attn`, which makes queries, keys and values; an adapter behind its attention. Only a
# prompt cannot be confined to a layer. It stands in front of the text, and all layers see it.
#
# (`applied` says how a method computes: by a model, a prefix and the operations. `forward` keeps
# each layer's `q`, `k`, `v` and `pattern`. A prompt takes the positions 0 to $P-1$, so we compare
# it with a model whose tokens begin at $P$, too.)
#
# **Predict.** In which layer does the relative attention change first, for each of the five?

# %%
from minprefix.gpt2 import embedding, forward
from minprefix.model import prepare

text = Batch.pack(ids[:1])  # one record with its description


def seen(method):
    """For each layer the queries, keys and values of the tokens, and the relative attention."""
    adapted, prefix, ops = model, method, reference
    if not isinstance(method, Prefix):
        adapted, prefix, ops = method.applied(model, reference)
    stream = prepare(adapted, text, prefix)
    x = embedding(stream, adapted.weights, ops)
    _, blocks = forward(x, stream, adapted.weights, model.config, ops)
    found = []
    for cache in (block.attn.attention for block in blocks):
        tokens = cache.pattern[0][:, :, -len(cache.q) :]  # (NH, T, T): without the slots
        relative = tokens / tokens.sum(axis=2, keepdims=True)
        found.append({"q": cache.q, "k": cache.k, "v": cache.v, "relative": relative})
    return found


def change(method):
    """What it changes: for each layer and name the largest difference."""
    start = getattr(method, "position_offset", 0)
    alone = Prefix.zero(model.config, 0, position_offset=start, dtype="float64")
    both = zip(seen(method), seen(alone), strict=True)
    return [{n: np.abs(a[n] - b[n]).max() for n in a} for a, b in both]


def only(method, layer):
    """The method with the parameters of this layer, or of this part of a layer."""
    of_layer = {k: a for k, a in method.parameters.items() if k.startswith(layer)}
    return type(method)(of_layer)


tuned = FineTuning({"h.1.attn.c_attn.weight": model.weights["h.1.attn.c_attn.weight"].copy()})
tuned.parameters["h.1.attn.c_attn.weight"] += rng.normal(0, 0.05, (C, 3 * C))
in_layer_1 = {
    "prefix": Prefix.normal(model.config, P, 1.0, layers=[1], position_offset=0, dtype="float64"),
    "prompt": methods["prompt"],
    "LoRA": only(methods["LoRA"], "h.1."),
    "adapters": only(Adapters.start(model, bottleneck=m, std=0.5), "h.1.attn."),
    "full": tuned,
}
changes = {name: change(method) for name, method in in_layer_1.items()}
print("in layer 1      q        k        v   relative")
for name, of_layer in changes.items():
    print(f"{name:9s}", *(f"{of_layer[1][n]:8.1e}" for n in ("q", "k", "v", "relative")))

# %%
import matplotlib.pyplot as plt

relative = np.array([[layer["relative"] for layer in of] for of in changes.values()])  # (5, L)
fig, ax = plt.subplots(figsize=(5, 3.4), layout="constrained")
ax.imshow(relative > 1e-12, cmap="Greys", vmin=0, vmax=2, aspect="auto")
for (j, i), a in np.ndenumerate(relative):
    # the squares are painted white or grey, whatever the page's colours are
    ax.text(i, j, f"{a:.2f}" if a > 1e-12 else "0", ha="center", va="center", color="black")
title = "How far the relative attention\namong tokens moves"
ax.set(xlabel="layer", ylabel="method", title=title)
ax.set_xticks(range(L))
ax.set_yticks(range(len(changes)), [f"{n} in layer 1" if n != "prompt" else n for n in changes])

lowest = {name: int(np.argmax(row > 1e-12)) for name, row in zip(changes, relative, strict=True)}
print("the lowest layer in which it moves:", lowest)
assert lowest == {"prefix": 2, "prompt": 1, "LoRA": 1, "adapters": 2, "full": 1}
for name in ("prefix", "adapters"):
    assert max(changes[name][1].values()) < 1e-12
plt.show()

# %% [markdown]
# **Answer.** LoRA and full fine-tuning move it in layer 1 itself. The prefix and the adapter of
# layer 1 leave that layer's queries, keys, values and relative attention as they are: the
# differences are 0 or rounding. They move it first in layer 2. The prompt has moved it in layer 1,
# because it has slots in layer 0, too; it has not moved it in layer 0.

# %% [markdown]
# The prefix, the prompt's slots in layer 0 and the adapter change what their layer *adds to the
# stream*. The layers above read another stream, and there queries and keys change as well.
#
# **Recap.** Of the five, only LoRA and full fine-tuning move the relative attention in their own
# layer: they change $W_q$ and $W_k$. The others move it in the layers above.
#
# ## Which method can learn to look elsewhere
#
# Does that matter for what can be learned? Lesson 10 had a model of one layer, and a task that no
# prefix in it can learn. Here it is again, this time as a GPT-2, so that all five can try. A text
# is two different digits and a question mark, `2 0 ?`; the task `first` asks for the first digit,
# the task `smaller` for the smaller one. The weights are written by hand: an embedding has a 1 for
# *what* the token is and a 1 for *where* it stands; the keys and values read only the first of
# these; the MLP is 0. ($P = 6$ slots shift the tokens by two texts' length; positions repeat after
# three, so nothing changes for them.)
#
# The texts `2 0 ?` and `0 2 ?` then give the question mark the same keys and values, in another
# order. A method that leaves queries, keys and values alone gives both texts one answer, so its
# loss for `first` stays at $\ln\, 2$ or above. That holds for a prefix, and for everything that
# comes after attention.
#
# **Predict.** LoRA gets rank 1 on `c_attn`, 32 numbers; an adapter of width 4 behind attention and
# MLP has 152. Which methods get below $\ln\, 2 = 0.693$, and which do not?

# %%
from minprefix.gpt2 import Config
from minprefix.optim import AdamW

DIGITS, T = 4, 3
ASK, WHERE = DIGITS, DIGITS + 1  # the question mark's token; where positions begin in a row
small = Config(1, 1, WHERE + T, vocab_size=DIGITS + 1, n_positions=3 * T, n_inner=4)
width = small.n_embd  # 8
w = {name: np.zeros(shape) for name, shape in small.shapes().items()}
for norm in ("h.0.ln_1", "h.0.ln_2", "ln_f"):
    w[f"{norm}.weight"] += 3 if norm == "ln_f" else 1  # 3: answers that are clear
w["wte.weight"] = np.eye(width)[:WHERE]
w["wpe.weight"] = np.eye(width)[WHERE + np.arange(3 * T) % T]
q_k_v = w["h.0.attn.c_attn.weight"].reshape(width, 3, width)  # a view of it
q_k_v[:, 0] = 2 * np.eye(width)  # queries: all of the token
q_k_v[:DIGITS, 1] = np.random.default_rng(1).normal(
    0, 0.2, (DIGITS, width)
)  # keys: which digit, not where
q_k_v[:DIGITS, 2, :DIGITS] = np.eye(DIGITS)  # values: the digit
w["h.0.attn.c_proj.weight"] = np.eye(width)
digits = GPT2(small, w, name="digits")

two = [(a, b) for a in range(DIGITS) for b in range(DIGITS) if a != b]  # 12 texts
tasks = {
    name: Batch.pack([[a, b, ASK, right(a, b)] for a, b in two], loss_from=[T] * len(two))
    for name, right in (("smaller", min), ("first", lambda a, b: a))
}
starts = {
    "prefix": lambda: Prefix.normal(small, 6, std=0.5, dtype="float64"),
    "prompt": lambda: PromptTuning.normal(digits, 6, std=0.5),
    "LoRA": lambda: LoRA.start(digits, rank=1),
    "adapters": lambda: Adapters.start(digits, bottleneck=4, std=0.3),
    "full": lambda: FineTuning.start(digits),
}


def train(model, method, batch, steps=60, lr=0.1, ops="reference", factor=1.0):
    """The loss of each step; the method's parameters are trained in place. Each gradient is
    multiplied by `factor`."""
    adam, losses = AdamW(), []
    for step in range(steps):
        value, grads = loss_and_grad(model, method, batch, ops=ops)
        losses.append(value)
        grads = {"kv": grads} if isinstance(method, Prefix) else grads
        grads = {name: factor * a for name, a in grads.items()}
        adam.step(method.parameters, grads, lr * (1 - step / steps))
    return losses


curves = {}
for name, start in starts.items():
    for task in tasks:
        method = start()
        curves[name, task] = train(digits, method, tasks[task])
    ends = "  ".join(f"{task} {curves[name, task][-1]:.3f}" for task in tasks)
    print(f"{name:9s} {method.n_parameters:4d} numbers   {ends}")

fig, axes = plt.subplots(2, 1, figsize=(5, 6), sharex=True, layout="constrained")
styles = {"prefix": "-", "prompt": ":", "LoRA": "--", "adapters": "-.", "full": "-"}
for ax, task in zip(axes, tasks, strict=True):
    for name, style in styles.items():
        marker = "o" if name == "full" else None
        ax.plot(curves[name, task], style, marker=marker, markevery=6, label=name)
    ax.axhline(np.log(2), color="grey", linewidth=1)
    ax.set(title=f"the {task} digit", ylabel="loss, nats", ylim=(0, 3))
axes[1].set_xlabel("step")
axes[1].text(59, np.log(2) - 0.08, "ln 2", ha="right", va="top", color="grey")
axes[0].legend()

for name in ("LoRA", "full"):
    assert max(curves[name, task][-1] for task in tasks) < 0.1
for name in ("prefix", "prompt", "adapters"):
    assert min(curves[name, "first"]) > np.log(2) - 1e-9
assert curves["adapters", "smaller"][-1] < 0.3
assert curves["prompt", "smaller"][-1] > max(
    curves[name, "smaller"][-1] for name in styles if name != "prompt"
)
plt.show()

# %% [markdown]
# **Answer.** LoRA and full fine-tuning learn `first`. The adapter, the prefix and the prompt stay
# at $\ln\, 2$ or above, as the law says. The adapter does learn `smaller`, which needs no other
# look at the tokens.

# %% [markdown]
# The count of trained numbers does not decide here. A method learns `first` if it reaches $W_k$,
# and full fine-tuning and LoRA do. The adapter sees one row at a time, after attention, and the row
# of the question mark is the same for `2 0 ?` and `0 2 ?`. The prompt ends with the highest loss
# for `smaller`, too. The next section explains why it can do less than a prefix.
#
# **Recap.** Ask of a method which matrices it reaches before you ask how many numbers it trains.
#
# ## A prompt is a prefix that the model makes
#
# The vectors of a prompt stand before the text, and see only each other. So what they leave in each
# layer, keys and values, is the same for every text: it *is* a prefix. We can ask for it
# (`prompt.prefix`), and hand it to the model in the prompt's place.

# %%
from minprefix.ops import numpy_ops

prompt = methods["prompt"]
made, blocks = prompt.prefix(model, numpy_ops)  # the prefix, and what its backward needs
print(made)
assert made.kv.size == 2 * L * prompt.n_parameters
by_prompt, by_prefix = loss(model, batch, prompt), loss(model, batch, made)
assert abs(by_prompt - by_prefix) < 1e-12

# %% [markdown]
# $C$ numbers for each slot go in, $2 L C$ come out. A prefix chooses these $2LC$ freely. A prompt
# can only have those that the frozen model makes of $C$; in the small model above, values that the
# frozen $W_v$ can make. So a prompt can express less than a prefix of the same length. (On E2E, Li
# & Liang measured 48 to 62 BLEU with a prompt, "embedding only", and 70 with a prefix: 2021,
# section 7.2.)
#
# The gradient takes the same way back. The loss gives $dkv$ $(L, 2, NH, P, hs)$, as in lesson 5.
# Then it goes through the frozen model once more, with the $P$ rows of the prompt only:
#
# $$dkv \;\rightarrow\; dprompt \quad (P, C)$$
#
# There is no loss at the top of these rows, so nothing comes from above. But in each layer the $dk$
# and $dv$ of the rows get a second part: $dkv$ of that layer, which the *texts* sent.
#
# ### Exercise 16.7: `prompt_backward`
#
# *30 minutes · difficulty 5 of 5*
#
# From `dkv` $(L, 2, NH, P, hs)$ compute `dprompt` $(P, C)$. `w` holds the weights by name
# (`h.0.attn.c_attn.weight`), and `blocks` the caches of each layer in the order of lesson 7:
# `ln_1, attention, ln_2, gelu`. Walk down the layers as you did there. In each layer
# `ops.attention_backward` gives `dq`, `dk` and `dv` of the prompt's rows, $(P, NH, hs)$ each. What
# has to be added to them?


# %%
def prompt_backward(dkv, w, blocks, ops):
    L, _, NH, P, hs = dkv.shape
    dx = ...  # (P, C)
    for i in reversed(range(L)):
        ln_1, attention, ln_2, gelu = blocks[i]
        # the MLP, and the way around it
        dx = ...  # (P, C)
        # the attention, and the way around it
        dx = ...  # (P, C)
    return dx


grade(prompt_backward)

# %% [markdown]
# <details><summary>Hint 1</summary>
#
# The start is `np.zeros((P, NH * hs))`. The MLP's part is the one of lesson 7: `c_proj`, GELU,
# `c_fc`, `ln_2`, each by its backward, and the sum is added to `dx`.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# `dkv[i, 0]` is what the texts sent to the keys of layer `i`, of the shape $(NH, P, hs)$, and
# `grads.dk` is $(P, NH, hs)$.
#
# </details>
#
# <details><summary>Hint 3</summary>
#
# `np.stack([dq, dk, dv], axis=1).reshape(P, -1)` is the gradient of what `c_attn` gave, $(P, 3C)$.
#
# </details>


# %% jupyter={"source_hidden": true}
def prompt_backward(dkv, w, blocks, ops):
    L, _, NH, P, hs = dkv.shape
    dx = np.zeros((P, NH * hs))  # no loss above
    for i in reversed(range(L)):
        ln_1, attention, ln_2, gelu = blocks[i]
        weight = {n.removeprefix(f"h.{i}."): a for n, a in w.items() if n.startswith(f"h.{i}.")}
        dg = ops.linear_backward(dx, weight["mlp.c_proj.weight"])  # P rows of F numbers
        dh = ops.gelu_backward(dg, gelu)
        dm = ops.linear_backward(dh, weight["mlp.c_fc.weight"])  # P rows of C numbers
        dx = dx + ops.layernorm_backward(dm, ln_2)
        dz = ops.linear_backward(dx, weight["attn.c_proj.weight"])
        grads = ops.attention_backward(dz.reshape(P, NH, hs), attention)
        dk = grads.dk + dkv[i, 0].swapaxes(0, 1)  # what the texts sent to the keys
        dv = grads.dv + dkv[i, 1].swapaxes(0, 1)  # and to the values
        dqkv = np.stack([grads.dq, dk, dv], axis=1).reshape(P, -1)  # P rows of 3C numbers
        da = ops.linear_backward(dqkv, weight["attn.c_attn.weight"])
        dx = dx + ops.layernorm_backward(da, ln_1)
    return dx


# %% [markdown]
# Beside yours: except for the two lines of `dk` and `dv`, this is lesson 7's walk through the
# frozen layers. `prompt.prefix_backward` of the package does the same.
#
# **Predict.** What would a backward give that begins at the top of the prompt's rows with 0, and
# forgets to add $dkv$?

# %%
_, dkv = loss_and_grad(model, made, batch)  # (L, 2, NH, P, hs)
_, blocks = prompt.prefix(model, reference)
caches = [(b.attn.ln_1, b.attn.attention, b.mlp.ln_2, b.mlp.gelu) for b in blocks]
dprompt = prompt_backward(dkv, model.weights, caches, reference)  # (P, C)
_, whole = loss_and_grad(model, prompt, batch)
assert np.allclose(dprompt, whole["prompt"], rtol=1e-10)

without = prompt_backward(np.zeros_like(dkv), model.weights, caches, reference)
print("largest entry with dkv", np.abs(dprompt).max().round(4), "and without it", without.max())
assert not without.any()

# %% [markdown]
# **Answer.** Zero. The gradient of a prompt comes only through the keys and values of its rows.

# %% [markdown]
# **Recap.** A prompt is a prefix that the frozen model computes, with $C$ free numbers for each
# slot instead of $2LC$. Its gradient is the prefix's gradient, sent back through the model once
# more.
#
# ## What else to ask before you choose
#
# *What is stored for each task?* The trained numbers, and no others: 4 bytes each in float32.
#
# *What does it take from the text?* A prefix and a prompt take $P$ positions (a prefix may do
# without). Every token attends to $P$ more slots. Adapters add two small products a sublayer. A
# merged LoRA and a fine-tuned model add nothing.
#
# *Can requests for different tasks share a batch?* A prefix is an input of one sequence, so each
# sequence may have its own ([lesson 11](11_many_tasks.py)). So may a prompt, since it is a prefix.
# LoRA and adapters act on the rows of all sequences alike; to serve several of them in one batch,
# each layer has to sort the rows by their task. A fine-tuned model is another model.

# %%
three = [methods["prefix"], methods["prompt"], None]  # the same record with each of these
starts_at = len(prompts[0])
one_by_one = sum(
    loss(model, Batch.pack(ids[:1], loss_from=[starts_at]), method, reduction="sum")
    for method in three
)
mixed = Batch.pack(ids[:1] * 3, loss_from=[starts_at] * 3, prefix=[0, 1, 2])
together = loss(model, mixed, [methods["prefix"], made, None], reduction="sum")
print(f"prefix, prompt and nothing in one batch: {together:.6f}; one by one {one_by_one:.6f}")
assert abs(together - one_by_one) < 1e-9

# %% [markdown]
# **Recap.** Besides what a method can learn, ask what it stores, what it costs at each token, and
# whether different tasks can share a batch.
#
# ## Break it yourself
#
# LoRA's $dA$ and $dB$ are products of the kind $x^\top dout$, for which the package calls
# `linear_backward_params`. In the bug `dweight-averaged-over-rows` of the
# [zoo](glossary.md#zoo) that product is divided by the number of rows, as if it were a mean.
# A second mistake, one that is easily made, forgets $s = \alpha / r$ in the backward. For $s = 2$,
# both gradients are then half of what they should be.
#
# **Predict.** We train the LoRA of the small model with each of the wrong gradients, by AdamW. How
# much worse does it learn?

# %%
from minprefix.lessons import caught, planted

broken = planted("dweight-averaged-over-rows")
print(broken)

sound = curves["LoRA", "first"]
averaged = train(digits, starts["LoRA"](), tasks["first"], ops=broken.reference)
halved = train(digits, starts["LoRA"](), tasks["first"], factor=0.5)
print(f"last loss: sound {sound[-1]:.4f}, averaged {averaged[-1]:.4f}, halved {halved[-1]:.4f}")
assert np.allclose(sound, averaged, rtol=0.01)
assert np.allclose(sound, halved, rtol=0.01)

# %% [markdown]
# **Answer.** No worse: the last losses agree to 1%. AdamW divides each gradient by its own running
# size, so a factor that is always the same cancels.

# %% [markdown]
# A falling loss is no proof, and not even an unchanged curve is one. The slope is a proof: it shows
# the factor at once.

# %%
with caught() as error:  # take this line away, and the lesson stops here
    check_gradient(lora_method, ops=broken.reference)
print(error)

# %% [markdown]
# Plain gradient descent has no such division. There the factor would be a factor of the learning
# rate. So check the gradient, and do not wait for a curve to tell you.
#
# ## Remember
#
# - A prefix and a prompt give the model something to look at. LoRA and full fine-tuning change its
#   weights. An adapter adds a layer of its own.
# - Which matrices a method reaches decides what it can learn, more than how many numbers it trains.
# - Of the five, only those that change $W_q$ and $W_k$ move the relative attention in their own
#   layer.
# - LoRA's gradients never form $dW$: multiply so that every array stays narrow.
# - LoRA starts at the model itself, and can be merged. An adapter starts near it, and cannot.
# - A prompt is a prefix with fewer free numbers, and the frozen model makes it.
# - AdamW hides a constant factor in a gradient. A slope shows it.
#
# ## Exercises
#
# **1.** Fill in the table. `None` is a blank. `moves` is the lowest layer whose relative attention
# the method of layer 1 moves (a prompt: of all layers); `own` is whether each sequence of a batch
# can have its own, without sorting rows; `merges` is whether it can become a GPT-2 without anything
# added. Run the cell as often as you like.

# %%
table = {
    # method    moves  own   merges
    "prefix": (None, None, None),
    "prompt": (None, None, None),
    "LoRA": (None, None, None),
    "adapters": (None, None, None),
    "full": (None, None, None),
}


def check_table(table):
    """A word on each cell that is filled in, and how many are blank."""
    own, merges = {"prefix", "prompt"}, {"LoRA", "full"}
    blank = 0
    for name, row in table.items():
        right = (lowest[name], name in own, name in merges)
        for column, said, wanted in zip(("moves", "own", "merges"), row, right, strict=True):
            blank += said is None
            assert said is None or (type(said), said) == (type(wanted), wanted), (
                f"{name}, {column}: {said} is not right"
            )
    print("the table is right" if not blank else f"{blank} blanks are left")
    return blank


check_table(table)

# %% [markdown]
# <details><summary>Solution 1</summary>
#
# ```python
# table = {
#     "prefix": (2, True, False),
#     "prompt": (1, True, False),
#     "LoRA": (1, False, True),
#     "adapters": (2, False, False),
#     "full": (1, False, True),
# }
# assert check_table(table) == 0
# ```
#
# </details>
#
# **2.** BitFit (Ben Zaken et al., 2022) trains the biases alone; `BitFit.start(digits)` has 68 of
# them, those of `c_attn` included, so it does change queries and keys. Can it learn `first` in the
# small model? Argue first, then run it.
#
# <details><summary>Solution 2</summary>
#
# No. A bias adds the same vector to the key of every token, and the same to every query. The score
# of a digit then depends on which digit it is, on the query and on the biases, and still not on
# where the digit stands: the two orders keep one answer. It does learn `smaller`.
#
# ```python
# from minprefix.methods import BitFit
#
# for task in tasks:
#     losses = train(digits, BitFit.start(digits), tasks[task])
#     print(task, round(losses[-1], 3))
#     assert (min(losses) < np.log(2) - 1e-9) == (task == "smaller")
# ```
#
# </details>
#
# The package runs what you have written by hand:
# [reference](../minprefix/ops/reference.py), [gpt2](../minprefix/gpt2.py),
# [model](../minprefix/model.py), [LoRA](../minprefix/methods/lora.py). `minprefix step` walks
# through it, line by line.
#
# Next: [Decoding and scores](17_decoding_and_scores.py).
