"""Lesson 6's exercises: the inputs on which an answer is graded, and the usual mistakes."""

import json
from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np

from minprefix.conformance.model_problems import weights_of
from minprefix.gpt2 import Config
from minprefix.lessons.exercise import Cases, Lazy, Rng, exercise
from minprefix.ops.contract import Array

#: sizes that are all different, so that a reshape to the wrong ones fails
SIZES: dict[str, Any] = {"n_layer": 2, "n_head": 2, "n_embd": 6, "vocab_size": 17, "n_inner": 10}


# ---- the checkpoint ------------------------------------------------------------------------------


def _file(rng: Rng, shapes: dict[str, tuple[int, ...]], spaces: int) -> tuple[bytes, dict]:
    """A safetensors file, and its header with all that stands in it."""
    header: dict[str, Any] = {"__metadata__": {"format": "np"}} if spaces else {}
    numbers, at = [], 0
    for name, shape in shapes.items():
        a = rng.normal(size=shape).astype("<f4")
        a.ravel()[:1] = np.frombuffer(b"}}\0\x3f", "<f4")  # a number may look like brackets
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [at, at + a.nbytes]}
        numbers.append(a.tobytes())
        at += a.nbytes
    text = json.dumps(header).encode() + b" " * spaces
    return len(text).to_bytes(8, "little") + text + b"".join(numbers), header


FILES: tuple[tuple[dict[str, tuple[int, ...]], int], ...] = (
    ({"a": (2, 3)}, 0),
    ({"wte.weight": (5, 2), "ln_f.bias": (4,), "h.0.ln_1.weight": (3,)}, 5),
)


@exercise(
    (
        "data_start = 8 + size",
        "data_start = size",
        "The third part begins 8 bytes later: the size counts the JSON alone, and the 8 bytes of "
        "the size itself come before it. Add 8.",
    ),
    (
        'if name != "__metadata__"',
        "if name",
        "`__metadata__` is still in the dictionary: it describes the file and is no array. Leave "
        "it out.",
    ),
    (
        "data_start = 8 + size",
        'data_start = raw.index(b"}}") + 2',
        "The third part was taken to begin behind the last bracket of the JSON, but spaces may "
        "follow the JSON. Use the length in the first 8 bytes: 8 + size.",
    ),
)
def read_header(rng: Rng) -> Cases:
    """One array; three with spaces behind the JSON and a note on the file."""
    for shapes, spaces in FILES:
        raw, _ = _file(rng, shapes, spaces)
        yield (raw,)


@exercise(
    (
        "raw[data_start + start : data_start + end]",
        "raw[start:end]",
        "These bytes are cut out too early in the file: the offsets are counted from the third "
        "part. Add data_start to both.",
    ),
    (
        '"<f4"',
        '">f4"',
        "The four bytes of each number are read in the wrong order: the file has the lowest byte "
        'first, which is "<f4".',
    ),
    (
        'numbers.reshape(entry["shape"])',
        'numbers.reshape(entry["shape"], order="F")',
        "The numbers are right and stand in the wrong places: the file holds an array row by row, "
        "as a plain reshape does.",
    ),
)
def read_array(rng: Rng) -> Cases:
    """Each array of two files."""
    for shapes, spaces in FILES:
        raw, header = _file(rng, shapes, spaces)
        data_start = 8 + int.from_bytes(raw[:8], "little")
        for name in shapes:
            yield raw, header[name], data_start


# ---- the tokenizer -------------------------------------------------------------------------------


@exercise(
    (
        "i += 2 if here else 1",
        "i += 1",
        "After a merge, its second piece is used once more: it is part of the new piece already. "
        "Go on by 2.",
    ),
    (
        "tuple(pieces[i : i + 2]) == pair",
        "pieces[i : i + 2] == pair",
        "No pair was found and nothing was merged. A slice of a list is a list, and a list never "
        "equals a tuple: compare tuple(pieces[i : i + 2]) with the pair.",
    ),
    (
        "== pair\n",
        "== pair and len(joined) == i\n",
        "Only the first occurrence was merged: the pair may stand in the list several times. Walk "
        "on to the end.",
    ),
    (
        "while i < len(pieces):",
        "while i < len(pieces) - 1:",
        "The last piece is lost where it is in no merge: the loop ends one piece too early. Let it "
        "run to the last piece; a slice of two may be shorter there.",
    ),
    (
        "joined, i = [], 0\n",
        'return " ".join(pieces).replace(" ".join(pair), "".join(pair)).split(" ")\n    i = 0\n',
        "The pair was looked for in one joined text: there, `replace` also finds it at the ends of "
        "longer pieces. Compare whole pieces.",
    ),
)
def merge_once(rng: Rng) -> Cases:
    """The pair several times, in a row of equal pieces, at the ends of longer pieces, and not at
    all."""
    yield ["a", "b", "c", "a", "b", "b"], ("a", "b")
    yield ["a"] * 5 + ["b"], ("a", "a")
    yield ["xa", "b", "a", "by", "a", "b"], ("a", "b")
    yield ["a", "b"], ("b", "a")
    yield rng.choice(["a", "b"], 20).tolist(), ("b", "a")


def _learned(words: list[list[str]], n: int) -> dict[tuple[str, str], int]:
    """The first n merges of these words, by counting neighbours."""
    rank: dict[tuple[str, str], int] = {}
    while len(rank) < n:
        counts = Counter(pair for word in words for pair in pairwise(word))
        pair = max(sorted(counts), key=counts.__getitem__)
        rank[pair] = len(rank)
        words = [_joined(word, pair) for word in words]
    return rank


def _joined(word: list[str], pair: tuple[str, str]) -> list[str]:
    found: list[str] = []
    rest = list(word)
    while rest:
        n = 2 if tuple(rest[:2]) == pair else 1
        found.append("".join(rest[:n]))
        rest = rest[n:]
    return found


@exercise(
    (
        "min(pairs, key=rank.get)",
        "pairs[0]",
        "The leftmost pair was merged: the order in which the merges were learned decides, not the "
        "place in the word. Take the pair of the lowest number.",
    ),
    (
        "min(pairs, key=rank.get)",
        "max(pairs, key=rank.get)",
        "The pair that was learned last was merged first: its number is the highest. Take the pair "
        "of the lowest number.",
    ),
    (
        "pieces = merge_once(pieces, first)",
        "pieces[:] = merge_once(pieces, first)",
        "All stages are one and the same list: it was stored and then changed in place. Store a "
        "copy of each stage.",
    ),
    (
        "stages = [pieces]",
        "stages = []",
        "The first stage is missing: the list begins with the pieces before any merge.",
    ),
    (
        "        stages.append(pieces)",
        "        return [*stages, pieces]",
        "It stops after one merge: the new piece may be part of another pair in rank. Look again "
        "until no pair is left.",
    ),
)
def merge_word(rng: Rng) -> Cases:
    """Words of random letters, with merges learned from others; a word without a merge."""
    for n, length in ((12, 9), (20, 14), (8, 6)):
        words = [rng.choice(list("abcd"), 8, p=[0.4, 0.3, 0.2, 0.1]).tolist() for _ in range(12)]
        word = rng.choice(list("abcd"), length, p=[0.4, 0.3, 0.2, 0.1]).tolist()
        yield word, _learned(words, n)
    yield ["x", "y"], {("y", "x"): 0}


# ---- the embedding -------------------------------------------------------------------------------


@exercise(
    (
        " + wpe[positions]",
        "",
        "The positions are missing: without their rows of wpe the model does not know the order of "
        "the tokens. Add wpe[positions].",
    ),
    (
        "wpe[positions]",
        "wpe[: len(tokens)]",
        "The positions are counted from 0 here: behind a prefix, or in a batch of several texts, "
        "they are other numbers. Use the positions as they are given.",
    ),
)
def embed(rng: Rng) -> Cases:
    """One text behind a prefix; two texts."""
    for positions in (np.arange(3, 8), np.array([0, 1, 2, 0, 1])):
        wte, wpe = rng.normal(size=(7, 4)), rng.normal(size=(9, 4))
        yield rng.integers(0, 7, 5), positions, wte, wpe


@exercise(
    (
        "np.add.at(dwte, tokens, dx)",
        "dwte[tokens] += dx",
        "A token that occurs twice was counted once: `dwte[tokens] += dx` writes each row once, "
        "and the last one stays. Add them one by one, with np.add.at.",
    ),
    (
        "np.add.at(dwpe, positions, dx)",
        "dwpe[positions] += dx",
        "A position that occurs twice was counted once: `dwpe[positions] += dx` writes each row "
        "once, and the last one stays. Add them one by one, with np.add.at.",
    ),
)
def embed_backward_params(rng: Rng) -> Cases:
    """Tokens and positions that occur twice; none that does."""
    for tokens, positions in (
        (np.array([2, 5, 2, 0, 5]), np.array([0, 1, 2, 0, 1])),
        (np.array([1, 6, 3]), np.array([4, 5, 6])),
    ):
        wte, wpe = rng.normal(size=(7, 4)), rng.normal(size=(9, 4))
        yield rng.normal(size=(len(tokens), 4)), tokens, positions, wte, wpe


# ---- a block -------------------------------------------------------------------------------------


def _weights(rng: Rng, tied: bool = True, **sizes: Any) -> tuple[dict[str, Array], dict[str, Any]]:
    """Weights of a small model by their full names, and its config as in `config.json`."""
    config = Config(**(SIZES | {"n_positions": 19, "tie_word_embeddings": tied} | sizes))
    return weights_of(config, seed=int(rng.integers(100))), vars(config)


def _block(rng: Rng, **sizes: Any) -> tuple[dict[str, Array], dict[str, Any]]:
    w, config = _weights(rng, **sizes)
    return {k.removeprefix("h.1."): a for k, a in w.items() if k.startswith("h.1.")}, config


@exercise(
    (
        "resid_mid + linear(g",
        "linear(g",
        "The residual is missing: a block adds to the stream and does not replace it. Add "
        "resid_mid.",
    ),
    (
        "resid_mid + linear(g",
        "m + linear(g",
        "The result is added to the output of the layernorm: the stream itself goes on, so add it "
        "to resid_mid.",
    ),
    (
        '"ln_2"',
        '"ln_1"',
        "This is the layernorm of the attention: the MLP has one of its own, ln_2.",
    ),
    (
        "g = gelu(h)",
        "g = np.maximum(h, 0)",
        "This is ReLU: GPT-2 has GELU between the two linear layers.",
    ),
    (
        'layernorm(resid_mid, b, "ln_2", eps)',
        "resid_mid",
        "The layernorm is missing: the MLP reads the stream through ln_2.",
    ),
)
def mlp_half(rng: Rng) -> Cases:
    """Two widths; a single token; an eps that matters."""
    for T, C, F, eps in ((4, 6, 10, 1e-5), (1, 8, 5, 0.5)):
        b, _ = _block(rng, n_embd=C, n_inner=F)
        yield 2 * rng.normal(size=(T, C)), b, eps


@exercise(
    (
        "qkv.reshape(T, 3, NH, hs)",
        "qkv.reshape(T, NH, 3, hs).swapaxes(1, 2)",
        "Query, key and value were taken head by head: here all queries come first, then all keys, "
        "then all values. Reshape to (T, 3, NH, hs).",
    ),
    (
        "parts.transpose(1, 2, 0, 3)",
        "qkv.T.reshape(3, NH, hs, T).swapaxes(1, 2).reshape(3, NH, T, hs)[:, ::-1]",
        "The heads are in the wrong order: head 0 has the first hs columns.",
    ),
    (
        "parts.transpose(1, 2, 0, 3)",
        "parts.swapaxes(0, 1).reshape(3, NH, T, hs)",
        "The numbers of several heads are mixed: a reshape cannot exchange the axes of tokens and "
        "heads. Exchange them with transpose or swapaxes.",
    ),
    (
        "parts.transpose(1, 2, 0, 3)",
        "qkv.reshape(3, NH, T, hs)",
        "The numbers of several tokens are mixed: one reshape of qkv cannot move an axis. Reshape "
        "to (T, 3, NH, hs), then change the order of the axes.",
    ),
)
def split_qkv(rng: Rng) -> Cases:
    """Several heads, one head, one token."""
    for T, NH, hs in ((5, 2, 3), (3, 1, 4), (1, 3, 2), (4, 4, 5)):
        yield rng.normal(size=(T, 3 * NH * hs)), NH


@exercise(
    (
        '"ln_1"',
        '"ln_2"',
        "This is the layernorm of the MLP: the attention has one of its own, ln_1.",
    ),
    (
        'layernorm(resid_pre, b, "ln_1", eps)',
        "resid_pre",
        "The layernorm is missing: the attention reads the stream through ln_1.",
    ),
    (
        "[past[0], k]",
        "[past[1], k]",
        "The values of the past stand where its keys should be: past[0] are the keys, past[1] the "
        "values.",
    ),
    (
        "[past[0], k], axis=1)  # (NH, P+T, hs)\n    values = np.concatenate([past[1], v]",
        "[k, past[0]], axis=1)  # (NH, P+T, hs)\n    values = np.concatenate([v, past[1]]",
        "The past stands behind the tokens: the mask counts it as the first P keys. Join it before "
        "them.",
    ),
    (
        "z.swapaxes(0, 1).reshape(",
        "z.reshape(",
        "The heads were joined while they were still the first axis, so numbers of several tokens "
        "stand in one row. Make the tokens the first axis before you reshape.",
    ),
    (
        "resid_pre + linear(joined",
        "linear(joined",
        "The residual is missing: a block adds to the stream and does not replace it. Add "
        "resid_pre.",
    ),
    (
        "resid_pre + linear(joined",
        "a + linear(joined",
        "The result is added to the output of the layernorm: the stream itself goes on, so add it "
        "to resid_pre.",
    ),
    (
        "np.array([keys, values])",
        "np.array([k, v])",
        "kv holds the new tokens alone: a later token sees the past, too. Return all keys and "
        "values.",
    ),
    (
        "np.array([keys, values])",
        "np.array([values, keys])",
        "Keys and values are exchanged in kv: the keys come first.",
    ),
)
def attention_half(rng: Rng) -> Cases:
    """With slots and without; several heads; one token behind a long past."""
    for T, P, NH, hs, eps in ((4, 3, 2, 3, 1e-5), (3, 0, 2, 5, 1e-5), (1, 6, 3, 2, 0.5)):
        b, _ = _block(rng, n_head=NH, n_embd=NH * hs)
        past = rng.normal(size=(2, NH, P, hs))
        yield 2 * rng.normal(size=(T, NH * hs)), b, past, NH, eps


# ---- the whole forward ---------------------------------------------------------------------------


@exercise(
    (
        'layernorm(x, w, "ln_f", eps)',
        "x",
        "The last layernorm is missing: the LM head reads the stream through ln_f.",
    ),
    (
        'w.get("lm_head.weight", w["wte.weight"])',
        'w["wte.weight"]',
        "This model's LM head is not tied: w has a weight of its own for it, lm_head.weight. Use "
        "it where it is there.",
    ),
)
def lm_head(rng: Rng) -> Cases:
    """Tied, and with a weight of its own."""
    for tied in (True, False):
        w, config = _weights(rng, tied)
        yield 2 * rng.normal(size=(4, config["n_embd"])), w, config["layer_norm_epsilon"]


@exercise(
    (
        "start + np.arange(len(tokens))",
        "np.arange(len(tokens))",
        "The positions begin at 0: the first token stands at the position start.",
    ),
    (
        "start + np.arange(len(tokens))",
        "past.shape[3] + np.arange(len(tokens))",
        "The positions begin at the number of slots: usually that is start, but not always. Use "
        "start.",
    ),
    (
        "names_of(w, i)",
        "names_of(w, 0)",
        "Every block has the weights of block 0: take those of block i.",
    ),
    (
        "past[i]",
        "past[0]",
        "Every block sees the keys and values of layer 0: each layer has slots of its own, "
        "past[i].",
    ),
    (
        "x, of_layer = attention_half",
        "_, of_layer = attention_half",
        "The result of attention_half is not used: mlp_half gets the stream from before the "
        "attention. Give it resid_mid.",
    ),
    (
        "x = mlp_half(x, b, eps)",
        "x = x + mlp_half(x, b, eps)",
        "The stream is added twice: mlp_half returns the new stream, not what is to be added.",
    ),
    (
        "after_each, kvs = [x], []",
        "after_each, kvs = [], []",
        "The stream before the first block is missing: there are L + 1 of them.",
    ),
)
def forward(rng: Rng) -> Cases:
    """Without a past; with slots, and a first position that is not their number; not tied."""
    for T, P, start, tied in ((4, None, 0, True), (5, 3, 3, True), (3, 2, 6, False)):
        w, config = _weights(rng, tied, n_layer=3)
        tokens = rng.integers(0, config["vocab_size"], T).tolist()
        yield (tokens, w, config, *(() if P is None else (_past(rng, config, P), start)))


def _past(rng: Rng, config: dict[str, Any], P: int) -> Array:
    NH, C = config["n_head"], config["n_embd"]
    return rng.normal(size=(config["n_layer"], 2, NH, P, C // NH))


# ---- one token at a time -------------------------------------------------------------------------


@exercise(
    (
        "config, kv, position)",
        "config, kv, kv.shape[3])",
        "The position was counted from the cache: it is an argument of its own, and behind some "
        "prefixes it is another number.",
    ),
    (
        "config, kv, position)",
        "config, kv)",
        "The token stands at position 0: give forward the position.",
    ),
    (
        "config, kv, position)",
        "config, None, position)",
        "The token sees nothing before itself: give forward the cache, kv.",
    ),
    (
        "return logits[0], longer",
        "return logits[0], kv",
        "The cache did not grow: the next token has to see this one, too. Return what forward "
        "gives.",
    ),
    (
        "return logits[0], longer",
        "return logits[0], longer[:, :, :, -1:]",
        "The cache holds the new token alone: the next one has to see all earlier ones, too.",
    ),
    (
        "return logits[0], longer",
        "return logits[0], np.concatenate([kv, longer], axis=3)",
        "The past is in the cache twice: what forward returns holds the past and the new token "
        "already. Return it as it is.",
    ),
    (
        "return logits[0], longer",
        "return logits, longer",
        "The logits have the shape (1, V), a row for each token that was fed. There is one token: "
        "return its row, logits[0].",
    ),
)
def decode_step(rng: Rng) -> Cases:
    """Behind a prefix, with and without earlier tokens, and with an unusual position."""
    for S, position in ((5, 5), (3, 7), (1, 1)):
        w, config = _weights(rng)
        yield int(rng.integers(17)), position, _past(rng, config, S), w, config


class Fed(np.ndarray):
    """A table of tokens that counts the rows which are taken from it, and refuses more than there
    are tokens to be read: who feeds earlier tokens again takes more."""

    left = 0

    @property
    def T(self) -> Array:  # type: ignore[override]
        return np.asarray(self).T  # the LM head reads the whole table

    def __getitem__(self, key: Any) -> Any:
        self.left -= np.size(key)
        if self.left < 0:
            raise Lazy(
                "feeds more tokens than there are: earlier tokens were fed in again. Their keys "
                "and values are in the cache; feed the prompt once, and then each new token once."
            )
        return np.asarray(self)[key]


@exercise(
    (
        "logits = rows[-1]",
        "logits = rows[0]",
        "The first new token was chosen after the first token of the prompt: its last row "
        "predicts what comes next.",
    ),
    (
        "logits, kv = decode_step",
        "logits, _ = decode_step",
        "The cache does not grow: each new token sees the prompt, but not the new tokens before "
        "it. Keep the cache that decode_step returns.",
    ),
    (
        " + len(new) - 1",
        "",
        "Each new token stands at the same position: go on by one for each of them.",
    ),
    (
        "len(new) - 1",
        "len(new)",
        "The positions of the new tokens are one too high: the first of them stands right behind "
        "the prompt, at start + len(tokens).",
    ),
    (
        "position = start + ",
        "position = ",
        "The positions of the new tokens do not count the slots: the prompt begins at start, so "
        "they stand behind that.",
    ),
    (
        "return new",
        "return [*tokens, *new]",
        "The prompt stands in front of the new tokens. Return the new ones alone.",
    ),
)
def greedy(rng: Rng) -> Cases:
    """With a prefix and without; one new token alone."""
    for T, n_new, P in ((4, 6, 0), (2, 7, 3), (5, 1, 2), (1, 8, 4)):
        w, config = _weights(rng, tied=False)
        for name in w:
            if w[name].ndim == 2:  # so large that each position and each earlier token counts
                w[name] = rng.normal(size=w[name].shape)
        table = w["wte.weight"].view(Fed)
        table.left = T + n_new
        w["wte.weight"] = table
        tokens = rng.integers(0, config["vocab_size"], T).tolist()
        yield (tokens, n_new, w, config, *((_past(rng, config, P), P) if P else ()))


@exercise(
    (
        "own = buffer.copy()",
        "own = buffer",
        "Both texts write into one memory: `buffer` and `buffer[:]` are not copies, so the second "
        "token's key covers the first's. Give each text a copy of its own, buffer.copy().",
    ),
    (
        "own[:, :, :, seen] = longer[:, :, :, seen]",
        "own[:, :, :, seen - 1] = longer[:, :, :, seen]",
        "The new key covers the last one of the prompt: the first free place is number seen.",
    ),
    (
        "        own[:, :, :, seen] = longer[:, :, :, seen]\n",
        "",
        "The new token's key and value are in neither buffer: write them into the place seen.",
    ),
    (
        "own[:, :, :, :seen], w",
        "own, w",
        "The token sees places that are still free: give decode_step the first seen places only.",
    ),
)
def two_continuations(rng: Rng) -> Cases:
    """Room for one more token, and for several."""
    for seen, room in ((4, 5), (2, 6)):
        w, config = _weights(rng)
        a, b = rng.permutation(config["vocab_size"])[:2].tolist()
        buffer = _past(rng, config, room)
        yield buffer, seen, [a, b], seen + 1, w, config
