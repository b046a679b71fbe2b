"""Where inside a module the suite's tensors pass: hooks on the modules that give them.

A tensor found so says where a module goes wrong. It accuses nobody: a module may lay out its
queries as it likes, as long as what comes out is right (`trusted`).
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from minprefix.conformance.adapters.weights import Module, Tensor, layers_found
from minprefix.errors import InputError
from minprefix.gpt2 import Config
from minprefix.ops.contract import Array

#: GPT-2's layer -> the tensors of the suite that go into its module, and that come out
_OF_LAYER: dict[str, tuple[str, str]] = {
    "ln_1": ("resid_pre", "ln_1.out"),
    "attn.c_attn": ("", "attn.qkv"),
    **{f"attn.c_attn.{j}": ("", f"attn.{letter}") for j, letter in enumerate("qkv")},
    "attn.c_proj": ("attn.z", "attn.out"),
    "ln_2": ("resid_mid", "ln_2.out"),
    "mlp.c_fc": ("", "mlp.pre"),
    "mlp.c_proj": ("mlp.post", "mlp.out"),
}

#: a tensor -> the name of its gradient
_GRADIENTS = {
    "ln_1.out": "ln_1.dout",
    "attn.z": "attn.dz",
    "resid_mid": "dresid_mid",
    "ln_2.out": "ln_2.dout",
    "mlp.pre": "mlp.dpre",
    "mlp.post": "mlp.dpost",
    "mlp.out": "dresid_post",
    **{f"attn.{letter}": f"attn.d{letter}" for letter in "qkv"},
    "ln_f.in": "ln_f.din",
    "ln_f.out": "ln_f.dout",
    "logits": "dlogits",
}

_VALUES = {gradient: value for value, gradient in _GRADIENTS.items()}

#: what a map of names may name, of block i
_NAMED = tuple(dict.fromkeys(out for _, out in _OF_LAYER.values()))


def places(
    module: Module, config: Config, weights: Mapping[str, Tensor], names: Mapping[str, str]
) -> dict[str, tuple[str, str]]:
    """Tensor of the suite -> the path of a module, and whether it is what goes "in" or comes "out".
    `names`: as a person wrote them down, "blocks.{i}.attn.out" -> "layers.{i}.attention.proj"."""
    found: dict[str, tuple[str, str]] = {}
    for layer, path in layers_found(module, weights).items():
        if not path:
            continue
        block, short = re.match(r"(h\.\d+\.)?(.*)", layer).groups()  # type: ignore[union-attr]
        if block:
            into, out = _OF_LAYER[short]
            block = block.replace("h.", "blocks.", 1)
        elif short == "ln_f":
            into, out, block = "ln_f.in", "ln_f.out", ""
        else:
            continue
        found |= {
            f"{block}{name}": (path, way) for name, way in ((into, "in"), (out, "out")) if name
        }
    for name, path in names.items():
        for i in range(config.n_layer) if "{i}" in name else (0,):
            whole = name.replace("{i}", str(i)), path.replace("{i}", str(i))
            found[whole[0]] = (whole[1], "out")
    return found


def check_names(names: object, where: str) -> dict[str, str]:
    """The map of names. Raises InputError if it is none."""
    if not isinstance(names, Mapping):
        raise InputError(
            f"{where} is a {type(names).__name__}: expected names of tensors and paths"
        )
    for name, path in names.items():
        block, _, short = str(name).rpartition("blocks.{i}.")
        if not (name == "ln_f.out" or (block == "" and name != short and short in _NAMED)):
            known = ", ".join(f"blocks.{{i}}.{each}" for each in _NAMED)
            raise InputError(f"{where} names {name!r}: expected one of {known}, ln_f.out")
        if not isinstance(path, str) or ("{i}" in name) != ("{i}" in path):
            raise InputError(
                f"{where} has {path!r} for {name}: expected the path of a module, with {{i}} for "
                "the block's number where the name has it"
            )
    return dict(names)


class Watch:
    """What passes at the places during a forward, and its gradients after the backward. The rows of
    a batch come in groups: `end_of_group` after each forward."""

    def __init__(self, name: str) -> None:
        self._name = name  # what people call the module by
        self._now: dict[str, tuple[Array, Tensor]] = {}
        self._rows: dict[int, dict[str, tuple[Array, Tensor, int]]] = {}
        self._hooks: dict[int, list[Any]] = {}  # by the module's id

    def on(self, module: Module, at: Mapping[str, tuple[str, str]]) -> None:
        """Hang the hooks into a module, once. Raises InputError for a path that is not there."""
        if id(module) in self._hooks:
            return
        by_path: dict[str, dict[str, str]] = {}
        for name, (path, way) in at.items():
            by_path.setdefault(path, {})[way] = name
        hooks = self._hooks[id(module)] = []
        for path, ways in by_path.items():
            try:
                place = module.get_submodule(path)
            except AttributeError:
                names = ", ".join(list(dict(module.named_modules()))[1:12])
                raise InputError(
                    f"the map of names has {path!r}, which {self._name} has not: its modules are "
                    f"{names}, ..."
                ) from None
            hooks.append(place.register_forward_hook(self._keeper(ways)))

    def close(self) -> None:
        for hook in (hook for hooks in self._hooks.values() for hook in hooks):
            hook.remove()

    def _keeper(self, ways: Mapping[str, str]) -> Any:
        def keep(_: Module, inputs: tuple[Any, ...], output: Any) -> None:
            for way, t in (("in", inputs[0] if inputs else None), ("out", output)):
                t = t[0] if isinstance(t, tuple) and t else t
                if way in ways and hasattr(t, "retain_grad"):
                    self.keep(ways[way], t)

        return keep

    def keep(self, name: str, t: Tensor) -> None:
        if t.requires_grad:
            t.retain_grad()
        self._now[name] = (t.detach().cpu().numpy().copy(), t)

    def end_of_group(self, rows: Sequence[int]) -> None:
        """The forward was one of these sequences of the problem."""
        for j, b in enumerate(rows):
            self._rows[b] = {name: (a, t, j) for name, (a, t) in self._now.items()}
        self._now = {}

    def tensors(
        self, config: Config, sequences: Sequence[Sequence[int]], loss_from: Sequence[int]
    ) -> dict[str, Array]:
        """By the suite's names, after the backward. Those of `ln_f` and the logits hold the rows
        that predict a target alone. A place whose shape is another is left out."""
        found: dict[str, Array] = {}
        names = set.intersection(*(set(kept) for kept in self._rows.values()))
        for name in sorted(names):
            for gradient in (False, True):
                parts = [
                    self._of(name, b, T, loss_from[b], gradient)
                    for b, T in enumerate(map(len, sequences))
                ]
                if all(a is not None for a in parts):
                    joined = np.concatenate([a for a in parts if a is not None])
                    found |= _shaped(name, joined, gradient, config)
        return found

    def _of(self, name: str, b: int, T: int, start: int, gradient: bool) -> Array | None:
        """Of sequence b (T, ...)."""
        value, t, j = self._rows[b][name]
        if gradient:
            if t.grad is None:
                return None
            value = t.grad.detach().cpu().numpy()
        if value.ndim < 2 or value.shape[1] != T:
            return None
        a = value[j].reshape(T, -1)
        return a[start - 1 : T - 1] if name.startswith(("ln_f", "logits")) else a


def _shaped(name: str, a: Array, gradient: bool, config: Config) -> dict[str, Array]:
    """A joined tensor under its name or names, or nothing if it cannot be it."""
    block, short = re.match(r"(blocks\.\d+\.)?(.*)", name).groups()  # type: ignore[union-attr]
    block, N, C = block or "", len(a), config.n_embd
    if short == "attn.qkv":
        if a.shape != (N, 3 * C):
            return {}
        thirds = {f"attn.{letter}": a[:, j * C : (j + 1) * C] for j, letter in enumerate("qkv")}
    else:
        width = {"logits": config.vocab_size}
        width |= dict.fromkeys(("mlp.pre", "mlp.post"), config.n_inner or 4 * C)
        if a.shape[1] != width.get(short, C):
            return {}
        thirds = {short: a}
    found = {}
    for each, part in thirds.items():
        heads = each in ("attn.q", "attn.k", "attn.v", "attn.z")
        part = part.reshape(N, config.n_head, config.head_size) if heads else part
        if not gradient:
            found[block + each] = part
        elif each in _GRADIENTS:
            found[block + _GRADIENTS[each]] = part
    return found


# ---- which of them to believe -------------------------------------------------------------------

#: tensors that a module of any make has, in one form: where one is right, all before it was right
_FORWARD, _BACKWARD = (
    re.compile(r"(blocks\.\d+\.resid_(pre|mid)|ln_f\.in|logits|loss)$"),
    re.compile(r"(dlogits|ln_f\.din|blocks\.\d+\.dresid_(post|mid)|prefix\.0\.d[kv])$"),
)


def trusted(names: Sequence[str], wrong: Mapping[str, bool], asked: Sequence[str]) -> list[str]:
    """Which tensors to compare, of those that were found by hooks. `names`: all that were given, in
    the order in which they arise; `wrong`: whether each is; `asked`: those that the suite asks for.

    Where all that is asked for is right, no other. Else not those that are wrong and come before a
    residual stream that is right: they are laid out in another way, or the place is another one.
    """
    if not any(wrong[name] for name in asked if name in wrong):
        return [name for name in names if name in asked]
    misplaced = set()
    for stream in (_FORWARD, _BACKWARD):
        right = [j for j, name in enumerate(names) if stream.match(name) and not wrong[name]]
        half = [n for n in names if (_is_gradient(n)) == (stream is _BACKWARD)]
        for name in half:
            if right and wrong[name] and names.index(name) < right[-1]:
                misplaced.add(_kind(name))
    return [name for name in names if name in asked or _kind(name) not in misplaced]


def _kind(name: str) -> str:
    return re.sub(r"\d+", "{i}", name)


def _is_gradient(name: str) -> bool:
    return name.rpartition(".")[2].startswith("d")


def value_of(tensor: str) -> str:
    """The tensor that a gradient is of, "blocks.1.attn.z" of "blocks.1.attn.dz"; any other is its
    own."""
    block, short = re.match(r"(blocks\.\d+\.)?(.*)", tensor).groups()  # type: ignore[union-attr]
    return (block or "") + _VALUES.get(short, short)
