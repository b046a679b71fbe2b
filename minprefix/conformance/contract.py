"""What the suite asks of an implementation: which functions, and which tensors each of them gives.

There are four levels, and each is graded as far as it is implemented:

    ops        the functions of `minprefix.ops.contract.Ops`
    model      `run_model(problem)`, `run_decoding(problem)`: a whole GPT-2 with prefixes
    methods    `run_method(problem)`: a GPT-2 adapted by a rival of prefix-tuning
    training   `run_training(problem)`: AdamW on the prefixes

The ops are enough: the project's own model, methods and training then run over them
(`minprefix.conformance.house`). An implementation that has a whole model but no such ops, as PEFT
has, offers the other functions alone.

Arrays that do not live in NumPy: an implementation may define `asarray(a)`, which takes a NumPy
array to its own kind before a call, and `asnumpy(a)`, which takes its results back.
"""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from minprefix.gpt2 import Config
from minprefix.methods import METHODS
from minprefix.ops.contract import Array, Ops

LEVELS = ("ops", "model", "methods", "training")

#: op -> its functions in the order in which the model calls them: the forward, which has the op's
#: name, and the backwards, which may consume the cache
FUNCTIONS: dict[str, tuple[str, ...]] = {
    "embed": ("embed", "embed_backward_params"),
    "layernorm": ("layernorm", "layernorm_backward_params", "layernorm_backward"),
    "linear": ("linear", "linear_backward_params", "linear_backward"),
    "gelu": ("gelu", "gelu_backward"),
    "attention": ("attention", "attention_backward"),
    "cross_entropy": ("cross_entropy", "cross_entropy_backward"),
}

#: function -> the tensors that it gives, and their axes. `[]` stands for one tensor a sequence;
#: `cache.` for a field of the cache, graded where the cache has it: an implementation may use
#: others.
TENSORS: dict[str, dict[str, str]] = {
    "embed": {"x": "N C"},
    "embed_backward_params": {"dwte": "V C", "dwpe": "n_positions C"},
    "layernorm": {"out": "N C", "cache.xhat": "N C", "cache.rstd": "N 1", "cache.gain": "C"},
    "layernorm_backward_params": {"dgain": "C", "dbias": "C"},
    "layernorm_backward": {"dx": "N C"},
    "linear": {"out": "N out"},
    "linear_backward_params": {"dweight": "in out", "dbias": "out"},
    "linear_backward": {"dx": "N in"},
    "gelu": {"out": "N F", "cache.x": "N F", "cache.tanh": "N F"},
    "gelu_backward": {"dx": "N F"},
    "attention": dict.fromkeys(("z", "cache.q", "cache.k", "cache.v"), "N NH hs")
    | dict.fromkeys(("cache.prefix_k[]", "cache.prefix_v[]"), "NH P hs")
    | {"cache.offsets": "B+1", "cache.pattern[]": "NH T P+T"},
    "attention_backward": dict.fromkeys(("dq", "dk", "dv"), "N NH hs")
    | dict.fromkeys(("dprefix_k[]", "dprefix_v[]"), "NH P hs"),
    "cross_entropy": {"loss": "", "cache.probs": "M V", "cache.targets": "M", "cache.weights": "M"},
    "cross_entropy_backward": {"dlogits": "M V"},
}


def level_of(op: str) -> str:
    """The level of what stands before the slash in a check's id."""
    if op in METHODS:
        return "methods"
    return "ops" if op in FUNCTIONS else "training" if op == "training" else "model"


def results(function: str) -> list[str]:
    """What a function returns, in order: a cache is one thing, and so is a list."""
    names = (name.split(".")[0].removesuffix("[]") for name in TENSORS[function])
    return list(dict.fromkeys(names))


#: functions that a frozen model never calls: it is no failure to leave them out
OPTIONAL = ("embed_backward_params", "layernorm_backward_params", "linear_backward_params")

#: function -> its arguments, in the order of the contract
ARGUMENTS: dict[str, tuple[str, ...]] = {
    name: tuple(inspect.signature(getattr(Ops, name)).parameters)[1:]
    for functions in FUNCTIONS.values()
    for name in functions
}


@dataclass(frozen=True)
class ModelProblem:
    """A frozen GPT-2, some sequences, and the prefix that each of them sees.

    A prefix may have no slots (P = 0), and no sequence need see it. One array may stand for several
    prefixes or weights: each of them has a gradient of its own.
    """

    config: Config
    weights: Mapping[str, Array]  # by their names in the checkpoint: Config.shapes()
    sequences: Sequence[Sequence[int]]  # token ids
    #: per sequence: the index of the first token that is predicted, 1 to its length: with that,
    #: nothing is predicted in it
    loss_from: Sequence[int]
    prefix_of: Sequence[int]  # per sequence: which of `prefixes` it sees
    prefixes: Sequence[Array]  # each (L, 2, NH, P, hs): [:, 0] keys, [:, 1] values; P may differ
    #: per prefix: the position of the first token that sees it. P is usual, and it may be less or
    #: more
    position_offsets: Sequence[int]
    reduction: str = "mean"  # over all targets of the batch, or "sum"
    need: Literal["prefix", "all"] = "prefix"  # "all": the gradients of weights, too


@dataclass(frozen=True)
class MethodProblem:
    """A frozen GPT-2, adapted by a rival of prefix-tuning, and some sequences.

    `method` and `options` are as `minprefix.methods` has them. `parameters`: what the method adds
    to the model, by the names of its class there. Fine-tuning adds nothing: its parameters are
    empty, it starts at the weights, and which of them it trains is part of what is graded.
    """

    config: Config
    weights: Mapping[str, Array]  # by their names in the checkpoint: Config.shapes()
    sequences: Sequence[Sequence[int]]  # token ids
    loss_from: Sequence[int]  # per sequence: the index of the first token that is predicted
    method: str
    options: Mapping[str, Any]
    parameters: Mapping[str, Array]
    reduction: str = "mean"  # over all targets of the batch, or "sum"
    #: LoRA with dropout: per layer what is multiplied onto the input of A (N, in), 0 or 1 / (1 - p)
    masks: Mapping[str, Array] = field(default_factory=dict)
    seed: int = 0  # the masks are what `numpy.random.default_rng(seed)` draws, the lowest first


@dataclass(frozen=True)
class TrainingProblem:
    """A few steps of AdamW (Loshchilov & Hutter, 2019) on one or more prefixes.

    A step's loss is the mean over the targets of all its micro-batches, its gradients are clipped
    to the global norm `clip` over all parameters of all prefixes (None: not clipped; torch's
    clip_grad_norm_, which divides by norm + 1e-6, is right, too), and its rate
    rises over `warmup` steps (at step s of 0, 1, ... it is lr * (s + 1) / warmup) and then falls in
    a straight line to 0 at `len(steps)`. A prefix has the parameters `kv` (flat), or those of
    kv = reshape(tanh(embedding weight_1 + bias_1) weight_2 + bias_2), row-major over
    (P, L, 2, NH, hs). The first token that sees a prefix has position P.

    A prefix that no sequence of a step sees has a gradient of 0 in that step, and is treated as
    any other: its moments decay, they and the weight decay move it, and the bias corrections count
    the step. PyTorch's optimizers leave out a parameter whose `grad` is None; fill in zeros.
    """

    config: Config
    weights: Mapping[str, Array]
    parameters: Sequence[Mapping[str, Array]]  # of each prefix, where it starts
    steps: Sequence[Sequence["MicroBatch"]]
    lr: float
    warmup: int = 0
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip: float | None = None


@dataclass(frozen=True)
class MicroBatch:
    """Sequences that go through the model together: fields as in `ModelProblem`."""

    sequences: Sequence[Sequence[int]]
    loss_from: Sequence[int]
    prefix_of: Sequence[int]


class Whole(Protocol):
    """The functions of the levels above the ops. Each gives tensors by name; more may be given than
    is asked for, and is graded under the names of `model_tensors`, `method_tensors` and
    `training_tensors`.

    Each call reads its problem anew and leaves it as it was, arrays and lists alike: what training
    changes is a copy. The results are the caller's: they share no memory with the problem, and no
    later call changes them. The same problem gives the same numbers.
    """

    def run_model(self, problem: ModelProblem) -> Mapping[str, Array]:
        """Asked for: `loss`, and per prefix `prefix.{i}.dk` and `prefix.{i}.dv` (L, NH, P, hs)."""

    def run_decoding(self, problem: ModelProblem) -> Mapping[str, Array]:
        """The sequences fed one token at a time through a cache of keys and values. Asked for:
        `logits` (N, V): each token's prediction of the next."""

    def run_method(self, problem: MethodProblem) -> Mapping[str, Array]:
        """Asked for: `loss`, and `d{name}` for each parameter that the method trains, as
        `dh.0.attn.c_attn.lora_A`. A method that is not there raises NotImplementedError."""

    def run_training(self, problem: TrainingProblem) -> Mapping[str, Array]:
        """Asked for: per step `step.{s}.loss`, and per prefix and parameter
        `step.{s}.prefix.{i}.{name}`, as they are after the step."""


WHOLE = ("run_model", "run_decoding", "run_method", "run_training")

#: what a module of PyTorch (`adapters`) offers besides: the loss, the prefixes' gradients and the
#: logits of `run_model`, of padded batches and of the module's own loss
OF_A_MODULE = ("run_padded", "run_padded_left", "run_labels")


def model_tensors(config: Config, n_prefixes: int, B: int, need: str) -> dict[str, str]:
    """Name -> axes of every tensor of `run_model`, in the order in which they arise."""
    names: dict[str, str] = {}
    for i in range(config.n_layer):
        block = f"blocks.{i}"
        names |= {f"{block}.resid_pre": "N C", f"{block}.ln_1.out": "N C"}
        names |= {f"{block}.attn.{a}": "N NH hs" for a in "qkv"}
        names |= {f"{block}.attn.pattern[{b}]": "NH T P+T" for b in range(B)}
        names |= {f"{block}.attn.z": "N NH hs", f"{block}.attn.out": "N C"}
        names |= {f"{block}.resid_mid": "N C", f"{block}.ln_2.out": "N C"}
        names |= {f"{block}.mlp.pre": "N F", f"{block}.mlp.post": "N F", f"{block}.mlp.out": "N C"}
    names |= {"ln_f.in": "M C", "ln_f.out": "M C", "logits": "M V", "loss": ""}
    names |= {"dlogits": "M V", "ln_f.dout": "M C", "ln_f.din": "M C"}
    for i in reversed(range(config.n_layer)):
        block = f"blocks.{i}"
        names |= {f"{block}.dresid_post": "N C", f"{block}.mlp.dpost": "N F"}
        names |= {f"{block}.mlp.dpre": "N F", f"{block}.ln_2.dout": "N C"}
        names |= {f"{block}.dresid_mid": "N C", f"{block}.attn.dz": "N NH hs"}
        names |= {f"{block}.attn.d{a}": "N NH hs" for a in "qkv"}
        if i > 0 or need == "all":  # nothing below block 0 of a frozen model needs it
            names |= {f"{block}.ln_1.dout": "N C"}
    for j in range(n_prefixes):
        names |= {f"prefix.{j}.dk": "L NH P hs", f"prefix.{j}.dv": "L NH P hs"}
    if need == "all":
        names |= {f"d{name}": " ".join("?" * len(s)) for name, s in config.shapes().items()}
    return names


def method_tensors(trained: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
    """Name -> axes of every tensor of `run_method`, in the order in which they arise. `trained`:
    the shapes of the parameters by name, the lowest first."""
    grads = {f"d{name}": " ".join("?" * len(shape)) for name, shape in trained.items()}
    # no logits where there is dropout
    return {"logits": "N V", "loss": ""} | dict(reversed(grads.items()))


def training_tensors(problem: TrainingProblem) -> dict[str, str]:
    """Name -> axes of every tensor of `run_training`, in the order in which they arise."""
    names: dict[str, str] = {}
    for s in range(len(problem.steps)):
        names[f"step.{s}.loss"] = ""
        each = [(i, name, a) for i, p in enumerate(problem.parameters) for name, a in p.items()]
        for what in ("gradient.", ""):
            for i, name, a in each:
                axes = "L 2 NH P hs" if name == "kv" else " ".join("?" * a.ndim)
                names[f"step.{s}.prefix.{i}.{what}{name}"] = axes
    return names
