"""The contract: the operations of GPT-2, each a forward and its backward, that every implementation
fulfils.

An implementation is anything with the functions of `Ops`: a module such as
`minprefix.ops.reference`, or an object. The model (`minprefix.gpt2`) is written once against these
names and does not know which one it has.

Symbols, here and everywhere:

    N tokens in the batch    B sequences    T length of one sequence    P prefix length    L layers
    NH heads    hs head size    C = NH*hs width    V vocabulary    M targets

A batch is a flat stream of N tokens with no padding. `offsets` holds B+1 boundaries: sequence b is
`[offsets[b]:offsets[b+1]]`. Every op but attention sees (N, ...) and knows nothing of sequences.

Gradients are `d` + name; the incoming gradient is `dout` (`dz` for attention). What a backward
needs is returned by its forward as a NamedTuple of named arrays that a person can print; there are
no closures.

Kept or consumed
    An argument is kept (the implementation must leave its bytes alone) unless `CONSUMED` lists it.
    A consumed argument may be overwritten, and the model never looks at it again. Only the last
    backward that takes a cache may consume it, so the `*_backward_params` of an op is called before
    its `*_backward`. What a cache holds of the model's own (gain, prefix_k, prefix_v, offsets,
    targets, weights) is kept even then.

Whose memory
    A result is the caller's: it shares memory with no other result, with no argument that is kept
    and with nothing that a later call writes into. It may take the place of a consumed argument. A
    cache may hold arguments and results as they are: the model leaves them alone until the last
    backward that takes the cache, and may change any array after it. So an implementation may keep
    nothing by the identity of an array: an optimizer changes the same weights in place.

    The same numbers give the same results to rounding, however often and in whatever order the
    functions are called.

Laws
    They hold to rounding for every implementation and need no oracle. They cannot see a missing
    scale or a flipped sign; only a comparison with other gradients can.

    1. attention, per sequence and head: the sum of dk over all keys (prefix and tokens) is 0,
       because adding one vector to every key shifts all scores of a query alike.
    2. attention, per sequence and head: the sum of dv over all values is the sum of dz over the
       queries, because each query's pattern sums to 1.
    3. layernorm: the sum of dx over C is 0 in every row.
    4. cross_entropy: the sum of dlogits over V is 0 in every row.
    5. Permuting the slots of a prefix leaves the output and permutes the gradient.
    6. P = 0 is plain GPT-2.
    7. A prefix of the keys and values of real tokens equals prompting with those tokens.
    8. The gradient of a batch (reduction "sum") is the sum of the gradients of its sequences.
    9. attention: what a token sees does not change with the tokens after it, however large they
       are.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

Array = np.ndarray


# What a forward keeps for its backward is the implementation's own affair. These are the
# reference's; another may keep others, only attention's must have q, k and v: the model reads them.


class LayernormCache(NamedTuple):
    xhat: Array  # (N, C)  the normalised input
    rstd: Array  # (N, 1)  1 / sqrt(variance + eps)
    gain: Array  # (C,)


class GeluCache(NamedTuple):
    x: Array  # (N, F)
    tanh: Array  # (N, F)  tanh(sqrt(2/pi) * (x + 0.044715 x^3))


class AttentionCache(NamedTuple):
    q: Array  # (N, NH, hs)
    k: Array  # (N, NH, hs)
    v: Array  # (N, NH, hs)
    prefix_k: Sequence[Array]  # B arrays (NH, P, hs)
    prefix_v: Sequence[Array]  # B arrays (NH, P, hs)
    offsets: Array  # (B+1,)
    pattern: list[Array]  # B arrays (NH, T, P+T), rows sum to 1


class AttentionGrads(NamedTuple):
    dq: Array  # (N, NH, hs)
    dk: Array  # (N, NH, hs)
    dv: Array  # (N, NH, hs)
    dprefix_k: Sequence[Array]  # B arrays (NH, P, hs): not summed where sequences share a prefix
    dprefix_v: Sequence[Array]  # B arrays (NH, P, hs)


class CrossEntropyCache(NamedTuple):
    probs: Array  # (M, V)  softmax of the logits
    targets: Array  # (M,)
    weights: Array  # (M,)


#: op -> the arguments that an implementation may overwrite. Everything else is kept.
CONSUMED: dict[str, tuple[str, ...]] = {
    "gelu": ("x",),
    "gelu_backward": ("dout", "cache"),
    "layernorm_backward": ("dout",),
    "attention_backward": ("cache",),
    "cross_entropy": ("logits",),
    "cross_entropy_backward": ("cache",),
}


class Ops(Protocol):
    """The functions of an implementation. Shapes and meaning stand here; formulas stand in
    `reference`."""

    def embed(self, tokens: Array, positions: Array, wte: Array, wpe: Array) -> Array:
        """tokens (N,), positions (N,), wte (V, C), wpe (n_positions, C) -> x (N, C)."""
        ...

    def embed_backward_params(
        self, dx: Array, tokens: Array, positions: Array, wte: Array, wpe: Array
    ) -> tuple[Array, Array]:
        """dx (N, C) -> dwte (V, C), dwpe (n_positions, C). Tokens that occur twice add up."""
        ...

    def layernorm(
        self, x: Array, gain: Array, bias: Array, eps: float
    ) -> tuple[Array, LayernormCache]:
        """x (N, C), gain (C,), bias (C,) -> out (N, C), cache."""
        ...

    def layernorm_backward(self, dout: Array, cache: LayernormCache) -> Array:
        """dout (N, C) -> dx (N, C)."""
        ...

    def layernorm_backward_params(self, dout: Array, cache: LayernormCache) -> tuple[Array, Array]:
        """dout (N, C) -> dgain (C,), dbias (C,)."""
        ...

    def linear(self, x: Array, weight: Array, bias: Array | None) -> Array:
        """x (N, in), weight (in, out), bias (out,) or None -> out (N, out)."""
        ...

    def linear_backward(self, dout: Array, weight: Array) -> Array:
        """The half that a frozen model needs: dout (N, out), weight (in, out) -> dx (N, in)."""
        ...

    def linear_backward_params(self, dout: Array, x: Array) -> tuple[Array, Array]:
        """The other half: dout (N, out), x (N, in) -> dweight (in, out), dbias (out,)."""
        ...

    def gelu(self, x: Array) -> tuple[Array, GeluCache]:
        """x (N, F) -> out (N, F), cache. The tanh form, GPT-2's `gelu_new`."""
        ...

    def gelu_backward(self, dout: Array, cache: GeluCache) -> Array:
        """dout (N, F) -> dx (N, F)."""
        ...

    def attention(
        self,
        q: Array,
        k: Array,
        v: Array,
        prefix_k: Sequence[Array],
        prefix_v: Sequence[Array],
        offsets: Array,
    ) -> tuple[Array, AttentionCache]:
        """q, k, v (N, NH, hs); prefix_k, prefix_v: for each sequence (NH, P, hs), P may differ and
        may be 0; offsets (B+1,) -> z (N, NH, hs), cache. Token i of a sequence sees all P slots and
        tokens 0..i."""
        ...

    def attention_backward(self, dz: Array, cache: AttentionCache) -> AttentionGrads:
        """dz (N, NH, hs) -> dq, dk, dv, and dprefix_k, dprefix_v for each sequence."""
        ...

    def cross_entropy(
        self, logits: Array, targets: Array, weights: Array
    ) -> tuple[np.generic, CrossEntropyCache]:
        """logits (M, V), targets (M,), weights (M,) -> loss (scalar), cache. loss = sum_m
        weights[m] * nll[m]."""
        ...

    def cross_entropy_backward(self, cache: CrossEntropyCache) -> Array:
        """-> dlogits (M, V), for dloss = 1."""
        ...
