"""Writing so that a kill or a full disk leaves the old file whole, and reading with sentences for
errors."""

import contextlib
import io
import json
import os
import re
import reprlib
import shutil
import stat
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np

from minprefix.errors import InputError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

T = TypeVar("T")

#: safetensors' names of the types that are read here; bfloat16 (BF16) has no NumPy type and is
#: widened
DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "I64": np.int64, "U8": np.uint8}


def write_bytes(path: Path, data: bytes) -> None:
    """Write beside the target, flush to disk, then rename over it: there is always one whole file.

    Raises InputError if the disk refuses or another process is writing this file; what stood at
    `path` before is untouched.
    """
    with _refused(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with _only_writer_of(path):
            try:
                _write(temporary(path), data)
                os.replace(temporary(path), path)
            except BaseException:  # Ctrl-C, too, leaves nothing beside the target
                with contextlib.suppress(OSError):
                    temporary(path).unlink()
                raise
        _flush_folder(path.parent)  # the rename itself must reach the disk, too


def temporary(path: Path) -> Path:
    """Where `path` is written before it takes its name. There is one: what a kill left is
    replaced."""
    return path.with_name(f".{path.name}.tmp")


def _write(path: Path, data: bytes) -> None:
    with open(path, "wb") as f:
        f.write(data)
        f.flush()
        os.fsync(f.fileno())


@contextlib.contextmanager
def _only_writer_of(path: Path) -> Iterator[None]:
    """The lock is on the temporary file: a kill lets go of it, and other files can be written."""
    if fcntl is None:
        yield
        return
    handle = os.open(temporary(path), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    try:
        # what was opened may have taken its name since: then it is the other's whole file
        if not _locked(handle) or not _same(handle, temporary(path)):
            raise _Busy(
                f"another process is writing {path}: wait for it to end, or choose another folder"
            )
        yield
    finally:
        os.close(handle)


def _same(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def _locked(handle: int) -> bool:
    """Lock an open file or folder for this handle. -> whether no other has it; True, too, on a file
    system without locks."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


class _Busy(InputError):
    """Another process or thread writes there."""


def _flush_folder(path: Path) -> None:
    if os.name == "posix":
        folder = os.open(path, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


@contextlib.contextmanager
def _refused(path: Path) -> Iterator[None]:
    """What the system says no to, as a sentence about `path`."""
    try:
        yield
    except OSError as error:
        kept = "; the last one saved is intact" if path.exists() else ""
        raise InputError(
            f"cannot write {path}: {error.strerror or error}{kept}; make room or choose another "
            "folder"
        ) from error


# ---- several files as one ---------------------------------------------------------------------

#: where the files of one save wait until all of them are there, and the list that says so
SAVING, COMPLETE = ".saving", "complete.json"
PATIENCE = 10.0  # s  for which a reader waits for others to end a save
MOMENT = 1.0  # s  for which a writer waits: a reader that finishes a save holds the folder less


def write_together(folder: Path, contents: dict[str, bytes], names: Iterable[str]) -> None:
    """Replace the files `names` of `folder` by `contents`, all or none; a name without content is
    removed.

    They are written into a folder within, a list of them is the decision, then they take their
    places. A kill before the decision leaves the old ones, a kill after it the new ones, once
    `finish_save` has been called: every writer and reader of such files calls it first. Raises
    InputError if the disk refuses or another process writes there.
    """
    names, waiting = tuple(names), folder / SAVING
    assert contents.keys() <= set(names)
    with _refused(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with only_writer(folder):
        finish_save(folder, names)
        try:
            with _refused(folder / names[-1]):
                waiting.mkdir(exist_ok=True)
            for name, data in contents.items():
                with _refused(folder / name):
                    _write(waiting / name, data)
            with _refused(folder / names[-1]):
                _flush_folder(folder)  # `waiting` itself must be there before the decision
                _write(temporary(waiting / COMPLETE), json.dumps(sorted(contents)).encode())
                os.replace(temporary(waiting / COMPLETE), waiting / COMPLETE)
                _flush_folder(waiting)
        except BaseException:
            with contextlib.suppress(OSError):
                _forget(waiting)
            raise
        finish_save(folder, names)


def finish_save(folder: Path, names: Iterable[str]) -> None:
    """Complete a save of `names` that a kill cut short after it was decided; forget one that was
    not, if this process may: it is in nobody's way. Raises InputError if another process is at it
    or the disk refuses."""
    waiting, names = folder / SAVING, tuple(names)
    try:
        kind = waiting.lstat().st_mode
    except OSError:  # there is none
        return
    if not stat.S_ISDIR(kind):
        raise InputError(f"{waiting} is no folder, and a save makes one there: remove it")
    decided = (waiting / COMPLETE).exists()
    try:
        with only_writer(folder):
            if (waiting / COMPLETE).exists():
                _take_places(folder, names)
            _forget(waiting)
    except InputError:
        if decided:
            raise
    except OSError as error:
        if decided:
            raise InputError(
                f"a save into {folder} was cut short and cannot be finished "
                f"({error.strerror or error}): make room, or open it once as someone who may write "
                "there"
            ) from error


def _take_places(folder: Path, names: tuple[str, ...]) -> None:
    waiting = folder / SAVING
    complete = read_json(waiting / COMPLETE, "the list of a save", list)
    if not set(map(str, complete)) <= set(names):
        raise InputError(
            f"{waiting / COMPLETE} names files that are no part of a save: {complete}; remove "
            f"{waiting}"
        )
    for name in names:
        if name not in complete:  # of what stood here before
            (folder / name).unlink(missing_ok=True)
        elif (waiting / name).exists():  # else a kill came after its move
            os.replace(waiting / name, folder / name)
    _flush_folder(folder)


def _forget(waiting: Path) -> None:
    (waiting / COMPLETE).unlink(missing_ok=True)  # first: a list without its files would be obeyed
    shutil.rmtree(waiting, ignore_errors=True)


def read_together(folder: Path, names: Iterable[str], read: Callable[[], T]) -> T:
    """What `read` makes of the files `names`, all of one save, though others may be saving there
    meanwhile. Raises what `read` raises, and InputError if there is no end to their saving."""
    names, end = tuple(names), time.monotonic() + PATIENCE
    while time.monotonic() < end:
        with contextlib.suppress(_Busy):  # the other will have finished in a moment
            finish_save(folder, names)
            before, value, failed = _standing(folder, names), None, None
            try:
                value = read()
            except (InputError, OSError) as error:  # two files of two saves do not fit
                failed = error
            if before is not None and before == _standing(folder, names):
                if failed is not None:
                    raise failed
                return cast(T, value)
        time.sleep(0.002)
    raise _busy(folder)


def _standing(folder: Path, names: tuple[str, ...]) -> list[tuple[int, ...] | None] | None:
    """Which files stand at `names`; None while those of a save take their places."""
    if (folder / SAVING / COMPLETE).exists():
        return None
    found: list[tuple[int, ...] | None] = []
    for name in names:
        try:
            s = (folder / name).stat()
            found.append((s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns))
        except OSError:
            found.append(None)
    return found


#: the folders that this process holds: (device, inode) -> thread, how many times
_held: dict[tuple[int, int], tuple[int, int]] = {}
_lock = threading.Lock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_held.clear)  # a child holds nothing


@contextlib.contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Keep every other process and thread from writing into `folder`, which must exist, meanwhile.
    The same thread may take it again.

    The system holds the lock, on the folder itself: a kill lets go of it, and no file is left.
    Raises InputError if another one writes there. Where there are no such locks (Windows, some
    network file systems) nobody is kept out.
    """
    if fcntl is None:
        yield
        return
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise InputError(
            f"cannot write into {folder}: {error.strerror}: choose another folder"
        ) from error
    try:
        found, me = os.fstat(handle), threading.get_ident()
        key = (found.st_dev, found.st_ino)
        end = time.monotonic() + MOMENT
        while True:
            with _lock:
                thread, times = _held.get(key, (me, 0))
                if thread == me and (times or _locked(handle)):
                    _held[key] = (me, times + 1)
                    break
            if time.monotonic() > end:
                raise _busy(folder)
            time.sleep(0.005)
        try:
            yield
        finally:
            with _lock:
                if times:
                    _held[key] = (me, times)
                else:
                    del _held[key]
                    with contextlib.suppress(OSError):  # a forked child has the handle, too
                        fcntl.flock(handle, fcntl.LOCK_UN)
    finally:
        os.close(handle)


def _busy(folder: Path) -> _Busy:
    return _Busy(
        f"another process is writing into {folder}: wait for it to end, or choose another folder"
    )


def partial(path: Path) -> Path:
    """Where the lines of `path` wait until all of them are there."""
    return path.with_name(f"{path.name}.partial")


@contextlib.contextmanager
def line_by_line(path: Path, what: str, of: int) -> Iterator[Callable[[str], None]]:
    """Give the block a function that keeps a line in `partial(path)`; in the end the block itself
    writes the whole file. A Ctrl-C, an error or a kill before leaves the lines there, and how many
    of the `of` things called `what` there are is said on standard error.

    Raises InputError if such a file is there already: a run that was stopped left it. And if the
    disk refuses.
    """
    waiting, n = partial(path), 0
    if os.path.lexists(waiting):
        raise InputError(
            f"{waiting} is there already, the {what} of a run that was stopped: remove it, or "
            "choose another --out"
        )
    with contextlib.ExitStack() as stack:
        file: io.BufferedWriter | None = None

        def keep(line: str) -> None:
            nonlocal n, file
            with _refused(waiting):
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
    """A name of a file that is not UTF-8 has half characters; JSON spells them as Python does."""
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    return text.encode("utf-8", "backslashreplace")


def write_tensors(path: Path, arrays: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
    write_bytes(path, tensor_bytes(arrays, metadata))


def tensor_bytes(arrays: dict[str, np.ndarray], metadata: dict[str, str]) -> bytes:
    from safetensors.numpy import save  # not before it is needed: this module is imported always

    return save({n: np.asarray(a, order="C") for n, a in arrays.items()}, metadata)


# ---- reading ----------------------------------------------------------------------------------

#: bytes; no JSON file of a model or a prefix comes near it, and safetensors has it for its header
LARGEST_JSON = 100_000_000
_KINDS = {
    stat.S_IFDIR: "Is a directory",
    stat.S_IFIFO: "Is a pipe",
    stat.S_IFSOCK: "Is a socket",
    stat.S_IFCHR: "Is a device",
    stat.S_IFBLK: "Is a device",
}
_short = reprlib.Repr()
_short.maxstring = _short.maxother = 200


def shown(value: Any) -> str:
    """`repr` of a value that came out of a file, cut to what a sentence can hold."""
    return _short.repr(value)


def listed(names: Iterable[Any]) -> str:
    """The first of the names that came out of a file, and how many there are more."""
    names = list(names)
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return (", ".join(map(shown, names[:8])) or "none") + more


def said(error: BaseException | str) -> str:
    """What a library or a file said, on one line that can be printed and ends."""
    text = " ".join(str(error).split())
    text = text if len(text) <= 200 else f"{text[:200]}..."
    return "".join(c if c.isprintable() else "?" for c in text)


def inside(folder: Path, name: str, what: str) -> Path:
    """`folder / name`, where that is missing or a regular file; for the caller to miss, or to open.

    `folder` may be a link. A file in it may be one only to a regular file within the folder, or, as
    the hub's cache is laid out, from `<repo>/snapshots/<commit>` into `<repo>/blobs`. Raises
    InputError for any other link, for a folder, a pipe or a device, and for a `name` that is a
    path or cannot be printed.
    """
    plain = isinstance(name, str) and name.isprintable() and not set(name) & set("/\\")
    if not plain or name in ("", ".", ".."):
        raise InputError(f"{shown(name)} is no name of a file: expected {what} within {folder}")
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
            raise InputError(
                f"{path} is a link to {target}, outside its folder: copy the file there, or give "
                f"the folder that it lies in; {what} is read from one folder only"
            )
    regular(path, what)
    return path


def regular(path: Path, what: str) -> int:
    """-> the size of a file. Raises InputError unless it is there and a regular one, or a link to
    one: a pipe keeps a reader waiting and can be read once, a device may never end."""
    try:
        found = os.stat(path)
    except (OSError, ValueError) as error:
        raise _unreadable(path, what, error) from error
    if not stat.S_ISREG(found.st_mode):
        kind = _KINDS.get(stat.S_IFMT(found.st_mode), "Is no file")
        raise InputError(f"cannot read {what} {path}: {kind}; save it as a regular file")
    return found.st_size


def _unreadable(path: Path, what: str, error: Exception) -> InputError:
    link = " (a link to what is not there)" if path.is_symlink() else ""
    return InputError(f"cannot read {what} {path}{link}: {getattr(error, 'strerror', 0) or error}")


def read_bytes(path: Path, what: str, largest: int | None = None) -> bytes:
    """Raises InputError if `path` is missing, no regular file, unreadable, above `largest` bytes or
    a Git LFS pointer; `what` it should be is in the sentence."""
    size = regular(path, what)
    if largest is not None and size > largest:
        raise InputError(
            f"{path} has {size:,} bytes: expected at most {largest:,} for {what}; it is damaged"
        )
    try:
        data = path.read_bytes()
    except MemoryError as error:
        raise _too_large(path, size) from error
    except OSError as error:
        raise _unreadable(path, what, error) from error
    _itself(path, data, what, page=False)
    return data


#: how the file begins that Git LFS leaves in the place of one that it has not fetched
_POINTER = b"version https://git-lfs.github.com/spec/"
_PAGE = re.compile(rb"(\xef\xbb\xbf)?\s*<(!doctype\s+html|html|head)\b", re.IGNORECASE)


def _itself(path: Path, start: bytes, what: str, page: bool) -> None:
    """Raises InputError where a file begins as what is found in its place: a Git LFS pointer and,
    with `page`, the web page about it."""
    if start.startswith(_POINTER):
        raise InputError(
            f"{path} is a Git LFS pointer, which only stands for {what}: run `git lfs pull` in its "
            "folder"
        )
    if page and _PAGE.match(start):
        raise InputError(
            f"{path} is an HTML page and not {what}: a browser or a download saved the page about "
            "the file; fetch the file itself (on the hub /resolve/ instead of /blob/)"
        )


def _too_large(path: Path, size: int) -> InputError:
    return InputError(
        f"{path} has {size:,} bytes, for which there is no memory: split it, or take a larger "
        "machine"
    )


def read_text(path: Path, what: str, largest: int | None = None) -> str:
    """As `read_bytes`; raises InputError for a web page, and for what is not UTF-8, too, and says
    what it is where that can be seen. Line ends become \\n."""
    data = read_bytes(path, what, largest)
    _itself(path, data[:1000], what, page=True)
    try:
        text = data.decode("utf-8").removeprefix("\ufeff")  # a byte order mark
        if "\0" not in text:
            return text.replace("\r\n", "\n").replace("\r", "\n")
        at, wrong = data.index(0), "a NUL byte, which no text has"
    except UnicodeDecodeError as error:
        at, wrong = error.start, f"byte 0x{data[error.start]:02x} is not UTF-8"
    line = data.count(b"\n", 0, at) + 1
    raise InputError(
        _packed(path, data[:64]) or f"{path}, line {line}: {wrong}: save {what} as UTF-8"
    )


#: how a file begins that is no text; what it is, and what to do
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
    """The sentence that a file is compressed, a workbook or in another encoding; None if it does
    not begin so, or cannot be read."""
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
    except json.JSONDecodeError as error:
        raise InputError(
            f"{path}, line {error.lineno}: not JSON ({error.msg}): {what} is damaged, fetch or "
            "save it again"
        ) from error
    except (ValueError, RecursionError) as error:  # a key twice, a number or brackets without end
        raise InputError(
            f"{path}: not JSON that can be read ({said(error)}): {what} is damaged"
        ) from error
    if not isinstance(value, kind):
        expected = "an object" if kind is dict else "a list"
        raise InputError(f"{path} holds a {type(value).__name__}: expected {expected} ({what})")
    return value


def loads(text: str) -> Any:
    """json.loads, but a key that an object has twice is a ValueError: which one is meant?"""
    return json.loads(text, object_pairs_hook=_once)


def json_lines(path: Path, text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a JSONL file, each with where it stands. Raises InputError for a line that is
    none."""
    for n, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path}, line {n}"
        try:
            value = loads(line)
        except (ValueError, RecursionError) as error:
            why = getattr(error, "msg", None) or said(error)
            raise InputError(f"{where}: not JSON ({why}): expected one object a line") from error
        if not isinstance(value, dict):
            raise InputError(f"{where}: a {type(value).__name__}: expected an object")
        yield where, value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"key {shown(twice)} is there twice")
    return value


def map_tensors(path: Path, what: str) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The tensors of a safetensors file as read-only views of it, and its metadata; nothing is read
    yet.

    bfloat16 is widened to float32, which does read. A tensor of a type that is not read here is its
    bytes, in records whose one field has that type's name. Raises InputError if the file is
    damaged.
    """
    from safetensors import SafetensorError, safe_open

    size = regular(path, what)
    try:
        with open(path, "rb") as start:
            _itself(path, start.read(1000), what, page=True)
        # the library checks header, sizes and bounds; it has no view without a copy, so the map is
        # ours
        with safe_open(path, "np") as f:
            metadata = f.metadata() or {}
        data = np.memmap(path, np.uint8, mode="r")
        end = 8 + int.from_bytes(data[:8].tobytes(), "little")
        header = loads(data[8:end].tobytes().decode("utf-8"))
        header.pop("__metadata__", None)
        body = data[end:]
        return {name: _tensor(body, entry) for name, entry in header.items()}, metadata
    except InputError:  # which is a ValueError
        raise
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"{path} is not a whole safetensors file ({said(error)}): {what} is damaged, fetch or "
            "save it again"
        ) from error
    except MemoryError as error:
        raise _too_large(path, size) from error


def _tensor(body: np.ndarray, entry: dict[str, Any]) -> np.ndarray:
    start, end = entry["data_offsets"]
    raw, shape = body[start:end], entry["shape"]
    if entry["dtype"] == "BF16":  # the upper half of a float32
        wide = raw.view(np.uint16).astype(np.uint32) << 16
        return wide.view(np.float32).reshape(shape)
    if entry["dtype"] in DTYPES:
        return np.asarray(raw.view(DTYPES[entry["dtype"]]).reshape(shape))
    # for the caller to refuse by its type's name, or to skip: mask buffers are BOOL
    return np.asarray(raw.view(np.dtype([(entry["dtype"], np.uint8)])))


#: the ends of the names of pickles, and of what else holds weights and is not read here
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_OTHERS = {
    ".h5": "TensorFlow's",
    ".msgpack": "Flax's",
    ".gguf": "llama.cpp's",
    ".ggml": "llama.cpp's",
    ".onnx": "ONNX Runtime's",
    ".npz": "NumPy's",
}
#: PEFT's files, one of which is in every folder of an adapter
ADAPTER = {"adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"}
#: what a trainer keeps beside the weights
_BESIDE = ("training_args", "optimizer", "scheduler", "scaler", "rng_state", "trainer_state")


def unopened(names: Iterable[str], wanted: str) -> str | None:
    """Why weights are not read out of a folder of such files, and what makes the file `wanted` of
    them; None if none of them holds weights."""
    held = sorted(n for n in names if not n.startswith(_BESIDE))
    pickled = [n for n in held if n.lower().endswith(_PICKLES)]
    for name in sorted(pickled, key=lambda n: not n.startswith(("pytorch_model", "adapter_model"))):
        every = "pytorch_model*.bin" if name.startswith("pytorch_model-") else name
        state = "{n: t.clone().contiguous() for f in glob.glob(" + f"'{every}'" + ") for n, t in "
        return (
            f"{said(name)} is a pickle, which can run any code and is never opened: convert it, in "
            'its folder, with `python -c "import glob, torch; from safetensors.torch import '
            f"save_file; save_file({state}torch.load(f, map_location='cpu', weights_only=True)"
            f".items()}}, '{wanted}')\"`"
        )
    for name in held:
        if (owner := _OTHERS.get(Path(name).suffix.lower())) is not None:
            return (
                f"{said(name)} is {owner} file, which is not read here: load it where it was made, "
                f"and save it with save_pretrained, which writes {wanted}"
            )
    return None


def new_folder(path: Path, marks: Iterable[str], force: bool, resume: bool = True) -> None:
    """Make a folder for a run. Raises InputError if one of `marks` says that it already holds one,
    unless `force`, which removes those files and leaves others alone, or if another process writes
    there. `resume`: whether the sentence may advise it."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with only_writer(path):
            found = [mark for mark in marks if os.path.lexists(path / mark)]
            if found and not force:
                go_on = "continue it with --resume, " if resume else ""
                raise InputError(
                    f"{path} already holds a run ({', '.join(found)}): choose another --out, "
                    f"{go_on}or replace it with --force"
                )
            for mark in found:
                if mark == SAVING:
                    _forget(path / mark)
                elif (path / mark).is_dir():
                    shutil.rmtree(path / mark)
                else:
                    (path / mark).unlink()
    except OSError as error:
        raise InputError(f"cannot make folder {path}: {error.strerror or error}") from error


@contextlib.contextmanager
def no_empty_folder(path: Path) -> Iterator[None]:
    """Whatever ends the block early, the folders that it made for `path` do not stay behind unless
    something is in them."""
    made = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        yield
    except BaseException:
        for folder in made:
            with contextlib.suppress(OSError):  # it was not made, or it is not empty
                folder.rmdir()
        raise


@contextlib.contextmanager
def run_folder(path: Path, marks: Iterable[str], force: bool, resume: bool) -> Iterator[None]:
    """A folder for a run, held while it runs: a new one (see `new_folder`) or, with `resume`, as it
    is. Raises InputError if another process has it, before anything in it is touched."""
    if not resume:
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot make folder {path}: {error.strerror or error}") from error
    with only_writer(path):
        if not resume:
            new_folder(path, marks, force)
        yield
