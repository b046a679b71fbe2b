"""Plausible wrong answers to the lessons' graded exercises, and easy ways round them.
`tests/exercises/lesson_05.py` has those of lesson 5. `grade` has to fail each of them, in words
that name the mistake."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Wrong:
    function: str  # the exercise
    mistake: str  # what a reader of this list calls it
    says: str  # stands in what `grade` prints
    answer: Callable[..., Any]
    is_lazy: bool = False


def wrong(function: str, says: str) -> Callable[[Callable[..., Any]], Wrong]:
    """An answer to the exercise that asks for `function`. `says`: what the report has to say of it;
    what a usual mistake of the exercise says, a hint of the diagnosis, or the name of a bug of the
    zoo."""

    def made(answer: Callable[..., Any]) -> Wrong:
        mistake, answer.__name__ = answer.__name__.replace("_", "-"), function
        return Wrong(function, mistake, says, answer)

    return made


def lazy(function: str, says: str) -> Callable[[Callable[..., Any]], Wrong]:
    """An answer that gets round the work, and would be right if nobody looked."""

    def made(answer: Callable[..., Any]) -> Wrong:
        mistake, answer.__name__ = answer.__name__.replace("_", "-"), function
        return Wrong(function, mistake, says, answer, is_lazy=True)

    return made
