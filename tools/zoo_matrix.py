"""Which check catches which bug of the zoo: as data, as a picture, as a page to read.

`python -m tools.zoo_matrix` writes matrix.json, matrix.png and ZOO.md into tests/zoo, and the
fingerprints by which the suite recognises a bug into the package. Nothing in them depends on time:
the same code gives the same bytes.
"""

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import hypothesis
from tqdm import tqdm

from minprefix import console
from minprefix.cli.parser import Parser
from minprefix.conformance.bug import Bug
from minprefix.conformance.check import Check, Finding, Grade
from minprefix.conformance.suite import all_checks
from minprefix.conformance.zoo import (
    FINGERPRINTS,
    affects,
    all_bugs,
    fingerprint,
    matches,
    plant,
    wrong_tensors,
)

PLACE = Path(__file__).resolve().parents[1] / "tests" / "zoo"
DATA, PICTURE, PAGE = "matrix.json", "matrix.png", "ZOO.md"
COMMAND = "python -m tools.zoo_matrix"


@dataclass
class Row:
    """What the suite says of one bug."""

    bug: Bug
    #: id of each check that fails -> its wrong tensors and their fingerprints
    caught: dict[str, dict[str, float | None]] = field(default_factory=dict)
    check: Check | None = None  # the first that fails
    grade: Grade | None = None  # and what it found
    alike: list[str] = field(default_factory=list)  # bugs with the same numbers there

    @property
    def first(self) -> Finding | None:
        """The finding that a reader sees first."""
        return self.grade.findings[0] if self.grade else None

    @property
    def named(self) -> tuple[str, str]:
        """Op and tensor of the first finding, in the words of `Bug.truth`."""
        if self.check is None or self.first is None:
            return "", ""
        # "z of the first of two calls" is z, dprefix_k[1] is dprefix_k
        return self.check.op, self.first.tensor.split(" ")[0].split("[")[0]

    @property
    def right(self) -> bool:
        return self.named == self.bug.truth


def compute(
    names: Sequence[str] | None = None, progress: bool = False, processes: int = 1
) -> list[Row]:
    """Every bug (or those named) through every check that can see its code."""
    bugs = all_bugs()
    chosen = list(bugs) if names is None else list(names)
    if processes == 1:
        rows = [_row(bugs[name]) for name in tqdm(chosen, disable=not progress, unit="bug")]
    else:
        with get_context("spawn").Pool(processes) as pool:
            found = pool.imap(_found, chosen)
            rows = [
                Row(bugs[name], caught, None if check is None else all_checks()[check], grade)
                for name, (caught, check, grade) in zip(
                    chosen, tqdm(found, total=len(chosen), disable=not progress), strict=True
                )
            ]
    prints = fingerprints(rows)
    for row in rows:
        if row.check is not None and row.grade is not None:
            row.alike, _ = matches(row.check, row.grade, prints)
    return rows


def _found(name: str) -> tuple[dict[str, dict[str, float | None]], str | None, Grade | None]:
    """What of a row can go from one process to another."""
    row = _row(all_bugs()[name])
    return row.caught, None if row.check is None else row.check.id, row.grade


def _row(bug: Bug) -> Row:
    row, planted = Row(bug), plant(bug)
    for check in all_checks().values():
        if not affects(bug, check):
            continue
        grade = check.collect(planted)
        if not grade.findings:
            continue
        wrong = wrong_tensors(grade)
        row.caught[check.id] = {name: fingerprint(a) for name, a in wrong.items()}
        if row.check is None:
            row.check, row.grade = check, grade
    return row


def fingerprints(rows: Sequence[Row]) -> dict[str, dict[str, list[Any]]]:
    """check -> bug -> its first wrong tensor there, and that tensor's fingerprint."""
    found: dict[str, dict[str, list[Any]]] = {}
    for row in rows:
        for check, wrong in row.caught.items():
            for tensor, number in list(wrong.items())[:1]:
                rounded = None if number is None else float(f"{number:.8g}")
                found.setdefault(check, {})[row.bug.name] = [tensor, rounded]
    return {check: found[check] for check in all_checks() if check in found}


def twins(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Pairs of bugs that give the same numbers everywhere: one bug under two names."""
    return [
        (a.bug.name, b.bug.name)
        for i, a in enumerate(rows)
        for b in rows[i + 1 :]
        if a.caught.keys() == b.caught.keys() and all(_same(a, b, check) for check in a.caught)
    ]


def _same(a: Row, b: Row, check: str) -> bool:
    x, y = a.caught[check], b.caught[check]
    return x.keys() == y.keys() and all(_close(x[name], y[name]) for name in x)


def _close(x: float | None, y: float | None) -> bool:
    if x is None or y is None:
        return x is y
    return abs(x - y) <= 1e-9 * max(abs(x), abs(y))


def data(rows: Sequence[Row]) -> dict[str, Any]:
    """The matrix for programs."""
    return {
        "drawn_by": f"hypothesis {hypothesis.__version__}",  # decides what the drawn checks see
        "checks": {c.id: {"level": c.level, "op": c.op, "why": c.why} for c in _columns()},
        "bugs": {
            row.bug.name: {
                "kind": row.bug.kind,
                "module": row.bug.module,
                "truth": list(row.bug.truth),
                "first_finding": {
                    "check": row.check.id if row.check else "",
                    "function": row.first.function if row.first else "",
                    "tensor": row.first.tensor if row.first else "",
                },
                "names_the_truth": row.right,
                "alike": row.alike,
                "caught_by": list(row.caught),
            }
            for row in rows
        },
    }


def _columns() -> list[Check]:
    """The checks, those of an op side by side."""
    order = list(dict.fromkeys(check.op for check in all_checks().values()))
    return sorted(all_checks().values(), key=lambda check: order.index(check.op))


# ---- a page to read -----------------------------------------------------------------------------


def page(rows: Sequence[Row]) -> str:
    """Markdown: each bug's change, what one would see, the lesson, and the checks that catch it."""
    right = sum(row.right for row in rows)
    lines = [
        "# The bug zoo",
        "",
        f"{len(rows)} mistakes, each a small change to a correct implementation of prefix-tuning, "
        "in the order in which their numbers arise. They prove that the reference suite has power: "
        f"each is caught, and for {right} of them the first finding names the op and the tensor "
        "that are the first to be wrong. *Truth* was written down before the suite was asked.",
        "",
        f"Written by `{COMMAND}`; [matrix.json]({DATA}) is the same for programs.",
        "",
        f"![Checks against bugs]({PICTURE})",
        "",
        "A column is a check, a row is a bug; a filled square means that the check fails. The "
        "square with a black edge is the first check that fails. The mark at the end of a row says "
        "whether the first finding names the truth.",
    ]
    for op, group in _groups(rows):
        lines += ["", f"## {op}", "", *(_contents(row) for row in group)]
        for row in group:
            lines += _section(row)
    return "\n".join(lines) + "\n"


def _groups(rows: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.bug.truth[0], []).append(row)
    return list(groups.items())


def _contents(row: Row) -> str:
    return f"- [{row.bug.name}](#{row.bug.name.lower()})"


def _section(row: Row) -> list[str]:
    bug = row.bug
    said = f"`{bug.truth[1]}`"
    if not row.right:
        said += f"; the first finding names `{row.named[1] or row.named[0]}`"
    others = [name for name in row.alike if name != bug.name]
    lines = [
        "",
        f"### {bug.name}",
        "",
        f"{bug.kind}, in `{bug.module}`; first wrong: {said}",
        "",
        "```diff",
        bug.diff(),
        "```",
        "",
        f"**You would see.** {bug.see}",
        "",
        f"**Lesson.** {bug.lesson}",
    ]
    if bug.source:
        lines += ["", f"**Seen in.** {bug.source}"]
    lines += ["", f"**Caught by** {_checks_of(row)}."]
    if others:
        lines += ["", f"**The same numbers at first:** {', '.join(others)}."]
    return lines


def _checks_of(row: Row) -> str:
    """ids grouped by op: `attention` usual, strided; `model` sum."""
    by_op: dict[str, list[str]] = {}
    for check in row.caught:
        op, _, name = check.partition("/")
        by_op.setdefault(op, []).append(name)
    return "; ".join(f"`{op}` {', '.join(names)}" for op, names in by_op.items())


def digest(rows: Sequence[Row]) -> str:
    """What the picture is of: it stands in the picture, so that an old one is found out."""
    return digest_of(as_json(data(rows)))


def digest_of(text: str) -> str:
    return f"sha256 {hashlib.sha256(text.encode()).hexdigest()}"


# ---- a picture ----------------------------------------------------------------------------------

_COLOURS = {"maths": "#2f6db3", "plumbing": "#d9772b", "training": "#3d9a5f"}
CELL = 12  # pixels of a row and of a column
_LEFT, _TOP, _RIGHT, _BOTTOM = 300, 190, 24, 50  # pixels for names


def picture(rows: Sequence[Row], path: Path) -> None:
    """Checks as columns, grouped by op and level; bugs as rows, coloured by kind."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    columns = _columns()
    x_of, width = _places([check.op for check in columns])
    y_of, height = _places([row.bug.truth[0] for row in rows])
    pixels = (_LEFT + width * CELL + _RIGHT, _TOP + height * CELL + _BOTTOM)
    figure = Figure(figsize=(pixels[0] / 100, pixels[1] / 100), dpi=100, facecolor="white")
    FigureCanvasAgg(figure)
    left, bottom = _LEFT / pixels[0], _BOTTOM / pixels[1]
    axes = figure.add_axes((left, bottom, width * CELL / pixels[0], height * CELL / pixels[1]))
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.axis("off")
    say = partial(axes.text, fontsize=7, clip_on=False)
    for check, x in zip(columns, x_of, strict=True):
        name = check.id.partition("/")[2]
        say(x + 0.5, -0.4, name, rotation=90, ha="center", va="bottom")
    for row, y in zip(rows, y_of, strict=True):
        colour = _COLOURS[row.bug.kind]
        say(-0.5, y + 0.5, row.bug.name, ha="right", va="center_baseline", color=colour)
        for check, x in zip(columns, x_of, strict=True):
            caught = check.id in row.caught
            first = row.check is check
            if not caught and not affects(row.bug, check):
                continue
            axes.add_patch(
                Rectangle(
                    (x + 0.08, y + 0.08),
                    0.84,
                    0.84,
                    facecolor=colour if caught else "#eeeeee",
                    edgecolor="black" if first else "none",
                    linewidth=1.2 if first else 0,
                )
            )
        say(width + 0.3, y + 0.5, "✓" if row.right else "✗", ha="left", va="center_baseline")
    head = partial(axes.text, fontweight="bold", ha="center", clip_on=False)
    for op, x in _first_places([check.op for check in columns], x_of):
        n = sum(check.op == op for check in columns)
        head(x + n / 2, -13.2, op, fontsize=7.5, va="bottom")
        axes.plot([x + 0.1, x + n - 0.1], [-13, -13], color="black", lw=0.8, clip_on=False)
    for op, y in _first_places([row.bug.truth[0] for row in rows], y_of):
        n = sum(row.bug.truth[0] == op for row in rows)
        head(-23.6, y + n / 2, op, fontsize=9, va="center", rotation=90)
        axes.plot([-23, -23], [y + 0.1, y + n - 0.1], color="black", lw=0.8, clip_on=False)
    right = sum(row.right for row in rows)
    for i, (kind, colour) in enumerate(_COLOURS.items()):
        axes.add_patch(Rectangle((i * 7, height + 1), 0.84, 0.84, facecolor=colour, clip_on=False))
        say(i * 7 + 1.3, height + 1.5, kind, va="center_baseline")
    say(
        22,
        height + 1.5,
        "black edge: the first check that fails    grey: passes    blank: cannot see the code    "
        f"✓ its first finding names the op and tensor that are first wrong: {right} of {len(rows)}",
        va="center_baseline",
    )
    figure.savefig(path, metadata={"Software": None, "Description": digest(rows)})


def _places(groups: Sequence[str]) -> tuple[list[float], float]:
    """Where each one stands, with a gap between groups, and where the last one ends."""
    places, at = list[float](), 0.0
    for i, group in enumerate(groups):
        at += 0.8 if i and group != groups[i - 1] else 0.0
        places.append(at)
        at += 1
    return places, at


def _first_places(groups: Sequence[str], places: Sequence[float]) -> list[tuple[str, float]]:
    found: dict[str, float] = {}
    for group, place in zip(groups, places, strict=True):
        found.setdefault(group, place)
    return list(found.items())


# ---- writing ------------------------------------------------------------------------------------


def as_json(value: Mapping[str, Any]) -> str:
    """A line for each entry of the second level: readable as a change in a diff."""
    parts = []
    for name, entry in value.items():
        if isinstance(entry, dict):
            inner = ",\n".join(f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in entry.items())
            parts.append(f" {json.dumps(name)}: {{\n{inner}\n }}")
        else:
            parts.append(f" {json.dumps(name)}: {json.dumps(entry)}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def write(rows: Sequence[Row], directory: Path, prints: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / DATA).write_text(as_json(data(rows)), encoding="utf-8", newline="\n")
    (directory / PAGE).write_text(page(rows), encoding="utf-8", newline="\n")
    picture(rows, directory / PICTURE)
    prints.write_text(as_json(fingerprints(rows)), encoding="utf-8", newline="\n")


def main(arguments: Sequence[str] | None = None) -> int:
    console.take_every_character()
    parser = Parser(prog=COMMAND, description="Write which check catches which bug.")
    parser.add_argument(
        "directory", nargs="?", type=Path, metavar="DIR",
        help="write all files there (default: tests/zoo, and the fingerprints into the package)",
    )  # fmt: skip
    given = parser.parse_args(arguments).directory
    directory = given or PLACE
    rows = compute(progress=True)
    write(rows, directory, given / FINGERPRINTS.name if given else FINGERPRINTS)
    right = sum(row.right for row in rows)
    caught = sum(bool(row.caught) for row in rows)
    print(f"{len(rows)} bugs: {caught} caught, {right} named right at first; see {directory}/")
    for row in rows:
        if not row.right:
            print(f"  {row.bug.name}: truth {row.bug.truth}, said {row.named}")
    for check in _columns():
        if not any(check.id in row.caught for row in rows):
            print(f"  {check.id} catches nothing")
    return 0


if __name__ == "__main__":
    sys.exit(main())
