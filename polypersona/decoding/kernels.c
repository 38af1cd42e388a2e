/* Attention and the small operations between products, over packed tokens.
 *
 * Compiled for the machine it runs on, once with -DBF16 and once without (fp32). A region is what one conversation or
 * one shared beginning keeps in a layer: keys as [head][token / 16][dimension][token % 16], values as
 * [head][token][dimension]. Sums run in fp32 and in an order that depends on the token alone, so no answer depends on
 * what is computed beside it.
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define LANES 16
#define BLOCK 32 /* queries that share one pass over a shared beginning */

typedef float vec __attribute__((vector_size(64), aligned(4)));
typedef int32_t ivec __attribute__((vector_size(64), aligned(4)));

#ifdef BF16
typedef uint16_t num;
typedef uint16_t nvec __attribute__((vector_size(32), aligned(2)));
typedef uint32_t uvec __attribute__((vector_size(64), aligned(4)));
static inline vec load(const num *from) {
    uvec wide = __builtin_convertvector(*(const nvec *)from, uvec) << 16;
    return (vec)wide;
}
static inline float get(num value) {
    union { uint32_t bits; float number; } both = {(uint32_t)value << 16};
    return both.number;
}
static inline num put(float value) { /* to nearest, ties to even; not a number stays one */
    union { float number; uint32_t bits; } both = {value};
    if (value != value) return 0x7fc0;
    return (num)((both.bits + 0x7fff + ((both.bits >> 16) & 1)) >> 16);
}
static inline void store(num *to, vec value) {
    uvec bits = (uvec)value;
    bits = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    *(nvec *)to = __builtin_convertvector(bits, nvec);
}
#else
typedef float num;
static inline vec load(const num *from) { return *(const vec *)from; }
static inline float get(num value) { return value; }
static inline num put(float value) { return value; }
static inline void store(num *to, vec value) { *(vec *)to = value; }
#endif

static inline vec spread(float value) { return (vec){} + value; }

/* exp for arguments at most 0, relative error about 2e-7. */
static inline vec exp_vec(vec x) {
    ivec low = x < spread(-87.0f);
    vec held = (vec)(((ivec)x & ~low) | ((ivec)spread(-87.0f) & low));
    vec scaled = held * 1.44269504f;
    ivec whole = __builtin_convertvector(scaled - 0.5f, ivec);
    vec rest = held - __builtin_convertvector(whole, vec) * 0.693359375f;
    rest -= __builtin_convertvector(whole, vec) * -2.12194440e-4f;
    vec sum = spread(1.9875691500e-4f);
    sum = sum * rest + 1.3981999507e-3f;
    sum = sum * rest + 8.3334519073e-3f;
    sum = sum * rest + 4.1665795894e-2f;
    sum = sum * rest + 1.6666665459e-1f;
    sum = sum * rest + 5.0000001201e-1f;
    sum = sum * rest * rest + rest + 1.0f;
    vec power = (vec)((whole + 127) << 23);
    return (vec)((ivec)(sum * power) & ~low);
}

#define INLINE static inline __attribute__((always_inline))

/* One tile of products: `rows` queries by `blocks` blocks of 16 keys. */
INLINE void score_tile(int rows, int blocks, const float *queries, const num *keys, int size, float *scores, int stride) {
    vec sum[8][4];
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < blocks; j++) sum[i][j] = spread(0);
    for (int d = 0; d < size; d++) {
        vec key[4];
        for (int j = 0; j < blocks; j++) key[j] = load(keys + ((size_t)j * size + d) * LANES);
        for (int i = 0; i < rows; i++)
            for (int j = 0; j < blocks; j++) sum[i][j] += queries[i * size + d] * key[j];
    }
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < blocks; j++) *(vec *)(scores + (size_t)i * stride + j * LANES) = sum[i][j];
}

/* scores[q][k] for `count` queries and `length` keys; a row of scores has `stride` numbers. */
static void score(const float *queries, int count, const num *keys, int length, int size, float *scores, int stride) {
    int blocks = (length + LANES - 1) / LANES, q = 0;
#define TILES(rows, wide)                                                                                       \
    for (; q + rows <= count; q += rows) {                                                                      \
        const float *from = queries + q * size;                                                                 \
        float *to = scores + (size_t)q * stride;                                                                \
        int k = 0;                                                                                              \
        for (; k + wide <= blocks; k += wide)                                                                   \
            score_tile(rows, wide, from, keys + (size_t)k * size * LANES, size, to + k * LANES, stride);        \
        for (; k < blocks; k++)                                                                                 \
            score_tile(rows, 1, from, keys + (size_t)k * size * LANES, size, to + k * LANES, stride);           \
    }
    TILES(8, 2)
    TILES(4, 2)
    TILES(2, 4)
    TILES(1, 4)
#undef TILES
}

/* One tile of sums: `rows` queries by `wide` blocks of 16 dimensions. */
INLINE void mix_tile(int rows, int wide, const float *weights, int stride, const num *values, int length, int size,
                     float *out) {
    vec sum[8][4];
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < wide; j++) sum[i][j] = *(vec *)(out + i * size + j * LANES);
    for (int k = 0; k < length; k++) {
        vec value[4];
        for (int j = 0; j < wide; j++) value[j] = load(values + (size_t)k * size + j * LANES);
        for (int i = 0; i < rows; i++)
            for (int j = 0; j < wide; j++) sum[i][j] += weights[(size_t)i * stride + k] * value[j];
    }
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < wide; j++) *(vec *)(out + i * size + j * LANES) = sum[i][j];
}

/* out[q][d] += sum of weights[q][k] * values[k][d]. */
static void mix(const float *weights, int stride, int count, const num *values, int length, int size, float *out) {
    int q = 0;
#define TILES(rows, wide)                                                                                       \
    for (; q + rows <= count; q += rows) {                                                                      \
        const float *from = weights + (size_t)q * stride;                                                       \
        float *to = out + q * size;                                                                             \
        int d = 0;                                                                                              \
        for (; d + wide * LANES <= size; d += wide * LANES)                                                     \
            mix_tile(rows, wide, from, stride, values + d, length, size, to + d);                               \
        for (; d < size; d += LANES) mix_tile(rows, 1, from, stride, values + d, length, size, to + d);         \
    }
    TILES(8, 2)
    TILES(4, 2)
    TILES(2, 2)
    TILES(1, 4)
#undef TILES
}

static void soften(float *row, int length) {
    int whole = (length + LANES - 1) / LANES * LANES;
    for (int k = length; k < whole; k++) row[k] = -INFINITY;
    vec high = *(vec *)row;
    for (int k = LANES; k < whole; k += LANES) {
        vec part = *(vec *)(row + k);
        ivec above = part > high;
        high = (vec)(((ivec)part & above) | ((ivec)high & ~above));
    }
    float most = high[0];
    for (int i = 1; i < LANES; i++) most = high[i] > most ? high[i] : most;
    vec total = {};
    for (int k = 0; k < whole; k += LANES) {
        vec part = exp_vec(*(vec *)(row + k) - most);
        *(vec *)(row + k) = part;
        total += part;
    }
    float sum = 0;
    for (int i = 0; i < LANES; i++) sum += total[i];
    float share = 1.0f / sum;
    for (int k = 0; k < whole; k += LANES) *(vec *)(row + k) *= share;
}

/* What a query sees: `shared_length` tokens of a shared beginning, `own_length` tokens of its own region, then
 * `branch_length` tokens of it from `branch`. `own_cache` 1 means that the region is one of shared beginnings. */
struct sight {
    int32_t shared, shared_length, own_cache, own, own_length, branch, branch_length, at;
};

/* Ask memory for what the next conversation keeps for a head: too little and too scattered for the processor to guess. */
static void fetch(const struct sight *next, int head, int key_heads, int size, const num *const *all_keys,
                  const num *const *all_values, const int *capacities) {
    size_t own = ((size_t)next->own * key_heads + head) * size * capacities[next->own_cache];
    const char *keys = (const char *)(all_keys[next->own_cache] + own);
    const char *values = (const char *)(all_values[next->own_cache] + own);
    for (size_t at = 0; at < next->own_length * size * sizeof(num); at += 64) {
        __builtin_prefetch(keys + at);
        __builtin_prefetch(values + at);
    }
}

static inline int up(int length) { return (length + LANES - 1) / LANES * LANES; }

/* out[token][head * size] for queries[token][stride]; caches are {own, shared}. Room beyond a region's last token is
 * read, never used: capacities are multiples of LANES. */
void attend(const num *queries, int64_t stride, num *out, const struct sight *sights, int tokens, int heads,
            int key_heads, int size, float scale, const num *own_keys, const num *own_values, const num *shared_keys,
            const num *shared_values, int own_capacity, int shared_capacity, int longest, float *scratch) {
    const num *all_keys[2] = {own_keys, shared_keys}, *all_values[2] = {own_values, shared_values};
    const int capacities[2] = {own_capacity, shared_capacity};
    int repeat = heads / key_heads, most = BLOCK / repeat > 0 ? BLOCK / repeat : 1;
    int width = longest;
    float *asked = scratch, *mixed = asked + (size_t)most * repeat * size, *scores = mixed + (size_t)most * repeat * size;
    for (int begin = 0, end; begin < tokens; begin = end) {
        const struct sight *first = sights + begin;
        for (end = begin + 1; end < tokens && end - begin < most; end++)
            if (sights[end].shared != first->shared || sights[end].shared_length != first->shared_length) break;
        int count = (end - begin) * repeat, shared = first->shared_length, room = up(shared);
        for (int head = 0; head < key_heads; head++) {
            for (int q = 0; q < count; q++) {
                const num *from = queries + (begin + q / repeat) * stride + (head * repeat + q % repeat) * size;
                for (int d = 0; d < size; d += LANES) *(vec *)(asked + q * size + d) = load(from + d) * scale;
            }
            memset(mixed, 0, sizeof(float) * count * size);
            size_t region = ((size_t)first->shared * key_heads + head) * size * shared_capacity;
            if (shared) score(asked, count, shared_keys + region, shared, size, scores, width);
            for (int from = begin, to; from < end; from = to) {
                const struct sight *sight = sights + from;
                int reach = 0;
                for (to = from; to < end && sights[to].own == sight->own && sights[to].own_cache == sight->own_cache; to++) {
                    int far = sights[to].branch_length ? sights[to].branch + sights[to].branch_length : sights[to].own_length;
                    reach = far > reach ? far : reach;
                }
                if (to < end) fetch(sights + to, head, key_heads, size, all_keys, all_values, capacities);
                int capacity = capacities[sight->own_cache];
                size_t own = ((size_t)sight->own * key_heads + head) * size * capacity;
                int q = (from - begin) * repeat, rows = (to - from) * repeat;
                float *row = scores + (size_t)q * width;
                score(asked + q * size, rows, all_keys[sight->own_cache] + own, reach, size, row + room, width);
                for (int i = 0; i < rows; i++, row += width) {
                    const struct sight *mine = sights + from + i / repeat;
                    for (int k = shared; k < room; k++) row[k] = -INFINITY;
                    int last = mine->branch_length ? mine->branch : reach;
                    for (int k = mine->own_length; k < last; k++) row[room + k] = -INFINITY;
                    if (mine->branch_length)
                        for (int k = mine->branch + mine->branch_length; k < reach; k++) row[room + k] = -INFINITY;
                    soften(row, room + reach);
                }
                mix(scores + (size_t)q * width + room, width, rows, all_values[sight->own_cache] + own, reach, size,
                    mixed + q * size);
            }
            if (shared) mix(scores, width, count, shared_values + region, shared, size, mixed);
            for (int q = 0; q < count; q++) {
                num *to = out + ((size_t)(begin + q / repeat) * heads + head * repeat + q % repeat) * size;
                for (int d = 0; d < size; d += LANES) store(to + d, *(vec *)(mixed + q * size + d));
            }
        }
    }
}

/* Rotates queries and keys of packed[token][(heads + 2 key_heads) * size] in place and stores keys and values. */
void turn_and_store(num *packed, const struct sight *sights, int tokens, int heads, int key_heads, int size,
                    const float *cosine, const float *sine, num *own_keys, num *own_values, num *shared_keys,
                    num *shared_values, int own_capacity, int shared_capacity) {
    int half = size / 2;
    for (int t = 0; t < tokens; t++) {
        const struct sight *sight = sights + t;
        num *row = packed + (size_t)t * (heads + 2 * key_heads) * size;
        const float *c = cosine + (size_t)t * half, *s = sine + (size_t)t * half;
        for (int head = 0; head < heads + key_heads; head++) {
            num *x = row + head * size;
            int d = 0;
            for (; d + LANES <= half; d += LANES) {
                vec a = load(x + d), b = load(x + d + half), cos = *(const vec *)(c + d), sin = *(const vec *)(s + d);
                store(x + d, a * cos - b * sin);
                store(x + d + half, b * cos + a * sin);
            }
            for (; d < half; d++) {
                float a = get(x[d]), b = get(x[d + half]);
                x[d] = put(a * c[d] - b * s[d]);
                x[d + half] = put(b * c[d] + a * s[d]);
            }
        }
        int capacity = sight->own_cache ? shared_capacity : own_capacity;
        num *keys = sight->own_cache ? shared_keys : own_keys, *values = sight->own_cache ? shared_values : own_values;
        for (int head = 0; head < key_heads; head++) {
            size_t region = ((size_t)sight->own * key_heads + head) * size * capacity;
            const num *key = row + (heads + head) * size, *value = row + (heads + key_heads + head) * size;
            num *to = keys + region + (size_t)(sight->at / LANES) * size * LANES + sight->at % LANES;
            for (int d = 0; d < size; d++) to[d * LANES] = key[d];
            memcpy(values + region + (size_t)sight->at * size, value, sizeof(num) * size);
        }
    }
}

/* states += added where added is given; out = states over their root mean square, times weight. */
void add_and_norm(num *states, const num *added, const num *weight, num *out, int tokens, int size, float epsilon) {
    for (int t = 0; t < tokens; t++) {
        num *row = states + (size_t)t * size, *to = out + (size_t)t * size;
        const num *more = added ? added + (size_t)t * size : NULL;
        vec total = {};
        float rest = 0;
        int d = 0;
        for (; d + LANES <= size; d += LANES) {
            if (more) store(row + d, load(row + d) + load(more + d));
            vec part = load(row + d);
            total += part * part;
        }
        for (; d < size; d++) {
            if (more) row[d] = put(get(row[d]) + get(more[d]));
            rest += get(row[d]) * get(row[d]);
        }
        for (int i = 0; i < LANES; i++) rest += total[i];
        float share = 1.0f / sqrtf(rest / size + epsilon);
        for (d = 0; d + LANES <= size; d += LANES) {
            num rounded[LANES];
            store(rounded, load(row + d) * share);
            store(to + d, load(rounded) * load(weight + d));
        }
        for (; d < size; d++) to[d] = put(get(put(get(row[d]) * share)) * get(weight[d]));
    }
}

/* out[token][size] = silu(gate) * up for both[token][2 * size]. */
void gate(const num *both, num *out, int tokens, int size) {
    for (int t = 0; t < tokens; t++) {
        const num *g = both + (size_t)t * 2 * size, *u = g + size;
        num *to = out + (size_t)t * size;
        int d = 0;
        for (; d + LANES <= size; d += LANES) {
            vec x = load(g + d), y = load(u + d);
            ivec negative = x < 0.0f;
            vec small = exp_vec((vec)((ivec)x & negative) - (vec)((ivec)x & ~negative)); /* exp(-|x|) */
            vec upper = (vec)(((ivec)spread(1.0f) & ~negative) | ((ivec)small & negative));
            store(to + d, x * upper / (small + 1.0f) * y);
        }
        for (; d < size; d++) {
            float x = get(g[d]);
            to[d] = put(x / (1.0f + expf(-x)) * get(u[d]));
        }
    }
}
