"""Each lesson runs from top to bottom; its own asserts are what is checked."""

import runpy
from pathlib import Path

import pytest

LESSONS = sorted((Path(__file__).parents[1] / "tutorials").glob("[0-9]*.py"))


def test_there_are_lessons():
    assert len(LESSONS) >= 2


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda path: path.stem)
def test_the_lesson_runs_and_its_asserts_hold(lesson):
    assert "assert " in lesson.read_text(encoding="utf-8")
    runpy.run_path(str(lesson), run_name="__main__")
