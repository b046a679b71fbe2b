"""Pairs of source and target: read from JSONL or CSV, joined by a template, encoded to tokens."""

import csv
import hashlib
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from minprefix import files
from minprefix.errors import InputError
from minprefix.model import GPT2


class Pair(NamedTuple):
    source: str
    target: str
    where: str  # "train.csv, line 12"


class Encoded(NamedTuple):
    ids: list[int]  # prompt, target, end token
    loss_from: int  # index of the first target token


#: the columns that are looked for when none are named; mr and ref are the E2E dataset's
COLUMNS = (("source", "target"), ("mr", "ref"))


def read_pairs(
    path: str | Path, source_column: str | None = None, target_column: str | None = None
) -> list[Pair]:
    """JSONL (one object a line; the target may be a list of references) or CSV with a header, by
    the file's ending. Other fields and columns are left alone. Several references for one source
    are several pairs.

    Raises InputError for an ending that is neither, a file that is missing, empty or not UTF-8, a
    bad line (with its number), a field or column that is there twice, and a missing one. A pipe
    is refused, too: the file is read again for its fingerprint.
    """
    path = Path(path)
    readers = {".jsonl": _read_jsonl, ".csv": _read_csv}
    if path.suffix.lower() not in readers:
        raise InputError(f"data file {path}: expected a name that ends in .jsonl or .csv")
    text = files.read_text(path, "the data file")
    pairs = []
    if text.strip():
        pairs = readers[path.suffix.lower()](path, text, source_column, target_column)
    if not pairs:
        raise InputError(f"data file {path} holds no pairs: expected at least one")
    return pairs


def _read_jsonl(
    path: Path, text: str, source_column: str | None, target_column: str | None
) -> list[Pair]:
    names = (source_column or "source", target_column or "target")
    pairs = []
    for where, value in files.json_lines(path, text):
        for name in names:
            if name not in value:
                raise InputError(
                    f"{where}: no field {name!r}, only {files.listed(value)}: "
                    "name the fields with --source-column and --target-column"
                )
        source, target = (value[name] for name in names)
        targets = target if isinstance(target, list) else [target]
        if (
            not isinstance(source, str)
            or not targets
            or not all(isinstance(t, str) for t in targets)
        ):
            raise InputError(
                f"{where}: source and target must be text (a target may be a list of texts)"
            )
        try:
            "".join([source, *targets]).encode()
        except UnicodeEncodeError as error:  # JSON can escape what no text can hold
            raise InputError(
                f"{where}: half a character ({error.object[error.start]!a})"
            ) from error
        pairs += [Pair(source, t, where) for t in targets]
    return pairs


def _read_csv(
    path: Path, text: str, source_column: str | None, target_column: str | None
) -> list[Pair]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    pairs, line = [], 1  # where a row begins: a quoted field may hold line breaks
    try:
        header = next(reader, [])
        source_at, target_at = _find_columns(path, header, source_column, target_column)
        line = reader.line_num + 1
        for row in reader:
            where, line = f"{path}, line {line}", reader.line_num + 1
            if not row:
                continue
            if len(row) != len(header):
                raise InputError(
                    f"{where}: {len(row)} fields, the header names {len(header)}: is a quote "
                    "missing?"
                )
            pairs.append(Pair(row[source_at], row[target_at], where))
    except csv.Error as error:
        raise InputError(f"{path}, line {line}: bad CSV ({error})") from error
    return pairs


def _find_columns(
    path: Path, header: list[str], source_column: str | None, target_column: str | None
) -> tuple[int, int]:
    names = (source_column or "source", target_column or "target")
    if source_column is None and target_column is None:
        names = next((pair for pair in COLUMNS if set(pair) <= set(header)), names)
    for column in names:
        if header.count(column) > 1:
            raise InputError(f"{path} has {header.count(column)} columns {column!r}: expected one")
        if column not in header:
            raise InputError(
                f"{path} has no column {column!r}, only {files.listed(header)}: "
                "name the columns with --source-column and --target-column"
            )
    return header.index(names[0]), header.index(names[1])


def group_references(pairs: Sequence[Pair]) -> dict[str, list[str]]:
    """source -> its references, in the order of first sight."""
    groups: dict[str, list[str]] = {}
    for pair in pairs:
        groups.setdefault(pair.source, []).append(pair.target)
    return groups


def fingerprint(path: str | Path) -> str:
    """sha256 of the file's bytes."""
    files.regular(Path(path), "the data file")
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


@dataclass(frozen=True)
class Template:
    """How source and target become one text: "{source}\\n{target}". The loss begins at the first
    token of the target, which takes over blanks that stand right before it (byte-level BPE joins a
    blank to the word after it). The model's (first) end token follows."""

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
        before, _, _ = self.text.partition("{target}")
        once = self.text.count("{source}") == self.text.count("{target}") == 1
        if not once or "{source}" not in before:
            raise InputError(
                f"template {self.text!r}: expected {{source}} once and after it {{target}} once, "
                "as in '{source}\\n{target}'"
            )

    def prompt(self, source: str) -> str:
        """What comes before the target."""
        return self._before().rstrip(" ").replace("{source}", source)

    def completion(self, target: str) -> str:
        """The target, and what the template puts around it."""
        before = self._before()
        blanks = before[len(before.rstrip(" ")) :]
        return blanks + target + self._after()

    def _before(self) -> str:
        return self.text.partition("{target}")[0]

    def _after(self) -> str:
        return self.text.partition("{target}")[2]

    def read(self, generated: str) -> str:
        """The target alone, from what a model wrote after the prompt."""
        text, after = generated.strip(), self._after().strip()
        return text.removesuffix(after).strip() if after else text


def encode_pairs(
    model: GPT2,
    pairs: Sequence[Pair],
    template: Template,
    room: int,
    skip_long: bool = False,
) -> list[Encoded]:
    """Token ids of every pair. Raises InputError naming the line of one that has no prompt, no
    target, or more than `room` tokens (`GPT2.room`); `skip_long` leaves the latter out."""
    prompts = model.encode_many([template.prompt(p.source) for p in pairs])
    completions = model.encode_many([template.completion(p.target) for p in pairs])
    end = model.config.end_tokens[:1]
    encoded = []
    for pair, prompt, completion in zip(pairs, prompts, completions, strict=True):
        ids = [*prompt, *completion, *end]
        if not prompt:
            raise InputError(
                f"{pair.where}: the source is empty: the target needs a token before it"
            )
        if not pair.target.strip():
            raise InputError(f"{pair.where}: the target is empty: there is nothing to predict")
        if len(ids) > room and skip_long:
            continue
        if len(ids) > room:
            shorten = "shorten the line"
            if len(ids) <= model.room():  # all of the positions are enough
                shorten += " or the prefix, train with --position-offset 0"
            raise InputError(
                f"{pair.where}: {len(ids)} tokens, the model has room for {room} after the prefix: "
                f"{shorten}, or leave such lines out (train and evaluate do so with --skip-long)"
            )
        encoded.append(Encoded(ids, len(prompt)))
    return encoded
