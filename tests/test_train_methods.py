"""`minprefix train --method`: every rival through the command line, from the options to the folder
that a run leaves."""

import inspect
from dataclasses import fields

import pytest

from minprefix import GPT2, InputError, Prefix, methods, runs
from minprefix.settings import BELONGS, INITS, LENGTH, METHODS, OWN, PREFIX, RATES, Job

RIVALS = [*methods.METHODS]
#: a value for each option that belongs to some methods alone
GIVEN = {
    "prefix_length": 3, "init_std": 0.1, "init_bound": 0.1, "init_text": "food", "mlp_hidden": 4,
    "layers": [0], "position_offset": 0, "dropout": 0.1, "rank": 2, "alpha": 4.0,
    "targets": ["c_fc"], "bottleneck": 3, "placement": "pfeiffer", "top_layers": 1,
    "encoder": "mlp", "encoder_hidden": 6,
}  # fmt: skip


# ---- the options ----


@pytest.mark.parametrize("option", BELONGS)
def test_an_option_belongs_to_its_methods_and_is_refused_by_name_with_every_other(option):
    assert BELONGS.keys() == GIVEN.keys()
    for method in METHODS:
        trained = PREFIX if method == "p-tuning-v2" else method
        if trained in BELONGS[option]:
            Job(method=method, **{option: GIVEN[option]})
            continue
        with pytest.raises(InputError) as error:
            Job(method=method, **{option: GIVEN[option]})
        typed = f"--{option.replace('_', '-')}"
        assert str(error.value).startswith(f"{typed} belongs to --method {BELONGS[option][0]}")
        assert str(error.value).endswith(f"and --method is {method}")


@pytest.mark.parametrize("init", Job.__dataclass_fields__["init"].metadata["choices"])
def test_a_start_that_a_method_does_not_have_is_refused(init):
    for method in METHODS:
        trained = PREFIX if method == "p-tuning-v2" else method
        if init == "prefix" or init in INITS.get(trained, ()):
            Job(method=method, init=init)
        else:
            with pytest.raises(InputError, match=f"--init {init} is no start of --method {method}"):
                Job(method=method, init=init)


def test_the_methods_of_the_command_line_are_those_of_the_library_with_its_defaults():
    assert sorted(METHODS) == sorted([PREFIX, "p-tuning-v2", *methods.METHODS])
    assert RATES.keys() == {PREFIX, *methods.METHODS}
    names = {"top_layers": "k", "encoder_hidden": "hidden", "prefix_length": "length"}
    for option, default in (OWN | {"prefix_length": LENGTH}).items():
        for method in set(BELONGS[option]) - {PREFIX, "prompt-tuning"}:
            start = inspect.signature(methods.METHODS[method].start).parameters
            if option != "encoder":
                found = start[names.get(option, option)].default
                assert (list(found) if option == "targets" else found) == default


@pytest.mark.parametrize("method", RIVALS)
def test_a_job_starts_its_method_with_the_options_that_are_given(method):
    model = GPT2.load()
    given = {
        name: value
        for name, value in GIVEN.items()
        if method in BELONGS[name] and name != "init_text"
    }
    started = runs.start_method(model, Job(method=method, seed=1, **given))
    assert started.name == method
    said = started.options
    for name, value in given.items():
        if name == "prefix_length":
            assert started.length == value
        elif name == "targets":
            assert said[name] == ["mlp.c_fc"]
        elif name != "init_std":
            assert said[name] == value
    if "init_std" in given:
        assert next(iter(started.parameters.values())).std() == pytest.approx(0.1, rel=0.1)


def test_a_prompt_starts_from_the_vocabulary_or_a_text_and_a_prefix_has_another_name():
    model = GPT2.load()
    wte = model.weights["wte.weight"]
    drawn = runs.start_method(model, Job(method="prompt-tuning", init="vocabulary")).prompt()
    assert len(drawn) == LENGTH
    assert all((wte == row).all(axis=1).any() for row in drawn)
    text = {"init": "text", "init_text": "name food"}
    said = runs.start_method(model, Job(method="prompt-tuning", **text))
    assert (said.prompt() == wte[model.encode("name food")]).all()
    longer = runs.start_method(model, Job(method="prompt-tuning", prefix_length=9, **text))
    assert longer.length == 9
    v2 = runs.start_method(model, Job(method="p-tuning-v2", seed=3))
    assert isinstance(v2, Prefix)
    assert (v2.kv == runs.start_method(model, Job(seed=3)).kv).all()


def test_what_is_recorded_of_a_prefix_has_no_word_of_the_methods():
    said = [f.name for f in fields(Job)]
    assert said[said.index("matmul") + 1 :] == [
        "method", "rank", "alpha", "targets", "bottleneck", "placement", "top_layers", "encoder",
        "encoder_hidden",
    ]  # fmt: skip
    assert all(getattr(Job(), name) is None for name in said[said.index("matmul") + 1 :])
