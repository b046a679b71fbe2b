"""Shared by `combine` and `prune`: both read prefixes of one base, and save a new one."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minprefix.cli.options import named_model
from minprefix.errors import InputError, note

if TYPE_CHECKING:
    from minprefix.model import GPT2
    from minprefix.prefix import Prefix
    from minprefix.storage.provenance import Provenance


def of_one_base(
    paths: Sequence[Path], args: argparse.Namespace
) -> "tuple[list[Prefix], list[Provenance], GPT2]":
    """The prefixes, their records, and their base: --model, or what the first one records. Raises
    InputError for a prefix without a record, or of another base."""
    from minprefix.prefix import Prefix
    from minprefix.prefixes.verify import recorded_model
    from minprefix.storage.artifact import read_prefix

    records = []
    for path in paths:
        _, record = read_prefix(path)
        if record is None:
            raise InputError(
                f"{str(path)!r} has no minprefix.json, which names its model: take it in with "
                "`minprefix import` first"
            )
        records.append(record)
    model = named_model(args)
    if model is None and records[0].base.name is None:
        raise InputError(f"{str(paths[0])!r} does not record its model: give --model")
    if model is None:
        model = recorded_model(records[0])
        args.revision = records[0].revision  # for the record of the new prefix
    base = model.identity()
    prefixes = [Prefix.load(path, model, base=base) for path in paths]
    return prefixes, records, model


def save_made(
    args: argparse.Namespace,
    made: "Prefix",
    records: "list[Provenance]",
    how: dict[str, Any],
    model: "GPT2",
) -> None:
    """Save the prefix that was made of those of `records`; `how` is recorded."""
    paths, templates = getattr(args, "paths", None) or [args.path], {r.template for r in records}
    of = [
        {"folder": str(path), "files": r.files, "training": r.training}
        for path, r in zip(paths, records, strict=True)
    ]
    training = {**how, "of": of}
    if len(templates) > 1:
        note("their templates differ, none is recorded: give --template where you use the prefix")
    elif None not in templates:
        training["template"] = templates.pop()
    if args.revision is not None:
        training["options"] = how.get("options", {}) | {"revision": args.revision}
    made.check(model.config, model.name)
    made.save(args.out, model, training)
    remove_rest(args)
    print(f"{made}\nwritten to {args.out}")


def remove_rest(args: argparse.Namespace) -> None:
    """With --force: remove the log and the scores of the prefix that was replaced."""
    from minprefix.storage.artifact import FILES
    from minprefix.storage.run import RUN_FILES
    from minprefix.storage.saving import new_folder

    if args.force:
        new_folder(args.out, [name for name in RUN_FILES if name not in FILES], force=True)
