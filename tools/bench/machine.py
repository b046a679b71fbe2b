"""The machine of a run, and the memory of a process."""

import os
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

#: packages whose versions are recorded, where installed
PACKAGES = ("numpy", "torch", "transformers", "peft")


def cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def describe(backend: str = "numpy") -> dict[str, Any]:
    """With the backend "cupy" the GPU is described, too."""
    described = {
        "cpu": _cpu(),
        "cores": cores(),
        "memory_bytes": _memory(),
        "os": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "blas": _blas(),
        "packages": {name: version(name) for name in PACKAGES},
    }
    return described | {"gpu": _gpu()} if backend == "cupy" else described


def version(package: str) -> str | None:
    """None: not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    for line in lines:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not POSIX
        return None


def _blas() -> str:
    """The library behind NumPy's matrix products."""
    config: Any = np.show_config(mode="dicts")
    blas = config["Build Dependencies"]["blas"]
    return f"{blas.get('name', 'unknown')} {blas.get('version', '')}".strip()


def _gpu() -> dict[str, Any]:
    """The device that CuPy computes on, and what lies between the two."""
    import cupy

    runtime = cupy.cuda.runtime
    device = cupy.cuda.Device()
    properties = runtime.getDeviceProperties(device.id)
    return {
        "name": properties["name"].decode(),
        "memory_bytes": int(properties["totalGlobalMem"]),
        "compute_capability": device.compute_capability,
        "driver": _cuda(runtime.driverGetVersion()),
        "runtime": _cuda(runtime.runtimeGetVersion()),
        "cupy": cupy.__version__,
    }


def _cuda(number: int) -> str:
    """12090 -> 12.9."""
    return f"{number // 1000}.{number % 1000 // 10}"


# ---- the memory of this process ---------------------------------------------------------------


def peak_bytes() -> int:
    """The most memory that this process has held so far: its own high-water mark."""
    in_status = _status("VmHWM")
    if in_status is not None:
        return in_status
    import resource  # not on Windows, and there is no /proc either

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def resident_bytes() -> int:
    """The memory that this process holds now; where the system does not say, its high-water
    mark."""
    now = _status("VmRSS")
    return peak_bytes() if now is None else now


def _status(name: str) -> int | None:
    """A line of /proc/self/status, in bytes."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return None
