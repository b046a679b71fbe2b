"""The comparisons of docs/rivals.md: `python -m tools.rivals --out runs/rivals` carries them out
on the shipped model and writes the page's tables, its pictures and docs/rivals.json. A sweep that
was stopped goes on. Without --out the page is written anew from docs/rivals.json."""

import platform
import re
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from minprefix.cli.parser import Parser
from minprefix.comparison import table
from minprefix.comparison.cells import Plan
from minprefix.comparison.sweep import PLAN, RESULTS, compare_methods
from minprefix.comparison.table import Row
from minprefix.show.comparison import by_examples, by_parameters
from minprefix.storage.reading import read_json
from minprefix.storage.writing import write_json, write_text

DOCS = Path(__file__).parents[1] / "docs"

#: each tries two learning rates, around the best one of a few short trials
ALL = (
    "prefix:length=10,lr=3e-2/1e-1",
    "prefix:length=1,lr=3e-2/1e-1",
    "infix:length=10,lr=3e-2/1e-1",
    "prompt-tuning:length=10,lr=3e-2/1e-1",
    "p-tuning:length=10,lr=1e-3/3e-3",
    "lora:rank=1,lr=3e-3/1e-2",
    "lora:rank=8,lr=3e-3/1e-2",
    "adapters:bottleneck=8,lr=3e-3/1e-2",
    "bitfit:lr=3e-3/1e-2",
    "top-layers:k=1,lr=1e-3/3e-3",
    "full:lr=1e-3/3e-3",
)
FEW = ("prefix:length=10", "prompt-tuning:length=10", "lora:rank=8,lr=1e-2", "full:lr=1e-3")
SWAP = (
    "prefix:length=10,lr=3e-2/1e-1",
    "prompt-tuning:length=10,lr=3e-2/1e-1",
    "lora:rank=8,lr=1e-2",
    "adapters:bottleneck=8,lr=1e-2",
    "full:lr=1e-3",
)
LENGTHS = tuple(
    f"{kind}:length={n}" for kind in ("prefix", "infix", "prompt-tuning") for n in (1, 5, 20)
)
STARTS = (
    "prefix:length=10,init=normal",
    "prefix:length=10,init=zero",
    "prefix:length=10,init=text",
    "prompt-tuning:length=10,init=normal",
    "prompt-tuning:length=10,init=vocabulary",
    "prompt-tuning:length=10,init=text",
)


def _plan(methods: Sequence[str], **more: Any) -> Plan:
    given: dict[str, Any] = {"lrs": (3e-2,), "seeds": (0, 1), "examples": (0,), "task": "letter"}
    return Plan(tuple(methods), **(given | {"steps": 200, "batch_size": 4} | more))


COMPARISONS = {
    "few": _plan(FEW, task="describe", examples=(50, 200, 500), steps=100),
    "starts": _plan(STARTS, task="describe", examples=(50,), steps=100),
    "letter": _plan(ALL),
    "lengths": _plan(LENGTHS, lrs=(1e-1,)),
    "swap": _plan(SWAP, task="swap"),
}


def smoke(plan: Plan) -> Plan:
    """The same comparison at a budget of nothing: two steps, one learning rate, two methods."""
    methods = [text.partition("/")[0] for text in (plan.methods[0], plan.methods[-1])]
    return replace(plan, methods=tuple(methods), seeds=(0,), steps=2)


def carry_out(
    plans: dict[str, Plan], out: Path, jobs: int, progress: bool = True
) -> dict[str, Any]:
    """-> what docs/rivals.json holds."""
    record: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d"),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "machine": platform.machine(),
    }
    for name, plan in plans.items():
        folder = out / name
        print(f"{name}: {len(plan.methods)} methods")
        compare_methods(plan, folder, jobs, (folder / PLAN).exists(), progress)
        record[name] = read_json(folder / RESULTS, "a comparison")
    return record


# ---- the page ---------------------------------------------------------------------------------

SCORES = (
    "method", "lr", "valid loss", "test loss", "test exact match %", "test slot errors %",
)  # fmt: skip
UNSEEN = ("unseen loss", "unseen slot errors %")
#: table of the page -> the comparison that it is made of, and its columns
TABLES = {
    "sizes": ("letter", ("method", "parameters", "share", "file")),
    "describe 50": ("few", SCORES),
    "describe 200": ("few", SCORES),
    "describe 500": ("few", SCORES),
    "starts": ("starts", SCORES),
    "letter": ("letter", SCORES),
    "unseen": ("letter", ("method", "test loss", "test slot errors %", *UNSEEN)),
    "swap": ("swap", SCORES),
    "lengths": ("lengths", SCORES),
    "costs": ("letter", ("method", "ms a step", "memory")),
}


def rows_of(record: dict[str, Any], name: str) -> list[Row]:
    """The rows of the comparison behind a table; a number in its name is that of the examples."""
    rows = [Row.of(given) for given in record[TABLES[name][0]]["rows"]]
    examples = re.search(r"\d+$", name)
    return [row for row in rows if not examples or row.examples == int(examples[0])]


def markdown(rows: Sequence[Row], columns: Sequence[str]) -> str:
    header, *lines = table.cells_of(rows)
    places = [header.index(column) for column in columns]
    aligned = ["---", *["---:"] * (len(columns) - 1)]
    return "\n".join(
        f"| {' | '.join(cells)} |"
        for cells in (
            [header[i] for i in places],
            aligned,
            *([c[i] for i in places] for c in lines),
        )
    )


def page(text: str, record: dict[str, Any]) -> str:
    """The page with its tables as the record has them: each stands between `<!-- NAME -->` and
    `<!-- end -->`."""
    for name, (_, columns) in TABLES.items():
        marks = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        made = markdown(rows_of(record, name), columns)
        text, n = marks.subn(rf"\g<1>{made}\n\g<2>", text)
        assert n == 1, f"table {name} stands {n} times on the page"
    return text


def write_page(record: dict[str, Any], docs: Path = DOCS) -> None:
    path = docs / "rivals.md"
    write_text(path, page(path.read_text(encoding="utf-8"), record))
    letter = rows_of(record, "letter")
    by_parameters(docs / "rivals-parameters.png", letter, "Task letter, 2000 pairs, two seeds")
    few = [Row.of(given) for given in record["few"]["rows"]]
    by_examples(docs / "rivals-examples.png", few, "Task describe, two seeds")


def main() -> None:
    parser = Parser(prog="python -m tools.rivals", description=__doc__)
    parser.add_argument("--out", type=Path, help="the folder of the sweep")
    parser.add_argument("--jobs", type=int, default=2, help="processes (default 2)")
    args = parser.parse_args()
    path = DOCS / "rivals.json"
    if args.out is not None:
        write_json(path, carry_out(COMPARISONS, args.out, args.jobs))
    write_page(read_json(path, "the results"))


if __name__ == "__main__":
    main()
