"""The reference's own text with a call after every assignment, and one around what a function gives
back: that is how a trace sees inside an operation. Nothing else changes, neither a line number nor
a bit of a result."""

import ast
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, lru_cache
from pathlib import Path
from types import CodeType, ModuleType, SimpleNamespace
from typing import Any


@dataclass
class Source:
    """What the text of an implementation says of itself."""

    path: str
    lines: list[str]
    #: (function, name) -> the line that assigns it; the name "return" is what it gives back
    made: dict[tuple[str, str], int] = field(default_factory=dict)
    #: line -> the statement that begins there, on one line
    statement: dict[int, str] = field(default_factory=dict)
    #: function -> the formula that the heading comment above it gives, and where that is from
    formula: dict[str, tuple[str, str]] = field(default_factory=dict)


class Spy:
    """What the instrumented text calls. `sequence` is the sequence that a loop is at."""

    def __init__(self) -> None:
        self.sequence: int | None = None
        self.seen: Callable[[str, int, dict[str, Any]], None] = lambda *_: None
        self.returning: Callable[[str, Any], None] = lambda *_: None

    def __call__(self, function: str, number: int, **values: Any) -> None:
        self.seen(function, number, values)

    def back(self, function: str, value: Any) -> Any:
        self.returning(function, value)
        return value


class _Instrument(ast.NodeTransformer):
    def __init__(self, function: str) -> None:
        self.function = function

    def visit_Assign(self, node: ast.Assign) -> list[ast.stmt]:
        if not _computes(node):
            return [node]
        values = ", ".join(f"{name}={name}" for name in _names(node.targets[0]))
        return [node, *self._calls(node, f"_spy({self.function!r}, {node.lineno}, {values})")]

    def visit_Expr(self, node: ast.Expr) -> list[ast.stmt]:
        name = _appended(node)
        if name is None:
            return [node]
        one = f"{_singular(name)}={name}[-1]"
        return [node, *self._calls(node, f"_spy({self.function!r}, {node.lineno}, {one})")]

    def visit_For(self, node: ast.For) -> list[ast.stmt]:
        self.generic_visit(node)
        names = _names(node.target)
        if "b" not in names:
            return [node]
        node.body[:0] = self._calls(node, "_spy.sequence = b")
        return [node, *self._calls(node, "_spy.sequence = None")]

    def visit_Return(self, node: ast.Return) -> ast.Return:
        back = ast.parse(f"_spy.back({self.function!r})", mode="eval").body
        assert isinstance(back, ast.Call)
        for inner in ast.walk(back):
            ast.copy_location(inner, node)
        if node.value is not None:
            back.args.append(node.value)
            node.value = back
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        return node  # a function within a function is left alone

    def _calls(self, at: ast.stmt, text: str) -> list[ast.stmt]:
        made = ast.parse(text).body
        for statement in made:
            for inner in ast.walk(statement):
                ast.copy_location(inner, at)
        return made


def _computes(node: ast.Assign) -> bool:
    """Neither `xhat, rstd, gain = cache` nor `zs, patterns = [], []`."""
    parts = node.value.elts if isinstance(node.value, ast.Tuple) else [node.value]
    return not all(isinstance(part, ast.Name | ast.List) for part in parts)


def _appended(node: ast.AST) -> str | None:
    """The list that a statement `names.append(...)` adds to."""
    match node:
        case ast.Expr(ast.Call(ast.Attribute(ast.Name(name), "append"))):
            return name
    return None


def _singular(name: str) -> str:
    """dqs -> dq: one of a list; dprefix_k stays."""
    return name.removesuffix("s")


def _names(target: ast.expr) -> list[str]:
    parts = target.elts if isinstance(target, ast.Tuple) else [target]
    return [part.id for part in parts if isinstance(part, ast.Name)]


def instrumented(text: str, path: str, spy: Spy) -> SimpleNamespace:
    """The functions of a module of this source text, which tell `spy` of every name that they
    assign. Raises SyntaxError if it is none."""
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
    """What the file of a module says: where each name is made, and the formula of each op."""
    path = Path(str(module.__file__))
    return read_source(path.read_text(encoding="utf-8"), str(path))


def read_source(text: str, path: str) -> Source:
    lines = text.splitlines()
    source = Source(path, lines)
    for node in ast.parse(text).body:
        if not isinstance(node, ast.FunctionDef):
            continue
        heading = next(
            (n for n in range(node.lineno - 1, -1, -1) if lines[n].startswith("# ---- ")), None
        )
        if heading is not None:
            formula, _, origin = lines[heading].removeprefix("# ---- ").partition("      ")
            if lines[heading + 1].startswith("#  "):  # below a long formula
                origin = lines[heading + 1].lstrip("# ")
            source.formula[node.name] = formula, origin.strip()
        for inner in ast.walk(node):
            if isinstance(inner, ast.Assign) and _computes(inner):
                names = _names(inner.targets[0])
            elif isinstance(inner, ast.Return):
                names = ["return"]
            elif isinstance(inner, ast.Expr) and (name := _appended(inner)):
                names = [_singular(name)]
            else:
                continue
            parts = [part.strip() for part in lines[inner.lineno - 1 : inner.end_lineno]]
            source.statement[inner.lineno] = " ".join(parts)
            for name in names:
                source.made.setdefault((node.name, name), inner.lineno)
    return source
