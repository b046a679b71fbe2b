"""`minprefix verify`: is a prefix what its record says?"""

import argparse
from pathlib import Path

from minprefix import console
from minprefix.cli.options import add_model, add_threads, named_model, path
from minprefix.cli.parser import Command


def add(command: Command) -> None:
    p = command(
        "verify",
        run,
        "check a prefix against its record",
        "minprefix verify runs/demo",
        "It compares the fingerprints of the files, the base and the data, then computes the "
        "recorded loss and samples again.",
        "0 all as recorded, 1 something is not, 2 something could not be checked",
    )
    p.add_argument("path", type=Path, metavar="DIR", help="a prefix")
    add_model(p, "the one that the prefix records")
    for name in ("--data", "--valid"):
        path(p, name, "FILE", "the file (default: at its recorded place)")
    add_threads(p)


def run(args: argparse.Namespace) -> int:
    from minprefix.prefixes.verify import verify

    found = verify(args.path, named_model(args), args.data, args.valid)
    for what, right, text in found:
        mark = {True: "ok", False: "WRONG", None: "not checked"}[right]
        print(f"{mark:<12} {what:<11} {console.plain(text)}")
    if wrong := sum(f.right is False for f in found):
        print(f"\n{wrong} of {len(found)} are not as recorded")
        return 1
    if unchecked := sum(f.right is None for f in found):
        print(f"\nnothing is wrong; {unchecked} of {len(found)} could not be checked")
        return 2
    print("\nall as recorded")
    return 0
