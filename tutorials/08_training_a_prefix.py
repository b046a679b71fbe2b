# %% [markdown]
# # Training a prefix
#
# - **You will be able to** write AdamW and the whole training loop yourself, choose a start, a
#   rate and a length for a prefix, and read from a curve what is wrong.
# - **You need** `loss_and_grad` of [lesson 1](01_what_a_prefix_is.py), and where its gradient comes
#   from: [lesson 5](05_the_gradient_of_a_prefix.py).
# - **Time** 140 minutes; it runs in 20 seconds.
# - **Difficulty** 3 of 5.
#
# ## Overview
#
# - The gradients of two micro-batches are put together. Sums, divided once, are off by $10^{-6}$;
#   the mean of the two means is off by 37 %.
# - A prefix of zeros is not neutral. All its slots get one gradient, and after 20 steps ten slots
#   are still one.
# - You write AdamW. Three results that follow from the formulas by hand check it, without a second
#   implementation.
# - A step of AdamW moves a number by *at most* about the rate: in our run by 1.00 of it at the
#   first step, and by 0.18 of it at the last (medians).
# - One outlier among 30 gradients costs two thirds of the way. A limit for the norm prevents that.
# - A rate that is too small looks like a task that cannot be learned. One that is too large does
#   not end in NaN: the loss stays far above its start, and 31 % of the numbers have no gradient.

# %%
import numpy as np

from minprefix import GPT2, Batch, MLPPrefix, Prefix, generate, loss, loss_and_grad, optim
from minprefix.data.world import table_to_text
from minprefix.lessons import caught, grade, planted

# %% [markdown]
# ## The task and its loss
#
# After a bare record the tiny model mostly asks a question. We train a prefix that makes it
# *describe* the record, as in lesson 1. An example is a record, a new line, its description, and
# the token that ends a text. The [targets](glossary.md#target) begin behind the new line, at
# `loss_from`.

# %%
model = GPT2.load("tiny")
end = model.config.eos_token_id  # the token that ends a text


def encode(source, target):
    prompt = model.encode(source + "\n")
    return [*prompt, *model.encode(target), end], len(prompt)  # token ids, loss_from


def pack(examples):
    return Batch.pack([ids for ids, _ in examples], loss_from=[first for _, first in examples])


pairs = [encode(*pair) for pair in table_to_text(400, "train", seed=0)]
examples = [pair for pair in pairs if len(pair[0]) <= 60]  # short ones: quick
unseen = [encode(*pair) for pair in table_to_text(8, "valid", seed=0)]  # names never met
valid = pack(unseen)
later = pack([(ids, first + 1) for ids, first in unseen])  # without their first targets
print(f"{len(examples)} examples; the frozen model on 8 unseen names:")
print(f"{loss(model, valid):.3f} nats a target, {loss(model, later):.3f} without the first")
targets = [len(ids) - first for ids, first in unseen]
decision = (loss(model, valid) * sum(targets) - loss(model, later) * (sum(targets) - 8)) / 8
print(f"{np.mean(targets):.0f} targets on average; the first alone: {decision:.1f} nats")
assert decision > 20 * loss(model, later), "the first target is what it lacks"

# %% [markdown]
# Most of a description is copied from its record, and the model copies well. It lacks the first
# token. This is one decision of about 3 nats, spread over some 40 targets. That is why all losses
# here are small numbers.
#
# The loss of a batch is the mean over its $M$ targets. So is its gradient $dkv$, which has the
# shape of the prefix, $(L, 2, NH, P, hs)$: layers, keys or values, heads, slots, head size.
#
# $$loss = \frac{1}{M} \sum_{targets} loss_{target}, \qquad
# dkv = \frac{1}{M} \sum_{targets} \frac{\partial \, loss_{target}}{\partial kv}$$
#
# A batch that is too large for the memory is cut into [micro-batches](glossary.md#micro-batch).
# `loss_and_grad` is called once for each. Its argument `reduction` decides whether it gives the sum
# over the targets of a micro-batch or their mean. We want the loss and the gradient of the whole
# batch.
#
# ### Exercise 8.1: `put_together`
#
# *8 minutes · difficulty 2 of 5*
#
# `losses` and `dkvs` are lists, with one entry for each micro-batch. `counts` are their numbers of
# targets. `reduction` is `"sum"` or `"mean"`: how each entry was computed. Return the loss and the
# gradient of the whole batch, both as the mean over all of its targets. `shares` are the factors of
# the micro-batches.

# %%


def put_together(losses, dkvs, counts, reduction):
    M = ...  # ()
    shares = ...  # (parts,) an array
    whole_loss = ...  # ()
    whole_dkv = ...  # (L, 2, NH, P, hs)
    return whole_loss, whole_dkv


grade(put_together)

# %% [markdown]
# <details><summary>Hint 1</summary>
#
# A micro-batch with many targets has to count more than one with few. Which of the two reductions
# has taken care of that already?
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# A sum is divided by $M$. A mean over $count$ targets is a sum divided by $count$: multiply it by
# $count$ first.
#
# </details>

# %% jupyter={"source_hidden": true}


def put_together(losses, dkvs, counts, reduction):
    M = sum(counts)  # ()
    shares = np.array(counts) / M if reduction == "mean" else np.ones(len(counts)) / M  # (parts,)
    whole_loss = sum(share * loss for share, loss in zip(shares, losses, strict=True))  # ()
    parts = [share * dkv for share, dkv in zip(shares, dkvs, strict=True)]
    whole_dkv = sum(parts)  # (L, 2, NH, P, hs)
    return whole_loss, whole_dkv


# %% [markdown]
# Now a real case. One description with 22 targets is the first micro-batch, three with 96 targets
# are the second.
#
# **Predict.** Someone takes the mean of each micro-batch, and then the mean of the two. How many
# times as much does a target of the short description count as one of a long?

# %%
chosen = sorted(examples, key=lambda example: len(example[0]) - example[1])
parts = [pack(chosen[:1]), pack(chosen[-3:])]
counts = [len(part.targets) for part in parts]
prefix = Prefix.normal(model.config, length=10, std=0.02, seed=0)
whole = pack([chosen[0], *chosen[-3:]])
_, dkv = loss_and_grad(model, prefix, whole)  # (L, 2, NH, P, hs)


def relative_error(a, b):
    """The largest difference, as a part of the largest number: 1 means all wrong."""
    return np.abs(a - b).max() / np.abs(b).max()


print(f"targets: {counts}; one of the short counts {counts[1] / counts[0]:.1f} times as much")
for reduction in ("sum", "mean"):
    both = [loss_and_grad(model, prefix, part, reduction=reduction) for part in parts]
    losses, dkvs = zip(*both, strict=True)
    _, together = put_together(losses, dkvs, counts, reduction)
    print(f"{reduction:5} put together    off by {relative_error(together, dkv):.1e}")
    assert relative_error(together, dkv) < 1e-3, "the micro-batches are the whole batch"
print(f"mean of the means     off by {relative_error(sum(dkvs) / 2, dkv):.2f}")
assert relative_error(sum(dkvs) / 2, dkv) > 0.1, "a mean of means is another gradient"

# %% [markdown]
# **Answer.** 4.4 times: the factors are $1/22$ against $1/96$. A mean of means is right only if all
# micro-batches have equally many targets.

# %% [markdown]
# **Recap.** Say with each loss whether it is a sum or a mean, and over which tokens. Add up sums,
# and divide by the number of all targets once.
#
# ## Which examples come next
#
# One pass over all $n$ examples is an [epoch](glossary.md#epoch). Each epoch has an order of its
# own, a permutation, and is cut into batches of `size` examples. Nothing is drawn twice in an
# epoch, and nothing is left out. If $n$ is no multiple of `size`, the last batch of each epoch is
# smaller.
#
# A run may be stopped after any step and go on tomorrow. So the batch of a step should depend only
# on the seed and on the number of the step. It should not depend on what was drawn before.
#
# ### Exercise 8.2: `batch_of_step`
#
# *8 minutes · difficulty 2 of 5*
#
# Return the indices of the examples in the batch of `step` (0, 1, 2, ...). `per_epoch` is the
# number of batches in an epoch, `i` counts them from 0 in each epoch. The order of an epoch is
# `np.random.default_rng([seed, epoch]).permutation(n)`.

# %%


def batch_of_step(step, n, size, seed):
    per_epoch = ...  # ()
    epoch = ...  # ()
    i = ...  # ()
    order = ...  # (n,)
    return ...


grade(batch_of_step)

# %% [markdown]
# <details><summary>Hint 1</summary>
#
# 10 examples in batches of 4 make three batches: 4, 4 and 2. So the division is rounded up.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# `-(-n // size)` rounds up. `step // per_epoch` is the epoch, `step % per_epoch` the place in it.
#
# </details>

# %% jupyter={"source_hidden": true}


def batch_of_step(step, n, size, seed):
    per_epoch = -(-n // size)  # ()
    epoch = step // per_epoch  # ()
    i = step % per_epoch  # ()
    order = np.random.default_rng([seed, epoch]).permutation(n)  # (n,)
    return order[i * size : (i + 1) * size]


# %%
STEPS = 20
indices = [batch_of_step(step, len(examples), 4, seed=0) for step in range(32)]
print([len(of_step) for of_step in indices])
assert sorted(np.concatenate(indices)) == list(range(len(examples))), "an epoch is every example"
batches = [pack([examples[i] for i in of_step]) for of_step in indices[:STEPS]]

# %% [markdown]
# **Recap.** A seed and the number of a step decide its batch. Then a run that was stopped goes on
# with the batches that it would have had. The runs below see the same 20 batches of 4, unless we
# say otherwise, so that only what we change makes a difference.
#
# ## Where to start
#
# A prefix whose [slots](glossary.md#slot) are zeros looks like the neutral choice. It is not: a key
# of zeros has the score 0, and $e^0 = 1$ is a share of the softmax like any other. And its
# gradient? Lesson 5 has the formulas, for one head with $T$ tokens and $P$ slots:
#
# $$\begin{aligned}
# dvalues_j &= \sum_i pattern_{ij} \, dz_i \\
# dpattern_{ij} &= dz_i \cdot values_j \\
# row\_sum_i &= \sum_j pattern_{ij} \, dpattern_{ij} \\
# dscores_{ij} &= pattern_{ij} \, (dpattern_{ij} - row\_sum_i) \\
# dkeys_j &= \sum_i dscores_{ij} \, q_i / \sqrt{hs}
# \end{aligned}$$
#
# ### Exercise 8.3: `zero_slot_backward`
#
# *10 minutes · difficulty 3 of 5*
#
# One slot has a key and a value of zeros. `share` is its column of the pattern, $(T)$: how much of
# each token's attention it gets. `dz`, `q` and `z` have the shape $(T, hs)$. Return `dkey` and
# `dvalue`, the gradients of this slot's key and value. You are not given the values of the other
# slots and tokens. The row sum can be had without them, from `z`.

# %%


def zero_slot_backward(share, dz, q, z):
    dvalue = ...  # (hs,)
    row_sum = ...  # (T,)
    dscores = ...  # (T,)
    dkey = ...  # (hs,)
    return dkey, dvalue


grade(zero_slot_backward)

# %% [markdown]
# <details><summary>Hint 1</summary>
#
# Put $dpattern_{ij}$ into the row sum, and take $dz_i$ out of the sum. What is
# $\sum_j pattern_{ij} \, values_j$?
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# It is $z_i$, so $row\_sum_i = dz_i \cdot z_i$. The slot's own $dpattern_i$ is
# $dz_i \cdot 0 = 0$.
#
# </details>

# %% jupyter={"source_hidden": true}


def zero_slot_backward(share, dz, q, z):
    dvalue = share @ dz  # (hs,)
    row_sum = (dz * z).sum(axis=1)  # (T,)
    dscores = -share * row_sum  # (T,)
    dkey = dscores @ q / np.sqrt(q.shape[1])  # (hs,)
    return dkey, dvalue


# %% [markdown]
# The value learns at once. The key learns only that its slot takes a share away, as there is
# nothing behind it to look at yet. And the share is the same for all slots of zeros, so all of them
# get *the same* gradient.
#
# Three other starts are normal numbers around 0, with a standard deviation (`std`) of 0.02, 1 or 3.
# Two more are the keys and values of words: four words that are of no use here, and the cue
# `"describe\n"`, which works as a prompt.
#
# **Predict.** Order these starts by their first loss, before any training, and "no slots" among
# them. Which is far worse than all others?

# %%
starts = {
    "no slots": Prefix.zero(model.config, 0),
    "zeros": Prefix.zero(model.config, 10),
    "normal, std 0.02": Prefix.normal(model.config, 10, std=0.02, seed=0),
    "normal, std 1": Prefix.normal(model.config, 10, std=1.0, seed=0),
    "normal, std 3": Prefix.normal(model.config, 10, std=3.0, seed=0),
    "other words": Prefix.text(model, "restaurant film person city"),
    "the cue": Prefix.text(model, "describe\n"),
}
first, dkvs = {}, {}
print(f"{'':18}{'slots':>5}{'loss':>8}   gradient of keys, of values (norms)")
for name, prefix in starts.items():
    first[name], dkvs[name] = loss_and_grad(model, prefix, valid)  # dkvs (L, 2, NH, P, hs)
    of_keys, of_values = (float(np.linalg.norm(dkvs[name][:, i])) for i in (0, 1))
    print(f"{name:18}{prefix.length:5}{first[name]:8.3f}{of_keys:19.5f}{of_values:11.5f}")

dkv = dkvs["zeros"]
assert first["zeros"] - first["no slots"] > 1e-3, "zeros are not the same as no prefix"
assert np.linalg.norm(dkv[:, 0]) < 0.4 * np.linalg.norm(dkv[:, 1]), "the keys learn little"
assert relative_error(dkv, dkv[..., :1, :]) < 1e-4, "all slots of a head have one gradient"
assert first["the cue"] < first["no slots"] < first["normal, std 1"] < 1 < first["normal, std 3"]

# %% [markdown]
# **Answer.** The cue, no slots, zeros and a deviation of 0.02, the other words, a deviation of 1;
# and a deviation of 3 is far worse: large random keys draw the attention, and little of it is left
# for the tokens. A small start disturbs little. The right words are an answer already.

# %% [markdown]
# **Recap.** Slots of zeros are not the same as no slots, and all slots of a head get one gradient.
# Small random numbers cost no more, and are not alike.
#
# ## AdamW
#
# The gradient says in which direction each number should go. The optimizer decides how far.
# [AdamW](glossary.md#adamw) keeps two running means for each number, its *moments*: $m$ of its
# gradients $g$, $v$ of their squares. (The field calls them so. In this lesson $v$ is a moment;
# what attention reads is called $values$.) Let $p$ be what is trained. $p$, $g$, $m$ and $v$ have
# one shape, and the formulas hold entry by entry. At step $t = 1, 2, \dots$:
#
# $$\begin{aligned}
# m &\leftarrow \beta_1 m + (1 - \beta_1) \, g \\
# v &\leftarrow \beta_2 v + (1 - \beta_2) \, g^2 \\
# \hat m &= m / (1 - \beta_1^t), \quad \hat v = v / (1 - \beta_2^t) \\
# p &\leftarrow p - lr \left( \frac{\hat m}{\sqrt{\hat v} + eps} + decay \cdot p \right)
# \end{aligned}$$
#
# Usually $\beta_1 = 0.9$ and $\beta_2 = 0.999$: the means reach back over about 10 and 1000 steps.
# $eps$ keeps the division from $0/0$. $decay$, in the package `weight_decay`, pulls every number
# towards 0. For a prefix it is mostly left at 0.
#
# Why divide by $1 - \beta^t$? Both means start at 0 and are too small at first. If every gradient
# were the same $g$, then after $t$ steps
#
# $$\begin{aligned} m &= (1 - \beta_1)(1 + \beta_1 + \dots + \beta_1^{t-1}) \, g \\
# &= (1 - \beta_1^t) \, g \end{aligned}$$
#
# The division gives back $g$, whatever $t$ is. It is called the *bias correction*.
#
# ### Exercise 8.4: `adamw_step`
#
# *12 minutes · difficulty 3 of 5*
#
# One step for one parameter. `p`, `g`, `m` and `v` are arrays of one shape, here written as $(n)$.
# `t` is the number of this step, from 1. Return the new `p`, `m` and `v`, and leave the arrays that
# you are given as they are. `direction` is the fraction in the last line of the formulas, and
# `pull` is what the decay adds to it.

# %%


def adamw_step(p, g, m, v, t, lr, beta1, beta2, eps, decay):
    new_m = ...  # (n,)
    new_v = ...  # (n,)
    m_hat = ...  # (n,)
    v_hat = ...  # (n,)
    direction = ...  # (n,)
    pull = ...  # (n,)
    new_p = ...  # (n,)
    return new_p, new_m, new_v


grade(adamw_step)

# %% [markdown]
# <details><summary>Hint 1</summary>
#
# Translate the four lines of the formulas in their order. On the right of each line stand the
# moments that the lines above have made.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# `new_m = beta1 * m + ...` makes a new array. `m *= beta1` would write into the caller's.
#
# </details>
#
# <details><summary>Hint 3</summary>
#
# $eps$ is added to the root, not under it. The decay is not part of the gradient: no moment holds
# any of it.
#
# </details>

# %% jupyter={"source_hidden": true}


def adamw_step(p, g, m, v, t, lr, beta1, beta2, eps, decay):
    new_m = beta1 * m + (1 - beta1) * g  # (n,)
    new_v = beta2 * v + (1 - beta2) * g * g  # (n,)
    m_hat = new_m / (1 - beta1**t)  # (n,)
    v_hat = new_v / (1 - beta2**t)  # (n,)
    direction = m_hat / (np.sqrt(v_hat) + eps)  # (n,)
    pull = decay * p  # (n,)
    new_p = p - lr * (direction + pull)  # (n,)
    return new_p, new_m, new_v


# %% [markdown]
# Beside yours: the W in AdamW stands for the decay outside of the gradient. In the older form $g$
# becomes $g + decay \cdot p$ before the first line. Then the division by $\sqrt{\hat v}$ also
# divides the decay, so that numbers with large gradients hardly decay.
#
# A run has many steps and many parameters: the five arrays of lesson 9's network, or several
# prefixes. Each has moments of its own. The number $t$ counts steps, not arrays.
#
# ### Exercise 8.5: `adamw_run`
#
# *12 minutes · difficulty 3 of 5*
#
# `start` is a dictionary of arrays by name. `steps` has one dictionary of gradients for each step,
# with the same names. `rates` has one rate for each step. Return a list: for each step a dictionary
# of the parameters as they are *after* it. Call your `adamw_step`, and leave `start` as it is.

# %%


def adamw_run(start, steps, rates, beta1, beta2, eps, decay):
    after = []
    params = ...
    return after


grade(adamw_run)

# %% [markdown]
# <details><summary>Hint 1</summary>
#
# Keep three dictionaries with the names of `start`: the parameters, `m` and `v`. The moments start
# at zeros.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# Two loops: `for t, (grads, lr) in enumerate(zip(steps, rates), start=1)`, and in it one over the
# names.
#
# </details>
#
# <details><summary>Hint 3</summary>
#
# If your list shows the same numbers for all steps, it holds one array many times. Append copies.
#
# </details>

# %% jupyter={"source_hidden": true}


def adamw_run(start, steps, rates, beta1, beta2, eps, decay):
    params = {name: a.copy() for name, a in start.items()}
    m = {name: np.zeros_like(a) for name, a in start.items()}
    v = {name: np.zeros_like(a) for name, a in start.items()}
    after = []
    for t, (grads, lr) in enumerate(zip(steps, rates, strict=True), start=1):
        for name, g in grads.items():
            p, new_m, new_v = adamw_step(
                params[name], g, m[name], v[name], t, lr, beta1, beta2, eps, decay
            )
            params[name][...], m[name][...], v[name][...] = p, new_m, new_v
        after.append({name: a.copy() for name, a in params.items()})
    return after


# %% [markdown]
# A training loop does not know its gradients in advance. So an object has to keep `t`, `m` and `v`
# between two calls. This is all that the class below adds to your function. It writes into the
# arrays of the prefix, in place.

# %%


class AdamW:
    def __init__(self, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0):
        self.settings = beta1, beta2, eps, weight_decay
        self.t, self.m, self.v = 0, {}, {}

    def step(self, params, grads, lr):
        """Change `params`, arrays by name, in place."""
        self.t += 1
        for name, g in grads.items():
            m, v = self.m.get(name, 0 * g), self.v.get(name, 0 * g)
            p, self.m[name], self.v[name] = adamw_step(
                params[name], g, m, v, self.t, lr, *self.settings
            )
            params[name][...] = p


# %% [markdown]
# There are gradients for which the formulas can be worked out by hand. Such a result is a *closed
# form*. Three of them check AdamW without any other implementation.
#
# - *A constant gradient.* $\hat m = g$ and $\sqrt{\hat v} = |g|$, so each step is
#   $-lr \cdot \mathrm{sign}(g)$.
# - *No gradient.* Only the decay is left: after $t$ steps $p$ is $(1 - lr \cdot decay)^t$ times its
#   start.
# - *All gradients times one number.* It cancels in $\hat m / \sqrt{\hat v}$.
#
# **Predict.** Three numbers start at 0. Their gradients are 1000, 1 and -0.001 at every step. Where
# are they after 10 steps with a rate of 0.1?

# %%


def walk(AdamW, grads, lr=0.1, start=0.0, **settings):
    """Where a parameter is after the gradients `grads`, one a step."""
    adam, params = AdamW(**settings), {"p": np.full(np.shape(grads[0]), start)}
    for g in grads:
        adam.step(params, {"p": np.array(g)}, lr)
    return params["p"]


def check_constant_gradient(AdamW):
    g = np.array([1000, 1, -0.001])
    for t in (1, 10):
        ratio = walk(AdamW, [g] * t) / (-0.1 * t * np.sign(g))
        assert np.abs(ratio - 1).max() < 1e-3, f"after {t} steps: {ratio.round(3)} of the way"


def check_decay(AdamW):
    p = walk(AdamW, [[0.0]] * 10, start=2.0, weight_decay=0.5)
    assert abs(p[0] - 2 * (1 - 0.1 * 0.5) ** 10) < 1e-12, "decay alone is a factor a step"


def check_scale(AdamW):
    grads = np.random.default_rng(0).normal(size=(20, 5))
    error = relative_error(walk(AdamW, 140 * grads), walk(AdamW, grads))
    assert error < 1e-4, f"140 times all gradients moves it differently, by {error:.2g}"


print(walk(AdamW, [[1000, 1, -0.001]] * 10))
for check in (check_constant_gradient, check_decay, check_scale):
    check(AdamW)

grads = np.random.default_rng(1).normal(size=(20, 5))
here, package = (walk(A, grads, start=1.0, weight_decay=0.1) for A in (AdamW, optim.AdamW))
assert relative_error(here, package) < 1e-12, "the package does something else"

# %% [markdown]
# **Answer.** At -1, -1 and 1: ten steps of 0.1, whether the gradient is large or small.

# %% [markdown]
# The third closed form has a use: it hardly matters to AdamW whether a loss is the sum over 140
# targets or their mean. In plain gradient descent, $p \leftarrow p - lr \cdot g$, the sum has 140
# times the rate.
#
# **Recap.** With a constant gradient a step of AdamW has the length $lr$, whatever the size of the
# gradient. With gradients that change, $\hat m$ is mostly smaller than $\sqrt{\hat v}$ and the step
# is shorter; below we measure by how much.
#
# ## The rate over a run, and a limit
#
# In the first steps both means know little, so the rate may rise over some steps, the *warmup*.
# Then it falls in a straight line, so that the run settles. At step $s = 0, 1, \dots, steps - 1$
# (so $s = t - 1$):
#
# $$lr_s = lr \cdot \begin{cases} (s + 1) / warmup & s \lt warmup \\
# 1 - (s - warmup) / (steps - warmup) & \text{else} \end{cases}$$
#
# ### Exercise 8.6: `rate_at`
#
# *4 minutes · difficulty 1 of 5*
#
# Return the rate of step `s`, counted from 0. `warmup` may be 0.

# %%


def rate_at(s, steps, lr, warmup):
    return ...


grade(rate_at)

# %% [markdown]
# <details><summary>Hint 1</summary>
#
# With `warmup = 4` the first rates are 1/4, 2/4, 3/4, 4/4 of `lr`, then again the whole of it.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# Two cases, `if s < warmup`. With `warmup = 0` the first never occurs, so nothing is divided by 0.
#
# </details>

# %% jupyter={"source_hidden": true}


def rate_at(s, steps, lr, warmup):
    if s < warmup:
        return lr * (s + 1) / warmup
    return lr * (1 - (s - warmup) / (steps - warmup))


# %% [markdown]
# No step has a rate of 0. The rate 0 would come at step $steps$, which does not take place.
#
# The second part is a limit. If the norm of all gradients together is above it, they are shortened
# until it is met. The norm is *one*, over all parameters of all prefixes:
#
# $$norm = \sqrt{\textstyle\sum_{names} \sum g^2}, \qquad
# g \leftarrow g \cdot \min(1, limit / norm) \quad \text{for every name}$$
#
# A norm for each prefix would change the direction of the whole step: a prefix with a large
# gradient would be shortened, and its neighbour would not.
#
# ### Exercise 8.7: `clip_together`
#
# *7 minutes · difficulty 2 of 5*
#
# `grads` is a dictionary of arrays by name, of any shapes. Return a new one with the gradients as
# they are after the limit. The gradients may all be 0.

# %%


def clip_together(grads, limit):
    norm = ...  # ()
    scale = ...  # ()
    return ...


grade(clip_together)

# %% [markdown]
# <details><summary>Hint 1</summary>
#
# Add the squares of all numbers of all arrays, and take one root at the end.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# $\min(1, limit / norm)$ is $limit / \max(limit, norm)$, and that never divides by 0.
#
# </details>

# %% jupyter={"source_hidden": true}


def clip_together(grads, limit):
    norm = np.sqrt(sum((g * g).sum() for g in grads.values()))  # ()
    scale = limit / max(limit, norm)  # ()
    return {name: scale * g for name, g in grads.items()}


# %% [markdown]
# Why a limit, if AdamW cancels factors? It cancels a factor that is *always* there. A single
# gradient that is 100 times too large adds 10 000 times the usual square to $v$. Of that,
# $0.999^{1000} = 37\,\%$ are left after 1000 steps.
#
# **Predict.** A number's gradient is 1 at each of 30 steps, but 100 at step 5. With a rate of 0.1,
# does the number move by about 1, by 3 (as without the outlier), or by 13?

# %%


def check_rate(rate):
    rates = [rate(s, 20, 1.0, 4) for s in range(20)]
    assert min(rates) > 0, f"step {int(np.argmin(rates))} has a rate of 0: it wastes its batch"
    assert np.allclose(rates[:6], [0.25, 0.5, 0.75, 1, 1, 15 / 16]), rates


check_rate(rate_at)
check_rate(lambda *given: optim.learning_rate(*given, "linear"))  # the package's

grads = np.ones((30, 1))
grads[5] = 100
limited = [clip_together({"p": g}, 1.0)["p"] for g in grads]
far, near = -walk(AdamW, limited)[0], -walk(AdamW, grads)[0]
print(f"with a limit of 1 it gets to {far:.2f}, without to {near:.2f}")
assert abs(far - 3) < 1e-4
assert near < 0.4 * far, "one outlier costs most of the way"
assert abs(0.999**1000 - 0.37) < 0.01

# %% [markdown]
# **Answer.** 1.07. One outlier cost two thirds of the way, although it pointed in the right
# direction.

# %% [markdown]
# **Recap.** The rate rises over the warmup, then falls in a straight line, and is never 0 at a step
# that takes place. The limit is for one norm over all parameters together.
#
# ## The loop, with three rates
#
# All parts are there. With a constant gradient a step has the length $lr_s$. As the rate falls to 0
# in a straight line, a number then moves by about $lr \cdot steps / 2$ in the whole run. How far
# should it move? The keys and values of real tokens are a measure: this model's attention was made
# for them.

# %%


def train(prefix, lr, warmup=0, AdamW=AdamW, batches=batches, watch=None):
    """Train `prefix` in place. -> the loss of each batch, before its step. `watch` is called after
    each step with the gradient and with how far each number went, in units of the step's rate."""
    adam, losses = AdamW(), []
    for s, batch in enumerate(batches):
        value, dkv = loss_and_grad(model, prefix, batch)  # dkv (L, 2, NH, P, hs)
        lr_s, before = rate_at(s, len(batches), lr, warmup), prefix.kv.copy()
        adam.step(prefix.parameters, clip_together({"kv": dkv}, 1.0), lr_s)
        losses.append(value)
        if watch is not None:
            watch(dkv, np.abs(prefix.kv - before) / lr_s)
    return losses


def size(kv):
    """The root mean square of its numbers."""
    return float(np.sqrt((kv**2).mean()))


natural = model.keys_values(examples[0][0])  # (L, 2, NH, T, hs)
print(f"real tokens: keys {size(natural[:, 0]):.2f}, values {size(natural[:, 1]):.2f}")
for lr in (0.001, 0.1, 5.0):
    print(f"rate {lr:5}: within reach {lr * STEPS / 2:.2f}")

# %% [markdown]
# **Predict.** Sketch the three curves of the loss. (A blind guess has 6.9 nats.) Will the largest
# rate end in NaN? And how far does a step really go, compared with its rate: at the first step, and
# at the last?

# %%
import matplotlib.pyplot as plt

trained, curves, gradients, moved = {}, {}, {}, {}
for lr, style in ((0.001, "o:"), (0.1, "s-"), (5.0, "^--")):
    gradients[lr], moved[lr] = [], []

    def watch(dkv, went, lr=lr):
        gradients[lr].append(dkv)
        moved[lr].append(went)

    trained[lr] = Prefix.normal(model.config, 10, std=0.02, seed=0)
    curves[lr] = train(trained[lr], lr, watch=watch)
    plt.plot(curves[lr], style, color="C0", markersize=4, label=f"rate {lr}")
plt.axhline(np.log(1024), color="grey", linewidth=0.8, label="a blind guess")
plt.xticks(range(0, STEPS, 5))
plt.yscale("log")
plt.xlabel("step")
plt.ylabel("loss of the batch, nats")
plt.title("Too small, right, too large")
plt.legend(loc=(0.62, 0.5))
plt.show()

print("rate 0.1, how far a number moves, in units of the step's rate")
for s in (0, 4, 10, 19):
    print(f"step {s:2}: median {np.median(moved[0.1][s]):.2f}, at most {moved[0.1][s].max():.2f}")
medians = [float(np.median(went)) for went in moved[0.1]]
assert abs(medians[0] - 1) < 0.01, "the first step: m_hat is g, and the root of v_hat is |g|"
assert medians[0] > medians[4] > medians[10] > medians[19], "later steps are shorter"
assert max(went.max() for went in moved[0.1]) < 1.1, "none is longer, in this run"


def cosine(a, b):
    return float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()))


turns = [cosine(a, b) for a, b in zip(gradients[0.1][:-1], gradients[0.1][1:], strict=True)]
print(f"the cosine of a gradient and the next: {min(turns):.2f} to {max(turns):.2f}")
assert max(turns) < 0.9, "a gradient is not like the one before"

# %% [markdown]
# **Answer.** The three curves stay level, fall, and jump; no NaN. **A step of AdamW moves a number
# by at most about its rate**: by all of it at the first step, by less later. The gradients change
# their direction from batch to batch. So the mean $\hat m$ is smaller than the root of the mean
# square. (It can be longer than the rate, too: exercise 2.)

# %% [markdown]
# And what has become of the three prefixes? We count the numbers whose gradient is next to nothing,
# below $10^{-9}$, and let each prefix speak.

# %%
final, stuck = {}, {}
record = model.decode(unseen[0][0][: unseen[0][1]])  # with its new line
print(record[:46], "...")
for lr, prefix in trained.items():
    final[lr] = np.mean(curves[lr][-5:])
    stuck[lr] = (np.abs(loss_and_grad(model, prefix, valid)[1]) < 1e-9).mean()
    far = np.abs(prefix.kv - starts["normal, std 0.02"].kv).max() / (lr * STEPS / 2)
    assert far < 1.2, f"a number got {far:.1f} times as far as it should be able to"
    said = generate(model, [record], prefix=prefix, max_new_tokens=24)[0]
    print(f"rate {lr}: last losses {final[lr]:.4f}, numbers of size {size(prefix.kv):.2f},")
    print(f"    {stuck[lr]:.1%} of them without gradient; it says {said[:38]!r}")
assert final[0.1] < 0.1 * curves[0.1][0], "the rate in the middle learns the task"
assert abs(final[0.001] - np.mean(curves[0.001][:5])) < 0.05, "the small one stays where it was"
assert max(curves[5.0][1:4]) > np.log(1024), "the large one first jumps above a blind guess"
assert 1 < final[5.0] < np.inf, "the large one is lost, and no NaN says so"
assert stuck[5.0] > 0.1 > 0.02 > stuck[0.1], "it cannot come back, either"

# %% [markdown]
# - *Too small* looks like a task that cannot be learned. Nothing is wrong: the prefix hardly left
#   its start.
# - *Too large* is not NaN, as steps of AdamW cannot explode. The first step takes the loss above
#   that of a blind guess, and it stays far above where it began. Where a softmax gives all to one
#   slot, its gradient is 0, and no gradient is left to bring those numbers back.
# - *Right* falls by a factor of ten or more.
#
# The reach also says why recipes differ. By $lr \cdot steps / 2$, a run of 2000 steps with a rate
# of 0.001 gets as far as our 20 steps with 0.1.
#
# **Recap.** Before you say that a task cannot be learned, look how far the prefix has moved, and
# how many of its numbers have a gradient.
#
# ## The starts again, trained
#
# All slots of a prefix of zeros had one gradient at the first step.
#
# **Predict.** After 20 steps from zeros: how many different slots does a head have?

# %%


def apart(prefix):
    """How far the slots of a head lie from its slot 0."""
    return size(prefix.kv - prefix.kv[..., :1, :])


def report(name, prefix, losses):
    of_last, of_unseen = np.mean(losses[-5:]), loss(model, valid, prefix)
    numbers = f"{prefix.n_parameters:7}{of_last:13.4f}{of_unseen:14.3f}{apart(prefix):13.4f}"
    print(f"{name:20}{numbers}")
    return of_last, of_unseen


HEADER = f"{'':20}{'numbers':>7}{'last losses':>13}{'unseen names':>14}{'slots apart':>13}"
print(HEADER)
report("normal, std 0.02", trained[0.1], curves[0.1])
for name in ("zeros", "other words"):
    trained[name] = starts[name]
    report(name, trained[name], train(trained[name], 0.1))
print(f"the cue, not trained: {first['the cue']:.3f} on unseen names")
assert apart(trained["zeros"]) < 0.01, "slots that start alike stay alike"
assert apart(trained[0.1]) > 0.05, "a little noise sets them free"

# %% [markdown]
# **Answer.** One. Ten slots of zeros act as one slot with ten shares of the softmax, and training
# does not change that.

# %% [markdown]
# Here nobody notices, since one slot is enough, as the next cell shows. On a task that needs ten
# you would have paid for ten and got one. (On unseen names the loss stays higher than on the last
# batches, whatever the start: even the cue, a prompt that works, has 0.02 there.)
#
# **Recap.** Small random numbers break the tie between the slots, and cost no more than zeros.
#
# ## How many slots, in which layers
#
# Two runs for each line now: with another seed, the start and the order of the batches are others.
#
# **Predict.** One slot, forty slots, ten slots in the lowest layer alone, ten in the highest alone:
# which of them learns least in 20 steps?

# %%
print(HEADER)
runs = {
    "10 slots": (10, None),
    "1 slot": (1, None),
    "40 slots": (40, None),
    "10 in layer 0": (10, [0]),
    "10 in layer 3": (10, [3]),
}
ends = {name: [] for name in runs}  # of each run: its last losses, and the loss on unseen names
for seed in (0, 1):
    order = [batch_of_step(s, len(examples), 4, seed) for s in range(STEPS)]
    drawn = [pack([examples[i] for i in of_step]) for of_step in order]
    for name, (length, layers) in runs.items():  # None: all layers
        prefix = Prefix.normal(model.config, length, std=0.02, seed=seed, layers=layers)
        ends[name].append(report(f"{name}, seed {seed}", prefix, train(prefix, 0.1, batches=drawn)))
for one_seed in zip(*ends.values(), strict=True):
    last, of_unseen = (
        dict(zip(runs, values, strict=True)) for values in zip(*one_seed, strict=True)
    )
    assert last["1 slot"] < 0.03, "one slot can say: describe"
    assert max(last, key=last.get) == "10 in layer 3"
    assert of_unseen["1 slot"] < of_unseen["10 slots"] < of_unseen["40 slots"]

# %% [markdown]
# **Answer.** Ten in the highest layer, with both seeds. All layers above layer 0 can work on what
# the prefix says there. In the top layer there is none above it.

# %% [markdown]
# One slot can carry one decision. More slots do not help on this task: on unseen names one slot is
# best and forty are worse than ten, with both seeds. (Li & Liang, 2021, found 10 slots best to
# describe tables, and 200 to summarise.) Vary the length on your own task.
#
# **Recap.** The right length depends on the task. Here one slot is enough, and a prefix in the top
# layer alone learns least.
#
# ## The whole loop
#
# You have written all the parts: `put_together`, `adamw_step`, `rate_at`, `clip_together`. Now they
# meet, for several prefixes and micro-batches at once. The suite grades this function as it grades
# any other implementation of the training.
#
# ### Exercise 8.8: `run_training`
#
# *40 minutes · difficulty 5 of 5*
#
# `run_training(problem)` trains one or more prefixes. The problem has
#
# - `config` and `weights`, for `GPT2(config, weights)`;
# - `parameters`: for each prefix a dictionary of arrays, where it starts;
# - `steps`: each a list of micro-batches. A micro-batch `b` has `b.sequences`, `b.loss_from` and
#   `b.prefix_of` (which prefix each sequence sees). The call
#   `Batch.pack(b.sequences, b.loss_from, b.prefix_of)` makes a batch of it, and
#   `len(batch.targets)` is its number of targets;
# - `lr`, `warmup`, `beta1`, `beta2`, `eps`, `weight_decay`, and `clip`: None, or the limit for the
#   norm over all parameters of all prefixes together.
#
# Return a dictionary with `step.0.loss`, the mean over all targets of the step, and
# `step.0.prefix.0.kv`, a copy as it is after the step; and so on for all steps, prefixes and
# parameters. Keep the gradients in one dictionary `grads`, under the names `0.kv`, `1.embedding`
# and so on. With a list of prefixes `loss_and_grad` gives a list of gradients.
#
# Some prefixes come out of a small network, which [lesson 9](09_through_an_mlp.py) explains. You
# need not know it: `prefix_from` makes either kind, `prefix.parameters` are its arrays by name, and
# `prefix.backward(dkv)` is the gradient of each of them (of a prefix like ours: `{"kv": dkv}`).

# %%


def prefix_from(parameters, config):
    own = {name: a.copy() for name, a in parameters.items()}  # the problem stays as it is
    return Prefix(own["kv"]) if "kv" in own else MLPPrefix(own, config.n_head)


def run_training(problem):
    found = {}
    for s, micro_batches in enumerate(problem.steps):
        counts = ...  # (parts,)
        losses = ...  # (parts,)
        grads = ...  # (names,) a dictionary: "0.kv", ..., after the limit
        lr_s = ...  # ()
    return found


grade(run_training)

# %% [markdown]
# <details><summary>Hint 1</summary>
#
# Give every array of every prefix one name, `"0.kv"`, `"1.embedding"`, ... Then one dictionary
# holds all parameters, one all gradients, and the limit is over all of them by itself.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# For each step: pack the micro-batches; call `loss_and_grad(model, prefixes, part,
# reduction="sum")` for each; put loss and gradients together; `backward`; clip; rate; a step for
# each name; copies.
#
# </details>
#
# <details><summary>Hint 3</summary>
#
# Write the new numbers into the prefix's own array, `params[name][...] = new_p`. With
# `params[name] = new_p` the prefix would never change.
#
# </details>

# %% jupyter={"source_hidden": true}


def run_training(problem):
    frozen, found = GPT2(problem.config, dict(problem.weights)), {}
    prefixes = [prefix_from(own, problem.config) for own in problem.parameters]
    params = {}
    for i, prefix in enumerate(prefixes):
        params |= {f"{i}.{name}": a for name, a in prefix.parameters.items()}
    m = {name: np.zeros_like(a) for name, a in params.items()}
    v = {name: np.zeros_like(a) for name, a in params.items()}
    settings = problem.beta1, problem.beta2, problem.eps, problem.weight_decay
    for s, micro_batches in enumerate(problem.steps):
        parts = [Batch.pack(b.sequences, b.loss_from, b.prefix_of) for b in micro_batches]
        counts = [len(part.targets) for part in parts]  # (parts,)
        both = [loss_and_grad(frozen, prefixes, part, reduction="sum") for part in parts]
        losses, dkvs = zip(*both, strict=True)
        grads = {}
        for i, prefix in enumerate(prefixes):
            loss, dkv = put_together(losses, [of_part[i] for of_part in dkvs], counts, "sum")
            grads |= {f"{i}.{name}": g for name, g in prefix.backward(dkv).items()}
        if problem.clip is not None:
            grads = clip_together(grads, problem.clip)  # (names,)
        lr_s = rate_at(s, len(problem.steps), problem.lr, problem.warmup)  # ()
        for name, g in grads.items():
            p, m[name], v[name] = adamw_step(
                params[name], g, m[name], v[name], s + 1, lr_s, *settings
            )
            params[name][...] = p
            found[f"step.{s}.prefix.{name}"] = p.copy()
        found[f"step.{s}.loss"] = loss
    return found


# %% [markdown]
# **Recap.** One step: micro-batches as sums, one division, one norm, one rate, one step of AdamW
# for each array, in place. What you keep for later has to be a copy.
#
# ## Break it yourself
#
# An AdamW without the two divisions.
#
# **Predict.** Which of the three closed forms notice? How long is the first step, in units of the
# rate, with $m = 0.1 \, g$ and $v = 0.001 \, g^2$?

# %%
broken = planted("bias-correction-missing")
print(broken)

with caught() as error:  # take this line away, and the lesson stops here
    check_constant_gradient(broken.optim.AdamW)
print(error)
check_decay(broken.optim.AdamW)  # no gradient: nothing to correct
check_scale(broken.optim.AdamW)  # 140 cancels in m / sqrt(v), too

# %% [markdown]
# **Answer.** Only the first. And the first step is $0.1 / \sqrt{0.001} = 3.16$ rates long.

# %% [markdown]
# What would you have seen without this check?

# %%
print("right,  rate 0.1 ", np.round(curves[0.1][::3], 3))
for lr in (0.1, 0.05):
    fresh = Prefix.normal(model.config, 10, std=0.02, seed=0)
    losses = train(fresh, lr, AdamW=broken.optim.AdamW)
    print(f"broken, rate {lr:<4}", np.round(losses[::3], 3))
    assert np.mean(losses[-5:]) < 0.5 * losses[0], "the loss falls all the same"

# %% [markdown]
# You would have seen a loss that falls. You would wonder why the rates of others do not work for
# you.
#
# Here is another one that no curve shows: the first step of a warmup has the rate 0.

# %%
late = planted("warmup-from-0")
print(late)
with caught() as error:
    check_rate(lambda *given: late.optim.learning_rate(*given, "linear"))
print(error)

# %% [markdown]
# ## Remember
#
# - Gradients of micro-batches: add up sums, divide by the number of all targets once.
# - The batch of a step follows from the seed and the step alone.
# - Start with small random numbers. Slots of zeros are alike and stay alike.
# - AdamW: two running means, two corrections, $eps$ outside of the root, decay outside of the
#   gradient.
# - A step moves a number by at most about the rate, and mostly by less.
# - The limit is for one norm over all parameters of all prefixes.
# - A loss that stays up: too small a rate, or too large? Look how far the prefix has moved, and how
#   much of its gradient is 0.
# - A falling loss is no proof of a right optimizer. A closed form is one.
#
# ## Exercises
#
# **1.** Without the corrections, at which step is a step of AdamW longest, if the gradient is
# constant? How long is it, in units of the rate? And when is the error gone?
#
# <details><summary>Solution 1</summary>
#
# For $g = 1$ it is $m / \sqrt{v} = (1 - \beta_1^t) / \sqrt{1 - \beta_2^t}$.
#
# ```python
# t = np.arange(1, 10001)
# length = (1 - 0.9**t) / np.sqrt(1 - 0.999**t)
# print("step", t[length.argmax()], "is", length.max().round(2), "rates long")
# print("step 1000:", length[999].round(2), " step 10000:", length[-1].round(4))
# assert t[length.argmax()] == 12
# ```
#
# It grows from 3.16 to 6.57 at step 12, and is still 1.26 at step 1000. Some thousand steps later
# the error is gone. A short run never gets there.
#
# </details>
#
# **2.** "At most about the rate" held in our run. With the corrections, which gradients make one
# step of AdamW longer than its rate? How long can it get?
#
# <details><summary>Solution 2</summary>
#
# A number whose gradient was 0 for a long time and then is $g$. With $t$ large both corrections are
# nearly 1, and $m / \sqrt{v} = (1 - \beta_1) \, g / \sqrt{(1 - \beta_2) \, g^2}$, which is
# $0.1 / 0.0316 = 3.16$.
#
# ```python
# for zeros in (0, 10, 100, 1000, 10000):
#     grads = [np.zeros(1)] * zeros + [np.ones(1)]
#     length = -walk(AdamW, grads, lr=1.0)[0]
#     print(f"{zeros:5} steps without gradient, then one of length {length:.2f}")
# assert 3.1 < length < 3.17
# ```
#
# In a long run a number that mostly has no gradient can be moved by three rates at once.
#
# </details>
#
# Next: [The detour through an MLP](09_through_an_mlp.py).
