"""`minprefix train`: a prefix, or one of its rivals, trained on pairs of source and target."""

import argparse

from minprefix.cli import options
from minprefix.cli.fields import add_fields
from minprefix.cli.parser import Command
from minprefix.settings import Job

ADVANCED = (
    "template", "skip_long", "init", "init_std", "init_bound", "init_text", "init_prefix",
    "mlp_hidden", "layers", "position_offset", "dropout", "micro_batch_size", "warmup", "schedule",
    "weight_decay", "clip", "loss", "eval_every", "valid_samples", "save_every",
)  # fmt: skip
RIVALS = (
    "rank", "alpha", "targets", "bottleneck", "placement", "top_layers", "encoder",
    "encoder_hidden",
)  # fmt: skip


def add(command: Command) -> None:
    p = command(
        "train",
        run,
        "train a prefix on pairs of source and target",
        "minprefix train --model gpt2 --data train.csv --valid dev.csv --out runs/e2e",
        "--method trains something else in its place.",
        status="0 trained, 1 the model is far worse with the prefix than without, 2 it cannot be "
        "trained, 130 Ctrl-C stopped it",
    )
    options.add_model(p)
    add_fields(p, Job, ("data", "valid"))
    options.path(p, "--out", "DIR", "where the run is written", required=True)
    add_fields(p, Job, ("method", "prefix_length"))
    add_fields(p.add_mutually_exclusive_group(), Job, ("epochs", "steps"))
    add_fields(p, Job, ("batch_size", "lr", "seed"))
    options.add_backend(p, None)
    options.add_run(p)
    advanced = p.add_argument_group("advanced")
    options.add_columns(advanced)
    types = {"template": options.unescape, "layers": _layers, "valid_samples": _samples}
    add_fields(advanced, Job, ADVANCED, types)
    options.add_matmul(advanced, None)
    options.add_threads(advanced)
    methods = p.add_argument_group("of one --method")
    add_fields(methods, Job, RIVALS, {"targets": _words})


def _layers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: expected layers as in 0,1,3") from None


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",")]


def _samples(text: str) -> int:
    """How many; 0 is all."""
    if text == "all":
        return 0
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number from 1, or all")
    return int(text)


def run(args: argparse.Namespace) -> int:
    from minprefix.cli.outlook import train

    return train(args)
