"""`minprefix combine`: one prefix made of several."""

import argparse
from pathlib import Path

from minprefix.cli.made import of_one_base, save_made
from minprefix.cli.options import add_model, add_out
from minprefix.cli.parser import Command
from minprefix.errors import InputError


def add(command: Command) -> None:
    p = command(
        "combine",
        run,
        "make one prefix of several of the same base (an experiment)",
        "minprefix combine runs/a runs/b --how average --weights 0.3 0.7 --out runs/mix",
    )
    p.add_argument("paths", type=Path, nargs="+", metavar="DIR", help="prefixes")
    how = "put all slots one after the other, or take the mean slot by slot"
    p.add_argument("--how", choices=("concatenate", "average"), required=True, help=how)
    weights = "weights of the mean, one for each prefix (default: equal); two interpolate"
    p.add_argument("--weights", type=float, nargs="+", metavar="X", help=weights)
    add_model(p, "the one that the first prefix records")
    add_out(p)


def run(args: argparse.Namespace) -> int:
    from minprefix.prefixes.combine import average, concatenate
    from minprefix.storage.run import refuse_taken

    if args.weights is not None and args.how != "average":
        raise InputError("--weights belong to a mean: give --how average as well")
    refuse_taken(args.out, args.force)
    prefixes, record, model = of_one_base(args.paths, args)
    made = concatenate(prefixes) if args.how == "concatenate" else average(prefixes, args.weights)
    more = {} if args.weights is None else {"weights": args.weights}
    save_made(args, made, record, {"command": f"combine --how {args.how}", **more}, model)
    return 0
