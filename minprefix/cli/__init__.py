"""The command line. Bad input is answered with one sentence and exit status 2, Ctrl-C with 130.

Each command is a file here: `add` says its options, `run` does it and imports what it needs, since
`minprefix --help` should not wait for that.
"""

import argparse
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from minprefix import __version__, console
from minprefix.cli import (
    check,
    combine,
    compare,
    compare_methods,
    demo,
    diff,
    evaluate,
    export,
    generate,
    gradcheck,
    import_,
    inspect,
    lessons,
    plot,
    prune,
    step,
    train,
    vectors,
    verify,
    view,
)
from minprefix.cli.parser import Parser, Run
from minprefix.errors import InputError, Note

#: the commands in the groups of `minprefix --help`
GROUPS = {
    "start": (demo, lessons),
    "train": (train, generate, evaluate, compare_methods),
    "keep": (inspect, verify, diff, export, import_),
    "look": (view, step, plot),
    "check": (check, gradcheck, compare, vectors),
    "more": (combine, prune),
}


def main(argv: Sequence[str] | None = None) -> int:
    console.take_every_character()
    args = _parser().parse_args(argv)
    try:
        if getattr(args, "threads", None) is not None:
            from minprefix.ops import threads

            threads.limit(args.threads)
        with _notes():
            return args.run(args)
    except KeyboardInterrupt:
        print("minprefix: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader (`head`) has enough
        sys.stderr.close()
        return 0
    except InputError as error:
        wrong = str(error)
    except OSError as error:  # a path that the system refuses: too long, not permitted, a folder
        where = "" if error.filename is None else f"{error.filename}: "  # print has no file's name
        wrong = f"{where}{error.strerror or error}"
    except RecursionError:
        wrong = "a file is nested too deeply: it is damaged"
    except MemoryError as error:
        wrong = f"{str(error).rstrip('.') or 'out of memory'}: give smaller sizes"
    print(f"minprefix: error: {wrong}", file=sys.stderr)
    return 2


@contextmanager
def _notes() -> Iterator[None]:
    """A note is one line on standard error."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", Note)
        others = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *where: Any) -> None:
            if issubclass(category, Note):
                print(f"minprefix: note: {message}", file=sys.stderr)
            else:
                others(message, category, *where)

        warnings.showwarning = show  # type: ignore[assignment]
        yield


def _parser() -> Parser:
    parser = Parser(
        prog="minprefix",
        usage="minprefix COMMAND ...",
        epilog="minprefix COMMAND --help shows a command's options and an example.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"minprefix {__version__}")
    parser.add_subparsers(
        prog="minprefix", required=True, metavar="COMMAND", help=argparse.SUPPRESS
    )
    lines = ["Prefix-tuning of GPT-2 in plain NumPy."]  # argparse has no groups of commands

    def command(name: str, run: Run, what: str, *texts: str, **more: str) -> Parser:
        lines.append(f"  {f'{name} ':<10}{what}")
        return parser.command(name, run, what, *texts, **more)

    for group, modules in GROUPS.items():
        lines += ["", f"{group}:"]
        for module in modules:
            module.add(command)
    parser.description = "\n".join(lines)
    return parser


if __name__ == "__main__":
    sys.exit(main())
