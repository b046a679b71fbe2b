"""`minprefix plot`: pictures of attention and of a training."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from minprefix.cli.options import add_model
from minprefix.cli.parser import Command
from minprefix.cli.prompt import add_prompt, encode_prompt, template_of
from minprefix.errors import InputError

if TYPE_CHECKING:
    from minprefix.model import GPT2
    from minprefix.prefix import Prefix

# Each command imports what it needs: `minprefix --help` should not wait for it.


def _attention(args: argparse.Namespace) -> str | None:
    from minprefix.show.attention import shares, shares_picture

    if args.prefix is None:
        raise InputError(
            "plot attention shows the share of attention on a prefix: give --prefix DIR (plot "
            "pattern needs none)"
        )
    model, prefix, ids = _sequence(args)
    assert prefix is not None
    if not prefix.layers or not prefix.length:
        raise InputError(f"{args.prefix} has no slots: there is no attention on them to show")
    share = shares(model, ids, prefix)
    tokens = [model.decode([i]) for i in ids]
    shares_picture(args.out, share, prefix.layers, prefix.length, tokens, _name(args, model))
    return None


def _pattern(args: argparse.Namespace) -> str | None:
    from minprefix.show.attention import check_place, patterns, patterns_picture

    model, prefix, ids = _sequence(args)
    check_place(model, args.layer, args.head)
    pattern = patterns(model, ids, prefix)[args.layer]  # (NH, T, P+T)
    heads = range(len(pattern)) if args.head is None else [args.head]
    length = pattern.shape[2] - len(ids)
    tokens = [model.decode([i]) for i in ids]
    patterns_picture(args.out, pattern, length, tokens, args.layer, heads, _name(args, model))
    return None


def _sequence(args: argparse.Namespace) -> "tuple[GPT2, Prefix | None, list[int]]":
    """The model, the prefix if one was named, and the tokens of the prompt."""
    from minprefix.model import GPT2
    from minprefix.prefix import Prefix

    model = GPT2.load(args.model, revision=args.revision)
    prefix = None if args.prefix is None else Prefix.load(args.prefix, model)
    return model, prefix, encode_prompt(model, args.prompt, template_of(args))


def _name(args: argparse.Namespace, model: "GPT2") -> str:
    name = Path(model.name).name
    return name if args.prefix is None else f"{args.prefix} on {name}"


def _gradients(args: argparse.Namespace) -> str | None:
    from minprefix.show.training import gradients_picture, read_run

    return gradients_picture(args.out, read_run(args.run_folder))


def _distance(args: argparse.Namespace) -> str | None:
    from minprefix.show.training import distance_picture, read_run

    distance_picture(args.out, read_run(args.run_folder))
    return None


def _loss(args: argparse.Namespace) -> str | None:
    from minprefix.show.training import losses_picture, read_run

    return losses_picture(args.out, [read_run(folder) for folder in args.run_folders])


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
    ("pattern", _pattern, "where each token looks, the prefix's columns set apart"),
    ("gradients", _gradients, "norm of the gradient at the prefix over training, by layer"),
    ("distance", _distance, "distance of the prefix from its start over training, by layer"),
    ("loss", _loss, "loss curves of one run or of several"),
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
    for name, draw, what in PLOTS:
        part = p.command(name, run, what)
        part.set_defaults(draw=draw)
        if name in ("attention", "pattern"):
            add_model(part)
            part.add_argument("--prefix", type=Path, metavar="DIR", help="a trained prefix")
            add_prompt(part)
        elif name == "loss":
            part.add_argument("run_folders", type=Path, nargs="+", metavar="RUN")
        else:
            part.add_argument("run_folder", type=Path, metavar="RUN")
        if name == "pattern":
            part.add_argument("--layer", type=int, default=0, metavar="I", help="default 0")
            part.add_argument("--head", type=int, metavar="I", help="default all of the layer")
        part.add_argument(
            "--out", type=Path, metavar="FILE", required=True, help="a .png or a .svg"
        )
