"""The laws of `minprefix.ops.contract` as checks of an op. They need no oracle, and cannot see a
missing scale or a flipped sign: a failure is sure, a pass says little."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from minprefix.conformance.cases import Case, numbers
from minprefix.conformance.check import Check, Finding, Grade
from minprefix.conformance.contract import ARGUMENTS
from minprefix.conformance.implementation import Implementation
from minprefix.conformance.op_checks import tensors
from minprefix.ops.contract import Array


def _law(grade: Grade, function: str, tensor: str, law: str, off: Array, scale: float) -> None:
    """`off` should be 0; `scale`: of the numbers that cancel."""
    error = float(np.abs(off).max(initial=0.0)) / max(scale, 1e-300)
    error = error if math.isfinite(error) else math.inf
    said = f"a law does not hold for {tensor}: {law}, and it is off by {error:.2g} of the largest"
    grade.expect(
        f"{tensor}: {law}", Finding(function, tensor, "law", f"{said} value", error, 1e-10)
    )


def _sequences(case: Case) -> list[slice]:
    offsets = case.inputs()["offsets"]
    return [slice(offsets[b], offsets[b + 1]) for b in range(len(offsets) - 1)]


LAW_SIZES = {"lengths": (4, 1, 3), "slots": (3, 2, 0)}


def _law_keys(implementation: Implementation, grade: Grade) -> None:
    case = Case("attention", LAW_SIZES, seed=4)
    t = tensors(implementation, case)
    for b, rows in enumerate(_sequences(case)):
        both = [t["dk"][rows].swapaxes(0, 1), t[f"dprefix_k[{b}]"]]
        _law(
            grade,
            "attention_backward",
            f"dk and dprefix_k[{b}]",
            "the sum of dk over prefix and tokens is 0",
            both[0].sum(axis=1) + both[1].sum(axis=1),
            max(np.abs(a).max(initial=0.0) for a in both) or 1.0,
        )


def _law_values(implementation: Implementation, grade: Grade) -> None:
    case = Case("attention", LAW_SIZES, seed=4)
    t, dz = tensors(implementation, case), case.inputs()["dz"]
    for b, rows in enumerate(_sequences(case)):
        total = t["dv"][rows].sum(axis=0) + t[f"dprefix_v[{b}]"].sum(axis=1)
        _law(
            grade,
            "attention_backward",
            f"dv and dprefix_v[{b}]",
            "the sum of dv over prefix and tokens is the sum of dz",
            total - dz[rows].sum(axis=0),
            float(np.abs(dz).max()),
        )


def _law_layernorm(implementation: Implementation, grade: Grade) -> None:
    dx = tensors(implementation, Case("layernorm", seed=4))["dx"]
    law = "each row of dx sums to 0"
    _law(grade, "layernorm_backward", "dx", law, dx.sum(axis=-1), float(np.abs(dx).max()))


def _law_cross_entropy(implementation: Implementation, grade: Grade) -> None:
    d = tensors(implementation, Case("cross_entropy", seed=4))["dlogits"]
    law = "each row of dlogits sums to 0"
    _law(grade, "cross_entropy_backward", "dlogits", law, d.sum(axis=-1), float(np.abs(d).max()))


def _attend(implementation: Implementation, i: dict[str, Any]) -> dict[str, Array]:
    """Forward and backward on given inputs."""
    own = implementation.arguments(i)
    result = implementation.call("attention", *(own[a] for a in ARGUMENTS["attention"]))
    z = numbers(implementation, "attention", result)["z"]
    back = implementation.call("attention_backward", own["dz"], result[1])
    return {"z": z} | numbers(implementation, "attention_backward", back)


def _law_permutation(implementation: Implementation, grade: Grade) -> None:
    case = Case("attention", {"lengths": (4, 2), "slots": (5, 5)}, seed=4)
    order = np.array([3, 0, 4, 1, 2])
    plain, moved = case.inputs(), case.inputs()
    for name in ("prefix_k", "prefix_v"):
        moved[name] = [a[:, order] for a in moved[name]]
    a, b = _attend(implementation, plain), _attend(implementation, moved)
    for name, want in a.items():
        if name.startswith("dprefix"):
            want = want[:, order]
        function = "attention" if name == "z" else "attention_backward"
        law = "permuting the slots permutes their gradients and changes nothing else"
        _law(grade, function, name, law, b[name] - want, float(np.abs(want).max()))


def _law_prompt(implementation: Implementation, grade: Grade) -> None:
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
    _law(grade, "attention", "z", law, b["z"] - a["z"][3:], float(np.abs(a["z"]).max()))
    for short, prefix in (("dk", "dprefix_k[0]"), ("dv", "dprefix_v[0]")):
        want = np.concatenate([a[prefix], a[short].swapaxes(0, 1)], axis=1)
        got = np.concatenate([b[prefix], b[short].swapaxes(0, 1)], axis=1)
        if got.shape == want.shape:
            _law(grade, "attention_backward", prefix, law, got - want, float(np.abs(want).max()))


def _law_batch(implementation: Implementation, grade: Grade) -> None:
    case = Case("attention", {"lengths": (3, 5, 2), "slots": (2, 4, 1)}, seed=4)
    together, i = _attend(implementation, case.inputs()), case.inputs()
    for b, rows in enumerate(_sequences(case)):
        alone = {n: i[n][rows] for n in ("q", "k", "v", "dz")}
        alone |= {n: [i[n][b]] for n in ("prefix_k", "prefix_v")}
        alone["offsets"] = np.array([0, rows.stop - rows.start])
        single = _attend(implementation, alone)
        for name, want in single.items():
            got = together[name.replace("[0]", f"[{b}]")]
            got = got if "[" in name else got[rows]
            function = "attention" if name == "z" else "attention_backward"
            law = f"sequence {b} of a batch is what it is alone"
            if got.shape == want.shape:
                scale = float(np.abs(want).max(initial=0.0)) or 1.0
                _law(grade, function, name, law, got - want, scale)


# law 6, P = 0 is plain GPT-2, stands in the cases `no-prefix`: there is no call without a prefix to
# compare with
LAWS: dict[str, tuple[str, str, Callable[[Implementation, Grade], None]]] = {
    "law-keys": ("attention", "law 1: the sum of dk over prefix and tokens is 0", _law_keys),
    "law-values": ("attention", "law 2: the sum of dv is the sum of dz", _law_values),
    "law-rows": ("layernorm", "law 3: each row of dx sums to 0", _law_layernorm),
    "law-logits": (
        "cross_entropy",
        "law 4: each row of dlogits sums to 0",
        _law_cross_entropy,
    ),
    "law-permutation": (
        "attention",
        "law 5: permuting the slots permutes their gradients",
        _law_permutation,
    ),
    "law-prompt": (
        "attention",
        "law 7: a prefix of the keys and values of tokens equals those tokens",
        _law_prompt,
    ),
    "law-batch": ("attention", "law 8: a sequence of a batch is what it is alone", _law_batch),
}


def law_checks() -> Iterator[Check]:
    for name, (op, why, run) in LAWS.items():
        short = name.removeprefix("law-")
        yield Check(f"{op}/law-{short}", "ops", op, why, run)
