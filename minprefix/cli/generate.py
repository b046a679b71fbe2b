"""`minprefix generate`: what a model writes on a prompt, or on many."""

import argparse
from pathlib import Path

from minprefix.cli.options import (
    add_backend,
    add_decoding,
    add_matmul,
    add_model,
    add_threads,
    at_least_one,
    decoding_of,
    load,
    unescape,
)
from minprefix.cli.parser import Command
from minprefix.errors import InputError


def add(command: Command) -> None:
    p = command(
        "generate",
        run,
        "continue a prompt, or many, with a prefix or without",
        'minprefix generate --prefix runs/demo \\\n    --prompt "name[The Red Fox], '
        'type[restaurant], food[Thai]"',
    )
    add_model(p)
    p.add_argument(
        "--prefix",
        action="append",
        metavar="[NAME=]DIR",
        help="a trained prefix; with --data several, each with a name",
    )
    p.add_argument(
        "--prompt",
        action="append",
        metavar="TEXT",
        help="may be given several times; with a prefix it is the source of the prefix's template",
    )
    g = p.add_argument_group("many requests, each with a prefix of its own")
    g.add_argument(
        "--data",
        type=Path,
        metavar="FILE",
        help='.jsonl of {"prompt": ..., "prefix": NAME}; null is the model without a prefix. Or '
        "pairs (.jsonl, .csv, .tsv), whose sources are the prompts",
    )
    g.add_argument(
        "--source-column", metavar="NAME", help="the prompt (default prompt, source, or mr)"
    )
    g.add_argument("--store", type=Path, metavar="DIR", help="a folder of prefixes, by their names")
    g.add_argument(
        "--store-bytes",
        type=at_least_one,
        metavar="N",
        help="how many bytes of prefixes are held at a time (default 268435456)",
    )
    g.add_argument("--batch-size", type=at_least_one, metavar="N", help="default 32")
    g.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="write the answers there (.jsonl); until all are there, each as it comes into "
        "FILE.partial (default: print them at the end)",
    )
    p.add_argument("--template", type=unescape, help="default: the prefix's own")
    p.add_argument("--raw", action="store_true", help="the prompt as it is, without a template")
    add_decoding(p)
    add_backend(p)
    add_matmul(p)
    add_threads(p)


def run(args: argparse.Namespace) -> int:
    from minprefix.cli.many import named
    from minprefix.generate import generate_ids, no_room, room

    if args.data is not None:
        return _generate_many(args)
    for name in ("store", "store_bytes", "batch_size", "source_column", "out"):
        if getattr(args, name) is not None:
            raise InputError(f"--{name.replace('_', '-')} belongs to --data, a file of requests")
    if not args.prompt:
        raise InputError("generate needs --prompt TEXT, or --data FILE with many")
    places = list(named(args.prefix or []).values())
    if len(places) > 1:
        raise InputError(
            f"{len(places)} prefixes were given: give one, or --data FILE whose lines name theirs"
        )
    model, prefix, template = load(args, places[0] if places else None)
    if args.raw and args.template is not None:
        raise InputError("--raw takes the prompt as it is: leave out --template")
    raw = args.raw or (prefix is None and args.template is None)
    ids = model.encode_prompts([p if raw else template.prompt(p) for p in args.prompt])
    decoding, limits = decoding_of(args), None
    if args.max_new_tokens is None:  # then each has what its own prompt leaves room for
        start, needed = prefix.position_offset if prefix else 0, max(1, decoding.min_new_tokens)
        limits = [room(model.config, start, len(prompt)) for prompt in ids]
        for i, prompt in enumerate(ids):
            if limits[i] < needed:
                said = no_room(model.config, start, len(prompt), needed)
                raise InputError(f"prompt {i}: {said}: shorten it")
    written = generate_ids(model, ids, prefix, decoding=decoding, ops=args.backend, limits=limits)
    for text, new in zip(args.prompt, map(model.decode, written), strict=True):
        if len(args.prompt) > 1:
            print(f"--- {text}")
        print(new if raw else template.read(new))
    return 0


def _generate_many(args: argparse.Namespace) -> int:
    from minprefix.cli.many import generate_many

    if args.prompt:
        raise InputError("--prompt is one request and --data are many: give one of them")
    if args.raw and args.template is not None:
        raise InputError("--raw takes the prompt as it is: leave out --template")
    args.store_bytes, args.batch_size = args.store_bytes or 256 * 2**20, args.batch_size or 32
    model, _, _ = load(args, None)
    return generate_many(args, model, decoding_of(args))
