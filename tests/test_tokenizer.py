"""The files that a tokenizer comes in, those beside it, and what they say: against transformers."""

import json
import re
import warnings

import numpy as np
import pytest
from tokenizers import (
    ByteLevelBPETokenizer,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)
from transformers import AutoTokenizer, GPT2LMHeadModel

from minprefix import GPT2, Config, InputError, Prefix, generate
from minprefix.cli import main
from minprefix.cli.prompt import encode
from minprefix.data.pairs import Pair, Template, encode_pairs
from minprefix.errors import Note
from minprefix.prefixes.verify import verify
from minprefix.storage.tokenizer import CONFIG, NAMES, read_tokenizer
from tests.conftest import random_model

TEXTS = [
    "[SEP]", "Hello world", " Hello world", "Hello [SEP] world", "Hello[SEP]world [MASK] x<pad>",
    "hello <|endoftext|> x", "[sep] HELLO", "a  [MASK]  b\n[MASK]", "x[SEP]y, ë [SEP].", "",
]  # fmt: skip
TRAINED = ByteLevelBPETokenizer()
TRAINED.train_from_iterator(
    ["Hello world, the [SEP] world of Hello <pad> x [MASK]"] * 3,
    300,
    special_tokens=["<|endoftext|>"],
    show_progress=False,
)
WHOLE = TRAINED._tokenizer.to_str()
N = TRAINED.get_vocab_size()


def write(folder, files, whole=None):
    """A folder whose tokenizer is vocab.json and merges.txt, or the text of a tokenizer.json."""
    folder.mkdir(parents=True, exist_ok=True)
    if whole is None:
        TRAINED.save_model(str(folder))
    else:
        (folder / "tokenizer.json").write_text(whole)
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def model_folder(folder, files, whole=None, rows=N + 8, **config):
    random_model(Config(1, 1, 8, rows, 64, **config), dtype="float32").save(folder)
    return write(folder, files, whole)


def changed(**parts):
    return json.dumps(json.loads(WHOLE) | parts)


def ids(tokenizer, text):
    """Of the library's tokenizers and of transformers'."""
    found = tokenizer.encode(text, add_special_tokens=False)
    return found if isinstance(found, list) else found.ids


def token(content, **flags):
    fields = ("lstrip", "normalized", "rstrip", "single_word", "special")
    return {"content": content, **dict.fromkeys(fields, False), **flags}


# ---- as in transformers ----

ALONE = {
    "nothing": {},
    "an added token": {"added_tokens": {"[SEP]": N}},
    "added tokens in another order": {"added_tokens": {"[SEP]": N + 1, "[MASK]": N}},
    "an added token that was there": {"added_tokens": {"<|endoftext|>": 0}},
    "special tokens as texts": {"special_tokens_map": {"pad_token": "<pad>", "sep_token": "[SEP]"}},
    "a special token with its flags": {
        "special_tokens_map": {"mask_token": token("[MASK]", lstrip=True, rstrip=True)}
    },
    "a special token of one word": {
        "special_tokens_map": {"sep_token": token("[SEP]", single_word=True)}
    },
    "additional special tokens": {
        "special_tokens_map": {"additional_special_tokens": ["[SEP]", "[MASK]"]}
    },
    "extra special tokens": {"tokenizer_config": {"extra_special_tokens": ["[MASK]", "[SEP]"]}},
    "extra special tokens with names": {
        "tokenizer_config": {"extra_special_tokens": {"image_token": "[SEP]"}}
    },
    "a special token with a name of its own": {"tokenizer_config": {"image_token": "[SEP]"}},
    "the files of 2019": {
        "special_tokens_map": {
            "bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>",
            "unk_token": "<|endoftext|>", "sep_token": "[SEP]", "pad_token": "<pad>",
            "additional_special_tokens": ["[MASK]"],
        },
        "added_tokens": {"<pad>": N + 1, "[MASK]": N + 2, "[SEP]": N},
        "tokenizer_config": {"max_len": 1024, "init_inputs": []},
    },
    "the files of 2021": {
        "special_tokens_map": {
            "bos_token": token("<|endoftext|>", normalized=True),
            "eos_token": token("<|endoftext|>", normalized=True),
            "unk_token": token("<|endoftext|>", normalized=True),
            "mask_token": token("[MASK]", lstrip=True),
        },
        "added_tokens": {"[MASK]": N},
        "tokenizer_config": {
            "unk_token": token("<|endoftext|>", normalized=True) | {"__type": "AddedToken"},
            "add_prefix_space": True, "errors": "replace", "model_max_length": 1024,
            "special_tokens_map_file": None, "name_or_path": "gpt2",
            "tokenizer_class": "GPT2Tokenizer",
        },
    },
    "the files of 2023": {
        "special_tokens_map": {"sep_token": "[nothing]"}, "added_tokens": {"[no]": N},
        "tokenizer_config": {
            "added_tokens_decoder": {
                "0": token("<|endoftext|>", normalized=True, special=True),
                f"{N}": token("[SEP]", lstrip=True, normalized=True),
                f"{N + 1}": token("[MASK]", special=True),
            },
            "eos_token": "<|endoftext|>", "mask_token": "[MASK]",
            "clean_up_tokenization_spaces": True,
        },
    },
    "no special tokens but these": {
        "special_tokens_map": {"bos_token": "[SEP]", "eos_token": "[SEP]", "unk_token": "[SEP]"}
    },
    "a special token of null": {"special_tokens_map": {"pad_token": None}},
    "a blank before a text": {"tokenizer_config": {"add_prefix_space": True}},
    "no blank before a text": {"tokenizer_config": {"add_prefix_space": False}},
    "special tokens are split": {
        "tokenizer_config": {"split_special_tokens": True, "sep_token": "[SEP]"}
    },
}  # fmt: skip
TRUE_IN_ITSELF = changed(
    pre_tokenizer=json.loads(WHOLE)["pre_tokenizer"] | {"add_prefix_space": True}
)
PLAIN = {"tokenizer_class": "PreTrainedTokenizerFast"}
WITH_SEP = changed(
    added_tokens=[*json.loads(WHOLE)["added_tokens"], {"id": N, **token("[SEP]", lstrip=True)}]
)
BESIDE = {
    **{f"{name}, beside tokenizer.json": (files, WHOLE) for name, files in ALONE.items()},
    "no blank where tokenizer.json has one": (
        {"tokenizer_config": {"add_prefix_space": False}}, TRUE_IN_ITSELF,
    ),
    "a plain class takes the blank from tokenizer.json": (
        {"tokenizer_config": {"add_prefix_space": False, **PLAIN}}, TRUE_IN_ITSELF,
    ),
    "a plain class takes no blank from the settings": (
        {"tokenizer_config": {"add_prefix_space": True, **PLAIN}}, WHOLE,
    ),
    "a plain class with a token": ({"tokenizer_config": {"sep_token": "[SEP]", **PLAIN}}, WHOLE),
    "tokenizer.json knows the token better": (
        {"special_tokens_map": {"sep_token": "[SEP]"}}, WITH_SEP,
    ),
    "the settings know it better still": (
        {"tokenizer_config": {"added_tokens_decoder": {f"{N}": token("[SEP]", rstrip=True)}}},
        WITH_SEP,
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::minprefix.errors.Note")
@pytest.mark.parametrize(
    ("files", "whole"),
    [*((files, None) for files in ALONE.values()), *BESIDE.values()],
    ids=[*ALONE, *BESIDE],
)
def test_what_lies_beside_a_tokenizer_counts_as_in_transformers_and_is_saved(
    tmp_path, files, whole
):
    folder = model_folder(tmp_path / "one", files, whole)
    theirs, ours = AutoTokenizer.from_pretrained(folder), GPT2.load(folder)
    assert [ours.encode(text) for text in TEXTS] == [ids(theirs, text) for text in TEXTS]
    assert ours.encode_many(TEXTS) == [ours.encode(text) for text in TEXTS]
    assert ours.tokenizer.get_vocab() == theirs.get_vocab()
    ours.save(tmp_path / "two")
    again, theirs = GPT2.load(tmp_path / "two"), AutoTokenizer.from_pretrained(tmp_path / "two")
    assert [again.encode(text) for text in TEXTS] == [ours.encode(text) for text in TEXTS]
    assert [ids(theirs, text) for text in TEXTS] == [ours.encode(text) for text in TEXTS]
    assert again.tokenizer_fingerprint() == ours.tokenizer_fingerprint()


def test_the_rows_and_files_of_a_gpt2_with_added_tokens(tmp_path, gpt2_bpe):
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).write_bytes((gpt2_bpe / name).read_bytes())
    plain = read_tokenizer(tmp_path)
    assert ids(plain, "[SEP]") == [58, 5188, 47, 60]
    assert ids(plain, "Hello world") == [15496, 995]
    (tmp_path / "added_tokens.json").write_text('{"[SEP]": 50258}')
    (tmp_path / "tokenizer_config.json").write_text('{"add_prefix_space": true}')
    ours = read_tokenizer(tmp_path)
    assert ids(ours, "[SEP]") == [50258]
    assert ids(ours, "Hello world") == [18435, 995]
    assert ours.decode([18435, 995, 50258]) == " Hello world[SEP]"


# ---- ids ----


GAPS = {
    "added_tokens.json": ({"added_tokens": {"[SEP]": N + 1, "[MASK]": N + 4}}, None),
    "beside tokenizer.json": ({"added_tokens": {"[SEP]": N + 1, "[MASK]": N + 4}}, WHOLE),
    "tokenizer_config.json": (
        {"tokenizer_config": {
            "added_tokens_decoder": {f"{N + 1}": token("[SEP]"), f"{N + 4}": token("[MASK]")}
        }},
        WHOLE,
    ),
    "tokenizer.json": (
        {},
        changed(added_tokens=[{"id": N + 1, **token("[SEP]")}, {"id": N + 4, **token("[MASK]")}]),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("files", "whole"), GAPS.values(), ids=GAPS)
def test_a_token_keeps_the_id_that_its_file_gives_where_that_leaves_a_gap(tmp_path, files, whole):
    """transformers' fast tokenizers count on by themselves: [SEP] would get another row."""
    model = GPT2.load(model_folder(tmp_path / "one", files, whole))
    assert model.encode("a[SEP] [MASK]") == [65, N + 1, 221, N + 4]
    assert model.decode([N + 4, 65]) == "[MASK]a"
    model.save(tmp_path / "two")
    again, theirs = GPT2.load(tmp_path / "two"), AutoTokenizer.from_pretrained(tmp_path / "two")
    for text in TEXTS[:5]:
        assert again.encode(text) == model.encode(text) == ids(theirs, text)


@pytest.mark.parametrize("i", [2**20, 2**32 - 2])
def test_an_id_that_leaves_an_absurd_gap_is_a_sentence_and_takes_no_memory(tmp_path, i):
    folder = write(tmp_path, {})
    vocab = json.loads((folder / "vocab.json").read_text())
    vocab.pop("<|endoftext|>")
    (folder / "vocab.json").write_text(json.dumps(vocab | {"Hello": i}))
    with pytest.raises(InputError, match=rf"has id {i + 1}, .* expected ids below 1048576"):
        read_tokenizer(folder)


def test_a_special_token_without_an_id_follows_the_last_one(tmp_path):
    files = {"added_tokens": {"[SEP]": N + 3}, "special_tokens_map": {"pad_token": "<pad>"}}
    assert ids(read_tokenizer(write(tmp_path, files)), "[SEP]<pad>") == [N + 3, N + 4]


def test_a_token_may_fill_a_hole_of_the_vocabulary(tmp_path):
    write(tmp_path, {"added_tokens": {"[SEP]": 5}, "tokenizer_config": {"pad_token": "<pad>"}})
    vocab = json.loads((tmp_path / "vocab.json").read_text())
    (tmp_path / "vocab.json").write_text(json.dumps({t: i for t, i in vocab.items() if i != 5}))
    assert ids(read_tokenizer(tmp_path), "[SEP]<pad>") == [5, N]


@pytest.mark.parametrize(
    ("added", "sentence"),
    [
        ({"[SEP]": 5}, r"gives '\[SEP\]' the id 5, and the tokenizer itself has '%' for it"),
        ({"x": N + 3}, rf"gives 'x' the id {N + 3}, and the tokenizer itself has 88 for it"),
        ({"[SEP]": N, "[MASK]": N}, r"added_tokens\.json: '\[SEP\]' and '\[MASK\]' have one id"),
        ({"[SEP]": "7"}, r"added_tokens\.json: token '\[SEP\]' has id '7': expected a whole num"),
        ({"[SEP]": True}, "has id True: expected a whole number"),
        ({"[SEP]": -1}, "has id -1: expected a whole number"),
        ({"[SEP]": 2**32}, "has id 4294967296: expected a whole number"),
        ({"": N}, r"added_tokens\.json: a token is .*: expected its text, or an object"),
        (["[SEP]"], r"added_tokens\.json"),
    ],
)  # fmt: skip
def test_ids_that_contradict_each_other_or_are_none_are_refused(tmp_path, added, sentence):
    with pytest.raises(InputError, match=sentence):
        read_tokenizer(write(tmp_path, {"added_tokens": added}))
    with pytest.raises(InputError):
        read_tokenizer(write(tmp_path / "whole", {"added_tokens": added}, WHOLE))


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        (CONFIG, {"add_prefix_space": "yes"}, "add_prefix_space is 'yes': expected true"),
        (CONFIG, {"split_special_tokens": 1}, "split_special_tokens is 1: expected true"),
        (CONFIG, {"eos_token": 5}, "eos_token is 5: expected its text, or an object"),
        (CONFIG, {"extra_special_tokens": "x"}, "extra_special_tokens is 'x': expected a list"),
        (CONFIG, {"added_tokens_decoder": []}, r"added_tokens_decoder is \[\]: expected tokens"),
        (CONFIG, {"added_tokens_decoder": {"x": token("y")}}, "token 'y' has id 'x': expected"),
        (CONFIG, {"added_tokens_decoder": {"9": {}}}, "token 9 is {}: expected its text"),
        (NAMES, {"sep_token": token("x", lstrip=1)}, "sep_token is .*: expected its text"),
        (NAMES, {"sep_token": token("x", stripe=True)}, "sep_token is .*: expected its text"),
        (NAMES, {"additional_special_tokens": [3]}, "additional_special_tokens is 3: expected"),
    ],
)  # fmt: skip
def test_a_malformed_file_beside_a_tokenizer_is_a_sentence(tmp_path, name, content, sentence):
    with pytest.raises(InputError, match=rf"{name}: {sentence}"):
        read_tokenizer(write(tmp_path, {name.removesuffix(".json"): content}))


@pytest.mark.parametrize("name", ["tokenizer_config", "special_tokens_map", "added_tokens"])
def test_a_damaged_file_beside_a_tokenizer_is_named(tmp_path, name):
    write(tmp_path, {})
    (tmp_path / f"{name}.json").write_text('{"a": ')
    with pytest.raises(InputError, match=rf"{name}\.json"):
        read_tokenizer(tmp_path)


def test_a_token_beyond_the_models_rows_is_a_sentence_where_a_text_holds_it(tmp_path):
    files = {"special_tokens_map": {"pad_token": "<pad>"}}
    model = GPT2.load(model_folder(tmp_path, files, rows=N))
    assert len(generate(model, ["Hello"], max_new_tokens=2)) == 1
    with pytest.raises(
        InputError, match=rf"token id {N} .* outside the vocabulary .*, 0 to {N - 1}"
    ):
        generate(model, ["Hello<pad>"], max_new_tokens=2)


# ---- the tokens that end a text ----

EOS = "eos_token_id"
ENDS = {
    "config.json": ({EOS: 5}, None, {}, 5),
    "several in config.json": ({EOS: [5, 7, 5]}, None, {}, (5, 7)),
    "a list of one": ({EOS: [5]}, None, {}, 5),
    "an empty list": ({EOS: []}, None, {}, None),
    "null": ({EOS: None}, None, {"eos_token": "x"}, None),
    "generation_config.json": ({EOS: 5}, {EOS: 7}, {}, 7),
    "several in generation_config.json": ({EOS: 5}, {EOS: [7, 5]}, {}, (5, 7)),
    "several, none of config.json": ({EOS: 5}, {EOS: [7, 8]}, {}, (7, 8)),
    "several, one the tokenizer's": ({EOS: 5}, {EOS: [7, 8, 88]}, {"eos_token": "x"}, (88, 7, 8)),
    "generation_config.json without one": ({EOS: 5}, {"do_sample": True}, {}, 5),
    "generation_config.json with null": ({EOS: 5}, {EOS: None}, {}, 5),
    "the tokenizer alone": ({}, None, {"eos_token": token("x")}, 88),
    "the tokenizer beside another": ({EOS: 5}, None, {"eos_token": "x"}, 5),
    "nothing": ({}, None, {}, None),
}  # fmt: skip


@pytest.mark.parametrize(("config", "generation", "settings", "want"), ENDS.values(), ids=ENDS)
def test_the_end_tokens_are_those_of_the_files_and_are_saved(
    tmp_path, config, generation, settings, want
):
    files = {"tokenizer_config": settings} | (
        {"generation_config": generation} if generation is not None else {}
    )
    folder = model_folder(tmp_path / "one", files)
    raw = json.loads((folder / "config.json").read_text())
    del raw[EOS]
    (folder / "config.json").write_text(json.dumps(raw | config))
    model = GPT2.load(folder)
    assert model.config.eos_token_id == want
    assert model.config.end_tokens == (
        want if isinstance(want, tuple) else (want,)[: want is not None]
    )
    if generation is None or generation.get(EOS) is not None:  # else it stops nowhere there
        theirs = stops(folder)
        assert theirs == set(model.config.end_tokens) or (theirs == set() and not config)
    model.save(tmp_path / "two")
    assert GPT2.load(tmp_path / "two").config == model.config
    assert stops(tmp_path / "two") == set(model.config.end_tokens)


def stops(folder):
    """Where transformers' generate ends a text."""
    found = GPT2LMHeadModel.from_pretrained(folder).generation_config.eos_token_id
    return set(found) if isinstance(found, list) else {found} - {None}


@pytest.mark.parametrize("name", ["config", "generation_config"])
@pytest.mark.parametrize(
    ("key", "value", "left"),
    [(EOS, 50256, None), (EOS, -1, None), (EOS, [50256, 5], 5), ("bos_token_id", 50256, None)],
)
def test_a_token_outside_the_vocabulary_has_no_effect_and_is_said_once(
    tmp_path, name, key, value, left
):
    folder = model_folder(tmp_path, {})
    path = folder / f"{name}.json"
    raw = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(raw | {key: value}))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        models = [GPT2.load(folder) for _ in range(2)]
    assert [getattr(model.config, key) for model in models] == [left, left]
    if (name, key) != ("generation_config", "bos_token_id"):  # nothing reads that one
        outside = value[0] if isinstance(value, list) else value
        sentence = (
            rf"{name}\.json: {key} {outside} lies outside the vocabulary, 0 to {N + 7}: it has"
        )
        assert len(said) == 1
        assert said[0].category is Note
        assert re.search(sentence, str(said[0].message))


@pytest.mark.parametrize("value", ["5", 5.0, True, [[5]], ["5"], {"5": 5}])
def test_an_end_token_that_is_no_number_is_refused(tmp_path, value):
    folder = model_folder(tmp_path, {"generation_config": {EOS: value}})
    wrong = re.escape(repr(value))
    with pytest.raises(InputError, match=rf"generation_config\.json: {EOS} is {wrong}: expected a"):
        GPT2.load(folder)


# ---- what has no effect is said ----


@pytest.mark.parametrize(
    ("settings", "whole", "sentence"),
    [
        ({"add_bos_token": True}, None, "the tokenizer's add_bos_token asks for special tokens"),
        ({}, "bos", "the tokenizer's post_processor asks for special tokens"),
        ({"do_lower_case": True}, None, "do_lower_case has no effect"),
        ({"tokenizer_class": "CTRLTokenizer"}, None, "vocab.json and merges.txt are read as"),
        ({"add_prefix_space": True, **PLAIN}, WHOLE, "add_prefix_space is True, which has no"),
    ],
)  # fmt: skip
def test_a_setting_that_has_no_effect_is_said(tmp_path, settings, whole, sentence):
    if whole == "bos":
        tokenizer = Tokenizer.from_str(WHOLE)
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
        )
        whole = tokenizer.to_str()
    write(tmp_path, {"tokenizer_config": settings}, whole)
    with pytest.warns(Note, match=re.escape(sentence)):
        read_tokenizer(tmp_path)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("whole", [None, WHOLE])
def test_a_usual_tokenizer_says_nothing(tmp_path, whole):
    settings = {"add_prefix_space": False, "add_bos_token": False, "model_max_length": 1024}
    files = {"tokenizer_config": settings | {"tokenizer_class": "GPT2Tokenizer"}}
    assert read_tokenizer(write(tmp_path, files, whole)) is not None


# ---- what stays ----


def test_a_tokenizer_without_files_beside_it_keeps_its_fingerprint(gpt2_bpe):
    """Prefixes record it: another one would be refused."""
    tiny = "c888fd774cb0709544fb47628d507e43f9cbd0ba520138f63d7525058ade6f67"
    gpt2 = "54a062a4a1e8275d24f4bba836281ba8f43666d4f1b13ef09882c404f9892c6c"
    model = GPT2.load("tiny")
    assert model.tokenizer_fingerprint() == tiny
    model.tokenizer = read_tokenizer(gpt2_bpe)
    assert model.tokenizer_fingerprint() == gpt2


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("special_tokens_map", {"additional_special_tokens": ["wor"]}, "Hello world"),
        ("special_tokens_map", {"unk_token": {"content": "[MASK]", "lstrip": True}}, "a [MASK]"),
        ("tokenizer_config", {"split_special_tokens": True}, "a<|endoftext|>"),
    ],
)
def test_tokens_that_are_cut_out_of_a_text_are_part_of_the_fingerprint(
    tmp_path, name, content, text
):
    bare = {"special_tokens_map": {"unk_token": "[MASK]"}} if "MASK" in text else {}
    one = GPT2.load(model_folder(tmp_path / "one", bare))
    other = GPT2.load(model_folder(tmp_path / "other", {name: content}))
    assert one.tokenizer.get_vocab() == other.tokenizer.get_vocab()
    assert one.encode(text) != other.encode(text)
    assert one.tokenizer_fingerprint() != other.tokenizer_fingerprint()
    other.save(tmp_path / "again")
    assert GPT2.load(tmp_path / "again").tokenizer_fingerprint() == other.tokenizer_fingerprint()


@pytest.mark.parametrize("whole", [None, WHOLE], ids=["vocab and merges", "tokenizer.json"])
def test_a_prefix_that_an_earlier_version_saved_loads_with_a_note(tmp_path, whole):
    """It recorded the fingerprint of a tokenizer without the files beside it."""
    files = {"added_tokens": {"[SEP]": N}, "tokenizer_config": {"add_prefix_space": True}}
    folder = model_folder(tmp_path / "model", {}, whole)
    before = GPT2.load(folder)
    prefix = Prefix.normal(before.config, 3)
    prefix.save(tmp_path / "prefix", before)
    after = GPT2.load(write(folder, files, whole))
    assert after.tokenizer_fingerprint() != before.tokenizer_fingerprint()
    with pytest.warns(Note, match="was trained before minprefix read the files beside the token"):
        again = Prefix.load(tmp_path / "prefix", after)
    assert np.array_equal(again.kv, prefix.kv)
    findings = {f.what: f for f in verify(tmp_path / "prefix", after)}
    assert findings["tokenizer"].right
    assert "by a version that read its tokenizer alone" in findings["tokenizer"].text

    prefix.save(tmp_path / "new", after)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Prefix.load(tmp_path / "new", after)
    other = GPT2.load(folder)
    other.tokenizer = letters("ab")
    other.save(tmp_path / "other")
    for name in ("prefix", "new"):
        with pytest.raises(InputError, match="was trained on another tokenizer"):
            Prefix.load(tmp_path / name, GPT2.load(tmp_path / "other"))


def test_a_blank_that_tokenizer_json_asks_for_stays_where_nothing_else_is_said(tmp_path):
    assert ids(read_tokenizer(write(tmp_path, {}, TRUE_IN_ITSELF)), "x") == ids(TRAINED, " x")


@pytest.mark.parametrize("has", [True, False], ids=["a tokenizer", "none"])
def test_saving_over_another_model_leaves_none_of_its_tokenizer_and_end_tokens(tmp_path, has):
    files = {
        "added_tokens": {"[SEP]": N}, "special_tokens_map": {"sep_token": "[SEP]"},
        "tokenizer_config": {"add_prefix_space": True}, "generation_config": {"eos_token_id": 3},
    }  # fmt: skip
    folder = model_folder(tmp_path, files)
    model = random_model(Config(1, 1, 8, N, 64, eos_token_id=0), dtype="float32")
    model.tokenizer = Tokenizer.from_str(WHOLE) if has else None
    model.save(folder)
    again = GPT2.load(folder)
    assert again.config.end_tokens == (0,)
    assert has == (again.tokenizer is not None)
    assert not has or again.encode("[SEP]") == ids(TRAINED, "[SEP]")
    kept = {"config.json", "model.safetensors"} | ({"tokenizer.json"} if has else set())
    assert {path.name for path in folder.iterdir()} == kept


# ---- what a tokenizer cannot say ----


def letters(alphabet, decoder=None, first=None):
    """A vocabulary of characters, as many small models have."""
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    tokenizer.decoder, tokenizer.pre_tokenizer = decoder, first
    return tokenizer


def words(*vocab, **more):
    tokenizer = Tokenizer(
        models.WordLevel({w: i for i, w in enumerate(("<unk>", *vocab))}, "<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


def bytes_without(*lost):
    """Byte-level BPE whose alphabet is not whole."""
    raw = json.loads(WHOLE)
    vocab = [t for t in raw["model"]["vocab"] if len(t) == 1 and t not in lost]
    raw["model"] |= {"vocab": {t: i for i, t in enumerate(vocab)}, "merges": []}
    return Tokenizer.from_str(json.dumps(raw | {"added_tokens": []}))


def normalized(normalizer, alphabet, decoder=None):
    tokenizer = letters(alphabet, decoder or decoders.Fuse())
    tokenizer.normalizer = normalizer
    return tokenizer


LOW = normalizers.Lowercase()
BLANKS = normalizers.Sequence([LOW, normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
SPLIT = pre_tokenizers.Split(Regex(""), "isolated")
ASCII = [chr(i) for i in range(32, 127)]
SAID = {
    "characters": (letters(ASCII, decoders.Fuse()), "Zoë O'Neil\n", {"ë": 1, "\n": 1}),
    "characters, no decoder": (letters(ASCII), "ë\n\n", {"ë": 1, "\n": 2}),
    "characters, split": (letters("Zo", decoders.Fuse(), SPLIT), "Zoo oZ ë", {" ": 2, "ë": 1}),
    "characters, split, no decoder": (letters("Zo", None, SPLIT), "Zoo oZ ë", {"ë": 1}),
    "letters without a blank": (letters("abc"), "a b c", {" ": 2}),
    "words": (words("a", "b"), "a  b zz\n b", {"z": 2, "\n": 1}),
    "bytes, one missing": (bytes_without("«"), "Zoë ë", {"ë": 2}),
    "bytes, the blank missing": (bytes_without("Ġ"), "a b", {" ": 1}),
    "small letters": (normalized(LOW, "zo nil'"), "Zo O'NEIL", {"e": 1}),
    "small letters, all there": (normalized(LOW, "zo neil'"), "Zo O'NEIL", {}),
    "blanks by another name": (
        normalized(BLANKS, "▁zo", decoders.Metaspace()), "Zo oz ZY", {"y": 1}
    ),
    "bytes": (TRAINED._tokenizer, "Zoë O'Neil \U0001f642\n\0", {}),
    "nothing at all": (letters(ASCII, decoders.Fuse()), "Hello", {}),
}  # fmt: skip


def speaking(tokenizer):
    model = random_model(Config(1, 1, 8, 300, 64, eos_token_id=0))
    model.tokenizer = tokenizer
    return model


@pytest.mark.parametrize(("tokenizer", "text", "want"), SAID.values(), ids=SAID)
def test_the_characters_that_a_tokenizer_has_no_token_for_are_said_once_with_their_number(
    tokenizer, text, want
):
    model = speaking(tokenizer)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for _ in range(2):
            model.encode(text)
            model.encode_many([text, text])
    assert len(said) == (1 if want else 0)
    if want:
        kinds = ", ".join(map(repr, sorted(want, key=lambda c: (-want[c], text.lower().index(c)))))
        n, verb = sum(want.values()), "is" if sum(want.values()) == 1 else "are"
        lost = f"{n} of the {len(text)} characters that it read {verb} lost"
        sentence = f"the tokenizer of model 'random' has no token for {kinds}: {lost}"
        assert (said[0].category, str(said[0].message)) == (Note, sentence)


def test_data_are_counted_as_a_whole_and_the_newline_of_the_template_with_them():
    model = speaking(letters(ASCII, decoders.Fuse()))
    pairs = [Pair("Zoë", "née", "line 1"), Pair("a", "b", "line 2")]
    with pytest.warns(Note, match=r"no token for '\\n', 'ë', 'é': 4 of the 10 characters") as said:
        encode_pairs(model, pairs, Template(), 60)
    assert len(said) == 1
    with pytest.warns(Note, match="'ü': 1 of the 3 characters"):  # what was said is not said again
        model.encode("üë.")


def test_a_note_is_no_fault_of_the_tokenizer_where_warnings_are_errors():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(Note, match="has no token for 'ü'"):
            speaking(letters("ab")).encode("aü")


def test_a_fingerprint_says_nothing_of_the_text_that_it_probes():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert speaking(letters("ab")).tokenizer_fingerprint()


def leaves_nothing(what):
    return pytest.raises(
        InputError, match=rf"{what}'ë' leaves no token: the tokenizer of model 'ra"
    )


@pytest.mark.filterwarnings("ignore::minprefix.errors.Note")
def test_a_text_that_vanishes_is_not_called_empty():
    model = speaking(letters(ASCII, decoders.Fuse()))
    with leaves_nothing("prompt 1: "):
        generate(model, ["a", "ë"])
    with leaves_nothing("line 1: the source "):
        encode_pairs(model, [Pair("ë", "a", "line 1")], Template(), 60)
    with leaves_nothing("line 1: the target "):
        encode_pairs(model, [Pair("a", "ë", "line 1")], Template(), 60)
    with leaves_nothing("the prefix's text "):
        Prefix.text(model, "ë")
    for prompt, target in (("ë", None), ("ë", "a"), ("a", "ë")):
        with leaves_nothing("--prompt " if prompt == "ë" else "--target "):
            encode(model, prompt, target, None)
    with pytest.raises(InputError, match="prompt 0 is empty"):
        generate(model, [""])
    with pytest.raises(InputError, match="the source is empty"):
        encode_pairs(model, [Pair("", "a", "line 1")], Template(), 60)


def test_the_command_line_says_what_is_lost(tmp_path, capsys):
    speaking(letters(ASCII, decoders.Fuse())).save(tmp_path)
    (tmp_path / "requests.jsonl").write_text('{"prompt": "ë", "prefix": null}\n')
    command = ["generate", "--model", str(tmp_path), "--max-new-tokens", "1"]
    assert main([*command, "--prompt", "Zoë"]) == 0
    note = f"minprefix: note: the tokenizer of model '{tmp_path}' has no token for 'ë': 1 of the 3 "
    assert capsys.readouterr().err.startswith(note)
    assert main([*command, "--prompt", "ë"]) == 2
    assert "error: prompt 0: 'ë' leaves no token" in capsys.readouterr().err
    assert main([*command, "--data", str(tmp_path / "requests.jsonl")]) == 2
    assert "requests.jsonl, line 1: 'ë' leaves no token" in capsys.readouterr().err
