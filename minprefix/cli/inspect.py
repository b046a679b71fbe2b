"""`minprefix inspect`: what a model, a prefix or a rival is."""

import argparse
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minprefix import console
from minprefix.cli.parser import Command
from minprefix.errors import InputError, counted

if TYPE_CHECKING:
    from minprefix.storage.provenance import Provenance


def add(command: Command) -> None:
    p = command(
        "inspect",
        run,
        "show what a model, prefix or rival is, and how it was trained",
        "minprefix inspect runs/demo",
    )
    p.add_argument("path", metavar="DIR|NAME", help="a model, a prefix or a rival")


def run(args: argparse.Namespace) -> int:
    from minprefix.storage.artifact import FILES
    from minprefix.storage.provenance import ABOUT
    from minprefix.storage.saving import SAVING

    path = Path(args.path)
    if any((path / name).exists() for name in (*FILES, SAVING)):
        _inspect_prefix(path)
    elif (path / "state.safetensors").exists():
        raise InputError(f"{path} holds an unfinished run: finish it with --resume first")
    elif path.is_dir() and not [*path.glob("config.json"), *path.glob("snapshots/*/config.json")]:
        raise InputError(
            f"{args.path} holds neither a prefix nor a model: expected {ABOUT}, "
            "adapter_config.json or config.json in it"
        )
    else:
        _inspect_model(args.path)
    return 0


def _inspect_model(name: str) -> None:
    from minprefix.model import GPT2
    from minprefix.storage.places import find
    from minprefix.storage.reading import read_json

    folder = find(name)
    model = GPT2.load(folder)
    model.name = name
    model.check_finite()
    _say("model", model)
    _say("folder", folder)
    _say("sha256", f"{model.fingerprint()} (of its weights as float32)")
    _say("head", "tied" if model.config.tie_word_embeddings else "separate")
    tokenizer = "none"
    if model.tokenizer is not None:
        entries = counted(model.tokenizer.get_vocab_size(), "entry", "entries")
        tokenizer = f"{entries}{_sha(model.tokenizer_fingerprint())}"
    _say("tokenizer", tokenizer)
    if (folder / "training.json").exists():
        _say("training", read_json(folder / "training.json", "how the model was trained"))


def _inspect_prefix(path: Path) -> None:
    from minprefix import methods
    from minprefix.prefix import Prefix
    from minprefix.storage.artifact import read_prefix
    from minprefix.storage.peft import why_not_peft
    from minprefix.storage.peft_rivals import PEFT_TYPES
    from minprefix.storage.provenance import read_about

    method, about = methods.load(path), read_about(path)
    reason: str | None = "PEFT's files have no such method"
    if isinstance(method, methods.Method):
        _say("rival", method)
        if method.name in PEFT_TYPES.values():
            reason = None
    else:
        saved, about = read_prefix(path)
        prefix = Prefix.of(saved)
        _say("prefix", prefix)
        if prefix.kv.size:
            for i, name in enumerate(("keys", "values")):
                a = abs(prefix.kv[:, i])
                _say(name, f"mean size {a.mean():.4f}, largest {a.max():.4f}")
        reason = why_not_peft(saved)
    _say("PEFT", f"cannot express it: {reason}" if reason else "opens this folder as it is")
    if about is None:
        _say("base", "unknown: PEFT wrote it, without provenance")
    else:
        _say_record(about)


def _say_record(about: "Provenance") -> None:
    base, training = about.base, about.training or {}
    packages = ", ".join(f"{name} {version}" for name, version in about.packages.items())
    _say("saved", f"{about.saved} with {packages}")
    _say("base", f"{base.name or 'not recorded'}{_sha(base.sha256)}")
    _say("tokenizer", _sha(base.tokenizer_sha256).strip() or "not recorded")
    if about.prefix is not None:
        _say("kind", about.prefix.kind)
    for part in ("data", "valid"):
        place, sha = about.options.get(part), about.fingerprint(part)
        if place is None and about.command == "demo":
            place = "the tiny world"
        if place or sha:
            _say(part, f"{place or ''}{_sha(sha)}".strip())
    for said, name in (("start", "init"), ("settings", "settings")):
        if training.get(name):
            _say(said, _pairs(training[name]))
    shown = {"data_sha256", "valid_sha256", "init", "settings"}
    inside = {*about.settings, *(training.get("init") or {})}
    options = {k: v for k, v in about.options.items() if k not in inside}
    rest = {k: v for k, v in training.items() if k not in shown} | {"options": options}
    if "of" in rest:
        rest["of"] = [part["folder"] for part in rest["of"]]
    rest = {k: v for k, v in rest.items() if v not in (None, {}, [], "")}  # 0 is said
    _say("training", _pairs(rest) if training else "not recorded")
    _say("metrics", _pairs(about.metrics) if about.metrics else "none recorded")
    if (recorded := about.evaluation) is not None:
        pairs = f"{counted(recorded.examples, 'pair')} of {recorded.of}"
        samples = counted(len(recorded.samples), "sample")
        _say("evaluation", f"loss {recorded.loss:.4f} on {pairs}, {samples}")
    for name, sha in about.files.items():
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
    """Print a line of the report. Nested values stand below their name; long text is wrapped."""
    if isinstance(value, dict):
        print(" " * indent + name)
        for key, part in value.items():
            _say(key, part, indent + 2)
        return
    text = repr(value) if isinstance(value, str) and indent else console.plain(str(value))
    lines = textwrap.wrap(text, 110, break_long_words=False, break_on_hyphens=False) or [""]
    print(f"{' ' * indent + console.plain(name):<12} {lines[0]}")
    for line in lines[1:]:
        print(f"{'':<12} {line}")
