"""Lesson 16's exercises: the inputs on which an answer is graded, and the usual mistakes."""

from minprefix.gpt2 import Config
from minprefix.lessons.exercise import Cases, Lazy, Rng, exercise
from minprefix.lessons.exercises.watched import by_formula, watched
from minprefix.methods import PromptTuning
from minprefix.model import GPT2
from minprefix.ops import reference
from minprefix.ops.contract import Array


@exercise(
    ("L * 2 * P * C", "L * P * C", "A slot has a key and a value in each layer: 2 C numbers."),
    (
        "C, P * C",
        "C, L * P * C",
        "A prompt stands once, before the text: it has no vectors of its own in each layer.",
    ),
    (
        "lora = L * (",
        "lora = (",
        "LoRA is counted for one layer: each of the L layers has an A and a B of its own.",
    ),
    ("C * r + r * 3 * C", "2 * C * r", "The weight of c_attn is (C, 3C), so B is (r, 3C)."),
    (
        "L * 2 * (C * m",
        "L * (C * m",
        "Each layer has two adapters: behind its attention and behind its MLP.",
    ),
    ("C * m + m + m * C + C", "2 * C * m", "The biases are missing: b_D (m,) and b_U (C,)."),
    (
        "full = V * C + n_positions * C",
        "full = 2 * V * C + n_positions * C",
        "The token embedding is counted twice: the head uses the same weight again.",
    ),
    (
        "V * C + n_positions * C",
        "V * C",
        "The position embedding is missing: C numbers for each position.",
    ),
    (
        "layernorms) + 2 * C",
        "layernorms)",
        "The last layernorm, ln_f, is missing: it has a gain and a bias of C numbers.",
    ),
    (
        "+ biases +",
        "+",
        "The biases of the four linear layers are missing: 3C, C, 4C and C numbers.",
    ),
)
def trained_numbers(rng: Rng) -> Cases:
    """The sizes of three models, and of the methods."""
    yield 4, 160, 1024, 256, 5, 8, 8
    yield 12, 768, 50257, 1024, 10, 4, 64
    L, C, V, n_positions, P, r, m = (int(n) for n in rng.integers(2, 40, 7))
    yield L, C, V, n_positions, P, r, m


def _of_adapter(rng: Rng) -> tuple[Array, ...]:
    """Of unlike sizes: h (N, C), D (C, m), b_D (m,), U (m, C), b_U (C,)."""
    N, C, m = (int(n) for n in rng.permutation([3, 5, 7]))
    shapes = ((N, C), (C, m), (m,), (m, C), (C,))
    return tuple(rng.normal(size=shape) for shape in shapes)


@exercise(
    (
        "h + ops.linear(a, U, b_U)",
        "ops.linear(a, U, b_U)",
        "The way around is missing: h itself is a part of the output.",
    ),
    ("(a, U, b_U)", "(a, U, None)", "The second bias, b_U, is missing."),
    ("(h, D, b_D)", "(h, D, None)", "The first bias, b_D, is missing."),
    ("ops.gelu(z)[0]", "z", "The GELU is missing between the two products."),
)
def adapter(rng: Rng) -> Cases:
    for _ in range(2):
        yield *_of_adapter(rng), reference


@exercise(
    (
        "dout + ops.linear_backward(dz, D)",
        "ops.linear_backward(dz, D)",
        "The way around is missing: h is a summand of the output, so dout itself is a part of dh.",
    ),
    (
        "ops.linear_backward_params(dz, h)",
        "ops.linear_backward_params(da, h)",
        "GELU's slope is missing: D is multiplied before the GELU, so dD needs dz and not da.",
    ),
    (
        "ops.gelu_backward(da, cache)",
        "da",
        "dz is da: the gradient has to pass the GELU's backward.",
    ),
    (
        "ops.linear_backward_params(dout, a)",
        "ops.linear_backward_params(dout, z)",
        "dU is made with z, which is what the GELU gets: U is multiplied by a, its output.",
    ),
    (
        "dU, db_U = ops.linear_backward_params(dout, a)",
        "dU, db_U = ops.linear_backward_params(dout, a)[0], dout",
        "The sum over the rows is missing in db_U: every row adds the same bias.",
    ),
    (
        "return dh, dD, db_D, dU, db_U",
        "return dh, dU, db_U, dD, db_D",
        "They are returned in another order: return dh, dD, db_D, dU, db_U.",
    ),
)
def adapter_backward(rng: Rng) -> Cases:
    for _ in range(2):
        h, *parameters = map(by_formula, _of_adapter(rng))
        yield rng.normal(size=h.shape), h, *parameters, reference


def _narrow(n_in: int, n_out: int, *arrays: Array) -> list[Array]:
    """The arrays, which refuse a new array of the shape (in, out)."""

    def rule(name: str, result: Array, new: bool) -> None:
        if (new or name == "matmul") and result.shape in ((n_in, n_out), (n_out, n_in)):
            raise Lazy(
                f"forms an array of the shape (in, out), here {result.shape}: multiply in another "
                "order, so that each product has r rows or columns, or N"
            )

    return [watched(a, rule) for a in arrays]


#: N, in, out, r: no two of a case are the same
_SIZES = ((7, 5, 6, 3), (3, 4, 8, 1), (2, 9, 4, 5))


@exercise(
    ("s * (u @ B)", "(u @ B)", "The scale s is missing."),
    ("+ b + s", "+ s", "The bias b is missing."),
    ("x @ W + b +", "b +", "The frozen layer's own x W is missing: LoRA adds to it."),
)
def lora(rng: Rng) -> Cases:
    for (N, n_in, n_out, r), s in zip(_SIZES, (2.5, 0.5, 16.0), strict=True):
        shapes = ((N, n_in), (n_in, n_out), (n_out,), (n_in, r), (r, n_out))
        x, W, b, A, B = (rng.normal(size=shape) for shape in shapes)
        yield *_narrow(n_in, n_out, x, W, b, A, B), s


@exercise(
    ("s * (A @ B)", "(A @ B)", "The scale s is missing."),
    ("W + s * (A @ B)", "s * (A @ B)", "W itself is missing: LoRA adds to it."),
)
def merged_weight(rng: Rng) -> Cases:
    for (_, n_in, n_out, r), s in zip(_SIZES, (2.5, 0.5, 16.0), strict=True):
        shapes = ((n_in, n_out), (n_in, r), (r, n_out))
        W, A, B = (rng.normal(size=shape) for shape in shapes)
        yield W, A, B, s


@exercise(
    (
        "s * (dout @ B.T)",
        "dout @ B.T",
        "The scale s is missing in du: u enters the output as s u B.",
    ),
    (
        "s * ((x @ A).T @ dout)",
        "(x @ A).T @ dout",
        "The scale s is missing in dB: B enters the output as s u B.",
    ),
    (
        "dA = x.T @ du",
        "dA = s * x.T @ du",
        "The scale s stands twice in dA: it is a part of du already.",
    ),
    (
        "s * ((x @ A).T @ dout)",
        "s * (s * (x @ A).T @ dout)",
        "The scale s stands twice in dB: B enters the output as s u B.",
    ),
    (
        "return dx, dA, dB",
        "return dA, dB, dx",
        "They are returned in another order: return dx, dA, dB.",
    ),
    (
        "dA = x.T @ du",
        "dA = x.T @ du / len(x)",
        "dA is a mean over the N rows: A is the same for all rows, so their gradients add up.",
    ),
    (
        "dout @ W.T + du @ A.T",
        "dout @ W.T",
        "The way through A and B is missing in dx: x is used twice in the forward.",
    ),
    (
        "dout @ W.T + du @ A.T",
        "du @ A.T",
        "The way through W is missing in dx: W is frozen, and the gradient passes through it.",
    ),
)
def lora_backward(rng: Rng) -> Cases:
    """The last: B is 0, as before the first step."""
    for i, (N, n_in, n_out, r) in enumerate((*_SIZES, _SIZES[0])):
        shapes = ((N, n_out), (N, n_in), (n_in, n_out), (n_in, r), (r, n_out))
        dout, x, W, A, B = (rng.normal(size=shape) for shape in shapes)
        yield *_narrow(n_in, n_out, dout, x, W, A, 0 * B if i == 3 else B), (2.5, 0.5, 16, 2)[i]


@exercise(
    (
        "grads.dk + dkv[i, 0].swapaxes(0, 1)",
        "grads.dk",
        "dk lacks what the texts sent: the keys' half of this layer's dkv has to be added.",
    ),
    (
        "grads.dv + dkv[i, 1].swapaxes(0, 1)",
        "grads.dv",
        "dv lacks what the texts sent: the values' half of this layer's dkv has to be added.",
    ),
    (
        "grads.dk + dkv[i, 0]",
        "grads.dk + dkv[i, 1]",
        "The keys get what belongs to the values: dkv[i, 0] is the keys' half, dkv[i, 1] the "
        "values'.",
    ),
    (
        ".swapaxes(0, 1)",
        ".reshape(P, NH, hs)",
        "A reshape of dkv mixes the heads with the rows: it keeps the order of the numbers. Swap "
        "the axes.",
    ),
    (
        "dx = dx + ops.layernorm_backward(dm, ln_2)",
        "dx = ops.layernorm_backward(dm, ln_2)",
        "The way around the MLP is missing: the residual stream is added to what the MLP gives.",
    ),
    (
        "dx = dx + ops.layernorm_backward(da, ln_1)",
        "dx = ops.layernorm_backward(da, ln_1)",
        "The way around the attention is missing: the residual stream is added to what it gives.",
    ),
    (
        "in reversed(range(L))",
        "in range(L)",
        "The layers are walked from the bottom up: a backward begins at the top.",
    ),
    (
        "in reversed(range(L))",
        "in [L - 1]",
        "Only the top layer is asked: each layer has a part of dkv.",
    ),
)
def prompt_backward(rng: Rng) -> Cases:
    """Several layers and rows; one layer; one row, which sees only itself."""
    hs, n_head = 3, 2
    for P, n_layer in ((4, 3), (3, 1), (1, 2)):
        cfg = Config(n_layer, n_head, n_head * hs, vocab_size=5, n_positions=8)
        model = GPT2.random(cfg, seed=P, dtype="float64")
        # large weights: the rows of the prompt look at each other in earnest
        weights = {name: a + rng.normal(0, 0.3, a.shape) for name, a in model.weights.items()}
        model = GPT2(cfg, weights, name="the exercise's")
        prompt = PromptTuning({"prompt": rng.normal(size=(P, cfg.n_embd))})
        caches = prompt.prefix(model, reference)[1]
        blocks = [(b.attn.ln_1, b.attn.attention, b.mlp.ln_2, b.mlp.gelu) for b in caches]
        yield rng.normal(size=(n_layer, 2, n_head, P, hs)), dict(weights), blocks, reference
