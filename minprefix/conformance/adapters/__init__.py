"""Whole models of other makes, graded as they are: a module of PyTorch that takes a prefix, as
transformers' GPT-2 and many people's own do, and a PEFT model.

    minprefix check --model hf:my_module.py

The file has a function `build`:

    from minprefix.conformance.adapters import load_weights
    from my_gpt2 import MyGPT2

    def build(config, weights):
        return load_weights(MyGPT2(config), weights)

`hugging_face` says what `build` gets and what it gives. NumPy is all that an import of this needs;
PyTorch, transformers and PEFT are imported where a module that needs them is graded.
"""

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from minprefix.conformance.adapters.module import ModuleUnderTest
from minprefix.conformance.adapters.prefixed import Build
from minprefix.conformance.adapters.weights import load_weights
from minprefix.errors import InputError
from minprefix.gpt2 import Config

__all__ = ["check_installed", "gpt2_config", "hugging_face", "load_weights", "of_file"]


def hugging_face(
    build: Build,
    prefix: str = "",
    layout: str = "",
    mask: str = "",
    names: Mapping[str, str] | None = None,
    dtype: str = "float64",
    name: str = "",
) -> ModuleUnderTest:
    """A module as an implementation of the suite: `conformance.load(hugging_face(build))`.

    `build(config, weights)` gives a `torch.nn.Module` with these weights in it. `config` is a
    `minprefix.Config`, with the names of config.json (`gpt2_config` makes transformers' of it);
    `weights` are tensors by the checkpoint's names, linear ones (in, out) (`load_weights` copies
    them into a module). A module that owns its prefix, a PEFT model say, is built for a length:
    `build(config, weights, length)`. A configuration that the module does not have raises
    NotImplementedError.

    The module's forward takes ids (B, T) and gives logits (B, T, V), alone, first of a tuple, or as
    `.logits`. `prefix` names the argument or the parameter for the prefix, `layout` its axes, as
    "L 2 B NH P hs", "B P L*2*NH*hs", "tuple" or "cache" (see `adapters.layouts`), `mask` the length
    of attention_mask, "P+T" or "T". What is left out is found by trying.

    Where the module's weights are, hooks see what passes; `names` adds places that have none, as
    {"blocks.{i}.attn.out": "layers.{i}.attention"}. `dtype`: "float32" for single precision.
    Raises InputError if `build` cannot be called, or if no prefix goes through.
    """
    check_installed(name or "hf:")
    called = name or getattr(build, "__module__", "") or "the module"
    return ModuleUnderTest(build, called, prefix, layout, mask, dict(names or {}), dtype)


def gpt2_config(config: Config) -> Any:
    """transformers' `GPT2Config` of a `minprefix.Config`, without dropout."""
    _needs("transformers", "gpt2_config")
    from transformers import GPT2Config

    return GPT2Config(
        n_layer=config.n_layer,
        n_head=config.n_head,
        n_embd=config.n_embd,
        n_inner=config.n_inner,
        vocab_size=config.vocab_size,
        n_positions=config.n_positions,
        layer_norm_epsilon=config.layer_norm_epsilon,
        tie_word_embeddings=config.tie_word_embeddings,
        bos_token_id=0,
        eos_token_id=0,
        attn_pdrop=0.0,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
    )


def check_installed(spec: str) -> None:
    """Raises InputError if a library is missing that the module by this name needs."""
    _needs("torch", "a module of PyTorch")
    if spec.startswith("peft:"):
        _needs("peft", "a PEFT model")


def _needs(package: str, what: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise InputError(f"{what} needs {package}, which is not installed: pip install {package}")


# ---- by name ------------------------------------------------------------------------------------


def of_file(functions: object, spec: str) -> ModuleUnderTest:
    """The module of a file that has `build`, and perhaps PREFIX, LAYOUT, MASK and NAMES: see
    `hugging_face`. `functions`: the file, imported; `spec`: its name, with options. Raises
    InputError."""
    make, _, rest = spec.partition(":")
    file, _, query = rest.partition("?")
    options = dict(parse_qsl(query))
    names = getattr(functions, "NAMES", {})
    if "names" in options:
        names = _read(Path(options["names"]))
    build = functions if callable(functions) else getattr(functions, "build", None)
    found = hugging_face(
        build,  # type: ignore[arg-type]
        prefix=getattr(functions, "PREFIX", ""),
        layout=getattr(functions, "LAYOUT", ""),
        mask=getattr(functions, "MASK", ""),
        names=names,
        dtype=options.get("dtype", "float64"),
        name=file,
    )
    if make == "peft" and not found.entry.is_parameter:
        raise InputError(f"build of {file} gives no PEFT model: expected one, or hf:{file}")
    return found


def _read(path: Path) -> dict[str, str]:
    try:
        found: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"--names {path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"--names {path} is no JSON: {error}") from error
    return found
