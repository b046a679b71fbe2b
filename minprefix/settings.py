"""The options of a training, each with its default and its help: the command line is made of them,
and a run records them."""

import math
from dataclasses import dataclass, field, fields
from typing import Any

from minprefix.errors import InputError, counted
from minprefix.ops import BACKENDS
from minprefix.optim import SCHEDULES

LOSSES = ("token-mean", "sentence-sum")
MATMULS = ("float32", "tf32")


@dataclass(frozen=True)
class Settings:
    """How a prefix is trained.

    `loss`: "token-mean", the mean over all target tokens of a batch; "sentence-sum", the sum over
    the tokens of each sentence, averaged over the sentences (the paper's code). `micro_batch_size`:
    at most this many sequences go through the model at a time; their gradients are added up before
    the step, which equals the whole batch (it is not a mean of means). None: all at once.
    `warmup`, `eval_every` and `save_every` count steps; the last step is always evaluated and
    saved. `schedule`: "linear", "cosine" (both to 0 at the last step) or "constant". `clip`: the
    largest global norm of a gradient, None for no limit. `dropout`: on the keys and values.
    `matmul`: "float32", or "tf32" on a GPU (`cupy_ops.matmul_precision`).

    Raises InputError for a value that no training can have.
    """

    steps: int = field(metadata={"help": "how many steps, instead of epochs"})
    batch_size: int = field(default=10, metadata={"help": "sequences in a step"})
    micro_batch_size: int | None = field(
        default=None, metadata={"help": "sequences at a time: less memory, the same result"}
    )
    lr: float = field(default=5e-3, metadata={"help": "learning rate"})
    warmup: int = field(default=0, metadata={"help": "steps in which the learning rate rises"})
    schedule: str = field(
        default="linear",
        metadata={"help": "how the learning rate falls", "choices": SCHEDULES},
    )
    weight_decay: float = field(default=0.0, metadata={"help": "AdamW's decoupled weight decay"})
    clip: float | None = field(
        default=1.0, metadata={"help": "largest norm of the gradient; 0 is no limit"}
    )
    dropout: float = field(default=0.0, metadata={"help": "on the prefix's keys and values"})
    loss: str = field(
        default="token-mean",
        metadata={
            "help": "the mean over a batch's tokens, or each sentence's sum, averaged",
            "choices": LOSSES,
        },
    )
    eval_every: int = field(default=100, metadata={"help": "steps between two validations"})
    save_every: int = field(default=50, metadata={"help": "steps between two saves"})
    seed: int = field(default=0, metadata={"help": "decides every random draw of the run"})
    backend: str = field(default="numpy", metadata={"choices": tuple(sorted(BACKENDS))})
    matmul: str = field(default="float32", metadata={"choices": MATMULS})

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "eval_every", "save_every"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise InputError(f"{name} is {value!r}: expected a whole number from 1")
        for f in fields(self):
            choices = f.metadata.get("choices")
            if choices and getattr(self, f.name) not in choices:
                raise InputError(
                    f"{f.name} is {getattr(self, f.name)!r}: expected one of {', '.join(choices)}"
                )
        for name, right, expected in (
            (
                "micro_batch_size",
                self.micro_batch_size is None or self.micro_batch_size >= 1,
                "at least 1",
            ),
            ("lr", 0 < self.lr < math.inf, "a positive number"),
            ("weight_decay", 0 <= self.weight_decay < math.inf, "0 or more"),
            (
                "clip",
                self.clip is None or self.clip > 0,
                "a positive number (--clip 0 is no limit)",
            ),
            ("dropout", 0 <= self.dropout < 1, "0 or more, below 1"),
            ("seed", self.seed >= 0, "0 or more"),
        ):
            if not right:
                raise InputError(f"{name} is {getattr(self, name)}: expected {expected}")
        if not 0 <= self.warmup < self.steps:
            raise InputError(
                f"warmup is {counted(self.warmup, 'step')}: expected 0 or more, fewer than the "
                f"{self.steps} of the run"
            )
        if self.matmul == "tf32" and self.backend != "cupy":
            raise InputError(
                f"matmul is 'tf32', which needs a GPU: the backend is {self.backend!r}"
            )


def _help_of(kind: Any, name: str) -> dict[str, Any]:
    return {"help": kind.__dataclass_fields__[name].metadata["help"]}


def _setting(name: str) -> Any:
    """The field of `Settings` with this name, its default and its help."""
    f = Settings.__dataclass_fields__[name]
    return field(default=f.default, metadata=f.metadata)


EPOCHS, LENGTH, MLP_LR, INIT_STD, INIT_BOUND = 5, 10, 5e-4, 0.02, 0.05


@dataclass(frozen=True)
class Job:
    """What is asked of `minprefix train`: the data, the prefix, and the fields of `Settings`.

    None: not asked for; `unsaid` says what that comes to. The order of the fields is the order in
    which a run records them.
    """

    model: str | None = None
    revision: str | None = None
    data: str | None = field(default=None, metadata={"help": ".jsonl, .csv, .tsv: source, target"})
    valid: str | None = field(
        default=None, metadata={"help": "pairs; the prefix that is best on them is kept"}
    )
    source_column: str | None = None
    target_column: str | None = None
    template: str = field(
        default="{source}\n{target}", metadata={"help": "how source and target are joined"}
    )
    skip_long: bool = field(
        default=False,
        metadata={"help": "leave out pairs that do not fit (without it, the file is refused)"},
    )
    prefix_length: int | None = field(
        default=None, metadata={"help": "slots of the prefix", "default": LENGTH}
    )
    init: str | None = field(
        default=None,
        metadata={
            "help": "how the prefix starts; with --mlp-hidden, network is the MLP's own start, "
            "prefix a trained prefix's MLP, and any other is what the MLP is first fitted to",
            "choices": ("normal", "uniform", "zero", "text", "prefix", "network"),
            "default": "normal; network with --mlp-hidden",
        },
    )
    init_std: float | None = field(
        default=None, metadata={"help": "with --init normal", "default": INIT_STD}
    )
    init_bound: float | None = field(
        default=None, metadata={"help": "with --init uniform", "default": INIT_BOUND}
    )
    init_text: str | None = field(default=None, metadata={"help": "with --init text"})
    init_prefix: str | None = field(
        default=None, metadata={"help": "with --init prefix: a trained one"}
    )
    mlp_hidden: int | None = field(
        default=None, metadata={"help": "train through an MLP of this width"}
    )
    layers: list[int] | None = field(
        default=None, metadata={"help": "only these layers see the prefix"}
    )
    position_offset: int | None = field(
        default=None,
        metadata={"help": "position of the first token", "default": "the number of slots"},
    )
    steps: int | None = field(default=None, metadata=_help_of(Settings, "steps"))
    epochs: int | None = field(
        default=None, metadata={"help": "how often each pair is seen", "default": EPOCHS}
    )
    batch_size: int = _setting("batch_size")
    micro_batch_size: int | None = _setting("micro_batch_size")
    lr: float | None = field(
        default=None,
        metadata=_help_of(Settings, "lr")
        | {"default": f"{Settings.lr:g}; {MLP_LR:g} with --mlp-hidden"},
    )
    warmup: int = _setting("warmup")
    schedule: str = _setting("schedule")
    weight_decay: float = _setting("weight_decay")
    clip: float | None = _setting("clip")
    dropout: float = _setting("dropout")
    loss: str = _setting("loss")
    eval_every: int = _setting("eval_every")
    valid_samples: int | None = field(
        default=200,
        metadata={
            "help": "validate on this many pairs of --valid, the same ones each time, or all"
        },
    )
    save_every: int = _setting("save_every")
    seed: int = _setting("seed")
    backend: str = _setting("backend")
    matmul: str = _setting("matmul")

    @classmethod
    def recorded(cls, options: dict[str, Any]) -> "Job":
        """The job that a run recorded. An earlier version took no sample of --valid."""
        return cls(**({"valid_samples": None} | options))

    def unsaid(self) -> dict[str, Any]:
        """What the options come to that were not given."""
        flat = self.mlp_hidden is None
        unsaid: dict[str, Any] = {
            "lr": Settings.lr if flat else MLP_LR,
            "init": "normal" if flat else "network",
        }
        init = self.init or unsaid["init"]
        if init == "normal":
            unsaid["init_std"] = INIT_STD
        if init == "uniform":
            unsaid["init_bound"] = INIT_BOUND
        if self.steps is None:
            unsaid["epochs"] = EPOCHS
        if init not in ("text", "prefix"):
            unsaid["prefix_length"] = LENGTH
        return unsaid

    def settings(self, examples: int) -> Settings:
        """For so many examples. Raises InputError as `Settings` does, and for no epoch."""
        chosen = {f.name: getattr(self, f.name) for f in fields(Settings)}
        unsaid = self.unsaid()
        if self.steps is None:
            epochs = unsaid["epochs"] if self.epochs is None else self.epochs
            if epochs < 1:
                raise InputError(f"--epochs is {epochs}: expected at least 1")
            chosen["steps"] = epochs * -(-examples // max(1, self.batch_size))
        if self.lr is None:
            chosen["lr"] = unsaid["lr"]
        if self.clip == 0:
            chosen["clip"] = None
        return Settings(**chosen)


@dataclass(frozen=True)
class Demo:
    """What is asked of `minprefix demo`."""

    prefix_length: int = field(default=LENGTH, metadata=_help_of(Job, "prefix_length"))
    steps: int = field(default=250, metadata={"help": "how many steps"})
    batch_size: int = field(default=16, metadata=_help_of(Settings, "batch_size"))
    lr: float = field(default=1e-2, metadata=_help_of(Settings, "lr"))
    seed: int = _setting("seed")
    backend: str = _setting("backend")

    @classmethod
    def recorded(cls, options: dict[str, Any]) -> "Demo":
        return cls(**options)

    def unsaid(self) -> dict[str, Any]:
        return {}

    def settings(self) -> Settings:
        return Settings(
            steps=self.steps,
            batch_size=self.batch_size,
            lr=self.lr,
            warmup=min(20, max(0, self.steps - 1)),
            eval_every=25,
            seed=self.seed,
            backend=self.backend,
        )
