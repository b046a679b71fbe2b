"""Running a lesson's cells in a kernel of its own, as a notebook runs them."""

import atexit
import contextlib
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minprefix.errors import brief, counted, quoted
from minprefix.lessons.reading import Lesson

_PACKAGE = Path(__file__).parents[1]


@dataclass(frozen=True)
class Run:
    lesson: Lesson
    outputs: dict[int, list[Any]]  # by the cell's number
    failure: str | None  # a sentence: which cell did not run, and why
    seconds: float


def run_all(
    lessons: Sequence[Lesson],
    jobs: int = 2,
    time_limit: int = 120,
    say: Callable[[Run], object] = lambda run: None,
    waiting: Callable[[], object] = lambda: None,
) -> list[Run]:
    """Run `jobs` lessons at a time; one that fails does not stop the others. `say` is called after
    each, `waiting` about once a second until all have run."""
    kernels: list[Any] = []
    stopped = threading.Event()
    with ThreadPoolExecutor(jobs) as pool:  # each thread waits for its kernel, a process
        left: set[Future[Run]] = set()
        try:
            futures = [
                pool.submit(_run, lesson, time_limit, kernels, stopped) for lesson in lessons
            ]
            left = set(futures)
            while left:
                done, left = wait(left, timeout=1.0, return_when=FIRST_COMPLETED)
                for future in done:
                    say(future.result())
                waiting()
        except BaseException:  # Ctrl-C does not reach the kernels: they have sessions of their own
            for future in left:
                future.cancel()
            stopped.set()  # for a kernel that is just starting
            for kernel in kernels:
                _kill(kernel)
            raise
    return [future.result() for future in futures]


def _kill(kernel: Any) -> None:
    with contextlib.suppress(AttributeError, TypeError, ProcessLookupError):  # gone, or not begun
        os.kill(kernel.provisioner.pid, signal.SIGKILL)


def _run(lesson: Lesson, time_limit: int, kernels: list[Any], stopped: threading.Event) -> Run:
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

    v4: Any = nbformat.v4
    code = [cell for cell in lesson.cells if cell.kind == "code"]
    if not code:
        return Run(lesson, {}, None, 0.0)
    notebook = v4.new_notebook(cells=[v4.new_code_cell(cell.source) for cell in code])
    at = 0  # index of the running cell

    def begins(cell: Any, cell_index: int) -> None:
        nonlocal at
        at = cell_index
        if stopped.is_set():
            _kill(kernel)

    failure, begun = None, time.monotonic()
    # files that a lesson writes are gone afterwards
    with tempfile.TemporaryDirectory(prefix="minprefix-", ignore_cleanup_errors=True) as folder:
        kernel = _kernel(folder)
        kernels.append(kernel)
        here = Path(folder) / "lesson"
        here.mkdir()
        client = NotebookClient(
            notebook,
            km=kernel,
            timeout=time_limit,
            on_cell_start=begins,
            coalesce_streams=True,
            shutdown_kernel="immediate",
            resources={"metadata": {"path": str(here)}},
        )
        try:
            client.execute(cleanup_kc=True, env=_environment(folder))
        except CellTimeoutError:
            failure = f"runs for more than {counted(time_limit, 'second')}"
        except DeadKernelError:
            failure = "the kernel died (out of memory, or a crash in compiled code)"
        except RuntimeError as error:
            failure = f"cannot begin, its kernel did not start: {brief(error)}"
        except CellExecutionError as error:
            said = " ".join(str(error.evalue).split())
            failure = f"raises {error.ename}" + (f": {quoted(said)[1:-1]}" if said else "")
        finally:  # nbclient would complain about a dead kernel when Python ends
            atexit.unregister(client._cleanup_kernel)
    if failure is not None:
        number = code[at].number
        failure = f"{lesson.name}, cell {number} {failure}"
    outputs = {
        cell.number: list(run.outputs) for cell, run in zip(code, notebook.cells, strict=True)
    }
    return Run(lesson, outputs, failure, time.monotonic() - begun)


def _kernel(folder: str) -> Any:
    """A kernel of this Python, whatever kernels the user has installed."""
    from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
    from jupyter_client.manager import AsyncKernelManager

    class ThisPython(KernelSpecManager):
        def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
            launch = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
            options = [
                "--IPKernelApp.extra_extensions=minprefix.lessons.in_kernel",
                "--log-level=ERROR",
            ]
            return KernelSpec(argv=launch + options, display_name="lesson", language="python")

    kernel = AsyncKernelManager(kernel_spec_manager=ThisPython())
    if sys.platform != "win32":  # sockets as files, which no other user can reach
        kernel.transport, kernel.ip = "ipc", f"{folder}/socket"
    return kernel


def _environment(folder: str) -> dict[str, str]:
    """The kernel imports this package and draws into the notebook."""
    paths = [str(_PACKAGE.parent), os.environ.get("PYTHONPATH", "")]
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        "IPYTHONDIR": folder,  # not the user's, whose start-up files would run
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    }
