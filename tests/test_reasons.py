"""The reasons that the suite gives for a wrong number: which term of which formula is wrong."""

import re
import types
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minprefix.conformance import Implementation, all_checks, grade
from minprefix.conformance.cases import Case, reference_cache
from minprefix.conformance.contract import FUNCTIONS
from minprefix.conformance.fitting import explain
from minprefix.conformance.house import House
from minprefix.conformance.problems import ASKED, model_case, training_case
from minprefix.conformance.reasons.mistakes import mistakes
from minprefix.conformance.reasons.wrong import compiled, formulas
from minprefix.conformance.report import as_json, text
from minprefix.ops import reference

# ---- fitting ----


def layernorm_dx():
    """The three summands of layernorm's dx, with their signs, for C = 11."""
    inputs = Case("layernorm").inputs()
    xhat, rstd, gain = reference_cache("layernorm", inputs)
    dxhat = inputs["dout"] * gain
    along_1 = -rstd * dxhat.mean(axis=-1, keepdims=True)
    along_xhat = -rstd * xhat * (dxhat * xhat).mean(axis=-1, keepdims=True)
    return {"dxhat": rstd * dxhat, "the mean": along_1 + 0 * xhat, "xhat's term": along_xhat}


@pytest.mark.parametrize(
    ("factors", "said"),
    [
        ((1, 0, 1), "is off by -1 times the mean: is it missing?"),
        ((1, 1, 0), "is off by -1 times xhat's term: is it missing?"),
        ((1, -1, 1), "is off by -2 times the mean: has it the wrong sign?"),
        ((1, 1, 11), "xhat's term (it is in it 11 times: 11 = C: is a sum taken where a mean"),
        ((1, 1 / 11, 1), "1/C: is a mean taken where a sum belongs?"),
        ((1, 0, 0), "is dxhat"),
        ((1, 0, -1), "and -2 times xhat's term: has it the wrong sign?"),
    ],
)
def test_the_summand_that_is_wrong_is_found_by_fitting(factors, said):
    terms = layernorm_dx()
    got = sum(f * term for f, term in zip(factors, terms.values(), strict=True))
    found = explain(got, sum(terms.values()), terms, ["N", "C"], {"C": 11})
    assert len(found) == 1
    assert said in found[0]


def test_a_missing_row_sum_is_one_number_in_each_row():
    want = np.random.default_rng(0).normal(0, 1, (5, 7))
    rows = np.arange(1.0, 6.0)[:, None]
    assert explain(want + rows, want, {}, ["N", "C"]) == [
        "is off by one number in each row (along N): 1, 2, 3, 4, 5: is a sum over it missing?"
    ]
    gain = np.random.default_rng(1).normal(0, 1, 7)
    found = explain(want + rows * gain, want, {"gain": gain}, ["N", "C"])
    assert found == ["is off by a multiple of gain in each row (along N): 1, 2, 3, 4, 5"]


@given(st.integers(0, 2**32), st.sampled_from([1e-15, 1e-9, 1e-6, 1.0]))
def test_noise_and_rounding_have_no_reason(seed, size):
    terms = layernorm_dx()
    want = sum(terms.values())
    got = want + size * np.random.default_rng(seed).normal(0, 1, want.shape)
    assert explain(got, want, terms, ["N", "C"], {"C": 11}) == []
    few = slice(0, 1), slice(0, 3)  # three numbers are a sum of any three others
    short = {name: term[few] for name, term in terms.items()}
    assert explain(got[few], want[few], short, ["N", "C"]) == []


# ---- wrong formulas of the ops ----


def test_every_wrong_formula_changes_a_text_that_is_there():
    every = [wrong for each in formulas().values() for wrong in each]
    assert {wrong.function for wrong in every} == {f for fs in FUNCTIONS.values() for f in fs}
    for wrong in every:
        compiled(wrong)
    assert len(set(every)) == len(every)


def first_hint(op, case="usual", **functions):
    """What is said of the first wrong tensor."""
    mine = {name: getattr(reference, name) for name in FUNCTIONS[op]} | functions
    implementation = Implementation(types.SimpleNamespace(**mine), "mine")
    found = grade(all_checks()[f"{op}/{case}"], implementation, zoo=False).findings
    return found[0].hints[0] if found and found[0].hints else ""


def padded_attention(see, scale=1.0, axis=-1):
    """One einsum for all heads of a sequence; `see(i, j)`: whether query i sees key j, the prefix
    being the keys below 0."""

    def attention(q, k, v, prefix_k, prefix_v, offsets):
        zs = []
        for b in range(len(offsets) - 1):
            rows = slice(offsets[b], offsets[b + 1])
            keys = np.concatenate([prefix_k[b].swapaxes(0, 1), k[rows]])
            values = np.concatenate([prefix_v[b].swapaxes(0, 1), v[rows]])
            scores = np.einsum("ihd,jhd->hij", q[rows], keys) / q.shape[2] ** 0.5 * scale
            i, j = np.ogrid[: rows.stop - rows.start, : len(keys)]
            scores = np.where(see(i, j - prefix_k[b].shape[1]), scores, -np.inf)
            weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
            weights /= weights.sum(axis=axis, keepdims=True)
            zs.append(np.einsum("hij,jhd->ihd", weights, values))
        cache = reference.attention(q, k, v, prefix_k, prefix_v, offsets)[1]
        return np.concatenate(zs), cache

    return attention


@pytest.mark.parametrize(
    ("see", "scale", "said"),
    [
        (lambda i, j: j <= i, 7**0.5, "the scores are not divided by sqrt(hs)"),
        (lambda i, j: j <= i + 1, 1.0, "the mask lets each query see one token more"),
        (lambda i, j: j < i, 1.0, "a query does not see its own token"),
        (lambda i, j: (j >= 0) & (j <= i), 1.0, "no query sees the prefix"),
        (lambda i, j: j <= i - 3, 1.0, "the mask is shifted by -3"),
        (lambda i, j: j == j, 1.0, "there is no causal mask"),
    ],
)
def test_a_wrong_formula_of_attention_is_told(see, scale, said):
    assert first_hint("attention", attention=padded_attention(see, scale)).startswith(
        f"is what one gets if {said}"
    )


def test_what_looks_alike_in_a_small_case_is_told_apart_by_a_large_one():
    """In a case of 5 keys, a dropped last block of 64 hides all tokens."""

    def see_whole_blocks(i, j):
        return (j <= i) & (j < len(i) // 64 * 64)

    hint = first_hint("attention", attention=padded_attention(see_whole_blocks))
    assert "tokens beyond the last whole block of 64 are ignored" in hint
    hint = first_hint("attention", attention=padded_attention(lambda i, j: j < 0))
    assert "no query sees a token, only the prefix" in hint


def test_constants_of_gelu_are_read_from_its_values():
    def gelu(x):
        tanh = np.tanh(0.81 * (x + 0.05 * x**3))
        return x / 2 * (1 + tanh), reference.GeluCache(x, tanh)

    assert "u = 0.81 (x + 0.05 x^3): expected 0.79788456 = sqrt(2/pi) and 0.044715" in first_hint(
        "gelu", gelu=gelu
    )


def test_a_wrong_summand_of_a_backward_is_told():
    def layernorm_backward(dout, cache):
        xhat, rstd, gain = cache
        dxhat = dout * gain
        mean = dxhat.mean(axis=-1, keepdims=True)
        return rstd * (dxhat - 0.7 * mean - xhat * (dxhat * xhat).mean(axis=-1, keepdims=True))

    hint = first_hint("layernorm", layernorm_backward=layernorm_backward)
    assert hint == "is off by -0.3 times the term along 1 (- rstd mean(dxhat))"


def test_a_query_that_sees_another_sequence_is_told():
    def attention(q, k, v, prefix_k, prefix_v, offsets):
        z, cache = reference.attention(q, k, v, prefix_k, prefix_v, offsets)
        return z + 0.1 * v[2], cache

    hint = first_hint("attention", "one-sequence", attention=attention)
    assert "moves in row 0 when v[2] does, and must not: a query sees a later token" in hint

    def other(q, k, v, prefix_k, prefix_v, offsets):
        z, cache = reference.attention(q, k, v, prefix_k, prefix_v, offsets)
        z[offsets[1] :] += 0.1 * np.sin(k[0])
        return z, cache

    hint = first_hint("attention", attention=other)
    assert "moves in row 5 when k[0] does, and must not: sequence 1 sees sequence 0" in hint


@pytest.mark.parametrize("size", [1e-6, 1.0])
@pytest.mark.parametrize("op", FUNCTIONS)
def test_noise_has_no_reason(op, size):
    """Numbers that no formula gives."""
    rng = np.random.default_rng(12345)

    def noisy(function):
        def with_noise(*given):
            result = getattr(reference, function)(*given)
            if isinstance(result, tuple) and hasattr(result, "_replace"):
                return type(result)(*(noise(a) for a in result))
            if isinstance(result, tuple):
                last = result[1] if function == op else noise(result[1])
                return noise(result[0]), last
            return noise(result)

        return with_noise

    def noise(a):
        if isinstance(a, list):
            return [noise(each) for each in a]
        return a + size * rng.normal(0, 1, np.shape(a))

    for function in FUNCTIONS[op]:
        hint = first_hint(op, **{function: noisy(function)})
        assert "is what one gets" not in hint
        assert "is off by" not in hint


# ---- whole answers ----


class Changed(House):
    """The project's own model, on a problem that is changed first."""

    def __init__(self, change, only_asked=True):
        super().__init__(reference)
        self.change, self.only_asked = change, only_asked

    def run_model(self, problem):
        found = super().run_model(self.change(problem))
        return {n: a for n, a in found.items() if not self.only_asked or ASKED["run_model"](n)}

    def run_training(self, problem):
        return super().run_training(self.change(problem))


def first_reasons(check, functions):
    found = grade(all_checks()[check], Implementation(functions, "mine"), zoo=False).findings
    return found[0].tensor, found[0].hints


@pytest.mark.parametrize(
    ("check", "change", "said"),
    [
        (
            "model/offset-0",
            lambda p: replace(p, position_offsets=[kv.shape[3] for kv in p.prefixes]),
            "tokens start at position P, whatever the offset says",
        ),
        ("model/sum", lambda p: replace(p, reduction="mean"), "the mean is taken, and the sum"),
        (
            "model/own-prefixes",
            lambda p: replace(p, loss_from=[1] * len(p.sequences)),
            "every token is predicted, whatever loss_from says",
        ),
        ("training/ten-steps", lambda p: replace(p, clip=None), "gradients are not clipped"),
        (
            "training/ten-steps",
            lambda p: replace(p, warmup=p.warmup + 1),
            "warmup is a step longer",
        ),
    ],
)
def test_a_mistake_is_told_from_the_answer_alone(check, change, said):
    _, hints = first_reasons(check, Changed(change))
    assert hints[0].startswith(f"is what one gets if {said}")


def test_the_first_wrong_operation_of_a_model_is_told_with_what_it_was_given():
    class SkipsNorm(types.SimpleNamespace):
        """The second norm of block 1 is computed and not used."""

    seen = []

    def linear(x, weight, bias):
        if weight.shape == (10, 40):
            seen.append(x)
        if weight.shape == (10, 40) and len(seen) % 3 == 2:
            x = SkipsNorm.before
        return reference.linear(x, weight, bias)

    def layernorm(x, gain, bias, eps):
        SkipsNorm.before = x
        return reference.layernorm(x, gain, bias, eps)

    ops = {name: getattr(reference, name) for fs in FUNCTIONS.values() for name in fs}
    mine = types.SimpleNamespace(**ops | {"linear": linear, "layernorm": layernorm})
    tensor, hints = first_reasons("model/one-sequence", mine)
    assert tensor == "blocks.1.mlp.pre"
    assert hints[0] == (
        "is linear of resid_mid with h.1.mlp.c_fc: expected ln_2.out with h.1.mlp.c_fc"
    )
    assert hints[1] == (
        "is the first wrong one, and blocks.1.ln_2.out is right: look at the forward of mlp.c_fc "
        "(linear) in block 1"
    )


@pytest.mark.long
def test_every_mistake_leads_to_an_answer():
    """Or is one that the problem does not allow."""
    failed = set()
    for function, tensor, problem in (
        ("run_model", "loss", model_case("separate-head")),
        ("run_model", "prefix.0.dk", model_case("shared-prefix")),
        ("run_training", "step.0.loss", training_case("one-step")),
    ):
        for said, answer in mistakes(function, tensor):
            if "in every" in said:  # the wrong formulas have a test of their own
                continue
            try:
                with np.errstate(all="ignore"):
                    assert answer(replace(problem)), said
            except (TypeError, ValueError):
                failed.add(said)
    assert all("limit" in said for said in failed)  # that problem does not clip


@pytest.mark.parametrize("noise", [0.0, 1e-3])
def test_a_right_answer_and_noise_have_no_reason(noise):
    class Noisy(House):
        def run_model(self, problem):
            rng = np.random.default_rng(12345)
            found = super().run_model(problem)
            return {n: a * (1 + noise * rng.normal(0, 1, a.shape)) for n, a in found.items()}

    mine = Implementation(Noisy(reference), "mine")
    found = grade(all_checks()["model/shared-prefix"], mine, zoo=False).findings
    assert bool(found) == (noise > 0)
    assert not any("what one gets" in hint for f in found for hint in f.hints)


def test_what_depends_on_a_wrong_value_is_one_line():
    mine = Implementation(Changed(lambda p: replace(p, position_offsets=[0]), False), "mine")
    result = grade(all_checks()["model/one-sequence"], mine, zoo=False)
    assert len(result.findings) > 50
    said = re.sub(r"\s+", " ", text([result], "mine"))
    assert "checked here: one sequence, one prefix, every intermediate" in said
    n = len({f.tensor.split("[")[0] for f in result.findings}) - 1
    assert f"and {n} values that depend on it: blocks.0.ln_1.out" in said
    assert "2. run_model" not in said
    assert as_json([result], "mine")["first"]["why"] == all_checks()["model/one-sequence"].why
