import numpy as np

from minprefix import GPT2, Batch, Prefix, loss_and_grad, optim
from tests.exercises import wrong


def _flatten(kv):
    return kv.transpose(3, 0, 1, 2, 4).reshape(kv.shape[3], -1)


def _unflatten(flat, L, NH, hs):
    return flat.reshape(len(flat), L, 2, NH, hs).transpose(1, 2, 3, 0, 4)


def _training(problem, tanh=True, embedding=True, flatten=_flatten, unflatten=_unflatten):
    """Right as it stands; each answer below changes one thing."""
    p, c, found = problem, problem.config, {}
    model = GPT2(c, dict(p.weights))
    params = {f"{i}.{n}": a.copy() for i, own in enumerate(p.parameters) for n, a in own.items()}
    adam = optim.AdamW(p.beta1, p.beta2, p.eps, p.weight_decay)
    for s, step in enumerate(p.steps):
        own = [{n: params[f"{i}.{n}"] for n in a} for i, a in enumerate(p.parameters)]
        hidden, prefixes = [], []
        for a in own:
            if "kv" in a:
                hidden.append(None)
                prefixes.append(Prefix(a["kv"]))
                continue
            hidden.append(np.tanh(a["embedding"] @ a["weight_1"] + a["bias_1"]))
            flat = hidden[-1] @ a["weight_2"] + a["bias_2"]
            prefixes.append(Prefix(unflatten(flat, c.n_layer, c.n_head, c.head_size)))
        batches = [Batch.pack(b.sequences, b.loss_from, b.prefix_of) for b in step]
        M, loss, dkvs = sum(len(b.targets) for b in batches), 0.0, [0.0] * len(prefixes)
        for batch in batches:
            part, dparts = loss_and_grad(model, prefixes, batch, reduction="sum", ops="reference")
            loss += part / M
            dkvs = [dkv + dpart / M for dkv, dpart in zip(dkvs, dparts, strict=True)]
        found[f"step.{s}.loss"] = loss
        grads = {}
        for i, (a, h, dkv) in enumerate(zip(own, hidden, dkvs, strict=True)):
            if h is None:
                grads[f"{i}.kv"] = dkv
                continue
            dflat = flatten(dkv)
            du = dflat @ a["weight_2"].T * (1 - h * h if tanh else 1)
            grads |= {
                f"{i}.embedding": du @ a["weight_1"].T * (1 if embedding else 0),
                f"{i}.weight_1": a["embedding"].T @ du,
                f"{i}.bias_1": du.sum(axis=0),
                f"{i}.weight_2": h.T @ dflat,
                f"{i}.bias_2": dflat.sum(axis=0),
            }
        for name, g in grads.items():
            found[f"step.{s}.prefix.{name.replace('.', '.gradient.')}"] = g.copy()
        if p.clip is not None:
            optim.clip(grads, optim.global_norm(grads), p.clip)
        adam.step(params, grads, optim.learning_rate(s, len(p.steps), p.lr, p.warmup, "linear"))
        found |= {f"step.{s}.prefix.{name}": a.copy() for name, a in params.items()}
    return found


@wrong("run_training", says="the zoo's tanh-derivative-missing")
def the_derivative_of_tanh_is_forgotten(problem):
    return _training(problem, tanh=False)


@wrong("run_training", says="the zoo's embedding-not-trained")
def the_embedding_is_taken_for_an_input(problem):
    return _training(problem, embedding=False)


@wrong("run_training", says="the zoo's flattened-without-a-transpose")
def the_gradient_is_reshaped_without_a_transpose(problem):
    return _training(problem, flatten=lambda kv: kv.reshape(kv.shape[3], -1))


@wrong("run_training", says="the zoo's unflattened-values-first")
def keys_of_all_layers_come_before_all_values(problem):
    return _training(
        problem,
        unflatten=lambda flat, L, NH, hs: flat.reshape(len(flat), 2, L, NH, hs).transpose(
            2, 1, 3, 0, 4
        ),
    )
