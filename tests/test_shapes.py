"""The trailing shape comments of the source are claims: each of them is held against a real run."""

import ast
import re
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from minprefix import Batch, Config, MLPPrefix, Prefix, gpt2, loss_and_grad, loss_and_weight_grads
from minprefix import model as model_module
from minprefix import prefix as prefix_module
from minprefix.ops import numpy_ops, reference
from tests.conftest import random_model

# numbers without common meaning, so that no two symbols can stand in for each other
SIZES = {"B": 2, "T": 7, "P": 5, "NH": 3, "hs": 11, "C": 33, "V": 53, "F": 41, "L": 4, "layers": 4}
SIZES |= {"hidden": 13, "n_positions": 61, "N": 14, "M": 6}
CONFIG = Config(n_layer=4, n_head=3, n_embd=33, vocab_size=53, n_positions=61, n_inner=41)
MODULES = [reference, numpy_ops, gpt2, model_module, prefix_module]


class Claim(NamedTuple):
    """What a line says of the arrays that it assigns or returns."""

    first: int
    last: int
    names: list[str]  # empty: the returned value
    shapes: list[str]  # "(N, C)"
    each: bool


def claims(path: Path) -> list[Claim]:
    source = path.read_text(encoding="utf-8")
    lines = source.split("\n")
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Assign | ast.Return):
            continue
        comment = re.search(r"  # ((\([^()]*\)(, )?)+)(.*)", lines[node.end_lineno - 1])
        if comment is None:
            continue
        names = []
        if isinstance(node, ast.Assign):
            target = node.targets[0]
            elements = target.elts if isinstance(target, ast.Tuple) else [target]
            names = [e.id for e in elements if isinstance(e, ast.Name)]
            if not names:
                continue
        shapes = re.findall(r"\([^()]*\)", comment[1])
        each = comment[4].startswith(" each")
        found.append(Claim(node.lineno, node.end_lineno, names, shapes, each))
    return found


def is_true(value: Any, shape: str) -> bool:
    """Does the value have the shape "(NH, P+T)" or "(N, 3C)"? A linear layer's `in` and `out` are
    any; an op's N is its number of rows, which the head calls M, a block n and the prefix's MLP
    P."""
    terms = [re.sub(r"(\d)([A-Za-z])", r"\1*\2", t).strip() for t in shape.strip("()").split(",")]
    terms = [t for t in terms if t]
    actual = (len(value),) if isinstance(value, list) else value.shape
    N, M, P = SIZES["N"], SIZES["M"], SIZES["P"]
    for n, m in ((N, M), (M, M), (N, N), (P, M)):
        symbols = SIZES | {"N": n, "M": m, "n": n, "m": m}
        wanted = [
            a if t in ("in", "out") else eval(t, {"__builtins__": {}}, symbols)
            for t, a in zip(terms, actual, strict=False)
        ]
        if len(terms) == len(actual) and list(actual) == wanted:
            return True
    return False


def run_everything() -> None:
    model = random_model(CONFIG)
    tokens = np.random.default_rng(0).integers(1, 53, (2, 7))
    batch = Batch.pack(list(tokens), loss_from=4)
    flat = Prefix.normal(CONFIG, 5, dtype="float64")
    for ops in ("reference", "numpy"):
        model.logits(batch, flat, ops)
        loss_and_grad(model, flat, batch, ops=ops)
        loss_and_weight_grads(model, batch, flat, ops=ops)
    mlp = MLPPrefix.random(CONFIG, 5, hidden=13, dtype="float64")
    _, dkv = loss_and_grad(model, mlp, batch)
    mlp.backward(dkv)


def observe(path: Path) -> tuple[list[Claim], list[str]]:
    """Run everything and look at each claimed value. -> the claims that no run reached, and what
    was false."""
    all_claims = claims(path)
    seen: set[int] = set()
    false: list[str] = []

    def check(claim: Claim, values: list[Any]) -> None:
        if claim.each:  # one shape for all: for several names, or for the arrays of a list
            values = [a for v in values for a in (v if isinstance(v, list) else [v])]
        shapes = claim.shapes * len(values) if claim.each else claim.shapes
        for value, shape in zip(values, shapes, strict=False):  # what has no shape stands last
            seen.add(claim.last)
            if not is_true(value, shape):
                what = ", ".join(claim.names) or "the result"
                false.append(f"line {claim.last}: {what} has {np.shape(value)}, said {shape}")

    def trace(frame: Any, event: str, argument: Any) -> Any:
        if frame.f_code.co_filename != str(path):
            return None
        before = [0]  # the line that ran last in this frame

        def local(frame: Any, event: str, argument: Any) -> Any:
            for claim in all_claims:
                if claim.first <= before[0] <= claim.last:
                    done = event == "return" or not claim.first <= frame.f_lineno <= claim.last
                    if claim.names and done and claim.names[0] in frame.f_locals:
                        check(claim, [frame.f_locals[n] for n in claim.names])
                    if not claim.names and event == "return":
                        check(claim, [*argument] if isinstance(argument, tuple) else [argument])
            before[0] = frame.f_lineno
            return local

        return local

    old = sys.gettrace()
    sys.settrace(trace)
    try:
        run_everything()
    finally:
        sys.settrace(old)
    return [c for c in all_claims if c.last not in seen], false


@pytest.mark.parametrize("module", MODULES, ids=lambda m: m.__name__)
def test_every_shape_comment_is_true_of_a_real_run(module):
    path = Path(module.__file__)
    unseen, false = observe(path)
    assert len(claims(path)) > 1
    assert not false, "\n".join(sorted(set(false)))
    # a claim that no run reaches proves nothing
    assert not unseen, f"never looked at: {unseen}"


def test_a_false_shape_comment_is_found(tmp_path, monkeypatch):
    path = Path(reference.__file__)
    wrong = [c._replace(shapes=["(N, C, C)"] * len(c.shapes)) for c in claims(path)]
    monkeypatch.setattr(sys.modules[__name__], "claims", lambda path: wrong)
    _, false = observe(path)
    lines = {int(re.search(r"\d+", sentence).group()) for sentence in false}
    assert lines == {c.last for c in wrong}
