"""The pieces of HTML that the pages are made of: the texts of `pieces.html`."""

import re
from functools import cache
from pathlib import Path

HERE = Path(__file__).parent


@cache
def _pieces() -> dict[str, str]:
    """The texts of pieces.html by name. There, a line break beside a tag or a part is layout."""
    text = (HERE / "pieces.html").read_text(encoding="utf-8")
    text = re.sub(r"(?<=[>@])\n *|\n *(?=[<@])", "", text)
    _, *named = re.split(r"<!-- (\w+) -->", re.sub(r"\n *", " ", text))
    return dict(zip(named[::2], named[1::2], strict=True))


def filled(text: str, /, **parts: object) -> str:
    """`text` with each @name@ replaced in one go, so that a marker in a lesson's text stays."""
    return re.sub(r"@(\w+)@", lambda m: str(parts[m[1]]), text)


def piece(name: str, /, **parts: object) -> str:
    """A piece of HTML; its parts are HTML, too."""
    return filled(_pieces()[name], **parts)


def dots(difficulty: int) -> str:
    """A difficulty of 5, drawn."""
    shown = "●" * difficulty + "○" * (5 - difficulty)
    return piece("dots", difficulty=difficulty, dots=shown)
