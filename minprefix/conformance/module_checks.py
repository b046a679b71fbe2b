"""The checks of a module of PyTorch (`adapters`) beside those of any model: batches, padding and
the loss of its own labels, where people err who use one."""

from functools import cache, partial
from typing import Any

from minprefix.conformance.check import Check, Expected, Grade
from minprefix.conformance.contract import model_tensors
from minprefix.conformance.implementation import Implementation
from minprefix.conformance.model_checks import grade_question
from minprefix.conformance.model_problems import model_problem
from minprefix.conformance.problems import RIGHT, TOLERANCE, Question, dimensions

_EQUAL: dict[str, Any] = {"lengths": (4, 4, 4, 4), "loss_from": (1, 2, 3, 1)}
_UNEQUAL: dict[str, Any] = {"lengths": (5, 2, 7, 4), "loss_from": (2, 1, 3, 1)}
_TWO: dict[str, Any] = {"prefix_of": (1, 0, 0, 1), "slots": (3, 3)}

#: check -> why, the function, and the arguments of `model_problem`
MODULE_CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "module/batch": (
        "texts of one length go through together, each with its own prefix",
        "run_model",
        _EQUAL | _TWO,
    ),
    "module/padded": (
        "texts of unequal lengths in one batch, filled up behind: attention_mask hides what is "
        "no text",
        "run_padded",
        _UNEQUAL | _TWO,
    ),
    "module/padded-left": (
        "filled up in front: the mask hides that, and positions count the text alone",
        "run_padded_left",
        _UNEQUAL | _TWO,
    ),
    "module/labels": (
        "the loss of the module's own labels: shifted once, and -100 is not predicted",
        "run_labels",
        _UNEQUAL | _TWO,
    ),
}


@cache
def module_checks() -> dict[str, Check]:
    """id -> check."""
    return {id_: Check(id_, why, partial(_ask, id_)) for id_, (why, *_) in MODULE_CASES.items()}


def _ask(id_: str, implementation: Implementation, grade: Grade) -> None:
    grade_question(module_question(id_), implementation, grade)


@cache
def module_question(id_: str) -> Question:
    """The problem of a check and the right answer. transformers takes the loss of labels in single
    precision, whatever the model's."""
    _, function, sizes = MODULE_CASES[id_]
    problem, right = model_problem(**sizes), RIGHT["run_model"](model_problem(**sizes))
    axes = model_tensors(problem.config, len(problem.prefixes), len(problem.sequences), "prefix")
    if function != "run_model":
        kept = ("loss", "prefix.") if function == "run_labels" else ("logits", "loss", "prefix.")
        axes = {name: letters for name, letters in axes.items() if name.startswith(kept)}
    tolerance = TOLERANCE["float32" if function == "run_labels" else "float64"]
    wanted = {name: right[name] for name in axes if name in right}
    expected = Expected(wanted, tolerance, dimensions(problem), None, "model")
    return Question(function, f"model_problem(**{sizes!r})", problem, axes, expected)
