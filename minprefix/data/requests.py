"""Requests for many prefixes at once: a JSONL file, each line with a prompt and the name of a
prefix; or pairs, whose sources are the prompts."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from minprefix.data.pairs import COLUMNS, TABLES, find_columns, read_table
from minprefix.errors import InputError, quoted
from minprefix.storage.reading import json_lines, read_text


class Request(NamedTuple):
    prompt: str
    prefix: str | None  # its name; None: the frozen model itself
    where: str  # "requests.jsonl, line 12"
    fields: dict[str, Any]  # the whole line, to be given back with the answer


#: what is the prompt where nothing is said: the field of that name, or the source of a pair
PROMPTS = ("prompt", *(source for source, _ in COLUMNS))


def read_requests(
    path: str | Path, default: str | None = None, source_column: str | None = None
) -> list[Request]:
    """`{"prompt": ..., "prefix": ...}` a line; null is the frozen model without a prefix. A line
    that names none takes `default`. A pair's source is a prompt, too, and so is `source_column`;
    a table (.csv, .tsv) has a request in each row, where an empty prefix is null. Other fields are
    kept; "text" is the answer's.

    Raises InputError, with the line, for what is no such object or cannot be given back, and for a
    line that names no prefix where there is no default.
    """
    path, requests = Path(path), []
    names = PROMPTS if source_column is None else (source_column,)
    text = read_text(path, "the requests")
    is_table = path.suffix.lower() in TABLES and text.strip()
    for where, value in (_table if is_table else _lines)(path, text, names):
        field = next((name for name in names if name in value), names[0])
        prompt, name = value.get(field), value.get("prefix", default)
        if not isinstance(prompt, str) or not prompt:
            raise InputError(f"{where}: {field} is {quoted(prompt)}: expected text")
        if "prefix" not in value and default is None:
            none = "leave it empty" if is_table else "null"
            raise InputError(
                f"{where}: no field 'prefix': name one, or {none} for the frozen model itself; "
                "--prefix DIR is for all that name none"
            )
        if name is not None and not isinstance(name, str):
            raise InputError(f"{where}: prefix is {quoted(name)}: expected a name, or null")
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


def _lines(path: Path, text: str, names: tuple[str, ...]) -> Iterator[tuple[str, dict[str, Any]]]:
    return json_lines(path, text)


def _table(path: Path, text: str, names: tuple[str, ...]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The named columns of each row."""
    choices = [(name,) for name in names]
    header, rows = read_table(path, text, choices)
    find_columns(path, header, choices, ["--source-column"])
    for where, row in rows:
        fields: dict[str, Any] = {n: field for n, field in zip(header, row, strict=True) if n}
        if fields.get("prefix") == "":  # a table has no other way to say null
            fields["prefix"] = None
        yield where, fields
