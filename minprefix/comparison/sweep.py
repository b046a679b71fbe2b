"""The cells of a comparison, one after the other or on several processes. A finished cell is a
file, so a comparison that was stopped goes on where it was."""

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from minprefix.comparison.cells import Bench, Cell, Plan
from minprefix.comparison.table import Row, chosen, rows
from minprefix.errors import InputError, quoted
from minprefix.ops import threads
from minprefix.storage.reading import read_json
from minprefix.storage.writing import write_json

#: what the folder holds
PLAN, COSTS, CELLS, RESULTS = "plan.json", "costs.json", "cells", "comparison.json"

_bench: Bench | None = None  # a worker's own


def compare_methods(
    plan: Plan, out: Path, jobs: int = 1, resume: bool = False, progress: bool = True
) -> list[Row]:
    """Carry out the plan and write its rows into `out`/comparison.json.

    The first seed tries every learning rate, the others take the one of the lowest validation
    loss. Each cell computes on one thread: their number changes the last bits of a result. `jobs`:
    processes. Raises InputError for a folder that is taken, and when resuming another plan.
    """
    before = threads.count()
    threads.limit(1)
    try:
        return _compare(plan, out, jobs, resume, progress)
    finally:
        threads.limit(before)


def _compare(plan: Plan, out: Path, jobs: int, resume: bool, progress: bool) -> list[Row]:
    bench = Bench(plan)
    _settle(plan, out, resume)
    if not (out / COSTS).exists():
        write_json(out / COSTS, bench.costs())
    costs = read_json(out / COSTS, "what the methods cost", list)
    with ExitStack() as stack:
        work = _Work(bench, out, jobs, stack, progress)
        done = work.carry_out(_first(plan, costs))
        done += work.carry_out(_others(plan, costs, done))
    found = rows(plan, costs, done)
    result = {"plan": asdict(plan), "rows": [asdict(row) for row in found]}
    result["cpu_seconds"] = round(sum(cell["cpu_seconds"] for cell in done), 1)
    write_json(out / RESULTS, result)
    return found


def _settle(plan: Plan, out: Path, resume: bool) -> None:
    """Write the plan down, or hold it against the one that is there."""
    asked = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(plan).items()}
    path = out / PLAN
    if not path.exists():
        if resume:
            raise InputError(f"{out} holds no comparison ({PLAN} is missing): leave out --resume")
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise InputError(f"{out} is taken: choose a new or an empty folder for --out")
        (out / CELLS).mkdir(parents=True)
        return write_json(path, asked)
    if not resume:
        raise InputError(f"{out} already holds a comparison: give --resume, or another --out")
    before = read_json(path, "the plan of the comparison")
    for name, value in asked.items():
        if before.get(name) != value:
            raise InputError(
                f"--{name.replace('_', '-')} was {quoted(before.get(name))} in {out} and is "
                f"{quoted(value)}: give the same options, or another --out"
            )
    return None


def _steps(plan: Plan, cost: dict[str, Any]) -> int:
    """As many as the budget has, in seconds of the time that a step took when it was measured."""
    if plan.steps is not None:
        return plan.steps
    assert plan.seconds is not None
    return max(1, round(plan.seconds / cost["step_seconds"]))


def _first(plan: Plan, costs: Sequence[dict[str, Any]]) -> list[Cell]:
    """The first seed at every learning rate."""
    return [
        Cell(i, lr, plan.seeds[0], n, _steps(plan, costs[i]))
        for n in plan.examples
        for i, entrant in enumerate(plan.entrants)
        for lr in entrant.lrs or plan.lrs
    ]


def _others(
    plan: Plan, costs: Sequence[dict[str, Any]], done: Sequence[dict[str, Any]]
) -> list[Cell]:
    """The other seeds, at the learning rate that was best."""
    return [
        Cell(i, best["lr"], seed, n, _steps(plan, costs[i]))
        for n in plan.examples
        for i in range(len(plan.methods))
        if (best := chosen(done, i, n)) is not None
        for seed in plan.seeds[1:]
    ]


class _Work:
    """What carries cells out: this process, or others."""

    def __init__(
        self, bench: Bench, out: Path, jobs: int, stack: ExitStack, progress: bool
    ) -> None:
        from tqdm import tqdm

        self.bench, self.out, self.jobs = bench, out, jobs
        plan = bench.plan
        total = sum(len(e.lrs or plan.lrs) + len(plan.seeds) - 1 for e in plan.entrants)
        total *= len(plan.examples)
        self.bar = stack.enter_context(tqdm(total=total, unit="cell", disable=not progress))
        self.pool: Any = None
        if jobs > 1:
            import multiprocessing
            from concurrent.futures import ProcessPoolExecutor

            os.environ |= dict.fromkeys(threads.VARIABLES, "1")
            spawn = multiprocessing.get_context("spawn")
            pool = ProcessPoolExecutor(jobs, spawn, _begin, (plan,))
            stack.callback(pool.shutdown, cancel_futures=True)
            self.pool = pool

    def carry_out(self, cells: Sequence[Cell]) -> list[dict[str, Any]]:
        """What each of them came to: those that have no file yet are carried out now."""
        paths = {self.out / CELLS / cell.file(self.bench.plan): cell for cell in cells}
        missing = {path: cell for path, cell in paths.items() if not path.exists()}
        self.bar.update(len(paths) - len(missing))
        for _ in self._each(missing):
            self.bar.update()
        return [read_json(path, "a cell of the comparison") for path in paths]

    def _each(self, missing: dict[Path, Cell]) -> Iterator[None]:
        if self.pool is None:
            for path, cell in missing.items():
                write_json(path, self.bench.carry_out(cell))
                yield
        else:
            from concurrent.futures import as_completed

            futures = [self.pool.submit(_finish, path, cell) for path, cell in missing.items()]
            for future in as_completed(futures):
                yield future.result()


def _begin(plan: Plan) -> None:
    """A worker reads the model and the data once."""
    global _bench
    threads.limit(1)
    _bench = Bench(plan)


def _finish(path: Path, cell: Cell) -> None:
    assert _bench is not None
    write_json(path, _bench.carry_out(cell))
