"""PEFT's LoRA and prompt tuning as an implementation of the suite's level `methods`:
`minprefix check tests/peft_methods.py`. A row of a batch goes through the model alone. The file
stands alone, so that it can be loaded by its path.
"""

import warnings
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from torch.nn.functional import cross_entropy
from transformers import GPT2Config, GPT2LMHeadModel

from minprefix.conformance.contract import MethodProblem
from minprefix.gpt2 import Config

# between peft and transformers, at every model that is made
warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)


def run_method(problem: MethodProblem) -> dict[str, np.ndarray]:
    if problem.method not in ("lora", "prompt-tuning"):
        raise NotImplementedError(f"no {problem.method} here")
    if problem.masks:
        raise NotImplementedError("PEFT draws its own masks")
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # more only wait for each other: the matrices are tiny
    try:
        return _run(problem)
    finally:
        torch.set_num_threads(before)


def _run(problem: MethodProblem) -> dict[str, np.ndarray]:
    hf, options = gpt2(problem), problem.options
    if problem.method == "lora":
        targets = {name.split(".", 2)[2].rpartition(".")[0] for name in problem.parameters}
        kind = LoraConfig(
            task_type="CAUSAL_LM",
            r=options["rank"],
            lora_alpha=options["alpha"],
            target_modules=sorted(targets),
            fan_in_fan_out=True,
        )
    else:
        kind = PromptTuningConfig(
            task_type="CAUSAL_LM", num_virtual_tokens=options["prompt_length"]
        )
    tuned = get_peft_model(hf, kind).double().eval()
    P = options.get("prompt_length", 0)
    named = {name: of(tuned, name) for name in problem.parameters}
    with torch.no_grad():
        for name, (p, transposed) in named.items():
            given = torch.tensor(problem.parameters[name])
            p.copy_(given.T if transposed else given)
    rows, total, count = [], torch.zeros((), dtype=torch.float64), 0
    for ids, start in zip(problem.sequences, problem.loss_from, strict=True):
        logits = tuned(torch.tensor(ids)[None]).logits[0, P:]
        rows.append(logits.detach())
        if len(targets := torch.tensor(ids[start:])):
            total = total + cross_entropy(logits[start - 1 : -1], targets, reduction="sum")
        count += len(targets)
    loss = total / count if problem.reduction == "mean" else total
    loss.backward()
    found = {"loss": loss.detach().numpy(), "logits": torch.cat(rows).numpy()}
    for name, (p, transposed) in named.items():
        found[f"d{name}"] = (p.grad.T if transposed else p.grad).numpy()
    return found


def of(tuned: Any, name: str) -> tuple[torch.nn.Parameter, bool]:
    """PEFT's parameter of this name, and whether it is kept as (out, in)."""
    if name == "prompt":
        return tuned.prompt_encoder["default"].embedding.weight, False
    layer, _, which = name.rpartition(".")
    module = tuned.base_model.model.transformer.get_submodule(layer)
    return getattr(module, which)["default"].weight, True


def gpt2(problem: MethodProblem) -> GPT2LMHeadModel:
    """transformers' GPT-2 with these weights, in float64."""
    config: Config = problem.config
    names = ("n_layer", "n_head", "n_embd", "n_inner", "vocab_size", "n_positions")
    sizes = {name: getattr(config, name) for name in names}
    hf = GPT2LMHeadModel(
        GPT2Config(
            **sizes,
            layer_norm_epsilon=config.layer_norm_epsilon,
            tie_word_embeddings=config.tie_word_embeddings,
            bos_token_id=0,
            eos_token_id=0,
        )
    ).double()
    state = {
        name if name.startswith("lm_head") else f"transformer.{name}": torch.tensor(a)
        for name, a in problem.weights.items()
    }
    state.setdefault("lm_head.weight", state["transformer.wte.weight"])
    hf.load_state_dict(state)
    return hf
