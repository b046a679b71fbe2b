"""Damaged input for every reader: each ends in what the file says or in one sentence.

    python -m tests.reliability.fuzz [--inputs 100000] [--seed 0] [--reader NAME] [--write]
    python -m tests.reliability.fuzz --reader NAME --seed 0 --input 4711        one of them again

Readers run in a process of their own that reports each input. It is killed and counted where it
takes more than LIMIT seconds of the processor or PATIENCE by the clock. It may hold at most BASE +
`times` the size of the input beyond what it held before (asked of the system: an allocation above
it fails), and an audit hook reports every file opened outside the folder, every import, every piece
of code and every process.
"""

import argparse
import contextlib
import json
import os
import random
import re
import select
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

MODULE = "tests.reliability.fuzz"
LIMIT = 10.0  # seconds of the processor for one input
PATIENCE = 120.0  # seconds by the clock: who waits for a pipe takes none of the processor's
BASE = 64 << 20  # bytes, and to them `Reader.times` the size of the input
LONGEST = 1500  # characters of a sentence

# ---- what a reader may not do ---------------------------------------------------------------

#: audit events, by how they begin, of code that runs, processes, sockets and other files
FORBIDDEN = (
    "import", "exec", "compile", "marshal.", "pickle.", "ctypes.", "os.system", "os.exec",
    "os.posix_spawn", "os.spawn", "os.fork", "subprocess.", "pty.", "socket.", "urllib.",
    "webbrowser.", "ftplib.", "http.", "code.", "builtins.input", "os.putenv", "os.chdir",
    "os.chmod", "os.chown", "os.link", "os.symlink", "os.truncate", "os.kill", "sys.setprofile",
)  # fmt: skip
#: those that change files: only within the folder, by a reader that may write
WRITING = ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "shutil.")
LOOKING = ("os.listdir", "os.scandir", "glob.glob")


class Watch:
    """What the process does between `armed` and its end, as the interpreter reports it."""

    def __init__(self) -> None:
        self.within: tuple[str, ...] = ()
        self.writes = self.on = False
        self.seen: list[str] = []
        sys.addaudithook(self._hear)

    @contextlib.contextmanager
    def armed(self, within: tuple[str, ...], writes: bool) -> Iterator[None]:
        self.within, self.writes, self.seen, self.on = within, writes, [], True
        try:
            yield
        finally:
            self.on = False

    def _hear(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.on:
            return
        self.on = False  # what follows here is not the reader's
        try:
            if event == "open":
                path, mode, flags = args
                writing = bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC))
                if not isinstance(path, int) and not self._allowed(path, writing):
                    self.seen.append(f"open {path!r} ({mode or oct(flags)})")
            elif event.startswith((*WRITING, *LOOKING)):
                for path in args:
                    named = isinstance(path, str | bytes | os.PathLike)
                    if named and not self._allowed(path, event.startswith(WRITING)):
                        self.seen.append(f"{event} {path!r}")
            elif event.startswith(FORBIDDEN):
                self.seen.append(f"{event} {str(args)[:100]}")
        finally:
            self.on = True

    def _allowed(self, path: Any, writing: bool) -> bool:
        real = os.path.realpath(os.fspath(path))
        real = os.fsdecode(real)
        inside = any(real == f or real.startswith(f + os.sep) for f in self.within)
        return inside and (self.writes or not writing)


# ---- the process that reads -----------------------------------------------------------------


def memory() -> tuple[int, int]:
    """Bytes of address space and of memory that this process holds."""
    with open("/proc/self/statm", encoding="ascii") as f:
        size, resident = f.read().split()[:2]
    page = os.sysconf("SC_PAGE_SIZE")
    return int(size) * page, int(resident) * page


def forget_peak() -> None:
    with open("/proc/self/clear_refs", "w", encoding="ascii") as f:
        f.write("5")


def peak() -> int:
    with open("/proc/self/status", encoding="ascii") as f:
        return int(re.search(r"VmHWM:\s+(\d+) kB", f.read())[1]) * 1024  # type: ignore[index]


@contextlib.contextmanager
def bounded(allowed: int) -> Iterator[None]:
    """Nothing beyond `allowed` more bytes of address space can be had here."""
    if not sys.platform.startswith("linux"):
        yield
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (memory()[0] + allowed, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


class Bench:
    """One reader, its good folders, and the inputs that are made of them."""

    def __init__(self, root: Path, reader: Any, seed: int, values: list[str]) -> None:
        self.reader, self.seed, self.values = reader, seed, values
        self.root, self.outside = root / reader.name, root / f"outside {reader.name}"
        shutil.rmtree(self.root, ignore_errors=True)
        shutil.rmtree(self.outside, ignore_errors=True)
        self.outside.mkdir(parents=True)
        reader.make(self.root)
        self.good: list[tuple[Path, bytes]] = []  # each file to be damaged, and what it holds
        for pattern in reader.files:
            self.good += [(p, p.read_bytes()) for p in sorted(self.root.rglob(pattern)) if
                          "blobs" not in p.parts]  # fmt: skip
        assert self.good, f"no files {reader.files} to damage in {self.root}"
        self.whole = {p.parent: _content(p.parent) for p, _ in self.good}
        for folder in self.whole:  # what is imported at the first use is no finding
            reader.right(folder, reader.read(folder))
            self._restore(folder)

    def _restore(self, folder: Path) -> None:
        for path in folder.iterdir():
            if path.name not in self.whole[folder]:
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        for name, was in self.whole[folder].items():
            _put(folder / name, was)

    def one(self, watch: Watch, i: int, keep: bool = False) -> dict[str, Any]:
        """Read input `i` -> how it was damaged, and how it ended."""
        from tests.reliability import damage

        rng = random.Random(f"{self.seed} {self.reader.name} {i}")
        path, data = rng.choice(self.good)
        same = [d for p, d in self.good if p.suffix == path.suffix]
        kind, other = self.reader.kind, rng.choice(same)
        if kind == "tensors or json":
            kind = "json" if path.suffix == ".json" else "tensors"
        done = damage.draw(rng, kind, data, other, self.values)
        folder = path.parent
        path.unlink()
        if done.place is None:
            path.write_bytes(done.data or b"")
        else:
            _put(self.outside / "file", other)
            done.place.put(path, self.outside, data)
        try:
            return {"how": done.how, "seed": folder.name} | self._read(watch, folder, done)
        finally:
            if not keep:
                self._restore(folder)

    def _read(self, watch: Watch, folder: Path, done: Any) -> dict[str, Any]:
        from minprefix.errors import InputError, Note

        within = [folder]
        if folder.parent.name == "snapshots":
            within.append(folder.parent.parent / "blobs")
        if self.reader.outside:
            within.append(self.outside)
        roots = tuple(os.path.realpath(f) for f in within)
        size = sum(p.stat().st_blocks * 512 for f in within for p in f.rglob("*") if p.is_file())
        allowed = BASE + self.reader.times * size
        forget_peak()
        before, findings, ended, loaded = memory()[1], [], "", None
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.simplefilter("ignore", Note)
            try:
                with bounded(allowed), watch.armed(roots, self.reader.writes):
                    loaded = self.reader.read(folder)
                ended = "loaded"
            except InputError as error:
                sentence = str(error)
                ended = skeleton(sentence, self.root.parent)
                findings += about_sentence(sentence)
                if "there is no memory" in sentence and "10^12 bytes" not in done.how:
                    findings.append(f"asked for more than {allowed:,} bytes: {sentence}")
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt):
                    raise
                ended = "raised"
                findings.append("".join(traceback.format_exception(error))[-1500:])
            grown = peak() - before
            findings += watch.seen
            if grown > allowed:
                findings.append(f"held {grown:,} bytes more, for an input of {size:,}")
            if ended == "loaded":
                refused = done.place is not None and done.place.refused
                if refused is True or (refused and not self.reader.outside):
                    findings.append(f"read {done.how}")
                try:
                    self.reader.right(folder, loaded)
                except BaseException as error:
                    said = "".join(traceback.format_exception(error))[-1500:]
                    findings.append(f"not what the file says: {said}")
        return {"ended": ended, "grown": grown, "findings": findings}


def _content(folder: Path) -> dict[str, bytes | Path]:
    """What lies in a folder: bytes, or where a link points."""
    return {p.name: p.readlink() if p.is_symlink() else p.read_bytes() for p in folder.iterdir()}


def _put(path: Path, was: bytes | Path) -> None:
    if isinstance(was, Path):
        if not path.is_symlink() or path.readlink() != was:
            _clear(path)
            path.symlink_to(was)
    elif path.is_symlink() or not path.is_file() or not _holds(path, was):
        _clear(path)
        path.write_bytes(was)


def _holds(path: Path, data: bytes) -> bool:
    return path.stat().st_size == len(data) and path.read_bytes() == data


def _clear(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def about_sentence(sentence: str) -> list[str]:
    """What is wrong with it: it is printed to a terminal, and read."""
    found = []
    if not sentence.isprintable():
        found.append(f"a sentence with line breaks or control characters: {sentence[:300]!a}")
    if len(sentence) > LONGEST:
        found.append(f"a sentence of {len(sentence):,} characters: {sentence[:300]!a}")
    return found


def skeleton(sentence: str, root: Path) -> str:
    """The sentence without what it quotes: two with one skeleton are the same one."""
    sentence = re.sub(re.escape(str(root)) + r"[^:,'\")]*", "PATH", sentence)
    sentence = re.sub(r"\(.*\)", "(...)", sentence)
    sentence = re.sub(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\"""", "'...'", sentence)
    sentence = re.sub(r"\{.*\}|\[.*\]", "[...]", sentence)
    return re.sub(r"-?\d[\w.+]*", "#", sentence)[:200]


def serve(root: Path, seed: int) -> None:
    """The process that reads: a job a line in, a line for each of its inputs out."""
    from tests.reliability.planted import PLANTED
    from tests.reliability.readers import READERS

    values = json.loads((root / "values.json").read_text())
    watch, benches = Watch(), {}
    for line in sys.stdin:
        name, first, last = json.loads(line)
        if name not in benches:
            benches[name] = Bench(root, (READERS | PLANTED)[name], seed, values)
        print("ready", flush=True)
        for i in range(first, last):
            print(json.dumps(benches[name].one(watch, i)), flush=True)


# ---- the process that watches it ------------------------------------------------------------


@dataclass
class Tally:
    """How the inputs of one reader ended."""

    inputs: int = 0
    loaded: int = 0
    sentences: Counter[str] = field(default_factory=Counter)
    grown: int = 0  # the largest growth in memory
    findings: list[str] = field(default_factory=list)

    def add(self, name: str, seed: int, i: int, said: dict[str, Any]) -> None:
        self.inputs += 1
        self.loaded += said["ended"] == "loaded"
        if said["ended"] not in ("loaded", "raised"):
            self.sentences[said["ended"]] += 1
        self.grown = max(self.grown, said["grown"])
        again = f"--reader {name!r} --seed {seed} --input {i}"
        self.findings += [f"{again} ({said['how']}): {finding}" for finding in said["findings"]]


class Worker:
    """The process that reads, started again after each death."""

    def __init__(
        self, root: Path, seed: int, limit: float = LIMIT, patience: float = PATIENCE
    ) -> None:
        self.root, self.seed, self.process = root, seed, None
        self.limit, self.patience = limit, patience

    def start(self) -> None:
        kept = {"OPENBLAS_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        kept |= {"RAYON_NUM_THREADS": "1", "RUST_BACKTRACE": "0"}
        self.errors = open(self.root / "stderr", "wb")  # noqa: SIM115
        self.process = subprocess.Popen(
            [sys.executable, "-m", MODULE, "--serve", str(self.root), "--seed", str(self.seed)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            env=os.environ | kept,
            cwd=Path(__file__).parents[2],
        )
        self.buffer = b""

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.errors.close()
            self.process = None

    def line(self, limit: float, patience: float) -> tuple[str | None, str]:
        """-> the next line that it writes, or None and why there is none."""
        assert self.process is not None
        out, end, used = self.process.stdout.fileno(), time.monotonic() + patience, self.used()
        while b"\n" not in self.buffer:
            if not select.select([out], [], [], 0.1)[0]:
                if self.used() - used > limit:
                    return None, f"no answer in {limit:g} s of the processor"
                if time.monotonic() > end:
                    return None, f"no answer in {patience:g} s"
                continue
            got = os.read(out, 1 << 16)
            if not got:
                return None, f"died ({self.process.wait()})"
            self.buffer += got
        line, _, self.buffer = self.buffer.partition(b"\n")
        return line.decode(), ""

    def used(self) -> float:
        """Seconds of the processor that it took so far."""
        assert self.process is not None
        try:
            with open(f"/proc/{self.process.pid}/stat", encoding="ascii", errors="replace") as f:
                user, system = f.read().rpartition(")")[2].split()[11:13]
        except OSError:  # no Linux: the clock alone
            return 0.0
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")

    def read(self, name: str, first: int, last: int, tally: Tally) -> None:
        """Inputs `first` .. `last` - 1 of a reader."""
        while first < last:
            if self.process is None:
                self.start()
            assert self.process is not None
            self.process.stdin.write(json.dumps([name, first, last]).encode() + b"\n")
            self.process.stdin.flush()
            if self.line(120, 600)[0] != "ready":
                said = (self.root / "stderr").read_text(errors="replace")
                raise SystemExit(f"reader {name!r} cannot read its own good files:\n{said[-3000:]}")
            while first < last:
                line, what = self.line(self.limit, self.patience)
                if line is None:
                    self.stop()
                    tail = (self.root / "stderr").read_text(errors="replace")[-600:]
                    said = {"ended": "raised", "grown": 0, "how": what, "findings": [what + tail]}
                else:
                    said = json.loads(line)
                tally.add(name, self.seed, first, said)
                first += 1
                if line is None:
                    break


def fuzz(
    inputs: int, seed: int = 0, names: list[str] | None = None, progress: bool = False
) -> dict[str, Tally]:
    """`inputs` inputs, shared out among the readers -> how they ended, by reader."""
    from tests.reliability.damage import draw_values
    from tests.reliability.readers import READERS

    names = names or list(READERS)
    tallies = {name: Tally() for name in names}
    with tempfile.TemporaryDirectory(prefix="fuzz") as folder:
        root = Path(os.path.realpath(folder))
        (root / "values.json").write_text(json.dumps(draw_values(seed)))
        worker = Worker(root, seed)
        try:
            for n, name in enumerate(names):
                share = inputs // len(names) + (n < inputs % len(names))
                worker.read(name, 0, share, tallies[name])
                if progress:
                    print(row(name, tallies[name]), flush=True)
                    for finding in tallies[name].findings[:5]:
                        print("   ", finding, flush=True)
        finally:
            worker.stop()
    return tallies


# ---- the figures ----------------------------------------------------------------------------

HEAD = (
    "| reader | of | inputs | loaded, right | one sentence | different | memory | findings |\n"
    "|---|---|--:|--:|--:|--:|--:|--:|"
)


def row(name: str, tally: Tally, what: str = "") -> str:
    sentences = sum(tally.sentences.values())
    return (
        f"| {name} | {what} | {tally.inputs:,} | {tally.loaded:,} | {sentences:,} | "
        f"{len(tally.sentences)} | {tally.grown / 2**20:.0f} MiB | {len(tally.findings)} |"
    )


def page_of(tallies: dict[str, Tally], seed: int) -> str:
    from tests.reliability.readers import READERS

    whole = Tally()
    for tally in tallies.values():
        whole.inputs += tally.inputs
        whole.loaded += tally.loaded
        whole.sentences += tally.sentences
        whole.grown = max(whole.grown, tally.grown)
        whole.findings += tally.findings
    rows = [row(n, t, READERS[n].what) for n, t in tallies.items()]
    n, of = len(whole.findings), f"{whole.inputs:,} inputs (seed {seed})"
    times = sorted({READERS[name].times for name in tallies})
    return (
        f"{of}, findings: {n} (tokenizers {version('tokenizers')}, hypothesis "
        f"{version('hypothesis')}). Good files of every kind are damaged by bytes, by the "
        "structure of their JSON (with values that `hypothesis` draws and some that an attacker "
        "would choose), by the header of their tensors, by lines, or replaced by links, pipes, "
        "devices and the like. An input passes if the reader returns what the file says, as other "
        f"code reads it, or refuses it with one sentence of at most {LONGEST:,} printable "
        f"characters. Everything else is a finding: an exception, more than {LIMIT:g} s of the "
        f"processor or {PATIENCE:g} s of waiting, more memory than {BASE >> 20} MiB and "
        f"{' or '.join(map(str, times))} times the bytes on disk (the second for JSONL and CSV, "
        "where a pair can be three bytes; the system enforces the limit), a file opened outside "
        "the folder, a write, an import, code run, a process, or a socket. An audit hook reports "
        "these; it does not see what Rust code reads, so links to good files outside the folder "
        "show that.\n\n"
        f"{HEAD}\n" + "\n".join(rows) + "\n" + row("**all**", whole)
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.reliability.fuzz", description=__doc__)
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--reader", action="append", help="only this one; may be given again")
    parser.add_argument("--input", type=int, help="only this one, and its folder is kept")
    parser.add_argument("--write", action="store_true", help="into RELIABILITY.md")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve is not None:
        serve(args.serve, args.seed)
        return
    if args.input is not None:
        again(args.reader[0], args.seed, args.input)
        return
    tallies = fuzz(args.inputs, args.seed, args.reader, progress=True)
    findings = [f for tally in tallies.values() for f in tally.findings]
    print(f"{sum(t.inputs for t in tallies.values()):,} inputs, {len(findings)} findings")
    if args.write:
        from tests.reliability import page

        page.write("fuzz", page_of(tallies, args.seed))
    raise SystemExit(1 if findings else 0)


def again(name: str, seed: int, i: int) -> None:
    """One input, in this process; a hang is ended by Ctrl-C."""
    from tests.reliability.damage import draw_values
    from tests.reliability.readers import READERS

    root = Path(os.path.realpath(tempfile.mkdtemp(prefix="fuzz")))
    said = Bench(root, READERS[name], seed, draw_values(seed)).one(Watch(), i, keep=True)
    print(f"{root / name}/{said['seed']}: {said['how']}")
    print("\n".join([said["ended"], *said["findings"]]))


if __name__ == "__main__":
    main()
