"""What a student writes in a course on neural networks: a convolution by im2col, batch
normalisation as a chain of small steps, and one step of an LSTM with the gates a = [i, f, o, g]."""

import numpy as np

# ---- convolution: windows become columns, and the convolution one matrix product


def im2col(x, K, stride):
    N, C, H, W = x.shape
    rows, columns = (H - K) // stride + 1, (W - K) // stride + 1
    cols = np.empty((C * K * K, rows * columns * N), x.dtype)
    at = 0
    for i in range(rows):
        for j in range(columns):
            window = x[:, :, i * stride : i * stride + K, j * stride : j * stride + K]
            cols[:, at : at + N] = window.reshape(N, -1).T
            at += N
    return cols


def col2im(cols, shape, K, stride):
    N, C, H, W = shape
    rows, columns = (H - K) // stride + 1, (W - K) // stride + 1
    x = np.zeros(shape, cols.dtype)
    at = 0
    for i in range(rows):
        for j in range(columns):
            window = cols[:, at : at + N].T.reshape(N, C, K, K)
            x[:, :, i * stride : i * stride + K, j * stride : j * stride + K] += window
            at += N
    return x


def conv_forward(x, w, b, stride=1, pad=0):
    N, F, K = len(x), len(w), w.shape[2]
    padded = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    rows = (padded.shape[2] - K) // stride + 1
    columns = (padded.shape[3] - K) // stride + 1
    cols = im2col(padded, K, stride)
    out = w.reshape(F, -1) @ cols + b[:, None]
    out = out.reshape(F, rows, columns, N).transpose(3, 0, 1, 2)
    return out, (cols, padded.shape, w, stride, pad)


def conv_backward(dout, cache):
    cols, shape, w, stride, pad = cache
    F, K = len(w), w.shape[2]
    flat = dout.transpose(1, 2, 3, 0).reshape(F, -1)
    db = flat.sum(axis=1)
    dw = (flat @ cols.T).reshape(w.shape)
    dcols = w.reshape(F, -1).T @ flat
    dpadded = col2im(dcols, shape, K, stride)
    dx = dpadded[:, :, pad : shape[2] - pad, pad : shape[3] - pad]
    return dx, dw, db


# ---- batch normalisation: nine small steps, and back through each


def batchnorm_forward(x, gamma, beta, eps=1e-5):
    mu = x.mean(axis=0)
    xmu = x - mu
    sq = xmu**2
    var = sq.mean(axis=0)
    sqrtvar = np.sqrt(var + eps)
    ivar = 1 / sqrtvar
    xhat = xmu * ivar
    return gamma * xhat + beta, (xhat, gamma, xmu, ivar, sqrtvar, var, eps)


def batchnorm_backward(dout, cache):
    xhat, gamma, xmu, ivar, sqrtvar, var, eps = cache
    N = len(dout)
    dbeta = dout.sum(axis=0)
    dgamma = (dout * xhat).sum(axis=0)
    dxhat = dout * gamma
    divar = (dxhat * xmu).sum(axis=0)
    dxmu = dxhat * ivar
    dsqrtvar = -divar / sqrtvar**2
    dvar = 0.5 * dsqrtvar / np.sqrt(var + eps)
    dsq = np.ones_like(xmu) * dvar / N
    dxmu = dxmu + 2 * xmu * dsq
    dmu = -dxmu.sum(axis=0)
    dx = dxmu + np.ones_like(xmu) * dmu / N
    return dx, dgamma, dbeta


# ---- one step of an LSTM


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def lstm_step_forward(x, prev_h, prev_c, Wx, Wh, b):
    i, f, o, g = np.split(x @ Wx + prev_h @ Wh + b, 4, axis=1)
    i, f, o, g = sigmoid(i), sigmoid(f), sigmoid(o), np.tanh(g)
    next_c = f * prev_c + i * g
    next_h = o * np.tanh(next_c)
    return (next_h, next_c), (x, prev_h, prev_c, Wx, Wh, i, f, o, g, next_c)


def lstm_step_backward(dnext, cache):
    dnext_h, dnext_c = dnext
    x, prev_h, prev_c, Wx, Wh, i, f, o, g, next_c = cache
    tanh = np.tanh(next_c)
    do = dnext_h * tanh
    dc = dnext_c + dnext_h * o * (1 - tanh**2)
    di, df, dg = dc * g, dc * prev_c, dc * i
    da = np.concatenate(
        [di * i * (1 - i), df * f * (1 - f), do * o * (1 - o), dg * (1 - g**2)], axis=1
    )
    return da @ Wx.T, da @ Wh.T, dc * f, x.T @ da, prev_h.T @ da, da.sum(axis=0)


#: forward, the text that stands there, what a student writes instead, the gradient that is wrong
MISTAKES = [
    ("conv_forward", "j * stride + K] += window", "j * stride + K] = window", "dx"),
    ("conv_forward", "dx = dpadded[:, :, pad : shape[2] - pad, pad : shape[3] - pad]",
     "dx = dpadded[:, :, pad:, pad:]", "dx"),
    ("conv_forward", "flat = dout.transpose(1, 2, 3, 0).reshape(F, -1)",
     "flat = dout.transpose(1, 0, 2, 3).reshape(F, -1)", "dx"),
    ("conv_forward", "flat = dout.transpose(1, 2, 3, 0).reshape(F, -1)",
     "flat = dout.reshape(F, -1)", "dx"),
    ("conv_forward", "dw = (flat @ cols.T).reshape(w.shape)",
     "dw = (flat @ cols.T).reshape(w.shape) / cols.shape[1]", "dw"),
    ("conv_forward", "db = flat.sum(axis=1)", "db = flat.mean(axis=1)", "db"),
    ("conv_forward", "dcols = w.reshape(F, -1).T @ flat", "dcols = w.reshape(-1, F) @ flat", "dx"),
    ("batchnorm_forward", "dxmu = dxmu + 2 * xmu * dsq", "dxmu = dxmu + xmu * dsq", "dx"),
    ("batchnorm_forward", "dmu = -dxmu.sum(axis=0)", "dmu = dxmu.sum(axis=0)", "dx"),
    ("batchnorm_forward", "    dsqrtvar = -divar / sqrtvar**2", "    dsqrtvar = divar / sqrtvar**2",
     "dx"),
    ("batchnorm_forward", "dvar = 0.5 * dsqrtvar / np.sqrt(var + eps)",
     "dvar = 0.5 * dsqrtvar / np.sqrt(var)", "dx"),
    ("batchnorm_forward", "dsq = np.ones_like(xmu) * dvar / N", "dsq = np.ones_like(xmu) * dvar",
     "dx"),
    ("batchnorm_forward", "dgamma = (dout * xhat).sum(axis=0)", "dgamma = (dout * xmu).sum(axis=0)",
     "dgamma"),
    ("lstm_step_forward", "dc = dnext_c + dnext_h * o * (1 - tanh**2)",
     "dc = dnext_h * o * (1 - tanh**2)", "dx"),
    ("lstm_step_forward", "dc = dnext_c + dnext_h * o * (1 - tanh**2)",
     "dc = dnext_c + dnext_h * o * (1 - next_c**2)", "dx"),
    ("lstm_step_forward", "da @ Wh.T, dc * f,", "da @ Wh.T, dc,", "dprev_c"),
    ("lstm_step_forward", "do * o * (1 - o), dg * (1 - g**2)", "dg * (1 - g**2), do * o * (1 - o)",
     "dx"),
    ("lstm_step_forward", "dg * (1 - g**2)", "dg * g * (1 - g)", "dx"),
    ("lstm_step_forward", "prev_h.T @ da, da.sum(axis=0)", "prev_h.T @ da, da", "db"),
    ("lstm_step_forward", "x.T @ da, prev_h.T @ da", "prev_h.T @ da, x.T @ da", "dWx"),
]  # fmt: skip
