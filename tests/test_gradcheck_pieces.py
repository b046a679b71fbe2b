"""The pieces are right, and `gradcheck` and the graded cases find every mistake that is planted in
them."""

import json
import sys
import types
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minprefix.errors import InputError
from minprefix.gradcheck import Report, cases, gradcheck, pieces
from minprefix.gradcheck.graded import grade
from minprefix.gradcheck.mistakes import OF
from minprefix.gradcheck.source import Source, find
from tests.gpu import stand_in
from tests.gradcheck import others, student
from tests.gradcheck.bugs import BUGS, WRONG_VALUES, Bug

EVERY = [(piece, case) for piece in cases.CASES for case in cases.names(piece)]


def source(module: Any, piece: str, asarray: Any = None) -> Source:
    f, back = getattr(module, piece), getattr(module, f"{piece}_backward")
    return Source(piece, f, back, piece, None, asarray)


def check(module: Any, piece: str, case: str) -> Report:
    inputs = cases.inputs(piece, case).values()
    return gradcheck(getattr(module, piece), getattr(module, f"{piece}_backward"), *inputs)


def real_only(f: Any) -> Any:
    """The function as one that writes into a buffer of real numbers has it."""

    def forward(*inputs: Any) -> Any:
        out, cache = f(*inputs)
        assert not np.iscomplexobj(out), "no complex numbers here"
        return out, cache

    return forward


# ---- right ones pass -----------------------------------------------------------------------------


@pytest.mark.parametrize(("piece", "case"), EVERY, ids=map("/".join, EVERY))
def test_a_piece_passes_to_the_last_digits(piece, case):
    report = check(pieces, piece, case)
    assert report, str(report)
    single = case == "float32"
    assert report.error <= (1e-5 if single else 1e-13)
    assert set(report.methods.values()) == {"complex step"}


@pytest.mark.parametrize("piece", cases.CASES)
def test_a_piece_passes_by_differences_to_nine_digits(piece):
    inputs = cases.inputs(piece, "usual").values()
    backward = getattr(pieces, f"{piece}_backward")
    report = gradcheck(real_only(getattr(pieces, piece)), backward, *inputs)
    assert report, str(report)
    assert set(report.methods.values()) == {"differences"}
    assert report.error <= 1e-9


@pytest.mark.parametrize("piece", cases.CASES)
def test_the_graded_cases_pass_the_piece_itself(piece):
    report = grade(source(pieces, piece))
    assert report, str(report)
    wanted = {f"d{name}" for name in cases.AXES[piece]} - {"dout", "dz"}
    assert set(report.errors) == wanted | {f"{name} in float32" for name in wanted}
    assert max(report.errors[name] for name in wanted) <= 1e-13


@pytest.mark.parametrize("piece", cases.CASES)
def test_right_ones_of_another_make_pass(piece):
    (theirs,) = find(f"{others.__file__}:{piece}")
    report = grade(theirs)
    assert report, str(report)
    assert len(report.errors) == 2 * (len(cases.AXES[piece]) - 1)


@pytest.mark.parametrize("piece", cases.CASES)
def test_the_layouts_hold_the_numbers_of_the_usual_case(piece):
    usual, strided, single = (cases.inputs(piece, c) for c in ("usual", "strided", "float32"))
    for name, a in usual.items():
        if isinstance(a, np.ndarray):
            np.testing.assert_array_equal(strided[name], a)
            assert not strided[name].flags.forc, name
            np.testing.assert_array_equal(single[name], a.astype("f4") if a.dtype == "f8" else a)
            assert single[name].dtype == ("f4" if a.dtype == "f8" else a.dtype)


def torch_forms(torch: Any, piece: str) -> tuple[Any, Any]:
    """PyTorch's own function, and autograd for its backward."""
    F = torch.nn.functional
    f = {
        "softmax": lambda x: torch.softmax(x, -1),
        "rmsnorm": lambda x, gain, eps: F.rms_norm(x, gain.shape, gain, eps),
        "swiglu": lambda x, g, u, d: (F.silu(x @ g) * (x @ u)) @ d,
        "gqa": lambda q, k, v: F.scaled_dot_product_attention(
            *(a.transpose(0, 1)[None] for a in (q, k, v)), is_causal=True, enable_gqa=True
        )[0].transpose(0, 1),
        "batchnorm": lambda x, g, b, eps: F.batch_norm(x, None, None, g, b, True, eps=eps),
        "conv1d": lambda x, w, b, stride, padding: F.conv1d(x, w, b, stride, padding),
        "embedding": lambda tokens, table: F.embedding(tokens, table),
        "dropout": lambda x, mask, p: x * mask / (1 - p),
    }[piece]

    def forward(*inputs: Any) -> Any:
        return f(*inputs).detach()

    def backward(dout: Any, *inputs: Any) -> Any:
        leaves = [
            a.detach().requires_grad_() if torch.is_tensor(a) and a.is_floating_point() else a
            for a in inputs
        ]
        wanted = [a for a in leaves if torch.is_tensor(a) and a.requires_grad]
        return torch.autograd.grad(f(*leaves), wanted, dout)

    return forward, backward


OF_TORCH = ["softmax", "rmsnorm", "swiglu", "gqa", "batchnorm", "conv1d", "embedding", "dropout"]


@pytest.mark.parametrize("piece", OF_TORCH)
def test_torchs_own_functions_pass_the_graded_cases(piece):
    torch = pytest.importorskip("torch")
    forward, backward = torch_forms(torch, piece)
    theirs = Source(piece, forward, backward, piece, None, torch.tensor)
    report = grade(theirs)
    assert report, str(report)


def test_torchs_single_precision_passes_and_a_doubled_gradient_does_not():
    torch = pytest.importorskip("torch")
    forward, backward = torch_forms(torch, "rmsnorm")

    def single(a: Any) -> Any:
        return torch.tensor(a, dtype=torch.float32 if a.dtype.kind == "f" else None)

    report = grade(Source("rmsnorm", forward, backward, "rmsnorm", None, single))
    assert report, str(report)

    def doubled(*arguments: Any) -> Any:
        return tuple(2 * g for g in backward(*arguments))

    report = grade(Source("rmsnorm", forward, doubled, "rmsnorm", None, single))
    assert "counted twice" in str(report)


# ---- wrong ones are found, and named -------------------------------------------------------------


def test_there_are_more_than_sixty_bugs_and_each_piece_has_some():
    assert len(BUGS) >= 60
    assert {bug.piece for bug in BUGS} == set(cases.CASES) == set(OF)
    page = (Path(__file__).parents[1] / "docs" / "gradcheck.md").read_text(encoding="utf-8")
    assert f"plant {len(BUGS + WRONG_VALUES + student.MISTAKES)} mistakes" in page


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: f"{bug.piece}/{bug.name}")
def test_gradcheck_finds_each_bug_and_names_the_gradient(bug: Bug):
    module = bug.planted()
    reports = (check(module, bug.piece, case) for case in cases.names(bug.piece))
    report = next((report for report in reports if not report), None)
    assert report is not None, "no case finds it"
    first = report.findings[0]
    assert (first.kind, first.tensor) == (bug.kind, bug.tensor), str(report)


@pytest.mark.parametrize("bug", BUGS + WRONG_VALUES, ids=lambda bug: f"{bug.piece}/{bug.name}")
def test_the_graded_cases_find_each_bug_and_tell_the_reason(bug: Bug):
    wrong = source(bug.planted(), bug.piece)
    report = grade(wrong, ["usual"])
    if report:
        report = grade(wrong)
    assert not report
    first = report.findings[0]
    assert first.tensor in (bug.tensor, "out"), str(report)
    assert bug.told in "\n".join(first.hints) or first.kind == bug.kind == "missing", str(report)


def test_most_reasons_are_given():
    told = [bug for bug in BUGS + WRONG_VALUES if bug.told]
    values = [bug for bug in BUGS + WRONG_VALUES if bug.kind in ("value", "shape", "not finite")]
    assert len(told) >= 0.85 * len(values)


@pytest.mark.parametrize("bug", WRONG_VALUES, ids=lambda bug: f"{bug.piece}/{bug.name}")
def test_a_backward_of_a_wrong_forward_passes_gradcheck_itself(bug: Bug):
    report = check(bug.planted(), bug.piece, "usual")
    assert report or bug.kind == "not finite", str(report)


def giving(a: Any) -> Any:
    return lambda *arguments: a


def raising(error: BaseException) -> Any:
    def f(*arguments: Any) -> Any:
        raise error

    return f


OUT, GAIN = np.zeros((5, 7)), np.zeros(7)  # the shapes of rmsnorm/usual
ODD = [None, 3, "x", [], {}, (), GAIN[:0], np.array(["a"]), np.array([None]), 1j * OUT, object()]
ODD += [(None, None), [1, 2], {"dx": None}, {"dgain": 1}, (OUT, GAIN, 3), (OUT, OUT), OUT * np.nan]
ODD_FUNCTIONS = [*map(giving, ODD), raising(ValueError("a\nb")), raising(SystemExit(3))]
ODD_FUNCTIONS += [lambda: 1, lambda **named: named]


def gradchecked(forward: Any, backward: Any) -> Report:
    return gradcheck(forward, backward, *cases.inputs("rmsnorm", "usual").values())


def graded(forward: Any, backward: Any) -> Report:
    return grade(Source("rmsnorm", forward, backward, "rmsnorm"), ["usual"])


@pytest.mark.parametrize("odd", ODD_FUNCTIONS)
@pytest.mark.parametrize("checked", [gradchecked, graded])
def test_odd_functions_are_findings_or_sentences(odd, checked):
    right = pieces.rmsnorm, pieces.rmsnorm_backward
    for forward, backward in ((odd, right[1]), (right[0], odd), (odd, odd)):
        with suppress(InputError):  # the two do not fit together
            report = checked(forward, backward)
            assert not report
            assert str(report).count("\n1. ") == 1
            json.dumps(report.as_json(), allow_nan=False)


# ---- what students write -------------------------------------------------------------------------

RNG = np.random.default_rng(8)
STUDENTS = {
    "conv_forward": [RNG.normal(size=s) for s in ((2, 3, 7, 5), (4, 3, 3, 3), (4,))] + [2, 1],
    "batchnorm_forward": [RNG.normal(size=s) for s in ((6, 4), (4,), (4,))] + [1e-2],
    "lstm_step_forward": [
        RNG.normal(size=s) for s in ((3, 4), (3, 5), (3, 5), (4, 20), (5, 20), (20,))
    ],
}


def students(forward: str, module: Any = student) -> Report:
    backward = getattr(module, forward.replace("forward", "backward"))
    return gradcheck(getattr(module, forward), backward, *STUDENTS[forward])


@pytest.mark.parametrize("forward", STUDENTS)
def test_what_a_student_writes_passes_where_it_is_right(forward):
    report = students(forward)
    assert report, str(report)
    assert report.error <= 1e-13
    assert len(report.errors) == sum(isinstance(a, np.ndarray) for a in STUDENTS[forward])


@pytest.mark.parametrize(("forward", "old", "new", "tensor"), student.MISTAKES)
def test_what_a_student_gets_wrong_is_found(forward, old, new, tensor):
    text = Path(student.__file__).read_text(encoding="utf-8").split("#: forward, the text")[0]
    assert text.count(old) == 1
    module = types.ModuleType("wrong")
    exec(text.replace(old, new), vars(module))
    report = students(forward, module)
    assert not report
    assert report.findings[0].tensor == tensor, str(report)


# ---- other libraries -----------------------------------------------------------------------------


def jax_forms(jax: Any, piece: str) -> tuple[Any, Any]:
    jnp = jax.numpy

    def rmsnorm(x: Any, gain: Any, eps: float) -> Any:
        return x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + eps) * gain

    def embedding(tokens: Any, table: Any) -> Any:
        return jnp.take(table, tokens, axis=0)

    f = {"softmax": lambda x: jax.nn.softmax(x, -1), "rmsnorm": rmsnorm, "embedding": embedding}
    f |= {"swiglu": lambda x, g, u, d: (jax.nn.silu(x @ g) * (x @ u)) @ d}

    @jax.jit
    def backward(dout: Any, *inputs: Any) -> Any:
        real = [i for i, a in enumerate(inputs) if a.ndim and a.dtype.kind == "f"]

        def of(*wanted: Any) -> Any:
            given = list(inputs)
            for i, a in zip(real, wanted, strict=True):
                given[i] = a
            return f[piece](*given)

        return jax.vjp(of, *(inputs[i] for i in real))[1](dout)

    return jax.jit(f[piece]), backward


@pytest.mark.parametrize(
    ("piece", "precision"),
    [
        pytest.param(piece, precision, marks=() if piece == "rmsnorm" else pytest.mark.long)
        for piece in ("softmax", "rmsnorm", "embedding", "swiglu")
        for precision in ("float64", "float32")
    ],
)
def test_jaxs_own_functions_pass_the_graded_cases(piece, precision):
    jax = pytest.importorskip("jax")
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", precision == "float64")
    try:
        theirs = Source(piece, *jax_forms(jax, piece), piece, None, jax.numpy.asarray)
        report = grade(theirs, ["usual", "strided"])
    finally:
        jax.config.update("jax_enable_x64", before)
    assert report, str(report)
    assert (report.error < 1e-10) == (precision == "float64")


@pytest.mark.filterwarnings("ignore:Casting complex values")
def test_arrays_of_the_gpu_pass_and_their_mistakes_are_found(monkeypatch):
    if not stand_in.available():
        pytest.skip("the stand-in compiles the kernels with g++, which is not installed")
    cupy = stand_in.module()
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setattr(stand_in.Array, "__module__", "cupy")  # as CuPy's arrays say

    def rmsnorm(x: Any, gain: Any, eps: float) -> Any:
        rstd = ((x * x).mean(axis=-1, keepdims=True) + eps) ** -0.5
        return x * rstd * gain, (x, gain, rstd)

    def rmsnorm_backward(dout: Any, cache: Any) -> Any:
        x, gain, rstd = cache
        xhat, d = x * rstd, dout * gain
        dx = rstd * (d - xhat * (d * xhat).mean(axis=-1, keepdims=True))
        return dx, (dout * xhat).reshape(-1, gain.shape[0]).sum(axis=0)

    def doubled(dout: Any, cache: Any) -> Any:
        return rmsnorm_backward(dout + dout, cache)

    theirs = Source("rmsnorm", rmsnorm, rmsnorm_backward, "rmsnorm", None, cupy.asarray)
    report = grade(theirs, ["usual", "three-axes"])
    assert report, str(report)
    wrong = grade(theirs._replace(backward=doubled), ["usual"])
    assert "counted twice" in str(wrong)
