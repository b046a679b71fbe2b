"""What a lesson does with GPT-2 itself where MINPREFIX_GPT2 says that it is at hand: it must hold
for any model of GPT-2's form, so a small random one stands in for it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from minprefix import GPT2, Config

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[1]
LESSONS = [
    lesson
    for lesson in sorted((ROOT / "tutorials").glob("[0-9]*.py"))
    if "real_gpt2()" in lesson.read_text(encoding="utf-8")
]


@pytest.fixture(scope="module")
def another_gpt2(tmp_path_factory):
    """The folder of a GPT-2 that differs from the tiny model in every number but the
    vocabulary's."""
    config = Config(
        n_layer=3, n_head=3, n_embd=24, vocab_size=1024, n_positions=512, n_inner=56,
        layer_norm_epsilon=1e-4,
    )  # fmt: skip
    model = GPT2.random(config, seed=1)
    model.tokenizer = GPT2.load("tiny").tokenizer
    folder = tmp_path_factory.mktemp("gpt2")
    model.save(folder)
    return folder


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda path: path.stem)
def test_the_lesson_holds_for_the_gpt2_that_the_environment_names(lesson, another_gpt2, tmp_path):
    environment = {
        **os.environ,
        "MINPREFIX_GPT2": str(another_gpt2),
        "MPLBACKEND": "Agg",
        "PYTHONPATH": str(ROOT),
    }
    found = subprocess.run(
        [sys.executable, "-W", "ignore:FigureCanvasAgg", str(lesson)],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stderr
    assert found.stderr == ""
    assert str(another_gpt2) in found.stdout  # it shows which model it is about
