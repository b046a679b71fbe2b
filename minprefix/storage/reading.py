"""Reading files that may come from anyone, with sentences for errors."""

import json
import os
import re
import stat
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from minprefix.errors import InputError, brief, quoted

#: bytes; no JSON file of a model or a prefix comes near it, and safetensors has it for its header
LARGEST_JSON = 100_000_000
_KINDS = {
    stat.S_IFDIR: "Is a directory",
    stat.S_IFIFO: "Is a pipe",
    stat.S_IFSOCK: "Is a socket",
    stat.S_IFCHR: "Is a device",
    stat.S_IFBLK: "Is a device",
}


def inside(folder: Path, name: str, what: str) -> Path:
    """`folder / name`, which may be missing and is a regular file otherwise.

    `folder` may be a link. A file in it may be a link only to a regular file within the folder, or,
    as in the hub's cache, from `<repo>/snapshots/<commit>` into `<repo>/blobs`. Raises InputError
    for any other link, for a folder, a pipe or a device, and for a `name` that is a path or cannot
    be printed.
    """
    plain = isinstance(name, str) and name.isprintable() and not set(name) & set("/\\")
    if not plain or name in ("", ".", ".."):
        raise InputError(f"{quoted(name)} is no name of a file: expected {what} within {folder}")
    path = folder / name
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return path
    except OSError as error:
        raise _unreadable(path, what, error) from error
    if path.is_symlink():
        target, home = Path(os.path.realpath(path)), Path(os.path.realpath(folder))
        blobs = home.parent.parent / "blobs" if home.parent.name == "snapshots" else None
        if home not in target.parents and target.parent != blobs:
            how = f"copy the file there; {what} is read from one folder only"
            raise InputError(f"{path} is a link to {target}, outside its folder: {how}")
    regular(path, what)
    return path


def regular(path: Path, what: str) -> int:
    """-> the size of a file. Raises InputError unless it is a regular file, or a link to one: a
    pipe keeps its reader waiting and can be read only once, and a device may never end."""
    try:
        found = os.stat(path)
    except (OSError, ValueError) as error:
        raise _unreadable(path, what, error) from error
    if not stat.S_ISREG(found.st_mode):
        kind = _KINDS.get(stat.S_IFMT(found.st_mode), "Is no file")
        raise InputError(f"cannot read {what} {path}: {kind}; save it as a regular file")
    return found.st_size


def _unreadable(path: Path, what: str, error: Exception) -> InputError:
    link = " (a broken link)" if path.is_symlink() else ""
    return InputError(f"cannot read {what} {path}{link}: {getattr(error, 'strerror', 0) or error}")


def unexpected(path: Path, key: str, value: Any, expected: str) -> InputError:
    """The sentence about a value that a file gives."""
    return InputError(f"{path}: {key} is {quoted(value)}: expected {expected}")


def read_bytes(path: Path, what: str, largest: int | None = None) -> bytes:
    """Raises InputError if `path` is missing, no regular file, unreadable, above `largest` bytes or
    a Git LFS pointer; `what` it should be is in the sentence."""
    size = regular(path, what)
    if largest is not None and size > largest:
        limit = f"expected at most {largest:,} for {what}"
        raise InputError(f"{path} has {size:,} bytes: {limit}; it is damaged")
    try:
        data = path.read_bytes()
    except MemoryError as error:
        raise too_large(path, size) from error
    except OSError as error:
        raise _unreadable(path, what, error) from error
    check_itself(path, data, what, page=False)
    return data


#: the start of the file that Git LFS leaves in place of one that it has not fetched
_POINTER = b"version https://git-lfs.github.com/spec/"
_PAGE = re.compile(rb"(\xef\xbb\xbf)?\s*<(!doctype\s+html|html|head)\b", re.IGNORECASE)


def check_itself(path: Path, start: bytes, what: str, page: bool) -> None:
    """Raises InputError if a file is not the one that its name promises, but a Git LFS pointer or,
    with `page`, the web page about it."""
    if start.startswith(_POINTER):
        pointer = f"{path} is a Git LFS pointer, which only stands for {what}"
        raise InputError(f"{pointer}: run `git lfs pull` in its folder")
    if page and _PAGE.match(start):
        how = "fetch the file itself (on the hub /resolve/ instead of /blob/)"
        raise InputError(f"{path} is an HTML page and not {what}: {how}")


def too_large(path: Path, size: int) -> InputError:
    return InputError(
        f"{path} has {size:,} bytes, more than the memory holds: split it, or take a larger machine"
    )


def read_text(path: Path, what: str, largest: int | None = None) -> str:
    """As `read_bytes`. Raises InputError for a web page, too, and for what is not UTF-8, with what
    it is if its first bytes show it. Line ends become \\n."""
    data = read_bytes(path, what, largest)
    check_itself(path, data[:1000], what, page=True)
    try:
        text = data.decode("utf-8").removeprefix("\ufeff")  # a byte order mark
        if "\0" not in text:
            return text.replace("\r\n", "\n").replace("\r", "\n")
        at, wrong = data.index(0), "a NUL byte, which is no text"
    except UnicodeDecodeError as error:
        at, wrong = error.start, f"byte 0x{data[error.start]:02x} is not UTF-8"
    line = data.count(b"\n", 0, at) + 1
    as_text = f"{path}, line {line}: {wrong}: save {what} as UTF-8"
    raise InputError(_packed(path, data[:64]) or as_text)


#: first bytes of files that are no text: what the file is, and what to do
_BEGINNINGS = (
    (b"\x1f\x8b", "gzip-compressed", "unpack it with gunzip"),
    (b"BZh", "bzip2-compressed", "unpack it with bunzip2"),
    (b"\xfd7zXZ\0", "xz-compressed", "unpack it with unxz"),
    (b"\x28\xb5\x2f\xfd", "zstd-compressed", "unpack it with unzstd"),
    (b"PK\3\4", "a ZIP archive, or a workbook", "unpack it, or save the workbook as CSV UTF-8"),
    (b"\xd0\xcf\x11\xe0", "a workbook", "save it as CSV UTF-8"),
    (b"PAR1", "a Parquet table", "write it as JSONL or CSV"),
    (b"\xff\xfe\0\0", "UTF-32", "save it as UTF-8"),
    (b"\xff\xfe", "UTF-16", "save it as UTF-8 (in Excel: CSV UTF-8)"),
    (b"\xfe\xff", "UTF-16", "save it as UTF-8 (in Excel: CSV UTF-8)"),
)


def packed(path: Path) -> str | None:
    """The sentence about a file that is compressed, a workbook or in another encoding; None for any
    other file, and for one that cannot be read."""
    try:
        regular(path, "the file")
        with open(path, "rb") as f:
            return _packed(path, f.read(64))
    except (InputError, OSError):
        return None


def _packed(path: Path, head: bytes) -> str | None:
    for beginning, what, do in _BEGINNINGS:
        if head.startswith(beginning):
            return f"{path} is {what}: {do}"
    if len(head) > 3 and head[0] and head[2] and head[1] == head[3] == 0:  # without its mark
        return f"{path} is UTF-16: save it as UTF-8"
    return None


def read_json(path: Path, what: str, kind: type = dict) -> Any:
    """The object (or with `kind` the list) that a JSON file holds. Raises InputError for anything
    else, and for a key that an object has twice."""
    text = read_text(path, what, LARGEST_JSON)
    try:
        value = loads(text)
    except (ValueError, RecursionError) as error:  # a key twice, a number or brackets without end
        at = f"{path}, line {error.lineno}" if isinstance(error, json.JSONDecodeError) else path
        damaged = f"{what} is damaged, fetch or save it again"
        raise InputError(f"{at}: not JSON ({_why(error)}): {damaged}") from error
    if not isinstance(value, kind):
        expected = "an object" if kind is dict else "a list"
        raise InputError(f"{path} holds a {type(value).__name__}: expected {expected} ({what})")
    return value


def loads(text: str) -> Any:
    """json.loads, but a key that an object has twice is a ValueError."""
    return json.loads(text, object_pairs_hook=_once)


def json_lines(path: Path, text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a JSONL file, each after its place ("FILE, line 3"). Raises InputError for a
    line that holds none."""
    for n, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path}, line {n}"
        try:
            value = loads(line)
        except (ValueError, RecursionError) as error:
            wrong = f"{where}: not JSON ({_why(error)})"
            raise InputError(f"{wrong}: expected one object a line") from error
        if not isinstance(value, dict):
            raise InputError(f"{where}: a {type(value).__name__}: expected an object")
        yield where, value


def _why(error: Exception) -> str:
    return getattr(error, "msg", None) or brief(error)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"key {quoted(twice)} is there twice")
    return value
