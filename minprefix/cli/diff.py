"""`minprefix diff`: what differs between two prefixes."""

import argparse
from pathlib import Path

from minprefix import console
from minprefix.cli.parser import Command
from minprefix.errors import InputError, quoted


def add(command: Command) -> None:
    p = command(
        "diff",
        run,
        "show how two prefixes differ: their records, and their numbers",
        "minprefix diff runs/a runs/b",
    )
    p.add_argument("a", type=Path, metavar="A", help="a prefix")
    p.add_argument("b", type=Path, metavar="B", help="another")


def run(args: argparse.Namespace) -> int:
    from minprefix.prefix import Prefix
    from minprefix.prefixes.distance import distances
    from minprefix.storage.artifact import read_prefix
    from minprefix.storage.run import differences

    (saved_a, about_a), (saved_b, about_b) = (read_prefix(path) for path in (args.a, args.b))
    a, b = Prefix.of(saved_a), Prefix.of(saved_b)
    print(f"A  {args.a}: {a}\nB  {args.b}: {b}\n")
    if about_a is None or about_b is None:
        without = " and ".join(n for n, about in (("A", about_a), ("B", about_b)) if about is None)
        print(f"records: {without} has no minprefix.json, PEFT wrote it")
    else:
        one, two = ({**about.as_json(), "files": None} for about in (about_a, about_b))
        found = differences(one, two)
        print("records" if found else "records: the same")
        for name, was, now in found:
            print(f"  {console.plain(name):<34} {quoted(was)}  |  {quoted(now)}")
    try:
        rows = distances(a, b)
    except InputError as error:
        print(f"\nnumbers: not comparable, {error}")
        return 0
    if (a.kv == b.kv).all():
        print("\nnumbers: the same")
        return 0
    print("\nnumbers, slot by slot: |A - B| / mean of |A| and |B|, and the cosine")
    print(f"  {'layer':<6}{'keys':>10}{'cosine':>9}{'values':>12}{'cosine':>9}")
    for k, v in zip(rows[::2], rows[1::2], strict=True):
        print(
            f"  {k.layer:<6}{k.relative:>10.4f}{_cosine(k.cosine):>9}"
            f"{v.relative:>12.4f}{_cosine(v.cosine):>9}"
        )
    return 0


def _cosine(x: float) -> str:
    return "-" if x != x else f"{x:.4f}"  # zeros have no direction
