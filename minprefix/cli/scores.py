"""The work of `minprefix evaluate`: predictions first, then their scores."""

import argparse
import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from minprefix import console
from minprefix import evaluate as scoring
from minprefix.cli.options import decoding_of, load_model
from minprefix.data import pairs as data
from minprefix.errors import InputError, counted, listed, note
from minprefix.generate import Decoding, no_room, room
from minprefix.method import Method
from minprefix.methods import load
from minprefix.model import GPT2
from minprefix.prefix import Prefix
from minprefix.storage.provenance import recorded_template
from minprefix.storage.run import RUN_FILES, is_ours, refuse_taken
from minprefix.storage.saving import new_folder, no_empty_folder, only_writer
from minprefix.storage.writing import line_by_line, partial, write_json, write_text

#: what it writes
SCORES, PREDICTIONS = "metrics.json", "predictions.jsonl"
MARKS = (SCORES, PREDICTIONS, partial(Path(PREDICTIONS)).name)
References = dict[str, list[str]]  # source -> its targets


class Job(NamedTuple):
    """What is evaluated, and on what."""

    model: GPT2
    prefix: Prefix | Method | None
    template: data.Template
    decoding: Decoding
    prompts: dict[str, list[int]]  # source -> the token ids of its prompt
    references: References
    encoded: list[data.Encoded]  # the pairs that the loss is computed on
    left_out: int  # sources without room


def evaluate(args: argparse.Namespace) -> int:
    check_folder(args.out, args.force)
    if args.ter:
        scoring.sacrebleu()  # raises InputError now, not after minutes of work
    job, started = _read(args), time.time()
    about = _about(args, job)
    _print_sizes(about)
    _note_special_tokens(job.model, job.references)

    def write(scores: Mapping[str, Any]) -> None:
        about["seconds"] = round(time.time() - started, 1)
        write_json(args.out / SCORES, {**scores, "about": about})

    with no_empty_folder(args.out), np.errstate(over="ignore", invalid="ignore"):  # see `_scores`
        new_folder(args.out, MARKS, args.force, resume=False)
        with only_writer(args.out):
            predictions, cut = _predict(args, job)
            about["cut_at_max_new_tokens"] = cut
            scores = _scores(args, job, predictions)
            write(scores)
            _print(scores)
            if args.ter:
                write(scores | _ter(args.out, predictions, job.references))
    if cut:
        most, were = job.decoding.max_new_tokens, "was" if cut == 1 else "were"
        said = f"{counted(cut, 'prediction')} reached --max-new-tokens {most}, or the last position"
        print(f"{said}, and {were} cut")
    print(f"written to {args.out}: {SCORES}, {PREDICTIONS}")
    return 0


def check_folder(out: Path, force: bool) -> None:
    """Raises InputError for a folder that holds a training or a prefix, with `force`, too: its
    metrics.json is another; and as `refuse_taken`."""
    held = [name for name in RUN_FILES if name not in MARKS and (out / name).exists()]
    if held and is_ours(out):
        raise InputError(
            f"{out} already holds a run ({', '.join(held)}), whose {SCORES} an evaluation would "
            "replace: choose another --out"
        )
    refuse_taken(out, force, marks=MARKS)


def _read(args: argparse.Namespace) -> Job:
    """The model, its prefix, and the pairs as it reads them. Raises InputError for a source or a
    pair without room, unless --skip-long leaves it out, and where all are left out."""
    model, decoding = load_model(args), decoding_of(args)
    prefix, text = None, args.template
    if args.prefix is not None:
        prefix = load(args.prefix, model).to(model.backend)
        text = recorded_template(args.prefix) if text is None else text
    template = data.Template() if text is None else data.Template(text)
    pairs = data.read_pairs(args.data, args.source_column, args.target_column)
    asked = list(data.group_references(pairs))[: args.limit]
    line_of = {pair.source: pair.where for pair in reversed(pairs)}  # the first one
    start, prompts = prefix.position_offset if prefix else 0, {}
    encoded_prompts = model.encode_prompts([template.prompt(source) for source in asked])
    for source, ids in zip(asked, encoded_prompts, strict=True):
        full = no_room(model.config, start, len(ids), decoding)
        if not full:
            prompts[source] = ids
        elif not args.skip_long:
            do = "shorten the source, or leave such lines out with --skip-long"
            raise InputError(f"{line_of[source]}: {full}: {do}")
    if not prompts:
        raise InputError(f"data file {args.data}: no source leaves room for what is to be written")
    pairs, longest = [p for p in pairs if p.source in prompts], model.room(prefix)
    rival = prefix.name if isinstance(prefix, Method) else None
    encoded = data.encode_pairs(model, pairs, template, longest, args.skip_long, rival)
    if not encoded:
        says = f"every pair is longer than the {longest} tokens of room"
        raise InputError(f"data file {args.data}: {says}")
    references, left_out = data.group_references(pairs), len(asked) - len(prompts)
    return Job(model, prefix, template, decoding, prompts, references, encoded, left_out)


def _about(args: argparse.Namespace, job: Job) -> dict[str, Any]:
    """What is recorded beside the scores."""
    pairs = sum(map(len, job.references.values()))
    return {
        "model": job.model.name,
        "prefix": args.prefix and str(args.prefix),
        "data": str(args.data),
        "data_sha256": data.fingerprint(args.data),
        "template": job.template.text,
        "decoding": vars(job.decoding),
        "backend": args.backend,
        "matmul": args.matmul,
        "sources": len(job.prompts),
        "sources_left_out": job.left_out,
        "pairs": pairs,
        "pairs_left_out_of_loss": pairs - len(job.encoded),
    }


def _print_sizes(about: Mapping[str, Any]) -> None:
    sources, pairs = about["sources"], about["pairs"]
    print(f"{counted(sources, 'source')}, {counted(pairs, 'reference')}", flush=True)
    if n := about["sources_left_out"]:
        print(f"{counted(n, 'source')} too long, left out", flush=True)
    if n := about["pairs_left_out_of_loss"]:
        print(f"{counted(n, 'pair')} too long, left out of the loss", flush=True)


def _note_special_tokens(model: GPT2, references: References) -> None:
    """`decode` leaves special tokens out, so no prediction equals a reference that has one."""
    with model.tokenizing() as tokenizer:
        if tokenizer.encode_special_tokens:  # they are read as any other text
            return
        special = [t.content for t in tokenizer.get_added_tokens_decoder().values() if t.special]
    texts = [text for targets in references.values() for text in targets]
    held = [token for token in special if any(token in text for text in texts)]
    if held:
        n = sum(any(token in text for token in held) for text in texts)
        note(
            f"{n} of {counted(len(texts), 'reference')} {'has' if n == 1 else 'have'} special "
            f"tokens ({listed(held)}), which predictions are shown without: these never match"
        )


def _predict(args: argparse.Namespace, job: Job) -> tuple[list[str], int]:
    """The text written for each source, kept in a file as it comes; and how many texts were cut,
    each where it has no more room."""
    start, prompts = job.prefix.position_offset if job.prefix else 0, list(job.prompts.values())
    how = (args.backend, args.batch_size)
    written = scoring.predict_ids(job.model, job.prefix, prompts, job.decoding, *how)
    predictions, lines, cut = [], [], 0
    with line_by_line(args.out / PREDICTIONS, "predictions", len(prompts)) as keep:
        shown = console.bar(written, "predictions", "text", len(prompts))
        for (source, prompt), ids in zip(job.prompts.items(), shown, strict=True):
            text = job.template.read(job.model.decode(ids))
            left = room(job.model.config, start, len(prompt))
            cut += len(ids) == min(job.decoding.max_new_tokens, left)
            line = {"source": source, "prediction": text, "references": job.references[source]}
            predictions.append(text)
            lines.append(json.dumps(line, ensure_ascii=False) + "\n")
            keep(lines[-1])
        write_text(args.out / PREDICTIONS, "".join(lines))
    return predictions, cut


def _scores(args: argparse.Namespace, job: Job, predictions: Sequence[str]) -> dict[str, Any]:
    """All scores but TER; BLEU and chrF if sacrebleu is installed. Raises InputError for a loss or
    a perplexity that is not finite: JSON has no such number."""
    targets, how = list(job.references.values()), (args.backend, args.batch_size, "loss")
    loss = scoring.mean_loss(job.model, job.prefix, job.encoded, *how)
    if not math.isfinite(scoring.perplexity(loss)):
        raise InputError(
            f"the loss with {args.prefix or job.model.name} is {loss:g} nats a token, and no "
            f"{SCORES} was written in {args.out}: its numbers are too large to be of use, train it "
            "again with a lower --lr"
        )
    scores: dict[str, Any] = {"loss": loss, "perplexity": scoring.perplexity(loss)}
    scores["exact_match"] = scoring.exact_match(predictions, targets)
    errors = scoring.slot_error_rate(list(job.references), predictions)
    if errors is not None:
        scores["slot_error_rate"] = errors
    try:
        scores |= scoring.corpus_scores(predictions, targets)
    except InputError as error:
        print(f"not scored: {error}")
    return scores


def _ter(out: Path, predictions: Sequence[str], references: References) -> dict[str, Any]:
    """TER, which is printed, too; after Ctrl-C, what there is without it."""
    try:
        found = scoring.translation_edit_rate(predictions, list(references.values()), "TER")
    except KeyboardInterrupt:
        print(f"minprefix: {out} has {PREDICTIONS}, and {SCORES} without TER", file=sys.stderr)
        raise
    _print(found)
    return found


def _print(scores: Mapping[str, Any]) -> None:
    for name, value in scores.items():
        text = f"{name:<18}{value:.4f}" if isinstance(value, float) else f"{name:<18}{value}"
        print(text, flush=True)
