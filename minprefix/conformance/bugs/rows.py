"""Bugs of the ops that work row by row: embed, layernorm, linear, gelu."""

from minprefix.conformance.bug import Bug

_EMBED = [
    Bug(
        "positions-ignored",
        "maths",
        "ops.reference",
        (("return wte[tokens] + wpe[positions]", "return wte[tokens]"),),
        ("embed", "x"),
        see="Fluent words in a poor order; the loss stays high, and a prompt's order hardly "
        "matters.",
        lesson="Attention itself does not know where a token stands: only the second table says "
        "it.",
        source="a common slip",
    ),
    Bug(
        "positions-from-the-row",
        "plumbing",
        "ops.reference",
        (("wpe[positions]  # (N, C)", "wpe[np.arange(len(tokens))]  # (N, C)"),),
        ("embed", "x"),
        see="One sequence without a prefix is right; every other sequence of a batch is not.",
        lesson="The row of the stream is no position: sequences start anew, and after their "
        "prefix.",
        source="first implementations, which have one sequence and no cache",
    ),
    Bug(
        "repeated-token-counted-once",
        "plumbing",
        "ops.reference",
        (
            (
                "np.add.at(dwte, tokens, dx)  # not dwte[tokens] += dx, which counts a repeated "
                "token once",
                "dwte[tokens] += dx",
            ),
        ),
        ("embed", "dwte"),
        see="Right on texts whose words all differ; frequent tokens learn too slowly.",
        lesson="Fancy indexing on the left reads, adds and writes once per index: the last place "
        "of a token wins.",
        source="a well-known trap of NumPy",
    ),
    Bug(
        "repeated-position-counted-once",
        "plumbing",
        "ops.reference",
        (("np.add.at(dwpe, positions, dx)", "dwpe[positions] += dx"),),
        ("embed", "dwpe"),
        see="Right for one sequence; in a batch a position learns from the last sequence alone.",
        lesson="Within a sequence all positions differ, so only a batch shows it.",
        source="a well-known trap of NumPy",
    ),
    Bug(
        "position-gradient-by-token",
        "plumbing",
        "ops.reference",
        (("np.add.at(dwpe, positions, dx)", "np.add.at(dwpe, tokens, dx)"),),
        ("embed", "dwpe"),
        see="The norm of the gradient looks right, and its rows lie at the wrong positions.",
        lesson="A copied line of which one name was changed, not both.",
        source="a common slip",
    ),
    Bug(
        "token-ids-in-16-bits",
        "plumbing",
        "ops.reference",
        (
            (
                "return wte[tokens] + wpe[positions]",
                "return wte[tokens.astype(np.int16)] + wpe[positions]",
            ),
        ),
        ("embed", "x"),
        see="Right for the 32768 most frequent tokens. The others are read from the table's other "
        "end, without an error.",
        lesson="50257 ids need 16 bits without a sign. NumPy counts negative indices from the end.",
        source="token files that are stored in 16 bits",
    ),
]

_LAYERNORM = [
    Bug(
        "unbiased-variance",
        "maths",
        "ops.reference",
        (
            (
                "(centred * centred).mean(axis=-1, keepdims=True)",
                "(centred * centred).sum(axis=-1, keepdims=True) / (x.shape[-1] - 1)",
            ),
        ),
        ("layernorm", "out"),
        see="The output is off by half a part in C: 0.07 % at C = 768, and NaN at C = 1.",
        lesson="The variance of layernorm is over C, not over C - 1.",
        source="torch.var and statistics.variance divide by n - 1 unless told otherwise",
    ),
    Bug(
        "eps-outside-the-root",
        "maths",
        "ops.reference",
        (("1 / np.sqrt(var + eps)", "1 / (np.sqrt(var) + eps)"),),
        ("layernorm", "out"),
        see="Off in the sixth digit where the variance is 1, and without recognition where it is "
        "small.",
        lesson="eps is added to the variance; 1e-5 there weighs as much as 3e-3 outside of the "
        "root.",
        source="a common slip: other formulas, Adam's among them, have it outside",
    ),
    Bug(
        "eps-missing",
        "maths",
        "ops.reference",
        (("1 / np.sqrt(var + eps)", "1 / np.sqrt(var)"),),
        ("layernorm", "out"),
        see="Off in the sixth digit; a row of equal numbers gives NaN.",
        lesson="eps is part of the function, not only a guard against a division by 0.",
        source="a common slip",
    ),
    Bug(
        "eps-hard-coded",
        "plumbing",
        "ops.reference",
        (("1 / np.sqrt(var + eps)", "1 / np.sqrt(var + 1e-5)"),),
        ("layernorm", "out"),
        see="Right for GPT-2, wrong for every model whose config has another layer_norm_epsilon.",
        lesson="An argument that is accepted and ignored is worse than none.",
        source="a common slip",
    ),
    Bug(
        "variance-by-difference",
        "maths",
        "ops.reference",
        (
            (
                "(centred * centred).mean(axis=-1, keepdims=True)",
                "(x * x).mean(axis=-1, keepdims=True) - x.mean(axis=-1, keepdims=True) ** 2",
            ),
        ),
        ("layernorm", "out"),
        see="Right near 0; where the mean is large the variance loses its digits, and may turn "
        "negative.",
        lesson="E[x^2] - E[x]^2 is the small difference of two large numbers.",
        source="the one-pass formula of many textbooks and kernels",
    ),
    Bug(
        "normalised-over-the-batch",
        "maths",
        "ops.reference",
        (
            (
                "centred = x - x.mean(axis=-1, keepdims=True)",
                "centred = x - x.mean(axis=0, keepdims=True)",
            ),
            (
                "(centred * centred).mean(axis=-1, keepdims=True)",
                "(centred * centred).mean(axis=0, keepdims=True)",
            ),
        ),
        ("layernorm", "out"),
        see="What a token gives depends on the other tokens, later ones included; a single row "
        "gives the bias.",
        lesson="Batch norm runs over the rows, layer norm over the columns of one row.",
        source="a common slip",
    ),
    Bug(
        "not-centred",
        "maths",
        "ops.reference",
        (("centred = x - x.mean(axis=-1, keepdims=True)", "centred = x"),),
        ("layernorm", "out"),
        see="Close where means are small; trained weights give a worse loss.",
        lesson="This is RMSNorm: a fine function, and not the one that GPT-2 was trained with.",
        source="ports of LLaMA's norm to GPT-2",
    ),
    Bug(
        "norm-bias-missing",
        "maths",
        "ops.reference",
        (("return xhat * gain + bias,", "return xhat * gain,"),),
        ("layernorm", "out"),
        see="Right on a fresh model, whose biases are 0; wrong on every trained one.",
        lesson="A test on freshly initialised weights cannot see what starts at 0.",
        source="a common slip",
    ),
    Bug(
        "gain-forgotten-in-backward",
        "maths",
        "ops.reference",
        (("dxhat = dout * gain", "dxhat = dout"),),
        ("layernorm", "dx"),
        see="Right on a fresh model, whose gains are 1; wrong on every trained one.",
        lesson="What was multiplied on the way forward is multiplied on the way back.",
        source="a common slip",
    ),
    Bug(
        "mean-term-dropped",
        "maths",
        "ops.reference",
        (("(dxhat - mean_dxhat - xhat * mean_dxhat_xhat)", "(dxhat - xhat * mean_dxhat_xhat)"),),
        ("layernorm", "dx"),
        see="dx no longer sums to 0 over a row.",
        lesson="x reaches the output through the mean, too.",
        source="students who stop the gradient at the mean",
    ),
    Bug(
        "variance-term-dropped",
        "maths",
        "ops.reference",
        (("(dxhat - mean_dxhat - xhat * mean_dxhat_xhat)", "(dxhat - mean_dxhat)"),),
        ("layernorm", "dx"),
        see="dx sums to 0 over a row as it should, so the law is content, and it is wrong.",
        lesson="x reaches the output through the variance, too; a law is no proof.",
        source="students who stop the gradient at the variance",
    ),
    Bug(
        "norm-gradient-unscaled",
        "maths",
        "ops.reference",
        (("return rstd * (dxhat - mean_dxhat", "return (dxhat - mean_dxhat"),),
        ("layernorm", "dx"),
        see="Each row of dx is a multiple of the right one: gradients grow or shrink with depth.",
        lesson="The normalisation divides by the deviation, and so does its gradient.",
        source="a common slip",
    ),
    Bug(
        "dgain-without-xhat",
        "maths",
        "ops.reference",
        (("return (dout * cache.xhat).sum(axis=0), ", "return dout.sum(axis=0), "),),
        ("layernorm", "dgain"),
        see="The gains get the gradient of the biases.",
        lesson="d(xhat * gain)/dgain is xhat.",
        source="a common slip",
    ),
    Bug(
        "dgain-averaged-over-rows",
        "maths",
        "ops.reference",
        (("(dout * cache.xhat).sum(axis=0)", "(dout * cache.xhat).mean(axis=0)"),),
        ("layernorm", "dgain"),
        see="Gains learn N times too slowly, the more the longer the batch.",
        lesson="A parameter that every row uses gets the sum of what the rows say; the mean, if "
        "any, is already in the loss.",
        source="a common slip",
    ),
    Bug(
        "xhat-from-the-output",
        "maths",
        "ops.reference",
        (
            (
                "return xhat * gain + bias, LayernormCache(xhat, rstd, gain)",
                "out = xhat * gain + bias\n"
                "    return out, LayernormCache((out - bias) / gain, rstd, gain)",
            ),
        ),
        ("layernorm", "cache.xhat"),
        see="Right, and with less memory, until a gain is 0: then the gradient is NaN.",
        lesson="out = xhat gain + bias can be solved for xhat only where the gain is not 0, and "
        "loses digits where it is small.",
        source="layernorms that keep their output instead of their input, to save memory",
    ),
]

_LINEAR = [
    Bug(
        "weight-transposed",
        "plumbing",
        "ops.reference",
        (
            (
                "out = x @ weight  # (N, out)",
                "out = x @ (weight.T if len(weight) == weight.shape[1] else weight)",
            ),
        ),
        ("linear", "out"),
        see="No complaint about shapes: only attn.c_proj is square. The text is noise.",
        lesson="GPT-2's files hold (in, out), torch.nn.Linear holds (out, in); a square weight "
        "fits both ways.",
        source="loaders that compare shapes to decide what to transpose",
    ),
    Bug(
        "bias-not-added",
        "maths",
        "ops.reference",
        (("return out if bias is None else out + bias", "return out"),),
        ("linear", "out"),
        see="Right on a fresh model, whose biases are 0; wrong on every trained one.",
        lesson="A test on freshly initialised weights cannot see what starts at 0.",
        source="ports of models that have no biases",
    ),
    Bug(
        "gradient-through-the-weight-itself",
        "maths",
        "ops.reference",
        (
            (
                "return dout @ weight.T",
                "return dout @ (weight if len(weight) == weight.shape[1] else weight.T)",
            ),
        ),
        ("linear", "dx"),
        see="The forward is right, the gradient of what lies below attention is not.",
        lesson="out = x W, so dx = dout W^T; a square weight takes either without a word.",
        source="a common slip",
    ),
    Bug(
        "dweight-transposed",
        "plumbing",
        "ops.reference",
        (("return x.T @ dout, dout.sum(axis=0)", "return dout.T @ x, dout.sum(axis=0)"),),
        ("linear", "dweight"),
        see="A shape that does not fit, except for the square weights, which take it.",
        lesson="dW has the shape of W, here (in, out).",
        source="formulas for torch.nn.Linear used on GPT-2's layout",
    ),
    Bug(
        "dweight-averaged-over-rows",
        "maths",
        "ops.reference",
        (("return x.T @ dout, dout.sum(axis=0)", "return x.T @ dout / len(x), dout.sum(axis=0)"),),
        ("linear", "dweight"),
        see="Weights learn N times too slowly, biases as they should.",
        lesson="The mean over the batch belongs to the loss, once.",
        source="courses that put the 1/m into each layer",
    ),
    Bug(
        "dbias-averaged-over-rows",
        "maths",
        "ops.reference",
        (("return x.T @ dout, dout.sum(axis=0)", "return x.T @ dout, dout.mean(axis=0)"),),
        ("linear", "dbias"),
        see="Biases learn N times too slowly.",
        lesson="A bias is added to every row, so its gradient is the sum over the rows.",
        source="a common slip",
    ),
    Bug(
        "outputs-in-a-ring-of-buffers",
        "plumbing",
        "ops.reference",
        (
            ("def linear(x: Array", "_RINGS: dict = {}\n\n\ndef linear(x: Array"),
            (
                "return out if bias is None else out + bias",
                "out = out if bias is None else out + bias\n"
                "    four = [out.copy() for _ in range(4)]\n"
                "    ring = _RINGS.setdefault((out.shape, out.dtype), four)\n"
                "    ring.append(ring.pop(0))\n"
                "    ring[-1][...] = out\n"
                "    return ring[-1]",
            ),
        ),
        ("linear", "out"),
        see="Right for models of up to four layers. In deeper ones a layer's keys are overwritten "
        "before its backward reads them.",
        lesson="How long a result is needed is the caller's affair.",
        source="buffers that are used in turn, as many as the first model needed",
    ),
]

_GELU = [
    Bug(
        "erf-gelu",
        "maths",
        "ops.reference",
        (
            ("import numpy as np\n", "import math\n\nimport numpy as np\n"),
            (
                "tanh = np.tanh(SQRT_2_OVER_PI * (x + 0.044715 * x * x * x))",
                "tanh = np.vectorize(math.erf, [x.dtype])(x / 2**0.5)",
            ),
            (
                "0.5 * x * (1 - tanh * tanh) * du_dx",
                "x * np.exp(-0.5 * x * x) / (2 * math.pi) ** 0.5",
            ),
        ),
        ("gelu", "out"),
        see="Off by at most 5e-4 a layer: text looks fine, and no test with a tolerance of 1e-2 "
        "notices.",
        lesson="GPT-2 was trained with the tanh form (`gelu_new`); torch.nn.GELU() is the erf "
        "form unless told otherwise.",
        source="ports of GPT-2 to torch.nn.GELU",
    ),
    Bug(
        "sigmoid-gelu",
        "maths",
        "ops.reference",
        (("np.tanh(SQRT_2_OVER_PI * (x + 0.044715 * x * x * x))", "np.tanh(0.851 * x)"),),
        ("gelu", "out"),
        see="Off by up to 0.02 a layer; the text is a little worse.",
        lesson="x sigmoid(1.702 x) is the other approximation of the same paper (`quick_gelu`).",
        source="ports of OpenAI's CLIP, which uses it",
    ),
    Bug(
        "gelu-constant-mistyped",
        "maths",
        "ops.reference",
        (("(x + 0.044715 * x * x * x)", "(x + 0.044175 * x * x * x)"),),
        ("gelu", "out"),
        see="Off in the fourth digit.",
        lesson="A constant is copied, never typed; two digits changed places.",
        source="a common slip",
    ),
    Bug(
        "gelu-root-of-two-alone",
        "maths",
        "ops.reference",
        (("SQRT_2_OVER_PI = 0.7978845608028654", "SQRT_2_OVER_PI = 2**0.5 / np.pi"),),
        ("gelu", "out"),
        see="The curve is too flat: right at 0 and far out, wrong between.",
        lesson="sqrt(2/pi), not sqrt(2)/pi: the root spans both.",
        source="a common slip",
    ),
    Bug(
        "gelu-factor-3-lost",
        "maths",
        "ops.reference",
        (("(1 + 3 * 0.044715 * x * x)", "(1 + 0.044715 * x * x)"),),
        ("gelu", "dx"),
        see="The gradient is right near 0 and wrong where |x| is about 2.",
        lesson="The derivative of x^3 is 3 x^2.",
        source="a common slip",
    ),
    Bug(
        "gelu-second-term-dropped",
        "maths",
        "ops.reference",
        (
            (
                "dout * (0.5 * (1 + tanh) + 0.5 * x * (1 - tanh * tanh) * du_dx)",
                "dout * 0.5 * (1 + tanh)",
            ),
        ),
        ("gelu", "dx"),
        see="The gradient is right at 0 and far out, and wrong between.",
        lesson="x * f(x) has two terms in its derivative.",
        source="a common slip",
    ),
    Bug(
        "gelu-tanh-derivative-unsquared",
        "maths",
        "ops.reference",
        (("(1 - tanh * tanh) * du_dx", "(1 - tanh) * du_dx"),),
        ("gelu", "dx"),
        see="The gradient is right for large x and explodes for negative ones.",
        lesson="tanh' = 1 - tanh^2.",
        source="a mixture with the sigmoid's s (1 - s)",
    ),
    Bug(
        "relu-derivative",
        "maths",
        "ops.reference",
        (("dout * (0.5 * (1 + tanh) + 0.5 * x * (1 - tanh * tanh) * du_dx)", "dout * (x > 0)"),),
        ("gelu", "dx"),
        see="Training works, a little worse; nothing looks broken.",
        lesson="A gradient that is roughly right goes downhill, too: only numbers tell.",
        source="a line left over from a network with ReLU",
    ),
    Bug(
        "one-launch-of-4096-threads",
        "plumbing",
        "ops.reference",
        (
            (
                "return dout * (0.5 * (1 + tanh) + 0.5 * x * (1 - tanh * tanh) * du_dx)",
                "dx = dout * (0.5 * (1 + tanh) + 0.5 * x * (1 - tanh * tanh) * du_dx)\n"
                "    dx.reshape(-1)[4096:] = 0  # each thread computes one entry\n"
                "    return dx",
            ),
        ),
        ("gelu", "dx"),
        see="Right for small arrays. In larger ones all gradients after the 4096th entry are 0.",
        lesson="A launch has as many threads as there are entries, or each thread takes several.",
        source="kernels for a GPU with a fixed grid",
    ),
]

BUGS = (*_EMBED, *_LAYERNORM, *_LINEAR, *_GELU)
