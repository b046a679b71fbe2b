"""A store of many prefixes: each answers as it would alone, inside a budget, and none touches
another."""

import gc
import hashlib
import json
import os
import shutil
import sys
import threading
import weakref

import numpy as np
import pytest

from minprefix import GPT2, Config, InputError, Prefix
from minprefix.generate import Decoding, generate_ids
from minprefix.ops import threads
from minprefix.prefixes.store import PrefixStore
from minprefix.storage import provenance, saving
from tests.conftest import random_model

CONFIG = Config(n_layer=2, n_head=2, n_embd=16, vocab_size=50, n_positions=64, eos_token_id=0)
SLOT = 2 * 2 * 16 * 4  # bytes of one slot of it in float32


@pytest.fixture(scope="module")
def model():
    return random_model(CONFIG, dtype="float32")


@pytest.fixture(scope="module")
def one_thread():
    """Small products, on a machine that others use: a second thread only waits for its turn."""
    before = threads.count()
    threads.limit(1)
    yield
    threads.limit(before)


@pytest.fixture
def hasty():
    """Threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.fixture
def no_flush(monkeypatch):
    """Hundreds of saves: whether each reaches the disk itself is not the question here."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


def drawn(config, seed, length=3, **where):
    return Prefix.normal(config, length, 0.4, seed, **where)


def contents(folder):
    """sha256 of every file below a folder."""
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


@pytest.fixture
def store(tmp_path, model, no_flush):
    """Five prefixes of one to five slots: 15 slots in all, and room for five."""
    made = PrefixStore(tmp_path / "store", model, budget=5 * SLOT)
    for i, name in enumerate("abcde", 1):
        made.add(name, drawn(CONFIG, i, i))
    return made


# ---- a thousand prefixes, two thousand requests ----


def thousand(config, rng):
    """Prefixes of many lengths; some through an MLP, some of a few layers, some of another rule."""
    prefixes = {}
    for i in range(1000):
        length, kind = int(rng.integers(1, 13)), i % 10
        where = {}
        if kind in (1, 2):
            where["position_offset"] = 0
        if kind in (2, 3):
            where["layers"] = sorted(rng.choice(config.n_layer, 2, replace=False).tolist())
        if kind == 4:
            prefix = Prefix.mlp(config, length, 2, i, **where)
            prefix.parameters["weight_2"] *= 2  # its own start is small: all would say the same
        else:
            prefix = Prefix.normal(config, length, 0.5, i, **where)
        prefixes[f"task {i:03}"] = prefix
    return prefixes


@pytest.mark.long
def test_a_thousand_prefixes_serve_two_thousand_requests_as_each_would_alone_inside_the_budget(
    tmp_path, no_flush, one_thread, monkeypatch
):
    model, rng = GPT2.load("tiny"), np.random.default_rng(0)
    prefixes = thousand(model.config, rng)
    sizes = {name: p.kv.nbytes for name, p in prefixes.items()}
    budget = sum(sizes.values()) // 10
    store = PrefixStore(tmp_path, model, budget)
    # a thousand times the same: the fingerprints of one model, the versions of one installation
    prints, versions = (model.fingerprint(), model.tokenizer_fingerprint()), {}
    monkeypatch.setattr(model, "fingerprint", lambda: prints[0])
    monkeypatch.setattr(model, "tokenizer_fingerprint", lambda: prints[1])
    monkeypatch.setattr(provenance, "packages", lambda: versions)
    for name, prefix in prefixes.items():
        store.add(name, prefix)
    before = contents(tmp_path)

    # a hundred prefixes are asked once, the others twice, and a hundred requests want none
    names = [*prefixes, *list(prefixes)[100:], *[None] * 100]
    words = [rng.integers(1, 1024, rng.integers(1, 7)).tolist() for _ in range(40)]
    number = {name: i for i, name in enumerate(prefixes)}
    asked = [(name, words[number.get(name, i) % 40]) for i, name in enumerate(names)]
    asked = [asked[i] for i in rng.permutation(2000)]

    alive, most, loads = weakref.WeakSet(), [0, 0], [0]
    load = Prefix.load

    def watched(*args):
        prefix = load(*args)
        alive.add(prefix)
        loads[0] += 1
        # the one that was just read is not counted as held yet
        most[0] = max(most[0], sum(p.kv.nbytes for p in alive))
        most[1] = max(most[1], store.held + prefix.kv.nbytes)
        return prefix

    monkeypatch.setattr(Prefix, "load", watched)
    decoding = Decoding(max_new_tokens=3)
    written = store.generate_ids([ids for _, ids in asked], [n for n, _ in asked], decoding, 64)
    assert 0.5 * budget < most[0] <= budget, "bytes of the prefixes that were alive at once"
    assert 0.5 * budget < most[1] <= budget, "bytes that the store said it held"
    assert store.held <= budget
    assert loads[0] == 1000, "prompts of one prefix are taken together: each is read once"

    alone = {}
    for name, ids in asked:
        key = (name, *ids)
        if key not in alone:
            prefix = None if name is None else prefixes[name]
            (alone[key],) = generate_ids(model, [ids], prefix, decoding=decoding)
    assert written == [alone[(name, *ids)] for name, ids in asked]
    same = sum(alone[key] == alone.get((None, *key[1:])) for key in alone)
    assert same < len(alone) / 4, "the prefixes hardly change what is said: this shows little"
    assert contents(tmp_path) == before


# ---- what is held ----


def test_the_one_that_was_asked_for_longest_ago_goes_first(store):
    for name in "abba":  # 1 and 2 slots: both stay
        store[name]
    assert store.held == 3 * SLOT
    store["c"]  # 3 slots: of 5 there is room for a, asked for last, and c
    assert list(store._held) == ["a", "c"]
    store["a"]
    store["d"]
    assert list(store._held) == ["a", "d"]
    assert store.held == 5 * SLOT
    assert f"5 prefixes, 2 of them held: {5 * SLOT:,} of {5 * SLOT:,} bytes" in repr(store)


def test_what_is_held_is_handed_out_again_and_nobody_can_write_into_it(store):
    a = store["a"]
    assert store["a"] is a
    with pytest.raises(ValueError, match="read-only"):
        a.kv[...] = 0


def test_an_evicted_prefix_is_let_go(store):
    a = weakref.ref(store["a"])
    store["e"]  # all the room there is
    gc.collect()
    assert a() is None


def test_a_prefix_larger_than_the_budget_is_refused_with_both_numbers(store):
    store.add("f", drawn(CONFIG, 6, 6))
    sentence = "prefix 'f' has 1,536 bytes, the store may hold 1,280: give it a larger budget"
    with pytest.raises(InputError) as said:
        store["f"]
    assert str(said.value) == sentence
    answered = []
    store._answer = lambda *_: answered.append(1)
    with pytest.raises(InputError, match="prefix 'f' has 1,536 bytes"):
        store.generate_ids([[1], [2]], ["a", "f"], Decoding())
    assert not answered, "it is known before the first prompt is answered"


@pytest.mark.parametrize("budget", [0, -5])
def test_a_budget_of_nothing_is_refused(model, tmp_path, budget):
    with pytest.raises(InputError, match=f"the budget is {budget} bytes: expected at least 1"):
        PrefixStore(tmp_path, model, budget)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_sizes_are_those_of_the_numbers_held_and_prefixes_have_the_models_precision(store, dtype):
    store = PrefixStore(store.folder, random_model(CONFIG, dtype=dtype), budget=2**20)
    slot = SLOT * (2 if dtype == "float64" else 1)
    for i, name in enumerate("abcde", 1):
        assert store.size(name) == store[name].kv.nbytes == i * slot
        assert store[name].kv.dtype == dtype
    assert store.held == sum(map(store.size, store))


# ---- files that change ----


def test_a_prefix_swapped_on_disk_is_served_at_once(store, model):
    new = drawn(CONFIG, 77, 2)
    decoding, prompt = Decoding(max_new_tokens=6), [3, 4]
    old = store.generate_ids([prompt], ["b"], decoding)
    store.add("b", new, force=True)
    np.testing.assert_array_equal(store["b"].kv, new.kv)
    (swapped,) = store.generate_ids([prompt], ["b"], decoding)
    assert [swapped] == generate_ids(model, [prompt], new, decoding=decoding) != old
    new.save(store.folder / "c", model)  # another process does not tell the store
    np.testing.assert_array_equal(store["c"].kv, new.kv)
    assert store.held == 4 * SLOT


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json"])
def test_every_file_of_a_prefix_counts_as_a_change(store, name):
    before = store["c"]
    path = store.folder / "c" / name
    (store.folder / "c" / "minprefix.json").unlink()
    after = store["c"]
    assert after is not before
    os.utime(path, ns=(1, 1))
    assert store["c"] is not after


def test_a_damaged_file_is_refused_though_the_prefix_was_held(store):
    store["a"]
    path = store.folder / "a" / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match="not a whole safetensors file"):
        store["a"]
    assert "a" not in store._held


def save_cut_short(folder, decided, monkeypatch, save):
    """As a kill leaves it: before the list of a save was written, or right after."""
    write = saving.write_and_flush

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:

        def cut(path, data):
            if path.name == f".{saving.COMPLETE}.tmp":
                patch.setattr(saving, "finish_save", killed)
                if not decided:
                    killed()
            write(path, data)

        patch.setattr(saving, "write_and_flush", cut)
        patch.setattr(saving.shutil, "rmtree", lambda *_, **__: None)
        with pytest.raises(KeyboardInterrupt):
            save()
    assert (folder / saving.SAVING / saving.COMPLETE).exists() == decided


def test_a_first_save_that_a_kill_cut_short_is_no_prefix_or_the_whole_one(
    store, model, monkeypatch
):
    new, folder = drawn(CONFIG, 8, 2), store.folder / "new"
    save_cut_short(folder, False, monkeypatch, lambda: new.save(folder, model))
    with pytest.raises(InputError, match="new' holds no prefix"):
        store.generate_ids([[1]], ["new"], Decoding())
    with pytest.raises(InputError, match="there is no prefix 'new'"):
        store["new"]
    save_cut_short(folder, True, monkeypatch, lambda: new.save(folder, model))
    assert store.size("new") == 2 * SLOT
    np.testing.assert_array_equal(store["new"].kv, new.kv)
    assert not (folder / saving.SAVING).exists()


def test_a_prefix_that_is_being_replaced_all_the_time_is_always_one_or_the_other(store, model):
    one, two, done = drawn(CONFIG, 1, 2), drawn(CONFIG, 2, 4), threading.Event()
    one.save(store.folder / "x", model)

    def replace():
        for prefix in [two, one] * 40:
            prefix.save(store.folder / "x", model)
        done.set()

    writer = threading.Thread(target=replace)
    writer.start()
    seen = set()
    try:
        while not done.is_set():
            # a reader that arrives in the middle of a save waits for it
            kv = store["x"].kv
            np.testing.assert_array_equal(kv, (one if kv.shape[3] == 2 else two).kv)
            seen.add(kv.shape[3])
            assert store.size("x") in (2 * SLOT, 4 * SLOT)
    finally:
        writer.join()
    assert seen == {2, 4}


def test_a_save_that_takes_too_long_is_not_waited_for(store, monkeypatch):
    monkeypatch.setattr(saving, "PATIENCE", 0.3)
    (store.folder / "a" / saving.SAVING).mkdir()
    store["a"]  # an undecided save is in nobody's way
    (store.folder / "a" / saving.SAVING).mkdir(exist_ok=True)
    (store.folder / "a" / saving.SAVING / saving.COMPLETE).write_text("[]")
    with saving.only_writer(store.folder / "a"):
        said = []

        def read():
            try:
                store["a"]
            except InputError as error:
                said.append(str(error))

        reader = threading.Thread(target=read)
        reader.start()
        reader.join()
    assert "another process is writing into" in said[0]


# ---- names ----


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../outside", "a/../../outside", "/etc", "a/b", "a\\b", "a\0", "a\n", ".hidden",
     "-x", "é", "x" * 101],
)  # fmt: skip
def test_a_name_that_is_no_folder_of_the_store_is_refused_and_nothing_is_read_or_written(
    store, model, name
):
    drawn(CONFIG, 9).save(store.folder.parent / "outside", model)
    before = contents(store.folder.parent)
    with pytest.raises(InputError, match="there is no prefix"):
        store[name]
    with pytest.raises(InputError, match="there is no prefix"):
        store.remove(name)
    with pytest.raises(InputError, match="a prefix cannot be called"):
        store.add(name, drawn(CONFIG, 9), force=True)
    assert name not in store
    assert contents(store.folder.parent) == before


@pytest.mark.parametrize("name", ["ends in.", "ends in "])
def test_a_name_that_some_systems_would_cut_is_not_given(store, name):
    with pytest.raises(InputError, match="a prefix cannot be called"):
        store.add(name, drawn(CONFIG, 9))


def test_a_link_is_read_through_and_never_written_through(store, model):
    other = store.folder.parent / "elsewhere"
    drawn(CONFIG, 9).save(other, model)
    (store.folder / "link").symlink_to(other)
    before = contents(other)
    np.testing.assert_array_equal(store["link"].kv, drawn(CONFIG, 9).kv)
    with pytest.raises(InputError, match="link is a link to another folder"):
        store.remove("link")
    with pytest.raises(InputError, match="link is a link to another folder"):
        store.add("link", drawn(CONFIG, 1), force=True)
    (store.folder / "dangling").symlink_to(store.folder.parent / "not yet")
    with pytest.raises(InputError, match="dangling is a link to another folder"):
        store.add("dangling", drawn(CONFIG, 1))
    assert contents(other) == before


def test_an_unknown_name_is_answered_with_close_ones_or_the_first(store, model, tmp_path):
    for name in ("formal", "formula", "brief"):
        store.add(name, drawn(CONFIG, 9))
    with pytest.raises(InputError) as said:
        store["formel"]
    assert str(said.value) == "there is no prefix 'formel' in the store (of 8: 'formal', 'formula')"
    with pytest.raises(InputError) as said:
        store["zzz"]
    assert str(said.value) == "there is no prefix 'zzz' in the store (of 8: 'a', 'b', 'brief')"
    empty = PrefixStore(tmp_path / "nothing yet", model)
    assert list(empty) == []
    with pytest.raises(InputError, match=r"there is no prefix 'a' in the store \(none\)"):
        empty["a"]


def test_names_are_the_folders_that_hold_a_prefix_in_order(store):
    (store.folder / "notes").mkdir()
    (store.folder / "readme.txt").write_text("mine")
    shutil.copytree(store.folder / "a", store.folder / ".hidden")
    assert list(store) == store.names() == list("abcde")
    assert len(store) == 5
    assert "a" in store
    assert "notes" not in store
    assert 5 not in store


def test_a_dict_of_names_and_folders_is_a_store_too_but_does_not_grow(store, model, tmp_path):
    by_name = PrefixStore({"Ein Name/mit Strich": store.folder / "b", "gone": "nowhere"}, model)
    np.testing.assert_array_equal(by_name["Ein Name/mit Strich"].kv, drawn(CONFIG, 2, 2).kv)
    with pytest.raises(InputError, match="prefix folder 'nowhere' does not exist"):
        by_name["gone"]
    with pytest.raises(InputError, match="list of folders: save the prefix, name its folder"):
        by_name.add("new", drawn(CONFIG, 1))
    with pytest.raises(InputError, match="list of folders: remove the folder yourself"):
        by_name.remove("Ein Name/mit Strich")
    with pytest.raises(InputError, match=r"no prefix 'a' in the store \('Ein Name/mit Strich', "):
        by_name["a"]
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="file is a file: give a folder"):
        PrefixStore(tmp_path / "file", model)


# ---- nobody touches another ----


def test_a_prefix_of_another_base_is_refused_with_both_fingerprints(store, model):
    other = random_model(CONFIG, seed=9, dtype="float32")
    elsewhere = PrefixStore(store.folder, other)
    with pytest.raises(InputError, match="was trained on another base") as said:
        elsewhere["a"]
    assert model.fingerprint()[:12] in str(said.value)
    assert other.fingerprint()[:12] in str(said.value)
    assert not elsewhere.held


def test_the_models_fingerprint_is_computed_once(store, monkeypatch):
    store = PrefixStore(store.folder, store.model)
    store["a"]
    monkeypatch.setattr(store.model, "fingerprint", lambda: pytest.fail("computed again"))
    for name in store:
        store[name]


def test_adding_training_and_removing_a_task_touch_neither_the_base_nor_another_task(
    tmp_path, no_flush
):
    from minprefix.train import Settings, train

    random_model(CONFIG, dtype="float32").save(tmp_path / "base")
    model = GPT2.load(tmp_path / "base")
    fingerprint = model.fingerprint()
    store = PrefixStore(tmp_path / "store", model)
    store.add("first", drawn(CONFIG, 1), training={"command": "none"})
    store.add("second", Prefix.mlp(CONFIG, 2, 4, 1, layers=[1]))
    before = contents(tmp_path)

    task = store.folder / "third"
    prefix = drawn(CONFIG, 3)
    from minprefix.data.pairs import Encoded

    examples = [Encoded([5, 6, 7], 1), Encoded([8, 9], 1)]
    train(model, prefix, examples, Settings(steps=3, batch_size=2), task, progress=False)
    prefix.save(task, model)
    np.testing.assert_array_equal(store["third"].kv, prefix.kv)
    store.add("fourth", drawn(CONFIG, 4))
    store.add("fourth", drawn(CONFIG, 5), force=True)
    for name in ("third", "fourth"):
        now = contents(tmp_path)
        assert {path: now[path] for path in before} == before
        assert len(now) > len(before)
        store.remove(name)
    left = {path: sha for path, sha in contents(tmp_path).items() if "/third/" not in path}
    assert left == before
    assert not (store.folder / "fourth").exists()
    assert (task / "log.jsonl").exists(), "what is no part of a prefix stays"
    assert model.fingerprint() == fingerprint == GPT2.load(tmp_path / "base").fingerprint()
    assert list(store) == ["first", "second"]


def test_an_existing_name_is_kept_unless_forced_and_a_removed_one_is_no_longer_served(store):
    a = store["a"]
    with pytest.raises(InputError, match="there is a prefix 'a' already: choose another name"):
        store.add("a", drawn(CONFIG, 50))
    assert store["a"] is a
    store.remove("a")
    assert "a" not in store
    assert store.held == 0
    with pytest.raises(InputError, match="there is no prefix 'a'"):
        store["a"]
    store.add("a", drawn(CONFIG, 50))
    np.testing.assert_array_equal(store["a"].kv, drawn(CONFIG, 50).kv)


def test_a_prefix_that_the_model_cannot_take_is_not_added(store):
    before = contents(store.folder)
    small = Config(n_layer=2, n_head=4, n_embd=16, vocab_size=50, n_positions=64)
    with pytest.raises(InputError, match="prefix has 4 heads of size 4, model 'random' has 2"):
        store.add("odd", drawn(small, 1))
    assert contents(store.folder) == before


def test_the_record_of_a_prefix_is_kept(store):
    store.add("t", drawn(CONFIG, 1), training={"command": "mine"}, metrics={"bleu": 3})
    about = json.loads((store.folder / "t" / "minprefix.json").read_text())
    assert about["training"] == {"command": "mine"}
    assert about["metrics"] == {"bleu": 3}
    assert about["base"]["sha256"] == store.model.fingerprint()


# ---- many at once ----


def requests_of(rng, names, n):
    prompts = [rng.integers(1, 50, rng.integers(1, 9)).tolist() for _ in range(n)]
    return prompts, [names[i] for i in rng.integers(0, len(names), n)]


@pytest.mark.parametrize("batch_size", [1, 3, 32])
@pytest.mark.parametrize(
    "decoding",
    [
        Decoding(max_new_tokens=5),
        Decoding(max_new_tokens=5, temperature=1.3, top_k=20, seed=4),
        Decoding(max_new_tokens=4, beams=3),
    ],
    ids=["greedy", "sampled", "beams"],
)
def test_an_answer_depends_on_its_number_and_on_nobody_else(store, model, decoding, batch_size):
    prompts, names = requests_of(np.random.default_rng(3), [*store, None], 24)
    prefixes = {name: Prefix.load(store.folder / name) for name in store} | {None: None}
    alone = [
        generate_ids(model, [ids], prefixes[name], decoding=decoding, numbers=[number])[0]
        for number, (ids, name) in enumerate(zip(prompts, names, strict=True))
    ]
    assert store.generate_ids(prompts, names, decoding, batch_size) == alone
    assert len({tuple(ids) for ids in alone}) > 8
    assert store.held <= store.budget


def test_each_prompt_may_have_a_decoding_of_its_own(store, model):
    prompts, names = requests_of(np.random.default_rng(4), [*store, None], 12)
    each = [Decoding(max_new_tokens=1 + i % 3) for i in range(12)]
    written = store.generate_ids(prompts, names, each)
    for ids, name, decoding, new in zip(prompts, names, each, written, strict=True):
        prefix = None if name is None else store[name]
        assert [new] == generate_ids(model, [ids], prefix, decoding=decoding)


def test_a_batch_takes_no_more_prefixes_than_the_budget_and_no_more_prompts_than_it_may(
    store, monkeypatch
):
    seen = []
    answer = PrefixStore._answer

    def watched(self, prompts, *rest):
        names = {p.prefix for p in prompts} - {None}
        seen.append((len(prompts), sum(store.size(n) for n in names)))
        return answer(self, prompts, *rest)

    monkeypatch.setattr(PrefixStore, "_answer", watched)
    names = [*"abcde", None] * 4
    store.generate_ids([[1]] * 24, names, Decoding(max_new_tokens=1), batch_size=7)
    assert sum(n for n, _ in seen) == 24
    assert max(n for n, _ in seen) == 7
    assert max(size for _, size in seen) == 5 * SLOT == store.budget


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"names": ["a"]}, "1 name for 2 prompts: give one each"),
        ({"decoding": [Decoding()]}, "1 decoding for 2 prompts: give one each"),
        ({"batch_size": 0}, "batch_size is 0: expected at least 1"),
        ({"names": ["a", "nobody"]}, "there is no prefix 'nobody'"),
        ({"prompts": [[1], []]}, "is empty: give at least one token"),
    ],
)
def test_what_does_not_fit_together_is_a_sentence_before_anything_is_answered(
    store, change, sentence, monkeypatch
):
    if "prompts" not in change:
        monkeypatch.setattr(PrefixStore, "_answer", lambda *_: pytest.fail("answered"))
    call = {"prompts": [[1], [2]], "names": ["a", "b"], "decoding": Decoding()} | change
    with pytest.raises(InputError, match=sentence):
        store.generate_ids(**call)


def test_no_prompts_are_no_answers(store):
    assert store.generate_ids([], [], Decoding()) == []


def test_threads_that_share_a_store_get_what_they_asked_for_inside_the_budget(
    store, model, one_thread, hasty
):
    kvs = {name: store[name].kv for name in store}
    wrong: list[object] = []
    over: list[int] = []

    def ask(seed):
        rng = np.random.default_rng(seed)
        try:
            for _ in range(150):
                name = "abcde"[rng.integers(5)]
                if not np.array_equal(store[name].kv, kvs[name]):
                    wrong.append(name)
                if store.held > store.budget:
                    over.append(store.held)
                repr(store)
            prompts, names = requests_of(rng, [*store, None], 6)
            written = store.generate_ids(prompts, names, Decoding(max_new_tokens=2), 3)
            for ids, name, new in zip(prompts, names, written, strict=True):
                prefix = None if name is None else Prefix(kvs[name])
                if [new] != generate_ids(model, [ids], prefix, decoding=Decoding(2)):
                    wrong.append((name, ids))
        except BaseException as error:
            wrong.append(error)

    askers = [threading.Thread(target=ask, args=(seed,)) for seed in range(4)]
    for thread in askers:
        thread.start()
    for thread in askers:
        thread.join()
    assert not wrong
    assert not over


def test_threads_that_add_under_one_name_end_with_one_of_them_and_the_others_are_told(store):
    told, added = [], []

    def add(seed):
        try:
            store.add("same", drawn(CONFIG, seed))
            added.append(seed)
        except InputError as error:
            told.append(str(error))

    adders = [threading.Thread(target=add, args=(seed,)) for seed in range(4)]
    for thread in adders:
        thread.start()
    for thread in adders:
        thread.join()
    assert len(added) == 1
    assert all("there is a prefix 'same' already" in sentence for sentence in told)
    np.testing.assert_array_equal(store["same"].kv, drawn(CONFIG, added[0]).kv)
