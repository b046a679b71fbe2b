"""The checks of the level `methods`: each rival of prefix-tuning on the questions of
`method_problems`, its gradient as the derivative of its own loss, and the laws that tie it to what
it adapts."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

import numpy as np

from minprefix.conformance.calls import again, numbers
from minprefix.conformance.check import Finding, Grade
from minprefix.conformance.contract import MethodProblem, ModelProblem
from minprefix.conformance.implementation import Implementation, NotOffered
from minprefix.conformance.method_problems import METHOD_CASES, method_case, method_question
from minprefix.conformance.model_checks import AGAIN, grade_question
from minprefix.conformance.problems import TOLERANCE, answer
from minprefix.conformance.rounding import step
from minprefix.conformance.whole import whole
from minprefix.methods import METHODS
from minprefix.ops.contract import Array

_Check = Callable[[Implementation, Grade], None]


def _ask(name: str, implementation: Implementation, grade: Grade) -> None:
    grade_question(method_question(name), implementation, grade)


def _found(implementation: Implementation, problem: MethodProblem) -> dict[str, Array]:
    return numbers(whole(implementation, "run_method")(problem), implementation)


def _law(grade: Grade, tensor: str, law: str, off: Array, terms: Array) -> None:
    grade.law("run_method", tensor, law, off, terms, TOLERANCE["float64"])


def _with(problem: MethodProblem, changed: Mapping[str, Array]) -> MethodProblem:
    return replace(problem, parameters={**problem.parameters, **changed})


def _fine_tuned(problem: MethodProblem, weights: Mapping[str, Array]) -> Mapping[str, Array]:
    """The right answer of full fine-tuning on the same sequences, from these weights."""
    full = replace(problem, method="full", options={}, parameters={}, weights=weights)
    return answer("run_method", full)


# ---- the gradient is the derivative of the loss -------------------------------------------------


def _derivative(name: str, implementation: Implementation, grade: Grade) -> None:
    problem, rng = method_case(name), np.random.default_rng(5)
    h, tolerance = step(implementation, 1e-5)
    found = _found(implementation, problem)
    # fine-tuning moves the weights, the others what they add
    start = problem.parameters or problem.weights

    def loss(moved: Mapping[str, Array]) -> float:
        if problem.parameters:
            given = _with(problem, moved)
        else:
            given = replace(problem, weights={**problem.weights, **moved})
        return float(_found(implementation, given)["loss"])

    gradients = [each for each in found if each[:1] == "d" and each[1:] in start]
    for done, tensor in enumerate(gradients):
        if done and implementation.clock.hurries():
            grade.not_graded = f"{len(gradients) - done} gradients"
            return
        parameter = start[tensor[1:]]
        direction = rng.normal(0, 1, parameter.shape)
        up, down = (loss({tensor[1:]: parameter + s * h * direction}) for s in (1, -1))
        numeric, analytic = (up - down) / (2 * h), float((found[tensor] * direction).sum())
        error = abs(numeric - analytic) / max(abs(numeric), abs(analytic), 1e-4)
        said = (
            f"{tensor} says that the loss changes by {analytic:.6g} along a random direction, and "
            f"it changes by {numeric:.6g}"
        )
        grade.expect(
            f"{tensor} along a direction",
            Finding("run_method", tensor, "derivative", said, error, tolerance),
        )


# ---- laws ---------------------------------------------------------------------------------------


def _zero(kind: str, zeros: str, frozen: tuple[str, ...], name: str) -> _Check:
    """Where the parameters that end in `zeros` are 0, a method is its base, and the `frozen` ones
    have no gradient."""

    def check(implementation: Implementation, grade: Grade) -> None:
        p = method_case(name)
        p = _with(
            p, {n: 0 * a for n, a in p.parameters.items() if n.endswith(tuple(zeros.split()))}
        )
        found, base = _found(implementation, p), _fine_tuned(p, p.weights)
        law = f"{kind} is the base"
        _law(grade, "loss", law, found["loss"] - base["loss"], base["loss"])
        for n in p.parameters:
            if n.endswith(frozen):
                none = f"with {kind} nothing depends on it: its gradient is 0"
                _law(grade, f"d{n}", none, found[f"d{n}"], np.ones(()))

    return check


def _identity(implementation: Implementation, grade: Grade) -> None:
    """With A = I and alpha = r, W + B is a weight like any other."""
    p, layer = method_case("lora/usual"), "h.1.attn.c_attn"
    C, rng = p.config.n_embd, np.random.default_rng(6)
    B = rng.normal(0, 0.3, (C, 3 * C))
    own = {f"{layer}.lora_A": np.eye(C), f"{layer}.lora_B": B}
    options = {"rank": C, "alpha": float(C), "targets": ["attn.c_attn"]}
    found = _found(implementation, replace(p, options=options, parameters=own))
    name = f"{layer}.weight"
    full = _fine_tuned(p, {**p.weights, name: p.weights[name] + B})
    law = "with A = I and alpha = r it is full fine-tuning's"
    _law(grade, "loss", law, found["loss"] - full["loss"], full["loss"])
    _law(
        grade,
        f"d{layer}.lora_B",
        law,
        found[f"d{layer}.lora_B"] - full[f"d{name}"],
        full[f"d{name}"],
    )


def _merged(implementation: Implementation, grade: Grade) -> None:
    p, weights = method_case("lora/all-linear"), dict(method_case("lora/all-linear").weights)
    scale = p.options["alpha"] / p.options["rank"]
    for name, A in p.parameters.items():
        layer = name.removesuffix(".lora_A")
        if layer != name:
            weights[f"{layer}.weight"] = (
                weights[f"{layer}.weight"] + scale * A @ p.parameters[f"{layer}.lora_B"]
            )
    found, full = _found(implementation, p), _fine_tuned(p, weights)
    law = "the low-rank path is W + (alpha / r) A B"
    for tensor in ("loss", "logits"):
        if tensor in found:
            _law(grade, tensor, law, found[tensor] - full[tensor], full[tensor])


def _tokens(implementation: Implementation, grade: Grade) -> None:
    p, ids = method_case("prompt-tuning/usual"), [7, 2, 7]
    found = _found(implementation, _with(p, {"prompt": p.weights["wte.weight"][ids]}))
    longer = replace(
        p,
        sequences=[[*ids, *s] for s in p.sequences],
        loss_from=[len(ids) + start for start in p.loss_from],
    )
    plain = _fine_tuned(longer, p.weights)
    law = "a prompt of real embeddings is prompting with their tokens"
    _law(grade, "loss", law, found["loss"] - plain["loss"], plain["loss"])


def _folded(implementation: Implementation, grade: Grade) -> None:
    p = method_case("p-tuning/usual")
    w = p.parameters
    h = w["embedding"]
    for i in (1, 2):
        h = np.maximum(h @ w[f"weight_{i}"] + w[f"bias_{i}"], 0)
    prompt = h @ w["weight_3"] + w["bias_3"]
    bare = replace(p, method="prompt-tuning", options={"prompt_length": len(prompt)})
    right = answer("run_method", replace(bare, parameters={"prompt": prompt}))
    found = _found(implementation, p)
    folded = "folded away, the encoder leaves its prompt"
    _law(grade, "loss", folded, found["loss"] - right["loss"], right["loss"])
    summed = right["dprompt"].sum(axis=0)
    law = "each row of the prompt has the last bias in it: its gradient is their sum"
    _law(grade, "dbias_3", law, found["dbias_3"] - summed, right["dprompt"])


def _batch(name: str, implementation: Implementation, grade: Grade) -> None:
    p = replace(method_case(name), reduction="sum")
    total: dict[str, Array] = {}
    for ids, start in zip(p.sequences, p.loss_from, strict=True):
        one = _found(implementation, replace(p, sequences=[ids], loss_from=[start]))
        for tensor, a in one.items():
            if tensor != "logits":
                total[tensor] = total.get(tensor, np.zeros(())) + a
    together = _found(implementation, p)
    for tensor, a in total.items():
        law = "a batch (summed) is the sum of its sequences"
        _law(grade, tensor, law, together[tensor] - a, a)


def _one_token(implementation: Implementation, grade: Grade) -> None:
    p = replace(method_case("infix/usual"), loss_from=[1, 1, 1])
    kv = p.parameters["kv"]
    as_prefix = ModelProblem(
        p.config, p.weights, p.sequences, p.loss_from, [0, 0, 0], [kv], [kv.shape[3]]
    )
    found, right = _found(implementation, p), answer("run_model", as_prefix)
    law = "before a source of one token an infix is a prefix"
    _law(grade, "loss", law, found["loss"] - right["loss"], right["loss"])
    dkv = np.stack([right["prefix.0.dk"], right["prefix.0.dv"]], axis=1)
    _law(grade, "dkv", law, found["dkv"] - dkv, dkv)


def _source(implementation: Implementation, grade: Grade) -> None:
    p = method_case("infix/usual")
    moved = _with(p, {"kv": p.parameters["kv"][..., ::-1, :] + 1.0})
    a, b = _found(implementation, p), _found(implementation, moved)
    if "logits" not in a:
        raise NotOffered("logits of run_method")
    starts = np.cumsum([0, *map(len, p.sequences)])
    each = zip(starts, p.loss_from, strict=False)
    rows = [row for at, n in each for row in range(at, at + n - 1)]
    law = "the source without its last token does not see the infix"
    _law(grade, "logits", law, (a["logits"] - b["logits"])[rows], a["logits"])


_SLOPE = "the gradient of each parameter is the derivative of this very loss"

_CHECKS: dict[str, tuple[str, _Check]] = {
    **{name: (why, partial(_ask, name)) for name, (why, _) in METHOD_CASES.items()},
    "full/derivative": (_SLOPE, partial(_derivative, "full/tied")),
    "bitfit/derivative": (_SLOPE, partial(_derivative, "bitfit/usual")),
    "prompt-tuning/derivative": (_SLOPE, partial(_derivative, "prompt-tuning/usual")),
    "p-tuning/derivative": (_SLOPE, partial(_derivative, "p-tuning/usual")),
    "infix/derivative": (_SLOPE, partial(_derivative, "infix/usual")),
    "lora/derivative": (_SLOPE, partial(_derivative, "lora/usual")),
    "adapters/derivative": (_SLOPE, partial(_derivative, "adapters/houlsby")),
    "full/again": (AGAIN, partial(again, "run_method", "full/tied")),
    "lora/again": (AGAIN, partial(again, "run_method", "lora/usual")),
    "prompt-tuning/law-tokens": (
        "a prompt of real embeddings is prompting with their tokens",
        _tokens,
    ),
    "prompt-tuning/law-batch": (
        "the gradient of a batch is the sum of its sequences'",
        partial(_batch, "prompt-tuning/usual"),
    ),
    "p-tuning/law-folded": ("the encoder folds away; its last bias is in every row", _folded),
    "infix/law-one-token": ("before a source of one token an infix is a prefix", _one_token),
    "infix/law-source": ("an infix does not change how the source is read", _source),
    "infix/law-batch": (
        "the gradient of a batch is the sum of its sequences'",
        partial(_batch, "infix/usual"),
    ),
    "lora/law-zero": (
        "LoRA starts at the base: with B = 0 the loss is its, and dA is 0",
        _zero("B = 0", "lora_B", ("lora_A",), "lora/all-linear"),
    ),
    "lora/law-identity": (
        "LoRA of full rank is full fine-tuning: with A = I and alpha = r, dB is dW",
        _identity,
    ),
    "lora/law-merged": ("the low-rank path gives what the merged weight gives", _merged),
    "adapters/law-zero": (
        "with an up of 0 an adapter is the base, and its down has no gradient",
        _zero("an up of 0", ".up .up_bias", (".down", ".down_bias"), "adapters/houlsby"),
    ),
}

#: check -> why, and what it asks; method by method, its cases first
METHOD_CHECKS = {
    id_: check
    for method in METHODS
    for id_, check in _CHECKS.items()
    if id_.startswith(f"{method}/")
}
