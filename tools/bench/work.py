"""The work: shapes, batches of E2E lengths, prompts, sizes, and the jobs that a command consists
of.

Weights and token ids are random, which is right for timing: no product of matrices looks at the
numbers in them. Only the lengths decide the work, and those are the E2E dataset's (Novikova et al.,
2017), tokenised with GPT-2's BPE: read from the data where it is, else from `e2e_lengths.json`,
their joint histogram.
"""

import json
import os
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from minprefix.errors import InputError
from minprefix.gpt2 import Config

PREFIX = 10  # P
SHAPES = {
    "124m": Config(12, 12, 768, 50257, 1024),
    "medium": Config(24, 16, 1024, 50257, 1024),  # on a GPU
    "tiny": Config(2, 2, 32, 211, 1024),  # to try the bench itself
}
#: source tokens and target tokens of a sequence; the loss begins at the first target
Lengths = tuple[int, int]
DATA_VARIABLE = "MINPREFIX_BENCH_DATA"
TITLES = {
    "ours": "minprefix",
    "peft": "PyTorch + PEFT",
    "peft-dropout": "PyTorch + PEFT, dropout 0.1",
    "torch": "our algorithm in PyTorch",
    "generate": "transformers' generate, through PEFT",  # what of PEFT decodes
    "peft prefix": "PEFT's prefix tuning",
    "peft lora": "PEFT's LoRA",
    "peft prompt-tuning": "PEFT's prompt tuning",
}
#: the libraries that each peer needs
NEEDS = {
    "ours": (),
    "torch": ("torch",),
    "peft": ("torch", "transformers", "peft"),
    "peft-dropout": ("torch", "transformers", "peft"),
    "start": ("torch", "transformers", "peft"),
}


@dataclass(frozen=True)
class Job:
    """The task of one process, and the number of rounds that start it anew."""

    section: str
    work: str
    who: str
    task: str  # a function of `ours` or `peers`; "command": `arguments["argv"]` is the process
    arguments: dict[str, Any] = field(default_factory=dict)
    rounds: int = 1
    expected: float = 1.0  # seconds a process at the 124m shape on two cores, for the estimate


# ---- E2E lengths ------------------------------------------------------------------------------


def find_data(given: Path | None) -> Path | None:
    """The folder with `e2e/` and `gpt2-bpe/`: --data, the environment's, or shared/data beside the
    clone. Raises InputError for one that was named and is not there."""
    named = given or (Path(os.environ[DATA_VARIABLE]) if os.environ.get(DATA_VARIABLE) else None)
    beside = Path(__file__).resolve().parents[3] / "shared" / "data"
    folder = named or beside
    missing = [name for name in _DATA_FILES if not (folder / name).exists()]
    if not missing:
        return folder
    if named is not None:
        raise InputError(
            f"data folder {named} has no {missing[0]}: expected {', '.join(_DATA_FILES)}; leave it "
            "out to use the stored histogram"
        )
    return None


_DATA_FILES = ("e2e/trainset.csv", "gpt2-bpe/vocab.json", "gpt2-bpe/merges.txt")


def histogram_of(folder: Path) -> dict[Lengths, int]:
    """How many rows of the E2E training set have (source, target) tokens: the source with its line
    end, the target with its end token."""
    from tokenizers import ByteLevelBPETokenizer

    from minprefix.data.pairs import Template, read_pairs

    train, vocabulary, merges = (str(folder / name) for name in _DATA_FILES)
    pairs, template = read_pairs(train), Template()
    try:
        bpe = ByteLevelBPETokenizer(vocabulary, merges)
    except Exception as error:  # of whatever kind tokenizers raises
        raise InputError(f"{vocabulary} and {merges} are no BPE: {error}") from error
    sources = bpe.encode_batch([template.prompt(p.source) for p in pairs])
    targets = bpe.encode_batch([template.completion(p.target) for p in pairs])
    return Counter((len(s.ids), len(t.ids) + 1) for s, t in zip(sources, targets, strict=True))


def stored_histogram() -> dict[Lengths, int]:
    path = Path(__file__).with_name("e2e_lengths.json")
    rows = json.loads(path.read_text(encoding="utf-8"))["source, targets, rows"]
    return {(source, target): n for source, *counts in rows for target, n in counts}


def typical(histogram: dict[Lengths, int], n: int) -> list[Lengths]:
    """Lengths of a batch of n rows without its luck: by length, row i of n lies where it lies on
    average in a random batch, at i / (n + 1) of all rows. What padding adds to such a batch is
    what it adds to a random one, or a little less."""
    cells = sorted(histogram, key=lambda cell: (sum(cell), cell))
    edges = np.cumsum([histogram[cell] for cell in cells])
    rows = np.arange(1, n + 1) / (n + 1) * edges[-1]
    return [cells[i] for i in np.searchsorted(edges, rows, side="right")]


# ---- training ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class TrainWork:
    name: str
    what: str
    rounds: int
    #: timed steps a process, after the warm-up; the slow take fewer
    steps: dict[str, int]
    #: seconds of one step at the 124m shape on two cores: for the estimate of the plan alone
    expected: dict[str, float]
    full_warm_up: bool = True  # a whole step first; else one of a short sequence

    def lengths(self, histogram: dict[Lengths, int]) -> list[Lengths]:
        if self.name.startswith("e2e-"):
            return typical(histogram, int(self.name.removeprefix("e2e-")))
        return {"rectangle": [(1, 127)] * 8, "long": [(1, 999)] * 4}[self.name]


TRAIN = {
    work.name: work
    for work in (
        TrainWork(
            "e2e-10",
            "10 pairs of the E2E dataset's lengths",
            3,
            {"ours": 4, "torch": 3, "peft": 2},
            {"ours": 1.4, "torch": 2, "peft": 5},
        ),
        TrainWork(
            "e2e-32",
            "32 pairs of the E2E dataset's lengths",
            2,
            {"ours": 2, "torch": 1, "peft": 1},
            {"ours": 4.3, "torch": 7, "peft": 18},
        ),
        TrainWork(
            "rectangle",
            "8 sequences of 128 tokens, every token but the first a target",
            2,
            {"ours": 3, "torch": 2, "peft": 2},
            {"ours": 3.2, "torch": 4.5, "peft": 6},
        ),
        TrainWork(
            "long",
            "4 sequences of 1000 tokens, every token but the first a target",
            2,
            {"ours": 1, "torch": 1, "peft": 1},
            {"ours": 16, "torch": 39, "peft": 30},
            full_warm_up=False,
        ),
    )
}
#: imports and building the model: seconds at the 124m shape, for the estimate
_SETUP = {"ours": 4.0, "torch": 8.0, "peft": 12.0, "peft-dropout": 12.0}
_SHORT = [(4, 28)]  # the warm-up where a whole step takes too long


def _train_job(
    section: str, work: TrainWork, who: str, config: Config, lengths: list[Lengths], rounds: int
) -> Job:
    like = who.removesuffix("-dropout")
    return Job(
        section,
        work.name,
        who,
        "train",
        {
            "config": asdict(config),
            "prefix": PREFIX,
            "lengths": lengths,
            "warm_up": lengths if work.full_warm_up else _SHORT,
            "steps": work.steps[like],
        },
        rounds,
        _SETUP[who] + work.expected[like] * (work.steps[like] + work.full_warm_up),
    )


def train_jobs(
    config: Config,
    histogram: dict[Lengths, int],
    whos: Sequence[str],
    rounds: int | None,
    only: Sequence[str] = (),
) -> list[Job]:
    jobs = []
    for work in TRAIN.values():
        if only and work.name not in only:
            continue
        lengths = work.lengths(histogram)
        n = work.rounds if rounds is None else rounds
        jobs += [_train_job("train", work, who, config, lengths, n) for who in whos]
        sizes = {"config": asdict(config), "prefix": PREFIX, "lengths": lengths, "steps": 2}
        expected = _SETUP["ours"] + 5 * work.expected["ours"]
        jobs.append(Job("products", work.name, "ours", "products", sizes, 1, expected))
    return jobs


@dataclass(frozen=True)
class MethodWork:
    options: dict[str, Any]  # what everyone starts it with
    #: seconds of a step at the 124m shape on two cores, for the estimate; those who have it
    expected: dict[str, float]


#: the batch of every method, and its name in TRAIN
METHOD_BATCH = "e2e-10"
#: prefix-tuning and its rivals; PEFT has the first three
METHODS = {
    "prefix": MethodWork({}, {"ours": 1.6, "peft": 4.5}),
    "lora": MethodWork({"rank": 8, "alpha": 16.0}, {"ours": 2.2, "peft": 5}),
    "prompt-tuning": MethodWork({"length": PREFIX}, {"ours": 2, "peft": 5}),
    "adapters": MethodWork({"bottleneck": 64}, {"ours": 2.2}),
    "bitfit": MethodWork({}, {"ours": 2.2}),
    "full": MethodWork({}, {"ours": 6}),
}


def method_arguments(method: str) -> dict[str, Any]:
    """What a job of a method has besides the sizes."""
    return {"prefix": PREFIX, "method": method, "options": METHODS[method].options}


def method_jobs(
    config: Config,
    histogram: dict[Lengths, int],
    whos: Sequence[str],
    rounds: int | None,
    only: Sequence[str] = (),
    skipped: Collection[str] = (),
) -> list[Job]:
    """`skipped`: "peft lora", say, where PEFT's LoRA is not to be measured."""
    batch, jobs = TRAIN[METHOD_BATCH], list[Job]()
    lengths = batch.lengths(histogram)
    for method, work in METHODS.items():
        for who in whos if not only or method in only else ():
            if who not in work.expected or f"{who} {method}" in skipped:
                continue
            steps = batch.steps[who]
            arguments = {"config": asdict(config), **method_arguments(method), "steps": steps}
            arguments |= {"lengths": lengths, "warm_up": lengths}
            expected = _SETUP[who] + work.expected[who] * (steps + 1)
            n = rounds or batch.rounds
            jobs.append(Job("methods", method, who, "train", arguments, n, expected))
    return jobs


def memory_jobs(
    config: Config, histogram: dict[Lengths, int], whos: Sequence[str], trained: bool
) -> list[Job]:
    """`trained`: the train section has run, and its processes are those whose memory is
    compared."""
    jobs = []
    for name in () if trained else ("e2e-32", "long"):
        work = TRAIN[name]
        lengths = work.lengths(histogram)
        jobs += [_train_job("memory", work, who, config, lengths, 1) for who in whos]
    sizes = {"config": asdict(config), "prefix": PREFIX, "steps": 11}
    sizes["lengths"] = sizes["warm_up"] = TRAIN["e2e-10"].lengths(histogram)
    jobs.append(Job("memory", "flatness", "ours", "train", sizes, 1, 22.0))
    return jobs


# ---- decoding ---------------------------------------------------------------------------------

PROMPT = 33  # tokens: an E2E source
NEW = 32  # tokens after the first
#: name -> prompts, beams, repetitions in a process
DECODE = {
    "1 prompt, greedy": (1, 1, 3),
    "1 prompt, beam 5": (1, 5, 2),
    "16 prompts, greedy": (16, 1, 2),
    "16 prompts, beam 5": (16, 5, 1),
}


def decode_jobs(config: Config, whos: Sequence[str], rounds: int | None) -> list[Job]:
    rounds = rounds or 2
    sizes = {"config": asdict(config), "prefix": PREFIX, "prompt": PROMPT, "new": NEW}
    cases = [(name, *case) for name, case in DECODE.items()]
    jobs = [
        Job("decode", "all cases", who, "decode", {**sizes, "cases": cases}, rounds, 35.0)
        for who in whos
    ]
    n_bytes = 4 * sum(int(np.prod(shape)) for shape in config.shapes().values())
    jobs.append(Job("decode", "bandwidth", "ours", "bandwidth", {"bytes": n_bytes}, rounds, 1.5))
    return jobs


# ---- start ------------------------------------------------------------------------------------

SCRATCH = "{scratch}"  # stands in arguments for a folder that lasts as long as the command
STARTS = {
    "python -c pass": ["-c", "pass"],
    "import minprefix": ["-c", "import minprefix"],
    "minprefix --help": ["-m", "minprefix", "--help"],
}


def start_jobs(config: Config, peers: bool, rounds: int) -> list[Job]:
    jobs = [
        Job("start", name, "ours", "command", {"argv": argv}, 3 * rounds, 0.2)
        for name, argv in STARTS.items()
    ]
    if peers:
        argv = ["-c", "import torch, transformers, peft"]
        jobs.append(Job("start", argv[1], "start", "command", {"argv": argv}, rounds, 8.0))
    save = {"config": asdict(config), "folder": SCRATCH}
    jobs.append(Job("start", "write the checkpoint", "ours", "save", save, 1, 6.0))
    first = {"folder": SCRATCH, "prompt": PROMPT}
    jobs.append(Job("start", "checkpoint", "ours", "first_token", first, rounds, 2.0))
    return jobs


# ---- growth -----------------------------------------------------------------------------------

#: eight heads, so that a stored (NH, T, P+T) pattern outweighs all else that a layer keeps
GROWTH_CONFIG = Config(4, 8, 256, 5000, 2048)
GROWTH_BASE = {"T": 128, "P": 10, "B": 4, "L": 4}
#: symbol -> its values, and the sizes that differ from the base's
GROWTH: dict[str, tuple[list[int], dict[str, int]]] = {
    "T": ([64, 128, 256, 512, 1000], {}),
    "P": ([8, 136, 264, 520, 1032], {"B": 8}),  # what they add to the first doubles
    "B": ([2, 4, 8, 16, 32], {}),
    "L": ([1, 2, 4, 8, 12], {"T": 1000, "B": 1}),
}


def growth_jobs(rounds: int | None, small: bool = False) -> list[Job]:
    """`small`: a quarter of every size, to try the bench itself."""
    jobs: list[Job] = []
    for symbol, (values, fixed) in GROWTH.items():
        for value in values:
            sizes = GROWTH_BASE | fixed | {symbol: value}
            if small:
                sizes = {s: -(-n // 4) for s, n in sizes.items()}
            config = {**asdict(GROWTH_CONFIG), "n_layer": sizes["L"]}
            lengths = [(1, sizes["T"] - 1)] * sizes["B"]
            arguments = {"config": config, "prefix": sizes["P"], "lengths": lengths}
            arguments |= {"warm_up": lengths, "steps": 3, "sizes": sizes}
            work = f"{symbol} = {sizes[symbol]}"
            jobs.append(Job("growth", work, "ours", "train", arguments, rounds or 2, 2.5))
    return list({job.work: job for job in jobs}.values())  # small ones may coincide
