"""Schematic drawings that lessons show. Each function draws one figure and shows it:

    from minprefix.lessons import drawings

    drawings.rectangle(T=5, P=3)               # 05  attention with slots, forward and backward
    drawings.rectangle(5, 3, only="forward")   #     one half: "forward" or "backward"
    drawings.block()                           # 06  a block, its residual stream, its shapes
    drawings.block(T=7, C=160, F=640, NH=5)    #     with numbers in the place of letters
    drawings.graph()                           # 02  two linear layers: dx and dW paths
    drawings.graph(frozen=("W_1", "W_2"))      #     which of them are cut where it is frozen
    drawings.graph(drawings.MODEL, frozen=drawings.WEIGHTS)  # 07  a GPT-2 behind a prefix
    drawings.mlp()                             # 09  the MLP that a prefix comes from, its shapes
    drawings.heads(T=3, NH=2, hs=2)            # 04  the reshape into heads, number by number
    drawings.heads(3, 2, 2, wrong=True)        #     and what `reshape(NH, T, hs)` alone would give
    drawings.padded(lengths=(3, 6, 2, 4))      # 15  the padded rectangle and the stream
    drawings.padded((3, 6, 2, 4), prefixes=(2, 1, 3, 0))   # with slots before the tokens

A figure is at most 4.7 inches wide, so that its text can be read on a phone. It is grey, and
hatches and dashes tell its parts apart. Its title and its words (the figure's label) are the text
alternative of a page; `in_kernel.describe` reads them. matplotlib is imported where it is used: it
is slow to import.
"""

from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Literal

from minprefix.lessons.sheet import DARK, HIDDEN, LIGHT, SIZE, SLOT, WIDTH, Sheet

#: a name for a size, or the size itself
Size = str | int
#: a part of a graph, and the names of what it holds that could be trained
Part = tuple[str, tuple[str, ...]]

TWO_LAYERS: tuple[Part, ...] = (
    ("linear", ("W_1",)),
    ("gelu", ()),
    ("linear", ("W_2",)),
    ("loss", ()),
)
WEIGHTS = ("wte, wpe", "weights 0", "weights 1", "weights 2", "ln_f, wte")
MODEL: tuple[Part, ...] = (
    ("embed", ("wte, wpe",)),
    ("block 0", ("weights 0", "prefix 0")),
    ("block 1", ("weights 1", "prefix 1")),
    ("block 2", ("weights 2", "prefix 2")),
    ("LM head", ("ln_f, wte",)),
    ("loss", ()),
)


def _times(n: int, size: Size) -> str:
    return str(n * size) if isinstance(size, int) else f"{n}{size}"


def _shape(*sizes: Size) -> str:
    return f"({', '.join(map(str, sizes))})"


# ---- attention ----------------------------------------------------------------------------------


def rectangle(T: int = 5, P: int = 3, only: Literal["forward", "backward"] | None = None) -> None:
    """The (T, P+T) rectangle of attention with P slots: which query sees which key, and where the
    gradients of the slots come from."""
    s = min(3.0, 25 / (P + T))
    one = T * s + 14.0
    halves = [half for half in ("forward", "backward") if only in (None, half)]
    sheet = Sheet(f"Attention with {P} slots and {T} tokens", one * len(halves) + 2.5)
    words = ""
    for y, half in zip((0, one), halves, strict=False):
        left = 11.0
        sheet.text(left + (P + T) * s / 2, y + 1, half, fontweight="bold")
        _triangle(sheet, left, y + 10.0, s, T, P)
        draw = _forward_labels if half == "forward" else _backward_labels
        words += draw(sheet, left, y + 10.0, s, T, P)
    y = one * len(halves) + 1.0
    sheet.legend(
        y,
        (3.0, "slot", SLOT, LIGHT),
        (14.0, "token that is seen", "", "white"),
        (32.0, "hidden: 0", HIDDEN, DARK),
    )
    sheet.show(
        f"A rectangle of {T} rows, the queries, and {P} + {T} columns, the keys: first the slots, "
        "then the tokens. Each query sees all slots, itself and the tokens before it; the corner "
        f"of the later tokens is hidden. {words}"
    )


def _triangle(sheet: Sheet, x: float, y: float, s: float, T: int, P: int) -> None:
    slot, seen, hidden = ("", SLOT, LIGHT), ("", "", "white"), ("", HIDDEN, DARK)
    rows = ([slot] * P + [seen] * (i + 1) + [hidden] * (T - i - 1) for i in range(T))
    sheet.cells(x, y, s, rows)
    sheet.axes.plot([x + P * s] * 2, [y - 0.6, y + T * s + 0.6], color="black", linewidth=2.2)


def _forward_labels(sheet: Sheet, x: float, y: float, s: float, T: int, P: int) -> str:
    sheet.text(x + P * s / 2, y - 2.9, "prefix_k\nprefix_v\n(P, hs)")
    sheet.text(x + (P + T / 2) * s, y - 2.1, "k, v\n(T, hs)")
    sheet.text(5.2, y + T * s / 2, "q\n(T, hs)")
    sheet.arrow(8.2, y + T * s / 2, x - 0.6, y + T * s / 2)
    right = x + (P + T) * s
    sheet.arrow(right + 0.6, y + T * s / 2, right + 3.2, y + T * s / 2)
    sheet.text(right + 3.8, y + T * s / 2, "z\n(T, hs)", "left")
    sheet.text(x + (P + T) * s / 2, y + T * s + 1.6, "scores, pattern (T, P+T): a row sums to 1")
    return (
        "Forward: queries from the left, keys and values of slots and tokens from above; each row "
        "of the pattern sums to 1 and gives a row of z. "
    )


def _backward_labels(sheet: Sheet, x: float, y: float, s: float, T: int, P: int) -> str:
    bottom, right, middle = y + T * s, x + (P + T) * s, y + T * s / 2
    sheet.text(right + 3.8, middle, "dz\n(T, hs)", "left")
    sheet.arrow(right + 3.2, middle, right + 0.6, middle, back=True)
    sheet.text(5.2, middle, "dq\n(T, hs)")
    sheet.arrow(x - 0.6, middle, 8.2, middle, back=True)
    slots, tokens = x + P * s / 2, x + (P + T / 2) * s
    for at, names in ((slots, "dprefix_k\ndprefix_v\n(P, hs)"), (tokens, "dk, dv\n(T, hs)")):
        sheet.arrow(at, y - 0.4, at, y - 2.0, back=True)
        sheet.text(at, y - 2.2, names, va="bottom")
    below = "dpattern, dscores (T, P+T): a row sum over all columns"
    sheet.text(x + (P + T) * s / 2, bottom + 1.6, below)
    return (
        "Backward: dz from the right; the columns of the slots, summed over the queries, give "
        "dprefix_k and dprefix_v, the columns of the tokens dk and dv, the rows dq. The row sum "
        "runs over all P+T columns. "
    )


def heads(T: int = 3, NH: int = 2, hs: int = 2, wrong: bool = False) -> None:
    """The reshape (T, C) -> (T, NH, hs) -> (NH, T, hs); a cell's number is its place in memory.
    `wrong`: also what `reshape(NH, T, hs)` alone would give."""
    s, C = min(3.4, 30 / (NH * hs + NH)), NH * hs
    title = "From (T, C) to heads: which number goes where"
    high = T * s + 6.4
    sheet = Sheet(title, high * (3 if wrong else 2) - 1.0)
    fills = [("", "white"), (SLOT, LIGHT), ("....", "white"), ("xxxx", LIGHT)]

    def cell(flat: int) -> tuple[str, str, str]:
        return (str(flat), *fills[flat % C // hs % len(fills)])

    x, y = (WIDTH - C * s) / 2, 3.4
    sheet.text(WIDTH / 2, 1.2, f"(T, C) = ({T}, {C}): a row is a token")
    sheet.cells(x, y, s, ([cell(t * C + c) for c in range(C)] for t in range(T)))
    for t in range(T):
        sheet.text(x - 0.8, y + (t + 0.5) * s, f"token {t}", "right")
    wide = NH * hs * s + (NH - 1) * 2.5
    rows = [("reshape(T, NH, hs).swapaxes(0, 1)", lambda h, t, c: t * C + h * hs + c)]
    if wrong:
        rows.append(("wrong: reshape(NH, T, hs) alone", lambda h, t, c: (h * T + t) * hs + c))
    for n, (name, place) in enumerate(rows, start=1):
        y = 3.4 + n * high
        sheet.text(WIDTH / 2, y - 3.4, name, fontweight="bold")
        for h in range(NH):
            x = (WIDTH - wide) / 2 + h * (hs * s + 2.5)
            sheet.text(x + hs * s / 2, y - 1.3, f"head {h}")
            sheet.cells(x, y, s, ([cell(place(h, t, c)) for c in range(hs)] for t in range(T)))
    mixed = (
        " Reshaped to (NH, T, hs) without the swap, a head would hold numbers of several heads "
        "and of the first tokens only."
    )
    sheet.show(
        f"{T} rows of C = {C} numbers. Each row is cut into {NH} pieces of {hs}; head h gets piece "
        f"h of every token, so the result is {NH} tables of {T} tokens and {hs} numbers each."
        + mixed
        * wrong
    )


# ---- the model ----------------------------------------------------------------------------------


def block(T: Size = "T", C: Size = "C", F: Size = "F", NH: Size = "NH") -> None:
    """A block of GPT-2: the residual stream, and the two branches that add to it."""
    sheet = Sheet("A block: two branches add to the residual stream", 57)
    wide = _shape(T, C)
    x, left, w, h = 10.0, 16.5, 14.0, 3.2
    sheet.text(x, 55.8, f"resid_pre {wide}")
    sheet.arrow(x, 54.4, x, 3.0)
    sheet.text(x, 1.6, f"resid_post {wide}")
    branches = (
        (53.0, ("ln_1", "attn.c_attn", "attention", "attn.c_proj"),
         (wide, _shape(T, _times(3, C)), wide), "resid_mid"),
        (27.0, ("ln_2", "mlp.c_fc", "gelu", "mlp.c_proj"),
         (wide, _shape(T, F), _shape(T, F)), ""),
    )  # fmt: skip
    for y, names, shapes, after in branches:
        middle = left + w / 2
        sheet.axes.plot([x, middle], [y, y], color="black", linewidth=1.3)
        sheet.arrow(middle, y, middle, y - 1.8)
        for i, name in enumerate(names):
            top = y - 1.8 - h - i * (h + 2.2)
            sheet.box(left, top, w, h, name, fill=LIGHT if name == "attention" else "white")
            if i < 3:
                sheet.arrow(middle, top, middle, top - 2.2)
                sheet.text(middle + 0.8, top - 1.1, shapes[i], "left")
        end = y - 1.8 - h - 3 * (h + 2.2) - 1.5
        sheet.axes.plot([middle, middle], [end + 1.5, end], color="black", linewidth=1.3)
        sheet.arrow(middle, end, x + 1.2, end)
        sheet.text(middle + 0.8, end, wide, "left")
        sheet.axes.plot(
            [x], [end], "o", color="white", markeredgecolor="black", markersize=12, zorder=3
        )
        sheet.text(x, end - 0.1, "+", fontsize=SIZE + 2, zorder=4)
        if after:
            white = {"facecolor": "white", "edgecolor": "none", "pad": 1}
            sheet.text(x, end - 2.2, after, bbox=white)
    y = 53.0 - 1.8 - h - 2 * (h + 2.2) + h / 2
    sheet.arrow(33.5, y, left + w + 0.3, y)
    sheet.text(33.9, y, f"prefix_k, prefix_v\n{_shape(NH, 'P', 'hs')}", "left", fontsize=SIZE - 0.5)
    sheet.show(
        f"The residual stream {wide} runs through the block. First branch: ln_1, attn.c_attn to "
        f"{_shape(T, _times(3, C))}, attention, which also reads the prefix's keys and values, "
        "attn.c_proj; the result is added to the stream (resid_mid). Second branch: ln_2, mlp.c_fc "
        f"to {_shape(T, F)}, gelu, mlp.c_proj; the result is added, too (resid_post)."
    )


def graph(parts: Sequence[Part] = TWO_LAYERS, frozen: Iterable[str] = ()) -> None:
    """A chain of parts, its forward and its backward. What is `frozen` gets no gradient, and the
    backward ends above the lowest part that holds something which learns."""
    fixed = set(frozen)
    learning = [i for i, (_, held) in enumerate(parts) if set(held) - fixed]
    lowest = min(learning, default=len(parts))
    title = "Forward and backward" + (", frozen parts cut" if fixed else "")
    step, h = 7.4, 3.4
    sheet = Sheet(title, step * len(parts) + 6.0)
    x, w, held_x, held_w = 5.0, 13.0, 29.0, 13.5
    for i, (name, held) in enumerate(parts):
        y = step * (len(parts) - 1 - i) + 1.0
        sheet.box(x, y, w, h, name)
        _held(sheet, y + h / 2, (x + w, held_x, held_w), held, fixed)
        if i + 1 < len(parts):
            sheet.arrow(x + 4, y, x + 4, y - step + h)
            if i >= lowest:
                sheet.arrow(x + w - 4, y - step + h, x + w - 4, y, back=True)
                sheet.text(x + w - 3.2, y - (step - h) / 2, "dx", "left")
            else:
                sheet.cross(x + w - 4, y - (step - h) / 2)
    y = step * len(parts)
    sheet.arrow(x + 4, y + 0.6, x + 4, y - step + h + 1.0)
    sheet.text(x + 4, y + 1.6, "input")
    y += 4.2
    sheet.arrow(1.5, y, 5.5, y)
    sheet.text(6.2, y, "forward", "left")
    sheet.arrow(18.5, y, 14.5, y, back=True)
    sheet.text(19.2, y, "backward", "left")
    sheet.cross(30.5, y)
    sheet.text(32.0, y, "not computed", "left")
    sheet.show(_graph_in_words(parts, fixed, lowest))


def _held(
    sheet: Sheet, y: float, across: tuple[float, float, float], held: Sequence[str], fixed: set[str]
) -> None:
    """What a part holds, to its right; `across`: where the part ends, where that begins, and how
    wide it is."""
    right, x, w = across
    for n, name in enumerate(held):
        at = y + (n - (len(held) - 1) / 2) * 3.3
        off = name in fixed
        sheet.box(x, at - 1.3, w, 2.6, name, HIDDEN if off else "", DARK if off else "white")
        if off:
            sheet.axes.plot([right + 0.4, right + 4], [at, at], color="black", linestyle=":")
            sheet.cross(right + 5.2, at)
        else:
            sheet.arrow(right + 0.4, at, x - 0.4, at, back=True)
            sheet.text((right + x) / 2, at - 1.1, f"d{name}")


def _graph_in_words(parts: Sequence[Part], fixed: set[str], lowest: int) -> str:
    words = "Forward, from the input to the loss: " + ", ".join(name for name, _ in parts) + ". "
    names = [name for _, held in parts for name in held]
    learn, cut = [n for n in names if n not in fixed], [n for n in names if n in fixed]
    if learn:
        words += f"The backward gives the gradients of {', '.join(learn)}. "
        words += f"dx goes from the loss down to {parts[lowest][0]}, and no further. "
    if cut:
        words += f"Frozen, without a gradient: {', '.join(cut)}. "
    return words


# ---- a prefix's MLP, and padding ----------------------------------------------------------------


def mlp(P: Size = "P", C: Size = "C", hidden: Size = "hidden", L: Size = "L") -> None:
    """The MLP that a prefix is computed by: which arrays are trained, and their shapes."""
    sheet = Sheet("A prefix through an MLP: shapes, and what is trained", 45)
    p, c, wide, out = 2.8, 5.0, 9.0, 14.0  # the sides of P, C, hidden and 2LC
    last = _times(2, f"{L}{C}") if isinstance(L, str) or isinstance(C, str) else 2 * L * C

    def matrix(x: float, y: float, w: float, h: float, name: str, *sizes: Size) -> None:
        trained = name[0] in "EW"
        fill = LIGHT if trained else "white"
        sheet.box(x, y - h / 2, w, h, name, SLOT if trained else "", fill)
        sheet.text(x + w / 2, y + h / 2 + 1.2, _shape(*sizes))

    y = 5.0
    matrix(3.0, y, c, p, "E", P, C)
    sheet.text(10.6, y, "@")
    matrix(13.0, y, wide, c, "W_1", C, hidden)
    sheet.text(27.4, y, "+ b_1, tanh")
    sheet.arrow(32.0, y, 34.2, y)
    matrix(35.0, y, wide, p, "h", P, hidden)
    y = 17.5
    matrix(1.0, y, wide, p, "h", P, hidden)
    sheet.text(11.6, y, "@")
    matrix(13.2, y, out, wide, "W_2", hidden, last)
    sheet.text(30.2, y, "+ b_2")
    y = 28.0
    sheet.arrow(WIDTH / 2, 24.6, WIDTH / 2, 27.8)
    cut = 6
    w, x = 36.0 / cut, 5.0
    names = ("key 0", "value 0", "key 1", "value 1", "...", "")
    for i, name in enumerate(names[:5]):
        sheet.box(x + i * w, y + 0.6, w, p, name)
    sheet.box(x + 5 * w, y + 0.6, w, p, "value")
    sheet.text(x + 5.5 * w, y - 0.6, "layer L-1")
    sheet.text(WIDTH / 2, y + p + 2.0, f"flat {_shape(P, last)}: 2L pieces of {_shape(P, C)}")
    sheet.arrow(WIDTH / 2, y + p + 3.4, WIDTH / 2, y + p + 6.2)
    sheet.text(
        WIDTH / 2, y + p + 7.6, f"kv {_shape(L, 2, 'NH', P, 'hs')}: the prefix", fontweight="bold"
    )
    sheet.legend(y + p + 11.9, (6.0, "trained", SLOT, LIGHT), (22.0, "computed", "", "white"))
    sheet.show(
        f"E {_shape(P, C)} times W_1 {_shape(C, hidden)} plus b_1, through tanh, is "
        f"h {_shape(P, hidden)}. h times W_2 {_shape(hidden, last)} plus b_2 is flat "
        f"{_shape(P, last)}. "
        f"flat is cut into 2L pieces, key and value of each layer, and reshaped to kv "
        f"{_shape(L, 2, 'NH', P, 'hs')}."
    )


def padded(lengths: Sequence[int] = (3, 6, 2, 4), prefixes: Sequence[int] = ()) -> None:
    """Sequences in a padded rectangle, and in one stream with offsets; `prefixes`: the slots before
    each sequence, in the rectangle."""
    slots = list(prefixes) or [0] * len(lengths)
    P, T, N, B = max(slots), max(lengths), sum(lengths), len(lengths)
    s = min(2.6, 33 / (P + T))
    title = "A padded rectangle, and a stream without padding"
    sheet = Sheet(title, B * s + 19.5)
    token, pad, slot = ("", "", "white"), ("", HIDDEN, DARK), ("", SLOT, LIGHT)
    x, y = 11.0, 3.0
    named = f"(B, {'P+' if P else ''}T) = {_shape(B, P + T)}"
    sheet.text(x + (P + T) * s / 2, 1.2, f"rectangle {named}")
    rows = (
        [slot] * n + [pad] * (P - n) + [token] * t + [pad] * (T - t)
        for n, t in zip(slots, lengths, strict=True)
    )
    sheet.cells(x, y, s, rows)
    for b in range(B):
        sheet.text(x - 0.8, y + (b + 0.5) * s, f"sequence {b}", "right")
    lost = B * (P + T) - N - sum(slots)
    sheet.text(
        WIDTH / 2,
        y + B * s + 1.5,
        f"{lost} of {B * (P + T)} places are padding, and must be hidden",
    )
    _stream(sheet, y + B * s + 4.4, lengths)
    y += B * s + 15.0
    marks = [(3.0, "token", *token[1:]), (15.0, "padding", *pad[1:])]
    sheet.legend(y, *marks, *([(29.0, "slot", *slot[1:])] if P else []))
    sheet.show(
        f"{B} sequences of {', '.join(map(str, lengths))} tokens. In the rectangle "
        f"{_shape(B, P + T)} {lost} of {B * (P + T)} places are padding. In the "
        f"stream the {N} tokens lie behind one another; the offsets are "
        f"{', '.join(map(str, accumulate(lengths, initial=0)))}."
    )


def _stream(sheet: Sheet, y: float, lengths: Sequence[int]) -> None:
    N, offsets = sum(lengths), list(accumulate(lengths, initial=0))
    s = min(2.4, (WIDTH - 6) / N)
    x = (WIDTH - N * s) / 2
    sheet.text(WIDTH / 2, y, f"stream (N) = ({N}); a cell holds its sequence")
    which = (b for b, n in enumerate(lengths) for _ in range(n))
    sheet.cells(x, y + 1.6, s, [[(str(b), "", ("white", LIGHT)[b % 2]) for b in which]])
    for offset in offsets:
        sheet.axes.plot([x + offset * s] * 2, [y + 1.2, y + s + 2.6], color="black", linewidth=2)
        sheet.text(x + offset * s, y + s + 3.8, str(offset))
    sheet.text(WIDTH / 2, y + s + 5.8, "offsets (B+1)")
