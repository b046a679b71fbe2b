"""Functions that only the lessons in `tutorials/` call: they plant a bug of the zoo, let a lesson
go on after the assert that notices it, and grade the answer to an exercise.

`site` builds the pages; `minprefix lessons` is the command.
"""

import importlib
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from minprefix.lessons.breaking import caught, planted
    from minprefix.lessons.grading import grade
    from minprefix.model import GPT2

__all__ = ["caught", "grade", "planted", "real_gpt2"]

_FROM = {"caught": "breaking", "planted": "breaking", "grade": "grading"}


def __getattr__(name: str) -> object:
    """Imports on demand, so that the command line does not wait for the suite."""
    if name not in _FROM:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_FROM[name]}"), name)


def real_gpt2() -> "GPT2 | None":
    """GPT-2 (124M) from the folder or under the name that the environment variable MINPREFIX_GPT2
    gives; None without it. Nothing is fetched unless that name asks for it."""
    from minprefix.model import GPT2

    name = os.environ.get("MINPREFIX_GPT2")
    return GPT2.load(name) if name else None
