"""What the cells of a comparison come to: a row for each method and number of examples."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any, NamedTuple

from minprefix.comparison.cells import Plan
from minprefix.errors import counted


class Spread(NamedTuple):
    """The mean over the seeds, and the standard deviation of a sample (0 for one seed)."""

    mean: float
    sd: float


@dataclass(frozen=True)
class Row:
    """`lr`: the chosen one; None where every learning rate diverged, and then there are no scores.
    `tests`: test set -> score -> its spread, None for what the data has no score of."""

    label: str
    examples: int
    parameters: int
    share: float
    file_bytes: int
    step_seconds: float
    memory_bytes: int
    steps: int | None
    lr: float | None
    valid_loss: Spread | None
    tests: dict[str, dict[str, Spread | None]]

    @classmethod
    def of(cls, given: dict[str, Any]) -> "Row":
        """As JSON holds it, where a spread is a list."""
        tests = {
            test: {score: value and Spread(*value) for score, value in scores.items()}
            for test, scores in given["tests"].items()
        }
        valid = given["valid_loss"]
        return cls(**(given | {"valid_loss": valid and Spread(*valid), "tests": tests}))


def chosen(done: Sequence[dict[str, Any]], method: int, examples: int) -> dict[str, Any] | None:
    """The cell of the lowest validation loss; None if all of them diverged."""
    ended = [c for c in done if (c["method"], c["examples"]) == (method, examples)]
    return min((c for c in ended if "failed" not in c), key=lambda c: c["valid_loss"], default=None)


def rows(plan: Plan, costs: Sequence[dict[str, Any]], done: Sequence[dict[str, Any]]) -> list[Row]:
    """Only the cells of the chosen learning rate count. A seed that diverged at it is left out."""
    found = []
    for n in plan.examples:
        for i, entrant in enumerate(plan.entrants):
            first = [c for c in done if c["seed"] == plan.seeds[0]]
            best = chosen(first, i, n)
            same = [
                c for c in done
                if best and (c["method"], c["examples"], c["lr"]) == (i, n, best["lr"])
                and "failed" not in c
            ]  # fmt: skip
            found.append(
                Row(
                    entrant.label,
                    n,
                    **costs[i],
                    steps=best["steps"] if best else None,
                    lr=best["lr"] if best else None,
                    valid_loss=spread([c["valid_loss"] for c in same]),
                    tests=_tests([c["tests"] for c in same]),
                )
            )
    return found


def _tests(cells: Sequence[dict[str, Any]]) -> dict[str, dict[str, Spread | None]]:
    return {
        test: {score: spread([c[test][score] for c in cells]) for score in cells[0][test]}
        for test in (cells[0] if cells else ())
    }


def spread(values: Sequence[float | None]) -> Spread | None:
    """None where there is no value."""
    numbers = [v for v in values if v is not None]
    if not numbers:
        return None
    return Spread(mean(numbers), stdev(numbers) if len(numbers) > 1 else 0.0)


# ---- as text ----------------------------------------------------------------------------------


def share(value: float) -> str:
    return f"{value:.2%}" if value < 0.1 else f"{value:.0%}"


def file_size(n: int) -> str:
    return f"{n / 1e6:.1f} MB" if n >= 1e6 else f"{n / 1e3:.1f} kB"


def with_spread(value: Spread | None, percent: bool = False) -> str:
    """ "0.123 ± 0.004", or in percent "12.3 ± 0.4"."""
    if value is None:
        return "-"
    scale, digits = (100, 1) if percent else (1, 3)
    return " ± ".join(f"{x * scale:.{digits}f}" for x in value)


HEADER = ("method", "parameters", "share", "file", "ms a step", "memory", "lr", "valid loss")
SCORES = {"loss": "loss", "exact_match": "exact match %", "slot_errors": "slot errors %"}


def cells_of(found: Sequence[Row]) -> list[list[str]]:
    """The header, and the cells of each row. A test set's columns bear its name."""
    tests = list(dict.fromkeys(test for row in found for test in row.tests))
    scored = [
        (test, score) for test in tests for score in SCORES
        if any(row.tests.get(test, {}).get(score) for row in found)
    ]  # fmt: skip
    table = [[*HEADER, *(f"{test} {SCORES[score]}" for test, score in scored)]]
    for r in found:
        table.append(
            [
                r.label,
                f"{r.parameters:,}",
                share(r.share),
                file_size(r.file_bytes),
                f"{1000 * r.step_seconds:.0f}",
                file_size(r.memory_bytes),
                "diverged" if r.lr is None else f"{r.lr:g}",
                with_spread(r.valid_loss),
                *(with_spread(r.tests.get(t, {}).get(s), s != "loss") for t, s in scored),
            ]
        )
    return table


def text(found: Sequence[Row]) -> str:
    """A table for each number of examples."""
    parts = []
    for n in dict.fromkeys(row.examples for row in found):
        table = cells_of([row for row in found if row.examples == n])
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = []
        for line in table:
            first, *rest = (cell.rjust(w) for cell, w in zip(line, widths, strict=True))
            lines.append("  ".join([first.strip().ljust(widths[0]), *rest]))
        parts.append("\n".join([counted(n, "example") if n else "all examples", *lines]))
    return "\n\n".join(parts)
