# %% [markdown]
# # Softmax and cross-entropy, and why an upstream of ones proves nothing
#
# - **You will be able to** turn scores into probabilities, a loss and its gradient, none of which
#   overflows; pick out what a batch has to predict; keep apart a sum, a mean and a mean of means;
#   and say which tests of a backward would accept `return 0`.
# - **You need** the chain rule, an upstream gradient, finite differences and the complex step:
#   [lesson 2](02_backward_by_hand.py).
# - **Time** 175 minutes; it runs in 2 seconds.
# - **Difficulty** 2 of 5.
#
# ## Overview
#
# - Code that follows the formula of softmax literally gives NaN for scores of 1000. One subtraction
#   mends it.
# - The Jacobian of softmax has rows and columns that sum to 0, for two different reasons. The
#   backward needs no Jacobian.
# - A test of the softmax backward with an upstream of ones accepts five of six answers, and four of
#   these are wrong. A random upstream accepts only the right one.
# - The gradient of softmax and cross-entropy together is one short line.
# - The mean of the means of two micro-batches is another loss than the mean of the batch. In the
#   example one prediction counts three times as much as any other.
# - With a step of $10^{-6}$, finite differences find nine correct digits through a float64 loss.
#   They find about one through a loss that is rounded to float32.
# - A planted bug changes the loss that is printed, and not one bit of the training.
#
# ## Softmax
#
# A language model gives a row of scores for each [token](glossary.md#token) that it has to predict,
# one score for each of the $V$ tokens of its [vocabulary](glossary.md#vocabulary). The scores are
# called [logits](glossary.md#logits). They are any real numbers; a larger one means a likelier
# token. For $M$ predictions, $logits$ has the shape $(M, V)$. [Softmax](glossary.md#softmax) turns
# each row $m$ into probabilities:
#
# $$probs_{mj} = \frac{e^{logits_{mj}}}{\sum_i e^{logits_{mi}}}$$
#
# Here $i$ and $j$ are tokens of the vocabulary. All probabilities are positive, and each row sums
# to 1. Add the same number $c$ to all logits of a row: then numerator and denominator both get the
# factor $e^c$, and it cancels. Only the differences within a row matter.
#
# ### Exercise 3.1: `softmax_as_written`
#
# *3 minutes · difficulty 1 of 5*
#
# Write the formula as it stands. `logits` is $(M, V)$. Return `probs`, $(M, V)$.

# %%
import math

import matplotlib.pyplot as plt
import numpy as np

from minprefix.lessons import caught, grade, planted


def softmax_as_written(logits):
    e = ...  # (M, V)
    probs = ...  # (M, V)
    return probs


grade(softmax_as_written)

# %% [markdown]
# <details><summary>Hint 1</summary>
#
# The sum runs over a row: `axis=1`. With `keepdims=True` it has the shape $(M, 1)$, and NumPy can
# divide by it.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# `e = np.exp(logits)`. Then divide `e` by `e.sum(axis=1, keepdims=True)`.
#
# </details>


# %% jupyter={"source_hidden": true}
def softmax_as_written(logits):
    e = np.exp(logits)  # (M, V)
    probs = e / e.sum(axis=1, keepdims=True)  # (M, V)
    return probs


# %% [markdown]
# Take one row, then the same row with 1000 added, then the same row with 1000 subtracted. On paper,
# the three rows of probabilities are equal.
#
# **Predict.** What does this code give for the second row, and what for the third?

# %%
row = np.array([1.0, 2.0, 3.0])
shifted_rows = np.stack([row, row + 1000, row - 1000])  # (3, 3)
with np.errstate(all="ignore"):  # NumPy would warn; we look at the numbers instead
    as_written = softmax_as_written(shifted_rows)
    assert np.isinf(np.exp(710.0))
    assert np.isinf(np.exp(np.float32(89)))
print(as_written)
assert np.isfinite(np.exp(709.0))
assert np.isfinite(np.exp(np.float32(88)))
assert np.isnan(as_written[1:]).all()

# %% [markdown]
# **Answer.** Both give NaN, "not a number". $e^{1000}$ is larger than the largest float64, so it
# becomes infinity, and infinity divided by infinity is NaN. $e^{-1000}$ becomes 0, and 0 divided by
# 0 is NaN, too.

# %% [markdown]
# The largest whole exponent that works is 709 for float64, and 88 for float32. The cure costs one
# subtraction. A number that is subtracted from a whole row cancels, so subtract the largest number
# of the row. Then the largest exponent is 0, nothing overflows, and the sum is at least 1.
#
# ### Exercise 3.2: `softmax`
#
# *5 minutes · difficulty 2 of 5*
#
# Write it so. `logits` is $(M, V)$, and each row has a largest number of its own.


# %%
def softmax(logits):
    top = ...  # (M, 1)
    e = ...  # (M, V)
    probs = ...  # (M, V)
    return probs


grade(softmax)

# %% [markdown]
# <details><summary>Hint 1</summary>
#
# `top` is the maximum over `axis=1`, with `keepdims=True`. The maximum of the whole array would not
# do: a row far below it would become all zeros.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# `e` is `np.exp(logits - top)`. The last line is that of `softmax_as_written`.
#
# </details>


# %% jupyter={"source_hidden": true}
def softmax(logits):
    top = logits.max(axis=1, keepdims=True)  # (M, 1)
    e = np.exp(logits - top)  # (M, V)
    probs = e / e.sum(axis=1, keepdims=True)  # (M, V)
    return probs


# %%
rng = np.random.default_rng(0)
M, V = 4, 6
logits = rng.normal(size=(M, V))  # (M, V)
probs = softmax(logits)  # (M, V)
print(softmax(shifted_rows).round(4))
assert np.abs(probs.sum(axis=1) - 1).max() < 1e-14, "each row has to sum to 1"
assert np.abs(probs - softmax_as_written(logits)).max() < 1e-14, "they differ"
assert np.abs(softmax(shifted_rows) - softmax(row[None])).max() < 1e-12, "a shift cancels"

# %% [markdown]
# (The complex step will come through here. For complex numbers, NumPy's `max` takes the one with
# the largest real part. It cancels like any other number, so the derivative stays right.)
#
# **Recap.** Softmax makes probabilities from logits, row by row. A number added to a whole row
# cancels. So the code subtracts the row's largest number, and nothing overflows.
#
# ## The gradient of one row
#
# The rows do not depend on each other, so look at one: $probs$ and $logits$ have $V$ entries.
#
# $$probs_j = \frac{e^{logits_j}}{total}, \quad total = \sum_i e^{logits_i}$$
#
# Change one logit, number $k$. How does $probs_j$ change?
#
# - $total$ has the derivative $e^{logits_k}$. It is the denominator, so $probs_j$ changes by
#   $-e^{logits_j} \, e^{logits_k} / total^2$, which is $-probs_j \, probs_k$. This holds for every
#   $j$.
# - If $j = k$, the numerator grows, too. That adds $e^{logits_j} / total$, which is $probs_j$.
#
# ### Exercise 3.3: `softmax_jacobian`
#
# *8 minutes · difficulty 2 of 5*
#
# The derivatives form a matrix, the [Jacobian](glossary.md#jacobian)
# $J_{jk} = \partial \, probs_j / \partial \, logits_k$. `probs` is one row, $(V)$. Return `J`,
# $(V, V)$.


# %%
def softmax_jacobian(probs):
    J = ...  # (V, V)
    return J


grade(softmax_jacobian)

# %% [markdown]
# <details><summary>Hint 1</summary>
#
# With $[j{=}k]$ for 1 if $j = k$, else 0: $J_{jk} = probs_j \, [j{=}k] - probs_j \, probs_k$.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# `np.diag(probs)` is the first part, and `np.outer(probs, probs)` is the second.
#
# </details>


# %% jupyter={"source_hidden": true}
def softmax_jacobian(probs):
    J = np.diag(probs) - np.outer(probs, probs)  # (V, V)
    return J


# %% [markdown]
# In one formula: $J_{jk} = probs_j \, ([j{=}k] - probs_k)$. The tools of lesson 2 check it.
#
# **Predict.** How many of the 36 entries of $J$ are positive? What does each of its columns sum to,
# and what does each of its rows sum to?


# %%
def complex_step(f, x, eps=1e-30):
    """The derivative of the number f(x) for each entry of x."""
    grad = np.zeros(x.shape)
    for index in np.ndindex(x.shape):
        moved = x.astype(complex)
        moved[index] += 1j * eps
        grad[index] = f(moved).imag / eps
    return grad


J = softmax_jacobian(probs[0])  # (V, V)
print(J.round(3))
for j in range(V):
    exact = complex_step(lambda x, j=j: softmax(x[None])[0, j], logits[0])  # (V,)
    assert np.abs(J[j] - exact).max() < 1e-14, f"row {j} of J is no derivative"
print("positive:", int((J > 0).sum()))
print("largest sum of a column:", np.abs(J.sum(axis=0)).max())
print("largest sum of a row:   ", np.abs(J.sum(axis=1)).max())
assert np.array_equal(J > 0, np.eye(V, dtype=bool))
assert np.abs(J.sum(axis=0)).max() < 1e-14, "each column of J has to sum to 0"
assert np.abs(J.sum(axis=1)).max() < 1e-14, "each row of J has to sum to 0"

# %% [markdown]
# **Answer.** Six are positive, the entries of the diagonal. A token gains by its own logit and
# loses by all others. All columns and all rows sum to 0. Column $k$ says what one logit does to all
# probabilities. They always sum to 1, so what some of them gain, the others lose. Row $j$ says what
# all logits do to one probability. If all logits grow by the same number, $probs_j$ does not
# change.

# %% [markdown]
# ($J$ is symmetric, so its row sums and its column sums are the same numbers here. For layernorm,
# lesson 2 used only the second reason.)
#
# The softmax receives an upstream gradient, $dprobs$, of the shape $(M, V)$. For each row the chain
# rule sums over all probabilities that logit $k$ changes:
#
# $$dlogits_k = \sum_j dprobs_j \, J_{jk}$$
#
# GPT-2 has $V = 50257$. In float64 its $J$ would fill 20 GB for each row. So the backward has to do
# without it.
#
# ### Exercise 3.4: `softmax_backward`
#
# *12 minutes · difficulty 3 of 5*
#
# Put $J_{jk} = probs_j \, ([j{=}k] - probs_k)$ into the sum, and simplify on paper until no matrix
# is left. One sum over the row remains: call it `row_sum`. `dprobs` and `probs` are $(M, V)$.
# Return `dlogits`, $(M, V)$.


# %%
def softmax_backward(dprobs, probs):
    row_sum = ...  # (M, 1)
    dlogits = ...  # (M, V)
    return dlogits


grade(softmax_backward)

# %% [markdown]
# <details><summary>Hint 1</summary>
#
# Split the sum into two. In the first, $[j{=}k]$ leaves one term. In the second, $probs_k$ does not
# depend on $j$.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# $dlogits_k = dprobs_k \, probs_k - probs_k \sum_j dprobs_j \, probs_j$. The sum is `row_sum`.
#
# </details>


# %% jupyter={"source_hidden": true}
def softmax_backward(dprobs, probs):
    row_sum = (dprobs * probs).sum(axis=1, keepdims=True)  # (M, 1)
    dlogits = probs * (dprobs - row_sum)  # (M, V)
    return dlogits


# %% [markdown]
# The row sum is the mean of `dprobs`, weighted with the probabilities. A logit should grow if its
# `dprobs` is above that mean. People often forget the row sum.

# %%
dprobs = rng.normal(size=(M, V))  # a random upstream
dlogits = softmax_backward(dprobs, probs)  # (M, V)
with_jacobians = np.stack([dprobs[m] @ softmax_jacobian(probs[m]) for m in range(M)])  # (M, V)
print("largest difference:", np.abs(dlogits - with_jacobians).max())
assert np.abs(dlogits - with_jacobians).max() < 1e-14, "this is not dprobs @ J"
assert 50257 * 50257 * 8 > 20e9  # bytes

# %% [markdown]
# **Recap.** `dlogits = probs * (dprobs - row_sum)`, where `row_sum` is the sum of `dprobs * probs`
# over the row. Each row of `dlogits` sums to 0, because adding a number to all logits changes no
# probability.
#
# ## An upstream of ones
#
# To test a backward, we need a single number to differentiate. The quickest way is to sum the
# output: $\ell = \sum_{mj} probs_{mj}$. Its upstream gradient is an array of ones. Many tests do
# just that. Here are six answers to Exercise 3.4. One of them is right.

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
# **Predict.** Which of the six pass with an upstream of ones? Which pass with a random one?

# %%
print(f"{'':24}{'ones':>6}{'random':>8}")
for name, backward in answers.items():
    with_ones = passes(backward, np.ones((M, V)))
    with_random = passes(backward, dprobs)
    print(f"{name:24}{with_ones!s:>6}{with_random!s:>8}")
    assert with_random == (name == "right"), f"misjudged: {name!r}"
    assert with_ones == (name != "the row sum forgotten"), f"misjudged: {name!r}"

# %% [markdown]
# **Answer.** With ones five of the six pass. With a random upstream only the right one passes.

# %% [markdown]
# Each row of $probs$ sums to 1 for any logits. So $\ell$ is always $M$, and its gradient is 0. The
# formula agrees: $row\_sum = \sum_j 1 \cdot probs_j = 1$, and $1 - row\_sum = 0$. A test with ones
# compares 0 with 0. It accepts `return 0`, and every multiple of the right answer. A finer
# tolerance does not help.
#
# **Recap.** Draw the upstream gradient at random, and compare every entry. An upstream of ones
# hides mistakes wherever the sum of the output is constant.
#
# ## What a batch predicts
#
# Now the loss. First we have to say which tokens are to be predicted. A [batch](glossary.md#batch)
# joins $B$ sequences of tokens to one [stream](glossary.md#stream) of $N$ tokens, without any
# padding. The model gives one row of logits for each of the $N$ tokens. Row $n$ has seen token $n$
# and everything before it in its sequence, so it predicts token $n + 1$. That token is the row's
# [target](glossary.md#target).
#
# Not every row predicts something. The last row of a sequence has no target: the token after it
# belongs to the next sequence. And a [prompt](glossary.md#prompt) is given, so nobody asks the
# model to predict it. For each sequence, `loss_from` is the index of the first token to predict.
#
# Each of the $M$ predictions gets a *loss weight* $w_m$, and the loss will be a weighted sum. With
# $w_m = 1/M$ it is the mean over all predictions, and with $w_m = 1$ it is the sum. (The array is
# called `weights` in the package. It has nothing to do with the weights of the model.)
#
# ### Exercise 3.5: `targets_of`
#
# *15 minutes · difficulty 3 of 5*
#
# `sequences` is a list of $B$ arrays of tokens, and `loss_from` is a list of $B$ numbers, each at
# least 1. Return three arrays of the shape $(M)$: `rows`, the rows of the stream that predict
# something, in ascending order; `targets`, the tokens that they predict; and `weights`, the loss
# weights for the mean. If `loss_from` is the length of a sequence, nothing of it is predicted.
#
# An example: the sequences $(7, 8, 9)$ and $(4, 5)$ with `loss_from` $(2, 1)$ have the stream
# $(7, 8, 9, 4, 5)$, the rows $(1, 3)$, the targets $(9, 5)$ and the loss weights $(0.5, 0.5)$.


# %%
def targets_of(sequences, loss_from):
    tokens = ...  # (N,)
    rows = ...  # (M,)
    targets = ...  # (M,)
    weights = ...  # (M,)
    return rows, targets, weights


grade(targets_of)

# %% [markdown]
# <details><summary>Hint 1</summary>
#
# Go through the sequences, and keep in a variable where the current one starts in the stream.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# The token with the index `first` of a sequence that starts at `start` is token `start + first` of
# the stream. The row before it predicts it.
#
# </details>
#
# <details><summary>Hint 3</summary>
#
# The rows of a sequence of length $T$ go from `start + first - 1` to `start + T - 2`. The targets
# are `tokens[rows + 1]`.
#
# </details>


# %% jupyter={"source_hidden": true}
def targets_of(sequences, loss_from):
    tokens = np.concatenate(sequences)  # (N,)
    found, start = [], 0
    for sequence, first in zip(sequences, loss_from, strict=True):
        T = len(sequence)
        found += range(start + first - 1, start + T - 1)
        start += T
    rows = np.array(found, dtype=int)  # (M,)
    targets = tokens[rows + 1]  # (M,)
    weights = np.full(len(rows), 1 / len(rows))  # (M,)
    return rows, targets, weights


# %% [markdown]
# The package's `Batch.pack` does the same. (Its loss weights are 1; the functions that compute a
# loss divide by $M$ if the mean is wanted.)

# %%
from minprefix import GPT2, Batch
from minprefix.data.world import table_to_text
from minprefix.model import loss as loss_of_model

sequences = [np.array([7, 8, 9]), np.array([4, 5])]
rows, targets, weights = targets_of(sequences, [2, 1])  # (M,) each
packed = Batch.pack(sequences, loss_from=[2, 1])
print("rows", rows, "targets", targets, "weights", weights)
assert np.array_equal(rows, packed.rows)
assert np.array_equal(targets, packed.targets)

# %% [markdown]
# **Recap.** Row $n$ predicts token $n + 1$. A target needs a row before it in the same sequence.
# The loss weights say what kind of loss it is: a mean, a sum, or something else.
#
# ## Cross-entropy
#
# The target of prediction $m$ is $targets_m$, a number from $0$ to $V - 1$. How surprised was the
# model? As in lesson 1, we take the negative logarithm of the probability that it gave to the
# target, the *negative log-likelihood*, in [nats](glossary.md#nat) ($\log$ is the natural
# logarithm, as in NumPy). The [cross-entropy](glossary.md#cross-entropy) is the weighted sum:
#
# $$nll_m = -\log(probs_{m, targets_m}), \qquad loss = \sum_m w_m \, nll_m$$
#
# Written like this, it fails again. A probability of $e^{-1000}$ is stored as 0, and $-\log(0)$ is
# infinite. So put the formula of softmax into the logarithm. With $top_m$ for the largest logit of
# row $m$ and $shifted_{mj} = logits_{mj} - top_m$:
#
# $$\log probs_{mj} = shifted_{mj} - \log \sum_i e^{shifted_{mi}}$$
#
# The last term is called *log-sum-exp*. Its sum is at least 1, so its logarithm is harmless. The
# first term has no exponential any more, so nothing is rounded to 0.
#
# ### Exercise 3.6: `log_softmax`
#
# *6 minutes · difficulty 2 of 5*
#
# Write it so. `logits` is $(M, V)$. Return `log_probs`, $(M, V)$.


# %%
def log_softmax(logits):
    shifted = ...  # (M, V)
    total = ...  # (M, 1)
    log_probs = ...  # (M, V)
    return log_probs


grade(log_softmax)

# %% [markdown]
# <details><summary>Hint 1</summary>
#
# `total` is the sum of `np.exp(shifted)` over each row. `np.log(softmax(logits))` is what we want
# to avoid.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# `shifted` is the difference of `logits` and its row's maximum, as in `softmax`. Keep the
# dimensions: `total` is $(M, 1)$, so that its logarithm can be subtracted from every column.
#
# </details>


# %% jupyter={"source_hidden": true}
def log_softmax(logits):
    shifted = logits - logits.max(axis=1, keepdims=True)  # (M, V)
    total = np.exp(shifted).sum(axis=1, keepdims=True)  # (M, 1)
    log_probs = shifted - np.log(total)  # (M, V)
    return log_probs


# %%
sure_and_wrong = np.array([[1000.0, 0.0]])
with np.errstate(divide="ignore"):
    print("log of softmax:", np.log(softmax(sure_and_wrong))[0])
print("log_softmax:   ", log_softmax(sure_and_wrong)[0])
assert log_softmax(sure_and_wrong)[0, 1] == -1000

# %% [markdown]
# ### Exercise 3.7: `cross_entropy`
#
# *10 minutes · difficulty 3 of 5*
#
# `logits` is $(M, V)$; `targets` and `weights` are $(M)$. Return the loss, one number, and the
# cache `(probs, targets, weights)`. Use `log_softmax`. As in lesson 2, `grade` also runs the
# [reference suite](glossary.md#reference-suite). Its arrays hold logits around 10,000, and rows
# whose numbers differ by as much. Some are float32, and the results have to be float32 then, too.


# %%
def cross_entropy(logits, targets, weights):
    log_probs = ...  # (M, V)
    nll = ...  # (M,)
    loss = ...  # one number
    probs = ...  # (M, V)
    return loss, (probs, targets, weights)


grade(cross_entropy)

# %% [markdown]
# <details><summary>Hint 1</summary>
#
# Of each row of `log_probs` one number is needed: row $m$, column $targets_m$.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# `log_probs[np.arange(M), targets]` takes exactly these. Here $M$ is `len(targets)`.
#
# </details>


# %% jupyter={"source_hidden": true}
def cross_entropy(logits, targets, weights):
    log_probs = log_softmax(logits)  # (M, V)
    nll = -log_probs[np.arange(len(targets)), targets]  # (M,)
    loss = (weights * nll).sum()  # (), one number
    probs = np.exp(log_probs)  # (M, V)
    return loss, (probs, targets, weights)


# %% [markdown]
# `log_probs[:, targets]` would have the shape $(M, M)$: it takes every target's column from every
# row. Its sum is a number, too, so this mistake raises no error.
#
# A mean loss is often reported as *perplexity*, $e^{loss}$. A model that spreads its probability
# evenly over 8 tokens has the perplexity 8.
#
# ### Exercise 3.8: `perplexity`
#
# *4 minutes · difficulty 1 of 5*
#
# `nlls` is a list with one array for each text. It holds the $nll$ of each predicted token of the
# text. The arrays have different lengths. Return the perplexity over all tokens of all texts, in
# which each token counts the same.


# %%
def perplexity(nlls):
    mean = ...  # one number
    return np.exp(mean)


grade(perplexity)

# %% [markdown]
# <details><summary>Hint 1</summary>
#
# The mean of the texts' means would let a token of a short text count more. Join the arrays first.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# `np.concatenate(nlls)` is one array with the $nll$ of every token.
#
# </details>


# %% jupyter={"source_hidden": true}
def perplexity(nlls):
    mean = np.concatenate(nlls).mean()  # (), one number
    return np.exp(mean)


# %% [markdown]
# Now a real model: the tiny model of lesson 1, without a prefix. We show it a record that it has
# never seen, and a description. As in lesson 1, nearly all of the loss is at the first token of the
# description: about 3 nats.
#
# **Predict.** Which probability did the model give to that token? And to each of the other 25,
# whose mean is 0.001 nats?

# %%
assert abs(perplexity([np.full(3, np.log(8))]) - 8) < 1e-12  # evenly over 8 tokens

model = GPT2.load("tiny", dtype="float64")
record, description = next(table_to_text(1, "test", seed=0))
prompt, answer = model.encode(record + "\n"), model.encode(description)
batch = Batch.pack([prompt + answer], loss_from=[len(prompt)])  # predict the answer
rows, real_targets, mean_weights = targets_of([np.array(prompt + answer)], [len(prompt)])
every_row = model.logits(batch)  # (N, V): here V = 1024
real_logits = every_row[rows]  # (M, V): here M = len(answer) = 26
surprise = -log_softmax(real_logits)[np.arange(len(rows)), real_targets]  # (M,)
print(f"first token: {surprise[0]:.2f} nats, probability {np.exp(-surprise[0]):.3f}")
others = surprise[1:].mean()
print(f"the others:  {others:.4f} nats, probability {np.exp(-others):.4f}")
real_loss, _ = cross_entropy(real_logits, real_targets, mean_weights)
of_package = loss_of_model(model, batch)
print(f"mean {real_loss:.3f} nats, perplexity {perplexity([surprise]):.3f}")
print(f"the package says {of_package:.3f} nats")
assert len(rows) == 26
assert abs(real_loss - of_package) < 1e-12, "our loss is another"
assert surprise[0] > 0.9 * surprise.sum(), "the first token should carry the loss"

# %% [markdown]
# **Answer.** About $e^{-3} = 0.05$ to the first one, and $e^{-0.001} = 0.999$ to each of the
# others, on (geometric) average.

# %% [markdown]
# One token of 26 carries more than nine tenths of the loss. If a prefix makes that one likely, it
# has done most of its work.
#
# **Recap.** A prediction's loss is minus the logarithm of its target's probability. Compute the
# logarithm with `log_softmax`, not from the probabilities. Perplexity is $e$ to the mean loss.
#
# ## Its gradient is short
#
# The loss depends on $probs$ only at the targets. By the derivative of the logarithm,
# $dprobs_{mj} = -w_m / probs_{mj}$ for $j = targets_m$, and 0 for all other $j$. That is the
# upstream gradient of the softmax. One could hand it to `softmax_backward`. But it contains a
# division by a probability, which may be 0. On paper that probability cancels.
#
# ### Exercise 3.9: `cross_entropy_backward`
#
# *12 minutes · difficulty 3 of 5*
#
# Put this $dprobs$ into the formula of `softmax_backward` and simplify, first for the target, then
# for another token. The two results differ in one summand, so one array can hold the difference:
# `one_hot`, which is 1 (or `True`) at each row's target and 0 elsewhere. The cache is the one of
# `cross_entropy`. Return `dlogits`, $(M, V)$. For float32 arrays it has to be float32. (An array
# from `np.zeros(shape)` is float64; one from `np.zeros_like(probs)` is of the kind of `probs`.)


# %%
def cross_entropy_backward(cache):
    probs, targets, weights = cache  # (M, V), (M,), (M,)
    one_hot = ...  # (M, V)
    dlogits = ...  # (M, V)
    return dlogits


grade(cross_entropy_backward)

# %% [markdown]
# <details><summary>Hint 1</summary>
#
# The row sum has one term, and the probability cancels in it: it is $-w_m$.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# $dlogits_{mj} = probs_{mj} \, (dprobs_{mj} + w_m)$. For a token that is not the target this is
# $probs_{mj} \, w_m$. For the target it is $-w_m + probs_{mj} \, w_m$.
#
# </details>
#
# <details><summary>Hint 3</summary>
#
# `np.arange(V) == targets[:, None]` compares every column with every row's target, and has the
# shape $(M, V)$. `weights[:, None]` has the shape $(M, 1)$.
#
# </details>


# %% jupyter={"source_hidden": true}
def cross_entropy_backward(cache):
    probs, targets, weights = cache
    one_hot = np.arange(probs.shape[1]) == targets[:, None]  # (M, V)
    dlogits = weights[:, None] * (probs - one_hot)  # (M, V)
    return dlogits


# %% [markdown]
# In one formula:
#
# $$dlogits_{mj} = w_m \, (probs_{mj} - one\_hot_{mj})$$
#
# A step downhill, against this gradient, pushes each logit down in proportion to its token's
# probability, and pulls the target's logit up. Each row sums to 0, as for every gradient behind a
# softmax.

# %%
targets = np.array([2, 0, 5, 5])  # (M,)
weights = np.array([0.5, 1.0, 0.25, 2.0])  # (M,)


def relative_error(a, b):
    """The largest difference, as a part of the largest number of b: 1 means all wrong."""
    return np.abs(a - b).max() / np.abs(b).max()


def loss_of(logits):
    return cross_entropy(logits, targets, weights)[0]


exact = complex_step(loss_of, logits)  # (M, V)
short = cross_entropy_backward(cross_entropy(logits, targets, weights)[1])  # (M, V)
dprobs_of_loss = np.zeros((M, V))
dprobs_of_loss[np.arange(M), targets] = -weights / probs[np.arange(M), targets]
the_long_way = softmax_backward(dprobs_of_loss, probs)  # (M, V)
print("short:", relative_error(short, exact))
print("long: ", relative_error(the_long_way, exact))
assert relative_error(short, exact) < 1e-14
assert relative_error(the_long_way, exact) < 1e-13
assert np.abs(short.sum(axis=1)).max() < 1e-14

# %% [markdown]
# The package has softmax and loss as one operation, too,
# [`cross_entropy`](../minprefix/ops/reference.py#cross_entropy), with its backward. Three checks of
# it:


# %%
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
# **Recap.** Softmax and cross-entropy together have the gradient `weights * (probs - one_hot)`. No
# division is left, so it is safe for probabilities of 0. Each row of it sums to 0.
#
# ## Sum, mean, and mean of means
#
# With the loss weight 1 for each prediction the loss is the *sum*, and with $1/M$ it is the *mean*.
# The two differ by a factor, and so do their gradients. With the sum, twice as many predictions
# make a gradient about twice as large, and another learning rate is right.
#
# Large batches do not fit into memory. So people cut them into
# [micro-batches](glossary.md#micro-batch), compute a gradient for each, and add the gradients up.
# Say that a batch of 4 predictions is cut into 3 and 1, and that the gradients of the two means are
# averaged.
#
# **Predict.** In the batch's own mean each prediction has the loss weight $1/4$. Which loss weights
# do they have in the mean of the two means?


# %%
def dlogits_of(logits, targets, weights):
    return cross_entropy_backward(cross_entropy(logits, targets, weights)[1])  # (M, V)


of_mean = dlogits_of(logits, targets, np.full(M, 1 / M))  # (M, V)
first = dlogits_of(logits[:3], targets[:3], np.full(3, 1 / 3))  # (3, V), of a mean over 3
last = dlogits_of(logits[3:], targets[3:], np.full(1, 1 / 1))  # (1, V), of a mean over 1
mean_of_means = np.concatenate([first, last]) / 2  # (M, V)
effective = (mean_of_means / of_mean / M)[:, 0]  # (M,)

print("loss weights of the mean:         ", np.full(M, 1 / M))
print("loss weights of the mean of means:", effective.round(4))
print("off by", relative_error(mean_of_means, of_mean))
assert np.abs(effective - [1 / 6, 1 / 6, 1 / 6, 1 / 2]).max() < 1e-12
assert relative_error(mean_of_means, of_mean) > 0.5

# %% [markdown]
# **Answer.** Three times $1/6$, and once $1/2$. The single prediction of the second micro-batch
# counts three times as much as any other.

# %% [markdown]
# With texts of different lengths this happens at every step, and nothing looks wrong.
#
# In the next exercise the model is the smallest one possible: `b` is one row of $V$ logits, and it
# is the same for every prediction. All predictions share it, so their gradients add up in `db`.
#
# ### Exercise 3.10: `mean_in_parts`
#
# *18 minutes · difficulty 4 of 5*
#
# `b` has the shape $(V)$. `parts` yields micro-batches, one after another: each is an array of
# targets with a length of its own. You may go through `parts` several times, but only one
# micro-batch fits into memory, so do not collect them. Return the mean loss over all $M$
# predictions of all micro-batches, and its gradient `db`, $(V)$. Use `cross_entropy` and
# `cross_entropy_backward`.


# %%
def mean_in_parts(b, parts):
    loss, db = 0.0, np.zeros(b.shape)
    for targets in parts:
        logits = ...  # (len(targets), V)
        loss += ...
        db += ...
    return loss, db


grade(mean_in_parts)

# %% [markdown]
# <details><summary>Hint 1</summary>
#
# Choose the loss weights so that nothing is left to do but adding. Which weight has each prediction
# in the mean over all $M$?
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# A first pass over `parts` counts: `M = sum(len(targets) for targets in parts)`. In the second pass
# each loss weight is $1/M$.
#
# </details>
#
# <details><summary>Hint 3</summary>
#
# `np.tile(b, (size, 1))` is `size` rows of `b`. The row is used once for each target, so its
# gradient is the sum of `dlogits` over the rows.
#
# </details>


# %% jupyter={"source_hidden": true}
def mean_in_parts(b, parts):
    M = sum(len(targets) for targets in parts)
    loss, db = 0.0, np.zeros(b.shape)
    for targets in parts:
        size = len(targets)
        logits = np.tile(b, (size, 1))
        of_part, cache = cross_entropy(logits, targets, np.full(size, 1 / M))
        loss += of_part
        db += cross_entropy_backward(cache).sum(axis=0)
    return loss, db


# %%
b = rng.normal(size=V)  # (V,)
loss_in_parts, db = mean_in_parts(b, [targets[:3], targets[3:]])


def loss_at_once(b):
    return cross_entropy(np.tile(b, (M, 1)), targets, np.full(M, 1 / M))[0]


assert abs(loss_in_parts - loss_at_once(b)) < 1e-14
assert relative_error(db, complex_step(loss_at_once, b)) < 1e-14
print("in two parts as at once:", relative_error(db, complex_step(loss_at_once, b)))

# %% [markdown]
# It is just as right to use the loss weight 1, to add everything up, and to divide once by $M$ at
# the end.
#
# **Recap.** A mean of means is not the mean if the parts differ in size. Add up sums, and divide
# once by the number of predictions of the whole batch.
#
# ## A loss in single precision
#
# Finite differences, $(\ell(x + \epsilon) - \ell(x - \epsilon)) / 2\epsilon$, subtract two losses
# that are nearly equal. A float64 has 16 digits, a float32 has 7. Some libraries compute the loss
# in float32 even if the whole model is in float64; Hugging Face's GPT-2 does so when it is asked
# for its own loss. We imitate that with one rounding at the very end.
#
# **Predict.** With a step of $10^{-6}$, how many correct digits does each loss leave?


# %%
def finite_differences(loss, x, eps):
    grad = np.zeros(x.shape)
    for index in np.ndindex(x.shape):
        step = np.zeros(x.shape)
        step[index] = eps
        grad[index] = (loss(x + step) - loss(x - step)) / (2 * eps)
    return grad


def measured(dtype, eps):
    """The gradient of a loss that is rounded to `dtype`."""
    return finite_differences(lambda x: float(dtype(loss_of(x))), logits, eps)


for dtype in (np.float64, np.float32):
    found = measured(dtype, 1e-6)
    print(f"{dtype.__name__}: off by {relative_error(found, exact):.1g},", end=" ")
    print(f"{int((found == 0).sum())} of {found.size} entries are exactly 0")
assert relative_error(measured(np.float64, 1e-6), exact) < 1e-8
assert 0.01 < relative_error(measured(np.float32, 1e-6), exact) < 1
assert not measured(np.float32, 1e-12).any()  # every entry is 0

steps = 10.0 ** np.arange(-12, 0.5, 0.5)
fig, ax = plt.subplots(figsize=(5, 3.4))
for dtype, style in ((np.float64, "k-o"), (np.float32, "k--^")):
    errors = [relative_error(measured(dtype, eps), exact) for eps in steps]
    print(f"{dtype.__name__}: at best {min(errors):.0e}")
    ax.loglog(steps, errors, style, label=dtype.__name__, markersize=4)
ax.set_xlabel("step")
ax.set_ylabel("relative error of the gradient")
ax.set_title("Finite differences in float64 and float32")
ax.legend()
fig.tight_layout()
plt.show()

# %% [markdown]
# **Answer.** About nine digits with float64, and about one with float32.

# %% [markdown]
# In the picture both curves fall from the right: a smaller step is a better difference. Then the
# rounding takes over. With float32 that happens early, and the best step leaves about five digits.
# At the far left of its curve the error is 1, because every entry is 0. Such a check fails a right
# gradient, or it gets a tolerance that accepts a wrong one.
#
# **Recap.** For a gradient check, take the logits out of the model and compute the loss in float64.
#
# ## Break it yourself
#
# We plant a bug of the [zoo](glossary.md#zoo): the loss is divided by $M$ at the end, although the
# loss weights say already whether it is a sum or a mean.
#
# **Predict.** Which of the three checks see it: `check_loss`, `check_gradient`, `check_law`?

# %%
twice = planted("loss-averaged-twice")
print(twice)

check_gradient(twice.reference)
check_law(twice.reference)
with caught() as error:  # take this line away, and the lesson stops here
    check_loss(twice.reference)
print(error)

# %% [markdown]
# **Answer.** Only `check_loss` sees it. The backward does not use the number that the forward
# returns.

# %% [markdown]
# What would you see without that check? We train with the bug. The simplest training of all changes
# the logits themselves, downhill.
#
# **Predict.** How does the training with the bug differ from the sound one?


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
# **Answer.** The training is the same to the last bit. Only the printed number is four times too
# small, and with larger batches it would be smaller still.

# %% [markdown]
# You would have put that number into a table beside the results of others.
#
# **Recap.** Training does not test a number that is only printed. The loss needs its own check.
#
# ## Remember
#
# - Subtract the row's largest logit before `exp`. Take the logarithm of a softmax with
#   `log_softmax`.
# - Softmax: `dlogits = probs * (dprobs - row_sum)`. Softmax and cross-entropy together:
#   `weights * (probs - one_hot)`.
# - The columns of the softmax Jacobian sum to 0 because probabilities sum to 1. Its rows sum to 0
#   because a shift of all logits changes nothing.
# - Test a backward with a random upstream gradient. Ones may accept `return 0`.
# - Row $n$ predicts token $n + 1$ of its own sequence.
# - Over micro-batches, add sums and divide once. The mean of means is another loss.
# - Check the loss as well as its gradient, and check both in float64.
#
# ## Exercises
#
# **1.** Find all upstream gradients $dprobs$ of a row for which the right $dlogits$ is 0
# everywhere. Then: before the gain, each row of a layernorm (lesson 2) has the mean 0. For which
# gain does an upstream of ones see nothing of its backward? (15 minutes, difficulty 3 of 5.)
#
# <details><summary>Solution 1</summary>
#
# $probs_k (dprobs_k - row\_sum) = 0$ for all $k$. The probabilities are positive, so each
# $dprobs_k$ has to equal $row\_sum$, which is the same for all. So the upstream is the same number
# along the whole row. Ones are the most popular choice. For layernorm it is a gain that is the same
# number for all columns, such as the ones of a fresh model: then each row sums to the sum of the
# bias, for any $x$.
#
# ```python
# _, cache = reference.layernorm(logits, np.ones(V), np.zeros(V), 1e-5)
# largest = np.abs(reference.layernorm_backward(np.ones((M, V)), cache)).max()
# print(largest)
# assert largest < 1e-14
# ```
#
# </details>
#
# **2.** Plant `one-hot-missing`, then `loss-gradient-negated`. Which of the three checks see them,
# and how does the loss change in `descend`? (10 minutes, difficulty 2 of 5.)
#
# <details><summary>Solution 2</summary>
#
# The loss is right both times, and the gradient is wrong. The law sees the first bug, since no
# logit is pulled up. It does not see a wrong sign. The loss rises with both.
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
#     assert losses[-1] > losses[0]
# ```
#
# </details>
#
# **3.** [Label smoothing](glossary.md#label-smoothing) asks for the probability 0.9 at the target,
# and spreads the remaining 0.1 evenly over all $V$ tokens:
# $loss = -\sum_{mj} w_m \, soft_{mj} \log(probs_{mj})$, where each row of $soft$ sums to 1. Derive
# $dlogits$, and prove it with the complex step. (15 minutes, difficulty 3 of 5.)
#
# <details><summary>Solution 3</summary>
#
# $dprobs_{mj} = -w_m \, soft_{mj} / probs_{mj}$, and its row sum with $probs$ is $-w_m$. So
# $dlogits_{mj} = w_m (probs_{mj} - soft_{mj})$. The one-hot was a special case.
#
# ```python
# soft = 0.9 * (np.arange(V) == targets[:, None]) + 0.1 / V  # (M, V)
# smoothed = weights[:, None] * (probs - soft)  # (M, V)
# by_step = complex_step(lambda x: -(weights @ (soft * log_softmax(x)).sum(axis=1)), logits)
# assert relative_error(smoothed, by_step) < 1e-13
# ```
#
# </details>
#
# Next: [Attention and its gradient](04_attention.py).
