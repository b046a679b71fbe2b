"""`minprefix train`: a prefix, trained on pairs of source and target."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minprefix.cli.options import (
    add_backend,
    add_columns,
    add_matmul,
    add_model,
    add_run,
    add_threads,
    given_options,
    resolved,
    unescape,
)
from minprefix.cli.parser import Command
from minprefix.cli.resume import options_of, resumable, unsaid_options, worse
from minprefix.errors import InputError, counted

if TYPE_CHECKING:
    from minprefix.data.pairs import Template
    from minprefix.model import GPT2
    from minprefix.outlook import Data
    from minprefix.prefix import Prefix
    from minprefix.train import Settings


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


def add(command: Command) -> None:
    p = command(
        "train",
        run,
        "train a prefix on pairs of source and target",
        "minprefix train --model gpt2 --data train.csv --valid dev.csv --out runs/e2e",
        status="0 trained, 1 the model is far worse with the prefix than without, 2 it cannot be "
        "trained, 130 Ctrl-C stopped it",
    )
    add_model(p)
    p.add_argument("--data", type=Path, metavar="FILE", help=".jsonl, .csv, .tsv: source, target")
    p.add_argument(
        "--valid", type=Path, metavar="FILE", help="keep the prefix that is best on these"
    )
    add_columns(p)
    p.add_argument(
        "--template",
        type=unescape,
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
    add_backend(g, None)  # type: ignore[arg-type]  # a group adds arguments as a parser does
    add_matmul(g, None)  # type: ignore[arg-type]
    add_threads(g)  # type: ignore[arg-type]
    add_run(p)


def run(args: argparse.Namespace) -> int:
    return resumable("train", args, lambda: _trained(args))


def _trained(args: argparse.Namespace) -> int:
    from minprefix import outlook
    from minprefix.data.pairs import Template
    from minprefix.prefixes.verify import evaluation
    from minprefix.storage.run import RUN_FILES, refuse_taken
    from minprefix.storage.saving import run_folder
    from minprefix.storage.writing import write_json
    from minprefix.train import train

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
    with run_folder(args.out, RUN_FILES, args.force, args.resume):
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
        prefix.save(args.out, model, training, metrics, recorded)
        write_json(args.out / "metrics.json", metrics)
    if result.best_loss is not None:
        print(
            f"best validation loss {result.best_loss:.4f}, at step {result.best_step}; this one is "
            "kept"
        )
    outlook.show_samples(recorded.samples, scored.pairs)
    print(
        f"loss on {counted(len(probe), 'pair')}: {frozen:.4f} of the frozen model, {loss:.4f} with "
        "the prefix"
    )
    print(f"{result.seconds:.0f} s; the base model is unchanged; written to {args.out}")
    return worse(frozen, loss, settings.lr)


def _train_options(args: argparse.Namespace) -> dict[str, Any]:
    """Those of the command line, of the run that is resumed, and the defaults."""
    given = given_options(args, tuple(TRAIN_DEFAULTS))
    if args.resume:
        saved = options_of("train", args.out, TRAIN_DEFAULTS | {"valid_samples": None}, given)
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
    options["backend"] = resolved(options["backend"])
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
    unsaid = unsaid_options(options)
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
    from minprefix.prefix import MLPPrefix, Prefix
    from minprefix.storage.artifact import MLP

    hidden, place = options["mlp_hidden"], options["init_prefix"]
    prefix = (Prefix if hidden is None else MLPPrefix).load(place, model)
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
