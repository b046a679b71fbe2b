"""Requests for many prefixes at once: a JSONL file, each line with a prompt and the name of a
prefix."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from minprefix import files
from minprefix.errors import InputError


class Request(NamedTuple):
    prompt: str
    prefix: str | None  # its name; None: the frozen model itself
    where: str  # "requests.jsonl, line 12"
    fields: dict[str, Any]  # the whole line, to be given back with the answer


def read_requests(path: str | Path, default: str | None = None) -> list[Request]:
    """`{"prompt": ..., "prefix": ...}` a line; null is the frozen model without a prefix. A line
    that names none takes `default`. Other fields are kept; "text" is the answer's.

    Raises InputError, with the line, for what is no such object or cannot be given back, and for a
    line that names no prefix where there is no default.
    """
    requests = []
    text = files.read_text(Path(path), "the requests")
    for where, value in files.json_lines(Path(path), text):
        prompt, name = value.get("prompt"), value.get("prefix", default)
        if not isinstance(prompt, str) or not prompt:
            raise InputError(f"{where}: prompt is {files.shown(prompt)}: expected text")
        if "prefix" not in value and default is None:
            raise InputError(
                f"{where}: no field 'prefix': name one, or null for the frozen model itself"
            )
        if name is not None and not isinstance(name, str):
            raise InputError(f"{where}: prefix is {files.shown(name)}: expected a name, or null")
        if "text" in value:
            raise InputError(f"{where}: field 'text' is the answer's: give it another name")
        try:  # it is given back with the answer
            json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
        except UnicodeEncodeError as error:  # JSON can escape what no text can hold
            raise InputError(
                f"{where}: half a character ({error.object[error.start]!a})"
            ) from error
        except ValueError as error:
            raise InputError(f"{where}: NaN or infinity: JSON has no such number") from error
        requests.append(Request(prompt, name, where, value))
    if not requests:
        raise InputError(f"{path} holds no requests: expected at least one line")
    return requests
