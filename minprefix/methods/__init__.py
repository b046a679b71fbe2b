"""Prefix-tuning's rivals, each with its backward by hand, on the same model.

    full fine-tuning, the top layers, BitFit    fine_tuning     the model's own weights
    LoRA                                        lora            low-rank changes of its weights
    bottleneck adapters                         adapters        small networks in its blocks
    prompt tuning                               prompt_tuning   vectors before the text
    P-tuning                                    p_tuning        the same through an encoder
    infix-tuning                                infix           keys and values inside the text

Each has the face of `minprefix.method.Method`. P-tuning v2 (Liu et al., 2022) is prefix-tuning.
"""

from minprefix.method import Method
from minprefix.methods.adapters import Adapters
from minprefix.methods.fine_tuning import BitFit, FineTuning, TopLayers
from minprefix.methods.infix import Infix
from minprefix.methods.lora import LoRA
from minprefix.methods.p_tuning import PTuning
from minprefix.methods.prompt_tuning import PromptTuning

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
]

#: name -> class
METHODS: dict[str, type[Method]] = {
    kind.name: kind
    for kind in (FineTuning, TopLayers, BitFit, PromptTuning, PTuning, Infix, LoRA, Adapters)
}
