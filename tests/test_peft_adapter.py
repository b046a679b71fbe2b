"""transformers + PEFT pass the reference suite, and a mistake in the adapter does not."""

from pathlib import Path

import pytest

from minprefix.conformance import load, run, select

ADAPTER = Path(__file__).with_name("peft_adapter.py")


@pytest.mark.long
def test_transformers_and_peft_pass_the_suite_to_1e_12():
    results = run(load(str(ADAPTER)), select(levels=["model", "training"]))
    assert [r.check for r in results if r.status == "failed"] == []
    without = {r.check: r.not_implemented for r in results if r.status != "passed"}
    first = "PEFT puts the first token after {0} slots at position {0}, not at 0"
    assert without == {
        "model/offset-0": ["run_model: " + first.format(4)],
        "model/offsets": ["run_model: " + first.format(3)],
        "decoding/offsets": ["run_decoding: " + first.format(3)],
    }
    # draws with an offset of their own are left out, the others are graded
    partly = [r.check for r in results if r.status == "passed" and r.not_implemented]
    assert partly == ["model/drawn", "decoding/drawn"]
    loose = {"model/float32": 1e-5, "model/derivative": 1e-6, "model/low-scores": 1e-11}
    for r in results:
        if r.status == "passed":
            assert max(r.errors.values()) < loose.get(r.check, 1e-12), r.check


def test_every_tensor_of_the_contract_is_offered():
    from minprefix.conformance import model_case
    from minprefix.conformance.contract import model_tensors

    problem = model_case("weights")
    asked = model_tensors(problem.config, 1, 3, "all")
    assert list(load(str(ADAPTER)).functions.run_model(problem)) == list(asked)


@pytest.mark.parametrize(
    ("right", "wrong", "check"),
    [
        (
            "return self._peft(given, **options)",
            "return self.hf(given, past_key_values=self._peft.get_prompt(1), "
            "position_ids=torch.arange(len(ids))[None], **options)",  # positions from 0
            "model/one-sequence",
        ),
        ('= f"prefix_{which}"', '= "prefix_0"', "model/own-prefixes"),  # one prefix for all rows
        (
            "t.transpose(1, 2, 3, 0, 4)",
            "t.transpose(1, 2, 3, 0, 4)[:, ::-1]",
            "model/shared-prefix",
        ),
        ('reduction="sum"', 'reduction="mean"', "training/micro-batches"),  # a mean of means
        ("p.grad.mul_(limit / norm)", "p.grad.mul_(limit)", "training/mlp"),
        ("weight_decay=problem.weight_decay", "weight_decay=0.0", "training/one-step"),
        ("past_key_values=past,", "", "decoding/one-sequence"),  # a cache that is not passed on
        ("= _gradient(p)\n", "= 2 * _gradient(p)\n", "model/weights"),
    ],
)
def test_a_mistake_in_the_adapter_fails_the_suite(tmp_path, right, wrong, check):
    source = ADAPTER.read_text(encoding="utf-8")
    assert right in source
    broken = tmp_path / "broken_adapter.py"
    broken.write_text(source.replace(right, wrong), encoding="utf-8")
    (result,) = (r for r in run(load(str(broken)), select(only=[check])) if r.check == check)
    assert result.status == "failed"
    assert {f.kind for f in result.findings} <= {"value", "shape", "precision"}  # no exception
