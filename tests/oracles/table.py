"""The table: per op and tensor the worst error of each oracle over all cases of the suite."""

import platform
from collections.abc import Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path

from tests.oracles.agreement import ILL, TARGETS, Score, complete, rows

PATH = Path(__file__).with_name("TABLE.md")


def worst(scores: Sequence[Score]) -> Score | None:
    """The one that misses its target by most, or is closest to missing it."""
    return max(scores, key=lambda s: s.error / s.allowed, default=None)


def _entry(scores: Sequence[Score]) -> str:
    score = worst(scores)
    if score is None:
        return "–"
    flag = " **missed**" if score.missed else ""
    return f"{score.error:.1e} {score.case}{flag}" if score.error else "0"


def main_table(scores: Sequence[Score]) -> list[str]:
    lines = [
        "| op | tensor | " + " | ".join(TARGETS) + " |",
        "|---|---|" + "---|" * len(TARGETS),
        "| | *target* | " + " | ".join(f"{t:.0e}" for t in TARGETS.values()) + " |",
    ]
    cells: dict[tuple[tuple[str, str], str], list[Score]] = {}
    for s in scores:
        if s.condition <= ILL:
            cells.setdefault((s.row, s.oracle), []).append(s)
    for op, tensor in rows():
        entries = (_entry(cells.get(((op, tensor), oracle), [])) for oracle in TARGETS)
        lines.append(f"| {op} | `{tensor}` | " + " | ".join(entries) + " |")
    return lines


def ill_table(scores: Sequence[Score]) -> list[str]:
    lines = [
        "| op | case | condition | " + " | ".join(TARGETS) + " |",
        "|---|---|---|" + "---|" * len(TARGETS),
    ]
    ill = [s for s in scores if s.condition > ILL]
    for op, case in dict.fromkeys((s.group, s.case) for s in ill):
        mine = [s for s in ill if (s.group, s.case) == (op, case)]
        entries = []
        for oracle in TARGETS:
            score = worst([s for s in mine if s.oracle == oracle])
            flag = " **missed**" if score is not None and score.missed else ""
            entries.append(
                "–"
                if score is None
                else f"{score.error:.1e} of {score.allowed:.0e}, `{score.tensor}`{flag}"
            )
        condition = max(s.condition for s in mine)
        lines.append(f"| {op} | {case} | {condition:.0e} | " + " | ".join(entries) + " |")
    return lines


def problems(scores: Sequence[Score]) -> list[str]:
    """A sentence for each target that is missed and for each tensor without an oracle."""
    missed = [
        f"{s.group}/{s.case}: {s.tensor} differs from {s.oracle} by {s.error:.2g}, "
        f"{s.allowed:.0e} is allowed"
        for s in scores
        if s.missed
    ]
    return missed + complete(scores)


def text(scores: Sequence[Score]) -> str:
    packages = ("numpy", "torch", "transformers", "autograd", "minprefix")
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    found = problems(scores)
    parts = [
        "# How far four unlike oracles are from what the suite expects",
        f"Written by `python -m tests.oracles --write` on {date.today()} with Python "
        f"{platform.python_version()}, {versions}. {len(scores)} comparisons, "
        f"{len(found)} of them beyond their target.",
        "An entry is the worst `max|delta| / max|expected|` over all cases of the suite (absolute "
        "where the expected tensor is 0), and the case. `drawn`: shapes drawn as the suite's own "
        "`drawn` checks draw them. float32 cases are computed in float64 on the very numbers that "
        "single precision leaves.",
        "- **PyTorch**: forwards written anew with PyTorch, gradients by its autograd; they know "
        "nothing of this project's code. **transformers**: its GPT-2, with hooks for what lies "
        "between. Both confirm forwards and gradients.\n"
        "- **complex step**, **differences** (central, fourth order) and **autograd** (HIPS "
        "autograd over the source of the reference) differentiate the reference's own forward, so "
        "they confirm gradients alone: `–` elsewhere. In an op, every entry is taken by the "
        "complex step and by autograd, and by differences 8 drawn entries and a drawn direction. "
        "In a model, autograd takes every entry, the complex step every entry of the prefixes' "
        "gradients and 4 drawn ones of every other tensor, differences a drawn direction of "
        "length 1.\n"
        "- Clipping in training is to the very norm; PyTorch's `clip_grad_norm_` divides by norm + "
        "1e-6, which ten steps of AdamW turn into a difference of 1e-7.",
        "\n".join(main_table(scores)),
        "## Cases that magnify rounding",
        "Here two right computations differ by more, because the numbers that are rounded are "
        f"`condition` times larger than the result (above {ILL:.0f}: scores and logits in an "
        "exponent, a mean that layernorm takes off, a row of `dx` that cancels, as it does nearly "
        "all where C = 2). Allowed are 1e-14 times the condition, for differences 1e-10 times. An "
        "entry is the error, what is allowed, and the tensor.",
        "\n".join(ill_table(scores)),
    ]
    if found:
        parts += ["## Missed", "\n".join(f"- {sentence}" for sentence in found)]
    return "\n\n".join(parts) + "\n"


def rows_of(markdown: str) -> set[tuple[str, str]]:
    """The op and tensor of each row of a written table."""
    cells = [line.split("|") for line in markdown.splitlines() if line.startswith("| ")]
    return {(c[1].strip(), c[2].strip().strip("`")) for c in cells}
