import numpy as np

from tests.exercises import wrong


@wrong("lora_backward", says="dA is what one gets where s is forgotten")
def the_scale_stands_in_the_forward_only(dout, x, W, A, B, s):
    du = dout @ B.T
    return dout @ W.T + s * du @ A.T, x.T @ du, (x @ A).T @ dout


@wrong("lora_backward", says="dA is what one gets where s stands twice")
def the_scale_is_in_du_and_again_in_dA(dout, x, W, A, B, s):
    du = s * dout @ B.T
    return dout @ W.T + du @ A.T, s * x.T @ du, s * (x @ A).T @ dout


@wrong("lora_backward", says="the way through A and B is missing")
def the_input_has_one_way_back(dout, x, W, A, B, s):
    return dout @ W.T, s * x.T @ dout @ B.T, s * (x @ A).T @ dout


@wrong("lora_backward", says="dA is a mean over the N rows")
def the_gradients_are_means_over_the_rows(dout, x, W, A, B, s):
    du = s * dout @ B.T
    return dout @ W.T + du @ A.T, x.T @ du / len(x), s * (x @ A).T @ dout / len(x)


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


@wrong("prompt_backward", says="dprompt is what the keys send alone")
def the_values_of_the_texts_are_forgotten(dkv, w, blocks, ops):
    return _prompt(dkv, w, blocks, ops, values=0)


@wrong("prompt_backward", says="dprompt is what the values send alone")
def the_keys_of_the_texts_are_forgotten(dkv, w, blocks, ops):
    return _prompt(dkv, w, blocks, ops, keys=0)


@wrong("prompt_backward", says="dprompt is 0 everywhere")
def nothing_comes_from_the_texts(dkv, w, blocks, ops):
    return _prompt(dkv, w, blocks, ops, keys=0, values=0)


@wrong("prompt_backward", says="dprompt is what the top layer sends alone")
def the_top_layer_alone_is_asked(dkv, w, blocks, ops):
    only_top = dkv * (np.arange(len(dkv)) == len(dkv) - 1)[:, None, None, None, None]
    return _prompt(only_top, w, blocks, ops)
