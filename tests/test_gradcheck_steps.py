"""A function's steps are compared at their places, in whatever way it tells them, and the first
wrong one is named."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pytest

from minprefix.errors import InputError
from minprefix.gradcheck.steps import grade_steps, steps_of

RNG = np.random.default_rng(0)
Q, K, V = (RNG.normal(size=(2, 4, 3)) for _ in "qkv")  # (NH, T, hs)
INPUTS = {"q": Q, "k": K, "v": V}
AXES = {"scores": "NH T T", "pattern": "NH T T", "z": "NH T hs"}


def softmax(a: Any) -> Any:
    e = np.exp(a - a.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def head(q: Any, k: Any, v: Any, record: Any) -> Any:
    scores = record("scores", q @ k.swapaxes(1, 2) / 3**0.5)
    pattern = record("pattern", softmax(scores))
    return record("z", pattern @ v)


RIGHT = steps_of(head, INPUTS)
RIGHT.pop("out")


class Cache(NamedTuple):
    scores: Any
    pattern: Any


@dataclass
class Kept:
    scores: Any
    pattern: Any
    note: str = "no step"


def told(how: str, wrong: str = "") -> Any:
    """The function that tells its steps in one way; `wrong`: where it makes a mistake."""

    def steps(q: Any, k: Any, v: Any) -> Any:
        scores = q @ k.swapaxes(1, 2) / (1 if wrong == "scores" else 3**0.5)
        pattern = softmax(scores)
        pattern = pattern.swapaxes(1, 2) if wrong == "pattern" else pattern
        return scores, pattern, pattern @ v

    def generator(q: Any, k: Any, v: Any) -> Any:
        room = np.empty((2, 4, 4))
        room[...], pattern, z = steps(q, k, v)
        yield "scores", room
        room[...] = pattern  # a buffer that is used again
        yield "pattern", room
        yield "z", z

    def recorder(q: Any, k: Any, v: Any, record: Any) -> Any:
        for name, a in zip(("scores", "pattern", "z"), steps(q, k, v), strict=True):
            assert record(name, a) is a

    return {
        "record": recorder,
        "generator": generator,
        "mapping": lambda **a: dict(zip(("scores", "pattern", "z"), steps(**a), strict=True)),
        "second result": lambda **a: (
            (s := steps(**a))[2],
            {"scores": s[0], "pattern": s[1], "z": s[2]},
        ),
        "named tuple": lambda **a: (None, Cache(*steps(**a)[:2])),
        "dataclass": lambda **a: (None, Kept(*steps(**a)[:2])),
    }[how]


WAYS = ["record", "generator", "mapping", "second result", "named tuple", "dataclass"]


@pytest.mark.parametrize("how", WAYS)
def test_each_way_of_telling_is_understood(how):
    report = grade_steps(told(how), INPUTS, RIGHT)
    assert report, str(report)
    assert {"scores", "pattern"} <= set(report.errors)
    assert report.error < 1e-15


@pytest.mark.parametrize("how", WAYS)
def test_the_first_wrong_step_is_named_and_explained(how):
    report = grade_steps(told(how, wrong="pattern"), INPUTS, RIGHT, AXES)
    (finding,) = report.findings
    assert finding.tensor == "pattern"
    assert "scores is right" in finding.sentence
    assert finding.hints == ["is transposed: axes [0, 2, 1] of the right one"]
    assert ("z is wrong, too" in finding.sentence) == ("z" in report.errors)


def test_what_follows_from_the_first_wrong_step_gets_no_entry_of_its_own():
    report = grade_steps(told("record", "scores"), INPUTS, RIGHT, AXES, {"hs": 3})
    (finding,) = report.findings
    assert finding.tensor == "scores"
    assert "is 1/sqrt(hs) missing?" in finding.hints[0]
    assert finding.sentence.endswith("; pattern and z are wrong, too")
    assert "1. recorder, scores\n" in str(report)


def test_a_step_that_is_told_again_and_a_list_have_an_index():
    def looped(record: Any) -> Any:
        for b in range(3):
            record("scores", Q * b)
        return {"parts": [Q, K]}

    steps = steps_of(looped, {})
    assert list(steps) == ["scores[0]", "scores[1]", "scores[2]", "parts[0]", "parts[1]"]
    wrong = dict(steps, **{"scores[1]": Q + 1})
    report = grade_steps(looped, [], wrong)
    assert report.findings[0].tensor == "scores[1]"


def test_a_result_that_was_recorded_is_one_step():
    assert list(steps_of(lambda x, record: record("out", x * 2), [Q])) == ["out"]
    assert list(steps_of(lambda x, record: record("z", x * 2), [Q])) == ["z", "out"]


def test_what_is_not_told_is_not_graded_and_an_unknown_name_is_said():
    report = grade_steps(lambda **a: {"z": told("mapping")(**a)["z"]}, INPUTS, RIGHT)
    assert report
    assert list(report.errors) == ["z"]
    report = grade_steps(lambda **a: {"z": RIGHT["z"], "patern": Q}, INPUTS, RIGHT)
    assert "patern is none of the steps: expected scores, pattern, z" in str(report)
    report = grade_steps(lambda **a: a["q"], INPUTS, RIGHT)
    assert "no step is told: expected scores, pattern, z" in str(report)


def test_what_a_function_raises_is_a_finding_and_nothing_to_expect_a_sentence():
    def broken(q: Any, k: Any, v: Any) -> Any:
        yield "scores", q
        raise ValueError("no more")

    report = grade_steps(broken, INPUTS, RIGHT)
    assert "broken raised ValueError: no more" in str(report)
    with pytest.raises(InputError, match="give the right steps, as steps_of"):
        grade_steps(head, INPUTS, {})


def test_what_a_generator_returns_is_its_result():
    def told(x, factor):
        yield "double", 2 * x
        return factor * x

    expected = {"double": 2 * np.ones(3), "out": 3 * np.ones(3)}
    assert grade_steps(told, [np.ones(3), 3], expected)
    assert grade_steps(told, [np.ones(3), 4], expected).findings[0].tensor == "out"


@pytest.mark.parametrize(
    ("function", "inputs", "expected"),
    [(3, [1.0], {"a": 1.0}), (np.sin, np.ones(3), {"a": 1.0}), (np.sin, [1.0], [1.0])],
)
def test_arguments_that_make_no_sense_are_answered_with_a_sentence(function, inputs, expected):
    with pytest.raises(InputError, match=r"expected a function|give a"):
        grade_steps(function, inputs, expected)
