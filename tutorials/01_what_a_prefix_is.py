# %% [markdown]
# # What a prefix is
#
# - **You will be able to** turn a frozen GPT-2 to a task of yours with ten lines of Python, say
#   what each number of a prefix is for, and prove what was trained and what was not.
# - **You need** Python and a little NumPy: arrays, shapes, slices. Nothing about transformers.
# - **Time** 80 minutes; it runs in 13 seconds.
# - **Difficulty** 1 of 5.
#
# ## Overview
#
# - Ten lines of Python train a prefix of 12,800 numbers, 0.9% of the model. Before, 86% of the
#   facts are wrong or missing in what the model writes about 20 new records; after, 1%.
# - A prefix made of a text's keys and values gives the same scores as the text itself, up to
#   rounding (the largest difference is less than a millionth of the largest score).
# - In the example, 2.77 of the 2.87 nats of a description's loss lie in its first token: the
#   decision to describe.
# - No weight of the model changes. A checksum over all its bytes proves it.
# - A planted bug leaves a falling loss and good texts. Only a comparison with a second way to
#   compute the same numbers finds it.
#
# ## Ten lines
#
# A *language model* reads the beginning of a text and says what comes next. GPT-2 is one. It is a
# long computation with many numbers in it, its *weights*. They were found by training on text. The
# smallest GPT-2 that was published has 124 million weights. This package comes with a tiny model
# that is built in the same way and has 1.4 million. It has read only about invented restaurants,
# films, people, cities and books: the *tiny world*.
#
# To *train* is to change numbers a little, many times over, so that the answers get better.
# *Prefix-tuning* turns a model to a task without changing a weight: the model is *frozen*. It
# trains a small array of numbers that the model sees in front of the text, the
# [prefix](glossary.md#prefix). These ten lines do all of it. Run them now. The sections below
# explain each line.

# %%
from textwrap import fill

import matplotlib.pyplot as plt
import numpy as np

import minprefix
from minprefix import GPT2, Batch, Prefix, generate, loss_and_grad
from minprefix.data.world import table_to_text
from minprefix.lessons import grade
from minprefix.optim import AdamW

END = "<|endoftext|>"

model = GPT2.load("tiny")  # 1
prefix = Prefix.normal(model.config, length=10, std=0.02, seed=0)  # 2
pairs = list(table_to_text(320, "train", seed=0))  # 3
sequences = [model.encode(f"{record}\n{text}{END}") for record, text in pairs]  # 4
starts = [len(model.encode(record + "\n")) for record, _ in pairs]  # 5
adam = AdamW()  # 6
for i in range(0, 320, 8):  # 7
    batch = Batch.pack(sequences[i : i + 8], loss_from=starts[i : i + 8])  # 8
    loss, dkv = loss_and_grad(model, prefix, batch)  # 9
    adam.step(prefix.parameters, {"kv": dkv}, lr=0.05)  # 10

print(f"{model.n_parameters} weights, all of them frozen; the prefix is trained")

# %% [markdown]
# **Recap.** The model is frozen. The ten lines train a small array of numbers in front of the text.
#
# ## Before and after
#
# A *record* is a list of facts: `name[Valley and Hammer], type[film], country[Morocco]`. We take 20
# records whose names neither the model nor the prefix has met. We put a line break after each
# record and let the model go on from there. The text that the model goes on from is called the
# *prompt*. In what the model has read, a bare record was mostly followed by a question about it. In
# the ten lines, each record was followed by a description.
#
# **Predict.** What will the model write without the prefix? And with it?

# %%
records = [record for record, _ in table_to_text(20, "test", seed=0)]
prompts = [record + "\n" for record in records]
before = generate(model, prompts, max_new_tokens=80)
after = generate(model, prompts, prefix=prefix, max_new_tokens=80)
for record, old, new in list(zip(records, before, after, strict=True))[:2]:
    print(fill(f"record:  {record}", 78))
    print(fill(f"without: {old}", 78))
    print(fill(f"with:    {new}", 78), end="\n\n")

# %% [markdown]
# **Answer.** Without the prefix the model asks a question and answers it. With the prefix it
# describes the record.

# %% [markdown]
# Two texts prove little, so we count. `slot_error_rate` is the share of all facts that the texts
# miss or get wrong. (The function's name is the usual one: research on dialogue calls a fact a
# slot. In these lessons, the word *slot* is only used for a place of a prefix, as explained below.)

# %%
from minprefix.evaluate import slot_error_rate

wrong_before = slot_error_rate(records, before)
wrong_after = slot_error_rate(records, after)
print(f"wrong or missing: {wrong_before:.0%} without, {wrong_after:.0%} with the prefix")
assert wrong_before > 0.8, "the frozen model should not describe by itself"
assert wrong_after < 0.05, "the prefix should make it describe"

# %% [markdown]
# **Recap.** Prefix-tuning keeps the model and trains a small array. Here it turns a model that asks
# questions into one that describes.
#
# ## Line 1: how a text becomes tokens
#
# A model computes with numbers, so a text must become numbers first. `encode` cuts it into
# [tokens](glossary.md#token), which are words or pieces of words. Each token has a number, its
# *id*, below $V$, the size of the *vocabulary*. `decode` joins the pieces again.

# %%
ids = model.encode(prompts[0])
print(len(ids), "tokens:", ids[:9], "...")
print([model.decode([token]) for token in ids[:9]], "...")
assert model.decode(ids) == prompts[0]

V = model.config.vocab_size
assert V == 1024
assert max(ids) < V

# %% [markdown]
# Frequent words are one token, and rare words are several. The method behind this is called *byte
# pair encoding* ([BPE](glossary.md#bpe)). [Lesson 6](06_gpt2_from_its_file.py) writes it.

# %%
for word in (" restaurant", " tokenizer"):
    pieces = [model.decode([token]) for token in model.encode(word)]
    print(repr(word), "->", pieces)
assert len(model.encode(" restaurant")) == 1
assert len(pieces) > 1
assert not any("tokenizer" in record + text for record, text in pairs)

# %% [markdown]
# None of our texts contains the word "tokenizer". The model can write it all the same, in several
# pieces.
#
# **Recap.** A text becomes a list of token ids. The model sees these ids and no letters.
#
# ## How the model writes
#
# For now, the model is a black box. $N$ tokens go in. For each of them $V$ scores come out, one for
# each token that might be next. The higher the score, the likelier the token. (The array is called
# `logits`; [lesson 3](03_softmax_and_cross_entropy.py) makes probabilities of it.)
#
# To write, take the row of the last token, choose the token with the highest score, and append it.
# Then ask again, until the model chooses the token `end`. This token stands for `END`, the mark at
# the end of every text that the model has read. Choosing the highest score is called *greedy*
# decoding.
#
# Here is your first exercise. Replace each `...` by your own code, and run the cell. `grade` calls
# your function with several inputs and compares it with ours. It says that your function is right,
# or it explains the first mistake. Hints and our answer are folded below the cell: write yours
# first. The lesson goes on with ours.
#
# ### Exercise 1.1: `write_greedily`
#
# *12 minutes · difficulty 2 of 5*
#
# Write what the model says after `prompt`, a string, with this `prefix` (or None): at most `most`
# new tokens, and no further than the end token, whose id is `model.config.eos_token_id`. Return the
# new text without the prompt and without the end token. You may call `model.encode`,
# `model.decode`, `Batch.pack` and `model.logits(Batch.pack([ids]), prefix)`, which gives an array
# $(N, V)$. Do not call `generate`: you write it.


# %%
def write_greedily(model, prompt, prefix, most):
    ids = model.encode(prompt)
    new_text = ...
    return new_text


grade(write_greedily)

# %% [markdown]
# <details><summary>Hint 1</summary>
#
# Only the last row of the scores matters: `scores[-1]`. `argmax` gives the place of its largest
# number.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# Remember how many tokens the prompt has (`start = len(ids)`), append to `ids`, and decode
# `ids[start:]` at the end. Compare with the end token before you append.
#
# </details>


# %% jupyter={"source_hidden": true}
def write_greedily(model, prompt, prefix, most):
    ids = model.encode(prompt)
    start = len(ids)
    while len(ids) < start + most:
        scores = model.logits(Batch.pack([ids]), prefix)  # (N, V)
        best = int(scores[-1].argmax())  # the last token's row predicts the next one
        if best == model.config.eos_token_id:
            break
        ids.append(best)
    return model.decode(ids[start:])


# %% [markdown]
# `generate` does the same. It is quicker, since it keeps what it has computed for earlier tokens.

# %%
end = model.config.eos_token_id
assert model.encode(END) == [end]
by_hand = write_greedily(model, prompts[0], prefix, 80)
print(fill(by_hand, 78))
assert by_hand == after[0], "generate should choose the same tokens"

# %% [markdown]
# **Recap.** A language model gives scores for the next token. Writing is a loop: choose a token,
# append it, ask again.
#
# ## What a token leaves behind
#
# How does a token at the end of the text know what stands at its beginning? The model has $L = 4$
# *layers*, one above the other, and each layer has $NH = 5$ [heads](glossary.md#head). In each head
# of each layer, every token leaves two rows of $hs = 32$ numbers: a *key* and a *value*. Roughly,
# the key says what can be found here, and the value is what one gets. Each later token compares
# what it looks for with the keys of all tokens before it, and with its own key. Then it takes a
# mixture of their values. The better a key fits, the larger the share of its value. ([Lesson
# 4](04_attention.py) has the arithmetic.)
#
# There is no other way from one token to another. A text in front reaches the tokens behind it as
# keys and values, and in no other form.

# %%
cue = model.encode("describe\n")  # 2 tokens
kv = model.keys_values(cue)
print(kv.shape)
L, two, NH, P, hs = kv.shape  # layers, key and value, heads, tokens, head size
assert (L, two, NH, P, hs) == (4, 2, 5, 2, 32)

# %% [markdown]
# So the model does not have to read the text in front. We can put its keys and values there. This
# is what a `Prefix` is: an array `prefix.kv` of shape $(L, 2, NH, P, hs)$. It has $P$
# [slots](glossary.md#slot). A slot is a place with a key and a value for every layer and head, as a
# token leaves them, but without a token.
#
# `Prefix.text` fills the slots with the keys and values of a text. If all this is true, then a
# record behind that prefix and a record behind that text get the same scores. The function below
# compares the scores of all $T$ tokens of the record, $(T, V)$ numbers. It takes the package as an
# argument, since we will give it a broken one, too.
#
# **Predict.** How large is the largest difference between the scores, as a part of the largest
# score: about a tenth, a thousandth, or a millionth and less?

# %%


def relative_error(a, b):
    """The largest difference, as a part of the largest number: 1 means all wrong."""
    return np.abs(a - b).max() / np.abs(b).max()


def check_prompting(package):
    """A prefix of a text's keys and values gives what the text gives."""
    model = package.GPT2.load("tiny")
    cue, record = model.encode("describe\n"), model.encode(prompts[0])
    both = package.Batch.pack([cue + record])
    behind_text = model.logits(both)[len(cue) :]  # (T, V)
    in_slots = package.Prefix.text(model, "describe\n")
    behind_slots = model.logits(package.Batch.pack([record]), in_slots)  # (T, V)
    error = relative_error(behind_slots, behind_text)
    assert error < 1e-6, f"the scores are off by {error:.2g} of the largest"
    return error


print(f"{check_prompting(minprefix):.1e}")
in_slots = Prefix.text(model, "describe\n")
print(fill(write_greedily(model, "describe\n" + prompts[0], None, 80), 78))
print(fill(write_greedily(model, prompts[0], in_slots, 80), 78))

# %% [markdown]
# **Answer.** Less than a millionth. A float32 has about seven digits, and only the last one
# differs.

# %% [markdown]
# **Recap.** A text reaches later tokens only as keys and values. A prefix that holds a text's keys
# and values gives the same scores as prompting with the text.
#
# ## Line 2: numbers that are free
#
# Keys and values are numbers, and they need not come from a text. Let them be any numbers, and
# search for those that serve the task best. This is the step from prompting to prefix-tuning.
#
# In our tiny world there is a word for the task: half of the texts that the model read had a first
# line such as `describe`. For a task of your own you do not know such a word, and there may be
# none. A prefix is not guessed. It is computed.
#
# ### Exercise 1.2: `prefix_size`
#
# *4 minutes · difficulty 1 of 5*
#
# A model has `n_layer` layers, `n_head` heads in each layer, `head_size` numbers in each key and
# each value, and `n_weights` weights. A prefix has `length` slots. Return two numbers: how many
# numbers the prefix has, and which fraction of `n_weights` that is.


# %%
def prefix_size(n_layer, n_head, head_size, length, n_weights):
    n = ...  # ()
    fraction = ...  # ()
    return n, fraction


grade(prefix_size)

# %% [markdown]
# <details><summary>Hint 1</summary>
#
# `prefix.kv` has the shape $(L, 2, NH, P, hs)$. How many numbers does an array of that shape hold?
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# Multiply the five entries of the shape. The 2 stands for key and value.
#
# </details>


# %% jupyter={"source_hidden": true}
def prefix_size(n_layer, n_head, head_size, length, n_weights):
    n = n_layer * 2 * n_head * length * head_size  # ()
    fraction = n / n_weights  # ()
    return n, fraction


# %% [markdown]
# `Prefix.normal` starts with small random numbers, drawn around 0 with a standard deviation of
# 0.02. We make such a prefix once more. It stays untrained, so that we can compare.

# %%
fresh = Prefix.normal(model.config, length=10, std=0.02, seed=0)
P = fresh.length
size, fraction = prefix_size(L, NH, hs, P, model.n_parameters)
print(fresh.kv.shape, "=", size, "numbers,", f"{fraction:.1%} of {model.n_parameters}")
assert fresh.kv.shape == (L, 2, NH, P, hs)
assert fresh.n_parameters == size == 12_800
of_gpt2 = prefix_size(12, 12, 64, 10, 124_439_808)  # the published GPT-2
print("for GPT-2:", of_gpt2[0], f"numbers, {of_gpt2[1]:.2%}")

# %% [markdown]
# The picture shows what the eighth token of a record sees: 10 slots and 8 tokens, in four layers.
# Each square is a key and a value for each of the 5 heads. In the light squares they are computed
# from the token, by frozen weights. In the dark squares they are trained numbers.

# %%
seen = ids[:8]  # the first tokens of the record
trained = np.tile(np.arange(P + len(seen)) < P, (L, 1)).T  # (P+T, L)

fig, ax = plt.subplots(figsize=(4.6, 5.4), layout="constrained")
ax.pcolormesh(trained, cmap="Greys", vmin=-0.2, vmax=1.6, edgecolors="grey", linewidth=1)
labels = [f"slot {j}" for j in range(P)] + [repr(model.decode([t])) for t in seen]
ax.set_yticks(np.arange(len(labels)) + 0.5, labels)
ax.set_xticks(np.arange(L) + 0.5, range(L))
ax.invert_yaxis()
ax.set(xlabel="layer", ylabel="what the token sees")
ax.set_title("Keys and values\ndark: trained, light: computed")
plt.show()

# %% [markdown]
# **Recap.** A prefix has $L \cdot 2 \cdot NH \cdot P \cdot hs$ numbers. They start at random and
# are trained. Everything else in the model is computed by frozen weights.
#
# ## Lines 3 to 5: examples
#
# `table_to_text` invents records and describes them. One example is the record, a new line, the
# description and the token `END`, in one sequence of tokens. `starts` says where the description
# begins. We do not train the model to write records, only what follows them. (`decode` prints
# nothing for `END`.)

# %%
print(fill(repr(model.decode(sequences[0][: starts[0]])), 78))
print(fill(repr(model.decode(sequences[0][starts[0] :])), 78))
for (record, text), sequence, start in zip(pairs, sequences, starts, strict=True):
    assert model.decode(sequence[:start]) == record + "\n"
    assert model.decode(sequence[start:-1]) == text
    assert sequence[-1] == end
# and none of the records that we tested with
assert not {record for record, _ in pairs} & set(records)

# %% [markdown]
# **Recap.** An example is one sequence. The loss looks only at the tokens from `starts` on.
#
# ## Lines 7 to 9: how wrong is the model?
#
# We take 8 examples at a time, 40 times. `Batch.pack` joins the 8 sequences end to end. Its
# *targets* are the tokens to be predicted: all tokens of the descriptions, and `END`.
#
# If the model gave the right token the probability $p$, we count $-\ln p$. That is 0 if the model
# was certain, and it grows without limit as $p$ goes to 0. Its unit is the *nat*. The
# [loss](glossary.md#loss) is the mean over all $M$ targets of the batch:
#
# $$loss = \frac{1}{M} \sum_{m=1}^{M} -\ln p_m$$
#
# A blind guess among 1024 tokens gives $-\ln \frac{1}{1024} = 6.9$ nats.
#
# ### Exercise 1.3: `description_loss`
#
# *8 minutes · difficulty 2 of 5*
#
# `probabilities` is an array $(T, V)$ for one sequence: row $t$ holds the probabilities of the
# token that comes *after* token $t$. `ids` is an array with the $T$ tokens of the sequence. The
# description begins at token `start`, which is at least 1. Return the loss: the mean over the
# $M = T - start$ tokens of the description.


# %%
def description_loss(probabilities, ids, start):
    targets = ...  # (M,)
    p = ...  # (M,)
    return ...


grade(description_loss)

# %% [markdown]
# <details><summary>Hint 1</summary>
#
# Token 5 is predicted by row 4. So the targets are the tokens from `start` on, and the rows begin
# one earlier.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# With `rows = np.arange(start - 1, len(ids) - 1)`, the expression `probabilities[rows, targets]`
# takes one number from each row. `np.log` is the natural logarithm.
#
# </details>


# %% jupyter={"source_hidden": true}
def description_loss(probabilities, ids, start):
    targets = ids[start:]  # (M,)
    rows = np.arange(start - 1, len(ids) - 1)  # (M,)
    p = probabilities[rows, targets]  # (M,)
    return -np.log(p).mean()


# %% [markdown]
# To get probabilities from the scores, take $e^{score}$ and divide each row by its sum. The check
# compares with `loss_and_grad`, the package's own loss.
#
# **Predict.** The frozen model asks questions, and we want descriptions. What is its loss with the
# fresh prefix: near 7, near 1, or near 0?

# %%
first = Batch.pack(sequences[:8], loss_from=starts[:8])
loss_fresh, dkv = loss_and_grad(model, fresh, first)
loss_trained, _ = loss_and_grad(model, prefix, first)
print(f"N = {len(first.tokens)} tokens, M = {len(first.targets)} targets")
print(f"ln {V} = {np.log(V):.2f}")
print(f"fresh {loss_fresh:.3f}, trained {loss_trained:.3f}")
print("with the fresh prefix it writes:", write_greedily(model, prompts[0], fresh, 80))
assert 0.03 < loss_fresh < 0.3
assert loss_trained < 0.3 * loss_fresh

alone = Batch.pack(sequences[:1], loss_from=starts[:1])
e = np.exp(model.logits(alone, fresh).astype("float64"))  # (T, V)
yours = description_loss(e / e.sum(axis=1, keepdims=True), np.array(sequences[0]), starts[0])
assert abs(yours - loss_and_grad(model, fresh, alone)[0]) < 1e-5

# %% [markdown]
# **Answer.** Near 0. And still the model asks its question!

# %% [markdown]
# We look at the loss of one token at a time. For this we cut the first example after token $t$ and
# let token $t$ be the only target. The losses differ by orders of magnitude, so the picture has a
# logarithmic axis: each step to the right is ten times as much.

# %%


def loss_of_token(t, prefix):
    only_t = Batch.pack([sequences[0][: t + 1]], loss_from=t)
    return loss_and_grad(model, prefix, only_t)[0]


targets = range(starts[0], len(sequences[0]))
of_fresh = np.array([loss_of_token(t, fresh) for t in targets])  # (M,)
of_trained = np.array([loss_of_token(t, prefix) for t in targets])  # (M,)

print(f"{of_fresh[0]:.2f} of {of_fresh.sum():.2f} nats are the first token's")
assert of_fresh[0] > 0.9 * of_fresh.sum()

places = np.arange(len(targets))
fig, ax = plt.subplots(figsize=(5, 6.4), layout="constrained")
ax.hlines(places, of_trained, of_fresh, color="grey", linewidth=1)
ax.semilogx(of_fresh, places, "o", color="tab:blue", markerfacecolor="none", label="fresh prefix")
ax.semilogx(of_trained, places, "s", color="tab:orange", markersize=5, label="trained prefix")
labels = [repr(model.decode([sequences[0][t]])) for t in targets[:-1]] + ["END"]
ax.set_yticks(places, labels)
ax.invert_yaxis()
ax.set(xlabel="loss of this token, nats (log scale)", ylabel="token of the description")
ax.set_title("The first token decides, and has the largest loss")
ax.legend()
plt.show()

# %% [markdown]
# The model can describe. Once it has begun, it copies the facts with little loss. It lacks the
# first word: it would rather begin with "Question". The mean over all tokens hides this, so a small
# loss alone does not say that the texts are good.
#
# `loss_and_grad` also gives `dkv`, the [gradient](glossary.md#gradient). For each number of the
# prefix, it says how fast the loss grows when this number grows. It has the shape of `kv`. To lower
# the loss, move every number a little against its gradient, to $kv - s \, dkv$ with a small $s$.
# The loss then falls by about the sum of (how far a number moves) times (its gradient).
#
# ### Exercise 1.4: `step_downhill`
#
# *8 minutes · difficulty 2 of 5*
#
# Return $kv - s \, dkv$. Choose $s$ so that the loss should fall by `fall`, by the rule above.


# %%
def step_downhill(kv, dkv, fall):
    s = ...  # ()
    return ...


grade(step_downhill)

# %% [markdown]
# <details><summary>Hint 1</summary>
#
# Each number moves by $s$ times its gradient. Multiply by the gradient once more and add up:
# the loss falls by about $s \sum dkv^2$.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# Solve $s \sum dkv^2 = fall$ for $s$. The sum runs over all numbers of the array.
#
# </details>


# %% jupyter={"source_hidden": true}
def step_downhill(kv, dkv, fall):
    s = fall / (dkv**2).sum()  # ()
    return kv - s * dkv


# %% [markdown]
# **Predict.** Let the step promise a fall of 0.001 nats. Will the loss really fall by that, to
# within a tenth?

# %%
assert dkv.shape == fresh.kv.shape  # (L, 2, NH, P, hs)
promised = 1e-3
fallen = loss_fresh - loss_and_grad(model, Prefix(step_downhill(fresh.kv, dkv, promised)), first)[0]
print(f"promised {promised:.2e}, fallen {fallen:.2e}")
assert abs(fallen - promised) < 0.1 * promised, "the gradient breaks its promise"

half = dkv.copy()
half[:2] = 0  # the gradient of two layers is missing
fallen = (
    loss_fresh - loss_and_grad(model, Prefix(step_downhill(fresh.kv, half, promised)), first)[0]
)
print(f"with half of the gradient set to 0: {fallen:.2e}")
assert abs(fallen - promised) < 0.1 * promised, "this check does not see the missing half"

# %% [markdown]
# **Answer.** Yes. This is a good sign and no proof: a gradient with half of its numbers set to 0
# passes the same test.

# %% [markdown]
# [Lesson 2](02_backward_by_hand.py) to [lesson 5](05_the_gradient_of_a_prefix.py) compute the
# gradient by hand, line by line, and check every number of it.
#
# **Recap.** The loss is the mean of $-\ln p$ over the targets. One token can carry most of it. The
# gradient says how the loss changes when a number of the prefix changes.
#
# ## Lines 6 and 10: a step
#
# `AdamW` is the usual way to take steps downhill. It chooses the length of the step for each number
# by itself. With `lr=0.05`, the *learning rate*, most numbers move by at most about 0.05 a step.
# For now it is a black box; [lesson 8](08_training_a_prefix.py) opens it. It changes
# `prefix.parameters["kv"]`, which is `prefix.kv`, and gets nothing else to change.
#
# **Recap.** The optimizer gets the prefix and its gradient. It never gets the model.
#
# ## What was trained and what was not
#
# We can prove this. `digest` computes one long number, a checksum (sha256), from every byte of all
# weights. If one byte changes, the checksum changes. We load the model again from its file and
# compare the two checksums.
#
# **Predict.** How many of the model's 1,442,240 weights have changed? How many of the prefix's
# 12,800 numbers?

# %%
from minprefix.model import digest

untouched = GPT2.load("tiny")
print("from the file     ", digest(untouched.weights)[:16])
print("after the training", digest(model.weights)[:16])
assert digest(model.weights) == digest(untouched.weights), "some weight was changed"

moved = prefix.kv != fresh.kv  # (L, 2, NH, P, hs)
print(f"{moved.sum()} of {moved.size} numbers of the prefix have changed")
print(f"their typical size: {fresh.kv.std():.3f} before, {prefix.kv.std():.3f} after")
assert moved.all()

# a proof that could not fail is none: change one weight by as little as a float32 allows
nudged = {name: a.copy() for name, a in model.weights.items()}
nudged["wte.weight"][0, 0] = np.nextafter(nudged["wte.weight"][0, 0], np.float32(1))
assert digest(nudged) != digest(model.weights)

# %% [markdown]
# **Answer.** No weight, and every number of the prefix.

# %% [markdown]
# So there is nothing to undo. Without the prefix, the model is what it was. You can keep ten
# prefixes for ten tasks beside one model. Each is a file of 51 kB
# ([lesson 11](11_many_tasks.py)).
#
# **Recap.** Compare checksums to show that a model is frozen. Then change one number and see the
# check fail, so that you know that it can.
#
# ## Break it yourself
#
# `planted` makes a copy of the package with one bug in it. There are more than 200 such bugs in the
# [zoo](glossary.md#zoo), and each is a mistake that people make. In this one, each layer sees the
# keys and values that were meant for layer 0. `print` shows the line that was changed, before and
# after. We train with the broken package, by the same ten lines.
#
# **Predict.** Will the loss fall? Will the texts be descriptions?

# %%
from minprefix.lessons import caught, planted

broken = planted("every-layer-sees-the-first-prefix")
print(broken, end="\n\n")


def train(package, pairs, length=10):
    model = package.GPT2.load("tiny")
    prefix = package.Prefix.normal(model.config, length=length, std=0.02, seed=0)
    sequences = [model.encode(f"{record}\n{text}{END}") for record, text in pairs]
    starts = [len(model.encode(record + "\n")) for record, _ in pairs]
    adam, losses = package.optim.AdamW(), []
    for i in range(0, len(pairs), 8):
        batch = package.Batch.pack(sequences[i : i + 8], loss_from=starts[i : i + 8])
        loss, dkv = package.loss_and_grad(model, prefix, batch)
        adam.step(prefix.parameters, {"kv": dkv}, lr=0.05)
        losses.append(loss)
    return model, prefix, losses


bad_model, bad_prefix, losses = train(broken, pairs)
said = broken.generate(bad_model, prompts, prefix=bad_prefix, max_new_tokens=80)
print("loss", [round(loss, 3) for loss in losses[::8]])
print(fill(said[0], 78))
print(f"wrong or missing: {slot_error_rate(records, said):.0%}")
assert np.mean(losses[-5:]) < 0.3 * losses[0]
assert slot_error_rate(records, said) < 0.15

# %% [markdown]
# **Answer.** The loss falls, and the texts are good. Nothing complains.

# %% [markdown]
# Most people look at nothing else. But the check from above fails: a prefix of a text's keys and
# values is no longer the same as prompting with the text. (`caught` is a guard. It holds the
# `assert` that fails, so that the lesson goes on.)

# %%
with caught() as error:  # take this line away, and the lesson stops here
    check_prompting(broken)
print(error, end="\n\n")

in_slots = broken.Prefix.text(bad_model, "describe\n")
print(*broken.generate(bad_model, prompts[:2], prefix=in_slots), sep="\n")

# %% [markdown]
# The broken package has "describe" in its slots, and asks a question.
#
# A second check is of another kind. The model should see every number of a prefix. So if we change
# the keys and values of one layer alone, some score has to change.

# %%


def check_each_layer_is_seen(package, model, prefix):
    record = package.Batch.pack([model.encode(prompts[0])])
    scores = model.logits(record, prefix)  # (N, V)
    for layer in range(L):
        kv = prefix.kv.copy()  # (L, 2, NH, P, hs)
        kv[layer] *= 1.5
        change = relative_error(model.logits(record, package.Prefix(kv)), scores)
        assert change > 1e-4, f"nothing sees the numbers of layer {layer}"


check_each_layer_is_seen(minprefix, model, prefix)
with caught() as error:
    check_each_layer_is_seen(broken, bad_model, bad_prefix)
print(error)

# %% [markdown]
# The numbers of three of the four layers were trained for nothing. The task is so easy that one
# layer's numbers were enough, so the training hid the bug. But a prefix from elsewhere, such as
# that of "describe", is not read as it was meant. So each lesson compares what it computes with
# something that was computed in another way.
#
# ## Remember
#
# - A text becomes a list of token ids. The model sees the ids and no letters.
# - Each token leaves a key and a value in every head of every layer. Later tokens see nothing else
#   of it.
# - A prefix is an array $(L, 2, NH, P, hs)$ of such keys and values, without tokens.
# - Filled with a text's keys and values, a prefix is the same as prompting with the text.
# - Prefix-tuning trains the prefix and leaves every weight as it is. Compare checksums to show it.
# - The loss is a mean over tokens. Look at single tokens, and read what the model writes.
# - A falling loss is no proof that a program is right.
#
# ## Exercises
#
# These are experiments: change a line, predict, run it. `train` gives back the model, the prefix
# and the losses.
#
# **1.** How short can the prefix be? Try a single slot. (5 minutes, difficulty 1 of 5.)
#
# <details><summary>Solution 1</summary>
#
# One slot is enough here, since it only has to say "describe". That is 1,280 numbers, less than
# a thousandth of the model.
#
# ```python
# _, one, losses = train(minprefix, pairs, length=1)
# said = generate(model, prompts, prefix=one, max_new_tokens=80)
# print(one.n_parameters, losses[-1], slot_error_rate(records, said))
# assert slot_error_rate(records, said) < 0.15
# ```
#
# </details>
#
# **2.** Same model, another task. `minprefix.data.world.listing` writes a record as a list, one
# fact on each line, and `read_record` makes the record that it wants from our line of text
# (`listing(read_record(record), None)`). Train a prefix that lists. (10 minutes, difficulty 2 of
# 5.)
#
# <details><summary>Solution 2</summary>
#
# Only the pairs change.
#
# ```python
# from minprefix.data.world import listing, read_record
#
# lists = [(record, listing(read_record(record), None)) for record, _ in pairs]
# _, lister, losses = train(minprefix, lists)
# said = generate(model, prompts[:2], prefix=lister, max_new_tokens=80)
# print(said[0])
# assert said[0].startswith("* name: ")
# ```
#
# </details>
#
# **3.** How good is `Prefix.text(model, "describe\n")` without any training? And with another word
# in its place, say "explain"? (5 minutes, difficulty 1 of 5.)
#
# <details><summary>Solution 3</summary>
#
# It makes no mistake here, since "describe" is the line that stood before the descriptions which
# the model has read. Another word is a guess: after "explain" the model still asks questions.
#
# ```python
# wrong = {}
# for word in ("describe", "explain"):
#     in_slots = Prefix.text(model, word + "\n")
#     said = generate(model, prompts, prefix=in_slots, max_new_tokens=80)
#     wrong[word] = slot_error_rate(records, said)
#     print(word, f"{wrong[word]:.0%}", repr(said[0][:50]))
# assert wrong["describe"] == 0
# assert wrong["explain"] > 0.5
# ```
#
# </details>
#
# Next: [Backward by hand](02_backward_by_hand.py).
