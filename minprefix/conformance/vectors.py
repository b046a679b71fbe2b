"""Vectors for other languages: the cases of the suite as files, and grades for what a program wrote
beside them.

    minprefix vectors write DIR     index.json, index.schema.json, cases/*.safetensors
    (your program)                  outputs/*.safetensors, named as the cases that it answers
    minprefix vectors check DIR     the same tolerances and the same diagnosis as `minprefix check`

A case's file holds `input.NAME` and `expected.NAME`; the outputs hold `NAME`. A list of one array
for each sequence is `NAME[0]`, `NAME[1]`, ... Numbers are little-endian and row-major, integers
int64. A tensor that a program leaves out is not implemented, which is no failure. The caches are
among the expected: a program that has only a backward starts from `expected.cache.*`.
"""

import difflib
import hashlib
import json
import re
import reprlib
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cache, partial
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load, save
from tqdm import tqdm

from minprefix import __version__
from minprefix.conformance import suite, zoo
from minprefix.conformance.check import Check, Expected, Grade, Result, reference_in
from minprefix.conformance.contract import LEVELS, level_of
from minprefix.conformance.vector_cases import BLOCKS, VectorCase, all_cases, block_check
from minprefix.errors import InputError
from minprefix.ops.contract import Array
from minprefix.storage.reading import read_json
from minprefix.storage.writing import write_bytes, write_text

FORMAT, VERSION = "minprefix-vectors", 2
READS = (1, VERSION)  # version 2 has more cases; a file of one is laid out alike in both
INDEX, SCHEMA, OUTPUTS = "index.json", "index.schema.json", "outputs"

# ---- write --------------------------------------------------------------------------------------

#: findings that show in the numbers of a file; a bug that only writes into its arguments does not
_IN_NUMBERS = ("value", "shape", "dtype", "not finite")


def caught_by(check: Check) -> list[str]:
    """The bugs of the zoo whose numbers this check fails: those that have a fingerprint there. A
    block, of which the suite has no check, is tried with every bug."""
    if (known := zoo.fingerprints().get(check.id)) is not None:
        return [name for name in zoo.all_bugs() if name in known]

    def shows(name: str) -> bool:
        findings = check.collect(zoo.planted(name)).findings
        return any(finding.kind in _IN_NUMBERS for finding in findings)

    return [name for name, bug in zoo.all_bugs().items() if zoo.affects(bug, check) and shows(name)]


def write(
    folder: Path, only: Sequence[str] = (), catches: Callable[[Check], list[str]] = caught_by
) -> list[str]:
    """The cases that `only` names (empty: all) into an empty folder or over earlier vectors; the
    same bytes each time. -> their ids.

    Outputs that a program wrote are left where they are. Raises InputError for a folder that holds
    something else.
    """
    cases = all_cases()
    ids = chosen(cases, only)
    _claim(folder)
    head = {"$schema": SCHEMA, "format": FORMAT, "version": VERSION, "minprefix": __version__}
    head |= json.loads(_beside("vectors.notes.json"))
    # a kill leaves a folder that is known as vectors, and as unfinished ones
    write_text(folder / INDEX, _laid_out(head | {"bugs": {}, "cases": []}) + "\n")
    write_text(folder / SCHEMA, _beside("vectors.schema.json"))
    made = (cases[id_]() for id_ in ids)
    entries = [_write_case(folder, case, catches(case.check)) for case in made]
    named = {bug for entry in entries for bug in entry["catches"]}
    lessons = {name: bug.lesson for name, bug in zoo.all_bugs().items() if name in named}
    write_text(folder / INDEX, _laid_out(head | {"bugs": lessons, "cases": entries}) + "\n")
    kept = {folder / entry["file"] for entry in entries}
    for old in set((folder / "cases").glob("*.safetensors")) - kept:  # of earlier vectors
        old.unlink()
    return ids


def _write_case(folder: Path, case: VectorCase, catches: list[str]) -> dict[str, Any]:
    """-> the case's entry of the index."""
    check, name = case.check, file_name(case.check.id)
    tensors = {f"input.{n}": np.asarray(t.array, order="C") for n, t in case.inputs.items()}
    tensors |= {f"expected.{n}": np.asarray(t.array, order="C") for n, t in case.expected.items()}
    # one entry of metadata: the library does not keep the order of several
    data = save(tensors, {"case": check.id})
    write_bytes(folder / "cases" / name, data)
    return {
        **{key: getattr(check, key) for key in ("id", "level", "op", "why")},
        "catches": catches,
        "file": f"cases/{name}",
        "sha256": hashlib.sha256(data).hexdigest(),
        "outputs": f"{OUTPUTS}/{name}",
        "tolerance": case.tolerance,
        "settings": dict(case.settings),
        "dimensions": {letter: int(n) for letter, n in case.dimensions.items()},
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


def _beside(name: str) -> str:
    """The text of a file of this package: the JSON Schema (2020-12) of the index, or what the index
    says of symbols and names."""
    return resources.files("minprefix.conformance").joinpath(name).read_text(encoding="utf-8")


def chosen(ids: Collection[str], only: Sequence[str]) -> list[str]:
    """Those of the ids that `only` names, as `minprefix check` selects. Raises InputError."""
    return suite.named({id_: level_of(id_.partition("/")[0]) for id_ in ids}, only, "case")


def _claim(folder: Path) -> None:
    """Make the folder. Raises InputError if it holds something that is no vectors."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file: give a folder for the vectors")
    held = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
    if held:
        try:
            ours = read_json(folder / INDEX, "the index").get("format") == FORMAT
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
    """Grades for the tensors that a program wrote into `outputs`; `progress`: with a bar on a
    terminal. Raises InputError if the vectors themselves are damaged or of another version, and if
    there is no output to grade."""
    index = _read_index(folder)
    entries = [index[id_] for id_ in chosen(index, only)]
    everything = [Path(e["outputs"]).name for e in index.values()]
    outputs = folder / OUTPUTS
    written = {p.name for p in outputs.glob("*.safetensors")}  # none where there is no folder
    for name in sorted(written - set(everything)):
        raise InputError(f"{outputs / name} belongs to no case{_meant(name, everything)}")
    if not any(Path(e["outputs"]).name in written for e in entries):
        example = entries[0]["outputs"]
        which = "" if not only else f" of the cases that --only {' '.join(only)} names"
        raise InputError(
            f"{outputs} holds no outputs{which}: write, say, {folder / example} with your "
            "program, then check again"
        )
    results, keeper = [], suite.Zookeeper()
    for entry in tqdm(entries, unit="case", leave=False, disable=None if progress else True):
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
    index = read_json(path, "the index of the vectors")
    if index.get("format") != FORMAT:
        raise InputError(f"{path} has format {index.get('format')!r}, expected {FORMAT!r}: {again}")
    version = index.get("version")
    if version not in READS or isinstance(version, bool):
        known = " and ".join(map(str, READS))
        raise InputError(f"{path} has version {version!r}, this minprefix reads {known}: {again}")
    cases = index.get("cases")
    if not isinstance(cases, list) or not cases:
        raise InputError(f"{path} lists no cases: writing was interrupted, {again}")
    found: dict[str, dict[str, Any]] = {}
    for i, entry in enumerate(cases):
        where = f"case {i}"
        for key, fits in _READ.items():
            value = entry.get(key) if isinstance(entry, dict) else None
            if not fits(value):
                said = f"{path}: {where} has {key} {reprlib.repr(value)}"
                raise InputError(f"{said}: it is damaged, {again}")
            where = f"case {entry['id']!r}"
        found[entry["id"]] = entry
    return found


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value != ""


#: the keys of an entry that `check` reads, the id first -> whether a value will do
_READ: dict[str, Callable[[Any], bool]] = {
    "id": _is_text,
    "level": LEVELS.__contains__,
    **dict.fromkeys(("op", "file", "sha256", "outputs"), _is_text),
    "tolerance": lambda t: isinstance(t, float) and 0 < t < 1,
    "dimensions": lambda d: isinstance(d, dict) and all(isinstance(n, int) for n in d.values()),
    "inputs": lambda d: isinstance(d, dict),
    "expected": lambda d: isinstance(d, dict) and all(map(_is_about, d.values())),
}


def _is_about(about: Any) -> bool:
    return isinstance(about, dict) and all(
        isinstance(about.get(key), str) for key in ("axes", "function")
    )


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
    grade = Grade(reference_in=cache(partial(reference_in, check_.run)))
    path = folder / entry["outputs"]
    if not path.exists():
        grade.not_implemented.append(entry["op"])
        return check_.result(grade)
    try:
        found = _read_outputs(path, entry, grade)
    except (SafetensorError, OSError, ValueError) as error:
        said = f"{path} cannot be read as safetensors ({error}): was it written to its end?"
        grade.say("unreadable", entry["op"], "", said)
    else:
        with np.errstate(all="ignore"):  # an overflow shows in the numbers
            _compare(folder, entry, found, vectors, grade)
    for finding in grade.findings:
        finding.reproducer = finding.reproducer or (
            f"from safetensors.numpy import load_file\nprint(*load_file({str(path)!r}))"
        )
    return suite.judged(check_, grade, with_zoo)


def _compare(
    folder: Path,
    entry: Mapping[str, Any],
    found: Mapping[str, Array],
    vectors: Mapping[str, Array],
    grade: Grade,
) -> None:
    """Every tensor that was written, with the one that is expected."""
    level, offsets = entry["level"], vectors.get("input.offsets")
    boundaries = None if offsets is None else offsets.tolist()
    wanted = {name: vectors[f"expected.{name}"] for name in entry["expected"]}
    expected = Expected(wanted, entry["tolerance"], entry["dimensions"], boundaries, level)
    given, left_out = {name.split("[")[0] for name in found}, list[str]()
    for name, about in entry["expected"].items():
        want, function = expected.tensors[name], about["function"]
        if name in found:
            dtype = str(want.dtype) if level == "ops" and want.dtype.kind == "f" else None
            paste = _reproducer(folder, entry, name)
            grade.compare(function, name, found[name], expected, about["axes"], dtype, paste)
        elif "[" in name and name.split("[")[0] in given:
            said = f"{folder / entry['outputs']} lacks {name}: expected one for each sequence"
            grade.say("missing", function, name, said)
        elif name not in grade.errors:  # those are of a type that cannot be compared
            left_out.append(name)
    if left_out:
        grade.not_implemented.append(f"{_summed_up(left_out)} of {entry['op']}")


def _summed_up(names: Sequence[str], most: int = 6) -> str:
    """`blocks.0.attn.pattern[1]` and its like in other blocks and sequences as one; caches last."""
    names = sorted(names, key=lambda name: name.startswith("cache."))
    kinds = list(dict.fromkeys(re.sub(r"\.\d+\b", ".*", re.sub(r"\d+\]", "]", n)) for n in names))
    more = len(kinds) - most
    return ", ".join(kinds[:most]) + (f" and {more} more" if more > 0 else "")


def _read_outputs(path: Path, entry: Mapping[str, Any], grade: Grade) -> dict[str, Array]:
    """The tensors that the case has, by name; others are noted in `grade`."""
    found: dict[str, Array] = {}
    names = list(entry["expected"])
    with safe_open(path, "np") as f:
        for name in f.keys():  # noqa: SIM118  it is no dict
            if name not in names:
                said = f"{path}: {name} is no tensor of {entry['id']}{_meant(name, names)}"
                grade.say("missing", entry["op"], name, said)
                continue
            kind = f.get_slice(name).get_dtype()
            if kind not in _KINDS:
                said = f"{path}: {name} is {kind}, expected one of {', '.join(_KINDS)}"
                grade.say("dtype", entry["expected"][name]["function"], name, said)
                grade.errors[name] = float("inf")
                continue
            found[name] = f.get_tensor(name)
    return found


#: safetensors' names of the types that can be compared
_KINDS = ("F64", "F32", "F16", "I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8")


def _check_of(entry: Mapping[str, Any]) -> Check:
    """The check of this case, for the zoo; a case that this minprefix no longer knows fits no
    bug."""
    id_ = entry["id"]
    if id_ in suite.all_checks():
        return suite.all_checks()[id_]
    if id_.startswith("block/") and id_[6:] in BLOCKS:
        return block_check(id_[6:])
    return Check(id_, str(entry.get("why", "")), lambda implementation, grade: None)


def _reproducer(folder: Path, entry: Mapping[str, Any], tensor: str) -> str:
    """A few lines to paste into Python that leave both in `got` and `want`."""
    outputs, vectors = str(folder / entry["outputs"]), str(folder / entry["file"])
    return (
        "from safetensors.numpy import load_file\n"
        f'got = load_file({outputs!r})["{tensor}"]\n'
        f'want = load_file({vectors!r})["expected.{tensor}"]'
    )
