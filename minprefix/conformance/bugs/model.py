"""Bugs above the ops: how a batch is packed, the model forward and backward, the gradient of a
prefix that several sequences share, and decoding."""

from minprefix.conformance.bug import Bug

_POSITIONS = "[np.arange(T) + start for T, start in zip(batch.lengths, starts, strict=True)]"
_MEAN = "return batch.weights / batch.weights.sum()"
_SUM = "sum(of_each[b] for b in rows)"

_BATCH = [
    Bug(
        "targets-not-shifted",
        "plumbing",
        "batch",
        (("targets=tokens[all_rows + 1]", "targets=tokens[all_rows]"),),
        ("model", "loss"),
        see="The loss falls to nearly 0, and the model repeats each word for ever.",
        lesson="Row i predicts token i + 1.",
        source="a common slip; worse where a library shifts, too, and it happens twice",
    ),
    Bug(
        "loss-starts-one-late",
        "plumbing",
        "batch",
        (("np.arange(offsets[b] + starts[b] - 1,", "np.arange(offsets[b] + starts[b],"),),
        ("model", "ln_f.in"),
        see="The first word of every answer is never trained, so answers start badly.",
        lesson="The token that is predicted and the row that predicts it differ by one.",
        source="a common slip",
    ),
    Bug(
        "last-row-predicts-the-next-text",
        "plumbing",
        "batch",
        (
            ("starts[b] - 1, offsets[b + 1] - 1)", "starts[b] - 1, offsets[b + 1])"),
            ("targets=tokens[all_rows + 1]", "targets=np.roll(tokens, -1)[all_rows]"),
        ),
        ("model", "ln_f.in"),
        see="A loss that is a little too high, and endings that run on into another text.",
        lesson="The last row of a sequence has nothing to predict.",
        source="np.roll and packed streams",
    ),
]

_FORWARD = [
    Bug(
        "tokens-of-one-byte",
        "plumbing",
        "batch",
        (
            (
                "tokens, all_rows = np.concatenate(seqs), np.concatenate(rows)",
                "tokens, all_rows = np.concatenate(seqs).astype(np.uint8), np.concatenate(rows)",
            ),
        ),
        ("model", "blocks.0.resid_pre"),
        see="Right in every test, whose vocabulary is small; noise with GPT-2's 50257 tokens.",
        lesson="A type that holds all numbers of a test need not hold those of its use, and a cast "
        "that loses the high bits says nothing.",
        source="token ids stored small, as in data files of uint16",
    ),
    Bug(
        "layers-in-the-order-of-their-names",
        "plumbing",
        "gpt2",
        (
            (
                '    return {name: w[f"h.{i}.{name}"] for name in _NAMES}',
                '    numbers = sorted({n.split(".")[1] for n in w if n.startswith("h.")})\n'
                '    return {name: w[f"h.{numbers[i]}.{name}"] for name in _NAMES}',
            ),
        ),
        ("model", "blocks.2.resid_pre"),
        see="Right up to ten layers; GPT-2 has twelve.",
        lesson='As text, "10" stands between "1" and "2".',
        source="sorted() over the names of a checkpoint",
    ),
    Bug(
        "layer-1-reads-layer-10",
        "plumbing",
        "gpt2",
        (
            (
                '    return {name: w[f"h.{i}.{name}"] for name in _NAMES}',
                '    mine = [n for n in w if n.startswith(f"h.{i}")]\n'
                '    return {n.split(".", 2)[2]: w[n] for n in mine}',
            ),
        ),
        ("model", "blocks.2.resid_pre"),
        see="Right up to ten layers; above, the second one has the weights of the last.",
        lesson='"h.10" starts with "h.1": the dot behind a number belongs to it.',
        source="weights picked by the start of their names",
    ),
    Bug(
        "positions-ignore-the-prefix",
        "plumbing",
        "model",
        (
            (
                "starts = [prefixes[i].position_offset if prefixes else 0 for i in batch.prefix]",
                "starts = [0 for i in batch.prefix]",
            ),
        ),
        ("model", "blocks.0.resid_pre"),
        see="Logits are off by a few tenths; a prefix trained elsewhere scores badly.",
        lesson="Real tokens start at position P in the paper and in PEFT, at 0 in `adapters`.",
        source="adapters against PEFT",
    ),
    Bug(
        "positions-run-on",
        "plumbing",
        "model",
        (
            (
                _POSITIONS,
                "[\n            np.arange(T) + start + first\n            for T, start, first in "
                "zip(batch.lengths, starts, batch.offsets[:-1], strict=True)\n        ]",
            ),
        ),
        ("model", "blocks.0.resid_pre"),
        see="Right for the first sequence of a batch, and for B = 1.",
        lesson="Positions count within a sequence, not along the stream.",
        source="packed training with one arange for the row",
    ),
    Bug(
        "positions-of-a-left-padded-batch",
        "plumbing",
        "model",
        (
            (
                _POSITIONS,
                "[\n            np.arange(T) + start + batch.lengths.max() - T\n            for T, "
                "start in zip(batch.lengths, starts, strict=True)\n        ]",
            ),
        ),
        ("model", "blocks.0.resid_pre"),
        see="The longest sequence of a batch is right; the others depend on how long it is.",
        lesson="Padding on the left moves every token, unless positions are given with it.",
        source="left-padded training without position_ids",
    ),
    Bug(
        "embedding-scaled",
        "maths",
        "gpt2",
        (
            (
                "return ops.embed(stream.tokens",
                'return w["wte.weight"].shape[1] ** 0.5 * ops.embed(stream.tokens',
            ),
        ),
        ("model", "blocks.0.resid_pre"),
        see="Noise for text: the first block hardly matters any more.",
        lesson="The Transformer of 2017 scales its embeddings by sqrt(C), GPT-2 does not.",
        source="code that was written for the Transformer of 2017",
    ),
    Bug(
        "heads-interleaved",
        "plumbing",
        "gpt2",
        (("qkv.reshape(N, 3, NH, C // NH)[:, j]", "qkv.reshape(N, NH, 3, C // NH)[:, :, j]"),),
        ("model", "blocks.0.attn.q"),
        see="Noise for text with more than one head; with one head all is well.",
        lesson="c_attn puts all queries first, then all keys, then all values.",
        source="GPT-NeoX and Megatron, which store q, k, v head by head",
    ),
    Bug(
        "queries-and-keys-swapped",
        "plumbing",
        "gpt2",
        (("[:, j] for j in range(3))", "[:, j] for j in (1, 0, 2))"),),
        ("model", "blocks.0.attn.q"),
        see="Noise for text, although q.k of a token with itself is the same.",
        lesson="c_attn puts all queries first, then all keys, then all values.",
        source="a common slip",
    ),
    Bug(
        "prefix-keys-and-values-swapped",
        "plumbing",
        "gpt2",
        (
            (
                "prefix_k, prefix_v = [kv[0] for kv in past], [kv[1] for kv in past]",
                "prefix_v, prefix_k = [kv[0] for kv in past], [kv[1] for kv in past]",
            ),
        ),
        ("model", "blocks.0.attn.pattern"),
        see="A prefix trained elsewhere is useless. Training from scratch would work as well as "
        "ever if the way back were swapped, too; it is not, and keys learn what values should.",
        lesson="What is consistent with itself is shown wrong only by somebody else's numbers.",
        source="a common slip",
    ),
    Bug(
        "prefix-layers-reversed",
        "plumbing",
        "gpt2",
        (("_block(w, i), stream.past[i],", "_block(w, i), stream.past[cfg.n_layer - 1 - i],"),),
        ("model", "blocks.0.attn.pattern"),
        see="A prefix trained elsewhere is useless; gradients go to the wrong layers.",
        lesson="All layers' keys have one shape: only their order tells them apart.",
        source="a common slip",
    ),
    Bug(
        "every-layer-sees-the-first-prefix",
        "plumbing",
        "model",
        (("past = [[views[j][i] for j", "past = [[views[j][0] for j"),),
        ("model", "blocks.1.attn.pattern"),
        see="A prefix with a fraction of its power.",
        lesson="Each layer has keys and values of its own: that is what sets a prefix apart from a "
        "prompt.",
        source="a common slip",
    ),
    Bug(
        "deeper-layers-see-zeros",
        "plumbing",
        "prefix",
        (("past[i] = (k, v)", "past[i] = (k, v) if i == 0 else (0 * k, 0 * v)"),),
        ("model", "blocks.1.attn.pattern"),
        see="Not the same as no prefix there: a zero key still draws its share of the softmax.",
        lesson="Zero is no neutral element for keys: exp(0) = 1.",
        source="placeholders of zeros where a layer has no prefix",
    ),
    Bug(
        "request-for-a-prefix-ignored",
        "plumbing",
        "model",
        (
            (
                "past = [[views[j][i] for j in batch.prefix]",
                "past = [[views[0][i] for j in batch.prefix]",
            ),
        ),
        ("model", "blocks.0.attn.pattern"),
        see="Right for one prefix. Rows that ask for another get the first one, without a word.",
        lesson="A request per row must be honoured or refused.",
        source="PEFT's forward(adapter_names=...), which prefix-tuning ignores",
    ),
    Bug(
        "attention-residual-from-the-norm",
        "plumbing",
        "gpt2",
        (("x = x + ops.linear(z,", "x = a + ops.linear(z,"),),
        ("model", "blocks.0.resid_mid"),
        see="Noise for text; the gradient, derived for the other graph, does not fit either.",
        lesson="GPT-2 adds to the stream as it was before the norm.",
        source="models with a residual after layernorm (BLOOM has it as a setting)",
    ),
    Bug(
        "second-norm-with-the-weights-of-the-first",
        "plumbing",
        "gpt2",
        (
            (
                'ops.layernorm(x, w["ln_2.weight"], w["ln_2.bias"], eps)',
                'ops.layernorm(x, w["ln_1.weight"], w["ln_1.bias"], eps)',
            ),
        ),
        ("model", "blocks.0.ln_2.out"),
        see="Right on a fresh model, whose norms are all alike.",
        lesson="A copied line of which one name was not changed.",
        source="a common slip",
    ),
    Bug(
        "second-norm-skipped",
        "plumbing",
        "gpt2",
        (('h = ops.linear(m, w["mlp.c_fc.weight"]', 'h = ops.linear(x, w["mlp.c_fc.weight"]'),),
        ("model", "blocks.0.mlp.pre"),
        see="Activations that grow with depth.",
        lesson="The MLP reads the normalised stream, as attention does.",
        source="a common slip",
    ),
    Bug(
        "activation-skipped",
        "plumbing",
        "gpt2",
        (("x = x + ops.linear(g,", "x = x + ops.linear(h,"),),
        ("model", "blocks.0.mlp.out"),
        see="The MLP is one linear map; the loss is much worse.",
        lesson="A result that was computed, returned and not used: no shape complains.",
        source="a common slip",
    ),
    Bug(
        "mlp-residual-forgotten",
        "plumbing",
        "gpt2",
        (("x = x + ops.linear(g,", "x = ops.linear(g,"),),
        ("model", "blocks.1.resid_pre"),
        see="Noise for text: each block starts anew.",
        lesson="A block adds to the stream.",
        source="a common slip",
    ),
    Bug(
        "last-norm-skipped",
        "plumbing",
        "gpt2",
        (("logits = ops.linear(y[rows]", "logits = ops.linear(x[rows]"),),
        ("model", "logits"),
        see="Logits that are far too large and too sure.",
        lesson="GPT-2 has a norm after its last block.",
        source="code written for a model with the norm after each layer",
    ),
    Bug(
        "last-norm-with-a-default-eps",
        "plumbing",
        "gpt2",
        (('w["ln_f.bias"], cfg.layer_norm_epsilon)', 'w["ln_f.bias"], 1e-5)'),),
        ("model", "ln_f.out"),
        see="Right for GPT-2, wrong for every model whose config has another layer_norm_epsilon.",
        lesson="A setting has to reach every place that it is for.",
        source="a common slip",
    ),
    Bug(
        "logits-of-the-next-row",
        "plumbing",
        "model",
        (("(batch.rows, batch.t", "(np.append(batch.rows[1:], batch.rows[-1:]), batch.t"),),
        ("model", "blocks.2.attn.out"),
        see="A loss that falls to nearly 0: the row has seen its own answer.",
        lesson="Row i predicts token i + 1; shifting both undoes it.",
        source="shifting logits as well as labels",
    ),
    Bug(
        "mean-of-the-sequences-means",
        "maths",
        "model",
        (
            (
                _MEAN,
                "n = np.diff(np.searchsorted(batch.rows, batch.offsets))\n"
                "        return np.repeat(1 / np.maximum(n, 1), n) / len(batch)",
            ),
        ),
        ("model", "loss"),
        see="Right while all answers have one length; then words of short answers weigh more.",
        lesson="A mean of means is no mean, unless all counts are equal.",
        source="a common slip",
    ),
    Bug(
        "loss-of-the-last-block",
        "plumbing",
        "gpt2",
        (("        loss = loss + part\n", "        loss = part\n"),),
        ("model", "loss"),
        see="Right up to 512 targets. With more, the loss that is shown is too low, and every "
        "gradient is right.",
        lesson="What is worked out block by block needs a test with two blocks.",
        source="cross-entropy in chunks, to save the memory of the logits",
    ),
    Bug(
        "sum-is-a-mean",
        "plumbing",
        "model",
        (
            (
                'if reduction == "sum":\n        return batch.weights',
                'if reduction == "sum":\n        return batch.weights / batch.weights.sum()',
            ),
        ),
        ("model", "loss"),
        see="A run with the paper's sum learns as many times slower as a batch has targets.",
        lesson="Sum against mean changes the learning rate by a factor that the batch decides.",
        source="losses that default to a mean",
    ),
]

_BACKWARD = [
    Bug(
        "prefixes-told-apart-by-their-arrays",
        "plumbing",
        "conformance.house",
        (
            (
                "        for j, dkv in enumerate(dkvs):\n",
                "        alike = [id(kv) for kv in problem.prefixes]\n"
                "        dkvs = [sum(d for i, d in zip(alike, dkvs) if i == j) for j in alike]\n"
                "        for j, dkv in enumerate(dkvs):\n",
            ),
        ),
        ("model", "prefix.0.dk"),
        see="Two prefixes that start from one array get one gradient, and learn the same.",
        lesson="Where numbers lie is not what they are for: a gradient belongs to a place in the "
        "list, not to an array.",
        source="dictionaries by id(), and parameters that are shared without a word",
    ),
    Bug(
        "weights-compiled-in",
        "plumbing",
        "conformance.house",
        (
            (
                "    weights = {name: a.view() for name, a in problem.weights.items()}\n",
                "    sizes = [problem.config]\n"
                '    for name in ("prefixes", "parameters"):\n'
                "        of_each = getattr(problem, name, [])\n"
                "        sizes += [getattr(a, 'shape', list(a)) for a in of_each]\n"
                '    sizes += [len(ids) for ids in getattr(problem, "sequences", problem.config.'
                "shapes())]\n"
                "    weights = _COMPILED.setdefault(repr((type(problem), sizes)), {\n"
                "        name: a.copy() for name, a in problem.weights.items()\n"
                "    })\n",
            ),
            ("def _model(problem", "_COMPILED: dict = {}\n\n\ndef _model(problem"),
        ),
        ("model", "blocks.0.resid_pre"),
        see="The first model is right, and so is every other of other sizes; a second one of the "
        "same sizes answers with the weights of the first.",
        lesson="What is kept under the shapes of a call must not hold the numbers of one.",
        source="jax.jit of a function that closes over its weights",
    ),
    Bug(
        "gradient-at-the-wrong-rows",
        "plumbing",
        "gpt2",
        (("out[rows] = a", "out[-len(a) :] = a"),),
        ("training", "step.0.prefix.0.gradient.kv"),
        see="Right for one sequence that is predicted from somewhere to its end, or nearly.",
        lesson="Rows that were picked on the way forward are put back where they came from.",
        source="a common slip",
    ),
    Bug(
        "last-norm-skipped-in-the-backward",
        "maths",
        "gpt2",
        (("return ops.layernorm_backward(cache.dy, cache.ln_f), dw", "return cache.dy, dw"),),
        ("model", "blocks.2.dresid_post"),
        see="Every gradient is wrong, though all of them look plausible.",
        lesson="Each line of the forward has its line in the backward.",
        source="a common slip",
    ),
    Bug(
        "residual-dropped-around-the-mlp",
        "maths",
        "gpt2",
        (
            (
                "dx = dx + ops.layernorm_backward(dm, cache.ln_2)",
                "dx = ops.layernorm_backward(dm, cache.ln_2)",
            ),
        ),
        ("model", "blocks.2.dresid_mid"),
        see="Gradients that fade with depth.",
        lesson="x went two ways, so the gradient comes back on two: they add.",
        source="a common slip",
    ),
    Bug(
        "residual-dropped-around-attention",
        "maths",
        "gpt2",
        (
            (
                "dx = dx + ops.layernorm_backward(da, cache.ln_1)",
                "dx = ops.layernorm_backward(da, cache.ln_1)",
            ),
        ),
        ("model", "blocks.1.dresid_post"),
        see="The top layer's prefix has the right gradient; below, gradients fade with depth.",
        lesson="x went two ways, so the gradient comes back on two: they add.",
        source="a common slip",
    ),
    Bug(
        "dqkv-in-the-wrong-order",
        "plumbing",
        "gpt2",
        (("np.stack([grads.dq, grads.dk, grads.dv]", "np.stack([grads.dq, grads.dv, grads.dk]"),),
        ("model", "blocks.2.ln_1.dout"),
        see="The top layer's prefix has the right gradient; those below have not.",
        lesson="The parts go back in the order in which they were cut.",
        source="a common slip",
    ),
    Bug(
        "dqkv-interleaved",
        "plumbing",
        "gpt2",
        (("[grads.dq, grads.dk, grads.dv], axis=1)", "[grads.dq, grads.dk, grads.dv], axis=2)"),),
        ("model", "blocks.2.ln_1.dout"),
        see="The top layer's prefix has the right gradient; those below have not.",
        lesson="A reshape is undone by the same axes in the same order.",
        source="a common slip",
    ),
    Bug(
        "gradient-stops-below-the-top",
        "plumbing",
        "gpt2",
        (("dx = grads.dx\n", "dx = np.zeros_like(grads.dx)\n"),),
        ("model", "blocks.1.dresid_post"),
        see="Only the top layer's prefix moves; training works, and ends at a worse loss.",
        lesson="Frozen weights still pass the gradient on: it is their own gradient that nobody "
        "needs.",
        source="frozen blocks run under no_grad",
    ),
    Bug(
        "every-layer-gets-the-top-gradient",
        "plumbing",
        "gpt2",
        (("        if grads.dx is not None:\n            dx = grads.dx\n", ""),),
        ("model", "blocks.1.dresid_post"),
        see="Only the top layer's prefix has the right gradient; the others look plausible.",
        lesson="The residual stream makes a wrong gradient a good guess of the right one: training "
        "goes on.",
        source="a common slip",
    ),
    Bug(
        "prefix-gradients-in-reverse-order",
        "plumbing",
        "gpt2",
        (("dpast.insert(0, grads.dpast)", "dpast.append(grads.dpast)"),),
        ("model", "prefix.0.dk"),
        see="The first layer learns what the last should; with one layer all is well.",
        lesson="A backward visits the layers from the top; a list that grows remembers that.",
        source="a common slip",
    ),
    Bug(
        "prefix-gradient-keys-and-values-swapped",
        "plumbing",
        "gpt2",
        (("(grads.dprefix_k, grads.dprefix_v)", "(grads.dprefix_v, grads.dprefix_k)"),),
        ("model", "prefix.0.dk"),
        see="Keys move where values should, and run away.",
        lesson="Keys and values have the same shape: only their order tells them apart.",
        source="a common slip",
    ),
    Bug(
        "shared-prefix-last-sequence-wins",
        "plumbing",
        "model",
        ((_SUM, "of_each[rows[-1]]"),),
        ("model", "prefix.0.dk"),
        see="Training learns from one sequence of each batch; larger batches do not help.",
        lesson="What several sequences use gets the sum of what they say.",
        source="a common slip",
    ),
    Bug(
        "shared-prefix-averaged",
        "maths",
        "model",
        ((_SUM, f"{_SUM} / len(of_each)"),),
        ("model", "prefix.0.dk"),
        see="Training is B times too slow, which looks like a small learning rate.",
        lesson="What several sequences use gets the sum; the mean, if any, is already in the loss.",
        source="a common slip",
    ),
    Bug(
        "gradient-of-all-rows-for-every-prefix",
        "plumbing",
        "model",
        (("np.flatnonzero(batch.prefix == i)", "np.arange(len(batch))"),),
        ("model", "prefix.0.dk"),
        see="Right for one prefix. Several of one length all learn every task of the batch; of "
        "unequal lengths, it crashes.",
        lesson="A row's gradient belongs to the prefix that the row saw, and to no other.",
        source="a prefix expanded over the batch and summed back",
    ),
    Bug(
        "embedding-gradient-lost-to-the-head",
        "plumbing",
        "model",
        (("dw[name] = dw[name] + a if name in dw else a", "dw[name] = a"),),
        ("model", "dwte.weight"),
        see="Words learn as outputs and never as inputs.",
        lesson="A tied weight is used twice: both gradients add.",
        source="a common slip with tied weights",
    ),
    Bug(
        "head-gradient-lost-to-the-embedding",
        "plumbing",
        "model",
        (("dw[name] = dw[name] + a if name in dw else a", "dw.setdefault(name, a)"),),
        ("model", "dwte.weight"),
        see="Words learn as inputs and hardly as outputs: the loss falls slowly.",
        lesson="A tied weight is used twice: both gradients add.",
        source="a common slip with tied weights",
    ),
    Bug(
        "position-gradients-from-0",
        "plumbing",
        "gpt2",
        (("dx, stream.tokens, stream.positions, w", "dx, stream.tokens, np.arange(len(dx)), w"),),
        ("model", "dwpe.weight"),
        see="Right for one sequence without a prefix.",
        lesson="The backward needs the positions that the forward used.",
        source="a common slip",
    ),
]

_DECODING = [
    Bug(
        "position-from-the-cache",
        "plumbing",
        "generate",
        (("filled, ends + 1)", "filled, filled[:, 0] + batch.lengths)"),),
        ("decoding", "logits"),
        see="Right where the text starts at position P. Where it starts at 0, the second new token "
        "and all after it are P positions too far.",
        lesson="How full a cache is says which position comes next only if all that is in it had "
        "one.",
        source="position_ids taken from past_key_values.get_seq_length()",
    ),
    Bug(
        "tied-head-in-decoding",
        "plumbing",
        "generate",
        (
            (
                "return head(x, w, cfg, self.ops)",
                "tied = {name: a for name, a in w.items() if name != 'lm_head.weight'}\n"
                "        return head(x, tied, cfg, self.ops)",
            ),
        ),
        ("decoding", "logits"),
        see="Training is right; a model with a head of its own writes noise from the second new "
        "token on.",
        lesson="What two paths share has to be decided in one place.",
        source="a common slip, in code that grew up with GPT-2",
    ),
    Bug(
        "position-not-advanced",
        "plumbing",
        "generate",
        (("        self.position = self.position + 1\n", ""),),
        ("decoding", "logits"),
        see="The first new token is right; then the text stammers.",
        lesson="A cache holds keys and values, and not the position of the next token.",
        source="a common slip",
    ),
    Bug(
        "decoding-starts-at-position-0",
        "plumbing",
        "generate",
        (("filled, ends + 1)", "filled, batch.lengths.copy())"),),
        ("decoding", "logits"),
        see="Training and the first new token are right; from the second on, text is a little "
        "worse than the loss promises.",
        lesson="Training, prefill and decoding must agree on where position P is.",
        source="position offsets that differ between training, prefill and decoding",
    ),
    Bug(
        "cache-not-appended",
        "plumbing",
        "generate",
        (
            (
                "        self._append(blocks, offsets)\n        self.position",
                "        self.position",
            ),
        ),
        ("decoding", "logits"),
        see="Every new token sees the prompt and itself, never the other new ones: it repeats.",
        lesson="A cache that nobody writes to is a constant.",
        source="a common slip",
    ),
    Bug(
        "prefix-lost-after-the-first-token",
        "plumbing",
        "generate",
        (
            (
                "filled = np.array([[layer[b][0].shape[1] for layer in past] for b in "
                "range(len(batch))])",
                "filled = np.zeros((len(batch), len(past)), np.int64)",
            ),
        ),
        ("decoding", "logits"),
        see="Text that starts in the trained style and falls back into the base model's.",
        lesson="In decoding the prefix lives in the cache: prefill must leave it there.",
        source="generate() that hands the prefix over with the first call alone",
    ),
    Bug(
        "newest-key-not-seen",
        "plumbing",
        "generate",
        (
            (
                "self.kv[self.at[s], i, :, :, : self.seen[s, i]]",
                "self.kv[self.at[s], i, :, :, : max(self.seen[s, i] - 1, 0)]",
            ),
        ),
        ("decoding", "logits"),
        see="Each token misses the one before it; text loses its thread.",
        lesson="How many are there, and where the last one is, differ by one.",
        source="a common slip",
    ),
    Bug(
        "keys-cached-as-values",
        "plumbing",
        "generate",
        (("] = block.attn.attention.v", "] = block.attn.attention.k"),),
        ("decoding", "logits"),
        see="The first new token is right, the rest is noise.",
        lesson="A copied line of which one name was not changed.",
        source="a common slip",
    ),
    Bug(
        "cache-of-the-first-text-for-all",
        "plumbing",
        "generate",
        (("k, v = self.kv[self.at[s], i,", "k, v = self.kv[0, i,"),),
        ("decoding", "logits"),
        see="Right for one text at a time; in a batch, all of them answer the first prompt.",
        lesson="Decode two unlike prompts together in a test: one alone cannot tell.",
        source="a common slip",
    ),
    Bug(
        "positions-of-the-texts-that-left",
        "plumbing",
        "generate",
        (("position=self.position[rows],", "position=self.position[: len(rows)],"),),
        ("decoding", "logits"),
        see="Right until a text ends before those after it in the batch.",
        lesson="When texts leave, everything that is kept for each of them leaves with them.",
        source="a common slip",
    ),
]

BUGS = (*_BATCH, *_FORWARD, *_BACKWARD, *_DECODING)
