"""Each lesson runs from top to bottom; its own asserts are what is checked."""

import re
import runpy
from pathlib import Path

import pytest

LESSONS = sorted((Path(__file__).parents[1] / "tutorials").glob("[0-9]*.py"))


def test_there_are_lessons():
    assert len(LESSONS) >= 2


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda path: path.stem)
def test_the_lesson_is_written_so_that_a_notebook_shows_it_as_meant(lesson):
    text = lesson.read_text(encoding="utf-8")
    assert "# %% [markdown]\n" in text
    # what stands behind the marker is a cell's title, and is not shown
    assert not re.search(r"\[markdown\][^\n]", text)
    # an item of a list begins its own line
    assert not re.search(r"^# .*[.?] [2-9]\. ", text, re.MULTILINE)


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda path: path.stem)
def test_the_lesson_runs_and_its_asserts_hold(lesson):
    assert "assert " in lesson.read_text(encoding="utf-8")
    runpy.run_path(str(lesson), run_name="__main__")
