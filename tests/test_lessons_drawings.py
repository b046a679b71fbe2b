"""The schematic drawings of the lessons: what they hold, and that they can be read."""

import subprocess
import sys
from itertools import combinations

import matplotlib.pyplot as plt
import numpy as np
import pytest

from minprefix.lessons import drawings
from minprefix.lessons.in_kernel import describe
from minprefix.lessons.sheet import HIDDEN, SLOT, WIDTH

DRAWN = {
    "rectangle": lambda: drawings.rectangle(5, 3),
    "rectangle, many": lambda: drawings.rectangle(12, 6, only="backward"),
    "rectangle, one": lambda: drawings.rectangle(4, 1, only="forward"),
    "block": drawings.block,
    "block, numbers": lambda: drawings.block(T=1024, C=1600, F=6400, NH=25),
    "graph": drawings.graph,
    "graph, frozen": lambda: drawings.graph(frozen=("W_1", "W_2")),
    "graph, model": lambda: drawings.graph(drawings.MODEL, drawings.WEIGHTS),
    "mlp": drawings.mlp,
    "mlp, numbers": lambda: drawings.mlp(P=10, C=160, hidden=512, L=4),
    "heads": drawings.heads,
    "heads, wrong": lambda: drawings.heads(3, 2, 2, wrong=True),
    "heads, many": lambda: drawings.heads(4, 4, 3, wrong=True),
    "padded": drawings.padded,
    "padded, slots": lambda: drawings.padded((3, 6, 2, 4), prefixes=(2, 1, 3, 0)),
}


@pytest.fixture
def drawn():
    """Draw by name -> the figure."""
    plt.switch_backend("agg")

    def drawn(name):
        DRAWN[name]()
        return plt.gcf()

    yield drawn
    plt.close("all")


def hatches(figure):
    return [patch.get_hatch() for patch in figure.axes[0].patches]


def texts(figure):
    return [text.get_text() for text in figure.axes[0].texts]


@pytest.mark.parametrize("name", DRAWN)
def test_a_drawing_fits_a_phone_and_no_text_lies_over_another(drawn, name):
    figure = drawn(name)
    assert figure.get_figwidth() <= 4.7
    renderer = figure.canvas.get_renderer()
    words = [t for t in [*figure.texts, *figure.axes[0].texts] if t.get_text().strip()]
    boxes = [text.get_window_extent(renderer) for text in words]
    paper = figure.bbox
    for text, box in zip(words, boxes, strict=True):
        assert text.get_fontsize() >= 9
        assert paper.x0 <= box.x0, text
        assert paper.y0 <= box.y0, text
        assert box.x1 <= paper.x1, text
        assert box.y1 <= paper.y1, text
    for (a, one), (b, other) in combinations(zip(words, boxes, strict=True), 2):
        assert not one.padded(-1).overlaps(other.padded(-1)), (a, b)


@pytest.mark.parametrize("name", DRAWN)
def test_a_drawing_is_grey_and_tells_its_words(drawn, name):
    figure = drawn(name)
    for patch in (patch for patch in figure.axes[0].patches if patch.get_fill()):
        red, green, blue, _ = patch.get_facecolor()
        assert red == green == blue
    assert len(describe(figure)) > 80
    assert describe(figure).startswith(f"{figure.get_suptitle()}. ")


def test_the_rectangle_hides_the_later_tokens_and_no_slot(drawn):
    figure = drawn("rectangle")
    T, P = 5, 3
    key = 1  # in the legend
    assert hatches(figure).count(HIDDEN) == 2 * T * (T - 1) // 2 + key
    assert hatches(figure).count(SLOT) == 2 * T * P + key


def test_the_numbers_in_the_heads_are_where_numpy_puts_them(drawn):
    numbers = [int(text) for text in texts(drawn("heads, wrong")) if text.isdigit()]
    flat = np.arange(12).reshape(3, 4)  # (T, C)
    heads = flat.reshape(3, 2, 2).swapaxes(0, 1)  # (NH, T, hs)
    wrong = flat.reshape(2, 3, 2)
    assert numbers == [*flat.ravel(), *heads.ravel(), *wrong.ravel()]


def test_the_backward_of_a_frozen_model_ends_above_the_lowest_prefix(drawn):
    found = texts(drawn("graph, model"))
    assert found.count("dx") == 4  # between the loss and block 0
    crosses = [line for line in plt.gca().lines if line.get_marker() == "x"]
    assert len(crosses) == 1 + len(drawings.WEIGHTS) + 1  # below block 0; and the legend
    assert [text for text in found if text.startswith("dprefix")] == [
        "dprefix 0",
        "dprefix 1",
        "dprefix 2",
    ]
    plt.close("all")
    assert texts(drawn("graph")).count("dx") == 3
    plt.close("all")
    assert "dx" not in texts(drawn("graph, frozen"))


def test_the_padded_places_are_counted(drawn):
    figure = drawn("padded, slots")
    assert "15 of 36 places are padding, and must be hidden" in texts(figure)
    assert hatches(figure).count(HIDDEN) == 15 + 1
    assert [text for text in texts(figure) if text in ("0", "3", "9", "11", "15")][-5:] == [
        "0",
        "3",
        "9",
        "11",
        "15",
    ]


def test_the_sheet_is_as_wide_as_it_says(drawn):
    assert drawn("mlp").get_figwidth() == pytest.approx(WIDTH / 10)


def test_matplotlib_is_imported_when_something_is_drawn():
    code = "import sys, minprefix.lessons.drawings; print('matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
