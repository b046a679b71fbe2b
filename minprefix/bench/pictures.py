"""Pictures of a record. matplotlib is imported where it is used: it is slow to import."""

import io
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from minprefix import files
from minprefix.bench.summary import Record, Results, exponent
from minprefix.bench.work import DECODE, GROWTH, TITLES, TRAIN

COLOURS = {"ours": "C0", "torch": "C1", "peft": "0.6", "peft-dropout": "0.8"}
WHO = ("ours", "torch", "peft", "peft-dropout")
Bars = dict[str, dict[str, float]]  # group -> who -> height


def draw(record: Record, folder: Path) -> dict[str, Path]:
    """-> the title of the table that a picture belongs to, and its file."""
    results, drawn = Results(record), {}
    train = _training_bars(results, lambda work, who: results.step_seconds(work, who), 1)
    peaks = _training_bars(results, lambda work, who: results.peak(work, who), 1e9)
    if train:
        figure, axes = _figure(9.5, 3.6, 1, 2)
        _bars(axes[0], train, "seconds a step")
        _bars(axes[1], peaks, "peak memory, GB")
        drawn["A training step"] = _save(figure, folder / "train.png")
    decode: Bars = {}
    for case in DECODE:
        for who in WHO:
            token = results.decoding(case, who)[0]
            if token:
                group = decode.setdefault(case.replace(", ", "\n"), {})
                group[who] = median(token.values()) * 1000
    if decode:
        figure, axes = _figure(6.5, 3.6, 1, 1)
        _bars(axes, decode, "milliseconds a token")
        drawn["Decoding"] = _save(figure, folder / "decode.png")
    if any(results.growth(symbol)[0] for symbol in GROWTH):
        drawn["Growth"] = _growth(results, folder / "growth.png")
    return drawn


def _training_bars(results: Results, values: Any, unit: float) -> Bars:
    bars: Bars = {}
    for work in TRAIN:
        for who in WHO:
            found = values(work, who)
            if found:
                bars.setdefault(work, {})[who] = median(found.values()) / unit
    return bars


def _bars(axes: Any, bars: Bars, label: str) -> None:
    """On a log scale, so that a ratio is the same length everywhere."""
    whos = [who for who in WHO if any(who in group for group in bars.values())]
    width = 0.8 / len(whos)
    for j, who in enumerate(whos):
        at = [i for i, group in enumerate(bars.values()) if who in group]
        heights = [group[who] for group in bars.values() if who in group]
        x = [i + (j - (len(whos) - 1) / 2) * width for i in at]
        shown = axes.bar(x, heights, width, color=COLOURS[who], label=TITLES[who])
        axes.bar_label(shown, fmt=lambda v: f"{v:.3g}", fontsize=7, padding=1)
    axes.set_yscale("log")
    axes.margins(y=0.15)
    axes.set_xticks(range(len(bars)), list(bars))
    axes.set_ylabel(label)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)


def _growth(results: Results, path: Path) -> Path:
    figure, panels = _figure(9.5, 6.4, 2, 2)
    for axes, symbol in zip(panels.flat, GROWTH, strict=True):
        values, seconds, above = results.growth(symbol)
        if not values:
            continue
        memory = axes.twinx()
        _line(axes, values, seconds, "o-", "C0", "seconds a step")
        _line(memory, values, [b / 1e6 for b in above], "s--", "C1", "MB above the start")
        axes.set_xscale("log")
        axes.set_xticks(values, [str(v) for v in values])
        axes.minorticks_off()
        axes.set_xlabel(symbol)
        rest = ", ".join(f"{s} = {n}" for s, n in results.growth_fixed(symbol).items())
        fits = [exponent(values, y) for y in (seconds, above)]
        said = ["?" if p is None else f"{p:.2f}" for p in fits]
        axes.set_title(
            f"time ~ {symbol}^{said[0]}, memory ~ {symbol}^{said[1]}   ({rest})", fontsize=10
        )
    return _save(figure, path)


def _line(
    axes: Any, x: Sequence[float], y: Sequence[float], style: str, colour: str, label: str
) -> None:
    axes.plot(x, y, style, color=colour, markersize=4)
    axes.set_yscale("log")
    axes.set_ylabel(label, color=colour)
    axes.tick_params(axis="y", which="both", labelcolor=colour, labelsize=8)
    axes.spines["top"].set_visible(False)


def _figure(width: float, height: float, rows: int, columns: int) -> tuple[Any, Any]:
    from matplotlib.figure import Figure  # not pyplot: no global state, no window

    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    return figure, figure.subplots(rows, columns)


def _save(figure: Any, path: Path) -> Path:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    data = io.BytesIO()
    FigureCanvasAgg(figure).print_png(data)
    files.write_bytes(path, data.getvalue())
    return path
