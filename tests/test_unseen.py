"""Bugs that the suite's authors had not seen: each can still be planted, and the page is that of
its record."""

import json
import re

import pytest

from tools import unseen

RECORD = json.loads((unseen.PLACE / unseen.RESULT).read_text(encoding="utf-8"))
BUGS = unseen.all_unseen()


def test_there_are_enough_of_them_in_code_of_four_shapes():
    assert len(BUGS) >= 240
    assert {bug.shape for bug in BUGS} == {"padded", "student", "tiles", "modules"}
    assert len({bug.id for bug in BUGS}) == len(BUGS)
    assert {bug.id for bug in BUGS} == set(RECORD["bugs"])


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.id)
def test_a_bug_can_be_planted_and_says_what_is_wrong(bug: unseen.Unseen):
    compile(bug.source(), bug.id, "exec")
    assert bug.reason.endswith(".")
    assert RECORD["bugs"][bug.id]["truth"] == ", ".join(bug.truth)


def test_the_page_is_that_of_the_record_and_of_what_was_judged():
    outcomes = RECORD["bugs"]
    right = unseen.judged(outcomes)
    assert right.keys() == {name for name, o in outcomes.items() if o["caught"]}
    committed = (unseen.PLACE / unseen.PAGE).read_text(encoding="utf-8")
    fresh = unseen.page(outcomes, right, RECORD["date"])
    assert committed.split("\n\n", 2)[2] == fresh.split("\n\n", 2)[2]  # but for versions


def test_the_numbers_of_the_pages_are_those_of_the_record():
    outcomes = RECORD["bugs"].values()
    caught, named = (sum(o[key] for o in outcomes) for key in ("caught", "named"))
    right = sum(unseen.judged(RECORD["bugs"]).values())
    root = unseen.PLACE.parents[2]
    readme, page = ((root / p).read_text(encoding="utf-8") for p in ("README.md", "docs/check.md"))
    assert f"{caught / len(BUGS):.0%} of {len(BUGS)}\n" in readme
    told = re.search(r"(\d+) bugs were written .* caught (\d+) .* for (\d+) of\s+them .* for (\d+)",
                     page, re.DOTALL)  # fmt: skip
    assert told is not None
    assert [int(n) for n in told.groups()] == [len(BUGS), caught, named, right]


@pytest.mark.long
@pytest.mark.parametrize("name", ["student/embed-sum-remembered", "tiles/clip-each-array"])
def test_the_suite_catches_them_as_recorded(name: str):
    bug = next(bug for bug in BUGS if bug.id == name)
    assert unseen.outcome(bug)["caught"]


def test_a_change_that_no_longer_fits_is_an_error():
    bug = BUGS[0]
    gone = unseen.Unseen(bug.shape, "gone", bug.truth, (), (("no such text", ""),), "")
    with pytest.raises(ValueError, match="changes a text that stands 0 times"):
        gone.source()
