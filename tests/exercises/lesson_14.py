import numpy as np

from minprefix.ops.contract import LayernormCache
from tests.exercises import wrong

_BUFFERS: dict = {}


@wrong("layernorm", says="wrote into x, which the contract says is kept")
def the_input_is_overwritten(x, gain, bias, eps):
    x -= x.mean(axis=-1, keepdims=True)
    rstd = 1 / np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps)
    x *= rstd
    return x * gain + bias, LayernormCache(x, rstd, gain)


@wrong("layernorm", says="out of the first of two calls")
def the_output_is_a_buffer_kept_between_calls(x, gain, bias, eps):
    out = _BUFFERS.setdefault((x.shape, x.dtype), np.empty_like(x))
    xhat = x - x.mean(axis=-1, keepdims=True)
    rstd = 1 / np.sqrt((xhat * xhat).mean(axis=-1, keepdims=True) + eps)
    xhat *= rstd
    np.multiply(xhat, gain, out=out)
    out += bias
    return out, LayernormCache(xhat, rstd, gain)


@wrong("layernorm", says="cache.xhat")
def the_cache_holds_the_output(x, gain, bias, eps):
    xhat = x - x.mean(axis=-1, keepdims=True)
    rstd = 1 / np.sqrt((xhat * xhat).mean(axis=-1, keepdims=True) + eps)
    xhat *= rstd
    out = xhat  # another name, not another array
    out *= gain
    out += bias
    return out, LayernormCache(xhat, rstd, gain)
