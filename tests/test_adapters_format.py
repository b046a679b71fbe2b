"""The layout of the `adapters` library, read and written without it. Against the library itself:
`python -m tests.adapters_library`."""

import json
import os
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from minprefix import InputError, Prefix
from minprefix.storage.adapters import (
    CONFIG,
    HEAD,
    PICKLE,
    TENSORS,
    is_adapters,
    load_adapters,
    save_adapters,
)

P, N, NH, HS, HIDDEN = 5, 3, 4, 8, 6
C = NH * HS
STEM = "transformer.prefix_tuning.prefix_tunings.theirs.self_prefix."


def config_of(**changed):
    """As adapters 1.3.0 writes it."""
    inner = {
        "architecture": "prefix_tuning",
        "bottleneck_size": HIDDEN,
        "cross_prefix": True,
        "dropout": 0.0,
        "encoder_prefix": True,
        "flat": True,
        "init_weights_seed": None,
        "leave_out": [],
        "non_linearity": "tanh",
        "prefix_length": P,
        "shared_gating": True,
        "use_gating": False,
    }
    outer = {
        "hidden_size": C,
        "model_class": "GPT2LMHeadModel",
        "model_name": "gpt2",
        "model_type": "gpt2",
        "name": "theirs",
        "version": "adapters.1.3.0",
    }
    return {"config": inner} | outer | changed


def inner(**changed):
    return config_of(config=config_of()["config"] | changed)


def write(folder, about=None, tensors=None):
    folder.mkdir(exist_ok=True)
    (folder / CONFIG).write_text(json.dumps(config_of() if about is None else about))
    save_file(flat() if tensors is None else tensors, folder / TENSORS)
    return folder


def flat(n=N, stem=STEM, dtype="float32"):
    rng = np.random.default_rng(0)
    return {stem + "control_trans": rng.normal(0, 1, P * n * 2 * C).astype(dtype)}


def mlp(n=N):
    rng = np.random.default_rng(0)
    shapes = {
        "wte.weight": (P, C),
        "control_trans.0.weight": (HIDDEN, C),
        "control_trans.0.bias": (HIDDEN,),
        "control_trans.2.weight": (n * 2 * C, HIDDEN),
        "control_trans.2.bias": (n * 2 * C,),
    }
    return {STEM + k: rng.normal(0, 1, s).astype("float32") for k, s in shapes.items()}


def by_hand(tensor, n=N):
    """kv as that library cuts it: slots, then layers, keys before values, heads."""
    kv = np.empty((n, 2, NH, P, HS), tensor.dtype)
    for layer, which, head, slot, d in np.ndindex(kv.shape):
        i = (((slot * n + layer) * 2 + which) * NH + head) * HS + d
        kv[layer, which, head, slot, d] = tensor[i]
    return kv


def ours(config, **where):
    return Prefix.normal(config, P, std=1.0, seed=3, position_offset=0, **where)


# ---- there and back ----


@pytest.mark.parametrize("layers", [None, [0, 1, 2], [1], [0, 2]])
@pytest.mark.parametrize("through_mlp", [False, True], ids=["flat", "mlp"])
def test_a_prefix_goes_into_that_layout_and_comes_back_byte_equal(
    tmp_path, config, through_mlp, layers
):
    prefix = ours(config, layers=layers)
    if through_mlp:
        prefix = Prefix.mlp(config, P, HIDDEN, layers=layers, position_offset=0)
    save_adapters(prefix.saved, tmp_path / "out", n_layer=config.n_layer)
    back = Prefix.of(load_adapters(tmp_path / "out", NH))
    assert type(back) is Prefix
    assert back.kv.dtype == "float32"
    assert back.kv.tobytes() == prefix.kv.astype("float32").tobytes()
    assert (back.layers, back.position_offset) == (prefix.layers, 0)
    assert back.subset == (len(back.layers) < config.n_layer)


def test_what_is_written_is_what_that_library_reads(tmp_path, config):
    prefix = ours(config, layers=[0, 2])
    save_adapters(prefix.saved, tmp_path / "out", "mine", n_layer=3)
    assert {p.name for p in (tmp_path / "out").iterdir()} == {CONFIG, TENSORS}
    assert is_adapters(tmp_path / "out")
    (name, tensor), *rest = load_file(tmp_path / "out" / TENSORS).items()
    assert name == STEM.replace("theirs", "mine") + "control_trans"
    assert not rest
    assert tensor.shape == (P * 2 * 2 * C,)
    assert np.array_equal(by_hand(tensor, 2), prefix.kv)
    about = json.loads((tmp_path / "out" / CONFIG).read_text())
    expected = inner(leave_out=[1], bottleneck_size=512, cross_prefix=False)
    assert about == expected | {"name": "mine", "model_name": ""}


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("root", ["transformer.", ""], ids=["with head", "GPT2Model"])
@pytest.mark.parametrize("says_flat", [True, False], ids=["flat", "ejected"])
def test_a_flat_directory_of_that_library_loads(tmp_path, root, says_flat, dtype):
    tensors = flat(stem=STEM.replace("transformer.", root), dtype=dtype)
    prefix = Prefix.of(load_adapters(write(tmp_path, inner(flat=says_flat), tensors), NH))
    (tensor,) = tensors.values()
    assert np.array_equal(prefix.kv, by_hand(tensor).astype("float32"))
    assert prefix.kv.dtype == "float32"
    assert (prefix.position_offset, prefix.subset) == (0, False)


def test_an_mlp_of_that_library_is_folded_as_pytorch_computes_it(tmp_path):
    tensors = mlp()
    prefix = Prefix.of(load_adapters(write(tmp_path, inner(flat=False), tensors), NH))
    t = {n.removeprefix(STEM): torch.tensor(a) for n, a in tensors.items()}
    linear = torch.nn.functional.linear
    h = linear(t["wte.weight"], t["control_trans.0.weight"], t["control_trans.0.bias"]).tanh()
    out = linear(h, t["control_trans.2.weight"], t["control_trans.2.bias"])
    assert np.abs(prefix.kv - by_hand(out.numpy().reshape(-1))).max() < 1e-5
    assert type(prefix) is Prefix


@pytest.mark.parametrize(
    ("left_out", "layers"),
    [([0], (1, 2, 3)), ([2, 0, 2], (1, 3, 4)), ([9], (0, 1, 2)), ([3], (0, 1, 2))],
)
def test_layers_that_were_left_out_see_no_prefix(tmp_path, left_out, layers):
    prefix = Prefix.of(load_adapters(write(tmp_path, inner(leave_out=left_out)), NH))
    assert (prefix.layers, prefix.subset) == (layers, True)


def test_a_head_that_is_the_models_own_is_no_obstacle(tmp_path):
    write(tmp_path)
    (tmp_path / HEAD).write_text('{"config": null, "num_labels": 2}')
    assert load_adapters(tmp_path, NH).kv.shape[3] == P


# ---- what does not leave ----


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"position_offset": None}, "start at position 5; the adapters library starts them at 0"),
        ({"position_offset": 2}, "position 2.* train with --position-offset 0"),
        ({"length": 0}, "0 slots"),
        ({"layers": []}, "0 layers"),
        ({"layers": [1]}, "layers .1. of None: .* give the model"),
        ({"layers": [1], "n_layer": 1}, "layers .1. of 1"),
        ({"name": "a.b"}, "name is 'a.b'"),
        ({"name": ""}, "name is ''"),
        ({"dtype": "complex128"}, "complex128"),
        ({"value": np.nan}, "not all finite"),
        ({"value": 1e39, "dtype": "float64"}, "not all finite"),
    ],
)
def test_what_that_library_cannot_express_is_refused(tmp_path, config, change, sentence):
    keys = {"position_offset": 0, "layers": None, "dtype": "float32", "length": P} | change
    how = {k: keys.pop(k) for k in ("name", "n_layer") if k in keys}
    value = keys.pop("value", 0)
    prefix = Prefix.zero(config, **keys)
    prefix.kv.flat[:1] = value
    with pytest.raises(InputError, match=sentence):
        save_adapters(prefix.saved, tmp_path / "out", **how)
    assert not (tmp_path / "out").exists()


def test_only_a_folder_of_its_own_is_written_into(tmp_path, config):
    (tmp_path / CONFIG).write_text("PEFT's")
    (tmp_path / "adapter_model.safetensors").write_text("PEFT's")
    with pytest.raises(InputError, match=r"holds adapter_model\.safetensors: .* empty folder"):
        save_adapters(ours(config).saved, tmp_path)
    assert (tmp_path / CONFIG).read_text() == "PEFT's"
    out = tmp_path / "again"
    save_adapters(ours(config).saved, out)
    save_adapters(Prefix.zero(config, P, position_offset=0).saved, out)
    assert not load_adapters(out, NH).kv.any()


# ---- what does not come in ----

RENAMED = {n.replace(".theirs.", ".other."): a for n, a in flat().items()}
CROSS = flat() | flat(stem=STEM.replace("self_prefix", "cross_prefix"))
MISSING = dict(list(mlp().items())[:4])


@pytest.mark.parametrize(
    ("about", "tensors", "sentence"),
    [
        (inner(use_gating=True), None, "use_gating is True: a gate"),
        (inner(architecture="lora"), None, "no other kind"),
        (config_of(config=None), None, "no other kind"),
        (inner(bias=1), None, "key 'bias' is unknown"),
        (config_of(config={"architecture": "prefix_tuning"}), None, "'bottleneck_size' is missing"),
        (inner(flat=False, non_linearity="relu"), mlp(), "'relu', only 'tanh'.*eject_prefix"),
        (config_of(model_type="bert"), None, "model_type is 'bert'"),
        (config_of(name=3), None, "name is 3"),
        (config_of(hidden_size=True), None, "hidden_size is True: expected a whole number"),
        (config_of(hidden_size=C + 2), None, f"hidden_size is {C + 2}, not a multiple of 4"),
        (config_of(hidden_size=C * 1000), None, "holds .*one layer or more"),
        (inner(prefix_length=0), None, "prefix_length is 0"),
        (inner(prefix_length=10**30), None, "holds .*one layer or more"),
        (inner(prefix_length=P + 1), None, "holds .*one layer or more"),
        (inner(flat=False, bottleneck_size=HIDDEN + 1), mlp(), "holds .*expected"),
        (inner(leave_out=["0"]), None, r"leave_out is \['0'\]"),
        (inner(leave_out=None), None, "leave_out is None"),
        (None, {}, "holds none: expected"),
        (None, RENAMED, "other.*theirs"),
        (None, CROSS, "cross_prefix"),
        (None, {"control_trans": flat()[STEM + "control_trans"]}, r"holds \('control_trans'"),
        (inner(flat=False), MISSING, "holds .*expected"),
        (inner(flat=True), mlp(), "holds .*: expected {'[a-z_.]*control_trans': "),
        (None, flat(dtype="int64"), r"holds .*int64'\): expected"),
        (None, {n: a * np.nan for n, a in flat().items()}, "NaN or infinity"),
        (None, {n: a * 1e300 for n, a in flat(dtype="float64").items()}, "NaN or infinity"),
        (
            inner(flat=False),
            {n: np.full_like(a, 3e38) for n, a in mlp().items()},
            "NaN or infinity",
        ),
    ],
)
def test_what_has_no_counterpart_here_or_is_damaged_is_refused(tmp_path, about, tensors, sentence):
    with pytest.raises(InputError, match=sentence) as caught:
        load_adapters(write(tmp_path, about, tensors), NH)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("n_head", [0, 3, -4])
def test_heads_that_do_not_share_the_width_are_refused(tmp_path, n_head):
    with pytest.raises(InputError, match=f"not a multiple of {n_head} heads"):
        load_adapters(write(tmp_path), n_head)


def test_a_head_of_the_adapters_own_is_refused(tmp_path):
    write(tmp_path)
    (tmp_path / HEAD).write_text('{"config": {"head_type": "causal_lm", "layers": 2}}')
    with pytest.raises(InputError, match="output layer of the adapter's own"):
        load_adapters(tmp_path, NH)


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("beside", [False, True])
def test_a_pickle_is_never_opened(tmp_path, beside):
    folder = write(tmp_path / "in")
    (folder / PICKLE).write_bytes(pickle.dumps(Evil(tmp_path / "ran")))
    if beside:  # it was converted: the pickle is not looked at
        load_adapters(folder, NH)
    else:
        (folder / TENSORS).unlink()
        with pytest.raises(InputError, match=r"never opened here: convert it.*save_file"):
            load_adapters(folder, NH)
        assert is_adapters(folder)
        (folder / PICKLE).unlink()
        assert not is_adapters(folder)  # the config alone may be PEFT's
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", [CONFIG, TENSORS, HEAD])
@pytest.mark.parametrize("as_what", ["link", "pipe", "folder"])
def test_nothing_outside_the_folder_is_read_and_nothing_hangs(tmp_path, name, as_what):
    folder = write(tmp_path / "in")
    (folder / HEAD).write_text('{"config": null}')
    if as_what == "link":
        (folder / name).rename(tmp_path / "outside")
        (folder / name).symlink_to(tmp_path / "outside")
    else:
        (folder / name).unlink()
        (os.mkfifo if as_what == "pipe" else os.mkdir)(folder / name)
    said = {"link": "is a link to", "pipe": "Is a pipe", "folder": "Is a directory"}[as_what]
    with pytest.raises(InputError, match=rf"{name}:? {said}"):
        load_adapters(folder, NH)


@pytest.mark.parametrize("name", [CONFIG, TENSORS])
def test_a_missing_file_is_named(tmp_path, name):
    (write(tmp_path) / name).unlink()
    with pytest.raises(InputError, match=f"{name} is no file"):
        load_adapters(tmp_path, NH)


def test_a_save_that_was_cut_short_after_it_was_decided_is_completed(tmp_path, config):
    save_adapters(ours(config).saved, tmp_path / "new")
    write(tmp_path / "in")
    (tmp_path / "new").rename(tmp_path / "in" / ".saving")
    (tmp_path / "in" / ".saving" / "complete.json").write_text(json.dumps([CONFIG, TENSORS]))
    assert np.array_equal(load_adapters(tmp_path / "in", NH).kv, ours(config).kv)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=5), x, max_size=2),
    max_leaves=4,
)


@settings(max_examples=50, deadline=None)
@given(key=st.sampled_from([*config_of(), *config_of()["config"]]), value=json_values)
def test_any_value_under_any_key_ends_in_a_prefix_or_a_sentence(tmp_path_factory, key, value):
    about = inner(flat=False)
    (about["config"] if key in about["config"] else about)[key] = value
    folder, said = write(tmp_path_factory.getbasetemp() / "any", about, mlp()), ""
    try:
        assert load_adapters(folder, NH).kv.size == N * 2 * C * P
    except InputError as error:
        said = str(error)
    named = "architecture" if key == "config" else key
    assert not said or named in said or " holds (" in said


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_damage_ends_in_a_prefix_or_a_sentence(tmp_path_factory, data):
    folder = write(tmp_path_factory.getbasetemp() / "damaged", None, flat(n=1))
    path = folder / data.draw(st.sampled_from([CONFIG, TENSORS]))
    damaged = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, min(len(damaged), 400) - 1))] = data.draw(
            st.integers(0, 255)
        )
    path.write_bytes(damaged[: data.draw(st.integers(0, len(damaged)))])
    try:
        prefix = Prefix.of(load_adapters(folder, NH))
    except InputError:
        return
    assert prefix.kv.size == 2 * C * P
    assert np.isfinite(prefix.kv).all()
