"""Tracing is a wrapper around an implementation: the model computes with it and does not know.

The tracer finds out from the weight, or from the cache that a forward left, where in the model a
call stands. `trace.wiring` says what goes in and comes out there, under the field's names:
`blocks.2.attn.q`, `blocks.0.resid_mid`, `ln_f.out`, `logits`, `loss`. A gradient is `d` + name.
What an operation computes on its way (`blocks.0.attn.scores`) is seen in the reference alone, whose
text is run with a call after each assignment (`trace.instrument`).

With `arguments`, what each operation is given has a record, too. Without them an operation that is
wrong and a model that hands it the wrong thing look alike. `blocks.0.mlp.c_proj(x)`,
`embed(positions)`, `blocks.0.attn.backward(dz)`; and what enters and leaves the whole:
`batch.rows`, `prefix.kv#0`, `dprefix.kv#0`, `dwte.weight`.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal, Self, cast

import numpy as np

from minprefix import ops as _ops
from minprefix.batch import Batch
from minprefix.errors import InputError
from minprefix.gpt2 import Weights
from minprefix.model import GPT2, loss_backward, needed
from minprefix.ops import reference
from minprefix.ops.contract import Array, Ops
from minprefix.storage.fingerprint import digest
from minprefix.trace.instrument import read_source
from minprefix.trace.keeper import Keeper
from minprefix.trace.record import Trace, matches, unknown
from minprefix.trace.wiring import Place, Wiring

if TYPE_CHECKING:
    from minprefix.prefix import Prefix

Arrays = Sequence[Array]  # one for each sequence of the batch


def trace(
    model: GPT2,
    batch: Batch,
    prefix: "Prefix | Sequence[Prefix | None] | None" = None,
    names: str | Sequence[str] = "*",
    ops: str | Ops = "reference",
    need: Literal["prefix", "all"] = "prefix",
    max_bytes: int = 2**30,
    stop_at: str | None = None,
    arguments: bool = False,
) -> Trace:
    """Run the loss of `batch` forward and backward, and keep every value under its name.

    `names`: keep only the values that match one of these patterns (`blocks.2.*`). `need`="all"
    takes the gradients of the weights, too. `stop_at`: open the debugger in the reference's own
    text, its variables alive, at the line that has just computed a value of this name or pattern;
    for a sum of the model's own between two operations, at the line that hands it on. `arguments`:
    keep each operation's arguments, too; a comparison of two traces (`trace.compare`) then finds
    the very step at which they part.

    The result is that of an untraced run, bit for bit. Raises InputError if nothing matches one of
    the patterns, and, with advice how to narrow it, if the values would exceed `max_bytes`.
    """
    if need not in ("prefix", "all"):
        raise InputError(f"need is {need!r}: expected 'prefix' or 'all'")
    if not names:
        raise InputError("names is empty: give at least one name or pattern, or '*' for all")
    kept = {"max_bytes": max_bytes, "arguments": arguments}
    tracer = Tracer(model, ops, names=names, stop_at=stop_at, **kept)
    if stop_at is not None:  # a result gets its name after the return: a run ahead finds the call
        ahead = Tracer(model, ops, names=stop_at, **kept)
        loss_backward(model, prefix, batch, "mean", ahead, needed(model, need))
        if not ahead.kept():
            raise unknown(stop_at, ahead.names_seen)
        tracer.stop_calls = {ahead.calls[r.key] for r in ahead.records if ahead.given_back(r)}
    prefixes = list(prefix) if isinstance(prefix, Sequence) else [prefix]
    tracer.begin(batch, prefixes)
    loss, dkvs, dweights = loss_backward(model, prefix, batch, "mean", tracer, needed(model, need))
    tracer.end(prefixes, dkvs, dweights)
    records, patterns = tracer.kept(), [names] if isinstance(names, str) else list(names)
    for pattern in patterns:
        if not any(matches(record, pattern) for record in records):
            raise unknown(pattern, tracer.names_seen)
    about = about_inputs(model, batch, prefixes) | {
        "rows": batch.rows.tolist(),
        "targets": batch.targets.tolist(),
        "loss_weights": batch.weights.tolist(),
        "made_of": {key: list(inputs) for key, inputs in tracer.made_of.items()},
        "implementation": tracer.implementation,
        "names": patterns,
        "arguments": arguments,
        "reduction": "mean",
        "need": need,
        "loss": loss,
    }
    return Trace(records, about)


def about_inputs(model: GPT2, batch: Batch, prefixes: "Sequence[Prefix | None]") -> dict[str, Any]:
    """The inputs of a trace: two traces can be compared if all of this is the same."""
    parameters = {
        f"{j} from {p.position_offset}, layers {p.layers}: {name}": a
        for j, p in enumerate(prefixes)
        if p is not None
        for name, a in p.parameters.items()
    }
    return {
        "model": model.name,
        "fingerprint": model.fingerprint(),
        "dtype": str(model.dtype),
        "tokens": batch.tokens.tolist(),
        "offsets": batch.offsets.tolist(),
        "prefix_of": batch.prefix.tolist(),
        "prefixes": digest(parameters, np.float32),
    }


class Tracer(Keeper):
    """An implementation that passes every call on to another, and keeps what comes back."""

    def __init__(self, model: GPT2, ops: str | Ops = "reference", **kept: Any) -> None:
        """`kept`: the arguments of a `Keeper`."""
        super().__init__(_ops.get(ops), **kept)
        name = getattr(ops, "__name__", type(ops).__name__)
        self.implementation = ops if isinstance(ops, str) else name
        w, n_layer = model.weights, model.config.n_layer
        wiring = Wiring(n_layer, w)
        self._places, self._made, self._weight_of = wiring.places, wiring.made, wiring.weight_of
        self._top = f"blocks.{n_layer - 1}"
        # a view of the whole, as the head's is, has the address of the whole
        self._of_address = {
            _address(w[place.weights[0]]): place
            for place in self._places.values()
            if place.op in ("linear", "layernorm")
        }
        # an implementation with a stack of its own may give one cache, None say, every time
        self._of_cache: dict[tuple[str, int], tuple[list[Place], Any]] = {}
        # address -> the linear layers that took what lies there; outputs may share a buffer
        self._inputs: dict[int, tuple[list[Place], Array]] = {}
        self._normed: set[str] = set()  # the norms that the forward has computed
        self._block = "blocks.0"
        self._head, self._loss = self._places["head"], self._places["loss"]
        self._heads: list[Place] = []  # the logits come some rows at a time
        self._rows = 0
        self._prefix_of: list[int] = []  # for each sequence

    @classmethod
    def of_text(cls, text: str, model: GPT2, **kept: Any) -> Self:
        """A tracer of an implementation given as source text, such as the reference with a bug."""
        tracer = cls(model, reference, **kept)
        tracer._instrument(read_source(text, "<text>"), text)
        return tracer

    # ---- what goes in and comes out of the whole, with `arguments` ----

    def begin(self, batch: Batch, prefixes: "Sequence[Prefix | None]") -> None:
        """Keep what the whole computation is given."""
        if not self.arguments:
            return
        self._direction, self._prefix_of = "forward", batch.prefix.tolist()
        for name in ("tokens", "offsets", "rows", "targets", "weights"):
            self._out(f"batch.{name}", getattr(batch, name), (), "given")
        for j, prefix in enumerate(prefixes):
            if prefix is not None:
                op = "given" if "kv" in prefix.parameters else "fold"
                self._out("prefix.kv", prefix.kv, (), op, j)

    def end(
        self, prefixes: "Sequence[Prefix | None]", dkvs: Sequence[Array], dweights: Weights
    ) -> None:
        """Keep what it gives back: the gradient of each prefix, and of each weight."""
        if not self.arguments:
            return
        self._direction, self._kept = "backward", {}
        for j, (prefix, dkv) in enumerate(zip(prefixes, dkvs, strict=False)):
            if prefix is None:
                continue
            parts = [
                f"blocks.{i}.attn.{name}#{b}"
                for i in prefix.layers if prefix.length
                for name in ("dprefix_k", "dprefix_v")
                for b, seen in enumerate(self._prefix_of) if seen == j
            ]  # fmt: skip
            self._out("dprefix.kv", dkv, parts, "sum", j)
            for name, a in prefix.backward(dkv).items():
                if name != "kv":
                    self._out(f"dprefix.{name}", a, (f"dprefix.kv#{j}",), "fold_backward", j)
        more = [place.gradients[0] for place in self._heads[1:]]
        for weight, a in dweights.items():
            parts = [gradient for gradient, of in self._weight_of.items() if of == weight]
            tied = weight == self._places["head"].weights[0]
            self._out(f"d{weight}", a, parts + more * tied, "sum")

    # ---- around an operation ----

    def _at(self, place: Place, op: str) -> None:
        self._site, self._op, self._kept = place.name, op, {}
        self._call += 1
        self._direction = "backward" if "backward" in op else "forward"
        if place.name.startswith("blocks."):
            self._block = ".".join(place.name.split(".")[:2])

    def _enter(
        self, name: str, value: Any, inputs: Sequence[str], outside: Sequence[str] = ()
    ) -> tuple[str, ...]:
        """An op's argument, made of `inputs` and of what comes from `outside` -> the keys of the
        op's inputs."""
        if not self.arguments:
            return tuple(inputs)
        self._out(name, value, (*inputs, *outside), "enter")
        return (name,)

    def _out_each(self, names: Iterable[str], values: Iterable[Any], inputs: Sequence[str]) -> None:
        for name, value in zip(names, values, strict=True):
            self._out(name, value, inputs)

    def _between(self, name: str, value: Any) -> None:
        """Record an op's argument, once, if the model itself has just computed it."""
        made = self._made.get(name)
        if made is not None and name not in self.names_seen:
            self._out(name, value, made.inputs, made.op)

    def _reordered(self, place: Place) -> tuple[str, ...]:
        """The top block goes on with some rows of the stream after its keys and values."""
        cut = place.name in (f"{self._top}.attn", f"{self._top}.attn.c_proj")
        return ("batch.rows",) if cut else ()

    def _of_weight(self, weight: Array) -> Place:
        place = self._of_address[_address(weight)]
        return self._head if place.name == "head" else place

    def _remember(self, op: str, cache: Any, place: Place) -> None:
        self._of_cache.setdefault((op, id(cache)), ([], cache))[0].append(place)

    def _recall(self, op: str, cache: Any, last: bool = True) -> Place:
        """The place of the forward that left this cache; a backward goes up the stack. `last`: this
        is the cache's last use."""
        places, _ = self._of_cache[op, id(cache)]
        return places.pop() if last and len(places) > 1 else places[-1]

    # ---- the contract, forward ----

    def embed(self, tokens: Array, positions: Array, wte: Array, wpe: Array) -> Array:
        place = self._places["embed"]
        self._at(place, "embed")
        given = self._enter("embed(tokens)", tokens, (), ("batch.tokens",))
        given += self._enter("embed(positions)", positions, (), ("batch.offsets",))
        x = self.inner.embed(tokens, positions, wte, wpe)
        self._out(place.gives, x, (*given, *place.weights))
        return x

    def layernorm(self, x: Array, gain: Array, bias: Array, eps: float) -> tuple[Array, Any]:
        place = self._of_weight(gain)
        weights = place.weights
        if place.name in self._normed:  # the second norm of a block, with the first's weights
            place = self._places[place.name.replace("ln_1", "ln_2")]
        self._normed.add(place.name)
        self._at(place, "layernorm")
        entered: tuple[str, ...] = place.takes
        self._between(entered[0], x)
        given = self._enter(f"{place.name}(eps)", eps, ())
        out, cache = self.inner.layernorm(x, gain, bias, eps)
        if entered[0] not in self._made:  # any other has its record where it is made
            entered = self._enter(f"{place.name}(x)", x, entered)
        self._out(place.gives, out, (*entered, *given, *weights))
        self._remember("layernorm", cache, place)
        return out, cache

    def linear(self, x: Array, weight: Array, bias: Array | None) -> Array:
        place = self._of_weight(weight)
        if place.name.startswith("head"):
            place = self._head = self._places["head"].from_row(self._rows)
            self._loss = self._places["loss"].from_row(self._rows)
            self._heads.append(place)
            self._rows += len(x)
        self._inputs.setdefault(_address(x), ([], x))[0].append(place)
        self._at(place, "linear")
        entered = self._enter(f"{place.name}(x)", x, place.takes, self._reordered(place))
        out = self.inner.linear(x, weight, bias)
        self._out(place.gives, out, (*entered, *place.weights))
        return out

    def gelu(self, x: Array) -> tuple[Array, Any]:
        place = self._places[f"{self._block}.mlp"]
        self._at(place, "gelu")
        entered = self._enter(f"{place.name}.gelu(x)", x, place.takes)
        out, cache = self.inner.gelu(x)
        self._out(place.gives, out, entered)
        self._remember("gelu", cache, place)
        return out, cache

    def attention(
        self, q: Array, k: Array, v: Array, prefix_k: Arrays, prefix_v: Arrays, offsets: Array
    ) -> tuple[Array, Any]:
        place = self._places[f"{self._block}.attn"]
        at = place.name
        self._at(place, "attention")
        for name, a in zip(place.takes, (q, k, v), strict=True):
            self._between(name, a)
        given = [*self._enter(f"{at}(offsets)", offsets, (), ("batch.offsets",))]
        for b, both in enumerate(zip(prefix_k, prefix_v, strict=True)):
            of = (f"prefix.kv#{self._prefix_of[b]}",) if self.arguments else ()
            if both[0].shape[1]:
                for name, a in zip(("prefix_k", "prefix_v"), both, strict=True):
                    self._out(f"{at}.{name}", a, of, "given", b)
                    given.append(f"{at}.{name}#{b}")
        z, cache = self.inner.attention(q, k, v, prefix_k, prefix_v, offsets)
        self._out(place.gives, z, (*place.takes, *given))
        self._remember("attention", cache, place)
        return z, cache

    def cross_entropy(self, logits: Array, targets: Array, weights: Array) -> tuple[Any, Any]:
        place = self._loss
        self._at(place, "cross_entropy")
        given = self._enter(f"{place.name}(logits)", logits, place.takes)
        given += self._enter(f"{place.name}(targets)", targets, (), ("batch.targets",))
        given += self._enter(f"{place.name}(weights)", weights, (), ("batch.weights",))
        loss, cache = self.inner.cross_entropy(logits, targets, weights)
        self._out(place.gives, loss, given)
        return loss, cache

    # ---- backward ----

    def cross_entropy_backward(self, cache: Any) -> Array:
        place = self._loss
        self._at(place, "cross_entropy_backward")
        dlogits = self.inner.cross_entropy_backward(cache)
        given = place.takes
        if self.arguments:
            given = tuple(f"{place.name}({a})" for a in ("logits", "targets", "weights"))
        self._out(place.dx[0], dlogits, given)
        return dlogits

    def linear_backward(self, dout: Array, weight: Array) -> Array:
        place = self._of_weight(weight)
        return self._backward("linear", place, place.name, dout, weight, place.weights[:1])

    def gelu_backward(self, dout: Array, cache: Any) -> Array:
        place = self._recall("gelu", cache)
        return self._backward("gelu", place, f"{place.name}.gelu", dout, cache, place.takes)

    def layernorm_backward(self, dout: Array, cache: Any) -> Array:
        place = self._recall("layernorm", cache)
        return self._backward("layernorm", place, place.name, dout, cache, place.weights[:1])

    def _backward(
        self, op: str, place: Place, call: str, dout: Array, given: Any, more: tuple[str, ...]
    ) -> Array:
        """An op with one gradient, computed from dout and from `given`, whose keys are `more`."""
        self._at(place, f"{op}_backward")
        self._between(place.dout, dout)
        entered = self._enter(f"{call}.backward(dout)", dout, (place.dout,))
        dx: Array = getattr(self.inner, f"{op}_backward")(dout, given)
        self._out(place.dx[0], dx, (*entered, *more))
        return dx

    def attention_backward(self, dz: Array, cache: Any) -> Any:
        place = self._recall("attention", cache)
        self._at(place, "attention_backward")
        rows = self._reordered(place)
        came = self._enter(f"{place.name}.backward(dz)", dz, (place.dout,), rows)
        grads = self.inner.attention_backward(dz, cache)
        inputs = (*came, *place.takes)
        self._out_each(place.dx, (grads.dq, grads.dk, grads.dv), inputs)
        for name in ("dprefix_k", "dprefix_v"):
            for b, a in enumerate(getattr(grads, name)):
                if a.shape[1]:
                    self._out(f"{place.name}.{name}", a, inputs, sequence=b)
        return grads

    # ---- the other half: the gradients of weights ----

    def embed_backward_params(
        self, dx: Array, tokens: Array, positions: Array, wte: Array, wpe: Array
    ) -> tuple[Array, Array]:
        place = self._places["embed"]
        self._at(place, "embed_backward_params")
        self._between(place.dout, dx)
        inputs: tuple[str, ...] = (place.dout,)
        for name, a in (("tokens", tokens), ("positions", positions)):
            inputs += self._enter(f"embed.backward_params({name})", a, (), (f"embed({name})",))
        grads = self.inner.embed_backward_params(dx, tokens, positions, wte, wpe)
        self._out_each(place.gradients, grads, inputs)
        return grads

    def layernorm_backward_params(self, dout: Array, cache: Any) -> tuple[Array, Array]:
        place = self._recall("layernorm", cache, last=False)
        self._at(place, "layernorm_backward_params")
        entered = self._enter(f"{place.name}.backward_params(dout)", dout, (place.dout,))
        grads = self.inner.layernorm_backward_params(dout, cache)
        self._out_each(place.gradients, grads, entered)
        return grads

    def linear_backward_params(self, dout: Array, x: Array) -> tuple[Array, Array]:
        places, _ = self._inputs.get(_address(x), ([], x))
        if not places:  # no layer took it, so the model is wrong: the next one in the backward
            linear = [place for place in self._places.values() if place.op == "linear"]
            places = [p for p in linear if p.gradients[0] not in self.names_seen][-1:]
        place = places.pop() if len(places) > 1 else places[0]
        self._at(place, "linear_backward_params")
        self._between(place.dout, dout)
        inputs = self._enter(f"{place.name}.backward_params(dout)", dout, (place.dout,))
        kept = (f"{place.name}(x)",) if self.arguments else place.takes
        inputs += self._enter(f"{place.name}.backward_params(x)", x, kept)
        grads = self.inner.linear_backward_params(dout, x)
        self._out_each(place.gradients, grads, inputs)
        return grads


def _address(a: Array) -> int:
    """Where an array's first number lies."""
    if _ops.home(a) == "cupy":
        return int(cast(Any, a).data.ptr)
    return int(a.__array_interface__["data"][0])
