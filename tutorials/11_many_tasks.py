# %% [markdown]
# # Many tasks, one model
#
# - **You will be able to** serve several prefixes from one frozen model, in one batch; say which
#   sequence teaches which prefix, and prove it; mix prefixes and measure what comes out; keep a
#   prefix so that it cannot be put on the wrong model.
# - **You need** [what a prefix is](01_what_a_prefix_is.py) and
#   [how one is trained](08_training_a_prefix.py). One section uses the share λ of
#   [lesson 10](10_what_a_prefix_can_do.py).
# - **Time** 50 minutes; it runs in 6 seconds.
# - **Difficulty** 2 of 3.
#
# ## Swapping
#
# A fine-tuned model is a new model, all of it. A prefix is a small array beside a model that stays
# as it is. We make three. Two are *text prefixes*, the keys and values that the lines `describe`
# and `list` leave in each layer: 2 tokens each. Behind the line `list` the shipped model writes the
# facts of a record as a list. The third starts from random numbers, 5 slots, and is trained to
# describe, for 20 steps. (Float64 throughout, so that we can compare to the last digits.)

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

# %% [markdown]
# Each prefix is good at its own task and bad at the other.
#
# **Predict.** Each of them is an array `kv` of shape $(L, 2, NH, P, hs)$: layers, keys and values,
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
# Less than one in a hundred, and nothing is copied. To swap the task is to hand over another array.
#
# ## One batch, many prefixes
#
# Five people ask at the same moment, for one task or another, or for the plain model. Must they
# wait for each other? Look at where a prefix enters. The batch is a *stream*: all $N$ tokens of its
# $B$ sequences behind one another. The linear layers, the GELU, the layernorms and the embedding
# take the stream row by row. Only attention knows sequences. For sequence $b$ it puts together
#
# $$K_b = \begin{bmatrix} k^{pre}_{which_b} \\ k_b \end{bmatrix}, \qquad
# V_b = \begin{bmatrix} v^{pre}_{which_b} \\ v_b \end{bmatrix}$$
#
# of shape $(P_{which_b} + T_b, hs)$ in each head. Here $k_b$ and $v_b$ are the keys and values of
# its own $T_b$ tokens, and $which_b$ says which prefix it sees, of $P_{which_b}$ slots. So the rows
# of a sequence cannot depend on its neighbours, and neither lengths nor $P$ need agree.
# `Batch.pack(..., prefix=which)` notes it, and a list of prefixes goes to the model; None in the
# list is no prefix.
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
assert len(batch.tokens) == sum(map(len, sequences))  # no padding

together = model.logits(batch, prefixes)  # (N, V)
for b in range(len(sequences)):
    alone = model.logits(Batch.pack([sequences[b]]), prefixes[which[b]])  # (T, V)
    rows = together[batch.offsets[b] : batch.offsets[b + 1]]
    error = np.abs(rows - alone).max() / np.abs(alone).max()
    print(f"sequence {b}: off by {error:.1e} of its largest logit")
    assert error < 1e-12, f"sequence {b} is not what it is alone: off by {error:.2g}"

# %% [markdown]
# None. And a batch of strangers is what each of them is alone, to rounding (a matrix product of
# another length may add in another order). The same holds token by token in `generate`:

# %%
prompts = [source + "\n" for source in unseen[:4]]
texts = generate(model, prompts, prefixes, which=[0, 1, 2, 3])
for text in texts:
    show(text + "\n")
assert texts == [generate(model, [p], q)[0] for p, q in zip(prompts, prefixes, strict=True)]

# %% [markdown]
# ## Who teaches whom
#
# Now backwards. The loss of a batch is a sum over its sequences, $\ell = \sum_b \ell_b$, and
# $\ell_b$ looks at one prefix only. So for prefix $i$
#
# $$\frac{\partial \ell}{\partial kv_i} = \sum_{b \,:\, which_b = i}
# \frac{\partial \ell_b}{\partial kv_i}$$
#
# A *sum* over the sequences that see it, and over no others. With the mean over all $M$ targets of
# the batch, both sides are divided by $M$, the same $M$ for every prefix. Nothing else is divided,
# least of all by the number of sequences that see the prefix.
#
# The check computes the right-hand side from separate runs, one sequence at a time. It takes the
# package as an argument, since we shall break one. A second check knows nothing of sums. It moves a
# prefix a little along a random direction $d$, of the shape of $kv_i$:
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
    expected, M = [np.zeros_like(kv) for kv in two], 0
    for ids, start, i in zip(sequences, starts, which, strict=True):
        alone = Batch.pack([ids], loss_from=start)
        _, dkv = loss_and_grad(model, Prefix(two[i]), alone, reduction="sum")
        expected[i] += dkv
        M += len(ids) - start
    for i in range(2):
        error = np.abs(grads[i] - expected[i] / M).max() / np.abs(expected[i] / M).max()
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
# Exactly 0: it took no part in the loss. And for a None there is None, as there is nothing to
# train.
#
# ## A shelf of prefixes
#
# With hundreds of tasks not all prefixes stay in memory. A `PrefixStore` is a folder of them. It
# reads one when it is asked for, and holds at most `budget` bytes; the one that was asked for
# longest ago goes first. It writes, too: `generate_ids` takes the names of prefixes, and
# `Decoding()` says to take the likeliest token each time. (A temporary folder here, gone at the
# end.)
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
assert store.held == 20_480 + 51_200  # `list` had to go

ids = [model.encode(prompt) for prompt in prompts[:3]]
written = store.generate_ids(ids, ["list", None, "trained"], Decoding())
show(model.decode(written[0]))

# %% [markdown]
# `describe` and `trained`. `list` had to go, though it was read later than `describe`: what counts
# is when one was last asked for.
#
# ## Mixing: an experiment
#
# A prefix is numbers. Can one have half of `describe` and half of `list`? Nobody has promised
# anything: a prefix was trained as a whole. The functions that mix say so themselves, with a
# warning, which we collect here.
#
# Two ways. *Between two* prefixes of one shape lies a straight line,
# $kv(t) = (1 - t)\, kv_0 + t\, kv_1$. *Side by side*, there are $P_0 + P_1$ slots. As in lesson 10,
# let $own_0$ and $own_1$ be what the slots of each answer, $frozen$ what the tokens answer, and
# $\lambda_0$ and $\lambda_1$ the shares of the softmax that fall on the slots of each. Then a head
# blends three answers:
#
# $$\begin{aligned} z = \; &\lambda_0 \, own_0 + \lambda_1 \, own_1 \\
# &+ (1 - \lambda_0 - \lambda_1) \, frozen \end{aligned}$$
#
# The slots of the two compete for the same softmax.
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
assert curves[0, 4] > 20 * curves[0, 0]  # halfway is bad at both tasks
assert curves[1, 4] > 20 * curves[1, 8]
assert curves[0, 2] < 2 * curves[0, 0]  # a quarter of the way hardly hurts
assert halfway.startswith("Dear reader")

plt.figure(figsize=(6, 3.5), layout="constrained")
plt.plot(ts, curves[0], "o-", color="black", label="loss of descriptions")
plt.plot(ts, curves[1], "s--", color="tab:red", label="loss of lists")
plt.gca().set(title="From `describe` to `list`", xlabel="t", ylabel="loss, nats")
plt.legend()
plt.show()

# %% [markdown]
# Neither of the two, and nothing between them: a letter from the editors, *another* task, which the
# model knows from its training and which nobody asked for. A quarter of the way costs next to
# nothing, and then the model tips over. Side by side, it stammers: worse than no prefix at
# descriptions, and about as bad as none at lists. The mean of two instructions is a point in a
# space of numbers; what stands there, only the model knows. That is why the word is experiment, and
# why one measures.
#
# ## Provenance
#
# A prefix on the wrong model is an array of the right shape and gives fluent nonsense. So a saved
# prefix carries a record of where it comes from: fingerprints (sha256) of the model's weights, of
# the tokenizer, of the data, of its own files; how it was trained; and an evaluation that can be
# computed again. We write our data as a file, so that it has a fingerprint, and save.

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
# No. One weight is enough for another fingerprint.
#
# `verify` holds everything against the record: the files, the base, the data, the loss and some
# texts once more. Then somebody adds a line to the data, and somebody flips a bit of the prefix.

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
# ## Break it yourself
#
# Two bugs of the backward. The first: each prefix gets the gradients of *all* rows, as if it had
# been seen by every sequence. It comes naturally to a program that repeats a prefix over the batch
# and sums back.
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
# That is what you would have seen without the check: shapes that fit, a loss that falls, nearly as
# fast as it should. But both prefixes are pulled in one and the same direction, that of both tasks
# together. With prefixes of unequal length the program would have stopped. Do not count on such
# luck: a check takes two of equal length.
#
# The second bug: of all sequences that share a prefix, the last one wins.

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
# Both checks notice. But a test with one sequence for each prefix is blind to this bug: that a sum
# is missing shows from two on.
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
# **2.** Put a prefix beside itself: each slot stands there twice. Is the result the same as the
# prefix? Think of $\lambda$ and $own$ first.
#
# <details><summary>Solution 2</summary>
#
# $own$ is the same: each slot counts twice, above and below the line. But the sum $\bar a$ of the
# slots doubles, so $\lambda = \bar a / (\bar a + \bar b)$ grows to $2 \bar a / (2 \bar a + \bar
# b)$. The same voice, louder. (And the tokens would begin at position 4 instead of 2; we put them
# back.)
#
# ```python
# from minprefix.show.attention import shares
#
# twice = Prefix(np.concatenate([describe.kv] * 2, axis=3), position_offset=2)
# ids = model.encode(prompt)
# lam, lam_twice = (shares(model, ids, p)[0] for p in (describe, twice))  # layer 0: (NH, T)
# assert np.allclose(lam_twice, 2 * lam / (1 + lam))  # with a sum of 1: a is lam, b is 1 - lam
# print([round(loss(model, batch, twice), 4) for batch in batches])
# ```
#
# </details>
#
# **3.** (Graded.) Write `run_model(problem)`: loss and gradients of a batch with many prefixes,
# from runs of *one sequence at a time*. The problem has `config` and `weights` (for `GPT2(config,
# weights)`), `sequences` of token ids with `loss_from`, the index of the first predicted token;
# `prefix_of`, which prefix each sequence sees; `prefixes`, arrays $(L, 2, NH, P, hs)$ of unequal
# $P$, with `position_offsets` (for `Prefix(kv, position_offset=...)`); and `reduction`, `"mean"`
# over all targets of the batch or `"sum"`. Return a dict: `"loss"`, and for each prefix $i$
# `"prefix.{i}.dk"` and `"prefix.{i}.dv"`, $(L, NH, P, hs)$ each. Some problems have no prefix at
# all, and a sequence may have no target: then `loss_from` is its length, and a batch of it alone is
# refused.

# %%
from minprefix.lessons import grade


def run_model(problem):
    raise NotImplementedError  # yours


grade(run_model)

# %% [markdown]
# <details><summary>Solution 3</summary>
#
# ```python
# def run_model(problem):
#     model = GPT2(problem.config, dict(problem.weights))
#     offsets = problem.position_offsets
#     prefixes = [Prefix(kv, position_offset=o) for kv, o in zip(problem.prefixes, offsets)]
#     dkvs = [np.zeros_like(kv) for kv in problem.prefixes]  # (L, 2, NH, P, hs) each
#     total, M = 0.0, 0
#     for ids, start, i in zip(problem.sequences, problem.loss_from, problem.prefix_of):
#         if start == len(ids):
#             continue  # nothing to predict
#         alone = Batch.pack([ids], loss_from=start)
#         M += len(alone.targets)
#         if prefixes:
#             value, dkv = loss_and_grad(model, prefixes[i], alone, reduction="sum")
#             dkvs[i] += dkv  # += and not =: the sum over all that see it
#         else:
#             value = loss(model, alone, reduction="sum")
#         total += value
#     n = M if problem.reduction == "mean" else 1  # one division, at the end
#     found = {"loss": np.array(total / n)}
#     for i, dkv in enumerate(dkvs):
#         found |= {f"prefix.{i}.dk": dkv[:, 0] / n, f"prefix.{i}.dv": dkv[:, 1] / n}
#     return found
#
#
# grade(run_model)
# ```
#
# </details>
#
# Next: [little data and unseen topics](12_little_data.py).
