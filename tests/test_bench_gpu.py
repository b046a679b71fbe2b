"""`python -m tools.bench --backend cupy`: the plan, the sentence without a GPU, tables and verdicts
of a made-up record, and the code of a job as far as it runs without one. No time is a test."""

import importlib
import json
import sys
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from minprefix import ops
from tests.gpu import stand_in
from tests.test_bench import LENGTHS, SMALL, TINY, made_up
from tests.test_cupy import cupy  # noqa: F401  a fixture
from tools.bench import command, device, gpu, machine, ours, report, run, summary, work
from tools.bench.__main__ import main, parser
from tools.bench.device import Device
from tools.bench.work import Job

pytestmark = pytest.mark.long

CARD = {
    "name": "Some GPU",
    "memory_bytes": 80 * 2**30,
    "compute_capability": "90",
    "driver": "12.8",
    "runtime": "12.9",
    "cupy": "14",
}
WHOS = ("ours", "torch", "peft")


def jobs_of(argv: str, peers=("torch", "peft")) -> list[Job]:
    args = parser().parse_args([*argv.split(), "--backend", "cupy"])
    sections = command.GPU_SECTIONS if args.what == "all" else (args.what,)
    return command.plan(args, sections, None, peers)


def answer_of(job: Job, r: int) -> dict:
    """Ours takes 1, by hand 2, PEFT 4, a little more in later rounds; memory 1, 2, 5."""
    seconds = {"ours": 1.0, "torch": 2.0, "peft": 4.0}[job.who] * (1 + 0.01 * r)
    if job.task == "train":
        memory = {"ours": 10**9, "torch": 2 * 10**9, "peft": 5 * 10**9}[job.who]
        times = [seconds] * job.arguments["steps"]
        losses = [5.4] * (len(times) + 1)
        answer = {"times": times, "losses": losses, "peak": 1, "device_peak": memory}
        return answer | ({"sha256": "0"} if job.who == "ours" else {})
    if job.task == "launches":
        return {"launches": {"ours": 321, "torch": 654, "peft": None}[job.who]}
    times = {"first": [0.1], "whole": [0.1 + 0.032 * seconds]}
    return {"cases": {name: times for name, *_ in job.arguments["cases"]}, "peak": 1}


def made_up_on_gpu() -> dict:
    """A record of --backend cupy, with numbers that one can check in one's head."""
    runs = []
    for job, r in run.in_turns(jobs_of("all")):
        given = {k: v for k, v in asdict(job).items() if k not in ("rounds", "expected")}
        runs.append({**given, "round": r, "seconds": 9.0, "answer": answer_of(job, r)})
        runs[-1]["error"] = None
    record = made_up() | {
        "backend": "cupy",
        "command": "python -m tools.bench all --backend cupy",
        "sections": list(command.GPU_SECTIONS),
        "shape": "124m, medium",
        "machine": machine.describe() | {"gpu": CARD},
        "runs": runs,
    }
    return json.loads(json.dumps(record))


# ---- the plan ----


def test_the_plan_is_every_shape_batch_and_precision_for_everyone():
    turns = list(run.in_turns(jobs_of("all")))
    trained = {job.work for job, _ in turns if job.section == "train"}
    assert trained == {f"{s} e2e-{n} {p}" for s in ("124m", "medium") for n in (10, 32, 128)
                       for p in ("float32", "tf32")}  # fmt: skip
    for name in trained:
        ran = [(job.who, r) for job, r in turns if (job.section, job.work) == ("train", name)]
        assert ran == [(who, r) for r in (1, 2, 3) for who in WHOS]
        counted = [job.who for job, _ in turns if (job.section, job.work) == ("launches", name)]
        assert counted == list(WHOS)
    decoded = {(job.work, job.who) for job, _ in turns if job.section == "decode"}
    assert decoded == {(f"{s} {p}", who) for s in ("124m", "medium") for p in ("float32", "tf32")
                       for who in ("ours", "peft")}  # fmt: skip
    for job, _ in turns:
        shape, *_, precision = job.work.split()
        assert job.arguments["device"] == "cuda"
        assert job.arguments["precision"] == precision
        assert job.arguments["config"] == asdict(work.SHAPES[shape])
        if job.section != "decode":
            assert len(job.arguments["lengths"]) == int(job.work.split()[1].removeprefix("e2e-"))
    medium = work.SHAPES["medium"]
    assert (medium.n_layer, medium.n_head, medium.n_embd) == (24, 16, 1024)


def test_the_plan_can_be_cut_short():
    jobs = jobs_of("train --shape tiny --work e2e-128 --work e2e-10 --rounds 5", peers=())
    assert {job.work for job in jobs} == {
        f"tiny {batch} {precision}" for batch in ("e2e-10", "e2e-128")
        for precision in gpu.PRECISIONS
    }  # fmt: skip
    assert {job.who for job in jobs} == {"ours"}
    assert {(job.section, job.rounds) for job in jobs} == {("train", 5), ("launches", 1)}


def test_every_recorded_command_can_be_given_again():
    for given in ("train --work e2e-128", "decode --shape medium", "all --no-peers"):
        argv = [*given.split(), "--backend", "cupy", "--threads", "3"]
        args = parser().parse_args(argv)
        again = command._command(args, 3).split()
        assert vars(parser().parse_args(again[3:])) == vars(args)


# ---- what is refused ----


@pytest.mark.parametrize("what", ["train", "decode", "all"])
def test_without_a_gpu_one_sentence_and_nothing_runs(what, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(command, "run_all", lambda *given: pytest.fail("it ran"))
    monkeypatch.setitem(sys.modules, "cupy", None)
    ops._cupy_ops.cache_clear()
    path = tmp_path / "new" / "gpu.json"
    assert main([what, "--backend", "cupy", "--json", str(path)]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert "the GPU needs CuPy" in said
    assert not path.parent.exists()


@pytest.mark.parametrize("what", ["memory", "start", "growth"])
def test_what_is_of_the_cpu_takes_no_backend(what, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([what, "--backend", "cupy"])
    assert stopped.value.code == 2
    assert "there is no option --backend" in capsys.readouterr().err


def test_works_and_shapes_belong_to_a_backend(monkeypatch, capsys):
    monkeypatch.setattr(command, "run_all", lambda *given: pytest.fail("it ran"))
    for argv, sentence in (
        ("--backend cupy --work long", "--work long does not exist on a GPU: expected one of e2e-"),
        ("--work e2e-128", "--work e2e-128 does not exist: expected one of e2e-10, e2e-32, rect"),
        ("--shape medium", "--shape medium is measured on a GPU: add --backend cupy"),
    ):
        assert main(["train", *argv.split()]) == 2
        assert sentence in capsys.readouterr().err


def test_a_pytorch_that_sees_no_gpu_is_left_out(monkeypatch):
    monkeypatch.setattr(command, "find_spec", lambda name: name)
    monkeypatch.setattr(command, "_torch_sees_a_gpu", lambda: False)
    there, skipped = command._peers(with_dropout=False, none=False, on_gpu=True)
    assert there == []
    assert skipped == dict.fromkeys(("torch", "peft"), "this PyTorch sees no GPU")
    there, _ = command._peers(with_dropout=False, none=False, on_gpu=False)
    assert there == ["torch", "peft"]


# ---- the record and its page ----


def test_every_target_has_its_figure_and_is_judged():
    record = made_up_on_gpu()
    found = summary.figures(record)
    targets = [t for shape in gpu.BOTH for t in summary.GPU_TARGETS[shape]]
    assert [t.figure for t in targets if t.figure not in found] == []
    assert found["train medium e2e-128 tf32: time against peft"].value == 0.25
    assert found["train medium e2e-128 tf32: time against torch"].value == 0.5
    assert found["train 124m e2e-10 float32: peak memory against peft"].value == 0.2
    decoded = found["decode 124m tf32, 1 prompt, beam 5: time a token against peft"]
    assert decoded.value == pytest.approx(0.25)
    wanted = {t.figure: t.value for t in targets}
    for batch in ("e2e-32", "e2e-128"):
        assert wanted[f"train 124m {batch} tf32: time against peft"] == 0.5
        assert wanted[f"train 124m {batch} tf32: time against torch"] == 1.0
        assert wanted[f"train 124m {batch} tf32: peak memory against peft"] == 0.5
    (table,) = [t for t in report.tables(record) if t.title == "Targets"]
    assert [row[0] for row in table.rows] == [t.figure for t in targets]
    assert {row[3] for row in table.rows} == {"met"}
    for each in record["runs"]:
        if each["who"] == "ours" and each["section"] == "train":
            each["answer"]["times"] = [3.0]
            each["answer"]["device_peak"] = 3 * 10**9
    verdicts = {row[0]: row[3] for row in report._targets(record).rows}
    assert verdicts["train medium e2e-32 float32: time against torch"].startswith("missed by 4")
    assert verdicts["train medium e2e-32 float32: time against peft"].startswith("missed by 4")
    assert verdicts["train 124m e2e-32 tf32: peak memory against peft"] == "missed by 20%"


def test_the_tables_say_what_was_measured():
    record = made_up_on_gpu()
    said = report.text(record)
    assert (
        "Some GPU, 80 GiB, compute capability 90; CuPy 14 on CUDA 12.9, a driver for CUDA 12.8"
        in said
    )
    (table,) = [t for t in report.tables(record) if t.title == "A training step on a GPU"]
    first, second, third, *_ = table.rows
    n = sum(map(sum, work.typical(work.stored_histogram(), 10)))
    own = ["124m e2e-10 float32", "minprefix", "1020.0 ms", f"{n / 1.02:.0f}", "-", "1000 MB"]
    assert list(first) == [*own, "-", "321"]
    assert list(second)[4:] == ["0.50 (0.50 to 0.50)", "2000 MB", "0.50 (0.50 to 0.50)", "654"]
    assert list(third)[4:] == ["0.25 (0.25 to 0.25)", "5000 MB", "0.20 (0.20 to 0.20)", "-"]
    assert len(table.rows) == 2 * 3 * 2 * 3
    (table,) = [t for t in report.tables(record) if t.title == "Decoding on a GPU"]
    assert len(table.rows) == 2 * 2 * 4 * 2
    assert [t.title for t in report.tables(record)] == [
        "Targets", "A training step on a GPU", "Decoding on a GPU"
    ]  # fmt: skip
    theirs = next(r for r in record["runs"] if (r["section"], r["who"]) == ("train", "peft"))
    theirs["answer"]["losses"][0] *= 1.01
    assert "124m e2e-10 float32: the first losses are 5.40000 to 5.45400" in report.text(record)


def test_what_was_not_measured_on_a_gpu_is_said_on_the_page(tmp_path):
    path, page = tmp_path / "bench.json", tmp_path / "BENCHMARKS.md"
    path.write_text(json.dumps(made_up()))  # from before there was a backend
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "optimisations.md").write_text("## What paid\n")
    assert main(["report", str(path), "--out", str(page)]) == 0
    section = page.read_text().split("## On a GPU\n")[1]
    assert section.startswith("\nNot measured: ")
    assert "\npython -m tools.bench all --backend cupy --json gpu.json\n" in section
    assert section.endswith("## What paid\n")
    for line in report.UNMEASURED.splitlines():
        if line.startswith("python -m tools.bench"):
            parser().parse_args(line.split()[3:])
    written = (Path(__file__).parents[1] / "BENCHMARKS.md").read_text()
    assert ("## On a GPU\n\n" + report.UNMEASURED in written) == ("Not measured" in written)
    assert "## On a GPU\n" in written


def test_a_record_of_a_gpu_becomes_the_section_of_a_page(tmp_path, capsys):
    path, other, page = (tmp_path / name for name in ("bench.json", "gpu.json", "B.md"))
    path.write_text(json.dumps(made_up()))
    other.write_text(json.dumps(made_up_on_gpu()))
    assert main(["report", str(path), "--gpu", str(other), "--out", str(page)]) == 0
    text = page.read_text()
    assert "Not measured" not in text
    before, section = text.split("## On a GPU\n")
    assert "## A training step\n" in before
    assert "Some GPU" not in before
    assert "Some GPU" in section
    assert "From the record of `python -m tools.bench all --backend cupy`." in section
    for title in ("Targets", "A training step on a GPU", "Decoding on a GPU"):
        assert f"\n### {title}\n" in section
    for given in ((other, path), (path, path), (other, other)):
        argv = ["report", str(given[0]), "--gpu", str(given[1]), "--out", str(page)]
        assert main(argv) == 2
        assert (
            "expected a record of --backend cupy beside one of the CPU" in capsys.readouterr().err
        )


def test_a_record_of_a_gpu_makes_a_page_of_its_own(tmp_path):
    page = tmp_path / "B.md"
    assert report.write(made_up_on_gpu(), page) == [page]  # no pictures
    text = page.read_text()
    assert "\n## A training step on a GPU\n" in text
    assert "Not measured" not in text
    assert "## On a GPU" not in text


# ---- a job ----


def test_a_clock_waits_for_the_device(monkeypatch):
    now, at_work = [0.0], []
    monkeypatch.setattr(ours, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    def wait() -> None:
        now[0] += len(at_work)  # a kernel takes a second
        at_work.clear()

    def step() -> float:
        at_work.append("a kernel")  # launched, not yet ended
        return 1.0

    on_it = Device(wait, lambda: 77)
    answer = ours.timed_steps(lambda lengths: step, SMALL, on_it)
    assert answer["times"] == [1.0] * SMALL["steps"]  # the warm-up's work is not the first step's
    assert answer["device_peak"] == 77
    assert "device_peak" not in ours.timed_steps(lambda lengths: step, SMALL, Device())
    at_work.clear()
    sizes = {"config": TINY, "prompt": 3, "new": 2, "cases": [("c", 1, 1, 2)]}
    decoded = ours.timed_decoding(lambda *given: step(), sizes, on_it)
    assert decoded["cases"]["c"] == {"first": [1.0, 1.0], "whole": [1.0, 1.0]}
    assert decoded["device_peak"] == 77


def test_kernels_are_counted_and_nothing_else():
    def event(name: str, where: str) -> SimpleNamespace:
        return SimpleNamespace(name=name, device_type=f"DeviceType.{where}")

    events = [event("layernorm", "CUDA"), event("ampere_sgemm_128x64_nn", "CUDA")]
    events += [event("Memcpy DtoH (Device -> Pageable)", "CUDA"), event("Memset (Device)", "CUDA")]
    events += [event("cudaLaunchKernel", "CPU")]
    assert device.kernels(events) == 2


def test_launches_are_left_out_where_nobody_counts_them(monkeypatch):
    steps = []
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setattr(device, "find_spec", lambda name: None)
    assert device.launches(lambda: steps.append(1), Device()) is None
    assert steps == []


@pytest.mark.parametrize("who", ["torch", "peft"])
def test_the_peers_code_for_a_device_runs_on_the_cpu(who, monkeypatch):
    pytest.importorskip("peft")
    from tools.bench import peers

    expected = ours.train(SMALL)["losses"]
    here = {**SMALL, "device": "cpu", "precision": "float32"}
    by_hand = peers.ByHand.__init__

    def as_on_gpu(self, arguments) -> None:
        by_hand(self, arguments)
        self.on_gpu = True  # pads in attention; AdamW in one kernel

    monkeypatch.setattr(peers.ByHand, "__init__", as_on_gpu)
    answer = peers.train(here, who)
    assert len(set(expected)) == 4
    np.testing.assert_allclose(answer["losses"], expected, rtol=1e-4)
    assert peers.launches(here, who) == {"launches": None}


def test_attention_by_hand_is_the_same_for_all_sequences_at_once():
    from tools.bench import peers

    trainer = peers.ByHand(SMALL)
    torch.manual_seed(0)
    Ts = [sum(each) for each in LENGTHS]
    trainer.kv.data.normal_()
    given = torch.randn(3, sum(Ts), TINY["n_head"], TINY["n_embd"] // TINY["n_head"])
    dz, found = torch.randn(sum(Ts), TINY["n_embd"]), []
    for attend in (trainer._each_sequence(Ts), trainer._padded(Ts)):
        qkv = given.clone().requires_grad_()
        z = attend(*qkv, 1)
        found.append((z, *torch.autograd.grad(z, (qkv, trainer.kv), dz)))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_the_peers_heed_device_and_precision():
    from tools.bench import peers

    for precision in ("tf32", "float32"):  # as it was, in the end
        on_it = peers._device({"device": "cuda", "precision": precision})
        assert torch.backends.cuda.matmul.allow_tf32 == (precision == "tf32")
    assert on_it == Device(torch.cuda.synchronize, torch.cuda.max_memory_reserved)


class Crossings(TorchDispatchMode):
    """Which operations met arrays of two devices."""

    def __init__(self) -> None:
        super().__init__()
        self.mixed: list[str] = []
        self.devices: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = [a for a in tree_leaves((args, kwargs or {})) if isinstance(a, torch.Tensor)]
        devices = {a.device.type for a in given}
        self.devices |= devices
        if len(devices) > 1:
            self.mixed.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("who", ["torch", "peft"])
def test_all_that_a_peer_computes_with_lies_on_its_device(who, monkeypatch):
    """PyTorch's device "meta" computes nothing: what a step asks of it reaches the end, where the
    loss would be read."""
    pytest.importorskip("peft")
    from tools.bench import peers

    trainer = peers._trainer({**SMALL, "device": "meta"}, who)
    real = torch.optim.AdamW  # as one kernel it is a GPU's
    monkeypatch.setattr(torch.optim, "AdamW", lambda *a, fused=None, **rest: real(*a, **rest))
    step, seen = trainer.on(LENGTHS), Crossings()
    with seen, pytest.raises(RuntimeError, match=r"item\(\) cannot be called on meta"):
        step()
    assert "meta" in seen.devices
    assert seen.mixed == []
    trained = trainer.kv if who == "torch" else next(p for p in trainer.model.parameters()
                                                     if p.requires_grad)  # fmt: skip
    assert trained.device.type == "meta"


def test_what_is_asked_of_cupy_exists():
    real = pytest.importorskip("cupy", reason="CuPy is not installed")
    assert callable(real.get_default_memory_pool().total_bytes)
    assert callable(real.cuda.get_current_stream)
    assert hasattr(real.cuda.Stream, "synchronize")
    for name in ("getDeviceProperties", "driverGetVersion", "runtimeGetVersion"):
        assert callable(getattr(real.cuda.runtime, name))


@pytest.fixture
def precisions(cupy, monkeypatch):  # noqa: F811
    """What products were asked to be computed in, one after the other."""
    asked: list[str] = []
    own = importlib.import_module("minprefix.ops.cupy_ops")
    real = own.matmul_precision

    def matmul_precision(name: str) -> None:
        asked.append(name)
        real(name)

    monkeypatch.setattr(own, "matmul_precision", matmul_precision)
    monkeypatch.setattr(stand_in._Pool, "held", 12345)
    yield asked
    real("float32")


def test_our_job_computes_on_the_gpu_what_it_computes_on_the_cpu(precisions):
    expected = ours.train(SMALL)
    there = {**SMALL, "device": "cuda", "precision": "float32"}
    answer = ours.train(there)
    np.testing.assert_allclose(answer["losses"], expected["losses"], rtol=1e-4)
    assert answer["device_peak"] > 0
    assert "device_peak" not in expected
    assert len(answer["sha256"]) == 64
    if sys.modules["cupy"].__version__ == "stand-in":
        assert stand_in.crossed["waits"] == 2 * SMALL["steps"]  # before each step and after it
    assert ours._model_and_prefix(there)[0].backend == "cupy"
    ours.train({**there, "precision": "tf32"})
    assert precisions == ["float32", "tf32"]
    counted = ours.launches(there)["launches"]
    assert counted is None or counted > 0


def test_our_job_decodes_on_the_gpu(precisions):
    cases = [("c", 2, 2, 1)]
    sizes = {"config": TINY, "prefix": 10, "prompt": 7, "new": 4, "cases": cases}
    answer = ours.decode({**sizes, "device": "cuda", "precision": "tf32"})
    assert answer["cases"]["c"]["whole"][0] > 0
    assert answer["device_peak"] > 0
    assert precisions == ["tf32"]


def test_from_the_command_line_to_the_page_on_the_gpu(precisions, monkeypatch, tmp_path, capsys):
    def in_this_process(jobs, threads, scratch, on_record) -> None:
        for job, r in run.in_turns(jobs):
            arguments = json.loads(json.dumps(job.arguments))
            answer = getattr(ours, job.task)(arguments)
            record = {**asdict(job), "arguments": arguments, "round": r, "seconds": 1.0}
            on_record({**record, "answer": json.loads(json.dumps(answer)), "error": None})

    monkeypatch.setattr(command, "run_all", in_this_process)
    monkeypatch.setattr(gpu, "STEPS", 2)
    path, page = tmp_path / "gpu.json", tmp_path / "page.md"
    argv = f"train --backend cupy --shape tiny --no-peers --work e2e-10 --rounds 1 --json {path}"
    assert main([*argv.split(), "--threads", "1", "--report", str(page)]) == 0
    out = capsys.readouterr().out
    record = report.read(path)
    assert record["backend"] == "cupy"
    assert record["machine"]["gpu"]["name"]
    assert record["machine"]["gpu"]["driver"].count(".") == 1
    ran = [(r["section"], r["work"]) for r in record["runs"]]
    works = ["tiny e2e-10 float32", "tiny e2e-10 tf32"]
    assert ran == [(section, name) for name in works for section in ("train", "launches")]
    assert "A training step on a GPU" in out
    assert "Targets" not in out
    assert "This shape tries the bench itself: it has no targets." in out
    assert "tiny e2e-10 tf32" in page.read_text()
