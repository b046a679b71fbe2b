"""`minprefix gradcheck`: which functions of a file it finds, what it says of them, and what it asks
for."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from minprefix import cli
from minprefix.gradcheck import cases, pieces
from minprefix.gradcheck.stub import stub

RMSNORM = """
import numpy as np

def rms_norm(x, weight, eps=1e-6):
    r = 1 / np.sqrt((x * x).mean(-1, keepdims=True) + eps)
    return x * r * weight

def rms_norm_backward(dout, x, weight, eps=1e-6):
    r = 1 / np.sqrt((x * x).mean(-1, keepdims=True) + eps)
    d = dout * weight
    dx = r * d - x * r**3 * (d * x).mean(-1, keepdims=True)
    return dx, (dout * x * r).reshape(-1, len(weight)).sum(0)
"""

MIXED = """
import numpy as np

class Sigmoid:
    def forward(self, x):
        self.s = 1 / (1 + np.exp(-x))
        return self.s

    def backward(self, dout):
        return dout * self.s * (1 - self.s)

def Sigmoid_inputs():
    return {"x": np.linspace(-2, 2, 12).reshape(3, 4)}

class Power:
    @staticmethod
    def forward(ctx, x, n=3):
        ctx.save_for_backward(x)
        ctx.n = n
        return x**n

    @staticmethod
    def backward(ctx, dout):
        (x,) = ctx.saved_tensors
        return dout * ctx.n * x ** (ctx.n - 1), None

class Linear:
    def __init__(self, n):
        self.W = np.arange(n * n).reshape(n, n) / 7

    def forward(self, x):
        return x @ self.W, x

    def backward(self, dout, x):
        assert x.shape == dout.shape
        return dout @ self.W.T

mine = Linear(4)

def tanh(x):
    return np.tanh(x)

def slope(dout, x):
    return dout * (1 - np.tanh(x) ** 2)
"""


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    """Runs the command in a folder of its own: -> exit status, and what it printed."""
    monkeypatch.chdir(tmp_path)

    def run(*words):
        before = set(sys.modules)
        try:
            status = cli.main(["gradcheck", *words])
        finally:
            for name in set(sys.modules) - before:
                if not name.startswith("minprefix"):
                    del sys.modules[name]
        said = capsys.readouterr()
        return status, said.out + said.err

    return run


def write(text, name="my.py"):
    Path(name).write_text(text, encoding="utf-8")


def planted(piece, old, new):
    text = Path(pieces.__file__).read_text(encoding="utf-8")
    assert text.count(old) == 1
    write(text.replace(old, new))


@pytest.mark.parametrize("piece", cases.CASES)
def test_a_stub_is_filled_in_from_top_to_bottom(run, piece):
    status, said = run("--new", piece, "my.py")
    assert status == 0
    assert f"minprefix gradcheck my.py:{piece}" in said
    status, said = run(f"my.py:{piece}")
    assert (status, said.count("is not written yet")) == (1, 1)
    text = Path("my.py").read_text()
    forward, backward = text.split(f"def {piece}_backward")
    call = re.search(r"def \w+\((.*)\):", text)[1]
    arguments = ", ".join(a.split("=")[0] for a in call.split(", "))
    right = f"from minprefix.gradcheck import pieces\n    return pieces.{piece}"
    forward = forward.replace("raise NotImplementedError", f"{right}({arguments})")
    write(f"{forward}def {piece}_backward{backward}")
    status, said = run(f"my.py:{piece}", "--only", "usual")
    assert status == 1
    assert f"1. {piece}_backward\n   is not written yet" in said
    backward = backward.replace("raise NotImplementedError", f"{right}_backward(dout, cache)")
    backward = backward.replace("(dz, cache):", "(dout, cache):")
    write(f"{forward}def {piece}_backward{backward}")
    status, said = run(f"my.py:{piece}", "--only", "usual")
    assert status == 0, said
    assert f"gradcheck of {piece}: passed" in said


def test_a_stub_tells_the_formula_and_its_source():
    for piece in cases.CASES:
        text = stub(piece)
        assert re.search(r", (19|20)\d\d", text), piece
        assert text.count('"""') == 4


def test_a_piece_under_another_name_and_in_the_other_form_passes(run):
    write(RMSNORM)
    status, said = run("my.py:rms_norm")
    assert status == 0, said
    assert re.search(r"dweight +error \d\.\de-1\d, by complex step", said)


def test_the_reason_stands_in_the_report_and_the_reproducer_shows_both_values(run):
    write(RMSNORM.replace("(d * x).mean(", "(d * x).sum("))
    status, said = run("my.py:rms_norm")
    assert status == 1
    assert "1. rms_norm_backward, dx\n" in said
    assert "7 = C: is a sum\n     taken where a mean belongs?" in said
    got, want = re.search(r"worst: \[.*?\] is (\S+), not (\S+);", said).groups()
    lines = re.search(r"in Python:\n((       .*\n)+)", said)[1]
    code = "\n".join(line[7:] for line in lines.splitlines())
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    words = re.fullmatch(r"(\S+) is wrong, (\S+) is right\n", shown.stdout).groups()
    values = [float(word) for word in words]
    np.testing.assert_allclose(values, [float(got), float(want)], rtol=1e-7)


def test_the_reproducer_of_a_measured_gradient_shows_both_values(run):
    write(MIXED.replace("self.s * (1 - self.s)", "self.s"))
    status, said = run("my.py:Sigmoid")
    assert status == 1
    assert "dx is dout times the output" in said
    _, got, want = re.search(r"worst: \[(.*?)\] is (\S+), not (\S+);", said).groups()
    lines = re.search(r"in Python:\n((       .*\n)+)", said)[1]
    code = "\n".join(line[7:] for line in lines.splitlines())
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    values = [float(word) for word in shown.stdout.strip(" ()\n").split(", ")]
    np.testing.assert_allclose(values, [float(got), float(want)], rtol=1e-7)


def test_layers_and_functions_of_any_name_are_found(run):
    write(MIXED)
    for words in (
        ("my.py:Sigmoid",),
        ("my.py:sigmoid", "--input", "x=3x2"),
        ("my.py:Power", "--input", "x=3x4"),
        ("my.py:mine", "--input", "x=3x4"),
        ("my.py:tanh", "--backward", "slope", "--input", "x=7"),
    ):
        status, said = run(*words)
        assert (status, "passed" in said) == (0, True), said
    status, said = run("my.py", "--input", "x=3x4")
    assert status == 0
    assert "gradcheck of Sigmoid.forward: passed" in said
    assert "gradcheck of Power.forward: passed" in said
    assert "my.py:Linear cannot be made without arguments" in said


TORCH = """
import torch

asarray = torch.tensor

class Softmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        out = torch.softmax(x, -1)
        ctx.save_for_backward(out)
        return out

    @staticmethod
    def backward(ctx, dout):
        (out,) = ctx.saved_tensors
        return out * (dout - (out * dout).sum(-1, keepdim=True))

class SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(x, W_gate, W_up, W_down):
        return (torch.nn.functional.silu(x @ W_gate) * (x @ W_up)) @ W_down

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, dout):
        x, W_gate, W_up, W_down = ctx.saved_tensors
        gate, up = x @ W_gate, x @ W_up
        s, d = torch.sigmoid(gate), dout @ W_down.T
        dgate, dup = d * up * s * (1 + gate * (1 - s)), d * gate * s
        down = (gate * s * up).T @ dout
        return dgate @ W_gate.T + dup @ W_up.T, x.T @ dgate, x.T @ dup, down
"""


def test_autograd_functions_of_pytorch_are_graded(run):
    pytest.importorskip("torch")
    write(TORCH)
    status, said = run("my.py")
    assert status == 0, said
    assert "gradcheck of Softmax.forward: passed" in said
    assert "gradcheck of SwiGLU.forward: passed" in said
    write(TORCH.replace("(out * dout).sum(-1, keepdim=True)", "0"))
    status, said = run("my.py:softmax", "--only", "usual")
    assert status == 1
    assert "1. Softmax.backward, dx" in said
    assert "dx is dout * out: the row sum is missing" in said


def test_json_tells_everything(run):
    write(RMSNORM.replace("(d * x).mean(", "(d * x).sum("))
    status, said = run("my.py:rms_norm", "--json", "-")
    told = json.loads(said)
    assert (status, told["passed"]) == (1, False)
    (function,) = told["functions"]
    assert function["findings"][0]["function"] == "rms_norm_backward"
    assert function["findings"][0]["kind"] == "value"
    status, said = run("my.py:rms_norm", "--json", "out.json", "--only", "square")
    assert (status, "gradcheck of" in said) == (1, True)
    assert json.loads(Path("out.json").read_text())["functions"][0]["errors"]


def test_three_findings_are_explained_and_all_on_request(run):
    planted("swiglu", "dinner = dout @ W_down.T", "dinner = 3 * dout @ W_down.T")
    text = Path("my.py").read_text().replace("silu * up).T @ dout", "silu * up).T @ dout * 2")
    write(text)
    _, said = run("my.py:swiglu", "--only", "usual")
    assert said.count("times the right one everywhere") == 3
    assert "Also wrong (--all explains them, too):\n  swiglu_backward: dW_down" in said
    _, said = run("my.py:swiglu", "--only", "usual", "--all")
    assert said.count("times the right one everywhere") == 4


def test_rounding_is_named_with_its_precision(run):
    write(
        RMSNORM.replace(
            "    return x * r * weight", "    return np.float64(np.float32(x * r * weight))"
        )
    )
    _, said = run("my.py:rms_norm", "--only", "usual")
    assert "single precision (float32)" in said


def test_the_list_shows_each_piece_and_case(run):
    status, said = run("--list")
    assert status == 0
    assert "gqa(q, k, v)\n" in said
    assert said.count("\n  float32 ") == len(cases.CASES)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "nothing to check: give a file and a function"),
        (["none.py:f"], "none.py does not exist"),
        (["my.py:f"], "my.py has no 'f': it has Sigmoid, Sigmoid_inputs, Power, Linear, tanh"),
        (["my.py:tanh"], "my.py has no tanh_backward or tanh_bwd or tanh_grad"),
        (["my.py:tanh", "--backward", "no"], "my.py has no no, the backward of tanh"),
        (["my.py", "--backward", "slope"], "give the forward's name as well: my.py:NAME"),
        (["my.py:tanh", "--backward", "slope"], "tanh_inputs() in the file, which returns its"),
        (["my.py:mine", "--input", "y=3"], "mine.forward has no argument y, it takes (x)"),
        (["my.py:mine", "--input", "x"], "--input x: expected an argument and its shape"),
        (["my.py:mine", "--input", "x=0"], "--input x=0: expected an argument and its shape"),
        (["my.py:Sigmoid", "--only", "usual"], "Sigmoid.forward has no cases, its inputs are"),
        (["my.py:rope", "--only", "no"], "rope has no case 'no': it has usual, positions"),
        (["--new", "rms", "new.py"], "--new rms: expected one of softmax, rmsnorm"),
        (["--new", "rmsnorm", "my.py"], "my.py exists: choose another name"),
        (["--new", "rmsnorm", "new.txt"], "new.txt is not the name of a Python file"),
        (["my.py:Sigmoid", "--json", "."], "--json . is a folder"),
        (["bad.py"], "bad.py has no function with a backward"),
        (["bad.py:f", "--backward", "g"], "f_inputs() raised ValueError: no numbers"),
    ],
)
def test_what_cannot_be_run_is_a_sentence(run, words, said):
    write(MIXED + "\nfrom minprefix.gradcheck.pieces import rope, rope_backward\n")
    write(
        "def f(x): ...\ndef g(x): ...\ndef f_inputs(): raise ValueError('no numbers')\n", "bad.py"
    )
    status, out = run(*words)
    assert status == 2
    assert out.startswith("minprefix: error: ")
    assert said in out
    assert out.count("\n") == 1


def test_arguments_that_the_cases_do_not_have_are_a_finding(run):
    write("def rope(x, cos, sin, base):\n    return x\ndef rope_backward(dout, *a): return dout\n")
    status, said = run("my.py:rope")
    assert status == 1
    assert "the cases of rope call it with (x, positions, base)" in re.sub(r"\n +", " ", said)
    assert "rope_inputs()" in said


@pytest.mark.parametrize(
    ("piece", "old", "new", "kind"),
    [
        ("softmax", "return out * (dout - row_sum)", "return out * dout", "value"),
        ("rmsnorm", ".reshape(-1, len(gain)).sum(axis=0)", "", "shape"),
        ("embedding", "np.zeros(table.shape, dout.dtype)", "np.zeros(table.shape)", "dtype"),
        ("batchnorm", "dxhat - dxhat.mean(axis=0) - xhat", "dxhat - xhat", "value"),
    ],
)
def test_each_finding_of_the_graded_cases_has_lines_that_show_it(
    run, capsys, piece, old, new, kind
):
    planted(piece, old, new)
    _, said = run(f"my.py:{piece}", "--json", "-")
    findings = json.loads(said)["functions"][0]["findings"]
    assert findings[0]["kind"] == kind
    for finding in findings:
        exec(finding["reproducer"], {})
        shown = capsys.readouterr().out
        wrong, right = re.fullmatch(r"(.+) is wrong, (.+) is right\n", shown).groups()
        assert wrong != right
