"""`minprefix compare-methods`: prefix-tuning and its rivals on the same data."""

import argparse
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING

from minprefix.cli import options
from minprefix.cli.parser import Command
from minprefix.errors import InputError

if TYPE_CHECKING:
    from minprefix.comparison.cells import Plan

METHODS = (
    "prefix", "full", "top-layers", "bitfit", "prompt-tuning", "p-tuning", "infix", "lora",
    "adapters",
)  # fmt: skip
LRS, STEPS = (1e-3, 3e-3, 1e-2), 200
TASKS = ("describe", "letter", "swap")
FILES = ("data", "valid", "test")


def add(command: Command) -> None:
    p = command(
        "compare-methods",
        run,
        "compare prefix-tuning with its rivals on the same data",
        "minprefix compare-methods --task letter --out runs/rivals --jobs 2\n"
        "minprefix compare-methods --data train.csv --valid valid.csv --test test.csv \\\n"
        "    --method prefix:length=10 --method lora:rank=4,lr=1e-3/3e-3 \\\n"
        "    --out runs/rivals",
        "The first seed tries every learning rate; the one of the lowest validation loss is kept, "
        "and the other seeds take it. The scores are those of the test pairs, as the mean over "
        "the seeds and their standard deviation. Each finished training is a file in --out, so "
        "that --resume goes on after a kill.",
    )
    options.add_model(p)
    p.add_argument("--task", choices=TASKS, help="a task of the tiny world, in place of files")
    for name, of in (("data", "to train on"), ("valid", "to choose by"), ("test", "to score")):
        options.path(p, f"--{name}", "FILE", f"pairs {of}: .jsonl, .csv or .tsv")
    p.add_argument("--template", type=options.unescape, help="how source and target are joined")
    p.add_argument(
        "--method",
        action="append",
        metavar="NAME[:OPTION=VALUE,...]",
        help=f"a method, such as lora:rank=4; lr=X/Y: its own learning rates; may be given several "
        f"times (default: {', '.join(METHODS)})",
    )
    lrs = f"learning rates to try (default {' '.join(f'{lr:g}' for lr in LRS)})"
    p.add_argument("--lrs", nargs="+", type=float, metavar="X", default=LRS, help=lrs)
    seeds = "seeds of the trainings (default 0 1 2)"
    p.add_argument("--seeds", nargs="+", type=int, metavar="N", default=(0, 1, 2), help=seeds)
    sizes = "train on so many of the pairs, each number in turn (default: all)"
    p.add_argument("--examples", nargs="+", type=options.at_least_one, metavar="N", help=sizes)
    budget = p.add_mutually_exclusive_group()
    options.count(budget, "--steps", f"the budget of a training (default {STEPS})")
    said = "the budget in seconds, at the time that a method's step takes on this machine"
    budget.add_argument("--seconds", type=float, metavar="X", help=said)
    options.count(p, "--batch-size", "sequences in a step", default=10)
    options.count(p, "--jobs", "processes, each on one thread", default=1)
    options.path(p, "--out", "DIR", "the folder of the comparison", required=True)
    options.flag(p, "--resume", "go on with the comparison in --out")
    options.path(p, "--picture", "FILE", "draw quality against parameters (.png, .svg)")
    sizes = "draw quality against the number of examples (.png, .svg)"
    options.path(p, "--examples-picture", "FILE", sizes)
    options.path(p, "--json", "FILE", "write the rows, for programs; - prints them alone")


def run(args: argparse.Namespace) -> int:
    from minprefix.comparison import table
    from minprefix.comparison.sweep import RESULTS, compare_methods
    from minprefix.show.comparison import by_examples, by_parameters
    from minprefix.show.drawing import check_ending
    from minprefix.storage.writing import write_bytes

    plan = plan_of(args)
    for picture in filter(None, (args.picture, args.examples_picture)):
        check_ending(picture)
    rows = compare_methods(plan, args.out, args.jobs, args.resume)
    results = args.out / RESULTS
    if args.json == Path("-"):
        print(json.dumps(json.loads(results.read_bytes()), indent=2))
    else:
        print(f"{table.text(rows)}\nwritten to {results}")
    if args.json not in (None, Path("-")):
        write_bytes(args.json, results.read_bytes())
    of = f"{plan.task or plan.data}, {len(plan.seeds)} seeds"
    if args.picture is not None:
        most = [row for row in rows if row.examples == plan.examples[-1]]
        by_parameters(args.picture, most, f"Quality against trained parameters: {of}")
    if args.examples_picture is not None:
        by_examples(args.examples_picture, rows, f"Quality against training pairs: {of}")
    return 0


def plan_of(args: argparse.Namespace) -> "Plan":
    """Raises InputError for options that do not fit each other, and for values that none can
    have."""
    from minprefix.comparison.cells import Plan
    from minprefix.comparison.entrants import read_entrant
    from minprefix.data.pairs import Template

    given = [name for name in FILES if getattr(args, name) is not None]
    if args.task is not None and given:
        raise InputError(f"--task has pairs of its own: leave out --{given[0]}, or --task")
    if args.task is None and len(given) < len(FILES):
        missing = next(name for name in FILES if name not in given)
        raise InputError(f"--{missing} is missing: give --data, --valid and --test, or --task")
    for name, values, right in (
        ("lrs", args.lrs, all(0 < lr < math.inf for lr in args.lrs)),
        ("seeds", args.seeds, all(seed >= 0 for seed in args.seeds)),
        ("seconds", args.seconds, args.seconds is None or 0 < args.seconds < math.inf),
    ):
        if not right:
            raise InputError(f"--{name} is {values}: expected numbers above 0 (a seed may be 0)")
    if args.examples_picture is not None and not args.examples:
        raise InputError("--examples-picture draws the sizes of --examples: give some")
    methods = tuple(args.method or METHODS)
    labels = [read_entrant(method).label for method in methods]
    for name, values in (("method", labels), ("lrs", args.lrs), ("seeds", args.seeds),
                         ("examples", args.examples or ())):  # fmt: skip
        twice = [value for value in values if list(values).count(value) > 1]
        if twice:
            raise InputError(f"--{name} has {twice[0]} twice: give each once")
    return Plan(
        methods=methods,
        lrs=tuple(args.lrs),
        seeds=tuple(args.seeds),
        examples=tuple(args.examples or (0,)),
        model=args.model,
        task=args.task,
        **{name: str(getattr(args, name)) for name in given},
        template=Template(args.template).text if args.template else Template().text,
        steps=None if args.seconds else args.steps or STEPS,
        seconds=args.seconds,
        batch_size=args.batch_size,
    )
