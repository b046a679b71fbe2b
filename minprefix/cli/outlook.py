"""The sentences of `train` before it begins and when it has ended: the pairs as the model reads
them, the frozen model's loss, and what seems odd."""

import math
import re
from collections.abc import Sequence

from minprefix import runs
from minprefix.data.pairs import COLUMNS, Pair
from minprefix.errors import counted, note
from minprefix.runs import Data, Work
from minprefix.storage.places import TINY

LINE = 300  # characters of a text that is shown


# ---- before -----------------------------------------------------------------------------------


def show(work: Work, skip_long: bool) -> None:
    """The sizes, and the first pair as the model reads it."""
    model, data, valid, settings = work.model, work.data, work.valid, work.settings
    for read in (data, valid):
        if skip_long and read is not None:
            left_out, of = len(read.pairs) - len(read.encoded), counted(len(read.pairs), "pair")
            print(f"{read.path}: {left_out} of {of} left out, too long")
    lengths = [len(e.ids) for e in data.encoded]
    n, batch = len(lengths), min(settings.batch_size, len(lengths))
    sizes = f"{counted(n, 'example')} of {min(lengths)} to {max(lengths)} tokens ({data.room} fit)"
    print(f"{sizes}, {counted(settings.steps, 'step')} of {batch}{' (all)' * (batch == n)}")
    if settings.backend == "cupy":
        print(f"on the GPU, matrix products in {settings.matmul}")
    if valid:
        all_of = f"{len(valid.sample)} of {len(valid.encoded)}"
        more = "" if len(valid.sample) == len(valid.encoded) else " (--valid-samples all takes all)"
        every = "step" if settings.eval_every == 1 else f"{settings.eval_every} steps"
        print(f"validation on {all_of} pairs every {every}{more}")
    ids, start = data.encoded[0]
    source, target = (one_line(model.decode(part)) for part in (ids[:start], ids[start:]))
    print(f"the first pair, {counted(start, 'token')} and {len(ids) - start} to predict:")
    print(f"  source  {source}\n  target  {target}")


def one_line(text: str) -> str:
    shown = " / ".join(text.splitlines())
    return shown if len(shown) <= LINE else f"{shown[:LINE]}..."


def frozen_loss(work: Work) -> float:
    """The loss without a prefix on some pairs: it is printed, and a note says what it means if it
    is near chance."""
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
            why = ", it has read its own small world alone (minprefix demo)"
            example = ", for example --model gpt2"
        note(
            f"{model.name!r} does not know such text{why}: a prefix steers what a model knows and "
            f"teaches it no language; give a model that has read such text{example}"
        )
    return value


# ---- what seems odd ---------------------------------------------------------------------------

#: name[The Eagle], Alan_Bean | birthPlace | Wheeler, food=Thai, {"food": "Thai"}
RECORD = re.compile(r"\w ?\[[^\]]*\]|\w ?[|=] ?\w|[\"\'] ?: ?[\"\'\d\[{]")


def note_oddities(data: Data, valid: Data | None, columns: tuple[str | None, str | None]) -> None:
    """A note for what is allowed and seldom meant."""
    n, different = len(data.pairs), {(p.source, p.target) for p in data.pairs}
    sources, targets = ({pair[i] for pair in different} for i in (0, 1))
    if are_swapped(sources, targets) or columns[::-1] in COLUMNS:
        note(
            f"{data.path}: the targets look like records and the sources like sentences, so the "
            "prefix learns to write records: are --source-column and --target-column swapped?"
        )
    if n > 1 and len(sources) == 1 < len(targets):
        note(f"{data.path}: every source is the same, so the target cannot be learnt from it")
    if n > 1 and len(targets) == 1:
        note(f"{data.path}: every target is the same, and is learnt whatever the source says")
    if 2 * len(different) <= n:
        note(f"{data.path}: only {len(different)} of {n} pairs differ, the others repeat them")
    both = sum((p.source, p.target) in different for p in valid.pairs) if valid else 0
    if valid and both:
        note(
            f"{both} of the {len(valid.pairs)} pairs of --valid are in --data, too: what is best "
            "on them may be learnt by heart"
        )


def are_swapped(sources: set[str], targets: set[str]) -> bool:
    """Whether records are to be written from texts, and there are several texts for a record. A
    label, a summary and a translation are no records; a parse is one, and has a text of its own."""

    def share(texts: set[str]) -> float:
        return sum(bool(RECORD.search(text)) for text in texts) / len(texts)

    return 3 * len(targets) <= 2 * len(sources) and share(targets) > 0.8 and share(sources) < 0.1


# ---- after ------------------------------------------------------------------------------------


def show_samples(samples: Sequence[dict[str, str]], pairs: Sequence[Pair]) -> None:
    """The first two sources, what the model writes now, and what it should have written."""
    for sample in samples[:2]:
        wanted = next(pair.target for pair in pairs if pair.source == sample["source"])
        print(f"\n  source  {one_line(sample['source'])}")
        print(f"  model   {one_line(sample['prediction']) or '(nothing)'}")
        print(f"  target  {one_line(wanted)}")
    print()
