"""An implementation under test: found by its name, and called so that nothing it does ends a
check."""

import importlib
import importlib.util
import inspect
import sys
import traceback
import types
from collections.abc import Callable, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from minprefix import ops as _ops
from minprefix.conformance.clock import Clock
from minprefix.conformance.contract import ARGUMENTS, WHOLE
from minprefix.errors import InputError, counted
from minprefix.ops.contract import Array

#: how the name of a module of PyTorch begins
MAKES = ("hf:", "peft:")

#: what a report leaves out where hypothesis is missing
NO_HYPOTHESIS = "the drawn cases, because hypothesis is not installed"

#: what `asarray` may change of a number, relative to the largest: bfloat16 has 8 bits
COARSEST_GIVEN = 2.0**-7

_THIRDS = np.arange(1.0, 9.0) / 3  # no number that float32 holds


class NotOffered(Exception):
    """The implementation lacks what a check is about: reported, and no failure."""


class Broken(Exception):
    """A graded failure that is no wrong number: an exception, a signature, a thing that is no
    array. `kind` is one word for programs; `function`: the one that failed, where it is known."""

    def __init__(self, kind: str, sentence: str, function: str = "") -> None:
        super().__init__(sentence)
        self.kind, self.function = kind, function


class Implementation:
    """Functions to grade, and the name that people call them by. `in_a_hurry`: draw fewer shapes,
    take the first that fails, explain nothing; for a matrix of many implementations. `anew`: makes
    the same functions again, which remember nothing of earlier calls; None: they cannot be made."""

    def __init__(
        self,
        functions: object,
        name: str,
        in_a_hurry: bool = False,
        anew: Callable[[], "Implementation"] | None = None,
    ) -> None:
        self.anew = anew
        self.functions = functions
        self.name = name
        self.in_a_hurry = in_a_hurry
        self.clock = Clock()
        self._checked: dict[str, Callable[..., Any]] = {}  # functions with a right signature

    def __repr__(self) -> str:
        return f"Implementation({self.name!r}: {counted(len(self.offered()), 'function')})"

    def offered(self) -> list[str]:
        return [name for name in (*ARGUMENTS, *WHOLE) if self.has(name)]

    def has(self, function: str) -> bool:
        return callable(getattr(self.functions, function, None))

    def arguments(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """`inputs` with every array as the implementation's own kind."""
        return {name: self.own(a) for name, a in inputs.items()}

    def own(self, a: Any) -> Any:
        """`a`, or each array of the list `a`, as the implementation's own kind; an array that is
        given twice stays one. Raises Broken."""
        if isinstance(a, list):
            made = {id(each): self.own(each) for each in a}
            return [made[id(each)] for each in a]
        convert = getattr(self.functions, "asarray", None)
        if not isinstance(a, np.ndarray) or not callable(convert):
            return a
        try:
            return convert(a)
        except BaseException as error:
            said = f"asarray raised {told(error, _file_of(convert))}"
            raise Broken("exception", said, "asarray") from error

    @cached_property
    def rounds(self) -> bool:
        """Whether `asarray` rounds what is in float64, as one that makes float32 does. Such an
        implementation is graded in single precision, on the numbers that it was given."""
        return not np.array_equal(self._given(_THIRDS), _THIRDS)

    def given(self, a: Any) -> Any:
        """`a`, or each array in it, which may be a list or a dictionary of them, with the numbers
        that `asarray` makes of it."""
        if not self.rounds:
            return a
        if isinstance(a, list | tuple):
            return [self.given(each) for each in a]
        if isinstance(a, Mapping):
            return {name: self.given(each) for name, each in a.items()}
        return self._given(a) if isinstance(a, np.ndarray) and a.dtype.kind == "f" else a

    def _given(self, a: Array) -> Array:
        """What `asarray` makes of `a`. Numbers that are no rounded ones are its mistake, which no
        other right answer should hide: then `a`."""
        try:
            taken = self.asnumpy(self.own(a), "asarray(a)")
        except Broken:  # asnumpy may be for results alone
            return a
        if taken.shape != a.shape or taken.dtype.kind != "f":
            return a
        with np.errstate(all="ignore"):
            close = np.abs(taken - a) <= COARSEST_GIVEN * np.abs(a).max(initial=0.0)
        return taken if close.all() else a

    def asnumpy(self, a: Any, what: str) -> Array:
        """A result as a NumPy array. Raises Broken when it is none."""
        if type(a) is np.ndarray and a.dtype.kind in "fciub":
            return a
        own = getattr(self.functions, "asnumpy", None)
        if isinstance(a, list | tuple) and not callable(own):
            raise Broken("not an array", f"{what} is a {type(a).__name__}, expected an array")
        try:
            already = isinstance(a, np.ndarray | np.generic | float | int)
            array = np.asarray(own(a) if callable(own) and not already else a)
        except Exception as error:
            raise Broken("not an array", f"{what} is no array: {told(error)}") from error
        if array.dtype.kind in "fciub":
            return array
        kind = "None" if a is None else f"a {type(a).__name__}"
        kind += f" of {array.dtype}" if isinstance(a, np.ndarray) else ""
        raise Broken("not an array", f"{what} is {kind}, expected an array of numbers")

    def call(self, function: str, *arguments: Any) -> Any:
        """Raises NotOffered if it is missing or a stub, and Broken if it cannot be called so or
        raises."""
        f = getattr(self.functions, function, None)
        if not callable(f):
            raise NotOffered(function)
        if self._checked.get(function) != f:  # the model calls it hundreds of times
            self._check_signature(function, f, len(arguments))
            self._checked[function] = f
        self.clock.begin(function, arguments)
        try:
            return f(*arguments)
        except NotImplementedError as error:
            raise NotOffered(f"{function}: {error}" if str(error) else function) from error
        except BaseException as error:  # a KeyboardInterrupt, too, is graded
            said = f"{function} raised {told(error, _file_of(f))}"
            raise Broken("exception", said, function) from error
        finally:
            self.clock.end()

    def signature(self, function: str) -> tuple[str, ...]:
        """The arguments that the contract calls it with."""
        return ARGUMENTS.get(function, ("problem",))

    def _check_signature(self, function: str, f: Callable[..., Any], n: int) -> None:
        wanted = self.signature(function)
        try:
            signature = inspect.signature(f)
        except (TypeError, ValueError):  # written in C: the call itself will tell
            return
        names = tuple(signature.parameters)
        try:
            signature.bind(*range(n))
            fits = names == wanted or sorted(names) != sorted(wanted)  # in another order
        except TypeError:
            fits = False
        if not fits:
            said = f"the contract calls it with ({', '.join(wanted)}), in this order"
            raise Broken("signature", f"{function} takes {signature}, {said}", function)


def _file_of(function: object) -> str | None:
    return getattr(getattr(function, "__code__", None), "co_filename", None)


def told(error: BaseException, file: str | None = None) -> str:
    """The exception, and the last line of `file` that it came through; a notebook's cell is a file
    that does not exist."""
    kind = type(error).__name__
    try:
        text = f"{kind}: {error}" if str(error) else kind
    except Exception:  # an exception that cannot say what it is
        text = kind
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == file]
    name = f"{Path(file).name}, " if file and _exists(file) else ""
    where = f" ({name}line {lines[-1]})" if lines else ""
    return text.replace("\n", " ")[:300] + where


def load(spec: str | Implementation | object) -> Implementation:
    """An implementation by the name of a backend ("reference", "numpy"), a file ("my_ops.py"), a
    module ("package.my_ops"), an object in one of these ("package.my_ops:ops", "my_ops.py:ops"), or
    any object that has the functions; or a module of PyTorch by a file that builds it
    ("hf:my_module.py", "peft:my_module.py"; see `adapters`). A name that exists as a file is a
    file, colons and all, and so is one that ends in .py or has a slash or a backslash in it.

    Raises InputError, with a sentence, when it cannot be imported.
    """
    if isinstance(spec, Implementation):
        return spec
    if not isinstance(spec, str):
        return Implementation(spec, getattr(spec, "__name__", type(spec).__name__))
    if spec.startswith(MAKES) and not _exists(spec):
        from minprefix.conformance import adapters  # a problem's right answer needs more than NumPy

        adapters.check_installed(spec)
        file = spec.partition(":")[2].partition("?")[0]
        return Implementation(adapters.of_file(_object(file), spec), spec)
    functions = _object(spec)
    if inspect.isclass(functions):
        functions = _guarded(functions, f"{spec}()")
    # a module stays imported, a file is run again
    anew = partial(load, spec) if _is_file(_parts(spec)[0]) else None
    implementation = Implementation(functions, spec, anew=anew)
    if not implementation.offered():
        raise InputError(
            f"{spec} has none of the contract's functions (embed, layernorm, attention, ...): "
            "`minprefix check --new FILE` writes a file with all of them"
        )
    return implementation


def _object(spec: str) -> object:
    """The file or module, or the object in it. Raises InputError."""
    found, module_name, attribute = module_of(spec)
    for part in attribute.split(".") if attribute else ():
        if not hasattr(found, part):
            raise InputError(f"{module_name} has no {part!r}: expected one after the colon")
        found = getattr(found, part)
    return found


def module_of(spec: str) -> tuple[object, str, str]:
    """The backend, file or module that `spec` names, its name, and the name after the colon, "" if
    there is none. Raises InputError."""
    module_name, attribute = _parts(spec)
    if not module_name:
        raise InputError(f"{spec!r} names nothing to check: give a file or a module")
    if spec.endswith(":") and spec != module_name:
        raise InputError(f"{spec!r} names nothing after its colon: leave out the colon")
    if _exists(module_name) and Path(module_name).is_dir() and not module_name.isidentifier():
        raise InputError(f"{module_name} is a folder: give a file or a module in it")
    module: object
    if module_name in _ops.BACKENDS:
        module = _ops.get(module_name)
    elif _is_file(module_name) or any(c in module_name for c in SEPARATORS):
        module = _from_file(module_name)
    else:
        if "" not in sys.path:
            sys.path.append("")  # the console script leaves out the folder that one stands in
        module = _guarded(lambda: importlib.import_module(module_name), module_name)
    return module, module_name, attribute


def _parts(spec: str) -> tuple[str, str]:
    """The file or module, and the name after the colon, which is no part of a path."""
    head, _, attribute = spec.rpartition(":")
    if _exists(spec) or _is_file(spec) or not head or any(c in attribute for c in SEPARATORS):
        return spec, ""
    return head, attribute


SEPARATORS = "/\\"  # of any system: a path on Windows is no module here, either


def _is_file(name: str) -> bool:
    return name.endswith((".py", ".txt")) or (_exists(name) and Path(name).is_file())


def _exists(name: str) -> bool:
    try:
        return Path(name).exists()
    except (OSError, ValueError):  # too long for a path, or with a 0 in it
        return False


def _from_file(name: str) -> types.ModuleType:
    if not _exists(name):
        raise InputError(f"{name} does not exist: expected a Python file or the name of a module")
    path = Path(name).resolve()
    # `import my_ops` elsewhere finds this module, unless the name belongs to another one already
    own_name = path.stem if path.stem not in sys.modules else f"checked_{path.stem}"
    found = importlib.util.spec_from_file_location(own_name, path)
    if found is None or found.loader is None:
        raise InputError(f"{name} is not a Python file: expected one that ends in .py")
    module = importlib.util.module_from_spec(found)
    sys.path.append(str(path.parent))  # its neighbours can be imported, but hide no other module
    sys.modules[own_name] = module  # as `import` does: pickle and dataclasses look it up
    loader = found.loader
    _guarded(lambda: loader.exec_module(module), name, str(path))
    return module


def _guarded(run: Callable[[], Any], name: str, file: str | None = None) -> Any:
    try:
        return run()
    except (Exception, SystemExit) as error:
        said = f"{name} cannot be imported: {told(error, file)}"
        if isinstance(error, ImportError) and "relative import" in str(error):
            said += "; give it as a module of its package: package.ops"
        raise InputError(said) from error
