"""The file that `minprefix gradcheck --new PIECE FILE` writes: the piece's two functions, to be
filled in."""

import ast
import re
from pathlib import Path

from minprefix.conformance.stubs import new_file
from minprefix.errors import InputError
from minprefix.gradcheck import cases, pieces

_HEAD = '''"""{piece} and its backward. To check them, also while the backward is missing:

    minprefix gradcheck {file}:{piece}

The forward returns its result and a cache: whatever the backward needs. Neither writes into what it
is given. Arrays are NumPy's; for those of another library, define asarray(a), which makes one of a
NumPy array.
"""

import numpy as np


'''


def write_stub(piece: str, path: Path) -> None:
    """Raises InputError for a name that is no piece's, and where the file exists."""
    if piece not in cases.CASES:
        raise InputError(f"--new {piece}: expected one of {', '.join(cases.CASES)}")
    text = _HEAD.format(piece=piece, file=new_file(path))
    path.write_text(text + stub(piece), encoding="utf-8", newline="\n")


def stub(piece: str) -> str:
    """The piece's formula and source, and its two functions without their bodies."""
    text = Path(pieces.__file__).read_text(encoding="utf-8")
    functions = {f.name: f for f in ast.parse(text).body if isinstance(f, ast.FunctionDef)}
    above = text[: text.index(f"\ndef {piece}(")]
    formula = re.match("(#.*\n)+", above[above.rindex("# ---- ") :])
    assert formula is not None
    parts = [formula[0]]
    for name in (piece, f"{piece}_backward"):
        f = functions[name]
        for argument in f.args.args:
            argument.annotation = None
        doc = ast.get_docstring(f) or ""
        body = "\n".join(f"    {row}".rstrip() for row in doc.splitlines()).strip()
        line = f"def {name}({ast.unparse(f.args)}):"
        parts.append(f'\n\n{line}\n    """{body}"""\n    raise NotImplementedError\n')
    return "".join(parts)
