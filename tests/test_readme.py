"""The README's Python runs and prints what it says; its commands are real."""

import doctest
import re
import shlex
import tomllib
from pathlib import Path

import pytest

from minprefix import cli

ROOT = Path(__file__).parents[1]
RE = re.MULTILINE | re.DOTALL
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_examples_print_what_the_readme_says(monkeypatch):
    monkeypatch.chdir(ROOT)
    failed, tried = doctest.testfile(str(ROOT / "README.md"), module_relative=False)
    assert tried > 5
    assert failed == 0


def test_no_place_is_left_to_be_filled_in():
    assert "@@" not in README


def test_every_link_of_the_readme_leads_to_a_file():
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_every_command_of_the_readme_parses():
    text = README.replace("\\\n", " ")
    commands = re.findall(r"^minprefix .*$", text, re.MULTILINE)
    commands += re.findall(r"&& (minprefix .*)$", text, re.MULTILINE)
    assert len(commands) >= 5
    for command in commands:
        try:
            cli._parser().parse_args(shlex.split(command, comments=True)[1:])
        except SystemExit:
            pytest.fail(f"the README has a command that does not parse: {command}")


@pytest.mark.long
def test_the_example_of_ones_own_pairs_runs_and_writes_what_the_readme_says(
    monkeypatch, tmp_path, capsys
):
    found = re.search(r"^cat > pairs.csv <<END\n(.*?)END\n(.*?)```\n\n```\n(.*?)```", README, RE)
    pairs, commands, wanted = found.groups()
    (tmp_path / "pairs.csv").write_text(pairs, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    for command in commands.splitlines():
        assert cli.main(shlex.split(command)[1:]) == 0
    said = capsys.readouterr().out

    def without_times(text):  # nor the last digit of the loss that a training ends in
        return re.sub(r"^\d+ s;|(?<=0\.0)\d\d(?= with the prefix)", "", text, flags=re.MULTILINE)

    assert without_times(said) == without_times(wanted)


def test_the_test_command_is_the_one_that_ci_runs():
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert 'pip install -e ".[test]" && pytest\npytest -m long\n' in README
    assert '-e ".[test]"' in ci
    assert re.search(r"^step pytest\nstep pytest -m long$", ci, re.MULTILINE)


def test_what_the_tests_stand_on_is_pinned_in_one_place():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    asked = [r for name in ("test", "test-cupy", "browser", "mutation") for r in extras[name]]
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
