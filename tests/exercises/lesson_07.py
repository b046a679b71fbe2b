from types import SimpleNamespace

import numpy as np

from minprefix.gpt2 import mlp_half_backward as package_mlp_half_backward
from minprefix.lessons.exercises import lesson_07
from minprefix.model import GPT2, Batch, loss_and_grad
from minprefix.ops import reference as ops
from minprefix.prefix import Prefix
from tests.exercises import lazy, wrong

#: the lesson's own functions, which an answer may call
lesson = SimpleNamespace(**lesson_07.run_model.ours().function().__globals__)


# ---- what is needed ------------------------------------------------------------------------------


@wrong("needed", says="Here a layer counts as below itself")
def from_the_lowest_trained_layer_on(weights, slots):
    need_dx, seen = [], False
    for weight, slot in zip(weights, slots, strict=True):
        seen = seen or weight or slot
        need_dx.append(seen)
    return np.array(need_dx), np.array(weights)


@wrong("needed", says="The slots were forgotten")
def only_weights_are_trained(weights, slots):
    need_dx = np.cumsum(weights) - weights > 0
    return need_dx, np.array(weights)


@wrong("needed", says="Only the layer itself was asked")
def a_frozen_layer_needs_no_gradient(weights, slots):
    need_dx = np.array([w or s for w, s in zip(weights, slots, strict=True)])
    return need_dx, np.array(weights)


@wrong("needed", says="The weights were forgotten")
def only_slots_are_trained(weights, slots):
    return np.array([any(slots[:i]) for i in range(len(slots))]), np.array(weights)


@wrong("needed", says="need_dW was made dependent on need_dx")
def no_weights_without_dx(weights, slots):
    need_dx = np.array([any(weights[:i]) or any(slots[:i]) for i in range(len(weights))])
    return need_dx, np.array(weights) & need_dx


@lazy("needed", says="need_dx is off by")
def everything_is_needed(weights, slots):
    L = len(weights)
    return np.full(L, True), np.full(L, True)


# ---- a block -------------------------------------------------------------------------------------


@wrong("mlp_half_backward", says="The way around the MLP is missing")
def only_through_the_mlp(dresid_post, b, ln_2, gelu):
    dh = ops.gelu_backward(ops.linear_backward(dresid_post, b["mlp.c_proj.weight"]), gelu)
    dresid_mid = ops.layernorm_backward(ops.linear_backward(dh, b["mlp.c_fc.weight"]), ln_2)
    return dresid_mid


@wrong("mlp_half_backward", says="The way around the MLP goes through the layernorm here")
def around_the_mlp_but_not_around_the_layernorm(dresid_post, b, ln_2, gelu):
    d = ops.linear_backward(dresid_post, b["mlp.c_proj.weight"])
    d = ops.gelu_backward(d, gelu)
    d = dresid_post + ops.linear_backward(d, b["mlp.c_fc.weight"])
    return ops.layernorm_backward(d, ln_2)


@lazy("mlp_half_backward", says="calls gpt2.mlp_half_backward of the package")
def the_package_has_this_backward(dresid_post, b, ln_2, gelu):
    cache = SimpleNamespace(need=frozenset(), ln_2=ln_2, ln_2_out=None, gelu=gelu, gelu_out=None)
    return package_mlp_half_backward(dresid_post, b, cache, ops)[0]


def _attention_half(dresid_mid, b, ln_1, attention, need_dx, axis=1, around=1):
    """Right as it stands; each answer below changes one thing."""
    dz = ops.linear_backward(dresid_mid, b["attn.c_proj.weight"])
    grads = ops.attention_backward(dz.reshape(attention.q.shape), attention)
    dresid_pre = None
    if need_dx:
        dqkv = np.stack([grads.dq, grads.dk, grads.dv], axis=axis).reshape(len(dz), -1)
        da = ops.linear_backward(dqkv, b["attn.c_attn.weight"])
        dresid_pre = around * dresid_mid + ops.layernorm_backward(da, ln_1)
    return dresid_pre, grads.dprefix_k, grads.dprefix_v


@wrong("attention_half_backward", says="dq, dk and dv were laid side by side head by head")
def the_three_are_stacked_head_by_head(dresid_mid, b, ln_1, attention, need_dx):
    return _attention_half(dresid_mid, b, ln_1, attention, need_dx, axis=2)


@wrong("attention_half_backward", says="The way around the attention is missing")
def only_through_the_attention(dresid_mid, b, ln_1, attention, need_dx):
    return _attention_half(dresid_mid, b, ln_1, attention, need_dx, around=0)


@wrong("attention_half_backward", says="The slots' gradients are missing")
def nothing_is_needed_at_the_bottom(dresid_mid, b, ln_1, attention, need_dx):
    if not need_dx:
        return None, None, None
    return _attention_half(dresid_mid, b, ln_1, attention, need_dx)


@lazy("attention_half_backward", says="computes dresid_pre where nobody needs it")
def everything_is_computed(dresid_mid, b, ln_1, attention, need_dx):
    dresid_pre, dprefix_k, dprefix_v = _attention_half(dresid_mid, b, ln_1, attention, True)
    return (dresid_pre if need_dx else None), dprefix_k, dprefix_v


@lazy("attention_half_backward", says="computes dresid_pre where nobody needs it")
def only_the_layernorm_is_left_out(dresid_mid, b, ln_1, attention, need_dx):
    dz = ops.linear_backward(dresid_mid, b["attn.c_proj.weight"])
    grads = ops.attention_backward(dz.reshape(attention.q.shape), attention)
    dqkv = np.stack([grads.dq, grads.dk, grads.dv], axis=1).reshape(len(dz), -1)
    da = dqkv @ b["attn.c_attn.weight"].T
    dresid_pre = dresid_mid + ops.layernorm_backward(da, ln_1) if need_dx else None
    return dresid_pre, grads.dprefix_k, grads.dprefix_v


# ---- from the loss to the slots ------------------------------------------------------------------


@wrong("lm_head_backward", says="The rows lie in the wrong places")
def the_rows_stand_at_the_front(dlogits, w, ln_f, rows, N):
    dy = dlogits @ w.get("lm_head.weight", w["wte.weight"])
    drows = ops.layernorm_backward(dy, ln_f)
    rest = np.zeros((N - len(rows), drows.shape[1]))
    return np.concatenate([drows, rest])


@wrong("lm_head_backward", says="without the last layernorm's backward")
def the_last_layernorm_is_left_out(dlogits, w, ln_f, rows, N):
    weight = w["lm_head.weight"] if "lm_head.weight" in w else w["wte.weight"]
    dx = np.zeros((N, weight.shape[1]))
    dx[rows] = dlogits @ weight
    return dx


@lazy("lm_head_backward", says="dx has shape (2, 4), expected (6, 4)")
def the_rows_alone_are_returned(dlogits, w, ln_f, rows, N):
    dx = ops.layernorm_backward(dlogits @ w["wte.weight"], ln_f)
    return dx


@wrong("sum_over_texts", says="The last text wins")
def the_last_text_wins(of_texts, prefix_of, prefixes):
    found = {j: np.zeros_like(slots) for j, slots in enumerate(prefixes)}
    found |= dict(zip(prefix_of, of_texts, strict=True))
    return list(found.values())


@wrong("sum_over_texts", says="it writes into its argument of_texts, the caller's")
def the_first_texts_own_array_is_the_sum(of_texts, prefix_of, prefixes):
    sums = [None] * len(prefixes)
    for j, d in zip(prefix_of, of_texts, strict=True):
        if sums[j] is None:
            sums[j] = d
        else:
            sums[j] += d
    return [np.zeros_like(p) if s is None else s for s, p in zip(sums, prefixes, strict=True)]


@wrong("sum_over_texts", says="This is the mean over the texts")
def the_mean_of_the_texts(of_texts, prefix_of, prefixes):
    means = []
    for j, slots in enumerate(prefixes):
        mine = [d for i, d in zip(prefix_of, of_texts, strict=True) if i == j]
        means.append(np.mean(mine, axis=0) if mine else np.zeros_like(slots))
    return means


@wrong("sum_over_texts", says="The sums begin with the slots themselves")
def the_sums_begin_with_the_slots(of_texts, prefix_of, prefixes):
    sums = [slots.copy() for slots in prefixes]
    for j, d in zip(prefix_of, of_texts, strict=True):
        sums[j] += d
    return sums


@lazy("sum_over_texts", says="sums[0] is off by")
def all_texts_share_one_prefix(of_texts, prefix_of, prefixes):
    P = min(d.shape[1] for d in of_texts)
    return [sum(d[:, :P] for d in of_texts)] * len(prefixes)


def _run(problem, passes_on=1, around_the_mlp=1, share=np.add):
    """Right as it stands; each answer below changes one thing."""
    w = problem.weights
    loss, batch, blocks, ln_f, cross_entropy = lesson.keep(problem)
    dlogits = ops.cross_entropy_backward(cross_entropy)
    dx = lesson.lm_head_backward(dlogits, w, ln_f, batch.rows, len(batch.tokens))
    dkv = [np.zeros_like(kv) for kv in problem.prefixes]
    found = {"loss": np.asarray(loss)}
    for i in reversed(range(len(blocks))):
        b, (ln_1, attention, ln_2, gelu) = lesson.names_of(w, i), blocks[i]
        found[f"blocks.{i}.dresid_post"] = dx
        dh = ops.gelu_backward(ops.linear_backward(dx, b["mlp.c_proj.weight"]), gelu)
        dm = ops.linear_backward(dh, b["mlp.c_fc.weight"])
        dx = around_the_mlp * dx + ops.layernorm_backward(dm, ln_2)
        found[f"blocks.{i}.dresid_mid"] = dx
        dx, dk, dv = _attention_half(dx, b, ln_1, attention, True)
        for text, j in enumerate(batch.prefix):
            dkv[j][i, 0] = share(dkv[j][i, 0], dk[text])
            dkv[j][i, 1] = share(dkv[j][i, 1], dv[text])
        dx = passes_on * dx
    for j, d in enumerate(dkv):
        found |= {f"prefix.{j}.dk": d[:, 0], f"prefix.{j}.dv": d[:, 1]}
    return found


@wrong("run_model", says="the zoo's gradient-stops-below-the-top")
def the_gradient_ends_at_a_frozen_block(problem):
    return _run(problem, passes_on=0)


@wrong("run_model", says="the zoo's shared-prefix-last-sequence-wins")
def texts_that_share_a_prefix_do_not_add_up(problem):
    return _run(problem, share=lambda before, new: new)


@wrong("run_model", says="the zoo's residual-dropped-around-the-mlp")
def the_gradient_does_not_go_around_the_mlp(problem):
    return _run(problem, around_the_mlp=0)


@lazy("run_model", says="calls model.loss_and_grad of the package")
def the_package_finds_the_gradient(problem):
    batch = Batch.pack(problem.sequences, problem.loss_from, problem.prefix_of)
    prefixes = [
        Prefix(kv, position_offset=offset)
        for kv, offset in zip(problem.prefixes, problem.position_offsets, strict=True)
    ]
    model = GPT2(problem.config, dict(problem.weights))
    loss, dkvs = loss_and_grad(model, prefixes, batch, problem.reduction, ops="reference")
    found = {"loss": np.asarray(loss)}
    for j, dkv in enumerate(dkvs):
        found |= {f"prefix.{j}.dk": dkv[:, 0], f"prefix.{j}.dv": dkv[:, 1]}
    return found


# ---- along a direction ---------------------------------------------------------------------------


@wrong("slopes_along", says="The layers were added up, too")
def one_number_for_all_layers(dkv, u):
    slopes = np.vdot(dkv, u)
    return slopes


@wrong("slopes_along", says="This is a mean")
def the_mean_of_each_layer(dkv, u):
    slopes = (dkv * u).reshape(len(u), -1).mean(axis=1)
    return slopes


@lazy("slopes_along", says="slopes has shape (4,)")
def four_layers_as_in_the_small_model(dkv, u):
    slopes = np.zeros(4)
    slopes[: len(u)] = np.einsum("iabcd,iabcd->i", dkv, u)
    return slopes


# ---- multiply-adds -------------------------------------------------------------------------------


@wrong("linear_madds", says="dx is computed, frozen or not")
def a_frozen_layer_has_no_backward(N, n_in, n_out, frozen):
    forward = N * n_in * n_out
    return (forward, 0, 0) if frozen else (forward, forward, forward)


@wrong("linear_madds", says="dW is a product over all N rows")
def a_weights_gradient_is_as_large_as_the_weight(N, n_in, n_out, frozen):
    forward = dx = N * n_in * n_out
    dW = n_in * n_out * (not frozen)
    return forward, dx, dW


@lazy("linear_madds", says="dW is off by")
def one_number_for_all_three(N, n_in, n_out, frozen):
    forward = dx = dW = N * n_in * n_out
    return forward, dx, dW


@wrong("attention_madds", says="The slots were forgotten")
def tokens_meet_tokens_only(lengths, P, C, recomputes):
    forward = 2 * C * int(np.square(lengths).sum())
    return forward, forward * (5 if recomputes else 4) // 2


@wrong("attention_madds", says="The texts were counted as one")
def the_batch_is_one_text(lengths, P, C, recomputes):
    N = sum(lengths)
    return 2 * C * N * (P + N), (4 + recomputes) * C * N * (P + N)


@wrong("attention_madds", says="The fifth product is missing")
def four_products_in_any_case(lengths, P, C, recomputes):
    forward = sum(2 * C * T * (T + P) for T in lengths)
    return forward, 2 * forward


@lazy("attention_madds", says="is off by")
def the_mean_length_will_do(lengths, P, C, recomputes):
    T = sum(lengths) // len(lengths)
    one = len(lengths) * C * T * (P + T)
    return 2 * one, (5 if recomputes else 4) * one


def _step(L, C, F, V, lengths, P, rows, frozen, top_rows=None, products=5, lowest=1):
    """Right as it stands; each answer below changes one thing."""
    N, keys = sum(lengths), sum(T * (T + P) for T in lengths)
    top_rows = rows if top_rows is None else top_rows
    attn = N * 3 * C**2 * L
    rest = (C**2 + 2 * C * F) * (N * (L - 1) + top_rows)
    head = rows * C * V
    forward = attn + rest + head + 2 * L * C * keys
    dx = attn + rest + head + products * L * C * keys
    if frozen:
        dx -= lowest * N * 3 * C**2
    return {"forward": forward, "dx": dx, "dW": 0 if frozen else attn + rest + head}


@wrong("step_madds", says="Layer 0's c_attn was counted in dx")
def the_backward_runs_to_the_bottom(L, C, F, V, lengths, P, rows, frozen):
    return _step(L, C, F, V, lengths, P, rows, frozen, lowest=0)


@wrong("step_madds", says="The top layer was counted with all N rows after attention")
def the_top_layer_is_as_any_other(L, C, F, V, lengths, P, rows, frozen):
    return _step(L, C, F, V, lengths, P, rows, frozen, top_rows=sum(lengths))


@wrong("step_madds", says="The fifth product is missing")
def attention_has_four_products(L, C, F, V, lengths, P, rows, frozen):
    return _step(L, C, F, V, lengths, P, rows, frozen, products=4)


@lazy("step_madds", says="is off by")
def two_thirds_of_fine_tuning(L, C, F, V, lengths, P, rows, frozen):
    whole = _step(L, C, F, V, lengths, P, rows, False)
    if frozen:
        whole["dx"], whole["dW"] = whole["forward"], 0
    return whole
