"""Tracing is a wrapper around an implementation: the model computes with it and does not know.

The tracer finds out from the weight, or from the cache that a forward left, where in the model a
call stands, and names its value as the field does:

    blocks.0.resid_pre                          embed
    blocks.i.ln_1.out                           layernorm, linear (attn.qkv), split
    blocks.i.attn.qkv  .q  .k  .v
    blocks.i.attn.z  .out                       attention, linear
    blocks.i.resid_mid                          resid_pre + attn.out
    blocks.i.ln_2.out  .mlp.pre  .post  .out    layernorm, linear, gelu, linear
    blocks.i.resid_post                         resid_mid + mlp.out; the next block's resid_pre
    ln_f.out  logits  loss

and each gradient is `d` + name. What an operation computes on its way (`blocks.i.attn.scores`) is
seen in the reference alone, whose text is run with a call after each assignment
(`trace.instrument`).

With `arguments`, what each operation was given has a record, too: an operation that is wrong and a
model that hands it the wrong thing look alike without. `blocks.0.mlp.c_proj(x)`,
`embed(positions)`, `blocks.0.attn.backward(dz)`; and what enters and leaves the whole:
`batch.rows`, `prefix.kv#0`, `dprefix.kv#0`, `dwte.weight`.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Self, cast

import numpy as np

from minprefix import ops as _ops
from minprefix.batch import Batch
from minprefix.errors import InputError
from minprefix.gpt2 import Weights
from minprefix.model import GPT2, digest, loss_backward, needed
from minprefix.ops import reference
from minprefix.ops.contract import Array, Ops
from minprefix.trace import instrument
from minprefix.trace.instrument import Source, Spy, instrumented, read_source, source_of
from minprefix.trace.record import Record, Trace, matches, unknown

if TYPE_CHECKING:
    import pdb

    from minprefix.prefix import Prefix, Prefixes

#: what a linear layer gives, by its place in a block
_OUT = {"attn.c_attn": "attn.qkv", "attn.c_proj": "attn.out", "mlp.c_fc": "mlp.pre",
        "mlp.c_proj": "mlp.out"}  # fmt: skip
#: what it takes
_IN = {"attn.c_attn": "ln_1.out", "attn.c_proj": "attn.z", "mlp.c_fc": "ln_2.out",
       "mlp.c_proj": "mlp.post"}  # fmt: skip


def _d(name: str) -> str:
    """blocks.0.attn.q -> blocks.0.attn.dq"""
    above, dot, last = name.rpartition(".")
    return f"{above}{dot}d{last}"


#: what the model does between two operations
_BETWEEN = {
    "add": "{name} = {inputs[0]} + {inputs[1]}",
    "split": "q, k, v = {inputs[0]}, NH heads of size hs each",
    "join": "{name} = dq, dk and dv side by side",
    "given": "learned, or what the prefix's text left",
    "enter": "what the model hands to an op",
    "fold": "kv = tanh(E W1 + b1) W2 + b2, cut into layers, keys and values, heads",
    "fold_backward": "from {inputs[0]} back through the network",
    "sum": "the sum of what every place that uses it says",
}


def trace(
    model: GPT2,
    batch: Batch,
    prefix: "Prefixes" = None,
    names: str | Sequence[str] = "*",
    ops: str | Ops = "reference",
    need: Literal["prefix", "all"] = "prefix",
    max_bytes: int = 2**30,
    stop_at: str | None = None,
    arguments: bool = False,
) -> Trace:
    """Run the loss of `batch` forward and backward, and keep every value under its name.

    `names`: keep only those that match one of these patterns (`blocks.2.*`). `need`="all" takes the
    gradients of the weights, too. `stop_at`: open the debugger at the line that has just computed
    what has this name or matches this pattern, in the reference's own text, its variables alive;
    for what the model itself adds up between two operations, at the line that hands it on.
    `arguments`: keep what each operation was given, too; two traces can then be told apart to the
    very step (`trace.compare`).

    The result is that of an untraced run, bit for bit. Raises InputError if nothing matches one of
    the patterns, and if what is kept would exceed `max_bytes`, with how to narrow it.
    """
    if need not in ("prefix", "all"):
        raise InputError(f"need is {need!r}: expected 'prefix' or 'all'")
    if not names:
        raise InputError("names is empty: give at least one name or pattern, or '*' for all")
    tracer = Tracer(model, ops, names, max_bytes, stop_at, arguments)
    if stop_at is not None:  # a name is given after the return: one run ahead tells of which call
        ahead = Tracer(model, ops, stop_at, max_bytes, arguments=arguments)
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
    """Of what a trace is: two of them can be compared where all of this is the same."""
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


class Tracer:
    """An implementation that passes every call on to another, and keeps what comes back."""

    def __init__(
        self,
        model: GPT2,
        ops: str | Ops = "reference",
        names: str | Sequence[str] = "*",
        max_bytes: int = 2**30,
        stop_at: str | None = None,
        arguments: bool = False,
    ) -> None:
        self.inner = _ops.get(ops)
        self.implementation = ops if isinstance(ops, str) else _name(ops)
        self.names, self.max_bytes, self.stop_at = names, max_bytes, stop_at
        self.arguments = arguments
        self._prefix_of: list[int] = []  # of each sequence
        self.records: list[Record] = []
        self.names_seen: dict[str, None] = {}
        self.made_of: dict[str, tuple[str, ...]] = {}  # what was given back, kept or not
        self.calls: dict[str, int] = {}  # key -> in which call of an op it was made, counted from 1
        self.stop_calls: set[int] = set()  # those at whose return the debugger opens
        self._call = 0
        self._bytes = 0
        self._layers = model.config.n_layer
        self._sites = {_address(a): site for site, a in _places(model.weights)}
        # id -> sites, and the cache, to keep it: an implementation with a stack of its own may give
        # the same cache, None say, every time
        self._cache_site: dict[tuple[str, int], tuple[list[str], Any]] = {}
        self._site, self._op, self._direction = "", "", "forward"
        self._block = -1
        self._forward: set[str] = set()  # keys of what was computed inside ops of the forward
        self._kept: dict[int, tuple[Any, Record]] = {}  # of this op: a value and its record
        # address -> which linear layers took what lies there; outputs may share a buffer
        self._inputs: dict[int, tuple[list[str], Array]] = {}
        self._normed: set[str] = set()  # the norms that the forward has been at
        self._rows, self._suffix = 0, ""  # of the logits, which come some rows at a time
        self._head = "lm_head.weight" if "lm_head.weight" in model.weights else "wte.weight"
        self.source: Source | None = None
        if self.inner is reference:
            self.source = source_of(reference)
            self._instrument("\n".join(self.source.lines) + "\n", self.source.path)

    @classmethod
    def of_text(cls, text: str, model: GPT2, **more: Any) -> Self:
        """Of an implementation that is given as source text, such as the reference with a bug."""
        tracer = cls(model, reference, **more)
        tracer.source = read_source(text, "<text>")
        tracer._instrument(text, "<text>")
        return tracer

    def _instrument(self, text: str, path: str) -> None:
        spy = Spy()
        spy.seen, spy.returning = self._inside, self._returning
        self._spy = spy
        self.inner = cast(Ops, instrumented(text, path, spy))

    # ---- keeping ----

    def _keep(self, record: Record) -> None:
        self.names_seen[record.name] = None
        self.calls[record.key] = self._call
        value = record.value
        if matches(record, self.names):
            if not isinstance(record.value, np.ndarray):
                record.value = _ops.to(np.asanyarray(record.value), "numpy")
            self._bytes += record.value.nbytes
            if self._bytes > self.max_bytes:  # from here on it is only counted: see `kept`
                self.records.clear()
            else:
                if self.source is None or self.arguments:  # a fast or a wrong one may overwrite it
                    record.value = record.value.copy()
                self.records.append(record)
        self._kept[id(value)] = (value, record)
        if self.stop_at and matches(record, self.stop_at) and not self.given_back(record):
            self._debug("line")

    def kept(self) -> list[Record]:
        """The records. Raises InputError if they would be larger than `max_bytes`."""
        if self._bytes > self.max_bytes:
            raise InputError(
                f"the trace is {self._bytes:,} bytes, more than the {self.max_bytes:,} of "
                'max_bytes: narrow it by names such as "blocks.0.*" or "*.attn.pattern", take '
                "fewer tokens, or raise max_bytes"
            )
        return self.records

    def given_back(self, record: Record) -> bool:
        """By the `return` of an operation's own text, where it has no name yet."""
        end = self.source and self.source.made.get((record.op, "return"))
        return bool(end) and record.line == end

    def _returning(self, function: str, value: Any) -> None:
        if function == self._op and self._call in self.stop_calls:
            self._debug("return", value)

    @cached_property
    def _pdb(self) -> "pdb.Pdb":
        import pdb

        return pdb.Pdb(skip=["minprefix.trace.*", "contextlib", "fnmatch"])

    def _debug(self, event: Literal["line", "return"], value: Any = None) -> None:
        """Open pdb where the traced text is. `set_trace` would show the line after this one, so
        that the event of this line is handed to it by hand."""
        frame = sys._getframe()
        here = (__file__, instrument.__file__)
        while frame.f_code.co_filename in here and frame.f_back is not None:
            frame = frame.f_back
        self._pdb.set_trace(frame)
        sys.settrace(None)  # the debugger does not debug itself
        self._pdb.trace_dispatch(frame, event, value)
        if frame.f_trace is not None:  # it was not told to continue
            sys.settrace(self._pdb.trace_dispatch)
        if event == "return":
            frame.f_trace = None  # nor does it show the same return again

    def _out(
        self,
        name: str,
        value: Any,
        inputs: Sequence[str] = (),
        op: str | None = None,
        sequence: int | None = None,
    ) -> None:
        """What an op gives back, or the model makes between two ops."""
        record = Record(name, self._direction, op or self._op, value, tuple(inputs), sequence)
        self.made_of[record.key] = record.inputs
        if self.source is not None and op is None:
            line = self.source.made.get((self._op, "return"), 0)
            record.formula = self._formula()
            record.line, record.text = line, self.source.statement.get(line, "")
        elif op in _BETWEEN:
            record.formula = _BETWEEN[op].format(name=name, inputs=inputs)
        _, known = self._kept.get(id(value), (None, None))
        if known is not None and known.key == record.key and known.inside:
            known.inside, known.inputs = False, record.inputs  # it has the line that computed it
            if known.value is not value:  # a copy, and more was added since (np.add.at)
                known.value = value.copy()
        else:
            self._keep(record)

    def _inside(self, function: str, number: int, values: dict[str, Any]) -> None:
        """A name was assigned in the reference's text."""
        assert self.source is not None
        for name, value in values.items():
            if not isinstance(value, np.ndarray) or value.dtype == object:
                continue
            if id(value) in self._kept:  # it has a name already: keys = _heads_first(...)
                continue
            record = Record(
                f"{self._site}.{name}", self._direction, self._op, value,
                sequence=self._spy.sequence, inside=True, line=number,
                text=self.source.statement[number],
                formula=self._formula(),
            )  # fmt: skip
            if self._direction == "forward":
                self._forward.add(record.key)
            elif record.key in self._forward:  # the forward's, once more
                continue
            self._keep(record)

    def _formula(self) -> str:
        """Of the operation that is running, with where it is from in brackets."""
        formula, origin = self.source.formula.get(self._op, ("", "")) if self.source else ("", "")
        return f"{formula} ({origin})" if origin else formula

    # ---- around the operations, with `arguments` ----

    def begin(self, batch: Batch, prefixes: "Sequence[Prefix | None]") -> None:
        """What the whole computation is given."""
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
        """What it gives back: the gradient of each prefix, and of each weight."""
        if not self.arguments:
            return
        self._direction, self._kept = "backward", {}
        for j, (prefix, dkv) in enumerate(zip(prefixes, dkvs, strict=False)):
            if prefix is None:
                continue
            seen_by = [b for b, i in enumerate(self._prefix_of) if i == j]
            parts = [
                f"blocks.{i}.attn.{name}#{b}"
                for i in prefix.layers
                for name in ("dprefix_k", "dprefix_v")
                for b in seen_by
            ]
            self._out("dprefix.kv", dkv, parts if prefix.length else (), "sum", j)
            for name, a in prefix.backward(dkv).items():
                if name != "kv":
                    self._out(f"dprefix.{name}", a, (f"dprefix.kv#{j}",), "fold_backward", j)
        for name, a in dweights.items():
            self._out(f"d{name}", a, self._parts(name), "sum")

    def _parts(self, weight: str) -> tuple[str, ...]:
        """What a weight's gradient is the sum of."""
        site, _, kind = weight.rpartition(".")
        site = f"blocks.{site[2:]}" if site.startswith("h.") else site
        if site in ("wte", "wpe"):
            tied = (f"head.dweight{self._suffix}",) if weight == self._head else ()
            return (f"embed.d{site}", *tied)
        if site == "lm_head":
            return (f"head.dweight{self._suffix}",)
        if "ln_" in site:
            return (f"{site}.{'dgain' if kind == 'weight' else 'dbias'}",)
        return (f"{site}.d{kind}",)

    def _enter(
        self, name: str, value: Any, inputs: Sequence[str], outside: Sequence[str] = ()
    ) -> tuple[str, ...]:
        """What an op is given, made of `inputs`, and of what comes from `outside` -> what the
        op's own inputs are called."""
        if not self.arguments:
            return tuple(inputs)
        self._out(name, value, (*inputs, *outside), "enter")
        return (name,)

    def _reordered(self) -> tuple[str, ...]:
        """The top layer goes on with some rows of the stream."""
        return ("batch.rows",) if self._block == self._layers - 1 else ()

    @contextmanager
    def _at(self, site: str, op: str) -> Iterator[None]:
        self._site, self._op, self._kept = site, op, {}
        self._call += 1
        self._direction = "backward" if "backward" in op else "forward"
        yield

    def _where(self, weight: Array) -> str:
        """blocks.3.attn.c_attn, or head."""
        site = self._sites[_address(weight)]
        if site.startswith("blocks."):
            self._block = int(site.split(".")[1])
        return site

    def _of_cache(self, op: str, cache: Any, last: bool = True) -> str:
        """Where the forward was that left it; `last`: nobody asks again."""
        sites, _ = self._cache_site[op, id(cache)]
        site = sites.pop() if last and len(sites) > 1 else sites[-1]  # a backward goes up the stack
        if site.startswith("blocks."):
            self._block = int(site.split(".")[1])
        return site

    def _remember(self, op: str, cache: Any, site: str) -> None:
        self._cache_site.setdefault((op, id(cache)), ([], cache))[0].append(site)

    def _residual(self, site: str, x: Array) -> None:
        """What a layernorm is given is the residual stream, which the model has added up."""
        block, layer = f"blocks.{self._block}", site.rpartition(".")[2]
        if layer == "ln_2":
            inputs = (self._stream(self._block), f"{block}.attn.out")
            self._out(f"{block}.resid_mid", x, inputs, "add")
        elif site == "ln_f" or self._block > 0:
            below = self._layers - 1 if site == "ln_f" else self._block - 1
            at = f"blocks.{below}"
            inputs = (f"{at}.resid_mid", f"{at}.mlp.out")
            self._out(f"{at}.resid_post", x, inputs, "add")

    def _stream(self, block: int) -> str:
        """The name of what enters a block."""
        return "blocks.0.resid_pre" if block == 0 else f"blocks.{block - 1}.resid_post"

    # ---- the contract, forward ----

    def embed(self, tokens: Array, positions: Array, wte: Array, wpe: Array) -> Array:
        with self._at("embed", "embed"):
            given = self._enter("embed(tokens)", tokens, (), ("batch.tokens",))
            given += self._enter("embed(positions)", positions, (), ("batch.offsets",))
            x = self.inner.embed(tokens, positions, wte, wpe)
            self._out("blocks.0.resid_pre", x, (*given, "wte.weight", "wpe.weight"))
        return x

    def layernorm(self, x: Array, gain: Array, bias: Array, eps: float) -> tuple[Array, Any]:
        weights = self._weights(self._where(gain))
        site = self._where(gain)
        if site in self._normed:  # the second norm of a block, with the weights of the first
            site = site.replace("ln_1", "ln_2")
        self._normed.add(site)
        with self._at(site, "layernorm"):
            self._residual(site, x)
            eps_in = self._enter(f"{site}(eps)", eps, ())
            out, cache = self.inner.layernorm(x, gain, bias, eps)
            if site == "ln_f":
                stream = f"blocks.{self._layers - 1}.resid_post"
            elif site.endswith("ln_2"):
                stream = f"blocks.{self._block}.resid_mid"
            else:
                stream = self._stream(self._block)
            entered: tuple[str, ...] = (stream,)
            if stream == "blocks.0.resid_pre":  # any other is a sum, of what came in
                entered = self._enter(f"{site}(x)", x, (stream,))
            self._out(f"{site}.out", out, (*entered, *eps_in, *weights))
        self._remember("layernorm", cache, site)
        return out, cache

    def linear(self, x: Array, weight: Array, bias: Array | None) -> Array:
        site = self._where(weight)
        at_head = site == "head"
        if at_head:
            self._suffix = f".from_{self._rows}" if self._rows else ""
            self._rows += len(x)
            site += self._suffix
        self._inputs.setdefault(_address(x), ([], x))[0].append(site)
        with self._at(site, "linear"):
            if at_head:
                entered = self._enter(f"{site}(x)", x, ("ln_f.out",))
                out = self.inner.linear(x, weight, bias)
                self._out(f"logits{self._suffix}", out, (*entered, self._head))
            else:
                block, _, layer = site.partition(f".{self._block}.")
                at = f"{block}.{self._block}"
                rows = self._reordered() if layer == "attn.c_proj" else ()
                entered = self._enter(f"{site}(x)", x, (f"{at}.{_IN[layer]}",), rows)
                out = self.inner.linear(x, weight, bias)
                self._out(f"{at}.{_OUT[layer]}", out, (*entered, *self._weights(site)))
        return out

    def gelu(self, x: Array) -> tuple[Array, Any]:
        at = f"blocks.{self._block}.mlp"
        with self._at(at, "gelu"):
            entered = self._enter(f"{at}.gelu(x)", x, (f"{at}.pre",))
            out, cache = self.inner.gelu(x)
            self._out(f"{at}.post", out, entered)
        self._remember("gelu", cache, at)
        return out, cache

    def attention(
        self,
        q: Array,
        k: Array,
        v: Array,
        prefix_k: Sequence[Array],
        prefix_v: Sequence[Array],
        offsets: Array,
    ) -> tuple[Array, Any]:
        at = f"blocks.{self._block}.attn"
        with self._at(at, "attention"):
            for name, a in (("q", q), ("k", k), ("v", v)):
                self._out(f"{at}.{name}", a, (f"{at}.qkv",), "split")
            given = [*self._enter(f"{at}(offsets)", offsets, (), ("batch.offsets",))]
            for b in range(len(offsets) - 1):
                of = (f"prefix.kv#{self._prefix_of[b]}",) if self.arguments else ()
                if prefix_k[b].shape[1]:
                    for name, a in (("prefix_k", prefix_k[b]), ("prefix_v", prefix_v[b])):
                        self._out(f"{at}.{name}", a, of, "given", b)
                        given.append(f"{at}.{name}#{b}")
            z, cache = self.inner.attention(q, k, v, prefix_k, prefix_v, offsets)
            self._out(f"{at}.z", z, (f"{at}.q", f"{at}.k", f"{at}.v", *given))
        self._remember("attention", cache, at)
        return z, cache

    def cross_entropy(self, logits: Array, targets: Array, weights: Array) -> tuple[Any, Any]:
        at = f"loss{self._suffix}"
        with self._at(at, "cross_entropy"):
            given = self._enter(f"{at}(logits)", logits, (f"logits{self._suffix}",))
            given += self._enter(f"{at}(targets)", targets, (), ("batch.targets",))
            given += self._enter(f"{at}(weights)", weights, (), ("batch.weights",))
            loss, cache = self.inner.cross_entropy(logits, targets, weights)
            self._out(at, loss, given)
        return loss, cache

    # ---- backward ----

    def cross_entropy_backward(self, cache: Any) -> Array:
        at = f"loss{self._suffix}"
        with self._at(at, "cross_entropy_backward"):
            dlogits = self.inner.cross_entropy_backward(cache)
            given: tuple[str, ...] = (f"logits{self._suffix}",)
            if self.arguments:
                given = (f"{at}(logits)", f"{at}(targets)", f"{at}(weights)")
            self._out(f"dlogits{self._suffix}", dlogits, given)
        return dlogits

    def linear_backward(self, dout: Array, weight: Array) -> Array:
        site = self._where(weight)
        with self._at(site, "linear_backward"):
            if site == "head":
                came = (f"dlogits{self._suffix}",)
                entered = self._enter(f"{site}{self._suffix}.backward(dout)", dout, came)
                dx = self.inner.linear_backward(dout, weight)
                self._out(f"ln_f.dout{self._suffix}", dx, (*entered, self._head))
                return dx
            at, layer = f"blocks.{self._block}", site.partition(f".{self._block}.")[2]
            came = (self._came(layer, dout),)
            entered = self._enter(f"{site}.backward(dout)", dout, came)
            dx = self.inner.linear_backward(dout, weight)
            self._out(f"{at}.{_d(_IN[layer])}", dx, (*entered, self._weights(site)[0]))
        return dx

    def _backwards(self) -> Iterator[str]:
        """The linear layers in the order of the backward."""
        yield "head"
        for i in reversed(range(self._layers)):
            yield from (f"blocks.{i}.{layer}" for layer in reversed(_OUT))

    def _came(self, layer: str, dout: Array) -> str:
        """The name of the gradient that comes back to a linear layer. Where the model has made it
        of others it gets its record here, once."""
        at = f"blocks.{self._block}"
        name, op, parts = f"{at}.{_d(_OUT[layer])}", "", tuple[str, ...]()
        if layer == "mlp.c_proj":  # the residual stream's gradient is also the MLP's
            name = f"{at}.dresid_post"
            if self._block < self._layers - 1:
                above = f"blocks.{self._block + 1}"
                op, parts = "add", (f"{above}.dresid_mid", f"{above}.ln_1.dx")
        elif layer == "attn.c_proj":
            name, op, parts = f"{at}.dresid_mid", "add", (f"{at}.dresid_post", f"{at}.ln_2.dx")
        elif layer == "attn.c_attn":
            op, parts = "join", tuple(f"{at}.attn.d{letter}" for letter in "qkv")
        if op and name not in self.names_seen:
            self._out(name, dout, parts, op)
        return name

    def gelu_backward(self, dout: Array, cache: Any) -> Array:
        at = self._of_cache("gelu", cache)
        with self._at(at, "gelu_backward"):
            entered = self._enter(f"{at}.gelu.backward(dout)", dout, (f"{at}.dpost",))
            dx = self.inner.gelu_backward(dout, cache)
            self._out(f"{at}.dpre", dx, (*entered, f"{at}.pre"))
        return dx

    def layernorm_backward(self, dout: Array, cache: Any) -> Array:
        site = self._of_cache("layernorm", cache)
        with self._at(site, "layernorm_backward"):
            entered = self._enter(f"{site}.backward(dout)", dout, (f"{site}.dout",))
            dx = self.inner.layernorm_backward(dout, cache)
            at = f"blocks.{self._layers - 1}.dresid_post" if site == "ln_f" else f"{site}.dx"
            self._out(at, dx, (*entered, self._weights(site)[0]))
        return dx

    def attention_backward(self, dz: Array, cache: Any) -> Any:
        at = self._of_cache("attention", cache)
        with self._at(at, "attention_backward"):
            came = self._enter(f"{at}.backward(dz)", dz, (f"{at}.dz",), self._reordered())
            grads = self.inner.attention_backward(dz, cache)
            inputs = (*came, f"{at}.q", f"{at}.k", f"{at}.v")
            for name in ("dq", "dk", "dv"):
                self._out(f"{at}.{name}", getattr(grads, name), inputs)
            for name in ("dprefix_k", "dprefix_v"):
                for b, a in enumerate(getattr(grads, name)):
                    if a.shape[1]:
                        self._out(f"{at}.{name}", a, inputs, sequence=b)
        return grads

    # ---- the other half, with need="all" ----

    def embed_backward_params(
        self, dx: Array, tokens: Array, positions: Array, wte: Array, wpe: Array
    ) -> tuple[Array, Array]:
        with self._at("embed", "embed_backward_params"):
            stream = "blocks.0.dresid_pre"
            parts = ("blocks.0.dresid_mid", "blocks.0.ln_1.dx")
            self._out(stream, dx, parts, "add")
            inputs: tuple[str, ...] = (stream,)
            for name, a in (("tokens", tokens), ("positions", positions)):
                argument = f"embed.backward_params({name})"
                inputs += self._enter(argument, a, (), (f"embed({name})",))
            grads = self.inner.embed_backward_params(dx, tokens, positions, wte, wpe)
            for name, a in zip(("dwte", "dwpe"), grads, strict=True):
                self._out(f"embed.{name}", a, inputs)
        return grads

    def layernorm_backward_params(self, dout: Array, cache: Any) -> tuple[Array, Array]:
        site = self._of_cache("layernorm", cache, last=False)
        with self._at(site, "layernorm_backward_params"):
            entered = self._enter(f"{site}.backward_params(dout)", dout, (f"{site}.dout",))
            grads = self.inner.layernorm_backward_params(dout, cache)
            for name, a in zip(("dgain", "dbias"), grads, strict=True):
                self._out(f"{site}.{name}", a, entered)
        return grads

    def linear_backward_params(self, dout: Array, x: Array) -> tuple[Array, Array]:
        sites, _ = self._inputs.get(_address(x), ([], x))
        if not sites:  # no layer took it: a wrong model
            sites = [next(s for s in self._backwards() if f"{s}.dweight" not in self.names_seen)]
        site = sites.pop() if len(sites) > 1 else sites[0]
        with self._at(site, "linear_backward_params"):
            if site.startswith("blocks."):
                self._block = int(site.split(".")[1])
                at, layer = f"blocks.{self._block}", site.split(".", 2)[2]
                came, went = self._came(layer, dout), f"{at}.{_IN[layer]}"
            else:
                came, went = f"dlogits{self._suffix}", "ln_f.out"
            inputs = self._enter(f"{site}.backward_params(dout)", dout, (came,))
            kept = (f"{site}(x)",) if self.arguments else (went,)
            inputs += self._enter(f"{site}.backward_params(x)", x, kept)
            grads = self.inner.linear_backward_params(dout, x)
            for name, a in zip(("dweight", "dbias"), grads, strict=True):
                self._out(f"{site}.{name}", a, inputs)
        return grads

    def _weights(self, site: str) -> tuple[str, str]:
        """The names of a layer's weights in the checkpoint."""
        start = site.replace("blocks.", "h.", 1)
        return f"{start}.weight", f"{start}.bias"


def _places(weights: Weights) -> Iterator[tuple[str, Array]]:
    """Where in the model each weight stands that tells a call's place."""
    for name, a in weights.items():
        if name.startswith("h.") and name.endswith(".weight"):
            yield f"blocks.{name[2:].removesuffix('.weight')}", a
    yield "ln_f", weights["ln_f.weight"]
    yield "head", weights.get("lm_head.weight", weights["wte.weight"])


def _address(a: Array) -> int:
    """Where an array's first number lies: a view of the whole has the same."""
    if _ops.home(a) == "cupy":
        return int(cast(Any, a).data.ptr)
    return int(a.__array_interface__["data"][0])


def _name(ops: Ops) -> str:
    return getattr(ops, "__name__", type(ops).__name__)
