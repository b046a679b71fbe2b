"""GPT-2's operations as a student first writes them: a loop over sequences, heads and tokens, one
small function for each step, and an object that remembers what the backward needs. Decoding is a
class that reads one token at a time."""

import math

import numpy as np

C1 = math.sqrt(2 / math.pi)
C2 = 0.044715
BLOCK = 32  # so many keys are scored at a time


class Memory:
    """What a forward remembers."""

    def __init__(self, **things):
        for name, thing in things.items():
            setattr(self, name, thing)


# --- embed


def embed(tokens, positions, wte, wpe):
    x = np.zeros((len(tokens), wte.shape[1]), wte.dtype)
    for n in range(len(tokens)):
        x[n] = wte[tokens[n]] + wpe[positions[n]]
    return x


def embed_backward_params(dx, tokens, positions, wte, wpe):
    dwte = np.zeros_like(wte)
    dwpe = np.zeros_like(wpe)
    for n in range(len(tokens)):
        dwte[tokens[n]] += dx[n]
        dwpe[positions[n]] += dx[n]
    return dwte, dwpe


# --- layernorm


def row_mean(row):
    return row.sum() / len(row)


def row_variance(row, mean):
    difference = row - mean
    return (difference * difference).sum() / len(row)


def layernorm(x, gain, bias, eps):
    out = np.zeros_like(x)
    means = []
    stds = []
    for n in range(len(x)):
        mean = row_mean(x[n])
        std = math.sqrt(row_variance(x[n], mean) + eps)
        out[n] = gain * ((x[n] - mean) / std) + bias
        means.append(mean)
        stds.append(std)
    return out, Memory(inputs=x, means=means, stds=stds, scale=gain)


def layernorm_backward_params(dout, cache):
    dgain = np.zeros(dout.shape[1], dout.dtype)
    dbias = np.zeros(dout.shape[1], dout.dtype)
    for n in range(len(dout)):
        normal = (cache.inputs[n] - cache.means[n]) / cache.stds[n]
        dgain += dout[n] * normal
        dbias += dout[n]
    return dgain, dbias


def layernorm_backward(dout, cache):
    dx = np.zeros_like(dout)
    for n in range(len(dout)):
        normal = (cache.inputs[n] - cache.means[n]) / cache.stds[n]
        dnormal = dout[n] * cache.scale
        down = row_mean(dnormal)
        along = row_mean(dnormal * normal)
        dx[n] = (dnormal - down - along * normal) / cache.stds[n]
    return dx


# --- linear


def linear(x, weight, bias):
    out = np.zeros((len(x), weight.shape[1]), x.dtype)
    for n in range(len(x)):
        out[n] = x[n] @ weight
        if bias is not None:
            out[n] += bias
    return out


def linear_backward(dout, weight):
    dx = np.zeros((len(dout), weight.shape[0]), dout.dtype)
    for n in range(len(dout)):
        dx[n] = weight @ dout[n]
    return dx


def linear_backward_params(dout, x):
    dweight = np.zeros((x.shape[1], dout.shape[1]), dout.dtype)
    dbias = np.zeros(dout.shape[1], dout.dtype)
    for i in range(x.shape[1]):
        dweight[i] = x[:, i] @ dout
    for n in range(len(dout)):
        dbias += dout[n]
    return dweight, dbias


# --- gelu


def inner(x):
    return C1 * (x + C2 * x**3)


def d_inner(x):
    return C1 * (1 + 3 * C2 * x**2)


def gelu(x):
    out = np.zeros_like(x)
    for n in range(len(x)):
        out[n] = 0.5 * x[n] * (1 + np.tanh(inner(x[n])))
    return out, Memory(inputs=x)


def gelu_backward(dout, cache):
    dx = np.zeros_like(dout)
    for n in range(len(dout)):
        x = cache.inputs[n]
        t = np.tanh(inner(x))
        left = 0.5 * (1 + t)
        right = 0.5 * x * (1 - t**2) * d_inner(x)
        dx[n] = dout[n] * (left + right)
    return dx


# --- attention


def blocks(count):
    """(first, last) of each block of keys."""
    first = 0
    while first < count:
        last = min(first + BLOCK, count)
        yield first, last
        first = last


def look(query, keys, values):
    """One query (hs) looks at keys (n, hs) -> what it sees (hs), and the log of the sum of
    exponentials. The blocks are joined as they come: the largest score so far may rise."""
    scale = 1 / math.sqrt(len(query))
    largest = -math.inf
    total = 0.0
    seen = np.zeros_like(query)
    for first, last in blocks(len(keys)):
        scores = (keys[first:last] @ query) * scale
        new_largest = max(largest, float(scores.max()))
        shrink = math.exp(largest - new_largest)
        e = np.exp(scores - new_largest)
        total = total * shrink + float(e.sum())
        seen = seen * shrink + e @ values[first:last]
        largest = new_largest
    return seen / total, largest + math.log(total)


def look_backward(dsaw, saw, log_total, query, keys, values):
    """-> dquery (hs), dkeys (n, hs), dvalues (n, hs)."""
    scale = 1 / math.sqrt(len(query))
    dquery = np.zeros_like(query)
    dkeys = np.zeros_like(keys)
    dvalues = np.zeros_like(values)
    dot = float(dsaw @ saw)
    for first, last in blocks(len(keys)):
        scores = (keys[first:last] @ query) * scale
        weights = np.exp(scores - log_total)
        dvalues[first:last] = np.outer(weights, dsaw)
        dweights = values[first:last] @ dsaw
        dscores = weights * (dweights - dot) * scale
        dquery += dscores @ keys[first:last]
        dkeys[first:last] = np.outer(dscores, query)
    return dquery, dkeys, dvalues


def attention(q, k, v, prefix_k, prefix_v, offsets):
    z = np.zeros_like(q)
    log_totals = np.zeros(q.shape[:2], np.float64)
    for b in range(len(offsets) - 1):
        start, end = offsets[b], offsets[b + 1]
        P = prefix_k[b].shape[1]
        for h in range(q.shape[1]):
            keys = np.concatenate([prefix_k[b][h], k[start:end, h]])
            values = np.concatenate([prefix_v[b][h], v[start:end, h]])
            for n in range(start, end):
                visible = P + (n - start) + 1
                saw, log_total = look(q[n, h], keys[:visible], values[:visible])
                z[n, h] = saw
                log_totals[n, h] = log_total
    memory = Memory(q=q, k=k, v=v, prefixes=(prefix_k, prefix_v), bounds=offsets)
    memory.z = z.copy()
    memory.log_totals = log_totals
    return z, memory


def attention_backward(dz, cache):
    q, k, v = cache.q, cache.k, cache.v
    prefix_k, prefix_v = cache.prefixes
    dq = np.zeros_like(q)
    dk = np.zeros_like(k)
    dv = np.zeros_like(v)
    dprefix_k = []
    dprefix_v = []
    for b in range(len(cache.bounds) - 1):
        start, end = cache.bounds[b], cache.bounds[b + 1]
        P = prefix_k[b].shape[1]
        dpk = np.zeros_like(prefix_k[b])
        dpv = np.zeros_like(prefix_v[b])
        for h in range(q.shape[1]):
            keys = np.concatenate([prefix_k[b][h], k[start:end, h]])
            values = np.concatenate([prefix_v[b][h], v[start:end, h]])
            for n in range(start, end):
                visible = P + (n - start) + 1
                dquery, dkeys, dvalues = look_backward(
                    dz[n, h],
                    cache.z[n, h],
                    cache.log_totals[n, h],
                    q[n, h],
                    keys[:visible],
                    values[:visible],
                )
                dq[n, h] = dquery
                dk[start : n + 1, h] += dkeys[P:]
                dv[start : n + 1, h] += dvalues[P:]
                dpk[h] += dkeys[:P]
                dpv[h] += dvalues[:P]
        dprefix_k.append(dpk)
        dprefix_v.append(dpv)
    return dq, dk, dv, dprefix_k, dprefix_v


# --- cross-entropy


def softmax(row):
    e = np.exp(row - row.max())
    return e / e.sum()


def log_sum_exp(row):
    top = row.max()
    return top + np.log(np.exp(row - top).sum())


def cross_entropy(logits, targets, weights):
    loss = logits.dtype.type(0)
    softmaxes = []
    for m in range(len(targets)):
        nll = log_sum_exp(logits[m]) - logits[m, targets[m]]
        loss += weights[m] * nll
        softmaxes.append(softmax(logits[m]))
    return loss, Memory(softmaxes=softmaxes, answers=targets, importance=weights, like=logits)


def cross_entropy_backward(cache):
    dlogits = np.zeros_like(cache.like)
    for m in range(len(cache.answers)):
        row = cache.softmaxes[m].copy()
        row[cache.answers[m]] -= 1
        dlogits[m] = cache.importance[m] * row
    return dlogits


# --- decoding


class Speaker:
    """Reads one token at a time, and says what it expects next."""

    def __init__(self, config, weights, prefix, first_position):
        self.config = config
        self.w = weights
        self.position = first_position
        self.keys = []  # per layer and head: a list of keys (hs)
        self.values = []
        for i in range(config.n_layer):
            self.keys.append([list(prefix[i, 0, h]) for h in range(config.n_head)])
            self.values.append([list(prefix[i, 1, h]) for h in range(config.n_head)])

    def norm(self, name, x):
        gain, bias = self.w[name + ".weight"], self.w[name + ".bias"]
        return layernorm(x, gain, bias, self.config.layer_norm_epsilon)[0]

    def project(self, name, x):
        return linear(x, self.w[name + ".weight"], self.w[name + ".bias"])

    def attend(self, i, x):
        C = self.config.n_embd
        hs = self.config.head_size
        qkv = self.project(f"h.{i}.attn.c_attn", x)[0]
        z = np.zeros((1, C), x.dtype)
        for h in range(self.config.n_head):
            here = slice(h * hs, (h + 1) * hs)
            self.keys[i][h].append(qkv[C : 2 * C][here])
            self.values[i][h].append(qkv[2 * C :][here])
            keys, values = np.array(self.keys[i][h]), np.array(self.values[i][h])
            z[0, here], _ = look(qkv[:C][here], keys, values)
        return self.project(f"h.{i}.attn.c_proj", z)

    def read(self, token):
        """-> logits (V,)."""
        x = (self.w["wte.weight"][token] + self.w["wpe.weight"][self.position])[None]
        self.position += 1
        for i in range(self.config.n_layer):
            x = x + self.attend(i, self.norm(f"h.{i}.ln_1", x))
            hidden = self.project(f"h.{i}.mlp.c_fc", self.norm(f"h.{i}.ln_2", x))
            x = x + self.project(f"h.{i}.mlp.c_proj", gelu(hidden)[0])
        x = self.norm("ln_f", x)
        tied = self.config.tie_word_embeddings
        return self.w["wte.weight" if tied else "lm_head.weight"] @ x[0]


def run_decoding(problem):
    logits = []
    for sequence, which in zip(problem.sequences, problem.prefix_of, strict=True):
        prefix, first_position = problem.prefixes[which], problem.position_offsets[which]
        speaker = Speaker(problem.config, problem.weights, prefix, first_position)
        for token in sequence:
            logits.append(speaker.read(token))
    return {"logits": np.array(logits)}
