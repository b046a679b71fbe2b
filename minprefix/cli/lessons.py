"""`minprefix lessons`: the list of the lessons, and their site."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from minprefix.cli.options import at_least_one
from minprefix.cli.parser import Command
from minprefix.errors import counted

if TYPE_CHECKING:
    from minprefix.lessons.reading import Lesson
    from minprefix.lessons.running import Run

# Each command imports what it needs: `minprefix --help` should not wait for it.


def run(args: argparse.Namespace) -> int:
    from minprefix.lessons import reading

    reading.require_extra()
    paths = reading.named(args.lesson, reading.lesson_paths())
    if args.out is None:
        _list(paths)
        return 0
    return _build(args, paths)


def _list(paths: list[Path]) -> None:
    from minprefix.lessons import reading

    for path in paths:
        lesson = reading.read(path)
        minutes, difficulty = lesson.minutes or "?", lesson.difficulty or "?"
        print(f"{lesson.number:2d}  {lesson.title}  ({minutes} minutes, difficulty {difficulty}/5)")
    print(f"\nThe scripts are in {paths[0].parent}; as pages: minprefix lessons --out DIR")


def _build(args: argparse.Namespace, paths: list[Path]) -> int:
    from minprefix.lessons import site

    warnings, failures = site.build(paths, args.out, lambda lessons: _run(args, lessons))
    for kind, sentences in (("error", failures), ("warning", warnings)):
        for sentence in sentences:
            print(f"minprefix: {kind}: {sentence}", file=sys.stderr)
    if failures:
        not_run = counted(len(failures), "lesson")
        print(f"{not_run} did not run: {args.out} is as it was", file=sys.stderr)
        return 1
    said = counted(len(warnings), "warning") if warnings else "no warnings"
    print(f"{said}; open {args.out / 'index.html'}")
    return 1 if warnings else 0


def _run(args: argparse.Namespace, lessons: "list[Lesson]") -> "list[Run]":
    """Says how long the lessons take by their heads; a busy machine takes a multiple of it."""
    from tqdm import tqdm

    from minprefix.lessons.running import run_all

    seconds, n = sum(lesson.seconds or 0 for lesson in lessons), len(lessons)
    what = f"{n} lessons, {min(args.jobs, n)} at a time" if n > 1 else "1 lesson"
    print(
        f"running {what}: by what they say {counted(seconds, 'second')}, and up to minutes more "
        "with their kernels and on a busy machine",
        flush=True,
    )
    with tqdm(total=n, unit="lesson", leave=False, disable=None) as bar:

        def ran(run: "Run") -> None:
            bar.clear()
            print(f"{run.lesson.name}: {run.seconds:.1f} s", flush=True)
            bar.update()

        return run_all(lessons, args.jobs, args.time_limit, ran, bar.refresh)


def add(command: Command) -> None:
    p = command(
        "lessons",
        run,
        "list the lessons, or build them as pages: text beside code",
        "minprefix lessons --out site",
        status="0 no warning, 1 a warning, or a lesson that did not run, 2 it cannot be built",
    )
    p.add_argument(
        "lesson", nargs="*", metavar="LESSON", help="only these: a number or a name (default all)"
    )
    p.add_argument(
        "--out", type=Path, metavar="DIR", help="run them and write a site there; replaces one"
    )
    p.add_argument(
        "--jobs",
        type=at_least_one,
        metavar="N",
        default=2,
        help="lessons that run at a time (default 2; 1 for lessons that measure times)",
    )
    p.add_argument(
        "--time-limit",
        type=at_least_one,
        metavar="SECONDS",
        default=120,
        help="for each cell (default 120)",
    )
