"""What `demo` and `train` share: a Ctrl-C that says how to go on, the options of the run that is
resumed, the picture of the loss, and the exit status."""

import argparse
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from minprefix.cli.fields import given
from minprefix.cli.options import resolved
from minprefix.errors import InputError, counted
from minprefix.prefix import Prefix
from minprefix.runs import Work, called
from minprefix.settings import PREFIX, Demo, Job
from minprefix.show import training
from minprefix.storage.run import LOG, PICTURE, PLACES, STATE, load_options, log_lines, saved_step

Asked = TypeVar("Asked", Job, Demo)


def resumable(command: str, args: argparse.Namespace, run: Callable[[], int]) -> int:
    """Do `run`. After a Ctrl-C in it, say how to go on if --out holds a run to go on with; one that
    --force was about to replace does not count."""
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


def asked_for(command: str, args: argparse.Namespace, kind: type[Asked]) -> Asked:
    """What the command line asks for, or with --resume what the run in --out was started with.
    Raises InputError for an option that contradicts that run; the contents of a place that is given
    are compared later."""
    now = given(args, kind)
    if "backend" in now:
        now["backend"] = resolved(now["backend"])
    if not args.resume:
        return kind(**now)
    options = load_options(args.out, command)
    unknown = sorted(set(options) - set(kind.__dataclass_fields__))
    if unknown:
        raise InputError(
            f"the run in {args.out} has an option {unknown[0]!r}, which this version does not "
            "know: resume it with the minprefix that started it"
        )
    was = kind.recorded(options)
    for name, value in now.items():
        before = getattr(was, name)
        if name in PLACES and before is not None:
            options[name] = value
            continue
        before = was.unsaid().get(name) if before is None else before
        if value != before:
            said = "was not given" if before is None else f"was {before!r}"
            longer = ""  # its learning rate falls to 0 at its last step
            if isinstance(was, Job) and name in ("steps", "epochs"):
                method = "" if was.trained == PREFIX else f"--method {was.trained} "
                longer = (
                    "; to train longer, start another run from this one when it has ended: "
                    f"{method}--init prefix --init-prefix {shlex.quote(str(args.out))}"
                )
            raise InputError(
                f"cannot resume {args.out}: --{name.replace('_', '-')} {said} and is now {value!r}"
                ": leave it out to go on with the run as it began, or choose another --out"
                f"{longer}"
            )
    return kind.recorded(options)


def draw_loss(work: Work, out: Path) -> None:
    prefix, name = work.prefix, Path(work.model.name).name
    what = counted(prefix.length, "slot") if isinstance(prefix, Prefix) else called(prefix)
    title = f"{what} on {name}: {prefix.n_parameters:,} trained parameters"
    training.loss_picture(out / PICTURE, log_lines(out / LOG), title)


def worse(frozen: float, loss: float, lr: float, rival: str | None = None) -> int:
    """-> the exit status: 1, with a sentence, if the prefix, or the rival of this name, makes the
    model far worse."""
    if loss <= frozen + max(0.5, 0.25 * frozen):
        return 0
    print(
        f"minprefix: the loss is {loss:.2f} with {rival or 'this prefix'} and {frozen:.2f} without "
        f"{'it' if rival else 'one'}: it makes the model worse. Train again with a lower --lr (it "
        f"was {lr:g}), or look at the data",
        file=sys.stderr,
    )
    return 1
