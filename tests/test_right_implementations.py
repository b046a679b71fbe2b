"""Right implementations of many shapes: the suite accuses none of them."""

import types

import numpy as np
import pytest
import torch

from minprefix.conformance import Implementation, grade, run, select
from minprefix.conformance.cases import Case, case_of
from minprefix.conformance.contract import ARGUMENTS
from minprefix.conformance.report import text
from minprefix.conformance.suite import all_checks
from minprefix.ops import reference

from .test_conformance import in_single, torch_ops


def of(functions, **others):
    """The functions of a module or object, some of them replaced."""
    own = {name: getattr(functions, name) for name in dir(functions) if name in HANDED_ON}
    return Implementation(types.SimpleNamespace(**own | others), "mine")


HANDED_ON = (*ARGUMENTS, "asarray", "asnumpy")


def accused(results):
    return [(r.check, f.function, f.tensor, f.sentence) for r in results for f in r.findings]


# ---- what asarray makes of the numbers ----


def test_single_precision_by_asarray_is_graded_as_that_and_the_report_says_so():
    results = run(of(reference, asarray=in_single))
    assert accused(results) == []
    assert {r.status for r in results} == {"passed"}
    assert text(results, "mine").endswith(
        "checks passed\nasarray rounds float64: graded in single precision, in which smaller "
        "differences do not show"
    )
    assert "in single precision" not in text(run(of(reference), select(["gelu"])), "mine")


@pytest.mark.long
def test_pytorchs_own_functions_in_single_precision_pass():
    results = run(of(torch_ops(), asarray=lambda a: torch.tensor(in_single(a))))
    assert accused(results) == []


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

    results = run(of(reference, asarray=in_single, layernorm_backward=layernorm_backward))
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
