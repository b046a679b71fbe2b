"""`minprefix vectors`: the reference suite as files."""

import argparse
from pathlib import Path

from minprefix.cli.parser import Command


def add(command: Command) -> None:
    p = command(
        "vectors",
        None,
        "the reference suite as files, for programs in other languages",
        "minprefix vectors write v\nminprefix vectors check v",
        "`write` writes cases into a folder; your program reads v/cases and writes v/outputs; "
        "`check` grades them.",
    )
    p.add_subparsers(required=True, metavar="write|check")
    for name, run, what in (
        ("write", _vectors_write, "write the cases of the suite into an empty folder"),
        ("check", _vectors_check, "grade the outputs that a program wrote beside the cases"),
    ):
        part = p.command(name, run, what)
        part.add_argument("folder", type=Path, metavar="DIR")
        part.add_argument(
            "--only",
            action="append",
            metavar="WORD",
            help="an op, a level, or a case's id or a part of it; may be given again",
        )
        if name == "check":
            part.add_argument(
                "--all", action="store_true", help="explain every failure, not the first three"
            )
            part.add_argument(
                "--json",
                type=Path,
                metavar="FILE",
                help="write everything, for programs; - prints it",
            )


def _vectors_write(args: argparse.Namespace) -> int:
    from minprefix.conformance.vectors import write_command

    return write_command(args)


def _vectors_check(args: argparse.Namespace) -> int:
    from minprefix.conformance.vectors import check_command

    return check_command(args)
