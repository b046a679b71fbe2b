"""The files that `minprefix check --new` writes: every function of the contract, or those of a
whole model, in NumPy or in PyTorch, to be filled in. `heads/` has how each of them begins."""

import inspect
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from minprefix.conformance.contract import FUNCTIONS, OPTIONAL, WHOLE, Whole, model_tensors
from minprefix.errors import InputError
from minprefix.gpt2 import Config
from minprefix.ops import contract
from minprefix.ops.contract import CONSUMED, Ops

_MODEL = """
# The levels above `ops` run the project's own GPT-2 over the functions above. To have your own
# graded there, too, define {whole}:
# `minprefix check --new FILE --whole` writes them.
"""


def write_stubs(path: Path, whole: bool = False, torch: bool = False) -> None:
    """A file with every function of the contract, or of a `whole` model in its place, each raising
    NotImplementedError; `torch`: in PyTorch. Raises InputError if the file exists."""
    name = new_file(path)
    kind = ("whole" if whole else "ops") + (".torch" if torch else "")
    head = resources.files("minprefix.conformance").joinpath("heads", f"{kind}.txt")
    parts = [head.read_text(encoding="utf-8").replace("{name}", name)]
    if whole:
        parts += [_whole_stub(function, torch) for function in WHOLE]
    else:
        for functions in FUNCTIONS.values():
            parts += [_stub(getattr(Ops, f), f, f in OPTIONAL, torch) for f in functions]
        parts.append(_MODEL.format(whole=", ".join(WHOLE)))
    text = "\n\n".join(part.strip("\n") + "\n" for part in parts)
    path.write_text(text, encoding="utf-8", newline="\n")


def new_file(path: Path) -> str:
    """The name of a file that is to be written, as it may stand in a docstring. Raises InputError
    if the file exists, or is no Python file by its name."""
    if path.suffix != ".py":
        said = f"{path} is not the name of a Python file"
        raise InputError(f"{said}: expected one that ends in .py")
    if path.exists():
        raise InputError(f"{path} exists: choose another name, it is not overwritten")
    # any bytes are a name on Linux
    name = path.name.encode("utf-8", "backslashreplace").decode()
    return name.replace("\\", r"\\").replace('"', r"\"")


def _function(line: str, doc: Sequence[str]) -> str:
    body = "\n".join(f"    {row}".rstrip() for row in doc)
    return f'{line}\n    """{body.strip()}\n    """\n    raise NotImplementedError'


def _whole_stub(function: str, torch: bool) -> str:
    kind = "np.ndarray | Tensor" if torch else "np.ndarray"
    others = {"run_training": "TrainingProblem", "run_method": "MethodProblem"}
    problem = others.get(function, "ModelProblem")
    doc = inspect.cleandoc(getattr(Whole, function).__doc__ or "").splitlines()
    if function == "run_model":
        doc += ["", "Graded, too, where it is given:", "", *_intermediates()]
    return _function(f"def {function}(problem: {problem}) -> Mapping[str, {kind}]:", doc)


def _intermediates() -> list[str]:
    """The names of what `run_model` may give besides, and their axes: of block i, sequence b."""
    config = Config(n_layer=2, n_head=1, n_embd=1, vocab_size=1, n_positions=1)
    rows = []
    for name, axes in model_tensors(config, 1, 1, "prefix").items():
        if name.startswith(("blocks.0.", "prefix.")) or name == "loss":
            continue
        said = name.replace("blocks.1.", "blocks.{i}.").replace("[0]", "[{b}]")
        rows.append(f"    {said:<30}({', '.join(axes.split())})")
    weights = "as the weight is; wanted where problem.need is 'all'"
    return [*rows, f"    {'d + the name of a weight':<30}{weights}"]


def _stub(function: object, name: str, optional: bool, torch: bool) -> str:
    assert callable(function)
    signature = inspect.signature(function)
    arguments = [
        f"{p.name}: {_type(p.annotation, torch)}" for p in list(signature.parameters.values())[1:]
    ]
    gives = _type(signature.return_annotation, torch)
    line = f"def {name}({', '.join(arguments)}) -> {gives}:"
    if len(line) > 100:
        inner = "    " + ", ".join(arguments)
        inner = f"{inner}\n" if len(inner) <= 100 else "".join(f"    {a},\n" for a in arguments)
        line = f"def {name}(\n{inner}) -> {gives}:"
    doc = inspect.cleandoc(function.__doc__ or "").splitlines()
    consumed = " and ".join(CONSUMED.get(name, ()))
    doc += ["", f"May overwrite {consumed}; keeps the rest." if consumed else "Keeps all."]
    doc += ["Optional: only gradients of weights need it."] if optional else []
    return _function(line, doc)


#: a type of the contract's -> the type in a file on tensors
_ON_TENSORS = {
    "AttentionGrads": "tuple[Tensor, Tensor, Tensor, Sequence[Tensor], Sequence[Tensor]]",
    **dict.fromkeys(("AttentionCache", "CrossEntropyCache", "GeluCache", "LayernormCache"), "Any"),
    "np.generic": "Tensor",
    "Array": "Tensor",
}


def _type(annotation: object, torch: bool) -> str:
    """As one writes it in a file that imports the names of the contract, or of torch."""
    said = annotation.__name__ if isinstance(annotation, type) else str(annotation)
    if annotation is contract.Array:
        said = "Array"
    if hasattr(annotation, "__args__"):
        said = str(annotation)
    for long, short in (
        ("collections.abc.", ""),
        ("minprefix.ops.contract.", ""),
        ("numpy.ndarray", "Array"),
        ("numpy.", "np."),
        *(_ON_TENSORS.items() if torch else ()),
    ):
        said = said.replace(long, short)
    return said
