"""Pictures. matplotlib is imported where it is used: it is slow to import."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from minprefix import files


def loss_picture(
    path: Path,
    steps: Sequence[int],
    losses: Sequence[float],
    valid: Sequence[tuple[int, float]],
    title: str,
) -> None:
    """The loss of each step, its running mean, and the validation loss, as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure  # not pyplot: no global state, no window

    figure = Figure(figsize=(7, 4.2), dpi=120, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.plot(steps, losses, color="0.75", linewidth=1, label="each step")
    width = max(1, len(losses) // 30)
    if width > 1:
        mean = np.convolve(losses, np.ones(width) / width, mode="valid")
        axes.plot(
            steps[width - 1 :], mean, color="C0", linewidth=1.8, label=f"mean of {width} steps"
        )
    if valid:
        axes.plot(*zip(*valid, strict=True), "o-", color="C1", markersize=4, label="validation")
    low = min([*losses, *(v for _, v in valid)], default=1)
    if low > 0 and max(losses, default=1) / low > 20:
        axes.set_yscale("log")
    axes.set_xlabel("step")
    axes.set_ylabel("loss (nats)")
    axes.set_title(title)
    axes.grid(True, color="0.92")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    data = io.BytesIO()
    canvas.print_png(data)
    files.write_bytes(path, data.getvalue())
