"""From the record to figures: medians, ratios with their spread, fitted exponents; and the targets
for them. Nothing but the record is read."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from statistics import median
from typing import Any

import numpy as np

from tools.bench import gpu
from tools.bench.work import DECODE, GROWTH, GROWTH_CONFIG, METHODS, PROMPT, TRAIN

NOISY = 1.25  # highest / lowest ratio of the rounds of one comparison
Record = dict[str, Any]


@dataclass(frozen=True)
class Figure:
    """The median of the rounds, with the lowest and the highest."""

    value: float
    low: float
    high: float
    rounds: int = 1

    @classmethod
    def of(cls, values: Iterable[float]) -> "Figure":
        """Raises ValueError when there are none."""
        found = list(values)
        return cls(median(found), min(found), max(found), len(found))

    @property
    def noisy(self) -> bool:
        """The rounds disagree too much to say anything."""
        return self.low <= 0 or self.high / self.low > NOISY


def ratio(ours: dict[int, float], theirs: dict[int, float]) -> Figure | None:
    """Round by round, so that what slowed a whole round cancels. None without a common round."""
    rounds = sorted(ours.keys() & theirs.keys())
    if not rounds:
        return None
    return Figure.of(ours[r] / theirs[r] for r in rounds)


def exponent(x: Sequence[float], y: Sequence[float]) -> float | None:
    """p of the y = a x^p that fits best on a log-log scale; None with fewer than three points
    above 0."""
    points = [(a, b) for a, b in zip(x, y, strict=True) if a > 0 and b > 0]
    if len(points) < 3:
        return None
    logs = np.log(np.array(points))
    return float(np.polyfit(logs[:, 0], logs[:, 1], 1)[0])


# ---- what the record holds --------------------------------------------------------------------


class Results:
    """The answers of the record, by what was asked."""

    def __init__(self, record: Record) -> None:
        self.record = record
        self.runs: list[Record] = [run for run in record["runs"] if run["answer"] is not None]
        self.failed: list[Record] = [run for run in record["runs"] if run["answer"] is None]

    def answers(self, section: str, work: str, who: str = "ours") -> dict[int, Any]:
        """By round."""
        return {
            run["round"]: run["answer"]
            for run in self.runs
            if (run["section"], run["work"], run["who"]) == (section, work, who)
        }

    def peers(self, *sections: str) -> list[str]:
        """The other competitors, in the order in which they first appear."""
        whos = [run["who"] for run in self.record["runs"] if run["section"] in sections]
        return [who for who in dict.fromkeys(whos) if who not in ("ours", "start")]

    def step_seconds(self, work: str, who: str, section: str = "train") -> dict[int, float]:
        return {r: median(a["times"]) for r, a in self.answers(section, work, who).items()}

    def peak(self, work: str, who: str, section: str = "train") -> dict[int, float]:
        """Of the training processes, in bytes; on a GPU of its memory."""
        answers = self.answers(section, work, who) or self.answers("memory", work, who)
        return {r: a.get("device_peak", a["peak"]) for r, a in answers.items()}

    def tokens_per_second(self, work: str, who: str) -> dict[int, float]:
        """Source and target, without padding."""
        seconds = self.step_seconds(work, who)
        for run in self.runs:
            if (run["section"], run["work"], run["who"]) == ("train", work, who):
                n = sum(source + target for source, target in run["arguments"]["lengths"])
                return {r: n / each for r, each in seconds.items()}
        return {}

    def launches(self, work: str, who: str) -> int | None:
        """Of a step."""
        counts = [a["launches"] for a in self.answers("launches", work, who).values()]
        return counts[0] if counts else None

    def decoding(self, case: str, who: str, work: str = "all cases") -> list[dict[int, float]]:
        """Seconds a token after the first, to the first, and for all."""
        token, first, whole = {}, {}, {}
        for run in self.runs:
            if (run["section"], run["work"], run["who"]) != ("decode", work, who):
                continue
            r, times = run["round"], run["answer"]["cases"][case]
            first[r], whole[r] = median(times["first"]), median(times["whole"])
            token[r] = (whole[r] - first[r]) / run["arguments"]["new"]
        return [token, first, whole]

    def process_seconds(self, work: str) -> list[float]:
        return [
            run["seconds"] for run in self.runs if run["section"] == "start" and run["work"] == work
        ]

    def growth(self, symbol: str) -> tuple[list[int], list[float], list[float]]:
        """The values of the symbol, the seconds of a step, and the bytes above what the process
        held before it."""
        found: dict[int, list[Any]] = {}
        for run in self.runs:
            if run["section"] == "growth" and run["work"].startswith(f"{symbol} = "):
                found.setdefault(run["arguments"]["sizes"][symbol], []).append(run["answer"])
        values = sorted(found)
        seconds = [median(median(a["times"]) for a in found[v]) for v in values]
        above = [median(a["peak"] - a["resident"] for a in found[v]) for v in values]
        return values, seconds, above

    def growth_fixed(self, symbol: str) -> dict[str, int]:
        """The other sizes while the symbol grows."""
        for run in self.runs:
            if run["section"] == "growth" and run["work"].startswith(f"{symbol} = "):
                return {s: n for s, n in run["arguments"]["sizes"].items() if s != symbol}
        return {}

    def growth_pattern_bytes(self) -> int | None:
        """What the attention patterns (NH, T, P+T) of one layer would take where L grows."""
        sizes = self.growth_fixed("L")
        if not sizes:
            return None
        T, P = sizes["T"], sizes["P"]
        return 4 * sizes["B"] * GROWTH_CONFIG.n_head * T * (P + T)


# ---- figures ----------------------------------------------------------------------------------


def figures(record: Record) -> dict[str, Figure]:
    """Every number that a target may name."""
    results, found = Results(record), {}

    def put(name: str, figure: Figure | None) -> None:
        if figure is not None:
            found[name] = figure

    for work in (*TRAIN, *gpu.TRAIN):
        for who in results.peers("train", "memory"):
            seconds = ratio(results.step_seconds(work, "ours"), results.step_seconds(work, who))
            put(f"train {work}: time against {who}", seconds)
            memory = ratio(results.peak(work, "ours"), results.peak(work, who))
            put(f"train {work}: peak memory against {who}", memory)
        for part, figure in product_shares(results, work).items():
            put(f"train {work}: {part}", figure)
        digests = {a["sha256"] for a in results.answers("train", work).values()}
        if digests:
            put(f"train {work}: different results", Figure.of([len(digests)]))
    for method, who in product(METHODS, results.peers("methods")):
        of_each = (results.step_seconds(method, each, "methods") for each in ("ours", who))
        put(f"methods {method}: time against {who}", ratio(*of_each))
    for answer in results.answers("memory", "flatness").values():
        peaks = answer["peaks"]
        if len(peaks) > 2:
            put("memory: last step against step 2", Figure.of([peaks[-1] / peaks[1]]))
    for case in DECODE:
        token = results.decoding(case, "ours")[0]
        for who in results.peers("decode"):
            put(f"decode {case}: time a token against {who}",
                ratio(token, results.decoding(case, who)[0]))  # fmt: skip
        for work, who in product(gpu.DECODERS, results.peers("decode")):
            token = results.decoding(case, "ours", work)[0]
            put(f"decode {work}, {case}: time a token against {who}",
                ratio(token, results.decoding(case, who, work)[0]))  # fmt: skip
    put("decode: share of the bandwidth", bandwidth_share(results))
    _put_start(results, put)
    _put_growth(results, put)
    return found


def product_shares(results: Results, work: str) -> dict[str, Figure]:
    """Of linear layers alone, and with attention's: one figure over the repetitions."""
    found = {}
    for answer in results.answers("products", work).values():
        linear = [a / b for a, b in zip(answer["linear"], answer["steps"], strict=True)]
        attention = [a / b for a, b in zip(answer["attention"], answer["steps"], strict=True)]
        both = [a + b for a, b in zip(linear, attention, strict=True)]
        found["share of linear products"] = Figure.of(linear)
        found["share of matrix products"] = Figure.of(both)
    return found


def bandwidth_share(results: Results) -> Figure | None:
    """How much of the time a token takes (one prompt, greedy) reading all weights would take."""
    token = results.decoding("1 prompt, greedy", "ours")[0]
    reading = {
        r: a["bytes"] / a["bytes_per_second"]
        for r, a in results.answers("decode", "bandwidth").items()
    }
    return ratio(reading, token)


def _put_start(results: Results, put: Any) -> None:
    bare = results.process_seconds("python -c pass")
    for work in ("import minprefix", "minprefix --help"):
        seconds = results.process_seconds(work)
        if seconds:
            put(f"start: {work}", Figure.of(seconds))
        if seconds and bare:
            put(f"start: {work}, beyond Python's own", Figure.of([median(seconds) - median(bare)]))
    answers = results.answers("start", "checkpoint").values()
    if answers:
        put("start: open a checkpoint", Figure.of([a["open"] for a in answers]))
        put("start: first token", Figure.of([a["open"] + a["first_token"] for a in answers]))


def _put_growth(results: Results, put: Any) -> None:
    for symbol in GROWTH:
        values, seconds, above = results.growth(symbol)
        for what, y in (("time", seconds), ("memory", above)):
            p = exponent(values, y)
            if p is not None:
                put(f"growth: {what} in {symbol}", Figure.of([p]))
        if symbol == "P" and values:
            added = exponent(*_beyond_first(values, seconds))
            if added is not None:
                put("growth: time that slots add", Figure.of([added]))
        pattern = results.growth_pattern_bytes()
        if symbol == "L" and len(values) > 2 and pattern:
            per_layer = float(np.polyfit(values, above, 1)[0])
            put("growth: memory a layer in patterns", Figure.of([per_layer / pattern]))


def _beyond_first(x: Sequence[float], y: Sequence[float]) -> tuple[list[float], list[float]]:
    return [a - x[0] for a in x[1:]], [b - y[0] for b in y[1:]]


# ---- targets ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Target:
    section: str
    figure: str  # of `figures`
    bound: str  # "at most", "at least"
    value: float
    unit: str = ""  # "s", "%"

    def verdict(self, figure: Figure | None) -> str:
        """met, or missed and by how much of the target."""
        if figure is None:
            return "not measured"
        over = figure.value / self.value - 1
        if self.bound == "at least":
            over = 1 - figure.value / self.value
        said = f"missed by {math.ceil(round(over * 1000, 6)) / 10:g}%" if over > 0 else "met"
        if self.unit != "s" and figure.noisy:
            said += f", but too noisy to say (rounds from {figure.low:.2f} to {figure.high:.2f})"
        return said


TARGETS = (
    Target("train", "train e2e-10: time against peft", "at most", 0.30),
    Target("train", "train e2e-10: time against torch", "at most", 0.80),
    Target("train", "train e2e-32: time against peft", "at most", 0.30),
    Target("train", "train e2e-32: time against torch", "at most", 0.80),
    Target("train", "train rectangle: time against peft", "at most", 0.60),
    Target("train", "train long: time against peft", "at most", 0.60),
    *(
        Target("train", f"train {work}: share of matrix products", "at least", 0.87, "%")
        for work in TRAIN
    ),
    *(Target("train", f"train {work}: different results", "at most", 1) for work in TRAIN),
    Target("methods", "methods lora: time against peft", "at most", 0.5),
    Target("methods", "methods prompt-tuning: time against peft", "at most", 0.5),
    Target("memory", "train e2e-32: peak memory against peft", "at most", 0.35),
    Target("memory", "train long: peak memory against peft", "at most", 1.0),
    Target("memory", "memory: last step against step 2", "at most", 1.02),
    *(
        Target("decode", f"decode {case}: time a token against peft", "at most", 0.45)
        for case in DECODE
    ),
    Target("decode", "decode: share of the bandwidth", "at least", 0.70, "%"),
    Target("start", "start: import minprefix, beyond Python's own", "at most", 0.15, "s"),
    Target("start", "start: minprefix --help", "at most", 0.25, "s"),
    Target("start", "start: open a checkpoint", "at most", 0.1, "s"),
    Target("growth", "growth: time in B", "at most", 1.1),
    Target("growth", "growth: memory in B", "at most", 1.1),
    Target("growth", "growth: time that slots add", "at most", 1.1),
    Target("growth", "growth: memory a layer in patterns", "at most", 1.0),
)


def _gpu_targets(shape: str) -> Iterable[Target]:
    for work in gpu.TRAIN.values():
        if work.shape == shape:
            if gpu.BATCHES[work.batch] >= 32:
                yield Target("train", f"train {work.name}: time against peft", "at most", 0.5)
            yield Target("train", f"train {work.name}: time against torch", "at most", 1.0)
            yield Target("train", f"train {work.name}: peak memory against peft", "at most", 0.5)
            yield Target("train", f"train {work.name}: different results", "at most", 1)
    for name, decoder in gpu.DECODERS.items():
        for case in DECODE if decoder[0] == shape else ():
            figure = f"decode {name}, {case}: time a token against peft"
            yield Target("decode", figure, "at most", 1.0)


#: of a record with --backend cupy, by shape
GPU_TARGETS = {shape: tuple(_gpu_targets(shape)) for shape in gpu.BOTH}

#: figure -> an explanation beside its name
EXPLAINED = {
    **{f"train {work}: share of matrix products": "attention's with them" for work in TRAIN},
    "decode: share of the bandwidth": f"one prompt of {PROMPT} tokens, greedy",
    "growth: time that slots add": "exponent in the slots added to the fewest: attention's is 1",
    "growth: memory a layer in patterns": "at T = 1000, in stored (NH, T, P+T) patterns",
    "memory: last step against step 2": "high-water marks of one process",
}
