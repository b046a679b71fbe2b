"""RELIABILITY.md: a section for each command, replaced whole by its last run."""

import datetime
import os
import platform
import re
import textwrap
from importlib.metadata import version
from pathlib import Path

PAGE = Path(__file__).parents[2] / "RELIABILITY.md"


def machine() -> str:
    """What a figure's reader has to know: versions, system, how many cores."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("numpy", "safetensors"))
    system = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    return f"Python {platform.python_version()}, {packages}; {system}"


def wrap(lines: list[str]) -> str:
    """Paragraphs and list items as lines of the page's width; rows of a table stay."""
    return "\n".join(
        line
        if line.startswith("|")
        else textwrap.fill(line, 115, subsequent_indent=indent, break_on_hyphens=False)
        for line in lines
        for indent in ("  " if line.startswith("- ") else "",)
    )


def write(section: str, text: str) -> None:
    """Replace the part of the page between `<!-- section -->` and `<!-- end of section -->`, which
    must be there."""
    today = datetime.date.today().isoformat()
    page = PAGE.read_text(encoding="utf-8")
    begin, end = f"<!-- {section} -->", f"<!-- end of {section} -->"
    part = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    if not part.search(page):
        raise SystemExit(f"{PAGE} has no section {begin} ... {end}")
    new = f"{begin}\n{text.strip()}\n\nMeasured {today} with {machine()}.\n{end}"
    PAGE.write_text(part.sub(lambda _: new, page), encoding="utf-8")
