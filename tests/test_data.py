"""Reading pairs, joining them, and the tiny world."""

import bz2
import csv
import gzip
import hashlib
import lzma
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import ByteLevelBPETokenizer

from minprefix import Config, InputError
from minprefix.data import world
from minprefix.data.pairs import (
    Encoded,
    Pair,
    Template,
    encode_pairs,
    fingerprint,
    group_references,
    read_pairs,
)
from minprefix.storage.tokenizer import read_tokenizer
from tests.conftest import random_model


def texts(pairs):
    return [(p.source, p.target) for p in pairs]


@pytest.fixture
def file(tmp_path):
    def write(name, content):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


# ---- JSONL ----


def test_jsonl_gives_its_pairs_in_order_with_their_lines(file):
    path = file(
        "a.jsonl",
        '{"source": "a", "target": "one"}\n'
        "\n"
        '{"target": ["two", "drei\\n\\u00e9"], "id": 7, "source": "b, \\"c\\""}\n'
        '  {"source": "a", "target": "four\u2028five"}  ',
    )
    assert read_pairs(path) == [
        Pair("a", "one", f"{path}, line 1"),
        Pair('b, "c"', "two", f"{path}, line 3"),
        Pair('b, "c"', "drei\né", f"{path}, line 3"),
        Pair("a", "four\u2028five", f"{path}, line 4"),
    ]


def test_jsonl_with_named_fields_a_bom_and_crlf(file):
    path = file("a.JSONL", '\ufeff{"mr": "a", "ref": "b"}\r\n{"mr": "c", "ref": "d"}\r\n')
    assert texts(read_pairs(str(path), "mr", "ref")) == [("a", "b"), ("c", "d")]


# ---- CSV ----


@pytest.mark.parametrize("header", ["source,target", "mr,ref", '"mr","ref"'])
def test_csv_finds_source_and_target_or_mr_and_ref_by_itself(file, header):
    path = file("a.csv", f"{header}\na,b\nc,d\n")
    assert read_pairs(path) == [
        Pair("a", "b", f"{path}, line 2"),
        Pair("c", "d", f"{path}, line 3"),
    ]


def test_csv_takes_the_named_columns_and_leaves_the_others_alone(file):
    path = file("a.csv", "id,text,mr,ref,record\n1,hello,m,r,x\n2,,m,r,y\n")
    assert texts(read_pairs(path, "record", "text")) == [("x", "hello"), ("y", "")]
    assert texts(read_pairs(path)) == [("m", "r"), ("m", "r")]
    assert texts(read_pairs(file("b.csv", "target,id,source\nt,1,s\n"))) == [("s", "t")]


def test_csv_keeps_quoted_commas_quotes_and_newlines(file):
    path = file("a.csv", 'source,target\n"a, b","say ""hi""\nand go"\nc,"d\n\ne"\n')
    assert texts(read_pairs(path)) == [("a, b", 'say "hi"\nand go'), ("c", "d\n\ne")]


def test_csv_with_a_bom_crlf_and_blank_lines(file):
    path = file("a.CSV", "\ufeffmr,ref\r\na,b\r\n\r\nc,Café £30\r\n")
    assert texts(read_pairs(path)) == [("a", "b"), ("c", "Café £30")]


def test_a_csv_pair_says_the_line_it_begins_at(file):
    path = file("a.csv", 'source,target\na,"b\nc"\n\nd,e\n')
    assert [p.where for p in read_pairs(path)] == [f"{path}, line 2", f"{path}, line 5"]


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.TSV"])
@pytest.mark.parametrize("sep", [",", ";", "\t", "|"], ids=["comma", "semicolon", "tab", "bar"])
def test_the_separator_is_the_one_that_gives_the_header_its_columns(file, name, sep):
    rows = [("id", "source", "target"), ("1", f'"a{sep} b"', "c"), ("2", "d", '"say ""hi"""')]
    path = file(name, "\n".join(map(sep.join, rows)))
    assert texts(read_pairs(path)) == [(f"a{sep} b", "c"), ("d", 'say "hi"')]
    assert texts(read_pairs(path, "id", "target")) == [("1", "c"), ("2", 'say "hi"')]
    quoted = file("b.csv", f'"mr"{sep}"ref"\n"a, b; c\td | e"{sep}"f"\n')
    assert texts(read_pairs(quoted)) == [("a, b; c\td | e", "f")]


def test_other_separators_in_a_header_or_a_text_do_not_count(file):
    path = file("a.csv", "source,target,notes; remarks; more\na;b,c;d|e,\n")
    assert texts(read_pairs(path)) == [("a;b", "c;d|e")]
    path = file("a.csv", 'id;"source, in words";target\n1;a, b;c\n')
    assert texts(read_pairs(path, "source, in words", "target")) == [("a, b", "c")]


@pytest.mark.parametrize("first", ["sep=;\n", "SEP=;\r\n", '"sep=;"\n', "\ufeffsep=;\r\n"])
def test_excels_first_line_names_the_separator(file, first):
    path = file("a.csv", f"{first}mr;ref\na,b;c\nd;\n")
    assert read_pairs(path) == [
        Pair("a,b", "c", f"{path}, line 3"),
        Pair("d", "", f"{path}, line 4"),
    ]
    path = file("a.csv", f"{first}mr;ref\na;b;c\n")
    with pytest.raises(InputError, match="line 3: 3 fields, the header names 2"):
        read_pairs(path)
    path = file("a.csv", f"{first}mr,ref\na,b\n")
    with pytest.raises(InputError, match=r"only 'mr,ref': .*put a comma, a semicolon, a tab or"):
        read_pairs(path)


@pytest.mark.parametrize("column", ["source", "target", "notes"])
def test_a_field_may_be_of_any_length_and_the_limit_of_others_stays(file, column):
    before = csv.field_size_limit()
    long = {"source": "a", "target": "b", "notes": ""} | {column: "x" * 200_000}
    path = file("a.csv", "source,target,notes\n" + ",".join(long.values()) + "\nc,d,e\n")
    assert texts(read_pairs(path)) == [(long["source"], long["target"]), ("c", "d")]
    assert csv.field_size_limit() == before
    path = file("a.csv", "source,target,notes\n" + ",".join(long.values()) + "\nc\n")
    with pytest.raises(InputError, match="line 3: 1 field, the header names 3"):
        read_pairs(path)
    assert csv.field_size_limit() == before


def test_threads_may_read_long_fields_at_the_same_time(file):
    before, short = csv.field_size_limit(), file("b.csv", "source,target\na,b\n")
    long = file("a.csv", "source,target\n" + "".join(f"{'x' * 140_000},{i}\n" for i in range(20)))
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda i: len(read_pairs(short if i % 2 else long)), range(40)))
    assert found == [20, 1] * 20
    assert csv.field_size_limit() == before


def test_rows_without_text_and_empty_columns_at_the_end_are_nothing(file):
    path = file("a.csv", ",,\n\nsource,target,,\na,b,,\n,,,\n  \nc,d,,,,\n;\n".replace(";", " , "))
    assert read_pairs(path) == [
        Pair("a", "b", f"{path}, line 4"),
        Pair("c", "d", f"{path}, line 7"),
    ]


def test_what_excel_saves_as_csv_utf_8_in_a_land_of_decimal_commas(file):
    content = '\ufeffmr;ref;Preis\r\n"name[Café; Bar]";"Das ""Café"", 3,50 €";3,5\r\n;;\r\n'
    path = file("a.csv", content)
    assert texts(read_pairs(path)) == [("name[Café; Bar]", 'Das "Café", 3,50 €')]


# ---- bad files ----

OK = '{"source": "a", "target": "b"}\n'
BAD = {
    "a missing file": (None, "none.csv", r"cannot read the data file .*none\.csv: No such file"),
    "an empty csv": (b"", "a.csv", r"data file .*a\.csv holds no pairs: expected at least one"),
    "an empty jsonl": (b"", "a.jsonl", r"data file .*a\.jsonl holds no pairs"),
    "a csv of blank lines": (b"\n\n", "a.csv", r"data file .*a\.csv holds no pairs"),
    "a jsonl of blank lines": (b"\n \n", "a.jsonl", r"data file .*a\.jsonl holds no pairs"),
    "a csv of a header alone": (b"mr,ref\n", "a.csv", r"data file .*a\.csv holds no pairs"),
    "a line that is not json": (
        OK + "{source: a}\n",
        "a.jsonl",
        r"a\.jsonl, line 2: not JSON \(.*\): expected one object a line",
    ),
    "json over several lines": ('[\n{"source": "a"}]', "a.jsonl", r"a\.jsonl, line 1: not JSON"),
    "a list on a line": (OK * 2 + "[1]\n", "a.jsonl", r"line 3: a list: expected an object"),
    "a text on a line": ('"x"\n', "a.jsonl", r"line 1: a str: expected an object"),
    "a missing field": (
        OK + '{"source": "a", "text": "b"}\n',
        "a.jsonl",
        r"line 2: no field 'target', only 'source', 'text': name the fields with --source-column "
        "and --target-column",
    ),
    "an object without fields": ("{}", "a.jsonl", "line 1: no field 'source', only none: name"),
    "a source that is a number": (
        OK + '{"source": 3, "target": "b"}',
        "a.jsonl",
        r"line 2: source and target must be text \(a target may be a list of texts\)",
    ),
    "a target that is null": ('{"source": "a", "target": null}', "a.jsonl", "line 1: source and"),
    "a target in a list": ('{"source": "a", "target": ["b", 2]}', "a.jsonl", "line 1: source and"),
    "no targets": ('{"source": "a", "target": []}', "a.jsonl", "line 1: source and target must"),
    "a source in a list": ('{"source": ["a"], "target": "b"}', "a.jsonl", "line 1: source and"),
    "half a surrogate": (
        OK + '{"source": "\\ud800", "target": "b"}\n',
        "a.jsonl",
        r"a\.jsonl, line 2: ",
    ),
    "a row with too few fields": (
        "source,target\na,b\nc\n",
        "a.csv",
        r"a\.csv, line 3: 1 field, the header names 2: is a quote missing\?",
    ),
    "a row with too many fields": (
        "source,target\na,b,c\n",
        "a.csv",
        r"a\.csv, line 2: 3 fields, the header names 2: is a quote missing\?",
    ),
    "a separator that is not known": (
        "source^target\na, b^c\n",
        "a.csv",
        r"a\.csv, line 2: 2 fields, the header names 1, 'source\^target': put a comma, a "
        r"semicolon, a tab or \| between the columns",
    ),
    "a missing column": (
        "id,text\n1,a\n",
        "a.csv",
        r"a\.csv has no column 'source', only 'id', 'text': name the columns with --source-column "
        "and --target-column",
    ),
    "a missing second column": (
        "source,text\n1,a\n",
        "a.csv",
        r"a\.csv has no column 'target', only 'source', 'text'",
    ),
    "mr without ref": ("mr,text\n1,a\n", "a.csv", r"has no column 'source', only 'mr', 'text'"),
    "a quote that is never closed": (
        'source,target\na,b\nc,"d\ne,f\ng,h\n',
        "a.csv",
        r"a\.csv, line 3: bad CSV \(unexpected end of data\)",
    ),
    "text after a closing quote": ('source,target\na,"b"c\n', "a.csv", r"line 2: bad CSV"),
    "latin-1 in csv": (
        b"source,target\na,b\nc,Caf\xe9\n",
        "a.csv",
        r"a\.csv, line 3: byte 0xe9 is not UTF-8: save the data file as UTF-8",
    ),
    "latin-1 in jsonl": (
        OK.encode() + b'{"source": "\xff", "target": "b"}\n',
        "a.jsonl",
        r"a\.jsonl, line 2: byte 0xff is not UTF-8: save the data file as UTF-8",
    ),
    "utf-16": (
        "source,target\na,b\n".encode("utf-16"),
        "a.csv",
        "a.csv is UTF-16: save it as UTF-8",
    ),
    "utf-16 without its mark": (
        "source,target\na,b\n".encode("utf-16-le"),
        "a.csv",
        r"a\.csv is UTF-16: save it as UTF-8",
    ),
    "utf-16, the other end first": (
        "source,target\n".encode("utf-16-be").join([b"\xfe\xff", b""]),
        "a.csv",
        r"a\.csv is UTF-16: save it as UTF-8 \(in Excel: CSV UTF-8\)",
    ),
    "utf-32": ("source,target\n".encode("utf-32"), "a.csv", r"a\.csv is UTF-32: save it as UTF-8"),
    "a zero byte": (
        b"source,target\na,b\nc,d\0\n",
        "a.csv",
        r"a\.csv, line 3: a NUL byte, which is no text: save the data file as UTF-8",
    ),
    "gzip in jsonl": (
        gzip.compress(OK.encode()),
        "a.jsonl",
        r"a\.jsonl is gzip-compressed: unpack it with gunzip",
    ),
    "gzip by its name": (gzip.compress(b"x"), "a.jsonl.gz", r"a\.jsonl\.gz is gzip-compressed"),
    "bzip2": (bz2.compress(b"x" * 99), "a.csv", r"a\.csv is bzip2-compressed: unpack it with"),
    "xz": (lzma.compress(OK.encode()), "a.csv", r"a\.csv is xz-compressed: unpack it with unxz"),
    "zstd": (b"\x28\xb5\x2f\xfd\x04\x00", "a.jsonl", r"a\.jsonl is zstd-compressed: unpack it"),
    "a workbook": (
        b"PK\3\4\x14\0\x06\0\x08\0",
        "a.xlsx",
        r"a\.xlsx is a ZIP archive, or a workbook: unpack it, or save the workbook as CSV UTF-8",
    ),
    "a workbook named csv": (
        b"PK\3\4\x14\0\x06\0\x08\0",
        "a.csv",
        r"a\.csv is a ZIP archive, or a",
    ),
    "an old workbook": (b"\xd0\xcf\x11\xe0\xa1\xb1", "a.csv", r"a\.csv is a workbook: save it as"),
    "a parquet table": (
        b"PAR1\x15\0\x15",
        "a.parquet",
        r"is a Parquet table: write it as JSONL or",
    ),
    "a column with blanks around its name": (
        "source, target\na,b\n",
        "a.csv",
        r"a\.csv has no column 'target', only 'source', ' target': did you mean ' target'\? Then "
        r"give --target-column ' target', or write 'target'$",
    ),
    "a column in capitals": (
        "Source,Target\na,b\n",
        "a.csv",
        r"no column 'source', only 'Source', 'Target': did you mean 'Source'\? Then give "
        r"--source-column Source, or write 'source'$",
    ),
    "a column with another ending": ("sources,target\na,b\n", "a.csv", "did you mean 'sources'"),
    "a field in capitals": (
        OK + '{"source": "a", "Target": "b"}',
        "a.jsonl",
        r"a\.jsonl, line 2: no field 'target', only 'source', 'Target': did you mean 'Target'\? "
        "Then give --target-column Target",
    ),
    "a field that no text can name": (
        OK + '{"sou\\ud800rce": "a", "target": "b"}',
        "a.jsonl",
        r"line 2: no field 'source', only 'sou\\ud800rce', 'target': name the fields with",
    ),
    "a separator that nobody knows": (
        "source:target\na:b\n",
        "a.csv",
        "no column 'source', only 'source:target': name the columns with --source-column and "
        r"--target-column, and put a comma, a semicolon, a tab or \| between the columns",
    ),
    "names in another separator": (
        "id;text\n1;a\n",
        "a.csv",
        "no column 'source', only 'id', 'text': name",
    ),
    "another ending": (
        OK,
        "a.json",
        r"data file .*a\.json: expected a name that ends in \.jsonl, \.csv or \.tsv",
    ),
    "no ending": (OK, "jsonl", r"data file .*jsonl: expected a name that ends in \.jsonl, \.csv"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_data_file_is_a_sentence(file, tmp_path, case):
    content, name, sentence = BAD[case]
    path = tmp_path / name if content is None else file(name, content)
    with pytest.raises(InputError, match=sentence):
        read_pairs(path)


def test_a_named_column_that_is_missing_is_a_sentence_with_those_that_are_there(file):
    path = file("a.csv", "source,target\na,b\n")
    with pytest.raises(InputError, match="no column 'record', only 'source', 'target'"):
        read_pairs(path, "record", "target")
    with pytest.raises(InputError, match="no column 'text', only 'source', 'target'"):
        read_pairs(path, "source", "text")
    with pytest.raises(InputError, match="line 1: no field 'text', only 'source', 'target'"):
        read_pairs(file("a.jsonl", OK), target_column="text")


def test_a_folder_instead_of_a_file_is_a_sentence(tmp_path):
    (tmp_path / "a.csv").mkdir()
    with pytest.raises(InputError, match=r"cannot read the data file .*a\.csv: Is a directory"):
        read_pairs(tmp_path / "a.csv")


def test_the_fingerprint_is_of_the_bytes(file):
    data = b"source,target\r\na,b\r\n"
    assert fingerprint(file("a.csv", data)) == hashlib.sha256(data).hexdigest()


# ---- the E2E dataset ----


@pytest.mark.parametrize(
    ("name", "rows", "records"),
    [("trainset", 42_061, 4_862), ("devset", 4_672, 547), ("testset_w_refs", 4_693, 630)],
)
def test_the_e2e_files_load_as_they_are(e2e, name, rows, records):
    pairs = read_pairs(e2e / f"{name}.csv")
    groups = group_references(pairs)
    assert (len(pairs), len(groups)) == (rows, records)
    assert sum(map(len, groups.values())) == rows
    assert max(map(len, groups.values())) > 5
    assert all(p.source.startswith("name[") and p.target.strip() for p in pairs)
    assert list(groups) == list(dict.fromkeys(p.source for p in pairs))


def test_e2e_rows_have_about_56_tokens_on_average_with_gpt2s_bpe(e2e, gpt2_bpe):
    pairs = read_pairs(e2e / "trainset.csv")[::40]
    model = random_model(Config(1, 1, 2, 50257, 2, eos_token_id=50256))
    model.tokenizer = read_tokenizer(gpt2_bpe)
    encoded = encode_pairs(model, pairs, Template(), 1024)
    sources = np.array([e.loss_from - 1 for e in encoded])  # without the newline
    targets = np.array([len(e.ids) - e.loss_from - 1 for e in encoded])  # without the end token
    assert abs(sources.mean() - 31.8) < 1
    assert abs(targets.mean() - 24.1) < 1


def test_references_of_one_source_are_grouped_in_order():
    pairs = [Pair(s, t, "") for s, t in ("ax", "by", "az", "cx", "ax")]
    assert group_references(pairs) == {"a": ["x", "z", "x"], "b": ["y"], "c": ["x"]}


# ---- the template ----


@pytest.mark.parametrize(
    ("text", "prompt", "completion"),
    [
        ("{source}\n{target}", "S\n", "T"),
        ("{source} | {target}", "S |", " T"),
        ("{source}   {target}", "S", "   T"),
        ("Record: {source}\nText: {target}\n###", "Record: S\nText:", " T\n###"),
        ("{source}{target}!", "S", "T!"),
        ("{source}\t{target}", "S\t", "T"),
    ],
)
def test_blanks_before_the_target_belong_to_it_and_the_rest_to_the_prompt(text, prompt, completion):
    template = Template(text)
    assert template.prompt("S") == prompt
    assert template.completion("T") == completion
    assert template.prompt("S") + template.completion("T") == text.format(source="S", target="T")


def test_a_source_or_target_that_looks_like_the_template_is_left_as_it_is():
    template = Template("{source} -> {target};")
    assert template.prompt("{target} {source}") == "{target} {source} ->"
    assert template.completion("{source} {target}") == " {source} {target};"
    assert Template("{source}{target}").prompt("a ") == "a "


TEMPLATES = [
    "{source}\n{target}",
    "{source} | {target} END",
    "{source}: {target}.",
    "<{source}> {target}\n",
]


@settings(deadline=None)
@given(st.sampled_from(TEMPLATES), st.text(min_size=1, max_size=12))
def test_reading_undoes_the_completion_but_for_blanks_around_it(text, target):
    assert Template(text).read(Template(text).completion(target)) == target.strip()


def test_reading_takes_the_templates_text_off_the_end_alone():
    template = Template("{source}: {target} END")
    assert template.read(" a END b END ") == "a END b"
    assert template.read(" a text that was cut") == "a text that was cut"
    assert Template().read("\n a\nb \n") == "a\nb"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{source}",
        "{target}",
        "{target} {source}",
        "{source} {source} {target}",
        "{source} {target} {target}",
        "{source} {target} {source}",
        "{Source} {target}",
    ],
)
def test_a_bad_template_is_a_sentence(text):
    with pytest.raises(
        InputError,
        match=re.escape(f"template {text!r}")
        + r"(: expected \{source\} once and after it \{target\} once| has \{Source\})",
    ):
        Template(text)


# ---- tokens ----


@pytest.fixture
def coder():
    """A model whose tokens are bytes, and 256 the end."""
    model = random_model(Config(1, 1, 2, 257, 64, eos_token_id=256))
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator([""], vocab_size=256, show_progress=False)
    model.tokenizer = bpe._tokenizer
    return model


def at(source, target):
    return Pair(source, target, "train.csv, line 12")


@pytest.mark.parametrize("text", [*TEMPLATES, "Record {source}\nText: {target}\n###"])
def test_the_loss_begins_at_the_first_token_of_the_target_and_the_end_follows(coder, text):
    template, pairs = Template(text), [at("name[Ox]", "Ox is."), at("é", "ça va")]
    encoded = encode_pairs(coder, pairs, template, 64)
    assert len(encoded) == 2
    for pair, (ids, start) in zip(pairs, encoded, strict=True):
        assert ids[-1] == 256
        assert ids.count(256) == 1
        assert coder.decode(ids[:start]) == template.prompt(pair.source)
        assert coder.decode(ids[start:-1]) == template.completion(pair.target)
        assert ids[:start] == coder.encode(template.prompt(pair.source))  # as decoding prompts it


def test_a_model_without_an_end_token_gets_none_appended(coder):
    coder.config = replace(coder.config, eos_token_id=None)
    [(ids, start)] = encode_pairs(coder, [at("a", "b")], Template(), 64)
    assert coder.decode(ids) == "a\nb"
    assert start == 2


def test_of_several_end_tokens_the_first_is_appended(coder):
    coder.config = replace(coder.config, eos_token_id=(50256, 198, 256))  # the first that it has
    [(ids, _)] = encode_pairs(coder, [at("a", "b")], Template(), 64)
    assert ids == [*coder.encode("a\nb"), 198]


def test_a_blank_before_the_target_does_not_change_how_its_first_word_is_split(gpt2_bpe):
    model = random_model(Config(1, 1, 2, 50257, 2, eos_token_id=50256))
    model.tokenizer = read_tokenizer(gpt2_bpe)
    [(ids, start)] = encode_pairs(
        model, [at("x:", "Hello world")], Template("{source} {target}"), 9
    )
    assert ids == [*model.encode("x: Hello world"), 50256]
    assert model.decode(ids[start : start + 1]) == " Hello"


def test_room_is_counted_with_the_end_token(coder):
    pair = at("a" * 10, "b" * 9)  # and a newline, and the end
    assert encode_pairs(coder, [pair], Template(), 21) == [
        Encoded([*coder.encode("a" * 10 + "\n" + "b" * 9), 256], 11)
    ]
    with pytest.raises(
        InputError,
        match=r"train\.csv, line 12: 21 tokens, the model has room for 20 after the prefix: "
        "shorten the line or the prefix, train with --position-offset 0, or leave such lines out",
    ):
        encode_pairs(coder, [at("a", "b"), pair], Template(), 20)


@pytest.mark.parametrize("end", [256, None])
@pytest.mark.parametrize("target", ["", " \n"])
@pytest.mark.parametrize("text", ["{source}\n{target}", "{source} {target} END"])
def test_an_empty_target_is_a_sentence_with_its_line(coder, end, target, text):
    coder.config = replace(coder.config, eos_token_id=end)
    with pytest.raises(
        InputError, match=r"train\.csv, line 12: the target is empty: there is nothing to predict"
    ):
        encode_pairs(coder, [Pair("a", "b", "line 1"), at("a", target)], Template(text), 64)


def test_a_pair_without_a_prompt_is_a_sentence_with_its_line(coder):
    with pytest.raises(
        InputError,
        match=r"train\.csv, line 12: the source is empty: the target needs a token before",
    ):
        encode_pairs(coder, [at("", "b")], Template("{source} {target}"), 64)


def test_encoding_without_a_tokenizer_is_a_sentence(coder):
    coder.tokenizer = None
    with pytest.raises(InputError, match="model 'random' has no tokenizer"):
        encode_pairs(coder, [at("a", "b")], Template(), 64)


# ---- the tiny world ----

seeds = st.integers(0, 2**32)
splits = st.sampled_from(["train", "valid", "test"])


def drawn(seed, split="train", domains=None):
    return world.draw_record(np.random.default_rng(seed), split, domains or world.ALL_DOMAINS)


@pytest.mark.parametrize("name", world.TASKS)
def test_the_text_of_a_task_states_the_record_that_it_has_to_state(name):
    task = world.TASKS[name]
    for source, text in world.table_to_text(100, "test", 0, world.ALL_DOMAINS, task):
        record = world.read_record(source)
        assert world.slot_errors(task.stated(record), text) == []


def test_swapping_gives_each_value_another_one_and_no_two_the_same():
    for domain in world.ALL_DOMAINS.values():
        for slot in domain.slots:
            records = [{"name": "X", "type": domain.type, slot.name: v} for v in slot.values]
            others = [world.swapped(record)[slot.name] for record in records]
            assert sorted(others) == sorted(slot.values)
            kept = [a == b for a, b in zip(slot.values, others, strict=True)]
            assert set(kept) == {len(slot.values) > world.SWAPPED}


def test_a_letter_has_its_opening_its_end_and_the_facts_in_reverse():
    record = {"name": "Mill", "type": "film", "genre": "comedy", "year": "1940"}
    assert world.letter(record) == (
        "Dear reader, have you heard of Mill? Mill is a film! The film came out in 1940! "
        "The film belongs to the genre of comedy! Yours faithfully, the editors."
    )


def test_one_seed_is_one_world():
    def documents(seed):
        rng = np.random.default_rng(seed)
        return [world.draw_document(rng) for _ in range(50)]

    assert documents(3) == documents(3)
    assert len(set(documents(3)) & set(documents(4))) < 3
    assert list(world.table_to_text(20, "test", 5)) == list(world.table_to_text(20, "test", 5))
    assert list(world.table_to_text(20, "test", 5)) != list(world.table_to_text(20, "test", 6))


def test_names_of_one_split_occur_in_no_other():
    names = {}
    for i, split in enumerate(("train", "valid", "test")):
        records = [drawn([i, seed], split) for seed in range(400)]
        names[split] = {r["name"] for r in records}
        assert all(world.split_of(name) == split for name in names[split])
        assert {r["type"] for r in records} == set(world.ALL_DOMAINS)
        assert len(names[split]) > 250
    assert not names["train"] & names["valid"]
    assert not names["train"] & names["test"]
    assert not names["valid"] & names["test"]


def test_the_splits_have_their_shares_in_every_domain():
    r = np.random.default_rng(0)
    for domain in world.ALL_DOMAINS.values():
        names = [
            domain.name_pattern.format(r.choice(domain.first), r.choice(domain.second))
            for _ in range(1500)
        ]
        found = [world.split_of(name) for name in names]
        shares = {split: found.count(split) / len(found) for split in ("train", "valid", "test")}
        assert abs(shares["train"] - 0.8) < 0.06, domain.type
        assert abs(shares["valid"] - 0.1) < 0.05, domain.type
        assert abs(shares["test"] - 0.1) < 0.05, domain.type


@settings(deadline=None)
@given(seeds, splits)
def test_a_record_has_a_name_a_type_and_three_to_five_facts_of_its_domain(seed, split):
    record = drawn(seed, split)
    assert list(record)[:2] == ["name", "type"]
    assert world.split_of(record["name"]) == split
    domain = world.ALL_DOMAINS[record["type"]]
    facts = list(record)[2:]
    assert 3 <= len(facts) <= 5
    assert facts == [s.name for s in domain.slots if s.name in facts]  # in the domain's order
    assert all(record[name] in domain.slot(name).values for name in facts)


@settings(deadline=None)
@given(seeds, splits)
def test_reading_a_record_inverts_writing_it(seed, split):
    record = drawn(seed, split)
    again = world.read_record(world.write_record(record))
    assert again == record
    assert list(again) == list(record)


def test_every_value_of_every_slot_is_written_read_and_stated_without_error():
    for domain in world.ALL_DOMAINS.values():
        for slot in domain.slots:
            for value in slot.values:
                record = {"name": "Xyz", "type": domain.type, slot.name: value}
                assert world.read_record(world.write_record(record)) == record
                assert world.slot_errors(record, world.describe(record)) == []


@pytest.mark.parametrize(
    "source",
    [
        "",
        "hello",
        "name[The Golden Fox]",
        "type[restaurant], food[Italian]",
        "name[The Golden Fox], type[pub]",
        "name[The Golden Fox], type[restaurant], food[Martian]",
        "name[The Golden Fox], type[restaurant], genre[comedy]",
        "name[The Golden Fox], type[restaurant], food[Italian], food[French]",
        "name[The Golden Fox], type[restaurant], food[Italian] and more",
        "name[The Golden Fox],type[restaurant],food[Italian]",
        "name[The Golden Fox], type[restaurant], food[Italian]\n",
        "name[Alimentum], area[city centre], familyFriendly[no]",
    ],
)
def test_text_that_is_no_record_of_this_world_is_read_as_none(source):
    assert world.read_record(source) is None


@settings(deadline=None)
@given(seeds, splits)
def test_a_description_states_every_slot(seed, split):
    record = drawn(seed, split)
    text = world.describe(record)
    assert world.slot_errors(record, text) == []
    assert all(clause in text for clause in world.clauses(record))
    assert text.startswith(f"{record['name']} is a {record['type']} that ")
    assert world.slot_errors(record, text.upper()) == []  # letters' case is no matter


@settings(deadline=None)
@given(seeds, splits)
def test_an_empty_text_gets_every_slot_wrong(seed, split):
    record = drawn(seed, split)
    assert world.slot_errors(record, "") == list(record)


@settings(deadline=None)
@given(seeds, splits, st.data())
def test_a_replaced_value_is_found(seed, split, data):
    record = drawn(seed, split)
    name = data.draw(st.sampled_from(list(record)[2:]))
    slot = world.ALL_DOMAINS[record["type"]].slot(name)
    other = data.draw(st.sampled_from([v for v in slot.values if v != record[name]]))
    text = world.describe(record | {name: other})
    assert world.slot_errors(record, text) == [name]


@settings(deadline=None)
@given(seeds, splits, st.data())
def test_a_dropped_clause_is_found(seed, split, data):
    record = drawn(seed, split)
    name = data.draw(st.sampled_from(list(record)[2:]))
    rest = {slot: value for slot, value in record.items() if slot != name}
    assert world.slot_errors(record, world.describe(rest)) == [name]


@pytest.mark.parametrize(
    ("record", "left_out"),
    [
        ({"name": "Alice Baker", "type": "person", "work": "baker", "married": "no"}, "work"),
        (
            {"name": "The Old Harbour", "type": "restaurant", "area": "harbour", "price": "cheap"},
            "area",
        ),
    ],
)
def test_a_name_that_holds_a_value_does_not_state_it(record, left_out):
    text = world.describe({slot: value for slot, value in record.items() if slot != left_out})
    assert world.slot_errors(record, text) == [left_out]


@settings(deadline=None)
@given(seeds, splits, st.data())
def test_an_added_contradiction_is_found(seed, split, data):
    record = drawn(seed, split)
    name = data.draw(st.sampled_from(list(record)[2:]))
    slot = world.ALL_DOMAINS[record["type"]].slot(name)
    other = data.draw(st.sampled_from([v for v in slot.values if v != record[name]]))
    text = f"{world.describe(record)} The {record['type']} {slot.state(other)}."
    assert world.slot_errors(record, text) == [name]


@settings(deadline=None)
@given(seeds, splits, st.data())
def test_a_changed_name_and_a_changed_type_are_found(seed, split, data):
    record = drawn(seed, split)
    right = world.describe(record)
    renamed = right.replace(record["name"], "Nobody")
    assert world.slot_errors(record, renamed) == ["name"]
    assert "name" in world.slot_errors(record, right.replace(record["name"], record["name"] + "s"))
    other = data.draw(st.sampled_from([t for t in world.ALL_DOMAINS if t != record["type"]]))
    retyped = right.replace(f"a {record['type']} ", f"a {other} ")
    assert world.slot_errors(record, retyped) == ["type"]
    assert world.slot_errors(record, f"{right} It is a {other}.") == ["type"]


def test_a_bare_value_states_it_unless_the_text_claims_another():
    record = {"name": "Alice Ellis", "type": "person", "born": "1950", "hobby": "chess"}
    assert world.slot_errors(record, "Alice Ellis, a person, chess, 1950") == []
    assert world.slot_errors(record, "Alice Ellis, a person, chess, 19500") == ["born"]
    claims_another = "Alice Ellis, a person who was born in 1951, not 1950, enjoys chess"
    assert world.slot_errors(record, claims_another) == ["born"]


def test_a_bare_value_inside_a_longer_one_does_not_state_it():
    record = {"name": "Oakton", "type": "city", "people": "a million"}
    assert world.slot_errors(record, "Oakton, a city of half a million people") == ["people"]
    assert world.slot_errors(record, "Oakton, a city of a million people") == []


# ---- registers and documents ----


LOOKS = {
    "question": r"Question: .*\? Answer: .*\.",
    "chat": r"(hey, have you heard of|oh, do you know|wow, look at) .*\? the .*!",
    "headline": r"NEWS FROM THE [A-Z]+ DESK: .*",
    "list": r"(\* .*: .*\n?)+",
    "recommend": r"Dear reader, we recommend .* Yours faithfully, the editors\.",
}


def register_of(document):
    """The cue or None, the register from the look of the text, and the record."""
    lines = document.split("\n")
    cue = lines.pop(0) if lines[0] in world.REGISTERS else None
    record, text = world.read_record(lines[0]), "\n".join(lines[1:])
    if record is None:
        record = world.read_record(text)
        assert lines[0] == world.describe(record)
        return cue, "extract", record
    registers = [r for r, look in LOOKS.items() if re.fullmatch(look, text)]
    if text == world.describe(record):
        registers.append("describe")
    assert len(registers) == 1, document
    return cue, registers[0], record


@pytest.fixture(scope="module")
def documents():
    rng = np.random.default_rng(0)
    return [register_of(world.draw_document(rng)) for _ in range(4000)]


def test_every_register_is_drawn_at_its_share_with_a_cue_and_without(documents):
    assert set(world.REGISTERS) == set(LOOKS) | {"describe", "extract"}
    for place, cued in ((1, True), (2, False)):
        registers = [r for cue, r, _ in documents if (cue is not None) == cued]
        assert sum(row[place] for row in world.REGISTERS.values()) == pytest.approx(1)
        for register, row in world.REGISTERS.items():
            share, n = row[place], len(registers)
            got = registers.count(register) / n
            assert abs(got - share) < 4 * (share * (1 - share) / n) ** 0.5, (register, cued)


def test_half_of_the_documents_begin_with_a_cue_and_it_is_their_register(documents):
    cued = [cue == register for cue, register, _ in documents if cue is not None]
    assert all(cued)
    assert abs(len(cued) / len(documents) - 0.5) < 4 * 0.5 / len(documents) ** 0.5


def test_no_document_is_about_a_held_out_domain_and_every_other_is_there(documents):
    types = [record["type"] for *_, record in documents]
    assert set(types) == set(world.DOMAINS)
    assert not set(world.DOMAINS) & set(world.HELD_OUT)
    for domain in world.DOMAINS:
        assert abs(types.count(domain) / len(types) - 0.2) < 0.03


def test_documents_are_about_names_of_their_split(documents):
    assert all(world.split_of(record["name"]) == "train" for *_, record in documents)
    rng = np.random.default_rng(0)
    for split in ("valid", "test"):
        for _ in range(50):
            *_, record = register_of(world.draw_document(rng, split))
            assert world.split_of(record["name"]) == split


@settings(deadline=None)
@given(seeds)
def test_every_register_says_only_what_the_record_says(seed):
    record = drawn(seed)
    rng = np.random.default_rng(seed)
    assert world.listing(record, rng).split("\n") == [f"* {s}: {v}" for s, v in record.items()]
    asked, answer = re.fullmatch(
        r"Question: (.*)\? Answer: (.*)\.", world.question(record, rng)
    ).groups()
    assert asked not in ("name", "type")
    assert record[asked] == answer
    for write in (world.chat, world.headline, world.recommend):
        text = write(record, rng)
        assert record["name"] in text
        assert sum(text.count(clause) for clause in world.clauses(record)) >= 1


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_table_to_text_has_no_duplicates_and_gives_records_and_their_descriptions(split):
    pairs = list(world.table_to_text(600, split, seed=1))
    assert len(pairs) == 600 == len({source for source, _ in pairs})
    for source, target in pairs:
        record = world.read_record(source)
        assert world.describe(record) == target
        assert world.split_of(record["name"]) == split
        assert record["type"] in world.DOMAINS


def test_table_to_text_skips_a_record_that_was_drawn_before(monkeypatch):
    first, second = drawn(1), drawn(2)
    draws = iter([first, first, second, first])
    monkeypatch.setattr(world, "draw_record", lambda *_: next(draws))
    assert [s for s, _ in world.table_to_text(2, "train", 0)] == [
        world.write_record(r) for r in (first, second)
    ]


def test_table_to_text_of_held_out_domains_is_about_nothing_else():
    pairs = world.table_to_text(60, "test", 0, world.HELD_OUT)
    types = {world.read_record(source)["type"] for source, _ in pairs}
    assert types == set(world.HELD_OUT)
