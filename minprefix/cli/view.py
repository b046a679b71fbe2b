"""`minprefix view`: a page that walks through a forward and its backward."""

import argparse

from minprefix.cli.options import add_model, path
from minprefix.cli.parser import Command
from minprefix.cli.prompt import add_prompt, add_target, encode, load, template_of
from minprefix.errors import InputError, counted


def add(command: Command) -> None:
    p = command(
        "view",
        run,
        "write a page that walks through forward and backward, op by op",
        'minprefix view --prefix runs/demo --out fox.html \\\n    --prompt "name[The Red Fox], '
        'type[restaurant], food[Thai]"',
    )
    add_model(p)
    path(p, "--prefix", "DIR", "a trained prefix; without it GPT-2")
    add_prompt(p)
    add_target(p)
    path(p, "--out", "FILE.html", "the page", required=True)


def run(args: argparse.Namespace) -> int:
    from minprefix.storage import writing
    from minprefix.trace.view import page

    if args.out.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"--out {str(args.out)!r}: expected a name that ends in .html")
    template = template_of(args, args.target)
    model, prefix = load(args)
    ids, loss_from = encode(model, args.prompt, args.target, template)
    html = page(model, ids, prefix, loss_from)
    writing.write_text(args.out, html)
    tokens, size = counted(len(ids), "token"), len(html.encode()) / 1e6
    print(f"{tokens}, {len(ids) - loss_from} predicted; {size:.1f} MB in {args.out}")
    return 0
