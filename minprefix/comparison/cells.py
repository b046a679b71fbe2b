"""One training of one method, and its scores: a cell of the comparison."""

import re
import tempfile
import time
import tracemalloc
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from minprefix import evaluate
from minprefix.comparison.entrants import Entrant, Trained, read_entrant
from minprefix.data import world
from minprefix.data.pairs import Encoded, Pair, Template, encode_pairs, group_references, read_pairs
from minprefix.errors import Diverged
from minprefix.generate import Decoding
from minprefix.model import GPT2
from minprefix.optim import AdamW
from minprefix.prefix import Prefix
from minprefix.settings import Settings
from minprefix.train import batch_gradient, method_gradient, train

#: pairs of a task of the tiny world: to train on, to validate on, to test on
TRAIN, VALID, TEST = 2000, 48, 50
UNSEEN = 20  # of domains that the model has never seen
MOST_TOKENS = 100  # of a generated text
TIMED = 5  # rounds of timed steps


@dataclass(frozen=True)
class Plan:
    """All that decides the numbers of a comparison. `examples`: how many pairs of the training
    data, 0 is all of them. `seconds`: the budget of a cell, instead of `steps`."""

    methods: tuple[str, ...]
    lrs: tuple[float, ...]
    seeds: tuple[int, ...]
    examples: tuple[int, ...]
    model: str | None = None
    task: str | None = None
    data: str | None = None
    valid: str | None = None
    test: str | None = None
    template: str = "{source}\n{target}"
    steps: int | None = None
    seconds: float | None = None
    batch_size: int = 10

    @property
    def entrants(self) -> list[Entrant]:
        return [read_entrant(text) for text in self.methods]


@dataclass(frozen=True)
class Cell:
    """`method`: its index in the plan."""

    method: int
    lr: float
    seed: int
    examples: int
    steps: int

    def file(self, plan: Plan) -> str:
        label = plan.entrants[self.method].label
        name = re.sub(r"[^\w.=]+", "-", label)
        number = zlib.crc32(label.encode()) % 10000  # two labels may have one such name
        return f"{name}-{number:04}-{self.examples or 'all'}-lr{self.lr:g}-seed{self.seed}.json"


@dataclass(frozen=True)
class Tested:
    """Pairs to test on. `facts`: the record that each text has to state."""

    encoded: list[Encoded]
    references: dict[str, list[str]]
    facts: list[str]


class Bench:
    """The model and the data of a plan, read once; it times and carries out cells."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.model = GPT2.load(plan.model)
        self.template = Template(plan.template)
        self.starts = [e.start(self.model, 0) for e in plan.entrants]
        for method in self.starts:
            method.check(self.model.config, self.model.name)
        # one room for all, so that all see the same pairs
        self.room = min(self.model.room(method) for method in self.starts)

    # ---- the data ----

    def _pairs(self, of: str, n: int, domains: Any = None) -> list[Pair]:
        task, path = self.plan.task, getattr(self.plan, {"train": "data"}.get(of, of))
        if task is None:
            return read_pairs(path)
        drawn = world.table_to_text(n, of, 0, domains, world.TASKS[task])
        return [Pair(s, t, f"task {task}, {of} record {i}") for i, (s, t) in enumerate(drawn)]

    def encoded(self, pairs: Sequence[Pair]) -> list[Encoded]:
        return encode_pairs(self.model, pairs, self.template, self.room)

    @cached_property
    def train(self) -> list[Encoded]:
        return self.encoded(self._pairs("train", TRAIN))

    @cached_property
    def valid(self) -> list[Encoded]:
        return self.encoded(self._pairs("valid", VALID))

    @cached_property
    def tests(self) -> dict[str, Tested]:
        """ "test", and for a task that asks for no mapping "unseen": domains that the model has
        never seen."""
        sets = {"test": self._pairs("test", TEST)}
        if self.plan.task is not None and world.TASKS[self.plan.task].stated is dict:
            sets["unseen"] = self._pairs("test", UNSEEN, world.HELD_OUT)
        return {name: self._tested(pairs) for name, pairs in sets.items()}

    def _tested(self, pairs: list[Pair]) -> Tested:
        references = group_references(pairs)
        facts = list(references)
        if self.plan.task is not None:
            stated = world.TASKS[self.plan.task].stated
            records = map(world.read_record, references)
            facts = [world.write_record(stated(record)) for record in records if record]
        return Tested(self.encoded(pairs), references, facts)

    def subset(self, examples: int, seed: int) -> list[Encoded]:
        """So many of the training pairs: another draw for each seed, the same one for each method
        (Li & Liang, section 6.3)."""
        if not examples or examples >= len(self.train):
            return self.train
        chosen = np.random.default_rng([seed, examples]).permutation(len(self.train))[:examples]
        return [self.train[i] for i in chosen]

    # ---- a cell ----

    def carry_out(self, cell: Cell) -> dict[str, Any]:
        """What the file of a cell holds: its scores, or "failed" with the reason."""
        plan, started = self.plan, time.process_time()
        settings = Settings(
            steps=cell.steps,
            batch_size=plan.batch_size,
            lr=cell.lr,
            warmup=cell.steps // 10,
            eval_every=max(1, cell.steps // 4),
            save_every=cell.steps,
            seed=cell.seed,
        )
        method = plan.entrants[cell.method].start(self.model, cell.seed)
        about = {"label": plan.entrants[cell.method].label, **asdict(cell)}
        with tempfile.TemporaryDirectory() as folder:
            try:
                result = train(
                    self.model, method, self.subset(cell.examples, cell.seed), settings,
                    Path(folder) / "run", self.valid, progress=False,
                )  # fmt: skip
            except Diverged as error:
                about["failed"] = str(error).partition(":")[0]
                return about | {"cpu_seconds": time.process_time() - started}
        if result.interrupted:
            raise KeyboardInterrupt
        about |= {"valid_loss": result.best_loss, "best_step": result.best_step}
        if isinstance(method, Prefix):
            method = method.fold()
        scores = {name: self._scores(method, tested) for name, tested in self.tests.items()}
        return about | {"tests": scores, "cpu_seconds": time.process_time() - started}

    def _scores(self, method: Trained, tested: Tested) -> dict[str, float | None]:
        written = evaluate.predict(
            self.model, method, list(tested.references), self.template, Decoding(MOST_TOKENS)
        )
        return {
            "loss": evaluate.mean_loss(self.model, method, tested.encoded),
            "exact_match": evaluate.exact_match(written, list(tested.references.values())),
            "slot_errors": evaluate.slot_error_rate(tested.facts, written),
        }

    # ---- what a method costs ----

    def costs(self) -> list[dict[str, Any]]:
        """For each method: its numbers, the bytes of their file, the seconds of a step and the most
        memory in one. The methods take turns, so that a busy machine slows all of them down."""
        batch = self.train[: self.plan.batch_size]
        costs = [self._size(method) | self._memory(method, batch) for method in self.starts]
        times: list[list[float]] = [[] for _ in self.starts]
        for _ in range(TIMED + 1):
            for seconds, method in zip(times, self.starts, strict=True):
                started = time.perf_counter()
                self._step(method, batch)
                seconds.append(time.perf_counter() - started)
        for cost, seconds in zip(costs, times, strict=True):
            cost["step_seconds"] = median(seconds[1:])  # the first one warms up
        return costs

    def _size(self, method: Trained) -> dict[str, Any]:
        """Of the file: the tensors that `save` writes. A prefix's MLP is no part of them."""
        kept = method.fold() if isinstance(method, Prefix) else method
        with tempfile.TemporaryDirectory() as folder:
            kept.save(folder, self.model)
            n_bytes = sum(path.stat().st_size for path in Path(folder).glob("*.safetensors"))
        n = method.n_parameters
        return {"parameters": n, "share": n / self.model.n_parameters, "file_bytes": n_bytes}

    def _memory(self, method: Trained, batch: Sequence[Encoded]) -> dict[str, int]:
        """The weights, the method, and the peak of what a step allocates: activations, gradients
        and the optimiser's moments."""
        tracemalloc.start()
        try:
            self._step(method, batch)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        own = sum(a.nbytes for a in method.parameters.values())
        return {"memory_bytes": self.model.n_bytes + own + peak}

    def _step(self, method: Trained, batch: Sequence[Encoded]) -> None:
        settings = Settings(steps=1, batch_size=len(batch))
        if isinstance(method, Prefix):
            _, dkv = batch_gradient(self.model, method, batch, settings, 0)
            grads = method.backward(dkv)
        else:
            _, grads = method_gradient(self.model, method, batch, settings, 0)
        AdamW().step(method.parameters, grads, 1e-8)
