"""What a module's own loss of labels has done instead: usual mistakes, computed from its logits."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from minprefix.ops.contract import Array

#: a label of nothing to predict, for torch's cross_entropy
IGNORED = -100


def _each(logits: Array, labels: Array) -> Array:
    """-log p of each label (T,); 0 where there is none."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    kept = labels != IGNORED
    return np.where(kept, -log_p[np.arange(len(labels)), np.where(kept, labels, 0)], 0.0)


def _mean(logits: Array, labels: Array) -> float:
    n = int((labels != IGNORED).sum())
    return float(_each(logits, labels).sum() / n) if n else np.nan


#: what is wrong -> the loss of one text by its logits (T, V) and labels (T,)
MISTAKES: Mapping[str, Callable[[Array, Array], float]] = {
    "if the labels are not shifted: a token's logits predict the one after it":
        lambda logits, labels: _mean(logits, labels),
    "if the labels are shifted twice: the module shifts them itself":
        lambda logits, labels: _mean(logits[:-2], labels[2:]),
    "if the labels are shifted the other way":
        lambda logits, labels: _mean(logits[1:], labels[:-1]),
    "if a sum is taken where a mean belongs":
        lambda logits, labels: float(_each(logits[:-1], labels[1:]).sum()),
    "if the mean is over all tokens: those with the label -100 do not count":
        lambda logits, labels: float(_each(logits[:-1], labels[1:]).mean()),
    "if a label of -100 is taken for token 0: nothing is to be predicted there":
        lambda logits, labels: _mean(logits[:-1], np.where(labels == IGNORED, 0, labels)[1:]),
    "if the last label is left out": lambda logits, labels: _mean(logits[:-2], labels[1:-1]),
}  # fmt: skip


def mistake(texts: Sequence[tuple[Array, Array, float]]) -> str:
    """The mistake that gives the loss of every text; empty where none does. Of each text its logits
    (T, V), its labels (T,) and the loss that the module gave."""
    for said, loss in MISTAKES.items():
        wanted = [loss(logits, labels) for logits, labels, _ in texts]
        got = [given for *_, given in texts]
        if texts and np.allclose(got, wanted, rtol=1e-5, atol=0, equal_nan=True):
            return f"is what one gets {said}"
    return ""
