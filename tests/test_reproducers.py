"""The lines under a finding, pasted into Python, show what is wrong and what is right."""

import contextlib
import io
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from minprefix.conformance import all_checks, load, zoo
from minprefix.conformance.isolated import run_isolated

#: a check of each kind
KINDS = [
    "attention/usual",
    "layernorm/float32",
    "gelu/by-hand",
    "cross_entropy/derivative",
    "attention/law-values",
    "linear/drawn",
    "model/shared-prefix",
    "decoding/own-prefixes",
    "lora/usual",
    "lora/law-merged",
    "training/one-step",
]
OTHERS = [
    pytest.param(check, marks=pytest.mark.long) for check in all_checks() if check not in KINDS
]
CAUGHT = json.loads((Path(__file__).parent / "zoo" / "matrix.json").read_text(encoding="utf-8"))


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """Writes a file with this project's functions, one of the zoo's bugs among them."""
    monkeypatch.chdir(tmp_path)

    def write(bug: str, more: str = "") -> str:
        Path("mine.py").write_text(
            "from minprefix.conformance.zoo import all_bugs, plant\n"
            f"globals().update(vars(plant(all_bugs()[{bug!r}]).functions))\n{more}"
        )
        return "mine.py"

    return write


def bug_for(check: str) -> str:
    """A bug that fails this check."""
    known = [name for name, bug in CAUGHT["bugs"].items() if check in bug["caught_by"]]
    for name in known or zoo.all_bugs():
        bug, one = zoo.all_bugs()[name], all_checks()[check]
        if zoo.affects(bug, one) and one.collect(zoo.plant(bug)).findings:
            return name
    raise AssertionError(f"no bug fails {check}")


def pasted(lines: str) -> str:
    out = io.StringIO()
    ignored = np.errstate(all="ignore")  # a warning is an error under pytest
    with contextlib.redirect_stdout(out), contextlib.suppress(Exception), ignored:
        exec(lines, {})
    return out.getvalue()


def shows(finding, said: str) -> bool:
    """Whether both the wrong and the right value are in what was printed."""
    if finding.worst:
        numbers = [float(n) for n in re.findall(r"-?(?:\d[\d.]*(?:e[+-]?\d+)?|inf|nan)", said)]
        _, got, want = finding.worst[0]
        return all(
            any(math.isclose(n, value, rel_tol=1e-5) or n is value for n in numbers)
            or (math.isnan(value) and "nan" in said)
            for value in (got, want)
        )
    parts = re.match(r"(.*) is wrong, (.*) is right", said)
    return parts[1] != parts[2] if parts else finding.sentence in said


@pytest.mark.parametrize("check", [*KINDS, *OTHERS])
def test_the_lines_under_a_finding_show_what_is_wrong_and_what_is_right(check, mine):
    spec = mine(bug_for(check))
    result = all_checks()[check].grade(load(spec))
    assert result.findings
    for finding in result.findings[:3]:
        said = pasted(finding.reproducer)
        assert shows(finding, said), (finding.sentence, finding.reproducer, said)


WRONG = {
    "exception": "def gelu(x):\n    raise ValueError('not today')\n",
    "signature": "def gelu(y, x):\n    pass\n",
    "not an array": "def gelu(x):\n    return None, None\n",
    "shape": "old = gelu\ndef gelu(x):\n    out, cache = old(x)\n    return out.T, cache\n",
    "dtype": "old = gelu\ndef gelu(x):\n    out, c = old(x)\n    return out.astype('f4'), c\n",
    "missing": "old = gelu\ndef gelu(x):\n    return old(x)[0]\n",
    "modified": (
        "old = layernorm\ndef layernorm(x, gain, bias, eps):\n"
        "    out = old(x, gain, bias, eps)\n    gain += 1\n    return out\n"
    ),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_finding_that_is_no_wrong_number_is_shown_too(kind, mine):
    spec = mine("dprefix-unscaled", WRONG[kind])
    op = "layernorm" if kind == "modified" else "gelu"
    found = all_checks()[f"{op}/usual"].grade(load(spec)).findings
    finding = next(f for f in found if f.kind == kind)
    if kind == "exception":  # in a Python of its own: the traceback is what is wrong
        ran = subprocess.run(
            [sys.executable, "-c", finding.reproducer], capture_output=True, text=True, check=False
        )
        assert "expected: gelu gives out, cache" in ran.stdout
        assert "ValueError: not today" in ran.stderr
    else:
        assert shows(finding, pasted(finding.reproducer)), finding


@pytest.mark.long
@pytest.mark.parametrize(
    ("body", "said"), [("while True: pass", "Timeout"), ("import os; os.abort()", "Fatal Python")]
)
def test_a_loop_and_a_crash_are_shown_with_the_line_where_they_are(body, said, mine):
    spec = mine("erf-gelu", f"def gelu(x):\n    {body}\n")
    result = run_isolated(spec, [all_checks()["gelu/usual"]], 1.0)[0]
    ran = subprocess.run(
        [sys.executable, "-c", result.findings[0].reproducer],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "expected: gelu returns" in ran.stdout
    assert said in ran.stderr
    assert re.search(r'mine.py", line 4 in gelu', ran.stderr)
