"""The training loop: what a step computes, what a run leaves behind, and what resuming gives."""

import json
import os
import signal
import threading
from dataclasses import asdict, replace
from itertools import chain, pairwise

import numpy as np
import pytest

import minprefix.train as loop
from minprefix import Batch, InputError, Prefix, loss, loss_and_grad
from minprefix.data.pairs import Encoded
from minprefix.evaluate import mean_loss
from minprefix.optim import AdamW, learning_rate
from minprefix.prefix import dropout_mask
from minprefix.storage import writing
from minprefix.storage.run import State, load_state
from minprefix.storage.tensors import map_tensors, write_tensors
from minprefix.train import Settings, batch_gradient, train
from tests.conftest import random_model, relative_error

KINDS = pytest.mark.parametrize("kind", ["flat", "mlp"])


def encoded(n, seed=0, vocab=50):
    """n different examples, of unequal lengths and with unequal numbers of targets."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(3, 12, n)
    return [Encoded(rng.integers(0, vocab, T).tolist(), int(rng.integers(1, T))) for T in lengths]


def start(kind, config, dtype="float32", seed=1, **where):
    if kind == "mlp":
        return Prefix.mlp(config, 4, hidden=8, seed=seed, dtype=dtype, **where)
    return Prefix.normal(config, 4, std=0.5, seed=seed, dtype=dtype, **where)


@pytest.fixture
def small(config):
    """float32, as a user trains."""
    return random_model(config, dtype="float32")


def pack(examples):
    return Batch.pack([e.ids for e in examples], loss_from=[e.loss_from for e in examples])


def log_of(out):
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def without_times(lines):
    return [
        {k: v for k, v in e.items() if k not in ("seconds", "tokens_per_second")} for e in lines
    ]


def state_of(out):
    """All tensors by name as bytes, and the numbers beside them."""
    tensors, metadata = map_tensors(out / "state.safetensors", "the state")
    return (
        {name: (a.dtype, a.shape, a.tobytes()) for name, a in tensors.items()},
        json.loads(metadata["minprefix"]),
    )


def bytes_of(prefix):
    return {name: p.tobytes() for name, p in prefix.parameters.items()}


def on_call(monkeypatch, name, hook):
    """Call `hook(n, args, result)` at the n-th call (from 1) of a function that the loop uses; what
    it returns, if anything, is the result instead."""
    real, calls = getattr(loop, name), []

    def hooked(*args, **kwargs):
        calls.append(1)
        result = real(*args, **kwargs)
        other = hook(len(calls), args, result)
        return result if other is None else other

    monkeypatch.setattr(loop, name, hooked)


# ---- one batch ----


@pytest.mark.parametrize("size", [1, 2, 3, 6, 7, 50])
@pytest.mark.parametrize("dropout", [0.0, 0.4], ids=["plain", "dropout"])
@pytest.mark.parametrize("kind", ["token-mean", "sentence-sum"])
def test_micro_batches_add_up_to_the_whole_batch_in_float64(config, model, kind, dropout, size):
    chosen, prefix = encoded(7), start("flat", config, "float64")
    whole = Settings(steps=5, loss=kind, dropout=dropout)
    value, dkv = batch_gradient(model, prefix, chosen, whole, step=3)
    parts = replace(whole, micro_batch_size=size)
    got, dkv_parts = batch_gradient(model, prefix, chosen, parts, step=3)
    assert got == pytest.approx(value, rel=1e-12)
    assert relative_error(dkv_parts, dkv) < 1e-12


def test_micro_batches_of_unequal_lengths_are_not_a_mean_of_means(config, model):
    chosen, prefix = encoded(7), start("flat", config, "float64")
    settings = Settings(steps=5, micro_batch_size=2)
    value, dkv = batch_gradient(model, prefix, chosen, settings, step=0)
    means = [loss_and_grad(model, prefix, pack(chosen[i : i + 2])) for i in range(0, 7, 2)]
    assert relative_error(np.mean([d for _, d in means], axis=0), dkv) > 1e-2
    assert abs(np.mean([v for v, _ in means]) - value) > 1e-2


@KINDS
def test_token_mean_is_the_mean_over_the_batchs_tokens(config, model, kind):
    chosen, prefix = encoded(5), start(kind, config, "float64")
    value, dkv = batch_gradient(model, prefix, chosen, Settings(steps=1, loss="token-mean"), 0)
    want, dwant = loss_and_grad(model, prefix.fold(), pack(chosen), "mean", "reference")
    assert value == pytest.approx(want, rel=1e-12)
    assert relative_error(dkv, dwant) < 1e-12


def test_sentence_sum_is_the_sum_of_each_sentence_averaged_over_sentences(config, model):
    chosen, prefix = encoded(5), start("flat", config, "float64")
    value, dkv = batch_gradient(model, prefix, chosen, Settings(steps=1, loss="sentence-sum"), 0)
    each = [loss_and_grad(model, prefix, pack([e]), "sum", "reference") for e in chosen]
    assert value == pytest.approx(np.mean([v for v, _ in each]), rel=1e-12)
    assert relative_error(dkv, np.mean([d for _, d in each], axis=0)) < 1e-12


# ---- dropout ----


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_a_dropout_mask_is_0_at_its_rate_and_has_mean_1(rate):
    mask = dropout_mask((400, 500), rate, np.random.default_rng(0))
    assert set(np.unique(mask)) == {0.0, 1 / (1 - rate)}
    assert (mask == 0).mean() == pytest.approx(rate, abs=5e-3)
    assert mask.mean() == pytest.approx(1, abs=0.03)


def masks_of_a_step(monkeypatch, model, prefix, settings, step):
    """What each micro-batch of a step saw, divided by kv."""
    seen = []
    with monkeypatch.context() as patch:
        on_call(patch, "loss_and_grad", lambda n, args, result: seen.append(args[1][0].kv.copy()))
        batch_gradient(model, prefix, encoded(6), settings, step)
    return [kv / prefix.kv for kv in seen]


@KINDS
def test_dropout_draws_one_mask_a_step_for_all_micro_batches(config, model, monkeypatch, kind):
    prefix = start(kind, config, "float64")
    settings = Settings(steps=9, dropout=0.25, micro_batch_size=2)
    first = masks_of_a_step(monkeypatch, model, prefix, settings, 4)
    assert len(first) == 3
    assert np.array_equal(first[0], first[1])
    assert np.array_equal(first[0], first[2])
    share = (first[0] == 0).mean()
    assert share == pytest.approx(0.25, abs=0.08)
    assert np.allclose(first[0][first[0] != 0], 4 / 3)
    assert np.array_equal(masks_of_a_step(monkeypatch, model, prefix, settings, 4)[0], first[0])
    for other, step in ((settings, 5), (replace(settings, seed=1), 4)):
        again = masks_of_a_step(monkeypatch, model, prefix, other, step)
        assert not np.array_equal(again[0], first[0])


@pytest.mark.parametrize("loss_kind", ["token-mean", "sentence-sum"])
@pytest.mark.parametrize("dropout", [0.0, 0.3], ids=["plain", "dropout"])
@KINDS
def test_finite_differences_confirm_the_gradient_of_every_parameter(
    config, model, kind, dropout, loss_kind
):
    chosen, prefix = encoded(4), start(kind, config, "float64")
    settings = Settings(steps=5, dropout=dropout, loss=loss_kind, micro_batch_size=3)

    def value():
        return batch_gradient(model, prefix, chosen, settings, step=2)[0]

    grads = prefix.backward(batch_gradient(model, prefix, chosen, settings, step=2)[1])
    assert set(grads) == set(prefix.parameters)
    rng = np.random.default_rng(0)
    for name, p in prefix.parameters.items():
        assert grads[name].any(), name
        d, kept, ends = rng.normal(size=p.shape), p.copy(), []
        for eps in (1e-5, -1e-5):
            p[...] = kept + eps * d
            ends.append(value())
        p[...] = kept
        slope = (ends[0] - ends[1]) / 2e-5
        assert slope == pytest.approx((d * grads[name]).sum(), rel=1e-6, abs=1e-9), name


def test_validation_has_no_dropout(config, small, tmp_path):
    prefix, valid = start("flat", config), encoded(5, seed=9)
    settings = Settings(steps=3, dropout=0.5, eval_every=1)
    train(small, prefix, encoded(8), settings, tmp_path, valid, progress=False)
    state, _ = map_tensors(tmp_path / "state.safetensors", "the state")
    last = Prefix(np.array(state["parameter.kv"]))
    assert log_of(tmp_path)[-1]["valid_loss"] == mean_loss(small, last, valid)


# ---- a run ----


@KINDS
def test_the_loss_falls_and_every_parameter_moves(config, small, tmp_path, kind):
    prefix, examples = start(kind, config), encoded(6)
    before = {name: p.copy() for name, p in prefix.parameters.items()}
    settings = Settings(steps=60, batch_size=6, lr=3e-2)
    result = train(small, prefix, examples, settings, tmp_path, progress=False)
    assert (result.step, result.interrupted, result.base_unchanged) == (60, False, True)
    losses = [e["loss"] for e in log_of(tmp_path)]
    assert losses[-1] < 0.7 * losses[0]
    assert mean_loss(small, prefix, examples) < losses[-1] * 1.05  # it is trained in place
    for name, p in prefix.parameters.items():
        assert p.dtype == np.float32
        assert (p != before[name]).mean() > 0.9, name


def test_a_run_equals_adamw_over_the_batches_gradients_by_hand(config, small, tmp_path):
    examples = encoded(4)
    settings = Settings(
        steps=5, batch_size=4, lr=1e-2, warmup=2, schedule="cosine", weight_decay=0.1, clip=0.05
    )
    prefix, by_hand = start("flat", config), start("flat", config).kv.astype("float64")
    train(small, prefix, examples, settings, tmp_path, progress=False)
    exact = random_model(config, dtype="float64")
    exact.weights = {name: a.astype("float64") for name, a in small.weights.items()}
    m = v = 0.0
    for t in range(1, 6):
        _, g = loss_and_grad(exact, Prefix(by_hand), pack(examples), "mean")
        norm = np.linalg.norm(g)
        assert log_of(tmp_path)[t - 1]["grad_norm"] == pytest.approx(norm, rel=1e-4)
        g *= min(1, 0.05 / norm)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        lr = learning_rate(t - 1, 5, 1e-2, 2, "cosine")
        adam = m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        by_hand = by_hand - lr * (adam + 0.1 * by_hand)
    moved = relative_error(start("flat", config).kv, by_hand)
    assert relative_error(prefix.kv, by_hand) < 1e-4 < 1e-2 < moved


def test_each_epoch_is_a_permutation_and_no_two_are_the_same(config, small, tmp_path, monkeypatch):
    examples, seen = encoded(10), []

    def remember(n, args, result):
        ids, offsets = args[2].tokens, args[2].offsets
        seen.append([ids[a:b].tolist() for a, b in pairwise(offsets)])

    on_call(monkeypatch, "loss_and_grad", remember)
    train(
        small,
        start("flat", config),
        examples,
        Settings(steps=9, batch_size=4),
        tmp_path,
        progress=False,
    )
    assert [len(batch) for batch in seen] == [4, 4, 2] * 3  # the rest is a batch, too
    epochs = [list(chain(*seen[i : i + 3])) for i in (0, 3, 6)]
    for epoch in epochs:
        assert sorted(epoch) == sorted(e.ids for e in examples)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


def test_a_batch_larger_than_the_data_is_all_of_the_data(config, small, tmp_path):
    settings = Settings(steps=2, batch_size=64)
    train(small, start("flat", config), encoded(3), settings, tmp_path, progress=False)
    tokens = sum(len(e.ids) for e in encoded(3))
    assert [e["tokens"] for e in log_of(tmp_path)] == [tokens, tokens]


@KINDS
def test_one_seed_gives_the_same_bytes_twice_and_another_seed_does_not(
    config, small, tmp_path, kind
):
    runs = []
    for i, seed in enumerate((7, 7, 8)):
        prefix = start(kind, config)
        settings = Settings(steps=8, batch_size=3, dropout=0.2, seed=seed)
        train(small, prefix, encoded(10), settings, tmp_path / str(i), progress=False)
        prefix.save(tmp_path / str(i), small)
        folder = tmp_path / str(i)
        file = (folder / "adapter_model.safetensors").read_bytes()
        runs.append((file, state_of(folder)[0], without_times(log_of(folder))))
    assert runs[0] == runs[1]
    for a, b in zip(runs[0], runs[2], strict=True):
        assert a != b


def test_the_log_has_a_line_a_step_with_these_fields(config, small, tmp_path):
    examples = encoded(10)
    settings = Settings(steps=7, batch_size=5, lr=2e-3, warmup=3, schedule="cosine", eval_every=3)
    valid = encoded(4, seed=5)
    train(small, start("flat", config), examples, settings, tmp_path, valid, progress=False)
    lines = log_of(tmp_path)
    always = {"step", "loss", "lr", "grad_norm", "tokens", "seconds", "tokens_per_second"}
    by_layer = {f"{a}_{b}" for a in ("grad_norm", "distance") for b in ("keys", "values")}
    for i, line in enumerate(lines):
        due = i + 1 in (3, 6, 7)  # every 3 steps and the last
        wanted = always | ({"valid_loss"} if due else set())
        assert set(line) == wanted | (by_layer | {"layers"} if i + 1 in (1, 7) else set())
        assert line["lr"] == learning_rate(i, 7, 2e-3, 3, "cosine")
        assert all(np.isfinite(value).all() for value in line.values())
    assert [line["step"] for line in lines] == list(range(1, 8))
    total = sum(len(e.ids) for e in examples)
    assert [a["tokens"] + b["tokens"] for a, b in zip(lines[::2], lines[1::2], strict=False)] == [
        total
    ] * 3


def test_the_logged_loss_and_norm_are_those_before_the_step_and_before_clipping(
    config, small, tmp_path
):
    examples = encoded(5)
    settings = Settings(steps=1, batch_size=5, clip=1e-6)
    train(small, start("flat", config), examples, settings, tmp_path, progress=False)
    value, dkv = loss_and_grad(small, start("flat", config), pack(examples))
    line = log_of(tmp_path)[0]
    assert line["loss"] == pytest.approx(value, rel=1e-5)
    assert line["grad_norm"] == pytest.approx(float(np.linalg.norm(dkv)), rel=1e-4)


# ---- what the log says of each layer ----


def by_layer(line, name):
    """(layers, 2)"""
    return np.transpose([line[f"{name}_keys"], line[f"{name}_values"]])


@KINDS
def test_the_log_has_the_gradient_and_the_distance_of_every_layer(config, small, tmp_path, kind):
    examples, prefix = encoded(5), start(kind, config)
    before, settings = prefix.kv.copy(), Settings(steps=12, batch_size=5, clip=1e-6)
    _, dkv = loss_and_grad(small, prefix.fold(), pack(examples))
    train(small, prefix, examples, settings, tmp_path, progress=False)
    lines = {line["step"]: line for line in log_of(tmp_path) if "layers" in line}
    assert list(lines) == [1, 10, 12]
    assert lines[1]["layers"] == [0, 1, 2]
    each = [[np.linalg.norm(dkv[j, i]) for i in range(2)] for j in range(3)]
    np.testing.assert_allclose(by_layer(lines[1], "grad_norm"), each, rtol=1e-4)
    if kind == "flat":
        total = np.linalg.norm(by_layer(lines[10], "grad_norm"))
        assert total == pytest.approx(lines[10]["grad_norm"], rel=1e-4)
    moved = prefix.kv - before
    each = [[np.linalg.norm(moved[j, i]) for i in range(2)] for j in range(3)]
    np.testing.assert_allclose(by_layer(lines[12], "distance"), each, rtol=1e-4)
    assert np.min(each) > 0


def test_the_log_names_the_layers_that_have_a_prefix(config, small, tmp_path):
    prefix = start("flat", config, layers=[0, 2])
    train(small, prefix, encoded(5), Settings(steps=1), tmp_path, progress=False)
    (line,) = log_of(tmp_path)
    assert line["layers"] == [0, 2]
    assert by_layer(line, "distance").shape == (2, 2)


def test_a_distance_that_is_no_number_is_not_logged(config, small, tmp_path):
    settings = Settings(steps=20, lr=1e39, schedule="constant")  # above what float32 holds
    with pytest.raises(InputError, match="stopped"):
        train(small, start("flat", config), encoded(9), settings, tmp_path, progress=False)
    (line,) = log_of(tmp_path)
    assert "grad_norm_keys" in line
    assert "distance_keys" not in line


@pytest.mark.parametrize(("steps", "lines"), [(1, 1), (5, 2), (95, 11), (1000, 101), (4321, 102)])
def test_about_a_hundred_lines_of_a_run_are_long(steps, lines):
    settings = Settings(steps=steps)
    assert sum(loop._sees_layers(i, settings) for i in range(1, steps + 1)) == lines


def test_a_state_of_an_earlier_version_goes_on_without_distances(halfway, tmp_path):
    path = tmp_path / "state.safetensors"
    tensors, metadata = map_tensors(path, "the state")
    write_tensors(path, {n: a.copy() for n, a in tensors.items() if n != "start.kv"}, metadata)
    assert halfway().step == 12
    last = log_of(tmp_path)[-1]
    assert "grad_norm_keys" in last
    assert "distance_keys" not in last
    assert "start.kv" not in state_of(tmp_path)[0]


def test_a_start_of_another_shape_is_a_sentence(halfway, tmp_path):
    path = tmp_path / "state.safetensors"
    tensors, metadata = map_tensors(path, "the state")
    write_tensors(path, {n: a.copy() for n, a in tensors.items()} | {"start.kv": np.ones(3)},
                  metadata)  # fmt: skip
    with pytest.raises(InputError, match=r"'start.kv' .* do not fit the prefix: damaged"):
        halfway()


def test_a_run_leaves_these_files_and_no_others(config, small, tmp_path):
    train(small, start("flat", config), encoded(5), Settings(steps=2), tmp_path, progress=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.jsonl", "state.safetensors"]


def test_no_examples_is_a_sentence(config, small, tmp_path):
    with pytest.raises(InputError, match="no examples"):
        train(small, start("flat", config), [], Settings(steps=2), tmp_path, progress=False)


# ---- validation ----


def test_the_prefix_ends_as_the_best_so_far_and_the_state_as_the_last(
    config, small, tmp_path, monkeypatch
):
    seen, script = [], [3.0, 1.0, 2.0, 1.0]
    real = loop.mean_loss

    def scripted(model, prefix, valid, backend, size, bar):
        assert np.isfinite(real(model, prefix, valid, backend, size))
        seen.append(prefix.kv.copy())
        return script[len(seen) - 1]

    monkeypatch.setattr(loop, "mean_loss", scripted)
    prefix, settings = start("mlp", config), Settings(steps=8, eval_every=2)
    result = train(small, prefix, encoded(8), settings, tmp_path, encoded(3), progress=False)
    assert (result.best_loss, result.best_step) == (1.0, 4)  # the first of two that are equal
    assert np.array_equal(prefix.kv, seen[1])
    assert not np.array_equal(seen[1], seen[3])
    last = start("mlp", config)
    record = state_of(tmp_path)[1]["run"]
    state = State(last.parameters, AdamW(), start={"kv": last.kv.copy()})
    load_state(tmp_path, state, record)
    assert np.array_equal(last.kv, seen[3])
    assert (state.step, state.best_loss, state.best_step) == (8, 1.0, 4)


def test_the_prefix_that_is_kept_has_the_lowest_validation_loss_of_the_log(config, small, tmp_path):
    prefix, valid = start("flat", config), encoded(6, seed=3)
    settings = Settings(steps=30, lr=5e-2, eval_every=1, schedule="constant")
    result = train(small, prefix, encoded(6), settings, tmp_path, valid, progress=False)
    losses = [e["valid_loss"] for e in log_of(tmp_path)]
    assert result.best_loss == min(losses) < losses[-1]
    assert losses[result.best_step - 1] == result.best_loss
    assert mean_loss(small, prefix, valid) == result.best_loss


def test_without_validation_the_prefix_ends_as_the_last(config, small, tmp_path):
    prefix = start("flat", config)
    result = train(small, prefix, encoded(8), Settings(steps=5), tmp_path, progress=False)
    assert (result.best_loss, result.best_step) == (None, None)
    tensors, _ = map_tensors(tmp_path / "state.safetensors", "the state")
    assert np.array_equal(tensors["parameter.kv"], prefix.kv)
    assert not any(name.startswith("best") for name in tensors)


# ---- resuming ----


class Killed(BaseException):
    """What stands for a kill: nothing may catch it."""


PLAIN = Settings(steps=12, batch_size=4, lr=2e-2, save_every=5)
EVERYTHING = replace(
    PLAIN,
    dropout=0.2,
    warmup=4,
    schedule="cosine",
    weight_decay=0.01,
    eval_every=3,
    micro_batch_size=3,
    loss="sentence-sum",
)


def interrupted_at(calls, how):
    def hook(n, args, result):
        if n in calls:
            if how == "kill":
                raise Killed
            os.kill(os.getpid(), signal.SIGINT)

    return hook


@pytest.mark.parametrize("how", ["ctrl-c", "kill"])
@pytest.mark.parametrize("settings", [PLAIN, EVERYTHING], ids=["plain", "everything"])
@KINDS
def test_resuming_gives_the_bytes_of_an_uninterrupted_run(
    config, small, tmp_path, monkeypatch, kind, settings, how
):
    valid = encoded(4, seed=5) if settings is EVERYTHING else None

    def run(out, resume=False):
        prefix = start(kind, config, seed=1 + resume)  # a resumed run must not use this start
        try:
            args = (small, prefix, encoded(9), settings, tmp_path / out, valid, {"a": 1}, resume)
            return train(*args, progress=False), prefix
        except Killed:
            return None, prefix

    result, prefix = run("whole")
    assert result.step == 12
    calls = {1, 6, 9, 17, 19}
    on_call(monkeypatch, "loss_and_grad", interrupted_at(calls, how))
    lives = [run("parts")]
    while lives[-1][0] is None or lives[-1][0].interrupted:
        lives.append(run("parts", resume=True))
    assert len(lives) > 3
    again, resumed = lives[-1]
    assert bytes_of(resumed) == bytes_of(prefix)
    assert state_of(tmp_path / "parts") == state_of(tmp_path / "whole")
    logs = [without_times(log_of(tmp_path / name)) for name in ("parts", "whole")]
    assert logs[0] == logs[1]
    assert (again.step, again.best_loss, again.best_step) == (
        12,
        result.best_loss,
        result.best_step,
    )
    assert sorted(p.name for p in (tmp_path / "parts").iterdir()) == sorted(
        p.name for p in (tmp_path / "whole").iterdir()
    )


def ctrl_c(times=1):
    for _ in range(times):
        os.kill(os.getpid(), signal.SIGINT)


def test_ctrl_c_ends_a_step_at_once_and_the_ones_before_it_are_saved(
    config, small, tmp_path, monkeypatch
):
    on_call(monkeypatch, "loss_and_grad", interrupted_at({4}, "ctrl-c"))
    handler = signal.getsignal(signal.SIGINT)
    prefix, settings = start("flat", config), Settings(steps=50, save_every=50)
    result = train(small, prefix, encoded(8), settings, tmp_path, progress=False)
    assert (result.step, result.interrupted, result.base_unchanged) == (3, True, None)
    assert [e["step"] for e in log_of(tmp_path)] == [1, 2, 3]
    assert state_of(tmp_path)[1]["state"]["step"] == 3
    assert state_of(tmp_path)[0]["parameter.kv"][2] == prefix.kv.tobytes()
    assert signal.getsignal(signal.SIGINT) is handler


def test_ctrl_c_waits_for_what_changes_the_parameters(config, small, tmp_path, monkeypatch):
    on_call(monkeypatch, "_update", interrupted_at({3}, "ctrl-c"))
    settings = Settings(steps=5, save_every=50)
    result = train(small, start("flat", config), encoded(8), settings, tmp_path, progress=False)
    assert (result.step, result.interrupted) == (3, True)
    assert [e["step"] for e in log_of(tmp_path)] == [1, 2, 3]


def test_ctrl_c_in_the_last_update_is_a_run_that_finished(config, small, tmp_path, monkeypatch):
    on_call(monkeypatch, "_update", interrupted_at({3}, "ctrl-c"))
    settings = Settings(steps=3)
    result = train(small, start("flat", config), encoded(8), settings, tmp_path, progress=False)
    assert (result.step, result.interrupted) == (3, False)


@KINDS
@pytest.mark.parametrize("step", [3, 12], ids=["between", "at the end"])
def test_ctrl_c_ends_a_validation_at_once_and_resuming_gives_the_same_bytes(
    config, small, tmp_path, monkeypatch, kind, step
):
    def run(out, resume=False):
        prefix = start(kind, config, seed=1 + resume)
        args = (small, prefix, encoded(9), EVERYTHING, tmp_path / out, encoded(40, seed=5), {})
        return train(*args, resume, progress=False), bytes_of(prefix)

    _, whole = run("whole")
    validations = step // EVERYTHING.eval_every
    in_it = []  # loss is called for each batch of a validation, of which there are several
    monkeypatch.setattr("minprefix.evaluate.loss", lambda *args, real=loss: (
        in_it.append(1), len(in_it) == 14 * validations - 7 and ctrl_c(), real(*args))[2]
    )  # fmt: skip
    result, _ = run("parts")
    assert (result.step, result.interrupted) == (step - 1, True)
    assert len(in_it) == 14 * validations - 7  # of 14 batches the others are not waited for
    assert len(log_of(tmp_path / "parts")) == step - 1
    assert state_of(tmp_path / "parts")[1]["state"]["best_step"] != step
    again, resumed = run("parts", resume=True)
    assert (again.step, resumed) == (12, whole)
    assert state_of(tmp_path / "parts") == state_of(tmp_path / "whole")
    logs = [without_times(log_of(tmp_path / name)) for name in ("parts", "whole")]
    assert logs[0] == logs[1]


@pytest.mark.parametrize(("times", "saved"), [(2, 4), (3, 2)])
def test_the_second_ctrl_c_lets_the_save_finish_and_the_third_leaves_the_last_one_whole(
    config, small, tmp_path, monkeypatch, times, saved
):
    settings, whole = Settings(steps=8, save_every=2), start("flat", config)
    train(small, whole, encoded(8), settings, tmp_path / "whole", progress=False)
    on_call(monkeypatch, "loss_and_grad", interrupted_at({5}, "ctrl-c"))
    real, handler = writing.write_and_flush, signal.getsignal(signal.SIGINT)

    def slow_disk(path, data):
        if rb"\"step\": 4" in data:  # what stands when the first one came in step 5
            ctrl_c(times - 1)
        real(path, data)

    monkeypatch.setattr(writing, "write_and_flush", slow_disk)
    parts = (small, start("flat", config), encoded(8), settings, tmp_path / "parts")
    if times == 2:
        assert train(*parts, progress=False).interrupted
    else:
        with pytest.raises(KeyboardInterrupt):
            train(*parts, progress=False)
    assert signal.getsignal(signal.SIGINT) is handler
    monkeypatch.undo()
    assert state_of(tmp_path / "parts")[1]["state"]["step"] == saved
    prefix = start("flat", config, seed=2)
    train(small, prefix, encoded(8), settings, tmp_path / "parts", resume=True, progress=False)
    assert bytes_of(prefix) == bytes_of(whole)


def test_a_third_ctrl_c_in_an_update_does_not_save_half_of_it(config, small, tmp_path, monkeypatch):
    settings, whole = Settings(steps=8, save_every=2), start("flat", config)
    train(small, whole, encoded(8), settings, tmp_path / "whole", progress=False)
    parts = (small, start("flat", config), encoded(8), settings, tmp_path / "parts")
    with monkeypatch.context() as patch:
        real = AdamW.step

        def half(adam, parameters, *args):
            if adam.t == 4:
                parameters["kv"][0] = 7.0
                ctrl_c(3)
            real(adam, parameters, *args)

        patch.setattr(AdamW, "step", half)
        with pytest.raises(KeyboardInterrupt):
            train(*parts, progress=False)
    assert state_of(tmp_path / "parts")[1]["state"]["step"] == 4
    prefix = start("flat", config, seed=2)
    train(small, prefix, encoded(8), settings, tmp_path / "parts", resume=True, progress=False)
    assert bytes_of(prefix) == bytes_of(whole)


def test_what_a_long_run_takes_is_said_after_its_first_steps():
    class Bar:
        disable, said = False, []

        def write(self, text, file):
            self.said.append(text)

    loop._say_how_long(Bar(), [9.0, 3.0, 4.0, 3.4], 21_031)
    assert "21031 steps of 3.4 s take about 19 h 52 min, validations not counted" in Bar.said[0]
    loop._say_how_long(Bar(), [9.0, 0.3, 0.3, 0.3], 1000)
    assert len(Bar.said) == 1


@pytest.mark.parametrize(("length", "layers"), [(0, None), (4, [])])
@KINDS
def test_a_prefix_without_numbers_is_refused(config, small, tmp_path, kind, length, layers):
    make = {"flat": Prefix.normal, "mlp": Prefix.mlp}[kind]
    prefix = make(config, length, layers=layers)
    slots = rf"the prefix has {length} slots in {0 if layers == [] else 3} layers: there is nothing"
    with pytest.raises(InputError, match=slots):
        train(small, prefix, encoded(5), PLAIN, tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_training_works_outside_the_main_thread(config, small, tmp_path):
    results = []

    def work():
        prefix = start("flat", config)
        results.append(
            train(small, prefix, encoded(8), Settings(steps=2), tmp_path, progress=False)
        )

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert results[0].step == 2


def test_resuming_a_finished_run_changes_nothing(config, small, tmp_path):
    settings, valid = replace(EVERYTHING, lr=0.1, eval_every=1), encoded(4, seed=5)

    def run(resume):
        prefix = start("mlp", config, seed=1 + resume)
        args = (small, prefix, encoded(9), settings, tmp_path, valid, None, resume)
        result = train(*args, progress=False)
        assert (result.step, result.interrupted) == (12, False)
        return bytes_of(prefix), result.best_step, state_of(tmp_path), log_of(tmp_path)

    assert run(False) == run(True)


def test_a_half_written_last_line_of_the_log_is_written_again(config, small, tmp_path, monkeypatch):
    def run(out, resume=False):
        args = (small, start("flat", config), encoded(9), PLAIN, tmp_path / out)
        train(*args, resume=resume, progress=False)

    run("whole")
    on_call(monkeypatch, "loss_and_grad", interrupted_at({8}, "kill"))
    with pytest.raises(Killed):
        run("parts")
    log = tmp_path / "parts" / "log.jsonl"
    assert len(log_of(tmp_path / "parts")) == 7  # 5 of them are in the state
    log.write_bytes(log.read_bytes()[:-20])
    run("parts", resume=True)
    assert without_times(log_of(tmp_path / "parts")) == without_times(log_of(tmp_path / "whole"))


# ---- resuming what is another run ----


@pytest.fixture
def halfway(config, small, tmp_path, monkeypatch):
    """A run that stopped after step 2 of 12; -> a call that resumes it."""
    on_call(monkeypatch, "loss_and_grad", interrupted_at({2}, "ctrl-c"))

    def run(
        model=small, prefix=None, examples=None, settings=PLAIN, about=None, resume=True, valid=None
    ):
        return train(
            model,
            prefix or start("flat", config),
            examples or encoded(9),
            settings,
            tmp_path,
            valid=valid,
            about=about or {"data_sha256": "aaa"},
            resume=resume,
            progress=False,
        )

    assert run(resume=False).interrupted
    return run


OTHER = {
    "steps": 13,
    "batch_size": 5,
    "micro_batch_size": 2,
    "lr": 1e-3,
    "warmup": 3,
    "schedule": "constant",
    "weight_decay": 0.5,
    "clip": None,
    "dropout": 0.1,
    "loss": "sentence-sum",
    "eval_every": 7,
    "save_every": 7,
    "seed": 3,
    "backend": "reference",
}


def test_the_other_settings_below_cover_every_setting():
    assert set(OTHER) == set(asdict(PLAIN)) - {"matmul"}  # a GPU's: test_cupy.py
    assert all(getattr(PLAIN, name) != other for name, other in OTHER.items())


@pytest.mark.parametrize("name", OTHER)
def test_resuming_with_another_setting_is_refused_by_its_name(halfway, tmp_path, name):
    before = state_of(tmp_path), log_of(tmp_path)
    was, now = getattr(PLAIN, name), OTHER[name]
    with pytest.raises(
        InputError, match=rf"cannot resume .*: {name} was {was!r} and is now {now!r}"
    ):
        halfway(settings=replace(PLAIN, **{name: now}))
    assert (state_of(tmp_path), log_of(tmp_path)) == before
    assert halfway().step == 12


def test_resuming_with_other_recorded_facts_is_refused_by_their_name(halfway):
    with pytest.raises(InputError, match="data_sha256 was 'aaa' and is now 'bbb'"):
        halfway(about={"data_sha256": "bbb"})
    with pytest.raises(InputError, match="template was None and is now 'x'"):
        halfway(about={"data_sha256": "aaa", "template": "x"})


def test_resuming_on_other_examples_is_refused(halfway):
    with pytest.raises(InputError, match=r"cannot resume .*examples"):
        halfway(examples=encoded(9, seed=1))


def test_resuming_on_another_base_is_refused(halfway, config):
    with pytest.raises(InputError, match=r"base_sha256 was '\w{64}' and is now '\w{64}'"):
        halfway(model=random_model(config, seed=1, dtype="float32"))


@pytest.mark.parametrize(
    "other",
    [
        lambda config: Prefix.normal(config, 5),
        lambda config: Prefix.normal(config, 1),
        lambda config: Prefix.normal(config, 4, layers=[0, 1]),
        lambda config: Prefix.normal(config, 4, position_offset=0),
        lambda config: Prefix.normal(config, 4, dtype="float64"),
        lambda config: Prefix.mlp(config, 4, 8),
    ],
    ids=["longer", "shorter", "fewer layers", "other positions", "other precision", "mlp"],
)
def test_resuming_another_prefix_is_refused(halfway, config, other):
    with pytest.raises(InputError, match=r"cannot resume .*prefix"):
        halfway(prefix=other(config))


def test_a_state_of_one_slot_is_not_spread_over_a_longer_prefix(config, small, tmp_path):
    train(small, Prefix.normal(config, 1), encoded(5), Settings(steps=2), tmp_path, progress=False)
    longer = Prefix.normal(config, 3, position_offset=1)
    with pytest.raises(InputError, match=r"cannot resume .*prefix"):
        train(small, longer, encoded(5), Settings(steps=2), tmp_path, resume=True, progress=False)


def test_resuming_where_there_is_nothing_is_a_sentence(config, small, tmp_path):
    args = (small, start("flat", config), encoded(5), PLAIN, tmp_path / "nothing")
    with pytest.raises(InputError, match=r"nothing holds no run to resume .*leave out --resume"):
        train(*args, resume=True, progress=False)
    assert not (tmp_path / "nothing").exists()


@pytest.mark.parametrize("kept", [0, 7, 0.5, -1])
def test_a_damaged_state_is_a_sentence(halfway, tmp_path, kept):
    path = tmp_path / "state.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data)) if isinstance(kept, float) else kept])
    with pytest.raises(InputError, match=r"state.safetensors is not a whole safetensors file"):
        halfway()


def test_a_file_that_is_no_state_is_a_sentence(halfway, config, small, tmp_path):
    start("flat", config).save(tmp_path / "prefix", small)
    (tmp_path / "prefix" / "adapter_model.safetensors").replace(tmp_path / "state.safetensors")
    with pytest.raises(InputError, match=r"state.safetensors is not the state of a run"):
        halfway()


# ---- a loss that explodes ----


@pytest.mark.parametrize("what", ["loss", "gradient norm"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_stops_at_its_step_and_the_last_good_state_resumes_to_the_same_bytes(
    config, small, tmp_path, monkeypatch, what, value
):
    settings = replace(PLAIN, save_every=3)

    def run(out, resume=False):
        prefix = start("flat", config, seed=1 + resume)
        train(small, prefix, encoded(9), settings, tmp_path / out, resume=resume, progress=False)
        return bytes_of(prefix)

    def explode(n, args, result):
        if n == 8:
            bad = np.full_like(result[1], value)
            return (value, result[1]) if what == "loss" else (result[0], bad)
        return None

    whole = run("whole")
    on_call(monkeypatch, "loss_and_grad", explode)
    sentence = rf"the {what} became {value} at step 8: stopped, .*state.safetensors .*last good"
    with pytest.raises(InputError, match=sentence):
        run("parts")
    assert [e["step"] for e in log_of(tmp_path / "parts")] == list(range(1, 8))
    assert run("parts", resume=True) == whole


@pytest.mark.parametrize("save_every", [1, 2, 50])
@pytest.mark.parametrize("evaluated", [False, True], ids=["alone", "with validation"])
def test_an_enormous_lr_stops_the_run_and_leaves_a_state_whose_loss_is_finite(
    config, small, tmp_path, save_every, evaluated
):
    settings = Settings(steps=20, lr=1e38, schedule="constant", save_every=save_every, eval_every=1)
    valid = encoded(3, seed=4) if evaluated else None
    with pytest.raises(InputError, match=r"became (nan|inf) at step \d+: stopped"):
        train(small, start("flat", config), encoded(9), settings, tmp_path, valid, progress=False)
    tensors, _ = map_tensors(tmp_path / "state.safetensors", "the state")
    kept = Prefix(np.array(tensors["parameter.kv"]))
    with np.errstate(all="ignore"):
        assert np.isfinite(loss(small, pack(encoded(9)), kept))
    for line in (tmp_path / "log.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)  # NaN is no JSON


def test_a_validation_loss_that_is_nan_stops_the_run(config, small, tmp_path, monkeypatch):
    on_call(monkeypatch, "mean_loss", lambda n, args, result: np.nan if n == 2 else None)
    settings = Settings(steps=20, eval_every=3)
    args = (small, start("flat", config), encoded(9), settings, tmp_path, encoded(3))
    with pytest.raises(InputError, match=r"validation loss became nan at step 6: stopped"):
        train(*args, progress=False)


# ---- the base model ----


def test_the_base_model_stays_the_same_bytes(config, small, tmp_path):
    before = {name: a.tobytes() for name, a in small.weights.items()}
    prefix, valid = start("mlp", config), encoded(4, seed=5)
    result = train(small, prefix, encoded(9), EVERYTHING, tmp_path, valid, progress=False)
    assert result.base_unchanged
    assert {name: a.tobytes() for name, a in small.weights.items()} == before


@pytest.mark.parametrize("name", ["wte.weight", "h.2.mlp.c_proj.bias", "ln_f.weight"])
@pytest.mark.parametrize("when", ["loss_and_grad", "mean_loss"])
def test_one_bit_that_changes_in_a_weight_is_noticed(
    config, small, tmp_path, monkeypatch, name, when
):
    def write(n, args, result):
        if n == 2:
            small.weights[name].reshape(-1).view(np.uint8)[-4] ^= 1

    on_call(monkeypatch, when, write)
    prefix, settings = start("flat", config), Settings(steps=5, eval_every=2)
    result = train(small, prefix, encoded(9), settings, tmp_path, encoded(3), progress=False)
    assert not result.base_unchanged


# ---- settings ----


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("steps", 0, "a whole number from 1"),
        ("steps", -3, "a whole number from 1"),
        ("steps", 2.5, "a whole number from 1"),
        ("batch_size", 0, "a whole number from 1"),
        ("micro_batch_size", 0, "at least 1"),
        ("lr", 0.0, "a positive number"),
        ("lr", -1e-3, "a positive number"),
        ("lr", float("inf"), "a positive number"),
        ("lr", float("nan"), "a positive number"),
        ("warmup", -1, "0 or more, fewer than the 10 of the run"),
        ("warmup", 10, "0 or more, fewer than the 10 of the run"),
        ("schedule", "square", "one of linear, cosine, constant"),
        ("weight_decay", -0.1, "0 or more"),
        ("weight_decay", float("nan"), "0 or more"),
        ("clip", 0.0, "a positive number (--clip 0 is no limit)"),
        ("clip", float("nan"), "a positive number (--clip 0 is no limit)"),
        ("dropout", 1.0, "0 or more, below 1"),
        ("dropout", -0.1, "0 or more, below 1"),
        ("dropout", float("nan"), "0 or more, below 1"),
        ("loss", "mean", "one of token-mean, sentence-sum"),
        ("eval_every", 0, "a whole number from 1"),
        ("save_every", 0, "a whole number from 1"),
        ("seed", -1, "0 or more"),
        ("backend", "abacus", "one of cupy, numpy, reference"),
    ],
)
def test_a_bad_setting_is_a_sentence_with_its_name_value_and_what_was_expected(
    name, value, expected
):
    with pytest.raises(InputError) as error:
        Settings(**{"steps": 10, name: value})
    shown = repr(value) if isinstance(value, str) else str(value)
    assert str(error.value).startswith(f"{name} is {shown}")
    assert f"expected {expected}" in str(error.value)


def test_an_unknown_setting_raises():
    with pytest.raises(TypeError, match="learning_rate"):
        Settings(steps=10, learning_rate=1e-3)


def test_a_folder_that_holds_a_run_is_refused_without_resume(config, small, tmp_path):
    settings = Settings(steps=2, batch_size=3)
    train(small, start("flat", config), encoded(4), settings, tmp_path, progress=False)
    before = (tmp_path / "state.safetensors").read_bytes()
    with pytest.raises(InputError, match=r"already holds a run \(state.safetensors\)"):
        train(small, start("flat", config), encoded(4), settings, tmp_path, progress=False)
    assert (tmp_path / "state.safetensors").read_bytes() == before
