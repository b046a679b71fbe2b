"""Small runs of `minprefix train` that are killed, resumed and compared with one that was not."""

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import ByteLevelBPETokenizer, Tokenizer

from minprefix import Config, InputError, Prefix
from minprefix.storage.tensors import map_tensors

MINPREFIX = [sys.executable, "-m", "minprefix"]
#: the same, killed at one of its calls: further arguments say which
STRUCK = [sys.executable, "-m", "tests.reliability.calls"]
ROOT = Path(__file__).parents[2]
STATE = "state.safetensors"
STEPS = 240
COMMON = [
    f"--steps={STEPS}", "--save-every=4", "--batch-size=3", "--prefix-length=3", "--warmup=10",
    "--schedule=cosine", "--weight-decay=0.01", "--lr=0.02",
]  # fmt: skip
VALID = ["--valid={world}/valid.jsonl", "--eval-every=20"]
KINDS = {
    "flat": [],
    "MLP": ["--mlp-hidden=8", "--lr=0.005"],
    "layer subset": ["--layers=1"],
    "validation, the best is kept": VALID,
    "validation, dropout, micro-batches": [*VALID, "--dropout=0.1", "--micro-batch-size=2"],
}
#: the one that the tests kill: everything of which a state must know
RICHEST = "validation, dropout, micro-batches"


def make_world(folder: Path) -> Path:
    """A folder with a random model, its tokenizer, train.jsonl and valid.jsonl."""
    from tests.conftest import random_model  # brings PyTorch, for which a reader should not wait

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


def command(world: Path, out: Path, *more: str, kind: str = RICHEST) -> list[str]:
    files = [f"--model={world}/model", f"--data={world}/train.jsonl"]
    options = [option.format(world=world) for option in (*COMMON, *KINDS[kind])]
    return [*MINPREFIX, "train", *files, *options, "--out", str(out), *more]


def struck(argv: Sequence[str], part: str, n: int, when: str) -> list[str]:
    """The same command, killed `when` its n-th call on `part` of its folder comes."""
    return [*STRUCK, part, str(n), when, *argv[len(MINPREFIX) :]]


def finish(argv: Sequence[str], **how: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        argv, capture_output=True, text=True, timeout=600, check=False, cwd=ROOT, **how
    )


def one_sentence(done: subprocess.CompletedProcess[str]) -> str:
    """What a failed command said: a single line on its own, no traceback."""
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode == 2, done.stderr
    lines = [line for line in re.split(r"[\n\r]", done.stderr) if "minprefix: error:" in line]
    assert len(lines) == 1, done.stderr
    assert done.stderr.rstrip().endswith(lines[0])
    return lines[0]


# ---- what a folder holds ----------------------------------------------------------------------


def log(out: Path) -> list[dict[str, Any]]:
    """Its lines without what a clock said."""
    lines = (out / "log.jsonl").read_text(encoding="utf-8").splitlines()
    times = ("seconds", "tokens_per_second")
    return [{k: v for k, v in json.loads(line).items() if k not in times} for line in lines]


def numbers(out: Path) -> dict[str, Any]:
    """The progress that the state file holds; it must load whole."""
    tensors, metadata = map_tensors(out / STATE, "the state")
    assert all(np.isfinite(a).all() for a in tensors.values())
    return json.loads(metadata["minprefix"])["state"]


def holds_prefix(out: Path, whole: Path) -> bool:
    """Whether a prefix was saved; it must be that of `whole`."""
    try:
        kv = Prefix.load(out).kv
    except InputError as error:
        if re.search("holds no prefix|does not exist", str(error)):
            return False
        raise
    assert kv.tobytes() == Prefix.load(whole).kv.tobytes()
    return True


def assert_same_end(out: Path, whole: Path) -> None:
    """Every file is equal byte for byte, but for what a clock said."""
    assert sorted(p.name for p in out.iterdir()) == sorted(p.name for p in whole.iterdir())
    assert log(out) == log(whole)
    assert len(log(out)) == STEPS
    for path in whole.iterdir():
        ours, theirs = ((f / path.name).read_bytes() for f in (out, whole))
        if path.name == "minprefix.json":
            ours, theirs = (re.sub(rb'"saved": "[^"]*"', b"", text) for text in (ours, theirs))
        assert ours == theirs or path.name == "log.jsonl", path.name


# ---- when to kill -----------------------------------------------------------------------------


def wait_for(
    condition: Callable[[], bool], process: subprocess.Popen[Any], seconds: float = 300.0
) -> None:
    """Look as often as possible, until it is so or the process ended."""
    end = time.monotonic() + seconds
    while not condition() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.0002)


def size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


#: moments that are found by looking at the folder
SEEN = ("start-up", "training", "saving the state", "drawing the loss")


def kill_at_random(
    process: subprocess.Popen[Any], out: Path, moment: str, rng: np.random.Generator
) -> bool:
    """-> whether the kill came before the end."""
    if moment == "start-up":
        time.sleep(rng.uniform(0.0, 1.5))
    elif moment == "training":
        wait_for(lambda: (out / STATE).exists(), process)
        written, more = size(out / "log.jsonl"), rng.integers(1, 1500)
        wait_for(lambda: size(out / "log.jsonl") > written + more, process)
        time.sleep(rng.uniform(0.0, 0.01))
    elif moment == "saving the state":
        for _ in range(int(rng.integers(1, 4))):
            wait_for(lambda: not any(out.glob(f".{STATE}*")), process)
            wait_for(lambda: any(out.glob(f".{STATE}*")), process)
        time.sleep(rng.uniform(0.0, 0.001))
    else:  # drawing the loss
        last = f'{{"step": {STEPS},'.encode()
        path = out / "log.jsonl"
        wait_for(lambda: path.exists() and last in path.read_bytes()[-300:], process)
        time.sleep(rng.uniform(0.0, 0.4))
    process.kill()
    return process.wait() == -signal.SIGKILL
