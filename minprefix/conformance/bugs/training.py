"""Bugs of training: the gradient of a step, the prefix through an MLP, clipping, AdamW, the
schedule."""

from minprefix.conformance.bug import Bug

_UPDATE = "p -= lr * (m_hat / (np.sqrt(v_hat) + self.eps) + self.weight_decay * p)"
_M_HAT = "m_hat = m / (1 - self.beta1**self.t)"
_V_HAT = "v_hat = v / (1 - self.beta2**self.t)"
_MOMENTS = "self.m[name], self.v[name] = np.zeros_like(p), np.zeros_like(p)"
_NORM = (
    "return math.sqrt(float(sum(np.vdot(g, g).real.astype(np.float64) for g in grads.values())))"
)
_CLIP = "if norm > max_norm:\n        for g in grads.values():\n            g *= max_norm / norm"
_PARTS = "for dkv, part in zip(dkvs, parts, strict=True):\n            dkv += part"

_STEP = [
    Bug(
        "trained-in-place",
        "training",
        "conformance.house",
        (("own = {name: a.copy() for name, a in parameters.items()}", "own = dict(parameters)"),),
        ("training", "parameters"),
        see="The run is right, and a second one from the same start is another: it starts where "
        "the first one ended.",
        lesson="An update in place changes whatever else the array is for.",
        source="torch.from_numpy, which shares its memory",
    ),
    Bug(
        "every-step-shows-the-last",
        "training",
        "conformance.house",
        (
            (
                "found[f\"step.{s}.prefix.{name.replace('gradient.', '')}\"] = a.copy()",
                "found[f\"step.{s}.prefix.{name.replace('gradient.', '')}\"] = a",
            ),
        ),
        ("training", "step.0.prefix.0.kv"),
        see="All snapshots of a run are equal, and equal to its end.",
        lesson="A list of one array many times is no history: keep copies.",
        source="p.detach().numpy() of a parameter that goes on being trained",
    ),
    Bug(
        "mean-of-micro-batch-means",
        "training",
        "train",
        (
            ('list(prefixes), batch, "sum", ops)', 'list(prefixes), batch, "mean", ops)'),
            ("dkv /= count", "dkv /= len(batches)"),
            ("return total / count, dkvs", "return total / len(batches), dkvs"),
        ),
        ("training", "step.0.loss"),
        see="Right for one micro-batch, and for equal ones; else the result depends on how a batch "
        "was cut.",
        lesson="A mean per micro-batch is not the mean of the whole batch: add sums, divide once.",
        source="transformers' Trainer until 2024, and most loops with gradient accumulation",
    ),
    Bug(
        "divided-by-the-last-micro-batch",
        "training",
        "conformance.house",
        (
            (
                "count = sum(len(batch.targets) for batch in batches)",
                "count = len(batches[-1].targets)",
            ),
        ),
        ("training", "step.0.loss"),
        see="Loss and gradient are too large by a factor that changes from step to step.",
        lesson="A variable that survives its loop holds the last value.",
        source="a common slip",
    ),
    Bug(
        "last-micro-batch-wins",
        "training",
        "train",
        ((_PARTS, _PARTS.replace("dkv += part", "dkv[...] = part")),),
        ("training", "step.0.prefix.0.gradient.kv"),
        see="The loss that is shown is right; most of a batch is computed for nothing.",
        lesson="Accumulation adds.",
        source="a common slip",
    ),
    Bug(
        "only-the-first-prefix-learns",
        "training",
        "train",
        ((_PARTS, "dkvs[0] += parts[0]"),),
        ("training", "step.0.prefix.1.gradient.embedding"),
        see="The first task learns, the others stay where they started.",
        lesson="A loop over one element hides that it is no loop.",
        source="a common slip",
    ),
    Bug(
        "gradient-not-reset",
        "training",
        "conformance.house",
        (
            ("found: dict[str, Array] = {}\n", "found: dict[str, Array] = {}\n        held = {}\n"),
            (
                "loss, grads = self._gradients(model, prefixes, step)\n",
                "loss, grads = self._gradients(model, prefixes, step)\n"
                "            for name in grads:\n"
                "                held[name] = grads[name] = grads[name] + held.get(name, 0)\n",
            ),
        ),
        ("training", "step.1.prefix.0.gradient.kv"),
        see="The first step is right; then the run overshoots as with too much momentum.",
        lesson="PyTorch adds to .grad: a step begins with zero_grad.",
        source="every course's first training loop",
    ),
    Bug(
        "stale-prefix",
        "training",
        "conformance.house",
        (
            ("found: dict[str, Array] = {}\n", "found: dict[str, Array] = {}\n        seen = []\n"),
            (
                "self._gradients(model, prefixes, step)\n",
                "self._gradients(model, prefixes, step, seen)\n",
            ),
            ("step: Sequence[MicroBatch]\n", "step: Sequence[MicroBatch], seen: list\n"),
            (
                "mean_gradient(model, [p.fold() for p in prefixes],",
                "mean_gradient(model, seen or [seen.append(p.fold()) or seen[-1] for p in "
                "prefixes],",
            ),
        ),
        ("training", "step.1.loss"),
        see="The first step is right; the loss then depends on the batch alone and does not fall.",
        lesson="Keys and values that were computed from parameters are stale after a step.",
        source="a key/value cache of the prefix that is kept over steps",
    ),
]

_MLP = [
    Bug(
        "unflattened-values-first",
        "plumbing",
        "storage.saved",
        (
            (
                "kv = flat.reshape(len(flat), n_layers, 2, n_head, head_size)",
                "kv = flat.reshape(len(flat), 2, n_layers, n_head, head_size).swapaxes(1, 2)",
            ),
        ),
        ("training", "step.0.loss"),
        see="A prefix in PEFT's format is useless; and as the way back is not changed with it, "
        "gradients arrive at other numbers than their own.",
        lesson="Row-major over (P, L, 2, NH, hs): keys and values of a layer lie side by side.",
        source="a common slip with PEFT's prompt_embeddings",
    ),
    Bug(
        "unflattened-without-a-transpose",
        "plumbing",
        "storage.saved",
        (
            (
                "kv = flat.reshape(len(flat), n_layers, 2, n_head, head_size)",
                "return flat.reshape(n_layers, 2, n_head, len(flat), head_size)\n"
                "    kv = flat.reshape(len(flat), n_layers, 2, n_head, head_size)",
            ),
        ),
        ("training", "step.0.loss"),
        see="The shape is right, the slots are mixed up with layers.",
        lesson="A reshape that reorders axes needs a transpose.",
        source="a common slip with PEFT's prompt_embeddings",
    ),
    Bug(
        "flattened-without-a-transpose",
        "plumbing",
        "storage.saved",
        (("kv.transpose(3, 0, 1, 2, 4).reshape", "kv.reshape"),),
        ("training", "step.0.prefix.0.gradient.embedding"),
        see="The loss is right, and the MLP learns nonsense; a flat prefix is not affected.",
        lesson="The backward of a transpose is a transpose.",
        source="a common slip",
    ),
    Bug(
        "tanh-derivative-missing",
        "maths",
        "prefix",
        (("du = dh * (1 - h * h)", "du = dh"),),
        ("training", "step.0.prefix.0.gradient.embedding"),
        see="The last layer learns as it should, the first too fast where tanh is flat.",
        lesson="tanh' = 1 - tanh^2.",
        source="a common slip",
    ),
    Bug(
        "embedding-not-trained",
        "training",
        "prefix",
        (('"embedding": dembedding', '"embedding": 0 * dembedding'),),
        ("training", "step.0.prefix.0.gradient.embedding"),
        see="Training works, a little worse: the rest of the MLP makes up for it.",
        lesson="The embedding of the MLP is a parameter, and not an input.",
        source="an embedding kept as a buffer",
    ),
]

_CLIP_BUGS = [
    Bug(
        "norm-without-the-root",
        "training",
        "optim",
        ((_NORM, "return sum(float(np.vdot(g, g).real) for g in grads.values())"),),
        ("training", "step.0.prefix.0.kv"),
        see="Gradients above 1 are clipped too hard, those below too little.",
        lesson="A norm grows with its vector, not with the square of it.",
        source="a common slip",
    ),
    Bug(
        "sum-of-norms",
        "training",
        "optim",
        ((_NORM, "return sum(float(np.linalg.norm(g)) for g in grads.values())"),),
        ("training", "step.0.prefix.0.embedding"),
        see="Right for a flat prefix, which is one tensor; an MLP is clipped too hard.",
        lesson="Norms of parts add as squares.",
        source="a common slip",
    ),
    Bug(
        "each-tensor-clipped-by-itself",
        "training",
        "optim",
        (
            (
                _CLIP,
                "for g in grads.values():\n"
                "        own = math.sqrt(float(np.vdot(g, g)))\n"
                "        if own > max_norm:\n"
                "            g *= max_norm / own",
            ),
        ),
        ("training", "step.0.prefix.0.embedding"),
        see="Right for a flat prefix, which is one tensor; an MLP moves in another direction.",
        lesson="Clipping by the global norm keeps the direction of the whole gradient.",
        source="tf.clip_by_norm in the place of tf.clip_by_global_norm",
    ),
    Bug(
        "always-clipped",
        "training",
        "optim",
        (("if norm > max_norm:", "if norm > 0:"),),
        # the first step of `ten-steps` whose gradient is below the limit
        ("training", "step.4.prefix.0.kv"),
        see="Small gradients are blown up to the limit: a run never settles.",
        lesson="A limit is no target.",
        source="a common slip",
    ),
]

_ADAM = [
    Bug(
        "unused-prefix-skipped",
        "training",
        "optim",
        (
            (
                "            p = params[name]\n",
                "            p = params[name]\n            if not g.any():\n"
                "                continue\n",
            ),
        ),
        ("training", "step.0.prefix.0.kv"),
        see="A prefix that a batch does not use stands still, with its momentum, and is not "
        "decayed.",
        lesson="A gradient of 0 is a gradient: the moments forget and the decay goes on. Another "
        "rule is possible, and has to be the same wherever a run is repeated.",
        source="PyTorch's optimisers, which skip a parameter whose grad is None",
    ),
    Bug(
        "second-beta-not-passed-on",
        "training",
        "conformance.house",
        (
            (
                "AdamW(p.beta1, p.beta2, p.eps, p.weight_decay)",
                "AdamW(p.beta1, eps=p.eps, weight_decay=p.weight_decay)",
            ),
        ),
        ("training", "step.1.prefix.0.embedding"),
        see="Nothing, as long as beta2 is 0.999.",
        lesson="A setting that is accepted and ignored shows only where it is not the default.",
        source="a common slip",
    ),
    Bug(
        "decay-in-the-gradient",
        "training",
        "optim",
        (
            (
                "            p = params[name]\n",
                "            p = params[name]\n            g = g + self.weight_decay * p\n",
            ),
            (" + self.weight_decay * p)", ")"),
        ),
        ("training", "step.0.prefix.0.kv"),
        see="Decay that hardly depends on its setting.",
        lesson="In AdamW the decay stands apart from the moments; in the gradient it is "
        "normalised away.",
        source="Adam with L2 in the place of AdamW (Loshchilov & Hutter, 2019)",
    ),
    Bug(
        "decay-without-the-rate",
        "training",
        "optim",
        ((_UPDATE, "p -= lr * m_hat / (np.sqrt(v_hat) + self.eps) + self.weight_decay * p"),),
        ("training", "step.0.prefix.0.kv"),
        see="With a decay of 0.1 every step takes a tenth of the parameters away.",
        lesson="Settings of the field count on lr * decay.",
        source="the paper's own symbols, where the decay stands beside the rate",
    ),
    Bug(
        "decay-of-the-gradient",
        "training",
        "optim",
        (("+ self.weight_decay * p)", "+ self.weight_decay * g)"),),
        ("training", "step.0.prefix.0.kv"),
        see="Parameters never shrink, whatever the setting.",
        lesson="Decay pulls the parameter itself towards 0.",
        source="a common slip",
    ),
    Bug(
        "bias-correction-missing",
        "training",
        "optim",
        ((_M_HAT, "m_hat = m"), (_V_HAT, "v_hat = v")),
        ("training", "step.0.prefix.0.kv"),
        see="The first steps are three times too large, and the run may never recover.",
        lesson="Both moments start at 0 and are too small at first; the second one more so.",
        source="a common slip",
    ),
    Bug(
        "bias-correction-one-late",
        "training",
        "optim",
        (
            (_M_HAT, "m_hat = m / (1 - self.beta1 ** (self.t + 1))"),
            (_V_HAT, "v_hat = v / (1 - self.beta2 ** (self.t + 1))"),
        ),
        ("training", "step.0.prefix.0.kv"),
        see="The first steps are off by some tens of percent; after a hundred nobody could tell.",
        lesson="Steps are counted from 1 here: at the first one m / (1 - beta1) is the gradient.",
        source="a common slip",
    ),
    Bug(
        "step-counted-once-per-tensor",
        "training",
        "optim",
        (
            (
                "        self.t += 1\n        for name, g in grads.items():\n",
                "        for name, g in grads.items():\n            self.t += 1\n",
            ),
        ),
        ("training", "step.0.prefix.0.weight_1"),
        see="Right for a flat prefix, which is one tensor; an MLP's first steps are too small.",
        lesson="The count belongs to the step.",
        source="a common slip",
    ),
    Bug(
        "moments-start-anew",
        "training",
        "conformance.house",
        (
            (
                "adam.step(parameters, grads, lr)",
                "AdamW(p.beta1, p.beta2, p.eps, p.weight_decay).step(parameters, grads, lr)",
            ),
        ),
        ("training", "step.1.prefix.0.kv"),
        see="Every step is the sign of its gradient: noisy, and never settling.",
        lesson="An optimiser has a memory: it is made once, and saved with a run.",
        source="an optimiser that is made inside of the loop, or not restored on resuming",
    ),
    Bug(
        "moments-share-memory",
        "training",
        "optim",
        ((_MOMENTS, "self.m[name] = self.v[name] = np.zeros_like(p)"),),
        ("training", "step.0.prefix.0.kv"),
        see="NaN, or steps of any size: one array is both moments.",
        lesson="a = b = np.zeros(...) is one array with two names.",
        source="a well-known trap of Python",
    ),
    Bug(
        "root-missing",
        "training",
        "optim",
        (("(np.sqrt(v_hat) + self.eps)", "(v_hat + self.eps)"),),
        ("training", "step.0.prefix.0.kv"),
        see="Huge steps where gradients are small.",
        lesson="The second moment is divided out as a root: a step has the units of the rate.",
        source="a common slip",
    ),
    Bug(
        "adam-eps-inside-the-root",
        "training",
        "optim",
        (("(np.sqrt(v_hat) + self.eps)", "np.sqrt(v_hat + self.eps)"),),
        ("training", "step.0.prefix.0.kv"),
        see="Parameters with gradients below 1e-4 hardly move.",
        lesson="1e-8 inside of the root weighs as much as 1e-4 outside of it.",
        source="a common slip: other formulas, layernorm's among them, have it inside",
    ),
    Bug(
        "adam-eps-before-the-correction",
        "training",
        "optim",
        (
            (
                "(np.sqrt(v_hat) + self.eps)",
                "((np.sqrt(v) + self.eps) / math.sqrt(1 - self.beta2**self.t))",
            ),
        ),
        ("training", "step.0.prefix.0.kv"),
        see="The same to many digits with eps = 1e-8; another run with the larger eps that some "
        "recipes have.",
        lesson="eps here is the paper's 'epsilon hat', another number than its epsilon.",
        source="TensorFlow's Adam, by its own documentation",
    ),
    Bug(
        "betas-swapped",
        "training",
        "optim",
        (
            (
                "    beta1: float = 0.9\n    beta2: float = 0.999\n",
                "    beta2: float = 0.999\n    beta1: float = 0.9\n",
            ),
        ),
        ("training", "step.1.prefix.0.kv"),
        see="The first step is right; then the run is sluggish and turns too late.",
        lesson="Two numbers of one type, passed by position.",
        source="a common slip",
    ),
]

_SCHEDULE = [
    Bug(
        "warmup-from-0",
        "training",
        "optim",
        (("return lr * (step + 1) / warmup", "return lr * step / warmup"),),
        ("training", "step.0.prefix.0.kv"),
        see="The first step changes nothing.",
        lesson="Step 0 is a step: a rate of 0 wastes its batch.",
        source="a common slip; transformers' linear schedule starts so",
    ),
    Bug(
        "schedule-one-early",
        "training",
        "optim",
        (
            (
                "done = (step - warmup) / max(1, steps - warmup)",
                "done = (step + 1 - warmup) / max(1, steps - warmup)",
            ),
        ),
        ("training", "step.0.prefix.0.kv"),
        see="The last step has a rate of 0 and changes nothing; a run of one step never learns.",
        lesson="The rate is 0 after the last step, not at it.",
        source="schedulers that are stepped before the optimiser",
    ),
    Bug(
        "schedule-ignored",
        "training",
        "optim",
        (("return lr * (1 - done)\n", "return lr\n"),),
        ("training", "step.4.prefix.0.kv"),
        see="The run starts as it should and never settles.",
        lesson="A setting that is accepted and ignored shows only at the end.",
        source="a scheduler that nobody steps",
    ),
]

BUGS = (*_STEP, *_MLP, *_CLIP_BUGS, *_ADAM, *_SCHEDULE)
