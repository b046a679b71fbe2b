"""`minprefix generate`: what a model writes after a prompt, or after many."""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from minprefix import console
from minprefix.cli import options
from minprefix.cli.parser import Command
from minprefix.errors import InputError, counted, note
from minprefix.storage.writing import line_by_line, write_text

if TYPE_CHECKING:
    from minprefix.data.pairs import Template
    from minprefix.data.requests import Request
    from minprefix.generate import Decoding
    from minprefix.method import Method
    from minprefix.model import GPT2
    from minprefix.prefixes.store import PrefixStore, Prompt

#: (number of the request, text), as they come
Answers = Iterator[tuple[int, str]]
#: the name of a prefix that --prefix gives none
BARE = "prefix"
BATCH = 32  # requests at a time


def add(command: Command) -> None:
    p = command(
        "generate",
        run,
        "continue a prompt, or many, with a prefix or without",
        'minprefix generate --prefix runs/demo \\\n    --prompt "name[The Red Fox], '
        'type[restaurant], food[Thai]"',
        options.ENDS,
    )
    options.add_model(p)
    prefix = "a trained prefix, or another method's folder; with --data several prefixes by name"
    p.add_argument("--prefix", action="append", metavar="[NAME=]DIR", help=prefix)
    prompt = (
        "the text to continue; with a prefix it is the source in the prefix's template; may be "
        "given several times"
    )
    p.add_argument("--prompt", action="append", metavar="TEXT", help=prompt)
    p.add_argument(
        "--template",
        type=options.unescape,
        help="how the prompt is set (default: the prefix's own)",
    )
    options.flag(p, "--raw", "take the prompt as it is")
    g = p.add_argument_group("many requests, each with a prefix of its own")
    requests = (
        'a .jsonl of {"prompt": ..., "prefix": NAME}, where null is the model without a prefix; '
        "or pairs (.jsonl, .csv, .tsv), whose sources are the prompts"
    )
    options.path(g, "--data", "FILE", requests)
    column = "the prompt's column or field (default prompt, source, or mr)"
    g.add_argument("--source-column", metavar="NAME", help=column)
    options.path(g, "--store", "DIR", "a folder of prefixes, by their names")
    options.count(g, "--store-bytes", "hold at most N bytes of prefixes (default 268435456)")
    options.count(g, "--batch-size", f"at a time (default {BATCH})")
    answers = (
        "write the answers there (.jsonl), as they come into FILE.partial (default: print them at "
        "the end)"
    )
    options.path(g, "--out", "FILE", answers)
    options.add_decoding(p.add_argument_group("decoding"))
    options.add_machine(p)


def run(args: argparse.Namespace) -> int:
    from minprefix.data.requests import Request, read_requests
    from minprefix.evaluate import predict_ids
    from minprefix.prefixes.store import PrefixStore

    places = named(args.prefix or [])
    _check(args, places)
    model, decoding = options.load_model(args), options.decoding_of(args)
    inside = {name or BARE: place for name, place in places.items()}
    if args.data is None:
        store = PrefixStore(inside, model, sys.maxsize)
        name = next(iter(inside), None)
        requests = [Request(text, name, f"prompt {i}", {}) for i, text in enumerate(args.prompt)]
    else:
        budget = {} if args.store_bytes is None else {"budget": args.store_bytes}
        store = PrefixStore(args.store or inside, model, **budget)
        requests = read_requests(args.data, BARE if None in places else None, args.source_column)
    rival = _rival(places, model)
    templates, starts = _named(args, store, requests, rival)
    asked = args.max_new_tokens is not None
    prompts = _prompts(model, requests, templates, starts, decoding, asked)

    def answers() -> Answers:
        size, ids_of = args.batch_size or BATCH, [p.ids for p in prompts]
        if rival is None:
            written = store.answers(prompts, size, args.backend)
        else:
            written = enumerate(predict_ids(model, rival, ids_of, decoding, args.backend, size))
        bar = None if args.data is None else "answers"
        for i, ids in console.bar(written, bar, "answer", len(prompts)):
            template, text = templates[prompts[i].prefix], model.decode(ids)
            yield i, template.read(text) if template else text

    if args.data is None:
        _print_texts(args.prompt, dict(answers()))
    elif args.out is None:
        _print_answers(requests, answers())
    else:
        _write_answers(args.out, requests, answers())
    return 0


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
            twice = "a folder without a name" if name is None else f"the name {name!r}"
            raise InputError(f"--prefix gives {twice} twice: give each prefix a name of its own")
        places[name] = Path(place)
    return places


def _check(args: argparse.Namespace, places: Mapping[str | None, Path]) -> None:
    """Raises InputError for options that contradict each other."""
    if args.raw and args.template is not None:
        raise InputError("--raw takes the prompt as it is: leave out --template")
    if args.data is None:
        for name in ("store", "store_bytes", "batch_size", "source_column", "out"):
            if getattr(args, name) is not None:
                option = f"--{name.replace('_', '-')}"
                raise InputError(f"{option} belongs to --data, a file of requests")
        if not args.prompt:
            raise InputError("generate needs --prompt TEXT, or --data FILE with many")
        if (n := len(places)) > 1:
            raise InputError(f"{n} prefixes were given: give one, or --data FILE that names theirs")
        return
    if args.prompt:
        raise InputError("--prompt is one request and --data are many: give one of them")
    if args.store is not None and places:
        raise InputError("--store is a folder of prefixes, --prefix names some: give one of them")
    if args.store is not None and not args.store.is_dir():
        raise InputError(f"--store {str(args.store)!r} does not exist: give a folder of prefixes")
    if args.out is not None and args.out.exists():
        raise InputError(f"{args.out} is there already: remove it, or choose another --out")
    if None in places and BARE in places:
        raise InputError(f"--prefix: a prefix beside a bare folder cannot be called {BARE!r}")


def _rival(places: Mapping[str | None, Path], model: "GPT2") -> "Method | None":
    """The rival that one of these folders holds, None where all are prefixes. Raises InputError for
    a rival among several: they can share a batch, it cannot."""
    from minprefix.methods import load
    from minprefix.prefix import Prefix
    from minprefix.storage.rivals import holds_rival

    for place in places.values():
        if not holds_rival(place):
            continue
        method = load(place, model, str(model.dtype))
        assert not isinstance(method, Prefix)
        if len(places) > 1:
            raise InputError(
                f"--prefix {place} was trained with --method {method.name}: prefixes can be mixed "
                f"in a batch, {method.name} cannot; give it alone"
            )
        return method.to(model.backend)
    return None


def _named(
    args: argparse.Namespace,
    store: "PrefixStore",
    requests: "Sequence[Request]",
    rival: "Method | None",
) -> "tuple[dict[str | None, Template | None], dict[str | None, int]]":
    """For each prefix that the requests name, which is read once: its template (None: the prompt as
    it is), and the position of the first token. Raises InputError if it cannot be read, and for a
    request without the `rival` that is in the place of a prefix."""
    from minprefix.data.pairs import Template
    from minprefix.storage.provenance import recorded_template

    for request in requests:
        if request.prefix is not None and request.prefix not in store:
            raise InputError(f"{request.where}: {store.missing(request.prefix)}")
        if request.prefix is None and rival is not None:
            raise InputError(
                f"{request.where}: no prefix is asked for, and --prefix was trained with --method "
                f"{rival.name}: prefixes can be mixed in a batch, {rival.name} cannot; give such "
                "requests a file of their own"
            )
    templates: dict[str | None, Template | None] = {}
    starts: dict[str | None, int] = {}
    for name in dict.fromkeys(request.prefix for request in requests):
        text = args.template
        starts[name] = 0 if name is None else (rival or store[name]).position_offset
        if text is None and name is not None:
            text = recorded_template(store.place(name)) or Template().text
        templates[name] = None if args.raw or text is None else Template(text)
    return templates, starts


def _prompts(
    model: "GPT2",
    requests: "Sequence[Request]",
    templates: "Mapping[str | None, Template | None]",
    starts: Mapping[str | None, int],
    decoding: "Decoding",
    asked: bool,
) -> "list[Prompt]":
    """The token ids of each request, and its decoding: at most as many new tokens as it leaves room
    for, which is noted where more were `asked` for. Raises InputError for a prompt without room."""
    from minprefix.generate import no_room, room
    from minprefix.prefixes.store import Prompt

    texts = [t.prompt(r.prompt) if (t := templates[r.prefix]) else r.prompt for r in requests]
    prompts, cut = [], 0
    for request, text, ids in zip(requests, texts, model.encode_many(texts), strict=True):
        if not ids:
            empty = model.nothing_left(text) if text else "the prompt is empty: give some text"
            raise InputError(f"{request.where}: {empty}")
        if full := no_room(model.config, starts[request.prefix], len(ids), decoding):
            raise InputError(f"{request.where}: {full}: shorten the prompt")
        left = room(model.config, starts[request.prefix], len(ids))
        cut += left < decoding.max_new_tokens
        most = min(decoding.max_new_tokens, left)
        prompts.append(Prompt(ids, request.prefix, replace(decoding, max_new_tokens=most)))
    if cut and asked:
        note(
            f"{counted(cut, 'prompt')} {'leaves' if cut == 1 else 'leave'} room for fewer new "
            f"tokens than --max-new-tokens {decoding.max_new_tokens}"
        )
    return prompts


def _print_texts(prompts: Sequence[str], texts: Mapping[int, str]) -> None:
    for i, prompt in enumerate(prompts):
        if len(prompts) > 1:
            print(f"--- {prompt}")
        print(texts[i])


def _print_answers(requests: "Sequence[Request]", answers: Answers) -> None:
    """Print all answers in the requests' order; after Ctrl-C or an error, those that are there."""
    done: dict[int, str] = {}
    try:
        for i, text in answers:
            done[i] = _line(requests[i], text, ensure_ascii=not console.takes_unicode())
    finally:
        sys.stdout.writelines(done[i] for i in sorted(done))
        if 0 < len(done) < len(requests):
            print(f"minprefix: {len(done)} of {len(requests)} answers printed", file=sys.stderr)


def _write_answers(out: Path, requests: "Sequence[Request]", answers: Answers) -> None:
    done: dict[int, str] = {}
    with line_by_line(out, "answers", len(requests)) as keep:
        for i, text in answers:
            done[i] = _line(requests[i], text)
            keep(done[i])
        write_text(out, "".join(done[i] for i in range(len(requests))))
    print(f"{counted(len(requests), 'answer')} written to {out}")


def _line(request: "Request", text: str, ensure_ascii: bool = False) -> str:
    return json.dumps(request.fields | {"text": text}, ensure_ascii=ensure_ascii) + "\n"
