"""Checks of a whole model that need no oracle: two laws, the prefix gradient as the derivative of
its own loss, and that nothing is left over from a call."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from minprefix.conformance.check import Check, Finding, Grade
from minprefix.conformance.implementation import Implementation
from minprefix.conformance.problems import TOLERANCE, model_case
from minprefix.conformance.whole import whole
from minprefix.ops.contract import Array


def _law(
    grade: Grade, tensor: str, law: str, off: Array, scale: float, exact: bool = False
) -> None:
    error = float(np.abs(off).max(initial=0.0)) / max(scale, 1e-300)
    sentence = f"a law does not hold for {tensor}: {law}, and it is off by {error:.2g}"
    finding = Finding("run_model", tensor, "law", sentence, error, TOLERANCE["float64"])
    grade.expect(f"{tensor}: {law}", finding, exact)


def _numbers(found: Mapping[str, Any], implementation: Implementation) -> dict[str, Array]:
    return {n: np.array(implementation.asnumpy(a, n), dtype=np.float64) for n, a in found.items()}


def _batch(implementation: Implementation, grade: Grade) -> None:
    problem = replace(model_case("own-prefixes"), reduction="sum")
    run = whole(implementation, "run_model")
    together = _numbers(run(problem), implementation)
    total: dict[str, Array] = {}
    for b in range(len(problem.sequences)):
        one = replace(
            problem,
            sequences=[problem.sequences[b]],
            loss_from=[problem.loss_from[b]],
            prefix_of=[problem.prefix_of[b]],
        )
        single = _numbers(run(one), implementation)
        for name in together:
            if name == "loss" or name.startswith("prefix."):
                total[name] = total.get(name, np.zeros(())) + single[name]
    law = "a batch (summed) is the sum of its sequences"
    for name, a in total.items():
        _law(grade, name, law, together[name] - a, float(np.abs(a).max()))


def _permutation(implementation: Implementation, grade: Grade) -> None:
    problem, order = model_case("shared-prefix"), np.array([2, 0, 3, 1])
    moved = replace(problem, prefixes=[kv[:, :, :, order] for kv in problem.prefixes])
    run = whole(implementation, "run_model")
    a, b = (_numbers(run(p), implementation) for p in (problem, moved))
    law = "permuting the slots permutes their gradients and changes nothing else"
    _law(grade, "loss", law, a["loss"] - b["loss"], float(np.abs(a["loss"])))
    for name in ("prefix.0.dk", "prefix.0.dv"):
        off = b[name] - a[name][:, :, order]
        _law(grade, name, law, off, float(np.abs(a[name]).max()))


def _derivative(implementation: Implementation, grade: Grade) -> None:
    problem, rng = model_case("own-prefixes"), np.random.default_rng(5)
    layers = range(problem.config.n_layer)
    if implementation.in_a_hurry:  # the gradient of the lowest has come through all others
        layers = layers[:1]
    run = whole(implementation, "run_model")
    found = _numbers(run(problem), implementation)
    for j, kv in enumerate(problem.prefixes):
        for which, name in enumerate((f"prefix.{j}.dk", f"prefix.{j}.dv")):
            for layer in layers:
                direction = np.zeros_like(kv)
                direction[layer, which] = rng.normal(0, 1, kv.shape[2:])
                losses = []
                for sign in (1, -1):
                    prefixes = list(problem.prefixes)
                    prefixes[j] = kv + sign * 1e-5 * direction
                    moved = run(replace(problem, prefixes=prefixes))
                    losses.append(float(_numbers({"loss": moved["loss"]}, implementation)["loss"]))
                numeric = (losses[0] - losses[1]) / 2e-5
                analytic = float((found[name][layer] * direction[layer, which]).sum())
                error = abs(numeric - analytic) / max(abs(numeric), abs(analytic), 1e-300)
                said = (
                    f"{name} of layer {layer} says that the loss changes by {analytic:.6g} along "
                    f"a random direction, and it changes by {numeric:.6g}"
                )
                grade.expect(
                    f"{name} of layer {layer} along a direction",
                    Finding("run_model", name, "derivative", said, error, 1e-5),
                )


def _again(implementation: Implementation, grade: Grade) -> None:
    problem, other = model_case("own-prefixes"), model_case("shared-prefix")
    before = [kv.copy() for kv in problem.prefixes]
    weights = {name: a.copy() for name, a in problem.weights.items()}
    run = whole(implementation, "run_model")
    first = _numbers(run(problem), implementation)
    run(other)
    second = _numbers(run(problem), implementation)
    law = "the same problem gives the same answer again"
    for name in first:
        if name in second and first[name].shape == second[name].shape:
            scale = float(np.abs(first[name]).max(initial=0.0)) or 1.0
            _law(grade, name, law, first[name] - second[name], scale)
    for j, (a, b) in enumerate(zip(before, problem.prefixes, strict=True)):
        kept = "the prefix is kept as it was given"
        _law(grade, f"prefix.{j}", kept, a - b, float(np.abs(a).max()), exact=True)
    for name, a in weights.items():
        kept = "a frozen weight is kept as it was given"
        off = a - problem.weights[name]
        _law(grade, name, kept, off, float(np.abs(a).max()), exact=True)


def law_checks() -> Iterator[Check]:
    for name, why, run in (
        ("law-batch", "law 8: the gradient of a batch is the sum of its sequences'", _batch),
        ("law-permutation", "law 5: permuting the slots permutes their gradients", _permutation),
        ("derivative", "the prefix gradient is the derivative of this very loss", _derivative),
        ("again", "nothing is left over from a call, and nothing it was given is changed", _again),
    ):
        yield Check(f"model/{name}", "model", "model", why, run)
