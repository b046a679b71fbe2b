"""`minprefix evaluate`: a model's scores on pairs of source and target."""

import argparse
from pathlib import Path

from minprefix.cli.options import (
    add_backend,
    add_columns,
    add_decoding,
    add_matmul,
    add_model,
    add_threads,
    decoding_of,
    load,
    unescape,
)
from minprefix.cli.parser import Command
from minprefix.errors import InputError


def add(command: Command) -> None:
    p = command(
        "evaluate",
        run,
        "score a model on pairs, with a prefix or without",
        "minprefix evaluate --model gpt2 --prefix runs/e2e --data test.csv \\\n"
        "    --out runs/e2e-test --beams 5",
    )
    add_model(p)
    p.add_argument("--prefix", type=Path, metavar="DIR", help="a trained prefix")
    p.add_argument("--data", type=Path, metavar="FILE", required=True, help=".jsonl, .csv, .tsv")
    add_columns(p)
    p.add_argument("--out", type=Path, metavar="DIR", required=True, help="scores and predictions")
    p.add_argument("--template", type=unescape, help="default: the prefix's own")
    p.add_argument("--limit", type=int, metavar="N", help="only the first N sources")
    p.add_argument("--batch-size", type=int, metavar="N", default=32, help="default 32")
    p.add_argument("--force", action="store_true", help="replace what --out holds")
    p.add_argument(
        "--skip-long",
        action="store_true",
        help="leave out sources that do not fit, and out of the loss the pairs that do not "
        "(default: refuse the file)",
    )
    p.add_argument("--ter", action="store_true", help="score TER, too, which takes minutes")
    add_decoding(p)
    add_backend(p)
    add_matmul(p)
    add_threads(p)


def run(args: argparse.Namespace) -> int:
    from minprefix.cli.scores import MARKS, evaluate
    from minprefix.storage.run import refuse_taken

    for name in ("limit", "batch_size"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise InputError(f"--{name.replace('_', '-')} is {value}: expected at least 1")
    refuse_taken(args.out, args.force, marks=MARKS)
    return evaluate(args, *load(args, args.prefix), decoding_of(args))
