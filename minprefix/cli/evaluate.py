"""`minprefix evaluate`: a model's scores on pairs of source and target."""

import argparse
from pathlib import Path

from minprefix.cli.options import (
    ENDS,
    add_backend,
    add_columns,
    add_decoding,
    add_matmul,
    add_model,
    add_threads,
    at_least_one,
    unescape,
)
from minprefix.cli.parser import Command


def add(command: Command) -> None:
    p = command(
        "evaluate",
        run,
        "score a model on pairs, with a prefix or without",
        "minprefix evaluate --model gpt2 --prefix runs/e2e --data test.csv \\\n"
        "    --out runs/e2e-test --beams 5",
        f"{ENDS} The predictions that are cut are counted.",
    )
    add_model(p)
    p.add_argument("--prefix", type=Path, metavar="DIR", help="a trained prefix")
    p.add_argument(
        "--data", type=Path, metavar="FILE", required=True, help="pairs: .jsonl, .csv or .tsv"
    )
    add_columns(p)
    p.add_argument(
        "--template",
        type=unescape,
        help="how source and target are joined (default: the prefix's own)",
    )
    p.add_argument("--limit", type=at_least_one, metavar="N", help="only the first N sources")
    p.add_argument(
        "--skip-long",
        action="store_true",
        help="leave out sources that do not fit, and leave pairs that do not fit out of the loss "
        "(default: refuse the file)",
    )
    p.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        required=True,
        help="a folder for scores and predictions, not that of a training",
    )
    p.add_argument("--force", action="store_true", help="replace the evaluation in --out")
    p.add_argument(
        "--batch-size",
        type=at_least_one,
        metavar="N",
        default=32,
        help="prompts, or pairs, at a time (default 32)",
    )
    p.add_argument("--ter", action="store_true", help="score TER as well, which takes minutes")
    add_decoding(p.add_argument_group("decoding"))
    add_backend(p)
    add_matmul(p)
    add_threads(p)


def run(args: argparse.Namespace) -> int:
    from minprefix.cli.scores import evaluate

    return evaluate(args)
