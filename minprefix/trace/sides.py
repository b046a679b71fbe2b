"""The two sides of a comparison: traces of one problem by two implementations.

An implementation of the ops runs under this project's model, and every op is seen. A whole model
(`run_model`) gives some tensors by name; then both sides are compared by these names alone.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np

from minprefix.batch import Batch
from minprefix.conformance.contract import FUNCTIONS, OPTIONAL, ModelProblem
from minprefix.conformance.implementation import Broken, Implementation, NotOffered, load
from minprefix.conformance.model_problems import model_problem
from minprefix.conformance.whole import Guarded, whole
from minprefix.errors import InputError
from minprefix.model import GPT2, loss_backward, needed
from minprefix.ops import reference
from minprefix.ops.contract import Array, Ops
from minprefix.prefix import MLPPrefix, Prefix
from minprefix.trace.compare import Comparison, compare
from minprefix.trace.record import Trace
from minprefix.trace.tracer import Tracer, about_inputs


@dataclass(frozen=True)
class Problem:
    """`mlp`: the parameters of a network that the first prefix goes through, and its `kv`."""

    why: str
    model: ModelProblem
    mlp: Mapping[str, Array] | None = None


def problems(dtype: str = "float64") -> dict[str, Problem]:
    """The plainest first. Those with extreme numbers are for float64 alone."""
    shape = {"layer_norm_epsilon": 1e-2, "n_inner": 14}  # as no default has it
    own_head = shape | {"tie_word_embeddings": False}
    usual = model_problem(
        (5, 3, 4), (2, 1, 3), (0, 1, 0), (3, 2), need="all", config=shape, dtype=dtype
    )
    several = model_problem(
        (4, 6, 3, 4), (2, 4, 1, 2), (0, 1, 0, 2), (2, 3, 0), reduction="sum", config=own_head,
        dtype=dtype, seed=1,
    )  # fmt: skip
    found = {
        "usual": Problem("three sequences, two prefixes, the gradient of every weight", usual),
        "frozen": Problem(
            "four sequences, a prefix through a network, one flat and none; the sum of the loss, "
            "a frozen model",
            *_through_a_network(several),
        ),
    }
    if dtype != "float64":
        return found
    far = {**usual.weights, "wpe.weight": usual.weights["wpe.weight"] + 1e4}
    return found | {
        "large": Problem("scores and logits in the thousands", _large(several)),
        "far": Problem("a residual stream far from 0", replace(usual, weights=far)),
    }


def _through_a_network(problem: ModelProblem) -> tuple[ModelProblem, dict[str, Array]]:
    """The same problem with a network's first prefix, and the network's parameters."""
    kv = problem.prefixes[0]
    L, _, NH, P, hs = kv.shape
    C, hidden, rng = NH * hs, 6, np.random.default_rng(3)
    shapes = {
        "embedding": (P, C), "weight_1": (C, hidden), "bias_1": (hidden,),
        "weight_2": (hidden, 2 * L * C), "bias_2": (2 * L * C,),
    }  # fmt: skip
    parameters = {n: rng.normal(0, 0.5, shape).astype(kv.dtype) for n, shape in shapes.items()}
    folded = MLPPrefix(parameters, NH).kv
    return replace(problem, prefixes=[folded, *problem.prefixes[1:]]), parameters


def _large(problem: ModelProblem) -> ModelProblem:
    """Keys so long, in the first layer, that scores differ by thousands: a mask that is not -inf
    shows. And logits whose probabilities underflow."""
    w, C = dict(problem.weights), problem.config.n_embd
    grown = w["h.0.attn.c_attn.weight"].copy()
    grown[:, C : 2 * C] *= 1e4
    w |= {"h.0.attn.c_attn.weight": grown, "lm_head.weight": 1e3 * w["lm_head.weight"]}
    return replace(problem, weights=w)


#: the code around the ops; a bug of the zoo may sit in any of it
HOUSE = SimpleNamespace(
    GPT2=GPT2, Batch=Batch, Prefix=Prefix, MLPPrefix=MLPPrefix, loss_backward=loss_backward
)


def compare_implementations(
    a: str | Implementation,
    b: str | Implementation,
    dtype: str = "float64",
    tolerance: float | None = None,
) -> Iterator[Comparison]:
    """A comparison for each problem, as it is asked for. Where both have all ops they are compared
    op by op under this project's model; after that as whole models, if one has its own. Raises
    InputError for an implementation that cannot be run."""
    first, second = load(a), load(b)
    by_ops = has_ops(first) and has_ops(second)
    if by_ops:
        for name, problem in problems(dtype).items():
            ours, theirs = (trace_ops(problem, _ops(i), i.name) for i in (first, second))
            if ours.about["stopped"]:
                raise InputError(
                    f"{first.name} {ours.about['stopped']}: give one that runs as the first, "
                    "it counts as right"
                )
            yield replace(compare(ours, theirs, tolerance), problem=name)
    if by_ops and not (first.has("run_model") or second.has("run_model")):
        return
    for name, problem in problems(dtype).items():
        wiring = trace_ops(problem, "reference", "reference")
        try:
            ours, theirs = (trace_whole(problem, i, wiring) for i in (first, second))
        except NotOffered as error:
            if by_ops:  # run_model is a stub: there are only the ops
                return
            raise InputError(f"there is no model to run: {error} is a stub, fill it in") from error
        yield replace(compare(ours, theirs, tolerance, wiring), problem=name)


def has_ops(implementation: Implementation) -> bool:
    every = {f for functions in FUNCTIONS.values() for f in functions}
    return all(map(implementation.has, every.difference(OPTIONAL)))


def _ops(implementation: Implementation) -> str | Ops:
    """The reference is traced inside its ops; calls of any other are guarded."""
    own = implementation.functions is reference
    return "reference" if own else cast(Ops, Guarded(implementation))


def trace_ops(problem: Problem, ops: str | Ops, name: str, house: SimpleNamespace = HOUSE) -> Trace:
    """Every op of the problem's loss and gradients. `about["stopped"]` says why it ended early.
    `ops` may also be the text of the reference with a change in it."""
    p = problem.model
    model = house.GPT2(p.config, dict(p.weights), name="the problem's")
    batch = house.Batch.pack(p.sequences, p.loss_from, p.prefix_of)
    prefixes = [
        house.Prefix(kv.copy(), position_offset=offset)
        for kv, offset in zip(p.prefixes, p.position_offsets, strict=True)
    ]
    if problem.mlp is not None:
        own = {name: a.copy() for name, a in problem.mlp.items()}
        prefixes[0] = house.MLPPrefix(own, p.config.n_head, position_offset=p.position_offsets[0])
    if isinstance(ops, str) and "\n" in ops:
        tracer = Tracer.of_text(ops, model, arguments=True)
    else:
        tracer = Tracer(model, ops, arguments=True)
    stopped = ""
    try:
        with np.errstate(all="ignore"):
            tracer.begin(batch, prefixes)
            _, dkvs, dweights = house.loss_backward(
                model, prefixes, batch, p.reduction, tracer, needed(model, p.need)
            )
            tracer.end(prefixes, dkvs, dweights)
    except NotOffered as error:
        raise InputError(f"{name} lacks {error}: fill it in, or give one that has it") from error
    except Broken as error:
        stopped = str(error)
    except Exception as error:  # of a wrong implementation: the trace until then holds
        stopped = f"raised {type(error).__name__}: {error}".replace("\n", " ")
    about = {"implementation": name, "names": ["*"], "arguments": True, "stopped": stopped}
    inputs = about_inputs(model, batch, prefixes)
    return Trace(tracer.kept(), inputs | about | {"reduction": p.reduction, "need": p.need})


def trace_whole(problem: Problem, implementation: Implementation, wiring: Trace) -> Trace:
    """The tensors that a whole model gives, under the names of a trace. Raises NotOffered for a
    stub."""
    if not (implementation.has("run_model") or has_ops(implementation)):
        raise InputError(
            f"{implementation.name} has neither all ops nor run_model: `minprefix check` grades "
            "what is there"
        )
    try:
        with np.errstate(all="ignore"):
            found = whole(implementation, "run_model")(problem.model)
    except Broken as error:
        raise InputError(f"{implementation.name} cannot run a model: {error}") from error
    named = _named_as_in_a_trace(found, problem.model)
    values = {name: implementation.asnumpy(a, name) for name, a in named.items()}
    records = [replace(r, value=values[r.key]) for r in wiring if r.key in values]
    own = has_ops(implementation) and implementation.has("run_model")
    name = f"{implementation.name}'s run_model" if own else implementation.name
    about = {k: wiring.about[k] for k in ("tokens", "dtype")}
    return Trace(records, about | {"implementation": name})


def _named_as_in_a_trace(found: Mapping[str, Any], problem: ModelProblem) -> dict[str, Any]:
    """The suite's names differ from the trace's where a block begins, and for values of one
    sequence or prefix."""
    top = problem.config.n_layer - 1
    named: dict[str, Any] = {}
    for name, a in found.items():
        if name == "ln_f.in":
            name = f"blocks.{top}.resid_post"
        elif name.endswith(".resid_pre") and name != "blocks.0.resid_pre":
            name = f"blocks.{int(name.split('.')[1]) - 1}.resid_post"
        elif name.endswith("]"):  # blocks.0.attn.pattern[2]
            name = name[:-1].replace("[", "#")
        named[name] = a
    for j in range(len(problem.prefixes)):
        parts = [named.pop(f"prefix.{j}.{part}", None) for part in ("dk", "dv")]
        if all(part is not None for part in parts):
            named[f"dprefix.kv#{j}"] = np.stack(cast(Sequence[Any], parts), axis=1)
    return named
