"""The rivals of prefix-tuning in PyTorch: a GPT-2 written anew, one sequence at a time, and each
rival put into it as its paper draws it. Gradients are autograd's, in float64."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from minprefix.gpt2 import Config
from minprefix.method import Method

Array = np.ndarray
Tensor = torch.Tensor
#: the layer's name, its input and its output -> what takes the output's place
Around = Callable[[str, Tensor, Tensor], Tensor]


def loss_and_grads(
    method: Method,
    weights: Mapping[str, Array],
    cfg: Config,
    sequences: Sequence[Sequence[int]],
    loss_from: Sequence[int],
    reduction: str = "mean",
) -> tuple[float, dict[str, Array]]:
    """As `Method.loss_and_grads`."""
    p = {name: torch.tensor(np.float64(a), requires_grad=True) for name, a in _real(method).items()}
    w = {name: torch.tensor(np.float64(a.real)) for name, a in weights.items()}
    nll = [
        _sequence(method, p, w, cfg, torch.tensor(np.array(ids)), start)
        for ids, start in zip(sequences, loss_from, strict=True)
    ]
    whole = torch.cat(nll)
    loss = whole.mean() if reduction == "mean" else whole.sum()
    loss.backward()
    grads = {n: (torch.zeros_like(t) if t.grad is None else t.grad).numpy() for n, t in p.items()}
    return loss.item(), grads


def _real(method: Method) -> dict[str, Array]:
    return {name: a.real for name, a in method.parameters.items()}


def _sequence(
    method: Any, p: dict[str, Tensor], w: dict[str, Tensor], cfg: Config, ids: Tensor, start: int
) -> Tensor:
    """The loss of each target of one sequence."""
    keep: Around = lambda layer, x, out: out  # noqa: E731
    if method.name in ("full", "top-layers", "bitfit"):
        logits = _logits(w | p, cfg, ids, keep)
    elif method.name == "lora":
        logits = _logits(w, cfg, ids, _lora(p, method.alpha))
    elif method.name == "adapters":
        logits = _logits(w, cfg, ids, _adapters(p))
    elif method.name in ("prompt-tuning", "p-tuning"):
        prompt = p["prompt"] if "prompt" in p else _encoded(p)
        logits = _logits(w, cfg, ids, keep, prompt=prompt)[len(prompt) :]
    else:
        assert method.name == "infix"
        logits = _logits(w, cfg, ids, keep, infix=p["kv"], split=start - 1)
    return F.cross_entropy(logits[start - 1 : -1], ids[start:], reduction="none")


def _lora(p: dict[str, Tensor], alpha: float) -> Around:
    def around(layer: str, x: Tensor, out: Tensor) -> Tensor:
        if f"{layer}.lora_A" not in p:
            return out
        A, B = p[f"{layer}.lora_A"], p[f"{layer}.lora_B"]
        return out + x @ (alpha / A.shape[1] * (A @ B))  # the change of W, formed

    return around


def _adapters(p: dict[str, Tensor]) -> Around:
    def around(layer: str, x: Tensor, out: Tensor) -> Tensor:
        if f"{layer}.up" not in p:
            return out
        z = out @ p[f"{layer}.down"] + p[f"{layer}.down_bias"]
        return out + F.gelu(z, approximate="tanh") @ p[f"{layer}.up"] + p[f"{layer}.up_bias"]

    return around


def _encoded(p: dict[str, Tensor]) -> Tensor:
    h, last = p["embedding"], sum(name.startswith("weight_") for name in p)
    for layer in range(sum(name.startswith("lstm") for name in p) // 6):
        ways = []
        for direction, step in (("forward", 1), ("backward", -1)):
            w_x, w_h, b = (
                p[f"lstm_{layer}.{direction}.{part}"] for part in ("weight_x", "weight_h", "bias")
            )
            cell = state = torch.zeros(len(w_h), dtype=torch.float64)
            rows = []
            for row in h.flip(0) if step < 0 else h:
                i, f, g, o = (row @ w_x + state @ w_h + b).chunk(4)
                cell = torch.sigmoid(f) * cell + torch.sigmoid(i) * torch.tanh(g)
                state = torch.sigmoid(o) * torch.tanh(cell)
                rows.append(state)
            ways.append(torch.stack(rows[::step]))
        h = torch.cat(ways, dim=1)
    for i in range(1, last):
        h = torch.relu(h @ p[f"weight_{i}"] + p[f"bias_{i}"])
    return h @ p[f"weight_{last}"] + p[f"bias_{last}"]


def _logits(
    w: dict[str, Tensor],
    cfg: Config,
    ids: Tensor,
    around: Around,
    prompt: Tensor | None = None,
    infix: Tensor | None = None,
    split: int = 0,
) -> Tensor:
    """`prompt` (P, C): rows before the tokens, whose logits are given, too. `infix` (L, 2, NH, P,
    hs): seen by the tokens from `split` on."""
    P = 0 if infix is None else infix.shape[3]
    x = w["wte.weight"][ids]
    if prompt is not None:
        x = torch.cat([prompt, x])
    T = len(x)
    positions = torch.arange(T)
    positions[split:] += P
    x = x + w["wpe.weight"][positions.clamp(max=cfg.n_positions - 1)]
    seen = torch.ones(T, T, dtype=torch.bool).tril()
    seen = torch.cat([(torch.arange(T) >= split)[:, None].expand(T, P), seen], dim=1)

    def norm(x: Tensor, name: str) -> Tensor:
        gain, bias = w[f"{name}.weight"], w[f"{name}.bias"]
        return F.layer_norm(x, (cfg.n_embd,), gain, bias, cfg.layer_norm_epsilon)

    def linear(x: Tensor, name: str) -> Tensor:
        return around(name, x, x @ w[f"{name}.weight"] + w[f"{name}.bias"])

    for i in range(cfg.n_layer):
        h = f"h.{i}"
        qkv = linear(norm(x, f"{h}.ln_1"), f"{h}.attn.c_attn")
        q, k, v = (a.reshape(T, cfg.n_head, -1).transpose(0, 1) for a in qkv.chunk(3, dim=1))
        if infix is not None:
            k, v = torch.cat([infix[i, 0], k], dim=1), torch.cat([infix[i, 1], v], dim=1)
        scores = q @ k.transpose(1, 2) / cfg.head_size**0.5
        pattern = torch.softmax(scores.masked_fill(~seen, -torch.inf), dim=-1)
        z = (pattern @ v).transpose(0, 1).reshape(T, cfg.n_embd)
        x = x + linear(z, f"{h}.attn.c_proj")
        m = F.gelu(linear(norm(x, f"{h}.ln_2"), f"{h}.mlp.c_fc"), approximate="tanh")
        x = x + linear(m, f"{h}.mlp.c_proj")
    head = w["lm_head.weight"] if "lm_head.weight" in w else w["wte.weight"]
    return norm(x, "ln_f") @ head.T
