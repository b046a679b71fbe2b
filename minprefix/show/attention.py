"""Pictures of attention: how much goes to the slots of the prefix, and how much to the tokens."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np

from minprefix import ops as _ops
from minprefix.batch import Batch
from minprefix.errors import InputError, counted
from minprefix.gpt2 import embedding, forward
from minprefix.model import GPT2, prepare
from minprefix.ops.contract import Array
from minprefix.prefix import Prefix
from minprefix.show import drawing
from minprefix.show.drawing import LABELLED, MORE_IS_DARKER, name_tokens, plain, save


def patterns(model: GPT2, ids: Sequence[int], prefix: Prefix | None) -> list[Array]:
    """-> for each layer the attention pattern (NH, T, P+T) over this sequence; P is 0 in a layer
    that sees no prefix."""
    model, prefix = model.to("numpy"), prefix and prefix.to("numpy")
    stream = prepare(model, Batch.pack([ids]), prefix)
    w, reference = model.weights, _ops.get("reference")
    _, blocks = forward(embedding(stream, w, reference), stream, w, model.config, reference)
    # the reference's cache has the patterns
    return [cast(Any, block.attn.attention).pattern[0].real for block in blocks]


def shares(model: GPT2, ids: Sequence[int], prefix: Prefix) -> Array:
    """-> (layers, NH, T): the share of each token's attention that goes to the prefix, in the
    layers that have one."""
    every = patterns(model, ids, prefix)
    return np.stack([every[i][:, :, : prefix.length].sum(axis=-1) for i in prefix.layers])


def shares_picture(
    path: Path, share: Array, layers: Sequence[int], length: int, tokens: Sequence[str], name: str
) -> None:
    """Draw the share of attention on the prefix by head and token, layer below layer; above it the
    mean at each token, to its right each head's mean. `share` (layers, NH, T): see `shares`."""
    n, NH, T = share.shape
    rows = share.reshape(n * NH, T)
    width, height = _inches(T), min(10.0, max(2.6, 0.15 * len(rows)))
    label = 0.9 if T <= LABELLED else 0.2  # room for the labels below
    figure = drawing.new_figure(width + 3.4, height + 2.4 + label)
    grid = figure.add_gridspec(2, 2, width_ratios=(width, 1.3), height_ratios=(1.5, height))
    above, beside = figure.add_subplot(grid[0, 0]), figure.add_subplot(grid[1, 1])
    heat = figure.add_subplot(grid[1, 0])

    image = heat.imshow(rows, cmap=MORE_IS_DARKER, vmin=0, vmax=1, aspect="auto",
                        interpolation="nearest", extent=(0, T, len(rows), 0))  # fmt: skip
    for axes in (heat, beside):
        for j in range(1, n):
            axes.axhline(j * NH, color="black", linewidth=0.5)
    heat.set_yticks([j * NH + NH / 2 for j in range(n)], [f"layer {i}" for i in layers], fontsize=8)
    if len(rows) <= 60:
        heads = [str(i % NH) for i in range(len(rows))]
        heat.yaxis.remove_overlapping_locs = False  # the middle head has its layer's place
        heat.set_yticks(np.arange(len(rows)) + 0.5, heads, minor=True, fontsize=6)
        heat.tick_params(axis="y", which="major", length=0, pad=14)
        heat.tick_params(axis="y", which="minor", length=2)
    heat.set_ylabel("layer and head" if len(rows) <= 60 else "layer, its heads from above")
    heat.set_xlabel("token, from the first" if T <= LABELLED else "number of the token")
    name_tokens(heat.xaxis, tokens)

    at = np.arange(T) + 0.5
    above.plot(at, rows.mean(axis=0), "o-" if T <= LABELLED else "-", color="black", markersize=3,
               linewidth=1.2, clip_on=False, label="all heads and layers")  # fmt: skip
    even = length / (length + 1 + np.arange(T))
    above.plot(at, even, "--", color="0.5", linewidth=1.2, label="if attention were even")
    plain(above, "", "share, mean")
    above.set(xlim=(0, T), ylim=(0, 1))
    above.tick_params(labelbottom=False)
    above.legend(frameon=False, fontsize=7, loc="lower right", ncols=2, bbox_to_anchor=(1, 1))

    beside.barh(np.arange(len(rows)) + 0.5, rows.mean(axis=1), height=0.8, color="0.35")
    plain(beside, "share, mean\nof all tokens")
    beside.grid(False, axis="y")
    beside.set(xlim=(0, 1), ylim=(len(rows), 0))
    beside.tick_params(labelleft=False, left=False)
    figure.colorbar(image, ax=beside, label="share of attention on the prefix", fraction=0.3)
    title = (
        f"Share of attention on the prefix: {name}\n{counted(length, 'slot')}, "
        f"{counted(T, 'token')}; {share.mean():.0%} over all layers, heads and tokens"
    )
    _save(figure, path, title)


class Columns(NamedTuple):
    """Where the columns of a pattern lie; a token's column is 1 wide."""

    P: int
    T: int
    slots: float  # the width of the prefix's columns together
    start: float  # where the tokens' columns begin, after a gap
    width: float

    @classmethod
    def of(cls, P: int, T: int) -> "Columns":
        slots = min(P, 2.0 * max(T, 5))  # many slots leave room for the tokens
        start = slots + max(1.0, T / 40) if P else 0.0
        return cls(P, T, slots, start, start + T)


def patterns_picture(
    path: Path, pattern: Array, length: int, tokens: Sequence[str], layer: int,
    heads: Sequence[int], name: str,
) -> None:  # fmt: skip
    """Draw the attention patterns (NH, T, P+T) of some heads of a layer: a row is a query token and
    sums to 1. The prefix's columns stand apart. `length`: P in this layer."""
    P, T, one = length, pattern.shape[1], len(heads) == 1
    columns = Columns.of(P, T)
    across = next((n for n in (5, 4, 3) if len(heads) % n == 0), 1 if one else 4)
    down = -(-len(heads) // across)
    height = min(_inches(T) * (1 if one else 0.7), 26 / down)
    width = min(height * columns.width / T, 14 / across)  # cells are square, or narrower
    figure = drawing.new_figure(across * width + 2.2, down * (height + 0.5) + (1.9 if one else 1.2))
    panels = figure.subplots(down, across, squeeze=False, sharex=True, sharey=True)
    for axes in panels.flat[len(heads) :]:
        axes.set_visible(False)
    for axes, head in zip(panels.flat, heads, strict=False):
        image = _pattern(axes, pattern[head], columns)
        on = f": {pattern[head, :, :P].sum(axis=-1).mean():.0%} on the prefix" if P else ""
        drawing.set_title(axes, f"head {head}{on}")
        if one and width / columns.width > 0.1:
            _name_columns(axes, columns, tokens)
        else:  # the columns are in the order of the rows
            ends = [(0.0, columns.slots, "prefix"), (columns.start, columns.width, "tokens")]
            shown = ends if P else ends[1:]
            places = [(left + right) / 2 for left, right, _ in shown]
            axes.set_xticks(places, [what for _, _, what in shown], fontsize=7)
            axes.tick_params(axis="x", length=0)
        if axes.get_subplotspec().is_first_col():
            axes.set_ylabel("query token")
            name_tokens(axes.yaxis, tokens, size=7 if one else 6)
    figure.colorbar(
        image, ax=panels, label="attention (hatched: hidden)", pad=0.02, aspect=30,
        ticks=(0, 0.01, 0.05, 0.1, 0.25, 0.5, 1), fraction=0.4 / across / width,
    )  # fmt: skip
    what = counted(T, "token")
    what = f"{counted(P, 'slot')} of the prefix and {what}" if P else f"{what}, no prefix"
    title = f"Attention in layer {layer}: {name}\n{what}"
    _save(figure, path, title)


def _pattern(axes: Any, pattern: Array, columns: Columns) -> Any:
    """One head's (T, P+T)."""
    from matplotlib.colors import PowerNorm
    from matplotlib.patches import Rectangle

    P, T = columns.P, columns.T
    prefix, tokens = (0, columns.slots), (columns.start, columns.width)
    style = {"cmap": MORE_IS_DARKER, "norm": PowerNorm(0.5, 0, 1), "aspect": "auto",
             "interpolation": "nearest"}  # fmt: skip
    hidden = np.triu(np.ones((T, T), bool), 1)
    behind: Any = {"facecolor": "white", "edgecolor": "0.8", "hatch": "////", "lw": 0, "zorder": -1}
    axes.add_patch(Rectangle((columns.start, 0), T, T, **behind))
    shown = np.ma.masked_array(pattern[:, P:], hidden)
    image = axes.imshow(shown, extent=(*tokens, T, 0), **style)
    if P:
        axes.imshow(pattern[:, :P], extent=(*prefix, T, 0), **style)
    for left, right in (prefix, tokens) if P else (tokens,):
        frame = Rectangle((left, 0), right - left, T, fill=False, edgecolor="black", lw=0.8)
        axes.add_patch(frame)
        frame.set_clip_on(False)
    axes.set(xlim=(0, columns.width), ylim=(T, 0))
    axes.spines[:].set_visible(False)
    return image


def _name_columns(axes: Any, columns: Columns, tokens: Sequence[str]) -> None:
    P = columns.P
    name_tokens(axes.xaxis, tokens, columns.start)
    if P:
        slots = range(0, P, 1 if P <= 20 else P // 10)
        named = [label.get_text() for label in axes.get_xticklabels()]
        places = [(i + 0.5) * columns.slots / P for i in slots] + list(axes.get_xticks())
        axes.set_xticks(places, [*(f"slot {i}" for i in slots), *named], parse_math=False)
        axes.tick_params(axis="x", rotation=90)
    axes.set_xlabel("slots of the prefix, then tokens" if P else "key token")


def _save(figure: Any, path: Path, title: str) -> None:
    """Under a headline of two lines: the last line break is ours, one in a name is not shown."""
    first, _, second = title.rpartition("\n")
    drawing.headline(figure, first)
    figure._suptitle.set_text(f"{figure._suptitle.get_text()}\n{second}")
    save(figure, path, title.partition("\n")[0])


def _inches(T: int) -> float:
    """The width of T cells."""
    return min(11.0, max(3.0, 0.17 * T))


def check_place(model: GPT2, layer: int, head: int | None) -> None:
    """Raises InputError for a layer or a head that the model does not have."""
    c = model.config
    for what, value, n in (("layer", layer, c.n_layer), ("head", head, c.n_head)):
        if value is not None and not 0 <= value < n:
            raise InputError(f"--{what} is {value}: model {model.name!r} has {what}s 0 to {n - 1}")
