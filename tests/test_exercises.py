"""Grading an answer by its steps: a made-up lesson with one exercise of each kind."""

import tomllib

import numpy as np
import pytest

from minprefix.lessons import exercise as module
from minprefix.lessons.answer import graded
from minprefix.lessons.exercise import Exercise, Lazy
from minprefix.ops import reference

LESSON = """
import numpy as np
from minprefix.ops import reference


def shares(scores):
    e = np.exp(scores - scores.max(axis=1, keepdims=True))  # (T, K)
    return e / e.sum(axis=1, keepdims=True)


def softmax_backward(dpattern, pattern):
    raise NotImplementedError


def softmax_backward(dpattern, pattern):
    row_sum = (dpattern * pattern).sum(axis=1, keepdims=True)  # (T, 1)
    dscores = pattern * (dpattern - row_sum)  # (T, K)
    return dscores


def head(scores, values):
    pattern = shares(scores)  # (T, K)
    z = pattern @ values  # (T, hs)
    return z, pattern


def best(scores, name):
    if not scores:
        raise ValueError("no scores")
    return {"name": name, "at": int(np.argmax(scores)), "all": list(scores)}


def decay(p, rate):
    p *= 1 - rate


def told(ops, x):
    return ops.gelu(x)[0]


def check_sum(shares):
    assert abs(sum(shares) - 1) < 1e-3
"""


def of_softmax(rng):
    for T, K in ((4, 3), (1, 5)):
        pattern = rng.random((T, K))
        yield rng.normal(size=(T, K)), pattern / pattern.sum(axis=1, keepdims=True)


def of_head(rng):
    yield rng.normal(size=(4, 6)), rng.normal(size=(6, 2))


def of_best(rng):
    yield [1.0, 3.0, 2.0], "x"
    yield [], "x"


def of_decay(rng):
    yield rng.normal(size=5), 0.1


def of_check_sum(rng):
    yield ([0.5, 0.5],)
    yield ([0.5, 0.75],)
    yield ([0.5, 0.25],)


def of_told(rng):
    class Counted:
        def gelu(self, x):
            return reference.gelu(x)

        def tanh(self, x):
            raise Lazy("asks for the tanh: it is the answer itself")

    yield Counted(), rng.normal(size=5)


EXERCISES = (of_head, of_best, of_decay, of_told, of_check_sum)
MISTAKES = '''
[[check_sum]]
old = "abs(sum(shares) - 1)"
new = "sum(shares) - 1"
says = "The size of the difference is missing."

[[softmax_backward]]
old = "dpattern - row_sum"
new = "dpattern"
says = """
The row sum
is missing."""

[[softmax_backward]]
old = "axis=1"
new = "axis=0"
says = "The sum runs over the queries."
'''


@pytest.fixture
def grade(tmp_path, monkeypatch):
    path = tmp_path / "77_made_up.py"
    path.write_text(LESSON)
    monkeypatch.setattr(module, "lesson_paths", lambda: [path])
    monkeypatch.setattr(module, "_mistakes", lambda lesson: tomllib.loads(MISTAKES))
    module._ours.cache_clear()
    cases = {c.__name__.removeprefix("of_"): c for c in EXERCISES}
    cases["softmax_backward"] = of_softmax
    names = {"np": np, "reference": reference}
    exec(LESSON, names)  # the lesson as its reader has run it

    def grade(answer):
        """The answer's source, as a cell of that lesson."""
        exec(compile(answer, "cell", "exec"), names)
        name = answer.split("def ")[-1].split("(")[0]
        exercise = Exercise(name, 77, cases[name])
        return graded(exercise, names[name])

    yield grade
    module._ours.cache_clear()


def test_the_right_answer_passes_whatever_its_variables_are_called(grade):
    written = "def softmax_backward(d, a):\n    return a * (d - (a * d).sum(1)[:, None])\n"
    assert str(grade(written)) == "softmax_backward: right on 2 inputs"
    found = grade(
        "def softmax_backward(dpattern, pattern):\n"
        "    row_sum = np.array([[p @ d] for p, d in zip(pattern, dpattern)])\n"
        "    dscores = [[p * (d - s) for p, d in zip(ps, ds)]"
        " for ps, ds, (s,) in zip(pattern, dpattern, row_sum)]\n"
        "    return np.array(dscores)\n"
    )
    assert found.status == "passed"
    assert found.right == ["row_sum"]  # a list is no array; the result is one


def test_a_line_of_the_stub_that_is_left_behind_a_right_result_is_no_gap(grade):
    found = grade(
        "def softmax_backward(dpattern, pattern):\n    row_sum = ...\n"
        "    return pattern * (dpattern - (dpattern * pattern).sum(1, keepdims=True))\n"
    )
    assert found.status == "passed"


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("raise NotImplementedError", "softmax_backward: not written yet"),
        ("row_sum = ...\n    return row_sum", "softmax_backward: not written yet"),
        (
            "row_sum = (dpattern * pattern).sum(1, keepdims=True)\n    dscores = ...\n"
            "    return dscores",
            "softmax_backward: row_sum is right; next: dscores",
        ),
        (
            "row_sum = (dpattern * pattern).sum(1, keepdims=True)\n    dscores = ...\n"
            "    return dscores[:2]",
            "softmax_backward: row_sum is right; next: dscores",
        ),
        (
            "row_sum = (dpattern * pattern).sum(1, keepdims=True)\n    return ...",
            "softmax_backward: row_sum is right; what it returns is not written yet",
        ),
    ],
)
def test_what_is_not_written_yet_is_no_mistake(grade, body, says):
    found = grade(f"def softmax_backward(dpattern, pattern):\n    {body}\n")
    assert (found.status, str(found)) == ("not written", says)


def test_the_first_wrong_step_is_named_and_a_usual_mistake_is_its_cause(grade):
    found = grade(
        "def softmax_backward(dpattern, pattern):\n"
        "    row_sum = np.sum(pattern * dpattern, 0, keepdims=True)\n"
        "    dscores = ...\n    return dscores\n"
    )
    assert found.status == "failed"
    assert "row_sum has shape (1, 3), expected (4, 1) (T, 1)" in str(found)
    assert "The sum runs over the queries." in found.says
    found = grade(
        "def softmax_backward(dpattern, pattern):\n"
        "    row_sum = np.sum(pattern * dpattern, 1, keepdims=True)\n"
        "    return pattern * dpattern\n"
    )
    assert "dscores (T, K) is off by" in str(found)
    assert "(row_sum is right)" in str(found)
    assert "The row sum is missing." in found.says
    assert found.says[-1] == "input 1: T = 4, K = 3"


def test_without_a_known_cause_the_numbers_are_described(grade):
    found = grade(
        "def softmax_backward(dpattern, pattern):\n"
        "    row_sum = -2 * (dpattern * pattern).sum(1, keepdims=True)\n"
        "    return pattern * (dpattern - row_sum)\n"
    )
    assert any("-2 times" in says for says in found.says), found.says
    assert any(says.startswith("at [0, 0] it is") for says in found.says), found.says


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (
            "def head(scores, values):\n    pattern = reference.softmax(scores)\n"
            "    return pattern @ values, pattern\n",
            "head calls ops.reference.softmax of the package, and ours does not",
        ),
        (
            "def head(scores, values):\n    for _ in range(30):\n"
            "        pattern = shares(scores)\n    return pattern @ values, pattern\n",
            "head calls shares 30 times, and ours once: compute it from the formula",
        ),
        (
            "def head(scores, values):\n"
            "    forward = lambda a: np.exp(a) / np.exp(a).sum(1, keepdims=True)\n"
            "    for _ in range(30):\n        pattern = forward(scores + 1e-6)\n"
            "    return pattern @ values, pattern\n",
            "head calls a lambda 30 times, and ours never: compute it from the formula",
        ),
        ("def told(ops, x):\n    return ops.tanh(x)\n", "told asks for the tanh: it is the answer"),
        (
            "def head(scores, values):\n    pattern = shares(scores + 0j).real\n"
            "    return pattern @ values, pattern\n",
            "head calls shares with complex numbers, and ours does not",
        ),
    ],
)
def test_the_easy_way_round_fails(grade, answer, says):
    found = grade(answer)
    assert found.status == "failed"
    assert found.is_lazy
    assert str(found).startswith(says)


def test_a_helper_of_the_readers_own_may_be_called_often(grade):
    found = grade(
        "def times(a, b):\n    return a * b\n"
        "def head(scores, values):\n    pattern = shares(scores)\n"
        "    z = sum(times(pattern[:, [i]], values[i]) for i in range(6))\n"
        "    z += 0 * sum(times(i, i) for i in range(50))  # often, and with no whole argument\n"
        "    return z, pattern\n"
    )
    assert found.status == "passed"


def test_a_list_that_an_exception_left_half_filled_is_no_step(grade):
    found = grade("def best(scores, name):\n    scores = []\n    return scores[3]\n")
    assert "best: it raised IndexError" in str(found)


def test_what_ours_calls_may_be_called(grade):
    assert grade("def told(ops, x):\n    return ops.gelu(x)[0]\n").status == "passed"
    found = grade("def told(ops, x):\n    return x * reference.softmax(x)\n")
    assert "calls ops.reference.softmax of the package" in str(found)


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ("def head(scores, values):\n    return 1.0\n", "returns a float, and should return z"),
        ("def head(scores, values):\n    return 1\n", "returns an int, and should return z"),
        (
            "def head(scores, values):\n    return None, None\n",
            "z is None, and should be an array (4",
        ),
        ("def head(scores, values):\n    return 1 / 0\n", "raised ZeroDivisionError: division by"),
        ("def head(scores):\n    return 1\n", "takes 1 positional argument but 2 were given"),
        ("def best(s, name):\n    return {'name': name}\n", "has the parts name, and should have"),
        (
            "def best(s, name):\n    return {'name': 'y', 'at': 1, 'all': s}\n",
            "what it returns.name is 'y', and should be 'x'",
        ),
        (
            "def best(s, name):\n    return {'name': name, 'at': 1, 'all': list(s)}\n",
            "it returns a dict, and should raise ValueError here",
        ),
        ("def decay(p, rate):\n    p *= rate\n", "after the call p is off by"),
        (
            "def softmax_backward(d, a):\n    d *= a\n"
            "    return d - a * d.sum(axis=1, keepdims=True)\n",
            "it writes into its argument dpattern, the caller's: make a copy",
        ),
    ],
)
def test_what_is_wrong_with_a_result_is_said(grade, answer, says):
    found = grade(answer)
    assert found.status == "failed"
    assert says in str(found)


def test_a_check_that_accepts_too_much_learns_why(grade):
    found = grade("def check_sum(shares):\n    assert sum(shares) < 1.001\n")
    assert found.status == "failed"
    assert "it returns None, and should raise AssertionError here" in str(found)
    assert "The size of the difference is missing." in found.says
    found = grade("def check_sum(shares):\n    pass\n")
    assert "missing" not in str(found)


def test_an_exception_may_be_the_right_answer(grade):
    written = (
        "def best(s, name):\n    if len(s) == 0:\n        raise UnicodeError  # a ValueError, too\n"
        "    return {'name': name, 'at': s.index(max(s)), 'all': s}\n"
    )
    assert grade(written).status == "passed"


def test_the_line_of_an_exception_is_named(grade):
    found = grade("def head(scores, values):\n    z = 1\n    return zz\n")
    assert "then it raised NameError: name 'zz' is not defined (line 3)" in str(found)


def test_ctrl_c_ends_the_grading(grade):
    with pytest.raises(KeyboardInterrupt):
        grade("def head(scores, values):\n    raise KeyboardInterrupt\n")
