"""`combine`, `prune` and `import`: the base of saved prefixes, and saving a new one of them."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minprefix.errors import InputError

if TYPE_CHECKING:
    from minprefix.model import GPT2
    from minprefix.prefix import Prefix
    from minprefix.storage.provenance import Provenance


def of_one_base(
    paths: Sequence[Path], args: argparse.Namespace
) -> "tuple[list[Prefix], list[Provenance], GPT2]":
    """Prefixes of one base, their records, and that base: --model, or the one that the first
    records, at the revision that it records. Raises InputError for a prefix of another."""
    from minprefix.model import GPT2
    from minprefix.prefix import Prefix
    from minprefix.prefixes.verify import recorded_model
    from minprefix.storage.artifact import read_prefix

    records = []
    for path in paths:
        _, record = read_prefix(path)
        if record is None:
            raise InputError(
                f"{str(path)!r} has no minprefix.json: nobody knows which model it is for; take "
                "it in with `minprefix import` first"
            )
        records.append(record)
    if args.model is not None:
        model = GPT2.load(args.model, revision=args.revision)
    elif args.revision is not None:
        raise InputError("--revision is of a model's name: give --model as well")
    elif records[0].base.name is None:
        raise InputError(f"{str(paths[0])!r} does not record its model: give --model")
    else:
        model = recorded_model(records[0])
        args.revision = records[0].revision  # for the record of what is made
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
    paths = getattr(args, "paths", None) or [args.path]
    templates = {r.template for r in records}
    training = {
        **how,
        "of": [
            {"folder": str(path), "files": r.files, "training": r.training}
            for path, r in zip(paths, records, strict=True)
        ],
    }
    if len(templates) == 1 and None not in templates:
        training["template"] = templates.pop()
    elif len(templates) > 1:
        print(
            "minprefix: note: their templates differ, none is recorded: choose one with --template "
            "when it is used",
            file=sys.stderr,
        )
    if args.revision is not None:
        training["options"] = how.get("options", {}) | {"revision": args.revision}
    made.check(model.config, model.name)
    made.save(args.out, model, training)
    remove_rest(args)
    print(f"{made}\nwritten to {args.out}")


def remove_rest(args: argparse.Namespace) -> None:
    """The new prefix has taken the place of the old one; what else the run there left, its log and
    its scores, is of the old one."""
    from minprefix.storage.artifact import FILES
    from minprefix.storage.run import RUN_FILES
    from minprefix.storage.saving import new_folder

    if args.force:
        new_folder(args.out, [name for name in RUN_FILES if name not in FILES], force=True)
