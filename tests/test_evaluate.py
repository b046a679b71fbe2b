"""Scores, on models and texts whose score is known."""

import math
import sys

import numpy as np
import pytest
from tokenizers import ByteLevelBPETokenizer

from minprefix import GPT2, Batch, Config, InputError, Prefix, loss
from minprefix.data import world
from minprefix.data.pairs import Encoded, Template
from minprefix.evaluate import (
    corpus_scores,
    exact_match,
    mean_loss,
    perplexity,
    predict,
    slot_error_rate,
    translation_edit_rate,
)
from minprefix.generate import Decoding
from tests.conftest import random_model

# ---- loss ----


@pytest.mark.parametrize("backend", ["numpy", "reference"])
def test_the_mean_loss_is_the_mean_over_all_tokens_whatever_the_batch_size(model, config, backend):
    r = np.random.default_rng(0)
    prefix = Prefix.normal(config, 3, std=1.0, dtype="float64")
    examples = []
    for T in (3, 12, 5, 20, 2, 9, 4):
        examples.append(Encoded(r.integers(0, 50, T).tolist(), int(r.integers(1, T))))
    sums, means, n = 0.0, [], 0
    for ids, start in examples:
        value = loss(model, Batch.pack([ids], start), prefix, "sum")
        sums, n = sums + value, n + len(ids) - start
        means.append(value / (len(ids) - start))
    want = sums / n
    assert abs(np.mean(means) - want) > 1e-3  # a mean of means is something else
    for size in (1, 2, 3, 7, 32):
        got = mean_loss(model, prefix, examples, backend, size)
        assert got == pytest.approx(want, rel=1e-12)
    assert mean_loss(model, prefix, examples) == pytest.approx(want, rel=1e-12)
    assert mean_loss(model, None, examples) != pytest.approx(want, rel=1e-3)


def test_a_model_without_any_preference_has_the_vocabulary_as_its_perplexity():
    config = Config(n_layer=1, n_head=1, n_embd=4, vocab_size=37, n_positions=8)
    model = random_model(config)
    model.weights["ln_f.weight"][:] = 0
    model.weights["ln_f.bias"][:] = 0
    value = mean_loss(model, None, [Encoded([3, 9, 1], 1), Encoded([5, 5], 1)])
    assert value == pytest.approx(math.log(37), rel=1e-12)
    assert perplexity(value) == pytest.approx(37, rel=1e-12)


def test_the_perplexity_of_a_hopeless_loss_is_infinite_and_no_overflow():
    assert perplexity(0.0) == 1.0
    assert perplexity(1e4) == math.inf


# ---- what the model writes ----


def speller(successors: dict[str, str], end: str) -> GPT2:
    """A model of bytes that writes after each byte its one successor, and ends after `end`."""
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator([""], vocab_size=256, show_progress=False)
    tokenizer = bpe._tokenizer
    V = 257  # 256 is the end token
    config = Config(1, 1, V, V, 64, tie_word_embeddings=False, eos_token_id=256)
    weights = {name: np.zeros(shape) for name, shape in config.shapes().items()}
    for name in weights:
        if ".ln_" in f".{name}" and name.endswith("weight"):
            weights[name][:] = 1
    weights["wte.weight"] = np.eye(V)  # a block of zeros passes it on

    def token(character):
        return tokenizer.encode(character).ids[0]

    for before, after in successors.items():
        weights["lm_head.weight"][token(after), token(before)] = 1
    weights["lm_head.weight"][256, token(end)] = 1
    model = GPT2(config, weights, name="speller")
    model.tokenizer = tokenizer
    return model


SPELLER = {"\n": "h", "h": "e", "e": "y", "?": "n", "n": "o"}


def test_predictions_are_what_the_model_writes_in_the_order_of_the_sources():
    model = speller(SPELLER | {"o": "e"}, "y")
    sources, d = ["a?", "b", "c\n", "longer?"], Decoding(10)
    on = Template("{source}{target}")
    model.weights["lm_head.weight"][:, model.encode("b")[0]] = 0
    model.weights["lm_head.weight"][256, model.encode("b")[0]] = 1
    want = ["noey", "", "hey", "noey"]
    for size in (1, 2, 3, 64):
        assert predict(model, None, sources, on, d, batch_size=size) == want
    assert predict(model, None, sources, Template(), d) == ["hey"] * 4
    assert predict(model, None, sources, Template(), Decoding(2)) == ["he"] * 4
    assert predict(model, None, ["a", "b"], Template("{source}?{target}"), d) == ["noey"] * 2
    assert predict(model, None, [], Template(), d) == []


def test_predictions_leave_off_what_the_template_puts_around_the_target():
    template = Template("{source}? {target}y")
    assert predict(speller(SPELLER | {"o": "e"}, "y"), None, ["a"], template, Decoding(9)) == [
        "noe"
    ]


LETTERS = {"forbidden": tuple(range(94, 256))}  # the bytes before 94 are printed as they are


def test_predictions_see_the_prefix_and_the_decoding_settings():
    model = random_model(Config(2, 2, 16, 257, 64, eos_token_id=256))
    model.tokenizer = speller(SPELLER, "y").tokenizer
    prefix = Prefix.normal(model.config, 4, std=1.0, dtype="float64")

    def said(prefix, **settings):
        return predict(model, prefix, ["abc", "d"], Template(), Decoding(8, **LETTERS, **settings))

    bare = said(None)
    assert said(prefix) != bare
    assert said(None, beams=4) != bare
    assert said(None, temperature=2.0) != bare
    d = Decoding(8, **LETTERS)
    assert predict(model, None, ["abc", "d"], Template(), d, backend="reference") == bare


def test_sampled_predictions_do_not_depend_on_the_batch_size():
    model = random_model(Config(2, 2, 16, 257, 64, eos_token_id=256))
    model.tokenizer = speller(SPELLER, "y").tokenizer
    d, sources = Decoding(6, temperature=2.0, seed=3, **LETTERS), ["abc"] * 3 + ["d"] * 3
    whole = predict(model, None, sources, Template(), d)
    assert len(set(whole)) == 6  # each has draws of its own
    for size in (1, 2, 4):
        assert predict(model, None, sources, Template(), d, batch_size=size) == whole


# ---- exact match and slots ----


def test_exact_match_counts_a_hit_on_any_reference_blanks_around_it_aside():
    references = [["a b", "c"], ["d"], ["e", "f", "g"], ["h"]]
    assert exact_match([" c\n", "d", "g ", "h"], references) == 1.0
    assert exact_match(["a b", "D", "x", "h"], references) == 0.5
    assert exact_match(["a  b", "", "e f", "c"], references) == 0.0
    with pytest.raises(ValueError, match="zip"):
        exact_match(["a b"], references)


def test_the_slot_error_rate_is_the_share_of_all_slots():
    rng = np.random.default_rng(0)
    records = [world.draw_record(rng, "test") for _ in range(6)]
    sources = [world.write_record(r) for r in records]
    right = [world.describe(r) for r in records]
    total = sum(len(r) for r in records)
    assert slot_error_rate(sources, right) == 0.0
    assert slot_error_rate(sources, [""] * 6) == 1.0
    one_empty = ["", *right[1:]]
    assert slot_error_rate(sources, one_empty) == pytest.approx(len(records[0]) / total)
    renamed = [right[0].replace(records[0]["name"], "Nobody"), *right[1:]]
    assert slot_error_rate(sources, renamed) == pytest.approx(1 / total)


def test_the_slot_error_rate_of_other_data_is_none():
    rng = np.random.default_rng(0)
    record = world.draw_record(rng, "test")
    source, text = world.write_record(record), world.describe(record)
    for other in ("name[Alimentum], area[city centre]", "free text", "", source + ", new[x]"):
        assert slot_error_rate([source, other], [text, text]) is None


# ---- BLEU, chrF, TER ----

SAID = [
    "the golden fox is a cheap pub near the river .",
    "it serves italian food",
    "there is a place in the city centre for all the family",
    "blue spice",
]
REFERENCES = [
    ["the golden fox is a pub near the river .", "a cheap pub called golden fox is near a river"],
    ["it serves italian food and wine", "the food is italian", "italian food is what it serves"],
    ["there is a family place in the city centre"],
    ["the blue spice is a pub", "blue spice is a pub in the centre"],
]


def test_scores_agree_with_sacrebleu_for_equal_numbers_of_references():
    sacrebleu = pytest.importorskip("sacrebleu")
    two = [(refs * 2)[:2] for refs in REFERENCES]
    two[2][1] = "the family place is in the city centre"
    columns = [[refs[i] for refs in two] for i in range(2)]
    got = corpus_scores(SAID, two)
    assert got["bleu"] == round(sacrebleu.corpus_bleu(SAID, columns).score, 2)
    assert got["chrf"] == round(sacrebleu.corpus_chrf(SAID, columns).score, 2)
    ter = sacrebleu.metrics.TER()
    assert translation_edit_rate(SAID, two) == {
        "ter": round(ter.corpus_score(SAID, columns).score, 2),
        "ter_signature": str(ter.get_signature()),
    }
    assert "nrefs:2" in got["bleu_signature"]
    assert {"case:mixed", "tok:13a", "smooth:exp"} <= set(got["bleu_signature"].split("|"))


def test_scores_of_unequal_numbers_of_references_agree_with_sacrebleu_text_by_text():
    pytest.importorskip("sacrebleu")
    from sacrebleu.metrics import BLEU, CHRF, TER

    got = corpus_scores(SAID, REFERENCES) | translation_edit_rate(SAID, REFERENCES)
    # a reference twice changes neither BLEU's clipped counts nor chrF's best reference
    columns = [[(refs * 3)[i] for refs in REFERENCES] for i in range(3)]
    assert got["bleu"] == round(BLEU().corpus_score(SAID, columns).score, 2)
    assert got["chrf"] == round(CHRF().corpus_score(SAID, columns).score, 2)
    ter = TER()  # it takes None where a text has fewer
    columns = [[(*refs, None, None)[i] for refs in REFERENCES] for i in range(3)]
    assert got["ter"] == round(ter.corpus_score(SAID, columns).score, 2)
    assert got["ter_signature"] == str(ter.get_signature())
    assert "nrefs:var" in got["bleu_signature"]


def test_more_references_help_and_a_perfect_text_has_full_marks():
    pytest.importorskip("sacrebleu")
    last_alone = [refs[-1:] for refs in REFERENCES]
    one, all_of_them = corpus_scores(SAID, last_alone), corpus_scores(SAID, REFERENCES)
    assert one["bleu"] < all_of_them["bleu"]
    assert one["chrf"] < all_of_them["chrf"]
    perfect = [refs[-1] for refs in REFERENCES]
    last = corpus_scores(perfect, REFERENCES) | translation_edit_rate(perfect, REFERENCES)
    assert (last["bleu"], last["chrf"], last["ter"]) == (100.0, 100.0, 0.0)


def test_ter_of_empty_references_is_that_of_sacrebleu():
    pytest.importorskip("sacrebleu")
    from sacrebleu.metrics import TER

    for said in (["a b"], [""]):
        assert translation_edit_rate(said, [[""]])["ter"] == TER().corpus_score(said, [[""]]).score


def test_scores_go_into_json():
    pytest.importorskip("sacrebleu")
    scores = corpus_scores(SAID, REFERENCES) | translation_edit_rate(SAID, REFERENCES)
    assert {name: type(value) for name, value in scores.items()} == {
        "bleu": float,
        "bleu_signature": str,
        "chrf": float,
        "chrf_signature": str,
        "ter": float,
        "ter_signature": str,
    }


def test_without_sacrebleu_a_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics", None)
    for score in (corpus_scores, translation_edit_rate):
        with pytest.raises(
            InputError,
            match=r'BLEU, chrF and TER need sacrebleu: pip install "minprefix\[scores\]"',
        ):
            score(SAID, REFERENCES)


# ---- texts of which one is long ----


def test_a_long_source_leaves_the_others_their_room():
    model = speller({"\n": "h", "h": "e", "e": "y", "y": "h"}, "?")  # it never ends by itself
    sources = ["a", "b" * 60, "cc"]
    for way in ({}, {"beams": 2}, {"temperature": 1e-6}):
        for size in (1, 2, 64):
            d = Decoding(20, **way)
            said = predict(model, None, sources, Template(), d, batch_size=size)
            assert [len(text) for text in said] == [20, 4, 20]
            assert said == [("hey" * 7)[:20], "heyh", ("hey" * 7)[:20]]
    prefix = Prefix.zero(model.config, 2, dtype="float64")
    assert [len(t) for t in predict(model, prefix, sources, Template(), Decoding(20))] == [
        20,
        2,
        20,
    ]


def test_a_source_without_room_is_a_sentence_with_its_number():
    model = speller(SPELLER, "y")
    with pytest.raises(
        InputError,
        match="source 1: 65 tokens from position 0 leave room for 0 new ones of the model's 64 "
        "positions, and 1 is to be written: shorten it",
    ):
        predict(model, None, ["a", "b" * 64], Template(), Decoding(20))
    assert predict(model, None, ["a", "b" * 63], Template(), Decoding(20)) == ["hey", "h"]
    with pytest.raises(InputError, match=r"source 0: 61 tokens .* room for 4 .* and 5 are to be"):
        predict(model, None, ["b" * 60], Template(), Decoding(20, min_new_tokens=5))


def test_the_samples_that_are_recorded_have_room_of_their_own():
    from minprefix.data.pairs import Pair
    from minprefix.prefixes.verify import evaluation

    model = speller({"\n": "h", "h": "e", "e": "y", "y": "h"}, "?")
    prefix = Prefix.zero(model.config, 2, dtype="float64")
    pairs = [Pair(s, "hey", "") for s in ("a", "b" * 60, "c" * 62, "d")]
    recorded = evaluation(model, prefix, pairs, [Encoded([5, 6], 1)], Template(), "data")
    said = {s["source"][0]: len(s["prediction"]) for s in recorded.samples}
    assert said == {"a": 40, "b": 2, "d": 40}
