import numpy as np

from minprefix.gpt2 import embedding, forward, head_loss, head_loss_backward
from minprefix.model import GPT2, Batch, prepare
from minprefix.ops import reference as ops
from minprefix.prefix import Prefix
from tests.exercises import wrong


def _run(problem, passes_on=1, around_the_mlp=1, share=np.add):
    """Right as it stands; each answer below changes one thing."""
    w, cfg = problem.weights, problem.config
    batch = Batch.pack(problem.sequences, problem.loss_from, problem.prefix_of)
    prefixes = [
        Prefix(kv, position_offset=offset)
        for kv, offset in zip(problem.prefixes, problem.position_offsets, strict=True)
    ]
    stream = prepare(GPT2(cfg, dict(w)), batch, prefixes)
    x, blocks = forward(embedding(stream, w, ops), stream, w, cfg, ops)
    count = batch.weights.sum() if problem.reduction == "mean" else 1
    weights = (batch.weights / count).astype(x.dtype)
    loss, kept = head_loss(x[batch.rows], batch.targets, weights, w, cfg, ops, frozenset())
    dx = np.zeros_like(x)
    dx[batch.rows], _ = head_loss_backward(w, kept, ops)
    dkv = [np.zeros_like(kv) for kv in problem.prefixes]
    found = {"loss": np.asarray(loss)}
    for i in reversed(range(cfg.n_layer)):
        attn, mlp = blocks[i]
        attention = attn.attention
        found[f"blocks.{i}.dresid_post"] = dx
        dh = ops.gelu_backward(ops.linear_backward(dx, w[f"h.{i}.mlp.c_proj.weight"]), mlp.gelu)
        dm = ops.linear_backward(dh, w[f"h.{i}.mlp.c_fc.weight"])
        dx = around_the_mlp * dx + ops.layernorm_backward(dm, mlp.ln_2)
        found[f"blocks.{i}.dresid_mid"] = dx
        dz = ops.linear_backward(dx, w[f"h.{i}.attn.c_proj.weight"])
        grads = ops.attention_backward(dz.reshape(attention.q.shape), attention)
        for j, dk, dv in zip(batch.prefix, grads.dprefix_k, grads.dprefix_v, strict=True):
            dkv[j][i, 0], dkv[j][i, 1] = share(dkv[j][i, 0], dk), share(dkv[j][i, 1], dv)
        dqkv = np.stack([grads.dq, grads.dk, grads.dv], axis=1).reshape(len(dx), -1)
        da = ops.linear_backward(dqkv, w[f"h.{i}.attn.c_attn.weight"])
        dx = passes_on * (dx + ops.layernorm_backward(da, attn.ln_1))
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
