"""`minprefix lessons`: what a lesson is, what a page shows, what is warned of, what is refused."""

import json
import re
import signal
import subprocess
import sys
import time
from html import unescape
from pathlib import Path

import pytest

from minprefix.cli import main
from minprefix.errors import InputError
from minprefix.lessons import reading, running, site
from minprefix.lessons.formula import FormulaError, mathml
from minprefix.lessons.in_kernel import describe
from minprefix.lessons.text import Page
from tests.small_lessons import FIRST, HEAD, THIRD, write

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[1]
HEADED = HEAD.format(title="T", need="nothing")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The site of the three small lessons."""
    top = tmp_path_factory.mktemp("site")
    folder = write(top / "tutorials")
    warnings, failures = site.build(reading.lesson_paths(folder), top / "out")
    assert (warnings, failures) == ([], [])
    return top / "out"


def page(built, name):
    return (built / f"{name}.html").read_text(encoding="utf-8")


def files_of(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*.*")}


# ---- reading ----------------------------------------------------------------------------------


def test_the_head_of_a_lesson_is_read_as_its_four_items(tmp_path):
    lesson = reading.read(write(tmp_path, **{"04_x": FIRST}) / "04_x.py")
    assert (lesson.number, lesson.title, lesson.faults) == (4, "The `first` one", [])
    assert (lesson.minutes, lesson.difficulty) == (10, 2)
    assert lesson.items["You will be able to"] == "read The `first` one, and more."
    assert lesson.cells[0].source.startswith("## Overview")
    assert [cell.kind for cell in lesson.cells[:2]] == ["text", "code"]


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (("# - **Time** 10 minutes; it runs in 1 second.\n", ""), "lacks an item `- **Time** ...`"),
        (("10 minutes; it", "soon; it"), "Time 'soon; it runs in 1 second.' is not of the form"),
        (("2 of 5.", "6 of 5."), "Difficulty '6 of 5.' is not of the form `2 of 5.`"),
        (("- **You need**", "- **You want**"), "none of the four: 'You want'"),
        (("# # T", "# T"), "no text that begins with `# Title`"),
    ],
)
def test_a_fault_of_the_head_is_said(tmp_path, change, fault):
    lesson = reading.read(write(tmp_path, **{"01_x": HEADED.replace(*change)}) / "01_x.py")
    assert any(fault in said for said in lesson.faults), lesson.faults


def test_a_lesson_is_named_by_number_name_or_file():
    paths = [Path("t/03_softmax.py"), Path("t/04_attention.py")]
    for name in ("4", "04", "attention", "04_attention", "tutorials/04_attention.py"):
        assert reading.named([name], paths) == paths[1:]
    assert reading.named([], paths) == reading.named(["4", "3"], paths) == paths


@pytest.mark.parametrize(
    ("name", "said"), [("atention", "did you mean 04_attention?"), ("99", "lists them")]
)
def test_no_such_lesson_names_the_nearest(name, said):
    with pytest.raises(InputError, match=re.escape(f"there is no lesson {name!r}")) as error:
        reading.named([name], [Path("03_softmax.py"), Path("04_attention.py")])
    assert said in str(error.value)


def test_the_lessons_of_this_project_are_found_and_listed(capsys):
    assert main(["lessons"]) == 0
    listed = capsys.readouterr().out
    for path in (ROOT / "tutorials").glob("[0-9]*.py"):
        title = path.read_text(encoding="utf-8").split("\n")[1].removeprefix("# # ")
        assert f"{int(path.stem[:2]):2d}  {title}  (" in listed


def test_without_the_extra_the_command_says_how_to_install_it(monkeypatch, capsys):
    find_spec = reading.find_spec
    monkeypatch.setattr(reading, "find_spec", lambda n: find_spec(n) if n != "nbclient" else None)
    assert main(["lessons"]) == 2
    said = capsys.readouterr().err
    assert "nbclient" in said
    assert "pip install 'minprefix[lessons]'" in said


def test_the_command_line_waits_for_none_of_the_libraries():
    loaded = f"{{'jupytext', 'nbclient', 'pygments', 'markdown_it', 'latex2mathml'}}"  # noqa: F541
    code = f"import sys, minprefix.cli as c; c._parser(); print({loaded} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


# ---- formulas ---------------------------------------------------------------------------------


def characters(tex, block=False):
    return "".join(unescape(re.sub("<[^>]+>", "", mathml(tex, block))).split())


@pytest.mark.parametrize(
    ("tex", "shown"),
    [
        (r"\mathrm{softmax}(S)", "softmax(S)"),
        (r"\mathbf{W} \boldsymbol{\theta} \mathbb{R} \mathbf{1}", "𝐖𝜽ℝ𝟏"),
        (r"dZ \odot Z \in \mathcal{L}", "dZ⊙Z∈ℒ"),
        (r"\begin{aligned} a &= b \\ c &= d \end{aligned}", "a=bc=d"),
        (r"\operatorname*{arg\,max}_x \arg \min", "argmaxxargmin"),
        (r"(A^\top dZ)_{:P}", "(A⊤dZ):P"),
        (r"K'^\top_j", "K′j⊤"),
    ],
)
def test_a_formula_holds_the_letters_that_it_means(tex, shown):
    assert characters(tex) == shown


def test_a_word_is_one_upright_identifier():
    assert "<mi>softmax</mi>" in mathml(r"\mathrm{softmax}")


@pytest.mark.parametrize(
    ("tex", "why"),
    [
        (r"\foo{x}", r"\foo is not known"),
        (r"\frac{a}", "lacks a part"),
        (r"x_", "missing"),
        ("{x", "braces do not pair"),
        ("a & b", "bare & or <"),
        (r"\text{a < b}", "bare & or <"),
        (r"\text{<img src=x></img>}", "markup|bare"),
        (r"\text{<b>x</b>}", "markup <b>"),
        (r"x \tag{1}", r"\\tag is not for formulas"),
        ("", "no available tokens"),
    ],
)
def test_a_formula_that_cannot_be_set_is_refused_with_the_reason(tex, why):
    with pytest.raises(FormulaError, match=why.replace("\\f", "\\\\f")):
        mathml(tex)


def test_a_long_formula_can_break_before_a_relation_and_a_block_at_its_quads():
    assert mathml("a = b = c").count("<wbr>") == 2
    assert mathml(r"a = b \quad c = d", block=True).count("<math") == 2
    assert mathml(r"\begin{bmatrix} a \quad b \end{bmatrix} = c", block=True).count("<math") == 1


def test_letters_side_by_side_are_one_name_and_its_script_hangs_on_the_whole():
    name = '<mi class="name">{}</mi>'.format
    assert f"<msub>{name('dscores')}<mrow>{name('ij')}</mrow></msub>" in mathml("dscores_{ij}")
    assert f"{name('pattern')}<mi>V</mi>" in mathml("pattern V")
    assert f"<msub>{name('prefix_k')}<mi>p</mi></msub>" in mathml(r"prefix\_k_p")
    assert f"<msup>{name('dz')}<mo>⊤</mo></msup><mi>V</mi>" in mathml(r"dz^\top V")
    assert "name" not in mathml(r"q K^\top \text{if} \mathrm{softmax} \ell")


def test_a_function_stands_apart_from_what_it_is_taken_of():
    assert re.search(r"<mi>ln</mi><mspace[^>]*/><mn>2</mn>", mathml(r"\ln 2"))
    assert "<mspace" not in mathml(r"\log(x)")
    assert mathml(r"\ln\, 2").count("<mspace") == 1


def test_a_part_that_a_phone_cannot_hold_scrolls_by_itself():
    assert mathml("a = " + " + ".join("bcdefghijklmno")).count('<span class="long">') == 1
    assert "long" not in mathml("a = b + c")
    assert "long" not in mathml(" + ".join("bcdefghijklmno"), block=True)  # its box scrolls


def test_a_display_has_its_limits_below_and_above():
    assert "<munder>" in mathml(r"\max_i x_i", block=True)
    assert "<munderover>" in mathml(r"\sum_{i=1}^n x_i", block=True)
    assert "<munder" not in mathml(r"\max_i x_i")


# ---- text -------------------------------------------------------------------------------------


def set_text(source):
    warnings = []
    page = Page(lambda href: href, warnings.append)
    return "".join(page.html(source)), warnings, page


@pytest.mark.parametrize(
    ("source", "warning"),
    [
        ("```nosuch\nx\n```", "the language 'nosuch' of a fence is not known"),
        (r"$\nosuch$", r"'\\nosuch' cannot be set: \nosuch is not known"),
        ("costs $5", "a dollar sign begins no formula"),
        ("$ x $", "a dollar sign begins no formula"),
        ("# Again", "'Again' is a second title"),
        ("<script>alert(1)</script>", "is no HTML that a lesson may use"),
        ("a <img src=x onerror=alert(1)> b", "is no HTML that a lesson may use"),
        ("<details><summary>S</summary>\n\nx", "<details> is opened 1 times and closed 0 times"),
        ("![a plot](plot.png)", "the picture 'plot.png' is a file"),
    ],
)
def test_what_a_page_cannot_show_is_warned_of(source, warning):
    html, warnings, _ = set_text(source)
    assert any(warning in said for said in warnings), warnings
    assert "<script" not in html
    assert "<img" not in html


def test_money_that_is_escaped_and_dollars_in_code_are_no_formula():
    html, warnings, _ = set_text(r"costs \$5 and `$HOME`, or \$6")
    assert warnings == []
    assert "costs $5 and <code>$HOME</code>, or $6" in html


@pytest.mark.parametrize(
    ("source", "predicts", "warning"),
    [
        ("text\n\n**Predict.** which,\nand why?\n", True, None),
        ("**Predict** which?", False, "does not begin with `**Predict.**`"),
        ("**Predict:** which?", False, "does not begin with `**Predict.**`"),
        ("**Predict.** which?\n\nmore", False, "is not the last paragraph of its cell"),
        ("text\n**Predict.** which?", False, "is no paragraph of its own"),
        ("- **Predict.** which?", False, "is not the last paragraph of its cell"),
        ("nothing", False, None),
    ],
)
def test_a_prediction_is_asked_for_at_the_end_of_a_cell(source, predicts, warning):
    warnings = []
    page = Page(lambda href: href, warnings.append)
    assert page.predicts(source) is predicts
    assert [warning in said for said in warnings] == [True] * (warning is not None)


def test_a_search_finds_headings_text_formulas_and_code_by_section():
    _, _, page = set_text(
        "before\n\n## One `x`\n\n$\\mathrm{soft}(S)$\n\n## One `x`\n\n```python\ny\n```"
    )
    assert [(s.slug, s.title, s.text, s.code) for s in page.sections] == [
        ("", "", ["before"], []),
        ("one-x", "One x", ["One x", "soft (S)"], []),
        ("one-x-1", "One x", ["One x"], ["y\n"]),
    ]


def test_a_picture_is_told_by_its_words():
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2)
    assert describe(figure) == ""
    figure.suptitle("Both")
    left.set(title="Loss", xlabel="$step$", ylabel="nats")
    left.plot([1, 2], label="train")
    left.legend()
    right.imshow([[1, 2]])
    right.set_title("Attention")
    told = "Both. Loss; across: step, up: nats; train. Attention; colours by value"
    assert describe(figure) == told
    figure.supxlabel("day")
    assert describe(figure) == told.replace("Both.", "Both. across: day.")
    figure.set_label("Words of its own.")
    assert describe(figure) == "Both. Words of its own."
    plt.close(figure)


# ---- the site ---------------------------------------------------------------------------------


def test_what_answers_a_prediction_is_folded_and_nothing_else_is(built):
    html = page(built, "01_first")
    answers = re.findall(r'<details class="answer">.*?</details>', html, re.DOTALL)
    assert len(answers) == 1
    assert "42 &lt;script&gt;" in answers[0]
    assert "Your prediction first." in answers[0]
    assert html.count("42 &lt;script&gt;") == 1
    assert html.count('6</span> <span class="o">*') == 1
    assert answers[0].index("42 &lt;") < answers[0].index("It is <em>forty-two</em>.")
    assert html.count("forty-two") == 1
    assert "<details><summary>Solution 1, with <code>head</code></summary>" in html


def test_all_that_is_printed_is_escaped(built):
    assert "<script>document" not in page(built, "01_first")
    second = page(built, "02_second")
    assert second.index("printed first") < second.index("&amp;lt; wide")  # all that a cell gives


def test_a_picture_is_a_file_with_words_and_a_table_of_the_package_is_shown(built):
    html = page(built, "01_first")
    [(source, words)] = re.findall(r'<img src="([^"]+)" alt="([^"]+)">', html)
    assert words == "Loss; across: step; train"
    assert b"<svg" in (built / source).read_bytes()
    assert "heat map, 2 rows, 3 columns" in html


def test_links_go_to_pages_to_lines_and_to_headings_that_are_there(built):
    html = page(built, "01_first")
    reference = (ROOT / "minprefix/ops/reference.py").read_text(encoding="utf-8").split("\n")
    line = next(i for i, t in enumerate(reference, 1) if t.startswith("def attention_backward("))
    assert f'href="files/minprefix/ops/reference.py.html#L{line}"' in html
    assert 'href="files/minprefix/gpt2.py.html#L3"' in html
    assert 'href="02_second.html#break-it-yourself"' in html
    assert 'href="01_first.html"' in page(built, "02_second")
    source = page(built, "files/minprefix/ops/reference.py")
    assert f'id="L{line}"' in source
    assert "Linked from" in source
    for file in built.rglob("*.html"):
        for href in re.findall(r'(?:href|src)="([^"#]+)', file.read_text(encoding="utf-8")):
            assert (file.parent / href).is_file(), (file, href)


def test_no_page_names_the_network(built):
    for file in built.rglob("*.*"):
        if file.suffix in (".html", ".css", ".js"):
            text = file.read_text(encoding="utf-8").replace("http://www.w3.org/", "")
            if "files" not in file.parts:
                assert not re.search("https?://|@import|url\\(", text), file


def test_the_index_says_what_each_lesson_gives_and_asks(built):
    html = page(built, "index")
    assert re.findall(r'<h2><a href="(.*?).html">', html) == ["01_first", "02_second", "03_third"]
    assert html.count("10 min") == 3
    assert html.count("1 exercise, 8 min") == 1
    assert html.count("10 min</span>") == 3
    assert html.count('aria-label="difficulty 2 of 5">●●○○○<') == 3
    assert "read The <code>first</code> one, and more." in html
    assert "patience" in html


def test_the_search_knows_text_and_code_and_ends_no_script(built):
    text = (built / "search.js").read_text(encoding="utf-8")
    sections = json.loads(text.removeprefix("window.lessonSections = ").removesuffix(";\n"))
    [found] = [s for s in sections if "unfindable_elsewhere" in s["code"]]
    assert (found["page"], found["slug"], found["title"]) == (
        "01_first.html",
        "exercises",
        "Exercises",
    )


def test_the_search_knows_the_words_of_the_text_and_its_formulas(built):
    text = (built / "search.js").read_text(encoding="utf-8")
    assert "What is printed?" in text
    assert "softmax ( W x)_i" in text


def test_a_page_gives_its_script_to_download(built):
    assert (built / "01_first.py").read_bytes() == FIRST.encode()
    assert '<a href="01_first.py" download>' in page(built, "01_first")


def test_the_pages_name_their_neighbours(built):
    second = page(built, "02_second")
    assert '<link rel="prev" href="01_first.html">' in second
    assert '<link rel="next" href="03_third.html">' in second
    assert 'rel="prev"' not in page(built, "01_first")
    assert 'rel="next"' not in page(built, "03_third")


@pytest.mark.parametrize(
    ("text", "warning"),
    [
        ("[x](glossary.md#slot)", "is dead"),
        ("[x](09_none.py)", "the link '09_none.py' is dead: there is no such lesson"),
        ("[x](../minprefix/none.py)", "is dead"),
        ("[x](../minprefix/gpt2.py#nosuch)", "has no line and no name 'nosuch'"),
        ("[x](../minprefix/gpt2.py#L99999)", "has no line and no name 'L99999'"),
        ("[x](../../../../etc/passwd)", "is outside of this project"),
        ("[x](ftp://a/b)", "no address of the web"),
        ("[x](#nowhere)", "01_x has no heading #nowhere"),
        ("**Predict.** x", "no code answers this prediction"),
    ],
)
def test_a_warning_of_the_text_names_lesson_and_cell(tmp_path, text, warning):
    folder = write(tmp_path / "t", **{"01_x": f"{HEADED}# {text}\n"})
    warnings, failures = site.build(reading.lesson_paths(folder), tmp_path / "out")
    assert failures == []
    assert len(warnings) == 1, warnings
    assert warnings[0].startswith("01_x, cell 1: ")
    assert warning in warnings[0]


def test_a_warning_of_what_a_cell_gives_names_lesson_and_cell(tmp_path):
    cells = [
        "import sys\n\nprint('hot', file=sys.stderr)",
        "import matplotlib.pyplot as plt\n\nplt.plot([1])\nplt.show()",
        r"print('x\n' * 100_000)",
        "plt.figure(figsize=(9, 1))\nplt.title('x')\nplt.show()",
    ]
    text = f"{HEADED}# **Predict.** x\n\n# %%\nx = 1\n\n# %% [markdown]\n# **Answer.** 1\n"
    text += "".join(f"\n# %%\n{c}\n" for c in cells)
    folder = write(tmp_path / "t", **{"01_x": text})
    warnings, failures = site.build(reading.lesson_paths(folder), tmp_path / "out")
    assert failures == []
    assert [w.split(":")[0] for w in warnings] == [f"01_x, cell {n}" for n in (2, 4, 5, 6, 7)]
    for warning, said in zip(
        warnings,
        [
            "shows nothing",
            "stderr: 'hot'",
            "a picture without words",
            "199,999 characters",
            "points wide",
        ],
        strict=True,
    ):
        assert said in warning


def test_some_lessons_can_be_built_and_links_to_the_others_show_their_scripts(tmp_path):
    folder = write(tmp_path / "t")
    second = folder / "02_second.py"
    warnings, _ = site.build([second], tmp_path / "out")
    assert warnings == []
    assert not (tmp_path / "out/01_first.html").exists()
    assert 'href="files/tutorials/01_first.py.html"' in page(tmp_path / "out", "02_second")
    assert 'href="files/tutorials/01_first.py.html"' in page(tmp_path / "out", "glossary")
    assert "unfindable" in page(tmp_path / "out", "files/tutorials/01_first.py")


PREDICTION = """
# %% [markdown]
# **Predict.** x

# %%
print(1)

# %%
x = 1

# %% [markdown]
# **Answer.** 1
"""
EXERCISE = """
# %% [markdown]
# ### Exercise 1.1: `f`
#
# *1 minute · difficulty 5 of 5*
#
# Write it.

# %%
def f(x): ...


# %% [markdown]
# <details><summary>Hint 1</summary>
#
# Think.
#
# </details>

# %% jupyter={"source_hidden": true}
def f(x):
    return x


# %% [markdown]
# Beside yours.
"""


def built_alone(tmp_path, text):
    folder = write(tmp_path / "t", **{"01_x": f"{HEADED}# Text.\n{text}"})
    warnings, failures = site.build(reading.lesson_paths(folder), tmp_path / "out")
    assert failures == []
    return warnings, page(tmp_path / "out", "01_x")


def test_the_cells_of_a_prediction_fold_as_one(tmp_path):
    warnings, html = built_alone(tmp_path, PREDICTION)
    assert warnings == []
    [fold] = re.findall(r'<details class="answer">(.*?)</details>', html, re.DOTALL)
    assert 'id="cell-3"' in fold
    assert 'id="cell-4"' in fold
    assert '<div class="said"><p><strong>Answer.</strong> 1</p>' in fold


@pytest.mark.parametrize(
    ("change", "warning"),
    [
        (("**Answer.** 1", "It is 1."), "cell 4: answers a prediction: the text behind it has to"),
        (("**Answer.** 1", "**Answer:** 1"), "cell 5: an answer is a cell of its own"),
        (("**Answer.** 1", "**Answer.** 1\n#\n# ## Next"), "cell 5: an answer holds a heading"),
        (("**Answer.** 1", "**Answer.** 1\n#\n# **Predict.** y"), "ends with a prediction"),
        (("# %% [markdown]\n# **Answer.** 1", ""), "cell 4: answers a prediction"),
        (("# **Predict.** x", "# Text"), "stands behind no prediction with its code"),
        (("print(1)", "pass"), "cell 4: answers a prediction, and shows nothing"),
        (("# %%\nprint(1)\n\n# %%\nx = 1\n", ""), "between a prediction and the code"),
    ],
)
def test_a_prediction_that_cannot_be_folded_is_warned_of(tmp_path, change, warning):
    assert change[0] in PREDICTION
    warnings, html = built_alone(tmp_path, PREDICTION.replace(*change))
    assert any(warning in said for said in warnings), warnings
    assert html.count('<details class="answer">') <= 1


def test_an_exercise_is_a_box_with_its_cost_and_ours_folded(tmp_path):
    warnings, html = built_alone(tmp_path, EXERCISE)
    assert warnings == []
    start, end = html.index('<div class="exercise">'), html.index("Beside yours.")
    box = html[start:end]
    assert box.count("<div") == box.count("</div>") + box.endswith('<div class="text"><p>')
    assert '<h3 id="exercise-11-f">Exercise 1.1: <code>f</code></h3>' in box
    assert 'role="img" aria-label="difficulty 5 of 5">●●●●●<' in box
    assert '<p class="cost">1 minute · ' in box
    assert "difficulty 5 of 5</em>" not in html
    [ours] = re.findall(r'<details class="ours">(.*?)</details>', box, re.DOTALL)
    assert "<summary>Ours: <code>f</code></summary>" in ours
    assert 'id="cell-5"' in ours
    assert 'id="cell-3"' not in ours


@pytest.mark.parametrize(
    ("change", "warning"),
    [
        (("Exercise 1.1: `f`", "Exercise: `f`"), "'Exercise: f' is not of the form `Exercise 1.1:"),
        (("Exercise 1.1", "Exercise 1.2"), "exercise 1.2 is the lesson's 1.1"),
        (("Exercise 1.1", "Exercise 2.1"), "exercise 2.1 is the lesson's 1.1"),
        (("5 of 5", "6 of 5"), "exercise 1.1 lacks: line `*8 minutes"),
        (("Hint 1", "Tip 1"), "exercise 1.1 lacks: hint"),
        ((' jupyter={"source_hidden": true}', ""), "exercise 1.1 lacks: hidden cell of ours"),
        (("# %%\ndef f(x): ...\n", ""), "exercise 1.1 lacks: stub"),
        (
            ("    return x\n", "    return x\n\n\ny = 1\n"),
            "is hidden, and holds more than functions",
        ),
        (("### Exercise 1.1", "### Try"), "is hidden, and belongs to no exercise"),
    ],
)
def test_an_exercise_that_lacks_a_part_is_warned_of(tmp_path, change, warning):
    assert change[0] in EXERCISE
    warnings, _ = built_alone(tmp_path, EXERCISE.replace(*change))
    assert [warning in said for said in warnings] == [True], warnings


def test_a_heading_ends_an_exercise(tmp_path):
    warnings, html = built_alone(tmp_path, EXERCISE.replace("# Beside yours.", "# ## Next"))
    assert warnings == []
    box, _, rest = html.partition('<h2 id="next">')
    assert box.count("<div") - box.count("</div>") == rest.count("</div>") - rest.count("<div")
    assert box.count('<div class="exercise">') == 1


def test_the_glossary_is_a_page_that_terms_link_to(built):
    assert '<a href="glossary.html#slot">slot</a>' in page(built, "01_first")
    assert '<a href="glossary.html">glossary</a>' in page(built, "01_first")
    html = page(built, "glossary")
    assert '<h2 id="slot">Slot</h2>' in html
    assert '<a href="01_first.html#formulas">' in html
    assert '<a href="#slot">' in html
    assert '<a href="glossary.html" aria-current="page">Words</a>' in html
    for name, root in (("index", ""), ("01_first", ""), ("files/minprefix/gpt2.py", "../../")):
        assert f'<a href="{root}glossary.html">Words</a>' in page(built, name)
    sections = (built / "search.js").read_text(encoding="utf-8")
    assert '"page":"glossary.html","lesson":"Words","slug":"slot"' in sections


@pytest.mark.parametrize(
    ("text", "warning"),
    [
        ("# Words\n\n## A\n\n[x](#b)\n", "glossary.md: glossary has no heading #b"),
        ("# Words\n\n## A\n\n[x](02_y.py)\n", "glossary.md: the link '02_y.py' is dead"),
        ("Words\n\n## A\n", "glossary.md: it does not begin with `# Title`"),
        ("# Words\n\n## B\n", "01_x, cell 1: glossary has no heading #a"),
    ],
)
def test_a_fault_of_the_glossary_is_warned_of(tmp_path, text, warning):
    folder = write(tmp_path / "t", **{"01_x": f"{HEADED}# [x](glossary.md#a)\n"})
    (folder / "glossary.md").write_text(text, encoding="utf-8")
    warnings, _ = site.build(reading.lesson_paths(folder), tmp_path / "out")
    assert any(warning in said for said in warnings), warnings


# ---- what does not run ------------------------------------------------------------------------


FAILING = [
    ("1 / 0", "raises ZeroDivisionError: division by zero"),
    ("assert False, '<b>no</b>'", "raises AssertionError: <b>no</b>"),
    ("import time\n\ntime.sleep(600)", "runs for more than 5 seconds"),
    ("import os\n\nos.kill(os.getpid(), 9)", "the kernel died"),
    ("input()", "raises StdinNotImplementedError"),
    ("raise SystemExit", "raises SystemExit"),
]


def test_a_cell_that_does_not_run_is_named_with_its_error_and_stops_no_other_lesson(tmp_path):
    text = f"{HEADED}\n# %%\nx = 1\n\n# %%\nCODE\n\n# %%\nprint('not reached')\n"
    texts = {f"{i:02d}_x": text.replace("CODE", code) for i, (code, _) in enumerate(FAILING, 1)}
    lessons = [reading.read(path) for path in sorted(write(tmp_path, **texts).iterdir())]
    runs = running.run_all(lessons, 2, 5)
    for run, (name, (_, said)) in zip(runs, zip(texts, FAILING, strict=True), strict=True):
        assert (run.failure or "").startswith(f"{name}, cell 3 {said}")
        assert run.outputs[4] == []


def test_a_lesson_runs_in_an_empty_folder_and_without_start_up_files_of_the_user(
    tmp_path, monkeypatch
):
    startup = tmp_path / "profile_default" / "startup"
    startup.mkdir(parents=True)
    (startup / "0.py").write_text("leaked = 1")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    text = "import os\n\nassert os.listdir() == []\nassert 'leaked' not in globals()"
    lesson = write(tmp_path / "t", **{"01_x": THIRD.replace("assert True", text)}) / "01_x.py"
    [run] = running.run_all([reading.read(lesson)], 1, 60)
    assert run.failure is None


@pytest.fixture
def lessons_of(monkeypatch, tmp_path):
    """The command, over lessons of the test's own."""

    def lessons_of(**texts):
        monkeypatch.setattr(reading, "FOLDER", write(tmp_path / "tutorials", **texts))

    return lessons_of


def test_a_lesson_that_does_not_run_leaves_the_old_site_as_it_was(lessons_of, tmp_path, capsys):
    out = tmp_path / "out"
    lessons_of(**{"01_x": THIRD})
    assert main(["lessons", "--out", str(out)]) == 0
    before = files_of(out)
    lessons_of(**{"01_x": THIRD.replace("assert True", "assert False, 'so'"), "02_y": THIRD})
    capsys.readouterr()
    assert main(["lessons", "--out", str(out)]) == 1
    said = capsys.readouterr().err
    assert "minprefix: error: 01_x, cell 2 raises AssertionError: so\n" in said
    assert f"1 lesson did not run: {out} is as it was" in said
    assert files_of(out) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "tutorials"]


#: in the command's own process, where the earlier moments can be met
STOPPED = """
import time
made, kernel = [], running._kernel
def kernel_of(folder):
    made.append(kernel(folder))
    return made[0]
def wait(*args, **options):
    while when == "its kernel starts" and not getattr(made and made[0].provisioner, "pid", None):
        time.sleep(0.01)
    signal.raise_signal(signal.SIGINT)
if when != "a cell runs":
    running._kernel, running.wait = kernel_of, wait
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT to send")
@pytest.mark.parametrize("when", ["no kernel yet", "its kernel starts", "a cell runs"])
def test_ctrl_c_ends_a_lesson_and_says_so_in_one_line(tmp_path, when):
    begun, out = tmp_path / "begun", tmp_path / "out"
    slow = f"open({str(begun)!r}, 'w').close()\n\n# %%\nimport time\n\ntime.sleep(600)"
    folder = write(tmp_path / "tutorials", **{"01_x": THIRD.replace("assert True", slow)})
    code = (
        "import signal, sys; from pathlib import Path\n"
        "from minprefix.cli import main; from minprefix.lessons import reading, running\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # who runs tests may ignore it
        f"reading.FOLDER = Path({str(folder)!r})\n"
        f"when = {when!r}\n{STOPPED}"
        f"sys.exit(main(['lessons', '--out', {str(out)!r}]))"
    )
    command = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    if when == "a cell runs":
        while not begun.exists():
            assert command.poll() is None
            time.sleep(0.05)
        command.send_signal(signal.SIGINT)
    try:
        assert command.communicate(timeout=600)[1] == "minprefix: stopped\n"
    finally:
        command.kill()
    assert command.returncode == 130
    assert not out.exists()


def test_warnings_are_counted_and_are_the_exit_status(lessons_of, tmp_path, capsys):
    lessons_of(**{"01_x": THIRD.replace("- **Time**", "- **Tim**").replace("patience", r"$\no$")})
    assert main(["lessons", "--out", str(tmp_path / "out")]) == 1
    captured = capsys.readouterr()
    assert captured.err.count("minprefix: warning: 01_x, cell 1: ") == 3
    assert "3 warnings; open" in captured.out
    assert (tmp_path / "out/index.html").is_file()


def test_what_takes_long_is_announced_and_shown(lessons_of, tmp_path, capsys, monkeypatch):
    lessons_of(**{"01_x": THIRD, "02_y": THIRD})
    assert main(["lessons", "--out", str(tmp_path / "out")]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith(
        "running 2 lessons, 2 at a time: by what they say 2 seconds, and"
    )
    assert captured.err == ""  # no terminal: no bar
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert main(["lessons", "01", "--out", str(tmp_path / "out")]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("running 1 lesson: by what they say 1 second, and up to minutes")
    assert re.search(r"0/1 \[00:\d\d<", captured.err)
    assert "lesson/s" in captured.err or "s/lesson" in captured.err
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False)
    assert main(["lessons", "--out", str(tmp_path / "out/index.html/x")]) == 2
    assert capsys.readouterr().out == ""  # nothing is announced that will not run


# ---- the folder -------------------------------------------------------------------------------


def test_a_site_takes_the_place_of_an_older_one_wholly(lessons_of, tmp_path):
    out = tmp_path / "a" / "out"
    lessons_of(**{"01_x": THIRD, "02_y": THIRD})
    assert main(["lessons", "--out", str(out)]) == 0
    assert (out / "02_y.html").is_file()
    assert main(["lessons", "1", "--out", str(out)]) == 0
    assert not (out / "02_y.html").exists()
    assert [p.name for p in out.parent.iterdir()] == ["out"]


def refused(out, capsys):
    assert main(["lessons", "--out", str(out)]) == 2
    return capsys.readouterr().err


def test_what_is_not_a_site_of_ours_is_never_replaced(lessons_of, tmp_path, capsys, monkeypatch):
    lessons_of(**{"01_x": THIRD})
    monkeypatch.setattr(running, "run_all", lambda *a: pytest.fail("it ran the lessons first"))
    (tmp_path / "file").write_text("mine")
    assert "file is no folder" in refused(tmp_path / "file", capsys)
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("mine")
    assert "is no site of lessons and not empty" in refused(other, capsys)
    (other / site.MARK).write_text("a site of minprefix lessons; its files:\nindex.html")
    assert "also holds 'thesis.txt'" in refused(other, capsys)
    (tmp_path / "link").symlink_to(other)
    assert "link is no folder" in refused(tmp_path / "link", capsys)
    assert "file is no folder that can be written into" in refused(tmp_path / "file/x/y", capsys)
    monkeypatch.setattr(site.os, "access", lambda path, mode: path != tmp_path)
    assert f"{tmp_path} is no folder that can be" in refused(tmp_path / "new", capsys)
    assert (tmp_path / "file").read_text() == (other / "thesis.txt").read_text() == "mine"


def test_what_was_put_into_the_folder_while_the_lessons_ran_is_not_replaced(tmp_path):
    paths = reading.lesson_paths(write(tmp_path / "tutorials", **{"01_x": HEADED}))
    out = tmp_path / "out"

    def put(lessons):
        out.mkdir()
        (out / "thesis.txt").write_text("mine")
        return [running.Run(lesson, {}, None, 0.0) for lesson in lessons]

    with pytest.raises(InputError, match="no site of lessons and not empty"):
        site.build(paths, out, put)
    assert files_of(out) == {"thesis.txt": b"mine"}


def test_a_site_that_cannot_take_its_place_leaves_the_old_one(tmp_path, monkeypatch):
    paths = reading.lesson_paths(write(tmp_path / "tutorials", **{"01_x": HEADED}))
    out, rename = tmp_path / "out", Path.rename
    site.build(paths, out)
    before = files_of(out)

    def fails(path, target):
        if path.name == "new":
            raise OSError("no")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises(OSError, match="no"):
        site.build(paths, out)
    assert files_of(out) == before


def test_the_wheel_holds_the_lessons_and_what_the_pages_are_made_of():
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert '"tutorials" = "minprefix/tutorials"' in project
    assert (ROOT / "tutorials/glossary.md").is_file()
    for name in ("page.html", "pieces.html", "site.css", "site.js"):
        assert (ROOT / "minprefix/lessons" / name).is_file()


def test_the_options_of_the_command_are_checked(capsys):
    for given, said in (
        (["--time-limit", "0.5"], "expected a whole number, at least 1"),
        (["--jobs", "0"], "expected a whole number, at least 1"),
    ):
        with pytest.raises(SystemExit):
            main(["lessons", *given])
        assert said in capsys.readouterr().err


# ---- the lessons of this project --------------------------------------------------------------


def test_each_term_that_a_lesson_links_to_is_in_the_glossary():
    glossary = reading.glossary(ROOT / "tutorials")
    terms = Page(lambda href: href, pytest.fail)
    terms.html(glossary.cells[0].source)
    slugs = {section.slug for section in terms.sections}
    words = [section.title.lower() for section in terms.sections[2:]]  # behind the symbols
    assert words == sorted(words)
    for path in [*reading.lesson_paths(), ROOT / "tutorials" / "TEACHING.md"]:
        linked = re.findall(r"\(glossary\.md#([^)]*)\)", path.read_text(encoding="utf-8"))
        assert set(linked) <= slugs, path.name
    assert not [slug for slug in slugs if re.search(r"-\d+$", slug)], "a term stands there twice"


def test_every_lesson_has_the_form_of_a_page(tmp_path):
    """Before any of them runs: predictions, exercises, links, formulas."""

    def none(lessons):
        return [running.Run(lesson, {}, None, 0.0) for lesson in lessons]

    warnings, _ = site.build(reading.lesson_paths(), tmp_path / "out", none)
    assert [said for said in warnings if "shows nothing" not in said] == []


def test_every_lesson_runs_as_a_notebook_and_its_site_has_no_warning(tmp_path):
    paths = reading.lesson_paths()
    warnings, failures = site.build(paths, tmp_path / "out")
    assert (warnings, failures) == ([], [])
