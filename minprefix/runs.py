"""A job from its data to the folder that it leaves: what `minprefix demo` and `minprefix train`
share."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from minprefix.data import demo as demo_pairs
from minprefix.data.pairs import Encoded, Pair, Template, encode_pairs, fingerprint, read_pairs
from minprefix.errors import InputError, counted, note
from minprefix.evaluate import mean_loss
from minprefix.method import Method
from minprefix.methods import (
    Adapters,
    BitFit,
    FineTuning,
    Infix,
    LoRA,
    PromptTuning,
    PTuning,
    TopLayers,
    load,
)
from minprefix.methods.lora import check_targets
from minprefix.model import GPT2
from minprefix.ops import BACKENDS
from minprefix.prefix import MLPPrefix, Prefix
from minprefix.prefixes.verify import evaluation
from minprefix.settings import BELONGS, INIT_STD, LENGTH, PREFIX, Demo, Job, Settings
from minprefix.storage.artifact import MLP
from minprefix.storage.fingerprint import digest
from minprefix.storage.provenance import Evaluation
from minprefix.storage.run import RUN_FILES
from minprefix.storage.saving import run_folder
from minprefix.storage.writing import write_json
from minprefix.train import Result, check_trainable, train

PROBE = 32  # pairs on which the frozen model and the trained prefix are compared


# ---- the data ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Data:
    """Pairs, and the tokens of those that fit."""

    path: str
    pairs: list[Pair]
    encoded: list[Encoded]
    sample: list[Encoded]  # the pairs that a validation scores
    room: int

    @classmethod
    def of(
        cls,
        path: str,
        pairs: list[Pair],
        model: GPT2,
        template: Template,
        room: int,
        skip_long: bool = False,
        size: int | None = None,
        rival: str | None = None,
    ) -> "Data":
        """`size`: how many make the sample, None or 0 for all; `rival`: as in `encode_pairs`.
        Raises InputError for all that it refuses, and where no pair fits."""
        encoded = encode_pairs(model, pairs, template, room, skip_long, rival)
        if not encoded:
            raise InputError(
                f"data file {path}: every pair is longer than the {room} tokens of room: shorten "
                f"the pairs{'' if rival else ' or the prefix'}"
            )
        return cls(path, pairs, encoded, drawn(encoded, size or len(encoded)), room)


def drawn(examples: Sequence[Encoded], size: int) -> list[Encoded]:
    """So many of them, in their order: the same ones in every run, so that runs can be compared."""
    if size >= len(examples):
        return list(examples)
    places = np.random.default_rng(0).choice(len(examples), size, replace=False)
    return [examples[i] for i in sorted(places)]


# ---- before the training ----------------------------------------------------------------------


@dataclass(frozen=True)
class Work:
    """All that a training needs, read and checked. `about` is recorded."""

    model: GPT2
    prefix: Prefix | Method
    template: Template
    data: Data
    valid: Data | None
    settings: Settings
    about: dict[str, Any]

    @property
    def scored(self) -> tuple[str, Data]:
        """("valid", its pairs), or ("data", its pairs) where there are no others."""
        return ("data", self.data) if self.valid is None else ("valid", self.valid)

    @property
    def probe(self) -> list[Encoded]:
        return drawn(self.scored[1].encoded, PROBE)


def for_job(job: Job, out: Path) -> Work:
    """Raises InputError for all that cannot be trained."""
    model = GPT2.load(job.model, revision=job.revision)
    model.check_finite()  # before a folder is made for a run that cannot begin
    prefix = start_method(model, job)
    if job.init_prefix is not None and out.exists() and out.samefile(job.init_prefix):
        why = "is the folder of --init-prefix, which --resume reads again: choose another --out"
        raise InputError(f"--out {out} {why}")
    prefix.check(model.config, model.name)
    check_trainable(prefix)
    home = BACKENDS[job.backend]
    model, prefix = model.to(home), prefix.to(home)
    template, skip, size = Template(job.template), job.skip_long, job.valid_samples
    # an earlier version left out pairs whose last token has no position; it took no sample
    room = model.room(prefix) - (skip and size is None)

    rival = None if isinstance(prefix, Prefix) else called(prefix)

    def read(path: str) -> Data:
        pairs = read_pairs(path, job.source_column, job.target_column)
        return Data.of(path, pairs, model, template, room, skip, size, rival)

    assert job.data is not None
    data, valid = read(job.data), read(job.valid) if job.valid else None
    start_sha = {"sha256": digest(prefix.parameters)} if job.init == "prefix" else {}
    about = {
        "command": "train",
        "template": template.text,
        "loss_from": "the first token of the target",
        "data_sha256": fingerprint(job.data),
        "valid_sha256": fingerprint(job.valid) if job.valid else None,
        "options": {name: value for name, value in asdict(job).items() if value is not None},
        "init": start_of(job) | start_sha,
    }
    settings = job.settings(len(data.encoded))
    return Work(model, prefix, template, data, valid, settings, about)


def for_demo(demo: Demo) -> Work:
    """The shipped model, and table-to-text on the tiny world."""
    home = BACKENDS[demo.backend]
    model = GPT2.load().to(home)
    prefix = Prefix.normal(model.config, demo.prefix_length, INIT_STD, demo.seed).to(home)
    check_trainable(prefix)
    template, room = Template(), model.room(prefix)
    data, valid = (
        Data.of("the tiny world", demo_pairs.recorded_pairs(of, demo.seed), model, template, room)
        for of in ("data", "valid")
    )
    about = {
        "command": "demo",
        "task": "tiny world, table to text",
        "template": template.text,
        "data_sha256": demo_pairs.fingerprint(data.pairs),
        "valid_sha256": demo_pairs.fingerprint(valid.pairs),
        "init": {"init": "normal", "init_std": INIT_STD},
        "options": asdict(demo),
    }
    return Work(model, prefix, template, data, valid, demo.settings(), about)


def loss(
    model: GPT2, prefix: Prefix | Method | None, probe: Sequence[Encoded], settings: Settings
) -> float:
    size = min(8, settings.micro_batch_size or 8)
    folded = prefix.fold() if isinstance(prefix, Prefix) else prefix
    with np.errstate(over="ignore", invalid="ignore"):
        return mean_loss(model, folded, probe, settings.backend, size, "loss")


def called(prefix: Prefix | Method) -> str:
    """What a sentence calls it: "the prefix", or a rival's name."""
    words = {"full": "full fine-tuning", "top-layers": "fine-tuned top layers"}
    return "the prefix" if isinstance(prefix, Prefix) else words.get(prefix.name, prefix.name)


# ---- the untrained prefix ---------------------------------------------------------------------

#: start -> the option that it reads, and what that option stands for
STARTS = {
    "normal": ("init_std", ""),
    "uniform": ("init_bound", ""),
    "text": ("init_text", "the text to start from"),
    "prefix": ("init_prefix", "the folder of a trained prefix"),
}


def start_of(job: Job) -> dict[str, Any]:
    """How the prefix, or a rival, starts, with every default filled in: it is recorded. Raises
    InputError for an option without effect, and for a missing one."""
    unsaid = job.unsaid()
    init = job.init or unsaid["init"]
    for wanted, (option, _) in STARTS.items():
        if getattr(job, option) is not None and init != wanted:
            raise InputError(
                f"--{option.replace('_', '-')} belongs to --init {wanted}, and --init is "
                f"{init or 'not given'}"
            )
    if init == "network" and job.mlp_hidden is None:
        raise InputError("--init network is the MLP's own start: give --mlp-hidden as well")
    start: dict[str, Any] = {} if init is None else {"init": init}
    if init in STARTS:
        option, what = STARTS[init]
        given = getattr(job, option)
        start[option] = unsaid.get(option) if given is None else given
        if start[option] is None:
            raise InputError(f"--init {init} needs --{option.replace('_', '-')}: {what}")
    return start | ({} if job.mlp_hidden is None else {"mlp_hidden": job.mlp_hidden})


def start_prefix(model: GPT2, job: Job) -> Prefix:
    """The untrained prefix that the options describe. Raises InputError for an option without
    effect."""
    start, length, onto = start_of(job), job.prefix_length, None
    where: dict[str, Any] = {"layers": job.layers, "position_offset": job.position_offset}
    init = start["init"]
    if init == "prefix":
        return _saved_start(model, job)
    if init == "text":
        onto = Prefix.text(model, start["init_text"], **where)
        if length not in (None, onto.length):
            raise InputError(
                f"--init-text has {counted(onto.length, 'token')} and --prefix-length is {length}: "
                "leave out --prefix-length or give a text of that length"
            )
        length = onto.length
    size = (model.config, job.unsaid()["prefix_length"] if length is None else length)
    if init == "normal":
        onto = Prefix.normal(*size, start["init_std"], job.seed, **where)
    elif init == "uniform":
        onto = Prefix.uniform(*size, start["init_bound"], job.seed, **where)
    elif init == "zero":
        onto = Prefix.zero(*size, **where)
    if job.mlp_hidden is not None:
        return Prefix.mlp(*size, job.mlp_hidden, job.seed, onto, **where)
    assert onto is not None
    return onto


def start_method(model: GPT2, job: Job) -> Prefix | Method:
    """What is trained, as it starts. Raises InputError for an option without effect, and for all
    that the method refuses."""
    start, own, seed, length = start_of(job), job.own(), job.seed, job.prefix_length
    slots = LENGTH if length is None else length
    match job.trained, start.get("init"):
        case method, "prefix" if method != PREFIX:
            return _saved_method(model, job)
        case "full", _:
            return FineTuning.start(model)
        case "top-layers", _:
            return TopLayers.start(model, own["top_layers"])
        case "bitfit", _:
            return BitFit.start(model)
        case "lora", _:
            return LoRA.start(model, **own, dropout=job.dropout, seed=seed)
        case "adapters", _:
            return Adapters.start(model, **own, seed=seed)
        case "p-tuning", _:
            return PTuning.start(model, slots, own["encoder_hidden"], seed, own["encoder"])
        case "infix", _:
            return Infix.start(model, slots, start["init_std"], seed)
        case "prompt-tuning", "vocabulary":
            return PromptTuning.vocabulary(model, slots, seed)
        case "prompt-tuning", "text":
            return PromptTuning.text(model, start["init_text"], length)
        case "prompt-tuning", _:
            return PromptTuning.normal(model, slots, start["init_std"], seed)
    return start_prefix(model, job)


def _saved_method(model: GPT2, job: Job) -> Method:
    """The rival of --init-prefix. Raises InputError for another method, and for an option that
    contradicts it."""
    place = job.init_prefix
    assert place is not None
    saved = load(place, model, str(model.dtype))
    name = PREFIX if isinstance(saved, Prefix) else saved.name
    if isinstance(saved, Prefix) or name != job.trained:
        raise InputError(
            f"--init-prefix {place} holds what --method {name} trained, and --method is "
            f"{job.trained}: give one of the same method"
        )
    facts = saved.options | {"prefix_length": saved.position_offset}
    if isinstance(saved, LoRA):
        saved.dropout = facts["dropout"] = job.dropout  # of the training, as a prefix's
    for option, methods in BELONGS.items():
        asked = getattr(job, option) if name in methods else None
        if option == "targets" and asked is not None:
            asked = check_targets(asked)
        if asked is not None and option != "init_text" and asked != facts.get(option, asked):
            raise InputError(
                f"--{option.replace('_', '-')} is {asked}, {name} in {place} has {facts[option]}: "
                "leave it out"
            )
    return saved


def _saved_start(model: GPT2, job: Job) -> Prefix:
    """The prefix of --init-prefix, or with --mlp-hidden its MLP. Raises InputError for an option
    that contradicts it."""
    hidden, place = job.mlp_hidden, job.init_prefix
    assert place is not None
    prefix = (Prefix if hidden is None else MLPPrefix).load(place, model)
    if hidden is None and (Path(place) / MLP).exists():
        note(f"the MLP of {place} is left out; --mlp-hidden takes it along")
    width = None if hidden is None else prefix.parameters["bias_1"].size
    for option, asked, value, do in (
        ("prefix-length", job.prefix_length, prefix.length, "leave it out"),
        ("layers", job.layers, list(prefix.layers) if prefix.subset else None, "leave it out"),
        ("position-offset", job.position_offset, prefix.position_offset, "leave it out"),
        ("mlp-hidden", hidden, width, f"give {width}"),  # left out, the MLP would be, too
    ):
        if asked not in (None, value):
            raise InputError(f"--{option} is {asked}, the prefix in {place} has {value}: {do}")
    return prefix


# ---- the training -----------------------------------------------------------------------------


class Done(NamedTuple):
    """The outcome of a run. `metrics` are those of metrics.json."""

    result: Result
    metrics: dict[str, Any]
    evaluation: Evaluation


def carry_out(
    work: Work,
    out: Path,
    measure: Callable[[Result], dict[str, Any]],
    force: bool,
    resume: bool,
    recorded: Sequence[str] | None = None,
) -> Done:
    """Train, and write the prefix, or the rival, and metrics.json into `out`, beside what `train`
    writes.

    `measure` gives the metrics of what was trained; those named in `recorded` (default all) are
    recorded with it. Raises KeyboardInterrupt where Ctrl-C stopped the training, and
    InputError for a folder that is taken, for all that `train` refuses, and for a prefix whose loss
    is not a finite number.
    """
    model, prefix, settings = work.model, work.prefix, work.settings
    with run_folder(out, RUN_FILES, force, resume):
        valid = None if work.valid is None else work.valid.sample
        result = train(model, prefix, work.data.encoded, settings, out, valid, work.about, resume)
        if result.interrupted:
            raise KeyboardInterrupt
        if not result.base_unchanged:
            raise AssertionError("the frozen model changed while training: a bug in minprefix")
        of, data = work.scored
        with np.errstate(over="ignore", invalid="ignore"):  # refused in the next lines
            metrics = measure(result)
            found = evaluation(
                model, prefix, data.pairs, data.encoded, work.template, of, settings.backend
            )
        try:  # JSON has no NaN and no infinity, and a prefix with such a loss is of no use
            json.dumps([metrics, asdict(found)], allow_nan=False)
        except ValueError:
            trained, none = "the trained prefix", "no prefix"
            if not isinstance(prefix, Prefix):
                trained, none = called(prefix), "nothing"
            raise InputError(
                f"the loss with {trained} is not a finite number, so {none} was saved in {out}: "
                f"train again with --force and a lower --lr (it was {settings.lr:g}) or --clip"
            ) from None
        kept = {name: metrics[name] for name in recorded or metrics}
        prefix.save(out, model, work.about | {"settings": vars(settings)}, kept, found)
        write_json(out / "metrics.json", metrics)
    return Done(result, metrics, found)
