"""Reading and writing GPT-2 in Hugging Face's layout: config.json, the weights in safetensors, and
the tokenizer. Nothing is ever unpickled."""

import os
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from minprefix.errors import InputError, counted, listed, note, quoted
from minprefix.gpt2 import Config
from minprefix.storage import hub
from minprefix.storage.config import GENERATION, read_config, read_end_tokens, write_config
from minprefix.storage.places import SHIPPED, find
from minprefix.storage.reading import inside, read_json
from minprefix.storage.tensors import map_tensors, write_tensors
from minprefix.storage.tokenizer import read_tokenizer, write_tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer

#: parts of a tensor's name that say only how the model was run when it was saved: torch.compile,
#: DataParallel, FSDP, checkpointing; and, in front, what held it: Lightning, PEFT, TRL
WRAPPERS = {"_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
HOLDERS = re.compile(r"^((base_|pretrained_)?model\.)+")
MASK_BUFFER = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)")
#: the heads of transformers' classifiers, taggers, question answerers and double heads, and TRL's
OTHER_HEAD = re.compile(r"(score|classifier|qa_outputs|multiple_choice_head|v_head|value_head)\..+")
#: what PEFT and the adapters library add to a model
ADAPTER = re.compile(
    r"(.*\.)?(lora_\w+|loras|base_layer|modules_to_save|original_module|hada_\w+|lokr_\w+|ia3_\w+"
    r"|oft_\w+|vera_\w+|prompt_\w+|prefix_tuning\w*|(\w+_)?adapters?)(\..*)?"
)

DTYPES = ("float32", "float64", "complex128")


class Checkpoint(NamedTuple):
    """A GPT-2 as its folder holds it."""

    config: Config
    weights: dict[str, np.ndarray]  # by their names without `transformer.`
    tokenizer: "Tokenizer | None"
    name: str
    folder: Path


def read_checkpoint(
    name: str | Path | None, dtype: str = "float32", revision: str | None = None
) -> Checkpoint:
    """See `GPT2.load`. The weights are read-only, and memory maps of their file where its precision
    is the one asked for, so that opening costs almost nothing."""
    if dtype not in DTYPES:
        raise InputError(f"dtype is {dtype!r}: expected one of {', '.join(DTYPES)}")
    folder = find(name, revision)
    config = read_config(folder)
    weights = read_weights(folder, config)
    tokenizer = read_tokenizer(folder)
    config = replace(config, eos_token_id=read_end_tokens(folder, config, tokenizer))
    if "lm_head.weight" in weights:  # one that is not the embedding
        config = replace(config, tie_word_embeddings=False)
    with np.errstate(over="ignore", invalid="ignore"):  # what turns infinite is found at first use
        weights = {n: a.astype(dtype, copy=False) for n, a in weights.items()}
    for a in weights.values():
        a.flags.writeable = False
    return Checkpoint(config, weights, tokenizer, SHIPPED if name is None else str(name), folder)


def read_weights(folder: Path, config: Config) -> dict[str, np.ndarray]:
    """Every weight under its name without the `transformer.` prefix, memory-mapped. Raises
    InputError for a missing, extra, doubled or wrongly shaped tensor, by name."""
    weights = _by_plain_name(folder)
    if config.tie_word_embeddings and "wte.weight" not in weights and "lm_head.weight" in weights:
        weights["wte.weight"] = weights["lm_head.weight"]  # one tensor, saved under either name
    blocks = {name.split(".")[1] for name in weights if name.startswith("h.")}
    if config.n_layer > len(blocks):  # before a list of shapes is made for a billion layers
        lost = next(i for i in range(len(blocks) + 1) if str(i) not in blocks)
        raise _missing(folder, f"h.{lost}.ln_1.weight", (config.n_embd,))
    shapes = config.shapes()
    if "lm_head.weight" in weights and config.tie_word_embeddings:
        wte, head = weights.get("wte.weight"), weights["lm_head.weight"]
        if head is wte or np.array_equal(head, np.empty(0) if wte is None else wte):
            del weights["lm_head.weight"]  # a second copy of the tied head
        else:
            shapes["lm_head.weight"] = shapes["wte.weight"]
    for name, shape in shapes.items():
        if name not in weights:
            raise _missing(folder, name, shape)
        if weights[name].shape != shape or weights[name].dtype.kind != "f":
            raise _misshaped(folder, name, weights[name], shape)
    if extra := sorted(weights.keys() - shapes.keys()):
        model = f"a GPT-2 of {counted(config.n_layer, 'layer')}, which config.json describes"
        raise InputError(f"{folder} holds {listed(extra)}: {model}, has no such tensor")
    return {name: weights[name] for name in shapes}


def _by_plain_name(folder: Path) -> dict[str, np.ndarray]:
    """The tensors without what wrapped the model, mask buffers and, with a note, the head of
    another task. Raises InputError for one that is there twice, and for adapters."""
    tensors = _read_tensors(folder)
    origin: dict[str, str] = {}
    others, adapters = [], []
    for full in tensors:
        bare = HOLDERS.sub("", ".".join(p for p in full.split(".") if p not in WRAPPERS))
        name = bare.removeprefix("transformer.")
        if ADAPTER.fullmatch(name):
            adapters.append(full)
        elif OTHER_HEAD.fullmatch(bare):
            others.append(bare)
        elif not MASK_BUFFER.fullmatch(name):
            if name in origin:
                both = f"as {quoted(origin[name])} and as {quoted(full)}"
                raise _twice(folder, name, both)
            origin[name] = full
    if adapters:
        raise InputError(
            f"{folder}: {listed(sorted(adapters))}: parts of an adapter, such as LoRA, that was "
            "not merged into the model: load it with peft, save what merge_and_unload() returns, "
            "and give its folder"
        )
    if others:
        what = f"{listed(sorted(others))} left out, the head of another task"
        note(f"{folder}: {what}: minprefix uses the language model alone")
    return {name: tensors[full] for name, full in origin.items()}


def _missing(folder: Path, name: str, shape: tuple[int, ...]) -> InputError:
    whole = "is the file whole, and does config.json belong to it?"
    return InputError(f"{folder}: tensor {name!r} is missing: expected shape {shape}; {whole}")


def _twice(folder: Path, name: str, both: str) -> InputError:
    return InputError(
        f"{folder}: tensor {quoted(name)} is there twice, {both}: save the model again"
    )


def _misshaped(folder: Path, name: str, a: np.ndarray, shape: tuple[int, ...]) -> InputError:
    kind = a.dtype.names[0] if a.dtype.names else a.dtype  # see map_tensors
    rows = ""
    if name in ("wte.weight", "lm_head.weight") and a.ndim == 2 and a.shape[1:] == shape[1:]:
        rows = f"; if the vocabulary was resized, set vocab_size to {a.shape[0]} there"
    return InputError(
        f"{folder}: tensor {name!r} has shape {a.shape} ({kind}): expected {shape} of "
        f"floating-point numbers (float64, float32, float16 or bfloat16), from config.json{rows}"
    )


def _read_tensors(folder: Path) -> dict[str, np.ndarray]:
    single = inside(folder, "model.safetensors", "the model")
    if single.exists():
        return _with_shared(*map_tensors(single, "the model"))
    index = inside(folder, "model.safetensors.index.json", "the index of shards")
    if not index.exists():
        raise hub.no_weights(f"model folder {str(folder)!r}", os.listdir(folder))
    shard_of = read_json(index, "the index of shards").get("weight_map")
    if not isinstance(shard_of, dict):
        raise InputError(f"{index} has no weight_map: expected the shard of every tensor")
    tensors: dict[str, np.ndarray] = {}
    metadata: dict[str, str] = {}
    for shard in sorted(set(map(str, shard_of.values()))):
        is_name = shard not in ("", "..") and Path(shard).name == shard and len(shard) < 256
        if not is_name or not (path := inside(folder, shard, "a shard of the model")).exists():
            raise InputError(f"{index} names shard {shard!r}, which is not in the folder")
        held, said = map_tensors(path, "the model")
        for name in held.keys() & tensors.keys():
            raise _twice(folder, name, f"in {shard!r} and before it")
        tensors |= held
        metadata |= said
    tensors = _with_shared(tensors, metadata)
    for name in sorted(shard_of.keys() - tensors.keys()):
        held_by = f"but {shard_of[name]} does not hold it"
        raise InputError(f"{index} names tensor {quoted(name)}, {held_by}")
    return tensors


def _with_shared(tensors: dict[str, np.ndarray], metadata: dict[str, str]) -> dict[str, np.ndarray]:
    """safetensors.torch.save_model stores one of the names of a shared tensor, and in the metadata
    for each of the others which one that is."""
    shared = {name: tensors[kept] for name, kept in metadata.items() if kept in tensors}
    return shared | tensors


def write_checkpoint(
    directory: str | Path,
    config: Config,
    weights: dict[str, np.ndarray],
    tokenizer: "Tokenizer | None",
) -> None:
    """See `GPT2.save`. Names carry the `transformer.` prefix, as `transformers` writes them."""
    folder, dtype = Path(directory), weights["wte.weight"].dtype
    if dtype.kind == "c":
        raise InputError("a complex model is for derivatives, not for files: load it as float32")
    names = {n: n if n.startswith("lm_head") else f"transformer.{n}" for n in weights}
    tensors = {names[n]: a for n, a in weights.items()}
    write_tensors(folder / "model.safetensors", tensors, {"format": "pt"})
    write_config(config, folder, dtype)
    write_tokenizer(tokenizer, folder)
    # another model that stood here before may have left one, and it outranks config.json
    (folder / GENERATION).unlink(missing_ok=True)
