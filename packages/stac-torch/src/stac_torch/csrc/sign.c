/* The sign step on lists of tensors in host memory, for `stac_torch._fused_cpu`.
 *
 * One call walks any number of tensors of any shape, so nothing is compiled twice and 3,000 small
 * tensors cost one call. Everything is read and written once: 20 bytes per float32 entry, where
 * AdamW moves 28. The values are those of `stac_torch._sign`, bit for bit: the same roundings in
 * the same order, which is why contraction to fused multiply-adds must be off.
 *
 * Build: cc -O3 -march=native -ffp-contract=off -fopenmp -fPIC -shared sign.c
 */

#include <math.h>
#include <omp.h>
#include <stdint.h>
#include <string.h>

/* Entries in flight: the widened copies of a piece stay in the first-level cache. */
enum { PIECE = 1024, BLOCK = 256, LEVELS = 127, AHEAD = 4 };

enum dtype { FLOAT64, FLOAT32, FLOAT16, BFLOAT16, INT8, NONE };

/* One row of the table that the caller fills; 64-bit fields, pointers as integers. */
typedef struct {
    int64_t param, grad, moment, scale; /* addresses; moment and scale may be 0 */
    int64_t entries;
    int64_t row;     /* entries of one index of dimension 0, for int8 moments */
    int64_t noise;   /* hash of seed and name, or -1 to round to nearest */
    int64_t counter; /* the step being taken, for the noise */
} tensor;

typedef struct {
    double lr, decay, momentum, fresh; /* fresh is 1 - momentum */
    double grad_scale;                 /* 0 for none */
    int64_t maximize;
    int64_t param, grad, moment; /* dtypes */
    int64_t nonfinite;           /* set where one was seen */
} options;

static inline uint32_t bits_of(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static inline float float_of(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* To nearest, ties to even, in integers: compilers vectorise these and not the library's own. */
static inline uint16_t to_bfloat16(float value) {
    uint32_t bits = bits_of(value);
    uint32_t rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
    return value != value ? 0x7FC0 : rounded;
}

static inline float from_bfloat16(uint16_t half) { return float_of((uint32_t)half << 16); }

static inline float from_float16(uint16_t half) {
    uint32_t magnitude = half & 0x7FFF;
    /* The exponent is moved by a multiplication, which also makes numbers of subnormals. */
    uint32_t finite = bits_of(float_of(magnitude << 13) * 0x1p112f);
    uint32_t bits = magnitude >= 0x7C00 ? 0x7F800000 | (magnitude << 13) : finite;
    return float_of(bits | ((uint32_t)(half & 0x8000) << 16));
}

static inline uint16_t to_float16(float value) {
    uint32_t bits = bits_of(value);
    uint32_t magnitude = bits & 0x7FFFFFFF;
    uint32_t odd = (magnitude >> 13) & 1;
    uint32_t normal = (magnitude - 0x38000000 + 0xFFF + odd) >> 13;
    /* Adding 0.5 leaves the units of subnormals, 2^-24, in the last bits. */
    uint32_t small = bits_of(float_of(magnitude) + 0.5f) - 0x3F000000;
    uint32_t half = magnitude < 0x38800000 ? small : normal;
    half = magnitude >= 0x477FF000 ? 0x7C00 : half;
    half = magnitude > 0x7F800000 ? 0x7E00 : half;
    return half | ((bits >> 16) & 0x8000);
}

/* The finaliser of MurmurHash3, as in `stac_torch._rounding`. */
static inline uint32_t mixed(uint32_t x) {
    x = (x ^ (x >> 16)) * 0x85EBCA6B;
    x = (x ^ (x >> 13)) * 0xC2B2AE35;
    return x ^ (x >> 16);
}

/* a*b + c where the last bits do not matter. */
static inline float approximately(float a, float b, float c) {
#ifdef __FMA__
    return __builtin_fmaf(a, b, c);
#else
    return a * b + c;
#endif
}

static inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

#define REAL float
#define NAMED(name) name##_float
#include "step.h"
#undef REAL
#undef NAMED
#define REAL double
#define NAMED(name) name##_double
#include "step.h"

/* An 8-bit moment, block by block within its row; see `stac_torch._int8` for the code. */
static void decode(float *restrict moment, const int8_t *restrict codes, float scale, int n) {
    const float unit = 1.0f / LEVELS;
    for (int i = 0; i < n; i++) {
        float level = (float)codes[i] * unit, square = level * level;
        float power = float_of(bits_of(square * square) | (bits_of(level) & 0x80000000));
        moment[i] = power * scale;
    }
}

/* The codes by definition, two divisions and two roots in each. */
static void encode_exactly(int8_t *restrict codes, const float *restrict moment, float divisor,
                           int n) {
    for (int i = 0; i < n; i++) {
        float root = 1.0f / sqrtf(1.0f / sqrtf(fabsf(moment[i]) / divisor));
        float whole = (root * LEVELS + 0x1.8p23f) - 0x1.8p23f; /* to nearest, ties to even */
        int code = whole >= 0.0f ? (int)whole : 0;             /* nan is 0 */
        codes[i] = moment[i] < 0.0f ? -code : code;
    }
}

/* The same codes several times as fast. Newton's iteration for y^(-1/4) gives the roots to 2e-5 of
 * a code, which decides all but those within 1e-4 of the middle between two; a block with such a
 * one (5 in 100) is encoded again by definition. Returns whether this one has to be. */
static int encode_nearly(int8_t *restrict codes, const float *restrict moment, float factor,
                         int n) {
    uint32_t doubt = 0; /* as an integer: the largest of floats is not vectorised */
    for (int i = 0; i < n; i++) {
        float y = fabsf(moment[i]) * factor;
        y = y > 1e-12f ? y : 1e-12f; /* far below code 1; nan comes here too */
        float r = float_of(0x4F584000 - (bits_of(y) >> 2)), quarter = -0.25f * y;
        for (int k = 0; k < 2; k++) r = r * approximately(quarter, (r * r) * (r * r), 1.25f);
        float value = y * (r * r * r);
        value = approximately(0.75f * value, approximately(-value, r, 1.0f), value);
        value = float_of(bits_of(value) | (bits_of(moment[i]) & 0x80000000));
        float shifted = value + 0x1.8p23f; /* to nearest, ties to even, in the last bits */
        uint32_t error = bits_of(fabsf(value - (shifted - 0x1.8p23f)));
        doubt = error > doubt ? error : doubt;
        codes[i] = (int)(bits_of(shifted) - 0x4B400000);
    }
    return doubt > bits_of(0.4999f);
}

static float encode(int8_t *restrict codes, const float *restrict moment, int n) {
    uint32_t largest = 0; /* as integers, magnitudes are in order and nan is the largest */
    for (int i = 0; i < n; i++) {
        uint32_t magnitude = bits_of(moment[i]) & 0x7FFFFFFF;
        largest = magnitude > largest ? magnitude : largest;
    }
    float scale = float_of(largest);
    const float levels = (float)LEVELS * LEVELS * LEVELS * LEVELS;
    /* The factor of a smaller scale, or of none, would not be a number. */
    if (!(scale >= 0x1p-90f) || encode_nearly(codes, moment, levels / scale, n))
        encode_exactly(codes, moment, largest ? scale : 1.0f, n);
    return scale;
}

/* Ask for a later block: the phases of a block are too long for the processor to look ahead. */
static void prefetch(const tensor *t, const options *o, int64_t offset) {
    static const int sizes[] = {8, 4, 2, 2};
    if (offset + BLOCK > t->entries) return;
    const char *param = (const char *)t->param + offset * sizes[o->param];
    const char *grad = (const char *)t->grad + offset * sizes[o->grad];
    for (int i = 0; i < BLOCK * sizes[o->param]; i += 64) __builtin_prefetch(param + i, 1);
    for (int i = 0; i < BLOCK * sizes[o->grad]; i += 64) __builtin_prefetch(grad + i, 0);
    for (int i = 0; i < BLOCK; i += 64) __builtin_prefetch((const char *)t->moment + offset + i, 1);
}

static void step_int8(const tensor *t, options *o, int64_t first, int64_t last) {
    int64_t blocks = (t->row + BLOCK - 1) / BLOCK;
    float moment[BLOCK];
    for (int64_t index = first; index < last; index++) {
        int64_t row = index / blocks, column = index % blocks * BLOCK;
        int64_t offset = row * t->row + column;
        int n = (int)smaller(BLOCK, t->row - column);
        int8_t *codes = (int8_t *)t->moment + offset;
        float *scale = (float *)t->scale + index;
        prefetch(t, o, offset + AHEAD * BLOCK);
        decode(moment, codes, *scale, n);
        if (o->param == FLOAT64) {
            double wide[BLOCK];
            for (int i = 0; i < n; i++) wide[i] = (double)moment[i];
            update_double(t, o, offset, n, wide);
            for (int i = 0; i < n; i++) moment[i] = (float)wide[i];
        } else {
            update_float(t, o, offset, n, moment);
        }
        *scale = encode(codes, moment, n);
    }
}

static void step_plain(const tensor *t, options *o, int64_t first, int64_t last) {
    for (int64_t index = first; index < last; index++) {
        int64_t offset = index * PIECE;
        int n = (int)smaller(PIECE, t->entries - offset);
        if (o->param == FLOAT64)
            piece_double(t, o, offset, n);
        else
            piece_float(t, o, offset, n);
    }
}

/* The part of a tensor's units that lies in [start, stop) of the entries of all tensors. */
static void part(const tensor *t, int64_t units, int64_t before, int64_t start, int64_t stop,
                 int64_t *first, int64_t *last) {
    int64_t from = start > before ? start - before : 0;
    int64_t to = smaller(stop - before, t->entries);
    *first = (int64_t)((__int128)from * units / t->entries);
    *last = (int64_t)((__int128)to * units / t->entries);
}

typedef void visitor(const tensor *, options *, int64_t first, int64_t last);

/* Call `visit` on all units of all tensors, an equal share of the entries in each thread. */
static void walk(const tensor *tensors, int64_t count, options *o, int threads, visitor *visit) {
    int64_t total = 0;
    for (int64_t i = 0; i < count; i++) total += tensors[i].entries;
#pragma omp parallel num_threads(threads)
    {
        int64_t team = omp_get_num_threads(), rank = omp_get_thread_num();
        int64_t start = total / team * rank + smaller(rank, total % team);
        int64_t stop = total / team * (rank + 1) + smaller(rank + 1, total % team);
        int64_t before = 0;
        for (int64_t i = 0; i < count && before < stop; i++) {
            const tensor *t = &tensors[i];
            int64_t after = before + t->entries;
            if (after > start && t->entries) {
                int64_t units = t->row ? t->entries / t->row * ((t->row + BLOCK - 1) / BLOCK)
                                       : (t->entries + PIECE - 1) / PIECE;
                int64_t first, last;
                part(t, units, before, start, stop, &first, &last);
                visit(t, o, first, last);
            }
            before = after;
        }
    }
}

void stac_sign_step(const tensor *tensors, int64_t count, options *o, int threads) {
    walk(tensors, count, o, threads, o->moment == INT8 ? step_int8 : step_plain);
}

/* Whether all gradients are finite: one more read of them, and no write. */
static void look(const tensor *t, options *o, int64_t first, int64_t last) {
    for (int64_t index = first; index < last && !o->nonfinite; index++) {
        int64_t offset = index * PIECE;
        int n = (int)smaller(PIECE, t->entries - offset);
        uint32_t bad = 0;
        if (o->grad == FLOAT64) {
            const uint64_t *grad = (const uint64_t *)t->grad + offset;
            for (int i = 0; i < n; i++) bad |= grad[i] << 1 >= 0xFFE0000000000000u;
        } else if (o->grad == FLOAT32) {
            const uint32_t *grad = (const uint32_t *)t->grad + offset;
            for (int i = 0; i < n; i++) bad |= grad[i] << 1 >= 0xFF000000u;
        } else {
            const uint16_t *grad = (const uint16_t *)t->grad + offset;
            uint16_t infinity = o->grad == FLOAT16 ? 0x7C00 : 0x7F80;
            for (int i = 0; i < n; i++) bad |= (grad[i] & 0x7FFF) >= infinity;
        }
        if (bad) {
#pragma omp atomic write
            o->nonfinite = 1;
        }
    }
}

int stac_all_finite(const tensor *tensors, int64_t count, options *o, int threads) {
    walk(tensors, count, o, threads, look);
    return !o->nonfinite;
}
