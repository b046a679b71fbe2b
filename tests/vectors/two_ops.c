/* Two ops of prefix-tuning in C99, attention and GELU, forward and backward: an example for whoever
 * brings minprefix to another language.
 *
 *     minprefix vectors write v
 *     cc -O2 two_ops.c -o two_ops -lm
 *     ./two_ops v                        reads v/index.json and v/cases, writes v/outputs
 *     minprefix vectors check v
 *
 * It computes in double and answers in the precision of the case. A file of vectors is safetensors:
 * 8 bytes that say how long the header is, the header in JSON, then the numbers, little-endian and
 * row-major. This program takes the machine to be little-endian, too.
 *
 * -DBUG leaves 1/sqrt(hs) out of the gradient of the prefix's keys, for the suite to find.
 */
#include <math.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_RANK = 4, MAX_HEADER = 1 << 16, MAX_PATH = 4096 };

static void die(const char *format, ...) {
    va_list given;
    va_start(given, format);
    fputs("two_ops: ", stderr);
    vfprintf(stderr, format, given);
    fputc('\n', stderr);
    exit(1);
}

static void *room(size_t count, size_t size) { /* zeroed; one element at least */
    void *p = calloc(count ? count : 1, size);
    if (!p) die("out of memory");
    return p;
}

static char *slurp(const char *path, size_t *size) { /* the whole file, and a 0 after it */
    FILE *f = fopen(path, "rb");
    if (!f) die("cannot open %s", path);
    fseek(f, 0, SEEK_END);
    *size = (size_t)ftell(f);
    rewind(f);
    char *bytes = room(*size + 1, 1);
    if (fread(bytes, 1, *size, f) != *size) die("cannot read %s", path);
    fclose(f);
    return bytes;
}

/* ---- reading ---- */

typedef struct {
    char *header; /* JSON, without blanks, as the safetensors library writes it */
    char *numbers;
    size_t size; /* of the numbers, in bytes */
    const char *path;
} File;

typedef struct {
    double *at;
    size_t shape[MAX_RANK], count;
    int rank, single; /* single: float32 in the file */
} Tensor;

static File open_tensors(const char *path) {
    size_t size;
    char *bytes = slurp(path, &size);
    uint64_t length;
    if (size < 8) die("%s is truncated", path);
    memcpy(&length, bytes, 8);
    if (length > size - 8) die("%s is truncated", path);
    File f = {room(length + 1, 1), bytes + 8 + length, size - 8 - length, path};
    memcpy(f.header, bytes + 8, length);
    return f;
}

static const char *find(const char *text, const char *word) { /* what stands after it, or NULL */
    const char *at = strstr(text, word);
    return at ? at + strlen(word) : NULL;
}

static Tensor read_tensor(const File *f, const char *name) {
    char key[128], type[8] = "";
    unsigned long long start = 0, end = 0;
    Tensor t = {.count = 1};
    snprintf(key, sizeof key, "\"%s\":{", name);
    const char *entry = find(f->header, key);
    if (!entry) die("%s lacks %s", f->path, name);
    const char *dtype = find(entry, "\"dtype\":\""), *digits = find(entry, "\"shape\":[");
    const char *offsets = find(entry, "\"data_offsets\":[");
    if (!dtype || !digits || !offsets) die("%s does not say what %s is", f->path, name);
    sscanf(dtype, "%7[A-Z0-9]", type);
    sscanf(offsets, "%llu,%llu", &start, &end);
    while (*digits != ']' && t.rank < MAX_RANK) {
        char *rest;
        t.shape[t.rank] = strtoull(digits, &rest, 10);
        t.count *= t.shape[t.rank++];
        digits = *rest == ',' ? rest + 1 : rest;
    }
    t.single = !strcmp(type, "F32");
    if (end > f->size || end < start || end - start != t.count * (t.single ? 4 : 8))
        die("%s is truncated", f->path);
    t.at = room(t.count, sizeof(double));
    for (size_t i = 0; i < t.count; i++) {
        const char *from = f->numbers + start + i * (t.single ? 4 : 8);
        float single;
        int64_t integer;
        if (t.single) {
            memcpy(&single, from, 4);
            t.at[i] = single;
        } else if (!strcmp(type, "F64")) {
            memcpy(&t.at[i], from, 8);
        } else if (!strcmp(type, "I64")) {
            memcpy(&integer, from, 8);
            t.at[i] = (double)integer;
        } else {
            die("%s: %s is %s", f->path, name, type);
        }
    }
    return t;
}

static Tensor read_of(const File *f, const char *name, int b) { /* name[b], one of a list */
    char full[64];
    snprintf(full, sizeof full, "%s[%d]", name, b);
    return read_tensor(f, full);
}

/* ---- writing ---- */

typedef struct {
    char header[MAX_HEADER], *numbers;
    size_t used, size;
} Output;

static Tensor like(Tensor t) { /* zeros of its shape and precision */
    t.at = room(t.count, sizeof(double));
    return t;
}

static void put(Output *o, const char *name, Tensor t) {
    size_t width = t.single ? 4 : 8, bytes = t.count * width;
    o->numbers = realloc(o->numbers, o->size + bytes + 1);
    if (!o->numbers) die("out of memory");
    for (size_t i = 0; i < t.count; i++) {
        float single = (float)t.at[i];
        memcpy(o->numbers + o->size + i * width, t.single ? (void *)&single : &t.at[i], width);
    }
    if (o->used + 256 > MAX_HEADER) die("too many tensors");
    char *at = o->header + o->used;
    at += sprintf(at, "%c\"%s\":{\"dtype\":\"%s\",\"shape\":[", o->used ? ',' : '{', name,
                  t.single ? "F32" : "F64");
    for (int i = 0; i < t.rank; i++) at += sprintf(at, i ? ",%zu" : "%zu", t.shape[i]);
    at += sprintf(at, "],\"data_offsets\":[%zu,%zu]}", o->size, o->size + bytes);
    o->used = (size_t)(at - o->header);
    o->size += bytes;
}

static void put_of(Output *o, const char *name, int b, Tensor t) {
    char full[64];
    snprintf(full, sizeof full, "%s[%d]", name, b);
    put(o, full, t);
}

static void save(Output *o, const char *path) {
    FILE *f = fopen(path, "wb");
    if (!f) die("cannot write %s", path);
    o->header[o->used++] = '}';
    while (o->used % 8) o->header[o->used++] = ' ';
    uint64_t length = o->used;
    fwrite(&length, 8, 1, f);
    fwrite(o->header, 1, o->used, f);
    fwrite(o->numbers, 1, o->size, f);
    if (ferror(f) || fclose(f)) die("cannot write %s", path);
}

/* ---- gelu(x) = x/2 (1 + tanh u), u = sqrt(2/pi) (x + 0.044715 x^3) ---- */

static void gelu(const File *f, Output *o) {
    Tensor x = read_tensor(f, "input.x"), dout = read_tensor(f, "input.dout");
    Tensor out = like(x), th = like(x), dx = like(x);
    const double c = 0.79788456080286535588; /* sqrt(2/pi) */
    for (size_t i = 0; i < x.count; i++) {
        double a = x.at[i], t = tanh(c * (a + 0.044715 * a * a * a));
        double du = c * (1 + 3 * 0.044715 * a * a);
        th.at[i] = t;
        out.at[i] = 0.5 * a * (1 + t);
        dx.at[i] = dout.at[i] * (0.5 * (1 + t) + 0.5 * a * (1 - t * t) * du);
    }
    put(o, "out", out);
    put(o, "cache.tanh", th);
    put(o, "dx", dx);
}

/* ---- attention: token t of a sequence sees the P slots of its prefix and the tokens 0..t ---- */

static double dot(const double *a, const double *b, size_t n) {
    double sum = 0;
    for (size_t i = 0; i < n; i++) sum += a[i] * b[i];
    return sum;
}

static void add(double *to, double factor, const double *a, size_t n) {
    for (size_t i = 0; i < n; i++) to[i] += factor * a[i];
}

static void attention(const File *f, Output *o) {
    Tensor q = read_tensor(f, "input.q"), k = read_tensor(f, "input.k"); /* (N, NH, hs) each */
    Tensor v = read_tensor(f, "input.v"), dz = read_tensor(f, "input.dz");
    Tensor offsets = read_tensor(f, "input.offsets"); /* (B+1) */
    Tensor z = like(q), dq = like(q), dk = like(q), dv = like(q);
    size_t NH = q.shape[1], hs = q.shape[2];
    double scale = 1 / sqrt((double)hs);

    for (int b = 0; b + 1 < (int)offsets.count; b++) {
        size_t first = (size_t)offsets.at[b], T = (size_t)offsets.at[b + 1] - first;
        Tensor pk = read_of(f, "input.prefix_k", b), pv = read_of(f, "input.prefix_v", b);
        Tensor dpk = like(pk), dpv = like(pv); /* (NH, P, hs) */
        size_t P = pk.shape[1], S = P + T;
        Tensor pattern = {NULL, {NH, T, S}, NH * T * S, 3, q.single};
        pattern.at = room(pattern.count, sizeof(double));
        double *dp = room(S, sizeof(double));
        for (size_t h = 0; h < NH; h++) {
            for (size_t t = 0; t < T; t++) {
                size_t me = ((first + t) * NH + h) * hs, seen = P + t + 1;
                double *p = pattern.at + (h * T + t) * S; /* 0 where nothing is seen */
/* where key and value j of this head lie: in the prefix, then among the tokens */
#define KEY(prefix, tokens, j) \
    ((j) < P ? (prefix).at + (h * P + (j)) * hs : (tokens).at + ((first + (j)-P) * NH + h) * hs)
                double top = -INFINITY, sum = 0, mean = 0;
                for (size_t j = 0; j < seen; j++) {
                    p[j] = scale * dot(q.at + me, KEY(pk, k, j), hs);
                    top = p[j] > top ? p[j] : top;
                }
                for (size_t j = 0; j < seen; j++) sum += p[j] = exp(p[j] - top);
                for (size_t j = 0; j < seen; j++) {
                    p[j] /= sum;
                    add(z.at + me, p[j], KEY(pv, v, j), hs);
                }
                /* the same steps in reverse */
                for (size_t j = 0; j < seen; j++) {
                    dp[j] = dot(dz.at + me, KEY(pv, v, j), hs);
                    add(KEY(dpv, dv, j), p[j], dz.at + me, hs);
                    mean += p[j] * dp[j];
                }
                for (size_t j = 0; j < seen; j++) {
                    double dscore = p[j] * (dp[j] - mean), into_key = dscore * scale;
#ifdef BUG
                    if (j < P) into_key = dscore;
#endif
                    add(dq.at + me, dscore * scale, KEY(pk, k, j), hs);
                    add(KEY(dpk, dk, j), into_key, q.at + me, hs);
                }
            }
        }
        put_of(o, "cache.pattern", b, pattern);
        put_of(o, "dprefix_k", b, dpk);
        put_of(o, "dprefix_v", b, dpv);
    }
    put(o, "z", z);
    put(o, "dq", dq);
    put(o, "dk", dk);
    put(o, "dv", dv);
}

int main(int argc, char **argv) {
    if (argc != 2) die("usage: two_ops DIR, a folder that `minprefix vectors write` made");
    char path[MAX_PATH];
    size_t size;
    int answered = 0;
    snprintf(path, sizeof path, "%s/index.json", argv[1]);
    /* every case has a line "id": "op/name"; its file is cases/op.name.safetensors */
    for (const char *at = slurp(path, &size); (at = find(at, "\"id\": \"")) != NULL;) {
        char op[32], name[64];
        if (sscanf(at, "%31[a-z_]/%63[a-z0-9-]", op, name) != 2) die("%s: no id", path);
        void (*run)(const File *, Output *) = !strcmp(op, "gelu")        ? gelu
                                              : !strcmp(op, "attention") ? attention
                                                                         : NULL;
        if (!run) continue;
        char from[MAX_PATH], to[MAX_PATH];
        snprintf(from, sizeof from, "%s/cases/%s.%s.safetensors", argv[1], op, name);
        snprintf(to, sizeof to, "%s/outputs/%s.%s.safetensors", argv[1], op, name);
        File f = open_tensors(from);
        static Output o;
        o = (Output){.size = 0};
        run(&f, &o);
        save(&o, to);
        answered++;
    }
    printf("%d cases answered\n", answered);
    return 0;
}
