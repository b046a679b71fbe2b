"""Damaged input for every reader, a small part of `python -m tests.reliability.fuzz`; that the
fuzzing notices what no reader may do; and the rules by which a file is opened."""

import json
import os
import random
import sys

import numpy as np
import pytest
from safetensors.numpy import save_file

from minprefix import GPT2, InputError, errors
from minprefix.data.pairs import fingerprint, read_pairs
from minprefix.storage import reading
from minprefix.storage.run import LOG, STATE, log_lines
from minprefix.storage.tensors import map_tensors
from minprefix.storage.tokenizer import read_tokenizer
from tests.reliability import damage, readers
from tests.reliability.fuzz import BASE, Tally, Worker, bounded, fuzz
from tests.reliability.planted import PLANTED

pytestmark = pytest.mark.long

linux = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="asks Linux for its figures"
)


# ---- the fuzzing ----


@linux
def test_2200_damaged_inputs_end_in_what_the_file_says_or_in_one_sentence():
    tallies = fuzz(2200)
    assert [f for tally in tallies.values() for f in tally.findings] == []
    assert set(tallies) == set(readers.READERS)
    assert sum(tally.inputs for tally in tallies.values()) == 2200
    for name, tally in tallies.items():
        assert tally.inputs >= 2200 // len(tallies), name
        assert tally.loaded + sum(tally.sentences.values()) == tally.inputs, name
        assert tally.loaded > 0, name
        assert len(tally.sentences) > 1, name


@pytest.fixture(scope="module")
def worker(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "values.json").write_text(json.dumps(["0", '"x"', "[1, null]"]))
    worker = Worker(folder, 0, limit=1, patience=10)
    yield worker
    worker.stop()


NOTICED = {
    "raises": "ZeroDivisionError",
    "dies": r"died (-6)",
    "hangs": "no answer in 2 s",
    "spins": "no answer in",
    "allocates": "MemoryError",
    "gives another": "not what the file says",
    "follows links": "outside",
    "opens outside": "open '/etc/passwd'",
    "imports": "import ('tabnanny'",
    "evaluates": "exec (",
    "unpickles": "pickle.find_class",
    "starts a process": "subprocess.Popen",
    "writes": "open ",
    "says too much": "a sentence of 5,000 characters",
    "says control characters": "control characters",
    "says lines": "line breaks",
}


@linux
@pytest.mark.parametrize("name", PLANTED)
def test_the_fuzzing_notices_a_reader_that(worker, name):
    tally = Tally()
    worker.patience = 2 if name == "hangs" else 10  # a busy machine's answers may be late
    worker.read(
        name, 0, {"dies": 3, "hangs": 2, "spins": 2, "follows links": 200}.get(name, 20), tally
    )
    assert any(NOTICED[name] in finding for finding in tally.findings), tally.findings[:3]


def test_an_input_can_be_made_again_from_its_seed_and_number():
    values = damage.draw_values(1, 60)
    assert values == damage.draw_values(1, 60)
    assert {int, float, str, list, dict} <= {type(json.loads(v)) for v in values}
    good = {
        "json": b'{"a": {"b": [1, "x"]}, "c": null}',
        "lines": b'{"source": "a", "target": "b"}\n' * 3,
        "tensors": readers.file_of({"a": readers.as_stored(np.ones((2, 2)), "F32")}),
    }
    for kind, data in good.items():
        made = [
            [damage.draw(random.Random(f"{seed} {i}"), kind, data, data, values) for i in range(99)]
            for seed in (5, 5, 6)
        ]
        assert made[0] == made[1]
        assert made[0] != made[2]
        assert len({d.data for d in made[0]}) > 60  # and they differ among each other


# ---- much of it ----


@linux
def test_an_index_of_300_000_names_is_a_sentence_within_the_bound(tmp_path):
    readers.put_model(tmp_path / "m", readers.small())
    (tmp_path / "m" / "model.safetensors").unlink()
    names = b",".join(b'"%d":"%d"' % (i, i) for i in range(300_000))
    path = tmp_path / "m" / "model.safetensors.index.json"
    path.write_bytes(b'{"weight_map": {%s}}' % names)
    said = "names shard '0', which is not in the folder"
    with pytest.raises(InputError, match=said), bounded(BASE + 40 * len(names)):
        GPT2.load(tmp_path / "m")


@linux
def test_a_header_of_30_000_tensors_is_read_within_the_bound(tmp_path):
    entry = b'"%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    header = b"{" + b",".join(entry % i for i in range(30_000)) + b"}"
    (tmp_path / "a").write_bytes(damage.join(header, b""))
    with bounded(BASE + 40 * len(header)):
        assert len(map_tensors(tmp_path / "a", "it")[0]) == 30_000


@linux
def test_many_pairs_of_three_bytes_are_read_within_the_bound(tmp_path):
    data = b"source,target\n" + b"a,\n" * 300_000
    (tmp_path / "a.csv").write_bytes(data)
    with bounded(BASE // 4 + 160 * len(data)):
        assert len(read_pairs(tmp_path / "a.csv")) == 300_000


@pytest.mark.parametrize("shape", [[10**12], [2**32, 2**32], [10**6, 10**6], [2**63], [0, 2**62]])
def test_a_header_that_claims_10_12_entries_allocates_nothing(tmp_path, shape):
    header = {"a": {"dtype": "F32", "shape": shape, "data_offsets": [0, 4]}}
    (tmp_path / "f").write_bytes(damage.join(json.dumps(header), bytes(4)))
    with pytest.raises(InputError, match="is not a whole"), bounded(BASE):
        map_tensors(tmp_path / "f", "it")


@pytest.mark.parametrize("key", ["n_layer", "n_embd", "vocab_size", "n_positions", "n_inner"])
@pytest.mark.parametrize("value", [10**12, 2**63 - 1, 2**63, 10**4299])
def test_a_config_that_claims_any_size_allocates_nothing(tmp_path, key, value):
    readers.put_model(tmp_path / "m", readers.small())
    raw = json.loads((tmp_path / "m" / "config.json").read_text()) | {key: value, "n_head": 1}
    (tmp_path / "m" / "config.json").write_text(json.dumps(raw))
    with pytest.raises(InputError) as error, bounded(BASE):
        GPT2.load(tmp_path / "m")
    assert len(str(error.value)) < 1000


def test_a_million_layers_that_names_pretend_are_there_are_a_sentence(tmp_path):
    model = readers.small()
    readers.put_model(tmp_path / "m", model)
    extra = {f"h.x{i}.a": np.zeros(1, np.float32) for i in range(3)}
    extra["h.5.ln_1.weight"] = np.zeros(8, np.float32)
    save_file({**model.weights, **extra}, tmp_path / "m" / "model.safetensors")
    raw = json.loads((tmp_path / "m" / "config.json").read_text()) | {"n_layer": 10**12}
    (tmp_path / "m" / "config.json").write_text(json.dumps(raw))
    with pytest.raises(InputError, match=r"tensor 'h\.2\.ln_1\.weight' is missing"):
        GPT2.load(tmp_path / "m")


# ---- where a file may lie ----


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "repo" / "snapshots" / "0123").mkdir(parents=True)
    (tmp_path / "repo" / "blobs").mkdir()
    (tmp_path / "repo" / "blobs" / "b").write_text("a blob")
    (tmp_path / "repo" / "blobs" / "sub").mkdir()
    (tmp_path / "repo" / "blobs" / "sub" / "c").write_text("no blob")
    (tmp_path / "outside").write_text("a secret")
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "f").write_text("a file")
    return tmp_path


@pytest.mark.parametrize(
    "name", ["", ".", "..", "/", "../plain/f", "a/b", "a\\b", "a\0", "\ud800", 5]
)
def test_a_name_that_is_a_path_or_none_is_refused(folder, name):
    with pytest.raises(
        InputError, match="is no name of a file: expected the thing within"
    ) as error:
        reading.inside(folder / "plain", name, "the thing")
    assert str(error.value).isprintable()


def test_what_is_missing_is_the_callers_to_miss(folder):
    for at in (folder / "plain", folder / "absent", folder / "plain" / "f"):
        assert reading.inside(at, "absent", "it") == at / "absent"


def test_a_file_and_a_link_within_the_folder_are_read(folder):
    plain = folder / "plain"
    (plain / "sub").mkdir()
    (plain / "sub" / "g").write_text("below")
    (plain / "link").symlink_to("f")
    (plain / "below").symlink_to(plain / "sub" / "g")
    (folder / "to plain").symlink_to(plain)  # the folder itself may be a link
    for at in (plain, folder / "to plain"):
        assert reading.inside(at, "f", "it").read_text() == "a file"
        assert reading.inside(at, "link", "it").read_text() == "a file"
        assert reading.inside(at, "below", "it").read_text() == "below"


@pytest.mark.parametrize("to", ["../outside", "{}/outside", "chain", "../plainer/f", "/etc/passwd"])
def test_a_link_out_of_the_folder_is_refused_with_both_ends(folder, to):
    (folder / "plainer").mkdir()
    (folder / "plainer" / "f").write_text("begins like the folder")
    (folder / "plain" / "chain").symlink_to(folder / "outside")
    link = folder / "plain" / "link"
    link.symlink_to(to.format(folder))
    said = (
        rf"plain/link is a link to {link.resolve()}, outside its folder: copy the file there; it is"
    )
    with pytest.raises(InputError, match=said):
        reading.inside(folder / "plain", "link", "it")


def test_a_link_from_a_snapshot_into_the_hubs_blobs_is_read_and_no_other(folder):
    at = folder / "repo" / "snapshots" / "0123"
    (at / "good").symlink_to("../../blobs/b")
    assert reading.inside(at, "good", "it").read_text() == "a blob"
    for n, to in enumerate(("../../blobs/sub/c", "../../../outside", "../../blobs/../../outside")):
        (at / f"bad {n}").symlink_to(to)
        with pytest.raises(InputError, match=f"bad {n} is a link to .*, outside its folder"):
            reading.inside(at, f"bad {n}", "it")
    (folder / "plain" / "to a blob").symlink_to("../repo/blobs/b")  # from elsewhere
    with pytest.raises(InputError, match="outside its folder"):
        reading.inside(folder / "plain", "to a blob", "it")
    (folder / "repo" / "blobs" / "on").symlink_to(folder / "outside")  # a blob that leads on
    (at / "on").symlink_to("../../blobs/on")
    with pytest.raises(InputError, match="outside its folder"):
        reading.inside(at, "on", "it")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda p: os.mkfifo(p), "Is a pipe"),
        (lambda p: p.mkdir(), "Is a directory"),
        (lambda p: p.symlink_to("."), "link to .*plain, outside"),
        (lambda p: p.symlink_to("/dev/zero"), "link to /dev/zero, outside"),
        (lambda p: p.symlink_to(p.name), "a broken link.*levels of symbolic links"),
        (lambda p: p.symlink_to("nothing"), "a broken link.*No such file"),
    ],
)
def test_what_is_no_regular_file_is_refused_by_every_reader(folder, make, kind):
    path = folder / "plain" / "p.jsonl"
    make(path)
    with pytest.raises(InputError, match=kind):
        reading.inside(path.parent, path.name, "it")
    for read in (
        lambda: reading.read_text(path, "it"),
        lambda: reading.read_bytes(path, "it"),
        lambda: reading.read_json(path, "it"),
        lambda: map_tensors(path, "it"),
        lambda: read_pairs(path),
        lambda: fingerprint(path),
    ):
        with pytest.raises(InputError, match=r"cannot read .*p\.jsonl"):
            read()


def test_data_may_be_a_link_anywhere(folder):
    (folder / "data.jsonl").write_text('{"source": "a", "target": "b"}\n')
    (folder / "plain" / "d.jsonl").symlink_to(folder / "data.jsonl")
    path = folder / "plain" / "d.jsonl"
    assert read_pairs(path)[0][:2] == ("a", "b")
    assert fingerprint(path) == fingerprint(folder / "data.jsonl")


# ---- what a file may hold ----


def test_a_key_that_is_there_twice_is_refused_by_name(tmp_path):
    path = tmp_path / "a.json"
    for text in ('{"n_layer": 1, "n_layer": 2}', '{"a": [{"n_layer": 0, "n_layer": 0}]}'):
        path.write_text(text)
        with pytest.raises(InputError, match=r"a\.json: not JSON .*key 'n_layer' is there twice"):
            reading.read_json(path, "it")
    entry = '{"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}'
    path.write_bytes(damage.join(f'{{"a": {entry}, "a": {entry}}}', b""))
    with pytest.raises(InputError, match="key 'a' is there twice"):
        map_tensors(path, "it")
    (tmp_path / "a.jsonl").write_text('\n{"source": "a", "target": "b", "source": "c"}\n')
    with pytest.raises(InputError, match=r"line 2: not JSON .*key 'source' is there twice"):
        read_pairs(tmp_path / "a.jsonl")


def test_a_json_file_above_the_limit_is_not_even_read(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("{}")
    os.truncate(path, reading.LARGEST_JSON + 1)
    with pytest.raises(InputError, match=r"has 100,000,001 bytes: expected at most"), bounded(BASE):
        reading.read_json(path, "it")


@linux
def test_a_data_file_larger_than_the_memory_is_a_sentence(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("source,target\n")
    os.truncate(path, 10**12)
    with pytest.raises(InputError, match="1,000,000,000,000 bytes, more than the memory holds"):
        read_pairs(path)


def test_what_a_file_says_is_shown_short_and_printable():
    for value in ("x" * 10**6, [[0] * 9] * 9, {"a" * 999: 10**4000}, "\x1b[2J\n", 10**4299):
        assert len(errors.quoted(value)) < 700
        assert errors.quoted(value).isprintable()
    assert errors.quoted("a") == "'a'"
    assert errors.listed("abc") == "'a', 'b', 'c'"
    assert errors.listed(range(10)) == "0, 1, 2, 3, 4, 5, 6, 7 and 2 more"
    assert errors.listed([]) == "none"
    assert errors.brief(ValueError("a\n\x1bb" + "c" * 999)) == "a ?b" + "c" * 196 + "..."


def nested(kind):
    deep = []
    for _ in range(100):
        deep = [deep]
    return {"model": {"vocab": deep}, "normalizer": {"normalizers": [{"a": {"type": kind}}]}}


def test_a_tokenizer_that_could_ask_for_any_memory_is_refused_by_name(tmp_path):
    (tmp_path / "tokenizer.json").write_text(json.dumps(nested("Precompiled")))
    with pytest.raises(InputError, match=r"tokenizer\.json has a 'Precompiled' normalizer"):
        read_tokenizer(tmp_path)


@pytest.mark.parametrize(
    "part",
    [
        {"model": {"type": "BPE", "continuing_subword_prefix": "##",
                   "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]}},
        {"pre_tokenizer": {"type": "FixedLength", "length": 0}},
        {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated",
                           "invert": False}},
    ],
)  # fmt: skip
def test_a_tokenizer_that_panics_is_a_sentence(tmp_path, part):
    """In the library these are no exceptions but panics, which `except Exception` lets through."""
    raw = json.loads(readers.byte_level().to_str()) | part
    (tmp_path / "tokenizer.json").write_text(json.dumps(raw))
    with pytest.raises(InputError, match=r"the tokenizer in .* cannot be read \(.*fetch its files"):
        read_tokenizer(tmp_path)


@pytest.mark.parametrize("i", [-1, 2**32, 1.0, "1", None, True, [0]])
def test_an_id_that_the_library_would_cut_or_leave_out_is_refused(tmp_path, i):
    readers.byte_level().model.save(str(tmp_path))
    vocab = json.loads((tmp_path / "vocab.json").read_text())
    (tmp_path / "vocab.json").write_text(json.dumps(vocab | {"a": i}))
    with pytest.raises(
        InputError, match=r"vocab\.json: token 'a' has id .*expected a whole number"
    ):
        read_tokenizer(tmp_path)
    (tmp_path / "vocab.json").write_text(json.dumps(vocab | {"a": vocab["b"]}))
    with pytest.raises(InputError, match=r"vocab\.json: two tokens have one id"):
        read_tokenizer(tmp_path)


def test_vocab_and_merges_make_the_tokenizer_that_the_library_makes(tmp_path):
    tokenizer = readers.byte_level()
    tokenizer.model.save(str(tmp_path))
    ours = read_tokenizer(tmp_path)
    for text in (readers.TEXT, "Vaults serves<|endoftext|>", "\n\t \u00e4"):
        assert ours.encode(text).ids == tokenizer.encode(text).ids
    assert len(ours.encode("Italian").ids) < 7  # the merges are there


def change_state(folder, **numbers):
    path = folder / STATE
    text, body = damage.split(path.read_bytes())
    header = json.loads(text)
    held = json.loads(header["__metadata__"]["minprefix"])
    held["state"] |= numbers
    header["__metadata__"]["minprefix"] = json.dumps(held)
    path.write_bytes(damage.join(json.dumps(header), body))


@pytest.mark.parametrize(
    ("numbers", "sentence"),
    [
        ({"step": "3"}, "its step is '3'"),
        ({"step": -1, "t": -1}, "its step is -1"),
        ({"step": True, "t": True}, "its step is True"),
        ({"t": None}, "its t is None"),
        ({"step": 4}, "its numbers contradict each other"),
        ({"best_step": None}, "its numbers contradict each other"),
        ({"best_loss": float("nan")}, "its best_loss is nan"),
        ({"best_loss": "1"}, "its best_loss is '1'"),
        ({"step": 9, "t": 9}, "is at step 9 of 5"),
        ({"step": 0, "t": 0}, "1 tensor 'm' at step 0"),
        ({"best_step": None, "best_loss": None}, "1 tensor 'best' at step 3"),
    ],
)
def test_a_state_whose_numbers_no_run_has_is_refused(tmp_path, numbers, sentence):
    readers.make_states(tmp_path)
    assert readers.read_state(tmp_path / "flat")[1].step == 3
    change_state(tmp_path / "flat", **numbers)
    with pytest.raises(InputError, match=sentence):
        readers.read_state(tmp_path / "flat")


@pytest.mark.parametrize(
    ("name", "value"),
    [("m.kv", np.nan), ("parameter.kv", np.inf), ("v.kv", -1), ("best.kv", np.nan)],
)
def test_a_state_that_holds_what_no_training_leaves_is_refused_and_changes_nothing(
    tmp_path, name, value
):
    readers.make_states(tmp_path)
    path = tmp_path / "flat" / STATE
    tensors, metadata = map_tensors(path, "it")
    tensors = {n: np.array(a) for n, a in tensors.items()}
    tensors[name].flat[3] = value
    save_file(tensors, path, metadata)
    prefix, record = readers.run_of("flat")
    before = prefix.kv.copy()
    with pytest.raises(InputError, match=rf"tensor '{name}' holds NaN, infinity, or less than 0"):
        readers.run.load_state(tmp_path / "flat", readers.state_of(prefix), record)
    assert np.array_equal(prefix.kv, before)


@pytest.mark.parametrize(
    "line",
    [
        b'{"step": 1e999, "loss": 1}', b'{"step": "2", "loss": 1}', b'{"step": 2, "loss": null}',
        b'{"step": 2, "loss": 1, "valid_loss": []}', b'{"step": 2, "loss": 1' + b"0" * 999 + b"}",
        b"[" * 100_000,
        '{"step": 2, "loss": 1}'.encode("utf-16-le"), b"\xff",
    ],
)  # fmt: skip
def test_a_log_ends_at_its_first_line_that_is_none(tmp_path, line):
    good = b'{"step": 1, "loss": 2, "valid_loss": 3}\n'
    (tmp_path / LOG).write_bytes(good + line + b"\n" + good.replace(b"1", b"3", 1))
    assert log_lines(tmp_path / LOG) == [{"step": 1, "loss": 2.0, "valid_loss": 3.0}]
