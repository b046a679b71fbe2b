"""The mistakes that people make in a whole model, in decoding and in training, as `mistakes.txt`
has them: another problem, other shares of the sequences, other functions for the model's
operations, or another text of the optimizer. Each leads to an answer."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from minprefix.conformance.bug import Bug
from minprefix.conformance.contract import (
    ARGUMENTS,
    FUNCTIONS,
    MicroBatch,
    ModelProblem,
    TrainingProblem,
)
from minprefix.conformance.problems import RIGHT
from minprefix.conformance.reasons.wrong import compiled, formulas, table
from minprefix.ops import reference
from minprefix.ops.contract import Array, AttentionGrads

TABLE = Path(__file__).with_name("mistakes.txt")

Answer = Mapping[str, Array]
Change = Callable[[Any], Any]  # from a problem to another


# ---- other problems


def config(**other: Any) -> Change:
    return lambda p: replace(p, config=replace(p.config, **other))


def prefixes(new: Callable[[Array], Array]) -> Change:
    return lambda p: replace(p, prefixes=[new(kv) for kv in p.prefixes])


def offsets(new: Callable[[int, int], int]) -> Change:
    """`new`: of an offset and the prefix's length."""

    def change(p: ModelProblem) -> ModelProblem:
        pairs = zip(p.position_offsets, p.prefixes, strict=True)
        return replace(p, position_offsets=[new(o, kv.shape[3]) for o, kv in pairs])

    return change


def starts(new: Callable[[int, int], int]) -> Change:
    """`new`: of the first token that is predicted, and the length."""

    def change(p: ModelProblem) -> ModelProblem:
        pairs = zip(p.loss_from, p.sequences, strict=True)
        return replace(p, loss_from=[min(new(a, len(ids)), len(ids)) for a, ids in pairs])

    return change


def weights(new: Callable[[str, Array, Mapping[str, Array]], Array]) -> Change:
    return lambda p: replace(
        p, weights={name: new(name, a, p.weights) for name, a in p.weights.items()}
    )


def without(ending: str, value: float = 0.0) -> Change:
    """Weights whose names end so, at the value that they are often started with."""
    return weights(lambda name, a, _: np.full_like(a, value) if name.endswith(ending) else a)


def copied(ending: str, other: str) -> Change:
    """The weights of one layer in another's place."""
    return weights(
        lambda name, a, every: (
            every[name.replace(ending, other)] if ending in name and name.startswith("h.") else a
        )
    )


def of_block(which: Callable[[int, int], int]) -> Change:
    """Each block with another one's weights. `which`: of its number, and how many there are."""

    def change(p: Any) -> Any:
        def new(name: str, a: Array, every: Mapping[str, Array]) -> Array:
            if not name.startswith("h."):
                return a
            _, i, rest = name.split(".", 2)
            return every[f"h.{which(int(i), p.config.n_layer)}.{rest}"]

        return weights(new)(p)

    return change


def tied(p: Any) -> Any:
    weights = {name: a for name, a in p.weights.items() if name != "lm_head.weight"}
    if len(weights) == len(p.weights):
        raise ValueError("tied already")
    return replace(p, weights=weights, config=replace(p.config, tie_word_embeddings=True))


def by_head(a: Array, heads: int) -> Array:
    """The columns in the order in which a model reads them that takes (NH, 3, hs) for
    (3, NH, hs)."""
    hs = a.shape[-1] // 3 // heads
    return a.reshape(*a.shape[:-1], heads, 3, hs).swapaxes(-2, -3).reshape(a.shape)


# ---- other sums over the sequences


def alone(p: ModelProblem, b: int) -> ModelProblem:
    return replace(
        p, sequences=[p.sequences[b]], loss_from=[p.loss_from[b]], prefix_of=[p.prefix_of[b]]
    )


#: tensors that are sums over the sequences
ADDED = ("loss", "prefix.", "dh.", "dwte.", "dwpe.", "dln_f.", "dlm_head.")


def shared(
    share: Callable[[ModelProblem, int], float], only: str = ""
) -> Callable[[ModelProblem], Answer]:
    """The sums of the sequences, each times its share. `only`: of tensors that begin so."""

    def answer(p: ModelProblem) -> Answer:
        total: dict[str, Any] = dict(RIGHT["run_model"](p))
        for b in range(len(p.sequences)):
            each = RIGHT["run_model"](replace(alone(p, b), reduction="sum"))
            for name in (n for n in each if n.startswith(only or ADDED)):
                total[name] = (total[name] if b else 0) + share(p, b) * each[name]
        return {name: np.asarray(a) for name, a in total.items()}

    return answer


def targets(p: ModelProblem) -> list[int]:
    return [len(ids) - a for ids, a in zip(p.sequences, p.loss_from, strict=True)]


def uses(p: ModelProblem, b: int) -> int:
    return sum(j == p.prefix_of[b] for j in p.prefix_of)


def usual(p: ModelProblem) -> float:
    return 1 / sum(targets(p)) if p.reduction == "mean" else 1.0


# ---- other operations


def cut(**names: bool) -> Callable[..., Any]:
    """attention_backward without some of its gradients, as a detached tensor leaves them."""

    def attention_backward(dz: Array, cache: Any) -> AttentionGrads:
        grads = reference.attention_backward(dz, cache)
        return grads._replace(**{name: 0 * getattr(grads, name) for name in names})

    return attention_backward


def over(function: str, other: Callable[..., Any]) -> Callable[[Any], Answer]:
    """The answer over the reference's ops, of which one is another function."""

    def answer(p: ModelProblem) -> Answer:
        from minprefix.conformance.house import House  # not at the top: it needs more than NumPy

        ops: Any = SimpleNamespace(**{name: getattr(reference, name) for name in ARGUMENTS})
        setattr(ops, function, other)
        return House(ops).run_model(p)

    return answer


# ---- training


def training(**other: Any) -> Callable[[TrainingProblem], TrainingProblem]:
    return lambda p: replace(p, **other)


def joined(p: TrainingProblem) -> TrainingProblem:
    """Each micro-batch a step of its own."""
    return replace(p, steps=[[m] for step in p.steps for m in step])


def each_micro_batch(new: Callable[[MicroBatch], MicroBatch]) -> Change:
    return lambda p: replace(p, steps=[[new(m) for m in step] for step in p.steps])


# ---- all of them


@cache
def section(name: str) -> list[tuple[str, Any]]:
    """The mistakes of a section of the table, and what stands there: a function of a problem, or
    the changes of the optimizer's text."""
    rows = table(TABLE)[name]
    if name == "optim":
        return [(row.said, row.change) for row in rows]
    return [(row.said, eval(row.change[0][0], globals())) for row in rows]


def mistakes(
    function: str, tensor: str, op: str = ""
) -> Iterator[tuple[str, Callable[[Any], Answer]]]:
    """What may be wrong where `tensor` is the first wrong one of the answer of `function`, and `op`
    the operation that gives it, if that is known: the mistake, and the answer that it leads to."""
    if function == "run_training":
        for said, change in section("training"):
            yield said, partial(_changed, change, function)
        for said, texts in section("optim"):
            yield said, partial(_trained, said, texts)
    if function in ("run_training", "run_method"):
        return
    backward = tensor.startswith(("prefix.", "d")) or tensor.rpartition(".")[2].startswith("d")
    for name in () if backward else SECTIONS.get(op, ("prefix", "loss", "model")):
        for said, change in section(name):
            yield said, partial(_changed, change, function)
    if function == "run_decoding":
        return
    yield from section("sums") if op in ("", "cross_entropy") else ()
    yield from section("cut") if backward else ()
    for each in [op] if op in FUNCTIONS else OPS:
        for name in FUNCTIONS[each]:
            for wrong in formulas()[name] if (name != each) == backward else ():
                if not wrong.sized:
                    yield f"in every {each}, {wrong.said}", over(name, compiled(wrong))


#: operation -> the sections that may change what it gives, if what enters it is right
SECTIONS = {
    "embed": ("prefix", "model"),
    "attention": ("prefix",),
    "layernorm": ("model",),
    "linear": ("model",),
    "gelu": (),
    "cross_entropy": ("loss",),
    "add": (),
}

#: in the order in which they are suspected
OPS = ("attention", "layernorm", "gelu", "linear", "cross_entropy", "embed")


def _changed(change: Change, function: str, problem: Any) -> Answer:
    return RIGHT[function](change(problem))


def _trained(said: str, texts: tuple[tuple[str, str], ...], problem: TrainingProblem) -> Answer:
    from minprefix.conformance.zoo import plant  # not at the top: it imports all modules

    bug = Bug(said, "training", "optim", texts, ("training", ""), "", "")
    functions: Any = plant(bug).functions
    answer: Answer = functions.run_training(problem)
    return answer
