"""Runs that are killed, interrupted or out of disk: through the command line, as users see them."""

import json
import os
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from tokenizers import ByteLevelBPETokenizer, Tokenizer

from minprefix import Config, cli
from minprefix.files import map_tensors
from tests.conftest import random_model

STEPS = 240
STATE, ADAPTER = "state.safetensors", "adapter_model.safetensors"
OPTIONS = [
    f"--steps={STEPS}", "--save-every=4", "--eval-every=20", "--batch-size=3",
    "--micro-batch-size=2", "--prefix-length=3", "--dropout=0.1", "--warmup=10",
    "--schedule=cosine", "--weight-decay=0.01", "--lr=0.02",
]  # fmt: skip
MINPREFIX = [sys.executable, "-m", "minprefix"]


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A folder with a random model, its tokenizer, train.jsonl and valid.jsonl."""
    folder = tmp_path_factory.mktemp("world")
    rng = np.random.default_rng(0)
    words = ["red", "fox", "hills", "cheap", "thai", "food", "river", "inn", "near", "the"]
    pairs = [
        {"source": " ".join(rng.choice(words, 3)), "target": " ".join(rng.choice(words, 4))}
        for _ in range(20)
    ]
    for name, part in (("train", pairs[:14]), ("valid", pairs[14:])):
        text = "".join(json.dumps(pair) + "\n" for pair in part)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    bpe = ByteLevelBPETokenizer()
    lines = [f"{pair['source']}\n{pair['target']}" for pair in pairs]
    bpe.train_from_iterator(lines, 300, special_tokens=["<|endoftext|>"], show_progress=False)
    config = Config(
        n_layer=2,
        n_head=2,
        n_embd=16,
        vocab_size=bpe.get_vocab_size(),
        n_positions=48,
        eos_token_id=0,
    )
    model = random_model(config, dtype="float32")
    model.tokenizer = Tokenizer.from_str(bpe.to_str())
    model.save(folder / "model")
    return folder


def command(world, out, *more):
    files = [
        f"--model={world}/model",
        f"--data={world}/train.jsonl",
        f"--valid={world}/valid.jsonl",
    ]
    return [*MINPREFIX, "train", *files, *OPTIONS, "--out", str(out), *more]


def finish(argv, **how):
    return subprocess.run(argv, capture_output=True, text=True, timeout=120, **how)


@pytest.fixture(scope="module")
def whole(world) -> Path:
    """The run that nothing interrupted."""
    done = finish(command(world, world / "whole"))
    assert done.returncode == 0, done.stderr
    return world / "whole"


def losses(out):
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [(e["step"], e["loss"], e.get("valid_loss")) for e in lines]


def numbers(out):
    """The progress that the state file holds; it must load whole."""
    tensors, metadata = map_tensors(out / STATE, "the state")
    assert all(np.isfinite(a).all() for a in tensors.values())
    return json.loads(metadata["minprefix"])["state"]


def assert_same_end(out, whole):
    assert (out / ADAPTER).read_bytes() == (whole / ADAPTER).read_bytes()
    assert losses(out) == losses(whole)
    assert len(losses(out)) == STEPS
    ours, theirs = (json.loads((f / "metrics.json").read_text()) for f in (out, whole))
    assert ours == theirs
    assert sorted(p.name for p in out.iterdir()) == sorted(p.name for p in whole.iterdir())


def one_sentence(done):
    """What a failed command said: a single line on its own, no traceback."""
    assert "Traceback" not in done.stderr
    assert done.returncode == 2, done.stderr
    lines = [line for line in re.split(r"[\n\r]", done.stderr) if "minprefix: error:" in line]
    assert len(lines) == 1, done.stderr
    assert done.stderr.rstrip().endswith(lines[0])
    return lines[0]


# ---- kill -9 ----


def wait_for(condition, process, seconds=30.0):
    """Look as often as possible, until it is so or the process ended."""
    end = time.monotonic() + seconds
    while not condition() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.0002)


def size(path):
    return path.stat().st_size if path.exists() else 0


def kill_at_random(process, out, moment, rng):
    if moment == "start-up":
        time.sleep(rng.uniform(0.0, 0.3))
    elif moment == "training":
        wait_for(lambda: (out / STATE).exists(), process)
        written, more = size(out / "log.jsonl"), rng.integers(1, 1500)
        wait_for(lambda: size(out / "log.jsonl") > written + more, process)
        time.sleep(rng.uniform(0.0, 0.01))
    else:  # saving
        number = int(rng.integers(1, 4))
        for _ in range(number):
            wait_for(lambda: not any(out.glob(f".{STATE}*")), process)
            wait_for(lambda: any(out.glob(f".{STATE}*")), process)
    process.kill()
    return process.wait() == -signal.SIGKILL


def test_kill_9_at_20_random_moments_loses_nothing(world, whole, tmp_path):
    out, rng, saved = tmp_path / "run", np.random.default_rng(0), [0]
    moments = ["start-up"] * 5 + ["training"] * 8 + ["saving"] * 7
    rng.shuffle(moments)
    while moments:
        more = "--resume" if (out / STATE).exists() else "--force"
        for hidden in out.glob(".*"):  # so that "saving" sees the next life's
            hidden.unlink()
        process = subprocess.Popen(
            command(world, out, more), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        if kill_at_random(process, out, moments[-1], rng):
            moments.pop()
            saved.append(numbers(out)["step"] if (out / STATE).exists() else 0)
            assert saved[-1] >= saved[-2]
        else:  # on a busy machine it ended before this looked: the moment comes in another run
            assert process.returncode == 0
            assert_same_end(out, whole)
            shutil.rmtree(out)
            saved.append(0)
    assert len(set(saved)) > 5
    for hidden in out.glob(".*"):
        hidden.unlink()
    done = finish(command(world, out, "--resume"))
    assert done.returncode == 0, done.stderr
    assert_same_end(out, whole)


#: the command line, killed the n-th time that it puts a file into place: "half", with half of the
#: new file written; "before", with all of it; "after", when it is in place
KILLED_WHILE_SAVING = """
import os, signal, sys
from minprefix import cli
when, name, n = sys.argv[1], sys.argv[2], int(sys.argv[3])
replace = os.replace
def die(old, new):
    global n
    n -= os.path.basename(new) == name
    if n == 0:
        if when == "half":
            os.truncate(old, os.path.getsize(old) // 2)
        if when == "after":
            replace(old, new)
        os.kill(os.getpid(), signal.SIGKILL)
    replace(old, new)
os.replace = die
sys.exit(cli.main(sys.argv[4:]))
"""


def test_a_kill_at_every_point_of_saving_loses_nothing_and_leaves_nothing(world, whole, tmp_path):
    out = tmp_path / "run"
    points = [
        ("half", STATE, 1),
        ("after", STATE, 1),
        ("half", "log.jsonl", 1),
        ("half", STATE, 4),
        ("before", STATE, 3),
        ("after", STATE, 2),
        ("half", "loss.png", 1),
        ("half", ADAPTER, 1),
        ("before", "minprefix.json", 1),
        ("before", "metrics.json", 1),
    ]
    for when, name, n in points:
        more = "--resume" if (out / STATE).exists() else "--force"
        argv = command(world, out, more)[len(MINPREFIX) :]
        how = [sys.executable, "-c", KILLED_WHILE_SAVING, when, name, str(n)]
        done = finish([*how, *argv])
        assert done.returncode == -signal.SIGKILL, (when, name, done.stderr)
        if (out / STATE).exists():
            numbers(out)
    done = finish(command(world, out, "--resume"))
    assert done.returncode == 0, done.stderr
    assert_same_end(out, whole)  # which lists the folder: no half-written file is left in it


# ---- a disk that fills up ----


def limited(argv, n_bytes):
    """With files of at most `n_bytes`: writing more fails, as on a full disk."""

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, n_bytes))

    return finish(argv, preexec_fn=limit, env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"})


@pytest.mark.parametrize("full", ["before the first state", "a later state", "the log", "picture"])
def test_a_full_disk_is_a_sentence_and_the_last_good_state_resumes_to_the_same_bytes(
    world, whole, tmp_path, full
):
    out = tmp_path / "run"
    state, log, png = (size(whole / name) for name in (STATE, "log.jsonl", "loss.png"))
    n_bytes, name = {
        "before the first state": (500, STATE),
        "a later state": (state - 200, STATE),  # the first ones lack moments and best
        "the log": ((state + log) // 2, "log.jsonl"),
        "picture": ((log + png) // 2, "loss.png"),
    }[full]
    assert 2 * state < log < 0.8 * png
    sentence = one_sentence(limited(command(world, out), n_bytes))
    assert re.search(rf"cannot write {re.escape(str(out / name))}: File too large", sentence)
    assert "make room" in sentence
    if full == "before the first state":
        assert not list(out.iterdir())
        return
    step = numbers(out)["step"]
    assert {"a later state": step <= 20, "the log": 0 < step < STEPS}.get(full, step == STEPS)
    done = finish(command(world, out, "--resume"))
    assert done.returncode == 0, done.stderr
    assert_same_end(out, whole)


# ---- Ctrl-C ----


def test_ctrl_c_ends_with_130_and_the_command_it_says_finishes_to_the_same_bytes(
    world, whole, tmp_path
):
    out = tmp_path / "my run"  # the command must be right for a shell
    process = subprocess.Popen(
        command(world, out), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    wait_for(lambda: size(out / "log.jsonl") > 5000, process)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "Traceback" not in said
    step = numbers(out)["step"]
    assert 0 < step < STEPS
    assert losses(out)[-1][0] == step  # the step under way was finished and saved
    found = re.search(r"stopped, everything is saved; go on with: minprefix (.*)", said)
    done = finish([*MINPREFIX, *shlex.split(found[1])])
    assert done.returncode == 0, done.stderr
    assert_same_end(out, whole)


# ---- a folder that holds a run ----


def test_a_folder_that_holds_a_run_is_refused_without_force_or_resume(world, whole):
    before = {p.name: p.read_bytes() for p in whole.iterdir()}
    sentence = one_sentence(finish(command(world, whole)))
    assert re.search(rf"{whole} already holds a run \(.*--out.*--resume.*--force", sentence)
    assert {p.name: p.read_bytes() for p in whole.iterdir()} == before


def test_force_starts_again_and_leaves_other_files_alone(world, tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    for name in (STATE, "log.jsonl", "samples.md", "notes.txt"):
        (out / name).write_text("old", encoding="utf-8")
    assert cli.main(command(world, out, "--steps=11", "--force")[len(MINPREFIX) :]) == 0
    assert [step for step, _, _ in losses(out)] == list(range(1, 12))
    assert numbers(out)["step"] == 11
    assert not (out / "samples.md").exists()
    assert (out / "notes.txt").read_text(encoding="utf-8") == "old"


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ("--lr=0.5", "lr was 0.02 and is now 0.5"),
        ("--seed=5", "seed was 0 and is now 5"),
        ("--prefix-length=4", "prefix_length was 3 and is now 4"),
        ("--mlp-hidden=8", "mlp_hidden was None and is now 8"),
        ("--template={source} -> {target}", "template was .* and is now '{source} -> {target}'"),
        ("--data={world}/valid.jsonl", "data_sha256 was .* and is now .*"),
    ],
)
def test_resuming_with_a_changed_option_is_refused_by_its_name(
    world, whole, capsys, changed, sentence
):
    before = {p.name: p.read_bytes() for p in whole.iterdir()}
    more = changed.replace("{world}", str(world))
    assert cli.main(["train", "--out", str(whole), "--resume", more]) == 2
    said = capsys.readouterr().err
    assert re.search(rf"cannot resume {whole}: {sentence}; resume with what", said), said
    assert {p.name: p.read_bytes() for p in whole.iterdir()} == before


def test_resuming_after_the_data_changed_is_refused(world, whole, tmp_path, capsys):
    shutil.copytree(world, tmp_path / "world")
    moved = tmp_path / "world"
    data = moved / "train.jsonl"
    data.write_text(data.read_text().replace("fox", "cat"))
    assert cli.main([*command(moved, whole, "--resume")[len(MINPREFIX) :]]) == 2
    said = capsys.readouterr().err
    assert re.search("cannot resume .*: data_sha256 was '.*' and is now", said), said


def test_resuming_where_there_is_no_run_is_a_sentence(world, tmp_path):
    sentence = one_sentence(finish(command(world, tmp_path / "nothing", "--resume")))
    assert re.search(r"nothing holds no run to resume .*: leave out --resume", sentence)
