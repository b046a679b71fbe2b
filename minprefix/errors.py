"""How minprefix answers bad input: an exception where it cannot continue, a note where it can."""

import reprlib
import warnings
from collections.abc import Iterable
from typing import Any


class InputError(ValueError):
    """A sentence: what was wrong and where, what was expected, and what to do about it.

    The command line prints it after `minprefix: error:` and exits with status 2; a library user
    catches it as a ValueError.
    """


class Diverged(InputError):
    """A training whose numbers are no longer finite."""


class Note(UserWarning):
    """A sentence on something that was left out or has no effect, and that stops nothing.

    The command line prints it after `minprefix: note:`; a library user gets it as a warning.
    """


_given: set[str] = set()


def note(message: str, kind: type[Note] = Note) -> None:
    """Say it, once in a process however often it is true."""
    if message not in _given:
        _given.add(message)
        warnings.warn(message, kind, stacklevel=3)


def counted(n: int, noun: str, nouns: str | None = None) -> str:
    """1 pair, 2 pairs. `nouns`: the plural, if it takes more than an s."""
    return f"{n} {noun if n == 1 else nouns or noun + 's'}"


_short = reprlib.Repr()
_short.maxstring = _short.maxother = 200


def quoted(value: Any) -> str:
    """`repr` of a value that came out of a file, cut to what a sentence can hold."""
    return _short.repr(value)


def listed(names: Iterable[Any]) -> str:
    """The first of the names that came out of a file, and how many there are more."""
    names = list(names)
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return (", ".join(map(quoted, names[:8])) or "none") + more


def brief(error: BaseException | str) -> str:
    """The message of an error on one printable line of at most 200 characters."""
    text = " ".join(str(error).split())
    text = text if len(text) <= 200 else f"{text[:200]}..."
    return "".join(c if c.isprintable() else "?" for c in text)
