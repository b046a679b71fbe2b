"""A trace: every intermediate under its name, no result changed, nothing kept that was not asked
for."""

import ast
import json
import re
from pathlib import Path

import numpy as np
import pytest

from minprefix import Batch, Config, InputError, Prefix, gpt2, loss_and_grad, loss_and_weight_grads
from minprefix.ops import reference
from minprefix.trace import Trace, trace
from minprefix.trace.instrument import source_of
from minprefix.trace.mirror import MIRROR, mirrored
from minprefix.trace.record import summarise
from minprefix.trace.tracer import Tracer
from minprefix.trace.wiring import BETWEEN, MADE
from tests.conftest import random_model, relative_error

CONFIG = Config(n_layer=3, n_head=4, n_embd=32, vocab_size=50, n_positions=64)


@pytest.fixture(scope="module")
def model():
    return random_model(CONFIG)


def ids(T, seed=0):
    return np.random.default_rng(seed).integers(1, 50, T).tolist()


@pytest.fixture(scope="module")
def prefix():
    return Prefix.normal(CONFIG, 5, std=0.5, dtype="float64")


@pytest.fixture(scope="module")
def batch():
    return Batch.pack([ids(7), ids(4, 1)], loss_from=[3, 1])


@pytest.fixture(scope="module")
def whole(model, prefix, batch):
    return trace(model, batch, prefix, need="all")


@pytest.mark.parametrize("ops", ["reference", "numpy"])
def test_tracing_changes_no_result_by_a_bit(model, prefix, batch, ops):
    loss, dkv = loss_and_grad(model, prefix, batch, ops=ops)
    seen = trace(model, batch, prefix, ops=ops)
    assert seen.about["loss"] == loss
    for i in range(3):
        for j, name in enumerate(("dprefix_k", "dprefix_v")):
            parts = [seen[f"blocks.{i}.attn.{name}#{b}"].value for b in range(2)]
            assert np.array_equal(sum(parts), dkv[i, j])
    loss, dw = loss_and_weight_grads(model, batch, prefix, ops=ops)
    seen = trace(model, batch, prefix, ops=ops, need="all")
    assert seen.about["loss"] == loss
    assert np.array_equal(seen["blocks.1.attn.c_attn.dweight"].value, dw["h.1.attn.c_attn.weight"])
    assert np.array_equal(seen["blocks.0.ln_1.dgain"].value, dw["h.0.ln_1.weight"])
    assert np.array_equal(seen["ln_f.dbias"].value, dw["ln_f.bias"])
    tied = seen["embed.dwte"].value + seen["head.dweight"].value.T
    assert np.array_equal(tied, dw["wte.weight"])


def test_both_implementations_have_the_same_names_and_values_at_the_ends_of_their_ops(
    model, prefix, batch, whole
):
    fast = trace(model, batch, prefix, ops="numpy", need="all")
    ours = {r.key: r for r in whole if not r.inside}
    assert {r.key for r in fast} == set(ours)
    for a in fast:
        b = ours[a.key]
        assert (a.direction, a.op, a.inputs) == (b.direction, b.op, b.inputs), a.key
        assert relative_error(a.value, b.value) < 1e-10, a.key


def test_no_name_that_the_reference_assigns_is_missing(whole):
    """Every name that a line of reference.py gives to an array, in each op."""
    seen = {(r.op, r.name.rpartition(".")[2]) for r in whole}
    lines = {r.line for r in whole}
    tree = ast.parse(Path(reference.__file__).read_text())
    computes = 0
    for function in tree.body:
        if not isinstance(function, ast.FunctionDef):
            continue
        for node in ast.walk(function):
            if not isinstance(node, ast.Assign) or isinstance(node.value, ast.Name):
                continue
            names = [n.id for n in ast.walk(node.targets[0]) if isinstance(n, ast.Name)]
            arrays = set(names) - {"T", "P", "hs", "rows", "zs", "patterns", "dqs", "dks", "dvs"}
            arrays -= {"dprefix_k", "dprefix_v"} if isinstance(node.value, ast.Tuple) else set()
            if not arrays or {"q_b", "keys", "values"} == arrays:
                continue  # shapes and lists; what _heads_first gives back has its names there
            computes += 1
            assert node.lineno in lines, f"line {node.lineno}: {ast.unparse(node)}"
            for name in arrays:
                assert any(n == name for _, n in seen), f"line {node.lineno}: {name}"
    assert computes > 25


def test_the_names_are_the_fields_and_their_values_what_they_say(model, prefix, batch, whole):
    w, t = model.weights, whole
    assert t["blocks.1.attn.pattern#0"].shape == (4, 7, 12)
    np.testing.assert_allclose(t["blocks.1.attn.pattern#1"].value.sum(-1), 1)
    assert np.array_equal(
        t["blocks.1.resid_mid"].value, t["blocks.0.resid_post"].value + t["blocks.1.attn.out"].value
    )
    want = t["blocks.2.ln_2.out"].value @ w["h.2.mlp.c_fc.weight"] + w["h.2.mlp.c_fc.bias"]
    assert np.array_equal(t["blocks.2.mlp.pre"].value, want)
    assert np.array_equal(t["blocks.0.attn.prefix_v#1"].value, prefix.kv[0, 1])
    assert t["logits"].shape == (len(batch.targets), 50)
    dscores = t["blocks.0.attn.dscores#0"].value
    np.testing.assert_allclose(dscores.sum(-1), 0, atol=1e-12)
    assert t["blocks.0.attn.dscores#0"].direction == "backward"
    dmid = t["blocks.1.dresid_mid"].value
    assert np.array_equal(dmid, t["blocks.1.dresid_post"].value + t["blocks.1.ln_2.dx"].value)


def test_a_record_says_where_it_is_made(whole):
    record = whole["blocks.1.attn.dscores#0"]
    lines = Path(reference.__file__).read_text().splitlines()
    assert lines[record.line - 1].strip() == record.text
    assert record.text.startswith("dscores = pattern * (dpattern - row_sum)")
    assert record.formula == (
        "attention: z = softmax(q K^T / sqrt(hs)) V with K = [prefix_k; k], V = [prefix_v; v] "
        "(Vaswani et al., 2017, eq. 1; Li & Liang, 2021, eq. 3)"
    )
    assert whole["ln_f.var"].formula.endswith("* gain + bias (Ba, Kiros & Hinton, 2016)")
    assert whole["blocks.0.mlp.pre"].formula == "linear: out = x W + b"
    assert whole["blocks.1.attn.dprefix_k#0"].text == (
        "dprefix_k.append(dkeys[:, :P])  # (NH, P, hs)"
    )
    made = source_of(reference)
    for r in whole:
        if r.inside:
            assert lines[r.line - 1].strip().split()[0] == made.statement[r.line].split()[0]


def test_every_input_of_a_record_is_a_record_before_it_or_a_weight(model, whole):
    before = set(model.weights)
    for record in whole:
        for name in record.inputs:
            found = name in before or any(k.startswith(f"{name}#") for k in before)
            assert found, (record.key, name)
        before.add(record.key)


def test_a_number_is_no_name(whole):
    with pytest.raises(InputError, match=r"asked by name, not by 0: see its \.records"):
        whole[0]


def test_every_key_is_one_of_its_kind(whole):
    keys = [record.key for record in whole]
    assert len(set(keys)) == len(keys)


def test_a_frozen_model_stops_at_the_lowest_prefix(model, prefix, batch, whole):
    frozen = trace(model, batch, prefix)
    names = {r.name for r in frozen}
    assert "blocks.0.attn.dprefix_k" in names
    assert "blocks.0.attn.dqkv" not in names  # below it lie only frozen weights
    assert not any("dweight" in name or "dgain" in name for name in names)
    assert "blocks.0.dresid_pre" in {r.name for r in whole}
    upper = Prefix.normal(CONFIG, 5, layers=[2], dtype="float64")
    lowest = trace(model, batch, upper)
    assert {r.name.split(".")[1] for r in lowest if ".d" in r.name and "blocks" in r.name} == {"2"}


def test_patterns_choose_what_is_kept(model, prefix, batch):
    some = trace(model, batch, prefix, names=["blocks.1.attn.*pattern", "*.dprefix_k#1"])
    assert {r.key for r in some} == {
        "blocks.1.attn.pattern#0",
        "blocks.1.attn.pattern#1",
        "blocks.1.attn.dpattern#0",
        "blocks.1.attn.dpattern#1",
        *(f"blocks.{i}.attn.dprefix_k#1" for i in range(3)),
    }
    assert len(some.find("*.dprefix_k")) == 3
    assert some.find("*dpattern#0")[0].name == "blocks.1.attn.dpattern"


def test_a_name_that_matches_nothing_lists_the_nearest(model, prefix, batch, whole):
    near = "nothing in the trace is called '{}': near it are .*blocks.1.attn.pattern"
    with pytest.raises(InputError, match=near.format("blocks.1.attn.patern")):
        whole["blocks.1.attn.patern"]
    with pytest.raises(InputError, match=near.format("blocks.1.attn.patern")):
        whole.find("blocks.1.attn.patern")
    with pytest.raises(InputError, match=near.format("blocks.1.attn.patern")):
        trace(model, batch, prefix, names="blocks.1.attn.patern")
    everywhere = "near it are blocks.0.attn.pattern, blocks.1.attn.pattern, blocks.2.attn.pattern$"
    for name in ("patern", "*.patern", "*.patern#0"):
        with pytest.raises(InputError, match=everywhere):
            whole.find(name)
    with pytest.raises(InputError, match=r"called 'zork': the first are blocks.0.resid_pre, "):
        whole.find("zork")
    with pytest.raises(InputError, match=r"blocks\.1\.attn\.pattern' is of 2 sequences: name one"):
        whole["blocks.1.attn.pattern"]


def test_each_pattern_is_to_match_and_need_is_one_of_two(model, prefix, batch):
    """One that does not would be missed only when the trace is looked into."""
    with pytest.raises(InputError, match=r"called '\*.dpatern': near it are .*attn.dpattern"):
        trace(model, batch, prefix, names=["loss", "*.dpatern"])
    for names in ([], ""):
        with pytest.raises(InputError, match="names is empty: give at least one"):
            trace(model, batch, prefix, names=names)
    with pytest.raises(InputError, match="need is 'weights': expected 'prefix' or 'all'"):
        trace(model, batch, prefix, need="weights")


def test_a_trace_too_large_says_how_large_and_how_to_narrow_it(model, prefix, batch, whole):
    size = f"{whole.nbytes:,}"
    said = f"is {size} bytes, more than the 1,000 of max_bytes: narrow it by names"
    with pytest.raises(InputError, match=said):
        trace(model, batch, prefix, need="all", max_bytes=1000)
    with pytest.raises(InputError, match=rf"is {size} bytes, more than the"):
        trace(model, batch, prefix, need="all", max_bytes=whole.nbytes - 1)
    assert len(trace(model, batch, prefix, need="all", max_bytes=whole.nbytes)) == len(whole)
    small = trace(model, batch, prefix, names="blocks.0.attn.pattern#1", max_bytes=5000)
    assert small.nbytes <= 5000


def test_logits_that_come_in_parts_have_names_of_their_own(model, prefix, monkeypatch):
    monkeypatch.setattr("minprefix.gpt2.HEAD_ROWS", 4)
    seen = trace(model, Batch.pack([ids(8)]), prefix)
    assert [r.key for r in seen.find("logits*")] == ["logits", "logits.from_4"]
    assert seen["dlogits.from_4"].shape == (3, 50)
    assert len({r.key for r in seen}) == len(seen)


# ---- on disk ----


def test_a_trace_comes_back_from_disk_as_it_was(tmp_path, whole):
    whole.save(tmp_path)
    again = Trace.load(tmp_path)
    assert again.about == json.loads(json.dumps(whole.about))
    for a, b in zip(again, whole, strict=True):
        assert {k: v for k, v in vars(a).items() if k not in ("value", "summary")} == {
            k: v for k, v in vars(b).items() if k not in ("value", "summary")
        }
        assert a.value.dtype == b.value.dtype
        assert np.array_equal(a.value, b.value)


@pytest.mark.parametrize(
    "damage", ["missing", "format", "record", "direction", "value", "cut", "bit", "no folder"]
)
def test_a_damaged_trace_is_a_sentence(tmp_path, model, prefix, batch, damage):
    trace(model, batch, prefix, names="blocks.0.attn.pattern").save(tmp_path)
    about = json.loads((tmp_path / "trace.json").read_text())
    sentence = "is damaged"
    if damage == "missing":
        (tmp_path / "trace.json").unlink()
        sentence = "holds no trace"
    elif damage == "format":
        about["format"], sentence = 7, "has format 7, this version reads 1"
    elif damage == "record":
        about["records"][0]["line"] = "5"
    elif damage == "direction":
        about["records"][0]["direction"] = "sideways"
    elif damage == "value":
        about["records"].pop()
    elif damage == "cut":
        path = tmp_path / "trace.safetensors"
        path.write_bytes(path.read_bytes()[:-5])
        sentence = "is not a whole safetensors file"
    elif damage == "bit":
        path = tmp_path / "trace.safetensors"
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
        sentence = "trace.safetensors has sha256 .*, and trace.json records .*: it is damaged"
    if damage != "missing":
        (tmp_path / "trace.json").write_text(json.dumps(about))
    folder = tmp_path / "absent" if damage == "no folder" else tmp_path
    sentence = "does not exist" if damage == "no folder" else sentence
    with pytest.raises(InputError, match=sentence):
        Trace.load(folder)


# ---- one line ----


def test_a_summary_says_range_mean_deviation_zeros_and_what_is_not_finite():
    s = summarise(np.array([0.0, 1.0, 2.0, 10.0, np.nan, np.inf]))
    assert (s.least, s.most, s.mean, s.nan, s.zero) == (0, 10, 3.25, 2, 1)
    assert s.std == pytest.approx(np.std([0, 1, 2, 10]))
    assert s.histogram == (1, 1, 1, 0, 0, 0, 0, 0, 0, 1)
    assert str(s).startswith("[0, 10] mean 3.25 std 3.9")
    assert "|███      █|" in str(s)
    assert "|█▁       ▄|" in str(summarise(np.array([0.0] * 16 + [1.0] + [10.0] * 8)))
    assert "1 zeros, 2 not finite" in str(s)
    assert "6 not finite" in str(summarise(np.full(6, np.nan)))
    assert summarise(np.full(3, 2.0)).histogram == (3, *[0] * 9)
    assert summarise(np.empty((0, 4))).histogram == (0,) * 10
    huge = summarise(np.array([-1.7e308, 1.7e308]))
    assert (huge.histogram, huge.nan) == ((1, *[0] * 8, 1), 0)


def test_a_trace_and_a_record_print_one_line(whole):
    assert re.fullmatch(
        r"Trace\(\d+ records forward, \d+ backward, \d\.\d MB, reference\)", f"{whole}"
    )
    assert "\n" not in repr(whole["logits"])


# ---- the debugger ----


def test_stop_at_opens_the_debugger_in_the_reference_with_its_variables(
    model, prefix, batch, monkeypatch
):
    stopped = []

    def stop(self, frame, _):
        stopped.append((frame.f_code.co_filename, frame.f_code.co_name, frame.f_lineno))
        assert frame.f_locals["dprefix_k"][-1].shape == (4, 5, 8)
        assert "dscores" in frame.f_locals
        self.set_continue()

    monkeypatch.setattr("pdb.Pdb.interaction", stop)
    trace(model, batch, prefix, stop_at="blocks.2.attn.dprefix_k")
    line = source_of(reference).made["attention_backward", "dprefix_k"]
    assert stopped == [(reference.__file__, "attention_backward", line)] * 2
    with pytest.raises(InputError, match=r"called 'blocks.2.attn.dprefix'.*attn.dprefix_k"):
        trace(model, batch, prefix, stop_at="blocks.2.attn.dprefix")


def test_a_bug_in_the_text_is_seen_where_it_is(model, prefix, batch):
    text = Path(reference.__file__).read_text()
    bug = text.replace("dq_b = dscores @ keys / hs**0.5", "dq_b = dscores @ keys")
    assert bug != text
    tracer = Tracer.of_text(bug, model)
    loss_and_grad(model, prefix, batch, ops=tracer)
    wrong, right = Trace(tracer.records), trace(model, batch, prefix)
    differ = [r.key for r in wrong if not np.array_equal(r.value, right[r.key].value)]
    assert differ[0] == "blocks.2.attn.dq_b#0"


# ---- the wiring, and what mirrors what ----


def test_the_wiring_names_the_line_of_gpt2_that_computes_each_value():
    source = source_of(gpt2)
    for value, made in MADE.items():
        line = source.made[made.function, made.name]
        text = source.lines[line - 1]
        if made.op == "add":  # its comment says which residual stream it is
            assert text.endswith(f" {value.removeprefix('d')}"), value
            assert f"{made.name} = {made.name} + " in text, value
        else:
            assert made.name in text.partition(" = ")[0].strip().split(", "), value


def test_every_line_of_the_backward_mirrors_one_of_the_forward(whole):
    source, backward = source_of(reference), [r for r in whole if r.direction == "backward"]
    for (op, name), target in MIRROR.items():
        assert (op, name) in source.made, (op, name)
        assert target in source.made, target
    used = set()
    for record in backward:
        if record.op in BETWEEN:
            continue
        name = record.name.rpartition(".")[2]
        line, text = mirrored(source, record.op, name)
        used.add((record.op, name if (record.op, name) in MIRROR else "return"))
        assert source.lines[line - 1].strip().startswith(text.split()[0])
    assert used == set(MIRROR)
    assert mirrored(source, "attention", "pattern") is None
    assert mirrored(source, "attention_backward", "dscores")[1].startswith("pattern = softmax(")
