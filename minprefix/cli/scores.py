"""The command `minprefix evaluate`: predictions first, then their scores."""

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minprefix import console
from minprefix import evaluate as scoring
from minprefix.data.pairs import (
    Pair,
    Template,
    encode_pairs,
    fingerprint,
    group_references,
    read_pairs,
)
from minprefix.errors import InputError, counted, listed, note
from minprefix.generate import Decoding, no_room, room
from minprefix.storage.saving import new_folder, no_empty_folder, only_writer
from minprefix.storage.writing import line_by_line, partial, write_json, write_text

if TYPE_CHECKING:
    from minprefix.model import GPT2
    from minprefix.prefix import Prefix

#: what it writes
SCORES, PREDICTIONS = "metrics.json", "predictions.jsonl"
MARKS = (SCORES, PREDICTIONS, partial(Path(PREDICTIONS)).name)


def evaluate(
    args: argparse.Namespace,
    model: "GPT2",
    prefix: "Prefix | None",
    template: Template,
    decoding: Decoding,
) -> int:
    if args.ter:
        scoring.sacrebleu()  # not after minutes of work: is it there?
    start = prefix.position_offset if prefix else 0
    pairs = read_pairs(args.data, args.source_column, args.target_column)
    asked = list(group_references(pairs))[: args.limit]
    prompts = _prompts(model, start, template, decoding, pairs, asked, args.skip_long)
    if not prompts:
        raise InputError(f"data file {args.data}: no source leaves room for what is to be written")
    pairs = [p for p in pairs if p.source in prompts]
    references = group_references(pairs)
    longest = model.room(prefix)
    encoded = encode_pairs(model, pairs, template, longest, args.skip_long)
    if not encoded:
        raise InputError(
            f"data file {args.data}: every pair is longer than the {longest} tokens of room"
        )
    about: dict[str, Any] = {
        "model": model.name,
        "prefix": args.prefix and str(args.prefix),
        "data": str(args.data),
        "data_sha256": fingerprint(args.data),
        "template": template.text,
        "decoding": vars(decoding),
        "backend": args.backend,
        "matmul": args.matmul,
        "sources": len(prompts),
        "sources_left_out": len(asked) - len(prompts),
        "pairs": len(pairs),
        "pairs_left_out_of_loss": len(pairs) - len(encoded),
    }
    _say_how_many(about)
    _note_special_tokens(model, references)
    started = time.time()
    with no_empty_folder(args.out):
        new_folder(args.out, MARKS, args.force, resume=False)
        with only_writer(args.out):
            predictions, cut = _predict(
                args, model, prefix, template, decoding, prompts, references
            )
            loss = scoring.mean_loss(model, prefix, encoded, args.backend, args.batch_size, "loss")
            scores = _scores(loss, predictions, references)
            about |= {"cut_at_max_new_tokens": cut, "seconds": round(time.time() - started, 1)}
            write_json(args.out / SCORES, {**scores, "about": about})
            _show(scores)
            if args.ter:
                scores |= _ter(args.out, predictions, references)
                about["seconds"] = round(time.time() - started, 1)
                write_json(args.out / SCORES, {**scores, "about": about})
    if cut:
        _say_cut(cut, decoding.max_new_tokens)
    print(f"written to {args.out}: {SCORES}, {PREDICTIONS}")
    return 0


def _prompts(
    model: "GPT2",
    start: int,
    template: Template,
    decoding: Decoding,
    pairs: Sequence[Pair],
    sources: Sequence[str],
    skip_long: bool,
) -> dict[str, list[int]]:
    """source -> its prompt's token ids. Raises InputError, with the line, for a source that leaves
    no room for a new token, or for fewer than --min-new-tokens; `skip_long` leaves it out."""
    line_of = {pair.source: pair.where for pair in reversed(pairs)}  # the first one
    needed, prompts = max(1, decoding.min_new_tokens), {}
    encoded = model.encode_prompts([template.prompt(source) for source in sources])
    for source, ids in zip(sources, encoded, strict=True):
        if room(model.config, start, len(ids)) >= needed:
            prompts[source] = ids
        elif not skip_long:
            raise InputError(
                f"{line_of[source]}: {no_room(model.config, start, len(ids), needed)}: shorten the "
                "source, or leave such lines out with --skip-long"
            )
    return prompts


def _say_how_many(about: Mapping[str, Any]) -> None:
    sources, pairs = about["sources"], about["pairs"]
    print(f"{counted(sources, 'source')}, {counted(pairs, 'reference')}", flush=True)
    if n := about["sources_left_out"]:
        print(f"{counted(n, 'source')} too long, left out", flush=True)
    if n := about["pairs_left_out_of_loss"]:
        print(f"{counted(n, 'pair')} too long, left out of the loss", flush=True)


def _note_special_tokens(model: "GPT2", references: Mapping[str, list[str]]) -> None:
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


def _say_cut(n: int, most: int) -> None:
    print(
        f"{counted(n, 'prediction')} reached --max-new-tokens {most}, or the last position, and "
        f"{'was' if n == 1 else 'were'} cut"
    )


def _predict(
    args: argparse.Namespace,
    model: "GPT2",
    prefix: "Prefix | None",
    template: Template,
    decoding: Decoding,
    prompts: Mapping[str, list[int]],
    references: Mapping[str, list[str]],
) -> tuple[list[str], int]:
    """What is written for each source, in a file as it comes; and how many texts were cut, each
    where it has no more room."""
    start, n = prefix.position_offset if prefix else 0, len(prompts)
    written = scoring.predict_ids(
        model, prefix, list(prompts.values()), decoding, args.backend, args.batch_size
    )
    predictions, lines, cut = [], [], 0
    with line_by_line(args.out / PREDICTIONS, "predictions", n) as keep:
        shown = console.bar(written, "predictions", "text", n)
        for (source, prompt), ids in zip(prompts.items(), shown, strict=True):
            predictions.append(template.read(model.decode(ids)))
            most = min(decoding.max_new_tokens, room(model.config, start, len(prompt)))
            cut += len(ids) == most
            line = {
                "source": source,
                "prediction": predictions[-1],
                "references": references[source],
            }
            lines.append(json.dumps(line, ensure_ascii=False) + "\n")
            keep(lines[-1])
        write_text(args.out / PREDICTIONS, "".join(lines))
    return predictions, cut


def _scores(
    loss: float, predictions: Sequence[str], references: Mapping[str, list[str]]
) -> dict[str, Any]:
    """All but TER; BLEU and chrF where sacrebleu is installed."""
    targets = list(references.values())
    scores: dict[str, Any] = {
        "loss": loss,
        "perplexity": scoring.perplexity(loss),
        "exact_match": scoring.exact_match(predictions, targets),
    }
    errors = scoring.slot_error_rate(list(references), predictions)
    if errors is not None:
        scores["slot_error_rate"] = errors
    try:
        scores |= scoring.corpus_scores(predictions, targets)
    except InputError as error:
        print(f"not scored: {error}")
    return scores


def _ter(
    out: Path, predictions: Sequence[str], references: Mapping[str, list[str]]
) -> dict[str, Any]:
    """Shown as well. Whoever stops it is told what is there without it."""
    try:
        found = scoring.translation_edit_rate(predictions, list(references.values()), "TER")
    except KeyboardInterrupt:
        print(f"minprefix: {out} has {PREDICTIONS}, and {SCORES} without TER", file=sys.stderr)
        raise
    _show(found)
    return found


def _show(scores: Mapping[str, Any]) -> None:
    for name, value in scores.items():
        text = f"{name:<18}{value:.4f}" if isinstance(value, float) else f"{name:<18}{value}"
        print(text, flush=True)
