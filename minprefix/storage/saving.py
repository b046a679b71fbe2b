"""Several files saved as one, and the folder of a run: one process writes, and a kill leaves the
old files or the new ones."""

import contextlib
import json
import os
import shutil
import stat
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar, cast

from minprefix.errors import InputError
from minprefix.storage.reading import read_json
from minprefix.storage.writing import (
    Busy,
    busy,
    fcntl,
    flush_folder,
    locked,
    refused,
    temporary,
    write_and_flush,
)

T = TypeVar("T")

#: the folder in which the files of a save wait for each other, and the list that completes it
SAVING, COMPLETE = ".saving", "complete.json"
PATIENCE = 10.0  # s that a reader waits for others to end a save
MOMENT = 1.0  # s that a writer waits: a reader that finishes a save holds the folder for less


def write_together(folder: Path, contents: dict[str, bytes], names: Iterable[str]) -> None:
    """Replace the files `names` of `folder` by `contents`, all or none; a name without content is
    removed.

    The files are written into a folder inside `folder`; a list of them is the decision; then they
    take their places. A kill before the decision leaves the old files. After it, the next
    `finish_save` puts the new ones in place: every writer and reader of such files calls it first.
    Raises InputError if the disk refuses or another process writes there.
    """
    names, waiting = tuple(names), folder / SAVING
    assert contents.keys() <= set(names)
    with refused(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with only_writer(folder):
        finish_save(folder, names)
        try:
            with refused(folder / names[-1]):
                waiting.mkdir(exist_ok=True)
            for name, data in contents.items():
                with refused(folder / name):
                    write_and_flush(waiting / name, data)
            with refused(folder / names[-1]):
                flush_folder(folder)  # `waiting` itself must be there before the decision
                decision = json.dumps(sorted(contents)).encode()
                write_and_flush(temporary(waiting / COMPLETE), decision)
                os.replace(temporary(waiting / COMPLETE), waiting / COMPLETE)
                flush_folder(waiting)
        except BaseException:
            with contextlib.suppress(OSError):
                _forget(waiting)
            raise
        finish_save(folder, names)


def finish_save(folder: Path, names: Iterable[str]) -> None:
    """Complete a save of `names` that a kill cut short after it was decided. Remove one that was
    not decided, if this process may: it does no harm. Raises InputError if another process is
    saving, or if the disk refuses."""
    waiting, names = folder / SAVING, tuple(names)
    try:
        kind = waiting.lstat().st_mode
    except OSError:  # there is none
        return
    if not stat.S_ISDIR(kind):
        raise InputError(f"{waiting} is no folder, and a save needs one there: remove it")
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
            why = f"a save into {folder} was cut short and cannot be finished"
            how = "make room, or open it once as a user who may write there"
            raise InputError(f"{why} ({error.strerror or error}): {how}") from error


def _take_places(folder: Path, names: tuple[str, ...]) -> None:
    waiting = folder / SAVING
    complete = read_json(waiting / COMPLETE, "the list of a save", list)
    if not set(map(str, complete)) <= set(names):
        odd = f"{waiting / COMPLETE} names files that are no part of a save"
        raise InputError(f"{odd}: {complete}; remove {waiting}")
    for name in names:
        if name not in complete:  # of an earlier save
            (folder / name).unlink(missing_ok=True)
        elif (waiting / name).exists():  # else a kill came after its move
            os.replace(waiting / name, folder / name)
    flush_folder(folder)


def _forget(waiting: Path) -> None:
    (waiting / COMPLETE).unlink(missing_ok=True)  # first: a list would be obeyed without its files
    shutil.rmtree(waiting, ignore_errors=True)


def read_together(folder: Path, names: Iterable[str], read: Callable[[], T]) -> T:
    """`read()`, with all files `names` of one save, though others may be saving there meanwhile.
    Raises what `read` raises, and InputError if the others do not stop saving."""
    names, end = tuple(names), time.monotonic() + PATIENCE
    while time.monotonic() < end:
        with contextlib.suppress(Busy):  # the other will have finished in a moment
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
    raise busy(f"into {folder}")


def _standing(folder: Path, names: tuple[str, ...]) -> list[tuple[int, ...] | None] | None:
    """Which files are at `names`; None while those of a save take their places."""
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
    """Keep every other process and thread from writing into `folder`, which must exist. The same
    thread may take it again.

    The system holds the lock, on the folder itself: a kill releases it, and no file is left.
    Raises InputError if another one writes there. Without such locks (Windows, some network file
    systems) it does nothing.
    """
    if fcntl is None:
        yield
        return
    with refused(folder, "write into"):
        handle = os.open(folder, os.O_RDONLY)
    try:
        found, me = os.fstat(handle), threading.get_ident()
        key = (found.st_dev, found.st_ino)
        end = time.monotonic() + MOMENT
        while True:
            with _lock:
                thread, times = _held.get(key, (me, 0))
                if thread == me and (times or locked(handle)):
                    _held[key] = (me, times + 1)
                    break
            if time.monotonic() > end:
                raise busy(f"into {folder}")
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


def new_folder(path: Path, marks: Iterable[str], force: bool, resume: bool = True) -> None:
    """Make a folder for a run. Raises InputError if another process writes there, and if one of
    `marks` shows that the folder already holds a run; `force` removes these files instead, and no
    others. `resume`: whether the sentence may advise it."""
    with refused(path, "make folder"):
        path.mkdir(parents=True, exist_ok=True)
        with only_writer(path):
            for mark in marks_in(path, marks, force, resume):
                if mark == SAVING:
                    _forget(path / mark)
                elif (path / mark).is_dir():
                    shutil.rmtree(path / mark)
                else:
                    (path / mark).unlink()


def marks_in(path: Path, marks: Iterable[str], force: bool, resume: bool) -> list[str]:
    """The `marks` of a run that are there, if `force` allows to replace it; else raises
    InputError, which advises --resume where `resume` says so."""
    found = [mark for mark in marks if os.path.lexists(path / mark)]
    if found and not force:
        go_on = "continue it with --resume, " if resume else ""
        raise InputError(
            f"{path} already holds a run ({', '.join(found)}): choose another --out, {go_on}or "
            "replace it with --force"
        )
    return found


@contextlib.contextmanager
def no_empty_folder(path: Path) -> Iterator[None]:
    """If the block ends early, remove the folders that it made for `path`, unless something is in
    them."""
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
    """Hold the folder of a run while it runs: a new one (see `new_folder`) or, with `resume`, the
    one that is there. Raises InputError if another process has it, before anything is touched."""
    if not resume:
        with refused(path, "make folder"):
            path.mkdir(parents=True, exist_ok=True)
    with only_writer(path):
        if not resume:
            new_folder(path, marks, force)
        yield
