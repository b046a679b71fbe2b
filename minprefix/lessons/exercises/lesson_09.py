"""Lesson 9's exercises: the inputs on which an answer is graded, and the usual mistakes."""

from minprefix.batch import Batch
from minprefix.conformance.problems import training_problem
from minprefix.lessons.exercise import Cases, Rng, exercise
from minprefix.model import GPT2
from minprefix.ops.contract import Array
from minprefix.optim import AdamW

#: L, NH, P, hs, hidden: no two are equal, one slot, one head
SIZES = ((3, 2, 4, 5, 6), (2, 3, 1, 4, 7), (4, 1, 3, 2, 5))


def _network(rng: Rng, L: int, NH: int, P: int, hs: int, hidden: int) -> dict[str, Array]:
    C, out = NH * hs, 2 * L * NH * hs
    shapes: dict[str, tuple[int, ...]] = {
        "embedding": (P, C),
        "weight_1": (C, hidden),
        "bias_1": (hidden,),
        "weight_2": (hidden, out),
        "bias_2": (out,),
    }
    return {name: rng.normal(0, 0.5, shape) for name, shape in shapes.items()}


@exercise(
    (
        "rows = flat.reshape(len(flat), -1, 2, NH, hs)  # (P, L, 2, NH, hs)\n"
        "    kv = rows.transpose(1, 2, 3, 0, 4)",
        "kv = flat.reshape(-1, 2, NH, len(flat), hs)",
        "Everything is reshaped at once, so the numbers of one slot are spread over many. A "
        "reshape keeps the order in memory: cut each row first, with the slots in front, and then "
        "move the slots with transpose.",
    ),
    (
        "flat.reshape(len(flat), -1, 2, NH, hs)",
        "flat.reshape(len(flat), 2, -1, NH, hs).swapaxes(1, 2)",
        "The keys of all layers are taken first, then all values. In a row each layer's key and "
        "value stand side by side: the axes are (P, L, 2, NH, hs).",
    ),
    (
        "flat.reshape(len(flat), -1, 2, NH, hs)",
        "flat.reshape(len(flat), 2, -1, NH, hs)",
        "The keys of all layers are taken first, then all values. In a row each layer's key and "
        "value stand side by side: the axes are (P, L, 2, NH, hs).",
    ),
    (
        "flat.reshape(len(flat), -1, 2, NH, hs)",
        "flat.reshape(len(flat), -1, 2, hs, NH)",
        "Heads and head size are swapped. The numbers of one head stand side by side, so hs is the "
        "last axis.",
    ),
    (
        "flat.reshape(len(flat), -1, 2, NH, hs)",
        "flat.reshape(len(flat), -1, 2, hs, NH).swapaxes(3, 4)",
        "Heads and head size are swapped. The numbers of one head stand side by side, so hs is the "
        "last axis.",
    ),
    (
        "flat.reshape(len(flat), -1, 2, NH, hs)",
        "flat.reshape(len(flat), -1, NH, 2, hs).swapaxes(2, 3)",
        "Key and value alternate from head to head. A row has all heads of the key first, then all "
        "heads of the value: the axes are (P, L, 2, NH, hs).",
    ),
    (
        "rows.transpose(1, 2, 3, 0, 4)",
        "rows.transpose(1, 2, 0, 3, 4)",
        "The slots stand before the heads. They are next to last: (L, 2, NH, P, hs).",
    ),
    (
        "rows.transpose(1, 2, 3, 0, 4)",
        "rows",
        "The slots are still in front. Move them next to last: transpose(1, 2, 3, 0, 4).",
    ),
)
def unflatten_rows(rng: Rng) -> Cases:
    """Sizes of which no two are equal; one slot; one head."""
    for L, NH, P, hs, _ in SIZES:
        yield rng.normal(size=(P, 2 * L * NH * hs)), NH, hs


@exercise(
    (
        "kv.transpose(3, 0, 1, 2, 4)",
        "kv",
        "kv is reshaped without moving the slots to the front, so each row mixes several slots. "
        "Begin with transpose(3, 0, 1, 2, 4).",
    ),
    (
        "kv.transpose(3, 0, 1, 2, 4)",
        "kv.transpose(3, 1, 0, 2, 4)",
        "The keys of all layers come first, then all values. A row holds key and value of a layer "
        "side by side: the axes are (P, L, 2, NH, hs).",
    ),
    (
        "kv.transpose(3, 0, 1, 2, 4)",
        "kv.transpose(3, 0, 1, 4, 2)",
        "Heads and head size are swapped. The numbers of one head stand side by side, so hs is the "
        "last axis.",
    ),
    (
        "kv.transpose(3, 0, 1, 2, 4)",
        "kv.transpose(3, 2, 0, 1, 4)",
        "The heads stand before the layers. In a row a head's place comes last but one: the axes "
        "are (P, L, 2, NH, hs).",
    ),
)
def flatten_kv(rng: Rng) -> Cases:
    """Sizes of which no two are equal; one slot; one head."""
    for L, NH, P, hs, _ in SIZES:
        yield (rng.normal(size=(L, 2, NH, P, hs)),)


@exercise(
    (
        "return kv, h",
        "return kv, u",
        "u is returned in the place of h. The backward needs h, the tanh of u.",
    ),
    (
        "return kv, h",
        "return kv, flat",
        "flat is returned in the place of h. The backward needs h, the middle of the network.",
    ),
    (' + parameters["bias_1"]', "", "The first bias is missing. u is E W_1 + b_1."),
    (' + parameters["bias_2"]', "", "The second bias is missing. flat is h W_2 + b_2."),
    ("np.tanh(u)", "u", "The tanh is missing. Without it, two linear layers are one."),
    ("np.tanh(u)", "np.maximum(u, 0)", "This is a ReLU. Prefix-tuning uses a tanh."),
    (
        'h @ parameters["weight_2"] + parameters["bias_2"]',
        'np.tanh(h @ parameters["weight_2"] + parameters["bias_2"])',
        "There is a tanh behind the second layer, too. Keys and values may have any size: the last "
        "layer is linear.",
    ),
    (
        "E.shape[1] // NH",
        "h.shape[1] // NH",
        "The head size is made of hidden, the width of the middle. It is C // NH, and C is the "
        "width of the embedding.",
    ),
)
def mlp_kv(rng: Rng) -> Cases:
    """Sizes of which no two are equal; one slot; one head."""
    for L, NH, P, hs, hidden in SIZES:
        yield _network(rng, L, NH, P, hs, hidden), NH


@exercise(
    (
        "C * hidden + hidden",
        "C * hidden",
        "The bias of the first layer is not counted. It has one number for each column: hidden.",
    ),
    (
        "C * hidden + hidden",
        "P * (C * hidden + hidden)",
        "The first layer is counted for each slot. All slots share it: count it once.",
    ),
    (
        "C * hidden + hidden",
        "P * C * hidden + hidden",
        "The first layer's weight is counted for each slot. All slots share it: count it once.",
    ),
    (
        "hidden * 2 * L * C + 2 * L * C",
        "hidden * 2 * L * C",
        "The bias of the second layer is not counted. It has one number for each column: 2 L C.",
    ),
    (
        "hidden * 2 * L * C + 2 * L * C",
        "hidden * L * C + L * C",
        "The second layer gives keys and values, so it has 2 L C columns.",
    ),
    (
        "hidden * 2 * L * C + 2 * L * C",
        "P * (hidden * 2 * L * C + 2 * L * C)",
        "The second layer is counted for each slot. All slots share it: count it once.",
    ),
    (
        "P * C + layer_1",
        "layer_1",
        "The embedding is not counted. It is trained, too: P rows of C numbers.",
    ),
    (
        "seen = P * 2 * L * C",
        "seen = P * L * C",
        "Keys or values are left out: each layer has both, so there are P * 2 * L * C numbers.",
    ),
    (
        "seen = P * 2 * L * C",
        "seen = 2 * L * C",
        "The numbers of one slot are counted. There are P slots.",
    ),
)
def count_numbers(rng: Rng) -> Cases:
    """Sizes of which no two are equal; P is not 2L."""
    yield from ((7, 30, 13, 4), (3, 5, 11, 2), (5, 12, 8, 3))


@exercise(
    (
        "flatten_kv(dkv)",
        "dkv.reshape(dkv.shape[3], -1)",
        "dkv is reshaped without moving the slots to the front, so each row mixes the gradients of "
        "several slots. Use your flatten_kv.",
    ),
    (
        "dh * (1 - h * h)",
        "dh",
        "The derivative of tanh is missing: all that lies below the tanh needs du, which is dh "
        "times 1 - h * h.",
    ),
    (
        "dh * (1 - h * h)",
        "dh * (1 - h)",
        "The derivative of tanh is 1 - tanh^2, and here it is 1 - tanh. Square h.",
    ),
    (
        "dh * (1 - h * h)",
        "dh * h * (1 - h)",
        "This is the derivative of the sigmoid. That of tanh is 1 - h * h.",
    ),
    (
        "dh * (1 - h * h)",
        'dh * (1 - __import__("numpy").tanh(h) ** 2)',
        "The tanh is taken twice: h is tanh(u) already. Its derivative is 1 - h * h.",
    ),
    (
        "dflat.sum(axis=0)",
        "dflat",
        "db_2 still has a row for each slot. All slots use the same bias: take the sum over the "
        "slots.",
    ),
    (
        "du.sum(axis=0)",
        "du",
        "db_1 still has a row for each slot. All slots use the same bias: take the sum over the "
        "slots.",
    ),
    (
        "dflat.sum(axis=0)",
        "dflat.mean(axis=0)",
        "db_2 is a mean. Each slot has used the bias, and the ways add up: take the sum over the "
        "slots.",
    ),
    (
        "du.sum(axis=0)",
        "du.mean(axis=0)",
        "db_1 is a mean. Each slot has used the bias, and the ways add up: take the sum over the "
        "slots.",
    ),
    (
        'du @ parameters["weight_1"].T',
        '0 * parameters["embedding"]',
        "dE is 0, as if the embedding were an input. It is trained, too: du times the transpose of "
        "W_1.",
    ),
)
def mlp_kv_backward(rng: Rng) -> Cases:
    """Sizes of which no two are equal; one slot; one head. h belongs to no forward, so that it has
    to be used as it is given."""
    for L, NH, P, hs, hidden in SIZES:
        parameters = _network(rng, L, NH, P, hs, hidden)
        yield rng.normal(size=(L, 2, NH, P, hs)), parameters, rng.uniform(-0.9, 0.9, (P, hidden))


_LOOP = """    for batch, lr in zip(batches, rates, strict=True):
        kv, h = mlp_kv(parameters, NH)
"""


@exercise(
    (
        "left = mlp_kv(parameters, NH)[0]",
        "left = kv",
        "kv is one step old: it was computed before the last step of AdamW. Compute it once more "
        "at the end.",
    ),
    (
        _LOOP,
        "    kv, h = mlp_kv(parameters, NH)\n"
        "    for batch, lr in zip(batches, rates, strict=True):\n",
        "The keys and values are computed once, before the loop, so the model never sees what is "
        "trained. Compute kv and h anew in each step.",
    ),
    (
        "adam.step(parameters, grads, lr)",
        "type(adam)().step(parameters, grads, lr)",
        "Each step has a new AdamW, so nothing is remembered. Use the one that is given.",
    ),
    (
        "adam.step(parameters, grads, lr)",
        "adam.step(parameters, grads, rates[0])",
        "Every step has the first rate. Take the rate of the step.",
    ),
    (
        "loss_and_grad(model, Prefix(kv), batch)",
        'loss_and_grad(model, Prefix(kv), batch, reduction="sum")',
        "The loss is a sum over the targets. The mean is asked for, which is what loss_and_grad "
        "gives by itself.",
    ),
    (
        "        adam.step(parameters, grads, lr)\n",
        "        for name, g in grads.items():\n            parameters[name] -= lr * g\n",
        "This is plain gradient descent. Let adam take the step: adam.step(parameters, grads, lr).",
    ),
    (
        "losses, NH = [], model.config.n_head",
        "losses, NH = [], model.config.n_head\n"
        "    parameters = {name: a.copy() for name, a in parameters.items()}",
        "A copy was trained, and the arrays that you were given have not moved. Train these, in "
        "place: adam.step writes into them.",
    ),
    (
        "losses.append(loss)",
        "losses.append(loss_and_grad(model, Prefix(mlp_kv(parameters, NH)[0]), batch)[0])",
        "The losses are those after each step. Store the loss that the gradient was computed with.",
    ),
)
def train_network(rng: Rng) -> Cases:
    """Three steps and one, of a small model in float64."""
    for n_steps in (3, 1):
        problem = training_problem(("mlp",), n_steps, seed=int(rng.integers(100)), lr=0.1)
        model = GPT2(problem.config, dict(problem.weights))
        parameters = {name: a.copy() for name, a in problem.parameters[0].items()}
        batches = [Batch.pack(part.sequences, part.loss_from) for (part,) in problem.steps]
        yield model, parameters, batches, [0.1 / (s + 1) for s in range(n_steps)], AdamW()


@exercise(
    (
        "h @ h[j] + 1",
        "h @ h[j]",
        "The bias is left out. b_2 moves, too, and moves all slots alike: add 1 to each product.",
    ),
    (
        "overlap / overlap[j]",
        "overlap",
        "The moves are not divided by that of slot j. Asked for are multiples of it: overlap / "
        "overlap[j].",
    ),
    (
        "overlap / overlap[j]",
        "overlap / overlap.sum()",
        "The moves are divided by their sum. Divide them by the move of slot j, overlap[j].",
    ),
    (
        "overlap / overlap[j]",
        "overlap / overlap[0]",
        "The moves are divided by that of slot 0. Divide them by that of slot j, overlap[j].",
    ),
    (
        "h @ h[j] + 1",
        "h @ h[j] / (h * h).sum(axis=1) ** 0.5",
        "These are angles between rows of h. How far a slot moves also depends on the length of "
        "its row, and on the bias: h @ h[j] + 1.",
    ),
)
def carried_along(rng: Rng) -> Cases:
    """Several slots, of which another one has the gradient each time."""
    for P, hidden, j in ((4, 6, 2), (3, 5, 0), (2, 3, 1)):
        yield rng.uniform(-0.9, 0.9, (P, hidden)), j


@exercise(
    (
        'flatten_kv(parameters["kv"])',
        'parameters["kv"].reshape(parameters["kv"].shape[3], -1)',
        "kv is reshaped without moving the slots to the front, so each row mixes several slots. "
        "Use your flatten_kv.",
    ),
    (
        'np.tanh(parameters["embedding"] @ parameters["weight_1"] + parameters["bias_1"])',
        'parameters["embedding"] @ parameters["weight_1"] + parameters["bias_1"]',
        "The tanh is missing between the layers.",
    ),
    (' + parameters["bias_2"]', "", "The second bias is missing. flat is h W_2 + b_2."),
    (
        'return h @ parameters["weight_2"] + parameters["bias_2"]',
        'return parameters["embedding"]',
        "The embedding is returned. It is the network's input, and the model sees its "
        "output: flat.",
    ),
)
def folded_rows(rng: Rng) -> Cases:
    """Both kinds of prefix, in several sizes."""
    for L, NH, P, hs, hidden in SIZES:
        yield (_network(rng, L, NH, P, hs, hidden),)
        yield ({"kv": rng.normal(size=(L, 2, NH, P, hs))},)
