"""The commands around saved prefixes: inspect, diff, verify, export, combine, prune, and generate
with many."""

import argparse
import json
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
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
    from minprefix.prefix import Prefix
    from minprefix.prefixes.store import PrefixStore

# Each command imports what it needs: `minprefix --help` should not wait for it.


# ---- inspect ----------------------------------------------------------------------------------


def inspect(args: argparse.Namespace) -> int:
    from minprefix.storage.artifact import FILES
    from minprefix.storage.files import SAVING

    path = Path(args.path)
    if any((path / name).exists() for name in (*FILES, SAVING)):
        _inspect_prefix(path)
    elif (path / "state.safetensors").exists():
        raise InputError(f"{path} holds an unfinished run: go on with it by --resume, then inspect")
    else:
        _inspect_model(args.path)
    return 0


def _inspect_model(name: str) -> None:
    from minprefix.model import GPT2
    from minprefix.storage import files
    from minprefix.storage.artifact import tokenizer_fingerprint
    from minprefix.storage.checkpoint import find

    folder = find(name)
    model = GPT2.load(folder)
    model.name = name
    model.check_finite()
    _say("model", model)
    _say("folder", folder)
    _say("sha256", f"{model.fingerprint()} (of its weights as float32)")
    _say("head", "tied" if model.config.tie_word_embeddings else "separate")
    if model.tokenizer is None:
        _say("tokenizer", "none")
    else:
        size = model.tokenizer.get_vocab_size()
        _say(
            "tokenizer",
            f"{counted(size, 'entry', 'entries')}, sha256 {tokenizer_fingerprint(model)}",
        )
    if (folder / "training.json").exists():
        _say("training", files.read_json(folder / "training.json", "how the model was trained"))


def _inspect_prefix(path: Path) -> None:
    from minprefix.storage.artifact import load_with_about, why_not_peft

    prefix, about = load_with_about(path)
    _say("prefix", prefix)
    if prefix.kv.size:
        for i, name in enumerate(("keys", "values")):
            a = abs(prefix.kv[:, i])
            _say(name, f"mean size {a.mean():.4f}, largest {a.max():.4f}")
    reason = why_not_peft(prefix)
    _say("PEFT", f"cannot express it: {reason}" if reason else "opens this folder as it is")
    if about is None:
        _say("base", "unknown: PEFT wrote it, without provenance")
        return
    base, training = about["base"], about["training"] or {}
    packages = ", ".join(f"{name} {version}" for name, version in about["packages"].items())
    _say("saved", f"{about['saved']} with {packages}")
    _say("base", f"{base['name'] or 'not recorded'}{_sha(base['sha256'])}")
    _say("tokenizer", _sha(base["tokenizer_sha256"]).strip() or "not recorded")
    _say("kind", about["prefix"]["kind"])
    for part in ("data", "valid"):
        place = (training.get("options") or {}).get(part)
        if place or training.get(f"{part}_sha256"):
            _say(part, f"{place}{_sha(training.get(f'{part}_sha256'))}")
    shown = {"data_sha256", "valid_sha256"}
    for name in ("init", "settings"):
        if training.get(name):
            _say({"init": "start"}.get(name, name), _pairs(training[name]))
            shown.add(name)
    inside = set((training.get("settings") or {}) | (training.get("init") or {}))
    options = {k: v for k, v in (training.get("options") or {}).items() if k not in inside}
    rest = {k: v for k, v in training.items() if k not in shown} | {"options": options}
    if "of" in rest:
        rest["of"] = [part["folder"] for part in rest["of"]]
    rest = {k: v for k, v in rest.items() if v not in (None, {}, [], "")}  # 0 is said
    _say("training", _pairs(rest) if training else "not recorded")
    _say("metrics", _pairs(about["metrics"]) if about["metrics"] else "none recorded")
    if about["evaluation"]:
        recorded = about["evaluation"]
        pairs = f"{counted(recorded['examples'], 'pair')} of {recorded['of']}"
        samples = counted(len(recorded["samples"]), "sample")
        _say("evaluation", f"loss {recorded['loss']:.4f} on {pairs}, {samples}")
    for name, sha in about["files"].items():
        _say("file", f"{name}{_sha(sha)}")


def _sha(sha256: str | None) -> str:
    return "" if sha256 is None else f"  sha256 {sha256}"


def _pairs(values: dict[str, Any]) -> str:
    """{"a": 1, "b": {"c": "x"}} -> "a 1, b (c 'x')"."""
    return ", ".join(
        f"{key} ({_pairs(value)})" if isinstance(value, dict) else f"{key} {value!r}"
        for key, value in values.items()
    )


def _say(name: str, value: Any, indent: int = 0) -> None:
    """A line of `inspect`; what is nested stands below its name, what is long goes on below."""
    if isinstance(value, dict):
        print(" " * indent + name)
        for key, part in value.items():
            _say(key, part, indent + 2)
        return
    text = repr(value) if isinstance(value, str) and indent else _plain(str(value))
    lines = textwrap.wrap(text, 110, break_long_words=False, break_on_hyphens=False) or [""]
    print(f"{' ' * indent + _plain(name):<12} {lines[0]}")
    for line in lines[1:]:
        print(f"{'':<12} {line}")


def _plain(text: str) -> str:
    """A record may come from anyone: what would steer a terminal, or is half a character, is
    spelled out."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


# ---- diff -------------------------------------------------------------------------------------


def diff(args: argparse.Namespace) -> int:
    from minprefix.prefixes.compare import differences, distances
    from minprefix.storage.artifact import load_with_about

    (a, about_a), (b, about_b) = (load_with_about(path) for path in (args.a, args.b))
    print(f"A  {args.a}: {a}\nB  {args.b}: {b}\n")
    records = [about_a, about_b]
    if None in records:
        without = " and ".join(
            name for name, record in zip("AB", records, strict=True) if record is None
        )
        print(f"how they came to be: {without} has no minprefix.json, PEFT wrote it")
    else:
        one, two = ({k: v for k, v in r.items() if k != "files"} for r in records if r)
        found = differences(one, two)
        print("how they came to be" if found else "how they came to be: the same")
        for name, was, now in found:
            print(f"  {_plain(name):<34} {_short(was)}  |  {_short(now)}")
    try:
        rows = distances(a, b)
    except InputError as error:
        print(f"\nhow far apart: not comparable, {error}")
        return 0
    if (a.kv == b.kv).all():
        print("\nhow far apart: the same numbers")
        return 0
    print("\nhow far apart, slot by slot: |A - B| / mean of |A| and |B|, and the cosine")
    print(f"  {'layer':<6}{'keys':>10}{'cosine':>9}{'values':>12}{'cosine':>9}")
    for k, v in zip(rows[::2], rows[1::2], strict=True):
        print(
            f"  {k.layer:<6}{k.relative:>10.4f}{_cosine(k.cosine):>9}"
            f"{v.relative:>12.4f}{_cosine(v.cosine):>9}"
        )
    return 0


def _cosine(x: float) -> str:
    return "-" if x != x else f"{x:.4f}"  # zeros have no direction


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 48 else f"{text[:45]}..."


# ---- verify -----------------------------------------------------------------------------------


def verify(args: argparse.Namespace) -> int:
    from minprefix.model import GPT2
    from minprefix.prefixes.verify import verify

    model = None if args.model is None else GPT2.load(args.model, revision=args.revision)
    if model is None and args.revision is not None:
        raise InputError("--revision is of a model's name: give --model as well")
    found = verify(args.path, model, args.data, args.valid)
    for what, right, text in found:
        mark = {True: "ok", False: "WRONG", None: "not checked"}[right]
        print(f"{mark:<12} {what:<11} {_plain(text)}")
    wrong = sum(f.right is False for f in found)
    unchecked = sum(f.right is None for f in found)
    if wrong:
        print(f"\n{wrong} of {len(found)} are not as recorded")
        return 1
    if unchecked:
        print(f"\nnothing is wrong; {unchecked} of {len(found)} could not be checked")
        return 2
    print("\nall as recorded")
    return 0


# ---- export -----------------------------------------------------------------------------------


def export(args: argparse.Namespace) -> int:
    from minprefix.prefixes.export import GENERATE_DROPS_IT, to_peft
    from minprefix.storage import adapters
    from minprefix.storage.artifact import load_with_about
    from minprefix.train import refuse_taken

    refuse_taken(args.out, args.force)
    prefix, about = load_with_about(args.path)
    base = about["base"] if about else {}
    if args.base is not None and args.to != "peft":
        raise InputError("--base is for PEFT: the adapters library does not ask for a name")
    if args.out.exists() and args.out.samefile(args.path):
        raise InputError(
            "--out is the prefix itself: the other library's files alone would take the place of "
            "its record; choose another --out"
        )
    if args.to == "peft":
        to_peft(prefix, args.out, args.base or base.get("name"))
        _remove_rest(args)
        print(f"written to {args.out}, for PeftModel.from_pretrained(base, {str(args.out)!r})")
        print(GENERATE_DROPS_IT)
    else:
        adapters.save_adapters(prefix, args.out, n_layer=base.get("n_layer"))
        print(f"written to {args.out}, to be used as in\n  {adapters.USE}")
    return 0


def bring(args: argparse.Namespace) -> int:
    from minprefix.model import GPT2
    from minprefix.storage import adapters
    from minprefix.storage.artifact import ABOUT, load_prefix, save_prefix
    from minprefix.train import refuse_taken

    refuse_taken(args.out, args.force)
    model = GPT2.load(args.model, revision=args.revision)
    if adapters.is_adapters(args.path):
        prefix, library = adapters.load_adapters(args.path, model.config.n_head), "adapters"
    elif (args.path / ABOUT).exists():
        raise InputError(f"{args.path} was saved by minprefix: it needs no import")
    else:
        prefix, library = load_prefix(args.path), "PEFT"
    prefix.check(model.config, model.name)
    of = [{"folder": str(args.path)}]
    training: dict[str, Any] = {"command": "import", "library": library, "of": of}
    if args.revision is not None:
        training["options"] = {"revision": args.revision}
    save_prefix(prefix, args.out, model, training)
    _remove_rest(args)
    print(f"{prefix}\nwritten to {args.out}, as one of {model.name!r}, which nobody has checked")
    return 0


# ---- combine, prune ---------------------------------------------------------------------------


def combine(args: argparse.Namespace) -> int:
    from minprefix.prefixes.combine import average, concatenate
    from minprefix.train import refuse_taken

    if args.weights is not None and args.how != "average":
        raise InputError("--weights belong to --how average")
    refuse_taken(args.out, args.force)
    prefixes, record, model = _of(args.paths, args)
    made = concatenate(prefixes) if args.how == "concatenate" else average(prefixes, args.weights)
    more = {} if args.weights is None else {"weights": args.weights}
    _save_made(args, made, record, {"command": f"combine --how {args.how}", **more}, model)
    return 0


def prune(args: argparse.Namespace) -> int:
    from minprefix.batch import Batch
    from minprefix.data.pairs import Template, encode_pairs, fingerprint, read_pairs
    from minprefix.evaluate import mean_loss
    from minprefix.prefixes.combine import prune, slot_attention
    from minprefix.train import refuse_taken

    if args.limit < 1:
        raise InputError(f"--limit is {args.limit}: expected at least 1")
    refuse_taken(args.out, args.force)
    (prefix,), record, model = _of([args.path], args)
    template = Template((record[0]["training"] or {}).get("template", Template().text))
    pairs = read_pairs(args.data, args.source_column, args.target_column)[: args.limit]
    room = model.config.n_positions - prefix.position_offset
    encoded = encode_pairs(model, pairs, template, room, skip_long=True)
    if not encoded:
        raise InputError(f"data file {args.data}: every pair is longer than the {room} tokens of "
                         "room")  # fmt: skip
    batch = Batch.pack([e.ids for e in encoded], [e.loss_from for e in encoded])
    shares = slot_attention(model, prefix, batch)
    made = prune(prefix, shares, args.keep)
    each = shares.mean(axis=(0, 1))
    print(f"share of the attention that each slot draws, on {counted(len(encoded), 'pair')}:")
    for slot, share in enumerate(each):
        print(f"  slot {slot:<4} {share:.4f}")
    before, after = (mean_loss(model, p, encoded) for p in (prefix, made))
    slots, none = counted(prefix.length, "slot"), mean_loss(model, None, encoded)
    print(f"loss of {slots} {before:.4f}, of {made.length} {after:.4f}, of none {none:.4f}")
    columns = {"source_column": args.source_column, "target_column": args.target_column}
    more = {
        "keep": args.keep,
        "loss": [before, after],
        "data_sha256": fingerprint(args.data),
        "options": {"data": str(args.data), **columns},
    }
    _save_made(args, made, record, {"command": "prune", **more}, model)
    return 0


def _of(
    paths: Sequence[Path], args: argparse.Namespace
) -> "tuple[list[Prefix], list[dict[str, Any]], GPT2]":
    """Prefixes of one base, their records, and that base: --model, or the one that the first
    records, at the revision that it records. Raises InputError for a prefix of another."""
    from minprefix.model import GPT2
    from minprefix.prefixes.verify import load_recorded
    from minprefix.storage.artifact import load_prefix, load_with_about, tokenizer_fingerprint

    records = []
    for path in paths:
        _, record = load_with_about(path)
        if record is None:
            raise InputError(
                f"{str(path)!r} has no minprefix.json: nobody knows which model it is for; take "
                "it in with `minprefix import` first"
            )
        records.append(record)
    name, revision = args.model, args.revision
    if name is None:
        if revision is not None:
            raise InputError("--revision is of a model's name: give --model as well")
        name = records[0]["base"]["name"]
        revision = ((records[0]["training"] or {}).get("options") or {}).get("revision")
    if name is None:
        raise InputError(f"{str(paths[0])!r} does not record its model: give --model")
    if args.model is None:
        model = load_recorded(name, revision, records[0]["base"]["sha256"])
    else:
        model = GPT2.load(name, revision=revision)
    args.revision = revision  # for the record of what is made
    fingerprints = (model.fingerprint(), tokenizer_fingerprint(model))
    prefixes = [load_prefix(path, model, fingerprints=fingerprints) for path in paths]
    return prefixes, records, model


def _save_made(
    args: argparse.Namespace,
    made: "Prefix",
    records: list[dict[str, Any]],
    how: dict[str, Any],
    model: "GPT2",
) -> None:
    from minprefix.storage.artifact import save_prefix

    paths = getattr(args, "paths", None) or [args.path]
    templates = {(r["training"] or {}).get("template") for r in records}
    training = {
        **how,
        "of": [
            {"folder": str(path), "files": r["files"], "training": r["training"]}
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
    save_prefix(made, args.out, model, training)
    _remove_rest(args)
    print(f"{made}\nwritten to {args.out}")


def _remove_rest(args: argparse.Namespace) -> None:
    """The new prefix has taken the place of the old one; what else the run there left, its log and
    its scores, is of the old one."""
    from minprefix.storage import files
    from minprefix.storage.artifact import FILES
    from minprefix.train import RUN_FILES

    if args.force:
        files.new_folder(args.out, [name for name in RUN_FILES if name not in FILES], force=True)


# ---- generate with many -----------------------------------------------------------------------


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
    from minprefix.storage import files

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
    with files.line_by_line(args.out, "answers", len(requests)) as keep:
        for i, answer in lines():
            lined[i] = json.dumps(answer, ensure_ascii=False) + "\n"
            keep(lined[i])
        files.write_text(args.out, "".join(lined[i] for i in range(len(requests))))
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
    from minprefix.storage.artifact import read_about

    for request in requests:
        if request.prefix is not None and request.prefix not in store:
            raise InputError(f"{request.where}: {store.missing(request.prefix)}")
    templates: dict[str | None, Template | None] = {}
    starts: dict[str | None, int] = {}
    for name in dict.fromkeys(request.prefix for request in requests):
        text, starts[name] = args.template, 0
        if name is not None:
            starts[name] = store[name].position_offset
            record = read_about(store.place(name)) or {}
            own = (record.get("training") or {}).get("template", Template().text)
            text = own if text is None else text
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


# ---- the options ------------------------------------------------------------------------------


def add_commands(
    command: "Callable[[str, Any, str, str], argparse.ArgumentParser]",
    model_options: "Callable[..., None]",
    column_options: "Callable[[argparse.ArgumentParser], None]",
    threads_option: "Callable[[argparse.ArgumentParser], None]",
) -> None:
    """inspect, diff, verify, export, combine, prune."""
    p = command(
        "inspect",
        inspect,
        "what a model or a prefix is, how large, and how it was trained",
        "minprefix inspect runs/demo",
    )
    p.add_argument("path", metavar="DIR|NAME", help="a model or a prefix")

    p = command(
        "diff",
        diff,
        "what differs in how two prefixes came to be, and how far apart they are",
        "minprefix diff runs/a runs/b",
    )
    p.add_argument("a", type=Path, metavar="A")
    p.add_argument("b", type=Path, metavar="B")

    p = command(
        "verify",
        verify,
        "hold a prefix against its record: fingerprints, and the recorded evaluation again",
        "minprefix verify runs/demo\n\nexit status: 0 all as recorded, 1 something is not, 2 "
        "something could not be checked",
    )
    p.add_argument("path", type=Path, metavar="DIR", help="a prefix")
    model_options(p, "the one that the prefix records")
    p.add_argument("--data", type=Path, metavar="FILE", help="default: where it was")
    p.add_argument("--valid", type=Path, metavar="FILE", help="default: where it was")
    threads_option(p)

    p = command(
        "export",
        export,
        "write a prefix for another library",
        "minprefix export runs/e2e --to peft --base openai-community/gpt2 --out for-peft",
    )
    p.add_argument("path", type=Path, metavar="DIR", help="a prefix")
    p.add_argument("--to", choices=("peft", "adapters"), required=True, help="the library")
    p.add_argument(
        "--base", metavar="NAME", help="what the model is called there (default: as here)"
    )
    _out_options(p)

    p = command(
        "import",
        bring,
        "take in a prefix that PEFT or the adapters library wrote, and record its base",
        "minprefix import from-peft --model gpt2 --out runs/taken",
    )
    p.add_argument("path", type=Path, metavar="DIR", help="what that library saved")
    model_options(p)
    _out_options(p)

    p = command(
        "combine",
        combine,
        "make one prefix of several of the same base: an experiment",
        "minprefix combine runs/a runs/b --how average --weights 0.3 0.7 --out runs/mix",
    )
    p.add_argument("paths", type=Path, nargs="+", metavar="DIR", help="prefixes")
    p.add_argument(
        "--how",
        choices=("concatenate", "average"),
        required=True,
        help="all slots one after the other, or the mean, slot by slot",
    )
    p.add_argument(
        "--weights",
        type=float,
        nargs="+",
        metavar="X",
        help="of the mean, one for each prefix (default: all the same); two interpolate",
    )
    model_options(p, "the one that the first prefix records")
    _out_options(p)

    p = command(
        "prune",
        prune,
        "keep the slots of a prefix that draw most attention: an experiment",
        "minprefix prune runs/demo --keep 5 --data valid.jsonl --out runs/pruned",
    )
    p.add_argument("path", type=Path, metavar="DIR", help="a prefix")
    p.add_argument("--keep", type=int, metavar="N", required=True, help="how many slots")
    p.add_argument(
        "--data", type=Path, metavar="FILE", required=True, help="pairs to measure attention on"
    )
    p.add_argument("--limit", type=int, metavar="N", default=100, help="so many (default 100)")
    column_options(p)
    model_options(p, "the one that the prefix records")
    threads_option(p)
    _out_options(p)


def _out_options(p: argparse.ArgumentParser) -> None:
    p.add_argument("--out", type=Path, metavar="DIR", required=True, help="where it is written")
    p.add_argument("--force", action="store_true", help="replace the prefix that is there")
