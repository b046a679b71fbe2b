# %% [markdown]
# # Training a prefix
#
# - **You will be able to** write the training loop and its optimizer yourself, choose a start, a
#   rate and a length for a prefix, and read from a curve what is wrong.
# - **You need** `loss_and_grad` of [lesson 1](01_what_a_prefix_is.py), and where its gradient comes
#   from: [lesson 5](05_the_gradient_of_a_prefix.py).
# - **Time** 60 minutes; it runs in 10 seconds.
# - **Difficulty** 2 of 3.
#
# ## The task and its loss
#
# After a bare record the tiny model mostly asks a question. We train a prefix that makes it
# *describe* the record, as in lesson 1. An example is a record, a new line, its description, and
# the token that ends a text. The targets begin behind the new line, at `loss_from`.

# %%
import numpy as np

from minprefix import GPT2, Batch, Prefix, generate, loss, loss_and_grad, optim
from minprefix.data.world import table_to_text

model = GPT2.load("tiny")
end = model.config.eos_token_id  # the token that ends a text


def encode(source, target):
    prompt = model.encode(source + "\n")
    return [*prompt, *model.encode(target), end], len(prompt)  # token ids, loss_from


def pack(examples):
    return Batch.pack([ids for ids, _ in examples], loss_from=[start for _, start in examples])


pairs = [encode(*pair) for pair in table_to_text(400, "train", seed=0)]
examples = [pair for pair in pairs if len(pair[0]) <= 60]  # short ones: quick
unseen = [encode(*pair) for pair in table_to_text(8, "valid", seed=0)]  # names never met
valid = pack(unseen)
later = pack([(ids, start + 1) for ids, start in unseen])  # less their first targets
print(f"{len(examples)} examples; the frozen model on 8 unseen names:")
print(f"{loss(model, valid):.3f} nats a target, {loss(model, later):.3f} less the first")

# %% [markdown]
# Most of a description is copied from its record, and the model copies well. What it lacks is the
# first token: one decision of about 3 nats, spread over some 40 targets. That is why all losses
# here are small numbers.
#
# The loss of a batch is the mean over its $M$ targets, and so is its gradient $dkv$, which has the
# shape of the prefix, $(L, 2, NH, P, hs)$: layers, keys or values, heads, slots, head size.
#
# $$\ell = \frac{1}{M} \sum_{m=1}^{M} \ell_m, \qquad
# dkv = \frac{1}{M} \sum_{m=1}^{M} \frac{\partial \ell_m}{\partial kv}$$
#
# A batch that is too large for the memory is cut into micro-batches, and lesson 3 says how to put
# their gradients together: add up sums, and divide by $M$ once. Here the same for a prefix. One
# description with 22 targets is the first part, three with 96 targets are the second.
#
# **Predict.** Someone takes the mean of each part, and then the mean of the two. How many times as
# much does a target of the short description count as one of a long?

# %%
chosen = sorted(examples, key=lambda example: len(example[0]) - example[1])
parts = [pack(chosen[:1]), pack(chosen[-3:])]
M = sum(len(part.targets) for part in parts)
prefix = Prefix.normal(model.config, length=10, std=0.02, seed=0)
whole = pack([chosen[0], *chosen[-3:]])
_, dkv = loss_and_grad(model, prefix, whole)  # (L, 2, NH, P, hs)
sums = [loss_and_grad(model, prefix, part, reduction="sum")[1] for part in parts]
means = [loss_and_grad(model, prefix, part)[1] for part in parts]


def relative_error(a, b):
    """The largest difference, as a part of the largest number: 1 means all wrong."""
    return np.abs(a - b).max() / np.abs(b).max()


short, long = (len(part.targets) for part in parts)
print(f"targets: {short} and {long}; one of the short counts {long / short:.1f} times as much")
print(f"sums, divided once   off by {relative_error(sum(sums) / M, dkv):.1e}")
print(f"mean of the means    off by {relative_error(sum(means) / 2, dkv):.2f}")
assert relative_error(sum(sums) / M, dkv) < 1e-3, "the sums add up to the whole batch"
assert relative_error(sum(means) / 2, dkv) > 0.1, "a mean of means is another gradient"

# %% [markdown]
# $1/22$ against $1/96$. A mean of means is right only if all parts have equally many targets.
#
# ## Where to start
#
# A prefix of zeros looks like the neutral choice. It is not: a key of zeros has the score 0, and
# $e^0 = 1$ is a share of the softmax like any other (exercise 1 of lesson 5). And its gradient?
# Take the formulas of lesson 5, for one head. With $dpattern_{ij} = dz_i \cdot values_j$ the sum in
# its step 2 is
#
# $$\begin{aligned} rowsum_i &= \sum_m pattern_{im} \, (dz_i \cdot values_m) \\
# &= dz_i \cdot z_i \end{aligned}$$
#
# For a slot $j$ whose key and value are 0, $dpattern_{ij}$ is 0, and what is left is
#
# $$\begin{aligned} dvalues_j &= \sum_i pattern_{ij} \, dz_i, \\
# dkeys_j &= -\sum_i pattern_{ij} \, (dz_i \cdot z_i) \, q_i / \sqrt{hs} \end{aligned}$$
#
# The value learns at once. The key learns only that it takes a share away: behind it there is
# nothing to look at yet. And $pattern_{ij}$ is the same for all slots, so all of them get *the
# same* gradient.
#
# Other starts: normal numbers around 0, with a deviation (`std`) of 0.02, 1 or 3; and the keys and
# values that words leave in the model, four words of no use here, or the cue `"describe\n"`, which
# works as a prompt.
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
for name, p in starts.items():
    first[name], dkvs[name] = loss_and_grad(model, p, valid)  # dkvs (L, 2, NH, P, hs)
    of_keys, of_values = (float(np.linalg.norm(dkvs[name][:, i])) for i in (0, 1))
    print(f"{name:18}{p.length:5}{first[name]:8.3f}{of_keys:19.5f}{of_values:11.5f}")

dkv = dkvs["zeros"]
assert first["zeros"] - first["no slots"] > 1e-3, "zeros are not the same as no prefix"
assert np.linalg.norm(dkv[:, 0]) < 0.4 * np.linalg.norm(dkv[:, 1]), "the keys learn little"
assert relative_error(dkv, dkv[..., :1, :]) < 1e-4, "all slots of a head have one gradient"
assert first["the cue"] < first["no slots"] < first["normal, std 1"] < 1 < first["normal, std 3"]

# %% [markdown]
# Normal numbers with a deviation of 3 are far worse: large random keys draw the attention, and what
# the tokens say is drowned. A small start disturbs little. Words are keys and values of a natural
# size, and the right words are an answer already.
#
# ## AdamW
#
# The gradient says in which direction each number should go. How far is the optimizer's business.
# AdamW keeps two running means for each number: $m$ of its gradients $g$, $v$ of their squares.
# (The field calls them so; this $v$ is no value of the attention.) At step $t = 1, 2, \dots$, entry
# by entry, where $p$ is what is trained, and $p$, $g$, $m$ and $v$ have one shape:
#
# $$\begin{aligned}
# m &\leftarrow \beta_1 m + (1 - \beta_1) \, g \\
# v &\leftarrow \beta_2 v + (1 - \beta_2) \, g^2 \\
# \hat m &= m / (1 - \beta_1^t), \quad \hat v = v / (1 - \beta_2^t) \\
# p &\leftarrow p - lr \left( \frac{\hat m}{\sqrt{\hat v} + eps} + decay \cdot p \right)
# \end{aligned}$$
#
# Usually $\beta_1 = 0.9$ and $\beta_2 = 0.999$: the means reach back over about 10 and 1000 steps.
# $eps$ keeps the division from $0/0$. $decay$, in code `weight_decay`, pulls every number towards
# 0; for a prefix it is mostly left at 0.
#
# Why divide by $1 - \beta^t$? Both means start at 0 and are too small at first. If every gradient
# were the same $g$, then after $t$ steps
#
# $$\begin{aligned} m &= (1 - \beta_1)(1 + \beta_1 + \dots + \beta_1^{t-1}) \, g \\
# &= (1 - \beta_1^t) \, g \end{aligned}$$
#
# The division gives back $g$, whatever $t$ is.

# %%


class AdamW:
    def __init__(self, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0):
        self.beta1, self.beta2, self.eps, self.weight_decay = beta1, beta2, eps, weight_decay
        self.t, self.m, self.v = 0, {}, {}

    def step(self, params, grads, lr):
        """Change `params`, arrays by name, in place."""
        self.t += 1
        for name, g in grads.items():
            p = params[name]  # m and v are like p
            self.m[name] = self.beta1 * self.m.get(name, 0) + (1 - self.beta1) * g
            self.v[name] = self.beta2 * self.v.get(name, 0) + (1 - self.beta2) * g * g
            m_hat = self.m[name] / (1 - self.beta1**self.t)
            v_hat = self.v[name] / (1 - self.beta2**self.t)
            p -= lr * (m_hat / (np.sqrt(v_hat) + self.eps) + self.weight_decay * p)


# %% [markdown]
# Three closed forms check it without any other implementation.
#
# - *A constant gradient.* $\hat m = g$ and $\sqrt{\hat v} = |g|$, so each step is
#   $-lr \cdot \mathrm{sign}(g)$.
# - *No gradient.* Only the decay is left: $p_t = p_0 \, (1 - lr \cdot decay)^t$.
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
ours, package = (walk(A, grads, start=1.0, weight_decay=0.1) for A in (AdamW, optim.AdamW))
assert relative_error(ours, package) < 1e-12, "the package does something else"

# %% [markdown]
# Remember this: **a step of AdamW moves every number by about $lr$**, be its gradient large or
# small. The rate is a length. (So it hardly matters whether a loss is the sum over 140 targets or
# their mean. In plain gradient descent, $p \leftarrow p - lr \cdot g$, the sum has 140 times the
# rate.)
#
# ## The rate over a run, and a limit
#
# In the first steps both means know little, so the rate may rise over some steps, the *warmup*.
# Then it falls in a straight line, so that the run settles. At step $s = 0, 1, \dots, steps - 1$:
#
# $$lr_s = lr \cdot \begin{cases} (s + 1) / warmup & s \lt warmup \\
# 1 - (s - warmup) / (steps - warmup) & \text{else} \end{cases}$$
#
# A gradient whose norm is above a limit is shortened to it:
# $g \leftarrow g \cdot \min(1, limit / \lVert g \rVert)$, with one norm over all
# parameters. Why, if AdamW cancels factors? It cancels what is *always* there. One gradient that is
# 100 times too large stays in $v$ for about $1 / (1 - \beta_2) = 1000$ steps.
#
# **Predict.** A number's gradient is 1 at each of 30 steps, but 100 at step 5. With a rate of 0.1,
# does it get about 1 far, or 3 (as without the outlier), or 13?

# %%


def rate(step, steps, lr, warmup):
    if step < warmup:
        return lr * (step + 1) / warmup
    return lr * (1 - (step - warmup) / (steps - warmup))


def clip(grads, limit):
    norm = np.sqrt(sum((g * g).sum() for g in grads.values()))
    for g in grads.values():
        g *= min(1, limit / norm)


def check_rate(rate):
    rates = [rate(step, 20, 1.0, 4) for step in range(20)]
    assert min(rates) > 0, f"step {int(np.argmin(rates))} has a rate of 0: it wastes its batch"
    assert np.allclose(rates[:6], [0.25, 0.5, 0.75, 1, 1, 15 / 16]), rates


check_rate(rate)
check_rate(lambda *given: optim.learning_rate(*given, "linear"))  # the package's

ours, package = ({"a": np.full(3, 4.0), "b": np.full(2, -1.0)} for _ in range(2))
clip(ours, 5.0)
optim.clip(package, optim.global_norm(package), 5.0)
assert all(np.allclose(ours[name], package[name]) for name in ours)
clip(ours, 10.0)  # no limit to them: they have a norm of 5
assert abs(np.sqrt(sum((g * g).sum() for g in ours.values())) - 5) < 1e-12

grads = np.ones((30, 1))
grads[5] = 100
limited = grads.copy()
for g in limited:
    clip({"g": g}, 1.0)
far, near = -walk(AdamW, limited)[0], -walk(AdamW, grads)[0]
print(f"with a limit of 1 it gets to {far:.2f}, without to {near:.2f}")
assert abs(far - 3) < 1e-4
assert near < 2

# %% [markdown]
# One outlier cost two thirds of the way, and it pointed in the right direction.
#
# ## The loop, with three rates
#
# All parts are there. Every run below sees the same batches, so that only what we change makes a
# difference.
#
# If a step moves a number by about $lr$, and the rate falls to 0 in a straight line, then no number
# gets much farther than $lr \cdot steps / 2$. Where should it get to? The keys and values of real
# tokens are a measure: they are what this model's attention was made for.

# %%
STEPS = 20
rng = np.random.default_rng(0)
draws = [rng.choice(len(examples), 4, replace=False) for _ in range(STEPS)]
batches = [pack([examples[i] for i in draw]) for draw in draws]


def train(prefix, lr, warmup=0, AdamW=AdamW):
    """Train `prefix` in place. -> the loss of each batch, before its step."""
    adam, losses = AdamW(), []
    for step, batch in enumerate(batches):
        value, dkv = loss_and_grad(model, prefix, batch)  # dkv (L, 2, NH, P, hs)
        grads = {"kv": dkv}
        clip(grads, 1.0)
        adam.step(prefix.parameters, grads, rate(step, STEPS, lr, warmup))
        losses.append(value)
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
# rate end in NaN?

# %%
import matplotlib.pyplot as plt

trained, curves = {}, {}
for lr, style in ((0.001, "o:"), (0.1, "s-"), (5.0, "^--")):
    trained[lr] = Prefix.normal(model.config, 10, std=0.02, seed=0)
    curves[lr] = train(trained[lr], lr)
    plt.plot(curves[lr], style, color="black", markersize=4, label=f"rate {lr}")
plt.axhline(np.log(1024), color="grey", linewidth=0.8, label="a blind guess")
plt.xticks(range(0, STEPS, 5))
plt.yscale("log")
plt.xlabel("step")
plt.ylabel("loss of the batch, nats")
plt.title("Too small, right, too large")
plt.legend(loc=(0.62, 0.55))
plt.show()

# %% [markdown]
# And what has become of the three prefixes? We count the numbers whose gradient is next to nothing,
# below $10^{-9}$, and let each prefix speak.

# %%
final, stuck = {}, {}
record = model.decode(unseen[0][0][: unseen[0][1]])  # with its new line
print(record[:46], "...")
for lr, p in trained.items():
    final[lr] = np.mean(curves[lr][-5:])
    stuck[lr] = (np.abs(loss_and_grad(model, p, valid)[1]) < 1e-9).mean()
    far = np.abs(p.kv - starts["normal, std 0.02"].kv).max() / (lr * STEPS / 2)
    assert far < 2, f"a number got {far:.1f} times as far as it should be able to"
    said = generate(model, [record], prefix=p, max_new_tokens=24)[0]
    print(f"rate {lr}: last losses {final[lr]:.4f}, numbers of size {size(p.kv):.2f},")
    print(f"    {stuck[lr]:.1%} of them without gradient; it says {said[:38]!r}")
assert final[0.1] < 0.3 * final[0.001], "the rate in the middle learns the task"
assert abs(final[0.001] - np.mean(curves[0.001][:5])) < 0.05, "the small one stays where it was"
assert max(curves[5.0][1:4]) > np.log(1024), "the large one first jumps above a blind guess"
assert 1 < final[5.0] < np.inf, "the large one is lost, and no NaN says so"
assert stuck[5.0] > 0.1 > 0.02 > stuck[0.1], "it cannot come back, either"

# %% [markdown]
# - *Too small* looks like a task that cannot be learned. Nothing is wrong: the prefix never left
#   its start.
# - *Too large* is not NaN, as steps of AdamW cannot explode. The first step takes the loss above
#   that of a blind guess, and it stays far above where it began. Where a softmax gives all to one
#   slot, its gradient is 0, and the numbers behind it have nothing left to come back by.
# - *Right* falls by a factor of ten or more, and soon.
#
# The reach also says why recipes differ. A run of 2000 steps gets as far with a rate of 0.001 as
# our 20 steps do with 0.1.
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


def report(name, p, losses):
    on_valid = loss(model, valid, p)
    print(
        f"{name:20}{p.n_parameters:7}{np.mean(losses[-5:]):13.4f}{on_valid:14.3f}{apart(p):13.4f}"
    )


print(f"{'':20}{'numbers':>7}{'last losses':>13}{'unseen names':>14}{'slots apart':>13}")
report("normal, std 0.02", trained[0.1], curves[0.1])
for name in ("zeros", "other words"):
    trained[name] = starts[name]
    report(name, trained[name], train(trained[name], 0.1))
assert apart(trained["zeros"]) < 0.01, "slots that start alike stay alike"
assert apart(trained[0.1]) > 0.05, "a little noise sets them free"

# %% [markdown]
# One. Ten slots of zeros are one slot with ten shares of the softmax, and remain it. Here nobody
# notices, since one slot is enough, as the next cell shows. On a task that needs ten you would have
# paid for ten and got one. Small random numbers cost nothing and break the tie. (On unseen names
# the loss stays higher whatever the start: even the cue, a prompt that works, has 0.02 there.)
#
# ## How many slots, in which layers
#
# **Predict.** One slot, forty slots, ten slots in the lowest layer alone, ten in the highest alone:
# which of them learns least in 20 steps?

# %%
print(f"{'':20}{'numbers':>7}{'last losses':>13}{'unseen names':>14}{'slots apart':>13}")
report("10 slots", trained[0.1], curves[0.1])
runs = {
    "1 slot": (1, None),
    "40 slots": (40, None),
    "10 in layer 0": (10, [0]),
    "10 in layer 3": (10, [3]),
}
for name, (length, layers) in runs.items():  # None: all layers
    p = Prefix.normal(model.config, length, std=0.02, seed=0, layers=layers)
    losses = train(p, 0.1)
    final[name] = np.mean(losses[-5:])
    report(name, p, losses)
assert final["1 slot"] < 0.03, "one slot can say: describe"
assert final["10 in layer 3"] > 1.5 * final["10 in layer 0"]

# %% [markdown]
# Ten in the highest layer. What a prefix says in layer 0 all layers above can work on; in the top
# layer it is late for that. One slot can carry one decision. More are no gift: they draw more
# attention from the start, and on unseen names forty are the worst of all. (The paper of lesson 6
# found 10 slots best to describe tables, and 200 to summarise.) Vary it on your own task.
#
# ## Break it yourself
#
# An AdamW without the two divisions.
#
# **Predict.** Which of the three closed forms notice? How long is the first step, in units of the
# rate, with $m = 0.1 \, g$ and $v = 0.001 \, g^2$?

# %%
from minprefix.lessons import caught, planted

broken = planted("bias-correction-missing")
print(broken)

with caught() as error:  # take this line away, and the lesson stops here
    check_constant_gradient(broken.optim.AdamW)
print(error)
check_decay(broken.optim.AdamW)  # no gradient: nothing to correct
check_scale(broken.optim.AdamW)  # 140 cancels in m / sqrt(v), too

# %% [markdown]
# Only the first. And the first step is $0.1 / \sqrt{0.001} = 3.16$ rates long. What would you have
# seen without this check?

# %%
print("right,  rate 0.1 ", np.round(curves[0.1][::3], 3))
for lr in (0.1, 0.05):
    fresh = Prefix.normal(model.config, 10, std=0.02, seed=0)
    losses = train(fresh, lr, AdamW=broken.optim.AdamW)
    print(f"broken, rate {lr:<4}", np.round(losses[::3], 3))
    assert np.mean(losses[-5:]) < 0.5 * losses[0], "the loss falls all the same"

# %% [markdown]
# A loss that falls. You would find smaller rates better, and wonder why the rates of others do not
# work for you.
#
# Here is another one that no curve shows: the first step of a warmup has the rate 0.

# %%
late = planted("warmup-from-0")
print(late)
with caught() as error:
    check_rate(lambda *given: late.optim.learning_rate(*given, "linear"))
print(error)

# %% [markdown]
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
# **2.** (Graded.) Write `run_training(problem)`, the whole loop. The problem has
#
# - `config` and `weights`, for `GPT2(config, weights)`;
# - `parameters`: for each prefix a dictionary of arrays, where it starts;
# - `steps`: each a list of micro-batches with `sequences`, `loss_from` and `prefix_of` (which
#   prefix each sequence sees), the three arguments of `Batch.pack`;
# - `lr`, `warmup`, `beta1`, `beta2`, `eps`, `weight_decay`, and `clip`: None, or the limit for the
#   norm over all parameters of all prefixes together.
#
# Return a dictionary with `step.0.loss`, the mean over all targets of the step, and
# `step.0.prefix.0.kv`, a copy as it is after the step; and so on for all steps, prefixes and
# parameters. With a list of prefixes `loss_and_grad` gives a list of gradients. Some prefixes come
# out of a small network, of which [lesson 9](09_through_an_mlp.py) tells. You need not know it:
# `start` makes either kind, `prefix.parameters` are its arrays by name, and `prefix.backward(dkv)`
# is the gradient of each of them (of a prefix like ours: `{"kv": dkv}`).

# %%
from minprefix import MLPPrefix
from minprefix.lessons import grade


def start(parameters, config):
    own = {name: a.copy() for name, a in parameters.items()}  # the problem stays as it is
    return Prefix(own["kv"]) if "kv" in own else MLPPrefix(own, config.n_head)


def run_training(problem):
    raise NotImplementedError  # yours


grade(run_training)

# %% [markdown]
# <details><summary>Solution 2</summary>
#
# ```python
# def run_training(problem):
#     p, found = problem, {}
#     frozen = GPT2(p.config, dict(p.weights))
#     prefixes = [start(parameters, p.config) for parameters in p.parameters]
#     adam = AdamW(p.beta1, p.beta2, p.eps, p.weight_decay)
#     for s, micro_batches in enumerate(p.steps):
#         parts = [Batch.pack(b.sequences, b.loss_from, b.prefix_of) for b in micro_batches]
#         M = sum(len(part.targets) for part in parts)
#         total, dkvs = 0.0, [0.0] * len(prefixes)
#         for part in parts:
#             value, more = loss_and_grad(frozen, prefixes, part, reduction="sum")
#             total += value
#             dkvs = [dkv + dpart for dkv, dpart in zip(dkvs, more)]
#         found[f"step.{s}.loss"] = total / M
#         params, grads = {}, {}
#         for i, (each, dkv) in enumerate(zip(prefixes, dkvs)):
#             params |= {f"{i}.{name}": a for name, a in each.parameters.items()}
#             grads |= {f"{i}.{name}": g for name, g in each.backward(dkv / M).items()}
#         if p.clip is not None:
#             clip(grads, p.clip)
#         adam.step(params, grads, rate(s, len(p.steps), p.lr, p.warmup))
#         found |= {f"step.{s}.prefix.{name}": a.copy() for name, a in params.items()}
#     return found
#
#
# grade(run_training)
# ```
#
# </details>
#
# Next: [The detour through an MLP](09_through_an_mlp.py).
