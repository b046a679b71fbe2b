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
    fields: dict[str, Any]  # the whole line, to be given back with the answer


def read_requests(path: str | Path, default: str | None = None) -> list[Request]:
    """`{"prompt": ..., "prefix": ...}` a line; null is the frozen model without a prefix. A line
    that names none takes `default`. Other fields are kept.

    Raises InputError, with the line, for what is no such object, and for a line that names no
    prefix where there is no default.
    """
    requests = []
    for n, line in enumerate(files.read_text(Path(path), "the requests").split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path}, line {n}"
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            said = getattr(error, "msg", error)
            raise InputError(f"{where}: not JSON ({said}): expected one object a line") from error
        if not isinstance(value, dict):
            raise InputError(f"{where}: a {type(value).__name__}: expected an object")
        prompt, name = value.get("prompt"), value.get("prefix", default)
        if not isinstance(prompt, str) or not prompt:
            raise InputError(f"{where}: prompt is {prompt!r:.60}: expected text")
        if "prefix" not in value and default is None:
            raise InputError(
                f"{where}: no field 'prefix': name one, or null for the frozen model itself"
            )
        if name is not None and not isinstance(name, str):
            raise InputError(f"{where}: prefix is {name!r:.60}: expected a name, or null")
        requests.append(Request(prompt, name, value))
    if not requests:
        raise InputError(f"{path} holds no requests: expected at least one line")
    return requests
