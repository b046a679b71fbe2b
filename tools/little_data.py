"""The comparison of lesson 12: `python -m tools.little_data --run` tunes the shipped model by a
prefix and by all of its weights, with few examples and more, few steps and more, several seeds.
It writes docs/little-data.json; a run that was stopped goes on. Without --run it prints the table
from that record."""

import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from minprefix import GPT2, Batch, Prefix, generate, loss, loss_and_grad, loss_and_weight_grads
from minprefix.cli.parser import Parser
from minprefix.data.world import ALL_DOMAINS, REGISTERS, draw_record, table_to_text, write_record
from minprefix.evaluate import slot_error_rate
from minprefix.model import digest
from minprefix.ops.threads import limit
from minprefix.optim import AdamW
from minprefix.storage.reading import read_json
from minprefix.storage.writing import write_json

RECORD = Path(__file__).parents[1] / "docs" / "little-data.json"
SEEN = ("restaurant", "film", "person", "city")  # the topics of the examples; books are held back
EXAMPLES, STEPS, SEEDS = (4, 64), (20, 60, 200), range(4)
BATCH, SLOTS = 4, 10
#: the first three rates of each method. While the best by `valid` is the first or the last one, one
#: more is tried beyond it, so that the rate chosen has a worse one on either side.
RATES = {"prefix": (0.03, 0.1, 0.3), "full": (1e-4, 3e-4, 1e-3)}
TESTS = ("seen", "books", "other tasks", "ships")

Pairs = list[tuple[str, str]]


class Cell(NamedTuple):
    """One tuning, but for its rate."""

    examples: int
    steps: int
    method: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.examples} examples, {self.steps} steps, {self.method}, seed {self.seed}"


def cells() -> Iterator[Cell]:
    for seed in SEEDS:
        for examples in EXAMPLES:
            for steps in STEPS:
                for method in RATES:
                    yield Cell(examples, steps, method, seed)


# ---- data --------------------------------------------------------------------------------------


def described(n: int, split: str, seed: int, topics: Sequence[str]) -> Pairs:
    return list(table_to_text(n, split, seed, {topic: ALL_DOMAINS[topic] for topic in topics}))


def other_tasks() -> Pairs:
    """Three records of each of five cues, which nobody tunes on."""
    rng, found = np.random.default_rng(0), []
    for cue in ("question", "chat", "headline", "list", "recommend"):
        for _ in range(3):
            record = draw_record(rng, "test")
            found.append((f"{cue}\n{write_record(record)}", REGISTERS[cue][0](record, rng)))
    return found


def pack(model: GPT2, pairs: Pairs) -> Batch:
    """The loss counts the tokens of the targets, and the one that ends a text."""
    prompts = [model.encode(source + "\n") for source, _ in pairs]
    ends = [model.encode(f"{target}<|endoftext|>") for _, target in pairs]
    both = [p + t for p, t in zip(prompts, ends, strict=True)]
    return Batch.pack(both, loss_from=[len(p) for p in prompts])


class Bench:
    """The base model, and what a tuned one is measured on."""

    def __init__(self) -> None:
        self.base = GPT2.load("tiny")
        self.pairs = {
            "seen": described(12, "test", 1, SEEN),
            "books": described(12, "test", 1, ["book"]),
            "other tasks": other_tasks(),
            "ships": described(12, "test", 1, ["ship"]),
        }
        self.batches = {name: pack(self.base, pairs) for name, pairs in self.pairs.items()}
        self.valid = pack(self.base, described(12, "valid", 1, SEEN))


# ---- tuning ------------------------------------------------------------------------------------


def tune(base: GPT2, cell: Cell, rate: float) -> tuple[GPT2, Prefix | None]:
    """AdamW, the rate falling in a straight line to 0. -> the tuned model and None, or the base and
    its prefix."""
    examples = described(cell.examples, "train", cell.seed, SEEN)
    rng, adam = np.random.default_rng(cell.seed), AdamW()
    model, prefix = base, None
    if cell.method == "full":
        copies = {name: np.array(a) for name, a in base.weights.items()}
        model = GPT2(base.config, copies, base.tokenizer, "tuned")
    else:
        prefix = Prefix.normal(base.config, SLOTS, std=0.02, seed=cell.seed)
    for step in range(cell.steps):
        chosen = rng.permutation(len(examples))[:BATCH]
        batch = pack(base, [examples[i] for i in chosen])
        now = rate * (1 - step / cell.steps)
        if prefix is None:
            _, grads = loss_and_weight_grads(model, batch)
            adam.step(model.weights, grads, now)
        else:
            _, dkv = loss_and_grad(model, prefix, batch)
            adam.step(prefix.parameters, {"kv": dkv}, now)
    return model, prefix


def measure(bench: Bench, cell: Cell) -> dict[str, Any]:
    """The best rate by `valid`, and what the model tuned with it does on each test."""
    tuned: dict[float, tuple[GPT2, Prefix | None]] = {}
    on_valid: dict[float, float] = {}

    def try_rate(rate: float) -> None:
        tuned[rate] = tune(bench.base, cell, rate)
        on_valid[rate] = loss(tuned[rate][0], bench.valid, tuned[rate][1])

    for rate in RATES[cell.method]:
        try_rate(rate)
    while (best := min(on_valid, key=lambda rate: on_valid[rate])) in (
        low := min(tuned),
        high := max(tuned),
    ):
        try_rate(float(f"{_next(low, up=False) if best == low else _next(high, up=True):.0e}"))
    model, prefix = tuned[best]
    found: dict[str, Any] = {"rate": best, "valid": {f"{r:g}": on_valid[r] for r in sorted(tuned)}}
    for name, batch in bench.batches.items():
        # for another task the prefix is taken out
        found[name] = loss(model, batch, None if name == "other tasks" else prefix)
    for name in ("seen", "books"):
        sources = [source for source, _ in bench.pairs[name]]
        said = generate(model, [s + "\n" for s in sources], prefix=prefix, max_new_tokens=60)
        found[f"{name}: facts wrong"] = slot_error_rate(sources, said)
    return found


def _next(rate: float, up: bool) -> float:
    """The rate beside it in 1, 3, 10, 30, ..."""
    one = f"{rate:e}".startswith("1")
    return rate * (3 if one else 10 / 3) if up else rate / (10 / 3 if one else 3)


def run() -> None:
    limit(1)  # the model is small: more threads only wait for each other
    record = read_json(RECORD, "the record") if RECORD.is_file() else {}
    bench = Bench()
    before = digest(bench.base.weights)
    record["base"] = {name: loss(bench.base, batch) for name, batch in bench.batches.items()}
    for cell in cells():
        if cell.name not in record:
            record[cell.name] = measure(bench, cell)
            print(f"{cell.name}: {record[cell.name]['valid']}", flush=True)
            write_json(RECORD, record)
    assert digest(bench.base.weights) == before, "tuning has changed the base model"


# ---- the table ---------------------------------------------------------------------------------


def column(record: dict[str, Any], cell: Cell, what: str) -> list[float]:
    """One number for each seed."""
    return [record[cell._replace(seed=seed).name][what] for seed in SEEDS]


def table(record: dict[str, Any]) -> list[str]:
    """Markdown. Mean and standard deviation over the seeds, of the loss in nats a token."""
    lines = [
        "| examples, steps | method | seen | books | other tasks | full ahead on books |",
        "|---|---|---|---|---|---|",
    ]
    for examples in EXAMPLES:
        for steps in STEPS:
            of = {method: Cell(examples, steps, method, 0) for method in RATES}
            books = [column(record, of[method], "books") for method in RATES]
            gap = statistics.mean(books[0]) / statistics.mean(books[1])
            ahead = sum(p > f for p, f in zip(*books, strict=True))
            for method in RATES:
                parts = []
                for name in ("seen", "books", "other tasks"):
                    losses = column(record, of[method], name)
                    parts.append(f"{statistics.mean(losses):.4f} ± {statistics.stdev(losses):.4f}")
                last = f"{ahead} of {len(SEEDS)}, {gap:.1f} times" if method == "full" else ""
                lines.append(f"| {examples}, {steps} | {method} | {' | '.join(parts)} | {last} |")
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m tools.little_data", description=__doc__)
    parser.add_argument(
        "--run", action="store_true", help="tune (about 20 minutes a seed on a busy machine)"
    )
    args = parser.parse_args(arguments)
    if args.run:
        run()
    record = read_json(RECORD, "the record")
    print("\n".join(table(record)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
