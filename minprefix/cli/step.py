"""`minprefix step`: a walk through a forward and its backward, one operation at a time."""

import argparse
from typing import TYPE_CHECKING

from minprefix.cli.options import add_model, add_threads, path
from minprefix.cli.parser import Command
from minprefix.cli.prompt import add_prompt, add_target, encode, template_of
from minprefix.errors import InputError

if TYPE_CHECKING:
    from minprefix.batch import Batch
    from minprefix.model import GPT2
    from minprefix.prefix import Prefix

#: without --prompt: a record of the world that the shipped model knows
PROMPT = "name[The Red Fox], type[restaurant], food[Thai]"
TARGET = "The Red Fox is a restaurant that serves Thai food."
SLOTS = 5


def run(args: argparse.Namespace) -> int:
    from minprefix.model import GPT2
    from minprefix.trace.fd import Differences
    from minprefix.trace.stepper import Stepper
    from minprefix.trace.tracer import trace

    model = GPT2.load(args.model, dtype=args.dtype, revision=args.revision)
    prefix = _prefix(args, model)
    batch = _batch(args, model)
    seen = trace(model, batch, prefix, args.names or "*", need=args.need, max_bytes=args.max_bytes)
    differences = Differences(model, batch, prefix, args.need)
    stepper = Stepper(seen, differences, {"model": model, "prefix": prefix, "batch": batch})
    stepper.say(f"{model}\n{prefix or 'no prefix'}\n{batch}")
    stepper.say(f"{seen}, loss {seen.about['loss']:.4f}\nh lists the words")
    stepper.run()
    return 2 if stepper.refused and not stepper.interactive else 0


def _prefix(args: argparse.Namespace, model: "GPT2") -> "Prefix | None":
    """A trained or a random prefix; None for plain GPT-2. Raises InputError."""
    from minprefix.prefix import Prefix

    if args.prefix is None:
        length = SLOTS if args.prefix_length is None else args.prefix_length
        if length == 0:
            return None
        return Prefix.normal(model.config, length, seed=args.seed or 0, dtype=args.dtype)
    if args.seed is not None:
        raise InputError("--seed draws a random prefix and --prefix gives one: leave out one")
    saved = Prefix.load(args.prefix, model)
    return saved.like(saved.kv.astype(args.dtype))


def _batch(args: argparse.Namespace, model: "GPT2") -> "Batch":
    """The prompt and the target, which is predicted; without a target the prompt itself is. Raises
    InputError."""
    from minprefix.batch import Batch

    prompt, target = args.prompt, args.target
    if prompt is None and target is not None:
        raise InputError("--target is what follows a prompt: give --prompt TEXT as well")
    if prompt is None:
        prompt, target = PROMPT, TARGET
    ids, loss_from = encode(model, prompt, target, template_of(args, target))
    return Batch.pack([ids], loss_from=[loss_from])


def add(command: Command) -> None:
    p = command(
        "step",
        run,
        "walk through forward and backward in the terminal, op by op",
        'minprefix step --prompt "name[The Eagle]" --target "The Eagle serves Thai."\n'
        r"printf 'b *.attn.dprefix_k\nc\nwhy\n' | minprefix step --prefix runs/demo",
        status="0; 2 for bad options, and in a script for a command that was refused",
    )
    add_model(p)
    add_prompt(p, f"the text (default {PROMPT!r}, with its description as the target)")
    add_target(p)
    either = p.add_mutually_exclusive_group()
    path(either, "--prefix", "DIR", "a trained prefix")
    slots = f"a random prefix of P slots (default {SLOTS}); 0 is plain GPT-2"
    either.add_argument("--prefix-length", type=int, metavar="P", help=slots)
    p.add_argument("--seed", type=int, help="draws the random prefix (default 0)")
    dtypes, dtype = ("float32", "float64"), "the type of all numbers (default float32)"
    p.add_argument("--dtype", choices=dtypes, default="float32", help=dtype)
    need = "take the gradients of the prefix alone (the default), or of the weights as well"
    p.add_argument("--need", choices=("prefix", "all"), default="prefix", help=need)
    names = "keep only these values, such as blocks.2.*"
    p.add_argument("--names", action="append", metavar="PATTERN", help=names)
    size = "keep at most N (default 2^30)"
    p.add_argument("--max-bytes", type=int, metavar="N", default=2**30, help=size)
    add_threads(p)
