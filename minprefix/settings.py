"""The options of a training, each with its default and its help: the command line is made of them,
and a run records them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from minprefix.errors import InputError, counted
from minprefix.ops import BACKENDS
from minprefix.optim import SCHEDULES

LOSSES = ("token-mean", "sentence-sum")
LOSS_HELP = "the mean over a batch's tokens, or each sentence's sum, averaged"
MATMULS = ("float32", "tf32")
COUNTS = ("steps", "batch_size", "eval_every", "save_every")


def option(default: Any, help: str = "", **more: Any) -> Any:
    """A field with its help text. `more`: its `choices` or `metavar`, and as `unsaid` the default
    that the help names where the field has none."""
    return field(default=default, metadata={"help": help, **more})


@dataclass(frozen=True)
class Settings:
    """How a prefix, or one of its rivals, is trained.

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
    batch_size: int = option(10, "sequences in a step")
    micro_batch_size: int | None = option(None, "sequences at a time: less memory, the same result")
    lr: float = option(5e-3, "learning rate")
    warmup: int = option(0, "steps in which the learning rate rises")
    schedule: str = option("linear", "how the learning rate falls", choices=SCHEDULES)
    weight_decay: float = option(0.0, "AdamW's decoupled weight decay")
    clip: float | None = option(1.0, "largest norm of the gradient; 0 is no limit")
    dropout: float = option(0.0, "on the prefix's keys and values")
    loss: str = option(LOSSES[0], LOSS_HELP, choices=LOSSES)
    eval_every: int = option(100, "steps between two validations")
    save_every: int = option(50, "steps between two saves")
    seed: int = option(0, "decides every random draw of the run")
    backend: str = option("numpy", choices=tuple(sorted(BACKENDS)))
    matmul: str = option("float32", choices=MATMULS)

    def __post_init__(self) -> None:
        for f in fields(self):
            value, choices = getattr(self, f.name), f.metadata.get("choices")
            if f.name in COUNTS and (not isinstance(value, int) or value < 1):
                raise InputError(f"{f.name} is {value!r}: expected a whole number from 1")
            if choices and value not in choices:
                raise InputError(f"{f.name} is {value!r}: expected one of {', '.join(choices)}")
        micro, clip = self.micro_batch_size, self.clip
        for name, right, expected in (
            ("micro_batch_size", micro is None or micro >= 1, "at least 1"),
            ("lr", 0 < self.lr < math.inf, "a positive number"),
            ("weight_decay", 0 <= self.weight_decay < math.inf, "0 or more"),
            ("clip", clip is None or clip > 0, "a positive number (--clip 0 is no limit)"),
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


def _setting(name: str, kind: Any = Settings, **more: Any) -> Any:
    """The field of `kind` with this name, its default and its help; `more`: what differs."""
    f = kind.__dataclass_fields__[name]
    return option(**({"default": f.default, **f.metadata} | more))


EPOCHS, LENGTH, MLP_LR, INIT_STD, INIT_BOUND = 5, 10, 5e-4, 0.02, 0.05

# ---- the methods ------------------------------------------------------------------------------

PREFIX, SAME = "prefix", "p-tuning-v2"  # P-tuning v2 (Liu et al., 2022) is prefix-tuning
#: method -> its learning rate, which was good on the demo's task
RATES = {
    PREFIX: Settings.lr, "full": 5e-4, "top-layers": 1e-3, "bitfit": 1e-2, "prompt-tuning": 3e-2,
    "p-tuning": 3e-3, "infix": 1e-2, "lora": 5e-3, "adapters": 3e-3,
}  # fmt: skip
METHODS = (PREFIX, SAME, *list(RATES)[1:])
#: method -> the values of --init that it takes, the first by default; the others have a start of
#: their own, or go on from a saved one
INITS = {
    PREFIX: ("normal", "uniform", "zero", "text", "prefix", "network"),
    "prompt-tuning": ("normal", "vocabulary", "text", "prefix"),
    "infix": ("normal", "prefix"),
}
#: option -> the methods that have it
BELONGS = {
    "prefix_length": (PREFIX, "prompt-tuning", "p-tuning", "infix"),
    "init_std": (PREFIX, "prompt-tuning", "infix"),
    "init_bound": (PREFIX,),
    "init_text": (PREFIX, "prompt-tuning"),
    "mlp_hidden": (PREFIX,),
    "layers": (PREFIX,),
    "position_offset": (PREFIX,),
    "dropout": (PREFIX, "lora"),
    "rank": ("lora",),
    "alpha": ("lora",),
    "targets": ("lora",),
    "bottleneck": ("adapters",),
    "placement": ("adapters",),
    "top_layers": ("top-layers",),
    "encoder": ("p-tuning",),
    "encoder_hidden": ("p-tuning",),
}
#: what a rival's own options come to that are not given
OWN = {
    "rank": 8, "targets": ["attn.c_attn"], "bottleneck": 8, "placement": "houlsby", "top_layers": 2,
    "encoder": "mlp", "encoder_hidden": 128,
}  # fmt: skip


@dataclass(frozen=True)
class Job:
    """What is asked of `minprefix train`: the data, what is trained, and the fields of `Settings`.

    None: not asked for; `unsaid` says what that comes to. The order of the fields is the order in
    which a run records them. Raises InputError for an unknown method, and for an option or a start
    that the method does not have.
    """

    model: str | None = None
    revision: str | None = None
    data: str | None = option(None, ".jsonl, .csv, .tsv: source, target", metavar="FILE")
    valid: str | None = option(
        None, "pairs; the prefix that is best on them is kept", metavar="FILE"
    )
    source_column: str | None = None
    target_column: str | None = None
    template: str = option("{source}\n{target}", "how source and target are joined")
    skip_long: bool = option(
        False, "leave out pairs that do not fit (without it, the file is refused)"
    )
    prefix_length: int | None = option(
        None, "slots of the prefix, the prompt or the infix", unsaid=LENGTH
    )
    init: str | None = option(
        None,
        "how the prefix starts: normal, uniform, zero, text, prefix (a trained one), for a prompt "
        "also vocabulary; with --mlp-hidden, network is the MLP's own start, prefix a trained "
        "prefix's MLP, and any other is what the MLP is first fitted to",
        metavar="HOW",
        choices=("normal", "uniform", "zero", "text", "vocabulary", "prefix", "network"),
        unsaid="normal; network with --mlp-hidden",
    )
    init_std: float | None = option(None, "with --init normal", unsaid=INIT_STD)
    init_bound: float | None = option(None, "with --init uniform", unsaid=INIT_BOUND)
    init_text: str | None = option(None, "with --init text")
    init_prefix: str | None = option(
        None, "with --init prefix: a trained one, of the same --method", metavar="DIR"
    )
    mlp_hidden: int | None = option(None, "train through an MLP of this width")
    layers: list[int] | None = option(  # noqa: RUF009
        None, "only these layers see the prefix", metavar="I,J,..."
    )
    position_offset: int | None = option(
        None, "position of the first token", unsaid="the number of slots"
    )
    steps: int | None = _setting("steps", default=None)
    epochs: int | None = option(None, "how often each pair is seen", unsaid=EPOCHS)
    batch_size: int = _setting("batch_size")
    micro_batch_size: int | None = _setting("micro_batch_size")
    lr: float | None = _setting(
        "lr",
        default=None,
        unsaid=f"{Settings.lr:g}; {MLP_LR:g} with --mlp-hidden; each --method has its own",
    )
    warmup: int = _setting("warmup")
    schedule: str = _setting("schedule")
    weight_decay: float = _setting("weight_decay")
    clip: float | None = _setting("clip")
    dropout: float = _setting(
        "dropout", help="on the prefix's keys and values, or on what LoRA's A sees"
    )
    loss: str = _setting("loss")
    eval_every: int = _setting("eval_every")
    valid_samples: int | None = option(
        200,
        "validate on this many pairs of --valid, the same ones each time, or all",
        metavar="N|all",
    )
    save_every: int = _setting("save_every")
    seed: int = _setting("seed")
    backend: str = _setting("backend")
    matmul: str = _setting("matmul")
    method: str | None = option(
        None,
        "what is trained: prefix, p-tuning-v2 (the same), full (all weights), top-layers, bitfit "
        "(biases), prompt-tuning, p-tuning, infix, lora, adapters",
        metavar="M",
        choices=METHODS,
        unsaid=PREFIX,
    )
    rank: int | None = option(None, "lora: r", unsaid=OWN["rank"])
    alpha: float | None = option(None, "lora: its scale is alpha/r", unsaid="r")
    targets: list[str] | None = option(  # noqa: RUF009
        None,
        "lora: the linear layers, or the ends of their names",
        metavar="NAME,...",
        unsaid="attn.c_attn",
    )
    bottleneck: int | None = option(None, "adapters: their width", unsaid=OWN["bottleneck"])
    placement: str | None = option(
        None,
        "adapters: behind attention and MLP, or the MLP alone",
        choices=("houlsby", "pfeiffer"),
        unsaid=OWN["placement"],
    )
    top_layers: int | None = option(None, "top-layers: how many", unsaid=OWN["top_layers"])
    encoder: str | None = option(
        None, "p-tuning: what the prompt comes from", choices=("mlp", "lstm"), unsaid=OWN["encoder"]
    )
    encoder_hidden: int | None = option(
        None, "p-tuning: the encoder's width", unsaid=OWN["encoder_hidden"]
    )

    def __post_init__(self) -> None:
        if self.method is not None and self.method not in METHODS:
            expected = f"expected one of {', '.join(METHODS)}"
            raise InputError(f"--method is {self.method!r}: {expected}")
        for name, methods in BELONGS.items():
            default = self.__dataclass_fields__[name].default
            if getattr(self, name) != default and self.trained not in methods:
                raise InputError(
                    f"{_typed(name)} belongs to --method {_either(methods)}, and --method is "
                    f"{self.method or PREFIX}"
                )
        starts = INITS.get(self.trained, ("prefix",))
        if self.init is not None and self.init not in starts:
            raise InputError(
                f"--init {self.init} is no start of --method {self.method or PREFIX}: expected "
                f"{_either(starts)}"
            )

    @property
    def trained(self) -> str:
        """The method, "prefix" where it has another name or none."""
        return PREFIX if self.method is None or self.method == SAME else self.method

    def own(self) -> dict[str, Any]:
        """The options that this method alone has, with every default filled in."""
        names = [name for name, methods in BELONGS.items() if methods == (self.trained,)]
        given = {name: getattr(self, name) for name in names}
        return {name: OWN.get(name) if v is None else v for name, v in given.items()}

    @classmethod
    def recorded(cls, options: dict[str, Any]) -> "Job":
        """The job that a run recorded. An earlier version took no sample of --valid."""
        return cls(**({"valid_samples": None} | options))

    def unsaid(self) -> dict[str, Any]:
        """What the options come to that were not given."""
        method = self.trained
        lr, start = RATES[method], INITS.get(method, (None,))[0]
        if self.mlp_hidden is not None:
            lr, start = MLP_LR, "network"
        unsaid: dict[str, Any] = {"lr": lr, "init": start, "method": method}
        if method != PREFIX:
            unsaid |= {name: value for name, value in OWN.items() if method in BELONGS[name]}
        init = self.init or start
        if init == "normal":
            unsaid["init_std"] = INIT_STD
        if init == "uniform":
            unsaid["init_bound"] = INIT_BOUND
        if self.steps is None:
            unsaid["epochs"] = EPOCHS
        if init not in ("text", "prefix") and method in BELONGS["prefix_length"]:
            unsaid["prefix_length"] = LENGTH
        return unsaid

    def settings(self, examples: int) -> Settings:
        """For so many examples. Raises InputError as `Settings` does, and for no epoch."""
        unsaid, chosen = self.unsaid(), {f.name: getattr(self, f.name) for f in fields(Settings)}
        if self.steps is None:
            epochs = unsaid["epochs"] if self.epochs is None else self.epochs
            if epochs < 1:
                raise InputError(f"--epochs is {epochs}: expected at least 1")
            chosen["steps"] = epochs * -(-examples // max(1, self.batch_size))
        chosen["lr"] = unsaid["lr"] if self.lr is None else self.lr
        chosen["clip"] = self.clip or None  # 0 is no limit
        return Settings(**chosen)


def _typed(name: str) -> str:
    """An option as it is typed."""
    return f"--{name.replace('_', '-')}"


def _either(names: Sequence[str]) -> str:
    """a, b or c"""
    *first, last = names
    return f"{', '.join(first)} or {last}" if first else last


@dataclass(frozen=True)
class Demo:
    """What is asked of `minprefix demo`."""

    prefix_length: int = _setting("prefix_length", Job, default=LENGTH, help="slots of the prefix")
    steps: int = option(250, "how many steps")
    batch_size: int = _setting("batch_size", default=16)
    lr: float = _setting("lr", default=1e-2)
    seed: int = _setting("seed")
    backend: str = _setting("backend")

    @classmethod
    def recorded(cls, options: dict[str, Any]) -> "Demo":
        return cls(**options)

    def unsaid(self) -> dict[str, Any]:
        return {}

    def settings(self) -> Settings:
        same = {name: getattr(self, name) for name in ("steps", "batch_size", "lr", "seed")}
        warmup = min(20, max(0, self.steps - 1))
        return Settings(**same, warmup=warmup, eval_every=25, backend=self.backend)
