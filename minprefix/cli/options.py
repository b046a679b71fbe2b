"""Options that several commands take, and what is read from them."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from minprefix.errors import InputError

if TYPE_CHECKING:
    from minprefix.data.pairs import Template
    from minprefix.generate import Decoding
    from minprefix.model import GPT2
    from minprefix.prefix import Prefix


#: how a command line names an implementation: `minprefix.conformance.load` reads it
IMPLEMENTATION = (
    "'reference', 'numpy' or 'cupy'; a file (my_ops.py); a module (package.ops); an object in one "
    "of these (my_ops.py:mine, package.ops:mine). What exists as a file is a file, colons and all, "
    "and so is what ends in .py or has a slash or a backslash in it"
)


def unescape(text: str) -> str:
    """A template is typed in a shell: \\n and \\t stand for what they stand for everywhere."""
    return text.replace("\\n", "\n").replace("\\t", "\t")


def at_least_one(text: str) -> int:
    try:
        n = int(text)
    except ValueError:
        n = 0
    if n < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number, at least 1")
    return n


def add_threads(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "--threads",
        type=at_least_one,
        metavar="N",
        help="compute with N threads (default: the machine's choice); another number may change "
        "the last bits of a result",
    )


def add_model(
    p: argparse.ArgumentParser, said: str = "the model that ships, whatever folders are here"
) -> None:
    """`said`: in words, the model without --model."""
    p.add_argument(
        "--model",
        metavar="DIR|NAME",
        help='a folder in Hugging Face layout, "tiny" (ships with minprefix), or a name on the hub '
        f'such as "gpt2" (default {said})',
    )
    p.add_argument("--revision", help="the commit of a hub name; GPT-2's own names are pinned")


def add_columns(p: argparse.ArgumentParser) -> None:
    p.add_argument("--source-column", metavar="NAME", help="default source, or mr (E2E)")
    p.add_argument("--target-column", metavar="NAME", help="default target, or ref (E2E)")


def add_backend(p: argparse.ArgumentParser, default: str | None = "numpy") -> None:
    p.add_argument(
        "--backend",
        choices=("numpy", "cupy", "auto", "reference"),
        default=default,
        help="who computes: numpy, the CPU (the default); cupy, an NVIDIA GPU; auto, the GPU if "
        "there is one; reference, the readable implementation",
    )


def add_matmul(p: argparse.ArgumentParser, default: str | None = "float32") -> None:
    p.add_argument(
        "--matmul",
        choices=("float32", "tf32"),
        default=default,
        help="of matrix products on a GPU: float32 (the default), or tf32, faster, with factors of "
        "11 bits",
    )


def add_decoding(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "--max-new-tokens", type=int, metavar="N", help="default 80, or what a text has room for"
    )
    p.add_argument("--temperature", type=float, metavar="X", help="sample; greedy without it")
    p.add_argument("--top-k", type=int, metavar="K", help="sample from the K likeliest tokens")
    p.add_argument(
        "--top-p", type=float, metavar="X", help="sample from the likeliest X of the mass"
    )
    p.add_argument("--seed", type=int, help="of the draws (default 0)")
    p.add_argument("--beams", type=int, metavar="N", help="beam search with N beams (default 1)")
    p.add_argument("--length-norm", type=float, metavar="X", help="of beam search (default 1.0)")
    p.add_argument(
        "--min-new-tokens", type=int, metavar="N", help="the end token waits (default 0)"
    )
    p.add_argument(
        "--forbidden", type=int, nargs="+", metavar="ID", help="token ids that are never chosen"
    )


def add_run(p: argparse.ArgumentParser) -> None:
    either = p.add_mutually_exclusive_group()
    either.add_argument("--resume", action="store_true", help="go on with the run in --out")
    either.add_argument("--force", action="store_true", help="replace the run in --out")


def add_out(p: argparse.ArgumentParser) -> None:
    p.add_argument("--out", type=Path, metavar="DIR", required=True, help="where it is written")
    p.add_argument("--force", action="store_true", help="replace the prefix that is there")


def given_options(args: argparse.Namespace, names: Sequence[str]) -> dict[str, Any]:
    """The options that stand on the command line."""
    return {name: getattr(args, name) for name in names if getattr(args, name) is not None}


def resolved(backend: str) -> str:
    """`auto` as what it comes to on this machine, which is said."""
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


def set_matmul(backend: str, matmul: str) -> None:
    if backend == "cupy":
        from minprefix import ops

        cast(Any, ops.get("cupy")).matmul_precision(matmul)
    elif matmul != "float32":
        raise InputError(f"--matmul {matmul} is for a GPU: give --backend cupy as well")


def load(args: argparse.Namespace, place: Path | None) -> "tuple[GPT2, Prefix | None, Template]":
    """The model, its prefix, and the template: --template, else the prefix's own, else the
    default."""
    from minprefix.data.pairs import Template
    from minprefix.model import GPT2
    from minprefix.ops import BACKENDS
    from minprefix.prefix import Prefix
    from minprefix.storage.provenance import recorded_template

    args.backend = resolved(args.backend)
    set_matmul(args.backend, args.matmul)
    model = GPT2.load(args.model, revision=args.revision)
    prefix, recorded = None, None
    if place is not None:
        prefix = Prefix.load(place, model)
        recorded = recorded_template(place)
    home = BACKENDS[args.backend]
    model, prefix = model.to(home), prefix and prefix.to(home)
    for template in (args.template, recorded):
        if template is not None:
            return model, prefix, Template(template)
    return model, prefix, Template()


def decoding_of(args: argparse.Namespace) -> "Decoding":
    """As the options say; without --max-new-tokens 80."""
    from minprefix.generate import Decoding

    given = given_options(args, tuple(Decoding.__dataclass_fields__))
    if "seed" in given and "temperature" not in given:
        raise InputError("--seed decides what is sampled: give --temperature as well")
    if "length_norm" in given and given.get("beams", 1) == 1:
        raise InputError("--length-norm compares the texts of a beam search: give --beams as well")
    return Decoding(**{"max_new_tokens": max(80, given.get("min_new_tokens", 0)), **given})
