# %% [markdown]
# # The detour through an MLP
#
# - **You will be able to** train a prefix through a small network with a backward of your own, fold
#   the network away into a flat prefix, keep what resuming needs, and measure whether the detour
#   helps.
# - **You need** the loop and AdamW of [lesson 8](08_training_a_prefix.py), and the backward of a
#   linear layer from [lesson 2](02_backward_by_hand.py).
# - **Time** 110 minutes; it runs in 22 seconds.
# - **Difficulty** 4 of 5.
#
# ## Overview
#
# - The paper computes a [prefix](glossary.md#prefix) by a small network and trains the network. For
#   our tiny model that is 740 672 trained numbers in the place of 12 800.
# - You write the network, its backward and the loop. The complex step checks the backward to 15
#   digits.
# - The same rate moves the keys and values some 60 times as far through the network (median of the
#   first step).
# - A hundred times the rate on a flat prefix does nearly all that the network does. Each at its
#   best rate, the network ends a little lower in four seeds of five with 16 steps, and in all five
#   with 64.
# - Once training is over, the network is folded away: one file of 51 320 bytes is left, and the
#   model sees the same numbers.
# - A run that resumes from the keys and values alone is another run, and its losses do not show it.

# %%
import numpy as np

from minprefix import GPT2, Batch, MLPPrefix, Prefix, loss_and_grad, optim
from minprefix.data.world import table_to_text
from minprefix.lessons import caught, drawings, grade, planted

model = GPT2.load("tiny")
NH = model.config.n_head
NAMES = ("embedding", "weight_1", "bias_1", "weight_2", "bias_2")  # E, W_1, b_1, W_2, b_2

# %% [markdown]
# ## The network and its shapes
#
# The paper on prefix-tuning (Li & Liang, 2021) does not train the keys and values of a prefix
# themselves. It trains an [MLP](glossary.md#mlp), two linear layers with a tanh between them, that
# computes them. Let $C$ be the model's width and $L$ the number of its layers. Each of the $P$
# slots has a row of $C$ numbers, its *embedding*, a row of $E$. All slots share the two layers. The
# result, $flat$, has $2 L C$ numbers a slot: a key and a value in each layer, each as wide as the
# model.
#
# $$u = E W_1 + b_1, \qquad h = \tanh(u), \qquad flat = h W_2 + b_2$$
#
# The middle is as wide as you choose; its width is called $hidden$. A row of $flat$ is then cut
# into keys and values of all layers and heads.

# %%
drawings.mlp()

# %% [markdown]
# We begin at the end, with the cutting. Row $p$ of $flat$ belongs to slot $p$. Its $2LC$ numbers
# stand in the order $(L, 2, NH, hs)$: layer by layer, first the key and then the value, head by
# head, with $NH \cdot hs = C$. It is the order of the library PEFT, with which many people train
# prefixes: its files hold $flat$. The model wants the slots next to last, $kv$
# $(L, 2, NH, P, hs)$.
#
# ### Exercise 9.1: `unflatten_rows`
#
# *8 minutes · difficulty 2 of 5*
#
# From `flat`, $(P, 2LC)$, make `kv`, $(L, 2, NH, P, hs)$. $L$ is not given. `rows` is the step in
# between, with the slots still in front.

# %%


def unflatten_rows(flat, NH, hs):
    rows = ...  # (P, L, 2, NH, hs)
    kv = ...  # (L, 2, NH, P, hs)
    return kv


grade(unflatten_rows)

# %% [markdown]
# <details><summary>Hint 1</summary>
#
# `reshape` keeps the order of the numbers in memory and only sets new borders. So the slots have to
# stay in front in this step. One axis may be given as -1: NumPy computes it.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# `transpose(1, 2, 3, 0, 4)` makes old axis 1 the new axis 0, and so on: the slots, old axis 0,
# become new axis 3.
#
# </details>

# %% jupyter={"source_hidden": true}


def unflatten_rows(flat, NH, hs):
    rows = flat.reshape(len(flat), -1, 2, NH, hs)  # (P, L, 2, NH, hs)
    kv = rows.transpose(1, 2, 3, 0, 4)  # (L, 2, NH, P, hs)
    return kv


# %%
flat = np.arange(10 * 2 * 4 * 160).reshape(10, -1)  # (P, 2LC), each number another one
at_once = flat.reshape(4, 2, NH, 10, -1)  # (L, 2, NH, P, hs)
in_place = (at_once == unflatten_rows(flat, NH, 160 // NH)).mean()
print(f"{in_place:.1%} of the numbers are where they belong")
assert at_once.shape == unflatten_rows(flat, NH, 160 // NH).shape
assert in_place < 0.05

# %% [markdown]
# That was a `reshape` to $(L, 2, NH, P, hs)$ at once. It has the right shape, and no error tells
# you that nearly every number is at a wrong place.
#
# ### Exercise 9.2: `flatten_kv`
#
# *4 minutes · difficulty 1 of 5*
#
# The way back: from `kv`, $(L, 2, NH, P, hs)$, to `flat`, $(P, 2LC)$. The backward needs it for
# gradients, and PEFT's file for the numbers themselves.

# %%


def flatten_kv(kv):
    rows = ...  # (P, L, 2, NH, hs)
    flat = ...  # (P, 2LC)
    return flat


grade(flatten_kv)

# %% [markdown]
# <details><summary>Hint 1</summary>
#
# The same two steps in reverse: first bring the slots to the front, then join the other axes.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# `transpose(3, 0, 1, 2, 4)`, and `reshape(P, -1)`.
#
# </details>

# %% jupyter={"source_hidden": true}


def flatten_kv(kv):
    rows = kv.transpose(3, 0, 1, 2, 4)  # (P, L, 2, NH, hs)
    flat = rows.reshape(kv.shape[3], -1)  # (P, 2LC)
    return flat


# %% [markdown]
# Now the network itself.
#
# ### Exercise 9.3: `mlp_kv`
#
# *8 minutes · difficulty 2 of 5*
#
# `parameters` is a dictionary with the names `embedding` $E$ $(P, C)$, `weight_1` $W_1$
# $(C, hidden)$, `bias_1` $b_1$ $(hidden)$, `weight_2` $W_2$ $(hidden, 2LC)$ and `bias_2` $b_2$
# $(2LC)$. Return `kv` and `h`: the backward will need `h`.

# %%


def mlp_kv(parameters, NH):
    u = ...  # (P, hidden)
    h = ...  # (P, hidden)
    flat = ...  # (P, 2LC)
    kv = ...  # (L, 2, NH, P, hs)
    return kv, h


grade(mlp_kv)

# %% [markdown]
# <details><summary>Hint 1</summary>
#
# The three formulas above, one a line, then your `unflatten_rows`.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# $C$ is the width of `embedding`, and $hs = C / NH$, a whole number: `C // NH`.
#
# </details>

# %% jupyter={"source_hidden": true}


def mlp_kv(parameters, NH):
    E = parameters["embedding"]
    u = E @ parameters["weight_1"] + parameters["bias_1"]  # (P, hidden)
    h = np.tanh(u)  # (P, hidden)
    flat = h @ parameters["weight_2"] + parameters["bias_2"]  # (P, 2LC)
    kv = unflatten_rows(flat, NH, E.shape[1] // NH)  # (L, 2, NH, P, hs)
    return kv, h


# %% [markdown]
# In the package such a prefix is an `MLPPrefix`. Its `parameters` are the five arrays, and its `kv`
# is computed from them. `Prefix.mlp` makes one that starts from random numbers. A prefix without a
# network, whose keys and values are trained themselves, is called *flat* here.
#
# ### Exercise 9.4: `count_numbers`
#
# *5 minutes · difficulty 1 of 5*
#
# Return two counts: how many numbers are trained with the network, and how many the model sees, the
# keys and values. `layer_1` and `layer_2` are the numbers in the two linear layers.

# %%


def count_numbers(P, C, hidden, L):
    layer_1 = ...  # ()
    layer_2 = ...  # ()
    trained = ...  # ()
    seen = ...  # ()
    return trained, seen


grade(count_numbers)

# %% [markdown]
# <details><summary>Hint 1</summary>
#
# A linear layer has a weight and a bias. The embedding is trained, too.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# A row of $flat$ has $2LC$ numbers, and there are $P$ rows.
#
# </details>

# %% jupyter={"source_hidden": true}


def count_numbers(P, C, hidden, L):
    layer_1 = C * hidden + hidden  # ()
    layer_2 = hidden * 2 * L * C + 2 * L * C  # ()
    trained = P * C + layer_1 + layer_2  # ()
    seen = P * 2 * L * C  # ()
    return trained, seen


# %% [markdown]
# **Predict.** The tiny model has $L = 4$, $C = 160$ and 1.44 million numbers. How many numbers does
# a network for ten slots have, with the paper's $hidden = 512$: more than the model, half as many,
# or as many as the 12 800 keys and values?

# %%
network = Prefix.mlp(model.config, length=10, hidden=512, seed=0)
kv, h = mlp_kv(network.parameters, NH)
for name in NAMES:
    print(f"{name:10}{network.parameters[name].shape!s:>13}")
trained, seen = count_numbers(P=10, C=160, hidden=512, L=4)
in_model = sum(a.size for a in model.weights.values())
print(f"{trained} numbers are trained, {seen} are what the model sees: {trained / seen:.0f} to 1")
print(f"the model itself: {in_model}")
assert (trained, seen) == (network.n_parameters, kv.size)
assert 0.5 < trained / in_model < 0.53
assert np.abs(kv - network.kv).max() < 1e-5, "the package computes other keys and values"

# %% [markdown]
# **Answer.** 740 672: half as many as the model, 58 times as many as the keys and values.

# %% [markdown]
# That is not what prefix-tuning promises. So at the end the network goes, and $kv$ stays.
#
# **Recap.** Embedding, linear, tanh, linear, then a reshape and a transpose. The order inside a row
# is part of the file format: key and value of a layer stand side by side.
#
# ## Backward
#
# Lesson 5 gives us $dkv$. The rest is the chain rule, the lines of the forward in reverse. The
# backward of a transpose is the transpose back, so the first line is $dflat = flatten(dkv)$. Then a
# linear layer, the tanh (its derivative is $1 - \tanh^2$, that is $1 - h^2$), and a linear layer.
# With $p$ for the slot, a row:
#
# $$\begin{aligned}
# dW_2 &= h^\top dflat, & db_2 &= \textstyle\sum_p dflat_p \\
# dh &= dflat \, W_2^\top \\
# du &= dh \odot (1 - h \odot h) \\
# dW_1 &= E^\top du, & db_1 &= \textstyle\sum_p du_p \\
# dE &= du \, W_1^\top
# \end{aligned}$$
#
# Each gradient has the shape of its array. Both halves of a linear layer's backward are wanted
# here: these layers are not frozen. And $E$ is no input, it is trained.
#
# ### Exercise 9.5: `mlp_kv_backward`
#
# *15 minutes · difficulty 3 of 5*
#
# From `dkv`, of the shape of `kv`, and from `h` of the forward compute the five gradients. Return
# them as a dictionary with the names of `parameters`.

# %%


def mlp_kv_backward(dkv, parameters, h):
    dflat = ...  # (P, 2LC)
    dW_2 = ...  # (hidden, 2LC)
    db_2 = ...  # (2LC,)
    dh = ...  # (P, hidden)
    du = ...  # (P, hidden)
    dW_1 = ...  # (C, hidden)
    db_1 = ...  # (hidden,)
    dE = ...  # (P, C)
    return {"embedding": dE, "weight_1": dW_1, "bias_1": db_1, "weight_2": dW_2, "bias_2": db_2}


grade(mlp_kv_backward)

# %% [markdown]
# <details><summary>Hint 1</summary>
#
# Write the shapes under each factor. Only one order of a product fits, and a bias gets the sum over
# the axis that it does not have.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# You need no second forward: $\tanh'(u) = 1 - \tanh(u)^2$, and $\tanh(u)$ is `h`.
#
# </details>

# %% jupyter={"source_hidden": true}


def mlp_kv_backward(dkv, parameters, h):
    dflat = flatten_kv(dkv)  # (P, 2LC)
    dW_2 = h.T @ dflat  # (hidden, 2LC)
    db_2 = dflat.sum(axis=0)  # (2LC,)
    dh = dflat @ parameters["weight_2"].T  # (P, hidden)
    du = dh * (1 - h * h)  # (P, hidden)
    dW_1 = parameters["embedding"].T @ du  # (C, hidden)
    db_1 = du.sum(axis=0)  # (hidden,)
    dE = du @ parameters["weight_1"].T  # (P, C)
    return {"embedding": dE, "weight_1": dW_1, "bias_1": db_1, "weight_2": dW_2, "bias_2": db_2}


# %% [markdown]
# Three proofs, on a network small enough to try every number of it.
#
# - *The complex step* of lesson 2 knows nothing of the chain rule. It wants a single number whose
#   gradient with respect to $kv$ is $dkv$. As in lesson 5, $\sum dkv \odot kv$ is one.
# - *The layout.* The place of each number of $flat$ can be written as plain loops.
# - *The package* has its own `backward`. We compare it with the complex step, too.
#
# The two checks take the class that they check, since we shall break it.

# %%
rng = np.random.default_rng(0)
shapes = {"embedding": (3, 4), "weight_1": (4, 5), "bias_1": 5, "weight_2": (5, 16), "bias_2": 16}
small = {name: rng.normal(size=shape) for name, shape in shapes.items()}
NH_small, hs_small = 2, 2  # and P = 3, C = 4, hidden = 5, L = 2
dkv_small = rng.normal(size=(2, 2, 2, 3, 2))  # (L, 2, NH, P, hs)


def relative_error(a, b):
    """The largest difference, as a part of the largest number: 1 means all wrong."""
    return np.abs(a - b).max() / np.abs(b).max()


def by_complex_step(name, eps=1e-30):
    grad = np.zeros(small[name].shape)
    for index in np.ndindex(grad.shape):
        moved = small[name].astype(complex)
        moved[index] += 1j * eps
        grad[index] = (dkv_small * mlp_kv({**small, name: moved}, NH_small)[0]).sum().imag / eps
    return grad


exact = {name: by_complex_step(name) for name in NAMES}


def check_layout(MLPPrefix):
    """Each number of `flat` is where PEFT's format has it."""
    flat = np.tanh(small["embedding"] @ small["weight_1"] + small["bias_1"]) @ small["weight_2"]
    flat += small["bias_2"]  # (P, 2LC)
    kv = MLPPrefix(small, n_head=NH_small).kv
    for layer, which, head, slot, x in np.ndindex(kv.shape):  # which: 0 key, 1 value
        column = ((layer * 2 + which) * NH_small + head) * hs_small + x
        index = [layer, which, head, slot, x]
        here, right = kv[tuple(index)], flat[slot, column]
        assert abs(here - right) < 1e-12, f"kv{index} is {here:.3f}, not {right:.3f}"


def check_backward(MLPPrefix):
    grads = MLPPrefix(small, n_head=NH_small).backward(dkv_small)
    errors = {name: relative_error(grads[name], exact[name]) for name in NAMES}
    wrong = [f"{name} by {error:.2g}" for name, error in errors.items() if error > 1e-12]
    assert not wrong, f"off by a part of the largest gradient: {', '.join(wrong)}"


here = mlp_kv_backward(dkv_small, small, mlp_kv(small, NH_small)[1])
for name in NAMES:
    print(f"{name:10} against the complex step: {relative_error(here[name], exact[name]):.1e}")
    assert relative_error(here[name], exact[name]) < 1e-12
check_layout(MLPPrefix)
check_backward(MLPPrefix)

# %% [markdown]
# **Recap.** The backward of the network begins with $dflat = flatten(dkv)$ and ends at the
# embedding. All five arrays are trained, so all five gradients are needed.
#
# ## A last layer of zeros
#
# It is tempting to start with $W_2 = 0$ and $b_2 = 0$: a quiet start, $kv = 0$. We try it on the
# task of lesson 8, to describe records, and print the largest entry of each gradient.
#
# **Predict.** Which of the five gradients are exactly 0 then? (Follow $dh$.) For how long?

# %%
END = model.config.eos_token_id
STEPS = 16


def encode(source, target):
    prompt = model.encode(source + "\n")
    return [*prompt, *model.encode(target), END], len(prompt)  # token ids, loss_from


pairs = [encode(*pair) for pair in table_to_text(400, "train", seed=0)]
examples = [pair for pair in pairs if len(pair[0]) <= 60]  # the task of lesson 8
order = np.random.default_rng(0).permutation(len(examples))  # of 126: 16 batches of 4 are a part
batches = []
for s in range(STEPS):
    chosen = [examples[i] for i in order[4 * s : 4 * s + 4]]
    batches.append(Batch.pack([ids for ids, _ in chosen], [first for _, first in chosen]))

quiet = Prefix.mlp(model.config, 10, hidden=512, seed=0)
quiet.parameters["weight_2"][:], quiet.parameters["bias_2"][:] = 0, 0
adam = optim.AdamW()
for s in range(2):
    _, dkv = loss_and_grad(model, quiet, batches[s])
    grads = quiet.backward(dkv)
    largest = (f"{name} {np.abs(grads[name]).max():.0e}" for name in NAMES)
    print(f"{s}:", ", ".join(largest))
    zero = [name for name in NAMES if not grads[name].any()]
    assert zero == (["embedding", "weight_1", "bias_1"] if s == 0 else [])
    adam.step(quiet.parameters, grads, lr=1e-3)

# %% [markdown]
# **Answer.** Those of $E$, $W_1$ and $b_1$, for one step: $dh = dflat \, W_2^\top = 0$, and nothing
# below it learns. After one step $W_2$ is no longer 0.

# %% [markdown]
# So it is a wasted step, not a dead network. The package starts both layers with small random
# numbers.
#
# **Recap.** A last layer of zeros stops the gradient of everything below it, until it has moved.
#
# ## How far one step goes
#
# A step of AdamW moves each *parameter* by at most about the rate $lr$, and the first step by
# $lr$ (lesson 8). For a flat prefix the parameters are the keys and values. Through the network,
# the row of slot $p$ is
#
# $$flat_p = \sum_{i=1}^{hidden} h_{pi} \, W_{2,i} + b_2$$
#
# where $W_{2,i}$ is row $i$ of $W_2$. At the first step each number of each row moves by $lr$, and
# so does $b_2$. If all of that pushes a number of $flat_p$ in the same direction, it moves by
#
# $$lr \cdot \Big( \sum_i |h_{pi}| + 1 \Big)$$
#
# But ten slots share $W_2$ and do not all agree on a direction. (And $W_1$, $b_1$ and $E$ move,
# too.)
#
# **Predict.** How many times $lr$ does a number of $kv$ typically move, with $hidden = 512$ and an
# $|h_{pi}|$ of 0.4 on average? A hint: the paper's rates are 0.00005 to 0.00008; the package's rate
# for flat prefixes is 0.005.

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
print(f"the paper's rates times {factor:.0f}: {5e-5 * factor:.4f} to {8e-5 * factor:.4f}")
assert 20 < factor < together
assert 0.001 < 5e-5 * factor < 8e-5 * factor < 0.0055

# %% [markdown]
# **Answer.** 62 times. So the paper's rates and the rate 0.005 for a flat prefix say nearly the
# same thing.

# %% [markdown]
# **Recap.** A rate has no meaning of its own. Say what it moves: parameters of a network, or keys
# and values.
#
# ## The loop through the network
#
# The loop of lesson 8 changes in two places. The prefix is computed anew in each step, as its
# parameters have moved. And $dkv$ goes on through the backward of the network.
#
# ### Exercise 9.6: `train_network`
#
# *20 minutes · difficulty 4 of 5*
#
# `batches` and `rates` have one entry for each step. `parameters` is the dictionary of the five
# arrays; train them in place. `adam` is an `optim.AdamW`: `adam.step(parameters, grads, lr)`. The
# model takes `Prefix(kv)`. Return the list of losses, each before its step, and the keys and values
# that are left when training is over.

# %%


def train_network(model, parameters, batches, rates, adam):
    losses = []
    for batch, lr in zip(batches, rates, strict=True):
        grads = ...  # (names,)
    left = ...  # (L, 2, NH, P, hs)
    return losses, left


grade(train_network)

# %% [markdown]
# <details><summary>Hint 1</summary>
#
# A step: forward of the network, `loss_and_grad`, backward of the network, `adam.step`. The number
# of heads is `model.config.n_head`.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# The `kv` of the last step was computed before its step of AdamW.
#
# </details>

# %% jupyter={"source_hidden": true}


def train_network(model, parameters, batches, rates, adam):
    losses, NH = [], model.config.n_head
    for batch, lr in zip(batches, rates, strict=True):
        kv, h = mlp_kv(parameters, NH)
        loss, dkv = loss_and_grad(model, Prefix(kv), batch)
        grads = mlp_kv_backward(dkv, parameters, h)  # (names,)
        adam.step(parameters, grads, lr)
        losses.append(loss)
    left = mlp_kv(parameters, NH)[0]  # (L, 2, NH, P, hs)
    return losses, left


# %% [markdown]
# The package's `prefix.backward(dkv)` does the same for either kind of prefix. So one loop serves
# both from here on.

# %%


def rates(lr):
    """Of all steps: they fall in a straight line."""
    return [optim.learning_rate(s, STEPS, lr, warmup=0, schedule="linear") for s in range(STEPS)]


def train(prefix, lr, first=0, last=STEPS, adam=None, loss_and_grad=loss_and_grad):
    """Steps first .. last - 1, in place. -> the loss of each batch, before its step."""
    adam, losses = adam or optim.AdamW(), []
    for s in range(first, last):
        value, dkv = loss_and_grad(model, prefix, batches[s])
        adam.step(prefix.parameters, prefix.backward(dkv), rates(lr)[s])
        losses.append(value)
    return losses


package = network_again()
theirs = train(package, 1e-3)
yours, left = train_network(model, network_again().parameters, batches, rates(1e-3), optim.AdamW())
print("the loop above", np.round(yours[::3], 3))
print("the package   ", np.round(theirs[::3], 3))
assert np.allclose(yours, theirs, atol=1e-3)

# %% [markdown]
# **Recap.** Forward of the network, loss, backward of the model, backward of the network, AdamW.
# What is left in the end is the $kv$ after the last step.
#
# ## Does it help?
#
# Flat and through the network, from the same keys and values, on the same batches, at seven rates
# each. (`fold` gives a flat prefix with the `kv` that the network computes.)
#
# **Predict.** Sketch the loss at the end against the rate, once for each. Which of them works over
# a wider range of rates, and which reaches the lower loss? And what happens if you measure the rate
# by how far $kv$ moves?

# %%
import matplotlib.pyplot as plt

flat_rates = np.array([1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1])
mlp_rates = flat_rates / 100
flat_ends, mlp_ends, went = [], [], []  # went: how far kv got, its root mean square


def distance(a, b):
    return float(np.sqrt(((a - b) ** 2).mean()))


for lr in flat_rates:
    flat = network.fold()
    flat_ends.append(np.mean(train(flat, lr)[-5:]))
    parameters = network_again().parameters
    losses, left = train_network(model, parameters, batches, rates(lr / 100), optim.AdamW())
    mlp_ends.append(np.mean(losses[-5:]))
    went.append((distance(flat.kv, network.kv), distance(left, network.kv)))
print(f"{'flat rate':>10}{'loss':>8}{'kv went':>9}   {'MLP rate':>10}{'loss':>8}{'kv went':>9}")
for i, lr in enumerate(flat_rates):
    flat, through = f"{flat_ends[i]:8.4f}{went[i][0]:9.3f}", f"{mlp_ends[i]:8.4f}{went[i][1]:9.3f}"
    print(f"{lr:10g}{flat}   {lr / 100:10g}{through}")
print(f"at the smallest rates, kv went {100 * went[0][1] / went[0][0]:.0f} times as far for a rate")

assert np.argmin(flat_ends) == np.argmin(mlp_ends) == 4, "the best rates are 100 apart"
for ends in (flat_ends, mlp_ends):
    assert ends[2] > 5 * ends[4], "a tenth of the best rate learns little"
    assert ends[6] > theirs[0] > 10 * ends[4], "ten times the best rate ends above the start"
apart = np.abs(np.divide(mlp_ends, flat_ends) - 1)[:3]
assert apart.max() < 0.05, "with a hundredth of the rate, the smaller rates end alike"

figure, panels = plt.subplots(2, 1, figsize=(5, 6.4), sharey=True, layout="constrained")
for axes, scale in zip(panels, (1, factor), strict=True):
    axes.loglog(flat_rates, flat_ends, "o", color="C0", label="flat")
    axes.loglog(mlp_rates * scale, mlp_ends, "s", color="C1", mfc="none", label="through the MLP")
    axes.set_ylabel("mean of the last 5 losses")
panels[0].set(title="Against the rate", xlabel="rate")
panels[1].set(title="Against what the rate does", xlabel="how far the first step moves kv")
panels[0].legend()
plt.show()

# %% [markdown]
# **Answer.** Each has a best rate, and neither works with a rate ten times as large or ten times as
# small. Measured by what they do, the two sets of points lie near each other, those of the network
# a little to the left.

# %% [markdown]
# This is one seed. `python -m tools.detour` repeats the sweep for five, with other batches and
# another start each, for runs of 16 and of 64 steps. The medians of the losses at the end, the
# network always with a hundredth of the rate:
#
# | rate | flat, 16 | MLP, 16 | flat, 64 | MLP, 64 |
# |---:|---:|---:|---:|---:|
# | 0.001 | 0.1207 | 0.1209 | 0.1057 | 0.1056 |
# | 0.003 | 0.1157 | 0.1159 | 0.0541 | 0.0478 |
# | 0.01 | 0.0832 | 0.0839 | 0.0034 | 0.0024 |
# | 0.03 | 0.0165 | 0.0163 | 0.0021 | 0.0019 |
# | 0.1 | 0.0071 | 0.0053 | 0.0019 | 0.0016 |
# | 0.3 | 0.0135 | 0.0106 | 0.0019 | 0.0019 |
# | 1 | 0.4910 | 0.1665 | 0.0719 | 0.1323 |
#
# Each seed at its best rate, 16 steps: flat 0.0071, 0.0072, 0.0030, 0.0066 and 0.0111, through the
# network 0.0080, 0.0053, 0.0027, 0.0040 and 0.0088. So the network ends lower in four seeds of
# five, and higher in the one that you have just seen. With 64 steps it ends lower in all five, by 6
# to 24 %.
#
# **On this task, a hundred times the rate does nearly all that the network does**: in 16 steps the
# loss falls from 0.12 to 0.007 and to 0.005 (medians at the best rates). The network is a little
# better there, with both budgets, at 58 times the parameters. Why a hundred, if the first step
# moves a number by 50 to 62 rates? That was the median; some numbers move much farther. The cell
# above measures the whole run by its root mean square, and finds 82.
#
# Does the network work over a wider range of rates? With 16 steps, a tenth of the best rate learns
# little and ten times the best rate ends above the start, both ways. With 64 steps, a factor of 30
# between the rates hardly matters, both ways.
#
# The paper found direct training unstable and a little worse, on a larger model, with harder tasks
# and thousands of steps. Our runs cannot decide that. Compare each at *its own* best rate: at one
# and the same rate, one of the two looks hopeless.
#
# **Recap.** Measured by what it moves, the network's rate is some 60 to 100 times as large. Any
# comparison of the two needs a sweep of rates for each, and several seeds.
#
# ## Slots that share a network
#
# One thing is really different: the slots are no longer independent of each other. They share
# $W_1$, $b_1$, $W_2$ and $b_2$. Suppose that only slot $j$ has a gradient, $dflat_j$. Take one
# small step of plain gradient descent, $W_2 \leftarrow W_2 - lr \, dW_2$ and
# $b_2 \leftarrow b_2 - lr \, db_2$. In a flat prefix the other slots stay where they are.
#
# ### Exercise 9.7: `carried_along`
#
# *10 minutes · difficulty 3 of 5*
#
# How far does each slot's row of $flat$ move, as a multiple of how far the row of slot $j$ moves?
# Count the last layer alone, $W_2$ and $b_2$. You need only `h`, $(P, hidden)$. `overlap` is the
# move of each slot before you divide; its unit does not matter.

# %%


def carried_along(h, j):
    overlap = ...  # (P,)
    return ...


grade(carried_along)

# %% [markdown]
# <details><summary>Hint 1</summary>
#
# Only row $j$ of $dflat$ is not 0. What are $dW_2$ and $db_2$ then, by the formulas above?
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# $dW_2 = h_j^\top dflat_j$ and $db_2 = dflat_j$. The row of slot $p$ moves by
# $-lr \, (h_p \, dW_2 + db_2)$.
#
# </details>

# %% jupyter={"source_hidden": true}


def carried_along(h, j):
    overlap = h @ h[j] + 1  # (P,)
    return overlap / overlap[j]


# %% [markdown]
# $h_p \, dW_2 + db_2 = (h_p \cdot h_j + 1) \, dflat_j$. All slots move along one direction, that of
# $dflat_j$, and those whose $h$ is like $h_j$ go far.
#
# **Predict.** In our network with ten slots and random embeddings: do the other slots go along by
# half of what slot 0 moves, by a tenth, or not at all? And the real step, which also changes $W_1$,
# $b_1$ and $E$?

# %%
one = np.zeros_like(kv)
one[..., 0, :] = rng.normal(size=one[..., 0, :].shape)  # (L, 2, NH, hs)
pushed = network_again()
for name, g in pushed.backward(one).items():
    pushed.parameters[name] -= 1e-5 * g
move = flatten_kv(pushed.kv - network.kv)  # (P, 2LC)
along = move @ move[0] / (move[0] @ move[0])  # (P,) each slot's move, in moves of slot 0
shared = carried_along(h, 0)  # (P,)
print("each slot, in moves of slot 0:\n", along.round(2))
print("by the last layer alone:\n", shared.round(2))
assert 0.05 < np.abs(along[1:]).max() < 0.2, "the others move, too"
assert np.abs(along - shared).max() < 0.05, "it is the last layer that carries them along"

# %% [markdown]
# **Answer.** Some by up to a tenth of it, in its direction or against it. The last layer alone
# explains nearly all of that.

# %% [markdown]
# **Recap.** Through a network, a gradient for one slot moves the others, too. Whether that helps
# depends on the task.
#
# ## Fold it away
#
# The model sees nothing but $kv$. Once training is over, the network has done its work: keep what
# it computes. `save` writes that into one file in PEFT's form, which is $flat$, and the network
# into another.
#
# ### Exercise 9.8: `folded_rows`
#
# *5 minutes · difficulty 2 of 5*
#
# `parameters` are those of either kind: the five arrays, or `kv` alone. Return $flat$, $(P, 2LC)$,
# as PEFT's file holds it. The number of heads is not given, and not needed.

# %%


def folded_rows(parameters):
    if "kv" in parameters:
        return ...
    return ...


grade(folded_rows)

# %% [markdown]
# <details><summary>Hint 1</summary>
#
# The network computes $flat$ on its way to $kv$.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# For `kv` you have written the function: exercise 9.2.
#
# </details>

# %% jupyter={"source_hidden": true}


def folded_rows(parameters):
    if "kv" in parameters:
        return flatten_kv(parameters["kv"])
    h = np.tanh(parameters["embedding"] @ parameters["weight_1"] + parameters["bias_1"])
    return h @ parameters["weight_2"] + parameters["bias_2"]


# %% [markdown]
# **Predict.** A float32 has 4 bytes. How large are the two files, and which of them will PEFT read?

# %%
import tempfile
from pathlib import Path

folded = network.fold()
logits = [model.logits(batches[0], prefix) for prefix in (network, folded)]  # (N, V) each
assert np.array_equal(*logits), "folding changes nothing that the model sees"

temporary = tempfile.TemporaryDirectory()
folder = Path(temporary.name)
network.save(folder, model)
for file in sorted(folder.iterdir()):
    print(f"{file.name:30}{file.stat().st_size:>10} bytes")
alone, again = Prefix.load(folder, model), MLPPrefix.load(folder, model)
print(alone.n_parameters, "numbers without the network,", again.n_parameters, "with it")
assert np.array_equal(alone.kv, folded.kv)
assert all(np.array_equal(again.parameters[name], network.parameters[name]) for name in NAMES)

from safetensors.numpy import load_file

for array in load_file(folder / "adapter_model.safetensors").values():
    assert np.abs(array - folded_rows(network.parameters)).max() < 1e-5, "PEFT's file holds flat"
    assert np.array_equal(array, folded_rows(folded.parameters))

# %% [markdown]
# **Answer.** `adapter_model.safetensors` is what PEFT reads and writes: the array $flat$
# $(P, 2LC)$, $4 \cdot 12800$ bytes and a short head. PEFT keeps that alone and throws the network
# away. `mlp.safetensors` beside it, 3 MB, is what training needs to go on.

# %% [markdown]
# **Recap.** Folding changes nothing that the model sees. Using the prefix needs $kv$ alone.
#
# ## What is kept to resume
#
# A run of 12 steps is stopped after 6 and goes on. Four people kept four different things: the
# network and AdamW's *moments*, its running means; the network alone; $kv$ alone, and the old rate;
# $kv$ alone, and a hundred times the rate.
#
# **Predict.** Which of them ends where a run ends that never stopped? Can the loss tell?

# %%
straight = network_again()
whole = train(straight, 1e-3, 0, 12)

first_half, adam = network_again(), optim.AdamW()
train(first_half, 1e-3, 0, 6, adam)
first_half.save(folder, model)
np.savez(folder / "m.npz", **adam.m)
np.savez(folder / "v.npz", **adam.v)

m, v = (dict(np.load(folder / name)) for name in ("m.npz", "v.npz"))  # AdamW's moments
ways = {
    "network and moments": (MLPPrefix.load(folder, model), optim.AdamW(t=6, m=m, v=v), 1e-3),
    "network alone": (MLPPrefix.load(folder, model), optim.AdamW(), 1e-3),
    "kv alone": (Prefix.load(folder, model), optim.AdamW(), 1e-3),
    "kv alone, rate x 100": (Prefix.load(folder, model), optim.AdamW(), 1e-1),
}
off, first_move, losses_of = {}, {}, {}
print(f"{'kept':21}{'first step':>11}{'last losses':>13}{'kv off by':>11}")
for way, (prefix, adam, lr) in ways.items():
    before = prefix.kv.copy()
    train(prefix, lr, 6, 7, adam)
    first_move[way] = float(np.median(np.abs(prefix.kv - before)))
    losses_of[way] = np.mean(train(prefix, lr, 7, 12, adam))
    off[way] = relative_error(prefix.kv, straight.kv)
    print(f"{way:21}{first_move[way]:11.5f}{losses_of[way]:13.4f}{off[way]:11.2g}")
temporary.cleanup()
assert off.pop("network and moments") == 0, "the same bytes"
assert min(off.values()) > 0.01, "each of the others is another run"
assert max(losses_of.values()) < 0.3 * whole[0], "and its losses look like those of a good run"
assert first_move["network alone"] > 1.5 * first_move["network and moments"]
assert first_move["kv alone"] < 0.2 * first_move["network and moments"]

# %% [markdown]
# **Answer.** Only the first is the same run, to the last bit. The losses of all four look like
# those of a run that learns.

# %% [markdown]
# New moments make the first steps longer than those of a run that never stopped. From $kv$ alone
# the network cannot be recovered: at the old rate the keys and values hardly move, at a larger one
# it is another training. `minprefix train` keeps all of it in `state.safetensors`: the parameters,
# both moments, and the number of steps, on which the rate and AdamW's two divisions depend. PEFT's
# files have no place for it.
#
# **Recap.** To go on with a run, keep the network, both moments and the number of steps. A loss
# does not tell you that one of them was lost.
#
# ## Break it yourself
#
# A backward that forgets the derivative of tanh.
#
# **Predict.** Which of the five gradients are wrong? And what does the loss do?

# %%
broken = planted("tanh-derivative-missing")
print(broken)

with caught() as error:  # take this line away, and the lesson stops here
    check_backward(broken.MLPPrefix)
print(error)

wrong = broken.MLPPrefix(network_again().parameters, NH)
losses = train(wrong, 1e-3, 0, 12, loss_and_grad=broken.loss_and_grad)
print("right ", np.round(whole[::2], 3))
print("broken", np.round(losses[::2], 3))
assert np.mean(losses[-3:]) < 0.5 * losses[0], "the loss falls all the same"

# %% [markdown]
# **Answer.** Those of $E$, $W_1$ and $b_1$, which lie below the tanh. The loss falls all the same.

# %% [markdown]
# The loss cannot tell. The last layer gets its right gradient, and here that is enough.
#
# Another bug: `unflatten` takes the keys of all layers first, then all values, where the format has
# key and value of each layer side by side. All shapes fit.

# %%
broken = planted("unflattened-values-first")
assert broken.MLPPrefix(small, n_head=NH_small).kv.shape == dkv_small.shape
with caught() as error:
    check_layout(broken.MLPPrefix)
print(error)

strange = broken.MLPPrefix(network_again().parameters, NH)
losses = train(strange, 1e-3, 0, 12, loss_and_grad=broken.loss_and_grad)
print("broken", np.round(losses[::2], 3))
assert np.mean(losses[-3:]) > 3 * np.mean(whole[-3:]), "this time the curve shows it, not where"

# %% [markdown]
# The broken package reads $flat$ in the wrong order, and its backward writes $dflat$ in the right
# one. So a number gets the gradient of another number, and the loss falls far more slowly. With the
# same bug
# in `flatten` as well, each number would get its own gradient again, and only PEFT's files would be
# wrong.
#
# ## Remember
#
# - The network: embedding, linear, tanh, linear. All five arrays are trained, and none is kept.
# - Reshape, then transpose: a wrong order has the right shape.
# - A rate moves parameters. Through the network the keys and values move some 60 times as far at
#   the first step.
# - Compare two methods each at its own best rate, over several seeds.
# - The slots share the network, so a gradient for one of them moves the others.
# - Folding changes nothing that the model sees.
# - To resume, keep network, moments and the number of steps.
#
# ## Exercises
#
# **1.** The paper starts from the keys and values of real words, and fits the network to them with
# 500 steps first. How do you start it there at once, exactly? Which parameters learn at the first
# step?
#
# <details><summary>Solution 1</summary>
#
# Each slot holds the keys and values of one token, so $flat$ differs from slot to slot and $b_2$
# does not. So let $W_2$ choose: if $hidden$ is at least $P$, solve $h W_2 = flat$ for $W_2$, and
# set $b_2 = 0$.
#
# ```python
# words = Prefix.text(model, "restaurant film person city")
# exactly = Prefix.mlp(model.config, words.length, hidden=512, seed=0)
# h = mlp_kv(exactly.parameters, NH)[1]  # (P, hidden)
# W_2 = np.linalg.pinv(h.astype(float)) @ flatten_kv(words.kv)  # (hidden, 2LC)
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
# trained, seen = count_numbers(P=5, C=1024, hidden=512, L=24)
# print(f"{trained:,} trained, {2 * trained:,} in the moments, {seen:,} left")
# ```
#
# 25.7 million, 51.5 million, and 245 760. Nearly all of it is $W_2$.
#
# </details>
#
# Next: [What a prefix can and cannot do](10_what_a_prefix_can_do.py).
