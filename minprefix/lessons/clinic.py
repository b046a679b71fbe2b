"""The patients of the lesson "A clinic": short training runs of the tiny model, each with at most
one fault, and the chart that each leaves behind. The lesson's reader diagnoses from charts alone,
so read this file after the lesson.

A fault is a bug of the zoo, a bad rate, bad data, a template that gives the answer away, or a
batch that trains the wrong tokens. Which bug, which rate and which data are drawn from the seed.
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np

from minprefix.batch import Batch
from minprefix.data.world import table_to_text
from minprefix.generate import Decoding, generate_ids
from minprefix.lessons.breaking import planted
from minprefix.model import GPT2, loss, loss_and_grad
from minprefix.optim import AdamW, clip, global_norm
from minprefix.prefix import Prefix

STEPS, SEQUENCES, SLOTS = 8, 3, 6
GRADIENT_BUGS = (
    "row-sum-over-the-tokens-alone",
    "dprefix-k-and-v-swapped",
    "prefix-gradient-zero",
    "loss-gradient-negated",
)
SHORT = 200  # characters of a record and its text: such a pair is quick to train on
STEP = 1e-4  # of the gradient check, along its direction

Chart = dict[str, Any]


@dataclass
class Treatment:
    """How a run is made: each field as a healthy run has it. A fault changes one of them."""

    lr: float
    template: str = "{source}\n"
    pairs: list[tuple[str, str]] = field(default_factory=list)
    ops: Any = None
    pack: Callable[..., Batch] = Batch.pack
    starts_at_source: bool = False
    optimizer: Any = AdamW
    generate_ids: Callable[..., list[list[int]]] = generate_ids

    def encode(self, model: GPT2, source: str, target: str) -> tuple[list[int], int]:
        """Token ids of a pair, and the first of them that is to be predicted."""
        shown = fill(self.template, source, target)
        opening = target.split(" ")[0] if shown.endswith(target.split(" ")[0]) else ""
        prompt, rest = model.encode(shown), target[len(opening) :]
        ids = [*prompt, *model.encode(rest), *model.config.end_tokens]
        return ids, 1 if self.starts_at_source else len(prompt)

    def batch(self, model: GPT2, pairs: list[tuple[str, str]]) -> Batch:
        ids, starts = zip(*(self.encode(model, *pair) for pair in pairs), strict=True)
        return self.pack(ids, starts)


def _gradient(run: Treatment, rng: np.random.Generator) -> None:
    run.ops = planted(str(rng.choice(GRADIENT_BUGS))).reference


def _future(run: Treatment, rng: np.random.Generator) -> None:
    run.ops = planted(str(rng.choice(["mask-shows-the-next-token", "no-mask"]))).reference


def _rows(run: Treatment, rng: np.random.Generator) -> None:
    if rng.random() < 0.7:
        run.pack = planted("loss-starts-one-late").Batch.pack
    else:
        run.starts_at_source = True


def _optimizer(run: Treatment, rng: np.random.Generator) -> None:
    bug = rng.choice(["bias-correction-missing", "bias-correction-one-late", "root-missing"])
    run.optimizer = planted(str(bug)).optim.AdamW


def _decoding(run: Treatment, rng: np.random.Generator) -> None:
    bug = rng.choice(["cache-not-appended", "keys-cached-as-values"])
    run.generate_ids = planted(str(bug)).generate_ids


def _shuffled(run: Treatment, rng: np.random.Generator) -> None:
    sources, targets = zip(*run.pairs, strict=True)
    run.pairs = list(zip(sources, np.roll(targets, rng.integers(1, 9)).tolist(), strict=True))


def _leak(run: Treatment, rng: np.random.Generator) -> None:
    run.template = str(rng.choice(["{source}\n{opening}", "record: {source}\n{opening}"]))


def _small(run: Treatment, rng: np.random.Generator) -> None:
    run.lr = float(rng.uniform(2e-4, 1e-3))


def _large(run: Treatment, rng: np.random.Generator) -> None:
    run.lr = float(rng.uniform(4, 8))


#: diagnosis -> what it changes in a healthy run
FAULTS: dict[str, Callable[[Treatment, np.random.Generator], None]] = {
    "healthy": lambda run, rng: None,
    "rate too small": _small,
    "rate too large": _large,
    "leaking template": _leak,
    "shuffled pairs": _shuffled,
    "wrong rows": _rows,
    "sees the future": _future,
    "wrong gradient": _gradient,
    "wrong optimizer": _optimizer,
    "broken decoding": _decoding,
}


@cache
def _models() -> tuple[GPT2, GPT2]:
    return GPT2.load("tiny"), GPT2.load("tiny", dtype="float64")


def fill(template: str, source: str, target: str) -> str:
    """The prompt. A template may name the target, too, or its first word, `{opening}`."""
    return template.format(source=source, target=target, opening=target.split(" ")[0])


def _treatment(diagnosis: str, seed: int) -> tuple[Treatment, np.random.Generator]:
    rng = np.random.default_rng([seed, list(FAULTS).index(diagnosis)])
    short = [p for p in table_to_text(160, "train", seed) if len("".join(p)) <= SHORT]
    run = Treatment(float(rng.uniform(0.08, 0.15)), pairs=short[:40])
    FAULTS[diagnosis](run, rng)
    return run, rng


@cache
def _admitted(diagnosis: str, seed: int) -> Chart:
    model, _ = _models()
    run, rng = _treatment(diagnosis, seed)
    prefix = Prefix.normal(model.config, SLOTS, std=0.02, seed=seed)
    start, adam = prefix.kv.copy(), run.optimizer()
    draws = [rng.choice(len(run.pairs), SEQUENCES, replace=False) for _ in range(STEPS)]
    batches = [run.batch(model, [run.pairs[i] for i in draw]) for draw in draws]
    losses, rates = np.zeros(STEPS), run.lr * (1 - np.arange(STEPS) / STEPS)  # (steps,)
    after_first = start
    with np.errstate(all="ignore"):
        for step, batch in enumerate(batches):
            losses[step], dkv = loss_and_grad(model, prefix, batch, ops=run.ops)
            grads = {"kv": dkv}
            clip(grads, global_norm(grads), 1.0)
            adam.step(prefix.parameters, grads, rates[step])
            if step == 0:
                after_first = prefix.kv.copy()
        first = [run.encode(model, *run.pairs[i]) for i in draws[0]]
        unseen = list(table_to_text(4, "valid", seed))
        sound = Batch.pack(*zip(*(Treatment(0).encode(model, *p) for p in unseen), strict=True))
        chart: Chart = {
            "losses": losses,
            "rates": rates,
            "valid": (loss(model, sound, Prefix(start)), loss(model, sound, prefix)),
            "start": start,
            "after_first": after_first,
            "end": prefix.kv.copy(),
            "of_tokens": model.keys_values(first[0][0]),
            "template": run.template,
            "pairs": run.pairs[:12],
            "ids": [ids for ids, _ in first],
            "loss_from": [len(model.encode(fill(run.template, *run.pairs[i]))) for i in draws[0]],
            "dkv_end": loss_and_grad(model, prefix, batches[0], ops=run.ops)[1],
            "rows": batches[0].rows.tolist(),
        }
        chart |= _slope(run, run.batch(model, [run.pairs[i] for i in draws[0][:2]]), seed)
        chart |= _causal(run, first[0][0])
        chart |= _said(run, prefix, unseen[:2])
    return chart


def _slope(run: Treatment, batch: Batch, seed: int) -> Chart:
    """The gradient at the start, and the loss at two places along a random direction."""
    _, wide = _models()
    start = Prefix.normal(wide.config, SLOTS, std=0.02, seed=seed, dtype="float64").kv
    direction = np.random.default_rng(seed).normal(size=start.shape)
    up, down = (
        loss(wide, batch, Prefix(start + step * direction), ops=run.ops) for step in (STEP, -STEP)
    )
    _, dkv = loss_and_grad(wide, Prefix(start), batch, ops=run.ops)
    found = {"dkv": dkv, "direction": direction, "step": STEP}
    return found | {"loss_up": up, "loss_down": down}


def _causal(run: Treatment, ids: list[int]) -> Chart:
    """The logits of one text before and after one of its tokens is changed."""
    model, _ = _models()
    at = len(ids) // 2
    other = [*ids[:at], (ids[at] + 1) % model.config.vocab_size, *ids[at + 1 :]]
    before, after = (model.logits(Batch.pack([each]), ops=run.ops) for each in (ids, other))
    return {"logits": before, "logits_changed": after, "changed": at}


def _said(run: Treatment, prefix: Prefix, unseen: list[tuple[str, str]]) -> Chart:
    """What the run's own decoding writes, and the logits of a whole forward over the same text."""
    model, _ = _models()
    prompts = [model.encode(fill(run.template, source, "")) for source, _ in unseen]
    new = run.generate_ids(model, prompts, prefix, decoding=Decoding(max_new_tokens=30))
    ids = [*prompts[0], *new[0]]
    return {
        "said": [model.decode(row) for row in new],
        "right": [target for _, target in unseen],
        "decoded": ids,
        "decoded_from": len(prompts[0]),
        "decoded_logits": model.logits(Batch.pack([ids]), prefix),
    }


def patient(diagnosis: str, seed: int) -> Chart:
    """Train a prefix with this fault. -> its chart, a copy of your own."""
    return deepcopy(_admitted(diagnosis, seed))


def ward(seed: int) -> dict[str, Chart]:
    """A patient of each kind, in an order that the seed decides: A, B, ... -> its chart."""
    return {bed: patient(diagnosis, seed) for bed, diagnosis in opened(seed).items()}


def opened(seed: int) -> dict[str, str]:
    """The sealed envelope: A, B, ... -> what the patient of this ward has."""
    order = np.random.default_rng(seed).permutation(list(FAULTS))
    return {chr(ord("A") + i): str(name) for i, name in enumerate(order)}


def operations(seed: int, bed: str) -> Any:
    """The operations that the patient's run called; None for the package's own."""
    return _treatment(opened(seed)[bed], seed)[0].ops
