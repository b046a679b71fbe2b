"""The operations on a GPU, and the house around them. Each test runs twice: on the device, where
there is one, and on the stand-in (`tests.gpu.stand_in`), whose arrays refuse what CuPy's refuse and
whose kernels are the same source compiled for the CPU."""

import ast
import copy
import importlib
import inspect
import json
import operator
import re
import subprocess
import sys
import tracemalloc
import types
from pathlib import Path

import numpy as np
import pytest
import torch

import minprefix.ops as ops
from minprefix import GPT2, Batch, Config, InputError, MLPPrefix, Prefix, loss, loss_and_grad
from minprefix.budget import step_bytes
from minprefix.cli import main
from minprefix.conformance.implementation import Implementation
from minprefix.conformance.suite import run
from minprefix.data.pairs import Encoded
from minprefix.generate import Decoding, generate_ids
from minprefix.methods import METHODS
from minprefix.model import loss_and_weight_grads
from minprefix.optim import AdamW
from minprefix.train import Settings, train
from tests.conftest import hf_logits, relative_error, to_hf
from tests.gpu import stand_in

KERNELS = Path(ops.__file__).with_name("cupy_kernels.cu")
WORDS = Config(3, 2, 16, 50, 40, eos_token_id=49)


def real_cupy():
    """CuPy, or why it cannot be used."""
    try:
        ops._check_gpu()
    except ops.Unavailable as error:
        return None, str(error)
    import cupy

    return cupy, None


@pytest.fixture(params=["stand-in", pytest.param("device", marks=pytest.mark.gpu)])
def cupy(request, monkeypatch):
    """CuPy, and `minprefix.ops.cupy_ops` over it."""
    if request.param == "device":
        cupy, why_not = real_cupy()
        if cupy is None:
            pytest.skip(why_not)
        yield cupy
        return
    if not stand_in.available():
        pytest.skip("the stand-in compiles the kernels with g++, which is not installed")
    monkeypatch.setitem(sys.modules, "cupy", stand_in.module())
    # set before they are removed: what is not there is put back by nobody, and the operations over
    # the stand-in would stay behind for the tests on the device
    monkeypatch.setitem(sys.modules, "minprefix.ops.cupy_ops", None)
    monkeypatch.delitem(sys.modules, "minprefix.ops.cupy_ops")
    monkeypatch.setattr(ops, "cupy_ops", None, raising=False)
    monkeypatch.delattr(ops, "cupy_ops")
    ops._cupy_ops.cache_clear()
    stand_in.crossed.clear()
    yield sys.modules["cupy"]
    ops._cupy_ops.cache_clear()


@pytest.fixture
def cupy_ops(cupy):
    return ops.get("cupy")


def model_and_batch(dtype="float64", seed=0):
    model = GPT2.random(WORDS, seed, dtype)
    rng = np.random.default_rng(seed)
    for a in model.weights.values():  # biases and gains that are not 0 and 1
        a += rng.normal(0, 0.1, a.shape).astype(dtype)
    sequences = [rng.integers(0, 48, n) for n in (7, 1, 12, 4)]
    return model, Batch.pack(sequences, loss_from=[3, 1, 1, 4], prefix=[0, 1, 0, 1])


def prefixes(dtype="float64"):
    return [Prefix.normal(WORDS, P, 1.0, seed, dtype=dtype) for seed, P in ((1, 5), (2, 3))]


def on(where, *things):
    return [thing.to(where) for thing in things]


# ---- the operations ---------------------------------------------------------------------------


def test_it_has_the_contracts_functions_and_argument_names(cupy_ops):
    for name, wanted in vars(ops.contract.Ops).items():
        if inspect.isfunction(wanted) and name[0] != "_":
            own = list(inspect.signature(getattr(cupy_ops, name)).parameters)
            assert own == list(inspect.signature(wanted).parameters)[1:], name


@pytest.mark.long
def test_it_passes_the_reference_suite(cupy_ops):
    results = run(Implementation(cupy_ops, "cupy"))
    assert len(results) > 100
    assert {r.check: r.findings for r in results if r.status != "passed"} == {}


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-10), ("float32", 1e-5)])
def test_gradients_agree_with_the_reference_in_float64(cupy, dtype, tolerance):
    model, batch = model_and_batch()
    wanted, dkvs = loss_and_grad(model, prefixes(), batch, ops="reference")
    _, dweights = loss_and_weight_grads(model, batch, prefixes(), ops="reference")
    model.weights = {n: a.astype(dtype) for n, a in model.weights.items()}
    (there, *there_prefixes) = on("cupy", model, *prefixes(dtype))
    got, got_dkvs = loss_and_grad(there, there_prefixes, batch)
    assert abs(got - wanted) <= tolerance * abs(wanted)
    for dkv, got_dkv in zip(dkvs, got_dkvs, strict=True):
        assert got_dkv.dtype == dtype
        assert relative_error(cupy.asnumpy(got_dkv), dkv) < tolerance
    _, got_dweights = loss_and_weight_grads(there, batch, there_prefixes)
    assert got_dweights.keys() == dweights.keys()
    for name, a in dweights.items():
        assert relative_error(cupy.asnumpy(got_dweights[name]), a) < tolerance, name


def test_float32_is_float32_at_a_width_where_tensor_cores_would_be_taken(cupy):
    """cuBLAS is free to choose its way through a product; factors of 11 bits would show here."""
    wide = Config(2, 12, 768, 300, 64)
    model, prefix = GPT2.random(wide, dtype="float64"), Prefix.normal(wide, 10, dtype="float64")
    rng = np.random.default_rng(0)
    batch = Batch.pack([rng.integers(0, 300, n) for n in (50, 40, 54)])
    _, wanted = loss_and_grad(model, prefix, batch)
    model.weights = {n: a.astype(np.float32) for n, a in model.weights.items()}
    prefix = Prefix(prefix.kv.astype(np.float32))
    _, dkv = loss_and_grad(*on("cupy", model, prefix), batch)
    assert relative_error(cupy.asnumpy(dkv), wanted) < 1e-5


def test_two_runs_give_the_same_bytes(cupy):
    def once():
        model, batch = model_and_batch("float32")
        (there, *there_prefixes) = on("cupy", model, *prefixes("float32"))
        value, dkvs = loss_and_grad(there, there_prefixes, batch)
        _, dweights = loss_and_weight_grads(there, batch, there_prefixes)
        return value, [cupy.asnumpy(a).tobytes() for a in (*dkvs, *dweights.values())]

    assert once() == once()


def test_logits_keys_and_values_and_the_loss(cupy):
    model, batch = model_and_batch()
    (there, *there_prefixes) = on("cupy", model, *prefixes())
    wanted = model.logits(batch, prefixes())
    assert relative_error(cupy.asnumpy(there.logits(batch, there_prefixes)), wanted) < 1e-12
    assert abs(loss(there, batch, there_prefixes) - loss(model, batch, prefixes())) < 1e-12
    ids = [3, 1, 4, 1, 5]
    wanted = model.keys_values(ids)
    assert relative_error(cupy.asnumpy(there.keys_values(ids)), wanted) < 1e-12


def test_logits_and_gradient_agree_with_transformers(cupy):
    model, _ = model_and_batch()
    prefix = Prefix.normal(WORDS, 4, 1.0, dtype="float64")
    ids = np.array([3, 1, 4, 1, 5, 9, 2, 6])
    kv = torch.tensor(prefix.kv, requires_grad=True)
    wanted = hf_logits(to_hf(model), ids, kv, offset=4)
    nll = torch.nn.functional.cross_entropy(wanted[:-1], torch.tensor(ids[1:]))
    (wanted_dkv,) = torch.autograd.grad(nll, kv)
    there, there_prefix = on("cupy", model, prefix)
    batch = Batch.pack([ids])
    got = cupy.asnumpy(there.logits(batch, there_prefix))
    assert relative_error(got, wanted.detach().numpy()) < 1e-10
    value, dkv = loss_and_grad(there, there_prefix, batch)
    assert abs(value - nll.item()) < 1e-10 * nll.item()
    assert relative_error(cupy.asnumpy(dkv), wanted_dkv.numpy()) < 1e-10


def test_prefixes_of_no_length_and_in_some_layers(cupy):
    model, batch = model_and_batch()
    some = [Prefix.normal(WORDS, 4, 1.0, layers=[1, 2], dtype="float64"), Prefix.zero(WORDS, 0)]
    some[1] = Prefix.zero(WORDS, 0, dtype="float64")
    wanted, dkvs = loss_and_grad(model, some, batch)
    (there, *there_prefixes) = on("cupy", model, *some)
    got, got_dkvs = loss_and_grad(there, there_prefixes, batch)
    assert abs(got - wanted) < 1e-12
    for dkv, got_dkv in zip(dkvs, got_dkvs, strict=True):
        assert relative_error(cupy.asnumpy(got_dkv), dkv) < 1e-12


def test_keys_that_lie_apart_are_read_where_they_lie(cupy_ops, cupy):
    """A cache of keys is a slice of a longer one, and its innermost axis may not be whole."""
    rng = np.random.default_rng(0)
    q, k, v = rng.normal(size=(3, 6, 2, 4))
    long = rng.normal(size=(2, 9, 4))
    apart = rng.normal(size=(2, 4, 5))
    offsets = np.array([0, 2, 6])
    keys = [long[:, 3:7], apart.swapaxes(1, 2)]
    wanted, _ = ops.reference.attention(q, k, v, keys, keys, offsets)
    there_long, there_apart = cupy.asarray(long), cupy.asarray(apart)
    there = [there_long[:, 3:7], there_apart.swapaxes(1, 2)]
    arrays = [cupy.asarray(a) for a in (q, k, v)]
    got, _ = cupy_ops.attention(*arrays, there, there, offsets)
    assert relative_error(cupy.asnumpy(got), wanted) < 1e-12


def test_what_an_operation_is_given_may_be_every_other_number(cupy_ops, cupy):
    rng = np.random.default_rng(0)

    def check(operation, *given):
        """Each array as it is, and as every other number along each axis of a larger one."""
        wanted = getattr(ops.reference, operation)(*map(copy.copy, given))
        apart = []
        for a in given:
            if not isinstance(a, np.ndarray):
                apart.append(a)
                continue
            large = np.full([2 * n for n in a.shape], a.flat[0])
            every_other = (slice(None, None, 2),) * a.ndim
            large[every_other] = a
            apart.append(cupy.asarray(large)[every_other])
        got = getattr(cupy_ops, operation)(*apart)
        wanted, got = (each if isinstance(each, tuple) else (each,) for each in (wanted, got))
        for a, b in zip(wanted, got, strict=True):
            if isinstance(a, np.ndarray | np.generic):
                assert relative_error(cupy.asnumpy(b), a) < 1e-12, operation

    x, gain, bias, weight = (rng.normal(size=s) for s in ((6, 8), 8, 8, (8, 5)))
    wte, wpe, logits, weights = (rng.normal(size=s) for s in ((9, 8), (7, 8), (6, 5), 6))
    tokens, positions, targets = (rng.integers(0, n, 6) for n in (9, 7, 5))
    check("embed", tokens, positions, wte, wpe)
    check("embed_backward_params", x, tokens, positions, wte, wpe)
    check("layernorm", x, gain, bias, 1e-5)
    check("linear", x, weight, bias[:5])
    check("gelu", x)
    check("cross_entropy", logits, targets, weights)


def test_tokens_whose_heads_lie_apart_are_joined_first(cupy_ops, cupy):
    rng = np.random.default_rng(0)
    tokens, prefix = rng.normal(size=(3, 2, 6, 4)), [rng.normal(size=(2, 3, 4))] * 2
    offsets = np.array([0, 2, 6])
    wanted, _ = ops.reference.attention(*tokens.swapaxes(1, 2), prefix, prefix, offsets)
    arrays, there = [cupy.asarray(a).swapaxes(0, 1) for a in tokens], [cupy.asarray(prefix[0])] * 2
    got, _ = cupy_ops.attention(*arrays, there, there, offsets)
    assert relative_error(cupy.asnumpy(got), wanted) < 1e-12


# ---- the house --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "decoding",
    [
        Decoding(max_new_tokens=9),
        Decoding(max_new_tokens=9, min_new_tokens=4, forbidden=(3, 4)),
        Decoding(max_new_tokens=9, beams=4),
        Decoding(max_new_tokens=9, temperature=0.8, top_k=20, top_p=0.9),
    ],
    ids=["greedy", "greedy, restricted", "beams", "sampling"],
)
def test_decoding_writes_the_same(cupy, decoding):
    model, _ = model_and_batch()
    prompts, which = [[1, 2, 3], [7], [4, 4, 4, 4, 4]], [0, 1, 0]
    wanted = generate_ids(model, prompts, prefixes(), which, decoding)
    (there, *there_prefixes) = on("cupy", model, *prefixes())
    assert generate_ids(there, prompts, there_prefixes, which, decoding) == wanted


@pytest.mark.parametrize("mlp", [False, True], ids=["flat", "mlp"])
def test_training_goes_the_same_way(cupy, tmp_path, mlp):
    model, _ = model_and_batch()
    rng = np.random.default_rng(5)
    examples = [Encoded(rng.integers(0, 48, 5 + i).tolist(), 2) for i in range(7)]
    ended = {}
    for where in ("numpy", "cupy"):
        prefix = Prefix.normal(WORDS, 3, 0.5, dtype="float64")
        if mlp:
            prefix = MLPPrefix.random(WORDS, 3, 8, dtype="float64")
        there, prefix = on(where, model, prefix)
        settings = Settings(
            steps=6, batch_size=3, lr=1e-2, dropout=0.1, weight_decay=0.1, clip=0.5,
            micro_batch_size=2, eval_every=2, backend=where,
        )  # fmt: skip
        result = train(
            there, prefix, examples, settings, tmp_path / where, examples, progress=False
        )
        assert result.base_unchanged
        assert prefix.backend == where
        ended[where] = prefix.to("numpy").parameters
    for name, a in ended["numpy"].items():
        assert relative_error(ended["cupy"][name], a) < 1e-9, name


def test_what_is_trained_may_lie_in_any_order(cupy):
    """The keys and values that a text leaves are a view with two axes swapped."""
    model, batch = model_and_batch()
    batch = Batch.pack([[1, 2, 3, 4], [5, 6, 7]])
    ended = []
    for there in (model, model.to("cupy")):
        prefix, adam = Prefix.text(there, [5, 3, 1]), AdamW(weight_decay=0.1)
        assert not prefix.kv.flags.c_contiguous
        for _ in range(3):
            _, dkv = loss_and_grad(there, prefix, batch)
            adam.step(prefix.parameters, prefix.backward(dkv), 0.01)
        ended.append(prefix.to("numpy").kv)
    assert relative_error(ended[1], ended[0]) < 1e-9


def test_an_mlp_is_fitted_to_a_prefix_of_the_gpu(cupy):
    onto = Prefix.normal(WORDS, 2, 0.5, dtype="float64")
    wanted = Prefix.mlp(WORDS, 2, 4, onto=onto, dtype="float64")
    got = Prefix.mlp(WORDS, 2, 4, onto=onto.to("cupy"), dtype="float64")
    assert np.array_equal(got.kv, wanted.kv)


@pytest.mark.parametrize(
    ("backend", "model_on", "prefix_on"),
    [("numpy", "cupy", "cupy"), ("cupy", "numpy", "numpy"), ("cupy", "cupy", "numpy")],
)
def test_a_run_that_cannot_begin_leaves_no_folder(cupy, tmp_path, backend, model_on, prefix_on):
    model = GPT2.random(WORDS).to(model_on)
    prefix = Prefix.normal(WORDS, 3).to(prefix_on)
    settings = Settings(steps=1, backend=backend)
    with pytest.raises(InputError, match=r"to\('(numpy|cupy)'\) takes (it|them) there"):
        train(model, prefix, [Encoded([1, 2, 3], 1)], settings, tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_a_resumed_run_ends_with_the_same_bytes(cupy, tmp_path):
    model, _ = model_and_batch("float32")
    examples = [Encoded([i, i + 1, i + 2, i + 3], 1) for i in range(9)]
    (there,) = on("cupy", model)

    def go(out, steps_first):
        settings = Settings(steps=8, batch_size=2, lr=1e-2, save_every=1, backend="cupy")
        prefix = Prefix.normal(WORDS, 3).to("cupy")
        if steps_first:
            real = AdamW.step

            def step(self, *arguments):
                if self.t == steps_first:
                    raise KeyboardInterrupt
                real(self, *arguments)

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(AdamW, "step", step)
                with pytest.raises(KeyboardInterrupt):
                    train(there, prefix, examples, settings, out, progress=False)
            prefix = Prefix.normal(WORDS, 3, seed=9).to("cupy")
        resume = bool(steps_first)
        train(there, prefix, examples, settings, out, resume=resume, progress=False)
        return prefix.to("numpy").kv.tobytes()

    assert go(tmp_path / "whole", 0) == go(tmp_path / "stopped", 4)


def test_a_step_brings_nothing_home_but_the_loss_and_the_norm(cupy, request, tmp_path):
    if "device" in request.node.name:
        pytest.skip("crossings are counted by the stand-in")
    model, _ = model_and_batch("float32")
    examples = [Encoded([i, i + 1, i + 2, i + 3], 1) for i in range(8)]
    model.check_finite()  # once for a model
    there, prefix = on("cupy", model, Prefix.normal(WORDS, 3))
    counts = {}
    for steps in (2, 6):
        settings = Settings(steps=steps, batch_size=4, save_every=100, backend="cupy")
        stand_in.crossed.clear()
        train(there, prefix, examples, settings, tmp_path / str(steps), progress=False)
        counts[steps] = dict(stand_in.crossed)
    per_step = {what: (counts[6][what] - counts[2][what]) / 4 for what in counts[6]}
    assert per_step["to host"] == 2  # the loss and the norm of the gradient
    assert per_step["bytes to host"] <= 16
    # a batch: tokens, positions, rows, targets, weights, where its sequences and prefixes lie
    assert per_step["bytes to GPU"] < 3000


def test_launches_do_not_grow_with_the_batch(cupy, request):
    if "device" in request.node.name:
        pytest.skip("launches are counted by the stand-in")
    model, prefix = on("cupy", GPT2.random(WORDS), Prefix.normal(WORDS, 3))
    model.check_finite()  # once for a model
    launches = []
    for B in (2, 9):
        batch = Batch.pack([[1, 2, 3, 4]] * B)
        stand_in.crossed.clear()
        loss_and_grad(model, prefix, batch)
        launches.append(stand_in.crossed["launches"])
    assert launches[0] == launches[1]


# ---- sentences --------------------------------------------------------------------------------


def test_arrays_of_the_other_place_are_refused_with_a_sentence(cupy, cupy_ops):
    model, batch = model_and_batch("float32")
    prefix = Prefix.normal(WORDS, 3)
    there, there_prefix = on("cupy", model, prefix)
    two = [prefix, prefix]
    with pytest.raises(InputError, match=r"prefix lives with 'numpy'.*prefix.to\('cupy'\)"):
        loss_and_grad(there, two, batch)
    with pytest.raises(InputError, match=r"prefix lives with 'cupy'.*prefix.to\('numpy'\)"):
        loss_and_grad(model, [there_prefix, there_prefix], batch)
    doubled = [there_prefix, Prefix.normal(WORDS, 3, dtype="float64").to("cupy")]
    with pytest.raises(InputError, match="prefix has float64 numbers and model 'random' float32"):
        loss_and_grad(there, doubled, batch)
    with pytest.raises(InputError, match=r"are 'cupy' and the weights.*model.to\('cupy'\)"):
        loss_and_grad(model, two, batch, ops="cupy")
    with pytest.raises(InputError, match=r"are 'reference' and the weights.*model.to\('numpy'\)"):
        there.logits(batch, ops="reference")
    x = np.ones((2, 3), np.float32)
    with pytest.raises(TypeError, match=r"given a numpy.ndarray: expected arrays on the GPU"):
        cupy_ops.gelu(x)
    gain = cupy.asarray(np.ones(3))
    with pytest.raises(TypeError, match="float32 and float64 together"):
        cupy_ops.layernorm(cupy.asarray(x), gain, gain, 1e-5)
    with pytest.raises(TypeError, match="take float32 and float64, not complex128"):
        cupy_ops.gelu(cupy.asarray(x.astype(complex)))


def test_the_host_operations_refuse_arrays_of_the_gpu(cupy):
    x = cupy.asarray(np.ones((2, 3), np.float32))
    with pytest.raises(TypeError, match=r"live on the GPU: expected NumPy arrays"):
        ops.numpy_ops.linear(x, x.T, None)


def test_they_say_where_they_live(cupy):
    model, prefix = GPT2.random(WORDS), Prefix.normal(WORDS, 3)
    there, there_prefix = on("cupy", model, prefix)
    assert "cpu)" in repr(model)
    assert "gpu)" in repr(there)
    assert "cpu)" in repr(prefix)
    assert "gpu)" in repr(there_prefix)
    assert (there.backend, there_prefix.backend) == ("cupy", "cupy")
    assert there.to("cupy") is there
    assert there.fingerprint() == model.fingerprint()
    (back,) = on("numpy", there)
    for name, a in model.weights.items():
        assert np.array_equal(back.weights[name], a)


def test_what_lives_on_the_gpu_is_saved_as_if_it_did_not(cupy, tmp_path):
    model, prefix = GPT2.random(WORDS), Prefix.normal(WORDS, 3)
    there, there_prefix = on("cupy", model, prefix)
    there.save(tmp_path / "model")
    there_prefix.save(tmp_path / "prefix", there)
    assert GPT2.load(tmp_path / "model").fingerprint() == model.fingerprint()
    assert np.array_equal(Prefix.load(tmp_path / "prefix").kv, prefix.kv)


def test_a_weight_on_the_gpu_that_is_no_number_is_named(cupy):
    model, batch = model_and_batch("float32")
    model.weights["h.1.mlp.c_fc.bias"][3] = np.nan
    with pytest.raises(InputError, match=r"h.1.mlp.c_fc.bias.*nan at \[3\]"):
        model.to("cupy").logits(batch, on("cupy", *prefixes("float32")))


class NoGPU:
    """What CuPy says on a machine that lacks something."""

    class CUDARuntimeError(RuntimeError):
        pass

    def __init__(self, devices, driver=0):
        self.devices, self.driver = devices, driver

    def getDeviceCount(self):
        if isinstance(self.devices, str):
            raise self.CUDARuntimeError(self.devices)
        return self.devices

    def driverGetVersion(self):
        return self.driver

    def runtimeGetVersion(self):
        return 12090


@pytest.mark.parametrize(
    ("devices", "driver", "sentence"),
    [
        (0, 12040, "CuPy finds no NVIDIA GPU: see what nvidia-smi says"),
        ("cudaErrorNoDevice: no CUDA-capable device", 12040, "no NVIDIA GPU.*cudaErrorNoDevice"),
        ("cudaErrorInsufficientDriver: insufficient", 0, "no NVIDIA GPU.*nsufficientDriver"),
        (
            "cudaErrorInsufficientDriver: CUDA driver version is insufficient",
            11080,
            r"driver is too old.*CUDA up to 11.8, this CuPy needs 12.9; update the driver",
        ),
    ],
)
def test_without_a_gpu_it_says_what_to_do(monkeypatch, devices, driver, sentence):

    fake = types.ModuleType("cupy")
    fake.cuda = types.SimpleNamespace(runtime=NoGPU(devices, driver))
    monkeypatch.setitem(sys.modules, "cupy", fake)
    ops._cupy_ops.cache_clear()
    with pytest.raises(ops.Unavailable, match=sentence):
        ops.get("cupy")
    with pytest.raises(InputError, match=sentence):
        GPT2.random(WORDS).to("cupy")


def test_without_cupy_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    ops._cupy_ops.cache_clear()
    with pytest.raises(ops.Unavailable, match=r"needs CuPy .*minprefix\[cuda12\]"):
        ops.get("cupy")


def test_nothing_imports_cupy_unasked():
    imports = "import sys, minprefix, minprefix.train, minprefix.cli"
    code = f"{imports}; assert 'cupy' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


# ---- the command line, precision, memory ------------------------------------------------------


def words(tmp_path):
    data = tmp_path / "data.jsonl"
    pairs = [("name: Bo. ", "Bo is here."), ("name: Al. ", "Al is not."), ("name: Cy. ", "Cy ran.")]
    lines = [json.dumps({"source": a, "target": b}) for a, b in pairs]
    data.write_text("\n".join(lines))
    return data


def test_the_commands_compute_there_and_say_so(cupy, tmp_path, capsys):
    data, run, ended = words(tmp_path), tmp_path / "run", {}
    for backend in ("numpy", "cupy"):
        out = run / backend
        train = ["train", "--data", str(data), "--steps", "3", "--batch-size", "2", "--seed", "1"]
        assert main([*train, "--out", str(out), "--backend", backend]) == 0
        ended[backend] = Prefix.load(out).kv
        assert ("on the GPU, matrix products in float32" in capsys.readouterr().out) == (
            backend == "cupy"
        )
        say = ["generate", "--prefix", str(out), "--prompt", "name: Bo. ", "--max-new-tokens", "5"]
        assert main([*say, "--backend", backend]) == 0
        score = ["evaluate", "--prefix", str(out), "--data", str(data), "--max-new-tokens", "5"]
        there = [*score, "--out", str(out / "eval"), "--backend", backend]
        assert main(there) == 0
        lines = capsys.readouterr().out.replace(backend, "").splitlines()
        ended[backend, "said"] = [a for a in lines if not a.startswith(("loss", "perplexity"))]
        about = json.loads((out / "eval" / "metrics.json").read_text())["about"]
        assert (about["backend"], about["matmul"]) == (backend, "float32")
    assert relative_error(ended["cupy"], ended["numpy"]) < 1e-4
    assert ended["cupy", "said"] == ended["numpy", "said"]


def test_auto_takes_the_gpu_where_there_is_one(cupy, tmp_path, capsys):
    say = ["generate", "--prompt", "name: Bo. ", "--max-new-tokens", "3", "--backend", "auto"]
    assert main(say) == 0
    assert capsys.readouterr().err == "backend: cupy\n"


def test_auto_takes_the_cpu_where_there_is_none(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "cupy", None)
    ops._cupy_ops.cache_clear()
    say = ["generate", "--prompt", "name: Bo. ", "--max-new-tokens", "3", "--backend", "auto"]
    assert main(say) == 0
    assert capsys.readouterr().err.startswith("backend: numpy (the GPU needs CuPy (")
    assert main([*say[:-1], "cupy"]) == 2
    assert "the GPU needs CuPy" in capsys.readouterr().err


def test_tf32_is_a_choice_that_is_recorded(cupy, cupy_ops, tmp_path, capsys, monkeypatch):
    out = tmp_path / "run"
    train = ["train", "--data", str(words(tmp_path)), "--steps", "1", "--out", str(out)]
    assert main([*train, "--matmul", "tf32"]) == 2
    assert "'tf32', which needs a GPU: the backend is 'numpy'" in capsys.readouterr().err
    assert main([*train, "--backend", "cupy", "--matmul", "tf32"]) == 0
    assert "matrix products in tf32" in capsys.readouterr().out
    about = json.loads((out / "minprefix.json").read_text())
    assert about["training"]["settings"]["matmul"] == "tf32"
    capsys.readouterr()
    assert main([*train, "--resume", "--matmul", "float32"]) == 2
    assert "matmul was 'tf32' and is now 'float32'" in capsys.readouterr().err
    say = ["generate", "--prompt", "a", "--max-new-tokens", "1"]
    assert main([*say, "--matmul", "tf32"]) == 2
    assert "give --backend cupy as well" in capsys.readouterr().err
    cupy_ops.matmul_precision("float32")
    with pytest.raises(InputError, match="matmul is 'half': expected one of float32, tf32"):
        cupy_ops.matmul_precision("half")
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    with pytest.raises(InputError, match="NVIDIA_TF32_OVERRIDE=0 forbids TF32: unset it"):
        cupy_ops.matmul_precision("tf32")
    monkeypatch.setenv("CUPY_TF32", "1")
    with pytest.raises(InputError, match="CUPY_TF32 turns float32 products into TF32: unset it"):
        cupy_ops.matmul_precision("float32")


def test_tf32_reaches_cublas_and_old_gpus_are_refused(cupy, cupy_ops, request, monkeypatch):
    if "device" in request.node.name:
        pytest.skip("what cuBLAS was told is seen by the stand-in")
    cupy_ops.matmul_precision("tf32")
    assert cupy.cuda.cublas.mode == 3  # cublas_api.h
    cupy_ops.matmul_precision("float32")
    assert cupy.cuda.cublas.mode == 0
    monkeypatch.setattr(cupy.cuda.Device, "compute_capability", "75")
    with pytest.raises(InputError, match="needs compute capability 80, this GPU has 75"):
        cupy_ops.matmul_precision("tf32")


def test_out_of_memory_names_a_batch_that_fits(cupy, request, tmp_path, monkeypatch):
    if "device" in request.node.name:
        pytest.skip("the stand-in can say how much is free")
    there, prefix = on("cupy", GPT2.random(WORDS), Prefix.normal(WORDS, 3))
    examples = [Encoded([1] * 30, 1)] * 8
    free = step_bytes(WORDS, [30] * 3, 3) + 10
    monkeypatch.setattr(cupy.cuda.runtime, "memGetInfo", lambda: (free, 1 << 34))
    weights = sum(a.nbytes for a in there.weights.values())
    monkeypatch.setattr(stand_in._Pool, "held", weights)

    def full(*shape_and_dtype):
        raise stand_in.OutOfMemoryError("Out of memory allocating 1,234 bytes")

    monkeypatch.setattr(cupy, "empty", full)
    settings = Settings(steps=2, batch_size=8, backend="cupy")
    with pytest.raises(InputError, match=r"8 sequences of together 240 tokens.*size 3 would fit"):
        train(there, prefix, examples, settings, tmp_path / "run", progress=False)
    few = Settings(steps=2, batch_size=4, backend="cupy")
    with pytest.raises(InputError, match=r"4 sequences of together 120 tokens.*size 3 would fit"):
        train(there, prefix, examples, few, tmp_path / "few", progress=False)
    monkeypatch.setattr(cupy.cuda.runtime, "memGetInfo", lambda: (0, 1 << 34))
    with pytest.raises(InputError, match="not even one sequence would fit"):
        train(there, prefix, examples, settings, tmp_path / "again", progress=False)


def test_a_model_that_does_not_fit_is_a_sentence(cupy, request, monkeypatch):
    if "device" in request.node.name:
        pytest.skip("the stand-in can say how much is free")

    def full(*array):
        raise stand_in.OutOfMemoryError("Out of memory allocating 1,234 bytes")

    monkeypatch.setattr(cupy.cuda.runtime, "memGetInfo", lambda: (3_000_000, 1 << 34))
    monkeypatch.setattr(cupy, "asarray", full)
    model = GPT2.random(Config(2, 2, 64, 20000, 40), dtype="float64")
    with pytest.raises(InputError, match=r"'random' take 11 MB.* has 3 MB .*--backend numpy"):
        model.to("cupy")


def test_validation_goes_in_micro_batches_too_and_names_one_that_fits(
    cupy, request, tmp_path, monkeypatch
):
    if "device" in request.node.name:
        pytest.skip("the stand-in can say how much is free")
    there, prefix = on("cupy", GPT2.random(WORDS), Prefix.normal(WORDS, 3))
    examples, sizes = [Encoded([1] * 30, 1)] * 8, []

    def full(model, prefix, examples, backend, batch_size, progress):
        sizes.append(batch_size)
        raise stand_in.OutOfMemoryError("Out of memory allocating 1,234 bytes")

    monkeypatch.setattr("minprefix.train.mean_loss", full)
    monkeypatch.setattr(stand_in._Pool, "held", sum(a.nbytes for a in there.weights.values()))
    monkeypatch.setattr(cupy.cuda.runtime, "memGetInfo", lambda: (step_bytes(WORDS, [30], 3), 0))
    for micro, sentence in ((2, "2 sequences of together 60 "), (None, "8 sequences of")):
        settings = Settings(1, 8, micro, backend="cupy")
        out = tmp_path / str(micro)
        with pytest.raises(InputError, match=rf"{sentence}.*--micro-batch-size 1 would fit"):
            train(there, prefix, examples, settings, out, examples, progress=False)
    assert sizes == [2, 32]


@pytest.mark.parametrize(("lengths", "P"), [([30, 20, 30], 4), ([200], 50), ([12] * 40, 10)])
def test_a_step_takes_about_as_much_as_is_said(cupy, request, lengths, P):
    if "device" in request.node.name:
        pytest.skip("the stand-in's memory is counted byte by byte")
    config = Config(4, 2, 64, 300, 512)
    model, prefix = on("cupy", GPT2.random(config), Prefix.normal(config, P))
    batch = Batch.pack([[1] * T for T in lengths])
    loss_and_grad(model, prefix, batch)
    tracemalloc.start()
    loss_and_grad(model, prefix, batch)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 0.8 < step_bytes(config, lengths, P) / peak < 1.3


# ---- what can be held against the real CuPy without a GPU -------------------------------------


def test_every_name_that_it_uses_exists():
    cupy = pytest.importorskip("cupy", reason="CuPy is not installed")

    names = set()
    for file in ("ops/cupy_ops.py", "ops/__init__.py", "budget.py"):
        tree = ast.parse((KERNELS.parents[1] / file).read_text())
        nodes = [ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
        names |= {name for name in nodes if re.fullmatch(r"cupy(\.\w+)+", name)}
    assert "cupy.cuda.cublas.setMathMode" in names
    try:
        _ = cupy.cuda.cublas
    except ImportError:  # CuPy looks for NVIDIA's library before it shows its own names
        names = {name for name in names if ".cublas" not in name}
    for name in names:
        operator.attrgetter(name.removeprefix("cupy."))(cupy)
    assert [name for name in stand_in.DISPATCHED if not hasattr(cupy, name)] == []
    known = [n for n in vars(stand_in.Array) if not n.startswith("_")]
    assert [name for name in known if not hasattr(cupy.ndarray, name)] == []
    assert importlib.import_module("minprefix.ops.cupy_ops").cupy is cupy


@pytest.mark.parametrize("real", ["float", "double"])
def test_the_kernels_compile_for_a_gpu(real):
    """With NVIDIA's compiler, which needs no GPU; the stand-in compiles them with another."""
    pytest.importorskip("cupy", reason="CuPy is not installed")
    from cupy.cuda import nvrtc

    try:
        nvrtc.getVersion()
    except Exception as error:
        pytest.skip(f"NVRTC is not installed (pip install nvidia-cuda-nvrtc-cu12): {error}")
    program = nvrtc.createProgram(KERNELS.read_text(), KERNELS.name, (), ())
    options = (f"-DREAL={real}", "-DTHREADS=256", "--gpu-architecture=compute_80")
    try:
        nvrtc.compileProgram(program, options)
    except nvrtc.NVRTCError:
        pytest.fail(nvrtc.getProgramLog(program))
    ptx = nvrtc.getPTX(program).decode()
    assert all(f".entry {name}(" in ptx for name in stand_in.signatures(KERNELS.read_text()))


@pytest.mark.parametrize("rival", METHODS)
def test_a_rivals_loss_gradients_and_texts_are_the_cpus(cupy, rival):
    model = GPT2.random(WORDS)
    kind = METHODS[rival]
    method = getattr(kind, "start", getattr(kind, "normal", None))(model)
    batch = Batch.pack([[1, 2, 3, 4], [5, 6]], [2, 1])
    want, dwant = method.loss_and_grads(model, batch)
    there, moved = model.to("cupy"), method.to("cupy")
    value, grads = moved.loss_and_grads(there, batch)
    assert value == pytest.approx(want, rel=1e-5)
    assert moved.loss(there, batch) == pytest.approx(want, rel=1e-5)
    top = max(abs(g).max() for g in dwant.values())
    for name, g in dwant.items():
        assert abs(ops.to(grads[name], "numpy") - g).max() <= 1e-4 * top, name
    prompts = [[1, 2, 3], [4]]
    texts = [generate_ids(m, prompts, a, None, Decoding(4)) for m, a in
             ((model, method), (there, moved))]  # fmt: skip
    assert texts[0] == texts[1]
