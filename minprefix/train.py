"""The training loop: a frozen model, a prefix or one of its rivals, AdamW; saved as it goes so that
a kill loses nothing but time.

Everything random is drawn from (seed, what for, step or epoch), so a run that resumes at step s
draws what the run that never stopped drew, and ends in the same bytes.
"""

import hashlib
import math
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from copy import deepcopy
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import numpy as np

from minprefix.batch import Batch
from minprefix.budget import out_of_memory
from minprefix.console import Stopped, ctrl_c
from minprefix.data.pairs import Encoded
from minprefix.errors import Diverged, InputError, counted
from minprefix.evaluate import mean_loss
from minprefix.method import Method
from minprefix.model import GPT2, check_same_place, loss_and_grad, operations
from minprefix.ops import Ops, get, memory, to
from minprefix.optim import AdamW, clip, global_norm, learning_rate
from minprefix.prefix import Prefix, dropout_mask
from minprefix.settings import Settings
from minprefix.storage.fingerprint import digest
from minprefix.storage.run import LOG, STATE, Log, State, load_state, save_state, saved_step
from minprefix.storage.saving import run_folder

_SHUFFLE, _DROPOUT = 0, 1  # the purpose of a random draw


@dataclass(frozen=True)
class Result:
    """How a run ended. `interrupted`: by Ctrl-C; it can be resumed."""

    step: int
    interrupted: bool
    seconds: float
    best_loss: float | None
    best_step: int | None
    base_unchanged: bool | None  # None: interrupted, so it was not checked


def train(
    model: GPT2,
    prefix: Prefix | Method,
    examples: Sequence[Encoded],
    settings: Settings,
    out: str | Path,
    valid: Sequence[Encoded] | None = None,
    about: dict[str, Any] | None = None,
    resume: bool = False,
    progress: bool = True,
) -> Result:
    """Train `prefix`, or another method, in place; with `valid` it ends as the best so far, else as
    the last.

    Writes into `out` as it goes: state.safetensors (for `resume`) and log.jsonl (a line for each
    step; some say more of each layer, see `_sees_layers`). `about` is recorded, too; everything
    recorded must be the same when resuming. From here on the process keeps the memory that it frees
    (`ops.memory`).

    Ctrl-C stops it at once: the step under way is dropped, all before it is saved, and resuming
    repeats it. Raises InputError for a prefix without numbers, when resuming a run that does not
    exist or was another one, when another process writes into `out`, when the disk refuses, and
    when the loss turns NaN (the last good state stays).
    """
    if not examples:
        raise InputError("there are no examples to train on: expected at least one")
    check_trainable(prefix)  # all before a folder is made for a run that cannot begin
    operations(model, settings.backend)
    check_same_place(model, prefix)
    memory.keep_freed()
    if settings.backend == "cupy":
        cast(Any, get("cupy")).matmul_precision(settings.matmul)
    out = Path(out)
    if resume:
        saved_step(out)  # a sentence where there is no run, not a folder
    with run_folder(out, (STATE,), force=False, resume=resume):
        record = _record(model, prefix, examples, settings, valid, about)
        started, before = time.time(), digest(model.weights)
        adam = AdamW(weight_decay=settings.weight_decay)
        start = {"kv": prefix.kv.copy()} if isinstance(prefix, Prefix) else {}
        state = State(prefix.parameters, adam, start=start)
        if resume:
            load_state(out, state, record)
        else:
            save_state(out, state, record)  # from here on there is always a last good state
        _Run(model, prefix, examples, valid or (), settings, out, state, record, progress).go_on()
        finished = state.step == settings.steps
        return Result(
            step=state.step,
            interrupted=not finished,
            seconds=time.time() - started,
            best_loss=state.best_loss,
            best_step=state.best_step,
            base_unchanged=digest(model.weights) == before if finished else None,
        )


def check_trainable(prefix: Prefix | Method) -> None:
    """Raises InputError for a prefix of no slots or in no layer."""
    if isinstance(prefix, Prefix) and not prefix.kv.size:
        raise InputError(
            f"the prefix has {counted(prefix.length, 'slot')} in "
            f"{counted(len(prefix.layers), 'layer')}: there is "
            "nothing to train, expected at least one slot in one layer (--prefix-length 10)"
        )


def _record(
    model: GPT2,
    prefix: Prefix | Method,
    examples: Sequence[Encoded],
    settings: Settings,
    valid: Sequence[Encoded] | None,
    about: dict[str, Any] | None,
) -> dict[str, Any]:
    """All that decides a run: it is saved, and must be the same when the run is resumed."""
    facts: dict[str, Any]
    if isinstance(prefix, Prefix):
        what, facts = "prefix", {"layers": list(prefix.layers)}
        facts["position_offset"] = prefix.position_offset
    else:
        what, facts = "method", {"name": prefix.name, "options": prefix.options}
    facts["parameters"] = {n: [str(p.dtype), *p.shape] for n, p in prefix.parameters.items()}
    return {
        "settings": asdict(settings),
        "about": about,
        "base_sha256": model.fingerprint(),
        what: facts,
        "examples_sha256": _fingerprint(examples),
        "valid_examples_sha256": _fingerprint(valid or ()),
    }


def _fingerprint(examples: Sequence[Encoded]) -> str:
    sha = hashlib.sha256()
    for example in examples:
        sha.update(np.array([len(example.ids), example.loss_from, *example.ids], np.int64).data)
    return sha.hexdigest()


# ---- the loop ---------------------------------------------------------------------------------


@dataclass
class _Run:
    """A training under way: what it trains, with what, and how far it has come."""

    model: GPT2
    prefix: Prefix | Method
    examples: Sequence[Encoded]
    valid: Sequence[Encoded]
    settings: Settings
    out: Path
    state: State
    record: dict[str, Any]
    progress: bool

    def go_on(self) -> None:
        """To the last step, then back to the best prefix; or to a Ctrl-C. Both are saved."""
        state, settings, first = self.state, self.settings, self.state.step
        self.log, bar = Log(self.out / LOG, first), _bar(settings, state, self.progress)
        times: list[float] = []
        with self.log, bar, ctrl_c() as self.stop:
            with suppress(Stopped):
                while state.step < settings.steps:
                    due = state.step > first and state.step % settings.save_every == 0
                    entry = self.step(_batch(self.examples, settings, state.step), due)
                    self.log.write(entry)
                    _show(bar, entry, state)
                    times.append(entry["seconds"])
                    if len(times) == 4:
                        _say_how_long(bar, times, settings.steps - state.step)
            for name, p in self.prefix.parameters.items():  # their loss has not been computed
                if not np.isfinite(p).all():
                    raise self.not_finite(f"parameter {name}", float("nan"), state.step)
            self.save()
        if state.step == settings.steps:
            for name, best in state.best.items():
                self.prefix.parameters[name][...] = best

    def save(self) -> None:
        self.log.flush()  # a state is never ahead of its log
        save_state(self.out, self.state, self.record)

    def step(self, chosen: Sequence[Encoded], save: bool) -> dict[str, Any]:
        """-> the line of the log. `save`: the state before the step. Raises Stopped for a Ctrl-C,
        and leaves prefix and state as they were before the step."""
        state, settings, started = self.state, self.settings, time.perf_counter()
        with self.stop.at_once():
            loss, grads, norm, dkv_norms = self.gradient(chosen)
        if save:
            self.save()  # only now are these parameters known to be good
        step = state.step + 1
        validates = self.valid and (step % settings.eval_every == 0 or step == settings.steps)
        before = (deepcopy(self.prefix.parameters), deepcopy(state.adam)) if validates else None
        lr = _update(self.prefix, grads, norm, settings, state)
        seconds = time.perf_counter() - started
        tokens = sum(len(e.ids) for e in chosen)
        entry = {
            "step": state.step,
            "loss": loss,
            "lr": lr,
            "grad_norm": norm,
            "tokens": tokens,
            "seconds": round(seconds, 4),
            "tokens_per_second": round(tokens / seconds),
        }
        if dkv_norms is not None:
            assert isinstance(self.prefix, Prefix)
            entry |= _layer_entry(self.prefix, dkv_norms, state)
        if before:
            try:
                with self.stop.at_once():
                    entry["valid_loss"] = self.validate()
            except Stopped:  # without its validation, this line would be another run's
                for name, p in before[0].items():
                    self.prefix.parameters[name][...] = p
                state.adam, state.step = before[1], state.step - 1
                raise
            self.keep_if_best(entry["valid_loss"])
        return entry

    def gradient(
        self, chosen: Sequence[Encoded]
    ) -> tuple[float, dict[str, np.ndarray], float, np.ndarray | None]:
        """-> the loss, the gradient of each parameter, and their global norm, all of them finite;
        and at some steps of a prefix the norms of dkv by layer."""
        settings, step, prefix, dkv = self.settings, self.state.step, self.prefix, None
        with np.errstate(over="ignore", invalid="ignore"):  # a loss that explodes is reported below
            with self.room(chosen, settings.micro_batch_size or len(chosen)):
                if isinstance(prefix, Prefix):
                    loss, dkv = batch_gradient(self.model, prefix, chosen, settings, step)
                    grads = prefix.backward(dkv)
                else:
                    loss, grads = method_gradient(self.model, prefix, chosen, settings, step)
            norm = global_norm(grads)
        dkv_norms = None
        if dkv is not None and _sees_layers(step + 1, settings):
            dkv_norms = norms(dkv)  # before clipping
        for name, value in (("loss", loss), ("gradient norm", norm)):
            if not math.isfinite(value):
                raise self.not_finite(name, value, step + 1)
        return loss, grads, norm, dkv_norms

    def validate(self) -> float:
        size, bar = min(32, self.settings.micro_batch_size or 32), "validation"
        with np.errstate(over="ignore", invalid="ignore"), self.room(self.valid, size):
            prefix = self.prefix.fold() if isinstance(self.prefix, Prefix) else self.prefix
            loss = mean_loss(
                self.model, prefix, self.valid, self.settings.backend, size,
                bar if self.progress else None,
            )  # fmt: skip
        if not math.isfinite(loss):
            raise self.not_finite("validation loss", loss, self.state.step)
        return loss

    def keep_if_best(self, valid_loss: float) -> None:
        state = self.state
        if state.best_loss is None or valid_loss < state.best_loss:
            state.best_loss, state.best_step = valid_loss, state.step
            state.best = {name: p.copy() for name, p in self.prefix.parameters.items()}

    @contextmanager
    def room(self, examples: Sequence[Encoded], size: int) -> Iterator[None]:
        """A GPU without room for `size` of these examples is a sentence with a batch that fits."""
        try:
            yield
        except MemoryError as error:
            if self.model.backend != "cupy":
                raise
            lengths = sorted((len(e.ids) for e in examples), reverse=True)[:size]
            of = self.prefix
            slots = of.length if isinstance(of, Prefix) else of.position_offset
            said = out_of_memory(self.model.config, self.model.n_bytes, lengths, slots)
            raise InputError(f"{said}; {self.out / STATE} keeps the last state") from error

    def not_finite(self, name: str, value: float, step: int) -> Diverged:
        return Diverged(
            f"the {name} became {value} at step {step}: stopped, {self.out / STATE} keeps the last "
            "good state; start again with a lower --lr or with --clip"
        )


# ---- one step -----------------------------------------------------------------------------------


def _update(
    prefix: Prefix | Method,
    grads: dict[str, np.ndarray],
    norm: float,
    settings: Settings,
    state: State,
) -> float:
    """One step of AdamW. -> the learning rate."""
    s = settings
    lr = learning_rate(state.step, s.steps, s.lr, s.warmup, s.schedule)
    if s.clip is not None:
        clip(grads, norm, s.clip)
    with np.errstate(over="ignore", invalid="ignore"):  # found by the next step, or before saving
        state.adam.step(prefix.parameters, grads, lr)
    state.step += 1
    return lr


def _sees_layers(step: int, settings: Settings) -> bool:
    """At the first step, at the last, and a hundred times between them but not more often than at
    every tenth: the log stays readable, and what leaves a GPU stays little."""
    return step in (1, settings.steps) or step % max(10, settings.steps // 100) == 0


def norms(kv: np.ndarray) -> np.ndarray:
    """(layers, 2, NH, P, hs) -> (layers, 2): the Euclidean norm of each layer's keys and values."""
    wide = kv.astype(np.float64)  # whose squares do not overflow
    return np.sqrt((wide * wide).sum(axis=(2, 3, 4)))


def _layer_entry(prefix: Prefix, dkv_norms: np.ndarray, state: State) -> dict[str, Any]:
    """What a line of the log says of each layer: the norm of the gradient at the prefix before the
    step, and the distance of the prefix from its start after it. A state of an earlier version has
    no start."""
    parts = {"grad_norm": dkv_norms}
    for start in state.start.values():
        parts["distance"] = norms(prefix.kv.astype(np.float64) - start)
    both = to(np.stack(list(parts.values())), "numpy")  # (1 or 2, layers, 2) at once off a GPU
    entry: dict[str, Any] = {"layers": list(prefix.layers)}
    for name, by_layer in zip(parts, both, strict=True):
        if np.isfinite(by_layer).all():  # a step too long is found by the next one
            for what, column in zip(("keys", "values"), by_layer.T, strict=True):
                entry[f"{name}_{what}"] = [float(f"{x:.5g}") for x in column]
    return entry


def batch_gradient(
    model: GPT2, prefix: Prefix, chosen: Sequence[Encoded], settings: Settings, step: int
) -> tuple[float, np.ndarray]:
    """The loss of a batch and its gradient for `prefix.kv`, in micro-batches.

    Each adds the sum over its tokens; one division at the end, by the tokens (or sentences) of the
    whole batch, makes it the mean that the whole batch would have given.
    """
    mask = None
    if settings.dropout:
        rng, kv = np.random.default_rng([settings.seed, _DROPOUT, step]), prefix.kv
        mask = to(dropout_mask(kv.shape, settings.dropout, rng).astype(kv.dtype), prefix.backend)
    # an MLP is run once, not once per micro-batch
    seen = prefix.fold() if mask is None else prefix.masked(mask)
    batches, count = micro_batches(chosen, settings)
    loss, (dkv,) = mean_gradient(model, [seen], batches, count, settings.backend)
    return loss, dkv if mask is None else dkv * mask


def method_gradient(
    model: GPT2, method: Method, chosen: Sequence[Encoded], settings: Settings, step: int
) -> tuple[float, dict[str, np.ndarray]]:
    """The loss of a batch and its gradient for each parameter of a rival, in micro-batches as
    `batch_gradient`."""
    batches, count = micro_batches(chosen, settings)
    rng = np.random.default_rng([settings.seed, _DROPOUT, step])
    total, grads = 0.0, {name: np.zeros_like(p) for name, p in method.parameters.items()}
    for batch in batches:
        loss, parts = method.loss_and_grads(model, batch, "sum", settings.backend, rng)
        total += loss
        for name, part in parts.items():
            grads[name] += part
    for a in grads.values():
        a /= count
    return total / count, grads


def micro_batches(chosen: Sequence[Encoded], settings: Settings) -> tuple[list[Batch], int]:
    """A step's batches, and what the sum of their losses is divided by."""
    size = settings.micro_batch_size or len(chosen)
    parts = [chosen[i : i + size] for i in range(0, len(chosen), size)]
    batches = [Batch.pack([e.ids for e in p], loss_from=[e.loss_from for e in p]) for p in parts]
    n_targets = sum(len(e.ids) - e.loss_from for e in chosen)
    return batches, n_targets if settings.loss == "token-mean" else len(chosen)


def mean_gradient(
    model: GPT2, prefixes: Sequence[Prefix], batches: Sequence[Batch], count: int, ops: str | Ops
) -> tuple[float, list[np.ndarray]]:
    """The loss of all targets of all `batches` divided by `count`, and its gradient for the kv of
    each prefix."""
    total, dkvs = 0.0, [np.zeros_like(p.kv) for p in prefixes]
    for batch in batches:
        loss, parts = loss_and_grad(model, list(prefixes), batch, "sum", ops)
        total += loss
        for dkv, part in zip(dkvs, parts, strict=True):
            dkv += part
    for dkv in dkvs:
        dkv /= count
    return total / count, dkvs


@lru_cache(maxsize=1)
def _order(seed: int, epoch: int, n: int) -> np.ndarray:
    return np.random.default_rng([seed, _SHUFFLE, epoch]).permutation(n)


def _batch(examples: Sequence[Encoded], settings: Settings, step: int) -> list[Encoded]:
    """The batch of any step, from the seed alone: each epoch has its own permutation."""
    size = settings.batch_size
    epoch, i = divmod(step, math.ceil(len(examples) / size))
    order = _order(settings.seed, epoch, len(examples))
    return [examples[j] for j in order[i * size : (i + 1) * size]]


# ---- the bar ----------------------------------------------------------------------------------


def _bar(settings: Settings, state: State, progress: bool) -> Any:
    from tqdm import tqdm  # not above: the reference suite imports this, and needs NumPy alone

    often = 0.1 if sys.stderr.isatty() else 10  # s; a log file wants few lines
    more: dict[str, Any] = {"unit": "step", "dynamic_ncols": True, "mininterval": often}
    return tqdm(total=settings.steps, initial=state.step, disable=not progress, **more)


def _show(bar: Any, entry: dict[str, Any], state: State) -> None:
    shown = {"loss": f"{entry['loss']:.3f}", "tok/s": entry["tokens_per_second"]}
    if state.best_loss is not None:
        shown["best valid"] = f"{state.best_loss:.3f}"
    bar.set_postfix(shown, refresh=False)
    bar.update()


def _say_how_long(bar: Any, times: Sequence[float], left: int) -> None:
    """Say how long a long run will take, by its first steps but the very first, which warms up."""
    a_step = sorted(times[1:])[(len(times) - 1) // 2]  # s
    minutes = round(a_step * left / 60)
    if minutes >= 10 and not bar.disable:
        hours = f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"
        bar.write(
            f"{left} steps of {a_step:.1f} s take about {hours}, validations not counted; Ctrl-C "
            "saves, --resume goes on, and --epochs 1 or --steps N makes a shorter run",
            file=sys.stderr,
        )
