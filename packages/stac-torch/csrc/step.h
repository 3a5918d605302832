/* The step on one piece of one tensor in the arithmetic type REAL; sign.c includes it twice. */

static void NAMED(load)(REAL *restrict into, int64_t address, int64_t offset, int64_t type, int n) {
#define LOAD(stored, wide, narrow) \
    for (int i = 0; i < n; i++) into[i] = (REAL)wide(((const stored *)address)[offset + i])
    WITH_DTYPE(type, LOAD);
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

/* m <- momentum*m + fresh*g;  p <- p*decay - lr*sign(m). */
static inline void NAMED(rule)(REAL *restrict p, const REAL *restrict g, REAL *restrict m,
                               const options *o, int n) {
    REAL momentum = (REAL)o->momentum, decay = (REAL)o->decay, lr = (REAL)o->lr;
    REAL fresh = (REAL)(o->maximize ? -o->fresh : o->fresh), clip = (REAL)o->clip;
    for (int i = 0; i < n; i++) {
        REAL next = m[i] * momentum + g[i] * clip * fresh;
        m[i] = next;
        p[i] = p[i] * decay - NAMED(sign)(next, o->propagate_nan) * lr;
    }
}

/* The same without momentum: the sign of the gradient. */
static inline void NAMED(rule_without_momentum)(REAL *restrict p, const REAL *restrict g,
                                                const options *o, int n) {
    REAL decay = (REAL)o->decay, lr = (REAL)(o->maximize ? -o->lr : o->lr), clip = (REAL)o->clip;
    for (int i = 0; i < n; i++) {
        p[i] = p[i] * decay - NAMED(sign)(g[i] * clip, o->propagate_nan) * lr;
    }
}

/* A piece whose moment is already wide; none where the options name no dtype for it. */
static void NAMED(update)(const tensor *t, const options *o, int64_t offset, int n,
                          REAL *restrict moment) {
    const int64_t own = sizeof(REAL) == sizeof(float) ? FLOAT32 : FLOAT64;
    REAL wide_param[PIECE], wide_grad[PIECE];
    REAL *param = (REAL *)t->param + offset;
    const REAL *grad = (const REAL *)t->grad + offset;
    if (o->param != own) {
        NAMED(load)(wide_param, t->param, offset, o->param, n);
        param = wide_param;
    }
    if (o->grad != own || o->grad_scale != 0) {
        NAMED(load)(wide_grad, t->grad, offset, o->grad, n);
        grad = wide_grad;
    }
    if (o->grad_scale != 0) {
        REAL grad_scale = (REAL)o->grad_scale;
        for (int i = 0; i < n; i++) wide_grad[i] /= grad_scale;
    }
    if (o->moment == NONE)
        NAMED(rule_without_momentum)(param, grad, o, n);
    else
        NAMED(rule)(param, grad, moment, o, n);
    if (t->noise >= 0)
        NAMED(store_randomly)(t, offset, param, n);
    else if (o->param != own)
        NAMED(store)(t->param, offset, o->param, param, n);
}

static void NAMED(pieces)(const tensor *t, options *o, int64_t first, int64_t last) {
    const int64_t own = sizeof(REAL) == sizeof(float) ? FLOAT32 : FLOAT64;
    for (int64_t offset = first * PIECE; offset < last * PIECE; offset += PIECE) {
        int n = (int)smaller(PIECE, t->entries - offset);
        if (o->moment == NONE || o->moment == own) {
            NAMED(update)(t, o, offset, n, (REAL *)t->moment + offset);
            continue;
        }
        REAL moment[PIECE];
        NAMED(load)(moment, t->moment, offset, o->moment, n);
        NAMED(update)(t, o, offset, n, moment);
        /* A moment too large for its storage becomes the largest that it holds. */
        const REAL largest = (REAL)LARGEST[o->moment];
        for (int i = 0; i < n; i++) {
            REAL value = moment[i] > largest ? largest : moment[i];
            moment[i] = value < -largest ? -largest : value;
        }
        NAMED(store)(t->moment, offset, o->moment, moment, n);
    }
}
