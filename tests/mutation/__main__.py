"""Break the arithmetic in every way that mutmut knows, and in a few more: does a test fail?

    pip install -e '.[test,mutation]'
    python -m tests.mutation            from the root of the repository; more than half an hour
    python -m tests.mutation --keep     goes on with a run that was interrupted

Writes `RESULT.md` beside this file. Fails when a mutant survives for no reason given in
`mutants.toml`, when a reason there has no survivor, and when a mutant was not tried. Which files
are broken and which tests run: `tool.mutmut` in pyproject.toml. pytest collects nothing in here.
"""

import datetime
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections import Counter
from pathlib import Path
from typing import Any

from mutmut.mutation.diff_apply import get_diff_for_mutant
from mutmut.stats import status_by_exit_code

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
MUTANTS = ROOT / "mutants"  # mutmut's own room
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
TIME_LIMIT = 300  # s  for one mutant made by hand


def run_mutmut() -> None:
    """Its exit code says nothing of survivors; what it left in `mutants/` does."""
    command = [sys.executable, "-m", "mutmut", "run", "--max-children", "1"]
    subprocess.run(command, check=True, cwd=ROOT, env=os.environ | ONE_THREAD)


def key(name: str, path: Path) -> tuple[str, str, str]:
    """mutmut's name of a mutant, which changes with the source, and its file -> its function, and
    the changed lines before and after."""
    function = name.removeprefix("minprefix.").rpartition("__mutmut_")[0]
    function = function.replace(".x_", ".").replace(".xǁ", ".").replace("ǁ", ".")
    diff = get_diff_for_mutant(name, path=path).splitlines()[2:]
    was, becomes = (
        " ".join(line[1:].split("  # ")[0].strip() for line in diff if line[0] == sign)
        for sign in "-+"
    )
    return function, was, becomes or "(gone)"


def outcomes() -> tuple[dict[str, Counter[str]], list[tuple[str, str, str]]]:
    """-> for each file how many mutants ended how, and the key of each that no test caught."""
    counts, survivors = {}, []
    for meta in sorted(MUTANTS.rglob("*.py.meta")):
        path = meta.relative_to(MUTANTS).with_suffix("")
        ends = json.loads(meta.read_text(encoding="utf-8"))["exit_code_by_key"]
        counts[path.as_posix()] = Counter(status_by_exit_code[code] for code in ends.values())
        survivors += [
            key(name, path)
            for name, code in ends.items()
            if status_by_exit_code[code] not in ("killed", "timeout")
        ]
    return counts, survivors


def survives(mutant: dict[str, str], settings: dict[str, Any]) -> bool:
    """Run the same tests over a copy of the repository with one text exchanged for another."""
    with tempfile.TemporaryDirectory() as room:
        for part in ("minprefix", "tests", "weights", "pyproject.toml"):
            copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
            copy(ROOT / part, Path(room) / part)
        path = Path(room) / mutant["file"]
        source = path.read_text(encoding="utf-8")
        if source.count(mutant["was"]) != 1:
            sys.exit(f"mutants.toml: {mutant['was']!r} stands not once in {mutant['file']}")
        path.write_text(source.replace(mutant["was"], mutant["becomes"]), encoding="utf-8")
        command = [sys.executable, "-m", "pytest", "-x", *settings["pytest_add_cli_args"]]
        command += settings["pytest_add_cli_args_test_selection"]
        env = os.environ | ONE_THREAD | {"PYTHONPATH": room}
        try:
            done = subprocess.run(
                command, cwd=room, env=env, timeout=TIME_LIMIT, capture_output=True
            )
        except subprocess.TimeoutExpired:
            return False
        return done.returncode == 0


def row(*cells: str) -> str:
    return "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |"


def main() -> int:
    if "--keep" not in sys.argv:
        shutil.rmtree(MUTANTS, ignore_errors=True)
    run_mutmut()
    counts, survivors = outcomes()
    given = tomllib.loads((HERE / "mutants.toml").read_text(encoding="utf-8"))
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    settings = pyproject["tool"]["mutmut"]
    if not survives(given["by_hand"][0] | {"becomes": given["by_hand"][0]["was"]}, settings):
        sys.exit("the tests fail without a mutant: nothing can be said of the mutants")
    by_hand = [(m, survives(m, settings)) for m in given["by_hand"]]

    reasons = {
        (function, becomes): group["reason"]
        for group in given["survivors"]
        for function, texts in group["mutants"].items()
        for becomes in texts
    }
    found = [(function, becomes) for function, _, becomes in survivors]
    wrong = [f"survives for no reason given: {m}" for m in found if m not in reasons]
    wrong += [f"a reason without a survivor: {m}" for m in reasons if m not in found]
    wrong += [f"survives: {m['becomes']} in {m['file']}" for m, survived in by_hand if survived]

    ends = ("killed", "timeout")
    packages = ("mutmut", "numpy", "torch", "transformers", "hypothesis", "pytest")
    versions = [f"Python {platform.python_version()}"]
    versions += [f"{p} {importlib.metadata.version(p)}" for p in packages]
    lines = [
        "# Mutation testing: the last result",
        "",
        "Written by `python -m tests.mutation` (needs `pip install -e '.[test,mutation]'`), which "
        "breaks",
        "each line of the arithmetic and looks whether a test notices. Reasons stand in "
        "`mutants.toml`.",
        "",
        f"{datetime.date.today()}: {', '.join(versions)}. Tests: "
        + ", ".join(f"`{t}`" for t in settings["pytest_add_cli_args_test_selection"])
        + ".",
        "",
        row("file", "mutants", "killed by a test", "timed out", "survived"),
        row("---", *["---:"] * 4),
    ]
    for path, count in [*counts.items(), ("all", sum(counts.values(), Counter()))]:
        caught = [count[end] for end in ends]
        lines.append(row(path, *map(str, (count.total(), *caught, count.total() - sum(caught)))))
    lines += [
        "",
        "## What mutmut does not reach",
        "",
        "Constants of a module, defaults of a dataclass, functions with a decorator and a bare `if "
        "name:`:",
        "broken by hand.",
        "",
        row("file", "was", "becomes", "a test fails"),
        row(*["---"] * 4),
        *(
            row(m["file"], f"`{m['was']}`", f"`{m['becomes']}`", "no" if survived else "yes")
            for m, survived in by_hand
        ),
        "",
        "## Survivors",
        "",
    ]
    groups: dict[str, list[str]] = {}
    for function, was, becomes in survivors:
        reason = reasons.get((function, becomes), "No reason is given.")
        groups.setdefault(reason, []).append(row(function, f"`{was}`", f"`{becomes}`"))
    for reason, rows in groups.items():
        lines += [f"**{reason}**", "", row("in", "was", "becomes"), row(*["---"] * 3), *rows, ""]
    (HERE / "RESULT.md").write_text("\n".join(lines), encoding="utf-8")
    print("\n".join(wrong) or "every survivor has its reason")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
