"""The README's Python runs and prints what it says; its commands are real."""

import doctest
import re
import shlex
from pathlib import Path

import pytest

from minprefix import cli

ROOT = Path(__file__).parents[1]
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
            cli._parser().parse_args(shlex.split(command)[1:])
        except SystemExit:
            pytest.fail(f"the README has a command that does not parse: {command}")


def test_the_test_command_is_the_one_that_ci_runs():
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert 'pip install -e ".[test]" && pytest\npytest -m long\n' in README
    assert '-e ".[test]"' in ci
    assert re.search(r"^step pytest\nstep pytest -m long$", ci, re.MULTILINE)
