"""`minprefix train --method`: every rival through the command line, from the options to the folder
that a run leaves."""

import csv
import functools
import inspect
import json
import re
import subprocess
from dataclasses import fields

import numpy as np
import pytest

import minprefix.train
from minprefix import GPT2, InputError, Prefix, methods, runs
from minprefix.cli import main
from minprefix.settings import BELONGS, INITS, LENGTH, METHODS, OWN, PREFIX, RATES, Job
from minprefix.show import training
from tests.conftest import relative_error
from tests.reliability.runs import (
    MINPREFIX,
    STATE,
    STEPS,
    assert_same_end,
    finish,
    kill_at_random,
    log,
    make_world,
)

RIVALS = [*methods.METHODS]
#: a value for each option that belongs to some methods alone
GIVEN = {
    "prefix_length": 3, "init_std": 0.1, "init_bound": 0.1, "init_text": "food", "mlp_hidden": 4,
    "layers": [0], "position_offset": 0, "dropout": 0.1, "rank": 2, "alpha": 4.0,
    "targets": ["c_fc"], "bottleneck": 3, "placement": "pfeiffer", "top_layers": 1,
    "encoder": "mlp", "encoder_hidden": 6,
}  # fmt: skip


# ---- the options ----


@pytest.mark.parametrize("option", BELONGS)
def test_an_option_belongs_to_its_methods_and_is_refused_by_name_with_every_other(option):
    assert BELONGS.keys() == GIVEN.keys()
    for method in METHODS:
        trained = PREFIX if method == "p-tuning-v2" else method
        if trained in BELONGS[option]:
            Job(method=method, **{option: GIVEN[option]})
            continue
        with pytest.raises(InputError) as error:
            Job(method=method, **{option: GIVEN[option]})
        typed = f"--{option.replace('_', '-')}"
        assert str(error.value).startswith(f"{typed} belongs to --method {BELONGS[option][0]}")
        assert str(error.value).endswith(f"and --method is {method}")


@pytest.mark.parametrize("init", Job.__dataclass_fields__["init"].metadata["choices"])
def test_a_start_that_a_method_does_not_have_is_refused(init):
    for method in METHODS:
        trained = PREFIX if method == "p-tuning-v2" else method
        if init == "prefix" or init in INITS.get(trained, ()):
            Job(method=method, init=init)
        else:
            with pytest.raises(InputError, match=f"--init {init} is no start of --method {method}"):
                Job(method=method, init=init)


def test_the_methods_of_the_command_line_are_those_of_the_library_with_its_defaults():
    assert sorted(METHODS) == sorted([PREFIX, "p-tuning-v2", *methods.METHODS])
    assert RATES.keys() == {PREFIX, *methods.METHODS}
    names = {"top_layers": "k", "encoder_hidden": "hidden", "prefix_length": "length"}
    for option, default in (OWN | {"prefix_length": LENGTH}).items():
        for method in set(BELONGS[option]) - {PREFIX, "prompt-tuning"}:
            start = inspect.signature(methods.METHODS[method].start).parameters
            if option != "encoder":
                found = start[names.get(option, option)].default
                assert (list(found) if option == "targets" else found) == default


@pytest.mark.parametrize("method", RIVALS)
def test_a_job_starts_its_method_with_the_options_that_are_given(method):
    model = GPT2.load()
    given = {
        name: value
        for name, value in GIVEN.items()
        if method in BELONGS[name] and name != "init_text"
    }
    started = runs.start_method(model, Job(method=method, seed=1, **given))
    assert started.name == method
    said = started.options
    for name, value in given.items():
        if name == "prefix_length":
            assert started.length == value
        elif name == "targets":
            assert said[name] == ["mlp.c_fc"]
        elif name != "init_std":
            assert said[name] == value
    if "init_std" in given:
        assert next(iter(started.parameters.values())).std() == pytest.approx(0.1, rel=0.1)


def test_a_prompt_starts_from_the_vocabulary_or_a_text_and_a_prefix_has_another_name():
    model = GPT2.load()
    wte = model.weights["wte.weight"]
    drawn = runs.start_method(model, Job(method="prompt-tuning", init="vocabulary")).prompt()
    assert len(drawn) == LENGTH
    assert all((wte == row).all(axis=1).any() for row in drawn)
    text = {"init": "text", "init_text": "name food"}
    said = runs.start_method(model, Job(method="prompt-tuning", **text))
    assert (said.prompt() == wte[model.encode("name food")]).all()
    longer = runs.start_method(model, Job(method="prompt-tuning", prefix_length=9, **text))
    assert longer.length == 9
    v2 = runs.start_method(model, Job(method="p-tuning-v2", seed=3))
    assert isinstance(v2, Prefix)
    assert (v2.kv == runs.start_method(model, Job(seed=3)).kv).all()


def test_what_is_recorded_of_a_prefix_has_no_word_of_the_methods():
    said = [f.name for f in fields(Job)]
    assert said[said.index("matmul") + 1 :] == [
        "method", "rank", "alpha", "targets", "bottleneck", "placement", "top_layers", "encoder",
        "encoder_hidden",
    ]  # fmt: skip
    assert all(getattr(Job(), name) is None for name in said[said.index("matmul") + 1 :])


# ---- a run ----

#: what each run below has, and what each method has of its own
COMMON = [
    "--steps=7", "--batch-size=3", "--micro-batch-size=2", "--warmup=2", "--clip=0.5",
    "--weight-decay=0.01", "--eval-every=3", "--save-every=2",
]  # fmt: skip
OWN_OF = {
    "full": [],
    "top-layers": ["--top-layers=1"],
    "bitfit": [],
    "prompt-tuning": ["--prefix-length=3", "--init=text", "--init-text=red fox"],
    "p-tuning": ["--prefix-length=3", "--encoder-hidden=8"],
    "infix": ["--prefix-length=3", "--init-std=0.1"],
    "lora": ["--rank=2", "--alpha=4", "--targets=c_attn,c_fc", "--dropout=0.3"],
    "adapters": ["--bottleneck=3", "--placement=pfeiffer"],
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A model, pairs, and the same pairs as E2E has them."""
    folder = make_world(tmp_path_factory.mktemp("world"))
    pairs = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    with open(folder / "e2e.csv", "w", newline="", encoding="utf-8") as f:
        csv.writer(f).writerows([("mr", "ref"), *((p["source"], p["target"]) for p in pairs)])
    return folder


@pytest.fixture(scope="module", autouse=True)
def _title_for_picture():
    """A picture takes longer than such a run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "loss_picture", lambda path, _, title: path.write_text(title))
        yield


@pytest.fixture(scope="module")
def ended(world, tmp_path_factory):
    """A method -> the folder of its run, which was made once; nobody writes there."""

    @functools.cache
    def run(method):
        out = tmp_path_factory.mktemp("ended") / method
        assert main(argv_of(world, method, out)) == 0
        return out

    return run


def argv_of(world, method, out, *more, data="train.jsonl"):
    files = ["--model", world / "model", "--data", world / data, "--valid", world / "valid.jsonl"]
    argv = ["train", "--method", method, *files, "--out", out, *COMMON, *OWN_OF[method], *more]
    return [str(a) for a in argv]


def same_end(out, whole):
    """Every file is equal byte for byte, but for what a clock said."""
    assert sorted(p.name for p in out.iterdir()) == sorted(p.name for p in whole.iterdir())
    assert log(out) == log(whole)
    for path in whole.iterdir():
        both = [(folder / path.name).read_bytes() for folder in (out, whole)]
        if path.name == "minprefix.json":
            both = [re.sub(rb'"saved": "[^"]*"', b"", text) for text in both]
        assert both[0] == both[1] or path.name == "log.jsonl", path.name


class Killed(BaseException):
    """Nothing is saved after it."""


@pytest.mark.parametrize("method", RIVALS)
def test_a_rival_trains_resumes_to_the_same_bytes_and_is_used_as_a_prefix_is(
    world, tmp_path, monkeypatch, capsys, ended, method
):
    whole, out = ended(method), tmp_path / "run"
    metrics = json.loads((whole / "metrics.json").read_text())
    trained = methods.load(whole, GPT2.load(world / "model"))
    assert trained.name == method
    assert metrics["base_unchanged"] is True
    spoken = runs.called(trained)
    n = f"{metrics['trained_parameters']:,} trained parameters"
    assert (whole / "loss.png").read_text() == f"{spoken} on model: {n}"
    with monkeypatch.context() as patch:
        real, calls = minprefix.train._update, []

        def killed(*args):
            calls.append(1)
            if len(calls) == 6:  # after a validation and a save, before the next of either
                raise Killed
            return real(*args)

        patch.setattr(minprefix.train, "_update", killed)
        with pytest.raises(Killed):
            main(argv_of(world, method, out))
    assert not (out / "minprefix.json").exists()
    capsys.readouterr()
    assert main(["train", "--out", str(out), "--resume"]) == 0
    said = capsys.readouterr().out
    same_end(out, whole)
    share = metrics["trained_parameters"] / metrics["base_parameters"]
    assert f"{metrics['trained_parameters']} parameters, float32, cpu): {share:.2%}" in said
    assert f"{metrics['loss']:.4f} with {spoken}\n" in said
    assert "prefix" not in said
    for more in (["--beams=2"], ["--temperature=0.7", "--seed=3"]):
        use = ["--model", str(world / "model"), "--prefix", str(out), *more, "--max-new-tokens=4"]
        assert main(["generate", *use, "--prompt", "red fox", "--prompt", "thai food inn"]) == 0
    capsys.readouterr()
    scored = ["evaluate", "--data", str(world / "valid.jsonl"), "--out", str(tmp_path / "e")]
    assert main([*scored, *use]) == 0
    scores = json.loads((tmp_path / "e" / "metrics.json").read_text())
    assert scores["loss"] == pytest.approx(metrics["valid_loss"], rel=1e-4)


def trained_in(folder):
    """The tensors of all files of what was trained, as bytes."""
    return [p.read_bytes() for p in sorted(folder.glob("*.safetensors")) if p.stem != "state"]


@pytest.mark.parametrize("method", RIVALS)
def test_a_table_as_e2e_has_it_trains_to_the_same_tensors(world, tmp_path, ended, method):
    assert main(argv_of(world, method, tmp_path / "run", data="e2e.csv")) == 0
    assert trained_in(tmp_path / "run") == trained_in(ended(method))


@pytest.mark.parametrize("method", ["lora", "infix", "prompt-tuning"])
def test_both_implementations_train_the_same_rival(world, tmp_path, ended, method):
    assert main(argv_of(world, method, tmp_path / "run", "--backend", "reference")) == 0
    ours, theirs = (methods.load(f).parameters for f in (tmp_path / "run", ended(method)))
    for name, a in ours.items():
        assert relative_error(a, theirs[name]) < 1e-3  # float32, through seven steps of AdamW


def test_p_tuning_v2_says_that_it_is_prefix_tuning_and_trains_the_same_bytes(
    world, tmp_path, capsys
):
    files = ["--model", world / "model", "--data", world / "train.jsonl", "--prefix-length", 3]
    for name, more in (("a", []), ("b", ["--method", "p-tuning-v2"]), ("c", ["--method=prefix"])):
        argv = ["train", *files, "--out", tmp_path / name, "--steps", 2, *more]
        assert main([str(a) for a in argv]) == 0
        says = "P-tuning v2 (Liu et al., 2022) is prefix-tuning" in capsys.readouterr().out
        assert says == (name == "b")
    assert trained_in(tmp_path / "a") == trained_in(tmp_path / "b") == trained_in(tmp_path / "c")
    assert (
        "method"
        not in json.loads((tmp_path / "a/minprefix.json").read_text())["training"]["options"]
    )
    for method in ("prefix", "p-tuning-v2"):
        argv = ["train", "--out", str(tmp_path / "a"), "--resume", "--method", method]
        assert main(argv) == (0 if method == "prefix" else 2)


# ---- what is refused ----


@pytest.fixture
def refused(capsys):
    """Run a command that must be refused with one sentence. -> the sentence."""

    def run(*argv):
        try:
            status = main([str(a) for a in argv])
        except SystemExit as exit_:  # of argparse
            status = exit_.code
        last = capsys.readouterr().err.splitlines()[-1]
        assert status == 2
        return last.partition("error: ")[2]

    return run


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ("lora --rank 0", "rank is 0: expected 1 to 16, the rank of h.0.attn.c_attn"),
        ("lora --rank 17", "rank is 17: expected 1 to 16, the rank of h.0.attn.c_attn"),
        ("lora --rank two", "argument --rank: invalid int value: 'two'"),
        ("lora --alpha much", "argument --alpha: invalid float value: 'much'"),
        ("lora --alpha nan", "alpha is nan: expected a positive number"),
        ("lora --alpha 0", "alpha is 0.0: expected a positive number"),
        ("lora --targets q_proj", "target 'q_proj' names no linear layer of a GPT-2 block"),
        ("lora --targets c_attn,c_prj", "target 'c_prj' names no linear layer"),
        ("lora --targets ,", "target '' names no linear layer"),
        ("lora --dropout 1", "dropout is 1.0: expected 0 or more, below 1"),
        ("adapters --bottleneck 0", "bottleneck is 0: expected a width of at least 1"),
        ("adapters --placement parallel", "argument --placement: invalid choice: 'parallel'"),
        ("top-layers --top-layers 3", "top layers are 3: expected 1 to 2, the layers of"),
        ("top-layers --top-layers 0", "top layers are 0: expected 1 to 2"),
        ("prompt-tuning --prefix-length 0", "prompt length is 0: expected at least 1"),
        ("prompt-tuning --prefix-length 48", "prompt-tuning takes 48 positions, model"),
        ("prompt-tuning --init text", "--init text needs --init-text"),
        ("prompt-tuning --init-text red", "--init-text belongs to --init text, and --init is norm"),
        ("p-tuning --encoder-hidden 0", "the encoder has a hidden width of 0"),
        ("p-tuning --encoder gru", "argument --encoder: invalid choice: 'gru'"),
        ("infix --prefix-length 0", "the infix has 0 slots: expected at least 1"),
        ("lora --init-prefix x", "--init-prefix belongs to --init prefix, and --init is not given"),
        ("lora --init prefix", "--init prefix needs --init-prefix"),
        ("lora --bottleneck 4", "--bottleneck belongs to --method adapters, and --method is lora"),
        ("prefix --rank 4", "--rank belongs to --method lora, and --method is prefix"),
        ("full --prefix-length 4", "--prefix-length belongs to --method prefix, prompt-tuning, p-"),
        ("LoRA", "argument --method: invalid choice: 'LoRA' (choose from "),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_no_folder(
    world, tmp_path, refused, options, sentence
):
    out, (method, *more) = tmp_path / "out", options.split()
    files = ["--model", world / "model", "--data", world / "train.jsonl"]
    said = refused("train", *files, "--out", out, "--steps", 1, "--method", method, *more)
    assert said.startswith(sentence)
    assert not out.exists()


def test_a_run_of_one_method_is_not_resumed_as_another(ended, refused):
    out = ended("lora")
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    for more, sentence in (
        (["--method=adapters"], "--method was 'lora' and is now 'adapters'"),
        (["--method=prefix"], "--method was 'lora' and is now 'prefix'"),
        (["--rank=3"], "--rank was 2 and is now 3"),
        (["--bottleneck=3"], "--bottleneck was not given and is now 3"),
        (["--steps=9"], "--method lora --init prefix --init-prefix"),
    ):
        assert sentence in refused("train", "--out", out, "--resume", *more)
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before


@pytest.mark.parametrize("method", RIVALS)
def test_a_saved_rival_is_trained_further_and_no_other_method_takes_it(
    world, tmp_path, refused, ended, method
):
    first, second = ended(method), tmp_path / "second"
    start = ["--model", world / "model", "--data", world / "train.jsonl", "--steps", 1]
    start += ["--init", "prefix", "--init-prefix", first, "--out", second]
    started = methods.load(first, GPT2.load(world / "model"))
    own = {
        "top_layers": 2, "prefix_length": 9, "encoder_hidden": 9, "rank": 1, "alpha": 3,
        "targets": "c_proj", "bottleneck": 9, "placement": "houlsby",
    }  # fmt: skip
    for option, other in own.items():
        if method in BELONGS[option]:
            said = refused(
                "train", "--method", method, *start, f"--{option.replace('_', '-')}", other
            )
            assert f"{method} in {first} has " in said
            assert said.endswith(": leave it out")
    other = "lora" if method != "lora" else "adapters"
    said = refused("train", "--method", other, *start)
    assert f"holds what --method {method} trained, and --method is {other}" in said
    assert not second.exists()
    argv = ["train", "--method", method, *start, "--lr", 1e-30]
    assert main([str(a) for a in argv]) == 0
    again = methods.load(second, GPT2.load(world / "model"))
    dropout = {"dropout"} if method == "lora" else set()  # of this training: none
    assert again.options == {k: v for k, v in started.options.items() if k not in dropout}
    for name, a in started.parameters.items():
        assert (again.parameters[name] == a).all()


@pytest.mark.parametrize(
    ("method", "sentence"),
    [
        ("lora", "the model has room for 49 with lora: shorten the line, or leave such lines out"),
        (
            "infix",
            "the model has room for 46 with infix: shorten the line, lower --prefix-length, ",
        ),
    ],
)
def test_a_pair_without_room_is_told_what_the_method_leaves(
    world, tmp_path, refused, method, sentence
):
    model = GPT2.load(world / "model")
    words = ["fox"] * 44  # with source and end token 47 to 49
    while len(model.encode(" ".join(words))) > 44:
        words.pop()
    long = " ".join(words * (2 if method == "lora" else 1))
    data = lines_in(tmp_path / "long.jsonl", {"source": "red fox", "target": long})
    said = refused(*argv_of(world, method, tmp_path / "out", data=data))
    assert sentence in said
    assert not (tmp_path / "out").exists()


# ---- what it is used for ----


def lines_in(path, *lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def test_one_rival_answers_all_requests_and_is_not_mixed_with_others(
    world, tmp_path, ended, refused, capsys
):
    model, lora = ["--model", str(world / "model")], ended("lora")
    Prefix.normal(GPT2.load(world / "model").config, 2).save(tmp_path / "p")
    asked = [{"prompt": "red fox"}, {"prompt": "thai food inn near", "id": 7}]
    many = lines_in(tmp_path / "many.jsonl", *asked)
    call = ["generate", *model, "--max-new-tokens=5"]
    for place in (lora, ended("infix"), ended("p-tuning")):
        capsys.readouterr()
        one = [*call, "--prefix", str(place), "--beams=2"]
        assert main([*one, "--data", str(many), "--batch-size=1"]) == 0
        answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert [a.pop("text") for a in answers] == texts_of(one, asked, capsys)
        assert answers == asked
    mixed = lines_in(tmp_path / "mixed.jsonl", {"prompt": "a", "prefix": "x"})
    said = refused(
        *call, "--prefix", f"x={tmp_path / 'p'}", "--prefix", f"y={lora}", "--data", mixed
    )
    assert said == (
        f"--prefix {lora} was trained with --method lora: prefixes can be mixed in a batch, lora "
        "cannot; give it alone"
    )
    frozen = lines_in(tmp_path / "frozen.jsonl", {"prompt": "a", "prefix": None})
    said = refused(*call, "--prefix", lora, "--data", frozen)
    assert "frozen.jsonl, line 1: no prefix is asked for, and --prefix was trained with" in said
    unknown = lines_in(tmp_path / "unknown.jsonl", {"prompt": "a", "prefix": "z"})
    assert "there is no prefix 'z'" in refused(*call, "--prefix", lora, "--data", unknown)


def texts_of(call, asked, capsys):
    texts = []
    for request in asked:
        assert main([*call, "--prompt", request["prompt"]]) == 0
        texts.append(capsys.readouterr().out.removesuffix("\n"))
    return texts


def test_the_template_that_a_rival_was_trained_with_is_used_and_raw_leaves_it_out(
    world, tmp_path, capsys
):
    out = tmp_path / "run"
    assert main(argv_of(world, "infix", out, "--template", r"{source} near the\t{target}")) == 0
    call = ["generate", "--model", str(world / "model"), "--prefix", str(out)]
    capsys.readouterr()
    said = texts_of(call, [{"prompt": "red fox"}], capsys)
    raw = texts_of([*call, "--raw"], [{"prompt": "red fox near the\t"}, {"prompt": "fox"}], capsys)
    assert said[0] == raw[0].strip() != raw[1].strip()


def test_a_rival_that_makes_the_model_far_worse_is_said_and_is_status_1(world, tmp_path, capsys):
    argv = argv_of(world, "bitfit", tmp_path / "run", "--lr", "30")
    assert main(argv) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert re.match(r"minprefix: the loss is \d.* with bitfit and \d.* without it: it makes", last)


@pytest.mark.long
@pytest.mark.parametrize("method", RIVALS)
def test_a_rival_that_is_killed_at_random_moments_ends_in_the_same_bytes(world, tmp_path, method):
    whole, out, rng = tmp_path / "whole", tmp_path / "run", np.random.default_rng(0)

    def command(out, *more):
        return [*MINPREFIX, *argv_of(world, method, out, "--steps", STEPS, "--save-every=4", *more)]

    assert finish(command(whole)).returncode == 0
    for moment in ("start-up", "training", "saving the state", "training", "drawing the loss"):
        more = "--resume" if (out / STATE).exists() else "--force"
        process = subprocess.Popen(
            command(out, more), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        if not kill_at_random(process, out, moment, rng):
            assert process.returncode == 0
    for hidden in out.glob(".*"):
        hidden.unlink()
    done = finish(command(out, "--resume" if (out / STATE).exists() else "--force"))
    assert done.returncode == 0, done.stderr
    assert_same_end(out, whole)
