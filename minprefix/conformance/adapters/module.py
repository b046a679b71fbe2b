"""A PyTorch module as an implementation of the suite's level `model`."""

import contextlib
import inspect
import itertools
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import numpy as np

from minprefix.conformance.adapters.labels import mistake
from minprefix.conformance.adapters.layouts import checked
from minprefix.conformance.adapters.one_run import Run
from minprefix.conformance.adapters.places import Watch, check_names, places, trusted, value_of
from minprefix.conformance.adapters.prefixed import (
    ARGUMENTS,
    Build,
    Entry,
    Prefixed,
    cache_of,
    loss_of,
)
from minprefix.conformance.adapters.weights import Tensor
from minprefix.conformance.contract import ModelProblem, model_tensors
from minprefix.conformance.diagnosis import relative_error
from minprefix.errors import InputError
from minprefix.gpt2 import Config
from minprefix.ops import reference
from minprefix.ops.contract import Array

#: how many modules are kept: a check asks for one again and again
KEPT = 6

#: no two sizes are equal, so that a wrong order of the axes is seen
_TRIED = Config(n_layer=3, n_head=5, n_embd=35, vocab_size=11, n_positions=16)
_ROWS, _TOKENS, _SLOTS = 4, 8, 6


@dataclass
class ModuleUnderTest:
    """What `build` gives, graded: see `hugging_face`. It is built once for each set of weights."""

    build: Build
    name: str
    prefix: str = ""
    layout: str = ""
    mask: str = ""
    names: Mapping[str, str] = field(default_factory=dict)
    dtype: str = "float64"

    def __post_init__(self) -> None:
        if self.dtype not in ("float64", "float32"):
            raise InputError(f"dtype is {self.dtype!r}: expected float64 or float32")
        if self.mask not in ("", "P+T", "T"):
            raise InputError(f"MASK is {self.mask!r}: expected 'P+T' or 'T'")
        self.names = check_names(self.names, f"the map of names for {self.name}")
        self.layout = checked(self.layout) if self.layout else ""
        self._takes_length = _takes_length(self.build, self.name)
        self._modules: dict[tuple[Any, ...], Prefixed] = {}
        self._labelled: list[tuple[Array, Array, float]] = []  # see `labels.mistake`
        self._wrong: dict[str, bool] = {}  # tensor -> whether it was, in the last answer
        if self.dtype == "float32":  # the suite asks it what it made of the numbers
            self.asarray: Any = _in_single
        self.places: dict[str, tuple[str, str]] = {}
        self.entry = self._find_entry()

    # ---- the functions of the contract ----------------------------------------------------------

    def run_model(self, problem: ModelProblem) -> dict[str, Array]:
        self._labelled.clear()
        watch = Watch(self.name)
        with self._calling(problem) as run, contextlib.closing(watch):
            for rows in run.groups(self.entry):
                prefixed, ids = run.prefixed(rows[0]), run.ids(rows)
                self.places = places(prefixed.base, problem.config, run.weights, self.names)
                watch.on(prefixed.base, self.places)
                more = self._whole(ids) | run.positions(rows[0], ids.shape[1])
                logits = prefixed.logits(prefixed(ids, run.kv(rows), self.entry, **more))
                watch.keep("logits", logits)
                watch.end_of_group(rows)
                run.add_loss(rows, logits)
            found = run.finished()
            found |= watch.tensors(problem.config, problem.sequences, problem.loss_from)
            if problem.need == "all":
                found |= run.weight_gradients()
        B = len(problem.sequences)
        asked = model_tensors(problem.config, len(problem.prefixes), B, problem.need)
        return {name: found[name] for name in asked if name in found}

    def run_decoding(self, problem: ModelProblem) -> dict[str, Array]:
        import torch

        by_row: dict[int, list[Tensor]] = {}
        with self._calling(problem) as run, torch.no_grad():
            for rows in run.groups(self.entry):
                prefixed, ids = run.prefixed(rows[0]), run.ids(rows)
                cached = {"use_cache": True} if "use_cache" in prefixed.takes else {}
                more = cached | run.positions(rows[0], 1)
                output = prefixed(ids[:, :1], run.kv(rows), self.entry, **more)
                steps = [prefixed.logits(output)]
                for t in range(1, ids.shape[1]):
                    more = cached | run.positions(rows[0], 1, after=t)
                    past = cache_of(output)
                    output = prefixed.go_on(ids[:, t : t + 1], past, self.entry, **more)
                    steps.append(prefixed.logits(output))
                for j, b in enumerate(rows):
                    by_row[b] = [step[j] for step in steps]
        return {"logits": torch.cat([a for b in sorted(by_row) for a in by_row[b]]).numpy()}

    def run_padded(self, problem: ModelProblem) -> dict[str, Array]:
        """All texts as one batch: shorter ones are filled up behind, and attention_mask says so."""
        return self._padded(problem, left=False)

    def run_padded_left(self, problem: ModelProblem) -> dict[str, Array]:
        """The same, filled up in front; position_ids count the real tokens alone."""
        return self._padded(problem, left=True)

    def _padded(self, problem: ModelProblem, left: bool) -> dict[str, Array]:
        import torch

        by_row: dict[int, Tensor] = {}
        with self._calling(problem) as run:
            for rows in run.groups(self.entry, of_one_length=False):
                prefixed, lengths = run.prefixed(rows[0]), [len(problem.sequences[b]) for b in rows]
                T = max(lengths)
                starts = [T - n if left else 0 for n in lengths]
                ids = torch.full((len(rows), T), problem.config.vocab_size - 1)
                real = torch.zeros_like(ids)
                for j, b in enumerate(rows):
                    here = slice(starts[j], starts[j] + lengths[j])
                    ids[j, here], real[j, here] = torch.tensor(problem.sequences[b]), 1
                more = self._whole(ids) | run.masked(rows, real, self.entry.mask, left)
                logits = prefixed.logits(prefixed(ids, run.kv(rows), self.entry, **more))
                for j, b in enumerate(rows):
                    by_row[b] = logits[j, starts[j] : starts[j] + lengths[j]]
            for b, of_row in by_row.items():
                run.add_loss([b], of_row[None])
            kept = [by_row[b][start - 1 : -1] for b, start in enumerate(problem.loss_from)]
            return {"logits": torch.cat(kept).detach().numpy()} | run.finished()

    def run_labels(self, problem: ModelProblem) -> dict[str, Array]:
        """The module's own loss, with labels of -100 where nothing is predicted."""
        self._labelled.clear()
        with self._calling(problem) as run:
            for b, start in enumerate(problem.loss_from):
                prefixed, ids = run.prefixed(b), run.ids([b])
                if "labels" not in prefixed.takes:
                    raise NotImplementedError("forward takes no labels")
                labels, n = ids.clone(), ids.shape[1] - start
                labels[:, :start] = -100
                more = run.positions(b, ids.shape[1]) | {"labels": labels}
                if n > 0:
                    output = prefixed(ids, run.kv([b]), self.entry, **more)
                    loss = loss_of(output)
                    run.total, run.count = run.total + n * loss, run.count + n
                    logits = prefixed.logits(output)[0].detach().double().numpy()
                    self._labelled.append((logits, labels[0].numpy(), loss.item()))
            return run.finished()

    def _whole(self, ids: Tensor) -> dict[str, Tensor]:
        """What makes the module give the logits of every token: nanoGPT's gives the last one's
        alone where there are no targets."""
        return {"targets": ids} if self._with_targets else {}

    # ---- what the suite does with it ------------------------------------------------------------

    def trusted(
        self,
        found: Mapping[str, Any],
        right: Mapping[str, Array],
        asked: Sequence[str],
        most: float,
    ) -> dict[str, Any]:
        """Those of `found` that the suite should compare: see `places.trusted`. `right`: in the
        order in which they arise; `asked`: what is compared in any case; `most`: the error that is
        allowed."""
        names, wrong = [n for n in right if n in found], self._wrong
        wrong.clear()
        for name in names:
            got = np.asarray(found[name])
            wrong[name] = got.shape != right[name].shape or relative_error(got, right[name]) > most
        return {name: found[name] for name in trusted(names, wrong, asked)}

    def hint(self, tensor: str) -> str:
        """Where in the module the tensor of the suite is that was found wrong, and which was the
        last right one before it, in words; empty where it is not known."""
        if self._labelled:
            return mistake(self._labelled) if tensor == "loss" else ""
        here = self._place(tensor)
        if not here:
            return ""
        before = list(itertools.takewhile(lambda name: name != tensor, self._wrong))
        if not before or self._wrong[before[-1]]:
            return f"is {here}"
        last = self._place(before[-1])
        return f"is {here}; {before[-1]} before it{last and f', {last},'} is right"

    def _place(self, tensor: str) -> str:
        value = value_of(tensor)
        for name in (value, re.sub(r"attn\.[qkv]$", "attn.qkv", value)):
            if name in self.places:
                path, way = self.places[name]
                said = f"what {'goes into' if way == 'in' else 'comes out of'} {path}"
                return said if value == tensor else f"the gradient of {said}"
        return ""

    # ---- building and trying --------------------------------------------------------------------

    @contextlib.contextmanager
    def _calling(self, problem: ModelProblem) -> Iterator[Run]:
        """PyTorch as a run wants it: one thread, because more only wait for each other over such
        small matrices, and new tensors in the problem's precision."""
        import torch

        dtype = "float32" if self.dtype == "float32" else str(problem.prefixes[0].dtype)
        threads, before = torch.get_num_threads(), torch.get_default_dtype()
        torch.set_num_threads(1)
        torch.set_default_dtype(getattr(torch, dtype))
        try:
            yield Run(self, problem)
        finally:
            torch.set_num_threads(threads)
            torch.set_default_dtype(before)

    def module_for(self, problem: ModelProblem, weights: Mapping[str, Tensor], P: int) -> Prefixed:
        """The module with these weights, in the default precision. It is built once for each set
        of them, and for each length if it is built for one."""
        import torch

        digest = 0
        for name, a in weights.items():
            digest = zlib.crc32(a.numpy().tobytes(), zlib.crc32(name.encode(), digest))
        dtype, length = torch.get_default_dtype(), P if self._takes_length else 0
        key = (problem.config, digest, dtype, length)
        if key in self._modules:
            return self._modules[key]
        given = (problem.config, {n: t.clone() for n, t in weights.items()}, P)
        module = self.build(*given[: 3 if self._takes_length else 2])
        if not isinstance(module, torch.nn.Module):
            said = f"build of {self.name} gives a {type(module).__name__}"
            raise InputError(f"{said}: expected a torch.nn.Module with the weights in it")
        module.to(dtype).eval()
        for p in module.parameters():  # of a frozen one, too: block 0's intermediates need it
            p.requires_grad_(True)
        while len(self._modules) >= KEPT:
            del self._modules[next(iter(self._modules))]
        self._modules[key] = Prefixed(module, problem.config)
        return self._modules[key]

    def _find_entry(self) -> Entry:
        """How the prefix goes in, by trying. Raises InputError if no way is found."""
        problem, self._with_targets = _problem(), False
        with self._calling(problem) as run:
            try:
                prefixed = run.prefixed(0)
            except InputError:
                raise
            except Exception as error:
                raise InputError(f"build of {self.name} raised {said(error)}") from error
            entries = prefixed.entries(_SLOTS, self.prefix, self.layout)
            if not entries:
                raise InputError(self._no_entry(prefixed))
            self._with_targets = _wants_targets(prefixed, run)
        errors, refused = dict[Entry, float](), dict[str, str]()
        for entry in entries:
            try:
                errors[entry] = self._error(problem, entry)
            except Exception as error:
                refused.setdefault(said(error), str(entry))
        if not errors:
            causes = [f"{entry}: {error}" for error, entry in refused.items()]
            raise InputError(
                f"no prefix goes through {self.name}: {'; '.join(causes[:3])}. PREFIX and LAYOUT "
                "in the file say how it is taken"
            )
        best = min(errors, key=lambda entry: errors[entry])
        return replace(best, mask=self.mask or self._mask(problem, best))

    def _error(self, problem: ModelProblem, entry: Entry) -> float:
        """How far the logits are off if the prefix goes in so. Raises what the module raises, and
        InputError if no gradient comes back."""
        import torch

        with self._calling(problem) as run:
            by_row = dict[int, Tensor]()
            for rows in run.groups(entry):
                prefixed, ids = run.prefixed(rows[0]), run.ids(rows)
                output = prefixed(ids, run.kv(rows), entry, **self._whole(ids))
                logits = prefixed.logits(output)
                by_row |= {b: logits[j, :-1] for j, b in enumerate(rows)}
            together = torch.cat([by_row[b] for b in sorted(by_row)])
            grads = None
            if together.requires_grad:
                total = (together * together).sum()
                grads = torch.autograd.grad(total, run.leaves, allow_unused=True)
            if grads is None or any(g is None for g in grads):
                raise InputError(
                    "no gradient comes back to the prefix: it is not used, or it is detached"
                )
        error = relative_error(together.detach().numpy(), _right())
        return error if error > 1e-3 else 0.0  # of several that are right, the usual one

    def _mask(self, problem: ModelProblem, entry: Entry) -> str:
        """How long an attention_mask the module takes, by trying one of ones."""
        import torch

        for mask in (entry.mask,) if entry.is_parameter else ("P+T", "T"):
            try:
                with self._calling(problem) as run, torch.no_grad():
                    rows = run.groups(entry)[0]
                    ids, prefixed = run.ids(rows), run.prefixed(rows[0])
                    more = run.masked(rows, torch.ones_like(ids), mask, left=False)
                    prefixed(ids, run.kv(rows), entry, **self._whole(ids), **more)
            except Exception:
                continue
            return mask
        return entry.mask

    def _no_entry(self, prefixed: Prefixed) -> str:
        takes = ", ".join(sorted(prefixed.takes))
        if self.prefix:
            return (
                f"PREFIX is {self.prefix!r}, which is no argument of forward({takes}) and no "
                f"parameter of {type(prefixed.module).__name__} in the shape of a prefix"
            )
        return (
            f"forward({takes}) of {type(prefixed.module).__name__} has no argument that takes a "
            f"prefix: expected {', '.join(ARGUMENTS[:2])} or past_key_values; PREFIX = 'name' in "
            "the file names another"
        )


def _takes_length(build: object, name: str) -> bool:
    """Whether `build` takes a prefix's length, too. Raises InputError if it cannot be called."""
    expected = "expected build(config, weights) or build(config, weights, length)"
    if not callable(build):
        raise InputError(f"{name} has no function build: {expected}")
    signature = inspect.signature(build)
    for n in (3, 2):
        try:
            signature.bind(*range(n))
        except TypeError:
            continue
        return n == 3 and len(signature.parameters) == 3
    raise InputError(f"build{signature} of {name} has other arguments: {expected}")


def _wants_targets(prefixed: Prefixed, run: Run) -> bool:
    """Whether only with `targets` there are logits for every token."""
    if "targets" not in prefixed.takes:
        return False
    ids = run.ids([0])
    try:
        return bool(prefixed.logits(prefixed.base(ids)).shape[1] != ids.shape[1])
    except Exception:
        return True


def said(error: BaseException) -> str:
    """The kind of an exception and the start of what it says."""
    text = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
    return " ".join(text.split())[:200]


@cache
def _problem() -> ModelProblem:
    """What is tried first. Each sequence has its own prefix."""
    c, rng = _TRIED, np.random.default_rng(3)
    kv = (c.n_layer, 2, c.n_head, _SLOTS, c.head_size)
    return ModelProblem(
        config=c,
        weights={n: rng.normal(0, 0.3, shape) for n, shape in c.shapes().items()},
        sequences=rng.integers(0, c.vocab_size, (_ROWS, _TOKENS)).tolist(),
        loss_from=[1] * _ROWS,
        prefix_of=list(range(_ROWS)),
        prefixes=[rng.normal(0, 0.7, kv) for _ in range(_ROWS)],
        position_offsets=[_SLOTS] * _ROWS,
    )


@cache
def _right() -> Array:
    from minprefix.conformance.house import House  # not at the top: training needs more than NumPy

    return House(reference).run_model(_problem())["logits"]


def _in_single(a: Array) -> Array:
    return a.astype(np.float32) if a.dtype.kind == "f" else a
