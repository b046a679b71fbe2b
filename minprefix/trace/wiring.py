"""GPT-2's wiring, once: which op stands where, what enters and leaves it in the forward and in the
backward, and what the model itself computes between two ops.

The tracer, the suite's recorder, the page, the stepper and central differences read these tables.
Names are those of a trace. Within a block they are short: `attn.q` is `blocks.2.attn.q` in block 2.
The residual stream between two blocks has the name that the lower block gives it.
"""

import re
from collections.abc import Callable, Collection
from typing import NamedTuple

from minprefix import gpt2
from minprefix.trace.instrument import source_of

#: One block. The forward goes down the rows, from `takes` to `gives`; the backward goes up, from
#: `dout` to `dx`.
_BLOCK = """
place        op         takes                 gives       dout         dx
ln_1         layernorm  resid_pre             ln_1.out    ln_1.dout    ln_1.dx
attn.c_attn  linear     ln_1.out              attn.qkv    attn.dqkv    ln_1.dout
attn         attention  attn.q,attn.k,attn.v  attn.z      attn.dz      attn.dq,attn.dk,attn.dv
attn.c_proj  linear     attn.z                attn.out    dresid_mid   attn.dz
resid_mid    add        resid_pre,attn.out    resid_mid   dresid_mid   -
ln_2         layernorm  resid_mid             ln_2.out    ln_2.dout    ln_2.dx
mlp.c_fc     linear     ln_2.out              mlp.pre     mlp.dpre     ln_2.dout
mlp          gelu       mlp.pre               mlp.post    mlp.dpost    mlp.dpre
mlp.c_proj   linear     mlp.post              mlp.out     dresid_post  mlp.dpost
resid_post   add        resid_mid,mlp.out     resid_post  dresid_post  -
"""

#: What the model computes between two ops, and where: a function of gpt2.py, and the name that it
#: assigns there.
_MADE = """
value          op     made of                  function                 name
attn.q         split  attn.qkv                 attention_half           q
attn.k         split  attn.qkv                 attention_half           k
attn.v         split  attn.qkv                 attention_half           v
attn.prefix_k  given  -                        attention_half           prefix_k
attn.prefix_v  given  -                        attention_half           prefix_v
resid_mid      add    resid_pre,attn.out       attention_half           x
resid_post     add    resid_mid,mlp.out        mlp_half                 x
dresid_mid     add    dresid_post,ln_2.dx      mlp_half_backward        dx
attn.dqkv      join   attn.dq,attn.dk,attn.dv  attention_half_backward  dqkv
dresid_pre     add    dresid_mid,ln_1.dx       attention_half_backward  dx
"""

#: the gradients of an op's weights, in the order of the weights
_OF_WEIGHTS = {
    "embed": ("dwte", "dwpe"),
    "layernorm": ("dgain", "dbias"),
    "linear": ("dweight", "dbias"),
}


class Place(NamedTuple):
    """An op of the contract where it stands in the model, or a sum of the residual stream."""

    name: str  # blocks.2.mlp.c_fc
    op: str
    takes: tuple[str, ...]
    gives: str
    dout: str  # the gradient of what it gives; empty for the loss
    dx: tuple[str, ...]  # the gradients of what it takes
    weights: tuple[str, ...] = ()  # their names in the checkpoint

    @property
    def gradients(self) -> tuple[str, ...]:
        """The gradients of its weights: one for each, and `head.dbias` of no weight."""
        return tuple(f"{self.name}.{d}" for d in _OF_WEIGHTS.get(self.op, ()))

    def from_row(self, start: int) -> "Place":
        """The head and the loss of the logits that begin at this row: `logits.from_512`."""
        return self._renamed(lambda n: f"{n}.from_{start}" if start and n != "ln_f.out" else n)

    def _renamed(self, new: Callable[[str], str]) -> "Place":
        return self._replace(
            name=new(self.name),
            takes=tuple(map(new, self.takes)),
            gives=new(self.gives),
            dout=self.dout and new(self.dout),
            dx=tuple(map(new, self.dx)),
        )


class Made(NamedTuple):
    """A value that the model computes between two ops."""

    op: str  # add, split, given or join
    inputs: tuple[str, ...]
    function: str  # of gpt2.py
    name: str  # what the function calls it


class Between(NamedTuple):
    """What the model does between two ops."""

    formula: str
    words: str = ""  # in a sentence: the model's own ...
    mirrors: str = ""  # what the backward mirrors, in words


BETWEEN = {
    "add": Between(
        "{name} = {inputs[0]} + {inputs[1]}",
        "sum on the residual stream",
        "x + f(x): the gradient goes both ways, around f and through it, and the two add up",
    ),
    "split": Between(
        "q, k, v = {inputs[0]}, NH heads of size hs each", "cut into queries, keys and values"
    ),
    "join": Between(
        "{name} = dq, dk and dv side by side",
        "joining of dq, dk and dv",
        "q, k, v = qkv: their gradients stand side by side again",
    ),
    "given": Between("learned, or what the prefix's text left", "choice of what the op sees"),
    "enter": Between("what the model hands to an op"),
    "fold": Between(
        "kv = tanh(E W1 + b1) W2 + b2, cut into layers, keys and values, heads",
        "prefix as its network gives it",
    ),
    "fold_backward": Between(
        "from {inputs[0]} back through the network", "way back through the prefix's network"
    ),
    "sum": Between("the sum over all uses of it", "sum over all uses"),
}


def _rows(table: str) -> list[list[str]]:
    return [line.split() for line in table.strip().splitlines()[1:]]


def _several(cell: str) -> tuple[str, ...]:
    return () if cell == "-" else tuple(cell.split(","))


#: one block, under short names
BLOCK = {
    name: Place(
        name, op, _several(takes), gives, dout, _several(dx),
        (f"{name}.weight", f"{name}.bias") if op in ("linear", "layernorm") else (),
    )
    for name, op, takes, gives, dout, dx in _rows(_BLOCK)
}  # fmt: skip
MADE = {
    value: Made(op, _several(inputs), function, name)
    for value, op, inputs, function, name in _rows(_MADE)
}


class Wiring:
    """A whole model: its places in the order of the forward, and what is made between them.
    `weights`: their names in the checkpoint, which tell whether the head is tied."""

    def __init__(self, n_layer: int, weights: Collection[str]) -> None:
        head = "lm_head.weight" if "lm_head.weight" in weights else "wte.weight"
        top, norm = f"blocks.{n_layer - 1}", ("ln_f.weight", "ln_f.bias")
        stream, dstream = (f"{top}.resid_post",), (f"{top}.dresid_post",)
        first, tables = ("blocks.0.resid_pre", "blocks.0.dresid_pre"), ("wte.weight", "wpe.weight")
        places = [
            Place("embed", "embed", (), *first, (), tables),
            *(_in_block(place, i) for i in range(n_layer) for place in BLOCK.values()),
            Place("ln_f", "layernorm", stream, "ln_f.out", "ln_f.dout", dstream, norm),
            Place("head", "linear", ("ln_f.out",), "logits", "dlogits", ("ln_f.dout",), (head,)),
            Place("loss", "cross_entropy", ("logits",), "loss", "", ("dlogits",)),
        ]
        self.places = {place.name: place for place in places}
        self.made = {
            full(value, i): made._replace(inputs=tuple(full(name, i) for name in made.inputs))
            for i in range(n_layer)
            for value, made in MADE.items()
        }
        self.weight_of = {  # a gradient -> the weight in the checkpoint
            gradient: weight
            for place in places
            for weight, gradient in zip(place.weights, place.gradients, strict=False)
        }
        of = {place.gives: place.name for place in places}
        # the gradient of a sum stands where the sum does; what attention is given, at attention
        self._place_of = {name: of.get(name.replace(".dresid", ".resid"), "") for name in self.made}
        self._place_of |= of | {dx: place.name for place in places for dx in place.dx}

    def place_of(self, name: str) -> str:
        """The place of a value or a gradient, and of what an op computes on its way."""
        name = without_part(name)
        return self._place_of.get(name) or name.rpartition(".")[0]


def _in_block(place: Place, block: int) -> Place:
    weights = tuple(f"h.{block}.{name}" for name in place.weights)
    return place._renamed(lambda name: full(name, block))._replace(weights=weights)


def full(name: str, block: int) -> str:
    """`attn.q` -> blocks.2.attn.q; `resid_pre` -> blocks.1.resid_post, which it is."""
    if block and name in ("resid_pre", "dresid_pre"):
        return f"blocks.{block - 1}.{name.replace('pre', 'post')}"
    return f"blocks.{block}.{name}"


def without_part(name: str) -> str:
    """logits.from_512 -> logits"""
    return re.sub(r"\.from_\d+", "", name)


def model_line(name: str, op: str) -> int:
    """The line of gpt2.py that computes this value between two ops; 0 for any other value."""
    short = re.sub(r"^blocks\.\d+\.", "", name)
    made = MADE.get("dresid_pre" if short == "dresid_post" else short)
    if made is None or made.op != op:
        return 0
    return source_of(gpt2).made[made.function, made.name]
