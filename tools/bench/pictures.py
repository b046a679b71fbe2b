"""Pictures of a record. matplotlib is imported where it is used: it is slow to import."""

import io
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from minprefix.storage.writing import write_bytes
from tools.bench.summary import Record, Results, exponent
from tools.bench.work import DECODE, GROWTH, TITLES, TRAIN

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
        _legend(figure, axes[0])
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
        _legend(figure, axes)
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
    """Bars as parts of PEFT's (of our own where it is absent), from 0; what was measured stands
    above them."""
    base = "peft" if all("peft" in group for group in bars.values()) else "ours"
    bars = {name: group for name, group in bars.items() if base in group}  # of a run cut short
    whos = [who for who in WHO if any(who in group for group in bars.values())]
    width = 0.84 / max(1, len(whos))
    for j, who in enumerate(whos):
        shown = [(i, g[who], g[who] / g[base]) for i, g in enumerate(bars.values()) if who in g]
        x = [i + (j - (len(whos) - 1) / 2) * width for i, _, _ in shown]
        drawn = axes.bar(x, [part for _, _, part in shown], width, color=COLOURS[who])
        drawn.set_label(TITLES[who])
        axes.bar_label(drawn, [f"{value:.3g}" for _, value, _ in shown], fontsize=7, padding=1)
    axes.set_xticks(range(len(bars)), list(bars))
    axes.set_ylabel(f"part of {TITLES[base]}'s")
    axes.set_title(label, fontsize=10)
    axes.margins(y=0.1)
    axes.spines[["top", "right"]].set_visible(False)


def _legend(figure: Any, axes: Any) -> None:
    """Below the picture, where no bar is."""
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4,
                  frameon=False, fontsize=8)  # fmt: skip


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
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

    axes.plot(x, y, style, color=colour, markersize=4)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
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
    write_bytes(path, data.getvalue())
    return path
