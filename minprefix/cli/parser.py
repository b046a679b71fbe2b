"""The command line's parser: it answers a word that is nearly an option or a command with those."""

import argparse
import difflib
import sys
import textwrap
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn, Protocol

#: what other programs call an option, and what it is called here
ELSEWHERE = {
    "--learning-rate": "--lr",
    "--num-train-epochs": "--epochs",
    "--max-steps": "--steps",
    "--warmup-steps": "--warmup",
    "--lr-scheduler-type": "--schedule",
    "--max-grad-norm": "--clip",
    "--per-device-train-batch-size": "--batch-size",
    "--gradient-accumulation-steps": "--micro-batch-size",
    "--num-virtual-tokens": "--prefix-length",
    "--model-name-or-path": "--model",
    "--train-file": "--data",
    "--validation-file": "--valid",
    "--output-dir": "--out",
    "--output-file": "--out",
    "--num-beams": "--beams",
    "--length-penalty": "--length-norm",
    "--max-length": "--max-new-tokens",
    "--device": "--backend",
}

#: commands that went elsewhere: what to type now
MOVED = {"bench": "the benchmarks run by `python -m tools.bench`, in a clone of the repository"}

#: does the work and gives the exit status; None: the command has commands of its own
Run = Callable[[argparse.Namespace], int] | None


class Command(Protocol):
    """Adds a command to a parser: `Parser.command` of one."""

    def __call__(
        self, name: str, run: Run, what: str, example: str = "", more: str = "", status: str = ""
    ) -> "Parser": ...


class Parser(argparse.ArgumentParser):
    """A word that is no option or command is answered with those that are like it, before anything
    is said of an option that is missing. Without a word, a parser that has commands prints its help
    and exits with status 0. Its commands' parsers are of this class, too."""

    commands: "argparse._SubParsersAction[Any] | None" = None

    def add_subparsers(self, **options: Any) -> "argparse._SubParsersAction[Any]":
        self.commands = super().add_subparsers(**options)
        return self.commands

    def command(
        self, name: str, run: Run, what: str, example: str = "", more: str = "", status: str = ""
    ) -> "Parser":
        """Add a command and return its parser, to which the caller adds options.

        `what` is one line for the list of commands. The command's own help begins with it, goes on
        with `more`, and ends in `example` and in the exit `status` where that says more than usual.
        """
        assert self.commands is not None, "add_subparsers comes first"
        shown = example and "example:\n" + textwrap.indent(example, "  ")
        status = status and textwrap.fill(f"exit status: {status}", 79)
        p: Parser = self.commands.add_parser(
            name,
            help=what,
            description=textwrap.fill(f"{what[0].upper()}{what[1:]}. {more}", 79),
            epilog="\n\n".join(filter(None, (shown, status))),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        if run is not None:
            p.set_defaults(run=run)
        return p

    def parse_known_args(  # type: ignore[override]  # one signature for argparse's three
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        args = sys.argv[1:] if args is None else list(args)
        if self.commands is not None and not args:
            self.print_help()
            self.exit(0)
        self._refuse_unknown(args)
        return super().parse_known_args(args, namespace)

    def _refuse_unknown(self, args: Sequence[str]) -> None:
        value = False  # whether this word belongs to the option before it
        for word in args:
            if word == "--":
                return
            (name, sign, _), of_option, value = word.partition("="), value, False
            action = self._option_string_actions.get(name)
            if action is not None:
                value = not sign and action.nargs is None
            elif of_option:  # argparse says of the one before if it lacks its value
                continue
            elif _like_option(word):
                self._no_such("option", name, self._option_string_actions)
            elif self.commands is not None:
                if word not in self.commands.choices:
                    self._no_such("command", word, self.commands.choices)
                return  # the rest is the command's

    def _no_such(self, kind: str, word: str, known: Iterable[str]) -> NoReturn:
        if kind == "command" and word in MOVED:
            self.error(f"there is no command {word}: {MOVED[word]}")
        meant = {name: name for name in known}
        meant |= {name: ours for name, ours in ELSEWHERE.items() if ours in meant}
        typed = difflib.SequenceMatcher(b=word.strip("-").replace("_", "-"))
        like: dict[str, float] = {}
        for name, ours in meant.items():
            typed.set_seq1(name.strip("-"))
            like[ours] = max(like.get(ours, 0.0), typed.ratio())
        enough = max(0.6, max(like.values()) - 0.05)
        near = sorted((name for name in like if like[name] >= enough), key=lambda n: -like[n])
        hint = (
            f"did you mean {' or '.join(near[:3])}?" if near else f"{self.prog} --help lists them"
        )
        self.error(f"there is no {kind} {word}: {hint}")


def _like_option(word: str) -> bool:
    """As argparse sees it: neither text nor a negative number."""
    if not word.startswith("-") or word == "-" or " " in word:
        return False
    try:
        float(word)
    except ValueError:
        return True
    return False
