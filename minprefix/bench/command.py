"""`minprefix bench`: the plan, the progress, the tables, the record."""

import argparse
import datetime
import sys
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import minprefix
from minprefix import files
from minprefix.bench import machine, report, work
from minprefix.bench.run import in_turns, run_all
from minprefix.bench.summary import Record
from minprefix.bench.work import Job
from minprefix.errors import InputError

SECTIONS = ("train", "decode", "memory", "start", "growth")
ROUNDS = 3  # where nothing is said; slow works take fewer
A_LOT = 4096  # threads, and rounds: more is a slip of the hand


def bench(args: argparse.Namespace) -> int:
    """-> 0 if every process gave an answer, 1 if not. Raises InputError for what cannot be run."""
    sections = SECTIONS if args.what == "all" else (args.what,)
    threads = machine.cores() if args.pinned is None else args.pinned
    rounds = ROUNDS if args.rounds is None else args.rounds
    for option, value in (("--threads", threads), ("--rounds", rounds)):
        if not 1 <= value <= A_LOT:
            raise InputError(f"{option} is {value}: expected 1 to {A_LOT}")
    unknown = [name for name in args.work or () if name not in work.TRAIN]
    if unknown:
        raise InputError(
            f"--work {unknown[0]} does not exist: expected one of {', '.join(work.TRAIN)}"
        )
    if args.json is not None:
        _check_writable(args.json)
    if args.report is not None:
        _check_page(args.report)
        if args.json is not None and args.json.resolve() == args.report.resolve():
            raise InputError(f"--json and --report are both {args.json}: give two files")
    lengths_matter = "train" in sections or "memory" in sections
    data = work.find_data(args.data) if lengths_matter else None
    peers, skipped = _peers(args.with_dropout, args.no_peers)
    jobs = plan(args, sections, data, peers)
    record: Record = {
        "schema": report.SCHEMA,
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "command": _command(args, threads),
        "minprefix": minprefix.__version__,
        "sections": list(sections),
        "threads": threads,
        "rounds": rounds,
        "shape": args.shape,
        "lengths": "a stored histogram of its training set" if data is None else "its training set",
        "skipped": skipped,
        "machine": machine.describe(),
        "finished": False,
        "runs": [],
    }
    _measure(record, jobs, threads, args.json and args.json.resolve())
    print(report.text(record))
    if args.report is not None:
        print("written: " + ", ".join(str(path) for path in report.write(record, args.report)))
    return 1 if any(run["error"] for run in record["runs"]) else 0


def bench_report(args: argparse.Namespace) -> int:
    """The page of an earlier run."""
    record = report.read(args.record)
    _check_page(args.out)
    print("written: " + ", ".join(str(path) for path in report.write(record, args.out)))
    return 0


def plan(
    args: argparse.Namespace, sections: Sequence[str], data: Path | None, peers: Sequence[str]
) -> list[Job]:
    config = work.SHAPES[args.shape]
    rounds = ROUNDS if args.rounds is None else args.rounds
    histogram = work.stored_histogram() if data is None else work.histogram_of(data)
    # who is compared stands first to last in every round
    whos = ["ours", *peers]
    without_dropout = [who for who in whos if who != "peft-dropout"]
    jobs: list[Job] = []
    if "train" in sections:
        jobs += work.train_jobs(config, histogram, whos, args.rounds, args.work or ())
    if "memory" in sections:
        trained = "train" in sections and not args.work
        jobs += work.memory_jobs(config, histogram, without_dropout, trained)
    if "decode" in sections:
        decoders = [who for who in whos if who in ("ours", "peft")]
        jobs += work.decode_jobs(config, decoders, args.rounds)
    if "start" in sections:
        jobs += work.start_jobs(config, "peft" in peers, rounds)
    if "growth" in sections:
        jobs += work.growth_jobs(args.rounds, small=args.shape == "tiny")
    return jobs


def _peers(with_dropout: bool, none: bool) -> tuple[list[str], dict[str, str]]:
    """Who can be measured here, and why the others cannot."""
    there, skipped = [], {}
    for who in ("torch", "peft", *(("peft-dropout",) if with_dropout else ())):
        missing = [name for name in work.NEEDS[who] if find_spec(name) is None]
        if none:
            skipped[who] = "--no-peers"
        elif missing:
            skipped[who] = f"{' and '.join(missing)} not installed"
        else:
            there.append(who)
    return there, skipped


def _check_writable(path: Path) -> None:
    """Before a long run, not after it."""
    if path.is_dir():
        raise InputError(f"{path} is a folder: give a file to write")
    if path.exists() and not path.is_file():
        raise InputError(f"{path} is a device: give a file to write")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise InputError(
            f"cannot write {path}: {error.strerror or error}; choose another folder"
        ) from error


def _check_page(path: Path) -> None:
    """The page, and the folder of its pictures."""
    _check_writable(path)
    _check_writable(path.parent / report.PICTURES / "train.png")


def _command(args: argparse.Namespace, threads: int) -> str:
    """What gives this run again, without the paths of this machine."""
    parts = ["minprefix bench", args.what, f"--threads {threads}"]
    parts += [] if args.rounds is None else [f"--rounds {args.rounds}"]
    parts += [] if args.shape == "124m" else [f"--shape {args.shape}"]
    parts += [f"--work {name}" for name in args.work or ()]
    parts += ["--with-dropout"] if args.with_dropout else []
    parts += ["--no-peers"] if args.no_peers else []
    return " ".join(parts)


def _measure(record: Record, jobs: Sequence[Job], threads: int, json: Path | None) -> None:
    """Fills the record, and keeps it in the file as it grows."""
    turns = list(in_turns(jobs))
    if record["shape"] == "124m":
        minutes = sum(job.expected for job, _ in turns) / 60
        how_long = f"about {minutes:.0f} minutes on two cores"
    else:
        how_long = "a few seconds each"
    _tell(f"{len(turns)} processes, {how_long}; {threads} threads each")
    for who, why in record["skipped"].items():
        _tell(f"{work.TITLES[who]} is left out: {why}")

    def on_record(run: Record) -> None:
        record["runs"].append(run)
        if json is not None:
            files.write_json(json, record)
        n = len(record["runs"])
        where = f"{run['section']} {run['work']}, {run['who']}, round {run['round']}"
        _tell(f"[{n}/{len(turns)}] {where}: {run['seconds']:.1f} s")
        if run["error"]:
            _tell("\n".join(f"    {line}" for line in ["FAILED", *run["error"]]))

    with tempfile.TemporaryDirectory() as scratch:
        run_all(jobs, threads, Path(scratch), on_record)
    record["finished"] = True
    if json is not None:
        files.write_json(json, record)


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
