"""A tensor as cells in a terminal: coloured, or as digits where there are no colours."""

import shutil

import numpy as np

from minprefix.ops.contract import Array

#: how much of a tensor is shown; the columns where there is no terminal to ask
ROWS, COLUMNS = 40, 30
#: of a terminal's 256 colours: from 0 to ever more negative, and to ever more positive
COLD, HOT = (255, 189, 153, 111, 69, 27), (255, 224, 217, 210, 203, 196)


def heat(a: Array, title: str, colour: bool, bar: int = 0) -> str:
    """`a` has at most two axes. `bar`: draw a line before this column, if it is not the first."""
    cells = np.atleast_2d(np.asarray(a).real.astype(np.float64))
    finite = np.abs(cells[np.isfinite(cells)])
    most = float(finite.max(initial=0.0))
    width = 2 if colour else 3
    fit = (shutil.get_terminal_size().columns - 6) // width if colour else COLUMNS
    lines = [f"{title}: {_legend(most, colour)}"]
    for n, row in enumerate(cells[:ROWS]):
        drawn = [_cell(x / (most or 1.0), colour) for x in row[:fit]]
        if 0 < bar < len(drawn):
            drawn.insert(bar, "|" if colour else " |")
        lines.append(f"{n:4} {''.join(drawn)}")
    if cells.shape[0] > ROWS or cells.shape[1] > fit:
        shown = f"{min(ROWS, cells.shape[0])} x {min(fit, cells.shape[1])}"
        lines.append(f"     ({shown} of {cells.shape[0]} x {cells.shape[1]} cells)")
    return "\n".join(lines)


def _legend(most: float, colour: bool) -> str:
    if not most:
        return "all 0"
    if colour:
        return f"{-most:.3g} is blue, 0 white, {most:.3g} red; ? is not finite"
    return f"in ninths of the largest, {most:.3g}; . is less than half a ninth, ? is not finite"


def _cell(x: float, colour: bool) -> str:
    """x from -1 to 1."""
    if not np.isfinite(x):
        return " ?" if colour else "  ?"
    if colour:
        ramp = HOT if x > 0 else COLD
        return f"\x1b[48;5;{ramp[round(abs(x) * (len(ramp) - 1))]}m  \x1b[0m"
    ninths = round(9 * x)
    return f"{ninths:3}" if ninths else "  ."
