"""Freed memory stays with a process that trains, and with no other."""

import subprocess
import sys
from pathlib import Path

import pytest

from minprefix import GPT2, Config
from minprefix.ops import memory

#: asks three times for 64 MB and prints how many pages the system had to clear for the last time
AGAIN = """
import resource
import numpy as np
for _ in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    a = np.ones(1 << 24, np.float32)
    cleared = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    del a
print(cleared)
"""
TRAIN = """
import sys
from minprefix import GPT2, Prefix
from minprefix.data.pairs import Encoded
from minprefix.train import Settings, train
model = GPT2.load(sys.argv[1])
prefix, examples = Prefix.normal(model.config, 2), [Encoded([1, 2, 3], 1)]
train(model, prefix, examples, Settings(steps=1), sys.argv[2], progress=False)
"""


def pages_cleared(code: str, *arguments: str) -> int:
    run = [sys.executable, "-c", code + AGAIN, *arguments]
    done = subprocess.run(run, capture_output=True, text=True, check=True, timeout=600)
    return int(done.stdout.split()[-1])


needs_glibc = pytest.mark.skipif(not memory.keep_freed(), reason="the C library is not glibc")


@needs_glibc
def test_importing_the_package_changes_nothing():
    assert pages_cleared("import minprefix") >= 32  # huge pages are 2 MB


@needs_glibc
def test_what_is_freed_is_there_again():
    code = "from minprefix.ops import memory; assert memory.keep_freed()"
    assert pages_cleared(code) < 8


@needs_glibc
def test_training_keeps_it(tmp_path: Path):
    GPT2.random(Config(1, 2, 8, 11, 16)).save(tmp_path / "model")
    assert pages_cleared(TRAIN, str(tmp_path / "model"), str(tmp_path / "run")) < 8


@pytest.mark.parametrize("error", [AttributeError, OSError, TypeError])
def test_another_c_library_is_left_alone(monkeypatch, error):
    def refuse(name):
        raise error

    monkeypatch.setattr(memory.ctypes, "CDLL", refuse)
    assert memory.keep_freed.__wrapped__() is False


def test_a_refused_threshold_is_not_followed_by_the_other(monkeypatch):
    asked = []

    class Refusing:
        def __init__(self, name):
            pass

        def mallopt(self, parameter, value):
            asked.append(parameter)
            return 0

    monkeypatch.setattr(memory.ctypes, "CDLL", Refusing)
    assert memory.keep_freed.__wrapped__() is False
    assert asked == [memory.M_MMAP_THRESHOLD]
