"""`minprefix evaluate`: a model's scores on pairs of source and target."""

import argparse

from minprefix.cli import options
from minprefix.cli.parser import Command


def add(command: Command) -> None:
    p = command(
        "evaluate",
        run,
        "score a model on pairs, with a prefix or without",
        "minprefix evaluate --model gpt2 --prefix runs/e2e --data test.csv \\\n"
        "    --out runs/e2e-test --beams 5",
        f"{options.ENDS} The predictions that are cut are counted.",
    )
    options.add_model(p)
    options.path(p, "--prefix", "DIR", "a trained prefix, or another method's folder")
    options.path(p, "--data", "FILE", "pairs: .jsonl, .csv or .tsv", required=True)
    options.add_columns(p)
    joined = "how source and target are joined (default: the prefix's own)"
    p.add_argument("--template", type=options.unescape, help=joined)
    options.count(p, "--limit", "only the first N sources")
    without = "leave out sources that do not fit, and leave pairs that do not fit out of the loss"
    options.flag(p, "--skip-long", f"{without} (default: refuse the file)")
    folder = "a folder for scores and predictions, not that of a training"
    options.path(p, "--out", "DIR", folder, required=True)
    options.flag(p, "--force", "replace the evaluation in --out")
    options.count(p, "--batch-size", "prompts, or pairs, at a time", default=32)
    options.flag(p, "--ter", "score TER as well, which takes minutes")
    options.add_decoding(p.add_argument_group("decoding"))
    options.add_machine(p)


def run(args: argparse.Namespace) -> int:
    from minprefix.cli.scores import evaluate

    return evaluate(args)
