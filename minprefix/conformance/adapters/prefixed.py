"""A module and the way in which a prefix goes into it: by an argument of `forward`, or as a
parameter that the module owns, as PEFT has it."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from minprefix.conformance.adapters.layouts import (
    OF_A_PARAMETER,
    OF_A_PAST,
    OF_AN_ARGUMENT,
    laid_out,
    of_all_rows,
    shape_of,
)
from minprefix.conformance.adapters.weights import Module, Tensor
from minprefix.errors import InputError
from minprefix.gpt2 import Config

#: names of arguments and of outputs that carry keys and values from one call to the next
PASTS = ("past_key_values", "past", "layer_past", "kv_cache", "cache", "presents")

#: names of arguments that take a prefix, the surest first
ARGUMENTS = ("prefix_kv", "prefix", "prefixes", "kv_prefix", "prompt", *PASTS)


@dataclass(frozen=True)
class Entry:
    """`name`: of the argument or the parameter; `mask`: how long the module's attention_mask is,
    "P+T" or "T"."""

    name: str
    layout: str
    is_parameter: bool = False
    mask: str = "P+T"

    @property
    def of_all_rows(self) -> bool:
        return of_all_rows(self.layout)

    def __str__(self) -> str:
        kind = "parameter" if self.is_parameter else "argument"
        return f"{kind} {self.name} ({self.layout})"


class Prefixed:
    """A module that was built for prefixes of one length, or of any. `base`: what goes on decoding
    after the prefix is in the cache, and what runs where there is no prefix."""

    def __init__(self, module: Module, config: Config) -> None:
        self.module, self.config = module, config
        self.is_peft = hasattr(module, "prompt_encoder") and hasattr(module, "get_base_model")
        self.base = module.get_base_model() if self.is_peft else module
        self.takes = _arguments(type(self.base))
        self.tokens = "input_ids" if "input_ids" in self.takes else ""
        self.takes_positions = "position_ids" in self.takes and not self.is_peft
        who = "PEFT ignores" if self.is_peft else "forward takes no"
        self.without_positions = f"{who} position_ids, which would put the tokens elsewhere"

    def can_leave_out(self, argument: str) -> bool:
        return self.takes[argument].default is not inspect.Parameter.empty

    def entries(self, P: int, name: str, layout: str) -> list[Entry]:
        """The ways to try, for P slots. `name`: the argument's or the parameter's, `layout`: its
        layout; empty where it has to be found out."""
        layouts = [layout] if layout else []
        if self.is_peft:
            return [Entry(self._of_peft(), "P L*2*NH*hs", True, "T")]
        arguments = (
            [name]
            if name in self.takes
            else []
            if name
            else [n for n in ARGUMENTS if n in self.takes]
        )
        found = [
            Entry(n, each)
            for n in arguments
            for each in layouts or (OF_A_PAST if n in PASTS else OF_AN_ARGUMENT)
        ]
        for own, p in () if found else self.module.named_parameters():
            if own == name or (not name and any(word in own for word in ("prefix", "prompt"))):
                found += [
                    Entry(own, each, True)
                    for each in layouts or OF_A_PARAMETER
                    if shape_of(each, self.config, P) == tuple(p.shape)
                ]
        return found

    def _of_peft(self) -> str:
        adapter = self.module.active_adapter
        config = self.module.peft_config[adapter]
        if str(getattr(config.peft_type, "value", config.peft_type)) != "PREFIX_TUNING":
            raise InputError(
                f"build gives a PEFT model of {config.peft_type}: expected PREFIX_TUNING"
            )
        if config.prefix_projection:
            raise InputError(
                "build gives a PEFT model with prefix_projection=True, whose prefix comes out of "
                "an MLP: set it to False, because keys and values are what is graded"
            )
        return f"prompt_encoder.{adapter}.embedding.weight"

    def __call__(self, ids: Tensor, kv: Tensor | None, entry: Entry, **more: Any) -> Any:
        """The module's output on ids (B, T) after a prefix kv (B, L, 2, NH, P, hs); None: without.
        `more`: other arguments of its forward."""
        given = {self.tokens: ids} if self.tokens else {}
        positional = () if self.tokens else (ids,)
        if kv is None and not entry.is_parameter:
            if self.can_leave_out(entry.name):
                return self.base(*positional, **given, **more)
            c = self.config
            kv = ids.new_zeros(
                (len(ids), c.n_layer, 2, c.n_head, 0, c.head_size), dtype=_dtype(self)
            )
        if kv is None:
            if not self.is_peft:
                raise NotImplementedError("a module with a prefix of its own has no P = 0")
            return self.base(*positional, **given, **more)
        prefix = laid_out(kv, entry.layout, self.config)
        if not entry.is_parameter:
            return self.module(*positional, **given, **{entry.name: prefix}, **more)
        from torch.func import functional_call

        return functional_call(self.module, {entry.name: prefix}, positional, given | more)

    def go_on(self, ids: Tensor, past: Any, entry: Entry, **more: Any) -> Any:
        """One token more (B, 1), after all that is in `past`."""
        names = [n for n in (entry.name, *PASTS) if n in PASTS and n in self.takes]
        if not names or past is None or (entry.is_parameter and not self.is_peft):
            raise NotImplementedError("the module gives and takes no cache of keys and values")
        given = {self.tokens: ids} if self.tokens else {}
        return self.base(*(() if self.tokens else (ids,)), **given, **{names[0]: past}, **more)

    def logits(self, output: Any) -> Tensor:
        """(B, T, V), whatever the module gives."""
        found = _field(output, ("logits",))
        if found is None and isinstance(output, tuple | list):  # after a loss, perhaps
            found = next((a for a in output if getattr(a, "ndim", 0) == 3), output[0])
        found = output if found is None else found
        if not hasattr(found, "requires_grad") or found.dim() != 3:
            shape = f" {tuple(found.shape)}" if hasattr(found, "shape") else ""
            raise InputError(
                f"forward gives a {type(found).__name__}{shape}: expected logits (B, T, V), alone, "
                "first of a tuple, or as `.logits`"
            )
        return found


_VARIABLE = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def _arguments(kind: type) -> dict[str, inspect.Parameter]:
    """The arguments of a module's forward; where it hands **others on, those of the class above,
    too."""
    found: dict[str, inspect.Parameter] = {}
    for each in kind.__mro__:
        if "forward" in vars(each):
            given = inspect.signature(vars(each)["forward"]).parameters
            own = {n: p for n, p in list(given.items())[1:] if p.kind not in _VARIABLE}
            found = own | found
            if not any(p.kind == inspect.Parameter.VAR_KEYWORD for p in given.values()):
                break
    return found


def _dtype(prefixed: Prefixed) -> Any:
    return next(prefixed.module.parameters()).dtype


def _field(output: Any, names: Sequence[str]) -> Any:
    for name in names:
        found = output.get(name) if isinstance(output, Mapping) else getattr(output, name, None)
        if found is not None:
            return found
    return None


def loss_of(output: Any) -> Tensor:
    """The loss that the module gives where it gets labels."""
    found = _field(output, ("loss",))
    return output[0] if found is None else found


def cache_of(output: Any) -> Any:
    """The keys and values that the output carries; None if there are none."""
    found = _field(output, PASTS)
    if found is None and isinstance(output, tuple | list):
        return next((each for each in output[1:] if isinstance(each, tuple | list)), None)
    return found


Build = Callable[..., Module]
