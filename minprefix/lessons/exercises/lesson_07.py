"""Lesson 7's exercises: the inputs on which an answer is graded, and the usual mistakes."""

from typing import Any

import numpy as np

from minprefix.conformance.model_problems import model_problem, weights_of
from minprefix.gpt2 import Config
from minprefix.lessons.exercise import Cases, Lazy, Rng, exercise
from minprefix.ops import reference
from minprefix.ops.contract import Array

# ---- what is needed ------------------------------------------------------------------------------


@exercise
def needed(rng: Rng) -> Cases:
    """Slots in one layer, everywhere, at the top alone, nowhere; some weights; all weights."""
    yield [False] * 5, [False, True, False, False, False]
    for L in (4, 3):
        no, yes = [False] * L, [True] * L
        yield no, yes
        yield no, [*no[1:], True]
        yield yes, no
        yield no, no
    for L in (5, 6, 7):
        yield (rng.random(L) < 0.3).tolist(), (rng.random(L) < 0.3).tolist()


# ---- a block -------------------------------------------------------------------------------------


def _block(rng: Rng, NH: int, hs: int, F: int) -> dict[str, Array]:
    config = Config(2, NH, NH * hs, vocab_size=7, n_positions=9, n_inner=F)
    w = weights_of(config, seed=int(rng.integers(100)))
    return {k.removeprefix("h.1."): a for k, a in w.items() if k.startswith("h.1.")}


def _layernorm_cache(rng: Rng, N: int, C: int) -> Any:
    x, gain, bias = rng.normal(size=(N, C)), 1 + 0.3 * rng.normal(size=C), rng.normal(size=C)
    return reference.layernorm(x, gain, bias, 1e-5)[1]


@exercise
def mlp_half_backward(rng: Rng) -> Cases:
    """Several tokens; one token."""
    for N, NH, hs, F in ((5, 2, 3, 7), (1, 3, 2, 4)):
        _, gelu = reference.gelu(rng.normal(size=(N, F)))
        C = NH * hs
        b, ln_2 = _block(rng, NH, hs, F), _layernorm_cache(rng, N, C)
        yield rng.normal(size=(N, C)), b, ln_2, gelu


class NotNeeded:
    """A layernorm's cache, or a weight, that a frozen model does not look at."""

    def _read(self, *_: Any, **__: Any) -> Any:
        raise Lazy(
            "computes dresid_pre where nobody needs it: with need_dx false, only frozen weights "
            "lie below. Return None for it, and leave its steps out."
        )

    __iter__ = __array__ = __rmatmul__ = _read
    xhat = rstd = gain = T = property(_read)
    __array_ufunc__ = None  # an array leaves a product with it to __rmatmul__


@exercise
def attention_half_backward(rng: Rng) -> Cases:
    """Two texts of different prefixes; the lowest layer; one text without slots."""
    for lengths, slots, NH, hs, need_dx in (
        ((4, 2), (3, 1), 2, 3, True),
        ((3, 2), (2, 2), 3, 2, False),
        ((3,), (0,), 2, 4, True),
    ):
        N, offsets = sum(lengths), np.cumsum([0, *lengths])
        q, k, v = rng.normal(size=(3, N, NH, hs))
        prefix_k, prefix_v = ([rng.normal(size=(NH, P, hs)) for P in slots] for _ in "kv")
        _, attention = reference.attention(q, k, v, prefix_k, prefix_v, offsets)
        b: dict[str, Any] = dict(_block(rng, NH, hs, 5))
        ln_1 = _layernorm_cache(rng, N, NH * hs)
        if not need_dx:
            ln_1 = b["attn.c_attn.weight"] = NotNeeded()
        yield rng.normal(size=(N, NH * hs)), b, ln_1, attention, need_dx


# ---- from the loss to the slots ------------------------------------------------------------------


@exercise
def lm_head_backward(rng: Rng) -> Cases:
    """Tied and not; rows anywhere in the stream; all rows."""
    for N, rows, C, V, tied in (
        (6, [1, 4], 4, 9, True),
        (7, [0, 2, 3, 6], 6, 5, False),
        (3, [0, 1, 2], 5, 8, True),
    ):
        M, w = len(rows), {"wte.weight": rng.normal(size=(V, C))}
        if not tied:
            w["lm_head.weight"] = rng.normal(size=(V, C))
        yield rng.normal(size=(M, V)), w, _layernorm_cache(rng, M, C), np.array(rows), N


@exercise
def sum_over_texts(rng: Rng) -> Cases:
    """Prefixes that several texts see, one sees, and none sees; of unlike lengths."""
    for prefix_of, slots in (([0, 0, 0], (3,)), ([1, 0, 1, 1], (2, 4)), ([2, 0], (1, 3, 2))):
        prefixes = [rng.normal(size=(2, P, 3)) for P in slots]
        yield [rng.normal(size=prefixes[j].shape) for j in prefix_of], prefix_of, prefixes


@exercise
def run_model(rng: Rng) -> Cases:
    """Texts that share a prefix; prefixes of unlike lengths."""
    yield (model_problem(seed=int(rng.integers(100))),)
    yield (model_problem(prefix_of=(1, 0, 1), slots=(2, 3), reduction="sum"),)


# ---- along a direction ---------------------------------------------------------------------------


@exercise
def slopes_along(rng: Rng) -> Cases:
    """One layer, several layers."""
    for shape in ((3, 2, 2, 4, 5), (1, 2, 3, 1, 2)):
        yield rng.normal(size=shape), rng.normal(size=shape)


# ---- multiply-adds -------------------------------------------------------------------------------


@exercise
def linear_madds(rng: Rng) -> Cases:
    """Drawn sizes, frozen and not."""
    for frozen in (False, True, False):
        yield (*rng.integers(2, 40, 3).tolist(), frozen)


@exercise
def attention_madds(rng: Rng) -> Cases:
    """Several texts, one text, no slots."""
    for B, P, recomputes in ((3, 4, True), (1, 0, False), (4, 2, False), (2, 5, True)):
        lengths = rng.integers(3, 30, B).tolist()
        yield lengths, P, int(rng.integers(4, 50)), recomputes


@exercise
def step_madds(rng: Rng) -> Cases:
    """Drawn sizes, frozen and not; one layer."""
    for L, B, frozen in ((3, 2, False), (3, 2, True), (1, 1, True), (5, 4, True)):
        C, F, V, P = rng.integers(2, 30, 4).tolist()
        lengths = rng.integers(3, 12, B).tolist()
        rows = int(rng.integers(1, sum(lengths)))
        yield L, C, F, V, lengths, P, rows, frozen
