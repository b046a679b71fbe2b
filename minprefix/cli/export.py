"""`minprefix export`: a prefix for another library."""

import argparse
from pathlib import Path

from minprefix.cli.made import remove_rest
from minprefix.cli.options import add_out
from minprefix.cli.parser import Command
from minprefix.errors import InputError


def add(command: Command) -> None:
    p = command(
        "export",
        run,
        "write a prefix for PEFT or the adapters library",
        "minprefix export runs/e2e --to peft --base openai-community/gpt2 --out peft",
    )
    p.add_argument("path", type=Path, metavar="DIR", help="a prefix")
    p.add_argument("--to", choices=("peft", "adapters"), required=True, help="the library")
    name = "PEFT's name for the model (default: the recorded one)"
    p.add_argument("--base", metavar="NAME", help=name)
    add_out(p)


def run(args: argparse.Namespace) -> int:
    from minprefix.storage import adapters
    from minprefix.storage.artifact import export_peft, read_prefix
    from minprefix.storage.peft import GENERATE_DROPS_IT
    from minprefix.storage.run import refuse_taken

    refuse_taken(args.out, args.force)
    saved, about = read_prefix(args.path)
    name, n_layer = (None, None) if about is None else (about.base.name, about.base.n_layer)
    if args.base is not None and args.to != "peft":
        raise InputError("--base is for PEFT: the adapters library takes no name of a model")
    if args.out.exists() and args.out.samefile(args.path):
        replaced = "whose record the other library's files would replace: choose another --out"
        raise InputError(f"--out is the prefix itself, {replaced}")
    if args.to == "peft":
        export_peft(saved, args.out, args.base or name)
        remove_rest(args)
        print(f"written to {args.out}, for PeftModel.from_pretrained(base, {str(args.out)!r})")
        print(GENERATE_DROPS_IT)
    else:
        adapters.save_adapters(saved, args.out, n_layer=n_layer)
        print(f"written to {args.out}, to be used as in\n  {adapters.USE}")
    return 0
