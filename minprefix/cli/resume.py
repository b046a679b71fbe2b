"""`demo` and `train`: going on with a run, after Ctrl-C and with the options that it began with."""

import argparse
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from minprefix.cli.options import resolved
from minprefix.errors import InputError


def resumable(command: str, args: argparse.Namespace, run: Callable[[], int]) -> int:
    """`run`, and after a Ctrl-C anywhere in it how to go on, if --out holds a run to go on with.
    The one that --force was to replace is none."""
    from minprefix.storage.run import STATE, load_options, saved_step

    out, state = args.out, args.out / STATE
    replaced = state.stat().st_mtime_ns if args.force and state.exists() else None
    try:
        return run()
    except KeyboardInterrupt:
        if state.exists() and state.stat().st_mtime_ns == replaced:
            raise
        try:
            load_options(out, command)
        except InputError:  # nothing was begun
            raise KeyboardInterrupt from None
        step, again = saved_step(out), f"minprefix {command} --out {shlex.quote(str(out))} --resume"
    print(
        f"\nminprefix: stopped, all of step {step} is saved; go on with: {again}", file=sys.stderr
    )
    return 130


def worse(frozen: float, loss: float, lr: float) -> int:
    """-> the exit status: 1, and a sentence, if a prefix leaves the model far worse than it was."""
    if loss <= frozen + max(0.5, 0.25 * frozen):  # nan is worse, too
        return 0
    print(
        f"minprefix: the loss is {loss:.2f} with this prefix and {frozen:.2f} without one: it has "
        f"made the model worse. Train again with a lower --lr (it was {lr:g}), or look at the data",
        file=sys.stderr,
    )
    return 1


def options_of(
    command: str, out: Path, defaults: dict[str, Any], given: dict[str, Any]
) -> dict[str, Any]:
    """What the run in `out` was started with. Raises InputError for a `given` option that says
    something else; what lies at a place that is given is compared later."""
    from minprefix.storage.run import load_options

    options = load_options(out, command)
    was = defaults | options
    for name, now in given.items():
        if name == "backend":
            now = resolved(now)
        if name in PLACES and was[name] is not None:
            options[name] = now
            continue
        unsaid = was[name] is None
        before = unsaid_options(was).get(name) if unsaid else was[name]
        if now == before:
            continue
        option = f"--{name.replace('_', '-')}"
        said = "was not given" if before is None else f"was {before!r}"
        raise InputError(
            f"cannot resume {out}: {option} {said} and is now {now!r}: leave it out to go on with "
            f"the run as it began, or choose another --out{_longer(command, name, out)}"
        )
    return options


#: options that say where something lies
PLACES = ("model", "data", "valid", "init_prefix")


def unsaid_options(options: dict[str, Any]) -> dict[str, Any]:
    """What an option comes to that nobody gave."""
    flat = options.get("mlp_hidden") is None
    unsaid = {"lr": 5e-3 if flat else 5e-4, "init": "normal" if flat else "network"}
    if options.get("steps") is None:
        unsaid["epochs"] = 5
    if options.get("init") not in ("text", "prefix"):
        unsaid["prefix_length"] = 10
    return unsaid


def _longer(command: str, name: str, out: Path) -> str:
    """What to do where a run was to be made longer: its learning rate was laid out for its length,
    so it has none for more steps."""
    if command != "train" or name not in ("steps", "epochs"):
        return ""
    start = f"--init prefix --init-prefix {shlex.quote(str(out))}"
    return f"; to train longer, start another run from this one when it has ended: {start}"
