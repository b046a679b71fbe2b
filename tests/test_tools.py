"""The makers' commands: each is documented, starts anywhere, and stays out of the package."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from minprefix.storage.reading import read_json
from tools import little_data

ROOT = Path(__file__).parents[1]
COMMANDS = sorted(
    "tools." + path.parent.name if path.name == "__main__.py" else f"tools.{path.stem}"
    for path in [*(ROOT / "tools").glob("*.py"), *(ROOT / "tools").glob("*/__main__.py")]
    if path.name != "__init__.py"
)


def test_the_page_lists_each_command_and_no_other():
    page = (ROOT / "tools" / "README.md").read_text(encoding="utf-8")
    assert sorted(set(re.findall(r"`python -m ([\w.]+)", page))) == COMMANDS


@pytest.mark.parametrize("module", COMMANDS)
def test_a_command_starts_in_any_folder(module, tmp_path):
    env = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"}
    ended = subprocess.run(
        [sys.executable, "-m", module, "--help"],
        cwd=tmp_path, env=env, capture_output=True, text=True,
    )  # fmt: skip
    assert ended.stdout.startswith(f"usage: python -m {module} "), ended.stderr


def test_the_package_does_not_know_them():
    for path in (ROOT / "minprefix").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"^\s*(from|import) tools\b", text, re.MULTILINE), path


def test_the_numbers_of_lesson_12_are_those_of_its_record():
    record = read_json(little_data.RECORD, "the record")
    text = (ROOT / "tutorials" / "12_little_data.py").read_text(encoding="utf-8")
    for line in little_data.table(record):
        assert f"# {line}\n" in text
    typed = re.search(r"^BOOKS = (\{.*?^\})$", text, re.MULTILINE | re.DOTALL)
    for budget, by_method in ast.literal_eval(typed[1]).items():
        examples, steps = map(int, re.findall(r"\d+", budget))
        for method, losses in by_method.items():
            cell = little_data.Cell(examples, steps, method, 0)
            assert losses == [round(x, 5) for x in little_data.column(record, cell, "books")]
