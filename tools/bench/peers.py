"""How PyTorch does a job: with PEFT as its documentation has it, and our own algorithm written out
by hand, so that one sees how much is algorithm and how much is library.

Everyone has the same weights, the same prefix and the same token ids. Imported in the peers' own
processes only. A job that names a device has it all there; without one it is the CPU's.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from minprefix.gpt2 import Config
from minprefix.method import Method
from minprefix.methods import LoRA, PromptTuning
from minprefix.model import GPT2
from minprefix.ops import memory
from minprefix.prefix import Prefix, flatten
from tools.bench.device import Device
from tools.bench.device import launches as launches_of
from tools.bench.ours import (
    CPU,
    LR,
    Answer,
    Write,
    method_of,
    timed_decoding,
    timed_steps,
    token_ids,
    what_is_written,
)

Step = Callable[[], float]
#: q, k, v (N, NH, hs) and the layer -> (N, C)
Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, int], torch.Tensor]


def train(arguments: Answer, who: str) -> Answer:
    device = _device(arguments)
    return timed_steps(_trainer(arguments, who).on, arguments, device)


def launches(arguments: Answer, who: str) -> Answer:
    """How many kernels a step launches."""
    device = _device(arguments)
    return {"launches": launches_of(_trainer(arguments, who).on(arguments["lengths"]), device)}


def _trainer(arguments: Answer, who: str) -> "ByHand | Peft":
    if who == "torch":
        return ByHand(arguments)
    return Peft(arguments, dropout=0.1 if who == "peft-dropout" else 0.0)


def _device(arguments: Answer) -> Device:
    """The one that a job names, in the precision that it names."""
    if arguments.get("device", "cpu") == "cpu":
        return CPU
    torch.backends.cuda.matmul.allow_tf32 = arguments["precision"] == "tf32"
    # reserved, not allocated: what others cannot have, as with CuPy's pool
    return Device(torch.cuda.synchronize, torch.cuda.max_memory_reserved)


# ---- PEFT -------------------------------------------------------------------------------------


class Peft:
    """GPT2LMHeadModel with a method of PEFT's: a padded batch, a mask, `labels=`."""

    def __init__(self, arguments: Answer, dropout: float = 0.0) -> None:
        # here, so that the other peer needs PyTorch alone and has nothing else in its memory
        from peft import get_peft_model
        from transformers import GPT2Config, GPT2LMHeadModel

        config = Config(**arguments["config"])
        self.vocab_size = config.vocab_size
        hf = GPT2LMHeadModel(
            GPT2Config(
                n_layer=config.n_layer,
                n_head=config.n_head,
                n_embd=config.n_embd,
                vocab_size=config.vocab_size,
                n_positions=config.n_positions,
                layer_norm_epsilon=config.layer_norm_epsilon,
                bos_token_id=None,
                eos_token_id=None,
                pad_token_id=0,
                attn_pdrop=dropout,
                embd_pdrop=dropout,
                resid_pdrop=dropout,
            )
        )
        model = GPT2.random(config)
        state, weights, start = hf.state_dict(), model.weights, method_of(arguments, model)
        for name in list(weights):
            state[f"transformer.{name}"].copy_(torch.from_numpy(weights.pop(name)))
        self.model: Any = get_peft_model(hf, _peft_config(start))
        numbers = _as_peft_has_them(start)
        trained = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        with torch.no_grad():
            for name, p in trained.items():
                p.copy_(torch.from_numpy(numbers.pop(name)))
        assert not numbers
        self.device = arguments.get("device", "cpu")
        self.model.to(self.device)

    def on(self, lengths: Sequence[Sequence[int]]) -> Step:
        """A step on a right-padded batch; source and padding are no labels."""
        self.model.train()
        trained = [p for p in self.model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=LR, weight_decay=0.0)
        sequences = token_ids(lengths, self.vocab_size)
        B, T = len(sequences), max(len(ids) for ids in sequences)
        input_ids = torch.zeros(B, T, dtype=torch.long)
        mask = torch.zeros(B, T, dtype=torch.long)
        labels = torch.full((B, T), -100)
        for b, (ids, (source, _)) in enumerate(zip(sequences, lengths, strict=True)):
            input_ids[b, : len(ids)] = torch.from_numpy(ids)
            mask[b, : len(ids)] = 1
            labels[b, source : len(ids)] = input_ids[b, source : len(ids)]
        input_ids, mask, labels = (a.to(self.device) for a in (input_ids, mask, labels))

        def step() -> float:
            loss = self.model(input_ids=input_ids, attention_mask=mask, labels=labels).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            return loss.item()

        return step


def _peft_config(method: Prefix | Method) -> Any:
    from peft import LoraConfig, PrefixTuningConfig, PromptTuningConfig

    if isinstance(method, LoRA):
        return LoraConfig(
            task_type="CAUSAL_LM",
            r=method.rank,
            lora_alpha=method.alpha,
            lora_dropout=0.0,
            target_modules=["c_attn"],
            fan_in_fan_out=True,
        )
    if isinstance(method, PromptTuning):
        return PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=method.length)
    assert isinstance(method, Prefix)
    return PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=method.kv.shape[3])


def _as_peft_has_them(method: Prefix | Method) -> dict[str, np.ndarray]:
    """The trained numbers, by PEFT's names and in its layout."""
    if isinstance(method, LoRA):  # PEFT's are (out, in)
        return {
            f"base_model.model.transformer.{name}.default.weight": a.T
            for name, a in method.parameters.items()
        }
    rows = flatten(method.kv) if isinstance(method, Prefix) else method.parameters["prompt"]
    return {"prompt_encoder.default.embedding.weight": rows}


def decode(arguments: Answer, who: str) -> Answer:
    """transformers' `generate` through PEFT."""
    device = _device(arguments)
    return timed_decoding(_writer(arguments), arguments, device)


def written(arguments: Answer, who: str) -> Answer:
    """What `decode` would write."""
    _device(arguments)
    return what_is_written(_writer(arguments), arguments)


def _writer(arguments: Answer) -> Write:
    peft = Peft(arguments)
    model = peft.model.eval()
    model.base_model.generation_config.eos_token_id = None  # nothing ends before its time

    def write(prompts: np.ndarray, beams: int, n: int) -> list[list[int]]:
        ids = torch.from_numpy(prompts).to(peft.device)
        written = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=n,
            min_new_tokens=n,
            num_beams=beams,
            do_sample=False,
        )
        assert written.shape == (len(prompts), prompts.shape[1] + n)
        return written[:, prompts.shape[1] :].tolist()

    return write


# ---- our algorithm, by hand -------------------------------------------------------------------


class ByHand:
    """What this package leaves out, left out in PyTorch too: no padding, logits of targets only,
    the top layer's MLP only at those rows, no gradient of a weight, freed memory kept. autograd
    does the rest. On a GPU attention pads inside, so that it is one call for all sequences, and
    AdamW is one kernel."""

    def __init__(self, arguments: Answer) -> None:
        memory.keep_freed()
        self.device = arguments.get("device", "cpu")
        self.on_gpu = self.device != "cpu"
        self.config = Config(**arguments["config"])
        weights = GPT2.random(self.config).weights
        self.w: dict[str, torch.Tensor] = {}
        for name in list(weights):
            a = torch.from_numpy(weights.pop(name))
            # F.linear wants (out, in), and is fastest with it laid out so
            is_linear = name.startswith("h.") and a.dim() == 2
            self.w[name] = (a.T.contiguous() if is_linear else a).to(self.device)
        kv = Prefix.normal(self.config, arguments["prefix"]).kv
        self.kv = torch.nn.Parameter(torch.from_numpy(kv).to(self.device))
        self.length: int = kv.shape[3]  # P

    def on(self, lengths: Sequence[Sequence[int]]) -> Step:
        optimizer = torch.optim.AdamW([self.kv], lr=LR, weight_decay=0.0, fused=self.on_gpu)
        P, NH = self.length, self.config.n_head
        ids = token_ids(lengths, self.config.vocab_size)
        Ts = [len(s) for s in ids]
        ends = np.cumsum(Ts)
        tokens = torch.from_numpy(np.concatenate(ids))
        positions = torch.cat([torch.arange(P, P + T) for T in Ts])
        rows = torch.cat(
            [
                torch.arange(end - target - 1, end - 1)
                for end, (_, target) in zip(ends, lengths, strict=True)
            ]
        )  # row i predicts token i + 1
        tokens, positions, rows = (a.to(self.device) for a in (tokens, positions, rows))
        targets = tokens[rows + 1]
        attend = self._padded(Ts) if self.on_gpu else self._each_sequence(Ts)

        def forward() -> torch.Tensor:
            x = self.w["wte.weight"][tokens] + self.w["wpe.weight"][positions]
            for i in range(self.config.n_layer):
                qkv = self._linear(self._norm(x, f"h.{i}.ln_1"), f"h.{i}.attn.c_attn")
                q, k, v = qkv.view(len(x), 3, NH, -1).unbind(1)
                z = attend(q, k, v, i)
                if i == self.config.n_layer - 1:
                    x, z = x.index_select(0, rows), z.index_select(0, rows)
                x = x + self._linear(z, f"h.{i}.attn.c_proj")
                h = self._linear(self._norm(x, f"h.{i}.ln_2"), f"h.{i}.mlp.c_fc")
                x = x + self._linear(F.gelu(h, approximate="tanh"), f"h.{i}.mlp.c_proj")
            logits = F.linear(self._norm(x, "ln_f"), self.w["wte.weight"])
            return F.cross_entropy(logits, targets)

        def step() -> float:
            loss = forward()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            return loss.item()

        return step

    def _each_sequence(self, Ts: Sequence[int]) -> Attend:
        """Attention without padding, for one sequence after the other."""
        P, ends = self.length, np.cumsum(Ts)
        masks = [torch.ones(T, P + T, dtype=torch.bool).tril(P) for T in Ts]
        slices = [slice(end - T, end) for end, T in zip(ends, Ts, strict=True)]

        def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, i: int) -> torch.Tensor:
            zs = []
            for rows_b, mask in zip(slices, masks, strict=True):
                q_b, k_b, v_b = (a[rows_b].transpose(0, 1) for a in (q, k, v))  # (NH, T, hs)
                keys, values = (torch.cat([self.kv[i, j], a], 1) for j, a in ((0, k_b), (1, v_b)))
                z_b = F.scaled_dot_product_attention(q_b, keys, values, attn_mask=mask)
                zs.append(z_b.transpose(0, 1))
            return torch.cat(zs).flatten(1)

        return attend

    def _padded(self, Ts: Sequence[int]) -> Attend:
        """Attention of all sequences at once. What pads stands behind a sequence, where none of
        its tokens sees it."""
        B, T, P = len(Ts), max(Ts), self.length
        places = torch.cat([torch.arange(n) + b * T for b, n in enumerate(Ts)]).to(self.device)
        mask = torch.ones(T, P + T, dtype=torch.bool, device=self.device).tril(P)

        def heads(a: torch.Tensor) -> torch.Tensor:
            """(N, NH, hs) -> (B, NH, T, hs)."""
            padded = a.new_zeros(B * T, *a.shape[1:]).index_copy(0, places, a)
            return padded.view(B, T, *a.shape[1:]).transpose(1, 2)

        def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, i: int) -> torch.Tensor:
            keys, values = (
                torch.cat([self.kv[i, j].expand(B, -1, -1, -1), heads(a)], 2)
                for j, a in ((0, k), (1, v))
            )
            z = F.scaled_dot_product_attention(heads(q), keys, values, attn_mask=mask)
            return z.transpose(1, 2).flatten(0, 1).index_select(0, places).flatten(1)

        return attend

    def _norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        gain, bias = self.w[f"{name}.weight"], self.w[f"{name}.bias"]
        return F.layer_norm(x, (x.shape[-1],), gain, bias, self.config.layer_norm_epsilon)

    def _linear(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return F.linear(x, self.w[f"{name}.weight"], self.w[f"{name}.bias"])
