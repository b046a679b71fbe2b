"""`python -m tools.bench`: the same work for everyone, the arithmetic of figures and verdicts, the
record and its page. No time is a test."""

import importlib.metadata
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace

import numpy as np
import pytest

from minprefix import ops
from minprefix.errors import InputError
from minprefix.ops.threads import VARIABLES
from tools.bench import agree, command, machine, ours, pictures, report, run, summary, work
from tools.bench.__main__ import main, parser
from tools.bench.summary import Figure, Target
from tools.bench.work import Job

TINY = asdict(work.SHAPES["tiny"])
LENGTHS = [(3, 9), (12, 5), (7, 1)]
SMALL = {"config": TINY, "prefix": 10, "lengths": LENGTHS, "warm_up": LENGTHS, "steps": 3}


@pytest.fixture
def refused(capsys):
    def run(*argv):
        assert main([*map(str, argv)]) == 2
        err = capsys.readouterr().err.splitlines()
        assert len(err) == 1
        return err[0].removeprefix("python -m tools.bench: error: ")

    return run


def answer_of(job: Job, r: int) -> dict:
    """What a process might answer: ours takes 1, the peers 4, a little more in later rounds."""
    seconds = (1.0 if job.who == "ours" else 4.0) * (1 + 0.01 * r)
    if job.task == "train":
        sizes = job.arguments.get("sizes", {"T": 1, "P": 1, "B": 1, "L": 1})
        size = float(np.prod([sizes[s] for s in "TBL"])) + sizes["P"]
        memory = int((5e8 if job.who == "ours" else 2e9) + size * 4e3)
        n = job.arguments["steps"]
        return {
            "resident": 10**8,
            "peak_before": 10**8,
            "times": [seconds * size] * n,
            "losses": [5.4] * (n + 1),
            "peaks": [memory] * (n + 1),
            "peak": memory,
            "sha256": "0",
            "trained": 7,
        }
    if job.task == "products":
        times = {"steps": [1.0, 1.0], "linear": [0.7, 0.72], "attention": [0.2, 0.2]}
        return {**times, "flop": 10**11, "products": 9}
    if job.task == "decode":
        times = {"first": [0.1], "whole": [0.1 + 0.032 * seconds]}
        return {"cases": {name: times for name, *_ in job.arguments["cases"]}, "peak": 1}
    if job.task == "bandwidth":
        n = job.arguments["bytes"]
        return {"bytes": n, "times": [0.8e-3], "bytes_per_second": n / 0.8e-3}
    return {"open": 0.01, "first_token": 0.2, "bytes": 5 * 10**8}


def made_up(shape: str = "124m", whos: tuple[str, ...] = ("ours", "torch", "peft")) -> dict:
    """A record of everything, with numbers that one can check in one's head."""
    config, histogram = work.SHAPES[shape], work.stored_histogram()
    jobs = work.train_jobs(config, histogram, whos, 3)
    jobs += work.method_jobs(config, histogram, [w for w in whos if w != "torch"], 3)
    jobs += work.memory_jobs(config, histogram, whos, trained=True)
    jobs += work.decode_jobs(config, [w for w in whos if w != "torch"], 3)
    jobs += work.start_jobs(config, peers=True, rounds=3)
    jobs += work.growth_jobs(2)
    runs = []
    for job, r in run.in_turns(jobs):
        given = {k: v for k, v in asdict(job).items() if k not in ("rounds", "expected")}
        answer = {} if job.task == "command" else answer_of(job, r)
        runs.append({**given, "round": r, "seconds": 0.2, "answer": answer, "error": None})
    record = {
        "schema": report.SCHEMA,
        "date": "today",
        "command": "python -m tools.bench all",
        "minprefix": "0",
        "sections": [*command.SECTIONS, "methods"],
        "threads": 2,
        "rounds": 3,
        "shape": shape,
        "lengths": "a stored histogram",
        "skipped": {},
        "machine": machine.describe(),
        "finished": True,
        "runs": runs,
    }
    return json.loads(json.dumps(record))


# ---- the work ----


@pytest.mark.long
def test_the_stored_histogram_is_that_of_the_data(e2e, gpt2_bpe):
    assert work.histogram_of(e2e.parent) == work.stored_histogram()


def test_a_typical_batch_has_the_lengths_and_the_padding_of_a_random_one():
    histogram = work.stored_histogram()
    cells = list(histogram)
    counts = np.array([histogram[c] for c in cells])
    lengths = np.array([sum(c) for c in cells])
    mean = (lengths * counts).sum() / counts.sum()
    for n in (10, 32):
        batch = [sum(c) for c in work.typical(histogram, n)]
        assert batch == sorted(batch)
        assert abs(np.mean(batch) - mean) < 0.01 * mean
        draws = np.random.default_rng(0).choice(lengths, (2000, n), p=counts / counts.sum())
        waste = (1 - draws.mean(axis=1) / draws.max(axis=1)).mean()
        assert waste - 0.03 < 1 - np.mean(batch) / max(batch) < waste


def test_every_work_fits_into_the_model():
    for config in work.SHAPES.values():
        for train in work.TRAIN.values():
            longest = max(map(sum, train.lengths(work.stored_histogram())))
            assert longest + work.PREFIX <= config.n_positions
    for job in work.growth_jobs(1):
        sizes = job.arguments["sizes"]
        assert sizes["T"] + sizes["P"] <= work.GROWTH_CONFIG.n_positions


def test_everyone_computes_the_same_losses():
    pytest.importorskip("peft")
    from tools.bench import peers

    losses = {who: peers.train(SMALL, who)["losses"] for who in ("torch", "peft")}
    expected = ours.train(SMALL)["losses"]
    assert len(expected) == 4
    assert len(set(expected)) == 4  # the prefix moves
    for who, got in losses.items():
        np.testing.assert_allclose(got, expected, rtol=1e-4, err_msg=who)
    assert peers.train(SMALL, "peft-dropout")["losses"] != losses["peft"]


def test_peft_and_we_start_a_method_with_the_same_numbers_and_take_the_same_steps(monkeypatch):
    assert asked(monkeypatch, "methods") == (["torch", "peft", "peft-dropout"], {})


def test_every_method_trains_and_counts_what_it_trains():
    counts = {}
    for method in work.METHODS:
        answer = ours.train(SMALL | work.method_arguments(method))
        assert len(set(answer["losses"])) == 4, method
        counts[method] = answer["trained"]
    L, C, P, r = TINY["n_layer"], TINY["n_embd"], work.PREFIX, 8
    assert counts["lora"] == L * r * (C + 3 * C)
    assert counts["prompt-tuning"] == P * C
    assert counts["prefix"] == 2 * L * P * C
    assert counts["full"] > counts["adapters"] > counts["bitfit"]


def test_a_peft_whose_lora_computes_something_else_is_not_timed_at_that(monkeypatch):
    pytest.importorskip("peft")
    from tools.bench import peers

    config = peers._peft_config

    def scaled(method):
        made = config(method)
        if method.__class__.__name__ == "LoRA":
            made.lora_alpha *= 2
        return made

    monkeypatch.setattr(peers, "_peft_config", scaled)
    there, skipped = asked(monkeypatch, "methods")
    assert "peft" in there
    assert skipped.keys() == {"peft lora"}
    assert "computes other losses" in skipped["peft lora"]
    args = parser().parse_args(["methods"])
    jobs = command.plan(args, ("methods",), None, ["peft"], skipped)
    assert {j.work for j in jobs if j.who == "peft"} == {"prefix", "prompt-tuning"}
    assert {j.work for j in jobs if j.who == "ours"} == set(work.METHODS)


def test_everyone_writes_as_many_tokens():
    pytest.importorskip("peft")
    from tools.bench import peers

    sizes = {"config": TINY, "prefix": 10, "prompt": 7, "new": 4, "cases": [("c", 2, 2, 1)]}
    for answer in (ours.decode(sizes), peers.decode(sizes, "peft")):
        assert answer["cases"]["c"]["first"][0] > 0
        assert answer["cases"]["c"]["whole"][0] > 0


def asked(monkeypatch, *sections):
    """What a peer's answers to the questions before the bench lead to, in this process."""
    pytest.importorskip("peft")
    from tools.bench import peers

    def in_this_process(jobs, threads, scratch, on_record):
        for job in jobs:
            args = (job.arguments,) if job.who == "ours" else (job.arguments, job.who)
            answer = getattr(ours if job.who == "ours" else peers, job.task)(*args)
            on_record({**asdict(job), "answer": json.loads(json.dumps(answer)), "error": None})

    monkeypatch.setattr(command, "run_all", in_this_process)
    return command._agreeing(["torch", "peft", "peft-dropout"], sections, 1, False)


def test_peers_that_compute_the_same_are_all_measured(monkeypatch):
    assert asked(monkeypatch, "train", "decode") == (["torch", "peft", "peft-dropout"], {})
    assert asked(monkeypatch, "start", "growth") == (["torch", "peft", "peft-dropout"], {})


def test_a_peft_that_drops_its_prefix_when_it_writes_is_not_timed_at_that(monkeypatch, capsys):
    from peft import PeftModelForCausalLM

    def drops(self, **given):
        with self.disable_adapter():
            return self.base_model.generate(**given)

    monkeypatch.setattr(PeftModelForCausalLM, "generate", drops)
    there, skipped = asked(monkeypatch, "train", "decode")
    assert there == ["torch", "peft", "peft-dropout"]
    versions = [importlib.metadata.version(name) for name in ("transformers", "peft")]
    why = "with transformers {} and peft {} it computes without its prefix".format(*versions)
    assert skipped == {"generate": why}
    args = parser().parse_args(["all"])
    jobs = command.plan(args, ("train", "decode"), None, there, skipped)
    assert {j.who for j in jobs if j.section == "decode"} == {"ours"}
    assert {j.who for j in jobs if j.section == "train"} >= {"ours", "peft"}
    record = made_up(whos=("ours", "torch"))
    record["skipped"] = skipped
    assert f"transformers' generate, through PEFT was not measured: {why}." in report.text(record)


def test_a_peer_that_trains_otherwise_is_not_timed_at_all(monkeypatch):
    pytest.importorskip("peft")
    from tools.bench import peers

    init = peers.Peft.__init__

    def without(self, arguments, dropout=0.0):
        init(self, arguments, dropout)
        (slots,) = [p for p in self.model.parameters() if p.requires_grad]

        def forward(**given):
            out = self.model.base_model(**given)
            out.loss = out.loss + 0 * slots.sum()
            return out

        self.model.forward = forward

    monkeypatch.setattr(peers.Peft, "__init__", without)
    there, skipped = asked(monkeypatch, "memory")
    assert there == ["torch"]
    assert skipped.keys() == {"peft", "peft-dropout"}
    monkeypatch.undo()

    attend = peers.ByHand._each_sequence
    monkeypatch.setattr(
        peers.ByHand,
        "_each_sequence",
        lambda self, Ts: lambda q, k, v, i: attend(self, Ts)(q, k, 5 * v, i),
    )
    there, skipped = asked(monkeypatch, "train")
    assert there == ["peft", "peft-dropout"]
    assert skipped["torch"].endswith("it computes other losses than minprefix")


def test_a_question_that_gets_no_answer_proves_nothing():
    runs = [
        {"task": "train", "work": work, "who": who, "answer": answer}
        for work, who, answer in (
            ("losses", "ours", {"losses": [1.0]}),
            ("losses", "peft", None),
            ("no prefix", "ours", {"losses": [2.0]}),
        )
    ]
    assert agree.disagreements(runs) == {}
    runs[1]["answer"] = {"losses": [1.000001]}
    assert agree.disagreements(runs) == {}
    runs[1]["answer"] = {"losses": [2.0]}
    assert "without its prefix" in agree.disagreements(runs)["peft"]


def test_the_recorder_sees_every_product_of_linear_layers():
    recorder = ours.Recorder(ops.get("numpy"))
    model, prefix = ours._model_and_prefix(SMALL)
    batch = ours._batch(LENGTHS, model)
    loss, dkv = ours.loss_and_grad(model, prefix, batch, ops=recorder)
    plain = ours.loss_and_grad(model, prefix, batch)
    assert loss == plain[0]
    assert (dkv == plain[1]).all()
    N, M, C, V, L = 37, 15, TINY["n_embd"], TINY["vocab_size"], TINY["n_layer"]
    flop = 2 * sum(n * weight.size for n, weight in recorder.linear_products)
    head = 2 * 2 * M * C * V
    layer = 2 * 2 * N * 12 * C * C
    least = head + (L - 1) * layer - 2 * N * 3 * C * C  # no gradient below layer 0's attention
    assert least < flop <= head + L * layer
    heads = [n for n, weight in recorder.linear_products if sorted(weight.shape) == [C, V]]
    assert sum(heads) == 2 * M
    assert len(recorder.attention_products) == L
    for q, prefix_k, offsets in recorder.attention_products:
        assert len(q) == N
        assert [a.shape[1] for a in prefix_k] == [10] * 3
        assert np.diff(offsets).tolist() == [12, 17, 8]


def test_the_peak_is_what_the_process_held():
    before = machine.peak_bytes()
    a = np.ones(10**8, np.uint8) * 2  # two arrays of 100 MB
    assert machine.peak_bytes() >= before
    assert machine.peak_bytes() >= machine.resident_bytes() > a.nbytes


# ---- processes ----


def job(**changes) -> Job:
    return replace(Job("train", "e2e-10", "ours", "train", SMALL), **changes)


def test_who_is_compared_takes_turns():
    jobs = [job(), job(who="peft", rounds=2), job(work="long", rounds=2)]
    jobs = [replace(jobs[0], rounds=2), *jobs[1:]]
    order = [(j.work, j.who, r) for j, r in run.in_turns(jobs)]
    first = [("e2e-10", "ours", 1), ("e2e-10", "peft", 1), ("e2e-10", "ours", 2)]
    assert order == [*first, ("e2e-10", "peft", 2), ("long", "ours", 1), ("long", "ours", 2)]


def test_a_process_that_fails_is_shown_and_the_next_one_goes_on(tmp_path):
    records = []
    jobs = [job(arguments={**SMALL, "prefix": 5000}), job(arguments={"argv": []}, task="command")]
    jobs[1] = replace(jobs[1], arguments={"argv": ["-c", "import os; os._exit(3)"]})
    jobs.append(job())
    run.run_all(jobs, 1, tmp_path, records.append)
    assert "prefix length is 5000" in records[0]["error"][-1]
    assert records[1]["error"] == ["the process ended with status 3"]
    assert records[2]["error"] is None
    assert len(records[2]["answer"]["times"]) == 3


def test_every_process_has_the_same_number_of_threads(tmp_path):
    code = f"import os; assert {{os.environ[v] for v in {VARIABLES}}} == {{'3'}}"
    records = []
    run.run_all(
        [job(task="command", arguments={"argv": ["-c", code]})], 3, tmp_path, records.append
    )
    assert records[0]["error"] is None


def test_the_scratch_folder_is_filled_in_and_not_recorded(tmp_path):
    records = []
    save = {"config": TINY, "folder": work.SCRATCH}
    jobs = [job(task="save", arguments=save)]
    jobs += [job(task="first_token", arguments={"folder": work.SCRATCH, "prompt": 4})]
    run.run_all(jobs, 1, tmp_path, records.append)
    assert (tmp_path / "model.safetensors").exists()
    assert records[1]["answer"]["first_token"] > 0
    assert str(tmp_path) not in json.dumps(records)


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_ctrl_c_leaves_no_process_behind(tmp_path):
    noted = tmp_path / "pid"
    child = f"import os, time; open({str(noted)!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    code = (
        "import os, signal, sys; from tools.bench.run import launch; "
        "signal.signal(signal.SIGINT, signal.default_int_handler); "  # a shell's & has it ignored
        f"launch([sys.executable, '-c', {child!r}], dict(os.environ))"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 120
    while not (noted.exists() and noted.read_text()) and time.monotonic() < until:
        time.sleep(0.02)
    parent.send_signal(signal.SIGINT)
    _, err = parent.communicate(timeout=120)
    assert "KeyboardInterrupt" in err
    with pytest.raises(ProcessLookupError):
        os.kill(int(noted.read_text()), 0)


# ---- figures and verdicts ----


def test_a_ratio_is_taken_round_by_round():
    figure = summary.ratio({1: 1.0, 2: 4.0, 3: 3.0, 4: 9.0}, {1: 2.0, 2: 8.0, 3: 10.0})
    assert figure == Figure(0.5, 0.3, 0.5, 3)
    assert summary.ratio({1: 1.0}, {2: 1.0}) is None


@pytest.mark.parametrize(("high", "noisy"), [(1.25, False), (1.26, True)])
def test_rounds_that_lie_too_far_apart_are_noise(high, noisy):
    assert Figure(1.1, 1.0, high, 3).noisy == noisy
    assert ("too noisy" in report.spread(Figure(1.1, 1.0, high, 3))) == noisy


def test_the_exponent_of_a_power_law_is_found():
    x = [1, 2, 5, 9]
    assert summary.exponent(x, [3 * a**1.7 for a in x]) == pytest.approx(1.7)
    assert summary.exponent([1, 2, 3], [0, 1, 2]) is None


@pytest.mark.parametrize(
    ("bound", "measured", "verdict"),
    [
        ("at most", 0.30, "met"),
        ("at most", 0.33, "missed by 10%"),
        ("at least", 0.30, "met"),
        ("at least", 0.27, "missed by 10%"),
        ("at least", 0.33, "met"),
    ],
)
def test_a_verdict_says_by_how_much(bound, measured, verdict):
    target = Target("train", "x", bound, 0.30)
    assert target.verdict(Figure.of([measured])) == verdict


def test_a_verdict_says_what_it_cannot_know():
    target = Target("train", "x", "at most", 0.30)
    assert target.verdict(None) == "not measured"
    said = target.verdict(Figure(0.25, 0.20, 0.31, 3))
    assert said == "met, but too noisy to say (rounds from 0.20 to 0.31)"


def test_every_target_has_its_figure_in_a_whole_record():
    found = summary.figures(made_up())
    assert [t.figure for t in summary.TARGETS if t.figure not in found] == []
    assert found["train e2e-10: time against peft"] == Figure(0.25, 0.25, 0.25, 3)
    assert found["train long: peak memory against peft"].value == pytest.approx(0.25, 1e-3)
    assert found["train long: share of matrix products"].value == pytest.approx(0.91)
    assert found["decode 1 prompt, beam 5: time a token against peft"].value == pytest.approx(0.25)
    assert found["decode: share of the bandwidth"].value == pytest.approx(0.8 / 1.02, rel=1e-6)
    assert found["growth: time in T"].value == pytest.approx(1, abs=0.05)
    pattern = 4 * 8 * 1000 * 1010
    assert found["growth: memory a layer in patterns"].value == pytest.approx(4e6 / pattern)


# ---- the record and its page ----


def test_the_page_is_made_of_the_record_alone(tmp_path, capsys):
    record = made_up()
    path, page = tmp_path / "bench.json", tmp_path / "BENCHMARKS.md"
    path.write_text(json.dumps(record), encoding="utf-8")
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "optimisations.md").write_text("## What paid\n", encoding="utf-8")
    assert main(["report", str(path), "--out", str(page)]) == 0
    text = page.read_text(encoding="utf-8")
    for title in ("Targets", "A training step", "Decoding", "Memory", "Start", "Growth"):
        assert f"## {title}\n" in text
    assert text.endswith("## What paid\n")
    assert str(tmp_path) not in text
    drawn = sorted((tmp_path / "benchmarks").glob("*.png"))
    assert [p.name for p in drawn] == ["decode.png", "growth.png", "train.png"]
    for picture in drawn:
        assert f"(benchmarks/{picture.name})" in text
        assert picture.stat().st_size < 200_000
    assert max(len(table.rows) for table in report.tables(record)) == len(summary.TARGETS)


def test_the_page_takes_the_rivals_from_a_record_of_their_own(tmp_path, refused, monkeypatch):
    monkeypatch.setattr(pictures, "draw", lambda record, folder: {})
    paths = {name: tmp_path / f"{name}.json" for name in ("all", "methods")}
    both = made_up()
    for name, path in paths.items():
        rival = name == "methods"
        record = {**both, "sections": ["methods"] if rival else [*command.SECTIONS]}
        record["runs"] = [r for r in both["runs"] if (r["section"] == "methods") == rival]
        path.write_text(json.dumps(record), encoding="utf-8")
    page = tmp_path / "page.md"
    given = ["report", str(paths["all"]), "--out", str(page)]
    assert main([*given, "--methods", str(paths["methods"])]) == 0
    text = page.read_text(encoding="utf-8")
    rivals = text.split("## Prefix-tuning's rivals\n")[1].split("## On a GPU\n")[0]
    assert "| methods lora: time against peft | at most 0.5 | 0.25 | met |" in rivals
    assert "| lora | 7 | PyTorch + PEFT | 8.16 s | 0.25 (0.25 to 0.25) | " in rivals
    assert "methods lora" not in text.replace(rivals, "")
    assert "has no methods" in refused(*given, "--methods", paths["all"])


def test_work_that_was_not_the_same_is_called_so():
    record = made_up()
    assert "the first losses are" not in report.text(record)
    (theirs,) = [
        r for r in record["runs"] if (r["work"], r["who"], r["round"]) == ("long", "peft", 1)
    ]
    theirs["answer"]["losses"][0] *= 1.01
    assert "long: the first losses are 5.40000 to 5.45400: they did" in report.text(record)


def test_results_that_differ_from_run_to_run_miss_their_target():
    record = made_up()
    ran = [r for r in record["runs"] if (r["section"], r["work"]) == ("train", "e2e-10")]
    ran[0]["answer"]["sha256"] = "1"
    (target,) = [t for t in summary.TARGETS if t.figure == "train e2e-10: different results"]
    assert target.verdict(summary.figures(record)[target.figure]) == "missed by 100%"


@pytest.mark.long
def test_a_small_run_in_another_folder_from_the_command_line_to_the_page(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    path, page = tmp_path / "new" / "bench.json", tmp_path / "page.md"
    status = main(
        f"train --shape tiny --no-peers --work e2e-10 --rounds 1 --threads 1 --json {path} "
        f"--report {page}".split()
    )
    captured = capsys.readouterr()
    assert status == 0
    record = json.loads(path.read_text(encoding="utf-8"))
    assert record["finished"]
    assert [(r["section"], r["who"]) for r in record["runs"]] == [
        ("train", "ours"),
        ("products", "ours"),
    ]
    assert len(record["runs"][0]["answer"]["times"]) == work.TRAIN["e2e-10"].steps["ours"]
    assert record["runs"][0]["answer"]["peak"] > 10**7
    assert record["machine"]["packages"]["numpy"] == np.__version__
    assert "--no-peers" in record["command"]
    assert "PyTorch + PEFT was not measured: --no-peers." in captured.out
    assert captured.out.splitlines()[:-1] == report.text(report.read(path)).splitlines()
    assert "2 processes" in captured.err
    assert page.exists()


@pytest.mark.long
def test_a_failure_is_status_1_and_stands_in_the_report(tmp_path, capsys, monkeypatch):
    bad = job(arguments={**SMALL, "prefix": 5000})
    monkeypatch.setattr(command, "plan", lambda *given: [bad])
    assert main(["train", "--shape", "tiny", "--threads", "1"]) == 1
    captured = capsys.readouterr()
    assert "FAILED" in captured.err
    assert "prefix length is 5000" in captured.err
    assert "train e2e-10, ours, round 1 failed: the process ended with status 1." in captured.out


def test_a_peer_that_is_not_installed_is_named_and_left_out(monkeypatch):
    there = command.find_spec
    monkeypatch.setattr(command, "find_spec", lambda name: None if name == "peft" else there(name))
    peers, skipped = command._peers(with_dropout=True, none=False)
    assert peers == ["torch"]
    assert skipped == {"peft": "peft not installed", "peft-dropout": "peft not installed"}
    record = made_up(whos=("ours", "torch"))
    record["skipped"] = skipped
    assert "PyTorch + PEFT was not measured: peft not installed." in report.text(record)
    (target,) = [t for t in summary.TARGETS if t.figure == "train long: time against peft"]
    assert target.verdict(summary.figures(record).get(target.figure)) == "not measured"


def test_the_numpy_half_needs_no_pytorch():
    code = "import sys; sys.modules['torch'] = None; import tools.bench.command, "
    code += "tools.bench.ours, tools.bench.pictures"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_nonsense_is_answered_before_anything_runs(tmp_path, refused, monkeypatch):
    monkeypatch.setattr(command, "run_all", lambda *given: pytest.fail("it ran"))
    assert refused("all", "--threads", 0) == "--threads is 0: expected 1 to 4096"
    assert "--rounds is -1" in refused("train", "--rounds", -1)
    assert "--work e2e-11 does not exist: expected one of e2e-10, " in refused(
        "train", "--work", "e2e-11"
    )
    assert "--work e2e-10 does not exist: expected one of prefix, lora, " in refused(
        "methods", "--work", "e2e-10"
    )
    assert "is a folder: give a file" in refused("start", "--json", tmp_path)
    (tmp_path / "file").write_text("x", encoding="utf-8")
    assert "cannot write" in refused("start", "--json", tmp_path / "file" / "bench.json")
    assert "cannot write" in refused("start", "--report", tmp_path / "file" / "B.md")
    assert f"data folder {tmp_path} has no e2e/trainset.csv" in refused("train", "--data", tmp_path)
    monkeypatch.setenv(work.DATA_VARIABLE, str(tmp_path))
    assert "has no e2e/trainset.csv" in refused("train")
    assert "cannot read the record" in refused("report", tmp_path / "none.json")
    (tmp_path / "other.json").write_text("{}", encoding="utf-8")
    assert "is no record of schema 1" in refused("report", tmp_path / "other.json")


def test_an_unknown_command_of_bench_is_refused(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["nonsense"])
    assert stopped.value.code == 2
    assert "there is no command nonsense: python -m tools.bench --help" in capsys.readouterr().err


def test_every_recorded_command_can_be_given_again():
    for what in (*command.SECTIONS, "all", "methods"):
        args = parser().parse_args([what, "--shape", "tiny", "--threads", "3"])
        again = command._command(args, 3).split()
        assert vars(parser().parse_args(again[3:])) == vars(args)


def test_the_plan_says_how_long_it_takes():
    config, histogram = work.SHAPES["124m"], work.stored_histogram()
    whos = ["ours", "torch", "peft"]
    jobs = work.train_jobs(config, histogram, whos, 3)
    jobs += work.memory_jobs(config, histogram, whos, trained=True)
    jobs += work.decode_jobs(config, ["ours", "peft"], 3)
    jobs += work.start_jobs(config, True, 3) + work.growth_jobs(3)
    minutes = sum(job.expected for job, _ in run.in_turns(jobs)) / 60
    assert 15 < minutes < 30


def test_more_rounds_are_made_where_they_are_asked_for():
    histogram, config = work.stored_histogram(), work.SHAPES["tiny"]

    def rounds(n):
        return {job.work: job.rounds for job in work.train_jobs(config, histogram, ["ours"], n)
                if job.section == "train"}  # fmt: skip

    assert rounds(None) == {"e2e-10": 3, "e2e-32": 2, "rectangle": 2, "long": 2}
    assert set(rounds(5).values()) == {5}
    assert {job.rounds for job in work.growth_jobs(None)} == {2}
    assert {job.rounds for job in work.growth_jobs(4)} == {4}


def test_a_record_without_our_side_of_a_work_still_makes_a_page(tmp_path):
    record = made_up()
    record["runs"] = [
        run for run in record["runs"]
        if (run["work"], run["who"]) not in {("e2e-10", "ours"), ("e2e-32", "peft")}
    ]  # fmt: skip
    page = tmp_path / "B.md"
    assert page in report.write(record, page)
    assert (tmp_path / "benchmarks" / "train.png").stat().st_size > 1000


def test_one_file_for_two_things_and_a_device_are_refused(tmp_path, refused):
    path = tmp_path / "x"
    assert "are both" in refused("memory", "--json", path, "--report", path)
    assert "is a device" in refused("memory", "--json", "/dev/null")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "benchmarks").write_text("a file")
    assert "cannot write" in refused("memory", "--report", tmp_path / "other" / "B.md")


@pytest.mark.parametrize("runs", [[1], [{}]])
def test_a_record_that_lacks_what_a_report_needs_is_refused(tmp_path, runs):
    path = tmp_path / "b.json"
    for record in ({"schema": report.SCHEMA, "runs": runs}, {**made_up(), "runs": runs}):
        path.write_text(json.dumps(record))
        with pytest.raises(InputError, match="is no record of schema"):
            report.read(path)
