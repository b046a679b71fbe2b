"""Prefix-tuning's rivals, each with its backward by hand, on the same model.

    full fine-tuning, the top layers, BitFit    fine_tuning     the model's own weights
    LoRA                                        lora            low-rank changes of its weights
    bottleneck adapters                         adapters        small networks in its blocks
    prompt tuning                               prompt_tuning   vectors before the text
    P-tuning                                    p_tuning        the same through an encoder
    infix-tuning                                infix           keys and values inside the text

Each has the face of `minprefix.method.Method`. P-tuning v2 (Liu et al., 2022) is prefix-tuning.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from minprefix.errors import InputError, quoted
from minprefix.method import Method
from minprefix.methods.adapters import Adapters
from minprefix.methods.fine_tuning import BitFit, FineTuning, TopLayers
from minprefix.methods.infix import Infix
from minprefix.methods.lora import LoRA
from minprefix.methods.p_tuning import PTuning
from minprefix.methods.prompt_tuning import PromptTuning
from minprefix.prefix import Prefix

if TYPE_CHECKING:
    from minprefix.model import GPT2
    from minprefix.storage.provenance import Base

__all__ = [
    "METHODS",
    "Adapters",
    "BitFit",
    "FineTuning",
    "Infix",
    "LoRA",
    "Method",
    "PTuning",
    "PromptTuning",
    "TopLayers",
    "load",
]

#: name -> class
METHODS: dict[str, type[Method]] = {
    kind.name: kind
    for kind in (FineTuning, TopLayers, BitFit, PromptTuning, PTuning, Infix, LoRA, Adapters)
}


def load(
    directory: str | Path,
    model: "GPT2 | None" = None,
    dtype: str = "float32",
    base: "Base | None" = None,
) -> Prefix | Method:
    """Read a folder that `Prefix.save`, `Method.save` or PEFT wrote. P-tuning comes with its
    encoder where that was saved, and as a prompt where PEFT wrote it.

    With `model`, raises InputError for one that was trained on another base; `base`: as in
    `Prefix.save`. Raises InputError for damaged files, and for a feature of PEFT's that is not
    there in minprefix.
    """
    from minprefix.storage import artifact, rivals

    if not rivals.holds_rival(directory):
        return Prefix.load(directory, model, dtype, base)
    saved, about = rivals.read_rival_folder(directory, dtype)
    numbers = saved.parameters if saved.encoder is None else saved.encoder
    method = METHODS[saved.name].of(saved.options, numbers)
    if about is not None and about.method is not None and method.options != about.method.options:
        raise InputError(
            f"{Path(directory) / artifact.ABOUT}: method.options is "
            f"{quoted(about.method.options)}, the tensors beside it have "
            f"{quoted(method.options)}: {artifact.TWO_SAVES}"
        )
    if model is None:
        return method
    for key, value in (("n_layer", saved.n_layer), ("n_head", saved.n_head)):
        if value not in (None, getattr(model.config, key)):
            raise InputError(
                f"{saved.name} in {str(directory)!r} is for a base with {key} {value}, model "
                f"{model.name!r} has {getattr(model.config, key)}: give the model that it was "
                "trained on"
            )
    method.check(model.config, model.name)
    if about is not None and about.base.sha256 is not None:
        base = base or model.identity()
        artifact.check_base(directory, about.base, base, model.folder, saved.name)
    return method
