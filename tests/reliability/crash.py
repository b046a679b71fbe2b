"""Runs and saves that are killed: does anything get lost?

    python -m tests.reliability.crash [--kills 200] [--seed 0] [--write]

Runs of several kinds are killed (SIGKILL) at random moments from start-up to the last file, some
of them while another process reads the folder, and resumed until they end. After each kill the
state must load whole and be no older than before, and the prefix must be whole or not there; in the
end every file is compared with those of the run that was never killed. Then saves of several files
are killed at every one of their calls, and two processes save into one folder. Prints figures;
exit status 1 if anything was lost. `--write` puts them into RELIABILITY.md.
"""

import argparse
import contextlib
import json
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from minprefix.storage import saving
from tests.reliability import page
from tests.reliability.runs import (
    KINDS,
    ROOT,
    SEEN,
    STATE,
    STEPS,
    assert_same_end,
    command,
    finish,
    holds_prefix,
    kill_at_random,
    make_world,
    numbers,
    struck,
)

#: parts of the run that end in a few milliseconds: there the process kills itself at a random call
PARTS = {
    STATE: "saving the state",
    "log.jsonl": "writing the log",
    "loss.png": "writing the picture",
    "prefix": "saving the prefix",
    "metrics.json": "writing the metrics",
}
TRAINING = {  # moment -> how often, while there are steps to train
    "start-up": 3, "training": 7, "saving the state": 4, STATE: 2, "log.jsonl": 1,
    "drawing the loss": 1, "loss.png": 1, "prefix": 2, "metrics.json": 1,
}  # fmt: skip
ENDING = {  # and when all steps are done; None: nobody kills it
    "start-up": 2, "drawing the loss": 2, "loss.png": 1, "log.jsonl": 1, "prefix": 5,
    "metrics.json": 2, None: 3,
}  # fmt: skip


class Lost(Exception):
    """What was lost, when, and where it lies."""


class Reader:
    """Another process that reads the folder all the time (`python -m tests.reliability.reader`)."""

    def __init__(self, out: Path, whole: Path) -> None:
        argv = [sys.executable, "-m", "tests.reliability.reader", str(out), str(whole)]
        self.process = subprocess.Popen(
            argv, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def end(self) -> Counter[str]:
        """-> how often it read what."""
        said, _ = self.process.communicate("\n")
        if self.process.returncode:
            raise Lost(f"a reader of {self.process.args} saw something that is not whole")
        return Counter(json.loads(said))


def draw(weights: dict[Any, int], rng: np.random.Generator) -> Any:
    p = np.array(list(weights.values()), float)
    return list(weights)[rng.choice(len(p), p=p / p.sum())]


def kill_runs(world: Path, kind: str, kills: int, rng: np.random.Generator) -> Counter[str]:
    """-> counts: kills by moment, whole states found, ends, what readers saw. Raises Lost."""
    whole = world / "whole" / kind.replace(" ", "-").replace(",", "")
    out = whole.with_name(whole.name + "-killed")
    # a part that is never struck: the calls on each of the others are counted
    calls = json.loads(finish_well(struck(command(world, whole, kind=kind), "count", 0, "before")))
    count: Counter[str] = Counter()
    done = 0
    while done < kills:
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        step, ended = 0, False
        reader = Reader(out, whole) if count["runs"] % 2 else None
        count["runs"] += 1
        while not ended and done < kills:
            moment = draw(ENDING if step == STEPS else TRAINING, rng)
            ended = not live(world, out, kind, moment, calls, rng)
            if ended:
                break
            done += 1
            count[f"kill {PARTS.get(moment, moment)}"] += 1
            step = look(out, whole, step, count)
            if reader and rng.random() < 0.1:
                reader.process.kill()  # perhaps while it completes a save
                reader.process.communicate()
                reader = Reader(out, whole)
                count["readers killed"] += 1
        print(f"{kind}: {done} of {kills} kills", file=sys.stderr)
        if not ended:
            finish_well(command(world, out, resume(out), kind=kind))
        if reader:
            count += reader.end()
        try:
            assert_same_end(out, whole)
        except (AssertionError, OSError) as error:
            raise Lost(f"{kind}: the end in {out} differs from {whole}: {error}") from error
        count["ends"] += 1
    return count


def resume(out: Path) -> str:
    return "--resume" if (out / STATE).exists() else "--force"


def live(
    world: Path, out: Path, kind: str, moment: str | None, calls: dict[str, int], rng: Any
) -> bool:
    """Start the run, or go on with it, and kill it. -> whether it was killed before its end."""
    for hidden in out.glob(f".{STATE}*"):  # so that "saving the state" sees this life's
        hidden.unlink()
    argv = command(world, out, resume(out), kind=kind)
    if moment in SEEN:
        process = subprocess.Popen(
            argv, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        if kill_at_random(process, out, moment, rng):
            process.stderr.close()
            return True
        status, said = process.returncode, process.communicate()[1]
    else:
        if moment is not None:
            n, when = (
                int(rng.integers(calls[moment])),
                draw({"before": 1, "half": 1, "after": 1}, rng),
            )
            argv = struck(argv, moment, n, when)
        done = finish(argv)
        status, said = done.returncode, done.stderr
        if status == -signal.SIGKILL:
            return True
    if status:
        raise Lost(f"{' '.join(argv)} ended with {status}: {said}")
    return False


def look(out: Path, whole: Path, step: int, count: Counter[str]) -> int:
    """What a kill left. -> the step of its state. Raises Lost if it is not whole, or older."""
    try:
        with tempfile.TemporaryDirectory() as copy:  # looking completes a save: not this one's
            with saving.only_writer(out):  # nor may a reader, halfway
                found = Path(shutil.copytree(out, Path(copy) / "run"))
            count["whole prefixes" if holds_prefix(found, whole) else "no prefix yet"] += 1
        if not (out / STATE).exists():
            assert not step, f"the state of step {step} is gone"
            count["no state yet"] += 1
            return 0
        now = int(numbers(out)["step"])
        assert now >= step, f"the state was of step {step} and is of {now}"
    except Exception as error:
        raise Lost(f"{out} after a kill: {error}") from error
    count["whole states"] += 1
    return now


def finish_well(argv: list[str]) -> str:
    done = finish(argv)
    if done.returncode:
        raise Lost(f"{' '.join(argv)} ended with {done.returncode}: {done.stderr}")
    return done.stdout.splitlines()[-1]


def kill_saves() -> Counter[str]:
    """A save of several files, at every one of its calls (`tests.reliability.saves`); in memory,
    where there is such a file system: a kill is no loss of power."""
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        argv = [sys.executable, "-m", "tests.reliability.saves", folder]
        return Counter(json.loads(finish_well(argv)))


def report(kinds: dict[str, Counter[str]], saves: Counter[str]) -> str:
    total: Counter[str] = sum(kinds.values(), Counter())
    kills = {k.removeprefix("kill "): n for k, n in total.items() if k.startswith("kill ")}
    n_kills = sum(kills.values())
    rows = ["| killed while | kills |", "|---|---:|"]
    rows += [f"| {moment} | {n} |" for moment, n in sorted(kills.items(), key=lambda kv: -kv[1])]
    return page.wrap(
        [
            f"{n_kills} kills in {total['runs']} runs of {len(kinds)} kinds ({'; '.join(kinds)}), "
            f"of {STEPS} steps each, with a state saved every 4.",
            "",
            *rows,
            "",
            f"- After {total['whole states']} kills the state was whole and no older than before; "
            f"the other {total['no state yet']} came before there was one.",
            f"- After {total['whole prefixes']} kills a prefix was there, whole; after "
            f"{total['no prefix yet']} there was none yet, and never half of one.",
            f"- {total['ends']} of {total['runs']} runs ended with every file byte-equal to the "
            "run that was never killed (times apart: those in log.jsonl and the time in "
            "minprefix.json).",
            f"- Another process read half of the runs all the time: {total['reads']} reads of the "
            f"folder, {total['states']} states and {total['prefixes']} prefixes found, all whole; "
            f"{total['readers killed']} of the readers were killed, too.",
            "- Saves of several files, killed before, halfway and after every one of their calls: "
            f"{saves['old']} kills left the old files, {saves['new']} the new ones, none a "
            "mixture. The process that completes such a save was killed at every one of its "
            f"calls, too, {saves['completions killed']} times; the next one completed it.",
        ]
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="crash-"))
    try:
        world = make_world(folder)
        (world / "whole").mkdir()
        shares = {
            kind: args.kills // len(KINDS) + (i < args.kills % len(KINDS))
            for i, kind in enumerate(KINDS)
        }
        with ThreadPoolExecutor(2) as pool:
            work = {
                kind: pool.submit(
                    kill_runs, world, kind, share, np.random.default_rng([args.seed, i])
                )
                for i, (kind, share) in enumerate(shares.items())
            }
        counts = {kind: future.result() for kind, future in work.items()}
        saves = kill_saves()
    except Lost as lost:
        print(f"\nLOST: {lost}")
        return 1
    text = report(counts, saves)
    print(text)
    if args.write:
        page.write("crash", text)
    with contextlib.suppress(OSError):
        shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
