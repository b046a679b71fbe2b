"""PEFT's LoRA and prompt tuning pass the level `methods` of the reference suite, and a mistake in
the adapter does not."""

from pathlib import Path

import pytest

from minprefix.conformance import load, run, select

ADAPTER = Path(__file__).with_name("peft_methods.py")


def test_pefts_lora_and_prompt_tuning_pass_to_1e_12():
    results = run(load(str(ADAPTER)), select(["lora/", "prompt-tuning/"]))
    assert [r.check for r in results if r.status == "failed"] == []
    assert [r.check for r in results if r.status == "not implemented"] == ["lora/dropout"]
    for r in results:
        if not r.check.endswith("/derivative"):
            assert max(r.errors.values(), default=0) < 1e-12, r.check


@pytest.mark.parametrize(
    ("right", "wrong", "check"),
    [
        ('lora_alpha=options["alpha"]', 'lora_alpha=options["rank"]', "lora/usual"),
        ("logits[0, P:]", "logits[0, : len(ids)]", "prompt-tuning/usual"),
        ("loss = total / count if", "loss = total if", "lora/one-token-targets"),
        ("(p.grad.T if", "(2 * p.grad.T if", "lora/law-identity"),
    ],
)
def test_a_mistake_in_the_adapter_fails_the_suite(tmp_path, right, wrong, check):
    source = ADAPTER.read_text(encoding="utf-8")
    assert right in source
    broken = tmp_path / "broken_methods.py"
    broken.write_text(source.replace(right, wrong), encoding="utf-8")
    (result,) = (r for r in run(load(str(broken)), select([check])) if r.check == check)
    assert result.status == "failed"
    assert {f.kind for f in result.findings} <= {"value", "law"}
