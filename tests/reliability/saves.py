"""Saves of several files as one, killed at every one of their calls, and while they are completed.

python -m tests.reliability.saves    prints how many kills there were, and what they left
"""

import json
import os
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Callable, Container, Sequence
from pathlib import Path

from minprefix.storage import saving
from tests.reliability.calls import struck

Content = dict[str, bytes]
NAMES = ("config", "tensor", "own", "about")
OLD = {"config": b"old config", "tensor": b"old tensor" * 500, "about": b"old"}
NEW = {"config": b"new config", "own": b"new tensor" * 700, "about": b"new"}
#: what stands there before, and what is saved
SAVES: list[tuple[Content, Content]] = [(OLD, NEW), ({}, NEW), (OLD, {}), (OLD, OLD | {"own": b""})]
WHEN = ("before", "half", "after")
OTHERS = {"notes.txt": b"mine", ".hidden": b"mine, too"}


def content(folder: Path) -> Content:
    """Everything in it; a folder as empty."""
    found = folder.rglob("*")
    return {str(p.relative_to(folder)): b"" if p.is_dir() else p.read_bytes() for p in found}


def start(folder: Path, old: Content) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, data in (old | OTHERS).items():
        (folder / name).write_bytes(data)


def killed(n: int, when: str, work: Callable[[], None]) -> bool:
    """Do `work` in another process, which dies at its n-th call. -> whether it came so far."""
    child = os.fork()
    if not child:
        with struck(n, when):
            work()
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


def kill_at_every_call(
    folder: Path, saves: Sequence[tuple[Content, Content]], completing: Container[str]
) -> Counter[str]:
    """Kill each of `saves` at each call, and what completes it, too, where `completing` says so of
    the kill before. -> how many kills left the old files and how many the new ones. AssertionError
    for anything else."""
    count: Counter[str] = Counter()
    for old, new in saves:

        def finish() -> None:
            saving.finish_save(folder, NAMES)

        def save(new: Content = new) -> None:
            saving.write_together(folder, new, NAMES)

        def after(n: int, when: str, old: Content = old, save: Callable[[], None] = save) -> bool:
            start(folder, old)
            return killed(n, when, save)

        for when in WHEN:
            n, decided = 0, False
            while after(n, when):
                pending = (folder / saving.SAVING / saving.COMPLETE).exists()
                finish()
                found = content(folder)
                assert found in (old | OTHERS, new | OTHERS), (when, n, sorted(found))
                assert not pending or found == new | OTHERS, (when, n)
                # one call decides: all kills before it leave the old ones, all after it the new
                assert not decided or found == new | OTHERS, (when, n)
                decided = found == new | OTHERS
                count["new" if decided else "old"] += 1
                m = 0
                while pending and when in completing and after(n, when) and killed(m, when, finish):
                    count["completions killed"] += 1
                    finish()
                    assert content(folder) == new | OTHERS, (when, n, m)
                    m += 1
                n += 1
            assert n > 10, (when, n, new.keys())
            assert decided
            assert content(folder) == new | OTHERS  # it came to its end
    return count


if __name__ == "__main__":
    where = Path(sys.argv[1]) / "run"
    few = sys.argv[2:] == ["few"]
    found = kill_at_every_call(where, SAVES[:2] if few else SAVES, ("after",) if few else WHEN)
    print(json.dumps(found))
