"""Readers that do what none may do: the fuzzing has to find each of them."""

import os
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np

from minprefix import InputError
from tests.reliability.readers import Reader

GOOD = b'{"a": 1}'


def make(folder: Path) -> None:
    (folder / "good").mkdir(parents=True)
    (folder / "good" / "file.json").write_bytes(GOOD)


def planted(name: str, bad: Any) -> Reader:
    """Reads a good file well, and a damaged one as `bad` does."""

    def read(folder: Path) -> bytes:
        path = folder / "file.json"
        if path.is_file() and not path.is_symlink() and path.read_bytes() == GOOD:
            return GOOD
        return bad(path)

    def right(folder: Path, loaded: bytes) -> None:
        assert loaded == (folder / "file.json").read_bytes()

    return Reader(name, name, ("file.json",), "json", make, read, right)


def follows(path: Path) -> bytes:
    """Reads whatever file there is, also through a link."""
    if not path.is_file():
        raise InputError("no file")
    return path.read_bytes()


def says(text: str) -> Any:
    def bad(path: Path) -> bytes:
        raise InputError(text)

    return bad


def imports(path: Path) -> bytes:
    import tabnanny  # noqa: F401

    raise InputError("imported")


def allocates(path: Path) -> bytes:
    try:
        np.empty(10**9, np.uint8)  # touched or not
    except MemoryError as error:
        raise MemoryError("no more") from error
    raise InputError("allocated")


PLANTED = {
    reader.name: reader
    for reader in (
        planted("raises", lambda path: 1 / 0),
        planted("dies", lambda path: os.abort()),
        planted("hangs", lambda path: time.sleep(60)),
        planted("spins", lambda path: sum(0 for _ in iter(int, 1))),
        planted("allocates", allocates),
        planted("gives another", lambda path: b"another"),
        planted("follows links", follows),
        planted(
            "opens outside", lambda path: Path("/etc/passwd").read_bytes() and path.read_bytes()
        ),
        planted("imports", imports),
        planted("evaluates", lambda path: eval("1 + 1")),
        planted("unpickles", lambda path: __import__("pickle").loads(b"cos\ngetcwd\n.")),
        planted("starts a process", lambda path: subprocess.run(["true"], check=True)),
        planted("writes", lambda path: (path.parent / "new").write_bytes(b"")),
        planted("says too much", says("x" * 5000)),
        planted("says control characters", says("\x1b[2J")),
        planted("says lines", says("one\ntwo")),
    )
}
