"""How long an implementation takes for a check, and when that is too long."""

import math
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

#: a first call on arrays of a shape, which may compile, is given so many times the limit
FIRST = 3

#: seconds for the suite's own work between two calls, on a machine that has other work, too
BETWEEN = 120.0

#: the part of the limit after which no more cases are drawn and no more derivatives are taken
DRAWN = 0.25


class OutOfTime(BaseException):
    """A check took too long, though every call returned. No Exception: no handler of a check's is
    meant for it."""


class Clock:
    """The time that a check spends in the implementation. The first call of a function on arrays of
    a shape may compile: it does not count towards `limit`, in seconds; with an infinite one nothing
    is measured.

    `told(function, seconds)` is called before each call, with the time that it may take, and with
    an empty text when it has returned.
    """

    def __init__(
        self, limit: float = math.inf, told: Callable[[str, float], object] = lambda *_: None
    ) -> None:
        self.limit, self._told = limit, told
        self._warm: dict[str, list[float]] = defaultdict(lambda: [0, 0.0])  # calls, seconds
        self._seen: set[Any] = set()  # functions and shapes that were called before
        self._function, self._first, self._since = "", False, 0.0
        self.start()

    def start(self) -> None:
        """A check begins."""
        self._running, self._compiling = 0.0, 0.0

    def elapsed(self) -> float:
        """Seconds in calls since the check began."""
        return self._running + self._compiling

    def hurries(self) -> bool:
        """Whether a check that can do with fewer calls should make no more."""
        return self.elapsed() > DRAWN * self.limit

    def begin(self, function: str, arguments: tuple[Any, ...]) -> None:
        """A call begins. Raises OutOfTime if the check has used up its time."""
        if self.limit == math.inf:
            return
        if self._running > self.limit or self._compiling > 2 * FIRST * self.limit:
            raise OutOfTime(f"it took over {self.limit:g} s{self._each(function)}")
        key = (function, *map(shape, arguments))
        self._function, self._first = function, key not in self._seen
        self._seen.add(key)
        self._told(function, self.limit * (FIRST if self._first else 1))
        self._since = time.monotonic()

    def end(self) -> None:
        """It has returned or raised."""
        if self.limit == math.inf:
            return
        seconds = time.monotonic() - self._since
        if self._first:
            self._compiling += seconds
        else:
            calls = self._warm[self._function]
            calls[0], calls[1] = calls[0] + 1, calls[1] + seconds
            self._running += seconds
        self._told("", BETWEEN)

    def is_slow(self) -> bool:
        """Whether a check that makes a thousand calls would take too long."""
        return any(1000 * seconds > n * self.limit for n, seconds in self._warm.values())

    def too_long(self, calls: Mapping[str, int]) -> str:
        """A sentence if so many calls of these functions would take longer than the limit, by what
        they took before."""
        known = [f for f in calls if f in self._warm]
        seconds = {f: calls[f] * self._warm[f][1] / self._warm[f][0] for f in known}
        if sum(seconds.values()) <= self.limit:
            return ""
        most = max(known, key=lambda f: seconds[f])
        return f"it would take over {self.limit:g} s{self._each(most)}"

    def _each(self, function: str) -> str:
        n, seconds = self._warm.get(function, (0, 0.0))
        return f" ({function} takes {seconds / n:.2g} s each time)" if n else ""


def shape(a: Any) -> Any:
    """What a compiler looks at: the shapes of arrays, those of a list or a dictionary one by one,
    of a problem's fields, and how long its sequences are."""
    own = getattr(a, "shape", None)
    if own is not None:
        return tuple(own), str(getattr(a, "dtype", ""))
    if isinstance(a, Mapping):
        return tuple((name, shape(each)) for name, each in a.items())
    if isinstance(a, list | tuple):
        return len(a) if a and isinstance(a[0], int) else tuple(map(shape, a))
    if is_dataclass(a):
        return tuple(shape(getattr(a, f.name)) for f in fields(a))
    return type(a)
