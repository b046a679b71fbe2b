"""Pictures of a comparison of methods: quality against trained parameters and against examples."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from minprefix.comparison.table import SCORES, Row, Spread
from minprefix.show import drawing
from minprefix.show.drawing import headline, new_figure, plain, printable, save

QUALITY = ("loss", "exact_match")
PERCENT = 100


def by_parameters(path: Path, rows: Sequence[Row], title: str, test: str = "test") -> None:
    """A point for each row, its standard deviation as a bar."""

    def draw(axes: Any, score: str) -> None:
        for i, row in enumerate(rows):
            value = _spread(row, test, score)
            if value is not None:
                axes.errorbar(row.parameters, value.mean, value.sd, **_style(i, row.label, "none"))

    _panels(path, rows, title, "trained parameters", test, draw)


def by_examples(path: Path, rows: Sequence[Row], title: str, test: str = "test") -> None:
    """A line for each method, over the sizes of its training data."""
    labels = list(dict.fromkeys(row.label for row in rows))

    def draw(axes: Any, score: str) -> None:
        for i, label in enumerate(labels):
            of = sorted((r for r in rows if r.label == label), key=lambda r: r.examples)
            points = [(r.examples, v) for r in of if (v := _spread(r, test, score)) is not None]
            if points:
                n, values = zip(*points, strict=True)
                means, sds = zip(*values, strict=True)
                dash = drawing.DASHES[i % 4]
                axes.errorbar(n, means, sds, **_style(i, label, dash))

    sizes = sorted({row.examples for row in rows})
    _panels(path, rows, title, "training pairs", test, draw, sizes)


def _spread(row: Row, test: str, score: str) -> Spread | None:
    value = row.tests.get(test, {}).get(score)
    if value is None or score == "loss":
        return value
    return Spread(*(PERCENT * x for x in value))


def _style(i: int, label: str, dash: str) -> dict[str, Any]:
    return {
        "color": drawing.COLOURS[i % 7], "marker": drawing.MARKS[i % 7], "linestyle": dash,
        "fillstyle": "full" if i < 7 else "none", "capsize": 3,
        "clip_on": False, "label": printable(label, 60),
    }  # fmt: skip


def _panels(
    path: Path,
    rows: Sequence[Row],
    title: str,
    xlabel: str,
    test: str,
    draw: Callable[[Any, str], None],
    ticks: Sequence[int] = (),
) -> None:
    """The loss on the left, the exact matches on the right, one legend below."""
    n = len({row.label for row in rows})
    figure = new_figure(10, 4.2 + 0.2 * -(-n // 3))
    for axes, score in zip(figure.subplots(1, 2), QUALITY, strict=True):
        draw(axes, score)
        axes.set_xscale("log")
        if ticks:
            axes.set_xticks(ticks, list(map(str, ticks)))
            axes.minorticks_off()
        plain(axes, xlabel, f"{test} {SCORES[score]}")
        axes.set_ylim(bottom=0)
    headline(figure, title)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    style = {"loc": "outside lower center", "ncols": 3, "frameon": False, "fontsize": 8}
    for words in figure.legend(handles, labels, **style).get_texts():
        words.set_parse_math(False)
    save(figure, path, title)
