"""The operations in JAX, compiled: `jax.jit` of `jnp` functions, and `jax.vjp` for the backwards.
Compiling takes most of the time: each new shape is compiled anew."""

from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np

jax.config.update("jax_enable_x64", True)
asarray, asnumpy = jnp.asarray, np.asarray


@jax.jit
def embed(tokens, positions, wte, wpe):
    return wte[tokens] + wpe[positions]


@jax.jit
def embed_backward_params(dx, tokens, positions, wte, wpe):
    return jax.vjp(lambda *tables: embed(tokens, positions, *tables), wte, wpe)[1](dx)


@jax.jit
def _normalised(x, gain, bias, eps):
    centred = x - x.mean(-1, keepdims=True)
    return centred / jnp.sqrt((centred**2).mean(-1, keepdims=True) + eps) * gain + bias


def layernorm(x, gain, bias, eps):
    return _normalised(x, gain, bias, eps), (x, gain, bias, eps)


@jax.jit
def layernorm_backward(dout, cache):
    x, *rest = cache
    return jax.vjp(lambda x: _normalised(x, *rest), x)[1](dout)[0]


@jax.jit
def layernorm_backward_params(dout, cache):
    x, gain, bias, eps = cache
    return jax.vjp(lambda *params: _normalised(x, *params, eps), gain, bias)[1](dout)


@jax.jit
def linear(x, weight, bias):
    return x @ weight if bias is None else x @ weight + bias


@jax.jit
def linear_backward(dout, weight):
    return dout @ weight.T


@jax.jit
def linear_backward_params(dout, x):
    return x.T @ dout, dout.sum(0)


_gelu = jax.jit(partial(jax.nn.gelu, approximate=True))


def gelu(x):
    return _gelu(x), x


@jax.jit
def gelu_backward(dout, cache):
    return jax.vjp(_gelu, cache)[1](dout)[0]


@partial(jax.jit, static_argnums=5)
def _attend(q, k, v, prefix_k, prefix_v, offsets):
    z = []
    for b, (start, end) in enumerate(pairwise(offsets)):
        keys = jnp.concatenate([prefix_k[b], k[start:end].swapaxes(0, 1)], 1)
        values = jnp.concatenate([prefix_v[b], v[start:end].swapaxes(0, 1)], 1)
        T, P = end - start, prefix_k[b].shape[1]
        scores = jnp.einsum("thd,hkd->htk", q[start:end], keys) / q.shape[2] ** 0.5
        seen = jnp.tril(jnp.ones((T, P + T), bool), P)
        pattern = jax.nn.softmax(jnp.where(seen, scores, -jnp.inf))
        z.append(jnp.einsum("htk,hkd->thd", pattern, values))
    return jnp.concatenate(z)


def attention(q, k, v, prefix_k, prefix_v, offsets):
    offsets = tuple(map(int, offsets))
    # the model reads q, k and v
    cache = {"q": q, "k": k, "v": v, "prefixes": (prefix_k, prefix_v), "offsets": offsets}
    return _attend(q, k, v, prefix_k, prefix_v, offsets), cache


@partial(jax.jit, static_argnums=0)
def _attend_backward(offsets, dz, *inputs):
    return jax.vjp(lambda *moved: _attend(*moved, offsets), *inputs)[1](dz)


def attention_backward(dz, cache):
    inputs = (cache["q"], cache["k"], cache["v"], *cache["prefixes"])
    return _attend_backward(cache["offsets"], dz, *inputs)


@jax.jit
def _loss(logits, targets, weights):
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), targets[:, None], 1)[:, 0]
    return -(weights * chosen).sum()


def cross_entropy(logits, targets, weights):
    return _loss(logits, targets, weights), (logits, targets, weights)


@jax.jit
def cross_entropy_backward(cache):
    logits, *rest = cache
    return jax.grad(lambda logits: _loss(logits, *rest))(logits)
