/* An 8-bit moment, block by block within its row; see `stac_torch._int8` for the code. */

#ifdef __AVX512DQ__
#include <immintrin.h>
#endif

/* How near to the middle between two codes a root is encoded again by definition. Below, roots are
 * off by 1e-5 of a code, and those by definition as much. */
static const float DOUBT = 5e-5f;

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

/* The same codes several times as fast: the fourth root of |m| * 127^4 / scale, by no division and
 * no square root. Both functions return whether one is in doubt, as in 2 of 100 blocks of noise;
 * these are encoded again by definition. */
#ifdef __AVX512DQ__

/* The processor estimates a ~ y^(-1/2) and v ~ a^(-1/2) to 1e-4; one step of Newton's iteration for
 * y^(1/4) squares that: v + (y - v^4) / (4 v^3), where 1/v^3 ~ a^2 v. Of a zero or nan this makes
 * nan, which converts to code 0. */
static int encode_nearly(int8_t *restrict codes, const float *restrict moment, float factor,
                         int n) {
    const __m512 sign = _mm512_set1_ps(-0.0f), factors = _mm512_set1_ps(factor);
    const __m512 quarter = _mm512_set1_ps(0.25f);
    __m512 doubt = _mm512_setzero_ps();
    for (int i = 0; i < n; i += 16) {
        __mmask16 within = n - i < 16 ? (1 << (n - i)) - 1 : 0xFFFF;
        __m512 m = _mm512_maskz_loadu_ps(within, moment + i);
        __m512 y = _mm512_mul_ps(_mm512_andnot_ps(sign, m), factors);
        __m512 a = _mm512_rsqrt14_ps(y), v = _mm512_rsqrt14_ps(a), square = _mm512_mul_ps(v, v);
        __m512 slope = _mm512_mul_ps(_mm512_mul_ps(a, a), _mm512_mul_ps(v, quarter));
        v = _mm512_fmadd_ps(_mm512_fnmadd_ps(square, square, y), slope, v);
        v = _mm512_or_ps(v, _mm512_and_ps(m, sign));
        doubt = _mm512_range_ps(doubt, _mm512_reduce_ps(v, 0), 11); /* the larger magnitude */
        _mm512_mask_cvtepi32_storeu_epi8(codes + i, within, _mm512_cvtps_epi32(v));
    }
    return _mm512_reduce_max_ps(doubt) > 0.5f - DOUBT;
}

#else

/* a*b + c where the last bits do not matter. */
#ifdef __FP_FAST_FMAF
#define approximately __builtin_fmaf
#else
#define approximately(a, b, c) ((a) * (b) + (c))
#endif

/* Two steps of Newton's iteration for y^(-1/4), from the bits of y, and one for its inverse. */
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
    return doubt > bits_of(0.5f - DOUBT);
}

#endif

static float largest(const float *restrict moment, int n) {
    uint32_t most = 0; /* as integers, magnitudes are in order and nan is the largest */
    for (int i = 0; i < n; i++) {
        uint32_t magnitude = bits_of(moment[i]) & 0x7FFFFFFF;
        most = magnitude > most ? magnitude : most;
    }
    return float_of(most);
}

static void encode(int8_t *restrict codes, const float *restrict moment, float scale, int n) {
    const float levels = (float)LEVELS * LEVELS * LEVELS * LEVELS;
    /* The factor of a smaller scale, or of none, would not be a number. */
    if (!(scale >= 0x1p-90f) || encode_nearly(codes, moment, levels / scale, n))
        encode_exactly(codes, moment, scale != 0 ? scale : 1.0f, n);
}
