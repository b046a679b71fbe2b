"""`minprefix check`: the suite at the command line."""

import argparse
import shlex
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from minprefix.cli.options import IMPLEMENTATION, add_threads, flag, path
from minprefix.cli.parser import Command
from minprefix.errors import InputError

if TYPE_CHECKING:
    from minprefix.conformance.check import Check

A_DAY = 86400  # seconds


def add(command: Command) -> None:
    p = command(
        "check",
        run,
        "run an implementation of prefix-tuning through the reference suite",
        "minprefix check --new my_ops.py\nminprefix check my_ops.py --only attention",
        "The report says what is wrong, and where.",
        "0 all that is implemented passed, 1 something failed or nothing is implemented, 2 it "
        "cannot be run",
    )
    p.add_argument("implementation", nargs="?", metavar="IMPLEMENTATION", help=IMPLEMENTATION)
    add_only(p, "check")
    levels, many = ("ops", "model", "methods", "training"), "default all; may be given again"
    p.add_argument("--level", action="append", choices=levels, help=many)
    add_report(p)
    limit = "for each check (default 20)"
    p.add_argument("--time-limit", type=float, metavar="SECONDS", help=limit)
    add_threads(p)
    flag(p, "--list", "show the checks, and run none")
    path(p, "--new", "FILE", "write a file of stubs to fill in")
    whole = "of a whole model (run_model, run_method, run_training ...), not of its operations"
    flag(p, "--whole", f"with --new: {whole}")
    flag(p, "--torch", "with --new: in PyTorch")


def add_only(p: argparse.ArgumentParser, what: str) -> None:
    """The option that chooses among checks or cases (`what`)."""
    said = f"an op, a level, or a {what}'s id or a part of it; may be given again"
    p.add_argument("--only", action="append", metavar="WORD", help=said)


def add_report(p: argparse.ArgumentParser) -> None:
    """Options of a command that ends with the suite's report."""
    flag(p, "--all", "explain every failure, not the first three")
    path(p, "--json", "FILE", "write everything, for programs; - prints it")


def run(args: argparse.Namespace) -> int:
    """-> 0 if everything that is implemented passed, 1 if not or if nothing is. Raises InputError
    for what cannot be run at all."""
    from minprefix.conformance import report
    from minprefix.conformance.isolated import TIME_LIMIT, run_isolated
    from minprefix.conformance.stubs import write_stubs
    from minprefix.conformance.suite import select

    checks = select(args.only or (), args.level or ())
    if not checks:
        only, levels = " ".join(args.only), " ".join(args.level)
        raise InputError(f"--only {only} names no check of level {levels}: leave one of them out")
    if args.list:
        print(listing(checks))
        return 0
    if args.new is not None:
        if args.implementation is not None:
            raise InputError("--new writes a file of stubs: leave out the implementation to check")
        write_stubs(args.new, args.whole, args.torch)
        again = f"minprefix check {shlex.quote(str(args.new))}"
        print(f"written to {args.new}: fill in what you have, then: {again}")
        return 0
    if args.whole or args.torch:
        option = "--whole" if args.whole else "--torch"
        raise InputError(f"{option} says which stubs to write: give --new FILE as well")
    if args.implementation is None:
        stubs = "(--new FILE writes stubs to start from)"
        raise InputError(f"nothing to check: give a file, a module, 'reference' or 'numpy' {stubs}")
    limit = TIME_LIMIT if args.time_limit is None else args.time_limit
    if not 0 < limit <= A_DAY:
        raise InputError(f"--time-limit is {limit}: expected seconds above 0, at most {A_DAY}")
    if args.json is not None and args.json.is_dir():
        raise InputError(f"--json {args.json} is a folder: give a file to write")
    results = run_isolated(args.implementation, checks, limit, progress=True)
    return report.show(results, args.implementation, args.all, args.json)


def listing(checks: "Sequence[Check]") -> str:
    """Every check and what it is there to catch."""
    from minprefix.conformance.contract import LEVELS

    rows = []
    for level in LEVELS:
        of_level = [c for c in checks if c.level == level]
        rows += [level] if of_level else []
        for c in of_level:
            rows += textwrap.wrap(f"  {c.id:<34} {c.why}", 100, subsequent_indent=" " * 37)
    return "\n".join(rows)
