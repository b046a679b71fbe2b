"""Three lessons that run in a second and hold all that a page can show."""

from pathlib import Path

HEAD = """\
# %% [markdown]
# # {title}
#
# - **You will be able to** read {title},
#   and more.
# - **You need** {need}.
# - **Time** 10 minutes; it runs in 1 second.
# - **Difficulty** 2 of 5.
#
"""

FIRST = (
    HEAD.format(title="The `first` one", need="nothing")
    + r"""# ## Overview
#
# - A [slot](glossary.md#slot) is filled, as the [glossary](glossary.md) says.
#
# ## Formulas
#
# Inline $x'_i = \mathrm{softmax}(\mathbf{W} x)_i$ (see $K'$). See
# [the backward](../minprefix/ops/reference.py#attention_backward),
# [line 3](../minprefix/gpt2.py#L3) and [the second](02_second.py#break-it-yourself).
#
# $$K' = \begin{bmatrix} K_P \\ K \\ L \end{bmatrix}, \qquad
# \begin{aligned} a + b + \hat{x} &= \bar{y}
# \odot z \\ \ell &= \sum_{j=1}^{n} \frac{A_{ij}}{\sqrt h} \in \mathbb{R} \end{aligned}$$
#
# $\sum_j dS_{ij} = \sum_j A_{ij} dA_{ij} - \sum_k dA_{ik} A_{ik} = 0 = \sum_m B_{km} dC_{km} = 0$
#
# **Predict.** What is printed?

# %%
import matplotlib.pyplot as plt

answer = 6 * 7
print(answer, "<script>document.title = 'broken into'</script>")

# %% [markdown]
# **Answer.** It is *forty-two*.

# %% [markdown]
# ## A picture
#
# | name | what |
# |---|---|
# | `a_very_long_name_of_an_array_that_does_not_break` | another long text that stands beside it |

# %%
# a comment of a hundred columns: it is longer than the box that it stands in, on every screen here.
plt.plot([1, 2, 4], label="train")
plt.title("Loss")
plt.xlabel("step")
plt.legend()
plt.show()

# %%
from minprefix import Config, Prefix

config = Config(n_layer=2, n_head=2, n_embd=8, vocab_size=9, n_positions=16)
Prefix.normal(config, 3)

# %% [markdown]
# **Recap.** A picture has words.
#
# ### Exercise 1.1: `half`
#
# *8 minutes · difficulty 2 of 5*
#
# Halve `x`, of the shape $(T, C)$.


# %%
def half(x):
    y = ...  # (T, C)
    return y


print("half: not written yet")

# %% [markdown]
# <details><summary>Hint 1</summary>
#
# Two halves are a whole.
#
# </details>


# %% jupyter={"source_hidden": true}
def half(x):
    y = x / 2  # (T, C)
    return y


# %% [markdown]
# Beside yours: there are other ways.
#
# ## Remember
#
# - Halve.
#
# ## Exercises
#
# 1. Write it.
#
# <details><summary>Solution 1, with `head`</summary>
#
# ```python
# def unfindable_elsewhere(x):
#     return x
# ```
#
# </details>
"""
)

SECOND = (
    HEAD.format(title="The second one", need="[lesson 1](01_first.py)")
    + """# ## Break it yourself
#
# Nothing.

# %%
value = "&lt; " + "wide " * 40
print("printed first")
value
"""
)

THIRD = HEAD.format(title="The third one", need="patience") + "\n# %%\nassert True\n"


GLOSSARY = """\
# Words

## Slot

A place of a prefix: see [the first](01_first.py#formulas).

## $T$

Tokens, each beside a [slot](#slot).
"""


def write(folder: Path, **lessons: str) -> Path:
    """A folder of lessons: FIRST, SECOND and THIRD with a glossary, or those given by name."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = lessons or {"01_first": FIRST, "02_second": SECOND, "03_third": THIRD}
    for name, text in texts.items():
        (folder / f"{name}.py").write_text(text, encoding="utf-8")
    if not lessons:
        (folder / "glossary.md").write_text(GLOSSARY, encoding="utf-8")
    return folder
