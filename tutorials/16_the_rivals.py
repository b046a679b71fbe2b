# %% [markdown]
# # The rivals
#
# - **You will be able to** say of prompt tuning, LoRA, adapters and full fine-tuning what each one
#   trains and what it can change in attention, write the backward of LoRA and of a prompt by hand,
#   and choose one of them for a reason.
# - **You need** λ and the relative attention: [lesson 10](10_what_a_prefix_can_do.py); the two
#   halves of a backward: [lesson 7](07_half_a_backward.py).
# - **Time** 60 minutes; it runs in 4 seconds.
# - **Difficulty** 2 of 3.
#
# ## Five ways to adapt one model
#
# "And how is that different from LoRA?" Here are prefix-tuning and four of its rivals, on the same
# model and the same batch:
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
# change its weights. An adapter adds a layer of its own: with $h$ $(N, C)$ what the attention or
# the MLP is about to add to the stream, it puts $h + gelu(h D) \, U$ in its place, where $D$ is
# $(C, m)$ and $U$ $(m, C)$. (We leave out its biases on paper; the code has them.)
#
# **Predict.** The model has $L = 4$ layers, $C = 160$ and 1,442,240 weights. We take $P = 5$ slots
# or vectors, LoRA of rank $r = 8$ on `attn.c_attn`, whose $W$ is $(C, 3C)$, and adapters of width
# $m = 8$ behind attention and MLP. How many numbers does each method train?

# %%
import numpy as np

from minprefix import GPT2, Batch, Prefix, loss, loss_and_grad
from minprefix.data.world import table_to_text
from minprefix.methods import Adapters, FineTuning, LoRA, PromptTuning

model = GPT2.load("tiny", dtype="float64")
L, C = model.config.n_layer, model.config.n_embd
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
on_paper = {
    "prefix": L * 2 * P * C,  # keys and values
    "prompt": P * C,
    "LoRA": L * (C * r + r * 3 * C),  # A and B
    "adapters": L * 2 * (C * m + m + m * C + C),  # D and U, with their biases
    "full": model.n_parameters,
}
for name, method in methods.items():
    n = method.n_parameters
    print(f"{name:9s} {n:9,d} numbers, {n / model.n_parameters:7.2%} of the model", end="")
    print(f"; loss {loss(model, batch, method):.3f}")
    assert n == on_paper[name]
print(f"the model alone: loss {loss(model, batch):.3f}")

# %% [markdown]
# LoRA starts exactly at the model, since its $B$ starts at 0, and so does full fine-tuning. An
# adapter starts near it, with small $D$ and $U$. A prefix and a prompt cannot start there: any slot
# draws some attention.
#
# All five give their gradient in the same way. Is it right? As in lesson 7, we move all parameters
# a little in a random direction $u$ and compare the slope of the loss with $\sum dparameter \odot
# u$. LoRA's $B$ must not be 0 for that: while $B = 0$ the gradient of $A$ is 0, too. (Why? See
# below.)

# %%
rng = np.random.default_rng(0)
for key, a in methods["LoRA"].parameters.items():
    if key.endswith("lora_B"):
        a += rng.normal(0, 0.05, a.shape)


def gradients(method, ops="numpy"):
    """The gradient of each parameter, by name."""
    _, grads = loss_and_grad(model, method, batch, ops=ops)
    return {"kv": grads} if isinstance(method, Prefix) else grads


def check_gradient(method, ops="numpy", eps=1e-5):
    u = {key: rng.normal(size=a.shape) for key, a in method.parameters.items()}
    said = sum((u[key] * d).sum() for key, d in gradients(method, ops).items())

    def moved(step):  # by so much along u
        for key, a in method.parameters.items():
            a += step * u[key]
        return method

    up, down = loss(model, batch, moved(eps)), loss(model, batch, moved(-2 * eps))
    moved(eps)  # back to where it was
    slope = (up - down) / (2 * eps)
    error = abs(said - slope) / abs(slope)
    assert error < 1e-5, f"the loss rises by {slope:.6g} along u, not by {said:.6g}"


for method in methods.values():
    check_gradient(method)
print("the gradient is the slope of the loss, for all five")

# %% [markdown]
# ## What each one can change in attention
#
# Lesson 10 found a law: in one layer, a prefix cannot change the *relative* attention among the
# tokens, their columns of the pattern divided by their sum. We now ask the same of the others. Each
# method may act in layer 1 alone: a prefix there; LoRA or full fine-tuning on that layer's
# `c_attn`, which makes queries, keys and values; an adapter behind its attention. Only a prompt
# cannot be confined to a layer. It stands in front of the text, and all layers see it.
#
# (`applied` says how a method computes: by a model, a prefix and the operations. `forward` keeps
# each layer's `q`, `k`, `v` and `pattern`. A prompt takes the positions 0 to $P-1$, so we compare
# it with a model whose tokens begin at $P$, too.)
#
# **Predict.** In which layers does the relative attention change, for each of the five?

# %%
from minprefix.gpt2 import embedding, forward
from minprefix.model import prepare
from minprefix.ops import reference

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

# %% [markdown]
# Read the rows one by one. The prefix and the adapter in layer 1 leave its queries, keys, values
# and its relative attention as they are: the differences are 0 or rounding. LoRA and full
# fine-tuning change all of them. The prompt has changed them in layer 1 only because it has slots
# in layer 0, too, as the picture shows.

# %%
import matplotlib.pyplot as plt

moved = np.array([[layer["relative"] for layer in of] for of in changes.values()])  # (5, L)
fig, ax = plt.subplots(figsize=(6.5, 3.4), layout="constrained")
ax.imshow(moved > 1e-12, cmap="Greys", vmin=0, vmax=2, aspect="auto")
for (j, i), a in np.ndenumerate(moved):
    ax.text(i, j, f"{a:.2f}" if a > 1e-12 else "0", ha="center", va="center")
ax.set(xlabel="layer", title="How far the relative attention among tokens moves")
ax.set_xticks(range(L))
ax.set_yticks(range(len(changes)), [f"{n} in layer 1" if n != "prompt" else n for n in changes])

first = {name: int(np.argmax(row > 1e-12)) for name, row in zip(changes, moved, strict=True)}
print("the first layer in which it moves:", first)
assert first == {"prefix": 2, "prompt": 1, "LoRA": 1, "adapters": 2, "full": 1}
for name in ("prefix", "adapters"):
    assert max(changes[name][1].values()) < 1e-12
plt.show()

# %% [markdown]
# In the layer itself, only LoRA and full fine-tuning move it. The prefix, the prompt's slots in
# layer 0 and the adapter change what the layer *adds to the stream*; the layers above then read
# another stream, and look elsewhere in the way in which they have learned to react.
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


def train(model, method, batch, steps=60, lr=0.1, ops="reference"):
    """The loss of each step; the method's parameters are trained in place."""
    adam, losses = AdamW(), []
    for step in range(steps):
        value, grads = loss_and_grad(model, method, batch, ops=ops)
        losses.append(value)
        grads = {"kv": grads} if isinstance(method, Prefix) else grads
        adam.step(method.parameters, grads, lr * (1 - step / steps))
    return losses


curves = {}
for name, start in starts.items():
    for task in tasks:
        method = start()
        curves[name, task] = train(digits, method, tasks[task])
    ends = "  ".join(f"{task} {curves[name, task][-1]:.3f}" for task in tasks)
    print(f"{name:9s} {method.n_parameters:4d} numbers   {ends}")

fig, axes = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True, layout="constrained")
styles = {"prefix": "k-", "prompt": "k:", "LoRA": "C0-", "adapters": "C1--", "full": "C0:"}
for ax, task in zip(axes, tasks, strict=True):
    for name, style in styles.items():
        ax.plot(curves[name, task], style, label=name)
    ax.axhline(np.log(2), color="grey", linewidth=1, linestyle="--")
    ax.set(title=f"the {task} digit", xlabel="step", ylim=(0, 3))
axes[0].set_ylabel("loss, nats")
axes[1].text(59, np.log(2) - 0.06, "ln 2", ha="right", va="top", color="grey")
axes[0].legend()

for name in ("LoRA", "full"):
    assert max(curves[name, task][-1] for task in tasks) < 0.1
for name in ("prefix", "prompt", "adapters"):
    assert min(curves[name, "first"]) > np.log(2) - 1e-9
assert curves["adapters", "smaller"][-1] < 0.3
plt.show()

# %% [markdown]
# As predicted by the law: a LoRA of 32 numbers learns `first`, an adapter of 152 cannot, nor can
# the prefix or the prompt. What decides is not how many numbers a method trains, but whether it
# reaches $W_k$.
#
# Full fine-tuning and LoRA do. The adapter sees one row at a time, after attention, and
# the row of the question mark is the same for `2 0 ?` and `0 2 ?`. It does learn `smaller`, which
# needs no other look at the tokens. The prompt is the weakest of all. Why?
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
# (`prompt.prefix_backward` does it; exercise 4 asks you to.)
#
# **Predict.** What would a backward give that begins at the top of the prompt's rows with 0, and
# forgets to add $dkv$?

# %%
_, dkv = loss_and_grad(model, made, batch)  # (L, 2, NH, P, hs)
dprompt = prompt.prefix_backward(dkv, model, blocks, numpy_ops)["prompt"]  # (P, C)
_, whole = loss_and_grad(model, prompt, batch)
assert np.allclose(dprompt, whole["prompt"], rtol=1e-10)

without = prompt.prefix_backward(np.zeros_like(dkv), model, blocks, numpy_ops)["prompt"]
print("largest entry with dkv", np.abs(dprompt).max().round(4), "and without it", without.max())
assert not without.any()

# %% [markdown]
# Zero. The gradient of a prompt comes only through the keys and values of its rows.
#
# ## LoRA: the gradient of W is never formed
#
# With $x$ $(N, in)$ and $u = xA$ $(N, r)$, a layer with LoRA computes
#
# $$out = x W + b + s \, u B, \qquad s = \alpha / r$$
#
# Full fine-tuning would need $dW = x^\top dout$ $(in, out)$. LoRA's gradients follow from it:
# $dA = s \; dW B^\top$ and $dB = s A^\top dW$. Multiply in another order, and $dW$ never exists:
#
# $$\begin{aligned} du &= s \; dout \; B^\top & (N, r) \\
# dA &= x^\top du & (in, r) \\
# dB &= s \; u^\top dout & (r, out) \\
# dx &= dout \; W^\top + du \; A^\top & (N, in) \end{aligned}$$
#
# $du$ is there once, and used twice. At the start $B = 0$, so $du = 0$: $A$ has no gradient in the
# first step, and only $B$ moves.
#
# **Predict.** With $N$ tokens, $dW$ takes $N \cdot in \cdot out$ multiply-adds. How many do $du$,
# $dA$ and $dB$ take together, and what is the ratio for $in = C$, $out = 3C$, $r = 8$?

# %%
lora = methods["LoRA"]
layer = "h.1.attn.c_attn"
A, B = lora.parameters[f"{layer}.lora_A"], lora.parameters[f"{layer}.lora_B"]
merged = lora.merged(model)  # W + s A B in the place of W: an ordinary GPT-2
_, dweights = loss_and_grad(merged, FineTuning.start(merged), batch)
dW = dweights[f"{layer}.weight"]  # (C, 3C)
low = gradients(lora)
assert np.allclose(low[f"{layer}.lora_A"], lora.scale * dW @ B.T, rtol=1e-8, atol=1e-12)
assert np.allclose(low[f"{layer}.lora_B"], lora.scale * A.T @ dW, rtol=1e-8, atol=1e-12)

n_in, n_out, N = C, 3 * C, len(batch.tokens)
by_dW = N * n_in * n_out
by_rank = N * n_out * r + N * n_in * r + N * r * n_out  # du, dA, dB
print(f"{by_dW:,} multiply-adds for dW, {by_rank:,} for du, dA and dB: 1 in {by_dW / by_rank:.0f}")
fresh = LoRA.start(model, rank=r)
at_start = gradients(fresh)
largest = {k: np.abs(at_start[f"{layer}.lora_{k}"]).max() for k in "AB"}
print("at the start, largest entry of dA", largest["A"], "and of dB", largest["B"].round(5))
assert largest["A"] == 0 < largest["B"]

# %% [markdown]
# After the training $A B$ can be added to $W$. The merged model has no extra layer and no extra
# slot, so it is as fast as its base. It also comes apart again, up to rounding. An adapter cannot
# be merged: there is a GELU inside.

# %%
assert abs(loss(merged, batch) - loss(model, batch, lora)) < 1e-12
apart = lora.unmerged(merged)
error = max(np.abs(apart.weights[n] - a).max() for n, a in model.weights.items())
print(f"merged and taken apart again: off by {error:.1e}")
assert error < 1e-14

# %% [markdown]
# ## What else to ask before you choose
#
# *What is stored for each task?* The trained numbers, and no others: 4 bytes each in float32.
#
# *What does it take from the text?* A prefix and a prompt take $P$ positions (a prefix may do
# without). Every token attends to $P$ more slots. Adapters add two small products a sublayer. A
# merged LoRA and a fine-tuned model cost nothing.
#
# *Can requests for different tasks share a batch?* A prefix is an input of one sequence, so each
# sequence may have its own ([lesson 11](11_many_tasks.py)). So may a prompt, since it is a prefix.
# LoRA and adapters act on the rows of all sequences alike; to serve several of them in one batch,
# each layer has to sort the rows by their task. A fine-tuned model is another model.

# %%
three = [methods["prefix"], methods["prompt"], None]  # the same record with each of these
starts_at = len(prompts[0])
alone = sum(
    loss(model, Batch.pack(ids[:1], loss_from=[starts_at]), method, reduction="sum")
    for method in three
)
mixed = Batch.pack(ids[:1] * 3, loss_from=[starts_at] * 3, prefix=[0, 1, 2])
together = loss(model, mixed, [methods["prefix"], made, None], reduction="sum")
print(f"prefix, prompt and nothing in one batch: {together:.6f}; one by one {alone:.6f}")
assert abs(together - alone) < 1e-9

# %% [markdown]
# ## Break it yourself
#
# LoRA's $dA$ and $dB$ are products of the kind $x^\top dout$, for which the package calls
# `linear_backward_params`. In the bug `dweight-averaged-over-rows` that product is divided by the
# number of rows: somebody thought of a mean.
#
# **Predict.** We train the LoRA of the small model with the broken gradient, by AdamW. How much
# worse does it learn?

# %%
from minprefix.lessons import caught, planted

broken = planted("dweight-averaged-over-rows")
print(broken)

sound = curves["LoRA", "first"]
averaged = train(digits, starts["LoRA"](), tasks["first"], ops=broken.reference)
print(f"last loss: sound {sound[-1]:.4f}, broken {averaged[-1]:.4f}")
assert np.allclose(sound, averaged, rtol=0.01)

# %% [markdown]
# Not at all. AdamW divides each gradient by its own running size, so a factor that is always the
# same cancels. The same is true of a forgotten or doubled $s = \alpha / r$ in LoRA's backward, one
# of the commonest mistakes. The curve is a weak witness once more; the slope is a strong one.

# %%
with caught() as error:  # take this line away, and the lesson stops here
    check_gradient(lora, ops=broken.reference)
print(error)

# %% [markdown]
# With plain gradient descent, with weight decay inside the gradient, or with clipping to a norm,
# the factor would matter. So check the gradient, and do not wait for a curve to tell you.
#
# ## Exercises
#
# **1.** Fill in the table. `None` is a blank. A number is a count; `moves` is the lowest layer
# whose relative attention the method of layer 1 moves (a prompt: of all layers); `own` is whether
# each sequence of a batch can have its own, without sorting rows; `merges` is whether it can become
# a GPT-2 without anything added. Run the cell as often as you like.

# %%
table = {
    # method       numbers  moves  own   merges
    "prefix": (None, None, None, None),
    "prompt": (None, None, None, None),
    "LoRA": (None, None, None, None),
    "adapters": (None, None, None, None),
    "full": (None, None, None, None),
}


def check_table(table):
    """A word on each cell that is filled in, and how many are blank."""
    own, merges = {"prefix", "prompt"}, {"LoRA", "full"}
    blank = 0
    for name, row in table.items():
        right = (on_paper[name], first[name], name in own, name in merges)
        for column, said, wanted in zip(
            ("numbers", "moves", "own", "merges"), row, right, strict=True
        ):
            blank += said is None
            assert said in (None, wanted), f"{name}, {column}: {said} is not right"
    print("the table is right" if not blank else f"{blank} blanks are left")
    return blank


check_table(table)

# %% [markdown]
# <details><summary>Solution 1</summary>
#
# ```python
# table = {
#     "prefix": (6400, 2, True, False),
#     "prompt": (800, 1, True, False),
#     "LoRA": (20480, 1, False, True),
#     "adapters": (21824, 2, False, False),
#     "full": (1442240, 1, False, True),
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
# **3.** (Graded.) Write `lora_backward(dout, x, W, A, B, s)` for $out = xW + s\,xAB$. The shapes:
# `dout` $(N, out)$, `x` $(N, in)$, `W` $(in, out)$, `A` $(in, r)$, `B` $(r, out)$, and a number
# `s`. Return `dx`, `dA` and `dB`, and form no array of the shape $(in, out)$.

# %%
from minprefix.lessons import grade


def lora_backward(dout, x, W, A, B, s):
    raise NotImplementedError  # yours


grade(lora_backward)

# %% [markdown]
# <details><summary>Solution 3</summary>
#
# ```python
# def lora_backward(dout, x, W, A, B, s):
#     du = s * dout @ B.T  # (N, r)
#     dA = x.T @ du  # (in, r)
#     dB = s * (x @ A).T @ dout  # (r, out)
#     dx = dout @ W.T + du @ A.T  # (N, in)
#     return dx, dA, dB
#
#
# grade(lora_backward)
# ```
#
# </details>
#
# **4.** (Graded.) Write `prompt_backward(dkv, w, blocks, ops)`, from `dkv` $(L, 2, NH, P, hs)$ to
# `dprompt` $(P, C)$. `w` holds the weights by name, `blocks` the caches of each layer, as in
# lesson 7: `ln_1, attention, ln_2, gelu`. Walk down as you did there. In each layer
# `ops.attention_backward` gives `dq`, `dk` and `dv` of the prompt's rows, $(P, NH, hs)$ each. What
# has to be added to them?

# %%


def prompt_backward(dkv, w, blocks, ops):
    raise NotImplementedError  # yours


grade(prompt_backward)

# %% [markdown]
# <details><summary>Solution 4</summary>
#
# ```python
# def prompt_backward(dkv, w, blocks, ops):
#     L, _, NH, P, hs = dkv.shape
#     dx = np.zeros((P, NH * hs))  # no loss above
#     for i in reversed(range(L)):
#         ln_1, attention, ln_2, gelu = blocks[i]
#         weight = {n.removeprefix(f"h.{i}."): a for n, a in w.items() if n.startswith(f"h.{i}.")}
#         dh = ops.linear_backward(dx, weight["mlp.c_proj.weight"])  # (P, F)
#         dm = ops.linear_backward(ops.gelu_backward(dh, gelu), weight["mlp.c_fc.weight"])
#         dx = dx + ops.layernorm_backward(dm, ln_2)  # (P, C)
#         dz = ops.linear_backward(dx, weight["attn.c_proj.weight"])  # (P, C)
#         grads = ops.attention_backward(dz.reshape(P, NH, hs), attention)
#         dk = grads.dk + dkv[i, 0].swapaxes(0, 1)  # (P, NH, hs): what the texts sent
#         dv = grads.dv + dkv[i, 1].swapaxes(0, 1)
#         dqkv = np.stack([grads.dq, dk, dv], axis=1).reshape(P, -1)  # (P, 3C)
#         da = ops.linear_backward(dqkv, weight["attn.c_attn.weight"])  # (P, C)
#         dx = dx + ops.layernorm_backward(da, ln_1)
#     return dx
#
#
# grade(prompt_backward)
# ```
#
# </details>
#
# This was the last lesson. What you have written by hand is what the package runs:
# [reference](../minprefix/ops/reference.py), [gpt2](../minprefix/gpt2.py),
# [model](../minprefix/model.py), [LoRA](../minprefix/methods/lora.py). `minprefix step` walks
# through it, line by line.
