"""`minprefix check`: the suite at the command line."""

import argparse
import shlex
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING
from urllib.parse import urlencode

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
        "minprefix check --new my_ops.py\nminprefix check my_ops.py --only attention\n"
        "minprefix check --model hf:my_module.py",
        "The report says what is wrong, and where.",
        "0 all that is implemented passed, 1 something failed or nothing is implemented, 2 it "
        "cannot be run",
    )
    p.add_argument("implementation", nargs="?", metavar="IMPLEMENTATION", help=IMPLEMENTATION)
    model = "a module of PyTorch: hf:FILE (or peft:FILE) has a function build(config, weights)"
    p.add_argument("--model", metavar="hf:FILE", help=model)
    path(p, "--names", "FILE", "of a --model: where its parts are, as JSON")
    p.add_argument("--dtype", choices=("float64", "float32"), help="of a --model (default float64)")
    add_only(p, "check")
    levels, many = ("ops", "model", "methods", "training"), "default all; may be given again"
    p.add_argument("--level", action="append", choices=levels, help=many)
    add_report(p)
    limit = "that the calls of a check may take, and each call (default 20)"
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
    from minprefix.conformance.implementation import MAKES
    from minprefix.conformance.isolated import TIME_LIMIT, run_isolated
    from minprefix.conformance.stubs import write_stubs
    from minprefix.conformance.suite import select

    spec = _spec(args)
    module = (spec or "").startswith(MAKES)
    checks = select(args.only or (), args.level or (("model",) if module else ()), module)
    if not checks:
        only, levels = " ".join(args.only), " ".join(args.level or ["model"])
        raise InputError(f"--only {only} names no check of level {levels}: leave one of them out")
    if args.list:
        print(listing(checks))
        return 0
    if args.new is not None:
        if spec is not None:
            raise InputError("--new writes a file of stubs: leave out the implementation to check")
        write_stubs(args.new, args.whole, args.torch)
        again = f"minprefix check {shlex.quote(str(args.new))}"
        print(f"written to {args.new}: fill in what you have, then: {again}")
        return 0
    if args.whole or args.torch:
        option = "--whole" if args.whole else "--torch"
        raise InputError(f"{option} says which stubs to write: give --new FILE as well")
    if spec is None:
        stubs = "(--new FILE writes stubs to start from)"
        raise InputError(f"nothing to check: give a file, a module, 'reference' or 'numpy' {stubs}")
    limit = TIME_LIMIT if args.time_limit is None else args.time_limit
    if not 0 < limit <= A_DAY:
        raise InputError(f"--time-limit is {limit}: expected seconds above 0, at most {A_DAY}")
    if args.json is not None and args.json.is_dir():
        raise InputError(f"--json {args.json} is a folder: give a file to write")
    results = run_isolated(spec, checks, limit, progress=True)
    return report.show(results, spec, args.all, args.json)


def _spec(args: argparse.Namespace) -> str | None:
    """What is to be graded, by a name with its options in it: "hf:my_module.py?dtype=float32".
    Raises InputError."""
    from minprefix.conformance.implementation import MAKES

    if args.model is not None and args.implementation is not None:
        raise InputError(f"--model {args.model} or {args.implementation}: give one of them")
    spec: str | None = args.model or args.implementation
    given = {"names": args.names, "dtype": args.dtype}
    options = {option: str(value) for option, value in given.items() if value is not None}
    asked = ["model"] * (args.model is not None) + list(options)
    if asked and not (spec or "").startswith(MAKES):
        said = f"--{asked[0]} is for a module of PyTorch, and {spec or 'nothing'} is none"
        raise InputError(f"{said}: give --model hf:FILE or peft:FILE")
    return f"{spec}?{urlencode(options, safe='/')}" if options else spec


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
