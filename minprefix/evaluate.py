"""Scores: loss and perplexity, exact match, slot errors on the tiny world, BLEU, chrF and TER."""

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from minprefix import console
from minprefix.batch import Batch
from minprefix.data import world
from minprefix.data.pairs import Encoded, Template
from minprefix.errors import InputError
from minprefix.generate import Decoding, generate_ids, no_room, room
from minprefix.model import GPT2, loss

if TYPE_CHECKING:
    from minprefix.method import Method
    from minprefix.prefix import Prefix


def mean_loss(
    model: GPT2,
    prefix: "Prefix | Method | None",
    examples: Sequence[Encoded],
    backend: str | None = None,
    batch_size: int = 32,
    progress: str | None = None,
) -> float:
    """The mean over all target tokens of all examples, in nats. Perplexity is its exponential.

    `progress`: the name of a bar on standard error, if this takes more than a second."""
    total, count = 0.0, 0
    starts = range(0, len(examples), batch_size)
    for i in console.bar(starts, progress, "batch", len(starts)):
        part = examples[i : i + batch_size]
        batch = Batch.pack([e.ids for e in part], loss_from=[e.loss_from for e in part])
        total += loss(model, batch, prefix, "sum", backend)
        count += len(batch.targets)
    return total / count


def predict(
    model: GPT2,
    prefix: "Prefix | Method | None",
    sources: Sequence[str],
    template: Template,
    decoding: Decoding,
    backend: str | None = None,
    batch_size: int = 64,
) -> list[str]:
    """The text that the model writes for each source, without the template's own: `max_new_tokens`,
    or as many as the source leaves room for. Raises InputError for a source that leaves room for
    none, or for fewer than `min_new_tokens`."""
    prompts = model.encode_prompts([template.prompt(source) for source in sources])
    start = prefix.position_offset if prefix else 0
    for i, ids in enumerate(prompts):
        if full := no_room(model.config, start, len(ids), decoding):
            raise InputError(f"source {i}: {full}: shorten it")
    written = predict_ids(model, prefix, prompts, decoding, backend, batch_size)
    return [template.read(model.decode(ids)) for ids in written]


def predict_ids(
    model: GPT2,
    prefix: "Prefix | Method | None",
    prompts: Sequence[Sequence[int]],
    decoding: Decoding,
    backend: str | None = None,
    batch_size: int = 64,
) -> Iterator[list[int]]:
    """The new token ids for each prompt, a batch at a time: up to `max_new_tokens` of them, or as
    many as the prompt leaves room for."""
    start = prefix.position_offset if prefix else 0
    for i in range(0, len(prompts), batch_size):
        part = prompts[i : i + batch_size]
        limits = [room(model.config, start, len(ids)) for ids in part]
        numbers = range(i, i + len(part))
        yield from generate_ids(model, part, prefix, None, decoding, backend, numbers, limits)


def perplexity(loss: float) -> float:
    return math.exp(loss) if loss < 700 else math.inf


def exact_match(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """The share of predictions that equal one of their references; blanks at the ends do not
    count."""
    both = zip(predictions, references, strict=True)
    hits = [text.strip() in {r.strip() for r in refs} for text, refs in both]
    return sum(hits) / len(hits)


def slot_error_rate(sources: Sequence[str], predictions: Sequence[str]) -> float | None:
    """The share of all slots of all records that their text misses or gets wrong
    (`world.slot_errors`); None if some source is not a record of the tiny world."""
    errors, slots = 0, 0
    for source, prediction in zip(sources, predictions, strict=True):
        record = world.read_record(source)
        if record is None:
            return None
        errors += len(world.slot_errors(record, prediction))
        slots += len(record)
    return errors / slots


def corpus_scores(
    predictions: Sequence[str], references: Sequence[Sequence[str]]
) -> dict[str, Any]:
    """BLEU and chrF over all predictions, with sacrebleu and its signatures (Post, 2018). Raises
    InputError if sacrebleu is not installed."""
    metrics = sacrebleu()
    scores: dict[str, Any] = {}
    for name, metric in (("bleu", metrics.BLEU()), ("chrf", metrics.CHRF())):
        scores[name] = round(metric.corpus_score(list(predictions), _columns(references)).score, 2)
        scores[f"{name}_signature"] = str(metric.get_signature())
    return scores


def translation_edit_rate(
    predictions: Sequence[str], references: Sequence[Sequence[str]], progress: str | None = None
) -> dict[str, Any]:
    """TER over all predictions, as in `corpus_scores`. It searches for shifts of words, text by
    text: hundreds of texts with several references take minutes. `progress`: as in `mean_loss`."""
    ter = sacrebleu().TER
    both = zip(predictions, references, strict=True)
    shown = console.bar(both, progress, "text", len(predictions))
    each = [ter().sentence_score(prediction, refs) for prediction, refs in shown]
    edits, length = sum(s.num_edits for s in each), sum(s.ref_length for s in each)
    # as in sacrebleu: any edit of an empty reference is wrong
    score = 100 * edits / length if length else 100.0 * (edits > 0)
    signature = ter(references=_columns(references)).get_signature()
    return {"ter": round(score, 2), "ter_signature": str(signature)}


def sacrebleu() -> Any:
    """Its metrics. Raises InputError if it is not installed."""
    try:
        from sacrebleu import metrics
    except ImportError as error:
        wanted = 'BLEU, chrF and TER need sacrebleu: pip install "minprefix[scores]"'
        raise InputError(wanted) from error
    return metrics


def _columns(references: Sequence[Sequence[str]]) -> list[list[str | None]]:
    """sacrebleu's layout: the first references of all texts, then the second ones, ...; None where
    a text has fewer."""
    most = max(map(len, references))
    return [[refs[i] if i < len(refs) else None for refs in references] for i in range(most)]
