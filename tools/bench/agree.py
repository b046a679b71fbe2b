"""Whether a peer computes the same as this project: a small model shows it before the timing,
since the time of a peer that drops its prefix means nothing."""

from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import numpy as np

from tools.bench.run import Record
from tools.bench.work import METHODS, NEEDS, PREFIX, SHAPES, Job, method_arguments

LENGTHS = [(3, 9), (12, 5), (7, 1)]
CASES = [("greedy", 2, 1, 1), ("beams", 2, 3, 1)]
TOLERANCE = 1e-5  # of losses in float32, relative


def questions(peers: Sequence[str], sections: Sequence[str], on_gpu: bool) -> list[Job]:
    """The losses of a short training and a few tokens, of every peer that is to be measured, of
    `ours`, and of `ours` without a prefix."""
    sizes: dict[str, Any] = {"config": asdict(SHAPES["tiny"]), "prefix": PREFIX}
    sizes |= {"device": "cuda", "precision": "float32"} if on_gpu else {}
    steps = sizes | {"lengths": LENGTHS, "warm_up": LENGTHS, "steps": 2}
    decoding = sizes | {"prompt": 7, "new": 3, "cases": CASES}
    jobs = []
    # with dropout the losses differ by rights: it is the same code as without
    trainers = [who for who in peers if who != "peft-dropout"]
    if trainers and {"train", "memory"} & set(sections):
        jobs += [Job("agree", "losses", who, "train", steps) for who in ("ours", *trainers)]
        jobs.append(Job("agree", "no prefix", "ours", "train", steps | {"prefix": 0}))
    if "peft" in peers and "methods" in sections:
        for method in (name for name, work in METHODS.items() if "peft" in work.expected):
            asked = steps | method_arguments(method)
            jobs += [Job("agree", method, who, "train", asked) for who in ("ours", "peft")]
        jobs.append(Job("agree", "no prefix", "ours", "train", steps | {"prefix": 0}))
    if "peft" in peers and "decode" in sections:
        jobs += [Job("agree", "tokens", who, "written", decoding) for who in ("ours", "peft")]
        jobs.append(Job("agree", "no prefix", "ours", "written", decoding | {"prefix": 0}))
    return jobs


def disagreements(runs: Sequence[Record]) -> dict[str, str]:
    """Peer that computes something else -> why it is not measured. `generate` is PEFT's decoding,
    which may be wrong where its training is right; "peft lora" is its LoRA, and so on. A process
    without an answer proves nothing: it will fail again, and then count."""
    answers = {(run["task"], run["work"], run["who"]): run["answer"] for run in runs}
    wrong = {}
    for (task, work, who), theirs in answers.items():
        ours = answers.get((task, work, "ours"))
        bare = answers.get((task, "no prefix", "ours"))
        if who == "ours" or not (theirs and ours and bare) or _same(task, theirs, ours):
            continue
        name, what = (who, "losses") if task == "train" else ("generate", "tokens")
        name = f"{who} {work}" if work in METHODS else name
        how = f"computes other {what} than minprefix"
        if _same(task, theirs, bare):
            how = f"computes without its {'prefix' if work not in METHODS else work}"
        wrong[name] = f"with {_versions(who)} it {how}"
    return wrong


def _same(task: str, theirs: dict[str, Any], ours: dict[str, Any]) -> bool:
    if task == "written":
        return bool(theirs["tokens"] == ours["tokens"])
    return np.allclose(theirs["losses"], ours["losses"], rtol=TOLERANCE, atol=0)


def _versions(who: str) -> str:
    return " and ".join(f"{name} {version(name)}" for name in NEEDS[who][-2:])
