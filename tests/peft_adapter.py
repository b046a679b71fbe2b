"""transformers + PEFT as an implementation of the suite: `minprefix check tests/peft_adapter.py`.

A row of a batch goes through the model alone, with its own prefix: PEFT gives all rows of a batch
the same one. Intermediates come from hooks on the modules of transformers' GPT-2, gradients from
PyTorch's autograd. The file stands alone, so that it can be loaded by its path.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any

import numpy as np
import torch
from peft import PeftModel, PrefixTuningConfig, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel

from minprefix.conformance.contract import MicroBatch, ModelProblem, TrainingProblem, model_tensors
from minprefix.gpt2 import Config

Array = np.ndarray
Tensor = torch.Tensor
# between peft and transformers, at every model that is made
warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)


def _one_thread(f: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """More threads only wait for each other: the matrices are tiny."""

    @wraps(f)
    def run(problem: Any) -> Any:
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return f(problem)
        finally:
            torch.set_num_threads(before)

    return run


@_one_thread
def run_model(problem: ModelProblem) -> dict[str, Array]:
    tuned = Tuned(problem.config, problem.weights, [{"kv": kv} for kv in problem.prefixes])
    tuned.check_positions(problem.position_offsets)
    for p in tuned.hf.parameters():  # PEFT freezes them, and block 0's gradients need one
        p.requires_grad_(True)
    watch = Watch(tuned.hf)
    total, count = tuned.summed_loss(problem, watch)
    loss = total / count if problem.reduction == "mean" else total
    loss.backward()
    found = watch.tensors(problem.config) | {"loss": loss.detach().numpy()}
    for j, gradients in enumerate(tuned.gradients()):
        kv = gradients["kv"]
        found |= {f"prefix.{j}.dk": kv[:, 0], f"prefix.{j}.dv": kv[:, 1]}
    for name, p in tuned.hf.named_parameters():
        found[f"d{name.removeprefix('transformer.')}"] = _gradient(p)
    B = len(problem.sequences)
    asked = model_tensors(problem.config, len(problem.prefixes), B, problem.need)
    return {name: found[name] for name in asked if name in found}


@_one_thread
def run_decoding(problem: ModelProblem) -> dict[str, Array]:
    """PEFT starts the cache of keys and values, transformers goes on with it token by token."""
    tuned = Tuned(problem.config, problem.weights, [{"kv": kv} for kv in problem.prefixes])
    tuned.check_positions(problem.position_offsets)
    rows = []
    with torch.no_grad():
        for ids, which in zip(problem.sequences, problem.prefix_of, strict=True):
            out = tuned.forward(which, ids[:1], use_cache=True)
            rows.append(out.logits[0])
            for token in ids[1:]:
                past = out.past_key_values
                out = tuned.hf(torch.tensor([[token]]), past_key_values=past, use_cache=True)
                rows.append(out.logits[0])
    return {"logits": torch.cat(rows).numpy()}


@_one_thread
def run_training(problem: TrainingProblem) -> dict[str, Array]:
    tuned = Tuned(problem.config, problem.weights, problem.parameters)
    parameters = [p for encoder in tuned.encoders for p in encoder.parameters()]
    n, warmup = len(problem.steps), problem.warmup
    optimizer = torch.optim.AdamW(
        parameters,
        lr=problem.lr,
        betas=(problem.beta1, problem.beta2),
        eps=problem.eps,
        weight_decay=problem.weight_decay,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: (s + 1) / warmup if s < warmup else (n - s) / (n - warmup)
    )
    found: dict[str, Array] = {}
    for s, step in enumerate(problem.steps):
        optimizer.zero_grad()
        sums = [tuned.summed_loss(micro_batch) for micro_batch in step]
        loss = sum(total for total, _ in sums) / sum(count for _, count in sums)
        loss.backward()
        for p in parameters:  # without a gradient PyTorch would leave out a prefix of no sequence
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        found[f"step.{s}.loss"] = loss.detach().numpy()
        for i, gradients in enumerate(tuned.gradients()):
            found |= {f"step.{s}.prefix.{i}.gradient.{n}": a for n, a in gradients.items()}
        if problem.clip is not None:
            _clip(parameters, problem.clip)
        optimizer.step()
        schedule.step()
        for i, values in enumerate(tuned.values()):
            found |= {f"step.{s}.prefix.{i}.{name}": a for name, a in values.items()}
    return found


def _clip(parameters: Sequence[torch.nn.Parameter], limit: float) -> None:
    """To the very norm `limit`. torch's clip_grad_norm_ divides by norm + 1e-6, and ten steps later
    that is a difference of 1e-7."""
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters])
    if norm > limit:
        for p in parameters:
            p.grad.mul_(limit / norm)


# ---- the model and its prefixes -----------------------------------------------------------------


class Tuned:
    """transformers' GPT-2, frozen, with one adapter of PEFT for each prefix that has slots."""

    def __init__(
        self,
        config: Config,
        weights: Mapping[str, Array],
        parameters: Sequence[Mapping[str, Array]],
    ) -> None:
        self.config = config
        self.hf = gpt2(config, weights)
        self.lengths = [len(p["embedding"]) if "embedding" in p else _P(p) for p in parameters]
        self._peft: PeftModel | None = None
        for i, (given, P) in enumerate(zip(parameters, self.lengths, strict=True)):
            if P > 0:
                self._add(i, given, P)
        for encoder in self.encoders:
            encoder.requires_grad_(True)

    def _add(self, i: int, given: Mapping[str, Array], P: int) -> None:
        through_mlp = "embedding" in given
        kind = PrefixTuningConfig(
            task_type="CAUSAL_LM",
            num_virtual_tokens=P,
            prefix_projection=through_mlp,
            encoder_hidden_size=len(given["bias_1"]) if through_mlp else None,
        )
        if self._peft is None:
            self._peft = get_peft_model(self.hf, kind, adapter_name=f"prefix_{i}").eval()
        else:
            self._peft.add_adapter(f"prefix_{i}", kind)
        encoder = self._peft.prompt_encoder[f"prefix_{i}"].to(self.hf.dtype)
        with torch.no_grad():
            for name, (p, to_theirs, _) in self._named(encoder).items():
                p.copy_(torch.tensor(to_theirs(given[name])))

    @property
    def encoders(self) -> list[torch.nn.Module]:
        """PEFT's PrefixEncoder of each prefix that has slots."""
        return [self._peft.prompt_encoder[f"prefix_{i}"] for i, P in enumerate(self.lengths) if P]

    def _named(self, encoder: torch.nn.Module) -> dict[str, tuple[torch.nn.Parameter, Any, Any]]:
        """The suite's name -> PEFT's parameter, the way there and the way back."""
        c = self.config

        def flat(kv: Array) -> Array:  # (L, 2, NH, P, hs) -> (P, L*2*NH*hs)
            return kv.transpose(3, 0, 1, 2, 4).reshape(kv.shape[3], -1)

        def folded(t: Array) -> Array:
            t = t.reshape(len(t), c.n_layer, 2, c.n_head, c.head_size)
            return t.transpose(1, 2, 3, 0, 4)

        def same(a: Array) -> Array:
            return a

        if not encoder.prefix_projection:
            return {"kv": (encoder.embedding.weight, flat, folded)}
        first, _, second = encoder.transform
        return {
            "embedding": (encoder.embedding.weight, same, same),
            "weight_1": (first.weight, np.transpose, np.transpose),  # PyTorch keeps (out, in)
            "bias_1": (first.bias, same, same),
            "weight_2": (second.weight, np.transpose, np.transpose),
            "bias_2": (second.bias, same, same),
        }

    def check_positions(self, offsets: Sequence[int]) -> None:
        for offset, P in zip(offsets, self.lengths, strict=True):
            if offset != P:
                raise NotImplementedError(
                    f"PEFT puts the first token after {P} slots at position {P}, not at {offset}"
                )

    def forward(self, which: int, ids: Sequence[int], **options: Any) -> Any:
        """One sequence with its prefix. Without slots PEFT has nothing to do."""
        given = torch.tensor(ids)[None]
        if self.lengths[which] == 0:
            return self.hf(given, **options)
        self._peft.active_adapter = f"prefix_{which}"  # set_adapter would freeze the other ones
        return self._peft(given, **options)

    def summed_loss(
        self, batch: ModelProblem | MicroBatch, watch: "Watch | None" = None
    ) -> tuple[Tensor, int]:
        """The sum of -log p over all targets, and their number. Not by `labels=`: transformers
        takes that loss in single precision."""
        total, count = torch.zeros((), dtype=self.hf.dtype), 0
        for ids, start, which in zip(
            batch.sequences, batch.loss_from, batch.prefix_of, strict=True
        ):
            out = self.forward(which, ids, output_attentions=watch is not None)
            if watch is not None:
                watch.end_of_sequence(out, start)
            logits, targets = out.logits[0, start - 1 : -1], torch.tensor(ids[start:])
            if len(targets):
                total = total + torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
            count += len(targets)
        return total, count

    def _each(self, read: Any) -> list[dict[str, Array]]:
        found, c = [], self.config
        for i, P in enumerate(self.lengths):
            if P == 0:
                found.append({"kv": np.zeros((c.n_layer, 2, c.n_head, 0, c.head_size))})
                continue
            named = self._named(self._peft.prompt_encoder[f"prefix_{i}"])
            found.append({name: back(read(p)) for name, (p, _, back) in named.items()})
        return found

    def gradients(self) -> list[dict[str, Array]]:
        return self._each(_gradient)

    def values(self) -> list[dict[str, Array]]:
        return self._each(lambda p: p.detach().numpy().copy())


def _P(parameters: Mapping[str, Array]) -> int:
    return parameters["kv"].shape[3]


def _gradient(p: Tensor) -> Array:
    """Zeros where nothing depends on it."""
    return (torch.zeros_like(p) if p.grad is None else p.grad).detach().numpy().copy()


def gpt2(config: Config, weights: Mapping[str, Array]) -> GPT2LMHeadModel:
    """transformers' GPT-2 with these weights, in their precision. Eager attention, because only it
    shows its pattern."""
    hf = GPT2LMHeadModel(
        GPT2Config(
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
            attn_implementation="eager",
        )
    )
    state = {
        name if name.startswith("lm_head") else f"transformer.{name}": torch.tensor(a)
        for name, a in weights.items()
    }
    state.setdefault("lm_head.weight", state["transformer.wte.weight"])
    hf = hf.to(state["lm_head.weight"].dtype).eval()
    hf.load_state_dict(state)
    return hf


# ---- intermediates ------------------------------------------------------------------------------


class Watch:
    """What passes through the modules of transformers' GPT-2, and its gradients, by the suite's
    names. Each sequence is a forward of its own: `end_of_sequence` after each."""

    def __init__(self, hf: GPT2LMHeadModel) -> None:
        self._now: dict[str, Tensor] = {}
        self._sequences: list[dict[str, Tensor]] = []
        self._starts: list[int] = []
        for i, block in enumerate(hf.transformer.h):
            name = f"blocks.{i}"
            self._on(block.ln_1, f"{name}.resid_pre", f"{name}.ln_1.out")
            self._on(block.attn.c_attn, None, f"{name}.qkv")
            self._on(block.attn.c_proj, f"{name}.attn.z", f"{name}.attn.out")
            self._on(block.ln_2, f"{name}.resid_mid", f"{name}.ln_2.out")
            self._on(block.mlp.c_fc, None, f"{name}.mlp.pre")
            self._on(block.mlp.c_proj, f"{name}.mlp.post", f"{name}.mlp.out")
        self._on(hf.transformer.ln_f, "ln_f.in", "ln_f.out")
        self._on(hf.lm_head, None, "logits")

    def _on(self, module: torch.nn.Module, into: str | None, out: str) -> None:
        def keep(_: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            for name, t in ((into, inputs[0]), (out, output)):
                if name is not None:
                    if t.requires_grad:
                        t.retain_grad()
                    self._now[name] = t

        module.register_forward_hook(keep)

    def end_of_sequence(self, out: Any, start: int) -> None:
        for i, pattern in enumerate(out.attentions):
            self._now[f"blocks.{i}.attn.pattern[{len(self._sequences)}]"] = pattern
        self._sequences.append(self._now)
        self._starts.append(start)
        self._now = {}

    def tensors(self, config: Config) -> dict[str, Array]:
        """After the backward. Those of `ln_f` and the logits hold the rows that predict a target
        alone."""
        L, NH, hs = config.n_layer, config.n_head, config.head_size
        found: dict[str, Array] = {}

        def joined(name: str, of: Any, predicting: bool = False) -> Array:
            parts = []
            for kept, start in zip(self._sequences, self._starts, strict=True):
                a = of(kept[name])[0]  # (T, ...)
                parts.append(a[start - 1 : len(a) - 1] if predicting else a)
            return np.concatenate(parts)

        def value(t: Tensor) -> Array:
            return t.detach().numpy()

        for name, gradient in (("ln_f.in", "ln_f.din"), ("ln_f.out", "ln_f.dout")):
            found[name] = joined(name, value, predicting=True)
            found[gradient] = joined(name, _gradient, predicting=True)
        found["logits"] = joined("logits", value, predicting=True)
        found["dlogits"] = joined("logits", _gradient, predicting=True)
        for i in range(L):
            block = f"blocks.{i}"
            for name in (
                "resid_pre", "ln_1.out", "attn.z", "attn.out", "resid_mid", "ln_2.out",
                "mlp.pre", "mlp.post", "mlp.out",
            ):  # fmt: skip
                found[f"{block}.{name}"] = joined(f"{block}.{name}", value)
            for name, gradient in (
                ("ln_1.out", "ln_1.dout"),
                ("attn.z", "attn.dz"),
                ("resid_mid", "dresid_mid"),
                ("ln_2.out", "ln_2.dout"),
                ("mlp.pre", "mlp.dpre"),
                ("mlp.post", "mlp.dpost"),
                ("mlp.out", "dresid_post"),
            ):
                found[f"{block}.{gradient}"] = joined(f"{block}.{name}", _gradient)
            for d, of in (("", value), ("d", _gradient)):
                qkv = joined(f"{block}.qkv", of)
                qkv = qkv.reshape(len(qkv), 3, NH, hs)
                for j, letter in enumerate("qkv"):
                    found[f"{block}.attn.{d}{letter}"] = qkv[:, j]
            for name in (f"{block}.attn.z", f"{block}.attn.dz"):
                found[name] = found[name].reshape(-1, NH, hs)
            for b, kept in enumerate(self._sequences):
                name = f"{block}.attn.pattern[{b}]"
                found[name] = kept[name].detach().numpy()[0]
        return found
