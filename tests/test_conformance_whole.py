"""The reference suite on whole models, decoding, trainings and rivals: what is wrong only in some
configuration, shares memory, keeps something between calls or is random is caught under its own
name, and what is right is not accused."""

import types
from copy import deepcopy
from dataclasses import replace
from functools import cache
from itertools import pairwise

import numpy as np
import pytest

from minprefix.conformance import Implementation, all_checks, load, model_case, training_case
from minprefix.conformance.calls import changed, most
from minprefix.conformance.house import House
from minprefix.ops import numpy_ops

HOUSE = House(numpy_ops)
FUNCTIONS = ("run_model", "run_decoding", "run_method", "run_training")


def mine(**functions) -> Implementation:
    """The project's own levels above the ops, with some functions exchanged."""
    whole = {name: getattr(HOUSE, name) for name in FUNCTIONS} | functions
    return Implementation(types.SimpleNamespace(**whole), "mine", in_a_hurry=True)


def found_by(check, **functions):
    """Function, tensor and kind of each finding."""
    findings = all_checks()[check].grade(mine(**functions)).findings
    return [(f.function, f.tensor, f.kind) for f in findings]


def cut(function, spoil):
    """`function` on the problem that `spoil` makes of the one that is given."""
    return lambda problem: getattr(HOUSE, function)(spoil(problem))


def config(**fields):
    """A problem that forgets what its config says."""
    return lambda p: replace(p, config=replace(p.config, **fields))


# ---- one configuration only ---------------------------------------------------------------------


def _byte(p):
    return replace(p, sequences=[[t % 256 for t in ids] for ids in p.sequences])


def _thirty_two_texts(p):
    first = {n: getattr(p, n)[:32] for n in ("sequences", "loss_from", "prefix_of")}
    return replace(p, **first)


def _one_layer_for_ten(p):
    """As `name.startswith("h.1")` does."""
    w = {n: p.weights[f"h.1.{n[5:]}"] if n.startswith("h.10.") else a for n, a in p.weights.items()}
    return replace(p, weights=w)


def _sorted_as_text(p):
    """Layers in the order of their names: 0, 1, 10, 2, ..."""
    order = sorted(range(p.config.n_layer), key=str)
    w = dict(p.weights)
    for i, j in enumerate(order):
        w |= {f"h.{i}.{n.split('.', 2)[2]}": p.weights[n] for n in w if n.startswith(f"h.{j}.")}
    return replace(p, weights=w)


def _offset_is_P(p):
    return replace(p, position_offsets=[kv.shape[3] for kv in p.prefixes])


def _zeros_are_none(p):
    kvs = [kv if kv.any() else kv[..., :0, :] for kv in p.prefixes]
    return replace(p, prefixes=kvs)


def _tied(p):
    if p.config.tie_word_embeddings:
        return p
    return replace(p, weights=p.weights | {"lm_head.weight": p.weights["wte.weight"]})


@pytest.mark.parametrize(
    ("check", "function", "spoil", "first"),
    [
        ("model/two-digits", "run_model", _one_layer_for_ten, "blocks.10.ln_1.out"),
        ("model/two-digits", "run_model", _sorted_as_text, "blocks.2.ln_1.out"),
        ("model/long", "run_model", _byte, "blocks.0.resid_pre"),
        ("model/long", "run_model", _thirty_two_texts, "blocks.0.resid_pre"),
        ("model/offsets", "run_model", _offset_is_P, "blocks.0.resid_pre"),
        ("model/zeros", "run_model", _zeros_are_none, "blocks.0.attn.pattern[0]"),
        ("decoding/together", "run_decoding", _tied, "logits"),
        ("decoding/together", "run_decoding", config(layer_norm_epsilon=1e-5), "logits"),
        ("decoding/offsets", "run_decoding", _offset_is_P, "logits"),
        ("training/another-recipe", "run_training", _tied, "step.0.loss"),
        ("training/another-recipe", "run_training", config(layer_norm_epsilon=1e-5), "step.0.loss"),
    ],
)
def test_what_is_wrong_in_some_configuration_alone_is_caught(check, function, spoil, first):
    result = all_checks()[check].grade(mine(**{function: cut(function, spoil)}))
    assert result.status == "failed"
    assert result.findings[0].tensor in (first, first.replace("pattern[0]", "z"))


@pytest.mark.parametrize(
    "given",
    [{"beta1": 0.9}, {"beta2": 0.999}, {"eps": 1e-8}, {"weight_decay": 0.01}, {"clip": 1.0}],
)
def test_a_training_that_takes_a_default_for_what_it_was_told_is_caught(given):
    found = found_by(
        "training/another-recipe", run_training=cut("run_training", lambda p: replace(p, **given))
    )
    assert found[0][2] == "value"
    assert found[0][1].split(".")[2] == "prefix"


def test_a_mask_of_a_large_finite_number_is_caught():
    ops = types.SimpleNamespace(**vars(numpy_ops))

    def attention(q, k, v, prefix_k, prefix_v, offsets):
        z, cache = numpy_ops.attention(q, k, v, prefix_k, prefix_v, offsets)
        z, hs = np.array(z), q.shape[2]
        for b, (start, end) in enumerate(pairwise(offsets)):
            now, P = slice(start, end), prefix_k[b].shape[1]
            keys = np.concatenate([prefix_k[b], k[now].swapaxes(0, 1)], axis=1)
            values = np.concatenate([prefix_v[b], v[now].swapaxes(0, 1)], axis=1)
            scores = q[now].swapaxes(0, 1) @ keys.swapaxes(1, 2) / hs**0.5
            hidden = np.triu(np.ones(scores.shape[1:], bool), P + 1)
            scores = np.where(hidden, -1e4, scores)
            e = np.exp(scores - scores.max(axis=2, keepdims=True))
            z[now] = (e / e.sum(axis=2, keepdims=True) @ values).swapaxes(0, 1)
        return z, cache

    ops.attention = attention
    wrong = House(ops).run_model
    assert found_by("model/own-prefixes", run_model=wrong) == []
    assert found_by("model/low-scores", run_model=wrong)[0][1] == "blocks.0.attn.z"


def test_a_prefix_that_is_known_by_its_array_gets_another_ones_gradient_and_is_caught():
    def run_model(problem):
        found = dict(HOUSE.run_model(problem))
        by_array = {}
        for j, kv in enumerate(problem.prefixes):
            by_array.setdefault(id(kv), []).append(j)
        for same in by_array.values():
            for n in ("dk", "dv"):
                total = sum(found[f"prefix.{j}.{n}"] for j in same)
                found |= {f"prefix.{j}.{n}": total for j in same}
        return found

    assert found_by("model/equal-prefixes", run_model=run_model) == []
    found = found_by("model/shared-arrays", run_model=run_model)
    assert [each[1] for each in found] == [f"prefix.{j}.{n}" for j in "01" for n in ("dk", "dv")]


def test_a_prefix_that_a_step_does_not_use_is_moved_all_the_same():
    """PyTorch leaves out a parameter whose gradient is None."""

    def run_training(problem):
        found = dict(HOUSE.run_training(problem))
        for s, step in enumerate(problem.steps):
            used = {j for part in step for j in part.prefix_of}
            for j in {*range(len(problem.parameters))} - used:
                for name, a in problem.parameters[j].items():
                    before = found.get(f"step.{s - 1}.prefix.{j}.{name}", a)
                    found[f"step.{s}.prefix.{j}.{name}"] = before
        return found

    assert found_by("training/two-prefixes", run_training=run_training) == []
    found = found_by("training/unused-prefix", run_training=run_training)
    assert found[0] == ("run_training", "step.0.prefix.0.kv", "value")


# ---- what is given stays as it was --------------------------------------------------------------


def test_changes_of_a_problem_are_named_by_their_place():
    before = training_case("two-prefixes")
    now = deepcopy(before)
    assert list(changed(before, now)) == []
    now.parameters[1]["bias_1"][0] += 1
    now.weights["wpe.weight"][...] = 0
    now.steps[2][1].sequences[0].append(3)
    now.parameters[0].pop("kv")
    places = [place for place, _, _ in changed(before, now)]
    assert places == [
        "weights[wpe.weight]",
        "parameters[0]",
        "parameters[1][bias_1]",
        "steps[2][1].sequences[0]",
    ]


def _trained_in_place(problem):
    found = HOUSE.run_training(problem)
    for i, given in enumerate(problem.parameters):
        for name, a in given.items():
            a[...] = found[f"step.{len(problem.steps) - 1}.prefix.{i}.{name}"]
    return found


def _scaled_in_place(function):
    def run(problem):
        problem.weights["h.0.attn.c_attn.weight"][...] *= 1 + 1e-12
        return getattr(HOUSE, function)(problem)

    return run


def _with_a_head(function):
    def run(problem):
        problem.weights.setdefault("lm_head.weight", problem.weights["wte.weight"])
        own = {n: a for n, a in problem.weights.items() if n in problem.config.shapes()}
        return getattr(HOUSE, function)(replace(problem, weights=own))

    return run


def _with_a_token(problem):
    found = HOUSE.run_decoding(problem)
    for ids in problem.sequences:
        ids.append(0)
    return found


@pytest.mark.parametrize(
    ("check", "function", "run", "place"),
    [
        ("training/two-prefixes", "run_training", _trained_in_place, "parameters[0][kv]"),
        ("model/one-sequence", "run_model", _with_a_head("run_model"), "weights"),
        ("decoding/own-prefixes", "run_decoding", _with_a_token, "sequences[0]"),
        *(
            (check, function, _scaled_in_place(function), "weights[h.0.attn.c_attn.weight]")
            for check, function in (
                ("model/sum", "run_model"),
                ("decoding/no-prefix", "run_decoding"),
                ("lora/usual", "run_method"),
                ("training/one-step", "run_training"),
            )
        ),
    ],
)
def test_a_change_of_what_was_given_is_a_finding_of_its_own(check, function, run, place):
    assert found_by(check, **{function: run}) == [(function, place, "modified")]


# ---- what is given back is the caller's ---------------------------------------------------------


def _views_of_the_parameter(problem):
    found = dict(HOUSE.run_training(problem))
    last = len(problem.steps) - 1
    for name in found:
        if ".prefix." in name and "gradient" not in name:
            found[name] = found[f"step.{last}.{name.split('.', 2)[2]}"]
    return found


def test_steps_that_all_show_the_last_numbers_are_named_so():
    result = all_checks()["training/two-prefixes"].grade(mine(run_training=_views_of_the_parameter))
    finding, *others = result.findings
    assert (finding.tensor, finding.kind) == ("step.0.prefix.0.kv", "modified")
    assert finding.sentence == (
        "run_training gave one array as step.0.prefix.0.kv and as step.2.prefix.0.kv, and so it is "
        "with 11 more: give copies"
    )
    assert others == []


def test_a_buffer_that_a_later_call_writes_into_is_named_so():
    kept = {}

    def run_model(problem):
        for name, a in HOUSE.run_model(problem).items():
            if name in kept and kept[name].shape == a.shape:
                kept[name][...] = a
            else:
                kept[name] = np.array(a)
        return dict(kept)

    found = found_by("model/again", run_model=run_model)
    assert [kind for _, _, kind in found] == ["modified"]


def test_a_result_that_is_a_view_of_what_was_given_is_named_so():
    def run_training(problem):
        found = dict(HOUSE.run_training(problem))
        found["step.0.prefix.0.kv"] = problem.parameters[0]["kv"]
        return found

    def run_decoding(problem):
        logits = problem.weights["wte.weight"][: sum(map(len, problem.sequences))]
        return {"logits": logits}

    assert found_by("training/again", run_training=run_training)[0][2] == "modified"
    assert found_by("decoding/again", run_decoding=run_decoding)[0][2] == "modified"


# ---- the same numbers again ---------------------------------------------------------------------


def _kept_by(key):
    """What a function remembers of a problem, and takes for another's."""

    def decorated(function):
        seen = {}

        def run(problem):
            own = seen.setdefault(key(problem), deepcopy(problem))
            return getattr(HOUSE, function)(replace(problem, weights=own.weights))

        return run

    return decorated


@pytest.mark.parametrize("key", [lambda p: p.config, lambda p: (p.config.n_embd, len(p.weights))])
@pytest.mark.parametrize(
    ("check", "function"),
    [
        ("model/again", "run_model"),
        ("decoding/again", "run_decoding"),
        ("training/again", "run_training"),
        ("full/again", "run_method"),
        ("lora/again", "run_method"),
    ],
)
def test_a_model_that_keeps_an_earlier_ones_weights_is_caught(check, function, key):
    found = found_by(check, **{function: _kept_by(key)(function)})
    assert [(name, kind) for name, _, kind in found] == [(function, "law")]


def test_what_is_wrong_without_an_earlier_call_is_not_blamed_on_one(tmp_path):
    lines = "from minprefix.conformance.house import House\nfrom minprefix.ops import reference\n"
    lines += "from dataclasses import replace\nKEPT = {}\n\n\ndef run_model(p):\n"
    fixed = f"{lines}    config = replace(p.config, layer_norm_epsilon=1e-5)\n"
    fixed += "    return House(reference).run_model(replace(p, config=config))\n"
    kept = f"{lines}    w = KEPT.setdefault(p.config, p.weights)\n"
    kept += "    return House(reference).run_model(replace(p, weights=w))\n"
    for name, text in (("fixed", fixed), ("kept", kept)):
        (tmp_path / f"{name}.py").write_text(text)
    check = all_checks()["model/again"]
    assert check.grade(load(str(tmp_path / "fixed.py"))).findings == []
    assert all_checks()["model/separate-head"].grade(load(str(tmp_path / "fixed.py"))).findings
    (finding,) = check.grade(load(str(tmp_path / "kept.py"))).findings
    assert finding.kind == "law"
    assert "keeps something of an earlier problem" in finding.sentence


def _random(function):
    rng = np.random.default_rng()

    def run(problem):
        found = getattr(HOUSE, function)(problem)
        return {name: a * (1 + 0.1 * rng.random()) for name, a in found.items()}

    return run


@pytest.mark.parametrize(
    ("check", "function"),
    [
        ("model/again", "run_model"),
        ("model/together", "run_model"),
        ("decoding/own-prefixes", "run_decoding"),
        ("decoding/again", "run_decoding"),
        ("training/ten-steps", "run_training"),
        ("training/again", "run_training"),
        ("adapters/houlsby", "run_method"),
        ("full/again", "run_method"),
    ],
)
def test_what_is_random_is_named_so_and_nothing_else_is_said(check, function):
    found = found_by(check, **{function: _random(function)})
    assert [(name, kind) for name, _, kind in found] == [(function, "nondeterministic")]


def test_what_differs_between_two_calls_is_told_in_a_sentence():
    assert most({"loss": 0.25}) == "loss differs by 0.25 of its largest value"
    assert most({"z": 0.5, "loss": 0.1}) == (
        "z and 1 other value differ, z by 0.5 of its largest value"
    )


def test_gradients_that_add_up_from_call_to_call_are_named_so():
    held = {}

    def run_model(problem):
        found = dict(HOUSE.run_model(problem))
        for name in list(found):
            if name.startswith("prefix."):
                size = (name, found[name].shape)
                held[size] = found[name] = found[name] + held.get(size, 0)
        return found

    assert found_by("model/shared-prefix", run_model=run_model) == []
    found = found_by("model/shared-prefix", run_model=run_model)
    assert found == [("run_model", "prefix.0.dk", "nondeterministic")]


# ---- what is right is not accused ---------------------------------------------------------------


@cache
def _kept_whole(key):
    return {}


def _remembering(function):
    """Right: it keeps what it computed, by all the bytes of the problem."""

    def key(p):
        if isinstance(p, np.ndarray):
            return p.tobytes(), p.shape, str(p.dtype)
        if isinstance(p, dict):
            return tuple((n, key(a)) for n, a in p.items())
        if isinstance(p, list | tuple):
            return tuple(map(key, p))
        return tuple(map(key, vars(p).values())) if hasattr(p, "__dict__") else p

    def run(problem):
        kept = _kept_whole(function)
        seen = key(problem)
        if seen not in kept:
            kept[seen] = getattr(HOUSE, function)(problem)
        return deepcopy(kept[seen])

    return run


@pytest.mark.parametrize(
    "check",
    [
        "model/again", "model/shared-arrays", "decoding/again", "training/again", "full/again",
        "lora/again", "training/unused-prefix",
    ],
)  # fmt: skip
def test_a_model_that_remembers_by_the_numbers_is_right(check):
    functions = {name: _remembering(name) for name in FUNCTIONS}
    assert found_by(check, **functions) == []


def test_read_only_arrays_are_enough():
    problem = model_case("together")
    for a in [*problem.weights.values(), *problem.prefixes]:
        a.flags.writeable = False
    found = HOUSE.run_model(problem)
    assert found["loss"] == HOUSE.run_model(model_case("together"))["loss"]
