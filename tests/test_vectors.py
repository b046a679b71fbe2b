"""Vectors for other languages: the files alone are enough, wrong outputs are named, and a
program in C passes."""

import json
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from minprefix import ops
from minprefix.cli import main
from minprefix.conformance import problems, vector_cases, vectors, zoo
from minprefix.conformance.cases import flatten
from minprefix.conformance.contract import (
    ARGUMENTS,
    FUNCTIONS,
    MicroBatch,
    ModelProblem,
    TrainingProblem,
)
from minprefix.conformance.house import House
from minprefix.conformance.problems import TRAINING_CASES
from minprefix.conformance.suite import all_checks
from minprefix.errors import InputError
from minprefix.gpt2 import Config, block_backward, block_forward
from minprefix.ops.contract import AttentionGrads

C_PROGRAM = Path(__file__).parent / "vectors" / "two_ops.c"
CC = shutil.which("cc")


@pytest.fixture(scope="session")
def written(tmp_path_factory):
    """All vectors. Which bugs they catch takes long to find out and has tests of its own."""
    folder = tmp_path_factory.mktemp("vectors") / "v"
    vectors.write(folder, catches=lambda check: [])
    return folder


@pytest.fixture(scope="session")
def two_ops(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two-ops") / "v"
    vectors.write(folder, ["gelu", "attention"], lambda check: [])
    return folder


@pytest.fixture
def folder(two_ops, tmp_path):
    """The vectors of gelu and attention, to be spoiled."""
    return shutil.copytree(two_ops, tmp_path / "v")


def index(folder):
    return json.loads((folder / "index.json").read_text())


def entry(folder, case):
    return next(e for e in index(folder)["cases"] if e["id"] == case)


def right(folder, case):
    """The expected tensors of a case, by the names that a program gives them."""
    tensors = load_file(folder / entry(folder, case)["file"])
    return {n[9:]: a for n, a in tensors.items() if n.startswith("expected.")}


def answer(folder, case, **changes):
    """Write what is right as outputs; `changes`: tensor -> what becomes of it (None: left out)."""
    tensors = right(folder, case)
    for name, change in changes.items():
        made = change(tensors.pop(name)) if name in tensors else change(None)
        tensors |= {} if made is None else {name: made}
    save_file(tensors, folder / entry(folder, case)["outputs"])


def finding(folder, case="attention/usual"):
    """The only failure of the only case that was answered."""
    results = [r for r in vectors.check(folder, with_zoo=False) if r.status == "failed"]
    assert [r.check for r in results] == [case]
    assert len(results[0].findings) == 1, results[0].findings
    return results[0].findings[0]


# ---- a program that knows the files only --------------------------------------------------------


def listed(tensors, name):
    found = []
    while f"{name}[{len(found)}]" in tensors:
        found.append(tensors[f"{name}[{len(found)}]"])
    return found


def batch(tensors, start=""):
    tokens, offsets = tensors[f"{start}tokens"], tensors[f"{start}offsets"]
    sequences = [tokens[a:b].tolist() for a, b in pairwise(offsets)]
    return sequences, *(tensors[f"{start}{n}"].tolist() for n in ("loss_from", "prefix_of"))


def weights(tensors):
    return {n[8:]: a for n, a in tensors.items() if n.startswith("weights.")}


def run_op(op, tensors, settings):
    implementation, found, made = ops.get("numpy"), {}, None
    for function in FUNCTIONS[op]:
        given = {"cache": made} | settings | tensors
        arguments = [listed(tensors, n) or given[n] for n in ARGUMENTS[function]]
        copies = [a.copy() if isinstance(a, np.ndarray) else a for a in arguments]
        result = getattr(implementation, function)(*copies)
        if function == FUNCTIONS[op][0] and isinstance(result, tuple):
            made = result[1]
        for name, a in flatten(function, result).items():
            if not name.startswith("cache."):
                found[name] = np.array(a)
    return found


def run_block(tensors, settings):
    C = tensors["resid_pre"].shape[1]
    cfg = Config(1, settings["n_head"], C, 1, 1, None, settings["layer_norm_epsilon"])
    past = list(zip(listed(tensors, "prefix_k"), listed(tensors, "prefix_v"), strict=True))
    implementation, w = ops.get("numpy"), weights(tensors)
    given = (tensors["resid_pre"], w, past, tensors["offsets"], cfg)
    x, kept = block_forward(*given, implementation, w.keys())
    grads = block_backward(tensors["dresid_post"], w, kept, implementation, True)
    found = {"resid_post": x, "dresid_pre": grads.dx}
    for b, (dk, dv) in enumerate(zip(*grads.dpast, strict=True)):
        found |= {f"attn.dprefix_k[{b}]": dk, f"attn.dprefix_v[{b}]": dv}
    return found | {f"d{n}": a for n, a in grads.dweights.items()}


def run_whole(op, tensors, settings):
    cfg, house = Config(**settings["config"]), House(ops.get("numpy"))
    if op != "training":
        problem = ModelProblem(
            cfg,
            weights(tensors),
            *batch(tensors),
            listed(tensors, "prefixes"),
            tensors["position_offsets"].tolist(),
            settings["reduction"],
            settings["need"],
        )
        return house.run_model(problem) if op == "model" else house.run_decoding(problem)
    parameters = []
    while mine := {
        n.split(".", 2)[2]: a
        for n, a in tensors.items()
        if n.startswith(f"prefix.{len(parameters)}.")
    }:
        parameters.append(mine)
    steps = [
        [MicroBatch(*batch(tensors, f"step.{s}.part.{m}.")) for m in range(parts)]
        for s, parts in enumerate(settings["parts"])
    ]
    names = ("lr", "warmup", "beta1", "beta2", "eps", "weight_decay", "clip")
    numbers = {name: settings[name] for name in names}
    return house.run_training(TrainingProblem(cfg, weights(tensors), parameters, steps, **numbers))


def test_who_has_the_files_alone_and_other_ops_passes_every_case(written, tmp_path):
    folder, answered = shutil.copytree(written, tmp_path / "v"), {}
    for e in index(folder)["cases"]:
        tensors = load_file(folder / e["file"])
        given = {n[6:]: a for n, a in tensors.items() if n.startswith("input.")}
        if e["op"] in FUNCTIONS:
            found = run_op(e["op"], given, e["settings"])
        elif e["op"] == "block":
            found = run_block(given, e["settings"])
        else:
            found = run_whole(e["op"], given, e["settings"])
        found = {n: np.array(a, order="C") for n, a in found.items()}
        save_file(found, folder / e["outputs"])
        answered[e["id"]] = set(found)
    results = vectors.check(folder, with_zoo=False)
    assert [(r.check, f.sentence) for r in results for f in r.findings] == []
    assert {r.status for r in results} == {"passed"}
    assert {r.check: set(r.errors) for r in results} == answered


# ---- what is written ----------------------------------------------------------------------------


def test_ops_a_block_whole_models_and_ten_steps_are_among_them(written):
    ids = [e["id"] for e in index(written)["cases"]]
    assert len(ids) == len(set(ids))
    assert {"attention/usual", "block/usual", "model/weights", "training/ten-steps"} <= set(ids)
    assert {e["op"] for e in index(written)["cases"]} >= {*FUNCTIONS, "decoding"}
    steps = [n for n in entry(written, "training/ten-steps")["expected"] if n.endswith(".loss")]
    assert len(steps) == 10


def test_a_block_shows_every_intermediate_forward_and_back(written):
    names = set(entry(written, "block/usual")["expected"])
    # what q, k and v are made of, what leaves the block, and the way back to where it began
    for name in ("ln_1.out", "attn.q", "attn.pattern[2]", "attn.z", "resid_mid", "mlp.pre"):
        assert name in names
    for name in ("resid_post", "mlp.dpre", "dresid_mid", "attn.dk", "ln_1.dout", "dresid_pre"):
        assert name in names
    shapes = Config(1, 1, 2, 1, 1).shapes()
    assert {f"d{n[4:]}" for n in shapes if n.startswith("h.0.")} <= names
    assert "resid_pre" not in names, "an input is not asked for"


def test_the_same_bytes_are_written_each_time_and_they_are_few(written, tmp_path):
    vectors.write(tmp_path / "again", catches=lambda check: [])
    one, two = (
        {p.relative_to(f): p.read_bytes() for f_ in [f] for p in f_.rglob("*") if p.is_file()}
        for f in (written, tmp_path / "again")
    )
    assert one == two
    assert sum(map(len, one.values())) < 4e6


def test_the_index_follows_the_schema_that_lies_beside_it(written):
    schema = json.loads((written / "index.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    assert [e.message for e in validator.iter_errors(index(written))] == []
    for spoil in (
        lambda d: d.update(version=3),
        lambda d: d["cases"][0].pop("tolerance"),
        lambda d: d["cases"][0]["inputs"].update(x={"dtype": "float16", "shape": [], "axes": ""}),
        lambda d: d.update(more=1),
    ):
        spoiled = index(written)
        spoiled["cases"] = spoiled["cases"][:1]
        assert validator.is_valid(spoiled)
        spoil(spoiled)
        assert list(validator.iter_errors(spoiled)) != []


def test_the_index_says_of_each_tensor_what_the_file_holds(written):
    letters = {*index(written)["symbols"], "B+1", "P+T", "1", "2"}
    for e in index(written)["cases"]:
        tensors = load_file(written / e["file"])
        said = {f"input.{n}": a for n, a in e["inputs"].items()}
        said |= {f"expected.{n}": a for n, a in e["expected"].items()}
        assert set(said) == set(tensors)
        for name, about in said.items():
            assert list(tensors[name].shape) == about["shape"]
            assert str(tensors[name].dtype) == about["dtype"]
            assert len(about["axes"].split()) == tensors[name].ndim
            assert set(about["axes"].split()) <= letters


def test_training_is_graded_as_strictly_as_by_the_suite():
    planted = zoo.plant(zoo.all_bugs()["scores-unscaled"])
    for name in TRAINING_CASES:
        found = all_checks()[f"training/{name}"].collect(planted).findings
        assert {f.tolerance for f in found} == {problems.TOLERANCE["training"]}


def test_a_case_names_the_bugs_that_it_catches_and_no_others(tmp_path):
    vectors.write(tmp_path / "v", ["attention/usual", "gelu/usual", "model/sum", "block/usual"])
    catches = {e["id"]: e["catches"] for e in index(tmp_path / "v")["cases"]}
    assert "scores-unscaled" in catches["attention/usual"]
    assert "scores-unscaled" in catches["block/usual"]
    assert "scores-unscaled" not in catches["gelu/usual"]
    assert "positions-ignore-the-prefix" in catches["model/sum"]
    assert "positions-ignore-the-prefix" not in catches["block/usual"]
    lessons = index(tmp_path / "v")["bugs"]
    assert set(lessons) == {bug for bugs in catches.values() for bug in bugs}


def test_a_bug_in_the_block_is_caught_by_the_block():
    line = "dx = dx + ops.layernorm_backward(da, cache.ln_1)"
    bug = zoo.Bug(
        "residual-dropped",
        "maths",
        "gpt2",
        ((line, line.replace("dx + ", "")),),
        ("block", "dresid_pre"),
        "",
        "",
    )
    grade = vector_cases.block_check("usual").collect(zoo.plant(bug))
    assert [f.tensor for f in grade.findings] == ["dresid_pre"]


# ---- where it is written ------------------------------------------------------------------------


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(InputError, match=r"holds other things \(thesis.tex\)"):
        vectors.write(tmp_path, ["gelu"])
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(InputError, match="is a file"):
        vectors.write(tmp_path / "thesis.tex", ["gelu"])


def test_earlier_vectors_are_replaced_and_outputs_beside_them_kept(folder):
    answer(folder, "gelu/usual")
    (folder / "outputs" / "notes.txt").write_text("mine")
    vectors.write(folder, ["gelu/usual"], lambda check: [])
    assert [p.name for p in (folder / "cases").iterdir()] == ["gelu.usual.safetensors"]
    assert (folder / "outputs" / "notes.txt").exists()
    assert [r.status for r in vectors.check(folder)] == ["passed"]


def test_vectors_whose_writing_was_stopped_say_so_and_can_be_written_again(tmp_path):
    def stop(check):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        vectors.write(tmp_path / "v", ["gelu"], stop)
    with pytest.raises(InputError, match="lists no cases: writing was interrupted"):
        vectors.check(tmp_path / "v")
    assert vectors.write(tmp_path / "v", ["gelu/usual"], lambda check: []) == ["gelu/usual"]


# ---- bad vectors --------------------------------------------------------------------------------


def edit(folder, **changes):
    (folder / "index.json").write_text(json.dumps(index(folder) | changes))


def edit_case(folder, key, value):
    cases = index(folder)["cases"]
    cases[0][key] = value
    edit(folder, cases=cases)


GELU = "gelu.usual.safetensors"


def lose_tensor(folder, name):
    path = folder / "cases" / GELU
    save_file({n: a for n, a in load_file(path).items() if n != name}, path)


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (shutil.rmtree, "v is no folder"),
        (lambda d: (d / "index.json").unlink(), "index.json does not exist"),
        (lambda d: (d / "index.json").write_text("{"), "index.json, line 1: not JSON"),
        (lambda d: (d / "index.json").write_text("[]"), "index.json holds a list"),
        (lambda d: edit(d, format="zip"), "has format 'zip', expected 'minprefix-vectors'"),
        (lambda d: edit(d, version=3), "has version 3, this minprefix reads 1 and 2"),
        (lambda d: edit(d, version="1"), "has version '1', this minprefix reads 1 and 2"),
        (lambda d: edit(d, cases=[]), "lists no cases"),
        (lambda d: edit(d, cases=[7]), "case 0 has id None"),
        (lambda d: edit_case(d, "file", None), "case 'gelu/usual' has file None"),
        (lambda d: edit_case(d, "tolerance", "1"), "case 'gelu/usual' has tolerance '1'"),
        (lambda d: edit_case(d, "tolerance", float("nan")), "has tolerance nan"),
        (lambda d: edit_case(d, "level", "opz"), "case 'gelu/usual' has level 'opz'"),
        (lambda d: edit_case(d, "dimensions", {"N": "7"}), "has dimensions {'N': '7'}"),
        (lambda d: edit_case(d, "expected", {"out": 1}), "has expected {'out': 1}"),
        (lambda d: (d / "cases" / GELU).unlink(), f"{GELU} does not exist"),
        (
            lambda d: (d / "cases" / GELU).write_bytes((d / "cases" / GELU).read_bytes()[:-9]),
            f"{GELU} is truncated or damaged",
        ),
        (lambda d: (d / "cases" / GELU).write_bytes(b""), f"{GELU} is truncated or damaged"),
        (lambda d: lose_tensor(d, "expected.dx"), f"{GELU} lacks tensor expected.dx"),
        (lambda d: lose_tensor(d, "input.dout"), f"{GELU} lacks tensor input.dout"),
        (
            lambda d: (d / "cases" / GELU).write_bytes(
                (d / "cases" / GELU).read_bytes()[:-1] + b"?"
            ),
            f"{GELU} is not the file that index.json describes",
        ),
        (lambda d: shutil.rmtree(d / "outputs"), "outputs holds no outputs: write, say, "),
        (
            lambda d: (d / "outputs" / GELU).rename(d / "outputs" / "gelu.usua.safetensors"),
            f"gelu.usua.safetensors belongs to no case: is {GELU} meant?",
        ),
    ],
)
def test_bad_vectors_are_named_in_one_sentence_with_status_2(folder, capsys, spoil, sentence):
    answer(folder, "gelu/usual")
    assert main(["vectors", "check", str(folder)]) == 0
    capsys.readouterr()
    spoil(folder)
    assert main(["vectors", "check", str(folder)]) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert said.count("\n") == 1
    assert "Traceback" not in said


def test_vectors_of_the_version_before_are_still_graded(folder):
    answer(folder, "gelu/usual")
    assert index(folder)["version"] == 2
    edit(
        folder,
        version=1,
        cases=[each for each in index(folder)["cases"] if "tie" not in each["id"]],
    )
    answered = [r for r in vectors.check(folder) if r.status != "not implemented"]
    assert [(r.check, r.status) for r in answered] == [("gelu/usual", "passed")]
    answer(folder, "gelu/usual", dx=lambda dx: -dx)
    assert finding(folder, "gelu/usual").hints == ["has the wrong sign"]


def test_a_word_that_names_no_case_is_refused(folder, capsys):
    answer(folder, "gelu/usual")
    for command in ("write", "check"):
        assert main(["vectors", command, str(folder), "--only", "gleu"]) == 2
        assert "--only 'gleu' names no case" in capsys.readouterr().err
    assert main(["vectors", "check", str(folder), "--only", "attention"]) == 2
    assert "holds no outputs of the cases that --only attention names" in capsys.readouterr().err


# ---- bad outputs --------------------------------------------------------------------------------


def test_a_wrong_tensor_is_diagnosed_as_by_check(folder):
    answer(folder, "attention/usual", dk=lambda a: a * 7**0.5)
    found = finding(folder)
    assert (found.function, found.tensor, found.kind) == ("attention_backward", "dk", "value")
    assert found.hints == [
        "is 2.646 times the right one everywhere: 2.646 = sqrt(hs): is 1/sqrt(hs) missing?"
    ]
    printed = subprocess.run(
        [sys.executable, "-c", found.reproducer], capture_output=True, text=True, check=True
    ).stdout
    assert f"{found.worst[0][2]:.6f}" in printed
    assert "is right" in printed


def test_outputs_with_a_bug_of_the_zoo_are_recognised(folder):
    planted = zoo.plant(zoo.all_bugs()["dprefix-unscaled"]).functions
    case = entry(folder, "attention/usual")
    tensors = load_file(folder / case["file"])
    i = {n[6:]: a for n, a in tensors.items() if n.startswith("input.")}
    prefixes = [listed(i, "prefix_k"), listed(i, "prefix_v")]
    _, kept = planted.attention(i["q"], i["k"], i["v"], *prefixes, i["offsets"])
    grads: AttentionGrads = planted.attention_backward(i["dz"], kept)
    flat = flatten("attention_backward", grads)
    save_file({n: np.array(a, order="C") for n, a in flat.items()}, folder / case["outputs"])
    result = next(r for r in vectors.check(folder) if r.status == "failed")
    assert result.findings[0].tensor == "dk"
    assert "dprefix-unscaled" in result.zoo


@pytest.mark.parametrize(
    ("tensor", "change", "kind", "sentence"),
    [
        ("dq", lambda a: a[:-1], "shape", "dq has shape (7, 2, 7), expected (8, 2, 7)"),
        ("dq", lambda a: a * np.nan, "not finite", "dq (N, NH, hs) is not finite"),
        ("dq", lambda a: a.astype("f4"), None, "dq"),
        ("dq", lambda a: a > 0, "dtype", "dq is BOOL, expected one of F64, F32"),
        ("dQ", lambda a: np.zeros(3), "missing", "dQ is no tensor of attention/usual: is dq meant"),
        ("dprefix_v[1]", lambda a: None, "missing", "safetensors lacks dprefix_v[1]: expected one"),
    ],
)
def test_a_bad_output_is_a_failure_that_names_the_tensor(folder, tensor, change, kind, sentence):
    answer(folder, "attention/usual", **{tensor: change})
    found = finding(folder)
    assert found.tensor == tensor
    assert kind is None or found.kind == kind
    assert sentence in found.sentence


def test_outputs_in_float32_are_called_that_and_not_like_a_bug(folder):
    for case in ("attention/usual", "gelu/usual"):
        answer(folder, case)
        path = folder / entry(folder, case)["outputs"]
        tensors = load_file(path)
        save_file(
            {n: a.astype(np.float32) if a.dtype.kind == "f" else a for n, a in tensors.items()},
            path,
        )
    results = [r for r in vectors.check(folder) if r.findings]
    assert [r.check for r in results] == ["gelu/usual", "attention/usual"]
    assert {f.kind for r in results for f in r.findings} == {"dtype"}
    assert [r.zoo for r in results] == [[], []]
    (folder / entry(folder, "attention/usual")["outputs"]).unlink()
    answer(
        folder,
        "gelu/usual",
        dx=lambda a: a * (1 + 1e-7 * np.cos(np.arange(a.size).reshape(a.shape))),
    )
    found = finding(folder, "gelu/usual")
    assert (found.kind, found.tensor, found.hints) == ("precision", "dx", [])
    assert "right to 7 digits. Is it computed in single precision" in found.sentence


def test_double_precision_where_single_is_asked_is_a_failure(folder):
    answer(folder, "gelu/float32", out=lambda a: a.astype("f8"))
    found = finding(folder, "gelu/float32")
    assert found.kind == "dtype"
    assert "out is float64, expected float32" in found.sentence


@pytest.mark.parametrize(
    "spoil", [lambda b: b[:-5], lambda b: b[:3], lambda b: b"", lambda b: b"#" * 99]
)
def test_an_output_that_cannot_be_read_is_a_failure_that_names_the_file(folder, spoil):
    answer(folder, "attention/usual")
    path = folder / entry(folder, "attention/usual")["outputs"]
    path.write_bytes(spoil(path.read_bytes()))
    found = finding(folder)
    assert found.kind == "unreadable"
    assert f"{path} cannot be read as safetensors" in found.sentence


def test_what_is_left_out_is_not_implemented_and_no_failure(folder):
    names = [n for n in right(folder, "attention/usual") if n != "z"]
    answer(folder, "attention/usual", **dict.fromkeys(names, lambda a: None))
    results = {r.check: r for r in vectors.check(folder)}
    assert results["attention/usual"].status == "passed"
    assert list(results["attention/usual"].errors) == ["z"]
    assert "dk" in " ".join(results["attention/usual"].not_implemented)
    assert results["gelu/usual"].status == "not implemented"


# ---- the command --------------------------------------------------------------------------------


def test_the_command_writes_checks_and_says_in_json_what_failed(tmp_path, capsys):
    folder, said = tmp_path / "v", tmp_path / "said.json"
    assert main(["vectors", "write", str(folder), "--only", "gelu"]) == 0
    assert "5 cases" in capsys.readouterr().out
    answer(folder, "gelu/usual", dx=lambda a: -a)
    assert main(["vectors", "check", str(folder), "--json", str(said)]) == 1
    assert "dx has the wrong sign" in capsys.readouterr().out
    failed = [r for r in json.loads(said.read_text())["results"] if r["status"] == "failed"]
    assert [f["tensor"] for r in failed for f in r["findings"]] == ["dx"]


def test_outputs_without_a_tensor_pass_nothing(folder, capsys):
    save_file({}, folder / "outputs" / GELU)
    assert main(["vectors", "check", str(folder)]) == 1
    assert "nothing to grade" in capsys.readouterr().out


# ---- the program in C ---------------------------------------------------------------------------


def compiled(tmp_path, *options):
    program = tmp_path / "two_ops"
    strict = ["-std=c99", "-O2", "-Wall", "-Wextra", "-Werror"]
    command = [CC, *strict, *options, str(C_PROGRAM), "-o", str(program), "-lm"]
    subprocess.run(command, check=True, capture_output=True)
    return program


@pytest.mark.skipif(CC is None, reason="no C compiler on this machine")
def test_a_program_in_c_passes_attention_and_gelu(written, tmp_path, capsys):
    folder = shutil.copytree(written, tmp_path / "v")
    subprocess.run([compiled(tmp_path), folder], check=True, capture_output=True)
    assert main(["vectors", "check", str(folder)]) == 0
    capsys.readouterr()
    results = vectors.check(folder, ["attention", "gelu"])
    assert {r.status for r in results} == {"passed"}
    graded = {name.split("[")[0] for r in results for name in r.errors}
    assert {"z", "cache.pattern", "dq", "dk", "dv", "dprefix_k", "dprefix_v"} <= graded
    assert {"out", "cache.tanh", "dx"} <= graded


@pytest.mark.skipif(CC is None, reason="no C compiler on this machine")
def test_a_bug_in_the_program_in_c_is_found_and_its_tensor_named(folder, tmp_path, capsys):
    subprocess.run([compiled(tmp_path, "-DBUG"), folder], check=True, capture_output=True)
    assert main(["vectors", "check", str(folder)]) == 1
    assert "is 1/sqrt(hs) missing?" in capsys.readouterr().out
    results = vectors.check(folder, with_zoo=False)
    wrong = {f.tensor.split("[")[0] for r in results for f in r.findings}
    assert wrong == {"dprefix_k"}
    assert all(r.status == "passed" for r in results if r.op == "gelu")


@pytest.mark.skipif(CC is None, reason="no C compiler on this machine")
def test_the_program_in_c_reads_no_further_than_a_truncated_file(folder, tmp_path):
    path = folder / "cases" / GELU
    path.write_bytes(path.read_bytes()[:-9])
    said = subprocess.run([compiled(tmp_path), folder], capture_output=True, text=True)
    assert said.returncode == 1
    assert f"{path} is truncated" in said.stderr
