// Vectors of 32 numbers of 16 bits, and of 16 sums in float32. Numbers that one instruction multiplies lie in pairs: two
// columns, or two rows of the batch, side by side in 32 bits.

#define UNROLL _Pragma("GCC unroll 32")

typedef uint16_t Half;  // the bits of a bfloat16
typedef __m512i Halves;
typedef __m512 Sums;

static constexpr int LANES = 16;  // pairs, or sums, of a vector
static constexpr int HALVES = 32;

static inline Halves load(const void* p) { return _mm512_loadu_si512(p); }
static inline void store(void* p, Halves v) { _mm512_storeu_si512(p, v); }
static inline Halves none() { return _mm512_setzero_si512(); }
static inline Halves splat(const void* pair) {
    int32_t both;
    memcpy(&both, pair, 4);
    return _mm512_set1_epi32(both);
}
static inline Sums multiplied(Sums sum, Halves a, Halves b) { return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b); }

// The first `count` of a vector, none if it is not positive.
static inline __mmask32 first(int64_t count) { return count >= HALVES ? ~0u : count > 0 ? (1u << count) - 1 : 0; }

// The vectors' numbers by turns, within each quarter of 128 bits; the sums of pairs have that order until `rounded`.
static inline Halves low(Halves a, Halves b) { return _mm512_unpacklo_epi16(a, b); }
static inline Halves high(Halves a, Halves b) { return _mm512_unpackhi_epi16(a, b); }

// Where sample j of a vector made by `low` (half 0) or `high` (half 1) lay.
static inline int sample(int half, int j) { return j / 4 * 8 + half * 4 + j % 4; }

// The sums of samples in the order of `low` and `high`, in the order of the samples.
static inline Halves rounded(Sums lo, Sums hi) {
    alignas(64) static const uint16_t order[HALVES] = {0,  1,  2,  3,  16, 17, 18, 19, 4,  5,  6,  7,  20, 21, 22, 23,
                                                       8,  9,  10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31};
    return _mm512_permutexvar_epi16(load(order), (Halves)_mm512_cvtne2ps_pbh(hi, lo));
}

// The sums of samples that are in their order.
static inline Halves in_order(Sums lo, Sums hi) { return (Halves)_mm512_cvtne2ps_pbh(hi, lo); }

// a0 b0 a1 b1 ..: the vectors' numbers by turns, of their first halves and of their last.
static inline Halves first_pairs(Halves a, Halves b) {
    alignas(64) static const int32_t order[LANES] = {0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23};
    return _mm512_permutex2var_epi32(low(a, b), load(order), high(a, b));
}
static inline Halves last_pairs(Halves a, Halves b) {
    alignas(64) static const int32_t order[LANES] = {8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31};
    return _mm512_permutex2var_epi32(low(a, b), load(order), high(a, b));
}

// Transpose 32 vectors in place: interleaving halves five times sends number j of vector i to number i of j.
static inline void transpose(Halves* v) {
    alignas(64) static const struct Order {
        uint16_t low[HALVES], high[HALVES];
        constexpr Order() : low(), high() {
            for (int i = 0; i < HALVES; ++i) low[i] = i / 2 + i % 2 * HALVES, high[i] = low[i] + HALVES / 2;
        }
    } order;
    const Halves lo = load(order.low), hi = load(order.high);
    Halves t[HALVES];
    for (int round = 0; round < 5; ++round) {
        Halves *from = round % 2 ? t : v, *to = round % 2 ? v : t;
        UNROLL for (int i = 0; i < HALVES / 2; ++i) {
            to[2 * i] = _mm512_permutex2var_epi16(from[i], lo, from[i + HALVES / 2]);
            to[2 * i + 1] = _mm512_permutex2var_epi16(from[i], hi, from[i + HALVES / 2]);
        }
    }
    UNROLL for (int i = 0; i < HALVES; ++i) v[i] = t[i];
}

// The same of 16 vectors of 16 pairs.
static inline void transpose_pairs(Halves* v) {
    alignas(64) static const struct Order {
        int32_t low[LANES], high[LANES];
        constexpr Order() : low(), high() {
            for (int i = 0; i < LANES; ++i) low[i] = i / 2 + i % 2 * LANES, high[i] = low[i] + LANES / 2;
        }
    } order;
    const Halves lo = load(order.low), hi = load(order.high);
    Halves t[LANES];
    for (int round = 0; round < 4; ++round) {
        Halves *from = round % 2 ? t : v, *to = round % 2 ? v : t;
        UNROLL for (int i = 0; i < LANES / 2; ++i) {
            to[2 * i] = _mm512_permutex2var_epi32(from[i], lo, from[i + LANES / 2]);
            to[2 * i + 1] = _mm512_permutex2var_epi32(from[i], hi, from[i + LANES / 2]);
        }
    }
}

// The sums across the lanes of 16 vectors, in one; destroys v.
static inline Sums across(Sums* v) {
    UNROLL for (int i = 0; i < 8; ++i)
        v[i] = _mm512_add_ps(_mm512_shuffle_ps(v[2 * i], v[2 * i + 1], 0x44), _mm512_shuffle_ps(v[2 * i], v[2 * i + 1], 0xee));
    UNROLL for (int i = 0; i < 4; ++i)
        v[i] = _mm512_add_ps(_mm512_shuffle_ps(v[2 * i], v[2 * i + 1], 0x88), _mm512_shuffle_ps(v[2 * i], v[2 * i + 1], 0xdd));
    UNROLL for (int i = 0; i < 2; ++i)
        v[i] = _mm512_add_ps(_mm512_shuffle_f32x4(v[2 * i], v[2 * i + 1], 0x88), _mm512_shuffle_f32x4(v[2 * i], v[2 * i + 1], 0xdd));
    return _mm512_add_ps(_mm512_shuffle_f32x4(v[0], v[1], 0x88), _mm512_shuffle_f32x4(v[0], v[1], 0xdd));
}
