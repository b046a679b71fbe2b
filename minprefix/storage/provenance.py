"""How a prefix or a rival came to be: minprefix.json, described by artifact.schema.json."""

import json
import platform
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from minprefix.errors import InputError, quoted
from minprefix.storage.reading import inside, read_json

ABOUT = "minprefix.json"
FORMAT = 2
SCHEMA = Path(__file__).with_name("artifact.schema.json")


@dataclass(frozen=True)
class Base:
    """The model that a prefix belongs to."""

    name: str | None
    sha256: str | None
    tokenizer_sha256: str | None
    n_layer: int
    n_head: int
    head_size: int


@dataclass(frozen=True)
class Shape:
    """What the prefix is."""

    kind: str  # "flat" or "mlp"
    length: int
    layers: list[int] | None  # None: all
    position_offset: int


@dataclass(frozen=True)
class Rival:
    """What a rival is: `minprefix.method.Method`'s `name` and `options`."""

    name: str
    options: dict[str, Any]


@dataclass(frozen=True)
class Evaluation:
    """What `minprefix verify` computes again."""

    of: str  # "data" or "valid": which file it was computed on
    examples: int  # how many of its pairs, the first ones
    loss: float  # the mean of a token, in nats
    max_new_tokens: int
    samples: list[dict[str, str]]  # "source", and the "prediction" that the model wrote for it


@dataclass(frozen=True)
class Provenance:
    """minprefix.json. Its fields are the file's, in the file's order; of `prefix` and `method` one
    is None, and not in the file.

    `training` is what the training recorded, with any keys of its own; the properties name the ones
    that minprefix itself reads.
    """

    saved: str  # when, ISO 8601
    packages: dict[str, str]
    base: Base
    prefix: Shape | None
    method: Rival | None
    files: dict[str, str]  # name -> sha256
    training: dict[str, Any] | None = None
    metrics: dict[str, Any] | None = None
    evaluation: Evaluation | None = None

    @property
    def template(self) -> str | None:
        return (self.training or {}).get("template")

    @property
    def command(self) -> str | None:
        return (self.training or {}).get("command")

    @property
    def options(self) -> dict[str, Any]:
        return (self.training or {}).get("options") or {}

    @property
    def settings(self) -> dict[str, Any]:
        return (self.training or {}).get("settings") or {}

    @property
    def revision(self) -> str | None:
        """The revision of the base."""
        return self.options.get("revision")

    def fingerprint(self, of: str) -> str | None:
        """The recorded sha256 of a data file: `of` is "data" or "valid"."""
        return (self.training or {}).get(f"{of}_sha256")

    def as_json(self) -> dict[str, Any]:
        absent = "method" if self.method is None else "prefix"
        return {"format": FORMAT} | {k: v for k, v in asdict(self).items() if k != absent}


def read_about(directory: str | Path) -> Provenance | None:
    """The record of a prefix or a rival; None where PEFT alone wrote the directory. Raises
    InputError for another format version and for what the schema does not allow."""
    path = inside(Path(directory), ABOUT, "a file of the prefix")
    if not path.exists():
        return None
    raw = read_json(path, "the prefix's provenance")
    if raw.get("format") != FORMAT:
        found = f"format {quoted(raw.get('format'))}, this version reads {FORMAT}"
        raise InputError(f"{path} has {found}: use the minprefix that wrote it")
    check_schema(path, raw)
    del raw["format"]
    prefix, method = raw.get("prefix"), raw.get("method")
    raw["base"] = Base(**raw["base"])
    raw["prefix"] = None if prefix is None else Shape(**prefix)
    raw["method"] = None if method is None else Rival(**method)
    if raw["evaluation"] is not None:
        raw["evaluation"] = Evaluation(**raw["evaluation"])
    return Provenance(**raw)


def recorded_template(directory: str | Path) -> str | None:
    """The template that a prefix was trained with; None if its folder records none."""
    about = read_about(directory)
    return None if about is None else about.template


def packages() -> dict[str, str]:
    """The versions that decide what is computed and written."""
    names = ("minprefix", "numpy", "safetensors", "tokenizers")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def check_schema(path: Path, raw: dict[str, Any]) -> None:
    """Raises InputError for the first thing that artifact.schema.json does not allow."""
    for error in _validator().iter_errors(raw):
        at, found = list(error.absolute_path), error.instance
        if error.validator == "required":
            missing = next(key for key in error.validator_value if key not in found)
            wrong = f"key '{_dotted([*at, missing])}' is missing: the file is damaged or edited"
        elif error.validator == "additionalProperties":
            unknown = min(set(found) - set(error.schema.get("properties", {})))
            wrong = f"key '{_dotted([*at, unknown])}' is unknown: the file is damaged or edited"
        elif error.validator == "oneOf":  # prefix or method
            both = "keys 'prefix' and 'method' are both there: expected one of them"
            missing = "key 'prefix' is missing: the file is damaged or edited"
            wrong = both if {"prefix", "method"} <= found.keys() else missing
        else:
            expected = error.schema["description"]
            wrong = f"{_dotted(at)} is {quoted(found)}: expected {expected}"
        raise InputError(f"{path}: {wrong}")


def _dotted(keys: list[Any]) -> str:
    """base.sha256; a key out of a file may be anything."""
    return ".".join(quoted(str(key))[1:-1] for key in keys)


@cache
def _validator() -> Any:
    from jsonschema import Draft202012Validator, validators  # a tenth of a second to import

    # JSON Schema takes 2.0 for a whole number; a list of layers does not
    types = Draft202012Validator.TYPE_CHECKER.redefine("integer", lambda _, v: type(v) is int)
    strict = validators.extend(Draft202012Validator, type_checker=types)
    return strict(json.loads(SCHEMA.read_text(encoding="utf-8")))
