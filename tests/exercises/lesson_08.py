import math

import numpy as np

from minprefix import GPT2, Batch, MLPPrefix, Prefix, loss_and_grad
from tests.exercises import wrong


def _training(problem, corrected=True, from_0=False, of_means=False, decay_in_gradient=False):
    """Right as it stands; each answer below changes one thing."""
    p, found, m, v = problem, {}, {}, {}
    model = GPT2(p.config, dict(p.weights))
    prefixes = [
        Prefix(own["kv"]) if "kv" in own else MLPPrefix(own, p.config.n_head)
        for own in ({name: a.copy() for name, a in each.items()} for each in p.parameters)
    ]
    for s, step in enumerate(p.steps):
        batches = [Batch.pack(b.sequences, b.loss_from, b.prefix_of) for b in step]
        M, loss, dkvs = sum(len(b.targets) for b in batches), 0.0, [0.0] * len(prefixes)
        for batch in batches:
            part, dparts = loss_and_grad(model, prefixes, batch, reduction="sum", ops="reference")
            share = 1 / M if not of_means else 1 / len(batch.targets) / len(batches)
            loss += part * share
            dkvs = [dkv + dpart * share for dkv, dpart in zip(dkvs, dparts, strict=True)]
        found[f"step.{s}.loss"] = loss
        params, grads = {}, {}
        for i, (prefix, dkv) in enumerate(zip(prefixes, dkvs, strict=True)):
            params |= {f"{i}.{name}": a for name, a in prefix.parameters.items()}
            grads |= {f"{i}.{name}": g for name, g in prefix.backward(dkv).items()}
        norm = math.sqrt(sum((g * g).sum() for g in grads.values()))
        scale = 1.0 if p.clip is None else min(1.0, p.clip / norm)
        if s < p.warmup:
            lr = p.lr * (s + (not from_0)) / p.warmup
        else:
            lr = p.lr * (1 - (s - p.warmup) / (len(p.steps) - p.warmup))
        for name, g in grads.items():
            g, a = g * scale, params[name]
            if decay_in_gradient:
                g = g + p.weight_decay * a
            m[name] = p.beta1 * m.get(name, 0) + (1 - p.beta1) * g
            v[name] = p.beta2 * v.get(name, 0) + (1 - p.beta2) * g * g
            m_hat, v_hat = m[name], v[name]
            if corrected:
                m_hat = m_hat / (1 - p.beta1 ** (s + 1))
                v_hat = v_hat / (1 - p.beta2 ** (s + 1))
            decay = 0 if decay_in_gradient else p.weight_decay * a
            a -= lr * (m_hat / (np.sqrt(v_hat) + p.eps) + decay)
            i, name = name.split(".")
            found[f"step.{s}.prefix.{i}.{name}"] = a.copy()
    return found


@wrong("run_training", says="the zoo's bias-correction-missing")
def the_moments_are_not_corrected(problem):
    return _training(problem, corrected=False)


@wrong("run_training", says="the zoo's warmup-from-0")
def the_rate_of_the_first_step_is_0(problem):
    return _training(problem, from_0=True)


@wrong("run_training", says="the zoo's mean-of-micro-batch-means")
def the_means_of_the_micro_batches_are_averaged(problem):
    return _training(problem, of_means=True)


@wrong("run_training", says="the zoo's decay-in-the-gradient")
def the_decay_goes_through_the_moments(problem):
    return _training(problem, decay_in_gradient=True)
