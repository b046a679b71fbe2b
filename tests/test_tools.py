"""The makers' commands: each is documented, starts anywhere, and stays out of the package."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

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
