"""Where two computations part: the finger is put on the op that is wrong, and on no other."""

import json
import types
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from minprefix import Batch, Config, InputError, Prefix
from minprefix.cli import main
from minprefix.conformance import Implementation, load, zoo
from minprefix.conformance.bugs import BUGS
from minprefix.conformance.diagnosis import relative_error
from minprefix.conformance.house import House
from minprefix.model import loss_backward
from minprefix.ops import reference
from minprefix.trace import Trace, trace
from minprefix.trace.compare import compare, picture, sentence, table, verdict
from minprefix.trace.sides import HOUSE, compare_implementations, has_ops, problems, trace_ops
from tests.conftest import random_model
from tools import zoo_compare as score

CONFIG = Config(n_layer=3, n_head=4, n_embd=32, vocab_size=50, n_positions=64)
COMMITTED = Path(__file__).parent / "zoo" / "COMPARE.md"
AGAIN = f"run `{score.COMMAND}` and look at what changed"


@pytest.fixture(scope="module")
def model():
    return random_model(CONFIG)


@pytest.fixture(scope="module")
def batch():
    return Batch.pack([[5, 3, 9, 9, 1, 7], [2, 8, 4]], loss_from=[2, 1], prefix=[0, 1])


@pytest.fixture(scope="module")
def prefixes():
    return [Prefix.normal(CONFIG, P, std=0.5, seed=P, dtype="float64") for P in (3, 2)]


@pytest.fixture(scope="module")
def right(model, batch, prefixes):
    return trace(model, batch, prefixes, need="all", arguments=True)


def ops_with(**changed):
    """The reference with other functions in it."""
    names = [name for name in vars(reference) if not name.startswith("__")]
    functions = {name: getattr(reference, name) for name in names}
    return types.SimpleNamespace(**(functions | changed))


def first(b, **options):
    """The first comparison in which it parts from the reference, or the last."""
    for comparison in compare_implementations("reference", b, **options):
        if not comparison.same:
            break
    return comparison


# ---- the zoo ------------------------------------------------------------------------------------


def committed_rows():
    lines = [x for x in COMMITTED.read_text(encoding="utf-8").splitlines() if x.startswith("| ")]
    return {line.split(" | ")[0].removeprefix("| "): line for line in lines[1:]}


def test_the_committed_score_is_at_least_nine_in_ten_of_all_arithmetic_and_plumbing_bugs():
    rows = committed_rows()
    assert list(rows) == [bug.name for bug in score.bugs()], AGAIN
    assert {bug.kind for bug in BUGS.values()} - {bug.kind for bug in score.bugs()} == {"training"}
    right = sum(line.endswith("| yes |") for line in rows.values())
    assert right >= 0.9 * len(rows)
    assert f"**{right} of {len(rows)}**" in COMMITTED.read_text(encoding="utf-8")


SAMPLE = [
    *[bug.name for bug in score.bugs()][::9],
    "dk-and-dv-swapped",
    "dprefix-k-and-v-swapped",
    "outputs-share-a-buffer",
    "last-norm-skipped-in-the-backward",
    "second-norm-skipped",
    "second-norm-with-the-weights-of-the-first",
    "mask-adds-minus-1e4",
]


@pytest.mark.parametrize("name", dict.fromkeys(SAMPLE))
def test_a_bug_of_the_zoo_is_named_as_the_committed_table_says(name: str):
    assert score.row(score.find(BUGS[name])) == committed_rows()[name], AGAIN


def test_every_bug_above_the_ops_has_its_step_and_decoding_has_none():
    above = {bug.name for bug in score.bugs() if bug.module != "ops.reference"}
    decoding = {bug.name for bug in score.bugs() if bug.truth[0] == "decoding"}
    assert set(score.STEPS) == above - decoding
    silent = score.Found(BUGS["keys-cached-as-values"], "", "", "", "", "")
    assert not silent.right


def test_a_wrong_finger_does_not_count():
    bug = BUGS["scores-unscaled"]
    found = score.Found(bug, score.where(bug), "usual", "blocks.0.attn.out", "linear", "")
    assert score.where(bug) == "attention"
    assert not found.right
    assert "**0 of 1** (0%)" in score.page([found])


@pytest.mark.parametrize("name", ["second-norm-skipped", "activation-skipped", "last-norm-skipped"])
def test_a_wrong_model_is_traced_to_its_end(name: str):
    """The linear layer's backward is given what no layer took."""
    c = score.compared(BUGS[name])
    assert c.stopped == ""
    assert all(r.said != "is never computed" for r in c.rows)


# ---- two implementations ------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_the_fast_implementation_agrees_in_every_problem(dtype):
    found = list(compare_implementations("reference", "numpy", dtype))
    assert [c.problem for c in found] == list(problems(dtype))
    for c in found:
        assert c.same, verdict(c)
        assert not c.stopped
        assert max(r.error for r in c.rows) < c.tolerance / 10
        assert {"embed(positions)", "dprefix.kv#0", "loss"} <= {r.key for r in c.rows}


def test_the_first_op_is_named_in_each_direction_and_what_follows_is_not():
    def gelu(x):
        out, cache = reference.gelu(x)
        return 1.01 * out, cache

    def layernorm_backward(dout, cache):
        return 1.01 * reference.layernorm_backward(dout, cache)

    forward = first(ops_with(gelu=gelu))
    assert forward.first["forward"].key == "blocks.0.mlp.post"
    assert forward.first["forward"].error == pytest.approx(0.01)
    assert forward.first["backward"] is None
    assert "what is off follows from the forward" in verdict(forward)
    backward = first(ops_with(layernorm_backward=layernorm_backward))
    assert backward.first["forward"] is None
    assert backward.first["backward"].key == "blocks.2.dresid_post"
    assert "forward:  nothing is off" in verdict(backward)
    both = first(ops_with(gelu=gelu, layernorm_backward=layernorm_backward), tolerance=0.1)
    assert both.same  # all of it lies within a tenth


def test_an_implementation_that_raises_is_named_at_the_call_that_did():
    def gelu_backward(dout, cache):
        raise ValueError("not today")

    c = first(ops_with(gelu_backward=gelu_backward))
    assert (c.culprit.key, c.culprit.op) == ("blocks.2.mlp.dpre", "gelu_backward")
    assert "gelu_backward raised ValueError: not today" in verdict(c)
    assert "is never computed while blocks.2.mlp.gelu.backward(dout)" in verdict(c)
    with pytest.raises(InputError, match=r"not today.*give one that runs as the first"):
        next(compare_implementations(ops_with(gelu_backward=gelu_backward), "reference"))


def test_what_is_not_there_is_a_sentence():
    def stub(*_):
        raise NotImplementedError

    def takes_three(a, b, c):
        stub()

    with pytest.raises(InputError, match="lacks linear"):
        first(ops_with(linear=takes_three))
    with pytest.raises(InputError, match="has neither all ops nor run_model"):
        first(types.SimpleNamespace(gelu=reference.gelu))


def test_an_implementation_with_one_cache_for_all_keeps_the_names():
    """Its backward finds what its forward left on a stack of its own."""
    stack = []

    def layernorm(x, gain, bias, eps):
        out, cache = reference.layernorm(x, gain, bias, eps)
        stack.append(cache)
        return out, None

    def layernorm_backward_params(dout, cache):
        return reference.layernorm_backward_params(dout, stack[-1])

    def layernorm_backward(dout, cache):
        return reference.layernorm_backward(dout, stack.pop())

    mine = ops_with(
        layernorm=layernorm,
        layernorm_backward=layernorm_backward,
        layernorm_backward_params=layernorm_backward_params,
    )
    assert first(mine).same


def test_a_nan_is_off_and_one_in_both_is_not():
    nan, a = np.array([np.nan, 2.0]), np.array([1.0, 2.0])
    assert relative_error(nan, a) == relative_error(a, nan) == np.inf
    assert relative_error(nan, nan) == 0
    assert relative_error(np.array([-np.inf, 2.0]), np.array([-np.inf, 4.0])) == 0.5
    assert relative_error(np.array([0.0, 1e-3]), np.zeros(2)) == 1e-3
    assert relative_error(np.zeros((0, 3)), np.zeros((0, 3))) == 0


def test_the_line_within_the_op_is_named_where_both_show_theirs():
    c = score.compared(BUGS["row-sum-over-the-tokens-alone"])
    inner = c.inside(c.culprit)
    assert inner.key == "blocks.2.attn.row_sum#0"
    assert "the first is blocks.2.attn.row_sum#0, line" in sentence(c, c.culprit)
    assert "[:, :, P:].sum(axis=-1" in sentence(c, c.culprit)


def test_a_model_that_hands_an_op_more_than_it_should_is_told_from_the_op():
    """The sequence without a prefix is given one."""
    problem = problems()["frozen"]
    good = trace_ops(problem, "reference", "good")

    def generous_backward(model, prefixes, batch, reduction, tracer, need):
        attention = tracer.attention
        more = prefixes[1].kv[0]

        def with_more(q, k, v, prefix_k, prefix_v, offsets):
            return attention(q, k, v, [*prefix_k[:3], more[0]], [*prefix_v[:3], more[1]], offsets)

        tracer.attention = with_more
        return loss_backward(model, prefixes, batch, reduction, tracer, need)

    house = types.SimpleNamespace(**(vars(HOUSE) | {"loss_backward": generous_backward}))
    c = compare(good, trace_ops(problem, "reference", "generous", house))
    assert c.culprit.key == "blocks.0.attn.prefix_k#3"
    assert "has no counterpart" in verdict(c)


# ---- a whole model ------------------------------------------------------------------------------


def whole_with(bug: str) -> Implementation:
    """A model that shows tensors by name, and no ops."""
    ops = zoo.plant(BUGS[bug]).functions if bug else reference
    return Implementation(types.SimpleNamespace(run_model=House(ops).run_model), "whole")


def test_a_whole_model_is_compared_by_the_names_that_it_shows():
    assert not has_ops(whole_with(""))
    assert all(c.same for c in compare_implementations("reference", whole_with("")))
    for bug, key in (
        ("scores-unscaled", "blocks.0.attn.z"),
        ("bias-not-added", "blocks.0.attn.q"),
        ("scale-forgotten-in-dq", "blocks.2.attn.dq"),
        ("dprefix-unscaled", "blocks.2.attn.dk"),
        ("prefix-gradient-zero", "dprefix.kv#0"),
        ("one-hot-missing", "dlogits"),
    ):
        assert first(whole_with(bug)).culprit.key == key, bug


def test_an_own_model_beside_own_ops_is_compared_after_them():
    """Its ops are right under this project's model, and its own model is not."""

    def stub(problem):
        raise NotImplementedError

    c = first(zoo.plant(BUGS["activation-skipped"]))
    assert c.b == "activation-skipped's run_model"
    assert c.culprit.key == "blocks.0.mlp.out"
    right = list(compare_implementations("reference", zoo.plant(BUGS["keys-cached-as-values"])))
    assert [c.problem for c in right] == 2 * list(problems())
    assert all(c.same for c in right)
    of_ops = list(compare_implementations("reference", ops_with(run_model=stub)))
    assert [c.problem for c in of_ops] == list(problems())
    with pytest.raises(InputError, match="no model to run: run_model is a stub"):
        first(types.SimpleNamespace(run_model=stub))


def test_the_other_model_may_be_one_of_pytorch():
    adapter = load(str(Path(__file__).with_name("peft_adapter.py")))
    c = next(compare_implementations("reference", adapter))
    assert c.same, verdict(c)
    assert {"blocks.1.attn.dq", "blocks.0.resid_post", "dprefix.kv#1", "dwte.weight"} <= {
        r.key for r in c.rows
    }
    wrong = next(compare_implementations(adapter, whole_with("erf-gelu")))
    assert wrong.culprit.key == "blocks.0.mlp.post"


# ---- two saved traces ---------------------------------------------------------------------------


def test_with_arguments_a_trace_holds_what_each_op_is_given(model, batch, prefixes, right):
    plain = trace(model, batch, prefixes, need="all")
    assert not any("(" in r.name or r.op in ("enter", "sum") for r in plain)
    assert {r.key for r in plain} < {r.key for r in right}
    before = set(model.weights)
    for r in right:
        assert set(r.inputs) <= before, r.key
        assert r.key not in before, r.key
        before.add(r.key)
    positions = right["embed(positions)"].value
    assert positions.tolist() == [3, 4, 5, 6, 7, 8, 2, 3, 4]
    x = right["blocks.2.attn.c_proj(x)"].value
    assert np.array_equal(x, right["blocks.2.attn.z"].value.reshape(9, 32)[batch.rows])
    assert right["ln_f(eps)"].value == CONFIG.layer_norm_epsilon
    assert np.array_equal(
        right["dprefix.kv#1"].value[2, 0], right["blocks.2.attn.dprefix_k#1"].value
    )


def saved(tmp_path, model, batch, prefixes, **options):
    seen = trace(model, batch, prefixes, **({"need": "all"} | options))
    seen.save(tmp_path)
    return Trace.load(tmp_path)


def test_two_saved_traces_of_some_names_are_compared_over_the_gaps(
    tmp_path, model, batch, prefixes, right
):
    names = ["*.resid_*", "*.dresid_*", "*.mlp.post", "*.dprefix_k"]
    a = saved(tmp_path / "a", model, batch, prefixes, names=names)
    assert compare(a, a).same
    b = Trace.load(tmp_path / "a")
    for key in ("blocks.1.mlp.post", "blocks.1.resid_post", "blocks.2.resid_mid"):
        b[key].value = 1.1 * b[key].value
    c = compare(a, b)
    # resid_post is made of mlp.out, which is in neither: of mlp.post, then
    assert [r.key for r in c.rows if r.at_fault] == ["blocks.1.mlp.post"]
    of = {r.key: r.inputs for r in c.rows}
    assert of["blocks.1.resid_post"] == ("blocks.1.resid_mid", "blocks.1.mlp.post")
    assert compare(right, a).same


def test_an_intermediate_stands_for_its_op_where_that_gives_nothing_that_is_compared(
    model, batch, prefixes
):
    def with_another_pattern(names):
        a, b = (trace(model, batch, prefixes, names=names) for _ in range(2))
        b["blocks.1.attn.pattern#0"].value = 2 * b["blocks.1.attn.pattern#0"].value
        return compare(a, b)

    alone = with_another_pattern(["*.pattern", "*.dscores"])
    assert alone.culprit.key == "blocks.1.attn.pattern#0"
    assert "blocks.1.attn.pattern#0  attention                  1.0e+00  <- first" in table(alone)
    assert "forward:  attention: blocks.1.attn.pattern#0 is off by 1.0e+00" in verdict(alone)
    followed = with_another_pattern(["*.pattern", "*.z"])
    assert followed.same
    assert "off, but what their ops give is right: blocks.1.attn.pattern#0" in verdict(followed)
    below = trace(model, batch, prefixes, names=["*.resid_mid", "*.pattern"])
    below["blocks.0.resid_mid"].value = 2 * below["blocks.0.resid_mid"].value
    below["blocks.1.attn.pattern#0"].value = 2 * below["blocks.1.attn.pattern#0"].value
    found = compare(trace(model, batch, prefixes, names=["*.resid_mid", "*.pattern"]), below)
    assert [r.key for r in found.rows if r.at_fault] == ["blocks.0.resid_mid"]


def test_traces_of_different_inputs_are_refused_with_the_first_difference(
    model, batch, prefixes, right
):
    def refused(sentence, other_model=model, other_batch=batch, other_prefixes=prefixes):
        other = trace(other_model, other_batch, other_prefixes)
        with pytest.raises(InputError, match=f"different inputs: their {sentence}"):
            compare(right, other)

    def packed(sequences, prefix=(0, 1)):
        return Batch.pack(sequences, loss_from=[2, 1], prefix=prefix)

    refused(
        "tokens differ at 7, the first is 8, the second 6",
        other_batch=packed([[5, 3, 9, 9, 1, 7], [2, 6, 4]]),
    )
    refused(
        "tokens differ in number, the first are 9, the second 8",
        other_batch=packed([[5, 3, 9, 9, 1], [2, 8, 4]]),
    )
    refused(
        "offsets, where sequences begin differ at 1, the first is 6, the second 5",
        other_batch=packed([[5, 3, 9, 9, 1], [7, 2, 8, 4]]),
    )
    refused(
        "choice of prefixes, one for each sequence differ at 1",
        other_batch=packed([[5, 3, 9, 9, 1, 7], [2, 8, 4]], (0, 0)),
    )
    refused(
        "rows that predict differ in number, the first are 6, the second 5",
        other_batch=Batch.pack([[5, 3, 9, 9, 1, 7], [2, 8, 4]], [3, 1], [0, 1]),
    )
    elsewhere = packed([[5, 3, 9, 9, 1, 7], [2, 8, 4]])
    refused(
        "targets differ at 5, the first is 4, the second 3",
        other_batch=replace(elsewhere, targets=np.array([9, 9, 1, 7, 8, 3])),
    )
    refused(
        "weights of the targets differ at 0, the first is 1.0, the second 2.0",
        other_batch=replace(elsewhere, weights=np.array([2.0, 1, 1, 1, 1, 1])),
    )
    refused("weights, by their sha256 differ", other_model=random_model(CONFIG, seed=5))
    refused("prefixes, by their sha256 differ", other_prefixes=prefixes[::-1])


def test_a_trace_that_does_not_say_what_is_made_of_what_is_damaged(model, batch, prefixes):
    a = trace(model, batch, prefixes, names="*.resid_mid")
    for made_of in ("x", {"loss": "logits"}, {"loss": [{}]}):
        a.about["made_of"] = made_of
        with pytest.raises(InputError, match="what is made of what: it is damaged"):
            compare(a, a)


def test_traces_without_a_name_in_common_are_refused(model, batch, prefixes):
    a = trace(model, batch, prefixes, names="*.resid_mid")
    b = trace(model, batch, prefixes, names="*.resid_post")
    with pytest.raises(InputError, match="no name in common"):
        compare(a, b)


def test_the_tolerance_is_that_of_the_coarser_of_two_traces(batch, prefixes, model):
    single = random_model(CONFIG)
    single.weights = {name: a.astype(np.float32) for name, a in model.weights.items()}
    narrow = [Prefix(p.kv.astype(np.float32)) for p in prefixes]
    a, b = trace(model, batch, prefixes), trace(single, batch, narrow)
    c = compare(a, b)
    assert c.tolerance == 1e-4
    assert c.same, verdict(c)
    assert not compare(a, b, tolerance=1e-9).same


# ---- the command --------------------------------------------------------------------------------


@pytest.fixture
def wrong_ops(tmp_path):
    text = Path(reference.__file__).read_text(encoding="utf-8")
    bug = text.replace("dq_b = dscores @ keys / hs**0.5", "dq_b = dscores @ keys")
    assert bug != text
    path = tmp_path / "my_ops.py"
    path.write_text(bug, encoding="utf-8")
    return str(path)


def test_the_command_names_the_op_and_writes_table_picture_and_json(tmp_path, wrong_ops, capsys):
    drawn, written = tmp_path / "growth.svg", tmp_path / "c.json"
    arguments = ["compare", "reference", wrong_ops]
    assert main([*arguments, "--picture", str(drawn), "--json", str(written)]) == 1
    out = capsys.readouterr().out
    assert "backward: attention_backward: blocks.2.attn.dq is off by" in out
    (line,) = [line for line in out.splitlines() if line.endswith("<- first")]
    assert line.split()[:2] == ["blocks.2.attn.dq", "attention_backward"]
    assert "blocks.0.attn.c_proj(x)" not in out
    data = json.loads(written.read_text(encoding="utf-8"))
    assert data["same"] is False
    (problem,) = data["problems"]
    assert problem["first"]["forward"] is None
    assert problem["first"]["backward"]["name"] == "blocks.2.attn.dq"
    assert problem["first"]["backward"]["op"] == "attention_backward"
    assert "blocks.2.attn.dq" in drawn.read_text(encoding="utf-8")
    assert main([*arguments, "--all", "--json", "-"]) == 1
    assert json.loads(capsys.readouterr().out) == data


def test_the_command_says_that_two_agree(tmp_path, capsys):
    drawn = tmp_path / "growth.png"
    assert main(["compare", "reference", "numpy", "--all", "--picture", str(drawn)]) == 0
    out = capsys.readouterr().out
    assert out.count("numpy agrees with reference") == len(problems())
    assert "blocks.0.attn.c_proj(x)" in out
    assert drawn.read_bytes().startswith(b"\x89PNG")


def test_the_command_reads_saved_traces(tmp_path, model, batch, prefixes, capsys):
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    seen = saved(a, model, batch, prefixes)
    assert main(["compare", a, a]) == 0
    seen["blocks.1.attn.z"].value = seen["blocks.1.attn.z"].value + 1
    seen.save(b)
    capsys.readouterr()
    assert main(["compare", a, b]) == 1
    out = capsys.readouterr().out
    assert f"{b} parts from {a}, at a tolerance of 1e-09" in out
    assert "forward:  attention: blocks.1.attn.z is off by" in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["reference", "no_such_ops"], "no_such_ops cannot be imported"),
        (["reference", "numpy", "--tolerance", "-1"], "--tolerance is -1.0: expected 0 or more"),
        (["reference", "numpy", "--picture", "x.jpg"], "ends in .png or .svg"),
        (["{saved}", "numpy"], "is a saved trace and numpy is not"),
        (["{saved}", "{saved}", "--dtype", "float32"], "these are traces: leave it out"),
        (["{damaged}", "{saved}"], "is damaged"),
    ],
)
def test_bad_input_is_a_sentence(tmp_path, model, batch, prefixes, arguments, said, capsys):
    places = {name: str(tmp_path / name) for name in ("saved", "damaged")}
    for place in places.values():
        saved(place, model, batch, prefixes, names="*.resid_mid")
    about = Path(places["damaged"], "trace.json")
    about.write_text(about.read_text().replace('"line": 0', '"line": "0"', 1))
    assert main(["compare", *(a.format(**places) for a in arguments)]) == 2
    assert said in capsys.readouterr().err


def test_the_picture_marks_the_first_and_shows_what_is_no_number(tmp_path):
    c = score.compared(BUGS["mask-inverted"])
    assert np.isinf(c.culprit.error)
    picture(c, tmp_path / "a.svg")
    text = (tmp_path / "a.svg").read_text(encoding="utf-8")
    assert "first forward" in text
    assert "no number" in text
    same = compare(*[trace_ops(problems()["usual"], "reference", "a")] * 2)
    picture(same, tmp_path / "b.svg")
    assert "first forward" not in (tmp_path / "b.svg").read_text(encoding="utf-8")
    assert "off" not in table(same)


def test_a_picture_is_drawn_whatever_the_files_are_called(tmp_path):
    c = compare(*[trace_ops(problems()["usual"], "reference", "costs_$5_or_$x^{.py")] * 2)
    for name in ("a.SVG", "b.SVG"):
        picture(c, tmp_path / name)
    text = (tmp_path / "a.SVG").read_text(encoding="utf-8")
    assert "costs_$5_or_$x^{.py against" in text
    assert text == (tmp_path / "b.SVG").read_text(encoding="utf-8")
