"""Reading and writing GPT-2 in Hugging Face's layout: config.json, the weights in safetensors, and
the tokenizer. Nothing is ever unpickled."""

import os
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

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
HOLDERS = re.compile(r"((base_|pretrained_)?model\.)+")
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
        raise InputError(
            f"{folder}: tensor 'h.{lost}.ln_1.weight' is missing: expected shape "
            f"({config.n_embd},); config.json says {counted(config.n_layer, 'layer')}, is the file "
            "whole?"
        )
    shapes = config.shapes()
    if "lm_head.weight" in weights and config.tie_word_embeddings:
        wte, head = weights.get("wte.weight"), weights["lm_head.weight"]
        if head is wte or np.array_equal(head, np.empty(0) if wte is None else wte):
            del weights["lm_head.weight"]  # a second copy of the tied head
        else:
            shapes["lm_head.weight"] = shapes["wte.weight"]
    for name, shape in shapes.items():
        if name not in weights:
            raise InputError(
                f"{folder}: tensor {name!r} is missing: expected shape {shape}; is the file whole "
                "and does config.json belong to it?"
            )
        if weights[name].shape != shape or weights[name].dtype.kind != "f":
            raise _misshaped(folder, name, weights[name], shape)
    extra = sorted(set(weights) - set(shapes))
    if extra:
        raise InputError(
            f"{folder}: unexpected {'tensor' if len(extra) == 1 else 'tensors'} "
            f"{listed(extra)}: config.json describes a GPT-2 of "
            f"{counted(config.n_layer, 'layer')} without {'it' if len(extra) == 1 else 'them'}"
        )
    return {name: weights[name] for name in shapes}


def _by_plain_name(folder: Path) -> dict[str, np.ndarray]:
    """The tensors without what wrapped the model, without mask buffers, and without the head of
    another task, which is said. Raises InputError for one that is there twice, and for adapters."""
    weights: dict[str, np.ndarray] = {}
    origin: dict[str, str] = {}
    others: list[str] = []
    adapters: list[str] = []
    for full, a in _read_tensors(folder).items():
        bare = ".".join(part for part in full.split(".") if part not in WRAPPERS)
        bare = bare[held.end() :] if (held := HOLDERS.match(bare)) else bare
        name = bare.removeprefix("transformer.")
        if MASK_BUFFER.fullmatch(name):
            continue
        if ADAPTER.fullmatch(name):
            adapters.append(full)
        elif OTHER_HEAD.fullmatch(bare):
            others.append(bare)
            continue
        if name in weights:
            raise InputError(
                f"{folder}: tensor {quoted(name)} is there twice, as "
                f"{quoted(origin[name])} and as {quoted(full)}: save the model again"
            )
        weights[name], origin[name] = a, full
    if adapters:
        raise InputError(
            f"{folder}: {listed(sorted(adapters))}: parts of an adapter, such as LoRA, that "
            "was not merged into the model: load it with peft, call merge_and_unload(), save what "
            "that returns, and give its folder"
        )
    if others:
        note(
            f"{folder}: {listed(sorted(others))} left out, the head of another task: "
            "minprefix uses the language model alone"
        )
    return weights


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
    odd = [shard for shard in shard_of.values() if not isinstance(shard, str)]
    if odd:
        raise _no_shard(index, odd[0])
    for shard in sorted(set(shard_of.values())):
        if shard in ("", "..") or Path(shard).name != shard or len(shard) > 255:
            raise _no_shard(index, shard)  # what leads out of the folder is not in it
        path = inside(folder, shard, "a shard of the model")
        if not path.exists():
            raise _no_shard(index, shard)
        held, said = map_tensors(path, "the model")
        for name in set(held) & set(tensors):
            raise InputError(
                f"{folder}: tensor {quoted(name)} is there twice, in {shard!r} and before it"
            )
        tensors |= held
        metadata |= said
    tensors = _with_shared(tensors, metadata)
    lost = sorted(set(shard_of) - set(tensors))
    if lost:
        raise InputError(
            f"{index} names tensor {quoted(lost[0])}, but {shard_of[lost[0]]} does not hold it"
        )
    return tensors


def _with_shared(tensors: dict[str, np.ndarray], metadata: dict[str, str]) -> dict[str, np.ndarray]:
    """safetensors.torch.save_model stores one of the names of a shared tensor, and in the metadata
    for each of the others which one that is."""
    shared = {name: tensors[kept] for name, kept in metadata.items() if kept in tensors}
    return shared | tensors


def _no_shard(index: Path, shard: Any) -> InputError:
    return InputError(f"{index} names shard {quoted(shard)}, which is not in the folder")


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
    tensors = {
        name if name.startswith("lm_head") else f"transformer.{name}": a
        for name, a in weights.items()
    }
    write_tensors(folder / "model.safetensors", tensors, {"format": "pt"})
    write_config(config, folder, dtype)
    write_tokenizer(tokenizer, folder)
    # another model that stood here before may have left one, and it outranks config.json
    (folder / GENERATION).unlink(missing_ok=True)
