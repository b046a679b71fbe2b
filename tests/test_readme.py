"""The README and the pages of docs/: their Python prints what they say, their commands are real,
their links lead somewhere, and the README stays two screens long."""

import doctest
import re
import shlex
import tomllib
from pathlib import Path

import pytest

from minprefix import cli
from minprefix.conformance.zoo import all_bugs
from minprefix.lessons import planted
from tests import check_wheel
from tools.bench import __main__ as bench

ROOT = Path(__file__).parents[1]
RE = re.MULTILINE | re.DOTALL
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCS = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md"))
TEACHING = "tutorials/TEACHING.md"
#: every page that a reader can come to by links
LINKED = ["README.md", *DOCS, TEACHING, "weights/README.md", "weights/tiny/README.md"]
LINKED += ["BENCHMARKS.md", "CHANGELOG.md", "CONTRIBUTING.md", "RELIABILITY.md"]
LINKED += ["tools/README.md", "tests/vectors/README.md", "tests/adapters_library.md"]
LINKED += ["tests/mutation/RESULT.md", "tests/oracles/TABLE.md"]
LINKED += ["tests/zoo/COMPARE.md", "tests/zoo/ZOO.md", "tests/zoo/unseen/RESULT.md"]
LINKED += ["tests/zoo/unseen/unseen1.md", "tests/zoo/unseen/unseen2.md"]


def read(page):
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page):
    """The text of each fenced block."""
    return re.findall(r"^```\w*\n(.*?)^```$", read(page), RE)


@pytest.mark.parametrize("page", [page for page in ["README.md", *DOCS] if ">>>" in read(page)])
def test_the_examples_print_what_the_page_says(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    failed, tried = doctest.testfile(str(ROOT / page), module_relative=False)
    assert tried > 5
    assert failed == 0


def test_the_readme_is_two_screens_long():
    assert len(README) <= 9000


@pytest.mark.parametrize("page", DOCS)
def test_a_page_of_docs_starts_with_a_command_and_the_readme_leads_to_it(page):
    assert re.match(r"# .+\n\n```\n(minprefix|pip|python -m tools\.)", read(page))
    assert f"]({page})" in README


def anchors(page):
    """The headings of a page as GitHub links to them."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```$", "", read(page), flags=RE), re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def lost_links(page):
    """The relative links of a page that lead to no file, or to no heading of one."""
    lost = []
    for link in re.findall(r"\]\((?!https?:)([^)]+)\)", read(page)):
        path, _, anchor = link.partition("#")
        there = (ROOT / page).parent / path if path else ROOT / page
        if not there.exists() or (anchor and anchor not in anchors(there.relative_to(ROOT))):
            lost.append(link)
    return lost


@pytest.mark.parametrize("page", LINKED)
def test_every_relative_link_leads_to_a_file(page):
    assert "@@" not in read(page)  # a place that is left to be filled in
    assert lost_links(page) == []


@pytest.mark.parametrize("page", ["README.md", *DOCS, TEACHING])
def test_every_command_parses(page):
    text = "".join(blocks(page)).replace("\\\n", " ")
    commands = r"^(?:.* \| )?(minprefix|python -m tools\.bench) (.*)$"
    for program, options in re.findall(commands, text, re.MULTILINE):
        parser = cli._parser() if program == "minprefix" else bench.parser()
        try:
            parser.parse_args(shlex.split(options, comments=True))
        except SystemExit:
            pytest.fail(f"{page} has a command that does not parse: {program} {options}")


def test_the_picture_is_a_small_file_and_the_command_that_draws_it_is_named():
    (picture,) = re.findall(r"!\[.+\]\((.+)\)", README)
    assert (ROOT / picture).stat().st_size < 200_000
    assert re.search(rf"^minprefix plot .* --out {picture}$", read("docs/microscope.md"), re.M)


def matches(wanted, said):
    """Whether the lines of `wanted` stand in `said`, one after the other; `[...]` is any lines."""
    parts = [re.escape(part.strip("\n")) for part in re.split(r"^\[\.\.\.\]$", wanted, flags=re.M)]
    return re.search("\n.*?".join(parts), said, re.DOTALL) is not None


@pytest.mark.long
def test_the_demo_prints_what_the_readme_says(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["demo"]) == 0
    said = capsys.readouterr().out
    wanted = next(block for block in blocks("README.md") if "The frozen model" in block)
    without_time = [re.sub(r"; training .* s$", "", text, flags=re.M) for text in (wanted, said)]
    assert matches(*without_time)


@pytest.mark.long
def test_the_example_of_ones_own_pairs_runs_and_writes_what_the_page_says(
    monkeypatch, tmp_path, capsys
):
    example = r"^cat > pairs.csv <<END\n(.*?)END\n(.*?)```\n\n```\n(.*?)```"
    pairs, commands, wanted = re.search(example, read("docs/train.md"), RE).groups()
    (tmp_path / "pairs.csv").write_text(pairs, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    for command in commands.splitlines():
        assert cli.main(shlex.split(command)[1:]) == 0
    said = capsys.readouterr().out

    def without_times(text):  # nor the last digit of the loss that a training ends in
        return re.sub(r"^\d+ s;|(?<=0\.0)\d\d(?= with the prefix)", "", text, flags=re.MULTILINE)

    assert without_times(said) == without_times(wanted)


@pytest.mark.long
def test_the_report_of_a_bug_is_the_one_that_the_page_shows(monkeypatch, tmp_path, capsys):
    (tmp_path / "my_ops.py").write_text(planted("dprefix-unscaled").source(), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert cli.main(["check", "my_ops.py", "--only", "attention", "--level", "ops"]) == 1
    wanted = next(block for block in blocks("docs/check.md") if "dprefix-unscaled" in block)
    assert wanted in capsys.readouterr().out


@pytest.mark.long
def test_the_attention_of_other_shapes_on_the_page_passes(monkeypatch, tmp_path, capsys):
    (code,) = (block for block in blocks("docs/check.md") if "scaled_dot_product" in block)
    (tmp_path / "theirs.py").write_text(code, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert cli.main(["check", "theirs.py", "--only", "attention", "--level", "ops"]) == 0
    assert "not graded: attention_backward" in capsys.readouterr().out
    wrong = code.replace(".tril(P)", ".tril(0)")  # as is_causal=True has it
    (tmp_path / "wrong.py").write_text(wrong, encoding="utf-8")
    assert cli.main(["check", "wrong.py", "--only", "attention", "--level", "ops"]) == 1
    assert "mask-at-the-wrong-corner" in capsys.readouterr().out


def test_the_numbers_of_the_pages_are_those_of_their_records():
    bugs = len(all_bugs())
    zoo = re.search(r"each is caught, and for (\d+) of them", read("tests/zoo/ZOO.md"))[1]
    assert f"all {bugs} bugs" in README
    assert f"holds {bugs} bugs" in read("docs/check.md")
    assert f"For {zoo} of them" in read("docs/check.md")
    mutants = re.search(
        r"^\| all \| (\d+) \| \d+ \| 0 \| (\d+) \|$", read("tests/mutation/RESULT.md"), re.M
    )
    assert f"Of {mutants[1]} mutants" in read("docs/check.md")
    assert f"all but {mutants[2]}" in read("docs/check.md")
    named, of = re.search(r"^\*\*(\d+) of (\d+)\*\*", read("tests/zoo/COMPARE.md"), re.M).groups()
    assert f"for {named} of the zoo's {of} bugs" in read("docs/microscope.md")
    figures = r"^\| [\w-]+ \| PyTorch \+ PEFT \| .*? s \| ([\d.]+) \("
    measured = re.findall(figures, read("BENCHMARKS.md"), re.M)
    told = re.findall(r"^\| a training step.* \| ([\d.]+) \|$", read("docs/how-fast.md"), re.M)
    assert sorted(told) == sorted(measured)
    e2e = re.search(
        r"^\| e2e-10 \| minprefix \| (.*? s) \| - \| (\d+ MB) ", read("BENCHMARKS.md"), re.M
    )
    assert f"takes {e2e[1]} and {e2e[2]}" in read("docs/train.md")


def test_the_test_command_is_the_one_that_ci_runs():
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    contributing = read("CONTRIBUTING.md")
    assert 'pip install -e ".[test]" && pytest\n' in contributing
    assert "`pytest -m long`" in contributing
    assert '-e ".[test]"' in ci
    assert re.search(r"^step pytest\nstep pytest -m long$", ci, re.MULTILINE)


def test_what_the_tests_stand_on_is_pinned_in_one_place():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    needed = ("test", "test-cupy", "browser", "release", "mutation")
    asked = [r for name in needed for r in extras[name]]
    asked.remove("minprefix[lessons]")
    pinned = dict(
        re.fullmatch(r"([\w-]+)==([\d.]+)", requirement).groups() for requirement in asked
    )
    for requirement in extras["lessons"] + extras["scores"]:
        assert re.match(r"[\w-]+", requirement)[0] in pinned
    # users are not held to these versions, and nothing else names one
    assert not [r for r in project["dependencies"] + extras["lessons"] if "==" in r]
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert 'pip install --quiet -e ".[test-cupy]"' in ci
    assert "newest" not in ci
    assert not re.search(r"[=>]=\d", ci + (ROOT / ".ci" / "newest").read_text(encoding="utf-8"))
    assert not [name for name in pinned if re.search(rf"install.*\b{name}\b", ci)]


def test_the_readme_that_a_package_shows_and_its_pages_travel_with_the_source():
    assert tomllib.loads(read("pyproject.toml"))["project"]["readme"] == "README.md"
    tops = {page.partition("/")[0] for page in LINKED}
    assert tops <= {*check_wheel.TESTED, *check_wheel.pages()}  # .ci/run holds the sdist to them
