"""Runs that are killed, interrupted or out of disk: through the command line, as users see them."""

import os
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest

from minprefix import Prefix, cli
from tests.reliability import calls
from tests.reliability.runs import (
    MINPREFIX,
    STATE,
    STEPS,
    assert_same_end,
    command,
    finish,
    kill_at_random,
    log,
    make_world,
    numbers,
    one_sentence,
    size,
    struck,
    wait_for,
)

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def whole(world):
    """The run that nothing interrupted."""
    done = finish(command(world, world / "whole"))
    assert done.returncode == 0, done.stderr
    return world / "whole"


# ---- kill -9 ----


def test_kill_9_at_20_random_moments_loses_nothing(world, whole, tmp_path):
    out, rng, saved = tmp_path / "run", np.random.default_rng(0), [0]
    moments = ["start-up"] * 4 + ["training"] * 8 + ["saving the state"] * 8
    rng.shuffle(moments)
    while moments:
        more = "--resume" if (out / STATE).exists() else "--force"
        for hidden in out.glob(".*"):  # so that "saving the state" sees the next life's
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


def test_a_kill_at_every_point_of_saving_loses_nothing_and_leaves_nothing(world, whole, tmp_path):
    out = tmp_path / "run"
    # of a file: open to lock, open to write, fsync, replace
    points = [
        (STATE, 2, "half"),  # of the first state
        (STATE, 3, "after"),
        ("log.jsonl", 2, "half"),
        (STATE, 14, "half"),
        (STATE, 11, "before"),
        (STATE, 7, "after"),
        ("loss.png", 2, "half"),
        ("prefix", 4, "half"),
        ("prefix", 13, "before"),
        ("prefix", 15, "after"),
        ("metrics.json", 2, "half"),
    ]
    for part, n, when in points:
        more = "--resume" if (out / STATE).exists() else "--force"
        done = finish(struck(command(world, out, more), part, n, when))
        assert done.returncode == -signal.SIGKILL, (part, n, when, done.stderr)
        if (out / STATE).exists():
            numbers(out)
    done = finish(command(world, out, "--resume"))
    assert done.returncode == 0, done.stderr
    assert_same_end(out, whole)  # which lists the folder: no half-written file is left in it


def test_each_line_of_the_log_reaches_the_disk_before_a_state_that_counts_it(world, tmp_path):
    out = tmp_path / "run"
    of_run = lambda call, path: calls.part(path) in (STATE, "log.jsonl")  # noqa: E731
    with calls.struck(-1, of=of_run) as seen:
        assert cli.main(command(world, out, "--steps=22")[len(MINPREFIX) :]) == 0
    order = [call for call in seen if call in ("fsync log.jsonl", f"replace {STATE}")]
    # the first state is of no step; then every 4 of 22, and the last
    assert order == [f"replace {STATE}", *["fsync log.jsonl", f"replace {STATE}"] * 6]


# ---- two processes, one folder ----


def content(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_a_folder_in_which_a_run_is_under_way_is_refused_and_untouched(
    world, whole, tmp_path, capsys
):
    out = tmp_path / "run"
    first = subprocess.Popen(command(world, out), stdout=subprocess.DEVNULL)
    try:
        wait_for(lambda: size(out / "log.jsonl") > 3000, first)
        first.send_signal(signal.SIGSTOP)  # so that all that changes is the second one's doing
        before = content(out)
        for more in ([], ["--force"], ["--resume"]):
            assert cli.main(command(world, out, *more)[len(MINPREFIX) :]) == 2
            said = capsys.readouterr().err.strip().splitlines()
            assert said == [
                f"minprefix: error: another process is writing into {out}: wait for it to end, or "
                "choose another folder"
            ]
            assert content(out) == before
        first.send_signal(signal.SIGCONT)
        assert first.wait(timeout=600) == 0
    finally:
        first.kill()
    assert_same_end(out, whole)


SAVE_IN_A_LOOP = """
import sys
import numpy as np
from minprefix import InputError, Prefix
n, me = 0, int(sys.argv[2])
while n < 20:
    n += 1
    # slots and files differ from save to save
    kv = np.full((2, 2, 2, 1 + n % 3, 8), float(me + n))
    prefix = Prefix(kv, position_offset=0 if n % 2 else None)
    try:
        prefix.save(sys.argv[1])
    except InputError as error:
        assert "another process is writing" in str(error), error
"""


def test_while_two_processes_save_prefixes_into_a_folder_each_one_loaded_is_whole(tmp_path):
    out = tmp_path / "prefix"
    Prefix(np.zeros((2, 2, 2, 1, 8))).save(out)
    argv = [sys.executable, "-c", SAVE_IN_A_LOOP, str(out)]
    both = [subprocess.Popen([*argv, me]) for me in ("100", "200")]
    seen = set()
    while any(p.poll() is None for p in both):
        prefix = Prefix.load(out)
        assert len(set(prefix.kv.flat)) == 1
        n = int(prefix.kv.flat[0])
        assert n == 0 or prefix.length == 1 + n % 100 % 3
        assert n == 0 or (prefix.position_offset == 0) == n % 2
        seen.add(n)
    assert [p.returncode for p in both] == [0, 0]
    assert len(seen) > 2
    names = {p.name for p in out.iterdir()}
    assert names in (
        {"prefix.safetensors", "minprefix.json"},
        {"adapter_config.json", "adapter_model.safetensors", "minprefix.json"},
    )


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
    _, said = process.communicate(timeout=600)
    assert process.returncode == 130, said
    assert "Traceback" not in said
    step = numbers(out)["step"]
    assert 0 < step < STEPS
    assert log(out)[-1]["step"] == step  # nothing that was finished is lost
    found = re.search(r"stopped, all of step \d+ is saved; go on with: minprefix (.*)", said)
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
    assert cli.main(command(world, out, "--steps=11")[len(MINPREFIX) :]) == 0
    for name in ("log.jsonl", "samples.md", "notes.txt"):
        (out / name).write_text("old", encoding="utf-8")
    assert cli.main(command(world, out, "--steps=11", "--force")[len(MINPREFIX) :]) == 0
    assert [line["step"] for line in log(out)] == list(range(1, 12))
    assert numbers(out)["step"] == 11
    assert not (out / "samples.md").exists()
    assert (out / "notes.txt").read_text(encoding="utf-8") == "old"


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ("--lr=0.5", "--lr was 0.02 and is now 0.5: leave it out"),
        ("--seed=5", "--seed was 0 and is now 5: leave it out"),
        ("--prefix-length=4", "--prefix-length was 3 and is now 4: leave it out"),
        ("--mlp-hidden=8", "--mlp-hidden was not given and is now 8: leave it out"),
        ("--template={source} -> {target}", "--template was .* and is now '{source} -> {target}':"),
        (
            "--data={world}/valid.jsonl",
            "--data is another file, or has changed: data_sha256 was .* and is now .*; resume with",
        ),
    ],
)
def test_resuming_with_a_changed_option_is_refused_by_its_name(
    world, whole, capsys, changed, sentence
):
    before = {p.name: p.read_bytes() for p in whole.iterdir()}
    more = changed.replace("{world}", str(world))
    assert cli.main(["train", "--out", str(whole), "--resume", more]) == 2
    said = capsys.readouterr().err
    assert re.search(rf"cannot resume {whole}: {sentence}", said), said
    assert {p.name: p.read_bytes() for p in whole.iterdir()} == before


def test_resuming_after_the_data_changed_is_refused(world, whole, tmp_path, capsys):
    shutil.copytree(world, tmp_path / "world")
    moved = tmp_path / "world"
    data = moved / "train.jsonl"
    data.write_text(data.read_text().replace("fox", "cat"))
    assert cli.main([*command(moved, whole, "--resume")[len(MINPREFIX) :]]) == 2
    said = capsys.readouterr().err
    assert re.search("cannot resume .*: --data .* data_sha256 was '.*' and is now", said), said


def test_resuming_where_there_is_no_run_is_a_sentence(world, tmp_path):
    sentence = one_sentence(finish(command(world, tmp_path / "nothing", "--resume")))
    assert re.search(r"nothing holds no run to resume .*: leave out --resume", sentence)
