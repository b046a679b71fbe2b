"""The files that `minprefix check --new` writes: every function of the contract, or the three of a
whole model, in NumPy or in PyTorch, to be filled in."""

import inspect

from minprefix.conformance.contract import (
    FUNCTIONS,
    OPTIONAL,
    WHOLE,
    ModelProblem,
    TrainingProblem,
    Whole,
    model_tensors,
)
from minprefix.gpt2 import Config
from minprefix.ops import contract
from minprefix.ops.contract import CONSUMED, Ops

_HEAD = '''"""An implementation of the contract of minprefix: fill in what you have, then run

    minprefix check {name}

A function that raises NotImplementedError is reported as not implemented; the rest is graded.
Symbols: N tokens in the batch, B sequences, T length of one sequence, P prefix length, NH heads,
hs head size, C = NH*hs, V vocabulary, M targets. {caches}

{arrays}
"""
'''

_NUMPY_CACHES = """The caches are named tuples: make your own if you
need other fields, but attention's must have q, k and v, which the model reads; a field that is
called as in the contract is graded as what the contract says it is."""

_NUMPY_ARRAYS = """\
For arrays that are not NumPy's, define asarray(a), which takes a NumPy array to your own kind, and
asnumpy(a), which takes a result back."""

_NUMPY = """
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
"""

_TORCH_CACHES = """A cache is what you like,
a dictionary or a named tuple; attention's must have q, k and v, which the model reads."""

_TORCH_ARRAYS = """\
Every array comes as a tensor of the type that NumPy's had: float64 where precision is graded. A
result in another type is a finding, so make new tensors of the type of what you were given."""

_TORCH = '''
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor


def asarray(a: np.ndarray) -> Tensor:
    """What the functions below are given. It keeps the type."""
    return torch.tensor(a)


{asnumpy}
'''

_ASNUMPY = '''def asnumpy(a: Tensor) -> np.ndarray:
    """What is graded of what they give."""
    return a.detach().cpu().numpy()'''

_WHOLE_HEAD = '''\
"""A whole model for the reference suite of minprefix: fill in what you have, then run

    minprefix check {name}

A function that raises NotImplementedError is reported as not implemented; the rest is graded. What
is given and what is asked for is written out in minprefix.conformance.contract. Symbols: L layers,
NH heads, hs head size, C = NH*hs, F hidden width, N tokens in the batch, M targets, B sequences, P
prefix length, V vocabulary.
{arrays}"""

from collections.abc import Mapping

'''

_WHOLE_TORCH = """
The problem holds NumPy arrays: torch.tensor(a) keeps their type, float64 where precision is graded,
and a model's parameters are float32 unless you say `.double()`. Results may be tensors.
"""


def text(name: str, whole: bool = False, torch: bool = False) -> str:
    """The whole file; `name`: what it will be called; `whole`: a model in the place of the ops;
    `torch`: in PyTorch."""
    # it stands in a docstring, and any bytes are a name on Linux
    name = name.encode("utf-8", "backslashreplace").decode()
    name = name.replace("\\", r"\\").replace('"', r"\"")
    parts = _whole(name, torch) if whole else _ops(name, torch)
    return "\n\n".join(part.strip("\n") + "\n" for part in parts)


def _ops(name: str, torch: bool) -> list[str]:
    caches, arrays = (_TORCH_CACHES, _TORCH_ARRAYS) if torch else (_NUMPY_CACHES, _NUMPY_ARRAYS)
    head = _HEAD.format(name=name, caches=caches, arrays=arrays)
    parts = [head + (_TORCH.format(asnumpy=_ASNUMPY) if torch else _NUMPY)]
    for functions in FUNCTIONS.values():
        parts += [_stub(getattr(Ops, f), f, f in OPTIONAL, torch) for f in functions]
    return [*parts, _MODEL.format(whole=", ".join(f"{f}(problem)" for f in WHOLE))]


_MODEL = """
# Levels `model` and `training` run the project's own GPT-2 over the functions above. To have your
# own graded there, too, define {whole}:
# `minprefix check --new FILE --whole` writes them.
"""


def _whole(name: str, torch: bool) -> list[str]:
    imports = "import numpy as np\n" + ("from torch import Tensor\n" if torch else "")
    contract_of = ", ".join(p.__name__ for p in (ModelProblem, TrainingProblem))
    head = _WHOLE_HEAD.format(name=name, arrays=_WHOLE_TORCH if torch else "")
    head += f"{imports}\nfrom minprefix.conformance.contract import {contract_of}\n"
    kind = "np.ndarray | Tensor" if torch else "np.ndarray"
    parts = [head, _ASNUMPY] if torch else [head]
    for function in WHOLE:
        problem = (TrainingProblem if function == "run_training" else ModelProblem).__name__
        doc = inspect.cleandoc(getattr(Whole, function).__doc__ or "")
        if function == "run_model":
            doc += "\n\nGraded, too, where it is given:\n\n" + _intermediates()
        body = "\n".join(f"    {row}".rstrip() for row in doc.splitlines())
        parts.append(
            f"def {function}(problem: {problem}) -> Mapping[str, {kind}]:\n"
            f'    """{body.strip()}\n    """\n    raise NotImplementedError'
        )
    return parts


def _intermediates() -> str:
    """The names of what `run_model` may give more, and their axes: of block i, sequence b."""
    config = Config(n_layer=2, n_head=1, n_embd=1, vocab_size=1, n_positions=1)
    rows = []
    for name, axes in model_tensors(config, 1, 1, "prefix").items():
        if name.startswith(("blocks.0.", "prefix.")) or name == "loss":
            continue
        said = name.replace("blocks.1.", "blocks.{i}.").replace("[0]", "[{b}]")
        rows.append(f"    {said:<30}({', '.join(axes.split())})")
    weights = (
        "    d + the name of a weight      as the weight is; wanted where problem.need is 'all'"
    )
    return "\n".join([*rows, weights])


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
    consumed = CONSUMED.get(name, ())
    doc.append("")
    doc.append(
        f"May overwrite {' and '.join(consumed)}; keeps the rest." if consumed else "Keeps all."
    )
    if optional:
        doc.append("Optional: only gradients of weights need it.")
    body = "\n".join(f"    {row}".rstrip() for row in doc)
    return f'{line}\n    """{body.strip()}\n    """\n    raise NotImplementedError'


#: a type of the contract's -> what one writes for it in a file on tensors
_ON_TENSORS = {
    "AttentionGrads": "tuple[Tensor, Tensor, Tensor, Sequence[Tensor], Sequence[Tensor]]",
    "AttentionCache": "Any",
    "CrossEntropyCache": "Any",
    "GeluCache": "Any",
    "LayernormCache": "Any",
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
