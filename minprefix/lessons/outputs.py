"""A cell's outputs as HTML: text, pictures, and this package's own tables. Text is escaped."""

import base64
import re
from collections.abc import Callable, Sequence
from html import escape
from typing import Any

from minprefix.errors import quoted

_MOST_TEXT = 100_000  # characters of one output on a page
_WIDEST = 432  # points of a drawing: in a wider one a phone's text is too small to read
_MOST_SVG = 400_000  # bytes of a drawing; above that a PNG is smaller
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


def shown(
    outputs: Sequence[Any], save: Callable[[str, bytes], str], warn: Callable[[str], None]
) -> str:
    """`save` takes a picture's ending and bytes, and returns its address."""
    parts = []
    for output in outputs:
        if output["output_type"] == "stream":
            if output["name"] == "stderr":
                said = output["text"].strip().splitlines() or [""]
                warn(f"writes to stderr: {quoted(said[-1])}")
            parts.append(_text(output["text"], warn, output["name"]))
        elif output["output_type"] in ("display_data", "execute_result"):
            parts.append(_display(output["data"], save, warn))
    return "\n".join(part for part in parts if part)


def _text(text: str, warn: Callable[[str], None], stream: str = "stdout") -> str:
    text = _ESCAPES.sub("", text).replace("\r\n", "\n")
    lines = [line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n")]  # as a terminal
    text = _CONTROL.sub("\N{REPLACEMENT CHARACTER}", "\n".join(lines)).rstrip("\n")
    if len(text) > _MOST_TEXT:
        warn(f"gives {len(text):,} characters of text; the page shows {_MOST_TEXT:,}")
        text = text[:_MOST_TEXT] + " …"
    return f'<pre class="{stream}">{escape(text)}</pre>' if text.strip() else ""


def _display(
    data: dict[str, Any], save: Callable[[str, bytes], str], warn: Callable[[str], None]
) -> str:
    words = "".join(data.get("text/plain", ""))
    svg = "".join(data.get("image/svg+xml", "")).encode()
    png = data.get("image/png")
    if svg or png:
        if not words.strip() or words.startswith("<"):
            warn("draws a picture without words: give it a title, or its axes labels")
            words = "A picture without words"
        width = re.search(rb'<svg[^>]* width="([\d.]+)pt"', svg)
        if width and float(width[1]) > _WIDEST:
            warn(
                f"draws a picture {float(width[1]):.0f} points wide, too wide for a phone: make "
                f"the figure at most {_WIDEST / 72:.0f} inches wide"
            )
        if png and (not svg or len(svg) > _MOST_SVG):
            address = save(".png", base64.b64decode(png))
        else:
            address = save(".svg", svg)
        return f'<figure><img src="{escape(address)}" alt="{escape(words)}"></figure>'
    if "text/html" in data:
        return f'<div class="html">{"".join(data["text/html"])}</div>'
    return _text(words, warn)
