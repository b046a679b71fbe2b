"""Each lesson runs from top to bottom, its own asserts hold, and those of its "break it yourself"
cell fire when their guard is taken away. Ours passes each exercise, and the wrong answers of
`tests/exercises` fail it in words that name the mistake."""

import ast
import importlib
import re
import sys
import traceback
import types
import warnings
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from minprefix.conformance.contract import FUNCTIONS, WHOLE
from minprefix.conformance.zoo import all_bugs
from minprefix.errors import InputError
from minprefix.lessons import caught, grade, planted
from minprefix.lessons.answer import graded
from minprefix.lessons.exercise import all_exercises, statements
from minprefix.lessons.grading import SUITE, results, said
from tests.exercises import Wrong

ROOT = Path(__file__).parents[1]
LESSONS = sorted((ROOT / "tutorials").glob("[0-9]*.py"))
HEAD = re.compile(
    r"# %% \[markdown\]\n# # .+\n#\n# - \*\*You will be able to\*\* .+\n(?:#   .+\n)*"
    r"# - \*\*You need\*\* .+\n(?:#   .+\n)*"
    r"# - \*\*Time\*\* \d+ minutes; it runs in (?:\d+ seconds|1 second)\.\n"
    r"# - \*\*Difficulty\*\* [1-5] of 5\.\n#\n"
)


def lesson_id(path):
    return path.stem


each_lesson = pytest.mark.parametrize("lesson", LESSONS, ids=lesson_id)


def how_long(lesson):
    """The marks of a test that runs it: long by what its head says, or the default's."""
    says = re.search(r"it runs in (\d+) second", lesson.read_text(encoding="utf-8"))
    return pytest.mark.long if int(says[1]) > 2 else ()


each_lesson_run = pytest.mark.parametrize(
    "lesson", [pytest.param(path, id=path.stem, marks=how_long(path)) for path in LESSONS]
)


# ---- running them --------------------------------------------------------------------------------


class Ran:
    """What is left of a lesson's run: its names, and for each guard whether an assert of the lesson
    fires without it."""

    def __init__(self, lesson: Path) -> None:
        self.main = types.ModuleType("__main__")  # as a script: what it defines is found there
        self.main.__file__ = str(lesson)
        self.without_guard: dict[int, str] = {}  # line -> what fired
        self.error: BaseException | None = None


@cache
def ran(lesson: Path) -> Ran:
    """The lesson as a script, statement by statement. In front of a `with caught()`, its block runs
    once without it: that is what someone sees who takes the guard away."""
    run, saved = Ran(lesson), sys.modules["__main__"]
    sys.modules["__main__"] = run.main
    try:
        with warnings.catch_warnings():
            # there is no window to show a picture in
            warnings.filterwarnings("ignore", "FigureCanvasAgg is non-interactive")
            for statement in ast.parse(lesson.read_text(encoding="utf-8")).body:
                if _is_guard(statement):
                    run.without_guard[statement.lineno] = _fires(statement.body, run, lesson)
                _execute([statement], run, lesson)
    except BaseException as error:
        run.error = error
    finally:
        sys.modules["__main__"] = saved
        if "matplotlib.pyplot" in sys.modules:
            sys.modules["matplotlib.pyplot"].close("all")
    return run


def _execute(statements, run, lesson):
    code = compile(ast.Module(statements, []), str(lesson), "exec", dont_inherit=True)
    exec(code, vars(run.main))


def _is_guard(statement):
    return isinstance(statement, ast.With) and any(
        isinstance(item.context_expr, ast.Call)
        and getattr(item.context_expr.func, "id", "") == "caught"
        for item in statement.items
    )


def _fires(body, run, lesson):
    """The assert of this lesson that ends the block; "" if none does."""
    try:
        _execute(body, run, lesson)
    except AssertionError as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        return f"{last.line} {error}" if last.filename == str(lesson) else ""
    return ""


@pytest.fixture(autouse=True, scope="module")
def no_windows():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MPLBACKEND", "Agg")
        yield


@each_lesson_run
def test_the_lesson_runs_and_its_asserts_hold(lesson):
    error = ran(lesson).error
    if error is not None:
        raise error


@each_lesson_run
def test_without_its_guard_the_bug_of_the_lesson_makes_an_assert_of_the_lesson_fail(lesson):
    text = lesson.read_text(encoding="utf-8")
    without = ran(lesson).without_guard
    assert len(without) == len(re.findall(r"^ *with caught\(\)", text, re.MULTILINE)) > 0
    assert all(without.values()), f"no assert fires in line {without}"


# ---- how they are written ------------------------------------------------------------------------


def test_the_lessons_are_numbered_from_1():
    assert [lesson.name[:2] for lesson in LESSONS] == [f"{i + 1:02d}" for i in range(19)]


@each_lesson
def test_the_lesson_is_written_so_that_a_notebook_shows_it_as_meant(lesson):
    text = lesson.read_text(encoding="utf-8")
    # what stands behind the marker is a cell's title, and is not shown
    assert not re.search(r"\[markdown\][^\n]", text)
    # an item of a list begins its own line
    assert not re.search(r"^# .*[.?] [2-9]\. ", text, re.MULTILINE)


@each_lesson
def test_the_lesson_has_its_parts(lesson):
    text = lesson.read_text(encoding="utf-8")
    assert HEAD.match(text), "its head names what one will be able to do, needs, time, difficulty"
    titles = re.findall(r"^# ## (.+)$", text, re.MULTILINE)
    assert titles[0] == "Overview"
    assert titles[-3:] == ["Break it yourself", "Remember", "Exercises"]
    sections = re.split(r"^# ## .+$", text, flags=re.MULTILINE)[2:-3]
    without = [
        title for title, s in zip(titles[1:], sections, strict=False) if "**Recap.**" not in s
    ]
    assert not without, f"no recap ends {without}"
    assert not re.search(
        r"^(?!#$|# %% ).*\n# \*\*(Recap|Predict|Answer)\.\*\* ", text, re.MULTILINE
    )
    predictions = re.findall(
        r"\n# \*\*Predict\.\*\*[^%]*?\n\n# %%(?! \[markdown\])(?:(?!\n# %% \[).)*"
        r"\n# %% \[markdown\]\n# \*\*Answer\.\*\* ",
        text,
        re.DOTALL,
    )
    assert len(predictions) >= 2, "it asks for a prediction before a cell that answers it"
    assert len(predictions) == text.count("**Predict.**"), "code and then **Answer.** follow"
    breaking = text[text.index("\n# ## Break it yourself\n") : text.index("\n# ## Remember\n")]
    bugs = re.findall(r'planted\("([a-z0-9-]+)"\)', breaking)
    assert bugs, "a bug of the zoo is planted"
    assert set(bugs) <= set(all_bugs())
    exercises = text[text.index("\n# ## Exercises\n") :]
    numbered = re.findall(r"^# \*\*(\d)\.\*\*", exercises, re.MULTILINE)
    solved = re.findall(r"<details><summary>Solution (\d)</summary>", exercises)
    assert numbered == solved == [str(i + 1) for i in range(len(solved))]
    assert solved


@each_lesson
def test_what_the_lesson_links_to_is_there(lesson):
    text = lesson.read_text(encoding="utf-8")
    for target in re.findall(r"^# .*\]\(([^)#]+)[^)]*\)", text, re.MULTILINE):
        if not target.startswith("http"):
            assert (lesson.parent / target).exists(), target


# ---- exercises -----------------------------------------------------------------------------------


def solutions(lesson):
    """The Python of the lesson's folded solutions."""
    text = lesson.read_text(encoding="utf-8")
    text = "\n".join(line[2:] for line in text.splitlines() if line.startswith("#"))
    found = []
    for details in re.findall(r"<details>.*?</details>", text, re.DOTALL):
        found += re.findall(r"^ *```python\n(.*?)^ *```$", details, re.DOTALL | re.MULTILINE)
    return found


@pytest.mark.parametrize(
    ("lesson", "i"),
    [
        pytest.param(path, i, id=f"{path.stem}-{i}", marks=how_long(path))
        for path in LESSONS
        for i in range(len(solutions(path)))
    ],
)
def test_the_solution_runs(lesson, i):
    names = dict(vars(ran(lesson).main))
    exec(compile(solutions(lesson)[i], f"{lesson.name}, solution {i}", "exec"), names)


#: an exercise as it stands in a lesson
EXERCISE = re.compile(
    r"# ### Exercise (?P<lesson>\d+)\.(?P<n>\d+): `(?P<name>\w+)`\n#\n"
    r"# \*(?P<minutes>\d+) minutes? · difficulty (?P<difficulty>[1-5]) of 5\*\n#\n"
    r"(?:#.*\n)+\n+# %%\n(?P<stub>(?:(?!# %%).*\n)+)"
    r"\n?# %% \[markdown\]\n(?P<hints>(?:#.*\n)+)"
    r'\n+# %% jupyter=\{"source_hidden": true\}\n(?P<ours>(?:(?!# %%).*\n)+)'
)


def exercises_in(lesson):
    return list(EXERCISE.finditer(lesson.read_text(encoding="utf-8")))


def of_lesson(lesson):
    number = int(lesson.name[:2])
    return [each for each in all_exercises().values() if each.lesson == number]


@each_lesson
def test_the_lessons_exercises_stand_in_its_flow(lesson):
    text, found = lesson.read_text(encoding="utf-8"), exercises_in(lesson)
    assert len(found) == text.count("# ### Exercise "), "each has all its parts"
    number = int(lesson.name[:2])
    ids = [(int(each["lesson"]), int(each["n"])) for each in found]
    assert ids == [(number, i + 1) for i in range(len(found))]
    assert {each["name"] for each in found} == {each.name for each in of_lesson(lesson)}
    for each in found:
        name = each["name"]
        assert re.search(rf"^def {name}\(", each["stub"], re.MULTILINE), name
        assert re.search(rf"^grade\({name}\b.*\)", each["stub"], re.MULTILINE), name
        assert re.search(rf"^def {name}\(", each["ours"], re.MULTILINE), name
        assert all(isinstance(s, ast.FunctionDef) for s in ast.parse(each["ours"]).body), name
        assert each["hints"].count("<summary>Hint ") in (2, 3), name


def test_a_course_asks_for_many_functions_of_unlike_difficulty():
    found = [each for lesson in LESSONS for each in exercises_in(lesson)]
    assert len(found) >= 60
    spread = [int(each["difficulty"]) for each in found]
    assert set(spread) == {1, 2, 3, 4, 5}
    assert max(map(spread.count, spread)) < len(spread) / 2


def _exercises(marks=lambda name: ()):
    return pytest.mark.parametrize(
        "name", [pytest.param(name, marks=marks(name)) for name in all_exercises()]
    )


def slow(name):
    """These take seconds to grade."""
    return pytest.mark.long if name in (*WHOLE, *FUNCTIONS["attention"]) else ()


def runs_models(name):
    """Each input takes a model's forwards, or a whole run."""
    slow = (*WHOLE, "write_greedily", "train_network", "diagnose")
    return pytest.mark.long if name in slow else ()


@_exercises()
def test_the_stub_is_called_not_written_yet(name):
    exercise = all_exercises()[name]
    (lesson,) = (path for path in LESSONS if int(path.name[:2]) == exercise.lesson)
    (found,) = (each for each in exercises_in(lesson) if each["name"] == name)
    names = {"grade": lambda *functions: None}
    needs = compile(ast.Module(list(exercise.ours().needs), []), str(lesson), "exec")
    exec(needs, names)
    exec(found["stub"], names)
    assert graded(exercise, names[name]).status == "not written"


@_exercises(runs_models)
def test_an_answer_whose_last_line_is_left_is_not_written_yet(name):
    exercise, ours = all_exercises()[name], all_exercises()[name].ours()
    changed, names = ours.definition, {}
    returns = [s for s in statements(changed) if isinstance(s, ast.Return) and s.value]
    for each in returns:
        each.value = ast.copy_location(ast.Constant(...), each.value)
    exec(compile(ast.Module([*ours.needs, changed], []), "cell", "exec"), names)
    assert graded(exercise, names[name]).status == ("not written" if returns else "passed")


@_exercises(runs_models)
def test_ours_is_graded_as_right_and_each_usual_mistake_is_known(name):
    exercise = all_exercises()[name]
    assert graded(exercise, exercise.ours().function()).status == "passed"
    assert exercise.mistakes
    for mistake in exercise.mistakes:
        found = graded(exercise, exercise.ours().function(mistake))
        assert found.status == "failed", mistake
        assert mistake.says in found.says, mistake


@_exercises(slow)
def test_ours_passes_the_suite_where_it_grades_the_function(name, capsys):
    if name in SUITE:
        grade(all_exercises()[name].ours().function())
        assert re.search(f"{name}: all \\d+ checks passed", capsys.readouterr().out)


def _answers():
    found = []
    for lesson in sorted({each.lesson for each in all_exercises().values()}):
        module = importlib.import_module(f"tests.exercises.lesson_{lesson:02d}")
        found += [
            pytest.param(
                answer,
                id=f"{lesson:02d}-{answer.function}-{answer.mistake}",
                marks=() if answer.is_lazy else slow(answer.function),
            )
            for answer in vars(module).values()
            if isinstance(answer, Wrong)
        ]
    return found


@pytest.mark.parametrize("answer", _answers())
def test_a_wrong_answer_fails_in_words_that_name_the_mistake(answer, capsys):
    grade(answer.answer)
    printed = " ".join(capsys.readouterr().out.split())
    assert answer.says in printed
    assert not re.search(r": right on (one|\d)|all \d+ checks passed", printed)


@_exercises()
def test_each_exercise_has_two_wrong_answers_and_an_easy_way_that_fails(name):
    module = f"tests.exercises.lesson_{all_exercises()[name].lesson:02d}"
    given = [a for a in vars(importlib.import_module(module)).values() if isinstance(a, Wrong)]
    ways = [a.is_lazy for a in given if a.function == name]
    assert ways.count(False) >= 2
    assert ways.count(True) >= 1
    assert not [a for a in given if a.says in a.function], "grade always prints the name"
    assert {a.function for a in given} <= set(all_exercises())


def test_the_patients_of_the_clinic_have_what_their_diagnosis_says():
    from minprefix.lessons.clinic import patient
    from minprefix.lessons.exercises.lesson_19 import PATIENTS

    diagnose = all_exercises()["diagnose"].ours().function()
    assert [diagnose(patient(*who)) for who in PATIENTS] == [name for name, _ in PATIENTS]


# ---- what they call ------------------------------------------------------------------------------


def test_the_guard_holds_the_assert_that_fires_and_says_which():
    with caught() as seen:
        assert 1 > 2, "one is no more than two"
    assert "assert 1 > 2" in str(seen)
    assert "one is no more than two" in str(seen)
    assert repr(seen) == str(seen)  # as the last line of a notebook's cell


def test_the_guard_does_not_hold_anything_else():
    with pytest.raises(ValueError, match="other"), caught():
        raise ValueError("other")
    with pytest.raises(AssertionError, match="nothing in this block notices the bug"), caught():
        pass


def test_a_planted_bug_changes_the_copy_and_not_the_package():
    from minprefix.ops import reference

    broken = planted("row-sum-dropped")
    assert broken.reference is not reference
    assert broken.reference.__file__.startswith(reference.__file__)
    assert "row-sum-dropped" in str(broken)
    assert "\n-" in str(broken)
    assert sys.modules["minprefix.ops.reference"] is reference
    higher = planted("shared-prefix-last-sequence-wins")
    model = importlib.import_module("minprefix.model")
    assert higher.loss_and_grad is not model.loss_and_grad
    assert higher.generate is higher._modules["minprefix.generate"].generate
    with pytest.raises(AttributeError, match="'nonsense'"):
        _ = higher.nonsense


def test_nothing_sound_is_given_for_a_package_with_a_bug_in_its_operations():
    with pytest.raises(AttributeError, match=r"ops=planted\('row-sum-dropped'\).reference"):
        _ = planted("row-sum-dropped").loss_and_grad
    with pytest.raises(AttributeError, match=r"lies in minprefix.model.* have 'reference'"):
        _ = planted("sum-is-a-mean").reference


def test_a_model_that_the_planted_package_loads_has_its_bug():
    broken = planted("every-layer-sees-the-first-prefix")
    assert type(broken.GPT2.load("tiny")) is broken.GPT2


def test_an_unknown_bug_is_refused_with_the_nearest_names():
    with pytest.raises(InputError, match="no bug 'row-sum': did you mean row-sum-dropped"):
        planted("row-sum")
    for name in ("?", None, ["row-sum-dropped"]):
        with pytest.raises(InputError, match=r"no bug .*: (tests/zoo/ZOO.md lists them|did you)"):
            planted(name)


def test_the_suite_grades_a_function_by_its_name_and_says_what_is_wrong(capsys):
    def gelu_backward(dout, cache):
        return 0.5 * dout * (1 + cache.tanh)

    grade(gelu_backward)
    said = capsys.readouterr().out
    assert "rule has a second term" in said  # the exercise's own words
    assert re.search(r"gelu_backward: \d+ of \d+ checks failed", said)
    assert "in Python" not in said  # there is no file to load

    def gelu_backward(dout, cache):
        raise NotImplementedError

    grade(gelu_backward)
    assert capsys.readouterr().out == "gelu_backward: not written yet\n"

    def run_training(problem):
        return {"step.0.loss": 0.0}

    grade(run_training)
    said = capsys.readouterr().out
    assert re.search(r"\n  and \d+ more\n", said)
    assert "--all" not in said  # there is no command to give it to

    def nothing_such():
        pass

    with pytest.raises(InputError, match="no lesson has an exercise 'nothing_such'"):
        grade(nothing_such)


def test_right_results_by_other_steps_are_right(capsys):
    def layernorm_backward(dout, cache):
        xhat, rstd, gain = cache
        dxhat = rstd * gain * dout
        mean = dxhat.mean(axis=1, keepdims=True)
        return dxhat - mean - xhat * (dxhat * xhat).mean(axis=1, keepdims=True)

    def attention_backward(dz, cache):
        grads = ([], [], [], [], [])
        for b, pattern in enumerate(cache.pattern):
            rows = slice(cache.offsets[b], cache.offsets[b + 1])
            P, hs = cache.prefix_k[b].shape[1:]
            q, k, v, dz_b = (a[rows].swapaxes(0, 1) for a in (cache.q, cache.k, cache.v, dz))
            keys = np.concatenate([cache.prefix_k[b], k], axis=1)
            values = np.concatenate([cache.prefix_v[b], v], axis=1)
            dpattern = dz_b @ values.swapaxes(1, 2)
            row_sum = (dpattern * pattern).sum(axis=2)  # without keepdims
            dscores = pattern * (dpattern - row_sum[..., None]) / hs**0.5  # with the scale
            dkeys, dvalues = dscores.swapaxes(1, 2) @ q, pattern.swapaxes(1, 2) @ dz_b
            tokens = (a.swapaxes(0, 1) for a in (dscores @ keys, dkeys[:, P:], dvalues[:, P:]))
            for found, part in zip(grads, (*tokens, dkeys[:, :P], dvalues[:, :P]), strict=True):
                found.append(part)
        return *map(np.concatenate, grads[:3]), *grads[3:]

    for right in (layernorm_backward, attention_backward):
        grade(right)
        printed = capsys.readouterr().out
        assert printed.endswith(" checks passed\n"), printed
        assert "off by" not in printed
        assert "has shape" not in printed


def test_a_backward_that_is_given_alone_is_not_called_unwritten(capsys):
    from minprefix.ops import reference

    grade(reference.gelu_backward)
    assert re.search(r"gelu_backward: all \d+ checks passed\n$", capsys.readouterr().out)


def test_a_usual_mistake_of_a_function_of_the_suite_is_named_whatever_its_steps_are_called(capsys):
    def layernorm_backward(dout, cache):
        d = dout * cache.gain
        m, n = d.mean(axis=0), (d * cache.xhat).mean(axis=0)
        return cache.rstd * (d - m - cache.xhat * n)

    grade(layernorm_backward)
    printed = capsys.readouterr().out
    said = [m.says for m in all_exercises()["layernorm_backward"].mistakes]
    assert sum(each in printed for each in said) == 1
    assert re.search(r"layernorm_backward: \d+ of \d+ checks failed\n$", printed)


def test_of_two_functions_the_one_that_is_not_written_is_named(capsys):
    from minprefix.ops import reference

    def embed(tokens, positions, wte, wpe):
        raise NotImplementedError("later")

    def linear_backward_params(dout, x):
        raise NotImplementedError

    def cross_entropy(logits, targets, weights):
        return logit  # noqa: F821  a slip

    def run_model(problem):
        raise NotImplementedError

    def attention(q, k, v, prefix_k, prefix_v, offsets):
        if not prefix_k[0].shape[1]:
            raise NotImplementedError
        return reference.attention(q, k, v, prefix_k, prefix_v, offsets)

    for functions, ends in (
        (
            (reference.linear_backward, linear_backward_params),
            "linear_backward: all 9 checks passed\nlinear_backward_params: not written yet",
        ),
        (
            (embed, reference.embed_backward_params),
            "embed_backward_params: all 8 checks passed\nembed: not written yet",
        ),
        ((reference.gelu, run_model), "gelu: all 8 checks passed\nrun_model: not written yet"),
        (
            (cross_entropy, reference.cross_entropy_backward),
            "cross_entropy: 12 of 12 checks failed\n"
            "cross_entropy_backward: not graded, what runs before has to run first",
        ),
    ):
        printed = said(results(*functions), functions)
        # how many checks an op has is the suite's own affair
        assert re.sub(r"\d+", "N", printed).endswith(re.sub(r"\d+", "N", ends)), printed
    assert re.sub(r"\d+", "N", said(results(attention), (attention,))).endswith(
        "attention: all N checks passed\nattention: not written yet for attention/no-prefix"
    )
    grade(cross_entropy, only="usual")
    assert "raised NameError: name 'logit' is not defined (test_lessons.py, line" in (
        capsys.readouterr().out
    )
    functions = (embed, linear_backward_params)
    assert said(results(*functions), functions) == (
        "embed, linear_backward_params: not written yet"
    )


def test_the_line_of_a_notebooks_cell_is_named(capsys):
    names = {}
    code = "def gelu_backward(dout, cache):\n    return dout * tanhh\n"
    exec(compile(code, "/nowhere/ipykernel_1/123.py", "exec"), names)
    grade(names["gelu_backward"])
    said = capsys.readouterr().out
    assert "gelu_backward: it raised NameError: name 'tanhh' is not defined (line 2)\n" in said


@pytest.mark.parametrize(
    ("slip", "error"),
    [
        ("z = ops.attentoin", AttributeError),
        ("assert eror < 1", NameError),
        ("import nothing_such", ImportError),
        ("1 + 'one'", TypeError),
        ("exec('x = = 1')", SyntaxError),
        ("check(ops)", RecursionError),
        ("exit()", SystemExit),
    ],
)
def test_a_slip_in_a_students_check_is_no_failure_of_a_sound_implementation(slip, error):
    names = vars(ran(LESSONS[12]).main)
    scope = {"exit": sys.exit}
    exec(compile(f"def check(ops):\n    {slip}\n", "a student's cell", "exec"), scope)
    with pytest.raises(error) as raised:
        names["judge"](scope["check"], ["no-mask"])
    frames = traceback.extract_tb(raised.value.__traceback__)
    assert any((f.filename, f.lineno) == ("a student's cell", 2) for f in frames)


def test_judge_tells_a_check_that_is_wrong_and_a_slip_that_only_a_bug_meets(capsys):
    names = vars(ran(LESSONS[12]).main)

    def strict(ops):
        assert ops is None, "never"

    with pytest.raises(AssertionError, match="your check fails on a sound implementation") as told:
        names["judge"](strict, ["no-mask"])
    assert "never" in str(told.value.__cause__)
    causal = (
        "def check_causal(ops):\n"
        '    a = INPUTS["attention"]\n'
        '    slots = [a["prefix_k"]] * 2, [a["prefix_v"]] * 2\n'
        '    leak = future_leak(ops, a["q"], a["k"], a["v"], *slots, np.array([0, 3, 5]))\n'
        "    assert leak < 1e-12\n"
    )
    slip = causal.replace("< 1e-12", "< 1e-12, f'off by {of}'")
    assert slip != causal
    scope = dict(names)
    exec(slip, scope)
    with pytest.raises(NameError, match="'of' is not defined"):
        names["judge"](scope["check_causal"], ["no-mask"])
    exec(causal, scope)
    capsys.readouterr()
    assert names["judge"](scope["check_causal"], ["no-mask"]) == ["no-mask"]
    assert capsys.readouterr().out == "killed  no-mask\n"


def test_what_leaves_the_suite_nothing_to_grade_is_refused_and_not_called_written(capsys):
    from minprefix.ops.reference import gelu

    for functions, only, sentence in (
        ((), "", "grade is given no function"),
        ((gelu, gelu), "", "grade is given 'gelu' more than once"),
        ((gelu,), "attention", "only='attention' is in no check of gelu: they are gelu/usual, "),
    ):
        with pytest.raises(InputError, match=re.escape(sentence)):
            grade(*functions, only=only)
    assert capsys.readouterr().out == ""


def test_ctrl_c_in_a_function_that_hangs_ends_its_grading():
    calls = []

    def gelu_backward(dout, cache):
        calls.append(dout)
        raise KeyboardInterrupt  # as Python does in it when Ctrl-C is pressed

    with pytest.raises(KeyboardInterrupt):
        grade(gelu_backward)
    assert len(calls) == 1
