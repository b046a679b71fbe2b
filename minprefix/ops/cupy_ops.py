"""The contract on a GPU, with CuPy. cuBLAS computes matrix products, CuPy's own kernels compute
sums and products of whole arrays, and the kernels of `cupy_kernels.cu` everything else.

Read `reference` first; names and formulas are the same. Arrays are CuPy's. Only `offsets` lies on
the host, where it decides the shapes of the launches. Attention pads inside, so that one product
serves all sequences.
"""

import os
from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import cupy
import numpy as np

from minprefix.errors import InputError
from minprefix.ops.contract import Array, AttentionGrads, CrossEntropyCache, LayernormCache
from minprefix.ops.numpy_ops import AttentionCache, GeluCache

THREADS = 256  # of a block: a power of two

# ---- what every kernel needs ------------------------------------------------------------------


@cache
def _module(real: str) -> Any:
    """The kernels for REAL = real, compiled at their first use."""
    code = Path(__file__).with_name("cupy_kernels.cu").read_text(encoding="utf-8")
    return cupy.RawModule(code=code, options=(f"-DREAL={real}", f"-DTHREADS={THREADS}"))


@cache
def _kernel(name: str, dtype: np.dtype) -> Any:
    real = {"float32": "float", "float64": "double"}.get(dtype.name)
    if real is None:
        raise TypeError(f"the cupy operations take float32 and float64, not {dtype.name}")
    return _module(real).get_function(name)


def _launch(name: str, dtype: np.dtype, blocks: int, arguments: tuple[Any, ...]) -> None:
    kernel = _kernel(name, dtype)
    for a in arguments:  # a kernel takes every pointer as one to its own kind of number
        if isinstance(a, cupy.ndarray) and a.dtype != (dtype if a.dtype.kind == "f" else np.int64):
            raise TypeError(
                f"{name}: the cupy operations were given {dtype.name} and {a.dtype.name} together: "
                "expected one precision, and whole numbers as int64"
            )
    if blocks:
        kernel((blocks,), (THREADS,), arguments)


def _rows(name: str, n: int, dtype: np.dtype, *arguments: Any) -> None:
    """A block for each of n rows."""
    _launch(name, dtype, n, arguments)


#: most blocks of a launch with one number a thread; for more numbers the threads go round again
MOST_BLOCKS = 1 << 16


def _each(name: str, size: int, dtype: np.dtype, *arguments: Any) -> None:
    """A thread for each of so many numbers."""
    _launch(name, dtype, min(-(-size // THREADS), MOST_BLOCKS), arguments)


def _own(*arrays: Any) -> None:
    for a in arrays:
        if not isinstance(a, cupy.ndarray):
            raise TypeError(
                f"the cupy operations were given a {type(a).__module__}.{type(a).__qualname__}: "
                "expected arrays on the GPU; model.to('cupy') and prefix.to('cupy') take them there"
            )


def _whole(a: Array) -> Array:
    """C-contiguous, as kernels index it."""
    return cupy.ascontiguousarray(a)


def asarray(a: Any) -> Array:
    """From the host to the GPU."""
    return cupy.asarray(a)


def asnumpy(a: Any) -> np.ndarray:
    """From the GPU to the host; waits for what is being computed."""
    return cupy.asnumpy(a)


#: how a float32 matrix product multiplies: its factors as they are, or rounded to TF32's 11 bits on
#: the tensor cores. Sums are float32 either way. The values are cuBLAS's CUBLAS_DEFAULT_MATH and
#: CUBLAS_TF32_TENSOR_OP_MATH.
PRECISIONS = {"float32": 0, "tf32": 3}


def matmul_precision(name: str) -> None:
    """Set one of `PRECISIONS` for this thread's matrix products from now on. Raises InputError
    where the GPU or the environment forbids it."""
    if name not in PRECISIONS:
        raise InputError(f"matmul is {name!r}: expected one of {', '.join(PRECISIONS)}")
    if name == "float32" and os.environ.get("CUPY_TF32", "0") != "0":
        raise InputError("the variable CUPY_TF32 turns float32 products into TF32: unset it")
    if name == "tf32" and os.environ.get("NVIDIA_TF32_OVERRIDE") == "0":
        raise InputError("the variable NVIDIA_TF32_OVERRIDE=0 forbids TF32: unset it")
    capability = cupy.cuda.Device().compute_capability
    if name == "tf32" and int(capability) < 80:
        raise InputError(
            f"TF32 needs compute capability 80, this GPU has {capability}: leave out --matmul tf32"
        )
    mode = PRECISIONS[name]
    cupy.cuda.cublas.setMathMode(cupy.cuda.device.get_cublas_handle(), mode)


# ---- embed, layernorm, linear, gelu -----------------------------------------------------------


def embed(tokens: Array, positions: Array, wte: Array, wpe: Array) -> Array:
    _own(tokens, positions, wte, wpe)
    N, C = len(tokens), wte.shape[1]
    x = cupy.empty((N, C), wte.dtype)  # (N, C)
    given = map(_whole, (tokens, positions, wte, wpe))
    _rows("embed", N, x.dtype, *given, x, C)
    return x


def embed_backward_params(
    dx: Array, tokens: Array, positions: Array, wte: Array, wpe: Array
) -> tuple[Array, Array]:
    _own(dx, tokens, positions, wte, wpe)
    (N, C), dx = dx.shape, _whole(dx)
    dwte, dwpe = cupy.zeros(wte.shape, dx.dtype), cupy.zeros(wpe.shape, dx.dtype)
    for index, table in ((tokens, dwte), (positions, dwpe)):
        _rows("embed_backward", N, dx.dtype, dx, _whole(index), table, N, C)
    return dwte, dwpe


def layernorm(x: Array, gain: Array, bias: Array, eps: float) -> tuple[Array, LayernormCache]:
    _own(x, gain, bias)
    (N, C), x = x.shape, _whole(x)
    gain, bias = _whole(gain), _whole(bias)
    out, xhat = cupy.empty_like(x), cupy.empty_like(x)  # (N, C), (N, C)
    rstd = cupy.empty((N, 1), x.dtype)  # (N, 1)
    _rows("layernorm", N, x.dtype, x, gain, bias, float(eps), out, xhat, rstd, C)
    return out, LayernormCache(xhat, rstd, gain)


def layernorm_backward(dout: Array, cache: LayernormCache) -> Array:
    _own(dout)
    (N, C), dx = dout.shape, _whole(dout)  # in the place of dout, where that is whole
    _rows("layernorm_backward", N, dx.dtype, dx, *cache, C)
    return dx


def layernorm_backward_params(dout: Array, cache: LayernormCache) -> tuple[Array, Array]:
    _own(dout)
    return (dout * cache.xhat).sum(axis=0), dout.sum(axis=0)  # (C,), (C,)


def linear(x: Array, weight: Array, bias: Array | None) -> Array:
    _own(x, weight)
    out = x @ weight  # (N, out)
    if bias is not None:
        out += bias
    return out


def linear_backward(dout: Array, weight: Array) -> Array:
    _own(dout, weight)
    return dout @ weight.T  # (N, in)


def linear_backward_params(dout: Array, x: Array) -> tuple[Array, Array]:
    _own(dout, x)
    return x.T @ dout, dout.sum(axis=0)  # (in, out), (out,)


def gelu(x: Array) -> tuple[Array, GeluCache]:
    _own(x)
    x = _whole(x)
    out = cupy.empty_like(x)  # (N, F)
    _each("gelu", x.size, x.dtype, x, out, x.size)
    return out, GeluCache(x)


def gelu_backward(dout: Array, cache: GeluCache) -> Array:
    _own(dout)
    dout *= cache.slope
    return dout


# ---- attention --------------------------------------------------------------------------------


class Stream(NamedTuple):
    """The places of a batch's sequences in the stream of tokens."""

    offsets: Array  # (B+1,)
    sequence: Array  # (N,)  which one a token belongs to
    lengths: np.ndarray  # (B,)  on the host
    T: int  # the longest


@lru_cache(maxsize=32)
def _stream(offsets: bytes) -> Stream:
    """Cached, because all layers ask for it."""
    ends = np.frombuffer(offsets, np.int64)
    lengths = np.diff(ends)
    sequence = np.repeat(np.arange(len(lengths)), lengths)
    return Stream(asarray(ends), asarray(sequence), lengths, int(lengths.max()))


@lru_cache(maxsize=256)
def _table(table: bytes) -> Array:
    """`struct Slots` of every sequence, on the GPU; cached, because every step uses the same
    prefixes."""
    return asarray(np.frombuffer(table, np.int64).reshape(-1, 4))


class Heads(NamedTuple):
    """The keys (or values) of a batch, which forward and backward lay out heads first."""

    tokens: Array  # (N, NH, hs), of any stride between tokens
    slots: Array  # (B, 4)
    P: np.ndarray  # (B,)  on the host
    width: int  # W: the most keys that a sequence has
    stream: Stream
    prefixes: list[Array]  # keeps alive the memory that the slots point to

    @classmethod
    def of(cls, tokens: Array, prefix: Sequence[Array], stream: Stream) -> "Heads":
        distinct = {id(a): a.astype(tokens.dtype, copy=False) for a in _distinct(prefix)}
        distinct = {i: _innermost_whole(a) for i, a in distinct.items()}
        slots = {i: _slots_of(a) for i, a in distinct.items()}
        table = np.array([slots[id(a)] for a in prefix], np.int64)  # (B, 4)
        P = table[:, 3]
        width = int((P + stream.lengths).max())
        return cls(tokens, _table(table.tobytes()), P, width, stream, list(distinct.values()))

    def padded(self, transposed: bool) -> Array:
        """(B, NH, W, hs), or (B, NH, hs, W)."""
        return _to_heads(self.tokens, self.slots, self.stream, self.width, transposed)


def _distinct(arrays: Sequence[Array]) -> list[Array]:
    """Each array once: all sequences of a batch may see the same prefix."""
    return list({id(a): a for a in arrays}.values())


def _slots_of(a: Any) -> tuple[int, int, int, int]:
    """`struct Slots` of one prefix (NH, P, hs)."""
    head, slot, _ = (stride // a.itemsize for stride in a.strides)
    return a.data.ptr, head, slot, a.shape[1]


def _innermost_whole(a: Array) -> Array:
    return a if a.strides[2] == a.itemsize or a.shape[2] == 1 else _whole(a)


def _to_heads(
    tokens: Array,
    slots: "Array | int",
    stream: Stream,
    width: int,
    transposed: bool,
    scale: float = 1,
) -> Array:
    """tokens (N, NH, hs) -> (B, NH, width, hs), or (B, NH, hs, width)."""
    (_, NH, hs), B, size = tokens.shape, len(stream.lengths), tokens.itemsize
    if tokens.strides[1:] != (hs * size, size):
        tokens = _whole(tokens)
    shape = (B, NH, hs, width) if transposed else (B, NH, width, hs)
    out = cupy.empty(shape, tokens.dtype)
    where = (tokens, tokens.strides[0] // size, slots, stream.offsets)
    sizes = (B, NH, width, hs, int(transposed), float(scale))
    _each("to_heads", out.size, out.dtype, *where, out, *sizes)
    return out


def _from_heads(
    padded: Array, slots: "Array | int", stream: Stream, transposed: bool, scale: float = 1
) -> Array:
    """The rows of the tokens, (N, NH, hs)."""
    NH, N = padded.shape[1], len(stream.sequence)
    hs, width = padded.shape[2:] if transposed else padded.shape[:1:-1]
    out = cupy.empty((N, NH, hs), padded.dtype)
    where = (padded, slots, stream.offsets, stream.sequence)
    sizes = (N, NH, width, hs, int(transposed), float(scale))
    _each("from_heads", out.size, out.dtype, *where, out, *sizes)
    return out


NO_SLOTS = 0  # a null pointer


def _pattern(q: Array, keys: Heads) -> Array:
    """q (N, NH, hs) -> (B, NH, T, W)."""
    (_, NH, hs), stream = q.shape, keys.stream
    queries = _to_heads(q, NO_SLOTS, stream, stream.T, False, hs**-0.5)
    pattern = queries @ keys.padded(transposed=True)  # the scores first
    B, _, T, W = pattern.shape
    _rows("masked_softmax", B * NH * T, q.dtype, pattern, keys.slots, stream.offsets, NH, T, W)
    return pattern


def attention(
    q: Array,
    k: Array,
    v: Array,
    prefix_k: Sequence[Array],
    prefix_v: Sequence[Array],
    offsets: Array,
) -> tuple[Array, AttentionCache]:
    _own(q, k, v, *_distinct(prefix_k), *_distinct(prefix_v))
    cache = AttentionCache(q, k, v, prefix_k, prefix_v, offsets)
    q, keys, values = _inputs(cache)
    z = _pattern(q, keys) @ values.padded(transposed=False)  # (B, NH, T, hs)
    return _from_heads(z, NO_SLOTS, keys.stream, False), cache


def _inputs(cache: AttentionCache) -> tuple[Array, Heads, Heads]:
    """Queries, keys and values in one dtype."""
    q, k, v, prefix_k, prefix_v, offsets = cache
    dtype = np.result_type(q.dtype, *(a.dtype for a in _distinct(prefix_k)))
    q, k, v = (a.astype(dtype, copy=False) for a in (q, k, v))
    host = offsets if isinstance(offsets, np.ndarray) else asnumpy(offsets)
    stream = _stream(np.asarray(host, np.int64).tobytes())
    return q, Heads.of(k, prefix_k, stream), Heads.of(v, prefix_v, stream)


class PerSequence(Sequence[Array]):
    """The gradients of prefixes, (NH, P, hs) for each sequence. They are views of one array, made
    at their use."""

    def __init__(self, padded: Array, lengths: list[int]) -> None:
        self.padded = padded  # (B, NH, hs, W): the first P of W
        self.lengths = lengths

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, b: Any) -> Any:
        if isinstance(b, slice):
            return [self[i] for i in range(*b.indices(len(self)))]
        return self.padded[b, :, :, : self.lengths[b]].swapaxes(1, 2)

    def total(self, rows: Sequence[int]) -> Array:
        """The sum over these sequences, which see the same prefix: (NH, P, hs)."""
        padded = self.padded if len(rows) == len(self) else self.padded[asarray(np.array(rows))]
        return padded[..., : self.lengths[rows[0]]].sum(axis=0).swapaxes(1, 2)


def attention_backward(dz: Array, cache: AttentionCache) -> AttentionGrads:
    """No product has to copy one of its factors first; so the gradients of keys and values come out
    transposed."""
    _own(dz)
    q, keys, values = _inputs(cache)
    stream, hs = keys.stream, q.shape[2]
    dz = dz.astype(q.dtype, copy=False)
    pattern = _pattern(q, keys)  # (B, NH, T, W)
    # z = pattern @ values
    dvalues = _to_heads(dz, NO_SLOTS, stream, stream.T, True) @ pattern  # (B, NH, hs, W)
    dz_padded = _to_heads(dz, NO_SLOTS, stream, stream.T, False)
    dscores = dz_padded @ values.padded(transposed=True)  # dpattern (B, NH, T, W) first
    # pattern = softmax(scores), scores = q @ keys^T / sqrt(hs)
    W = dscores.shape[3]
    _rows("softmax_backward", dscores.size // W, q.dtype, pattern, dscores, W)
    dq = dscores @ keys.padded(transposed=False)  # (B, NH, T, hs)
    queries = _to_heads(q, NO_SLOTS, stream, stream.T, True, hs**-0.5)
    dkeys = queries @ dscores  # (B, NH, hs, W)
    lengths = keys.P.tolist()
    return AttentionGrads(
        _from_heads(dq, NO_SLOTS, stream, False, hs**-0.5),
        _from_heads(dkeys, keys.slots, stream, True),
        _from_heads(dvalues, values.slots, stream, True),
        PerSequence(dkeys, lengths),
        PerSequence(dvalues, lengths),
    )


# ---- cross_entropy, AdamW ---------------------------------------------------------------------


def cross_entropy(
    logits: Array, targets: Array, weights: Array
) -> tuple[np.generic, CrossEntropyCache]:
    """The loss is an array () on the GPU; reading its number waits for the GPU."""
    _own(logits, targets, weights)
    M, V = logits.shape
    logits, targets, weights = map(_whole, (logits, targets, weights))
    nll = cupy.empty(M, logits.dtype)  # (M,)
    _rows("cross_entropy", M, logits.dtype, logits, targets, weights, nll, V)
    return nll.sum(), CrossEntropyCache(logits, targets, weights)


def cross_entropy_backward(cache: CrossEntropyCache) -> Array:
    dlogits, targets, weights = cache  # (M, V)  in the place of the probabilities
    M, V = dlogits.shape
    _rows("cross_entropy_backward", M, dlogits.dtype, dlogits, targets, weights, V)
    return dlogits


def adamw(
    p: Array,
    g: Array,
    m: Array,
    v: Array,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    t: int,
) -> None:
    """Step t of AdamW for one parameter, in place (see `minprefix.optim`)."""
    _own(p, g, m, v)
    changed = (p, m, v)
    whole = p_whole, m_whole, v_whole = tuple(map(_whole, changed))
    sizes = (lr, beta1, beta2, eps, weight_decay, 1 - beta1**t, 1 - beta2**t)
    arrays = (p_whole, _whole(g), m_whole, v_whole)
    _each("adamw", p.size, p.dtype, *arrays, *map(float, sizes), p.size)
    for a, own in zip(changed, whole, strict=True):
        if own is not a:  # a is not contiguous: its new numbers stand in a copy
            a[...] = own
