"""Vectors for other languages: the cases of the suite as files, and grades for what a program wrote
beside them.

    minprefix vectors write DIR     index.json, index.schema.json, cases/*.safetensors
    (your program)                  outputs/*.safetensors, named as the cases that it answers
    minprefix vectors check DIR     the same tolerances and the same diagnosis as `minprefix check`

A case's file holds `input.NAME` and `expected.NAME`; the outputs hold `NAME`. A list of one array
for each sequence is `NAME[0]`, `NAME[1]`, ... Numbers are little-endian and row-major, integers
int64. What a program leaves out is not implemented, and no failure. The caches are among the
expected: a program that has only a backward starts from `expected.cache.*`.
"""

import argparse
import difflib
import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load, save
from tqdm import tqdm

from minprefix import __version__
from minprefix.conformance import report, suite, zoo
from minprefix.conformance.check import Check, Finding, Grade, Result, errors_in_single
from minprefix.conformance.contract import FUNCTIONS, LEVELS
from minprefix.conformance.implementation import Implementation
from minprefix.conformance.vector_cases import (
    BLOCKS,
    NOTES,
    SYMBOLS,
    VectorCase,
    all_cases,
    block_check,
)
from minprefix.errors import InputError, counted
from minprefix.ops.contract import Array
from minprefix.storage import files

FORMAT, VERSION = "minprefix-vectors", 1
INDEX, SCHEMA, OUTPUTS = "index.json", "index.schema.json", "outputs"

# ---- write --------------------------------------------------------------------------------------

#: findings that show in the numbers of a file; a bug that only writes into its arguments does not
_IN_NUMBERS = ("value", "shape", "dtype", "not finite")


def caught_by(check: Check) -> list[str]:
    """The bugs of the zoo whose numbers this check fails: those that have a fingerprint there. A
    block, of which the suite has no check, is tried with every bug."""
    if (known := zoo.fingerprints().get(check.id)) is not None:
        return [name for name in zoo.all_bugs() if name in known]
    caught = []
    for name, bug in zoo.all_bugs().items():
        if not zoo.affects(bug, check):
            continue
        findings = check.collect(zoo._planted(name)).findings
        if any(finding.kind in _IN_NUMBERS for finding in findings):
            caught.append(name)
    return caught


def write(
    folder: Path, only: Sequence[str] = (), catches: Callable[[Check], list[str]] = caught_by
) -> list[str]:
    """The cases that `only` names (empty: all) into an empty folder or over earlier vectors; the
    same bytes each time. -> their ids.

    Outputs that a program wrote are left where they are. Raises InputError for a folder that holds
    something else.
    """
    chosen = _named(all_cases(), only)
    _claim(folder)
    head: dict[str, Any] = {
        "$schema": SCHEMA,
        "format": FORMAT,
        "version": VERSION,
        "minprefix": __version__,
        "symbols": SYMBOLS,
        "notes": NOTES,
    }
    # what a kill leaves is known as vectors, and as unfinished ones
    files.write_text(folder / INDEX, _laid_out(head | {"bugs": {}, "cases": []}) + "\n")
    files.write_text(folder / SCHEMA, schema())
    entries = []
    for id_, make in chosen.items():
        case, path = make(), f"cases/{file_name(id_)}"
        data = _bytes(case)
        files.write_bytes(folder / path, data)
        where = {
            "file": path,
            "sha256": hashlib.sha256(data).hexdigest(),
            "outputs": f"{OUTPUTS}/{file_name(id_)}",
        }
        entries.append(_entry(case, catches(case.check), where))
    named = {bug for entry in entries for bug in entry["catches"]}
    lessons = {name: bug.lesson for name, bug in zoo.all_bugs().items() if name in named}
    files.write_text(folder / INDEX, _laid_out(head | {"bugs": lessons, "cases": entries}) + "\n")
    kept = {entry["file"] for entry in entries}
    for old in (folder / "cases").glob("*.safetensors"):  # of earlier vectors
        if f"cases/{old.name}" not in kept:
            old.unlink()
    return list(chosen)


def _bytes(case: VectorCase) -> bytes:
    tensors = {f"input.{n}": t.array for n, t in case.inputs.items()}
    tensors |= {f"expected.{n}": t.array for n, t in case.expected.items()}
    # one entry of metadata: the library does not keep the order of several
    whole = {n: np.asarray(a, order="C") for n, a in tensors.items()}
    return save(whole, {"case": case.check.id})


def _entry(case: VectorCase, catches: list[str], where: Mapping[str, str]) -> dict[str, Any]:
    return {
        "id": case.check.id,
        "level": case.check.level,
        "op": case.check.op,
        "why": case.check.why,
        "catches": catches,
        **where,
        "tolerance": case.tolerance,
        "settings": dict(case.settings),
        "dimensions": dict(case.dimensions),
        "inputs": {n: t.about() for n, t in case.inputs.items()},
        "expected": {n: t.about() for n, t in case.expected.items()},
    }


def _laid_out(value: Any, depth: int = 0) -> str:
    """JSON with one line for each tensor."""
    start = "\n" + "  " * (depth + 1)
    if depth < 4 and isinstance(value, dict) and value:
        inner = [f"{json.dumps(k)}: {_laid_out(v, depth + 1)}" for k, v in value.items()]
        return "{" + start + f",{start}".join(inner) + start[:-2] + "}"
    if isinstance(value, list) and value and isinstance(value[0], dict):
        inner = [_laid_out(v, depth + 1) for v in value]
        return "[" + start + f",{start}".join(inner) + start[:-2] + "]"
    return json.dumps(value)


def file_name(case: str) -> str:
    """`attention/usual` as `attention.usual.safetensors`."""
    return case.replace("/", ".") + ".safetensors"


def schema() -> str:
    """The JSON Schema (2020-12) of the index."""
    return (
        resources.files("minprefix.conformance")
        .joinpath("vectors.schema.json")
        .read_text(encoding="utf-8")
    )


def _named(cases: Mapping[str, Any], only: Sequence[str]) -> dict[str, Any]:
    """Those whose op, level, id or part of an id is one of `only`, as `minprefix check` selects."""

    def level(id_: str) -> str:
        op = id_.partition("/")[0]
        return "ops" if op in FUNCTIONS else "training" if op == "training" else "model"

    for word in only:
        if not word or not any(word in i or word == level(i) for i in cases):
            names = ", ".join(dict.fromkeys(i.partition("/")[0] for i in cases))
            raise InputError(f"--only {word!r} names no case: expected one of {names}, or an id")
    return {
        i: c
        for i, c in cases.items()
        if not only or any(word in i or word == level(i) for word in only)
    }


def _claim(folder: Path) -> None:
    """Make the folder. Raises InputError if it holds something that is no vectors."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file: give a folder for the vectors")
    held = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
    if held:
        try:
            ours = files.read_json(folder / INDEX, "the index").get("format") == FORMAT
        except InputError:
            ours = False
        if not ours:
            some = ", ".join(held[:3]) + (", ..." if len(held) > 3 else "")
            raise InputError(
                f"{folder} holds other things ({some}): give an empty folder, or one with earlier "
                "vectors"
            )
    for name in ("cases", OUTPUTS):  # empty outputs: C99 itself cannot make a folder
        (folder / name).mkdir(parents=True, exist_ok=True)


# ---- check --------------------------------------------------------------------------------------


def check(
    folder: Path, only: Sequence[str] = (), with_zoo: bool = True, progress: bool = False
) -> list[Result]:
    """What a program wrote into `outputs`, graded; `progress`: with a bar on a terminal. Raises
    InputError if the vectors themselves are damaged or of another version, and if there is no
    output to grade."""
    entries = _named(_read_index(folder), only)
    everything = [Path(e["outputs"]).name for e in _read_index(folder).values()]
    outputs = folder / OUTPUTS
    written = {p.name for p in outputs.glob("*.safetensors")} if outputs.is_dir() else set[str]()
    for name in sorted(written - set(everything)):
        raise InputError(f"{outputs / name} belongs to no case{_meant(name, everything)}")
    if not any(Path(e["outputs"]).name in written for e in entries.values()):
        example = next(iter(entries.values()))["outputs"]
        which = "" if not only else f" of the cases that --only {' '.join(only)} names"
        raise InputError(
            f"{outputs} holds no outputs{which}: write, say, {folder / example} with your "
            "program, then check again"
        )
    results, keeper = [], suite.Zookeeper()
    quiet = None if progress else True
    for entry in tqdm(entries.values(), unit="case", leave=False, disable=quiet):
        check_ = _check_of(entry)
        results.append(_grade(folder, entry, check_, with_zoo and keeper.wanted(check_)))
        keeper.saw(results[-1])
    graded = {r.op for r in results if r.status != "not implemented"}
    for r in results:
        whole = [n for n in r.not_implemented if n == r.op and n in graded]
        r.not_implemented = [f"{n} in some cases" if n in whole else n for n in r.not_implemented]
    return results


def _meant(name: str, names: Sequence[str]) -> str:
    lower = {each.lower(): each for each in names}
    close = difflib.get_close_matches(name.lower(), lower, 1)
    if close:
        return f": is {lower[close[0]]} meant?"
    return f": expected {', '.join(names[:8])}" + (", ..." if len(names) > 8 else "")


def _read_index(folder: Path) -> dict[str, dict[str, Any]]:
    """id -> entry, each with all that is read below."""
    path, again = folder / INDEX, "write the vectors again"
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder: expected one that `minprefix vectors write` made")
    if not path.exists():
        raise InputError(f"{path} does not exist: write the vectors with `minprefix vectors write`")
    index = files.read_json(path, "the index of the vectors")
    if index.get("format") != FORMAT:
        raise InputError(f"{path} has format {index.get('format')!r}, expected {FORMAT!r}: {again}")
    if index.get("version") != VERSION or isinstance(index.get("version"), bool):
        raise InputError(
            f"{path} has version {index.get('version')!r}, this minprefix reads {VERSION}: {again}"
        )
    cases = index.get("cases")
    if not isinstance(cases, list) or not cases:
        raise InputError(f"{path} lists no cases: writing was interrupted, {again}")
    found: dict[str, dict[str, Any]] = {}
    for i, entry in enumerate(cases):
        where = f"case {i}"
        for key, kind in _READ.items():
            value = entry.get(key) if isinstance(entry, dict) else None
            if not isinstance(value, kind) or value == "":
                raise InputError(f"{path}: {where} has {key} {value!r}: it is damaged, {again}")
            where = f"case {entry['id']!r}"
        for name, about in entry["expected"].items():
            if not isinstance(about, dict) or not _said(about):
                raise InputError(
                    f"{path}: {where} does not say what {name} is: it is damaged, {again}"
                )
        sizes, tolerance = entry["dimensions"].values(), entry["tolerance"]
        if not 0 < tolerance < 1 or not all(isinstance(n, int) for n in sizes):
            raise InputError(
                f"{path}: {where} has tolerance {tolerance!r} and dimensions "
                f"{entry['dimensions']!r}: expected numbers; it is damaged, {again}"
            )
        if entry["level"] not in LEVELS:
            raise InputError(f"{path}: {where} is of level {entry['level']!r}: expected {LEVELS}")
        found[entry["id"]] = entry
    return found


def _said(about: Mapping[str, Any]) -> bool:
    return all(isinstance(about.get(key), str) for key in ("axes", "function"))


#: what `check` reads of an entry, the id first
_READ: dict[str, type | tuple[type, ...]] = {
    "id": str,
    "level": str,
    "op": str,
    "file": str,
    "sha256": str,
    "outputs": str,
    "tolerance": (int, float),
    "dimensions": dict,
    "inputs": dict,
    "expected": dict,
}


def _read_vectors(folder: Path, entry: Mapping[str, Any]) -> dict[str, Array]:
    path, again = folder / entry["file"], "write the vectors again"
    if not path.is_file():
        raise InputError(f"{path} does not exist, and {INDEX} names it: {again}")
    data = path.read_bytes()
    try:
        tensors = load(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise InputError(f"{path} is truncated or damaged ({error}): {again}") from error
    for kind, of_kind in (("input", "inputs"), ("expected", "expected")):
        for name in entry[of_kind]:
            if f"{kind}.{name}" not in tensors:
                raise InputError(f"{path} lacks tensor {kind}.{name}: {again}")
    if hashlib.sha256(data).hexdigest() != entry["sha256"]:
        raise InputError(f"{path} is not the file that {INDEX} describes (sha256): {again}")
    return tensors


def _grade(folder: Path, entry: Mapping[str, Any], check_: Check, with_zoo: bool) -> Result:
    vectors = _read_vectors(folder, entry)
    grade = Grade(in_single=partial(errors_in_single, check_.run))
    path = folder / entry["outputs"]
    if not path.exists():
        grade.not_implemented.append(entry["op"])
        return check_.result(grade)
    try:
        found = _read_outputs(path, entry, grade)
    except (SafetensorError, OSError, ValueError) as error:
        said = f"{path} cannot be read as safetensors ({error}): was it written to its end?"
        grade.findings.append(Finding(entry["op"], "", "unreadable", said))
    else:
        with np.errstate(all="ignore"):  # what overflows is found in the numbers
            _compare(folder, entry, found, vectors, grade)
    for finding in grade.findings:
        finding.reproducer = finding.reproducer or (
            f"from safetensors.numpy import load_file\nprint(*load_file({str(path)!r}))"
        )
    result = check_.result(grade)
    if with_zoo and result.status == "failed" and grade.found:
        result.zoo, result.zoo_distance = zoo.matches(check_, grade)
    return result


def _compare(
    folder: Path,
    entry: Mapping[str, Any],
    found: Mapping[str, Array],
    vectors: Mapping[str, Array],
    grade: Grade,
) -> None:
    """Every tensor that was written, with the one that is expected."""
    expected = {name: vectors[f"expected.{name}"] for name in entry["expected"]}
    offsets = vectors.get("input.offsets")
    given, left_out = {name.split("[")[0] for name in found}, list[str]()
    for name, about in entry["expected"].items():
        want = expected[name]
        if name in grade.errors:  # of a type that cannot be compared
            continue
        if name not in found:
            if "[" in name and name.split("[")[0] in given:
                said = f"{folder / entry['outputs']} lacks {name}: expected one for each sequence"
                grade.findings.append(Finding(about["function"], name, "missing", said))
            else:
                left_out.append(name)
            continue
        grade.compare(
            about["function"],
            name,
            found[name],
            want,
            float(entry["tolerance"]),
            about["axes"],
            entry["dimensions"],
            {n: a for n, a in expected.items() if _neighbours(entry["level"], n, name)},
            None if offsets is None else [int(o) for o in offsets],
            str(want.dtype) if entry["level"] == "ops" and want.dtype.kind == "f" else None,
            _reproducer(folder, entry, name),
        )
    if left_out:
        grade.not_implemented.append(f"{_summed_up(left_out)} of {entry['op']}")


def _summed_up(names: Sequence[str], most: int = 6) -> str:
    """`blocks.0.attn.pattern[1]` and its like in other blocks and sequences as one; caches last."""
    names = sorted(names, key=lambda name: name.startswith("cache."))
    kinds = list(dict.fromkeys(re.sub(r"\.\d+\b", ".*", re.sub(r"\d+\]", "]", n)) for n in names))
    more = len(kinds) - most
    return ", ".join(kinds[:most]) + (f" and {more} more" if more > 0 else "")


def _neighbours(level: str, other: str, name: str) -> bool:
    """What may have been swapped for `name`."""
    if level == "ops":
        return not other.startswith("cache.")
    return other.split(".")[0] == name.split(".")[0]


def _read_outputs(path: Path, entry: Mapping[str, Any], grade: Grade) -> dict[str, Array]:
    """The tensors that the case has, by name; what is wrong with the others is noted in `grade`."""
    found: dict[str, Array] = {}
    names = list(entry["expected"])
    with safe_open(path, "np") as f:
        for name in f.keys():  # noqa: SIM118  it is no dict
            if name not in names:
                said = f"{path}: {name} is no tensor of {entry['id']}{_meant(name, names)}"
                grade.findings.append(Finding(entry["op"], name, "missing", said))
                continue
            kind = f.get_slice(name).get_dtype()
            if kind not in _KINDS:
                said = f"{path}: {name} is {kind}, expected one of {', '.join(_KINDS)}"
                function = entry["expected"][name]["function"]
                grade.findings.append(Finding(function, name, "dtype", said))
                grade.errors[name] = float("inf")
                continue
            found[name] = f.get_tensor(name)
    return found


#: safetensors' names of what can be compared
_KINDS = ("F64", "F32", "F16", "I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8")


def _check_of(entry: Mapping[str, Any]) -> Check:
    """The check of this very case, by which the zoo runs; one that this minprefix does not know
    any more fits no bug."""
    id_ = entry["id"]
    if id_ in suite.all_checks():
        return suite.all_checks()[id_]
    if id_.startswith("block/") and id_[6:] in BLOCKS:
        return block_check(id_[6:])

    def run(implementation: Implementation, grade: Grade) -> None:
        """Nothing to compare with."""

    return Check(id_, entry["level"], entry["op"], str(entry.get("why", "")), run)


def _reproducer(folder: Path, entry: Mapping[str, Any], tensor: str) -> str:
    """A few lines that show both when they are pasted into Python."""
    outputs, vectors = str(folder / entry["outputs"]), str(folder / entry["file"])
    return "\n".join(
        (
            "from safetensors.numpy import load_file",
            f'print(load_file({outputs!r})["{tensor}"])',
            f'print(load_file({vectors!r})["expected.{tensor}"])',
        )
    )


# ---- the commands -------------------------------------------------------------------------------


def write_command(args: argparse.Namespace) -> int:
    # every bug of the zoo runs through every case: that takes minutes
    n = len(_named(all_cases(), args.only or ()))
    with tqdm(total=n, unit="case", leave=False, disable=None) as bar:

        def caught(check_: Check) -> list[str]:
            bar.set_description(check_.id)
            found = caught_by(check_)
            bar.update()
            return found

        ids = write(args.folder, args.only or (), caught)
    size = sum(path.stat().st_size for path in (args.folder / "cases").iterdir())
    print(
        f"{counted(len(ids), 'case')}, {size / 1e6:.1f} MB, written to {args.folder}: {INDEX} says "
        f"what they are\nWrite what your program gives into {args.folder / OUTPUTS}, then: "
        f"minprefix vectors check {args.folder}"
    )
    return 0


def check_command(args: argparse.Namespace) -> int:
    """-> 0 if everything that was written passed, 1 if not or if nothing could be graded."""
    results = check(args.folder, args.only or (), progress=True)
    return report.show(results, str(args.folder), args.all, args.json)
