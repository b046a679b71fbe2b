# %% [markdown]
# # Many slots
#
# - **You will be able to** say when a task needs more slots, see from two curves that a prefix
#   learns its examples by heart, and stop in time.
# - **You need** attention with slots and its backward: [lesson 5](05_the_gradient_of_a_prefix.py);
#   training: [lesson 8](08_training_a_prefix.py).
# - **Time** 85 minutes; it runs in 14 seconds.
# - **Difficulty** 3 of 5.
#
# ## Overview
#
# - To describe records, one slot was enough (lesson 8). That task needs one decision.
# - Sixteen pairs of unrelated words in the tiny model: with slots in the top layer alone, 16 slots
#   have a smaller loss than 4, and 4 a smaller one than 1, with each of three seeds.
# - One head whose queries see slots alone cannot get below $\ln 16 = 2.77$ nats with one slot. With
#   16 slots it comes below 0.001, with each of five seeds.
# - With three of ten answers wrong, 32 slots learn the wrong ones by heart, too. The training loss
#   goes to 0, and the loss on unseen queries rises. With 4 slots it rises even more.
# - Early stopping keeps the best step. For 32 slots it takes the loss on unseen queries from more
#   than 1.7 nats to less than 0.9, with each of five seeds.
#
# ## Sixteen pairs by heart
#
# The tasks so far asked for one decision: describe. Here is a task with many. We draw 16 pairs of
# tokens, a *key word* and an *answer*, that have nothing to do with each other. After the key word
# the model should write the answer. The frozen model cannot know them, so all that it learns is in
# the [prefix](glossary.md#prefix).
#
# The prefix has slots in the top layer alone. No layer above can work on what they
# say, so they have to give the answer themselves. Each head compares the query of the key word with
# the keys of the slots, and takes a mixture of their values.
#
# **Predict.** A blind guess among 1024 tokens has 6.9 nats, and a guess among the 16 answers
# $\ln 16 = 2.8$. Where do 1, 4 and 16 slots end, after 50 steps?

# %%
import matplotlib.pyplot as plt
import numpy as np

from minprefix import GPT2, Batch, Prefix, loss_and_grad, optim
from minprefix.lessons import caught, grade, planted
from minprefix.optim import AdamW

model = GPT2.load("tiny")
PAIRS = 16


def learn_by_heart(slots, seed, steps=50):
    """The loss of each step, and the final logits (PAIRS, V) beside the answers."""
    rng = np.random.default_rng(seed)
    words, answers = (rng.choice(np.arange(1, 1024), PAIRS, replace=False) for _ in range(2))
    batch = Batch.pack([[w, a] for w, a in zip(words, answers, strict=True)], loss_from=1)
    prefix = Prefix.normal(model.config, slots, std=0.5, seed=seed, layers=[3])
    adam, losses = AdamW(), []
    for step in range(steps):
        value, dkv = loss_and_grad(model, prefix, batch)  # dkv (1, 2, NH, P, hs)
        losses.append(value)
        adam.step(prefix.parameters, {"kv": dkv}, 0.3 * (1 - step / steps))
    logits = model.logits(Batch.pack([[w] for w in words]), prefix)  # (PAIRS, V)
    return losses, logits, answers


by_heart = {
    (slots, seed): learn_by_heart(slots, seed) for slots in (1, 4, 16) for seed in (0, 1, 2)
}
print("slots   loss at the end, seeds 0, 1, 2")
ends = {}
for slots in (1, 4, 16):
    ends[slots] = [by_heart[slots, seed][0][-1] for seed in (0, 1, 2)]
    print(f"{slots:5}   " + "  ".join(f"{value:.2f}" for value in ends[slots]))
for seed in (0, 1, 2):
    assert ends[1][seed] > ends[4][seed] + 0.5 > ends[16][seed] + 1
assert min(ends[1]) > np.log(PAIRS) + 2

# %% [markdown]
# **Answer.** One slot ends far above a guess among the 16 answers, and each step to more slots
# helps, with all three seeds.

# %% [markdown]
# A loss says how much probability the answers get. How many pairs does the prefix know by heart?
#
# ### Exercise 18.1: `memorised`
#
# *4 minutes · difficulty 1 of 5*
#
# From `logits` $(N, V)$ and `answers` $(N,)$, return how many rows have their largest logit at
# their answer.


# %%
def memorised(logits, answers):
    guesses = ...  # (N,)
    return ...


grade(memorised)

# %% [markdown]
# <details><summary>Hint 1</summary>
#
# `argmax` along the vocabulary, one guess for each row.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# Compare with `answers`, and count the `True`: `.sum()`.
#
# </details>


# %% jupyter={"source_hidden": true}
def memorised(logits, answers):
    guesses = logits.argmax(axis=1)  # (N,)
    return int((guesses == answers).sum())


# %% [markdown]
# ### Exercise 18.2: `fewest_slots`
#
# *8 minutes · difficulty 2 of 5*
#
# `lengths` $(n,)$ are prefix lengths in ascending order, and `known` $(n, seeds)$ says how many
# pairs each length knew with each seed. Return the smallest length with which *every* seed knew at
# least `wanted` pairs, or `None` if there is none.


# %%
def fewest_slots(lengths, known, wanted):
    enough = ...  # (n,)
    return ...


grade(fewest_slots)

# %% [markdown]
# <details><summary>Hint 1</summary>
#
# The worst seed decides: the smallest number of each row.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# `lengths[enough][0]` is the first length that is enough, if `enough.any()`.
#
# </details>


# %% jupyter={"source_hidden": true}
def fewest_slots(lengths, known, wanted):
    enough = known.min(axis=1) >= wanted  # (n,)
    return int(lengths[enough][0]) if enough.any() else None


# %%
lengths = np.array([1, 4, 16])
known = np.array([[memorised(*by_heart[P, seed][1:]) for seed in (0, 1, 2)] for P in lengths])
for P, row in zip(lengths, known, strict=True):
    print(f"{P:3} slots know {row} of {PAIRS} pairs")
print("at least 3 with every seed:", fewest_slots(lengths, known, 3), "slots")
assert fewest_slots(lengths, known, 3) == 4

# %% [markdown]
# The worst seed decides, since you do not know beforehand which one you get. A mean over the seeds
# would hide it.
#
# **Recap.** A task with many unlike answers needs many slots. To compare lengths, take several
# seeds and look at the worst one.
#
# ## One head, slots alone
#
# To see why, we take everything away but one head. Each of $N$ queries $q_i$ sees $P$ slots and
# nothing else. Keys and values of the slots are trained. A frozen matrix $U$, $(hs, V)$, turns the
# output into logits:
#
# $$pattern = \mathrm{softmax}(q \, k^\top / \sqrt{hs}), \qquad z = pattern \; v, \qquad
# logits = z \, U$$
#
# With one slot each row of the pattern is a single 1. So all queries get the same $z$ and the same
# logits. If 16 answers are equally frequent, no single distribution has a smaller mean loss than
# $\ln 16$. More slots can say more: each $z_i$ is a mixture of $P$ values.
#
# ### Exercise 18.3: `slots_forward`
#
# *6 minutes · difficulty 2 of 5*
#
# From `q` $(N, hs)$, and `k` and `v` $(P, hs)$, compute `z` $(N, hs)$ and the pattern $(N, P)$.
# There is no mask: every query sees every slot.


# %%
def softmax(x):  # lesson 3's: each row for itself
    e = np.exp(x - x.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def slots_forward(q, k, v):
    scores = ...  # (N, P)
    pattern = ...  # (N, P)
    z = ...  # (N, hs)
    return z, pattern


grade(slots_forward)

# %% [markdown]
# <details><summary>Hint 1</summary>
#
# It is the head of lesson 5 without tokens: only the first $P$ columns are left.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# The scale is the root of the head size, `q.shape[1] ** 0.5`.
#
# </details>


# %% jupyter={"source_hidden": true}
def slots_forward(q, k, v):
    scores = q @ k.T / q.shape[1] ** 0.5  # (N, P)
    pattern = softmax(scores)  # (N, P)
    z = pattern @ v  # (N, hs)
    return z, pattern


# %% [markdown]
# ### Exercise 18.4: `slots_backward`
#
# *12 minutes · difficulty 3 of 5*
#
# From `dz` $(N, hs)$, `q`, `v` and the `pattern`, compute `dk` and `dv`, both $(P, hs)$. Nobody
# asks for `dq`: the queries are frozen.


# %%
def slots_backward(dz, q, v, pattern):
    dv = ...  # (P, hs)
    dpattern = ...  # (N, P)
    row_sum = ...  # (N, 1)
    dscores = ...  # (N, P)
    dk = ...  # (P, hs)
    return dk, dv


grade(slots_backward)

# %% [markdown]
# <details><summary>Hint 1</summary>
#
# These are steps 1 to 3 of lesson 5, and all rows of `dkeys` and `dvalues` belong to slots.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# `dscores = pattern * (dpattern - row_sum)`, where `row_sum` is the sum of `dpattern * pattern`
# over the slots.
#
# </details>


# %% jupyter={"source_hidden": true}
def slots_backward(dz, q, v, pattern):
    dv = pattern.T @ dz  # (P, hs)
    dpattern = dz @ v.T  # (N, P)
    row_sum = (dpattern * pattern).sum(axis=1, keepdims=True)  # (N, 1)
    dscores = pattern * (dpattern - row_sum)  # (N, P)
    dk = dscores.T @ q / q.shape[1] ** 0.5  # (P, hs)
    return dk, dv


# %% [markdown]
# The world of this head: 16 *topics*, each with a direction in the space of queries and an answer
# among 64 words. A query is its topic's direction plus noise. `wrong` is the share of training
# queries whose answer was replaced by a random one of the 16. The queries of `valid` are others of
# the same topics, and their answers are right.

# %%
HS, WORDS = 32, 64


def world(seed, each, spread, wrong):
    """Queries (N, hs) and answers (N,), to train on, to validate, to test; and U (hs, V)."""
    rng = np.random.default_rng(seed)
    topics = 2 * rng.normal(size=(PAIRS, HS))
    U, answers = rng.normal(size=(HS, WORDS)), rng.permutation(WORDS)[:PAIRS]

    def draw_queries(each, wrong):
        q = np.repeat(topics, each, axis=0)
        q = q + spread * rng.normal(size=q.shape)
        right = np.repeat(answers, each)
        swapped = rng.random(len(right)) < wrong
        return q, np.where(swapped, rng.choice(answers, len(right)), right)

    return draw_queries(each, wrong), draw_queries(10, 0), draw_queries(10, 0), U


def mean_loss(logits, answers):
    """The mean loss, and dlogits (N, V)."""
    p = softmax(logits)  # (N, V)
    rows = np.arange(len(answers))
    dlogits = p.copy()
    dlogits[rows, answers] -= 1
    return -np.log(np.maximum(p[rows, answers], 1e-300)).mean(), dlogits / len(answers)


def train_head(slots, seed, each=1, spread=0.0, wrong=0.0, steps=200, decay=0.0):
    """Three curves: the loss on each set of queries, before each step."""
    (q, answers), valid, test, U = world(seed, each, spread, wrong)
    rng = np.random.default_rng(seed)
    kv = {name: 0.02 * rng.normal(size=(slots, HS)) for name in ("k", "v")}
    adam, curves = AdamW(weight_decay=decay), []
    for step in range(steps):
        z, pattern = slots_forward(q, **kv)
        value, dlogits = mean_loss(z @ U, answers)
        unseen = [mean_loss(slots_forward(x, **kv)[0] @ U, right)[0] for x, right in (valid, test)]
        curves.append([value, *unseen])
        dk, dv = slots_backward(dlogits @ U.T, q, kv["v"], pattern)
        adam.step(kv, {"k": dk, "v": dv}, 0.1 * (1 - step / steps))
    return np.array(curves).T  # (3, steps)


# %% [markdown]
# First without noise, one query for each topic, and all answers right.
#
# **Predict.** With how many slots will the loss be below 0.01 with all five seeds: 2, 4, 8 or only
# 16?

# %%
SEEDS, LENGTHS = range(5), (1, 2, 4, 8, 16, 32)
final = np.array([[train_head(P, seed)[0][-1] for seed in SEEDS] for P in LENGTHS])  # (n, seeds)
for P, row in zip(LENGTHS, final, strict=True):
    print(f"{P:3} slots: " + "  ".join(f"{value:7.4f}" for value in row))
assert final[0].min() >= np.log(PAIRS) - 1e-9
assert final[4:].max() < 0.001
assert [(row < 0.01).sum() for row in final[:4]] == [0, 0, 0, 4]
assert final[2].max() < 0.3
assert abs(final[1] - 1.2).max() < 0.2

figure, axis = plt.subplots(figsize=(5, 3.4), layout="constrained")
for i, P in enumerate(LENGTHS):
    axis.loglog([P] * len(SEEDS), final[i], "ko", markersize=5, fillstyle="none")
axis.loglog(LENGTHS, np.median(final, axis=1), "k-", label="median of five seeds")
axis.axhline(np.log(PAIRS), color="grey", linestyle="--", label="ln 16: one answer to all")
axis.set(title="Loss after 200 steps", xlabel="slots $P$", ylabel="loss, nats")
axis.set_xticks(LENGTHS, LENGTHS)
axis.legend()
plt.show()

# %% [markdown]
# **Answer.** With 16. Eight slots do it with four of the five seeds. One slot stays above $\ln 16$,
# as it must.

# %% [markdown]
# Sixteen answers do not strictly need sixteen slots. A query may mix the values of several slots,
# and unlike mixtures give unlike answers: with four slots the loss is already small. With two slots
# all outputs lie on one line between two values, and the five runs end near 1.2 nats.
#
# **Recap.** A head mixes the values of its slots. One slot gives the same answer to all queries;
# the more unlike answers a task has, the more slots it needs.
#
# ## Too much memory
#
# Now the data are noisy, as real data are. There are six queries for each topic, spread around it,
# and three of ten training answers are replaced. What we want is the loss on queries that were not
# trained on.
#
# **Predict.** Draw two curves for 32 slots: the training loss and the loss on unseen queries, over
# 200 steps.

# %%
NOISY = {"each": 6, "spread": 1.5, "wrong": 0.3}
noisy = {(P, seed): train_head(P, seed, **NOISY) for P in (1, 4, 32) for seed in SEEDS}

figure, axes = plt.subplots(3, 1, figsize=(5, 7), sharex=True, sharey=True, layout="constrained")
for axis, P in zip(axes, (1, 4, 32), strict=True):
    for seed in SEEDS:
        on_train, on_valid, _ = noisy[P, seed]
        axis.semilogy(on_train, "k:", linewidth=1, label="training" if seed == 0 else None)
        axis.semilogy(on_valid, "k-", linewidth=1, label="unseen" if seed == 0 else None)
    axis.set(title=f"{P} slot{'s' * (P > 1)}, five seeds", ylim=(1e-4, 30))
axes[0].legend()
figure.supylabel("loss, nats")
axes[-1].set_xlabel("step")
plt.show()

for seed in SEEDS:
    on_train, on_valid, _ = noisy[32, seed]
    assert on_train[-1] < 0.01
    assert on_valid[-1] > 2 * on_valid.min()
    assert 5 < on_valid.argmin() < 20
    assert noisy[4, seed][1][-1] > on_valid[-1]
    assert noisy[4, seed][0][-1] > 0.3  # four slots do not fit all
    assert np.ptp(noisy[1, seed][1][-100:]) < 0.1

# %% [markdown]
# **Answer.** The training loss goes to 0. The other falls first, and after some ten steps it rises
# again.

# %% [markdown]
# This is [overfitting](glossary.md#overfitting). To answer some of the training queries wrongly, as
# the data demands, the 32 slots have to tell these queries from their neighbours. On unseen queries
# that does harm. Four slots do not fit all training queries, and they end worse still: few slots
# are no remedy here. One slot cannot do this, and it cannot do the task either.
#
# The difference of the two losses is the *generalisation gap*.
#
# ### Exercise 18.5: `generalisation_gap`
#
# *5 minutes · difficulty 1 of 5*
#
# From the two curves `on_train` and `on_valid`, both $(steps,)$, return the gap at the step of the
# smallest validation loss, and the gap at the last step.


# %%
def generalisation_gap(on_train, on_valid):
    gap = ...  # (steps,)
    at_best = ...  # ()
    at_end = ...  # ()
    return at_best, at_end


grade(generalisation_gap)

# %% [markdown]
# <details><summary>Hint 1</summary>
#
# The gap is positive where the loss on unseen queries is the larger one.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# `np.argmin(on_valid)` is the step, and it is an index into the gap.
#
# </details>


# %% jupyter={"source_hidden": true}
def generalisation_gap(on_train, on_valid):
    gap = on_valid - on_train  # (steps,)
    at_best = gap[on_valid.argmin()]  # ()
    at_end = gap[-1]  # ()
    return at_best, at_end


# %%
for P in (1, 4, 32):
    gaps = np.array([generalisation_gap(*noisy[P, seed][:2]) for seed in SEEDS])  # (seeds, 2)
    print(
        f"{P:2} slots: gap at the best step {gaps[:, 0].round(2)}, at the end {gaps[:, 1].round(2)}"
    )

# %% [markdown]
# A gap of 0 is no aim in itself: one slot has a small gap and a large loss.
#
# **Recap.** If the training loss falls and the validation loss rises, the prefix learns single
# examples by heart. Look at both curves: the training loss alone does not tell.
#
# ## Stop in time
#
# [Early stopping](glossary.md#early-stopping) keeps the numbers of the step with the smallest
# validation loss. A run does not know whether a smaller one will come, so it waits: it stops after
# `patience` steps in a row without a new smallest loss.
#
# ### Exercise 18.6: `early_stop`
#
# *12 minutes · difficulty 3 of 5*
#
# From `on_valid` $(steps,)$ and `patience`, return the best step that this rule finds, and the step
# at which it stops. It stops at the first step that is `patience` steps after the best one so far.
# If that never happens, it stops at the last step. An equal loss is no new best.


# %%
def early_stop(on_valid, patience):
    best = ...  # ()
    stopped = ...  # ()
    return best, stopped


grade(early_stop)

# %% [markdown]
# <details><summary>Hint 1</summary>
#
# Go through the steps in order, and keep `best`, the step of the smallest loss so far. The rule may
# not look at later steps.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# `if on_valid[step] < on_valid[best]: best = step`, and
# `if step - best == patience: return best, step`.
#
# </details>


# %% jupyter={"source_hidden": true}
def early_stop(on_valid, patience):
    best = 0  # ()
    for step in range(len(on_valid)):
        if on_valid[step] < on_valid[best]:
            best = step  # ()
        if step - best == patience:
            return best, step
    return best, len(on_valid) - 1


# %% [markdown]
# `np.argmin` of the whole curve would need the whole run. With a small patience the rule may stop
# at a small dip, before the best step.
#
# **Predict.** With a patience of 10, does early stopping take 4 or 32 slots to the better loss?

# %%
print("slots  seed  best step  stops at   loss there   loss at the end")
stopped = {}
for P in (4, 32):
    for seed in SEEDS:
        on_valid = noisy[P, seed][1]
        best, end = early_stop(on_valid, 10)
        stopped[P, seed] = on_valid[best]
        print(f"{P:5}{seed:6}{best:11}{end:10}{on_valid[best]:13.2f}{on_valid[-1]:18.2f}")
        assert on_valid[best] < 0.8 * on_valid[-1]
at_32 = [stopped[32, seed] for seed in SEEDS]
assert max(at_32) < 0.9
assert min(noisy[32, seed][1][-1] for seed in SEEDS) > 1.7
assert all(stopped[32, seed] < stopped[4, seed] for seed in SEEDS)

# %% [markdown]
# **Answer.** 32 slots, with each of the five seeds. Stopped in time, many slots are better than
# few.

# %% [markdown]
# So the number of slots and the number of steps both decide how much is learned by heart, and we
# may choose both. We choose by the validation loss. But the smallest of many numbers is small
# partly by luck. So the loss that we *report* comes from a third set, `test`, which took no part in
# the choice.
#
# ### Exercise 18.7: `chosen_run`
#
# *8 minutes · difficulty 2 of 5*
#
# `on_valid` and `on_test` have the shape $(n, steps)$: a curve for each of $n$ lengths. Return
# three numbers: which length and which step have the smallest validation loss of all, and the test
# loss to report.


# %%
def chosen_run(on_valid, on_test):
    place = ...  # (), in the flattened array
    which = ...  # ()
    step = ...  # ()
    reported = ...  # ()
    return which, step, reported


grade(chosen_run)

# %% [markdown]
# <details><summary>Hint 1</summary>
#
# `on_valid.argmin()` counts through the flattened array, row by row.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# `divmod(place, steps)` gives the row and the column. The test loss is that of the same row and
# column, even where another one is smaller.
#
# </details>


# %% jupyter={"source_hidden": true}
def chosen_run(on_valid, on_test):
    place = int(on_valid.argmin())  # ()
    which, step = divmod(place, on_valid.shape[1])  # ()
    reported = on_test[which, step]  # ()
    return which, step, reported


# %%
for seed in SEEDS:
    on_valid, on_test = (np.array([noisy[P, seed][i] for P in (1, 4, 32)]) for i in (1, 2))
    which, step, reported = chosen_run(on_valid, on_test)
    chosen = f"{(1, 4, 32)[which]} slots, step {step}, on valid {on_valid.min():.2f}"
    print(f"seed {seed}: {chosen};", end=" ")
    print(f"to report {reported:.2f}, smallest on test {on_test.min():.2f}")
    assert which == 2
    assert reported >= on_test.min()

# %% [markdown]
# The smallest loss on `test` is never larger than the one to report. If you report it, you have
# chosen by the test. In this project `minprefix train` validates as it goes and ends with the best
# prefix.
#
# **Recap.** Keep the step with the smallest validation loss. Patience is how long you wait for a
# better one. Stopped in time, a long prefix need not overfit. Report a loss from examples that took
# no part in any choice.
#
# ## Break it yourself
#
# Another remedy is [weight decay](glossary.md#adamw), which pulls all numbers towards 0. In AdamW
# it is a term of its own: without a gradient a step multiplies each number by $1 - lr \cdot decay$.
# The bug adds it to the gradient instead, as older optimizers did. Then it passes through the
# division by $\sqrt{\hat v}$.
#
# **Predict.** Without a gradient and with the bug: by how much does a number of size 2 move in the
# first step, with a rate of 0.1 and a decay of 0.5?

# %%


def moved_by(AdamW, grad, decay, p=2.0, lr=0.1):
    params = {"p": np.array([p])}
    AdamW(weight_decay=decay).step(params, {"p": np.array([grad])}, lr)
    return params["p"][0] - p


def check_without_decay(AdamW):
    for grad in (3.0, -0.01):
        step = moved_by(AdamW, grad, 0.0)
        assert abs(step + 0.1 * np.sign(grad)) < 1e-5, f"a step of {step:.4f}, expected one rate"


def check_decay_alone(AdamW):
    step = moved_by(AdamW, 0.0, 0.5)
    assert abs(step + 2 * 0.1 * 0.5) < 1e-9, f"decay alone moves 2.0 by {step:.4f}, expected -0.1"
    step = moved_by(AdamW, 0.0, 0.1)
    assert abs(step + 2 * 0.1 * 0.1) < 1e-9, f"decay alone moves 2.0 by {step:.4f}, expected -0.02"


broken = planted("decay-in-the-gradient")
print(broken)
for check in (check_without_decay, check_decay_alone):
    check(optim.AdamW)
check_without_decay(broken.optim.AdamW)  # nothing: without decay both are the same
with caught() as error:  # take this line away, and the lesson stops here
    check_decay_alone(broken.optim.AdamW)
print(error)

# %% [markdown]
# **Answer.** By one whole rate, 0.1, whatever the decay is. For a decay of 0.5 and a number of size
# 2 that is by chance the right step. The second assert uses another decay and sees it.

# %% [markdown]
# A check with one set of numbers may be right by chance. Use two that have nothing in common.
#
# ## Remember
#
# - One slot gives one answer to every query. Unlike answers need several slots.
# - $P$ slots can give more than $P$ unlike answers, because queries mix their values.
# - Compare lengths with several seeds, and look at the worst seed.
# - Training loss down and validation loss up: single examples are learned by heart.
# - Early stopping keeps the best step; patience says how long to wait.
# - Choose the number of slots and the step by examples that are not trained on.
#
# ## Exercises
#
# **1.** (On paper.) Show that with one slot the loss of $N$ equally frequent answers cannot be
# below $\ln N$.
#
# <details><summary>Solution 1</summary>
#
# All queries get the same probabilities $p_1, p_2, \dots$ for the answers. The mean loss is
# $-\frac{1}{N} \sum_i \ln p_i$. The geometric mean of numbers is at most their arithmetic mean, so
# $(p_1 \cdots p_N)^{1/N} \le \frac{1}{N} \sum p_i \le \frac{1}{N}$. Taking $-\ln$ of both sides
# gives a mean loss of at least $\ln N$.
#
# </details>
#
# **2.** (An experiment.) Is weight decay a remedy here? Train 32 slots with a decay of 0, 1 and 3,
# and compare the last validation loss with that of early stopping.
#
# <details><summary>Solution 2</summary>
#
# ```python
# ends = {}
# for decay in (0.0, 1.0, 3.0):
#     ends[decay] = [train_head(32, seed, **NOISY, decay=decay)[1][-1] for seed in SEEDS]
#     print(f"decay {decay}: " + "  ".join(f"{value:.2f}" for value in ends[decay]))
# print("early stop: " + "  ".join(f"{value:.2f}" for value in at_32))
# assert max(ends[1.0]) < min(ends[0.0])
# ```
#
# It is a remedy: with a decay of 1 the worst seed ends below the best seed without decay. A decay
# of 3 is too much. Whatever you find holds for this world, this rate and these 200 steps.
#
# </details>
#
# Next: [A clinic: this run does not learn](19_a_clinic.py).
