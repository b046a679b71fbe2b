# %% [markdown]
# # GPT-2 from its file
#
# - **You will be able to** open a checkpoint with the standard library and NumPy alone, say what
#   each array in it is, cut a word into tokens by hand, and write the whole forward of GPT-2 in
#   forty lines that agree with two other implementations.
# - **You need** layernorm and GELU: [lesson 2](02_backward_by_hand.py); attention with a prefix:
#   [lesson 5](05_the_gradient_of_a_prefix.py).
# - **Time** 50 minutes; it runs in 2 seconds.
# - **Difficulty** 2 of 3.
#
# ## Three files
#
# A trained model is a folder. `config.json` holds a few numbers that say how large everything is.
# `model.safetensors` holds the weights, the *checkpoint*. `tokenizer.json` says how text becomes
# numbers. Nothing in them is secret, and nothing in them is code.

# %%
import json

import numpy as np

from minprefix.storage.places import find

folder = find("tiny")  # where the small model lies that comes with this package
config = json.loads((folder / "config.json").read_text())
shape = ["n_layer", "n_head", "n_embd", "n_inner", "vocab_size", "n_positions"]
for name in [*shape, "layer_norm_epsilon", "tie_word_embeddings"]:
    print(f"{name:20}", config[name])

# %% [markdown]
# Most of them have a letter, the same in all lessons:
#
# | in the file | letter | what it is |
# |---|---|---|
# | `n_layer` | $L$ | layers, also called *blocks* |
# | `n_head` | $NH$ | heads of each layer |
# | `n_embd` | $C$ | the width: each token is a row of $C$ numbers all the way up |
# | | $hs = C / NH$ | the head size |
# | `n_inner` | $F$ | the width inside the *MLP*, see below; where it is not given, $F = 4C$ |
# | `vocab_size` | $V$ | how many tokens there are |
# | `n_positions` | | how many tokens a text may have, slots and all |
#
# Each layer is an attention and, behind it, an MLP: the chain of lesson 2, a linear layer that
# makes the rows wider, GELU, and a linear layer that makes them narrow again. `layer_norm_epsilon`
# is the small number under the root in layernorm. What `tie_word_embeddings` means comes below.
#
# ## Weights, by name
#
# A safetensors file is three things in a row: 8 bytes with a number $n$, then $n$ bytes of JSON,
# then the numbers of all arrays one behind the other. The JSON says of each array its name, its
# type, its shape, and between which bytes it lies. That is all one needs to know to read it.

# %%


def read_safetensors(path):
    raw = path.read_bytes()
    n = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + n])
    header.pop("__metadata__", None)  # a note of who wrote the file
    arrays = {}
    for name, entry in header.items():
        assert entry["dtype"] == "F32", f"{name} is {entry['dtype']}, read here as float32"
        start, end = entry["data_offsets"]
        # "<f4" is NumPy's word for F32, float32
        numbers = np.frombuffer(raw[8 + n + start : 8 + n + end], "<f4")
        # some files have "transformer." in front of each name
        arrays[name.removeprefix("transformer.")] = numbers.reshape(entry["shape"])
    return arrays


stored = read_safetensors(folder / "model.safetensors")

# %% [markdown]
# One block has twelve arrays: a weight and a bias for each of two layernorms and four linear
# layers. The names of block 0 begin with `h.0`. Besides the blocks there are one last layernorm and
# two tables of rows of $C$ numbers: `wte` has a row for each token of the vocabulary, `wpe` one for
# each position in the text.
#
# **Predict.** How many arrays does a file with $L = 4$ blocks hold? Which of them is the largest?

# %%
L, NH, C = config["n_layer"], config["n_head"], config["n_embd"]
what = {
    "wte.weight": "(V, C)  a row for each token",
    "wpe.weight": "(n_positions, C)  a row for each position",
    "h.0.ln_1.weight": "(C,)  gain of the norm before attention",
    "h.0.ln_1.bias": "(C,)",
    "h.0.attn.c_attn.weight": "(C, 3C)  queries, keys, values of all heads",
    "h.0.attn.c_attn.bias": "(3C,)",
    "h.0.attn.c_proj.weight": "(C, C)  out of the attention",
    "h.0.attn.c_proj.bias": "(C,)",
    "h.0.ln_2.weight": "(C,)  gain of the norm before the MLP",
    "h.0.ln_2.bias": "(C,)",
    "h.0.mlp.c_fc.weight": "(C, F)  into the MLP, then comes GELU",
    "h.0.mlp.c_fc.bias": "(F,)",
    "h.0.mlp.c_proj.weight": "(F, C)  out of the MLP",
    "h.0.mlp.c_proj.bias": "(C,)",
    "ln_f.weight": "(C,)  gain of the norm after the last block",
    "ln_f.bias": "(C,)",
}
for name, meaning in what.items():
    print(f"{name:22} {stored[name].shape!s:11} {meaning}")
print(len(stored), "arrays,", sum(a.size for a in stored.values()), "numbers")
assert len(stored) == 2 + 12 * L + 2, "a block has twelve arrays, and four stand outside"
assert max(stored, key=lambda name: stored[name].size) == "wte.weight"

# %% [markdown]
# $2 + 12 L + 2 = 52$ arrays, and the table of tokens is the largest.
#
# Weights are stored as (in, out), so a linear layer is `x @ weight + bias`. All three of queries,
# keys and values come out of one product: the first $C$ columns of `c_attn` are the queries, the
# next the keys, the last the values, and within each $C$ the heads lie side by side, $hs$ columns
# each.
#
# (The names are old: `fc` is "fully connected", `proj` "projection", and the `c` is left over from
# code that called a linear layer a convolution.)
#
# One thing is missing in that list. The model ends with a score for each of the $V$ tokens, the
# logits. The layer that makes them is called the *head*, too, `lm_head`. (It has nothing to do with
# the heads of the attention. We say "the head" for this one, and "head 0" for one of those.) It
# should have a weight $(C, V)$, and has none of its own: it is `wte` again, transposed. The head is
# *tied*, which is what `tie_word_embeddings` says. The row of a token says what the token means
# where it comes in, and is compared with what the model has in mind where it goes out.

# %%
from minprefix import GPT2

tiny = GPT2.load("tiny")  # the package's own reader: float32, as in the file
assert "lm_head.weight" not in stored, "a head that is not tied would bear this name"
assert stored.keys() == tiny.weights.keys()
for name, a in stored.items():
    assert a.shape == tiny.config.shapes()[name], f"{name}: config.json promises another shape"
    assert np.array_equal(a, tiny.weights[name]), f"{name} differs from what the package reads"
print("bit for bit what the package reads")

# %% [markdown]
# ## Tokens
#
# GPT-2 knows no letters. It knows $V$ tokens, and each is a piece of text: *byte-level BPE*
# (byte-pair encoding).
#
# - The text is cut into words; a space belongs to the word that follows it.
# - A word is a row of bytes (UTF-8), so there is no letter in the world that it cannot write. Each
#   byte has a symbol that can be printed: most bytes their own letter, a space `Ġ`.
# - A list of *merges* was learned once, by counting: which two neighbours stand together most
#   often? These were made one piece, then it was counted again, and so on. To cut a word, apply the
#   merges in the order in which they were learned.

# %%
from itertools import pairwise

tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
vocabulary = tokenizer["model"]["vocab"]  # piece -> id
rank = {tuple(pair): r for r, pair in enumerate(tokenizer["model"]["merges"])}

# bytes whose letter can be seen keep it; the others get letters from number 256 on
own_letter = [*range(33, 127), *range(161, 173), *range(174, 256)]
others = [byte for byte in range(256) if byte not in own_letter]
symbol = {byte: chr(byte) for byte in own_letter}
symbol |= {byte: chr(256 + n) for n, byte in enumerate(others)}  # a space: chr(288)


def cut(word, show=False):
    """The pieces of one word, by the merges alone."""
    pieces = [symbol[byte] for byte in word.encode("utf-8")]
    while True:
        if show:
            print(" ".join(pieces))
        pairs = [pair for pair in pairwise(pieces) if pair in rank]
        if not pairs:
            return pieces
        first = min(pairs, key=rank.get)  # the merge that was learned first
        joined, i = [], 0
        while i < len(pieces):
            here = tuple(pieces[i : i + 2]) == first
            joined.append("".join(first) if here else pieces[i])
            i += 2 if here else 1
        pieces = joined


# %% [markdown]
# The tiny model read of restaurants, films, people, cities and books, and has 1024 pieces.
#
# **Predict.** Which of these is one token, and which falls into the most: " restaurant",
# " unbelievable", " Müller"? How many bytes is "ü"?

# %%
cut(" unbelievable", show=True)
for word in (" restaurant", " unbelievable", " Müller"):
    pieces = cut(word)
    ids = [vocabulary[piece] for piece in pieces]
    print(repr(word), "->", *pieces, "->", ids)
    assert ids == tiny.encode(word), f"{word!r}: the tokenizers library cuts it otherwise"

# %% [markdown]
# A word that was frequent is one token, a rare one falls into syllables and letters, and "ü" into
# its two bytes, whose symbols are `Ã` and `¼`. `tiny.encode` is another implementation, in Rust,
# with the same files.
#
# ## The forward, on paper
#
# One text of $T$ tokens. Each token becomes a row of $C$ numbers, its *embedding*: its own row of
# `wte` plus the row of `wpe` for where it stands. The second is all that the model knows about
# order, beside the mask.
#
# $$x = wte[tokens] + wpe[positions] \qquad (T, C)$$
#
# This $x$ is the *residual stream*. A block never replaces it. It reads it through a layernorm,
# and adds what it found, twice: once what the attention found among the tokens before, once what
# the MLP made of each token by itself. In the formulas the name of a weight stands for its layer:
# $\mathrm{ln\_1}(x)$ is the layernorm with `ln_1.weight` and `ln_1.bias`.
#
# $$\begin{aligned}
# q, k, v &= \mathrm{c\_attn}(\mathrm{ln\_1}(resid_{pre})) \\
# z &= \mathrm{attention}(q, k, v) \\
# resid_{mid} &= resid_{pre} + \mathrm{c\_proj}(z) \\
# g &= \mathrm{gelu}(\mathrm{c\_fc}(\mathrm{ln\_2}(resid_{mid}))) \\
# resid_{post} &= resid_{mid} + \mathrm{c\_proj}(g)
# \end{aligned}$$
#
# The three streams, and $q$, $k$, $v$, $z$ with their heads side by side, are $(T, C)$; $g$ is
# $(T, F)$. The two `c_proj` are two layers: one stands under `attn`, one under `mlp`. The
# $resid_{post}$ of a block is the $resid_{pre}$ of the next. After the last block:
#
# $$logits = \mathrm{ln\_f}(resid_{post}) \; wte^\top \qquad (T, V)$$
#
# Without a prefix the positions are $0 \dots T-1$. With one, they are $P \dots P+T-1$: the slots
# take the positions before, as if they were tokens. In each layer the keys and values of the slots
# stand before those of the tokens, as in [lesson 5](05_the_gradient_of_a_prefix.py). Nothing else
# changes.
#
# ## The forward, in forty lines
#
# `w` are the weights by name. `past` is what the tokens see before themselves, in each layer keys
# and values $(L, 2, NH, P, hs)$, and `start` the position of the first token. What comes back are
# the logits, the keys and values of everything that was seen, and the stream between the blocks, to
# look at: $L + 1$ arrays $(T, C)$.

# %%


def linear(x, w, name):
    return x @ w[f"{name}.weight"] + w[f"{name}.bias"]


def layernorm(x, w, name, eps):
    centred = x - x.mean(axis=-1, keepdims=True)  # (T, C)
    variance = (centred * centred).mean(axis=-1, keepdims=True)  # (T, 1)
    return centred / (variance + eps) ** 0.5 * w[f"{name}.weight"] + w[f"{name}.bias"]


def gelu(x):
    return 0.5 * x * (1 + np.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x**3)))


def attention(q, keys, values):  # (NH, T, hs), and twice (NH, P+T, hs)
    T, P = q.shape[1], keys.shape[1] - q.shape[1]
    visible = np.arange(P + T)[None, :] <= np.arange(T)[:, None] + P  # (T, P+T)
    scores = np.where(visible, q @ keys.swapaxes(1, 2) / q.shape[2] ** 0.5, -np.inf)
    e = np.exp(scores - scores.max(axis=-1, keepdims=True))  # (NH, T, P+T)
    return e / e.sum(axis=-1, keepdims=True) @ values  # (NH, T, hs)


def lm_head(x, w, config):  # with a weight of its own, or tied
    y = layernorm(x, w, "ln_f", config["layer_norm_epsilon"])  # (T, C)
    return y @ w.get("lm_head.weight", w["wte.weight"]).T  # (T, V)


def forward(tokens, w, config, past=None, start=0):
    """tokens (T,) -> logits (T, V), kv (L, 2, NH, P+T, hs), stream (L+1, T, C)."""
    T, NH, eps = len(tokens), config["n_head"], config["layer_norm_epsilon"]
    x = w["wte.weight"][tokens] + w["wpe.weight"][start : start + T]  # (T, C)
    seen, stream = [], [x]
    for i in range(config["n_layer"]):
        a = layernorm(x, w, f"h.{i}.ln_1", eps)  # (T, C)
        qkv = linear(a, w, f"h.{i}.attn.c_attn")  # (T, 3C)
        # three of (T, C), then heads first: (NH, T, hs) each
        q, k, v = (a.reshape(T, NH, -1).swapaxes(0, 1) for a in np.split(qkv, 3, 1))
        if past is not None:
            k = np.concatenate([past[i][0], k], axis=1)  # (NH, P+T, hs)
            v = np.concatenate([past[i][1], v], axis=1)  # (NH, P+T, hs)
        z = attention(q, k, v).swapaxes(0, 1).reshape(T, -1)  # (T, C)
        x = x + linear(z, w, f"h.{i}.attn.c_proj")  # (T, C)  resid_mid
        m = layernorm(x, w, f"h.{i}.ln_2", eps)  # (T, C)
        g = gelu(linear(m, w, f"h.{i}.mlp.c_fc"))  # (T, F)
        x = x + linear(g, w, f"h.{i}.mlp.c_proj")  # (T, C)  resid_post
        seen.append([k, v])
        stream.append(x)
    return lm_head(x, w, config), np.array(seen), np.array(stream)


text = (
    "describe\nname[Mill and Table], type[film], genre[comedy], year[1940]\n"
    "Mill and Table is a film that belongs to the genre of comedy. The film came out in 1940."
)
tokens = tiny.encode(text)
weights = {name: a.astype(np.float64) for name, a in stored.items()}
logits, kv, stream = forward(tokens, weights, config)
print("logits", logits.shape, " keys and values", kv.shape, " stream", stream.shape)

# %% [markdown]
# ## First proof: the package
#
# The package's forward is another one: it takes many texts in one stream, leaves out what nobody
# asks for, and its operations are written to be fast. We work in float64 (16 digits), so that a
# difference that remains is a mistake and not rounding. And we check with a prefix, too, a random
# one: what is wrong about positions or about the past does not show without.

# %%
import minprefix


def relative_error(a, b):
    """The largest difference, as a part of the largest number: 1 means all wrong."""
    return np.abs(a - b).max() / np.abs(b).max()


rng = np.random.default_rng(0)
P = 3
random_kv = rng.normal(size=(L, 2, NH, P, C // NH))  # (L, 2, NH, P, hs)


def check_logits(package, P, config=tiny.config, weights=weights):
    """The logits of `package` with the first P of those slots, against the forward above."""
    past = random_kv[:, :, : config.n_head, :P]  # (L, 2, NH, P, hs)
    # vars: the fields of `Config` have the names that config.json has
    ours, _, _ = forward(tokens, weights, vars(config), past, start=P)
    batch, prefix = package.Batch.pack([tokens]), package.Prefix(past)
    theirs = package.GPT2(config, weights).logits(batch, prefix)
    error = relative_error(theirs, ours)
    assert error < 1e-10, f"{P} slots: the logits are off by {error:.2g}"
    print(f"{P} slots: off by {error:.1e} of the largest logit")


check_logits(minprefix, P=0)
check_logits(minprefix, P=3)

# %% [markdown]
# ## Second proof: transformers
#
# Another team, another library, another language underneath: Hugging Face's `transformers` over
# PyTorch reads the same folder. If it is not installed, the lesson goes on without it. (If it is,
# most of this cell's time goes into importing it, some seconds.)

# %%
import warnings


def by_transformers(folder, tokens):
    """Its logits (T, V) in float64, or None where it is not installed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that Jupyter has no widgets, and the like
            import torch
            import transformers
            from transformers import GPT2LMHeadModel
    except ImportError:
        return None
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    theirs = GPT2LMHeadModel.from_pretrained(folder).double().eval()
    with torch.no_grad():
        return theirs(torch.tensor([tokens])).logits[0].numpy()


theirs = by_transformers(folder, tokens)
if theirs is None:
    print("transformers is not installed here: this proof is left out")
else:
    print(f"off by {relative_error(theirs, logits):.1e} of the largest logit")
    assert relative_error(theirs, logits) < 1e-10

# %% [markdown]
# ## What the stream holds between the blocks
#
# The head can be put onto the stream anywhere, not only after the last block. It was trained for
# the last one, but all blocks add to the same rows, so it can be read before.
#
# **Predict.** Leave out all blocks: embed a token and go straight to the head. The head compares
# with the rows of `wte`, and the stream holds one of them. Which token will it say comes next?

# %%
targets = np.array(tokens[1:])  # (T-1,)


def mean_loss(logits):
    """In nats, of the token that follows each: logits (T, V)."""
    shifted = logits[:-1] - logits[:-1].max(axis=1, keepdims=True)  # (T-1, V)
    log_probs = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))  # (T-1, V)
    return -log_probs[np.arange(len(targets)), targets].mean()


def in_columns(ids):
    return " ".join(f"{tiny.decode([i]).strip():7.7}" for i in ids)


last = slice(-8, -1)  # the sentence at the end, but for its full stop
print(f"{'a token':14}", in_columns(tokens[last]), "  loss of all")
print("and what the head says comes after it")
early = [lm_head(x, weights, config) for x in stream]  # (T, V) each
for blocks, scores in enumerate(early):
    guesses = in_columns(scores.argmax(axis=1)[last])
    print(f"after {blocks} blocks: {guesses} {mean_loss(scores):6.2f}")
assert np.array_equal(early[0].argmax(axis=1), tokens), "not itself"
assert mean_loss(logits) < 1 < np.log(1024) < mean_loss(early[0])

# %% [markdown]
# The token itself, every time, and so the loss is worse than that of a blind guess among 1024
# tokens, $\ln(1024) = 6.93$. The stream begins as "this token stands here" and ends as "that one
# comes next". The first block does most of the turning here; the others make up its mind.
#
# ## The same for GPT-2 itself
#
# The small model and GPT-2 differ in numbers in `config.json`, and in nothing else. If you have it,
# say where before you start Python: `MINPREFIX_GPT2=gpt2` (the name on the hub, fetched once,
# 548 MB) or a folder. Its file holds twelve arrays more, `h.0.attn.bias` and its like: no weights,
# but causal masks of zeros and ones, which every reader skips. We stay in float32 here, which has 7
# digits, of which one or two are lost on the way up.

# %%
from minprefix import Batch
from minprefix.lessons import real_gpt2

real = real_gpt2()
if real is None:
    print("GPT-2 is not at hand: the lesson goes on with the small model")
else:
    print(real)
    real_tokens = real.encode("The lighthouse keeper climbed the stairs and lit the")
    real_logits, _, _ = forward(real_tokens, real.weights, vars(real.config))
    error = relative_error(real.logits(Batch.pack([real_tokens])), real_logits)
    print(f"off by {error:.1e} of the largest logit")
    assert error < 1e-4, "the forty lines and the package differ on this model"
    theirs = by_transformers(find(real.name), real_tokens)
    assert theirs is None or relative_error(theirs, real_logits) < 1e-4
    best = np.argsort(real_logits[-1])[::-1][:5]
    print("next:", *(repr(real.decode([i])) for i in best))

# %% [markdown]
# ## Break it yourself
#
# Two bugs that people really ship. The first reads `c_attn` in another order: query, key and value
# of head 0, then those of head 1, and so on, as some other models store it. The second is right in
# every line of the model, and wrong in what it is given: it counts the positions of the tokens
# from 0, prefix or not.
#
# **Predict.** Which of `check_logits(..., P=0)` and `check_logits(..., P=3)` fires for which bug?

# %%
from minprefix.lessons import caught, planted

interleaved = planted("heads-interleaved")
print(interleaved)
with caught() as error:  # take this line away, and the lesson stops here
    check_logits(interleaved, P=0)
print(error)
with caught() as error:
    check_logits(interleaved, P=3)
print(error, "\n")

unmoved = planted("positions-ignore-the-prefix")
print(unmoved)
check_logits(unmoved, P=0)  # passes
with caught() as error:
    check_logits(unmoved, P=3)
print(error)

# %% [markdown]
# The first bug shows in both, the second with slots alone.
#
# What would you have seen without these checks? For the first bug: every array has the name and the
# shape that it should have, nothing is NaN, and with one head all is well, which is how one writes
# a first test. Only the guesses are worse. They are not even all wrong: what follows from a token
# by itself ("the genre" is followed by "of") needs no attention.

# %%
broken_tiny = interleaved.GPT2(tiny.config, weights)
wrong = broken_tiny.logits(interleaved.Batch.pack([tokens]))
assert wrong.shape == logits.shape
assert np.isfinite(wrong).all()
one_head = minprefix.Config(n_layer=L, n_head=1, n_embd=32, vocab_size=1024, n_positions=256)
print("one head, with the bug:")
check_logits(interleaved, 0, one_head, GPT2.random(one_head, dtype="float64").weights)  # passes

right_guess = np.mean(logits[:-1].argmax(axis=1) == targets)
wrong_guess = np.mean(wrong[:-1].argmax(axis=1) == targets)
print(f"next token right: {right_guess:.0%} of the time, with the bug {wrong_guess:.0%}")
print(f"loss: {mean_loss(logits):.2f}, with the bug {mean_loss(wrong):.2f}")
assert right_guess > wrong_guess + 0.2

# %% [markdown]
# The second is worse, because it looks so good. The check of lesson 1 sees it: put the keys and
# values of the first tokens before the rest of the text, as a prefix, and compare with reading all
# of it at once. That is a law, and needs no second implementation.
#
# **Predict.** With this bug, for how many of the tokens does the model still guess the same next
# one?

# %%


def check_law(package, P):
    """The first P tokens as a prefix: the others must not notice that they are none."""
    model, batch = package.GPT2(tiny.config, weights), package.Batch.pack([tokens[P:]])
    after_prefix = model.logits(batch, package.Prefix(kv[:, :, :, :P]))  # (T-P, V)
    error = relative_error(after_prefix, logits[P:])
    assert error < 1e-10, f"prefix and prompt differ by {error:.2g}"


check_law(minprefix, P=8)
with caught() as error:
    check_law(unmoved, P=8)
print(error)

model, batch = unmoved.GPT2(tiny.config, weights), unmoved.Batch.pack([tokens[8:]])
shifted_logits = model.logits(batch, unmoved.Prefix(kv[:, :, :, :8]))  # (T-8, V)
same = np.mean(shifted_logits.argmax(axis=1) == logits[8:].argmax(axis=1))
print(f"and yet the guess is the same for {same:.0%} of the tokens")
assert same > 0.9

# %% [markdown]
# All of them. And there is no right way to count: both exist. The code of the paper that introduced
# prefix-tuning (Li and Liang, 2021) and the library PEFT begin at $P$, the library `adapters` at 0,
# and each fits the prefixes that it trained itself. Put such a prefix into the other one, and its
# logits are off as above; the text gives no sign of it.
#
# ## Exercises
#
# **1.** GPT-2 (the small one of its family) has $L = 12$, $C = 768$, $V = 50257$, 1024 positions
# and $F = 4C$. How many numbers is that? How much of it are the two tables? Do it on paper: from
# the list above, one block is $12 C^2 + 13 C$.
#
# <details><summary>Solution 1</summary>
#
# $L (12 C^2 + 13 C) + (V + 1024) \, C + 2C = 124\,439\,808$; the tables are 32% of it. (Were the
# head not tied, it would be another 39 million.)
#
# ```python
# gpt2 = minprefix.Config(
#     n_layer=12, n_head=12, n_embd=768, vocab_size=50257, n_positions=1024
# )
# sizes = {name: int(np.prod(shape)) for name, shape in gpt2.shapes().items()}
# by_formula = 12 * (12 * 768**2 + 13 * 768) + (50257 + 1024) * 768 + 2 * 768
# assert sum(sizes.values()) == by_formula == 124_439_808
# print((sizes["wte.weight"] + sizes["wpe.weight"]) / by_formula)
# ```
#
# </details>
#
# **2.** (Graded.) Write the embedding and its backward. `embed(tokens, positions, wte, wpe)`:
# tokens and positions $(N)$, the tables $(V, C)$ and $(n_{positions}, C)$; return $x$ $(N, C)$.
# `embed_backward_params(dx, tokens, positions, wte, wpe)`: $dx$ $(N, C)$; return `dwte` and `dwpe`,
# shaped like the tables. A token that occurs twice in the text has one row in the table. What is
# the gradient of that row?

# %%
from minprefix.lessons import grade


def embed(tokens, positions, wte, wpe):
    raise NotImplementedError  # yours


def embed_backward_params(dx, tokens, positions, wte, wpe):
    raise NotImplementedError  # yours


grade(embed, embed_backward_params)

# %% [markdown]
# <details><summary>Solution 2</summary>
#
# The sum over all places where it stands. `dwte[tokens] += dx` looks like it, and counts a token
# that is there twice once: NumPy reads the rows, adds, and writes them back, and the second write
# covers the first. `np.add.at` adds each by itself.
#
# ```python
# def embed(tokens, positions, wte, wpe):
#     return wte[tokens] + wpe[positions]  # (N, C)
#
#
# def embed_backward_params(dx, tokens, positions, wte, wpe):
#     dwte = np.zeros_like(wte, dtype=dx.dtype)  # (V, C)
#     np.add.at(dwte, tokens, dx)
#     dwpe = np.zeros_like(wpe, dtype=dx.dtype)  # (n_positions, C)
#     np.add.at(dwpe, positions, dx)
#     return dwte, dwpe
#
#
# grade(embed, embed_backward_params)
# ```
#
# </details>
#
# **3.** (Graded.) Text is written one token at a time, and nobody computes the keys and values of
# the earlier tokens again: they are kept. Write `run_decoding(problem)` with the `forward` of this
# lesson: feed each text of `problem.sequences` token by token, and return `{"logits": ...}`
# $(N, V)$, one row for each token, all texts behind one another. Text `b` sees the prefix
# `problem.prefixes[problem.prefix_of[b]]` $(L, 2, NH, P, hs)$, and its first token stands at
# `problem.position_offsets[problem.prefix_of[b]]`. For `forward`, `w` is `problem.weights` and
# `config` is `vars(problem.config)`.

# %%


def run_decoding(problem):
    raise NotImplementedError  # yours


grade(run_decoding)

# %% [markdown]
# <details><summary>Solution 3</summary>
#
# What `forward` gives back of keys and values is the `past` of the next token: prefix and earlier
# tokens are the same thing to attention.
#
# ```python
# def run_decoding(problem):
#     rows, cfg = [], vars(problem.config)
#     for ids, which in zip(problem.sequences, problem.prefix_of, strict=True):
#         past = problem.prefixes[which]  # (L, 2, NH, P, hs)
#         position = problem.position_offsets[which]
#         for token in ids:
#             out, past, _ = forward([token], problem.weights, cfg, past, position)
#             rows.append(out[0])  # (V,)
#             position += 1
#     return {"logits": np.array(rows)}  # (N, V)
#
#
# grade(run_decoding)
# ```
#
# </details>
#
# Next: [Frozen: half a backward](07_half_a_backward.py).
