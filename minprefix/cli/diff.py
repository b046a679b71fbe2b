"""`minprefix diff`: what differs between two prefixes."""

import argparse
from pathlib import Path
from typing import Any

from minprefix import console
from minprefix.cli.parser import Command
from minprefix.errors import InputError


def add(command: Command) -> None:
    p = command(
        "diff",
        run,
        "show how two prefixes differ: their records, and their numbers",
        "minprefix diff runs/a runs/b",
    )
    p.add_argument("a", type=Path, metavar="A")
    p.add_argument("b", type=Path, metavar="B")


def run(args: argparse.Namespace) -> int:
    from minprefix.prefix import Prefix
    from minprefix.prefixes.distance import distances
    from minprefix.storage.artifact import read_prefix
    from minprefix.storage.run import differences

    (saved_a, about_a), (saved_b, about_b) = (read_prefix(path) for path in (args.a, args.b))
    a, b = Prefix.of(saved_a), Prefix.of(saved_b)
    print(f"A  {args.a}: {a}\nB  {args.b}: {b}\n")
    records = [about_a, about_b]
    if None in records:
        without = " and ".join(
            name for name, record in zip("AB", records, strict=True) if record is None
        )
        print(f"how they came to be: {without} has no minprefix.json, PEFT wrote it")
    else:
        one, two = ({**r.as_json(), "files": None} for r in records if r is not None)
        found = differences(one, two)
        print("how they came to be" if found else "how they came to be: the same")
        for name, was, now in found:
            print(f"  {console.plain(name):<34} {_short(was)}  |  {_short(now)}")
    try:
        rows = distances(a, b)
    except InputError as error:
        print(f"\nhow far apart: not comparable, {error}")
        return 0
    if (a.kv == b.kv).all():
        print("\nhow far apart: the same numbers")
        return 0
    print("\nhow far apart, slot by slot: |A - B| / mean of |A| and |B|, and the cosine")
    print(f"  {'layer':<6}{'keys':>10}{'cosine':>9}{'values':>12}{'cosine':>9}")
    for k, v in zip(rows[::2], rows[1::2], strict=True):
        print(
            f"  {k.layer:<6}{k.relative:>10.4f}{_cosine(k.cosine):>9}"
            f"{v.relative:>12.4f}{_cosine(v.cosine):>9}"
        )
    return 0


def _cosine(x: float) -> str:
    return "-" if x != x else f"{x:.4f}"  # zeros have no direction


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 48 else f"{text[:45]}..."
