"""GPT-2's weights in a PyTorch module of any make: which parameter holds which, and how it lies.

A checkpoint keeps a linear layer's weight as (in, out), as transformers' `Conv1D` does; a
`torch.nn.Linear` keeps (out, in). Some modules keep the queries', keys' and values' thirds of
`attn.c_attn` apart.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from minprefix.errors import InputError

#: torch's, which is not imported before it is needed
Module = Any
Tensor = Any


@dataclass(frozen=True)
class Home:
    """A parameter that holds a weight of the checkpoint. `part`: the third of `attn.c_attn` that it
    holds, 0 the queries', 1 the keys', 2 the values'; None: all. `transposed`: it lies as
    (out, in)."""

    parameter: str
    part: int | None = None
    transposed: bool = False

    @property
    def module(self) -> str:
        """The path of the module whose parameter it is."""
        return self.parameter.rpartition(".")[0]

    def given(self, weight: Tensor) -> Tensor:
        """The checkpoint's weight as it lies here."""
        if self.part is not None:
            weight = weight.chunk(3, -1)[self.part]
        return weight.T if self.transposed else weight


# ---- by name ------------------------------------------------------------------------------------

_MLP, _ATTENTION = r"mlp|ff|feed|fc_?|linear(?=\d)|dense_", r"att"

#: what stands behind a block's number -> the layer of GPT-2, and the third of `attn.c_attn`
_IN_BLOCK: tuple[tuple[str, str, int | None], ...] = (
    (r"(^|\.)[a-z_]*(ln|norm)[a-z_]*2$|(post|mlp|ff|final)[a-z_]*norm$|ln_(mlp|ff)", "ln_2", None),
    (r"(^|\.)[a-z_]*(ln|norm)[a-z_]*1$|(att|input|pre)[a-z_]*norm$|ln_att", "ln_1", None),
    (rf"({_MLP}).*(down_proj|c_proj|proj|out|down|[a-z_]*2|4h_to_h)$", "mlp.c_proj", None),
    (rf"({_MLP}).*(c_fc|fc|in|up|up_proj|[a-z_]*1|h_to_4h)$", "mlp.c_fc", None),
    (r"c_attn|qkv|query_key_value|in_proj$", "attn.c_attn", None),
    *(
        (rf"(^|\.)(w_?|to_)?{letter}({word})?(_?(proj|lin|linear))?$", "attn.c_attn", part)
        for part, (letter, word) in enumerate((("q", "uery"), ("k", "ey"), ("v", "alue")))
    ),
    (rf"({_ATTENTION}).*(proj|out|o|wo|w_o|dense)$", "attn.c_proj", None),
    (r"(^|\.)(c_proj|o_proj|out_proj|proj|wo|w_o)$", "attn.c_proj", None),
)  # fmt: skip

_ABOVE = (
    (r"wpe|pos", "wpe"),
    (r"wte|tok|word|^embed", "wte"),
    (r"head|unembed|logits", "lm_head"),
    (r"ln|norm", "ln_f"),
)


def role(parameter: str) -> tuple[str, int | None] | None:
    """The checkpoint's name for a parameter by its own ("layers.2.attention.o_proj.weight" is
    "h.2.attn.c_proj.weight"), and the third of `attn.c_attn`; None if nothing is known of it."""
    path, _, kind = parameter.replace("in_proj_", "in_proj.").rpartition(".")
    if kind not in ("weight", "bias"):
        return None
    parts = path.lower().split(".")
    number = next((j for j, p in enumerate(parts) if p.isdigit() and j + 1 < len(parts)), None)
    if number is not None:
        tail = ".".join(parts[number + 1 :])
        for pattern, layer, third in _IN_BLOCK:
            if re.search(pattern, tail):
                return f"h.{int(parts[number])}.{layer}.{kind}", third
        return None
    for pattern, layer in _ABOVE:
        if re.search(pattern, parts[-1]):
            return f"{layer}.{kind}", None
    return None


def _lies(module: Module, home: str, weight: Tensor, third: int | None) -> Home | None:
    """The home if the weight fits there. A square one lies as the module's kind has it."""
    parameter = module.get_parameter(home)
    for transposed in (False, True):
        found = Home(home, third, transposed)
        if weight.dim() < 2 and transposed:
            return None
        if found.given(weight).shape == parameter.shape:
            if weight.dim() == 2 and not transposed and _keeps_out_in(module, found, weight):
                return Home(home, third, True)
            return found
    return None


def _keeps_out_in(module: Module, home: Home, weight: Tensor) -> bool:
    """Whether a square weight belongs to a module of PyTorch that keeps (out, in)."""
    import torch

    kind = module.get_submodule(home.module)
    square = home.given(weight).shape[0] == home.given(weight).shape[1]
    return square and isinstance(kind, torch.nn.Linear | torch.nn.MultiheadAttention)


def homes_by_name(module: Module, weights: Mapping[str, Tensor]) -> dict[str, list[Home]]:
    """Where each weight of the checkpoint belongs, as far as the parameters' names, and behind them
    their shapes and order in a block, tell. A head of its own (`lm_head.weight`) takes `wte.weight`
    where the checkpoint has none."""
    found: dict[str, list[Home]] = {name: [] for name in weights}
    spare: list[str] = []
    for parameter, _ in module.named_parameters():
        known = role(parameter)
        name, third = known or ("", None)
        if name == "lm_head.weight" and name not in weights:
            name = "wte.weight"
        if name == "wte.weight" or name.startswith("lm_head"):
            home: Home | None = Home(parameter)  # an embedding and a head both lie as (V, C)
            if name in weights and module.get_parameter(parameter).shape != weights[name].shape:
                home = None
        else:
            home = _lies(module, parameter, weights[name], third) if name in weights else None
        if home is None or any(h.part == third for h in found[name] if name != "wte.weight"):
            spare.append(parameter)
        else:
            found[name].append(home)
    _by_order(module, weights, found, spare)
    return found


def _by_order(
    module: Module,
    weights: Mapping[str, Tensor],
    found: dict[str, list[Home]],
    spare: Sequence[str],
) -> None:
    """Put the parameters of unknown names in order to the weights that have no home yet, the
    parameters of a block to that block's."""
    left = list(spare)
    for name in [name for name, homes in found.items() if not homes]:
        for parameter in left:
            number = re.search(r"\.(\d+)\.", f".{parameter}")
            block = re.match(r"h\.(\d+)\.", name)
            if (number and number[1]) != (block and block[1]):
                continue
            if home := _lies(module, parameter, weights[name], None):
                found[name].append(home)
                left.remove(parameter)
                break


def load_weights(module: Module, weights: Mapping[str, Tensor]) -> Module:
    """Copy GPT-2's weights (by their names in the checkpoint, `Config.shapes()`) into the
    parameters of a `torch.nn.Module` that hold them by any of the usual names, transposed for a
    `torch.nn.Linear`, in thirds where queries, keys and values have layers of their own.

    -> the module, in the weights' precision. Raises InputError for a weight that has no place, and
    NotImplementedError if that is a head of its own in a module whose head is the embedding.
    """
    import torch

    dtype = next(iter(weights.values())).dtype
    module.to(dtype)
    homes = homes_by_name(module, weights)
    for name, places in homes.items():
        whole = any(h.part is None for h in places) or len(places) == 3
        if not whole and name == "lm_head.weight":
            raise NotImplementedError(f"{type(module).__name__} has no head of its own")
        if not whole:
            there = ", ".join(f"{n} {tuple(p.shape)}" for n, p in module.named_parameters())
            raise InputError(
                f"load_weights finds no place for {name} {tuple(weights[name].shape)} in "
                f"{type(module).__name__}, whose parameters are {there[:400]}: copy the weights "
                "in build yourself"
            )
    with torch.no_grad():
        for name, places in homes.items():
            for home in places:
                module.get_parameter(home.parameter).copy_(home.given(weights[name]))
    return module


# ---- by value -----------------------------------------------------------------------------------


def homes_by_value(module: Module, weights: Mapping[str, Tensor]) -> dict[str, list[Home]]:
    """Where the weights are, by their numbers: whatever the names, and whoever loaded them. Of
    several weights with the same numbers, zeros say, the parameter's name decides or nothing."""
    like: dict[tuple[Any, ...], list[tuple[str, Home]]] = {}
    for name, weight in weights.items():
        for part in (None, 0, 1, 2) if ".attn.c_attn." in name else (None,):
            for transposed in (False, True) if weight.dim() == 2 else (False,):
                home = Home("", part, transposed)
                like.setdefault(_numbers(home.given(weight)), []).append((name, home))
    found: dict[str, list[Home]] = {}
    for parameter, p in module.named_parameters():
        same = like.get(_numbers(p), [])
        if len(same) > 1:
            same = [(name, h) for name, h in same if (name, h.part) == role(parameter)]
        if len(same) == 1:
            name, home = same[0]
            found.setdefault(name, []).append(replace(home, parameter=parameter))
    return found


def _numbers(t: Tensor) -> tuple[Any, ...]:
    """Equal for equal tensors."""
    return tuple(t.shape), t.detach().contiguous().numpy().tobytes()


def layers_found(module: Module, weights: Mapping[str, Tensor]) -> dict[str, str]:
    """GPT-2's layer ("h.2.attn.c_proj", "h.2.attn.c_attn.0" for the queries' own, "ln_f") -> the
    path of its module. A layer whose numbers are not the checkpoint's is looked for where the other
    blocks have it, and by its name after that. A module that is several layers in one is none."""
    found: dict[str, str] = {}
    for homes in (homes_by_value(module, weights), homes_by_name(module, weights)):
        at = dict[str, str]()
        for name, places in homes.items():
            for home in places:
                layer = name.rpartition(".")[0]
                layer += "" if home.part is None else f".{home.part}"
                at.setdefault(layer, home.module)
        found = at | found
        for layer, path in _as_in_other_blocks(found, weights).items():
            if _exists(module, path):
                found.setdefault(layer, path)
    often = Counter(found.values())
    return {layer: path for layer, path in found.items() if often[path] == 1}


def _as_in_other_blocks(found: Mapping[str, str], weights: Mapping[str, Tensor]) -> dict[str, str]:
    blocks = {int(name.split(".")[1]) for name in weights if name.startswith("h.")}
    there: dict[str, str] = {}
    for layer, path in found.items():
        if layer.startswith("h."):
            _, number, rest = layer.split(".", 2)
            for i in blocks:
                swapped = re.sub(rf"(?<![^.]){number}(?![^.])", str(i), path, count=1)
                there.setdefault(f"h.{i}.{rest}", swapped)
    return there


def _exists(module: Module, path: str) -> bool:
    try:
        module.get_submodule(path)
    except AttributeError:
        return False
    return True


def in_checkpoint(
    homes: Mapping[str, Sequence[Home]], read: Callable[[str], Tensor]
) -> dict[str, Tensor]:
    """What `read` gives of each parameter, its gradient say, as the checkpoint's weights lie. A
    weight of two parameters (an embedding and a head beside it) gets their sum."""
    import torch

    found = {}
    for name, places in homes.items():
        back = [(h.part, read(h.parameter)) for h in places]
        lying = [a.T if h.transposed else a for h, (_, a) in zip(places, back, strict=True)]
        if all(part is None for part, _ in back):
            found[name] = sum(lying[1:], lying[0])
        elif sorted(part for part, _ in back if part is not None) == [0, 1, 2]:
            by_part = {h.part: a for h, a in zip(places, lying, strict=True)}
            found[name] = torch.cat([by_part[part] for part in range(3)], -1)
    return found
