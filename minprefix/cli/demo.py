"""`minprefix demo`: teach the shipped model table-to-text with a prefix; before and after."""

import argparse
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minprefix.batch import Batch
from minprefix.cli import options
from minprefix.cli.fields import add_fields
from minprefix.cli.options import NEW_TOKENS
from minprefix.cli.parser import Command
from minprefix.generate import Decoding
from minprefix.model import GPT2, loss
from minprefix.prefix import Prefix
from minprefix.settings import Demo
from minprefix.storage.writing import write_text

if TYPE_CHECKING:  # the others are imported where they are used, so that --help does not wait
    from minprefix.data.pairs import Encoded, Pair

SHOWN = 2
SCORES = {"loss": ("loss", ".3f"), "exact_match": ("exact match", ".1%"),
          "slot_error_rate": ("slot error rate", ".1%")}  # fmt: skip


def add(command: Command) -> None:
    p = command(
        "demo",
        run,
        "teach the shipped model a task with a prefix; show before and after",
        "minprefix demo --out runs/demo --seed 1",
    )
    options.path(p, "--out", "DIR", "default runs/demo", default=Path("runs/demo"))
    add_fields(p, Demo, ("prefix_length", "steps", "batch_size", "lr", "seed"))
    options.add_backend(p, None)
    options.add_threads(p)
    options.add_run(p)


def run(args: argparse.Namespace) -> int:
    from minprefix.cli.resume import resumable

    return resumable("demo", args, lambda: _demo(args))


def _demo(args: argparse.Namespace) -> int:
    from minprefix import runs
    from minprefix.cli.resume import asked_for, draw_loss, worse
    from minprefix.data import demo as data
    from minprefix.storage.run import refuse_taken

    asked, out = asked_for("demo", args, Demo), args.out
    refuse_taken(out, args.force, args.resume)
    started = time.time()
    work = runs.for_demo(asked)
    model, prefix = work.model, work.prefix
    assert isinstance(prefix, Prefix)
    test = data.pairs("test", data.TEST, seed=0)  # the same for every seed, to compare runs
    share = prefix.n_parameters / model.n_parameters
    print(f"{model}\n{prefix}: {share:.1%} of the model's size\n")
    before, said_before = score(model, None, test)
    print(f"The frozen model on records that it has never seen ({len(test)}, {SHOWN} shown):\n")
    _show(test, said_before)
    n = len(work.data.pairs)
    print(f"Training the prefix on {n} records and their descriptions, the model frozen:")

    said_after: list[str] = []

    def measure(result: Any) -> dict[str, Any]:
        after, said_after[:] = score(model, prefix, test)
        write_text(out / "samples.md", samples(test, said_before, said_after))
        return {
            "before": before,
            "after": after,
            "trained_parameters": prefix.n_parameters,
            "base_parameters": model.n_parameters,
            "base_unchanged": result.base_unchanged,
            "test_records": len(test),
            "steps": result.step,
            "best_step": result.best_step,
            "seed": asked.seed,
            "training_seconds": round(result.seconds, 1),
            "seconds": round(time.time() - started, 1),
        }

    recorded = ("before", "after")
    result, metrics, _ = runs.carry_out(work, out, measure, args.force, args.resume, recorded)
    draw_loss(work, out)
    print(f"\nThe same model with the prefix of step {result.best_step}, the same records:\n")
    _show(test, said_after)
    print(table(metrics))
    assert result.best_loss is not None  # the last step is validated
    assert work.valid is not None
    print(f"\n{about_first(model, encoded(model, test))}")
    print(about_hardest(model, prefix, work.valid.pairs, work.valid.encoded, result.best_loss))
    where = shlex.quote(str(out))  # the commands below are meant to be pasted
    print(f"\nWritten to {out}: the prefix, metrics.json, samples.md, loss.png, log.jsonl. Next:\n")
    print(f'  minprefix generate --prefix {where} --prompt "{test[0].source}"')
    print(f"  minprefix inspect {where}\n  minprefix verify {where}")
    return worse(metrics["before"]["loss"], metrics["after"]["loss"], asked.lr)


def _show(test: "Sequence[Pair]", said: Sequence[str]) -> None:
    for pair, text in list(zip(test, said, strict=True))[:SHOWN]:
        print(f"  record  {pair.source}\n  model   {one_line(text)}\n")


def score(
    model: GPT2, prefix: Prefix | None, test: "list[Pair]"
) -> tuple[dict[str, float], list[str]]:
    """Loss, exact match and slot error rate on held-out records, and the model's texts."""
    from minprefix.data.pairs import Template
    from minprefix.evaluate import exact_match, mean_loss, predict, slot_error_rate

    sources = [pair.source for pair in test]
    said = predict(model, prefix, sources, Template(), Decoding(max_new_tokens=NEW_TOKENS))
    errors = slot_error_rate(sources, said)
    assert errors is not None  # all of them are records of the tiny world
    scores = {
        "loss": mean_loss(model, prefix, encoded(model, test)),
        "exact_match": exact_match(said, [[pair.target] for pair in test]),
        "slot_error_rate": errors,
    }
    return {name: round(value, 4) for name, value in scores.items()}, said


def encoded(model: GPT2, test: "list[Pair]") -> "list[Encoded]":
    from minprefix.data.pairs import Template, encode_pairs

    return encode_pairs(model, test, Template(), model.room())


def about_first(model: GPT2, examples: "Sequence[Encoded]") -> str:
    """Why the frozen model has a low loss and no text right."""
    from minprefix.evaluate import mean_loss

    ids, starts = [e.ids for e in examples], [e.loss_from for e in examples]
    lengths = [len(e.ids) - e.loss_from for e in examples]
    batch = Batch.pack(ids, starts, weights=[[1.0] + [0.0] * (n - 1) for n in lengths])
    share = loss(model, batch, None, "sum") / (mean_loss(model, None, examples) * sum(lengths))
    return (
        f"{share:.0%} of the loss before lies on the first token of each text: given that, the "
        "frozen model\nknows the rest, but left to itself it begins another kind of text"
    )


def about_hardest(
    model: GPT2, prefix: Prefix, pairs: "list[Pair]", examples: "Sequence[Encoded]", total: float
) -> str:
    """Why the loss on the validation records may differ from that on the test records."""
    from minprefix.evaluate import mean_loss

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
    for key, (label, form) in SCORES.items():
        before, after = metrics["before"][key], metrics["after"][key]
        rows.append(f"{label:<18}{before:>10{form}}{after:>10{form}}")
    trained, base = metrics["trained_parameters"], metrics["base_parameters"]
    rows.append(
        f"\ntrained {trained:,} parameters, {trained / base:.2%} of the {base:,} of the base"
    )
    rows.append(f"base model: unchanged, byte for byte; training {metrics['training_seconds']} s")
    return "\n".join(rows)


def samples(test: "list[Pair]", before: list[str], after: list[str]) -> str:
    """All records with the model's texts before and after, as Markdown."""
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
