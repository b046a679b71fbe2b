"""Pairs of source and target: read from JSONL or a table, joined by a template, encoded."""

import contextlib
import csv
import difflib
import hashlib
import io
import re
import shlex
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from minprefix.errors import InputError, counted, listed, quoted
from minprefix.storage.reading import json_lines, packed, read_text, regular

if TYPE_CHECKING:
    from minprefix.model import GPT2


class Pair(NamedTuple):
    source: str
    target: str
    where: str  # "train.csv, line 12"


class Encoded(NamedTuple):
    ids: list[int]  # prompt, target, end token
    loss_from: int  # index of the first target token


#: the columns of a table where no option names them; mr and ref are the E2E dataset's
COLUMNS = (("source", "target"), ("mr", "ref"))
OPTIONS = ("--source-column", "--target-column")
#: a spreadsheet writes semicolons where the comma is the decimal sign
SEPARATORS = ",;\t|"
_SEPARATE = "put a comma, a semicolon, a tab or | between the columns"
_UNCLOSED = ": is a quote missing?"
TABLES = (".csv", ".tsv")


def read_pairs(
    path: str | Path, source_column: str | None = None, target_column: str | None = None
) -> list[Pair]:
    """Read JSONL (an object a line; the target may be a list of references) or a table with a
    header (.csv, .tsv). The file's ending decides which. Other fields and columns are ignored; each
    reference of a source is a pair.

    Raises InputError for another ending, for a file that is missing, empty or not UTF-8, for a bad
    line (with its number), and for a field or column that is missing or there twice. A pipe is
    refused, too, because the file is read again for its fingerprint.
    """
    path = Path(path)
    ending = path.suffix.lower()
    if ending not in (".jsonl", *TABLES):
        raise InputError(
            packed(path) or f"data file {path}: expected a name that ends in .jsonl, .csv or .tsv"
        )
    text = read_text(path, "the data file")
    names = (source_column or "source", target_column or "target")
    if not text.strip():
        pairs = []
    elif ending in TABLES:
        choices = COLUMNS if source_column is target_column is None else (names,)
        header, rows = read_table(path, text, choices)
        source_at, target_at = find_columns(path, header, choices, OPTIONS)
        pairs = [Pair(row[source_at], row[target_at], where) for where, row in rows]
    else:
        pairs = _read_jsonl(path, text, names)
    if not pairs:
        raise InputError(f"data file {path} holds no pairs: expected at least one")
    return pairs


def encodable(where: str, text: str) -> None:
    """Raises InputError for half a character, which JSON can escape and no UTF-8 can hold."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = error.object[error.start]
        raise InputError(f"{where}: half a character ({half!a})") from error


def _read_jsonl(path: Path, text: str, names: tuple[str, str]) -> list[Pair]:
    pairs = []
    for where, value in json_lines(path, text):
        for name, option in zip(names, OPTIONS, strict=True):
            if name not in value:
                raise InputError(
                    f"{where}: no field {name!r}, only {listed(value)}: "
                    + _named(name, value, option, f"name the fields with {' and '.join(OPTIONS)}")
                )
        source, target = (value[name] for name in names)
        targets = target if isinstance(target, list) else [target]
        if not targets or not all(isinstance(text, str) for text in (source, *targets)):
            raise InputError(
                f"{where}: source and target must be text (a target may be a list of texts)"
            )
        encodable(where, "".join([source, *targets]))
        pairs += [Pair(source, t, where) for t in targets]
    return pairs


Row = tuple[str, list[str]]  # where it begins, and its fields


def read_table(
    path: Path, text: str, choices: Sequence[Sequence[str]]
) -> tuple[list[str], list[Row]]:
    """The header of a table and its rows that hold any text. A first line `sep=;` names the
    separator. Without it the separator is the one with which the header has the columns of one of
    `choices`, or else the most columns.

    Raises InputError for bad CSV, and for a row that is longer or shorter than the header (empty
    fields at its end do not count).
    """
    given = re.match(r'"?sep=(.)"?\n', text, re.IGNORECASE)  # Excel writes and obeys it
    before, text = (1, text[given.end() :]) if given else (0, text)
    separators = given[1] if given else SEPARATORS
    with _fields_of_any_length(len(text)):
        separator = _separator(path, text, separators, choices, before + 1)
        header: list[str] = []
        rows: list[Row] = []
        for where, row in _rows(path, text, separator, before + 1):
            while header and len(row) > len(header) and not row[-1].strip():
                row.pop()
            if not header:
                header = row
            elif len(row) == len(header):
                rows.append((where, row))
            else:
                one = len(header) == 1 and (header[0],) not in choices
                raise InputError(
                    f"{where}: {counted(len(row), 'field')}, the header names {len(header)}"
                    + (f", {quoted(header[0])}: {_SEPARATE}" if one else _UNCLOSED)
                )
    return header, rows


def _separator(
    path: Path, text: str, separators: str, choices: Sequence[Sequence[str]], line: int
) -> str:
    headers: dict[str, list[str]] = {}
    failed: InputError | None = None
    for separator in separators:
        try:
            _, headers[separator] = next(_rows(path, text, separator, line), ("", []))
        except InputError as error:  # "a";"b" is bad CSV with commas
            failed = failed or error
    if not headers:
        raise failed or InputError(f"{path} has no header")
    for separator, header in headers.items():
        if any(set(names) <= set(header) for names in choices):
            return separator
    return max(headers, key=lambda separator: len(headers[separator]))


def _rows(path: Path, text: str, separator: str, line: int) -> Iterator[Row]:
    """The rows with any text; the first begins at `line`. A quoted field may hold line breaks."""
    reader, first = csv.reader(io.StringIO(text, ""), delimiter=separator, strict=True), line
    try:
        for row in reader:
            if any(field.strip() for field in row):
                yield f"{path}, line {line}", row
            line = first + reader.line_num
    except csv.Error as error:
        raise InputError(f"{path}, line {line}: bad CSV ({error})") from error


#: the limit holds for the whole process, so one reader at a time changes it
_limit = threading.Lock()


@contextlib.contextmanager
def _fields_of_any_length(n: int) -> Iterator[None]:
    """Lift csv's limit of 131,072 characters a field, which holds in unused columns, too."""
    with _limit:
        before = csv.field_size_limit()
        csv.field_size_limit(max(before, n))
        try:
            yield
        finally:
            csv.field_size_limit(before)


def find_columns(
    path: Path, header: Sequence[str], choices: Sequence[Sequence[str]], options: Sequence[str]
) -> list[int]:
    """The positions in the header of the first of `choices` whose columns are all there. Raises
    InputError for a column that is missing or there twice."""
    names = next((names for names in choices if set(names) <= set(header)), choices[0])
    for column, option in zip(names, options, strict=True):
        if header.count(column) > 1:
            raise InputError(f"{path} has {header.count(column)} columns {column!r}: expected one")
        if column not in header:
            do = f"name the columns with {' and '.join(options)}"
            if len(header) == 1:
                do += f", and {_SEPARATE}"
            raise InputError(
                f"{path} has no column {column!r}, only {listed(header)}: "
                + _named(column, header, option, do)
            )
    return [header.index(name) for name in names]


def _named(wanted: str, there: Iterable[str], option: str, otherwise: str) -> str:
    """Advice on a missing name: a similar one that is there, or `otherwise`."""
    plain = {name.strip().casefold(): name for name in there}
    close = difflib.get_close_matches(wanted.strip().casefold(), plain, 1, 0.75)
    near = plain[close[0]] if close else ""
    if not near.isprintable() or not near:
        return otherwise
    return f"did you mean {near!r}? Then give {option} {shlex.quote(near)}, or write {wanted!r}"


def group_references(pairs: Sequence[Pair]) -> dict[str, list[str]]:
    """source -> its references, in the order in which they first appear."""
    groups: dict[str, list[str]] = {}
    for pair in pairs:
        groups.setdefault(pair.source, []).append(pair.target)
    return groups


def fingerprint(path: str | Path) -> str:
    """sha256 of the file's bytes."""
    regular(Path(path), "the data file")
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


@dataclass(frozen=True)
class Template:
    """How source and target become one text, as in "{source}\\n{target}"; the model's (first) end
    token follows. The loss begins at the target's first token. Blanks right before the target
    belong to it, because byte-level BPE joins a blank to the word after it."""

    text: str = "{source}\n{target}"

    def __post_init__(self) -> None:
        try:
            self.text.encode()
        except UnicodeEncodeError as error:  # from a shell, or escaped in JSON
            raise InputError(f"template {self.text!a} is not UTF-8: type it as UTF-8") from error
        unknown = set(re.findall(r"\{\w+\}", self.text)) - {"{source}", "{target}"}
        if unknown:
            raise InputError(
                f"template {self.text!r} has {min(unknown)}: only {{source}} and {{target}} are "
                "filled in"
            )
        once = self.text.count("{source}") == self.text.count("{target}") == 1
        if not once or "{source}" not in self._parts[0]:
            raise InputError(
                f"template {self.text!r}: expected {{source}} once and after it {{target}} once, "
                "as in '{source}\\n{target}'"
            )

    @property
    def _parts(self) -> tuple[str, str]:
        """The text before the target and after it."""
        before, _, after = self.text.partition("{target}")
        return before, after

    def prompt(self, source: str) -> str:
        """The text before the target."""
        return self._parts[0].rstrip(" ").replace("{source}", source)

    def completion(self, target: str) -> str:
        """The target with the blanks before it and the template's end."""
        before, after = self._parts
        return before[len(before.rstrip(" ")) :] + target + after

    def read(self, generated: str) -> str:
        """The target alone, out of a model's text after the prompt."""
        return generated.strip().removesuffix(self._parts[1].strip()).strip()


def encode_pairs(
    model: "GPT2",
    pairs: Sequence[Pair],
    template: Template,
    room: int,
    skip_long: bool = False,
    rival: str | None = None,
) -> list[Encoded]:
    """Token ids of every pair. Raises InputError, with the line, for a pair that has no prompt, no
    target, or more than `room` tokens (`GPT2.room`); with `skip_long` long pairs are left out.
    `rival`: what is in the prefix's place, for that sentence."""
    texts = [template.prompt(pair.source) for pair in pairs]
    texts += [template.completion(pair.target) for pair in pairs]
    ids_of = model.encode_many(texts)  # one call, so that a note counts what is lost in all
    prompts, completions = ids_of[: len(pairs)], ids_of[len(pairs) :]
    end = model.config.end_tokens[:1]
    encoded = []
    for pair, prompt, completion in zip(pairs, prompts, completions, strict=True):
        ids = [*prompt, *completion, *end]
        if not prompt and not pair.source.strip():
            raise InputError(
                f"{pair.where}: the source is empty: the target needs a token before it"
            )
        if not pair.target.strip():
            raise InputError(f"{pair.where}: the target is empty: there is nothing to predict")
        sides = (("source", pair.source, prompt), ("target", pair.target, completion))
        for name, text, found in sides:
            if not found:
                raise InputError(f"{pair.where}: the {name} {model.nothing_left(text)}")
        if len(ids) > room and skip_long:
            continue
        if len(ids) > room:
            shorten = "shorten the line"
            if len(ids) <= model.room():  # it fits where the prefix takes no positions
                option = "lower --prefix-length" if rival else "train with --position-offset 0"
                shorten += f", {option}" if rival else f" or the prefix, {option}"
            behind = f"with {rival}" if rival else "after the prefix"
            raise InputError(
                f"{pair.where}: {len(ids)} tokens, the model has room for {room} {behind}: "
                f"{shorten}, or leave such lines out (train and evaluate do so with --skip-long)"
            )
        encoded.append(Encoded(ids, len(prompt)))
    return encoded
