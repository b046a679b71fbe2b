"""Right implementations of many shapes: the suite accuses none of them."""

import types

import numpy as np
import pytest
import torch

from minprefix.conformance import Implementation, grade, run, select
from minprefix.conformance.cases import Case
from minprefix.conformance.contract import ARGUMENTS
from minprefix.conformance.house import House
from minprefix.conformance.house import _start as house_start
from minprefix.conformance.op_cases import case_of
from minprefix.conformance.report import text
from minprefix.conformance.suite import all_checks
from minprefix.model import GPT2
from minprefix.ops import reference

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
