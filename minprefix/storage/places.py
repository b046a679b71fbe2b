"""Which folder the name of a model means: that folder itself, the model that ships, or a snapshot
from the hub."""

import contextlib
import difflib
import os
from pathlib import Path

from minprefix.errors import InputError, note
from minprefix.storage import hub

#: the model that ships: beside the package in a wheel, beside the package's folder in a clone
_PLACES = [folder / "weights/tiny" for folder in Path(__file__).parents[1:3]]
TINY = next(filter(Path.exists, _PLACES), None)
SHIPPED = "tiny"  #: its name
NEAR = 0.75  #: names at least as alike as this may be slips of each other (difflib's ratio)
#: what may be given instead of a folder
OR_ELSE = '"tiny" for the model that ships, or a name on the hub'
#: GPT-2's own names on the hub, and the commits that this package was written against
PINNED = {
    "gpt2": ("openai-community/gpt2", "607a30d783dfa663caf39e06633721c8d4cfcd7e"),
    "gpt2-medium": ("openai-community/gpt2-medium", "6dcaa7a952f72f9298047fd5137cd6e4f05f41da"),
    "gpt2-large": ("openai-community/gpt2-large", "32b71b12589c2f8d625668d2335a01cac3249519"),
    "gpt2-xl": ("openai-community/gpt2-xl", "15ea56dee5df4983c59b2538573817e1667135e2"),
}
PINNED |= {full: (full, revision) for full, revision in PINNED.values()}


def find(name: str | Path | None, revision: str | None = None) -> Path:
    """The folder of a model: the model that ships for None; `name` itself if it is a folder, with
    a note if that hides another model; the shipped model for "tiny"; else a snapshot from the hub
    (the pinned commit for GPT-2's own names). Raises InputError for any other name, and suggests
    one that is spelled like it."""
    text, path = str(name), Path("" if name is None else name)
    if not text.strip():  # as from an unset shell variable; Path takes it for this folder
        raise InputError(f"the name of the model is empty: give a folder, {OR_ELSE}")
    known = name is None or text in (SHIPPED, *PINNED)
    # unlike path.is_dir, also for a name that no file could have
    is_folder = name is not None and os.path.isdir(path)
    if is_folder and not (known and not os.path.lexists(path / "config.json")):
        if revision is not None:
            raise InputError(f"model {text!r} is a folder: a revision is for names on the hub")
        if known:
            _note_hidden(text, path)
        return path
    if known and name is not None and os.path.lexists(path):
        note(f"{str(path.absolute())!r} holds no model and is passed over for the model {text!r}")
    if name is None or text in (SHIPPED, "weights/tiny"):
        if revision is not None:
            raise InputError(
                "model 'tiny' ships with minprefix: a revision is for names on the hub"
            )
        if TINY is None:
            lost = "the model that ships is not beside the package"
            raise InputError(f"{lost}: install minprefix again, or give a folder")
        return TINY
    if os.path.isfile(path) and not known:
        raise InputError(f"model {text!r} is a file: give the folder that config.json is in")
    near = None if known else _nearest(text)
    meant = "" if near is None else f"; did you mean {near!r}?"
    local = text.startswith((".", "/", "~")) or len(path.parts) > 2
    if local or (len(path.parts) == 2 and path.parent.is_dir()):
        files = "a folder with config.json and model.safetensors"
        raise InputError(
            f'model folder {text!r} does not exist: give {files}, {OR_ELSE} like "gpt2"{meant}'
        )
    if near is not None and "/" not in text.rstrip("/"):  # only the hub's oldest names have none
        raise InputError(
            f"model {text!r} is no folder here and no known name{meant} A name on the hub is like "
            '"openai-community/gpt2"'
        )
    repo, pinned = PINNED.get(text, (text, None))
    try:
        return hub.snapshot(repo, revision or pinned)
    except InputError as error:
        raise (error if near is None else InputError(f"{error}{meant}")) from error.__cause__


def _note_hidden(name: str, path: Path) -> None:
    """Say which known model a folder of the same name hides, and how to get that one."""
    if name == SHIPPED:
        hidden = "the model that ships: to use that one, give no name (leave out --model)"
    elif name != PINNED[name][0]:
        hidden = f"that model of the hub: to use that one, give {PINNED[name][0]!r}"
    else:
        hidden = "that model of the hub: to use that one, rename the folder"
    note(f"model {name!r} is the folder {str(path.absolute())!r} and hides {hidden}")


def _nearest(name: str) -> str | None:
    """The known model, or the folder of a model in the same place, whose name is almost this."""
    parent, last = os.path.split(name.rstrip("/"))
    names = {n.lower(): n for n in (SHIPPED, *PINNED)} | {"gpt2-small": "gpt2"}
    with contextlib.suppress(OSError, ValueError):
        for folder in os.listdir(parent or "."):
            path = os.path.join(parent, folder)
            if folder != last and os.path.isfile(os.path.join(path, "config.json")):
                names.setdefault(path.lower(), path)
    found = difflib.get_close_matches(name.lower(), names, 1, NEAR)
    return names[found[0]] if found else None
