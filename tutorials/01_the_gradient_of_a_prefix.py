# %% [markdown]
# # The gradient of a prefix, by hand
#
# **You will be able to** derive the gradient of a prefix of keys and values for one attention head,
# write it in ten lines of NumPy, and prove it in three unlike ways.
# **You need** the chain rule, matrix products, softmax. **Time** 30 minutes. Runs in a second.
#
# ## Forward
#
# One attention head sees $T$ tokens. Each has a query, a key and a value of size $h$:
# $Q, K, V \in \mathbb{R}^{T \times h}$. Prefix-tuning puts $P$ further keys and values before them
# that belong to no token. They are free numbers, and they are all that is trained:
#
# $$K' = \begin{bmatrix} K_P \\ K \end{bmatrix}, \quad V' = \begin{bmatrix} V_P \\ V \end{bmatrix},
# \qquad S = \frac{Q K'^\top}{\sqrt h}, \quad A = \mathrm{softmax}(S), \quad Z = A V'$$
#
# Token $i$ sees all $P$ slots of the prefix and the tokens $0 \dots i$; the rest of $S$ is
# $-\infty$.

# %%
import numpy as np

from minprefix.ops import numpy_ops, reference

rng = np.random.default_rng(0)
T, P, h = 5, 3, 4
Q, K, V = (rng.normal(size=(T, h)) for _ in range(3))
K_P, V_P = rng.normal(size=(P, h)), rng.normal(size=(P, h))

# column j of row i is seen if it is one of the P slots, or a token that is not in i's future
seen = np.arange(P + T)[None, :] <= np.arange(T)[:, None] + P  # (T, P+T)


def head(Q, K, V, K_P, V_P):
    keys = np.concatenate([K_P, K])  # (P+T, h)
    values = np.concatenate([V_P, V])  # (P+T, h)
    S = np.where(seen, Q @ keys.T / np.sqrt(h), -np.inf)  # (T, P+T)
    e = np.exp(S - S.real.max(axis=1, keepdims=True))  # the maximum cancels; exp stays small
    A = e / e.sum(axis=1, keepdims=True)  # (T, P+T), rows sum to 1
    return A @ values, A  # Z (T, h)


Z, A = head(Q, K, V, K_P, V_P)

# %% [markdown]
# **Predict** before you run the next cell: how many of the $5 \times 8$ entries of $A$ are exactly
# 0? (Which pairs of a query and a key are hidden?)

# %%
print(A.round(2))
hidden = int((A == 0).sum())
print(hidden, "entries are hidden")
assert hidden == T * (T - 1) // 2  # the tokens in the future; a slot of the prefix is never hidden
assert np.allclose(A.sum(axis=1), 1)

# %% [markdown]
# ## Backward
#
# Something behind the head (the rest of the model, then the loss $\ell$) tells us
# $dZ = \partial \ell / \partial Z$. We walk the three lines of the forward backwards.
#
# 1. $Z = A V'$, so $dA = dZ\, V'^\top$ and $dV' = A^\top dZ$. The prefix's values are the first
#    $P$ rows of $V'$: **$dV_P = (A^\top dZ)_{:P}$**. That is half of the answer already.
# 2. $A = \mathrm{softmax}(S)$ row by row: $dS_{ij} = A_{ij}\,(dA_{ij} - \sum_k dA_{ik} A_{ik})$.
#    The sum runs over all $P + T$ columns: a slot of the prefix competes with the tokens, too.
# 3. $S = Q K'^\top / \sqrt h$, so $dK' = dS^\top Q / \sqrt h$, and again the first $P$ rows are
#    ours: **$dK_P = (dS^\top Q)_{:P} / \sqrt h$**.

# %%


def head_backward(dZ, Q, K, V, K_P, V_P):
    values = np.concatenate([V_P, V])  # (P+T, h)
    _, A = head(Q, K, V, K_P, V_P)
    dvalues = A.T @ dZ  # (P+T, h)
    dA = dZ @ values.T  # (T, P+T)
    dS = A * (dA - (dA * A).sum(axis=1, keepdims=True))  # (T, P+T)
    dkeys = dS.T @ Q / np.sqrt(h)  # (P+T, h)
    return dkeys[:P], dvalues[:P]  # dK_P, dV_P


dZ = rng.normal(size=(T, h))  # random: an upstream of ones would hide mistakes, see the end
dK_P, dV_P = head_backward(dZ, Q, K, V, K_P, V_P)

# %% [markdown]
# ## Is it right? Three unlike witnesses
#
# Take $\ell = \sum dZ \odot Z$; its gradient with respect to $Z$ is $dZ$.
#
# **First: finite differences.** Move one number up and down a little and look at $\ell$:
# $\partial \ell / \partial x \approx (\ell(x + \epsilon) - \ell(x - \epsilon)) / 2\epsilon$. The
# subtraction costs about half of the digits.

# %%


def loss(K_P, V_P):
    return (dZ * head(Q, K, V, K_P, V_P)[0]).sum()


def relative_error(a, b):
    return np.abs(a - b).max() / np.abs(b).max()


def finite_differences(eps=1e-6):
    grads = np.zeros((2, P, h))
    for index in np.ndindex(grads.shape):
        step = np.zeros((2, P, h))
        step[index] = eps
        up, down = loss(K_P + step[0], V_P + step[1]), loss(K_P - step[0], V_P - step[1])
        grads[index] = (up - down) / (2 * eps)
    return grads


by_differences = finite_differences()
print("dK_P", relative_error(dK_P, by_differences[0]))
print("dV_P", relative_error(dV_P, by_differences[1]))
assert relative_error(dK_P, by_differences[0]) < 1e-8
assert relative_error(dV_P, by_differences[1]) < 1e-8

# %% [markdown]
# **Second: the complex step.** $\ell$ is built of functions that also take complex numbers, and
# for those $\ell(x + i\epsilon) = \ell(x) + i\epsilon\, \ell'(x) + O(\epsilon^2)$. The
# derivative is the imaginary part divided by $\epsilon$. Nothing is subtracted, so $\epsilon$ may
# be $10^{-30}$ and every digit is right.
#
# **Predict:** by what factor will the error shrink against finite differences?

# %%


def complex_step(eps=1e-30):
    grads = np.zeros((2, P, h))
    for index in np.ndindex(grads.shape):
        step = np.zeros((2, P, h), complex)
        step[index] = 1j * eps
        grads[index] = loss(K_P + step[0], V_P + step[1]).imag / eps
    return grads


by_complex_step = complex_step()
print("dK_P", relative_error(dK_P, by_complex_step[0]))
print("dV_P", relative_error(dV_P, by_complex_step[1]))
assert relative_error(dK_P, by_complex_step[0]) < 1e-13
assert relative_error(dV_P, by_complex_step[1]) < 1e-13

# %% [markdown]
# **Third: another implementation.** The package has this operation twice, for many heads and many
# sequences: `reference` to be read and `numpy_ops` to be fast. Both are tested against PyTorch. Its
# arrays are (tokens, heads, h) and, for the prefix, (heads, P, h); we have one head.

# %%
for ops in (reference, numpy_ops):
    _, cache = ops.attention(
        Q[:, None], K[:, None], V[:, None], [K_P[None]], [V_P[None]], np.array([0, T])
    )
    grads = ops.attention_backward(dZ[:, None].copy(), cache)
    assert relative_error(grads.dprefix_k[0][0], dK_P) < 1e-14
    assert relative_error(grads.dprefix_v[0][0], dV_P) < 1e-14
print("the package agrees")

# %% [markdown]
# ## Break it yourself
#
# A bug that people really ship: the sum in step 2 runs over the real tokens only, as if the prefix
# stood outside of the softmax. Which witness notices?

# %%


def head_backward_with_a_bug(dZ, Q, K, V, K_P, V_P):
    values = np.concatenate([V_P, V])
    _, A = head(Q, K, V, K_P, V_P)
    dA = dZ @ values.T
    dS = A * (dA - (dA * A)[:, P:].sum(axis=1, keepdims=True))  # [:, P:] is the bug
    return (dS.T @ Q / np.sqrt(h))[:P], (A.T @ dZ)[:P]


wrong, _ = head_backward_with_a_bug(dZ, Q, K, V, K_P, V_P)
print("with the bug, dK_P is off by", relative_error(wrong, by_complex_step[0]))
assert relative_error(wrong, by_complex_step[0]) > 0.01

# %% [markdown]
# And a check that sees nothing. For an upstream of ones through softmax alone, the true gradient
# $A_{ij}(1 - \sum_k A_{ik}) = 0$ is zero, so `return 0` passes. That is why `dZ` above is random.

# %%
dA_ones = np.ones_like(A)
dS_ones = A * (dA_ones - (dA_ones * A).sum(axis=1, keepdims=True))
print("softmax's gradient for an upstream of ones:", np.abs(dS_ones).max())
assert np.abs(dS_ones).max() < 1e-15

# %% [markdown]
# ## Exercises
#
# 1. Show on paper that the sum of $dK'$ over all its rows is 0. Check it here. Which bugs does
#    this law not see?
# 2. With $P$ slots of zeros, is $Z$ the same as without a prefix? Compute it.
# 3. Write $dQ$, and check it with the complex step.
#
# <details><summary>Solutions</summary>
#
# 1. $\sum_j dS_{ij} = \sum_j A_{ij} dA_{ij} - (\sum_j A_{ij}) \sum_k dA_{ik} A_{ik} = 0$ for every
#    $i$, and $\sum_j dK'_j = \sum_i (\sum_j dS_{ij}) Q_i / \sqrt h$. A missing $1/\sqrt h$ or a
#    flipped sign scales both sides of $0 = 0$.
# 2. No: a key of zeros has the score 0, which draws its share of the softmax.
# 3. $dQ = dS\, K' / \sqrt h$.
#
# </details>
