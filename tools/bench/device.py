"""Where a job runs, as far as those who measure must know. Both kinds of processes use it, those
with CuPy and those with PyTorch; it imports neither."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any


def _at_once() -> None:
    """Nothing to wait for: on the CPU a call has done its work when it returns."""


@dataclass(frozen=True)
class Device:
    """`wait`: until all that was launched has ended, without which a clock reads what it took to
    launch it. `peak`: the most bytes of the device's memory that the allocator has taken so far;
    None on the CPU."""

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
    """Those among a profiler's events: neither what the host did nor copies and fills."""
    there = [e.name for e in events if "CUDA" in str(e.device_type)]
    return sum(not name.startswith(("Memcpy", "Memset")) for name in there)
