"""Options made from the fields of a dataclass, where each default and each help text has its
home."""

import argparse
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, Field, fields
from types import UnionType
from typing import Any, get_args, get_origin

#: a parser, or a group of options in its help
Options = argparse._ActionsContainer

METAVARS = {int: "N", float: "X", str: "TEXT"}


def add_fields(
    to: Options,
    kind: type,
    names: Iterable[str],
    types: Mapping[str, Callable[[str], Any]] | None = None,
    defaults: Mapping[str, object] | None = None,
) -> None:
    """Add an option for each of these fields of the dataclass `kind` to a parser or a group.

    An option that is not given is None, so that the default stays at the field; `given` collects
    the others. A field's metadata holds "help", perhaps "choices" or a "metavar", and "unsaid" if
    the help names another default than the field's. `types`: functions that read a text, where the
    field's type does not. `defaults`: what the help of one command says.
    """
    types = types or {}
    for name in names:
        f: Field[Any] = kind.__dataclass_fields__[name]  # type: ignore[attr-defined]
        help_ = _help(f, (defaults or {}).get(name, f.metadata.get("unsaid", f.default)))
        option, (type_, many) = f"--{name.replace('_', '-')}", _type(f)
        if type_ is bool:
            to.add_argument(option, action="store_true", default=None, help=help_)
            continue
        choices, nargs = f.metadata.get("choices"), "+" if many and name not in types else None
        metavar = f.metadata.get("metavar", None if choices else METAVARS[type_])
        to.add_argument(
            option,
            type=types.get(name, type_),
            nargs=nargs,
            choices=choices,
            metavar=metavar,
            help=help_,
        )


def _help(f: "Field[Any]", default: object) -> str:
    text = f.metadata["help"]
    if not (default is MISSING or default is None or default is False or default == ()):
        said = f"{default:g}" if isinstance(default, float) else str(default)
        text = f"{text} (default {said})"
    return text.replace("\n", "\\n").replace("%", "%%")


def _type(f: "Field[Any]") -> tuple[type, bool]:
    """The type of one word, and whether the option takes several: float | None is float."""
    kind: Any = f.type
    if isinstance(kind, UnionType):
        (kind,) = (part for part in get_args(kind) if part is not type(None))
    many = get_origin(kind) in (list, tuple)
    return (get_args(kind)[0] if many else kind), many


def given(args: argparse.Namespace, kind: type) -> dict[str, Any]:
    """The options among the fields of `kind` that stand on the command line."""
    values = {f.name: getattr(args, f.name, None) for f in fields(kind)}
    return {name: value for name, value in values.items() if value is not None}
