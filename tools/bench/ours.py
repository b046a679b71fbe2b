"""How this project does a job. Each function runs in a process of its own, takes the job's
arguments and returns what was measured, as JSON can hold it; times in seconds, memory in bytes."""

import time
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np

from minprefix import ops
from minprefix.batch import Batch
from minprefix.generate import Decoding, generate_ids
from minprefix.gpt2 import Config
from minprefix.method import Method
from minprefix.methods import METHODS, LoRA, PromptTuning
from minprefix.model import GPT2, loss_and_grad
from minprefix.ops import memory, numpy_ops, threads
from minprefix.ops.contract import Array
from minprefix.optim import AdamW
from minprefix.prefix import Prefix
from minprefix.storage.fingerprint import digest
from tools.bench import machine
from tools.bench.device import Device
from tools.bench.device import launches as launches_of

LR = 1e-3
Answer = dict[str, Any]
#: prompts (S, T), beams, and how many new tokens -> those of each prompt
Write = Callable[[np.ndarray, int, int], list[list[int]]]
CPU = Device()


def token_ids(lengths: Sequence[Sequence[int]], vocab_size: int) -> list[np.ndarray]:
    """Random ids, the same for everyone."""
    rng = np.random.default_rng(0)
    return [rng.integers(0, vocab_size, source + target) for source, target in lengths]


def timed_steps(
    on: Callable[[Sequence[Sequence[int]]], Callable[[], float]], arguments: Answer, device: Device
) -> Answer:
    """`on`: makes a step, which returns its loss, for sequences of these lengths. One step warms
    up; the others are timed."""
    before = {"resident": machine.resident_bytes(), "peak_before": machine.peak_bytes()}
    losses, peaks, times = [on(arguments["warm_up"])()], [machine.peak_bytes()], []
    step = on(arguments["lengths"])
    for _ in range(arguments["steps"]):
        times.append(_seconds(lambda: losses.append(step()), device))
        peaks.append(machine.peak_bytes())
    answer = {**before, "times": times, "losses": losses, "peaks": peaks, "peak": peaks[-1]}
    return answer if device.peak is None else answer | {"device_peak": device.peak()}


def train(arguments: Answer) -> Answer:
    device, (model, method) = _device(arguments), _model_and_method(arguments)
    answer = timed_steps(_training(model, method), arguments, device)
    trained = sum(a.size for a in method.parameters.values())
    return {**answer, "sha256": digest(method.parameters), "trained": trained}


def launches(arguments: Answer) -> Answer:
    """How many kernels a step launches."""
    device, (model, method) = _device(arguments), _model_and_method(arguments)
    step = _training(model, method)(arguments["lengths"])
    return {"launches": launches_of(step, device)}


def _training(
    model: GPT2, method: Prefix | Method
) -> Callable[[Sequence[Sequence[int]]], Callable[[], float]]:
    """The `on` of `timed_steps`."""
    memory.keep_freed()  # as `minprefix.train` does
    adam = AdamW()

    def on(lengths: Sequence[Sequence[int]]) -> Callable[[], float]:
        batch = _batch(lengths, model)

        def step() -> float:
            loss, grads = loss_and_grad(model, method, batch)
            grads = {"kv": grads} if isinstance(method, Prefix) else grads
            adam.step(method.parameters, grads, LR)
            return loss

        return step

    return on


def _device(arguments: Answer) -> Device:
    """The one that a job names, in the precision that it names; the CPU where it names none."""
    if arguments.get("device", "cpu") == "cpu":
        return CPU
    own = cast(Any, ops.get("cupy"))
    own.matmul_precision(arguments["precision"])
    import cupy

    def wait() -> None:
        cupy.cuda.get_current_stream().synchronize()

    # the pool gives nothing back by itself: what it holds is the most that it held
    return Device(wait, cupy.get_default_memory_pool().total_bytes)


def _model_and_method(arguments: Answer) -> tuple[GPT2, Prefix | Method]:
    model = GPT2.random(Config(**arguments["config"]))
    where = "numpy" if arguments.get("device", "cpu") == "cpu" else "cupy"
    return model.to(where), method_of(arguments, model).to(where)


def _model_and_prefix(arguments: Answer) -> tuple[GPT2, Prefix]:
    model, prefix = _model_and_method(arguments)
    assert isinstance(prefix, Prefix)
    return model, prefix


def method_of(arguments: Answer, model: GPT2) -> Prefix | Method:
    """Where everyone starts: the method that the job names, by default a prefix."""
    name, options = arguments.get("method", "prefix"), arguments.get("options", {})
    if name == "prefix":
        return Prefix.normal(model.config, arguments["prefix"])
    if name == "prompt-tuning":
        return PromptTuning.normal(model, **options)
    method = cast(Any, METHODS[name]).start(model, **options)
    if isinstance(method, LoRA):  # behind a B of zero A has no gradient, and the loss no LoRA
        rng = np.random.default_rng(0)
        for key, a in method.parameters.items():
            if key.endswith("lora_B"):
                a[...] = rng.normal(0, 0.02, a.shape)
    return cast(Method, method)


def _batch(lengths: Sequence[Sequence[int]], model: GPT2) -> Batch:
    ids = token_ids(lengths, model.config.vocab_size)
    return Batch.pack(ids, loss_from=[source for source, _ in lengths])


# ---- the share of matrix products -------------------------------------------------------------


class Recorder:
    """The operations, and a note of every matrix product that they are asked for."""

    def __init__(self, inner: ops.Ops) -> None:
        self._inner = inner
        self.linear_products: list[tuple[int, Array]] = []  # rows, and the weight they meet
        #: of each call q, the prefixes' keys and the offsets
        self.attention_products: list[tuple[Array, Sequence[Array], Array]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def linear(self, x: Array, weight: Array, *rest: Any) -> Any:
        self.linear_products.append((len(x), weight))
        return self._inner.linear(x, weight, *rest)

    def linear_backward(self, dout: Array, weight: Array) -> Array:
        self.linear_products.append((len(dout), weight.T))
        return self._inner.linear_backward(dout, weight)

    def attention(self, q: Array, k: Array, v: Array, prefix_k: Any, *rest: Any) -> Any:
        self.attention_products.append((q, prefix_k, rest[-1]))
        return self._inner.attention(q, k, v, prefix_k, *rest)


def products(arguments: Answer) -> Answer:
    """A step's time, and the time of its matrix products alone, by turns.

    Linear layers: every call of `linear` and `linear_backward`, with the same weights, as one
    np.matmul into memory that is already there. Attention: the products of `numpy_ops`, in its
    parts and on its threads; two forward, five backward, where the scores are made again.
    """
    memory.keep_freed()
    model, prefix = _model_and_prefix(arguments)
    batch = _batch(arguments["lengths"], model)
    recorder = Recorder(ops.get("numpy"))
    loss_and_grad(model, prefix, batch, ops=recorder)  # it warms up, too
    answer: Answer = {"steps": [], "linear": [], "attention": []}
    for _ in range(arguments["steps"]):
        answer["steps"].append(_seconds(lambda: loss_and_grad(model, prefix, batch)))
        answer["linear"].append(_linear_alone(recorder))
        answer["attention"].append(_attention_alone(recorder))
    answer["flop"] = 2 * sum(n * weight.size for n, weight in recorder.linear_products)
    answer["products"] = len(recorder.linear_products)
    return answer


def _seconds(call: Callable[[], object], device: Device = CPU) -> float:
    device.wait()
    start = time.perf_counter()
    call()
    device.wait()
    return time.perf_counter() - start


def _linear_alone(recorder: Recorder) -> float:
    sizes = [(n, *weight.shape) for n, weight in recorder.linear_products]
    dtype = recorder.linear_products[0][1].dtype
    x = np.full(max(n * rows for n, rows, _ in sizes), 0.01, dtype)
    out = np.ones(max(n * columns for n, _, columns in sizes), dtype)

    def run() -> None:
        for n, weight in recorder.linear_products:
            rows, columns = weight.shape
            into = out[: n * columns].reshape(n, columns)
            np.matmul(x[: n * rows].reshape(n, rows), weight, out=into)

    return _seconds(run)


def _attention_alone(recorder: Recorder) -> float:
    def part(p: numpy_ops.Part) -> None:
        T, nh, hs = p.rows.stop - p.rows.start, p.heads.stop - p.heads.start, q.shape[2]
        n_keys = prefix_k[p.b].shape[1] + T
        queries, keys = np.ones((nh, T, hs), q.dtype), np.ones((nh, n_keys, hs), q.dtype)
        for some in numpy_ops.query_blocks(T):
            seen = keys[:, : n_keys - T + some.stop]
            scores = queries[:, some] @ seen.swapaxes(1, 2)
            scores @ seen  # z
            queries[:, some] @ seen.swapaxes(1, 2)  # the scores again
            scores.swapaxes(1, 2) @ queries[:, some]  # dvalues
            queries[:, some] @ seen.swapaxes(1, 2)  # dpattern
            scores @ seen  # dq
            scores.swapaxes(1, 2) @ queries[:, some]  # dkeys

    total = 0.0
    for q, prefix_k, offsets in recorder.attention_products:
        parts = numpy_ops.parts(q, prefix_k, offsets)
        total += _seconds(lambda: threads.each(part, parts))  # noqa: B023  called at once
    return total


# ---- decoding ---------------------------------------------------------------------------------


def decode(arguments: Answer) -> Answer:
    device = _device(arguments)
    return timed_decoding(_writer(arguments), arguments, device)


def written(arguments: Answer) -> Answer:
    """What `decode` would write."""
    _device(arguments)
    return what_is_written(_writer(arguments), arguments)


def _writer(arguments: Answer) -> Write:
    model, prefix = _model_and_prefix(arguments)

    def write(prompts: np.ndarray, beams: int, n: int) -> list[list[int]]:
        decoding = Decoding(max_new_tokens=n, min_new_tokens=n, beams=beams)
        written = generate_ids(model, list(prompts), prefix, decoding=decoding)
        assert all(len(ids) == n for ids in written)
        return written

    return write


def prompt_ids(arguments: Answer, prompts: int) -> np.ndarray:
    """(S, T), random and the same for everyone."""
    shape = (prompts, arguments["prompt"])
    return np.random.default_rng(0).integers(0, arguments["config"]["vocab_size"], shape)


def what_is_written(write: Write, arguments: Answer) -> Answer:
    """The new tokens of every case, prompt by prompt."""
    return {
        "tokens": {
            name: write(prompt_ids(arguments, prompts), beams, arguments["new"] + 1)
            for name, prompts, beams, _ in arguments["cases"]
        }
    }


def timed_decoding(write: Write, arguments: Answer, device: Device) -> Answer:
    """For each case the times to the first token and to `new` more."""
    new = arguments["new"]
    cases = {}
    for name, prompts, beams, repetitions in arguments["cases"]:
        ids = prompt_ids(arguments, prompts)
        write(ids, beams, 3)  # warms up
        first, whole = [], []
        for _ in range(repetitions):
            # called at once
            first.append(_seconds(lambda: write(ids, beams, 1), device))  # noqa: B023
            whole.append(_seconds(lambda: write(ids, beams, new + 1), device))  # noqa: B023
        cases[name] = {"first": first, "whole": whole}
    answer = {"cases": cases, "peak": machine.peak_bytes()}
    return answer if device.peak is None else answer | {"device_peak": device.peak()}


def bandwidth(arguments: Answer) -> Answer:
    """Bytes a second at which float32 numbers, as many as the weights, are read: the best of ten
    dot products of them with themselves."""
    a = np.ones(arguments["bytes"] // 4, np.float32)
    times = [_seconds(lambda: np.dot(a, a)) for _ in range(10)]
    return {"bytes": a.nbytes, "times": times, "bytes_per_second": a.nbytes / min(times)}


# ---- start ------------------------------------------------------------------------------------


def save(arguments: Answer) -> Answer:
    model = GPT2.random(Config(**arguments["config"]))
    model.save(arguments["folder"])
    return {"bytes": sum(a.nbytes for a in model.weights.values())}


def first_token(arguments: Answer) -> Answer:
    """Open a checkpoint, and the first token after a prompt: what `generate` waits for."""
    start = time.perf_counter()
    model = GPT2.load(arguments["folder"])
    opened = time.perf_counter() - start
    shape = (1, arguments["prompt"])
    prompt = np.random.default_rng(0).integers(0, model.config.vocab_size, shape)
    once = Decoding(max_new_tokens=1)
    written = _seconds(lambda: generate_ids(model, list(prompt), decoding=once))
    return {"open": opened, "first_token": written}
