"""The training loop: a frozen model, a prefix, AdamW; saved as it goes so that a kill loses nothing
but time.

Everything random is drawn from (seed, what for, step or epoch), so a run that resumes at step s
draws what the run that never stopped drew, and ends in the same bytes.
"""

import hashlib
import math
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any, cast

import numpy as np
from tqdm import tqdm

from minprefix.batch import Batch
from minprefix.budget import out_of_memory
from minprefix.data.pairs import Encoded
from minprefix.errors import InputError, counted
from minprefix.evaluate import mean_loss
from minprefix.model import GPT2, check_same_place, digest, loss_and_grad, operations
from minprefix.ops import Ops, get, memory, to
from minprefix.optim import AdamW, clip, global_norm, learning_rate
from minprefix.prefix import Prefix, dropout_mask
from minprefix.settings import Settings
from minprefix.show.training import loss_picture
from minprefix.storage.run import (
    LOG,
    PICTURE,
    STATE,
    Log,
    State,
    load_state,
    save_state,
    saved_step,
)
from minprefix.storage.saving import new_folder, only_writer

_SHUFFLE, _DROPOUT = 0, 1  # what a random draw is for


@dataclass(frozen=True)
class Result:
    """How a run ended. `interrupted`: by Ctrl-C; it can be resumed."""

    step: int
    interrupted: bool
    seconds: float
    best_loss: float | None
    best_step: int | None
    base_unchanged: bool | None  # None: interrupted, nobody has looked


def train(
    model: GPT2,
    prefix: Prefix,
    examples: Sequence[Encoded],
    settings: Settings,
    out: str | Path,
    valid: Sequence[Encoded] | None = None,
    about: dict[str, Any] | None = None,
    resume: bool = False,
    progress: bool = True,
) -> Result:
    """Train `prefix` in place; with `valid` it ends as the best so far, else as the last.

    Writes into `out` as it goes: state.safetensors (for `resume`), log.jsonl (a line a step; some
    say more of each layer, see `_sees_layers`), loss.png. `about` is recorded, too; everything
    recorded must be the same when resuming. The process keeps the memory that it frees from here on
    (`ops.memory`).

    Ctrl-C stops it at once: the step under way is dropped, all before it is saved, and resuming
    does it again. Raises InputError for a prefix without numbers, when resuming what is not there
    or was another run, when another process writes into `out`, when the disk refuses, and when the
    loss turns NaN (the last good state stays).
    """
    if not examples:
        raise InputError("there are no examples to train on: expected at least one")
    check_trainable(prefix)
    operations(model, settings.backend)  # raises InputError where they are not in one place,
    check_same_place(model, prefix)  # before a folder is made for a run that cannot begin
    memory.keep_freed()
    if settings.backend == "cupy":
        cast(Any, get("cupy")).matmul_precision(settings.matmul)
    out = Path(out)
    if resume:
        saved_step(out)  # a sentence where there is no run, not a folder
    else:
        new_folder(out, (), force=False)
    with only_writer(out):
        if not resume and (out / STATE).exists():
            raise InputError(
                f"{out} already holds a run: resume it, remove it, or choose another folder"
            )
        record = _record(model, prefix, examples, settings, valid, about)
        return _train(model, prefix, examples, settings, out, valid, record, resume, progress)


def check_trainable(prefix: Prefix) -> None:
    """Raises InputError for a prefix of no slots or in no layer."""
    if not prefix.kv.size:
        raise InputError(
            f"the prefix has {counted(prefix.length, 'slot')} in "
            f"{counted(len(prefix.layers), 'layer')}: there is "
            "nothing to train, expected at least one slot in one layer (--prefix-length 10)"
        )


def _train(
    model: GPT2,
    prefix: Prefix,
    examples: Sequence[Encoded],
    settings: Settings,
    out: Path,
    valid: Sequence[Encoded] | None,
    record: dict[str, Any],
    resume: bool,
    progress: bool,
) -> Result:
    start, before = time.time(), digest(model.weights)
    state = load_state(out, prefix, record) if resume else State(0, _adam(settings))
    if not resume:
        state.start = {"kv": prefix.kv.copy()}
        save_state(out, prefix, state, record)  # from here on there is always a last good state
    first_step, batches, log = state.step, _Batches(examples, settings), Log(out / LOG, state.step)

    def save() -> None:
        log.flush()  # a state is never ahead of its log
        save_state(out, prefix, state, record)

    def validate() -> float:
        return _validate(model, prefix, valid or (), settings, state, out, progress)

    bar = _bar(settings, state, progress)
    with log, bar, _ctrl_c() as stop:
        times: list[float] = []
        with suppress(_Stopped):
            while state.step < settings.steps:
                step, chosen = state.step + 1, batches.at(state.step)
                saves = state.step > first_step and state.step % settings.save_every == 0
                scored = valid and (step % settings.eval_every == 0 or step == settings.steps)
                then = (save if saves else None, validate if scored else None)
                entry = _step(model, prefix, chosen, settings, state, out, stop, *then)
                log.write(entry)
                _show(bar, entry, state)
                times.append(entry["seconds"])
                if len(times) == 4:
                    _say_how_long(bar, times, settings.steps - state.step)
        for name, p in prefix.parameters.items():  # nobody has seen the loss that these give
            if not np.isfinite(p).all():
                raise _not_finite(f"parameter {name}", float("nan"), state.step, out)
        save()  # at the end, or where Ctrl-C stopped it
    finished = state.step == settings.steps
    if finished:
        for name, best in state.best.items():
            prefix.parameters[name][...] = best
        # after Ctrl-C nobody waits for a picture: `minprefix plot loss` draws it
        loss_picture(out / PICTURE, *log.read(), _title(model, prefix))
    return Result(
        step=state.step,
        interrupted=not finished,
        seconds=time.time() - start,
        best_loss=state.best_loss,
        best_step=state.best_step,
        base_unchanged=digest(model.weights) == before if finished else None,
    )


def _record(
    model: GPT2,
    prefix: Prefix,
    examples: Sequence[Encoded],
    settings: Settings,
    valid: Sequence[Encoded] | None,
    about: dict[str, Any] | None,
) -> dict[str, Any]:
    """All that decides a run: it is saved, and must be the same when the run is resumed."""
    return {
        "settings": asdict(settings),
        "about": about,
        "base_sha256": model.fingerprint(),
        "prefix": {
            "layers": list(prefix.layers),
            "position_offset": prefix.position_offset,
            "parameters": {n: [str(p.dtype), *p.shape] for n, p in prefix.parameters.items()},
        },
        "examples_sha256": _fingerprint(examples),
        "valid_examples_sha256": _fingerprint(valid or ()),
    }


def _fingerprint(examples: Sequence[Encoded]) -> str:
    sha = hashlib.sha256()
    for example in examples:
        sha.update(np.array([len(example.ids), example.loss_from, *example.ids], np.int64).data)
    return sha.hexdigest()


def _adam(settings: Settings) -> AdamW:
    return AdamW(weight_decay=settings.weight_decay)


def _title(model: GPT2, prefix: Prefix) -> str:
    name = Path(model.name).name
    return f"{counted(prefix.length, 'slot')} on {name}: {prefix.n_parameters:,} trained parameters"


# ---- one step ---------------------------------------------------------------------------------


def _step(
    model: GPT2,
    prefix: Prefix,
    chosen: Sequence[Encoded],
    settings: Settings,
    state: State,
    out: Path,
    stop: "_Stop",
    save: Callable[[], None] | None,
    validate: Callable[[], float] | None,
) -> dict[str, Any]:
    """-> the line of the log. `save`: what stands, before it changes; `validate`: what came of it.
    Raises _Stopped for a Ctrl-C, and leaves prefix and state as they were before this step."""
    started = time.perf_counter()
    with stop.at_once():
        loss, grads, norm, dkv_norms = _gradient(model, prefix, chosen, settings, state, out)
    if save:
        save()  # only now are these parameters known good
    before = (deepcopy(prefix.parameters), deepcopy(state.adam)) if validate else None
    lr = _update(prefix, grads, norm, settings, state)
    entry = _log_entry(state.step, loss, lr, norm, chosen, time.perf_counter() - started)
    if dkv_norms is not None:
        entry |= _layer_entry(prefix, dkv_norms, state)
    if validate and before:
        try:
            with stop.at_once():
                valid_loss = validate()
        except _Stopped:  # a line of the log without its validation would be another run's
            for name, p in before[0].items():
                prefix.parameters[name][...] = p
            state.adam, state.step = before[1], state.step - 1
            raise
        entry["valid_loss"] = valid_loss
        if state.best_loss is None or valid_loss < state.best_loss:
            state.best_loss, state.best_step = valid_loss, state.step
            state.best = {name: p.copy() for name, p in prefix.parameters.items()}
    return entry


def _gradient(
    model: GPT2,
    prefix: Prefix,
    chosen: Sequence[Encoded],
    settings: Settings,
    state: State,
    out: Path,
) -> tuple[float, dict[str, np.ndarray], float, np.ndarray | None]:
    """-> the loss, the gradient of each parameter, and their global norm, all of them finite; and
    at some steps the norms of dkv by layer."""
    with np.errstate(over="ignore", invalid="ignore"):  # a loss that explodes is reported below
        with _room(model, prefix, chosen, settings.micro_batch_size or len(chosen), out):
            loss, dkv = batch_gradient(model, prefix, chosen, settings, state.step)
        grads = prefix.backward(dkv)
        norm = global_norm(grads)
    dkv_norms = norms(dkv) if _sees_layers(state.step + 1, settings) else None  # before clipping
    for name, value in (("loss", loss), ("gradient norm", norm)):
        if not math.isfinite(value):
            raise _not_finite(name, value, state.step + 1, out)
    return loss, grads, norm, dkv_norms


@contextmanager
def _room(
    model: GPT2, prefix: Prefix, examples: Sequence[Encoded], size: int, out: Path
) -> Iterator[None]:
    """A GPU that has no room for `size` of these examples is a sentence with a batch that fits."""
    try:
        yield
    except MemoryError as error:
        if model.backend != "cupy":
            raise
        lengths = sorted((len(e.ids) for e in examples), reverse=True)[:size]
        said = out_of_memory(model, lengths, prefix.length)
        raise InputError(f"{said}; {out / STATE} keeps the last state") from error


def _not_finite(name: str, value: float, step: int, out: Path) -> InputError:
    return InputError(
        f"the {name} became {value} at step {step}: stopped, {out / STATE} keeps the last good "
        "state; start again with a lower --lr or with --clip"
    )


def _update(
    prefix: Prefix,
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


def _log_entry(
    step: int, loss: float, lr: float, norm: float, chosen: Sequence[Encoded], seconds: float
) -> dict[str, Any]:
    tokens = sum(len(e.ids) for e in chosen)
    return {
        "step": step,
        "loss": loss,
        "lr": lr,
        "grad_norm": norm,
        "tokens": tokens,
        "seconds": round(seconds, 4),
        "tokens_per_second": round(tokens / seconds),
    }


def _sees_layers(step: int, settings: Settings) -> bool:
    """At the first step, at the last, and a hundred times between them but not more often than at
    every tenth: the log stays readable, and what leaves a GPU stays little."""
    return step in (1, settings.steps) or step % max(10, settings.steps // 100) == 0


def norms(kv: np.ndarray) -> np.ndarray:
    """(layers, 2, NH, P, hs) -> (layers, 2): the Euclidean norm of each layer's keys and values."""
    wide = kv.astype(np.float64)  # whose squares do not overflow
    return np.sqrt((wide * wide).sum(axis=(2, 3, 4)))


def _layer_entry(prefix: Prefix, dkv_norms: np.ndarray, state: State) -> dict[str, Any]:
    """What a line of the log says of each layer: the gradient at the prefix, before the step, and
    how far the step has taken it from its start. A state of an earlier version has no start."""
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
    seen, mask = prefix, None
    if settings.dropout:
        rng = np.random.default_rng([settings.seed, _DROPOUT, step])
        kv = prefix.kv
        mask = dropout_mask(kv.shape, settings.dropout, rng).astype(kv.dtype)
        mask = to(mask, prefix.backend)
        seen = prefix.masked(mask)
    else:
        seen = prefix.fold()  # an MLP is run once, not once per micro-batch
    size = settings.micro_batch_size or len(chosen)
    batches = []
    for i in range(0, len(chosen), size):
        part = chosen[i : i + size]
        batches.append(Batch.pack([e.ids for e in part], loss_from=[e.loss_from for e in part]))
    n_targets = sum(len(e.ids) - e.loss_from for e in chosen)
    count = n_targets if settings.loss == "token-mean" else len(chosen)
    loss, (dkv,) = mean_gradient(model, [seen], batches, count, settings.backend)
    return loss, dkv if mask is None else dkv * mask


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


def _validate(
    model: GPT2,
    prefix: Prefix,
    valid: Sequence[Encoded],
    settings: Settings,
    state: State,
    out: Path,
    progress: bool,
) -> float:
    size, bar = min(32, settings.micro_batch_size or 32), "validation" if progress else None
    with np.errstate(over="ignore", invalid="ignore"), _room(model, prefix, valid, size, out):
        loss = mean_loss(model, prefix.fold(), valid, settings.backend, size, bar)
    if not math.isfinite(loss):
        raise _not_finite("validation loss", loss, state.step, out)
    return loss


def _bar(settings: Settings, state: State, progress: bool) -> "tqdm[Any]":
    return tqdm(
        total=settings.steps,
        initial=state.step,
        unit="step",
        disable=not progress,
        dynamic_ncols=True,
        mininterval=0.1 if sys.stderr.isatty() else 10,  # a log file wants few lines
    )


def _show(bar: "tqdm[Any]", entry: dict[str, Any], state: State) -> None:
    shown = {"loss": f"{entry['loss']:.3f}", "tok/s": entry["tokens_per_second"]}
    if state.best_loss is not None:
        shown["best valid"] = f"{state.best_loss:.3f}"
    bar.set_postfix(shown, refresh=False)
    bar.update()


def _say_how_long(bar: "tqdm[Any]", times: Sequence[float], left: int) -> None:
    """After the first steps, of which the very first warms up: what is to be expected of a long
    run."""
    a_step = sorted(times[1:])[(len(times) - 1) // 2]  # s
    minutes = round(a_step * left / 60)
    if minutes >= 10 and not bar.disable:
        hours = f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"
        bar.write(
            f"{left} steps of {a_step:.1f} s take about {hours}, validations not counted; Ctrl-C "
            "saves, --resume goes on, and --epochs 1 or --steps N makes a shorter run",
            file=sys.stderr,
        )


class _Batches:
    """The batch of any step, from the seed alone: each epoch is a permutation of its own."""

    def __init__(self, examples: Sequence[Encoded], settings: Settings) -> None:
        self.examples, self.settings = examples, settings
        self.per_epoch = math.ceil(len(examples) / settings.batch_size)
        self._epoch, self._order = -1, np.empty(0, np.int64)

    def at(self, step: int) -> list[Encoded]:
        epoch, i = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            rng = np.random.default_rng([self.settings.seed, _SHUFFLE, epoch])
            self._epoch, self._order = epoch, rng.permutation(len(self.examples))
        size = self.settings.batch_size
        return [self.examples[j] for j in self._order[i * size : (i + 1) * size]]


class _Stopped(KeyboardInterrupt):
    """By Ctrl-C."""


class _Stop:
    """Whether Ctrl-C was pressed, and whether that may end what goes on."""

    asked, computing = 0, False

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """What is done within changes nothing that is kept, so Ctrl-C ends it anywhere."""
        try:
            self.computing = True
            if self.asked:
                raise _Stopped
            yield
        finally:
            self.computing = False


@contextmanager
def _ctrl_c() -> Iterator[_Stop]:
    """Ctrl-C stops what computes, at once, and lets what writes finish: half a step of AdamW is no
    state to save. The second is impatience and changes nothing; the third stops even a save."""
    stop = _Stop()

    def ask(number: int, frame: FrameType | None) -> None:
        stop.asked += 1
        if stop.computing:
            stop.computing = False
            raise _Stopped
        if stop.asked > 2:  # not _Stopped, after which what stands in memory is saved
            raise KeyboardInterrupt

    try:
        old = signal.signal(signal.SIGINT, ask)
    except ValueError:  # not in the main thread: Ctrl-C does not come here
        yield stop
        return
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, old)
