"""Everything the suite expects, by PyTorch in float64: forwards alone are written here, gradients
are autograd's.

The formulas are the straightforward ones, and unlike the reference's where there is a choice: the
ops' attention takes one query at a time and hides nothing, because it never sees a later key.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from minprefix.conformance.cases import Case
from minprefix.conformance.contract import MicroBatch, ModelProblem, TrainingProblem
from minprefix.gpt2 import Config
from tests.peft_adapter import Watch, gpt2

Array = np.ndarray
Tensor = torch.Tensor
SQRT_2_OVER_PI = float(np.sqrt(2 / np.pi))


def leaf(a: Array) -> Tensor:
    return torch.tensor(np.asarray(a, np.float64), requires_grad=True)


def gradient(t: Tensor) -> Array:
    """Zeros where nothing depends on it."""
    return (torch.zeros_like(t) if t.grad is None else t.grad).numpy()


def value(t: Tensor) -> Array:
    return t.detach().numpy()


# ---- the ops ------------------------------------------------------------------------------------


def op(case: Case) -> dict[str, Array]:
    """Every tensor of the op, by the suite's names."""
    return OPS[case.op](case.inputs())


def _embed(i: dict[str, Any]) -> dict[str, Array]:
    wte, wpe = leaf(i["wte"]), leaf(i["wpe"])
    x = F.embedding(torch.tensor(i["tokens"]), wte) + F.embedding(torch.tensor(i["positions"]), wpe)
    (x * torch.tensor(np.float64(i["dx"]))).sum().backward()
    return {"x": value(x), "dwte": gradient(wte), "dwpe": gradient(wpe)}


def _layernorm(i: dict[str, Any]) -> dict[str, Array]:
    x, gain, bias = leaf(i["x"]), leaf(i["gain"]), leaf(i["bias"])
    deviation = torch.sqrt(x.var(dim=1, unbiased=False, keepdim=True) + i["eps"])
    xhat = (x - x.mean(dim=1, keepdim=True)) / deviation
    out = gain * xhat + bias
    (out * torch.tensor(np.float64(i["dout"]))).sum().backward()
    return {
        "out": value(out),
        "cache.xhat": value(xhat),
        "cache.rstd": value(1 / deviation),
        "cache.gain": value(gain),
        "dx": gradient(x),
        "dgain": gradient(gain),
        "dbias": gradient(bias),
    }


def _linear(i: dict[str, Any]) -> dict[str, Array]:
    x, weight = leaf(i["x"]), leaf(i["weight"])
    bias = leaf(np.zeros(weight.shape[1]) if i["bias"] is None else i["bias"])
    out = torch.einsum("ni,io->no", x, weight) + bias
    (out * torch.tensor(np.float64(i["dout"]))).sum().backward()
    return {
        "out": value(out),
        "dx": gradient(x),
        "dweight": gradient(weight),
        "dbias": gradient(bias),
    }


def _gelu(i: dict[str, Any]) -> dict[str, Array]:
    x = leaf(i["x"])
    tanh = torch.tanh(SQRT_2_OVER_PI * (x + 0.044715 * x**3))
    out = x / 2 * (1 + tanh)
    (out * torch.tensor(np.float64(i["dout"]))).sum().backward()
    return {"out": value(out), "cache.x": value(x), "cache.tanh": value(tanh), "dx": gradient(x)}


def _attention(i: dict[str, Any]) -> dict[str, Array]:
    q, k, v = leaf(i["q"]), leaf(i["k"]), leaf(i["v"])
    prefix_k, prefix_v = ([leaf(a) for a in i[name]] for name in ("prefix_k", "prefix_v"))
    _, NH, hs = q.shape
    z: list[list[Tensor]] = []
    patterns = []
    for b in range(len(prefix_k)):
        first, end, P = i["offsets"][b], i["offsets"][b + 1], prefix_k[b].shape[1]
        pattern = np.zeros((NH, end - first, P + end - first))
        for n in range(first, end):
            row = []
            for h in range(NH):
                keys = torch.cat([prefix_k[b][h], k[first : n + 1, h]])
                values = torch.cat([prefix_v[b][h], v[first : n + 1, h]])
                share = torch.softmax(keys @ q[n, h] / np.sqrt(hs), dim=0)
                row.append(share @ values)
                pattern[h, n - first, : len(share)] = value(share)
            z.append(torch.stack(row))
        patterns.append(pattern)
    whole = torch.stack(z)
    (whole * torch.tensor(np.float64(i["dz"]))).sum().backward()
    found = {"z": value(whole), "cache.offsets": np.array(i["offsets"])}
    for name, t in (("q", q), ("k", k), ("v", v)):
        found |= {f"cache.{name}": value(t), f"d{name}": gradient(t)}
    for b, (pk, pv, pattern) in enumerate(zip(prefix_k, prefix_v, patterns, strict=True)):
        found |= {f"cache.prefix_k[{b}]": value(pk), f"cache.prefix_v[{b}]": value(pv)}
        found |= {f"dprefix_k[{b}]": gradient(pk), f"dprefix_v[{b}]": gradient(pv)}
        found[f"cache.pattern[{b}]"] = pattern
    return found


def _cross_entropy(i: dict[str, Any]) -> dict[str, Array]:
    logits, weights = leaf(i["logits"]), torch.tensor(np.float64(i["weights"]))
    nll = F.cross_entropy(logits, torch.tensor(i["targets"]), reduction="none")
    loss = (weights * nll).sum()
    loss.backward()
    return {
        "loss": value(loss),
        "cache.probs": value(torch.softmax(logits, dim=1)),
        "cache.targets": np.array(i["targets"]),
        "cache.weights": np.float64(i["weights"]),
        "dlogits": gradient(logits),
    }


OPS: dict[str, Callable[[dict[str, Any]], dict[str, Array]]] = {
    "embed": _embed,
    "layernorm": _layernorm,
    "linear": _linear,
    "gelu": _gelu,
    "attention": _attention,
    "cross_entropy": _cross_entropy,
}


# ---- a whole model ------------------------------------------------------------------------------


class Named(dict[str, Tensor]):
    """Tensors by name, each of which keeps its gradient."""

    def keep(self, name: str, t: Tensor) -> Tensor:
        t.retain_grad()
        self[name] = t
        return t


def stack(
    config: Config,
    w: Mapping[str, Tensor],
    batch: ModelProblem | MicroBatch,
    kvs: Sequence[Tensor],
    offsets: Sequence[int],
) -> tuple[Tensor, Named, list[int], Tensor]:
    """GPT-2 as Radford et al. describe it -> the logits of every token (N, V), every intermediate,
    the rows that predict a target, and the targets."""
    named, NH, hs, eps = Named(), config.n_head, config.head_size, config.layer_norm_epsilon
    tokens = torch.tensor([t for ids in batch.sequences for t in ids])
    positions = [
        offsets[j] + t
        for ids, j in zip(batch.sequences, batch.prefix_of, strict=True)
        for t in range(len(ids))
    ]
    lengths = [len(ids) for ids in batch.sequences]
    x = w["wte.weight"][tokens] + w["wpe.weight"][torch.tensor(positions)]

    def norm(name: str, t: Tensor) -> Tensor:
        return F.layer_norm(t, t.shape[1:], w[f"{name}.weight"], w[f"{name}.bias"], eps)

    def conv(name: str, t: Tensor) -> Tensor:
        return torch.addmm(w[f"{name}.bias"], t, w[f"{name}.weight"])

    for i in range(config.n_layer):
        h, block = f"h.{i}", f"blocks.{i}"
        named.keep(f"{block}.resid_pre", x)
        a = named.keep(f"{block}.ln_1.out", norm(f"{h}.ln_1", x))
        parts = conv(f"{h}.attn.c_attn", a).split(NH * hs, dim=1)
        q, k, v = (
            named.keep(f"{block}.attn.{letter}", t.reshape(-1, NH, hs))
            for letter, t in zip("qkv", parts, strict=True)
        )
        z, start = [], 0
        for b, (T, j) in enumerate(zip(lengths, batch.prefix_of, strict=True)):
            now = slice(start, start + T)
            keys = torch.cat([kvs[j][i, 0], k[now].transpose(0, 1)], dim=1)
            values = torch.cat([kvs[j][i, 1], v[now].transpose(0, 1)], dim=1)
            scores = torch.einsum("thd,hsd->hts", q[now], keys) * hs**-0.5
            P = keys.shape[1] - T
            hidden = torch.triu(torch.ones(T, P + T, dtype=torch.bool), diagonal=P + 1)
            pattern = torch.softmax(scores.masked_fill(hidden, -torch.inf), dim=2)
            named[f"{block}.attn.pattern[{b}]"] = pattern
            z.append(torch.einsum("hts,hsd->thd", pattern, values))
            start += T
        joined = named.keep(f"{block}.attn.z", torch.cat(z))
        out = conv(f"{h}.attn.c_proj", joined.reshape(-1, NH * hs))
        x = named.keep(f"{block}.resid_mid", x + named.keep(f"{block}.attn.out", out))
        m = named.keep(f"{block}.ln_2.out", norm(f"{h}.ln_2", x))
        pre = named.keep(f"{block}.mlp.pre", conv(f"{h}.mlp.c_fc", m))
        post = named.keep(f"{block}.mlp.post", F.gelu(pre, approximate="tanh"))
        x = x + named.keep(f"{block}.mlp.out", conv(f"{h}.mlp.c_proj", post))
        named.keep(f"{block}.resid_post", x)
    every = norm("ln_f", x) @ w.get("lm_head.weight", w["wte.weight"]).T
    rows, targets, start = [], [], 0
    for ids, first in zip(batch.sequences, batch.loss_from, strict=True):
        rows += range(start + first - 1, start + len(ids) - 1)
        targets += ids[first:]
        start += len(ids)
    y = named.keep("ln_f.in", x[rows])
    y = named.keep("ln_f.out", norm("ln_f", y))
    named.keep("logits", y @ w.get("lm_head.weight", w["wte.weight"]).T)
    return every, named, rows, torch.tensor(targets)


#: a tensor of the forward, below whose name its gradient has this one
GRADIENT_OF = {
    "resid_post": "dresid_post",
    "mlp.post": "mlp.dpost",
    "mlp.pre": "mlp.dpre",
    "ln_2.out": "ln_2.dout",
    "resid_mid": "dresid_mid",
    "attn.z": "attn.dz",
    "attn.q": "attn.dq",
    "attn.k": "attn.dk",
    "attn.v": "attn.dv",
    "ln_1.out": "ln_1.dout",
}


def model(problem: ModelProblem) -> dict[str, Array]:
    w = {name: leaf(a) for name, a in problem.weights.items()}
    kvs = [leaf(kv) for kv in problem.prefixes]
    _, named, _, targets = stack(problem.config, w, problem, kvs, problem.position_offsets)
    loss = F.cross_entropy(named["logits"], targets, reduction=problem.reduction)
    loss.backward()
    found = {name: value(t) for name, t in named.items() if not name.endswith("resid_post")}
    found["loss"] = value(loss)
    for name in ("ln_f.in", "ln_f.out"):
        found[name.replace("f.", "f.d")] = gradient(named[name])
    found["dlogits"] = gradient(named["logits"])
    for i in range(problem.config.n_layer):
        for name, d in GRADIENT_OF.items():
            found[f"blocks.{i}.{d}"] = gradient(named[f"blocks.{i}.{name}"])
    for j, kv in enumerate(kvs):
        found |= {f"prefix.{j}.dk": gradient(kv)[:, 0], f"prefix.{j}.dv": gradient(kv)[:, 1]}
    return found | {f"d{name}": gradient(t) for name, t in w.items()}


def decoding(problem: ModelProblem) -> dict[str, Array]:
    """The whole sequences at once."""
    w = {name: leaf(a) for name, a in problem.weights.items()}
    kvs = [leaf(kv) for kv in problem.prefixes]
    offsets = problem.position_offsets
    return {"logits": value(stack(problem.config, w, problem, kvs, offsets)[0])}


# ---- transformers' GPT-2 ------------------------------------------------------------------------


def _hf_loss(
    hf: Any, batch: ModelProblem | MicroBatch, kvs: Sequence[Tensor], offsets: Sequence[int],
    watch: Watch | None = None,
) -> tuple[Tensor, int]:  # fmt: skip
    """The sum over all targets, and their number: not by `labels=`, which is single precision."""
    total, count = torch.zeros((), dtype=torch.float64), 0
    for ids, first, j in zip(batch.sequences, batch.loss_from, batch.prefix_of, strict=True):
        out = hf(
            torch.tensor(ids)[None],
            past_key_values=_cache(kvs[j]),
            position_ids=torch.arange(len(ids))[None] + offsets[j],
            output_attentions=watch is not None,
        )
        if watch is not None:
            watch.end_of_sequence(out, first)
        log_p = torch.log_softmax(out.logits[0], dim=1)
        for t in range(first, len(ids)):
            total, count = total - log_p[t - 1, ids[t]], count + 1
    return total, count


def _cache(kv: Tensor) -> Any:
    from transformers import DynamicCache

    cache = DynamicCache()
    if kv.shape[3]:
        for i in range(len(kv)):
            cache.update(kv[i, 0][None], kv[i, 1][None], i)
    return cache


def _wide(weights: Mapping[str, Array]) -> dict[str, Array]:
    return {name: np.float64(a) for name, a in weights.items()}


def transformers_model(problem: ModelProblem) -> dict[str, Array]:
    hf = gpt2(problem.config, _wide(problem.weights))
    kvs = [leaf(kv) for kv in problem.prefixes]
    watch = Watch(hf)
    total, count = _hf_loss(hf, problem, kvs, problem.position_offsets, watch)
    loss = total / count if problem.reduction == "mean" else total
    loss.backward()
    found = watch.tensors(problem.config) | {"loss": value(loss)}
    for j, kv in enumerate(kvs):
        found |= {f"prefix.{j}.dk": gradient(kv)[:, 0], f"prefix.{j}.dv": gradient(kv)[:, 1]}
    for name, p in hf.named_parameters():
        found[f"d{name.removeprefix('transformer.')}"] = gradient(p)
    return found


def transformers_decoding(problem: ModelProblem) -> dict[str, Array]:
    """Token by token through transformers' own cache."""
    hf, rows = gpt2(problem.config, _wide(problem.weights)), []
    with torch.no_grad():
        for ids, j in zip(problem.sequences, problem.prefix_of, strict=True):
            cache = _cache(torch.tensor(np.float64(problem.prefixes[j])))
            for t, token in enumerate(ids):
                position = torch.tensor([[problem.position_offsets[j] + t]])
                given = torch.tensor([[token]])
                out = hf(given, past_key_values=cache, position_ids=position, use_cache=True)
                cache = out.past_key_values
                rows.append(out.logits[0])
    return {"logits": torch.cat(rows).numpy()}


# ---- training -----------------------------------------------------------------------------------


class Reparametrised(torch.nn.Module):
    """The MLP of Li & Liang, 2021, by PyTorch's own layers."""

    def __init__(self, given: Mapping[str, Array], config: Config) -> None:
        super().__init__()
        self.config = config
        P, C = given["embedding"].shape
        hidden, out = given["weight_2"].shape
        self.embedding = torch.nn.Embedding(P, C, dtype=torch.float64)
        self.first = torch.nn.Linear(C, hidden, dtype=torch.float64)
        self.second = torch.nn.Linear(hidden, out, dtype=torch.float64)
        with torch.no_grad():
            for name, (p, transposed) in self.named().items():
                a = torch.tensor(given[name])
                p.copy_(a.T if transposed else a)

    def named(self) -> dict[str, tuple[torch.nn.Parameter, bool]]:
        return {
            "embedding": (self.embedding.weight, False),
            "weight_1": (self.first.weight, True),
            "bias_1": (self.first.bias, False),
            "weight_2": (self.second.weight, True),
            "bias_2": (self.second.bias, False),
        }

    def forward(self) -> Tensor:
        c = self.config
        rows = self.second(torch.tanh(self.first(self.embedding.weight)))
        each = [row.reshape(c.n_layer, 2, c.n_head, c.head_size) for row in rows]
        return torch.stack(each, dim=3)


class Flat(torch.nn.Module):
    def __init__(self, given: Mapping[str, Array]) -> None:
        super().__init__()
        self.kv = torch.nn.Parameter(torch.tensor(given["kv"]))

    def named(self) -> dict[str, tuple[torch.nn.Parameter, bool]]:
        return {"kv": (self.kv, False)}

    def forward(self) -> Tensor:
        return self.kv


def _own_loss(problem: TrainingProblem) -> Callable[..., tuple[Tensor, int]]:
    w = {name: leaf(a) for name, a in problem.weights.items()}

    def loss(
        batch: MicroBatch, kvs: Sequence[Tensor], offsets: Sequence[int]
    ) -> tuple[Tensor, int]:
        _, named, _, targets = stack(problem.config, w, batch, kvs, offsets)
        return F.cross_entropy(named["logits"], targets, reduction="sum"), len(targets)

    return loss


def training(problem: TrainingProblem) -> dict[str, Array]:
    return _training(problem, _own_loss(problem))


def transformers_training(problem: TrainingProblem) -> dict[str, Array]:
    hf = gpt2(problem.config, _wide(problem.weights))
    return _training(problem, lambda *batch: _hf_loss(hf, *batch))


def _training(
    problem: TrainingProblem, summed_loss: Callable[..., tuple[Tensor, int]]
) -> dict[str, Array]:
    prefixes = [
        Flat(p) if "kv" in p else Reparametrised(p, problem.config) for p in problem.parameters
    ]
    parameters = [p for prefix in prefixes for p in prefix.parameters()]
    optimizer = torch.optim.AdamW(
        parameters,
        lr=problem.lr,
        betas=(problem.beta1, problem.beta2),
        eps=problem.eps,
        weight_decay=problem.weight_decay,
    )
    n, warmup = len(problem.steps), problem.warmup
    rise = [(s + 1) / warmup for s in range(warmup)]
    fall = [1 - s / (n - warmup) for s in range(n - warmup)]
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: [*rise, *fall, 0.0][s])
    found = {}

    def note(s: int, what: str, read: Callable[[Tensor], Array]) -> None:
        for i, prefix in enumerate(prefixes):
            for name, (p, transposed) in prefix.named().items():
                a = read(p).copy()
                found[f"step.{s}.prefix.{i}.{what}{name}"] = a.T if transposed else a

    for s, step in enumerate(problem.steps):
        optimizer.zero_grad()
        kvs = [prefix() for prefix in prefixes]
        sums = [summed_loss(batch, kvs, [kv.shape[3] for kv in kvs]) for batch in step]
        loss = sum(total for total, _ in sums) / sum(count for _, count in sums)
        loss.backward()
        for p in parameters:  # without a gradient PyTorch would leave out a prefix of no sequence
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        found[f"step.{s}.loss"] = value(loss).copy()
        note(s, "gradient.", gradient)
        if problem.clip is not None:
            # torch's clip_grad_norm_ divides by norm + 1e-6, which ten steps turn into 1e-7
            norm = torch.linalg.vector_norm(torch.cat([p.grad.reshape(-1) for p in parameters]))
            for p in parameters:
                p.grad *= min(1.0, problem.clip / norm.item())
        optimizer.step()
        schedule.step()
        note(s, "", value)
    return found
