"""Requests with a prefix each: every line is answered as it would be alone."""

import csv
import errno
import json

import numpy as np
import pytest
from tokenizers import ByteLevelBPETokenizer

from minprefix import GPT2, Config, InputError, Prefix
from minprefix.cli import main
from minprefix.cli.generate import named
from minprefix.data.pairs import Template
from minprefix.data.requests import read_requests
from minprefix.generate import Decoding, generate_ids
from tests.conftest import random_model

WORDS = ["name", "food", "type", "area", "pub", "Thai", "cheap", "hills", "A", "serves", "the"]
TEMPLATES = {"formal": "{source}\n{target}", "brief": "{source} => {target}.", "long": None}


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    """A small random GPT-2 with a tokenizer, on disk."""
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(
        [" ".join(WORDS)] * 3, 300, special_tokens=["<|endoftext|>"], show_progress=False
    )
    config = Config(2, 2, 16, bpe.get_vocab_size(), 64, bos_token_id=0, eos_token_id=0)
    model = random_model(config, dtype="float32")
    model.tokenizer = bpe._tokenizer
    folder = tmp_path_factory.mktemp("model")
    model.save(folder)
    return folder


@pytest.fixture(scope="module")
def model(model_dir):
    return GPT2.load(model_dir)


@pytest.fixture(scope="module")
def prefixes(model, tmp_path_factory):
    """A folder of three: one of a template of its own, one of the other position rule and of one
    layer, one through an MLP and without a record of its template."""
    folder, config = tmp_path_factory.mktemp("prefixes"), model.config
    made = {
        "formal": Prefix.normal(config, 3, 0.5, 1),
        "brief": Prefix.normal(config, 5, 0.5, 2, layers=[1], position_offset=0),
        "long": Prefix.mlp(config, 9, 4, 3),
    }
    for name, prefix in made.items():
        template = TEMPLATES[name]
        training = None if template is None else {"command": "none", "template": template}
        prefix.save(folder / name, model, training)
    return folder


@pytest.fixture
def ask(capsys, model_dir, tmp_path):
    """Answer these requests. -> the answers, or with status 2 the sentence."""

    def run(requests, *options, status=0):
        path = tmp_path / "requests.jsonl"
        lines = [r if isinstance(r, str) else json.dumps(r) for r in requests]
        path.write_text("\n".join(lines), encoding="utf-8")
        argv = ["generate", "--model", model_dir, "--data", path, *options]
        assert main([str(a) for a in argv]) == status
        said = capsys.readouterr()
        if not status:
            return [json.loads(line) for line in said.out.splitlines()]
        assert said.out == ""
        assert said.err.startswith("minprefix: error: ")
        assert said.err.count("\n") == 1
        return said.err.removeprefix("minprefix: error: ").rstrip("\n")

    return run


@pytest.fixture
def alone(capsys, model_dir):
    def run(prompt, place, *options):
        argv = ["generate", "--model", model_dir, "--prompt", prompt, *options]
        argv += [] if place is None else ["--prefix", place]
        assert main([str(a) for a in argv]) == 0
        return capsys.readouterr().out.removesuffix("\n")

    return run


def three(prefixes):
    return [part for name in TEMPLATES for part in ("--prefix", f"{name}={prefixes / name}")]


def drawn(n, seed=0):
    rng = np.random.default_rng(seed)
    names = [*TEMPLATES, None]
    return [
        {"prompt": " ".join(rng.choice(WORDS, rng.integers(1, 6))), "prefix": names[i % 4]}
        for i in rng.permutation(n)
    ]


# ---- the answers ----


@pytest.mark.parametrize("as_store", [False, True], ids=["--prefix", "--store"])
@pytest.mark.parametrize(
    "options",
    [
        ["--max-new-tokens", 5],
        ["--max-new-tokens", 4, "--beams", 3],
        ["--raw", "--max-new-tokens", 9],
    ],
    ids=str,
)
def test_every_line_is_answered_as_it_would_be_alone(ask, alone, prefixes, as_store, options):
    requests = drawn(12)
    places = ["--store", prefixes] if as_store else three(prefixes)
    answers = ask(requests, *places, *options, "--batch-size", 5)
    assert [{k: a[k] for k in ("prompt", "prefix")} for a in answers] == requests
    for request, answer in zip(requests, answers, strict=True):
        name = request["prefix"]
        place = None if name is None else prefixes / name
        assert answer["text"] == alone(request["prompt"], place, *options)
    assert len({a["text"] for a in answers}) > 6


def test_a_sampled_answer_is_that_of_its_number_among_the_requests(ask, model, prefixes):
    requests = drawn(10)
    options = ["--temperature", 1.5, "--seed", 7, "--max-new-tokens", 6]
    for batch_size in (1, 4, 32):
        answers = ask(requests, *three(prefixes), *options, "--batch-size", batch_size)
        for number, (request, answer) in enumerate(zip(requests, answers, strict=True)):
            name = request["prefix"]
            template = None if name is None else Template(TEMPLATES[name] or "{source}\n{target}")
            text = template.prompt(request["prompt"]) if template else request["prompt"]
            (new,) = generate_ids(
                model,
                [model.encode(text)],
                None if name is None else Prefix.load(prefixes / name),
                decoding=Decoding(6, temperature=1.5, seed=7),
                numbers=[number],
            )
            written = model.decode(new)
            assert answer["text"] == (template.read(written) if template else written)


def test_a_line_that_names_none_takes_the_bare_prefix_and_null_is_the_frozen_model(
    ask, alone, prefixes
):
    requests = [{"prompt": "name"}, {"prompt": "name", "prefix": None}, {"prompt": "name",
                "prefix": "brief"}]  # fmt: skip
    places = ["--prefix", prefixes / "formal", "--prefix", f"brief={prefixes / 'brief'}"]
    said = [a["text"] for a in ask(requests, *places)]
    assert said == [
        alone("name", prefixes / "formal"),
        alone("name", None),
        alone("name", prefixes / "brief"),
    ]


def test_other_fields_are_kept_and_so_is_the_order(ask, prefixes):
    requests = [
        {"id": i, "prompt": "food", "prefix": name, "tags": ["é", {"x": None}], "n": 1.5}
        for i, name in enumerate(["long", None, "formal", "brief"] * 3)
    ]
    answers = ask(requests, "--store", prefixes, "--max-new-tokens", 2)
    assert [{k: v for k, v in a.items() if k != "text"} for a in answers] == requests
    assert all(list(a)[-1] == "text" for a in answers)


def test_a_template_of_the_command_is_for_all_of_them(ask, alone, prefixes):
    for name in (None, "brief"):
        place = None if name is None else prefixes / name
        more = ["--template", "{source}: {target}"]
        (answer,) = ask([{"prompt": "food", "prefix": name}], "--store", prefixes, *more)
        assert answer["text"] == alone("food", place, *more)


def test_each_request_has_the_room_that_its_own_prompt_leaves(ask, alone, model, prefixes):
    long = " ".join(["hills"] * 70)
    while len(model.encode(long + "\n")) > 60:
        long = long.rpartition(" ")[0]
    requests = [{"prompt": p, "prefix": "formal"} for p in (long, "name")]
    options = ["--min-new-tokens", 2]
    written = [a["text"] for a in ask(requests, "--store", prefixes, *options)]
    assert written == [alone(r["prompt"], prefixes / "formal", *options) for r in requests]
    assert len(written[1]) > 20 > 9 > len(written[0])


PAIRS = [("name[A]", "A."), ("food, Thai", 'say "hi"'), ("name[A]", "B.")]


@pytest.mark.parametrize("kind", ["jsonl", "mr.jsonl", "csv", "tsv", "semicolons.csv", "mr.csv"])
def test_pairs_are_requests_of_one_prefix(ask, capsys, alone, model_dir, prefixes, tmp_path, kind):
    path, names = (
        tmp_path / f"pairs.{kind}",
        ["mr", "ref"] if "mr" in kind else ["source", "target"],
    )
    if kind.endswith("jsonl"):
        lines = [json.dumps(dict(zip(names, pair, strict=True))) for pair in PAIRS]
        path.write_text("\n".join(lines), "utf-8")
    else:
        sep = {"tsv": "\t", "semicolons.csv": ";"}.get(kind, ",")
        with open(path, "w", encoding="utf-8", newline="") as file:
            csv.writer(file, delimiter=sep).writerows([names, *PAIRS])
    call = ["generate", "--model", model_dir, "--data", path, "--prefix", prefixes / "formal"]
    assert main([str(a) for a in call]) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [{n: a[n] for n in names} for a in answers] == [
        dict(zip(names, pair, strict=True)) for pair in PAIRS
    ]
    assert [a["text"] for a in answers] == [alone(s, prefixes / "formal") for s, _ in PAIRS]
    assert all(list(a) == [*names, "text"] for a in answers)


def test_a_table_may_name_its_prefixes_and_another_column(ask, alone, prefixes, tmp_path):
    path = tmp_path / "r.csv"
    path.write_text("id,prefix,record,source,\n7,brief,food,x,\n8,formal,name,y,\n", "utf-8")
    options = ["--store", prefixes, "--data", path, "--source-column", "record"]
    answers = ask([], *options)
    assert answers == [
        {"id": "7", "prefix": "brief", "record": "food", "source": "x"}
        | {"text": alone("food", prefixes / "brief")},
        {"id": "8", "prefix": "formal", "record": "name", "source": "y"}
        | {"text": alone("name", prefixes / "formal")},
    ]


def test_an_empty_prefix_in_a_table_is_the_frozen_model(ask, alone, prefixes, tmp_path):
    path = tmp_path / "r.csv"
    path.write_text("source,prefix\nfood,brief\nname,\n", "utf-8")
    assert ask([], "--store", prefixes, "--data", path) == [
        {"source": "food", "prefix": "brief", "text": alone("food", prefixes / "brief")},
        {"source": "name", "prefix": None, "text": alone("name", None)},
    ]


def test_answers_go_into_a_folder_that_is_not_there_yet(model_dir, prefixes, tmp_path):
    path, out = tmp_path / "r.jsonl", tmp_path / "new" / "er" / "a.jsonl"
    path.write_text('{"prompt": "food", "prefix": "brief"}', "utf-8")
    call = ["generate", "--model", model_dir, "--data", path, "--store", prefixes, "--out", out]
    assert main([str(a) for a in call]) == 0
    assert [json.loads(line)["prompt"] for line in out.read_text("utf-8").splitlines()] == ["food"]
    assert list(out.parent.iterdir()) == [out]


@pytest.mark.parametrize(
    ("name", "content", "options", "sentence"),
    [
        (
            "r.csv",
            "source,target\na,b\n",
            [],
            "line 2: no field 'prefix': name one, or leave it empty for the",
        ),
        (
            "r.csv",
            "source,target\na,b\n",
            ["--source-column", "mr"],
            "r.csv has no column 'mr', only",
        ),
        ("r.csv", "Source,target\na,b\n", [], "has no column 'prompt', only 'Source', 'target'"),
        ("r.csv", "prefix,source\nformal,\n", [], "line 2: source is '': expected text"),
        (
            "r.csv",
            "prefix,source,text\nformal,a,b\n",
            [],
            "line 2: the answer needs the field 'text'",
        ),
        ("r.csv", "prefix,source\nformal,a,b\n", [], "line 2: 3 fields, the header names 2"),
        ("r.csv", "", [], "r.csv holds no requests: expected at least one line"),
        ("r.csv", "prompt\n", [], "r.csv holds no requests: expected at least one line"),
        ("r.jsonl", '{"prefix": null, "target": "a"}', [], "line 1: prompt is None: expected text"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_bad_table_of_requests_is_a_sentence(
    ask, prefixes, tmp_path, name, content, options, sentence
):
    (tmp_path / name).write_text(content, "utf-8")
    call = ["--store", prefixes, "--data", tmp_path / name, *options]
    assert sentence in ask([], *call, status=2)


# ---- stopped before the end ----


@pytest.fixture
def stopped(monkeypatch):
    """Ctrl-C when the n-th batch is to be decoded."""

    def stop_in(n, seen=lambda: None):
        calls = []

        def stop(*args):
            calls.append(1)
            if len(calls) == n:
                seen()
                raise KeyboardInterrupt
            return generate_ids(*args)

        monkeypatch.setattr("minprefix.prefixes.store.generate_ids", stop)

    return stop_in


def test_ctrl_c_keeps_the_answers_that_are_there(
    ask, capsys, stopped, model_dir, prefixes, tmp_path, monkeypatch
):
    requests = [r | {"id": i} for i, r in enumerate(drawn(9))]
    whole = {a["id"]: a for a in ask(requests, "--store", prefixes, "--max-new-tokens", 3)}
    path, out, seen = tmp_path / "requests.jsonl", tmp_path / "a.jsonl", []
    partial = tmp_path / "a.jsonl.partial"
    call = ["generate", "--model", model_dir, "--data", path, "--store", prefixes]
    call += ["--max-new-tokens", 3, "--batch-size", 2]

    def lines():
        return [json.loads(line) for line in partial.read_text("utf-8").splitlines()]

    stopped(3, lambda: seen.extend(lines()))  # a kill would leave as much
    assert main([str(a) for a in [*call, "--out", out]]) == 130
    assert not out.exists()
    assert lines() == seen
    assert len(seen) == 4
    assert all(a == whole[a["id"]] for a in seen)
    err = capsys.readouterr().err
    assert err == f"minprefix: {partial} has 4 of 9 answers\nminprefix: stopped\n"

    stopped(3)
    assert main([str(a) for a in call]) == 130  # to the screen
    said = capsys.readouterr()
    printed = [json.loads(line) for line in said.out.splitlines()]
    assert printed == sorted(seen, key=lambda a: a["id"])
    assert said.err == "minprefix: 4 of 9 answers printed\nminprefix: stopped\n"

    monkeypatch.undo()
    assert main([str(a) for a in [*call, "--out", out]]) == 2
    assert f"{partial} is there already, the answers of a run that was stopped" in (
        capsys.readouterr().err
    )
    partial.unlink()
    assert main([str(a) for a in [*call, "--out", out]]) == 0
    assert not partial.exists()
    assert [json.loads(line) for line in out.read_text("utf-8").splitlines()] == list(
        whole.values()
    )


def test_an_error_in_the_middle_keeps_the_answers_too(
    ask, capsys, stopped, model_dir, prefixes, tmp_path
):
    def full():
        raise MemoryError

    requests = drawn(5)
    ask(requests, "--store", prefixes, "--max-new-tokens", 2)
    stopped(2, full)
    call = ["generate", "--model", model_dir, "--data", tmp_path / "requests.jsonl"]
    call += ["--store", prefixes, "--batch-size", 2, "--max-new-tokens", 2]
    call += ["--out", tmp_path / "a.jsonl"]
    assert main([str(a) for a in call]) == 2
    assert "a.jsonl.partial has 2 of 5 answers\n" in capsys.readouterr().err
    assert len((tmp_path / "a.jsonl.partial").read_text("utf-8").splitlines()) == 2


def test_answers_go_into_a_file_that_was_not_there(ask, capsys, model_dir, prefixes, tmp_path):
    requests = drawn(5)
    to_screen = ask(requests, "--store", prefixes)
    out, path = tmp_path / "answers.jsonl", tmp_path / "requests.jsonl"
    argv = ["generate", "--model", model_dir, "--data", path, "--store", prefixes, "--out", out]
    assert main([str(a) for a in argv]) == 0
    assert capsys.readouterr().out == f"5 answers written to {out}\n"
    assert [json.loads(line) for line in out.read_text("utf-8").splitlines()] == to_screen
    before = path.read_bytes()
    said = ask(requests, "--store", prefixes, "--out", path, status=2)
    assert said == f"{path} is there already: remove it, or choose another --out"
    assert path.read_bytes() == before


def test_a_small_budget_changes_nothing_and_no_prefix_is_read_for_every_line(
    ask, prefixes, monkeypatch
):
    requests = drawn(40)
    roomy = ask(requests, "--store", prefixes, "--max-new-tokens", 3)
    read, load = [], Prefix.load
    monkeypatch.setattr(Prefix, "load", lambda *a: read.append(a) or load(*a))
    largest = 9 * 2 * 2 * 16 * 4  # of one prefix: no two fit
    tight = ask(requests, "--store", prefixes, "--max-new-tokens", 3, "--store-bytes", largest)
    assert tight == roomy
    assert len(read) <= 2 * 3, "once to be looked at, once to be used"


# ---- what is refused ----


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("nonsense", "line 2: not JSON"),
        ("[" * 100_000, "line 2: not JSON"),
        ("1" * 6000, "line 2: not JSON"),
        ("[1]", "line 2: a list: expected an object"),
        ("null", "line 2: a NoneType: expected an object"),
        ('{"prefix": "formal"}', "line 2: prompt is None: expected text"),
        ('{"prompt": "", "prefix": "formal"}', "line 2: prompt is '': expected text"),
        ('{"prompt": 5, "prefix": "formal"}', "line 2: prompt is 5: expected text"),
        ('{"prompt": "a", "prefix": 5}', "line 2: prefix is 5: expected a name, or null"),
        ('{"prompt": "a", "prefix": ["formal"]}', "line 2: prefix is ['formal']: expected a name"),
        ('{"prompt": "a"}', "line 2: no field 'prefix': name one, or null for the frozen model"),
        ('{"prompt": "\\ud800", "prefix": null}', r"line 2: half a character ('\ud800')"),
        ('{"prompt": "a", "prefix": null, "id": "\\udfff"}', r"line 2: half a character ('\udfff"),
        ('{"prompt": "a", "prefix": null, "x": [NaN]}', "line 2: NaN or infinity: JSON has no"),
        ('{"prompt": "a", "prefix": null, "x": 1e999}', "line 2: NaN or infinity: JSON has no"),
        (
            '{"prompt": "a", "prefix": null, "text": ""}',
            "line 2: the answer needs the field 'text'",
        ),
        ('{"prompt": "a", "prefix": "formel"}', "line 2: there is no prefix 'formel' in the store"),
        ('{"prompt": "a", "prefix": "../formal"}', "line 2: there is no prefix '../formal' in the"),
    ],
    ids=lambda value: value[:40],
)
def test_a_bad_line_is_a_sentence_before_anything_is_answered(
    ask, prefixes, monkeypatch, line, sentence
):
    from minprefix.prefixes.store import PrefixStore

    monkeypatch.setattr(PrefixStore, "answers", lambda *_: pytest.fail("answered"))
    good = {"prompt": "food", "prefix": "formal"}
    assert sentence in ask([good, line, good], "--store", prefixes, status=2)


def test_a_prompt_that_leaves_too_little_room_is_a_sentence_with_its_line(
    ask, prefixes, monkeypatch
):
    from minprefix.prefixes.store import PrefixStore

    monkeypatch.setattr(PrefixStore, "answers", lambda *_: pytest.fail("answered"))
    requests = [{"prompt": p, "prefix": "formal"} for p in ("name", "B " * 70)]
    said = ask(requests, "--store", prefixes, status=2)
    assert "line 2: " in said
    assert "from position 3 leave room for 0 new ones of the model's 64 positions" in said
    said = ask(requests[:1], "--store", prefixes, "--min-new-tokens", 62, status=2)
    assert "line 1: 2 tokens from position 3 leave room for 60 new ones" in said
    assert "and 62 are to be written: shorten the prompt" in said


def test_a_full_disk_behind_the_answers_is_a_sentence(
    capsys, model_dir, prefixes, tmp_path, monkeypatch
):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "requests.jsonl"
    path.write_text('{"prompt": "food", "prefix": "formal"}\n')
    monkeypatch.setattr("sys.stdout.writelines", full)
    argv = ["generate", "--model", model_dir, "--data", path, "--store", prefixes]
    assert main([str(a) for a in argv]) == 2
    said = capsys.readouterr().err
    assert said == "minprefix: error: No space left on device\n"


def test_no_requests_and_no_file_are_sentences(ask, prefixes):
    assert "requests.jsonl holds no requests: expected" in ask([], "--store", prefixes, status=2)
    assert "holds no requests" in ask(["", "  "], "--store", prefixes, status=2)


def test_a_prefix_of_another_base_is_refused_before_anything_is_answered(
    ask, model, prefixes, tmp_path
):
    other = random_model(model.config, seed=9, dtype="float32")
    Prefix.normal(model.config, 3).save(tmp_path / "p", other)
    requests = [{"prompt": "a", "prefix": "formal"}, {"prompt": "a", "prefix": "p"}]
    said = ask(requests, *three(prefixes), "--prefix", f"p={tmp_path / 'p'}", status=2)
    assert "was trained on another base" in said
    assert other.fingerprint()[:12] in said
    assert model.fingerprint()[:12] in said


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--prefix", "a=gone"], "prefix folder 'gone' does not exist: expected one that was"),
        (["--prefix", "="], "--prefix '=': expected DIR or NAME=DIR"),
        (["--prefix", "a="], "--prefix 'a=': expected DIR or NAME=DIR"),
        (["--prefix", "a=x", "--prefix", "a=y"], "--prefix gives the name 'a' twice: give each"),
        (["--prefix", "x", "--prefix", "y"], "gives a folder without a name twice: give each"),
        (["--prefix", "x", "--prefix", "prefix=y"], "beside a bare folder cannot be called"),
        (["--store", "gone"], "--store 'gone' does not exist: give a folder of prefixes"),
        (["--store", ".", "--prefix", "a=x"], "--prefix names some: give one of them"),
        (["--prompt", "x"], "--prompt is one request and --data are many: give one of them"),
        (["--raw", "--template", "{source} {target}"], "--raw takes the prompt as it is"),
        (["--seed", "3"], "--seed decides what is sampled: give --temperature as well"),
        (["--template", "{source}"], "template '{source}': expected {source} once"),
        (["--template", ""], "template '': expected {source} once"),
        ([], "there is no prefix 'a' in the store (none)"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_options_that_do_not_go_together_are_a_sentence(
    ask, prefixes, tmp_path, monkeypatch, options, sentence
):
    monkeypatch.chdir(tmp_path)
    if options[:1] in (["--template"], ["--seed"]):
        options = [*options, "--prefix", f"a={prefixes / 'formal'}"]  # else it is all right
    assert sentence in ask([{"prompt": "x", "prefix": "a"}], *options, status=2)


@pytest.mark.parametrize(
    "option", ["--store", "--store-bytes", "--batch-size", "--source-column", "--out"]
)
def test_an_option_of_many_requests_is_refused_for_one(capsys, model_dir, option):
    argv = ["generate", "--model", str(model_dir), "--prompt", "x", option, "3"]
    assert main(argv) == 2
    assert f"{option} belongs to --data, a file of requests" in capsys.readouterr().err


def test_one_prompt_takes_one_prefix_named_or_not(capsys, alone, model_dir, prefixes):
    formal = prefixes / "formal"
    assert alone("food", formal) == alone("food", f"x={formal}")
    argv = ["generate", "--model", model_dir, "--prompt", "x", *three(prefixes)]
    assert main([str(a) for a in argv]) == 2
    assert "3 prefixes were given: give one, or --data FILE" in capsys.readouterr().err
    assert main(["generate", "--model", str(model_dir)]) == 2
    assert "generate needs --prompt TEXT, or --data FILE with many" in capsys.readouterr().err


# ---- reading names and lines ----


def test_a_name_is_what_stands_before_the_first_equals_sign_unless_it_is_a_path(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lr=3").mkdir()
    said = {k: str(v) for k, v in named(["a=b", "c=d=e", "x=runs/y", "Ein Name=z"]).items()}
    assert said == {"a": "b", "c": "d=e", "x": "runs/y", "Ein Name": "z"}
    for bare in ("runs/a", "lr=3", "./a=b", "runs/lr=3"):
        assert {k: str(v) for k, v in named([bare]).items()} == {None: bare.removeprefix("./")}
    assert named([]) == {}


def test_blank_lines_carriage_returns_and_a_byte_order_mark_are_no_requests(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"prompt": "a"}\r\n\r\n  \n{"prompt": "b", "prefix": null}\r\n')
    first, second = read_requests(path, "given")
    assert (first.prompt, first.prefix, first.fields) == ("a", "given", {"prompt": "a"})
    assert (second.prompt, second.prefix) == ("b", None)
    assert (first.where, second.where) == (f"{path}, line 1", f"{path}, line 4")
    with pytest.raises(InputError, match="line 1: no field 'prefix'"):
        read_requests(path)
    path.write_bytes(b'{"prompt": "caf\xe9"}')
    with pytest.raises(InputError, match="line 1: byte 0xe9 is not UTF-8"):
        read_requests(path)
    with pytest.raises(InputError, match="cannot read the requests"):
        read_requests(tmp_path / "gone.jsonl")
