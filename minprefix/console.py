"""Standard streams that take every character, and a bar for what takes longer than a second."""

import io
import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def take_every_character() -> None:
    """What the encoding of standard output or error has no character for is spelled out, as in
    \\u2192: no command may lose its result to a console. What comes through standard input and is
    not in its encoding becomes the replacement character. The encodings stay as they are, and so do
    the streams of a notebook, which do not encode."""
    for stream, errors in (
        (sys.stdin, "replace"),
        (sys.stdout, "backslashreplace"),
        (sys.stderr, "backslashreplace"),
    ):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=errors)


def takes_unicode() -> bool:
    """Whether standard output is UTF-8. Where it is not, JSON has escapes of its own."""
    return (getattr(sys.stdout, "encoding", None) or "utf-8").lower().startswith("utf")


def plain(text: str) -> str:
    """A record may come from anyone: what would steer a terminal, or is half a character, is
    spelled out."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def bar(items: Iterable[T], what: str | None, unit: str, total: int) -> Iterator[T]:
    """The items, with a bar of this name on standard error if they take more than a second; None:
    without one."""
    from tqdm import tqdm  # not at the top: --help does not wait for it

    yield from tqdm(
        items,
        what,
        total,
        unit=unit,
        delay=1,
        disable=what is None,
        leave=False,
        dynamic_ncols=True,
        mininterval=0.1 if sys.stderr.isatty() else 10,  # a log file wants few lines
    )
