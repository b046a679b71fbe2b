"""`minprefix export`: a prefix or a rival for another library."""

import argparse
from pathlib import Path

from minprefix.cli.made import remove_rest
from minprefix.cli.options import add_model, add_out, flag, named_model
from minprefix.cli.parser import Command
from minprefix.errors import InputError


def add(command: Command) -> None:
    p = command(
        "export",
        run,
        "write a prefix or a rival for another library",
        "minprefix export runs/e2e --to peft --base openai-community/gpt2 --out peft",
    )
    p.add_argument("path", type=Path, metavar="DIR", help="a prefix or a rival")
    p.add_argument("--to", choices=("peft", "adapters"), help="the library")
    flag(p, "--merged", "write the whole model, with LoRA or fine-tuned weights merged into it")
    name = "PEFT's name for the model (default: the recorded one)"
    p.add_argument("--base", metavar="NAME", help=name)
    add_model(p, "for --merged: the one that the rival records")
    add_out(p)


def run(args: argparse.Namespace) -> int:
    from minprefix.storage.rivals import export_rival, holds_rival, read_rival_folder
    from minprefix.storage.run import refuse_taken

    _check_options(args)
    refuse_taken(args.out, args.force)
    if args.out.exists() and args.path.exists() and args.out.samefile(args.path):
        replaced = "whose record the other library's files would replace: choose another --out"
        raise InputError(f"--out is the prefix itself, {replaced}")
    if args.merged:
        _merged(args)
    elif not holds_rival(args.path):
        _prefix(args)
    elif args.to == "adapters":
        raise InputError(f"{args.path} holds a rival: --to adapters is for a prefix")
    else:
        saved, about = read_rival_folder(args.path)
        name = None if about is None else about.base.name
        export_rival(saved, args.out, args.base or name)
        remove_rest(args)
        print(f"written to {args.out}, for PeftModel.from_pretrained(base, {str(args.out)!r})")
    return 0


def _check_options(args: argparse.Namespace) -> None:
    if (args.to is None) != args.merged:
        raise InputError("expected either --to, with the library's name, or --merged")
    if args.base is not None and args.to != "peft":
        whole = "a merged model needs no other" if args.merged else "the adapters library"
        raise InputError(f"--base is for PEFT: {whole} takes no name of a model")
    if not args.merged and (args.model is not None or args.revision is not None):
        raise InputError("--model is for --merged: the other files hold no weights of the model")


def _prefix(args: argparse.Namespace) -> None:
    from minprefix.storage import adapters
    from minprefix.storage.artifact import export_peft, read_prefix
    from minprefix.storage.peft import GENERATE_DROPS_IT

    saved, about = read_prefix(args.path)
    name, n_layer = (None, None) if about is None else (about.base.name, about.base.n_layer)
    if args.to == "peft":
        export_peft(saved, args.out, args.base or name)
        remove_rest(args)
        print(f"written to {args.out}, for PeftModel.from_pretrained(base, {str(args.out)!r})")
        print(GENERATE_DROPS_IT)
    else:
        adapters.save_adapters(saved, args.out, n_layer=n_layer)
        print(f"written to {args.out}, to be used as in\n  {adapters.USE}")


def _merged(args: argparse.Namespace) -> None:
    from minprefix import methods
    from minprefix.prefixes.verify import recorded_model
    from minprefix.storage.provenance import read_about
    from minprefix.storage.run import RUN_FILES
    from minprefix.storage.saving import new_folder

    method = methods.load(args.path)
    if not isinstance(method, methods.FineTuning | methods.LoRA):
        what = method.name if isinstance(method, methods.Method) else "a prefix"
        raise InputError(
            f"{args.path} holds {what}, which cannot be merged: only LoRA and fine-tuning change "
            "nothing but the weights"
        )
    model, about = named_model(args), read_about(args.path)
    if model is None and (about is None or about.base.name is None):
        raise InputError(f"{args.path} does not record its model: give --model")
    if model is None:
        assert about is not None
        model = recorded_model(about)
    method = methods.load(args.path, model)
    assert isinstance(method, methods.FineTuning | methods.LoRA)
    merged = method.merged(model)
    merged.check_finite()
    new_folder(args.out, RUN_FILES, args.force)
    merged.save(args.out)
    print(f"written to {args.out}: GPT2.load and transformers read it as any other model")
