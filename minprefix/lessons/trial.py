"""One call of an answer, watched: what it returns, its local variables, and what it calls."""

import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import numpy as np

from minprefix.ops.contract import Array


@dataclass
class Trial:
    """One call: its arguments as they are afterwards, and what came of it."""

    arguments: tuple[Any, ...]
    result: Any = None
    error: BaseException | None = None
    file: str | None = None  # that the function is written in
    variables: dict[str, Any] = field(default_factory=dict)  # at its return
    package: Counter[str] = field(default_factory=Counter)  # the functions of minprefix it calls
    others: Counter[str] = field(default_factory=Counter)  # and those beside the answer
    tries: Counter[str] = field(default_factory=Counter)  # those given an argument's whole shape
    complex: str = ""  # the first of them that is called with complex numbers

    def unwritten(self) -> list[str]:
        """The variables that are `...` still."""
        return [name for name, value in self.variables.items() if value is ...]

    def is_unfinished(self) -> bool:
        parts = self.result if isinstance(self.result, tuple | list) else [self.result]
        return isinstance(self.error, NotImplementedError) or any(part is ... for part in parts)


def tried(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Trial:
    """Calls it, and watches. Ctrl-C is not caught."""
    code, names = getattr(function, "__code__", None), getattr(function, "__globals__", {})
    trial = Trial(arguments, file=getattr(code, "co_filename", None))
    shapes = {a.shape for a in _arrays(arguments) if a.size > 1}

    def watch(frame: FrameType, event: str, _: Any) -> None:
        if event == "return" and frame.f_code is code:
            trial.variables = dict(frame.f_locals)
        elif event == "call" and frame.f_code is not code and not _is_package(frame.f_back):
            if _is_package(frame):
                # the inputs' generators are closed whenever garbage is collected
                if not _is_property(frame) and not _is_of_inputs(frame):
                    name, owner = frame.f_code.co_qualname, frame.f_globals["__name__"]
                    trial.package[f"{owner}.{name}"] += 1
            elif frame.f_globals is names:
                _count(trial, frame, shapes)

    before = sys.getprofile()
    sys.setprofile(watch)
    try:
        trial.result = function(*arguments)
    except (Exception, SystemExit) as error:
        trial.error = error
    finally:
        sys.setprofile(before)
    return trial


def _count(trial: Trial, frame: FrameType, shapes: Collection[tuple[int, ...]]) -> None:
    """A call of a function that the answer's file or notebook defines."""
    name = frame.f_code.co_name
    given = list(_arrays(frame.f_locals.values()))
    trial.others[name] += 1
    if name == "<lambda>" or not name.startswith("<"):  # no comprehension
        trial.tries[name] += any(a.shape in shapes for a in given)
        if any(a.dtype.kind == "c" for a in given):
            trial.complex = trial.complex or name


def _arrays(values: Iterable[Any]) -> Iterator[Array]:
    """Those among the values, and in the collections among them."""
    for value in values:
        inside = value.values() if isinstance(value, dict) else value
        for a in inside if isinstance(inside, list | tuple | type({}.values())) else [value]:
            if isinstance(a, np.ndarray):
                yield a


def _is_package(frame: FrameType | None) -> bool:
    name = frame.f_globals.get("__name__", "") if frame else ""
    return name == "minprefix" or name.startswith("minprefix.")


def _is_of_inputs(frame: FrameType) -> bool:
    name: str = frame.f_globals.get("__name__", "")
    return name.startswith("minprefix.lessons.exercises.")


def _is_property(frame: FrameType) -> bool:
    """Whether the call only reads or makes an object: a property, or a method with underscores."""
    name = frame.f_code.co_name
    if name.startswith("__") or "<" in frame.f_code.co_qualname:
        return True
    if frame.f_code.co_qualname == "MLPPrefix.kv":  # it runs a network
        return False
    owner = frame.f_locals.get("self")
    return isinstance(getattr(type(owner), name, None), property)
