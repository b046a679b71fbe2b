"""A method that takes part in a comparison, as it is typed: `lora:rank=4,lr=1e-3/3e-3`."""

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from minprefix.errors import InputError
from minprefix.method import Method
from minprefix.methods import (
    Adapters,
    BitFit,
    FineTuning,
    Infix,
    LoRA,
    PromptTuning,
    PTuning,
    TopLayers,
)
from minprefix.model import GPT2
from minprefix.prefix import Prefix

Trained = Prefix | Method

#: the words that a text start repeats: a cue that the shipped model knows
WORDS = "describe"


def _words(model: GPT2, text: str, length: int) -> list[int]:
    """The tokens of a text, repeated or cut to `length`."""
    ids = model.encode(text)
    if not ids:
        raise InputError(f"text is {text!r}: expected at least one token")
    return [ids[i % len(ids)] for i in range(length)]


def _prefix(
    model: GPT2,
    seed: int,
    length: int = 10,
    init: str = "normal",
    std: float = 0.02,
    text: str = WORDS,
    hidden: int = 0,
) -> Prefix:
    if length < 1:
        raise InputError(f"length is {length}: expected at least 1 slot")
    dtype = str(model.dtype)
    if hidden:
        return Prefix.mlp(model.config, length, hidden, seed, dtype=dtype)
    if init == "zero":
        return Prefix.zero(model.config, length, dtype=dtype)
    if init == "text":
        return Prefix.text(model, _words(model, text, length))
    if init != "normal":
        raise InputError(f"init is {init!r}: expected normal, zero or text")
    return Prefix.normal(model.config, length, std, seed, dtype=dtype)


def _prompt(
    model: GPT2,
    seed: int,
    length: int = 10,
    init: str = "normal",
    std: float = 0.02,
    text: str = WORDS,
) -> PromptTuning:
    if init == "vocabulary":
        return PromptTuning.vocabulary(model, length, seed)
    if init == "text":
        return PromptTuning.text(model, text, length)
    if init != "normal":
        raise InputError(f"init is {init!r}: expected normal, vocabulary or text")
    return PromptTuning.normal(model, length, std, seed)


def _full(model: GPT2, seed: int) -> FineTuning:
    return FineTuning.start(model)


def _top(model: GPT2, seed: int, k: int = 2) -> TopLayers:
    return TopLayers.start(model, k)


def _bitfit(model: GPT2, seed: int) -> BitFit:
    return BitFit.start(model)


#: name -> what starts one. Its further arguments are the options, of the types of their defaults.
STARTS: dict[str, Callable[..., Trained]] = {
    "prefix": _prefix,
    "p-tuning-v2": _prefix,  # Liu et al., 2022: the same method
    "full": _full,
    "top-layers": _top,
    "bitfit": _bitfit,
    "prompt-tuning": _prompt,
    "p-tuning": PTuning.start,
    "infix": Infix.start,
    "lora": LoRA.start,
    "adapters": Adapters.start,
}

#: options whose default is None or a tuple say their type here
TYPES: dict[str, Callable[[str], Any]] = {
    "alpha": float,
    "targets": lambda text: tuple(text.split("/")),
}


@dataclass(frozen=True)
class Entrant:
    """`name`: as in `STARTS`; `options`: those that were typed; `lrs`: its own learning rates, if
    any were typed."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    lrs: tuple[float, ...] = ()

    def start(self, model: GPT2, seed: int) -> Trained:
        """The untrained method. Raises InputError for a value that the method refuses."""
        return STARTS[self.name](model, seed=seed, **self.options)

    @property
    def label(self) -> str:
        """ "lora rank=4": what tells it from the others, without its learning rates."""
        said = (
            f"{name}={'/'.join(value) if isinstance(value, tuple) else value}"
            for name, value in self.options.items()
        )
        return " ".join([self.name, *said])


def read_entrant(text: str) -> Entrant:
    """Raises InputError for an unknown method or option, and for a value that is none."""
    name, _, rest = text.partition(":")
    if name not in STARTS:
        raise InputError(f"method {name!r}: expected one of {', '.join(STARTS)}")
    defaults = {
        p.name: p.default
        for p in inspect.signature(STARTS[name]).parameters.values()
        if p.name not in ("model", "seed")
    }
    options: dict[str, Any] = {}
    lrs: tuple[float, ...] = ()
    for part in filter(None, rest.split(",")):
        option, sign, value = part.partition("=")
        if not sign or option not in (*defaults, "lr") or option in options:
            known = ", ".join([*defaults, "lr"])
            raise InputError(f"method {text!r}: {part!r} is no option: expected {known}, each as "
                             "NAME=VALUE")  # fmt: skip
        kind = TYPES.get(option, type(defaults.get(option)))
        try:
            if option == "lr":
                lrs = read_lrs(value.split("/"))
            else:
                options[option] = kind(value)
        except ValueError as error:
            raise InputError(
                f"method {text!r}: {option} is {value!r}: expected a number"
            ) from error
    return Entrant(name, options, lrs)


def read_lrs(texts: Sequence[str]) -> tuple[float, ...]:
    """Raises ValueError for what is no learning rate."""
    lrs = tuple(map(float, texts))
    if not all(0 < lr < math.inf for lr in lrs):
        raise ValueError
    return lrs
