# %% [markdown]
# # GPT-2 from its file
#
# - **You will be able to** open a checkpoint with the standard library and NumPy alone, say what
#   each array in it is, cut a word into tokens, write the forward of GPT-2 from its parts, and
#   write text with a key-value cache.
# - **You need** layernorm and GELU: [lesson 2](02_backward_by_hand.py); many heads:
#   [lesson 4](04_attention.py); attention with a prefix:
#   [lesson 5](05_the_gradient_of_a_prefix.py).
# - **Time** 175 minutes; it runs in 10 seconds.
# - **Difficulty** 3 of 5.
#
# ## Overview
#
# - A trained model is three files. You read the weights with two short functions, and the result is
#   bit for bit what the package reads: 52 arrays.
# - You write the merges that cut a word into tokens. The cuts agree with the `tokenizers` library.
# - You write a block in two halves, and then the whole forward. It agrees with the package to
#   $10^{-10}$ of the largest logit, with and without a prefix, and with `transformers` where that
#   is installed.
# - Without any block, the LM head names each token itself as the next one, and the loss is 21.00.
#   After four blocks the loss is 0.89.
# - You write decoding with a key-value cache. For a prompt of 23 tokens and 24 new ones, 46 rows go
#   through the blocks instead of 828, and the text is the same.
# - You meet two planted bugs. With one of them 46% of the guesses are right instead of 85%. The
#   other moves the logits by 9% of the largest one and changes no guess.
#
# ## Three files
#
# A trained model is a folder. `config.json` holds a few numbers that say how large everything is.
# `model.safetensors` holds the [weights](glossary.md#weights). This file is called the
# *checkpoint*. `tokenizer.json` says how text becomes numbers. None of the three contains code.

# %%
import json

import numpy as np

from minprefix.storage.places import find

folder = find("tiny")  # the folder of the small model that comes with this package
config = json.loads((folder / "config.json").read_text())
sizes = ["n_layer", "n_head", "n_embd", "n_inner", "vocab_size", "n_positions"]
for name in [*sizes, "layer_norm_epsilon", "tie_word_embeddings"]:
    print(f"{name:20}", config[name])

# %% [markdown]
# Most of these numbers have a letter. It is the same in all lessons:
#
# | in the file | letter | meaning |
# |---|---|---|
# | `n_layer` | $L$ | layers, also called *blocks* |
# | `n_head` | $NH$ | attention heads in each block |
# | `n_embd` | $C$ | width: between the blocks each token is a row of $C$ numbers |
# | | $hs = C / NH$ | head size |
# | `n_inner` | $F$ | width inside the MLP; `None` means $F = 4C$ |
# | `vocab_size` | $V$ | tokens in the [vocabulary](glossary.md#vocabulary) |
# | `n_positions` | | positions: how many slots and tokens a text may have together |
#
# A [block](glossary.md#block) is an attention, followed by an [MLP](glossary.md#mlp). The MLP is
# the chain of lesson 2: a linear layer that makes the rows wider, GELU, and a linear layer that
# makes them narrow again. `layer_norm_epsilon` is the small number under the root in layernorm. The
# meaning of `tie_word_embeddings` comes below.
#
# **Recap.** A model is a folder of three files: sizes, weights, tokenizer. The letters $L$, $NH$,
# $C$, $hs$, $F$ and $V$ stand for the sizes.
#
# ## Weights, by name
#
# A safetensors file has three parts, one behind the other:
#
# 1. 8 bytes: one whole number, the length of the second part in bytes. Its lowest byte comes first
#    (*little-endian*).
# 2. JSON of that length. It says of each array its type, its shape, and between which bytes of the
#    third part its numbers lie. An entry named `__metadata__` may stand there, too. It describes
#    the file and is no array. Spaces may follow the JSON; they belong to the second part.
# 3. The numbers of all arrays.
#
# For a file with one array, the JSON might be
#
# ```
# {"__metadata__": {"format": "pt"},
#  "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}
# ```
#
# ### Exercise 6.1: `read_header`
#
# *8 minutes · difficulty 2 of 5*
#
# `raw` is a whole file, an object of the type `bytes`. Return a dictionary with the entry of each
# array by name, without `__metadata__`, and the index of the first byte of the third part. Two
# functions help: `int.from_bytes(b"\x05\x00", "little")` is 5, and `json.loads` makes a dictionary
# of JSON.

# %%
from minprefix.lessons import grade


def read_header(raw):
    header = ...
    data_start = ...
    return header, data_start


grade(read_header)

# %% [markdown]
# <details><summary>Hint 1</summary>
#
# `raw[:8]` are the first eight bytes. All other places in the file are counted from there.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# The JSON is `raw[8 : 8 + size]`. Do not search for its last bracket: spaces may follow it, and the
# numbers of an array may look like a bracket, too.
#
# </details>


# %% jupyter={"source_hidden": true}
def read_header(raw):
    size = int.from_bytes(raw[:8], "little")
    entries = json.loads(raw[8 : 8 + size])
    header = {name: entry for name, entry in entries.items() if name != "__metadata__"}
    data_start = 8 + size
    return header, data_start


# %% [markdown]
# ### Exercise 6.2: `read_array`
#
# *5 minutes · difficulty 1 of 5*
#
# `entry` is the entry of one array, as above. Its `data_offsets` are counted from `data_start`, and
# the second one is the first byte that no longer belongs to the array. Return the array in its
# shape. The type `F32` is `"<f4"` in NumPy (*float*, 4 bytes, little-endian), and `np.frombuffer`
# reads numbers from bytes.


# %%
def read_array(raw, entry, data_start):
    numbers = ...
    return numbers


grade(read_array)

# %% [markdown]
# <details><summary>Hint 1</summary>
#
# Cut the bytes out of `raw` first. Both ends of the slice have to be moved by `data_start`.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# `np.frombuffer(some_bytes, "<f4")` gives a flat array. `.reshape(entry["shape"])` gives it its
# shape.
#
# </details>


# %% jupyter={"source_hidden": true}
def read_array(raw, entry, data_start):
    start, end = entry["data_offsets"]
    numbers = np.frombuffer(raw[data_start + start : data_start + end], "<f4")
    return numbers.reshape(entry["shape"])


# %% [markdown]
# Both functions together read the file. In some files each name begins with `transformer.`. We
# remove that.

# %%
raw = (folder / "model.safetensors").read_bytes()
header, data_start = read_header(raw)
stored = {}
for name, entry in header.items():
    assert entry["dtype"] == "F32", f"{name} is {entry['dtype']}: read_array reads F32 only"
    stored[name.removeprefix("transformer.")] = read_array(raw, entry, data_start)

# %% [markdown]
# One block has twelve arrays: a weight and a bias for each of two layernorms and four linear
# layers. The names of block 0 begin with `h.0`. Outside the blocks there is one last layernorm, and
# there are two tables with rows of $C$ numbers. `wte` has a row for each token of the vocabulary,
# `wpe` has one for each position in the text.
#
# **Predict.** How many arrays does a file with $L = 4$ blocks hold? Which of them is the largest?

# %%
L, NH, C = config["n_layer"], config["n_head"], config["n_embd"]
meanings = {
    "wte.weight": "(V, C)  a row for each token",
    "wpe.weight": "(n_positions, C)  a row for each position",
    "h.0.ln_1.weight": "(C,)  gain of the layernorm before attention",
    "h.0.ln_1.bias": "(C,)",
    "h.0.attn.c_attn.weight": "(C, 3C)  queries, keys, values of all heads",
    "h.0.attn.c_attn.bias": "(3C,)",
    "h.0.attn.c_proj.weight": "(C, C)  from the heads back to the stream",
    "h.0.attn.c_proj.bias": "(C,)",
    "h.0.ln_2.weight": "(C,)  gain of the layernorm before the MLP",
    "h.0.ln_2.bias": "(C,)",
    "h.0.mlp.c_fc.weight": "(C, F)  into the MLP, followed by GELU",
    "h.0.mlp.c_fc.bias": "(F,)",
    "h.0.mlp.c_proj.weight": "(F, C)  out of the MLP",
    "h.0.mlp.c_proj.bias": "(C,)",
    "ln_f.weight": "(C,)  gain of the layernorm after the last block",
    "ln_f.bias": "(C,)",
}
for name, meaning in meanings.items():
    print(f"{name:22} {stored[name].shape!s:11} {meaning}")
print(len(stored), "arrays,", sum(a.size for a in stored.values()), "numbers")
assert len(stored) == 2 + 12 * L + 2 == 52, "a block has twelve arrays, and four are outside"
assert max(stored, key=lambda name: stored[name].size) == "wte.weight"

# %% [markdown]
# **Answer.** The file holds $2 + 12 L + 2 = 52$ arrays. The table of tokens is the largest.

# %% [markdown]
# Weights are stored as (in, out), so a linear layer is `x @ weight + bias`. One product gives the
# queries, keys and values of all heads. The first $C$ columns of `c_attn` are for the queries, the
# next $C$ for the keys, the last $C$ for the values. Within each $C$ the heads lie side by side,
# $hs$ columns each.
#
# (The names are old. `fc` means "fully connected", `proj` means "projection". The `c` comes from
# code that called a linear layer a convolution.)
#
# One layer is missing in the list. At its end the model gives a score to each of the $V$ tokens,
# the [logits](glossary.md#logits). The layer that computes them is called the *LM head* (`lm_head`;
# LM is "language model"). It has nothing to do with the heads of the attention: *head* alone always
# means an attention head. The LM head needs a weight of the shape $(C, V)$. This file has none,
# because the LM head uses `wte` again, transposed. It is *tied*, as `tie_word_embeddings` says. So
# one row of `wte` has two uses. It is the row that the token brings in at the bottom. At the top it
# is compared with the stream, and the result is the token's logit.

# %%
from minprefix import GPT2

tiny = GPT2.load("tiny")  # the package's own reader: float32, as in the file
assert "lm_head.weight" not in stored, "an LM head that is not tied would have this name"
assert stored.keys() == tiny.weights.keys()
for name, a in stored.items():
    assert a.shape == tiny.config.shapes()[name], f"{name}: config.json promises another shape"
    assert np.array_equal(a, tiny.weights[name]), f"{name} differs from what the package reads"
print("bit for bit what the package reads")

# %% [markdown]
# **Recap.** A safetensors file is a length, a table of contents in JSON, and the numbers. A block
# has twelve arrays. The LM head is tied: it is `wte`, transposed.
#
# ## Tokens
#
# GPT-2 knows no letters. It knows $V$ [tokens](glossary.md#token), and each is a piece of text. Its
# tokenizer is *byte-level BPE*, [byte pair encoding](glossary.md#bpe):
#
# - The text is cut into words. A space belongs to the word that follows it.
# - A word is a row of bytes (UTF-8), so every letter in the world can be written. Each byte has a
#   symbol that can be printed. For most bytes it is their own letter; for a space it is `Ġ`.
# - A list of *merges* was learned once, by counting. The two neighbours that stood together most
#   often became one piece. Then the neighbours were counted again, and so on.
# - A word begins as its symbols. Of all merges that fit, the one that was learned first is applied.
#   Then one looks again, until none fits.
#
# ### Exercise 6.3: `merge_once`
#
# *10 minutes · difficulty 2 of 5*
#
# `pieces` is a list of strings, `pair` a tuple of two strings. Return a new list in which each
# occurrence of the pair, from left to right, is replaced by one piece. A piece takes part in one
# merge only: `["a", "a", "a"]` with `("a", "a")` becomes `["aa", "a"]`.


# %%
def merge_once(pieces, pair):
    joined = ...
    return joined


grade(merge_once)

# %% [markdown]
# <details><summary>Hint 1</summary>
#
# Walk through the list with an index `i`. Compare `pieces[i]` and its right neighbour with the
# pair.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# Where they are the pair, append both as one string and go on by 2. Otherwise append `pieces[i]`
# and go on by 1. The last piece has no right neighbour.
#
# </details>


# %% jupyter={"source_hidden": true}
def merge_once(pieces, pair):
    joined, i = [], 0
    while i < len(pieces):
        here = tuple(pieces[i : i + 2]) == pair
        joined.append("".join(pair) if here else pieces[i])
        i += 2 if here else 1
    return joined


# %% [markdown]
# ### Exercise 6.4: `merge_word`
#
# *12 minutes · difficulty 3 of 5*
#
# `rank` is a dictionary from a pair to its number. The pair that was learned first has the lowest
# number. Merge until no two neighbours are in `rank`; one call of `merge_once` is one stage. Return
# all stages: a list of lists that begins with `pieces` and ends with the tokens. `pairwise(pieces)`
# gives all pairs of neighbours.

# %%
from itertools import pairwise


def merge_word(pieces, rank):
    stages = ...
    return stages


grade(merge_word)

# %% [markdown]
# <details><summary>Hint 1</summary>
#
# At each stage look at all neighbours that are in `rank`, not only at the first ones.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# `min(pairs, key=rank.get)` is the pair of the lowest number. Stop when `pairs` is empty.
#
# </details>


# %% jupyter={"source_hidden": true}
def merge_word(pieces, rank):
    stages = [pieces]
    while True:
        pairs = [pair for pair in pairwise(pieces) if pair in rank]
        if not pairs:
            return stages
        first = min(pairs, key=rank.get)  # the pair that was learned first
        pieces = merge_once(pieces, first)
        stages.append(pieces)


# %% [markdown]
# The file of the tokenizer holds the merges and the number of each piece. The symbols of the bytes
# follow from a rule.

# %%
tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
vocabulary = tokenizer["model"]["vocab"]  # piece -> id
rank = {tuple(pair): r for r, pair in enumerate(tokenizer["model"]["merges"])}

# bytes whose letter can be seen keep it; the others get letters from number 256 on
own_letter = [*range(33, 127), *range(161, 173), *range(174, 256)]
others = [byte for byte in range(256) if byte not in own_letter]
symbol = {byte: chr(byte) for byte in own_letter}
symbol |= {byte: chr(256 + j) for j, byte in enumerate(others)}  # a space: chr(288)


def symbols(word):
    return [symbol[byte] for byte in word.encode("utf-8")]


# %% [markdown]
# The tiny model read of restaurants, films, people, cities and books (the
# [tiny world](glossary.md#tiny-world)). It has 1024 pieces.
#
# **Predict.** Which of these is one token, and which falls into the most: " restaurant",
# " unbelievable", " Müller"? How many bytes is "ü"?

# %%
for stage in merge_word(symbols(" unbelievable"), rank):
    print(*stage)
n_tokens = {}
for word in (" restaurant", " unbelievable", " Müller"):
    pieces = merge_word(symbols(word), rank)[-1]
    ids = [vocabulary[piece] for piece in pieces]
    n_tokens[word] = len(ids)
    print(repr(word), "->", *pieces, "->", ids)
    assert ids == tiny.encode(word), f"{word!r}: the tokenizers library cuts it otherwise"
assert n_tokens[" restaurant"] == 1
assert max(n_tokens, key=n_tokens.get) == " unbelievable"
assert len(symbols("ü")) == 2

# %% [markdown]
# **Answer.** " restaurant" was frequent, so it is one token. " unbelievable" is rare and falls into
# the most pieces. "ü" is two bytes, whose symbols are `Ã` and `¼`.

# %% [markdown]
# `tiny.encode` is another implementation of the same merges: the library `tokenizers`, written in
# Rust.
#
# **Recap.** A tokenizer of this kind is a list of merges in an order. The order decides: at each
# stage the merge with the lowest number comes first.
#
# ## From tokens to rows
#
# From here on, one text of $T$ tokens. Each token becomes a row of $C$ numbers, its
# [embedding](glossary.md#embedding): its row of `wte` plus the row of `wpe` for its position.
#
# $$x = wte[tokens] + wpe[positions] \qquad (T, C)$$
#
# The order of the tokens enters the model in two places: in `wpe`, and in the causal mask.
#
# ### Exercise 6.5: `embed`
#
# *2 minutes · difficulty 1 of 5*
#
# `tokens` and `positions` are arrays of $N$ whole numbers, `wte` is $(V, C)$ and `wpe` is
# $(n_{positions}, C)$. Return $x$, of the shape $(N, C)$. Use the positions as they are given: they
# need not begin at 0, and several texts may lie behind one another.


# %%
def embed(tokens, positions, wte, wpe):
    x = ...  # (N, C)
    return x


grade(embed)

# %% [markdown]
# <details><summary>Hint 1</summary>
#
# NumPy takes an array of indices: `wte[tokens]` has a row for each token.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# Two tables, two arrays of indices, one sum.
#
# </details>


# %% jupyter={"source_hidden": true}
def embed(tokens, positions, wte, wpe):
    x = wte[tokens] + wpe[positions]  # (N, C)
    return x


# %% [markdown]
# A frozen model needs no gradient of these tables. Fine-tuning does, and it has a trap. A token
# that occurs twice in the text has one row in the table. Both places use this row, so by the chain
# rule its gradient is the sum over both.
#
# ### Exercise 6.6: `embed_backward_params`
#
# *8 minutes · difficulty 3 of 5*
#
# `dx` is $(N, C)$. Return `dwte` and `dwpe`, of the shapes of the tables and of the type of `dx`.
# Rows that no token uses have the gradient 0.


# %%
def embed_backward_params(dx, tokens, positions, wte, wpe):
    dwte = ...  # (V, C)
    dwpe = ...  # (n_positions, C)
    return dwte, dwpe


grade(embed_backward_params)

# %% [markdown]
# <details><summary>Hint 1</summary>
#
# Begin with zeros. Then each row of `dx` is added to one row of each table.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# `dwte[tokens] += dx` reads the rows, adds, and writes them back. For a token that occurs twice,
# the second write covers the first. A loop over the rows adds them one by one, and so does
# `np.add.at(dwte, tokens, dx)`.
#
# </details>


# %% jupyter={"source_hidden": true}
def embed_backward_params(dx, tokens, positions, wte, wpe):
    dwte = np.zeros_like(wte, dtype=dx.dtype)  # (V, C)
    np.add.at(dwte, tokens, dx)
    dwpe = np.zeros_like(wpe, dtype=dx.dtype)  # (n_positions, C)
    np.add.at(dwpe, positions, dx)
    return dwte, dwpe


# %% [markdown]
# **Recap.** A token's row is the sum of two rows of tables. In the backward, places that share a
# row add up; `+=` with an array of indices does not do that.
#
# ## One block
#
# This $x$ is the [residual stream](glossary.md#residual-stream). A block does not replace it. It
# reads the stream through a layernorm and adds its result to it, twice. First it adds what the
# attention collected from the tokens before. Then it adds what the MLP computed for each token by
# itself.
#
# In the formulas the name of a layer stands for its operation: $\mathrm{ln\_1}(x)$ is the layernorm
# with `ln_1.weight` and `ln_1.bias`, and $\mathrm{c\_attn}(a)$ is the linear layer.
#
# $$\begin{aligned}
# q, k, v &= \mathrm{c\_attn}(\mathrm{ln\_1}(resid_{pre})) \\
# z &= \mathrm{attention}(q, [prefix_k; k], [prefix_v; v]) \\
# resid_{mid} &= resid_{pre} + \mathrm{attn.c\_proj}(z) \\
# g &= \mathrm{gelu}(\mathrm{mlp.c\_fc}(\mathrm{ln\_2}(resid_{mid}))) \\
# resid_{post} &= resid_{mid} + \mathrm{mlp.c\_proj}(g)
# \end{aligned}$$
#
# The stream is $(T, C)$ at each of its three places, and $g$ is $(T, F)$. The $resid_{post}$ of a
# block is the $resid_{pre}$ of the next one.

# %%
from minprefix.lessons import drawings

drawings.block()

# %% [markdown]
# You wrote four of the parts in lessons 2, 4 and 5. Here they are once more, short. `b` is a
# dictionary with the weights of one block under their short names, such as `ln_1.weight`. The
# attention takes keys and values in which the slots already stand before the tokens.


# %%
def names_of(w, i):
    """The weights of block i under their names in it."""
    return {name.removeprefix(f"h.{i}."): a for name, a in w.items() if name.startswith(f"h.{i}.")}


def linear(x, b, name):
    return x @ b[f"{name}.weight"] + b[f"{name}.bias"]


def layernorm(x, b, name, eps):
    centred = x - x.mean(axis=-1, keepdims=True)  # (T, C)
    variance = (centred * centred).mean(axis=-1, keepdims=True)  # (T, 1)
    return centred / (variance + eps) ** 0.5 * b[f"{name}.weight"] + b[f"{name}.bias"]


def gelu(x):
    return 0.5 * x * (1 + np.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x**3)))


def attention(q, keys, values):  # (NH, T, hs), and twice (NH, P+T, hs)
    T, P = q.shape[1], keys.shape[1] - q.shape[1]
    visible = np.arange(P + T)[None, :] <= np.arange(T)[:, None] + P  # (T, P+T)
    scores = np.where(visible, q @ keys.swapaxes(1, 2) / q.shape[2] ** 0.5, -np.inf)
    e = np.exp(scores - scores.max(axis=-1, keepdims=True))  # (NH, T, P+T)
    return e / e.sum(axis=-1, keepdims=True) @ values  # (NH, T, hs)


# %% [markdown]
# ### Exercise 6.7: `mlp_half`
#
# *6 minutes · difficulty 2 of 5*
#
# Begin with the easier half of a block. From `resid_mid` $(T, C)$ compute `resid_post` $(T, C)$.
# `b` are the weights of the block. `linear(x, b, name)`, `layernorm(x, b, name, eps)` and `gelu(x)`
# are above.


# %%
def mlp_half(resid_mid, b, eps):
    m = ...  # (T, C)  out of the layernorm
    h = ...  # (T, F)  out of c_fc
    g = ...  # (T, F)
    resid_post = ...  # (T, C)
    return resid_post


grade(mlp_half)

# %% [markdown]
# <details><summary>Hint 1</summary>
#
# The names are `"ln_2"`, `"mlp.c_fc"` and `"mlp.c_proj"`, in this order.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# The result of `mlp.c_proj` is added to `resid_mid` itself, not to `m`.
#
# </details>


# %% jupyter={"source_hidden": true}
def mlp_half(resid_mid, b, eps):
    m = layernorm(resid_mid, b, "ln_2", eps)  # (T, C)
    h = linear(m, b, "mlp.c_fc")  # (T, F)
    g = gelu(h)  # (T, F)
    resid_post = resid_mid + linear(g, b, "mlp.c_proj")  # (T, C)
    return resid_post


# %% [markdown]
# ### Exercise 6.8: `split_qkv`
#
# *10 minutes · difficulty 2 of 5*
#
# `qkv` is what comes out of `c_attn`, $(T, 3C)$, and `NH` is the number of heads. The first $C$
# columns are the queries of all heads, the next $C$ the keys, the last $C$ the values. Within each
# $C$, head 0 has the first $hs$ columns, head 1 the next, and so on. Return `q`, `k` and `v`, each
# $(NH, T, hs)$.


# %%
def split_qkv(qkv, NH):
    q = k = v = ...  # (NH, T, hs) each
    return q, k, v


grade(split_qkv)

# %% [markdown]
# <details><summary>Hint 1</summary>
#
# Column by column: which of the three, then which head, then which of its $hs$ numbers. A reshape
# to $(T, 3, NH, hs)$ says just that, and moves no number.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# Then the axes have to change places: the three first, so that they can be unpacked, then the
# heads, then the tokens. `a.transpose(1, 2, 0, 3)` takes the axes of `a` in that order.
#
# </details>


# %% jupyter={"source_hidden": true}
def split_qkv(qkv, NH):
    T, hs = len(qkv), qkv.shape[1] // (3 * NH)
    parts = qkv.reshape(T, 3, NH, hs)
    q, k, v = parts.transpose(1, 2, 0, 3)  # (NH, T, hs) each
    return q, k, v


# %% [markdown]
# ### Exercise 6.9: `attention_half`
#
# *15 minutes · difficulty 4 of 5*
#
# Now the first half of the block, from `resid_pre` $(T, C)$ to `resid_mid` $(T, C)$. `past` holds
# the keys and values that the tokens see before themselves in this block, $(2, NH, P, hs)$; there
# may be none ($P = 0$). Return `resid_mid`, and `kv` $(2, NH, P+T, hs)$: the keys and values that a
# later token would see. `attention(q, keys, values)` and `split_qkv` are above.


# %%
def attention_half(resid_pre, b, past, NH, eps):
    a = ...  # (T, C)  out of the layernorm
    qkv = ...  # (T, 3C)
    keys = ...  # (NH, P+T, hs)
    values = ...  # (NH, P+T, hs)
    z = ...  # (NH, T, hs)
    joined = ...  # (T, C)  heads side by side
    resid_mid = ...  # (T, C)
    kv = ...  # (2, NH, P+T, hs)
    return resid_mid, kv


grade(attention_half)

# %% [markdown]
# <details><summary>Hint 1</summary>
#
# Keys and values are joined along the axis of the tokens, the past first:
# `np.concatenate([past[0], k], axis=1)`.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# `z` is $(NH, T, hs)$, and `attn.c_proj` wants rows of tokens. First the tokens have to become the
# first axis (`swapaxes(0, 1)`). Only then may the heads be joined by `reshape`.
#
# </details>
#
# <details><summary>Hint 3</summary>
#
# `kv` is `np.array([keys, values])`, a new array.
#
# </details>


# %% jupyter={"source_hidden": true}
def attention_half(resid_pre, b, past, NH, eps):
    a = layernorm(resid_pre, b, "ln_1", eps)  # (T, C)
    qkv = linear(a, b, "attn.c_attn")  # (T, 3C)
    q, k, v = split_qkv(qkv, NH)
    keys = np.concatenate([past[0], k], axis=1)  # (NH, P+T, hs)
    values = np.concatenate([past[1], v], axis=1)  # (NH, P+T, hs)
    z = attention(q, keys, values)  # (NH, T, hs)
    joined = z.swapaxes(0, 1).reshape(resid_pre.shape)  # (T, C)
    resid_mid = resid_pre + linear(joined, b, "attn.c_proj")  # (T, C)
    kv = np.array([keys, values])  # (2, NH, P+T, hs)
    return resid_mid, kv


# %% [markdown]
# The prefix enters the model in two lines, where keys and values are joined. Every other line is
# the same with a prefix and without one.
#
# **Recap.** A block reads the stream through a layernorm and adds to the stream, once for attention
# and once for the MLP. Slots and earlier tokens enter as keys and values that stand first.
#
# ## The whole forward
#
# After the last block come one more layernorm and the LM head:
#
# $$logits = \mathrm{ln\_f}(resid_{post}) \; wte^\top \qquad (T, V)$$
#
# ### Exercise 6.10: `lm_head`
#
# *5 minutes · difficulty 2 of 5*
#
# `x` is the stream after the last block, $(T, C)$, and `w` all weights of the model by their full
# names. Return the logits, $(T, V)$. Where `w` has a weight `lm_head.weight` of its own, $(V, C)$,
# use it; else the LM head is tied.


# %%
def lm_head(x, w, eps):
    y = ...  # (T, C)
    logits = ...  # (T, V)
    return logits


grade(lm_head)

# %% [markdown]
# <details><summary>Hint 1</summary>
#
# The last layernorm has the name `"ln_f"`. `layernorm(x, w, name, eps)` takes all weights as well
# as those of a block.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# Both weights have a row for each token. `w.get("lm_head.weight", w["wte.weight"])` is the one to
# use, and it has to be transposed.
#
# </details>


# %% jupyter={"source_hidden": true}
def lm_head(x, w, eps):
    y = layernorm(x, w, "ln_f", eps)  # (T, C)
    logits = y @ w.get("lm_head.weight", w["wte.weight"]).T  # (T, V)
    return logits


# %% [markdown]
# One thing is left to decide: the positions. Without a prefix they are $0 \dots T-1$. With a prefix
# of $P$ slots they are $P \dots P+T-1$: the slots take the positions before, as if they were
# tokens. `start` is the position of the first token.
#
# ### Exercise 6.11: `forward`
#
# *20 minutes · difficulty 4 of 5*
#
# Put the parts together. `tokens` is a list of $T$ numbers, `w` the weights by their full names,
# `config` a dictionary as in `config.json`. `past` holds the keys and values that the tokens see
# first, in each layer, $(L, 2, NH, P, hs)$. Return
#
# - `stream`, $(L+1, T, C)$: the residual stream before the first block and after each block;
# - `kv`, $(L, 2, NH, P+T, hs)$: the keys and values of everything that was seen;
# - `logits`, $(T, V)$.
#
# The two lines for `past=None` are given: without a past there are 0 slots.


# %%
def forward(tokens, w, config, past=None, start=0):
    L, NH, eps = config["n_layer"], config["n_head"], config["layer_norm_epsilon"]
    if past is None:
        past = np.zeros((L, 2, NH, 0, w["wte.weight"].shape[1] // NH))
    stream = ...  # (L+1, T, C)
    kv = ...  # (L, 2, NH, P+T, hs)
    logits = ...  # (T, V)
    return stream, kv, logits


grade(forward)

# %% [markdown]
# <details><summary>Hint 1</summary>
#
# In the order of the formulas: `embed`, then for each layer `attention_half` and `mlp_half`, then
# `lm_head`. `names_of(w, i)` gives the weights of block `i`.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# The positions are `start + np.arange(len(tokens))`. `start` and $P$ are two things: use `start`
# for the positions, and the shape of `past` for nothing else.
#
# </details>
#
# <details><summary>Hint 3</summary>
#
# Collect the stream and the keys and values in two lists, and make an array of each at the end.
#
# </details>


# %% jupyter={"source_hidden": true}
def forward(tokens, w, config, past=None, start=0):
    L, NH, eps = config["n_layer"], config["n_head"], config["layer_norm_epsilon"]
    if past is None:
        past = np.zeros((L, 2, NH, 0, w["wte.weight"].shape[1] // NH))
    positions = start + np.arange(len(tokens))  # (T,)
    x = embed(tokens, positions, w["wte.weight"], w["wpe.weight"])
    after_each, kvs = [x], []
    for i in range(L):
        b = names_of(w, i)
        x, of_layer = attention_half(x, b, past[i], NH, eps)
        x = mlp_half(x, b, eps)
        after_each.append(x)
        kvs.append(of_layer)
    stream = np.array(after_each)
    kv = np.array(kvs)
    logits = lm_head(x, w, eps)  # (T, V)
    return stream, kv, logits


# %% [markdown]
# That is GPT-2, in eleven short functions.

# %%
text = (
    "describe\nname[Mill and Table], type[film], genre[comedy], year[1940]\n"
    "Mill and Table is a film that belongs to the genre of comedy. The film came out in 1940."
)
tokens = tiny.encode(text)
weights = {name: a.astype(np.float64) for name, a in stored.items()}
stream, kv, logits = forward(tokens, weights, config)
print("logits", logits.shape, " keys and values", kv.shape, " stream", stream.shape)

# %% [markdown]
# ### First proof: the package
#
# The package's forward is another one. It takes many texts in one stream, and its operations are
# written to be fast. We compare in float64 (16 digits), so that a difference that remains is a
# mistake and not rounding. We also compare with a random prefix, because a mistake in the positions
# or in the past does not show without one.

# %%
import minprefix


def relative_error(a, b):
    """The largest difference, as a part of the largest number: 1 means all wrong."""
    return np.abs(a - b).max() / np.abs(b).max()


rng = np.random.default_rng(0)
random_kv = rng.normal(size=(L, 2, NH, 3, C // NH))  # (L, 2, NH, P, hs)


def check_logits(package, P, config=tiny.config, weights=weights):
    """The logits of `package` with the first P of those slots, against the forward above."""
    past = random_kv[: config.n_layer, :, : config.n_head, :P]  # (L, 2, NH, P, hs)
    # vars: the fields of `Config` have the names that config.json has
    _, _, ours = forward(tokens, weights, vars(config), past, start=P)
    batch, prefix = package.Batch.pack([tokens]), package.Prefix(past)
    theirs = package.GPT2(config, weights).logits(batch, prefix)
    error = relative_error(theirs, ours)
    assert error < 1e-10, f"{P} slots: the logits are off by {error:.2g}"
    print(f"{P} slots: off by {error:.1e} of the largest logit")


check_logits(minprefix, P=0)
check_logits(minprefix, P=3)

# %% [markdown]
# ### Second proof: transformers
#
# Hugging Face's `transformers`, over PyTorch, reads the same folder. It was written by other people
# in another library. If it is not installed, the lesson goes on without it. (If it is, this cell
# takes some seconds, nearly all for the import.)

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
# **Recap.** The forward is the embedding, $L$ blocks and the LM head. Positions begin at $P$ behind
# a prefix. Two other implementations give the same logits.
#
# ## What the stream holds between the blocks
#
# The LM head can read the stream after any block, not only after the last one. It was trained for
# the last one, but all blocks add to the same rows.
#
# **Predict.** Leave out all blocks: embed a token and go straight to the LM head. It compares with
# the rows of `wte`, and the stream holds one of them. Which token will it say comes next?

# %%
targets = np.array(tokens[1:])  # (T-1,)


def mean_loss(logits):
    """In nats, of the token that follows each: logits (T, V)."""
    shifted = logits[:-1] - logits[:-1].max(axis=1, keepdims=True)  # (T-1, V)
    log_probs = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))  # (T-1, V)
    return -log_probs[np.arange(len(targets)), targets].mean()


def in_columns(ids):
    return " ".join(f"{tiny.decode([i]).strip():7.7}" for i in ids)


last = slice(-8, -1)  # the sentence at the end, without its full stop
print(f"{'a token':14}", in_columns(tokens[last]), "  loss of all")
print("and the token that the LM head predicts after it")
early = [lm_head(x, weights, config["layer_norm_epsilon"]) for x in stream]  # (T, V) each
for i, its_logits in enumerate(early):
    guesses = in_columns(its_logits.argmax(axis=1)[last])
    print(f"after {i} blocks: {guesses} {mean_loss(its_logits):6.2f}")
assert np.array_equal(early[0].argmax(axis=1), tokens), "not itself"
losses = [mean_loss(its_logits) for its_logits in early]
assert [round(losses[i], 2) for i in (0, -1)] == [21.00, 0.89]
assert losses[0] > np.log(1024)

# %% [markdown]
# **Answer.** It says the token itself, every time. So the loss is worse than that of a blind guess
# among 1024 tokens, $\ln(1024) = 6.93$. At the bottom the stream says "this token stands here", and
# at the top it says "that token comes next".

# %% [markdown]
# **Recap.** All blocks add to one stream, so the LM head can read it after any of them. The stream
# begins as the token itself and ends as the prediction.
#
# ## One token at a time
#
# A text is written one token at a time: the new token is fed in, and the model predicts the next.
# The keys and values of the earlier tokens do not change any more, because no token sees a later
# one. So they are kept. This is the [key-value cache](glossary.md#key-value-cache). `forward`
# already returns it (`kv`), and already takes it (`past`): attention makes no difference between
# slots and earlier tokens.
#
# ### Exercise 6.12: `decode_step`
#
# *5 minutes · difficulty 2 of 5*
#
# `token` is one number and `position` its position. `kv` holds the keys and values of all that it
# sees, $(L, 2, NH, S, hs)$; $S$ counts slots and earlier tokens. Return its logits $(V)$ and the
# cache with the new token in it, $(L, 2, NH, S+1, hs)$. The earlier tokens are not given.


# %%
def decode_step(token, position, kv, w, config):
    logits = ...
    longer = ...  # (L, 2, NH, S+1, hs)
    return logits, longer


grade(decode_step)

# %% [markdown]
# <details><summary>Hint 1</summary>
#
# One token is a text of length 1. `forward` does all the work.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# `forward` returns the keys and values of the past and of the token together, and logits of the
# shape $(1, V)$.
#
# </details>


# %% jupyter={"source_hidden": true}
def decode_step(token, position, kv, w, config):
    _, longer, logits = forward([token], w, config, kv, position)
    return logits[0], longer


# %% [markdown]
# ### Exercise 6.13: `greedy`
#
# *15 minutes · difficulty 4 of 5*
#
# *Greedy* [decoding](glossary.md#decoding) takes the token of the highest logit, feeds it in, and
# so on. `tokens` is the prompt (a list), `past` and `start` are as in `forward`. Return the `n_new`
# tokens that follow, a list of numbers. Read the prompt in one call of `forward`, and then each new
# token once. An answer that feeds earlier tokens again fails, even if its text is right. The last
# new token need not be fed in.


# %%
def greedy(tokens, n_new, w, config, past=None, start=0):
    new = ...
    return new


grade(greedy)

# %% [markdown]
# <details><summary>Hint 1</summary>
#
# The first new token comes from the last row of the prompt's logits. From then on `decode_step`
# gives the logits.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# Three things change in each round: the token, its position, and the cache. The first new token
# stands at the position `start + len(tokens)`.
#
# </details>


# %% jupyter={"source_hidden": true}
def greedy(tokens, n_new, w, config, past=None, start=0):
    _, kv, rows = forward(tokens, w, config, past, start)
    logits = rows[-1]  # of the last token
    new = [int(logits.argmax())]
    while len(new) < n_new:
        position = start + len(tokens) + len(new) - 1  # of the newest token
        logits, kv = decode_step(new[-1], position, kv, w, config)
        new.append(int(logits.argmax()))
    return new


# %% [markdown]
# Now the model writes. We count the rows that go through the blocks, with the cache and without
# it. Without a cache, each new token costs a forward over the whole text so far.

# %%
prompt = tiny.encode(text.split("Mill and Table is")[0])
rows_fed, uncounted = [], forward


def counting(tokens, *rest):
    rows_fed.append(len(tokens))
    return uncounted(tokens, *rest)


forward = counting  # `greedy` and `decode_step` call it by this name
new, n_new = [], 24
for _ in range(n_new):
    _, _, all_logits = forward(prompt + new, weights, config)
    new.append(int(all_logits[-1].argmax()))
without_cache = sum(rows_fed)
rows_fed.clear()
with_cache = greedy(prompt, n_new, weights, config)
forward = uncounted

print(repr(tiny.decode(with_cache)))
print(f"rows through the blocks: {sum(rows_fed)} with a cache, {without_cache} without")
assert with_cache == new, "the cache changes the text"
assert (sum(rows_fed), without_cache) == (46, 828)
assert len(prompt) + n_new - 1 == 46
in_float64 = GPT2(tiny.config, weights, tiny.tokenizer)
theirs = minprefix.generate(in_float64, [tiny.decode(prompt)], max_new_tokens=n_new)
assert theirs == [tiny.decode(with_cache)], "the package writes another text"

# %% [markdown]
# `decode_step` makes a longer array for each token, and copies the whole cache for that. Faster
# code reserves an array with room for more places, a *buffer*, and writes the new key and value
# into the next free place. That is quick, and it has a trap. Two texts that go on from the same
# prompt each need a buffer of their own.
#
# ### Exercise 6.14: `two_continuations`
#
# *12 minutes · difficulty 3 of 5*
#
# `buffer` is $(L, 2, NH, room, hs)$. Its first `seen` places are filled: they hold the keys and
# values of a prompt. `tokens` are two tokens, each a possible next one, and `position` is the
# position of both. Return the logits of both, $(2, V)$, and both buffers in one array,
# $(2, L, 2, NH, room, hs)$, each with its own token in the place `seen`. Leave `buffer` as it is:
# the caller may want a third continuation.


# %%
def two_continuations(buffer, seen, tokens, position, w, config):
    logits = ...  # (2, V)
    buffers = ...  # (2, L, 2, NH, room, hs)
    return logits, buffers


grade(two_continuations)

# %% [markdown]
# <details><summary>Hint 1</summary>
#
# `decode_step` wants the filled places only: `buffer[:, :, :, :seen]`. The new key and value are
# the last ones of what it returns.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# `own = buffer` and `own = buffer[:]` are not copies: both names lead to the same memory.
# `buffer.copy()` has memory of its own.
#
# </details>


# %% jupyter={"source_hidden": true}
def two_continuations(buffer, seen, tokens, position, w, config):
    rows, kept = [], []
    for token in tokens:
        own = buffer.copy()
        row, longer = decode_step(token, position, own[:, :, :, :seen], w, config)
        own[:, :, :, seen] = longer[:, :, :, seen]
        rows.append(row)
        kept.append(own)
    logits = np.array(rows)
    buffers = np.array(kept)
    return logits, buffers


# %% [markdown]
# Without the copy, the logits of this step are still right, because each token is read from the
# prompt's places alone. The next step of the first text sees the key of the second token. We go one
# step on with the first text, once from its own buffer and once from the other one.

# %%
seen, room = len(prompt), 32
_, prompt_kv, prompt_logits = forward(prompt, weights, config)
buffer = np.zeros((L, 2, NH, room, C // NH))
buffer[:, :, :, :seen] = prompt_kv
best = np.argsort(prompt_logits[-1])[::-1][:2].tolist()  # the two likeliest tokens
print("two continuations:", *(repr(tiny.decode([token])) for token in best))
_, buffers = two_continuations(buffer, seen, best, seen, weights, config)
next_logits = [
    decode_step(new[1], seen + 1, own[:, :, :, : seen + 1], weights, config)[0] for own in buffers
]
error = relative_error(next_logits[1], next_logits[0])
print(f"with the other text's buffer the logits are off by {error:.2g} of the largest one")
assert error > 0.01

# %% [markdown]
# Beam search keeps several continuations of one prompt, so it needs this copy.
#
# **Recap.** The cache is the past that `forward` returns. With it, each token goes through the
# blocks once. Each text needs a cache with its own memory.
#
# ## The same for GPT-2 itself
#
# The small model and GPT-2 differ in the numbers of `config.json`, and in nothing else. If you have
# GPT-2, name it before you start Python: `MINPREFIX_GPT2=gpt2` (the name on the hub, fetched once,
# 548 MB) or a folder. Its file holds twelve arrays more, `h.0.attn.bias` and the like. They are no
# weights but causal masks of zeros and ones, and readers skip them. We stay in float32 here. It has
# 7 digits, and rounding costs one or two of them.

# %%
from minprefix import Batch
from minprefix.lessons import real_gpt2

real = real_gpt2()
if real is None:
    print("GPT-2 is not at hand: the lesson goes on with the small model")
else:
    print(real)
    real_tokens = real.encode("The lighthouse keeper climbed the stairs and lit the")
    _, _, real_logits = forward(real_tokens, real.weights, vars(real.config))
    error = relative_error(real.logits(Batch.pack([real_tokens])), real_logits)
    print(f"off by {error:.1e} of the largest logit")
    assert error < 1e-4, "the forward above and the package differ on this model"
    theirs = by_transformers(find(real.name), real_tokens)
    assert theirs is None or relative_error(theirs, real_logits) < 1e-4
    best = np.argsort(real_logits[-1])[::-1][:5]
    print("next:", *(repr(real.decode([i])) for i in best))

# %% [markdown]
# **Recap.** One forward serves every GPT-2; `config.json` says how large it is.
#
# ## Break it yourself
#
# Two bugs that are easy to make. The first one reads the columns of `c_attn` in another order:
# query, key and value of head 0, then those of head 1, and so on. Some other models store them so.
# The second one is right in every line of the model. It counts the positions of the tokens from 0,
# prefix or not.
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
# **Answer.** Both checks fire for the first bug. For the second, only the check with slots fires.

# %% [markdown]
# What would you have seen without these checks? With the first bug every array has the right name
# and shape, and no number is NaN. With one head nothing is wrong, and a first test often has one
# head. Only the guesses are worse, and some of them are still right.

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
assert (round(right_guess, 2), round(wrong_guess, 2)) == (0.85, 0.46)

# %% [markdown]
# The second bug is harder to see. The [law](glossary.md#law) of lesson 1 finds it: put the keys and
# values of the first tokens before the rest of the text, as a prefix, and compare with reading the
# whole text at once. A law needs no second implementation.
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
assert "differ by 0.09" in str(error), "the logits move by 9% of the largest one"

model, batch = unmoved.GPT2(tiny.config, weights), unmoved.Batch.pack([tokens[8:]])
shifted_logits = model.logits(batch, unmoved.Prefix(kv[:, :, :, :8]))  # (T-8, V)
same = np.mean(shifted_logits.argmax(axis=1) == logits[8:].argmax(axis=1))
print(f"and yet the guess is the same for {same:.0%} of the tokens")
assert same == 1

# %% [markdown]
# **Answer.** It guesses the same for all of them.

# %% [markdown]
# Both ways to count positions exist. The code of the paper that introduced prefix-tuning (Li and
# Liang, 2021) and the library PEFT begin at $P$. The library `adapters` begins at 0. Each fits the
# prefixes that it trained itself. If you put such a prefix into the other one, its logits are wrong
# as above, and the text may look right.
#
# ## Remember
#
# - A checkpoint is a table of contents and numbers. Compare what you read bit for bit.
# - Rows that several tokens share add up in the backward.
# - A block adds to the residual stream twice: attention among tokens, then the MLP for each token.
# - Slots and earlier tokens are the same to attention: keys and values that stand first. So the
#   key-value cache is a prefix that grows.
# - Behind a prefix the positions begin at $P$. Test with a prefix: without one, this cannot fail.
# - Test with more than one head, and compare numbers, not guesses.
#
# ## Exercises
#
# **1.** GPT-2 (the small one of its family) has $L = 12$, $C = 768$, $V = 50257$, 1024 positions
# and $F = 4C$. How many numbers is that? What share are the two tables? Do it on paper: by the list
# above, one block has $12 C^2 + 13 C$ numbers.
#
# <details><summary>Solution 1</summary>
#
# $L (12 C^2 + 13 C) + (V + 1024) \, C + 2C = 124\,439\,808$; the tables are 32% of it. If the LM
# head were not tied, it would have another 39 million.
#
# ```python
# gpt2 = minprefix.Config(
#     n_layer=12, n_head=12, n_embd=768, vocab_size=50257, n_positions=1024
# )
# sizes = {name: int(np.prod(shape)) for name, shape in gpt2.shapes().items()}
# by_formula = 12 * (12 * 768**2 + 13 * 768) + (50257 + 1024) * 768 + 2 * 768
# assert sum(sizes.values()) == by_formula == 124_439_808
# assert round(100 * (sizes["wte.weight"] + sizes["wpe.weight"]) / by_formula) == 32
# ```
#
# </details>
#
# **2.** The cache saves work and takes memory. How many numbers does it hold for each token in
# GPT-2? How many tokens does it take until the cache holds as many numbers as the model?
#
# <details><summary>Solution 2</summary>
#
# In each of the 12 layers a key and a value of $C = 768$ numbers each: $2 L C = 18\,432$. The model
# has 124 million, so it takes 6752 tokens. That is more than one text may have (1024), but only
# seven texts at once.
#
# ```python
# per_token = 2 * 12 * 768
# assert per_token == 18_432
# assert np.ceil(124_439_808 / per_token) == 6752
# ```
#
# </details>
#
# Next: [Frozen: half a backward](07_half_a_backward.py).
