"""The demo in small: what it writes and how it goes on. Its promises are checked on a full run by
`tests/check_demo.py`, which the continuous integration calls."""

import json
import re

import numpy as np
import pytest

from minprefix import GPT2, Batch, Prefix
from minprefix.cli import demo, main
from minprefix.data import demo as data
from minprefix.data import world
from tests.check_demo import failures

FILES = {
    "adapter_config.json", "adapter_model.safetensors", "log.jsonl", "loss.png", "metrics.json",
    "minprefix.json", "samples.md", "state.safetensors",
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def few_records():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "TEST", 12)
        patch.setattr(data, "TRAIN", 100)
        patch.setattr(data, "VALID", 8)
        yield


def test_a_short_demo_shows_and_writes_what_it_promises(tmp_path, capsys):
    out = tmp_path / "demo"
    assert main(["demo", "--out", str(out), "--steps", "8", "--batch-size", "8"]) == 0
    said = capsys.readouterr().out
    assert "--model" not in said  # of what to type next: a folder here may be called tiny
    assert "The frozen model on records that it has never seen" in said
    assert "slot error rate" in said
    assert "base model: unchanged, byte for byte" in said
    assert re.search(r"9\d% of the loss before lies on the first token of each text: given", said)
    assert re.search(r"\d\d% of the validation loss, [\d.]+, lies on 2 of its 8 records, \w", said)
    assert {p.name for p in out.iterdir()} == FILES
    metrics = json.loads((out / "metrics.json").read_text())
    for when in ("before", "after"):
        assert set(metrics[when]) == {"loss", "exact_match", "slot_error_rate"}
        assert 0 <= metrics[when]["slot_error_rate"] <= 1
        assert 0 <= metrics[when]["exact_match"] <= 1
    model = GPT2.load("tiny")
    assert metrics["base_parameters"] == model.n_parameters
    assert metrics["trained_parameters"] == Prefix.load(out, model).n_parameters == 12_800
    assert metrics["base_unchanged"] is True
    assert (out / "samples.md").read_text().count("- record: ") == 12
    assert main(["inspect", str(out)]) == 0
    said = capsys.readouterr().out
    assert said.count("the tiny world  sha256 ") == 2  # data and valid
    assert "None  sha256" not in said


def test_a_demo_resumes_and_is_not_replaced_without_being_asked(tmp_path, capsys):
    out = tmp_path / "demo"
    options = ["--steps", "4", "--batch-size", "4", "--prefix-length", "3"]
    assert main(["demo", "--out", str(out), *options]) == 0
    tensor = (out / "adapter_model.safetensors").read_bytes()
    assert main(["demo", "--out", str(out), *options]) == 2
    assert "already holds a run" in capsys.readouterr().err
    assert main(["demo", "--out", str(out), "--resume"]) == 0
    assert (out / "adapter_model.safetensors").read_bytes() == tensor


def test_a_demo_that_breaks_its_promises_is_told():
    before = {"loss": 0.1, "exact_match": 0.0, "slot_error_rate": 0.8}
    after = {"loss": 0.01, "exact_match": 0.9, "slot_error_rate": 0.02}
    good = {
        "before": before,
        "after": after,
        "base_unchanged": True,
        "trained_parameters": 10,
        "base_parameters": 1000,
    }
    assert failures(good) == []
    assert len(failures(good | {"before": after, "after": before})) == 4
    assert failures(good | {"base_unchanged": False}) == ["the base is unchanged"]
    assert failures(good | {"trained_parameters": 20}) == ["under 2% was trained"]


def test_the_demos_scores_are_those_of_what_the_model_said():
    model, test = GPT2.load("tiny"), data.pairs("test", 12, seed=0)
    scores, said = demo.score(model, None, test)
    records = [world.read_record(pair.source) for pair in test]
    wrong = sum(len(world.slot_errors(r, s)) for r, s in zip(records, said, strict=True))
    assert scores["slot_error_rate"] == round(wrong / sum(map(len, records)), 4) > 0.6
    assert scores["exact_match"] == 0.0
    perfect = [pair._replace(target=s) for pair, s in zip(test, said, strict=True)]
    assert demo.score(model, None, perfect)[0]["exact_match"] == 1.0


def test_the_reasons_that_the_demo_gives_are_counted_token_by_token():
    model, test = GPT2.load("tiny"), data.pairs("test", 12, seed=0)
    prefix = Prefix.normal(model.config, 3, seed=0)
    examples = demo.encoded(model, test)

    def each(prefix):
        """The loss of every target, record by record, from the logits."""
        for ids, start in examples:
            logits = model.logits(Batch.pack([ids]), prefix)[start - 1 : -1].astype(np.float64)
            right = logits[np.arange(len(logits)), ids[start:]]
            yield np.log(np.exp(logits).sum(axis=1)) - right

    frozen, trained = list(each(None)), list(each(prefix))
    share = sum(t[0] for t in frozen) / sum(t.sum() for t in frozen)
    assert 0.5 < share < 0.999
    assert demo.about_first(model, examples).startswith(f"{share:.0%} of the loss before lies on")
    sums = [t.sum() for t in trained]
    a, b = sorted(range(12), key=lambda i: -sums[i])[:2]
    said = demo.about_hardest(model, prefix, test, examples, 0.25)
    names = " and ".join(world.read_record(test[i].source)["name"] for i in (a, b))
    share = (sums[a] + sums[b]) / sum(sums)
    assert (
        said == f"{share:.0%} of the validation loss, 0.250, lies on 2 of its 12 records, {names}"
    )
