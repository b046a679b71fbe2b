"""A process that something happens to at a chosen one of its calls to the system: it dies, the disk
is full, someone presses Ctrl-C.

    python -m tests.reliability.calls NAME N WHEN train ...    a command of minprefix that is killed
        WHEN (before, after, half) its N-th call on the files NAME of --out, see `part`
"""

import builtins
import contextlib
import fcntl
import json
import os
import signal
import stat
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from minprefix import cli
from minprefix.storage import saving

#: calls that change what is on the disk; in this order `before` and `after` each of them is every
#: state that a kill can leave, but for a write that was cut short: "half"
CALLS = ("open", "mkdir", "replace", "unlink", "rmdir", "fsync")
PREFIX = ("adapter_config.json", "adapter_model.safetensors", "prefix.safetensors",
          "mlp.safetensors", "minprefix.json")  # fmt: skip


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def cut_short(handle: int) -> bool:
    """Whether half of an open file may be missing: of one that is written anew, not of one that
    lines are added to."""
    is_file = stat.S_ISREG(os.fstat(handle).st_mode)
    return is_file and not fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_APPEND


@contextlib.contextmanager
def struck(
    n: int,
    when: str = "before",
    act: Callable[[], Any] = die,
    of: Callable[[str, str], bool] = lambda call, path: True,
    on: bool = False,
) -> Iterator[list[str]]:
    """`act` when the n-th call, from 0, comes that `of` counts by its name and path; `on`: and at
    each one from then on. -> the calls so far."""
    seen: list[str] = []

    def wrap(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **more: Any) -> Any:
            path = args[1] if name == "replace" else args[0]
            if isinstance(path, int):
                path = os.readlink(f"/proc/self/fd/{path}")
            if not of(name, os.fspath(path)):
                return real(*args, **more)
            seen.append(f"{name} {os.path.basename(os.fspath(path))}")
            mine = len(seen) > n if on else len(seen) == n + 1
            if mine and when == "half" and name == "fsync" and cut_short(args[0]):
                os.truncate(path, os.path.getsize(path) // 2)
            if mine and when != "after":
                act()
            try:
                return real(*args, **more)
            finally:
                if mine and when == "after":
                    act()

        return call

    places = [(os, name) for name in CALLS] + [(builtins, "open")]
    real = [getattr(*place) for place in places]
    for (module, name), function in zip(places, real, strict=True):
        setattr(module, name, wrap(name, function))
    try:
        yield seen
    finally:
        for (module, name), function in zip(places, real, strict=True):
            setattr(module, name, function)


def part(path: str) -> str | None:
    """What of a run a file belongs to: "prefix", or its own name; None for other files."""
    name = os.path.basename(path)
    if name in PREFIX or saving.SAVING in Path(path).parts:
        return "prefix"
    if name.startswith(".") and name.endswith(".tmp"):
        name = name[1:-4]
    return name if name in ("state.safetensors", "log.jsonl", "loss.png", "metrics.json") else None


def main(name: str, n: str, when: str, *argv: str) -> int:
    out = os.path.abspath(argv[argv.index("--out") + 1])
    seen: Counter[str] = Counter()

    def counts(call: str, path: str) -> bool:
        if not os.path.abspath(path).startswith(out + os.sep):
            return False
        found = part(path)
        seen[found or ""] += 1
        return found == name

    with struck(int(n), when, die, counts):
        status = cli.main(argv)
    if name == "count":  # how many there are of each
        print(json.dumps(seen))
    return status


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
