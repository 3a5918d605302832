/* The step on one piece of one tensor in the arithmetic type REAL; sign.c includes it twice. */

/* A piece as REAL: where it lies if that is its dtype, else in `copy`. */
static REAL *NAMED(wide)(REAL *restrict copy, int64_t address, int64_t offset, int64_t type, int n) {
    if (type == (sizeof(REAL) == sizeof(float) ? FLOAT32 : FLOAT64)) return (REAL *)address + offset;
#define LOAD(stored, wide, narrow) \
    for (int i = 0; i < n; i++) copy[i] = (REAL)wide(((const stored *)address)[offset + i])
    WITH_DTYPE(type, LOAD);
    return copy;
}

static void NAMED(store)(int64_t address, int64_t offset, int64_t type, const REAL *restrict value,
                         int n) {
#define STORE(stored, wide, narrow) \
    for (int i = 0; i < n; i++) ((stored *)address)[offset + i] = narrow(value[i])
    WITH_DTYPE(type, STORE);
}

static void NAMED(store_randomly)(const tensor *t, int64_t offset, const REAL *restrict value,
                                  int n) {
    uint16_t *into = (uint16_t *)t->param + offset;
    uint32_t step = mixed((uint32_t)t->counter), key = (uint32_t)t->noise;
    for (int i = 0; i < n; i++) {
        uint64_t index = (uint64_t)(offset + i);
        uint32_t word = mixed((uint32_t)index ^ step) ^ (uint32_t)(index >> 32) ^ key;
        uint32_t bits = bits_of((float)value[i]);
        uint16_t drawn = (bits + (mixed(word) >> 16)) >> 16;
        into[i] = (bits & 0x7F800000) < 0x7F800000 ? drawn : to_bfloat16((float)value[i]);
    }
}

/* -1, 0 or 1; of nan 0 as `torch.sign`, or nan where that is to show. */
static inline REAL NAMED(sign)(REAL x, int64_t propagate_nan) {
    REAL magnitude = fabs(x);
    return magnitude > 0 ? copysign((REAL)1, x) : propagate_nan ? magnitude : 0;
}

/* m <- momentum*m + fresh*g, or g where no moment is kept;  p <- p*decay - lr*sign(m). */
static inline void NAMED(rule)(REAL *restrict p, const REAL *restrict g, REAL *restrict m,
                               const options *o, int n) {
    REAL momentum = (REAL)o->momentum, fresh = (REAL)o->fresh, clip = (REAL)o->clip;
    REAL decay = (REAL)o->decay, lr = (REAL)o->lr;
    for (int i = 0; i < n; i++) {
        REAL next = m ? m[i] * momentum + g[i] * clip * fresh : g[i] * clip;
        if (m) m[i] = next;
        p[i] = p[i] * decay - NAMED(sign)(next, o->propagate_nan) * lr;
    }
}

/* A piece whose moment is already wide, or null. */
static void NAMED(update)(const tensor *t, const options *o, int64_t offset, int n,
                          REAL *restrict moment) {
    REAL param_copy[PIECE], grad_copy[PIECE];
    REAL *param = NAMED(wide)(param_copy, t->param, offset, o->param, n);
    const REAL *grad = NAMED(wide)(grad_copy, t->grad, offset, o->grad, n);
    if (o->grad_scale != 0) {
        REAL grad_scale = (REAL)o->grad_scale;
        for (int i = 0; i < n; i++) grad_copy[i] = grad[i] / grad_scale;
        grad = grad_copy;
    }
    NAMED(rule)(param, grad, moment, o, n);
    if (t->noise >= 0)
        NAMED(store_randomly)(t, offset, param, n);
    else if (param == param_copy)
        NAMED(store)(t->param, offset, o->param, param, n);
}

static void NAMED(pieces)(const tensor *t, options *o, int64_t first, int64_t last) {
    REAL copy[PIECE], *moment = 0;
    for (int64_t offset = first * PIECE; offset < last * PIECE; offset += PIECE) {
        int n = (int)smaller(PIECE, t->entries - offset);
        if (t->moment) moment = NAMED(wide)(copy, t->moment, offset, o->moment, n);
        NAMED(update)(t, o, offset, n, moment);
        if (moment != copy) continue;
        /* A moment too large for its storage becomes the largest that it holds. */
        const REAL largest = (REAL)LARGEST[o->moment];
        for (int i = 0; i < n; i++) {
            REAL value = moment[i] > largest ? largest : moment[i];
            moment[i] = value < -largest ? -largest : value;
        }
        NAMED(store)(t->moment, offset, o->moment, moment, n);
    }
}
