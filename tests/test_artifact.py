"""A trained prefix on disk: PEFT's layout to the byte order, provenance, and what is refused."""

import hashlib
import json
import platform
import re
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import version

import jsonschema
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from safetensors.torch import save_file as save_torch
from tokenizers import ByteLevelBPETokenizer, Tokenizer, models, pre_tokenizers

from minprefix import GPT2, Config, InputError, Prefix
from minprefix.prefix import MLPPrefix
from minprefix.prefixes.verify import verify
from minprefix.storage.provenance import SCHEMA, Evaluation
from tests.conftest import random_model, to_hf
from tests.test_files import POINTER

PEFT_TENSOR, KV = "adapter_model.safetensors", "prompt_embeddings"
PEFT_FILES = {"adapter_config.json", "adapter_model.safetensors"}
P, L, NH, HS = 5, 3, 4, 8  # the shape of the fixture `config`
RULES = json.loads(SCHEMA.read_text(encoding="utf-8"))


@pytest.fixture
def base(config):
    return random_model(config, dtype="float32")


def names(folder):
    return {p.name for p in folder.iterdir()}


def read(folder, name="minprefix.json"):
    return json.loads((folder / name).read_text())


def edit(folder, name="minprefix.json", **changed):
    """`base__n_head=2` changes the key n_head of the object base."""
    value = read(folder, name)
    for key, new in changed.items():
        *above, last = key.split("__")
        inner = value
        for part in above:
            inner = inner[part]
        inner[last] = new
    (folder / name).write_text(json.dumps(value))


def unmarked(folder):
    """As another program leaves it: without a record of what the files were."""
    (folder / "minprefix.json").unlink()


def flat(config, length=P, **where):
    return Prefix.normal(config, length, std=1.0, seed=3, **where)


# ---- there and back ----


@pytest.mark.parametrize("through_mlp", [False, True], ids=["flat", "mlp"])
@pytest.mark.parametrize(
    ("length", "where", "peft"),
    [
        (P, {}, True),
        (1, {}, True),
        (P, {"position_offset": P}, True),
        (P, {"position_offset": 0}, False),
        (P, {"position_offset": 2}, False),
        (P, {"layers": [0, 2]}, False),
        (P, {"layers": [1], "position_offset": 0}, False),
        (P, {"layers": [0, 1, 2]}, False),  # named, so they stay named
        (0, {}, False),
        (0, {"position_offset": 4}, False),
    ],
)
def test_a_prefix_comes_back_as_it_was(tmp_path, config, base, through_mlp, length, where, peft):
    kind = MLPPrefix.random if through_mlp else Prefix.normal
    prefix = kind(config, length, seed=1, **where)
    prefix.save(tmp_path, base)
    again = Prefix.load(tmp_path, base)
    assert type(again) is Prefix  # an MLP is folded
    assert again.kv.dtype == np.float32
    assert again.kv.shape == prefix.kv.shape == (len(prefix.layers), 2, NH, length, HS)
    assert np.array_equal(again.kv, prefix.kv)
    assert (again.layers, again.subset) == (prefix.layers, prefix.subset)
    assert again.position_offset == prefix.position_offset
    tensor = PEFT_FILES if peft else {"prefix.safetensors"}
    kept = {"mlp.safetensors"} if through_mlp else set()
    assert names(tmp_path) == {"minprefix.json"} | tensor | kept


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("where", [{}, {"layers": [0, 2], "position_offset": 0}])
def test_load_mlp_returns_the_very_parameters(tmp_path, config, base, where, dtype):
    prefix = Prefix.mlp(config, P, hidden=7, seed=1, **where)
    prefix.save(tmp_path, base)
    again = MLPPrefix.load(tmp_path, dtype=dtype)
    assert set(again.parameters) == set(prefix.parameters)
    for name, p in prefix.parameters.items():
        assert again.parameters[name].dtype == dtype
        assert np.array_equal(again.parameters[name], p)
        assert again.parameters[name].flags.writeable  # to be trained on
    assert (again.layers, again.subset) == (prefix.layers, prefix.subset)
    assert again.position_offset == prefix.position_offset
    if dtype == "float32":
        assert np.array_equal(again.kv, prefix.kv)


def test_a_float64_prefix_is_stored_in_float32(tmp_path, config):
    prefix = flat(config, dtype="float64")
    prefix.save(tmp_path)
    assert np.array_equal(Prefix.load(tmp_path).kv, prefix.kv.astype(np.float32))
    assert Prefix.load(tmp_path, dtype="float64").kv.dtype == np.float64


def test_what_is_known_of_its_training_is_recorded(tmp_path, config, base):
    training = {"template": "{source}\n{target}", "steps": 3, "loss": [4.0, 3.5], "out": "Zoë"}
    metrics = {"valid_loss": 3.5}
    evaluation = {
        "of": "valid",
        "examples": 3,
        "loss": 3.5,
        "max_new_tokens": 4,
        "samples": [{"source": "a", "prediction": "b"}],
    }
    before = datetime.now(UTC).replace(microsecond=0)
    flat(config, layers=[0, 2]).save(tmp_path, base, training, metrics, Evaluation(**evaluation))
    about = read(tmp_path)
    assert before <= datetime.fromisoformat(about.pop("saved")) <= datetime.now(UTC)
    packages = about.pop("packages")
    assert packages.pop("python") == platform.python_version()
    names = ("minprefix", "numpy", "safetensors", "tokenizers")
    assert packages == {name: version(name) for name in names}
    stored = hashlib.sha256((tmp_path / "prefix.safetensors").read_bytes()).hexdigest()
    assert about == {
        "format": 2,
        "base": {
            "name": "random",
            "sha256": base.fingerprint(),
            "tokenizer_sha256": None,
            "n_layer": L,
            "n_head": NH,
            "head_size": HS,
        },
        "prefix": {"kind": "flat", "length": P, "layers": [0, 2], "position_offset": P},
        "files": {"prefix.safetensors": stored},
        "training": training,
        "metrics": metrics,
        "evaluation": evaluation,
    }


def test_a_complex_prefix_is_not_saved(tmp_path, config):
    with pytest.raises(InputError, match="cannot save a prefix of complex128: expected floating"):
        Prefix(flat(config).kv.astype(complex)).save(tmp_path)
    assert names(tmp_path) == set()


# ---- PEFT's layout ----


@pytest.mark.parametrize("through_mlp", [False, True], ids=["flat", "mlp"])
def test_the_tensor_is_row_major_over_slot_layer_key_or_value_head(tmp_path, config, through_mlp):
    prefix = Prefix.mlp(config, P, hidden=7) if through_mlp else flat(config)
    prefix.save(tmp_path)
    with safe_open(tmp_path / "adapter_model.safetensors", "np") as f:
        assert f.metadata() == {"format": "pt"}
        assert list(f.keys()) == ["prompt_embeddings"]
        t = f.get_tensor("prompt_embeddings")
    assert t.dtype == np.float32
    assert t.shape == (P, L * 2 * NH * HS)
    for p, layer, j, h in np.ndindex(P, L, 2, NH):
        start = ((layer * 2 + j) * NH + h) * HS
        assert np.array_equal(t[p, start : start + HS], prefix.kv[layer, j, h, p])


@pytest.mark.parametrize("through_mlp", [False, True], ids=["flat", "mlp"])
def test_adapter_config_json_is_what_peft_writes(tmp_path, config, base, through_mlp):
    from peft import PrefixTuningConfig, get_peft_model

    prefix = Prefix.mlp(config, P, hidden=7) if through_mlp else flat(config)
    prefix.save(tmp_path / "ours", base)
    ours = read(tmp_path / "ours", "adapter_config.json")
    peft = PrefixTuningConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=P,
        prefix_projection=through_mlp,
        encoder_hidden_size=7 if through_mlp else None,
    )
    get_peft_model(to_hf(base), peft).save_pretrained(tmp_path / "theirs")
    theirs = read(tmp_path / "theirs", "adapter_config.json")
    assert ours.pop("base_model_name_or_path") == "random"
    del theirs["base_model_name_or_path"], theirs["peft_version"]  # not PEFT wrote ours
    assert ours == theirs


def test_what_peft_wrote_loads_without_provenance(tmp_path, config, base):
    flat(config).save(tmp_path)
    (tmp_path / "minprefix.json").unlink()
    assert names(tmp_path) == PEFT_FILES
    again = Prefix.load(tmp_path, base)
    assert np.array_equal(again.kv, flat(config).kv)
    assert (again.position_offset, again.subset) == (P, False)
    with pytest.raises(InputError, match="holds no MLP: the prefix is flat, or PEFT wrote it"):
        MLPPrefix.load(tmp_path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_peft_tensor_of_another_precision_loads(tmp_path, config, dtype):
    flat(config).save(tmp_path)
    unmarked(tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    stored = torch.tensor(load_file(path)["prompt_embeddings"]).to(dtype)
    save_torch({"prompt_embeddings": stored}, path)
    want = torch.tensor(flat(config).kv).to(dtype).float().numpy()
    assert np.array_equal(Prefix.load(tmp_path).kv, want)


# ---- one prefix over another ----

KINDS = {
    "flat": lambda config: flat(config),
    "mlp": lambda config: Prefix.mlp(config, 4, hidden=7),
    "subset": lambda config: flat(config, 6, layers=[0, 2]),
    "subset mlp": lambda config: Prefix.mlp(config, 3, hidden=6, layers=[1]),
    "other positions": lambda config: flat(config, 2, position_offset=0),
}


@pytest.mark.parametrize("after", KINDS)
@pytest.mark.parametrize("before", KINDS)
def test_saving_over_another_prefix_leaves_nothing_of_it(tmp_path, config, base, before, after):
    KINDS[before](config).save(tmp_path / "used", base)
    (tmp_path / "used" / "notes.txt").write_text("mine")
    for folder in ("used", "fresh"):
        KINDS[after](config).save(tmp_path / folder, base)
    used, fresh = (
        {p.name: p.read_bytes() for p in (tmp_path / folder).iterdir()}
        for folder in ("used", "fresh")
    )
    assert used.pop("notes.txt") == b"mine"
    for kept in (used, fresh):
        kept["minprefix.json"] = re.sub(rb'"saved": "[^"]+"', b"", kept["minprefix.json"])
    assert used == fresh


# ---- refused ----


@pytest.fixture
def saved(tmp_path, config, base):
    flat(config).save(tmp_path / "prefix", base)
    return tmp_path / "prefix"


@pytest.fixture
def saved_subset(tmp_path, config, base):
    flat(config, layers=[0, 2]).save(tmp_path / "prefix", base)
    return tmp_path / "prefix"


@pytest.fixture
def saved_mlp(tmp_path, config, base):
    Prefix.mlp(config, P, hidden=7).save(tmp_path / "prefix", base)
    return tmp_path / "prefix"


def test_a_prefix_of_another_base_is_refused_with_both_fingerprints(saved, config, base):
    other = random_model(config, seed=1, dtype="float32")
    other.name = "the other"
    sentence = (
        r"prefix in '.*' was trained on another base: on 'random' "
        rf"\(sha256 {base.fingerprint()[:12]}\.\.\.\), and this is 'the other' "
        rf"\(sha256 {other.fingerprint()[:12]}\.\.\.\); give the model that it was trained on"
    )
    with pytest.raises(InputError, match=sentence):
        Prefix.load(saved, other)


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"n_head": 2}, "prefix has 4 heads of size 8, model 'random' has 2 of size 16"),
        ({"n_embd": 16}, "prefix has 4 heads of size 8, model 'random' has 4 of size 4"),
        ({"n_layer": 4}, "prefix has keys for layers 0-2, model 'random' has 4 layers"),
        ({"n_layer": 2}, "prefix has keys for layers 0-2, model 'random' has 2 layers"),
    ],
)
def test_a_prefix_of_another_shape_is_refused_with_both_shapes(saved, config, changed, sentence):
    other = random_model(Config(**{**vars(config), **changed}), dtype="float32")
    with pytest.raises(InputError, match=sentence):
        Prefix.load(saved, other)


def test_a_prefix_saved_without_its_base_fits_every_base_of_its_shape(tmp_path, config):
    flat(config).save(tmp_path)
    assert read(tmp_path)["base"]["sha256"] is None
    for seed in range(2):
        Prefix.load(tmp_path, random_model(config, seed, "float32"))


REQUIRED = [
    *(set(RULES["required"]) - {"format"}),
    *(f"base.{key}" for key in RULES["properties"]["base"]["required"]),
    *(f"prefix.{key}" for key in RULES["properties"]["prefix"]["required"]),
]


def test_the_schema_is_one_and_what_is_written_obeys_it(saved, saved_mlp):
    jsonschema.Draft202012Validator.check_schema(RULES)
    for folder in (saved, saved_mlp):
        jsonschema.validate(read(folder), RULES)


@pytest.mark.parametrize("key", sorted(REQUIRED))
def test_a_missing_key_of_minprefix_json_is_named(saved, key):
    about = read(saved)
    inner, _, last = key.rpartition(".")
    del (about[inner] if inner else about)[last]
    (saved / "minprefix.json").write_text(json.dumps(about))
    with pytest.raises(InputError, match=rf"minprefix\.json: key '{key}' is missing"):
        Prefix.load(saved)


@pytest.mark.parametrize("key", ["dropout", "base__dropout", "prefix__dropout"])
def test_an_unknown_key_of_minprefix_json_is_named(saved, key):
    edit(saved, **{key: 0.1})
    name = key.replace("__", ".")
    with pytest.raises(InputError, match=rf"minprefix\.json: key '{name}' is unknown"):
        Prefix.load(saved)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("training", [1], "an object, or null: how it was trained"),
        ("training", {"template": 5}, "text with {source} and {target}"),
        ("training", {"options": {"data": 1}}, "text, or null"),
        ("training", {"settings": {"matmul": []}}, '"float32" or "tf32"'),
        ("training", {"of": [{}]}, "missing"),
        ("base__sha256", "123", "a sha256, 64 hexadecimal digits, or null"),
        ("files__prefix", "123", "a sha256, 64 hexadecimal digits"),
        ("prefix__kind", "round", '"flat" or "mlp"'),
        ("evaluation", {}, "missing"),
        ("saved", 2026, "when it was saved, as text"),
        ("packages", {"numpy": 2}, "a version, as text"),
    ],
)
def test_a_value_of_minprefix_json_that_means_nothing_is_a_sentence(saved, key, value, expected):
    edit(saved, **{key: value})
    with pytest.raises(InputError, match=rf"minprefix\.json: .*{re.escape(expected)}"):
        Prefix.load(saved)


def test_an_unknown_note_of_ones_own_training_is_kept(saved):
    edit(saved, training={"by": "my own loop", "template": "{source}{target}"})
    Prefix.load(saved)


@pytest.mark.parametrize("number", [0, 1, "2", None])
def test_another_format_is_refused(saved, number):
    edit(saved, format=number)
    found = re.escape(repr(number))
    with pytest.raises(InputError, match=rf"has format {found}, this version reads 2: use the"):
        Prefix.load(saved)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("prefix__layers", "0,2"),
        ("prefix__layers", 2),
        ("prefix__layers", ["0", "2"]),
        ("prefix__layers", [0.0, 2.0]),
        ("prefix__length", 5.0),
        ("prefix__layers", [2, 0]),
        ("prefix__layers", [0]),
        ("prefix__layers", None),  # two layers of three: which ones?
        ("prefix__position_offset", "5"),
        ("prefix__position_offset", 1.5),
        ("prefix__position_offset", -1),
        ("prefix__position_offset", None),
        ("prefix__length", 4),
        ("base__n_head", 2),
        ("base__head_size", 16),
    ],
)
def test_a_minprefix_json_that_does_not_fit_its_tensor_is_refused(saved_subset, base, key, value):
    edit(saved_subset, **{key: value})
    with pytest.raises(InputError):
        Prefix.load(saved_subset, base)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("prefix__length", 4),
        ("prefix__position_offset", 0),
        ("prefix__layers", [0, 2]),
        ("base__n_head", 2),
        ("base__n_layer", 2),
    ],
)
def test_a_minprefix_json_of_another_prefix_than_pefts_files_is_refused(saved, base, key, value):
    edit(saved, **{key: value})
    with pytest.raises(InputError, match=r"minprefix\.json"):
        Prefix.load(saved, base)


@pytest.mark.parametrize("text", ["", "{", "[]", "\xff"])
@pytest.mark.parametrize("name", ["minprefix.json", "adapter_config.json"])
def test_damaged_json_is_named(saved, name, text):
    (saved / name).write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=re.escape(name)):
        Prefix.load(saved)


@pytest.mark.parametrize("kind", ["LORA", "PROMPT_TUNING", None])
def test_another_kind_of_adapter_is_refused(saved, kind):
    edit(saved, "adapter_config.json", peft_type=kind)
    with pytest.raises(InputError, match=f"peft_type is {kind!r}: expected 'PREFIX_TUNING'"):
        Prefix.load(saved)


@pytest.mark.parametrize(
    "key", ["num_virtual_tokens", "num_layers", "num_attention_heads", "token_dim"]
)
@pytest.mark.parametrize("value", [None, 0, -1, "5", 5.0])
def test_a_number_of_adapter_config_json_that_is_none_is_named(saved, key, value):
    edit(saved, "adapter_config.json", **{key: value})
    with pytest.raises(InputError, match=rf"{key} is {re.escape(repr(value))}: expected a whole"):
        Prefix.load(saved)


def test_a_width_that_the_heads_cannot_share_is_refused(saved):
    edit(saved, "adapter_config.json", num_attention_heads=3)
    with pytest.raises(InputError, match=r"adapter_config\.json: token_dim is 32, which 3 heads"):
        Prefix.load(saved)


def test_the_peft_tensor_without_its_config_is_refused(saved):
    (saved / "adapter_config.json").unlink()
    with pytest.raises(InputError, match=r"has adapter_model\.safetensors but no adapter_config"):
        Prefix.load(saved)


TENSOR = "prompt_embeddings"


@pytest.mark.parametrize(
    "tensors",
    [
        {},
        {"base_model.prompt": np.zeros((P, 192), np.float32)},
        {TENSOR: np.zeros((P, 191), np.float32)},
        {TENSOR: np.zeros((P + 1, 192), np.float32)},
        {TENSOR: np.zeros((P * 192,), np.float32)},
        {TENSOR: np.zeros((P, 192), np.float32), "score.weight": np.zeros(1, np.float32)},
        {TENSOR: np.zeros((P, 192), np.int64)},
        {TENSOR: np.zeros((P, 192), np.uint8)},
        {TENSOR: np.zeros((P, 192), np.int32)},
    ],
)
def test_another_peft_tensor_than_the_config_says_is_refused(saved, tensors):
    save_file(tensors, saved / "adapter_model.safetensors")
    sentence = r"adapter_model\.safetensors holds .*expected prompt_embeddings \(5, 192\)"
    with pytest.raises(InputError, match=sentence):
        Prefix.load(saved)


@pytest.mark.parametrize(
    "tensors",
    [
        {},
        {"k": np.zeros((2, 2, NH, P, HS), np.float32)},
        {"kv": np.zeros((2, 2, NH, P), np.float32)},
        {"kv": np.zeros((2, 3, NH, P, HS), np.float32)},
        {"kv": np.zeros((3, 2, NH, P, HS), np.float32)},
        {"kv": np.zeros((2, 2, NH, P, HS), np.int64)},
        {"kv": np.zeros((2, 2, NH, P, HS), np.float32), "more": np.zeros(1, np.float32)},
    ],
)
def test_another_tensor_than_ours_is_refused(saved_subset, tensors):
    save_file(tensors, saved_subset / "prefix.safetensors")
    with pytest.raises(InputError):
        Prefix.load(saved_subset)


@pytest.mark.parametrize("cut", [0, 7, 60, -1])
@pytest.mark.parametrize("where", [{}, {"layers": [0, 2]}], ids=["peft", "ours"])
def test_a_truncated_tensor_file_is_named(tmp_path, config, where, cut):
    flat(config, **where).save(tmp_path)
    path = next(tmp_path.glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(InputError, match=f"{path.name} is not a whole safetensors file"):
        Prefix.load(tmp_path)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", [{}, {"position_offset": 0}], ids=["peft", "ours"])
def test_nan_in_a_prefix_is_refused(tmp_path, config, where, bad):
    prefix = flat(config, **where)
    prefix.save(tmp_path / "whole")
    prefix.kv[1, 0, 2, 3, 4] = bad
    with pytest.raises(InputError, match="cannot save a prefix that holds NaN or infinity"):
        prefix.save(tmp_path / "never")
    (path,) = (tmp_path / "whole").glob("*.safetensors")
    tensors = {name: a.copy() for name, a in load_file(path).items()}
    for a in tensors.values():
        a.flat[5] = bad
    save_file(tensors, path)
    with pytest.raises(InputError, match="holds NaN or infinity: it is damaged"):
        Prefix.load(tmp_path / "whole")


def test_the_mlp_of_another_base_is_refused(tmp_path, config, base):
    Prefix.mlp(config, P, hidden=7).save(tmp_path, base)
    assert isinstance(MLPPrefix.load(tmp_path, base), MLPPrefix)
    other = random_model(config, seed=77, dtype="float32")
    for model, known in ((other, None), (base, other.identity())):
        with pytest.raises(InputError, match=rf"in '{tmp_path}' was trained on another base"):
            MLPPrefix.load(tmp_path, model, base=known)


def test_a_missing_or_empty_folder_is_named(tmp_path, base):
    with pytest.raises(InputError, match=r"prefix folder '.*absent' does not exist"):
        Prefix.load(tmp_path / "absent", base)
    with pytest.raises(InputError, match=r"holds no prefix: expected adapter_model\.safetensors"):
        Prefix.load(tmp_path, base)
    with pytest.raises(InputError, match=r"prefix folder '.*absent' does not exist"):
        MLPPrefix.load(tmp_path / "absent")
    with pytest.raises(InputError, match="holds no MLP"):
        MLPPrefix.load(tmp_path)


def test_the_sentence_about_pefts_pickle_gives_the_command_that_converts_it(tmp_path, config, base):
    prefix = flat(config)
    prefix.save(tmp_path, base)
    unmarked(tmp_path)
    state = {"prompt_embeddings": torch.tensor(load_file(tmp_path / PEFT_TENSOR)[KV].copy())}
    (tmp_path / PEFT_TENSOR).unlink()
    torch.save(state, tmp_path / "adapter_model.bin")
    said = (
        r"has no adapter_model\.safetensors: adapter_model\.bin is a pickle, .*never opened: conv"
    )
    with pytest.raises(InputError, match=said) as error:
        Prefix.load(tmp_path, base)
    (command,) = re.findall(r"`python -c \"(.*?)\"`", str(error.value))
    subprocess.run([sys.executable, "-c", command], cwd=tmp_path, check=True)
    assert np.array_equal(Prefix.load(tmp_path, base).kv, prefix.kv.astype(np.float32))


@pytest.mark.parametrize("name", ["prefix.pt", "pytorch_model.bin"])
def test_a_prefix_in_another_pickle_is_never_opened(tmp_path, base, name):
    (tmp_path / name).write_bytes(b"\x80\x02.")
    with pytest.raises(InputError, match=rf"has no adapter_model\.safetensors: {name} is a pickle"):
        Prefix.load(tmp_path, base)


@pytest.mark.parametrize("file", ["adapter_config.json", PEFT_TENSOR, "minprefix.json"])
def test_a_prefix_that_git_lfs_has_not_fetched_says_so(tmp_path, config, base, file):
    flat(config).save(tmp_path, base)
    (tmp_path / file).write_bytes(POINTER)
    with pytest.raises(InputError, match=rf"{file} is a Git LFS pointer, .*: run `git lfs pull`"):
        Prefix.load(tmp_path, base)
    with pytest.raises(InputError, match=rf"{file} is a Git LFS pointer, .*: run `git lfs pull`"):
        verify(tmp_path, base)


def test_an_mlp_that_git_lfs_has_not_fetched_says_so(saved_mlp):
    (saved_mlp / "mlp.safetensors").write_bytes(POINTER)
    with pytest.raises(InputError, match=r"mlp\.safetensors is a Git LFS pointer"):
        MLPPrefix.load(saved_mlp)


def test_our_tensor_without_minprefix_json_is_refused(saved_subset):
    (saved_subset / "minprefix.json").unlink()
    with pytest.raises(InputError, match=r"prefix\.safetensors with minprefix\.json"):
        Prefix.load(saved_subset)


@pytest.mark.parametrize("damage", ["missing", "extra", "shape", "whole", "nan", "integer"])
def test_a_damaged_mlp_is_refused_by_name(saved_mlp, damage):
    path = saved_mlp / "mlp.safetensors"
    p = {name: a.copy() for name, a in load_file(path).items()}
    if damage == "missing":
        del p["weight_1"]
    elif damage == "extra":
        p["weight_3"] = p["weight_1"]
    elif damage == "shape":
        p["weight_1"] = p["weight_1"][:, :-1]
    elif damage == "nan":
        p["weight_1"][0, 0] = np.nan
    elif damage == "integer":
        p["weight_1"] = p["weight_1"].astype(np.int64)
    save_file(p, path)
    if damage == "whole":
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"mlp\.safetensors"):
        MLPPrefix.load(saved_mlp)


@pytest.mark.parametrize("name", ["adapter_model", "prefix", "mlp"])
def test_a_file_of_another_save_is_refused_with_both_fingerprints(tmp_path, config, name):
    where = {"layers": [0, 2]} if name == "prefix" else {}
    for folder, seed in (("one", 1), ("two", 2)):
        Prefix.mlp(config, P, hidden=7, seed=seed, **where).save(tmp_path / folder)
    path = tmp_path / "one" / f"{name}.safetensors"
    was = hashlib.sha256(path.read_bytes()).hexdigest()
    path.write_bytes((tmp_path / "two" / path.name).read_bytes())
    now = hashlib.sha256(path.read_bytes()).hexdigest()
    sentence = (
        rf"{path.name} has sha256 {now[:12]}\.\.\., and minprefix\.json records sha256 {was[:12]}"
    )
    with pytest.raises(InputError, match=sentence):
        (MLPPrefix if name == "mlp" else Prefix).load(tmp_path / "one")


# ---- the fingerprint of a tokenizer ----


def word_level(words):
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


def test_a_prefix_of_another_tokenizer_is_refused_with_both_fingerprints(tmp_path, base):
    base.tokenizer = word_level(["<unk>", "a", "b"])
    flat(base.config).save(tmp_path, base)
    Prefix.load(tmp_path, base)
    was = base.tokenizer_fingerprint()
    base.tokenizer = word_level(["<unk>", "b", "a"])
    now = base.tokenizer_fingerprint()
    sentence = (
        rf"was trained on another tokenizer: that of 'random' \(sha256 {was[:12]}\.\.\.\), and "
        rf"this is 'random' \(sha256 {now[:12]}"
    )
    with pytest.raises(InputError, match=sentence):
        Prefix.load(tmp_path, base)
    base.tokenizer = None  # token ids are all that such a user has
    Prefix.load(tmp_path, base)


def test_the_fingerprint_of_a_tokenizer_sees_tokens_merges_and_how_text_is_split(base):
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(["the red fox and the green fox"] * 3, 280, show_progress=False)
    whole = json.loads(bpe.to_str())
    assert len(whole["model"]["merges"]) > 3

    def of(**changed):
        value = json.loads(bpe.to_str())
        value["model"] |= changed.pop("model", {})
        base.tokenizer = Tokenizer.from_str(json.dumps(value | changed))
        return base.tokenizer_fingerprint()

    merges, vocab = whole["model"]["merges"], dict(whole["model"]["vocab"])
    first, second = list(vocab)[:2]
    vocab[first], vocab[second] = vocab[second], vocab[first]
    seen = {
        of(),
        of(model={"merges": [merges[1], merges[0], *merges[2:]]}),
        of(model={"vocab": vocab}),
        of(normalizer={"type": "Lowercase"}),
        of(pre_tokenizer=whole["pre_tokenizer"] | {"add_prefix_space": True}),
    }
    assert len(seen) == 5
    assert of(padding=None) == of()
    older = [" ".join(pair) for pair in merges]  # as older versions wrote them
    assert of(model={"merges": older}) == of()


# ---- the fingerprint of a base ----


def stored(tmp_path, model, dtype, start="transformer."):
    """`model` in a file of its own, its values rounded to bfloat16 and float16, then as `dtype`."""
    folder = tmp_path / f"{dtype}-{len(start)}"
    model.save(folder)
    tensors = {
        start + name: torch.tensor(np.array(a)).bfloat16().half().to(dtype)
        for name, a in model.weights.items()
    }
    save_torch(tensors, folder / "model.safetensors", {"format": "pt"})
    return GPT2.load(folder)


def test_the_fingerprint_is_that_of_the_values_not_of_the_file(tmp_path, base):
    one = stored(tmp_path, base, torch.float32)
    assert re.fullmatch("[0-9a-f]{64}", one.fingerprint())
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        assert stored(tmp_path, base, dtype).fingerprint() == one.fingerprint()
    assert stored(tmp_path, base, torch.float32, "").fingerprint() == one.fingerprint()
    wide = GPT2.load(tmp_path / "torch.float32-12", dtype="float64")
    assert wide.fingerprint() == one.fingerprint()
    kind_of_complex = GPT2.load(tmp_path / "torch.float32-12", dtype="complex128")
    assert kind_of_complex.fingerprint() == one.fingerprint()


def test_the_fingerprint_changes_with_any_one_weight(config, base):
    seen = {base.fingerprint()}
    for name, a in base.weights.items():
        for at in (0, a.size - 1):
            changed = a.copy()
            changed.flat[at] = np.nextafter(changed.flat[at], np.float32(9))
            seen.add(GPT2(config, base.weights | {name: changed}).fingerprint())
    assert len(seen) == 1 + 2 * len(base.weights)


def test_the_fingerprint_changes_when_two_weights_trade_places(config, base):
    w = dict(base.weights)
    w["h.0.ln_1.bias"], w["h.1.ln_1.bias"] = w["h.1.ln_1.bias"], w["h.0.ln_1.bias"]
    assert GPT2(config, w).fingerprint() != base.fingerprint()
