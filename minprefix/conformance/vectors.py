"""Vectors for other languages: the cases of the suite as files, and grades for what a program wrote
beside them.

    minprefix vectors write DIR     index.json, index.schema.json, cases/*.safetensors
    (your program)                  outputs/*.safetensors, named as the cases that it answers
    minprefix vectors check DIR     the same tolerances and the same diagnosis as `minprefix check`

A case's file holds `input.NAME` and `expected.NAME`; the outputs hold `NAME`. A list of one array
for each sequence is `NAME[0]`, `NAME[1]`, ... Numbers are little-endian and row-major, integers
int64. What a program leaves out is not implemented, and no failure. The caches are among the
expected: a program that has only a backward starts from `expected.cache.*`.

A file has no strides, so the cases whose inputs do not lie in one piece are left out: their numbers
are those of `usual`.
"""

import difflib
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load, save

from minprefix import __version__, files
from minprefix.conformance import suite, zoo
from minprefix.conformance.cases import axes as axes_of
from minprefix.conformance.check import Check, Finding, Grade, Result
from minprefix.conformance.contract import (
    FUNCTIONS,
    ModelProblem,
    TrainingProblem,
    model_tensors,
    training_tensors,
)
from minprefix.conformance.implementation import Broken, Implementation
from minprefix.conformance.model_checks import MODEL_CASES, SMALL, TRAINING_CASES, weights_of
from minprefix.conformance.model_checks import TOLERANCE as MODEL_TOLERANCE
from minprefix.conformance.model_checks import (
    expected_decoding,
    expected_model,
    expected_training,
    model_case,
    training_case,
)
from minprefix.conformance.op_checks import CASES, case_of
from minprefix.conformance.op_checks import TOLERANCE as OP_TOLERANCE
from minprefix.conformance.record import Recorder
from minprefix.errors import InputError
from minprefix.gpt2 import Config, block_backward, block_forward
from minprefix.ops import reference
from minprefix.ops.contract import Array

FORMAT, VERSION = "minprefix-vectors", 1
INDEX, SCHEMA, OUTPUTS = "index.json", "index.schema.json", "outputs"
#: as `training_checks` grades
TRAINING_TOLERANCE = 1e-8

SYMBOLS = {
    "N": "tokens of all sequences, one after the other: sequence b is offsets[b] to offsets[b+1]-1",
    "B": "sequences",
    "T": "length of one sequence",
    "P": "slots of a prefix",
    "L": "layers",
    "NH": "heads",
    "hs": "head size",
    "C": "width, NH * hs",
    "F": "hidden width of the MLP",
    "V": "vocabulary",
    "M": "targets",
    "in": "inputs of a linear layer",
    "out": "outputs of a linear layer",
    "n_positions": "positions",
    "?": "an axis of a parameter, as in the checkpoint",
}

#: op -> input -> its axes
INPUTS: dict[str, dict[str, str]] = {
    "embed": {
        "tokens": "N",
        "positions": "N",
        "wte": "V C",
        "wpe": "n_positions C",
        "dx": "N C",
    },
    "layernorm": {"x": "N C", "gain": "C", "bias": "C", "dout": "N C"},
    "linear": {"x": "N in", "weight": "in out", "bias": "out", "dout": "N out"},
    "gelu": {"x": "N F", "dout": "N F"},
    "attention": {n: "N NH hs" for n in ("q", "k", "v", "dz")}
    | {"prefix_k": "NH P hs", "prefix_v": "NH P hs", "offsets": "B+1"},
    "cross_entropy": {"logits": "M V", "targets": "M", "weights": "M"},
}


@dataclass(frozen=True)
class Tensor:
    """`function`: whose result an expected tensor is, "" of an input."""

    array: Array
    axes: str
    function: str = ""

    def about(self) -> dict[str, Any]:
        said = {"dtype": str(self.array.dtype), "shape": list(self.array.shape), "axes": self.axes}
        return said | ({"function": self.function} if self.function else {})


@dataclass(frozen=True)
class VectorCase:
    """A case of the suite as tensors by name. `settings`: what is no tensor; `dimensions`: the
    sizes by their letters, for the diagnosis."""

    check: Check
    tolerance: float
    settings: Mapping[str, Any]
    dimensions: Mapping[str, float]
    inputs: Mapping[str, Tensor]
    expected: Mapping[str, Tensor]


# ---- the cases ----------------------------------------------------------------------------------


def _op_case(op: str, name: str) -> VectorCase:
    case, check = case_of(op, name), suite.all_checks()[f"{op}/{name}"]
    inputs: dict[str, Tensor] = {}
    settings: dict[str, Any] = {}
    for argument, a in case.inputs().items():
        if isinstance(a, list):
            each = {f"{argument}[{b}]": Tensor(x, INPUTS[op][argument]) for b, x in enumerate(a)}
            inputs |= each
        elif isinstance(a, np.ndarray):
            inputs[argument] = Tensor(a, INPUTS[op][argument])
        else:
            settings[argument] = a  # eps; bias where it is None
    expected = {
        tensor: Tensor(_as(a, case.dtype), axes_of(function, tensor), function)
        for function in FUNCTIONS[op]
        for tensor, a in case.expected().items()
        if _gives(function, tensor)
    }
    sizes = {letter: float(size) for letter, size in case.dimensions().items()}
    return VectorCase(check, OP_TOLERANCE[case.dtype], settings, sizes, inputs, expected)


def _gives(function: str, tensor: str) -> bool:
    try:
        axes_of(function, tensor)
    except KeyError:
        return False
    return True


def _as(a: Array, dtype: str) -> Array:
    return a.astype(dtype) if a.dtype.kind == "f" else a


def _dimensions(sizes: Mapping[str, float]) -> dict[str, float]:
    return {letter: float(n) for letter, n in sizes.items() if n > 1}


def _offsets(sequences: Sequence[Sequence[int]]) -> Array:
    return np.concatenate([[0], np.cumsum([len(s) for s in sequences])]).astype(np.int64)


def _integers(numbers: Sequence[int]) -> Array:
    return np.array(numbers, dtype=np.int64)


def _batch(sequences: Any, loss_from: Any, prefix_of: Any) -> dict[str, Tensor]:
    return {
        "tokens": Tensor(_integers([t for s in sequences for t in s]), "N"),
        "offsets": Tensor(_offsets(sequences), "B+1"),
        "loss_from": Tensor(_integers(loss_from), "B"),
        "prefix_of": Tensor(_integers(prefix_of), "B"),
    }


def _weights(weights: Mapping[str, Array], start: str = "weights.") -> dict[str, Tensor]:
    return {start + n: Tensor(a, " ".join("?" * a.ndim)) for n, a in weights.items()}


def _whole_case(
    check: Check, problem: ModelProblem, function: str, axes: Mapping[str, str], found: Any
) -> VectorCase:
    p = problem
    dtype = str(p.prefixes[0].dtype)
    inputs = _batch(p.sequences, p.loss_from, p.prefix_of)
    inputs["position_offsets"] = Tensor(_integers(p.position_offsets), "prefixes")
    inputs |= {f"prefixes[{j}]": Tensor(kv, "L 2 NH P hs") for j, kv in enumerate(p.prefixes)}
    inputs |= _weights(p.weights)
    expected = {n: Tensor(_as(found[n], dtype), letters, function) for n, letters in axes.items()}
    sizes = {
        "hs": p.config.head_size,
        "M": sum(len(s) - f for s, f in zip(p.sequences, p.loss_from, strict=True)),
        "B": len(p.sequences),
        "N": sum(len(s) for s in p.sequences),
        "P": p.prefixes[0].shape[3],
        "L": p.config.n_layer,
    }
    settings = {"config": asdict(p.config), "reduction": p.reduction, "need": p.need}
    return VectorCase(
        check, MODEL_TOLERANCE[dtype], settings, _dimensions(sizes), inputs, expected
    )


def _model_case(name: str) -> VectorCase:
    p = model_case(name)
    axes = model_tensors(p.config, len(p.prefixes), len(p.sequences), p.need)
    check = suite.all_checks()[f"model/{name}"]
    return _whole_case(check, p, "run_model", axes, expected_model(name))


def _decoding_case(check: Check) -> VectorCase:
    name = check.id.partition("/")[2]
    p = replace(model_case(name), need="prefix")
    return _whole_case(check, p, "run_decoding", {"logits": "N V"}, expected_decoding(name))


def _training_case(name: str) -> VectorCase:
    p: TrainingProblem = training_case(name)
    inputs: dict[str, Tensor] = {}
    for s, step in enumerate(p.steps):
        for m, part in enumerate(step):
            batch = _batch(part.sequences, part.loss_from, part.prefix_of)
            inputs |= {f"step.{s}.part.{m}.{n}": t for n, t in batch.items()}
    for i, parameters in enumerate(p.parameters):
        for n, a in parameters.items():
            axes = "L 2 NH P hs" if n == "kv" else " ".join("?" * a.ndim)
            inputs[f"prefix.{i}.{n}"] = Tensor(a, axes)
    inputs |= _weights(p.weights)
    found = expected_training(name)
    expected = {n: Tensor(found[n], a, "run_training") for n, a in training_tensors(p).items()}
    settings = {
        "config": asdict(p.config),
        "steps": len(p.steps),
        "parts": [len(step) for step in p.steps],
        "lr": p.lr,
        "warmup": p.warmup,
        "beta1": p.beta1,
        "beta2": p.beta2,
        "eps": p.eps,
        "weight_decay": p.weight_decay,
        "clip": p.clip,
    }
    check = suite.all_checks()[f"training/{name}"]
    sizes = {"micro-batches": 2.0, "B": 2.0}
    return VectorCase(check, TRAINING_TOLERANCE, settings, sizes, inputs, expected)


# ---- a block alone: a level that the suite itself has no check of -------------------------------

#: name -> why, the lengths and the slots of the sequences
BLOCKS: dict[str, tuple[str, tuple[int, ...], tuple[int, ...]]] = {
    "usual": (
        "one block forward and backward, with the gradients of its weights; three sequences, a "
        "prefix each",
        (5, 3, 4),
        (2, 5, 1),
    ),
    "no-prefix": ("a block of plain GPT-2", (4, 2), (0, 0)),
}


def _block_inputs(name: str) -> dict[str, Tensor]:
    _, lengths, slots = BLOCKS[name]
    rng = np.random.default_rng([13, len(lengths)])
    N, C, heads, hs = sum(lengths), SMALL.n_embd, SMALL.n_head, SMALL.head_size
    inputs = {n: Tensor(rng.normal(0, 1, (N, C)), "N C") for n in ("resid_pre", "dresid_post")}
    for b, P in enumerate(slots):
        for n in ("prefix_k", "prefix_v"):
            inputs[f"{n}[{b}]"] = Tensor(rng.normal(0, 0.7, (heads, P, hs)), "NH P hs")
    inputs["offsets"] = Tensor(_offsets([range(T) for T in lengths]), "B+1")
    block = {n[4:]: a for n, a in weights_of(SMALL).items() if n.startswith("h.1.")}
    return inputs | _weights(block)


def _run_block(
    inputs: Mapping[str, Tensor], ops: Any, forward: Callable[..., Any], backward: Callable[..., Any]
) -> dict[str, Array]:
    """Every tensor of the block, by the names of the model without `blocks.0.`."""
    start = "weights."
    w = {n.removeprefix(start): t.array for n, t in inputs.items() if n.startswith(start)}
    B = len(inputs["offsets"].array) - 1
    past = [(inputs[f"prefix_k[{b}]"].array, inputs[f"prefix_v[{b}]"].array) for b in range(B)]
    recorder = Recorder(ops, {f"h.0.{n}": a for n, a in w.items()}, SMALL.head_size)
    out, kept = forward(
        inputs["resid_pre"].array, w, past, inputs["offsets"].array, SMALL, recorder
    )
    out = np.array(out)
    grads = backward(inputs["dresid_post"].array, w, kept, recorder, "all", True)
    found = {n.removeprefix("blocks.0."): a for n, a in recorder.tensors.items()}
    found |= {"resid_post": out, "dresid_pre": grads.dx}
    for b, (dk, dv) in enumerate(grads.dpast):
        found |= {f"attn.dprefix_k[{b}]": dk, f"attn.dprefix_v[{b}]": dv}
    return found | {f"d{n}": a for n, a in grads.dweights.items()}


def _block_axes(B: int) -> dict[str, str]:
    """Name -> axes, in the order in which they arise; the block's inputs are not among them."""
    one = replace(SMALL, n_layer=1)
    named = model_tensors(one, 0, B, "all")
    mine = {n.removeprefix("blocks.0."): a for n, a in named.items() if n.startswith("blocks.0.")}
    back = [n for n in mine if n.startswith("d") or ".d" in n]
    axes = {n: a for n, a in mine.items() if n not in back} | {"resid_post": "N C"}
    axes |= {n: mine[n] for n in back if n != "ln_1.dout"}
    axes |= {f"attn.dprefix_{n}[{b}]": "NH P hs" for n in "kv" for b in range(B)}
    axes |= {"ln_1.dout": "N C", "dresid_pre": "N C"}
    weights = {f"d{n[5:]}": a for n, a in named.items() if n.startswith("dh.0.")}
    return {n: a for n, a in axes.items() if n not in ("resid_pre", "dresid_post")} | weights


@cache
def _block_expected(name: str) -> dict[str, Array]:
    return _run_block(_block_inputs(name), reference, block_forward, block_backward)


def block_check(name: str) -> Check:
    def run(implementation: Implementation, grade: Grade) -> None:
        code = _block_code(implementation)
        want, B = _block_expected(name), len(BLOCKS[name][1])
        try:
            found = _run_block(_block_inputs(name), implementation.functions, *code)
        except Exception as error:
            said = f"block_forward and block_backward raised {type(error).__name__}: {error}"
            raise Broken("exception", said) from error
        for n, axes in _block_axes(B).items():
            if n in found:
                grade.compare("block", n, found[n], want[n], MODEL_TOLERANCE["float64"], axes)

    return Check(f"block/{name}", "block", "block", BLOCKS[name][0], run)


def _block_code(implementation: Implementation) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """`block_forward` and `block_backward` as a bug of the zoo has them, else the sound ones: from
    its model's `run_model` to the module that the model is made of."""
    run: Any = getattr(implementation.functions, "run_model", None)
    if run is None:
        return block_forward, block_backward
    gpt2 = run.__func__.__globals__["loss_backward"].__globals__["backward"].__globals__
    return gpt2["block_forward"], gpt2["block_backward"]


def _block_case(name: str) -> VectorCase:
    inputs, found = _block_inputs(name), _block_expected(name)
    _, lengths, slots = BLOCKS[name]
    axes = _block_axes(len(lengths))
    order = list(axes)
    turn = order.index("resid_post")
    expected = {
        n: Tensor(found[n], a, "block_forward" if order.index(n) <= turn else "block_backward")
        for n, a in axes.items()
    }
    sizes = {"hs": SMALL.head_size, "B": len(lengths), "N": sum(lengths), "P": slots[0]}
    settings = {"n_head": SMALL.n_head, "layer_norm_epsilon": SMALL.layer_norm_epsilon}
    return VectorCase(
        block_check(name),
        MODEL_TOLERANCE["float64"],
        settings,
        _dimensions(sizes),
        inputs,
        expected,
    )


def all_cases() -> dict[str, Callable[[], VectorCase]]:
    """id -> the case, made when it is called: ops, a block, the whole model, training."""
    made: dict[str, Callable[[], VectorCase]] = {}
    for op, named in CASES.items():
        for name in named:
            if case_of(op, name).layout == "contiguous":
                made[f"{op}/{name}"] = lambda op=op, name=name: _op_case(op, name)  # type: ignore[misc]
    for name in BLOCKS:
        made[f"block/{name}"] = lambda name=name: _block_case(name)  # type: ignore[misc]
    for name in MODEL_CASES:
        made[f"model/{name}"] = lambda name=name: _model_case(name)  # type: ignore[misc]
    for check in suite.all_checks().values():
        if check.op == "decoding":
            made[check.id] = lambda check=check: _decoding_case(check)  # type: ignore[misc]
    for name in TRAINING_CASES:
        made[f"training/{name}"] = lambda name=name: _training_case(name)  # type: ignore[misc]
    return made


# ---- write --------------------------------------------------------------------------------------

#: findings that show in the numbers of a file; a bug that only writes into its arguments does not
_IN_NUMBERS = ("value", "shape", "dtype", "not finite")


def caught_by(check: Check) -> list[str]:
    """The bugs of the zoo whose numbers this check fails."""
    caught = []
    for name, bug in zoo.all_bugs().items():
        if check.level == "ops" and bug.module != "ops.reference":
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
    }
    # what a kill leaves is known as vectors, and as unfinished ones
    files.write_json(folder / INDEX, head | {"bugs": {}, "cases": []})
    files.write_text(folder / SCHEMA, schema())
    entries, bugs = [], zoo.all_bugs()
    for id_, make in chosen.items():
        case = make()
        tensors = {f"input.{n}": t.array for n, t in case.inputs.items()}
        tensors |= {f"expected.{n}": t.array for n, t in case.expected.items()}
        data = save({n: np.asarray(a, order="C") for n, a in tensors.items()}, {"case": id_})
        path = f"cases/{file_name(id_)}"
        files.write_bytes(folder / path, data)
        entries.append(
            {
                "id": id_,
                "level": case.check.level,
                "op": case.check.op,
                "why": case.check.why,
                "catches": catches(case.check),
                "file": path,
                "sha256": hashlib.sha256(data).hexdigest(),
                "outputs": f"{OUTPUTS}/{file_name(id_)}",
                "tolerance": case.tolerance,
                "settings": dict(case.settings),
                "dimensions": dict(case.dimensions),
                "inputs": {n: t.about() for n, t in case.inputs.items()},
                "expected": {n: t.about() for n, t in case.expected.items()},
            }
        )
    named = {bug for entry in entries for bug in entry["catches"]}
    lessons = {name: bugs[name].lesson for name in bugs if name in named}
    files.write_json(folder / INDEX, head | {"bugs": lessons, "cases": entries})
    kept = {entry["file"] for entry in entries}
    for path in (folder / "cases").glob("*.safetensors"):  # of earlier vectors
        if f"cases/{path.name}" not in kept:
            path.unlink()
    return list(chosen)


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
        return "ops" if op in FUNCTIONS else {"decoding": "model"}.get(op, op)

    for word in only:
        if not any(word in i or word == level(i) for i in cases):
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
    (folder / "cases").mkdir(parents=True, exist_ok=True)


# ---- check --------------------------------------------------------------------------------------


def check(folder: Path, only: Sequence[str] = (), with_zoo: bool = True) -> list[Result]:
    """What a program wrote into `outputs`, graded. Raises InputError if the vectors themselves are
    damaged or of another version, and if there is no output to grade."""
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
    return [_grade(folder, entry, with_zoo) for entry in entries.values()]


def _meant(name: str, names: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, names, 1)
    return f": is {close[0]} meant?" if close else f": expected {', '.join(list(names)[:8])}, ..."


def _read_index(folder: Path) -> dict[str, dict[str, Any]]:
    """id -> entry, each with all that is read below."""
    path, again = folder / INDEX, "write the vectors again"
    if not folder.is_dir():
        raise InputError(
            f"{folder} is no folder: expected one that `minprefix vectors write` made"
        )
    if not path.exists():
        raise InputError(f"{path} does not exist: write the vectors with `minprefix vectors write`")
    index = files.read_json(path, "the index of the vectors")
    if index.get("format") != FORMAT:
        raise InputError(f"{path} has format {index.get('format')!r}, expected {FORMAT!r}: {again}")
    if index.get("version") != VERSION:
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
            if not isinstance(about, dict) or not {"axes", "function", "shape"} <= set(about):
                raise InputError(
                    f"{path}: {where} does not say what {name} is: it is damaged, {again}"
                )
        found[entry["id"]] = entry
    return found


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


def _grade(folder: Path, entry: Mapping[str, Any], with_zoo: bool) -> Result:
    vectors = _read_vectors(folder, entry)
    check_, grade = _check_of(entry), Grade()
    path = folder / entry["outputs"]
    if not path.exists():
        grade.not_implemented.append(f"no {path}")
        return check_.result(grade)
    expected = {name: vectors[f"expected.{name}"] for name in entry["expected"]}
    try:
        found = _read_outputs(path, entry, grade)
    except (SafetensorError, OSError, ValueError) as error:
        said = f"{path} cannot be read as safetensors ({error}): was it written to its end?"
        grade.findings.append(Finding(entry["op"], "", "unreadable", said))
        return check_.result(grade)
    offsets = vectors.get("input.offsets")
    given = {name.split("[")[0] for name in found}
    for name, about in entry["expected"].items():
        want = expected[name]
        if name not in found:
            if "[" in name and name.split("[")[0] in given and name not in grade.errors:
                said = f"{name} is missing in {path}: expected one for each sequence"
                grade.findings.append(Finding(about["function"], name, "missing", said))
            elif name not in grade.errors:
                grade.not_implemented.append(name)
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
    result = check_.result(grade)
    if with_zoo and result.status == "failed" and grade.found:
        result.zoo = zoo.alike(check_, grade)
    return result


def _neighbours(level: str, other: str, name: str) -> bool:
    """What may have been swapped for `name`."""
    if level in ("ops", "block"):
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


# ---- what is printed ----------------------------------------------------------------------------


def text(results: Sequence[Result]) -> str:
    """The failures in words, and a line of counts."""
    lines = []
    for result in results:
        if result.status != "failed":
            continue
        lines.append(f"FAILED {result.check}")
        for finding in result.findings[:4]:
            lines.append(f"  {finding.sentence}")
            lines += [f"    {finding.tensor} {hint}" for hint in finding.hints]
            lines += [f"    at {i}: {a:.6g}, expected {b:.6g}" for i, a, b in finding.worst]
        if len(result.findings) > 4:
            lines.append(f"  and {len(result.findings) - 4} more")
        if result.zoo:
            lines.append(f"  bugs that give the same numbers: {', '.join(result.zoo)}")
        shown = next((f.reproducer for f in result.findings if f.reproducer), "")
        lines += [f"    {line}" for line in shown.splitlines()]
    counts = {s: sum(r.status == s for r in results) for s in ("passed", "failed")}
    absent = sum(r.status == "not implemented" for r in results)
    tensors = sum(len(r.errors) for r in results)
    lines.append(
        f"{counts['passed']} passed, {counts['failed']} failed, {absent} not implemented; "
        f"{tensors} tensors compared"
    )
    return "\n".join(lines)


def as_json(results: Sequence[Result]) -> str:
    """The results for programs; what is infinite is null, because JSON has no such number."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return [plain(v) for v in value]
        return None if isinstance(value, float) and not np.isfinite(value) else value

    return json.dumps({"results": [plain(r.as_dict()) for r in results]}, indent=2) + "\n"
