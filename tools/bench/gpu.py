"""The work on a GPU: GPT-2's shape and GPT-2 medium's, batches of E2E lengths, both precisions
of a float32 matrix product, and the jobs that `--backend cupy` consists of.

A job's arguments hold `"device": "cuda"` and the precision, which `ours` and `peers` both obey. The
time of a process is not known in advance, so no job has an estimate.
"""

from collections.abc import Sequence
from dataclasses import asdict
from itertools import product
from typing import Any, NamedTuple

from tools.bench.work import DECODE, NEW, PREFIX, PROMPT, SHAPES, Job, Lengths, typical

#: the shapes that are measured without --shape
BOTH = ("124m", "medium")
#: a batch's name -> its pairs
BATCHES = {"e2e-10": 10, "e2e-32": 32, "e2e-128": 128}
PRECISIONS = ("float32", "tf32")  # of matrix products; all else is float32
STEPS = 10  # timed ones a process
REPETITIONS = 3  # of a decoding case in a process
ROUNDS = 3  # without --rounds


class Work(NamedTuple):
    shape: str
    batch: str
    precision: str

    @property
    def name(self) -> str:
        return " ".join(self)


#: every work there is, by its name
TRAIN = {w.name: w for w in (Work(*each) for each in product(SHAPES, BATCHES, PRECISIONS))}
#: the works of decoding, each of all cases: shape and precision
DECODERS = {f"{shape} {precision}": (shape, precision) for shape, precision in
            product(SHAPES, PRECISIONS)}  # fmt: skip


def train_jobs(
    shapes: Sequence[str],
    histogram: dict[Lengths, int],
    whos: Sequence[str],
    rounds: int | None,
    only: Sequence[str] = (),
) -> list[Job]:
    """For each work the training processes, and one for each competitor that counts a step's
    launches."""
    jobs = []
    for work in TRAIN.values():
        if work.shape not in shapes or (only and work.batch not in only):
            continue
        lengths = typical(histogram, BATCHES[work.batch])
        sizes = _sizes(work.shape, work.precision) | {"lengths": lengths}
        train = {**sizes, "warm_up": lengths, "steps": STEPS}
        jobs += [
            Job("train", work.name, who, "train", train, rounds or ROUNDS, 0.0) for who in whos
        ]
        jobs += [Job("launches", work.name, who, "launches", sizes, 1, 0.0) for who in whos]
    return jobs


def decode_jobs(shapes: Sequence[str], whos: Sequence[str], rounds: int | None) -> list[Job]:
    cases = [(name, prompts, beams, REPETITIONS) for name, (prompts, beams, _) in DECODE.items()]
    jobs = []
    for name, (shape, precision) in DECODERS.items():
        if shape in shapes:
            sizes = _sizes(shape, precision) | {"prompt": PROMPT, "new": NEW, "cases": cases}
            jobs += [
                Job("decode", name, who, "decode", sizes, rounds or ROUNDS, 0.0) for who in whos
            ]
    return jobs


def _sizes(shape: str, precision: str) -> dict[str, Any]:
    config = asdict(SHAPES[shape])
    return {"config": config, "prefix": PREFIX, "device": "cuda", "precision": precision}
