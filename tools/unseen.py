"""The suite on bugs that its authors have not seen: how many it catches, names and explains.

`python -m tools.unseen` plants each bug of tests/zoo/unseen into its implementation, runs the suite
over it as `minprefix check` does, and writes result.json and RESULT.md there. Whether the first
entry of a report gives the right reason is for a person to say: `judged.json` holds what was said,
and of which text.
"""

import hashlib
import importlib
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from minprefix import __version__, console
from minprefix.cli.parser import Parser
from minprefix.conformance import report
from minprefix.conformance.check import Result
from minprefix.conformance.contract import ARGUMENTS
from minprefix.conformance.isolated import Worker
from minprefix.conformance.suite import select
from minprefix.storage.reading import read_json
from minprefix.storage.writing import write_json, write_text

PLACE = Path(__file__).resolve().parents[1] / "tests" / "zoo" / "unseen"
COMMAND = "python -m tools.unseen"
RESULT, PAGE, JUDGED = "result.json", "RESULT.md", "judged.json"


@dataclass(frozen=True)
class Unseen:
    """A bug. `shape`: the implementation that it is planted in; `truth`, `also`: the functions and
    tensors that may rightly be named first; `reason`: what is wrong."""

    shape: str
    name: str
    truth: tuple[str, str]
    also: Sequence[tuple[str, str]]
    change: Sequence[tuple[str, str]]
    reason: str

    @property
    def id(self) -> str:
        return f"{self.shape}/{self.name}"

    def source(self) -> str:
        """The implementation's text with the bug in it. Raises ValueError if the text that it
        changes is not there exactly once."""
        text = (PLACE / f"{self.shape}.py").read_text(encoding="utf-8")
        for old, new in self.change:
            if text.count(old) != 1:
                raise ValueError(f"{self.id} changes a text that stands {text.count(old)} times")
            text = text.replace(old, new)
        return text

    def levels(self) -> list[str]:
        return ["ops"] if self.truth[0] in ARGUMENTS else ["model", "training"]

    def names(self, function: str, tensor: str) -> bool:
        """Whether this is what the bug makes wrong first. A tensor "" is about state, and any
        tensor of the function will do."""
        stem = tensor.split(" ")[0].split("[")[0]
        return any(
            function == f and (t == "" or stem == t.split("[")[0])
            for f, t in (self.truth, *self.also)
        )


def all_unseen() -> list[Unseen]:
    found = []
    for path in sorted(PLACE.glob("*_bugs.py")):
        shape = path.stem.removesuffix("_bugs")
        bugs = importlib.import_module(f"tests.zoo.unseen.{path.stem}").BUGS
        for b in bugs:
            also = [tuple(each) for each in b.get("also", ())]
            found.append(
                Unseen(shape, b["name"], tuple(b["truth"]), also, b["change"], b["reason"])
            )
    return found


def outcome(bug: Unseen) -> dict[str, Any]:
    """What the suite says of a bug: as data, and the first entry of its report."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{bug.shape}.py"
        path.write_text(bug.source(), encoding="utf-8")
        results = _results(str(path), bug.levels())
    first = report.as_json(results, bug.shape)["first"]
    text = report.text(results, bug.shape).replace(folder, "")
    return {
        "caught": first is not None,
        "named": first is not None and bug.names(first["function"], first["tensor"]),
        "first": None if first is None else f"{first['function']}, {first['tensor']}",
        "check": None if first is None else first["check"],
        "truth": ", ".join(bug.truth),
        "reason": bug.reason,
        "said": _entry(text) if first is not None else "",
    }


#: after so many failed checks no later one changes what the report says first
ENOUGH = 3


def _results(spec: str, levels: Sequence[str]) -> list[Result]:
    results: list[Result] = []
    with Worker(spec) as worker:
        for check in select(levels=levels):
            results.append(worker.grade(check))
            if sum(r.status == "failed" for r in results) == ENOUGH:
                break
    return results


def _entry(text: str) -> str:
    """The first entry of a report, without its reproducer."""
    lines = text.splitlines()
    start = next((i for i, line in enumerate(lines) if line.startswith("1. ")), None)
    if start is None:
        return "\n".join(lines[-3:])
    entry = []
    for line in lines[start:]:
        if not line or line.strip() == "to see it, in Python:":
            break
        entry.append(line)
    return "\n".join(entry)


def digest(said: str) -> str:
    return hashlib.sha256(said.encode()).hexdigest()[:12]


def judged(outcomes: Mapping[str, Mapping[str, Any]]) -> dict[str, bool]:
    """Bug -> whether its first entry was judged to give the right reason. What was judged of
    another text does not count."""
    path = PLACE / JUDGED
    known = read_json(path, "what was judged") if path.is_file() else {}
    return {
        name: known[name]["right"]
        for name, o in outcomes.items()
        if name in known and known[name]["said"] == digest(o["said"])
    }


def page(outcomes: Mapping[str, Mapping[str, Any]], right: Mapping[str, bool], when: str) -> str:
    n, caught = len(outcomes), [o for o in outcomes.values() if o["caught"]]
    named, reasons = sum(o["named"] for o in caught), sum(right.values())
    of = max(len(caught), 1)
    lines = [
        "# Bugs that the suite had not seen",
        "",
        f"Written by `{COMMAND}` on {when}: Python {sys.version.split()[0]}, "
        f"NumPy {np.__version__}, minprefix {__version__}.",
        "",
        f"**{len(caught)} of {n} are caught** ({len(caught) / n:.1%}); of these, the first entry "
        f"of the report names what is wrong first for {named} ({named / of:.1%}), and gives the "
        f"right reason for {reasons} ({reasons / of:.1%}; {len(right)} were judged, one by one).",
        "",
        "How they were made: [one](unseen1.md), [two](unseen2.md). No author of the suite read "
        "them before they were measured.",
        "",
        "| bug | first wrong | caught by | first named | named | reason |",
        "|---|---|---|---|---|---|",
    ]
    for name, o in outcomes.items():
        reason = ("yes" if right[name] else "no") if name in right else ""
        lines.append(
            f"| {name} | {o['truth']} | {o['check'] or '**missed**'} | {o['first'] or ''} "
            f"| {'yes' if o['named'] else 'no'} | {reason} |"
        )
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    console.take_every_character()
    parser = Parser(prog=COMMAND, description=__doc__)
    parser.add_argument(
        "--only", metavar="WORD", help="bugs whose id has this in it; prints, and writes nothing"
    )
    parser.add_argument("--page", action="store_true", help="write the page again from result.json")
    parser.add_argument("--jobs", type=int, default=2)
    args = parser.parse_args(arguments)
    if args.page:
        data = read_json(PLACE / RESULT, "the result")
    else:
        bugs = [b for b in all_unseen() if not args.only or args.only in b.id]
        with ThreadPoolExecutor(args.jobs) as pool:  # each check runs in a process of its own
            found = list(tqdm(pool.map(outcome, bugs), total=len(bugs), unit="bug"))
        data = {
            "date": date.today().isoformat(),
            "bugs": {b.id: o for b, o in zip(bugs, found, strict=True)},
        }
    if args.only:
        print(json.dumps(data, indent=2))
        return 0
    write_json(PLACE / RESULT, data)
    write_text(PLACE / PAGE, page(data["bugs"], judged(data["bugs"]), data["date"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
