"""The main job on what ships: teach the frozen tiny model table-to-text with a prefix, and show the
difference."""

import hashlib
import json
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minprefix.batch import Batch
from minprefix.data import world
from minprefix.data.pairs import Encoded, Pair, Template, encode_pairs
from minprefix.evaluate import exact_match, mean_loss, predict, slot_error_rate
from minprefix.generate import Decoding
from minprefix.model import GPT2, loss
from minprefix.ops import BACKENDS
from minprefix.prefix import Prefix
from minprefix.prefixes.verify import evaluation
from minprefix.storage.run import RUN_FILES, refuse_taken
from minprefix.storage.saving import run_folder
from minprefix.storage.writing import write_json, write_text
from minprefix.train import Settings, check_trainable, train

TRAIN, VALID, TEST, SHOWN = 2000, 64, 100, 2
TEMPLATE = Template()
DECODING = Decoding(max_new_tokens=80)


def pairs(split: str, n: int, seed: int) -> list[Pair]:
    """n records of the tiny world and their descriptions; no name of one split occurs in
    another."""
    drawn = world.table_to_text(n, split, seed)
    return [Pair(s, t, f"tiny world, {split} record {i}") for i, (s, t) in enumerate(drawn)]


def recorded_pairs(of: str, options: dict[str, Any]) -> list[Pair]:
    """The training or validation pairs ("data", "valid") of a demo with these options."""
    return (
        pairs("train", TRAIN, options.get("seed", 0)) if of == "data" else pairs("valid", VALID, 0)
    )


def fingerprint(pairs: list[Pair]) -> str:
    """sha256 of their sources and targets."""
    said = json.dumps([[pair.source, pair.target] for pair in pairs])
    return hashlib.sha256(said.encode()).hexdigest()


def run(
    out: Path,
    *,
    prefix_length: int,
    steps: int,
    batch_size: int,
    lr: float,
    seed: int,
    backend: str,
    resume: bool = False,
    force: bool = False,
) -> dict[str, Any]:
    """Write the prefix, metrics.json, loss.png, log.jsonl and samples.md into `out`; print before
    and after.

    -> the metrics; empty if Ctrl-C stopped the training.
    """
    options = {
        "prefix_length": prefix_length,
        "steps": steps,
        "batch_size": batch_size,
        "lr": lr,
        "seed": seed,
        "backend": backend,
    }
    settings = Settings(
        steps=steps,
        batch_size=batch_size,
        lr=lr,
        warmup=min(20, max(0, steps - 1)),
        eval_every=25,
        seed=seed,
        backend=backend,
    )
    refuse_taken(out, force, resume)
    started = time.time()
    home = BACKENDS[backend]
    model = GPT2.load().to(home)
    prefix = Prefix.normal(model.config, prefix_length, seed=seed).to(home)
    check_trainable(prefix)
    test = pairs("test", TEST, seed=0)  # the same for every seed, so that runs can be compared
    share = prefix.n_parameters / model.n_parameters
    print(f"{model}\n{prefix}: {share:.1%} of the model's size\n")

    before, said_before = score(model, None, test)
    print(f"The frozen model on records that it has never seen ({TEST} of them, {SHOWN} shown):\n")
    for pair, said in list(zip(test, said_before, strict=True))[:SHOWN]:
        print(f"  record  {pair.source}\n  model   {one_line(said)}\n")

    print(f"Training the prefix on {TRAIN} records and their descriptions, the model frozen:")
    room = model.room(prefix)
    train_set = encode_pairs(model, recorded_pairs("data", options), TEMPLATE, room)
    valid_pairs = recorded_pairs("valid", options)
    valid_set = encode_pairs(model, valid_pairs, TEMPLATE, room)
    about = {
        "command": "demo",
        "task": "tiny world, table to text",
        "template": TEMPLATE.text,
        "data_sha256": fingerprint(recorded_pairs("data", options)),
        "valid_sha256": fingerprint(valid_pairs),
        "init": {"init": "normal", "init_std": 0.02},
        "options": options,
    }
    with run_folder(out, RUN_FILES, force, resume):
        result = train(model, prefix, train_set, settings, out, valid_set, about, resume)
        if result.interrupted:
            return {}
        after, said_after = score(model, prefix, test)
        metrics = {
            "before": before,
            "after": after,
            "trained_parameters": prefix.n_parameters,
            "base_parameters": model.n_parameters,
            "base_unchanged": result.base_unchanged,
            "test_records": TEST,
            "steps": result.step,
            "best_step": result.best_step,
            "seed": seed,
            "training_seconds": round(result.seconds, 1),
            "seconds": round(time.time() - started, 1),
        }
        training = {**about, "settings": vars(settings)}
        recorded = evaluation(model, prefix, valid_pairs, valid_set, TEMPLATE, "valid", backend)
        prefix.save(out, model, training, {"before": before, "after": after}, recorded)
        write_json(out / "metrics.json", metrics)
        write_text(out / "samples.md", samples(test, said_before, said_after))

    print(f"\nThe same model with the prefix of step {result.best_step}, the same records:\n")
    for pair, said in list(zip(test, said_after, strict=True))[:SHOWN]:
        print(f"  record  {pair.source}\n  model   {one_line(said)}\n")
    print(table(metrics))
    assert result.best_loss is not None  # the last step is validated
    print(f"\n{about_first(model, encoded(model, test))}")
    print(about_hardest(model, prefix, valid_pairs, valid_set, result.best_loss))
    where = shlex.quote(str(out))  # the commands below are meant to be pasted
    print(f"\nWritten to {out}: the prefix, metrics.json, samples.md, loss.png, log.jsonl. Next:\n")
    print(f'  minprefix generate --prefix {where} --prompt "{test[0].source}"')
    print(f"  minprefix inspect {where}")
    print(f"  minprefix verify {where}")
    return metrics


def score(
    model: GPT2, prefix: Prefix | None, test: list[Pair]
) -> tuple[dict[str, float], list[str]]:
    """Loss, exact match and slot error rate on held-out records, and what the model said."""
    sources = [pair.source for pair in test]
    said = predict(model, prefix, sources, TEMPLATE, DECODING)
    errors = slot_error_rate(sources, said)
    assert errors is not None  # all of them are records of the tiny world
    scores = {
        "loss": round(mean_loss(model, prefix, encoded(model, test)), 4),
        "exact_match": round(exact_match(said, [[pair.target] for pair in test]), 4),
        "slot_error_rate": round(errors, 4),
    }
    return scores, said


def encoded(model: GPT2, test: list[Pair]) -> list[Encoded]:
    return encode_pairs(model, test, TEMPLATE, model.room())


def about_first(model: GPT2, examples: Sequence[Encoded]) -> str:
    """Why the frozen model has a low loss and no text right."""
    lengths = [len(e.ids) - e.loss_from for e in examples]
    batch = Batch.pack(
        [e.ids for e in examples],
        [e.loss_from for e in examples],
        weights=[[1.0] + [0.0] * (n - 1) for n in lengths],
    )
    share = loss(model, batch, None, "sum") / (mean_loss(model, None, examples) * sum(lengths))
    return (
        f"{share:.0%} of the loss before lies on the first token of each text: given that, the "
        "frozen model\nknows the rest, but left to itself it begins another kind of text"
    )


def about_hardest(
    model: GPT2, prefix: Prefix, pairs: list[Pair], examples: Sequence[Encoded], total: float
) -> str:
    """Why the loss on the validation records may be another one than on the test records."""
    each = [mean_loss(model, prefix, [e]) * (len(e.ids) - e.loss_from) for e in examples]
    worst = sorted(range(len(each)), key=lambda i: -each[i])[:2]
    names = " and ".join(pairs[i].source.partition("]")[0].partition("[")[2] for i in worst)
    share = sum(each[i] for i in worst) / sum(each)
    return (
        f"{share:.0%} of the validation loss, {total:.3f}, lies on {len(worst)} of its "
        f"{len(each)} records, {names}"
    )


def table(metrics: dict[str, Any]) -> str:
    rows = [f"{'':<18}{'before':>10}{'after':>10}"]
    for key, label in (
        ("loss", "loss"),
        ("exact_match", "exact match"),
        ("slot_error_rate", "slot error rate"),
    ):
        before, after = metrics["before"][key], metrics["after"][key]
        form = ".3f" if key == "loss" else ".1%"
        rows.append(f"{label:<18}{before:>10{form}}{after:>10{form}}")
    trained, base = metrics["trained_parameters"], metrics["base_parameters"]
    frozen = "unchanged, byte for byte" if metrics["base_unchanged"] else "CHANGED: this is a bug"
    rows.append(
        f"\ntrained {trained:,} parameters, {trained / base:.2%} of the {base:,} of the base"
    )
    rows.append(f"base model: {frozen}; training {metrics['training_seconds']} s")
    return "\n".join(rows)


def samples(test: list[Pair], before: list[str], after: list[str]) -> str:
    """All records with what was said before and after, as Markdown."""
    parts = ["# What the model says, before and after\n"]
    for pair, b, a in zip(test, before, after, strict=True):
        mark = "" if a == pair.target else " (differs from the reference)"
        parts.append(
            f"- record: `{pair.source}`\n  - before: {one_line(b)}\n  - after{mark}: "
            f"{one_line(a)}\n  - reference: {pair.target}\n"
        )
    return "\n".join(parts)


def one_line(text: str) -> str:
    return " / ".join(text.splitlines()) or "(nothing)"
