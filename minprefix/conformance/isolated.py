"""The checks in a process of their own, with a time limit for each: an endless loop, a crash or an
exit of the implementation is a graded failure, and the next check goes on."""

import contextlib
import multiprocessing
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from multiprocessing.sharedctypes import Synchronized
from typing import Any

from tqdm import tqdm

from minprefix import console
from minprefix.conformance.check import Check, Finding, Result
from minprefix.conformance.clock import BETWEEN, Clock
from minprefix.conformance.contract import ARGUMENTS, FUNCTIONS, OF_A_MODULE, WHOLE
from minprefix.conformance.implementation import load
from minprefix.conformance.suite import Zookeeper, all_checks, check_of, grade
from minprefix.errors import InputError
from minprefix.ops import threads

#: seconds for a check's calls, and for each of them
TIME_LIMIT = 20.0
CRASHES = 3  # after so many in one op its other checks are not run
LOAD_LIMIT = 120.0  # seconds for importing the implementation: PyTorch alone may take ten
_NAMES = (*ARGUMENTS, *WHOLE, *OF_A_MODULE)


class Worker:
    """A process that has loaded an implementation and runs checks on it, one at a time. It is
    started again when a check ends it."""

    def __init__(
        self,
        spec: str,
        time_limit: float = TIME_LIMIT,
        zoo: bool = True,
        waiting: Callable[[], object] = lambda: None,
    ) -> None:
        """`waiting` is called about once a second as long as there is no answer."""
        self.spec, self.time_limit, self.zoo, self._waiting = spec, time_limit, zoo, waiting
        self._context = multiprocessing.get_context("spawn")  # a fork would share a GPU's state
        self._process: SpawnProcess | None = None
        self._connection: Connection
        self._calling: Synchronized[int] = self._context.Value("i", -1)  # which function runs
        self._since: Synchronized[float] = self._context.Value("d", 0.0)  # and since when
        self._may: Synchronized[float] = self._context.Value("d", 0.0)  # seconds that it may take
        self._scratch = tempfile.TemporaryDirectory()  # hypothesis keeps things in a folder
        self._keeper = Zookeeper()
        self._given_up: dict[str, str] = {}  # op -> the sentence about its crash or its loop
        self._crashes = Counter[str]()  # op -> how often it ended the process

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *exc: object) -> None:
        self._end()
        self._scratch.cleanup()

    def offered(self) -> list[str]:
        """The contract's functions that the implementation has. Raises InputError when it cannot
        be imported."""
        if self._process is None:
            self._offered = self._start()
        return self._offered

    def _start(self) -> list[str]:
        self._connection, theirs = self._context.Pipe()
        arguments = (theirs, self.spec, self.time_limit, self._calling, self._since, self._may)
        self._process = self._context.Process(target=_serve, args=arguments, daemon=True)
        with _environment(self._scratch.name):
            self._process.start()
        theirs.close()
        try:
            self._since.value, self._may.value = time.monotonic(), LOAD_LIMIT
            if not self._answers():
                self._end()
                raise InputError(f"{self.spec} took over {LOAD_LIMIT:.0f} s to import: stopped")
            kind, said = self._connection.recv()
        except EOFError:
            how = self._how_it_ended()
            raise InputError(f"{self.spec} {how} while it was imported") from None
        if kind == "refused":
            self._end()
            raise InputError(said)
        offered: list[str] = said
        return offered

    def grade(self, check: Check) -> Result:
        """The check's result. A call that does not return and a crash are failures; the op's other
        checks are then not graded."""
        if check.op in self._given_up:
            return _not_graded(check, f"not run: {self._given_up[check.op]}")
        self.offered()
        self._calling.value = -1
        self._since.value, self._may.value = time.monotonic(), BETWEEN
        self._connection.send((check.id, self.zoo and self._keeper.wanted(check)))
        try:
            if self._answers():
                result: Result = self._connection.recv()
                self._keeper.saw(result)
                return result
            kind, said = "time", self._how_it_hung()
        except EOFError:
            kind, said = "crash", f"{self._function() or check.id} {self._how_it_ended()}"
        function = self._function()
        self._end()
        if function and function not in FUNCTIONS.get(check.op, (function,)):
            return _not_graded(check, f"not run to its end: {said}")  # another op's
        self._crashes[check.op] += kind == "crash"
        if kind == "time" and not function:
            return _not_graded(check, f"it took over {BETWEEN:g} s between calls")
        if kind == "time" or self._crashes[check.op] == CRASHES:
            self._given_up[check.op] = said
        return self._failure(check, function, kind, said)

    def _failure(self, check: Check, function: str, kind: str, sentence: str) -> Result:
        finding = Finding(function or check.op, "", kind, sentence)
        finding.reproducer = (
            "import faulthandler\n"
            "from minprefix.conformance import all_checks, load\n"
            "faulthandler.enable()  # a traceback of where it stands, after a crash and in time\n"
            f"faulthandler.dump_traceback_later({self._may.value:g}, exit=True)\n"
            f"print({f'expected: {finding.function} returns'!r})\n"
            f"all_checks()[{check.id!r}].grade(load({self.spec!r}))"
        )
        return Result(check.id, check.level, check.op, "failed", [finding])

    def _answers(self) -> bool:
        """Whether there is an answer in time."""
        while (left := self._since.value + self._may.value - time.monotonic()) > 0:
            if self._connection.poll(min(left, 1.0)):
                return True
            self._waiting()
        return self._connection.poll()

    def _function(self) -> str:
        return _NAMES[self._calling.value] if self._calling.value >= 0 else ""

    def _how_it_hung(self) -> str:
        return f"{self._function()} did not return within {self._may.value:g} s: an endless loop?"

    def _how_it_ended(self) -> str:
        assert self._process is not None
        self._process.join(5)
        code = self._process.exitcode or 0
        self._process = None
        how = f"signal {-code}" if code < 0 else f"exit status {code}"
        return f"ended the process with {how}"

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._connection.close()
            self._process = None


@contextlib.contextmanager
def _environment(scratch: str) -> Iterator[None]:
    """The environment that the other process starts with."""
    # safe path: a `types.py` in the folder that one stands in must not pass for Python's own
    new = {"PYTHONSAFEPATH": "1", "HYPOTHESIS_STORAGE_DIRECTORY": scratch}
    # as many threads there as here, for every library
    new |= dict.fromkeys(threads.VARIABLES, str(threads.count()))
    old = {name: os.environ[name] for name in new if name in os.environ}
    os.environ.update(new)
    try:
        yield
    finally:
        for name in new.keys() - old:
            del os.environ[name]
        os.environ.update(old)


def _not_graded(check: Check, why: str) -> Result:
    return Result(check.id, check.level, check.op, "not graded", not_graded=why)


def run_isolated(
    spec: str,
    checks: Sequence[Check] | None = None,
    time_limit: float = TIME_LIMIT,
    zoo: bool = True,
    progress: bool = False,
) -> list[Result]:
    """The checks on the implementation that `spec` names (see `load`), in a process of their own;
    `progress`: with a bar on a terminal. Raises InputError when it cannot be imported."""
    results = []
    todo = list(all_checks().values()) if checks is None else checks
    bar = tqdm(total=len(todo), unit="check", leave=False, disable=None if progress else True)
    with bar, Worker(spec, time_limit, zoo, bar.refresh) as worker:
        bar.set_description(f"importing {spec}")
        worker.offered()
        for check in todo:
            bar.set_description(check.id)
            results.append(worker.grade(check))
            bar.update()
    return results


# ---- in the other process ----------------------------------------------------------------------


def _serve(
    connection: Connection, spec: str, time_limit: float, calling: Any, since: Any, may: Any
) -> None:
    # printing must not fail an implementation; first of all, because a stream whose file has become
    # a pipe can no longer be changed
    console.take_every_character()
    sys.stdout.flush()
    os.dup2(2, 1)  # nor must it stand in a report
    try:
        loaded = load(spec)
    except InputError as error:
        connection.send(("refused", str(error)))
        return

    def told(function: str, seconds: float) -> None:
        calling.value = _NAMES.index(function) if function else -1
        since.value, may.value = time.monotonic(), seconds

    loaded.clock = Clock(time_limit, told)
    connection.send(("ready", loaded.offered()))
    while True:
        try:
            check, zoo = connection.recv()
        except (EOFError, KeyboardInterrupt):
            return
        connection.send(grade(check_of(check), loaded, zoo))
