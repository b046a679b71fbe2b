"""Options that several commands take, and what is read from them."""

import argparse
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from minprefix.cli.fields import Options, add_fields, given
from minprefix.cli.parser import Parser
from minprefix.errors import InputError
from minprefix.settings import MATMULS

if TYPE_CHECKING:
    from minprefix.generate import Decoding
    from minprefix.model import GPT2

#: what `generate` and `evaluate` write at most without --max-new-tokens
NEW_TOKENS = 80
ENDS = (
    "A text ends at the model's end token, after --max-new-tokens, or at the model's last position."
)

#: how a command line names an implementation: `minprefix.conformance.load` reads it
IMPLEMENTATION = (
    "'reference', 'numpy' or 'cupy'; a file (my_ops.py); a module (package.ops); an object in one "
    "of these (my_ops.py:mine, package.ops:mine). A name that ends in .py, holds a slash or a "
    "backslash, or names an existing file is a file's"
)


def unescape(text: str) -> str:
    """A template as it is typed in a shell, with \\n for a line break and \\t for a tab."""
    return text.replace("\\n", "\n").replace("\\t", "\t")


def at_least_one(text: str) -> int:
    with suppress(ValueError):
        if (n := int(text)) >= 1:
            return n
    raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number, at least 1")


def flag(to: Options, name: str, help: str) -> None:
    to.add_argument(name, action="store_true", help=help)


def path(to: Options, name: str, metavar: str, help: str, **more: Any) -> None:
    to.add_argument(name, type=Path, metavar=metavar, help=help, **more)


def count(to: Options, name: str, help: str, default: int | None = None) -> None:
    """A whole number, at least 1; `default` is added to the help."""
    said = help if default is None else f"{help} (default {default})"
    to.add_argument(name, type=at_least_one, metavar="N", default=default, help=said)


def add_threads(to: Options) -> None:
    more = "(default: the machine decides); another number may change the last bits of a result"
    count(to, "--threads", f"compute with N threads {more}")


def add_model(p: Options, said: str = "the model that ships") -> None:
    """`said`: the model without --model, in words."""
    p.add_argument(
        "--model",
        metavar="DIR|NAME",
        help='a folder in Hugging Face layout, "tiny" (ships with minprefix), or a name on the hub '
        f'such as "gpt2" (default: {said})',
    )
    p.add_argument("--revision", help="commit of a name on the hub (GPT-2's own are pinned)")


def add_columns(to: Options) -> None:
    for name, e2e in (("source", "mr"), ("target", "ref")):
        said = f"column or field of the {name} (default {name}, or {e2e} as in E2E)"
        to.add_argument(f"--{name}-column", metavar="NAME", help=said)


def add_backend(p: Options, default: str | None = "numpy") -> None:
    said = (
        "compute with numpy, on the CPU (default); cupy, on an NVIDIA GPU; auto, on the GPU if "
        "there is one; reference, the readable implementation"
    )
    names = ("numpy", "cupy", "auto", "reference")
    p.add_argument("--backend", choices=names, default=default, help=said)


def add_matmul(p: Options, default: str | None = "float32") -> None:
    tf32 = "tf32: faster, with 11 bits of each factor"
    said = f"precision of matrix products on a GPU: float32 (default), or {tf32}"
    p.add_argument("--matmul", choices=MATMULS, default=default, help=said)


def add_machine(to: Options) -> None:
    """What computes, and how."""
    add_backend(to)
    add_matmul(to)
    add_threads(to)


def add_decoding(to: Options) -> None:
    """The fields of `Decoding`."""
    from minprefix.generate import Decoding

    most = f"{NEW_TOKENS}, or what a text leaves room for"
    add_fields(to, Decoding, Decoding.__dataclass_fields__, defaults={"max_new_tokens": most})


def add_run(p: Parser) -> None:
    either = p.add_mutually_exclusive_group()
    either.add_argument("--resume", action="store_true", help="go on with the run in --out")
    either.add_argument("--force", action="store_true", help="replace the run in --out")


def add_out(p: Options) -> None:
    """--out and --force of the commands that write a prefix."""
    path(p, "--out", "DIR", "the new folder", required=True)
    flag(p, "--force", "replace what minprefix wrote in --out")


def resolved(backend: str) -> str:
    """The backend that `auto` stands for on this machine, which is printed."""
    from minprefix import ops

    if backend != "auto":
        return backend
    try:
        ops.get("cupy")
    except ops.Unavailable as error:
        print(f"backend: numpy ({error})", file=sys.stderr)
        return "numpy"
    print("backend: cupy", file=sys.stderr)
    return "cupy"


def named_model(args: argparse.Namespace) -> "GPT2 | None":
    """The model of --model, None without it."""
    from minprefix.model import GPT2

    if args.model is not None:
        return GPT2.load(args.model, revision=args.revision)
    if args.revision is not None:
        raise InputError("--revision belongs to a model's name: give --model as well")
    return None


def load_model(args: argparse.Namespace) -> "GPT2":
    """The model of --model, in the place where --backend computes; `args.backend` becomes a name
    that computes."""
    from minprefix import ops
    from minprefix.model import GPT2

    args.backend = resolved(args.backend)
    if args.backend == "cupy":
        cast(Any, ops.get("cupy")).matmul_precision(args.matmul)
    elif args.matmul != "float32":
        raise InputError(f"--matmul {args.matmul} is for a GPU: give --backend cupy as well")
    model = GPT2.load(args.model, revision=args.revision)
    return model.to(ops.BACKENDS[args.backend])


def decoding_of(args: argparse.Namespace) -> "Decoding":
    from minprefix.generate import Decoding

    chosen = given(args, Decoding)
    if "seed" in chosen and "temperature" not in chosen:
        raise InputError("--seed decides what is sampled: give --temperature as well")
    if "length_norm" in chosen and chosen.get("beams", 1) == 1:
        raise InputError("--length-norm compares the texts of a beam search: give --beams as well")
    most = max(NEW_TOKENS, chosen.get("min_new_tokens", 0))
    return Decoding(**{"max_new_tokens": most, **chosen})
