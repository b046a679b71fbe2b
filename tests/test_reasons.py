"""The reasons that the suite gives for a wrong number: which term of which formula is wrong."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minprefix.conformance.cases import Case, reference_cache
from minprefix.conformance.fitting import explain

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
