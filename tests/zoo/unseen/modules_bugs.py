"""Mistakes to plant in `modules.py`: where each is, and what is wrong. See `unseen2.md`."""

_LOSS = [("run_model", "loss"), ("run_decoding", "logits"), ("run_training", "step.0.loss")]


def _after(step, *prefixes):
    """The parameters that a step leaves, whichever a problem has."""
    names = ("kv", "embedding", "weight_1", "bias_1", "weight_2", "bias_2")
    return [("run_training", f"step.{step}.prefix.{i}.{name}") for i in prefixes for name in names]


BUGS = [
    # embed
    {
        "name": "table-as-long-as-batch",
        "truth": ("embed_backward_params", "dwte"),
        "also": [],
        "change": [
            (
                "torch.zeros_like(wte).index_add_",
                "wte.new_zeros(int(tokens.max()) + 1, wte.shape[1]).index_add_",
            )
        ],
        "reason": "dwte ends at the batch's largest token.",
    },
    {
        "name": "token-zero-is-padding",
        "truth": ("embed_backward_params", "dwte"),
        "also": [],
        "change": [
            ("index_add_(0, tokens, dx)", "index_add_(0, tokens, dx * (tokens != 0)[:, None])")
        ],
        "reason": "Token 0 is taken for padding, as padding_idx=0 does, and gets no gradient.",
    },
    {
        "name": "table-times-root-of-width",
        "truth": ("embed", "x"),
        "also": [],
        "change": [
            (
                "F.embedding(tokens, wte) + F.embedding",
                "math.sqrt(wte.shape[1]) * F.embedding(tokens, wte) + F.embedding",
            )
        ],
        "reason": "The table is scaled by sqrt(C) as in the first transformer: GPT-2 does not.",
    },
    # layernorm
    {
        "name": "variance-unbiased",
        "truth": ("layernorm", "out"),
        "also": [],
        "change": [("centred.square().mean(dim=-1, keepdim=True)", "x.var(dim=-1, keepdim=True)")],
        "reason": "torch.var divides by C - 1.",
    },
    {
        "name": "eps-outside-root",
        "truth": ("layernorm", "out"),
        "also": [],
        "change": [("centred * torch.rsqrt(variance + eps)", "centred / (variance.sqrt() + eps)")],
        "reason": "eps is added to the standard deviation, not to the variance.",
    },
    {
        "name": "graph-freed-by-params",
        "truth": ("layernorm_backward", "dx"),
        "also": [("layernorm_backward", "")],
        "change": [
            (
                "torch.autograd.grad(out, leaves, dout, retain_graph=True)",
                "torch.autograd.grad(out, leaves, dout)",
            )
        ],
        "reason": "The first backward frees the graph, and the second raises.",
    },
    {
        "name": "grads-of-two-backwards",
        "truth": ("layernorm_backward", "dx"),
        "also": [("layernorm_backward", "")],
        "change": [
            (
                "return torch.autograd.grad(out, leaves, dout, retain_graph=True)",
                "out.backward(dout, retain_graph=True)\n        return [a.grad for a in leaves]",
            )
        ],
        "reason": ".grad adds up: dx is doubled where the parameters' backward came first.",
    },
    # linear
    {
        "name": "bias-gradient-mean",
        "truth": ("linear_backward_params", "dbias"),
        "also": [],
        "change": [("x.t() @ dout, dout.sum(dim=0)", "x.t() @ dout, dout.mean(dim=0)")],
        "reason": "The mean over the tokens, where it is their sum.",
    },
    {
        "name": "autocast-left-on",
        "truth": ("linear", "out"),
        "also": [],
        "change": [
            (
                "return F.linear(x, weight.t(), bias)",
                'with torch.autocast("cpu", torch.bfloat16):\n'
                "        return F.linear(x, weight.t(), bias).to(x.dtype)",
            )
        ],
        "reason": "float32 is multiplied in bfloat16; autocast leaves float64 alone.",
    },
    {
        "name": "view-for-transpose",
        "truth": ("linear_backward", "dx"),
        "also": [],
        "change": [
            ("return dout @ weight.t()", "return dout @ weight.reshape(weight.shape[::-1])")
        ],
        "reason": "A reshape has the transpose's shape, but not its numbers.",
    },
    # gelu
    {
        "name": "gelu-exact",
        "truth": ("gelu", "out"),
        "also": [],
        "change": [
            ("return gelu_new(x)\n\n    @staticmethod", "return F.gelu(x)\n\n    @staticmethod")
        ],
        "reason": "F.gelu is the form with erf by default; its backward is of the tanh form.",
    },
    {
        "name": "gelu-square-of-inner",
        "truth": ("gelu_backward", "dx"),
        "also": [],
        "change": [
            ("0.5 * x * (1 - tanh.square()) * slope", "0.5 * x * (1 - inner.square()) * slope")
        ],
        "reason": "The derivative of tanh is 1 - tanh^2; here tanh's argument is squared.",
    },
    {
        "name": "gelu-slope-of-square-missing",
        "truth": ("gelu_backward", "dx"),
        "also": [],
        "change": [
            (
                "(1 + 3 * 0.044715 * x.square())\n        return",
                "(1 + 3 * 0.044715 * x)\n        return",
            )
        ],
        "reason": "The derivative of x^3 is taken for 3 x.",
    },
    {
        "name": "gelu-graph-by-last-call",
        "truth": ("gelu_backward", ""),
        "also": [("gelu_backward", "dx")],
        "change": [
            ("ctx.save_for_backward(x)\n", "Gelu.x = x\n"),
            ("(x,) = ctx.saved_tensors", "x = Gelu.x"),
        ],
        "reason": "The input is kept on the class, so every backward reads the last call's.",
    },
    # attention
    {
        "name": "scale-by-heads",
        "truth": ("attention", "z"),
        "also": _LOSS,
        "change": [("math.sqrt(q.shape[-1])", "math.sqrt(q.shape[1])")],
        "reason": "In (B, NH, T, hs) axis 1 is the heads.",
    },
    {
        "name": "mask-at-other-end",
        "truth": ("attention", "z"),
        "also": [],
        "change": [
            (
                "real = torch.stack([slots >= longest - n for n in lengths])",
                "real = torch.stack([slots < n for n in lengths])",
            )
        ],
        "reason": "Prefixes are padded before, and the mask takes them for padded behind.",
    },
    {
        "name": "padded-slots-visible",
        "truth": ("attention", "z"),
        "also": [],
        "change": [
            (
                "real = torch.stack([slots >= longest - n for n in lengths])",
                "real = torch.stack([slots >= 0 for n in lengths])",
            )
        ],
        "reason": "The zeros before a shorter prefix are keys with a score of 0.",
    },
    {
        "name": "mask-after-softmax",
        "truth": ("attention", "z"),
        "also": _LOSS,
        "change": [
            (
                'scores.masked_fill(~mask, float("-inf")).softmax(dim=-1)',
                "scores.softmax(dim=-1).masked_fill(~mask, 0)",
            )
        ],
        "reason": "The weights of the future are put to 0 after they took part in the sum.",
    },
    {
        "name": "softmax-in-float32",
        "truth": ("attention", "z"),
        "also": _LOSS,
        "change": [
            (
                ".softmax(dim=-1)\n    return pattern",
                ".softmax(dim=-1, dtype=torch.float32)\n    pattern = pattern.to(v.dtype)\n"
                "    return pattern",
            )
        ],
        "reason": "The softmax is always in float32, as for half precision: float64 loses digits.",
    },
    {
        "name": "dropout-left-on",
        "truth": ("attention", "z"),
        "also": [*_LOSS, ("attention", "")],
        "change": [("return pattern @ v", "return F.dropout(pattern, 0.1) @ v")],
        "reason": "F.dropout is on by default: two calls differ.",
    },
    {
        "name": "unpad-from-end",
        "truth": ("attention", "z"),
        "also": [],
        "change": [("torch.cat([batch[b, :n] for", "torch.cat([batch[b, -n:] for")],
        "reason": "The padding is behind; the rows are taken from the end.",
    },
    {
        "name": "prefix-gradients-interleaved",
        "truth": ("attention_backward", "dprefix_k[]"),
        "also": [("attention_backward", "dprefix_v[]")],
        "change": [("rest[:B], rest[B:]", "rest[::2], rest[1::2]")],
        "reason": "The leaves are all keys and then all values, not pairs: one sequence is right.",
    },
    {
        "name": "mask-cached-by-shape",
        "truth": ("attention", ""),
        "also": [("attention", "z")],
        "change": [
            ("def visible(lengths, T):", "MASKS = {}\n\n\ndef visible(lengths, T):"),
            (
                "    slots = torch.arange(longest)\n    real = torch",
                "    key = (len(lengths), longest, T)\n    if key in MASKS:\n"
                "        return MASKS[key]\n"
                "    slots = torch.arange(longest)\n    real = torch",
            ),
            (
                "    return torch.cat(\n        [real[:, None, :]",
                "    MASKS[key] = torch.cat(\n        [real[:, None, :]",
            ),
            ("dim=2\n    )[:, None]\n", "dim=2\n    )[:, None]\n    return MASKS[key]\n"),
        ],
        "reason": "The mask is kept by the batch's shape, without the shorter prefixes' lengths.",
    },
    {
        "name": "prefix-behind-tokens",
        "truth": ("attention", "z"),
        "also": [],
        "change": [
            (
                "torch.cat([pad_prefixes(self.prefix_k), keys], dim=2)",
                "torch.cat([keys, pad_prefixes(self.prefix_k)], dim=2)",
            ),
            (
                "torch.cat([pad_prefixes(self.prefix_v), values], dim=2)",
                "torch.cat([values, pad_prefixes(self.prefix_v)], dim=2)",
            ),
        ],
        "reason": "The prefix comes behind the tokens; the mask has it before them.",
    },
    {
        "name": "zero-pads-of-first-length",
        "truth": ("attention", "z"),
        "also": [],
        "change": [
            ("longest = max(p.shape[1] for p in prefixes)", "longest = prefixes[0].shape[1]")
        ],
        "reason": "Prefixes are padded, or cut, to the first one's length, the mask is not.",
    },
    # cross-entropy
    {
        "name": "log-of-softmax",
        "truth": ("cross_entropy", "loss"),
        "also": [("cross_entropy_backward", "dlogits")],
        "change": [("-start.log_softmax(dim=-1)", "-start.softmax(dim=-1).log()")],
        "reason": "A probability that underflows to 0 has the log -inf.",
    },
    {
        "name": "target-zero-ignored",
        "truth": ("cross_entropy", "loss"),
        "also": [],
        "change": [
            (
                "-start.log_softmax(dim=-1).gather(1, targets[:, None])[:, 0]",
                'F.cross_entropy(start, targets, reduction="none", ignore_index=0)',
            )
        ],
        "reason": "Token 0 is an ordinary target; here it is taken for padding.",
    },
    {
        "name": "column-times-row",
        "truth": ("cross_entropy", "loss"),
        "also": [],
        "change": [("gather(1, targets[:, None])[:, 0]", "gather(1, targets[:, None])")],
        "reason": "(M,) times (M, 1) is (M, M): every weight meets every target's nll.",
    },
    {
        "name": "softmax-over-targets",
        "truth": ("cross_entropy", "loss"),
        "also": [],
        "change": [("-start.log_softmax(dim=-1)", "-start.log_softmax(dim=0)")],
        "reason": "The softmax is over the rows, not over the vocabulary.",
    },
    # run_model
    {
        "name": "parallel-residual",
        "truth": ("run_model", "loss"),
        "also": _LOSS,
        "change": [
            (
                "        x = x + mixed\n        return x + self.mlp(self.ln_2(x)), seen",
                "        return x + mixed + self.mlp(self.ln_2(x)), seen",
            )
        ],
        "reason": "The MLP reads what attention reads, as in GPT-J; in GPT-2 it comes after it.",
    },
    {
        "name": "inner-always-four-times",
        "truth": ("run_model", "loss"),
        "also": [*_LOSS, ("run_model", "")],
        "change": [("inner = config.n_inner or 4 * config.n_embd", "inner = 4 * config.n_embd")],
        "reason": "n_inner is ignored: a checkpoint that has it does not load.",
    },
    {
        "name": "labels-padded-with-zero",
        "truth": ("run_model", "loss"),
        "also": [("run_training", "step.0.loss")],
        "change": [
            (
                "pad_sequence(rows, batch_first=True, padding_value=IGNORED)",
                "pad_sequence(rows, batch_first=True)",
            )
        ],
        "reason": "Behind a short sequence the labels are token 0 and count.",
    },
    {
        "name": "padding-beyond-positions",
        "truth": ("run_model", "loss"),
        "also": [*_LOSS, ("run_model", ""), ("run_decoding", "")],
        "change": [
            (
                "(torch.tensor(starts)[:, None] + steps).clamp(max=n_positions - 1)",
                "torch.tensor(starts)[:, None] + steps",
            )
        ],
        "reason": "A short sequence with a late start is padded beyond the table of positions.",
    },
    {
        "name": "positions-of-first-sequence",
        "truth": ("run_model", "loss"),
        "also": _LOSS,
        "change": [
            (
                "(torch.tensor(starts)[:, None] + steps).clamp",
                "(torch.tensor(starts[0]) + steps).expand(len(starts), -1).clamp",
            )
        ],
        "reason": "Every sequence starts where the first one does.",
    },
    {
        "name": "prefix-of-lowest-layer",
        "truth": ("run_model", "loss"),
        "also": _LOSS,
        "change": [("self.attn = Attention(config, i)", "self.attn = Attention(config, 0)")],
        "reason": "Every layer reads the keys and values of layer 0's past.",
    },
    {
        "name": "qkv-as-kqv",
        "truth": ("run_model", "loss"),
        "also": _LOSS,
        "change": [
            ("        q, k, v = (\n            a.view", "        k, q, v = (\n            a.view")
        ],
        "reason": "c_attn's columns are q, k, v; they are read as k, q, v.",
    },
    {
        "name": "heads-not-brought-back",
        "truth": ("run_model", "loss"),
        "also": [("run_training", "step.0.loss")],
        "change": [("z.transpose(1, 2).reshape(B, T, C)", "z.reshape(B, T, C)")],
        "reason": "The heads' axis stays before the tokens': right for one token, or one head.",
    },
    {
        "name": "divided-after-backward",
        "truth": ("run_model", "prefix.0.dk"),
        "also": [("run_model", f"prefix.{i}.d{a}") for i in (0, 1, 2) for a in "kv"],
        "change": [
            (
                '    if problem.reduction == "mean":\n        loss = loss / count\n'
                "    loss.backward()\n",
                '    loss.backward()\n    if problem.reduction == "mean":\n'
                "        loss = loss / count\n",
            )
        ],
        "reason": "The loss is the mean, and the gradients are the sum's.",
    },
    {
        "name": "unseen-prefix-without-gradient",
        "truth": ("run_model", "prefix.1.dk"),
        "also": [("run_model", f"prefix.{i}.dk") for i in (0, 2)] + [("run_model", "")],
        "change": [
            ("torch.zeros_like(prefix) if prefix.grad is None else prefix.grad", "prefix.grad")
        ],
        "reason": "A prefix that no sequence sees has no .grad, and the call raises.",
    },
    # run_decoding
    {
        "name": "decoding-from-position-zero",
        "truth": ("run_decoding", "logits"),
        "also": [],
        "change": [
            (
                "model(tokens[:, t : t + 1], positions[:, t : t + 1], past)",
                "model(tokens[:, t : t + 1], torch.full_like(positions[:, :1], t), past)",
            )
        ],
        "reason": "The position is the number of tokens fed; the start is forgotten.",
    },
    {
        "name": "decoding-rows-with-padding",
        "truth": ("run_decoding", "logits"),
        "also": [],
        "change": [
            (
                "torch.cat([logits[b, :n] for b, n in enumerate(lengths)])",
                "logits.flatten(0, 1)[: int(lengths.sum())]",
            )
        ],
        "reason": "The rows behind a short sequence are padding and are handed over as logits.",
    },
    {
        "name": "past-in-float32",
        "truth": ("run_decoding", "logits"),
        "also": [],
        "change": [
            ("[keys for keys, _ in layers]", "[keys.float() for keys, _ in layers]"),
            ("[values for _, values in layers]", "[values.float() for _, values in layers]"),
        ],
        "reason": "The cache of a float64 model is kept in float32.",
    },
    # run_training
    {
        "name": "sum-of-norms",
        "truth": ("run_training", "step.1.prefix.0.kv"),
        "also": _after(1, 0, 1) + _after(0, 0, 1),
        "change": [("for p in parameters]).norm()", "for p in parameters]).sum()")],
        "reason": "The norms of the arrays are added; their squares are to be added.",
    },
    {
        "name": "clip-also-lengthens",
        "truth": ("run_training", "step.1.prefix.0.kv"),
        "also": [a for s in range(5) for a in _after(s, 0, 1)],
        "change": [
            (
                "    if norm > limit:\n        for p in parameters:\n"
                "            p.grad *= limit / norm",
                "    for p in parameters:\n        p.grad *= limit / norm",
            )
        ],
        "reason": "A gradient that is shorter than the limit is scaled up to it.",
    },
    {
        "name": "gradients-not-cleared",
        "truth": ("run_training", "step.1.prefix.0.kv"),
        "also": _after(1, 0, 1),
        "change": [("        optimizer.zero_grad(set_to_none=False)\n", "")],
        "reason": "Each step adds its gradients to those of the steps before.",
    },
    {
        "name": "schedule-before-step",
        "truth": ("run_training", "step.0.prefix.0.kv"),
        "also": _after(0, 0, 1),
        "change": [
            (
                "        optimizer.step()\n        schedule.step()\n",
                "        schedule.step()\n        optimizer.step()\n",
            )
        ],
        "reason": "The schedule moves first: each step has the next one's rate.",
    },
    {
        "name": "fall-one-early",
        "truth": ("run_training", "step.0.prefix.0.kv"),
        "also": [a for s in range(4) for a in _after(s, 0, 1)],
        "change": [
            (
                "(steps - step) / max(1, steps - problem.warmup)",
                "(steps - 1 - step) / max(1, steps - problem.warmup)",
            )
        ],
        "reason": "The rate is 0 at the last step; it must be 0 at the step behind it.",
    },
    {
        "name": "betas-by-default",
        "truth": ("run_training", "step.1.prefix.0.kv"),
        "also": _after(1, 0, 1),
        "change": [("        betas=(problem.beta1, problem.beta2),\n", "")],
        "reason": "The problem's betas do not reach the optimizer.",
    },
    {
        "name": "amsgrad-on",
        "truth": ("run_training", "step.1.prefix.0.kv"),
        "also": [a for s in range(1, 5) for a in _after(s, 0, 1)],
        "change": [("eps=problem.eps,\n", "eps=problem.eps,\n        amsgrad=True,\n")],
        "reason": "The largest second moment so far divides, not the present one.",
    },
    {
        "name": "slots-not-permuted",
        "truth": ("run_training", "step.0.loss"),
        "also": [],
        "change": [
            (
                "flat.view(-1, *self.shape).permute(1, 2, 3, 0, 4)",
                "flat.view(*self.shape[:3], -1, self.shape[3])",
            )
        ],
        "reason": "The slots come first in the flat output; a view takes them for the fourth axis.",
    },
    {
        "name": "loss-of-last-micro-batch",
        "truth": ("run_training", "step.0.loss"),
        "also": [("run_training", f"step.{s}.loss") for s in (1, 2)],
        "change": [("loss += total.item() / count", "loss = total.item() / count")],
        "reason": "Of a step's micro-batches only the last one's share is reported.",
    },
    {
        "name": "training-from-position-zero",
        "truth": ("run_training", "step.0.loss"),
        "also": [],
        "change": [("[made[p].shape[3] for p in batch.prefix_of]", "[0 for p in batch.prefix_of]")],
        "reason": "The first token is at position 0 in training; it must be at position P.",
    },
    {
        "name": "first-prefix-trained",
        "truth": ("run_training", "step.0.prefix.1.kv"),
        "also": _after(0, 0, 1),
        "change": [
            (
                "parameters = list(prefixes.parameters())",
                "parameters = list(prefixes[0].parameters())",
            )
        ],
        "reason": "The optimizer has the first prefix alone.",
    },
    {
        "name": "biases-without-decay",
        "truth": ("run_training", "step.0.prefix.0.bias_1"),
        "also": [("run_training", f"step.0.prefix.{i}.bias_{j}") for i in (0, 1) for j in (1, 2)],
        "change": [
            (
                "    optimizer = torch.optim.AdamW(\n        parameters,\n",
                "    biases = [p for p in parameters if p.ndim == 1]\n"
                "    others = [p for p in parameters if p.ndim > 1]\n"
                "    optimizer = torch.optim.AdamW(\n"
                '        [{"params": others}, {"params": biases, "weight_decay": 0.0}],\n',
            )
        ],
        "reason": "Biases are left out of the decay, as trainers of whole models do.",
    },
]
