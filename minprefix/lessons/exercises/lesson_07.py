"""Lesson 7's exercises: the inputs on which an answer is graded, and the usual mistakes."""

from typing import Any

import numpy as np

from minprefix.conformance.model_problems import model_problem, weights_of
from minprefix.gpt2 import Config
from minprefix.lessons.exercise import Cases, Lazy, Rng, exercise
from minprefix.ops import reference
from minprefix.ops.contract import Array

# ---- what is needed ------------------------------------------------------------------------------


@exercise(
    (
        "trained[:i].any()",
        "trained[: i + 1].any()",
        "Here a layer counts as below itself: what layer i trains is no part of its input. Ask the "
        "layers 0 to i - 1.",
    ),
    (
        "trained[:i].any()",
        "trained[i + 1 :].any()",
        "The layers above were asked: the gradient comes from above and is wanted below. Ask the "
        "layers 0 to i - 1.",
    ),
    (
        "trained[:i].any()",
        "trained[i]",
        "Only the layer itself was asked: the gradient has to pass through it to the layers below. "
        "Ask the layers 0 to i - 1.",
    ),
    (
        "np.logical_or(weights, slots)",
        "np.array(weights)",
        "The slots were forgotten: they are trained, too, and they need the gradient to come down "
        "to their layer.",
    ),
    (
        "np.logical_or(weights, slots)",
        "np.array(slots)",
        "The weights were forgotten: where weights below are trained, the gradient has to come "
        "down to them, too.",
    ),
    (
        "need_dW = np.array(weights)",
        "need_dW = np.logical_and(weights, need_dx)",
        "need_dW was made dependent on need_dx: the two halves do not need each other. The weights "
        "of the lowest trained layer are trained, too.",
    ),
    (
        "np.array(weights)",
        "np.logical_or(weights, slots)",
        "Slots are no weights: the gradient of the weights is needed where the weights themselves "
        "are trained.",
    ),
)
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


@exercise(
    (
        "dresid_post + ops.layernorm_backward",
        "ops.layernorm_backward",
        "The way around the MLP is missing: the forward adds to the stream, so the gradient goes "
        "around and through. Add dresid_post.",
    ),
    (
        "dresid_post + ops.layernorm_backward(dm, ln_2)",
        "ops.layernorm_backward(dresid_post + dm, ln_2)",
        "The way around the MLP goes through the layernorm here: the stream passes by the "
        "layernorm, too. Add dresid_post at the end.",
    ),
    (
        "ops.layernorm_backward(dm, ln_2)",
        "dm",
        "The layernorm's backward is missing: the MLP reads the stream through ln_2.",
    ),
    (
        "ops.gelu_backward(dg, gelu)",
        "dg",
        "GELU's backward is missing between the two linear layers.",
    ),
)
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


@exercise(
    (
        "dresid_mid + ops.layernorm_backward",
        "ops.layernorm_backward",
        "The way around the attention is missing: the forward adds to the stream, so the gradient "
        "goes around and through. Add dresid_mid.",
    ),
    (
        "np.stack([grads.dq, grads.dk, grads.dv], axis=1).reshape(N, -1)",
        "np.stack([grads.dq, grads.dk, grads.dv], axis=2).reshape(N, -1)",
        "dq, dk and dv were laid side by side head by head: a row holds all queries, then all "
        "keys, then all values. Stack them before the axis of the heads (axis=1).",
    ),
    (
        "[grads.dq, grads.dk, grads.dv]",
        "[grads.dk, grads.dq, grads.dv]",
        "dq and dk are exchanged: a row begins with the queries.",
    ),
    (
        "ops.layernorm_backward(da, ln_1)",
        "da",
        "The layernorm's backward is missing: the attention reads the stream through ln_1.",
    ),
    (
        "if not need_dx:\n        return None, grads.dprefix_k, grads.dprefix_v",
        "if not need_dx:\n        return None, None, None",
        "The slots' gradients are missing: need_dx is about the stream below. This layer's slots "
        "are trained in any case.",
    ),
)
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


@exercise(
    (
        "dx[rows] = drows",
        "dx[: len(rows)] = drows",
        "The rows lie in the wrong places: row m of the logits belongs to row rows[m] of the "
        "stream.",
    ),
    (
        'w.get("lm_head.weight", w["wte.weight"])',
        'w["wte.weight"]',
        "This model's LM head is not tied: the forward used lm_head.weight, so the backward has to "
        "use it, too.",
    ),
    (
        "ops.layernorm_backward(dy, ln_f)",
        "dy",
        "dx was made of dy, without the last layernorm's backward: the LM head reads the stream "
        "through ln_f. Take the M rows through it first, and then write them into dx.",
    ),
)
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


@exercise(
    (
        "sums[j] += d",
        "sums[j] = d",
        "The last text wins: texts that share a prefix add up. Add each to the sum of its prefix.",
    ),
    (
        "sums[j] += d",
        "sums[j] += d / list(prefix_of).count(j)",
        "This is the mean over the texts: the gradient of what they share is their sum.",
    ),
    (
        "np.zeros_like(slots)",
        "slots.copy()",
        "The sums begin with the slots themselves: these are not a part of their gradient. Begin "
        "with zeros.",
    ),
    (
        "zip(prefix_of, of_texts, strict=True)",
        "zip(prefix_of, of_texts[:1] + of_texts[:-1], strict=True)",
        "The gradients belong to other texts: text b sees prefix number prefix_of[b].",
    ),
)
def sum_over_texts(rng: Rng) -> Cases:
    """Prefixes that several texts see, one sees, and none sees; of unlike lengths."""
    for prefix_of, slots in (([0, 0, 0], (3,)), ([1, 0, 1, 1], (2, 4)), ([2, 0], (1, 3, 2))):
        prefixes = [rng.normal(size=(2, P, 3)) for P in slots]
        yield [rng.normal(size=prefixes[j].shape) for j in prefix_of], prefix_of, prefixes


@exercise(
    (
        "dx, *of_texts = attention_half_backward(",
        "_, *of_texts = attention_half_backward(",
        "The gradient of the stream does not get through the attention: each layer needs the dx "
        "that the layer above returns.",
    ),
    (
        "dx = mlp_half_backward(dx, b, ln_2, gelu)",
        "mlp_half_backward(dx, b, ln_2, gelu)",
        "The gradient of the stream does not get through the MLP: go on with what "
        "mlp_half_backward returns.",
    ),
)
def run_model(rng: Rng) -> Cases:
    """Texts that share a prefix; prefixes of unlike lengths."""
    yield (model_problem(seed=int(rng.integers(100))),)
    yield (model_problem(prefix_of=(1, 0, 1), slots=(2, 3), reduction="sum"),)


# ---- along a direction ---------------------------------------------------------------------------


@exercise(
    (
        "axis=(1, 2, 3, 4)",
        "axis=None",
        "The layers were added up, too: one number for each layer is asked for, so leave axis 0 "
        "out of the sum.",
    ),
    (
        ".sum(axis=(1, 2, 3, 4))",
        ".mean(axis=(1, 2, 3, 4))",
        "This is a mean: the derivative along u is the sum of all products.",
    ),
)
def slopes_along(rng: Rng) -> Cases:
    """One layer, several layers."""
    for shape in ((3, 2, 2, 4, 5), (1, 2, 3, 1, 2)):
        yield rng.normal(size=shape), rng.normal(size=shape)


# ---- multiply-adds -------------------------------------------------------------------------------


@exercise(
    (
        "0 if frozen else N * n_in * n_out",
        "N * n_in * n_out",
        "A frozen weight needs no gradient: dW is not computed, so it costs 0.",
    ),
    (
        "dx = N * n_in * n_out",
        "dx = 0 if frozen else N * n_in * n_out",
        "A frozen layer still hands the gradient on: dx is computed, frozen or not.",
    ),
    (
        "forward = N * n_in * n_out",
        "forward = 2 * N * n_in * n_out",
        "Multiplications and additions were counted one by one: a multiply-add is one of each, so "
        "leave out the 2.",
    ),
    (
        "dW = 0 if frozen else N * n_in * n_out",
        "dW = 0 if frozen else n_in * n_out",
        "dW is a product over all N rows: its result has n_in times n_out numbers, and each takes "
        "N multiply-adds.",
    ),
)
def linear_madds(rng: Rng) -> Cases:
    """Drawn sizes, frozen and not."""
    for frozen in (False, True, False):
        yield (*rng.integers(2, 40, 3).tolist(), frozen)


@exercise(
    (
        "sum(T * (P + T) for T in lengths)",
        "sum(T * T for T in lengths)",
        "The slots were forgotten: each query meets P + T keys.",
    ),
    (
        "sum(T * (P + T) for T in lengths)",
        "sum(lengths) * (P + sum(lengths))",
        "The texts were counted as one: a token meets the keys of its own text only. Sum over the "
        "texts.",
    ),
    (
        "(5 if recomputes else 4) * product",
        "4 * product",
        "The fifth product is missing: a backward that computes the scores again multiplies "
        "queries and keys once more.",
    ),
    (
        "(5 if recomputes else 4) * product",
        "(3 if recomputes else 2) * product",
        "The backward of a product of two arrays is two products, one for each of them. The "
        "forward has two, so that makes four.",
    ),
    (
        "(5 if recomputes else 4) * product",
        "(6 if recomputes else 4) * product",
        "The whole forward was counted again: the backward computes the scores a second time, and "
        "not the mixture of the values. That is one product more.",
    ),
    (
        "forward = 2 * product",
        "forward = product",
        "The forward has two products: queries with keys, and the pattern with the values.",
    ),
)
def attention_madds(rng: Rng) -> Cases:
    """Several texts, one text, no slots."""
    for B, P, recomputes in ((3, 4, True), (1, 0, False), (4, 2, False), (2, 5, True)):
        lengths = rng.integers(3, 30, B).tolist()
        yield lengths, P, int(rng.integers(4, 50)), recomputes


@exercise(
    (
        "    if frozen:\n        dx -= N * C * 3 * C",
        "    pass",
        "Layer 0's c_attn was counted in dx: below it lie frozen weights only, so a frozen model "
        "does not compute it.",
    ),
    (
        "[N] * (L - 1) + [rows]",
        "[N] * L",
        "The top layer was counted with all N rows after attention: the rows without a target are "
        "not used any further there.",
    ),
    (
        "(rows, C, V)",
        "(N, C, V)",
        "The logits were counted for all N rows: only the rows with a target have logits.",
    ),
    (
        "[(N, C, 3 * C)] * L",
        "[(N, C, 3 * C)] * (L - 1) + [(rows, C, 3 * C)]",
        "The top layer's c_attn was counted for the rows with a target only: the other tokens "
        "still give their keys and values to these. It has N rows.",
    ),
    (
        "    if frozen:\n        dx -= N * C * 3 * C",
        "    dx -= N * C * 3 * C",
        "Layer 0's c_attn was left out of dx without frozen weights, too: then the embedding below "
        "it is trained, and needs its dx.",
    ),
    (
        "    layers.append((rows, C, V))",
        "    pass",
        "The LM head is missing: it is a linear layer from C to V for the rows with a target.",
    ),
    (
        "dx += L * back_through_it",
        "dx += (L - 1) * back_through_it",
        "The backward of attention is missing in one layer: the slots of layer 0 need it, too.",
    ),
    (
        "linear_madds(*layer, frozen)",
        "linear_madds(*layer, False)",
        "A frozen model computes no dW: it costs 0.",
    ),
    (
        "recomputes=True",
        "recomputes=False",
        "The fifth product is missing: numpy_ops computes the scores again in its backward.",
    ),
)
def step_madds(rng: Rng) -> Cases:
    """Drawn sizes, frozen and not; one layer."""
    for L, B, frozen in ((3, 2, False), (3, 2, True), (1, 1, True), (5, 4, True)):
        C, F, V, P = rng.integers(2, 30, 4).tolist()
        lengths = rng.integers(3, 12, B).tolist()
        rows = int(rng.integers(1, sum(lengths)))
        yield L, C, F, V, lengths, P, rows, frozen
