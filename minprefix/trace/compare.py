"""Where two computations of the same thing part: the first op, forward and backward, whose output
is off while all its inputs are right.

Two traces of the same inputs are compared tensor by tensor: the largest difference, relative to the
largest value of the first trace's tensor. The records' inputs make a graph. Something went wrong
where a tensor is off and none of its inputs is; all that is off after it follows from it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np

from minprefix.conformance.diagnosis import relative_error
from minprefix.errors import InputError, counted
from minprefix.trace.record import Record, Trace
from minprefix.trace.wiring import BETWEEN

#: by default two tensors agree when their difference is at most this much of the largest value
TOLERANCE = {"float64": 1e-9, "float32": 1e-4}
DIRECTIONS = ("forward", "backward")

#: two traces must have these in common; the words name them in a message
_INPUTS = {
    "tokens": "tokens",
    "offsets": "offsets, where sequences begin",
    "prefix_of": "choice of prefixes, one for each sequence",
    "fingerprint": "weights, by their sha256",
    "prefixes": "prefixes, by their sha256",
    "rows": "rows that predict",
    "targets": "targets",
    "loss_weights": "weights of the targets",
    "reduction": "reduction of the loss",
}


@dataclass(frozen=True)
class Row:
    """One tensor of the two traces."""

    key: str
    direction: str
    op: str
    inputs: tuple[str, ...]  # the nearest ones that both traces have
    error: float  # infinite where it has another shape, is missing or not finite
    off: bool
    at_fault: bool  # off, and none of its inputs is
    inside: bool = False  # an intermediate of an op whose result is compared
    text: str = ""  # the source line that makes it, in the second trace
    line: int = 0
    said: str = ""  # what is wrong with it, where the error does not say it

    @property
    def argument(self) -> bool:
        """The model hands it to an op; no op gives it."""
        return self.op in ("enter", "given")


@dataclass(frozen=True)
class Comparison:
    """Trace `b` against trace `a`, which counts as right."""

    a: str
    b: str
    rows: tuple[Row, ...]  # in the order in which `a` computes them
    tolerance: float
    problem: str = ""
    stopped: str = ""  # why `b` ended early

    @cached_property
    def first(self) -> dict[str, Row | None]:
        """In each direction the first tensor that is off while its inputs are right."""
        return {
            d: next((r for r in self.rows if r.at_fault and r.direction == d), None)
            for d in DIRECTIONS
        }

    @property
    def culprit(self) -> Row | None:
        """The first of both directions."""
        return self.first["forward"] or self.first["backward"]

    @property
    def same(self) -> bool:
        return self.culprit is None

    def inside(self, row: Row) -> Row | None:
        """The first line within the op that made `row` whose value is off."""
        before = reversed(self.rows[: self.rows.index(row)])
        of_op = [*takewhile(lambda r: r.op == row.op, before)]
        return next((r for r in reversed(of_op) if r.inside and r.off), None)


def compare(
    a: Trace, b: Trace, tolerance: float | None = None, wiring: Trace | None = None
) -> Comparison:
    """`a` counts as right. `wiring`: a trace whose records have the inputs that those of `a` lack.
    Raises InputError for traces of different inputs, and for traces with no tensor in common."""
    check_same_inputs(a, b)
    if tolerance is None:
        tolerance = max(TOLERANCE.get(str(t.about.get("dtype")), 1e-9) for t in (a, b))
    graph = a if wiring is None else wiring
    whole = wiring is None and _is_whole(a) and _is_whole(b)
    ours, theirs = _first_of_each(a), _first_of_each(b)
    both = [r for r in graph if r.key in ours and (r.key in theirs or (whole and not r.inside))]
    if not both:
        raise InputError("the two traces have no name in common: trace both with the same names")
    nearest = _nearest(graph, {r.key for r in both})
    ends = {_place(r) for r in both if not r.inside} | {r.op for r in both if not r.inside}
    rows, off = list[Row](), set[str]()

    def add(r: Record, inputs: tuple[str, ...], error: float, said: str, of: Record) -> None:
        """Nothing follows from an intermediate, as what its op gives back is off, too. Where that
        is not compared the intermediate stands for it, and is at fault if nothing was off before.
        """
        alone = r.inside and _place(r) not in ends
        inside, is_off = r.inside and not alone, not error <= tolerance
        at_fault = is_off and not inside and not (off if alone else off.intersection(inputs))
        if is_off:
            off.add(r.key)
        made = (of.text, of.line, said)
        rows.append(Row(r.key, r.direction, r.op, inputs, error, is_off, at_fault, inside, *made))

    for record in both:
        want, got = ours[record.key], theirs.get(record.key)
        error, said = _difference(want, got)
        inputs = nearest.get(record.key, ())
        if whole and got is not None and not record.inside and got.inputs != want.inputs:
            said = _other_inputs(want, got)
            for name in got.inputs:
                if name in theirs and name not in ours:  # an op was given too much
                    if name not in off:
                        add(theirs[name], (), math.inf, "has no counterpart", theirs[name])
                    inputs += (name,)
        add(record, inputs, error, said, record if got is None else got)
    right, checked = (str(t.about.get("implementation", "")) for t in (a, b))
    stopped = str(b.about.get("stopped", ""))
    return Comparison(right, checked, tuple(rows), tolerance, stopped=stopped)


def _place(record: Record) -> str | tuple[str, str]:
    """The op and its block; the op alone for ln_f, head and loss, whose ends have other names."""
    parts = record.name.split(".")
    return (record.op, parts[1]) if parts[0] == "blocks" else record.op


def check_same_inputs(a: Trace, b: Trace) -> None:
    """Raises InputError with the first difference."""
    for name, called in _INPUTS.items():
        x, y = a.about.get(name), b.about.get(name)
        if x is None or y is None or x == y:
            continue
        where, its = "", "are"
        if isinstance(x, list) and isinstance(y, list) and len(x) != len(y):
            where, x, y = " in number", len(x), len(y)
        elif isinstance(x, list) and isinstance(y, list):
            i = next(i for i, (p, q) in enumerate(zip(x, y, strict=True)) if p != q)
            where, x, y, its = f" at {i}", x[i], y[i], "is"
        raise InputError(
            f"the two traces are of different inputs: their {called} differ{where}, the first {its}"
            f" {x!s:.16}, the second {y!s:.16}: trace both on one model, batch and prefix"
        )


def _is_whole(trace: Trace) -> bool:
    """It was taken with every name and with arguments, so what it lacks was not computed."""
    return trace.about.get("names") == ["*"] and bool(trace.about.get("arguments"))


def _first_of_each(trace: Trace) -> dict[str, Record]:
    """The first record of each key; an op's result comes before an intermediate, which a wrong op
    may give back under another name."""
    found: dict[str, Record] = {}
    for record in trace:
        if record.key not in found or (found[record.key].inside and not record.inside):
            found[record.key] = record
    return found


def _nearest(graph: Trace, present: set[str]) -> dict[str, tuple[str, ...]]:
    """key -> the inputs that are compared; one that is not stands for its own inputs. A trace of
    some names knows the inputs of all."""
    made_of = graph.about.get("made_of", {r.key: list(r.inputs) for r in graph})
    lists = made_of.values() if isinstance(made_of, dict) else [None]
    if not all(isinstance(of, list) and all(isinstance(n, str) for n in of) for of in lists):
        raise InputError("a trace does not say what is made of what: it is damaged, save it again")
    nearest: dict[str, tuple[str, ...]] = {}
    for key, inputs in made_of.items():  # in the order of the computation
        found: list[str] = []
        for name in inputs:
            found += [name] if name in present else nearest.get(name, ())
        nearest[key] = tuple(dict.fromkeys(found))
    return nearest


def _difference(want: Record, got: Record | None) -> tuple[float, str]:
    """The error, and words where it is infinite."""
    if got is None:
        return math.inf, "is never computed"
    x, y = want.value, got.value
    if x.shape != y.shape:
        if x.size != y.size or x.ndim == y.ndim:
            return math.inf, f"has shape {y.shape} in the place of {x.shape}"
        y = y.reshape(x.shape)  # (N, NH, hs) and (N, C) hold the same
    error = relative_error(y, x)
    bad = int((~np.isfinite(y)).sum()) if math.isinf(error) else 0
    return error, f"holds {counted(bad, 'number')} not finite" if bad else ""


def _other_inputs(want: Record, got: Record) -> str:
    ours = ", ".join(name for name in want.inputs if name not in got.inputs)
    theirs = ", ".join(name for name in got.inputs if name not in want.inputs)
    return f"is made of {theirs} in the place of {ours or 'nothing'}" if theirs else ""


# ---- as text, as data, as a picture -------------------------------------------------------------


def table(c: Comparison, everything: bool = False) -> str:
    """Every op's error. `everything`: the ops' arguments and intermediates, too."""
    shown = [r for r in c.rows if everything or r.at_fault or not (r.inside or r.argument)]
    wide = max(len(r.key) for r in shown)
    lines = []
    for direction in DIRECTIONS:
        lines.append(direction)
        for r in shown:
            if r.direction == direction:
                mark = "  <- first" if r is c.first[direction] else "  off" if r.off else ""
                error = f"{r.error:.1e}" if math.isfinite(r.error) else "-"
                lines.append(f"  {r.key:<{wide}}  {r.op:<25} {error:>8}{mark}")
    return "\n".join(lines)


def verdict(c: Comparison) -> str:
    """Where the two part, in sentences."""
    of = f" ({c.problem})" if c.problem else ""
    if c.same:
        worst = max((r for r in c.rows if not r.off), key=lambda r: r.error)
        said = (
            f"{c.b} agrees with {c.a}{of}: {counted(len(c.rows), 'tensor')}, the largest error "
            f"{worst.error:.0e} of the largest value, at {worst.key}"
        )
        off = [r.key for r in c.rows if r.off]
        return said + (f"; off, but what their ops give is right: {_listed(off)}" if off else "")
    lines = [f"{c.b} parts from {c.a}{of}, at a tolerance of {c.tolerance:.0e}:"]
    for direction, row in c.first.items():
        said = "nothing is off"
        if row is not None:
            said = sentence(c, row)
        elif any(r.off for r in c.rows if r.direction == direction):
            said = "what is off follows from the forward"
        elif c.stopped and direction == "backward":
            said = "it was not reached"
        lines.append(f"  {direction + ':':<9} {said}")
    if c.stopped:
        lines.append(f"  it ended early: {c.stopped}")
    return "\n".join(lines)


def sentence(c: Comparison, row: Row) -> str:
    """The first tensor that is off, and how."""
    how = row.said or f"is off by {row.error:.1e} of its largest value"
    right = _listed(row.inputs)
    while_ = f"while {right} agree{'' if len(row.inputs) > 1 else 's'}" if right else ""
    if row.op == "enter":
        kept = "backward_params" in row.key and "(dout)" not in row.key
        what = "kept from the forward for it" if kept else "what the model hands to the op"
        said = f"{row.key}, {what}, {how}"
    elif row.op in BETWEEN:
        said = f"{row.key}, the model's own {BETWEEN[row.op].words}, {how}"
    else:
        said = f"{row.op}: {row.key} {how}"
    said, inner = f"{said} {while_}".rstrip(), c.inside(row)
    if inner is None:
        return said
    return f"{said}; inside it the first is {inner.key}, line {inner.line}: {inner.text}"


def _listed(names: Sequence[str]) -> str:
    if len(names) > 4:
        return f"{', '.join(names[:3])} and {len(names) - 3} more"
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def as_json(comparisons: Sequence[Comparison]) -> dict[str, Any]:
    """Everything, for programs."""
    last = comparisons[-1]
    problems = [
        {name: getattr(c, name) for name in ("problem", "tolerance", "same", "stopped")}
        | {
            "first": {
                d: row and {"name": row.key, "op": row.op, "sentence": sentence(c, row)}
                for d, row in c.first.items()
            },
            "tensors": [_entry(row) for row in c.rows],
        }
        for c in comparisons
    ]
    return {"a": last.a, "b": last.b, "same": last.same, "problems": problems}


def _entry(row: Row) -> dict[str, Any]:
    same = ("direction", "op", "inside", "off", "at_fault", "said")
    return {
        "name": row.key,
        "inputs": list(row.inputs),
        "error": row.error if math.isfinite(row.error) else str(row.error),
        **{name: getattr(row, name) for name in same},
    }


def picture(c: Comparison, path: Path) -> None:
    """Draw the error of each tensor, in the order in which they arise, as PNG or SVG."""
    from minprefix.show.drawing import new_figure, plain, save, set_title

    rows = [r for r in c.rows if not r.inside and not r.argument]
    shown = [r for r in c.rows if r in rows or r.at_fault]
    errors = np.array([r.error for r in shown])
    off, number = np.array([r.off for r in shown], bool), np.isfinite(errors)
    top, floor = 10 * max([1.0, *errors[number]]), 1e-17
    heights = np.where(number, np.maximum(errors, floor), top)
    figure = new_figure(9, 4.6)
    axes = figure.subplots()
    axes.plot(range(len(shown)), heights, color="0.75", linewidth=1, zorder=1)
    kinds = (
        ("within the tolerance", "o", "0.55", ~off),
        ("off", "s", "black", off & number),
        ("no number: missing, another shape, not finite", "^", "black", off & ~number),
    )
    for label, marker, colour, these in kinds:
        if these.any():
            style = {"s": 14, "marker": marker, "color": colour, "label": label}
            axes.scatter(np.flatnonzero(these), heights[these], **style)
    axes.axhline(c.tolerance, color="black", linestyle="--", linewidth=1, label="tolerance")
    for direction, row in c.first.items():
        if row is not None:
            i = shown.index(row)
            axes.scatter([i], [heights[i]], s=130, facecolor="none", edgecolor="C3", linewidth=1.8)
            left = i < len(shown) / 2
            axes.annotate(
                f"first {direction}:\n{row.key}", (i, heights[i]), xytext=(8 if left else -8, -40),
                textcoords="offset points", ha="left" if left else "right", fontsize=9,
            )  # fmt: skip
    axes.set_yscale("log")
    axes.set_ylim(floor / 3, top * 5)
    ticks = _where_parts_begin(shown)
    axes.set_xticks(list(ticks), list(ticks.values()), rotation=60, ha="right", fontsize=8)
    back = next((i for i, r in enumerate(shown) if r.direction == "backward"), len(shown))
    axes.axvline(back - 0.5, color="0.5", linewidth=1)
    axes.text(back - 1, top * 3, "forward", ha="right", va="top", color="0.35")
    axes.text(back, top * 3, "backward", ha="left", va="top", color="0.35")
    plain(axes, ylabel="error, of the largest value (lowest: none)")
    axes.grid(False, axis="x")
    title = f"{c.b} against {c.a}" + (f", problem {c.problem}" if c.problem else "")
    set_title(axes, title)
    axes.legend(frameon=False, loc="center right", fontsize=8)
    save(figure, path, title)


def _where_parts_begin(rows: Sequence[Row]) -> dict[int, str]:
    """Index -> the block, or `sums`, that begins there."""
    parts = [
        "sums" if r.op == "sum" else ".".join(r.key.split(".")[:2]) if "blocks." in r.key else ""
        for r in rows
    ]
    return {i: part for i, part in enumerate(parts) if part and parts[i - 1 : i] != [part]}
