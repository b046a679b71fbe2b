"""`minprefix import`: a prefix or a rival of another library."""

import argparse
from pathlib import Path
from typing import Any

from minprefix.cli.made import remove_rest
from minprefix.cli.options import add_model, add_out
from minprefix.cli.parser import Command
from minprefix.errors import InputError


def add(command: Command) -> None:
    p = command(
        "import",
        run,
        "take in a prefix or a rival that another library wrote",
        "minprefix import from-peft --model gpt2 --out runs/taken",
        "The base is recorded with it.",
    )
    p.add_argument("path", type=Path, metavar="DIR", help="the folder that PEFT or adapters saved")
    add_model(p)
    add_out(p)


def run(args: argparse.Namespace) -> int:
    from minprefix import methods
    from minprefix.method import Method
    from minprefix.model import GPT2
    from minprefix.prefix import Prefix
    from minprefix.storage import adapters
    from minprefix.storage.provenance import ABOUT
    from minprefix.storage.run import refuse_taken

    refuse_taken(args.out, args.force)
    model = GPT2.load(args.model, revision=args.revision)
    prefix: Prefix | Method
    if adapters.is_adapters(args.path):
        prefix = Prefix.of(adapters.load_adapters(args.path, model.config.n_head))
        library = "adapters"
    elif (args.path / ABOUT).exists():
        raise InputError(f"{args.path} was saved by minprefix: it needs no import")
    else:
        prefix, library = methods.load(args.path, model), "PEFT"
    prefix.check(model.config, model.name)
    of = [{"folder": str(args.path)}]
    training: dict[str, Any] = {"command": "import", "library": library, "of": of}
    if args.revision is not None:
        training["options"] = {"revision": args.revision}
    prefix.save(args.out, model, training)
    remove_rest(args)
    print(f"{prefix}\nwritten to {args.out}, for {model.name!r} (unverified)")
    return 0
