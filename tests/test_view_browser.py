"""The page of `minprefix view` in a real Chromium: walked, hovered, linked to, read by keyboard."""

import os
import re
import shutil

import pytest
from tokenizers import Tokenizer, models

from minprefix import GPT2, Batch, Config, Prefix
from minprefix.trace import trace
from minprefix.trace.view import page as write
from tests.conftest import random_model

playwright = pytest.importorskip(
    "playwright.sync_api", reason="Playwright is not installed: pip install 'minprefix[browser]'"
)
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
if CHROMIUM is None:
    pytest.skip("there is no chromium on this machine", allow_module_level=True)

TEXT = "name[The Red Fox], type[restaurant], food[Thai], price[cheap], area[hills]\n"
LAPTOP, PHONE = {"width": 1366, "height": 768}, {"width": 390, "height": 844}
WALK = """() => {
  const names = [], errors = [];
  const next = document.getElementById("next");
  for (;;) {
    names.push(document.getElementById("name").textContent);
    if (!document.querySelector("#code .here")) errors.push(names.at(-1) + ": no line");
    if (!document.querySelector("nav li[aria-current]")) errors.push(names.at(-1) + ": no op");
    if (document.documentElement.scrollWidth > innerWidth) errors.push(names.at(-1) + ": too wide");
    for (const canvas of document.querySelectorAll("canvas")) {
      if (!canvas.width || !canvas.height) errors.push(names.at(-1) + ": an empty heat map");
    }
    if (next.disabled) return [names, errors];
    next.click();
  }
}"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """fox.html, with a prefix; plain.html, without; evil.html, whose tokens try to be markup."""
    folder = tmp_path_factory.mktemp("pages")
    tiny = GPT2.load("tiny")
    ids = tiny.encode(TEXT)
    prefix = Prefix.normal(tiny.config, 10, std=0.5)
    (folder / "fox.html").write_text(write(tiny, ids, prefix), encoding="utf-8")
    (folder / "plain.html").write_text(write(tiny, ids), encoding="utf-8")
    words = ["<script>", "<img src=x onerror=alert(1)>", "</script><script>alert(2)</script>", "a"]
    config = Config(n_layer=2, n_head=2, n_embd=8, vocab_size=4, n_positions=16)
    evil = random_model(config, dtype="float32")
    evil.name = "<b>name</b>"
    evil.tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="a"))
    (folder / "evil.html").write_text(
        write(evil, [0, 1, 2, 3, 0], Prefix.normal(config, 2)), encoding="utf-8"
    )
    return folder


@pytest.fixture(scope="module")
def chromium():
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium, folder):
    """Open a page; at the end nothing has left it, and nothing was complained about."""
    contexts, said, asked, opened = [], [], set(), set()

    def visit(name, place="", viewport=LAPTOP, **options):
        context = chromium.new_context(viewport=viewport, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda m: said.append(m.text))
        page.on("pageerror", lambda e: said.append(str(e)))
        page.on("dialog", lambda d: (said.append(f"dialog {d.message}"), d.dismiss()))
        page.on("request", lambda r: asked.add(r.url.split("#")[0]))
        opened.add(f"file://{folder}/{name}.html")
        page.goto(f"file://{folder}/{name}.html{place}")
        page.wait_for_selector("html[data-ready]", timeout=10_000)
        return page

    yield visit
    for context in contexts:
        context.close()
    assert said == []
    assert asked == opened


def name(page):
    return page.inner_text("#name")


def center_of(page, canvas, row, column):
    """Where a cell of a heat map is on the screen."""
    return page.evaluate(
        """async ([n, r, c]) => {
          const canvas = document.querySelectorAll("canvas")[n], { l } = canvas.cells;
          canvas.scrollIntoView({ block: "center" });
          for (let i = 0; i < 2; i++) await new Promise(requestAnimationFrame);
          const box = canvas.getBoundingClientRect();
          return [box.left + l.x(c) + l.cell / 2, box.top + l.y(r) + l.height / 2];
        }""",
        [canvas, row, column],
    )


@pytest.mark.parametrize(
    ("file", "viewport"),
    [("fox", LAPTOP), ("fox", PHONE), ("plain", LAPTOP), ("evil", PHONE)],
    ids=["fox on a laptop", "fox on a phone", "plain on a laptop", "evil on a phone"],
)
def test_a_walk_comes_through_every_line_forward_and_then_backward(visit, file, viewport):
    page = visit(file, viewport=viewport)
    names, errors = page.evaluate(WALK)
    assert errors == []
    assert len(names) == len(set(names)) == int(page.inner_text("#count").split("/")[1])
    backward = [n.rpartition(".")[2].startswith("dprefix") for n in names]
    assert names[0] == "blocks.0.resid_pre"
    assert any(backward) == (file != "plain")
    assert names.index("loss") < names.index("dlogits")
    last = page.inner_text("#notes")
    if file == "plain":
        assert "every weight has its gradient" in last
    else:
        assert (
            "The gradient stops here. Below the attention of block 0 there are only frozen" in last
        )


def test_the_slider_the_buttons_and_the_keys_walk(visit):
    page = visit("fox")
    page.click("#next")
    assert name(page) == "blocks.0.ln_1.centred"
    page.click("#next-op")
    assert name(page) == "blocks.0.attn.c_attn.out"
    page.click("#previous-op")
    assert name(page) == "blocks.0.ln_1.centred"
    page.click("#previous")
    assert name(page) == "blocks.0.resid_pre"
    assert page.is_disabled("#previous")
    page.locator("body").press("ArrowRight")
    assert name(page) == "blocks.0.ln_1.centred"
    page.locator("body").press("Shift+ArrowRight")
    assert name(page) == "blocks.0.attn.c_attn.out"
    page.locator("body").press("ArrowLeft")
    assert name(page) == "blocks.0.ln_1.out"
    page.locator("body").press("End")
    assert name(page) == "blocks.0.attn.dv"
    page.locator("body").press("Home")
    assert name(page) == "blocks.0.resid_pre"
    page.focus("#slider")
    page.keyboard.press("ArrowRight")
    assert name(page) == "blocks.0.ln_1.centred"
    slider = page.locator("#slider")
    assert slider.get_attribute("aria-valuetext").endswith("forward: blocks.0.ln_1.centred")
    slider.fill("162")
    assert name(page) == "dlogits"


def test_the_keyboard_alone_reaches_everything(visit):
    page = visit("fox", "#blocks.1.attn.dscores")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "skip"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.tagName") == "MAIN"
    seen = set()
    for _ in range(40):
        page.keyboard.press("Tab")
        seen.add(page.evaluate("document.activeElement.id || document.activeElement.tagName"))
    assert {"self", "CANVAS", "A", "DIV", "SUMMARY", "slider", "next", "previous-op"} <= seen


@pytest.mark.parametrize(
    ("record", "backward"),
    [
        ("blocks.0.resid_pre", {"embed_backward_params": 2}),
        ("blocks.1.attn.c_proj.out", {"linear_backward_params": 1, "linear_backward": 1}),
        ("blocks.1.ln_1.out", {"layernorm_backward_params": 1, "layernorm_backward": 1}),
        ("blocks.1.resid_mid", {"mlp_half_backward": 1}),
        ("blocks.1.attn.k", {"attention_half_backward": 0}),
    ],
)
def test_a_forward_line_shows_both_halves_of_its_backward(visit, record, backward):
    page = visit("plain", f"#{record}")
    panels = page.locator("#code > div")
    found = {}
    for panel in panels.all()[1:]:
        function = panel.locator(".text").first.inner_text().split("def ")[1].split("(")[0]
        found[function] = panel.locator(".mirrored").count()
    assert found == backward


def test_m_goes_from_a_backward_line_to_its_forward_line_and_back(visit):
    page = visit("fox", "#blocks.1.attn.dscores")
    here = page.inner_text("#code .here .text")
    assert here.startswith("        dscores = pattern * (dpattern - row_sum)")
    mirrored = page.inner_text("#code .mirrored .text")
    assert mirrored.startswith("        pattern = softmax(")
    page.locator("body").press("m")
    assert name(page) == "blocks.1.attn.pattern"
    page.locator("body").press("m")
    assert name(page) == "blocks.1.attn.row_sum"


def test_a_link_opens_its_op_and_a_step_changes_the_link(visit):
    page = visit("fox", "#blocks.2.attn.dprefix_k")
    assert name(page) == "blocks.2.attn.dprefix_k"
    assert page.get_attribute("#self", "href") == "#blocks.2.attn.dprefix_k"
    page.click("#next")
    assert page.evaluate("location.hash") == "#blocks.2.attn.dprefix_v"
    page.click("nav a[aria-label='blocks.3.mlp, backward']")
    assert name(page) == "blocks.3.mlp.du_dx"
    page.evaluate("location.hash = '#blocks.0.attn.z%230'")
    page.wait_for_function("document.getElementById('name').textContent === 'blocks.0.attn.z#0'")
    page.go_back()
    page.wait_for_function("document.getElementById('name').textContent === 'blocks.3.mlp.du_dx'")


def test_a_link_to_nothing_says_so_and_leads_to_the_nearest(visit):
    page = visit("fox", "#blocks.9.<b>.q")
    said = page.inner_text("#missing")
    assert said.startswith("Nothing here is called “blocks.9.<b>.q”. The nearest are: blocks.")
    assert name(page) == "blocks.0.resid_pre"
    page.click("#next")
    assert page.is_hidden("#missing")
    page.evaluate("location.hash = '#blocks.1.attn.dpatern'")
    page.click("#missing a:text-is('blocks.1.attn.dpattern')")
    page.wait_for_function("document.getElementById('missing').hidden")
    assert name(page) == "blocks.1.attn.dpattern"


def test_the_table_of_shares_shows_the_mean_of_each_head(visit):
    tiny = GPT2.load("tiny")
    prefix = Prefix.normal(tiny.config, 10, std=0.5)
    t = trace(tiny, Batch.pack([tiny.encode(TEXT)]), prefix, names="*.pattern")
    rows = visit("fox").locator("#share-table tbody tr").all()
    assert len(rows) == tiny.config.n_layer
    for i, row in enumerate(rows):
        share = t[f"blocks.{i}.attn.pattern"].value[:, :, :10].sum(axis=-1).mean(axis=1)
        assert row.locator("td").all_inner_texts() == [f"{100 * x:.0f}%" for x in share]


def test_hovering_a_cell_shows_its_value_and_what_it_is(visit, folder):
    tiny = GPT2.load("tiny")
    ids = tiny.encode(TEXT)
    batch, prefix = Batch.pack([ids]), Prefix.normal(tiny.config, 10, std=0.5)
    t = trace(tiny, batch, prefix)
    page = visit("fox", "#blocks.1.attn.pattern")
    want = t["blocks.1.attn.pattern#0"].value
    for head, row, column, words in (
        (2, 3, 4, "head 2, token 3 “␣Red”, on prefix slot 4"),
        (0, 7, 12, "head 0, token 7 “[”, on token 2 “The”"),
        (4, 2, 30, "head 4, token 2 “The”, on token 20 “[”: hidden by the mask"),
    ):
        page.mouse.move(*center_of(page, head, row, column))
        value, said = page.inner_text("#tip").split("\n")
        assert said == words
        assert float(re.sub("e−", "e-", value)) == pytest.approx(want[head, row, column], rel=6e-3)
    page.mouse.move(5, 5)
    assert page.is_hidden("#tip")
    page.evaluate("location.hash = '#blocks.1.mlp.dpre'")
    page.wait_for_function("document.getElementById('name').textContent === 'blocks.1.mlp.dpre'")
    page.mouse.move(*center_of(page, 0, 6, 500))
    value, said = page.inner_text("#tip").split("\n")
    assert said == "token 6 “␣type”, F 500"
    number = float(value.replace("−", "-"))
    assert number == pytest.approx(t["blocks.1.mlp.dpre"].value[6, 500], rel=6e-3)


def test_the_arrow_keys_read_a_heat_map(visit):
    page = visit("fox", "#blocks.1.attn.pattern")
    canvas = page.locator("canvas").nth(1)
    canvas.focus()
    for key in ("ArrowRight", "ArrowDown", "ArrowRight"):
        page.keyboard.press(key)
    assert page.inner_text("#cell").endswith(": head 1, token 1 “[”, on prefix slot 1")
    assert name(page) == "blocks.1.attn.pattern"  # the arrows do not walk meanwhile
    page.keyboard.press("Escape")
    page.keyboard.press("ArrowRight")
    assert name(page) == "blocks.1.attn.z#0"


def test_a_heat_map_has_its_summary_as_text(visit):
    page = visit("fox", "#blocks.1.attn.pattern")
    canvas = page.locator("canvas").first
    assert canvas.get_attribute("role") == "img"
    said = canvas.get_attribute("aria-label")
    assert re.match(
        r"heat map of blocks.1.attn.pattern, 5 × 24 × 34, head 0: \d+% of its attention falls on "
        r"the prefix. From 0 to [\d.]+, mean 0.0294, deviation [\d.]+, 1380 zeros. The arrow keys",
        said,
    )
    unnamed = page.evaluate(
        """() => [...document.querySelectorAll("button, a, input, canvas, [role=region]")]
          .filter((e) => !(e.getAttribute("aria-label") || e.getAttribute("aria-labelledby") ||
            e.textContent).trim()).map((e) => e.outerHTML)"""
    )
    assert unnamed == []


def test_the_colours_are_apart_in_grey_and_0_is_grey(visit):
    """Lightness rises with the number: in one row, what is larger is drawn lighter."""
    page = visit("fox", "#blocks.1.attn.scores")
    pairs = page.evaluate(
        """() => {
          const canvas = document.querySelector("canvas"), { l } = canvas.cells;
          const scale = devicePixelRatio, y = (l.y(3) + l.height / 2) * scale;
          const row = canvas.getContext("2d").getImageData(0, y, canvas.width, 1).data;
          const found = [];
          for (let c = 0; c < l.P; c++) {
            const [r, g, b] = row.slice(4 * Math.round((l.x(c) + l.cell / 2) * scale));
            found.push([0.2126 * r + 0.7152 * g + 0.0722 * b, c]);
          }
          return found;
        }"""
    )
    values = []
    for _, column in pairs:
        page.mouse.move(*center_of(page, 0, 3, column))
        value = page.inner_text("#tip b").replace("−", "-")
        values.append(float(value))
    light = [light for light, _ in pairs]
    order = sorted(range(len(values)), key=values.__getitem__)
    assert values[order[0]] < 0 < values[order[-1]]
    assert [light[i] for i in order] == sorted(light)


def test_the_gradient_in_the_prefix_is_not_there_before_it_arrives(visit):
    page = visit("fox", "#dlogits")
    assert page.inner_text("#arriving-table").count("not yet") == 8
    page.evaluate("location.hash = '#blocks.2.attn.dprefix_k'")
    page.wait_for_function("location.hash.endsWith('k') && document.title.includes('dprefix_k')")
    assert page.inner_text("#arriving-table").count("not yet") == 5
    arrival = page.locator("nav li[aria-current] .arrival").inner_text()
    assert re.fullmatch(r"dprefix: k [\d.e−]+", arrival)
    page.locator("body").press("End")
    assert page.inner_text("#arriving-table").count("not yet") == 0


def test_where_the_weights_are_frozen_it_is_said(visit):
    page = visit("fox", "#blocks.1.mlp.dpost")
    said = page.inner_text("#notes")
    assert "h.1.mlp.c_proj.weight (640 × 160) and h.1.mlp.c_proj.bias (160) are frozen" in said
    assert page.locator("nav .stop").inner_text().endswith("the gradient stops here")
    assert page.locator("nav .none").count() == 4  # embed, ln_1, c_attn; the last resid_post
    plain = visit("plain", "#blocks.1.mlp.dpost")
    assert "frozen" not in plain.inner_text("main")
    assert plain.locator("nav .stop").count() == 0


def test_tokens_that_read_script_are_text(visit):
    page = visit("evil")
    tokens = page.locator("#tokens li").all_inner_texts()
    assert tokens[1:3] == ["<script>", "<img␣src=x␣onerror=alert(1)>"]
    assert "<b>name</b>" in page.inner_text("#about")
    assert page.locator("img").count() == 0
    assert page.locator("script").count() == 2
    page.evaluate("location.hash = '#logits'")
    page.wait_for_function("document.getElementById('name').textContent === 'logits'")
    page.mouse.move(*center_of(page, 0, 0, 0))
    assert "the target, “<img␣src=x␣onerror=alert(1)>” (id 1)" in page.inner_text("#tip")


def test_the_policy_forbids_every_request(chromium, folder):
    """Even a script that got in could fetch nothing."""
    context = chromium.new_context()
    page = context.new_page()
    left, failed = [], []
    page.on("requestfinished", lambda r: left.append(r.url.split("/")[-1]))
    page.on("requestfailed", lambda r: failed.append((r.url, r.failure)))
    page.goto(f"file://{folder}/fox.html")
    page.wait_for_selector("html[data-ready]")
    refused = page.evaluate(
        """async () => {
          const refused = [];
          addEventListener("securitypolicyviolation", (e) => refused.push(e.effectiveDirective));
          await fetch("data:text/plain,x").catch(() => {});
          for (const [tag, at] of [["img", "http://127.0.0.1:9/x"], ["script", "data:,1"]]) {
            const element = document.createElement(tag);
            element.src = at;
            document.body.append(element);
          }
          const inline = document.createElement("script");
          inline.textContent = "document.title = 'broken into'";
          document.body.append(inline);
          await new Promise((done) => setTimeout(done, 300));
          return [refused, document.title];
        }"""
    )
    context.close()
    assert set(refused[0]) >= {"connect-src", "img-src", "script-src-elem"}
    assert "broken into" not in refused[1]
    assert left == ["fox.html"]
    assert failed == [("http://127.0.0.1:9/x", "csp")]


@pytest.mark.parametrize("file", ["fox", "plain"])
def test_it_opens_in_under_a_second(visit, file):
    opened = [int(visit(file).evaluate("document.documentElement.dataset.ready")) for _ in range(4)]
    assert min(opened) < 1000, f"milliseconds, of four: {opened}"


def luminance(text):
    parts = [float(x) / 255 for x in re.findall(r"[\d.]+", text)[:3]]
    linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


CONTRASTS = """() => {
  const behind = (e) => {
    for (; e; e = e.parentElement) {
      const color = getComputedStyle(e).backgroundColor;
      if (!/, 0\\)$/.test(color)) return color;
    }
  };
  const found = new Map();
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const e = walk.currentNode.parentElement;
    if (!walk.currentNode.data.trim() || !e.checkVisibility()) continue;
    if (e.closest("script, button:disabled")) continue;
    const style = getComputedStyle(e);
    found.set([style.color, behind(e), style.fontSize].join("|"), e.outerHTML.slice(0, 80));
  }
  return [...found];
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [LAPTOP, PHONE], ids=["laptop", "phone"])
def test_all_text_is_large_enough_and_in_contrast(visit, scheme, viewport):
    page = visit("fox", "#blocks.1.attn.dprefix_v", viewport=viewport, color_scheme=scheme)
    found = page.evaluate(CONTRASTS)
    assert len(found) > 10
    for key, where in found:
        ink, paper, size = key.split("|")
        a, b = sorted([luminance(ink), luminance(paper)])
        assert (b + 0.05) / (a + 0.05) >= 4.5, (ink, paper, where)
        assert float(size.removesuffix("px")) >= 12, where


def test_the_switch_goes_from_light_to_dark_and_back(visit):
    page = visit("fox", color_scheme="light")
    paper = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(paper)
    assert luminance(light) > 0.8
    page.click("#theme")
    assert luminance(page.evaluate(paper)) < 0.05
    assert page.inner_text("#theme").endswith("Light")
    page.click("#theme")
    assert page.evaluate(paper) == light
    dark = visit("fox", color_scheme="dark")
    assert luminance(dark.evaluate(paper)) < 0.05


def test_on_a_phone_the_column_of_ops_is_folded_and_fingers_find_the_buttons(visit):
    page = visit("fox", viewport=PHONE, has_touch=True)
    assert page.is_hidden("nav")
    page.tap("#model summary")
    assert page.is_visible("nav")
    page.tap("nav a[aria-label='blocks.0.attn, forward']")
    page.wait_for_function("document.title.startsWith('blocks.0.attn.q')")
    assert name(page) == "blocks.0.attn.q"
    for button in ("#previous-op", "#previous", "#next", "#next-op"):
        box = page.locator(button).bounding_box()
        assert box["height"] >= 44
        assert box["width"] >= 44
    page.evaluate("location.hash = '#blocks.0.attn.pattern'")
    page.wait_for_function("document.title.startsWith('blocks.0.attn.pattern')")
    page.touchscreen.tap(*center_of(page, 0, 3, 4))
    page.locator("#tip").wait_for(state="visible")  # a tap returns before the page has answered
    assert page.inner_text("#tip").endswith("head 0, token 3 “␣Red”, on prefix slot 4")


@pytest.mark.skipif("MINPREFIX_SHOTS" not in os.environ, reason="MINPREFIX_SHOTS names no folder")
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [LAPTOP, PHONE], ids=["laptop", "phone"])
def test_pictures_for_a_person_to_look_at(visit, scheme, viewport):
    for op in ("blocks.1.attn.pattern", "dlogits", "blocks.1.mlp.dpost", "blocks.0.attn.dv"):
        page = visit("fox", f"#{op}", viewport=viewport, color_scheme=scheme)
        path = f"{os.environ['MINPREFIX_SHOTS']}/{op}_{scheme}_{viewport['width']}.png"
        page.screenshot(path=path)
