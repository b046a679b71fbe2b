"""Writing a file so that a kill or a full disk leaves the old one whole."""

import contextlib
import io
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from minprefix.errors import InputError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


def write_bytes(path: Path, data: bytes) -> None:
    """Write beside the target, flush to disk, then rename over it: there is always one whole file.

    Raises InputError if the disk refuses or another process is writing this file; what stood at
    `path` before is untouched.
    """
    with refused(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with _only_writer_of(path):
            try:
                write_and_flush(temporary(path), data)
                os.replace(temporary(path), path)
            except BaseException:  # Ctrl-C, too, leaves nothing beside the target
                with contextlib.suppress(OSError):
                    temporary(path).unlink()
                raise
        flush_folder(path.parent)  # the rename itself must reach the disk, too


def temporary(path: Path) -> Path:
    """The one place where `path` is written before it takes its name: what a kill left there is
    replaced."""
    return path.with_name(f".{path.name}.tmp")


def write_and_flush(path: Path, data: bytes) -> None:
    with open(path, "wb") as f:
        f.write(data)
        f.flush()
        os.fsync(f.fileno())


@contextlib.contextmanager
def _only_writer_of(path: Path) -> Iterator[None]:
    """The lock is on the temporary file: a kill releases it, and other files can be written."""
    if fcntl is None:
        yield
        return
    handle = os.open(temporary(path), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    try:
        # the other may have renamed what was opened here: then it is a whole file, not ours
        if not locked(handle) or not _same(handle, temporary(path)):
            raise busy(str(path))
        yield
    finally:
        os.close(handle)


def _same(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def locked(handle: int) -> bool:
    """Lock an open file or folder. -> False if another handle has the lock; True, too, on a file
    system without locks."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


class Busy(InputError):
    """Another process or thread writes there."""


def busy(where: str) -> Busy:
    return Busy(f"another process is writing {where}: wait for it to end, or choose another folder")


def flush_folder(path: Path) -> None:
    if os.name == "posix":
        folder = os.open(path, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


@contextlib.contextmanager
def refused(path: Path, do: str = "write") -> Iterator[None]:
    """Turn what the system refuses into a sentence about `path`."""
    try:
        yield
    except OSError as error:
        kept = "; the last one saved is intact" if do == "write" and path.exists() else ""
        why = f"cannot {do} {path}: {error.strerror or error}{kept}"
        raise InputError(f"{why}; make room or choose another folder") from error


def partial(path: Path) -> Path:
    """The file that holds the lines of `path` until all of them are there."""
    return path.with_name(f"{path.name}.partial")


@contextlib.contextmanager
def line_by_line(path: Path, what: str, of: int) -> Iterator[Callable[[str], None]]:
    """Give the block a function that keeps a line in `partial(path)`; at the end the block itself
    writes the whole file. A Ctrl-C, an error or a kill before that leaves the lines there; the
    first two say on standard error how many of the `of` things called `what` are there.

    Raises InputError if a stopped run left such a file, and if the disk refuses.
    """
    waiting, n = partial(path), 0
    if os.path.lexists(waiting):
        stopped = f"{waiting} is there already, the {what} of a run that was stopped"
        raise InputError(f"{stopped}: remove it, or choose another --out")
    with contextlib.ExitStack() as stack:
        file: io.BufferedWriter | None = None

        def keep(line: str) -> None:
            nonlocal n, file
            with refused(waiting):
                if file is None:
                    path.parent.mkdir(parents=True, exist_ok=True)
                file = file or stack.enter_context(open(waiting, "xb"))
                file.write(line.encode("utf-8", "backslashreplace"))
                file.flush()
            n += 1

        try:
            yield keep
        except BaseException:
            if n:
                print(f"minprefix: {waiting} has {n} of {of} {what}", file=sys.stderr)
            raise
    waiting.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    write_bytes(path, json_bytes(value))


def json_bytes(value: Any) -> bytes:
    """Half characters, as in a file's name that is not UTF-8, are escaped."""
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    return text.encode("utf-8", "backslashreplace")
