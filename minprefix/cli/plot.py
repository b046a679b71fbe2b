"""`minprefix plot`: pictures of attention and of a training."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from minprefix.cli.options import add_model, path
from minprefix.cli.parser import Command
from minprefix.cli.prompt import add_prompt, encode_prompt, load, template_of
from minprefix.errors import InputError

if TYPE_CHECKING:
    from minprefix.model import GPT2
    from minprefix.prefix import Prefix

# Each command imports what it needs: `minprefix --help` should not wait for it.


def _attention(args: argparse.Namespace) -> None:
    from minprefix.show.attention import shares, shares_picture

    if args.prefix is None:
        raise InputError(
            "plot attention shows the share of attention on a prefix: give --prefix DIR (plot "
            "pattern needs none)"
        )
    model, prefix, ids, tokens, name = _sequence(args)
    assert prefix is not None
    if not prefix.layers or not prefix.length:
        raise InputError(f"{args.prefix} has no slots: there is no attention on them to show")
    share = shares(model, ids, prefix)
    shares_picture(args.out, share, prefix.layers, prefix.length, tokens, name)


def _pattern(args: argparse.Namespace) -> None:
    from minprefix.show.attention import check_place, patterns, patterns_picture

    model, prefix, ids, tokens, name = _sequence(args)
    check_place(model, args.layer, args.head)
    pattern = patterns(model, ids, prefix)[args.layer]  # (NH, T, P+T)
    heads = range(len(pattern)) if args.head is None else [args.head]
    length = pattern.shape[2] - len(ids)
    patterns_picture(args.out, pattern, length, tokens, args.layer, heads, name)


def _sequence(args: argparse.Namespace) -> "tuple[GPT2, Prefix | None, list[int], list[str], str]":
    """The model, the prefix if one was named, the prompt's tokens and their texts, and a name for
    the picture."""
    model, prefix = load(args)
    ids = encode_prompt(model, args.prompt, template_of(args))
    name = Path(model.name).name
    name = name if args.prefix is None else f"{args.prefix} on {name}"
    return model, prefix, ids, [model.decode([i]) for i in ids], name


def _training(args: argparse.Namespace) -> str | None:
    from minprefix.show import training

    runs = [training.read_run(folder) for folder in args.run_folders]
    if args.what == "loss":
        return training.losses_picture(args.out, runs)
    if args.what == "gradients":
        return training.gradients_picture(args.out, *runs)
    training.distance_picture(args.out, *runs)
    return None


def run(args: argparse.Namespace) -> int:
    from minprefix.show.drawing import check_ending

    check_ending(args.out)
    said = args.draw(args)
    print(f"written to {args.out}")
    if said:
        print(said)
    return 0


PLOTS = (
    ("attention", _attention, "share of attention on the prefix, by layer, head and token"),
    ("pattern", _pattern, "attention of each token, the prefix's columns set apart"),
    ("gradients", _training, "norm of the gradient at the prefix over training, by layer"),
    ("distance", _training, "distance of the prefix from its start over training, by layer"),
    ("loss", _training, "loss curves of one run or of several"),
)


def add(command: Command) -> None:
    p = command(
        "plot",
        None,
        "draw attention or a training, as PNG or SVG",
        "minprefix plot attention --prefix runs/demo --out share.png \\\n"
        "    --prompt 'name[The Red Fox], food[Thai]'\n"
        "minprefix plot loss runs/a runs/b --out loss.svg",
    )
    p.add_subparsers(required=True, metavar="|".join(name for name, _, _ in PLOTS))
    for name, draw, summary in PLOTS:
        part = p.command(name, run, summary)
        part.set_defaults(draw=draw, what=name)
        if name in ("attention", "pattern"):
            add_model(part)
            path(part, "--prefix", "DIR", "a trained prefix")
            add_prompt(part)
        else:
            number = "+" if name == "loss" else 1
            part.add_argument("run_folders", type=Path, nargs=number, metavar="RUN")
        if name == "pattern":
            part.add_argument("--layer", type=int, default=0, metavar="I", help="default 0")
            part.add_argument("--head", type=int, metavar="I", help="default all of the layer")
        path(part, "--out", "FILE", "a .png or a .svg", required=True)
