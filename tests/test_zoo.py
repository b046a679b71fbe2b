"""The bug zoo proves the suite: every bug is caught, every check catches one, and what is said
first names what is wrong first."""

import json
import re
import types
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread
from PIL import Image

from minprefix.conformance import Implementation, all_checks, load, zoo
from minprefix.conformance.bugs import BUGS
from minprefix.ops import reference
from tools import zoo_matrix as matrix

pytestmark = pytest.mark.long

COMMITTED = Path(__file__).parent / "zoo"
AGAIN = f"run `{matrix.COMMAND}` and look at what changed"


@pytest.fixture(scope="session")
def rows() -> list[matrix.Row]:
    return matrix.compute(processes=2)


def test_the_zoo_holds_at_least_sixty_bugs_of_all_kinds():
    assert len(BUGS) >= 60
    assert {bug.kind for bug in BUGS.values()} == {"maths", "plumbing", "training"}


@pytest.mark.parametrize("name", BUGS)
def test_a_bug_says_what_it_teaches_and_can_be_planted(name: str):
    bug = BUGS[name]
    assert bug.see.endswith(".")
    assert bug.lesson.endswith(".")
    assert all(bug.truth)
    compile(zoo.changed_source(bug), name, "exec")  # raises when the text it changes is gone


def test_a_bug_whose_text_is_gone_cannot_be_planted() -> None:
    gone = zoo.Bug("gone", "maths", "optim", (("no such text", ""),), ("training", "x"), "", "")
    with pytest.raises(ValueError, match="'gone' changes a text that stands 0 times"):
        zoo.plant(gone)


def test_planting_a_bug_leaves_the_sound_code_alone():
    before = zoo.plant(BUGS["scores-unscaled"])
    check = all_checks()["attention/usual"]
    assert check.collect(before).findings
    assert not check.collect(load("reference")).findings


def test_no_bug_survives(rows: list[matrix.Row]):
    assert [row.bug.name for row in rows if not row.caught] == []


def test_no_check_catches_nothing(rows: list[matrix.Row]):
    catching = {check for row in rows for check in row.caught}
    assert [check for check in all_checks() if check not in catching] == []


def test_the_first_finding_names_the_op_and_tensor_that_are_first_wrong(rows: list[matrix.Row]):
    wrong = {row.bug.name: (row.named, row.bug.truth) for row in rows if not row.right}
    assert len(wrong) <= 0.2 * len(rows), wrong


def test_no_two_bugs_give_the_same_numbers_everywhere(rows: list[matrix.Row]):
    assert matrix.twins(rows) == []


#: bugs whose first wrong tensor is 0, infinite, missing or one too many, as that of many a bug is,
#: or which raise
LIKE_MANY = {
    "request-for-a-prefix-ignored",
    "gradient-of-all-rows-for-every-prefix",
    "xhat-from-the-output",
    "mask-inverted",
    "softmax-without-the-maximum",
    "one-maximum-for-all-scores",
    "prefix-gradient-zero",
    "log-of-probabilities",
    "loss-without-the-maximum",
    "one-maximum-for-all-logits",
    "first-maximum-of-0",
    "embeddings-stay-frozen",
    "bottom-layers-for-top",
    "one-top-layer-too-many",
    "last-norm-among-the-top-layers",
    "bitfit-trains-the-gains",
    "bitfit-without-the-norms",
    "encoder-embedding-stays",
    "lora-trains-the-bias",
    "moments-share-memory",
}


def test_the_zoo_recognises_each_of_its_bugs_that_is_like_no_other(rows: list[matrix.Row]):
    unknown = {
        row.bug.name
        for row in rows
        if row.check is None
        or row.grade is None
        or row.bug.name not in zoo.matches(row.check, row.grade)[0]
    }
    assert unknown <= LIKE_MANY


def test_noise_and_a_bug_that_is_not_in_the_zoo_are_like_no_bug():
    def noisy(x):
        out, cache = reference.gelu(x)
        return out + np.random.default_rng(0).normal(0, 1e-3, out.shape), cache

    def doubled(x):
        out, cache = reference.gelu(x)
        return 3.3 * out, cache

    check = all_checks()["gelu/usual"]
    for gelu in (noisy, doubled):
        functions = {n: getattr(reference, n) for n in ("gelu", "gelu_backward")} | {"gelu": gelu}
        seen = check.collect(Implementation(types.SimpleNamespace(**functions), "mine"))
        assert zoo.wrong_tensors(seen)
        assert zoo.matches(check, seen)[0] == []


# ---- what is committed is what the code gives ----------------------------------------------------


def _comparable(text: str, same_draws: bool) -> object:
    """Another version of hypothesis draws other shapes: then the drawn checks are left out."""
    data = json.loads(text)
    if not same_draws:
        data.pop("drawn_by")
        for bug in data["bugs"].values():
            bug["caught_by"] = [c for c in bug["caught_by"] if not c.endswith("/drawn")]
    return data


def test_the_committed_matrix_is_that_of_this_code(rows: list[matrix.Row]):
    fresh, committed = (
        matrix.as_json(matrix.data(rows)),
        (COMMITTED / matrix.DATA).read_text(encoding="utf-8"),
    )
    same_draws = json.loads(fresh)["drawn_by"] == json.loads(committed)["drawn_by"]
    assert _comparable(committed, same_draws) == _comparable(fresh, same_draws), AGAIN
    if same_draws:
        assert committed == fresh, AGAIN
        assert (COMMITTED / matrix.PAGE).read_text(encoding="utf-8") == matrix.page(rows), AGAIN


def test_the_committed_picture_is_of_the_committed_matrix():
    data = (COMMITTED / matrix.DATA).read_text(encoding="utf-8")
    with Image.open(COMMITTED / matrix.PICTURE) as picture:
        assert picture.text["Description"] == matrix.digest_of(data), AGAIN


def test_the_committed_fingerprints_are_those_of_this_code(rows: list[matrix.Row]):
    fresh, committed = (
        {
            (check, bug): entry
            for check, bugs in prints.items()
            for bug, entry in bugs.items()
            if not check.endswith("/drawn")
        }
        for prints in (
            matrix.fingerprints(rows),
            json.loads(zoo.FINGERPRINTS.read_text(encoding="utf-8")),
        )
    )
    assert fresh.keys() == committed.keys(), AGAIN
    for key, (tensor, number) in fresh.items():
        was, before = committed[key]
        # the last digits are the machine's, and those of float32 come sooner
        rel = 1e-4 if "float32" in key[0] else 1e-6
        none = None in (number, before)
        same = number is before if none else number == pytest.approx(before, rel=rel)
        assert (tensor, same) == (was, True), f"{key}: {number} against {before}: {AGAIN}"


def test_a_bug_more_is_a_row_more_of_the_picture(rows: list[matrix.Row], tmp_path: Path):
    matrix.picture(rows[:3], tmp_path / "few.png")
    matrix.picture(rows[:4], tmp_path / "more.png")
    few, more = (imread(tmp_path / f"{name}.png") for name in ("few", "more"))
    assert more.shape[0] - few.shape[0] in (matrix.CELL, matrix.CELL + matrix.CELL * 8 // 10)


def test_the_page_has_each_bug_with_its_change_and_its_lesson(rows: list[matrix.Row]):
    page = matrix.page(rows)
    for row in rows:
        section = page.split(f"### {row.bug.name}\n")[1].split("\n### ")[0]
        assert row.bug.diff() in section
        assert row.bug.lesson in section
        assert re.search(r"\*\*Caught by\*\* `[\w-]+` ", section)


def test_the_command_writes_where_it_is_told(
    rows: list[matrix.Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    monkeypatch.setattr(matrix, "compute", lambda progress: rows[:2])
    before = zoo.FINGERPRINTS.read_bytes()
    assert matrix.main([str(tmp_path / "out")]) == 0
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {"matrix.json", "matrix.png", "ZOO.md", "fingerprints.json"}
    assert zoo.FINGERPRINTS.read_bytes() == before
    assert "2 bugs: 2 caught" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="0"):
        matrix.main(["--help"])
    assert "usage" in capsys.readouterr().out
