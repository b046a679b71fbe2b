"""The text that `view`, `step` and `plot` look at: its options and its tokens."""

import argparse
from typing import TYPE_CHECKING

from minprefix.cli.options import flag, unescape
from minprefix.errors import InputError

if TYPE_CHECKING:
    from minprefix.data.pairs import Template
    from minprefix.model import GPT2
    from minprefix.prefix import Prefix


def load(args: argparse.Namespace) -> "tuple[GPT2, Prefix | None]":
    """The model of --model, and the prefix of --prefix if it is given."""
    from minprefix.model import GPT2
    from minprefix.prefix import Prefix

    model = GPT2.load(args.model, revision=args.revision)
    return model, None if args.prefix is None else Prefix.load(args.prefix, model)


def add_prompt(p: argparse.ArgumentParser, default: str | None = None) -> None:
    """--prompt and --raw. `default`: words for the prompt's default, without which it is needed."""
    prompt = default or "the text; with a prefix it is the source in the prefix's template"
    p.add_argument("--prompt", metavar="TEXT", required=default is None, help=prompt)
    flag(p, "--raw", "take the prompt as it is, without a template")


def add_target(p: argparse.ArgumentParser) -> None:
    target = "the text to predict (default: each token of the prompt)"
    p.add_argument("--target", metavar="TEXT", help=target)
    template = "joins prompt and target (default: the prefix's own)"
    p.add_argument("--template", type=unescape, help=template)


def template_of(args: argparse.Namespace, target: str | None = None) -> "Template | None":
    """The template of --template, else of the prefix's training, else the usual one to join a
    prompt and a target. None for a prompt alone and for --raw."""
    from minprefix.data.pairs import Template
    from minprefix.storage.provenance import recorded_template

    text = getattr(args, "template", None)
    if args.raw and text is not None:
        raise InputError("--raw takes the prompt as it is: leave out --template")
    if text is not None:
        return Template(text)
    if args.raw or (args.prefix is None and target is None):
        return None
    recorded = None if args.prefix is None else recorded_template(args.prefix)
    return Template(recorded) if recorded else Template()


def encode_prompt(model: "GPT2", prompt: str, template: "Template | None") -> list[int]:
    if not prompt:
        raise InputError("--prompt is empty: expected text for the model to read")
    ids = model.encode(template.prompt(prompt) if template else prompt)
    if not ids:
        raise InputError(f"--prompt {model.nothing_left(prompt)}")
    return ids


def encode(
    model: "GPT2", prompt: str, target: str | None, template: "Template | None"
) -> tuple[list[int], int]:
    """-> ids, loss_from. With a template the end token follows the target, as in training. Without
    a target every token of the prompt but the first is predicted."""
    if target is not None and not target.strip():
        raise InputError(f"--target is {target!r}: expected the text to predict, or leave it out")
    before = encode_prompt(model, prompt, template)
    if target is None:
        if len(before) < 2:
            raise InputError(
                f"--prompt {prompt!r} is {len(before)} token, after which nothing is to be "
                "predicted: give a longer one, or --target TEXT"
            )
        return before, 1
    after = model.encode(template.completion(target) if template else target)
    if not after:
        raise InputError(f"--target {model.nothing_left(target)}")
    after += model.config.end_tokens[:1] if template else ()
    return before + after, len(before)
