"""What the lessons of `tutorials/` call beside the package itself: a bug of the zoo planted in it,
the guard that lets a lesson go on after it, and the reference suite's grade for an exercise.

`site` builds the pages; `minprefix lessons` is the command.
"""

from minprefix.lessons.at_hand import real_gpt2
from minprefix.lessons.breaking import caught, planted
from minprefix.lessons.grading import grade

__all__ = ["caught", "grade", "planted", "real_gpt2"]
