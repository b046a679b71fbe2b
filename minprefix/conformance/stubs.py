"""The file that `minprefix check --new` writes: every function of the contract, to be filled in."""

import inspect

from minprefix.conformance.contract import FUNCTIONS, OPTIONAL, WHOLE
from minprefix.ops import contract
from minprefix.ops.contract import CONSUMED, Ops

_HEAD = '''"""An implementation of the contract of minprefix: fill in what you have, then run

    minprefix check {name}

A function that raises NotImplementedError is reported as not implemented; the rest is graded.
Symbols: N tokens in the batch, B sequences, T length of one sequence, P prefix length, NH heads,
hs head size, C = NH*hs, V vocabulary, M targets. The caches are named tuples: make your own if you
need other fields, but attention's must have q, k and v, which the model reads; a field that is
called as in the contract is graded as what the contract says it is.

For arrays that are not NumPy's, define asarray(a), which takes a NumPy array to your own kind, and
asnumpy(a), which takes a result back.
"""

from collections.abc import Sequence

import numpy as np

from minprefix.ops.contract import (
    Array,
    AttentionCache,
    AttentionGrads,
    CrossEntropyCache,
    GeluCache,
    LayernormCache,
)
'''


def text(name: str) -> str:
    """The whole file; `name`: what it will be called."""
    parts = [_HEAD.format(name=name)]
    for functions in FUNCTIONS.values():
        parts += [_stub(getattr(Ops, f), f, f in OPTIONAL) for f in functions]
    parts.append(_WHOLE.format(whole=", ".join(f"{f}(problem)" for f in WHOLE)))
    return "\n\n".join(part.strip("\n") + "\n" for part in parts)


_WHOLE = """
# Levels `model` and `training` run the project's own GPT-2 over the functions above. To have your
# own graded there, too, define {whole}:
# see minprefix.conformance.contract.
"""


def _stub(function: object, name: str, optional: bool) -> str:
    assert callable(function)
    signature = inspect.signature(function)
    arguments = [_argument(p) for p in list(signature.parameters.values())[1:]]
    line = f"def {name}({', '.join(arguments)}) -> {_type(signature.return_annotation)}:"
    if len(line) > 100:
        inner = "".join(f"    {a},\n" for a in arguments)
        line = f"def {name}(\n{inner}) -> {_type(signature.return_annotation)}:"
    doc = inspect.cleandoc(function.__doc__ or "").splitlines()
    consumed = CONSUMED.get(name, ())
    doc.append("")
    doc.append(
        f"May overwrite {' and '.join(consumed)}; keeps the rest." if consumed else "Keeps all."
    )
    if optional:
        doc.append("Optional: only gradients of weights need it.")
    body = "\n".join(f"    {row}".rstrip() for row in doc)
    return f'{line}\n    """{body.strip()}\n    """\n    raise NotImplementedError'


def _argument(parameter: inspect.Parameter) -> str:
    return f"{parameter.name}: {_type(parameter.annotation)}"


def _type(annotation: object) -> str:
    """As one writes it in a file that imports the names of the contract."""
    if annotation is contract.Array:
        return "Array"
    said = annotation.__name__ if isinstance(annotation, type) else str(annotation)
    if hasattr(annotation, "__args__"):
        said = str(annotation)
    for long, short in (
        ("collections.abc.", ""),
        ("minprefix.ops.contract.", ""),
        ("numpy.ndarray", "Array"),
        ("numpy.", "np."),
    ):
        said = said.replace(long, short)
    return said
