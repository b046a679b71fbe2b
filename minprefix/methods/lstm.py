"""An LSTM by hand, for P-tuning's encoder.

Hochreiter & Schmidhuber, 1997, with the forget gate of Gers et al., 2000. At step t the four gates
are computed at once, u_t = x_t W_x + h_{t-1} W_h + b, in PyTorch's order i, f, g, o:

    c_t = f * c_{t-1} + i * g     i, f, o = sigmoid(u), g = tanh(u)
    h_t = o * tanh(c_t)

The backward goes from the last step to the first. Two gradients reach step t: dh_t, from the output
and from the gates of step t+1, and dc_t, from c_{t+1}:

    dh_t = dout_t + du_{t+1} W_h^T
    dc_t = f_{t+1} dc_{t+1} + dh_t * o * (1 - tanh(c_t)^2)
    di, df, dg, do = dc * g, dc * c_{t-1}, dc * i, dh * tanh(c)

each times the slope of its gate: s (1 - s) for a sigmoid, 1 - g^2 for tanh.
"""

from typing import NamedTuple

import numpy as np

from minprefix.ops.contract import Array
from minprefix.ops.reference import linear_backward, linear_backward_params

#: the parameters of one direction, and how many axes each has
PARTS = {"weight_x": 2, "weight_h": 2, "bias": 1}
DIRECTIONS = ("forward", "backward")
Parameters = dict[str, Array]


class _Cache(NamedTuple):
    x: Array  # (T, in)
    gates: Array  # (T, 4, hidden)  i, f, g, o
    c: Array  # (T+1, hidden)  the first is 0
    h: Array  # (T+1, hidden)  the first is 0


def one_way(x: Array, p: Parameters) -> tuple[Array, _Cache]:
    """x (T, in), p: weight_x (in, 4 hidden), weight_h (hidden, 4 hidden), bias (4 hidden,) -> h (T,
    hidden), cache."""
    T, hidden = len(x), len(p["weight_h"])
    gates = np.zeros_like(p["bias"], shape=(T, 4, hidden))
    c, h = (np.zeros_like(p["bias"], shape=(T + 1, hidden)) for _ in "ch")
    for t in range(T):
        u = (x[t] @ p["weight_x"] + h[t] @ p["weight_h"] + p["bias"]).reshape(4, hidden)
        gates[t] = 0.5 * (1 + np.tanh(u / 2))  # the sigmoid, which overflows nowhere
        gates[t, 2] = np.tanh(u[2])
        i, f, g, o = gates[t]
        c[t + 1] = f * c[t] + i * g
        h[t + 1] = o * np.tanh(c[t + 1])
    return h[1:], _Cache(x, gates, c, h)


def one_way_backward(dout: Array, cache: _Cache, p: Parameters) -> tuple[Array, Parameters]:
    """dout (T, hidden) -> dx (T, in), the gradient of each parameter."""
    T, hidden = dout.shape
    du = np.zeros_like(cache.gates)  # (T, 4, hidden)
    dh, dc = (np.zeros_like(dout, shape=(hidden,)) for _ in "hc")
    for t in reversed(range(T)):
        i, f, g, o = cache.gates[t]
        tanh = np.tanh(cache.c[t + 1])
        dh = dh + dout[t]
        dc = dc + dh * o * (1 - tanh * tanh)
        du[t, 0] = dc * g * i * (1 - i)
        du[t, 1] = dc * cache.c[t] * f * (1 - f)
        du[t, 2] = dc * i * (1 - g * g)
        du[t, 3] = dh * tanh * o * (1 - o)
        dh, dc = du[t].reshape(-1) @ p["weight_h"].T, dc * f
    flat = du.reshape(T, 4 * hidden)
    dweight_x, dbias = linear_backward_params(flat, cache.x)
    dweight_h, _ = linear_backward_params(flat, cache.h[:-1])
    grads = {"weight_x": dweight_x, "weight_h": dweight_h, "bias": dbias}
    return linear_backward(flat, p["weight_x"]), grads


# ---- both ways, layer on layer ------------------------------------------------------------------


def lstm(x: Array, p: Parameters, layers: int) -> tuple[Array, list[_Cache]]:
    """x (T, in) -> (T, 2 hidden): each layer reads its input forwards and backwards, and sets both
    side by side. p has `lstm_0.forward.weight_x` and so on."""
    caches = []
    for layer in range(layers):
        there, cache_there = one_way(x, _of(p, layer, "forward"))
        back, cache_back = one_way(x[::-1], _of(p, layer, "backward"))
        x = np.concatenate([there, back[::-1]], axis=1)
        caches += [cache_there, cache_back]
    return x, caches


def lstm_backward(dout: Array, caches: list[_Cache], p: Parameters) -> tuple[Array, Parameters]:
    """dout (T, 2 hidden) -> dx (T, in), the gradient of each parameter."""
    grads: Parameters = {}
    for layer in reversed(range(len(caches) // 2)):
        there, back = np.split(dout, 2, axis=1)  # (T, hidden) each
        dxs = []
        for direction, own, cache in zip(
            DIRECTIONS, (there, back[::-1]), caches[2 * layer : 2 * layer + 2], strict=True
        ):
            dx, parts = one_way_backward(own, cache, _of(p, layer, direction))
            dxs.append(dx)
            grads |= {f"lstm_{layer}.{direction}.{part}": a for part, a in parts.items()}
        dout = dxs[0] + dxs[1][::-1]
    return dout, grads


def _of(p: Parameters, layer: int, direction: str) -> Parameters:
    return {part: p[f"lstm_{layer}.{direction}.{part}"] for part in PARTS}


def shapes(n_in: int, hidden: int, layers: int) -> dict[str, tuple[int, ...]]:
    """The name and shape of every parameter."""
    found: dict[str, tuple[int, ...]] = {}
    for layer in range(layers):
        width = 2 * hidden if layer else n_in
        for direction in DIRECTIONS:
            sizes = ((width, 4 * hidden), (hidden, 4 * hidden), (4 * hidden,))
            names = (f"lstm_{layer}.{direction}.{part}" for part in PARTS)
            found |= dict(zip(names, sizes, strict=True))
    return found
