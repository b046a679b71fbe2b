"""Tensors in safetensors files, and the files of weights that are not opened."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from minprefix.errors import InputError, brief, listed
from minprefix.storage.reading import check_itself, loads, regular, too_large
from minprefix.storage.writing import write_bytes

#: safetensors' names of the types that are read here; bfloat16 (BF16) has no NumPy type and is
#: widened
DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "I64": np.int64, "U8": np.uint8}


def write_tensors(path: Path, arrays: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
    write_bytes(path, tensor_bytes(arrays, metadata))


def tensor_bytes(arrays: dict[str, np.ndarray], metadata: dict[str, str]) -> bytes:
    from safetensors.numpy import save  # not before it is needed: this module is imported always

    return save({n: np.asarray(a, order="C") for n, a in arrays.items()}, metadata)


def map_tensors(path: Path, what: str) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The tensors of a safetensors file as read-only views that read nothing yet, and its metadata.

    bfloat16 is read and widened to float32. A tensor of any other type that is not in DTYPES comes
    as its bytes, in records whose one field has the type's name. Raises InputError if the file is
    damaged.
    """
    from safetensors import SafetensorError, safe_open

    size = regular(path, what)
    try:
        with open(path, "rb") as start:
            check_itself(path, start.read(1000), what, page=True)
        # the library checks header, sizes and bounds, but it copies: so we map the file ourselves
        with safe_open(path, "np") as f:
            metadata = f.metadata() or {}
        data = np.memmap(path, np.uint8, mode="r")
        end = 8 + int.from_bytes(data[:8].tobytes(), "little")
        header = loads(data[8:end].tobytes().decode("utf-8"))
        header.pop("__metadata__", None)
        body = data[end:]
        return {name: _tensor(body, entry) for name, entry in header.items()}, metadata
    except InputError:  # which is a ValueError
        raise
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"{path} is not a whole safetensors file ({brief(error)}): {what} is damaged, fetch or "
            "save it again"
        ) from error
    except MemoryError as error:
        raise too_large(path, size) from error


def other_tensors(path: Path, tensors: dict[str, np.ndarray], expected: str) -> InputError:
    """The sentence about a file that holds other tensors than the expected ones."""
    found = listed((name, a.shape, str(a.dtype)) for name, a in tensors.items())
    return InputError(f"{path} holds {found}: expected {expected}")


def _tensor(body: np.ndarray, entry: dict[str, Any]) -> np.ndarray:
    start, end = entry["data_offsets"]
    raw, shape = body[start:end], entry["shape"]
    if entry["dtype"] == "BF16":  # the upper half of a float32
        wide = raw.view(np.uint16).astype(np.uint32) << 16
        return wide.view(np.float32).reshape(shape)
    if entry["dtype"] in DTYPES:
        return np.asarray(raw.view(DTYPES[entry["dtype"]]).reshape(shape))
    # the caller refuses it by its type's name, or skips it: mask buffers are BOOL
    return np.asarray(raw.view(np.dtype([(entry["dtype"], np.uint8)])))


#: suffixes of pickles, and of other files of weights that are not read here
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_OTHERS = {
    ".h5": "TensorFlow's",
    ".msgpack": "Flax's",
    ".gguf": "llama.cpp's",
    ".ggml": "llama.cpp's",
    ".onnx": "ONNX Runtime's",
    ".npz": "NumPy's",
}
#: PEFT's files, one of which is in every folder of an adapter
ADAPTER_FILES = {"adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"}
#: what a trainer keeps beside the weights
_BESIDE = ("training_args", "optimizer", "scheduler", "scaler", "rng_state", "trainer_state")


def unopened(names: Iterable[str], wanted: str) -> str | None:
    """Why the weights in files with these `names` are not read, and how to make `wanted` of them;
    None if none of them holds weights."""
    held = sorted(n for n in names if not n.startswith(_BESIDE))
    pickled = [n for n in held if n.lower().endswith(_PICKLES)]
    for name in sorted(pickled, key=lambda n: not n.startswith(("pytorch_model", "adapter_model"))):
        every = "pytorch_model*.bin" if name.startswith("pytorch_model-") else name
        state = "{n: t.clone().contiguous() for f in glob.glob(" + f"'{every}'" + ") for n, t in "
        return (
            f"{brief(name)} is a pickle, which can run any code and is never opened: convert it, "
            'in its folder, with `python -c "import glob, torch; from safetensors.torch import '
            f"save_file; save_file({state}torch.load(f, map_location='cpu', weights_only=True)"
            f".items()}}, '{wanted}')\"`"
        )
    for name in held:
        if (owner := _OTHERS.get(Path(name).suffix.lower())) is not None:
            return (
                f"{brief(name)} is {owner} file, which is not read here: load it where it was "
                f"made, and save it with save_pretrained, which writes {wanted}"
            )
    return None
