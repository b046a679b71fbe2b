"""Plausible wrong answers to the graded exercises of the lessons: `tests/exercises/lesson_05.py`
are those of lesson 5. The suite has to fail each of them, in words that name the mistake."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Wrong:
    function: str  # of the contract
    mistake: str  # what a reader of this list calls it
    says: str  # stands in what `grade` prints
    answer: Callable[..., Any]


def wrong(function: str, says: str) -> Callable[[Callable[..., Any]], Wrong]:
    """An answer to the exercise that asks for `function`. `says`: what the suite's report has to
    say of it; the name of a bug of the zoo, or a hint of the diagnosis."""

    def made(answer: Callable[..., Any]) -> Wrong:
        mistake, answer.__name__ = answer.__name__.replace("_", "-"), function
        return Wrong(function, mistake, says, answer)

    return made
