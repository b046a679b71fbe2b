"""The command line: what it writes and says, and one sentence and status 2 for every bad input."""

import itertools
import json
import math
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tokenizers import ByteLevelBPETokenizer

import minprefix.train
from minprefix import GPT2, Config, InputError, Prefix, cli, errors, runs
from minprefix.cli import main, outlook
from minprefix.cli.resume import asked_for, worse
from minprefix.data.pairs import Pair, Template, encode_pairs, read_pairs
from minprefix.data.world import table_to_text
from minprefix.evaluate import mean_loss
from minprefix.generate import Decoding, generate_ids
from minprefix.ops import threads
from minprefix.prefix import MLPPrefix
from minprefix.storage import checkpoint, places
from minprefix.train import Settings
from tests.conftest import random_model

PAIRS = [("name[A], food[Thai]", "A serves Thai food."), ("name[B]", "B is a pub."), ("x", "y z")]


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    """A small random GPT-2 with a tokenizer, on disk."""
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(
        [f"{s}\n{t}" for s, t in PAIRS], 300, special_tokens=["<|endoftext|>"], show_progress=False
    )
    config = Config(2, 2, 16, bpe.get_vocab_size(), 64, bos_token_id=0, eos_token_id=0)
    model = random_model(config, dtype="float32")
    model.tokenizer = bpe._tokenizer
    folder = tmp_path_factory.mktemp("model")
    model.save(folder)
    return folder


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "data.jsonl"
    lines = [json.dumps({"source": s, "target": t}) for s, t in PAIRS * 4]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


@pytest.fixture
def ok(capsys):
    """Run a command that must succeed. -> what it printed."""

    def run(*argv):
        status = main([str(a) for a in argv])
        captured = capsys.readouterr()
        assert status == 0, captured.err
        return captured.out

    return run


@pytest.fixture
def refused(capsys):
    """Run a command that must be refused with one sentence. -> the sentence."""

    def run(*argv):
        status = main([str(a) for a in argv])
        err = capsys.readouterr().err
        lines = [line for line in err.splitlines() if not line.startswith("\r")]
        said = [line for line in lines if line.startswith("minprefix: error: ")]
        assert status == 2
        assert len(said) == 1
        assert said[0] == lines[-1]
        assert "Traceback" not in err
        return said[0].removeprefix("minprefix: error: ")

    return run


def few_records(monkeypatch):
    """For a demo of a second."""
    for name, n in (("TRAIN", 20), ("VALID", 4), ("TEST", 4)):
        monkeypatch.setattr(f"minprefix.data.demo.{name}", n)


def train(model_dir, data, out, *more):
    steps = () if "--epochs" in more else ("--steps", 6)
    return ["train", "--model", model_dir, "--data", data, "--out", out, *steps, *more]


@pytest.fixture
def two_threads():
    """As if the machine had chosen two; after the test it has its own choice again."""
    before = threads.count()
    threads.limit(2)
    yield
    threads.limit(before)


# ---- what works ----


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--init", "text", "--init-text", "food name"],
        ["--mlp-hidden", "8"],
        ["--backend", "reference", "--weight-decay", "0.1", "--template", "{source} => {target}."],
        *(
            pytest.param(options.split(), marks=pytest.mark.long)
            for options in (
                "--init uniform --init-bound 0.1 --layers 1",
                "--init zero --position-offset 0 --dropout 0.2",
                "--mlp-hidden 8 --init text --init-text food --schedule cosine",
                "--loss sentence-sum --micro-batch-size 3 --clip 0 --warmup 2",
            )
        ),
    ],
    ids=" ".join,
)
def test_train_generate_evaluate_and_inspect_go_together(ok, model_dir, data, tmp_path, options):
    out = tmp_path / "run"
    ok(*train(model_dir, data, out, "--valid", data, *options))
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["steps"] == 6
    assert metrics["base_unchanged"] is True
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in log] == [1, 2, 3, 4, 5, 6]
    assert (out / "loss.png").read_bytes().startswith(b"\x89PNG")

    said = ok("inspect", out)
    assert "trained" in said or "slots in layers" in said
    about = json.loads((out / "minprefix.json").read_text())
    assert about["base"]["sha256"] == GPT2.load(model_dir).fingerprint()
    assert about["training"]["template"] in ("{source}\n{target}", "{source} => {target}.")

    ok("generate", "--model", model_dir, "--prefix", out, "--prompt", "name[A]", "--beams", 2)
    evaluate = ["evaluate", "--model", model_dir, "--prefix", out, "--data", data, "--ter"]
    ok(*evaluate, "--out", tmp_path / "e")
    scores = json.loads((tmp_path / "e" / "metrics.json").read_text())
    assert {"loss", "perplexity", "exact_match", "bleu", "chrf", "ter"} <= set(scores)
    assert scores["loss"] == pytest.approx(metrics["valid_loss"], rel=1e-4)
    predictions = (tmp_path / "e" / "predictions.jsonl").read_text().splitlines()
    assert [json.loads(p)["source"] for p in predictions] == [s for s, _ in PAIRS]


def test_the_same_seed_gives_the_same_bytes_and_another_seed_does_not(
    ok, model_dir, data, tmp_path
):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        ok(*train(model_dir, data, tmp_path / name, "--seed", seed, "--dropout", 0.1))
    a, b, c = ((tmp_path / n / "adapter_model.safetensors").read_bytes() for n in "abc")
    assert a == b != c


def test_every_command_that_computes_takes_threads(
    ok, model_dir, data, tmp_path, two_threads, monkeypatch
):
    few_records(monkeypatch)
    out, e = tmp_path / "run", tmp_path / "e"
    for argv in (
        train(model_dir, data, out),
        ["generate", "--model", model_dir, "--prompt", "food"],
        ["evaluate", "--model", model_dir, "--data", data, "--out", e],
        ["demo", "--out", tmp_path / "demo", "--steps", "1"],
    ):
        threads.limit(2)
        ok(*argv, "--threads", "1")
        assert threads.count() == 1, argv


def test_check_runs_the_implementation_on_as_many_threads(ok, tmp_path, two_threads):
    told, mine = tmp_path / "told", tmp_path / "mine.py"
    mine.write_text(
        "from minprefix.ops.reference import gelu\n"
        "from minprefix.ops import threads\n"
        f"open({str(told)!r}, 'w').write(str(threads.count()))\n"
    )
    for n in ("1", "2"):
        ok("check", mine, "--only", "gelu/usual", "--threads", n)
        assert told.read_text() == n


def test_a_run_does_not_depend_on_the_threads_option_and_may_go_on_with_another(
    ok, model_dir, data, tmp_path, two_threads
):
    for name, more in (("a", []), ("b", ["--threads", "1"])):
        ok(*train(model_dir, data, tmp_path / name, *more))
    a, b = (json.loads((tmp_path / n / "minprefix.json").read_text()) for n in "ab")
    assert a["training"]["options"] == b["training"]["options"]
    assert "threads" not in json.dumps(b)
    ok("train", "--out", tmp_path / "b", "--resume", "--threads", "2")


def test_generate_without_a_prefix_continues_the_prompt_as_it_is(ok, model_dir):
    model = GPT2.load(model_dir)
    from minprefix import generate

    said = ok("generate", "--model", model_dir, "--prompt", "name", "--max-new-tokens", 5)
    assert said == generate(model, ["name"], max_new_tokens=5)[0] + "\n"


def test_generate_applies_the_prefixs_template_unless_raw(ok, model_dir, data, tmp_path):
    out = tmp_path / "run"
    ok(*train(model_dir, data, out, "--template", r"{source}\t=> {target}"))
    call = ["generate", "--model", model_dir, "--prefix", out]
    with_template = ok(*call, "--prompt", "name")
    assert with_template == ok(*call, "--raw", "--prompt", "name\t=>").strip(" ")


def test_inspect_tells_a_model_from_a_prefix(ok, model_dir, tmp_path):
    assert "GPT2(" in ok("inspect", model_dir)
    model = GPT2.load(model_dir)
    Prefix.normal(model.config, 3).save(tmp_path / "p", model)
    said = ok("inspect", tmp_path / "p")
    assert "Prefix(3 slots" in said
    assert model.fingerprint() in said
    (tmp_path / "p" / "minprefix.json").unlink()  # as PEFT leaves it
    assert "PEFT wrote it" in ok("inspect", tmp_path / "p")


def test_force_replaces_a_run_and_leaves_other_files_alone(ok, model_dir, data, tmp_path):
    out = tmp_path / "run"
    ok(*train(model_dir, data, out, "--mlp-hidden", 4))
    (out / "notes.txt").write_text("mine")
    ok(*train(model_dir, data, out, "--force"))
    assert not (out / "mlp.safetensors").exists()
    assert (out / "notes.txt").read_text() == "mine"


def every_parser(parser=None):
    parser = parser or cli._parser()
    yield parser
    for part in parser.commands.choices.values() if parser.commands else []:
        yield from every_parser(part)


def test_every_command_has_help_with_an_example():
    for name, parser in cli._parser().commands.choices.items():
        assert f"example:\n  minprefix {name}" in parser.format_help()


def test_help_fits_80_columns_and_says_each_command_in_a_line(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    for parser in every_parser():
        wide = [line for line in parser.format_help().splitlines() if len(line) > 80]
        assert not wide, parser.prog
    overview = cli._parser().format_help()
    groups = re.findall(r"^(\w+):\n((?:  [\w-]+ .*\n)+)", overview, re.MULTILINE)
    assert [title for title, _ in groups] == [*cli.GROUPS]
    listed = [line.split()[0] for _, lines in groups for line in lines.splitlines()]
    assert listed == [*cli._parser().commands.choices]


@pytest.mark.parametrize(
    "argv", [["--frobnicate"], ["train", "--out", "x", "--learning-rate", "1"], ["dance"]]
)
def test_unknown_options_and_commands_exit_with_2(argv, capsys):
    with pytest.raises(SystemExit) as stop:
        main(argv)
    assert stop.value.code == 2


@pytest.mark.parametrize("command", ["demo", "train", "generate", "evaluate", "check"])
@pytest.mark.parametrize("n", ["0", "-2", "two", "1.5"])
def test_threads_below_one_are_a_sentence(command, n, capsys):
    with pytest.raises(SystemExit) as exit_:
        main([command, "--threads", n])
    assert exit_.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.endswith(f"argument --threads: {n!r}: expected a whole number, at least 1")


def loaded_by(code):
    """Which modules a fresh interpreter has after this."""
    code = f"{code}\nimport sys\nprint(*sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(said.stdout.split())


def test_importing_the_package_and_building_the_parser_wait_for_nothing_heavy():
    slow = {
        "matplotlib", "tokenizers", "huggingface_hub", "safetensors", "tqdm", "hypothesis",
        "sacrebleu", "threadpoolctl", "multiprocessing", "torch", "minprefix.conformance",
        "minprefix.train", "minprefix.storage.checkpoint", "minprefix.storage.artifact",
        "minprefix.evaluate", "minprefix.runs", "minprefix.data",
    }  # fmt: skip
    for code in ("import minprefix", "from minprefix import cli; cli._parser()"):
        assert not slow & loaded_by(code)
    assert "minprefix.data.pairs" in loaded_by("import minprefix.runs")  # this can see it


def test_a_model_without_a_tokenizer_does_not_wait_for_the_library(model_dir, tmp_path):
    bare = shutil.copytree(model_dir, tmp_path / "bare")
    (bare / "tokenizer.json").unlink()
    load = "from minprefix import GPT2; GPT2.load({!r})"
    assert "tokenizers" not in loaded_by(load.format(str(bare)))
    assert "tokenizers" in loaded_by(load.format(str(model_dir)))


def test_it_runs_as_a_process_with_status_2_and_no_traceback(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "minprefix", "inspect", "./nowhere"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("minprefix: error: model folder './nowhere' does not exist")


# ---- what train says before and after ----


@pytest.fixture
def fresh(monkeypatch):
    """A note is given once in a process: here it is given again."""
    monkeypatch.setattr("minprefix.errors._given", set())


def lines_of(path, pairs):
    path.write_text("".join(json.dumps({"source": s, "target": t}) + "\n" for s, t in pairs))
    return path


def test_train_shows_the_first_pair_the_frozen_loss_and_two_samples(
    ok, model_dir, data, tmp_path, fresh
):
    out = tmp_path / "run"
    said = ok(*train(model_dir, data, out, "--template", "{source} => {target}!"))
    model = GPT2.load(model_dir)
    prompt, target = (model.encode(t) for t in (PAIRS[0][0] + " =>", " " + PAIRS[0][1] + "!"))
    assert re.search(r"12 examples of \d+ to \d+ tokens \(55 fit\), 6 steps of 10\n", said)
    assert f"the first pair, {len(prompt)} tokens and {len(target) + 1} to predict" in said
    assert f"  source  {PAIRS[0][0]} =>\n  target   {PAIRS[0][1]}!\n" in said
    metrics = json.loads((out / "metrics.json").read_text())
    encoded = encode_pairs(model, read_pairs(data), Template("{source} => {target}!"), 55)
    assert metrics["frozen_loss"] == pytest.approx(mean_loss(model, None, encoded), rel=1e-6)
    prefix = Prefix.load(out, model)
    assert metrics["loss"] == pytest.approx(mean_loss(model, prefix, encoded), rel=1e-6)
    assert f"the frozen model's loss on 12 pairs of --data is {metrics['frozen_loss']:.2f} " in said
    assert f"a blind guess among its {model.config.vocab_size} tokens has" in said
    frozen, trained = (f"{metrics[name]:.4f}" for name in ("frozen_loss", "loss"))
    assert f"loss on 12 pairs: {frozen} of the frozen model, {trained} with the prefix" in said
    samples = json.loads((out / "minprefix.json").read_text())["evaluation"]["samples"]
    assert said.count("  model   ") == 2
    for sample, (source, target) in zip(samples[:2], PAIRS, strict=False):
        shown = " / ".join(sample["prediction"].splitlines()) or "(nothing)"
        assert f"  source  {source}\n  model   {shown}\n  target  {target}\n" in said


def test_a_text_that_the_model_does_not_know_is_said_at_the_start(capsys, fresh):
    model, chance = GPT2.load("tiny"), math.log(1024)
    world = [Pair(*pair, "") for pair in table_to_text(4, "train", 0)]
    foreign = [Pair("Zürich", "Grüezi mitenand, wie gaats?", "")]
    prefix = Prefix.zero(model.config, 1)

    def said_of(pairs):
        encoded = encode_pairs(model, pairs, Template(), model.room())
        read = {"model": model, "probe": encoded, "scored": ("data", None), "prefix": prefix}
        value = outlook.frozen_loss(SimpleNamespace(settings=Settings(steps=1), **read))
        found = re.fullmatch(
            rf"the frozen model's loss on {len(pairs)} pairs? of --data is (.*) a token, (.*) "
            rf"tokens a word; a blind guess among its 1024 tokens has {chance:.2f}\n",
            capsys.readouterr().out,
        )
        assert float(found[1]) == pytest.approx(value, abs=0.005)
        return value, float(found[2])

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        value, a_word = said_of(world)
    assert value < 1
    assert a_word < 2
    with pytest.warns(errors.Note) as caught:
        value, a_word = said_of(foreign)
    assert value > 0.9 * chance
    assert a_word > 3
    assert [str(w.message) for w in caught] == [
        "'tiny' does not know such text, only the small world of `minprefix demo`: a prefix steers "
        "a model, but teaches it no language; give a model that was trained on "
        "such text, for example --model gpt2"
    ]


def test_only_the_model_that_ships_is_said_to_know_its_own_world_alone(
    capsys, model_dir, tmp_path, fresh
):
    another = tmp_path / "tiny"
    shutil.copytree(model_dir, another)
    data = lines_of(tmp_path / "d.jsonl", [("name[A]", "ABC abc")])
    argv = train(another, data, tmp_path / "out", "--steps", 1, "--lr", 1e-9, "--skip-long")
    assert main([str(a) for a in argv]) == 0
    out, err = capsys.readouterr()
    assert f"{str(another)!r} does not know such text: a prefix steers" in err
    assert "give a model that was trained on such text\n" in err  # which may well be GPT-2 itself
    assert f"{data}: 0 of 1 pair left out, too long\n1 example of " in out
    assert ", 1 step of 1 (all)\n" in out
    assert "the frozen model's loss on 1 pair of --data is " in out
    assert "\nloss on 1 pair: " in out


def test_validation_takes_a_sample_that_is_the_same_in_every_run(
    ok, refused, model_dir, data, tmp_path
):
    letters = [(f"name[{a}], food[{b}]", f"{b} {a}") for a in "abcdefgh" for b in "qrstuvwxyz"]
    valid = lines_of(tmp_path / "v.jsonl", letters)
    model = GPT2.load(model_dir)
    encoded = encode_pairs(model, read_pairs(valid), Template(), 55)
    losses = {}
    for name, more in (("a", ["7"]), ("b", ["7", "--seed", "5"]), ("all", ["all"]), ("0", ["0"])):
        out = tmp_path / name
        said = ok(*train(model_dir, data, out, "--valid", valid, "--valid-samples", *more))
        n = 7 if more[0] == "7" else 80
        assert f"validation on {n} of 80 pairs every 100 steps" in said
        assert ("--valid-samples all takes all" in said) == (n == 7)
        options = json.loads((out / "minprefix.json").read_text())["training"]["options"]
        assert options["valid_samples"] == (7 if n == 7 else 0)
        prefix = Prefix.load(out, model)
        losses[name] = json.loads((out / "metrics.json").read_text())["valid_loss"]
        some = [e for e in encoded if n == 80 or e in runs.drawn(encoded, 7)]
        assert losses[name] == pytest.approx(mean_loss(model, prefix, some), rel=1e-5)
    assert losses["all"] == losses["0"]
    assert runs.drawn(encoded, 7) == runs.drawn(encoded, 7) != encoded[:7]
    assert "--valid-samples says on how many pairs --valid is scored" in refused(
        *train(model_dir, data, tmp_path / "no", "--valid-samples", "5")
    )


@pytest.mark.parametrize("text", ["some", "-1", "1.5", ""])
def test_a_sample_of_no_number_is_a_sentence(text, capsys):
    with pytest.raises(SystemExit):
        main(["train", "--out", "x", "--valid-samples", text])
    assert f"{text!r}: expected a whole number from 1, or all" in capsys.readouterr().err


def test_a_run_of_an_earlier_version_resumes_as_it_was(ok, model_dir, data, tmp_path, monkeypatch):
    """It validated on all pairs, and left one out whose last token had no position."""
    letters = [
        (f"name[{a}]", f"{b} {a} {c}") for a in "abcdefg" for b in "rstuvwx" for c in "ABCDE"
    ]
    valid = lines_of(tmp_path / "v.jsonl", letters)
    data.write_text(data.read_text() + "\n" + json.dumps({"source": "x", "target": "y " * 26}))
    argv = train(model_dir, data, tmp_path / "cut", "--valid", valid, "--skip-long")
    with monkeypatch.context() as patch:
        patch.setattr(
            "minprefix.cli.outlook.asked_for",
            lambda *args: replace(asked_for(*args), valid_samples=None),
        )
        patch.setattr(minprefix.train, "_update", lambda *args: signal.raise_signal(signal.SIGINT))
        assert main([str(a) for a in argv]) == 130
    said = ok("train", "--out", tmp_path / "cut", "--resume")
    assert "1 of 13 pairs left out, too long" in said
    assert "validation on 245 of 245 pairs" in said
    assert "valid_samples" not in (tmp_path / "cut" / "minprefix.json").read_text()
    ok("verify", tmp_path / "cut")
    said = ok(*argv, "--force")
    assert "0 of 13 pairs left out" in said
    assert "validation on 200 of 245 pairs" in said


@pytest.mark.parametrize(
    ("pairs", "more", "note"),
    [
        (
            [(f"text {i} of it", f"name[{i % 9}], food[Thai]") for i in range(20)], [],
            "the targets look like records and the sources like sentences",
        ),
        ([("x", "a b"), ("y", "c")], ["--source-column", "target", "--target-column", "source"],
         "are --source-column and --target-column swapped?"),
        ([("x", "a"), ("x", "b")], [], "every source is the same"),
        ([("x", "a"), ("y", "a")], [], "every target is the same"),
        ([("x", "a"), ("y", "b")] * 2, [], "only 2 of 4 pairs differ, the others repeat them"),
        ([("x", "a"), ("y", "b")], ["--valid", "d.jsonl"], "2 of the 2 pairs of --valid are in"),
    ],
    ids=["swapped", "swapped names", "one source", "one target", "repeated", "valid is data"],
)  # fmt: skip
def test_what_seems_odd_is_a_note_and_stops_nothing(
    capsys, model_dir, tmp_path, fresh, monkeypatch, pairs, more, note
):
    monkeypatch.chdir(tmp_path)
    lines_of(tmp_path / "d.jsonl", pairs)
    assert main([str(a) for a in train(model_dir, "d.jsonl", "out", "--steps", 1, *more)]) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if "note: " in line]
    assert sum(note in line for line in said) == 1
    assert len(said) <= 2  # the other says that this model knows no such text


@pytest.mark.parametrize(
    "pairs",
    [
        [(f"name[{i % 9}], food[Thai]", f"text {i} of it") for i in range(20)],
        [(f"text {i} of it", "good" if i % 2 else "bad") for i in range(20)],
        [(f"a review, the number {i}", "this review = kind" if i % 2 else "no") for i in range(20)],
        [(f"what is in row {i}?", f"SELECT a FROM b WHERE c = {i}") for i in range(20)],
        [(f"text {i} of it", f"name[{i}], food[Thai]") for i in range(20)],
        [(f"the word {i}", f"das Wort {i}") for i in range(20)],
    ],
    ids=["records", "labels", "verbose labels", "parses", "one text a record", "translations"],
)
def test_no_note_accuses_what_people_do(capsys, model_dir, tmp_path, fresh, pairs):
    data = lines_of(tmp_path / "d.jsonl", pairs)
    assert main([str(a) for a in train(model_dir, data, tmp_path / "out", "--steps", 1)]) == 0
    notes = [line for line in capsys.readouterr().err.splitlines() if "note: " in line]
    assert all("does not know such text" in line for line in notes)


def test_the_datasets_columns_are_told_from_swapped_ones(e2e):
    pairs = read_pairs(e2e / "devset.csv")
    sources, targets = ({pair[i] for pair in pairs} for i in (0, 1))
    assert outlook.are_swapped(targets, sources)
    assert not outlook.are_swapped(sources, targets)


def test_a_prefix_that_makes_the_model_worse_is_said_and_is_status_1(
    capsys, model_dir, data, tmp_path, monkeypatch
):
    out = tmp_path / "out"
    monkeypatch.setattr(runs, "mean_loss", lambda model, prefix, *_: 9.0 if prefix else 4.0)
    assert main([str(a) for a in train(model_dir, data, out, "--lr", 0.5)]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == (
        "minprefix: the loss is 9.00 with this prefix and 4.00 without one: it makes the model "
        "worse. Train again with a lower --lr (it was 0.5), or look at the data"
    )
    Prefix.load(out, GPT2.load(model_dir))  # it is written all the same


@pytest.mark.parametrize(
    ("before", "after", "status"), [(0.1, 0.5, 0), (0.1, 0.7, 1), (4, 4.9, 0), (4, 5.1, 1)]
)
def test_worse_is_by_half_a_nat_and_by_a_quarter(before, after, status):
    assert worse(before, after, 0.1) == status


@pytest.mark.parametrize("command", ["train", "demo"])
def test_a_loss_that_is_no_number_saves_no_prefix(refused, tmp_path, monkeypatch, command):
    """The last step may be too long without a validation that sees it."""
    few_records(monkeypatch)
    world, out = lines_of(tmp_path / "world.jsonl", table_to_text(4, "train", 0)), tmp_path / "out"
    argv = {"train": train("tiny", world, out), "demo": ["demo", "--out", out]}[command]
    if command == "demo":  # it validates its last step
        monkeypatch.setattr("minprefix.train.mean_loss", lambda *_: 1.0)
    said = refused(*argv, "--steps", 1, "--lr", 1e38)
    assert said == (
        "the loss with the trained prefix is not a finite number, so no prefix was saved in "
        f"{out}: train again with --force and a lower --lr (it was 1e+38) or --clip"
    )
    assert not {"metrics.json", "minprefix.json"} & {path.name for path in out.iterdir()}


@pytest.mark.long
def test_an_lr_of_1000_ends_with_status_1(capsys, tmp_path):
    world = lines_of(tmp_path / "world.jsonl", table_to_text(4, "train", 0))
    argv = train("tiny", world, tmp_path / "out", "--steps", 3, "--lr", 1000)
    assert main([str(a) for a in argv]) == 1
    assert "lower --lr (it was 1000)" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("command", ["train", "demo"])
def test_a_prefix_of_no_slots_trains_nothing_and_is_refused(refused, data, tmp_path, command):
    argv = {
        "train": train("tiny", data, tmp_path / "out"),
        "demo": ["demo", "--out", tmp_path / "out"],
    }
    said = refused(*argv[command], "--prefix-length", 0)
    assert "the prefix has 0 slots in 4 layers: there is nothing to train" in said
    assert not (tmp_path / "out").exists()


# ---- Ctrl-C, wherever it comes ----

BEFORE, AFTER = "minprefix: stopped", "go on with: minprefix train --out "


@pytest.fixture(scope="module")
def whole(model_dir, tmp_path_factory):
    """A command, and the run that it makes where nothing stops it."""
    folder = tmp_path_factory.mktemp("whole")
    data = lines_of(folder / "data.jsonl", PAIRS * 4)
    valid = lines_of(folder / "valid.jsonl", [("name[C]", "C is a pub.")])
    argv = [str(a) for a in train(model_dir, data, folder / "run", "--valid", valid)]
    assert main(argv) == 0
    return argv, folder / "run"


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("minprefix.model.GPT2.load", BEFORE),
        ("minprefix.model.GPT2.encode_many", BEFORE),
        ("minprefix.model.GPT2.fingerprint", BEFORE),
        ("minprefix.runs.mean_loss", BEFORE),
        ("minprefix.train.batch_gradient", AFTER),
        ("minprefix.train.mean_loss", AFTER),
        ("minprefix.show.training.loss_picture", AFTER),
        ("minprefix.runs.loss", AFTER),
        ("minprefix.prefixes.verify.mean_loss", AFTER),
        ("minprefix.prefixes.verify.predict", AFTER),
        ("minprefix.storage.artifact.write_together", AFTER),
    ],
)
def test_ctrl_c_says_how_to_go_on_wherever_it_comes(
    ok, capsys, whole, tmp_path, monkeypatch, where, said
):
    argv, whole = [*whole[0], "--out", str(tmp_path / "cut")], whole[1]

    def pressed(*args, **kwargs):
        if where != "minprefix.runs.loss" or args[1] is not None:
            signal.raise_signal(signal.SIGINT)
            pytest.fail("Ctrl-C is not answered at once")
        return real(*args, **kwargs)

    real = runs.loss
    with monkeypatch.context() as patch:
        patch.setattr(where, pressed)
        assert main(argv) == 130
    last = capsys.readouterr().err.splitlines()[-1]
    assert said in last
    if said == BEFORE:
        assert last == BEFORE
        assert not any((tmp_path / "cut").glob("*"))
        ok(*argv)
    else:
        ok(*shlex.split(last.partition("go on with: minprefix ")[2]))
    names = {"adapter_model.safetensors", "state.safetensors", "metrics.json", "loss.png"}
    for name in names:
        assert (tmp_path / "cut" / name).read_bytes() == (whole / name).read_bytes(), name


def test_ctrl_c_before_a_resumed_run_begins_says_how_to_go_on_and_not_what_force_would_replace(
    capsys, whole, monkeypatch, tmp_path
):
    argv, out = [*whole[0], "--out", str(tmp_path / "cut")], tmp_path / "cut"
    shutil.copytree(whole[1], out)
    go_on = f"minprefix: stopped, all of step 6 is saved; go on with: minprefix train --out {out}"
    for more, said in ((["--resume"], f"{go_on} --resume"), (["--force"], BEFORE)):
        with monkeypatch.context() as patch:
            patch.setattr(runs, "mean_loss", lambda *_: signal.raise_signal(signal.SIGINT))
            assert main([*argv, *more]) == 130
        assert capsys.readouterr().err.splitlines()[-1] == said
    for path in whole[1].iterdir():
        assert (out / path.name).read_bytes() == path.read_bytes()


def test_ctrl_c_while_the_demo_scores_says_how_to_go_on(capsys, monkeypatch, tmp_path):
    from minprefix.cli import demo

    out, real, calls = tmp_path / "demo", demo.score, []
    few_records(monkeypatch)

    def pressed(*args):
        calls.append(1)
        return signal.raise_signal(signal.SIGINT) if len(calls) == 2 else real(*args)

    monkeypatch.setattr(demo, "score", pressed)
    assert main(["demo", "--out", str(out), "--steps", "1"]) == 130
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.endswith(f"step 1 is saved; go on with: minprefix demo --out {out} --resume")


# ---- to start from a trained prefix ----


def started_from(kind, model_dir, data, folder, ok):
    """A trained prefix to start from, and what `train` needs for it."""
    how = {
        "flat": ["--prefix-length", 3],
        "mlp": ["--prefix-length", 3, "--mlp-hidden", 4],
        "odd": ["--prefix-length", 3, "--layers", "1", "--position-offset", "0"],
    }[kind]
    ok(*train(model_dir, data, folder, *how))
    more = ["--mlp-hidden", 4] if kind == "mlp" else []
    return ["--init", "prefix", "--init-prefix", folder, *more]


@pytest.mark.parametrize("kind", ["flat", "mlp", "odd"])
def test_training_starts_from_the_very_numbers_of_a_trained_prefix(
    ok, model_dir, data, tmp_path, monkeypatch, kind
):
    start = started_from(kind, model_dir, data, tmp_path / "first", ok)
    seen = {}
    real = runs.train

    def look(model, prefix, *rest):
        seen["prefix"] = type(prefix)
        seen.update({name: a.copy() for name, a in prefix.parameters.items()})
        seen["where"] = (prefix.layers, prefix.subset, prefix.position_offset)
        return real(model, prefix, *rest)

    monkeypatch.setattr(runs, "train", look)
    before = {p.name: p.read_bytes() for p in (tmp_path / "first").iterdir()}
    ok(*train(model_dir, data, tmp_path / "second", *start))
    load = MLPPrefix.load if kind == "mlp" else Prefix.load
    first, second = load(tmp_path / "first"), load(tmp_path / "second")
    assert seen["prefix"] is type(first)
    assert seen["where"] == (first.layers, first.subset, first.position_offset)
    for name, a in first.parameters.items():
        np.testing.assert_array_equal(seen[name], a)
    assert any((second.parameters[n] != a).any() for n, a in first.parameters.items())
    assert {p.name: p.read_bytes() for p in (tmp_path / "first").iterdir()} == before
    about = json.loads((tmp_path / "second" / "minprefix.json").read_text())
    assert about["training"]["init"]["init"] == "prefix"
    assert about["training"]["init"]["init_prefix"] == str(tmp_path / "first")


def test_a_flat_prefix_may_start_from_what_an_mlp_folds_to_or_what_peft_wrote(
    ok, model_dir, data, tmp_path
):
    started_from("mlp", model_dir, data, tmp_path / "mlp", ok)
    (tmp_path / "mlp" / "minprefix.json").unlink()
    start = ["--init", "prefix", "--init-prefix", tmp_path / "mlp"]
    ok(*train(model_dir, data, tmp_path / "flat", *start, "--lr", "1e-30"))
    before, after = (Prefix.load(tmp_path / name).kv for name in ("mlp", "flat"))
    np.testing.assert_array_equal(after, before)


@pytest.mark.parametrize("kind", ["flat", "mlp"])
def test_a_run_that_started_from_a_prefix_resumes_to_the_same_bytes(
    ok, model_dir, data, tmp_path, monkeypatch, kind
):
    import minprefix.train

    start = started_from(kind, model_dir, data, tmp_path / "first", ok)
    ok(*train(model_dir, data, tmp_path / "whole", *start))
    real, steps = minprefix.train._update, []

    def stop_after_three(*args):
        steps.append(1)
        if len(steps) == 4:
            signal.raise_signal(signal.SIGINT)
        return real(*args)

    monkeypatch.setattr(minprefix.train, "_update", stop_after_three)
    argv = train(model_dir, data, tmp_path / "cut", *start)
    assert main([str(a) for a in argv]) == 130
    assert not (tmp_path / "cut" / "minprefix.json").exists()
    ok("train", "--out", tmp_path / "cut", "--resume")
    names = ["adapter_model.safetensors"] + ["mlp.safetensors"] * (kind == "mlp")
    for name in names:
        whole, cut = ((tmp_path / run / name).read_bytes() for run in ("whole", "cut"))
        assert whole == cut


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--prefix-length", 5], "--prefix-length is 5, the prefix in "),
        (["--layers", "0"], "--layers is [0], the prefix in "),
        (["--position-offset", 0], "--position-offset is 0, the prefix in "),
        (["--mlp-hidden", 4], "holds no MLP: the prefix is flat, or PEFT wrote it without"),
        (["--init-std", 1], "--init-std belongs to --init normal, and --init is prefix"),
        (["--init-text", "a"], "--init-text belongs to --init text, and --init is prefix"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_contradicts_the_prefix_to_start_from_is_refused(
    ok, refused, model_dir, data, tmp_path, more, sentence
):
    start = started_from("flat", model_dir, data, tmp_path / "first", ok)
    assert sentence in refused(*train(model_dir, data, tmp_path / "out", *start, *more))
    assert not (tmp_path / "out").exists()
    same = ["--prefix-length", 3, "--position-offset", 3]
    ok(*train(model_dir, data, tmp_path / "out", *start, *same))


@pytest.mark.parametrize("written", ["first", "first/../first"])
def test_a_run_does_not_take_the_place_of_the_prefix_that_it_starts_from(
    ok, refused, model_dir, data, tmp_path, written
):
    start = started_from("flat", model_dir, data, tmp_path / "first", ok)
    before = {p.name: p.read_bytes() for p in (tmp_path / "first").iterdir()}
    out = f"{tmp_path}/{written}"
    sentence = refused(*train(model_dir, data, out, *start, "--force"))
    assert "is the folder of --init-prefix, which --resume reads again" in sentence
    assert {p.name: p.read_bytes() for p in (tmp_path / "first").iterdir()} == before


def test_a_start_that_is_missing_of_another_base_or_of_another_width_is_refused(
    ok, refused, model_dir, data, tmp_path
):
    def said(*options):
        return refused(*train(model_dir, data, tmp_path / "out", *options))

    assert "--init prefix needs --init-prefix: the folder of" in said("--init", "prefix")
    assert "belongs to --init prefix, and --init is normal" in said("--init-prefix", "x")
    assert "'gone' does not exist" in said("--init", "prefix", "--init-prefix", "gone")
    model = GPT2.load(model_dir)
    other = random_model(model.config, seed=9, dtype="float32")
    Prefix.normal(model.config, 3).save(tmp_path / "p", other)
    sentence = said("--init", "prefix", "--init-prefix", tmp_path / "p")
    assert "was trained on another base" in sentence
    assert other.fingerprint()[:12] in sentence
    assert model.fingerprint()[:12] in sentence
    start = started_from("mlp", model_dir, data, tmp_path / "mlp", ok)
    assert f"--mlp-hidden is 5, the prefix in {tmp_path / 'mlp'} has 4: give 4" in said(
        *start[:-1], 5
    )
    assert not (tmp_path / "out").exists()


# ---- bad input: the model ----


def test_bad_model_folders_are_refused(refused, model_dir, data, tmp_path):
    def said(model):
        return refused(*train(model, data, tmp_path / "out"))

    assert "'./gone' does not exist" in said("./gone")
    (tmp_path / "empty").mkdir()
    assert "has no config.json" in said(tmp_path / "empty")
    bad = tmp_path / "bad"
    shutil.copytree(model_dir, bad)
    config = json.loads((bad / "config.json").read_text())

    def with_config(**change):
        (bad / "config.json").write_text(json.dumps(config | change))
        return said(bad)

    assert "activation_function is 'relu', minprefix implements 'gelu_new'" in with_config(
        activation_function="relu"
    )
    assert "unknown key 'rotary'" in with_config(rotary=True)
    assert "'h.2.ln_1.weight' is missing" in with_config(n_layer=3)
    assert "holds 'h.1.attn.c_attn.bias', 'h.1" in with_config(n_layer=1)
    assert "tensor 'wpe.weight' has shape (64, 16)" in with_config(n_positions=65)
    (bad / "config.json").write_text(json.dumps(config))
    weights = bad / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-7])
    assert "is not a whole safetensors file" in said(bad)
    weights.write_bytes(b"\xff" * 100)
    assert "is not a whole safetensors file" in said(bad)
    weights.write_bytes(whole)
    tensors = {name: a.copy() for name, a in load_file(weights).items()}
    tensors["transformer.h.0.mlp.c_fc.bias"][2] = np.nan
    save_file(tensors, weights)
    assert "weight 'h.0.mlp.c_fc.bias'" in said(bad)
    weights.write_bytes(whole)
    (bad / "tokenizer.json").unlink()
    assert "has no tokenizer: put tokenizer.json" in said(bad)
    assert not (tmp_path / "out").exists()  # nothing is left behind by a run that never began


# ---- bad input: the data ----


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("d.jsonl", b"", "d.jsonl holds no pairs: expected at least one"),
        ("d.csv", b"", "d.csv holds no pairs: expected at least one"),
        ("d.csv", b"source,target\n", "d.csv holds no pairs"),
        ("d.csv", b"source,target,target\na,b,c\n", "d.csv has 2 columns 'target': expected one"),
        ("d.csv", b"mr,text\na,b\n", "has no column 'source', only 'mr', 'text'"),
        ("d.csv", b"source,target\na,b\na\n", "d.csv, line 3: 1 field, the header names 2"),
        ("d.jsonl", b'{"source": "a", "target": "b"}\nnonsense\n', "d.jsonl, line 2: not JSON"),
        ("d.jsonl", b'{"source": "a"}\n', "d.jsonl, line 1: no field 'target'"),
        (
            "d.jsonl",
            b'{"source": "a", "target": 3}\n',
            "d.jsonl, line 1: source and target must be",
        ),
        ("d.csv", b"source,target\na,caf\xe9\n", "d.csv, line 2: byte 0xe9 is not UTF-8"),
        ("d.txt", b"a\tb\n", "expected a name that ends in .jsonl, .csv or .tsv"),
        ("d.csv", b"source,target\na,\n", "d.csv, line 2: the target is empty"),
        (
            "d.csv",
            b"source,target\na,b\nx," + b"y " * 60,
            "d.csv, line 3: 123 tokens, the model has room for 55 after the prefix: shorten the "
            "line, or leave such lines out",
        ),
    ],
)
def test_bad_data_files_are_refused(refused, model_dir, tmp_path, name, content, sentence):
    path = tmp_path / name
    path.write_bytes(content)
    assert sentence in refused(*train(model_dir, path, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_pairs_that_are_too_long_are_left_out_where_that_is_asked_for(
    ok, refused, model_dir, data, tmp_path
):
    long = json.dumps({"source": "x", "target": "y " * 60})
    data.write_text(data.read_text() + "\n" + long)
    assert "leave such lines out (train and evaluate do so" in refused(
        *train(model_dir, data, tmp_path / "a")
    )
    said = ok(*train(model_dir, data, tmp_path / "a", "--skip-long"))
    assert "1 of 13 pairs left out, too long" in said
    assert "12 examples" in said
    data.write_text(long)
    assert "every pair is longer than the 55 tokens of room: shorten the pairs" in refused(
        *train(model_dir, data, tmp_path / "b", "--skip-long")
    )


def test_a_source_of_200_000_characters_can_be_left_out_of_a_table(
    ok, refused, model_dir, tmp_path
):
    data, out = tmp_path / "d.csv", tmp_path / "out"
    rows = [f'"{s}","{t}"' for s, t in PAIRS * 2]
    data.write_text("\n".join(["source,target", *rows, f"{'y' * 200_000},z"]), "utf-8")
    evaluate = ["evaluate", "--model", model_dir, "--data", data, "--out", tmp_path / "e"]
    assert "line 8: 200003 tokens, the model has room" in refused(*train(model_dir, data, out))
    assert "line 8: 200001 tokens from position 0 leave room for 0 new" in refused(*evaluate)
    assert not (tmp_path / "e").exists()
    assert "1 of 7 pairs" in ok(*train(model_dir, data, out, "--skip-long"))
    said = ok(*evaluate, "--prefix", out, "--skip-long")
    assert said.startswith("3 sources, 6 references\n1 source too long, left out\n")
    ok("verify", out, "--model", model_dir)
    ok("prune", out, "--model", model_dir, "--keep", 2, "--data", data, "--out", tmp_path / "p")


def test_a_pair_fits_where_generate_can_write_it_and_one_token_more_does_not(
    ok, refused, model_dir, tmp_path
):
    out, path, e = tmp_path / "run", tmp_path / "d.jsonl", tmp_path / "e"
    path.write_text(json.dumps({"source": "x", "target": "y " * 26}))  # 55 tokens with the end
    longer = tmp_path / "longer.jsonl"
    longer.write_text(json.dumps({"source": "x", "target": "y " * 26 + "y"}))
    call = ["evaluate", "--model", model_dir, "--out", e, "--force", "--prefix", out, "--data"]
    write = ["generate", "--model", model_dir, "--prefix", out, "--prompt", "x"]
    ok(*train(model_dir, path, out))
    ok(*call, path)
    ok("verify", out)
    ok(*write, "--max-new-tokens", 53)  # all but the prompt, "x" and a line break
    for said in (refused(*train(model_dir, longer, tmp_path / "b")), refused(*call, longer)):
        assert "56 tokens, the model has room for 55 after the prefix" in said
        assert "train with --position-offset 0" in said
    ok(*train(model_dir, longer, tmp_path / "b", "--position-offset", 0))


def test_generate_and_evaluate_write_no_more_than_there_is_room_for(
    ok, capsys, fresh, model_dir, tmp_path
):
    data, e = tmp_path / "d.jsonl", tmp_path / "e"
    data.write_text(json.dumps({"source": "x", "target": "y"}))
    how = ["--model", model_dir, "--template", "{source}{target}", "--forbidden", 0]
    wanted = ok("generate", *how, "--prompt", "x", "--max-new-tokens", 64)  # all there is room for
    assert main([str(a) for a in ("generate", *how, "--prompt", "x", "--max-new-tokens", 65)]) == 0
    out, err = capsys.readouterr()
    assert out == wanted
    assert err == (
        "minprefix: note: 1 prompt leaves room for fewer new tokens than --max-new-tokens 65\n"
    )
    said = ok("evaluate", *how, "--data", data, "--out", e, "--max-new-tokens", 65)
    assert "1 prediction reached --max-new-tokens 65, or the last position, and was cut" in said
    assert objects_in(e / "predictions.jsonl")[0]["prediction"] == wanted.removesuffix("\n")


def test_a_missing_data_file_is_refused(refused, model_dir, tmp_path):
    said = refused(*train(model_dir, tmp_path / "gone.csv", tmp_path / "out"))
    assert "cannot read the data file" in said
    assert "gone.csv: No such file" in said


# ---- bad input: prefixes, runs, options ----


def test_a_prefix_of_another_base_is_refused_with_both_fingerprints(refused, model_dir, tmp_path):
    model = GPT2.load(model_dir)
    other = random_model(model.config, seed=9, dtype="float32")
    Prefix.normal(model.config, 3).save(tmp_path / "p", other)
    said = refused("generate", "--model", model_dir, "--prefix", tmp_path / "p", "--prompt", "name")
    assert "was trained on another base" in said
    assert other.fingerprint()[:12] in said
    assert model.fingerprint()[:12] in said


def test_an_output_folder_that_holds_a_run_is_refused(ok, refused, model_dir, data, tmp_path):
    out = tmp_path / "run"
    ok(*train(model_dir, data, out))
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    said = refused(*train(model_dir, data, out))
    assert f"{out} already holds a run" in said
    assert "--resume" in said
    assert "--force" in said
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before
    call = ["evaluate", "--model", model_dir, "--data", data, "--out", out]
    for force in ([], ["--force"]):  # its metrics.json says how the training ended
        said = refused(*call, *force)
        assert "whose metrics.json an evaluation would replace: choose another --out" in said
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before


STRANGERS = {
    "a website": {"index.html": "<p>", "samples.md": "# of cloth"},
    "another's results": {"metrics.json": '{"about": {"author": "me"}}', "log.jsonl": "{}"},
    "another's adapter": {"adapter_config.json": '{"peft_type": "LORA"}', "loss.png": ""},
    "another's state": {"state.safetensors": "theirs", "predictions.jsonl": ""},
    "folders": {"photos/1.jpg": ""},
    "hidden files": {".ssh/id": "", ".profile": ""},
}


def test_a_file_in_the_place_of_out_is_refused_before_any_work(tmp_path, capsys):
    data = tmp_path / "pairs.csv"
    data.write_text("source,target\na,b\n", encoding="utf-8")
    before = data.read_bytes()
    assert main(["train", "--data", str(data), "--out", str(data), "--force"]) == 2
    out, err = capsys.readouterr()
    assert f"{data} is a file: expected a folder for --out" in err
    assert out == ""
    assert data.read_bytes() == before


def test_inspect_says_what_a_folder_has_to_hold(tmp_path, capsys):
    assert main(["inspect", str(tmp_path)]) == 2
    assert "holds neither a prefix nor a model: expected minprefix.json" in capsys.readouterr().err


@pytest.mark.parametrize("of", STRANGERS)
def test_no_command_writes_into_a_strangers_folder_with_force_neither(
    refused, model_dir, data, tmp_path, of
):
    out, prefix = tmp_path / "theirs", tmp_path / "p"
    for name, text in STRANGERS[of].items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text(text)
    model = GPT2.load(model_dir)
    Prefix.normal(model.config, 3).save(prefix, model)
    to = ["--out", out]
    for argv in (
        train(model_dir, data, out),
        ["demo", *to],
        ["evaluate", "--model", model_dir, "--data", data, *to],
        ["export", prefix, "--to", "peft", *to],
        ["export", prefix, "--to", "adapters", *to],
        ["import", prefix, "--model", model_dir, *to],
        ["combine", prefix, "--how", "average", *to],
        ["prune", prefix, "--keep", 1, "--data", data, *to],
    ):
        for force in ([], ["--force"]):
            said = refused(*argv, *force)
            assert f"{out} holds '{min(STRANGERS[of]).partition('/')[0]}'" in said
            assert "no run of minprefix: choose a new or an empty folder for --out" in said
            assert ("--force replaces what minprefix wrote" in said) == bool(force)
    held = {str(p.relative_to(out)): p.read_text() for p in out.rglob("*") if p.is_file()}
    assert held == STRANGERS[of]
    assert "holds other things" in refused("vectors", "write", out)


def test_what_a_kill_or_a_desktop_leaves_is_an_empty_folder(ok, model_dir, data, tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    for name in (".state.safetensors.tmp", ".DS_Store", ".gitkeep"):
        (out / name).write_bytes(b"")
    ok(*train(model_dir, data, out))


def test_force_replaces_each_thing_that_minprefix_wrote(ok, model_dir, data, tmp_path):
    out, run = tmp_path / "out", tmp_path / "run"
    ok(*train(model_dir, data, run))
    for argv in (
        ["evaluate", "--model", model_dir, "--data", data],
        ["export", run, "--to", "peft"],
        ["import", tmp_path / "peft", "--model", model_dir],
        train(model_dir, data, out),
    ):
        for force in ([], ["--force"]):
            ok(*argv, "--out", out, *force)
        if argv[0] == "export":
            shutil.copytree(out, tmp_path / "peft")
        shutil.rmtree(out)
    # a run that was killed before it ended
    ok(*train(model_dir, data, out))
    (out / "minprefix.json").unlink()
    (out / "adapter_config.json").unlink()
    ok(*train(model_dir, data, out, "--force"))


def test_resuming_what_is_not_there_or_another_run_is_refused(
    ok, refused, model_dir, data, tmp_path
):
    assert "holds no run to resume" in refused("train", "--out", tmp_path / "none", "--resume")
    out = tmp_path / "run"
    ok(*train(model_dir, data, out))
    said = refused("train", "--out", out, "--resume", "--lr", "0.5")
    assert f"cannot resume {out}: --lr was 0.005 and is now 0.5: leave it out to go on" in said
    assert "--init-prefix" not in said
    said = refused("train", "--out", out, "--resume", "--mlp-hidden", "3")
    assert "--mlp-hidden was not given and is now 3" in said
    for option, was in (("--steps", "was 6"), ("--epochs", "was not given")):
        said = refused("train", "--out", out, "--resume", option, "7")
        assert f"{option} {was} and is now 7: leave it out to go on with the run as it" in said
        assert "start another run from this one when it has ended: --init prefix --init-" in said
        assert f"--init-prefix {out}" in said
    for same in (["--steps", 6], ["--lr", "5e-3"], ["--prefix-length", 10], ["--init", "normal"]):
        ok("train", "--out", out, "--resume", *same)
    data.write_text(data.read_text() + '\n{"source": "new", "target": "line"}')
    said = refused("train", "--out", out, "--resume")
    assert f"cannot resume {out}: --data is another file, or has changed: data_sha256 was" in said
    assert "not started by `minprefix demo`" in refused("demo", "--out", out, "--resume")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--init-std", "1", "--init", "zero"], "--init-std belongs to --init normal"),
        (["--init-text", "a"], "--init-text belongs to --init text, and --init is normal"),
        (["--init", "text"], "--init text needs --init-text"),
        (["--epochs", "0"], "--epochs is 0: expected at least 1"),
        (["--eval-every", "3"], "--eval-every says how often --valid is scored"),
        (["--init", "uniform", "--init-bound", "inf"], "bound is inf: expected 0 or more, finite"),
        (["--position-offset", "64"], "position_offset is 64, model"),
        (["--template", "{source} {x} {target}"], "has {x}: only {source} and {target} are filled"),
        (["--init", "network"], "--init network is the MLP's own start: give --mlp-hidden"),
        (
            ["--init", "text", "--init-text", "food", "--prefix-length", "63"],
            "tokens and --prefix-length is 63: leave out --prefix-length",
        ),
        (["--prefix-length", "-1"], "prefix length is -1: expected 0 or more"),
        (["--prefix-length", "64"], "prefix length is 64, the model has 64 positions"),
        (["--layers", "0,2"], "layer 2 does not exist: the model has layers 0 to 1"),
        (["--layers", "1,0"], "layers [1, 0]: expected 2 different ones from 0, ascending"),
        (["--position-offset", "-2"], "position_offset is -2: expected 0 or more"),
        (["--mlp-hidden", "0"], "the MLP has a hidden width of 0: expected at least 1"),
        (["--template", "{source}"], "template '{source}': expected {source} once and after it"),
        (["--batch-size", "0"], "batch_size is 0: expected a whole number from 1"),
        (["--lr", "0"], "lr is 0.0: expected a positive number"),
        (["--lr", "nan"], "lr is nan: expected a positive number"),
        (["--warmup", "6"], "warmup is 6 steps: expected 0 or more, fewer than the 6 of the run"),
        (["--dropout", "1"], "dropout is 1.0: expected 0 or more, below 1"),
        (["--clip", "-1"], "clip is -1.0: expected a positive number"),
        (["--seed", "-1"], "seed is -1: expected 0 or more"),
        (["--source-column", "mr"], "no field 'mr', only 'source', 'target'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_options_are_refused(refused, model_dir, data, tmp_path, options, sentence):
    assert sentence in refused(*train(model_dir, data, tmp_path / "out", *options))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--top-k", "3"], "top_k and top_p restrict sampling: give a temperature as well"),
        (["--temperature", "0"], "temperature is 0.0: expected a finite number above 0"),
        (["--temperature", "1", "--top-p", "1.5"], "top_p is 1.5: expected above 0, at most 1"),
        (["--seed", "1"], "--seed decides what is sampled: give --temperature as well"),
        (["--length-norm", "2"], "--length-norm compares the texts of a beam search"),
        (["--length-norm", "nan", "--beams", "2"], "length_norm is nan: expected a finite number"),
        (["--temperature", "inf"], "temperature is inf: expected a finite number above 0"),
        (["--raw", "--template", "{source} {target}"], "--raw takes the prompt as it is"),
        (["--template", ""], "template '': expected {source} once"),
        (["--beams", "0"], "beams is 0: expected at least 1"),
        (["--beams", "2", "--temperature", "1"], "beam search does not sample"),
        (["--max-new-tokens", "0"], "max_new_tokens is 0: expected at least 1"),
        (["--seed", "-1", "--temperature", "1"], "seed is -1: expected 0 or more"),
        (["--forbidden", "99999"], "forbidden token 99999 lies outside the vocabulary"),
        (["--prefix", "gone"], "prefix folder 'gone' does not exist"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_decoding_options_are_refused(refused, model_dir, options, sentence):
    assert sentence in refused("generate", "--model", model_dir, "--prompt", "name", *options)


def test_a_loss_that_turns_nan_stops_and_keeps_the_last_good_state(
    refused, model_dir, data, tmp_path, monkeypatch
):
    import minprefix.train

    real = minprefix.train.batch_gradient

    def explode(model, prefix, chosen, settings, step):
        loss, dkv = real(model, prefix, chosen, settings, step)
        return (float("nan") if step == 3 else loss), dkv

    monkeypatch.setattr(minprefix.train, "batch_gradient", explode)
    said = refused(*train(model_dir, data, tmp_path / "out", "--save-every", 2))
    assert "the loss became nan at step 4: stopped" in said
    tensors = load_file(tmp_path / "out" / "state.safetensors")
    assert all(np.isfinite(a).all() for a in tensors.values())


def test_a_refused_demo_or_run_keeps_the_old_one(ok, refused, model_dir, data, tmp_path):
    out = tmp_path / "run"
    ok(*train(model_dir, data, out))
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    assert "steps is 0" in refused("demo", "--out", out, "--force", "--steps", "0")
    assert "lr is -1.0" in refused("demo", "--out", out, "--force", "--lr", "-1")
    assert "lr is -1.0" in refused(*train(model_dir, data, out, "--force", "--lr", "-1"))
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before


def test_parameters_that_overflow_in_the_last_step_are_not_saved(
    refused, model_dir, data, tmp_path
):
    said = refused(*train(model_dir, data, tmp_path / "out", "--lr", "1e300"))
    assert "became" in said
    tensors = load_file(tmp_path / "out" / "state.safetensors")
    assert all(np.isfinite(a).all() for a in tensors.values())
    assert not (tmp_path / "out" / "adapter_model.safetensors").exists()


def test_scores_that_json_has_no_number_for_are_a_sentence(refused, model_dir, data, tmp_path):
    model, out = GPT2.load(model_dir), tmp_path / "e"
    prefix = Prefix.zero(model.config, 2)
    prefix.kv[..., ::2], prefix.kv[..., 1::2] = 3e38, -3e38
    prefix.save(tmp_path / "p", model)
    call = ["evaluate", "--model", model_dir, "--data", data, "--out", out]
    said = refused(*call, "--prefix", tmp_path / "p")
    assert f"the loss with {tmp_path / 'p'} is nan nats a token, and no metrics.json" in said
    assert {p.name for p in out.iterdir()} == {"predictions.jsonl"}


@pytest.mark.parametrize("command", ["--out", "--prefix"])
def test_a_name_that_no_file_can_have_is_a_sentence(refused, model_dir, data, command):
    long = "x" * 300
    if command == "--out":
        said = refused(*train(model_dir, data, long))
    else:
        said = refused("generate", "--model", model_dir, "--prefix", long, "--prompt", "name")
    assert "File name too long" in said


def test_data_that_json_cannot_hold_is_a_sentence(refused, model_dir, tmp_path):
    path = tmp_path / "d.jsonl"
    path.write_text("[" * 100_000)
    assert "d.jsonl, line 1: not JSON" in refused(*train(model_dir, path, tmp_path / "out"))
    path.write_text('{"source": ' + "1" * 6000 + "}")
    assert "d.jsonl, line 1: not JSON" in refused(*train(model_dir, path, tmp_path / "out"))


def test_text_that_is_not_utf_8_is_a_sentence(refused, model_dir):
    said = refused("generate", "--model", model_dir, "--prompt", "name\udcff")
    assert r"text 'name\udcff' is not UTF-8" in said


def test_inspect_finds_nan_in_a_model(refused, model_dir, tmp_path):
    bad = tmp_path / "bad"
    shutil.copytree(model_dir, bad)
    tensors = {name: a.copy() for name, a in load_file(bad / "model.safetensors").items()}
    tensors["transformer.h.1.ln_1.bias"][0] = np.nan
    save_file(tensors, bad / "model.safetensors")
    assert "weight 'h.1.ln_1.bias'" in refused("inspect", bad)


def test_a_config_that_the_weights_cannot_fill_is_refused_at_once(refused, model_dir, tmp_path):
    bad = tmp_path / "bad"
    shutil.copytree(model_dir, bad)
    config = json.loads((bad / "config.json").read_text())
    (bad / "config.json").write_text(json.dumps(config | {"n_layer": 10**9}))
    assert "tensor 'h.2.ln_1.weight' is missing" in refused("inspect", bad)


def test_an_end_token_outside_the_vocabulary_is_a_note(model_dir, tmp_path, capsys):
    odd = tmp_path / "odd"
    shutil.copytree(model_dir, odd)
    config = json.loads((odd / "config.json").read_text())
    (odd / "config.json").write_text(json.dumps(config | {"eos_token_id": 5000}))
    assert main(["inspect", str(odd)]) == 0
    said = capsys.readouterr().err
    assert said.startswith(
        f"minprefix: note: {odd / 'config.json'}: eos_token_id 5000 lies outside"
    )
    assert said.endswith("it has no effect\n")
    assert said.count("\n") == 1


def test_evaluate_leaves_long_pairs_out_of_the_loss_where_asked_and_says_what_was_cut(
    ok, refused, model_dir, tmp_path
):
    data = tmp_path / "d.jsonl"
    lines = [{"source": "x", "target": "y"}, {"source": "a", "target": "y " * 80}]
    data.write_text("\n".join(map(json.dumps, lines)))
    call = ["evaluate", "--model", model_dir, "--data", data, "--max-new-tokens", 3]
    assert "line 2: " in refused(*call, "--out", tmp_path / "a")
    said = ok(*call, "--out", tmp_path / "a", "--skip-long")
    assert "1 pair too long, left out of the loss" in said
    scores = json.loads((tmp_path / "a" / "metrics.json").read_text())
    assert scores["about"]["pairs_left_out_of_loss"] == 1
    assert scores["about"]["sources_left_out"] == 0
    cut = scores["about"]["cut_at_max_new_tokens"]
    assert cut == 2
    assert "2 predictions reached --max-new-tokens 3, or the last position, and were cut" in said


def test_a_damaged_log_or_state_is_no_traceback(ok, refused, model_dir, data, tmp_path):
    out = tmp_path / "run"
    ok(*train(model_dir, data, out))
    for damage in (b"5\n", b"{}\n", b"\xff\xfe\n", b""):
        (out / "log.jsonl").write_bytes(damage)
        ok("train", "--out", out, "--resume")
    state = load_file(out / "state.safetensors")
    from safetensors import safe_open

    with safe_open(out / "state.safetensors", "np") as f:
        metadata = f.metadata()
    for change in ({"m.kv": state["m.kv"][:1]}, {"m.other": state["m.kv"]}):
        save_file({**state, **change}, out / "state.safetensors", metadata)
        assert "do not fit the prefix: damaged" in refused("train", "--out", out, "--resume")
    save_file(state, out / "state.safetensors", {"minprefix": '{"run": 3, "state": {}}'})
    assert "is not the state of a run" in refused("train", "--out", out, "--resume")


def test_evaluate_reports_slot_errors_on_the_tiny_world_only(ok, model_dir, data, tmp_path):
    world = tmp_path / "world.jsonl"
    pairs = table_to_text(2, "test", 0)
    world.write_text("".join(json.dumps({"source": s, "target": t}) + "\n" for s, t in pairs))
    options = ["--model", "tiny", "--max-new-tokens", 2]
    said = ok("evaluate", *options, "--data", world, "--out", tmp_path / "a")
    assert "slot_error_rate" in said
    said = ok("evaluate", *options, "--data", data, "--out", tmp_path / "b", "--limit", 2)
    assert "slot_error_rate" not in said
    assert said.startswith("2 sources, 8 references")


def test_evaluate_says_that_no_prediction_shows_the_special_tokens_of_a_reference(
    model_dir, data, tmp_path, capsys
):
    special = tmp_path / "special.jsonl"
    targets = ("food<|endoftext|>name", "food", "<|endoftext|>", "name")
    special.write_text("".join(json.dumps({"source": "a", "target": t}) + "\n" for t in targets))

    def said(data):
        call = ["evaluate", "--model", model, "--data", data, "--max-new-tokens", 1, "--force"]
        assert main([str(a) for a in (*call, "--out", tmp_path / "e")]) == 0
        return [line for line in capsys.readouterr().err.splitlines() if "note" in line]

    model = model_dir
    assert said(special) == [
        "minprefix: note: 2 of 4 references have special tokens ('<|endoftext|>'), which "
        "predictions are shown without: these never match"
    ]
    assert said(data) == []
    model = shutil.copytree(model_dir, tmp_path / "m")  # one that reads them as any other text
    (model / "tokenizer_config.json").write_text('{"split_special_tokens": true}')
    assert said(special) == []


def test_a_note_is_one_line_on_stderr_said_once_and_other_warnings_are_as_they_were(
    monkeypatch, capsys
):
    def run(args):
        for _ in range(2):
            errors.note("a tensor is left out")
        warnings.warn("of a library", UserWarning, stacklevel=1)
        return 0

    monkeypatch.setattr("minprefix.cli.view.run", run)
    with pytest.warns(UserWarning, match="^of a library$") as others:
        assert main(["view", "--model", "m", "--prompt", "p", "--out", "x.html"]) == 0
    assert len(others) == 1
    assert capsys.readouterr().err == "minprefix: note: a tensor is left out\n"


def test_a_note_is_a_warning_to_a_library_user_and_no_error_to_the_command_line(
    monkeypatch, capsys
):
    with pytest.warns(errors.Note, match="^no effect$"):
        errors.note("no effect")
    monkeypatch.setattr("minprefix.cli.view.run", lambda args: errors.note("nor here") or 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert main(["view", "--model", "m", "--prompt", "p", "--out", "x.html"]) == 0
        with pytest.raises(errors.Note):
            errors.note("refused if somebody wants that")
    assert capsys.readouterr().err == "minprefix: note: nor here\n"


# ---- evaluate and generate: one long text among others ----


def objects_in(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def with_a_long_one(model_dir, data):
    """Three sources and a fourth that leaves room for 5 tokens, or for as many as one says."""
    model = GPT2.load(model_dir)

    def write(room=5):
        long = "x" + "\ufffd" * 3
        while len(model.encode(long + "\n")) < 64 + 1 - room:
            long += "z"  # the tokenizer has not learned it: a token each
        assert len(model.encode(long + "\n")) == 64 + 1 - room
        added = json.dumps({"source": long, "target": "y"})
        data.write_text("\n".join([*data.read_text("utf-8").splitlines()[:12], added]), "utf-8")
        return data

    return write


@pytest.mark.parametrize("way", [[], ["--beams", 2], ["--temperature", 2, "--seed", 1]], ids=str)
def test_a_long_source_does_not_cut_what_is_written_for_the_others(
    ok, model_dir, data, with_a_long_one, tmp_path, way
):
    call = ["evaluate", "--model", model_dir, "--data", data, "--min-new-tokens", 4, *way]
    ok(*call, "--out", tmp_path / "a")
    with_a_long_one(5)
    ok(*call, "--out", tmp_path / "b")
    short, all_of_them = (objects_in(tmp_path / n / "predictions.jsonl") for n in "ab")
    assert all_of_them[:3] == short
    model = GPT2.load(model_dir)
    assert max(len(model.encode(line["prediction"])) for line in short) > 20
    about = json.loads((tmp_path / "b" / "metrics.json").read_text("utf-8"))["about"]
    before = json.loads((tmp_path / "a" / "metrics.json").read_text("utf-8"))["about"]
    assert about["decoding"] == before["decoding"]
    assert about["decoding"]["max_new_tokens"] == 80
    assert about["cut_at_max_new_tokens"] >= before["cut_at_max_new_tokens"]


def test_what_is_cut_is_counted_text_by_text(ok, model_dir, with_a_long_one, tmp_path):
    out, forbidden = tmp_path / "e", ["--forbidden", 0]  # nothing ends by itself
    call = ["evaluate", "--model", model_dir, "--data", with_a_long_one(5), *forbidden]
    said = ok(*call, "--out", out)
    assert "4 predictions reached --max-new-tokens 80, or the last position, and were cut" in said
    said = ok(*call, "--out", out, "--force", "--max-new-tokens", 5, "--limit", 1)
    assert "1 prediction reached --max-new-tokens 5, or the last position, and was cut" in said


def test_a_source_without_room_is_named_by_its_line_or_left_out(
    ok, refused, model_dir, data, with_a_long_one, tmp_path
):
    call = ["evaluate", "--model", model_dir, "--data", data, "--out", tmp_path / "new" / "e"]
    ok(*call[:-1], tmp_path / "a")
    with_a_long_one(0)
    said = refused(*call)
    assert f"{data}, line 13: 65 tokens from position 0 leave room for 0 new ones" in said
    assert said.endswith("shorten the source, or leave such lines out with --skip-long")
    assert not (tmp_path / "new").exists()
    ok(*call, "--limit", 3)  # the fourth is not asked for
    said = ok(*call, "--force", "--skip-long")
    assert "3 sources, 12 references\n1 source too long, left out\n" in said
    about = json.loads((tmp_path / "new" / "e" / "metrics.json").read_text("utf-8"))["about"]
    assert (about["sources"], about["sources_left_out"], about["pairs"]) == (3, 1, 12)
    a, e = (tmp_path / n / "predictions.jsonl" for n in ("a", "new/e"))
    assert a.read_bytes() == e.read_bytes()
    with_a_long_one(3)
    said = refused(*call, "--force", "--min-new-tokens", 4)
    assert "line 13: 62 tokens from position 0 leave room for 3 new ones" in said
    assert "and 4 are to be written" in said
    data.write_text(data.read_text("utf-8").splitlines()[-1])
    said = refused(*call, "--force", "--min-new-tokens", 4, "--skip-long")
    assert said == f"data file {data}: no source leaves room for what is to be written"


def test_a_run_that_is_refused_while_it_decodes_leaves_no_empty_folder(
    refused, model_dir, data, tmp_path
):
    call = ["evaluate", "--model", model_dir, "--data", data, "--forbidden", 99999]
    assert "forbidden token 99999 lies outside" in refused(*call, "--out", tmp_path / "a" / "b")
    assert not (tmp_path / "a").exists()
    (tmp_path / "mine").mkdir()
    refused(*call, "--out", tmp_path / "mine")
    assert (tmp_path / "mine").is_dir()


def test_each_of_several_prompts_has_its_own_room(ok, refused, model_dir, with_a_long_one):
    long = objects_in(with_a_long_one(5))[-1]["source"] + "\n"
    call = ["generate", "--model", model_dir, "--min-new-tokens", 4]
    alone = [ok(*call, "--prompt", text).removesuffix("\n") for text in ("name", long)]
    both = ok(*call, "--prompt", "name", "--prompt", long)
    assert both == f"--- name\n{alone[0]}\n--- {long}\n{alone[1]}\n"
    model = GPT2.load(model_dir)
    for text, new, n in zip(("name", long), alone, (64, 5), strict=True):
        how = Decoding(n, min_new_tokens=4)
        assert new == model.decode(generate_ids(model, [model.encode(text)], decoding=how)[0])
    said = refused(*call, "--min-new-tokens", 6, "--prompt", "name", "--prompt", long)
    assert said.startswith("prompt 1: 60 tokens from position 0 leave room for 5 new ones")


def test_train_records_samples_that_a_long_source_does_not_cut(
    ok, model_dir, data, with_a_long_one, tmp_path
):
    ok(*train(model_dir, data, tmp_path / "a", "--prefix-length", 2))
    with_a_long_one(4)
    lines = data.read_text("utf-8").splitlines()
    data.write_text("\n".join([lines[-1], *lines[:-1]]), "utf-8")  # it is one of the samples
    long_too = ["--prefix-length", 2, "--skip-long", "--init", "zero", "--lr", "1e-30"]
    ok(*train(model_dir, data, tmp_path / "b", *long_too))
    about = json.loads((tmp_path / "b" / "minprefix.json").read_text("utf-8"))
    model, samples = GPT2.load(model_dir), about["evaluation"]["samples"]
    assert about["evaluation"]["max_new_tokens"] == 40
    assert max(len(model.encode(s["prediction"])) for s in samples[1:]) > 15
    ok("verify", tmp_path / "b", "--model", model_dir)


# ---- evaluate and generate: stopped before the end ----


def stop_in_batch(monkeypatch, module, n, seen=lambda: None):
    """Ctrl-C when the n-th batch is to be decoded."""
    real, calls = generate_ids, []

    def stop(*args, **options):
        calls.append(1)
        if len(calls) == n:
            seen()
            raise KeyboardInterrupt
        return real(*args, **options)

    monkeypatch.setattr(f"{module}.generate_ids", stop)


def test_ctrl_c_in_evaluate_keeps_the_predictions_that_are_there(
    ok, refused, capsys, model_dir, data, tmp_path, monkeypatch
):
    out, there = tmp_path / "e", []
    call = ["evaluate", "--model", model_dir, "--data", data, "--batch-size", 1, "--out"]
    ok(*call, tmp_path / "whole")
    whole = objects_in(tmp_path / "whole" / "predictions.jsonl")
    partial = out / "predictions.jsonl.partial"
    with monkeypatch.context() as patch:
        # what a kill would leave is on the disk before the next batch begins
        stop_in_batch(patch, "minprefix.evaluate", 3, lambda: there.extend(objects_in(partial)))
        assert main([str(a) for a in [*call, out]]) == 130
    assert there == whole[:2]
    assert objects_in(partial) == whole[:2]
    err = capsys.readouterr().err
    assert err == f"minprefix: {partial} has 2 of 3 predictions\nminprefix: stopped\n"
    assert "already holds a run (predictions.jsonl.partial)" in refused(*call, out)
    ok(*call, out, "--force")
    assert {p.name for p in out.iterdir()} == {"metrics.json", "predictions.jsonl"}
    assert objects_in(out / "predictions.jsonl") == whole
    with monkeypatch.context() as patch:
        stop_in_batch(patch, "minprefix.evaluate", 1)
        assert main([str(a) for a in [*call, tmp_path / "none"]]) == 130
    assert capsys.readouterr().err == "minprefix: stopped\n"
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("where", ["mean_loss", "exact_match", "corpus_scores"])
def test_ctrl_c_while_scoring_keeps_every_prediction(
    ok, model_dir, data, tmp_path, monkeypatch, where
):
    def stop(*_):
        raise KeyboardInterrupt

    call = ["evaluate", "--model", model_dir, "--data", data, "--out"]
    ok(*call, tmp_path / "whole")
    monkeypatch.setattr(f"minprefix.evaluate.{where}", stop)
    assert main([str(a) for a in [*call, tmp_path / "e"]]) == 130
    assert [p.name for p in (tmp_path / "e").iterdir()] == ["predictions.jsonl"]
    whole = (tmp_path / "whole" / "predictions.jsonl").read_bytes()
    assert (tmp_path / "e" / "predictions.jsonl").read_bytes() == whole


def test_ter_is_scored_on_request_and_last(ok, capsys, model_dir, data, tmp_path, monkeypatch):
    call = ["evaluate", "--model", model_dir, "--data", data, "--out"]
    out, scores = tmp_path / "e", {}
    with monkeypatch.context() as patch:
        patch.setattr("sacrebleu.metrics.TER", lambda **_: pytest.fail("nobody asked for TER"))
        said = ok(*call, tmp_path / "a")
    assert "bleu" in said
    assert "ter " not in said
    scores["without"] = json.loads((tmp_path / "a" / "metrics.json").read_text("utf-8"))
    said = ok(*call, tmp_path / "b", "--ter")
    scores["with"] = json.loads((tmp_path / "b" / "metrics.json").read_text("utf-8"))
    for found in scores.values():
        found["about"].pop("seconds")
    assert f"ter               {scores['with']['ter']:.4f}\n" in said
    assert set(scores["with"]) - set(scores["without"]) == {"ter", "ter_signature"}

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("sacrebleu.metrics.TER.sentence_score", stop)
    assert main([str(a) for a in [*call, out, "--ter"]]) == 130
    without = json.loads((out / "metrics.json").read_text("utf-8"))
    without["about"].pop("seconds")
    assert without == scores["without"]
    assert {p.name for p in out.iterdir()} == {"metrics.json", "predictions.jsonl"}
    err = capsys.readouterr().err
    assert f"minprefix: {out} has predictions.jsonl, and metrics.json without TER\n" in err


def test_ter_without_sacrebleu_is_refused_before_the_work(
    refused, model_dir, data, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    monkeypatch.setattr("minprefix.evaluate.generate_ids", lambda *_, **__: pytest.fail("worked"))
    call = ["evaluate", "--model", model_dir, "--data", data, "--out", tmp_path / "e"]
    assert "need sacrebleu" in refused(*call, "--ter")
    assert not (tmp_path / "e").exists()


def test_what_takes_more_than_a_second_has_a_bar_and_nothing_else_has(
    ok, capsys, model_dir, data, tmp_path, monkeypatch
):
    call = ["evaluate", "--model", model_dir, "--data", data, "--ter", "--batch-size", 1, "--out"]
    assert main([str(a) for a in [*call, tmp_path / "a"]]) == 0
    assert capsys.readouterr().err == ""
    real = time.time
    monkeypatch.setattr("tqdm.std.time", lambda: real() + next(seconds))
    seconds = itertools.count(0, 100)
    assert main([str(a) for a in [*call, tmp_path / "b"]]) == 0
    err = capsys.readouterr().err
    for what, n in (("predictions", 3), ("loss", 12), ("TER", 3)):
        assert f"{what}: 100%" in err
        assert f" {n}/{n} " in err


def test_one_of_a_kind_is_not_said_in_the_plural(ok, model_dir, tmp_path):
    data, out = tmp_path / "d.jsonl", tmp_path / "p"
    data.write_text('{"source": "x", "target": "y"}\n')
    model = GPT2.load(model_dir)
    Prefix.normal(model.config, 1).save(out, model)
    said = ok("evaluate", "--model", model_dir, "--data", data, "--out", tmp_path / "e")
    assert said.startswith("1 source, 1 reference\n")
    call = ["generate", "--model", model_dir, "--prefix", out, "--data", data]
    assert ok(*call, "--out", tmp_path / "a.jsonl").startswith("1 answer written to ")
    assert "Prefix(1 slot in " in ok("inspect", out)
    said = ok("prune", out, "--model", model_dir, "--keep", 1, "--data", data, "--out", out / "q")
    assert "that each slot draws, on 1 pair:" in said
    assert "loss of 1 slot " in said
    said = ok("vectors", "write", tmp_path / "v", "--only", "gelu/usual")
    assert said.startswith("1 case, ")
    assert "the only check passed" in ok("check", "numpy", "--only", "gelu/usual")


WITHOUT_MODEL = [
    ["generate", "--prompt", "x"],
    ["evaluate", "--data", "DATA", "--out", "out"],
    ["train", "--data", "DATA", "--out", "out", "--steps", 1],
    ["import", "from-peft", "--out", "out"],
    ["plot", "pattern", "--prompt", "x", "--out", "x.png"],
    ["view", "--prompt", "x", "--out", "x.html"],
    ["step", "--prompt", "x"],
    ["demo", "--steps", 1, "--out", "out"],
]


@pytest.mark.parametrize("argv", WITHOUT_MODEL, ids=lambda argv: argv[0])
def test_without_model_it_is_the_model_that_ships_whatever_the_folders_are_called(
    tmp_path, monkeypatch, model_dir, data, refused, argv
):
    """... in every command that has a model of its own; "tiny" is then the name of a folder."""
    shutil.copytree(model_dir, tmp_path / "tiny")
    monkeypatch.chdir(tmp_path)
    find = places.find

    def found(*args):
        raise InputError(f"the model is {find(*args)}")

    monkeypatch.setattr(checkpoint, "find", found)
    argv = [str(data) if a == "DATA" else a for a in argv]
    assert refused(*argv) == f"the model is {places.TINY}"
    if argv[0] != "demo":
        with pytest.warns(errors.Note, match="hides"):  # the command line would print it
            find("tiny")
        assert refused(*argv, "--model", "tiny") == "the model is tiny"


def test_a_run_without_model_is_of_the_model_that_ships_to_its_end(
    tmp_path, monkeypatch, model_dir, data, ok
):
    monkeypatch.chdir(tmp_path)
    options = ["--data", data, "--prefix-length", 2, "--batch-size", 2, "--steps", 2]

    with monkeypatch.context() as patch:
        patch.setattr("minprefix.train._update", lambda *_: signal.raise_signal(signal.SIGINT))
        assert main(["train", *map(str, options), "--out", "run"]) == 130
    shutil.copytree(model_dir, tmp_path / "tiny")
    ok("train", "--out", "run", "--resume")
    base = json.loads((tmp_path / "run" / "minprefix.json").read_text())["base"]
    assert (base["name"], base["sha256"]) == ("tiny", GPT2.load().fingerprint())
    assert re.search("ok +base", ok("verify", "run"))
    ok("evaluate", "--prefix", "run", "--data", data, "--out", "scores", "--max-new-tokens", 1)
    about = json.loads((tmp_path / "scores" / "metrics.json").read_text())["about"]
    assert about["model"] == "tiny"
