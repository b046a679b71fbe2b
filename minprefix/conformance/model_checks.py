"""The checks of the levels above the ops: a whole model, decoding, training, on the questions of
`problems`."""

from collections.abc import Iterator, Mapping
from functools import partial

from minprefix.conformance.check import Check, Grade
from minprefix.conformance.contract import OPTIONAL
from minprefix.conformance.implementation import Broken, Implementation, NotOffered
from minprefix.conformance.problems import ASKED, QUESTIONS, Question, model_question
from minprefix.conformance.whole import whole

NO_WEIGHTS = "the gradients of the weights"


def grade_question(question: Question, implementation: Implementation, grade: Grade) -> None:
    """Every tensor of the answer, compared once."""
    function, expected = question.function, question.expected
    paste = _reproducer(question, implementation)
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
    for name in sorted(set(found) - set(question.axes)):
        said = f"{name} is no tensor of {function}: the contract names its tensors"
        grade.say("missing", function, name, said, paste)
    given = [name for name in question.axes if name in found]
    if getattr(question.problem, "need", "") == "all" and not any(map(_of_weights, given)):
        grade.not_implemented.append(NO_WEIGHTS)
    if any(name not in found and not _of_weights(name) for name in question.axes):
        grade.not_implemented.append(f"some intermediates of {function}")
    for name, letters in question.axes.items():
        if name not in found or name not in expected.tensors:
            if ASKED[function](name):
                said = f"{name} is missing: {function} is asked for it"
                grade.say("missing", function, name, said, paste)
            continue
        try:
            got = implementation.asnumpy(found[name], name)
        except Broken as error:
            grade.broken(function, error, paste)
            continue
        shown = f'{paste}\nprint(found["{name}"])'
        grade.compare(function, name, got, expected, letters, reproducer=shown)


def _of_weights(name: str) -> bool:
    return name.startswith(("dh.", "dwte", "dwpe", "dln_f", "dlm_head"))


def _reproducer(question: Question, implementation: Implementation) -> str:
    """A few lines that show the failure when they are pasted into Python."""
    maker = question.source.split("(")[0]
    return (
        f"from minprefix.conformance import load, {maker}, whole\n"
        f"impl, problem = load({implementation.name!r}), {question.source}\n"
        f'found = whole(impl, "{question.function}")(problem)'
    )


def whole_checks() -> Iterator[Check]:
    for id_, (why, _) in QUESTIONS.items():
        op = id_.partition("/")[0]
        level = "training" if op == "training" else "model"
        yield Check(id_, level, op, why, partial(_ask, id_))


def _ask(id_: str, implementation: Implementation, grade: Grade) -> None:
    question = QUESTIONS[id_][1]()
    weights = all(map(implementation.has, OPTIONAL)) or implementation.has("run_model")
    if getattr(question.problem, "need", "") == "all" and not weights:
        grade.not_implemented.append(NO_WEIGHTS)
        question = model_question(id_.partition("/")[2], "prefix")
    grade_question(question, implementation, grade)
