"""The stepper: pdb's commands over a trace. The trace is computed once; the stepper then walks its
records, in both directions."""

import cmd
import os
import re
import sys
from typing import IO, Any

import numpy as np

from minprefix import gpt2
from minprefix.errors import InputError, counted
from minprefix.gpt2 import Weights
from minprefix.ops import reference
from minprefix.trace.fd import Differences, inside
from minprefix.trace.heat import heat
from minprefix.trace.instrument import Source, names_read, source_of
from minprefix.trace.laws import laws
from minprefix.trace.mirror import mirrored
from minprefix.trace.record import Record, Trace, matches, unknown
from minprefix.trace.wiring import BETWEEN, model_line

WORDS = """\
n [COUNT]     the next operation
s [COUNT]     step into an operation: its next line
back [COUNT]  one record back
b [NAME]      break where this name or pattern is computed (*.dprefix_k); alone: list them
cl [NAME]     clear this breakpoint, or all
c             continue to the next breakpoint, or to the end
j NAME        jump to a record, forward or back
p EXPR        evaluate; names are those computed so far, the nearest first (dscores), or whole
              (blocks.2.attn.pattern#0, h.2.ln_1.weight); np, t, model, prefix and batch as well
l, ll         the source around the line; the whole function
w             where we are
heat [I ...]  the tensor as cells, at this index of its leading axes; or heat EXPR
why           the formula, what it mirrors in the forward, and what came in
fd [INDEX]    a central difference of the loss against this entry (alone: the largest)
laws          the conservation laws that hold at this operation
q             quit
h             this list; an empty line repeats the last command"""

END = "--End-- back goes back, q quits"


class Stepper(cmd.Cmd):
    """It stands at one record of `trace`. `given`: more names for p. It answers a command that it
    cannot do with a sentence after `***`, and counts it in `refused`."""

    prompt = "(step) "

    def __init__(
        self,
        trace: Trace,
        differences: Differences | None = None,
        given: dict[str, Any] | None = None,
        source: Source | None = None,
        stdin: IO[str] | None = None,
        stdout: IO[str] | None = None,
    ) -> None:
        super().__init__(stdin=stdin, stdout=stdout)
        self.trace, self.differences, self.given = trace, differences, given or {}
        self.interactive = self.stdin.isatty()
        self.use_rawinput = self.interactive and self.stdin is sys.stdin
        dull = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
        self.colour = self.stdout.isatty() and not dull
        self.at, self.refused = 0, 0
        self.breaks: list[str] = []
        self.source = source or source_of(reference)

    @property
    def record(self) -> Record:
        return self.trace.records[self.at]

    # ---- reading commands ----

    def run(self) -> None:
        self.say(f"--{self.record.direction.capitalize()}--")
        self.show()
        while True:
            try:
                self.cmdloop()
                return
            except KeyboardInterrupt:
                if not self.interactive:
                    raise
                self.say("--KeyboardInterrupt--")

    def say(self, text: str) -> None:
        self.stdout.write(f"{text}\n")

    def precmd(self, line: str) -> str:
        line = line.lstrip("\ufeffï»¿\ufffd")  # PowerShell's pipes begin with a byte order mark
        if not self.interactive:
            self.say("" if line == "EOF" else line)  # so that a script's output can be read
        elif line == "EOF":
            self.say("")
        return line

    def onecmd(self, line: str) -> bool:
        if line.lstrip().startswith("#"):
            return False
        try:
            return bool(super().onecmd(line))
        except InputError as error:
            self.say(f"*** {error}")
            self.refused += 1
            return False

    def default(self, line: str) -> None:
        """As in pdb, a line that is no command is an expression."""
        self.do_p(line.removeprefix("!"))

    def do_EOF(self, _: str) -> bool:
        return True

    do_q = do_quit = do_exit = do_EOF

    def do_help(self, _: str) -> None:
        self.say(WORDS)

    # ---- walking ----

    def show(self) -> None:
        r = self.record
        self.say(f"> {r.key} {r.shape} {r.value.dtype}   {r.op}{', inside' if r.inside else ''}")
        self.say(f"  {r.summary}")
        path, line, text = self._line(r)
        if line:
            self.say(f"-> {text}   {os.path.basename(path)}:{line}")

    def _go(self, number: int) -> None:
        turned = self.trace.records[number].direction != self.record.direction
        self.at = number
        if turned:
            self.say(f"--{self.record.direction.capitalize()}--")
        self.show()

    def _ahead(self, inside: bool = True) -> list[int]:
        """The records further on; without `inside` those that operations give back."""
        return [r.number for r in self.trace.records[self.at + 1 :] if inside or not r.inside]

    def _walk(self, ahead: list[int], arg: str) -> None:
        count = _count(arg)
        if ahead:
            self._go(ahead[min(count, len(ahead)) - 1])
        if count > len(ahead):
            self.say(END)

    def do_n(self, arg: str) -> None:
        self._walk(self._ahead(inside=False), arg)

    def do_s(self, arg: str) -> None:
        self._walk(self._ahead(), arg)

    def do_back(self, arg: str) -> None:
        count = _count(arg)
        if self.at:
            self._go(max(0, self.at - count))
        else:
            self.say("--Begin-- nothing is computed before this")

    def do_b(self, arg: str) -> None:
        if not arg:
            return self.say("\n".join(self.breaks) or "no breakpoints")
        first, *others = self.trace.find(arg)
        self.breaks = [*dict.fromkeys([*self.breaks, arg])]
        more = f" and {len(others)} more" if others else ""
        return self.say(f"breakpoint at {arg}: {first.key}{more}")

    def do_cl(self, arg: str) -> None:
        if arg and arg not in self.breaks:
            known = ", ".join(self.breaks) or "none"
            raise InputError(f"there is no breakpoint {arg!r}: there are {known}")
        self.breaks = [b for b in self.breaks if arg and b != arg]

    def do_c(self, _: str) -> None:
        ahead = self._ahead()
        hit = next((n for n in ahead if matches(self.trace.records[n], self.breaks)), None)
        if ahead:
            self._go(ahead[-1] if hit is None else hit)
        if hit is None:
            self.say(END)

    def do_j(self, arg: str) -> None:
        if not arg:
            raise InputError("j NAME: expected a record, such as blocks.1.attn.dscores")
        self._go(self._named(arg).number)

    def _named(self, name: str) -> Record:
        """The record of this key, or of this name in the current sequence."""
        key = f"{name}#{self.record.sequence}"
        return self.trace[key if key in self.trace else name]

    def complete_b(self, text: str, *_: Any) -> list[str]:
        return sorted({r.name for r in self.trace if r.name.startswith(text)})

    complete_j = complete_p = complete_b

    # ---- values ----

    def do_p(self, arg: str) -> None:
        self.say(repr(self._value(arg)))

    def _value(self, expression: str) -> Any:
        given: dict[str, Any] = {"np": np, "t": self.trace, **self.given}
        given |= {name: record.value for name, record in self._variables().items()}

        def dotted(match: re.Match[str]) -> str:
            name, rest = match[0], ""
            while "." in name:
                value = self._whole_name(name)
                if value is not None:
                    given[f"_{len(given)}"] = value
                    return f"_{len(given) - 1}{rest}"
                name, _, last = name.rpartition(".")
                rest = f".{last}{rest}"
            if name in ("blocks", "h") and name not in given:  # a record or a weight: misspelt
                raise unknown(match[0], [*(r.name for r in self.trace), *self._weights()])
            return match[0]

        if not expression.strip():
            raise InputError("p EXPR: expected an expression, such as dscores.shape")
        try:
            code = re.sub(r"(?<![\w.'\"])[a-z]\w*(?:\.\w+)+(?:#\d+)?", dotted, expression)
            return eval(code, given)
        except InputError:
            raise
        except Exception as error:  # any kind: it is reported, as in pdb
            near = ", ".join(sorted(self._near())) if isinstance(error, NameError) else ""
            said = f"{type(error).__name__}: {error}" + (f"; here are {near}" if near else "")
            raise InputError(said) from error

    def _whole_name(self, name: str) -> Any:
        """A weight, or the value of a record computed so far; None for other names."""
        if name in self._weights():
            return self._weights()[name]
        if not any(name in (r.name, r.key) for r in self.trace):
            return None
        record = self._named(name)
        if record.number > self.at:
            raise InputError(f"{record.key} is computed later: b {record.key} and c go there")
        return record.value

    def _weights(self) -> Weights:
        return self.given["model"].weights if "model" in self.given else {}

    def _variables(self) -> dict[str, Record]:
        """The last part of a name -> the nearest record computed so far: one in the same part of
        the model, then in the same block, then of the same sequence, then the latest."""
        here = self.record
        block = here.name.split(".")[:2]

        def near(r: Record) -> tuple[bool, bool, bool, int]:
            same = r.name.split(".")[:2] == block
            return _site(r) == _site(here), same, r.sequence == here.sequence, r.number

        done = sorted(self.trace.records[: self.at + 1], key=near)
        return {_last(r): r for r in done}

    def _near(self) -> dict[str, Record]:
        """The variables of the current part of the model."""
        here = _site(self.record)
        return {name: r for name, r in self._variables().items() if _site(r) == here}

    def do_heat(self, arg: str) -> None:
        a, title = self.record.value, self.record.key
        numbers = _numbers(arg)
        if numbers is None:
            a, title, numbers = np.asarray(self._value(arg)), arg, ()
            if a.dtype.kind not in "biufc":
                raise InputError(f"{arg} is no tensor of numbers: give one, such as dscores[0]")
        lead = max(a.ndim - 2, 0)
        index = numbers + (0,) * (lead - len(numbers))
        fits = len(index) == lead and all(-n <= i < n for i, n in zip(index, a.shape, strict=False))
        if not fits:
            raise InputError(
                f"heat {arg}: {title} is {a.shape}, of which the last two axes are shown: give at "
                f"most {counted(lead, 'number')}, each below its size"
            )
        said = f"{title} {list(index)} of {a.shape[:lead]}" if lead else title
        keyed = _last(self.record).removeprefix("d") in ("scores", "pattern")
        # P: a bar stands between the prefix and the tokens
        slots = a.shape[2] - a.shape[1] if keyed and a is self.record.value else 0
        self.say(heat(a[index], said, self.colour, slots))

    # ---- where, why ----

    def _line(self, r: Record) -> tuple[str, int, str]:
        """The file, number and text of the line that made a record; "", 0 and "" if unknown."""
        if r.line:
            return self.source.path, r.line, r.text
        model, line = source_of(gpt2), model_line(r.name, r.op)
        return (model.path, line, model.lines[line - 1].strip()) if line else ("", 0, "")

    def do_l(self, _: str, whole: bool = False) -> None:
        path, at, _ = self._line(self.record)
        if not at:
            raise InputError(
                f"no line is known for {self.record.key}: l shows lines of the reference and gpt2"
            )
        source = self.source if path == self.source.path else source_of(gpt2)
        first, last = at - 5, at + 5
        if whole:
            first, last = next(f for f in source.functions.values() if f[0] <= at <= f[1])
        for n in range(max(first, 1), min(last, len(source.lines)) + 1):
            self.say(f"{n:4} {'->' if n == at else '  '} {source.lines[n - 1]}".rstrip())

    def do_ll(self, _: str) -> None:
        self.do_l("", whole=True)

    def do_w(self, _: str) -> None:
        r, about = self.record, self.trace.about
        tokens, sequences = len(about.get("tokens", ())), len(about.get("offsets", (0,))) - 1
        self.say(f"  {r.direction} of {counted(sequences, 'sequence')}, {counted(tokens, 'token')}")
        parts = r.name.split(".")[:-1]
        for n in range(1 + (parts[:1] == ["blocks"]), len(parts) + 1):
            self.say(f"  {'.'.join(parts[:n])}")
        of = "" if r.sequence is None else f", sequence {r.sequence}"
        path, line, _ = self._line(r)
        self.say(f"  {r.op}{of}" + (f"   {path}:{line}" if line else ""))
        self.say(f"> {r.key}   record {r.number + 1} of {len(self.trace)}")

    def do_why(self, _: str) -> None:
        r = self.record
        if r.formula:
            self.say(f"formula   {r.formula}")
        path, line, text = self._line(r)
        if line:
            self.say(f"line      {os.path.basename(path)}:{line}  {text}")
        if r.op in ("add", "join") and r.direction == "backward":
            self.say(f"mirrors   {BETWEEN[r.op].mirrors}")
        found = r.line and mirrored(self.source, r.op, _last(r))
        if found:
            self.say(f"mirrors   {os.path.basename(self.source.path)}:{found[0]}  {found[1]}")
        for name in self._incoming(r):
            self.say(self._one_line(name))

    def _incoming(self, r: Record) -> list[str]:
        """A record's inputs: the names that its line reads, then its operation's inputs."""
        read = names_read(r.text) - {_last(r)}
        keys = [near.key for name, near in self._near().items() if name in read]
        ends = self._ahead(inside=False) if r.inside else []
        end = self.trace.records[ends[0]] if ends else r
        return list(dict.fromkeys([*keys, *end.inputs]))

    def _one_line(self, name: str) -> str:
        if name not in self.trace:
            weight = name.endswith((".weight", ".bias"))
            return f"weight    {name}" if weight else f"not kept  {name}"
        record = self.trace[name]
        kind = "incoming" if record.direction == self.record.direction else "forward's"
        return f"{kind:<9} {record.key} {record.shape} {record.summary}"

    # ---- is it right? ----

    def do_fd(self, arg: str) -> None:
        r = self.record
        if self.differences is None:
            raise InputError("fd runs the forward again: it needs the model, not a trace alone")
        index = _numbers(arg)
        if index is None:
            raise InputError(f"fd {arg}: expected an entry, as in fd 1 0 3, or nothing")
        if not arg and r.value.size:
            index = tuple(map(int, np.unravel_index(np.abs(r.value).argmax(), r.shape)))
        index = inside(r, index)
        d = self.differences.at(r.key, index)
        self.say(f"{r.key} {list(index)}, in float64")
        self.say(f"  moved       {d.moved} {list(d.entry)} by +-{d.step:.2g} and twice as much")
        self.say(f"  difference  {d.numeric:+.10e}   of the loss")
        if d.analytic is None:
            self.say("  analytic    none: no line of the backward forms this gradient")
            return
        self.say(f"  analytic    {d.analytic:+.10e}   of the backward")
        verdict = "they agree" if d.agrees else "THEY DO NOT AGREE"
        if d.agrees and d.apart and max(abs(d.numeric), abs(d.analytic)) <= d.resolves:
            verdict = "both are too small to tell"
        resolves = f"fd cannot see less than {d.resolves:.1e}"
        self.say(f"  apart       {d.apart:.1e}; {resolves}: {verdict}")
        if r.direction == "backward" and r.value.dtype != np.float64:
            shown = float(r.value[index])
            self.say(f"  this run    {shown:+.10e}   {r.value.dtype}: not what is compared")

    def do_laws(self, _: str) -> None:
        found = laws(self.trace, self.record)
        for law in found:
            holds = "holds" if law.holds else "DOES NOT HOLD"
            self.say(f"{law.text}: off by {law.off:.1e} of what is summed: {holds}")
        none = f"no law is about {self.record.op} alone; laws 5 to 8: minprefix check"
        self.say("laws cannot see a missing scale or a flipped sign: fd can" if found else none)

    # pdb's longer words
    do_h, do_next, do_step, do_cont, do_continue = do_help, do_n, do_s, do_c, do_c
    do_break, do_clear, do_jump = do_b, do_cl, do_j
    do_list, do_longlist, do_where, do_bt = do_l, do_ll, do_w, do_w


def _count(arg: str) -> int:
    if arg and not (arg.isdecimal() and int(arg)):
        raise InputError(f"{arg!r} is no count: give a whole number, at least 1, or nothing")
    return int(arg or 1)


def _numbers(arg: str) -> tuple[int, ...] | None:
    """1 0 3, or [1, 0, 3]; None for what is neither."""
    parts = arg.strip("[]() ").replace(",", " ").split()
    return tuple(map(int, parts)) if all(re.fullmatch(r"-?\d+", p) for p in parts) else None


def _site(record: Record) -> str:
    return record.name.rpartition(".")[0]


def _last(record: Record) -> str:
    return record.name.rpartition(".")[2]
