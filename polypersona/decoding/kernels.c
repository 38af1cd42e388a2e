/* Attention and the small operations between products, over packed tokens.
 *
 * Compiled for the machine it runs on, once with -DBF16 and once without (fp32). A region is what one conversation or
 * one shared beginning keeps in a layer, in blocks of 16 tokens: keys as [block][head][dimension][token], values as
 * [block][head][token][dimension], so that a step reads each region from front to back. Sums run in fp32 and in an order
 * that depends on the token alone, so no answer depends on what is computed beside it.
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define LANES 16 /* tokens of a block, and partial sums of a reduction, on any machine */
#define BLOCK 32 /* queries that share one pass over a shared beginning */

/* A vector is as wide as a register: a compiler keeps wider ones in memory. */
#ifdef __AVX512F__
#define WIDTH 16
#else
#define WIDTH 8
#endif
#define PARTS (LANES / WIDTH)
#define WHOLE(size) ((size) / LANES * LANES)

typedef float vec __attribute__((vector_size(4 * WIDTH), aligned(4)));
typedef int32_t ivec __attribute__((vector_size(4 * WIDTH), aligned(4)));
typedef int64_t wide __attribute__((vector_size(4 * WIDTH), aligned(4)));

#ifdef BF16
typedef uint16_t num;
typedef uint16_t nvec __attribute__((vector_size(2 * WIDTH), aligned(2)));
typedef uint32_t uvec __attribute__((vector_size(4 * WIDTH), aligned(4)));
static inline vec load(const num *from) {
    uvec bits = __builtin_convertvector(*(const nvec *)from, uvec) << 16;
    return (vec)bits;
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

/* scores[q][0..15] of `rows` queries and one block of keys: even dimensions, then odd ones added to them. */
INLINE void score_tile(int rows, const float *queries, const num *keys, int size, float *scores, size_t stride) {
    for (int odd = 0; odd < 2; odd++) {
        vec sum[8][PARTS];
        for (int i = 0; i < rows; i++)
            for (int p = 0; p < PARTS; p++) sum[i][p] = spread(0);
        for (int d = odd; d < size; d += 2) {
            vec key[PARTS];
            for (int p = 0; p < PARTS; p++) key[p] = load(keys + d * LANES + p * WIDTH);
            for (int i = 0; i < rows; i++)
                for (int p = 0; p < PARTS; p++) sum[i][p] += queries[i * size + d] * key[p];
        }
        for (int i = 0; i < rows; i++)
            for (int p = 0; p < PARTS; p++) {
                vec *to = (vec *)(scores + i * stride + p * WIDTH);
                *to = odd ? *to + sum[i][p] : sum[i][p];
            }
    }
}

/* out[q][0..WIDTH wide) += weights[q][0..15] times one block of values. */
INLINE void mix_tile(int rows, int wide, const float *weights, size_t stride, const num *values, int size, float *out) {
    vec sum[8][4];
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < wide; j++) sum[i][j] = *(vec *)(out + i * size + j * WIDTH);
    for (int k = 0; k < LANES; k++) {
        vec value[4];
        for (int j = 0; j < wide; j++) value[j] = load(values + k * size + j * WIDTH);
        for (int i = 0; i < rows; i++)
            for (int j = 0; j < wide; j++) sum[i][j] += weights[i * stride + k] * value[j];
    }
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < wide; j++) *(vec *)(out + i * size + j * WIDTH) = sum[i][j];
}

/* Tiles hold as many sums as the machine has registers for. */
static void score_block(const float *queries, int count, const num *keys, int size, float *scores, size_t stride) {
    int q = 0;
#define TILES(rows) \
    for (; q + rows <= count; q += rows) score_tile(rows, queries + q * size, keys, size, scores + q * stride, stride);
#if PARTS == 1
    TILES(8)
#endif
    TILES(4)
    TILES(2)
    TILES(1)
#undef TILES
}

static void mix_block(const float *weights, size_t stride, int count, const num *values, int size, float *out) {
    int q = 0;
#define TILES(rows, wide)                                                                            \
    for (; q + rows <= count; q += rows) {                                                           \
        const float *from = weights + q * stride;                                                    \
        float *to = out + q * size;                                                                  \
        int d = 0;                                                                                   \
        for (; d + wide * WIDTH <= size; d += wide * WIDTH)                                          \
            mix_tile(rows, wide, from, stride, values + d, size, to + d);                            \
        for (; d < size; d += WIDTH) mix_tile(rows, 1, from, stride, values + d, size, to + d);      \
    }
#if PARTS == 1
    TILES(8, 2)
#endif
    TILES(4, 2)
    TILES(2, 4)
    TILES(1, 4)
#undef TILES
}

/* The sum of 16 partial sums, in their order. */
static inline float sum_of(const vec *total) {
    float sum = 0;
    for (int p = 0; p < PARTS; p++)
        for (int i = 0; i < WIDTH; i++) sum += total[p][i];
    return sum;
}

static void soften(float *row, int length) {
    int whole = (length + LANES - 1) / LANES * LANES;
    for (int k = length; k < whole; k++) row[k] = -INFINITY;
    vec high = *(vec *)row;
    for (int k = WIDTH; k < whole; k += WIDTH) {
        vec part = *(vec *)(row + k);
        ivec above = part > high;
        high = (vec)(((ivec)part & above) | ((ivec)high & ~above));
    }
    float most = high[0];
    for (int i = 1; i < WIDTH; i++) most = high[i] > most ? high[i] : most;
    vec total[PARTS] = {};
    for (int k = 0; k < whole; k += LANES)
        for (int p = 0; p < PARTS; p++) {
            vec part = exp_vec(*(vec *)(row + k + p * WIDTH) - most);
            *(vec *)(row + k + p * WIDTH) = part;
            total[p] += part;
        }
    float share = 1.0f / sum_of(total);
    for (int k = 0; k < whole; k += WIDTH) *(vec *)(row + k) *= share;
}

/* What a query sees: `shared_length` tokens of a shared beginning, `own_length` tokens of its own region, then
 * `branch_length` tokens of it from `branch`. `own_cache` 1 means that the region is one of shared beginnings. */
struct sight {
    int32_t shared, shared_length, own_cache, own, own_length, branch, branch_length, at;
};

static inline int up(int length) { return (length + LANES - 1) / LANES * LANES; }

/* Where a block of a region begins. */
INLINE size_t place(int region, int block, int head, int capacity, int key_heads, int size) {
    return (((size_t)region * (capacity / LANES) + block) * key_heads + head) * size * LANES;
}

/* Queries that share a beginning, with scratch of their own: `asked` and `mixed` are [head][query][size], `scores`
 * [head][query][width]. */
struct block {
    int count, key_heads, size, width;
    float *asked, *mixed, *scores;
};

/* Scores of queries [from, from + rows) of every head with the first `length` tokens of a region. */
static void score_region(const struct block *b, int from, int rows, const num *keys, int region, int length,
                         int capacity, int column) {
    for (int block = 0; block * LANES < length; block++)
        for (int head = 0; head < b->key_heads; head++) {
            size_t row = (size_t)head * b->count + from;
            score_block(b->asked + row * b->size, rows, keys + place(region, block, head, capacity, b->key_heads, b->size),
                        b->size, b->scores + row * b->width + column + block * LANES, b->width);
        }
}

static void mix_region(const struct block *b, int from, int rows, const num *values, int region, int length,
                       int capacity, int column) {
    for (int block = 0; block * LANES < length; block++)
        for (int head = 0; head < b->key_heads; head++) {
            size_t row = (size_t)head * b->count + from;
            mix_block(b->scores + row * b->width + column + block * LANES, b->width, rows,
                      values + place(region, block, head, capacity, b->key_heads, b->size), b->size,
                      b->mixed + row * b->size);
        }
}

/* Hide what a query does not see of `reach` tokens that its neighbours do. */
static void hide(const struct sight *sight, float *row, int shared, int room, int reach) {
    int last = sight->branch_length ? sight->branch : reach;
    for (int k = shared; k < room; k++) row[k] = -INFINITY;
    for (int k = sight->own_length; k < last; k++) row[room + k] = -INFINITY;
    if (sight->branch_length)
        for (int k = sight->branch + sight->branch_length; k < reach; k++) row[room + k] = -INFINITY;
}

/* out[token][head * size] for queries[token][stride]. Room beyond a region's last token is read, never used: capacities
 * are multiples of LANES. `longest` bounds what a query sees, each part rounded up to LANES. */
void attend(const num *queries, int64_t stride, num *out, const struct sight *sights, int tokens, int heads,
            int key_heads, int size, float scale, const num *own_keys, const num *own_values, const num *shared_keys,
            const num *shared_values, int own_capacity, int shared_capacity, int longest, float *scratch) {
    const num *all_keys[2] = {own_keys, shared_keys}, *all_values[2] = {own_values, shared_values};
    const int capacities[2] = {own_capacity, shared_capacity};
    int repeat = heads / key_heads, most = BLOCK / repeat > 0 ? BLOCK / repeat : 1;
    for (int begin = 0, end; begin < tokens; begin = end) {
        const struct sight *first = sights + begin;
        for (end = begin + 1; end < tokens && end - begin < most; end++)
            if (sights[end].shared != first->shared || sights[end].shared_length != first->shared_length) break;
        int count = (end - begin) * repeat, shared = first->shared_length, room = up(shared);
        struct block b = {count, key_heads, size, longest, scratch, NULL, NULL};
        b.mixed = b.asked + (size_t)count * key_heads * size;
        b.scores = b.mixed + (size_t)count * key_heads * size;
        memset(b.mixed, 0, sizeof(float) * count * key_heads * size);
        for (int q = 0; q < count; q++)
            for (int head = 0; head < key_heads; head++) {
                const num *from = queries + (begin + q / repeat) * stride + (head * repeat + q % repeat) * size;
                float *to = b.asked + ((size_t)head * count + q) * size;
                for (int d = 0; d < size; d += WIDTH) *(vec *)(to + d) = load(from + d) * scale;
            }
        score_region(&b, 0, count, shared_keys, first->shared, shared, shared_capacity, 0);
        for (int from = begin, to; from < end; from = to) {
            const struct sight *sight = sights + from;
            int reach = 0, cache = sight->own_cache;
            for (to = from; to < end && sights[to].own == sight->own && sights[to].own_cache == cache; to++) {
                int branch_end = sights[to].branch + sights[to].branch_length;
                int far = sights[to].branch_length ? branch_end : sights[to].own_length;
                reach = far > reach ? far : reach;
            }
            int q = (from - begin) * repeat, rows = (to - from) * repeat;
            score_region(&b, q, rows, all_keys[cache], sight->own, reach, capacities[cache], room);
            for (int head = 0; head < key_heads; head++)
                for (int i = 0; i < rows; i++) {
                    float *row = b.scores + ((size_t)head * count + q + i) * longest;
                    hide(sights + from + i / repeat, row, shared, room, reach);
                    soften(row, room + reach);
                }
            mix_region(&b, q, rows, all_values[cache], sight->own, reach, capacities[cache], room);
        }
        mix_region(&b, 0, count, shared_values, first->shared, shared, shared_capacity, 0);
        for (int q = 0; q < count; q++)
            for (int head = 0; head < key_heads; head++) {
                num *to = out + ((size_t)(begin + q / repeat) * heads + head * repeat + q % repeat) * size;
                const float *from = b.mixed + ((size_t)head * count + q) * size;
                for (int d = 0; d < size; d += WIDTH) store(to + d, *(const vec *)(from + d));
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
            for (; d < WHOLE(half); d += WIDTH) {
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
            size_t block = place(sight->own, sight->at / LANES, head, capacity, key_heads, size);
            const num *key = row + (heads + head) * size, *value = row + (heads + key_heads + head) * size;
            num *to = keys + block + sight->at % LANES;
            for (int d = 0; d < size; d++) to[d * LANES] = key[d];
            memcpy(values + block + (size_t)(sight->at % LANES) * size, value, sizeof(num) * size);
        }
    }
}

/* states += added where added is given; out = states over their root mean square, times weight. */
void add_and_norm(num *states, const num *added, const num *weight, num *out, int tokens, int size, float epsilon) {
    for (int t = 0; t < tokens; t++) {
        num *row = states + (size_t)t * size, *to = out + (size_t)t * size;
        const num *more = added ? added + (size_t)t * size : NULL;
        vec total[PARTS] = {};
        float rest = 0;
        int d = 0;
        for (; d < WHOLE(size); d += LANES)
            for (int p = 0; p < PARTS; p++) {
                num *at = row + d + p * WIDTH;
                if (more) store(at, load(at) + load(more + d + p * WIDTH));
                vec part = load(at);
                total[p] += part * part;
            }
        for (; d < size; d++) {
            if (more) row[d] = put(get(row[d]) + get(more[d]));
            rest += get(row[d]) * get(row[d]);
        }
        for (int p = 0; p < PARTS; p++)
            for (int i = 0; i < WIDTH; i++) rest += total[p][i];
        float share = 1.0f / sqrtf(rest / size + epsilon);
        for (d = 0; d < WHOLE(size); d += WIDTH) {
            num rounded[WIDTH];
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
        for (; d < WHOLE(size); d += WIDTH) {
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

/* The `rank`-th largest of `values` (from 0), which are reordered. */
static float select_largest(float *values, int count, int rank) {
    int low = 0, high = count - 1;
    while (low < high) {
        float pivot = values[low + (high - low) / 2];
        int i = low, j = high;
        while (i <= j) {
            while (values[i] > pivot) i++;
            while (values[j] < pivot) j--;
            if (i <= j) {
                float kept = values[i];
                values[i++] = values[j];
                values[j--] = kept;
            }
        }
        if (rank <= j) high = j;
        else if (rank >= i) low = i;
        else break;
    }
    return values[rank];
}

/* A bound that at least `count` of `size` numbers reach: the count-th largest of the maxima of slices. NAN where a
 * number is none or infinite; minus infinity is allowed, it marks what is impossible. */
static float bound(const num *row, int size, int count, float *maxima) {
    int depth = 1;
    while ((depth + 1) * (depth + 1) * count <= size) depth++;
    int width = size / depth / LANES * LANES;
    if (depth < 2 || width < count) return -INFINITY;
    ivec sound = spread(0) < INFINITY;
    for (int at = 0; at < width; at += WIDTH) {
        vec high = load(row + at);
        sound &= high < INFINITY;
        for (int slice = 1; slice < depth; slice++) {
            vec part = load(row + (size_t)slice * width + at);
            ivec above = part > high;
            high = (vec)(((ivec)part & above) | ((ivec)high & ~above));
            sound &= part < INFINITY;
        }
        *(vec *)(maxima + at) = high;
    }
    for (int at = depth * width; at < size; at++)
        if (!(get(row[at]) < INFINITY)) return NAN;
    for (int i = 0; i < WIDTH; i++)
        if (!sound[i]) return NAN;
    return select_largest(maxima, width, count - 1);
}

struct choice {
    double probability;
    int64_t id;
};

/* Hide all but the likeliest choices that together reach `share` of the whole. */
static void keep_share(struct choice *choices, int count, double share, int32_t *order) {
    double whole = 0, before = 0;
    for (int i = 0; i < count; i++) {
        whole += choices[i].probability;
        int at = i;
        for (; at && choices[order[at - 1]].probability < choices[i].probability; at--) order[at] = order[at - 1];
        order[at] = i;
    }
    for (int i = 0; i < count; i++) {
        double own = choices[order[i]].probability;
        if (before >= share * whole) choices[order[i]].probability = 0;
        before += own;
    }
}

/* One token id for each row of logits, among its `top_k` largest (of ties, the lowest ids), then by `top_p` and `min_p`;
 * `draws` are in [0, 1) and invert the cumulative distribution in the order of ids. -1 where a row is not finite.
 * `scratch` has room for 2 * size floats, `choices` for size entries. */
void draw(const num *logits, int64_t stride, int rows, int size, int top_k, double temperature, double top_p,
          double min_p, const double *draws, int32_t *tokens, float *scratch, struct choice *choices, int32_t *order) {
    for (int r = 0; r < rows; r++) {
        const num *row = logits + r * stride;
        float *found = scratch, *copy = scratch + size;
        float floor = bound(row, size, top_k, copy);
        int count = 0, above = 0, id = 0, is_finite = 1;
        tokens[r] = -1;
        if (floor != floor) continue;
        for (; floor > -INFINITY && id + WIDTH <= size; id += WIDTH) {
            wide reached = (wide)(load(row + id) >= floor);
            int64_t any = 0;
            for (int i = 0; i < WIDTH / 2; i++) any |= reached[i];
            if (!any) continue;
            for (int i = id; i < id + WIDTH; i++)
                if (get(row[i]) >= floor) {
                    found[count] = get(row[i]);
                    choices[count++].id = i;
                }
        }
        for (; id < size; id++) {
            float value = get(row[id]);
            is_finite &= value < INFINITY;
            if (value >= floor) {
                found[count] = value;
                choices[count++].id = id;
            }
        }
        if (!is_finite) continue;
        memcpy(copy, found, sizeof(float) * count);
        float least = select_largest(copy, count, top_k - 1), most = found[0];
        for (int i = 0; i < count; i++) above += found[i] > least;
        int ties = top_k - above, kept = 0;
        for (int i = 0; i < count; i++) {
            if (found[i] < least || (found[i] == least && ties-- <= 0)) continue;
            found[kept] = found[i];
            choices[kept++].id = choices[i].id;
            most = found[i] > most ? found[i] : most;
        }
        if (most == -INFINITY) continue;
        double total = 0, highest = 0;
        for (int i = 0; i < kept; i++) total += choices[i].probability = exp(((double)found[i] - most) / temperature);
        if (top_p < 1) keep_share(choices, kept, top_p, order);
        for (int i = 0; i < kept; i++) highest = choices[i].probability > highest ? choices[i].probability : highest;
        total = 0;
        for (int i = 0; i < kept; i++) {
            if (choices[i].probability < min_p * highest) choices[i].probability = 0;
            total += choices[i].probability;
        }
        double reached = 0, aim = draws[r] * total;
        for (int i = 0; i < kept; i++) {
            if (choices[i].probability <= 0) continue;
            tokens[r] = choices[i].id;
            reached += choices[i].probability;
            if (reached > aim) break;
        }
    }
}
