"""The device that a job runs on, as far as measuring needs it. Processes with CuPy and processes
with PyTorch both use it; it imports neither."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any


def _at_once() -> None:
    """On the CPU a call has done its work when it returns."""


@dataclass(frozen=True)
class Device:
    """`wait` returns when all launched work has ended; without it a clock would read the time of
    launching. `peak`: the most bytes of device memory that the allocator has taken so far; None on
    the CPU."""

    wait: Callable[[], object] = _at_once
    peak: Callable[[], int] | None = None


def launches(step: Callable[[], object], device: Device) -> int | None:
    """The kernels that a step launches. PyTorch's profiler asks the driver, which knows of CuPy's
    kernels, too. None where PyTorch is not there, has no GPU, or its profiler sees nothing."""
    if find_spec("torch") is None:
        return None
    import torch
    from torch.profiler import ProfilerActivity, profile

    if not torch.cuda.is_available():
        return None
    step()  # compiles kernels, fills caches
    device.wait()
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        step()
        device.wait()
    return kernels(seen.events()) or None


def kernels(events: Iterable[Any]) -> int:
    """The kernels among a profiler's events, without the host's calls, copies and fills."""
    there = [e.name for e in events if "CUDA" in str(e.device_type)]
    return sum(not name.startswith(("Memcpy", "Memset")) for name in there)
