"""A disk that fills up while a run trains and while a prefix is saved: does anything get lost?

    python -m tests.reliability.disk [--write]

A run is started on disks of every size, from one where nothing has room to one where all of it has.
It must stop with one sentence, and go on to the byte-equal end once there is room. Then a prefix is
saved over an old one on disks of every size: the old one must stay whole, or the new one be.
The disk is a small file system in memory (`mount -t tmpfs`, which only root may), full of bytes or
of files; where that cannot be mounted, a limit on the size of each file. Prints figures; exit
status 1 if anything was lost. `--write` puts them into RELIABILITY.md.
"""

import argparse
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from minprefix import InputError, Prefix
from tests.reliability import page
from tests.reliability.runs import (
    STATE,
    assert_same_end,
    command,
    finish,
    make_world,
    numbers,
    one_sentence,
)

PAGE = 4096  # bytes: what tmpfs gives out


class Tmpfs:
    """A disk of so many bytes, or so many files, at `path`."""

    name = "a tmpfs"
    kinds = ("bytes", "files")

    @staticmethod
    def there(path: Path) -> bool:
        made = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(path)],
            capture_output=True,
            check=False,
        )
        if made.returncode == 0:
            subprocess.run(["umount", str(path)], check=True)
        return made.returncode == 0

    def __init__(self, path: Path, kind: str, level: int) -> None:
        self.path = path
        few = f"size={level}" if kind == "bytes" else f"nr_inodes={level}"
        subprocess.run(["mount", "-t", "tmpfs", "-o", few, "none", str(path)], check=True)

    def run(self, argv: list[str]) -> subprocess.CompletedProcess[str]:
        return finish(argv)

    def call(self, work: Callable[[], None]) -> None:
        work()

    def make_room(self) -> None:
        room = "remount,size=64m,nr_inodes=1000"
        subprocess.run(["mount", "-o", room, str(self.path)], check=True)

    def remove(self) -> None:
        subprocess.run(["umount", str(self.path)], check=True)

    @staticmethod
    def levels(kind: str, whole: Path) -> range:
        """Until everything has room, files that are about to be replaced included."""
        files = list(whole.rglob("*"))
        if kind == "files":
            return range(2, len(files) + 12)
        return range(PAGE, 2 * sum(p.stat().st_size + PAGE for p in files), PAGE)


class FileLimit:
    """Files of at most so many bytes: the next one is refused."""

    name = "a limit on the size of each file"
    kinds = ("bytes",)

    def __init__(self, path: Path, kind: str, level: int) -> None:
        self.path, self.level = path, level

    @contextmanager
    def _limited(self) -> Iterator[None]:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.level, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    def run(self, argv: list[str]) -> subprocess.CompletedProcess[str]:
        with self._limited():
            return finish(argv, env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"})

    def call(self, work: Callable[[], None]) -> None:
        with self._limited():
            work()

    def make_room(self) -> None:
        pass

    def remove(self) -> None:
        for path in self.path.iterdir():
            shutil.rmtree(path)

    @staticmethod
    def levels(kind: str, whole: Path) -> range:
        largest = max(p.stat().st_size for p in whole.rglob("*"))
        return range(100, largest + largest // 40, largest // 40)


Disk = type[Tmpfs] | type[FileLimit]


class Lost(Exception):
    """What was lost, and how full the disk was."""


def fill(disk: Disk, kind: str, folder: Path, world: Path, whole: Path) -> Counter[str]:
    """A run on disks of every size. -> counts: levels, where they hit. Raises Lost."""
    count: Counter[str] = Counter()
    for level in disk.levels(kind, whole):
        place = disk(folder, kind, level)
        out = folder / "run"
        try:
            done = place.run(command(world, out))
            count["levels"] += 1
            if done.returncode == 0:
                count["with room for all"] += 1
            else:
                sentence = one_sentence(done)
                hit = re.search(r"cannot (?:write|make folder) (\S+?):", sentence)
                assert hit, sentence
                assert "make room" in sentence or "make folder" in sentence, sentence
                count[f"hit {named(Path(hit[1]), out)}"] += 1
                there = (out / STATE).exists() and numbers(out)["step"] >= 0
                count["stopped with a state" if there else "stopped before one"] += 1
                place.make_room()
                done = finish(command(world, out, "--resume" if there else "--force"))
                assert done.returncode == 0, done.stderr
            assert_same_end(out, whole)
            count["ends"] += 1
        except (AssertionError, OSError, InputError) as error:
            raise Lost(f"a run on {disk.name} of {level} {kind}: {error}") from error
        finally:
            place.remove()
        print(f"{level} {kind}", file=sys.stderr)
        if count["with room for all"] == 3:  # larger ones say nothing new
            break
    return count


def named(path: Path, out: Path) -> str:
    return "the folder" if path in (out, out.parent) else path.name


def content(folder: Path) -> dict[str, bytes]:
    times = re.compile(rb'"saved": "[^"]*"')
    return {p.name: times.sub(b"", p.read_bytes()) for p in folder.iterdir()}


def fill_saves(disk: Disk, kind: str, folder: Path, world: Path) -> Counter[str]:
    """A prefix saved over an old one, on disks of every size. Raises Lost."""
    rng = np.random.default_rng(0)
    old = Prefix(rng.normal(size=(2, 2, 2, 3, 8)))
    new = Prefix(rng.normal(size=(2, 2, 2, 300, 8)), [0, 1], 0)  # other files than the old one's
    wanted = {}
    for name, prefix in (("old", old), ("new", new)):
        prefix.save(world / "prefixes" / name)
        wanted[name] = content(world / "prefixes" / name)
    count: Counter[str] = Counter()
    needed = disk.levels(kind, world / "prefixes")
    for level in needed:
        place = disk(folder, kind, level)
        out = folder / "prefix"
        try:
            place.call(lambda out=out: old.save(out))
        except InputError:  # not even the old one has room
            place.remove()
            continue
        try:
            count["levels"] += 1
            kept, said = "new", "make room"
            try:
                place.call(lambda out=out: new.save(out))
            except InputError as error:
                kept, said = "old", str(error)
            assert "make room" in said, said
            count[kept] += 1
            Prefix.load(out)
            assert content(out) == wanted[kept], f"not the {kept} prefix: {sorted(content(out))}"
            place.make_room()
            new.save(out)
            assert content(out) == wanted["new"], "not the new prefix, with room"
        except (AssertionError, OSError, InputError) as error:
            raise Lost(f"a prefix on {disk.name} of {level} {kind}: {error}") from error
        finally:
            place.remove()
    return count


def report(disk: Disk, runs: dict[str, Counter[str]], saves: dict[str, Counter[str]]) -> str:
    lines = [f"The disk: {disk.name}, limited in its {' or '.join(disk.kinds)}.", ""]
    for kind, c in runs.items():
        stopped = c["stopped with a state"] + c["stopped before one"]
        hits = sorted(((n, k[4:]) for k, n in c.items() if k.startswith("hit ")), reverse=True)
        step = f" ({PAGE:,} bytes apart)" if disk is Tmpfs and kind == "bytes" else ""
        lines.append(
            f"- Training, limited in {kind}: {c['levels']} sizes{step}; the disk was full at "
            f"{stopped} of them, each time one sentence and no traceback. Where: "
            f"{', '.join(f'{name} {n}' for n, name in hits)}. {c['stopped with a state']} stopped "
            f"with a whole state and went on from it, {c['stopped before one']} before there was "
            f"one; with room, {c['ends']} of {c['levels']} ended byte-equal to the run that never "
            "saw a full disk."
        )
    for kind, c in saves.items():
        lines.append(
            f"- A prefix saved over an old one, limited in {kind}: {c['levels']} sizes; at "
            f"{c['old']} the disk was full and the old one stayed whole, at {c['new']} the new one "
            "was saved; nothing else was ever left."
        )
    return page.wrap(lines)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="disk-") as temporary:
        world = make_world(Path(temporary))
        folder = world / "disk"
        folder.mkdir()
        disk: Disk = Tmpfs if Tmpfs.there(folder) else FileLimit
        whole = world / "whole"
        done = finish(command(world, whole))
        assert done.returncode == 0, done.stderr
        try:
            runs = {kind: fill(disk, kind, folder, world, whole) for kind in disk.kinds}
            saves = {kind: fill_saves(disk, kind, folder, world) for kind in disk.kinds}
        except Lost as lost:
            print(f"\nLOST: {lost}")
            return 1
    text = report(disk, runs, saves)
    print(text)
    if args.write:
        page.write("disk", text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
