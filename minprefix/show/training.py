"""Pictures of a training, from its log."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from minprefix.errors import InputError, quoted
from minprefix.show import drawing
from minprefix.show.drawing import headline, new_figure, plain, printable, save, set_title
from minprefix.storage.reading import inside
from minprefix.storage.run import LOG, log_lines


class Curves(NamedTuple):
    steps: list[int]
    losses: list[float]
    mean: np.ndarray  # of the losses, over a thirtieth of them; fewer, for they end at the last
    valid: list[tuple[int, float]]  # (step, validation loss)


def _curves(lines: Sequence[dict[str, Any]]) -> Curves:
    losses = [e["loss"] for e in lines]
    width = max(1, len(losses) // 30)
    mean = np.convolve(losses, np.ones(width) / width, mode="valid") if losses else np.empty(0)
    valid = [(e["step"], e["valid_loss"]) for e in lines if "valid_loss" in e]
    return Curves([e["step"] for e in lines], losses, mean, valid)


def loss_picture(path: Path, lines: Sequence[dict[str, Any]], title: str) -> None:
    """The loss of each step, its running mean, and the validation loss, from a log's lines."""
    steps, losses, mean, valid = _curves(lines)
    figure = new_figure(7, 4.2)
    axes = figure.subplots()
    axes.plot(steps, losses, color="0.75", linewidth=1, label="each step")
    width = len(losses) - len(mean) + 1
    if width > 1:
        label = f"mean of {width} steps"
        axes.plot(steps[width - 1 :], mean, color="C0", linewidth=1.8, label=label)
    if valid:
        axes.plot(*zip(*valid, strict=True), "o-", color="C1", markersize=4, label="validation")
    _log_scale(axes, [*losses, *(v for _, v in valid)])
    plain(axes, "step", "loss (nats)")
    axes.set_title(printable(title), parse_math=False)
    axes.legend(frameon=False)
    save(figure, path, title)


def _log_scale(axes: Any, values: Sequence[float]) -> None:
    low, high = min(values, default=1), max(values, default=1)
    if low > 0 and high / low > 20:
        axes.set_yscale("log")


# ---- runs -------------------------------------------------------------------------------------


class Run(NamedTuple):
    name: str
    log: Path
    lines: list[dict[str, Any]]


def read_run(folder: Path) -> Run:
    """Raises InputError for a folder that holds no log, and for a log that no training writes."""
    if not folder.is_dir():
        raise InputError(f"run folder {str(folder)!r} does not exist: give one that train wrote")
    path = inside(folder, LOG, "the log of the run")
    if not path.exists():
        raise InputError(
            f"{folder} holds no log of a training ({LOG} is missing): give a folder that train or "
            "demo wrote"
        )
    lines = log_lines(path)
    if not lines:
        raise InputError(f"{path} holds no step: wait for the first, or train again")
    before = 0
    for line in lines:
        if line["step"] <= before:
            raise InputError(f"{path} has step {line['step']} after step {before}: it is damaged")
        before = line["step"]
        for name in ("loss", "valid_loss", "grad_norm"):
            if name in line and not _number(line[name]):
                said = quoted(line[name])
                raise InputError(f"{path}, step {before}: {name} is {said}: it is damaged")
    return Run(str(folder), path, lines)


def _number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


class ByLayer(NamedTuple):
    """What a log says of the keys and values of each layer, at some of its steps."""

    steps: list[int]
    layers: list[int]
    values: np.ndarray  # (steps, layers, 2)


def by_layer(run: Run, name: str) -> ByLayer | None:
    """`name` is "grad_norm" or "distance". None for the log of an earlier version, which has none
    of it. Raises InputError for values that are not a list of numbers for each step."""
    keys = ("layers", f"{name}_keys", f"{name}_values")
    lines = [line for line in run.lines if keys[1] in line]
    if not lines:
        return None
    layers = lines[0].get("layers")
    for line in lines:
        lists: list[Any] = [line.get(key) for key in keys]
        if not (
            lists[0] == layers
            and all(isinstance(numbers, list) for numbers in lists)
            and len({len(numbers) for numbers in lists}) == 1
            and all(_number(x) and x >= 0 for numbers in lists for x in numbers)
        ):
            raise InputError(
                f"{run.log}, step {line['step']}: {keys[1]} and {keys[2]} are not a number for "
                "each of its layers: it is damaged"
            )
    if not layers:
        raise InputError(f"{run.log}: no layer has a prefix, so there is nothing to draw")
    values = np.array([[line[key] for key in keys[1:]] for line in lines], float)
    return ByLayer([line["step"] for line in lines], layers, values.swapaxes(1, 2))


# ---- losses of several runs -------------------------------------------------------------------


def losses_picture(path: Path, runs: Sequence[Run]) -> str | None:
    """The losses of several runs together. -> a sentence about what could not be drawn. Raises
    InputError for more runs than can be told apart."""
    most = len(drawing.DASHES) * len(drawing.MARKS)
    if len(runs) > most:
        raise InputError(f"{len(runs)} runs are too many to be told apart: give at most {most}")
    names = _short_names([run.name for run in runs])
    curves = [_curves(run.lines) for run in runs]
    title = "Loss while training" if len(runs) == 1 else f"Loss while training, {len(runs)} runs"
    panels = 2 if any(c.valid for c in curves) else 1
    figure = new_figure(7 if panels == 1 else 11, 4.4 + 0.2 * -(-len(runs) // 3))
    axes = np.atleast_1d(figure.subplots(1, panels, sharey=True))
    for i, (c, name) in enumerate(zip(curves, names, strict=True)):
        colour, dash, mark = drawing.COLOURS[i % 7], drawing.DASHES[i % 4], drawing.MARKS[i % 7]
        style = {"color": colour, "linestyle": dash, "linewidth": 1.6}
        style |= {"marker": mark, "markersize": 5, "markerfacecolor": "white"}
        # marks in different places, so that those of overlapping lines can be seen
        marked = (0.04 + 0.11 * (i % len(runs)) / len(runs), 0.11)
        steps = c.steps[-len(c.mean) :]
        axes[0].plot(steps, c.mean, markevery=marked, **style, label=printable(name))
        if c.valid:
            axes[1].plot(*zip(*c.valid, strict=True), **style)
    set_title(axes[0], "on the training batches (running mean)")
    plain(axes[0], "step", "loss (nats)")
    if panels == 2:
        set_title(axes[1], "on the validation pairs")
        plain(axes[1], "step")
    _log_scale(axes[0], [x for c in curves for x in (*c.mean, *(v for _, v in c.valid))])
    headline(figure, title)
    style = {"loc": "outside lower center", "ncols": 3, "frameon": False, "fontsize": 8}
    for text in figure.legend(**style, handlelength=4).get_texts():
        text.set_parse_math(False)
    save(figure, path, title)
    without = [name for name, c in zip(names, curves, strict=True) if not c.valid]
    logged = panels == 1 or not without
    return None if logged else f"no validation loss was logged in {', '.join(without)}"


def _short_names(names: Sequence[str]) -> list[str]:
    """The last parts of their paths, where those differ."""
    short = [Path(name).name for name in names]
    return short if len(set(short)) == len(short) and all(short) else list(names)


# ---- of each layer ----------------------------------------------------------------------------


def gradients_picture(path: Path, run: Run) -> str | None:
    """The norm of the gradient at the prefix, by layer. -> a sentence about what the log lacks."""
    found = by_layer(run, "grad_norm")
    every = [(e["step"], e["grad_norm"]) for e in run.lines if "grad_norm" in e]
    lacking = (
        f"{run.log} has no gradient norm of each layer: an earlier version wrote it; train again "
        "to have them"
    )
    if found is None and not every:
        raise InputError(lacking)
    title = f"Norm of the gradient at the prefix while training: {run.name}"
    _layers_picture(path, title, found, every, "norm of the gradient", "(before clipping)", True)
    return lacking if found is None else None


def distance_picture(path: Path, run: Run) -> None:
    """The distance of the prefix from its start, by layer."""
    found = by_layer(run, "distance")
    if found is None:
        raise InputError(
            f"{run.log} has no distance of the prefix from its start: an earlier version wrote it "
            "or began the run; train again to have them"
        )
    title = f"Distance of the prefix from its start while training: {run.name}"
    _layers_picture(path, title, found, (), "Euclidean distance", "from the start", False)


def _layers_picture(
    path: Path,
    title: str,
    found: ByLayer | None,
    every: Sequence[tuple[int, float]],
    label: str,
    more: str,
    logarithmic: bool,
) -> None:
    """The norms over all layers above, those of each layer below, keys and values apart."""
    rows = 0.0 if found is None else min(7.0, max(1.8, 0.22 * len(found.layers)))
    figure = new_figure(9.5, 3.4 if found is None else 3.8 + rows)
    below: list[Any] = []
    if found is None:
        axes = figure.subplots()
    else:
        grid = figure.add_gridspec(2, 2, height_ratios=(2.4, rows))
        axes, *below = (figure.add_subplot(grid[at]) for at in ((0, slice(None)), (1, 0), (1, 1)))
    if every:
        all_of = "of all that is trained, each step"
        axes.plot(*zip(*every, strict=True), color="0.75", linewidth=1, label=all_of)
    if found is not None:
        total = np.sqrt((found.values**2).sum(axis=1))  # (steps, 2)
        for i, (what, dash, mark) in enumerate((("keys", "--", "s"), ("values", "-", "o"))):
            style = {"marker": mark, "markersize": 4, "markerfacecolor": "white"}
            style |= {"color": drawing.COLOURS[i], "label": f"{what} of all layers"}
            axes.plot(found.steps, total[:, i], dash, **style)
    plain(axes, "step", f"{label}\n{more}")
    if logarithmic:
        axes.set_yscale("log", nonpositive="mask")
    else:
        axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=8, ncols=3, loc="lower right", bbox_to_anchor=(1, 1))
    headline(figure, title)
    if found is not None:
        _heat_maps(figure, below, found, label, logarithmic)
    save(figure, path, title)


def _heat_maps(
    figure: Any, panels: Sequence[Any], found: ByLayer, label: str, logarithmic: bool
) -> None:
    from matplotlib.colors import LogNorm, Normalize

    steps, n = np.array(found.steps, float), len(found.layers)
    middle = (steps[1:] + steps[:-1]) / 2
    edges = np.concatenate([[steps[0] - 0.5], middle, [steps[-1] + 0.5]])
    values, scale = found.values, Normalize(0, found.values.max() or 1)
    if logarithmic and values.any():
        low = values[values > 0].min()
        scale = LogNorm(low, max(values.max(), low * 1.1))
        values = np.maximum(values, low)  # 0 has no place on the scale
    for i, (axes, what) in enumerate(zip(panels, ("keys", "values"), strict=True)):
        mesh = axes.pcolormesh(
            edges, np.arange(n + 1), values[:, :, i].T, norm=scale, cmap=drawing.MORE_IS_DARKER,
            rasterized=True,
        )  # fmt: skip
        axes.invert_yaxis()  # layer 0 on top
        every = -(-n // 24)
        axes.set_yticks(np.arange(0, n, every) + 0.5, found.layers[::every])
        axes.set_xlabel("step")
        set_title(axes, f"{what}, by layer")
    panels[0].set_ylabel("layer")
    figure.colorbar(mesh, ax=list(panels), label=f"{label}\n(darker: larger)")
