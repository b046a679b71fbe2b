"""What the lessons of `tutorials/` call beside the package itself: a bug of the zoo planted in it,
the guard that lets a lesson go on after it, and the reference suite's grade for an exercise.

`site` builds the pages; `minprefix lessons` is the command.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from minprefix.lessons.at_hand import real_gpt2
    from minprefix.lessons.breaking import caught, planted
    from minprefix.lessons.grading import grade

__all__ = ["caught", "grade", "planted", "real_gpt2"]

_FROM = {"caught": "breaking", "planted": "breaking", "grade": "grading", "real_gpt2": "at_hand"}


def __getattr__(name: str) -> object:
    """Imported when asked for: the command line lists the lessons' command and does not wait for
    the suite."""
    if name not in _FROM:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_FROM[name]}"), name)
