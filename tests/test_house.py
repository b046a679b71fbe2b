"""The house's own rules: imports point down, modules and functions stay short, and the taught code
needs NumPy alone."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import minprefix

PACKAGE = Path(minprefix.__file__).parent

#: An import points to its own floor or to one below, inside functions, too. A name stands for the
#: module, or for every module of that package.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("errors", "console"),
    ("ops",),
    ("gpt2", "batch", "optim", "budget", "settings"),
    ("storage",),
    ("data", "text"),
    ("prefix", "placement", "method"),
    ("model",),
    ("generate", "evaluate", "train"),
    ("",),  # what `import minprefix` gives
    ("methods", "prefixes", "runs", "comparison"),
    ("show", "conformance", "gradcheck", "trace", "lessons"),
    ("cli", "__main__"),
)

#: who may import what nevertheless
EXCEPTIONS: dict[str, set[str]] = {
    # `_repr_html_`: an object draws itself in a notebook
    "batch": {"show.notebook"},
    "prefix": {"show.notebook"},
    "model": {"show.notebook"},
}


def _modules() -> dict[str, Path]:
    """ "ops.numpy_ops" -> its file."""
    names = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        names[".".join(parts).removesuffix("__init__").removesuffix(".")] = path
    names["__main__"] = PACKAGE / "__main__.py"
    return names


MODULES = _modules()

FOR_THE_TYPE_CHECKER = ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def _imports(tree: ast.AST) -> Iterator[str]:
    """The names of all that is imported when it runs: for the type checker alone does not count."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) in FOR_THE_TYPE_CHECKER:
            yield from _imports(ast.Module(node.orelse, []))
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "an import by dots"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        else:
            yield from _imports(node)


def _graph() -> dict[str, set[str]]:
    """module -> the modules of the package that it imports."""
    return {
        name: {
            _module(what.removeprefix("minprefix").removeprefix("."))
            for what in _imports(ast.parse(path.read_text(encoding="utf-8")))
            if f"{what}.".startswith("minprefix.")
        }
        - {name}
        for name, path in MODULES.items()
    }


def _module(name: str) -> str:
    """ "ops.get" is a name of the module "ops"."""
    return name if name in MODULES else name.rpartition(".")[0]


def _floor(module: str) -> int:
    for height, names in enumerate(FLOORS):
        if module in names or module.partition(".")[0] in names:
            return height
    raise AssertionError(f"{module} stands on no floor: add it to FLOORS")


def _circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Modules that import each other, by way of others, too."""
    reach = {name: _reached(graph, name) for name in graph}
    circles = {tuple(sorted(o for o in reach[n] if n in reach[o])) for n in graph if n in reach[n]}
    return sorted(map(list, circles))


def _reached(graph: dict[str, set[str]], start: str) -> set[str]:
    seen: set[str] = set()
    todo = list(graph[start])
    while todo:
        name = todo.pop()
        if name not in seen:
            seen.add(name)
            todo += graph.get(name, ())
    return seen


def test_an_import_points_down():
    up = {
        name: {o for o in others if _floor(o) > _floor(name)} for name, others in _graph().items()
    }
    assert {name: others for name, others in up.items() if others} == EXCEPTIONS


def test_no_modules_import_each_other():
    graph = _graph()
    free = {name: others - EXCEPTIONS.get(name, set()) for name, others in graph.items()}
    assert _circles(free) == []


def test_functions_and_modules_are_short():
    functions, modules = {}, {}
    for name, path in MODULES.items():
        text = path.read_text(encoding="utf-8")
        modules[name] = len(text.splitlines())
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                functions[f"{name}.{node.name}"] = node.end_lineno - node.lineno + 1
    assert {name: n for name, n in functions.items() if n > 60} == {}
    long = {name for name, n in modules.items() if n > 450}
    # the entries of bugs are data
    assert long <= {name for name in modules if name.startswith("conformance.bugs.")}


def test_a_circle_and_an_import_inside_a_function_are_seen():
    tree = ast.parse("def f():\n    import a\nif TYPE_CHECKING:\n    import b\nelse:\n    import c")
    assert list(_imports(tree)) == ["a", "c"]
    assert list(_imports(ast.parse("if not TYPE_CHECKING:\n    import a"))) == ["a"]
    assert _circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]


#: what the taught code does without: in a browser some of these are missing, in a classroom more
NOT_THERE = ("tokenizers", "safetensors", "matplotlib", "tqdm", "threadpoolctl",
             "huggingface_hub", "hypothesis", "jsonschema")  # fmt: skip

ON_NUMPY_ALONE = f"""
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {NOT_THERE!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Missing())

from minprefix import GPT2, Batch, Config, Prefix, loss_and_grad
from minprefix.conformance import load, run, select
from minprefix.gradcheck import cases
from minprefix.gradcheck.graded import grade
from minprefix.gradcheck.source import find
from minprefix.generate import generate_ids
from minprefix.methods import METHODS, PromptTuning
from minprefix.trace import trace

model = GPT2.random(Config(2, 2, 16, 20, 64), dtype="float64")
prefix, batch = Prefix.normal(model.config, 3, dtype="float64"), Batch.pack([[1, 2, 3], [4, 5]])
loss, dkv = loss_and_grad(model, prefix, batch)
assert 2 < loss < 4 and dkv.shape == prefix.kv.shape
assert len(generate_ids(model, [[1, 2]], prefix)[0]) == 40
assert trace(model, batch, prefix)["loss"].value == loss
for kind in METHODS.values():
    method = kind.normal(model, 3) if kind is PromptTuning else kind.start(model)
    loss, grads = loss_and_grad(model, method, batch)
    assert 2 < loss < 4 and grads.keys() == method.parameters.keys()
    assert len(generate_ids(model, [[1, 2]], method)[0]) == 40
for name in ("reference", "numpy"):
    results = run(load(name), select(levels=["ops"]))
    for r in results:
        drawn = r.check.endswith("/drawn")
        assert r.status == ("not implemented" if drawn else "passed"), (r.check, r.findings)
    print(name, len(results))
for piece in cases.CASES:
    (own,) = find(f"minprefix.gradcheck.pieces:{{piece}}")
    assert grade(own, ["usual"]), piece
"""


def test_taught_code_runs_where_numpy_alone_is_installed():
    result = subprocess.run(
        [sys.executable, "-c", ON_NUMPY_ALONE], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert [line.split()[0] for line in result.stdout.splitlines()] == ["reference", "numpy"]
