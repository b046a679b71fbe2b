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


@exercise
def read_header(rng: Rng) -> Cases:
    """One array; three with spaces behind the JSON and a note on the file."""
    for shapes, spaces in FILES:
        raw, _ = _file(rng, shapes, spaces)
        yield (raw,)


@exercise
def read_array(rng: Rng) -> Cases:
    """Each array of two files."""
    for shapes, spaces in FILES:
        raw, header = _file(rng, shapes, spaces)
        data_start = 8 + int.from_bytes(raw[:8], "little")
        for name in shapes:
            yield raw, header[name], data_start


# ---- the tokenizer -------------------------------------------------------------------------------


@exercise
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


@exercise
def merge_word(rng: Rng) -> Cases:
    """Words of random letters, with merges learned from others; a word without a merge."""
    for n, length in ((12, 9), (20, 14), (8, 6)):
        words = [rng.choice(list("abcd"), 8, p=[0.4, 0.3, 0.2, 0.1]).tolist() for _ in range(12)]
        word = rng.choice(list("abcd"), length, p=[0.4, 0.3, 0.2, 0.1]).tolist()
        yield word, _learned(words, n)
    yield ["x", "y"], {("y", "x"): 0}


# ---- the embedding -------------------------------------------------------------------------------


@exercise
def embed(rng: Rng) -> Cases:
    """One text behind a prefix; two texts."""
    for positions in (np.arange(3, 8), np.array([0, 1, 2, 0, 1])):
        wte, wpe = rng.normal(size=(7, 4)), rng.normal(size=(9, 4))
        yield rng.integers(0, 7, 5), positions, wte, wpe


@exercise
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


@exercise
def mlp_half(rng: Rng) -> Cases:
    """Two widths; a single token; an eps that matters."""
    for T, C, F, eps in ((4, 6, 10, 1e-5), (1, 8, 5, 0.5)):
        b, _ = _block(rng, n_embd=C, n_inner=F)
        yield 2 * rng.normal(size=(T, C)), b, eps


@exercise
def split_qkv(rng: Rng) -> Cases:
    """Several heads, one head, one token."""
    for T, NH, hs in ((5, 2, 3), (3, 1, 4), (1, 3, 2), (4, 4, 5)):
        yield rng.normal(size=(T, 3 * NH * hs)), NH


@exercise
def attention_half(rng: Rng) -> Cases:
    """With slots and without; several heads; one token behind a long past."""
    for T, P, NH, hs, eps in ((4, 3, 2, 3, 1e-5), (3, 0, 2, 5, 1e-5), (1, 6, 3, 2, 0.5)):
        b, _ = _block(rng, n_head=NH, n_embd=NH * hs)
        past = rng.normal(size=(2, NH, P, hs))
        yield 2 * rng.normal(size=(T, NH * hs)), b, past, NH, eps


# ---- the whole forward ---------------------------------------------------------------------------


@exercise
def lm_head(rng: Rng) -> Cases:
    """Tied, and with a weight of its own."""
    for tied in (True, False):
        w, config = _weights(rng, tied)
        yield 2 * rng.normal(size=(4, config["n_embd"])), w, config["layer_norm_epsilon"]


@exercise
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


@exercise
def decode_step(rng: Rng) -> Cases:
    """Behind a prefix, with and without earlier tokens, and with an unusual position."""
    for S, position in ((5, 5), (3, 7), (1, 1)):
        w, config = _weights(rng)
        yield int(rng.integers(17)), position, _past(rng, config, S), w, config


class Fed(np.ndarray):
    """A table of tokens that counts the rows which are taken from it, and refuses more than there
    are tokens to be read: an answer that feeds earlier tokens again takes more."""

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


@exercise
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


@exercise
def two_continuations(rng: Rng) -> Cases:
    """Room for one more token, and for several."""
    for seen, room in ((4, 5), (2, 6)):
        w, config = _weights(rng)
        a, b = rng.permutation(config["vocab_size"])[:2].tolist()
        buffer = _past(rng, config, room)
        yield buffer, seen, [a, b], seen + 1, w, config
