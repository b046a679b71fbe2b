"""`minprefix train`: a prefix, trained on pairs of source and target."""

import argparse
from contextlib import suppress
from typing import Any

from minprefix.cli import options
from minprefix.cli.fields import add_fields, given
from minprefix.cli.parser import Command
from minprefix.cli.resume import asked_for, draw_loss, resumable, worse
from minprefix.errors import InputError, counted
from minprefix.settings import Job

ADVANCED = (
    "skip_long", "init", "init_std", "init_bound", "init_text", "init_prefix", "mlp_hidden",
    "layers", "position_offset", "dropout", "micro_batch_size", "warmup", "schedule",
    "weight_decay", "clip", "loss", "eval_every", "valid_samples", "save_every",
)  # fmt: skip


def add(command: Command) -> None:
    p = command(
        "train",
        run,
        "train a prefix on pairs of source and target",
        "minprefix train --model gpt2 --data train.csv --valid dev.csv --out runs/e2e",
        status="0 trained, 1 the model is far worse with the prefix than without, 2 it cannot be "
        "trained, 130 Ctrl-C stopped it",
    )
    options.add_model(p)
    add_fields(p, Job, ("data", "valid"))
    options.path(p, "--out", "DIR", "where the run is written", required=True)
    add_fields(p, Job, ("prefix_length",))
    add_fields(p.add_mutually_exclusive_group(), Job, ("epochs", "steps"))
    add_fields(p, Job, ("batch_size", "lr", "seed"))
    options.add_backend(p, None)
    options.add_run(p)
    advanced = p.add_argument_group("advanced")
    options.add_columns(advanced)
    types = {"template": options.unescape, "layers": _layers, "valid_samples": _samples}
    add_fields(advanced, Job, ("template", *ADVANCED), types)
    options.add_matmul(advanced, None)
    options.add_threads(advanced)


def _layers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: expected layers as in 0,1,3") from None


def _samples(text: str) -> int:
    """How many; 0 is all."""
    with suppress(ValueError):
        if (n := 0 if text == "all" else int(text)) >= 0:
            return n
    raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number from 1, or all")


def run(args: argparse.Namespace) -> int:
    return resumable("train", args, lambda: _train(args))


def _train(args: argparse.Namespace) -> int:
    from minprefix import runs
    from minprefix.cli import outlook
    from minprefix.storage.run import refuse_taken

    job = _job(args)
    refuse_taken(args.out, args.force, args.resume)
    work = runs.for_job(job, args.out)
    model, prefix, settings = work.model, work.prefix, work.settings
    print(f"{model}\n{prefix}: {prefix.n_parameters / model.n_parameters:.2%} of the model's size")
    outlook.show(work, job.skip_long)
    outlook.note_oddities(work.data, work.valid, (job.source_column, job.target_column))
    probe = work.probe
    frozen = outlook.frozen_loss(work)

    def measure(result: Any) -> dict[str, Any]:
        return {
            "steps": result.step,
            "valid_loss": result.best_loss,
            "best_step": result.best_step,
            "frozen_loss": frozen,
            "loss": runs.loss(model, prefix, probe, settings),
            "loss_examples": len(probe),
            "trained_parameters": prefix.n_parameters,
            "base_parameters": model.n_parameters,
            "base_unchanged": result.base_unchanged,
        }

    result, metrics, evaluation = runs.carry_out(work, args.out, measure, args.force, args.resume)
    draw_loss(work, args.out)
    if result.best_loss is not None:
        best = f"{result.best_loss:.4f}, at step {result.best_step}"
        print(f"best validation loss {best}; the prefix of that step is kept")
    outlook.show_samples(evaluation.samples, work.scored[1].pairs)
    frozen_and_now = f"{frozen:.4f} of the frozen model, {metrics['loss']:.4f} with the prefix"
    print(f"loss on {counted(len(probe), 'pair')}: {frozen_and_now}")
    print(f"{result.seconds:.0f} s; the base model is unchanged; written to {args.out}")
    return worse(frozen, metrics["loss"], settings.lr)


def _job(args: argparse.Namespace) -> Job:
    job, typed = asked_for("train", args, Job), given(args, Job)
    if job.data is None:
        raise InputError("train needs --data FILE: a .jsonl, .csv or .tsv of source and target")
    for name, says in (("eval_every", "how often"), ("valid_samples", "on how many pairs")):
        if name in typed and job.valid is None:
            option = f"--{name.replace('_', '-')}"
            raise InputError(f"{option} says {says} --valid is scored: give --valid FILE as well")
    return job
