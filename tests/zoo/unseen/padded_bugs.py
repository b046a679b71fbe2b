"""Mistakes in `padded.py`. Each `old` stands there exactly once; `truth` is the function and the
tensor that are wrong first ("" where an argument or a result is overwritten), `also` what may
rightly be named first instead."""

from typing import Any

#: a prefix's gradient, and its parameters after a step: which of them is wrong first, is up to the
#: problem
GRADIENTS = [("run_model", f"prefix.{i}.{d}") for i in range(3) for d in ("dk", "dv")]
NAMES = ("kv", "embedding", "weight_1", "bias_1", "weight_2", "bias_2")
AFTER_A_STEP = [
    ("run_training", f"step.{s}.prefix.{i}.{name}")
    for s in range(6)
    for i in range(3)
    for name in NAMES
]

BUGS: list[dict[str, Any]] = [
    # embed
    {
        "name": "embed-rows-counted-from-zero",
        "truth": ("embed", "x"),
        "also": [],
        "change": [("x += wpe[positions]", "x += wpe[: len(tokens)]")],
        "reason": "The positions are taken to be 0, 1, 2, ..., so a second sequence or a first"
        " position other than 0 reads the wrong rows of wpe.",
    },
    {
        "name": "embed-last-run-joined",
        "truth": ("embed_backward_params", "dwte"),
        "also": [("embed_backward_params", "dwpe")],
        "change": [("np.flatnonzero(is_first)", "np.flatnonzero(is_first[:-1])")],
        "reason": "The last row cannot begin a run, so a largest index that occurs once is added to"
        " the run before it.",
    },
    {
        "name": "embed-runs-unsorted",
        "truth": ("embed_backward_params", "dwte"),
        "also": [("embed_backward_params", "dwpe")],
        "change": [('order = np.argsort(index, kind="stable")', "order = np.arange(len(index))")],
        "reason": "Without the sort only neighbouring equal tokens are added up, and of two runs of"
        " one token the later overwrites the earlier.",
    },
    {
        "name": "embed-sum-in-single",
        "truth": ("embed_backward_params", "dwte"),
        "also": [("embed_backward_params", "dwpe")],
        "change": [("total = np.zeros_like(like)", "total = np.zeros(like.shape, np.float32)")],
        "reason": "The sums are kept in float32 whatever the type of the weights is.",
    },
    {
        "name": "embed-table-cut",
        "truth": ("embed_backward_params", "dwte"),
        "also": [("embed_backward_params", "dwpe")],
        "change": [
            ("total = np.zeros_like(like)", "total = np.zeros_like(like[: index.max() + 1])")
        ],
        "reason": "The gradient has rows up to the largest index only, not one for every row of the"
        " table.",
    },
    # layernorm
    {
        "name": "layernorm-one-pass",
        "truth": ("layernorm", "out"),
        "also": [],
        "change": [
            (
                'variance = np.einsum("nc,nc->n", centred, centred) / x.shape[-1]',
                'variance = np.einsum("nc,nc->n", x, x) / x.shape[-1] - x.mean(-1) ** 2',
            )
        ],
        "reason": "E[x^2] - E[x]^2 cancels where the mean is large beside the spread.",
    },
    {
        "name": "layernorm-eps-outside-root",
        "truth": ("layernorm", "out"),
        "also": [],
        "change": [
            (
                "std = np.sqrt(variance + x.dtype.type(eps))",
                "std = np.sqrt(variance) + x.dtype.type(eps)",
            )
        ],
        "reason": "eps belongs under the root; outside it a row of small variance comes out wrong.",
    },
    {
        "name": "layernorm-divided-by-rows",
        "truth": ("layernorm", "out"),
        "also": [],
        "change": [
            (
                '"nc,nc->n", centred, centred) / x.shape[-1]',
                '"nc,nc->n", centred, centred) / len(x)',
            )
        ],
        "reason": "The sum of squares is divided by the number of tokens, not by the width.",
    },
    {
        "name": "layernorm-bias-averaged",
        "truth": ("layernorm_backward_params", "dbias"),
        "also": [],
        "change": [('cache["normal"]), dout.sum(0)', 'cache["normal"]), dout.mean(0)')],
        "reason": "dbias is the mean over the tokens, not the sum.",
    },
    {
        "name": "layernorm-cache-overwritten",
        "truth": ("layernorm_backward", ""),
        "also": [],
        "change": [
            (
                "g = g - g.mean(-1, keepdims=True) - normal * along[:, None]",
                "normal *= along[:, None]\n    g = g - g.mean(-1, keepdims=True) - normal",
            )
        ],
        "reason": "The product is written over the cache's normalised input, which is kept: a"
        " second backward on this cache is wrong.",
    },
    {
        "name": "layernorm-projection-before-gain",
        "truth": ("layernorm_backward", "dx"),
        "also": [],
        "change": [
            (
                'along = np.einsum("nc,nc->n", g, normal)',
                'along = np.einsum("nc,nc->n", dout, normal)',
            )
        ],
        "reason": "The part along the normalised input is taken of dout before the gain is on it.",
    },
    # linear
    {
        "name": "linear-out-reused",
        "truth": ("linear", ""),
        "also": [("linear", "out")],
        "change": [
            ("# Linear\n", "# Linear\n\n_OUT: dict[Any, Array] = {}\n"),
            (
                'out = np.einsum("ni,io->no", x, weight, optimize=True)\n',
                "key = (len(x), weight.shape, x.dtype.char)\n"
                "    if key not in _OUT:\n"
                "        _OUT[key] = np.empty((len(x), weight.shape[1]), x.dtype)\n"
                "    out = np.matmul(x, weight, out=_OUT[key])\n",
            ),
            ("        out = out + bias\n", "        out += bias\n"),
        ],
        "reason": "The result lies in a buffer of its shape that the next call of that shape"
        " overwrites.",
    },
    {
        "name": "linear-last-tile-dropped",
        "truth": ("linear_backward_params", "dweight"),
        "also": [],
        "change": [
            (
                "for start in range(0, len(x), ROW_TILE):",
                "for start in range(0, max(len(x) // ROW_TILE, 1) * ROW_TILE, ROW_TILE):",
            )
        ],
        "reason": "The number of tiles is rounded down, so the tokens after the last whole tile of"
        " 128 are not counted.",
    },
    {
        "name": "linear-square-not-transposed",
        "truth": ("linear_backward", "dx"),
        "also": [],
        "change": [
            (
                'return np.einsum("no,io->ni", dout, weight, optimize=True)',
                "fits = dout.shape[1] == weight.shape[0]\n"
                "    return dout @ (weight if fits else weight.T)",
            )
        ],
        "reason": "The weight is transposed only where the shapes demand it, and a square one fits"
        " either way.",
    },
    {
        "name": "linear-bias-of-whole-tile",
        "truth": ("linear_backward_params", "dbias"),
        "also": [],
        "change": [
            (
                'np.einsum("no->o", dout)',
                'np.einsum("no->o", dout[: len(x) - len(x) % ROW_TILE or None])',
            )
        ],
        "reason": "dbias sums whole tiles of tokens only, once there is one.",
    },
    # gelu
    {
        "name": "gelu-digits-swapped",
        "truth": ("gelu", "out"),
        "also": [],
        "change": [("CUBIC = 0.044715", "CUBIC = 0.044751")],
        "reason": "The constant is 0.044715; two of its digits have changed places.",
    },
    {
        "name": "gelu-slope-without-three",
        "truth": ("gelu_backward", "dx"),
        "also": [],
        "change": [("(1 + 3 * CUBIC * x * x)", "(1 + CUBIC * x * x)")],
        "reason": "The derivative of x^3 is 3 x^2, and the 3 is missing.",
    },
    {
        "name": "gelu-tanh-by-exp",
        "truth": ("gelu", "out"),
        "also": [],
        "change": [
            (
                "t = np.tanh(SQRT_2_OVER_PI * x * (1 + CUBIC * square))",
                "e = np.exp(2 * SQRT_2_OVER_PI * x * (1 + CUBIC * square))\n"
                "    t = (e - 1) / (e + 1)",
            )
        ],
        "reason": "exp(2u) overflows for large x, and infinity over infinity is no number.",
    },
    {
        "name": "gelu-input-lost",
        "truth": ("gelu_backward", "dx"),
        "also": [("gelu", "")],
        "change": [
            (
                "return 0.5 * x * (1 + t), (x, t)",
                "out = np.multiply(x, 0.5 * (1 + t), out=x)\n    return out, (x, t)",
            )
        ],
        "reason": "The result is written over x, which may be, but the cache still takes x for the"
        " input.",
    },
    # attention
    {
        "name": "attention-mask-remembered",
        "truth": ("attention", "z"),
        "also": [],
        "change": [
            (
                "@lru_cache(maxsize=8)\ndef _causal",
                "_MASKS: dict[Any, Array] = {}\n\n\n@lru_cache(maxsize=8)\ndef _causal",
            ),
            (
                "return np.concatenate([in_prefix, in_tokens], axis=2)",
                "mask = np.concatenate([in_prefix, in_tokens], axis=2)\n"
                "    return _MASKS.setdefault(mask.shape, mask)",
            ),
        ],
        "reason": "The mask is remembered by its shape, but it depends on each prefix's length,"
        " too.",
    },
    {
        "name": "attention-empty-slots-seen",
        "truth": ("attention", "z"),
        "also": [],
        "change": [
            (
                "in_prefix = np.arange(P)[None, :] < np.array(slots)[:, None]",
                "in_prefix = np.ones((B, P), dtype=bool)",
            )
        ],
        "reason": "Where prefixes differ in length, the padding after a shorter one is looked at.",
    },
    {
        "name": "attention-prefix-gradient-at-the-end",
        "truth": ("attention_backward", "dprefix_k[]"),
        "also": [],
        "change": [("[dkeys[b, :, :p].copy()", "[dkeys[b, :, P - p : P].copy()")],
        "reason": "A shorter prefix is padded behind, but its keys' gradient is read as though it"
        " were padded in front.",
    },
    {
        "name": "attention-scale-by-heads",
        "truth": ("attention_backward", "dq"),
        "also": [],
        "change": [("dscores *= 1 / np.sqrt(dz.shape[-1])", "dscores *= 1 / np.sqrt(dz.shape[1])")],
        "reason": "The scale is taken from the axis of the heads, not from the head size.",
    },
    {
        "name": "attention-scale-of-64",
        "truth": ("attention", "z"),
        "also": [],
        "change": [("q.dtype.type(1 / np.sqrt(q.shape[-1]))", "q.dtype.type(0.125)")],
        "reason": "The scale is 1/8, right for GPT-2's heads of 64 and for no others.",
    },
    {
        "name": "attention-masked-by-minus-10000",
        "truth": ("attention", "z"),
        "also": [],
        "change": [
            (
                "scores = np.where(mask, scores, -np.inf)",
                "scores = np.where(mask, scores, scores.dtype.type(-1e4))",
            )
        ],
        "reason": "A masked score is -10000, which is no bar where a row's own scores are as low.",
    },
    {
        "name": "attention-largest-of-all",
        "truth": ("attention", "z"),
        "also": [],
        "change": [
            (
                "scores = scores - scores.max(-1, keepdims=True)\n    weights = np.exp(scores)",
                "scores = scores - scores.max()\n    weights = np.exp(scores)",
            )
        ],
        "reason": "One maximum is subtracted from all rows, so a row far below it underflows to"
        " 0 / 0.",
    },
    {
        "name": "attention-scaled-twice-in-dk",
        "truth": ("attention_backward", "dk"),
        "also": [("attention_backward", "dprefix_k[]")],
        "change": [
            (
                "queries = _pad(q, there)\n",
                "queries = _pad(q, there) * q.dtype.type(1 / np.sqrt(q.shape[-1]))\n",
            ),
            ("queries, keys, optimize=True) * scale\n", "queries, keys, optimize=True)\n"),
            ("    scale = q.dtype.type(1 / np.sqrt(q.shape[-1]))\n", ""),
        ],
        "reason": "The queries are kept with the scale already on them, and the backward puts it on"
        " dk again.",
    },
    {
        "name": "attention-softmax-parenthesis",
        "truth": ("attention_backward", "dq"),
        "also": [("attention_backward", "dk")],
        "change": [
            (
                "dscores = weights * (dweights - inner[..., None])",
                "dscores = weights * dweights - inner[..., None]",
            )
        ],
        "reason": "The inner product is subtracted outside the parenthesis, so it is not weighted.",
    },
    {
        "name": "attention-pattern-buffer-shared",
        "truth": ("attention", ""),
        "also": [
            ("attention_backward", d) for d in ("dq", "dk", "dv", "dprefix_k[]", "dprefix_v[]")
        ]
        + GRADIENTS,
        "change": [
            ("def _softmax(", "_SPACE: dict[Any, Array] = {}\n\n\ndef _softmax("),
            (
                "weights = np.exp(scores)\n    return weights / weights.sum(-1, keepdims=True)",
                "key = (scores.shape, scores.dtype.char)\n"
                "    if key not in _SPACE:\n"
                "        _SPACE[key] = np.empty_like(scores)\n"
                "    weights = np.exp(scores, out=_SPACE[key])\n"
                "    weights /= weights.sum(-1, keepdims=True)\n"
                "    return weights",
            ),
        ],
        "reason": "The pattern in the cache lies in one buffer for each shape, and the next layer's"
        " attention overwrites it before the backward.",
    },
    {
        "name": "attention-padded-in-single",
        "truth": ("attention", "z"),
        "also": [],
        "change": [
            (
                "boxes = np.zeros((*there.shape, *flat.shape[1:]), flat.dtype)",
                "boxes = np.zeros((*there.shape, *flat.shape[1:]), np.float32)",
            )
        ],
        "reason": "The padded copies are float32, so float64 is rounded on its way in.",
    },
    {
        "name": "attention-pattern-overwritten-early",
        "truth": ("attention_backward", "dv"),
        "also": [("attention_backward", "dprefix_v[]")],
        "change": [
            ('    dvalues = np.einsum("bhij,bhid->bhjd", weights, dout, optimize=True)\n', ""),
            (
                "    dscores = weights * (dweights - inner[..., None])\n",
                "    weights *= dweights - inner[..., None]\n    dscores = weights.copy()\n",
            ),
            (
                "    P = max(cache.slots)\n    return (",
                '    dvalues = np.einsum("bhij,bhid->bhjd", weights, dout, optimize=True)\n'
                "    P = max(cache.slots)\n    return (",
            ),
        ],
        "reason": "dv is made of the pattern after the scores' gradient has been written over it.",
    },
    {
        "name": "attention-prefix-keys-as-values",
        "truth": ("attention", "z"),
        "also": [],
        "change": [("_pad_prefixes(prefix_v, P)", "_pad_prefixes(prefix_k, P)")],
        "reason": "A copied line: the prefix's keys stand where its values should.",
    },
    {
        "name": "attention-query-scaled-in-place",
        "truth": ("attention", ""),
        "also": [],
        "change": [
            (
                "    queries = _pad(q, there)\n",
                "    unscaled = _pad(q, there)\n"
                "    q *= q.dtype.type(1 / np.sqrt(q.shape[-1]))\n"
                "    queries = _pad(q, there)\n",
            ),
            ("queries, keys, optimize=True) * scale\n", "queries, keys, optimize=True)\n"),
            ("    scale = q.dtype.type(1 / np.sqrt(q.shape[-1]))\n", ""),
            (
                "slots, there, queries, keys, values, weights)",
                "slots, there, unscaled, keys, values, weights)",
            ),
        ],
        "reason": "The scale is put onto the caller's q itself, which is to be kept.",
    },
    {
        "name": "attention-prefix-keys-reversed",
        "truth": ("attention", "z"),
        "also": [],
        "change": [
            (
                "keys = np.concatenate([_pad_prefixes(prefix_k, P), _pad(k, there)], axis=2)",
                "keys = np.concatenate([_pad_prefixes(prefix_k, P)[:, :, ::-1], _pad(k, there)],"
                " 2)",
            )
        ],
        "reason": "The prefix's keys are turned around and its values are not, so slots are paired"
        " with others' values.",
    },
    {
        "name": "attention-dk-in-single",
        "truth": ("attention_backward", "dk"),
        "also": [("attention_backward", "dprefix_k[]")],
        "change": [
            (
                'dkeys = np.einsum("bhij,bhid->bhjd", dscores, cache.queries, optimize=True)',
                "dkeys = np.einsum(\n"
                '        "bhij,bhid->bhjd", dscores.astype(np.float32), cache.queries,'
                " optimize=True\n"
                "    )",
            )
        ],
        "reason": "The scores' gradient is rounded to float32 before the keys' gradient is made.",
    },
    # cross_entropy
    {
        "name": "loss-last-tile-dropped",
        "truth": ("cross_entropy", "loss"),
        "also": [],
        "change": [
            (
                "for start in range(0, width, VOCAB_TILE):",
                "for start in range(0, max(width // VOCAB_TILE, 1) * VOCAB_TILE, VOCAB_TILE):",
            )
        ],
        "reason": "The number of tiles of 4096 is rounded down: the tail of a large vocabulary is"
        " not"
        " in the sum.",
    },
    {
        "name": "loss-target-from-every-row",
        "truth": ("cross_entropy_backward", "dlogits"),
        "also": [],
        "change": [
            (
                'dlogits[np.arange(len(dlogits)), cache["goal"]] -= per_row',
                'dlogits[:, cache["goal"]] -= per_row',
            )
        ],
        "reason": "Each row has every row's target subtracted, which is right for one row only.",
    },
    {
        "name": "loss-divided-by-weights",
        "truth": ("cross_entropy", "loss"),
        "also": [],
        "change": [
            (
                "return (weights * nll).sum(), cache",
                "return (weights * nll).sum() / weights.sum(), cache",
            )
        ],
        "reason": "The loss is the weighted sum; here it is the weighted mean, the same only where"
        " the weights sum to 1.",
    },
    {
        "name": "loss-log-of-probability",
        "truth": ("cross_entropy", "loss"),
        "also": [],
        "change": [
            (
                "nll = log_total - logits[np.arange(len(targets)), targets]",
                "chosen = logits[np.arange(len(targets)), targets]\n"
                "    nll = -np.log(np.exp(chosen - log_total) + 1e-12)",
            )
        ],
        "reason": "The probability is made first and guarded by 1e-12, so a very unlikely target"
        " costs 27.6 at most.",
    },
    {
        "name": "loss-weights-overwritten",
        "truth": ("cross_entropy", ""),
        "also": [("cross_entropy_backward", "dlogits")],
        "change": [
            (
                "return (weights * nll).sum(), cache",
                "np.multiply(weights, nll, out=weights)\n    return weights.sum(), cache",
            )
        ],
        "reason": "The products are written over the caller's weights, which are to be kept.",
    },
    # run_model
    {
        "name": "model-tied-head-forgotten",
        "truth": ("run_model", "dwte.weight"),
        "also": [],
        "change": [
            ('self.gradients["wte.weight"] = dwte + dhead', 'self.gradients["wte.weight"] = dwte')
        ],
        "reason": "A tied table is used twice, as embedding and as head, and the head's gradient is"
        " lost.",
    },
    {
        "name": "model-stops-at-first-block",
        "truth": ("run_model", "dh.0.attn.c_attn.weight"),
        "also": [
            ("run_model", "dh.0.attn.c_attn.bias"),
            ("run_model", "dh.0.ln_1.weight"),
            ("run_model", "dh.0.ln_1.bias"),
            ("run_model", "dwte.weight"),
            ("run_model", "dwpe.weight"),
        ],
        "change": [("if i == 0 and not self.all_gradients:", "if i == 0:")],
        "reason": "The backward stops above block 0's ln_1 though the weights below it are asked"
        " for.",
    },
    {
        "name": "model-shared-prefix-not-summed",
        "truth": ("run_model", "prefix.0.dk"),
        "also": GRADIENTS,
        "change": [
            (
                "dprefixes[j][i, 0] += dkeys[b]\n                dprefixes[j][i, 1] += dvalues[b]",
                "dprefixes[j][i, 0] = dkeys[b]\n                dprefixes[j][i, 1] = dvalues[b]",
            )
        ],
        "reason": "Of the sequences that share a prefix, the last one's gradient replaces the"
        " others'.",
    },
    {
        "name": "model-prefixes-sorted",
        "truth": ("run_model", "logits"),
        "also": [("run_model", "loss")],
        "change": [
            ("ints[2], seen, ints[3], ints[4])", "ints[2], sorted(seen), ints[3], ints[4])")
        ],
        "reason": "The prefixes are put in order and the sequences are not, so they see each"
        " other's.",
    },
    {
        "name": "model-one-first-position",
        "truth": ("run_model", "logits"),
        "also": [("run_model", "loss")],
        "change": [
            (
                "positions += range(first_position[which], first_position[which] + len(read))",
                "positions += range(first_position[0], first_position[0] + len(read))",
            )
        ],
        "reason": "All sequences begin at the first prefix's position, not at that of their own.",
    },
    {
        "name": "model-loss-one-late",
        "truth": ("run_model", "logits"),
        "also": [("run_model", "loss")],
        "change": [
            (
                "rows += [base + i - 1 for i in range(max(start, 1), len(sequence))]\n"
                "        targets += list(sequence[max(start, 1) :])",
                "rows += [base + i - 1 for i in range(start + 1, len(sequence))]\n"
                "        targets += list(sequence[start + 1 :])",
            )
        ],
        "reason": "loss_from is read as the last token of the prompt, so the first target is left"
        " out.",
    },
    {
        "name": "model-mean-over-all-tokens",
        "truth": ("run_model", "loss"),
        "also": [],
        "change": [("each = 1 / M if p.reduction", "each = 1 / len(batch.tokens) if p.reduction")],
        "reason": "The mean is over all tokens that were read, prompts included, not over the"
        " targets.",
    },
    {
        "name": "model-eps-fixed",
        "truth": ("run_model", "logits"),
        "also": [("run_model", "loss")],
        "change": [("gain, bias, self.config.layer_norm_epsilon)", "gain, bias, 1e-5)")],
        "reason": "Layernorm's eps is GPT-2's usual one, whatever the configuration says.",
    },
    {
        "name": "model-head-always-tied",
        "truth": ("run_model", "logits"),
        "also": [("run_model", "loss")],
        "change": [
            (
                'return "wte.weight" if self.config.tie_word_embeddings else "lm_head.weight"',
                'return "wte.weight"',
            )
        ],
        "reason": "The embedding table is the head even where the model has one of its own.",
    },
    {
        "name": "model-qkv-by-head",
        "truth": ("run_model", "logits"),
        "also": [("run_model", "loss")],
        "change": [
            (
                "shape = (len(x), 3, self.config.n_head, self.config.head_size)\n"
                "        q, k, v = np.moveaxis(x.reshape(shape), 1, 0)",
                "shape = (len(x), self.config.n_head, 3, self.config.head_size)\n"
                "        q, k, v = np.moveaxis(x.reshape(shape), 2, 0)",
            )
        ],
        "reason": "q, k and v are read head by head; GPT-2 has all heads of q first.",
    },
    {
        "name": "model-residual-lost-below-ln-1",
        "truth": ("run_model", "prefix.0.dk"),
        "also": [
            *GRADIENTS,
            ("run_model", "dh.0.mlp.c_proj.weight"),
            ("run_model", "dwte.weight"),
            ("run_model", "dwpe.weight"),
        ],
        "change": [
            (
                'dx = dx + self.norm_backward(f"h.{i}.ln_1", da, ln_1)',
                'dx = self.norm_backward(f"h.{i}.ln_1", da, ln_1)',
            )
        ],
        "reason": "Below attention only the branch's gradient goes on; that of the residual"
        " stream is"
        " dropped.",
    },
    {
        "name": "model-kept-for-the-shape",
        "truth": ("run_model", "logits"),
        "also": [("run_model", "loss"), ("run_model", "")],
        "change": [
            ("def run_model(", "_BUILT: dict[Any, Model] = {}\n\n\ndef run_model("),
            (
                'model = Model(p.config, p.weights, all_gradients=p.need == "all")',
                'model = Model(p.config, p.weights, all_gradients=p.need == "all")\n'
                "    model = _BUILT.setdefault((p.config, p.need, model.dtype.char), model)",
            ),
        ],
        "reason": "A model is kept for each configuration, so another model of the same shape gets"
        " the first one's weights.",
    },
    {
        "name": "model-always-single",
        "truth": ("run_model", "loss"),
        "also": [*GRADIENTS, ("run_training", "step.0.loss"), ("run_decoding", "logits")],
        "change": [
            ('self.dtype = weights["wte.weight"].dtype', "self.dtype = np.dtype(np.float32)")
        ],
        "reason": "The weights of the targets and the residual stream's gradient are float32 in a"
        " float64 model.",
    },
    {
        "name": "model-gradient-into-last-rows",
        "truth": ("run_model", "prefix.0.dk"),
        "also": [
            *GRADIENTS,
            ("run_model", "dh.0.mlp.c_proj.weight"),
            ("run_model", "dh.1.mlp.c_proj.weight"),
        ],
        "change": [("dx[batch.rows] = dlast", "dx[-len(dlast) :] = dlast")],
        "reason": "The gradient goes to the last M tokens, which predict only where one sequence"
        " has"
        " its prompt in front.",
    },
    {
        "name": "model-first-block-values-get-keys",
        "truth": ("run_model", "prefix.0.dv"),
        "also": GRADIENTS,
        "change": [
            (
                "dprefixes[j][i, 1] += dvalues[b]",
                "dprefixes[j][i, 1] += dvalues[b] if i else dkeys[b]",
            )
        ],
        "reason": "In block 0 the keys' gradient is added to the values'.",
    },
    # run_decoding
    {
        "name": "decoding-room-in-front",
        "truth": ("run_decoding", "logits"),
        "also": [],
        "change": [
            (
                "np.concatenate([self.room, more], axis=3)",
                "np.concatenate([more, self.room], axis=3)",
            )
        ],
        "reason": "When the cache is full, room is added in front, and everything in it has moved.",
    },
    {
        "name": "decoding-length-per-layer",
        "truth": ("run_decoding", "logits"),
        "also": [],
        "change": [
            (
                "self.room[layer, 1, :, self.length] = v\n",
                "self.room[layer, 1, :, self.length] = v\n        self.length += 1\n",
            ),
            ("self.room[layer, :, :, : self.length + 1]", "self.room[layer, :, :, : self.length]"),
            ("    for past in pasts:\n        past.length += 1\n", ""),
        ],
        "reason": "The length of the cache grows in every layer, not once a token: right for one"
        " layer.",
    },
    {
        "name": "decoding-cache-per-prefix",
        "truth": ("run_decoding", "logits"),
        "also": [],
        "change": [
            (
                "pasts = [Past(p.prefixes[j]) for j in p.prefix_of]",
                "made = [Past(prefix) for prefix in p.prefixes]\n"
                "    pasts = [made[j] for j in p.prefix_of]",
            )
        ],
        "reason": "Sequences with the same prefix share one cache and write into each other's"
        " past.",
    },
    {
        "name": "decoding-position-is-length",
        "truth": ("run_decoding", "logits"),
        "also": [],
        "change": [
            (
                "[p.position_offsets[p.prefix_of[b]] + t for b in alive]",
                "[pasts[b].length for b in alive]",
            )
        ],
        "reason": "The position is the number of keys so far, right only where the first token's"
        " position is P.",
    },
    {
        "name": "decoding-first-caches-live",
        "truth": ("run_decoding", "logits"),
        "also": [],
        "change": [("[pasts[b] for b in alive])", "pasts[: len(alive)])")],
        "reason": "When a sequence has ended, the caches of the first ones are taken, not of those"
        " that go on.",
    },
    {
        "name": "decoding-scale-of-width",
        "truth": ("run_decoding", "logits"),
        "also": [],
        "change": [
            (
                '"hd,hjd->hj", q, keys) * (1 / np.sqrt(q.shape[-1]))',
                '"hd,hjd->hj", q, keys) * (1 / np.sqrt(q.size))',
            )
        ],
        "reason": "The scale is 1/sqrt(C), all heads together, where the model has 1/sqrt(hs).",
    },
    {
        "name": "decoding-stale-token",
        "truth": ("run_decoding", "logits"),
        "also": [],
        "change": [
            (
                "            past.append(i, k[b], v[b])\n            z[b] = past.look(i, q[b])\n",
                "            z[b] = past.look(i, q[b])\n            past.append(i, k[b], v[b])\n",
            )
        ],
        "reason": "The query looks before its own key is written, so a slot of zeros stands for"
        " it.",
    },
    # run_training
    {
        "name": "training-decay-in-gradient",
        "truth": ("run_training", "step.0.prefix.0.kv"),
        "also": AFTER_A_STEP,
        "change": [
            ("                a *= 1 - rate * p.weight_decay\n", ""),
            (
                "                first *= p.beta1\n",
                "                g = g + p.weight_decay * a\n                first *= p.beta1\n",
            ),
        ],
        "reason": "The decay is added to the gradient, as in Adam with L2, and not decoupled as in"
        " AdamW.",
    },
    {
        "name": "training-eps-under-root",
        "truth": ("run_training", "step.0.prefix.0.kv"),
        "also": AFTER_A_STEP,
        "change": [
            (
                "spread = np.sqrt(second / (1 - p.beta2 ** (s + 1)))\n",
                "spread = np.sqrt(second / (1 - p.beta2 ** (s + 1)) + p.eps)\n",
            ),
            ("a -= rate * mean / (spread + p.eps)", "a -= rate * mean / spread"),
        ],
        "reason": "eps stands under the root; AdamW adds it to the root.",
    },
    {
        "name": "training-clip-each-prefix",
        "truth": ("run_training", "step.0.prefix.0.kv"),
        "also": AFTER_A_STEP,
        "change": [
            (
                "        norm = np.sqrt(sum(np.sum(g * g) for each in gradients for g in"
                " each.values()))\n"
                "        if norm > limit:\n"
                "            for each in gradients:\n",
                "        for each in gradients:\n"
                "            norm = np.sqrt(sum(np.sum(g * g) for g in each.values()))\n"
                "            if norm > limit:\n",
            )
        ],
        "reason": "Each prefix is clipped to a norm of its own, not all of them to a common one.",
    },
    {
        "name": "training-norm-always-limit",
        "truth": ("run_training", "step.0.prefix.0.kv"),
        "also": AFTER_A_STEP,
        "change": [("        if norm > limit:\n", "        if norm > 0:\n")],
        "reason": "Small gradients are scaled up to the limit, too.",
    },
    {
        "name": "training-rate-one-step-early",
        "truth": ("run_training", "step.0.prefix.0.kv"),
        "also": AFTER_A_STEP,
        "change": [
            ("return p.lr * (len(p.steps) - s) /", "return p.lr * (len(p.steps) - s - 1) /")
        ],
        "reason": "The rate is that of the step after: the last step trains nothing.",
    },
    {
        "name": "training-fall-from-the-start",
        "truth": ("run_training", "step.1.prefix.0.kv"),
        "also": AFTER_A_STEP,
        "change": [("/ (len(p.steps) - p.warmup)", "/ len(p.steps)")],
        "reason": "The fall is measured from step 0, so after a warm-up the rate jumps down.",
    },
    {
        "name": "training-mean-of-means",
        "truth": ("run_training", "step.0.loss"),
        "also": [],
        "change": [
            (
                "each = np.full(len(batch.targets), 1 / M, model.dtype)",
                "each = np.full(len(batch.targets), 1 / len(batch.targets) / len(step),"
                " model.dtype)",
            )
        ],
        "reason": "The micro-batches' means are averaged, which weighs their targets unequally.",
    },
    {
        "name": "training-beta-fixed",
        "truth": ("run_training", "step.0.prefix.0.kv"),
        "also": AFTER_A_STEP,
        "change": [("second / (1 - p.beta2 ** (s + 1))", "second / (1 - 0.999 ** (s + 1))")],
        "reason": "The correction of the second moment takes 0.999 for beta2, whatever was asked.",
    },
    {
        "name": "training-decay-after-step",
        "truth": ("run_training", "step.0.prefix.0.kv"),
        "also": AFTER_A_STEP,
        "change": [
            (
                "                a *= 1 - rate * p.weight_decay\n"
                "                a -= rate * mean / (spread + p.eps)\n",
                "                a -= rate * mean / (spread + p.eps)\n"
                "                a *= 1 - rate * p.weight_decay\n",
            )
        ],
        "reason": "The decay is on the parameters after the step, so the step itself decays, too.",
    },
    {
        "name": "training-idle-prefix-skipped",
        "truth": ("run_training", "step.1.prefix.1.kv"),
        "also": AFTER_A_STEP,
        "change": [
            (
                "                first *= p.beta1\n",
                "                if not g.any():\n                    continue\n"
                "                first *= p.beta1\n",
            )
        ],
        "reason": "A prefix that no sequence of a step has is left out: its moments do not fade,"
        " and"
        " it neither moves nor decays.",
    },
    {
        "name": "training-start-overwritten",
        "truth": ("run_training", ""),
        "also": [],
        "change": [("{name: a.copy() for name, a in p.items()}", "dict(p)")],
        "reason": "The optimizer works on the problem's own arrays, which are the caller's.",
    },
    {
        "name": "training-steps-are-one-array",
        "truth": ("run_training", "step.0.prefix.0.kv"),
        "also": [("run_training", ""), *AFTER_A_STEP],
        "change": [
            (
                'tensors[f"step.{s}.prefix.{i}.{name}"] = a.copy()',
                'tensors[f"step.{s}.prefix.{i}.{name}"] = a',
            )
        ],
        "reason": "Every step's parameters are the same array, which holds the last step's.",
    },
    {
        "name": "training-key-value-before-layer",
        "truth": ("run_training", "step.0.loss"),
        "also": [],
        "change": [
            (
                "boxes = flat.reshape(len(flat), config.n_layer, 2, config.n_head,"
                " config.head_size)\n"
                "    return boxes.transpose(1, 2, 3, 0, 4), hidden",
                "boxes = flat.reshape(len(flat), 2, config.n_layer, config.n_head,"
                " config.head_size)\n"
                "    return boxes.transpose(2, 1, 3, 0, 4), hidden",
            ),
            ("dprefix.transpose(3, 0, 1, 2, 4)", "dprefix.transpose(3, 1, 0, 2, 4)"),
        ],
        "reason": "A row of the network's output is read as (2, L, NH, hs), not as (L, 2, NH, hs).",
    },
    {
        "name": "training-tanh-twice",
        "truth": ("run_training", "step.0.prefix.0.embedding"),
        "also": AFTER_A_STEP,
        "change": [("(1 - hidden**2)", "(1 - np.tanh(hidden) ** 2)")],
        "reason": "hidden is the tanh already, and its derivative takes the tanh again.",
    },
    {
        "name": "training-positions-from-zero",
        "truth": ("run_training", "step.0.loss"),
        "also": [],
        "change": [
            (
                "first_position = [prefix.shape[3] for prefix in prefixes]",
                "first_position = [0 for prefix in prefixes]",
            )
        ],
        "reason": "The first token's position is 0 in training, where it is P.",
    },
    {
        "name": "training-last-micro-batch",
        "truth": ("run_training", "step.0.prefix.0.kv"),
        "also": AFTER_A_STEP,
        "change": [("            total += d\n", "            total[:] = d\n")],
        "reason": "The gradient of a step is its last micro-batch's, not the sum over all of them.",
    },
    {
        "name": "training-moments-of-unclipped",
        "truth": ("run_training", "step.0.prefix.0.kv"),
        "also": AFTER_A_STEP,
        "change": [
            (
                "        p, rate = self.problem, self.rate(s)\n        self.clip(gradients)\n",
                "        p, rate = self.problem, self.rate(s)\n"
                "        raw = [{n: g.copy() for n, g in each.items()} for each in gradients]\n"
                "        self.clip(gradients)\n",
            ),
            (
                "                second += (1 - p.beta2) * g * g\n",
                "                second += (1 - p.beta2) * raw[i][name] * raw[i][name]\n",
            ),
        ],
        "reason": "The second moment is that of the gradients before they were clipped.",
    },
]
