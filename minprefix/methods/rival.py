"""What the rivals share: they score and decode by a model, a prefix and an implementation of the
ops that together compute what the adapted model computes."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

from minprefix.batch import Batch
from minprefix.errors import InputError, counted, listed
from minprefix.generate import Decoding, generate_ids
from minprefix.gpt2 import Config
from minprefix.method import Method
from minprefix.model import GPT2, loss, operations
from minprefix.ops.contract import Array, Ops
from minprefix.prefix import Prefix


class Applied(NamedTuple):
    """What computes the adapted model's numbers, for those who only run it forwards."""

    model: GPT2
    prefix: Prefix | None
    ops: Ops


class Rival(Method):
    """A method whose forward is that of some model behind some prefix: a subclass says which
    (`applied`)."""

    @abstractmethod
    def applied(self, model: GPT2, ops: Ops) -> Applied: ...

    def loss(
        self, model: GPT2, batch: Batch, reduction: str = "mean", ops: str | Ops | None = None
    ) -> float:
        self.check(model.config, model.name)
        model, prefix, own = self.applied(model, operations(model, ops))
        return loss(model, batch, prefix, reduction, own)

    def logits(self, model: GPT2, batch: Batch, ops: str | Ops | None = None) -> Array:
        """-> (N, V): as `GPT2.logits`."""
        self.check(model.config, model.name)
        model, prefix, own = self.applied(model, operations(model, ops))
        return model.logits(batch, prefix, own)

    def generate_ids(
        self,
        model: GPT2,
        prompts: Sequence[Sequence[int]],
        decoding: Decoding | None = None,
        ops: str | Ops | None = None,
        numbers: Sequence[int] | None = None,
        limits: Sequence[int] | None = None,
    ) -> list[list[int]]:
        self.check(model.config, model.name)
        model, prefix, own = self.applied(model, operations(model, ops))
        return generate_ids(model, prompts, prefix, None, decoding, own, numbers, limits)


def check_parts(method: str, parameters: dict[str, Array], expected: dict[str, int]) -> None:
    """Raises InputError unless these are the parameters of a method, by name and number of
    axes."""
    found = {key: a.ndim for key, a in parameters.items()}
    if found != expected or not found:
        held = listed((key, a.shape) for key, a in parameters.items())
        wanted = listed(expected) if expected else "at least one"
        raise InputError(f"{method} has the parameters {held}: expected {wanted}")


def check_shapes(
    method: Method, expected: dict[str, tuple[int, ...]], config: Config, name: str
) -> None:
    """Raises InputError unless the parameters of a method have the shapes that model `name` wants
    of it."""
    found = {key: a.shape for key, a in method.parameters.items()}
    if found == expected:
        return
    key = next(key for key in [*expected, *found] if found.get(key) != expected.get(key))
    raise InputError(
        f"{method.name} has {key!r} of shape {found.get(key)}, model {name!r} "
        f"({counted(config.n_layer, 'layer')} x {config.n_embd} wide) needs {expected.get(key)}: "
        "it was trained on another base"
    )
