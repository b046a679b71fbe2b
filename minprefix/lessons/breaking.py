"""Breaking the package on purpose: a bug of the zoo planted in it, and a guard around the check
that should notice."""

import difflib
import importlib
import linecache
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from minprefix.conformance.zoo import all_bugs, changed_source, plant_modules
from minprefix.errors import InputError


class Planted:
    """The package with one bug of the zoo in it; the imported package stays sound.

    `planted("row-sum-dropped").reference` holds the operations with the bug in them. A bug above
    the operations changes `GPT2`, `Prefix`, `Batch`, `loss_and_grad`, `generate` and the modules
    (`gpt2`, `prefix`, `model`, `optim`, `train`): take all of them from here. A name that the bug
    leaves sound raises AttributeError. `see` says what one would notice, `lesson` why it is wrong;
    printing it shows the changed lines. Raises InputError for an unknown bug, with the nearest
    known ones.
    """

    def __init__(self, name: str) -> None:
        bugs = all_bugs()
        if not isinstance(name, str) or name not in bugs:
            near = difflib.get_close_matches(str(name).lower(), bugs, 3, 0.4)
            meant = f"did you mean {', '.join(near)}?" if near else "tests/zoo/ZOO.md lists them"
            raise InputError(f"the zoo has no bug {name!r}: {meant}")
        self.name = name
        self.see, self.lesson = bugs[name].see, bugs[name].lesson
        self._bug = bugs[name]
        self._modules = plant_modules(self._bug)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        package = importlib.import_module("minprefix")
        made = {full.rpartition(".")[2]: module for full, module in self._modules.items()}
        if name in made and name not in package.__all__:  # generate is a function, and its module
            return made[name]
        if self._bug.module == "ops.reference":  # loss_and_grad would compute with sound ones
            raise AttributeError(
                f"{self.name} lies in the operations and changes no {name!r}: hand them on, as in "
                f"loss_and_grad(..., ops=planted({self.name!r}).reference)"
            )
        for module in (*made.values(), package):
            if hasattr(module, name):
                return getattr(module, name)
        raise AttributeError(
            f"{self.name} lies in minprefix.{self._bug.module}: neither the planted modules "
            f"({', '.join(made)}) nor minprefix have {name!r}"
        )

    def source(self) -> str:
        """The whole text of the module with the bug in it."""
        return changed_source(self._bug)

    def __str__(self) -> str:
        where = f"minprefix/{self._bug.module.replace('.', '/')}.py"
        return f"the zoo's {self.name}, in {where}\n{self._bug.diff()}"

    __repr__ = __str__


planted = Planted


class Caught:
    """What a guard caught; printing it shows the assert that fired, and its message."""

    def __init__(self) -> None:
        self.error: AssertionError | None = None

    def __str__(self) -> str:
        if self.error is None:
            return "nothing fired"
        last = traceback.extract_tb(self.error.__traceback__)[-1]
        line = linecache.getline(last.filename, last.lineno or 0).strip()
        return "\n".join(part for part in (f"fired: {line}", str(self.error)) if part)

    __repr__ = __str__


@contextmanager
def caught() -> Iterator[Caught]:
    """The guard of a "break it yourself" cell: an assert that fails inside it ends the block and
    not the lesson. Without the guard the lesson stops there. Raises AssertionError if nothing
    failed: then the check is blind to the bug."""
    seen = Caught()
    try:
        yield seen
    except AssertionError as error:
        seen.error = error
    else:
        raise AssertionError("no assert fired: nothing in this block notices the bug")
