"""Each operation of the contract, for both implementations, against unlike oracles."""

import inspect
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minprefix import ops as ops_package
from minprefix.ops import contract, numpy_ops, reference, threads
from tests.conftest import relative_error

BOTH = pytest.mark.parametrize("ops", [reference, numpy_ops], ids=["reference", "numpy"])
FUNCTIONS = [n for n, f in vars(contract.Ops).items() if inspect.isfunction(f) and n[0] != "_"]
rng = np.random.default_rng(0)


def tensor(a: np.ndarray) -> torch.Tensor:
    return torch.tensor(a, requires_grad=True)


def streams(lengths, P, NH=2, hs=4, dtype="float64", seed=0):
    """Random q, k, v, a prefix for each sequence, and offsets."""
    r = np.random.default_rng(seed)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    q, k, v = (r.normal(0, 1, (offsets[-1], NH, hs)).astype(dtype) for _ in range(3))
    prefix_k, prefix_v = ([r.normal(0, 1, (NH, p, hs)).astype(dtype) for p in P] for _ in range(2))
    return q, k, v, prefix_k, prefix_v, offsets


def test_the_implementations_have_the_contracts_functions_and_argument_names():
    assert FUNCTIONS, "the contract names no functions"
    for implementation in (reference, numpy_ops):
        for name in FUNCTIONS:
            wanted = list(inspect.signature(getattr(contract.Ops, name)).parameters)[1:]
            assert list(inspect.signature(getattr(implementation, name)).parameters) == wanted


def test_consumed_arguments_exist():
    for name, arguments in contract.CONSUMED.items():
        assert set(arguments) <= set(inspect.signature(getattr(contract.Ops, name)).parameters)


def test_an_unknown_backend_is_refused_by_name():
    with pytest.raises(ValueError, match="'jax' does not exist: expected one of cupy, numpy"):
        ops_package.get("jax")


# ---- against PyTorch's autograd, float64 ----


@BOTH
def test_embed_agrees_with_autograd_also_where_tokens_repeat(ops):
    tokens, positions = np.array([3, 1, 3, 3]), np.array([0, 1, 2, 0])
    wte, wpe, dx = rng.normal(size=(5, 6)), rng.normal(size=(4, 6)), rng.normal(size=(4, 6))
    a, b = tensor(wte), tensor(wpe)
    x = a[torch.tensor(tokens)] + b[torch.tensor(positions)]
    x.backward(torch.tensor(dx))
    assert relative_error(ops.embed(tokens, positions, wte, wpe), x.detach().numpy()) < 1e-15
    dwte, dwpe = ops.embed_backward_params(dx, tokens, positions, wte, wpe)
    assert relative_error(dwte, a.grad.numpy()) < 1e-14
    assert relative_error(dwpe, b.grad.numpy()) < 1e-14


@BOTH
@pytest.mark.parametrize("spread", [1.0, 1e-4], ids=["usual", "tiny variance"])
def test_layernorm_agrees_with_autograd(ops, spread):
    x, gain, bias = 3 + spread * rng.normal(size=(7, 16)), rng.normal(size=16), rng.normal(size=16)
    dout = rng.normal(size=(7, 16))
    tx, tg, tb = tensor(x), tensor(gain), tensor(bias)
    want = torch.nn.functional.layer_norm(tx, (16,), tg, tb, 1e-5)
    want.backward(torch.tensor(dout))
    out, cache = ops.layernorm(x, gain, bias, 1e-5)
    assert relative_error(out, want.detach().numpy()) < 1e-11
    dgain, dbias = ops.layernorm_backward_params(dout, cache)
    dx = ops.layernorm_backward(dout.copy(), cache)
    assert relative_error(dx, tx.grad.numpy()) < 1e-10
    assert relative_error(dgain, tg.grad.numpy()) < 1e-11
    assert relative_error(dbias, tb.grad.numpy()) < 1e-13


@BOTH
def test_linear_agrees_with_autograd(ops):
    x, w, b = rng.normal(size=(7, 5)), rng.normal(size=(5, 3)), rng.normal(size=3)
    dout = rng.normal(size=(7, 3))
    tx, tw, tb = tensor(x), tensor(w), tensor(b)
    want = tx @ tw + tb
    want.backward(torch.tensor(dout))
    assert relative_error(ops.linear(x, w, b), want.detach().numpy()) < 1e-14
    assert relative_error(ops.linear(x, w, None), x @ w) < 1e-14
    assert relative_error(ops.linear_backward(dout, w), tx.grad.numpy()) < 1e-14
    dweight, dbias = ops.linear_backward_params(dout, x)
    assert relative_error(dweight, tw.grad.numpy()) < 1e-14
    assert relative_error(dbias, tb.grad.numpy()) < 1e-14


@BOTH
def test_gelu_is_the_tanh_form_and_agrees_with_autograd(ops):
    x, dout = 3 * rng.normal(size=(9, 8)), rng.normal(size=(9, 8))
    tx = tensor(x)
    want = torch.nn.functional.gelu(tx, approximate="tanh")
    want.backward(torch.tensor(dout))
    out, cache = ops.gelu(x.copy())
    assert relative_error(out, want.detach().numpy()) < 1e-14
    assert relative_error(ops.gelu_backward(dout.copy(), cache), tx.grad.numpy()) < 1e-14
    assert math.sqrt(2 / math.pi) == reference.SQRT_2_OVER_PI
    erf = torch.nn.functional.gelu(tx).detach().numpy()
    assert relative_error(out, erf) > 1e-5  # the other GELU is told apart


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    slots=st.lists(st.integers(0, 5), min_size=4, max_size=4),
    NH=st.integers(1, 3),
    scale=st.sampled_from([1.0, 100.0, 1e4]),
    seed=st.integers(0, 10**6),
)
@BOTH
def test_attention_agrees_with_autograd_at_every_shape(ops, lengths, slots, NH, scale, seed):
    q, k, v, pk, pv, offsets = streams(lengths, slots[: len(lengths)], NH, 4, seed=seed)
    q = q * scale  # 1e4: a softmax that saturates, and overflows if its maximum is not taken off
    tolerance = 1e-15 * (1000 + scale)  # the scores themselves are rounded
    dz = np.random.default_rng(seed + 1).normal(size=q.shape)
    z, cache = ops.attention(q, k, v, pk, pv, offsets)
    grads = ops.attention_backward(dz.copy(), cache)
    for b in range(len(lengths)):
        rows = slice(offsets[b], offsets[b + 1])
        T, P = lengths[b], slots[b]
        tq, tk, tv = (tensor(a[rows].swapaxes(0, 1).copy()) for a in (q, k, v))
        tpk, tpv = tensor(pk[b]), tensor(pv[b])
        # an explicit mask: PyTorch's is_causal aligns to the other corner when P > 0
        mask = torch.ones(T, P + T, dtype=torch.bool).tril(P)
        want = torch.nn.functional.scaled_dot_product_attention(
            tq[None], torch.cat([tpk, tk], 1)[None], torch.cat([tpv, tv], 1)[None], mask
        )[0]
        want.backward(torch.tensor(dz[rows].swapaxes(0, 1)))
        assert relative_error(z[rows].swapaxes(0, 1), want.detach().numpy()) < tolerance
        # absolute against the gradients' common scale: a saturated softmax leaves some of them 0
        unit = max(float(t.grad.abs().max()) for t in (tq, tk, tv))
        for got, t in (
            (grads.dq[rows].swapaxes(0, 1), tq),
            (grads.dk[rows].swapaxes(0, 1), tk),
            (grads.dv[rows].swapaxes(0, 1), tv),
            (grads.dprefix_k[b], tpk),
            (grads.dprefix_v[b], tpv),
        ):
            assert np.abs(got - t.grad.numpy()).max(initial=0) < 10 * tolerance * max(unit, 1.0)


@BOTH
@pytest.mark.parametrize("scale", [1.0, 1e4], ids=["usual", "large logits"])
def test_cross_entropy_agrees_with_autograd(ops, scale):
    logits, targets = scale * rng.normal(size=(6, 11)), rng.integers(0, 11, 6)
    weights = rng.uniform(0.1, 2, 6)
    t = tensor(logits)
    nll = torch.nn.functional.cross_entropy(t, torch.tensor(targets), reduction="none")
    want = (nll * torch.tensor(weights)).sum()
    want.backward()
    loss, cache = ops.cross_entropy(logits.copy(), targets, weights)
    assert abs(loss - want.item()) < 1e-13 * abs(want.item())
    dlogits = ops.cross_entropy_backward(cache)
    assert relative_error(dlogits, t.grad.numpy()) < 1e-14


# ---- the complex step and finite differences ----


def complex_step(f, arrays, which, index, h=1e-30):
    """The exact derivative of a real-analytic f: Im f(x + ih) / h, without subtraction."""
    moved = [a.astype(complex) for a in arrays]
    moved[which][index] += 1j * h
    return f(*moved).imag / h


def test_the_complex_step_confirms_every_backward_of_the_reference_to_1e_12():
    x, dout = rng.normal(size=(3, 8)), rng.normal(size=(3, 8))
    gain, bias = rng.normal(size=8), rng.normal(size=8)
    w = rng.normal(size=(8, 8))

    _, ln = reference.layernorm(x, gain, bias, 1e-5)
    _, ge = reference.gelu(x)
    logits, targets, weights = x, np.array([1, 7, 0]), np.array([0.5, 2.0, 1.0])
    _, ce = reference.cross_entropy(logits, targets, weights)
    cases = [
        (
            lambda x, g, b: (dout * reference.layernorm(x, g, b, 1e-5)[0]).sum(),
            [x, gain, bias],
            [
                reference.layernorm_backward(dout, ln),
                *reference.layernorm_backward_params(dout, ln),
            ],
        ),
        (lambda x: (dout * reference.gelu(x)[0]).sum(), [x], [reference.gelu_backward(dout, ge)]),
        (
            lambda x, w, b: (dout * reference.linear(x, w, b)).sum(),
            [x, w, bias],
            [reference.linear_backward(dout, w), *reference.linear_backward_params(dout, x)],
        ),
        (
            lambda x: reference.cross_entropy(x, targets, weights)[0],
            [logits],
            [reference.cross_entropy_backward(ce)],
        ),
    ]
    for f, arrays, gradients in cases:
        for i, gradient in enumerate(gradients):
            steps = np.zeros_like(gradient)
            for index in np.ndindex(gradient.shape):
                steps[index] = complex_step(f, arrays, i, index)
            assert relative_error(gradient, steps) < 1e-12


def test_the_complex_step_confirms_attention_of_the_reference_to_1e_12():
    q, k, v, pk, pv, offsets = streams([3, 1], [2, 0])
    dz = rng.normal(size=q.shape)
    _, cache = reference.attention(q, k, v, pk, pv, offsets)
    grads = reference.attention_backward(dz, cache)

    def f(q, k, v, pk0, pv0):
        z, _ = reference.attention(q, k, v, [pk0, pk[1]], [pv0, pv[1]], offsets)
        return (dz * z).sum()

    arrays = [q, k, v, pk[0], pv[0]]
    wanted = [grads.dq, grads.dk, grads.dv, grads.dprefix_k[0], grads.dprefix_v[0]]
    for i, gradient in enumerate(wanted):
        steps = np.zeros_like(gradient)
        for index in np.ndindex(gradient.shape):
            steps[index] = complex_step(f, arrays, i, index)
        assert relative_error(gradient, steps) < 1e-12


def test_the_numpy_ops_refuse_complex_numbers():
    q, k, v, pk, pv, offsets = streams([3], [2], dtype="complex128")
    sentence = "^the numpy operations take no complex128: use ops='reference'$"
    with pytest.raises(TypeError, match=sentence):
        numpy_ops.attention(q, k, v, pk, pv, offsets)
    with pytest.raises(TypeError, match=sentence):
        numpy_ops.cross_entropy(np.ones((2, 3), complex), np.array([0, 1]), np.ones(2))


# ---- the contract's promises ----


def every_call(ops, dtype="float64"):
    """(name, arguments) of a call of every function; backward calls use fresh caches."""
    r = np.random.default_rng(3)

    def a(*shape):
        return r.normal(size=shape).astype(dtype)

    tokens, positions = np.array([2, 0, 2]), np.array([1, 2, 3])
    q, k, v, pk, pv, offsets = streams([2, 3], [2, 0], dtype=dtype)
    yield "embed", (tokens, positions, a(4, 8), a(5, 8))
    yield "embed_backward_params", (a(3, 8), tokens, positions, a(4, 8), a(5, 8))
    yield "layernorm", (a(3, 8), a(8), a(8), 1e-5)
    yield "layernorm_backward", (a(3, 8), ops.layernorm(a(3, 8), a(8), a(8), 1e-5)[1])
    yield "layernorm_backward_params", (a(3, 8), ops.layernorm(a(3, 8), a(8), a(8), 1e-5)[1])
    yield "linear", (a(3, 8), a(8, 6), a(6))
    yield "linear_backward", (a(3, 6), a(8, 6))
    yield "linear_backward_params", (a(3, 6), a(3, 8))
    yield "gelu", (a(3, 8),)
    yield "gelu_backward", (a(3, 8), ops.gelu(a(3, 8))[1])
    yield "attention", (q, k, v, pk, pv, offsets)
    yield "attention_backward", (a(5, 2, 4), ops.attention(q, k, v, pk, pv, offsets)[1])
    yield "cross_entropy", (a(3, 8), np.array([1, 7, 0]), a(3))
    cache = ops.cross_entropy(a(3, 8), np.array([1, 7, 0]), a(3))[1]
    yield "cross_entropy_backward", (cache,)


def arrays_in(value):
    if isinstance(value, np.ndarray):
        yield value
    elif isinstance(value, list | tuple):
        for part in value:
            yield from arrays_in(part)


@BOTH
def test_arguments_that_the_contract_keeps_keep_their_bytes(ops):
    called = set()
    for name, arguments in every_call(ops):
        parameters = list(inspect.signature(getattr(ops, name)).parameters)
        consumed = () if ops is reference else contract.CONSUMED.get(name, ())
        kept = [a for p, a in zip(parameters, arguments, strict=True) if p not in consumed]
        before = [a.copy() for a in arrays_in(kept)]
        getattr(ops, name)(*arguments)
        for old, new in zip(before, arrays_in(kept), strict=True):
            assert np.array_equal(old, new), f"{name} wrote into an argument that it must keep"
        called.add(name)
    assert called == set(FUNCTIONS)


@BOTH
def test_float32_stays_float32(ops):
    for name, arguments in every_call(ops, "float32"):
        for out in arrays_in(getattr(ops, name)(*arguments)):
            assert out.dtype in (np.float32, np.int64), f"{name} returns {out.dtype}"


@BOTH
@pytest.mark.parametrize("wide", ["tokens", "prefix"])
def test_attention_answers_in_the_wider_type_of_the_tokens_and_the_prefix(ops, wide):
    q, k, v, pk, pv, offsets = streams([2, 3], [2, 1])
    if wide == "tokens":
        pk, pv = ([a.astype("float32") for a in part] for part in (pk, pv))
    else:
        q, k, v = (a.astype("float32") for a in (q, k, v))
    exact = [a.astype("float64") for a in (q, k, v)]
    exact += [[a.astype("float64") for a in part] for part in (pk, pv)]
    want, _ = reference.attention(*exact, offsets)
    z, _ = ops.attention(q, k, v, pk, pv, offsets)
    assert z.dtype == np.float64
    assert relative_error(z, want) < 1e-6  # the narrower half of it was computed as it came


@BOTH
def test_the_gradient_of_the_embeddings_has_the_type_of_the_incoming_gradient(ops):
    tokens, positions = np.array([2, 0, 2]), np.array([1, 2, 3])
    dx = rng.normal(size=(3, 8))
    tables = rng.normal(size=(4, 8)).astype("float32"), rng.normal(size=(5, 8)).astype("float32")
    dwte, dwpe = ops.embed_backward_params(dx, tokens, positions, *tables)
    assert dwte.dtype == dwpe.dtype == np.float64
    assert np.array_equal(dwte[2], dx[0] + dx[2])


def test_the_numpy_ops_write_their_answers_over_what_they_consume():
    r = np.random.default_rng(0)
    x, dout, gain = r.normal(size=(3, 8)), r.normal(size=(3, 8)), r.normal(size=8)
    _, ln = numpy_ops.layernorm(x, gain, gain, 1e-5)
    assert numpy_ops.layernorm_backward(dout, ln) is dout
    _, ge = numpy_ops.gelu(x)
    assert numpy_ops.gelu_backward(dout, ge) is dout
    _, ce = numpy_ops.cross_entropy(x, np.array([1, 7, 0]), np.ones(3))
    assert ce.probs is x
    assert numpy_ops.cross_entropy_backward(ce) is x


def test_the_mask_of_the_numpy_ops_is_made_once_and_cannot_be_written_to():
    mask = numpy_ops._hidden(3, np.dtype("float32"))
    x = -np.inf
    assert np.array_equal(mask, [[0, x, x], [0, 0, x], [0, 0, 0]])
    assert mask.dtype == np.float32
    assert numpy_ops._hidden(3, np.dtype("float32")) is mask
    with pytest.raises(ValueError, match="read-only"):
        mask[0, 1] = 0


@BOTH
def test_non_contiguous_inputs_give_the_same_numbers(ops):
    for name, arguments in every_call(reference):
        if name.endswith(("_backward", "_params")):
            continue
        strided = [
            np.repeat(a, 2, axis=-1)[..., ::2]
            if isinstance(a, np.ndarray) and a.dtype.kind == "f"
            else a
            for a in arguments
        ]
        want = list(arrays_in(getattr(reference, name)(*arguments)))
        got = list(arrays_in(getattr(ops, name)(*strided)))
        assert relative_error(got[0], want[0]) < 1e-14 if want else True


# ---- the laws ----


@BOTH
def test_the_laws_of_attention_hold(ops):
    q, k, v, pk, pv, offsets = streams([4, 1, 6], [3, 2, 0])
    dz = rng.normal(size=q.shape)
    _, cache = ops.attention(q, k, v, pk, pv, offsets)
    grads = ops.attention_backward(dz.copy(), cache)
    for b in range(3):
        rows = slice(offsets[b], offsets[b + 1])
        sum_dk = grads.dk[rows].sum(axis=0) + grads.dprefix_k[b].sum(axis=1)
        sum_dv = grads.dv[rows].sum(axis=0) + grads.dprefix_v[b].sum(axis=1)
        assert np.abs(sum_dk).max() < 1e-13
        assert np.abs(sum_dv - dz[rows].sum(axis=0)).max() < 1e-13


@BOTH
def test_the_rows_of_layernorms_dx_and_of_dlogits_sum_to_zero(ops):
    _, cache = ops.layernorm(
        rng.normal(size=(5, 16)), rng.normal(size=16), rng.normal(size=16), 1e-5
    )
    dx = ops.layernorm_backward(rng.normal(size=(5, 16)), cache)
    assert np.abs(dx.sum(axis=1)).max() < 1e-13 < np.abs(dx).max()
    _, ce = ops.cross_entropy(rng.normal(size=(5, 16)), np.arange(5), rng.uniform(1, 2, 5))
    dlogits = ops.cross_entropy_backward(ce)
    assert np.abs(dlogits.sum(axis=1)).max() < 1e-14 < np.abs(dlogits).max()


@BOTH
def test_permuting_prefix_slots_leaves_z_and_permutes_the_gradient(ops):
    q, k, v, pk, pv, offsets = streams([4], [5])
    dz, order = rng.normal(size=q.shape), [3, 0, 4, 1, 2]
    z, cache = ops.attention(q, k, v, pk, pv, offsets)
    grads = ops.attention_backward(dz.copy(), cache)
    z2, cache2 = ops.attention(q, k, v, [pk[0][:, order]], [pv[0][:, order]], offsets)
    grads2 = ops.attention_backward(dz.copy(), cache2)
    assert relative_error(z2, z) < 1e-14
    assert relative_error(grads2.dprefix_k[0], grads.dprefix_k[0][:, order]) < 1e-13
    assert relative_error(grads2.dprefix_v[0], grads.dprefix_v[0][:, order]) < 1e-13


# ---- blocks and threads ----


@pytest.fixture(params=[1, 2, 3])
def small_blocks(request, monkeypatch):
    """Work in many blocks, on so many threads."""
    before = threads.count()
    monkeypatch.setattr(threads, "CACHE_BYTES", 4096)
    monkeypatch.setattr(numpy_ops, "QUERIES", 16)
    threads.limit(request.param)
    yield
    threads.limit(before)


def test_attention_in_parts_is_the_same(small_blocks):
    given = streams([50, 1, 16, 17], [3, 0, 1, 7], NH=3)
    parts = numpy_ops.parts(given[0], given[3], given[5])
    assert len(parts) > 4  # the heads of one sequence are not all together
    dz = np.random.default_rng(1).normal(size=given[0].shape)
    z, cache = numpy_ops.attention(*given)
    want_z, want_cache = reference.attention(*given)
    assert relative_error(z, want_z) < 1e-13
    for name, a in numpy_ops.attention_backward(dz, cache)._asdict().items():
        want = getattr(reference.attention_backward(dz, want_cache), name)
        for got_b, want_b in zip(a, want, strict=True):
            assert relative_error(got_b, want_b) < 1e-13, name


def test_attention_of_single_tokens_is_the_same(monkeypatch):
    monkeypatch.setattr(numpy_ops, "TOGETHER", 2)  # of three
    given = streams([1, 1, 1], [3, 0, 7], NH=3)
    z, cache = numpy_ops.attention(*given)
    want_z, want_cache = reference.attention(*given)
    assert relative_error(z, want_z) < 1e-13
    dz = np.random.default_rng(1).normal(size=z.shape)
    found = numpy_ops.attention_backward(dz, cache)
    for got, want in zip(found, reference.attention_backward(dz, want_cache), strict=True):
        for got_b, want_b in zip(got, want, strict=True):
            assert relative_error(got_b, want_b) < 1e-13


def test_work_on_rows_in_blocks_is_the_same(small_blocks):
    r = np.random.default_rng(0)
    x, dout, gain, bias = r.normal(size=(4, 60, 60))
    gain, bias = gain[0], bias[0]
    targets, weights = r.integers(0, 60, 60), r.random(60)
    for ops in (numpy_ops, reference):
        ln_out, ln = ops.layernorm(x, gain, bias, 1e-5)
        gelu_out, gelu = ops.gelu(x.copy())
        loss, ce = ops.cross_entropy(x.copy(), targets, weights)
        found = [
            *(ln_out, ops.layernorm_backward(dout.copy(), ln)),
            *(gelu_out, ops.gelu_backward(dout.copy(), gelu)),
            *(loss, ops.cross_entropy_backward(ce)),
        ]
        if ops is numpy_ops:
            assert len(threads.row_blocks(60, x[:1].nbytes)) > 5
            fast = found
    for a, b in zip(fast, found, strict=True):
        assert relative_error(a, b) < 1e-13


@pytest.mark.parametrize("lengths", [[1, 1], [5, 3]], ids=["single tokens", "sequences"])
def test_attention_survives_scores_of_every_size(lengths):
    """One head's scores are near 1e4 and another's near -1e4: exp of neither exists, nor of one
    beside the largest of the other."""
    q, k, v, prefix_k, prefix_v, offsets = streams(lengths, [3, 2], NH=2)
    q, k = np.abs(q) + 1, np.abs(k) + 1
    prefix_k = [np.abs(a) + 1 for a in prefix_k]
    q[:, 0] *= 3000
    q[:, 1] *= -3000
    given = (q, k, v, prefix_k, prefix_v, offsets)
    z, cache = numpy_ops.attention(*given)
    want_z, want_cache = reference.attention(*given)
    assert relative_error(z, want_z) < 1e-9
    dz = np.random.default_rng(1).normal(size=z.shape)
    found = numpy_ops.attention_backward(dz, cache)
    assert relative_error(found.dv, reference.attention_backward(dz, want_cache).dv) < 1e-9


def test_parts_hold_as_many_heads_as_fit_and_every_head_once(monkeypatch):
    q, _, _, prefix_k, _, offsets = streams([200, 3], [10, 0], NH=5)
    head = 128 * (10 + 200) * 8  # of the first sequence: a block of queries, all keys, in bytes
    monkeypatch.setattr(threads, "CACHE_BYTES", 3 * head - 1)
    assert numpy_ops.parts(q, prefix_k, offsets) == [
        (0, slice(0, 2), slice(0, 200)),
        (0, slice(2, 4), slice(0, 200)),
        (0, slice(4, 5), slice(0, 200)),
        (1, slice(0, 5), slice(200, 203)),
    ]


def test_float32_stays_float32_inside(monkeypatch):
    r = np.random.default_rng(0)
    x, weight = r.normal(size=(2, 12)), r.normal(size=(1001, 12)).T
    monkeypatch.setattr(numpy_ops, "SMALL_PRODUCT", 3000)
    for a in (np.float32, np.float64):
        for b in (np.float32, np.float64):
            found = numpy_ops._few_rows(x.astype(a), weight.astype(b), 48)
            assert found.dtype == np.result_type(a, b)
    logits = r.normal(size=(3, 5)).astype(np.float32)
    loss, _ = numpy_ops.cross_entropy(logits, np.array([0, 1, 2]), np.ones(3, np.float32))
    assert loss.dtype == np.float32


@pytest.mark.parametrize("n", [2, 5])
def test_a_product_of_few_rows_is_the_same(small_blocks, monkeypatch, n):
    r = np.random.default_rng(0)
    x, weight, bias = r.normal(size=(n, 12)), r.normal(size=(1001, 12)).T, r.normal(size=1001)
    monkeypatch.setattr(numpy_ops, "SMALL_PRODUCT", 3000)
    taken = []
    few_rows = numpy_ops._few_rows
    monkeypatch.setattr(numpy_ops, "_few_rows", lambda *a: taken.append(a) or few_rows(*a))
    assert relative_error(numpy_ops.linear(x, weight, bias), x @ weight + bias) < 1e-14
    assert relative_error(numpy_ops.linear(x, weight, None), x @ weight) < 1e-14
    assert len(taken) == 2
    numpy_ops.linear(x, np.ascontiguousarray(weight), None)
    numpy_ops.linear(x[:1], weight, None)
    numpy_ops.linear(np.repeat(x, 50, axis=0), weight, None)
    assert len(taken) == 2  # of other weights the columns lie apart, and many rows pay for packing


def test_attention_keeps_no_pattern():
    given = streams([200], [4], NH=2)
    _, cache = numpy_ops.attention(*given)
    own = {id(a) for a in given[:3]}
    kept = sum(a.nbytes for a in cache if isinstance(a, np.ndarray) and id(a) not in own)
    assert kept < 200 * 200 * 8  # not even that of one head
