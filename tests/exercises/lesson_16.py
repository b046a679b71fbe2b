from types import SimpleNamespace

import numpy as np

from minprefix.methods import Adapters, LoRA, PromptTuning
from tests.exercises import lazy, wrong


def _numbers(L, C, V, n_positions, P, r, m, **other):
    """Right as it stands; each answer below changes one thing."""
    layer = 12 * C * C + 9 * C + 4 * C
    return {
        "prefix": L * P * 2 * C,
        "prompt": P * C,
        "LoRA": 4 * L * C * r,
        "adapters": 2 * L * (2 * C * m + C + m),
        "full": (V + n_positions) * C + L * layer + 2 * C,
    } | other


@wrong("trained_numbers", says="A slot has a key and a value in each layer")
def a_slot_is_one_vector(L, C, V, n_positions, P, r, m):
    return _numbers(L, C, V, n_positions, P, r, m, prefix=P * C * L)


@wrong("trained_numbers", says="The biases are missing: b_D (m,) and b_U (C,).")
def the_adapters_have_no_biases(L, C, V, n_positions, P, r, m):
    return _numbers(L, C, V, n_positions, P, r, m, adapters=4 * L * m * C)


@lazy("trained_numbers", says="LoRA is off by")
def the_numbers_of_the_lesson_are_typed_in(L, C, V, n_positions, P, r, m):
    return {"prefix": L * 2 * P * C, "prompt": P * C, "LoRA": 20480, "adapters": 21824} | {
        "full": 1442240
    }


@wrong("adapter", says="The way around is missing")
def nothing_goes_around_the_adapter(h, D, b_D, U, b_U, ops):
    a, _ = ops.gelu(b_D + h @ D)
    return b_U + a @ U


@wrong("adapter", says="The GELU is missing between the two products.")
def the_adapter_is_linear(h, D, b_D, U, b_U, ops):
    z = h @ D + b_D
    return h + z @ U + b_U


@lazy("adapter", says="calls methods.adapters.Adapters.path of the package")
def the_packages_adapter_does_it(h, D, b_D, U, b_U, ops):
    parts = {"down": D, "down_bias": b_D, "up": U, "up_bias": b_U}
    there = Adapters({f"h.0.mlp.c_proj.{name}": a for name, a in parts.items()})
    return there.path("h.0.mlp.c_proj", h, h, ops, None)[0]


@wrong("adapter_backward", says="The way around is missing")
def the_gradient_takes_the_network_alone(dout, h, D, b_D, U, b_U, ops):
    a, cache = ops.gelu(h @ D + b_D)
    dz = ops.gelu_backward(dout @ U.T, cache)
    return dz @ D.T, h.T @ dz, dz.sum(axis=0), a.T @ dout, dout.sum(axis=0)


@wrong("adapter_backward", says="the gradient has to pass the GELU's backward")
def the_gelu_lets_the_gradient_through(dout, h, D, b_D, U, b_U, ops):
    a = ops.gelu(h @ D + b_D)[0]
    dz = dout @ U.T
    return dout + dz @ D.T, h.T @ dz, dz.sum(axis=0), a.T @ dout, dout.sum(axis=0)


@lazy("adapter_backward", says="calls methods.adapters.Adapters.path of the package")
def the_packages_adapter_goes_back(dout, h, D, b_D, U, b_U, ops):
    parts = {"down": D, "down_bias": b_D, "up": U, "up_bias": b_U}
    layer = "h.0.mlp.c_proj"
    there = Adapters({f"{layer}.{name}": a for name, a in parts.items()})
    _, cache = there.path(layer, h, h, ops, None)
    grads = there.path_grads(layer, dout, cache, ops)
    dh, _ = there.path_backward(layer, dout, cache, ops)
    return dh, *(grads[f"{layer}.{name}"] for name in parts)


@wrong("lora", says="The scale s is missing.")
def the_scale_is_forgotten(x, W, b, A, B, s):
    return x @ W + (x @ A) @ B + b


@wrong("lora", says="The frozen layer's own x W is missing")
def the_frozen_weight_is_left_out(x, W, b, A, B, s):
    return b + x @ A @ B * s


@lazy("lora", says="forms an array of the shape (in, out)")
def the_weights_are_merged_at_each_call(x, W, b, A, B, s):
    return x @ (W + s * A @ B) + b


@wrong("merged_weight", says="The scale s is missing.")
def the_merged_weight_has_no_scale(W, A, B, s):
    return W + A @ B


@wrong("merged_weight", says="W itself is missing")
def the_product_replaces_the_weight(W, A, B, s):
    return A @ B * s


@lazy("merged_weight", says="calls methods.lora.LoRA._added of the package")
def the_packages_lora_merges(W, A, B, s):
    layer = "h.0.attn.c_attn"
    model = SimpleNamespace(weights={f"{layer}.weight": W})
    parts = {f"{layer}.lora_A": A, f"{layer}.lora_B": B}
    return LoRA(parts)._added(model, s)[f"{layer}.weight"]


@wrong("lora_backward", says="The scale s is missing in du")
def the_scale_stands_in_the_forward_only(dout, x, W, A, B, s):
    du = dout @ B.T
    return dout @ W.T + s * du @ A.T, x.T @ du, (x @ A).T @ dout


@wrong("lora_backward", says="The scale s stands twice in dA")
def the_scale_is_in_du_and_again_in_dA(dout, x, W, A, B, s):
    du = s * dout @ B.T
    return dout @ W.T + du @ A.T, s * x.T @ du, s * (x @ A).T @ dout


@wrong("lora_backward", says="The way through A and B is missing")
def the_input_has_one_way_back(dout, x, W, A, B, s):
    return dout @ W.T, s * (x.T @ (dout @ B.T)), s * (x @ A).T @ dout


@wrong("lora_backward", says="dA is a mean over the N rows")
def the_gradients_are_means_over_the_rows(dout, x, W, A, B, s):
    du = s * dout @ B.T
    return dout @ W.T + du @ A.T, x.T @ du / len(x), s * (x @ A).T @ dout / len(x)


@lazy("lora_backward", says="forms an array of the shape (in, out)")
def the_gradient_of_the_weight_is_formed(dout, x, W, A, B, s):
    dW = x.T @ dout
    return dout @ W.T + s * (dout @ B.T) @ A.T, s * dW @ B.T, s * A.T @ dW


@lazy("lora_backward", says="forms an array of the shape (in, out)")
def the_gradient_of_the_weight_is_formed_by_einsum(dout, x, W, A, B, s):
    dW = np.einsum("ni,no->io", x, dout)
    return dout @ W.T + s * (dout @ B.T) @ A.T, s * dW @ B.T, s * A.T @ dW


def _prompt(dkv, w, blocks, ops, keys=1.0, values=1.0):
    """Right as it stands; each answer below changes one thing."""
    L, _, NH, P, hs = dkv.shape
    dx = np.zeros((P, NH * hs))
    for i in reversed(range(L)):
        ln_1, attention, ln_2, gelu = blocks[i]
        dh = ops.linear_backward(dx, w[f"h.{i}.mlp.c_proj.weight"])
        dm = ops.linear_backward(ops.gelu_backward(dh, gelu), w[f"h.{i}.mlp.c_fc.weight"])
        dx = dx + ops.layernorm_backward(dm, ln_2)
        dz = ops.linear_backward(dx, w[f"h.{i}.attn.c_proj.weight"])
        grads = ops.attention_backward(dz.reshape(P, NH, hs), attention)
        dk = grads.dk + keys * dkv[i, 0].swapaxes(0, 1)
        dv = grads.dv + values * dkv[i, 1].swapaxes(0, 1)
        dqkv = np.stack([grads.dq, dk, dv], axis=1).reshape(P, -1)
        dx = dx + ops.layernorm_backward(
            ops.linear_backward(dqkv, w[f"h.{i}.attn.c_attn.weight"]), ln_1
        )
    return dx


@wrong("prompt_backward", says="dv lacks what the texts sent")
def the_values_of_the_texts_are_forgotten(dkv, w, blocks, ops):
    return _prompt(dkv, w, blocks, ops, values=0)


@wrong("prompt_backward", says="dk lacks what the texts sent")
def the_keys_of_the_texts_are_forgotten(dkv, w, blocks, ops):
    return _prompt(dkv, w, blocks, ops, keys=0)


@wrong("prompt_backward", says="is 0 everywhere")
def nothing_comes_from_the_texts(dkv, w, blocks, ops):
    return _prompt(dkv, w, blocks, ops, keys=0, values=0)


@lazy("prompt_backward", says="calls methods.prompt_tuning.PromptTuning.prefix_backward")
def the_packages_prompt_does_it(dkv, w, blocks, ops):
    return PromptTuning({"prompt": dkv[0, 0, 0]}).prefix_backward(dkv, w, blocks, ops)["prompt"]


@lazy("lora", says="forms an array of the shape (in, out)")
def the_merged_weight_without_a_product(x, W, b, A, B, s):
    return x @ (W + s * (A[:, :, None] * B).sum(axis=1)) + b


@lazy("adapter_backward", says="computes with complex numbers")
def the_complex_step(dout, h, D, b_D, U, b_U, ops):
    inputs, grads = [h, D, b_D, U, b_U], []
    for i, a in enumerate(inputs):
        grad = np.zeros(a.shape)
        for at in np.ndindex(a.shape):
            moved = a.astype(complex)
            moved[at] += 1e-30j
            h_, D_, b_D_, U_, b_U_ = (moved if j == i else each for j, each in enumerate(inputs))
            z = h_ @ D_ + b_D_
            g = 0.5 * z * (1 + np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3)))
            grad[at] = (dout * (h_ + g @ U_ + b_U_)).sum().imag / 1e-30
        grads.append(grad)
    return tuple(grads)
