"""`minprefix generate --data`: many requests, each with a prefix of its own."""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minprefix import console
from minprefix.errors import InputError, counted

if TYPE_CHECKING:
    from minprefix.data.pairs import Template
    from minprefix.data.requests import Request
    from minprefix.generate import Decoding
    from minprefix.model import GPT2
    from minprefix.prefixes.store import PrefixStore


def named(texts: Sequence[str]) -> dict[str | None, Path]:
    """`NAME=DIR` and `DIR` -> folders by name; None is the name of a bare DIR. Raises InputError
    for a name that is given twice."""
    places: dict[str | None, Path] = {}
    for text in texts:
        before, sign, after = text.partition("=")
        # a folder may have = in its name
        bare = not sign or "/" in before or Path(text).is_dir()
        name, place = (None, text) if bare else (before, after)
        if name == "" or not place:
            raise InputError(f"--prefix {text!r}: expected DIR or NAME=DIR")
        if name in places:
            said = "a folder without a name" if name is None else f"the name {name!r}"
            raise InputError(f"--prefix gives {said} twice: give each prefix a name of its own")
        places[name] = Path(place)
    return places


def generate_many(args: argparse.Namespace, model: "GPT2", decoding: "Decoding") -> int:
    """Answer every line of --data with the prefix that it names; `decoding`: what the options say,
    --max-new-tokens aside where there is no room for the default."""
    from minprefix.data.requests import read_requests
    from minprefix.prefixes.store import PrefixStore
    from minprefix.storage.writing import line_by_line, write_text

    places = named(args.prefix or [])
    if args.store is not None and places:
        raise InputError("--store is a folder of prefixes, --prefix names some: give one of them")
    if args.store is not None and not args.store.is_dir():
        raise InputError(f"--store {str(args.store)!r} does not exist: give a folder of prefixes")
    if args.out is not None and args.out.exists():
        raise InputError(f"{args.out} is there already: remove it, or choose another --out")
    bare = "prefix" if None in places else None
    inside = {name or "prefix": place for name, place in places.items()}
    if len(inside) < len(places):
        raise InputError("--prefix: a prefix beside a bare folder cannot be called 'prefix'")
    store = PrefixStore(args.store or inside, model, args.store_bytes)
    requests = read_requests(args.data, bare, args.source_column)
    templates, starts = _of_prefixes(args, store, requests)
    prompts, each = _encoded(args, model, requests, templates, starts, decoding)
    names = [request.prefix for request in requests]
    written = store.answers(prompts, names, each, args.batch_size, args.backend)

    def lines() -> Iterator[tuple[int, dict[str, Any]]]:
        for i, ids in console.bar(written, "answers", "answer", len(requests)):
            template, text = templates[requests[i].prefix], model.decode(ids)
            yield i, requests[i].fields | {"text": template.read(text) if template else text}

    if args.out is None:
        _print_answers(lines(), len(requests))
        return 0
    lined: dict[int, str] = {}
    with line_by_line(args.out, "answers", len(requests)) as keep:
        for i, answer in lines():
            lined[i] = json.dumps(answer, ensure_ascii=False) + "\n"
            keep(lined[i])
        write_text(args.out, "".join(lined[i] for i in range(len(requests))))
    print(f"{counted(len(requests), 'answer')} written to {args.out}")
    return 0


def _print_answers(answers: Iterator[tuple[int, dict[str, Any]]], of: int) -> None:
    """All of them, in their order; those that are there if Ctrl-C or an error comes before."""
    done: dict[int, str] = {}
    try:
        for i, answer in answers:
            done[i] = json.dumps(answer, ensure_ascii=not console.takes_unicode()) + "\n"
    finally:
        sys.stdout.writelines(done[i] for i in sorted(done))
        if 0 < len(done) < of:
            print(f"minprefix: {len(done)} of {of} answers printed", file=sys.stderr)


def _of_prefixes(
    args: argparse.Namespace, store: "PrefixStore", requests: "Sequence[Request]"
) -> "tuple[dict[str | None, Template | None], dict[str | None, int]]":
    """Of every prefix that the requests name, its template, where None is the prompt as it is, and
    the position of the first token. Each is read once, before the first request is answered."""
    from minprefix.data.pairs import Template
    from minprefix.storage.provenance import recorded_template

    for request in requests:
        if request.prefix is not None and request.prefix not in store:
            raise InputError(f"{request.where}: {store.missing(request.prefix)}")
    templates: dict[str | None, Template | None] = {}
    starts: dict[str | None, int] = {}
    for name in dict.fromkeys(request.prefix for request in requests):
        text, starts[name] = args.template, 0
        if name is not None:
            starts[name] = store[name].position_offset
            if text is None:
                text = recorded_template(store.place(name)) or Template().text
        templates[name] = None if args.raw or text is None else Template(text)
    return templates, starts


def _encoded(
    args: argparse.Namespace,
    model: "GPT2",
    requests: "Sequence[Request]",
    templates: "dict[str | None, Template | None]",
    starts: dict[str | None, int],
    decoding: "Decoding",
) -> "tuple[list[list[int]], list[Decoding]]":
    """The token ids of each prompt, and how it is decoded: without --max-new-tokens it gets what
    it leaves room for. Raises InputError for one that leaves too little."""
    from minprefix.generate import no_room, room

    needed, do = max(1, decoding.min_new_tokens), "shorten the prompt"
    if args.max_new_tokens is not None:
        needed, do = decoding.max_new_tokens, f"{do} or give fewer --max-new-tokens"
    prompts, each = [], []
    for request in requests:
        template, start = templates[request.prefix], starts[request.prefix]
        prompt = template.prompt(request.prompt) if template else request.prompt
        ids = model.encode(prompt)
        if prompt and not ids:
            raise InputError(f"{request.where}: the prompt {model.nothing_left(prompt)}")
        left = room(model.config, start, len(ids))
        if left < needed:
            said = no_room(model.config, start, len(ids), needed)
            raise InputError(f"{request.where}: {said}: {do}")
        prompts.append(ids)
        each.append(replace(decoding, max_new_tokens=min(decoding.max_new_tokens, left)))
    return prompts, each
