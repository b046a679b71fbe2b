"""The microscope: every intermediate of a forward and a backward under its name."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from minprefix.trace.record import Record, Summary, Trace
    from minprefix.trace.tracer import trace

__all__ = ["Record", "Summary", "Trace", "trace"]


def __getattr__(name: str) -> Any:
    """Imported when asked for: the command line names this package's commands, and
    `minprefix --help` should not wait for them."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = "tracer" if name == "trace" else "record"
    return getattr(import_module(f"{__name__}.{module}"), name)
