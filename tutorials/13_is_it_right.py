# %% [markdown]
# # How do you know that it is right?
#
# - **You will be able to** prove a gradient with four unlike witnesses, say what each of them
#   cannot see, and measure how much a check of your own is worth.
# - **You need** the gradient of a prefix and its three proofs:
#   [lesson 5](05_the_gradient_of_a_prefix.py).
# - **Time** 50 minutes; it runs in 6 seconds.
# - **Difficulty** 2 of 3.
#
# A wrong gradient does not crash. The shapes fit, nothing is NaN, the loss falls. So the question
# is not "does it run?" but "who says that it is right, and could they have noticed if it were not?"
#
# ## First witness: paper
#
# Numbers so small that a pencil does. One head, one slot, one token, $hs = 4$; the query $q$, the
# slot's key and value and the token's key and value have shape $(1, 4)$, and only their first
# number is not 0:
#
# $$q_1 = 2, \quad k^{pre}_1 = \log(3), \quad k_1 = 0, \quad v^{pre}_1 = 4, \quad v_1 = 8$$
#
# Forward. The scores, $(1, 2)$, are $q K^\top / \sqrt{hs}$, and $\sqrt{4} = 2$:
#
# $$\begin{aligned}
# scores &= \tfrac{1}{2} \, (2 \log(3), \; 0) = (\log(3), \; 0) \\
# pattern &= \frac{(3, \; 1)}{3 + 1} = (\tfrac{3}{4}, \; \tfrac{1}{4}) \\
# z_1 &= \tfrac{3}{4} \cdot 4 + \tfrac{1}{4} \cdot 8 = 5
# \end{aligned}$$
#
# Backward, with an upstream $dz_1 = 1$ and 0 for the other three. The values come first,
# $dV = pattern^\top dz$: $\; dv^{pre}_1 = \tfrac{3}{4}$ and $dv_1 = \tfrac{1}{4}$. Then pattern and
# scores, $(1, 2)$ each:
#
# $$\begin{aligned}
# dpattern &= dz \, V^\top = (4, \; 8) \\
# dscores &= pattern \odot (dpattern - 5) = (-\tfrac{3}{4}, \; \tfrac{3}{4})
# \end{aligned}$$
#
# The 5 is the row sum $\tfrac{3}{4} \cdot 4 + \tfrac{1}{4} \cdot 8$. Last the keys,
# $dK = dscores^\top q / \sqrt{hs}$, and the query, $dq = dscores \, K / \sqrt{hs}$:
#
# $$dk^{pre}_1 = -\tfrac{3}{4} \cdot \tfrac{2}{2} = -\tfrac{3}{4}, \quad
# dk_1 = \tfrac{3}{4}, \quad dq_1 = -\tfrac{3}{8} \log(3)$$
#
# The package works on a *stream*, as in lesson 5: $(N, NH, hs)$ for $N$ tokens of all sequences and
# $NH$ heads, `offsets`, and for each sequence a prefix of $(NH, P, hs)$. Here all of these are
# $(1, 1, 4)$.

# %%
import numpy as np

from minprefix.ops import numpy_ops, reference


def first(number):
    """Zeros, and `number` in the first place."""
    a = np.zeros((1, 1, 4))
    a.flat[0] = number
    return a


HAND = {"q": 2, "k": 0, "v": 8, "prefix_k": np.log(3), "prefix_v": 4}
HAND_GRADS = {
    "q": -3 / 8 * np.log(3),
    "k": 3 / 4,
    "v": 1 / 4,
    "prefix_k": -3 / 4,
    "prefix_v": 3 / 4,
}


def check_by_hand(ops):
    a = {name: first(number) for name, number in HAND.items()}
    prefixes = [a["prefix_k"]], [a["prefix_v"]]
    z, cache = ops.attention(a["q"], a["k"], a["v"], *prefixes, np.array([0, 1]))
    assert np.abs(z - first(5)).max() < 1e-13, f"z is {z.ravel()}, by hand 5 0 0 0"
    # "dq" -> dq, and so on
    grads = ops.attention_backward(first(1), cache)._asdict()
    for name, number in HAND_GRADS.items():
        # (1, 1, 4); dprefix_k and dprefix_v are lists with one entry
        got = np.asarray(grads[f"d{name}"]).reshape(1, 1, 4)
        off = np.abs(got - first(number)).max()
        assert off < 1e-13, f"d{name} is {got.ravel()}, by hand {number:.4g} 0 0 0"


for ops in (reference, numpy_ops):
    check_by_hand(ops)
print("the pencil agrees with both implementations")

# %% [markdown]
# Nobody else can have made the same mistake: this witness owes nothing to any program. What it
# cannot see is what its numbers are too small for. One token has no future, so no mask; one
# sequence has no neighbour.
#
# ## Second and third witness: the derivative as a limit
#
# Now any numbers: two sequences of 3 and 2 tokens, two heads, and two slots that both sequences
# share. To try layernorm and GELU with the same code, on $(N, C)$, we give every operation its
# inputs under their names, and write three functions: one runs it, one runs its backward, one gives
# the loss $\ell = \sum dout \odot out$, whose gradient for the output is the upstream $dout$.

# %%
NH, P, hs, C = 2, 2, 4, 6
OFFSETS = np.array([0, 3, 5])  # two sequences, N = 5 tokens
SHAPES = {
    "layernorm": {"x": (5, C), "gain": (C,), "bias": (C,)},
    "gelu": {"x": (5, C)},
    "attention": dict.fromkeys(("q", "k", "v"), (5, NH, hs))
    | dict.fromkeys(("prefix_k", "prefix_v"), (NH, P, hs)),
}
rng = np.random.default_rng(0)
INPUTS = {op: {n: rng.normal(size=s) for n, s in of.items()} for op, of in SHAPES.items()}
# the output has the shape of the first input: (5, C), or (5, NH, hs)
DOUT = {op: rng.normal(size=next(iter(of.values()))) for op, of in SHAPES.items()}


def forward(ops, op, a):
    """-> the output, shaped like the first input, and the cache."""
    if op == "layernorm":
        return ops.layernorm(a["x"], a["gain"], a["bias"], 1e-5)
    if op == "gelu":
        return ops.gelu(a["x"].copy())  # an implementation may overwrite what gelu is given
    slots = [a["prefix_k"]] * 2, [a["prefix_v"]] * 2
    return ops.attention(a["q"], a["k"], a["v"], *slots, OFFSETS)


def gradients(ops, op, a, dout):
    """-> name of an input -> its gradient, shaped like the input."""
    _, cache = forward(ops, op, a)
    if op == "layernorm":
        dgain, dbias = ops.layernorm_backward_params(dout, cache)
        return {"x": ops.layernorm_backward(dout.copy(), cache), "gain": dgain, "bias": dbias}
    if op == "gelu":
        return {"x": ops.gelu_backward(dout.copy(), cache)}
    dq, dk, dv, dprefix_k, dprefix_v = ops.attention_backward(dout, cache)
    # two sequences share the slots: their gradients add up
    return {"q": dq, "k": dk, "v": dv, "prefix_k": sum(dprefix_k), "prefix_v": sum(dprefix_v)}


def loss(ops, op, a, dout):
    return (dout * forward(ops, op, a)[0]).sum()


# %% [markdown]
# *Finite differences* move one number up and down by $\epsilon$; the *complex step* moves it by
# $i \epsilon$ and takes the imaginary part:
#
# $$\frac{\ell(x + \epsilon) - \ell(x - \epsilon)}{2 \epsilon}
# \qquad \text{and} \qquad \frac{\mathrm{Im} \; \ell(x + i \epsilon)}{\epsilon}$$
#
# The first makes two errors. The curve is not straight: that error grows like $\epsilon^2$. And
# float64 keeps 16 digits, so the difference of two nearly equal numbers, divided by $\epsilon$, is
# off by about $10^{-16} / \epsilon$.
#
# **Predict.** For which $\epsilon$ is the sum of the two smallest, and how small is it there? (Set
# $\epsilon^2 = 10^{-16} / \epsilon$.) And the complex step, which subtracts nothing?

# %%
import matplotlib.pyplot as plt


def by_differences(ops, op, dout, eps=1e-6, step=1.0):
    """The gradient of every input, one number at a time. With step=1j: by the complex step."""
    a, grads = INPUTS[op], {}
    for name, values in a.items():
        grads[name] = np.zeros(values.shape)
        for index in np.ndindex(values.shape):
            up = values.astype(type(step))
            up[index] += step * eps
            moved = loss(ops, op, {**a, name: up}, dout)
            if step == 1j:
                grads[name][index] = moved.imag / eps
                continue
            down = values.copy()
            down[index] -= eps
            grads[name][index] = (moved - loss(ops, op, {**a, name: down}, dout)) / (2 * eps)
    return grads


def relative_error(a, b):
    """The largest difference, as a part of the largest number: 1 means all wrong."""
    return np.abs(a - b).max() / max(np.abs(b).max(), 1e-300)


def worst(found, right):
    """The largest relative error of all gradients; NaN if there is one anywhere."""
    return np.max([relative_error(found[name], right[name]) for name in right])


ours = gradients(reference, "layernorm", INPUTS["layernorm"], DOUT["layernorm"])
sizes = 10.0 ** -np.arange(1, 13)
central = [worst(by_differences(reference, "layernorm", DOUT["layernorm"], e), ours) for e in sizes]
imaginary = [
    worst(by_differences(reference, "layernorm", DOUT["layernorm"], e, 1j), ours) for e in sizes
]
plt.loglog(sizes, central, "o-", color="black", label="finite differences")
plt.loglog(sizes, np.maximum(imaginary, 1e-17), "s--", color="grey", label="complex step")
plt.xlabel("epsilon")
plt.ylabel("relative error of the gradient")
plt.title("Layernorm's gradient: two ways to a derivative, by the size of the step")
plt.legend()
plt.show()
best = sizes[int(np.argmin(central))]
print(
    f"differences: best at {best:.0e}, error {min(central):.0e}; complex step {imaginary[-1]:.0e}"
)
assert 1e-7 <= best <= 1e-4
assert 1e-13 < min(central) < 1e-8
assert imaginary[-1] < 1e-13

# %% [markdown]
# The complex step has the first error, too, and not the second: it goes on falling until every
# digit is right. On paper finite differences are best at
# $\epsilon = 10^{-16/3} \approx 5 \cdot 10^{-6}$, with an error of
# $\epsilon^2 \approx 2 \cdot 10^{-11}$; measured, they turn round near $10^{-5}$. Hence the
# $\epsilon$ of $10^{-6}$ or $10^{-5}$ that everybody uses, and a tolerance of $10^{-6}$, which
# leaves room above the error. At $\epsilon = 10^{-12}$ a right gradient would fail it. In float32,
# with 7 digits, the same sum gives an error of some $10^{-5}$ at best: check gradients in float64.
#
# Both witnesses have one weakness in common. They differentiate *your* forward. If that computes
# the wrong function, they confirm the gradient of the wrong function.
#
# ## Fourth witness: another program
#
# Written by someone else, from the formula, with a derivative that nobody wrote: PyTorch's autograd
# remembers what was computed and walks back over it. Where PyTorch is not installed, the package's
# second implementation takes the stand; it is a weaker witness, since the same people wrote it.

# %%
from importlib.util import find_spec


def by_pytorch():
    import torch

    t = {name: torch.tensor(a, requires_grad=True) for name, a in INPUTS["attention"].items()}
    zs = []
    for b in range(2):
        start, end = OFFSETS[b], OFFSETS[b + 1]
        T = int(end - start)
        # (NH, T, hs) each: PyTorch wants heads first
        q, k, v = (t[name][start:end].transpose(0, 1) for name in "qkv")
        keys = torch.cat([t["prefix_k"], k], dim=1)  # (NH, P+T, hs)
        values = torch.cat([t["prefix_v"], v], dim=1)  # (NH, P+T, hs)
        # row i sees the columns up to P + i
        seen = torch.ones(T, P + T, dtype=torch.bool).tril(P)  # (T, P+T)
        z = torch.nn.functional.scaled_dot_product_attention(q, keys, values, seen)
        zs.append(z.transpose(0, 1))  # (T, NH, hs)
    z = torch.cat(zs)  # (N, NH, hs)
    z.backward(torch.tensor(DOUT["attention"]))
    return z.detach().numpy(), {name: a.grad.numpy() for name, a in t.items()}


if find_spec("torch"):
    other_z, other = by_pytorch()
    who = "PyTorch"
else:
    other_z = forward(numpy_ops, "attention", INPUTS["attention"])[0]
    other = gradients(numpy_ops, "attention", INPUTS["attention"], DOUT["attention"])
    who = "numpy_ops (PyTorch is not installed)"

z, _ = forward(reference, "attention", INPUTS["attention"])
ours = gradients(reference, "attention", INPUTS["attention"], DOUT["attention"])
exact = by_differences(reference, "attention", DOUT["attention"], 1e-30, 1j)
print(f"z          against {who}: {relative_error(z, other_z):.0e}")
print(f"gradients  against {who}: {worst(ours, other):.0e}")
print(f"gradients  against the complex step: {worst(ours, exact):.0e}")
assert relative_error(z, other_z) < 1e-13
assert worst(ours, other) < 1e-12
assert worst(ours, exact) < 1e-12

# %% [markdown]
# | witness | confirms | cannot see |
# |---|---|---|
# | paper | forward and backward | what the small numbers do not contain |
# | finite differences | the backward, to some 9 digits | a wrong forward |
# | complex step | the backward, to all digits | a wrong forward |
# | another program | forward and backward | a mistake that both made |
#
# Four witnesses so unlike do not err in the same way. That is the whole argument.
#
# ## The laws
#
# A law needs no witness at all. Three of those in the
# [contract](../minprefix/ops/contract.py) that every implementation of the operations obeys:
#
# $$\sum_C dx = 0 \;\; \text{(layernorm)}, \qquad
# \sum_{slots,\, tokens} dK = 0, \qquad
# \sum_{slots,\, tokens} dV = \sum_{tokens} dz \;\; \text{(attention)}$$
#
# Layernorm's output does not change when all of a row moves by one number; a pattern does not
# change when all keys move by one vector; and each row of the pattern sums to 1, so what comes in
# at $z$ comes out at the values. Our slots are seen by both sequences, and we have summed their
# gradient over them; so the laws hold here for the whole batch, and for each head.
#
# **Predict.** Which of these four mistakes do the laws notice: keys' gradients twice as large,
# keys' gradients with the wrong sign, values' gradients with the wrong sign, the slots' key and
# value gradients swapped?

# %%


def check_laws(ops):
    grads = gradients(ops, "layernorm", INPUTS["layernorm"], DOUT["layernorm"])
    off = np.abs(grads["x"].sum(axis=1)).max()  # dx (N, C), over C
    assert off < 1e-12, f"layernorm: a row of dx sums to {off:.2g}, expected 0"
    dz = DOUT["attention"]  # (N, NH, hs)
    check_attention_laws(gradients(ops, "attention", INPUTS["attention"], dz), dz)


def check_attention_laws(grads, dz):
    # tokens (N, NH, hs), slots (NH, P, hs): what is left is (NH, hs)
    keys = np.abs(grads["k"].sum(axis=0) + grads["prefix_k"].sum(axis=1)).max()
    assert keys < 1e-12, f"attention: all of dK sums to {keys:.2g}, expected 0"
    values = grads["v"].sum(axis=0) + grads["prefix_v"].sum(axis=1) - dz.sum(axis=0)
    off = np.abs(values).max()
    assert off < 1e-12, f"attention: all of dV is {off:.2g} away from the sum of dz"


def noticed(check, *arguments):
    """Whether the check fails: an assert fires, or it cannot even be computed."""
    try:
        with np.errstate(all="ignore"):  # an overflow shows in the numbers
            check(*arguments)
    except Exception:
        return True
    return False


swapped = {"prefix_k": ours["prefix_v"], "prefix_v": ours["prefix_k"]}
MISTAKES = {
    "keys twice as large": {"k": 2 * ours["k"], "prefix_k": 2 * ours["prefix_k"]},
    "keys with the wrong sign": {"k": -ours["k"], "prefix_k": -ours["prefix_k"]},
    "values with the wrong sign": {"v": -ours["v"], "prefix_v": -ours["prefix_v"]},
    "slots' keys and values swapped": swapped,
}
check_laws(reference)
seen = {
    name: noticed(check_attention_laws, {**ours, **wrong}, DOUT["attention"])
    for name, wrong in MISTAKES.items()
}
for name, yes in seen.items():
    print(f"{name:32s}{'noticed' if yes else 'not noticed'}")
assert list(seen.values()) == [False, False, True, True]

# %% [markdown]
# The last two. A sum that is 0 stays 0 under any scale and any sign: the first two laws are blind
# to both. The third has something other than 0 on its right side, and sees them.
#
# ## Checks as people write them
#
# Six more, of the kinds that people write. Each takes an implementation, and asserts. `RIGHT` holds
# the gradients that another program finds: here the package's second implementation, `numpy_ops`,
# since the bugs that we shall plant are in `reference`. `RIGHT_OUT` holds its outputs.

# %%
RIGHT_OUT = {op: forward(numpy_ops, op, a)[0] for op, a in INPUTS.items()}
RIGHT = {op: gradients(numpy_ops, op, a, DOUT[op]) for op, a in INPUTS.items()}


def check_shapes(ops):
    """Every gradient is there, has its shape and is finite."""
    for op, a in INPUTS.items():
        grads = gradients(ops, op, a, DOUT[op])
        for name in a:
            assert grads[name].shape == a[name].shape, f"{op}: d{name} has another shape"
            assert np.isfinite(grads[name]).all(), f"{op}: d{name} is not finite"


def check_loss_falls(ops):
    """A small step downhill makes the loss smaller."""
    for op, a in INPUTS.items():
        grads = gradients(ops, op, a, DOUT[op])
        moved = {name: a[name] - 1e-3 * grads[name] for name in a}
        before, after = loss(ops, op, a, DOUT[op]), loss(ops, op, moved, DOUT[op])
        assert after < before, f"{op}: the loss goes from {before:.6g} to {after:.6g}"


def check_absolute(ops):
    """No entry is off by more than 0.01. The loss is a mean over 1000 tokens: dout is small."""
    for op, a in INPUTS.items():
        grads = gradients(ops, op, a, DOUT[op] / 1000)
        for name in a:
            off = np.abs(grads[name] - RIGHT[op][name] / 1000).max()
            assert off < 1e-2, f"{op}: d{name} is off by {off:.2g}"


def check_cosine(ops):
    """Each gradient points in the right direction."""
    for op, a in INPUTS.items():
        grads = gradients(ops, op, a, DOUT[op])
        for name in a:
            u, w = grads[name].ravel(), RIGHT[op][name].ravel()
            cosine = u @ w / np.linalg.norm(u) / np.linalg.norm(w)
            assert cosine > 0.99, f"{op}: the cosine of d{name} is {cosine:.3f}"


def check_one_index(ops):
    """The first number of the first input, against finite differences."""
    for op, a in INPUTS.items():
        name = next(iter(a))
        step = np.zeros_like(a[name])
        step.flat[0] = 1e-6
        up, down = ({**a, name: a[name] + s} for s in (step, -step))
        slope = (loss(ops, op, up, DOUT[op]) - loss(ops, op, down, DOUT[op])) / 2e-6
        off = abs(gradients(ops, op, a, DOUT[op])[name].flat[0] - slope)
        assert off < 1e-6, f"{op}: the first number of d{name} is off by {off:.2g}"


def check_ones(ops):
    """The gradient of out.sum(), of a layer as it is made: gains 1, biases 0."""
    for op, a in INPUTS.items():
        made = {"gain": np.ones(C), "bias": np.zeros(C)} if op == "layernorm" else {}
        ones = np.ones_like(DOUT[op])
        grads = gradients(ops, op, {**a, **made}, ones)
        right = gradients(numpy_ops, op, {**a, **made}, ones)
        for name in a:
            off = np.abs(grads[name] - right[name]).max()
            assert off < 1e-10, f"{op}: d{name} is off by {off:.2g}"


# %% [markdown]
# And two that deserve the name: every number of every gradient against finite differences of the
# implementation's own forward; and outputs and gradients, all of them, against the other program,
# each tensor by its own largest number.

# %%


def check_differences(ops):
    for op in INPUTS:
        slopes = by_differences(ops, op, DOUT[op])
        error = worst(gradients(ops, op, INPUTS[op], DOUT[op]), slopes)
        assert error < 1e-6, f"{op}: a gradient is off by {error:.2g} of its size"


def check_other(ops):
    for op, a in INPUTS.items():
        off = relative_error(forward(ops, op, a)[0], RIGHT_OUT[op])
        assert off < 1e-12, f"{op}: the output is off by {off:.2g} of its largest number"
        error = worst(gradients(ops, op, a, DOUT[op]), RIGHT[op])
        assert error < 1e-12, f"{op}: off by {error:.2g} of a gradient's largest number"


CHECKS = {
    "shapes fit": check_shapes,
    "loss falls": check_loss_falls,
    "absolute 0.01": check_absolute,
    "cosine": check_cosine,
    "one index": check_one_index,
    "ones": check_ones,
    "laws": check_laws,
    "by hand": check_by_hand,
    "differences": check_differences,
    "other program": check_other,
}
for check in CHECKS.values():
    check(reference)
print("the sound implementation passes all", len(CHECKS))

# %% [markdown]
# All pass. Ten checks, one verdict: does that make it ten times as sure? We do not know what a
# check is worth until we have seen it fail.
#
# ## The kill matrix
#
# Of the [zoo](../minprefix/conformance/zoo.py#all_bugs) with its 223 mistakes we take fourteen,
# plant them one by one, and let each check loose on each. A check that fails has *killed* the bug;
# a bug that no check kills *lives*.
#
# **Predict.** Which column kills most, which kill none at all? And two bugs by name:
# `mask-shows-the-next-token` (a token sees the one that it is to predict) and `prefix-masked-out`
# (no token sees any slot). Do finite differences kill them?

# %%
from minprefix.lessons import planted

ZOO = (
    "gain-forgotten-in-backward",
    "variance-term-dropped",
    "erf-gelu",
    "relu-derivative",
    "scores-unscaled",
    "mask-shows-the-next-token",
    "prefix-masked-out",
    "row-sum-dropped",
    "dprefix-unscaled",
    "dprefix-k-and-v-swapped",
    "prefix-gradient-zero",
    "upstream-of-the-wrong-sequence",
    "prefix-of-the-first-sequence-for-all",
    "softmax-without-the-maximum",
)
kills = np.array(
    [[noticed(check, planted(bug).reference) for check in CHECKS.values()] for bug in ZOO]
)  # (bugs, checks) of bool

plt.figure(figsize=(8, 5.5))
plt.imshow(kills, cmap="Greys", vmin=0, vmax=1.3, aspect="auto")
plt.xticks(range(len(CHECKS)), CHECKS, rotation=40, ha="right")
plt.yticks(range(len(ZOO)), ZOO)
plt.xticks(np.arange(len(CHECKS)) + 0.5, minor=True)
plt.yticks(np.arange(len(ZOO)) + 0.5, minor=True)
plt.grid(which="minor", color="lightgrey", linewidth=1)
plt.tick_params(which="minor", length=0)
plt.xlabel("check")
plt.ylabel("bug of the zoo")
plt.title("The kill matrix: dark where the check fails, as it should")
plt.tight_layout()
plt.show()
for name, column in zip(CHECKS, kills.T, strict=True):
    print(f"{name:16s} kills {column.sum():2d} of {len(ZOO)}")
LIVE = [bug for bug, row in zip(ZOO, kills, strict=True) if not row.any()]
print("alive:", ", ".join(LIVE))
table = dict(zip(CHECKS, kills.T, strict=True))  # check -> (bugs,) of bool
assert not any(table[name].any() for name in ("shapes fit", "loss falls", "absolute 0.01"))
assert LIVE == ["prefix-of-the-first-sequence-for-all", "softmax-without-the-maximum"]
assert table["other program"].sum() == len(ZOO) - len(LIVE) > table["differences"].sum()
for bug in ("erf-gelu", "mask-shows-the-next-token", "prefix-masked-out"):
    assert not table["differences"][ZOO.index(bug)]  # a right gradient of a wrong forward
assert table["laws"].sum() == 4
assert not table["cosine"][ZOO.index("dprefix-unscaled")]
assert not table["ones"][:2].any()  # both bugs of layernorm

# %% [markdown]
# Read it by columns:
#
# - *shapes fit*, *loss falls* and *absolute 0.01* kill none of the fourteen. A step along half a
#   gradient goes downhill, too, and even the ReLU's derivative does in the place of GELU's.
# - *cosine* does not see `dprefix-unscaled`: a direction has no length. Nor `erf-gelu`, the GELU
#   with another function in the place of tanh, whose slope is nearly the same.
# - *one index* looks, in attention, at one number of the queries. What is wrong with the slots lies
#   elsewhere.
# - *ones* is blind to both bugs of layernorm: the outputs of a fresh layernorm sum to 0 whatever
#   goes in, so the right `dx` is 0, and what both bugs give is 0 as well. Nor can it see which
#   sequence an upstream belongs to: all of them are alike.
# - *laws* kill four, and see no scale.
# - *by hand* knows attention alone, and lets `mask-shows-the-next-token` live: one token has no
#   next one.
# - *differences* let three live that the other program kills: another GELU, another mask, no
#   prefix. There the forward is wrong, and the backward is the right one of that wrong forward.
# - *other program* kills all but two. These live because of what nine of the ten checks have in
#   common: `INPUTS`. Both sequences see the same slots, and no score is large. A check sees what
#   its inputs can show.
#
# The reference suite behind `grade` runs each operation on inputs that were chosen one by one for
# what they can show. This is what it says to the two that are alive:

# %%
from minprefix.conformance import all_checks
from minprefix.conformance.zoo import all_bugs, plant

for name in LIVE:
    bug = all_bugs()[name]
    # truth: the operation and the array that are wrong first
    of_op = [check for check in all_checks().values() if check.op == bug.truth[0]]
    failed = [check.id for check in of_op if check.grade(plant(bug)).status == "failed"]
    print(f"{name}: {len(failed)} of {len(of_op)} checks fail")
    print("  " + ", ".join(failed[:2]) + f" and {len(failed) - 2} more")
    assert failed

# %% [markdown]
# And who checks the suite? The same matrix, with all of its checks as columns and all 223 bugs of
# the zoo as rows. None lives, and for 222 the first sentence of the report names the operation and
# the array that are wrong first (in the repository: `tests/zoo/matrix.png`).
#
# ## A check that cannot fail
#
# Three of our columns are empty. Such checks are worse than none: they are counted. Three ways to
# write one:
#
# - *A tolerance larger than the thing.* The gradients of a mean over 1000 tokens are below 0.01
#   themselves.
# - *A comparison with itself.* The right numbers were written down by the very code that they are
#   to judge.
# - *NaN.* Every comparison with NaN is false; so is `error > 1e-12`.
#
# **Predict.** An implementation that returns zeros for every gradient: does it pass
# `check_absolute`? And which of `assert error < 1e-12` and `assert not error > 1e-12` passes if the
# error is NaN?

# %%
largest = max(np.abs(a / 1000).max() for of_op in RIGHT.values() for a in of_op.values())
print(f"the largest right number of all gradients in check_absolute: {largest:.4f}")
assert largest < 1e-2  # so zeros pass


def check_against_itself(ops):
    for op, a in INPUTS.items():
        right = gradients(ops, op, a, DOUT[op])  # "recorded when it worked"
        assert worst(gradients(ops, op, a, DOUT[op]), right) < 1e-12


print("against itself:", sum(noticed(check_against_itself, planted(b).reference) for b in ZOO))
error = float("nan")
assert not error > 1e-12  # passes, and says nothing
print("with NaN, error < 1e-12 is", error < 1e-12, "and not error > 1e-12 is", not error > 1e-12)
assert not any(noticed(check_against_itself, planted(bug).reference) for bug in ZOO)

# %% [markdown]
# Zeros pass `check_absolute`, and NaN passes the second assert, not the first. The remedy is always
# the same, and takes a minute: break the code, watch the check fail, put the code back. Do it once
# for every check that you write.
#
# ## Break it yourself
#
# `dprefix-unscaled`: the factor $1/\sqrt{hs}$ is forgotten in $dK = dscores^\top q / \sqrt{hs}$.
# The zoo calls it a common slip in first implementations.
#
# **Predict.** By which factor is $dk^{pre}$ wrong, with $hs = 4$? What do the laws say, and what
# does the pencil?

# %%
from minprefix.lessons import caught

broken = planted("dprefix-unscaled")
print(broken)
check_laws(broken.reference)  # nothing: a sum of 0 is 0 at any scale
check_cosine(broken.reference)  # nothing: the direction is right
check_loss_falls(broken.reference)  # nothing: downhill

with caught() as error:  # take this line away, and the lesson stops here
    check_by_hand(broken.reference)
print(error)

with caught() as error:
    check_differences(broken.reference)
print(error)

# %% [markdown]
# What would one have seen without the last two? Let both train the slots, so that $z$ comes near to
# some wanted values: the loss is $\tfrac{1}{2} \sum (z - wanted)^2$, and its upstream
# $dz = z - wanted$.

# %%


def train(ops, steps=60, lr=0.2):
    a = {name: values.copy() for name, values in INPUTS["attention"].items()}
    wanted = np.random.default_rng(1).normal(size=DOUT["attention"].shape)  # (N, NH, hs)
    losses = []
    for _ in range(steps):
        dz = forward(reference, "attention", a)[0] - wanted  # (N, NH, hs)
        grads = gradients(ops, "attention", a, dz)
        losses.append(0.5 * (dz * dz).sum())
        for name in ("prefix_k", "prefix_v"):
            a[name] = a[name] - lr * grads[name]
    return losses


right, wrong = train(reference), train(broken.reference)
for step in (0, 5, 20, 59):
    print(f"step {step:2d}   right {right[step]:.3f}   unscaled {wrong[step]:.3f}")
assert wrong[-1] < 0.8 * wrong[0]
unscaled = gradients(broken.reference, "attention", INPUTS["attention"], DOUT["attention"])
factor = unscaled["prefix_k"] / RIGHT["attention"]["prefix_k"]  # (NH, P, hs)
print(f"dprefix_k is {factor.mean():.3f} times the right one, everywhere")
assert np.allclose(factor, np.sqrt(hs))

# %% [markdown]
# It learns, here even faster: its keys have twice the learning rate of its values. No curve tells
# you so. You would tune the rate, find one that works, and believe it.
#
# ## Exercises
#
# `judge` lets a check of yours loose on the sound implementations and on bugs. On a sound one only
# an assert may fail the check; anything else that it raises there is a slip in the check itself,
# and so is a name that nobody defined, wherever it is met.

# %%


def judge(check, bugs):
    """Print which of the bugs the check kills. -> their names."""
    for ops in (reference, numpy_ops):
        try:
            with np.errstate(all="ignore"):
                check(ops)
        except AssertionError as error:
            raise AssertionError("your check fails on a sound implementation") from error
    killed = [bug for bug in bugs if kills(check, bug)]
    for bug in bugs:
        print(f"{'killed' if bug in killed else 'alive':8s}{bug}")
    return killed


def kills(check, bug):
    """`noticed`, but a slip in the check is no kill."""
    try:
        with np.errstate(all="ignore"):
            check(planted(bug).reference)
    except (NameError, ImportError):
        raise
    except Exception:
        return True
    return False


# %% [markdown]
# **1.** Write a check that kills the two that are alive, and a third one,
# `unequal-prefixes-padded-with-zeros`. What do inputs have to be like, to show them?

# %%


def check_yours(ops):
    pass  # yours


judge(check_yours, [*LIVE, "unequal-prefixes-padded-with-zeros"])

# %% [markdown]
# <details><summary>Solution 1</summary>
#
# Each sequence has slots of its own, 2 and 3 of them, and the queries are so large that some score
# is above 709, where `exp` overflows in float64. One forward is enough.
#
# ```python
# def check_yours(ops):
#     rng = np.random.default_rng(3)
#     q, k, v = (rng.normal(size=(5, NH, hs)) for _ in range(3))
#     slots = [[rng.normal(size=(NH, P, hs)) for P in (2, 3)] for _ in range(2)]
#     for scale in (1, 1e4):
#         z, _ = ops.attention(scale * q, k, v, *slots, OFFSETS)
#         right, _ = numpy_ops.attention(scale * q, k, v, *slots, OFFSETS)
#         assert relative_error(z, right) < 1e-10
#
#
# bugs = [*LIVE, "unequal-prefixes-padded-with-zeros"]
# assert judge(check_yours, bugs) == bugs
# ```
#
# The two scales are two checks: large scores make the pattern so sharp that a slot of zeros, with
# its score of 0, may draw nothing at all.
#
# </details>
#
# **2.** Finite differences let `mask-shows-the-next-token` live. Write a law for it, a check that
# needs no second implementation: what must not change when the last token of a sequence does?

# %%


def check_causal(ops):
    pass  # yours


judge(check_causal, ["mask-shows-the-next-token", "no-mask", "one-sequence-of-the-whole-batch"])

# %% [markdown]
# <details><summary>Solution 2</summary>
#
# What the tokens before it see. With two sequences, the other sequence must not move, either.
#
# ```python
# def check_causal(ops):
#     a = {name: values.copy() for name, values in INPUTS["attention"].items()}
#     before, _ = forward(ops, "attention", a)
#     a["k"][2] += 1  # token 2 is the last one of the first sequence
#     a["v"][2] += 1
#     after, _ = forward(ops, "attention", a)
#     others = [0, 1, 3, 4]
#     assert np.abs(after[others] - before[others]).max() < 1e-12
#
#
# bugs = ["mask-shows-the-next-token", "no-mask", "one-sequence-of-the-whole-batch"]
# assert judge(check_causal, bugs) == bugs
# ```
#
# </details>
#
# **3.** (Graded.) In the function below one character is wrong. Do not read it yet: let the suite
# speak first. In the case `attention/one-sequence` there are $T = 5$ tokens and $hs = 7$. Which
# arrays are wrong, which are right, and by what factor? Then write it as it should be.

# %%
from minprefix.lessons import grade


def suspect(dz, cache):
    dq, dk, dv = (np.zeros_like(a) for a in (cache.q, cache.k, cache.v))  # (N, NH, hs) each
    dprefix_k, dprefix_v = [], []
    for b, pattern in enumerate(cache.pattern):  # (NH, T, P+T)
        start, end = cache.offsets[b], cache.offsets[b + 1]
        # heads first
        q, k, v, dz_b = (a[start:end].swapaxes(0, 1) for a in (cache.q, cache.k, cache.v, dz))
        keys = np.concatenate([cache.prefix_k[b], k], axis=1)  # (NH, P+T, hs)
        values = np.concatenate([cache.prefix_v[b], v], axis=1)  # (NH, P+T, hs)
        dvalues = pattern.swapaxes(1, 2) @ dz_b  # (NH, P+T, hs)
        dpattern = dz_b @ values.swapaxes(1, 2)  # (NH, T, P+T)
        row_sum = (dpattern * pattern).sum(axis=2, keepdims=True)  # (NH, T, 1)
        dscores = pattern * (dpattern - row_sum) / q.shape[1] ** 0.5  # (NH, T, P+T)
        dkeys = dscores.swapaxes(1, 2) @ q  # (NH, P+T, hs)
        slots = cache.prefix_k[b].shape[1]
        dq[start:end] = (dscores @ keys).swapaxes(0, 1)
        dk[start:end] = dkeys[:, slots:].swapaxes(0, 1)
        dv[start:end] = dvalues[:, slots:].swapaxes(0, 1)
        dprefix_k.append(dkeys[:, :slots])
        dprefix_v.append(dvalues[:, :slots])
    return dq, dk, dv, dprefix_k, dprefix_v


suspect.__name__ = "attention_backward"  # the suite knows a function by its name
grade(suspect, only="attention/one-sequence")


def attention_backward(dz, cache):
    raise NotImplementedError  # yours


grade(attention_backward)

# %% [markdown]
# <details><summary>Solution 3</summary>
#
# `dq`, `dk` and `dprefix_k` are 1.183 times what they should be, `dv` and `dprefix_v` are right.
# The values' gradients do not pass through `dscores`, the three others do: the mistake is there,
# and it is a factor. $1.183^2 = 1.4 = 7/5 = hs / T$. So somebody divided by $\sqrt{T}$ in the place
# of $\sqrt{hs}$: heads come first here, and `q.shape[1]` is $T$.
#
# ```python
# def attention_backward(dz, cache):
#     dq, dk, dv = (np.zeros_like(a) for a in (cache.q, cache.k, cache.v))  # (N, NH, hs) each
#     dprefix_k, dprefix_v = [], []
#     for b, pattern in enumerate(cache.pattern):  # (NH, T, P+T)
#         start, end = cache.offsets[b], cache.offsets[b + 1]
#         # heads first
#         q, k, v, dz_b = (a[start:end].swapaxes(0, 1) for a in (cache.q, cache.k, cache.v, dz))
#         keys = np.concatenate([cache.prefix_k[b], k], axis=1)  # (NH, P+T, hs)
#         values = np.concatenate([cache.prefix_v[b], v], axis=1)  # (NH, P+T, hs)
#         dvalues = pattern.swapaxes(1, 2) @ dz_b  # (NH, P+T, hs)
#         dpattern = dz_b @ values.swapaxes(1, 2)  # (NH, T, P+T)
#         row_sum = (dpattern * pattern).sum(axis=2, keepdims=True)  # (NH, T, 1)
#         dscores = pattern * (dpattern - row_sum) / q.shape[2] ** 0.5  # (NH, T, P+T)
#         dkeys = dscores.swapaxes(1, 2) @ q  # (NH, P+T, hs)
#         slots = cache.prefix_k[b].shape[1]
#         dq[start:end] = (dscores @ keys).swapaxes(0, 1)
#         dk[start:end] = dkeys[:, slots:].swapaxes(0, 1)
#         dv[start:end] = dvalues[:, slots:].swapaxes(0, 1)
#         dprefix_k.append(dkeys[:, :slots])
#         dprefix_v.append(dvalues[:, :slots])
#     return dq, dk, dv, dprefix_k, dprefix_v
#
#
# grade(attention_backward)
# ```
#
# </details>
#
# Next: [Where the time goes](14_where_the_time_goes.py).
