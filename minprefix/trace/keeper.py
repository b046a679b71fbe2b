"""The part of a tracer that keeps records under their names, those of an operation's own lines too
where its text is known, and that opens the debugger at one of them."""

import sys
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np

from minprefix import ops as _ops
from minprefix.errors import InputError
from minprefix.ops import reference
from minprefix.ops.contract import Ops
from minprefix.trace.instrument import Source, Spy, instrumented, source_of
from minprefix.trace.record import Record, matches
from minprefix.trace.wiring import BETWEEN

if TYPE_CHECKING:
    import pdb


class Keeper:
    """Keeps the values of the implementation `inner`; `Tracer` tells it what they are called."""

    def __init__(
        self,
        inner: Ops,
        names: str | Sequence[str] = "*",
        max_bytes: int = 2**30,
        stop_at: str | None = None,
        arguments: bool = False,
    ) -> None:
        self.inner = inner
        self.names, self.max_bytes, self.stop_at = names, max_bytes, stop_at
        self.arguments = arguments
        self.records: list[Record] = []
        self.names_seen: dict[str, None] = {}
        self.made_of: dict[str, tuple[str, ...]] = {}  # what was given back, kept or not
        self.calls: dict[str, int] = {}  # key -> the call of an op that made it, counted from 1
        self.stop_calls: set[int] = set()  # the calls at whose return the debugger opens
        self.source: Source | None = None
        self._bytes = 0
        # the running op: its place, its name, its direction, and the number of the call
        self._site, self._op, self._direction, self._call = "", "", "forward", 0
        self._kept: dict[int, tuple[Any, Record]] = {}  # id -> a value of this op and its record
        self._forward: set[str] = set()  # keys of what ops of the forward computed inside
        if inner is reference:
            source = source_of(reference)
            self._instrument(source, "\n".join(source.lines) + "\n")

    def _instrument(self, source: Source, text: str) -> None:
        self.source, self._spy = source, Spy(self._inside, self._returning)
        self.inner = cast(Ops, instrumented(text, source.path, self._spy))

    # ---- records ----

    def _out(
        self,
        name: str,
        value: Any,
        inputs: Sequence[str] = (),
        op: str | None = None,
        sequence: int | None = None,
    ) -> None:
        """A value that the running op gives back; with `op`, one that the model makes itself."""
        record = Record(name, self._direction, op or self._op, value, tuple(inputs), sequence)
        self.made_of[record.key] = record.inputs
        if self.source is not None and op is None:
            line = self.source.made.get((self._op, "return"), 0)
            record.formula = self._formula()
            record.line, record.text = line, self.source.statement.get(line, "")
        elif op in BETWEEN:
            record.formula = BETWEEN[op].formula.format(name=name, inputs=inputs)
        _, known = self._kept.get(id(value), (None, None))
        if known is not None and known.key == record.key and known.inside:
            known.inside, known.inputs = False, record.inputs  # it has the line that computed it
            if known.value is not value:  # a copy, and more was added since (np.add.at)
                known.value = value.copy()
        else:
            self._keep(record)

    def _inside(self, function: str, number: int, values: dict[str, Any]) -> None:
        """The source text assigned these names in line `number`."""
        assert self.source is not None
        for name, value in values.items():
            if not isinstance(value, np.ndarray) or value.dtype == object:
                continue
            if id(value) in self._kept:  # it has a name already: keys = _heads_first(...)
                continue
            record = Record(
                f"{self._site}.{name}", self._direction, self._op, value,
                sequence=self._spy.sequence, inside=True, line=number,
                text=self.source.statement[number], formula=self._formula(),
            )  # fmt: skip
            if self._direction == "forward":
                self._forward.add(record.key)
            elif record.key in self._forward:  # the backward recomputes a value of the forward
                continue
            self._keep(record)

    def _formula(self) -> str:
        """The running op's formula, and where it is from in brackets."""
        formula, origin = self.source.formula.get(self._op, ("", "")) if self.source else ("", "")
        return f"{formula} ({origin})" if origin else formula

    def _keep(self, record: Record) -> None:
        self.names_seen[record.name] = None
        self.calls[record.key] = self._call
        value = record.value
        if matches(record, self.names):
            if not isinstance(value, np.ndarray):
                record.value = _ops.to(np.asanyarray(value), "numpy")
            self._bytes += record.value.nbytes
            if self._bytes > self.max_bytes:  # from here on values are only counted: see `kept`
                self.records.clear()
            else:
                # a fast implementation may overwrite it later, and so may a wrong one
                if self.source is None or self.arguments:
                    record.value = record.value.copy()
                self.records.append(record)
        self._kept[id(value)] = (value, record)
        if self.stop_at and matches(record, self.stop_at) and not self.given_back(record):
            self._debug("line")

    def kept(self) -> list[Record]:
        """The records. Raises InputError if they would be larger than `max_bytes`."""
        if self._bytes > self.max_bytes:
            raise InputError(
                f"the trace is {self._bytes:,} bytes, more than the {self.max_bytes:,} of "
                'max_bytes: narrow it by names such as "blocks.0.*" or "*.attn.pattern", take '
                "fewer tokens, or raise max_bytes"
            )
        return self.records

    # ---- the debugger ----

    def given_back(self, record: Record) -> bool:
        """Whether the `return` of an op's text made it, so that it has no name there yet."""
        end = self.source and self.source.made.get((record.op, "return"))
        return bool(end) and record.line == end

    def _returning(self, function: str, value: Any) -> None:
        if function == self._op and self._call in self.stop_calls:
            self._debug("return", value)

    @cached_property
    def _pdb(self) -> "pdb.Pdb":
        import pdb

        return pdb.Pdb(skip=["minprefix.trace.*", "contextlib", "fnmatch"])

    def _debug(self, event: Literal["line", "return"], value: Any = None) -> None:
        """Open pdb where the traced text is. `set_trace` would show the line after this one, so
        pdb is handed this line's event directly."""
        frame = sys._getframe()
        while frame.f_globals["__name__"].startswith("minprefix.trace.") and frame.f_back:
            frame = frame.f_back
        self._pdb.set_trace(frame)
        sys.settrace(None)  # the debugger does not debug itself
        self._pdb.trace_dispatch(frame, event, value)
        if frame.f_trace is not None:  # it was not told to continue
            sys.settrace(self._pdb.trace_dispatch)
        if event == "return":
            frame.f_trace = None  # and it does not show the same return again
