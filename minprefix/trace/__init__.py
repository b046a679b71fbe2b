"""The microscope: every intermediate of a forward and a backward under its name."""

from minprefix.trace.record import Record, Summary, Trace
from minprefix.trace.tracer import trace

__all__ = ["Record", "Summary", "Trace", "trace"]
