"""Whether `minprefix compare` names the op that a bug of the zoo sits in.

`python -m tools.zoo_compare` writes the table tests/zoo/COMPARE.md and prints what was missed.
"""

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from types import SimpleNamespace

from minprefix import console
from minprefix.cli.parser import Parser
from minprefix.conformance.bug import Bug
from minprefix.conformance.contract import FUNCTIONS, TENSORS
from minprefix.conformance.zoo import all_bugs, changed_source, plant
from minprefix.trace.compare import Comparison, compare
from minprefix.trace.record import Trace
from minprefix.trace.sides import HOUSE, Problem, problems, trace_ops

COMMAND = "python -m tools.zoo_compare"
PLACE = Path(__file__).resolve().parents[1] / "tests" / "zoo" / "COMPARE.md"
KINDS = ("maths", "plumbing")

#: a bug above the ops -> the step of the model that it changes, as a trace names it
STEPS = {
    "targets-not-shifted": "batch.targets",
    "loss-starts-one-late": "batch.rows",
    "last-row-predicts-the-next-text": "batch.rows",
    "positions-ignore-the-prefix": "embed(positions)",
    "positions-run-on": "embed(positions)",
    "positions-of-a-left-padded-batch": "embed(positions)",
    "embedding-scaled": "blocks.0.ln_1(x)",  # between embed and the first norm
    "heads-interleaved": "blocks.0.attn.q",
    "queries-and-keys-swapped": "blocks.0.attn.q",
    "prefix-keys-and-values-swapped": "blocks.0.attn.prefix_k#*",
    "prefix-layers-reversed": "blocks.0.attn.prefix_k#*",
    "every-layer-sees-the-first-prefix": "blocks.1.attn.prefix_k#*",
    "deeper-layers-see-zeros": "blocks.1.attn.prefix_k#*",
    "request-for-a-prefix-ignored": "blocks.0.attn.prefix_k#1",
    "attention-residual-from-the-norm": "blocks.0.resid_mid",
    "second-norm-with-the-weights-of-the-first": "blocks.0.ln_2.out",
    "second-norm-skipped": "blocks.0.mlp.c_fc(x)",
    "activation-skipped": "blocks.0.mlp.c_proj(x)",
    "mlp-residual-forgotten": "blocks.0.resid_post",
    "last-norm-skipped": "head(x)",
    "last-norm-with-a-default-eps": "ln_f(eps)",
    "logits-of-the-next-row": "blocks.2.attn.c_proj(x)",
    "mean-of-the-sequences-means": "loss(weights)",
    "sum-is-a-mean": "loss(weights)",
    "gradient-at-the-wrong-rows": "blocks.2.attn.backward(dz)",
    "last-norm-skipped-in-the-backward": "ln_f.backward(dout)",  # a call that is never made
    "residual-dropped-around-the-mlp": "blocks.2.dresid_mid",
    "residual-dropped-around-attention": "blocks.1.dresid_post",
    "dqkv-in-the-wrong-order": "blocks.2.attn.dqkv",
    "dqkv-interleaved": "blocks.2.attn.dqkv",
    "gradient-stops-below-the-top": "blocks.1.dresid_post",
    "every-layer-gets-the-top-gradient": "blocks.1.dresid_post",
    "prefix-gradients-in-reverse-order": "dprefix.kv#0",
    "prefix-gradient-keys-and-values-swapped": "dprefix.kv#0",
    "shared-prefix-last-sequence-wins": "dprefix.kv#0",
    "shared-prefix-averaged": "dprefix.kv#0",
    "gradient-of-all-rows-for-every-prefix": "dprefix.kv#0",
    "embedding-gradient-lost-to-the-head": "dwte.weight",
    "head-gradient-lost-to-the-embedding": "dwte.weight",
    "position-gradients-from-0": "embed.backward_params(positions)",
    "unflattened-values-first": "prefix.kv#0",
    "unflattened-without-a-transpose": "prefix.kv#0",
    "flattened-without-a-transpose": "dprefix.embedding#0",
    "tanh-derivative-missing": "dprefix.embedding#0",
}

#: bugs that other sizes, values or a second call show, and neither of the problems here
UNSHOWN = {
    "token-ids-in-16-bits",
    "xhat-from-the-output",
    "outputs-in-a-ring-of-buffers",
    "one-launch-of-4096-threads",
    "mask-of-minus-65504",
    "window-left-on",
    "last-tile-of-keys-left-out",
    "keys-of-zero-taken-for-padding",
    "silent-sequence-skipped",
    "first-maximum-of-0",
    "weight-of-0-taken-for-none",
    "tail-of-the-vocabulary-left-out",
    "tokens-of-one-byte",
    "layers-in-the-order-of-their-names",
    "layer-1-reads-layer-10",
    "loss-of-the-last-block",
    "prefixes-told-apart-by-their-arrays",
    "weights-compiled-in",
    "position-from-the-cache",
    "tied-head-in-decoding",
}


@dataclass(frozen=True)
class Found:
    """What `compare` says of a bug. `where`: the function of the contract, or the step of the
    model, that the bug sits in; empty for decoding, which a forward and backward do not pass."""

    bug: Bug
    where: str
    problem: str
    named: str
    op: str
    inside: str

    @property
    def right(self) -> bool:
        if self.bug.name in STEPS:
            return fnmatchcase(self.named, self.where)
        return bool(self.op) and self.op in self.where.split(", ")


def bugs() -> list[Bug]:
    """Those of arithmetic and plumbing. What the zoo calls training (optimisers, schedules,
    micro-batches) is no part of a forward and backward, and a trace has no rivals."""
    shown = (bug for bug in all_bugs().values() if bug.name not in UNSHOWN)
    found = (bug for bug in shown if bug.kind in KINDS)
    return [bug for bug in found if not bug.module.startswith("methods.")]


def where(bug: Bug) -> str:
    """Where the bug sits: for one in an op the function that gives the tensor which is first
    wrong; any of the op's where that is no result (a cache, an argument that was written to)."""
    if bug.module != "ops.reference":
        return STEPS.get(bug.name, "")
    op, tensor = bug.truth
    giving = [
        f
        for f in FUNCTIONS[op]
        if any(name.removesuffix("[]") == tensor for name in TENSORS[f])
        and not tensor.startswith("cache.")
    ]
    return ", ".join(giving or FUNCTIONS[op])


def find(bug: Bug) -> Found:
    comparison = compared(bug)
    row = comparison.culprit
    if row is None:
        return Found(bug, where(bug), "", "", "", "")
    inner = comparison.inside(row)
    return Found(
        bug, where(bug), comparison.problem, row.key, row.op, "" if inner is None else inner.key
    )


def compared(bug: Bug) -> Comparison:
    """The first problem in which the bug shows, or the last."""
    ops, house = "reference", HOUSE
    if bug.module == "ops.reference":
        ops = changed_source(bug)
    else:
        planted = plant(bug).functions.run_model  # type: ignore[attr-defined]
        house = SimpleNamespace(**planted.__globals__)
    for name, (problem, right) in _right().items():
        found = compare(right, trace_ops(problem, ops, bug.name, house))
        found = replace(found, problem=name)
        if not found.same:
            break
    return found


@cache
def _right() -> dict[str, tuple[Problem, Trace]]:
    return {
        name: (problem, trace_ops(problem, "reference", "reference"))
        for name, problem in problems().items()
    }


def row(found: Found) -> str:
    cells = (
        found.bug.name,
        found.bug.kind,
        found.where or "decoding",
        f"{found.named}, {found.op}" if found.named else "nothing",
        found.inside,
        found.problem,
        "yes" if found.right else "**no**",
    )
    return f"| {' | '.join(cells)} |"


def page(all_found: Sequence[Found]) -> str:
    seen = [f for f in all_found if f.where]
    right, among = sum(f.right for f in all_found), sum(f.right for f in seen)
    missed = [f"`{f.bug.name}`" for f in all_found if not f.right]
    lines = [
        "# Where `minprefix compare` puts its finger",
        "",
        f"Written by `{COMMAND}`. Each bug of the zoo's kinds *maths* and *plumbing* is planted in "
        "the second of two runs. Right is: for a bug in an op, the very function that it is in; "
        "for a bug in the model around the ops, the step that it changes.",
        "",
        f"**{right} of {len(all_found)}** ({right / len(all_found):.0%}); of the {len(seen)} that "
        f"a forward and backward pass through {among} ({among / len(seen):.0%}), the others sit "
        f"in decoding. Missed: {', '.join(missed) or 'none'}.",
        "",
        "| bug | kind | sits in | `compare` names | inside it | problem | right |",
        "|---|---|---|---|---|---|---|",
        *map(row, all_found),
    ]
    return "\n".join(lines) + "\n"


def find_all(chosen: Iterable[Bug]) -> list[Found]:
    return [find(bug) for bug in chosen]


def main(arguments: Sequence[str] | None = None) -> int:
    console.take_every_character()
    parser = Parser(prog=COMMAND, description="Write where `compare` finds each bug.")
    parser.add_argument(
        "place", nargs="?", type=Path, metavar="FILE", default=PLACE,
        help="write the table there (default: tests/zoo/COMPARE.md)",
    )  # fmt: skip
    place = parser.parse_args(arguments).place
    if not place.parent.is_dir():
        parser.error(f"{place.parent} does not exist: name a file in a folder that does")
    found = find_all(bugs())
    place.write_text(page(found), encoding="utf-8", newline="\n")
    print(f"{sum(f.right for f in found)} of {len(found)} named right; see {place}")
    for f in found:
        if not f.right:
            print(f"  {f.bug.name}: sits in {f.where or 'decoding'}, named {f.named or 'nothing'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
