# %% [markdown]
# # Many tasks, one model
#
# - **You will be able to** serve several prefixes from one frozen model, in one batch; say which
#   sequence teaches which prefix, and prove it; mix prefixes and measure what comes out; keep a
#   prefix so that it cannot be put on the wrong model.
# - **You need** [what a prefix is](01_what_a_prefix_is.py) and
#   [how one is trained](08_training_a_prefix.py). One section uses the share λ of
#   [lesson 10](10_what_a_prefix_can_do.py).
# - **Time** 95 minutes; it runs in 11 seconds.
# - **Difficulty** 3 of 5.
#
# ## Overview
#
# - Three prefixes for one model together have less than 1% of its numbers. Swapping copies nothing.
# - Sequences with unlike prefixes run in one batch without padding. Each gives the logits that it
#   gives alone, to $10^{-12}$.
# - The gradient of a prefix is a sum over the sequences that see it. Two bugs get this wrong, and
#   the loss falls all the same.
# - Halfway between two prefixes lies a third task: the model writes a letter, which neither prefix
#   asks for. One head shows why: its output is linear in the values and not in the keys.
# - A saved prefix carries checksums of its model and its data, so it cannot be put on another model
#   by mistake.
#
# ## Swapping
#
# A fine-tuned model is a new model, all of it. A [prefix](glossary.md#prefix) is a small array
# beside a model that stays as it is. We make three. Two are *text prefixes*, the keys and values
# that the lines `describe` and `list` leave in each layer: 2 tokens each. Behind the line `list`
# the shipped model writes the facts of a record as a list. The third starts from random numbers, 5
# slots, and is trained to describe, for 20 steps. (Float64 throughout, so that we can compare to
# the last digits.)

# %%
import json
import tempfile
import textwrap
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import minprefix
from minprefix import GPT2, Batch, Prefix, generate, loss, loss_and_grad
from minprefix.data import world
from minprefix.lessons import grade
from minprefix.model import digest
from minprefix.optim import AdamW

model = GPT2.load("tiny", dtype="float64")
before = digest(model.weights)
END = model.config.eos_token_id
TASKS = {"describe": world.describe, "list": world.listing}  # how to write the text


def encode(source, task):
    """Token ids of a record and its text, and how many of them are the record's."""
    prompt, write = model.encode(source + "\n"), TASKS[task]
    text = write(world.read_record(source), None)  # None: these two draw nothing at random
    return [*prompt, *model.encode(text), END], len(prompt)


def pack(sources, task):
    examples = [encode(source, task) for source in sources]
    return Batch.pack([ids for ids, _ in examples], loss_from=[start for _, start in examples])


pairs = list(world.table_to_text(40, "train", seed=0))  # records and their descriptions
unseen = [source for source, _ in world.table_to_text(6, "test", seed=0)]

describe, listing = (Prefix.text(model, f"{task}\n") for task in TASKS)
trained = Prefix.normal(model.config, length=5, seed=0, dtype="float64")
adam, rng, STEPS = AdamW(), np.random.default_rng(0), 20
for step in range(STEPS):
    sources = [pairs[i][0] for i in rng.choice(len(pairs), 4, replace=False)]
    _, dkv = loss_and_grad(model, trained, pack(sources, "describe"))
    adam.step(trained.parameters, {"kv": dkv}, 0.03 * (1 - step / STEPS))


def show(text):
    """Long lines broken."""
    print("\n".join(textwrap.fill(line, 78) for line in text.split("\n")))


print(f"{'prefix':10}{'slots':>5}{'loss: describe':>16}{'list':>8}")
named = {"none": None, "describe": describe, "list": listing, "trained": trained}
for name, prefix in named.items():
    losses = [loss(model, pack(unseen, task), prefix) for task in TASKS]
    print(f"{name:10}{0 if prefix is None else prefix.length:5}{losses[0]:16.3f}{losses[1]:8.3f}")
    if prefix is not None:
        of_its_own, of_the_other = sorted(losses)
        assert (of_its_own == losses[1]) == (name == "list")
        assert of_its_own < 0.02 < 0.2 < of_the_other

# %% [markdown]
# Each prefix is good at its own task and bad at the other.
#
# **Predict.** Each prefix is an array `kv` of shape $(L, 2, NH, P, hs)$: layers, keys and values,
# heads, slots, head size; here $(4, 2, 5, P, 32)$. How large are the three together, as a part of
# the model's 1.44 million numbers? And how much is copied when the model goes from one to the next?

# %%
prompt = unseen[0] + "\n"
show(prompt)
for prefix in (describe, listing, trained):
    show(generate(model, [prompt], prefix)[0] + "\n")

sizes = [prefix.kv.size for prefix in (describe, listing, trained)]
print(f"{sum(sizes)} numbers, {sum(sizes) / model.n_parameters:.1%} of the model")
none = np.zeros((5, 0, 32))  # what a layer without a prefix would see
for prefix in (describe, listing, trained):
    for keys, values in prefix.by_layer(4, none):  # what the layers see: (NH, P, hs) each
        assert np.shares_memory(keys, prefix.kv)  # a view of kv, no copy
        assert np.shares_memory(values, prefix.kv)
assert digest(model.weights) == before  # not one byte of the model has changed

# %% [markdown]
# **Answer.** Less than one in a hundred, and nothing is copied.

# %% [markdown]
# **Recap.** To swap the task, give the model another array. No byte of the model changes.
#
# ## One batch, many prefixes
#
# Five people ask at the same time, for one task or another, or for the plain model. They need not
# wait for each other. The batch is a [stream](glossary.md#stream): all $N$ tokens of its $B$
# sequences, one sequence behind the other. The linear layers, the GELU, the layernorms and the
# embedding take the stream row by row. Only attention knows sequences. The array `offsets` $(B+1)$
# says where each begins: sequence $b$ has the rows `offsets[b]` to `offsets[b + 1]`, without the
# last. A list `which` says which prefix each sequence sees.
#
# One more thing depends on the prefix: [positions](glossary.md#position). Behind a prefix of $P$
# slots the first token of a sequence stands at position $P$, the next at $P + 1$, and so on.
#
# ### Exercise 11.1: `stream_of_requests`
#
# *8 minutes · difficulty 2 of 5*
#
# `sequences` is a list of $B$ lists of token ids, of unlike lengths. `which[b]` is the index of the
# prefix that sequence $b$ sees, and `slots[i]` is the number of slots of prefix $i$. Return three
# arrays of whole numbers: `tokens` $(N)$, `offsets` $(B+1)$ and `positions` $(N)$. Use no padding.


# %%
def stream_of_requests(sequences, which, slots):
    tokens = ...  # (N,)
    offsets = ...  # (B+1,)
    positions = ...  # (N,)
    return tokens, offsets, positions


grade(stream_of_requests)

# %% [markdown]
# <details><summary>Hint 1</summary>
#
# `np.concatenate` joins the sequences. The offsets are a running sum of the lengths, `np.cumsum`,
# with a 0 in front.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# The positions of sequence $b$ are `slots[which[b]] + np.arange(T)`, with its own length $T$.
#
# </details>


# %% jupyter={"source_hidden": true}
def stream_of_requests(sequences, which, slots):
    tokens = np.concatenate([np.array(ids) for ids in sequences])  # (N,)
    offsets = np.cumsum([0] + [len(ids) for ids in sequences])  # (B+1,)
    starts = [slots[i] for i in which]
    each = [start + np.arange(len(ids)) for start, ids in zip(starts, sequences, strict=True)]
    positions = np.concatenate(each)  # (N,)
    return tokens, offsets, positions


# %% [markdown]
# ### Exercise 11.2: `rows_that_see`
#
# *5 minutes · difficulty 2 of 5*
#
# Return an array $(N)$ of True and False: which rows of the stream belong to a sequence that sees
# prefix `i`?


# %%
def rows_that_see(offsets, which, i):
    lengths = ...  # (B,)
    return ...


grade(rows_that_see)

# %% [markdown]
# <details><summary>Hint 1</summary>
#
# The lengths of the sequences are the differences of neighbouring offsets, `np.diff(offsets)`.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# `np.repeat(which, lengths)` writes each sequence's prefix once for each of its rows.
#
# </details>


# %% jupyter={"source_hidden": true}
def rows_that_see(offsets, which, i):
    lengths = np.diff(offsets)  # (B,)
    return np.repeat(which, lengths) == i


# %% [markdown]
# In attention, sequence $b$ gets the keys and values of its prefix in front of its own:
#
# $$K_b = \begin{bmatrix} k^{pre}_{which_b} \\ k_b \end{bmatrix}, \qquad
# V_b = \begin{bmatrix} v^{pre}_{which_b} \\ v_b \end{bmatrix}$$
#
# of shape $(P + T, hs)$ in each head. Here $k_b$ and $v_b$ are the keys and values of its own $T$
# tokens, and $P$ is the number of slots of the prefix that it sees. So a sequence's rows do not
# depend on its neighbours, and neither $T$ nor $P$ need be equal.
#
# ### Exercise 11.3: `keys_by_sequence`
#
# *10 minutes · difficulty 3 of 5*
#
# `k` holds the keys of the stream, $(N, NH, hs)$. `prefix_keys` is a list with an array
# $(NH, P, hs)$ for each prefix, or None for no prefix. Return the list of the $K_b$, each of the
# shape $(NH, P+T, hs)$.


# %%
def keys_by_sequence(k, offsets, prefix_keys, which):
    found = ...
    return found


grade(keys_by_sequence)

# %% [markdown]
# <details><summary>Hint 1</summary>
#
# For each sequence, cut its rows out of `k` and bring the heads to the front:
# `k[start:end].swapaxes(0, 1)` has the shape $(NH, T, hs)$.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# Then concatenate along axis 1, the slots first. The prefix is `prefix_keys[which[b]]`; where it is
# None, the sequence has its own keys alone.
#
# </details>


# %% jupyter={"source_hidden": true}
def keys_by_sequence(k, offsets, prefix_keys, which):
    found = []
    for b, i in enumerate(which):
        keys = k[offsets[b] : offsets[b + 1]].swapaxes(0, 1)  # (NH, T, hs)
        if prefix_keys[i] is not None:
            keys = np.concatenate([prefix_keys[i], keys], axis=1)
        found.append(keys)
    return found


# %% [markdown]
# In the package, `Batch.pack(..., prefix=which)` makes the stream, and the model gets a list of
# prefixes. None in the list is no prefix.
#
# **Predict.** Five sequences of 52 to 69 tokens, with prefixes of 2, 2, 5, 0 and 2 slots. How many
# rows of padding does the batch hold?

# %%
prefixes = [describe, listing, trained, None]
which = [0, 1, 2, 3, 0]  # the last sequence sees the first prefix, too
tasks = ["describe", "list", "describe", "describe", "describe"]
examples = [encode(source, task) for source, task in zip(unseen[:5], tasks, strict=True)]
sequences, starts = [ids for ids, _ in examples], [start for _, start in examples]

batch = Batch.pack(sequences, loss_from=starts, prefix=which)
print("lengths", batch.lengths, " rows of the stream", len(batch.tokens))
slots = [0 if prefix is None else prefix.length for prefix in prefixes]
tokens, offsets, _ = stream_of_requests(sequences, which, slots)
assert np.array_equal(batch.tokens, tokens)  # no padding
assert np.array_equal(batch.offsets, offsets)
print("rows that see each prefix", [int(rows_that_see(offsets, which, i).sum()) for i in range(4)])

together = model.logits(batch, prefixes)  # (N, V)
for b in range(len(sequences)):
    alone = model.logits(Batch.pack([sequences[b]]), prefixes[which[b]])  # (T, V)
    rows = together[batch.offsets[b] : batch.offsets[b + 1]]
    error = np.abs(rows - alone).max() / np.abs(alone).max()
    print(f"sequence {b}: off by {error:.1e} of its largest logit")
    assert error < 1e-12, f"sequence {b} is not what it is alone: off by {error:.2g}"

# %% [markdown]
# **Answer.** None: the stream has as many rows as the sequences have tokens.

# %% [markdown]
# And each sequence gives in the batch what it gives alone, up to rounding. (A matrix product of
# another length may add in another order.) The same holds token by token in `generate`:

# %%
prompts = [source + "\n" for source in unseen[:4]]
texts = generate(model, prompts, prefixes, which=[0, 1, 2, 3])
for text in texts:
    show(text + "\n")
assert texts == [generate(model, [p], q)[0] for p, q in zip(prompts, prefixes, strict=True)]

# %% [markdown]
# **Recap.** A batch is one stream. Attention puts each sequence's own prefix in front of it. So
# unlike prefixes, lengths and tasks fit into one batch without padding.
#
# ## Which sequence teaches which prefix
#
# Now the backward. The loss of a batch, as a sum over its targets, is a sum over its sequences,
# $\ell = \sum_b \ell_b$, and $\ell_b$ depends on one prefix only. So for prefix $i$
#
# $$\frac{\partial \ell}{\partial kv_i} = \sum_{b \,:\, which_b = i}
# \frac{\partial \ell_b}{\partial kv_i}$$
#
# This is a *sum* over the sequences that see prefix $i$, and over no others. If the loss is the
# mean over all $M$ targets of the batch, both sides are divided by $M$, the same $M$ for every
# prefix. Nothing is divided by the number of sequences that see the prefix.
#
# ### Exercise 11.4: `gradients_by_prefix`
#
# *12 minutes · difficulty 3 of 5*
#
# Somebody ran each sequence alone, with a *mean* loss: `alone[b]` is the gradient of the mean over
# the `n_targets[b]` targets of sequence $b$, in the shape of the prefix that it sees. `prefixes` is
# the list of the arrays `kv`. Return the list of their gradients for the batch, whose loss is the
# mean over all targets of all sequences. A prefix that no sequence sees has the gradient 0.


# %%
def gradients_by_prefix(alone, n_targets, which, prefixes):
    M = ...  # ()
    grads = ...
    return grads


grade(gradients_by_prefix)

# %% [markdown]
# <details><summary>Hint 1</summary>
#
# A mean over $n$ targets times $n$ is the sum over them. Add sums, and divide by the number of all
# targets of the batch.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# Start with arrays of zeros like the prefixes, and add to the one that `which[b]` names:
# `grads[i] += n / M * gradient`.
#
# </details>


# %% jupyter={"source_hidden": true}
def gradients_by_prefix(alone, n_targets, which, prefixes):
    M = sum(n_targets)  # ()
    grads = [np.zeros_like(kv) for kv in prefixes]
    for dkv, n, i in zip(alone, n_targets, which, strict=True):
        grads[i] += n / M * dkv
    return grads


# %% [markdown]
# A mean of the sequences' means would be wrong: it counts a target of a short text more than one of
# a long text.
#
# The first check runs one sequence at a time and joins the gradients with `gradients_by_prefix`. It
# takes the package as an argument, since we will break one. A second check needs no such formula.
# It moves a prefix a little along a random direction $d$, of the shape of $kv_i$:
#
# $$\frac{\ell(kv_i + \epsilon d) - \ell(kv_i - \epsilon d)}{2 \epsilon} \approx
# \sum \frac{\partial \ell}{\partial kv_i} \odot d$$

# %%
two = [describe.kv, listing.kv]  # both (4, 2, 5, 2, 32): of equal length, which will matter
of_two = [0, 1, 0, 0, 0]  # which of them each sequence sees


def gradients(package, sequences, starts, which):
    """Loss and the gradients of two prefixes, from a batch, by this package."""
    its_model = package.GPT2.load("tiny", dtype="float64")
    batch = package.Batch.pack(sequences, loss_from=starts, prefix=which)
    return package.loss_and_grad(its_model, [package.Prefix(kv) for kv in two], batch)


def check_sum(package, sequences=sequences, starts=starts, which=of_two):
    _, grads = gradients(package, sequences, starts, which)
    alone, n_targets = [], []
    for ids, start, i in zip(sequences, starts, which, strict=True):
        _, dkv = loss_and_grad(model, Prefix(two[i]), Batch.pack([ids], loss_from=start))
        alone.append(dkv)
        n_targets.append(len(ids) - start)
    expected = gradients_by_prefix(alone, n_targets, which, two)
    for i in range(2):
        error = np.abs(grads[i] - expected[i]).max() / np.abs(expected[i]).max()
        assert error < 1e-10, f"the gradient of prefix {i} is off by {error:.2g}"


def check_direction(package, eps=1e-5):
    _, grads = gradients(package, sequences, starts, of_two)
    batch = Batch.pack(sequences, loss_from=starts, prefix=of_two)
    for i in range(2):
        d = np.random.default_rng(i).normal(size=two[i].shape)
        moved = [[Prefix(kv + s * eps * d * (j == i)) for j, kv in enumerate(two)] for s in (1, -1)]
        up, down = (loss(model, batch, prefixes) for prefixes in moved)
        slope, said = (up - down) / (2 * eps), (grads[i] * d).sum()
        off = abs(slope - said) / abs(slope)
        assert off < 1e-5, (
            f"prefix {i}: the loss rises by {slope:.2e}, the gradient says {said:.2e}"
        )


check_sum(minprefix)
check_direction(minprefix)
print("the gradients of both prefixes are right, by two checks")

# %% [markdown]
# **Predict.** A prefix in the list that no sequence of the batch sees: what is its gradient? And
# what does `loss_and_grad` give for a None in the list?

# %%
batch = Batch.pack(sequences, loss_from=starts, prefix=[0, 2, 0, 2, 0])
_, grads = loss_and_grad(model, [describe, trained, None], batch)
for grad in grads:
    print("None" if grad is None else f"{grad.shape}, largest {np.abs(grad).max():.1e}")
assert np.abs(grads[1]).max() == 0  # exactly: it took no part in the loss
assert grads[2] is None

# %% [markdown]
# **Answer.** Exactly 0, since it took no part in the loss. For a None there is None, as there is
# nothing to train.

# %% [markdown]
# **Recap.** The gradient of a prefix is the sum over the sequences that see it, divided by the
# number of all targets of the batch.
#
# ## A shelf of prefixes
#
# With hundreds of tasks, not all prefixes stay in memory. A `PrefixStore` is a folder of them. It
# reads a prefix when you ask for it, and holds at most `budget` bytes in memory. If that is too
# little, the prefix that was last asked for longest ago goes first.
#
# ### Exercise 11.5: `held_after`
#
# *10 minutes · difficulty 2 of 5*
#
# `asked` is the list of the names in the order in which they are asked for, `sizes` a dictionary
# from a name to its bytes. Return the list of the names that are held at the end, the one asked for
# longest ago first. Each single prefix fits into the budget.


# %%
def held_after(asked, sizes, budget):
    held = ...
    return held


grade(held_after)

# %% [markdown]
# <details><summary>Hint 1</summary>
#
# Keep a list in the order of the last request. A name that is asked for goes to its end, also if it
# is held already.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# Then remove names from the front *while* the sizes of all held names add up to more than the
# budget. One may not be enough.
#
# </details>


# %% jupyter={"source_hidden": true}
def held_after(asked, sizes, budget):
    held = []
    for name in asked:
        if name in held:
            held.remove(name)
        held.append(name)
        while sum(sizes[each] for each in held) > budget:
            held.pop(0)
    return held


# %% [markdown]
# The store can also decode: `generate_ids` takes the names of prefixes, and `Decoding()` says to
# take the likeliest token each time. (The folder is temporary.)
#
# **Predict.** Our prefixes have 20 480, 20 480 and 51 200 bytes in float64, and the budget is
# 80 000. We ask for `describe`, `list`, `describe`, `trained`. Which ones are held at the end?

# %%
from minprefix.generate import Decoding
from minprefix.prefixes.store import PrefixStore

temporary = tempfile.TemporaryDirectory()
folder = Path(temporary.name)
store = PrefixStore(folder / "shelf", model, budget=80_000)
for name, prefix in (("describe", describe), ("list", listing), ("trained", trained)):
    store.add(name, prefix)
for name in ("describe", "list", "describe", "trained"):
    store[name]
    print(f"{name:9s} {store.held:6d} bytes held")
sizes = {"describe": 20_480, "list": 20_480, "trained": 51_200}
still = held_after(["describe", "list", "describe", "trained"], sizes, 80_000)
print("held at the end:", still)
assert still == ["describe", "trained"]
assert store.held == 20_480 + 51_200

ids = [model.encode(prompt) for prompt in prompts[:3]]
written = store.generate_ids(ids, ["list", None, "trained"], Decoding())
show(model.decode(written[0]))

# %% [markdown]
# **Answer.** `describe` and `trained`. `list` had to go, although it was read later than
# `describe`: `describe` was asked for again.

# %% [markdown]
# **Recap.** A store holds the prefixes that were asked for last, up to a number of bytes.
#
# ## Mixing: an experiment
#
# A prefix is an array of numbers. Can one have half of `describe` and half of `list`? Nothing
# promises that this works, since a prefix was trained as a whole. The functions that mix print a
# warning, which we collect here.
#
# There are two ways. *Between two* prefixes of one shape lies a straight line,
# $kv(t) = (1 - t)\, kv_0 + t\, kv_1$. *Side by side*, the slots of both stand in front of the text:
# $P_0 + P_1$ slots.
#
# ### Side by side
#
# As in lesson 10, let $own_0$ and $own_1$ be what the slots of each prefix answer, and $frozen$
# what the tokens answer. A head now blends three answers. Its three shares are the sums $\bar a_0$,
# $\bar a_1$ and $\bar b$ of the exponentials over the slots of the first prefix, the slots of the
# second, and the tokens, divided by the sum of all three.
#
# ### Exercise 11.6: `shares_side_by_side`
#
# *8 minutes · difficulty 3 of 5*
#
# `lam_0` $(T)$ is the share λ of the first prefix when it stands alone, and `lam_1` that of the
# second one alone, for the same queries and tokens. Return the two shares that they get side by
# side.


# %%
def shares_side_by_side(lam_0, lam_1):
    odds_0 = ...  # (T,)
    odds_1 = ...  # (T,)
    return ...


grade(shares_side_by_side)

# %% [markdown]
# <details><summary>Hint 1</summary>
#
# Alone, $\lambda_0 = \bar a_0 / (\bar a_0 + \bar b)$. What is $\bar a_0 / \bar b$, the *odds*,
# written with $\lambda_0$?
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# $\bar a_0 / \bar b = \lambda_0 / (1 - \lambda_0)$. Only ratios count, so set $\bar b = 1$ and
# divide each odds by $1 + odds_0 + odds_1$.
#
# </details>


# %% jupyter={"source_hidden": true}
def shares_side_by_side(lam_0, lam_1):
    odds_0 = lam_0 / (1 - lam_0)  # (T,)
    odds_1 = lam_1 / (1 - lam_1)  # (T,)
    whole = 1 + odds_0 + odds_1  # (T,)
    return odds_0 / whole, odds_1 / whole


# %% [markdown]
# So each prefix gets less than alone, most where the other one has a large share. We check this in
# layer 0 of the model. (There the queries do not depend on a prefix. Both prefixes have 2 slots, so
# we keep the tokens at position 2 with 4 slots, too.)

# %%
from minprefix.show.attention import shares

both = Prefix(np.concatenate([describe.kv, listing.kv], axis=3), position_offset=2)
ids = model.encode(prompt)
lam_0, lam_1 = (shares(model, ids, prefix)[0] for prefix in (describe, listing))  # (NH, T) each
together_0, together_1 = shares_side_by_side(lam_0, lam_1)
assert np.allclose(shares(model, ids, both)[0], together_0 + together_1)
print(f"describe alone {lam_0.mean():.3f}, beside list {together_0.mean():.3f} (mean of layer 0)")

# %% [markdown]
# ### Halfway
#
# Now the straight line. Take one head, as in lesson 5:

# %%


def head_output(q, k, v, prefix_k, prefix_v):
    """z (T, hs) of one head, from q, k, v (T, hs) and slots (P, hs)."""
    T, P, hs = len(q), len(prefix_k), q.shape[1]
    scores = q @ np.concatenate([prefix_k, k]).T / hs**0.5  # (T, P+T)
    scores = np.where(np.tri(T, P + T, P, dtype=bool), scores, -np.inf)
    e = np.exp(scores - scores.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True) @ np.concatenate([prefix_v, v])


# %% [markdown]
# ### Exercise 11.7: `halfway_gap`
#
# *8 minutes · difficulty 2 of 5*
#
# `prefix_0` and `prefix_1` hold the keys and values of one head, $(2, P, hs)$: `prefix_0[0]` are
# keys, `prefix_0[1]` values. Return the output of the head with the mean of the two prefixes, minus
# the mean of its outputs with each of them, $(T, hs)$. Use `head_output`.


# %%
def halfway_gap(q, k, v, prefix_0, prefix_1):
    z_halfway = ...  # (T, hs)
    z_mean = ...  # (T, hs)
    return ...


grade(halfway_gap)

# %% [markdown]
# <details><summary>Hint 1</summary>
#
# "The mean of the prefixes" is an array $(2, P, hs)$ with keys and values halfway.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# `head_output(q, k, v, *prefix_0)` gives the keys and the values of the first prefix to the head.
# You need three calls.
#
# </details>


# %% jupyter={"source_hidden": true}
def halfway_gap(q, k, v, prefix_0, prefix_1):
    halfway = (prefix_0 + prefix_1) / 2  # (2, P, hs)
    z_halfway = head_output(q, k, v, *halfway)  # (T, hs)
    z_0, z_1 = (head_output(q, k, v, *prefix) for prefix in (prefix_0, prefix_1))
    z_mean = (z_0 + z_1) / 2  # (T, hs)
    return z_halfway - z_mean


# %% [markdown]
# **Predict.** For which prefixes is the gap 0: if both have the same keys, or if both have the same
# values, or never?

# %%
draw = np.random.default_rng(1)
q, k, v = draw.normal(size=(3, 6, 4))
one, other = draw.normal(0, 2, (2, 2, 3, 4))  # (2, P, hs) each
same_keys, same_values = other.copy(), other.copy()
same_keys[0], same_values[1] = one[0], one[1]
for name, second in (("unlike", other), ("same keys", same_keys), ("same values", same_values)):
    print(f"{name:12s} gap at most {np.abs(halfway_gap(q, k, v, one, second)).max():.2g}")
assert np.abs(halfway_gap(q, k, v, one, same_keys)).max() < 1e-14
assert np.abs(halfway_gap(q, k, v, one, same_values)).max() > 0.01
assert np.abs(halfway_gap(q, k, v, one, other)).max() > 0.1

# %% [markdown]
# **Answer.** With the same keys. Then the shares are the same, and the output is linear in the
# values.

# %% [markdown]
# The keys stand inside an exponential. A mean of two keys answers a query in another way than the
# two keys together. And in a model the changed output is the input of the next layer. So nothing
# says that the model does half of each task at the mean of two prefixes.
#
# **Predict.** Along the line from `describe` to `list`, the loss of descriptions rises and that of
# lists falls. What will the model write halfway: a description, a list, something between?

# %%
from minprefix.prefixes.combine import concatenate, interpolate

ts = np.linspace(0, 1, 9)
batches = [pack(unseen[:4], task) for task in TASKS]
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    line = [interpolate(describe, listing, t) for t in ts]
    beside = concatenate([describe, listing])  # 4 slots
print("warning:", said[0].message)

curves = np.array([[loss(model, batch, prefix) for prefix in line] for batch in batches])  # (2, 9)
halfway = generate(model, [prompt], line[4])[0]
show("halfway: " + halfway)
print("beside: ", repr(generate(model, [prompt], beside)[0][:60]))
print("loss beside:", [round(loss(model, batch, beside), 3) for batch in batches])
assert loss(model, batches[0], beside) > loss(model, batches[0])  # worse than without a prefix
assert curves[0, 4] > 20 * curves[0, 0]  # halfway is bad at both tasks
assert curves[1, 4] > 20 * curves[1, 8]
assert curves[0, 2] < 2 * curves[0, 0]  # a quarter of the way hardly hurts
assert halfway.startswith("Dear reader")

plt.figure(figsize=(5, 3.4), layout="constrained")
plt.plot(ts, curves[0], "o-", color="black", label="loss of descriptions")
plt.plot(ts, curves[1], "s--", color="tab:red", label="loss of lists")
plt.gca().set(title="From `describe` to `list`", xlabel="t", ylabel="loss, nats")
plt.legend()
plt.show()

# %% [markdown]
# **Answer.** Neither of the two, and nothing between them: a letter to the reader.

# %% [markdown]
# This is a third task, which the model knows from its training and which neither prefix asks for. A
# quarter of the way costs little, and halfway both losses are more than 20 times as high as at
# their best. Side by side, the model repeats itself: its loss of descriptions is above that without
# any prefix.
#
# **Recap.** Side by side, two prefixes share one softmax. Halfway between two prefixes need not lie
# anything that resembles either. Mixing is an experiment, so measure.
#
# ## Provenance
#
# A prefix on the wrong model has the right shape, and the model writes fluent nonsense. So a saved
# prefix says where it comes from. It carries fingerprints (sha256) of the model's weights, of the
# tokenizer, of the data and of its own files; how it was trained; and an evaluation that can be
# computed again. We write our data to a file, so that it has a fingerprint, and save.

# %%
from minprefix.data.pairs import Template, encode_pairs, fingerprint, read_pairs
from minprefix.prefixes.verify import evaluation, verify

data = folder / "descriptions.jsonl"
data.write_text("".join(json.dumps({"source": s, "target": t}) + "\n" for s, t in pairs))
read, template = read_pairs(data), Template()  # "{source}\n{target}", as we have trained
room = model.config.n_positions - trained.length  # as many tokens fit behind the slots
encoded = encode_pairs(model, read, template, room=room)
recorded = {
    "command": "lesson 11",
    "data_sha256": fingerprint(data),
    "options": {"data": str(data), "steps": STEPS, "lr": 0.03, "seed": 0},
}
evaluated = evaluation(model, trained, read, encoded, template, of="data")
home = folder / "trained"
trained.save(home, model, training=recorded, evaluation=evaluated)

print(*sorted(path.name for path in home.iterdir()))
about = json.loads((home / "minprefix.json").read_text())
print("base", about["base"]["name"], about["base"]["sha256"][:16])
again = Prefix.load(home, model)
assert np.abs(again.kv - trained.kv).max() < 1e-6  # files hold float32

# %% [markdown]
# **Predict.** A model of the same shape, of which a single weight differs by one thousandth. Will
# it be given the prefix?

# %%
weights = {name: a.copy() for name, a in model.weights.items()}
weights["h.0.attn.c_attn.bias"][0] += 0.001
other = GPT2(model.config, weights, model.tokenizer, name="other")


def refusal(call, *arguments):
    try:
        call(*arguments)
    except minprefix.InputError as error:
        return str(error).replace(str(folder), "...")
    return ""


sentence = refusal(Prefix.load, home, other)
show(sentence)
assert about["base"]["sha256"][:12] in sentence
assert other.fingerprint()[:12] in sentence

# %% [markdown]
# **Answer.** No. One changed weight gives another fingerprint.

# %% [markdown]
# `verify` compares everything with what was saved: the files, the base, the data, the loss and some
# texts. Then we add a line to the data, and flip a bit of the prefix.

# %%


def wrong_ones(findings):
    for what, right, text in findings:
        mark = {True: "right", False: "WRONG", None: "not checked"}[right]
        print(f"{mark:11s}  {what}: {text.replace(str(folder), '...')[:58]}")
    return [finding.what for finding in findings if finding.right is False]


assert wrong_ones(verify(home, model)) == []

with data.open("a") as file:
    file.write(json.dumps({"source": "one", "target": "more"}) + "\n")
print()
assert wrong_ones(verify(home, model)) == ["data"]

tensors = home / "adapter_model.safetensors"
content = bytearray(tensors.read_bytes())
content[-1] ^= 1  # the last bit of the last number
tensors.write_bytes(content)
print()
assert wrong_ones(verify(home, model)) == ["files"]
assert "adapter_model.safetensors" in refusal(Prefix.load, home, model)
temporary.cleanup()

# %% [markdown]
# **Recap.** A saved prefix carries fingerprints, and loading compares them. A changed weight, line
# of data or bit is refused or reported.
#
# ## Break it yourself
#
# We plant two bugs in the backward. In the first, each prefix gets the gradients of *all* rows, as
# if every sequence had seen it. This is an easy mistake in a program that repeats a prefix over the
# batch and sums afterwards.
#
# **Predict.** Our two prefixes have the same shape. What will their gradients have in common? And
# will a training with this bug look wrong?

# %%
from minprefix.lessons import caught, planted

broken = planted("gradient-of-all-rows-for-every-prefix")
print(broken)
with caught() as error:  # take this line away, and the lesson stops here
    check_sum(broken)
print(error)

_, wrong = gradients(broken, sequences, starts, of_two)
print("the two gradients are equal:", np.array_equal(wrong[0], wrong[1]))
assert np.array_equal(wrong[0], wrong[1])
assert wrong[0].shape == two[0].shape


def train_both(package, steps=6):
    """Both tasks in one batch, two prefixes of 2 slots. -> the losses."""
    its_model = package.GPT2.load("tiny", dtype="float64")
    config = its_model.config
    both = [package.Prefix.normal(config, 2, seed=i, dtype="float64") for i in (0, 1)]
    examples = [encode(s, task) for s, _ in pairs[:2] for task in TASKS]
    batch = package.Batch.pack(
        [ids for ids, _ in examples], [start for _, start in examples], prefix=[0, 1] * 2
    )
    adam, losses = AdamW(), []
    for _ in range(steps):
        value, (d0, d1) = package.loss_and_grad(its_model, both, batch)
        adam.step({"0": both[0].kv, "1": both[1].kv}, {"0": d0, "1": d1}, lr=0.03)
        losses.append(value)
    return losses


sound, crossed = train_both(minprefix), train_both(broken)
print("sound ", np.round(sound, 3))
print("broken", np.round(crossed, 3))
assert crossed[-1] < crossed[0]  # it falls all the same

# %% [markdown]
# **Answer.** The two gradients are equal, number by number. The training does not look wrong: the
# shapes fit and the loss falls.

# %% [markdown]
# But both prefixes are moved in the same direction, that of both tasks together. With prefixes of
# unequal length the program would have stopped with an error. So a check should use two of equal
# length.
#
# In the second bug, the last of the sequences that share a prefix overwrites the others.

# %%
broken = planted("shared-prefix-last-sequence-wins")
print(broken)
check_sum(broken, sequences[:2], starts[:2], [0, 1])  # one sequence for each prefix: no word
with caught() as error:
    check_sum(broken)
print(error)
with caught() as error:
    check_direction(broken)
print(error)
print(broken.see)

# %% [markdown]
# Both checks notice. But a test with one sequence for each prefix does not see this bug. A missing
# sum shows only if two sequences share a prefix.
#
# ## Remember
#
# - A prefix is swapped by giving another array. The model stays as it is.
# - One stream holds sequences with unlike prefixes, without padding. Positions begin behind the
#   prefix of each sequence.
# - A prefix's gradient is a sum over the sequences that see it. Divide once, by all targets of the
#   batch.
# - A store drops the prefix that was last asked for longest ago.
# - The output of a head is linear in values and not in keys. A mean of two prefixes is a new
#   prefix.
# - Save a prefix with fingerprints of its model and data.
# - Check with two prefixes of equal length, and with two sequences that share one.
#
# ## Exercises
#
# **1.** How many prefixes of 10 slots for GPT-2 (12 layers, 12 heads of size 64) fit into 1 GiB
# ($2^{30}$ bytes) in float32? How many fine-tuned copies of its 124.4 million weights?
#
# <details><summary>Solution 1</summary>
#
# A prefix has $12 \cdot 2 \cdot 12 \cdot 10 \cdot 64 = 184\,320$ numbers, 737 280 bytes.
#
# ```python
# print(2**30 // (12 * 2 * 12 * 10 * 64 * 4), "prefixes")  # 1456
# print(2**30 // (124_400_000 * 4), "models")  # 2
# ```
#
# </details>
#
# **2.** Put a prefix beside itself: each slot stands there twice. Is the result the same as with
# the prefix alone? Use exercise 11.6 with $\lambda_0 = \lambda_1$, and think of $own$.
#
# <details><summary>Solution 2</summary>
#
# $own$ is the same, since each slot counts twice in its sum and twice in the divisor. The shares of
# the two copies add up to $2 \lambda / (1 + \lambda)$, so the slots' answer gets a larger share.
# (The tokens would begin at position 4 in the place of 2; we put them back.)
#
# ```python
# twice = Prefix(np.concatenate([describe.kv] * 2, axis=3), position_offset=2)
# lam, lam_twice = (shares(model, ids, p)[0] for p in (describe, twice))  # layer 0: (NH, T)
# assert np.allclose(lam_twice, 2 * lam / (1 + lam))
# print([round(loss(model, batch, twice), 4) for batch in batches])
# ```
#
# </details>
#
# Next: [little data and unseen topics](12_little_data.py).
