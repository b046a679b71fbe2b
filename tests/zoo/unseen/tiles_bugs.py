"""Mistakes to plant in `tiles.py`: where each is, and what is wrong. See `unseen2.md`."""

_DQ = [("attention_backward", d) for d in ("dk", "dv", "dprefix_k[]", "dprefix_v[]")]


def _after(step, *prefixes):
    """The parameters that a step leaves, whichever a problem has."""
    names = ("kv", "embedding", "weight_1", "bias_1", "weight_2", "bias_2")
    return [("run_training", f"step.{step}.prefix.{i}.{name}") for i in prefixes for name in names]


BUGS = [
    # embed
    {
        "name": "embed-positions-of-first-tile",
        "truth": ("embed", "x"),
        "also": [],
        "change": [("+= wpe[positions[lo:hi]]", "+= wpe[positions[: hi - lo]]")],
        "reason": "Every tile of tokens takes the first tile's positions.",
    },
    {
        "name": "embed-into-workspace",
        "truth": ("embed", ""),
        "also": [("embed", "x")],
        "change": [
            (
                "x = np.empty((len(tokens), wte.shape[1]), wte.dtype)",
                'x = work.take("x", (len(tokens), wte.shape[1]), wte.dtype)',
            )
        ],
        "reason": "The result lives in a buffer that the next call of embed overwrites.",
    },
    {
        "name": "embed-panel-ends-early",
        "truth": ("embed_backward_params", "dwte"),
        "also": [("embed_backward_params", "dwpe")],
        "change": [
            ("np.searchsorted(ordered, (lo, hi))", "np.searchsorted(ordered, (lo, hi - 1))")
        ],
        "reason": "The last token of every vocabulary panel gets no gradient.",
    },
    {
        "name": "embed-rows-not-sorted",
        "truth": ("embed_backward_params", "dwte"),
        "also": [("embed_backward_params", "dwpe")],
        "change": [("dx[order[first:last]]", "dx[first:last]")],
        "reason": "The indices are sorted, the rows of dx that belong to them are not.",
    },
    {
        "name": "embed-positions-assigned",
        "truth": ("embed_backward_params", "dwpe"),
        "also": [],
        "change": [
            (
                "dwpe = add_rows(np.zeros(wpe.shape, wpe.dtype), positions, dx)",
                "dwpe = np.zeros(wpe.shape, wpe.dtype)\n    dwpe[positions] += dx",
            )
        ],
        "reason": "A fancy index adds a repeated position once: sequences share positions.",
    },
    # layernorm
    {
        "name": "moments-mean-of-means",
        "truth": ("layernorm", "out"),
        "also": [],
        "change": [("step * ((hi - lo) / hi)", "step / (lo // PANEL + 1)")],
        "reason": "The panels' means are averaged alike, but the last panel may be narrower.",
    },
    {
        "name": "moments-join-over-width",
        "truth": ("layernorm", "out"),
        "also": [],
        "change": [("step * step * (lo * (hi - lo) / hi)", "step * step * (lo * (hi - lo) / C)")],
        "reason": "Joining two panels divides by the columns so far, not by the whole width.",
    },
    {
        "name": "moments-of-raw-squares",
        "truth": ("layernorm", "out"),
        "also": [],
        "change": [
            (
                "((panel - its_mean) ** 2).sum(axis=1, keepdims=True)",
                "(panel**2).sum(axis=1, keepdims=True) - (hi - lo) * its_mean**2",
            )
        ],
        "reason": "E[x^2] - E[x]^2 cancels in float32 where the mean is far from 0.",
    },
    {
        "name": "layernorm-eps-as-floor",
        "truth": ("layernorm", "out"),
        "also": [],
        "change": [("1 / np.sqrt(variance + eps)", "1 / np.sqrt(np.maximum(variance, eps))")],
        "reason": "eps is a floor of the variance, where it must be added.",
    },
    {
        "name": "layernorm-backward-over-panel",
        "truth": ("layernorm_backward", "dx"),
        "also": [],
        "change": [
            ("(total + xhat[:, lo:hi] * along) / C", "(total + xhat[:, lo:hi] * along) / (hi - lo)")
        ],
        "reason": "The means are over the panel's columns; they must be over all of C.",
    },
    {
        "name": "layernorm-along-without-gain",
        "truth": ("layernorm_backward", "dx"),
        "also": [],
        "change": [
            (
                "along += (dx[:, lo:hi] * xhat[:, lo:hi])",
                "along += (dout[:, lo:hi] * xhat[:, lo:hi])",
            )
        ],
        "reason": "The second mean is of dout * xhat; the gain is missing.",
    },
    {
        "name": "layernorm-dgain-in-workspace",
        "truth": ("layernorm_backward_params", ""),
        "also": [("layernorm_backward_params", "dgain")],
        "change": [
            ("dgain = np.zeros_like(gain)", 'dgain = work.zeros("dgain", gain.shape, gain.dtype)')
        ],
        "reason": "dgain is a buffer that the next layer's call fills again.",
    },
    {
        "name": "layernorm-dbias-last-tile",
        "truth": ("layernorm_backward_params", "dbias"),
        "also": [],
        "change": [
            (
                "xhat[lo:hi]).sum(axis=0)\n        dbias += dout",
                "xhat[lo:hi]).sum(axis=0)\n        dbias = dout",
            )
        ],
        "reason": "Each tile of rows replaces dbias instead of adding to it.",
    },
    # linear
    {
        "name": "linear-bias-per-panel",
        "truth": ("linear", "out"),
        "also": [],
        "change": [
            ("panel[...] = 0 if bias is None else bias[left:right]", "panel[...] = 0"),
            (
                "            panel += np.matmul(x[:, lo:hi]",
                "            if bias is not None:\n"
                "                panel += bias[left:right]\n"
                "            panel += np.matmul(x[:, lo:hi]",
            ),
        ],
        "reason": "The bias is added once for each panel of the input's width.",
    },
    {
        "name": "linear-no-bias-not-cleared",
        "truth": ("linear", "out"),
        "also": [],
        "change": [
            (
                "panel[...] = 0 if bias is None else bias[left:right]",
                "if bias is not None:\n            panel[...] = bias[left:right]",
            )
        ],
        "reason": "Without a bias the sum starts at whatever the memory held.",
    },
    {
        "name": "linear-dx-last-panel",
        "truth": ("linear_backward", "dx"),
        "also": [],
        "change": [("dx[:, lo:hi] += np.matmul(dout", "dx[:, lo:hi] = np.matmul(dout")],
        "reason": "Each panel of outputs replaces dx: only the last one is left.",
    },
    {
        "name": "linear-dweight-last-tile",
        "truth": ("linear_backward_params", "dweight"),
        "also": [],
        "change": [
            (
                "dweight += np.matmul(x[lo:hi].T, dout[lo:hi], out=product)",
                "np.matmul(x[lo:hi].T, dout[lo:hi], out=dweight)",
            )
        ],
        "reason": "Each tile of rows is written over the one before.",
    },
    {
        "name": "linear-dweight-in-workspace",
        "truth": ("linear_backward_params", ""),
        "also": [("linear_backward_params", "dweight")],
        "change": [
            (
                "dweight = np.zeros((x.shape[1], dout.shape[1]), dout.dtype)",
                'dweight = work.zeros("sum", (x.shape[1], dout.shape[1]), dout.dtype)',
            )
        ],
        "reason": "dweight is a buffer; the next call of as many numbers or fewer fills it again.",
    },
    # gelu
    {
        "name": "gelu-slope-typed",
        "truth": ("gelu", "out"),
        "also": [("gelu_backward", "dx")],
        "change": [("SLOPE = math.sqrt(2 / math.pi)", "SLOPE = 0.79788")],
        "reason": "sqrt(2/pi) is typed with five digits.",
    },
    {
        "name": "gelu-inner-derivative",
        "truth": ("gelu_backward", "dx"),
        "also": [],
        "change": [("SLOPE * (1 + 3 * CUBIC * square)", "SLOPE * (1 + CUBIC * square)")],
        "reason": "The derivative of x^3 is 3 x^2; the 3 is missing.",
    },
    {
        "name": "gelu-overwritten-first",
        "truth": ("gelu", "out"),
        "also": [],
        "change": [
            (
                "        out[lo:hi] = rows * half\n"
                "        x[lo:hi] = half + 0.5 * rows * (1 - tanh * tanh) * inner\n",
                "        x[lo:hi] = half + 0.5 * rows * (1 - tanh * tanh) * inner\n"
                "        out[lo:hi] = rows * half\n",
            )
        ],
        "reason": "`rows` is a view of x, which holds the derivative by now.",
    },
    {
        "name": "gelu-tanh-by-exponentials",
        "truth": ("gelu", "out"),
        "also": [],
        "change": [
            (
                "tanh = np.tanh(SLOPE * rows * (1 + CUBIC * square))",
                "power = np.exp(2 * SLOPE * rows * (1 + CUBIC * square))\n"
                "        tanh = (power - 1) / (power + 1)",
            )
        ],
        "reason": "For large x the exponential overflows, and inf / inf is nan.",
    },
    {
        "name": "gelu-derivative-in-workspace",
        "truth": ("gelu_backward", ""),
        "also": [("gelu_backward", "dx"), ("gelu", "")],
        "change": [
            (
                "    out = np.empty_like(x)\n",
                "    out = np.empty_like(x)\n"
                '    derivative = work.take("derivative", x.shape, x.dtype)\n',
            ),
            ("x[lo:hi] = half + 0.5", "derivative[lo:hi] = half + 0.5"),
            ('{"derivative": x}', '{"derivative": derivative}'),
        ],
        "reason": "All layers keep their derivative in the same buffer: the last one's is there.",
    },
    # attention
    {
        "name": "mask-finite",
        "truth": ("attention", "z"),
        "also": [],
        "change": [("np.copyto(scores, -np.inf,", "np.copyto(scores, -1e4,")],
        "reason": "The future has a score of -10000: a row of very low scores sees it.",
    },
    {
        "name": "mask-query-from-tile",
        "truth": ("attention", "z"),
        "also": [],
        "change": [("np.arange(first, first + shape[1])", "np.arange(shape[1])")],
        "reason": "Queries are counted from their tile's start, keys from the sequence's.",
    },
    {
        "name": "running-sum-not-shrunk",
        "truth": ("attention", "z"),
        "also": [],
        "change": [
            (
                "            total *= shrink\n            total += s.sum",
                "            total += s.sum",
            )
        ],
        "reason": "A new maximum rescales the mixed values, but not the sum of the weights.",
    },
    {
        "name": "lse-base-two",
        "truth": ("attention_backward", "dq"),
        "also": _DQ,
        "change": [
            ("highest + np.log(total)\n    return z", "highest + np.log2(total)\n    return z")
        ],
        "reason": "The log of the sum is kept to base 2, and the backward takes exp.",
    },
    {
        "name": "scale-in-dq-alone",
        "truth": ("attention_backward", "dk"),
        "also": [("attention_backward", "dprefix_k[]")],
        "change": [
            ("            dscores *= scale\n", ""),
            ("+= dscores @ keys[:, lo:hi]", "+= scale * (dscores @ keys[:, lo:hi])"),
        ],
        "reason": "The scale was moved into the line of dq, so the keys' gradient lacks it.",
    },
    {
        "name": "dv-last-query-tile",
        "truth": ("attention_backward", "dv"),
        "also": [("attention_backward", "dprefix_v[]")],
        "change": [("dvalues[:, lo:hi] += pattern", "dvalues[:, lo:hi] = pattern")],
        "reason": "Each tile of queries replaces the gradient of the values.",
    },
    {
        "name": "dscores-over-pattern",
        "truth": ("attention_backward", "dq"),
        "also": _DQ,
        "change": [('work.take("dscores", pattern.shape', 'work.take("scores", pattern.shape')],
        "reason": "Both tiles have one name, so dscores is written over the pattern.",
    },
    {
        "name": "dprefix-in-workspace",
        "truth": ("attention_backward", ""),
        "also": [("attention_backward", "dprefix_k[]"), ("attention_backward", "dprefix_v[]")],
        "change": [
            (
                "dpk, dpv = np.zeros_like(pk), np.zeros_like(pv)",
                'dpk, dpv = (work.zeros(n, pk.shape, pk.dtype) for n in ("dpk", "dpv"))',
            )
        ],
        "reason": "All sequences' prefix gradients are views of one buffer: the last one's stays.",
    },
    {
        "name": "heads-by-reshape",
        "truth": ("attention", "z"),
        "also": [],
        "change": [
            (
                "heads_first = [a[here].transpose(1, 0, 2) for a in (q, k, v)]",
                "heads_first = [a[here].reshape(a.shape[1], -1, a.shape[2]) for a in (q, k, v)]",
            )
        ],
        "reason": "A reshape to (NH, T, hs) mixes heads and tokens; it takes a transpose.",
    },
    {
        "name": "scale-of-64",
        "truth": ("attention", "z"),
        "also": [],
        "change": [
            (
                "lse = np.empty((NH, T), q.dtype)\n    scale = 1 / math.sqrt(hs)",
                "lse = np.empty((NH, T), q.dtype)\n    scale = 0.125",
            ),
            (
                "P = pk.shape[1]\n    scale = 1 / math.sqrt(hs)",
                "P = pk.shape[1]\n    scale = 0.125",
            ),
        ],
        "reason": "1/sqrt(64) is written as a number; other head sizes get it, too.",
    },
    {
        "name": "queries-scaled-in-place",
        "truth": ("attention", ""),
        "also": [("attention_backward", "dq"), ("attention", "cache.q"), *_DQ],
        "change": [
            (
                "lse = np.empty((NH, T), q.dtype)\n    scale = 1 / math.sqrt(hs)\n",
                "lse = np.empty((NH, T), q.dtype)\n    q *= 1 / math.sqrt(hs)\n",
            ),
            (
                "of_prefix, first, lo, scale)\n            higher",
                "of_prefix, first, lo, 1)\n            higher",
            ),
        ],
        "reason": "q is scaled in place, and it is a view of the caller's array.",
    },
    {
        "name": "delta-of-tile-queries",
        "truth": ("attention_backward", "dq"),
        "also": _DQ,
        "change": [
            ("dscores -= delta[:, rows, None]", "dscores -= delta[:, : last - first, None]")
        ],
        "reason": "Every tile of queries subtracts the first tile's delta.",
    },
    {
        "name": "future-prefix-tiles-skipped",
        "truth": ("attention_backward", "dq"),
        "also": [("attention_backward", d) for d in ("dprefix_k[]", "dprefix_v[]")],
        "change": [("if not of_prefix and last <= lo:", "if last <= lo:")],
        "reason": "The test for the future is made of prefix slots, too: they have no future.",
    },
    # cross-entropy
    {
        "name": "target-at-panel-start",
        "truth": ("cross_entropy", "loss"),
        "also": [],
        "change": [("(targets >= lo) & (targets < hi)", "(targets > lo) & (targets < hi)")],
        "reason": "A target that is a panel's first entry keeps the logit 0.",
    },
    {
        "name": "maximum-of-batch",
        "truth": ("cross_entropy", "loss"),
        "also": [("cross_entropy_backward", "dlogits")],
        "change": [("panel.max(axis=1))\n        total", "panel.max())\n        total")],
        "reason": "One maximum for all rows: a row far below it underflows to log(0).",
    },
    {
        "name": "loss-over-weights",
        "truth": ("cross_entropy", "loss"),
        "also": [],
        "change": [
            ("((lse - chosen) * weights).sum()", "((lse - chosen) * weights).sum() / weights.sum()")
        ],
        "reason": "A weighted mean, where the contract has a weighted sum.",
    },
    {
        "name": "minus-one-after-weights",
        "truth": ("cross_entropy_backward", "dlogits"),
        "also": [],
        "change": [("targets] -= weights\n", "targets] -= 1\n")],
        "reason": "The 1 of the target comes after the weights and is not weighted.",
    },
    {
        "name": "nll-into-weights",
        "truth": ("cross_entropy", ""),
        "also": [("cross_entropy_backward", "dlogits"), ("cross_entropy", "cache.weights")],
        "change": [
            (
                "((lse - chosen) * weights).sum()",
                "np.multiply(lse - chosen, weights, out=weights).sum()",
            )
        ],
        "reason": "The weighted nll is written into the caller's weights; the backward reads them.",
    },
    # run_model
    {
        "name": "ln-f-eps-typed",
        "truth": ("run_model", "logits"),
        "also": [("run_model", "loss"), ("run_training", "step.0.loss")],
        "change": [
            (
                "eps = self.config.layer_norm_epsilon\n        self.ln_f_out",
                "eps = 1e-5\n        self.ln_f_out",
            )
        ],
        "reason": "ln_f has GPT-2's usual eps whatever the config says.",
    },
    {
        "name": "positions-from-prefix-length",
        "truth": ("run_model", "blocks.0.resid_pre"),
        "also": [("run_model", "loss"), ("run_model", "blocks.0.attn.q"), ("run_model", "logits")],
        "change": [("[starts[p] + np.arange(n)", "[prefixes[p].shape[3] + np.arange(n)")],
        "reason": "The first position is taken from P, not from position_offsets.",
    },
    {
        "name": "predicts-itself",
        "truth": ("run_model", "logits"),
        "also": [("run_model", "loss"), ("run_training", "step.0.loss")],
        "change": [("np.arange(first - 1, n - 1)", "np.arange(first, n)")],
        "reason": "The rows are the targets' own: each token predicts itself.",
    },
    {
        "name": "mean-over-tokens",
        "truth": ("run_model", "loss"),
        "also": [("run_model", "dlogits")],
        "change": [("share = 1 / len(targets)", "share = 1 / len(model.tokens)")],
        "reason": "The mean is over all tokens, where it must be over the targets.",
    },
    {
        "name": "shared-prefix-last-sequence",
        "truth": ("run_model", "prefix.0.dk"),
        "also": [("run_model", f"prefix.{i}.d{a}") for i in (0, 1, 2) for a in "kv"]
        + [("run_training", "step.0.prefix.0.gradient.kv"), *_after(0, 0, 1)],
        "change": [
            ("dprefixes[p][i, 0] += dkeys[b]", "dprefixes[p][i, 0] = dkeys[b]"),
            ("dprefixes[p][i, 1] += dvalues[b]", "dprefixes[p][i, 1] = dvalues[b]"),
        ],
        "reason": "Of several sequences with one prefix, the last one's gradient is kept.",
    },
    {
        "name": "tied-table-overwritten",
        "truth": ("run_model", "dwte.weight"),
        "also": [],
        "change": [("self.grads[name] + gradient if name in self.grads else gradient", "gradient")],
        "reason": "The gradient by the embedding replaces the gradient by the tied head.",
    },
    {
        "name": "dx-not-cleared",
        "truth": ("run_model", "blocks.2.dresid_post"),
        "also": [
            *(("run_model", f"blocks.{i}.dresid_post") for i in (0, 1, 3)),
            ("run_model", "prefix.0.dk"),
            ("run_model", ""),
            *_after(0, 0, 1),
        ],
        "change": [
            (
                "dx = np.zeros((len(self.tokens), self.config.n_embd), dlogits.dtype)",
                'dx = work.take("dx", (len(self.tokens), self.config.n_embd), dlogits.dtype)',
            )
        ],
        "reason": "Rows without a target keep what the buffer held from an earlier call.",
    },
    {
        "name": "record-changed-later",
        "truth": ("run_model", "blocks.2.dresid_post"),
        "also": [("run_model", f"blocks.{i}.dresid_post") for i in (0, 1, 3)],
        "change": [
            (
                "dx = dx + layernorm_backward(dln_2, self.ln_2)",
                "dx += layernorm_backward(dln_2, self.ln_2)",
            )
        ],
        "reason": "What was recorded as dresid_post is the array that becomes dresid_mid.",
    },
    {
        "name": "qkv-by-head",
        "truth": ("run_model", "blocks.0.attn.q"),
        "also": [("run_model", f"blocks.0.attn.{a}") for a in "kv"]
        + [("run_model", "loss"), ("run_training", "step.0.loss")],
        "change": [
            (
                "(qkv[:, j * C : (j + 1) * C].reshape(N, self.NH, -1) for j in range(3))",
                "qkv.reshape(N, self.NH, 3, -1).transpose(2, 0, 1, 3)",
            )
        ],
        "reason": "c_attn's columns are read as q, k, v of each head: GPT-2 has all of q first.",
    },
    {
        "name": "untied-head-ignored",
        "truth": ("run_model", "logits"),
        "also": [("run_model", "loss"), ("run_decoding", "logits")],
        "change": [
            (
                'self.weights["wte.weight" if tied else "lm_head.weight"].T',
                'self.weights["wte.weight"].T',
            ),
            (
                '        """(C, V)"""\n        tied = self.config.tie_word_embeddings\n',
                '        """(C, V)"""\n',
            ),
        ],
        "reason": "The head is always the embedding's table, even where the config unties them.",
    },
    # run_decoding
    {
        "name": "past-grows-one-layer",
        "truth": ("run_decoding", "logits"),
        "also": [],
        "change": [("wider[:, :, :, :room] = self.store", "wider[i, :, :, :room] = self.store[i]")],
        "reason": "When the store is full, one layer moves and the others lose what they had.",
    },
    {
        "name": "past-without-newest",
        "truth": ("run_decoding", "logits"),
        "also": [],
        "change": [
            ("self.store[i, :, :, : self.length + 1]", "self.store[i, :, :, : self.length or 1]")
        ],
        "reason": "The newest token does not see itself, unless it is the first.",
    },
    {
        "name": "decoding-position-of-past",
        "truth": ("run_decoding", "logits"),
        "also": [],
        "change": [("[starts[b] + t for b in running]", "[pasts[b].length for b in running]")],
        "reason": "The position is the length of the past, which ignores position_offsets.",
    },
    {
        "name": "decoding-pasts-not-chosen",
        "truth": ("run_decoding", "logits"),
        "also": [],
        "change": [("[pasts[b] for b in running]", "pasts[: len(running)]")],
        "reason": "When an early sequence ends, the others continue with their neighbour's past.",
    },
    {
        "name": "decoding-past-by-prefix",
        "truth": ("run_decoding", "logits"),
        "also": [],
        "change": [
            (
                "pasts = [Past(problem.prefixes[p]) for p in problem.prefix_of]",
                "made = [Past(prefix) for prefix in problem.prefixes]\n"
                "    pasts = [made[p] for p in problem.prefix_of]",
            )
        ],
        "reason": "Sequences with the same prefix write into the same past.",
    },
    {
        "name": "decoding-sum-not-shrunk",
        "truth": ("run_decoding", "logits"),
        "also": [],
        "change": [("total = total * shrink + s.sum", "total = total + s.sum")],
        "reason": "From the second tile of keys on, the sum is not rescaled to the new maximum.",
    },
    # run_training
    {
        "name": "second-moment-by-beta1",
        "truth": ("run_training", "step.0.prefix.0.kv"),
        "also": _after(0, 0, 1),
        "change": [("v / (1 - problem.beta2**self.t)", "v / (1 - problem.beta1**self.t)")],
        "reason": "The second moment's bias is corrected with beta1.",
    },
    {
        "name": "decay-in-gradient",
        "truth": ("run_training", "step.0.prefix.0.kv"),
        "also": _after(0, 0, 1),
        "change": [
            (
                "for name, g in gradients.items():\n            m = ",
                "for name, g in gradients.items():\n"
                "            g = g + problem.weight_decay * parameters[name]\n            m = ",
            ),
            ("problem.eps) + problem.weight_decay * w)", "problem.eps))"),
        ],
        "reason": "Decay goes through the moments, as in Adam with L2, not AdamW.",
    },
    {
        "name": "optimizer-eps-in-root",
        "truth": ("run_training", "step.0.prefix.0.kv"),
        "also": _after(0, 0, 1),
        "change": [("(np.sqrt(vhat) + problem.eps)", "np.sqrt(vhat + problem.eps)")],
        "reason": "eps stands inside the square root.",
    },
    {
        "name": "fall-over-all-steps",
        "truth": ("run_training", "step.1.prefix.0.kv"),
        "also": _after(0, 0, 1) + _after(1, 0, 1) + _after(2, 0, 1),
        "change": [("/ (len(problem.steps) - problem.warmup)", "/ len(problem.steps)")],
        "reason": "After the warmup the rate falls from below lr: it divides by all steps.",
    },
    {
        "name": "clip-each-array",
        "truth": ("run_training", "step.1.prefix.0.kv"),
        "also": _after(0, 0, 1) + _after(1, 0, 1),
        "change": [
            (
                "    norm = math.sqrt(sum(float((g * g).sum()) for g in gradients.values()))\n"
                "    if limit is not None and norm > limit:\n"
                "        return {name: g * (limit / norm) for name, g in gradients.items()}\n"
                "    return gradients\n",
                "    if limit is None:\n"
                "        return gradients\n"
                "    norms = {n: float(np.linalg.norm(g)) for n, g in gradients.items()}\n"
                "    return {n: g * min(1, limit / max(norms[n], 1e-12)) "
                "for n, g in gradients.items()}\n",
            )
        ],
        "reason": "Each array is clipped by its own norm, not all by their common one.",
    },
    {
        "name": "mean-of-means",
        "truth": ("run_training", "step.0.loss"),
        "also": [("run_training", f"step.{s}.loss") for s in (1, 2)],
        "change": [
            ("len(targets), 1 / count,", "len(targets), 1 / (len(targets) * len(batches)),")
        ],
        "reason": "The micro-batches' means are averaged, whatever number of targets each has.",
    },
    {
        "name": "results-not-copied",
        "truth": ("run_training", "step.0.prefix.0.kv"),
        "also": _after(0, 0, 1),
        "change": [
            (
                'results[f"step.{s}.prefix.{i}.{name}"] = a.copy()',
                'results[f"step.{s}.prefix.{i}.{name}"] = a',
            )
        ],
        "reason": "All steps report the same array, which ends as the last step left it.",
    },
    {
        "name": "starting-point-overwritten",
        "truth": ("run_training", ""),
        "also": [],
        "change": [("own = [{name: a.copy() for", "own = [{name: a for")],
        "reason": "The problem's own parameters are trained in place.",
    },
    {
        "name": "reparametrised-keys-first",
        "truth": ("run_training", "step.0.loss"),
        "also": [],
        "change": [
            (
                "(config.n_layer, 2, config.n_head, config.head_size)",
                "(2, config.n_layer, config.n_head, config.head_size)",
            ),
            ("transpose(1, 2, 3, 0, 4)", "transpose(2, 1, 3, 0, 4)"),
            ("transpose(3, 0, 1, 2, 4)", "transpose(3, 1, 0, 2, 4)"),
        ],
        "reason": "The flat output is read as (P, 2, L, NH, hs), not (P, L, 2, NH, hs).",
    },
    {
        "name": "moments-by-name-alone",
        "truth": ("run_training", "step.0.prefix.1.kv"),
        "also": _after(0, 1) + _after(1, 0, 1),
        "change": [
            ("self.first.setdefault(name,", "self.first.setdefault(name[1],"),
            ("self.second.setdefault(name,", "self.second.setdefault(name[1],"),
        ],
        "reason": "Two prefixes' parameters of one name share their moments.",
    },
    {
        "name": "unused-prefix-stands-still",
        "truth": ("run_training", "step.1.prefix.0.kv"),
        "also": _after(0, 0, 1) + _after(1, 0, 1) + _after(2, 0, 1) + _after(3, 0, 1),
        "change": [
            (
                "for name, g in gradients.items():\n            m = ",
                "for name, g in gradients.items():\n"
                "            if not g.any():\n                continue\n            m = ",
            )
        ],
        "reason": "A prefix that a step does not use keeps its moments and does not decay.",
    },
    {
        "name": "reparametrised-made-once",
        "truth": ("run_training", "step.1.loss"),
        "also": [],
        "change": [
            (
                "        p = self.p\n        self.hidden = np.tanh",
                '        if hasattr(self, "made"):\n            return self.made\n'
                "        p = self.p\n        self.hidden = np.tanh",
            ),
            (
                "return flat.reshape(-1, *self.shape).transpose(1, 2, 3, 0, 4)",
                "self.made = flat.reshape(-1, *self.shape).transpose(1, 2, 3, 0, 4)\n"
                "        return self.made",
            ),
        ],
        "reason": "The prefix is made from its parameters once, and stays as it was at step 0.",
    },
    {
        "name": "tanh-derivative-of-input",
        "truth": ("run_training", "step.0.prefix.0.embedding"),
        "also": _after(0, 0, 1),
        "change": [("(1 - self.hidden**2)", "(1 - np.tanh(self.hidden) ** 2)")],
        "reason": "`hidden` is the tanh already; its derivative takes the tanh once more.",
    },
]
