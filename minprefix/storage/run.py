"""The files that a training leaves in its folder: a log with a line a step, and a state from which
it can continue."""

import json
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from minprefix.errors import InputError, brief, counted, listed, quoted
from minprefix.ops import home, to
from minprefix.optim import AdamW
from minprefix.storage.reading import inside, json_lines, loads, read_bytes, read_json, read_text
from minprefix.storage.saving import SAVING, marks_in, only_writer
from minprefix.storage.tensors import map_tensors, write_tensors
from minprefix.storage.writing import temporary, write_text

STATE, LOG, PICTURE = "state.safetensors", "log.jsonl", "loss.png"
#: the files of a run, an artifact and an evaluation: they mark a folder as taken
RUN_FILES = (
    SAVING, STATE, LOG, PICTURE, "minprefix.json", "adapter_config.json",
    "adapter_model.safetensors", "prefix.safetensors", "mlp.safetensors", "method.safetensors",
    "encoder.safetensors", "metrics.json", "samples.md", "predictions.jsonl",
    "predictions.jsonl.partial",
)  # fmt: skip


@dataclass
class State:
    """All that a run needs to go on: it is one file, replaced whole."""

    parameters: dict[str, np.ndarray]  # what is trained, in place
    adam: AdamW
    step: int = 0  # how many steps are done
    best_loss: float | None = None  # the lowest validation loss so far,
    best_step: int | None = None  # the step at which it was seen,
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
        """Send to the disk all that was written."""
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


# ---- the folder -------------------------------------------------------------------------------

#: files in a folder that its owner would call empty
_IGNORED = {".DS_Store", "Thumbs.db", "desktop.ini", "lost+found", ".gitkeep", ".gitignore"}


def refuse_taken(
    out: Path, force: bool, resume: bool | None = None, marks: Sequence[str] = RUN_FILES
) -> None:
    """Raises InputError, before any work, if `out` is taken.

    It is taken if it holds `marks` of a run, unless `force` replaces them or `resume` goes on with
    it (None: the command cannot resume); if it holds files and none that minprefix wrote, a home
    folder or a website, even with `force`; and if another process writes there.
    """
    if not out.is_dir():
        if out.exists():
            raise InputError(f"{out} is a file: expected a folder for --out, or a new name")
        return
    with only_writer(out):
        held = {path.name for path in out.iterdir()}
        left = {temporary(out / name).name for name in RUN_FILES}  # of a save that was killed
        if resume or held <= left | _IGNORED:
            return
        if not is_ours(out):
            replaces = "; --force replaces what minprefix wrote, and nothing else" if force else ""
            raise InputError(
                f"{out} holds {listed(sorted(held))} and no run of minprefix: choose a new or an "
                f"empty folder for --out{replaces}"
            )
        marks_in(out, marks, force, resume is False)


def is_ours(folder: Path) -> bool:
    """Whether a folder holds a run, a prefix or an evaluation, by contents that files of the same
    names from elsewhere do not have."""
    if (folder / "minprefix.json").is_file() or (folder / SAVING).is_dir():
        return True
    what = "what minprefix wrote"

    def state(path: Path) -> bool:
        return "minprefix" in map_tensors(path, what)[1]

    def adapter(path: Path) -> bool:
        said = read_json(path, what)
        # another program's LoRA is a common thing: it takes a record to make a rival ours
        peft = said.get("peft_type") == "PREFIX_TUNING"
        return peft or said["config"]["architecture"] == "prefix_tuning"

    def scores(path: Path) -> bool:
        return {"decoding", "data_sha256"} <= read_json(path, what)["about"].keys()

    def predictions(path: Path) -> bool:
        _, line = next(json_lines(path, read_text(path, what)))
        return {"source", "prediction", "references"} <= line.keys()

    for name, wrote_it in (
        (STATE, state),
        ("adapter_config.json", adapter),
        ("metrics.json", scores),
        ("predictions.jsonl", predictions),
        ("predictions.jsonl.partial", predictions),  # an evaluation was stopped
    ):
        with suppress(InputError, KeyError, TypeError, AttributeError, StopIteration):
            if wrote_it(folder / name):
                return True
    return False


# ---- the state --------------------------------------------------------------------------------


def save_state(out: Path, state: State, record: dict[str, Any]) -> None:
    groups = {
        "parameter": state.parameters, "m": state.adam.m, "v": state.adam.v, "best": state.best,
        "start": state.start,
    }  # fmt: skip
    tensors = {
        f"{group}.{name}": to(a, "numpy")
        for group, arrays in groups.items()
        for name, a in arrays.items()
    }
    best = {"best_loss": state.best_loss, "best_step": state.best_step}
    numbers = {"step": state.step, "t": state.adam.t, **best}
    # one key: the library does not keep the order of several, and equal states are equal bytes
    metadata = {"minprefix": json.dumps({"state": numbers, "run": record})}
    write_tensors(out / STATE, tensors, metadata)


def saved_step(out: Path) -> int:
    """The step of the state in `out`. Raises InputError where there is none."""
    return _read_state(out)[2]["step"]


def load_options(out: Path, command: str) -> dict[str, Any]:
    """The options with which `minprefix <command>` started the run in `out`. Raises InputError if
    there is no run or another command started it."""
    about = _read_state(out)[1].get("about")
    if not isinstance(about, dict) or about.get("command") != command:
        raise InputError(
            f"the run in {out} was not started by `minprefix {command}`: resume it with what "
            "started it"
        )
    if not isinstance(about.get("options"), dict):
        raise InputError(f"{out / STATE} does not hold the options of its run: it is damaged")
    return about["options"]


def _read_state(out: Path) -> tuple[dict[str, np.ndarray], dict[str, Any], dict[str, Any]]:
    """-> the tensors, the record of the run, and the numbers of the state."""
    path = inside(out, STATE, "the state of the run")
    if not path.exists():
        raise InputError(f"{out} holds no run to resume ({STATE} is missing): leave out --resume")
    tensors, metadata = map_tensors(path, "the state of the run")
    no_state = f"{path} is not the state of a run: "
    try:
        saved = loads(metadata["minprefix"])
        run, state = dict(saved["run"]), dict(saved["state"])
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise InputError(no_state + brief(error)) from error
    for key in ("step", "t", "best_step", "best_loss"):
        value = state.get(key)
        whole = type(value) is int and 0 <= value < 2**63
        finite = key == "best_loss" and type(value) is float and math.isfinite(value)
        none = key.startswith("best") and key in state and value is None
        if not (whole or finite or none):
            raise InputError(f"{no_state}its {key} is {quoted(value)}; it is damaged")
    if state["t"] != state["step"] or (state["best_step"] is None) != (state["best_loss"] is None):
        raise InputError(f"{no_state}its numbers contradict each other; it is damaged")
    return tensors, run, state


def load_state(out: Path, state: State, record: dict[str, Any]) -> None:
    """Put what is saved in `out` into `state`, which is as at the start of the run. Raises
    InputError, and leaves `state` alone, if it was another run than `record`."""
    tensors, saved, numbers = _read_state(out)
    now = json.loads(json.dumps(record))
    now["settings"] = now.pop("settings")  # last: more data makes more steps, and the data changed
    for name, was, is_now in differences({k: saved.get(k) for k in now} | saved, now):
        if name not in _PLACES:
            raise InputError(
                f"cannot resume {out}: {_said(name, was, is_now)}; resume with what it was started "
                "with, or use another --out"
            )
    if numbers["step"] > record["settings"]["steps"]:
        raise InputError(
            f"{out / STATE} is at step {numbers['step']} of {record['settings']['steps']}: damaged"
        )
    groups = _groups(out / STATE, tensors, state, numbers)
    for name, p in state.parameters.items():
        p[...] = groups["parameter"][name]
    state.adam.t, state.adam.m, state.adam.v = numbers["t"], groups["m"], groups["v"]
    state.step, state.best, state.start = numbers["step"], groups["best"], groups["start"]
    state.best_loss, state.best_step = numbers["best_loss"], numbers["best_step"]


def _groups(
    path: Path, tensors: dict[str, np.ndarray], state: State, numbers: dict[str, Any]
) -> dict[str, dict[str, np.ndarray]]:
    """The tensors of a state, copied out of the file, which will be replaced. Raises InputError
    unless they fit the parameters and `numbers`, and are finite."""
    place = home(next(iter(state.parameters.values())))
    stepped, found = numbers["t"] > 0, numbers["best_loss"] is not None
    there = {"parameter": True, "m": stepped, "v": stepped, "best": found}
    groups: dict[str, dict[str, np.ndarray]] = {group: {} for group in (*there, "start")}
    for full, a in tensors.items():
        group, _, name = full.partition(".")
        ours = (state.start if group == "start" else state.parameters).get(name)
        if group not in groups or ours is None or (ours.shape, ours.dtype) != (a.shape, a.dtype):
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
        groups[group][name] = to(np.array(a), place)
    for group, is_there in there.items():  # an earlier version kept no start
        if groups[group].keys() != (state.parameters.keys() if is_there else set()):
            raise InputError(
                f"{path}: {counted(len(groups[group]), 'tensor')} {group!r} at step "
                f"{numbers['step']}, for a prefix of {len(state.parameters)}: the file is damaged"
            )
    return groups


# ---- which run it was -------------------------------------------------------------------------

#: options that say where something lies; what lies there is compared by its fingerprint
PLACES = ("model", "data", "valid", "init_prefix")
_PLACES = {"about.init.init_prefix", *(f"about.options.{name}" for name in PLACES)}
#: what a fingerprint that differs means to the user
_FINGERPRINTS = {
    "about.data_sha256": "--data is another file, or has changed: ",
    "about.valid_sha256": "--valid is another file, or has changed: ",
    "about.init.sha256": "the prefix of --init-prefix has changed: ",
    "base_sha256": "this is another model: ",
}


def differences(a: Any, b: Any, name: str = "") -> list[tuple[str, Any, Any]]:
    """(name, value of a, value of b) for each leaf in which two records differ; None stands for
    one that is not there."""
    if isinstance(a, dict) and isinstance(b, dict):
        parts = (differences(a.get(k), b.get(k), f"{name}.{k}".strip(".")) for k in a | b)
        return [found for part in parts for found in part]
    return [] if a == b else [(name, a, b)]


def _said(name: str, was: Any, now: Any) -> str:
    what = name.removeprefix("about.").removeprefix("settings.").removeprefix("options.")
    what = brief(what.replace(".", " "))
    return f"{_FINGERPRINTS.get(name, '')}{what} was {quoted(was)} and is now {quoted(now)}"
