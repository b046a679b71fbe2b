"""Lesson 16's exercises: the inputs on which an answer is graded, and the usual mistakes."""

from minprefix.gpt2 import Config
from minprefix.lessons.exercise import Cases, Lazy, Rng, exercise
from minprefix.lessons.exercises.watched import by_formula, watched
from minprefix.methods import PromptTuning
from minprefix.model import GPT2
from minprefix.ops import reference
from minprefix.ops.contract import Array


@exercise
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


@exercise
def adapter(rng: Rng) -> Cases:
    for _ in range(2):
        yield *_of_adapter(rng), reference


@exercise
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


@exercise
def lora(rng: Rng) -> Cases:
    for (N, n_in, n_out, r), s in zip(_SIZES, (2.5, 0.5, 16.0), strict=True):
        shapes = ((N, n_in), (n_in, n_out), (n_out,), (n_in, r), (r, n_out))
        x, W, b, A, B = (rng.normal(size=shape) for shape in shapes)
        yield *_narrow(n_in, n_out, x, W, b, A, B), s


@exercise
def merged_weight(rng: Rng) -> Cases:
    for (_, n_in, n_out, r), s in zip(_SIZES, (2.5, 0.5, 16.0), strict=True):
        shapes = ((n_in, n_out), (n_in, r), (r, n_out))
        W, A, B = (rng.normal(size=shape) for shape in shapes)
        yield W, A, B, s


@exercise
def lora_backward(rng: Rng) -> Cases:
    """The last: B is 0, as before the first step."""
    for i, (N, n_in, n_out, r) in enumerate((*_SIZES, _SIZES[0])):
        shapes = ((N, n_out), (N, n_in), (n_in, n_out), (n_in, r), (r, n_out))
        dout, x, W, A, B = (rng.normal(size=shape) for shape in shapes)
        yield *_narrow(n_in, n_out, dout, x, W, A, 0 * B if i == 3 else B), (2.5, 0.5, 16, 2)[i]


@exercise
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
