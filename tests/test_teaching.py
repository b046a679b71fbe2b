"""What tutorials/TEACHING.md tells a teacher to do, done."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from minprefix.conformance.zoo import all_bugs
from minprefix.lessons import planted

TEACHING = Path(__file__).parents[1] / "tutorials" / "TEACHING.md"
TEXT = TEACHING.read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)


@pytest.mark.long
def test_a_class_is_graded_by_the_lines_that_it_gives(tmp_path):
    folder = tmp_path / "submissions"
    folder.mkdir()
    sound = Path(sys.modules["minprefix"].__file__).parent / "ops" / "reference.py"
    (folder / "ada.py").write_text(sound.read_text(encoding="utf-8"))
    (folder / "ben.py").write_text(planted("mean-term-dropped").source())
    (folder / "cem.py").write_text("def gelu(x):\n    raise SystemExit\n")
    (folder / "dee.py").write_text("import nonsense_that_is_not_there\n")
    bash, (table, *_) = blocks("bash")[0], blocks("python")
    script = tmp_path / "table.py"
    script.write_text(table)
    where = os.path.dirname(sys.executable)
    environment = os.environ | {"PATH": f"{where}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-e", "-c", bash + f"\n{sys.executable} {script}"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["ada", "ben", "cem"]  # dee's cannot be imported
    assert "5 of 5" in lines[0]
    assert re.search(r"4 of 5 +layernorm_backward: dx", lines[1])
    assert re.search(r"0 of 5 +gelu: ", lines[2])
    assert "dee.py cannot be imported" in done.stderr


def test_the_broken_file_for_an_exam_has_the_bug_in_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(blocks("python")[1], {})
    given = (tmp_path / "given_to_students.py").read_text(encoding="utf-8")
    bug = all_bugs()["mean-term-dropped"]
    assert bug.change[0][1] in given
    assert bug.change[0][0] not in given


def test_every_lesson_has_a_place_in_the_week_and_in_the_term():
    lessons = {path.name for path in TEACHING.parent.glob("[0-9]*.py")}
    week, term = (TEXT[TEXT.index(f"## One {each}") :] for each in ("week", "term"))
    for text in (week[: week.index("## One term")], term[: term.index("## What students")]):
        assert lessons <= set(re.findall(r"\]\((\d\d_[a-z0-9_]+\.py)\)", text))


def minutes(lesson):
    """What the head of a lesson says."""
    path = next(TEACHING.parent.glob(f"{int(lesson):02d}_*.py"))
    return int(re.search(r"\*\*Time\*\* (\d+) minutes", path.read_text(encoding="utf-8"))[1])


def test_the_minutes_of_each_day_are_those_of_its_lessons():
    week = TEXT[TEXT.index("## One week") : TEXT.index("## One term")]
    days = re.findall(r"^\| \w+day \|([^|]+)\|", week, re.MULTILINE)
    sums = [sum(map(minutes, re.findall(r"\[(\d+)\]", day))) for day in days]
    assert len(sums) == 5
    said = f"{', '.join(map(str, sums[:-1]))} and {sums[-1]} minutes"
    assert said in " ".join(week.split())
    assert max(sums) < 360
    hours = re.search(r"All of it takes about (\d+) hours", TEXT)
    lessons = [int(path.name[:2]) for path in TEACHING.parent.glob("[0-9]*.py")]
    assert int(hours[1]) == round(sum(map(minutes, lessons)) / 60)


def exercises():
    """The minutes of each, by its number: "5.1"."""
    found = {}
    for path in TEACHING.parent.glob("[0-9]*.py"):
        text = path.read_text(encoding="utf-8")
        for number, said in re.findall(r"### Exercise (\d+\.\d+): .*\n#\n# \*(\d+) minute", text):
            found[number] = int(said)
    return found


def test_it_says_how_many_functions_a_student_writes():
    assert f"In them a student writes {len(exercises())} functions" in TEXT


def test_the_afternoon_adds_up_to_its_four_hours():
    afternoon = TEXT[TEXT.index("## One afternoon (four hours)") : TEXT.index("## One week")]
    rows = re.findall(r"^\| (\d):(\d\d) \| (.*) \|$", afternoon, re.MULTILINE)
    times = [60 * int(hours) + int(rest) for hours, rest, _ in rows]
    assert times == sorted(set(times))
    assert (times[0], times[-1]) == (0, 240)
    known = exercises()
    for start, end, (_, _, what) in zip(times, times[1:], rows, strict=False):
        for lesson, first, last in re.findall(r"exercises? (\d+)\.(\d+)(?: to \d+\.(\d+))?", what):
            numbers = range(int(first), int(last or first) + 1)
            assert sum(known[f"{lesson}.{n}"] for n in numbers) <= end - start, what


def test_each_lesson_has_something_that_students_stumble_on():
    table = TEXT[TEXT.index("## What students stumble on") : TEXT.index("## Grading a class")]
    assert [
        int(n) for n in dict.fromkeys(re.findall(r"^\| (\d+) \|", table, re.MULTILINE))
    ] == list(range(1, 20))


def test_what_it_links_to_is_there():
    for target in re.findall(r"\]\(([^)#]+)\)", TEXT):
        assert (TEACHING.parent / target).exists(), target
