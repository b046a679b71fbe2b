"""The command line of `python -m tools.bench`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minprefix import console
from minprefix.cli.parser import Parser
from minprefix.errors import InputError
from tools.bench import command
from tools.bench.work import METHODS

COMMAND = "python -m tools.bench"

#: the commands that take --backend
ON_GPU = ("train", "decode", "all")
WHAT = {
    "train": "a training step against PyTorch, by batch",
    "decode": "greedy and beam search against transformers' generate",
    "memory": "peak memory of training, and whether it grows from step to step",
    "start": "import, --help, opening a checkpoint, the first token",
    "growth": "time and memory against T, P, B and layers",
    "all": "all of these: about 25 minutes on two cores",
    "methods": "a training step of prefix-tuning and its rivals, three against PEFT",
}


def main(argv: Sequence[str] | None = None) -> int:
    """-> 2 for bad input and 130 after Ctrl-C, as `minprefix` does."""
    console.take_every_character()
    args = parser().parse_args(argv)
    try:
        return args.run(args)
    except InputError as error:
        print(f"{COMMAND}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{COMMAND}: stopped", file=sys.stderr)
        return 130


def parser() -> argparse.ArgumentParser:
    p = Parser(
        prog=COMMAND,
        description="Measure this project and its peers on the same work, in fresh processes that "
        "take turns.",
        epilog=f"{COMMAND} all --json bench.json measures; {COMMAND} report bench.json writes the "
        "page.",
        allow_abbrev=False,
    )
    parts = p.add_subparsers(required=True, metavar="|".join([*WHAT, "report"]))
    for name, what in WHAT.items():
        _measuring_options(_part(parts, name, what, command.bench), name)
    part = _part(
        parts, "report", "make BENCHMARKS.md and its pictures of a record", command.bench_report
    )
    part.add_argument("record", type=Path, metavar="FILE", help="what --json wrote")
    part.add_argument(
        "--out", type=Path, metavar="FILE", default=Path("BENCHMARKS.md"),
        help="default BENCHMARKS.md; pictures go to a folder benchmarks beside it",
    )  # fmt: skip
    part.add_argument(
        "--gpu", type=Path, metavar="FILE",
        help="another record, of --backend cupy: the page's section on a GPU",
    )  # fmt: skip
    part.add_argument(
        "--methods", type=Path, metavar="FILE",
        help="another record, of the command methods: the page's section on the rivals",
    )  # fmt: skip
    return p


def _part(parts: Any, name: str, what: str, run: Any) -> argparse.ArgumentParser:
    part: argparse.ArgumentParser = parts.add_parser(
        name, help=what, description=what[0].upper() + what[1:] + ".", allow_abbrev=False
    )
    part.set_defaults(run=run, what=name)
    return part


def _measuring_options(part: argparse.ArgumentParser, name: str) -> None:
    """Each command has only the options that it uses."""
    part.set_defaults(work=None, with_dropout=False, no_peers=False, data=None, rounds=None)
    part.set_defaults(backend="numpy")
    add = part.add_argument
    add("--json", type=Path, metavar="FILE", help="write everything, each sample with it")
    add("--report", type=Path, metavar="FILE", help="write the page and its pictures, too")
    add(
        "--threads",
        dest="pinned",
        type=int,
        metavar="N",
        help="for everyone (default: the machine's cores)",
    )
    shapes, default = ["124m", "tiny"], "124m, GPT-2's"
    if name in ON_GPU:
        add("--backend", choices=("numpy", "cupy"), default="numpy",
            help="cupy: everyone on an NVIDIA GPU, in float32 and TF32; all is then train and "
            "decode")  # fmt: skip
        shapes.insert(1, "medium")
        default += "; with --backend cupy that and medium"
    add("--shape", choices=shapes, help=f"of the model (default {default}; tiny tries the bench "
        "itself)")  # fmt: skip
    if name != "memory":
        add("--rounds", type=int, metavar="N", help="default 3, and 2 of what is slow")
    if name != "growth":
        add("--no-peers", action="store_true", help="this project alone")
    if name in ("train", "all"):
        works = "of train: e2e-10, e2e-32, rectangle, long; with --backend cupy e2e-10, -32, -128"
        add("--work", action="append", metavar="NAME", help=f"{works}; may be given again")
        add("--with-dropout", action="store_true", help="PEFT with GPT-2's dropout trains, too")
    if name == "methods":
        add("--work", action="append", metavar="NAME",
            help=f"a method: {', '.join(METHODS)}; may be given again")  # fmt: skip
    if name in ("train", "memory", "all", "methods"):
        add(
            "--data", type=Path, metavar="DIR",
            help="holds e2e/trainset.csv and gpt2-bpe/; default: the environment's "
            "MINPREFIX_BENCH_DATA, or shared/data beside the clone, else a stored histogram",
        )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
