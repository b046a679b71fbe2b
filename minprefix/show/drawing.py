"""The parts that all pictures share. matplotlib is imported where it is used: it is slow to import.

Pictures can be read in grey: more is darker, and lines differ in dashes and marks.
"""

import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minprefix.errors import InputError
from minprefix.storage.writing import write_bytes

ENDINGS = (".png", ".svg")
MORE_IS_DARKER = "Blues"
DASHES = ("-", "--", "-.", ":")
MARKS = ("o", "s", "^", "D", "v", "P", "X")  # 4 and 7 have no common factor: 28 pairs
COLOURS = ("#1f77b4", "#b04a00", "#1b7837", "#762a83", "#c51b7d", "#01665e", "#543005")  # dark
LABELLED = 64  # more tokens than this cannot be told apart below a picture


def check_ending(path: Path) -> None:
    """Raises InputError for a picture of another kind, before anything is computed."""
    if path.suffix.lower() not in ENDINGS:
        raise InputError(
            f"picture {str(path)!r}: expected a name that ends in {' or '.join(ENDINGS)}"
        )


def new_figure(width: float, height: float) -> Any:
    """A figure of this size in inches. It is not pyplot's: no global state, no window."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=120, layout="constrained")


def save(figure: Any, path: Path, title: str = "") -> None:
    """Write PNG or SVG, by the name's ending. Equal figures give equal bytes."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    check_ending(path)
    data, about = io.BytesIO(), {"Title": printable(title)}
    with rc_context({"svg.hashsalt": "minprefix"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # a box is drawn for a missing one
        if path.suffix.lower() == ".svg":
            FigureCanvasSVG(figure).print_svg(data, metadata=about | {"Date": None})
        else:
            FigureCanvasAgg(figure).print_png(data, metadata=about)
    write_bytes(path, data.getvalue())


def printable(text: str, most: int | None = None) -> str:
    """The text on one line, its leading blank made visible, cut to `most` characters."""
    shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
    if shown.startswith(" "):
        shown = "␣" + shown[1:]
    return shown if most is None or len(shown) <= most else f"{shown[: most - 1]}…"


def set_title(axes: Any, text: str, **style: Any) -> None:
    """A dollar sign in a name does not begin a formula."""
    axes.set_title(printable(text), parse_math=False, fontsize=10, loc="left", **style)


def headline(figure: Any, text: str) -> None:
    figure.suptitle(printable(text), parse_math=False, fontsize=11, x=0.01, ha="left")


def plain(axes: Any, xlabel: str = "", ylabel: str = "") -> None:
    """The look of a panel with curves or bars."""
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.grid(True, color="0.92")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def name_tokens(axis: Any, tokens: Sequence[str], start: float = 0, size: float = 7) -> None:
    """Name the tokens along an axis whose cells begin at `start`; number them if they are many."""
    step = 1 if len(tokens) <= LABELLED else 10 if len(tokens) <= 200 else 50
    places = range(0, len(tokens), step)
    labels = [printable(tokens[i], 14) if step == 1 else str(i) for i in places]
    rotation = {"rotation": 90} if axis.axis_name == "x" and step == 1 else {}
    axis.set_ticks(
        [start + i + 0.5 for i in places], labels, fontsize=size, parse_math=False, **rotation
    )
    axis.set_tick_params(length=2)
