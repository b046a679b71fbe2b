"""The checks of the levels above the ops: a whole model, decoding and training on the questions of
`problems`; and checks of a model that need no oracle: two laws, the prefix gradient as the
derivative of its own loss, and that nothing is left over from a call."""

import contextlib
from collections.abc import Callable, Collection, Mapping
from copy import deepcopy
from dataclasses import fields, replace
from functools import partial
from typing import Any

import numpy as np

from minprefix.conformance.calls import (
    again,
    nondeterministic,
    note_changes,
    numbers,
    sharing,
    unlike,
)
from minprefix.conformance.cases import wide
from minprefix.conformance.check import Finding, Grade
from minprefix.conformance.contract import OPTIONAL
from minprefix.conformance.diagnosis import relative_error
from minprefix.conformance.implementation import Broken, Implementation, NotOffered
from minprefix.conformance.model_problems import model_case
from minprefix.conformance.problems import (
    ARRAYS,
    ASKED,
    CLIP_EPS,
    QUESTIONS,
    RIGHT,
    TOLERANCE,
    Question,
    answer,
    expected_model,
    model_question,
)
from minprefix.conformance.reasons.whole import reasons
from minprefix.conformance.rounding import noise, step
from minprefix.conformance.whole import whole
from minprefix.ops.contract import Array

NO_WEIGHTS = "the gradients of the weights"
AGAIN = "nothing is left over from a call, and neither what it was given nor what it gave changes"


def grade_question(question: Question, implementation: Implementation, grade: Grade) -> None:
    """Every tensor of the answer, compared once."""
    question = as_given(question, implementation)
    function, expected = question.function, question.expected
    paste, before = _reproducer(question, implementation), deepcopy(question.problem)
    run = whole(implementation, function)
    try:
        found = run(question.problem)
        if not isinstance(found, Mapping):
            said = f"{function} gave a {type(found).__name__}, expected tensors by name"
            raise Broken("missing", said)
    except NotOffered:
        raise
    except Broken as error:
        grade.broken(function, error, paste)
        return
    except Exception as error:  # the house's own code, fed by wrong ops
        said = f"{function} over these ops raised {type(error).__name__}: {error}"
        grade.broken(function, Broken("exception", said[:300]), paste)
        return
    note_changes(grade, function, before, question.problem, paste)
    if getattr(question.problem, "clip", None) is not None:
        question = as_clipped(question, found, implementation, grade)
        expected = question.expected
    for name in sorted(set(found) - set(question.axes)):
        said = f"{name} is no tensor of {function}: the contract names its tensors"
        grade.absent(function, name, said, paste)
    given = [name for name in question.axes if name in found]
    if getattr(question.problem, "need", "") == "all" and not any(map(_of_weights, given)):
        grade.not_implemented.append(NO_WEIGHTS)
    if trusted := getattr(implementation.functions, "trusted", None):  # a module with hooks in it
        asked = [n for n in question.axes if ASKED[function](n) or _of_weights(n)]
        found = trusted(found, expected.tensors, asked, max(expected.tolerance, grade.single))
    elif any(name not in found and not _of_weights(name) for name in question.axes):
        grade.not_implemented.append(f"some intermediates of {function}")
    for name, letters in question.axes.items():
        if name not in found or name not in expected.tensors:
            if ASKED[function](name):
                said = f"{name} is missing: {function} is asked for it"
                grade.absent(function, name, said, paste)
            continue
        try:
            got = np.array(implementation.asnumpy(found[name], name))  # a later call may change it
        except Broken as error:
            grade.broken(function, error, paste)
            continue
        shown = (
            f'{paste}\ngot = impl.asnumpy(found["{name}"], "{name}")\n'
            f'want = right("{function}", problem, impl)["{name}"]'
        )
        grade.compare(function, name, got, expected, letters, reproducer=shown)
    if any(f.kind in ("value", "not finite") for f in grade.findings):
        _explain(question, implementation, grade)
        _blame_the_call(question, before, found, implementation, grade)
    hint = getattr(implementation.functions, "hint", None)  # a module's: where in it this is
    if hint and grade.findings and (said := hint(grade.findings[0].tensor)):
        grade.findings[0].hints.insert(0, said)


def _blame_the_call(
    question: Question,
    problem: Any,
    found: Mapping[str, Any],
    implementation: Implementation,
    grade: Grade,
) -> None:
    """Where tensors are wrong because they share their memory, or because two calls with one
    problem differ, that is the finding, and their numbers say nothing."""
    function, expected = question.function, question.expected
    paste = _reproducer(question, implementation)
    blamed = {f.tensor for f in grade.findings if f.kind in ("value", "not finite")}
    given = {n: implementation.asnumpy(found[n], n) for n in question.axes if n in grade.found}
    one = sharing(given, blamed)
    if one:
        wrong, right = next(iter(one.items()))
        more = f", and so it is with {len(one) - 1} more" if len(one) > 1 else ""
        said = f"{function} gave one array as {wrong} and as {right}{more}: give copies"
        _instead(grade, Finding(function, wrong, "modified", said), one, paste)
        return
    try:
        second = numbers(whole(implementation, function)(problem), implementation)
    except Exception as error:
        said = f"{function} called again with the same problem: {error}"
        _instead(grade, Finding(function, "", "nondeterministic", said[:300]), (), paste)
        return
    first = {name: grade.found[name] for name in question.axes if name in grade.found}
    errors = unlike(first, second, expected.tolerance)
    if errors:
        finding = nondeterministic(function, errors, expected.tolerance)
        _instead(grade, finding, errors, paste)


def _instead(grade: Grade, finding: Finding, tensors: Collection[str], reproducer: str) -> None:
    """The finding first, in the place of those about these tensors."""
    finding.reproducer = reproducer
    grade.findings[:] = [finding, *(f for f in grade.findings if f.tensor not in tensors)]


def right(
    function: str, problem: Any, implementation: Implementation | None = None
) -> Mapping[str, Array]:
    """The right answer of a function of `Whole` to a problem, in float64; of an implementation, to
    the numbers that its `asarray` makes of the problem's."""
    return RIGHT[function](_given(problem, implementation))


def _explain(question: Question, implementation: Implementation, grade: Grade) -> None:
    """Adds why the first wrong tensor is wrong."""
    if grade.explained:
        close = max(question.expected.tolerance, grade.single)
        first, said = reasons(question, implementation, grade.found, close)
        for finding in grade.findings:
            if finding.tensor == first:
                finding.hints[:0] = said


def as_given(question: Question, implementation: Implementation) -> Question:
    """The question with the right answer to the numbers that `asarray` makes of its arrays."""
    if not implementation.rounds:
        return question
    return _answered(question, right(question.function, question.problem, implementation))


def as_clipped(
    question: Question, found: Mapping[str, Any], implementation: Implementation, grade: Grade
) -> Question:
    """The question with the right answer of torch's clip_grad_norm_, which adds a number to the
    norm, where `found` is nearer to that."""

    def fitting(asked: Question) -> int:
        expected = asked.expected
        return sum(
            got[name].shape == a.shape
            and relative_error(got[name], a) <= max(expected.tolerance, grade.single)
            for name, a in expected.tensors.items()
            if name in got
        )

    got: dict[str, Array] = {}
    with contextlib.suppress(Broken):  # it is reported where it is compared
        got = {name: implementation.asnumpy(a, name) for name, a in found.items()}
    if not got or fitting(question) == len(got):
        return question
    problem = _given(question.problem, implementation)
    torchs = _answered(question, answer("run_training", problem, CLIP_EPS))
    if fitting(torchs) <= fitting(question):
        return question
    grade.notes.append(
        f"clipped as torch's clip_grad_norm_ does, by limit / (norm + {CLIP_EPS:g}): that is right"
    )
    return torchs


def _given(problem: Any, implementation: Implementation | None) -> Any:
    """The problem with the numbers that `asarray` makes of its arrays, in float64."""
    arrays = {f.name: getattr(problem, f.name) for f in fields(problem) if f.name in ARRAYS}
    if implementation is not None:
        arrays = {name: implementation.given(a) for name, a in arrays.items()}
    return replace(problem, **wide(arrays))


def _answered(question: Question, right: Mapping[str, Array]) -> Question:
    """The question with another right answer."""
    wanted = {name: right[name] for name in question.expected.tensors}
    return replace(question, expected=replace(question.expected, tensors=wanted))


def _of_weights(name: str) -> bool:
    return name.startswith(("dh.", "dwte", "dwpe", "dln_f", "dlm_head"))


def _reproducer(question: Question, implementation: Implementation) -> str:
    """A few lines that show the failure when they are pasted into Python."""
    maker = question.source.split("(")[0]
    return (
        f"from minprefix.conformance import load, {maker}, right, whole\n"
        f"impl, problem = load({implementation.name!r}), {question.source}\n"
        f'found = whole(impl, "{question.function}")(problem)'
    )


def ask(id_: str, implementation: Implementation, grade: Grade) -> None:
    question = QUESTIONS[id_][1]()
    weights = all(map(implementation.has, OPTIONAL)) or implementation.has("run_model")
    if getattr(question.problem, "need", "") == "all" and not weights:
        grade.not_implemented.append(NO_WEIGHTS)
        question = model_question(id_.partition("/")[2], "prefix")
    grade_question(question, implementation, grade)


# ---- laws: no oracle is needed ------------------------------------------------------------------


def _law(
    grade: Grade, tensor: str, law: str, off: Array, terms: Array, rounding: float | None = None
) -> None:
    grade.law("run_model", tensor, law, off, terms, TOLERANCE["float64"], rounding)


def _batch(implementation: Implementation, grade: Grade) -> None:
    problem = replace(model_case("own-prefixes"), reduction="sum")
    run = whole(implementation, "run_model")
    together = numbers(run(problem), implementation)
    total: dict[str, Array] = {}
    for b in range(len(problem.sequences)):
        own = (problem.sequences[b], problem.loss_from[b], problem.prefix_of[b])
        one = replace(problem, sequences=[own[0]], loss_from=[own[1]], prefix_of=[own[2]])
        single = numbers(run(one), implementation)
        for name in together:
            if name == "loss" or name.startswith("prefix."):
                total[name] = total.get(name, np.zeros(())) + single[name]
    law = "a batch (summed) is the sum of its sequences"
    for name, a in total.items():
        _law(grade, name, law, together[name] - a, a)


def _permutation(implementation: Implementation, grade: Grade) -> None:
    problem, order = model_case("shared-prefix"), np.array([2, 0, 3, 1])
    moved = replace(problem, prefixes=[kv[:, :, :, order] for kv in problem.prefixes])
    run = whole(implementation, "run_model")
    a, b = (numbers(run(p), implementation) for p in (problem, moved))
    law = "permuting the slots permutes their gradients and changes nothing else"
    _law(grade, "loss", law, a["loss"] - b["loss"], a["loss"])
    for name in ("prefix.0.dk", "prefix.0.dv"):
        _law(grade, name, law, b[name] - a[name][:, :, order], a[name])


def _derivative(implementation: Implementation, grade: Grade) -> None:
    problem, rng = model_case("own-prefixes"), np.random.default_rng(5)
    h, tolerance = step(implementation, 1e-5)
    layers = range(problem.config.n_layer)
    if implementation.in_a_hurry:  # the gradient of the lowest has come through all others
        layers = layers[:1]
    run = whole(implementation, "run_model")
    found = numbers(run(problem), implementation)
    right = expected_model("own-prefixes")["loss"]
    of_rounding = noise(relative_error(found["loss"], right), float(np.abs(right)), h)

    def loss(j: int, moved: Array) -> float:
        prefixes = [*problem.prefixes[:j], moved, *problem.prefixes[j + 1 :]]
        given = run(replace(problem, prefixes=prefixes))
        return float(numbers({"loss": given["loss"]}, implementation)["loss"])

    for done, (j, which) in enumerate(np.ndindex(len(problem.prefixes), 2)):
        if done and implementation.clock.hurries():
            grade.not_graded = f"{2 * len(problem.prefixes) - done} gradients"
            return
        kv, name = problem.prefixes[j], f"prefix.{j}.{('dk', 'dv')[which]}"
        for layer in layers:
            direction = np.zeros_like(kv)
            direction[layer, which] = rng.normal(0, 1, kv.shape[2:])
            numeric = (loss(j, kv + h * direction) - loss(j, kv - h * direction)) / (2 * h)
            analytic = float((found[name][layer] * direction[layer, which]).sum())
            scale = max(abs(numeric), abs(analytic), 1e-300)
            error = abs(numeric - analytic) / scale
            said = (
                f"{name} of layer {layer} says that the loss changes by {analytic:.6g} along "
                f"a random direction, and it changes by {numeric:.6g}"
            )
            finding = Finding("run_model", name, "derivative", said, error, tolerance)
            along = f"{name} of layer {layer} along a direction"
            grade.expect(along, finding, of_rounding / scale)


MODEL_LAWS: dict[str, tuple[str, Callable[[Implementation, Grade], None]]] = {
    "model/law-batch": ("law 8: the gradient of a batch is the sum of its sequences'", _batch),
    "model/law-permutation": ("law 5: permuting the slots permutes their gradients", _permutation),
    "model/derivative": ("the prefix gradient is the derivative of this very loss", _derivative),
    "model/again": (AGAIN, partial(again, "run_model", "")),
    "decoding/again": (AGAIN, partial(again, "run_decoding", "")),
    "training/again": (AGAIN, partial(again, "run_training", "")),
}
