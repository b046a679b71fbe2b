"""Pictures show what they say, in grey as well; and what shows itself in a notebook."""

import json
import subprocess
import sys
from xml.etree import ElementTree

import numpy as np
import pytest

from minprefix import GPT2, Batch, Config, InputError, Prefix
from minprefix.cli import main
from minprefix.cli.plot import PLOTS
from minprefix.data.pairs import Encoded
from minprefix.show import attention, drawing, training
from minprefix.trace import trace
from minprefix.train import Settings, train
from tests.conftest import random_model

CONFIG = Config(n_layer=3, n_head=4, n_embd=32, vocab_size=50, n_positions=64)
IDS = np.random.default_rng(0).integers(1, 50, 7).tolist()
#: tokens that a picture or a page might take for something else
STRANGE = ["$x$", "<script>", "\x00", " a", "\n", "--", r"$\frac$"]


@pytest.fixture(scope="module")
def model():
    return random_model(CONFIG)


@pytest.fixture(scope="module")
def prefix():
    return Prefix.normal(CONFIG, 5, std=0.5, layers=[0, 2], dtype="float64")


def run_folder(out, prefix, valid=False, steps=12, seed=0):
    rng = np.random.default_rng(seed)
    examples = [Encoded(rng.integers(1, 50, 6).tolist(), 2) for _ in range(5)]
    small = random_model(CONFIG, dtype="float32")
    settings = Settings(steps=steps, eval_every=5, lr=1e-2)
    train(small, prefix, examples, settings, out, examples if valid else None, progress=False)
    return out


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    prefix = Prefix.normal(CONFIG, 3, std=0.5, layers=[0, 2])
    return run_folder(tmp_path_factory.mktemp("runs") / "a", prefix, valid=True)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A prefix of the shipped model."""
    model, folder = GPT2.load("tiny"), tmp_path_factory.mktemp("prefix") / "p"
    Prefix.normal(model.config, 4, std=0.5).save(folder, model)
    return folder


@pytest.fixture
def drawn(monkeypatch):
    """The figures that would have been written."""
    figures = []
    for module in (attention, training):
        monkeypatch.setattr(module, "save", lambda figure, path, title: figures.append(figure))
    return figures


@pytest.fixture
def in_names(monkeypatch):
    """Drawing takes longer than all else: the names of files and titles instead."""
    names = []
    for module in (attention, training):
        monkeypatch.setattr(module, "save", lambda _, path, title: names.append((path.name, title)))
    return names


def said(axes):
    """All text of a panel."""
    labels = [*axes.get_xticklabels(), *axes.get_yticklabels()]
    return [axes.get_xlabel(), axes.get_ylabel(), axes.get_title(loc="left")] + [
        label.get_text() for label in labels
    ]


# ---- attention ----


def test_patterns_are_those_of_the_trace_and_shares_their_part_on_the_prefix(model, prefix):
    seen = trace(model, Batch.pack([IDS]), prefix)
    patterns = attention.patterns(model, IDS, prefix)
    assert [p.shape for p in patterns] == [(4, 7, 12), (4, 7, 7), (4, 7, 12)]
    for i, pattern in enumerate(patterns):
        assert np.array_equal(pattern, seen[f"blocks.{i}.attn.pattern#0"].value)
    shares = attention.shares(model, IDS, prefix)
    assert shares.shape == (2, 4, 7)  # layer 1 has no prefix
    for share, layer in zip(shares, (0, 2), strict=True):
        np.testing.assert_allclose(share, 1 - patterns[layer][:, :, 5:].sum(axis=-1), rtol=1e-9)


def test_the_share_picture_has_a_cell_for_each_layer_head_and_token_and_their_means(
    model, prefix, drawn, tmp_path
):
    shares = attention.shares(model, IDS, prefix)
    attention.shares_picture(tmp_path / "a.png", shares, [0, 2], 5, STRANGE, "x")
    (figure,) = drawn
    above, beside, heat = figure.axes[:3]
    np.testing.assert_array_equal(heat.images[0].get_array(), shares.reshape(8, 7))
    assert heat.images[0].get_clim() == (0, 1)
    assert {"layer 0", "layer 2"} <= set(said(heat))
    np.testing.assert_allclose(above.lines[0].get_ydata(), shares.mean(axis=(0, 1)))
    np.testing.assert_allclose(above.lines[1].get_ydata(), [5 / (6 + i) for i in range(7)])
    np.testing.assert_allclose([bar.get_width() for bar in beside.patches], shares.mean(-1).ravel())
    assert "5 slots, 7 tokens" in figure._suptitle.get_text()
    for axes in (heat, beside):
        assert axes.get_xlabel()


@pytest.mark.parametrize("heads", [[2], [0, 1, 2, 3]])
def test_the_pattern_picture_sets_the_columns_of_the_prefix_apart(
    model, prefix, drawn, tmp_path, heads
):
    pattern = attention.patterns(model, IDS, prefix)[2]
    attention.patterns_picture(tmp_path / "p.png", pattern, 5, STRANGE, 2, heads, "x")
    panels = [axes for axes in drawn[0].axes if len(axes.images) == 2]
    assert len(panels) == len(heads)
    for head, axes in zip(heads, panels, strict=True):
        tokens, slots = axes.images
        np.testing.assert_array_equal(slots.get_array(), pattern[head, :, :5])
        shown = tokens.get_array()
        assert np.array_equal(shown.mask, np.triu(np.ones((7, 7), bool), 1))
        np.testing.assert_array_equal(shown.data, pattern[head, :, 5:])
        assert slots.get_extent()[1] + 1 <= tokens.get_extent()[0]
        part = pattern[head, :, :5].sum(-1).mean()
        assert axes.get_title(loc="left") == f"head {head}: {part:.0%} on the prefix"
        assert tokens.norm is slots.norm
        assert (tokens.get_clim(), slots.get_clim()) == ((0, 1), (0, 1))
    assert {"prefix", "tokens"} <= set(said(panels[-1])) or "slot 4" in said(panels[-1])


def test_a_layer_without_a_prefix_shows_tokens_alone(model, prefix, drawn, tmp_path):
    pattern = attention.patterns(model, IDS, prefix)[1]
    attention.patterns_picture(tmp_path / "p.png", pattern, 0, STRANGE, 1, [0], "x")
    assert [len(axes.images) for axes in drawn[0].axes[:1]] == [1]
    assert "no prefix" in drawn[0]._suptitle.get_text()


# ---- what is written ----


@pytest.mark.parametrize("ending", ["png", "SVG"])
def test_strange_tokens_and_names_are_drawn_as_they_are_and_equal_pictures_are_equal_bytes(
    model, prefix, tmp_path, ending
):
    shares = attention.shares(model, IDS, prefix)
    files = [tmp_path / f"{name}.{ending}" for name in "ab"]
    for path in files:
        attention.shares_picture(path, shares, [0, 2], 5, STRANGE, r"runs/$\frac$ & <b>" + "\x01")
    data = files[0].read_bytes()
    assert data == files[1].read_bytes()
    if ending == "png":
        assert data.startswith(b"\x89PNG")
    else:
        assert ElementTree.fromstring(data).tag == "{http://www.w3.org/2000/svg}svg"
        assert b"<script" not in data


def test_more_is_darker_in_grey_too():
    from matplotlib import colormaps

    colours = colormaps[drawing.MORE_IS_DARKER](np.linspace(0, 1, 64))[:, :3]
    grey = colours @ [0.299, 0.587, 0.114]
    assert (np.diff(grey) < 0).all()
    assert grey[0] > 0.9
    assert grey[-1] < 0.25


def test_no_two_runs_have_the_same_dashes_and_marks():
    most = len(drawing.DASHES) * len(drawing.MARKS)
    assert len({(drawing.DASHES[i % 4], drawing.MARKS[i % 7]) for i in range(most)}) == most == 28


# ---- a training ----


def test_the_gradient_picture_shows_the_log_layer_by_layer(run, drawn, tmp_path):
    assert training.gradients_picture(tmp_path / "g.png", training.read_run(run)) is None
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    lines = [line for line in log if "layers" in line]
    assert [line["step"] for line in lines] == [1, 10, 12]
    lineplot, keys, values = drawn[0].axes[:3]
    for axes, what in ((keys, "keys"), (values, "values")):
        mesh = axes.collections[0].get_array()
        np.testing.assert_allclose(mesh, np.transpose([e[f"grad_norm_{what}"] for e in lines]))
        assert [label.get_text() for label in axes.get_yticklabels()] == ["0", "2"]
        assert what in axes.get_title(loc="left")
    every, of_keys, of_values = lineplot.lines
    np.testing.assert_allclose(every.get_ydata(), [e["grad_norm"] for e in log])
    np.testing.assert_allclose(
        of_keys.get_ydata(), [np.linalg.norm(e["grad_norm_keys"]) for e in lines]
    )
    assert len({(line.get_linestyle(), line.get_marker()) for line in (of_keys, of_values)}) == 2
    assert lineplot.get_xlabel() == "step"


def test_the_distance_picture_shows_the_log_layer_by_layer(run, drawn, tmp_path):
    assert training.distance_picture(tmp_path / "d.png", training.read_run(run)) is None
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    lines = [line for line in lines if "layers" in line]
    mesh = drawn[0].axes[2].collections[0].get_array()
    np.testing.assert_allclose(mesh, np.transpose([e["distance_values"] for e in lines]))


def test_losses_of_several_runs_stand_together_under_their_names(run, drawn, tmp_path):
    other = run_folder(tmp_path / "b", Prefix.normal(CONFIG, 2), steps=4)
    runs = [training.read_run(folder) for folder in (run, other)]
    sentence = training.losses_picture(tmp_path / "l.png", runs)
    assert sentence == "no validation loss was logged in b"
    batches, valid = drawn[-1].axes
    assert [line.get_label() for line in batches.lines] == ["a", "b"]
    np.testing.assert_allclose(batches.lines[1].get_ydata(), [e["loss"] for e in runs[1].lines])
    assert valid.lines[0].get_xdata().tolist() == [5, 10, 12]
    assert training.losses_picture(tmp_path / "l.png", runs[1:]) is None
    with pytest.raises(InputError, match=r"29 runs .* at most 28"):
        training.losses_picture(tmp_path / "l.png", runs[:1] * 29)


def test_runs_of_one_name_are_told_apart_by_their_paths():
    assert training._short_names(["x/a", "y/a"]) == ["x/a", "y/a"]
    assert training._short_names(["x/a", "y/b"]) == ["a", "b"]


def edited(run, out, change):
    """A copy of a run's log with every line changed."""
    out.mkdir()
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    (out / "log.jsonl").write_text("".join(json.dumps(change(e)) + "\n" for e in lines))
    return out


def test_a_log_of_an_earlier_version_is_drawn_as_far_as_it_goes(run, drawn, tmp_path):
    old = {"step", "loss", "grad_norm", "lr"}
    out = edited(run, tmp_path / "old", lambda e: {k: v for k, v in e.items() if k in old})
    found = training.read_run(out)
    sentence = training.gradients_picture(tmp_path / "g.png", found)
    assert "has no gradient norm of each layer: an earlier version wrote it" in sentence
    assert len(drawn[0].axes) == 1
    assert len(drawn[0].axes[0].lines[0].get_ydata()) == 12
    with pytest.raises(InputError, match="has no distance of the prefix from its start: an earl"):
        training.distance_picture(tmp_path / "d.png", found)
    bare = edited(run, tmp_path / "bare", lambda e: {"step": e["step"], "loss": e["loss"]})
    with pytest.raises(InputError, match="has no gradient norm of each layer"):
        training.gradients_picture(tmp_path / "g.png", training.read_run(bare))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"step": 3}, "step 3 after step 3: it is damaged"),
        ({"loss": float("inf")}, "step 1: loss is inf: it is damaged"),
        ({"grad_norm": "much"}, "step 1: grad_norm is 'much': it is damaged"),
        ({"grad_norm_keys": [1.0]}, "not a number for each of its layers"),
        ({"grad_norm_values": [1.0, -2.0]}, "not a number for each of its layers"),
        ({"grad_norm_values": [1.0, None]}, "not a number for each of its layers"),
        ({"layers": 2}, "not a number for each of its layers"),
        ({"layers": [], "grad_norm_keys": [], "grad_norm_values": []}, "no layer has a prefix"),
    ],
)
def test_a_damaged_log_is_a_sentence(run, tmp_path, change, sentence):
    out = edited(run, tmp_path / "damaged", lambda e: e | change)
    with pytest.raises(InputError, match=sentence):
        training.gradients_picture(tmp_path / "g.png", training.read_run(out))


def test_gradients_that_are_zero_are_as_light_as_can_be(run, drawn, tmp_path):
    for name, values in (("some", [0.0, 0.25]), ("all", [0.0, 0.0])):
        change = {"grad_norm_keys": [0.0, 0.0], "grad_norm_values": values}
        out = edited(run, tmp_path / name, lambda e, c=change: e | c if "layers" in e else e)
        training.gradients_picture(tmp_path / "g.png", training.read_run(out))
        mesh = drawn[-1].axes[1].collections[0]
        colours = mesh.to_rgba(mesh.get_array())
        assert (colours == mesh.cmap(0.0)).all()
    drawn[-1].draw_without_rendering()


# ---- the command ----


def command(*words):
    return main(["plot", *map(str, words)])


def test_every_picture_has_a_command_and_a_title(run, saved, tmp_path, capsys, in_names):
    prompt = ("--prefix", saved, "--prompt", "name[The Red Fox]")
    words = {
        "attention": prompt,
        "pattern": (*prompt, "--layer", 1, "--head", 2),
        "gradients": (run,),
        "distance": (run,),
        "loss": (run, run),
    }
    assert set(words) == {name for name, _, _ in PLOTS}
    for name, more in words.items():
        out = tmp_path / f"{name}.png"
        assert command(name, *more, "--out", out) == 0
        assert capsys.readouterr().out == f"written to {out}\n"
    assert in_names == [
        ("attention.png", f"Share of attention on the prefix: {saved} on tiny"),
        ("pattern.png", f"Attention in layer 1: {saved} on tiny"),
        ("gradients.png", f"Norm of the gradient at the prefix while training: {run}"),
        ("distance.png", f"Distance of the prefix from its start while training: {run}"),
        ("loss.png", "Loss while training, 2 runs"),
    ]


def test_a_prompt_stands_in_the_prefixs_template_unless_it_is_raw(saved, monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(attention, "shares", lambda model, ids, prefix: seen.append(ids))
    monkeypatch.setattr(attention, "shares_picture", lambda *args: None)
    words = ("--prefix", saved, "--prompt", "food[Thai]", "--out", tmp_path / "a.png")
    command("attention", *words)
    command("attention", *words, "--raw")
    encode = GPT2.load("tiny").encode
    assert seen == [encode("food[Thai]\n"), encode("food[Thai]")]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("loss", "{run}", "--out", "x.jpg"), "'x.jpg': expected a name that ends in .png or .svg"),
        (("attention", "--prompt", "a", "--out", "x.png"), "give --prefix DIR"),
        (("attention", "--prompt", "", "--prefix", "{saved}", "--raw", "--out", "x.png"),
         "--prompt is empty: expected text"),
        (("pattern", "--prompt", "a", "--layer", "4", "--out", "x.png"),
         "--layer is 4: model 'tiny' has layers 0 to 3"),
        (("pattern", "--prompt", "a", "--head", "-1", "--out", "x.png"),
         "--head is -1: model 'tiny' has heads 0 to 4"),
        (("gradients", "{saved}", "--out", "x.png"), "holds no log of a training (log.jsonl is"),
        (("distance", "nowhere", "--out", "x.png"), "run folder 'nowhere' does not exist"),
        (("loss", "{empty}", "--out", "x.png"), "holds no step"),
    ],
)  # fmt: skip
def test_what_cannot_be_drawn_is_one_sentence_and_no_file(
    run, saved, tmp_path, monkeypatch, capsys, words, sentence
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "log.jsonl").write_text('{"step": 1')
    places = {"run": run, "saved": saved, "empty": tmp_path / "empty"}
    assert command(*(word.format(**places) for word in words)) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert sentence in error
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_drawing_has_no_global_state_and_a_notebook_waits_for_no_matplotlib(run, tmp_path):
    out = tmp_path / "l.svg"
    code = (
        "import sys; from minprefix import GPT2; GPT2.load('tiny')._repr_html_()\n"
        "assert 'matplotlib' not in sys.modules and 'minprefix.trace' not in sys.modules\n"
        "from minprefix.cli import main\n"
        f"main(['plot', 'loss', {str(run)!r}, '--out', {str(out)!r}])\n"
        "assert 'matplotlib' in sys.modules and 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert out.exists()


# ---- in a notebook ----


def parsed(thing):
    """Its HTML, which has to be well-formed, short, and without scripts."""
    html = thing._repr_html_()
    assert len(html) < 20_000
    tree = ElementTree.fromstring(f"<div>{html}</div>")
    assert not list(tree.iter("script"))
    return tree, " ".join(text.strip() for text in tree.itertext() if text.strip())


def cells(tree):
    """How many cells its heat maps have, but for those that are crossed out."""
    return sum(p.get("d").count("M") for p in tree.iter("path") if p.get("fill"))


def test_a_model_a_prefix_and_a_batch_show_what_they_are(model, prefix):
    _, text = parsed(model)
    assert "GPT2 random layers 3 heads 4 of size 8 width 32" in text
    evil = GPT2(CONFIG, model.weights, name="<script>alert(1)</script>")
    assert "<script>alert(1)</script>" in parsed(evil)[1]
    tree, text = parsed(prefix)
    assert "slots 5 layers 0, 2" in text
    assert len(list(tree.iter("svg"))) == 2
    assert cells(tree) == 2 * 2 * 5  # keys and values, layers, slots
    assert "weight_1" in parsed(Prefix.mlp(CONFIG, 2, 4))[1]
    assert not list(parsed(Prefix.normal(CONFIG, 0))[0].iter("svg"))
    tree, text = parsed(Batch.pack([[1, 2, 3, 4], [5, 6]], loss_from=[2, 1], prefix=[0, 1]))
    assert [u.text for u in tree.iter("u")] == ["3", "4", "6"]
    assert "0 4 2 0 1 2 3 4 1 2 1 1 5 6" in text
    _, text = parsed(Batch.pack([IDS * 5] * 20))
    assert "11 more" in text  # tokens
    assert "12 more" in text  # sequences


def test_a_record_shows_its_summary_and_a_heat_map(model, prefix):
    seen = trace(model, Batch.pack([IDS]), prefix)
    record = seen["blocks.0.attn.pattern#0"]
    tree, text = parsed(record)
    assert str(record.summary) in text
    assert "at [0] the first 7 x 12 numbers" in text
    (svg,) = tree.iter("svg")
    black = [p.get("d") for p in svg.iter("path") if p.get("fill") == "rgb(0,0,0)"]
    y, x = np.unravel_index(record.value[0].argmax(), (7, 12))
    assert f"M{x} {y}h" in black[0]
    assert cells(tree) == 7 * 12
    assert len(list(parsed(seen["loss"])[0].iter("svg"))) == 1


def test_a_heat_map_crosses_out_what_is_no_number_and_says_where_it_was_cut(model, prefix):
    record = trace(model, Batch.pack([IDS]), prefix)["logits"]
    record.value = np.zeros((100, 200))
    record.value[1, 2], record.value[3, 4] = np.nan, -np.inf
    tree, text = parsed(record)
    assert "the first 16 x 48 numbers" in text
    assert "crossed: not finite" in text
    crossed = [p.get("d") for p in tree.iter("path") if p.get("stroke")]
    assert crossed[0].startswith("M2 1l")
    assert crossed[0].count("M") == 2
    assert cells(tree) == 16 * 48 - 2
    for value in (np.full((2, 2), np.nan), np.ones((2, 0)), np.array(True), np.array([1j])):
        record.value = value
        parsed(record)


def test_a_trace_shows_the_ends_of_its_table(model, prefix):
    seen = trace(model, Batch.pack([IDS]), prefix)
    tree, text = parsed(seen)
    assert len(list(tree.iter("tr"))) == 1 + 12 + 1 + 12
    assert f"{len(seen) - 24} more" in text
    few = trace(model, Batch.pack([IDS]), prefix, names="*.attn.pattern")
    assert len(list(parsed(few)[0].iter("tr"))) == 4
