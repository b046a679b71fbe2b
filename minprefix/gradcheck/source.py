"""A forward and its backward, found in somebody's file by the name of the function."""

import inspect
import re
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from minprefix.conformance.implementation import module_of
from minprefix.errors import InputError, note
from minprefix.gradcheck import cases, pieces
from minprefix.gradcheck.report import Report

#: how people call a function f and its backward
FORWARDS = ("{f}", "{f}_forward", "{f}_fwd", "forward_{f}")
BACKWARDS = ("{f}_backward", "{f}_bwd", "{f}_grad", "{f}_vjp", "backward_{f}", "grad_{f}")


class Source(NamedTuple):
    """`name`: the forward's in the file; `piece`: the piece of that name, "" if there is none;
    `inputs`: the file's own `NAME_inputs`; `asarray` takes NumPy's arrays to the file's kind;
    `asked`: the name that was asked for; `backward_name`: the backward's in the file; `found`: the
    call that finds it, for a reproducer."""

    name: str
    forward: Callable[..., Any]
    backward: Callable[..., Any]
    piece: str
    inputs: Callable[[], Any] | None = None
    asarray: Callable[[Any], Any] | None = None
    asked: str = ""
    backward_name: str = ""
    found: str = "find(...)"

    def named(self, report: Report) -> Report:
        """The report, with the functions' own names in it."""
        names = {"forward": self.name, "backward": self.backward_name}
        for finding in report.findings:
            finding.function = names.get(finding.function, finding.function)
        return report

    def lines(self, *names: str) -> str:
        """Python that finds it again, as `mine`, and its two functions; it imports `names`, too."""
        return (
            f"from minprefix.gradcheck.source import {', '.join(('find', *names))}\n"
            f"(mine,) = {self.found}\n"
            "forward, backward = mine.forward, mine.backward\n"
        )


def find(spec: str, backward: str | None = None) -> list[Source]:
    """The function of "my.py:rmsnorm" (also "package.module:rmsnorm"), which may be a class or an
    object with the methods forward and backward; or, of "my.py" alone, every function that has a
    backward. `backward`: its name, where it is not one of the usual ones. Raises InputError."""
    module, place, name = module_of(spec)
    if name:
        return [_source(module, place, name, backward)]
    if backward is not None:
        raise InputError(f"--backward {backward}: give the forward's name as well: {place}:NAME")
    names = [name for name, a in vars(module).items() if _has_backward(module, name, a)]
    if not names:
        said = f"{place} has no function with a backward (rmsnorm and rmsnorm_backward)"
        raise InputError(f"{said}: name them as {place}:FORWARD with --backward NAME")
    found = []
    for name in names:
        try:
            found.append(_source(module, place, name, None))
        except InputError as error:  # a class that cannot be made, say
            note(str(error))
    return found


def piece_of(name: str) -> str:
    """The piece that RMSNorm, rms_norm or rmsnorm_forward is named after, or ""."""
    short = {each.replace("_", ""): each for each in cases.CASES}
    bare = re.sub("_(forward|fwd)$|^forward_", "", name)
    return short.get(bare.replace("_", "").lower(), "")


def _has_backward(module: Any, name: str, a: Any) -> bool:
    if inspect.isclass(a):
        return a.__module__ == module.__name__ and _is_layer(a)
    here = inspect.isfunction(a) and a.__module__ == module.__name__
    return here and bool(_partner(module, name))


def _is_layer(a: Any) -> bool:
    return callable(getattr(a, "forward", None)) and callable(getattr(a, "backward", None))


def _of(patterns: Sequence[str], name: str) -> list[str]:
    return [pattern.replace("{f}", name) for pattern in patterns]


def _partner(module: Any, name: str) -> str:
    """The name of the backward of the function `name`, or ""."""
    bare = re.sub("_(forward|fwd)$|^forward_", "", name)
    tried = [each for each in _of(BACKWARDS, bare) if callable(getattr(module, each, None))]
    return tried[0] if tried else ""


def _source(module: Any, place: str, name: str, backward: str | None) -> Source:
    found = next((each for each in _of(FORWARDS, name) if hasattr(module, each)), "")
    if not found:  # my.py:rmsnorm may be the class RMSNorm
        bare = name.replace("_", "").lower()
        alike = [n for n, a in vars(module).items() if n.lower() == bare and _is_layer(a)]
        found = alike[0] if alike else ""
    if not found:
        own = [n for n, a in vars(module).items() if callable(a) and not n.startswith("_")]
        raise InputError(f"{place} has no {name!r}: it has {', '.join(own) or 'no function'}")
    forward: Any = getattr(module, found)
    back: Any
    shown = found
    if _is_layer(forward) and backward is None:
        forward, back = of_layer(forward, f"{place}:{found}")
        shown, called = f"{found}.forward", f"{found}.backward"
    else:
        called = backward or _partner(module, found)
        back = getattr(module, called, None)
        if not callable(back):
            tried = backward or " or ".join(_of(BACKWARDS, name)[:3])
            said = f"{place} has no {tried}, the backward of {found}"
            raise InputError(f"{said}: write it, or say its name with --backward NAME")
    inputs = getattr(module, f"{name}_inputs", None) or getattr(module, f"{found}_inputs", None)
    asarray = getattr(module, "asarray", None)
    call = f"find({f'{place}:{name}'!r}{f', {backward!r}' if backward else ''})"
    return Source(shown, forward, back, piece_of(name), inputs, asarray, name, called, call)


# ---- layers: a class, or an object of one -------------------------------------------------------


def of_layer(layer: Any, name: str = "the layer") -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The methods `forward(x, ...)` and `backward(dout)` as two functions: what the object keeps is
    the cache. A class is made anew for each forward. The methods of PyTorch's autograd functions,
    forward(ctx, x, ...) or forward(x, ...) with setup_context(ctx, inputs, output), and
    backward(ctx, dout), are called with a context."""
    is_class = inspect.isclass(layer)
    if is_class and _parameters(layer.backward)[:1] == ["ctx"]:
        return _with_context(layer)
    if is_class:
        try:
            layer()
        except TypeError as error:
            said = f"{name} cannot be made without arguments ({error})"
            raise InputError(f"{said}: make one in the file, mine = {layer.__name__}(...), and "
                             "name that") from error  # fmt: skip

    def forward(*inputs: Any) -> tuple[Any, Any]:
        own = layer() if is_class else layer
        result = own.forward(*inputs)
        pair = isinstance(result, tuple) and len(result) == 2
        return (result[0], (own, result[1])) if pair and takes_cache else (result, (own,))

    def backward(dout: Any, kept: Any) -> Any:
        return kept[0].backward(dout, *kept[1:])

    names = _parameters(layer.backward)
    takes_cache = len(names) - is_class > 1
    _signed(forward, layer.forward, is_class)
    return forward, backward


def _signed(forward: Callable[..., Any], method: Callable[..., Any], without_first: int) -> None:
    """Give the function the method's arguments, without self or ctx."""
    signature = inspect.signature(method)
    rest = list(signature.parameters.values())[without_first:]
    vars(forward)["__signature__"] = signature.replace(parameters=rest)


def _with_context(layer: Any) -> tuple[Callable[..., Any], Callable[..., Any]]:
    def forward(*inputs: Any) -> tuple[Any, Any]:
        context = SimpleNamespace(saved_tensors=(), needs_input_grad=(True,) * len(inputs))
        context.save_for_backward = lambda *arrays: vars(context).update(saved_tensors=arrays)
        if takes_context:
            return layer.forward(context, *inputs), context
        out = layer.forward(*inputs)
        layer.setup_context(context, inputs, out)
        return out, context

    def backward(dout: Any, context: Any) -> Any:
        return layer.backward(context, dout)

    takes_context = _parameters(layer.forward)[:1] == ["ctx"]
    _signed(forward, layer.forward, takes_context)
    return forward, backward


def _parameters(f: Callable[..., Any]) -> list[str]:
    return list(inspect.signature(f).parameters)


# ---- inputs -------------------------------------------------------------------------------------


def inputs_of(source: Source, shapes: Sequence[str]) -> list[Any] | None:
    """What the file's NAME_inputs() gives, or random numbers of the `shapes` ("x=4x8"); None where
    there is neither. Raises InputError."""
    names = _parameters(source.forward)
    if shapes:
        given = dict(_of_shape(each) for each in shapes)
        wrong = [name for name in given if name not in names]
        if wrong:
            said = f"{source.name} has no argument {wrong[0]}"
            raise InputError(f"--input {wrong[0]}: {said}, it takes ({', '.join(names)})")
    elif source.inputs is None:
        return None
    else:
        try:
            made = source.inputs()
        except Exception as error:
            said = f"{source.asked}_inputs() raised {type(error).__name__}: {error}"
            raise InputError(said.replace("\n", " ")[:300]) from error
        if not isinstance(made, dict):
            return list(made) if isinstance(made, tuple | list) else [made]
        given = made
    own = source.asarray or (lambda a: a)
    given = {name: own(a) if isinstance(a, np.ndarray) else a for name, a in given.items()}
    try:
        bound = inspect.signature(source.forward).bind(**given)
        bound.apply_defaults()
    except TypeError as error:
        said = f"{source.name}({', '.join(names)}) cannot be called with {', '.join(given)}"
        raise InputError(f"{said}: {error}") from error
    return list(bound.args)


def _of_shape(text: str) -> tuple[str, Any]:
    name, _, shape = text.partition("=")
    if not name.isidentifier() or not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", shape):
        said = "expected an argument and its shape, as x=4x8"
        raise InputError(f"--input {text}: {said}; inputs of another kind come from NAME_inputs()")
    rng = np.random.default_rng(sum(map(ord, name)))
    return name, rng.normal(size=[int(n) for n in shape.split("x")])


def signature(piece: str) -> str:
    """ "(x, gain, eps)"."""
    return f"({', '.join(_parameters(getattr(pieces, piece)))})"
