"""Right implementations of many shapes: the suite accuses none of them."""

import inspect
import re
import time
import types
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from minprefix.conformance import Implementation, grade, load, run, select, zoo
from minprefix.conformance.cases import Case
from minprefix.conformance.clock import Clock, OutOfTime, shape
from minprefix.conformance.contract import ARGUMENTS, FUNCTIONS
from minprefix.conformance.house import House
from minprefix.conformance.house import _start as house_start
from minprefix.conformance.isolated import run_isolated
from minprefix.conformance.op_cases import case_of
from minprefix.conformance.report import as_json, passed, text
from minprefix.conformance.suite import all_checks
from minprefix.model import GPT2
from minprefix.ops import contract, reference

from .test_conformance import in_single, torch_ops


def of(functions, **others):
    """The functions of a module or object, some of them replaced."""
    own = {name: getattr(functions, name) for name in dir(functions) if name in HANDED_ON}
    return Implementation(types.SimpleNamespace(**own | others), "mine")


HANDED_ON = (*ARGUMENTS, "asarray", "asnumpy")


def marked_long(value):
    return pytest.param(value, marks=pytest.mark.long)


def accused(results):
    return [(r.check, f.function, f.tensor, f.sentence) for r in results for f in r.findings]


# ---- what asarray makes of the numbers ----


@pytest.mark.parametrize("only", [["layernorm/", "training/one-step"], marked_long([])])
def test_single_precision_by_asarray_is_graded_as_that_and_the_report_says_so(only):
    results = run(of(reference, asarray=in_single), select(only))
    assert accused(results) == []
    assert {r.status for r in results} == {"passed"}
    assert text(results, "mine").endswith(
        "checks passed\ngraded in single precision: float64 is rounded to float32, and less than "
        "that does not show"
    )
    assert "in single precision" not in text(run(of(reference), select(["gelu"])), "mine")


@pytest.mark.long
def test_pytorchs_own_functions_in_single_precision_pass():
    results = run(of(torch_ops(), asarray=lambda a: torch.tensor(in_single(a))))
    assert accused(results) == []


def test_a_sharp_pattern_in_single_precision_may_come_from_scaled_dot_product_attention():
    """It splits the scale between queries and keys, so that other products round."""

    def attention(q, k, v, prefix_k, prefix_v, offsets):
        inputs = [a.detach().requires_grad_() for a in (q, k, v, *prefix_k, *prefix_v)]
        z, B = [], len(prefix_k)
        for b in range(B):
            rows = slice(int(offsets[b]), int(offsets[b + 1]))
            query, *own = (a[rows].swapaxes(0, 1) for a in inputs[:3])
            pair = zip((inputs[3 + b], inputs[3 + B + b]), own, strict=True)
            key, value = (torch.cat(each, 1) for each in pair)
            P, T = prefix_k[b].shape[1], query.shape[1]
            mask = torch.ones(T, P + T, dtype=torch.bool).tril(P)
            out = torch.nn.functional.scaled_dot_product_attention(
                query[None], key[None], value[None], mask
            )
            z.append(out[0].swapaxes(0, 1))
        return torch.cat(z), (inputs, torch.cat(z))

    def attention_backward(dz, cache):
        dq, dk, dv, *rest = torch.autograd.grad(cache[1], cache[0], dz, retain_graph=True)
        return dq, dk, dv, rest[: len(rest) // 2], rest[len(rest) // 2 :]

    made = {"attention": attention, "attention_backward": attention_backward}
    own = {"asarray": lambda a: torch.tensor(in_single(a)), "asnumpy": lambda a: a.detach().numpy()}
    mine = Implementation(types.SimpleNamespace(**made, **own), "mine")
    result = grade(all_checks()["attention/sharp"], mine)
    assert accused([result]) == []
    assert result.errors["dprefix_k[0]"] > 2e-5  # beyond single precision's usual error


def test_the_right_answer_is_that_to_the_numbers_that_asarray_gave():
    mine, case = of(reference, asarray=in_single), case_of("layernorm", "far-from-zero")
    mine.functions.layernorm = lambda x, gain, bias, eps: reference.layernorm(
        x.astype("f8"), gain.astype("f8"), bias.astype("f8"), eps
    )
    result = grade(all_checks()["layernorm/far-from-zero"], mine)
    assert result.errors["out"] < 1e-13  # against the numbers before asarray it is above 1e-5
    assert np.abs(case.expected(mine)["out"] - case.expected()["out"]).max() > 1e-5
    assert [f.kind for f in result.findings] == ["dtype"] * len(result.findings)


def test_single_precision_hides_no_mistake_that_is_larger_than_its_rounding():
    def layernorm_backward(dout, cache):
        return reference.layernorm_backward(dout, cache) * np.float32(1.001)

    mine = of(reference, asarray=in_single, layernorm_backward=layernorm_backward)
    results = run(mine, select(["layernorm/", "model/one-sequence"]))
    failed = {r.check for r in results if r.findings}
    assert {"layernorm/usual", "layernorm/by-hand", "model/one-sequence"} <= failed
    assert {f for _, f, _, _ in accused(results)} & {*ARGUMENTS} == {"layernorm_backward"}


def test_an_asarray_that_changes_more_than_rounding_excuses_nothing():
    doubled = of(reference, asarray=lambda a: 2 * a if a.dtype.kind == "f" else a)
    found = grade(all_checks()["linear/no-bias"], doubled, zoo=False).findings
    assert "4 times the right one everywhere" in found[0].hints[0]
    assert not doubled.rounds


def test_an_asarray_that_raises_is_named():
    def asarray(a):
        raise RuntimeError("no such device")

    found = grade(all_checks()["linear/usual"], of(reference, asarray=asarray)).findings
    assert {f.kind for f in found} == {"exception"}
    assert "asarray raised RuntimeError: no such device (test_right" in found[0].sentence
    assert found[0].function == "asarray"


def test_bfloat16_by_asarray_is_compared_with_its_numbers():
    def asarray(a):
        t = torch.tensor(a)
        return t.bfloat16().double() if t.is_floating_point() else t

    coarse = of(torch_ops(), asarray=asarray)
    assert accused(run(coarse, select(["linear/", "embed/"]))) == []
    case = Case("linear")
    assert np.abs(case.expected(coarse)["out"] - case.expected()["out"]).max() > 1e-3


# ---- training as torch does it ----


def torch_training(problem, clip=torch.nn.utils.clip_grad_norm_):
    """torch's AdamW, clipping and schedule on this project's gradients."""
    p, house = problem, House(reference)
    own = [
        {n: torch.tensor(a, requires_grad=True) for n, a in each.items()} for each in p.parameters
    ]
    leaves = [leaf for each in own for leaf in each.values()]
    adam = torch.optim.AdamW(leaves, p.lr, (p.beta1, p.beta2), p.eps, p.weight_decay)
    model, found = GPT2(p.config, dict(p.weights), "torch's"), {}
    for s, step in enumerate(p.steps):
        arrays = [{n: leaf.detach().numpy() for n, leaf in each.items()} for each in own]
        prefixes = [house_start(each, p.config.n_head) for each in arrays]
        loss, grads = house._gradients(model, prefixes, step)
        for name, g in grads.items():
            i, _, tensor = name.split(".")
            own[int(i)][tensor].grad = torch.tensor(g)
        if p.clip is not None:
            clip(leaves, p.clip)
        warm = min(1, (s + 1) / p.warmup) if p.warmup else 1
        left = 1 if s < p.warmup else (len(p.steps) - s) / (len(p.steps) - p.warmup)
        adam.param_groups[0]["lr"] = p.lr * warm * left
        adam.step()
        found[f"step.{s}.loss"] = np.array(loss)
        for i, each in enumerate(own):
            found |= {
                f"step.{s}.prefix.{i}.{n}": t.detach().numpy().copy() for n, t in each.items()
            }
    return found


def test_torchs_optimizer_and_its_clipping_are_right_and_the_report_says_which():
    mine = Implementation(types.SimpleNamespace(run_training=torch_training), "mine")
    results = run(mine, select(levels=["training"]))
    assert accused(results) == []
    said = " ".join(text(results, "mine").split())
    assert "clipped as torch's clip_grad_norm_ does, by limit / (norm + 1e-06): that is" in said
    unclipped = grade(all_checks()["training/one-step"], mine)
    assert unclipped.notes == []


def test_clipping_by_another_number_is_no_rounding():
    def run_training(problem):
        return House(reference, clip_eps=1e-4).run_training(problem)

    mine = Implementation(types.SimpleNamespace(run_training=run_training), "mine")
    result = grade(all_checks()["training/ten-steps"], mine)
    assert result.status == "failed"
    assert result.notes == []


# ---- shapes ----


#: whole implementations of other makes: padded einsum, tiles with a running softmax, loops of a
#: student's, modules of PyTorch
MAKES = sorted(
    path
    for path in (Path(__file__).parent / "zoo" / "unseen").glob("*.py")
    if not path.stem.endswith("_bugs") and path.stem != "__init__"
)
SOME = ["gelu/usual", "attention/unequal", "embed/usual", "layernorm/usual", "cross_entropy/usual"]


@pytest.mark.parametrize("only", [SOME, marked_long([])], ids=["some", "all"])
@pytest.mark.parametrize("path", MAKES, ids=lambda path: path.stem)
def test_a_right_implementation_of_another_make_is_not_accused(path, only):
    results = run(load(str(path)), select(only))
    assert accused(results) == []
    assert passed(results)


@pytest.mark.long
@pytest.mark.parametrize("path", MAKES, ids=lambda path: path.stem)
def test_it_is_not_accused_in_single_precision_either(path):
    functions = load(str(path)).functions
    own = getattr(functions, "asarray", None)
    asarray = in_single if own is None else lambda a: own(in_single(a))
    ops = {name: getattr(functions, name) for name in ARGUMENTS if hasattr(functions, name)}
    ops |= {"asnumpy": functions.asnumpy} if hasattr(functions, "asnumpy") else {}
    mine = Implementation(types.SimpleNamespace(**ops, asarray=asarray), "mine")
    assert accused(run(mine, select(levels=["ops"]))) == []


class Slots:
    __slots__ = ("held", "k", "q", "v")

    def __init__(self, **held):
        self.held = held
        for name in "qkv":
            setattr(self, name, held.get(name))


@dataclass
class Held:
    held: dict
    q: object = None
    k: object = None
    v: object = None


class Closure:
    """A backward that remembers, as a closure does; the model reads q, k and v."""

    def __init__(self, cache, fields):
        self.backward = lambda function, *dout: function(*dout, cache)
        self.q, self.k, self.v = (fields.get(name) for name in "qkv")


#: how a cache is kept -> from the reference's, and back
CACHES = {
    "tuple": (lambda c: c if hasattr(c, "q") else tuple(c), None),
    "dict": (lambda c: c._asdict(), lambda kind, held: kind(**held)),
    "dataclass": (
        lambda c: Held(c._asdict(), *(getattr(c, n, None) for n in "qkv")),
        lambda kind, held: kind(**held.held),
    ),
    "object": (lambda c: Slots(**c._asdict()), lambda kind, held: kind(**held.held)),
    "closure": (lambda c: Closure(c, c._asdict()), None),
}
KINDS = {
    "layernorm": contract.LayernormCache,
    "gelu": contract.GeluCache,
    "attention": contract.AttentionCache,
    "cross_entropy": contract.CrossEntropyCache,
}


@pytest.mark.parametrize("form", CACHES)
def test_a_cache_may_have_any_form(form):
    keep, back = CACHES[form]

    def forward(op):
        def call(*arguments):
            out, cache = getattr(reference, op)(*arguments)
            return out, keep(cache)

        call.__signature__ = inspect.signature(getattr(reference, op))
        return call

    def backward(name, kind):
        function = getattr(reference, name)

        def call(*arguments):
            *dout, cache = arguments
            if form == "closure":
                return cache.backward(function, *dout)
            whole = isinstance(cache, kind)
            return function(*dout, cache if whole else back(kind, cache) if back else kind(*cache))

        call.__signature__ = inspect.signature(function)
        return call

    own = {op: forward(op) for op in KINDS}
    for op, kind in KINDS.items():
        names = [f for f in ARGUMENTS if f.startswith(f"{op}_backward")]
        own |= {name: backward(name, kind) for name in names}
    only = [f"{op}/{check}" for op in KINDS for check in ("usual", "two-calls")]
    results = run(of(reference, **own), select([*only, "model/own-prefixes"]))
    assert accused(results) == []
    assert {r.status for r in results} == {"passed"}


# ---- JAX, which compiles each function for each shape ----


def test_jaxs_own_functions_are_not_accused():
    pytest.importorskip("jax")
    results = run(load(str(JAX)), select(["gelu/usual", "layernorm/by-hand", "linear/float32"]))
    assert accused(results) == []
    assert {r.status for r in results} == {"passed"}


@pytest.mark.long
@pytest.mark.parametrize("single", [False, True])
def test_jaxs_own_functions_pass_every_check_of_every_level(single, tmp_path):
    pytest.importorskip("jax")
    path = tmp_path / "mine.py"
    more = "import numpy\ndef asarray(a):\n    a = jnp.asarray(a)\n    "
    more += "return a.astype('float32') if a.dtype == 'float64' else a\n"
    path.write_text(JAX.read_text(encoding="utf-8") + (more if single else ""))
    results = run_isolated(str(path))
    assert accused(results) == []
    assert {r.status for r in results} <= {"passed", "not graded"}
    assert sum(r.status == "passed" for r in results) > 0.9 * len(results)


JAX = Path(__file__).parent / "jax_ops.py"


# ---- slow ----


def slow(seconds, **clock):
    """The reference, each call of which takes a little longer."""

    def slower(function):
        def call(*arguments):
            time.sleep(seconds)
            return function(*arguments)

        call.__signature__ = inspect.signature(function)
        return call

    mine = of(reference, **{name: slower(getattr(reference, name)) for name in ARGUMENTS})
    mine.clock = Clock(**clock)
    return mine


def test_what_takes_too_long_is_not_graded_and_the_report_says_how_long_a_call_takes():
    results = run(slow(0.01, limit=0.3), select(["gelu/", "model/shared-prefix", "model/sum"]))
    assert accused(results) == []
    status = {r.check: r.status for r in results}
    assert status["gelu/usual"] == status["gelu/derivative"] == "passed"
    assert status["model/shared-prefix"] == status["model/sum"] == "not graded"
    drawn = next(r for r in results if r.check == "gelu/drawn")
    assert (drawn.status, bool(drawn.not_graded)) == ("passed", True)
    said = " ".join(text(results, "mine").split())
    assert passed(results)
    assert re.search(r"not graded: [12] checks? \(model/sum.*: it would take over 0.3 s", said)
    assert re.search(r"not graded: \d+ of 40 draws \(0.0\d+ s each\) of gelu/drawn", said)
    assert as_json(results, "mine")["counts"]["not graded"] == [*status.values()].count(
        "not graded"
    )
    assert "model/sum" in as_json(results, "mine")["not_graded"]


def test_a_slow_model_has_fewer_of_its_derivatives_taken():
    mine = of(reference)
    mine.clock = Clock(limit=1e-3)
    mine.clock.begin = lambda *_: None  # so slow that each call takes all the time
    mine.clock.elapsed = lambda: 1.0
    result = grade(all_checks()["model/derivative"], mine)
    assert (result.status, result.not_graded) == ("passed", "3 gradients")
    assert len(result.errors) == 3


def test_the_first_call_of_a_shape_does_not_count():
    clock = Clock(limit=0.05)
    clock.begin("gelu", (np.zeros(3),))
    time.sleep(0.1)  # compiles
    clock.end()
    clock.begin("gelu", (np.zeros(3),))
    time.sleep(0.1)
    clock.end()
    with pytest.raises(OutOfTime, match=r"over 0.05 s \(gelu takes 0.1\d* s each time\)"):
        clock.begin("gelu", (np.zeros(3),))
    clock.start()
    clock.begin("gelu", (np.zeros(4),))  # the next check
    assert [shape(a) for a in ([np.zeros(2)], [1, 2], {"a": np.zeros(())}, 3.0)] == [
        (((2,), "float64"),), 2, (("a", ((), "float64")),), float
    ]  # fmt: skip


# ---- rounding is called rounding, and nothing else is ----


def coarsely(dtype, names):
    """PyTorch's functions of these names, computed in a type; the results are float64 again."""

    def given(a):
        if isinstance(a, list):
            return [given(each) for each in a]
        t = torch.tensor(a) if isinstance(a, np.ndarray) else a
        return t.to(dtype) if isinstance(t, torch.Tensor) and t.is_floating_point() else t

    def back(a):
        if isinstance(a, list | tuple):
            return type(a)(back(each) for each in a)
        return a.detach().double().numpy() if isinstance(a, torch.Tensor) else a

    def inside(function):
        def call(*arguments):
            return back(function(*map(given, arguments)))

        call.__signature__ = inspect.signature(function)
        return call

    return {name: inside(getattr(torch_ops(), name)) for name in names}


@pytest.mark.parametrize("op", ["linear", "layernorm", "cross_entropy"])
@pytest.mark.parametrize(
    ("dtype", "said"),
    [
        (torch.bfloat16, "right to 2 digits. Is it computed in bfloat16?"),
        (torch.float16, "right to 3 digits. Is it computed in half precision (float16) or TF32?"),
    ],
)
def test_half_precision_is_called_that_and_is_like_no_bug(op, dtype, said):
    results = run(
        of(reference, **coarsely(dtype, FUNCTIONS[op])), select([f"{op}/usual"]), zoo=True
    )
    found = [f for r in results for f in r.findings]
    assert {f.kind for f in found} == {"precision"}
    assert [f.hints for f in found] == [[]] * len(found)
    assert results[0].zoo == []
    report = " ".join(text(results, "mine").split())
    assert said in report
    assert " 2. " not in report
    assert "worst:" not in report


def test_products_in_tf32_are_called_that():
    def coarse(a):
        """With 11 bits, as a tensor core takes its inputs."""
        significand, exponent = np.frexp(a)
        return np.ldexp(np.rint(significand * 2**11) / 2**11, exponent)

    def linear(x, weight, bias):
        return (coarse(x) @ coarse(weight) + coarse(bias)).astype("f4").astype("f8")

    found = grade(all_checks()["linear/usual"], of(reference, linear=linear)).findings
    assert [(f.tensor, f.kind, f.precision) for f in found] == [("out", "precision", "float16")]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_mistake_as_small_as_half_precision_leaves_is_not_called_rounding(dtype):
    def gelu(x):
        out = torch.nn.functional.gelu(torch.tensor(x.astype(dtype))).numpy()
        return out.astype(x.dtype), reference.gelu(x)[1]

    for check in ("gelu/usual", "gelu/float32"):
        found = grade(all_checks()[check], of(reference, gelu=gelu)).findings
        assert found[0].kind == "value"
        assert not found[0].precision


def test_no_worst_entry_is_mere_rounding():
    def gelu(x):
        out, cache = reference.gelu(x)
        out = out * (1 + 1e-13 * np.cos(np.arange(out.size)).reshape(out.shape))
        out[2, 3] += 0.1
        return out, cache

    finding = grade(all_checks()["gelu/usual"], of(reference, gelu=gelu)).findings[0]
    assert [index for index, _, _ in finding.worst] == [[2, 3]]
    for result in run(of(reference, gelu=gelu), select(["gelu/"])):
        for f in result.findings:
            assert all(f"{got:.6g}" != f"{want:.6g}" for _, got, want in f.worst)


# ---- the zoo claims what the numbers tell ----


def planted(gelu):
    return grade(all_checks()["gelu/usual"], of(reference, gelu=gelu))


def test_the_zoo_claims_nothing_of_infinities_zeros_and_single_precision_by_chance():
    right = reference.gelu

    def erf(x):
        return torch.nn.functional.gelu(torch.tensor(x)).numpy()

    for wrong in (
        lambda x: np.full_like(x, np.nan),
        lambda x: np.where(x > 0, np.inf, x),
        lambda x: np.zeros_like(x),
        lambda x: np.full_like(x, 0.5),
        lambda x: erf(x) + 1e-7 * np.sin(x),  # near, and in float64: another mistake
    ):
        result = planted(lambda x, wrong=wrong: (wrong(x), right(x)[1]))
        assert result.status == "failed"
        assert result.zoo == []
    for near in (erf, lambda x: erf(x.astype("f4")).astype("f8")):  # as near as float32 allows
        assert planted(lambda x, near=near: (near(x), right(x)[1])).zoo == ["erf-gelu"]


def test_where_a_bug_gives_zeros_another_wrong_tensor_must_tell():
    check = all_checks()["gelu/usual"]
    seen = check.collect(of(reference, gelu=lambda x: (0 * x, reference.gelu(x)[1])))
    prints = {check.id: {name: ["out", 0.0] for name in ("erf-gelu", "sigmoid-gelu")}}
    assert zoo.matches(check, seen, prints) == ([], 0.0)
