import math
from dataclasses import replace

import numpy as np

from minprefix import GPT2, Batch, MLPPrefix, Prefix, loss_and_grad, optim
from minprefix.train import _order
from tests.exercises import lazy, wrong

# ---- put_together ----


@wrong("put_together", says="a sum with many targets is large already")
def a_sum_counts_by_its_targets(losses, dkvs, counts, reduction):
    M = sum(counts)
    loss = sum(loss * count / M for loss, count in zip(losses, counts, strict=True))
    dkv = sum(dkv * count / M for dkv, count in zip(dkvs, counts, strict=True))
    return loss, dkv


@wrong("put_together", says="averaged as if all micro-batches had equally many targets")
def the_mean_of_the_means(losses, dkvs, counts, reduction):
    if reduction == "mean":
        return float(np.mean(losses)), np.mean(dkvs, axis=0)
    return sum(losses) / sum(counts), sum(dkvs) / sum(counts)


@wrong("put_together", says="the number of targets of the last micro-batch")
def divided_by_the_last_count(losses, dkvs, counts, reduction):
    loss, dkv = 0.0, 0.0
    for i, count in enumerate(counts):
        factor = count if reduction == "mean" else 1
        loss += factor * losses[i]
        dkv += factor * dkvs[i]
    return loss / count, dkv / count


@wrong("put_together", says="M is the number of micro-batches")
def all_is_divided_by_the_parts(losses, dkvs, counts, reduction):
    M = len(counts)
    return sum(losses) / M, sum(dkvs) / M


@lazy("put_together", says="whole_loss is off by")
def the_largest_micro_batch_speaks_for_all(losses, dkvs, counts, reduction):
    i = int(np.argmax(counts))
    loss, dkv = losses[i], dkvs[i]
    return (loss, dkv) if reduction == "mean" else (loss / counts[i], dkv / counts[i])


# ---- batch_of_step ----


@wrong("batch_of_step", says="the smaller batch at the end of each epoch is left out")
def the_last_batch_is_dropped(step, n, size, seed):
    per_epoch = max(1, n // size)
    epoch, i = divmod(step, per_epoch)
    return np.random.default_rng([seed, epoch]).permutation(n)[i * size : (i + 1) * size]


@wrong("batch_of_step", says="Every epoch has the same order")
def one_order_for_all_epochs(step, n, size, seed):
    i = step % math.ceil(n / size)
    rng = np.random.default_rng(seed)
    return rng.permutation(n)[size * i :][:size]


@wrong("batch_of_step", says="The batches overlap")
def a_batch_begins_one_later(step, n, size, seed):
    epoch, i = divmod(step, math.ceil(n / size))
    order = np.random.default_rng([seed, epoch]).permutation(n)
    return order[i : i + size]


@lazy("batch_of_step", says="calls train._order of the package")
def the_package_shuffles(step, n, size, seed):
    epoch, i = divmod(step, math.ceil(n / size))
    return _order(seed, epoch, n)[i * size : (i + 1) * size]


@lazy("batch_of_step", says="what it returns")
def each_batch_is_drawn_by_itself(step, n, size, seed):
    return np.random.default_rng([seed, step]).choice(n, min(n, size), replace=False)


# ---- zero_slot_backward ----


@wrong("zero_slot_backward", says="The sign of dscores is wrong")
def the_share_pushes_the_other_way(share, dz, q, z):
    hs = q.shape[1]
    dkey = sum(share[i] * (dz[i] @ z[i]) * q[i] for i in range(len(q))) / math.sqrt(hs)
    return dkey, share @ dz


@wrong("zero_slot_backward", says="The scale is missing in dkey")
def no_root_of_the_head_size(share, dz, q, z):
    row_sum = np.einsum("th,th->t", dz, z)
    return -(share * row_sum) @ q, share @ dz


@wrong("zero_slot_backward", says="Only this slot has values of zeros")
def zeros_have_no_row_sum(share, dz, q, z):
    row_sum = np.zeros(len(share))
    dkey = (share * (0 - row_sum)) @ q / math.sqrt(q.shape[1])
    return dkey, share @ dz


@wrong("zero_slot_backward", says="The row sum is multiplied by the share")
def the_share_comes_in_twice(share, dz, q, z):
    row_sum = share * np.einsum("th,th->t", dz, z)
    return -(share * row_sum) @ q / math.sqrt(q.shape[1]), share @ dz


@lazy("zero_slot_backward", says="dscores is 0")
def nothing_behind_the_key_so_no_gradient(share, dz, q, z):
    return np.zeros(q.shape[1]), share @ dz


# ---- adamw_step ----


def _adamw(p, g, m, v, t, lr, beta1, beta2, eps, decay, **change):
    """Right as it stands; each answer below changes one thing."""
    if change.get("l2"):
        g, decay = g + decay * p, 0
    m, v = m + (1 - beta1) * (g - m), v + (1 - beta2) * (g**2 - v)
    m_hat, v_hat = m / (1 - beta1**t), v / (1 - beta2**t)
    if change.get("uncorrected"):
        m_hat, v_hat = m, v
    root = np.sqrt(v_hat) + eps
    if change.get("inside"):
        root = np.sqrt(v_hat + eps)
    if change.get("no_decay"):
        decay = 0
    factor = 1 - (1 if change.get("no_rate") else lr) * decay
    return factor * p - lr * m_hat / root, m, v


@wrong("adamw_step", says="The decay is forgotten")
def the_decay_is_forgotten(*arguments):
    return _adamw(*arguments, no_decay=True)


@wrong("adamw_step", says="That is Adam with L2")
def the_decay_is_added_to_the_gradient(*arguments):
    return _adamw(*arguments, l2=True)


@wrong("adamw_step", says="The bias corrections are missing")
def the_moments_are_taken_as_they_are(*arguments):
    return _adamw(*arguments, uncorrected=True)


@wrong("adamw_step", says="eps stands under the root")
def eps_inside_of_the_root(*arguments):
    return _adamw(*arguments, inside=True)


@wrong("adamw_step", says="The decay is not multiplied by the rate")
def the_decay_knows_no_rate(*arguments):
    return _adamw(*arguments, no_rate=True)


@wrong("adamw_step", says="The parentheses are missing")
def the_rate_stands_before_the_direction_alone(p, g, m, v, t, lr, beta1, beta2, eps, decay):
    step, m, v = _adamw(p, g, m, v, t, lr, beta1, beta2, eps, 0)
    return step + decay * p, m, v


@wrong("adamw_step", says="v is a running mean of the gradients")
def the_second_moment_is_not_squared(p, g, m, v, t, lr, beta1, beta2, eps, decay):
    new_m = beta1 * m + (1 - beta1) * g
    new_v = beta2 * v + (1 - beta2) * g
    return p, new_m, new_v


@wrong("adamw_step", says="it writes into its argument m")
def the_moments_of_the_caller_are_changed(p, g, m, v, t, lr, beta1, beta2, eps, decay):
    m *= beta1
    m += (1 - beta1) * g
    v *= beta2
    v += (1 - beta2) * g * g
    root = np.sqrt(v / (1 - beta2**t)) + eps
    return p - lr * (m / (1 - beta1**t) / root + decay * p), m, v


@lazy("adamw_step", says="calls optim.AdamW.step of the package")
def the_optimizer_of_the_package(p, g, m, v, t, lr, beta1, beta2, eps, decay):
    params = {"p": p.copy()}
    adam = optim.AdamW(beta1, beta2, eps, decay, t - 1, {"p": m.copy()}, {"p": v.copy()})
    adam.step(params, {"p": g}, lr)
    return params["p"], adam.m["p"], adam.v["p"]


# ---- adamw_run ----


def _run(start, steps, rates, *settings, t_of=lambda s, i: s + 1, shared=False, copies=True):
    params = {name: a.copy() for name, a in start.items()}
    m = {name: 0 * a for name, a in start.items()}
    v = m if shared else {name: 0 * a for name, a in start.items()}
    after = []
    for s, grads in enumerate(steps):
        for i, name in enumerate(grads):
            arguments = params[name], grads[name], m[name], v[name], t_of(s, i), rates[s]
            p, m[name], v[name] = _adamw(*arguments, *settings)
            params[name][...] = p
        after.append({name: a.copy() for name, a in params.items()} if copies else dict(params))
    return after


@wrong("adamw_run", says="Every entry of the list shows the last step")
def references_are_stored(*arguments):
    return _run(*arguments, copies=False)


@wrong("adamw_run", says="m and v share their arrays")
def both_moments_are_one_dictionary(*arguments):
    return _run(*arguments, shared=True)


@wrong("adamw_run", says="t grows with each array")
def every_array_counts_as_a_step(*arguments):
    n = len(arguments[0])
    return _run(*arguments, t_of=lambda s, i: s * n + i + 1)


@wrong("adamw_run", says="The steps are counted from 2")
def the_count_is_raised_too_early(*arguments):
    return _run(*arguments, t_of=lambda s, i: s + 2)


@wrong("adamw_run", says="The steps are counted from 0")
def the_count_begins_at_0(*arguments):
    with np.errstate(all="ignore"):
        return _run(*arguments, t_of=lambda s, i: s)


@lazy("adamw_run", says="calls optim.AdamW.step of the package")
def the_package_takes_all_steps(start, steps, rates, beta1, beta2, eps, decay):
    adam, params, after = optim.AdamW(beta1, beta2, eps, decay), {}, []
    params = {name: a.copy() for name, a in start.items()}
    for grads, lr in zip(steps, rates, strict=True):
        adam.step(params, grads, lr)
        after.append({name: a.copy() for name, a in params.items()})
    return after


# ---- rate_at ----


@wrong("rate_at", says="The warmup begins with a rate of 0")
def the_first_rate_is_0(s, steps, lr, warmup):
    return lr * min(s / warmup if s < warmup else 1, (steps - s) / (steps - warmup))


@wrong("rate_at", says="The last step has a rate of 0")
def it_reaches_0_at_the_last_step(s, steps, lr, warmup):
    if s < warmup:
        return (s + 1) / warmup * lr
    left = steps - 1 - s
    return lr * left / (steps - 1 - warmup) if steps - 1 > warmup else lr


@wrong("rate_at", says="The fall begins one step early")
def one_step_early(s, steps, lr, warmup):
    done = s + 1
    return lr * (done / warmup if done <= warmup else (steps - done) / (steps - warmup))


@lazy("rate_at", says="calls optim.learning_rate of the package")
def the_schedule_of_the_package(s, steps, lr, warmup):
    return optim.learning_rate(s, steps, lr, warmup, "linear")


# ---- clip_together ----


@wrong("clip_together", says="Each prefix is shortened by its own norm")
def a_norm_for_each_prefix(grads, limit):
    squares = {}
    for name, g in grads.items():
        prefix = name.split(".")[0]
        squares[prefix] = squares.get(prefix, 0) + float((g**2).sum())
    scales = {i: min(1, limit / math.sqrt(square or 1)) for i, square in squares.items()}
    return {name: scales[name.split(".")[0]] * g for name, g in grads.items()}


@wrong("clip_together", says="Each array is shortened by its own norm")
def a_norm_for_each_array(grads, limit):
    clipped = {}
    for name, g in grads.items():
        length = np.linalg.norm(g)
        clipped[name] = g * limit / length if length > limit else g.copy()
    return clipped


@wrong("clip_together", says="The norms of the arrays are added up")
def the_sum_of_the_norms(grads, limit):
    total = sum(np.linalg.norm(g) for g in grads.values())
    return {name: min(1, limit / total if total else 1) * g for name, g in grads.items()}


@wrong("clip_together", says="lengthened to the limit")
def always_scaled(grads, limit):
    norm = np.linalg.norm(np.concatenate([g.ravel() for g in grads.values()]))
    return {name: g / (norm or 1) * limit for name, g in grads.items()}


@wrong("clip_together", says="the norm of the last array alone")
def the_norm_in_the_loop(grads, limit):
    clipped = {}
    for name, g in grads.items():
        norm = float(np.linalg.norm(g))
        clipped[name] = g * min(1, limit / (norm or 1))
    return clipped


@lazy("clip_together", says="calls optim.global_norm of the package")
def the_norm_of_the_package(grads, limit):
    clipped = {name: g.copy() for name, g in grads.items()}
    optim.clip(clipped, optim.global_norm(clipped), limit)
    return clipped


# ---- run_training ----


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


def _gradients(problem):
    """Those of the first step, of the prefixes as they start."""
    parts = [Batch.pack(b.sequences, b.loss_from, b.prefix_of) for b in problem.steps[0]]
    prefixes = [
        Prefix(own["kv"]) if "kv" in own else MLPPrefix(dict(own), problem.config.n_head)
        for own in problem.parameters
    ]
    model = GPT2(problem.config, dict(problem.weights))
    sums = [loss_and_grad(model, prefixes, part, reduction="sum")[1] for part in parts]
    M = sum(len(part.targets) for part in parts)
    grads = {}
    for i, prefix in enumerate(prefixes):
        dkv = sum(of_part[i] for of_part in sums) / M
        grads |= {f"{i}.{name}": g for name, g in prefix.backward(dkv).items()}
    return grads


@wrong("run_training", says="Each prefix is shortened by its own norm")
def the_limit_holds_for_each_prefix(problem):
    grads = _gradients(problem)
    for i in range(len(problem.parameters)):
        own = {name: g for name, g in grads.items() if name.startswith(f"{i}.")}
        norm = math.sqrt(sum((g * g).sum() for g in own.values()))
        grads |= {name: g * min(1, problem.clip / norm) for name, g in own.items()}
    return {}


@wrong("run_training", says="Every sequence sees the first prefix")
def the_micro_batches_forget_their_prefixes(problem):
    steps = [
        [replace(part, prefix_of=[0] * len(part.sequences)) for part in step]
        for step in problem.steps
    ]
    grads = _gradients(replace(problem, steps=steps))
    norm = math.sqrt(sum((g * g).sum() for g in grads.values()))
    grads = {name: g * min(1, problem.clip / norm) for name, g in grads.items()}
    return {}


@wrong("run_training", says="The limit is not applied")
def there_is_no_limit(problem):
    grads = _gradients(problem)
    return {f"step.0.prefix.{name}": -g for name, g in grads.items()}


@lazy("run_training", says="calls optim.AdamW.step of the package")
def the_optimizer_of_the_package_trains(problem):
    grads, adam = _gradients(problem), optim.AdamW()
    adam.step({name: 0 * g for name, g in grads.items()}, grads, problem.lr)
    return {}
