"""What schematic drawings are drawn on: boxes, arrows and text, measured in tenths of an inch."""

from collections.abc import Iterable
from typing import Any

WIDTH = 46.0  # of each drawing, in tenths of an inch
SIZE = 9.5  # of the font, in points
#: hatches and fills that can be told apart in grey
SLOT, HIDDEN = "////", "xxxx"
LIGHT, DARK = "0.9", "0.72"


class Sheet:
    """A figure that is drawn on in tenths of an inch; y grows downwards from the title."""

    def __init__(self, title: str, height: float) -> None:
        import matplotlib.pyplot as plt

        self.figure = plt.figure(figsize=(WIDTH / 10, height / 10 + 0.35))
        self.figure.suptitle(title, fontsize=SIZE + 1.5, y=0.995, va="top")
        self.axes = self.figure.add_axes((0, 0, 1, height / (height + 3.5)))
        self.axes.set(xlim=(0, WIDTH), ylim=(height, 0))
        self.axes.set_axis_off()

    def show(self, words: str) -> None:
        """`words`: what the drawing says, for readers who cannot see it."""
        import matplotlib.pyplot as plt

        self.figure.set_label(" ".join(words.split()))
        plt.show()

    def text(self, x: float, y: float, text: str, to: str = "center", **style: Any) -> None:
        """`to`: the side of the text that stands at x."""
        style = {"ha": to, "va": "center", "fontsize": SIZE, "linespacing": 1.25} | style
        self.axes.text(x, y, text, None, **style)

    def box(
        self,
        x: float,
        y: float,
        w: float,
        h: float,
        text: str = "",
        hatch: str = "",
        fill: str = "white",
    ) -> None:
        """With its upper left corner at x, y."""
        from matplotlib.patches import Rectangle

        style: dict[str, Any] = {
            "edgecolor": "0.55" if hatch else "black",
            "facecolor": fill,
            "linewidth": 0,
        }
        self.axes.add_patch(Rectangle((x, y), w, h, hatch=hatch, **style))
        self.axes.add_patch(Rectangle((x, y), w, h, fill=False, edgecolor="black", linewidth=0.9))
        if text:
            pad = {"facecolor": fill, "edgecolor": "none", "pad": 1.2}
            self.text(x + w / 2, y + h / 2, text, bbox=pad if hatch else None)

    def cells(
        self, x: float, y: float, s: float, rows: Iterable[Iterable[tuple[str, str, str]]]
    ) -> None:
        """Squares of size s, each with its text, hatch and fill."""
        for i, row in enumerate(rows):
            for j, (text, hatch, fill) in enumerate(row):
                self.box(x + j * s, y + i * s, s, s, text, hatch, fill)

    def arrow(
        self, x: float, y: float, to_x: float, to_y: float, back: bool = False, head: bool = True
    ) -> None:
        """`back`: of the backward, dashed."""
        style = {
            "arrowstyle": "-|>" if head else "-",
            "linestyle": (0, (4, 2.5)) if back else "-",
            "linewidth": 1.3,
            "color": "black",
            "shrinkA": 0,
            "shrinkB": 0,
            "mutation_scale": 11,
        }
        self.axes.annotate("", (to_x, to_y), (x, y), arrowprops=style)

    def cross(self, x: float, y: float) -> None:
        self.axes.plot([x], [y], "x", color="black", markersize=9, markeredgewidth=2.2)

    def legend(self, y: float, *entries: tuple[float, str, str, str]) -> None:
        """Each entry: where it begins, its text, hatch and fill."""
        for x, text, hatch, fill in entries:
            self.box(x, y - 0.8, 1.8, 1.6, "", hatch, fill)
            self.text(x + 2.5, y, text, "left")
