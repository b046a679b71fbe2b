"""`minprefix demo`: the main job on what ships."""

import argparse
from pathlib import Path
from typing import Any

from minprefix.cli.options import add_backend, add_run, add_threads, given_options, resolved
from minprefix.cli.parser import Command
from minprefix.cli.resume import options_of, resumable, worse

DEMO_DEFAULTS: dict[str, Any] = {
    "prefix_length": 10,
    "steps": 250,
    "batch_size": 16,
    "lr": 1e-2,
    "seed": 0,
    "backend": "numpy",
}


def add(command: Command) -> None:
    p = command(
        "demo",
        run,
        "teach the shipped model a task with a prefix; show before and after",
        "minprefix demo --out runs/demo --seed 1",
    )
    p.add_argument(
        "--out", type=Path, metavar="DIR", default=Path("runs/demo"), help="default runs/demo"
    )
    p.add_argument("--prefix-length", type=int, metavar="P", help="default 10")
    p.add_argument("--steps", type=int, metavar="N", help="default 250")
    p.add_argument("--batch-size", type=int, metavar="N", help="default 16")
    p.add_argument("--lr", type=float, metavar="X", help="default 1e-2")
    p.add_argument("--seed", type=int, help="default 0")
    add_backend(p, None)
    add_threads(p)
    add_run(p)


def run(args: argparse.Namespace) -> int:
    return resumable("demo", args, lambda: _demonstrated(args))


def _demonstrated(args: argparse.Namespace) -> int:
    from minprefix import demo

    given = given_options(args, tuple(DEMO_DEFAULTS))
    options = DEMO_DEFAULTS | given
    if args.resume:
        options = options_of("demo", args.out, DEMO_DEFAULTS, given)
    options["backend"] = resolved(options["backend"])
    metrics = demo.run(args.out, resume=args.resume, force=args.force, **options)
    if not metrics:
        raise KeyboardInterrupt
    return worse(metrics["before"]["loss"], metrics["after"]["loss"], options["lr"])
