"""The reference's own text with a call after every assignment and one around every return: this is
how a trace sees inside an operation. Nothing else changes, neither a line number nor a bit of a
result."""

import ast
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, lru_cache
from pathlib import Path
from types import CodeType, ModuleType, SimpleNamespace
from typing import Any


@dataclass
class Source:
    """The text of a module, and where in it things are."""

    path: str
    lines: list[str]
    #: function -> its first and its last line
    functions: dict[str, tuple[int, int]] = field(default_factory=dict)
    #: (function, name) -> the line that assigns it; the name "return" is for the result
    made: dict[tuple[str, str], int] = field(default_factory=dict)
    #: line -> the statement that begins there, on one line
    statement: dict[int, str] = field(default_factory=dict)
    #: function -> the formula in the heading comment above it, and where that is from
    formula: dict[str, tuple[str, str]] = field(default_factory=dict)


@dataclass
class Spy:
    """What the instrumented text calls."""

    seen: Callable[[str, int, dict[str, Any]], None]  # function, line, the names it assigned
    returning: Callable[[str, Any], None]  # function, what it gives back
    sequence: int | None = None  # the sequence that a loop is at

    def __call__(self, function: str, number: int, **values: Any) -> None:
        self.seen(function, number, values)

    def back(self, function: str, value: Any) -> Any:
        self.returning(function, value)
        return value


class _Instrument(ast.NodeTransformer):
    def __init__(self, function: str) -> None:
        self.function = function

    def visit_Assign(self, node: ast.Assign | ast.Expr) -> list[ast.stmt]:
        values = ", ".join(f"{name}={value}" for name, value in _assigned(node).items())
        call = f"_spy({self.function!r}, {node.lineno}, {values})"
        return [node, *self._calls(node, call)] if values else [node]

    visit_Expr = visit_Assign

    def visit_For(self, node: ast.For) -> list[ast.stmt]:
        self.generic_visit(node)
        if "b" not in _names(node.target):
            return [node]
        node.body[:0] = self._calls(node, "_spy.sequence = b")
        return [node, *self._calls(node, "_spy.sequence = None")]

    def visit_Return(self, node: ast.Return) -> ast.Return:
        match self._calls(node, f"_spy.back({self.function!r})"):
            case [ast.Expr(ast.Call() as call)] if node.value is not None:
                call.args.append(node.value)
                node.value = call
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        return node  # a function within a function is left alone

    def _calls(self, at: ast.stmt, text: str) -> list[ast.stmt]:
        made = ast.parse(text).body
        for statement in made:
            for inner in ast.walk(statement):
                ast.copy_location(inner, at)
        return made


def _assigned(node: ast.AST) -> dict[str, str]:
    """name -> the expression of its value, for the names that a statement computes. Neither
    `xhat, rstd, gain = cache` nor `zs, patterns = [], []` computes anything."""
    match node:
        case ast.Assign([target, *_], value):
            parts = value.elts if isinstance(value, ast.Tuple) else [value]
            if all(isinstance(part, ast.Name | ast.List) for part in parts):
                return {}
            return {name: name for name in _names(target)}
        case ast.Expr(ast.Call(ast.Attribute(ast.Name(names), "append"))):
            return {names.removesuffix("s"): f"{names}[-1]"}  # dqs: dq; dprefix_k stays
        case ast.Return():
            return {"return": ""}
    return {}


def _names(target: ast.expr) -> list[str]:
    parts = target.elts if isinstance(target, ast.Tuple) else [target]
    return [part.id for part in parts if isinstance(part, ast.Name)]


def instrumented(text: str, path: str, spy: Spy) -> SimpleNamespace:
    """The functions of a module of this source text; they tell `spy` of every name that they
    assign. Raises SyntaxError if the text is not Python."""
    scope: dict[str, Any] = {"_spy": spy, "__name__": "minprefix.ops.reference", "__file__": path}
    exec(_compiled(text, path), scope)
    return SimpleNamespace(**{k: v for k, v in scope.items() if not k.startswith("__")})


@lru_cache(maxsize=8)
def _compiled(text: str, path: str) -> CodeType:
    tree = ast.parse(text)
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            inside = _Instrument(node.name)
            body = [inside.visit(statement) for statement in node.body]
            node.body = [s for part in body for s in (part if isinstance(part, list) else [part])]
    return compile(ast.fix_missing_locations(tree), path, "exec")


@cache
def source_of(module: ModuleType) -> Source:
    path = Path(str(module.__file__))
    return read_source(path.read_text(encoding="utf-8"), str(path))


def read_source(text: str, path: str) -> Source:
    lines = text.splitlines()
    source = Source(path, lines)
    for node in ast.parse(text).body:
        if not isinstance(node, ast.FunctionDef):
            continue
        source.functions[node.name] = node.lineno, node.end_lineno or node.lineno
        above = reversed(range(node.lineno))
        heading = next((n for n in above if lines[n].startswith("# ---- ")), None)
        if heading is not None:
            formula, _, origin = lines[heading].removeprefix("# ---- ").partition("      ")
            if lines[heading + 1].startswith("#  "):  # below a long formula
                origin = lines[heading + 1].lstrip("# ")
            source.formula[node.name] = formula, origin.strip()
        for inner in ast.walk(node):
            for name in _assigned(inner):
                assert isinstance(inner, ast.stmt)
                parts = [part.strip() for part in lines[inner.lineno - 1 : inner.end_lineno]]
                source.statement[inner.lineno] = " ".join(parts)
                source.made.setdefault((node.name, name), inner.lineno)
    return source


def names_read(line: str) -> set[str]:
    """The names that a line of a function reads."""
    tree = ast.parse(f"def f():\n {line or 'pass'}")
    loaded = (node for node in ast.walk(tree) if isinstance(node, ast.Name))
    return {node.id for node in loaded if isinstance(node.ctx, ast.Load)}
