"""`minprefix compare`: where two implementations, or two saved traces, part."""

import argparse
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from minprefix.cli.options import IMPLEMENTATION, flag, path
from minprefix.cli.parser import Command
from minprefix.errors import InputError

if TYPE_CHECKING:
    from minprefix.trace.compare import Comparison

#: float32's rounding in one op; it grows in those after it
ROUNDING = 1e-6


def add(command: Command) -> None:
    p = command(
        "compare",
        run,
        "find the first op at which two implementations, or traces, part",
        "minprefix compare reference my_ops.py --picture growth.png\n"
        "minprefix compare reference hf:my_module.py\n"
        "minprefix compare runs/trace-a runs/trace-b",
        "It runs two implementations side by side, or reads two saved traces, and names the first "
        "op, forward and backward, that is wrong although its inputs are right.",
        "0 they agree, 1 they part, 2 they cannot be compared",
    )
    right = f"counts as right: {IMPLEMENTATION}. Or a folder that Trace.save wrote"
    p.add_argument("a", metavar="A", help=right)
    p.add_argument("b", metavar="B", help="is compared with A, and is given in the same ways")
    dtype = "run implementations in this type (default float64)"
    p.add_argument("--dtype", choices=("float64", "float32"), help=dtype)
    tolerance = "relative to a tensor's largest value (default 1e-9 in float64, 1e-4 in float32)"
    p.add_argument("--tolerance", type=float, metavar="X", help=tolerance)
    flag(p, "--all", "show arguments and intermediates of ops in the table")
    path(p, "--picture", "FILE", "draw the growth of the error (.png, .svg)")
    path(p, "--json", "FILE", "write everything, for programs; - prints it")


def run(args: argparse.Namespace) -> int:
    """-> 0 if they agree, 1 if not. Raises InputError for what cannot be compared."""
    from minprefix.show.drawing import check_ending
    from minprefix.storage.writing import write_json
    from minprefix.trace import compare as comparing
    from minprefix.trace.sides import problems

    if args.tolerance is not None and not (args.tolerance >= 0 and math.isfinite(args.tolerance)):
        raise InputError(f"--tolerance is {args.tolerance}: expected 0 or more, such as 1e-6")
    if args.picture is not None:
        check_ending(args.picture)
    found = _compared(args)
    last = found[-1]
    shown = found[0] if last.same else last
    if args.json == Path("-"):
        print(json.dumps(comparing.as_json(found), indent=2))
    else:
        if shown.problem:
            print(f"{shown.problem}: {problems()[shown.problem].why}")
        print(comparing.table(shown, args.all), end="\n\n")
        print("\n".join(map(comparing.verdict, found)))
        firsts = [row for row in last.first.values() if row is not None]
        if firsts and all(last.tolerance < row.error <= ROUNDING for row in firsts):
            print("  that is no more than float32's rounding: --tolerance 1e-4 looks past it")
        if args.json is not None:
            write_json(args.json, comparing.as_json(found))
    if args.picture is not None:
        comparing.picture(shown, args.picture)
    return 0 if last.same else 1


def _compared(args: argparse.Namespace) -> "list[Comparison]":
    """The two traces; or the implementations, up to the first problem in which they part."""
    from tqdm import tqdm

    from minprefix.trace.compare import compare
    from minprefix.trace.record import Trace
    from minprefix.trace.sides import compare_implementations

    saved = [_is_saved(spec) for spec in (args.a, args.b)]
    if any(saved) and not all(saved):
        folder, other = (args.a, args.b) if saved[0] else (args.b, args.a)
        raise InputError(
            f"{folder} is a saved trace and {other} is not: give two traces, or two implementations"
        )
    if all(saved):
        if args.dtype is not None:
            raise InputError("--dtype is for implementations, and these are traces: leave it out")
        found = compare(Trace.load(args.a), Trace.load(args.b), args.tolerance)
        return [replace(found, a=args.a, b=args.b)]
    sides = compare_implementations(args.a, args.b, args.dtype or "float64", args.tolerance)
    comparisons = []
    for comparison in tqdm(sides, unit="problem", leave=False, disable=None):
        comparisons.append(comparison)
        if not comparison.same:
            break
    return comparisons


def _is_saved(spec: str) -> bool:
    from minprefix.trace.saved import RECORDS, TENSORS

    return any((Path(spec) / name).exists() for name in (RECORDS, TENSORS))
