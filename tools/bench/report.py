"""Tables of a record: as text for a terminal, as Markdown for BENCHMARKS.md."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from minprefix.errors import InputError, counted
from minprefix.storage.reading import read_json, read_text
from minprefix.storage.writing import write_text
from tools.bench import gpu
from tools.bench.summary import (
    EXPLAINED,
    GPU_TARGETS,
    NOISY,
    TARGETS,
    Figure,
    Record,
    Results,
    figures,
    product_shares,
    ratio,
)
from tools.bench.work import (
    DECODE,
    GROWTH,
    GROWTH_CONFIG,
    METHOD_BATCH,
    METHODS,
    NEW,
    PREFIX,
    PROMPT,
    STARTS,
    TITLES,
    TRAIN,
)

SCHEMA = 1
NONE = "-"


@dataclass
class Table:
    title: str
    header: Sequence[str]
    rows: list[Sequence[str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def text(self) -> str:
        lines = [self.header, *self.rows]
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.header))]
        shown = [
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
            for line in lines
        ]
        notes = [textwrap.fill(note, 100, subsequent_indent="  ") for note in self.notes]
        return "\n".join([self.title, *(f"  {line}" for line in shown), *notes])

    def markdown(self, heading: str = "##") -> str:
        lines = [self.header, ["---"] * len(self.header), *self.rows]
        shown = ["| " + " | ".join(line) + " |" for line in lines]
        return "\n".join([f"{heading} {self.title}", "", *shown, "", *self.notes])


#: the folder beside the page
PICTURES = "benchmarks"
#: what a record has, and each of its runs
_KEYS = {
    "command", "date", "finished", "lengths", "machine", "minprefix", "rounds", "sections", "shape",
    "skipped", "threads",
}  # fmt: skip
_RUN = {"answer", "arguments", "error", "round", "seconds", "section", "task", "who", "work"}


def read(path: Path) -> Record:
    """A record from `--json`. Raises InputError for a file that is none."""
    record = read_json(path, "the record of a bench")
    runs = record.get("runs")
    whole = isinstance(runs, list) and all(isinstance(r, dict) and r.keys() >= _RUN for r in runs)
    if record.get("schema") != SCHEMA or not whole or not record.keys() >= _KEYS:
        raise InputError(
            f"{path} is no record of schema {SCHEMA}: give a file that `python -m tools.bench all "
            "--json` wrote"
        )
    return record


def is_gpu(record: Record) -> bool:
    return record.get("backend") == "cupy"  # older ones do not say


# ---- numbers as text --------------------------------------------------------------------------


def seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 1 else f"{value * 1000:.0f} ms"


def milliseconds(value: float) -> str:
    return f"{value * 1000:.1f} ms"


def mega(value: float) -> str:
    return f"{value / 1e6:.0f} MB"


def spread(figure: Figure | None) -> str:
    """A ratio, with the rounds' lowest and highest; a mark where they lie too far apart."""
    if figure is None:
        return NONE
    text = f"{figure.value:.2f}"
    if figure.rounds > 1:
        text += f" ({figure.low:.2f} to {figure.high:.2f})"
    return text + (" too noisy" if figure.noisy else "")


def _median_of(values: dict[int, float], show: Any) -> str:
    return show(median(values.values())) if values else NONE


# ---- the tables -------------------------------------------------------------------------------


def tables(record: Record) -> list[Table]:
    results = Results(record)
    made = [
        _targets(record),
        _train(results),
        _gpu_train(results),
        _products(results),
        _methods(results),
        _decode(results),
        _gpu_decode(results),
        _memory(results),
        _start(results),
        _growth(results),
    ]
    return [table for table in made if table.rows]


def _targets(record: Record) -> Table:
    found = figures(record)
    table = Table("Targets", ["what", "wanted", "measured", "verdict"])
    targets = TARGETS
    if is_gpu(record):
        shapes = record["shape"].split(", ")
        targets = tuple(t for shape in shapes for t in GPU_TARGETS.get(shape, ()))
    for target in targets:
        # they are meant for GPT-2's shapes
        if target.section not in record["sections"] or record["shape"] == "tiny":
            continue
        figure = found.get(target.figure)
        name = target.figure
        if name in EXPLAINED:
            name += f" ({EXPLAINED[name]})"
        wanted, measured = f"{target.bound} {target.value:g}", NONE
        if target.unit == "%":
            wanted = f"{target.bound} {target.value:.0%}"
        elif target.unit:
            wanted += f" {target.unit}"
        if figure is not None:
            measured = f"{figure.value:.0%}" if target.unit == "%" else f"{figure.value:.3g}"
            measured += " s" if target.unit == "s" else ""
        table.rows.append([name, wanted, measured, target.verdict(figure)])
    return table


A_RATIO = (
    "- After one step to warm up{}, each process times its steps and takes the median; a figure is "
    "the median of all rounds. A ratio is taken within one round; beside it stand the lowest and "
    f"the highest. If these are further apart than {NOISY} to 1, the comparison is too noisy."
)


def _train(results: Results) -> Table:
    header = ["work", "who", "a step", "minprefix's time to it", "peak memory", "memory to it"]
    table = Table("A training step", header)
    whos = ["ours", *results.peers("train")]
    for work in TRAIN:
        losses = []
        for who in whos:
            steps, peaks = results.step_seconds(work, who), results.peak(work, who)
            if not steps:
                continue
            # dropout makes another function of it
            if who != "peft-dropout":
                losses += [a["losses"][0] for a in results.answers("train", work, who).values()]
            ours = who == "ours"
            time = ratio(results.step_seconds(work, "ours"), steps)
            memory = ratio(results.peak(work, "ours"), peaks)
            table.rows.append(
                [
                    work,
                    TITLES[who],
                    _median_of(steps, seconds),
                    NONE if ours else spread(time),
                    _median_of(peaks, mega),
                    NONE if ours else spread(memory),
                ]
            )
        table.notes += _unlike(work, losses)
    notes = [f"- {work.name}: {work.what}." for work in TRAIN.values()]
    table.notes += [
        *notes,
        "- A step is forward, backward and AdamW's update of the prefix. All have the same "
        "weights, prefix and token ids. PEFT's model has a dropout of 0, so that all compute the "
        "same function; its documentation trains with 0.1 (`--with-dropout`).",
        A_RATIO.format(" (for long: one of a short sequence)"),
    ]
    return table


def _methods(results: Results) -> Table:
    header = ["method", "trained numbers", "who", "a step", "minprefix's time to it"]
    table = Table("A step of each method", [*header, "peak memory", "memory to it"])
    for method in METHODS:
        mine = results.answers("methods", method)
        trained = next((f"{a['trained']:,}" for a in mine.values()), NONE)
        losses = []
        for who in ("ours", *results.peers("methods")):
            answers = results.answers("methods", method, who)
            if not answers:
                continue
            losses += [a["losses"][0] for a in answers.values()]
            row = [method, trained, TITLES[who]]
            for measured, show in ((results.step_seconds, seconds), (results.peak, mega)):
                theirs = measured(method, who, "methods")
                to = ratio(measured(method, "ours", "methods"), theirs)
                row += [_median_of(theirs, show), NONE if who == "ours" else spread(to)]
            table.rows.append(row)
        table.notes += _unlike(method, losses)
    lora = METHODS["lora"].options
    table.notes += [
        f"- {TRAIN[METHOD_BATCH].what}. A step is forward, backward and AdamW's update of what the "
        "method trains, from the same weights, numbers and token ids. LoRA: rank "
        f"{lora['rank']}, alpha {lora['alpha']:g}, c_attn in every layer. Adapters: Houlsby's, "
        f"{METHODS['adapters'].options['bottleneck']} wide. No dropout.",
        A_RATIO.format(""),
    ]
    return table


def _gpu_train(results: Results) -> Table:
    header = [
        "work", "who", "a step", "tokens/s", "minprefix's time to it", "peak device memory",
        "memory to it", "launches",
    ]  # fmt: skip
    table = Table("A training step on a GPU", header)
    for work in gpu.TRAIN:
        mine, losses = results.step_seconds(work, "ours"), []
        for who in ("ours", *results.peers("train")):
            steps, peaks = results.step_seconds(work, who), results.peak(work, who)
            if not steps:
                continue
            if who != "peft-dropout":
                losses += [a["losses"][0] for a in results.answers("train", work, who).values()]
            launches, ours = results.launches(work, who), who == "ours"
            table.rows.append(
                [
                    work,
                    TITLES[who],
                    _median_of(steps, milliseconds),
                    _median_of(results.tokens_per_second(work, who), lambda n: f"{n:.0f}"),
                    NONE if ours else spread(ratio(mine, steps)),
                    _median_of(peaks, mega),
                    NONE if ours else spread(ratio(results.peak(work, "ours"), peaks)),
                    NONE if launches is None else str(launches),
                ]
            )
        table.notes += _unlike(work, losses)
    table.notes += [
        "- e2e-N: N pairs of the E2E dataset's lengths. float32 and tf32: of matrix products; all "
        "else is float32. Tokens are those of the pairs, no padding.",
        "- A step is forward, backward and AdamW's update of the prefix. All have the same "
        "weights, prefix and token ids; the GPU has ended its work before the clock is read. "
        "Our algorithm in PyTorch pads in attention, as minprefix does there; PEFT's model has a "
        "dropout of 0.",
        A_RATIO.format(""),
        "- Peak device memory is the memory that the process's allocator took (CuPy's pool, "
        "PyTorch's reserved memory): without the driver's own, with PyTorch's workspaces for "
        "matrix products. Launches are the kernels of one step, without copies and fills, as "
        "PyTorch's profiler counts them in a separate process.",
    ]
    return table


def _unlike(work: str, losses: Sequence[float]) -> list[str]:
    """A note where the first losses are not the same."""
    if not losses or max(losses) - min(losses) <= 1e-3 * max(losses):
        return []
    return [
        f"{work}: the first losses are {min(losses):.5f} to {max(losses):.5f}: they did "
        "not do the same work, so their ratios mean nothing."
    ]


def _products(results: Results) -> Table:
    header = ["work", "a step", "linear layers", "of the step", "with attention's", "GFLOP/s"]
    table = Table("The share of matrix products", header)
    for work in TRAIN:
        shares = product_shares(results, work)
        for answer in results.answers("products", work).values():
            linear = median(answer["linear"])
            table.rows.append(
                [
                    work,
                    seconds(median(answer["steps"])),
                    seconds(linear),
                    f"{shares['share of linear products'].value:.0%}",
                    f"{shares['share of matrix products'].value:.0%}",
                    f"{answer['flop'] / linear / 1e9:.0f}",
                ]
            )
    table.notes = [
        "- Linear layers: every product of a step, those of the head and of the backward included, "
        "computed again as one `np.matmul` each, with the same weights and into allocated memory.",
        "- Attention's: the products of the model's own attention, in the same parts and on the "
        "same threads; two forward and five backward, which computes the scores again.",
    ]
    return table


A_TOKEN = (
    f"- Prompts of {PROMPT} tokens, {NEW + 1} new ones. A token: the time from the first token to "
    f"the last, divided by {NEW}; several prompts or beams count as one."
)


def _decode(results: Results) -> Table:
    header = ["case", "who", "a token", "minprefix's time to it", "first token", "all"]
    table = Table("Decoding", header)
    table.rows = _decode_rows(results, "all cases")
    rates = [a["bytes_per_second"] for a in results.answers("decode", "bandwidth").values()]
    table.notes = [A_TOKEN]
    if rates and table.rows:
        n_bytes = next(a["bytes"] for a in results.answers("decode", "bandwidth").values())
        table.notes.append(
            f"- Memory bandwidth: {median(rates) / 1e9:.1f} GB/s, the best of ten dot products of "
            f"{mega(n_bytes)} of float32 numbers with themselves. That is the size of all weights, "
            f"so reading them once takes {n_bytes / median(rates) * 1000:.1f} ms."
        )
    return table


def _decode_rows(results: Results, work: str) -> list[Sequence[str]]:
    rows: list[Sequence[str]] = []
    for case in DECODE:
        ours = results.decoding(case, "ours", work)[0]
        for who in ("ours", *results.peers("decode")):
            token, first, whole = results.decoding(case, who, work)
            if not token:
                continue
            compared = NONE if who == "ours" else spread(ratio(ours, token))
            title = TITLES[who if who == "ours" else "generate"]
            shown = [_median_of(values, seconds) for values in (first, whole)]
            rows.append([case, title, _median_of(token, milliseconds), compared, *shown])
    return rows


def _gpu_decode(results: Results) -> Table:
    header = ["work", "case", "who", "a token", "minprefix's time to it", "first token", "all"]
    table = Table("Decoding on a GPU", header, notes=[A_TOKEN])
    for work in gpu.DECODERS:
        table.rows += [[work, *row] for row in _decode_rows(results, work)]
    return table


def _memory(results: Results) -> Table:
    table = Table("Memory", ["work", "who", "peak", "minprefix's to it"])
    for work in ("e2e-32", "long"):
        for who in ("ours", *results.peers("train", "memory")):
            peaks = results.peak(work, who)
            if peaks:
                to = ratio(results.peak(work, "ours"), peaks)
                shown = NONE if who == "ours" else spread(to)
                table.rows.append([work, TITLES[who], _median_of(peaks, mega), shown])
    for answer in results.answers("memory", "flatness").values():
        peaks = answer["peaks"]
        table.notes.append(
            f"- e2e-10 with minprefix: {mega(peaks[1])} after step 2, {mega(peaks[-1])} after step "
            f"{len(peaks)}."
        )
    table.notes.append(
        "- The high-water mark of the process that trains, with Python and all libraries in it."
    )
    return table


def _start(results: Results) -> Table:
    table = Table("Start", ["what", "median", "lowest", "highest", "less Python's own"])

    def row(name: str, values: Sequence[float], bare: float | None = None) -> None:
        if values:
            shown = [seconds(v) for v in (median(values), min(values), max(values))]
            beyond = NONE if bare is None else seconds(median(values) - bare)
            table.rows.append([name, *shown, beyond])

    pass_times = results.process_seconds("python -c pass")
    bare = median(pass_times) if pass_times else None
    for name in STARTS:
        row(name, results.process_seconds(name), None if name == "python -c pass" else bare)
    peer = "import torch, transformers, peft"
    row(peer, results.process_seconds(peer), bare)
    answers = list(results.answers("start", "checkpoint").values())
    row("open a checkpoint (GPT2.load)", [a["open"] for a in answers])
    row("first token, from load on", [a["open"] + a["first_token"] for a in answers])
    for answer in results.answers("start", "write the checkpoint").values():
        table.notes.append(
            f"- The checkpoint holds {mega(answer['bytes'])} and is in the system's file cache; "
            f"the prompt before the first token has {PROMPT} tokens."
        )
    return table


def _growth(results: Results) -> Table:
    header = ["in", "values", "at", "exponent of time", "exponent of memory"]
    table = Table("Growth", header)
    found = figures(results.record)
    for symbol in GROWTH:
        values, _, _ = results.growth(symbol)
        if not values:
            continue
        fits = [found.get(f"growth: {what} in {symbol}") for what in ("time", "memory")]
        rest = ", ".join(f"{s} = {n}" for s, n in results.growth_fixed(symbol).items())
        exponents = [NONE if f is None else f"{f.value:.2f}" for f in fits]
        table.rows.append([symbol, ", ".join(map(str, values)), rest, *exponents])
    c, deep = GROWTH_CONFIG, results.growth_fixed("L").get("T")
    table.notes = [
        f"- A training step of {c.n_embd} wide, {c.n_head} heads, V = {c.vocab_size}. Memory "
        "is the high-water mark above what the process held before its first step."
    ]
    slots = found.get("growth: time that slots add")
    if slots is not None:
        table.notes.append(
            f"- The time that further slots add grows with exponent {slots.value:.2f}; attention's "
            "own is 1."
        )
    patterns = found.get("growth: memory a layer in patterns")
    if patterns is not None:
        table.notes.append(
            f"- At T = {deep} a layer adds {patterns.value:.2f} times what a stored (NH, T, P+T) "
            "pattern of its attention would take."
        )
    return table


# ---- text and Markdown ------------------------------------------------------------------------


def machine_lines(record: Record) -> list[str]:
    m = record["machine"]
    memory = "" if m["memory_bytes"] is None else f", {m['memory_bytes'] / 2**30:.0f} GiB"
    versions = ", ".join(f"{name} {number or 'absent'}" for name, number in m["packages"].items())
    return [
        *_gpu_lines(m.get("gpu")),
        f"{m['cpu']}, {counted(m['cores'], 'core')}{memory}; {m['os']}",
        f"Python {m['python']}, BLAS {m['blas']}; {versions}",
        f"minprefix {record['minprefix']}, {counted(record['threads'], 'thread')}, shape "
        f"{record['shape']}, P = {PREFIX}, {record['date']}",
    ]


def _gpu_lines(card: dict[str, Any] | None) -> list[str]:
    if card is None:
        return []
    return [
        f"{card['name']}, {card['memory_bytes'] / 2**30:.0f} GiB, compute capability "
        f"{card['compute_capability']}; CuPy {card['cupy']} on CUDA {card['runtime']}, a driver "
        f"for CUDA {card['driver']}"
    ]


def remarks(record: Record) -> list[str]:
    """Sentences to read before the numbers: peers left out, processes that failed, a run cut
    short."""
    said = [f"{TITLES[who]} was not measured: {why}." for who, why in record["skipped"].items()]
    for run in Results(record).failed:
        where = f"{run['section']} {run['work']}, {run['who']}, round {run['round']}"
        said.append(f"{where} failed: {run['error'][0]}.")
    if not record["finished"]:
        said.append("The run was stopped before its end.")
    if record["shape"] == "tiny":
        said.append("This shape tries the bench itself: it has no targets.")
    return said


def text(record: Record) -> str:
    parts = ["\n".join([*machine_lines(record), *remarks(record)])]
    return "\n\n".join([*parts, *(table.text() for table in tables(record))])


UNMEASURED = """\
Not measured: no run on a GPU has been recorded. These commands measure one and add it to this page,
on a machine with an NVIDIA GPU and CuPy, and for the comparison PyTorch for CUDA, transformers and
PEFT. `bench.json` is the record of the figures above.

```
python -m tools.bench all --backend cupy --json gpu.json
python -m tools.bench report bench.json --gpu gpu.json --out BENCHMARKS.md
```
"""


def on_a_gpu(record: Record | None) -> list[str]:
    """The section beside the CPU's figures."""
    if record is None:
        return ["## On a GPU", "", UNMEASURED]
    return _section("On a GPU", record)


def _section(title: str, record: Record) -> list[str]:
    """Of another record than the page's."""
    lines = [f"## {title}", "", f"From the record of `{record['command']}`.", ""]
    lines += [*_facts(record), ""]
    for table in tables(record):
        lines += [table.markdown("###"), ""]
    return lines


def _facts(record: Record) -> list[str]:
    """What stands before the tables."""
    return [
        *(f"- {line}" for line in [*machine_lines(record), *remarks(record)]),
        f"- Lengths of the E2E batches: {record['lengths']}. Fresh processes, which took turns and "
        "had the same number of threads, gave each figure.",
    ]


def markdown(
    record: Record,
    pictures: dict[str, str],
    by_hand: str,
    gpu_record: Record | None = None,
    rivals: Record | None = None,
) -> str:
    """`pictures`: table title -> the picture's path beside the page; `by_hand`: what a person
    wrote, included as it is; `gpu_record`: of another run, with --backend cupy; `rivals`: of
    another, of the command methods."""
    lines = [
        "# Benchmarks",
        "",
        f"Written by `python -m tools.bench report` from the record of `{record['command']}`.",
        "",
        *_facts(record),
        "",
    ]
    for table in tables(record):
        lines += [table.markdown(), ""]
        if table.title in pictures:
            lines += [f"![{table.title}]({pictures[table.title]})", ""]
    if rivals is not None:
        lines += _section("Prefix-tuning's rivals", rivals)
    if not is_gpu(record):
        lines += on_a_gpu(gpu_record)
    return "\n".join(lines) + ("\n" + by_hand if by_hand else "")


def write(
    record: Record, page: Path, gpu_record: Record | None = None, rivals: Record | None = None
) -> list[Path]:
    """The page and its pictures, in a folder `benchmarks` beside it. -> what was written."""
    from tools.bench.pictures import draw

    folder = page.parent / PICTURES
    drawn = draw(record, folder)
    paths = {title: f"{folder.name}/{path.name}" for title, path in drawn.items()}
    by_hand = folder / "optimisations.md"
    said = read_text(by_hand, "what paid") if by_hand.exists() else ""
    write_text(page, markdown(record, paths, said, gpu_record, rivals))
    return [page, *drawn.values()]
