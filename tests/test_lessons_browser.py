"""The pages of the lessons in a real Chromium, opened as files: read, searched, walked by keyboard,
on a laptop and on a phone, light and dark."""

import os
import shutil
from itertools import pairwise

import pytest

from minprefix.lessons import reading, site
from tests.small_lessons import write

playwright = pytest.importorskip(
    "playwright.sync_api", reason="Playwright is not installed: pip install 'minprefix[browser]'"
)
from tests.test_view_browser import CONTRASTS, LAPTOP, PHONE, luminance  # noqa: E402

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
if CHROMIUM is None:
    pytest.skip("there is no chromium on this machine", allow_module_level=True)

PAGES = ["index", "01_first", "02_second", "glossary", "files/minprefix/ops/reference.py"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The site of the small lessons."""
    top = tmp_path_factory.mktemp("site")
    lessons = write(top / "tutorials")
    warnings, failures = site.build(reading.lesson_paths(lessons), top / "out")
    assert (warnings, failures) == ([], [])
    return top / "out"


@pytest.fixture(scope="module")
def chromium():
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium, folder):
    """Open a page; at the end no page has asked for anything outside the site, or complained."""
    contexts, said, asked = [], [], set()

    def visit(name, place="", viewport=LAPTOP, **options):
        context = chromium.new_context(viewport=viewport, reduced_motion="reduce", **options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda m: said.append(m.text))
        page.on("pageerror", lambda e: said.append(str(e)))
        page.on("request", lambda r: asked.add(r.url))
        page.goto(f"file://{folder}/{name}.html{place}")
        page.wait_for_selector("html[data-ready]", timeout=10_000)
        return page

    yield visit
    for context in contexts:
        context.close()
    assert said == []
    assert all(url.startswith(f"file://{folder}/") for url in asked)


def box(page, selector):
    found = page.locator(selector).first.bounding_box()
    return found["x"], found["y"], found["x"] + found["width"], found["y"] + found["height"]


OPEN = "for (const d of document.querySelectorAll('main details')) d.open = true"


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize(
    "viewport",
    [LAPTOP, PHONE, {"width": 320, "height": 640}, {"width": 1000, "height": 700}],
    ids=lambda v: str(v["width"]),
)
def test_no_page_is_wider_than_the_screen_with_all_unfolded(visit, name, viewport):
    page = visit(name, viewport=viewport)
    page.evaluate(OPEN)
    wide = """() => [
      document.documentElement.scrollWidth, ...[...document.querySelectorAll("main *")]
      .filter((e) => e.getBoundingClientRect().right > innerWidth + 1
        && !e.closest("pre, .display, .table, .html"))
      .map((e) => e.outerHTML.slice(0, 120))]"""
    assert page.evaluate(wide) == [viewport["width"]]


def test_code_stands_beside_its_text_on_a_laptop_and_below_it_on_a_phone(visit):
    text, code = "#a-picture + div", "#cell-5 .code"
    laptop = visit("01_first")
    a, b = box(laptop, text), box(laptop, code)
    assert a[2] < b[0]
    assert abs(box(laptop, "#a-picture")[1] - b[1]) < 20
    phone = visit("01_first", viewport=PHONE)
    a, b = box(phone, text), box(phone, code)
    assert a[3] < b[1]
    assert phone.evaluate("document.querySelector('#cell-5 pre').scrollWidth > innerWidth")


def test_a_formula_is_set(visit):
    """The brackets are as high as their matrix, sums have limits, a hat is above its letter."""
    page = visit("01_first")
    high = """() => {
      const height = (e) => e.getBoundingClientRect().height;
      const table = document.querySelector(".display mtable");
      return [height(table.previousElementSibling), height(table)];
    }"""
    bracket, matrix = page.evaluate(high)
    assert 0.8 * matrix < bracket < 1.4 * matrix
    over = """() => {
      const [base, hat] = document.querySelector(".display mover").children;
      return hat.getBoundingClientRect().top < base.getBoundingClientRect().top;
    }"""
    assert page.evaluate(over)
    limits = """() => {
      const [sum, under] = document.querySelector(".display munderover").children;
      return under.getBoundingClientRect().top >= sum.getBoundingClientRect().bottom - 8;
    }"""
    assert page.evaluate(limits)
    equals = """() => [...document.querySelectorAll(".display mtable[columnspacing] mtr")]
      .map((row) => row.firstElementChild)
      .map((e) => Math.round(e.lastElementChild?.getBoundingClientRect().right
        ?? e.getBoundingClientRect().right))"""
    rights = page.evaluate(equals)
    assert len(rights) == 2
    assert abs(rights[0] - rights[1]) <= 8  # aligned at the &
    broken = (
        "[...document.querySelectorAll('p math')].every((m) => m.getClientRects().length === 1)"
    )
    assert page.evaluate(broken)


def test_the_answer_to_a_prediction_is_seen_when_asked_for(visit):
    page = visit("01_first")
    code, gave, said = (page.locator(f".answer {of}") for of in (".code", ".gave pre", ".said"))
    for hidden in (code, gave, said):
        assert not hidden.is_visible()
    page.click(".answer summary")
    assert code.is_visible()
    assert gave.inner_text().startswith("42 <script>")
    assert said.inner_text() == "Answer. It is forty-two."
    assert not page.locator("text=unfindable_elsewhere").is_visible()
    page.click("text=Solution 1")
    assert page.locator("text=unfindable_elsewhere").is_visible()


def test_ours_and_hints_are_folded_inside_the_box_of_their_exercise(visit):
    page = visit("01_first")
    exercise, ours = page.locator(".exercise"), page.locator(".ours .code")
    assert exercise.locator("h3").inner_text() == "Exercise 1.1: half"
    assert exercise.locator(".cost").inner_text() == "8 minutes · ●●○○○"
    assert not ours.is_visible()
    assert not exercise.locator("text=Two halves").is_visible()
    page.click(".ours summary")
    assert ours.is_visible()
    page.click("text=Hint 1")
    assert exercise.locator("text=Two halves").is_visible()
    after = page.locator("text=Beside yours")
    assert after.bounding_box()["y"] > sum(exercise.bounding_box()[k] for k in ("y", "height"))


@pytest.mark.parametrize("name", PAGES)
def test_the_headings_of_a_page_skip_no_level(visit, name):
    page = visit(name)
    levels = page.evaluate(
        "[...document.querySelectorAll('h1, h2, h3, h4')].map((h) => +h.tagName[1])"
    )
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b - a <= 1 for a, b in pairwise(levels))


def test_a_link_to_a_folded_cell_unfolds_it(visit):
    page = visit("01_first", "#cell-2")
    assert page.locator(".answer .code").is_visible()


def test_a_term_leads_to_its_place_in_the_glossary(visit):
    page = visit("01_first")
    page.click("text=slot >> nth=0")
    page.wait_for_url("**/glossary.html#slot")
    page.wait_for_selector("html[data-ready]")
    shown = "(e) => getComputedStyle(e).backgroundColor"
    term = page.locator(".term", has=page.locator("#slot"))
    assert term.evaluate(shown) != page.locator(".term").last.evaluate(shown)
    page.fill("#search", "beside a slot")
    assert page.inner_text("#found a:first-child span") == "Words"


def test_the_search_is_found_walked_and_followed_by_keyboard(visit):
    page = visit("index")
    page.keyboard.press("/")
    page.keyboard.type("unfind")
    assert page.locator("#found a").count() == 1
    assert "def unfindable_elsewhere(x):" in page.inner_text("#found")
    assert page.inner_text("#found mark") == "unfind"
    page.keyboard.press("ArrowDown")
    assert page.get_attribute("#found a", "aria-selected") == "true"
    page.keyboard.press("Enter")
    page.wait_for_url("**/01_first.html#exercises")
    page.wait_for_selector("html[data-ready]")
    page.fill("#search", "nosuchword")
    assert "Nothing found" in page.inner_text("#found")
    page.press("#search", "Escape")
    assert page.is_hidden("#found")


def test_a_search_shows_headings_first_and_never_markup(visit):
    page = visit("01_first")
    page.fill("#search", "break")
    assert page.inner_text("#found a:first-child b") == "Break it yourself"
    page.fill("#search", "what IS printed")  # in the text alone
    assert page.inner_text("#found a:first-child b") == "Formulas"
    page.fill("#search", "break nosuchword")  # all words have to be there
    assert "Nothing found" in page.inner_text("#found")
    page.fill("#search", "nosuchword break")
    assert "Nothing found" in page.inner_text("#found")
    page.fill("#search", "<script>")
    assert page.locator("#found script").count() == 0
    assert "document.title" in page.inner_text("#found")


def test_from_a_file_of_the_house_the_search_leads_back(visit):
    page = visit("files/minprefix/ops/reference.py")
    page.fill("#search", "formulas")
    page.press("#search", "Enter")
    page.wait_for_url("**/out/01_first.html#formulas")


def test_n_and_p_walk_through_the_lessons(visit):
    page = visit("01_first")
    page.keyboard.press("n")
    page.wait_for_url("**/02_second.html")
    page.wait_for_selector("html[data-ready]")
    page.keyboard.press("p")
    page.wait_for_url("**/01_first.html")
    page.wait_for_selector("html[data-ready]")
    page.focus("#search")
    page.keyboard.type("np")
    assert page.input_value("#search") == "np"


def test_the_first_key_skips_to_the_text(visit):
    page = visit("01_first")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"


def test_a_link_to_a_line_shows_that_line_below_the_bar(visit):
    page = visit("files/minprefix/ops/reference.py", "#L60")
    _, top, _, bottom = box(page, "#L60")
    assert box(page, ".bar")[3] <= top < bottom <= LAPTOP["height"]
    shown = page.evaluate("getComputedStyle(document.getElementById('L60')).backgroundColor")
    other = page.evaluate("getComputedStyle(document.getElementById('L61')).backgroundColor")
    assert shown != other


def test_what_a_lesson_prints_runs_nothing_and_the_policy_forbids_the_rest(chromium, folder):
    context = chromium.new_context()
    page = context.new_page()
    page.goto(f"file://{folder}/01_first.html")
    page.wait_for_selector("html[data-ready]")
    refused = page.evaluate(
        """async () => {
          const refused = [];
          addEventListener("securitypolicyviolation", (e) => refused.push(e.effectiveDirective));
          await fetch("data:text/plain,x").catch(() => {});
          const inline = document.createElement("script");
          inline.textContent = "document.title = 'broken into'";
          document.body.append(inline);
          document.body.append(Object.assign(new Image(), { src: "http://127.0.0.1:9/x" }));
          await new Promise((done) => setTimeout(done, 300));
          return refused;
        }"""
    )
    title = page.title()
    context.close()
    assert set(refused) >= {"connect-src", "script-src-elem", "img-src"}
    assert "broken into" not in title


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_is_large_enough_and_in_contrast(visit, name, scheme):
    page = visit(name, viewport=LAPTOP, color_scheme=scheme)
    page.evaluate(OPEN)
    found = page.evaluate(CONTRASTS)
    assert len(found) > 5
    for key, where in found:
        ink, paper, size = key.split("|")
        a, b = sorted([luminance(ink), luminance(paper)])
        assert (b + 0.05) / (a + 0.05) >= 4.5, (ink, paper, where)
        script = "<m" in where  # of a formula: a subscript is smaller
        assert float(size.removesuffix("px")) >= (8 if script else 11.5), where


def test_light_and_dark_are_switched_and_remembered(visit):
    page = visit("01_first", color_scheme="light")
    paper = "getComputedStyle(document.body).backgroundColor"
    assert luminance(page.evaluate(paper)) > 0.8
    page.click("#theme")
    assert luminance(page.evaluate(paper)) < 0.05
    page.keyboard.press("n")
    page.wait_for_url("**/02_second.html")
    page.wait_for_selector("html[data-ready]")
    assert luminance(page.evaluate(paper)) < 0.05


def test_a_page_can_be_read_without_its_script(chromium, folder):
    context = chromium.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(f"file://{folder}/01_first.html")
    page.click(".answer summary")
    assert page.locator(".answer .gave pre").is_visible()
    page.click(".ours summary")
    assert page.locator(".ours .code").is_visible()
    context.close()


def test_on_paper_all_is_unfolded_and_no_bar_is_printed(visit):
    page = visit("01_first")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    page.emulate_media(media="print")
    assert page.is_hidden(".bar")
    assert page.locator(".answer .gave pre").is_visible()
    assert page.locator(".ours .code").is_visible()
    assert page.locator("text=unfindable_elsewhere").is_visible()


@pytest.mark.skipif("MINPREFIX_SHOTS" not in os.environ, reason="MINPREFIX_SHOTS names no folder")
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [LAPTOP, PHONE], ids=["laptop", "phone"])
def test_pictures_for_a_person_to_look_at(visit, scheme, viewport):
    for name in PAGES:
        page = visit(name, viewport=viewport, color_scheme=scheme)
        path = f"{os.environ['MINPREFIX_SHOTS']}/{name.split('/')[-1]}_{scheme}_{viewport['width']}"
        page.screenshot(path=f"{path}.png", full_page=not name.startswith("files"))
