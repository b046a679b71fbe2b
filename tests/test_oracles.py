"""What the reference suite expects is what four unlike oracles say, and they would say if not.

All cases: `python -m tests.oracles`. Here is a part that has every op and every tensor in it.
"""

import importlib.util
import inspect

import numpy as np
import pytest

from minprefix.conformance import cases, op_cases, problems
from minprefix.ops import reference
from tests.oracles import __main__ as command
from tests.oracles import agreement, table
from tests.oracles.agreement import ILL, TARGETS, Score

ALL = set(TARGETS) - {"transformers"}


@pytest.fixture(scope="module")
def scores():
    return list(agreement.light())


@pytest.mark.long
def test_no_oracle_is_further_off_than_its_target(scores):
    assert [s for s in scores if s.missed] == []


@pytest.mark.long
def test_every_tensor_of_the_contract_has_every_oracle_that_applies(scores):
    assert agreement.complete(scores) == []


@pytest.mark.long
def test_a_tensor_without_an_oracle_is_named(scores):
    without = [s for s in scores if not (s.row[1] == "dx" and s.oracle == "autograd")]
    assert agreement.complete(without) == [
        f"{op}: dx is not confirmed by autograd" for op in ("layernorm", "linear", "gelu")
    ]
    gone = [s for s in scores if s.row != ("model", "dh.i.ln_1.bias")]
    assert agreement.complete(gone) == [
        "model: dh.i.ln_1.bias is not confirmed by PyTorch, autograd, complex step, differences, "
        "transformers"
    ]


def test_the_committed_table_has_a_row_for_every_tensor_and_misses_nothing():
    text = table.PATH.read_text(encoding="utf-8")
    assert set(agreement.rows()) - table.rows_of(text) == set()
    assert " 0 of them beyond their target" in text
    assert "missed" not in text.lower()


def test_a_row_that_the_table_lacks_is_noticed():
    lines = table.PATH.read_text(encoding="utf-8").splitlines()
    without = "\n".join(line for line in lines if "`dprefix_k[]` |" not in line)
    assert set(agreement.rows()) - table.rows_of(without) == {("attention", "dprefix_k[]")}


def test_only_these_cases_are_granted_more_than_the_target():
    ill = {
        (op, name)
        for op, named in op_cases.CASES.items()
        for name in named
        if agreement.condition(op_cases.case_of(op, name)) > ILL
    }
    assert ill == {
        ("layernorm", "far-from-zero"),
        ("layernorm", "tiny-variance"),
        ("attention", "large-last-key"),
        ("attention", "large-scores"),
        ("attention", "large-negative-scores"),
        ("attention", "far-negative-scores"),
        ("attention", "uneven-scores"),
        ("cross_entropy", "large-logits"),
        ("cross_entropy", "large-negative-logits"),
        ("cross_entropy", "spread-logits"),
    }


@pytest.mark.long
def test_the_command_ends_with_1_when_a_target_is_missed(scores, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("sys.argv", ["oracles", "--write"])
    monkeypatch.setattr(table, "PATH", tmp_path / "TABLE.md")
    monkeypatch.setattr(agreement, "full", lambda: scores)
    assert command.main() == 0
    assert table.PATH.read_text() == capsys.readouterr().out.removesuffix("\n")
    off = Score("attention", "dq", "autograd", "usual", 2e-12)
    monkeypatch.setattr(agreement, "full", lambda: [*scores, off])
    assert command.main() == 1
    out, err = capsys.readouterr()
    assert "2.0e-12 usual **missed**" in out
    assert err == "attention/usual: dq differs from autograd by 2e-12, 1e-12 is allowed\n"


# ---- a wrong reference is found -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("op", "right", "wrong", "missed"),
    [
        ("attention", "dq_b = dscores @ keys / hs**0.5", "dq_b = dscores @ keys", {"dq": ALL}),
        (
            "attention",
            "pattern * (dpattern - row_sum)",
            "pattern * dpattern",
            {"dq": ALL, "dk": ALL, "dprefix_k[]": ALL},
        ),
        (
            "attention",
            "np.arange(T)[:, None] + P",
            "np.arange(T)[:, None] + P + 1",  # a query sees the token after it: forward and back
            {"z", "cache.pattern[]", "dq", "dk", "dv", "dprefix_k[]", "dprefix_v[]"},
        ),
        ("embed", "np.add.at(dwte, tokens, dx)", "dwte[tokens] += dx", {"dwte": ALL}),
        ("layernorm", "- xhat * mean_dxhat_xhat", "", {"dx": ALL}),
        ("linear", "return x.T @ dout, ", "return x.T @ dout * 1.00001, ", {"dweight": ALL}),
        ("gelu", "0.044715", "0.04471", {"out", "cache.tanh", "dx"}),
        (
            "cross_entropy",
            "weights[:, None] * (probs - one_hot)",
            "probs - one_hot",
            {"dlogits": ALL},
        ),
    ],
)
def test_a_wrong_reference_is_found_and_the_tensor_named(
    monkeypatch, tmp_path, op, right, wrong, missed
):
    """A set: the forward is wrong and the backward is its derivative, so PyTorch alone can tell."""
    source = inspect.getsource(reference)
    assert right in source
    path = tmp_path / "broken_reference.py"
    path.write_text(source.replace(right, wrong))
    spec = importlib.util.spec_from_file_location("broken_reference", path)
    broken = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(broken)
    monkeypatch.setattr(cases, "reference", broken)
    monkeypatch.setattr(cases, "_EXPECTED", {})
    name = agreement.LIGHT["ops"][op][0]
    found: dict[str, set[str]] = {}
    for score in agreement.op_scores(name, op_cases.case_of(op, name)):
        if score.missed:
            found.setdefault(score.row[1], set()).add(score.oracle)
    assert found == (missed if isinstance(missed, dict) else {t: {"PyTorch"} for t in missed})


def off_by(monkeypatch, name, case, tensor, factor):
    wrong = dict(getattr(problems, name)(case))
    wrong[tensor] = wrong[tensor] * factor
    monkeypatch.setattr(problems, name, lambda case: wrong)


@pytest.mark.parametrize(
    ("tensor", "oracles"),
    [
        ("prefix.1.dv", set(TARGETS)),
        *(
            pytest.param(tensor, oracles, marks=pytest.mark.long)
            for tensor, oracles in (
                ("blocks.1.dresid_mid", set(TARGETS)),
                ("blocks.1.attn.dq", set(TARGETS)),
                ("blocks.2.attn.pattern[1]", {"PyTorch", "transformers"}),
                ("loss", {"PyTorch", "transformers"}),
            )
        ),
    ],
)
def test_a_wrong_tensor_of_a_model_is_found(monkeypatch, tensor, oracles):
    off_by(monkeypatch, "expected_model", "own-prefixes", tensor, 1 + 1e-6)
    missed = {(s.tensor, s.oracle) for s in agreement.model_scores("own-prefixes") if s.missed}
    assert missed == {(tensor, oracle) for oracle in oracles}


def test_a_wrong_step_of_training_is_found(monkeypatch):
    off_by(monkeypatch, "expected_training", "one-step", "step.0.prefix.0.kv", 1 + 1e-9)
    missed = [(s.tensor, s.oracle) for s in agreement.training_scores("one-step") if s.missed]
    assert missed == [("step.0.prefix.0.kv", "PyTorch"), ("step.0.prefix.0.kv", "transformers")]


def test_a_tensor_that_the_suite_does_not_expect_is_missed(monkeypatch):
    less = dict(problems.expected_decoding("own-prefixes"))
    del less["logits"]
    monkeypatch.setattr(problems, "expected_decoding", lambda case: less)
    assert all(np.isinf(s.error) and s.missed for s in agreement.decoding_scores("own-prefixes"))
