"""The page of `minprefix view`, without a browser: all is on it, nothing of it can break out, and
it is small. What a reader does with it: test_view_browser.py."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from tokenizers import Tokenizer, models

from minprefix import GPT2, Batch, Config, InputError, Prefix, gpt2, loss_and_grad
from minprefix.cli import main
from minprefix.cli.prompt import encode
from minprefix.data.pairs import Template
from minprefix.ops import reference
from minprefix.trace import trace
from minprefix.trace.instrument import source_of
from minprefix.trace.packing import pack
from minprefix.trace.view import page, shown
from minprefix.trace.wiring import model_line
from tests.conftest import random_model

TEXT = "name[The Red Fox], type[restaurant], food[Thai], price[cheap], area[hills]\n"
EVIL = ["<script>alert(1)</script>", "<!--", "</script>", "@data@", "\u202eevil", " \n\t\x00"]


class Elements(HTMLParser):
    def __init__(self, html):
        super().__init__()
        self.seen, self.inside, self.open = [], {}, False
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        self.open = True

    def handle_endtag(self, tag):
        self.open = False

    def handle_data(self, text):
        if self.open:
            n = len(self.seen) - 1
            self.inside[n] = self.inside.get(n, "") + text

    def all(self, tag):
        return [
            (attrs, self.inside.get(n, "")) for n, (t, attrs) in enumerate(self.seen) if t == tag
        ]


def data_of(html):
    (text,) = [text for attrs, text in Elements(html).all("script") if attrs.get("id") == "data"]
    return json.loads(text)


def drawn(data, record):
    power, text = data["values"][record["value"]]
    half = np.frombuffer(base64.b64decode(text), "<f2").astype(np.float64)
    return np.ldexp(half, power).reshape(record["drawn"])


def three_digits(a):
    return np.vectorize(lambda x: float(f"{x:.3g}"), otypes=[float])(a)


@pytest.fixture(scope="module")
def tiny():
    return GPT2.load("tiny")


@pytest.fixture(scope="module")
def ids(tiny):
    ids = tiny.encode(TEXT)
    assert len(ids) == 24
    return ids


@pytest.fixture(scope="module")
def prefix(tiny):
    return Prefix.normal(tiny.config, 10, std=0.5)


@pytest.fixture(scope="module")
def html(tiny, ids, prefix):
    return page(tiny, ids, prefix)


@pytest.fixture(scope="module")
def plain(tiny, ids):
    return page(tiny, ids)


@pytest.fixture(scope="module")
def small():
    config = Config(n_layer=4, n_head=2, n_embd=16, vocab_size=50, n_positions=64)
    return random_model(config, dtype="float32")


SMALL_IDS = [7, 3, 9, 7, 1, 4, 4, 20, 30, 40, 41, 42, 43, 44, 45, 46, 47, 48, 2, 5, 6, 8, 10, 11]


@pytest.fixture(scope="module")
def evil():
    """A model whose name and tokens try to be markup."""
    vocabulary = {text: i for i, text in enumerate(EVIL)}
    config = Config(n_layer=2, n_head=2, n_embd=8, vocab_size=len(EVIL), n_positions=16)
    model = random_model(config, dtype="float32")
    model.name = "<img src=x onerror=alert(1)>"
    model.tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<!--"))
    return model


# ---- size, and what is there ----


def test_the_tiny_model_and_24_tokens_stay_under_5_mb(html, plain):
    assert len(html.encode()) < 5_000_000
    assert len(plain.encode()) < 5_000_000


def test_every_record_is_on_the_page_with_its_numbers_to_3_digits(tiny, ids, prefix, html):
    data = data_of(html)
    t = trace(tiny, Batch.pack([ids]), prefix)
    assert [r["key"] for r in data["records"]] == [r.key for r in t]
    whole = 0
    for entry, record in zip(data["records"], t, strict=True):
        assert entry["shape"] == list(record.shape)
        assert entry["backward"] == (record.direction == "backward")
        if "top" in entry:
            continue
        assert "cut" not in entry
        a = record.value.swapaxes(0, 1) if entry["axes"][1:2] == ["NH"] else record.value
        a, least = a.reshape(entry["drawn"]), np.abs(a).max(initial=0) * 2.0**-28
        np.testing.assert_allclose(drawn(data, entry), a, 5.6e-3, least, err_msg=record.key)
        whole += 1
    assert whole > 250


def test_without_a_prefix_every_weight_has_its_gradient(tiny, ids, plain):
    data = data_of(plain)
    keys = {r["key"] for r in data["records"]}
    for i in range(tiny.config.n_layer):
        for layer in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"):
            assert f"blocks.{i}.{layer}.dweight" in keys
    assert {"embed.dwte", "embed.dwpe", "ln_f.dgain", "head.dweight"} <= keys
    assert data["about"]["prefix"] is None
    assert data["arriving"] == []
    dwte = next(r for r in data["records"] if r["key"] == "embed.dwte")
    assert dwte["ids"] == sorted(set(ids))
    rows = np.any(drawn(data, dwte)[0] != 0, axis=1)
    assert [i for i, row in zip(dwte["ids"], rows, strict=True) if not row] == [ids[-1]]


def test_what_is_too_large_is_cut_and_says_so(plain, monkeypatch, small):
    data = data_of(plain)
    cut = [r for r in data["records"] if r.get("cut")]
    assert any(r["key"].endswith("mlp.c_fc.dweight") for r in cut)
    for r in cut:
        assert np.prod(r["drawn"]) < np.prod(r["shape"])
    assert not any(".attn.pattern" in r["key"] for r in cut)
    most = 100_000
    monkeypatch.setattr("minprefix.trace.packing.MOST_NUMBERS", most)
    monkeypatch.setattr("minprefix.trace.packing.OF_A_RECORD", 0)
    data = data_of(page(small, SMALL_IDS))
    assert sum(len(text) for _, text in data["values"]) < most * 2 * 4 / 3 * 1.05
    cut = [r["key"] for r in data["records"] if r.get("cut")]
    assert len(cut) > 50
    assert not any(key.endswith(("pattern#0", "scores#0")) for key in cut)  # they are cut last


def test_of_the_logits_a_row_shows_its_target_and_the_likeliest(tiny, ids, prefix, html):
    data = data_of(html)
    logits = tiny.logits(Batch.pack([ids]), prefix, "reference")[:-1]
    entry = next(r for r in data["records"] if r["key"] == "logits")
    picked = data["picked"][entry["top"]]
    assert [row[0] for row in picked] == ids[1:]
    for row, ours in zip(logits, picked, strict=True):
        likeliest = [i for i in np.argsort(-row) if i != ours[0]][:12]
        assert ours[1:] == likeliest
        assert {str(i) for i in ours} <= set(data["words"])
    want = np.take_along_axis(logits, np.array(picked), axis=1)
    np.testing.assert_allclose(drawn(data, entry)[0], want, rtol=6e-3)
    others = {r["key"] for r in data["records"] if "top" in r}
    assert others == {"head.out", "logits", "loss.shifted", "loss.exp", "loss.one_hot", "dlogits"}


def test_logits_in_parts_have_rows_of_their_own(small, monkeypatch):
    monkeypatch.setattr("minprefix.gpt2.HEAD_ROWS", 9)
    data = data_of(page(small, SMALL_IDS))
    assert {start: len(rows) for start, rows in data["picked"].items()} == {"0": 9, "9": 9, "18": 5}
    second = next(r for r in data["records"] if r["key"] == "dlogits.from_9")
    assert (second["top"], second["from"], second["place"]) == ("9", 9, "loss")
    assert [row[0] for row in data["picked"]["9"]] == SMALL_IDS[10:19]
    dweight = next(r for r in data["records"] if r["key"] == "head.from_9.dweight")
    assert [data["records"][n]["key"] for n in dweight["inputs"]] == ["ln_f.out", "dlogits.from_9"]


# ---- what it says of each ----


def test_every_op_of_the_column_has_its_records_and_every_record_its_op(html, plain):
    for text in (html, plain):
        data = data_of(text)
        column = [p["name"] for p in data["places"]]
        assert len(column) == 4 + 10 * 4
        assert {r["place"] for r in data["records"]} <= set(column)
        for place in column:
            assert any(r["place"] == place and not r["backward"] for r in data["records"]), place
    back = {r["place"] for r in data["records"] if r["backward"]}
    assert set(column) - back == {"blocks.3.resid_post"}  # ln_f gives its gradient as it is


def test_no_link_to_a_record_is_an_elements_id_to_which_a_browser_would_scroll(html, plain):
    for text in (html, plain):
        ids = {attrs.get("id") for _, attrs in Elements(text).seen}
        assert not ids & {r["link"] for r in data_of(text)["records"]}


def test_every_line_is_in_the_listing_that_is_shown_for_it(html, plain):
    for text in (html, plain):
        data = data_of(text)
        for r in data["records"]:
            name = "add_backward" if r["op"] == "add" and r["backward"] else r["op"]
            lines = {
                start + i: line
                for start, lines in data["code"][name]["functions"]
                for i, line in enumerate(lines)
            }
            between = model_line(r["key"].split("#")[0], r["op"])
            made = source_of(gpt2 if between else reference).lines[r["line"] - 1]
            assert lines[r["line"]] == made, r["key"]
            assert r["formula"][0], r["key"]


def test_every_backward_line_leads_to_the_forward_line_that_it_mirrors(html, plain):
    for text in (html, plain):
        records = data_of(text)["records"]
        for r in records:
            if r["backward"]:
                mirror = records[r["mirror"]["record"]]
                assert not mirror["backward"]
                assert r["mirror"].get("line", mirror["line"]) == mirror["line"]
                assert mirror["place"] == r["place"] or r["op"] == "add", r["key"]
            else:
                assert "mirror" not in r
    by_key = {r["key"]: r for r in records}
    mirror = records[by_key["blocks.1.attn.dscores#0"]["mirror"]["record"]]
    assert mirror["key"] == "blocks.1.attn.pattern#0"


def test_what_a_line_reads_is_linked(html):
    records = data_of(html)["records"]
    by_key = {r["key"]: r for r in records}

    def read(key):
        return [x if isinstance(x, str) else records[x]["key"] for x in by_key[key]["inputs"]]

    at = "blocks.1.attn"
    assert read(f"{at}.scores#0") == [f"{at}.q_b#0", f"{at}.keys#0"]
    assert read(f"{at}.keys#0") == [f"{at}.prefix_k#0", f"{at}.k_b#0"]
    assert read(f"{at}.dprefix_k#0") == [f"{at}.dkeys#0"]
    assert read("blocks.1.mlp.du_dx") == ["blocks.1.mlp.pre"]
    assert read("blocks.1.mlp.dpost") == ["blocks.1.dresid_post", "h.1.mlp.c_proj.weight"]
    assert read("blocks.1.ln_2.centred") == ["blocks.1.resid_mid"]
    assert read("blocks.1.resid_mid") == ["blocks.0.resid_post", "blocks.1.attn.out"]
    for n, r in enumerate(records):
        assert all(isinstance(x, str) or x < n for x in r["inputs"]), r["key"]
        assert r["inputs"] or r["op"] == "given", r["key"]


def test_the_share_on_the_prefix_and_the_gradient_that_arrives_are_the_models(
    tiny, ids, prefix, html
):
    data, batch = data_of(html), Batch.pack([ids])
    pattern = trace(tiny, batch, prefix, names="*.pattern")["blocks.2.attn.pattern"].value
    entry = next(r for r in data["records"] if r["key"] == "blocks.2.attn.pattern#0")
    np.testing.assert_allclose(entry["share"], pattern[:, :, :10].sum(-1), rtol=6e-3)
    _, dkv = loss_and_grad(tiny, prefix, batch)
    for arrived in data["arriving"]:
        want = np.linalg.norm(dkv[arrived["layer"], "kv".index(arrived["of"])])
        assert arrived["norm"] == pytest.approx(want, rel=1e-2)
    assert [a["layer"] for a in data["arriving"]] == [3, 3, 2, 2, 1, 1, 0, 0]


def test_the_gradient_stops_at_the_lowest_layer_with_a_prefix(small):
    data = data_of(page(small, SMALL_IDS, Prefix.normal(small.config, 3, layers=[2])))
    assert data["about"]["lowest"] == 2
    back = {r["place"] for r in data["records"] if r["backward"]}
    assert "blocks.2.attn" in back
    assert not any(place.startswith(("blocks.0", "blocks.1", "embed")) for place in back)
    assert not any(r["key"].endswith("dweight") for r in data["records"])
    assert [(a["layer"], a["of"]) for a in data["arriving"]] == [(2, "k"), (2, "v")]


# ---- numbers ----


def test_packing_keeps_3_digits_and_nothing_but_0_becomes_0():
    digits = np.arange(100, 1000)
    for power in (-30, -12, -3, 0, 7, 30):
        a = np.concatenate([digits, -digits]) * 10.0**power
        half, two = pack(a)
        assert np.array_equal(three_digits(np.ldexp(half.astype(float), two)), three_digits(a))
    a = np.random.default_rng(0).normal(0, 1, 20_000)
    half, two = pack(a)
    assert np.array_equal(three_digits(np.ldexp(half.astype(float), two)), three_digits(a))
    half, two = pack(np.array([1.0, 2.34e-9]))
    assert f"{np.ldexp(float(half[1]), two):.3g}" == "2.34e-09"
    half, two = pack(np.array([0.0, np.nan, np.inf, -np.inf, 1e-30, -1e-30, 5.0]))
    back = np.ldexp(half.astype(float), two)
    assert back[0] == 0
    assert np.isnan(back[1])
    assert back[2:4].tolist() == [np.inf, -np.inf]
    assert 0 < back[4] == -back[5] < 1e-8  # under 2**-29 of 5: no digit of it is left, but its sign
    assert pack(np.zeros((2, 3)))[1] == 0
    assert pack(np.empty((0, 3)))[0].shape == (0, 3)


def test_a_loss_that_overflowed_is_on_the_page_as_no_number(small, monkeypatch):
    def overflowed(*args, **more):
        t = trace(*args, **more)
        t["loss"].value, t.about["loss"] = np.float32(np.nan), np.inf
        return t

    monkeypatch.setattr("minprefix.trace.tracer.trace", overflowed)
    data = data_of(page(small, SMALL_IDS))
    assert data["about"]["loss"] is None
    assert data["records"][-1]["summary"][4] == 0
    loss = next(r for r in data["records"] if r["key"] == "loss")
    assert np.isnan(drawn(data, loss)).all()
    assert loss["summary"][:5] == [None, None, None, None, 1]


# ---- nothing breaks out, nothing goes out ----


def test_text_of_tokens_and_names_stays_text(evil):
    html = page(evil, [0, 1, 2, 3, 4, 5])
    elements = Elements(html)
    assert [attrs.get("type") for attrs, _ in elements.all("script")] == ["application/json", None]
    assert not elements.all("img")
    assert "alert(1)" not in html.replace("\\u003cscript>alert(1)\\u003c/script>", "").replace(
        "onerror=alert(1)", ""
    )
    data = data_of(html)
    assert data["about"]["tokens"] == [
        "<script>alert(1)</script>", "<!--", "</script>", "@data@", "\\u202eevil", "␣⏎⇥\\u0000",
    ]  # fmt: skip
    assert "<img src=x onerror=alert(1)>" in data["about"]["model"]


def test_a_token_without_a_tokenizer_is_its_id(evil):
    bare = GPT2(evil.config, evil.weights)
    assert shown(bare, 3) == "3"
    assert data_of(page(bare, [0, 1, 2]))["about"]["tokens"] == ["0", "1", "2"]


def test_only_the_pages_own_script_and_style_run_and_nothing_is_fetched(html):
    elements = Elements(html)
    (meta,) = [a for a, _ in elements.all("meta") if "http-equiv" in a]
    policy = dict(part.strip().split(" ", 1) for part in meta["content"].split(";"))
    assert policy["default-src"] == "'none'"
    for tag, directive in (("script", "script-src"), ("style", "style-src")):
        text = elements.all(tag)[-1][1]
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert policy[directive] == f"'sha256-{digest}'"
    for tag, attrs in elements.seen:
        assert "src" not in attrs
        assert not any(name.startswith("on") or name == "style" for name in attrs), (tag, attrs)
        assert (attrs.get("href") or "#") in ("#", "data:,")
    assert not re.search(r"https?://|@import|url\(", html)


# ---- the command ----


def test_the_prompt_and_the_target_are_joined_as_training_joins_them(tiny):
    template = Template("{source}\n{target}")
    ids, loss_from = encode(tiny, "food[Thai]", "It is Thai.", template)
    before = tiny.encode("food[Thai]\n")
    assert ids == [*before, *tiny.encode("It is Thai."), tiny.config.eos_token_id]
    assert loss_from == len(before)
    assert encode(tiny, "food[Thai]", None, template) == (before, 1)
    raw, _ = encode(tiny, "food[Thai]", "It", None)
    assert raw == tiny.encode("food[Thai]") + tiny.encode("It")


def test_the_command_writes_the_page(tmp_path, capsys):
    out = tmp_path / "deep" / "fox.html"
    arguments = ["view", "--prompt", "food[Thai]", "--target", " Thai food.", "--out", str(out)]
    assert main(arguments) == 0
    about = data_of(out.read_text(encoding="utf-8"))["about"]
    said = capsys.readouterr().out
    assert said.startswith(f"{len(about['tokens'])} tokens, {len(about['rows'])} predicted; ")
    assert str(out) in said


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--prompt", ""], "--prompt is empty: expected text"),
        (["--prompt", "a"], "is 1 token, after which nothing is to be predicted: give a longer"),
        (["--prompt", "a b", "--target", " "], "--target is ' ': expected the text to predict"),
        (["--prompt", "a b", "--out", "page.txt"], "expected a name that ends in .html"),
        (["--prompt", "a b", "--raw", "--template", "{source}{target}"], "leave out --template"),
        (["--prompt", "a b", "--prefix", "absent"], "absent"),
        (["--prompt", "word " * 400], "has room for 257 (256 positions"),
    ],
)
def test_bad_input_is_a_sentence(tmp_path, monkeypatch, capsys, more, sentence):
    monkeypatch.chdir(tmp_path)
    arguments = ["view", *more, *([] if "--out" in more else ["--out", "page.html"])]
    assert main(arguments) == 2
    assert sentence in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_bad_token_is_refused_as_everywhere(tiny):
    with pytest.raises(InputError, match="lies outside the vocabulary"):
        page(tiny, [1, 5000])
