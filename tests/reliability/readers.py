"""Every reader of files that is fuzzed: good files for it, how it is called, and what a right
answer is, told from the file by other code than the reader's."""

import csv
import hashlib
import io
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import deserialize
from tokenizers import (
    ByteLevelBPETokenizer,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)

from minprefix import GPT2, Batch, Config, InputError, MLPPrefix, Prefix, methods, train
from minprefix.data import pairs, requests
from minprefix.method import Method
from minprefix.optim import AdamW
from minprefix.storage import adapters, artifact, peft, provenance, run
from minprefix.storage.run import State
from minprefix.storage.tokenizer import PROBE
from minprefix.trace import Trace, trace
from minprefix.train import Settings
from tests.reliability import damage

CONFIG = Config(
    n_layer=2, n_head=2, n_embd=8, vocab_size=300, n_positions=32, bos_token_id=0, eos_token_id=0
)
TEXT = (
    "name[The Vaults] | food[Italian] The Vaults serves Italian food. \u00e4\u65e5\U0001f642\n" * 3
)


@dataclass(frozen=True)
class Reader:
    """`make(folder)` writes good folders into it. `files`: those of them that are damaged, by
    pattern. `kind`: see `damage.draw`. `read(folder)` is what is fuzzed; `right(folder, loaded)`
    asserts that what it gave is what the files say. `writes`: whether reading may write into the
    folder. `outside`: whether a link in it may lead elsewhere."""

    name: str
    what: str
    files: tuple[str, ...]
    kind: str
    make: Callable[[Path], None]
    read: Callable[[Path], Any]
    right: Callable[[Path, Any], None]
    writes: bool = False
    outside: bool = False
    times: int = 40  # the size of the input, of memory that it may take beyond a base


def small(seed: int = 0, **changed: Any) -> GPT2:
    return GPT2.random(Config(**{**vars(CONFIG), **changed}), seed)


# ---- models ---------------------------------------------------------------------------------


def put_model(
    folder: Path, model: GPT2, dtype: str = "F32", start: str = "transformer.", masks: bool = False
) -> None:
    """As the files in the wild are: names with or without their start, any precision, masks."""
    folder.mkdir(parents=True)
    write_config(folder, model)
    stored = {start + n: as_stored(a, dtype) for n, a in model.weights.items()}
    if masks:
        stored["h.0.attn.bias"] = ("BOOL", (1, 1, 4, 4), bytes(16))
    (folder / "model.safetensors").write_bytes(file_of(stored))


def write_config(folder: Path, model: GPT2) -> None:
    raw = {"model_type": "gpt2", "activation_function": "gelu_new", **vars(model.config)}
    (folder / "config.json").write_text(json.dumps(raw, indent=1))


Stored = tuple[str, tuple[int, ...], bytes]  # dtype, shape, data


def as_stored(a: np.ndarray, dtype: str) -> Stored:
    if dtype == "BF16":
        data = (a.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16).tobytes()
    else:
        data = a.astype(NUMPY[dtype]).tobytes()
    return dtype, a.shape, data


def file_of(tensors: dict[str, Stored]) -> bytes:
    """A safetensors file: the library writes no bfloat16 without PyTorch."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    body = b""
    for name, (dtype, shape, data) in tensors.items():
        offsets = [len(body), len(body) + len(data)]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": offsets}
        body += data
    return damage.join(json.dumps(header), body)


NUMPY = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "U8": "u1"}


def stored(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a file, as the library itself gives them."""
    tensors = {}
    for name, t in deserialize(path.read_bytes()):
        if t["dtype"] == "BF16":
            a = (np.frombuffer(t["data"], "<u2").astype("<u4") << 16).view("<f4")
        else:
            a = np.frombuffer(t["data"], NUMPY.get(t["dtype"], "u1"))
            if t["dtype"] not in NUMPY:
                continue
        tensors[name] = a.reshape(t["shape"])
    return tensors


def make_weights(folder: Path) -> None:
    put_model(folder / "float32", small())
    put_model(folder / "float16 with masks", small(1), "F16", "", masks=True)
    put_model(folder / "bfloat16", small(2), "BF16")
    put_model(folder / "float64", small(3, n_inner=12), "F64", "")
    put_model(folder / "own head", small(4, tie_word_embeddings=False), start="")
    cached = folder / "hub" / "snapshots" / "0123"  # the hub's cache: links into blobs
    put_model(cached, small(5))
    (folder / "hub" / "blobs").mkdir()
    for path in list(cached.iterdir()):
        path.rename(folder / "hub" / "blobs" / path.name)
        path.symlink_to(Path("../../blobs") / path.name)


def make_shards(folder: Path) -> None:
    for seed, n in enumerate((2, 3)):
        here = folder / f"{n} shards"
        put_model(here, small(seed))
        whole = stored(here / "model.safetensors")
        (here / "model.safetensors").unlink()
        shard_of = {}
        for i in range(n):
            name = f"model-{i + 1:05}-of-{n:05}.safetensors"
            part = {k: as_stored(a, "F32") for k, a in list(whole.items())[i::n]}
            (here / name).write_bytes(file_of(part))
            shard_of |= dict.fromkeys(part, name)
        index = {"metadata": {"total_size": 1}, "weight_map": shard_of}
        (here / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))


def right_model(folder: Path, model: GPT2) -> None:
    raw = json.loads((folder / "config.json").read_text("utf-8-sig"))
    config = vars(model.config)
    for key, value in raw.items():
        if key in ("bos_token_id", "eos_token_id"):  # several are a tuple, none outside counts
            ids = dict.fromkeys(value if isinstance(value, list) else [value])
            want = [i for i in ids if i is not None and 0 <= i < model.config.vocab_size]
            found = config[key] if isinstance(config[key], tuple) else [config[key]]
            assert [i for i in found if i is not None] == want, key
        elif key in config and key != "tie_word_embeddings":
            assert config[key] == value, key
    single, held = folder / "model.safetensors", {}
    if single.exists():
        held = stored(single)
    else:
        index = json.loads((folder / "model.safetensors.index.json").read_text("utf-8-sig"))
        for name in set(index["weight_map"].values()):
            assert "/" not in name
            held |= stored(folder / name)
    held = {name.removeprefix("transformer."): a for name, a in held.items()}
    for name, a in model.weights.items():
        assert a.dtype == np.float32, name
        with np.errstate(all="ignore"):
            want = held[name].astype(np.float32)
        assert a.shape == want.shape, name
        assert a.tobytes() == want.tobytes(), name
    assert ("lm_head.weight" in model.weights) != model.config.tie_word_embeddings
    assert {n for n in held if ".attn.bias" not in n and ".masked_bias" not in n} <= {
        *model.weights, "lm_head.weight"
    }  # fmt: skip
    use(model)
    if model.tokenizer is not None:
        right_tokenizer(model)


def use(model: GPT2, prefix: Prefix | None = None) -> None:
    """Logits of the right shape, or a sentence about NaN in the file."""
    ids = [i % model.config.vocab_size for i in (1, 2, 3)]
    if model.config.n_positions < 3 + (prefix.length if prefix else 0):
        return
    with np.errstate(all="ignore"):  # the numbers are whatever the damage made of them
        try:
            logits = model.logits(Batch.pack([ids]), prefix)
        except InputError as error:
            if "expected finite" not in str(error):
                raise
            return
    assert logits.shape == (3, model.config.vocab_size)


# ---- tokenizers -----------------------------------------------------------------------------


def make_tokenizers(folder: Path) -> None:
    for seed, tokenizer in enumerate((byte_level(), words(), word_pieces(), unigram())):
        put_model(folder / f"tokenizer {seed}", small(seed))
        tokenizer.save(str(folder / f"tokenizer {seed}" / "tokenizer.json"))


def make_vocab_and_merges(folder: Path) -> None:
    for n in (290, 260):
        put_model(folder / f"vocabulary of {n}", small())
        byte_level(n).model.save(str(folder / f"vocabulary of {n}"))


def byte_level(n: int = 290) -> Tokenizer:
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator([TEXT], n, 2, show_progress=False)
    tokenizer.add_special_tokens(["<|endoftext|>"])
    return tokenizer._tokenizer


def words() -> Tokenizer:
    vocab = {"<unk>": 0} | {w: i for i, w in enumerate(sorted(set(TEXT.split())), 1)}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=8)
    return tokenizer


def word_pieces() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=120, special_tokens=["[UNK]"], show_progress=False
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    return tokenizer


def unigram() -> Tokenizer:
    scores = [("<unk>", 0.0)] + [(c, -1.0 - i / 100) for i, c in enumerate(sorted(set(TEXT)))]
    tokenizer = Tokenizer(models.Unigram(scores, 0, False))
    tokenizer.normalizer = normalizers.Replace("|", "/")
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


def right_tokenizer(model: GPT2) -> None:
    assert model.tokenizer is not None
    known = set(model.tokenizer.get_vocab(with_added_tokens=True).values())
    for text in (PROBE, "hello 1 2", "", PROBE[::-1]):
        ids = model.encode(text)
        assert set(ids) <= known
        model.decode(ids).encode()  # text, without half characters


def right_vocab(folder: Path, model: GPT2) -> None:
    right_model(folder, model)
    vocab = json.loads((folder / "vocab.json").read_text("utf-8-sig"))
    held = model.tokenizer.get_vocab(with_added_tokens=True)
    assert vocab.items() <= held.items()
    assert len(held) <= len(vocab) + 1  # and the end of a text


# ---- prefixes -------------------------------------------------------------------------------

BASE = small()


def prefixes() -> dict[str, Prefix]:
    config = BASE.config
    return {
        "flat": Prefix.normal(config, 3, 0.1, 0),
        "layers": Prefix.normal(config, 2, 0.1, 1, layers=[1]),
        "positions": Prefix.normal(config, 2, 0.1, 2, position_offset=0),
        "mlp": Prefix.mlp(config, 3, hidden=4, seed=3),
    }


def make_prefixes(
    folder: Path, names: Sequence[str] = ("flat", "layers", "positions", "mlp")
) -> None:
    for name in names:
        prefixes()[name].save(folder / name, BASE)


def make_mlps(folder: Path) -> None:
    make_prefixes(folder, ["mlp"])


def make_peft(folder: Path) -> None:
    """What PEFT alone writes: two files."""
    make_prefixes(folder, ["flat", "mlp"])
    for name in ("flat", "mlp"):
        for path in (folder / name).iterdir():
            if not path.name.startswith("adapter_"):
                path.unlink()


def read_prefix(folder: Path) -> Prefix:
    return Prefix.load(folder, BASE)


def right_prefix(folder: Path, prefix: Prefix) -> None:
    kv, single = prefix.kv, folder / peft.TENSOR
    assert kv.dtype == np.float32
    assert np.isfinite(kv).all()
    assert kv.shape[1:3] == (2, BASE.config.n_head)
    assert len(prefix.layers) == kv.shape[0]
    if single.exists():
        L, _, NH, P, hs = kv.shape
        with np.errstate(all="ignore"):
            t = stored(single)["prompt_embeddings"].astype(np.float32)
        assert np.array_equal(kv, t.reshape(P, L, 2, NH, hs).transpose(1, 2, 3, 0, 4))
        config = json.loads((folder / peft.CONFIG).read_text("utf-8-sig"))
        assert (config["num_layers"], config["num_virtual_tokens"]) == (L, P)
    else:
        with np.errstate(all="ignore"):
            assert any(
                np.array_equal(kv, a.astype(np.float32))
                for a in stored(folder / artifact.OWN_TENSOR).values()
            )
    provenance.read_about(folder)
    use(BASE, prefix)


def read_mlp(folder: Path) -> MLPPrefix:
    return MLPPrefix.load(folder, BASE)


def right_mlp(folder: Path, prefix: MLPPrefix) -> None:
    held = stored(folder / artifact.MLP)
    for name, a in prefix.parameters.items():
        assert np.isfinite(a).all()
        with np.errstate(all="ignore"):
            assert np.array_equal(a, held[name].astype(np.float32)), name
    with np.errstate(all="ignore"):
        kv = prefix.kv
    assert kv.shape[1] == 2


# ---- rivals -----------------------------------------------------------------------------------


def make_rivals(folder: Path) -> None:
    """All of them, with no parameter that is zero."""
    rng = np.random.default_rng(0)
    for method in (
        methods.FineTuning.start(BASE),
        methods.TopLayers.start(BASE, 1),
        methods.PromptTuning.normal(BASE, 3),
        methods.PTuning.start(BASE, 2, hidden=4),
        methods.Infix.start(BASE, 2),
        methods.LoRA.start(BASE, 2, targets=["attn.c_attn", "c_proj"]),
        methods.Adapters.start(BASE, 2),
    ):
        for name, a in method.parameters.items():
            method.parameters[name] = (a + rng.normal(0, 0.02, a.shape)).astype(np.float32)
        method.save(folder / method.name, BASE)


def make_peft_rivals(folder: Path) -> None:
    """What PEFT alone writes: two files."""
    make_rivals(folder)
    for path in folder.glob("*/*"):
        if not (path.parent / peft.CONFIG).exists() or not path.name.startswith("adapter_"):
            path.unlink()


def read_rival(folder: Path) -> Method:
    loaded = methods.load(folder, BASE)
    assert isinstance(loaded, Method)  # no damage makes a prefix of it
    return loaded


def right_rival(folder: Path, method: Method) -> None:
    """Every number of the method is in its files, and no other is."""
    own = [folder / name for name in (artifact.METHOD, artifact.ENCODER)]
    path = next((path for path in own if path.exists()), folder / peft.TENSOR)
    with np.errstate(all="ignore"):
        held = {name: a.astype(np.float32) for name, a in stored(path).items()}
    names = {"prompt": "prompt_embeddings"}
    for name, a in method.parameters.items():
        assert a.dtype == np.float32
        assert np.isfinite(a).all()
        if method.name == "lora":
            (name,) = (full for full in held if full.endswith(f".{name}.weight"))
            a = a.T
        assert np.array_equal(a, held.pop(names.get(name, name))), name
    assert not held
    if method.name == "lora":
        config = json.loads((folder / peft.CONFIG).read_text("utf-8-sig"))
        assert method.options["rank"] == config["r"]
        assert method.options["alpha"] == config.get("lora_alpha", 8)
    batch = Batch.pack([[1, 2, 3]])
    with np.errstate(all="ignore"):
        method.loss(BASE, batch)


# ---- the adapters library's folders ----------------------------------------------------------


def make_adapters(folder: Path) -> None:
    config = BASE.config
    for n, layers in enumerate((None, [1])):
        prefix = Prefix.normal(config, 3, 0.1, n, layers=layers, position_offset=0)
        adapters.save_adapters(prefix.saved, folder / f"{n}", n_layer=config.n_layer)


def read_adapters(folder: Path) -> Prefix:
    return Prefix.of(adapters.load_adapters(folder, BASE.config.n_head))


def right_adapters(folder: Path, prefix: Prefix) -> None:
    _, tensor = deserialize((folder / adapters.TENSORS).read_bytes())[0]
    config = json.loads((folder / adapters.CONFIG).read_text("utf-8-sig"))["config"]
    assert np.isfinite(prefix.kv).all()
    assert prefix.position_offset == 0
    assert (prefix.length, prefix.kv.size) == (config["prefix_length"], tensor["shape"][0])
    assert not set(prefix.layers) & set(config["leave_out"])


# ---- a saved trace ---------------------------------------------------------------------------


def make_traces(folder: Path) -> None:
    batch = Batch.pack([[1, 2, 3]])
    for n, names in enumerate(("loss*", "blocks.0.attn.*")):
        traced = trace(BASE, batch, prefixes()["flat"], names=names, arguments=n == 1)
        traced.save(folder / f"{n}")


def right_trace(folder: Path, found: Trace) -> None:
    about = json.loads((folder / "trace.json").read_text("utf-8-sig"))
    tensors = dict(deserialize((folder / "trace.safetensors").read_bytes()))
    assert len(found) == len(about["records"]) == len(tensors)
    for n, (record, entry) in enumerate(zip(found, about["records"], strict=True)):
        assert (record.name, record.line) == (entry["name"], entry["line"])
        assert list(record.value.shape) == tensors[str(n)]["shape"]
        assert "\n" not in repr(record.summary)


# ---- data -----------------------------------------------------------------------------------


def make_jsonl(folder: Path) -> None:
    rows = [
        [{"source": "a\u00e4 \U0001f642", "target": "b"}, {"source": "c", "target": ["d", "e"]}],
        [{"n": 1, "source": "x" * 50, "target": "y\nz"}] * 3,
        [{"source": str(i), "target": str(-i), "more": {"a": [i, None]}} for i in range(20)],
    ]
    for n, of in enumerate(rows):
        (folder / f"{n}").mkdir(parents=True)
        text = "".join(json.dumps(row, ensure_ascii=n == 1) + "\n" for row in of)
        (folder / f"{n}" / "data.jsonl").write_text(text, "utf-8")


def make_requests(folder: Path) -> None:
    rows = [
        [
            {"prompt": "a\u00e4 \U0001f642", "prefix": "formal", "id": 7},
            {"prompt": "b", "prefix": None},
        ],
        [{"prompt": "x" * 50, "prefix": "brief", "more": {"a": [1, None]}}] * 4,
    ]
    for n, of in enumerate(rows):
        (folder / f"{n}").mkdir(parents=True)
        text = "".join(json.dumps(row, ensure_ascii=n == 1) + "\n" for row in of)
        (folder / f"{n}" / "requests.jsonl").write_text(text, "utf-8")


def read_the_requests(folder: Path) -> list[requests.Request]:
    return requests.read_requests(folder / "requests.jsonl")


def right_requests(folder: Path, found: list[requests.Request]) -> None:
    text = (folder / "requests.jsonl").read_text("utf-8-sig")
    rows = [json.loads(line) for line in text.split("\n") if line.strip()]
    assert [request.fields for request in found] == rows
    assert [(r.prompt, r.prefix) for r in found] == [(v["prompt"], v["prefix"]) for v in rows]
    json.dumps([r.fields for r in found], allow_nan=False, ensure_ascii=False).encode()


def make_csv(folder: Path) -> None:
    rows = [
        [("source", "target"), ("a", "b"), ('say "c"', "d\ne"), ("f, g", "\u00e4")],
        [("n", "mr", "ref"), *((i, f"name[{i}]", f"It is {i}.") for i in range(20))],
    ]
    for n, of in enumerate(rows):
        (folder / f"{n}").mkdir(parents=True)
        with open(folder / f"{n}" / "data.csv", "w", newline="", encoding="utf-8") as f:
            csv.writer(f).writerows(of)


def read_data(folder: Path) -> tuple[list[pairs.Pair], str]:
    path = next(folder.glob("data.*"), folder / "data.csv")
    return pairs.read_pairs(path), pairs.fingerprint(path)


def right_data(folder: Path, loaded: tuple[list[pairs.Pair], str]) -> None:
    found, fingerprint = loaded
    path = next(folder.glob("data.*"))
    data = path.read_bytes()
    assert fingerprint == hashlib.sha256(data).hexdigest()
    text = data.decode("utf-8").removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    assert all(isinstance(x, str) and x.encode() is not None for pair in found for x in pair)
    lines = text.count("\n") + 1
    assert all(1 <= int(p.where.rpartition(" ")[2]) <= lines for p in found)
    if path.suffix == ".csv":
        before = csv.field_size_limit(len(text) + 1)  # the process's: the reader sets its own
        try:
            lines_of = list(csv.reader(io.StringIO(text, newline="")))
        finally:
            csv.field_size_limit(before)
        header, *rows = [row for row in lines_of if "".join(row).strip()]  # without text: no row
        names = ("source", "target") if {"source", "target"} <= set(header) else ("mr", "ref")
        a, b = map(header.index, names)
        assert [(p.source, p.target) for p in found] == [(row[a], row[b]) for row in rows]
    else:
        rows = [json.loads(line) for line in text.split("\n") if line.strip()]
        each = [r["target"] if isinstance(r["target"], list) else [r["target"]] for r in rows]
        want = [(r["source"], t) for r, ts in zip(rows, each, strict=True) for t in ts]
        assert [(p.source, p.target) for p in found] == want


# ---- the state of a run ---------------------------------------------------------------------

SETTINGS = Settings(steps=5)
EXAMPLES = [pairs.Encoded([1, 2, 3, 4], 2)]


def run_of(name: str) -> tuple[Prefix, dict[str, Any]]:
    """What a run of this name begins with: it must be the same to be resumed."""
    prefix = prefixes()[name]
    about = {"command": "train", "options": {"lr": 0.1, "data": "a.jsonl"}, "data_sha256": "a" * 64}
    return prefix, train._record(BASE, prefix, EXAMPLES, SETTINGS, None, about)


def state_of(prefix: Prefix) -> State:
    """At the start of a run."""
    return State(prefix.parameters, AdamW(), start={"kv": prefix.kv.copy()})


def make_states(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("flat", "mlp"):
        prefix, record = run_of(name)
        (folder / name).mkdir(parents=True)
        best = {n: p.copy() for n, p in prefix.parameters.items()}
        state = State(prefix.parameters, AdamW(), 3, 1.5, 2, best)
        for _ in range(3):
            grads = {
                n: rng.normal(size=p.shape).astype(p.dtype) for n, p in prefix.parameters.items()
            }
            state.adam.step(prefix.parameters, grads, 0.01)
        run.save_state(folder / name, state, record)


def read_state(folder: Path) -> tuple[Prefix, State]:
    prefix, record = run_of(folder.name)
    run.load_options(folder, "train")
    state = state_of(prefix)
    run.load_state(folder, state, record)
    return prefix, state


def right_state(folder: Path, loaded: tuple[Prefix, State]) -> None:
    prefix, state = loaded
    held = stored(folder / run.STATE)
    assert type(state.step) is int
    assert 0 <= state.step <= SETTINGS.steps
    assert state.adam.t == state.step
    assert state.best_loss is None or math.isfinite(state.best_loss)
    for group, arrays in (
        ("parameter", prefix.parameters),
        ("m", state.adam.m),
        ("v", state.adam.v),
        ("best", state.best),
    ):
        assert {n: a.shape for n, a in arrays.items()} in (
            {n: p.shape for n, p in prefix.parameters.items()}, {}
        )  # fmt: skip
        for name, a in arrays.items():
            assert np.array_equal(a, held[f"{group}.{name}"])
            assert a.flags.writeable
    with np.errstate(all="ignore"):
        state.adam.step(prefix.parameters, {n: a * 0 for n, a in prefix.parameters.items()}, 0.1)


def make_logs(folder: Path) -> None:
    for name, n in (("short", 3), ("long", 40)):
        (folder / name).mkdir(parents=True)
        lines = [{"step": i, "loss": 2.0 / i, "lr": 0.1} for i in range(1, n)]
        lines[-1]["valid_loss"] = 1.0
        (folder / name / run.LOG).write_text("".join(json.dumps(x) + "\n" for x in lines))


def read_log(folder: Path) -> Any:
    run.Log(folder / run.LOG, 30)
    return run.log_lines(folder / run.LOG)


def right_log(folder: Path, loaded: Any) -> None:
    assert all(type(line["step"]) is int and line["step"] <= 30 for line in loaded)
    numbers = [line[name] for line in loaded for name in ("loss", "valid_loss") if name in line]
    assert all(type(x) is float for x in numbers)


# ---- all of them ----------------------------------------------------------------------------

READERS = {
    reader.name: reader
    for reader in (
        Reader("weights", "model.safetensors, six kinds", ("model.safetensors",), "tensors",
               make_weights, GPT2.load, right_model),
        Reader("shards", "the shards of a model", ("model-00*",), "tensors",
               make_shards, GPT2.load, right_model),
        Reader("index", "the index of shards", ("*.index.json",), "json",
               make_shards, GPT2.load, right_model),
        Reader("config", "config.json", ("config.json",), "json",
               make_weights, GPT2.load, right_model),
        Reader("tokenizer", "tokenizer.json, four kinds", ("tokenizer.json",), "json",
               make_tokenizers, GPT2.load, right_model),
        Reader("vocabulary", "vocab.json", ("vocab.json",), "json",
               make_vocab_and_merges, GPT2.load, right_vocab),
        Reader("merges", "merges.txt", ("merges.txt",), "lines",
               make_vocab_and_merges, GPT2.load, right_vocab),
        Reader("peft config", "adapter_config.json, of PEFT alone", (peft.CONFIG,), "json",
               make_peft, read_prefix, right_prefix),
        Reader("peft tensor", "adapter_model.safetensors", (peft.TENSOR,), "tensors",
               make_peft, read_prefix, right_prefix),
        Reader("prefix", "minprefix.json, four kinds of prefix", (provenance.ABOUT,), "json",
               make_prefixes, read_prefix, right_prefix, writes=True),
        Reader("prefix tensor", "the tensor beside minprefix.json",
               (peft.TENSOR, artifact.OWN_TENSOR), "tensors",
               make_prefixes, read_prefix, right_prefix, writes=True),
        Reader("mlp", "a prefix's MLP", (artifact.MLP, provenance.ABOUT), "tensors or json",
               make_mlps, read_mlp, right_mlp, writes=True),
        Reader("rival", "seven rivals, each with its record",
               (provenance.ABOUT, peft.CONFIG, peft.TENSOR, artifact.METHOD, artifact.ENCODER),
               "tensors or json", make_rivals, read_rival, right_rival, writes=True),
        Reader("peft rival", "a rival's two files, of PEFT alone",
               (peft.CONFIG, peft.TENSOR), "tensors or json",
               make_peft_rivals, read_rival, right_rival),
        Reader("jsonl", "pairs in JSONL", ("data.jsonl",), "lines",
               make_jsonl, read_data, right_data, outside=True, times=160),
        Reader("adapters", "a folder of the adapters library",
               (adapters.CONFIG, adapters.TENSORS), "tensors or json",
               make_adapters, read_adapters, right_adapters),
        Reader("trace", "a saved trace", ("trace.json", "trace.safetensors"), "tensors or json",
               make_traces, Trace.load, right_trace),
        Reader("requests", "requests in JSONL", ("requests.jsonl",), "lines",
               make_requests, read_the_requests, right_requests, outside=True, times=160),
        Reader("csv", "pairs in CSV", ("data.csv",), "lines",
               make_csv, read_data, right_data, outside=True, times=160),
        Reader("state", "the state that a run resumes from", (run.STATE,), "state",
               make_states, read_state, right_state),
        Reader("log", "the log of a run that is resumed", (run.LOG,), "lines",
               make_logs, read_log, right_log, writes=True),
    )
}  # fmt: skip
