"""Several prefixes in one batch: each sequence as if it were alone with its own, in training, in
logits and in decoding. To 1e-12 of each tensor's largest value, in float64.

Alone means: one sequence, one prefix that is in no list, one call.
"""

import functools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minprefix import (
    GPT2,
    Batch,
    Config,
    InputError,
    Prefix,
    generate,
    loss,
    loss_and_grad,
    loss_and_weight_grads,
)
from minprefix.generate import Decoding, generate_ids
from minprefix.optim import AdamW
from minprefix.train import mean_gradient
from tests.conftest import random_model, relative_error

BACKENDS = pytest.mark.parametrize("ops", ["reference", "numpy"])
CONFIG = Config(n_layer=3, n_head=4, n_embd=32, vocab_size=50, n_positions=64, eos_token_id=0)


def drawn(length, seed=0, **where):
    return Prefix.normal(CONFIG, length, std=1.0, seed=seed, dtype="float64", **where)


def five(none=None):
    """Of five lengths, no two alike in how they were made."""
    return [
        drawn(1),
        Prefix.mlp(CONFIG, 3, hidden=6, seed=1, dtype="float64"),
        none,
        drawn(7, layers=[0, 2]),
        drawn(4, position_offset=0),
    ]


def no_slots():
    return drawn(0)


LENGTHS = [6, 2, 9, 1, 4, 12, 3, 7, 2, 5, 8, 3]
WHICH = [3, 0, 4, 1, 2, 1, 3, 2, 4, 0, 1, 3]  # shuffled; each of the five twice at least
STARTS = [2, 1, 4, 1, 1, 7, 1, 6, 2, 1, 3, 2]  # of the targets: some sequences have none


def sequences():
    rng = np.random.default_rng(0)
    return [rng.integers(1, CONFIG.vocab_size, T).tolist() for T in LENGTHS]


def alone(model, ids, start, prefix, ops):
    """-> logits, the summed loss, and the gradient for the prefix's kv, of one sequence."""
    batch = Batch.pack([ids], start)
    logits = model.logits(batch, prefix, ops)
    if len(batch.targets) == 0:
        return logits, 0.0, 0.0
    if prefix is None:
        return logits, loss(model, batch, None, "sum", ops), None
    return logits, *loss_and_grad(model, prefix, batch, "sum", ops)


def assert_equals_separate_runs(model, seqs, starts, which, prefixes, ops):
    batch = Batch.pack(seqs, starts, which)
    runs = [
        alone(model, ids, start, prefixes[i], ops)
        for ids, start, i in zip(seqs, starts, which, strict=True)
    ]
    logits = model.logits(batch, prefixes, ops)
    for b, (want, _, _) in enumerate(runs):
        assert relative_error(logits[batch.offsets[b] : batch.offsets[b + 1]], want) < 1e-12
    if len(batch.targets) == 0:
        return
    total = sum(part for _, part, _ in runs)
    for reduction, divided in (("sum", 1), ("mean", len(batch.targets))):
        value, dkvs = loss_and_grad(model, prefixes, batch, reduction, ops)
        assert value == pytest.approx(total / divided, rel=1e-12)
        assert loss(model, batch, prefixes, reduction, ops) == value
        assert len(dkvs) == len(prefixes)
        for i, (prefix, dkv) in enumerate(zip(prefixes, dkvs, strict=True)):
            if prefix is None:
                assert dkv is None
                continue
            dwant = np.zeros_like(prefix.kv)
            for j, (_, _, part) in zip(which, runs, strict=True):
                dwant += part if i == j else 0
            assert relative_error(dkv, dwant / divided) < 1e-12
            if i not in which:
                assert not dkv.any()
            grads, wanted = prefix.backward(dkv), prefix.backward(dwant / divided)
            assert set(grads) == set(prefix.parameters)  # of an MLP: all five
            for name, grad in grads.items():
                assert relative_error(grad, wanted[name]) < 1e-12


# ---- logits, loss, gradients ----


@BACKENDS
@pytest.mark.parametrize("none", [None, no_slots()], ids=["none", "no slots"])
def test_a_batch_of_five_prefixes_equals_separate_runs(model, ops, none):
    prefixes = five(none)
    assert_equals_separate_runs(model, sequences(), STARTS, WHICH, prefixes, ops)
    assert sorted(p.length for p in five(no_slots())) == [0, 1, 3, 4, 7]


@BACKENDS
def test_the_five_prefixes_differ_in_what_they_do_so_that_none_can_stand_for_another(model, ops):
    batch = Batch.pack([sequences()[0]])
    each = [model.logits(batch, p, ops) for p in five()]
    for i in range(5):
        for j in range(i):
            assert relative_error(each[i], each[j]) > 1e-2


@BACKENDS
def test_a_prefix_that_no_sequence_sees_changes_nothing_and_its_gradient_is_zero(model, ops):
    prefixes, seqs = five(), sequences()
    seen = [i if i not in (1, 3) else 0 for i in WHICH]
    batch = Batch.pack(seqs, STARTS, seen)
    value, dkvs = loss_and_grad(model, prefixes, batch, "sum", ops)
    for i in (1, 3):
        assert dkvs[i].shape == prefixes[i].kv.shape
        assert not dkvs[i].any()
        assert not any(a.any() for a in prefixes[i].backward(dkvs[i]).values())
    without = [prefixes[0], None, None, None, prefixes[4]]
    assert loss(model, batch, without, "sum", ops) == value
    assert_equals_separate_runs(model, seqs, STARTS, seen, prefixes, ops)


@BACKENDS
def test_permuting_a_batch_permutes_its_logits_and_keeps_its_loss_and_gradients(model, ops):
    prefixes, seqs = five(), sequences()
    batch = Batch.pack(seqs, STARTS, WHICH)
    logits, (value, dkvs) = (
        model.logits(batch, prefixes, ops),
        loss_and_grad(model, prefixes, batch, ops=ops),
    )
    order = np.random.default_rng(2).permutation(len(seqs))
    mixed = Batch.pack(*([values[b] for b in order] for values in (seqs, STARTS, WHICH)))
    got, (other, dothers) = (
        model.logits(mixed, prefixes, ops),
        loss_and_grad(model, prefixes, mixed, ops=ops),
    )
    for place, b in enumerate(order):
        rows = got[mixed.offsets[place] : mixed.offsets[place + 1]]
        assert relative_error(rows, logits[batch.offsets[b] : batch.offsets[b + 1]]) < 1e-12
    assert other == pytest.approx(value, rel=1e-12)
    for p, dkv, dother in zip(prefixes, dkvs, dothers, strict=True):
        assert p is None or relative_error(dother, dkv) < 1e-12

    # and so does another order of the prefixes themselves
    turned = [prefixes[(i + 2) % 5] for i in range(5)]
    again = Batch.pack(seqs, STARTS, [(i - 2) % 5 for i in WHICH])
    assert relative_error(model.logits(again, turned, ops), logits) < 1e-12
    value, dturned = loss_and_grad(model, turned, again, ops=ops)
    for i, dkv in enumerate(dturned):
        assert dkv is dkvs[(i + 2) % 5] is None or relative_error(dkv, dkvs[(i + 2) % 5]) < 1e-12


@BACKENDS
def test_the_gradient_of_every_weight_of_a_mixed_batch_is_the_sum_of_separate_runs(model, ops):
    prefixes, seqs = five(), sequences()
    batch = Batch.pack(seqs, STARTS, WHICH)
    value, dweights = loss_and_weight_grads(model, batch, prefixes, "sum", ops)
    sums, total = {name: np.zeros_like(a) for name, a in dweights.items()}, 0.0
    for ids, start, i in zip(seqs, STARTS, WHICH, strict=True):
        if start < len(ids):
            one = Batch.pack([ids], start)
            part, grads = loss_and_weight_grads(model, one, prefixes[i], "sum", ops)
            total += part
            for name, grad in grads.items():
                sums[name] += grad
    assert value == pytest.approx(total, rel=1e-12)
    for name, dweight in dweights.items():
        assert relative_error(dweight, sums[name]) < 1e-12, name


a_prefix = st.one_of(
    st.none(),
    st.builds(
        drawn,
        st.integers(0, 6),
        seed=st.integers(0, 99),
        layers=st.sampled_from([None, [0], [2], [1, 2], [0, 1, 2], []]),
        position_offset=st.sampled_from([None, 0, 3]),
    ),
    st.builds(
        lambda P: Prefix.mlp(CONFIG, P, hidden=5, seed=P, dtype="float64"), st.integers(1, 4)
    ),
)


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_any_prefixes_with_any_sequences_equal_separate_runs(data):
    prefixes = data.draw(st.lists(a_prefix, min_size=1, max_size=5), "prefixes")
    sequence = st.lists(st.integers(0, CONFIG.vocab_size - 1), min_size=1, max_size=9)
    seqs = data.draw(st.lists(sequence, min_size=1, max_size=6), "sequences")
    which = [data.draw(st.integers(0, len(prefixes) - 1)) for _ in seqs]
    starts = [data.draw(st.integers(1, len(ids))) for ids in seqs]
    ops = data.draw(st.sampled_from(["reference", "numpy"]))
    assert_equals_separate_runs(random_model(CONFIG), seqs, starts, which, prefixes, ops)


# ---- a training of all at once ----


@BACKENDS
@pytest.mark.parametrize("micro_batches", [1, 3])
def test_training_five_at_once_ends_in_the_same_prefixes_as_five_trainings(
    model, ops, micro_batches
):
    steps, seqs = 6, [ids for ids in sequences() if len(ids) > 1]
    which = [i % 5 for i in range(len(seqs))]
    together, apart = five(no_slots()), five(no_slots())
    adams = [AdamW(weight_decay=0.01) for _ in together]
    for step in range(steps):
        size = -(-len(seqs) // micro_batches)
        packs = [
            Batch.pack(seqs[b : b + size], 1, which[b : b + size])
            for b in range(0, len(seqs), size)
        ]
        seen = [p.fold() for p in together]
        _, dkvs = mean_gradient(model, seen, packs, len(seqs), ops)
        for prefix, adam, dkv in zip(together, adams, dkvs, strict=True):
            adam.step(prefix.parameters, prefix.backward(dkv), lr=1e-2 / (step + 1))
    for i, (prefix, trained, start) in enumerate(
        zip(apart, together, five(no_slots()), strict=True)
    ):
        own = [ids for ids, j in zip(seqs, which, strict=True) if j == i]
        adam = AdamW(weight_decay=0.01)
        for step in range(steps):
            _, (dkv,) = mean_gradient(model, [prefix.fold()], [Batch.pack(own)], len(seqs), ops)
            adam.step(prefix.parameters, prefix.backward(dkv), lr=1e-2 / (step + 1))
        for name, p in prefix.parameters.items():
            assert relative_error(trained.parameters[name], p) < 1e-12
            assert not p.size or relative_error(start.parameters[name], p) > 1e-3  # it moved


# ---- decoding ----

WAYS = pytest.mark.parametrize(
    "decoding",
    [
        Decoding(9),
        Decoding(9, temperature=1.3, seed=5),
        Decoding(9, temperature=1.3, top_k=20, top_p=0.9, seed=6),
        Decoding(9, beams=3),
        Decoding(9, beams=4, length_norm=0.5, min_new_tokens=3),
    ],
    ids=["greedy", "sampling", "top k, top p", "beams", "more beams"],
)


@functools.cache
def that_ends(decoding):
    """A model with an end token that texts decoded so reach at different steps, and some not."""
    for end in range(CONFIG.vocab_size):
        model = random_model(replace(CONFIG, eos_token_id=end))
        rows = generate_ids(model, sequences(), five(), WHICH, decoding)
        lengths = {len(row) for row in rows}
        if len(lengths) > 2 and decoding.max_new_tokens in lengths:
            return model
    raise AssertionError("no such token: choose another seed")


@BACKENDS
@WAYS
def test_texts_that_see_five_prefixes_are_those_of_separate_runs(ops, decoding):
    model, prefixes, seqs = that_ends(decoding), five(), sequences()
    together = generate_ids(model, seqs, prefixes, WHICH, decoding, ops)
    for s, (ids, i) in enumerate(zip(seqs, WHICH, strict=True)):
        own = generate_ids(model, [ids], prefixes[i], decoding=decoding, ops=ops, numbers=[s])
        assert own == [together[s]]
    assert len({len(row) for row in together}) > 2  # they ended at different steps
    assert generate_ids(model, seqs, decoding=decoding, ops=ops) != together
    assert generate_ids(model, seqs, five(no_slots()), WHICH, decoding, ops) == together


@WAYS
def test_texts_do_not_depend_on_which_are_decoded_together(decoding):
    model, prefixes, seqs = that_ends(decoding), five(), sequences()
    together = generate_ids(model, seqs, prefixes, WHICH, decoding)
    order = np.random.default_rng(3).permutation(len(seqs))
    for size in (5, len(seqs)):
        for b in range(0, len(seqs), size):
            group = order[b : b + size]
            rows = generate_ids(
                model,
                [seqs[s] for s in group],
                prefixes,
                [WHICH[s] for s in group],
                decoding,
                numbers=group,
            )
            assert rows == [together[s] for s in group]


def test_a_prompt_draws_by_its_number(model):
    d = Decoding(9, temperature=1.5)
    rows = generate_ids(model, [[7]] * 4, decoding=d, numbers=[3, 0, 8, 3])
    assert rows == [generate_ids(model, [[7]] * 9, decoding=d)[n] for n in (3, 0, 8, 3)]
    assert len({tuple(row) for row in rows}) == 3


def test_generate_takes_none_for_the_frozen_model_itself():
    model = GPT2.load("tiny")
    prefix = Prefix.text(model, "food[Thai]")
    prompts = ["name[Ox] type[pub]\n"] * 2
    with_none = generate(model, prompts, [prefix, None], which=[1, 0], max_new_tokens=12)
    assert with_none[:1] == generate(model, prompts[:1], max_new_tokens=12)
    assert with_none[1:] == generate(model, prompts[:1], prefix, max_new_tokens=12)
    assert with_none[0] != with_none[1]
    assert generate(model, prompts, [None], max_new_tokens=12) == [with_none[0]] * 2


# ---- refused ----


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (
            lambda m: m.logits(Batch.pack([[1]], prefix=[2]), [drawn(2), None]),
            r"^the batch names prefix 2 \(from 0\), and 2 were given$",
        ),
        (
            lambda m: loss(m, Batch.pack([[1, 2]], prefix=[1]), [None]),
            r"^the batch names prefix 1 \(from 0\), and 1 were given$",
        ),
        (
            lambda m: generate_ids(m, [[1], [2]], [drawn(2), None]),
            "^2 prefixes were given: say by `which` which one each prompt sees$",
        ),
        (
            lambda m: generate_ids(m, [[1], [2]], (drawn(2), None), which=[0]),
            "^which has 1 entry for 2 prompts: give one each$",
        ),
        (
            lambda m: m.logits(Batch.pack([[1], [2] * 62], prefix=[0, 1]), [None, drawn(3)]),
            "^sequence 1 has 62 tokens, model 'random' has room for 61 ",
        ),
        (
            lambda m: m.logits(
                Batch.pack([[1]]), [None, Prefix(np.zeros((3, 2, 12, 1, 8)))]
            ),  # no sequence sees it
            "^prefix has 12 heads of size 8, model 'random' has 4 of size 8",
        ),
        (
            lambda m: loss_and_grad(m, None, Batch.pack([[1, 2]])),
            "^there is no prefix to take the gradient for: see loss_and_weight_grads$",
        ),
        (
            lambda m: generate_ids(m, [[1], [2]], numbers=[0]),
            "^numbers has 1 entry for 2 prompts: give one each$",
        ),
        (
            lambda m: generate_ids(m, [[1], [2]], numbers=[0, -1]),
            "^numbers holds -1: expected whole numbers from 0$",
        ),
        (
            lambda m: generate_ids(m, [[1], [2]], numbers=[0, 1.0]),
            r"^numbers is \[0, 1.0\]: expected whole numbers$",
        ),
    ],
)
def test_bad_input_to_a_mixed_batch_is_a_sentence(model, call, sentence):
    with pytest.raises(InputError, match=sentence):
        call(model)
