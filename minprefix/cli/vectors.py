"""`minprefix vectors`: the reference suite as files."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from minprefix.cli.check import add_only, add_report
from minprefix.cli.parser import Command
from minprefix.errors import counted

if TYPE_CHECKING:
    from minprefix.conformance.check import Check


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
    write = p.command("write", _write, "write the cases of the suite into an empty folder")
    check = p.command("check", _check, "grade the outputs that a program wrote beside the cases")
    for part in (write, check):
        part.add_argument("folder", type=Path, metavar="DIR")
        add_only(part, "case")
    add_report(check)


def _write(args: argparse.Namespace) -> int:
    from tqdm import tqdm

    from minprefix.conformance import vectors

    only = args.only or ()
    n = len(vectors.chosen(vectors.all_cases(), only))
    # every bug of the zoo runs through every case: that takes minutes
    with tqdm(total=n, unit="case", leave=False, disable=None) as bar:

        def caught(check: "Check") -> list[str]:
            bar.set_description(check.id)
            found = vectors.caught_by(check)
            bar.update()
            return found

        ids = vectors.write(args.folder, only, caught)
    size = sum(path.stat().st_size for path in (args.folder / "cases").iterdir())
    print(
        f"{counted(len(ids), 'case')}, {size / 1e6:.1f} MB, written to {args.folder}: "
        f"{vectors.INDEX} describes them\nWrite what your program gives into "
        f"{args.folder / vectors.OUTPUTS}, then: minprefix vectors check {args.folder}"
    )
    return 0


def _check(args: argparse.Namespace) -> int:
    """-> 0 if everything that was written passed, 1 if not or if nothing could be graded."""
    from minprefix.conformance import report, vectors

    results = vectors.check(args.folder, args.only or (), progress=True)
    return report.show(results, str(args.folder), args.all, args.json)
