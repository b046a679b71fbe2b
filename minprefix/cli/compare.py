"""`minprefix compare`: where two implementations, or two saved traces, part."""

import argparse
import json
import math
from dataclasses import replace
from pathlib import Path

from minprefix.cli.options import IMPLEMENTATION
from minprefix.cli.parser import Command
from minprefix.errors import InputError

#: what float32 leaves of one op; it grows in those after it
ROUNDING = 1e-6


def add(command: Command) -> None:
    p = command(
        "compare",
        run,
        "find the first op at which two implementations, or traces, part",
        "minprefix compare reference my_ops.py --picture growth.png\n"
        "minprefix compare reference tests/peft_adapter.py\n"
        "minprefix compare runs/trace-a runs/trace-b",
        "It runs two implementations side by side, or reads two saved traces, and names the first "
        "op, forward and backward, that is wrong although its inputs are right.",
        "0 they agree, 1 they part, 2 they cannot be compared",
    )
    p.add_argument(
        "a",
        metavar="A",
        help=f"counts as right: {IMPLEMENTATION}. Or a folder that Trace.save wrote",
    )
    p.add_argument("b", metavar="B", help="likewise")
    p.add_argument(
        "--dtype",
        choices=("float64", "float32"),
        help="of the problems that implementations are run on (default float64)",
    )
    p.add_argument(
        "--tolerance",
        type=float,
        metavar="X",
        help="of a tensor's largest value (default 1e-9 in float64, 1e-4 in float32)",
    )
    p.add_argument(
        "--all", action="store_true", help="what ops are given and hold inside in the table, too"
    )
    p.add_argument(
        "--picture", type=Path, metavar="FILE", help="the growth of the error (.png, .svg)"
    )
    p.add_argument(
        "--json", type=Path, metavar="FILE", help="write everything, for programs; - prints it"
    )


def run(args: argparse.Namespace) -> int:
    """-> 0 if they agree, 1 if not. Raises InputError for what cannot be compared."""
    from tqdm import tqdm

    from minprefix.show.drawing import check_ending
    from minprefix.storage.writing import write_json
    from minprefix.trace import compare as comparing
    from minprefix.trace.record import Trace
    from minprefix.trace.sides import compare_implementations, problems

    if args.tolerance is not None and not (args.tolerance >= 0 and math.isfinite(args.tolerance)):
        raise InputError(f"--tolerance is {args.tolerance}: expected 0 or more, such as 1e-6")
    if args.picture is not None:
        check_ending(args.picture)
    saved = [_is_saved(spec) for spec in (args.a, args.b)]
    if any(saved) and not all(saved):
        folder, other = (args.a, args.b) if saved[0] else (args.b, args.a)
        raise InputError(
            f"{folder} is a saved trace and {other} is not: give two traces, or two implementations"
        )
    if all(saved):
        if args.dtype is not None:
            raise InputError("--dtype is of a run, and saved traces have run: leave it out")
        traces = [Trace.load(folder) for folder in (args.a, args.b)]
        found = [comparing.compare(traces[0], traces[1], args.tolerance)]
        found[0] = replace(found[0], a=args.a, b=args.b)
    else:
        dtype, found = args.dtype or "float64", []
        sides = compare_implementations(args.a, args.b, dtype, args.tolerance)
        for comparison in tqdm(sides, unit="problem", leave=False, disable=None):
            found.append(comparison)
            if not comparison.same:
                break
    last = found[-1]
    if args.json == Path("-"):
        print(json.dumps(comparing.as_json(found), indent=2))
    else:
        shown = last if not last.same else found[0]
        why = {name: problem.why for name, problem in problems().items()}
        if shown.problem:
            print(f"{shown.problem}: {why[shown.problem]}")
        print(comparing.table(shown, args.all), end="\n\n")
        for comparison in found:
            print(comparing.verdict(comparison))
        firsts = [row for row in last.first.values() if row is not None]
        if firsts and all(last.tolerance < row.error <= ROUNDING for row in firsts):
            print("  that is no more than float32's rounding: --tolerance 1e-4 looks past it")
        if args.json is not None:
            write_json(args.json, comparing.as_json(found))
    if args.picture is not None:
        comparing.picture(last if not last.same else found[0], args.picture)
    return 0 if last.same else 1


def _is_saved(spec: str) -> bool:
    from minprefix.trace.saved import RECORDS, TENSORS

    path = Path(spec)
    return path.is_dir() and any((path / name).exists() for name in (RECORDS, TENSORS))
