# %% [markdown]
# # Softmax and cross-entropy, and why an upstream of ones proves nothing
#
# - **You will be able to** turn scores into probabilities, a loss and its gradient, none of which
#   overflows; keep apart a sum, a mean and a mean of means; and say which tests of a backward
#   would accept `return 0`.
# - **You need** the chain rule, an upstream gradient, finite differences and the complex step:
#   [lesson 2](02_backward_by_hand.py).
# - **Time** 50 minutes; it runs in 2 seconds.
# - **Difficulty** 2 of 3.
#
# ## Softmax
#
# For each token that it is asked to predict, the model ends in a row of scores, one for each of the
# $V$ tokens of its vocabulary. They are called *logits*: any real numbers, the larger the likelier.
# For $M$ predictions, $logits$ has the shape $(M, V)$. Softmax makes probabilities of each row $m$:
#
# $$probs_{mj} = \frac{e^{logits_{mj}}}{\sum_n e^{logits_{mn}}}$$
#
# The sum runs over the vocabulary. All entries are positive, and each row sums to 1. Add one number
# $c$ to all logits of a row: above and below the line there is a factor $e^c$ more, and it cancels.
# Only the differences within a row matter.

# %%
import numpy as np

rng = np.random.default_rng(0)
M, V = 4, 6
logits = rng.normal(size=(M, V))  # (M, V)


def softmax_as_written(logits):
    e = np.exp(logits)  # (M, V)
    return e / e.sum(axis=-1, keepdims=True)  # (M, V)


# %% [markdown]
# Take one row, then the same row with 1000 added, then with 1000 taken off. On paper, the softmax
# is the same three times.
#
# **Predict.** What does this code give for the second row, and what for the third?

# %%
row = np.array([1.0, 2.0, 3.0])
shifted_rows = np.stack([row, row + 1000, row - 1000])  # (3, 3)
with np.errstate(all="ignore"):  # NumPy would warn; we look at the numbers instead
    as_written = softmax_as_written(shifted_rows)
print(as_written)
assert np.isnan(as_written[1:]).all()

# %% [markdown]
# $e^{1000}$ is larger than the largest float64, so it becomes infinity, and infinity divided by
# infinity is NaN, not a number. $e^{-1000}$ becomes 0, and 0 divided by 0 is NaN as well. The
# largest exponent that works is 709 for float64 and 88 for float32. The cure is free: since a
# number taken off a row cancels, take off the row's largest. Then the largest exponent is 0,
# nothing overflows, and the sum is at least 1.


# %%
def softmax(logits):
    top = logits.real.max(axis=-1, keepdims=True)  # (M, 1), of each row its own
    e = np.exp(logits - top)  # (M, V), at most 1
    return e / e.sum(axis=-1, keepdims=True)  # (M, V)


probs = softmax(logits)  # (M, V)
print(softmax(shifted_rows).round(4))
assert np.abs(probs.sum(axis=1) - 1).max() < 1e-14, "each row has to sum to 1"
assert np.abs(probs - softmax_as_written(logits)).max() < 1e-14, "they differ"
assert np.abs(softmax(shifted_rows) - softmax(row)).max() < 1e-12, "a shift cancels"

# %% [markdown]
# (`.real`, because the complex step will come through here, and complex numbers have no largest.
# The maximum is a constant to us: it cancels, so it has no derivative.)
#
# ## The gradient of one row
#
# Rows know nothing of each other, so look at one: $probs$ and $logits$ have $V$ entries.
#
# $$probs_j = \frac{e^{logits_j}}{total}, \quad total = \sum_i e^{logits_i}$$
#
# Move one logit, number $n$. What happens to $probs_j$?
#
# - $total$ has the derivative $e^{logits_n}$. It stands below the line, so $probs_j$ changes by
#   $-e^{logits_j} \, e^{logits_n} / total^2$, that is by $-probs_j \, probs_n$, whichever $j$ is.
# - If $j$ is $n$ itself, the number above the line grows, too: that adds $probs_j$.
#
# All together a matrix of shape $(V, V)$, the Jacobian, with $[j{=}n]$ for 1 where $j = n$, else 0:
#
# $$J_{jn} = \frac{\partial probs_j}{\partial logits_n} = probs_j \, ([j{=}n] - probs_n)$$
#
# We check it with the complex step of lesson 2.
#
# **Predict.** How many of the 36 entries of $J$ are positive? What does each of its rows sum to?


# %%
def jacobian(probs):
    return np.diag(probs) - np.outer(probs, probs)  # (V, V)


def complex_step(f, x, eps=1e-30):
    """The derivative of the number f(x) for each entry of x."""
    grads = np.zeros(x.shape)
    for index in np.ndindex(x.shape):
        moved = x.astype(complex)
        moved[index] += 1j * eps
        grads[index] = f(moved).imag / eps
    return grads


J = jacobian(probs[0])  # (V, V)
print(J.round(3))
print("positive:", int((J > 0).sum()))
print("largest sum of a row:", np.abs(J.sum(axis=1)).max())
for j in range(V):
    exact = complex_step(lambda x, j=j: softmax(x)[j], logits[0])  # (V,)
    assert np.abs(J[j] - exact).max() < 1e-14, f"row {j} of J is no derivative"
assert np.abs(J.sum(axis=1)).max() < 1e-14, "each row of J has to sum to 0"

# %% [markdown]
# Only the diagonal is positive: a token gains by its own logit and loses by all others. What one
# gains, the others lose: each row of $J$ sums to 0.
#
# What lies behind the softmax hands us an upstream, $dprobs$ of shape $(M, V)$. In each row the
# chain rule sums over all that logit $n$ has touched, and $[j{=}n]$ leaves one term of its sum:
#
# $$\begin{aligned} dlogits_n &= \sum_j dprobs_j \, J_{jn} \\
# &= probs_n \, (dprobs_n - row\_sum), \\
# row\_sum &= \sum_j dprobs_j \, probs_j \end{aligned}$$
#
# The second line needs no $J$. That is as well: GPT-2 has $V = 50257$, and in float64 its $J$
# would fill 20 GB for each row.


# %%
def softmax_backward(dprobs, probs):
    row_sum = (dprobs * probs).sum(axis=-1, keepdims=True)  # (M, 1)
    return probs * (dprobs - row_sum)  # (M, V)


dprobs = rng.normal(size=(M, V))  # a random upstream
dlogits = softmax_backward(dprobs, probs)  # (M, V)
with_jacobians = np.stack([dprobs[m] @ jacobian(probs[m]) for m in range(M)])  # (M, V)
print("largest difference:", np.abs(dlogits - with_jacobians).max())
assert np.abs(dlogits - with_jacobians).max() < 1e-14, "this is not dprobs @ J"

# %% [markdown]
# ## An upstream of ones
#
# To test a backward one needs a single number to differentiate. The quickest way is to sum up the
# output: $\ell = \sum_{mj} probs_{mj}$, whose upstream is an array of ones. Many tests do just
# that. Here are six answers to the question for $dlogits$. One of them is right.

# %%
answers = {
    "right": softmax_backward,
    "return 0": lambda dprobs, probs: np.zeros((M, V)),
    "the wrong sign": lambda dprobs, probs: -softmax_backward(dprobs, probs),
    "100 times too large": lambda dprobs, probs: 100 * softmax_backward(dprobs, probs),
    "another row's probs": lambda dprobs, probs: softmax_backward(dprobs, probs[::-1]),
    "the row sum forgotten": lambda dprobs, probs: dprobs * probs,
}


def passes(backward, dprobs):
    """Is it the gradient of sum(dprobs * softmax(logits))?"""
    exact = complex_step(lambda x: (dprobs * softmax(x)).sum(), logits)  # (M, V)
    return bool(np.abs(backward(dprobs, probs) - exact).max() < 1e-12)


# %% [markdown]
# **Predict.** Which of the six pass with an upstream of ones? Which with a random one?

# %%
print(f"{'':24}{'ones':>6}{'random':>8}")
for name, backward in answers.items():
    with_ones = passes(backward, np.ones((M, V)))
    with_random = passes(backward, dprobs)
    print(f"{name:24}{with_ones!s:>6}{with_random!s:>8}")
    assert with_random == (name == "right"), f"misjudged: {name!r}"
    assert with_ones == (name != "the row sum forgotten"), f"misjudged: {name!r}"

# %% [markdown]
# With ones five of the six pass, with a random upstream the right one alone.
#
# Each row of $probs$ sums to 1, whatever the logits are. So $\ell = M$, always, and its gradient is
# 0. The formula says so, too: $row\_sum = \sum_j 1 \cdot probs_j = 1$, and $1 - row\_sum = 0$. A
# test with ones compares 0 with 0: it takes `return 0`, and every multiple of the right answer. A
# finer tolerance does not help. Draw the upstream at random, and compare every entry.
#
# ## Cross-entropy
#
# The true next token of row $m$ is $targets_m$, a number from $0$ to $V - 1$. How surprised was the
# model? As in lesson 1, by the negative logarithm of the probability that it gave to the truth, in
# nats ($\log$ is the natural logarithm, as in NumPy). It is called the *negative log-likelihood*,
# $nll$. Each prediction gets a weight (not to be mixed up with the weights of the model), and the
# loss is the weighted sum. With $1/M$ for each it is the mean of lesson 1.
#
# $$nll_m = -\log(probs_{m, targets_m}), \qquad loss = \sum_m weights_m \, nll_m$$
#
# Written like that it breaks again: a probability of $e^{-1000}$ is stored as 0, and $-\log(0)$ is
# infinite. Put the softmax in, let $top_m$ be the largest logit of row $m$, and the logarithm takes
# the exponential away before it can do harm:
#
# $$\begin{aligned} nll_m = \; &\log \sum_n e^{logits_{mn} - top_m} \\
# &- (logits_{m, targets_m} - top_m) \end{aligned}$$


# %%
def nll(logits, targets):
    shifted = logits - logits.real.max(axis=-1, keepdims=True)  # (M, V)
    total = np.exp(shifted).sum(axis=-1)  # (M,), at least 1
    return np.log(total) - shifted[np.arange(len(targets)), targets]  # (M,)


targets = np.array([2, 0, 5, 5])  # (M,)
weights = np.array([0.5, 1.0, 0.25, 2.0])  # (M,)
loss = (weights * nll(logits, targets)).sum()  # one number
as_defined = -(weights * np.log(probs[np.arange(M), targets])).sum()
assert abs(loss - as_defined) < 1e-13, "the two forms differ"

sure_and_wrong = np.array([[1000.0, 0.0]])
with np.errstate(divide="ignore"):
    print("-log(probs):", -np.log(softmax(sure_and_wrong))[0, 1])
print("nll:        ", nll(sure_and_wrong, np.array([1]))[0])
assert nll(sure_and_wrong, np.array([1]))[0] == 1000

# %% [markdown]
# Now the real thing: the tiny model of lesson 1, without a prefix. We show it a record that it has
# never seen, and a description. As in lesson 1, nearly all of the loss is at its first token: about
# 3 nats.
#
# **Predict.** Which probability did the model give to that token? And to the other 25, which have a
# mean of 0.001 nats?

# %%
from minprefix import GPT2, Batch
from minprefix.data.world import table_to_text
from minprefix.model import loss as loss_of_model

model = GPT2.load("tiny", dtype="float64")
record, description = next(table_to_text(1, "test", seed=0))
prompt, answer = model.encode(record + "\n"), model.encode(description)
batch = Batch.pack([prompt + answer], loss_from=[len(prompt)])  # predict the answer
# batch.rows (M,): the tokens of the batch after which something is to be predicted
every_row = model.logits(batch)  # (N, V): N tokens in the batch, V = 1024
real_logits = every_row[batch.rows]  # (M, V), here M = len(answer) = 26
surprise = nll(real_logits, batch.targets)  # (M,)
print(f"first token: {surprise[0]:.2f} nats, probability {np.exp(-surprise[0]):.3f}")
others = surprise[1:].mean()
print(f"the others:  {others:.4f} nats, probability {np.exp(-others):.4f}")
of_package = loss_of_model(model, batch)
print(f"mean {surprise.mean():.3f} nats; the package says {of_package:.3f}")
assert abs(surprise.mean() - of_package) < 1e-12, "our loss is another"
assert surprise[0] > 0.9 * surprise.sum(), "the first token should carry the loss"

# %% [markdown]
# $e^{-3} = 0.05$ to the first, and $e^{-0.001} = 0.999$ to each of the others, on (geometric)
# average. One token of 26 carries the loss: a prefix that mends it has done its work.
#
# ## Its gradient is short
#
# $loss$ sees $probs$ only at the targets: there $dprobs_{mn} = -weights_m / probs_{mn}$, the
# derivative of the logarithm, and 0 elsewhere. Put that into the backward of the softmax. The row
# sum has one term, $-weights_m$, and
#
# $$\begin{aligned} dlogits_{mn} &= probs_{mn} \, (dprobs_{mn} + weights_m) \\
# &= weights_m \, (probs_{mn} - one\_hot_{mn}) \end{aligned}$$
#
# where $one\_hot_{mn}$ is 1 for $n = targets_m$, else 0: there $probs_{mn}$ and the $1/probs_{mn}$
# cancel. A step downhill, against this gradient, pushes each logit down by its token's probability
# (times $weights_m$), and pulls the right one up by 1 (times $weights_m$). A row sums to 0, again.


# %%
def nll_gradient(logits, targets, weights):
    one_hot = np.arange(logits.shape[1]) == targets[:, None]  # (M, V), True is 1
    return weights[:, None] * (softmax(logits) - one_hot)  # (M, V)


def relative_error(a, b):
    """The largest difference, as a part of the largest number: 1 means all wrong."""
    return np.abs(a - b).max() / np.abs(b).max()


exact = complex_step(lambda x: (weights * nll(x, targets)).sum(), logits)  # (M, V)
dprobs_of_loss = np.zeros((M, V))
dprobs_of_loss[np.arange(M), targets] = -weights / probs[np.arange(M), targets]
the_long_way = softmax_backward(dprobs_of_loss, probs)  # (M, V)
print("short:", relative_error(nll_gradient(logits, targets, weights), exact))
print("long: ", relative_error(the_long_way, exact))
assert relative_error(nll_gradient(logits, targets, weights), exact) < 1e-14
assert relative_error(the_long_way, exact) < 1e-13

# %% [markdown]
# The package has softmax and loss as one operation,
# [`cross_entropy`](../minprefix/ops/reference.py#cross_entropy), and its backward. The forward
# keeps `probs`, `targets` and `weights` in a cache for the way back. Three checks of it:


# %%
import math

from minprefix.ops import numpy_ops, reference


def of_ops(ops, logits):
    """loss and dlogits of the operations `ops`; they may overwrite what they get."""
    loss, cache = ops.cross_entropy(logits.copy(), targets, weights)
    return loss, ops.cross_entropy_backward(cache)


def check_loss(ops):
    """Against Python's own numbers, one at a time."""
    expected = 0.0
    for row, target, weight in zip(logits.tolist(), targets, weights, strict=True):
        expected += weight * (math.log(sum(math.exp(x) for x in row)) - row[target])
    error = abs(of_ops(ops, logits)[0] / expected - 1)
    assert error < 1e-13, f"the loss is off by {error:.0%}"


def check_gradient(ops):
    """Against the complex step through our own loss."""
    error = relative_error(of_ops(ops, logits)[1], exact)
    assert error < 1e-13, f"dlogits is off by {error:.2g} of its largest entry"


def check_law(ops):
    """Each row of dlogits sums to 0."""
    off = np.abs(of_ops(ops, logits)[1].sum(axis=1)).max()
    assert off < 1e-14, f"a row of dlogits sums to {off:.2g}, expected 0"


for ops in (reference, numpy_ops):
    check_loss(ops)
    check_gradient(ops)
    check_law(ops)
print("the package agrees, twice")

# %% [markdown]
# ## Sum, mean, and mean of means
#
# The weights say what the loss is. With 1 for each prediction it is the *sum*; with $1/M$ it is the
# *mean*. Only a factor, but the factor is in the gradient, too: with the sum, twice as many
# predictions make a gradient about twice as large, and another learning rate is right.
#
# Large batches do not fit into memory. So one cuts them into *micro-batches*, computes a gradient
# for each, and adds up. Say that a batch of 4 predictions is cut into 3 and 1, and that the
# gradients of the two means are averaged.
#
# **Predict.** The batch's own mean gives the weight $1/4$ to each prediction. What weights does the
# mean of the two means give them?

# %%
parts = [slice(0, 3), slice(3, 4)]
of_mean = nll_gradient(logits, targets, np.full(M, 1 / M))  # (M, V)
mean_of_means, sum_of_sums = np.zeros((M, V)), np.zeros((M, V))
for rows in parts:  # each row lies in one part, so that adding up is filling in
    m = rows.stop - rows.start  # predictions in this part
    of_part = nll_gradient(logits[rows], targets[rows], np.ones(m))  # (m, V), of a sum
    sum_of_sums[rows] += of_part
    mean_of_means[rows] += of_part / m / len(parts)

print("weights of the mean:         ", np.full(M, 1 / M))
print("weights of the mean of means:", (mean_of_means / of_mean / M)[:, 0].round(4))
print("off by", relative_error(mean_of_means, of_mean))
assert relative_error(mean_of_means, of_mean) > 0.5
assert relative_error(sum_of_sums / M, of_mean) < 1e-14, "add sums, divide once"

# %% [markdown]
# Three times $1/6$, and $1/2$: the lonely prediction counts three times as much as any other. With
# texts of unequal length that happens at every step, and nothing looks wrong. The remedy is the
# last line: add up sums, and divide once, by the number of predictions of the whole batch.
#
# ## A loss in single precision
#
# Finite differences, $(\ell(x + \epsilon) - \ell(x - \epsilon)) / 2\epsilon$, subtract two losses
# that are nearly equal. A float64 has 16 digits, a float32 has 7. Some libraries compute the loss
# in float32 even if the whole model is in float64: Hugging Face's GPT-2 does when it is asked for
# its own loss. Here the only difference is one rounding at the very end.
#
# **Predict.** With a step of $10^{-6}$, how many correct digits does each loss leave us?

# %%
import matplotlib.pyplot as plt


def by_finite_differences(dtype, eps):
    grads = np.zeros((M, V))
    for index in np.ndindex(M, V):
        step = np.zeros((M, V))
        step[index] = eps
        up = dtype((weights * nll(logits + step, targets)).sum())
        down = dtype((weights * nll(logits - step, targets)).sum())
        grads[index] = (float(up) - float(down)) / (2 * eps)
    return grads


for dtype in (np.float64, np.float32):
    found = by_finite_differences(dtype, 1e-6)
    print(f"{dtype.__name__}: off by {relative_error(found, exact):.1g},", end=" ")
    print(f"{int((found == 0).sum())} of {found.size} entries are exactly 0")
assert relative_error(by_finite_differences(np.float64, 1e-6), exact) < 1e-8
assert relative_error(by_finite_differences(np.float32, 1e-6), exact) > 0.01

steps = 10.0 ** np.arange(-12, 0.5, 0.5)
for dtype, style in ((np.float64, "k-o"), (np.float32, "k--^")):
    errors = [relative_error(by_finite_differences(dtype, eps), exact) for eps in steps]
    plt.loglog(steps, errors, style, label=dtype.__name__, markersize=4)
plt.xlabel("step")
plt.ylabel("relative error of the gradient")
plt.title("Finite differences through a loss in float64 and in float32")
plt.legend()
plt.show()

# %% [markdown]
# Nine digits, and one. In the picture both curves fall from the right: a smaller step is a better
# difference. Then rounding takes over. With float32 that happens soon: the best step leaves five
# digits, and at the far left, where the error is 1, every entry is 0. Such a check fails a gradient
# that is right, or it is given a tolerance that lets a wrong one through. The remedy: take the
# logits out of the model, and compute the loss in float64.
#
# ## Break it yourself
#
# A bug of the zoo: the loss is divided by $M$ at the end, though its weights have said already
# whether it is a sum or a mean.
#
# **Predict.** `check_loss`, `check_gradient`, `check_law`: which of the three see it?

# %%
from minprefix.lessons import caught, planted

twice = planted("loss-averaged-twice")
print(twice)

check_gradient(twice.reference)
check_law(twice.reference)
with caught() as error:  # take this line away, and the lesson stops here
    check_loss(twice.reference)
print(error)

# %% [markdown]
# Only `check_loss` sees it: the backward does not use the number that the forward returns. What
# would you have seen without that check? Train with the bug. The simplest training of all: the
# logits themselves are what we change, downhill.


# %%
def descend(ops, steps=40, rate=0.5):
    x, losses = logits.copy(), []
    for _ in range(steps):
        loss, dx = of_ops(ops, x)
        losses.append(loss)
        x -= rate * dx  # (M, V)
    return x, losses


(x_sound, sound), (x_twice, low) = descend(reference), descend(twice.reference)
for step in (0, 10, 39):
    print(f"step {step:2}   sound {sound[step]:.3f}   with the bug {low[step]:.3f}")
assert np.array_equal(x_sound, x_twice), "the two trainings differ"
assert np.abs(np.array(low) * M / np.array(sound) - 1).max() < 1e-12

# %% [markdown]
# The training is the same to the last bit. Only the number that is printed is four times too good,
# and with larger batches it gets better still. You would have put it into a table beside the
# results of others. Training does not test a number that is only printed.
#
# ## Exercises
#
# **1.** Find all upstreams $dprobs$ of a row for which the right $dlogits$ is 0 everywhere. And:
# before the gain, each row of a layernorm (lesson 2) has the mean 0. For which gain does an
# upstream of ones see nothing of its backward?
#
# <details><summary>Solution 1</summary>
#
# $probs_n (dprobs_n - row\_sum) = 0$ for all $n$. The probabilities are positive, so each
# $dprobs_n$ has to equal $row\_sum$, which is the same for all: the upstream is one number all
# along the row. Ones are the most popular of them. For layernorm it is a gain of ones (or of one
# other number all along), which is what a fresh model has: a row then sums to the sum of the bias,
# whatever $x$ is.
#
# ```python
# _, cache = reference.layernorm(logits, np.ones(V), np.zeros(V), 1e-5)
# print(np.abs(reference.layernorm_backward(np.ones((M, V)), cache)).max())
# ```
#
# </details>
#
# **2.** Plant `one-hot-missing`, then `loss-gradient-negated`. Which of the three checks see them,
# and what becomes of the loss in `descend`?
#
# <details><summary>Solution 2</summary>
#
# The loss is right both times, and the gradient wrong. The law sees the first, since nothing is
# pulled up; it is blind to a sign. The loss rises with both.
#
# ```python
# for name in ("one-hot-missing", "loss-gradient-negated"):
#     broken = planted(name).reference
#     check_loss(broken)
#     with caught() as error:
#         check_gradient(broken)
#     print(name, "-", error)
#     off = np.abs(of_ops(broken, logits)[1].sum(axis=1)).max()
#     _, losses = descend(broken)
#     print(f"a row sums to {off:.2g}; the loss goes from {losses[0]:.3f} to {losses[-1]:.3f}")
# ```
#
# </details>
#
# **3.** *Label smoothing* asks for 0.9 at the right token and for the remaining 0.1 spread evenly
# over all $V$: $loss = -\sum_{mn} weights_m \, soft_{mn} \log(probs_{mn})$, where each row of
# $soft$ sums to 1. What is $dlogits$? Prove it.
#
# <details><summary>Solution 3</summary>
#
# $dprobs_{mn} = -weights_m \, soft_{mn} / probs_{mn}$, whose row sum with $probs$ is $-weights_m$.
# So $dlogits_{mn} = weights_m (probs_{mn} - soft_{mn})$: the one-hot was a special case.
#
# ```python
# soft = 0.9 * (np.arange(V) == targets[:, None]) + 0.1 / V  # (M, V)
# smoothed = weights[:, None] * (probs - soft)  # (M, V)
# by_step = complex_step(lambda x: -(weights @ (soft * np.log(softmax(x))).sum(axis=1)), logits)
# assert relative_error(smoothed, by_step) < 1e-13
# ```
#
# </details>
#
# **4.** (Graded.) Write both functions of the contract. `cross_entropy(logits, targets, weights)`,
# of the shapes $(M, V)$, $(M)$ and $(M)$, returns the loss and a cache, in whatever form you like;
# `cross_entropy_backward(cache)` returns `dlogits` $(M, V)$. The suite will come with logits around
# 10 000, with rows that differ by as much, and with float32, which has to stay float32.

# %%
from minprefix.lessons import grade


def cross_entropy(logits, targets, weights):
    raise NotImplementedError  # yours


def cross_entropy_backward(cache):
    raise NotImplementedError  # yours


grade(cross_entropy, cross_entropy_backward)

# %% [markdown]
# <details><summary>Solution 4</summary>
#
# ```python
# def cross_entropy(logits, targets, weights):
#     shifted = logits - logits.max(axis=1, keepdims=True)  # (M, V)
#     e = np.exp(shifted)  # (M, V)
#     total = e.sum(axis=1, keepdims=True)  # (M, 1)
#     nll = np.log(total[:, 0]) - shifted[np.arange(len(targets)), targets]  # (M,)
#     return (weights * nll).sum(), (e / total, targets, weights)
#
#
# def cross_entropy_backward(cache):
#     probs, targets, weights = cache  # (M, V), (M,), (M,)
#     one_hot = np.arange(probs.shape[1]) == targets[:, None]  # (M, V)
#     return weights[:, None] * (probs - one_hot)  # (M, V)
#
#
# grade(cross_entropy, cross_entropy_backward)
# ```
#
# </details>
#
# Next: [Attention and its gradient](04_attention.py).
