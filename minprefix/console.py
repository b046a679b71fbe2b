"""The terminal: standard streams that take every character, a bar for what takes longer than a
second, and Ctrl-C."""

import io
import signal
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TypeVar

T = TypeVar("T")


def take_every_character() -> None:
    """Spell out each character that standard output or error cannot encode, as in \\u2192: no
    command may lose its result to a console. Bytes of standard input that are not in its encoding
    become the replacement character. The encodings stay as they are, and so do the streams of a
    notebook, which do not encode."""
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


# ---- Ctrl-C -------------------------------------------------------------------------------------


class Stopped(KeyboardInterrupt):
    """Ctrl-C."""


class Stop:
    """Whether Ctrl-C was pressed, and whether it may end what is under way."""

    asked, computing = 0, False

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """The block changes nothing that is kept, so Ctrl-C may end it anywhere."""
        try:
            self.computing = True
            if self.asked:
                raise Stopped
            yield
        finally:
            self.computing = False


@contextmanager
def ctrl_c() -> Iterator[Stop]:
    """Ctrl-C stops a computation at once and lets a write finish: half a step of AdamW is no state
    to save. A second one changes nothing; a third stops even a save."""
    stop = Stop()

    def ask(number: int, frame: FrameType | None) -> None:
        stop.asked += 1
        if stop.computing:
            stop.computing = False
            raise Stopped
        if stop.asked > 2:  # not Stopped, after which the state in memory would be saved
            raise KeyboardInterrupt

    try:
        old = signal.signal(signal.SIGINT, ask)
    except ValueError:  # not in the main thread: Ctrl-C does not come here
        yield stop
        return
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, old)
