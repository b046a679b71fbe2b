"""Bugs of prefix-tuning's rivals: which weights are trained, prompts, infixes, low-rank paths,
adapters."""

from minprefix.conformance.bug import Bug

_SLIP = "a common slip"
_TOP = 'top = tuple(f"h.{i}." for i in range(L - k, L))'
_BIASES = 'if name.endswith(".bias")'

_FINE_TUNING = [
    Bug(
        "fine-tuning-decay-in-the-gradient",
        "training",
        "methods.fine_tuning",
        (
            (
                "return loss, dweights",
                "return loss, {n: a + 0.01 * self.parameters[n] for n, a in dweights.items()}",
            ),
        ),
        ("full", "dln_f.bias"),
        see="The loss is right; large weights shrink more slowly than small ones under Adam.",
        lesson="L2 in the gradient is divided by Adam's root, weight decay is not: AdamW subtracts "
        "it from the weights.",
        source="most optimizers called Adam with weight_decay",
    ),
    Bug(
        "embeddings-stay-frozen",
        "training",
        "methods.fine_tuning",
        (
            (
                "return cls._copied(model, model.weights)",
                'return cls._copied(model, [n for n in model.weights if n[:2] != "wt" and '
                'n[:3] != "wpe"])',
            ),
        ),
        ("full", "dwpe.weight"),
        see="Fewer parameters than the model has, and the tied head stays, too.",
        lesson="Full fine-tuning trains every weight; count them.",
        source="scripts that exclude the embeddings by name",
    ),
    Bug(
        "bottom-layers-for-top",
        "plumbing",
        "methods.fine_tuning",
        ((_TOP, _TOP.replace("range(L - k, L)", "range(k)")),),
        ("top-layers", "dh.0.attn.c_attn.bias"),
        see="A step takes as long as full fine-tuning's backward, and the result is worse.",
        lesson="The top is where the loss is: layer L-1.",
        source=_SLIP,
    ),
    Bug(
        "one-top-layer-too-many",
        "plumbing",
        "methods.fine_tuning",
        ((_TOP, _TOP.replace("range(L - k, L)", "range(L - k - 1, L)")),),
        ("top-layers", "dh.0.attn.c_attn.bias"),
        see="The table says two layers, the file holds three.",
        lesson="A range that ends at L has L - k as its first of k.",
        source=_SLIP,
    ),
    Bug(
        "last-norm-among-the-top-layers",
        "plumbing",
        "methods.fine_tuning",
        (("name.startswith(top)", 'name.startswith((*top, "ln_f."))'),),
        ("top-layers", "dln_f.bias"),
        see="A few parameters more than k blocks have.",
        lesson="The last layernorm belongs to no block; say whether it is trained.",
        source="implementations differ here without saying so",
    ),
    Bug(
        "bitfit-trains-the-gains",
        "training",
        "methods.fine_tuning",
        ((_BIASES, 'if name.endswith((".bias", "ln_1.weight", "ln_2.weight", "ln_f.weight"))'),),
        ("bitfit", "dh.0.ln_1.weight"),
        see="More parameters than the biases are.",
        lesson="A layernorm's gain is a weight. BitFit is biases alone.",
        source="filters for vectors in the place of biases: `p.ndim == 1`",
    ),
    Bug(
        "bitfit-without-the-norms",
        "training",
        "methods.fine_tuning",
        ((_BIASES, 'if name.endswith(".bias") and "ln_" not in name'),),
        ("bitfit", "dln_f.bias"),
        see="Fewer parameters than the paper's share.",
        lesson="A layernorm has a bias, too.",
        source="filters by the class of the layer: `isinstance(m, Linear)`",
    ),
]

_PROMPT_X = 'x = prompt + model.weights["wpe.weight"][: len(prompt)]'
_PREFIX = "return Prefix(kv.swapaxes(2, 3)), blocks"
_JOINED = "grads._replace(dk=grads.dk + dk, dv=grads.dv + dv)"

_PROMPTS = [
    Bug(
        "prompt-without-positions",
        "maths",
        "methods.prompt_tuning",
        ((_PROMPT_X, "x = prompt.copy()"),),
        ("prompt-tuning", "logits"),
        see="A prompt of real embeddings is not what its tokens are.",
        lesson="The vectors stand in the place of token embeddings: positions are added to them.",
        source="adapters that hand the model hidden states in the place of embeddings",
    ),
    Bug(
        "prompt-at-one-position",
        "plumbing",
        "methods.prompt_tuning",
        ((_PROMPT_X, 'x = prompt + model.weights["wpe.weight"][0]'),),
        ("prompt-tuning", "logits"),
        see="Right for a prompt of one vector.",
        lesson="P vectors have the positions 0 to P-1.",
        source="position ids of zeros for virtual tokens",
    ),
    Bug(
        "prompt-from-position-1",
        "plumbing",
        "methods.prompt_tuning",
        ((_PROMPT_X, 'x = prompt + model.weights["wpe.weight"][1 : len(prompt) + 1]'),),
        ("prompt-tuning", "logits"),
        see="A small loss of quality, and no crash.",
        lesson="GPT-2 counts from 0. Other models keep a row for padding.",
        source="position ids from `cumsum` of the mask without the -1",
    ),
    Bug(
        "text-not-behind-the-prompt",
        "plumbing",
        "methods.prompt_tuning",
        ((_PREFIX, "return Prefix(kv.swapaxes(2, 3), position_offset=0), blocks"),),
        ("prompt-tuning", "logits"),
        see="The text starts at position 0 again, as if there were no prompt.",
        lesson="A prompt takes P positions: the text begins at P.",
        source="caches that are filled by hand, without position ids",
    ),
    Bug(
        "prompt-gradient-is-a-mean",
        "maths",
        "methods.prompt_tuning",
        (
            (
                "return loss, self.prefix_backward(dkv, model, blocks, own)",
                "return loss, self.prefix_backward(dkv / len(batch), model, blocks, own)",
            ),
        ),
        ("prompt-tuning", "dprompt"),
        see="Learning slows down as the batch grows.",
        lesson="All sequences share the prompt, so its gradient is the sum of theirs; the loss has "
        "been averaged already.",
        source=_SLIP,
    ),
    Bug(
        "prompt-without-dk",
        "maths",
        "methods.prompt_tuning",
        ((_JOINED, "grads._replace(dv=grads.dv + dv)"),),
        ("prompt-tuning", "dprompt"),
        see="It learns, more slowly: the prompt does not learn to be looked at.",
        lesson="The text reaches a prompt through its keys and through its values.",
        source=_SLIP,
    ),
    Bug(
        "prompt-without-dv",
        "maths",
        "methods.prompt_tuning",
        ((_JOINED, "grads._replace(dk=grads.dk + dk)"),),
        ("prompt-tuning", "dprompt"),
        see="It hardly learns: the prompt does not learn what to say.",
        lesson="The text reaches a prompt through its keys and through its values.",
        source=_SLIP,
    ),
    Bug(
        "prompt-gradient-from-the-text-alone",
        "maths",
        "methods.prompt_tuning",
        ((_JOINED, "grads._replace(dk=dk, dv=dv)"),),
        ("prompt-tuning", "dprompt"),
        see="Right for the top layer's keys and values; what the vectors do to each other is lost.",
        lesson="A vector's key is seen by the text and by the vectors behind it: the two add up.",
        source=_SLIP,
    ),
    Bug(
        "prompt-layers-in-forward-order",
        "plumbing",
        "methods.prompt_tuning",
        (("iter(dkv[::-1].swapaxes(2, 3))", "iter(dkv.swapaxes(2, 3))"),),
        ("prompt-tuning", "dprompt"),
        see="Right for a model of one layer.",
        lesson="The backward meets the top layer first.",
        source=_SLIP,
    ),
]

_LINEAR = 'linear(h[-1], p[f"weight_{i}"], p[f"bias_{i}"])'
_LAST = 'linear(h[-1], p[f"weight_{last}"], p[f"bias_{last}"])'
_RELU = "dout = dout * (h[i - 1].real > 0)"
_ENCODER_GRADS = "linear_backward_params(dout, h[i - 1])"
_C, _H = "c[t + 1] = f * c[t] + i * g", "h[t + 1] = o * np.tanh(c[t + 1])"
_BACK = "x = np.concatenate([there, back[::-1]], axis=1)"

_P_TUNING = [
    Bug(
        "encoder-without-a-bias",
        "maths",
        "methods.p_tuning",
        ((_LINEAR, _LINEAR.replace('p[f"bias_{i}"]', "None")),),
        ("p-tuning", "logits"),
        see="Right where the bias is 0, as many encoders start.",
        lesson="Test with numbers that are not the start's.",
        source=_SLIP,
    ),
    Bug(
        "encoder-ends-in-a-relu",
        "maths",
        "methods.p_tuning",
        ((_LAST, f"_relu({_LAST})"),),
        ("p-tuning", "logits"),
        see="No number of a prompt is negative, and half of its gradient is wrong.",
        lesson="The last layer is linear: embeddings have both signs.",
        source="networks built by a loop over all layers",
    ),
    Bug(
        "encoder-relu-of-the-wrong-layer",
        "maths",
        "methods.p_tuning",
        ((_RELU, _RELU.replace("h[i - 1]", "h[len(h) - 2]")),),
        ("p-tuning", "dbias_1"),
        see="The upper layers learn rightly, the lower ones drift.",
        lesson="A ReLU's derivative is of its own output.",
        source="names that are used again",
    ),
    Bug(
        "encoder-relu-derivative-missing",
        "maths",
        "methods.p_tuning",
        ((_RELU, "pass"),),
        ("p-tuning", "dbias_2"),
        see="The last layer's gradient alone is right.",
        lesson="Where a ReLU was 0, nothing goes back.",
        source=_SLIP,
    ),
    Bug(
        "encoder-weight-from-the-wrong-input",
        "maths",
        "methods.p_tuning",
        ((_ENCODER_GRADS, "linear_backward_params(dout, h[i])"),),
        ("p-tuning", "dweight_3"),
        see="The gradient has the weight's shape only where all layers have one width.",
        lesson="dW is the layer's input, transposed, times what comes back; not its output.",
        source="layers of equal width hide it",
    ),
    Bug(
        "encoder-embedding-stays",
        "training",
        "methods.p_tuning",
        (('{"embedding": dout, **grads}', '{"embedding": 0 * dout, **grads}'),),
        ("p-tuning", "dembedding"),
        see="The loss goes down, because the network learns around it.",
        lesson="The embedding is a parameter: P-tuning's indices are trained.",
        source="an embedding that is made without a gradient",
    ),
    Bug(
        "lstm-gates-in-another-order",
        "maths",
        "methods.lstm",
        (("i, f, g, o = gates[t]\n        c[t", "f, i, g, o = gates[t]\n        c[t"),),
        ("p-tuning", "logits"),
        see="It trains as well as ever; what PyTorch saved gives nonsense.",
        lesson="PyTorch keeps i, f, g, o; others keep i, g, f, o. The order is part of the format.",
        source="weights moved between libraries",
    ),
    Bug(
        "lstm-without-the-last-tanh",
        "maths",
        "methods.lstm",
        ((_H, "h[t + 1] = o * c[t + 1]"),),
        ("p-tuning", "logits"),
        see="Nearly right for small cells.",
        lesson="h = o tanh(c).",
        source=_SLIP,
    ),
    Bug(
        "lstm-backward-direction-not-turned",
        "plumbing",
        "methods.lstm",
        ((_BACK, _BACK.replace("back[::-1]", "back")),),
        ("p-tuning", "logits"),
        see="Each vector gets the summary of another one.",
        lesson="What was read backwards is turned round again before both are set side by side.",
        source=_SLIP,
    ),
    Bug(
        "lstm-cell-gradient-of-one-step",
        "maths",
        "methods.lstm",
        (("dc = dc + dh * o * (1 - tanh * tanh)", "dc = dh * o * (1 - tanh * tanh)"),),
        ("p-tuning", "dlstm_1.backward.bias"),
        see="It learns what the next vector needs, and nothing over a distance.",
        lesson="The cell passes its gradient on: dc_t has f dc_{t+1} in it.",
        source="a backward written for a plain recurrent network",
    ),
    Bug(
        "lstm-forget-gate-from-the-new-cell",
        "maths",
        "methods.lstm",
        (("dc * cache.c[t] * f", "dc * cache.c[t + 1] * f"),),
        ("p-tuning", "dlstm_1.backward.bias"),
        see="The forget gate alone learns something else.",
        lesson="c_t = f c_{t-1} + i g: f's factor is the cell before.",
        source="an index off by one",
    ),
    Bug(
        "lstm-directions-share-a-gradient",
        "plumbing",
        "methods.lstm",
        (("dout = dxs[0] + dxs[1][::-1]", "dout = dxs[0] + dxs[1]"),),
        ("p-tuning", "dlstm_0.backward.bias"),
        see="The upper layer's gradient is right, the lower one's is that of another order.",
        lesson="What the backward direction gives back is in its own order: turn it round.",
        source=_SLIP,
    ),
]

_SPLITS = "self.splits = np.minimum(rows, ends - 1)"
_SHIFT = "shift[split:end] = self.P"

_INFIX = [
    Bug(
        "source-sees-the-infix",
        "maths",
        "methods.infix",
        (
            ("past_k.append(own_k[:, :0])", "past_k.append(own_k)"),
            ("past_v.append(own_v[:, :0])", "past_v.append(own_v)"),
        ),
        ("infix", "logits"),
        see="The infix behaves like a prefix with odd positions.",
        lesson="What stands behind a token cannot be seen by it: causal attention.",
        source="a cache that is given to the whole sequence",
    ),
    Bug(
        "infix-as-a-prefix",
        "plumbing",
        "methods.infix",
        ((_SPLITS, "self.splits = np.minimum(starts, ends - 1)"),),
        ("infix", "logits"),
        see="Infix-tuning and prefix-tuning have the same results to the last digit.",
        lesson="The infix stands between source and target: [x; INFIX; y].",
        source=_SLIP,
    ),
    Bug(
        "infix-behind-the-last-source-token",
        "plumbing",
        "methods.infix",
        ((_SPLITS, "self.splits = np.minimum(rows + 1, ends - 1)"),),
        ("infix", "logits"),
        see="The first token of the target is predicted as without an infix.",
        lesson="The last token of the source predicts the first of the target: it must see the "
        "infix.",
        source="splitting where the target's tokens begin",
    ),
    Bug(
        "target-not-behind-the-infix",
        "plumbing",
        "methods.infix",
        ((_SHIFT, "shift[split:end] = 0"),),
        ("infix", "logits"),
        see="The infix takes no positions; it still learns.",
        lesson="P slots take P positions, wherever they stand.",
        source=_SLIP,
    ),
    Bug(
        "source-shifted-by-the-infix",
        "plumbing",
        "methods.infix",
        ((_SHIFT, "shift[:] = self.P"),),
        ("infix", "logits"),
        see="Right for a source of one token.",
        lesson="Only what stands behind the infix moves.",
        source="code that was a prefix's before",
    ),
    Bug(
        "infix-gradient-from-the-first-slots",
        "plumbing",
        "methods.infix",
        (("grads.dprefix_k[part][:, split - start :]", "grads.dprefix_k[part][:, : self.P]"),),
        ("infix", "dkv"),
        see="Right for a source of one token.",
        lesson="The past is the source's keys first, then the infix.",
        source=_SLIP,
    ),
    Bug(
        "infix-gradient-is-a-mean",
        "maths",
        "methods.infix",
        (('return value, {"kv": dkv}', 'return value, {"kv": dkv / len(batch)}'),),
        ("infix", "dkv"),
        see="Learning slows down as the batch grows.",
        lesson="All sequences share the infix, so its gradient is the sum of theirs.",
        source=_SLIP,
    ),
]

_OUT = "return out + self.scale * ops.linear(u, B, None), _Cache(x, u, mask)"
_AROUND = "return dout, around if cache.mask is None else around * cache.mask"
_DU = "return self.scale * ops.linear_backward(dout, self._of(layer)[1])"
_DB = "dB, _ = ops.linear_backward_params(dout, cache.u)"
_GRADS = 'return {f"{layer}.lora_A": dA, f"{layer}.lora_B": self.scale * dB}'
_MASKED = "            x = x * mask\n        u = ops.linear(x, A, None)"
_MASK = "to(dropout_mask(x.shape, self.dropout, rng).astype(x.dtype), home(x))"
_DA = "linear_backward_params(self._du(layer, dout, ops), cache.x)"

_LORA = [
    Bug(
        "lora-alpha-not-divided",
        "maths",
        "methods.lora",
        (("return self.alpha / self.rank", "return self.alpha"),),
        ("lora", "logits"),
        see="Right for r = 1; at rank 16 the steps are 16 times too large.",
        lesson="s = alpha / r: alpha keeps its meaning as the rank changes.",
        source="readings of alpha as the scale itself",
    ),
    Bug(
        "lora-scale-twice",
        "maths",
        "methods.lora",
        ((_OUT, _OUT.replace("self.scale *", "self.scale**2 *")),),
        ("lora", "loss"),
        see="Right for alpha = r; else the trained model and the merged one differ.",
        lesson="The scale belongs to the path once.",
        source="a scale in the start of B and one in the forward",
    ),
    Bug(
        "lora-scale-forgotten",
        "maths",
        "methods.lora",
        ((_OUT, _OUT.replace("self.scale * ", "")),),
        ("lora", "loss"),
        see="Right for alpha = r, which many examples have.",
        lesson="Test with alpha that is not r.",
        source=_SLIP,
    ),
    Bug(
        "lora-gradient-unscaled",
        "maths",
        "methods.lora",
        ((_DU, _DU.replace("self.scale * ", "")), (_GRADS, _GRADS.replace("self.scale * ", ""))),
        ("lora", "dh.1.attn.c_attn.lora_B"),
        see="The loss is right; alpha does not change how fast it learns.",
        lesson="What scales the forward scales the backward.",
        source=_SLIP,
    ),
    Bug(
        "lora-dB-unscaled",
        "maths",
        "methods.lora",
        ((_GRADS, _GRADS.replace("self.scale * ", "")),),
        ("lora", "dh.1.attn.c_attn.lora_B"),
        see="A and B learn at different speeds.",
        lesson="dB = s u^T dout: the scale is in both gradients.",
        source=_SLIP,
    ),
    Bug(
        "lora-dA-scaled-twice",
        "maths",
        "methods.lora",
        ((_DA, _DA.replace("self._du(", "self.scale * self._du(")),),
        ("lora", "dh.1.attn.c_attn.lora_A"),
        see="A and B learn at different speeds.",
        lesson="du has the scale in it already.",
        source="formulas copied into two places",
    ),
    Bug(
        "lora-dB-from-x",
        "maths",
        "methods.lora",
        ((_DB, _DB.replace("cache.u", "cache.x")),),
        ("lora", "dh.1.attn.c_attn.lora_B"),
        see="The gradient has the shape of dW, and not of B.",
        lesson="B's input is u = x A.",
        source=_SLIP,
    ),
    Bug(
        "lora-gradients-swapped",
        "plumbing",
        "methods.lora",
        ((_GRADS, 'return {f"{layer}.lora_A": self.scale * dB, f"{layer}.lora_B": dA}'),),
        ("lora", "dh.1.attn.c_attn.lora_B"),
        see="The shapes differ, but for a square matrix of full rank.",
        lesson="Papers write W + B A for (out, in), and W + A B for (in, out): A is the one that "
        "sees x.",
        source="both conventions in one program",
    ),
    Bug(
        "lora-dx-without-the-path",
        "maths",
        "methods.lora",
        ((_AROUND, "return dout, None"),),
        ("lora", "dh.0.attn.c_attn.lora_B"),
        see="Right at the first step, where B is 0, and in the top layer.",
        lesson="dx = dout W^T + du A^T: the path is a way back, too.",
        source="tests with B as it starts",
    ),
    Bug(
        "lora-dx-without-the-frozen-weight",
        "maths",
        "methods.lora",
        ((_AROUND, _AROUND.replace("dout,", "0 * dout,")),),
        ("lora", "dh.0.attn.c_attn.lora_B"),
        see="With B = 0 no gradient arrives in lower layers at all.",
        lesson="A frozen weight has no gradient, but it passes one on.",
        source="`torch.no_grad()` around the frozen layer",
    ),
    Bug(
        "lora-dx-unscaled",
        "maths",
        "methods.lora",
        (
            (
                "around = ops.linear_backward(self._du(layer, dout, ops), A)",
                "around = ops.linear_backward(ops.linear_backward(dout, self._of(layer)[1]), A)",
            ),
        ),
        ("lora", "dh.0.attn.c_attn.lora_B"),
        see="The top layer is right, lower ones are off by little as long as B is small.",
        lesson="dx goes back through s A B.",
        source=_SLIP,
    ),
    Bug(
        "lora-merged-twice",
        "plumbing",
        "methods.lora",
        (
            (
                "return Applied(self.merged(model), None, ops)",
                "return Applied(self.merged(self.merged(model)), None, ops)",
            ),
        ),
        ("lora", "logits"),
        see="Training is right; what is generated is overdone.",
        lesson="Merge once, or keep the path: not both.",
        source="merge calls in `eval()` and again before saving",
    ),
    Bug(
        "lora-merged-unscaled",
        "plumbing",
        "methods.lora",
        (
            (
                'model.weights[f"{layer}.weight"] + scale * (A @ B)',
                'model.weights[f"{layer}.weight"] + A @ B',
            ),
        ),
        ("lora", "logits"),
        see="Training is right; the merged model is another one, but for alpha = r.",
        lesson="What is merged is s A B.",
        source="merging scripts",
    ),
    Bug(
        "lora-trains-the-bias",
        "training",
        "methods.lora",
        (
            (
                _GRADS,
                _GRADS.replace(
                    "self.scale * dB}", 'self.scale * dB, f"{layer}.bias": dout.sum(axis=0)}'
                ),
            ),
        ),
        ("lora", "dh.0.attn.c_attn.bias"),
        see="The base changes with it: without the adapter it is not the base any more.",
        lesson="LoRA trains A and B. Trained biases have to be saved, too.",
        source='PEFT\'s `bias="lora_only"`, chosen by mistake',
    ),
    Bug(
        "lora-dropout-behind-A",
        "maths",
        "methods.lora",
        (
            (_MASK, _MASK.replace("x.shape", "(len(x), self.rank)")),
            (
                _MASKED,
                "        u = ops.linear(x, A, None)\n"
                "        if mask is not None:\n            u, mask = u * mask, None",
            ),
        ),
        ("lora", "loss"),
        see="With a small rank whole directions vanish at once: training is noisy.",
        lesson="Dropout stands before A, on the (N, in) input.",
        source=_SLIP,
    ),
    Bug(
        "lora-dropout-unscaled",
        "maths",
        "methods.lora",
        ((_MASK, _MASK.replace(", self.dropout, rng)", ", self.dropout, rng).astype(bool)")),),
        ("lora", "loss"),
        see="The path is weaker in training than in use.",
        lesson="What is kept is divided by 1 - p, so that the mean stays.",
        source=_SLIP,
    ),
    Bug(
        "lora-dropout-not-in-dA",
        "maths",
        "methods.lora",
        (
            (
                _MASKED,
                "            pass\n"
                "        u = ops.linear(x if mask is None else x * mask, A, None)",
            ),
        ),
        ("lora", "dh.1.mlp.c_fc.lora_A"),
        see="The loss is right, and dA is not the derivative of it.",
        lesson="dA is of the x that A saw: keep that one.",
        source=_SLIP,
    ),
    Bug(
        "lora-dropout-not-in-dx",
        "maths",
        "methods.lora",
        ((_AROUND, "return dout, around"),),
        ("lora", "dh.1.attn.c_attn.lora_B"),
        see="The top layer is right, lower ones are noisy.",
        lesson="The mask that stood on the way in stands on the way back.",
        source=_SLIP,
    ),
]

_WITH_UP = "return out + ops.linear(a, U, b_U), _Cache(out, a, gelu)"
_DZ = "ops.gelu_backward(ops.linear_backward(dout, U), cache.gelu)"
_DH = "return dout + ops.linear_backward(cache.dz, self._of(layer)[0]), None"

_ADAPTERS = [
    Bug(
        "adapter-without-a-way-around",
        "maths",
        "methods.adapters",
        ((_WITH_UP, _WITH_UP.replace("out + ops", "ops")),),
        ("adapters", "logits"),
        see="At the start the model is destroyed: every sublayer gives nearly 0.",
        lesson="out = h + up(gelu(down(h))): near the identity at first.",
        source=_SLIP,
    ),
    Bug(
        "adapter-gradient-without-the-way-around",
        "maths",
        "methods.adapters",
        ((_DH, _DH.replace("dout + ", "")),),
        ("adapters", "dh.1.attn.c_proj.up_bias"),
        see="The top adapter learns, those below it do not.",
        lesson="An addition passes its gradient on to both sides.",
        source=_SLIP,
    ),
    Bug(
        "adapter-gradient-without-its-own-way",
        "maths",
        "methods.adapters",
        ((_DH, "return dout, None"),),
        ("adapters", "dh.1.attn.c_proj.up_bias"),
        see="Nearly right as long as the adapters are nearly the identity.",
        lesson="dh = dout + dz D^T.",
        source="tests near the start, where up is nearly 0",
    ),
    Bug(
        "adapter-gelu-derivative-missing",
        "maths",
        "methods.adapters",
        ((_DZ, "ops.linear_backward(dout, U)"),),
        ("adapters", "dh.1.mlp.c_proj.down_bias"),
        see="Up learns rightly, down does not.",
        lesson="dz = gelu'(z) da.",
        source=_SLIP,
    ),
    Bug(
        "adapter-relu-derivative",
        "maths",
        "methods.adapters",
        ((_DZ, "ops.linear_backward(dout, U) * (cache.a > 0)"),),
        ("adapters", "dh.1.mlp.c_proj.down_bias"),
        see="Nearly right far from 0.",
        lesson="The backward is of the nonlinearity that the forward has.",
        source="papers that leave the nonlinearity open",
    ),
    Bug(
        "adapter-bias-gradient-is-a-mean",
        "maths",
        "methods.adapters",
        (('"up_bias": db_U', '"up_bias": db_U / len(dout)'),),
        ("adapters", "dh.1.mlp.c_proj.up_bias"),
        see="The biases hardly move.",
        lesson="Every token has the bias in it: the gradient is the sum over all of them.",
        source="`mean(axis=0)` for `sum(axis=0)`",
    ),
    Bug(
        "adapter-overwrites-its-input",
        "plumbing",
        "methods.adapters",
        ((_WITH_UP, "out += ops.linear(a, U, b_U)\n        return out, _Cache(out, a, gelu)"),),
        ("adapters", "dh.1.mlp.c_proj.down"),
        see="The loss is right; one gradient is that of the output in the place of the input.",
        lesson="What the backward needs must not be overwritten: += on an array is no new array.",
        source=_SLIP,
    ),
    Bug(
        "houlsby-as-pfeiffer",
        "plumbing",
        "methods.adapters",
        (
            (
                _WITH_UP,
                'out = out + ops.linear(a, U, b_U) * ("mlp" in layer)\n'
                "        return out, _Cache(out, a, gelu)",
            ),
        ),
        ("adapters", "logits"),
        see="Half of the parameters do nothing.",
        lesson="Houlsby has an adapter behind the attention and one behind the MLP.",
        source="two papers under one name",
    ),
]

BUGS = (*_FINE_TUNING, *_PROMPTS, *_P_TUNING, *_INFIX, *_LORA, *_ADAPTERS)
