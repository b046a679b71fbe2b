"""What a training leaves in its folder: a log with a line a step, and a state that it can go on
from."""

import json
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from minprefix.errors import InputError, brief, counted, listed, quoted
from minprefix.ops import to
from minprefix.optim import AdamW
from minprefix.storage.reading import inside, json_lines, loads, read_bytes, read_json, read_text
from minprefix.storage.saving import SAVING, only_writer
from minprefix.storage.tensors import map_tensors, write_tensors
from minprefix.storage.writing import temporary, write_text

if TYPE_CHECKING:
    from minprefix.prefix import Prefix

STATE, LOG, PICTURE = "state.safetensors", "log.jsonl", "loss.png"
#: what says that a folder holds a run
RUN_FILES = (
    SAVING, STATE, LOG, PICTURE, "minprefix.json", "adapter_config.json",
    "adapter_model.safetensors", "prefix.safetensors", "mlp.safetensors", "metrics.json",
    "samples.md", "predictions.jsonl", "predictions.jsonl.partial",
)  # fmt: skip


@dataclass
class State:
    """All that a run needs to go on: it is one file, replaced whole."""

    step: int  # how many steps are done
    adam: AdamW
    best_loss: float | None = None  # the lowest validation loss so far,
    best_step: int | None = None  # the step that it was seen at,
    best: dict[str, np.ndarray] = field(default_factory=dict)  # and the parameters that had it
    start: dict[str, np.ndarray] = field(default_factory=dict)  # kv before step 1


# ---- the log ----------------------------------------------------------------------------------


def log_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a log, none where there is no log."""
    what = "the log of the run"
    if not inside(path.parent, path.name, what).exists():
        return []
    lines = []
    for text in read_bytes(path, what).splitlines():
        try:
            line = json.loads(text.decode("utf-8"))
            numbers = {k: float(line[k]) for k in ("loss", "valid_loss") if k in line}
            if type(line["step"]) is not int or "loss" not in numbers:
                break
            lines.append(line | numbers)
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
            break  # the half line of a run that was killed
    return lines


class Log:
    """log.jsonl: a line a step. A run that resumes at `step` drops the lines of later steps: it
    writes them again."""

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        kept = [line for line in log_lines(path) if line["step"] <= step]
        write_text(path, "".join(json.dumps(line) + "\n" for line in kept))

    def __enter__(self) -> "Log":
        self._file = open(self.path, "a", encoding="utf-8", newline="\n")  # closed by __exit__
        return self

    def __exit__(self, *exc: object) -> None:
        with suppress(OSError):  # what could not be written was reported by `write`
            self._file.close()

    def write(self, entry: dict[str, Any]) -> None:
        with self._refused():
            self._file.write(json.dumps(entry) + "\n")
            self._file.flush()

    def flush(self) -> None:
        """What was written reaches the disk."""
        with self._refused():
            os.fsync(self._file.fileno())

    @contextmanager
    def _refused(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise InputError(
                f"cannot write {self.path}: {error.strerror}; the last state saved is intact: make "
                "room, then --resume"
            ) from error

    def read(self) -> tuple[list[int], list[float], list[tuple[int, float]]]:
        """Steps, losses, and (step, validation loss) where there is one."""
        lines = log_lines(self.path)
        valid = [(e["step"], e["valid_loss"]) for e in lines if "valid_loss" in e]
        return [e["step"] for e in lines], [e["loss"] for e in lines], valid


# ---- the folder -------------------------------------------------------------------------------

#: what lies in a folder that its owner would call empty
_OF_NOBODY = {".DS_Store", "Thumbs.db", "desktop.ini", "lost+found", ".gitkeep", ".gitignore"}


def refuse_taken(
    out: Path,
    force: bool,
    resume: bool | None = None,
    marks: Sequence[str] = RUN_FILES,
) -> None:
    """Before any work: raises InputError if `out` holds `marks` of a run, unless `force` is to
    replace them or `resume` to go on with it (None: it cannot be advised); if it holds anything and
    nothing that minprefix wrote, a home folder or a website, with `force`, too; and if another
    process writes there."""
    if not out.is_dir():  # to be made, or no folder, which the system will say
        return
    with only_writer(out):
        if not resume:
            _refuse_taken(out, force, resume is False, marks)


def _refuse_taken(out: Path, force: bool, resume: bool, marks: Sequence[str]) -> None:
    held = {path.name for path in out.iterdir()}
    left = {temporary(out / name).name for name in RUN_FILES}  # of a save that was killed
    if held <= left | _OF_NOBODY:
        return
    if not is_ours(out):
        replaces = "; --force replaces what minprefix wrote, and nothing else" if force else ""
        raise InputError(
            f"{out} holds {listed(sorted(held))} and no run of minprefix: choose a new or an "
            f"empty folder for --out{replaces}"
        )
    found = [name for name in marks if name in held]
    if found and not force:
        go_on = "continue it with --resume, " if resume else ""
        raise InputError(
            f"{out} already holds a run ({', '.join(found)}): choose another --out, "
            f"{go_on}or replace it with --force"
        )


def is_ours(folder: Path) -> bool:
    """Whether a folder holds a run, a prefix or an evaluation, by what a stranger's files of the
    same names do not say."""
    if (folder / "minprefix.json").is_file() or (folder / SAVING).is_dir():
        return True
    with suppress(InputError):
        if "minprefix" in map_tensors(folder / STATE, "the state of a run")[1]:
            return True
    for name, wrote_it in (
        ("adapter_config.json", lambda said: said.get("peft_type") == "PREFIX_TUNING"),
        ("adapter_config.json", lambda said: said["config"]["architecture"] == "prefix_tuning"),
        ("metrics.json", lambda said: {"decoding", "data_sha256"} <= said["about"].keys()),
    ):
        with suppress(InputError, KeyError, TypeError, AttributeError):
            if wrote_it(read_json(folder / name, "what minprefix wrote")):
                return True
    for name in ("predictions.jsonl", "predictions.jsonl.partial"):  # an evaluation was stopped
        with suppress(InputError):
            text = read_text(folder / name, "what minprefix wrote")
            _, line = next(json_lines(folder / name, text), ("", {}))
            if {"source", "prediction", "references"} <= line.keys():
                return True
    return False


# ---- the state --------------------------------------------------------------------------------


def save_state(out: Path, prefix: "Prefix", state: State, record: dict[str, Any]) -> None:
    tensors = {
        f"{group}.{name}": a
        for group, arrays in (
            ("parameter", prefix.parameters),
            ("m", state.adam.m),
            ("v", state.adam.v),
            ("best", state.best),
            ("start", state.start),
        )
        for name, a in arrays.items()
    }
    tensors = {name: to(a, "numpy") for name, a in tensors.items()}
    numbers = {
        "step": state.step,
        "t": state.adam.t,
        "best_loss": state.best_loss,
        "best_step": state.best_step,
    }
    # one key: the library does not keep the order of several, and equal states are equal bytes
    metadata = {"minprefix": json.dumps({"state": numbers, "run": record})}
    write_tensors(out / STATE, tensors, metadata)


def saved_step(out: Path) -> int:
    """The step that the state in `out` is of."""
    return _read_state(out)[2]["step"]


def load_options(out: Path, command: str) -> dict[str, Any]:
    """The options that `minprefix <command>` started the run in `out` with. Raises InputError if
    there is no run or another command started it."""
    about = _read_state(out)[1].get("about")
    if not isinstance(about, dict) or about.get("command") != command:
        raise InputError(
            f"the run in {out} was not started by `minprefix {command}`: it is resumed by what "
            "started it"
        )
    if not isinstance(about.get("options"), dict):
        raise InputError(f"{out / STATE} holds no options of the run that it is of: it is damaged")
    return about["options"]


def _read_state(out: Path) -> tuple[dict[str, np.ndarray], dict[str, Any], dict[str, Any]]:
    path = inside(out, STATE, "the state of the run")
    if not path.exists():
        raise InputError(f"{out} holds no run to resume ({STATE} is missing): leave out --resume")
    tensors, metadata = map_tensors(path, "the state of the run")
    try:
        saved = loads(metadata["minprefix"])
        run, state = dict(saved["run"]), dict(saved["state"])
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is not the state of a run: {brief(error)}") from error
    for key in ("step", "t", "best_step", "best_loss"):
        value = state.get(key)
        optional = key.startswith("best") and key in state
        number = type(value) is int and 0 <= value < 2**63
        if key == "best_loss":
            number = number or (type(value) is float and math.isfinite(value))
        if not number and not (optional and value is None):
            raise InputError(
                f"{path} is not the state of a run: its {key} is {quoted(value)}; it is damaged"
            )
    if state["t"] != state["step"] or (state["best_step"] is None) != (state["best_loss"] is None):
        raise InputError(f"{path} is not the state of a run: its numbers are of several; damaged")
    return tensors, run, state


def load_state(out: Path, prefix: "Prefix", record: dict[str, Any]) -> State:
    """Put the parameters of a saved run into `prefix`. Raises InputError if it was another run than
    `record`."""
    tensors, saved, numbers = _read_state(out)
    # the settings last: more data makes more steps, and the data is what changed
    in_order = {k: record[k] for k in sorted(record, key=lambda k: k == "settings")}
    differs = _first_difference(
        {k: saved.get(k) for k in in_order} | saved, json.loads(json.dumps(in_order))
    )
    if differs:
        raise InputError(
            f"cannot resume {out}: {differs}; resume with what it was started with, or use another "
            "--out"
        )
    if numbers["step"] > record["settings"]["steps"]:
        raise InputError(
            f"{out / STATE} is at step {numbers['step']} of {record['settings']['steps']}: damaged"
        )
    groups = _groups(out / STATE, tensors, prefix, numbers)
    for name, p in prefix.parameters.items():
        p[...] = groups["parameter"][name]
    adam = AdamW(
        weight_decay=saved["settings"]["weight_decay"],
        t=numbers["t"],
        m=groups["m"],
        v=groups["v"],
    )
    best = (numbers["best_loss"], numbers["best_step"], groups["best"])
    return State(numbers["step"], adam, *best, groups["start"])


def _groups(
    path: Path, tensors: dict[str, np.ndarray], prefix: "Prefix", numbers: dict[str, Any]
) -> dict[str, dict[str, np.ndarray]]:
    """The tensors of a state, off the file, which will be replaced. Raises InputError unless they
    fit the prefix and `numbers`, and are finite."""
    wanted = {name: (p.shape, p.dtype) for name, p in prefix.parameters.items()}
    kv = prefix.kv
    at_start = {"kv": (kv.shape, kv.dtype)}
    stepped, found = numbers["t"] > 0, numbers["best_loss"] is not None
    there = {"parameter": True, "m": stepped, "v": stepped, "best": found}
    groups: dict[str, dict[str, np.ndarray]] = {group: {} for group in (*there, "start")}
    for full, a in tensors.items():
        group, _, name = full.partition(".")
        fits = at_start if group == "start" else wanted
        if group not in groups or fits.get(name) != (a.shape, a.dtype):
            raise InputError(
                f"{path}: the tensors {quoted(full)} {quoted(a.shape)} ({a.dtype}) do "
                "not fit the prefix: damaged"
            )
        sane = a >= 0 if group == "v" else np.isfinite(a)  # a mean of squares may overflow
        if not sane.all():
            raise InputError(
                f"{path}: tensor {full!r} holds NaN, infinity, or less than 0 for a mean of "
                "squares, which no training leaves there: the file is damaged"
            )
        groups[group][name] = to(np.array(a), prefix.backend)
    for group, is_there in there.items():  # an earlier version kept no start
        arrays = groups[group]
        if arrays.keys() != (wanted.keys() if is_there else set()):
            raise InputError(
                f"{path}: {counted(len(arrays), 'tensor')} {group!r} at step {numbers['step']}, "
                f"for a prefix of {len(wanted)}: the file is damaged"
            )
    return groups


#: options that say where something lies; what lies there is compared by its fingerprint
_PLACES = {
    "about.options.model",
    "about.options.data",
    "about.options.valid",
    "about.options.init_prefix",
    "about.init.init_prefix",
}


#: fingerprints, and what the user would say
_FINGERPRINTS = {
    "about.data_sha256": "--data is another file, or has changed: ",
    "about.valid_sha256": "--valid is another file, or has changed: ",
    "about.init.sha256": "the prefix of --init-prefix has changed: ",
    "base_sha256": "this is another model: ",
}


def _first_difference(saved: Any, now: Any, name: str = "") -> str | None:
    if isinstance(saved, dict) and isinstance(now, dict):
        for key in [*saved, *(k for k in now if k not in saved)]:
            found = _first_difference(saved.get(key), now.get(key), f"{name}.{key}".strip("."))
            if found:
                return found
        return None
    if saved == now or name in _PLACES:
        return None
    what = name.removeprefix("about.").removeprefix("settings.").removeprefix("options.")
    what = brief(what.replace(".", " "))
    said = _FINGERPRINTS.get(name, "")
    return f"{said}{what} was {quoted(saved)} and is now {quoted(now)}"
