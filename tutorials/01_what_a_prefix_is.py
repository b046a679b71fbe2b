# %% [markdown]
# # What a prefix is
#
# - **You will be able to** turn a frozen GPT-2 to a task of yours with ten lines of Python, say
#   what each number of a prefix is for, and prove what was trained and what was not.
# - **You need** Python and a little NumPy: arrays, shapes, slices. Nothing about transformers.
# - **Time** 40 minutes; it runs in 9 seconds.
# - **Difficulty** 1 of 3.
#
# ## Ten lines
#
# A *language model* reads the beginning of a text and says what comes next. GPT-2 is one. It is a
# long computation with many numbers in it, its *weights*, which were found by making it read. The
# smallest GPT-2 that was published has 124 million of them. Beside this package comes a tiny one,
# built alike, with 1.4 million. It has read about nothing but restaurants, films, people, cities
# and books, all of them invented: the *tiny world*.
#
# To *train* is to change numbers a little, many times over, so that the answers get better.
# *Prefix-tuning* turns such a model to a task and leaves every weight as it is: the model is
# *frozen*. What is trained is a small array of numbers that the model sees in front of the text,
# the *prefix*. Here is all of it. Run it now; further down, each line is taken apart.

# %%
from textwrap import fill

import matplotlib.pyplot as plt
import numpy as np

import minprefix
from minprefix import GPT2, Batch, Prefix, generate, loss_and_grad
from minprefix.data.world import table_to_text
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
# ## Before and after
#
# A *record* is a list of facts: `name[Valley and Hammer], type[film], country[Morocco]`. We take 20
# records with names that neither the model nor the prefix has ever met, put a new line behind each,
# and let the model go on from there. The text that it goes on from is called the *prompt*. In what
# the model has read, a bare record was mostly followed by a question about it. In the ten lines,
# each record was followed by a description.
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
# Without the prefix the model asks a question, and answers it. With the prefix it describes.
#
# Two texts prove little. So we count: `slot_error_rate` is the share of the facts of all records
# that the text behind them misses, or gets wrong. (To the field a fact is a *slot*. Further down
# that word will mean another thing.)

# %%
from minprefix.evaluate import slot_error_rate

wrong_before = slot_error_rate(records, before)
wrong_after = slot_error_rate(records, after)
print(f"wrong or missing: {wrong_before:.0%} without, {wrong_after:.0%} with the prefix")
assert wrong_before > 0.6, "the frozen model should not describe by itself"
assert wrong_after < 0.15, "the prefix should make it describe"

# %% [markdown]
# ## Line 1: the model
#
# A model knows no letters. A text is cut into *tokens*, pieces of words, and each token is a number
# below $V$, the size of the *vocabulary*. `encode` cuts, `decode` joins.

# %%
ids = model.encode(prompts[0])
print(len(ids), "tokens:", ids[:9], "...")
print([model.decode([token]) for token in ids[:9]], "...")
assert model.decode(ids) == prompts[0]

V = model.config.vocab_size
assert V == 1024
assert max(ids) < V

# %% [markdown]
# For us the model is a black box: $N$ tokens go in, and for each of them come out $V$ scores, one
# for each token that might be next. The higher the score, the likelier the token. (The array is
# called `logits`; [lesson 3](03_softmax_and_cross_entropy.py) makes probabilities of it.)
#
# To write, take the row of the last token, choose the token with the highest score, append it, and
# ask again, until the model chooses the token `end`. It stands for `END`, behind every text that
# the model has read. This is all that `generate` does; it is only quicker.

# %%
end = model.config.eos_token_id
assert model.encode(END) == [end]


def write(prompt, prefix=None, most=80):
    ids = model.encode(prompt)
    start = len(ids)
    while len(ids) < start + most:
        scores = model.logits(Batch.pack([ids]), prefix)  # (N, V)
        best = int(scores[-1].argmax())  # the last token's row predicts the next one
        if best == end:
            break
        ids.append(best)
    return model.decode(ids[start:])


by_hand = write(prompts[0], prefix)
print(fill(by_hand, 78))
assert by_hand == after[0], "generate should choose the same tokens"

# %% [markdown]
# ## What a token leaves behind
#
# How does a token at the end of the text know what stands at its beginning? Inside of the model lie
# $L = 4$ *layers*, one above the other, and in each of them $NH = 5$ *heads*. In every layer and
# every head, each token leaves two rows of $hs = 32$ numbers: a *key* and a *value*. Loosely: the
# key says what can be found here, and the value is what one gets. Each later token compares what it
# looks for with the keys of all tokens before it, and with its own, and takes up a mixture of their
# values, the more of one the better its key fits. ([Lesson 4](04_attention.py) has the arithmetic.)
#
# There is no other way from one token to another. Whatever stands in front of a text reaches the
# text as keys and values, and as nothing else.

# %%
cue = model.encode("describe\n")  # 2 tokens
kv = model.keys_values(cue)
print(kv.shape)
L, two, NH, P, hs = kv.shape  # layers, key and value, heads, tokens, head size
assert (L, two, NH, P, hs) == (4, 2, 5, 2, 32)

# %% [markdown]
# Then nobody has to read the text in front. One can put its keys and values there. That is what a
# `Prefix` is: an array `prefix.kv` of shape $(L, 2, NH, P, hs)$. It has $P$ *slots*. A slot is a
# place with a key and a value for every layer and head, as a token leaves them, but there is no
# token.
#
# `Prefix.text` fills the slots with the keys and values of a text. If all this is true, then a
# record behind that prefix and a record behind that text are the same thing. The function below
# compares the scores of all $T$ tokens of the record, $(T, V)$ numbers. It takes the package as an
# argument, since we will give it a broken one, too.
#
# **Predict.** By how much will the scores differ, as a part of the largest of them: by a tenth, by
# a thousandth, or by about a millionth?

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
    assert error < 1e-4, f"the scores are off by {error:.2g} of the largest"
    return error


print(f"{check_prompting(minprefix):.1e}")
print(fill(write("describe\n" + prompts[0]), 78))
print(fill(write(prompts[0], Prefix.text(model, "describe\n")), 78))

# %% [markdown]
# The same numbers, but for the last of the seven digits that a float32 has. So a prefix of a text's
# keys and values *is* prompting with the text.
#
# ## Line 2: numbers that are free
#
# And now the step that makes it interesting. Who says that keys and values have to come from a
# text? They are numbers. Let them be any numbers, and look for those that serve the task best.
#
# In our tiny world there happens to be a word for the task: half of the texts that the model read
# had a first line such as `describe`. For a task of your own nobody can tell you the word, and
# there may be none. A prefix is not guessed. It is computed.
#
# `Prefix.normal` starts with small random numbers, drawn around 0 with a standard deviation of
# 0.02. We make such a prefix once more, to have one that is fresh beside the one that is trained.
#
# **Predict.** With 10 slots, how many numbers is that? And how large a part of the 1.4 million of
# the model?

# %%
fresh = Prefix.normal(model.config, length=10, std=0.02, seed=0)
P = fresh.length
print(fresh.kv.shape, "=", fresh.kv.size, "numbers")
print(f"{fresh.n_parameters / model.n_parameters:.1%} of {model.n_parameters}")
assert fresh.kv.shape == (L, 2, NH, P, hs)
assert fresh.n_parameters == 12_800

# %% [markdown]
# $4 \cdot 2 \cdot 5 \cdot 10 \cdot 32 = 12800$, less than a hundredth.
#
# This is what the tenth token of a record sees, in the four layers. A square is a key and a value
# for each of the 5 heads. In the white squares they are computed from the token, by frozen weights.
# In the grey ones they simply stand there, and are trained.

# %%
seen = ids[:10]  # the first ten tokens of the record
trained = np.tile(np.arange(P + len(seen)) < P, (L, 1))  # (L, P+T)

fig, ax = plt.subplots(figsize=(8, 3))
ax.pcolormesh(trained, cmap="Greys", vmax=2, edgecolors="black", linewidth=1)
labels = [f"slot {j}" for j in range(P)] + [repr(model.decode([t])) for t in seen]
slanted = {"rotation": 60, "ha": "right", "rotation_mode": "anchor"}
ax.set_xticks(np.arange(len(labels)) + 0.5, labels, **slanted)
ax.set_yticks(np.arange(L) + 0.5, range(L))
ax.set_ylabel("layer")
ax.set_title("Keys and values. Grey: trained. White: computed by the frozen model")
fig.tight_layout()
plt.show()

# %% [markdown]
# ## Lines 3 to 5: examples
#
# `table_to_text` invents records and describes them. One example is the record, a new line, the
# description and the token `END`, in one sequence of tokens. `starts` says where the description
# begins: we do not train the model to write records, only what follows them. (`decode` prints
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
# ## Lines 7 to 9: how wrong, and which way is better
#
# We take 8 examples at a time, 40 times. `Batch.pack` lays the 8 sequences end to end. Its
# *targets* are the tokens to be predicted. `loss_from` says where they begin in each sequence: they
# are all tokens of the descriptions, and `END`.
#
# How wrong is the model? If it gave the right token the probability $p$, we count $-\ln p$. That
# is 0 if it was certain, and it grows without end the less it thought of the token. Its unit is the
# *nat*. The *loss* is the mean over all $M$ targets of the batch:
#
# $$loss = \frac{1}{M} \sum_{m=1}^{M} -\ln p_m$$
#
# Whoever guesses blindly among 1024 tokens has $-\ln \frac{1}{1024} = 6.9$ nats.
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
print("with the fresh prefix it writes:", write(prompts[0], fresh))
assert 0.03 < loss_fresh < 0.3
assert loss_trained < 0.3 * loss_fresh

# %% [markdown]
# Near 0, and still it asks its question! Let us look at the loss of one token at a time. We cut the
# first example behind token $t$, and let token $t$ be the only target.

# %%


def loss_of_token(t, prefix):
    only_t = Batch.pack([sequences[0][: t + 1]], loss_from=t)
    return loss_and_grad(model, prefix, only_t)[0]


targets = range(starts[0], len(sequences[0]))
of_fresh = np.array([loss_of_token(t, fresh) for t in targets])  # (M,)
of_trained = np.array([loss_of_token(t, prefix) for t in targets])  # (M,)

print(f"{of_fresh[0]:.2f} of {of_fresh.sum():.2f} nats are the first token's")
assert of_fresh[0] > 0.6 * of_fresh.sum()

places = np.arange(len(targets))
fig, ax = plt.subplots(figsize=(8, 3))
ax.bar(places - 0.2, of_fresh, 0.4, color="0.8", ec="black", label="fresh prefix")
ax.bar(places + 0.2, of_trained, 0.4, color="black", label="trained prefix")
labels = [repr(model.decode([sequences[0][t]])) for t in targets[:-1]] + ["END"]
ax.set_xticks(places, labels, **slanted)
ax.set_ylabel("loss of this token (nats)")
ax.set_title("Nearly all of the loss is one decision: how to begin")
ax.legend()
fig.tight_layout()
plt.show()

# %% [markdown]
# The model can describe. Once it has begun it copies the facts, and all goes well. What it lacks is
# the first word: it would rather begin with "Question". The mean over all tokens hides that. Keep
# it in mind when somebody shows you a small loss.
#
# `loss_and_grad` also gives `dkv`, the *gradient*: for each number of the prefix, how fast the loss
# grows when this number grows. It has the shape of `kv`. To go downhill, move every number a little
# against its gradient, $kv - s \, dkv$ with a small $s$. If the gradient tells the truth, then the
# loss falls by about $s \sum dkv^2$: each number moves by $s \, dkv$, and the loss changes by
# $dkv$ times that.
#
# **Predict.** "About": will the loss really fall by what the gradient says, to a tenth of it?

# %%
assert dkv.shape == fresh.kv.shape  # (L, 2, NH, P, hs)
promised = 1e-3
s = promised / (dkv**2).sum()  # to lower the loss by a thousandth of a nat
fallen = loss_fresh - loss_and_grad(model, Prefix(fresh.kv - s * dkv), first)[0]
print(f"promised {promised:.2e}, fallen {fallen:.2e}")
assert abs(fallen - promised) < 0.1 * promised, "the gradient breaks its promise"

# %% [markdown]
# It does, to a hundredth. That is a good sign and no proof: set half of the gradient to 0, and the
# rest still keeps its own, smaller promise. [Lesson 2](02_backward_by_hand.py) to
# [lesson 5](05_the_gradient_of_a_prefix.py) compute the gradient by hand, line by line, and check
# every number of it.
#
# ## Lines 6 and 10: a step
#
# `AdamW` is the usual way to take such steps: it goes downhill, too, but chooses the length of the
# step for each number by itself. With `lr=0.05`, the *learning rate*, a number moves by about 0.05
# a step, or less. For now it is a black box; [lesson 8](08_training_a_prefix.py) opens it. It
# changes `prefix.parameters["kv"]`, which is `prefix.kv`, and it is not given anything else.
#
# ## What was trained and what was not
#
# We can prove that. `digest` makes one long number (sha256) of every byte of all weights; change a
# byte, and it is another. We load the model anew from its file and compare the two digests.
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
assert moved.mean() > 0.99

# a proof that could not fail is none: change one weight by as little as a float32 allows
nudged = {name: a.copy() for name, a in model.weights.items()}
nudged["wte.weight"][0, 0] = np.nextafter(nudged["wte.weight"][0, 0], np.float32(1))
assert digest(nudged) != digest(model.weights)

# %% [markdown]
# No weight, and every number of the prefix. So there is nothing to undo. Leave the prefix out, and
# the model is what it was. Keep ten prefixes for ten tasks beside one model: each of them is a file
# of 51 kB ([lesson 11](11_many_tasks.py)).
#
# ## Break it yourself
#
# `planted` makes a copy of the package with one bug in it. There are 223 such bugs in its *zoo*,
# and every one is a mistake that people make. In this one, each layer sees the keys and values that
# were meant for layer 0. Print the copy, and it shows the line that was changed, before and after.
# We train with the broken package, by the same ten lines.
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
# A falling loss, good texts, no complaint from anywhere. This is all that most people look at, and
# all of it is fine. What you have checked above is not: a prefix of a text's keys and values is no
# longer the same as prompting with the text. (`caught` is a guard: it holds the `assert` that
# fails, so that the lesson goes on.)

# %%
with caught() as error:  # take this line away, and the lesson stops here
    check_prompting(broken)
print(error, end="\n\n")

in_slots = broken.Prefix.text(bad_model, "describe\n")
print(*broken.generate(bad_model, prompts[:2], prefix=in_slots), sep="\n")

# %% [markdown]
# The broken package reads "describe" in the slots, and asks a question.
#
# A second check, of another kind. Every number of a prefix is there to be seen. Change the keys and
# values of one layer alone, and some score has to change.

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
# Three of the four layers' numbers were trained for nothing. The task was so easy that the rest did
# it, and nobody would have known. But a prefix from elsewhere, such as that of "describe", is not
# read as it was meant. That is why each lesson compares what it computes with something that was
# computed in another way, and does not trust a curve.
#
# ## Exercises
#
# Experiments, this time: change a line, predict, run it. `train` gives back the model, the prefix
# and the losses.
#
# **1.** How short can the prefix be? Try a single slot.
#
# <details><summary>Solution 1</summary>
#
# One slot is enough here: all that it has to say is "describe". That is 1,280 numbers, less than
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
# (`listing(read_record(record), None)`). Train a prefix that lists.
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
# in its place, say "explain"?
#
# <details><summary>Solution 3</summary>
#
# Perfect, here: it is the line that stood before the descriptions which the model has read. Any
# other word is a guess, and a poor one. For most tasks all words are; that is why one trains.
#
# ```python
# for word in ("describe", "explain"):
#     in_slots = Prefix.text(model, word + "\n")
#     said = generate(model, prompts, prefix=in_slots, max_new_tokens=80)
#     print(word, f"{slot_error_rate(records, said):.0%}", repr(said[0][:50]))
# ```
#
# </details>
#
# Next: [Backward by hand](02_backward_by_hand.py).
