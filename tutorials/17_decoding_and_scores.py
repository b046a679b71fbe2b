# %% [markdown]
# # Decoding and scores
#
# - **You will be able to** choose the next token by temperature, top-p and beams; compute BLEU by
#   hand; and say of each score what it does not see.
# - **You need** the softmax of [lesson 3](03_softmax_and_cross_entropy.py), and training as in
#   [lesson 8](08_training_a_prefix.py).
# - **Time** 110 minutes; it runs in 14 seconds.
# - **Difficulty** 3 of 5.
#
# ## Overview
#
# - A model gives a probability to each next token. Decoding makes a text of them: greedy, by
#   sampling, or by a search.
# - Our own sampling, from uniform random numbers, writes the package's text token for token.
# - Beam search can end with a less probable text than greedy decoding: 0.058 against 0.136 in an
#   example that you compute by hand.
# - With a half-trained prefix, 8 beams find more probable texts than greedy decoding, and these get
#   more facts wrong, with each of three seeds. Dividing by the length turns this around.
# - Your BLEU gives the number of the library `sacrebleu`.
# - Each score is wrong about some text: BLEU gives 88 to a text with a wrong fact, and less than 10
#   to a right text in other words.
#
# ## Temperature
#
# The model gives one [logit](glossary.md#logits) to each token of the vocabulary, $V$ in all. The
# softmax turns them into probabilities. [Sampling](glossary.md#sampling) draws the next token with
# these probabilities. A [temperature](glossary.md#temperature) $\tau$ divides the logits first:
#
# $$p_i = \frac{e^{logit_i / \tau}}{\sum_j e^{logit_j / \tau}}$$
#
# With $\tau = 1$ these are the model's own probabilities. A smaller $\tau$ makes the likely tokens
# likelier still, and a larger one makes all tokens more alike.

# %%
import numpy as np

from minprefix import GPT2, Batch, Prefix, generate, loss, loss_and_grad
from minprefix.data.world import TASKS, describe, listing, read_record, slot_errors, table_to_text
from minprefix.evaluate import exact_match
from minprefix.generate import Decoding, generate_ids
from minprefix.lessons import caught, grade, planted
from minprefix.optim import AdamW

model = GPT2.load("tiny")
END = model.config.eos_token_id

# %% [markdown]
# ### Exercise 17.1: `temperature_probabilities`
#
# *6 minutes · difficulty 1 of 5*
#
# From `logits` of the shape $(V,)$ and a temperature, compute the probabilities `p`, of the same
# shape. Logits may be large: 800 overflows in `np.exp`. So subtract the largest one first, as in
# lesson 3.


# %%
def temperature_probabilities(logits, temperature):
    e = ...  # (V,)
    p = ...  # (V,)
    return p


grade(temperature_probabilities)

# %% [markdown]
# <details><summary>Hint 1</summary>
#
# The largest logit may be subtracted before or after the division: both cancel in the fraction.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# `e = np.exp((logits - logits.max()) / temperature)`.
#
# </details>


# %% jupyter={"source_hidden": true}
def temperature_probabilities(logits, temperature):
    e = np.exp((logits - logits.max()) / temperature)  # (V,)
    p = e / e.sum()  # (V,)
    return p


# %% [markdown]
# After a bare record the tiny model most often writes a question. These are the probabilities of
# its first token.
#
# **Predict.** With $\tau = 1$ the likeliest token has 0.6, and the next one 0.1. What becomes of
# their ratio with $\tau = 0.5$, and with $\tau = 2$?

# %%
pairs = list(table_to_text(8, "test", seed=0))
prompt = model.encode(pairs[0][0] + "\n")
logits = model.logits(Batch.pack([prompt]))[-1].astype(np.float64)  # (V,)
likely = np.argsort(-logits)[:7]

print("token     " + "".join(f"{model.decode([int(i)]).strip():>10}" for i in likely))
ratios = {}
for temperature in (0.5, 1, 2):
    p = temperature_probabilities(logits, temperature)
    print(f"tau = {temperature:<4}" + "".join(f"{p[i]:10.3f}" for i in likely))
    ratios[temperature] = p[likely[0]] / p[likely[1]]
print("first / second:", {t: round(float(ratio), 2) for t, ratio in ratios.items()})
assert np.isclose(ratios[0.5], ratios[1] ** 2)
assert np.isclose(ratios[2], ratios[1] ** 0.5)

# %% [markdown]
# **Answer.** The ratio is squared with $\tau = 0.5$, and with $\tau = 2$ its root is taken: it is
# $e^{(logit_a - logit_b) / \tau}$.

# %% [markdown]
# With $\tau \to 0$ only the likeliest token is left. That is [greedy
# decoding](glossary.md#greedy-decoding): each step takes the argmax.
#
# **Recap.** A temperature divides the logits. It raises each ratio of two probabilities to the
# power of $1 / \tau$. It never changes the order of the tokens.
#
# ## Top-p, and a draw
#
# Even at $\tau = 1$ the many unlikely tokens have some probability together, and in a long text one
# of them is drawn sooner or later. [Top-p](glossary.md#top-p) sampling (Holtzman et al., 2020)
# keeps the smallest set of the likeliest tokens that holds the probability `top_p`, and divides by
# their sum.
#
# ### Exercise 17.2: `top_p_set`
#
# *12 minutes · difficulty 2 of 5*
#
# From `p` $(V,)$ and `top_p`, return the kept tokens, the likeliest first, and their new
# probabilities in the same order. The kept set is the smallest one whose sum is at least `top_p`.
# Of equal probabilities, the lower token comes first.


# %%
def top_p_set(p, top_p):
    order = ...  # (V,)
    total = ...  # (V,)
    kept = ...  # (kept,)
    share = ...  # (kept,)
    return kept, share


grade(top_p_set)

# %% [markdown]
# <details><summary>Hint 1</summary>
#
# `np.argsort(-p)` gives the tokens in the order that you need, and `np.cumsum` adds up their
# probabilities.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# If the sums are 0.5, 0.8, 0.95 and `top_p` is 0.9, then three tokens are kept: one more than the
# number of sums below 0.9.
#
# </details>


# %% jupyter={"source_hidden": true}
def top_p_set(p, top_p):
    order = np.argsort(-p, kind="stable")  # (V,)
    total = np.cumsum(p[order])  # (V,)
    kept = order[: (total < top_p).sum() + 1]  # (kept,)
    share = p[kept] / p[kept].sum()  # (kept,)
    return kept, share


# %% [markdown]
# The token that crosses the limit is kept, too. Without it the set would hold less than `top_p`,
# and it could be empty.
#
# A computer draws uniform numbers $u$ between 0 and 1. To draw a token with the probabilities $p$,
# lay the probabilities end to end from 0 to 1 and see in which piece $u$ falls. (This is called the
# inverse of the cumulative distribution function.)
#
# ### Exercise 17.3: `draw`
#
# *6 minutes · difficulty 2 of 5*
#
# From `p` $(V,)$ and a number `u` with $0 \le u < 1$, return the index of the piece in which `u`
# falls. Piece $i$ begins at $p_0 + \dots + p_{i-1}$, and this number belongs to it.


# %%
def draw(p, u):
    ends = ...  # (V,)
    return ...


grade(draw)

# %% [markdown]
# <details><summary>Hint 1</summary>
#
# Piece $i$ ends at the sum of the first $i + 1$ probabilities.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# Count how many pieces end at or below `u`.
#
# </details>


# %% jupyter={"source_hidden": true}
def draw(p, u):
    ends = np.cumsum(p)  # (V,)
    return int((ends <= u).sum())


# %% [markdown]
# The three functions together sample a text. The package seeds the draws of each text with its seed
# and the number of the text.
#
# **Predict.** Will our text equal that of the package, token for token?

# %%


def sample(prompt, temperature, top_p, seed, new=12):
    rng, ids = np.random.default_rng([seed, 0]), list(prompt)
    for _ in range(new):
        last = model.logits(Batch.pack([ids]))[-1].astype(np.float64)  # (V,)
        kept, share = top_p_set(temperature_probabilities(last, temperature), top_p)
        ids.append(int(kept[draw(share, rng.random())]))
    return model.decode(ids[len(prompt) :])


settings = {"temperature": 1.5, "top_p": 0.95, "max_new_tokens": 12}
for seed in (0, 1, 2):
    ours = sample(prompt, 1.5, 0.95, seed)
    package = generate(model, [pairs[0][0] + "\n"], seed=seed, **settings)[0]
    print(seed, repr(ours))
    assert ours.startswith(package)

# %% [markdown]
# **Answer.** Yes. The package draws one uniform number a token, too, and looks up its piece.

# %% [markdown]
# **Recap.** Sampling needs three steps: probabilities with a temperature, the top-p set, one
# uniform number. The same seed gives the same text.
#
# ## The probability of a text
#
# A text is as probable as all its tokens together. The logarithm of a product is a sum:
#
# $$\log p(text) = \sum_{t} \log p(token_t \mid \text{all before it})$$
#
# The row $i$ of the logits holds the logits of token $i + 1$.
#
# ### Exercise 17.4: `sequence_logprob`
#
# *10 minutes · difficulty 3 of 5*
#
# `ids` are $T$ tokens: a prompt, and from index `start` on the text. `logits` has the shape
# $(T, V)$. Return the sum of the log-probabilities of the tokens from `start` on. Compute them
# without the logarithm of a probability that may be 0: $\log p_i = logit_i - \max - \log \sum_j
# e^{logit_j - \max}$.


# %%
def sequence_logprob(logits, ids, start):
    rows = ...  # (new, V)
    shifted = ...  # (new, V)
    logp = ...  # (new, V)
    chosen = ...  # (new,)
    return ...


grade(sequence_logprob)

# %% [markdown]
# <details><summary>Hint 1</summary>
#
# Row `start - 1` holds the logits of token `start`. The last row is not needed.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# `logp[np.arange(n), ids[start:]]` picks one number from each of the `n` rows.
#
# </details>


# %% jupyter={"source_hidden": true}
def sequence_logprob(logits, ids, start):
    rows = logits[start - 1 : -1]  # (new, V)
    shifted = rows - rows.max(axis=1, keepdims=True)  # (new, V)
    logp = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))  # (new, V)
    chosen = logp[np.arange(len(logp)), ids[start:]]  # (new,)
    return chosen.sum()


# %%
target = [*model.encode(pairs[0][1]), END]
ids = [*prompt, *target]
of_logits = model.logits(Batch.pack([ids])).astype(np.float64)  # (T, V)
ours = sequence_logprob(of_logits, ids, len(prompt))
by_loss = -loss(model, Batch.pack([ids], loss_from=len(prompt)), reduction="sum")
print(f"log p of the right description: {ours:.4f}; minus its summed loss: {by_loss:.4f}")
assert abs(ours - by_loss) < 1e-3

# %% [markdown]
# It is the loss of the text with the other sign, summed and not averaged.
#
# **Recap.** The log-probability of a text is a sum over its tokens. Each further token makes it
# smaller, so short texts have an advantage.
#
# ## Beams
#
# Greedy decoding decides one token at a time, and the best first token may lead to no good text.
# Beam search keeps $K$ texts, the [beams](glossary.md#beam). In each step it extends every one by
# every token, and keeps the $K$ of the highest total log-probability.
#
# ### Exercise 17.5: `beam_step`
#
# *15 minutes · difficulty 3 of 5*
#
# `totals` $(K,)$ are the log-probabilities of $K$ texts, and `logp` $(K, V)$ those of each next
# token. Return three arrays of length `beams`, best first: which text is extended, by which token,
# and the new totals. Of equal totals, take the lower text first, then the lower token.


# %%
def beam_step(totals, logp, beams):
    extended = ...  # (K, V)
    best = ...  # (beams,)
    rows = ...  # (beams,)
    tokens = ...  # (beams,)
    new_totals = ...  # (beams,)
    return rows, tokens, new_totals


grade(beam_step)

# %% [markdown]
# <details><summary>Hint 1</summary>
#
# `totals[:, None] + logp` holds all $K \cdot V$ totals. `ravel` makes one long array of them.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# `np.argsort(-extended.ravel(), kind="stable")[:beams]` are the best places in the long array.
#
# </details>
#
# <details><summary>Hint 3</summary>
#
# The place of row $r$ and token $t$ is $r \cdot V + t$: `//` and `%`, or `np.divmod`.
#
# </details>


# %% jupyter={"source_hidden": true}
def beam_step(totals, logp, beams):
    extended = totals[:, None] + logp  # (K, V)
    best = np.argsort(-extended.ravel(), kind="stable")[:beams]  # (beams,)
    rows, tokens = np.divmod(best, logp.shape[1])  # (beams,)
    new_totals = extended.ravel()[best]  # (beams,)
    return rows, tokens, new_totals


# %% [markdown]
# Here is a language of three tokens, `a`, `b` and `c`, and texts of three tokens. What comes next
# depends on what was written before:
#
# | before | `a` | `b` | `c` |
# |---|---|---|---|
# | nothing | 0.40 | 0.35 | 0.25 |
# | `a` | 0.34 | 0.33 | 0.33 |
# | `b` | 0.50 | 0.50 | 0 |
# | `aa` | 1 | 0 | 0 |
# | all others | 1/3 | 1/3 | 1/3 |
#
# **Predict.** On paper: which text does greedy decoding write, and how probable is it? Which one
# does a search with two beams write?

# %%
TABLE = {"": (0.40, 0.35, 0.25), "a": (0.34, 0.33, 0.33), "b": (0.5, 0.5, 0), "aa": (1, 0, 0)}


def search(beams, length=3):
    """The text that beam search writes in the language of the table, and its probability."""
    texts, totals = [""], np.zeros(1)
    for _ in range(length):
        p = np.array([TABLE.get(text, (1 / 3, 1 / 3, 1 / 3)) for text in texts])  # (K, 3)
        with np.errstate(divide="ignore"):  # log 0 is -inf: never chosen
            rows, tokens, totals = beam_step(totals, np.log(p), beams)
        texts = [texts[row] + "abc"[token] for row, token in zip(rows, tokens, strict=True)]
    return texts[0], float(np.exp(totals[0]))


by_beams = {beams: search(beams) for beams in (1, 2, 3)}
for beams, (text, probability) in by_beams.items():
    print(f"{beams} beam{'s' * (beams > 1)}: {text}, p = {probability:.3f}")
assert by_beams[1][0] == by_beams[3][0] == "aaa"
assert by_beams[2][1] < 0.5 * by_beams[1][1]

# %% [markdown]
# **Answer.** Greedy: `aaa`, with $0.4 \cdot 0.34 \cdot 1 = 0.136$. Two beams keep `a` and `b`, then
# `ba` and `bb` with 0.175 each, and drop `aa` with 0.136. They end with
# $0.175 / 3 = 0.058$.

# %% [markdown]
# So two beams wrote a text with less than half of the probability of the greedy one. A beam search
# is no proof of anything: what it drops may have been the beginning of the best text. Three beams
# find `aaa` again.
#
# The second problem is worse, because a better search does not help against it. Is the most
# probable text the one that we want? We train a prefix for the task `letter` with 20 steps, which
# is too few. Its texts are a mixture of what the model always wrote and what it should write. Then
# we decode greedily (1 beam) and with 8 beams. The score of a finished text is its log-probability
# divided by $length^a$. With $a = 0$ the log-probability alone decides, and with $a = 1$ its mean
# over the tokens.
#
# **Predict.** From 1 to 8 beams with $a = 0$: do the texts become more probable? Longer or shorter?
# Are more facts right?

# %%
train = list(table_to_text(120, "train", seed=0, task=TASKS["letter"]))
test = list(table_to_text(8, "test", seed=0, task=TASKS["letter"]))


def encode(source, target):
    prompt = model.encode(source + "\n")
    return [*prompt, *model.encode(target), END], len(prompt)


def pack(pairs):
    encoded = [encode(*pair) for pair in pairs]
    return Batch.pack([ids for ids, _ in encoded], loss_from=[start for _, start in encoded])


def half_trained(seed, steps=20):
    prefix, adam = Prefix.normal(model.config, 10, std=0.02, seed=seed), AdamW()
    rng = np.random.default_rng(seed)
    for step in range(steps):
        chosen = rng.choice(len(train), 4, replace=False)
        _, dkv = loss_and_grad(model, prefix, pack([train[i] for i in chosen]))
        adam.step(prefix.parameters, {"kv": dkv}, 0.1 * (1 - step / steps))
    return prefix


def decoded(prefix, **settings):
    """The mean log-probability, length and share of wrong facts of the texts."""
    texts = generate(
        model, [s + "\n" for s, _ in test], prefix=prefix, max_new_tokens=80, **settings
    )
    logp, length, wrong = [], [], []
    for (source, _), text in zip(test, texts, strict=True):
        record = read_record(source)
        logp.append(-loss(model, pack([(source, text)]), prefix, "sum"))
        length.append(len(model.encode(text)))
        wrong.append(len(slot_errors(record, text)) / len(record))
    assert max(length) < 80, "a text was cut before its end"
    return np.mean(logp), np.mean(length), np.mean(wrong)


print("seed  beams  a    log p   tokens   facts wrong")
table = {}
for seed in (0, 1, 2):
    prefix = half_trained(seed)
    for beams, norm in ((1, 0.0), (8, 0.0), (8, 1.0)):
        found = table[seed, beams, norm] = decoded(prefix, beams=beams, length_norm=norm)
        print(f"{seed:4}{beams:7}{norm:4.0f}{found[0]:9.2f}{found[1]:9.1f}{found[2]:13.0%}")
for seed in (0, 1, 2):
    greedy, eight, by_mean = (table[seed, k, a] for k, a in ((1, 0.0), (8, 0.0), (8, 1.0)))
    assert eight[0] > greedy[0], "more probable"
    assert eight[1] < greedy[1], "shorter"
    assert eight[2] > greedy[2], "worse"
    assert by_mean[2] < greedy[2], "the mean over the tokens is better here"
    assert by_mean[2] > 0.4, "and it is no measure of truth"

# %% [markdown]
# **Answer.** With all three seeds the texts of 8 beams are more probable and shorter, and they
# state fewer facts.

# %% [markdown]
# Nothing is wrong with this search. It found what it was asked for: the most probable text. A short
# text has few tokens to pay for. With the mean over the tokens ($a = 1$) the 8 beams get fewer
# facts wrong than greedy decoding does. Their texts are about twice as long. But the mean
# log-probability is no measure of truth, either: half of the facts are still wrong.
#
# All this matters where a model is unsure. The cue `describe`, used as a prefix, leaves nearly all
# of the probability to one text, and then greedy decoding and 8 beams write the same:

# %%
cue = Prefix.text(model, "describe\n")
prompts = [source + "\n" for source, _ in test[:4]]
greedy, eight = (
    generate(model, prompts, prefix=cue, max_new_tokens=50, beams=beams) for beams in (1, 8)
)
print(greedy[0])
assert greedy == eight

# %% [markdown]
# **Recap.** A wider beam need not give a more probable text, and a more probable text need not be a
# better one. Log-probability prefers short texts, its mean prefers long ones.
#
# ## BLEU by hand
#
# Now we have texts, and want one number for them. [BLEU](glossary.md#bleu) (Papineni et al., 2002)
# compares a text, the *candidate*, with a *reference* that a person wrote. It counts their common
# *n-grams*: groups of $n$ words in a row, for $n$ from 1 to 4. A candidate `the the the` would have
# all its words in the reference `the fox`, so the counts are *clipped*: an n-gram counts at most as
# often as it stands in the reference.
#
# ### Exercise 17.6: `ngram_matches`
#
# *12 minutes · difficulty 3 of 5*
#
# `candidate` and `reference` are lists of words. Return two numbers: how many n-grams of the
# candidate are matched, clipped, and how many n-grams it has.


# %%
def ngram_matches(candidate, reference, n):
    matched = ...  # ()
    total = ...  # ()
    return matched, total


grade(ngram_matches)

# %% [markdown]
# <details><summary>Hint 1</summary>
#
# A list of $m$ words has $m - n + 1$ n-grams, and none if $m < n$.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# `Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))` counts the n-grams.
# (`from collections import Counter`.)
#
# </details>
#
# <details><summary>Hint 3</summary>
#
# For each n-gram of the candidate add `min(count, count in the reference)`.
#
# </details>


# %% jupyter={"source_hidden": true}
def ngram_matches(candidate, reference, n):
    ours, theirs = (
        [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
        for words in (candidate, reference)
    )
    matched = sum(min(ours.count(gram), theirs.count(gram)) for gram in set(ours))  # ()
    total = len(ours)  # ()
    return matched, total


# %% [markdown]
# A short candidate can have all its n-grams in the reference and still lack most of the text. So
# there is a *brevity penalty*. With $c$ words in all candidates and $r$ in all references:
#
# $$BP = \begin{cases} 1 & c \ge r \\ e^{1 - r/c} & c \lt r \end{cases}$$
#
# ### Exercise 17.7: `brevity_penalty`
#
# *3 minutes · difficulty 1 of 5*
#
# Return $BP$ for the two numbers $c$ and $r$. Without any words, $c = 0$, it is 0.


# %%
def brevity_penalty(c, r):
    penalty = ...  # ()
    return penalty


grade(brevity_penalty)

# %% [markdown]
# <details><summary>Hint 1</summary>
#
# There are three cases: $c = 0$, where the fraction has no value; $c$ smaller than $r$; and all
# others.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# A candidate that is too long gets no reward: the penalty is at most 1. `np.exp(1 - r / c)` would
# be larger there.
#
# </details>


# %% jupyter={"source_hidden": true}
def brevity_penalty(c, r):
    if c == 0:
        return 0.0
    penalty = min(1.0, np.exp(1 - r / c))  # ()
    return penalty


# %% [markdown]
# BLEU of a whole set of texts adds up the matches and the totals over all of them, for each $n$,
# and divides only then: $p_n = \sum matched_n / \sum total_n$. It is the geometric mean of the
# four:
#
# $$BLEU = 100 \cdot BP \cdot (p_1 \, p_2 \, p_3 \, p_4)^{1/4}$$
#
# ### Exercise 17.8: `bleu`
#
# *15 minutes · difficulty 3 of 5*
#
# `candidates` and `references` are lists of texts, and a text is a list of words. Return BLEU. If
# some $p_n$ is 0, or the candidates have no n-grams of that length, it is 0.


# %%
def bleu(candidates, references):
    matched = ...  # (4,)
    total = ...  # (4,)
    return ...


grade(bleu)

# %% [markdown]
# <details><summary>Hint 1</summary>
#
# `ngram_matches` for each text and each $n$ gives an array of the shape (texts, 4, 2). Sum over the
# texts.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# $c$ and $r$ are sums over all texts, too: one brevity penalty for the whole set.
#
# </details>
#
# <details><summary>Hint 3</summary>
#
# `np.prod(matched / total) ** (1 / 4)`, after the case of a 0.
#
# </details>


# %% jupyter={"source_hidden": true}
def bleu(candidates, references):
    both = list(zip(candidates, references, strict=True))
    counts = np.array([[ngram_matches(a, b, n) for n in (1, 2, 3, 4)] for a, b in both])
    matched, total = counts.sum(axis=0).T  # (4,)
    if (matched == 0).any():
        return 0.0
    penalty = brevity_penalty(sum(map(len, candidates)), sum(map(len, references)))
    return 100 * penalty * np.prod(matched / total) ** (1 / 4)


# %% [markdown]
# Four sentences, short enough to count on paper:
#
# **Predict.** Which of the four has the lowest BLEU of its own? Count the 4-grams of each that
# stand in its reference.

# %%
REFERENCE = ["the", "fox", "serves", "italian", "food", "in", "the", "old", "town"]
FOUR = {
    "the same": "the fox serves italian food in the old town",
    "one wrong word": "the fox serves italian food in the new town",
    "only the": "the the the the the the the the the",
    "said differently": "italian food is served in the old town by the fox",
}
for name, text in FOUR.items():
    words = text.split()
    grams = " ".join("{}/{}".format(*ngram_matches(words, REFERENCE, n)) for n in (1, 2, 3, 4))
    print(f"{name:18}{grams:24}BLEU {bleu([words], [REFERENCE]):6.1f}")
candidates, references = [text.split() for text in FOUR.values()], [REFERENCE] * 4
ours = bleu(candidates, references)
print(f"all four together: {ours:.2f}")
assert bleu(candidates[:1], references[:1]) == 100
assert bleu(candidates[2:3], references[2:3]) == 0

# %% [markdown]
# **Answer.** `only the`: none of its 4-grams, nor of its bigrams, stands in the reference. Clipping
# leaves 2 of its 9 words.

# %% [markdown]
# The library [sacrebleu](https://github.com/mjpost/sacrebleu) (Post, 2018) computes the number that
# papers report. It splits texts into words by rules of its own, and replaces zeros by small numbers
# (*smoothing*). Both are switched off here, so that it computes what we do.

# %%
try:
    from sacrebleu.metrics import BLEU
except ImportError:
    print("sacrebleu is not installed, so this cell compares nothing")
else:
    plain = BLEU(tokenize="none", smooth_method="none")
    theirs = plain.corpus_score(list(FOUR.values()), [[" ".join(REFERENCE)] * 4]).score
    print(f"sacrebleu: {theirs:.2f}, ours: {ours:.2f}")
    assert abs(theirs - ours) < 1e-9
    smoothed = BLEU().corpus_score([FOUR["only the"]], [[" ".join(REFERENCE)]]).score
    print(f"with its own settings, for `only the` alone: {smoothed:.2f} in the place of 0")

# %% [markdown]
# The BLEU of a set is not the mean of the BLEUs of its texts. And a BLEU without its settings
# cannot be compared with another one: name the library and its signature.
#
# **Recap.** BLEU is a geometric mean of four clipped precisions times a penalty for short texts.
# The counts are added up over the whole set first.
#
# ## Where each score lies
#
# Six texts about one record. Beside BLEU stand two other scores of this project: the share of facts
# that a text misses or gets wrong ([slot error rate](glossary.md#slot-error-rate), `slot_errors`),
# and whether it equals the reference (`exact_match`).
#
# **Predict.** For each of the six, is its BLEU above 80 or below 20? Which of the six would you
# send to a reader?

# %%
OTHER_WORDS = "Have you seen Mill and Table? This comedy of 1940, a film, was given three stars."
record = read_record(pairs[1][0])
right = describe(record)
other = right.replace("1940", "1968")
facts = [value for name, value in record.items() if name not in ("name", "type")]
texts = {
    "right": right,
    "one wrong fact": other,
    "other words": OTHER_WORDS,
    "no full stop": right[:-1],
    "a list": listing(record, None),
    "values alone": f"{record['name']}, a {record['type']}: " + " ".join(facts),
}
print(pairs[1][0])
print(f"{'':16}{'BLEU':>6}{'facts wrong':>13}{'exact':>7}")
scores = {}
for name, text in texts.items():
    words = bleu([text.split()], [right.split()])
    wrong = len(slot_errors(record, text)) / len(record)
    same = exact_match([text], [[right]])
    scores[name] = words, wrong, same
    print(f"{name:16}{words:6.1f}{wrong:13.0%}{same:7.0f}   {text[:36]!r}")
assert other != right
assert scores["one wrong fact"][0] > 80
assert scores["one wrong fact"][1] > 0
assert scores["other words"][0] < 10
assert scores["other words"][1] == scores["values alone"][1] == 0
assert scores["a list"][1] > 0
assert all(scores[name][0] > 80 for name in ("right", "one wrong fact", "no full stop"))
assert all(scores[name][0] < 20 for name in ("other words", "a list", "values alone"))
assert scores["no full stop"][2] == 0

# %% [markdown]
# **Answer.** The right text, the one with a wrong fact and the one without a full stop have a BLEU
# above 80. The other three have less than 20.

# %% [markdown]
# Read the table by its columns:
#
# - *BLEU* gives 88 to a text with a wrong year. One word in more than twenty is wrong, and it is
#   the one that matters. It gives next to nothing to a sentence with other words in which every
#   fact is right.
# - *Facts wrong* is 0 for a heap of values that nobody wants to read. For the list it is 20%,
#   although each line is right: it looks for "a film", and the list says "type: film".
# - *Exact match* says 0 for a missing full stop.
#
# And the loss? Here is the base model on the descriptions of 8 unseen records, without any prefix.

# %%
descriptions = list(table_to_text(8, "test", seed=0))
nats = loss(model, pack(descriptions))
said = generate(model, [source + "\n" for source, _ in descriptions], max_new_tokens=45)
hits = exact_match(said, [[target] for _, target in descriptions])
print(f"loss {nats:.3f} nats a token, a perplexity of {np.exp(nats):.2f}; {hits:.0%} right")
both = [encode(*pair) for pair in descriptions]
rest = Batch.pack([ids for ids, _ in both], loss_from=[start + 1 for _, start in both])
print(f"loss of all tokens but the first: {loss(model, rest):.4f}")
assert loss(model, rest) < 0.02
print("it says", repr(said[0]))
assert nats < 0.15
assert hits == 0

# %% [markdown]
# A perplexity of 1.1 sounds like a model that is nearly always sure and right. It is so for all
# tokens but the first, and the loss is their mean. All eight texts are wrong.
#
# **Recap.** Every score looks at a part. BLEU sees word groups, slot errors see values, exact match
# sees equality, and the loss sees the mean token. Report more than one, and read some texts.
#
# ## Break it yourself
#
# Decoding keeps keys and values in a cache, and the prefix is the beginning of this cache. The bug:
# the prefix is there for the prompt and the first new token, and then it is lost.
#
# A check needs no second implementation. One whole forward over the prompt and the new tokens must
# have each new token as the argmax of the row before it. `check_first` asks this of the first new
# token alone, `check_follows` of all.
#
# **Predict.** Which of the two fires? We use two prefixes: the half-trained one for letters, and
# the cue `describe`, which works as a prompt.

# %%
prompts = [model.encode(source + "\n") for source, _ in test[:4]]


def greedy_tokens(write, prefix):
    """For each prompt the new tokens, and what one whole forward would have chosen."""
    for prompt, new in zip(
        prompts, write(model, prompts, prefix, decoding=Decoding(40)), strict=True
    ):
        rows = model.logits(Batch.pack([[*prompt, *new]]), prefix)[len(prompt) - 1 : -1]
        yield np.array(new), rows.argmax(axis=1)


def check_first(write, prefix):
    for new, greedy in greedy_tokens(write, prefix):
        assert new[0] == greedy[0], "the first new token is not the likeliest one"


def check_follows(write, prefix):
    for new, greedy in greedy_tokens(write, prefix):
        share = (new == greedy).mean()
        assert share == 1, f"only {share:.0%} of the new tokens are the likeliest ones"


for given in (prefix, cue):
    check_follows(generate_ids, given)

broken = planted("prefix-lost-after-the-first-token")
print(broken)
check_first(broken.generate_ids, prefix)  # nothing: the first token still sees the prefix
with caught() as error:  # take this line away, and the lesson stops here
    check_follows(broken.generate_ids, prefix)
print(error)

described = [target for _, target in descriptions[:4]]
for name, write in (("sound", generate_ids), ("broken", broken.generate_ids)):
    texts = [model.decode(new) for new in write(model, prompts, cue, decoding=Decoding(45))]
    value = bleu([text.split() for text in texts], [text.split() for text in described])
    print(f"{name}: BLEU {value:.1f} with the cue as a prefix")
    assert value > 90

# %% [markdown]
# **Answer.** `check_follows`, with the half-trained prefix. With the cue the first token decides
# almost everything, so BLEU hardly notices that the prefix is gone.

# %% [markdown]
# A good score is no proof that the program is right. It says that these texts are like those
# references.
#
# ## Remember
#
# - A temperature divides the logits; it changes ratios and never the order.
# - Top-p keeps the smallest set that holds the probability, with the token that crosses the limit.
# - The log-probability of a text is a sum, so it prefers short texts.
# - Beam search may drop the beginning of the best text, and the most probable text may be a bad
#   one.
# - BLEU adds up clipped counts over the whole set, and takes a geometric mean.
# - A wrong fact costs BLEU little. A right text in other words costs it much.
# - Give more than one score, with its settings, and read some of the texts.
#
# ## Exercises
#
# **1.** (On paper.) What are the probabilities for $\tau \to 0$ and for $\tau \to \infty$, if two
# tokens share the largest logit?
#
# <details><summary>Solution 1</summary>
#
# For $\tau \to 0$ both likeliest tokens get 1/2 and all others 0: their ratio is
# $e^{0 / \tau} = 1$, and every other ratio goes to 0. For $\tau \to \infty$ all ratios go to 1, so
# each token gets $1/V$.
#
# ```python
# logits = np.array([2.0, 5.0, 5.0, -1.0])
# print(temperature_probabilities(logits, 1e-3).round(3))
# print(temperature_probabilities(logits, 1e6).round(3))
# assert np.allclose(temperature_probabilities(logits, 1e-3), [0, 0.5, 0.5, 0])
# ```
#
# </details>
#
# **2.** (An experiment.) Make a text about the record above with a BLEU above 40 in which every
# fact but the name and the type is wrong.
#
# <details><summary>Solution 2</summary>
#
# Replace only the values, one word each. The genre, the year and the rating are a few of more than
# twenty words.
#
# ```python
# wrong = right.replace("comedy", "drama").replace("1940", "1968").replace("three", "four")
# print(wrong)
# print(bleu([wrong.split()], [right.split()]), slot_errors(record, wrong))
# assert len(slot_errors(record, wrong)) == 3
# assert 40 < bleu([wrong.split()], [right.split()])
# ```
#
# </details>
#
# Next: [Many slots](18_many_slots.py).
