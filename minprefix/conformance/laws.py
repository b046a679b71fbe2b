"""The laws of `minprefix.ops.contract` as checks of an op. They need no oracle, and cannot see a
missing scale or a flipped sign: a failure is certain, a pass says little."""

from collections.abc import Callable
from typing import Any

import numpy as np

from minprefix.conformance.cases import Case, numbers
from minprefix.conformance.check import Grade
from minprefix.conformance.contract import ARGUMENTS
from minprefix.conformance.implementation import Implementation
from minprefix.conformance.op_checks import tensors
from minprefix.ops.contract import Array


def _sequences(case: Case) -> list[slice]:
    offsets = case.inputs()["offsets"]
    return [slice(offsets[b], offsets[b + 1]) for b in range(len(offsets) - 1)]


UNLIKE = Case("attention", {"lengths": (4, 1, 3), "slots": (3, 2, 0)}, seed=4)


def _keys(implementation: Implementation, grade: Grade) -> None:
    t, law = tensors(implementation, UNLIKE), "the sum of dk over prefix and tokens is 0"
    for b, rows in enumerate(_sequences(UNLIKE)):
        both = np.concatenate([t["dk"][rows].swapaxes(0, 1), t[f"dprefix_k[{b}]"]], axis=1)
        name = f"dk and dprefix_k[{b}]"
        grade.law("attention_backward", name, law, both.sum(axis=1), both)


def _values(implementation: Implementation, grade: Grade) -> None:
    t, dz = tensors(implementation, UNLIKE), UNLIKE.inputs()["dz"]
    law = "the sum of dv over prefix and tokens is the sum of dz"
    for b, rows in enumerate(_sequences(UNLIKE)):
        total = t["dv"][rows].sum(axis=0) + t[f"dprefix_v[{b}]"].sum(axis=1)
        off = total - dz[rows].sum(axis=0)
        grade.law("attention_backward", f"dv and dprefix_v[{b}]", law, off, dz)


def _rows(implementation: Implementation, grade: Grade) -> None:
    dx = tensors(implementation, Case("layernorm", seed=4))["dx"]
    grade.law("layernorm_backward", "dx", "each row of dx sums to 0", dx.sum(axis=-1), dx)


def _logits(implementation: Implementation, grade: Grade) -> None:
    d = tensors(implementation, Case("cross_entropy", seed=4))["dlogits"]
    law = "each row of dlogits sums to 0"
    grade.law("cross_entropy_backward", "dlogits", law, d.sum(axis=-1), d)


def _attend(implementation: Implementation, i: dict[str, Any]) -> dict[str, Array]:
    """Forward and backward on given inputs."""
    own = implementation.arguments(i)
    result = implementation.call("attention", *(own[a] for a in ARGUMENTS["attention"]))
    z = numbers(implementation, "attention", result)["z"]
    back = implementation.call("attention_backward", own["dz"], result[1])
    return {"z": z} | numbers(implementation, "attention_backward", back)


def _function(tensor: str) -> str:
    return "attention" if tensor == "z" else "attention_backward"


def _permutation(implementation: Implementation, grade: Grade) -> None:
    case = Case("attention", {"lengths": (4, 2), "slots": (5, 5)}, seed=4)
    order = np.array([3, 0, 4, 1, 2])
    plain, moved = case.inputs(), case.inputs()
    for name in ("prefix_k", "prefix_v"):
        moved[name] = [a[:, order] for a in moved[name]]
    a, b = _attend(implementation, plain), _attend(implementation, moved)
    law = "permuting the slots permutes their gradients and changes nothing else"
    for name, want in a.items():
        if name.startswith("dprefix"):
            want = want[:, order]
        grade.law(_function(name), name, law, b[name] - want, want)


def _prompt(implementation: Implementation, grade: Grade) -> None:
    """A prefix that holds the keys and values of the first 3 tokens, against those tokens."""
    whole = Case("attention", {"lengths": (7,), "slots": (2,)}, seed=4).inputs()
    tail = dict(whole)
    for name in ("q", "k", "v", "dz"):
        tail[name] = whole[name][3:].copy()  # the other run may consume its cache, q and all
    whole["dz"] = np.concatenate([np.zeros_like(whole["dz"][:3]), whole["dz"][3:]])
    for name, tokens in (("prefix_k", "k"), ("prefix_v", "v")):
        head = whole[tokens][:3].swapaxes(0, 1)
        tail[name] = [np.concatenate([whole[name][0], head], axis=1)]
    tail["offsets"] = np.array([0, 4])
    a, b = _attend(implementation, whole), _attend(implementation, tail)
    law = "a prefix of the keys and values of tokens equals those tokens"
    grade.law("attention", "z", law, b["z"] - a["z"][3:], a["z"])
    for short, prefix in (("dk", "dprefix_k[0]"), ("dv", "dprefix_v[0]")):
        got, want = (np.concatenate([t[prefix], t[short].swapaxes(0, 1)], axis=1) for t in (b, a))
        if got.shape == want.shape:
            grade.law("attention_backward", prefix, law, got - want, want)


def _batch(implementation: Implementation, grade: Grade) -> None:
    case = Case("attention", {"lengths": (3, 5, 2), "slots": (2, 4, 1)}, seed=4)
    together, i = _attend(implementation, case.inputs()), case.inputs()
    for b, rows in enumerate(_sequences(case)):
        alone = {n: i[n][rows] for n in ("q", "k", "v", "dz")}
        alone |= {n: [i[n][b]] for n in ("prefix_k", "prefix_v")}
        alone["offsets"] = np.array([0, rows.stop - rows.start])
        for name, want in _attend(implementation, alone).items():
            got = together[name.replace("[0]", f"[{b}]")]
            got = got if "[" in name else got[rows]
            law = f"sequence {b} of a batch is what it is alone"
            if got.shape == want.shape:
                grade.law(_function(name), name, law, got - want, want)


#: the usual reason where nothing but this law is broken
FINITE_MASK = (
    "is right in the other checks? Then a large finite number, -1e9 say, hides the later tokens, "
    "and scores of this size get past it: take -inf"
)


def _causality(implementation: Implementation, grade: Grade) -> None:
    """The last tokens of a sequence exchanged: for keys and values so large that no finite number
    hides them; and, among scores near -1e11, for keys and values of another draw."""
    law = "z of a token does not depend on the tokens after it"
    for common, large in ((0.0, 1e12), (0.0, -1e12), (-1e11, 1.0)):
        sizes = {"lengths": (6, 3), "slots": (2, 0), "common": common}
        plain = Case("attention", sizes, seed=4).inputs()
        moved = dict(plain)
        later = np.array([4, 5, 8])
        for name in "kv":
            moved[name] = plain[name].copy()
            moved[name][later] *= -large
        want, got = (_seen(implementation, i) for i in (plain, moved))
        before = np.setdiff1d(np.arange(9), later)
        where = (
            f", scores near {common:.0e}" if common else f" and become {large:.0e} times as large"
        )
        off = got[before] - want[before]
        # so far down, scores that differ by 1e-5 are the same number
        tolerance = 1e-4 if common else 1e-10
        grade.law("attention", "z", law + where, off, want[before], tolerance)
    for finding in grade.findings[:1]:
        finding.hints.append(FINITE_MASK)


def _seen(implementation: Implementation, i: dict[str, Any]) -> Array:
    """z of copies of these inputs."""
    own = implementation.arguments(i)
    result = implementation.call("attention", *(own[a] for a in ARGUMENTS["attention"]))
    return numbers(implementation, "attention", result)["z"]


# law 6, P = 0 is plain GPT-2, stands in the cases `no-prefix`: there is no call without a prefix to
# compare with
LAWS: dict[str, tuple[str, Callable[[Implementation, Grade], None]]] = {
    "attention/law-keys": ("law 1: the sum of dk over prefix and tokens is 0", _keys),
    "attention/law-values": ("law 2: the sum of dv is the sum of dz", _values),
    "layernorm/law-rows": ("law 3: each row of dx sums to 0", _rows),
    "cross_entropy/law-logits": ("law 4: each row of dlogits sums to 0", _logits),
    "attention/law-permutation": (
        "law 5: permuting the slots permutes their gradients",
        _permutation,
    ),
    "attention/law-prompt": (
        "law 7: a prefix of the keys and values of tokens equals those tokens",
        _prompt,
    ),
    "attention/law-causality": (
        "law 9: a token does not see those after it, whatever numbers they are",
        _causality,
    ),
    "attention/law-batch": ("law 8: a sequence of a batch is what it is alone", _batch),
}
