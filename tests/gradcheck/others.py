"""The pieces as other people write them, and right: by loops, by complex numbers, by one-hot
matrices, as layers, with gradients by name."""

import numpy as np


def softmax(x):
    log_sum = np.log(np.exp(x - x.max(-1, keepdims=True)).sum(-1, keepdims=True))
    return np.exp(x - x.max(-1, keepdims=True) - log_sum)


def softmax_backward(dout, x):
    rows, dx = softmax(x).reshape(-1, x.shape[-1]), []
    for y, d in zip(rows, dout.reshape(rows.shape), strict=True):
        dx.append((np.diag(y) - np.outer(y, y)) @ d)  # the Jacobian, written out
    return np.reshape(dx, x.shape).astype(x.dtype)


class RMSNorm:
    def forward(self, x, weight, eps):
        self.x, self.weight = x, weight
        self.norm = np.sqrt(np.einsum("...c,...c->...", x, x)[..., None] / x.shape[-1] + eps)
        return x / self.norm * weight

    def backward(self, dout):
        g, n = dout * self.weight, self.x.shape[-1]
        along = (g * self.x).sum(-1, keepdims=True) / (n * self.norm**3)
        dweight = (dout * self.x / self.norm).reshape(-1, n).sum(0)
        return {"weight": dweight, "x": g / self.norm - self.x * along}


def _angles(x, positions, base):
    half = x.shape[-1] // 2
    angles = np.outer(positions, 1.0 / base ** (np.arange(half) / half))
    return np.exp(1j * angles)[:, None].astype(np.result_type(x.dtype, np.complex64))


def rope(x, positions, base):
    half = x.shape[-1] // 2
    turned = (x[..., :half] + 1j * x[..., half:]) * _angles(x, positions, base)
    return np.concatenate([turned.real, turned.imag], -1)


def rope_backward(dout, x, positions, base):
    return rope(dout, -positions, base), None, None


def rope_interleaved(x, positions, base):
    pairs = x.reshape(*x.shape[:-1], -1, 2)
    turned = (pairs[..., 0] + 1j * pairs[..., 1]) * _angles(x, positions, base)
    return np.stack([turned.real, turned.imag], -1).reshape(x.shape)


def rope_interleaved_backward(dout, x, positions, base):
    return (rope_interleaved(dout, -positions, base),)


def swiglu(x, W_gate, W_up, W_down):
    with np.errstate(over="ignore"):
        sigmoid = 1 / (1 + np.exp(-(x @ W_gate)))  # overflows to the right 0
    return (x @ W_gate * sigmoid * (x @ W_up)) @ W_down


def swiglu_backward(dout, x, W_gate, W_up, W_down):
    gate, up = x @ W_gate, x @ W_up
    with np.errstate(over="ignore"):
        s = 1 / (1 + np.exp(-gate))
    inner = dout @ W_down.T
    dgate, dup = inner * up * s * (1 + gate * (1 - s)), inner * gate * s
    both = np.concatenate([W_gate, W_up], 1)
    dboth = x.T @ np.concatenate([dgate, dup], 1)
    dx = np.concatenate([dgate, dup], 1) @ both.T
    return [dx, *np.split(dboth, 2, axis=1), (gate * s * up).T @ dout]


def gqa(q, k, v):
    z, patterns = np.empty_like(q), {}
    for h in range(q.shape[1]):
        kv = h * k.shape[1] // q.shape[1]
        for t in range(len(q)):
            scores = k[: t + 1, kv] @ q[t, h] / q.shape[2] ** 0.5
            e = np.exp(scores - scores.max())
            patterns[h, t] = e / e.sum()
            z[t, h] = patterns[h, t] @ v[: t + 1, kv]
    return z, (q, k, v, patterns)


def gqa_backward(dout, cache):
    q, k, v, patterns = cache
    dq, dk, dv = np.zeros_like(q), np.zeros_like(k), np.zeros_like(v)
    for (h, t), p in patterns.items():
        kv, seen = h * k.shape[1] // q.shape[1], slice(0, t + 1)
        dv[seen, kv] += p[:, None] * dout[t, h]
        dp = v[seen, kv] @ dout[t, h]
        ds = p * (dp - p @ dp) / q.shape[2] ** 0.5
        dq[t, h] += ds @ k[seen, kv]
        dk[seen, kv] += ds[:, None] * q[t, h]
    return dq, dk, dv


def batchnorm(x, gamma, beta, eps):
    return gamma * (x - np.mean(x, 0)) / np.sqrt(np.var(x, 0) + eps) + beta


def batchnorm_backward(dout, x, gamma, beta, eps):
    n, std = len(x), np.sqrt(np.var(x, 0) + eps)
    xhat = (x - np.mean(x, 0)) / std
    dgamma, dbeta = np.sum(dout * xhat, 0), np.sum(dout, 0)
    return (gamma / (n * std)) * (n * dout - xhat * dgamma - dbeta), dgamma, dbeta


def conv1d(x, weight, bias, stride, padding):
    padded = np.pad(x, ((0, 0), (0, 0), (padding,) * 2))
    steps = (padded.shape[2] - weight.shape[2]) // stride + 1
    out = np.empty((len(x), len(weight), steps), x.dtype)
    for t in range(steps):
        window = padded[:, :, t * stride : t * stride + weight.shape[2]]
        out[:, :, t] = np.tensordot(window, weight, ([1, 2], [1, 2])) + bias
    return out, (padded, weight, stride, padding)


def conv1d_backward(dout, cache):
    padded, weight, stride, padding = cache
    dpadded, dweight = np.zeros_like(padded), np.zeros_like(weight)
    for t in range(dout.shape[2]):
        seen = slice(t * stride, t * stride + weight.shape[2])
        dpadded[:, :, seen] += np.tensordot(dout[:, :, t], weight, 1)
        dweight += np.einsum("bo,bck->ock", dout[:, :, t], padded[:, :, seen])
    inside = slice(padding, dpadded.shape[2] - padding)
    return dpadded[:, :, inside].copy(), dweight, dout.sum((0, 2))


def _one_hot(tokens, table):
    return (tokens[..., None] == np.arange(len(table))).astype(table.dtype)


def embedding(tokens, table):
    return _one_hot(tokens, table) @ table


def embedding_backward(dout, tokens, table):
    return {"dtable": np.einsum("btv,btc->vc", _one_hot(tokens, table), dout)}


class Dropout:
    @staticmethod
    def forward(ctx, x, mask, p):
        ctx.scale = np.where(mask, x.dtype.type(1) / x.dtype.type(1 - p), x.dtype.type(0))
        return x * ctx.scale

    @staticmethod
    def backward(ctx, dout):
        return dout * ctx.scale, None, None
