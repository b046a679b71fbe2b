// The kernels of cupy_ops: what lies between two matrix products.
//
// REAL is float or double and THREADS a power of two; cupy_ops compiles the file once for each REAL. Formulas and
// names are those of ops/reference.py. No kernel adds atomically: the same input gives the same bytes.
//
//   N tokens   B sequences   T length of the longest   P slots of a prefix   W longest P + length
//   NH heads   hs head size   C = NH*hs   V vocabulary   M targets

typedef long long Int;

// ---- rows: a block of THREADS threads works on one row -----------------------------------------------------------

// The sum of one number of each thread of the block; every thread gets it. Always added in the same order.
__device__ REAL block_sum(REAL mine) {
    __shared__ REAL part[THREADS];
    part[threadIdx.x] = mine;
    __syncthreads();
    for (unsigned half = THREADS / 2; half > 0; half /= 2) {
        if (threadIdx.x < half) part[threadIdx.x] += part[threadIdx.x + half];
        __syncthreads();
    }
    REAL sum = part[0];
    __syncthreads();  // nobody writes the next sum before everyone has read this one
    return sum;
}

__device__ REAL block_max(REAL mine) {
    __shared__ REAL part[THREADS];
    part[threadIdx.x] = mine;
    __syncthreads();
    for (unsigned half = THREADS / 2; half > 0; half /= 2) {
        if (threadIdx.x < half && part[threadIdx.x + half] > part[threadIdx.x])
            part[threadIdx.x] = part[threadIdx.x + half];
        __syncthreads();
    }
    REAL max = part[0];
    __syncthreads();
    return max;
}

// x[n] = wte[tokens[n]] + wpe[positions[n]]
extern "C" __global__ void embed(const Int* tokens, const Int* positions, const REAL* wte, const REAL* wpe, REAL* x,
                                 Int C) {
    Int n = blockIdx.x;
    const REAL *token = wte + tokens[n] * C, *position = wpe + positions[n] * C;
    for (Int c = threadIdx.x; c < C; c += THREADS) x[n * C + c] = token[c] + position[c];
}

// dtable[i] = sum of dx[n] over all n with index[n] = i, by the block of the first such n; others leave
extern "C" __global__ void embed_backward(const REAL* dx, const Int* index, REAL* dtable, Int N, Int C) {
    Int first = blockIdx.x, i = index[first];
    for (Int n = 0; n < first; n++)
        if (index[n] == i) return;
    for (Int c = threadIdx.x; c < C; c += THREADS) {
        REAL sum = 0;
        for (Int n = first; n < N; n++)
            if (index[n] == i) sum += dx[n * C + c];
        dtable[i * C + c] = sum;
    }
}

// out = (x - mean) / sqrt(var + eps) * gain + bias
extern "C" __global__ void layernorm(const REAL* x, const REAL* gain, const REAL* bias, double eps, REAL* out,
                                     REAL* xhat, REAL* rstd, Int C) {
    Int n = blockIdx.x;
    x += n * C, out += n * C, xhat += n * C;
    REAL sum = 0, squares = 0;
    for (Int c = threadIdx.x; c < C; c += THREADS) sum += x[c];
    REAL mean = block_sum(sum) / C;
    for (Int c = threadIdx.x; c < C; c += THREADS) squares += (x[c] - mean) * (x[c] - mean);
    REAL r = 1 / sqrt(block_sum(squares) / C + (REAL)eps);
    for (Int c = threadIdx.x; c < C; c += THREADS) {
        xhat[c] = (x[c] - mean) * r;
        out[c] = xhat[c] * gain[c] + bias[c];
    }
    if (threadIdx.x == 0) rstd[n] = r;
}

// dxhat = dout * gain;  dx = rstd * (dxhat - mean(dxhat) - xhat * mean(dxhat * xhat)), in the place of dout
extern "C" __global__ void layernorm_backward(REAL* dout, const REAL* xhat, const REAL* rstd, const REAL* gain,
                                              Int C) {
    Int n = blockIdx.x;
    dout += n * C, xhat += n * C;
    REAL sum = 0, sum_xhat = 0;
    for (Int c = threadIdx.x; c < C; c += THREADS) {
        REAL dxhat = dout[c] * gain[c];
        sum += dxhat, sum_xhat += dxhat * xhat[c];
    }
    REAL mean_dxhat = block_sum(sum) / C, mean_dxhat_xhat = block_sum(sum_xhat) / C;
    for (Int c = threadIdx.x; c < C; c += THREADS)
        dout[c] = rstd[n] * (dout[c] * gain[c] - mean_dxhat - xhat[c] * mean_dxhat_xhat);
}

// probs = softmax(logits), in their place;  nll[m] = weights[m] * (log(total) - (logits[target] - max))
extern "C" __global__ void cross_entropy(REAL* logits, const Int* targets, const REAL* weights, REAL* nll, Int V) {
    Int m = blockIdx.x;
    logits += m * V;
    REAL max = logits[0], sum = 0;
    for (Int v = threadIdx.x; v < V; v += THREADS)
        if (logits[v] > max) max = logits[v];
    max = block_max(max);
    REAL shifted = logits[targets[m]] - max;  // read by everyone before anyone writes: block_sum waits
    for (Int v = threadIdx.x; v < V; v += THREADS) sum += exp(logits[v] - max);
    REAL total = block_sum(sum);
    for (Int v = threadIdx.x; v < V; v += THREADS) logits[v] = exp(logits[v] - max) / total;
    if (threadIdx.x == 0) nll[m] = weights[m] * (log(total) - shifted);
}

// dlogits = weights * (probs - one_hot(targets)), in the place of the probabilities
extern "C" __global__ void cross_entropy_backward(REAL* probs, const Int* targets, const REAL* weights, Int V) {
    Int m = blockIdx.x;
    for (Int v = threadIdx.x; v < V; v += THREADS)
        probs[m * V + v] = weights[m] * (probs[m * V + v] - (v == targets[m]));
}

// ---- one number a thread -----------------------------------------------------------------------------------------

#define EACH(i, n) for (Int i = (Int)blockIdx.x * THREADS + threadIdx.x; i < (n); i += (Int)gridDim.x * THREADS)

// out = x/2 * (1 + tanh u), u = sqrt(2/pi) * (x + 0.044715 x^3);  the slope d out / d x in the place of x
extern "C" __global__ void gelu(REAL* x, REAL* out, Int size) {
    const REAL root = 0.7978845608028654, cubic = 0.044715;
    EACH(i, size) {
        REAL a = x[i], t = tanh(root * (a + cubic * a * a * a));
        out[i] = REAL(0.5) * a * (1 + t);
        x[i] = REAL(0.5) * (1 + t) + REAL(0.5) * a * (1 - t * t) * root * (1 + 3 * cubic * a * a);
    }
}

// Loshchilov & Hutter, 2019, algorithm 2; rest1 = 1 - beta1^t, rest2 = 1 - beta2^t
extern "C" __global__ void adamw(REAL* p, const REAL* g, REAL* m, REAL* v, double lr, double beta1, double beta2,
                                 double eps, double decay, double rest1, double rest2, Int size) {
    EACH(i, size) {
        m[i] += (REAL)(1 - beta1) * (g[i] - m[i]);
        v[i] += (REAL)(1 - beta2) * (g[i] * g[i] - v[i]);
        p[i] -= (REAL)lr * (m[i] / (REAL)rest1 / (sqrt(v[i] / (REAL)rest2) + (REAL)eps) + (REAL)decay * p[i]);
    }
}

// ---- attention ---------------------------------------------------------------------------------------------------
//
// Here, and nowhere else, sequences are padded: to one width, so that a product is one call for all of them.

// Where the slots of a sequence's prefix lie: number (h, p, d) at data[h * head + p * slot + d]
struct Slots {
    const REAL* data;
    Int head, slot, P;
};

// The rows of a flat stream, heads first: the prefix (none if slots is null), the tokens, zeros to the width.
//   out (B, NH, width, hs), or (B, NH, hs, width) if transposed;  row: from one token to the next in `tokens`
extern "C" __global__ void to_heads(const REAL* tokens, Int row, const Slots* slots, const Int* offsets, REAL* out,
                                    Int B, Int NH, Int width, Int hs, Int transposed, double scale) {
    EACH(i, B * NH * width * hs) {
        Int j = transposed ? i % width : i / hs % width;
        Int d = transposed ? i / width % hs : i % hs;
        Int h = i / (width * hs) % NH, b = i / (width * hs * NH);
        Int P = slots ? slots[b].P : 0, n = offsets[b] + j - P;
        REAL a = 0;
        if (j < P)
            a = slots[b].data[h * slots[b].head + j * slots[b].slot + d];
        else if (n < offsets[b + 1])
            a = tokens[n * row + h * hs + d];
        out[i] = a * (REAL)scale;
    }
}

// The way back, for the tokens: padded (B, NH, width, hs), or transposed -> out (N, NH, hs)
extern "C" __global__ void from_heads(const REAL* padded, const Slots* slots, const Int* offsets,
                                      const Int* sequence, REAL* out, Int N, Int NH, Int width, Int hs,
                                      Int transposed, double scale) {
    EACH(i, N * NH * hs) {
        Int d = i % hs, h = i / hs % NH, n = i / (hs * NH), b = sequence[n];
        Int j = n - offsets[b] + (slots ? slots[b].P : 0), matrix = (b * NH + h) * width * hs;
        out[i] = padded[matrix + (transposed ? d * width + j : j * hs + d)] * (REAL)scale;
    }
}

// Query t of a sequence sees its P slots and its tokens 0..t: the first P + t + 1 keys. A row of padding sees none.
__device__ Int visible(const Slots* slots, const Int* offsets, Int NH, Int T) {
    Int t = blockIdx.x % T, b = blockIdx.x / (NH * T);
    return t < offsets[b + 1] - offsets[b] ? slots[b].P + t + 1 : 0;
}

// pattern = softmax(scores) over the visible keys, 0 elsewhere; scores (B, NH, T, W), in their place
extern "C" __global__ void masked_softmax(REAL* scores, const Slots* slots, const Int* offsets, Int NH, Int T,
                                          Int W) {
    Int seen = visible(slots, offsets, NH, T);
    scores += (Int)blockIdx.x * W;
    REAL max = scores[0], sum = 0;
    for (Int j = threadIdx.x; j < seen; j += THREADS)
        if (scores[j] > max) max = scores[j];
    max = block_max(max);
    for (Int j = threadIdx.x; j < seen; j += THREADS) sum += exp(scores[j] - max);
    REAL total = block_sum(sum);
    for (Int j = threadIdx.x; j < W; j += THREADS) scores[j] = j < seen ? exp(scores[j] - max) / total : REAL(0);
}

// dscores = pattern * (dpattern - sum(dpattern * pattern)), in the place of dpattern; the sum over all W keys
extern "C" __global__ void softmax_backward(const REAL* pattern, REAL* dpattern, Int W) {
    pattern += (Int)blockIdx.x * W, dpattern += (Int)blockIdx.x * W;
    REAL sum = 0;
    for (Int j = threadIdx.x; j < W; j += THREADS) sum += dpattern[j] * pattern[j];
    REAL row_sum = block_sum(sum);
    for (Int j = threadIdx.x; j < W; j += THREADS) dpattern[j] = pattern[j] * (dpattern[j] - row_sum);
}
