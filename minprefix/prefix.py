"""The prefix: keys and values that every attention layer of a frozen model sees before the real
tokens.

Li & Liang, 2021. A `Prefix` holds them as they are; an `MLPPrefix` computes them from a small
network (their section 4.3) that is trained in their place and folded away at the end.
"""

import math
from collections.abc import Sequence
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from minprefix.errors import InputError, counted
from minprefix.ops import DEVICES, home, to
from minprefix.ops.reference import linear, linear_backward, linear_backward_params
from minprefix.optim import AdamW
from minprefix.placement import LEAVE_SOME, check_layers, check_offset, ranges, shape_of
from minprefix.storage.saved import Saved, flatten, unflatten

if TYPE_CHECKING:
    from minprefix.gpt2 import Config
    from minprefix.model import GPT2
    from minprefix.storage.provenance import Base, Evaluation, Provenance


class Prefix:
    """kv: (layers, 2, NH, P, hs); [:, 0] are keys, [:, 1] values.

    `layers`: which layers of the model see it, ascending; all by default. The others see no prefix
    (`subset` says whether they were named). `position_offset`: the position of the first real
    token. P by default (the paper's rule and PEFT's); 0 is the rule of the `adapters` library. It
    is part of what was trained.
    """

    def __init__(
        self,
        kv: np.ndarray,
        layers: Sequence[int] | None = None,
        position_offset: int | None = None,
    ) -> None:
        if kv.ndim != 5 or kv.shape[1] != 2:
            raise InputError(
                f"prefix has shape {kv.shape}: expected (layers, 2, heads, P, head size)"
            )
        if kv.dtype.kind not in "fc":
            raise InputError(f"prefix has {kv.dtype} numbers: expected floating-point ones")
        self.parameters = {"kv": kv}
        self.subset = layers is not None
        self.layers = check_layers(layers, kv.shape[0])
        self.position_offset = check_offset(position_offset, kv.shape[3])

    # ---- how a prefix starts ----

    @staticmethod
    def normal(
        config: "Config",
        length: int,
        std: float = 0.02,
        seed: int = 0,
        layers: Sequence[int] | None = None,
        position_offset: int | None = None,
        dtype: str = "float32",
    ) -> "Prefix":
        """Independent draws from N(0, std^2)."""
        if not 0 <= std < math.inf:
            raise InputError(f"std is {std}: expected 0 or more, finite")
        shape = shape_of(config, length, layers, position_offset)
        kv = _rng(seed).normal(0, std, shape).astype(dtype)
        return Prefix(kv, layers, position_offset)

    @staticmethod
    def uniform(
        config: "Config",
        length: int,
        bound: float = 0.05,
        seed: int = 0,
        layers: Sequence[int] | None = None,
        position_offset: int | None = None,
        dtype: str = "float32",
    ) -> "Prefix":
        """Independent draws from [-bound, bound)."""
        if not 0 <= bound < math.inf:
            raise InputError(f"bound is {bound}: expected 0 or more, finite")
        shape = shape_of(config, length, layers, position_offset)
        kv = _rng(seed).uniform(-bound, bound, shape).astype(dtype)
        return Prefix(kv, layers, position_offset)

    @staticmethod
    def zero(
        config: "Config",
        length: int,
        layers: Sequence[int] | None = None,
        position_offset: int | None = None,
        dtype: str = "float32",
    ) -> "Prefix":
        """All zeros. Not the same as no prefix: a zero key still draws its share of the softmax."""
        shape = shape_of(config, length, layers, position_offset)
        return Prefix(np.zeros(shape, dtype), layers, position_offset)

    @staticmethod
    def text(
        model: "GPT2",
        text: str | Sequence[int],
        layers: Sequence[int] | None = None,
        position_offset: int | None = None,
    ) -> "Prefix":
        """The keys and values that `text` (or token ids) leaves in the frozen model: P is its
        length. With the default layers and positions, the same as prompting with it."""
        ids = model.encode(text) if isinstance(text, str) else list(text)
        if isinstance(text, str) and text and not ids:
            raise InputError(f"the prefix's text {model.nothing_left(text)}")
        if not ids:
            raise InputError("the text of a text prefix is empty: give at least one token")
        kv = model.keys_values(ids)
        if layers is not None:
            kv = kv[list(check_layers(layers, len(layers), model.config.n_layer))]
        return Prefix(kv, layers, position_offset)

    @staticmethod
    def mlp(
        config: "Config",
        length: int,
        hidden: int = 512,
        seed: int = 0,
        onto: "Prefix | None" = None,
        layers: Sequence[int] | None = None,
        position_offset: int | None = None,
        dtype: str = "float32",
    ) -> "MLPPrefix":
        """A prefix through an MLP; `onto`: fit it to the keys and values of this one first
        (`MLPPrefix.fit`)."""
        return MLPPrefix.random(config, length, hidden, seed, onto, layers, position_offset, dtype)

    # ---- what a prefix is ----

    @property
    def kv(self) -> np.ndarray:
        """(layers, 2, NH, P, hs)."""
        return self.parameters["kv"]

    @property
    def backend(self) -> str:
        """Where its numbers live: "numpy" or "cupy"."""
        return home(next(iter(self.parameters.values())))

    def to(self, where: str) -> "Prefix":
        """The prefix on the GPU ("cupy") or on the host ("numpy"), a copy; itself if it is there
        already. Raises InputError if there is no GPU."""
        if where == self.backend:
            return self
        moved = copy(self)
        moved.parameters = {name: to(a, where) for name, a in self.parameters.items()}
        return moved

    @property
    def length(self) -> int:
        """P."""
        return self.kv.shape[3]

    @property
    def n_parameters(self) -> int:
        """How many numbers are trained."""
        return sum(a.size for a in self.parameters.values())

    def by_layer(self, n_layer: int, empty: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        """Keys and values (NH, P, hs) for each layer of the model; `empty`, twice, where it sees no
        prefix."""
        past = [(empty, empty)] * n_layer
        for i, (k, v) in zip(self.layers, self.kv, strict=True):
            past[i] = (k, v)
        return past

    def backward(self, dkv: np.ndarray) -> dict[str, np.ndarray]:
        """dkv, of the shape of kv -> the gradient of each parameter, by name."""
        return {"kv": dkv}

    def like(self, kv: np.ndarray) -> "Prefix":
        """A flat prefix with other keys and values, for the same layers and positions."""
        return Prefix(kv, self.layers if self.subset else None, self.position_offset)

    def fold(self) -> "Prefix":
        """A flat prefix with the same keys and values."""
        return self.like(self.kv.copy())

    def masked(self, mask: np.ndarray) -> "Prefix":
        """A flat prefix with kv * mask: dropout, for one step. Its gradient for this one is dkv *
        mask."""
        return self.like(self.kv * mask)

    def check(self, config: "Config", name: str) -> None:
        """Raises InputError if this prefix cannot sit in a model of this shape."""
        n, _, NH, _, hs = self.kv.shape
        if (NH, hs) != (config.n_head, config.head_size):
            raise InputError(
                f"prefix has {counted(NH, 'head')} of size {hs}, model {name!r} has "
                f"{config.n_head} of size {config.head_size}: this prefix was trained on another "
                "base"
            )
        if self.position_offset >= config.n_positions:
            raise InputError(
                f"position_offset is {self.position_offset}, model {name!r} has positions 0 to "
                f"{config.n_positions - 1}: none is left for a token; {LEAVE_SOME}"
            )
        fits = max(self.layers, default=0) < config.n_layer if self.subset else n == config.n_layer
        if not fits:
            raise InputError(
                f"prefix has keys for layers {ranges(self.layers)}, model {name!r} has "
                f"{counted(config.n_layer, 'layer')}: this prefix was trained on another base"
            )

    def __repr__(self) -> str:
        _, _, NH, P, hs = self.kv.shape
        return (
            f"{type(self).__name__}({counted(P, 'slot')} in layers {ranges(self.layers)} x "
            f"{counted(NH, 'head')} of size {hs}, tokens from position {self.position_offset}, "
            f"{self.n_parameters} parameters, {self.kv.dtype}, {DEVICES[self.backend]})"
        )

    def _repr_html_(self) -> str:
        from minprefix.show import notebook

        return notebook.prefix(self)

    # ---- on disk ----

    def save(
        self,
        directory: str | Path,
        model: "GPT2 | None" = None,
        training: dict[str, Any] | None = None,
        metrics: dict[str, Any] | None = None,
        evaluation: "Evaluation | None" = None,
        base: "Base | None" = None,
    ) -> None:
        """Write a PEFT directory (see `minprefix.storage.artifact`), in place of what may be there:
        all of it, or nothing.

        `model` is the base, whose fingerprints are recorded. `training` says how the prefix came to
        be, `metrics` how good it is, `evaluation` what `minprefix verify` is to compute again.
        `base`: `model.identity()`, from a caller that has it already.

        Raises InputError for numbers that no file can hold, if the disk refuses, and if another
        process writes there.
        """
        from minprefix.storage.artifact import write_prefix

        if model is not None:
            base = base or model.identity()
        write_prefix(self.saved, directory, base, training, metrics, evaluation)

    @staticmethod
    def load(
        directory: str | Path,
        model: "GPT2 | None" = None,
        dtype: str = "float32",
        base: "Base | None" = None,
    ) -> "Prefix":
        """Read a directory that `save` or PEFT wrote; with `model`, refuse one trained on another
        base.

        `base`: as in `save`. Raises InputError for a prefix whose recorded base is another (both
        fingerprints are in the sentence) or whose shape does not fit, and for damaged files.
        """
        from minprefix.storage.artifact import read_prefix

        saved, about = read_prefix(directory, dtype)
        prefix = Prefix.of(saved)
        prefix._check_base(directory, about, model, base)
        return prefix

    @property
    def saved(self) -> Saved:
        """What the files of a prefix hold."""
        layers = self.layers if self.subset else None
        return Saved(self.to("numpy").kv, layers, self.position_offset)

    @staticmethod
    def of(saved: Saved) -> "Prefix":
        """A flat prefix, from what files hold."""
        return Prefix(saved.kv, saved.layers, saved.position_offset)

    def _check_base(
        self,
        directory: str | Path,
        about: "Provenance | None",
        model: "GPT2 | None",
        base: "Base | None" = None,
    ) -> None:
        """Raises InputError if `model` is not the base that this prefix was trained on."""
        from minprefix.storage.artifact import check_base

        if model is None:
            return
        self.check(model.config, model.name)
        if about is not None and about.base.sha256 is not None:
            check_base(directory, about.base, base or model.identity(), model.folder)


class MLPPrefix(Prefix):
    """kv = reshape(tanh(E W1 + b1) W2 + b2): an embedding E (P, C) through one hidden layer to (P,
    2*layers*C).

    Row-major over (P, layers, 2, NH, hs), as PEFT lays it out. The network is what is trained and
    saved for resuming; `fold` keeps only the keys and values.
    """

    def __init__(
        self,
        parameters: dict[str, np.ndarray],
        n_head: int,
        layers: Sequence[int] | None = None,
        position_offset: int | None = None,
    ) -> None:
        self.parameters = parameters
        self.n_head = n_head
        P, C = parameters["embedding"].shape
        self.subset = layers is not None
        self.layers = check_layers(layers, parameters["bias_2"].shape[0] // (2 * C))
        self.position_offset = check_offset(position_offset, P)

    @classmethod
    def random(
        cls,
        config: "Config",
        length: int,
        hidden: int = 512,
        seed: int = 0,
        onto: Prefix | None = None,
        layers: Sequence[int] | None = None,
        position_offset: int | None = None,
        dtype: str = "float32",
    ) -> "MLPPrefix":
        """E from N(0, 1); both linear layers uniform in +-1/sqrt(inputs), as PyTorch starts them. A
        zero last layer would leave everything below it without gradient."""
        if hidden < 1:
            raise InputError(f"the MLP has a hidden width of {hidden}: expected at least 1")
        rng = _rng(seed)
        n = shape_of(config, length, layers, position_offset)[0]
        C, out = config.n_embd, n * 2 * config.n_embd
        a, b = C**-0.5, hidden**-0.5
        parameters = {
            "embedding": rng.normal(0, 1, (length, C)),  # (P, C)
            "weight_1": rng.uniform(-a, a, (C, hidden)),
            "bias_1": rng.uniform(-a, a, hidden),
            "weight_2": rng.uniform(-b, b, (hidden, out)),
            "bias_2": rng.uniform(-b, b, out),
        }
        prefix = cls(
            {name: p.astype(dtype) for name, p in parameters.items()},
            config.n_head,
            layers,
            position_offset,
        )
        if onto is not None:
            prefix.fit(onto.to("numpy").kv)
        return prefix

    @property
    def length(self) -> int:
        return self.parameters["embedding"].shape[0]

    @property
    def kv(self) -> np.ndarray:
        return self._forward()[1]

    def _forward(self) -> tuple[np.ndarray, np.ndarray]:
        p = self.parameters
        h = np.tanh(linear(p["embedding"], p["weight_1"], p["bias_1"]))  # (P, hidden)
        flat = linear(h, p["weight_2"], p["bias_2"])  # (P, layers*2*C)
        hs = p["embedding"].shape[1] // self.n_head
        return h, unflatten(flat, len(self.layers), self.n_head, hs)

    def backward(self, dkv: np.ndarray) -> dict[str, np.ndarray]:
        p = self.parameters
        h, _ = self._forward()  # (P, hidden)  far cheaper than the model, so not worth keeping
        dflat = flatten(dkv)  # (P, layers*2*C)
        dweight_2, dbias_2 = linear_backward_params(dflat, h)
        dh = linear_backward(dflat, p["weight_2"])  # (P, hidden)
        du = dh * (1 - h * h)  # (P, hidden)  tanh' = 1 - tanh^2
        dweight_1, dbias_1 = linear_backward_params(du, p["embedding"])
        dembedding = linear_backward(du, p["weight_1"])  # (P, C)
        return {
            "embedding": dembedding,
            "weight_1": dweight_1,
            "bias_1": dbias_1,
            "weight_2": dweight_2,
            "bias_2": dbias_2,
        }

    def fit(self, kv: np.ndarray, steps: int = 500, lr: float = 1e-4) -> list[float]:
        """Regress the network onto the keys and values `kv` (Li & Liang, 2021, appendix: real-word
        start) with `steps` of Adam on the mean squared error. -> the error before each step."""
        if kv.shape != self.kv.shape:
            raise InputError(f"cannot fit a prefix of shape {self.kv.shape} to one of {kv.shape}")
        adam, errors = AdamW(), list[float]()
        if kv.size == 0:  # P = 0: there is nothing to fit
            return errors
        for _ in range(steps):
            delta = self.kv - kv
            errors.append(float((delta * delta).mean()))
            adam.step(self.parameters, self.backward(2 * delta / delta.size), lr)
        return errors

    @property
    def saved(self) -> Saved:
        return super().saved._replace(mlp=self.to("numpy").parameters)

    @staticmethod
    def load(
        directory: str | Path,
        model: "GPT2 | None" = None,
        dtype: str = "float32",
        base: "Base | None" = None,
    ) -> "MLPPrefix":
        """The MLP that was kept beside a saved prefix, to train it further. Raises InputError where
        there is none, and for all that `Prefix.load` refuses."""
        from minprefix.storage.artifact import read_mlp

        parameters, about = read_mlp(directory, dtype)
        own = about.prefix
        assert own is not None  # `read_mlp`
        mlp = MLPPrefix(parameters, about.base.n_head, own.layers, own.position_offset)
        mlp._check_base(directory, about, model, base)
        return mlp


#: what a batch may see: one prefix, several of which each sequence names one (None: no prefix), or
#: none at all
Prefixes = Prefix | Sequence[Prefix | None] | None


def dropout_mask(shape: tuple[int, ...], rate: float, rng: "np.random.Generator") -> np.ndarray:
    """0 with probability `rate`, else 1 / (1 - rate): multiplied onto kv while training."""
    return (rng.random(shape) >= rate) / (1 - rate)


def _rng(seed: int) -> "np.random.Generator":
    if seed < 0:
        raise InputError(f"seed is {seed}: expected 0 or more")
    return np.random.default_rng(seed)
