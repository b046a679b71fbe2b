# %% [markdown]
# # The detour through an MLP
#
# - **You will be able to** train a prefix through a small network with a backward of your own, fold
#   the network away, keep what resuming needs, and measure whether the detour helps.
# - **You need** the loop and AdamW of [lesson 8](08_training_a_prefix.py), and the backward of a
#   linear layer from [lesson 2](02_backward_by_hand.py).
# - **Time** 50 minutes; it runs in 10 seconds.
# - **Difficulty** 2 of 3.
#
# ## Forward
#
# The paper does not train the keys and values of a prefix themselves. It trains an *MLP*, two
# linear layers with a tanh between them, that computes them. Each of the $P$ slots has a row of $C$
# numbers, its *embedding*; all slots share the two layers. With $L$ layers in the model, a slot
# needs $2 L C$ numbers: a key and a value in each layer, of the model's width $C$.
#
# $$u = E W_1 + b_1, \qquad h = \tanh(u), \qquad flat = h W_2 + b_2$$
#
# The shapes: $E$ $(P, C)$; $W_1$ $(C, hidden)$, $b_1$ $(hidden)$, $u$ and $h$ $(P, hidden)$;
# $W_2$ $(hidden, 2LC)$, $b_2$ $(2LC)$, $flat$ $(P, 2LC)$. A row of $flat$ is then read as
# $(L, 2, NH, hs)$: layers, key or value, heads, head size, where $NH \cdot hs = C$. And the prefix
# wants its slots next to last: $kv$ $(L, 2, NH, P, hs)$.

# %%
import numpy as np

from minprefix import GPT2, Batch, MLPPrefix, Prefix, loss_and_grad, optim
from minprefix.data.world import table_to_text

NAMES = ("embedding", "weight_1", "bias_1", "weight_2", "bias_2")  # E, W_1, b_1, W_2, b_2


def unflatten(flat, NH, hs):
    P = flat.shape[0]
    return flat.reshape(P, -1, 2, NH, hs).transpose(1, 2, 3, 0, 4)  # (L, 2, NH, P, hs)


def flatten(kv):
    P = kv.shape[3]
    return kv.transpose(3, 0, 1, 2, 4).reshape(P, -1)  # (P, 2LC)


def mlp(parameters, NH):
    E, W_1, b_1, W_2, b_2 = (parameters[name] for name in NAMES)
    h = np.tanh(E @ W_1 + b_1)  # (P, hidden)
    flat = h @ W_2 + b_2  # (P, 2LC)
    return unflatten(flat, NH, E.shape[1] // NH), h


# %% [markdown]
# **Predict.** The tiny model has $L = 4$, $C = 160$ and 1.44 million numbers. A flat prefix of ten
# slots has $10 \cdot 2LC = 12800$. How many has the network, with the paper's $hidden = 512$?

# %%
model = GPT2.load("tiny")
NH = model.config.n_head
network = Prefix.mlp(model.config, length=10, hidden=512, seed=0)
kv, h = mlp(network.parameters, NH)
for name in NAMES:
    print(f"{name:10}{network.parameters[name].shape!s:>13}")
print(network.n_parameters, "numbers are trained,", kv.size, "are what the model sees")
assert network.n_parameters == 10 * 160 + 160 * 512 + 512 + 512 * 1280 + 1280
assert np.abs(kv - network.kv).max() < 1e-5, "the package computes other keys and values"

# %% [markdown]
# Half as many as the model has. That is not what prefix-tuning promises, so at the end the network
# goes, and $kv$ stays.
#
# ## Backward
#
# Lesson 5 gives us $dkv$. The rest is the chain rule, the lines of the forward in reverse. A
# backward of a transpose is the transpose back, so the first line is $dflat = flatten(dkv)$. Then a
# linear layer, the tanh with $\tanh' = 1 - \tanh^2$, and a linear layer:
#
# $$\begin{aligned}
# dW_2 &= h^\top dflat & db_2 &= \textstyle\sum_p dflat_p & dh &= dflat \, W_2^\top \\
# du &= dh \odot (1 - h \odot h) \\
# dW_1 &= E^\top du & db_1 &= \textstyle\sum_p du_p & dE &= du \, W_1^\top
# \end{aligned}$$
#
# Here both halves of a linear layer's backward are wanted: these layers are not frozen. And $E$ is
# no input, it is trained.

# %%


def mlp_backward(dkv, parameters, h):
    E, W_1, _, W_2, _ = (parameters[name] for name in NAMES)
    dflat = flatten(dkv)  # (P, 2LC)
    dW_2, db_2 = h.T @ dflat, dflat.sum(axis=0)  # (hidden, 2LC), (2LC)
    dh = dflat @ W_2.T  # (P, hidden)
    du = dh * (1 - h * h)  # (P, hidden)
    dW_1, db_1 = E.T @ du, du.sum(axis=0)  # (C, hidden), (hidden)
    dE = du @ W_1.T  # (P, C)
    return dict(zip(NAMES, (dE, dW_1, db_1, dW_2, db_2), strict=True))


# %% [markdown]
# Three proofs, on a network small enough to try every number of it. The complex step of lesson 2
# knows nothing of the chain rule. Where each number of $flat$ belongs can be written as plain
# loops. And the package has its own `backward`. Both checks take the class that they check, since
# we shall break one.

# %%
rng = np.random.default_rng(0)
shapes = {"embedding": (3, 4), "weight_1": (4, 5), "bias_1": 5, "weight_2": (5, 16), "bias_2": 16}
small = {name: rng.normal(size=shape) for name, shape in shapes.items()}  # P 3, C 4, L 2, NH 2
dkv_small = rng.normal(size=(2, 2, 2, 3, 2))  # (L, 2, NH, P, hs)


def relative_error(a, b):
    """The largest difference, as a part of the largest number: 1 means all wrong."""
    return np.abs(a - b).max() / np.abs(b).max()


def by_complex_step(name, eps=1e-30):
    grad = np.zeros(small[name].shape)
    for index in np.ndindex(grad.shape):
        moved = small[name].astype(complex)
        moved[index] += 1j * eps
        grad[index] = (dkv_small * mlp({**small, name: moved}, 2)[0]).sum().imag / eps
    return grad


exact = {name: by_complex_step(name) for name in NAMES}


def check_layout(MLPPrefix):
    """Each number of `flat` is where PEFT's format has it."""
    flat = np.tanh(small["embedding"] @ small["weight_1"] + small["bias_1"]) @ small["weight_2"]
    flat += small["bias_2"]  # (P, 2LC)
    kv = MLPPrefix(small, n_head=2).kv
    for layer, i, n, p, x in np.ndindex(kv.shape):  # i: key or value, n: head, p: slot
        here, right = kv[layer, i, n, p, x], flat[p, ((layer * 2 + i) * 2 + n) * 2 + x]
        assert abs(here - right) < 1e-12, f"kv{[layer, i, n, p, x]} is {here:.3f}, not {right:.3f}"


def check_backward(MLPPrefix):
    grads = MLPPrefix(small, n_head=2).backward(dkv_small)
    errors = {name: relative_error(grads[name], exact[name]) for name in NAMES}
    wrong = [f"{name} by {error:.2g}" for name, error in errors.items() if error > 1e-12]
    assert not wrong, f"off by a part of the largest gradient: {', '.join(wrong)}"


ours = mlp_backward(dkv_small, small, mlp(small, 2)[1])
for name in NAMES:
    print(f"{name:10} against the complex step: {relative_error(ours[name], exact[name]):.1e}")
    assert relative_error(ours[name], exact[name]) < 1e-12
check_layout(MLPPrefix)
check_backward(MLPPrefix)

# %% [markdown]
# ## A last layer of zeros
#
# It is tempting to start with $W_2 = 0$ and $b_2 = 0$: a quiet start, $kv = 0$.
#
# **Predict.** Which of the five gradients are exactly 0 then? (Follow $dh$.) For how long?

# %%
END = model.config.eos_token_id


def encode(source, target):
    prompt = model.encode(source + "\n")
    return [*prompt, *model.encode(target), END], len(prompt)  # token ids, loss_from


pairs = [encode(*pair) for pair in table_to_text(400, "train", seed=0)]
examples = [pair for pair in pairs if len(pair[0]) <= 60]  # the task of lesson 8
STEPS = 16
rng = np.random.default_rng(0)
batches = []
for _ in range(STEPS):
    chosen = [examples[i] for i in rng.choice(len(examples), 4, replace=False)]
    batches.append(Batch.pack([ids for ids, _ in chosen], [start for _, start in chosen]))

quiet = Prefix.mlp(model.config, 10, hidden=512, seed=0)
quiet.parameters["weight_2"][:], quiet.parameters["bias_2"][:] = 0, 0
adam = optim.AdamW()
for step in range(2):
    _, dkv = loss_and_grad(model, quiet, batches[step])
    grads = quiet.backward(dkv)
    largest = (f"{name} {np.abs(grads[name]).max():.0e}" for name in NAMES)
    print(f"{step}:", ", ".join(largest))
    zero = [name for name in NAMES if not grads[name].any()]
    assert zero == (["embedding", "weight_1", "bias_1"] if step == 0 else [])
    adam.step(quiet.parameters, grads, lr=1e-3)

# %% [markdown]
# $dh = dflat \, W_2^\top = 0$, and nothing below it learns. After one step $W_2$ is no longer 0. So
# it is a wasted step, not a dead network. The package starts both layers with small random numbers.
#
# ## How far one step goes
#
# A step of AdamW moves each *parameter* by about the rate $lr$. For a flat prefix the parameters
# are the keys and values. Through the network, slot $p$ is $flat_p = \sum_i h_{pi} \, W_{2,i} +
# b_2$, where $W_{2,i}$ is row $i$ of $W_2$, and all rows move at once. If all of them push a number
# in the same direction, it moves by
#
# $$lr \cdot \Big( \sum_i |h_{pi}| + 1 \Big)$$
#
# With ten slots that share $W_2$ they do not all agree, and $W_1$ and $E$ move, too.
#
# **Predict.** How many times $lr$ is the typical step of a key, with $hidden = 512$? The paper's
# rates are 0.00005 to 0.00008; people who train flat prefixes take 0.001 to 0.005.

# %%


def network_again():
    """The same start each time."""
    return Prefix.mlp(model.config, 10, hidden=512, seed=0)


start = network_again()
_, dkv = loss_and_grad(model, start, batches[0])
optim.AdamW().step(start.parameters, start.backward(dkv), lr=1e-5)
moved = np.abs(start.kv - network.kv) / 1e-5  # (L, 2, NH, P, hs), in units of lr
factor = float(np.median(moved))
together = float((np.abs(h).sum(axis=1) + 1).mean())
print(f"if all agreed: {together:.0f} lr; measured: {factor:.0f} lr (the median)")
assert 20 < factor < together

# %% [markdown]
# So the same rate is some sixty times as large behind the network, and the two recipes say nearly
# the same thing. That leaves the question of this lesson.
#
# ## Does it help?
#
# Flat and through the network, from the same keys and values, on the same batches, at four rates
# each.
#
# **Predict.** Sketch the loss at the end against the rate, once for each. Which of them forgives
# more, which gets lower? And what happens if you measure the rate by how far $kv$ moves?

# %%
import matplotlib.pyplot as plt


def train(prefix, lr, first=0, last=STEPS, adam=None, loss_and_grad=loss_and_grad):
    """Steps first .. last - 1, in place. -> the loss of each batch, before its step."""
    adam, losses = adam or optim.AdamW(), []
    for step in range(first, last):
        value, dkv = loss_and_grad(model, prefix, batches[step])
        rate = optim.learning_rate(step, STEPS, lr, warmup=0, schedule="linear")
        adam.step(prefix.parameters, prefix.backward(dkv), rate)
        losses.append(value)
    return losses


flat_rates, mlp_rates = np.array([1e-3, 1e-2, 1e-1, 1]), np.array([1e-5, 1e-4, 1e-3, 1e-2])
flat_ends = [np.mean(train(network.fold(), lr)[-5:]) for lr in flat_rates]
mlp_ends = [np.mean(train(network_again(), lr)[-5:]) for lr in mlp_rates]
print("flat", dict(zip(flat_rates.tolist(), np.round(flat_ends, 4).tolist(), strict=True)))
print("MLP ", dict(zip(mlp_rates.tolist(), np.round(mlp_ends, 4).tolist(), strict=True)))

assert max(min(flat_ends), min(mlp_ends)) < 0.03, "both learn the task at their best rate"
assert np.argmin(flat_ends) == np.argmin(mlp_ends) == 2, "the best rates are 100 apart"
for ends in (flat_ends, mlp_ends):
    assert min(ends[0], ends[3]) > 2 * min(ends), "at both ends of its range each of them fails"

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4), sharey=True, layout="constrained")
for axes, scale in ((left, 1), (right, factor)):
    axes.loglog(flat_rates, flat_ends, "o-", color="black", label="flat")
    axes.loglog(mlp_rates * scale, mlp_ends, "s--", color="black", label="through the MLP")
left.set(title="Against the rate", xlabel="rate", ylabel="mean of the last 5 losses")
right.set(title="Against what the rate does", xlabel="how far the first step moves kv")
left.legend()
plt.show()

# %% [markdown]
# Measured by what it does, it is one curve. **On this task the detour is a larger rate and little
# else**, at 58 times the parameters. It forgives no more: a rate ten times too large ruins both,
# one ten times too small hardly learns. At its best it ends a little lower. (With three seeds, each
# at the best of three rates, the network ended at 0.0036 to 0.0095 and the flat prefix at 0.0049 to
# 0.0107. Both had begun at 0.13.)
#
# The paper found direct training unstable and a little worse, on a larger model, with harder tasks
# and thousands of steps. Both may be true, and nobody is spared measuring. Compare each at *its
# own* best rate: at one and the same rate, one of the two looks hopeless.
#
# What the detour changes in kind is that slots are no longer free of each other. They share $W_1$,
# $W_2$ and $b_2$.
#
# **Predict.** Only slot 0 has a gradient. Of a flat prefix the other slots stay where they are. And
# through the network?

# %%
one = np.zeros_like(kv)
one[..., 0, :] = rng.normal(size=one[..., 0, :].shape)  # (L, 2, NH, hs)
pushed = network_again()
for name, g in pushed.backward(one).items():
    pushed.parameters[name] -= 1e-5 * g  # plain gradient descent, so that sizes can be compared
step = flatten(pushed.kv - network.kv)  # (P, 2LC)
lengths = np.linalg.norm(step, axis=1) / np.linalg.norm(step[0])
along = step @ step[0] / np.linalg.norm(step[0]) / np.linalg.norm(step, axis=1)
print("how far each slot moves:", lengths.round(2))
print("cosine with slot 0:     ", along.round(2))
assert lengths[1:].max() > 0.05, "the others move, too"
assert not one[..., 1:, :].any(), "and none of them had a gradient"

# %% [markdown]
# Some by a tenth of it, in its direction or against it. A slot that gets little gradient of its own
# is carried along. Whether that helps is a question to each task.
#
# ## Fold it away
#
# The model sees nothing but $kv$. Once training is over, the network has done its work: keep what
# it computes.
#
# **Predict.** Which files does saving write, and which of them does PEFT read?

# %%
import tempfile
from pathlib import Path

folded = network.fold()
logits = [model.logits(batches[0], p) for p in (network, folded)]  # (N, V) each
assert np.array_equal(*logits), "folding changes nothing that the model sees"

temporary = tempfile.TemporaryDirectory()
folder = Path(temporary.name)
network.save(folder, model)
for file in sorted(folder.iterdir()):
    print(f"{file.name:30}{file.stat().st_size:>10} bytes")
alone, again = Prefix.load(folder, model), MLPPrefix.load(folder, model)
print(alone.n_parameters, "numbers without the network,", again.n_parameters, "with it")
assert np.array_equal(alone.kv, folded.kv)
assert all(np.array_equal(again.parameters[n], network.parameters[n]) for n in NAMES)

# %% [markdown]
# `adapter_model.safetensors` is what PEFT reads and writes: the array $flat$ $(P, 2LC)$, 50 KB.
# PEFT keeps that alone and throws the network away. `mlp.safetensors` beside it, 3 MB, does no harm
# there, and is what training needs to go on.
#
# ## What is kept to resume
#
# A run of 12 steps is stopped after 6 and goes on, in four ways, by what was kept.
#
# **Predict.** Which of them ends where a run ends that never stopped? Can the loss tell?

# %%
straight = network_again()
train(straight, 1e-3, 0, 12)

first_half, adam = network_again(), optim.AdamW()
train(first_half, 1e-3, 0, 6, adam)
first_half.save(folder, model)
np.savez(folder / "m.npz", **adam.m)
np.savez(folder / "v.npz", **adam.v)

m, v = (dict(np.load(folder / name)) for name in ("m.npz", "v.npz"))
ways = {
    "network and moments": (MLPPrefix.load(folder, model), optim.AdamW(t=6, m=m, v=v), 1e-3),
    "network alone": (MLPPrefix.load(folder, model), optim.AdamW(), 1e-3),
    "kv alone": (Prefix.load(folder, model), optim.AdamW(), 1e-3),
    "kv alone, rate x 100": (Prefix.load(folder, model), optim.AdamW(), 1e-1),
}
off, first_step = {}, {}
print(f"{'kept':21}{'first step':>11}{'last losses':>13}{'kv off by':>11}")
for way, (p, adam, lr) in ways.items():
    before = p.kv.copy()
    train(p, lr, 6, 7, adam)
    first_step[way] = float(np.median(np.abs(p.kv - before)))
    losses = train(p, lr, 7, 12, adam)
    off[way] = relative_error(p.kv, straight.kv)
    print(f"{way:21}{first_step[way]:11.5f}{np.mean(losses):13.4f}{off[way]:11.2g}")
temporary.cleanup()
assert off.pop("network and moments") == 0, "the same bytes"
assert min(off.values()) > 0.01, "each of the others is another run"
assert first_step["network alone"] > 1.5 * first_step["network and moments"]
assert first_step["kv alone"] < 0.2 * first_step["network and moments"]

# %% [markdown]
# Only the first is the same run, to the last bit; the losses of all four look well. New moments
# make the first steps as long as those of a fresh run. From $kv$ alone the network cannot be had
# back: at the old rate training stands still, at a larger one it is another training.
# `minprefix train` keeps all in `state.safetensors`: the parameters, $m$, $v$, and the number of
# steps, on which the rate and the bias corrections depend. PEFT's files have no place for it.
#
# ## Break it yourself
#
# A backward that forgets the derivative of tanh.
#
# **Predict.** Which of the five gradients are wrong? And what does the loss do?

# %%
from minprefix.lessons import caught, planted

broken = planted("tanh-derivative-missing")
print(broken)

with caught() as error:  # take this line away, and the lesson stops here
    check_backward(broken.MLPPrefix)
print(error)

# %% [markdown]
# Without the check:

# %%
wrong = broken.MLPPrefix(network_again().parameters, NH)
losses = train(wrong, 1e-3, 0, 12, loss_and_grad=broken.loss_and_grad)
print("right ", np.round(train(network_again(), 1e-3, 0, 12)[::2], 3))
print("broken", np.round(losses[::2], 3))
assert np.mean(losses[-3:]) < 0.5 * losses[0], "the loss falls all the same"

# %% [markdown]
# You cannot tell. The last layer gets its right gradient and does most of the work. Another bug:
# the keys of all layers first, then all values, where the format has key and value of each layer
# side by side. All shapes fit.

# %%
broken = planted("unflattened-values-first")
assert broken.MLPPrefix(small, n_head=2).kv.shape == dkv_small.shape
with caught() as error:
    check_layout(broken.MLPPrefix)
print(error)

strange = broken.MLPPrefix(network_again().parameters, NH)
losses = train(strange, 1e-3, 0, 12, loss_and_grad=broken.loss_and_grad)
print("broken", np.round(losses[::2], 3))
assert np.mean(losses[-3:]) > 0.03, "this time the curve shows it, though not where"

# %% [markdown]
# Here the numbers that `backward` sends to the keys of a layer belong to values, too, and training
# goes nowhere. Had the bug been in `flatten` as well, training would have worked, and only PEFT
# would have shown you.
#
# ## Exercises
#
# **1.** The paper starts from the keys and values of real words, and fits the network to them with
# 500 steps first. How do you start it there at once, exactly? Which parameters learn at the first
# step?
#
# <details><summary>Solution 1</summary>
#
# With one token a slot, $flat$ differs from slot to slot and $b_2$ does not. So let $W_2$ choose:
# with at least $P$ hidden units, solve $h W_2 = flat$ for $W_2$, and set $b_2 = 0$.
#
# ```python
# words = Prefix.text(model, "restaurant film person city")
# exactly = Prefix.mlp(model.config, words.length, hidden=512, seed=0)
# hidden_units = mlp(exactly.parameters, NH)[1]
# W_2 = np.linalg.pinv(hidden_units.astype(float)) @ flatten(words.kv)
# exactly.parameters["weight_2"][:], exactly.parameters["bias_2"][:] = W_2, 0
# print("kv off by", relative_error(exactly.kv, words.kv))
# assert relative_error(exactly.kv, words.kv) < 1e-4
# ```
#
# $W_2$ is not 0, so all five learn at once.
#
# </details>
#
# **2.** GPT-2 medium has $L = 24$ and $C = 1024$. How many numbers are trained for $P = 5$ and
# $hidden = 512$, how many does AdamW keep besides, and how many are left in the end?
#
# <details><summary>Solution 2</summary>
#
# ```python
# L, C, P, hidden = 24, 1024, 5, 512
# trained = P * C + C * hidden + hidden + hidden * 2 * L * C + 2 * L * C
# print(f"{trained:,} trained, {2 * trained:,} in m and v, {P * 2 * L * C:,} left")
# ```
#
# Nearly all of it is $W_2$.
#
# </details>
#
# **3.** (Graded.) Write `run_training(problem)` as in lesson 8, but this time the network is yours
# and AdamW, `clip` and the rate are the package's. A prefix whose `parameters` have `kv` is flat;
# one that has the five arrays goes through the MLP. Return the gradients as well, before they are
# clipped, as `step.0.prefix.0.gradient.weight_1`: then the suite can say which line is wrong, and
# not only that a step is.

# %%
from minprefix.lessons import grade


def run_training(problem):
    raise NotImplementedError  # yours


grade(run_training)

# %% [markdown]
# <details><summary>Solution 3</summary>
#
# ```python
# def run_training(problem):
#     p, found, NH = problem, {}, problem.config.n_head
#     frozen = GPT2(p.config, dict(p.weights))
#     params = {
#         f"{i}.{name}": a.copy() for i, own in enumerate(p.parameters) for name, a in own.items()
#     }
#     adam = optim.AdamW(p.beta1, p.beta2, p.eps, p.weight_decay)
#     for s, micro_batches in enumerate(p.steps):
#         own = [{n: params[f"{i}.{n}"] for n in a} for i, a in enumerate(p.parameters)]
#         made = [(a["kv"], None) if "kv" in a else mlp(a, NH) for a in own]  # kv, h
#         prefixes = [Prefix(kv) for kv, _ in made]
#         parts = [Batch.pack(b.sequences, b.loss_from, b.prefix_of) for b in micro_batches]
#         M = sum(len(part.targets) for part in parts)
#         total, dkvs = 0.0, [0.0] * len(prefixes)
#         for part in parts:
#             value, more = loss_and_grad(frozen, prefixes, part, reduction="sum")
#             total += value
#             dkvs = [dkv + dpart for dkv, dpart in zip(dkvs, more)]
#         found[f"step.{s}.loss"] = total / M
#         grads = {}
#         for i, (dkv, (_, h)) in enumerate(zip(dkvs, made)):
#             back = {"kv": dkv / M} if h is None else mlp_backward(dkv / M, own[i], h)
#             grads |= {f"{i}.{name}": g for name, g in back.items()}
#             found |= {f"step.{s}.prefix.{i}.gradient.{n}": g.copy() for n, g in back.items()}
#         if p.clip is not None:
#             optim.clip(grads, optim.global_norm(grads), p.clip)
#         lr = optim.learning_rate(s, len(p.steps), p.lr, p.warmup, "linear")
#         adam.step(params, grads, lr)
#         found |= {f"step.{s}.prefix.{name}": a.copy() for name, a in params.items()}
#     return found
#
#
# grade(run_training)
# ```
#
# </details>
#
# Next: [What a prefix can and cannot do](10_what_a_prefix_can_do.py).
