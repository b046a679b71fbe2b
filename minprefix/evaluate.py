"""Scores: loss and perplexity, exact match, slot errors on the tiny world, BLEU, chrF and TER."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from minprefix.batch import Batch
from minprefix.data import world
from minprefix.data.pairs import Encoded, Template
from minprefix.errors import InputError
from minprefix.generate import Decoding, generate_ids
from minprefix.model import GPT2, loss

if TYPE_CHECKING:
    from minprefix.prefix import Prefix


def mean_loss(
    model: GPT2,
    prefix: "Prefix | None",
    examples: Sequence[Encoded],
    backend: str | None = None,
    batch_size: int = 32,
    progress: str | None = None,
) -> float:
    """The mean over all target tokens of all examples, in nats. Perplexity is its exponential.

    `progress`: what a bar is called that shows, on a terminal and after a second, how far it is."""
    total, count = 0.0, 0
    starts = range(0, len(examples), batch_size)
    if progress is not None:
        from tqdm import tqdm

        starts = tqdm(starts, progress, disable=None, leave=False, delay=1, dynamic_ncols=True)
    for i in starts:
        part = examples[i : i + batch_size]
        batch = Batch.pack([e.ids for e in part], loss_from=[e.loss_from for e in part])
        total += loss(model, batch, prefix, "sum", backend)
        count += len(batch.targets)
    return total / count


def predict(
    model: GPT2,
    prefix: "Prefix | None",
    sources: Sequence[str],
    template: Template,
    decoding: Decoding,
    backend: str | None = None,
    batch_size: int = 64,
) -> list[str]:
    """What the model writes for each source, the template's own text taken off."""
    written = predict_ids(model, prefix, sources, template, decoding, backend, batch_size)
    return [template.read(model.decode(ids)) for ids in written]


def predict_ids(
    model: GPT2,
    prefix: "Prefix | None",
    sources: Sequence[str],
    template: Template,
    decoding: Decoding,
    backend: str | None = None,
    batch_size: int = 64,
) -> list[list[int]]:
    """The token ids of what the model writes for each source; `max_new_tokens` where it was cut."""
    prompts = model.encode_prompts([template.prompt(source) for source in sources])
    written: list[list[int]] = []
    for i in range(0, len(prompts), batch_size):
        part = prompts[i : i + batch_size]
        numbers = range(i, i + len(part))
        written += generate_ids(
            model, part, prefix, decoding=decoding, ops=backend, numbers=numbers
        )
    return written


def perplexity(loss: float) -> float:
    return math.exp(loss) if loss < 700 else math.inf


def exact_match(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """The share of predictions that equal one of their references, blanks around them aside."""
    hits = [
        prediction.strip() in {r.strip() for r in refs}
        for prediction, refs in zip(predictions, references, strict=True)
    ]
    return sum(hits) / len(hits)


def slot_error_rate(sources: Sequence[str], predictions: Sequence[str]) -> float | None:
    """The share of all slots of all records that their text misses or gets wrong
    (`world.slot_errors`); None if some source is not a record of the tiny world."""
    records = [world.read_record(source) for source in sources]
    errors, slots = 0, 0
    for record, prediction in zip(records, predictions, strict=True):
        if record is None:
            return None
        errors += len(world.slot_errors(record, prediction))
        slots += len(record)
    return errors / slots


def corpus_scores(
    predictions: Sequence[str], references: Sequence[Sequence[str]]
) -> dict[str, Any]:
    """BLEU, chrF and TER over all predictions, with sacrebleu and its signatures (Post, 2018).
    Raises InputError if sacrebleu is not installed."""
    try:
        from sacrebleu.metrics import BLEU, CHRF, TER
    except ImportError as error:
        raise InputError(
            'BLEU, chrF and TER need sacrebleu: pip install "minprefix[scores]"'
        ) from error
    most = max(map(len, references))
    # sacrebleu wants one list for each place among the references, with None where a text has fewer
    columns: Any = [
        [refs[i] if i < len(refs) else None for refs in references] for i in range(most)
    ]
    scores: dict[str, Any] = {}
    for name, metric in (("bleu", BLEU()), ("chrf", CHRF()), ("ter", TER())):
        scores[name] = round(metric.corpus_score(list(predictions), columns).score, 2)
        scores[f"{name}_signature"] = str(metric.get_signature())
    return scores
