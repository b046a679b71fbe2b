"""The face that every rival of prefix-tuning shows to the rest: the loss, its gradient, decoding.

A prefix needs none of this; `minprefix.methods` has the rivals. What takes a prefix also takes one
of them: `loss_and_grad`, `loss`, `generate`, `evaluate`, `train`.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from minprefix.ops import DEVICES, home, to
from minprefix.ops.contract import Array, Ops

if TYPE_CHECKING:
    import numpy as np

    from minprefix.batch import Batch
    from minprefix.generate import Decoding
    from minprefix.gpt2 import Config
    from minprefix.model import GPT2
    from minprefix.storage.provenance import Base, Evaluation
    from minprefix.storage.saved import SavedMethod


class Method(ABC):
    """A way of adapting a frozen model.

    `parameters`: what is trained, by name. `options`: the facts that rebuild the method from its
    parameters (`of`), as JSON holds them. `position_offset`: how many positions it takes from a
    sequence.
    """

    #: the word for it on the command line and in files
    name: ClassVar[str]
    parameters: dict[str, Array]
    position_offset: int = 0

    @property
    @abstractmethod
    def options(self) -> dict[str, Any]: ...

    @classmethod
    @abstractmethod
    def of(cls, options: dict[str, Any], parameters: dict[str, Array]) -> Self:
        """The method that these facts and numbers describe, the inverse of `options` and
        `parameters`. Raises InputError where they do not fit each other."""

    @abstractmethod
    def check(self, config: "Config", name: str) -> None:
        """Raises InputError if this cannot adapt model `name`, which has this shape."""

    @abstractmethod
    def loss_and_grads(
        self,
        model: "GPT2",
        batch: "Batch",
        reduction: str = "mean",
        ops: str | Ops | None = None,
        rng: "np.random.Generator | None" = None,
    ) -> tuple[float, dict[str, Array]]:
        """The loss of the batch's targets, and its gradient for each parameter, by name. `rng`:
        draws the dropout of a training step; None drops nothing. Raises as
        `minprefix.model.loss_and_grad`."""

    @abstractmethod
    def loss(
        self, model: "GPT2", batch: "Batch", reduction: str = "mean", ops: str | Ops | None = None
    ) -> float:
        """The loss alone."""

    @abstractmethod
    def generate_ids(
        self,
        model: "GPT2",
        prompts: Sequence[Sequence[int]],
        decoding: "Decoding | None" = None,
        ops: str | Ops | None = None,
        numbers: Sequence[int] | None = None,
        limits: Sequence[int] | None = None,
    ) -> list[list[int]]:
        """See `minprefix.generate.generate_ids`."""

    @property
    def n_parameters(self) -> int:
        """How many numbers are trained."""
        return sum(a.size for a in self.parameters.values())

    @property
    def backend(self) -> str:
        """Where its numbers live: "numpy" or "cupy"."""
        return home(next(iter(self.parameters.values())))

    def to(self, where: str) -> Self:
        """The method on the GPU ("cupy") or on the host ("numpy"), a copy; itself if it is there
        already."""
        if where == self.backend:
            return self
        moved = copy(self)
        moved.parameters = {name: to(a, where) for name, a in self.parameters.items()}
        return moved

    # ---- on disk (`minprefix.methods.load` reads it) ----

    def save(
        self,
        directory: str | Path,
        model: "GPT2 | None" = None,
        training: dict[str, Any] | None = None,
        metrics: dict[str, Any] | None = None,
        evaluation: "Evaluation | None" = None,
        base: "Base | None" = None,
    ) -> None:
        """Write its files (see `minprefix.storage.rivals`), in place of what may be there: all of
        them, or nothing. The arguments are those of `Prefix.save`; `model` or `base` is needed.

        Raises InputError for numbers that no file can hold, if the disk refuses, and if another
        process writes there.
        """
        from minprefix.storage.rivals import write_rival

        if model is not None:
            base = base or model.identity()
        write_rival(self.saved, directory, base, training, metrics, evaluation)

    @property
    def saved(self) -> "SavedMethod":
        """What its files hold."""
        from minprefix.storage.saved import SavedMethod

        return SavedMethod(self.name, self.options, self.to("numpy").parameters)

    def __repr__(self) -> str:
        said = ", ".join(f"{name} {value!r}" for name, value in self.options.items())
        dtype = next(iter(self.parameters.values())).dtype
        return (
            f"{type(self).__name__}({said}{', ' * bool(said)}{self.n_parameters} parameters, "
            f"{dtype}, {DEVICES[self.backend]})"
        )
