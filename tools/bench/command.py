"""`python -m tools.bench`: the plan, the progress, the tables, the record."""

import argparse
import datetime
import sys
import tempfile
from collections.abc import Collection, Sequence
from importlib.util import find_spec
from pathlib import Path

import minprefix
from minprefix import ops
from minprefix.errors import InputError, counted
from minprefix.storage.writing import write_json
from tools.bench import agree, gpu, machine, report, work
from tools.bench.run import in_turns, run_all
from tools.bench.summary import Record
from tools.bench.work import Job

SECTIONS = ("train", "decode", "memory", "start", "growth")
GPU_SECTIONS = ("train", "decode")
ROUNDS = 3  # without --rounds; slow works take fewer
A_LOT = 4096  # threads, and rounds: more is a typing error


def bench(args: argparse.Namespace) -> int:
    """-> 0 if every process gave an answer, 1 if not. Raises InputError for options that cannot be
    run."""
    on_gpu = args.backend == "cupy"
    everything = GPU_SECTIONS if on_gpu else SECTIONS
    sections = everything if args.what == "all" else (args.what,)
    threads = machine.cores() if args.pinned is None else args.pinned
    rounds = ROUNDS if args.rounds is None else args.rounds
    for option, value in (("--threads", threads), ("--rounds", rounds)):
        if not 1 <= value <= A_LOT:
            raise InputError(f"{option} is {value}: expected 1 to {A_LOT}")
    known: Collection[str] = gpu.BATCHES if on_gpu else work.TRAIN
    known = work.METHODS if args.what == "methods" else known
    unknown = [name for name in args.work or () if name not in known]
    if unknown:
        raise InputError(
            f"--work {unknown[0]} does not exist{' on a GPU' if on_gpu else ''}: expected one of "
            f"{', '.join(known)}"
        )
    if args.shape == "medium" and not on_gpu:
        raise InputError("--shape medium is measured on a GPU: add --backend cupy")
    if on_gpu:
        ops.get("cupy")  # says why not
    if args.json is not None:
        _check_writable(args.json)
    if args.report is not None:
        _check_page(args.report)
        if args.json is not None and args.json.resolve() == args.report.resolve():
            raise InputError(f"--json and --report are both {args.json}: give two files")
    lengths_matter = bool({"train", "memory", "methods"} & set(sections))
    data = work.find_data(args.data) if lengths_matter else None
    peers, skipped = _peers(args.with_dropout, args.no_peers, on_gpu)
    if args.what == "methods":  # our algorithm in PyTorch has a prefix alone
        peers = [who for who in peers if who == "peft"]
        skipped.pop("torch", None)
    peers, wrong = _agreeing(peers, sections, threads, on_gpu)
    skipped |= wrong
    jobs = plan(args, sections, data, peers, skipped)
    record: Record = {
        "schema": report.SCHEMA,
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "command": _command(args, threads),
        "minprefix": minprefix.__version__,
        "sections": list(sections),
        "threads": threads,
        "rounds": rounds,
        "backend": args.backend,
        "shape": ", ".join(_shapes(args)),
        "lengths": "a stored histogram of its training set" if data is None else "its training set",
        "skipped": skipped,
        "machine": machine.describe(args.backend),
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
    on_gpu = None if args.gpu is None else report.read(args.gpu)
    rivals = None if args.methods is None else report.read(args.methods)
    if on_gpu is not None and (report.is_gpu(record) or not report.is_gpu(on_gpu)):
        raise InputError(
            f"--gpu {args.gpu} beside {args.record}: expected a record of --backend cupy beside "
            "one of the CPU"
        )
    if rivals is not None and "methods" not in rivals["sections"]:
        raise InputError(
            f"--methods {args.methods} has no methods: expected what `python -m tools.bench "
            "methods --json` wrote"
        )
    _check_page(args.out)
    written = report.write(record, args.out, on_gpu, rivals)
    print("written: " + ", ".join(str(path) for path in written))
    return 0


def plan(
    args: argparse.Namespace,
    sections: Sequence[str],
    data: Path | None,
    peers: Sequence[str],
    skipped: Collection[str] = (),
) -> list[Job]:
    rounds = ROUNDS if args.rounds is None else args.rounds
    histogram = work.stored_histogram() if data is None else work.histogram_of(data)
    # in every round the competitors run in this order
    whos = ["ours", *peers]
    decoders = ["ours", *(["peft"] if "peft" in peers and "generate" not in skipped else [])]
    without_dropout = [who for who in whos if who != "peft-dropout"]
    jobs: list[Job] = []
    if args.backend == "cupy":
        if "train" in sections:
            only = args.work or ()
            jobs += gpu.train_jobs(_shapes(args), histogram, whos, args.rounds, only)
        if "decode" in sections:
            jobs += gpu.decode_jobs(_shapes(args), decoders, args.rounds)
        return jobs
    (shape,) = _shapes(args)
    config = work.SHAPES[shape]
    if "train" in sections:
        jobs += work.train_jobs(config, histogram, whos, args.rounds, args.work or ())
    if "methods" in sections:
        only = args.work or ()
        jobs += work.method_jobs(config, histogram, whos, args.rounds, only, skipped)
    if "memory" in sections:
        trained = "train" in sections and not args.work
        jobs += work.memory_jobs(config, histogram, without_dropout, trained)
    if "decode" in sections:
        jobs += work.decode_jobs(config, decoders, args.rounds)
    if "start" in sections:
        jobs += work.start_jobs(config, "peft" in peers, rounds)
    if "growth" in sections:
        jobs += work.growth_jobs(args.rounds, small=shape == "tiny")
    return jobs


def _shapes(args: argparse.Namespace) -> Sequence[str]:
    if args.shape is not None:
        return (args.shape,)
    return gpu.BOTH if args.backend == "cupy" else ("124m",)


def _peers(
    with_dropout: bool, none: bool, on_gpu: bool = False
) -> tuple[list[str], dict[str, str]]:
    """The peers that can be measured here, and why the others cannot."""
    there, skipped = [], {}
    blind = on_gpu and not none and find_spec("torch") is not None and not _torch_sees_a_gpu()
    for who in ("torch", "peft", *(("peft-dropout",) if with_dropout else ())):
        missing = [name for name in work.NEEDS[who] if find_spec(name) is None]
        if none:
            skipped[who] = "--no-peers"
        elif missing:
            skipped[who] = f"{' and '.join(missing)} not installed"
        elif blind:
            skipped[who] = "this PyTorch sees no GPU"
        else:
            there.append(who)
    return there, skipped


def _agreeing(
    peers: Sequence[str], sections: Sequence[str], threads: int, on_gpu: bool
) -> tuple[list[str], dict[str, str]]:
    """The peers that compute the same as this project, and why the others are not measured."""
    questions, answers = agree.questions(peers, sections, on_gpu), list[Record]()
    if questions:
        _tell("first on a small model, whether everyone computes the same")
        with tempfile.TemporaryDirectory() as scratch:
            run_all(questions, threads, Path(scratch), answers.append)
    wrong = agree.disagreements(answers)
    if "peft" in wrong and "peft-dropout" in peers:
        wrong["peft-dropout"] = wrong["peft"]  # the same code
    return [who for who in peers if who not in wrong], wrong


def _torch_sees_a_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


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
    """The command that repeats this run, without the paths of this machine."""
    parts = ["python -m tools.bench", args.what, f"--threads {threads}"]
    parts += [] if args.rounds is None else [f"--rounds {args.rounds}"]
    parts += [] if args.backend == "numpy" else [f"--backend {args.backend}"]
    parts += [] if args.shape is None else [f"--shape {args.shape}"]
    parts += [f"--work {name}" for name in args.work or ()]
    parts += ["--with-dropout"] if args.with_dropout else []
    parts += ["--no-peers"] if args.no_peers else []
    return " ".join(parts)


def _measure(record: Record, jobs: Sequence[Job], threads: int, json: Path | None) -> None:
    """Fills the record, and keeps it in the file as it grows."""
    turns = list(in_turns(jobs))
    minutes = sum(job.expected for job, _ in turns) / 60
    how_long = "a few seconds each"
    if record["shape"] != "tiny":
        how_long = f"about {minutes:.0f} minutes on two cores"
        how_long = "for as long as they take" if report.is_gpu(record) else how_long
    _tell(
        f"{counted(len(turns), 'process', 'processes')}, {how_long}; {counted(threads, 'thread')} "
        "each"
    )
    for who, why in record["skipped"].items():
        _tell(f"{work.TITLES[who]} is left out: {why}")

    def on_record(run: Record) -> None:
        record["runs"].append(run)
        if json is not None:
            write_json(json, record)
        n = len(record["runs"])
        where = f"{run['section']} {run['work']}, {run['who']}, round {run['round']}"
        _tell(f"[{n}/{len(turns)}] {where}: {run['seconds']:.1f} s")
        if run["error"]:
            _tell("\n".join(f"    {line}" for line in ["FAILED", *run["error"]]))

    with tempfile.TemporaryDirectory() as scratch:
        run_all(jobs, threads, Path(scratch), on_record)
    record["finished"] = True
    if json is not None:
        write_json(json, record)


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
