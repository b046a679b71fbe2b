"""Stepping through a trace: pdb at the very line, the stepper's words, central differences."""

import contextlib
import io
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from minprefix import GPT2, Batch, Config, InputError, Prefix, loss_and_grad
from minprefix.cli import _parser, main
from minprefix.cli.step import SLOTS
from minprefix.ops import reference
from minprefix.trace import Trace, trace
from minprefix.trace.fd import Differences
from minprefix.trace.heat import heat
from minprefix.trace.instrument import source_of
from minprefix.trace.laws import laws
from minprefix.trace.stepper import Stepper
from minprefix.trace.tracer import Tracer
from minprefix.trace.wiring import model_line
from tests.conftest import random_model

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """More of them wait for each other, where products are as small as these."""
    with threadpool_limits(1):
        yield


# ---- stop_at: pdb itself ----

TRACED = """
import sys
from minprefix import Batch, GPT2, Prefix
from minprefix.trace import trace

model = GPT2.load("tiny")
prefix = Prefix.normal(model.config, 3, seed=0)
seen = trace(model, Batch.pack([[1, 2, 3, 4, 5]]), prefix, stop_at=sys.argv[1])
print("records", len(seen))
"""


def debugged(stop_at: str, *commands: str) -> str:
    """What pdb says to these commands when it is read from a pipe."""
    result = subprocess.run(
        [sys.executable, "-c", TRACED, stop_at],
        input="\n".join(commands) + "\n",
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "records" in result.stdout  # it ran to its end
    return result.stdout


def test_stop_at_shows_the_very_line_in_pdb_and_its_value_is_alive():
    said = debugged("blocks.2.attn.dprefix_k", "p dprefix_k[-1].shape", "w", "n", "c")
    line = source_of(reference).made["attention_backward", "dprefix_k"]
    first, second, *rest = said.splitlines()
    assert first == f"> {reference.__file__}({line})attention_backward()"
    assert second == "-> dprefix_k.append(dkeys[:, :P])  # (NH, P, hs)"
    assert rest[0] == "(Pdb) (5, 3, 32)"
    assert "block_backward()" in said  # w: who called it
    # n goes on from there; c stops no more, as there is one sequence
    assert f"(Pdb) > {reference.__file__}({line + 1})attention_backward()" in rest
    assert said.count("-> dprefix_k.append(") == 2  # at the stop and in w


def test_stop_at_what_an_op_gives_back_is_at_its_return():
    said = debugged("blocks.1.ln_2.out", "p __return__[0].shape, xhat.shape", "n", "c")
    line = source_of(reference).made["layernorm", "return"]
    assert said.startswith(f"--Return--\n> {reference.__file__}({line})layernorm()")
    assert "((5, 160), (5, 160))" in said
    assert said.count("--Return--") == 1
    assert "-> h = ops.linear(m, " in said  # n: back in the model, past the tracer


def test_stop_at_what_the_model_adds_up_is_where_it_is_handed_on():
    said = debugged("blocks.1.resid_mid", "p x.shape", "c")
    assert "mlp_half()\n-> m, ln_2 = ops.layernorm(x, " in said
    assert "(5, 160)" in said


def test_stop_at_takes_a_pattern():
    said = debugged("blocks.*.attn.dq_b", "c", "c", "c", "c")
    assert said.count("-> dq_b = dscores @ keys") == 4


# ---- central differences ----

SMALL = Config(n_layer=2, n_head=2, n_embd=16, vocab_size=20, n_positions=32)


def ids(T, seed):
    return np.random.default_rng(seed).integers(1, 20, T).tolist()


@pytest.fixture(scope="module")
def small():
    """A model, a batch of three sequences of which two share a prefix, and the prefixes."""
    model = random_model(SMALL)
    prefixes = [
        Prefix.normal(SMALL, 3, std=0.5, dtype="float64"),
        Prefix.normal(SMALL, 2, std=0.5, seed=1, layers=[1], dtype="float64"),
    ]
    batch = Batch.pack([ids(5, 0), ids(3, 1), ids(4, 2)], loss_from=[2, 1, 3], prefix=[0, 1, 0])
    return model, batch, prefixes


@pytest.fixture(scope="module")
def whole(small):
    model, batch, prefixes = small
    return trace(model, batch, prefixes, need="all")


#: what the backward computes on its way that is no gradient of a value of the forward
STEPS = {"one_hot", "mean_dxhat", "mean_dxhat_xhat", "du_dx", "row_sum"}


def is_gradient(record):
    """And of something that is there: `head.dbias` is of a bias that the head has not, and of a
    prefix that a layer does not see there are no entries."""
    last = record.name.rpartition(".")[2]
    there = record.value.size > 0 and record.name != "head.dbias"
    return record.direction == "backward" and last not in STEPS and there


@pytest.mark.long
def test_a_central_difference_agrees_at_an_entry_of_every_gradient(small, whole):
    rng = np.random.default_rng(0)
    differences = Differences(*small, need="all")
    moved = set()
    for record in filter(is_gradient, whole):
        a = record.value
        index = tuple(map(int, rng.choice(np.argwhere(a))))  # not one of the zeros
        d = differences.at(record.key, index)
        assert d.analytic == pytest.approx(a[index], rel=1e-12)
        assert d.apart < 1e-9 * np.abs(a).max()  # over one step alone: off by 5e-9
        assert d.agrees, (record.key, d)
        assert d.resolves < 1e-5 * np.abs(a).max(), (record.key, d)
        moved.add(d.moved)
    assert moved >= set(small[0].weights) | {"lm_head.weight"}  # tied: head and embedding apart
    assert {"blocks.0.attn.prefix_k#2", "blocks.1.attn.scores#1", "blocks.1.ln_1.x"} <= moved


def test_every_value_of_the_forward_can_be_moved_where_it_is_made(small, whole):
    """What a tracer is shown is the array that the forward goes on with: what is written into it
    reaches the loss."""
    differences, loss = Differences(*small), whole.about["loss"]
    for record in whole:
        if record.direction == "forward" and record.name != "loss":
            # not every entry does: a hidden score, a row of the top block that predicts nothing
            entries = np.random.default_rng(0).permutation(list(np.ndindex(record.shape)))
            changed = (
                differences._loss(record.key, tuple(map(int, entry)), 0.1, "")[0] != loss
                for entry in entries[:20]
            )
            assert any(changed), record.key


def test_a_central_difference_leaves_model_and_prefix_as_they_were(small):
    model, batch, prefixes = small
    before = [model.fingerprint(), *(p.kv.tobytes() for p in prefixes)]
    differences = Differences(model, batch, prefixes, "all")
    for key in ("blocks.1.attn.dprefix_k#0", "embed.dwte", "ln_f.dgain", "blocks.0.dresid_pre"):
        differences.at(key, (1,) * differences._record(key).value.ndim)
    assert before == [model.fingerprint(), *(p.kv.tobytes() for p in prefixes)]


@pytest.mark.parametrize("wrong", ["", " / hs**0.5 * 1.0001"])
def test_a_central_difference_sees_a_wrong_line_where_it_is(small, whole, wrong):
    text = Path(reference.__file__).read_text()
    bug = text.replace("dq_b = dscores @ keys / hs**0.5", f"dq_b = dscores @ keys{wrong}")
    assert bug != text
    differences = Differences(*small, text=bug)

    def agrees(key):
        a = whole[key].value
        index = tuple(map(int, np.unravel_index(np.abs(a).argmax(), a.shape)))
        return differences.at(key, index).agrees

    assert not agrees("blocks.1.attn.dq#1")
    assert not agrees("blocks.1.attn.dq_b#2")
    assert agrees("blocks.1.attn.dscores#1")
    assert agrees("blocks.1.attn.dkeys#1")


def test_a_float32_model_is_compared_in_float64(small):
    model, batch, prefixes = small
    weights = {name: a.astype(np.float32) for name, a in model.weights.items()}
    single = GPT2(model.config, weights, name="single")
    d = Differences(single, batch, prefixes).at("blocks.1.attn.dv", (0, 1, 2))
    assert d.agrees
    assert d.apart < 1e-8
    assert d.analytic != float(np.float32(d.analytic))


def test_a_value_of_the_forward_is_held_against_its_gradient_if_there_is_one(small, whole):
    differences = Differences(*small)
    d = differences.at("blocks.1.attn.scores#0", (1, 2, 3))
    assert d.analytic == pytest.approx(whole["blocks.1.attn.dscores#0"].value[1, 2, 3])
    assert d.agrees
    d = differences.at("blocks.1.ln_2.var", (0, 0))
    assert d.analytic is None
    assert d.numeric != 0


def test_logits_in_parts_have_central_differences_too(small, monkeypatch):
    monkeypatch.setattr("minprefix.gpt2.HEAD_ROWS", 4)
    model, batch, prefixes = small
    differences = Differences(model, batch, prefixes, "all")
    for key in ("dlogits.from_4", "ln_f.dout.from_4", "ln_f.dout"):
        d = differences.at(key, (0, 3))
        assert d.agrees
        assert d.numeric != 0
    with pytest.raises(InputError, match=r"head.dweight: it covers some of the rows"):
        differences.at("head.dweight", (0, 3))


@pytest.mark.parametrize(
    ("key", "index", "said"),
    [
        ("blocks.1.attn.row_sum#0", (0, 0, 0), "is not the gradient of a value of the forward"),
        ("blocks.1.mlp.du_dx", (0, 0), "is not the gradient of a value of the forward"),
        ("loss", (), "is not the gradient of a value of the forward"),
        (
            "head.dbias",
            (0,),
            "fd can move nothing whose gradient is head.dbias: the head has no bias",
        ),
        ("blocks.1.attn.dscore#0", (0, 0, 0), "near it are blocks.1.attn.dscores#0"),
        ("blocks.0.attn.dprefix_k#1", (0, 0, 0), r"is no entry of .* \(2, 0, 8\)"),
        ("blocks.1.attn.dprefix_k#0", (0, 0), r"\[0, 0\] is no entry of .* \(2, 3, 8\): give 3"),
        ("blocks.1.attn.dprefix_k#0", (0, 3, 0), r"\[0, 3, 0\] is no entry of"),
    ],
)
def test_what_has_no_central_difference_is_a_sentence(small, key, index, said):
    with pytest.raises(InputError, match=said):
        Differences(*small, need="all").at(key, index)


# ---- the stepper ----


@pytest.fixture
def session(monkeypatch, capsys):
    """Commands through a pipe. -> the status, what was said."""

    def run(*commands, options=(), status=0):
        monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{c}\n" for c in commands)))
        got = main(["step", *map(str, options)])
        captured = capsys.readouterr()
        assert got == status, captured.err + captured.out[-500:]
        return captured.out if status != 2 or not captured.err else captured.err

    return run


SHORT = ("--prompt", "name[The Red Fox]", "--target", "The Red Fox is a pub.")


def shown(said):
    """The keys of the records that were shown, in order."""
    return re.findall(r"^(?:\(step\) )?> (\S+) \(.*\) \w+   \w", said, re.MULTILINE)


@pytest.mark.long
def test_a_script_walks_the_whole_forward_and_backward_and_fd_agrees_at_50_entries(session):
    model = GPT2.load("tiny")
    prefix = Prefix.normal(model.config, 3, seed=0)
    options = (*SHORT, "--prefix-length", 3, "--need", "all")
    prompt = model.encode("name[The Red Fox]\n")
    target = [*model.encode("The Red Fox is a pub."), model.config.eos_token_id]
    batch = Batch.pack([prompt + target], loss_from=len(prompt))
    seen = trace(model, batch, prefix, need="all")
    rng = np.random.default_rng(0)
    gradients = [r for r in seen if is_gradient(r)]
    script = ["s"] * (len(seen) - 1)
    for n in rng.permutation(len(gradients))[:50]:
        a = gradients[n].value
        index = rng.choice(np.argwhere(a))  # random, but not one of the zeros
        script += [f"j {gradients[n].key}", f"fd {' '.join(map(str, index))}"]
    said = session(*script, options=options)
    assert shown(said)[: len(seen)] == [r.key for r in seen]
    assert said.count("--Forward--\n") == 1
    assert said.index("--Forward--") < said.index("--Backward--")
    numbers = re.findall(r"difference  (\S+) .*\n  analytic    (\S+) ", said)
    assert len(numbers) == 50
    for numeric, analytic in numbers:
        assert float(numeric) == pytest.approx(float(analytic), rel=1e-6, abs=5e-9)
    assert sum(abs(float(analytic)) > 1e-5 for _, analytic in numbers) > 30  # they tell something
    assert said.count("they agree") + said.count("both are too small to tell") == 50
    assert said.count("they agree") > 30
    assert "THEY DO NOT" not in said


def test_n_goes_from_op_to_op_and_s_into_their_lines(session):
    said = session("n", "n", "s", "s", "n", "back", "n 2", "", options=SHORT)
    assert shown(said) == [
        "blocks.0.resid_pre",
        "blocks.0.ln_1.out",
        "blocks.0.attn.qkv",
        "blocks.0.attn.q",
        "blocks.0.attn.k",
        "blocks.0.attn.v",
        "blocks.0.attn.k",
        "blocks.0.attn.prefix_k#0",
        "blocks.0.attn.z",  # an empty line: n 2 again
    ]
    assert "(step) n 2\n> blocks" in said  # a pipe's commands are echoed


def test_n_alone_reaches_the_end_and_says_so(session):
    said = session(*["n"] * 300, "n", options=SHORT)
    assert shown(said)[-1] == "blocks.0.attn.dv"
    assert "--End--" in said
    said = session("back", "q", options=SHORT)
    assert "--Begin--" in said


def test_breakpoints_are_patterns_and_c_goes_from_one_to_the_next(session):
    said = session(
        "b *.dprefix_k", "b logits", "b", "c", "c", "cl logits", "j 0", "c", "cl", "c",
        options=SHORT, status=2,
    )  # fmt: skip
    assert "breakpoint at *.dprefix_k: blocks.3.attn.dprefix_k#0 and 3 more" in said
    assert "(step) b\n*.dprefix_k\nlogits\n" in said
    assert shown(said)[1:] == [
        "logits",
        "blocks.3.attn.dprefix_k#0",
        "blocks.2.attn.dprefix_k#0",
        "blocks.0.attn.dv",
    ]
    assert "*** nothing in the trace is called '0'" in said


def test_an_unknown_name_lists_the_nearest_and_makes_a_script_end_with_2(session):
    said = session("b *.dprefx_k", "j blocks.1.attn.patern", "cl q", options=SHORT, status=2)
    assert "*** nothing in the trace is called '*.dprefx_k': near it are" in said
    assert "near it are blocks.1.attn.pattern" in said
    assert "*** there is no breakpoint 'q': there are none" in said
    said = session("p blocks.1.attn.patern[0]", "p h.1.ln_1.wait", "p 2 * blocks.9.attn.pattern",
                   options=SHORT, status=2)  # fmt: skip
    assert "called 'blocks.1.attn.patern': near it are blocks.1.attn.pattern" in said
    assert "called 'h.1.ln_1.wait': near it are h.1.ln_1.weight" in said
    assert "called 'blocks.9.attn.pattern': near it are " in said
    assert "SyntaxError" not in said


def test_p_and_j_of_nothing_say_what_they_want(session):
    said = session("p", "j", "w", options=SHORT, status=2)
    assert "*** p EXPR: expected an expression" in said
    assert "*** j NAME: expected a record" in said
    assert "forward of 1 sequence, " in said


def test_p_knows_the_values_that_have_been_computed_the_nearest_first(session):
    said = session(
        "j blocks.1.attn.dscores",
        "p dscores.shape, pattern.shape, np.float64(1)",
        "p (pattern is blocks.1.attn.pattern#0), blocks.2.attn.pattern.sum() > 0",
        "p [round(float(x.sum())) for x in pattern]",
        "p h.1.ln_1.weight.shape, model.config.n_layer, t['blocks.0.attn.q'].name",
        "scores.ndim",
        "p dq_b is blocks.2.attn.dq_b",  # of this block it is not there yet
        options=SHORT,
    )
    assert re.search(r"\(\(5, (\d+), (\d+)\), \(5, \1, \2\), np.float64\(1.0\)\)", said)
    assert "(True, np.True_)" in said
    assert re.search(r"\[\d+, \d+, \d+, \d+, \d+\]", said)
    assert "((160,), 4, 'blocks.0.attn.q')" in said
    assert "(step) scores.ndim\n3\n" in said
    assert "blocks.2.attn.dq_b\nTrue" in said
    said = session("j blocks.3.attn.q", "p blocks.3.attn.dq", "p pattrn", options=SHORT, status=2)
    assert "*** blocks.3.attn.dq is computed later: b blocks.3.attn.dq and c go" in said
    assert "*** NameError: name 'pattrn' is not defined; here are q, qkv\n" in said


def test_why_says_formula_mirror_and_what_came_in(session):
    said = session("j blocks.2.attn.dscores", "why", options=SHORT)
    assert "formula   attention: z = softmax(q K^T / sqrt(hs)) V" in said
    made = source_of(reference).made
    line, mirror = made["attention_backward", "dscores"], made["attention", "pattern"]
    assert f"line      reference.py:{line}  dscores = pattern * (dpattern - row_sum)" in said
    assert f"mirrors   reference.py:{mirror}  pattern = softmax(np.where(" in said
    assert "incoming  blocks.2.attn.dpattern#0 (5, " in said
    assert "incoming  blocks.2.attn.row_sum#0" in said
    assert "forward's blocks.2.attn.pattern#0" in said
    said = session("j blocks.2.dresid_mid", "why", "j blocks.2.ln_1.dx", "why", options=SHORT)
    assert "incoming  blocks.2.dresid_post" in said
    assert "mirrors   x + f(x): the gradient goes both ways" in said
    assert "weight    h.2.ln_1.weight" in said
    assert "incoming  blocks.2.ln_1.dout" in said
    said = session("j blocks.2.attn.dq", "why", options=(*SHORT, "--names", "*.dq"))
    assert "not kept  blocks.2.attn.dz" in said


def test_l_and_w_show_the_source_and_the_place(session):
    said = session("j blocks.2.attn.dscores", "w", "l", "ll", "j blocks.1.resid_mid", "l",
                   options=SHORT)  # fmt: skip
    assert "  blocks.2\n  blocks.2.attn\n  attention_backward, sequence 0   " in said
    at = source_of(reference).made["attention_backward", "dscores"]
    assert f"{at:4} ->         dscores = pattern * (dpattern - row_sum)" in said
    assert said.count(f"{at:4} ->") == 2
    assert re.search(r"^ +\d+    def attention_backward\(", said, re.MULTILINE)
    assert re.search(r"^ +\d+        return AttentionGrads\(.*\n\(step\)", said, re.MULTILINE)
    assert " ->     x = x + ops.linear(z, w" in said


def test_a_name_of_several_sequences_is_that_of_the_one_we_are_at(whole):
    stepper = Stepper(whole, stdin=io.StringIO(), stdout=io.StringIO())
    for of in "#1", "#2":
        stepper.do_j(f"blocks.1.attn.dscores{of}")
        assert stepper._value("blocks.1.attn.pattern") is whole[f"blocks.1.attn.pattern{of}"].value
        stepper.do_j("blocks.0.attn.pattern")
        assert stepper.record is whole[f"blocks.0.attn.pattern{of}"]


def test_every_record_has_a_line(whole):
    stepper = Stepper(whole, stdin=io.StringIO(), stdout=io.StringIO())
    for record in whole:
        path, line, text = stepper._line(record)
        start = text.partition("(")[0].split("  ")[0]
        assert Path(path).read_text().splitlines()[line - 1].strip().startswith(start), record.key
        assert start


def test_what_comes_from_outside_has_no_line(small):
    model, batch, prefixes = small
    seen = trace(model, batch, prefixes, names=["batch.*", "prefix.kv", "*.prefix_k"],
                 arguments=True)  # fmt: skip
    lines = {r.name: model_line(r.name, r.op) for r in seen}
    assert lines["batch.tokens"] == lines["prefix.kv"] == 0
    assert lines["blocks.0.attn.prefix_k"] > 0


# ---- heat, laws ----


def test_heat_is_digits_where_there_is_no_terminal_with_a_bar_behind_the_prefix(session):
    said = session(
        "j blocks.2.attn.pattern", "heat 1", "heat pattern[0, :2, :3] * 0", options=SHORT
    )
    rows = re.findall(r"^ +\d+ ((?: {2}[.\d]| \|)+)$", said, re.MULTILINE)
    assert len(rows) > 10
    assert all(row.split()[SLOTS] == "|" for row in rows[:-2])
    assert "\x1b" not in said
    assert "pattern[0, :2, :3] * 0: all 0\n" in said
    said = session("j blocks.2.attn.pattern", "heat 5", "heat 'text'", options=SHORT, status=2)
    assert "*** heat 5: blocks.2.attn.pattern#0 is (5, " in said
    assert "*** 'text' is no tensor of numbers" in said


def test_heat_cells_are_the_values_in_ninths_of_the_largest():
    drawn = heat(np.array([[1.0, -0.5, 0.0], [np.nan, 0.1, np.inf]]), "a", False)
    assert drawn.splitlines()[1:] == ["   0   9 -4  .", "   1   ?  1  ?"]
    coloured = heat(np.array([[1.0, -1.0, 0.0]]), "a", True)
    assert coloured.splitlines()[1] == (
        "   0 \x1b[48;5;196m  \x1b[0m\x1b[48;5;27m  \x1b[0m\x1b[48;5;255m  \x1b[0m"
    )
    assert "(40 x 30 of 50 x 60 cells)" in heat(np.ones((50, 60)), "a", False)


def test_the_laws_hold_at_every_op_that_has_one(whole):
    counts = Counter(law.text.split(":")[0] for r in whole for law in laws(whole, r))
    for record in whole:
        for law in laws(whole, record):
            assert law.holds, (record.key, law)
    assert {"law 1", "law 2", "law 3", "law 4"} < set(counts)
    assert not laws(whole, whole["blocks.1.mlp.dpre"])
    assert "law 3: each row of blocks.1.dresid_post" in laws(whole, whole["ln_f.dxhat"])[0].text


def test_a_law_sees_a_row_sum_over_the_tokens_alone(small):
    text = Path(reference.__file__).read_text()
    bug = text.replace("(dpattern * pattern).sum(", "(dpattern * pattern)[..., P:].sum(")
    assert bug != text
    model, batch, prefixes = small
    tracer = Tracer.of_text(bug, model)
    loss_and_grad(model, prefixes, batch, ops=tracer)
    wrong = Trace(tracer.records, {"offsets": batch.offsets.tolist()})
    found = laws(wrong, wrong["blocks.1.attn.dscores#0"])
    assert [law.holds for law in found] == [False, True]


def test_a_law_that_is_off_by_a_millionth_does_not_hold(small):
    model, batch, prefixes = small
    seen = trace(model, batch, prefixes)
    for key, moved in (("blocks.1.attn.dscores#0", "blocks.1.attn.dk"), ("dlogits", "dlogits")):
        value = seen[moved].value = seen[moved].value.copy()
        value[0] += 1e-6 * np.abs(value).max()
        assert not laws(seen, seen[key])[0].holds


def test_laws_are_said_with_what_they_cannot_see(session):
    said = session("j blocks.2.attn.dq", "laws", "j blocks.2.attn.z", "laws", "j logits", "laws",
                   options=SHORT)  # fmt: skip
    assert "law 1: dk sums to 0 over all keys, prefix and tokens, sequence 0: off by" in said
    assert "each row of pattern sums to 1, sequence 0: law 2 rests on it" in said
    assert said.count(": holds\nlaws cannot see a missing scale or a flipped sign") == 2
    assert "no law is about linear alone" in said


# ---- options ----


def test_fd_says_when_the_run_that_is_shown_was_not_float64(session):
    said = session("j blocks.3.attn.dv", "fd", options=SHORT)
    assert re.search(r"this run +\S+ +float32: not what is compared", said)
    said = session("j blocks.3.attn.dv", "fd", options=(*SHORT, "--dtype", "float64"))
    assert "this run" not in said


def test_a_trained_prefix_is_stepped_through_with_its_own_template(session, tmp_path):
    model = GPT2.load("tiny")
    about = {"template": "{source} => {target}"}
    Prefix.normal(model.config, 2, layers=[1, 3]).save(tmp_path / "p", model, about)
    said = session("p model.decode(batch.tokens), prefix.layers, prefix.kv.dtype",
                   options=(*SHORT, "--prefix", tmp_path / "p", "--dtype", "float64"))  # fmt: skip
    assert "name[The Red Fox] => The Red Fox is a pub." in said
    assert "(1, 3), dtype('float64')" in said
    # alone, and as it is
    alone = ("--prompt", "name[The Red Fox]", "--prefix", tmp_path / "p")
    assert "'name[The Red Fox] =>'" in session("p model.decode(batch.tokens)", options=alone)
    said = session("p model.decode(batch.tokens)", options=(*alone, "--raw"))
    assert "'name[The Red Fox]'" in said
    said = session("n", options=("--prompt", "The Red Fox", "--prefix-length", 0))
    assert "no prefix" in said


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--target", "x"), "--target is what follows a prompt: give --prompt TEXT as well"),
        (("--prompt", "x y", "--raw", "--template", "{source}{target}"), "leave out --template"),
        (("--names", "blocks.1.attn.patern"), "near it are blocks.1.attn.pattern"),
        (("--max-bytes", "1000"), "narrow it by names"),
        (("--prompt", ""), "--prompt is empty: expected text for the model to read"),
        (("--prefix", "absent"), "absent"),
        (("--prefix", "absent", "--seed", "1"), "--seed draws a random prefix"),
        (("--prefix-length", "-1"), "prefix length is -1"),
        (("--prompt", "The " * 300), "room for 252"),
    ],
)
def test_options_that_cannot_be_are_one_sentence(session, options, said):
    err = session("n", options=options, status=2)
    assert err.startswith("minprefix: error: ")
    assert err.count("\n") == 1
    assert said in err


def test_step_has_help_with_an_example(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["step", "--help"])
    assert stop.value.code == 0
    assert "example:\n  minprefix step" in capsys.readouterr().out


def test_a_script_of_any_bytes_is_read_and_a_stream_of_ascii_is_written():
    result = subprocess.run(
        [sys.executable, "-m", "minprefix", "step", *SHORT],
        input=b"p '\xff\xfe'\nn\n# a comment\nw\n",
        capture_output=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONIOENCODING": "ascii:strict"},
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert b"> blocks.0.ln_1.out   record 6 of" in result.stdout


# ---- at a terminal ----


def sleeps(pid: int) -> bool:
    """Whether this process waits; where the system does not say, a moment's silence must do."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "S"
    except FileNotFoundError:
        time.sleep(0.5)
        return True


def at_a_terminal(*keys: str, **environment: str) -> str:
    """What is on the screen of a terminal where these are typed one after the other."""
    pid, terminal = pty.fork()
    if pid == 0:
        env = {k: v for k, v in os.environ.items() if k != "NO_COLOR"}
        env |= {"TERM": "xterm-256color", "PYTHONPATH": str(ROOT)} | environment
        os.execvpe(sys.executable, [sys.executable, "-m", "minprefix", "step", *SHORT], env)
    screen = b""

    def read_to_prompt():
        """Until a prompt is there and a key is waited for: Ctrl-C drops what was typed ahead, and
        one that comes after the prompt but before readline waits is not noticed."""
        nonlocal screen
        seen, end = len(screen), time.monotonic() + 300
        while True:
            waits = b"(step) " in screen[seen:] and sleeps(pid)
            if select.select([terminal], [], [], 0 if waits else 0.05)[0]:
                screen += os.read(terminal, 65536)
            elif waits:
                return
            elif time.monotonic() > end:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                pytest.fail(f"no prompt came: {screen[seen:]!r}")

    read_to_prompt()
    for key in keys:
        os.write(terminal, key.encode())
        read_to_prompt()
    os.write(terminal, b"q\n")
    with contextlib.suppress(OSError):  # it has ended: on Linux that is an error of reading
        while part := os.read(terminal, 65536):
            screen += part
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    return screen.decode()


def test_at_a_terminal_cells_are_coloured_lines_are_edited_and_ctrl_c_does_not_end_it():
    screen = at_a_terminal("heat\n", "j blocks.1.attn.q\n", "\x03", "zork\n", "w\n", "\x1b[A\n")
    assert "\x1b[48;5;" in screen
    assert "--KeyboardInterrupt--" in screen
    assert screen.count("> blocks.1.attn.q   record") == 2  # up brings w back
    assert "\x1b[48;5;" not in at_a_terminal("heat\n", NO_COLOR="1")


# ---- the editor ----


def test_the_editors_configurations_start_every_lesson_and_the_stepper():
    launch = json.loads((ROOT / ".vscode" / "launch.json").read_text(encoding="utf-8"))
    inputs = {i["id"]: i for i in launch["inputs"]}
    lessons = {path.name for path in (ROOT / "tutorials").glob("[0-9]*.py")}
    assert set(inputs["lesson"]["options"]) == lessons
    by_name = {c["name"]: c for c in launch["configurations"]}
    assert by_name["A lesson"]["program"] == "${workspaceFolder}/tutorials/${input:lesson}"
    stepper = next(c for c in by_name.values() if c.get("module") == "minprefix")
    assert stepper["args"][0] == "step"
    used = set(re.findall(r"\$\{input:(\w+)\}", json.dumps(launch["configurations"])))
    assert used == set(inputs)
    asked = [a.replace("${input:", "").rstrip("}") for a in stepper["args"]]
    assert _parser().parse_args(asked).prompt == "prompt"
