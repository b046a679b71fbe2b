"""Decoding with a cache against decoding without one, brute force, and transformers."""

import importlib
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from tokenizers import ByteLevelBPETokenizer

from minprefix import GPT2, Batch, Config, InputError, Prefix, generate
from minprefix.generate import GROUPS, Decoding, Texts, generate_ids
from tests.conftest import random_model, to_hf

decoding_module = importlib.import_module("minprefix.generate")  # the package's `generate` hides it
BACKENDS = pytest.mark.parametrize("ops", ["reference", "numpy"])
PROMPTS = [[5, 2, 9, 4], [7], [1, 1, 1, 30, 2, 8, 41], [12, 3], [44, 44, 44, 44, 44]]
WAYS = pytest.mark.parametrize(
    "way",
    [{}, {"temperature": 1.0}, {"beams": 3, "length_norm": 0.0}],
    ids=["greedy", "sampling", "beam"],
)


def next_logits(model, ids, prefix=None, ops="numpy"):
    """The whole text through the model again: no cache."""
    return model.logits(Batch.pack([ids]), prefix, ops)[-1].astype(np.float64)


def log_softmax(logits):
    top = logits.max()
    return logits - top - np.log(np.exp(logits - top).sum())


def uncached_greedy(model, prompt, n, prefix=None, ops="numpy", end=None):
    new = []
    for _ in range(n):
        token = int(next_logits(model, [*prompt, *new], prefix, ops).argmax())
        if token == end:
            break
        new.append(token)
    return new


def without_end(model):
    return GPT2(replace(model.config, eos_token_id=None), model.weights, name=model.name)


def with_end(model, end):
    return GPT2(replace(model.config, eos_token_id=end), model.weights, name=model.name)


def an_end_that_some_reach(model, prompts=PROMPTS, n=12):
    """An end token with which greedy ends some prompts early, some at once, and some not at all."""
    bare = [uncached_greedy(without_end(model), p, n) for p in prompts]
    for end in range(model.config.vocab_size):
        at = [row.index(end) if end in row else None for row in bare]
        if None in at and any(i is not None and i > 0 for i in at):
            return end
    raise AssertionError("no such token: choose another seed")


# ---- the cache ----


def prefixes(config):
    def p(length, **where):
        where.setdefault("dtype", "float64")
        return Prefix.normal(config, length, std=1.0, seed=length, **where)

    return {
        "no prefix": None,
        "a prefix": p(5),
        "P = 0": p(0),
        "a layer subset": p(4, layers=[0, 2]),
        "tokens from position 0": p(4, position_offset=0),
        "tokens from position 9, layer 1 alone": p(3, layers=[1], position_offset=9),
        "an mlp": Prefix.mlp(config, 3, hidden=6, dtype="float64"),
    }


@BACKENDS
@pytest.mark.parametrize("kind", list(prefixes(Config(3, 4, 32, 50, 64))))
def test_cached_and_uncached_decoding_agree_token_for_token(model, config, ops, kind):
    prefix = prefixes(config)[kind]
    model = without_end(model)
    want = [uncached_greedy(model, p, 10, prefix, ops) for p in PROMPTS]
    assert generate_ids(model, PROMPTS, prefix, decoding=Decoding(10), ops=ops) == want
    assert len({tuple(row) for row in want}) == len(PROMPTS)  # each prompt has a text of its own
    if kind not in ("no prefix", "P = 0"):
        assert generate_ids(model, PROMPTS, decoding=Decoding(10), ops=ops) != want


@BACKENDS
def test_each_prompt_sees_its_own_prefix_of_its_own_length(model, config, ops):
    given = [p for p in prefixes(config).values() if p is not None]
    model = without_end(model)
    prompts = PROMPTS + PROMPTS
    which = [3, 0, 1, 2, 4, 5, 1, 2, 0, 3]
    want = [
        uncached_greedy(model, p, 8, given[i], ops) for p, i in zip(prompts, which, strict=True)
    ]
    assert generate_ids(model, prompts, given, which, Decoding(8), ops) == want
    with pytest.raises(InputError, match="6 prefixes were given: say by `which`"):
        generate_ids(model, prompts, given, None, Decoding(8), ops)


def test_the_cached_logits_are_the_uncached_ones_at_every_step(model, config, monkeypatch):
    seen = []
    original = decoding_module._allowed

    def spy(logits, *rest):
        seen.append(logits.copy())
        return original(logits, *rest)

    monkeypatch.setattr(decoding_module, "_allowed", spy)
    model, prefix = without_end(model), prefixes(config)["a layer subset"]
    new = generate_ids(model, PROMPTS, prefix, decoding=Decoding(9))
    assert len(seen) == 9
    for step, logits in enumerate(seen):
        for s, prompt in enumerate(PROMPTS):
            want = next_logits(model, prompt + new[s][:step], prefix)
            assert np.abs(logits[s] - want).max() < 1e-12 * np.abs(want).max()


@pytest.mark.parametrize("seed", range(6))
def test_texts_taken_in_any_order_any_number_of_times_see_what_they_said(model, config, seed):
    rng = np.random.default_rng(seed)
    given = list(prefixes(config).values())[1:]
    which = rng.integers(len(given), size=4).tolist()
    said = [list(p) for p in PROMPTS[:4]]
    n = 12
    texts, _ = Texts.start(
        model, Batch.pack(said, prefix=which), given, n, decoding_module._ops.get("numpy")
    )
    for size in (4, 7, 3, 6, 6, 1, 5, 9, 9, 2):
        rows = rng.integers(len(said), size=size).tolist()
        tokens = rng.integers(config.vocab_size, size=size)
        texts = texts.take(rows)
        logits = texts.feed(tokens)
        said = [[*said[row], int(t)] for row, t in zip(rows, tokens, strict=True)]
        which = [which[row] for row in rows]
        for s, ids in enumerate(said):
            want = next_logits(model, ids, given[which[s]])
            assert np.abs(logits[s] - want).max() < 1e-12 * np.abs(want).max()
    assert len(texts.kv) == 9  # as many as there ever were at once: room is used again


def test_the_end_token_ends_a_text_and_is_left_off(model):
    end = an_end_that_some_reach(model)
    model = with_end(model, end)
    want = [uncached_greedy(model, p, 12, end=end) for p in PROMPTS]
    assert {len(row) == 12 for row in want} == {True, False}
    assert generate_ids(model, PROMPTS, decoding=Decoding(12)) == want


def test_a_text_that_ends_at_once_is_empty_and_no_prompts_give_no_texts(model):
    first = uncached_greedy(without_end(model), [7], 1)[0]
    assert generate_ids(with_end(model, first), [[7]]) == [[]]
    assert generate_ids(model, []) == []


def test_many_prompts_at_once_equal_each_alone(model, config):
    model = with_end(model, an_end_that_some_reach(model))
    together = generate_ids(model, PROMPTS)
    assert together == [generate_ids(model, [p])[0] for p in PROMPTS]
    assert len({len(row) for row in together}) > 1


def test_decoding_changes_neither_the_weights_nor_the_prefix(model, config):
    prefix = prefixes(config)["a prefix"]
    for a in [*model.weights.values(), prefix.kv]:
        a.flags.writeable = False  # a write raises
    for settings in (Decoding(8), Decoding(8, temperature=1.0, top_k=5), Decoding(8, beams=3)):
        first = generate_ids(model, PROMPTS, prefix, decoding=settings)
        # nor does anything of the first call linger: the second says the same
        assert generate_ids(model, PROMPTS, prefix, decoding=settings) == first


@WAYS
def test_a_complex_model_says_what_the_real_one_does(model, way):
    weights = {name: a.astype("complex128") for name, a in model.weights.items()}
    widened, d = GPT2(model.config, weights, name="complex"), Decoding(8, **way)
    want = generate_ids(model, PROMPTS, decoding=d, ops="reference")
    assert generate_ids(widened, PROMPTS, decoding=d, ops="reference") == want


# ---- transformers and PEFT ----


def hf_generate(hf, prompt, n, *ends, **options):
    ids = torch.tensor([prompt])
    with torch.no_grad():
        out = hf.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=n,
            do_sample=False,
            eos_token_id=list(ends),
            pad_token_id=ends[0],
            **options,
        )[0].tolist()
    new = out[len(prompt) :]
    return new[: next((i for i, token in enumerate(new) if token in ends), n)]


def test_greedy_agrees_with_transformers(model):
    end = an_end_that_some_reach(model)
    hf, model = to_hf(model), with_end(model, end)
    want = [hf_generate(hf, p, 15, end) for p in PROMPTS]
    assert generate_ids(model, PROMPTS, decoding=Decoding(15)) == want


@pytest.mark.parametrize("least", [0, 1, 4])
def test_greedy_with_several_end_tokens_agrees_with_transformers(model, least):
    bare = [uncached_greedy(without_end(model), p, 12) for p in PROMPTS]
    ends = tuple({row[i % 9 + 1] for i, row in enumerate(bare)})
    hf, model = to_hf(model), with_end(model, ends)
    want = [hf_generate(hf, p, 12, *ends, min_new_tokens=least) for p in PROMPTS]
    assert generate_ids(model, PROMPTS, decoding=Decoding(12, min_new_tokens=least)) == want
    for end in ends:
        one = with_end(model, end)
        assert generate_ids(one, PROMPTS, decoding=Decoding(12, min_new_tokens=least)) != want


# without a cache is the way round a transformers that drops PEFT's (see `export --to peft`)
@pytest.mark.parametrize("use_cache", [True, False])
def test_greedy_with_a_prefix_agrees_with_peft(config, tmp_path, use_cache):
    from peft import PeftModel

    model = random_model(config, dtype="float32")
    prefix = Prefix.normal(config, 6, std=1.0, seed=3)
    prefix.save(tmp_path, model)
    theirs = PeftModel.from_pretrained(to_hf(model), str(tmp_path)).eval()
    want = [hf_generate(theirs, p, 10, 0, use_cache=use_cache) for p in PROMPTS]
    assert generate_ids(model, PROMPTS, prefix, decoding=Decoding(10)) == want
    assert generate_ids(model, PROMPTS, decoding=Decoding(10)) != want


# ---- beam search ----

TINY = Config(n_layer=2, n_head=2, n_embd=8, vocab_size=4, n_positions=24, eos_token_id=3)


def tiny_model(seed, ends=3):
    model = random_model(replace(TINY, eos_token_id=ends), seed)
    model.weights["wte.weight"] *= 4  # far from uniform, so that what comes first decides
    return model


def hypotheses(model, prompt, prefix, d):
    """Every text that the settings allow, with its score: all of them, one by one."""
    ends, V = model.config.end_tokens, model.config.vocab_size
    after = {  # text -> the scores of each next token
        text: step_scores(model, [*prompt, *text], prefix, d, n)
        for n in range(d.max_new_tokens)
        for text in product([t for t in range(V) if t not in ends], repeat=n)
    }
    scores = {}
    for n in range(1, d.max_new_tokens + 1):
        for tokens in product(range(V), repeat=n):
            early = tokens[-1] not in ends and n < d.max_new_tokens
            if early or set(ends) & set(tokens[:-1]):
                continue
            total = sum(after[tokens[:i]][t] for i, t in enumerate(tokens))
            scores[tokens] = total / n**d.length_norm
    return scores


def step_scores(model, ids, prefix, d, n_new):
    """log-probabilities, -inf for what may not be chosen."""
    logits = next_logits(model, ids, prefix)
    logits[list(d.forbidden)] = -np.inf
    if n_new < d.min_new_tokens:
        logits[list(model.config.end_tokens)] = -np.inf
    return log_softmax(logits)


def naive_beam_search(model, prompt, prefix, d):
    """The textbook's: the best of all continuations are kept, and one that ended keeps its place.
    No cache."""
    ends, beam, ended = model.config.end_tokens, [((), 0.0)], []
    for n_new in range(d.max_new_tokens):
        grown = [
            ((*text, int(token)), total + scores[token])
            for text, total in beam
            for scores in [step_scores(model, [*prompt, *text], prefix, d, n_new)]
            for token in np.flatnonzero(np.isfinite(scores))
        ]
        grown = sorted(grown, key=lambda h: -h[1])[: d.beams - len(ended)]
        ended += [h for h in grown if h[0][-1] in ends]
        beam = [h for h in grown if h[0][-1] not in ends]
    best, _ = max(ended + beam, key=lambda h: h[1] / len(h[0]) ** d.length_norm)
    return [t for t in best if t not in ends]


BEAM_SETTINGS = [
    {"length_norm": 0.0},
    {"length_norm": 0.5},
    {},
    {"length_norm": 2.0},
    {"length_norm": 1.0, "min_new_tokens": 2},
    {"length_norm": 0.0, "min_new_tokens": 4},
    {"length_norm": 0.0, "forbidden": (1,)},
    {"length_norm": 0.7, "forbidden": (0, 3)},
]


ENDS = pytest.mark.parametrize("ends", [3, (1, 3)], ids=["one end token", "two"])


@ENDS
@pytest.mark.parametrize("extra", BEAM_SETTINGS, ids=str)
def test_a_beam_as_wide_as_all_hypotheses_finds_the_best_text(extra, ends):
    d = Decoding(4, beams=200, **extra)
    lengths = set()
    for seed in range(4):
        model = tiny_model(seed, ends)
        prefix = Prefix.normal(TINY, 2, std=1.0, seed=seed, dtype="float64")
        for prompt in ([2], [0, 1, 1]):
            scores = hypotheses(model, prompt, prefix, d)
            best = [
                t for t in max(scores, key=scores.__getitem__) if t not in model.config.end_tokens
            ]
            assert generate_ids(model, [prompt], prefix, decoding=d) == [best]
            lengths.add(len(best))
    if extra == {"length_norm": 0.0}:
        assert len(lengths) > 1  # short and long texts both win somewhere


@ENDS
@pytest.mark.parametrize("beams", [2, 3, pytest.param(5, marks=pytest.mark.long)])
@pytest.mark.parametrize("extra", BEAM_SETTINGS, ids=str)
def test_beam_search_agrees_with_a_naive_one_without_a_cache(beams, extra, ends):
    d = Decoding(5, beams=beams, **extra)
    prompts = [[2], [0, 1, 1], [1, 2]]
    differs = 0
    for seed in range(6):
        model = tiny_model(seed, ends)
        prefix = Prefix.normal(TINY, 2, std=1.0, seed=seed, dtype="float64")
        want = [naive_beam_search(model, p, prefix, d) for p in prompts]
        assert generate_ids(model, prompts, prefix, decoding=d) == want
        greedy = Decoding(5, min_new_tokens=d.min_new_tokens, forbidden=d.forbidden)
        differs += generate_ids(model, prompts, prefix, decoding=greedy) != want
    assert differs  # beams matter in at least one of these worlds


@BACKENDS
def test_one_beam_is_greedy_with_the_end_token_in_reach(model, config, ops, monkeypatch):
    model = with_end(model, an_end_that_some_reach(model))
    greedy = generate_ids(model, PROMPTS, decoding=Decoding(12), ops=ops)
    assert {len(row) == 12 for row in greedy} == {True, False}
    assert generate_ids(model, PROMPTS, decoding=Decoding(12, beams=1), ops=ops) == greedy
    # one beam is decoded by the greedy code; the beam search itself must agree with it, too
    search = decoding_module._beam_search
    monkeypatch.setattr(decoding_module, "_one_by_one", lambda *given: search(*given[:5]))
    for norm in (0.0, 1.0, 3.0):
        one = Decoding(12, length_norm=norm)
        assert generate_ids(model, PROMPTS, decoding=one, ops=ops) == greedy


@pytest.mark.parametrize("kind", ["no prefix", "a prefix", "a layer subset"])
def test_many_prompts_with_beams_equal_each_alone(model, config, kind):
    model = with_end(model, an_end_that_some_reach(model))
    prefix, d = prefixes(config)[kind], Decoding(10, beams=4, length_norm=0.5)
    together = generate_ids(model, PROMPTS, prefix, decoding=d)
    assert together == [generate_ids(model, [p], prefix, decoding=d)[0] for p in PROMPTS]
    assert together != generate_ids(model, PROMPTS, prefix, decoding=Decoding(10))


def test_beams_with_a_prefix_for_each_prompt_equal_each_alone(model, config):
    given = [p for p in prefixes(config).values() if p is not None]
    d, which = Decoding(8, beams=3), [1, 0, 4, 2, 3]
    together = generate_ids(model, PROMPTS, given, which, d)
    assert together == [
        generate_ids(model, [p], given[i], decoding=d)[0]
        for p, i in zip(PROMPTS, which, strict=True)
    ]


def test_a_wider_beam_finds_no_worse_a_text_than_greedy_by_total_log_probability(model):
    model = without_end(model)

    def total(prompt, new):
        return sum(
            log_softmax(next_logits(model, [*prompt, *new[:i]]))[t] for i, t in enumerate(new)
        )

    gains = []
    for prompt in PROMPTS:
        greedy, wide = (
            generate_ids(model, [prompt], decoding=Decoding(6, beams=b))[0] for b in (1, 50)
        )
        gains.append(total(prompt, wide) - total(prompt, greedy))
    assert min(gains) > -1e-12
    assert max(gains) > 0.01


def test_of_texts_that_score_the_same_the_one_with_the_lowest_token_is_found(config, monkeypatch):
    head = decoding_module.head
    # a product of matrices may give twins, and rows, other last bits, as the processor has it
    monkeypatch.setattr(decoding_module, "head", lambda *given: np.round(head(*given), 3))
    for seed in range(4):
        model = without_end(random_model(replace(config, vocab_size=2 * GROUPS), seed))
        wte = model.weights["wte.weight"]
        wte[GROUPS:] = wte[:GROUPS]  # every token has a twin that does the same
        for beams in (1, 2, 3, 4):
            rows = generate_ids(model, PROMPTS, decoding=Decoding(6, beams=beams))
            assert max(map(max, rows)) < GROUPS


@pytest.mark.parametrize("size", [1, 7, GROUPS - 1, GROUPS, GROUPS + 1, 5 * GROUPS + 123])
@pytest.mark.parametrize("distinct", [2, 30, 10**6])
def test_the_likeliest_tokens_are_the_first_of_a_stable_sort(size, distinct):
    rng = np.random.default_rng(size)
    for dtype in (np.float32, np.float64):
        logits = rng.integers(distinct, size=size).astype(dtype) - distinct // 2
        logits[rng.random(size) < 0.2] = -np.inf
        allowed = np.isfinite(logits).sum()
        order = np.argsort(-logits, kind="stable")[:allowed]
        for n in (1, 2, 5, 60, GROUPS - 1, GROUPS, GROUPS + 1, size):
            assert decoding_module._likeliest(logits, n).tolist() == order[:n].tolist()


def test_log_probabilities_are_float64_where_the_logits_are_float32():
    logits = np.random.default_rng(0).normal(0, 3, 50_000).astype(np.float32)
    logits[7] = -np.inf
    tokens = np.arange(0, 50_000, 11)
    got = decoding_module._log_probabilities(logits, tokens)
    want = log_softmax(logits.astype(np.float64))[tokens]
    assert np.abs(want).min() > 4  # a float32 would be off by up to 2e-7
    assert np.abs(got - want).max() < 5e-8


# ---- sampling ----


def allowed_probabilities(logits, temperature=1.0, top_k=None, top_p=None, forbidden=()):
    """softmax(logits / temperature), then the top_k largest, then the fewest that hold top_p."""
    scaled = logits / temperature
    p = np.exp(scaled - scaled.max())
    p[list(forbidden)] = 0
    order = sorted(range(len(p)), key=lambda i: -p[i])
    kept = order[:top_k]
    if top_p is not None:
        mass, share = sum(p[i] for i in kept), 0.0
        for n, i in enumerate(kept, 1):
            share += p[i] / mass
            if share >= top_p:
                kept = kept[:n]
                break
    restricted = np.zeros_like(p)
    restricted[kept] = p[kept]
    return restricted / restricted.sum()


def chi_square(counts, p):
    """The statistic and its degrees of freedom, rare tokens taken together."""
    expected = p * counts.sum()
    common = expected >= 5
    observed, expected = (
        np.append(a[common], a[~common].sum()) for a in (counts.astype(float), expected)
    )
    here = expected > 0
    return ((observed - expected)[here] ** 2 / expected[here]).sum(), here.sum() - 1


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 1.0},
        pytest.param({"temperature": 0.4}, marks=pytest.mark.long),
        pytest.param({"temperature": 2.5}, marks=pytest.mark.long),
        {"temperature": 1.0, "top_k": 7},
        pytest.param({"temperature": 0.7, "top_p": 0.6}, marks=pytest.mark.long),
        pytest.param({"temperature": 1.5, "top_p": 1.0}, marks=pytest.mark.long),
        {"temperature": 1.3, "top_k": 12, "top_p": 0.5},
        pytest.param({"temperature": 1.0, "top_k": 10_000}, marks=pytest.mark.long),
        {"temperature": 1.0, "top_k": 4, "forbidden": "the two likeliest"},
    ],
    ids=str,
)
def test_draws_are_as_frequent_as_the_restricted_softmax_says(model, config, settings):
    model, prefix = without_end(model), prefixes(config)["a prefix"]
    logits = next_logits(model, [9, 4], prefix)
    if "forbidden" in settings:
        settings = settings | {"forbidden": tuple(np.argsort(-logits)[:2].tolist())}
    n = 2000
    drawn = generate_ids(model, [[9, 4]] * n, prefix, decoding=Decoding(1, seed=1, **settings))
    counts = np.bincount([row[0] for row in drawn], minlength=config.vocab_size)
    p = allowed_probabilities(logits, **settings)
    assert not counts[p == 0].any()
    statistic, freedom = chi_square(counts, p)
    assert statistic < freedom + 4 * (2 * freedom) ** 0.5
    # and the bound can tell: the softmax of another temperature breaks it
    other = allowed_probabilities(logits, **settings | {"temperature": settings["temperature"] * 2})
    if np.array_equal(other > 0, p > 0):
        statistic, freedom = chi_square(counts, other)
        assert statistic > freedom + 4 * (2 * freedom) ** 0.5


def test_a_later_token_is_drawn_given_the_one_before_it(model):
    model = without_end(model)
    d = Decoding(2, temperature=0.5, top_k=3)
    drawn = generate_ids(model, [[9, 4]] * 1500, decoding=d)
    firsts = {row[0] for row in drawn}
    assert len(firsts) == 3
    for first in firsts:
        seconds = [row[1] for row in drawn if row[0] == first]
        p = allowed_probabilities(next_logits(model, [9, 4, first]), 0.5, 3)
        statistic, freedom = chi_square(np.bincount(seconds, minlength=50), p)
        assert statistic < freedom + 4 * (2 * freedom) ** 0.5


SAMPLED = Decoding(12, temperature=1.5, seed=7)


def test_one_seed_decides_the_draws(model):
    first = generate_ids(model, PROMPTS, decoding=SAMPLED)
    assert generate_ids(model, PROMPTS, decoding=SAMPLED) == first
    assert generate_ids(model, PROMPTS, decoding=replace(SAMPLED, seed=8)) != first


def test_equal_prompts_get_draws_of_their_own(model):
    drawn = generate_ids(without_end(model), [[7]] * 6, decoding=SAMPLED)
    assert len({tuple(row) for row in drawn}) == 6


def test_a_draw_does_not_depend_on_what_else_is_decoded_with_it(model):
    end = uncached_greedy(without_end(model), [7], 1)[0]
    model = with_end(model, end)  # texts leave the batch at different steps
    whole = generate_ids(model, PROMPTS, decoding=SAMPLED)
    assert len({len(row) for row in whole}) > 1
    for s in range(len(PROMPTS)):
        others = [[20 + i, 3] for i in range(len(PROMPTS) + 2)]
        others[s] = PROMPTS[s]
        assert generate_ids(model, others, decoding=SAMPLED)[s] == whole[s]
        assert generate_ids(model, PROMPTS[: s + 1], decoding=SAMPLED)[s] == whole[s]


@pytest.mark.parametrize(
    "settings",
    [{"temperature": 5.0, "top_k": 1}, {"temperature": 5.0, "top_p": 1e-9}, {"temperature": 1e-4}],
    ids=str,
)
def test_sampling_from_one_token_alone_is_greedy(model, settings):
    greedy = generate_ids(model, PROMPTS, decoding=Decoding(10))
    assert generate_ids(model, PROMPTS, decoding=Decoding(10, **settings)) == greedy
    assert generate_ids(model, PROMPTS, decoding=Decoding(10, temperature=5.0)) != greedy


# ---- limits ----


@pytest.fixture
def eager(model):
    """The end token is among the likeliest everywhere."""
    weights = dict(model.weights)
    weights["lm_head.weight"] = model.weights["wte.weight"].copy()
    weights["ln_f.bias"] = model.weights["ln_f.bias"] + 7 * weights["lm_head.weight"][0]
    wide = replace(model.config, tie_word_embeddings=False)
    return GPT2(wide, weights, name="eager")


@WAYS
def test_the_end_is_out_of_reach_before_min_new_tokens(eager, way):
    prompts = PROMPTS * 4
    for least in (1, 3, 9):
        rows = generate_ids(eager, prompts, decoding=Decoding(9, min_new_tokens=least, **way))
        assert all(least <= len(row) <= 9 and 0 not in row for row in rows)
        if least < 9:
            assert any(len(row) < 9 for row in rows)  # and it is in reach after them
    assert any(len(row) < 1 for row in generate_ids(eager, prompts, decoding=Decoding(9, **way)))


def test_an_end_token_outside_the_vocabulary_ends_nothing(model):
    d = Decoding(6, min_new_tokens=2)
    want = generate_ids(without_end(model), PROMPTS, decoding=d)
    for nowhere in (50, -1, (50256, 50)):
        assert generate_ids(with_end(model, nowhere), PROMPTS, decoding=d) == want
    end = an_end_that_some_reach(model)
    one, more = (with_end(model, ends) for ends in (end, (50256, end)))
    assert generate_ids(one, PROMPTS) == generate_ids(more, PROMPTS)


@WAYS
@pytest.mark.parametrize("n", [1, 2, 7])
def test_no_text_is_longer_than_max_new_tokens(model, way, n):
    rows = generate_ids(without_end(model), PROMPTS, decoding=Decoding(n, **way))
    assert [len(row) for row in rows] == [n] * len(PROMPTS)


@WAYS
def test_forbidden_tokens_are_never_chosen(eager, way):
    free = generate_ids(eager, PROMPTS, decoding=Decoding(10, min_new_tokens=10, **way))
    common = np.bincount(np.concatenate(free), minlength=50).argsort()[-8:].tolist()
    d = Decoding(10, forbidden=tuple(common), **way)
    rows = generate_ids(eager, PROMPTS, decoding=d)
    assert not set(common) & set(np.concatenate(rows).tolist())
    no_end = generate_ids(eager, PROMPTS, decoding=Decoding(10, forbidden=(0,), **way))
    assert [len(row) for row in no_end] == [10] * len(PROMPTS)


@WAYS
@pytest.mark.parametrize(("length", "offset"), [(0, None), (5, None), (5, 0)])
def test_a_text_may_fill_every_position_and_not_one_more(model, config, way, length, offset):
    model = without_end(model)
    where = {"position_offset": offset, "dtype": "float64"}
    prefix = Prefix.normal(config, length, std=1.0, **where)
    start = prefix.position_offset
    prompt, n = [3] * 40, config.n_positions - start - 39  # the last token needs no position
    rows = generate_ids(model, [[1], prompt], prefix, decoding=Decoding(n, **way))
    assert [len(row) for row in rows] == [n, n]
    with pytest.raises(
        InputError,
        match=rf"prompt 1 has 40 tokens and ends at position {start + 39}: with {n + 1} new tokens "
        "it needs more than the model's 64 positions; shorten it or lower max_new_tokens",
    ):
        generate_ids(model, [[1], prompt], prefix, decoding=Decoding(n + 1, **way))


@BACKENDS
@WAYS
@pytest.mark.parametrize("kind", ["no prefix", "a prefix", "a layer subset"])
def test_a_limit_is_of_its_own_text_and_the_others_write_what_they_wrote(
    model, config, kind, way, ops
):
    model = with_end(model, an_end_that_some_reach(model))
    prefix, d = prefixes(config)[kind], Decoding(12, **way)
    free = generate_ids(model, PROMPTS, prefix, decoding=d, ops=ops)
    limits = [12, 3, 40, 1, 7]
    rows = generate_ids(model, PROMPTS, prefix, decoding=d, ops=ops, limits=limits)
    for s, limit in enumerate(limits):
        own = Decoding(min(12, limit), **way)
        assert [rows[s]] == generate_ids(
            model, [PROMPTS[s]], prefix, decoding=own, ops=ops, numbers=[s]
        )
        assert rows[s] == free[s] or limit < 12
    assert rows != free
    assert generate_ids(model, PROMPTS, prefix, decoding=d, ops=ops, limits=[12] * 5) == free


def test_a_text_with_a_limit_may_fill_the_positions_that_another_leaves_no_room_for(model):
    model = without_end(model)
    prompts, limits = [[1], [3] * 64, [3] * 60], [40, 1, 5]
    rows = generate_ids(model, prompts, decoding=Decoding(40), limits=limits)
    assert [len(row) for row in rows] == limits
    assert rows[0] == uncached_greedy(model, [1], 40)


def test_a_filled_model_said_what_it_says_without_a_cache(model, config):
    model, prefix = without_end(model), prefixes(config)["a prefix"]
    n = config.n_positions - 5 - 39
    want = uncached_greedy(model, [3] * 40, n, prefix)
    assert generate_ids(model, [[3] * 40], prefix, decoding=Decoding(n)) == [want]


# ---- text in, text out ----


@pytest.fixture
def writer(config):
    """Bytes are its tokens, so any text goes in and comes out."""
    model = random_model(replace(config, vocab_size=257, eos_token_id=256))
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator([""], vocab_size=256)
    model.tokenizer = bpe._tokenizer
    return model


def test_generate_encodes_decodes_and_passes_every_setting_on(writer, config):
    prompts = ["name[Ox]", "a"]
    ids = [writer.encode(p) for p in prompts]
    prefix = Prefix.normal(writer.config, 3, std=1.0, dtype="float64")
    bare = Prefix.zero(writer.config, 0, dtype="float64")
    for settings in (
        {"max_new_tokens": 5},
        {"max_new_tokens": 5, "temperature": 1.1, "top_k": 9, "top_p": 0.8, "seed": 3},
        {"max_new_tokens": 5, "beams": 3, "length_norm": 0.2, "min_new_tokens": 2},
        {"max_new_tokens": 5, "forbidden": (65, 66)},
    ):
        want = generate_ids(writer, ids, [prefix, bare], [1, 0], Decoding(**settings))
        got = generate(writer, prompts, prefix=[prefix, bare], which=[1, 0], **settings)
        assert got == [writer.decode(row) for row in want]
    assert generate(writer, prompts) == [
        writer.decode(row) for row in generate_ids(writer, ids, decoding=Decoding(40))
    ]


# ---- bad input ----


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0: expected at least 1"),
        ({"max_new_tokens": -3}, "max_new_tokens is -3: expected at least 1"),
        ({"min_new_tokens": -1}, "min_new_tokens is -1: expected 0 to max_new_tokens"),
        (
            {"max_new_tokens": 4, "min_new_tokens": 5},
            "min_new_tokens is 5: expected 0 to max_new_tokens",
        ),
        (
            {"temperature": 0.0},
            r"temperature is 0.0: expected a finite number above 0 \(leave it out for greedy\)",
        ),
        ({"temperature": -1.0}, "temperature is -1.0: expected a finite number above 0"),
        ({"temperature": float("nan")}, "temperature is nan: expected a finite number above 0"),
        ({"temperature": 1.0, "top_k": 0}, "top_k is 0: expected at least 1"),
        ({"temperature": 1.0, "top_p": 0.0}, "top_p is 0.0: expected above 0, at most 1"),
        ({"temperature": 1.0, "top_p": 1.5}, "top_p is 1.5: expected above 0, at most 1"),
        ({"temperature": 1.0, "top_p": float("nan")}, "top_p is nan: expected above 0, at most 1"),
        ({"top_k": 5}, "top_k and top_p restrict sampling: give a temperature as well"),
        ({"top_p": 0.5}, "top_k and top_p restrict sampling: give a temperature as well"),
        ({"beams": 0}, "beams is 0: expected at least 1"),
        ({"beams": 2, "temperature": 1.0}, "beam search does not sample: leave out temperature"),
        ({"seed": -1}, "seed is -1: "),
    ],
    ids=str,
)
def test_a_bad_setting_is_a_sentence(model, settings, sentence):
    with pytest.raises(InputError, match=sentence):
        generate_ids(model, [[1]], decoding=Decoding(**settings))


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda m: generate(m, "one text"), "prompts is one text: give a list of texts"),
        (lambda m: generate_ids(m, [[1], []]), "prompt 1 is empty: give at least one token"),
        (
            lambda m: generate_ids(m, [[1], [2]], limits=[3]),
            "limits has 1 entry for 2 prompts: give one each",
        ),
        (lambda m: generate_ids(m, [[1]], limits=[0]), "limits holds 0: expected at least 1"),
        (
            lambda m: generate_ids(m, [[1]], None, None, Decoding(9, min_new_tokens=3), limits=[2]),
            "limits holds 2: expected at least 3, min_new_tokens",
        ),
        (lambda m: generate_ids(m, [[1]], limits=[2.5]), r"limits is \[2.5\]: expected whole"),
        (lambda m: generate(m, ["x"]), "model 'random' has no tokenizer"),
        (lambda m: generate_ids(m, "ab"), "sequence 0 is text: encode it to token ids first"),
        (
            lambda m: generate_ids(m, [[1], [50]]),
            "token id 50 of sequence 1 lies outside the vocabulary of model 'random', 0 to 49",
        ),
        (
            lambda m: generate_ids(m, [[1]], decoding=Decoding(forbidden=(3, 50))),
            "forbidden token 50 lies outside the vocabulary, 0 to 49",
        ),
        (
            lambda m: generate_ids(m, [[1]], decoding=Decoding(forbidden=(-1,))),
            "forbidden token -1 lies outside the vocabulary, 0 to 49",
        ),
        (
            lambda m: generate_ids(m, [[1]], Prefix.zero(m.config, 2), which=[1]),
            "names prefix 1 .from 0., and 1 were given",
        ),
        (
            lambda m: generate_ids(m, [[1]], which=[1]),
            "which names prefixes, and no prefix was given",
        ),
        (
            lambda m: generate_ids(m, [[1], [2]], Prefix.zero(m.config, 2), which=[0]),
            "which has 1 entry for 2 ",
        ),
        (
            lambda m: generate_ids(m, [[1]], Prefix(np.zeros((3, 2, 12, 1, 8)))),
            "prefix has 12 heads of size 8, model 'random' has 4 of size 8",
        ),
    ],
)
def test_bad_input_to_decoding_is_a_sentence(model, call, sentence):
    with pytest.raises(InputError, match=sentence):
        call(model)


@WAYS
@pytest.mark.parametrize("least", [0, 1])
def test_forbidding_every_token_is_a_sentence(model, way, least):
    # the end token counts as forbidden where it is out of reach
    forbidden = tuple(range(1, 50)) if least else tuple(range(50))
    d = Decoding(5, forbidden=forbidden, min_new_tokens=least, **way)
    with pytest.raises(InputError, match="forbidden"):
        generate_ids(model, [[1]], decoding=d)


def test_an_unknown_keyword_raises_type_error_and_is_named(writer):
    with pytest.raises(TypeError, match="unexpected keyword argument 'num_beams'"):
        generate(writer, ["x"], num_beams=4)


def test_a_prompt_of_no_tokens_is_a_sentence(writer):
    with pytest.raises(InputError, match="prompt 1 is empty: give at least one token"):
        generate(writer, ["x", ""])
