"""The work of `minprefix train`, and what it says before the training and after it."""

import argparse
import math
import re
from collections.abc import Sequence
from typing import Any

from minprefix import runs
from minprefix.cli.fields import given
from minprefix.cli.resume import asked_for, draw_loss, resumable, worse
from minprefix.data.pairs import COLUMNS, Pair
from minprefix.errors import InputError, counted, note
from minprefix.prefix import Prefix
from minprefix.runs import Work
from minprefix.settings import SAME, Job
from minprefix.storage.places import TINY
from minprefix.storage.run import refuse_taken
from minprefix.train import Result

LINE = 300  # characters of a text that is shown


def train(args: argparse.Namespace) -> int:
    return resumable("train", args, lambda: _train(args))


def _train(args: argparse.Namespace) -> int:
    job = _job(args)
    if job.method == SAME:
        print("P-tuning v2 (Liu et al., 2022) is prefix-tuning: a prefix is trained")
    refuse_taken(args.out, args.force, args.resume)
    work = runs.for_job(job, args.out)
    model, prefix, settings = work.model, work.prefix, work.settings
    print(f"{model}\n{prefix}: {prefix.n_parameters / model.n_parameters:.2%} of the model's size")
    show(work, job.skip_long)
    note_oddities(work, (job.source_column, job.target_column))
    probe, what = work.probe, runs.called(prefix)
    rival = None if isinstance(prefix, Prefix) else what
    frozen = frozen_loss(work)

    def measure(result: Result) -> dict[str, Any]:
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
        kept = "the prefix of that step is kept"
        if rival is not None:
            kept = "what was trained up to that step is kept"
        print(f"best validation loss {best}; {kept}")
    show_samples(evaluation.samples, work.scored[1].pairs)
    print(
        f"loss on {counted(len(probe), 'pair')}: {frozen:.4f} of the frozen model, "
        f"{metrics['loss']:.4f} with {what}"
    )
    print(f"{result.seconds:.0f} s; the base model is unchanged; written to {args.out}")
    return worse(frozen, metrics["loss"], settings.lr, rival)


def _job(args: argparse.Namespace) -> Job:
    job, typed = asked_for("train", args, Job), given(args, Job)
    if job.data is None:
        raise InputError("train needs --data FILE: a .jsonl, .csv or .tsv of source and target")
    for name, says in (("eval_every", "how often"), ("valid_samples", "on how many pairs")):
        if name in typed and job.valid is None:
            raise InputError(
                f"--{name.replace('_', '-')} says {says} --valid is scored: give --valid FILE, too"
            )
    return job


# ---- before -----------------------------------------------------------------------------------


def show(work: Work, skip_long: bool) -> None:
    """The sizes, and the first pair as the model reads it."""
    model, data, valid, settings = work.model, work.data, work.valid, work.settings
    for read in (data, valid):
        if skip_long and read is not None:
            left_out, n = len(read.pairs) - len(read.encoded), counted(len(read.pairs), "pair")
            print(f"{read.path}: {left_out} of {n} left out, too long")
    lengths = [len(e.ids) for e in data.encoded]
    batch = min(settings.batch_size, len(lengths))
    print(
        f"{counted(len(lengths), 'example')} of {min(lengths)} to {max(lengths)} tokens "
        f"({data.room} fit), {counted(settings.steps, 'step')} of {batch}"
        f"{' (all)' * (batch == len(lengths))}"
    )
    if settings.backend == "cupy":
        print(f"on the GPU, matrix products in {settings.matmul}")
    if valid:
        size, of, steps = len(valid.sample), len(valid.encoded), settings.eval_every
        more = "" if size == of else " (--valid-samples all takes all)"
        every = "step" if steps == 1 else f"{steps} steps"
        print(f"validation on {size} of {of} pairs every {every}{more}")
    ids, start = data.encoded[0]
    source, target = (one_line(model.decode(part)) for part in (ids[:start], ids[start:]))
    print(f"the first pair, {counted(start, 'token')} and {len(ids) - start} to predict:")
    print(f"  source  {source}\n  target  {target}")


def one_line(text: str) -> str:
    shown = " / ".join(text.splitlines())
    return shown if len(shown) <= LINE else f"{shown[:LINE]}..."


def frozen_loss(work: Work) -> float:
    """The loss without a prefix on some pairs. It is printed; a note explains a loss that is near
    chance."""
    model, probe, option = work.model, work.probe, f"--{work.scored[0]}"
    value, V = runs.loss(model, None, probe, work.settings), model.config.vocab_size
    chance = math.log(V)
    words = sum(len(model.decode(e.ids[e.loss_from :]).split()) for e in probe)
    a_word = sum(len(e.ids) - e.loss_from for e in probe) / max(1, words)
    print(
        f"the frozen model's loss on {counted(len(probe), 'pair')} of {option} is {value:.2f} a "
        f"token, {a_word:.1f} tokens a word; a blind guess among its {V} tokens has {chance:.2f}"
    )
    if value > 0.9 * chance:
        why = example = ""
        if model.folder is not None and TINY is not None and model.folder.samefile(TINY):
            why = ", only the small world of `minprefix demo`"
            example = ", for example --model gpt2"
        steers = "a prefix steers a model, but teaches it no language"
        if not isinstance(work.prefix, Prefix):
            steers = "some thousand pairs adapt a model, but teach it no language"
        note(
            f"{model.name!r} does not know such text{why}: {steers}; give a model that was trained "
            f"on such text{example}"
        )
    return value


#: name[The Eagle], Alan_Bean | birthPlace | Wheeler, food=Thai, {"food": "Thai"}
RECORD = re.compile(r"\w ?\[[^\]]*\]|\w ?[|=] ?\w|[\"\'] ?: ?[\"\'\d\[{]")


def note_oddities(work: Work, columns: tuple[str | None, str | None]) -> None:
    """A note for each thing that is allowed but rarely meant."""
    data, valid, prefix = work.data, work.valid, work.prefix
    learner = "the prefix" if isinstance(prefix, Prefix) else "the model"
    n, different = len(data.pairs), {(p.source, p.target) for p in data.pairs}
    sources, targets = ({pair[i] for pair in different} for i in (0, 1))
    if are_swapped(sources, targets) or columns[::-1] in COLUMNS:
        note(
            f"{data.path}: the targets look like records and the sources like sentences, so "
            f"{learner} learns to write records: are --source-column and --target-column swapped?"
        )
    if n > 1 and len(sources) == 1 < len(targets):
        note(f"{data.path}: every source is the same, so the target cannot be learnt from it")
    if n > 1 and len(targets) == 1:
        note(f"{data.path}: every target is the same, so {learner} learns to ignore the source")
    if 2 * len(different) <= n:
        note(f"{data.path}: only {len(different)} of {n} pairs differ, the others repeat them")
    both = sum((p.source, p.target) in different for p in valid.pairs) if valid else 0
    if valid and both:
        note(
            f"{both} of the {len(valid.pairs)} pairs of --valid are in --data, too: "
            f"{learner.replace('the', 'a', 1)} that is good at them may have memorised them"
        )


def are_swapped(sources: set[str], targets: set[str]) -> bool:
    """Whether the targets are records and the sources texts, several for each record. Labels,
    summaries and translations are no records; a parse is one, but has one text."""

    def share(texts: set[str]) -> float:
        return sum(bool(RECORD.search(text)) for text in texts) / len(texts)

    return 3 * len(targets) <= 2 * len(sources) and share(targets) > 0.8 and share(sources) < 0.1


# ---- after ------------------------------------------------------------------------------------


def show_samples(samples: Sequence[dict[str, str]], pairs: Sequence[Pair]) -> None:
    """The first two sources, the model's text for each, and its target."""
    for sample in samples[:2]:
        wanted = next(pair.target for pair in pairs if pair.source == sample["source"])
        print(f"\n  source  {one_line(sample['source'])}")
        print(f"  model   {one_line(sample['prediction']) or '(nothing)'}")
        print(f"  target  {one_line(wanted)}")
    print()
