"""Mistakes in `student.py`. Each `old` stands there exactly once; `truth` is the function and the
tensor that are wrong first ("" where an argument or a result is overwritten), `also` what may
rightly be named first instead."""

from typing import Any

BUGS: list[dict[str, Any]] = [
    # embed
    {
        "name": "embed-position-assigned",
        "truth": ("embed_backward_params", "dwpe"),
        "also": [],
        "change": [("dwpe[positions[n]] += dx[n]", "dwpe[positions[n]] = dx[n]")],
        "reason": "A position that occurs in two sequences keeps the last one's gradient only.",
    },
    {
        "name": "embed-sum-remembered",
        "truth": ("embed", "x"),
        "also": [],
        "change": [
            ("# --- embed\n", "# --- embed\n\nknown = {}\n"),
            (
                "        x[n] = wte[tokens[n]] + wpe[positions[n]]\n",
                "        key = (id(wte), int(tokens[n]), int(positions[n]))\n"
                "        if key not in known:\n"
                "            known[key] = wte[tokens[n]] + wpe[positions[n]]\n"
                "        x[n] = known[key]\n",
            ),
        ],
        "reason": "Sums are remembered by the table's id, and stay as they were when the table is"
        " trained in place.",
    },
    {
        "name": "embed-padding-token",
        "truth": ("embed_backward_params", "dwte"),
        "also": [],
        "change": [
            (
                "        dwte[tokens[n]] += dx[n]\n",
                "        if tokens[n] != 0:\n            dwte[tokens[n]] += dx[n]\n",
            )
        ],
        "reason": "Token 0 is taken for padding; here it is a token like the others.",
    },
    # layernorm
    {
        "name": "layernorm-variance-of-sample",
        "truth": ("layernorm", "out"),
        "also": [],
        "change": [
            (
                "return (difference * difference).sum() / len(row)",
                "return (difference * difference).sum() / (len(row) - 1)",
            )
        ],
        "reason": "The variance is the sample's, over C - 1.",
    },
    {
        "name": "layernorm-eps-ignored",
        "truth": ("layernorm", "out"),
        "also": [],
        "change": [
            (
                "std = math.sqrt(row_variance(x[n], mean) + eps)",
                "std = math.sqrt(row_variance(x[n], mean) + 1e-5)",
            )
        ],
        "reason": "eps is an argument, and 1e-5 stands in its place.",
    },
    {
        "name": "layernorm-zero-spread",
        "truth": ("layernorm", "out"),
        "also": [],
        "change": [
            (
                "        out[n] = gain * ((x[n] - mean) / std) + bias\n",
                "        if std > math.sqrt(eps):\n"
                "            out[n] = gain * ((x[n] - mean) / std) + bias\n",
            )
        ],
        "reason": "A row whose values are all equal is left 0, where it should be the bias.",
    },
    {
        "name": "layernorm-dgain-of-raw-input",
        "truth": ("layernorm_backward_params", "dgain"),
        "also": [],
        "change": [("dgain += dout[n] * normal", "dgain += dout[n] * cache.inputs[n]")],
        "reason": "dgain is taken with the input instead of the normalised input.",
    },
    {
        "name": "layernorm-lists-shared",
        "truth": ("layernorm_backward_params", "dgain"),
        "also": [("layernorm_backward", "dx"), ("layernorm", "")],
        "change": [
            (
                "def layernorm(x, gain, bias, eps):",
                "def layernorm(x, gain, bias, eps, means=[], stds=[]):",
            ),
            ("    means = []\n    stds = []\n", ""),
        ],
        "reason": "The lists are default arguments, so a second call's means and deviations stand"
        " behind the first one's.",
    },
    {
        "name": "layernorm-along-over-c-minus-1",
        "truth": ("layernorm_backward", "dx"),
        "also": [],
        "change": [
            (
                "along = row_mean(dnormal * normal)",
                "along = (dnormal * normal).sum() / max(len(normal) - 1, 1)",
            )
        ],
        "reason": "The part along the normalised input is divided by C - 1, the other one by C.",
    },
    {
        "name": "layernorm-bias-last-row",
        "truth": ("layernorm_backward_params", "dbias"),
        "also": [],
        "change": [
            (
                "        dgain += dout[n] * normal\n        dbias += dout[n]\n",
                "        dgain += dout[n] * normal\n    dbias += dout[n]\n",
            )
        ],
        "reason": "The line lost its indent: only the last token's gradient reaches dbias.",
    },
    # linear
    {
        "name": "linear-zero-row-skipped",
        "truth": ("linear", "out"),
        "also": [],
        "change": [
            (
                "        out[n] = x[n] @ weight\n",
                "        if not x[n].any():\n            continue\n"
                "        out[n] = x[n] @ weight\n",
            )
        ],
        "reason": "A row of zeros is skipped as though nothing came out, but the bias does.",
    },
    {
        "name": "linear-transpose-remembered",
        "truth": ("linear_backward", "dx"),
        "also": [],
        "change": [
            ("# --- linear\n", "# --- linear\n\ntransposed = {}\n"),
            ("        dx[n] = weight @ dout[n]\n", "        dx[n] = dout[n] @ turned\n"),
            (
                "    dx = np.zeros((len(dout), weight.shape[0]), dout.dtype)\n",
                "    dx = np.zeros((len(dout), weight.shape[0]), dout.dtype)\n"
                "    turned = transposed.setdefault((weight.shape, weight.dtype.char), weight.T)\n",
            ),
        ],
        "reason": "The transposed weight is remembered by its shape, so the next layer of this"
        " shape"
        " gets the first one's.",
    },
    {
        "name": "linear-bias-from-nowhere",
        "truth": ("linear_backward_params", "dbias"),
        "also": [],
        "change": [
            (
                "    dweight = np.zeros((x.shape[1], dout.shape[1]), dout.dtype)\n"
                "    dbias = np.zeros(dout.shape[1], dout.dtype)\n",
                "    dweight = np.zeros((x.shape[1], dout.shape[1]), dout.dtype)\n"
                "    dbias = np.empty(dout.shape[1], dout.dtype)\n",
            )
        ],
        "reason": "The sum starts from memory as it is found, sometimes 0 and sometimes not.",
    },
    {
        "name": "linear-mean-for-sum",
        "truth": ("linear_backward_params", "dweight"),
        "also": [],
        "change": [("dweight[i] = x[:, i] @ dout", "dweight[i] = x[:, i] @ dout / len(x)")],
        "reason": "The weight's gradient is the mean over the tokens, not the sum.",
    },
    {
        "name": "linear-bias-once",
        "truth": ("linear", "out"),
        "also": [("linear", "")],
        "change": [
            (
                "            out[n] += bias\n",
                "            bias += out[n]\n            out[n] = bias\n",
            )
        ],
        "reason": "The sum is written into the bias, which grows from token to token and stays so.",
    },
    # gelu
    {
        "name": "gelu-straight-above-4",
        "truth": ("gelu", "out"),
        "also": [],
        "change": [
            (
                "        out[n] = 0.5 * x[n] * (1 + np.tanh(inner(x[n])))\n",
                "        out[n] = 0.5 * x[n] * (1 + np.tanh(inner(x[n])))\n"
                "        out[n] = np.where(x[n] > 4, x[n], out[n])\n",
            )
        ],
        "reason": "Above 4 the result is x itself, which is right to four digits only.",
    },
    {
        "name": "gelu-tanh-of-x",
        "truth": ("gelu_backward", "dx"),
        "also": [],
        "change": [("        t = np.tanh(inner(x))\n", "        t = np.tanh(x)\n")],
        "reason": "The backward takes the tanh of x, not of the inner polynomial.",
    },
    {
        "name": "gelu-rounded-constant",
        "truth": ("gelu", "out"),
        "also": [],
        "change": [("C1 = math.sqrt(2 / math.pi)", "C1 = 0.79788")],
        "reason": "sqrt(2/pi) is written with five digits.",
    },
    {
        "name": "gelu-cube-sign",
        "truth": ("gelu", "out"),
        "also": [],
        "change": [("return C1 * (x + C2 * x**3)", "return C1 * (x + C2 * abs(x) ** 3)")],
        "reason": "The cube has lost its sign, so the negative half is wrong.",
    },
    # attention
    {
        "name": "attention-last-block-dropped",
        "truth": ("attention", "z"),
        "also": [],
        "change": [
            ("    while first < count:\n", "    while first + BLOCK <= count or first == 0:\n")
        ],
        "reason": "Of the keys after the last whole block of 32, none is looked at.",
    },
    {
        "name": "attention-seen-not-shrunk",
        "truth": ("attention", "z"),
        "also": [],
        "change": [
            (
                "seen = seen * shrink + e @ values[first:last]",
                "seen = seen + e @ values[first:last]",
            )
        ],
        "reason": "When a later block has a larger score, the sum of values is not scaled down with"
        " the total.",
    },
    {
        "name": "attention-largest-of-last-block",
        "truth": ("attention", "z"),
        "also": [
            ("attention_backward", d) for d in ("dq", "dk", "dv", "dprefix_k[]", "dprefix_v[]")
        ],
        "change": [("        largest = new_largest\n", "        largest = float(scores.max())\n")],
        "reason": "The largest score so far is replaced by that of the block, though the sums stand"
        " relative to the larger one.",
    },
    {
        "name": "attention-largest-from-zero",
        "truth": ("attention", "z"),
        "also": [("attention", "")],
        "change": [("    largest = -math.inf\n", "    largest = 0.0\n")],
        "reason": "The largest score starts at 0, so a query whose scores are all far below it has"
        " only zeros to divide.",
    },
    {
        "name": "attention-later-sequences-see-ahead",
        "truth": ("attention", "z"),
        "also": [],
        "change": [
            (
                "                visible = P + (n - start) + 1\n                saw, log_total",
                "                visible = P + n + 1\n                saw, log_total",
            )
        ],
        "reason": "The token's place is counted from the batch's beginning, so from the second"
        " sequence on the future is seen.",
    },
    {
        "name": "attention-shared-prefix-summed",
        "truth": ("attention_backward", "dprefix_k[]"),
        "also": [],
        "change": [
            (
                "    dprefix_k = []\n    dprefix_v = []\n",
                "    dprefix_k = []\n    dprefix_v = []\n    sums = {}\n",
            ),
            (
                "        dpk = np.zeros_like(prefix_k[b])\n"
                "        dpv = np.zeros_like(prefix_v[b])\n",
                "        dpk = sums.setdefault((id(prefix_k[b]), 0), np.zeros_like(prefix_k[b]))\n"
                "        dpv = sums.setdefault((id(prefix_v[b]), 1), np.zeros_like(prefix_v[b]))\n",
            ),
        ],
        "reason": "Sequences with the very same prefix array are given one sum, which the model"
        " then"
        " adds up again.",
    },
    {
        "name": "attention-log-total-in-single",
        "truth": ("attention_backward", "dq"),
        "also": [("attention_backward", "dk"), ("attention_backward", "dv")],
        "change": [
            (
                "log_totals = np.zeros(q.shape[:2], np.float64)",
                "log_totals = np.zeros(q.shape[:2], np.float32)",
            )
        ],
        "reason": "What the backward makes the pattern from again is kept in float32.",
    },
    {
        "name": "attention-dot-of-block",
        "truth": ("attention_backward", "dq"),
        "also": [("attention_backward", "dk"), ("attention_backward", "dprefix_k[]")],
        "change": [
            (
                "dscores = weights * (dweights - dot) * scale",
                "dscores = weights * (dweights - weights @ dweights) * scale",
            )
        ],
        "reason": "The softmax's inner product is taken block by block; it is over all keys.",
    },
    {
        "name": "attention-prefix-values-of-head-0",
        "truth": ("attention", "z"),
        "also": [],
        "change": [
            (
                "            values = np.concatenate([prefix_v[b][h], v[start:end, h]])\n"
                "            for n in range(start, end):\n"
                "                visible = P + (n - start) + 1\n"
                "                saw, log_total",
                "            values = np.concatenate([prefix_v[b][0], v[start:end, h]])\n"
                "            for n in range(start, end):\n"
                "                visible = P + (n - start) + 1\n"
                "                saw, log_total",
            )
        ],
        "reason": "All heads get the first head's values of the prefix.",
    },
    {
        "name": "attention-query-scaled-in-place",
        "truth": ("attention", ""),
        "also": [("attention_backward", "dq"), ("attention", "cache.q")],
        "change": [
            ("    largest = -math.inf\n", "    query *= scale\n    largest = -math.inf\n"),
            (
                "        scores = (keys[first:last] @ query) * scale\n        new_largest",
                "        scores = keys[first:last] @ query\n        new_largest",
            ),
        ],
        "reason": "The query is a view of q, so the scale is written into the caller's array.",
    },
    {
        "name": "attention-first-prefix-length",
        "truth": ("attention_backward", "dprefix_k[]"),
        "also": [("attention_backward", "")],
        "change": [
            (
                "        dpk = np.zeros_like(prefix_k[b])\n"
                "        dpv = np.zeros_like(prefix_v[b])\n",
                "        dpk = np.zeros_like(prefix_k[0])\n"
                "        dpv = np.zeros_like(prefix_v[0])\n",
            )
        ],
        "reason": "All prefix gradients have the first prefix's shape, and lengths may differ.",
    },
    {
        "name": "attention-block-query-gradient",
        "truth": ("attention_backward", "dq"),
        "also": [],
        "change": [
            (
                "        dquery += dscores @ keys[first:last]\n",
                "        dquery = dscores @ keys[first:last]\n",
            )
        ],
        "reason": "The query's gradient is the last block's only.",
    },
    {
        "name": "attention-dz-overwritten",
        "truth": ("attention_backward", ""),
        "also": [("attention_backward", "dprefix_k[]")],
        "change": [
            ("    dot = float(dsaw @ saw)\n", "    dsaw *= scale\n    dot = float(dsaw @ saw)\n"),
            (
                "        dvalues[first:last] = np.outer(weights, dsaw)\n",
                "        dvalues[first:last] = np.outer(weights, dsaw) / scale\n",
            ),
            (
                "dscores = weights * (dweights - dot) * scale",
                "dscores = weights * (dweights - dot)",
            ),
        ],
        "reason": "The scale is written into a view of dz, which is to be kept.",
    },
    {
        "name": "attention-forgets-small-weights",
        "truth": ("attention", "z"),
        "also": [("attention_backward", "dq")],
        "change": [
            (
                "        e = np.exp(scores - new_largest)\n",
                "        e = np.exp(scores - new_largest)\n        e[e < 1e-4] = 0\n",
            )
        ],
        "reason": "Weights below a ten-thousandth of the largest are taken for 0.",
    },
    # cross_entropy
    {
        "name": "loss-zero-weight-skipped",
        "truth": ("cross_entropy_backward", "dlogits"),
        "also": [("cross_entropy_backward", "")],
        "change": [
            (
                "        nll = log_sum_exp(logits[m]) - logits[m, targets[m]]\n",
                "        if weights[m] == 0:\n            continue\n"
                "        nll = log_sum_exp(logits[m]) - logits[m, targets[m]]\n",
            )
        ],
        "reason": "A row of weight 0 leaves no softmax in the list, and the rows after it get their"
        " neighbours'.",
    },
    {
        "name": "loss-shifted-by-first-logit",
        "truth": ("cross_entropy", "loss"),
        "also": [],
        "change": [("    top = row.max()\n", "    top = row[0]\n")],
        "reason": "The logits are shifted by the first of them, so a much larger one overflows.",
    },
    {
        "name": "loss-tied-maximum",
        "truth": ("cross_entropy", "loss"),
        "also": [],
        "change": [
            (
                "return top + np.log(np.exp(row - top).sum())",
                "return top + np.log1p(np.exp(row[row < top] - top).sum())",
            )
        ],
        "reason": "The largest logit counts once, though several may be as large.",
    },
    {
        "name": "loss-weights-normalised-in-cache",
        "truth": ("cross_entropy_backward", "dlogits"),
        "also": [],
        "change": [("importance=weights,", "importance=weights / weights.sum(),")],
        "reason": "The backward takes weights that sum to 1; the loss takes them as they are.",
    },
    {
        "name": "loss-target-by-probability",
        "truth": ("cross_entropy_backward", "dlogits"),
        "also": [],
        "change": [
            (
                "        row[cache.answers[m]] -= 1\n",
                "        row[row == row[cache.answers[m]]] -= 1\n",
            )
        ],
        "reason": "The target is found by its probability, and a token that is as likely is taken"
        " for"
        " it, too.",
    },
    {
        "name": "loss-rows-in-single",
        "truth": ("cross_entropy", "loss"),
        "also": [],
        "change": [
            ("        loss += weights[m] * nll\n", "        loss += weights[m] * np.float32(nll)\n")
        ],
        "reason": "Each row's loss is rounded to float32.",
    },
    {
        "name": "loss-first-row-normalises",
        "truth": ("cross_entropy_backward", "dlogits"),
        "also": [],
        "change": [
            (
                "        softmaxes.append(softmax(logits[m]))\n",
                "        softmaxes.append(logits[m])\n",
            ),
            (
                "        row = cache.softmaxes[m].copy()\n",
                "        row = np.exp(cache.softmaxes[m] - log_sum_exp(cache.softmaxes[0]))\n",
            ),
        ],
        "reason": "All rows are normalised by the first row's sum.",
    },
    # all caches
    {
        "name": "memory-on-the-class",
        "truth": ("layernorm", ""),
        "also": [
            ("gelu", ""),
            ("attention", ""),
            ("cross_entropy", ""),
            ("layernorm_backward_params", "dgain"),
            ("layernorm_backward", "dx"),
            ("gelu_backward", "dx"),
            ("attention_backward", "dq"),
            ("cross_entropy_backward", "dlogits"),
            ("run_model", "blocks.0.mlp.dpre"),
        ],
        "change": [
            (
                "            setattr(self, name, thing)\n",
                "            setattr(Memory, name, thing)\n",
            )
        ],
        "reason": "What a forward remembers is put on the class, so the next forward of the same op"
        " replaces it.",
    },
    # run_decoding
    {
        "name": "decoding-keys-on-the-class",
        "truth": ("run_decoding", "logits"),
        "also": [("run_decoding", "")],
        "change": [
            (
                '    """Reads one token at a time, and says what it expects next."""\n',
                '    """Reads one token at a time, and says what it expects next."""\n\n'
                "    keys = []  # per layer and head: a list of keys (hs)\n    values = []\n",
            ),
            (
                "        self.keys = []  # per layer and head: a list of keys (hs)\n"
                "        self.values = []\n",
                "",
            ),
        ],
        "reason": "The lists belong to the class: a second sequence looks at the first one's keys.",
    },
    {
        "name": "decoding-window-cut",
        "truth": ("run_decoding", "logits"),
        "also": [],
        "change": [
            (
                "            keys, values = np.array(self.keys[i][h]),"
                " np.array(self.values[i][h])\n",
                "            window = slice(-self.config.n_positions, None)\n"
                "            keys = np.array(self.keys[i][h][window])\n"
                "            values = np.array(self.values[i][h][window])\n",
            )
        ],
        "reason": "The cache is cut to n_positions keys, but a prefix that takes no positions"
        " comes on"
        " top of them.",
    },
    {
        "name": "decoding-second-norm-is-first",
        "truth": ("run_decoding", "logits"),
        "also": [],
        "change": [('self.norm(f"h.{i}.ln_2", x)', 'self.norm(f"h.{i}.ln_1", x)')],
        "reason": "A copied line: the MLP reads through ln_1.",
    },
    {
        "name": "decoding-longest-first",
        "truth": ("run_decoding", "logits"),
        "also": [],
        "change": [
            (
                "in zip(problem.sequences, problem.prefix_of, strict=True):",
                "in sorted(\n"
                "        zip(problem.sequences, problem.prefix_of, strict=True), key=lambda pair:"
                " -len(pair[0])\n"
                "    ):",
            )
        ],
        "reason": "The sequences are read longest first, and their logits are not put back in"
        " order.",
    },
    {
        "name": "decoding-prefix-of-layer-0",
        "truth": ("run_decoding", "logits"),
        "also": [],
        "change": [("list(prefix[i, 1, h])", "list(prefix[0, 1, h])")],
        "reason": "All layers get the values of the prefix's first layer.",
    },
    {
        "name": "decoding-position-stops",
        "truth": ("run_decoding", "logits"),
        "also": [],
        "change": [
            (
                "        self.position += 1\n",
                "        self.position = min(self.position + 1, len(self.keys[0][0]))\n",
            )
        ],
        "reason": "The position never goes past the number of keys, though a sequence may begin"
        " further on.",
    },
    {
        "name": "decoding-head-by-name",
        "truth": ("run_decoding", "logits"),
        "also": [],
        "change": [
            (
                'self.w["wte.weight" if tied else "lm_head.weight"] @ x[0]',
                'self.w["wte.weight"] @ x[0]',
            ),
            ("        tied = self.config.tie_word_embeddings\n", ""),
        ],
        "reason": "The head is the embedding table even where the model has a head of its own.",
    },
]
