/* The sign step on lists of tensors in host memory, for `stac_torch._fused_cpu`.
 *
 * One call walks any number of tensors of any shape, so 3,000 small ones cost one call. Everything
 * is read and written once: 20 bytes per float32 entry, where AdamW moves 28. The values are those
 * of `stac_torch._sign`, bit for bit: the same roundings in the same order, which is why
 * contraction to fused multiply-adds must be off. `hatch_build.py` builds it, once for each set of
 * vector instructions; the intrinsics in `int8.h` are all that knows one by name. */

#include <stdint.h>
#include <tgmath.h>

/* Entries in flight: the widened copies of a piece stay in the first-level cache. */
enum { PIECE = 512, BLOCK = 256, LEVELS = 127 };

enum dtype { FLOAT64, FLOAT32, FLOAT16, BFLOAT16, INT8, NONE };

/* One row of the table that the caller fills; 64-bit fields, pointers as integers. */
typedef struct {
    int64_t param, grad, moment, scale; /* addresses; moment and scale may be 0 */
    int64_t entries, row; /* row: entries of one index of dimension 0 for int8 moments, else all */
    int64_t noise;        /* hash of seed and name, or -1 to round to nearest */
    int64_t counter;      /* the step being taken, for the noise */
} tensor;

typedef struct {
    double lr, decay, momentum, fresh; /* fresh is 1 - momentum */
    double grad_scale;                 /* 0 for none */
    double clip;                       /* factor of the gradient, negative to ascend */
    int64_t param, grad, moment;       /* dtypes */
    int64_t propagate_nan;             /* whether the sign of nan is nan */
    int64_t nonfinite;                 /* set where one was seen */
} options;

typedef union { float value; uint32_t bits; } word;

static inline uint32_t bits_of(float value) { return (word){.value = value}.bits; }
static inline float float_of(uint32_t bits) { return (word){.bits = bits}.value; }

/* To nearest, ties to even, in integers: compilers vectorise these and not the library's own. */
static inline uint16_t to_bfloat16(float value) {
    uint32_t bits = bits_of(value);
    uint32_t rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
    return value != value ? 0x7FC0 : rounded;
}

static inline float from_bfloat16(uint16_t half) { return float_of((uint32_t)half << 16); }

static inline float from_float16(uint16_t half) {
    uint32_t magnitude = half & 0x7FFF;
    /* Subnormals as whole numbers: a thread may be told to take subnormal floats for 0. */
    uint32_t small = bits_of((float)(int32_t)magnitude * 0x1p-24f);
    uint32_t bits = magnitude < 0x400 ? small : (magnitude << 13) + 0x38000000;
    bits = magnitude >= 0x7C00 ? 0x7F800000 | (magnitude << 13) : bits;
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

static inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

/* `DO(type in memory, conversion from it, and to it)` for a dtype of floating point. */
#define WITH_DTYPE(dtype, DO)                           \
    if ((dtype) == FLOAT64)                             \
        DO(double, , );                                 \
    else if ((dtype) == FLOAT32)                        \
        DO(float, , (float));                           \
    else if ((dtype) == FLOAT16)                        \
        DO(uint16_t, from_float16, to_float16);         \
    else                                                \
        DO(uint16_t, from_bfloat16, to_bfloat16)
static const double LARGEST[] = {INFINITY, 0x1.FFFFFEp127, 65504.0, 0x1.FEp127};

#define REAL float
#define NAMED(name) name##_float
#include "step.h"
#undef REAL
#undef NAMED
#define REAL double
#define NAMED(name) name##_double
#include "step.h"

#include "int8.h"

/* Pieces of one row each. The blocks of a piece are looked through before the first one is encoded,
 * so that the processor need not wait for the end of either. */
static void step_int8(const tensor *t, options *o, int64_t first, int64_t last) {
    int64_t across = (t->row + PIECE - 1) / PIECE, blocks = (t->row + BLOCK - 1) / BLOCK;
    float moment[PIECE];
    for (int64_t index = first; index < last; index++) {
        int64_t row = index / across, column = index % across * PIECE;
        int64_t offset = row * t->row + column;
        int n = (int)smaller(PIECE, t->row - column);
        int8_t *codes = (int8_t *)t->moment + offset;
        float *scale = (float *)t->scale + row * blocks + column / BLOCK;
        for (int i = 0; i < n; i += BLOCK)
            decode(moment + i, codes + i, scale[i / BLOCK], (int)smaller(BLOCK, n - i));
        if (o->param == FLOAT64) {
            double wide[PIECE];
            for (int i = 0; i < n; i++) wide[i] = (double)moment[i];
            update_double(t, o, offset, n, wide);
            for (int i = 0; i < n; i++) moment[i] = (float)wide[i];
        } else {
            update_float(t, o, offset, n, moment);
        }
        for (int i = 0; i < n; i += BLOCK)
            scale[i / BLOCK] = largest(moment + i, (int)smaller(BLOCK, n - i));
        for (int i = 0; i < n; i += BLOCK)
            encode(codes + i, moment + i, scale[i / BLOCK], (int)smaller(BLOCK, n - i));
    }
}

static int64_t units(const tensor *t) {
    return t->entries ? t->entries / t->row * ((t->row + PIECE - 1) / PIECE) : 0;
}

typedef void visitor(const tensor *, options *, int64_t first, int64_t last);

/* `GOMP_parallel` of the OpenMP library that torch has loaded: a team of threads calls a function.
 * Linked to a second such library, this one's idle threads would turn in circles beside torch's. */
typedef void run_team(void (*work)(void *), void *job, unsigned threads, unsigned flags);

typedef struct {
    const tensor *tensors; int64_t count; options *o; visitor *visit;
    int64_t total, shares, next; /* units; what they are divided into; the next to be taken */
} job;

/* Take one share after another until none is left, whatever the team is and what else runs. */
static void work(void *data) {
    job *j = data;
    int64_t share;
    while ((share = __atomic_fetch_add(&j->next, 1, __ATOMIC_RELAXED)) < j->shares) {
        int64_t first = j->total * share / j->shares, last = j->total * (share + 1) / j->shares;
        for (int64_t i = 0; i < j->count && last > 0; i++) {
            const tensor *t = &j->tensors[i];
            int64_t own = units(t);
            if (first < own) j->visit(t, j->o, first > 0 ? first : 0, smaller(last, own));
            first -= own, last -= own;
        }
    }
}

static void walk(const tensor *tensors, int64_t count, options *o, unsigned threads, run_team *team,
                 visitor *visit) {
    job j = {tensors, count, o, visit, 0, 4 * (int64_t)threads, 0};
    for (int64_t i = 0; i < count; i++) j.total += units(&tensors[i]);
    if (team && threads > 1)
        team(work, &j, threads, 0);
    else
        work(&j);
}

void stac_sign_step(const tensor *tensors, int64_t count, options *o, unsigned threads,
                    run_team *team) {
    visitor *plain = o->param == FLOAT64 ? pieces_double : pieces_float;
    walk(tensors, count, o, threads, team, o->moment == INT8 ? step_int8 : plain);
}

/* Whether all gradients are finite: without its sign, what is not is infinity at least. It goes
 * from the beginning and from the middle in turn: a core reads two streams faster than one. */
static void look(const tensor *t, options *o, int64_t first, int64_t last) {
    int64_t half = (last - first + 1) / 2;
    for (int64_t k = 0; k < last - first && !o->nonfinite; k++) {
        int64_t offset = (first + k / 2 + (k & 1) * half) * PIECE;
        int n = (int)smaller(PIECE, t->entries - offset);
        uint32_t bad = 0;
#define LOOK(type, infinity) \
    for (int i = 0; i < n; i++) bad |= (type)(((const type *)t->grad)[offset + i] << 1) >= infinity
        if (o->grad == FLOAT64)
            LOOK(uint64_t, 0xFFE0000000000000u);
        else if (o->grad == FLOAT32)
            LOOK(uint32_t, 0xFF000000u);
        else
            LOOK(uint16_t, (o->grad == FLOAT16 ? 0xF800u : 0xFF00u));
        if (bad) __atomic_store_n(&o->nonfinite, 1, __ATOMIC_RELAXED);
    }
}

int stac_all_finite(const tensor *tensors, int64_t count, options *o, unsigned threads,
                    run_team *team) {
    walk(tensors, count, o, threads, team, look);
    return !o->nonfinite;
}
