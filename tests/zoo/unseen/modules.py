"""GPT-2 in PyTorch as people write it: modules, padded batches, masks, and gradients by autograd.

An op's forward builds a graph and its cache is that graph: the backward asks autograd. A batch goes
through attention padded to (B, NH, T, hs), with the prefixes padded to the longest. The whole model
is an nn.Module whose names are the checkpoint's.
"""

import math
from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from minprefix.conformance.contract import ModelProblem, TrainingProblem


def asarray(a):
    return torch.tensor(a)


def asnumpy(a):
    return a.detach().cpu().numpy()


def leaf(a):
    """A tensor of our own with the same numbers, at which a graph starts."""
    return a.detach().clone().requires_grad_()


# --- padding ---------------------------------------------------------------------------------


def pad(stream, offsets):
    """(N, ...) -> (B, T, ...) with zeros behind the shorter sequences."""
    ends = [int(o) for o in offsets]
    rows = [stream[start:stop] for start, stop in pairwise(ends)]
    return pad_sequence(rows, batch_first=True)


def unpad(batch, offsets):
    """(B, T, ...) -> (N, ...)"""
    ends = [int(o) for o in offsets]
    lengths = [stop - start for start, stop in pairwise(ends)]
    return torch.cat([batch[b, :n] for b, n in enumerate(lengths)])


def pad_prefixes(prefixes):
    """B tensors (NH, P, hs) -> (B, NH, longest P, hs), zeros before the shorter ones."""
    longest = max(p.shape[1] for p in prefixes)
    return torch.stack([F.pad(p, (0, 0, longest - p.shape[1], 0)) for p in prefixes])


def visible(lengths, T):
    """lengths of the prefixes -> (B, 1, T, longest P + T): may this query see this key? Prefixes
    end at the first token: slot j of a padded prefix is real from longest - P on."""
    longest = max(lengths)
    slots = torch.arange(longest)
    real = torch.stack([slots >= longest - n for n in lengths])  # (B, longest)
    causal = torch.ones(T, T, dtype=torch.bool).tril()
    return torch.cat(
        [real[:, None, :].expand(-1, T, -1), causal.expand(len(lengths), -1, -1)], dim=2
    )[:, None]


# --- modules ---------------------------------------------------------------------------------


class LayerNorm(nn.Module):
    """Over the last axis."""

    def __init__(self, C, eps):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(C))
        self.bias = nn.Parameter(torch.empty(C))

    def forward(self, x):
        return normalise(x, self.weight, self.bias, self.eps)


def normalise(x, gain, bias, eps):
    centred = x - x.mean(dim=-1, keepdim=True)
    variance = centred.square().mean(dim=-1, keepdim=True)
    return centred * torch.rsqrt(variance + eps) * gain + bias


class Conv1D(nn.Module):
    """Linear with its weight as GPT-2 stores it: (in, out)."""

    def __init__(self, fan_in, fan_out):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(fan_in, fan_out))
        self.bias = nn.Parameter(torch.empty(fan_out))

    def forward(self, x):
        return x @ self.weight + self.bias


def gelu_new(x):
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x.pow(3))))


def attend(q, k, v, mask):
    """q (B, NH, T, hs), k, v (B, NH, S, hs), mask (B, 1, T, S) -> (B, NH, T, hs)"""
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    pattern = scores.masked_fill(~mask, float("-inf")).softmax(dim=-1)
    return pattern @ v


# --- the ops ---------------------------------------------------------------------------------


def embed(tokens, positions, wte, wpe):
    return F.embedding(tokens, wte) + F.embedding(positions, wpe)


def embed_backward_params(dx, tokens, positions, wte, wpe):
    dwte = torch.zeros_like(wte).index_add_(0, tokens, dx)
    dwpe = torch.zeros_like(wpe).index_add_(0, positions, dx)
    return dwte, dwpe


def layernorm(x, gain, bias, eps):
    """The cache is a closure: call it with dout for dx, dgain and dbias."""
    leaves = [leaf(a) for a in (x, gain, bias)]
    out = normalise(*leaves, eps)

    def pull(dout):
        return torch.autograd.grad(out, leaves, dout, retain_graph=True)

    return out.detach(), pull


def layernorm_backward_params(dout, cache):
    _, dgain, dbias = cache(dout)
    return dgain, dbias


def layernorm_backward(dout, cache):
    return cache(dout)[0]


def linear(x, weight, bias):
    return F.linear(x, weight.t(), bias)


def linear_backward_params(dout, x):
    return x.t() @ dout, dout.sum(dim=0)


def linear_backward(dout, weight):
    return dout @ weight.t()


class Gelu(torch.autograd.Function):
    """gelu_new with one tensor kept instead of the seven that autograd would keep."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return gelu_new(x)

    @staticmethod
    def backward(ctx, dout):
        (x,) = ctx.saved_tensors
        inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x.pow(3))
        tanh = torch.tanh(inner)
        slope = math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * x.square())
        return dout * (0.5 * (1 + tanh) + 0.5 * x * (1 - tanh.square()) * slope)


def gelu(x):
    start = leaf(x)
    out = Gelu.apply(start)
    return out.detach(), (out, start)


def gelu_backward(dout, cache):
    out, start = cache
    return torch.autograd.grad(out, start, dout)[0]


class Attended:
    """The graph of one call: its leaves, and what it gave."""

    def __init__(self, q, k, v, prefix_k, prefix_v, offsets):
        self.q, self.k, self.v = leaf(q), leaf(k), leaf(v)
        self.prefix_k = [leaf(p) for p in prefix_k]
        self.prefix_v = [leaf(p) for p in prefix_v]
        self.z = self.run(offsets)

    def run(self, offsets):
        queries, keys, values = (
            pad(a, offsets).transpose(1, 2) for a in (self.q, self.k, self.v)
        )  # (B, NH, T, hs)
        mask = visible([p.shape[1] for p in self.prefix_k], queries.shape[2])
        keys = torch.cat([pad_prefixes(self.prefix_k), keys], dim=2)
        values = torch.cat([pad_prefixes(self.prefix_v), values], dim=2)
        z = attend(queries, keys, values, mask)
        return unpad(z.transpose(1, 2), offsets)


def attention(q, k, v, prefix_k, prefix_v, offsets):
    cache = Attended(q, k, v, prefix_k, prefix_v, offsets)
    return cache.z.detach(), cache


def attention_backward(dz, cache):
    leaves = [cache.q, cache.k, cache.v, *cache.prefix_k, *cache.prefix_v]
    dq, dk, dv, *rest = torch.autograd.grad(cache.z, leaves, dz)
    B = len(cache.prefix_k)
    return dq, dk, dv, rest[:B], rest[B:]


def cross_entropy(logits, targets, weights):
    """The cache is a dictionary; its logits are the leaf that takes the gradient."""
    start = leaf(logits)
    nll = -start.log_softmax(dim=-1).gather(1, targets[:, None])[:, 0]
    loss = (weights * nll).sum()
    return loss.detach(), {"loss": loss, "logits": start}


def cross_entropy_backward(cache):
    cache["loss"].backward()
    return cache["logits"].grad


# --- the whole model -------------------------------------------------------------------------


class Past:
    """What attention sees before and among its tokens: per layer keys and values (B, NH, S, hs),
    and which of them are real. Decoding adds to it."""

    def __init__(self, prefixes):
        """prefixes: for each sequence (L, 2, NH, P, hs)."""
        self.lengths = [p.shape[3] for p in prefixes]
        longest = max(self.lengths)
        padded = torch.stack([F.pad(p, (0, 0, longest - p.shape[3], 0)) for p in prefixes])
        self.keys = list(padded[:, :, 0].unbind(dim=1))  # L of (B, NH, longest, hs)
        self.values = list(padded[:, :, 1].unbind(dim=1))
        slots = torch.arange(longest)
        self.real = torch.stack([slots >= longest - n for n in self.lengths])  # (B, S)

    def mask(self, T):
        """(B, 1, T, S + T) for T new tokens."""
        causal = torch.ones(T, T, dtype=torch.bool).tril().expand(len(self.real), -1, -1)
        before = self.real[:, None, :].expand(-1, T, -1)
        return torch.cat([before, causal], dim=2)[:, None]

    def join(self, i, k, v):
        """Keys and values of layer i with new ones behind them."""
        return torch.cat([self.keys[i], k], dim=2), torch.cat([self.values[i], v], dim=2)

    def grow(self, layers, running):
        """Keep the keys and values of a step: those of sequences that have ended are not real."""
        self.keys = [keys for keys, _ in layers]
        self.values = [values for _, values in layers]
        self.real = torch.cat([self.real, running[:, None]], dim=1)


class Attention(nn.Module):
    def __init__(self, config, i):
        super().__init__()
        self.i = i
        self.n_head = config.n_head
        self.c_attn = Conv1D(config.n_embd, 3 * config.n_embd)
        self.c_proj = Conv1D(config.n_embd, config.n_embd)

    def forward(self, x, past, mask):
        """x (B, T, C) -> (B, T, C), and the keys and values that it saw."""
        B, T, C = x.shape
        q, k, v = (
            a.view(B, T, self.n_head, -1).transpose(1, 2) for a in self.c_attn(x).split(C, dim=2)
        )
        keys, values = past.join(self.i, k, v)
        z = attend(q, keys, values, mask)
        return self.c_proj(z.transpose(1, 2).reshape(B, T, C)), (keys, values)


class MLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        inner = config.n_inner or 4 * config.n_embd
        self.c_fc = Conv1D(config.n_embd, inner)
        self.c_proj = Conv1D(inner, config.n_embd)

    def forward(self, x):
        return self.c_proj(gelu_new(self.c_fc(x)))


class Block(nn.Module):
    def __init__(self, config, i):
        super().__init__()
        self.ln_1 = LayerNorm(config.n_embd, config.layer_norm_epsilon)
        self.attn = Attention(config, i)
        self.ln_2 = LayerNorm(config.n_embd, config.layer_norm_epsilon)
        self.mlp = MLP(config)

    def forward(self, x, past, mask):
        mixed, seen = self.attn(self.ln_1(x), past, mask)
        x = x + mixed
        return x + self.mlp(self.ln_2(x)), seen


class Table(nn.Module):
    def __init__(self, rows, C):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rows, C))

    def forward(self, index):
        return F.embedding(index, self.weight)


class GPT2(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.wte = Table(config.vocab_size, config.n_embd)
        self.wpe = Table(config.n_positions, config.n_embd)
        self.h = nn.ModuleList(Block(config, i) for i in range(config.n_layer))
        self.ln_f = LayerNorm(config.n_embd, config.layer_norm_epsilon)
        self.lm_head = self.wte
        if not config.tie_word_embeddings:
            self.lm_head = Table(config.vocab_size, config.n_embd)

    @classmethod
    def load(cls, config, weights, trained):
        """A model with these weights, by their names; `trained`: whether they take gradients."""
        model = cls(config)
        model.to(torch.tensor(weights["wte.weight"]).dtype)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(torch.tensor(weights[name]))
        return model.requires_grad_(trained)

    def forward(self, tokens, positions, past):
        """tokens, positions (B, T) -> logits (B, T, V), and keys and values of each layer."""
        x = self.wte(tokens) + self.wpe(positions)
        mask = past.mask(tokens.shape[1])
        layers = []
        for block in self.h:
            x, seen = block(x, past, mask)
            layers.append(seen)
        return self.ln_f(x) @ self.lm_head.weight.t(), layers


IGNORED = -100


def padded_tokens(sequences):
    return pad_sequence([torch.tensor(s, dtype=torch.long) for s in sequences], batch_first=True)


def labels_of(sequences, loss_from):
    """(B, T): the token that each position predicts, or IGNORED."""
    rows = []
    for s, first in zip(sequences, loss_from, strict=True):
        row = torch.full((len(s),), IGNORED)
        row[first - 1 : -1] = torch.tensor(s[first:])
        rows.append(row)
    return pad_sequence(rows, batch_first=True, padding_value=IGNORED)


def positions_of(tokens, starts, n_positions):
    """(B, T). Behind a short sequence they stop at the table's last row, as nobody reads them."""
    steps = torch.arange(tokens.shape[1])
    return (torch.tensor(starts)[:, None] + steps).clamp(max=n_positions - 1)


def total_loss(model, sequences, loss_from, prefixes, starts):
    """The sum of nll over all targets, and their number. prefixes, starts: one per sequence."""
    tokens = padded_tokens(sequences)
    positions = positions_of(tokens, starts, model.config.n_positions)
    labels = labels_of(sequences, loss_from)
    logits, _ = model(tokens, positions, Past(prefixes))
    loss = F.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum"
    )
    return loss, int((labels != IGNORED).sum())


def run_model(problem: ModelProblem):
    everything = problem.need == "all"
    model = GPT2.load(problem.config, problem.weights, trained=everything)
    prefixes = [leaf(torch.tensor(p)) for p in problem.prefixes]
    loss, count = total_loss(
        model,
        problem.sequences,
        problem.loss_from,
        [prefixes[p] for p in problem.prefix_of],
        [problem.position_offsets[p] for p in problem.prefix_of],
    )
    if problem.reduction == "mean":
        loss = loss / count
    loss.backward()
    results = {"loss": asnumpy(loss)}
    for i, prefix in enumerate(prefixes):
        gradient = torch.zeros_like(prefix) if prefix.grad is None else prefix.grad
        results[f"prefix.{i}.dk"] = asnumpy(gradient[:, 0])
        results[f"prefix.{i}.dv"] = asnumpy(gradient[:, 1])
    if everything:
        results |= {f"d{name}": asnumpy(p.grad) for name, p in model.named_parameters()}
    return results


@torch.no_grad()
def run_decoding(problem: ModelProblem):
    model = GPT2.load(problem.config, problem.weights, trained=False)
    prefixes = [torch.tensor(problem.prefixes[p]) for p in problem.prefix_of]
    starts = [problem.position_offsets[p] for p in problem.prefix_of]
    tokens = padded_tokens(problem.sequences)
    positions = positions_of(tokens, starts, problem.config.n_positions)
    lengths = torch.tensor([len(s) for s in problem.sequences])
    past = Past(prefixes)
    steps = []
    for t in range(tokens.shape[1]):
        logits, layers = model(tokens[:, t : t + 1], positions[:, t : t + 1], past)
        past.grow(layers, t < lengths)
        steps.append(logits[:, 0])
    logits = torch.stack(steps, dim=1)  # (B, T, V)
    return {"logits": asnumpy(torch.cat([logits[b, :n] for b, n in enumerate(lengths)]))}


# --- training --------------------------------------------------------------------------------


class Prefix(nn.Module):
    """A prefix by its parameters: `kv`, or a table and two layers (Li & Liang, 2021)."""

    def __init__(self, config, parameters):
        super().__init__()
        self.shape = (config.n_layer, 2, config.n_head, config.n_embd // config.n_head)
        for name, a in parameters.items():
            self.register_parameter(name, nn.Parameter(torch.tensor(a)))

    def forward(self):
        """-> (L, 2, NH, P, hs)"""
        if hasattr(self, "kv"):
            return self.kv
        hidden = torch.tanh(self.embedding @ self.weight_1 + self.bias_1)
        flat = hidden @ self.weight_2 + self.bias_2
        return flat.view(-1, *self.shape).permute(1, 2, 3, 0, 4)


def rate_at(step, problem):
    """The part of `lr` at step 0, 1, ...: a straight line up, and a straight line down."""
    steps = len(problem.steps)
    if step < problem.warmup:
        return (step + 1) / problem.warmup
    return max(0.0, (steps - step) / max(1, steps - problem.warmup))


@torch.no_grad()
def clip(parameters, limit):
    """To the global norm `limit`, over all of them together."""
    norm = torch.stack([p.grad.norm() for p in parameters]).norm()
    if norm > limit:
        for p in parameters:
            p.grad *= limit / norm


def run_training(problem: TrainingProblem):
    model = GPT2.load(problem.config, problem.weights, trained=False)
    prefixes = nn.ModuleList(Prefix(problem.config, p) for p in problem.parameters)
    parameters = list(prefixes.parameters())
    optimizer = torch.optim.AdamW(
        parameters,
        lr=problem.lr,
        betas=(problem.beta1, problem.beta2),
        eps=problem.eps,
        weight_decay=problem.weight_decay,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: rate_at(s, problem))
    results = {}
    for s, batches in enumerate(problem.steps):
        optimizer.zero_grad(set_to_none=False)
        count = sum(
            int((labels_of(batch.sequences, batch.loss_from) != IGNORED).sum()) for batch in batches
        )
        loss = 0.0
        for batch in batches:
            made = [prefix() for prefix in prefixes]
            total, _ = total_loss(
                model,
                batch.sequences,
                batch.loss_from,
                [made[p] for p in batch.prefix_of],
                [made[p].shape[3] for p in batch.prefix_of],
            )
            (total / count).backward()
            loss += total.item() / count
        for p in parameters:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        if problem.clip is not None:
            clip(parameters, problem.clip)
        optimizer.step()
        schedule.step()
        results[f"step.{s}.loss"] = loss
        for i, prefix in enumerate(prefixes):
            for name, p in prefix.named_parameters():
                results[f"step.{s}.prefix.{i}.{name}"] = asnumpy(p).copy()
    return results
