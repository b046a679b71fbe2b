# %% [markdown]
# # Frozen: half a backward
#
# - **You will be able to** say which gradients a frozen model needs, write the whole backward from
#   the loss to the slots of a batch, and predict to the last multiply-add what it costs.
# - **You need** the two halves of a linear layer's backward: [lesson 2](02_backward_by_hand.py);
#   the gradient of a prefix: [lesson 5](05_the_gradient_of_a_prefix.py); the blocks of GPT-2:
#   [lesson 6](06_gpt2_from_its_file.py).
# - **Time** 140 minutes; it runs in 7 seconds.
# - **Difficulty** 4 of 5.
#
# ## Overview
#
# - A layer needs the gradient of its input if anything below it is trained. It needs the gradient
#   of its weights if these are trained. A frozen model needs only the first kind.
# - You write the backward of a block, of the LM head, and of a whole batch with several prefixes.
# - The gradient agrees with the complex step along a random direction, in each layer, to
#   $10^{-12}$.
# - You write a formula for the multiply-adds of a step. It agrees with a count of every matrix
#   product that NumPy really computes. A frozen step costs 67% of a step of fine-tuning.
# - With slots in the top layer only, 19% of the frozen backward is left.
# - You meet a planted bug that freezes too much. The loss falls all the same, and a model of one
#   layer does not show it.
#
# ## What frozen means
#
# The weights of a [frozen](glossary.md#frozen) model do not change, so their gradients are not
# needed. The gradient still has to pass *through* every layer, down to the slots of the lowest one.
# Lesson 2 found two halves in the backward of a linear layer. Neither needs the other. With `x` of
# the shape $(N, in)$, the weight `W` $(in, out)$ and the
# [upstream gradient](glossary.md#upstream-gradient) `dout` $(N, out)$:
#
# $$dx = dout \; W^\top \quad (N, in), \qquad dW = x^\top dout \quad (in, out)$$
#
# The first carries the gradient on to the layer below. The second ends in the weight.

# %%
from minprefix.lessons import drawings

drawings.graph(drawings.MODEL, frozen=drawings.WEIGHTS)

# %% [markdown]
# In the picture the backward runs down the dashed arrows. It leaves out each path to a frozen
# weight. Below block 0 there is nothing but frozen weights, so it ends there.
#
# ### Exercise 7.1: `needed`
#
# *8 minutes · difficulty 2 of 5*
#
# A model has layers $0$ to $L - 1$, the lowest first. `weights` and `slots` are lists of $L$
# Booleans. `weights[i]` says whether the weights of layer $i$ are trained, `slots[i]` whether layer
# $i$ has trained slots. Return two arrays of $L$ Booleans. `need_dx[i]` says whether the gradient
# of the input of layer $i$ has to be computed. `need_dW[i]` says the same of the gradient of its
# weights. The input comes from the layer below; the slots of layer $i$ are not a part of it.

# %%
import numpy as np

from minprefix.lessons import grade


def needed(weights, slots):
    need_dx = ...  # (L,)
    need_dW = ...  # (L,)
    return need_dx, need_dW


grade(needed)

# %% [markdown]
# <details><summary>Hint 1</summary>
#
# Follow the dashed arrows in the picture from the loss. An arrow is worth its work if it leads to
# something that is trained.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# The gradient of the input of layer $i$ is of use to the layers $0$ to $i - 1$ only. Is anything
# trained there, weights or slots?
#
# </details>


# %% jupyter={"source_hidden": true}
def needed(weights, slots):
    trained = np.logical_or(weights, slots)  # (L,)
    need_dx = np.array([trained[:i].any() for i in range(len(trained))])
    need_dW = np.array(weights)
    return need_dx, need_dW


# %%
no, yes = [False] * 4, [True] * 4
for name, weights, slots in (
    ("prefix-tuning", no, yes),
    ("slots in the top layer", no, [False, False, False, True]),
    ("fine-tuning", yes, no),
):
    need_dx, need_dW = needed(weights, slots)
    print(f"{name:22}  dx for {need_dx.sum()} of 4 layers, dW for {need_dW.sum()} of 4")

# %% [markdown]
# **Recap.** A gradient of an input is needed if something below is trained. A gradient of a weight
# is needed if that weight is trained. Prefix-tuning needs the first kind alone.
#
# ## A block, backward
#
# The batch is one stream of $N$ tokens, all texts behind one another, as in
# [lesson 4](04_attention.py). A block of [lesson 6](06_gpt2_from_its_file.py) adds to the
# [residual stream](glossary.md#residual-stream) twice. Backward, each sum $y = x + f(x)$ has two
# ways: the gradient goes around $f$ unchanged, it goes through $f$, and both add up:
#
# $$dx = dy + (\text{the backward of } f)(dy)$$
#
# You wrote the backward of each operation in lessons 2 to 5. Here they are those of the package,
# `minprefix.ops.reference`, under the same names: `ops.linear_backward(dout, weight)`,
# `ops.gelu_backward(dout, cache)`, `ops.layernorm_backward(dout, cache)` and
# `ops.attention_backward(dz, cache)`. No operation whose name ends in `_params` is needed.
#
# ### Exercise 7.2: `mlp_half_backward`
#
# *10 minutes · difficulty 3 of 5*
#
# From `dresid_post` $(N, C)$ compute `dresid_mid` $(N, C)$. The forward was
#
# ```
# m = layernorm(resid_mid)                        (N, C)
# h = linear(m, mlp.c_fc)                         (N, F)
# g = gelu(h)                                     (N, F)
# resid_post = resid_mid + linear(g, mlp.c_proj)  (N, C)
# ```
#
# `b` are the weights of the block under their short names, such as `"mlp.c_fc.weight"`. `ln_2` and
# `gelu` are the [caches](glossary.md#cache) that the forward kept.

# %%
from minprefix.ops import reference as ops


def mlp_half_backward(dresid_post, b, ln_2, gelu):
    dg = ...  # (N, F)
    dh = ...  # (N, F)
    dm = ...  # (N, C)
    dresid_mid = ...  # (N, C)
    return dresid_mid


grade(mlp_half_backward)

# %% [markdown]
# <details><summary>Hint 1</summary>
#
# Take the operations from the last to the first: `mlp.c_proj`, GELU, `mlp.c_fc`, layernorm.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# `dg = ops.linear_backward(dresid_post, b["mlp.c_proj.weight"])`. The way around the MLP comes in
# at the end: it adds `dresid_post`.
#
# </details>


# %% jupyter={"source_hidden": true}
def mlp_half_backward(dresid_post, b, ln_2, gelu):
    dg = ops.linear_backward(dresid_post, b["mlp.c_proj.weight"])  # (N, F)
    dh = ops.gelu_backward(dg, gelu)  # (N, F)
    dm = ops.linear_backward(dh, b["mlp.c_fc.weight"])  # (N, C)
    dresid_mid = dresid_post + ops.layernorm_backward(dm, ln_2)  # (N, C)
    return dresid_mid


# %% [markdown]
# ### Exercise 7.3: `attention_half_backward`
#
# *15 minutes · difficulty 4 of 5*
#
# From `dresid_mid` $(N, C)$ compute `dresid_pre` $(N, C)$, and the gradients of the slots. The
# forward was
#
# ```
# a = layernorm(resid_pre)                        (N, C)
# qkv = linear(a, attn.c_attn)                    (N, 3C)
# q, k, v = the three parts of qkv                (N, NH, hs) each
# z = attention(q, k, v, the slots)               (N, NH, hs), then reshaped to (N, C)
# resid_mid = resid_pre + linear(z, attn.c_proj)  (N, C)
# ```
#
# Within a row of `qkv` come first all queries, then all keys, then all values. `ln_1` and
# `attention` are caches; `attention.q` has the shape $(N, NH, hs)$. The backward of attention wants
# `dz` in that shape, and its result has the parts `dq`, `dk`, `dv`, `dprefix_k` and `dprefix_v`.
# Return `dresid_pre`, `dprefix_k`, `dprefix_v`. If `need_dx` is false, return `None` for
# `dresid_pre`, and compute nothing that only `dresid_pre` needs.


# %%
def attention_half_backward(dresid_mid, b, ln_1, attention, need_dx):
    dz = ...  # (N, C)
    grads = ...
    dqkv = ...  # (N, 3C)
    da = ...  # (N, C)
    dresid_pre = ...  # (N, C)
    return dresid_pre, grads.dprefix_k, grads.dprefix_v


grade(attention_half_backward)

# %% [markdown]
# <details><summary>Hint 1</summary>
#
# The slots' gradients are ready after the backward of attention. All that follows is for
# `dresid_pre`, so `need_dx` is asked at that place.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# `dqkv` holds `dq`, `dk` and `dv` side by side: `np.stack([...], axis=1)` gives $(N, 3, NH, hs)$,
# and a reshape makes $(N, 3C)$ of it.
#
# </details>
#
# <details><summary>Hint 3</summary>
#
# Around and through, as in the MLP: `dresid_mid` plus the gradient that comes out of `ln_1`.
#
# </details>


# %% jupyter={"source_hidden": true}
def attention_half_backward(dresid_mid, b, ln_1, attention, need_dx):
    N, NH, hs = attention.q.shape
    dz = ops.linear_backward(dresid_mid, b["attn.c_proj.weight"])  # (N, C)
    grads = ops.attention_backward(dz.reshape(N, NH, hs), attention)
    if not need_dx:
        return None, grads.dprefix_k, grads.dprefix_v
    dqkv = np.stack([grads.dq, grads.dk, grads.dv], axis=1).reshape(N, -1)  # (N, 3C)
    da = ops.linear_backward(dqkv, b["attn.c_attn.weight"])  # (N, C)
    dresid_pre = dresid_mid + ops.layernorm_backward(da, ln_1)  # (N, C)
    return dresid_pre, grads.dprefix_k, grads.dprefix_v


# %% [markdown]
# The slots' gradients leave the backward at the attention. Only keys and values have slots, so no
# other line speaks of them.
#
# **Recap.** A sum in the forward is two ways in the backward, and both add up. The backward of a
# frozen block uses `linear_backward` and never `linear_backward_params`.
#
# ## From the loss to the slots
#
# Not every token predicts something. Of a [record](glossary.md#record) and its description, only
# the description counts. $M$ of the $N$ rows have a [target](glossary.md#target), and `rows` $(M)$
# says which. Only for these rows the forward computes logits:
#
# ```
# y = layernorm(x[rows])             (M, C)
# logits = y wte^T                   (M, V)
# ```
#
# ### Exercise 7.4: `lm_head_backward`
#
# *8 minutes · difficulty 3 of 5*
#
# From `dlogits` $(M, V)$ compute `dx` $(N, C)$, the gradient of the stream after the last block.
# `w` are the weights under their full names, `ln_f` is the cache of the layernorm. If there is a
# `lm_head.weight` in `w`, the forward used it in the place of `wte.weight`; both are $(V, C)$.


# %%
def lm_head_backward(dlogits, w, ln_f, rows, N):
    dy = ...  # (M, C)
    drows = ...  # (M, C)
    dx = ...  # (N, C)
    return dx


grade(lm_head_backward)

# %% [markdown]
# <details><summary>Hint 1</summary>
#
# The LM head is a linear layer with the weight `wte.T`, $(C, V)$, and without a bias. Its backward
# is the one of any linear layer.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# The loss does not depend on the other rows of the stream, so their gradient is 0. Begin with
# zeros, and write the $M$ rows into their places.
#
# </details>


# %% jupyter={"source_hidden": true}
def lm_head_backward(dlogits, w, ln_f, rows, N):
    weight = w.get("lm_head.weight", w["wte.weight"]).T
    dy = ops.linear_backward(dlogits, weight)  # (M, C)
    drows = ops.layernorm_backward(dy, ln_f)  # (M, C)
    dx = np.zeros_like(drows, shape=(N, drows.shape[1]))  # (N, C)
    dx[rows] = drows
    return dx


# %% [markdown]
# The backward of attention gives a gradient for each text. Several texts may see the same prefix.
# Then its gradient is the sum over these texts, by the chain rule, as for a token that occurs twice
# in [lesson 6](06_gpt2_from_its_file.py).
#
# ### Exercise 7.5: `sum_over_texts`
#
# *6 minutes · difficulty 2 of 5*
#
# `of_texts` is a list of $B$ arrays $(NH, P, hs)$, one for each text; $P$ may differ. Text $b$ sees
# prefix number `prefix_of[b]`. `prefixes` are the slots themselves, in one layer: one array
# $(NH, P, hs)$ for each prefix. Return a list with the gradient of each prefix. If no text sees a
# prefix, its gradient is 0. Leave the arrays of `of_texts` as they are.


# %%
def sum_over_texts(of_texts, prefix_of, prefixes):
    sums = ...
    return sums


grade(sum_over_texts)

# %% [markdown]
# <details><summary>Hint 1</summary>
#
# Begin with an array of zeros for each prefix.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# Go through the texts, and add each gradient to the sum of its prefix. If you begin with the first
# text's own array, `+=` changes that array.
#
# </details>


# %% jupyter={"source_hidden": true}
def sum_over_texts(of_texts, prefix_of, prefixes):
    sums = [np.zeros_like(slots) for slots in prefixes]
    for j, d in zip(prefix_of, of_texts, strict=True):
        sums[j] += d
    return sums


# %% [markdown]
# Now the whole. `keep` is the forward of a batch, in the operations of the package. It returns the
# loss and what the backward needs: the batch, four caches for each block, and those of `ln_f` and
# of the cross-entropy. You wrote it in [lesson 6](06_gpt2_from_its_file.py) for one text.

# %%
from minprefix import Batch


def names_of(w, i):
    """The weights of block i under their names in it."""
    return {name.removeprefix(f"h.{i}."): a for name, a in w.items() if name.startswith(f"h.{i}.")}


def keep(problem):
    """The loss, the batch, and the caches: four of each block, those of ln_f and of the loss."""
    w, cfg = problem.weights, problem.config
    NH, eps = cfg.n_head, cfg.layer_norm_epsilon
    batch = Batch.pack(problem.sequences, problem.loss_from, problem.prefix_of)
    seen = [problem.prefixes[j] for j in batch.prefix]  # for each text (L, 2, NH, P, hs)
    starts = np.array([problem.position_offsets[j] for j in batch.prefix])  # (B,)
    positions = [s + np.arange(T) for s, T in zip(starts, batch.lengths, strict=True)]
    positions = np.concatenate(positions)  # (N,)
    x = ops.embed(batch.tokens, positions, w["wte.weight"], w["wpe.weight"])  # (N, C)
    blocks = []
    for i in range(cfg.n_layer):
        b = names_of(w, i)
        a, ln_1 = ops.layernorm(x, b["ln_1.weight"], b["ln_1.bias"], eps)  # (N, C)
        qkv = ops.linear(a, b["attn.c_attn.weight"], b["attn.c_attn.bias"])  # (N, 3C)
        q, k, v = qkv.reshape(len(x), 3, NH, -1).swapaxes(0, 1)  # (N, NH, hs) each
        prefix_k, prefix_v = [kv[i, 0] for kv in seen], [kv[i, 1] for kv in seen]
        z, attention = ops.attention(q, k, v, prefix_k, prefix_v, batch.offsets)
        z = z.reshape(x.shape)  # (N, C)
        x = x + ops.linear(z, b["attn.c_proj.weight"], b["attn.c_proj.bias"])  # (N, C)
        m, ln_2 = ops.layernorm(x, b["ln_2.weight"], b["ln_2.bias"], eps)  # (N, C)
        h = ops.linear(m, b["mlp.c_fc.weight"], b["mlp.c_fc.bias"])  # (N, F)
        g, gelu = ops.gelu(h)  # (N, F)
        x = x + ops.linear(g, b["mlp.c_proj.weight"], b["mlp.c_proj.bias"])  # (N, C)
        blocks.append((ln_1, attention, ln_2, gelu))
    y, ln_f = ops.layernorm(x[batch.rows], w["ln_f.weight"], w["ln_f.bias"], eps)  # (M, C)
    logits = y @ w.get("lm_head.weight", w["wte.weight"]).T  # (M, V)
    weights = batch.weights / (batch.weights.sum() if problem.reduction == "mean" else 1)
    loss, cross_entropy = ops.cross_entropy(logits, batch.targets, weights.astype(x.dtype))
    return loss, batch, blocks, ln_f, cross_entropy


# %% [markdown]
# ### Exercise 7.6: `run_model`
#
# *30 minutes · difficulty 5 of 5*
#
# Write the backward of a batch: call `keep(problem)`, and walk back from the logits.
# `problem.weights` are the weights under their full names, and `problem.prefixes` is a list of
# arrays $(L, 2, NH, P, hs)$, keys and values. Return a dictionary with
#
# - `loss`, as an array (`np.asarray(loss)`);
# - for each prefix $j$ `prefix.j.dk` and `prefix.j.dv`, $(L, NH, P, hs)$ each;
# - for each layer $i$ the gradient of the stream, `blocks.i.dresid_post` and `blocks.i.dresid_mid`,
#   $(N, C)$ each. These are optional. With them the reference suite finds the layer in which the
#   backward first goes wrong.
#
# `ops.cross_entropy_backward(cross_entropy)` gives `dlogits`, and `names_of(w, i)` the weights of
# block $i$. The batch knows its `rows` and `tokens`, and in `prefix` the number of the prefix that
# each text sees. An answer that calls `loss_and_grad` fails: the point is to write it.


# %%
def run_model(problem):
    dlogits = ...  # (M, V)
    found = ...
    return found


grade(run_model)

# %% [markdown]
# <details><summary>Hint 1</summary>
#
# After `dlogits` comes `lm_head_backward`, and then for each block, from the last to the first,
# `mlp_half_backward` and `attention_half_backward`.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# `blocks[i]` is `(ln_1, attention, ln_2, gelu)`. `batch.prefix[b]` is the number of the prefix that
# text $b$ sees. The dx of block 0 is not needed.
#
# </details>
#
# <details><summary>Hint 3</summary>
#
# Begin with `dkv = [np.zeros_like(kv) for kv in problem.prefixes]`. In layer $i$, write the sums
# over the texts into `dkv[j][i, 0]` and `dkv[j][i, 1]`.
#
# </details>


# %% jupyter={"source_hidden": true}
def run_model(problem):
    w = problem.weights
    loss, batch, blocks, ln_f, cross_entropy = keep(problem)
    dkv = [np.zeros_like(kv) for kv in problem.prefixes]
    dlogits = ops.cross_entropy_backward(cross_entropy)  # (M, V)
    dx = lm_head_backward(dlogits, w, ln_f, batch.rows, len(batch.tokens))
    found = {"loss": np.asarray(loss)}
    for i in reversed(range(len(blocks))):
        b, (ln_1, attention, ln_2, gelu) = names_of(w, i), blocks[i]
        found[f"blocks.{i}.dresid_post"] = dx
        dx = mlp_half_backward(dx, b, ln_2, gelu)
        found[f"blocks.{i}.dresid_mid"] = dx
        dx, *of_texts = attention_half_backward(dx, b, ln_1, attention, need_dx=i > 0)
        for which in (0, 1):  # the keys, the values
            of_layer = [kv[i, which] for kv in problem.prefixes]
            sums = sum_over_texts(of_texts[which], batch.prefix, of_layer)
            for j, total in enumerate(sums):
                dkv[j][i, which] = total
    for j, d in enumerate(dkv):
        found |= {f"prefix.{j}.dk": d[:, 0], f"prefix.{j}.dv": d[:, 1]}
    return found


# %% [markdown]
# This is the backward of prefix-tuning. `loss_and_grad` of the package does the same, and more
# besides: it checks its inputs, and it lets another implementation do the arithmetic. We compare
# both on four records of the [tiny world](glossary.md#tiny-world).

# %%
import minprefix
from minprefix import GPT2, Prefix
from minprefix.conformance.contract import ModelProblem
from minprefix.data.world import table_to_text

model = GPT2.load("tiny", dtype="float64")
P = 5
pairs = list(table_to_text(4, "train", seed=0))
prompts = [model.encode(source + "\n") for source, _ in pairs]
texts = [p + model.encode(target) for p, (_, target) in zip(prompts, pairs, strict=True)]
loss_from = [len(p) for p in prompts]  # the descriptions are the targets
batch = Batch.pack(texts, loss_from=loss_from)
N, M = len(batch.tokens), len(batch.rows)
prefix = Prefix.normal(model.config, length=P, std=0.5, seed=0, dtype="float64")
print(f"{N} tokens, {M} of them with a target")


def relative_error(a, b):
    """The largest difference, as a part of the largest number: 1 means all wrong."""
    return np.abs(a - b).max() / np.abs(b).max()


by_hand = run_model(
    ModelProblem(model.config, model.weights, texts, loss_from, [0] * 4, [prefix.kv], [P])
)
loss, dkv = minprefix.loss_and_grad(model, prefix, batch)  # dkv (L, 2, NH, P, hs)
dkv_by_hand = np.stack([by_hand["prefix.0.dk"], by_hand["prefix.0.dv"]], axis=1)
print(f"by hand and by the package: off by {relative_error(dkv_by_hand, dkv):.1e}")
assert abs(by_hand["loss"] - loss) < 1e-12
assert relative_error(dkv_by_hand, dkv) < 1e-12

# %% [markdown]
# **Recap.** The backward of a batch is the blocks from the last to the first. The rows without a
# target begin with 0. Texts that share a prefix add up.
#
# ## A check that needs no backward
#
# Both ways above use the same operations, so they could share a bug. The
# [complex step](glossary.md#complex-step) needs no backward at all. One number at a time would take
# 6400 forwards. But we may move all numbers of one layer at once, in a random direction $u$. The
# derivative along $u$ is a number that the gradient must give, too. With $kv_i$, $dkv_i$ and $u_i$,
# $(2, NH, P, hs)$ each, for those of layer $i$:
#
# $$\left. \frac{\partial}{\partial \epsilon} \, \ell(kv_i + \epsilon u_i) \right|_{\epsilon = 0}
# = \sum dkv_i \odot u_i$$
#
# That is one forward for each layer. A wrong gradient passes only if its error is at a right angle
# to $u_i$, and $u$ was drawn at random.
#
# ### Exercise 7.7: `slopes_along`
#
# *3 minutes · difficulty 1 of 5*
#
# `dkv` and `u` are $(L, 2, NH, P, hs)$. Return the right side of the formula for each layer, $(L)$.


# %%
def slopes_along(dkv, u):
    slopes = ...  # (L,)
    return slopes


grade(slopes_along)

# %% [markdown]
# <details><summary>Hint 1</summary>
#
# $\odot$ multiplies entry by entry. The sum runs over all axes but the first.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# `sum` takes several axes at once: `axis=(1, 2, 3, 4)`.
#
# </details>


# %% jupyter={"source_hidden": true}
def slopes_along(dkv, u):
    slopes = (dkv * u).sum(axis=(1, 2, 3, 4))  # (L,)
    return slopes


# %%
L = model.config.n_layer
u = np.random.default_rng(1).normal(size=prefix.kv.shape)  # (L, 2, NH, P, hs)
complex_model = GPT2.load("tiny", dtype="complex128")
exact = np.zeros(L)  # (L,): along u in each layer
for i in range(L):
    moved = prefix.kv.astype(complex)
    moved[i] += 1e-30j * u[i]
    loss = minprefix.loss(complex_model, batch, Prefix(moved), ops="reference")
    exact[i] = loss.imag / 1e-30


def check_gradient(package, layers=range(L)):
    """The prefix gradient of `package`, along u, in each of these layers, from the top down."""
    # a package with a bug planted in it has classes of its own
    its_model, its_prefix = package.GPT2(model.config, model.weights), package.Prefix(prefix.kv)
    _, dkv = package.loss_and_grad(its_model, its_prefix, package.Batch(**vars(batch)))
    slopes = slopes_along(dkv, u)
    for i in reversed(layers):
        error = abs(slopes[i] - exact[i]) / np.abs(exact).max()
        assert error < 1e-12, f"layer {i}: {slopes[i]:.2g} along u, not {exact[i]:.2g}"


check_gradient(minprefix)
assert np.abs(slopes_along(dkv_by_hand, u) - exact).max() / np.abs(exact).max() < 1e-12
print("right in every layer:", *(f"{number:.1e}" for number in exact))

# %% [markdown]
# **Recap.** Compare a gradient along a random direction with the complex step, in each layer. This
# check shares no line with the backward.
#
# ## The cost on paper
#
# A product of $(n, m)$ and $(m, p)$ takes $n \cdot m \cdot p$ multiplications, each followed by an
# addition: [multiply-adds](glossary.md#multiply-add). What a GPT-2 has to multiply in the forward,
# in one layer:
#
# | | multiply-adds | |
# |---|---|---|
# | `attn.c_attn` | $N \cdot 3 C^2$ | to queries, keys and values |
# | attention | $2 \, C \sum_b T_b (P + T_b)$ | scores, mixtures of values |
# | `attn.c_proj` | $N \cdot C^2$ | back to the stream |
# | MLP | $N \cdot 2 C F$ | to $F$ numbers and back |
#
# Text $b$ has $T_b$ tokens, and each meets $P + T_b$ keys. A score takes $hs$ multiply-adds in each
# of the $NH$ heads, and $NH \cdot hs = C$. The mixture of the values takes as many. We count every
# pair of a query and a key, also those that the mask hides. At the end the LM head takes
# $M \cdot C V$ for the $M$ rows with a target.
#
# Everything else (layernorm, GELU, softmax, sums) touches each number a few times. A product
# touches it hundreds of times. We leave the rest out of the count.
#
# ### Exercise 7.8: `linear_madds`
#
# *3 minutes · difficulty 1 of 5*
#
# A linear layer reads $N$ rows of `n_in` numbers and makes rows of `n_out` numbers. Return the
# multiply-adds of the forward, of $dx$ and of $dW$, three whole numbers. If the weight is frozen,
# $dW$ is not computed. The bias costs no product.


# %%
def linear_madds(N, n_in, n_out, frozen):
    forward = ...
    dx = ...
    dW = ...
    return forward, dx, dW


grade(linear_madds)

# %% [markdown]
# <details><summary>Hint 1</summary>
#
# Write the shapes of $dx = dout \, W^\top$ and of $dW = x^\top dout$ under the letters.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# The same three sizes are multiplied each time, in another order.
#
# </details>


# %% jupyter={"source_hidden": true}
def linear_madds(N, n_in, n_out, frozen):
    forward = N * n_in * n_out
    dx = N * n_in * n_out
    dW = 0 if frozen else N * n_in * n_out
    return forward, dx, dW


# %% [markdown]
# Attention has no weights. Its backward has four products. Two of them give $dpattern$ and
# $dvalues$, the gradients of the factors in $pattern \; values$. The other two give $dq$ and
# $dkeys$, those of the factors in $q \, keys^\top$. All four carry the gradient on. The
# package's fast implementation, `numpy_ops`, has a fifth. It does not keep the pattern, because the
# patterns of all layers would fill the memory. Its backward computes the scores again.
#
# ### Exercise 7.9: `attention_madds`
#
# *6 minutes · difficulty 2 of 5*
#
# `lengths` is a list with the lengths $T_b$ of the texts, each behind $P$ slots. Return the
# multiply-adds of the forward and of the backward, over all heads of one layer. `recomputes` says
# whether the backward computes the scores again.


# %%
def attention_madds(lengths, P, C, recomputes):
    forward = ...
    backward = ...
    return forward, backward


grade(attention_madds)

# %% [markdown]
# <details><summary>Hint 1</summary>
#
# One product over all heads takes $C \sum_b T_b (P + T_b)$. Count the products.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# Two in the forward, four in the backward, or five.
#
# </details>


# %% jupyter={"source_hidden": true}
def attention_madds(lengths, P, C, recomputes):
    product = C * sum(T * (P + T) for T in lengths)
    forward = 2 * product
    backward = (5 if recomputes else 4) * product
    return forward, backward


# %% [markdown]
# Now a whole step. Four things can be left out:
#
# 1. every $dW$, if the weights are frozen;
# 2. what lies below the attention of layer 0 (its `c_attn`, its `ln_1`, the embedding), if the
#    weights are frozen: nothing is trained there;
# 3. the logits of tokens without a target;
# 4. in the top layer, everything *after* attention for those tokens. They have given their keys and
#    values to the others, and no later layer reads them. So `attn.c_proj` and the MLP of the top
#    layer see $M$ rows.
#
# The last two hold for all training. The first two are the gain of a frozen model.
#
# ### Exercise 7.10: `step_madds`
#
# *15 minutes · difficulty 4 of 5*
#
# Return a dictionary with the multiply-adds of one step: `forward`, `dx` (with the whole backward
# of attention) and `dW`. `lengths` are the lengths of the texts, `rows` is $M$. Without `frozen`,
# all weights are trained, those of the embedding, too. The embedding costs no product. All layers
# have slots. Count attention as `numpy_ops` computes it, with its fifth product. `linear_madds` and
# `attention_madds` are above.


# %%
def step_madds(L, C, F, V, lengths, P, rows, frozen):
    forward = ...
    dx = ...
    dW = ...
    return {"forward": forward, "dx": dx, "dW": dW}


grade(step_madds)

# %% [markdown]
# <details><summary>Hint 1</summary>
#
# Count the linear layers first, as in the forward: `c_attn` for $N$ rows in $L$ layers; `c_proj`
# and the MLP for $N$ rows in $L - 1$ layers and for $M$ rows in the top one; the LM head for $M$
# rows.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# $dx$ of the linear layers costs the same as their forward, except that a frozen model leaves out
# one $N \cdot 3C^2$, that of layer 0. $dW$ costs the same as the forward, or nothing.
#
# </details>
#
# <details><summary>Hint 3</summary>
#
# The backward of attention is computed in all $L$ layers, in layer 0, too: its slots need it.
#
# </details>


# %% jupyter={"source_hidden": true}
def step_madds(L, C, F, V, lengths, P, rows, frozen):
    N = sum(lengths)
    layers = [(N, C, 3 * C)] * L  # c_attn
    for n in [N] * (L - 1) + [rows]:  # what comes after attention
        layers += [(n, C, C), (n, C, F), (n, F, C)]
    layers.append((rows, C, V))  # the LM head
    costs = [linear_madds(*layer, frozen) for layer in layers]
    forward, dx, dW = (sum(parts) for parts in zip(*costs, strict=True))
    of_attention, back_through_it = attention_madds(lengths, P, C, recomputes=True)
    forward += L * of_attention
    dx += L * back_through_it
    if frozen:
        dx -= N * C * 3 * C  # c_attn of layer 0
    return {"forward": forward, "dx": dx, "dW": dW}


# %% [markdown]
# **Recap.** Each linear layer costs $N \cdot in \cdot out$ for the forward, for $dx$ and for $dW$.
# A frozen model leaves out every $dW$, and $dx$ below the attention of layer 0.
#
# ## The cost, counted
#
# A formula is a claim. We check it against what NumPy really multiplies. `Watched` is an array that
# notes the multiply-adds of each matrix product that it takes part in, whether it is written as `@`
# or as `np.matmul`. (NumPy calls its method `__array_ufunc__` for each operation.) The result is
# watched, too. The weights of the model are made such arrays. `Counting` hands each operation on to
# an implementation, and adds up what was noted while it ran.
#
# The row sums that `numpy_ops` writes as `np.einsum` are no matrix products. They touch each number
# once, and belong to the rest that we leave out.

# %%
from collections import Counter

from minprefix.ops import numpy_ops

noted = []  # the multiply-adds of each product


class Watched(np.ndarray):
    __array_priority__ = 1  # joined with a plain array it stays watched

    def __array_ufunc__(self, ufunc, method, *inputs, out=(), **named):
        def plain(arrays):
            return [a.view(np.ndarray) if isinstance(a, Watched) else a for a in arrays]

        inputs = plain(inputs)
        if out:
            named["out"] = tuple(plain(out))
        result = getattr(ufunc, method)(*inputs, **named)
        if ufunc is np.matmul:  # (..., n, m) @ (..., m, p)
            noted.append(result.size * inputs[0].shape[-1])
        return result.view(Watched) if isinstance(result, np.ndarray) else result


class Counting:
    """An implementation that lets `ops` work and counts."""

    def __init__(self, ops):
        self.ops, self.counts, self.of = ops, Counter(), Counter()

    def __getattr__(self, name):
        operation = getattr(self.ops, name)
        ends = {"_params": "dW", "_backward": "dx"}
        part = next((part for end, part in ends.items() if name.endswith(end)), "forward")

        def counted(*arguments):
            noted.clear()
            result = operation(*arguments)
            self.counts[part] += sum(noted)
            self.of[name] += sum(noted)
            return result

        return counted


def count(prefix, batch, need, implementation=numpy_ops, package=minprefix):
    """The gradient of the prefix, and what was counted on the way to it."""
    weights = {name: a.view(Watched) for name, a in model.weights.items()}
    its_model = package.GPT2(model.config, weights)
    its_prefix = package.Prefix(prefix.kv, layers=prefix.layers)
    its_batch, counting = package.Batch(**vars(batch)), Counting(implementation)
    loss_backward = package.model.loss_backward
    _, (dkv,), _ = loss_backward(its_model, its_prefix, its_batch, "mean", counting, need)
    return np.asarray(dkv), counting


# %% [markdown]
# Three ways to the gradient of one prefix. *Everything*: a row of logits for each token, and the
# gradient of each weight. *Fine-tuning*: only the rows with a target, and the gradient of each
# weight. This is what training the whole model needs. *Frozen*: only those rows, and no weight.
# `loss_backward` is what `loss_and_grad` calls. `need` is the set of the weights whose gradient it
# computes.
#
# **Predict.** A frozen step against one of fine-tuning: is it a half, two thirds, three quarters?

# %%
from dataclasses import replace

targets, target_weights = np.zeros(N, int), np.zeros(N)  # (N,) each
targets[batch.rows], target_weights[batch.rows] = batch.targets, batch.weights
# the same loss, with a row for every token: those that were added weigh 0
every_row = replace(batch, rows=np.arange(N), targets=targets, weights=target_weights)

every_weight, no_weight = frozenset(model.weights), frozenset()
ways = {
    "everything": (every_row, every_weight),
    "fine-tuning": (batch, every_weight),
    "frozen": (batch, no_weight),
}
C, V = model.config.n_embd, model.config.vocab_size
sizes = {"L": L, "C": C, "F": 4 * C, "V": V}
gradients, counts = {}, {}
for way, (its_batch, need) in ways.items():
    gradients[way], counting = count(prefix, its_batch, need)
    counts[way] = counting.counts
    parts = "  ".join(f"{part} {number / 1e6:.1f}" for part, number in counts[way].items())
    print(f"{way:12} {counts[way].total() / 1e6:5.1f} million:  {parts}")
    lengths, rows = batch.lengths.tolist(), len(its_batch.rows)
    paper = step_madds(**sizes, lengths=lengths, P=P, rows=rows, frozen=not need)
    assert counts[way] == Counter(paper), f"{way}: paper {paper}, counted {counts[way]}"
    assert relative_error(gradients[way], dkv) < 1e-12, f"{way} has another gradient"

share = counts["frozen"].total() / counts["fine-tuning"].total()
print(f"{M} of {N} tokens have a target; frozen is {share:.0%} of fine-tuning")
assert round(share, 2) == 0.67

# %% [markdown]
# **Answer.** About two thirds. Fine-tuning has three parts of about the same cost: the forward,
# $dx$ and $dW$. The frozen step has two of them. Layer 0 ends early, which makes the share a little
# smaller. Attention has no half that could be left out, which makes it a little larger.

# %% [markdown]
# The count agrees with the paper to the last multiply-add, and all three ways give the same
# gradient. The second matters: a backward that computes nothing has the best count of all.
#
# What exactly was measured? All matrix products of this implementation, on this batch. `reference`
# keeps the pattern, so it must have one product less in each backward of attention. And for texts
# of more than 128 tokens `numpy_ops` leaves out blocks of keys that no query of a block may see.
# Then our formula counts too much.

# %%
for name, implementation, products in (("numpy_ops", numpy_ops, 5), ("reference", ops, 4)):
    _, counting = count(prefix, batch, no_weight, implementation)
    of_one = counting.of["attention"] / 2  # the forward has two
    found = counting.of["attention_backward"] / of_one
    print(f"{name}: {found:.0f} products in the backward of attention")
    assert found == products
    assert counting.counts["forward"] == counts["frozen"]["forward"], "a product was missed"
assert max(lengths) <= 128

long = Batch.pack([texts[0] * 3])
T = len(long.tokens)
_, counting = count(prefix, long, no_weight)
paper = step_madds(**sizes, lengths=[T], P=P, rows=len(long.rows), frozen=True)
share = counting.counts.total() / sum(paper.values())
print(f"one text of {T} tokens: {share:.1%} of what the formula says")
assert T > 128
assert share < 1

# %% [markdown]
# The count also includes work that is not needed. In layer 0 nothing reads $dq$, nor the tokens'
# $dk$ and $dv$: the slots need their own rows alone. In the top layer nothing reads the $z$ of the
# tokens without a target. The package computes them all the same, because one attention and one
# backward serve every layer. Exercise 2 below counts the first two.
#
# **Recap.** A frozen step takes about two thirds of the multiply-adds of fine-tuning. A count is
# true of one implementation: measure it, and say what the formula leaves out.
#
# ## Where the prefix begins
#
# Not every layer must have slots. `Prefix.normal(..., layers=[3])` gives slots to the top layer
# alone. Below it lie only frozen weights, so the backward may stop there.
#
# **Predict.** How much of the frozen backward is left then: a quarter, or less, or more?

# %%
import matplotlib.pyplot as plt

top = Prefix.normal(model.config, length=P, layers=[L - 1], std=0.5, dtype="float64")
_, counting = count(top, batch, no_weight)
counts["top layer"] = counting.counts
left = counts["top layer"]["dx"] / counts["frozen"]["dx"]
print(f"{left:.0%} of the backward is left")
assert round(left, 2) == 0.19

fig, ax = plt.subplots(figsize=(5, 3.6))
start = np.zeros(len(counts))
for part, hatch, colour in (("forward", "", "0.75"), ("dx", "//", "white"), ("dW", "xx", "0.9")):
    numbers = np.array([c[part] for c in counts.values()]) / 1e6
    ax.barh(list(counts), numbers, left=start, hatch=hatch, color=colour, ec="black", label=part)
    start += numbers
ax.invert_yaxis()
ax.set(xlabel="million multiply-adds in a step", title="What is computed, and what is left out")
ax.legend()
fig.tight_layout()
plt.show()

# %% [markdown]
# **Answer.** Less than a quarter. One layer of four is left, and of that layer neither `c_attn` nor
# the rows without a target. The gradient has to pass the LM head in any case, and this adds to it.

# %% [markdown]
# (Whether slots in the top layer alone can learn as much is another question.
# [Lesson 8](08_training_a_prefix.py) has an answer.)
#
# **Recap.** The backward ends at the lowest layer with something trained.
#
# ## The time
#
# Time also goes into all that we did not count, and a machine has other things to do. We take the
# best of several runs, in turns. We assert nothing about a time: it would hold today and here.
#
# **Predict.** Will a frozen step take two thirds of the time, too?

# %%
from time import perf_counter

from minprefix.lessons import real_gpt2


def measure(model, prefix, batch, runs):
    """Seconds of the best run: fine-tuning, and frozen."""
    best = dict.fromkeys([frozenset(model.weights), no_weight], np.inf)
    for _ in range(runs):
        for need in best:
            began = perf_counter()
            minprefix.model.loss_backward(model, prefix, batch, "mean", "numpy", need)
            best[need] = min(best[need], perf_counter() - began)
    return best.values()


def compare(model, batch, runs):
    cfg, slots = model.config, Prefix.normal(model.config, length=P)
    whole, half = measure(model, slots, batch, runs)
    given = cfg.n_layer, cfg.n_embd, cfg.n_inner or 4 * cfg.n_embd, cfg.vocab_size
    given += batch.lengths.tolist(), P, len(batch.rows)
    counted = [sum(step_madds(*given, frozen).values()) for frozen in (False, True)]
    print(f"{model.name}: fine-tuning {whole * 1e3:.0f} ms, frozen {half * 1e3:.0f} ms")
    print(f"  {half / whole:.0%} of the time, {counted[1] / counted[0]:.0%} of the multiply-adds")


compare(GPT2.load("tiny"), batch, runs=12)
real = real_gpt2()
if real is None:
    print("GPT-2 is not at hand: measured on the small model alone")
else:
    lines = [
        f"The {place} is near the river and has been there for years."
        for place in ("mill", "old station", "market hall")
    ]
    compare(real, Batch.pack([real.encode(line) for line in lines]), runs=2)

# %% [markdown]
# **Answer.** The output says what your machine took. Where the two shares differ, the time went
# into what we did not count, or into other programs.

# %% [markdown]
# The gradients of the weights also take memory: as many numbers as the weights themselves. AdamW
# keeps two more for each weight. A frozen model needs none of that, and its forward keeps less
# (exercise 3).
#
# **Recap.** A count says what has to be computed; a clock says what it took. Give both.
#
# ## Break it yourself
#
# It is easy to freeze a model too much. Somebody reads "frozen layers need no gradient" and stops
# the gradient there. The layer's own gradient is not needed. The one that passes through is.
#
# **Predict.** In which layers does `check_gradient` find the prefix's gradient wrong? What does the
# loss do in a training with this bug?

# %%
from minprefix.lessons import caught, planted

broken = planted("gradient-stops-below-the-top")
print(broken)

with caught() as error:  # take this line away, and the lesson stops here
    check_gradient(broken)
print(error)
check_gradient(broken, layers=[L - 1])  # passes: the top layer's gradient is right
wrong, counting = count(prefix, batch, no_weight, package=broken)
assert wrong.shape == prefix.kv.shape
assert counting.counts == counts["frozen"]
largest = np.abs(wrong).max(axis=(1, 2, 3, 4))  # (L,)
print("largest entry, layer by layer:", *(f"{number:.1e}" for number in largest))
assert (largest > 0).tolist() == [False, False, False, True]

# %% [markdown]
# **Answer.** The gradient is 0 in every layer but the top one. For the loss, see below.

# %% [markdown]
# What would you have seen without this check? The gradient has the right shape. The count of the
# multiply-adds is the same, because products with zeros are products, too. With a model of one
# layer the gradient is right. And the loss falls:

# %%
one_layer = GPT2.random(replace(model.config, n_layer=1), seed=2, dtype="float64")
slots = Prefix.normal(one_layer.config, length=P, std=0.5, dtype="float64")
_, right = minprefix.loss_and_grad(one_layer, slots, batch)
its_model, its_prefix = broken.GPT2(one_layer.config, one_layer.weights), broken.Prefix(slots.kv)
_, same = broken.loss_and_grad(its_model, its_prefix, broken.Batch(**vars(batch)))
assert relative_error(same, right) < 1e-12, "with one layer the bug does not show"

from minprefix.optim import AdamW

small = GPT2.load("tiny").weights  # float32, which is enough to train in


def train(package, steps=12):
    """The loss before each step."""
    its_model, its_batch = package.GPT2(model.config, small), package.Batch(**vars(batch))
    its_prefix = package.Prefix.normal(model.config, length=P)
    adam, losses = AdamW(), []
    for _ in range(steps):
        loss, dkv = package.loss_and_grad(its_model, its_prefix, its_batch)
        adam.step(its_prefix.parameters, {"kv": dkv}, lr=0.1)
        losses.append(loss)
    return losses


sound_losses, broken_losses = train(minprefix), train(broken)
for name, losses in (("sound", sound_losses), ("broken", broken_losses)):
    print(f"{name:6}", *(f"{loss:.3f}" for loss in losses[::2]))
assert sound_losses[-1] < broken_losses[-1] < broken_losses[0]

# %% [markdown]
# The slots of the top layer learn, so the loss falls. It falls more slowly than it should, and this
# also happens with a rate that is too small. Only the comparison of the gradient, in every layer,
# with one that was found in another way, names the cause.
#
# ## Remember
#
# - A layer needs $dx$ if something below it is trained, and $dW$ if its own weights are.
# - A sum in the forward is two ways in the backward: around and through. Forgetting one of them
#   still gives a gradient of the right shape.
# - Texts that share a prefix add up. Rows without a target begin with 0.
# - Compare the gradient of every layer with the complex step along a random direction.
# - A frozen step costs about two thirds of the multiply-adds of fine-tuning.
# - A count belongs to an implementation. `numpy_ops` computes the scores a second time: five
#   products, not four.
#
# ## Exercises
#
# **1.** GPT-2 with $L = 12$, $C = 768$, $F = 4C$, $V = 50257$; 10 texts of 54 tokens each, of which
# 25 have a target; $P = 10$. Compare with *everything*: all rows, all weights. How much of it is
# left if only the rows with a target are computed? How much if the model is frozen as well?
#
# <details><summary>Solution 1</summary>
#
# 81%, and then 54%. The LM head alone is nearly a third of the forward over every row, so it pays
# to ask it only for what is wanted.
#
# ```python
# gpt2 = {"L": 12, "C": 768, "F": 4 * 768, "V": 50257, "lengths": [54] * 10, "P": 10}
# everything = sum(step_madds(**gpt2, rows=540, frozen=False).values())
# for frozen in (False, True):
#     left = sum(step_madds(**gpt2, rows=250, frozen=frozen).values()) / everything
#     print(f"frozen {frozen}: {left:.0%}")
#     assert round(100 * left) == (54 if frozen else 81)
# ```
#
# </details>
#
# **2.** In layer 0, nothing reads $dq$ and the tokens' rows of $dkeys$ and $dvalues$. How many
# multiply-adds of the frozen step above go into them? What share of the step is that?
#
# <details><summary>Solution 2</summary>
#
# $dq$ is a whole product, $C \sum_b T_b (P + T_b)$. The tokens are $T_b$ of the $P + T_b$ rows of
# $dkeys$ and of $dvalues$, which makes $2 C \sum_b T_b^2$. Together that is about 1% of the step.
#
# ```python
# unread = C * sum(T * (P + T) + 2 * T * T for T in lengths)
# print(f"{unread:,}: {unread / counts['frozen'].total():.1%} of the step")
# assert 0.005 < unread / counts["frozen"].total() < 0.02
# ```
#
# </details>
#
# **3.** $dx = dout \, W^\top$ does not need $x$. Which arrays of a block need not be kept from the
# forward to the backward, if the model is frozen? How many numbers for each token?
#
# <details><summary>Solution 3</summary>
#
# The inputs of the four linear layers: what comes out of `ln_1` $(N, C)$, out of the attention $(N,
# C)$, out of `ln_2` $(N, C)$ and out of GELU $(N, F)$. With $F = 4C$ these are $7C$ numbers for
# each token in each layer. (Layernorm, GELU and attention must keep theirs: their gradients depend
# on it.)
#
# ```python
# from minprefix.gpt2 import embedding, forward
# from minprefix.model import prepare
#
# stream = prepare(model, batch, prefix)
# x = embedding(stream, model.weights, numpy_ops)
# for need, expected in ((every_weight, 7 * model.config.n_embd), (no_weight, 0)):
#     _, blocks = forward(x, stream, model.weights, model.config, numpy_ops, need)
#     halves = [half for block in blocks for half in block]
#     kept = sum(a.size for half in halves for a in half if isinstance(a, np.ndarray))
#     print(f"{len(need)} weights: {kept / N / L:.0f} numbers for each token and layer")
#     assert kept == N * L * expected
# ```
#
# </details>
#
# Next: [Training a prefix](08_training_a_prefix.py).
