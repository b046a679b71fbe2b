"""The reference suite: what it grades, how it words a failure, and that nothing an implementation
does ends it. That it has power is shown in test_zoo.py."""

import contextlib
import inspect
import io
import json
import os
import re
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch

from minprefix import cli
from minprefix.conformance import (
    Case,
    Implementation,
    all_checks,
    grade,
    load,
    method_case,
    model_case,
    run,
    select,
    tensors,
    training_case,
    zoo,
)
from minprefix.conformance import contract as suite_contract
from minprefix.conformance.cases import INPUTS, LAYOUTS, MAKERS
from minprefix.conformance.check import KINDS, Expected, Grade
from minprefix.conformance.diagnosis import diagnose, relative_error
from minprefix.conformance.house import House
from minprefix.conformance.isolated import Worker
from minprefix.conformance.model_problems import MODEL_CASES
from minprefix.conformance.op_cases import CASES, case_of
from minprefix.conformance.op_checks import GRADIENTS, grade_case
from minprefix.conformance.problems import TRAINING_CASES, expected_model
from minprefix.conformance.report import STATUSES, as_json, passed, show, text
from minprefix.conformance.rounding import rounded
from minprefix.errors import InputError
from minprefix.ops import contract, numpy_ops, reference


def implementation(**functions) -> Implementation:
    """The reference with some functions exchanged."""
    mine = types.SimpleNamespace(**{n: getattr(reference, n) for n in suite_contract.ARGUMENTS})
    vars(mine).update(functions)
    return Implementation(mine, "mine")


# ---- the project's own implementations ----


@pytest.mark.parametrize("name", ["reference", "numpy"])
def test_the_projects_own_operations_pass_every_check(name):
    results = run(load(name))
    assert [r.check for r in results if r.status != "passed"] == []
    assert len(results) == len(all_checks())


# ---- the map of names ----


def test_the_map_names_every_function_of_the_contract():
    functions = [f for fs in suite_contract.FUNCTIONS.values() for f in fs]
    assert sorted(functions) == sorted(suite_contract.TENSORS)
    assert sorted(functions) == sorted(n for n in vars(contract.Ops) if not n.startswith("_"))
    assert set(suite_contract.OPTIONAL) <= set(functions)


CACHES = {
    "layernorm": contract.LayernormCache,
    "gelu": contract.GeluCache,
    "attention": contract.AttentionCache,
    "cross_entropy": contract.CrossEntropyCache,
}


@pytest.mark.parametrize("function", suite_contract.TENSORS)
def test_the_map_names_every_tensor_a_function_gives(function):
    case = Case(next(op for op, fs in suite_contract.FUNCTIONS.items() if function in fs))
    given = case.inputs()
    cache = None
    if "cache" in suite_contract.ARGUMENTS[function]:
        forward = suite_contract.FUNCTIONS[case.op][0]
        cache = getattr(reference, forward)(*(given[a] for a in suite_contract.ARGUMENTS[forward]))[
            1
        ]
    arguments = [cache if a == "cache" else given[a] for a in suite_contract.ARGUMENTS[function]]
    result = getattr(reference, function)(*arguments)
    names = list(suite_contract.TENSORS[function])
    tops = list(dict.fromkeys(n.split(".")[0].removesuffix("[]") for n in names))
    assert len(tops) == (len(result) if isinstance(result, tuple) else 1)
    if function in CACHES:
        fields = CACHES[function]._fields
        named = [n.removeprefix("cache.").removesuffix("[]") for n in names if "cache." in n]
        assert tuple(named) == fields
    if function == "attention_backward":
        assert tuple(n.removesuffix("[]") for n in names) == contract.AttentionGrads._fields


def test_every_tensor_of_an_op_has_a_name_of_its_own():
    for functions in suite_contract.FUNCTIONS.values():
        names = [n for f in functions for n in suite_contract.TENSORS[f]]
        assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("op", "name"), [(op, name) for op, named in CASES.items() for name in named]
)
def test_a_case_compares_every_tensor_exactly_once(op, name):
    case, collected = case_of(op, name), Grade()
    grade_case(case, load("reference"), collected)
    B = len(case.sizes.get("lengths", (5, 3)))
    wanted = []
    for function in suite_contract.FUNCTIONS[op]:
        for tensor in suite_contract.TENSORS[function]:
            stem = tensor.removesuffix("[]")
            wanted += [f"{stem}[{b}]" for b in range(B)] if "[]" in tensor else [stem]
    assert sorted(collected.errors) == sorted(wanted)


def test_comparing_a_tensor_twice_is_refused():
    collected, one = Grade(), np.ones(2)
    expected = Expected({"out": one}, 1e-9)
    collected.compare("gelu", "out", one, expected)
    with pytest.raises(AssertionError, match="out is compared twice"):
        collected.compare("gelu", "out", one, expected)


@pytest.mark.parametrize("name", MODEL_CASES)
def test_the_projects_own_model_gives_every_named_intermediate_and_no_other(name):
    problem = model_case(name)
    names = suite_contract.model_tensors(
        problem.config, len(problem.prefixes), len(problem.sequences), problem.need
    )
    assert set(expected_model(name)) == set(names)
    found = House(numpy_ops).run_model(problem)
    assert set(names) - set(found) == {n for n in names if "pattern" in n}  # it keeps none
    for tensor, axes in names.items():
        if tensor in found:
            assert np.ndim(found[tensor]) == len(axes.split()), tensor


def test_the_projects_own_training_gives_every_named_tensor_and_no_other():
    for name in TRAINING_CASES:
        problem = training_case(name)
        found = House(numpy_ops).run_training(problem)
        assert set(found) == set(suite_contract.training_tensors(problem))


def test_every_differentiable_argument_has_its_gradient_in_the_derivative_check():
    for op, functions in suite_contract.FUNCTIONS.items():
        gradients = {n.removesuffix("[]") for f in functions[1:] for n in suite_contract.TENSORS[f]}
        assert {tensor for _, tensor in GRADIENTS[op].values()} == gradients


# ---- the cases ----


@pytest.mark.parametrize("op", MAKERS)
def test_a_case_is_the_same_each_time_and_can_be_pasted(op):
    case = Case(op, seed=3, dtype="float32", layout="strided")
    again = eval(repr(case), {"Case": Case})
    assert again == case
    for a, b in zip(case.inputs().values(), again.inputs().values(), strict=True):
        for x, y in zip(*((v if isinstance(v, list) else [v]) for v in (a, b)), strict=True):
            assert np.array_equal(x, y)


def test_upstream_gradients_are_never_ones():
    for op in MAKERS:
        for name in ("dx", "dout", "dz"):
            upstream = Case(op).inputs().get(name)
            assert upstream is None or upstream.std() > 0.3


def test_the_cases_cover_what_breaks_in_practice():
    attention = [case_of("attention", n) for n in CASES["attention"]]
    lengths = [c.sizes.get("lengths", (5, 3)) for c in attention]
    slots = [c.sizes.get("slots", (3, 3)) for c in attention]
    assert any(set(s) == {0} for s in slots)  # P = 0
    assert any(1 in n for n in lengths)  # T = 1
    assert any(len(n) == 1 for n in lengths)  # B = 1
    assert any(c.sizes.get("heads") == 1 for c in attention)
    assert any(len(set(n)) == len(n) > 1 for n in lengths)
    assert any(len(set(s)) == len(s) > 1 for s in slots)
    for op, named in CASES.items():
        cases = [case_of(op, n) for n in named]
        assert {c.dtype for c in cases} == {"float64", "float32"}
        assert any(c.layout != "contiguous" for c in cases), op
    scores = case_of("attention", "large-scores").inputs()
    both = np.einsum("nhd,hpd->nhp", scores["q"][:5], scores["prefix_k"][0]) / 7**0.5
    assert both.min() > 0.5e4
    assert case_of("cross_entropy", "large-logits").inputs()["logits"].min() > 0.9e4


#: op -> how many rows, columns, ... an implementation may do at once
BLOCKS = {
    "embed": {"N": 256, "C": 1024, "V": 2**15},
    "layernorm": {"N": 256, "C": 1024},
    "linear": {"N": 256, "in": 1024, "out": 1024},
    "gelu": {"N": 256, "F": 1024},
    "attention": {"N": 256, "P": 256, "NH": 12, "hs": 128},
    "cross_entropy": {"M": 256, "V": 2**15},
}


@pytest.mark.parametrize("op", BLOCKS)
def test_every_size_goes_beyond_what_is_done_at_once(op):
    largest = dict.fromkeys(BLOCKS[op], 0)
    for name in CASES[op]:
        for argument, given in case_of(op, name).inputs().items():
            for a in given if isinstance(given, list) else [given]:
                for letter, n in zip(
                    INPUTS[op].get(argument, "").split(), np.shape(a), strict=False
                ):
                    largest[letter] = max(n, largest.get(letter, 0))
    for letter, most in BLOCKS[op].items():
        assert largest[letter] > most, letter
        assert largest[letter] % 8, letter  # and no block ends with it


def test_lengths_and_prefixes_beyond_a_tile_are_unequal():
    sizes = [case_of("attention", n).sizes for n in CASES["attention"]]
    for name in ("lengths", "slots"):
        given = [each.get(name, ()) for each in sizes]
        assert any(len(set(each)) == len(each) > 2 and max(each) > 256 for each in given), name
    assert any(len(each.get("lengths", ())) > 32 for each in sizes)


def test_layouts_that_are_not_contiguous_are_not():
    a = np.arange(12.0).reshape(3, 4)
    assert not LAYOUTS["strided"](a).flags.c_contiguous
    assert not LAYOUTS["fortran"](a).flags.c_contiguous
    for lay in LAYOUTS.values():
        assert np.array_equal(lay(a), a)


# ---- diagnosis ----

WANT = np.random.default_rng(0).normal(size=(4, 2, 7))
DIMENSIONS = {"hs": 7, "NH": 2, "N": 4, "B": 3}


@pytest.mark.parametrize(
    ("got", "said"),
    [
        (WANT * 7**0.5, r"is 2.646 times the right one everywhere: .* is 1/sqrt\(hs\) missing\?"),
        (WANT / 7**0.5, r"1/sqrt\(hs\): is the scale applied twice"),
        (WANT * 7, "is it multiplied by sqrt.hs. instead of divided by it"),
        (-WANT, "has the wrong sign"),
        (WANT * 2, "is 2 times the right one everywhere: counted twice"),
        (WANT / 3, "1/B: is a mean taken where a sum belongs"),
        (WANT * 3, "= B: is a sum taken where a mean belongs"),
        (WANT * 1.37, "is 1.37 times the right one everywhere$"),
        (WANT * 0, "is 0 everywhere"),
        (WANT.transpose(0, 2, 1), r"is transposed: axes \[0, 2, 1\]"),
        (WANT[::-1], "is reversed along N"),
        (np.roll(WANT, 1, axis=0), "is shifted by 1 along N"),
        (np.roll(WANT, -1, axis=0), "is shifted by -1 along N"),
        (np.roll(WANT, 2, axis=2), "is shifted by 2 along hs"),
        (WANT[:, ::-1], "is reversed along NH"),
        (WANT[[0, 2, 1, 3]], r"slices along N in another order: \[0, 2, 1, 3\]"),
        (WANT + 0.3, "is off by 0.3 everywhere"),
        (WANT + np.arange(8).reshape(4, 2, 1), "is off by one number all along hs"),
        (WANT * np.array([1.0, 2, 3, 4]).reshape(4, 1, 1), "in each slice along N: 1, 2, 3, 4"),
        (np.where(np.arange(4)[:, None, None] == 2, 9.0, WANT), r"right but for N = 2 of 0\.\.3"),
        (np.where(np.arange(7) > 4, 9.0, WANT), r"right but for hs = 5\.\.6 of 0\.\.6"),
        (np.where(WANT > 1, np.nan, WANT), r"holds \d+ NaN of 56, the first at \["),
        (np.where(WANT > 1, np.inf, WANT), r"holds \d+ infinite of 56"),
        (WANT.reshape(8, 7), "right numbers in another shape"),
    ],
)
def test_a_known_difference_is_put_into_words(got, said):
    hints = diagnose(got, WANT, "N NH hs", DIMENSIONS, {}, 1e-10)
    assert hints, "nothing was said"
    assert re.search(said, hints[0]), hints


def test_one_number_that_is_nan_is_told_without_an_index():
    hints = diagnose(np.array(np.nan), np.array(2.5), "", {}, {}, 1e-10)
    assert hints[0].startswith("is NaN: does exp overflow")
    said = text([graded("cross_entropy/usual", cross_entropy=nan_loss)], "mine")
    assert "\n   loss is nan, not " in said
    assert "[]" not in said


def nan_loss(logits, targets, weights):
    return np.nan, reference.cross_entropy(logits, targets, weights)[1]


def test_a_tensor_that_is_another_one_is_named():
    other = np.random.default_rng(1).normal(size=WANT.shape)
    assert diagnose(other, WANT, "N NH hs", {}, {"dv": other}, 1e-10) == [
        "is what dv should be: are the two swapped?"
    ]


def test_wrong_rows_are_named_by_their_sequence():
    got = WANT.copy()
    got[1:3] = 9
    hints = diagnose(got, WANT, "N NH hs", {}, {}, 1e-10, offsets=[0, 1, 3, 4])
    assert "N = 1..2 of 0..3 (sequence 1 of 0..2)" in hints[0]


def test_mere_rounding_is_not_given_a_meaning():
    got = WANT * (1 + 1e-9 * np.random.default_rng(0).normal(size=WANT.shape))
    assert diagnose(got, WANT, "N NH hs", DIMENSIONS, {}, 1e-10) == []


def test_noise_is_not_given_a_meaning():
    got = WANT + np.random.default_rng(2).normal(size=WANT.shape)
    assert diagnose(got, WANT, "N NH hs", DIMENSIONS, {}, 1e-10) == []


def test_errors_are_relative_to_the_largest_value_and_nan_is_no_small_error():
    assert relative_error(np.array([1.0, 100.0]), np.array([2.0, 100.0])) == pytest.approx(0.01)
    assert relative_error(np.array([np.nan]), np.array([1.0])) == np.inf
    assert relative_error(np.array([1e-3]), np.array([0.0])) == 1e-3
    assert relative_error(np.empty(0), np.empty(0)) == 0


# ---- what an implementation can get wrong besides numbers ----


def graded(check, **functions):
    return grade(all_checks()[check], implementation(**functions), zoo=False)


def test_an_exception_is_a_failure_with_its_line():
    def gelu(x):
        raise KeyError("left")

    result = graded("gelu/usual", gelu=gelu)
    assert result.status == "failed"
    assert re.search(
        r"gelu raised KeyError: 'left' \(test_conformance.py, line \d+\)",
        result.findings[0].sentence,
    )


def test_a_system_exit_is_a_failure():
    assert graded("gelu/usual", gelu=lambda x: sys.exit(3)).findings[0].kind == "exception"


def test_what_raises_not_implemented_or_is_missing_is_reported_and_the_rest_is_graded():
    def stub(dout, cache):
        raise NotImplementedError

    for functions in ({"gelu_backward": stub}, {"gelu_backward": None}):
        result = graded("gelu/usual", **functions)
        assert result.status == "passed"
        assert result.not_implemented == ["gelu_backward"]
        assert "out" in result.errors
        assert "dx" not in result.errors


def test_a_backward_without_its_forward_is_graded_on_the_references_cache():
    result = graded("attention/usual", attention=None)
    assert result.status == "passed"
    assert "dprefix_k[1]" in result.errors
    wrong = graded(
        "gelu/usual", gelu=None, gelu_backward=lambda d, c: 2 * reference.gelu_backward(d, c)
    )
    assert wrong.findings[0].tensor == "dx"


def test_an_implementation_without_all_ops_is_not_graded_as_a_model():
    result = graded("model/shared-prefix", gelu_backward=None)
    assert result.status == "not implemented"
    assert "gelu_backward missing" in result.not_implemented[0]


def test_missing_gradients_of_weights_are_no_failure():
    result = graded("model/weights", linear_backward_params=None)
    assert result.status == "passed"
    assert result.not_implemented == ["the gradients of the weights"]


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (
            lambda x, weight: x,
            "linear takes .x, weight., the contract calls it with .x, weight, bi",
        ),
        (lambda weight, x, bias: x, r"linear takes \(weight, x, bias\)"),
        (lambda x, weight, bias: None, "out is None, expected an array"),
        (lambda x, weight, bias: "text", "out is a str, expected an array"),
        (lambda x, weight, bias: [[1.0], [2.0, 3.0]], "out is a list, expected an array"),
        (lambda x, weight, bias: (x @ weight + bias).T, r"has shape \(3, 7\), expected \(7, 3\)"),
        (
            lambda x, weight, bias: (x @ weight + bias).astype(np.float32),
            "out is float32, expected float64",
        ),
        (lambda x, weight, bias: (x @ weight + bias) * np.nan, "out .N, out. is not finite"),
        (lambda x, weight, bias: (x @ weight + bias) * 1j, "complex128, expected"),
    ],
)
def test_a_wrong_signature_shape_dtype_or_thing_is_a_sentence(function, said):
    found = graded("linear/usual", linear=function).findings
    assert re.search(said, found[0].sentence), found[0].sentence


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda dz, cache: reference.attention_backward(dz, cache)[:3], "gave 3 results, expected"),
        (
            lambda dz, cache: reference.attention_backward(dz, cache)._replace(
                dprefix_k=np.ones(3)
            ),
            "dprefix_k is a ndarray, expected one array a sequence",
        ),
        (
            lambda dz, cache: reference.attention_backward(dz, cache)._replace(
                dprefix_k=reference.attention_backward(dz, cache).dprefix_k[:1]
            ),
            r"dprefix_k\[1\] is missing",
        ),
    ],
)
def test_too_few_results_are_a_sentence(function, said):
    found = graded("attention/usual", attention_backward=function).findings
    assert re.search(said, found[0].sentence), found[0].sentence


def test_a_kept_argument_that_is_written_into_is_a_failure():
    def attention(q, k, v, prefix_k, prefix_v, offsets):
        result = reference.attention(q, k, v, prefix_k, prefix_v, offsets)
        prefix_k[1][:] *= 2
        return result

    found = graded("attention/usual", attention=attention).findings
    modified = [f for f in found if f.kind == "modified"]
    assert "attention wrote into prefix_k[1], which the contract says is kept" in (
        modified[0].sentence
    )


def test_a_consumed_argument_may_be_written_into():
    def gelu_backward(dout, cache):
        dx = reference.gelu_backward(dout, cache)
        dout[:], cache.x[:], cache.tanh[:] = 0, 0, 0
        return dx

    assert graded("gelu/usual", gelu_backward=gelu_backward).status == "passed"


def test_another_cache_is_graded_for_what_it_shares_with_the_contracts():
    def gelu(x):
        out, cache = reference.gelu(x)
        return out, {"x": cache.x, "mine": cache.tanh}

    def gelu_backward(dout, cache):
        return reference.gelu_backward(dout, contract.GeluCache(cache["x"], cache["mine"]))

    result = graded("gelu/usual", gelu=gelu, gelu_backward=gelu_backward)
    assert result.status == "passed"
    assert set(result.errors) == {"out", "cache.x", "dx"}


def test_arrays_of_another_library_pass_through_asarray_and_asnumpy():
    def gelu(x):
        leaf = x.clone().requires_grad_()
        return torch.nn.functional.gelu(leaf, approximate="tanh").detach(), {"leaf": leaf}

    def gelu_backward(dout, cache):
        out = torch.nn.functional.gelu(cache["leaf"], approximate="tanh")
        return torch.autograd.grad(out, cache["leaf"], dout)[0]

    def linear(x, weight, bias):
        assert isinstance(x, torch.Tensor)
        return x @ weight if bias is None else x @ weight + bias

    mine = Implementation(
        types.SimpleNamespace(
            gelu=gelu,
            gelu_backward=gelu_backward,
            linear=linear,
            linear_backward=lambda dout, weight: dout @ weight.T,
            asarray=torch.tensor,
            asnumpy=lambda t: t.detach().numpy(),
        ),
        "torch",
    )
    results = run(mine, select(["gelu", "linear"], ["ops"]))
    assert {r.status for r in results} == {"passed"}


def test_a_whole_model_over_torch_arrays_passes():
    ops = {name: _on_torch(getattr(reference, name), name) for name in suite_contract.ARGUMENTS}
    mine = Implementation(
        types.SimpleNamespace(**ops, asarray=torch.tensor, asnumpy=lambda t: t.detach().numpy()),
        "torch",
    )
    for check in ("model/own-prefixes", "model/weights", "training/two-prefixes"):
        result = grade(all_checks()[check], mine, zoo=False)
        assert result.status == "passed", result.findings[:2]


def _on_torch(function, name):
    """Takes and gives torch tensors, and would fail if a NumPy array came in."""

    def back(a):
        if isinstance(a, torch.Tensor):
            return a.numpy()
        assert not isinstance(a, np.ndarray)
        return [back(each) for each in a] if isinstance(a, list) else a

    def give(a):
        if isinstance(a, np.ndarray | np.generic):
            return torch.tensor(a)
        if isinstance(a, list):
            return [give(each) for each in a]
        if type(a) is tuple:
            return tuple(give(each) for each in a)
        if isinstance(a, contract.AttentionGrads):
            return contract.AttentionGrads(*map(give, a))
        return a  # a cache, as it is

    def call(*arguments):
        return give(function(*(back(a) for a in arguments)))

    call.__signature__ = inspect.signature(function)
    return call


# ---- right, and written otherwise ----


def torch_ops():
    """PyTorch's own functions and its autograd, on tensors, with caches that are graphs."""
    F = torch.nn.functional

    class Cache(types.SimpleNamespace):
        pass

    def leaves(*tensors):
        return [t.detach().clone().requires_grad_() for t in tensors]

    def embed(tokens, positions, wte, wpe):
        return F.embedding(tokens, wte) + F.embedding(positions, wpe)

    def embed_backward_params(dx, tokens, positions, wte, wpe):
        tables = leaves(wte, wpe)
        return torch.autograd.grad(embed(tokens, positions, *tables), tables, dx)

    def layernorm(x, gain, bias, eps):
        x, gain, bias = leaves(x, gain, bias)
        out = F.layer_norm(x, x.shape[-1:], gain, bias, eps)
        return out.detach(), Cache(out=out, of=(x, gain, bias))

    def layernorm_backward(dout, cache):
        return torch.autograd.grad(cache.out, cache.of[0], dout, retain_graph=True)[0]

    def layernorm_backward_params(dout, cache):
        return torch.autograd.grad(cache.out, cache.of[1:], dout, retain_graph=True)

    def linear(x, weight, bias):
        return F.linear(x, weight.T, bias)

    def linear_backward(dout, weight):
        x = torch.zeros(len(dout), len(weight), dtype=dout.dtype, requires_grad=True)
        return torch.autograd.grad(linear(x, weight, None), x, dout)[0]

    def linear_backward_params(dout, x):
        weight = torch.zeros(x.shape[1], dout.shape[1], dtype=x.dtype, requires_grad=True)
        bias = torch.zeros(dout.shape[1], dtype=x.dtype, requires_grad=True)
        return torch.autograd.grad(linear(x, weight, bias), (weight, bias), dout)

    def gelu(x):
        (x,) = leaves(x)
        out = F.gelu(x, approximate="tanh")
        return out.detach(), Cache(x=x, out=out)

    def gelu_backward(dout, cache):
        return torch.autograd.grad(cache.out, cache.x, dout)[0]

    def attention(q, k, v, prefix_k, prefix_v, offsets):
        q, k, v = leaves(q, k, v)
        prefix_k, prefix_v = leaves(*prefix_k), leaves(*prefix_v)
        z = []
        for b in range(len(offsets) - 1):
            rows = slice(int(offsets[b]), int(offsets[b + 1]))
            T, P = rows.stop - rows.start, prefix_k[b].shape[1]
            keys = torch.cat([prefix_k[b], k[rows].transpose(0, 1)], 1)
            values = torch.cat([prefix_v[b], v[rows].transpose(0, 1)], 1)
            mask = torch.ones(T, P + T, dtype=torch.bool).tril(P)
            of_b = F.scaled_dot_product_attention(q[rows].transpose(0, 1), keys, values, mask)
            z.append(of_b.transpose(0, 1))
        z = torch.cat(z)
        return z.detach(), Cache(q=q, k=k, v=v, of=(prefix_k, prefix_v), z=z)

    def attention_backward(dz, cache):
        of = [cache.q, cache.k, cache.v, *cache.of[0], *cache.of[1]]
        dq, dk, dv, *rest = torch.autograd.grad(cache.z, of, dz)
        B = len(rest) // 2
        return dq, dk, dv, rest[:B], rest[B:]

    def cross_entropy(logits, targets, weights):
        (logits,) = leaves(logits)
        loss = (F.cross_entropy(logits, targets, reduction="none") * weights).sum()
        return loss.detach(), Cache(logits=logits, loss=loss)

    def cross_entropy_backward(cache):
        return torch.autograd.grad(cache.loss, cache.logits)[0]

    ops = {n: f for n, f in locals().items() if n in suite_contract.ARGUMENTS}
    return types.SimpleNamespace(**ops, asarray=torch.tensor, asnumpy=lambda t: t.detach().numpy())


@pytest.mark.long
def test_pytorchs_own_functions_pass_every_check_of_every_level():
    results = run(Implementation(torch_ops(), "torch"))
    assert [(r.check, r.findings[0].sentence) for r in results if r.status == "failed"] == []
    assert {r.status for r in results} == {"passed"}


def test_a_loss_by_log_sum_exp_passes():
    def cross_entropy(logits, targets, weights):
        largest = logits.max(axis=1)
        lse = largest + np.log(np.exp(logits - largest[:, None]).sum(axis=1))
        nll = lse - logits[np.arange(len(targets)), targets]
        return (weights * nll).sum(), (logits.copy(), lse, targets, weights)

    def cross_entropy_backward(cache):
        logits, lse, targets, weights = cache
        dlogits = np.exp(logits - lse[:, None])
        dlogits[np.arange(len(targets)), targets] -= 1
        return weights[:, None] * dlogits

    mine = implementation(
        cross_entropy=cross_entropy, cross_entropy_backward=cross_entropy_backward
    )
    results = run(mine, select(["cross_entropy"]))
    assert [(r.check, r.findings) for r in results if r.status != "passed"] == []


def flash_attention(q, k, v, prefix_k, prefix_v, offsets):
    """Keeps the log-sum-exp of the scores in the place of the pattern."""
    z, lse = np.empty(q.shape, q.dtype), []
    for b, (scores, values, rows) in enumerate(_scores(q, k, v, prefix_k, prefix_v, offsets)):
        largest = scores.max(axis=-1, keepdims=True)
        lse.append(largest + np.log(np.exp(scores - largest).sum(axis=-1, keepdims=True)))
        z[rows] = (np.exp(scores - lse[b]) @ values).swapaxes(0, 1)
    return z, {
        "q": q, "k": k, "v": v, "pk": prefix_k, "pv": prefix_v, "at": offsets, "z": z, "lse": lse
    }  # fmt: skip


def flash_attention_backward(dz, cache):
    q, k, v, prefix_k, prefix_v, offsets = (cache[n] for n in ("q", "k", "v", "pk", "pv", "at"))
    dq, dk, dv = np.empty_like(q), np.empty_like(k), np.empty_like(v)
    dprefix_k, dprefix_v = [], []
    parts = _scores(q, k, v, prefix_k, prefix_v, offsets)
    for b, (scores, values, rows) in enumerate(parts):
        P, scale = prefix_k[b].shape[1], q.shape[2] ** -0.5
        pattern = np.exp(scores - cache["lse"][b])
        dz_b, z_b = (a[rows].swapaxes(0, 1) for a in (dz, cache["z"]))
        D = (dz_b * z_b).sum(axis=-1, keepdims=True)
        dscores = pattern * (dz_b @ values.swapaxes(1, 2) - D) * scale
        keys = np.concatenate([prefix_k[b], k[rows].swapaxes(0, 1)], axis=1)
        dkeys = dscores.swapaxes(1, 2) @ q[rows].swapaxes(0, 1)
        dvalues = pattern.swapaxes(1, 2) @ dz_b
        dq[rows] = (dscores @ keys).swapaxes(0, 1)
        dk[rows], dv[rows] = (a[:, P:].swapaxes(0, 1) for a in (dkeys, dvalues))
        dprefix_k.append(dkeys[:, :P])
        dprefix_v.append(dvalues[:, :P])
    return dq, dk, dv, dprefix_k, dprefix_v


def _scores(q, k, v, prefix_k, prefix_v, offsets):
    for b in range(len(offsets) - 1):
        rows = slice(offsets[b], offsets[b + 1])
        T, P = rows.stop - rows.start, prefix_k[b].shape[1]
        keys = np.concatenate([prefix_k[b], k[rows].swapaxes(0, 1)], axis=1)
        values = np.concatenate([prefix_v[b], v[rows].swapaxes(0, 1)], axis=1)
        scores = q[rows].swapaxes(0, 1) @ keys.swapaxes(1, 2) * q.shape[2] ** -0.5
        hidden = np.triu(np.full((T, P + T), -np.inf), P + 1)
        yield (scores + hidden).astype(q.dtype), values, rows


@pytest.mark.long
def test_a_flash_attention_with_a_cache_of_its_own_passes_every_check_of_every_level():
    mine = implementation(attention=flash_attention, attention_backward=flash_attention_backward)
    results = run(mine, [c for c in all_checks().values() if c.op not in ("embed", "linear")])
    assert [(r.check, r.findings[0].sentence) for r in results if r.findings] == []


@pytest.mark.long
def test_what_the_contract_lets_be_consumed_may_be_spoilt():
    def spoiling(name):
        def call(*arguments):
            result = getattr(reference, name)(*arguments)
            named = dict(zip(suite_contract.ARGUMENTS[name], arguments, strict=True))
            for consumed in contract.CONSUMED.get(name, ()):
                if consumed != "cache":
                    named[consumed][...] = np.nan
            if name == "attention_backward":
                for a in (named["cache"].q, named["cache"].k, named["cache"].v):
                    a[...] = np.nan
            return result

        call.__signature__ = inspect.signature(getattr(reference, name))
        return call

    names = [n for n in contract.CONSUMED if n not in ("gelu", "cross_entropy")]  # their caches
    results = run(implementation(**{name: spoiling(name) for name in names}))
    assert [(r.check, r.findings[0].sentence) for r in results if r.findings] == []


def test_caches_on_a_stack_and_results_in_lists_pass():
    kept = []

    def gelu(x):
        out, cache = reference.gelu(x)
        kept.append(cache)
        return [out, None]

    def gelu_backward(dout, cache):
        return reference.gelu_backward(dout, kept.pop())

    mine = implementation(gelu=gelu, gelu_backward=gelu_backward)
    results = run(mine, select(["gelu/usual", "gelu/by-hand", "model/shared-prefix"]))
    assert [(r.check, r.findings, r.not_implemented) for r in results if r.findings] == []
    assert "dx" in results[1].errors


@pytest.mark.parametrize("with_its_own_backward", [True, False])
def test_a_gelu_of_another_form_is_recognised(with_its_own_backward):
    def gelu(x):
        out = torch.nn.functional.gelu(torch.tensor(x)).numpy()
        return out, reference.gelu(x)[1]

    def gelu_backward(dout, cache):
        leaf = torch.tensor(cache.x, requires_grad=True)
        out = torch.nn.functional.gelu(leaf)
        return torch.autograd.grad(out, leaf, torch.tensor(dout))[0].numpy()

    functions = {"gelu": gelu} | ({"gelu_backward": gelu_backward} if with_its_own_backward else {})
    result = grade(all_checks()["gelu/usual"], implementation(**functions))
    assert result.findings[0].tensor == "out"
    assert result.zoo == ["erf-gelu"]
    said = text(run(implementation(**functions), select(["gelu"]), zoo=True), "mine")
    assert "the zoo's erf-gelu gives exactly this out: GPT-2 was trained with the tanh form" in said
    assert "gelu/derivative" not in said.split("1. ")[1].split("wrong, too")[0]


# ---- right, and in another precision ----


def in_single(a):
    """`a`, and all that is in it, in float32."""
    return _cast(a, np.float32)


def _cast(a, dtype):
    if isinstance(a, np.ndarray | np.generic):
        return np.asarray(a).astype(dtype) if a.dtype.kind == "f" else a
    if isinstance(a, list):
        return [_cast(each, dtype) for each in a]
    if isinstance(a, tuple):
        parts = [_cast(each, dtype) for each in a]
        return type(a)(*parts) if hasattr(a, "_fields") else tuple(parts)
    return a


def float32_inside(functions, names):
    """The functions of these names, computed in float32: their results are float64 again."""

    def inside(function):
        def call(*arguments):
            return _cast(function(*map(in_single, arguments)), np.float64)

        call.__signature__ = inspect.signature(function)
        return call

    return {name: inside(getattr(functions, name)) for name in names}


@pytest.mark.parametrize("op", suite_contract.FUNCTIONS)
def test_what_is_computed_in_float32_is_called_that_and_is_like_no_bug(op):
    mine = implementation(**float32_inside(reference, suite_contract.FUNCTIONS[op]))
    # in the case float32, float64 is what is wrong
    checks = [check for check in select([f"{op}/"]) if check.id != f"{op}/float32"]
    results = run(mine, checks, zoo=True)
    found = [f for r in results for f in r.findings]
    assert len({r.check for r in results if r.findings}) >= 5  # it is found all the same
    assert {f.kind for f in found} <= {"precision", "derivative"}
    assert all(f.hints == [] for f in found)
    # which is a bug by itself where a loss is summed
    named = {"float32-loss"} if op == "cross_entropy" else set()
    assert {name for r in results for name in r.zoo} <= named
    report = re.sub(r"\s+", " ", text(results, "mine"))
    assert re.search(r"right to [67] digits. Is it computed in single precision \(fl", report)
    assert " 2. " not in report


def test_a_model_of_ones_own_in_float32_is_called_that():
    def run_model(problem):
        ops = types.SimpleNamespace(
            **float32_inside(reference, [n for n in suite_contract.ARGUMENTS if n != "embed"]),
            embed=reference.embed,
        )
        return House(ops).run_model(problem)

    mine = Implementation(types.SimpleNamespace(run_model=run_model), "mine")
    results = run(mine, select(["model/shared-prefix", "model/law-", "model/derivative"]))
    kinds = {f.kind for r in results for f in r.findings}
    assert kinds == {"precision", "derivative"}
    said = text(results, "mine")
    assert "\n1. run_model, blocks.0.ln_1.out in model/shared-prefix\n" in said
    assert "\n2. " not in said
    said = text([r for r in results if r.check == "model/derivative"], "mine")
    assert "\n1. run_model, prefix.0.dk in model/derivative\n" in said
    assert "\n2. " not in said


@pytest.mark.parametrize(
    "name", ["eps-missing", "mean-term-dropped", "gelu-second-term-dropped", "dprefix-unscaled"]
)
@pytest.mark.parametrize("inside", [True, False])
def test_a_bug_is_named_in_float32_too(name, inside):
    bug = zoo.all_bugs()[name]
    functions = zoo.plant(bug).functions
    if inside:
        names = suite_contract.FUNCTIONS[bug.truth[0]]
        mine = types.SimpleNamespace(**float32_inside(functions, names))
    else:
        mine = types.SimpleNamespace(**vars(functions), asarray=in_single)
    results = run(Implementation(mine, "mine"), select([f"{bug.truth[0]}/"]), zoo=True)
    said = re.sub(r"\s+", " ", text(results, "mine"))
    # with asarray the zoo's bug is given the same numbers
    gives, to = ("this", r" \(to float32's rounding\)") if inside else ("exactly this", "")
    stem = f"the zoo's {name} gives {gives} {bug.truth[1]}"
    assert re.search(rf"{stem}(\[0\])?{to}: ", said), said


def test_two_precisions_are_not_said_to_be_one():
    def rounds(a, bits):
        return rounded(bits, a).astype("f8")

    out = graded("linear/usual", linear=lambda x, w, b: rounds(rounds(x, 8) @ rounds(w, 8) + b, 8))
    dx = graded(
        "gelu/usual", gelu_backward=lambda *given: in_single(reference.gelu_backward(*given))
    )
    said = text([out, dx], "mine")
    assert "1. linear, out in linear/usual" in said
    assert "2. gelu_backward, dx in gelu/usual" in said
    assert "the same holds for" not in said


def test_a_factor_is_seen_through_float32s_rounding():
    def attention_backward(dz, cache):
        return in_single(wrong_backward(dz, cache))

    found = graded("attention/one-sequence", attention_backward=attention_backward).findings
    wrong = next(f for f in found if f.kind == "value")
    assert "; it is float32, expected float64 as the inputs are" in wrong.sentence
    formula, multiple = wrong.hints
    assert "1/sqrt(hs) is missing in dk and in the prefix's" in formula
    assert "= sqrt(hs): is 1/sqrt(hs) missing? (to float32's rounding)" in multiple
    assert {f.kind for f in found if f is not wrong} == {"dtype"}


def test_a_float32_that_is_written_into_is_a_failure_all_the_same():
    def layernorm(x, gain, bias, eps):
        result = reference.layernorm(x, gain, bias, eps)
        x *= 2
        return result

    found = graded("layernorm/usual", layernorm=layernorm, asarray=in_single).findings
    assert [f.sentence.partition(", which")[0] for f in found if f.kind == "modified"] == [
        "layernorm wrote into x"
    ]


@pytest.mark.parametrize("hs", [0, 4])
def test_rounding_does_not_blur_where_it_is_wrong(hs):
    noise = 1e-7 * np.random.default_rng(3).normal(size=WANT.shape)
    got = WANT * (1 + noise)
    got[:, :, hs] += 0.1 * np.arange(8).reshape(4, 2)
    got[0, 0, hs] += 0.05
    hints = diagnose(got, WANT, "N NH hs", DIMENSIONS, {}, 1e-10, rounding=1e-6)
    assert hints == [f"is right but for hs = {hs} of 0..6 (to float32's rounding)"]
    exact = np.where(np.arange(7) == hs, got, WANT)  # what is right is exact: float64
    hints = diagnose(exact, WANT, "N NH hs", DIMENSIONS, {}, 1e-10, rounding=1e-6)
    assert hints == [f"is right but for hs = {hs} of 0..6"]
    small = got + 1e6 * noise  # wrong everywhere, and here and there by little
    small[:, :, hs] = WANT[:, :, hs] * (1 + noise[:, :, hs])
    assert diagnose(small, WANT, "N NH hs", DIMENSIONS, {}, 1e-10, rounding=1e-6) == []


def test_arrays_that_only_know_float64_pass_and_lists_are_arrays_where_asnumpy_reads_them():
    def linear(x, weight, bias):
        assert isinstance(x, list)
        columns = list(zip(*weight, strict=True))
        rows = [[sum(a * b for a, b in zip(r, c, strict=True)) for c in columns] for r in x]
        return (
            rows if bias is None else [[a + b for a, b in zip(r, bias, strict=True)] for r in rows]
        )

    mine = Implementation(
        types.SimpleNamespace(linear=linear, asarray=lambda a: a.tolist(), asnumpy=np.array), "mine"
    )
    results = run(mine, select(["linear/"]))
    assert [(r.check, r.findings) for r in results if r.findings] == []
    assert passed(results)


def test_an_asnumpy_for_results_alone_does_no_harm():
    class Result:
        def __init__(self, a):
            self.a = a

    def linear(x, weight, bias):
        return Result(reference.linear(x.a, weight.a, None if bias is None else bias.a))

    class Given:
        def __init__(self, a):
            self.a = a

    def asnumpy(result):
        assert isinstance(result, Result)
        return result.a

    mine = Implementation(
        types.SimpleNamespace(linear=linear, asarray=Given, asnumpy=asnumpy), "mine"
    )
    result = grade(all_checks()["linear/usual"], mine)
    assert (result.status, result.findings) == ("passed", [])


# ---- what lives longer than a call ----


@pytest.mark.parametrize(
    ("check", "function", "spoil", "said"),
    [
        (
            "layernorm/usual",
            "layernorm_backward_params",
            lambda dout, cache: cache.xhat.fill(0),
            "layernorm_backward_params wrote into cache.xhat",
        ),
        (
            "layernorm/usual",
            "layernorm_backward",
            lambda dout, cache: cache.gain.fill(7),
            "layernorm_backward wrote into gain",
        ),
        (
            "attention/usual",
            "attention_backward",
            lambda dz, cache: cache.prefix_k[1].fill(0),
            "attention_backward wrote into prefix_k[1]",
        ),
        (
            "cross_entropy/usual",
            "cross_entropy_backward",
            lambda cache: cache.weights.fill(0),
            "cross_entropy_backward wrote into weights",
        ),
    ],
)
def test_writing_into_what_a_cache_keeps_is_a_failure(check, function, spoil, said):
    def spoiling(*arguments):
        result = getattr(reference, function)(*arguments)
        spoil(*arguments)
        return result

    spoiling.__signature__ = inspect.signature(getattr(reference, function))
    found = graded(check, **{function: spoiling}).findings
    assert [f.sentence.partition(", which")[0] for f in found if f.kind == "modified"] == [said]


def test_a_forward_that_spoils_a_parameter_is_the_only_one_accused():
    def layernorm(x, gain, bias, eps):
        out, cache = reference.layernorm(x, gain.copy(), bias, eps)
        gain *= 1.5
        return out, cache._replace(gain=gain / 1.5)

    found = graded("layernorm/usual", layernorm=layernorm).findings
    assert [f.sentence.partition(", which")[0] for f in found] == ["layernorm wrote into gain"]


def test_the_zoo_speaks_of_the_tensor_that_it_knows():
    def layernorm(x, gain, bias, eps):
        var = x.var(axis=-1, keepdims=True) * x.shape[1] / max(1, x.shape[1] - 1)
        rstd = 1 / np.sqrt(var + eps)
        xhat = (x - x.mean(axis=-1, keepdims=True)) * rstd
        bias += 1e-3
        return xhat * gain + bias - 1e-3, contract.LayernormCache(xhat, rstd, gain)

    said = text(run(implementation(layernorm=layernorm), select(["layernorm"]), zoo=True), "mine")
    assert "1. layernorm, bias in layernorm/usual" in said
    assert "the zoo's unbiased-variance gives exactly this out:" in said


@pytest.mark.parametrize("function", ["linear", "linear_backward"])
def test_a_result_that_the_next_call_overwrites_is_a_failure(function):
    buffers = {}

    def reusing(*arguments):
        result = getattr(reference, function)(*arguments)
        buffer = buffers.setdefault(result.shape, np.empty_like(result))
        buffer[...] = result
        return buffer

    reusing.__signature__ = inspect.signature(getattr(reference, function))
    assert graded("linear/usual", **{function: reusing}).status == "passed"
    found = graded("linear/two-calls", **{function: reusing}).findings
    assert "of two calls" in found[0].sentence


def test_one_array_too_many_is_a_failure():
    def attention_backward(dz, cache):
        grads = reference.attention_backward(dz, cache)
        return grads._replace(dprefix_k=[*grads.dprefix_k, np.zeros((2, 3, 7))])

    found = graded("attention/usual", attention_backward=attention_backward).findings
    assert [f.sentence for f in found] == [
        "dprefix_k[2] is one too many: expected one for each sequence"
    ]


def test_a_mask_that_adds_a_finite_number_is_caught():
    source = Path(reference.__file__).read_text(encoding="utf-8")
    old = "softmax(np.where(visible(T, P), scores, -np.inf))"
    assert source.count(old) == 1
    mine = types.ModuleType("mine")
    exec(source.replace(old, "softmax(scores - 1e4 * ~visible(T, P))"), vars(mine))
    assert grade(all_checks()["attention/usual"], load(mine)).status == "passed"
    assert grade(all_checks()["attention/large-last-key"], load(mine)).status == "failed"


# ---- laws and derivatives see what they can ----


def test_laws_cannot_see_a_missing_scale():
    def attention_backward(dz, cache):
        grads = reference.attention_backward(dz, cache)
        return grads._replace(dk=3 * grads.dk, dprefix_k=[3 * a for a in grads.dprefix_k])

    for law in ("attention/law-keys", "attention/law-permutation", "attention/law-batch"):
        assert graded(law, attention_backward=attention_backward).status == "passed"
    broken = graded(
        "attention/law-values",
        attention_backward=lambda dz, c: reference.attention_backward(dz, c)._replace(dv=dz * 0),
    )
    assert "a law does not hold for dv and dprefix_v[0]: the sum" in broken.findings[0].sentence


def test_a_consistent_pair_of_wrong_forward_and_backward_passes_only_the_derivative_check():
    def gelu(x):
        return x * x, contract.GeluCache(x, x)

    def gelu_backward(dout, cache):
        return 2 * cache.x * dout

    statuses = {
        r.check: r.status
        for r in run(implementation(gelu=gelu, gelu_backward=gelu_backward), select(["gelu"]))
    }
    assert [check for check, status in statuses.items() if status == "passed"] == [
        "gelu/derivative"
    ]


def test_hypothesis_ends_on_a_small_case_that_can_be_pasted():
    def linear(x, weight, bias):
        out = reference.linear(x, weight, bias)
        return out + (len(x) > 2)

    finding = graded("linear/drawn", linear=linear).findings[0]
    case = re.search(r"case = load\('mine'\), (Case\(.*\))", finding.reproducer)[1]
    sizes = eval(case, {"Case": Case}).sizes
    assert sizes["N"] == 3  # the smallest that fails
    assert (sizes["n_in"], sizes["n_out"]) == (1, 1)


# ---- reports ----


def wrong_backward(dz, cache):
    grads = reference.attention_backward(dz, cache)
    return grads._replace(dprefix_k=[7**0.5 * a for a in grads.dprefix_k])


def test_a_report_names_tensor_case_size_place_cause_bug_and_a_way_to_see_it():
    results = run(
        implementation(attention_backward=wrong_backward), select(["attention"]), zoo=True
    )
    said = text(results, "mine")
    assert "1. attention_backward, dprefix_k[0] in attention/one-sequence" in said
    assert "is off by 1.6 of its largest value, 1e-10 is allowed" in said
    assert "2.646 = sqrt(hs): is 1/sqrt(hs) missing?" in said
    assert re.search(r"worst: \[\d, \d, \d\] is -?[\d.]+, not -?[\d.]+;", said)
    assert "wrong, too, in attention/usual" in said
    assert re.search(r"mine: \d+ of \d+ checks failed$", said)


def test_the_printed_reproducer_runs_and_shows_both_values(tmp_path, monkeypatch):
    source = Path(reference.__file__).read_text()
    old = "dkeys = dscores.swapaxes(1, 2) @ q_b / hs**0.5"
    assert source.count(old) == 1
    (tmp_path / "mine.py").write_text(source.replace(old, old.removesuffix(" / hs**0.5")))
    monkeypatch.chdir(tmp_path)
    result = grade(all_checks()["attention/usual"], load("mine.py"))
    finding = next(f for f in result.findings if f.tensor == "dprefix_k[1]")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(finding.reproducer, {})
    index, got, want = finding.worst[0]
    assert want == case_of("attention", "usual").expected()["dprefix_k[1]"][tuple(index)]
    assert got == pytest.approx(want * 7**0.5)
    assert printed.getvalue() == f"{got} is wrong, {want} is right\n"


def test_json_says_the_same_and_is_valid():
    def gelu(x):
        out, cache = reference.gelu(x)
        return out * np.inf, cache

    results = run(implementation(gelu=gelu), select(["gelu"]))
    said = json.loads(json.dumps(as_json(results, "mine"), allow_nan=False))
    assert said["passed"] is False
    assert said["first"]["tensor"] == "out"
    assert said["first"]["op"] == "gelu"
    assert said["counts"]["failed"] + said["counts"]["passed"] == len(results)
    assert said["results"][0]["findings"][0]["worst"]


def test_nothing_implemented_is_not_a_pass():
    nothing = Implementation(types.SimpleNamespace(), "nothing")
    results = run(nothing, select(["gelu"]))
    assert not passed(results)
    assert "nothing to grade" in text(results, "nothing")


def test_without_hypothesis_the_drawn_cases_are_left_out_and_the_report_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "hypothesis", None)
    monkeypatch.delitem(sys.modules, "minprefix.conformance.drawn", raising=False)
    monkeypatch.delattr("minprefix.conformance.drawn", raising=False)
    results = run(load("reference"), select(["gelu/usual", "gelu/drawn"]))
    assert [r.status for r in results] == ["passed", "not implemented"]
    assert text(results, "reference").endswith(
        "reference: the only check passed\n"
        "left out: the drawn cases, because hypothesis is not installed"
    )


# ---- the command, in a process of its own ----


@pytest.fixture
def check(tmp_path, monkeypatch, capfd):
    """Writes a file and runs `minprefix check` on it -> exit status, output."""
    monkeypatch.chdir(tmp_path)

    def run_check(source: str, *options: str) -> tuple[int, str]:
        Path("mine.py").write_text("from minprefix.ops.reference import *\n" + source)
        status = cli.main(["check", "mine.py", *options])
        captured = capfd.readouterr()
        return status, captured.out + captured.err

    return run_check


def test_the_command_grades_a_file(check):
    status, said = check("", "--only", "gelu", "--only", "embed")
    assert status == 0
    checks = select(["gelu/", "embed/"])
    assert f"mine.py: all {len(checks)} checks passed" in said


def test_complex_results_are_told_without_a_warning_of_numpys(recwarn):
    assert relative_error(WANT + 0j, WANT) == 0
    assert zoo.fingerprint(WANT + 0j) == zoo.fingerprint(WANT)
    assert not recwarn.list


def test_another_ops_crash_is_not_held_against_the_one_that_is_checked(check):
    status, said = check(
        "import os\ndef embed(tokens, positions, wte, wpe): os._exit(3)\n",
        *("--only", "gelu/usual", "--only", "gelu/many-calls", "--only", "gelu/strided"),
    )
    assert status == 0
    assert "gelu            2 of  3 graded  passed" in said
    told = "(gelu/many-calls): not run to its end: embed ended the process with exit status 3"
    assert " ".join(said.split()).endswith(told)


@pytest.mark.long
def test_an_endless_loop_a_crash_and_an_exit_are_graded_and_the_rest_goes_on(check):
    status, said = check(
        "import ctypes, os\n"
        "def gelu_backward(dout, cache):\n    while True: pass\n"
        "def linear(x, weight, bias): ctypes.string_at(0)\n"
        "def embed(tokens, positions, wte, wpe): os._exit(3)\n",
        "--level",
        "ops",
        "--time-limit",
        "4",
        "--all",
    )
    assert status == 1
    # 4 s, or 12 where the first call did not return in time
    assert re.search(r"gelu_backward did not return within (4|12) s: an endless loop\?", said)
    assert "linear ended the process with signal 11" in said
    assert "embed ended the process with exit status 3" in said
    assert re.search(r"attention +\d+ of +\d+ graded +passed", said)


def test_what_an_implementation_prints_does_not_stand_in_the_report(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text("print('hello')\nfrom minprefix.ops.reference import *\n")
    assert cli.main(["check", "mine.py", "--only", "embed/usual"]) == 0
    captured = capfd.readouterr()
    assert "hello" in captured.err
    assert "hello" not in captured.out


def test_a_terminal_is_shown_how_far_it_is_and_a_pipe_is_not(monkeypatch, capsys):
    assert cli.main(["check", "numpy", "--only", "embed/usual"]) == 0
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert cli.main(["check", "numpy", "--only", "embed/usual", "--json", "-"]) == 0
    captured = capsys.readouterr()
    assert "importing numpy: " in captured.err
    assert "embed/usual: 100%" in captured.err
    assert json.loads(captured.out)["passed"]


def test_as_long_as_there_is_no_answer_the_time_goes_on(tmp_path):
    path, calls = tmp_path / "mine.py", []
    path.write_text(
        "import time\nfrom minprefix.ops.reference import *\ntime.sleep(1.2)\n"
        "def gelu(x):\n    time.sleep(1.2)\n    raise ValueError\n"
    )
    with Worker(str(path), waiting=lambda: calls.append("importing")) as worker:
        worker.offered()
        assert calls
        calls.clear()
        assert worker.grade(all_checks()["gelu/usual"]).status == "failed"
        assert calls


def test_a_slow_check_is_not_called_an_endless_loop(check):
    status, said = check(
        "import time\n"
        "from minprefix.ops import reference\n"
        "def linear(x, weight, bias):\n"
        "    time.sleep(0.1)\n"
        "    return reference.linear(x, weight, bias)\n",
        "--only", "linear/drawn", "--time-limit", "1",
    )  # fmt: skip
    assert status == 0
    assert re.search(r"not graded: \d+ of 40 draws \(0.[123456]\d* s each\) of linear/drawn", said)
    assert "--time-limit allows more seconds" in said


def test_an_interrupt_that_an_implementation_raises_is_graded(check):
    status, said = check(
        "def embed(tokens, positions, wte, wpe):\n    raise KeyboardInterrupt\n",
        "--only", "embed/usual",
    )  # fmt: skip
    assert status == 1
    assert "embed raised KeyboardInterrupt (mine.py, line 3)" in said
    assert "Traceback" not in said


def test_files_named_like_pythons_own_do_no_harm_and_nothing_is_left_behind(check):
    for name in ("types.py", "random.py"):
        Path(name).write_text("raise SystemExit('this is not the standard module')\n")
    status, said = check("", "--only", "gelu")
    assert status == 0, said
    assert sorted(p.name for p in Path().iterdir() if p.name != "__pycache__") == [
        "mine.py", "random.py", "types.py"
    ]  # fmt: skip


def test_the_reproducer_of_a_backward_alone_runs(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "from minprefix.ops import reference\n"
        "def gelu_backward(dout, cache):\n    return 2 * reference.gelu_backward(dout, cache)\n"
    )
    monkeypatch.chdir(tmp_path)
    result = grade(all_checks()["gelu/usual"], load("mine.py"))
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(result.findings[0].reproducer, {})
    _, got, want = result.findings[0].worst[0]
    assert printed.getvalue() == f"{got} is wrong, {want} is right\n"


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("import nothing_such", "cannot be imported: ModuleNotFoundError: No module named 'noth"),
        ("x = = 1", r"cannot be imported: SyntaxError: invalid syntax \(mine.py, line 2\)"),
        ("import os; os._exit(7)", "ended the process with exit status 7 while it was imported"),
        ("raise SystemExit(2)", "cannot be imported: SystemExit: 2"),
    ],
)
def test_a_module_that_does_not_import_is_a_sentence(check, source, said):
    status, printed = check(source)
    assert status == 2
    assert re.search(f"^minprefix: error: mine.py {said}", printed)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nosuch.py"], "nosuch.py does not exist"),
        (["nosuch.module"], "nosuch.module cannot be imported"),
        (["json"], "json has none of the contract's functions"),
        (["numpy:nothing"], "numpy has no 'nothing'"),
        (["numpy", "--only", "gleu"], "--only 'gleu' names no check: expected one of embed"),
        (["numpy", "--only", "gelu", "--level", "model"], "names no check of level model"),
        (["numpy", "--time-limit", "0"], "--time-limit is 0.0: expected seconds above 0"),
        (["numpy", "--time-limit", "inf"], "--time-limit is inf: expected seconds above 0"),
        (["numpy", "--json", "/"], "--json / is a folder: give a file to write"),
        ([""], "'' names nothing to check"),
        (["numpy:"], "'numpy:' names nothing after its colon"),
        (["."], ". is a folder: give a file or a module in it"),
        (["reference:nothing"], "reference has no 'nothing'"),
        (["run 10:30/no.py"], "run 10:30/no.py does not exist"),
        (["run 10:30/no.py:mine"], "run 10:30/no.py does not exist"),
        (["C:\\work\\no_ops.py"], "C:\\work\\no_ops.py does not exist"),
        (["C:\\work\\no_ops"], "C:\\work\\no_ops does not exist"),
        (["./no_ops"], "./no_ops does not exist"),
        (["a" * 300 + ".py"], ".py does not exist"),
        (["numpy", "--only", ""], "--only '' names no check"),
        (["--whole"], "--whole says which stubs to write: give --new FILE as well"),
        (["numpy", "--torch"], "--torch says which stubs to write: give --new FILE as well"),
        (["--new", "my_ops"], "my_ops is not the name of a Python file"),
        ([], "nothing to check: give a file"),
        (["numpy", "--new", "x.py"], "leave out the implementation"),
    ],
)
def test_bad_options_are_a_sentence(arguments, said, capsys):
    assert cli.main(["check", *arguments]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("options", [[], ["--whole"]])
@pytest.mark.parametrize("name", [b'my """ops.py', b"new\\ops.py", b"caf\xe9.py"])
@pytest.mark.filterwarnings("error")
def test_stubs_are_code_whatever_their_file_is_called(tmp_path, name, options):
    path = tmp_path / os.fsdecode(name)  # any bytes are a name on Linux
    assert cli.main(["check", "--new", str(path), *options]) == 0
    shown = name.decode("utf-8", "backslashreplace").replace(r"\xe9", r"\udce9")
    assert f"\n    minprefix check {shown}\n" in load(str(path)).functions.__doc__


def test_stubs_have_every_function_with_shapes_and_nothing_is_overwritten(tmp_path, capsys):
    path = tmp_path / "my_ops.py"
    assert cli.main(["check", "--new", str(path)]) == 0
    stubs = load(str(path))
    assert [n for n in suite_contract.ARGUMENTS if not stubs.has(n)] == []
    for name in suite_contract.ARGUMENTS:
        assert re.search(r"\((N|M|V)", getattr(stubs.functions, name).__doc__)
        arguments = suite_contract.ARGUMENTS[name]
        with pytest.raises(NotImplementedError):
            getattr(stubs.functions, name)(*range(len(arguments)))
    assert {r.status for r in run(stubs)} == {"not implemented"}
    assert cli.main(["check", "--new", str(path)]) == 2
    assert "is not overwritten" in capsys.readouterr().err
    for tool in (["ruff", "check"], ["ruff", "format", "--check"], ["mypy"]):
        done = subprocess.run(
            [sys.executable, "-m", *tool, str(path)], capture_output=True, text=True, cwd=Path.cwd()
        )
        assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("options", [[], ["--torch"], ["--whole"], ["--whole", "--torch"]])
def test_stubs_of_every_kind_load_and_are_written_as_python_is(options, tmp_path, capsys):
    path = tmp_path / "mine.py"
    assert cli.main(["check", "--new", str(path), *options]) == 0
    assert f"minprefix check {path}" in capsys.readouterr().out
    stubs = load(str(path))
    wanted = suite_contract.WHOLE if "--whole" in options else suite_contract.ARGUMENTS
    assert stubs.offered() == list(wanted)
    checks = select(["/usual", "model/weights", "decoding/no-prefix", "training/one-step"])
    assert {r.status for r in run(stubs, checks)} == {"not implemented"}
    assert ("torch" in path.read_text()) == ("--torch" in options)
    for tool in (["check"], ["format", "--check"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *tool, str(path)], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    "options",
    [
        ["--whole"],
        *(pytest.param(o, marks=pytest.mark.long) for o in (["--torch"], ["--whole", "--torch"])),
    ],
)
def test_the_types_of_stubs_fit(options, tmp_path):
    path = tmp_path / "mine.py"
    assert cli.main(["check", "--new", str(path), *options]) == 0
    done = subprocess.run([sys.executable, "-m", "mypy", str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_stubs_in_pytorch_pass_when_they_are_filled_in(tmp_path):
    for options in (["--torch"], ["--whole", "--torch"]):
        assert cli.main(["check", "--new", str(tmp_path / f"mine{len(options)}.py"), *options]) == 0
    ops = load(str(tmp_path / "mine1.py"))
    for name, function in vars(torch_ops()).items():
        if name in suite_contract.ARGUMENTS:
            setattr(ops.functions, name, function)
    checks = [c for op in suite_contract.FUNCTIONS for c in select([f"{op}/usual"])]
    assert {r.status for r in run(ops, [*checks, *select(["model/own-prefixes"])])} == {"passed"}
    whole = load(str(tmp_path / "mine2.py"))
    for name in suite_contract.WHOLE:
        of_numpy = getattr(House(reference), name)

        def on_tensors(problem, of_numpy=of_numpy):
            return {n: torch.tensor(a) for n, a in of_numpy(problem).items()}

        setattr(whole.functions, name, on_tensors)
    checks = select(["model/weights", "decoding/own-prefixes", "training/one-step"])
    assert {r.status for r in run(whole, checks)} == {"passed"}


def test_the_stub_of_run_model_names_every_intermediate(tmp_path):
    path = tmp_path / "mine.py"
    assert cli.main(["check", "--new", str(path), "--whole"]) == 0
    doc = load(str(path)).functions.run_model.__doc__
    problem = model_case("one-sequence")
    for name in suite_contract.model_tensors(problem.config, 1, 1, "prefix"):
        general = re.sub(r"blocks\.\d", "blocks.{i}", name).replace("[0]", "[{b}]")
        assert general.replace("prefix.0", "prefix.{i}") in doc, name


@pytest.mark.parametrize(
    "name", ["run 10:30/my_ops.py", "C:\\work\\my_ops.py", "10:30.py", "a:b/c:d.py", "my ops.py"]
)
def test_a_path_that_exists_is_a_path_colons_and_all(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("from minprefix.ops import reference\nfrom minprefix.ops.reference import *\n")
    assert load(name).has("gelu")
    assert load(f"{name}:reference").functions is reference
    with pytest.raises(InputError, match=re.escape(f"{name} has no 'nothing'")):
        load(f"{name}:nothing")
    assert cli.main(["check", name, "--only", "embed/usual"]) == 0
    assert f"{name}: the only check passed" in capsys.readouterr().out
    if path.parent != Path():
        with pytest.raises(InputError, match="is a folder: give a file"):
            load(str(path.parent))


@pytest.mark.parametrize("command", ["check", "compare"])
def test_the_rule_for_a_path_is_told(command, capsys):
    with pytest.raises(SystemExit):
        cli.main([command, "--help"])
    said = re.sub(r"\s+", " ", capsys.readouterr().out)
    assert "or names an existing file is a file's" in said


def test_compare_reads_a_path_with_a_colon(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("run 10:30").mkdir()
    Path("run 10:30/my_ops.py").write_text("from minprefix.ops.reference import *\n")
    assert cli.main(["compare", "reference", "run 10:30/my_ops.py"]) == 0
    assert "run 10:30/my_ops.py agrees with reference" in capsys.readouterr().out


def test_compare_calls_float32s_rounding_that(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(
        "import numpy as np\nfrom minprefix.ops import reference\n"
        "from minprefix.ops.reference import *\n"
        "def gelu_backward(dout, cache):\n"
        "    return reference.gelu_backward(dout, cache).astype('f4').astype('f8')\n"
    )
    assert cli.main(["compare", "reference", "mine.py"]) == 1
    said = capsys.readouterr().out
    assert said.endswith(
        "that is no more than float32's rounding: --tolerance 1e-4 looks past it\n"
    )
    assert cli.main(["compare", "reference", "mine.py", "--tolerance", "1e-4"]) == 0
    Path("mine.py").write_text(
        "from minprefix.ops import reference\nfrom minprefix.ops.reference import *\n"
        "def gelu_backward(dout, cache):\n    return 2 * reference.gelu_backward(dout, cache)\n"
    )
    assert cli.main(["compare", "reference", "mine.py"]) == 1
    assert "float32" not in capsys.readouterr().out


def test_the_list_shows_every_check_and_why(capsys):
    assert cli.main(["check", "--list"]) == 0
    listed = capsys.readouterr().out
    for check in all_checks().values():
        assert check.id in listed
        assert check.why


@pytest.mark.long
def test_the_suite_runs_under_pytest(tmp_path):
    source = Path(reference.__file__).read_text()
    (tmp_path / "my_ops.py").write_text(source.replace("1 + tanh", "1 - tanh"))
    command = [sys.executable, "-m", "pytest", "-q", "--pyargs", "minprefix.conformance"]
    environment = {**os.environ, "MINPREFIX_IMPL": "my_ops"}
    done = subprocess.run(
        [*command, "-k", "gelu or embed", "-p", "no:cacheprovider"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert re.search(r"13 failed, 13 passed", done.stdout), done.stdout
    assert (
        "FAILED test_conformance.py::test_conformance[gelu/usual] - Failed: out (N" in done.stdout
    )
    environment.pop("MINPREFIX_IMPL")
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 4
    assert "MINPREFIX_IMPL is not set" in done.stdout + done.stderr


def test_tensors_raises_for_a_missing_function_when_nothing_collects_it():
    from minprefix.conformance.implementation import NotOffered

    with pytest.raises(NotOffered):
        tensors(implementation(gelu=None, gelu_backward=None), Case("gelu"))


def test_an_object_is_an_implementation(tmp_path):
    assert load(numpy_ops).has("gelu")
    with pytest.raises(InputError, match="has no 'nothing'"):
        load("minprefix.ops:nothing")
    assert load("minprefix.ops:numpy_ops").has("attention")


# ---- the rivals ---------------------------------------------------------------------------------


def test_a_method_that_trains_other_parameters_is_told_which():
    def run_method(problem):
        found = dict(House(reference).run_method(problem))
        found["dh.0.ln_1.weight"] = found.pop("dh.0.ln_1.bias")
        return found

    check = all_checks()["bitfit/usual"]
    result = check.grade(Implementation(types.SimpleNamespace(run_method=run_method), "mine"))
    assert [(f.tensor, f.kind) for f in result.findings] == [
        ("dh.0.ln_1.weight", "missing"),
        ("dh.0.ln_1.bias", "missing"),
    ]


def test_the_masks_of_a_problem_are_what_its_seed_draws(monkeypatch: pytest.MonkeyPatch):
    problem = method_case("lora/dropout")
    right, masks = House(reference).run_method(problem), iter(problem.masks.values())
    monkeypatch.setattr("minprefix.methods.lora.dropout_mask", lambda *_: next(masks))
    found = House(reference).run_method(problem)
    assert found.keys() == right.keys()
    assert all(np.array_equal(found[name], right[name]) for name in right)
    assert next(masks, None) is None


def test_a_wrong_gradient_of_lora_is_put_into_words_and_named():
    planted = zoo.plant(zoo.all_bugs()["lora-dA-scaled-twice"]).functions
    results = run(Implementation(planted, "mine"), select(["lora/"]), zoo=True)
    said = re.sub(r"\s+", " ", text(results, "mine"))
    assert "1. run_method, dh.1.attn.c_attn.lora_A in lora/usual" in said
    assert "1.5 = alpha/r: is the scale applied twice?" in said
    assert "the zoo's lora-dA-scaled-twice gives exactly this dh.1.attn.c_attn.lora_A" in said


# ---- every type in JSON ----


def test_json_takes_every_type_that_an_implementation_brings_in(capsys):
    class Odd(Exception):
        def __str__(self):
            return "half a pair \udc80 and bytes \x00"

    def gelu(x):
        raise Odd

    results = run(implementation(gelu=gelu), select(["gelu/usual"]), zoo=True)
    finding = results[0].findings[0]
    finding.worst = [
        (np.array([0, 1]), np.float32(1), complex(1, 2)),
        ({np.int64(3): b"\xff", None: {1}}, np.nan, -np.inf),
        ((np.bool_(True), np.complex64(1j)), np.longdouble(1.5), np.array([[np.inf]])),
    ]
    results[0].errors |= {3: np.float16(2), ("a", 1): object}
    assert show(results, "\udc80mine", everything=True, json_file=Path("-")) == 1
    said = json.loads(capsys.readouterr().out)
    assert json.dumps(said, allow_nan=False).encode("utf-8")
    told = said["results"][0]
    assert told["findings"][0]["worst"] == [
        [[0, 1], 1.0, "(1+2j)"],
        [{"3": "\\xff", "None": [1]}, "nan", "-inf"],
        [[True, "1j"], 1.5, [["inf"]]],
    ]
    assert told["errors"]["3"] == 2.0
    assert "half a pair" in said["first"]["sentence"]


def test_json_of_a_model_whose_names_are_no_text_is_written(tmp_path):
    class Name(str):
        pass

    mine = Implementation(
        types.SimpleNamespace(
            run_model=lambda problem: {Name("losss"): 1.0, "loss": np.float32(2)}
        ),
        "mine",
    )
    results = run(mine, select(["model/one-sequence"]))
    path = tmp_path / "report.json"
    assert show(results, "mine", everything=False, json_file=path) == 1
    tensors = [f["tensor"] for f in json.loads(path.read_text())["results"][0]["findings"]]
    assert "losss" in tensors
    assert all(type(f.tensor) is str for r in results for f in r.findings)


def test_the_page_explains_every_status_and_every_kind_of_finding():
    page = (Path(__file__).parent.parent / "docs" / "check.md").read_text(encoding="utf-8")
    for kind, meaning in KINDS.items():
        assert f"| `{kind}` | {meaning} |" in page
    for status in STATUSES:
        assert f"| `{status}` | " in page
    folder = Path(suite_contract.__file__).parent
    said = {
        kind
        for path in folder.glob("*.py")
        for kind in re.findall(
            r"""(?:\.say|Broken|\badd)\(\s*"([a-z ]+)\"""", path.read_text(encoding="utf-8")
        )
    }
    assert len(said) >= 10
    assert said <= KINDS.keys()
