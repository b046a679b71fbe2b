"""The command line. Bad input is answered with one sentence and exit status 2, Ctrl-C with 130."""

import argparse
import shlex
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from minprefix import __version__, console
from minprefix.bench.options import add_options as bench_options
from minprefix.cli.compare import IMPLEMENTATION
from minprefix.cli.compare import add_command as compare_command
from minprefix.cli.lessons import add_command as lessons_command
from minprefix.cli.plot import add_command as plot_command
from minprefix.cli.prefixes import add_commands as prefix_commands
from minprefix.cli.step import add_command as step_command
from minprefix.errors import InputError, Note, counted

if TYPE_CHECKING:
    from minprefix.data.pairs import Template
    from minprefix.generate import Decoding
    from minprefix.model import GPT2
    from minprefix.outlook import Data
    from minprefix.prefix import Prefix
    from minprefix.train import Settings

# Each command imports what it needs: `minprefix --help` should not wait for matplotlib.


def main(argv: Sequence[str] | None = None) -> int:
    console.take_every_character()
    args = _parser().parse_args(argv)
    try:
        if getattr(args, "threads", None) is not None:
            from minprefix.ops import threads

            threads.limit(args.threads)
        with _notes():
            return args.run(args)
    except InputError as error:
        print(f"minprefix: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("minprefix: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader (`head`) has enough
        sys.stderr.close()
        return 0
    except OSError as error:  # a path that the system refuses: too long, not permitted, a folder
        where = "" if error.filename is None else f"{error.filename}: "  # print has no file's name
        print(f"minprefix: error: {where}{error.strerror or error}", file=sys.stderr)
        return 2
    except RecursionError:
        print("minprefix: error: a file is nested too deeply: it is damaged", file=sys.stderr)
        return 2
    except MemoryError as error:
        said = str(error).rstrip(".") or "out of memory"
        print(f"minprefix: error: {said}: give smaller sizes", file=sys.stderr)
        return 2


@contextmanager
def _notes() -> Iterator[None]:
    """A note is one line on standard error."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", Note)
        others = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *where: Any) -> None:
            if issubclass(category, Note):
                print(f"minprefix: note: {message}", file=sys.stderr)
            else:
                others(message, category, *where)

        warnings.showwarning = show  # type: ignore[assignment]
        yield


# ---- demo -------------------------------------------------------------------------------------


DEMO_DEFAULTS: dict[str, Any] = {
    "prefix_length": 10,
    "steps": 250,
    "batch_size": 16,
    "lr": 1e-2,
    "seed": 0,
    "backend": "numpy",
}


def _demo(args: argparse.Namespace) -> int:
    return _resumable("demo", args, lambda: _demonstrated(args))


def _demonstrated(args: argparse.Namespace) -> int:
    from minprefix import demo

    given = _given(args, tuple(DEMO_DEFAULTS))
    options = DEMO_DEFAULTS | given
    if args.resume:
        options = _options_of("demo", args.out, DEMO_DEFAULTS, given)
    options["backend"] = _resolved(options["backend"])
    metrics = demo.run(args.out, resume=args.resume, force=args.force, **options)
    if not metrics:
        raise KeyboardInterrupt
    return _worse(metrics["before"]["loss"], metrics["after"]["loss"], options["lr"])


def _resumable(command: str, args: argparse.Namespace, run: Callable[[], int]) -> int:
    """`run`, and after a Ctrl-C anywhere in it how to go on, if --out holds a run to go on with.
    The one that --force was to replace is none."""
    from minprefix.train import STATE, load_options, saved_step

    out, state = args.out, args.out / STATE
    replaced = state.stat().st_mtime_ns if args.force and state.exists() else None
    try:
        return run()
    except KeyboardInterrupt:
        if state.exists() and state.stat().st_mtime_ns == replaced:
            raise
        try:
            load_options(out, command)
        except InputError:  # nothing was begun
            raise KeyboardInterrupt from None
        step, again = saved_step(out), f"minprefix {command} --out {shlex.quote(str(out))} --resume"
    print(
        f"\nminprefix: stopped, all of step {step} is saved; go on with: {again}", file=sys.stderr
    )
    return 130


def _worse(frozen: float, loss: float, lr: float) -> int:
    """-> the exit status: 1, and a sentence, if a prefix leaves the model far worse than it was."""
    if loss <= frozen + max(0.5, 0.25 * frozen):  # nan is worse, too
        return 0
    print(
        f"minprefix: the loss is {loss:.2f} with this prefix and {frozen:.2f} without one: it has "
        f"made the model worse. Train again with a lower --lr (it was {lr:g}), or look at the data",
        file=sys.stderr,
    )
    return 1


def _options_of(
    command: str, out: Path, defaults: dict[str, Any], given: dict[str, Any]
) -> dict[str, Any]:
    """What the run in `out` was started with. Raises InputError for a `given` option that says
    something else; what lies at a place that is given is compared later."""
    from minprefix.train import load_options

    options = load_options(out, command)
    was = defaults | options
    for name, now in given.items():
        if name == "backend":
            now = _resolved(now)
        if name in PLACES and was[name] is not None:
            options[name] = now
            continue
        unsaid = was[name] is None
        before = _unsaid(was).get(name) if unsaid else was[name]
        if now == before:
            continue
        option = f"--{name.replace('_', '-')}"
        said = "was not given" if before is None else f"was {before!r}"
        raise InputError(
            f"cannot resume {out}: {option} {said} and is now {now!r}: leave it out to go on with "
            f"the run as it began, or choose another --out{_longer(command, name, out)}"
        )
    return options


#: options that say where something lies
PLACES = ("model", "data", "valid", "init_prefix")


def _unsaid(options: dict[str, Any]) -> dict[str, Any]:
    """What an option comes to that nobody gave."""
    flat = options.get("mlp_hidden") is None
    unsaid = {"lr": 5e-3 if flat else 5e-4, "init": "normal" if flat else "network"}
    if options.get("steps") is None:
        unsaid["epochs"] = 5
    if options.get("init") not in ("text", "prefix"):
        unsaid["prefix_length"] = 10
    return unsaid


def _longer(command: str, name: str, out: Path) -> str:
    """What to do where a run was to be made longer: its learning rate was laid out for its length,
    so it has none for more steps."""
    if command != "train" or name not in ("steps", "epochs"):
        return ""
    start = f"--init prefix --init-prefix {shlex.quote(str(out))}"
    return f"; to train longer, start another run from this one when it has ended: {start}"


def _given(args: argparse.Namespace, names: Sequence[str]) -> dict[str, Any]:
    """The options that stand on the command line."""
    return {name: getattr(args, name) for name in names if getattr(args, name) is not None}


# ---- train ------------------------------------------------------------------------------------

#: option -> what it is when neither the command line nor a resumed run says
TRAIN_DEFAULTS: dict[str, Any] = {
    "model": None,  # the model that ships
    "revision": None,
    "data": None,
    "valid": None,
    "source_column": None,
    "target_column": None,
    "template": "{source}\n{target}",
    "skip_long": False,
    "prefix_length": None,  # 10, or the length of --init-text
    "init": None,  # normal; network with --mlp-hidden
    "init_std": None,  # 0.02
    "init_bound": None,  # 0.05
    "init_text": None,
    "init_prefix": None,
    "mlp_hidden": None,
    "layers": None,
    "position_offset": None,
    "steps": None,
    "epochs": None,  # 5
    "batch_size": 10,
    "micro_batch_size": None,
    "lr": None,  # 5e-3; 5e-4 with --mlp-hidden
    "warmup": 0,
    "schedule": "linear",
    "weight_decay": 0.0,
    "clip": 1.0,
    "dropout": 0.0,
    "loss": "token-mean",
    "eval_every": 100,
    "valid_samples": 200,  # 0: all
    "save_every": 50,
    "seed": 0,
    "backend": "numpy",
    "matmul": "float32",
}


def _train(args: argparse.Namespace) -> int:
    return _resumable("train", args, lambda: _trained(args))


def _trained(args: argparse.Namespace) -> int:
    from minprefix import outlook
    from minprefix.data.pairs import Template
    from minprefix.prefixes.verify import evaluation
    from minprefix.storage import files
    from minprefix.storage.artifact import save_prefix
    from minprefix.train import RUN_FILES, refuse_taken, train

    options = _train_options(args)
    refuse_taken(args.out, args.force, args.resume)
    model, prefix = _model_and_start(args, options)
    template = Template(options["template"])
    print(f"{model}\n{prefix}: {prefix.n_parameters / model.n_parameters:.2%} of the model's size")
    data, valid = _read_data(model, prefix, template, options)
    settings = _settings(options, len(data.encoded))
    about = _about(options, template, prefix)
    outlook.show(model, data, valid, settings)
    probe = (valid or data).probe
    frozen = outlook.frozen_loss(model, probe, settings, "--valid" if valid else "--data")
    valid_examples = None if valid is None else valid.sample
    with files.run_folder(args.out, RUN_FILES, args.force, args.resume):
        result = train(
            model, prefix, data.encoded, settings, args.out, valid_examples, about, args.resume
        )
        if result.interrupted:
            raise KeyboardInterrupt
        if not result.base_unchanged:
            raise AssertionError("the frozen model changed while training: a bug in minprefix")
        loss = outlook.loss(model, prefix, probe, settings)
        metrics = {
            "steps": result.step,
            "valid_loss": result.best_loss,
            "best_step": result.best_step,
            "frozen_loss": frozen,
            "loss": loss,
            "loss_examples": len(probe),
            "trained_parameters": prefix.n_parameters,
            "base_parameters": model.n_parameters,
            "base_unchanged": result.base_unchanged,
        }
        scored, of = (valid, "valid") if valid else (data, "data")
        recorded = evaluation(
            model, prefix, scored.pairs, scored.encoded, template, of, settings.backend
        )
        training = about | {"settings": vars(settings)}
        save_prefix(prefix, args.out, model, training, metrics, recorded)
        files.write_json(args.out / "metrics.json", metrics)
    if result.best_loss is not None:
        print(
            f"best validation loss {result.best_loss:.4f}, at step {result.best_step}; this one is "
            "kept"
        )
    outlook.show_samples(recorded["samples"], scored.pairs)
    print(
        f"loss on {counted(len(probe), 'pair')}: {frozen:.4f} of the frozen model, {loss:.4f} with "
        "the prefix"
    )
    print(f"{result.seconds:.0f} s; the base model is unchanged; written to {args.out}")
    return _worse(frozen, loss, settings.lr)


def _train_options(args: argparse.Namespace) -> dict[str, Any]:
    """Those of the command line, of the run that is resumed, and the defaults."""
    given = _given(args, tuple(TRAIN_DEFAULTS))
    if args.resume:
        saved = _options_of("train", args.out, TRAIN_DEFAULTS | {"valid_samples": None}, given)
        options = TRAIN_DEFAULTS | {"valid_samples": None} | saved
    else:
        options = TRAIN_DEFAULTS | given
    if options["data"] is None:
        raise InputError("train needs --data FILE: a .jsonl, .csv or .tsv of source and target")
    for name, says in (("eval_every", "how often"), ("valid_samples", "on how many pairs")):
        if name in given and options["valid"] is None:
            raise InputError(
                f"--{name.replace('_', '-')} says {says} --valid is scored: give --valid FILE as "
                "well"
            )
    options |= {"data": str(options["data"]), "valid": options["valid"] and str(options["valid"])}
    options["backend"] = _resolved(options["backend"])
    return options


def _model_and_start(args: argparse.Namespace, options: dict[str, Any]) -> "tuple[GPT2, Prefix]":
    """The model, and the untrained prefix, where they compute."""
    from minprefix.model import GPT2
    from minprefix.ops import BACKENDS
    from minprefix.train import check_trainable

    model = GPT2.load(options["model"], revision=options["revision"])
    model.check_finite()  # before a folder is made for a run that cannot begin
    prefix = start_prefix(model, options)
    place = options["init_prefix"]
    if place is not None and args.out.exists() and args.out.samefile(place):
        raise InputError(
            f"--out {args.out} is the folder of --init-prefix, which --resume reads again: choose "
            "another --out"
        )
    prefix.check(model.config, model.name)
    check_trainable(prefix)
    home = BACKENDS[options["backend"]]
    return model.to(home), prefix.to(home)


def _read_data(
    model: "GPT2", prefix: "Prefix", template: "Template", options: dict[str, Any]
) -> "tuple[Data, Data | None]":
    """The pairs of --data and of --valid."""
    from minprefix import outlook

    columns = (options["source_column"], options["target_column"])
    size, skip = options["valid_samples"], options["skip_long"]
    # an earlier version left out what lacks a position for its last token; it took no sample
    room = model.room(prefix) - (skip and size is None)
    how = (columns, model, template, room, skip, size)
    data = outlook.Data.read(options["data"], *how)
    valid = outlook.Data.read(options["valid"], *how) if options["valid"] else None
    outlook.note_oddities(data, valid, columns)
    return data, valid


def _settings(options: dict[str, Any], examples: int) -> "Settings":
    from minprefix.train import Settings

    chosen = {name: options[name] for name in Settings.__dataclass_fields__}
    unsaid = _unsaid(options)
    if chosen["steps"] is None:
        epochs = unsaid["epochs"] if options["epochs"] is None else options["epochs"]
        if epochs < 1:
            raise InputError(f"--epochs is {epochs}: expected at least 1")
        chosen["steps"] = epochs * -(-examples // max(1, options["batch_size"]))
    if chosen["lr"] is None:
        chosen["lr"] = unsaid["lr"]
    if chosen["clip"] == 0:
        chosen["clip"] = None
    return Settings(**chosen)


def _about(options: dict[str, Any], template: "Template", prefix: "Prefix") -> dict[str, Any]:
    """How the prefix comes to be: it is recorded."""
    from minprefix.data.pairs import fingerprint
    from minprefix.model import digest

    start_sha = {"sha256": digest(prefix.parameters)} if options["init"] == "prefix" else {}
    return {
        "command": "train",
        "template": template.text,
        "loss_from": "the first token of the target",
        "data_sha256": fingerprint(options["data"]),
        "valid_sha256": fingerprint(options["valid"]) if options["valid"] else None,
        "options": {name: value for name, value in options.items() if value is not None},
        "init": start_of(options) | start_sha,
    }


#: the option that each start reads, and what it is when it is not given
STARTS: dict[str, tuple[str, Any]] = {
    "normal": ("init_std", 0.02),
    "uniform": ("init_bound", 0.05),
    "text": ("init_text", None),
    "prefix": ("init_prefix", None),
}


def start_of(options: dict[str, Any]) -> dict[str, Any]:
    """How the prefix starts, with every default filled in: it is recorded. Raises InputError for
    an option without effect, and for a missing one."""
    hidden, init = options["mlp_hidden"], options["init"]
    init = init or ("normal" if hidden is None else "network")
    for wanted, (option, _) in STARTS.items():
        if options[option] is not None and init != wanted:
            raise InputError(
                f"--{option.replace('_', '-')} belongs to --init {wanted}, and --init is {init}"
            )
    if init == "network" and hidden is None:
        raise InputError("--init network is the MLP's own start: give --mlp-hidden as well")
    start: dict[str, Any] = {"init": init}
    if init in STARTS:
        option, default = STARTS[init]
        start[option] = default if options[option] is None else options[option]
        if start[option] is None:
            what = {
                "text": "the text whose keys and values to start from",
                "prefix": "the folder of a trained prefix",
            }
            raise InputError(f"--init {init} needs --{option.replace('_', '-')}: {what[init]}")
    return start | ({} if hidden is None else {"mlp_hidden": hidden})


def start_prefix(model: "GPT2", options: dict[str, Any]) -> "Prefix":
    """The untrained prefix that the options describe. Raises InputError for an option without
    effect."""
    from minprefix.prefix import Prefix

    start, length, seed = start_of(options), options["prefix_length"], options["seed"]
    where = {"layers": options["layers"], "position_offset": options["position_offset"]}
    init, hidden = start["init"], options["mlp_hidden"]
    if init == "prefix":
        return _saved_start(model, options)
    onto = None
    if init == "text":
        onto = Prefix.text(model, start["init_text"], **where)
        if length not in (None, onto.length):
            raise InputError(
                f"--init-text has {counted(onto.length, 'token')} and --prefix-length is {length}: "
                "leave out --prefix-length or give a text of that length"
            )
        length = onto.length
    length = 10 if length is None else length
    if init == "normal":
        onto = Prefix.normal(model.config, length, start["init_std"], seed, **where)
    elif init == "uniform":
        onto = Prefix.uniform(model.config, length, start["init_bound"], seed, **where)
    elif init == "zero":
        onto = Prefix.zero(model.config, length, **where)
    if hidden is None:
        assert onto is not None
        return onto
    return Prefix.mlp(model.config, length, hidden, seed, onto, **where)


def _saved_start(model: "GPT2", options: dict[str, Any]) -> "Prefix":
    """The prefix of --init-prefix, or with --mlp-hidden its MLP. What else is said of it must be
    so."""
    from minprefix.storage.artifact import MLP, load_mlp, load_prefix

    hidden, place = options["mlp_hidden"], options["init_prefix"]
    prefix = (load_prefix if hidden is None else load_mlp)(place, model)
    if hidden is None and (Path(place) / MLP).exists():
        print(f"the MLP of {place} is left behind; --mlp-hidden takes it along", file=sys.stderr)
    is_so = {
        "prefix_length": prefix.length,
        "layers": list(prefix.layers) if prefix.subset else None,
        "position_offset": prefix.position_offset,
    }
    if hidden is not None:
        is_so["mlp_hidden"] = prefix.parameters["bias_1"].size
    for option, value in is_so.items():
        if options[option] not in (None, value):
            # without --mlp-hidden the MLP would be left behind
            do = f"give {value}" if option == "mlp_hidden" else "leave it out"
            raise InputError(
                f"--{option.replace('_', '-')} is {options[option]}, the prefix in {place} has "
                f"{value}: {do}"
            )
    return prefix


# ---- check ------------------------------------------------------------------------------------


def _check(args: argparse.Namespace) -> int:
    from minprefix.cli.check import check

    return check(args)


# ---- view -------------------------------------------------------------------------------------


def _view(args: argparse.Namespace) -> int:
    from minprefix.trace.view import view  # not at the top: minprefix.trace imports safetensors

    return view(args)


# ---- who computes, and where ------------------------------------------------------------------


def _resolved(backend: str) -> str:
    """`auto` as what it comes to on this machine, which is said."""
    from minprefix import ops

    if backend != "auto":
        return backend
    try:
        ops.get("cupy")
    except ops.Unavailable as error:
        print(f"backend: numpy ({error})", file=sys.stderr)
        return "numpy"
    print("backend: cupy", file=sys.stderr)
    return "cupy"


def _set_matmul(backend: str, matmul: str) -> None:
    if backend == "cupy":
        from minprefix import ops

        cast(Any, ops.get("cupy")).matmul_precision(matmul)
    elif matmul != "float32":
        raise InputError(f"--matmul {matmul} is for a GPU: give --backend cupy as well")


# ---- generate, evaluate -----------------------------------------------------------------------


def _load(args: argparse.Namespace, place: Path | None) -> "tuple[GPT2, Prefix | None, Template]":
    """The model, its prefix, and the template: --template, else the prefix's own, else the
    default."""
    from minprefix.data.pairs import Template
    from minprefix.model import GPT2
    from minprefix.ops import BACKENDS
    from minprefix.storage.artifact import load_prefix, read_about

    args.backend = _resolved(args.backend)
    _set_matmul(args.backend, args.matmul)
    model = GPT2.load(args.model, revision=args.revision)
    prefix, recorded = None, None
    if place is not None:
        prefix = load_prefix(place, model)
        recorded = ((read_about(place) or {}).get("training") or {}).get("template")
    home = BACKENDS[args.backend]
    model, prefix = model.to(home), prefix and prefix.to(home)
    for template in (args.template, recorded):
        if template is not None:
            return model, prefix, Template(template)
    return model, prefix, Template()


def _decoding(args: argparse.Namespace) -> "Decoding":
    """As the options say; without --max-new-tokens 80."""
    from minprefix.generate import Decoding

    given = _given(args, tuple(Decoding.__dataclass_fields__))
    if "seed" in given and "temperature" not in given:
        raise InputError("--seed decides what is sampled: give --temperature as well")
    if "length_norm" in given and given.get("beams", 1) == 1:
        raise InputError("--length-norm compares the texts of a beam search: give --beams as well")
    return Decoding(**{"max_new_tokens": max(80, given.get("min_new_tokens", 0)), **given})


def _generate(args: argparse.Namespace) -> int:
    from minprefix.cli.prefixes import named
    from minprefix.generate import generate_ids, no_room, room

    if args.data is not None:
        return _generate_many(args)
    for name in ("store", "store_bytes", "batch_size", "source_column", "out"):
        if getattr(args, name) is not None:
            raise InputError(f"--{name.replace('_', '-')} belongs to --data, a file of requests")
    if not args.prompt:
        raise InputError("generate needs --prompt TEXT, or --data FILE with many")
    places = list(named(args.prefix or []).values())
    if len(places) > 1:
        raise InputError(
            f"{len(places)} prefixes were given: give one, or --data FILE whose lines name theirs"
        )
    model, prefix, template = _load(args, places[0] if places else None)
    if args.raw and args.template is not None:
        raise InputError("--raw takes the prompt as it is: leave out --template")
    raw = args.raw or (prefix is None and args.template is None)
    ids = model.encode_prompts([p if raw else template.prompt(p) for p in args.prompt])
    decoding, limits = _decoding(args), None
    if args.max_new_tokens is None:  # then each has what its own prompt leaves room for
        start, needed = prefix.position_offset if prefix else 0, max(1, decoding.min_new_tokens)
        limits = [room(model.config, start, len(prompt)) for prompt in ids]
        for i, prompt in enumerate(ids):
            if limits[i] < needed:
                said = no_room(model.config, start, len(prompt), needed)
                raise InputError(f"prompt {i}: {said}: shorten it")
    written = generate_ids(model, ids, prefix, decoding=decoding, ops=args.backend, limits=limits)
    for text, new in zip(args.prompt, map(model.decode, written), strict=True):
        if len(args.prompt) > 1:
            print(f"--- {text}")
        print(new if raw else template.read(new))
    return 0


def _generate_many(args: argparse.Namespace) -> int:
    from minprefix.cli.prefixes import generate_many

    if args.prompt:
        raise InputError("--prompt is one request and --data are many: give one of them")
    if args.raw and args.template is not None:
        raise InputError("--raw takes the prompt as it is: leave out --template")
    args.store_bytes, args.batch_size = args.store_bytes or 256 * 2**20, args.batch_size or 32
    model, _, _ = _load(args, None)
    return generate_many(args, model, _decoding(args))


def _evaluate(args: argparse.Namespace) -> int:
    from minprefix.cli.evaluate import MARKS, evaluate
    from minprefix.train import refuse_taken

    for name in ("limit", "batch_size"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise InputError(f"--{name.replace('_', '-')} is {value}: expected at least 1")
    refuse_taken(args.out, args.force, marks=MARKS)
    return evaluate(args, *_load(args, args.prefix), _decoding(args))


# ---- vectors ----------------------------------------------------------------------------------


def _vectors_write(args: argparse.Namespace) -> int:
    from minprefix.conformance.vectors import write_command

    return write_command(args)


def _vectors_check(args: argparse.Namespace) -> int:
    from minprefix.conformance.vectors import check_command

    return check_command(args)


def _vectors_options(p: argparse.ArgumentParser) -> None:
    """`vectors` has commands of its own."""
    parts = p.add_subparsers(required=True, metavar="write|check")
    for name, run, what in (
        ("write", _vectors_write, "write the cases of the suite into an empty folder"),
        ("check", _vectors_check, "grade the outputs that a program wrote beside the cases"),
    ):
        part = parts.add_parser(
            name, help=what, description=what[0].upper() + what[1:] + ".", allow_abbrev=False
        )
        part.set_defaults(run=run)
        part.add_argument("folder", type=Path, metavar="DIR")
        part.add_argument(
            "--only",
            action="append",
            metavar="WORD",
            help="an op, a level, or a case's id or a part of it; may be given again",
        )
        if name == "check":
            part.add_argument(
                "--all", action="store_true", help="explain every failure, not the first three"
            )
            part.add_argument(
                "--json",
                type=Path,
                metavar="FILE",
                help="write everything, for programs; - prints it",
            )


# ---- the options ------------------------------------------------------------------------------


def _layers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: expected layers as in 0,1,3") from None


def _samples(text: str) -> int:
    """How many; 0 is all."""
    if text == "all":
        return 0
    try:
        n = int(text)
    except ValueError:
        n = -1
    if n < 0:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number from 1, or all")
    return n


def _unescape(text: str) -> str:
    """A template is typed in a shell: \\n and \\t stand for what they stand for everywhere."""
    return text.replace("\\n", "\n").replace("\\t", "\t")


def _at_least_one(text: str) -> int:
    try:
        n = int(text)
    except ValueError:
        n = 0
    if n < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number, at least 1")
    return n


def _threads_option(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "--threads",
        type=_at_least_one,
        metavar="N",
        help="compute with N threads (default: the machine's choice); another number may change "
        "the last bits of a result",
    )


def _model_options(
    p: argparse.ArgumentParser, said: str = "the model that ships, whatever folders are here"
) -> None:
    """`said`: in words, the model without --model."""
    p.add_argument(
        "--model",
        metavar="DIR|NAME",
        help='a folder in Hugging Face layout, "tiny" (ships with minprefix), or a name on the hub '
        f'such as "gpt2" (default {said})',
    )
    p.add_argument("--revision", help="the commit of a hub name; GPT-2's own names are pinned")


def _column_options(p: argparse.ArgumentParser) -> None:
    p.add_argument("--source-column", metavar="NAME", help="default source, or mr (E2E)")
    p.add_argument("--target-column", metavar="NAME", help="default target, or ref (E2E)")


def _backend_option(p: argparse.ArgumentParser, default: str | None = "numpy") -> None:
    p.add_argument(
        "--backend",
        choices=("numpy", "cupy", "auto", "reference"),
        default=default,
        help="who computes: numpy, the CPU (the default); cupy, an NVIDIA GPU; auto, the GPU if "
        "there is one; reference, the readable implementation",
    )


def _matmul_option(p: argparse.ArgumentParser, default: str | None = "float32") -> None:
    p.add_argument(
        "--matmul",
        choices=("float32", "tf32"),
        default=default,
        help="of matrix products on a GPU: float32 (the default), or tf32, faster, with factors of "
        "11 bits",
    )


def _decoding_options(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "--max-new-tokens", type=int, metavar="N", help="default 80, or what a text has room for"
    )
    p.add_argument("--temperature", type=float, metavar="X", help="sample; greedy without it")
    p.add_argument("--top-k", type=int, metavar="K", help="sample from the K likeliest tokens")
    p.add_argument(
        "--top-p", type=float, metavar="X", help="sample from the likeliest X of the mass"
    )
    p.add_argument("--seed", type=int, help="of the draws (default 0)")
    p.add_argument("--beams", type=int, metavar="N", help="beam search with N beams (default 1)")
    p.add_argument("--length-norm", type=float, metavar="X", help="of beam search (default 1.0)")
    p.add_argument(
        "--min-new-tokens", type=int, metavar="N", help="the end token waits (default 0)"
    )
    p.add_argument(
        "--forbidden", type=int, nargs="+", metavar="ID", help="token ids that are never chosen"
    )


def _parser() -> argparse.ArgumentParser:
    parser = console.Parser(
        prog="minprefix",
        description="Prefix-tuning of GPT-2 in plain NumPy.",
        epilog="minprefix COMMAND --help shows a command's options and an example.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"minprefix {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Any, what: str, example: str) -> argparse.ArgumentParser:
        p = commands.add_parser(
            name,
            help=what,
            description=what[0].upper() + what[1:] + ".",
            epilog=f"example:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        p.set_defaults(run=run)
        return p

    p = command(
        "demo",
        _demo,
        "prefix-tune the shipped model on the tiny world, and show before and after",
        "minprefix demo --out runs/demo --seed 1",
    )
    p.add_argument(
        "--out", type=Path, metavar="DIR", default=Path("runs/demo"), help="default runs/demo"
    )
    p.add_argument("--prefix-length", type=int, metavar="P", help="default 10")
    p.add_argument("--steps", type=int, metavar="N", help="default 250")
    p.add_argument("--batch-size", type=int, metavar="N", help="default 16")
    p.add_argument("--lr", type=float, metavar="X", help="default 1e-2")
    p.add_argument("--seed", type=int, help="default 0")
    _backend_option(p, None)
    _threads_option(p)
    _run_options(p)

    p = command(
        "train",
        _train,
        "train a prefix on pairs of source and target",
        "minprefix train --model gpt2 --data train.csv --valid dev.csv --out runs/e2e --epochs 5"
        "\n\nexit status: 0 trained, 1 the prefix leaves the model far worse than it was without, "
        "2 it\ncannot be trained, 130 Ctrl-C stopped it",
    )
    _model_options(p)
    p.add_argument("--data", type=Path, metavar="FILE", help=".jsonl, .csv, .tsv: source, target")
    p.add_argument(
        "--valid", type=Path, metavar="FILE", help="keep the prefix that is best on these"
    )
    _column_options(p)
    p.add_argument(
        "--template",
        type=_unescape,
        help=r"how source and target are joined (default '{source}\n{target}')",
    )
    p.add_argument(
        "--out", type=Path, metavar="DIR", required=True, help="where the run is written"
    )
    p.add_argument(
        "--skip-long",
        action="store_true",
        default=None,
        help="leave out pairs that do not fit into the model (default: refuse the file)",
    )
    g = p.add_argument_group("the prefix")
    g.add_argument("--prefix-length", type=int, metavar="P", help="default 10")
    g.add_argument(
        "--init",
        choices=("normal", "uniform", "zero", "text", "prefix", "network"),
        help="how it starts (default normal; with --mlp-hidden default network, the MLP's own "
        "start, or prefix, a trained prefix's MLP; any other is what the MLP is first fitted to)",
    )
    g.add_argument("--init-std", type=float, metavar="X", help="of --init normal (default 0.02)")
    g.add_argument("--init-bound", type=float, metavar="X", help="of --init uniform (default 0.05)")
    g.add_argument("--init-text", metavar="TEXT", help="of --init text")
    g.add_argument("--init-prefix", metavar="DIR", help="of --init prefix: a trained one")
    g.add_argument("--mlp-hidden", type=int, metavar="H", help="train through an MLP of this width")
    g.add_argument("--layers", type=_layers, metavar="I,J,...", help="only these layers see it")
    g.add_argument(
        "--position-offset", type=int, metavar="N", help="position of the first token (default P)"
    )
    g.add_argument("--dropout", type=float, metavar="X", help="on its keys and values (default 0)")
    g = p.add_argument_group("training")
    either = g.add_mutually_exclusive_group()
    either.add_argument("--epochs", type=int, metavar="N", help="default 5")
    either.add_argument("--steps", type=int, metavar="N", help="instead of epochs")
    g.add_argument("--batch-size", type=int, metavar="N", help="sequences a step (default 10)")
    g.add_argument(
        "--micro-batch-size", type=int, metavar="N", help="at a time, for less memory; same result"
    )
    g.add_argument("--lr", type=float, metavar="X", help="default 5e-3; with --mlp-hidden 5e-4")
    g.add_argument("--warmup", type=int, metavar="N", help="steps (default 0)")
    g.add_argument("--schedule", choices=("linear", "cosine", "constant"), help="default linear")
    g.add_argument("--weight-decay", type=float, metavar="X", help="default 0")
    g.add_argument("--clip", type=float, metavar="X", help="gradient norm (default 1; 0: no limit)")
    g.add_argument(
        "--loss",
        choices=("token-mean", "sentence-sum"),
        help="mean over a batch's tokens (default), or the sum of each sentence, averaged",
    )
    g.add_argument("--eval-every", type=int, metavar="N", help="steps (default 100)")
    g.add_argument(
        "--valid-samples",
        type=_samples,
        metavar="N|all",
        help="validate on N pairs of --valid, the same ones each time (default 200)",
    )
    g.add_argument("--save-every", type=int, metavar="N", help="steps (default 50)")
    g.add_argument("--seed", type=int, help="decides the run (default 0)")
    _backend_option(g, None)  # type: ignore[arg-type]  # a group adds arguments as a parser does
    _matmul_option(g, None)  # type: ignore[arg-type]
    _threads_option(g)  # type: ignore[arg-type]
    _run_options(p)

    p = command(
        "generate",
        _generate,
        "write on from a prompt, with a prefix or without",
        'minprefix generate --prefix runs/demo --prompt "name[The Red Fox], type[restaurant], '
        'food[Thai], price[cheap], area[hills]"',
    )
    _model_options(p)
    p.add_argument(
        "--prefix",
        action="append",
        metavar="[NAME=]DIR",
        help="a trained prefix; with --data several, each with a name",
    )
    p.add_argument(
        "--prompt",
        action="append",
        metavar="TEXT",
        help="may be given several times; with a prefix it is the source of the prefix's template",
    )
    g = p.add_argument_group("many requests, each with a prefix of its own")
    g.add_argument(
        "--data",
        type=Path,
        metavar="FILE",
        help='.jsonl of {"prompt": ..., "prefix": NAME}; null is the model without a prefix. Or '
        "pairs (.jsonl, .csv, .tsv), whose sources are the prompts",
    )
    g.add_argument(
        "--source-column", metavar="NAME", help="the prompt (default prompt, source, or mr)"
    )
    g.add_argument("--store", type=Path, metavar="DIR", help="a folder of prefixes, by their names")
    g.add_argument(
        "--store-bytes",
        type=_at_least_one,
        metavar="N",
        help="how many bytes of prefixes are held at a time (default 268435456)",
    )
    g.add_argument("--batch-size", type=_at_least_one, metavar="N", help="default 32")
    g.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="write the answers there (.jsonl); until all are there, each as it comes into "
        "FILE.partial (default: print them at the end)",
    )
    p.add_argument("--template", type=_unescape, help="default: the prefix's own")
    p.add_argument("--raw", action="store_true", help="the prompt as it is, without a template")
    _decoding_options(p)
    _backend_option(p)
    _matmul_option(p)
    _threads_option(p)

    p = command(
        "evaluate",
        _evaluate,
        "score a model, with a prefix or without, on pairs of source and target",
        "minprefix evaluate --model gpt2 --prefix runs/e2e --data test.csv --out runs/e2e-test "
        "--beams 5",
    )
    _model_options(p)
    p.add_argument("--prefix", type=Path, metavar="DIR", help="a trained prefix")
    p.add_argument("--data", type=Path, metavar="FILE", required=True, help=".jsonl, .csv, .tsv")
    _column_options(p)
    p.add_argument("--out", type=Path, metavar="DIR", required=True, help="scores and predictions")
    p.add_argument("--template", type=_unescape, help="default: the prefix's own")
    p.add_argument("--limit", type=int, metavar="N", help="only the first N sources")
    p.add_argument("--batch-size", type=int, metavar="N", default=32, help="default 32")
    p.add_argument("--force", action="store_true", help="replace what --out holds")
    p.add_argument(
        "--skip-long",
        action="store_true",
        help="leave out sources that do not fit, and out of the loss the pairs that do not "
        "(default: refuse the file)",
    )
    p.add_argument("--ter", action="store_true", help="score TER, too, which takes minutes")
    _decoding_options(p)
    _backend_option(p)
    _matmul_option(p)
    _threads_option(p)

    p = command(
        "check",
        _check,
        "run an implementation of prefix-tuning through the reference suite: what is wrong, and "
        "where",
        "minprefix check --new my_ops.py\n  minprefix check my_ops.py --only attention\n\n"
        "exit status: 0 all that is implemented passed, 1 something failed or nothing is "
        "implemented,\n2 it cannot be run",
    )
    p.add_argument(
        "implementation",
        nargs="?",
        metavar="IMPLEMENTATION",
        help=IMPLEMENTATION,
    )
    p.add_argument(
        "--only",
        action="append",
        metavar="WORD",
        help="an op, or a check's id or a part of it; may be given again",
    )
    p.add_argument(
        "--level",
        action="append",
        choices=("ops", "model", "training"),
        help="default all; may be given again",
    )
    p.add_argument("--all", action="store_true", help="explain every failure, not the first three")
    p.add_argument(
        "--json", type=Path, metavar="FILE", help="write everything, for programs; - prints it"
    )
    p.add_argument(
        "--time-limit", type=float, metavar="SECONDS", help="for each check (default 20)"
    )
    _threads_option(p)
    p.add_argument("--list", action="store_true", help="show the checks, and run none")
    p.add_argument("--new", type=Path, metavar="FILE", help="write a file of stubs to fill in")
    p.add_argument(
        "--whole",
        action="store_true",
        help="with --new: of a whole model (run_model, run_decoding, run_training), not of its "
        "operations",
    )
    p.add_argument("--torch", action="store_true", help="with --new: in PyTorch")

    prefix_commands(command, _model_options, _column_options, _threads_option)
    plot_command(command, _model_options)
    compare_command(command)

    p = command(
        "view",
        _view,
        "write a page that walks through the forward and the backward, op by op",
        'minprefix view --prefix runs/demo --prompt "name[The Red Fox], type[restaurant], '
        'food[Thai], price[cheap], area[hills]" --out fox.html',
    )
    _model_options(p)
    p.add_argument("--prefix", type=Path, metavar="DIR", help="a trained prefix; without it GPT-2")
    p.add_argument(
        "--prompt",
        metavar="TEXT",
        required=True,
        help="with a prefix it is the source of the prefix's template",
    )
    p.add_argument(
        "--target", metavar="TEXT", help="predict this (default: each token of the prompt)"
    )
    p.add_argument("--template", type=_unescape, help="default: the prefix's own")
    p.add_argument("--raw", action="store_true", help="the prompt as it is, without a template")
    p.add_argument("--out", type=Path, metavar="FILE.html", required=True, help="the page")
    step_command(command, _model_options, _threads_option, _unescape)

    p = command(
        "vectors",
        None,
        "the reference suite as files, for programs in other languages",
        "minprefix vectors write v, let your program read v/cases and write v/outputs, then: "
        "minprefix vectors check v",
    )
    _vectors_options(p)

    p = command(
        "bench",
        None,
        "measure this project and its peers on the same work, in alternating fresh processes",
        "minprefix bench all --json bench.json, and its page: minprefix bench report bench.json",
    )
    bench_options(p)
    lessons_command(command, _at_least_one)
    return parser


def _run_options(p: argparse.ArgumentParser) -> None:
    either = p.add_mutually_exclusive_group()
    either.add_argument("--resume", action="store_true", help="go on with the run in --out")
    either.add_argument("--force", action="store_true", help="replace the run in --out")


if __name__ == "__main__":
    sys.exit(main())
