"""The bug zoo: mistakes that real systems and students made, each a small change to this project's
own code. It proves that the suite has power, and it recognises a bug that it has seen before.
"""

import importlib
import json
import math
import sys
import types
from collections.abc import Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from minprefix.conformance.bug import Bug
from minprefix.conformance.bugs import BUGS
from minprefix.conformance.check import PRECISION, Check, Grade
from minprefix.conformance.contract import ARGUMENTS, WHOLE
from minprefix.conformance.diagnosis import relative_error
from minprefix.conformance.implementation import Implementation
from minprefix.conformance.rounding import PRECISIONS, is_held
from minprefix.methods import METHODS

#: the modules in which bugs are planted, each after all that it imports
MODULES = (
    "minprefix.ops.reference",
    "minprefix.gpt2",
    "minprefix.batch",
    "minprefix.optim",
    "minprefix.storage.saved",
    "minprefix.prefix",
    "minprefix.model",
    "minprefix.generate",
    "minprefix.train",
    "minprefix.methods.rival",
    "minprefix.methods.paths",
    "minprefix.methods.fine_tuning",
    "minprefix.methods.prompt_tuning",
    "minprefix.methods.lstm",
    "minprefix.methods.p_tuning",
    "minprefix.methods.infix",
    "minprefix.methods.lora",
    "minprefix.methods.adapters",
    "minprefix.methods",
    "minprefix.conformance.record",
    "minprefix.conformance.house",
)

#: modules that no forward and no gradient of a model passes through
ONLY_TRAINING = ("optim", "train", "conformance.house")


def all_bugs() -> Mapping[str, Bug]:
    """Name -> bug."""
    return BUGS


def plant(bug: Bug) -> Implementation:
    """This project's code with the bug in it, beside the sound one: nothing that is imported
    changes. Raises ValueError if the text that the bug changes is not there exactly once."""
    planted = plant_modules(bug)
    reference = planted.get(MODULES[0], sys.modules[MODULES[0]])
    if bug.module == "ops.reference":
        return Implementation(reference, bug.name, in_a_hurry=True, anew=partial(plant, bug))
    house = planted[MODULES[-1]].House(reference)
    gpt2 = planted.get("minprefix.gpt2", sys.modules["minprefix.gpt2"])
    whole = {name: getattr(reference, name) for name in ARGUMENTS}
    whole |= {name: getattr(house, name) for name in WHOLE}
    whole |= {name: getattr(gpt2, name) for name in ("block_forward", "block_backward")}
    again = partial(plant, bug)
    return Implementation(types.SimpleNamespace(**whole), bug.name, in_a_hurry=True, anew=again)


def plant_modules(bug: Bug) -> dict[str, types.ModuleType]:
    """Name -> module: the one with the bug, and anew all that imports it. Raises as `plant`."""
    first = MODULES.index(f"minprefix.{bug.module}")
    # ops are passed as arguments: a module that imports the reference need not change
    names = MODULES[:1] if first == 0 else MODULES[first:]
    # all are imported before: another module that meets a planted one would keep it
    saved = {name: importlib.import_module(name) for name in names}
    planted: dict[str, types.ModuleType] = {}
    try:
        for name in names:
            path, source = _source(name)
            if name == names[0]:
                path, source = f"{path} with bug {bug.name}", changed_source(bug)
            planted[name] = module = types.ModuleType(name)
            module.__file__, module.__package__ = path, name.rpartition(".")[0]
            sys.modules[name] = module  # dataclasses look their module up
            exec(_compiled(source, path), vars(module))
    finally:
        sys.modules.update(saved)
    return planted


def changed_source(bug: Bug) -> str:
    """The text of the bug's module with the bug in it. Raises ValueError as `plant` does."""
    name = f"minprefix.{bug.module}"
    importlib.import_module(name)
    _, source = _source(name)
    for old, new in bug.change:
        if source.count(old) != 1:
            raise ValueError(
                f"bug {bug.name!r} changes a text that stands {source.count(old)} times in {name}, "
                f"expected once: {old!r}"
            )
        source = source.replace(old, new)
    return source


@cache
def _source(name: str) -> tuple[str, str]:
    """Where a module's text stands, and the text."""
    path = Path(str(sys.modules[name].__file__))
    return str(path), path.read_text(encoding="utf-8")


@cache
def _compiled(source: str, path: str) -> types.CodeType:
    return compile(source, path, "exec")


@cache
def planted(name: str) -> Implementation:
    return plant(all_bugs()[name])


# ---- recognising a bug ---------------------------------------------------------------------------

#: check -> bug -> a tensor that is wrong there, and its `fingerprint`: one number that spares most
#: bugs from being run. `tools.zoo_matrix` writes it.
FINGERPRINTS = Path(__file__).with_name("fingerprints.json")

#: (check, bug) -> the numbers that the bug gives there
_SEEN: dict[tuple[str, str], dict[str, np.ndarray]] = {}


def affects(bug: Bug, check: Check) -> bool:
    """Whether a check can see the code that the bug is in."""
    if check.level == "ops":
        return bug.module == "ops.reference" and bug.truth[0] == check.op
    if bug.module == "conformance.house":
        return bug.truth[0] in (check.op, "model")
    if check.level == "methods":  # each on a model that the other checks have seen
        made_of = {kind.__module__ for kind in METHODS[check.op].__mro__}
        lstm = bug.module == "methods.lstm" and check.op == "p-tuning"
        return lstm or f"minprefix.{bug.module}" in made_of
    if bug.module.startswith("methods."):
        return False
    return check.level == "training" or bug.module not in ONLY_TRAINING


def fingerprint(a: np.ndarray) -> float | None:
    """A weighted sum of all entries; None if one of them is not finite."""
    a = a.real.astype(np.float64).ravel()
    return float(a @ _directions(len(a))) if np.isfinite(a).all() else None


@cache
def _directions(n: int) -> np.ndarray:
    return np.cos(1.0 + 1.7 * np.arange(n))  # no two entries weigh the same


@cache
def fingerprints() -> dict[str, dict[str, list[Any]]]:
    if not FINGERPRINTS.is_file():
        return {}
    found: dict[str, dict[str, list[Any]]] = json.loads(FINGERPRINTS.read_text(encoding="utf-8"))
    return found


def wrong_tensors(grade: Grade) -> dict[str, np.ndarray]:
    """The compared tensors that are wrong."""
    wrong = {f.tensor for f in grade.findings if f.kind not in PRECISION}
    wrong = wrong or {f.tensor for f in grade.findings}  # or what seems to be rounding alone
    return {
        name: a
        for name, a in grade.found.items()
        # "z of the first of two calls" is reported as z, and the other one of the two may be right
        if name.split(" ")[0] in wrong and not grade.errors[name] < 1e-12
    }


def matches(
    check: Check, seen: Grade, prints: Mapping[str, Mapping[str, list[Any]]] | None = None
) -> tuple[list[str], float]:
    """The bugs that give the numbers of the first wrong tensor of `seen`, in this check, and only
    those that agree in all tensors if there are any; and how far off the nearest's numbers are.

    Numbers are a bug's only as far as their precision tells: to float64's rounding, or to float32's
    where they are in float32 and much farther from the right ones. What many a mistake gives (zeros
    all over, one number, infinities) is a bug's only with another wrong tensor that tells more.
    `prints`: instead of those in `FINGERPRINTS`."""
    wrong = wrong_tensors(seen)
    if not wrong:
        return [], 0.0
    first = next(iter(wrong))
    found = dict[str, Mapping[str, np.ndarray]]()  # bug -> its numbers
    for name, (tensor, print_) in (prints or fingerprints()).get(check.id, {}).items():
        if tensor == first and (seen.given or _may_be(wrong[first], print_)):
            numbers = _numbers(check, name, seen)
            if first in numbers:
                found[name] = numbers
    if not _tells(wrong[first]):
        telling = [tensor for tensor, a in wrong.items() if _tells(a)]
        far = IN_DOUBLE
        found = {n: a for n, a in found.items() if telling and _agrees(a, seen, far)}
        first = telling[0] if telling else first
    else:
        far = _farthest(seen, first)
    distances = {name: _distance(a[first], wrong[first]) for name, a in found.items()}
    nearest = min(distances.values(), default=math.inf)
    if not nearest <= far:
        return [], 0.0
    close = IN_DOUBLE if nearest <= IN_DOUBLE else far
    near = [name for name, d in distances.items() if d <= min(far, max(IN_DOUBLE, 10 * nearest))]
    whole = [name for name in near if _agrees(found[name], seen, close)]
    return whole or near, nearest


def _numbers(check: Check, name: str, seen: Grade) -> Mapping[str, np.ndarray]:
    """The numbers that a bug gives: on those that asarray made, where it rounds."""
    if seen.given is not None:
        functions = {n: f for n, f in vars(planted(name).functions).items() if callable(f)}
        own = types.SimpleNamespace(**functions | {"asarray": seen.given})
        on_given = Implementation(own, name, in_a_hurry=True)
        return check.collect(on_given).found
    if (check.id, name) not in _SEEN:
        _SEEN[check.id, name] = check.collect(planted(name)).found
    return _SEEN[check.id, name]


def _farthest(seen: Grade, tensor: str) -> float:
    """How far a bug's numbers of this tensor may be from these."""
    rounding, error = seen.rounding(tensor), seen.errors[tensor]
    # those that are as near to the right ones are no bug, and rounding may resemble one by chance
    mere = all(f.kind in PRECISION for f in seen.findings)
    in_single = is_held(PRECISIONS["float32"][0], seen.found[tensor]) or any(
        1e-12 < seen.errors[name] <= seen.rounding(name) for name in seen.found
    )
    most = min(max(IN_SINGLE, rounding), 1e-3) if in_single and not mere else IN_DOUBLE
    return min(most, NEARER * error)


def _tells(a: np.ndarray) -> bool:
    """Whether few mistakes give these numbers: they are finite, and not one and the same."""
    if not a.size or not np.isfinite(a).all():
        return False
    return bool(a.any() if a.size == 1 else (a != a.flat[0]).any())


#: how far apart equal numbers may be, relative to the largest
IN_DOUBLE, IN_SINGLE = 1e-9, 1e-5

#: a bug's numbers are at most this part of the way to the right ones
NEARER = 0.1


def _agrees(numbers: Mapping[str, np.ndarray], seen: Grade, close: float) -> bool:
    """Whether the tensors that both have are equal."""
    common = [n for n in numbers if n in seen.found and not n.startswith("cache.")]
    return all(
        _distance(numbers[n], seen.found[n]) <= close
        or (not np.isfinite(seen.found[n]).all() and _alike(numbers[n], seen.found[n]))
        for n in common
    )


def _alike(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether the same numbers of both are not finite."""
    return a.shape == b.shape and np.array_equal(np.isfinite(a), np.isfinite(b))


def _may_be(a: np.ndarray, print_: float | None) -> bool:
    mine = fingerprint(a)
    if mine is None or print_ is None:
        return mine is print_
    scale = float(np.abs(a).sum()) or 1.0
    return abs(mine - print_) < 1e-4 * scale


def _distance(a: np.ndarray, b: np.ndarray) -> float:
    if a.shape != b.shape:
        return math.inf
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return math.inf  # infinities are alike whatever made them
    return relative_error(b, a)
