// What a product does to a tile of its result while that is in the cache.

// e^x to about one rounding; below -87 as there, above 88 infinite.
static inline V exponential(V x) {
    const I over = x > 88.0f;  // a NaN compares false and stays
    x = x < -87.0f ? splat(-87.0f) : x;
    const V shift = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to whole numbers, which then are the low bits
    const V rounded = x * 1.44269504f + shift, k = rounded - shift;
    const V r = (x - k * 0.693359375f) + k * 2.12194440e-4f;  // x - k ln 2, in two parts
    V sum = splat(1.0f / 5040);
    const float rest[] = {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f};
#pragma GCC unroll 8
    for (int i = 0; i < 7; ++i) sum = sum * r + rest[i];
    const I scale = ((I)rounded - 0x4B400000 + 127) << 23;
    return over ? splat(__builtin_inff()) : sum * (V)scale;
}

// 1 + erf(x): Abramowitz and Stegun 7.1.26, absolute error below 2e-7.
static inline V one_plus_erf(V x) {
    const V size = x < 0.0f ? -x : x, t = 1.0f / (1.0f + 0.3275911f * size);
    V sum = splat(1.061405429f);
    const float rest[] = {-1.453152027f, 1.421413741f, -0.284496736f, 0.254829592f};
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) sum = sum * t + rest[i];
    const V tail = sum * t * exponential(-(x * x));
    return x < 0.0f ? tail : 2.0f - tail;
}

static inline V activated(int32_t act, V x) {
    switch (act) {
        case TK_RELU: return x < 0.0f ? V{} : x;
        case TK_RELU6: return x < 0.0f ? V{} : x > 6.0f ? splat(6.0f) : x;
        case TK_GELU: return 0.5f * x * one_plus_erf(x * 0.707106781f);
        case TK_GELU_TANH:  // (1 + tanh(u)) / 2 = 1 / (1 + e^-2u)
            return x / (1.0f + exponential(-1.59576912f * (x + 0.044715f * (x * x * x))));
        case TK_SILU: return x / (1.0f + exponential(-x));
        default: return x;
    }
}

template <int32_t act>
static void activate_all(float* data, int64_t count) {
    for (int64_t i = 0; i < count; i += LANES) store(data + i, activated(act, load(data + i)));
}

static void activate(int32_t act, float* data, int64_t count) {
    switch (act) {
        case TK_RELU: return activate_all<TK_RELU>(data, count);
        case TK_RELU6: return activate_all<TK_RELU6>(data, count);
        case TK_GELU: return activate_all<TK_GELU>(data, count);
        case TK_GELU_TANH: return activate_all<TK_GELU_TANH>(data, count);
        case TK_SILU: return activate_all<TK_SILU>(data, count);
    }
}
