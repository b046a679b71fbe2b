# %% [markdown]
# # How do you know that it is right?
#
# - **You will be able to** prove a gradient with four unlike witnesses, say what each of them
#   cannot see, measure how much a check of your own is worth, and shrink a failure until its cause
#   shows.
# - **You need** the gradient of a prefix and its three proofs:
#   [lesson 5](05_the_gradient_of_a_prefix.py).
# - **Time** 140 minutes; it runs in 8 seconds.
# - **Difficulty** 3 of 5.
#
# ## Overview
#
# - Numbers small enough for paper confirm an attention backward. They depend on no program.
# - Finite differences give a gradient to some ten digits at best, the complex step all of them. You
#   write both. Neither sees a wrong forward.
# - Of eleven checks of the usual kinds, three notice none of fourteen planted bugs. One of the
#   three is "the loss falls".
# - One random direction notices as much as all finite differences together, with 6 forwards in the
#   place of 448.
# - The laws of attention see no wrong scale. A law for the mask sees a mask that all finite
#   differences miss.
# - You write a reducer: it shrinks a failing input until nothing more can be taken away from it.
#
# A wrong gradient does not crash. The shapes fit, nothing is NaN, the loss falls. So "does it run?"
# is the wrong question. Ask instead: who says that it is right, and could they have noticed if it
# were not?
#
# ## First witness: paper
#
# Take numbers so small that a pencil is enough. One head, one [slot](glossary.md#slot), one token,
# $hs = 4$. The query $q$, the slot's key and value and the token's key and value have the shape
# $(1, 4)$, and only their first number is not 0:
#
# $$q_1 = 2, \quad k^{pre}_1 = \log(3), \quad k_1 = 0, \quad v^{pre}_1 = 4, \quad v_1 = 8$$
#
# The package works on a [stream](glossary.md#stream), as in lesson 5: $(N, NH, hs)$ for $N$ tokens
# of all sequences and $NH$ heads, [offsets](glossary.md#offsets), and for each sequence a prefix of
# $(NH, P, hs)$. Here all of these are $(1, 1, 4)$.
#
# **Predict.** Take a pencil, and ten minutes. Compute the scores, the pattern and $z_1$. Then let
# the upstream be $dz_1 = 1$, and 0 for the other three, and compute the gradients of all five
# inputs.

# %%
import numpy as np

from minprefix.lessons import grade
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
# **Answer.** Forward. The scores, $(1, 2)$, are $q K^\top / \sqrt{hs}$, and $\sqrt{4} = 2$:
#
# $$\begin{aligned}
# scores &= \tfrac{1}{2} \, (2 \log(3), \; 0) = (\log(3), \; 0) \\
# pattern &= \frac{(3, \; 1)}{3 + 1} = (\tfrac{3}{4}, \; \tfrac{1}{4}) \\
# z_1 &= \tfrac{3}{4} \cdot 4 + \tfrac{1}{4} \cdot 8 = 5
# \end{aligned}$$
#
# Backward. The values come first, $dV = pattern^\top dz$: $\; dv^{pre}_1 = \tfrac{3}{4}$ and
# $dv_1 = \tfrac{1}{4}$. Then pattern and scores, $(1, 2)$ each:
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

# %% [markdown]
# **Recap.** This witness depends on no program, so it shares no mistake with one. It cannot
# see what its small numbers do not contain: one token has no future, so no mask; one sequence has
# no neighbour.
#
# ## Second and third witness: the derivative as a limit
#
# Now we take any numbers: two sequences of 3 and 2 tokens, two heads, and two slots that both
# sequences share. We want to try layernorm and GELU with the same code, on $(N, C)$. So we give
# every operation its inputs under their names, and write three functions. One runs the operation,
# one runs its backward, and one gives the loss $\ell = \sum dout \odot out$. The gradient of this
# loss for the output is the upstream $dout$.

# %%
NH, P, hs, C = 2, 2, 4, 6
SHAPES = {  # two sequences, N = 5 tokens
    "layernorm": {"x": (5, C), "gain": (C,), "bias": (C,)},
    "gelu": {"x": (5, C)},
    "attention": dict.fromkeys(("q", "k", "v"), (5, NH, hs))
    | dict.fromkeys(("prefix_k", "prefix_v"), (NH, P, hs)),
}
rng = np.random.default_rng(0)
INPUTS = {op: {n: rng.normal(size=s) for n, s in of.items()} for op, of in SHAPES.items()}
# the output has the shape of the first input: (5, C), or (5, NH, hs)
DOUT = {op: rng.normal(size=next(iter(of.values()))) for op, of in SHAPES.items()}


def forward(ops, op, a, offsets=(0, 3, 5)):
    """-> the output, shaped like the first input, and the cache."""
    if op == "layernorm":
        return ops.layernorm(a["x"], a["gain"], a["bias"], 1e-5)
    if op == "gelu":
        return ops.gelu(a["x"].copy())  # an implementation may overwrite what gelu is given
    slots = [a["prefix_k"]] * 2, [a["prefix_v"]] * 2
    return ops.attention(a["q"], a["k"], a["v"], *slots, np.array(offsets))


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
# [*Finite differences*](glossary.md#finite-difference) move the inputs $x$ up and down by a small
# step $\epsilon$ along some direction $y$, and look at how much the loss changes:
#
# $$slope = \frac{\ell(x + \epsilon y) - \ell(x - \epsilon y)}{2 \epsilon}$$
#
# The slope has to be $\sum dx \odot y$, whatever the direction. Where $y$ is 1 at a single number
# and 0 elsewhere, it is one number of the gradient.
#
# ### Exercise 13.1: `slope_along`
#
# *5 minutes · difficulty 1 of 5*
#
# `a` holds the inputs of the operation `op` by their names, and `direction` an array of the same
# shape for each. Compute the slope along it. Call `loss(ops, op, inputs, dout)` for the two losses.
# (The shape `()` means one number.)


# %%
def slope_along(ops, op, a, direction, dout, eps):
    up = ...  # ()
    down = ...  # ()
    return ...


grade(slope_along)

# %% [markdown]
# <details><summary>Hint 1</summary>
#
# All inputs move at the same time: `{name: a[name] + eps * direction[name] for name in a}`.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# Between `up` and `down` the inputs move by $2 \epsilon$.
#
# </details>


# %% jupyter={"source_hidden": true}
def slope_along(ops, op, a, direction, dout, eps):
    up = loss(ops, op, {name: a[name] + eps * direction[name] for name in a}, dout)  # ()
    down = loss(ops, op, {name: a[name] - eps * direction[name] for name in a}, dout)  # ()
    return (up - down) / (2 * eps)


# %% [markdown]
# Two forwards for one slope are cheap. For the whole gradient, `by_differences` takes one direction
# after the other, two forwards for each number.


# %%
def by_differences(ops, op, a, dout, eps=1e-6):
    """The gradient of every input, one number at a time."""
    grads = {}
    for name in a:
        grads[name] = np.zeros(a[name].shape)
        for index in np.ndindex(a[name].shape):
            direction = {n: np.zeros(a[n].shape) for n in a}
            direction[name][index] = 1
            grads[name][index] = slope_along(ops, op, a, direction, dout, eps)
    return grads


# %% [markdown]
# The [*complex step*](glossary.md#complex-step) moves a number by $i \epsilon$, where $i$ is the
# imaginary unit, and takes the imaginary part:
#
# $$\frac{\partial \ell}{\partial x} \approx \frac{\mathrm{Im} \; \ell(x + i \epsilon)}{\epsilon}$$
#
# For $\ell(x) = x^2$, say: $(x + i \epsilon)^2 = x^2 - \epsilon^2 + 2 i x \epsilon$, and the
# imaginary part is $2x \epsilon$. Nothing is subtracted.
#
# ### Exercise 13.2: `by_complex_step`
#
# *10 minutes · difficulty 2 of 5*
#
# Return the gradient of every input, one number at a time: a dictionary with an array for each name
# of `a`. The functions of `reference` compute with complex numbers, too.


# %%
def by_complex_step(ops, op, a, dout, eps=1e-30):
    grads = ...
    return grads


grade(by_complex_step)

# %% [markdown]
# <details><summary>Hint 1</summary>
#
# Begin as `by_differences` does: an array of zeros, and a loop over `np.ndindex(a[name].shape)`.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# `a[name].astype(complex)` is a new array of complex numbers. Make a new one for each number, so
# that the step before is undone.
#
# </details>
#
# <details><summary>Hint 3</summary>
#
# `{**a, name: moved}` is `a` with another array for one name. The imaginary part of a number is its
# `.imag`.
#
# </details>


# %% jupyter={"source_hidden": true}
def by_complex_step(ops, op, a, dout, eps=1e-30):
    grads = {}
    for name in a:
        grads[name] = np.zeros(a[name].shape)
        for index in np.ndindex(a[name].shape):
            moved = a[name].astype(complex)  # a copy
            moved[index] += 1j * eps
            grads[name][index] = loss(ops, op, {**a, name: moved}, dout).imag / eps
    return grads


# %% [markdown]
# To compare two sets of gradients, we want one number. For each array it is the *relative error*,
# the largest difference as a part of the largest number: 1 means all wrong.


# %%
def relative_error(a, b):
    return np.abs(a - b).max() / max(np.abs(b).max(), 1e-300)


# %% [markdown]
# ### Exercise 13.3: `worst`
#
# *4 minutes · difficulty 1 of 5*
#
# `found` and `right` hold arrays by name. Return the largest relative error of all arrays, and NaN
# if there is a NaN anywhere in them. Each array is measured by its own largest number.


# %%
def worst(found, right):
    errors = ...  # (n,)
    return ...


grade(worst)

# %% [markdown]
# <details><summary>Hint 1</summary>
#
# `relative_error(found[name], right[name])` is NaN if there is a NaN in its arrays.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# Compare `max([1, np.nan])` and `np.max([1, np.nan])`.
#
# </details>


# %% jupyter={"source_hidden": true}
def worst(found, right):
    errors = [relative_error(found[name], right[name]) for name in right]  # (n,)
    return np.max(errors)


# %% [markdown]
# Beside yours: Python's own `max` compares with `>`. Every comparison with NaN is false, so it may
# drop a NaN silently. A check with that `max` passes an implementation that returns NaN.
#
# Finite differences make two errors. The curve is not straight: that error grows like $\epsilon^2$.
# And float64 keeps 16 digits, so the difference of two nearly equal numbers, divided by $\epsilon$,
# is off by about $10^{-16} / \epsilon$.
#
# **Predict.** For which $\epsilon$ is the sum of the two smallest, and how small is it there? (Set
# $\epsilon^2 = 10^{-16} / \epsilon$.) And the complex step, which subtracts nothing?

# %%
import matplotlib.pyplot as plt

a, dout = INPUTS["layernorm"], DOUT["layernorm"]
exact = gradients(reference, "layernorm", a, dout)
sizes = 10.0 ** -np.arange(1, 13)
central = [worst(by_differences(reference, "layernorm", a, dout, e), exact) for e in sizes]
imaginary = [worst(by_complex_step(reference, "layernorm", a, dout, e), exact) for e in sizes]
plt.figure(figsize=(5, 3.8), layout="constrained")
plt.loglog(sizes, central, "o-", label="finite differences")
plt.loglog(sizes, np.maximum(imaginary, 1e-17), "s--", label="complex step")
plt.xlabel("epsilon")
plt.ylabel("relative error of the gradient")
plt.title("Layernorm's gradient, by the size of the step")
plt.legend()
plt.show()
best = sizes[int(np.argmin(central))]
print(
    f"differences: best at {best:.0e}, error {min(central):.0e}; complex step {imaginary[-1]:.0e}"
)
assert 1e-7 <= best <= 1e-4
assert 1e-13 < min(central) < 1e-8
assert imaginary[-1] < 1e-13
assert central[-1] > 1e-6

# %% [markdown]
# **Answer.** On paper finite differences are best at
# $\epsilon = 10^{-16/3} \approx 5 \cdot 10^{-6}$, with an error of
# $\epsilon^2 \approx 2 \cdot 10^{-11}$. The measured error is smallest near $10^{-5}$. The complex
# step makes the first error, too, but not the second: its error goes on falling until every digit
# is right.

# %% [markdown]
# This is why gradient checks use an $\epsilon$ of $10^{-6}$ or $10^{-5}$, and a tolerance of
# $10^{-6}$, which leaves room above the error. At $\epsilon = 10^{-12}$ a right gradient would fail
# it. In float32, with 7 digits, the same sum gives an error of some $10^{-5}$ at best: check
# gradients in float64.
#
# **Recap.** Finite differences are right to some ten digits if the step fits, and the complex step
# to all. Both differentiate *your* forward. If that computes the wrong function, they confirm the
# gradient of the wrong function.
#
# ## Fourth witness: another program
#
# Someone else wrote the fourth witness, from the formula. Nobody wrote its derivative by hand:
# PyTorch's autograd remembers what was computed, and walks back over it. Where PyTorch is not
# installed, the package's second implementation takes its place. It is a weaker witness, because
# the same people wrote it.

# %%
from importlib.util import find_spec


def by_pytorch(offsets=(0, 3, 5)):
    import torch

    t = {name: torch.tensor(a, requires_grad=True) for name, a in INPUTS["attention"].items()}
    zs = []
    for b in range(2):
        start, end = offsets[b], offsets[b + 1]
        T = end - start
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
exact = by_complex_step(reference, "attention", INPUTS["attention"], DOUT["attention"])
print(f"z          against {who}: {relative_error(z, other_z):.0e}")
print(f"gradients  against {who}: {worst(ours, other):.0e}")
print(f"gradients  against the complex step: {worst(ours, exact):.0e}")
assert relative_error(z, other_z) < 1e-13
assert worst(ours, other) < 1e-12
assert worst(ours, exact) < 1e-12

# %% [markdown]
# **Recap.** Four witnesses so unlike do not make the same mistake:
#
# | witness | confirms | cannot see |
# |---|---|---|
# | paper | forward and backward | what the small numbers do not contain |
# | finite differences | the backward, to some 10 digits | a wrong forward |
# | complex step | the backward, to all digits | a wrong forward |
# | another program | forward and backward | a mistake that both made |
#
# ## The laws
#
# A [law](glossary.md#law) needs no witness at all. These are three of those in the
# [contract](../minprefix/ops/contract.py), which every implementation of the operations obeys:
#
# $$\sum_C dx = 0 \;\; \text{(layernorm)}, \qquad
# \sum_{slots,\, tokens} dK = 0, \qquad
# \sum_{slots,\, tokens} dV = \sum_{tokens} dz \;\; \text{(attention)}$$
#
# Layernorm's output does not change when all of a row moves by one number. A pattern does not
# change when all keys move by one vector. And each row of the pattern sums to 1, so what comes in
# at $z$ comes out at the values. Our slots are seen by both sequences, and we have summed their
# gradient over them; so the laws hold here for the whole batch, and for each head.
#
# ### Exercise 13.4: `check_attention_laws`
#
# *10 minutes · difficulty 2 of 5*
#
# Write the two laws of attention as a check. `grads` is what `gradients` gives for attention: `k`
# and `v` $(N, NH, hs)$, `prefix_k` and `prefix_v` $(NH, P, hs)$. `dz` is $(N, NH, hs)$. Both laws
# have an array of $(NH, hs)$ that has to be 0. The check raises AssertionError if a number of
# either is not below $10^{-12}$ in size, or is NaN, and returns nothing otherwise.


# %%
def check_attention_laws(grads, dz):
    keys = ...  # (NH, hs)
    values = ...  # (NH, hs)
    # and an assert for each


grade(check_attention_laws)

# %% [markdown]
# <details><summary>Hint 1</summary>
#
# The tokens lie along axis 0 of `k`, the slots along axis 1 of `prefix_k`.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# A number can be far below 0, so take `np.abs` before the largest. Sum over nothing else: what is
# left of one head could cancel what is left of another.
#
# </details>


# %% jupyter={"source_hidden": true}
def check_attention_laws(grads, dz):
    keys = grads["k"].sum(axis=0) + grads["prefix_k"].sum(axis=1)  # (NH, hs)
    values = grads["v"].sum(axis=0) + grads["prefix_v"].sum(axis=1) - dz.sum(axis=0)  # (NH, hs)
    off = np.abs(keys).max()
    assert off < 1e-12, f"attention: all of dK sums to {off:.2g}, expected 0"
    off = np.abs(values).max()
    assert off < 1e-12, f"attention: all of dV is {off:.2g} away from the sum of dz"


# %% [markdown]
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
law_sees = {
    name: noticed(check_attention_laws, {**ours, **wrong}, DOUT["attention"])
    for name, wrong in MISTAKES.items()
}
for name, yes in law_sees.items():
    print(f"{name:32s}{'noticed' if yes else 'not noticed'}")
assert list(law_sees.values()) == [False, False, True, True]

# %% [markdown]
# **Answer.** The last two. A sum that is 0 stays 0 under any scale and any sign, so the law of the
# keys is blind to both. The law of the values has something other than 0 on its right side, and
# sees them.

# %% [markdown]
# **Recap.** A law compares an implementation with itself, so it needs no right answer. A law whose
# right side is 0 sees neither a factor nor a sign. The complex step sees both.
#
# ## Checks as people write them
#
# Six more checks, of the kinds that people write. Each takes an implementation, and asserts.
# `RIGHT` holds the gradients that another program finds: here the package's second implementation,
# `numpy_ops`, since the bugs that we shall plant are in `reference`. `RIGHT_OUT` holds its outputs.

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
            got, right = grads[name].ravel(), RIGHT[op][name].ravel()
            cosine = got @ right / np.linalg.norm(got) / np.linalg.norm(right)
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
# And three that deserve the name. The first compares your slope along one random direction with the
# gradients. The second compares every number of every gradient with finite differences of the
# implementation's own forward. The third compares all outputs and gradients with the other
# program's, each array by its own largest number.


# %%
def check_one_direction(ops):
    random = np.random.default_rng(5)
    for op, a in INPUTS.items():
        direction = {name: random.normal(size=a[name].shape) for name in a}
        slope = slope_along(ops, op, a, direction, DOUT[op], 1e-6)
        grads = gradients(ops, op, a, DOUT[op])
        said = sum((grads[name] * direction[name]).sum() for name in a)
        assert abs(slope - said) < 1e-6, (
            f"{op}: the slope is {slope:.6g}, the gradient's {said:.6g}"
        )


def check_differences(ops):
    for op, a in INPUTS.items():
        slopes = by_differences(ops, op, a, DOUT[op])
        error = worst(gradients(ops, op, a, DOUT[op]), slopes)
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
    "one direction": check_one_direction,
    "differences": check_differences,
    "other program": check_other,
}
for check in CHECKS.values():
    check(reference)
print("the sound implementation passes all", len(CHECKS))

# %% [markdown]
# **Recap.** All eleven pass. That does not say much yet: we do not know what a check is worth until
# we have seen it fail.
#
# ## The kill matrix
#
# Of the [zoo](glossary.md#zoo) with its 248 mistakes we take fourteen, plant them one by one, and
# run each check on each. A check that fails has *killed* the bug; a bug that no check kills
# *lives*.
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

plt.figure(figsize=(5.2, 5.8), layout="constrained")
plt.imshow(kills, cmap="Greys", vmin=0, vmax=1.3, aspect="auto")
plt.xticks(range(len(CHECKS)), CHECKS, rotation=60, ha="right", fontsize=9)
plt.yticks(range(len(ZOO)), ZOO, fontsize=9)
plt.xticks(np.arange(len(CHECKS)) + 0.5, minor=True)
plt.yticks(np.arange(len(ZOO)) + 0.5, minor=True)
plt.grid(which="minor", color="lightgrey", linewidth=1)
plt.tick_params(which="minor", length=0)
plt.xlabel("check")
plt.ylabel("bug of the zoo")
plt.title("The kill matrix: dark where the check fails")
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
assert (table["one direction"] == table["differences"]).all()
assert table["laws"].sum() == 4
assert not table["cosine"][ZOO.index("dprefix-unscaled")]
assert not table["cosine"][ZOO.index("erf-gelu")]
assert not table["ones"][:2].any()  # both bugs of layernorm
assert not table["ones"][ZOO.index("upstream-of-the-wrong-sequence")]
assert not table["by hand"][ZOO.index("mask-shows-the-next-token")]
numbers = sum(values.size for a in INPUTS.values() for values in a.values())
print(f"forwards: {2 * len(INPUTS)} for one direction, {2 * numbers} for all differences")

# %% [markdown]
# **Answer.** *Other program* kills most, twelve of fourteen. *Shapes fit*, *loss falls* and
# *absolute 0.01* kill none. Finite differences let both bugs live that we named: there the forward
# is wrong, and the backward correctly differentiates a wrong forward.

# %% [markdown]
# Read it by columns:
#
# - *loss falls*: a falling loss is no proof. A step along half a gradient goes downhill, too, and
#   even the ReLU's derivative does in the place of GELU's.
# - *cosine* does not see `dprefix-unscaled`: a direction has no length. Nor `erf-gelu`, the GELU
#   with another function in the place of tanh, whose slope is nearly the same.
# - *one index* looks, in attention, at one number of the queries. It misses what is wrong with the
#   slots.
# - *ones* is blind to both bugs of layernorm: the outputs of a fresh layernorm sum to 0 whatever
#   goes in, so the right `dx` is 0, and what both bugs give is 0 as well. Nor can it see which
#   sequence an upstream belongs to: all of them are alike.
# - *laws* kill four, and see no scale.
# - *by hand* knows attention alone, and lets `mask-shows-the-next-token` live: one token has no
#   next one.
# - *one direction* kills exactly what *differences* kill, with 6 forwards instead of 448. A random
#   direction moves every number at once, so a wrong number shows in the slope. It does not say
#   which number is wrong.
# - *other program* misses two. These live because of what ten of the eleven checks have in common:
#   `INPUTS`. Both sequences see the same slots, and no score is large. A check sees what its inputs
#   can show.
#
# The [reference suite](glossary.md#reference-suite) behind `grade` runs each operation on inputs
# that were chosen one by one for what they can show. This is what it says to the two that are
# alive:

# %%
from minprefix.conformance import all_checks
from minprefix.conformance.zoo import all_bugs, plant

assert numbers == 224
for name in LIVE:
    bug = all_bugs()[name]
    # truth: the operation and the array that are wrong first
    of_op = [check for check in all_checks().values() if check.op == bug.truth[0]]
    failed = [check.id for check in of_op if check.grade(plant(bug)).status == "failed"]
    print(f"{name}: {len(failed)} of {len(of_op)} checks fail")
    print("  " + ", ".join(failed[:2]) + f" and {len(failed) - 2} more")
    assert failed

# %% [markdown]
# The suite itself is checked by the same kind of matrix, with all of its checks as columns and all
# 248 bugs of the zoo as rows. None lives, and for 245 the first sentence of the report names the
# operation and the array that are wrong first. (In a clone of this repository,
# `python -m tools.zoo_matrix` computes it and writes `tests/zoo/ZOO.md`.)
#
# **Recap.** Plant bugs, and count what each check kills. A cheap check with a random direction is
# worth as much as an expensive one. No check sees what its inputs do not contain.
#
# ## A law for the mask
#
# *Differences* cannot see a wrong mask. You do not always have another program. So look for a law:
# what must not change when the last token of a sequence does?
#
# A token sees itself and the tokens before it. If only the key and the value of a sequence's last
# token change, no other token may notice: not the earlier ones of the same sequence, and none of
# another sequence.
#
# ### Exercise 13.5: `future_leak`
#
# *12 minutes · difficulty 3 of 5*
#
# Add 1 to the keys and the values of the last token of each sequence. Return the largest change of
# $z$ that any *other* token sees. `prefix_k` and `prefix_v` are lists with one array $(NH, P, hs)$
# for each sequence, and the tokens of sequence $b$ are `offsets[b]` to `offsets[b + 1] - 1`. Leave
# the arguments as they are. There are no sequences of one token only.


# %%
def future_leak(ops, q, k, v, prefix_k, prefix_v, offsets):
    last = ...  # (B,)
    before = ...  # (N, NH, hs)
    after = ...  # (N, NH, hs)
    others = ...  # (N-B, NH, hs)
    return ...


grade(future_leak)

# %% [markdown]
# <details><summary>Hint 1</summary>
#
# The last tokens are at `offsets[1:] - 1`. `ops.attention` returns the pair of `z` and a cache.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# Copy `k` and `v`, and add 1 to the rows `last` of the copies.
#
# </details>
#
# <details><summary>Hint 3</summary>
#
# `np.delete(a, last, axis=0)` is `a` without those rows.
#
# </details>


# %% jupyter={"source_hidden": true}
def future_leak(ops, q, k, v, prefix_k, prefix_v, offsets):
    last = np.asarray(offsets)[1:] - 1  # (B,)
    before = ops.attention(q, k, v, prefix_k, prefix_v, offsets)[0]  # (N, NH, hs)
    k, v = k.copy(), v.copy()
    k[last] += 1
    v[last] += 1
    after = ops.attention(q, k, v, prefix_k, prefix_v, offsets)[0]  # (N, NH, hs)
    others = np.delete(after - before, last, axis=0)  # (N-B, NH, hs)
    return np.abs(others).max()


# %% [markdown]
# `judge` runs a check on the sound implementations and on bugs, and says which it kills. On a
# sound implementation only an assert may fail the check. Anything else that it raises there is a
# slip in the check itself. A name that nobody defined is a slip wherever it is met.


# %%
def judge(check, bugs):
    """Print which of the bugs the check kills. -> their names."""
    for ops in (reference, numpy_ops):
        try:
            with np.errstate(all="ignore"):
                check(ops)
        except AssertionError as error:
            raise AssertionError("your check fails on a sound implementation") from error
    killed = [bug for bug in bugs if is_killed(check, bug)]
    for bug in bugs:
        print(f"{'killed' if bug in killed else 'alive':8s}{bug}")
    return killed


def is_killed(check, bug):
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
# **Predict.** Which of the four bugs does the law kill: `mask-shows-the-next-token`, `no-mask`,
# `one-sequence-of-the-whole-batch` (a token sees the tokens of the sequences before its own, too)
# and `prefix-masked-out`?


# %%
def check_causal(ops):
    a = INPUTS["attention"]
    slots = [a["prefix_k"]] * 2, [a["prefix_v"]] * 2
    leak = future_leak(ops, a["q"], a["k"], a["v"], *slots, np.array([0, 3, 5]))
    assert leak < 1e-12, f"a token that must not be seen changes z by {leak:.2g}"


masks = ["mask-shows-the-next-token", "no-mask", "one-sequence-of-the-whole-batch"]
assert judge(check_causal, [*masks, "prefix-masked-out"]) == masks

# %% [markdown]
# **Answer.** The first three. In each, some token sees another one that it must not see. A token
# that sees too little, as in `prefix-masked-out`, breaks another law.

# %% [markdown]
# **Recap.** If differences cannot see a mistake, because the forward is wrong, ask what the forward
# must not depend on. Change that, and nothing may happen.
#
# ## From a failure to a cause: shrink it
#
# A check fails on 13 tokens of four sequences, with prefixes of four lengths. Which part of all
# this does the bug need? A *reducer* finds out: it makes the failing input smaller as long as it
# still fails.
#
# Let a *case* be a list with a pair for each sequence: how many tokens it has, and how many slots.
# `differs` draws numbers for a case and asks whether $z$ is wrong.


# %%
def differs(ops, case):
    """Whether attention gives another z than `numpy_ops` on a case, [(tokens, slots), ...], or none
    at all."""
    rng, NH, hs = np.random.default_rng(0), 2, 4
    offsets = np.cumsum([0, *(tokens for tokens, _ in case)])
    q, k, v = (rng.normal(size=(offsets[-1], NH, hs)) for _ in range(3))
    slots = [[rng.normal(size=(NH, n, hs)) for _, n in case] for _ in range(2)]
    right, _ = numpy_ops.attention(q, k, v, *slots, offsets)
    try:
        z, _ = ops.attention(q, k, v, *slots, offsets)
    except ValueError:  # shapes that do not fit
        return True
    return not relative_error(z, right) < 1e-10  # NaN differs, too


# %% [markdown]
# ### Exercise 13.6: `smaller`
#
# *10 minutes · difficulty 2 of 5*
#
# Return the list of all cases that are one move smaller than `case`, in this order:
#
# 1. each sequence left out, the first one first, if more than one is there;
# 2. each sequence with one token fewer, if it has more than one;
# 3. each sequence with one slot fewer, if it has any.


# %%
def smaller(case):
    without = ...
    fewer_tokens = ...
    fewer_slots = ...
    return without + fewer_tokens + fewer_slots


grade(smaller)

# %% [markdown]
# <details><summary>Hint 1</summary>
#
# Without sequence $b$ a case is `case[:b] + case[b + 1:]`.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# With another pair in the place of sequence $b$ it is `case[:b] + [pair] + case[b + 1:]`. Loop with
# `for b, (tokens, slots) in enumerate(case)`.
#
# </details>


# %% jupyter={"source_hidden": true}
def smaller(case):
    without, fewer_tokens, fewer_slots = [], [], []
    for b, (tokens, slots) in enumerate(case):
        before, after = case[:b], case[b + 1 :]
        if len(case) > 1:
            without.append(before + after)
        if tokens > 1:
            fewer_tokens.append([*before, (tokens - 1, slots), *after])
        if slots > 0:
            fewer_slots.append([*before, (tokens, slots - 1), *after])
    return without + fewer_tokens + fewer_slots


# %% [markdown]
# ### Exercise 13.7: `shrink`
#
# *10 minutes · difficulty 3 of 5*
#
# The implementation `ops` fails on `case`: `differs(ops, case)` is true. Take the first of its
# smaller cases on which it still fails. Go on from there, until none of the smaller cases fails.
# Return the case that is left.


# %%
def shrink(ops, case):
    return ...


grade(shrink)

# %% [markdown]
# <details><summary>Hint 1</summary>
#
# `next((each for each in smaller(case) if differs(ops, each)), None)` is the first one that fails,
# or None.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# After each success all moves are open again, so begin anew with the smaller cases of the new case.
#
# </details>


# %% jupyter={"source_hidden": true}
def shrink(ops, case):
    found = case
    while found is not None:
        case = found
        found = next((each for each in smaller(case) if differs(ops, each)), None)
    return case


# %% [markdown]
# **Predict.** Each of these five bugs fails on four sequences. What is the smallest case for each:
# how many sequences, tokens and slots? (`prefix-of-the-first-sequence-for-all`: all sequences see
# the slots of the first.)

# %%
big = [(4, 2), (3, 0), (2, 3), (4, 1)]  # 13 tokens of four sequences
names = (
    "no-mask",
    "prefix-masked-out",
    "scores-unscaled",
    "one-sequence-of-the-whole-batch",
    "prefix-of-the-first-sequence-for-all",
)
small = {name: shrink(planted(name).reference, big) for name in names}
for name, case in small.items():
    print(f"{name:38s}{case}")
assert small["no-mask"] == [(2, 0)]
assert small["prefix-masked-out"] == [(1, 1)]
assert small["scores-unscaled"] in ([(2, 0)], [(1, 1)])
assert small["one-sequence-of-the-whole-batch"] == [(1, 0), (1, 0)]
assert sorted(small["prefix-of-the-first-sequence-for-all"]) == [(1, 0), (1, 1)]

# %% [markdown]
# **Answer.** A missing mask needs a second token, and nothing else. A prefix that nobody sees needs
# a slot. Scores without their factor need two columns, so that the softmax has a choice. The last
# two need two sequences, and the last one a slot that one of the two does not have.

# %% [markdown]
# The smallest case often tells the cause before anybody has read the code. It also fits on paper,
# so the first witness can be asked again.
#
# **Recap.** Shrink a failing input as long as it still fails. What cannot be taken away is what the
# bug needs.
#
# ## A check that cannot fail
#
# Three columns of the kill matrix are empty. Such checks are worse than none, because they are
# counted. Three ways to write one:
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
# **Answer.** Zeros pass `check_absolute`, and NaN passes the second assert, not the first.

# %% [markdown]
# **Recap.** The remedy takes a minute: break the code, watch the check fail, put the code back. Do
# it once for every check that you write.
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
    check_one_direction(broken.reference)
print(error)

unscaled = gradients(broken.reference, "attention", INPUTS["attention"], DOUT["attention"])
factor = unscaled["prefix_k"] / RIGHT["attention"]["prefix_k"]  # (NH, P, hs)
print(f"dprefix_k is {factor.mean():.3f} times the right one, everywhere")
assert np.allclose(factor, np.sqrt(hs))

# %% [markdown]
# **Answer.** By $\sqrt{4} = 2$, everywhere. The laws say nothing, the cosine and the falling loss
# say nothing. The pencil and the slope along one direction see it.

# %% [markdown]
# Would we have noticed the bug without the last two checks? Let both implementations train the
# slots, so that $z$ comes near to
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
assert wrong[-1] < right[-1]

# %% [markdown]
# It learns, here even faster: its keys have twice the learning rate of its values. No curve tells
# you so. You would tune the rate, find one that works, and believe it.
#
# ## Remember
#
# - A wrong gradient runs, and its loss falls. A falling loss is no proof.
# - Paper, finite differences, the complex step and another program fail in unlike ways. Use more
#   than one.
# - Differences and the complex step cannot see a wrong forward.
# - One random direction costs two forwards, and sees as much as all differences.
# - A law needs no right answer. A law whose right side is 0 sees no factor and no sign.
# - A check sees only what its inputs can show: unlike sequences, unlike prefixes, large scores.
# - Shrink a failure: what cannot be taken away is what the bug needs.
# - You know what a check is worth after you have seen it fail.
#
# ## Exercises
#
# **1.** (15 minutes, difficulty 4 of 5.) Write a check that kills the two that are alive, and a
# third one, `unequal-prefixes-padded-with-zeros`. What do inputs have to be like, to show them?
# `judge` says how far you are.


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
#         z, _ = ops.attention(scale * q, k, v, *slots, np.array([0, 3, 5]))
#         right, _ = numpy_ops.attention(scale * q, k, v, *slots, np.array([0, 3, 5]))
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
# **2.** (10 minutes, difficulty 3 of 5.) In the function below one character is wrong. Do not read
# it yet: let the suite speak first. In the case `attention/one-sequence` there are $T = 5$ tokens
# and $hs = 7$. Which arrays are wrong, which are right, and by what factor? Find the character from
# that.


# %%
def suspect(dz, cache):
    dq, dk, dv = (np.zeros_like(a) for a in (cache.q, cache.k, cache.v))  # (N, NH, hs) each
    dprefix_k, dprefix_v = [], []
    for b, pattern in enumerate(cache.pattern):  # (NH, T, P+T)
        start, end = cache.offsets[b], cache.offsets[b + 1]
        # heads first
        q, k, v, dz_b = (a[start:end].swapaxes(0, 1) for a in (cache.q, cache.k, cache.v, dz))
        keys = np.concatenate([cache.prefix_k[b], k], axis=1)  # (NH, P+T, hs)
        values = np.concatenate([cache.prefix_v[b], v], axis=1)  # (NH, P+T, hs)
        values_grad = pattern.swapaxes(1, 2) @ dz_b  # (NH, P+T, hs)
        pattern_grad = dz_b @ values.swapaxes(1, 2)  # (NH, T, P+T)
        row_sums = (pattern_grad * pattern).sum(axis=2, keepdims=True)  # (NH, T, 1)
        scores_grad = pattern * (pattern_grad - row_sums) / q.shape[1] ** 0.5  # (NH, T, P+T)
        keys_grad = scores_grad.swapaxes(1, 2) @ q  # (NH, P+T, hs)
        slots = cache.prefix_k[b].shape[1]
        dq[start:end] = (scores_grad @ keys).swapaxes(0, 1)
        dk[start:end] = keys_grad[:, slots:].swapaxes(0, 1)
        dv[start:end] = values_grad[:, slots:].swapaxes(0, 1)
        dprefix_k.append(keys_grad[:, :slots])
        dprefix_v.append(values_grad[:, :slots])
    return dq, dk, dv, dprefix_k, dprefix_v


suspect.__name__ = "attention_backward"  # the suite knows a function by its name
grade(suspect, only="attention/one-sequence")

# %% [markdown]
# <details><summary>Solution 2</summary>
#
# `dq`, `dk` and `dprefix_k` are 1.183 times what they should be, `dv` and `dprefix_v` are right.
# The values' gradients do not pass through `dscores`, the three others do: the mistake is there,
# and it is a factor. $1.183^2 = 1.4 = 7/5 = hs / T$. So somebody divided by $\sqrt{T}$ in the place
# of $\sqrt{hs}$: heads come first here, and `q.shape[1]` is $T$. It has to be `q.shape[2]`.
#
# </details>
#
# Next: [Where the time goes](14_where_the_time_goes.py).
