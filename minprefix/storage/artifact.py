"""A trained prefix on disk: a PEFT directory with provenance beside it.

    adapter_model.safetensors   PEFT's: `prompt_embeddings` (P, L*2*C)
    adapter_config.json         PEFT's
    minprefix.json              ours: how it came to be (see artifact.schema.json)
    mlp.safetensors             the MLP's parameters, where there is one

What PEFT cannot express (a subset of layers, another position rule, P = 0) is written as
`prefix.safetensors` instead of PEFT's two files, so that PEFT finds nothing it would misread.

All of them are saved as one: a kill leaves the old prefix or the new one (`files.write_together`).
"""

import hashlib
import json
import os
import platform
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from minprefix.errors import InputError, note
from minprefix.model import GPT2
from minprefix.prefix import MLPPrefix, Prefix, flatten, unflatten
from minprefix.storage import files
from minprefix.storage.adapters import is_adapters
from minprefix.storage.tokenizer import END, read_as_before

if TYPE_CHECKING:
    from tokenizers import Tokenizer

FORMAT = 2
PEFT_CONFIG, PEFT_TENSOR = "adapter_config.json", "adapter_model.safetensors"
ABOUT, OWN_TENSOR, MLP = "minprefix.json", "prefix.safetensors", "mlp.safetensors"
TENSORS = (PEFT_TENSOR, OWN_TENSOR)  # a prefix has one of them
#: all files that a prefix may have
FILES = (PEFT_CONFIG, PEFT_TENSOR, OWN_TENSOR, MLP, ABOUT)
SCHEMA = Path(__file__).with_name("artifact.schema.json")


def save_prefix(
    prefix: Prefix,
    directory: str | Path,
    model: GPT2 | None = None,
    training: dict[str, Any] | None = None,
    metrics: dict[str, Any] | None = None,
    evaluation: dict[str, Any] | None = None,
    fingerprints: tuple[str, str | None] | None = None,
) -> None:
    """Write `prefix` into `directory`, in place of what may be there: all of it, or nothing.

    `model` is its base, whose fingerprints are recorded. `training` says how it came to be,
    `metrics` how good it is, `evaluation` what `minprefix verify` is to compute again
    (`prefixes.verify`). `fingerprints`: as in `load_prefix`.

    Raises InputError for numbers that no file can hold, if the disk refuses, and if another process
    writes there.
    """
    prefix = prefix.to("numpy")
    n, _, NH, P, hs = prefix.kv.shape
    if prefix.kv.dtype.kind != "f":
        raise InputError(
            f"cannot save a prefix of {prefix.kv.dtype}: expected floating-point numbers"
        )
    if not np.isfinite(prefix.kv).all():
        raise InputError("cannot save a prefix that holds NaN or infinity: its training failed")
    tensors: dict[str, bytes] = {}
    configs: dict[str, bytes] = {}
    if not why_not_peft(prefix):
        flat = {"prompt_embeddings": flatten(prefix.kv).astype(np.float32)}
        tensors[PEFT_TENSOR] = files.tensor_bytes(flat, {"format": "pt"})
        base_name = None if model is None else model.name
        configs[PEFT_CONFIG] = files.json_bytes(peft_config(prefix, base_name))
    else:
        tensors[OWN_TENSOR] = files.tensor_bytes({"kv": prefix.kv.astype(np.float32)}, {})
    if isinstance(prefix, MLPPrefix):
        tensors[MLP] = files.tensor_bytes(prefix.parameters, {})
    if model is not None:
        fingerprints = fingerprints or (model.fingerprint(), tokenizer_fingerprint(model))
    base_sha, tokenizer_sha = (None, None) if fingerprints is None else fingerprints
    about = {
        "format": FORMAT,
        "saved": datetime.now(UTC).isoformat(timespec="seconds"),
        "packages": packages(),
        "base": {
            "name": None if model is None else model.name,
            "sha256": base_sha,
            "tokenizer_sha256": tokenizer_sha,
            "n_layer": n if model is None else model.config.n_layer,
            "n_head": NH,
            "head_size": hs,
        },
        "prefix": {
            "kind": "mlp" if isinstance(prefix, MLPPrefix) else "flat",
            "length": P,
            "layers": list(prefix.layers) if prefix.subset else None,
            "position_offset": prefix.position_offset,
        },
        "files": {n: hashlib.sha256(data).hexdigest() for n, data in (tensors | configs).items()},
        "training": training,
        "metrics": metrics,
        "evaluation": evaluation,
    }
    configs[ABOUT] = files.json_bytes(about)
    _check_schema(Path(directory) / ABOUT, json.loads(configs[ABOUT]))
    files.write_together(Path(directory), tensors | configs, FILES)


def why_not_peft(prefix: Prefix) -> str | None:
    """What of this prefix PEFT's files cannot express; None if they can."""
    if prefix.length == 0:
        return "it has no slots"
    if prefix.subset:
        return f"only layers {', '.join(map(str, prefix.layers))} see it"
    if prefix.position_offset != prefix.length:
        return (
            f"tokens start at position {prefix.position_offset}, where PEFT puts them at "
            f"{prefix.length}, the number of its slots"
        )
    return None


def peft_config(prefix: Prefix, base: str | None) -> dict[str, Any]:
    """adapter_config.json, as PEFT writes it."""
    n, _, NH, P, hs = prefix.kv.shape
    mlp = isinstance(prefix, MLPPrefix)
    return {
        "auto_mapping": None,
        "base_model_name_or_path": base,
        "encoder_hidden_size": prefix.parameters["bias_1"].size if mlp else NH * hs,
        "inference_mode": True,
        "init_weights": None,
        "modules_to_save": None,
        "num_attention_heads": NH,
        "num_layers": n,
        "num_transformer_submodules": 1,
        "num_virtual_tokens": P,
        "peft_type": "PREFIX_TUNING",
        "prefix_projection": mlp,
        "revision": None,
        "task_type": "CAUSAL_LM",
        "token_dim": NH * hs,
    }


# ---- fingerprints -----------------------------------------------------------------------------

#: what a tokenizer's fingerprint takes apart: blanks, digits, contractions, scripts, an emoji
PROBE = "Hello  world, it's 2021!\n\tdéjà vu; Größe 1.5 — 東京 привет 🙂 name[The Fox], area[city]"


def tokenizer_fingerprint(model: GPT2) -> str | None:
    """sha256 over its tokens with their ids, its merges, how it splits a text and what it cuts out
    of one: the same for tokenizer.json and for vocab.json with merges.txt. None for a model without
    one."""
    if model.tokenizer is None:
        return None
    with model.tokenizing() as tokenizer:  # what it has no token for is no news here
        return _tokenizer_sha256(tokenizer)


def earlier_tokenizer_fingerprint(model: GPT2) -> str | None:
    """The fingerprint that version 0.1.0 recorded, which did not know the files beside a tokenizer.
    None for a model that was not loaded from a folder, or whose folder is gone."""
    try:
        tokenizer = None if model.folder is None else read_as_before(model.folder)
        return None if tokenizer is None else _tokenizer_sha256(tokenizer, earlier=True)
    except (KeyboardInterrupt, MemoryError):
        raise
    except BaseException:  # of the library, which was able to read it a moment ago
        return None


def _tokenizer_sha256(tokenizer: "Tokenizer", earlier: bool = False) -> str:
    merges = json.loads(tokenizer.to_str())["model"].get("merges", [])
    # older versions of the library write a merge as one text
    merges = [m.split(" ") if isinstance(m, str) else m for m in merges]
    tokens = sorted(tokenizer.get_vocab(with_added_tokens=True).items())
    content = [tokens, merges, tokenizer.encode(PROBE, add_special_tokens=False).ids]
    if not earlier and (cut := _cut_out(tokenizer)):  # none of it in a GPT-2 as it was published
        content.append(cut)
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _cut_out(tokenizer: "Tokenizer") -> list[Any]:
    """Which tokens are cut out of a text before it is split, where the list of all tokens does not
    say so: those that merges could make, too, and those that take blanks along or stand alone."""
    made = tokenizer.get_vocab(with_added_tokens=False).keys() - {END}
    cut: list[Any] = sorted(
        [token.content, token.lstrip, token.rstrip, token.single_word]
        for token in tokenizer.get_added_tokens_decoder().values()
        if token.content in made or token.lstrip or token.rstrip or token.single_word
    )
    return [*cut, "special tokens are split"] if tokenizer.encode_special_tokens else cut


def packages() -> dict[str, str]:
    """The versions that decide what is computed and written."""
    names = ("minprefix", "numpy", "safetensors", "tokenizers")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


# ---- reading ----------------------------------------------------------------------------------


def load_prefix(
    directory: str | Path,
    model: GPT2 | None = None,
    dtype: str = "float32",
    fingerprints: tuple[str, str | None] | None = None,
) -> Prefix:
    """Read what `save_prefix` or PEFT wrote. With `model`: raises InputError for a prefix whose
    recorded base is another (both fingerprints are in the sentence) or whose shape does not fit.

    `fingerprints`: the model's, and its tokenizer's, from someone who has them already.
    """
    folder = _folder(directory)
    prefix, about = files.read_together(folder, FILES, lambda: _read_prefix(folder, dtype))
    _check_base(folder, about, prefix, model, fingerprints)
    return prefix


def _read_prefix(folder: Path, dtype: str) -> tuple[Prefix, dict[str, Any] | None]:
    about = read_about(folder)
    if _file(folder, PEFT_TENSOR).exists():
        prefix = _read_peft(folder, dtype)
    elif _file(folder, OWN_TENSOR).exists() and about is not None:
        tensors, _ = files.map_tensors(folder / OWN_TENSOR, "the prefix")
        if set(tensors) != {"kv"} or tensors["kv"].dtype.kind != "f":
            found = files.listed((name, a.shape, str(a.dtype)) for name, a in tensors.items())
            raise InputError(
                f"{folder / OWN_TENSOR} holds {found}: expected one tensor 'kv' of floating-point "
                "numbers; the prefix is damaged"
            )
        own = about["prefix"]
        prefix = Prefix(_as(tensors["kv"], dtype), own["layers"], own["position_offset"])
    elif is_adapters(folder):
        raise InputError(
            f"{str(folder)!r} was written by the adapters library: `minprefix import` takes it in"
        )
    else:
        if (why := files.unopened(os.listdir(folder), PEFT_TENSOR)) is not None:
            raise InputError(f"{str(folder)!r} has no {PEFT_TENSOR}: {why}")
        raise InputError(
            f"{str(folder)!r} holds no prefix: expected {PEFT_TENSOR} with {PEFT_CONFIG}, or "
            f"{OWN_TENSOR} with {ABOUT}"
        )
    if about is not None:
        _check_about(folder, about, prefix)
    if not np.isfinite(prefix.kv).all():
        raise InputError(f"the prefix in {str(folder)!r} holds NaN or infinity: it is damaged")
    if about is not None:
        _check_files(folder, about, TENSORS)
    return prefix, about


def _as(a: np.ndarray, dtype: str) -> np.ndarray:
    with np.errstate(over="ignore"):  # what float32 cannot hold is infinity, and refused as that
        return a.astype(dtype)


def _folder(directory: str | Path) -> Path:
    folder = Path(directory)
    if not folder.is_dir():
        raise InputError(
            f"prefix folder {str(folder)!r} does not exist: expected one that was saved"
        )
    return folder


def _file(folder: Path, name: str) -> Path:
    """Where a file of the prefix is, or would be. Raises InputError for a way out of the folder."""
    return files.inside(folder, name, "a file of the prefix")


def _check_base(
    folder: Path,
    about: dict[str, Any] | None,
    prefix: Prefix,
    model: GPT2 | None,
    fingerprints: tuple[str, str | None] | None = None,
) -> None:
    """Raises InputError if `model` is not the base that the prefix was trained on."""
    if model is None:
        return
    prefix.check(model.config, model.name)
    base = {} if about is None else about["base"]
    if not base.get("sha256"):
        return  # PEFT wrote it: nobody knows its base
    actual = fingerprints or (model.fingerprint(), tokenizer_fingerprint(model))
    recorded = (base["sha256"], base["tokenizer_sha256"])
    for what, was, now in zip(("base", "tokenizer"), recorded, actual, strict=True):
        if was is not None and now is not None and was != now:
            if what == "tokenizer" and was == earlier_tokenizer_fingerprint(model):
                note(
                    f"the prefix in {str(folder)!r} was trained before minprefix read the files "
                    f"beside the tokenizer of {base['name']!r}: a text may be other tokens now"
                )
                continue
            on = f"on {base['name']!r}" if what == "base" else f"that of {base['name']!r}"
            raise InputError(
                f"the prefix in {str(folder)!r} was trained on another {what}: {on} "
                f"(sha256 {was[:12]}...), and this is {model.name!r} (sha256 {now[:12]}...); "
                "give the model that it was trained on"
            )


def load_mlp(directory: str | Path, model: GPT2 | None = None, dtype: str = "float32") -> MLPPrefix:
    """The MLP that was kept beside a folded prefix, to train on. Raises InputError where there is
    none."""
    folder = _folder(directory)
    mlp, about = files.read_together(folder, FILES, lambda: _read_mlp(folder, dtype))
    _check_base(folder, about, mlp, model)
    return mlp


def _read_mlp(folder: Path, dtype: str) -> tuple[MLPPrefix, dict[str, Any]]:
    about = read_about(folder)
    if about is None or not _file(folder, MLP).exists():
        raise InputError(
            f"{str(folder)!r} holds no MLP: the prefix is flat, or PEFT wrote it without"
        )
    tensors, _ = files.map_tensors(folder / MLP, "the prefix's MLP")
    base, own = about["base"], about["prefix"]
    P, C = own["length"], base["n_head"] * base["head_size"]
    out = 2 * C * (base["n_layer"] if own["layers"] is None else len(own["layers"]))
    hidden = tensors["bias_1"].size if "bias_1" in tensors else 0
    expected = {
        "embedding": (P, C),
        "weight_1": (C, hidden),
        "bias_1": (hidden,),
        "weight_2": (hidden, out),
        "bias_2": (out,),
    }
    found = {name: a.shape for name, a in tensors.items()}
    if found != expected or any(a.dtype.kind != "f" for a in tensors.values()):
        raise InputError(
            f"{folder / MLP} holds {files.listed(found.items())}: expected {expected} of "
            f"floating-point numbers, from {ABOUT}"
        )
    parameters = {name: _as(a, dtype) for name, a in tensors.items()}
    for name, a in parameters.items():
        if not np.isfinite(a).all():
            raise InputError(f"{folder / MLP}: {name} holds NaN or infinity: it is damaged")
    mlp = MLPPrefix(parameters, base["n_head"], own["layers"], own["position_offset"])
    _check_about(folder, about, mlp)
    _check_files(folder, about, (MLP,))
    return mlp, about


def load_with_about(directory: str | Path) -> tuple[Prefix, dict[str, Any] | None]:
    """A prefix and its record, of one save."""
    folder = _folder(directory)
    return files.read_together(folder, FILES, lambda: _read_prefix(folder, "float32"))


def read_about(directory: str | Path) -> dict[str, Any] | None:
    """minprefix.json; None where PEFT alone wrote the directory. Raises InputError for another
    format version and for what its schema does not allow."""
    path = _file(Path(directory), ABOUT)
    if not path.exists():
        return None
    about = files.read_json(path, "the prefix's provenance")
    if about.get("format") != FORMAT:
        raise InputError(
            f"{path} has format {files.shown(about.get('format'))}, this version reads {FORMAT}: "
            "use the minprefix that wrote it"
        )
    _check_schema(path, about)
    return about


def _check_schema(path: Path, about: dict[str, Any]) -> None:
    """Raises InputError for the first thing that artifact.schema.json does not allow."""
    for error in _validator().iter_errors(about):
        at, found = list(error.absolute_path), error.instance
        if error.validator == "required":
            missing = next(key for key in error.validator_value if key not in found)
            raise InputError(
                f"{path}: key '{_dotted([*at, missing])}' is missing: the file is damaged or edited"
            )
        if error.validator == "additionalProperties":
            unknown = min(set(found) - set(error.schema.get("properties", {})))
            raise InputError(
                f"{path}: key '{_dotted([*at, unknown])}' is unknown: the file is damaged or edited"
            )
        raise InputError(
            f"{path}: {_dotted(at)} is {files.shown(found)}: expected {error.schema['description']}"
        )


def _dotted(keys: list[Any]) -> str:
    """base.sha256; a key out of a file may be anything."""
    return ".".join(files.shown(str(key))[1:-1] for key in keys)


@cache
def _validator() -> Any:
    from jsonschema import Draft202012Validator, validators  # a tenth of a second to import

    # to JSON Schema 2.0 is a whole number; to a list of layers it is none
    types = Draft202012Validator.TYPE_CHECKER.redefine("integer", lambda _, v: type(v) is int)
    strict = validators.extend(Draft202012Validator, type_checker=types)
    return strict(json.loads(SCHEMA.read_text(encoding="utf-8")))


def _check_about(folder: Path, about: dict[str, Any], prefix: Prefix) -> None:
    """Raises InputError where minprefix.json and the tensor beside it are not of one save."""
    with np.errstate(over="ignore", invalid="ignore"):  # an MLP of huge weights is only measured
        n, _, NH, P, hs = prefix.kv.shape
    found: dict[str, Any] = {
        "prefix.length": P,
        "base.n_head": NH,
        "base.head_size": hs,
        "prefix.layers": list(prefix.layers) if prefix.subset else None,
        "prefix.position_offset": prefix.position_offset,
    }
    if not prefix.subset:
        found["base.n_layer"] = n
    found["prefix.kind"] = "mlp" if MLP in about["files"] else "flat"
    for key, value in found.items():
        part, _, name = key.partition(".")
        recorded = about[part][name]
        if recorded != value:
            raise InputError(
                f"{folder / ABOUT}: {key} is {files.shown(recorded)}, the tensors beside it have "
                f"{files.shown(value)}: the files are not of one save; copy them again, together"
            )


def _check_files(folder: Path, about: dict[str, Any], names: tuple[str, ...]) -> None:
    """Raises InputError where one of these files is not the one that was saved with
    minprefix.json."""
    for name in names:
        if not _file(folder, name).exists():
            continue
        recorded = about["files"].get(name)
        actual = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        if recorded != actual:
            was = "nothing of it" if recorded is None else f"sha256 {recorded[:12]}..."
            raise InputError(
                f"{folder / name} has sha256 {actual[:12]}..., and {ABOUT} records {was}: the "
                f"files are not of one save; copy them again, together, or remove {ABOUT} if "
                "another program wrote the prefix anew"
            )


def _read_peft(folder: Path, dtype: str) -> Prefix:
    path = _file(folder, PEFT_CONFIG)
    if not path.exists():
        raise InputError(f"{str(folder)!r} has {PEFT_TENSOR} but no {PEFT_CONFIG}: copy both")
    config = files.read_json(path, "PEFT's config")
    if config.get("peft_type") != "PREFIX_TUNING":
        raise InputError(
            f"{path}: peft_type is {files.shown(config.get('peft_type'))}: expected "
            "'PREFIX_TUNING'; minprefix reads no other kind of adapter"
        )
    numbers = ("num_virtual_tokens", "num_layers", "num_attention_heads", "token_dim")
    for key in numbers:
        if type(config.get(key)) is not int or not 1 <= config[key] < 2**31:
            raise InputError(
                f"{path}: {key} is {files.shown(config.get(key))}: expected a whole number from 1"
            )
    P, L, NH, C = (config[key] for key in numbers)
    if C % NH:
        raise InputError(f"{path}: token_dim is {C}, which {NH} heads cannot share equally")
    tensors, _ = files.map_tensors(folder / PEFT_TENSOR, "the prefix")
    stored = tensors.get("prompt_embeddings", np.empty(0))
    if len(tensors) != 1 or stored.shape != (P, L * 2 * C) or stored.dtype.kind != "f":
        found = files.listed((name, a.shape, str(a.dtype)) for name, a in tensors.items())
        raise InputError(
            f"{folder / PEFT_TENSOR} holds {found}: expected prompt_embeddings {(P, L * 2 * C)} "
            f"from {PEFT_CONFIG}"
        )
    return Prefix(_as(unflatten(tensors["prompt_embeddings"], L, NH, C // NH), dtype))
