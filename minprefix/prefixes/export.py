"""A prefix for another library: its files alone, or the reason why it cannot be said in them."""

from pathlib import Path

import numpy as np

from minprefix.errors import InputError
from minprefix.prefix import Prefix, flatten
from minprefix.storage import artifact, files

#: tried with peft 0.18.1 to 0.21.2; transformers 5.22.2 and 5.23.0 are right
GENERATE_DROPS_IT = (
    "with transformers 5.24.0, PEFT's generate drops the prefix and writes what the base writes: "
    "pass use_cache=False to it, or install transformers 5.23.0"
)


def to_peft(prefix: Prefix, directory: str | Path, base: str | None) -> None:
    """Write PEFT's two files, in place of whatever prefix is there; `base`: the name or folder
    under which PEFT's user finds the model. An MLP is folded. Raises InputError for what PEFT
    cannot express, and leaves what is there."""
    reason = artifact.why_not_peft(prefix)
    if reason:
        raise InputError(
            f"PEFT cannot express this prefix: {reason}; train one for all layers and with the "
            "usual positions to export it"
        )
    tensor = {"prompt_embeddings": flatten(prefix.to("numpy").kv).astype(np.float32)}
    contents = {
        artifact.PEFT_TENSOR: files.tensor_bytes(tensor, {"format": "pt"}),
        artifact.PEFT_CONFIG: files.json_bytes(artifact.peft_config(prefix, base)),
    }
    files.write_together(Path(directory), contents, artifact.FILES)
