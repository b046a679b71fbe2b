"""Results as text for people, and as JSON for graders."""

import json
import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np

from minprefix import __version__
from minprefix.conformance.check import PRECISION, Finding, Result
from minprefix.conformance.contract import ARGUMENTS, FUNCTIONS, LEVELS
from minprefix.conformance.diagnosis import IN_SINGLE
from minprefix.conformance.implementation import NO_HYPOTHESIS
from minprefix.conformance.zoo import IN_DOUBLE, all_bugs
from minprefix.errors import counted
from minprefix.storage.writing import write_json

WIDTH = 100
IN_FULL = 3  # so many different failures are explained; the rest get a line each
STATUSES = ("passed", "failed", "not implemented", "not graded")
GRADED = ("passed", "failed")

_wrapped = textwrap.TextWrapper(
    WIDTH, "   ", "     ", break_long_words=False, break_on_hyphens=False
).wrap


def passed(results: Sequence[Result]) -> bool:
    """Something was graded, and nothing failed."""
    statuses = [r.status for r in results]
    return "failed" not in statuses and "passed" in statuses


def show(results: Sequence[Result], name: str, everything: bool, json_file: Path | None) -> int:
    """Print the text, and write the JSON to `json_file` if there is one; `-` prints it instead of
    the text. -> the exit status: 0 passed, 1 not."""
    if json_file == Path("-"):
        print(json.dumps(as_json(results, name), indent=2))
    else:
        print(text(results, name, everything))
        if json_file is not None:
            write_json(json_file, as_json(results, name))
    return 0 if passed(results) else 1


def as_json(results: Sequence[Result], name: str) -> dict[str, Any]:
    """Everything, for programs. `first`: the first thing that is wrong, in the order in which one
    would mend it."""
    failures, first = _rooted(_failures(results)), None
    if failures:
        result, finding = failures[0].result, failures[0].finding
        told = ("function", "tensor", "kind", "sentence", "hints")
        about = {key: getattr(finding, key) for key in told}
        first = {"check": result.check, "why": result.why, "op": result.op}
        first |= about | {"zoo": result.zoo}
    said = {
        "implementation": name,
        "minprefix": __version__,
        "passed": passed(results),
        "counts": {s: sum(r.status == s for r in results) for s in STATUSES},
        "first": first,
        "not_implemented": _not_implemented(results),
        "not_graded": {r.check: r.not_graded for r in results if r.not_graded},
        "results": results,
    }
    return {key: plain(each) for key, each in said.items()}


def plain(value: Any) -> Any:
    """`value` in JSON's types, whatever an implementation brought in. JSON has no NaN, no infinity
    and no complex numbers: they are written as text, and so is every other object."""
    if is_dataclass(value):
        return {f.name: plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {key if type(key) is str else str(key): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(each) for each in value]
    if isinstance(value, np.ndarray | np.generic):
        if value.dtype.kind == "f":
            value = value.astype(np.float64)  # a long double has no other way to a float
        return plain(value.tolist()) if value.dtype.kind in "biufUS" else str(value)
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(float(value))
    # a half of a surrogate pair cannot be written in UTF-8
    return str(value).encode("utf-8", "backslashreplace").decode("utf-8")


def text(
    results: Sequence[Result], name: str, everything: bool = False, at_most: int | None = None
) -> str:
    """A table of ops, then the failures: the first ones in full, or all with `everything`. The
    others get a line each, `at_most` of them if that is given."""
    lines = [*_table(results), ""]
    failures = _failures(results)
    failures = failures if everything else _rooted(failures)
    ops_first = not everything and any(f.result.level == "ops" for f in failures)
    shown = [f for f in failures if not ops_first or f.result.level == "ops"]
    in_full = len(shown) if everything else IN_FULL
    told: set[str] = set()  # bugs of the zoo that were explained
    for number, failure in enumerate(shown[:in_full], 1):
        lines += [*_in_full(number, failure, told), ""]
    rest = [f"  {f.title}: {f.finding.sentence}" for f in shown[in_full:]]
    if rest:
        how = " (--all explains them, too)" if at_most is None else ""
        more = [] if at_most is None else rest[at_most:]
        hidden = [f"  and {len(more)} more"] if more else []
        lines += [f"Also wrong{how}:", *rest[:at_most], *hidden, ""]
    levels, seen = ({f.result.level for f in each} for each in (failures, shown))
    above = sorted(levels - seen, key=LEVELS.index)
    if above:
        said = f"Levels {' and '.join(above)} fail" if len(above) > 1 else f"Level {above[0]} fails"
        lines.append(f"{said} over these ops, too: mend the ops first.")
    return "\n".join([*lines, _summary(results, name)])


def _summary(results: Sequence[Result], name: str) -> str:
    failed = sum(r.status == "failed" for r in results)
    graded = sum(r.status in GRADED for r in results)
    names = _not_implemented(results)
    missing = _by_op([name for name in names if name != NO_HYPOTHESIS])
    late = any(r.status == "not graded" for r in results)
    said = "nothing was graded" if late else "nothing to grade: no function is implemented yet"
    if failed:
        said = f"{failed} of {counted(graded, 'check')} failed"
    elif graded:
        said = "the only check passed" if graded == 1 else f"all {graded} checks passed"
    said = f"{name}: {said}"
    if missing and graded:
        listed = f"not implemented, and not graded: {'; '.join(missing)}"
        said += "\n" + textwrap.fill(listed, WIDTH, subsequent_indent="  ")
    said += _not_reached(results)
    for note in dict.fromkeys(note for r in results for note in r.notes):
        said += "\n" + textwrap.fill(note, WIDTH, subsequent_indent="  ")
    if NO_HYPOTHESIS in names:
        said += f"\nleft out: {NO_HYPOTHESIS}"
    return said


def _not_reached(results: Sequence[Result]) -> str:
    """What was not graded, by its reason: so many checks, and the first of them."""
    by_reason: dict[str, list[str]] = {}
    for r in results:
        if r.status == "not graded":
            by_reason.setdefault(r.not_graded, []).append(r.check)
    lines = [
        f"not graded: {counted(len(ids), 'check')} ({_some(ids, 60)}): {reason}"
        for reason, ids in by_reason.items()
    ]
    shorter = [f"{r.not_graded} of {r.check}" for r in results if _partly(r)]
    if shorter:
        lines.append(f"not graded: {_some(shorter, 2 * WIDTH)}")
    if any(r.not_graded and not r.not_graded.startswith("not run") for r in results):
        lines.append("--time-limit allows more seconds for each check")
    return "".join(f"\n{textwrap.fill(each, WIDTH, subsequent_indent='  ')}" for each in lines)


def _partly(r: Result) -> bool:
    return r.status == "passed" and r.not_graded != ""


def _not_implemented(results: Sequence[Result]) -> list[str]:
    return list(dict.fromkeys(name for r in results for name in r.not_implemented))


#: kinds of findings about a compared tensor: the zoo looks at the first of these, and at a mere
#: difference in precision only where there is nothing else
COMPARED = (("value", "shape", "not finite"), PRECISION)

#: kinds of findings that follow from others of the same op
FOLLOWS = ("not computed", "derivative")


def _by_op(functions: Sequence[str]) -> list[str]:
    """Where all functions of an op are missing, the op in their place."""
    names = list(functions)
    for op, needed in FUNCTIONS.items():
        if set(needed) <= set(names):
            names[names.index(needed[0])] = f"all of {op}"
            names = [n for n in names if n not in needed]
    return names


def _table(results: Sequence[Result]) -> list[str]:
    lines = []
    for level in dict.fromkeys(r.level for r in results):
        of_level = [r for r in results if r.level == level]
        ops = dict.fromkeys(r.op for r in of_level)
        lines += [level, *(_row(op, [r for r in of_level if r.op == op]) for op in ops)]
    return lines


def _row(op: str, results: Sequence[Result]) -> str:
    failed = [r.check.split("/", 1)[1] for r in results if r.status == "failed"]
    graded = sum(r.status in GRADED for r in results)
    start = f"  {op:<14} {graded:>2} of {len(results):>2} graded  "
    if failed:
        return f"{start}{len(failed):>2} FAILED: {_some(failed, WIDTH - len(start) - 12)}"
    if not graded:
        late = any(r.status == "not graded" for r in results)
        return f"  {op:<14} {'not graded' if late else 'not implemented'}"
    worst = max((e for r in results for e in r.errors.values()), default=0.0)
    return f"{start}passed, largest error {worst:.0e}"


@dataclass
class _Failure:
    """A function and a tensor that are wrong, in the check where this was seen first. `others`: the
    other checks where they are wrong; where they are only rounded, the other rounded tensors.
    `follow`: other wrong tensors that depend on it, or are given with it."""

    result: Result
    finding: Finding
    others: list[str] = field(default_factory=list)
    follow: list[str] = field(default_factory=list)

    @property
    def title(self) -> str:
        f = self.finding
        return f"{f.function}{f', {f.tensor}' if f.tensor else ''} in {self.result.check}"


def _failures(results: Sequence[Result]) -> list[_Failure]:
    """One for each function and tensor that is wrong. Another precision mostly has one cause: it
    comes last, as one failure a level, and another one for each that is below single."""
    found: dict[tuple[str, str, str], _Failure] = {}
    rounded: dict[tuple[str, str], _Failure] = {}  # level and coarse precision -> its failure
    every = [(r, f) for r in results for f in r.findings]
    broken = {r.op for r, f in every if f.kind not in FOLLOWS}
    forwards = {f.function for _, f in every if f.kind not in FOLLOWS}
    imprecise = {r.op for r, f in every if f.kind in PRECISION}
    wrong_above = {r.op for r, f in every if f.kind == "value" and r.level != "ops"}
    for result, finding in every:
        rounds = finding.kind == "derivative" and finding.precision != ""
        if (
            # it follows from the op's other findings
            (finding.kind == "not computed" and result.op in broken)
            # the derivative of a wrong forward: the backward may be right
            or (finding.kind == "derivative" and result.op in forwards)
            # a difference of rounded numbers
            or (rounds and result.op in imprecise)
        ):
            continue
        stem = finding.tensor.split("[")[0]
        if not rounds and finding.kind not in PRECISION:
            key = (result.level, finding.function, stem)
            failure = found.setdefault(key, _Failure(result, finding))
            if failure.finding.guess and finding.kind == "value":
                found[key] = failure = _Failure(result, finding)
            if result.check not in (failure.result.check, *failure.others):
                failure.others.append(result.check)
        elif result.op not in wrong_above:  # there they are a mistake's own first, small traces
            coarse = finding.precision.removeprefix("float32")
            failure = rounded.setdefault((result.level, coarse), _Failure(result, finding))
            said = f"{stem.removeprefix('cache.')} of {finding.function}"
            if stem != failure.finding.tensor.split("[")[0] and said not in failure.others:
                failure.others.append(said)
    return [*found.values(), *rounded.values()]


def _rooted(failures: Sequence[_Failure]) -> list[_Failure]:
    """Those that no earlier one explains; each knows those that it explains."""
    explained = {f.finding.function for f in failures if _has_reason(f.finding)}
    wrong = {f.finding.function for f in failures if f.finding.kind == "value"}

    def guessed(failure: _Failure) -> bool:
        """Blamed on an earlier call, where the same function has a mistake that is known, or where
        that is a mere guess and it is wrong about one problem, too."""
        f = failure.finding
        known = f.function in explained or (f.guess and f.function in wrong)
        return failure.result.check.endswith("/again") and f.kind == "law" and known

    roots: list[_Failure] = []
    for failure in sorted(failures, key=guessed):
        root = next((each for each in roots if _explains(each, failure)), None)
        if root is None:
            roots.append(failure)
        else:
            root.follow.append(failure.finding.tensor.split("[")[0])
    return roots


def _has_reason(finding: Finding) -> bool:
    return any(hint.startswith("is what one gets if") for hint in finding.hints)


def _explains(root: _Failure, other: _Failure) -> bool:
    """Whether a wrong tensor may be wrong because another one is: it is computed from it, or given
    with it and wrong in the same way."""
    a, b = root.finding, other.finding
    if a.kind not in COMPARED[0] or b.kind not in (*COMPARED[0], *FOLLOWS, "law"):
        return False
    if root.result.level != other.result.level or root.result.op != other.result.op:
        return False
    if other.result.level != "ops":
        return a.function == b.function and _stage(a.tensor) <= _stage(b.tensor)
    if a.function == b.function:
        return a.hints[:1] == b.hints[:1] != [] or b.tensor.startswith("cache.")
    return a.function == root.result.op and "cache" in ARGUMENTS[b.function]


def _stage(tensor: str) -> tuple[int, int]:
    """When a tensor of a whole answer is computed: the step of a training, then forward, loss,
    backward, and what an optimizer makes of the gradients."""
    of_training = re.match(r"step\.(\d+)\.(loss|.*gradient)?", tensor)
    if of_training:
        return int(of_training[1]), 3 if of_training[2] is None else 1 + (of_training[2] != "loss")
    last = tensor.rpartition(".")[2]
    backward = last.startswith("d") or tensor.startswith(("d", "prefix."))
    return 0, 2 if backward else int(tensor == "loss")


def _in_full(number: int, failure: _Failure, told: set[str]) -> list[str]:
    result, finding = failure.result, failure.finding
    lines = [f"{number}. {failure.title}"]
    lines += _wrapped(f"checked here: {result.why}") if result.why else []
    lines += _wrapped(finding.sentence)
    lines += [row for hint in finding.hints for row in _wrapped(f"{finding.tensor} {hint}")]
    if finding.worst and finding.kind not in PRECISION:
        entries = (f"{index} is {_unlike(got, want)}" for index, got, want in finding.worst)
        said = f"worst: {'; '.join(entries)}"
        index, got, want = finding.worst[0]
        lines += _wrapped(said if index else f"{finding.tensor} is {_unlike(got, want)}")
    # the zoo compares the first wrong tensor; an earlier finding may be about another one
    compared = next((f for kinds in COMPARED for f in result.findings if f.kind in kinds), None)
    for name in result.zoo[:2] if finding is compared else ():
        lesson = "" if name in told else f": {all_bugs()[name].lesson}"
        exactly = result.zoo_distance <= IN_DOUBLE
        this = f"exactly this {finding.tensor}" if exactly else f"this {finding.tensor}{IN_SINGLE}"
        lines += _wrapped(f"the zoo's {name} gives {this}{lesson}")
        told.add(name)
    if failure.follow:
        n = len(failure.follow)
        values = "and 1 value that depends on it" if n == 1 else f"and {n} values that depend on it"
        lines += _wrapped(f"{values}: {_some(failure.follow, WIDTH)}")
    if failure.others:
        start = "the same holds for" if finding.kind in PRECISION else "wrong, too, in"
        lines += _wrapped(f"{start} {_some(failure.others, 2 * WIDTH)}")
    if finding.reproducer:
        lines.append("   to see it, in Python:")
        lines += [f"       {row}" for row in finding.reproducer.splitlines()]
    return lines


def _unlike(got: float, want: float) -> str:
    """Both in as many digits as it takes to see a difference."""
    short = f"{got:.6g}", f"{want:.6g}"
    a, b = short if short[0] != short[1] else (f"{got:.17g}", f"{want:.17g}")
    return f"{a}, not {b}"


def _some(names: Sequence[str], width: int) -> str:
    """As many as fit, and how many more there are."""
    shown = list(names)
    while len(shown) > 1 and len(", ".join(shown)) > width - 14:
        shown.pop()
    more = len(names) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")
