"""Bugs of attention: scores and scale, the mask, the softmax, where the prefix goes, the way back,
and what is shared that should not be."""

from minprefix.conformance.bug import Bug

_SCORES = "scores = q_b @ keys.swapaxes(1, 2) / hs**0.5"
_VISIBLE = "return np.arange(P + T)[None, :] <= np.arange(T)[:, None] + P"
_MASKED = "pattern = softmax(np.where(visible(T, P), scores, -np.inf))"
_EXP = "e = np.exp(scores - scores.real.max(axis=-1, keepdims=True))"

_SCALE = [
    Bug(
        "scores-unscaled",
        "maths",
        "ops.reference",
        ((_SCORES, "scores = q_b @ keys.swapaxes(1, 2)"),),
        ("attention", "z"),
        see="The pattern is too sharp; losses are a little worse and training is unstable.",
        lesson="q and k have entries of size 1, so q.k has a deviation of sqrt(hs): dividing by it "
        "keeps the softmax out of its flat ends.",
        source="a common slip in first implementations",
    ),
    Bug(
        "scores-divided-by-hs",
        "maths",
        "ops.reference",
        ((_SCORES, "scores = q_b @ keys.swapaxes(1, 2) / hs"),),
        ("attention", "z"),
        see="The pattern is too flat: every token looks everywhere.",
        lesson="The scale is applied once; here q and k have each had a 1/sqrt(hs).",
        source="a kernel that scales, called by code that scales",
    ),
    Bug(
        "keys-and-values-of-tokens-swapped",
        "plumbing",
        "ops.reference",
        (("for a in (q, k, v))  # (NH, T, hs) each", "for a in (q, v, k))  # (NH, T, hs) each"),),
        ("attention", "z"),
        see="Noise for text, although every shape fits.",
        lesson="Keys and values have the same shape: only their order tells them apart.",
        source="a common slip",
    ),
]

_MASK = [
    Bug(
        "mask-shows-the-next-token",
        "plumbing",
        "ops.reference",
        ((_VISIBLE, "return np.arange(P + T)[None, :] <= np.arange(T)[:, None] + P + 1"),),
        ("attention", "z"),
        see="A training loss that is too good to be true, and text that is bad.",
        lesson="The row of token i predicts token i + 1: whoever shows it gives the answer away.",
        source="a common slip",
    ),
    Bug(
        "mask-hides-the-token-itself",
        "plumbing",
        "ops.reference",
        ((_VISIBLE, "return np.arange(P + T)[None, :] < np.arange(T)[:, None] + P"),),
        ("attention", "z"),
        see="A worse loss; without a prefix the first token sees nothing at all and turns to NaN.",
        lesson="A row that is masked out whole is 0/0.",
        source="a common slip",
    ),
    Bug(
        "mask-at-the-wrong-corner",
        "plumbing",
        "ops.reference",
        ((_VISIBLE, "return np.arange(P + T)[None, :] <= np.arange(T)[:, None]"),),
        ("attention", "z"),
        see="Right without a prefix; with one, the first tokens see only some of its slots, and no "
        "token sees its P last neighbours. Off by tenths in the logits.",
        lesson="A causal mask that is not square has two corners to start from: real token i sees "
        "all P slots and the tokens 0..i.",
        source="adapters on GPT-2 with scaled_dot_product_attention(is_causal=True)",
    ),
    Bug(
        "prefix-masked-out",
        "plumbing",
        "ops.reference",
        (
            (
                _VISIBLE,
                "causal = np.arange(P + T)[None, :] <= np.arange(T)[:, None] + P\n"
                "    return causal & (np.arange(P + T) >= P)",
            ),
        ),
        ("attention", "z"),
        see="The output is the base model's, and the gradient of the prefix is exactly 0.",
        lesson="A mask has a polarity, and 1 for 'see' meets 1 for 'hide' where two libraries "
        "meet.",
        source="adapters, on a padded batch",
    ),
    Bug(
        "mask-inverted",
        "plumbing",
        "ops.reference",
        ((_VISIBLE, "return np.arange(P + T)[None, :] > np.arange(T)[:, None] + P"),),
        ("attention", "z"),
        see="Tokens see the future only; the last one sees nothing and turns to NaN.",
        lesson="torch.nn.MultiheadAttention hides where its mask is true, "
        "scaled_dot_product_attention shows there.",
        source="a common slip",
    ),
    Bug(
        "no-mask",
        "plumbing",
        "ops.reference",
        ((_MASKED, "pattern = softmax(scores)"),),
        ("attention", "z"),
        see="A training loss that is too good to be true; decoding, which has no future to see, "
        "gives other numbers.",
        lesson="A decoder without its mask is an encoder.",
        source="a common slip",
    ),
    Bug(
        "mask-of-minus-1e4",
        "maths",
        "ops.reference",
        ((_MASKED, "pattern = softmax(np.where(visible(T, P), scores, -1e4))"),),
        ("attention", "z"),
        see="Right until real scores come near -1e4: then the future shows through.",
        lesson="Only -inf is smaller than every score.",
        source="early GPT-2 code with a `masked_bias` of -1e4, made for float16",
    ),
    Bug(
        "mask-adds-minus-1e4",
        "maths",
        "ops.reference",
        ((_MASKED, "pattern = softmax(scores - 1e4 * ~visible(T, P))"),),
        ("attention", "z"),
        see="Right until one score is 1e4 above the others of its query: then the future shows "
        "through.",
        lesson="What is added must be larger than any difference of scores: only -inf always is.",
        source="attention masks that are added to the scores, made for float16",
    ),
    Bug(
        "mask-of-zero",
        "maths",
        "ops.reference",
        ((_MASKED, "pattern = softmax(np.where(visible(T, P), scores, 0))"),),
        ("attention", "z"),
        see="Every token draws a share from its future, more of it the weaker its own scores are.",
        lesson="A score of 0 is a weight of exp(0) = 1, not of 0.",
        source="a common slip: scores * mask",
    ),
    Bug(
        "mask-after-the-softmax",
        "maths",
        "ops.reference",
        ((_MASKED, "pattern = softmax(scores) * visible(T, P)"),),
        ("attention", "z"),
        see="The first tokens of a text come out too small; rows of the pattern sum to less than "
        "1.",
        lesson="What is hidden must not take part in the sum that normalises.",
        source="a common slip",
    ),
    Bug(
        "mask-of-minus-65504",
        "maths",
        "ops.reference",
        ((_MASKED, "pattern = softmax(np.where(visible(T, P), scores, -65504))"),),
        ("attention", "z"),
        see="Right until real scores come near -65504: then the future shows through.",
        lesson="The smallest number of one precision is an ordinary one in another.",
        source="masks of float16's smallest number, kept when the model was computed in float32",
    ),
    Bug(
        "window-left-on",
        "plumbing",
        "ops.reference",
        (
            (
                _VISIBLE,
                "causal = np.arange(P + T)[None, :] <= np.arange(T)[:, None] + P\n"
                "    return causal & (np.arange(P + T)[None, :] > np.arange(T)[:, None] + P - 256)",
            ),
        ),
        ("attention", "z"),
        see="Short texts are right to the last digit. Long ones forget how they began, and the "
        "prefix with it.",
        lesson="What a layer sees is a setting of the model: a test of ten tokens cannot tell.",
        source="local attention with a window of 256, as every second layer of GPT-Neo has it",
    ),
    Bug(
        "last-tile-of-keys-left-out",
        "plumbing",
        "ops.reference",
        (
            (
                _VISIBLE,
                "causal = np.arange(P + T)[None, :] <= np.arange(T)[:, None] + P\n"
                "    whole = (P + T) // 64 * 64  # tiles of 64 keys\n"
                "    return causal & (np.arange(P + T) < (whole or P + T))",
            ),
        ),
        ("attention", "z"),
        see="Right below 64 keys, and for every multiple of 64. Else the last tokens do not see "
        "themselves.",
        lesson="A number of tiles is rounded up, and the last one is not full.",
        source="kernels that walk over tiles, tried out on sizes that are powers of two",
    ),
    Bug(
        "keys-of-zero-taken-for-padding",
        "plumbing",
        "ops.reference",
        (
            (
                _MASKED,
                "padding = (keys == 0).all(axis=-1)[:, None]  # (NH, 1, P+T)\n"
                "        pattern = softmax(np.where(visible(T, P) & ~padding, scores, -np.inf))",
            ),
        ),
        ("attention", "z"),
        see="A prefix that starts at 0 changes nothing and has no gradient: it stays at 0.",
        lesson="A slot of zeros has a score of 0, which is not the lowest. The lengths tell what "
        "is padding, not the numbers.",
        source="masks that are made from the data, as `x.abs().sum(-1) != 0`",
    ),
]

_SOFTMAX = [
    Bug(
        "softmax-without-the-maximum",
        "maths",
        "ops.reference",
        ((_EXP, "e = np.exp(scores)"),),
        ("attention", "z"),
        see="NaN as soon as a score is above 709 (88 in float32).",
        lesson="exp overflows; a number taken off all scores of a row cancels.",
        source="a common slip",
    ),
    Bug(
        "one-maximum-for-all-scores",
        "maths",
        "ops.reference",
        ((_EXP, "e = np.exp(scores - scores.real.max())"),),
        ("attention", "z"),
        see="NaN for a query whose scores lie far below those of another one, or of another head.",
        lesson="The maximum is taken off row by row: a row far below another's underflows to 0/0.",
        source="a common slip",
    ),
    Bug(
        "softmax-over-the-queries",
        "maths",
        "ops.reference",
        (("return e / e.sum(axis=-1, keepdims=True)", "return e / e.sum(axis=-2, keepdims=True)"),),
        ("attention", "z"),
        see="What a token gives depends on later ones; columns of the pattern sum to 1, rows do "
        "not.",
        lesson="A query divides its attention among the keys.",
        source="a common slip",
    ),
    Bug(
        "softmax-in-float32",
        "maths",
        "ops.reference",
        (
            (
                _EXP,
                "e = np.exp((scores - scores.real.max(axis=-1, keepdims=True)).astype(np.float32))",
            ),
        ),
        ("attention", "z"),
        see="Right to seven digits, for a model in float64, too.",
        lesson="A cast that protects half precision narrows double.",
        source="models that cast their softmax to float32",
    ),
]

_PREFIX = [
    Bug(
        "prefix-after-the-tokens",
        "plumbing",
        "ops.reference",
        (
            ("np.concatenate([prefix_k[b], k_b], axis=1)", "np.concatenate([k_b, prefix_k[b]], 1)"),
            ("np.concatenate([prefix_v[b], v_b], axis=1)", "np.concatenate([v_b, prefix_v[b]], 1)"),
        ),
        ("attention", "z"),
        see="Early tokens see the future and hardly any prefix.",
        lesson="The mask counts on an order; softmax itself would not care.",
        source="a common slip: cat([new, past])",
    ),
    Bug(
        "prefix-of-the-first-sequence-for-all",
        "plumbing",
        "ops.reference",
        (
            ("np.concatenate([prefix_k[b], k_b]", "np.concatenate([prefix_k[0], k_b]"),
            ("np.concatenate([prefix_v[b], v_b]", "np.concatenate([prefix_v[0], v_b]"),
        ),
        ("attention", "z"),
        see="Right for one prefix. Rows that ask for another get the first one, without a word.",
        lesson="A request per row must be honoured or refused.",
        source="PEFT's forward(adapter_names=...), which prefix-tuning ignores",
    ),
    Bug(
        "prefix-of-the-first-head-for-all",
        "plumbing",
        "ops.reference",
        (
            ("[prefix_k[b], k_b]", "[np.repeat(prefix_k[b][:1], len(k_b), axis=0), k_b]"),
            ("[prefix_v[b], v_b]", "[np.repeat(prefix_v[b][:1], len(v_b), axis=0), v_b]"),
        ),
        ("attention", "z"),
        see="A prefix with a fraction of its power; one that was trained elsewhere scores badly.",
        lesson="Broadcasting fills in what a wrong index left out.",
        source="a common slip",
    ),
    Bug(
        "values-of-the-prefix-left-out",
        "maths",
        "ops.reference",
        (
            (
                "zs.append((pattern @ values).swapaxes",
                "zs.append((pattern[:, :, P:] @ values[:, P:]).swapaxes",
            ),
        ),
        ("attention", "z"),
        see="The prefix can only take attention away, and outputs shrink.",
        lesson="A prefix has keys, which draw attention, and values, which answer it.",
        source="a common slip when prefix and tokens are not joined",
    ),
    Bug(
        "unequal-prefixes-padded-with-zeros",
        "plumbing",
        "ops.reference",
        (
            (
                "zs, patterns = [], []",
                "zs, patterns = [], []\n"
                "    most = max(a.shape[1] for a in prefix_k)\n"
                "    prefix_k, prefix_v = (\n"
                "        [np.pad(a, ((0, 0), (most - a.shape[1], 0), (0, 0))) for a in each]\n"
                "        for each in (prefix_k, prefix_v)\n"
                "    )",
            ),
        ),
        ("attention", "z"),
        see="Right while all prefixes have one length; then the short ones lose weight to slots "
        "of zeros.",
        lesson="A slot of zeros is no slot: its score is 0, and its weight exp(0) = 1. For that "
        "reason a zero start is not the base model, either.",
        source="batches of several prefixes, stacked without a mask of their own",
    ),
    Bug(
        "one-sequence-of-the-whole-batch",
        "plumbing",
        "ops.reference",
        (("zs, patterns = [], []", "zs, patterns, offsets = [], [], offsets[[0, -1]]"),),
        ("attention", "z"),
        see="A sequence's numbers depend on those packed before it.",
        lesson="A stream without padding needs its boundaries in attention, and only there.",
        source="packed training without a mask per document",
    ),
]

_BACKWARD = [
    Bug(
        "row-sum-dropped",
        "maths",
        "ops.reference",
        (("dscores = pattern * (dpattern - row_sum)", "dscores = pattern * dpattern"),),
        ("attention", "dq"),
        see="Gradients of keys that no longer sum to 0, and training that wanders.",
        lesson="A softmax that gives to one key takes from all the others.",
        source="students who differentiate softmax as if it were exp",
    ),
    Bug(
        "row-sum-over-the-tokens-alone",
        "maths",
        "ops.reference",
        (
            (
                "row_sum = (dpattern * pattern).sum(axis=-1, keepdims=True)",
                "row_sum = (dpattern * pattern)[:, :, P:].sum(axis=-1, keepdims=True)",
            ),
        ),
        ("attention", "dq"),
        see="Right without a prefix; with one, wrong by its share of the attention.",
        lesson="Prefix and tokens share one softmax: its sum runs over all P + T columns.",
        source="backwards that treat the prefix in a branch of its own",
    ),
    Bug(
        "upstream-of-the-wrong-sequence",
        "plumbing",
        "ops.reference",
        (("dz_b = dz[offsets[b] : offsets[b + 1]]", "dz_b = dz[: offsets[b + 1] - offsets[b]]"),),
        ("attention", "dq"),
        see="Right for one sequence, and for the first of a batch.",
        lesson="Every slice of the stream needs its offset; a test with B = 1 cannot tell.",
        source="a common slip",
    ),
    Bug(
        "scale-forgotten-in-dq",
        "maths",
        "ops.reference",
        (("dq_b = dscores @ keys / hs**0.5", "dq_b = dscores @ keys"),),
        ("attention", "dq"),
        see="The prefix of the top layer has the right gradient, those below have not.",
        lesson="The scale belongs to the scores, so it comes back in both of their factors.",
        source="a common slip",
    ),
    Bug(
        "scale-twice-in-the-backward",
        "maths",
        "ops.reference",
        (
            ("dq_b = dscores @ keys / hs**0.5", "dq_b = dscores @ keys / hs"),
            ("@ q_b / hs**0.5", "@ q_b / hs"),
        ),
        ("attention", "dq"),
        see="Queries and keys learn sqrt(hs) times too slowly, values as they should.",
        lesson="A helper that scales dscores, and a caller that does so again.",
        source="a common slip",
    ),
    Bug(
        "dq-without-the-prefix",
        "maths",
        "ops.reference",
        (("dq_b = dscores @ keys / hs**0.5", "dq_b = dscores[:, :, P:] @ keys[:, P:] / hs**0.5"),),
        ("attention", "dq"),
        see="The prefix of the top layer has the right gradient, those below have not.",
        lesson="A query chose between slots and tokens: both tell it where to move.",
        source="a common slip when prefix and tokens are not joined",
    ),
    Bug(
        "dprefix-unscaled",
        "maths",
        "ops.reference",
        (
            (
                "dkeys = dscores.swapaxes(1, 2) @ q_b / hs**0.5",
                "dkeys = dscores.swapaxes(1, 2) @ q_b",
            ),
        ),
        ("attention", "dk"),
        see="Keys learn sqrt(hs) times too fast, values as they should.",
        lesson="The scale belongs to the scores, so it comes back in both of their factors.",
        source="a common slip in first implementations",
    ),
    Bug(
        "dk-and-dv-swapped",
        "plumbing",
        "ops.reference",
        (
            (
                "AttentionGrads(dq, dk, dv, dprefix_k, dprefix_v)",
                "AttentionGrads(dq, dv, dk, dprefix_k, dprefix_v)",
            ),
        ),
        ("attention", "dk"),
        see="The prefix of the top layer has the right gradient, those below have not.",
        lesson="Keys and values have the same shape: only their order tells them apart.",
        source="a common slip",
    ),
    Bug(
        "dprefix-k-and-v-swapped",
        "plumbing",
        "ops.reference",
        (
            (
                "AttentionGrads(dq, dk, dv, dprefix_k, dprefix_v)",
                "AttentionGrads(dq, dk, dv, dprefix_v, dprefix_k)",
            ),
        ),
        ("attention", "dprefix_k"),
        see="Keys move where values should; as values have the larger gradients, keys run away.",
        lesson="Keys and values have the same shape: only their order tells them apart.",
        source="a common slip",
    ),
    Bug(
        "prefix-gradient-from-the-last-rows",
        "plumbing",
        "ops.reference",
        (
            ("dprefix_k.append(dkeys[:, :P])", "dprefix_k.append(dkeys[:, dkeys.shape[1] - P :])"),
            (
                "dprefix_v.append(dvalues[:, :P])",
                "dprefix_v.append(dvalues[:, dvalues.shape[1] - P :])",
            ),
        ),
        ("attention", "dprefix_k"),
        see="The prefix gets the gradient of the last P keys, which are tokens.",
        lesson="The prefix comes first, so it is the first P rows.",
        source="a common slip",
    ),
    Bug(
        "prefix-gradient-zero",
        "maths",
        "ops.reference",
        (
            ("dprefix_k.append(dkeys[:, :P])", "dprefix_k.append(0 * dkeys[:, :P])"),
            ("dprefix_v.append(dvalues[:, :P])", "dprefix_v.append(0 * dvalues[:, :P])"),
        ),
        ("attention", "dprefix_k"),
        see="The loss does not move, and the prefix stays as it started.",
        lesson="For an upstream of ones at the pattern the gradient of the scores is exactly 0, "
        "and with it that of the keys: a test that uses it passes this.",
        source="a prefix that was detached from the graph",
    ),
    Bug(
        "silent-sequence-skipped",
        "plumbing",
        "ops.reference",
        (
            (
                "dz_b = dz[offsets[b] : offsets[b + 1]].swapaxes(0, 1)  # (NH, T, hs)",
                "dz_b = dz[offsets[b] : offsets[b + 1]].swapaxes(0, 1)  # (NH, T, hs)\n"
                "        if not dz_b.any():  # no loss in this sequence\n"
                "            continue",
            ),
        ),
        ("attention", "dq"),
        see="Right until a sequence has no target: then there are gradients missing, and the rest "
        "moves up into other rows.",
        lesson="A gradient of 0 is a gradient: it has its shape and its place.",
        source="a common slip when code is made faster",
    ),
    Bug(
        "gradients-of-one-array-added-up",
        "plumbing",
        "ops.reference",
        (
            (
                "return AttentionGrads(dq, dk, dv, dprefix_k, dprefix_v)",
                "same = [[j for j, a in enumerate(prefix_k) if a is one] for one in prefix_k]\n"
                "    dprefix_k = [np.sum([dprefix_k[j] for j in js], axis=0) for js in same]\n"
                "    dprefix_v = [np.sum([dprefix_v[j] for j in js], axis=0) for js in same]\n"
                "    return AttentionGrads(dq, dk, dv, dprefix_k, dprefix_v)",
            ),
        ),
        ("attention", "dprefix_k"),
        see="A prefix that B sequences share learns B times too fast; one of a single sequence is "
        "right.",
        lesson="The sum over the uses of a parameter is taken once. Here each use has the whole "
        "sum, and the caller adds them up again.",
        source="gradients that are kept by the array, as `.grad` is",
    ),
]

_SHARING = [
    Bug(
        "queries-scaled-in-place",
        "plumbing",
        "ops.reference",
        ((_SCORES, "q_b *= hs**-0.5\n        scores = q_b @ keys.swapaxes(1, 2)"),),
        ("attention", "q"),
        see="z is right. Whoever looks at q again, the backward first of all, finds it too small.",
        lesson="A slice is a view: an operator with = writes into what it was given.",
        source="a common slip when code is made faster",
    ),
    Bug(
        "prefix-grows-in-place",
        "plumbing",
        "ops.reference",
        (
            (
                "zs.append((pattern @ values).swapaxes(0, 1))",
                "prefix_k[b], prefix_v[b] = keys, values  # the cache for the next call\n"
                "        zs.append((pattern @ values).swapaxes(0, 1))",
            ),
        ),
        ("attention", "prefix_k"),
        see="The first answer is right, the second sees the first text before its own.",
        lesson="A cache that a forward appends to is not the caller's prefix any more: give each "
        "call its own.",
        source="transformers' DynamicCache, handed to two forwards",
    ),
    Bug(
        "patterns-share-a-buffer",
        "plumbing",
        "ops.reference",
        (
            ("def softmax(scores: Array)", "_BUFFERS: dict = {}\n\n\ndef softmax(scores: Array)"),
            (
                "patterns.append(pattern)",
                "kept = _BUFFERS.setdefault((pattern.shape, pattern.dtype), pattern)\n"
                "        kept[...] = pattern\n"
                "        patterns.append(kept)",
            ),
        ),
        ("attention", "cache.pattern"),
        see="Right for one call. With two layers, or two sequences of one length, the backward of "
        "the first uses the pattern of the last.",
        lesson="What is kept for the backward must outlive the next forward.",
        source="a common slip when code is made faster",
    ),
    Bug(
        "outputs-share-a-buffer",
        "plumbing",
        "ops.reference",
        (
            ("def softmax(scores: Array)", "_BUFFERS: dict = {}\n\n\ndef softmax(scores: Array)"),
            (
                "z = np.concatenate(zs)  # (N, NH, hs)",
                "z = _BUFFERS.setdefault((q.shape, q.dtype), np.empty(q.shape, q.dtype))\n"
                "    np.concatenate(zs, out=z)",
            ),
        ),
        ("attention", "z"),
        see="A result that was right when it was returned changes when the next one is computed.",
        lesson="Memory that is returned belongs to the caller.",
        source="a common slip when code is made faster",
    ),
]

BUGS = (*_SCALE, *_MASK, *_SOFTMAX, *_PREFIX, *_BACKWARD, *_SHARING)
