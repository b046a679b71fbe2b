"""A lesson's graded exercises. The lesson holds the task and our answer; a module of
`minprefix.lessons.exercises` holds the inputs on which an answer is tried, and a file beside it the
usual mistakes.

Our answer is the last function of that name in the lesson. Its *steps* are the names to which it
assigns a value with a shape in the comment: `row_sum = ...  # (T, 1)`.
"""

import ast
import importlib
import pkgutil
import re
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from minprefix.errors import InputError
from minprefix.lessons.reading import lesson_paths

Rng = np.random.Generator
#: the arguments of each call, one after the other
Cases = Iterator[tuple[Any, ...]]

_SHAPE = re.compile(r"#\s*\(([\w+*/, .-]*)\)")


class Lazy(Exception):
    """An answer takes an easy way round. An object among the arguments raises it, with a sentence
    that says what the answer does and what it should do."""


@dataclass(frozen=True)
class Mistake:
    """`old` in our answer, `new` in its place, and what to say to somebody who wrote that."""

    old: str
    new: str
    says: str


@dataclass(frozen=True)
class Exercise:
    name: str
    lesson: int
    cases: Callable[[Rng], Cases]

    def ours(self) -> "Ours":
        """Raises InputError where the lesson has no such function."""
        return _ours(self.name, self.lesson)

    @property
    def mistakes(self) -> tuple[Mistake, ...]:
        """The usual ones."""
        return tuple(
            Mistake(m["old"], m["new"], " ".join(m["says"].split()))
            for m in _mistakes(self.lesson).get(self.name, [])
        )


_FOUND: dict[str, Exercise] = {}


def exercise(cases: Callable[[Rng], Cases]) -> Exercise:
    """Makes an exercise of a function that yields the arguments of each call. The function has the
    exercise's name; its module, the lesson's number, and a file beside it the usual mistakes. It is
    called anew for each run, with the same random numbers."""
    lesson = int(cases.__module__.rpartition("_")[2])
    found = Exercise(cases.__name__, lesson, cases)
    if found.name in _FOUND and _FOUND[found.name].lesson != lesson:
        raise ValueError(f"{found.name} is an exercise of two lessons")
    _FOUND[found.name] = found
    return found


@cache
def _mistakes(lesson: int) -> dict[str, list[dict[str, str]]]:
    """Those of a lesson, by the exercise."""
    path = Path(__file__).parent / "exercises" / f"lesson_{lesson:02d}.toml"
    return tomllib.loads(path.read_text(encoding="utf-8"))


@cache
def all_exercises() -> dict[str, Exercise]:
    """name -> exercise, in the order of the lessons."""
    from minprefix.lessons import exercises

    for module in sorted(info.name for info in pkgutil.iter_modules(exercises.__path__)):
        importlib.import_module(f"{exercises.__name__}.{module}")
    return dict(sorted(_FOUND.items(), key=lambda each: each[1].lesson))


# ---- our answer -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Ours:
    """Our answer, as the lesson has it."""

    name: str
    source: str
    path: Path
    line: int
    #: what it calls: imports, and other functions of the lesson
    needs: tuple[ast.stmt, ...] = field(repr=False)
    #: the functions of the lesson
    beside: frozenset[str] = field(repr=False)

    def function(self, mistake: Mistake | None = None) -> Callable[..., Any]:
        """The function itself, or with a mistake in it."""
        source = self.source
        if mistake is not None:
            if mistake.old not in source:
                raise ValueError(f"{self.name} has no {mistake.old!r}")
            source = source.replace(mistake.old, mistake.new)
        names: dict[str, Any] = {"__name__": "ours"}
        body = [*self.needs, *ast.parse("\n" * (self.line - 1) + source).body]
        exec(compile(ast.Module(body, []), str(self.path), "exec", dont_inherit=True), names)
        function: Callable[..., Any] = names[self.name]
        return function

    @property
    def definition(self) -> ast.FunctionDef:
        (found,) = ast.parse(self.source).body
        assert isinstance(found, ast.FunctionDef)
        return found

    def steps(self) -> dict[str, str]:
        """name -> the letters of its axes, in the order in which they arise."""
        lines, found = self.source.splitlines(), dict[str, str]()
        for node in statements(self.definition):
            shape = _SHAPE.search(" ".join(lines[node.lineno - 1 : node.end_lineno]))
            if shape is None or not isinstance(node, ast.Assign):
                continue
            for target in node.targets:
                for name in target.elts if isinstance(target, ast.Tuple) else [target]:
                    if isinstance(name, ast.Name):
                        found.setdefault(name.id, " ".join(shape[1].replace(",", " ").split()))
        return found

    def returned(self) -> list[str]:
        """The names of what it returns, where each has one: `return dq, dk`."""
        ends = [node for node in statements(self.definition) if isinstance(node, ast.Return)]
        value = ends[-1].value if ends else None
        parts = value.elts if isinstance(value, ast.Tuple) else [value]
        return [part.id if isinstance(part, ast.Name) else "" for part in parts]


def statements(node: ast.AST) -> Iterator[ast.stmt]:
    """The statements of a function in their order, without those of functions inside it."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.stmt) and not isinstance(child, ast.FunctionDef):
            yield child
        if not isinstance(child, ast.FunctionDef | ast.Lambda):
            yield from statements(child)


@cache
def _ours(name: str, lesson: int) -> Ours:
    path = next(path for path in lesson_paths() if path.stem.startswith(f"{lesson:02d}_"))
    text = path.read_text(encoding="utf-8")
    defined = _defined(ast.parse(text))
    node = defined.get(name)
    if not isinstance(node, ast.FunctionDef):
        raise InputError(f"{path.name} defines no function {name}")
    source = ast.get_source_segment(text, node)
    assert source is not None
    needed: dict[int, ast.stmt] = {}
    open_names, seen = _names(node), {name}
    while new := open_names - seen:
        seen |= new
        for each in (defined[n] for n in new if n in defined):
            needed[each.lineno] = each
            open_names |= _names(each)
    beside = frozenset(n for n, d in defined.items() if isinstance(d, ast.FunctionDef))
    return Ours(name, source, path, node.lineno, tuple(needed[n] for n in sorted(needed)), beside)


def _defined(lesson: ast.Module) -> dict[str, ast.stmt]:
    """The functions, classes and imports of a lesson, by the names that they define; the last of a
    name counts."""
    found: dict[str, ast.stmt] = {}
    for node in lesson.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found[node.name] = node
        elif isinstance(node, ast.Import | ast.ImportFrom):
            for alias in node.names:
                found[(alias.asname or alias.name).partition(".")[0]] = node
    return found


def _names(node: ast.AST) -> set[str]:
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
