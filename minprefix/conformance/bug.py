"""A bug of the zoo, as a change to this project's own text."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Bug:
    """A mistake.

    `module`: where it is planted ("ops.reference"); `change`: pairs of a text that stands there
    exactly once, and the text that replaces it. `truth`: the op (or `model`, `decoding`,
    `training`) and the tensor that is the first to be wrong because of it. `see`: what you would
    see; `lesson`: why; `source`: who made it.
    """

    name: str
    kind: str  # maths, plumbing, training
    module: str
    change: tuple[tuple[str, str], ...]
    truth: tuple[str, str]
    see: str
    lesson: str
    source: str = ""

    def diff(self) -> str:
        """The change as lines with - and +."""
        lines = []
        for old, new in self.change:
            lines += [f"-{line}" for line in old.splitlines()]
            lines += [f"+{line}" for line in new.splitlines()]
        return "\n".join(lines)
