"""The levels above the ops, as this project's own code fulfils them over any implementation of the
ops: `run_model`, `run_decoding`, `run_method` and `run_training` of
`minprefix.conformance.contract`."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np

from minprefix.batch import Batch
from minprefix.conformance.contract import (
    MethodProblem,
    MicroBatch,
    ModelProblem,
    TrainingProblem,
    model_tensors,
)
from minprefix.conformance.record import Recorder
from minprefix.generate import Texts
from minprefix.methods import METHODS, FineTuning
from minprefix.methods.rival import Rival
from minprefix.model import GPT2, loss_backward, needed
from minprefix.ops.contract import Array, Ops
from minprefix.optim import AdamW, clip, global_norm, learning_rate
from minprefix.prefix import MLPPrefix, Prefix
from minprefix.train import mean_gradient


class House:
    """The functions of `Whole` over `ops`. `clip_eps`: added to a norm that is clipped."""

    def __init__(self, ops: Ops, clip_eps: float = 0.0) -> None:
        self.ops, self.clip_eps = ops, clip_eps

    def run_model(self, problem: ModelProblem) -> Mapping[str, Array]:
        model, prefixes = _model(problem), _prefixes(problem)
        batch = Batch.pack(problem.sequences, problem.loss_from, problem.prefix_of)
        recorder = Recorder(self.ops, model.weights, problem.config.head_size)
        reduction, need = problem.reduction, needed(model, problem.need)
        loss, dkvs, dweights = loss_backward(
            model, prefixes, _every_row(batch), reduction, recorder, need
        )
        axes = model_tensors(problem.config, len(prefixes), len(batch), problem.need)
        found = {
            name: a[batch.rows] if axes.get(name, "").startswith("M") else a
            for name, a in recorder.tensors.items()
        }
        found["loss"] = np.array(loss)
        for j, dkv in enumerate(dkvs):
            found |= {f"prefix.{j}.dk": dkv[:, 0], f"prefix.{j}.dv": dkv[:, 1]}
        return found | {f"d{name}": a for name, a in dweights.items()}

    def run_decoding(self, problem: ModelProblem) -> Mapping[str, Array]:
        model, prefixes = _model(problem), _prefixes(problem)
        # all texts together, so that one that ends leaves the others in their places
        texts_ids = problem.sequences
        first = Batch.pack([ids[:1] for ids in texts_ids], prefix=problem.prefix_of)
        texts, logits = Texts.start(model, first, prefixes, max(map(len, texts_ids)), self.ops)
        rows: list[list[Array]] = [[] for _ in texts_ids]
        alive = list(range(len(texts_ids)))
        while True:
            for b, row in zip(alive, logits, strict=True):
                rows[b].append(row)
            stay = [j for j, b in enumerate(alive) if len(rows[b]) < len(texts_ids[b])]
            if not stay:
                return {"logits": np.stack([row for each in rows for row in each])}
            alive = [alive[j] for j in stay]
            texts = texts.take(stay)
            logits = texts.feed(np.array([texts_ids[b][len(rows[b])] for b in alive]))

    def run_method(self, problem: MethodProblem) -> Mapping[str, Array]:
        model, batch = _model(problem), Batch.pack(problem.sequences, problem.loss_from)
        method = _method(problem, model)
        rng = None
        if problem.masks:  # they have a row for every token
            rng, batch = np.random.default_rng(problem.seed), _every_row(batch)
        loss, grads = method.loss_and_grads(model, batch, problem.reduction, self.ops, rng)
        found = {"loss": np.array(loss)} | {f"d{name}": a for name, a in grads.items()}
        if rng is None:
            found["logits"] = method.logits(model, batch, self.ops)
        return found

    def run_training(self, problem: TrainingProblem) -> Mapping[str, Array]:
        p = problem
        model = _model(p)
        prefixes = [_start(parameters, p.config.n_head) for parameters in p.parameters]
        adam = AdamW(p.beta1, p.beta2, p.eps, p.weight_decay)
        found: dict[str, Array] = {}
        for s, step in enumerate(p.steps):
            loss, grads = self._gradients(model, prefixes, step)
            found[f"step.{s}.loss"] = np.array(loss)
            found |= {f"step.{s}.prefix.{name}": a.copy() for name, a in grads.items()}
            if p.clip is not None:
                clip(grads, global_norm(grads) + self.clip_eps, p.clip)
            lr = learning_rate(s, len(p.steps), p.lr, p.warmup, "linear")
            parameters = {
                f"{i}.gradient.{name}": a
                for i, prefix in enumerate(prefixes)
                for name, a in prefix.parameters.items()
            }
            adam.step(parameters, grads, lr)
            for name, a in parameters.items():
                found[f"step.{s}.prefix.{name.replace('gradient.', '')}"] = a.copy()
        return found

    def _gradients(
        self, model: GPT2, prefixes: Sequence[Prefix], step: Sequence[MicroBatch]
    ) -> tuple[float, dict[str, Array]]:
        """The mean loss of a step and the gradient of every parameter, as `0.gradient.kv`."""
        batches = [Batch.pack(m.sequences, m.loss_from, m.prefix_of) for m in step]
        count = sum(len(batch.targets) for batch in batches)
        loss, dkvs = mean_gradient(model, [p.fold() for p in prefixes], batches, count, self.ops)
        return loss, {
            f"{i}.gradient.{name}": a
            for i, (prefix, dkv) in enumerate(zip(prefixes, dkvs, strict=True))
            for name, a in prefix.backward(dkv).items()
        }


def _every_row(batch: Batch) -> Batch:
    """The same loss, with a row for every token: the model works out the top of the stack only
    where it must, and the suite's tensors have all N rows. Tokens that are not predicted weigh
    0."""
    N = len(batch.tokens)
    targets, weights = np.zeros(N, np.int64), np.zeros(N)
    targets[batch.rows], weights[batch.rows] = batch.targets, batch.weights
    return replace(batch, rows=np.arange(N), targets=targets, weights=weights)


def _method(problem: MethodProblem, model: GPT2) -> Rival:
    kind = cast(type[Rival], METHODS[problem.method])
    if issubclass(kind, FineTuning):
        start: Any = kind.start  # of the top layers alone their number is given
        return cast(Rival, start(model, *problem.options.values()))
    parameters = {name: a.copy() for name, a in problem.parameters.items()}
    return kind.of(dict(problem.options), parameters)


def _model(problem: ModelProblem | MethodProblem | TrainingProblem) -> GPT2:
    # views: one array may be several weights, and the recorder knows them by their objects
    weights = {name: a.view() for name, a in problem.weights.items()}
    return GPT2(problem.config, weights, name="the suite's")


def _prefixes(problem: ModelProblem) -> list[Prefix]:
    return [
        Prefix(kv.copy(), position_offset=offset)
        for kv, offset in zip(problem.prefixes, problem.position_offsets, strict=True)
    ]


def _start(parameters: Mapping[str, Array], n_head: int) -> Prefix:
    own = {name: a.copy() for name, a in parameters.items()}
    return Prefix(own["kv"]) if "kv" in own else MLPPrefix(own, n_head)
