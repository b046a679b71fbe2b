"""`minprefix gradcheck`: whether a function's backward is its gradient."""

import argparse
import json
import shlex
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minprefix.cli.options import flag, path
from minprefix.cli.parser import Command
from minprefix.errors import InputError, note

if TYPE_CHECKING:
    from minprefix.gradcheck import Report
    from minprefix.gradcheck.source import Source

IN_FULL = 3  # so many findings of a function are explained; the rest get a line each


def add(command: Command) -> None:
    p = command(
        "gradcheck",
        run,
        "check the backward of any function by measuring its gradient",
        "minprefix gradcheck --new rmsnorm my.py\nminprefix gradcheck my.py:rmsnorm",
        "NAME's backward is NAME_backward, or the method `backward` of a class. A function that is "
        "named after a piece (--list) is compared with the right values, too. For any other, "
        "NAME_inputs() in the file returns its arguments, or --input gives shapes.",
        "0 all passed, 1 something is wrong or not written yet, 2 it cannot be run",
    )
    said = "a file or a module, and a function in it; without NAME, all that have a backward"
    p.add_argument("function", nargs="?", metavar="FILE:NAME", help=said)
    p.add_argument("--backward", metavar="NAME", help="the backward, where its name is another one")
    shape = "random numbers of this shape for an argument, as x=4x8; may be given again"
    p.add_argument("--input", action="append", metavar="ARG=SHAPE", help=shape)
    only = "of a piece's cases, only this one; may be given again"
    p.add_argument("--only", action="append", metavar="CASE", help=only)
    flag(p, "--all", "explain every finding, not the first three")
    path(p, "--json", "FILE", "write everything, for programs; - prints it")
    flag(p, "--list", "show the pieces and their cases, and check none")
    p.add_argument("--new", metavar="PIECE", help="write FILE, with stubs of a piece to fill in")


def run(args: argparse.Namespace) -> int:
    """-> 0 if every function passed, 1 if not. Raises InputError for what cannot be run at all."""
    from minprefix.gradcheck.source import find
    from minprefix.gradcheck.stub import write_stub

    if args.list:
        print(listing())
        return 0
    if args.function is None:
        stubs = "(--new PIECE FILE writes stubs to start from)"
        raise InputError(f"nothing to check: give a file and a function, as my.py:rmsnorm {stubs}")
    if args.new is not None:
        write_stub(args.new, Path(args.function))
        again = f"minprefix gradcheck {shlex.quote(f'{args.function}:{args.new}')}"
        print(f"written to {args.function}: fill it in, then: {again}")
        return 0
    if args.json is not None and args.json.is_dir():
        raise InputError(f"--json {args.json} is a folder: give a file to write")
    sources = find(args.function, args.backward)
    reports = []
    for source in sources:
        try:
            reports.append(_report(source, args))
        except InputError as error:
            if len(sources) == 1:
                raise
            note(f"not checked: {error}")
    if not reports:
        raise InputError(f"{args.function}: nothing can be checked")
    _show(reports, args)
    return 0 if all(reports) else 1


def _report(source: "Source", args: argparse.Namespace) -> "Report":
    from minprefix.gradcheck.check import gradcheck
    from minprefix.gradcheck.graded import grade
    from minprefix.gradcheck.source import inputs_of

    inputs = inputs_of(source, args.input or ())
    if inputs is None and source.piece:
        report = grade(source, args.only or ())
    elif args.only:
        raise InputError(f"--only {args.only[0]}: {source.name} has no cases, its inputs are yours")
    elif inputs is None:
        raise InputError(
            f"{source.name} is no piece (--list shows them), so its inputs are needed: write "
            f"{source.asked}_inputs() in the file, which returns its arguments as a tuple or a "
            "dictionary, or give shapes, as --input x=4x8"
        )
    else:
        lines = f"{source.lines('inputs_of')}inputs = inputs_of(mine, {args.input or []!r})"
        named: dict[str, Any] = {"name": source.name, "source": lines}
        report = gradcheck(source.forward, source.backward, *inputs, **named)
    return source.named(report)


def _show(reports: "list[Report]", args: argparse.Namespace) -> None:
    from minprefix import __version__
    from minprefix.storage.writing import write_json

    told = {
        "minprefix": __version__,
        "passed": all(reports),
        "functions": [report.as_json() for report in reports],
    }
    if args.json == Path("-"):
        print(json.dumps(told, indent=2))
        return
    print("\n\n".join(report.text(None if args.all else IN_FULL) for report in reports))
    if args.json is not None:
        write_json(args.json, told)


def listing() -> str:
    """Every piece, its arguments, and why each of its cases is there."""
    from minprefix.gradcheck import cases
    from minprefix.gradcheck.source import signature

    rows = []
    for piece in cases.CASES:
        rows.append(f"{piece}{signature(piece)}")
        for name, why in cases.names(piece).items():
            rows += textwrap.wrap(f"  {name:<14} {why}", 100, subsequent_indent=" " * 17)
    return "\n".join(rows)
