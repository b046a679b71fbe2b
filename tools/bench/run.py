"""One process after the other. The competitors take turns, so that a machine that slows down or
speeds up does so for all. Their answers become the record."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from minprefix.ops.threads import VARIABLES
from tools.bench.work import SCRATCH, Job

SAID = 12  # lines that are kept of a failed process's output
Record = dict[str, Any]


class Outcome(NamedTuple):
    status: int
    out: str
    err: str
    seconds: float


def in_turns(jobs: Sequence[Job]) -> Iterator[tuple[Job, int]]:
    """Each work's rounds: round 1 of every competitor, round 2 of every competitor, ..."""
    groups = groupby(jobs, key=lambda job: (job.section, job.section == "start" or job.work))
    for _, group in groups:
        together = list(group)
        for r in range(max(job.rounds for job in together)):
            for job in together:
                if r < job.rounds:
                    yield job, r + 1


def run_all(
    jobs: Sequence[Job], threads: int, scratch: Path, on_record: Callable[[Record], None]
) -> None:
    """`on_record` gets every process's record as soon as it has ended. A process that fails is a
    record, too, and the next one goes on."""
    for job, number in in_turns(jobs):
        on_record(_run(job, number, threads, scratch))


def _run(job: Job, number: int, threads: int, scratch: Path) -> Record:
    given = asdict(job)
    if job.task == "command":
        argv = [sys.executable, *job.arguments["argv"]]
    else:
        text = json.dumps({**given, "threads": threads})
        text = text.replace(json.dumps(SCRATCH), json.dumps(str(scratch)))
        argv = [sys.executable, "-m", "tools.bench.worker", text]
    outcome = launch(argv, environment(threads))
    record = {name: given[name] for name in ("section", "work", "who", "task", "arguments")}
    record |= {"round": number, "seconds": outcome.seconds, "answer": None, "error": None}
    try:
        if outcome.status:
            raise ValueError
        # a library may have printed before: the answer is the last line
        record["answer"] = {} if job.task == "command" else json.loads(outcome.out.split("\n")[-2])
    except (ValueError, IndexError):
        said = outcome.err.strip().splitlines() or outcome.out.strip().splitlines()
        how = f"ended with status {outcome.status}"
        if outcome.status < 0:
            how = f"was ended by signal {-outcome.status}"
        record["error"] = [f"the process {how}", *said[-SAID:]]
    return record


def environment(threads: int) -> dict[str, str]:
    """This process's, the number of threads pinned, with the checkout that runs here first."""
    root = str(Path(__file__).resolve().parents[2])
    path = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    return (
        dict(os.environ)
        | dict.fromkeys(VARIABLES, str(threads))
        | {
            "PYTHONPATH": os.pathsep.join(path),
            "PYTHONSAFEPATH": "1",  # no module of the folder that one stands in
            "HF_HUB_OFFLINE": "1",
            "TRANSFORMERS_VERBOSITY": "error",
        }
    )


def launch(argv: Sequence[str], env: dict[str, str]) -> Outcome:
    """Runs a process to its end. Whatever ends this process, Ctrl-C too, ends that one first."""
    start = time.perf_counter()
    process = subprocess.Popen(
        argv,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
    )
    try:
        out, err = process.communicate()
        seconds = time.perf_counter() - start
    finally:
        process.kill()  # does nothing to one that has ended
        process.wait()
    return Outcome(process.returncode, out, err, seconds)
