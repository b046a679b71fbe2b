"""Requests: prompts, each with the name of its prefix. They are read from JSONL or from a table;
pairs are requests, too, with their sources as prompts."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from minprefix.data.pairs import COLUMNS, TABLES, encodable, find_columns, read_table
from minprefix.errors import InputError, quoted
from minprefix.storage.reading import json_lines, read_text


class Request(NamedTuple):
    prompt: str
    prefix: str | None  # its name; None: the frozen model
    where: str  # "requests.jsonl, line 12"
    fields: dict[str, Any]  # the whole line; the answer repeats it


#: the fields that may hold the prompt where no option names one
PROMPTS = ("prompt", *(source for source, _ in COLUMNS))


def read_requests(
    path: str | Path, default: str | None = None, source_column: str | None = None
) -> list[Request]:
    """Read `{"prompt": ..., "prefix": ...}` from each line; null is the frozen model. A line
    without a prefix takes `default`. The prompt may also be a pair's source, or stand in
    `source_column`. A table (.csv, .tsv) has a request in each row; there an empty prefix is null.
    Other fields are kept, except "text", which the answer needs.

    Raises InputError, with the line, for anything else, for a line that JSON cannot write again,
    and for a line without a prefix where there is no default.
    """
    path, requests = Path(path), []
    names = PROMPTS if source_column is None else (source_column,)
    text = read_text(path, "the requests")
    is_table = path.suffix.lower() in TABLES and text.strip()
    for where, value in _table(path, text, names) if is_table else json_lines(path, text):
        field = next((name for name in names if name in value), names[0])
        prompt, name = value.get(field), value.get("prefix", default)
        if not isinstance(prompt, str) or not prompt:
            raise InputError(f"{where}: {field} is {quoted(prompt)}: expected text")
        if "prefix" not in value and default is None:
            none = "leave it empty" if is_table else "null"
            raise InputError(
                f"{where}: no field 'prefix': name one, or {none} for the frozen model; "
                "--prefix DIR gives one to every line that names none"
            )
        if name is not None and not isinstance(name, str):
            raise InputError(f"{where}: prefix is {quoted(name)}: expected a name, or null")
        if "text" in value:
            raise InputError(f"{where}: the answer needs the field 'text': give it another name")
        try:
            again = json.dumps(value, ensure_ascii=False, allow_nan=False)
        except ValueError as error:
            raise InputError(f"{where}: NaN or infinity: JSON has no such number") from error
        encodable(where, again)
        requests.append(Request(prompt, name, where, value))
    if not requests:
        raise InputError(f"{path} holds no requests: expected at least one line")
    return requests


def _table(path: Path, text: str, names: tuple[str, ...]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The named columns of each row."""
    choices = [(name,) for name in names]
    header, rows = read_table(path, text, choices)
    find_columns(path, header, choices, ["--source-column"])
    for where, row in rows:
        fields: dict[str, Any] = {n: field for n, field in zip(header, row, strict=True) if n}
        if fields.get("prefix") == "":  # a table cannot say null in another way
            fields["prefix"] = None
        yield where, fields
