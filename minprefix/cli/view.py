"""`minprefix view`: a page that walks through forward and backward."""

import argparse
from pathlib import Path

from minprefix.cli.options import add_model, unescape
from minprefix.cli.parser import Command


def add(command: Command) -> None:
    p = command(
        "view",
        run,
        "write a page that walks through forward and backward, op by op",
        'minprefix view --prefix runs/demo --out fox.html \\\n    --prompt "name[The Red Fox], '
        'type[restaurant], food[Thai]"',
    )
    add_model(p)
    p.add_argument("--prefix", type=Path, metavar="DIR", help="a trained prefix; without it GPT-2")
    p.add_argument(
        "--prompt",
        metavar="TEXT",
        required=True,
        help="with a prefix it is the source of the prefix's template",
    )
    p.add_argument(
        "--target", metavar="TEXT", help="predict this (default: each token of the prompt)"
    )
    p.add_argument("--template", type=unescape, help="default: the prefix's own")
    p.add_argument("--raw", action="store_true", help="the prompt as it is, without a template")
    p.add_argument("--out", type=Path, metavar="FILE.html", required=True, help="the page")


def run(args: argparse.Namespace) -> int:
    from minprefix.trace.view import view  # not at the top: minprefix.trace imports safetensors

    return view(args)
