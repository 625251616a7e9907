// A few rows of activations, as a decoder has them, and blocks of at least four rows, which are the vector axis.

static constexpr int FEW = 4;  // rows of activations, at most

// The rows of a block as vectors: whole ones, or four words each.
struct Whole {
    typedef int32_t I __attribute__((vector_size(4 * LANES)));
    typedef float V __attribute__((vector_size(4 * LANES)));
    static constexpr int SIZE = LANES;
    static I weights(const Int8Matrix& w, int64_t at) { return widened(w.packed + at * GROUP); }
};
struct Four {
    typedef int32_t I __attribute__((vector_size(16)));
    typedef float V __attribute__((vector_size(16)));
    static constexpr int SIZE = 4;
    static I weights(const Int8Matrix& w, int64_t at) { return taken<I>(w.words + at); }
};

struct FewSamples {
    int64_t pitch;         // columns, rounded up to whole vectors
    const int32_t* words;  // [FEW][pitch], one number in each
    float s[FEW];
    int32_t z[FEW];
};

// RV vectors of a unit's rows, from `row` on, times M samples; out [M][RANGE].
template <class N, int M, int RV>
static inline void few_vectors(const Int8Matrix& w, int64_t unit, int row, const FewSamples& in, const float* bias, float* out) {
    typedef typename N::I Words;
    typedef typename N::V Floats;
    constexpr int U = M * RV < 4 ? 4 / (M * RV) : 1;  // sums side by side, so that additions need not wait for one another
    Words acc[U][M][RV] = {};
    const auto step = [&](int64_t group, int u) __attribute__((always_inline)) {
        const int32_t* const cols = w.cols + group * GROUP;
        Words weights[RV];
#pragma GCC unroll 4
        for (int v = 0; v < RV; ++v) weights[v] = N::weights(w, group * w.r + row + v * N::SIZE);
#pragma GCC unroll 4
        for (int m = 0; m < M; ++m) {
            const int32_t* const x = in.words + m * in.pitch;
            int32_t word = x[cols[0]];
#pragma GCC unroll 4
            for (int g = 1; g < GROUP; ++g) word |= static_cast<int32_t>(static_cast<uint32_t>(x[cols[g]]) << (g * BITS % 32));
#pragma GCC unroll 4
            for (int v = 0; v < RV; ++v)
                acc[u][m][v] = dot(acc[u][m][v], Words{} + word, weights[v]);
        }
    };
    int64_t group = w.starts[unit];
    const int64_t end = w.starts[unit + 1];
    for (; group + U <= end; group += U) {
#pragma GCC unroll 4
        for (int u = 0; u < U; ++u) step(group + u, u);
    }
    for (; group < end; ++group) step(group, 0);
    const int64_t n = unit * w.r + row;
    for (int v = 0; v < RV; ++v)
        for (int m = 0; m < M; ++m) {
            Words sum = acc[0][m][v];
            for (int u = 1; u < U; ++u) sum += acc[u][m][v];
            const Floats found = finished<Words, Floats>(
                sum, Words{} + in.z[m], taken<Words>(&w.sums[n + v * N::SIZE]), in.s[m] - Floats{},
                taken<Floats>(&w.scale[n + v * N::SIZE]), taken<Floats>(bias + row + v * N::SIZE));
            __builtin_memcpy(out + m * RANGE + row + v * N::SIZE, &found, sizeof found);
        }
}

template <class N, int M>
static void few_units(const tk_parallel* p, const Int8Matrix& w, const FewSamples& in, int64_t m, const float* bias, int32_t act,
                      const tk_view& y) {
    const int64_t step = ceil_div(w.units, 8 * p->threads);
    parallel(p, ceil_div(w.units, step), [&](int64_t task) {
        alignas(64) float out[M * RANGE] = {}, rest[RANGE] = {};
        for (int64_t unit = task * step; unit < w.units && unit < (task + 1) * step; ++unit) {
            const int64_t n0 = unit * w.r, height = w.rows - n0 < w.r ? w.rows - n0 : w.r;
            const float* added = bias ? bias + n0 : rest;
            if (bias && height < w.r) {  // the bias ends with the matrix, not with the block
                __builtin_memcpy(rest, added, sizeof(float) * static_cast<size_t>(height));
                added = rest;
            }
            int row = 0;
            for (; row + 2 * N::SIZE <= w.r; row += 2 * N::SIZE) few_vectors<N, M, 2>(w, unit, row, in, added, out);
            for (; row < w.r; row += N::SIZE) few_vectors<N, M, 1>(w, unit, row, in, added, out);
            for (int64_t i = 0; i < m; ++i) {
                activate(act, out + i * RANGE, ceil_div(w.r, LANES) * LANES);
                float* const to = y.data + i * y.stride_m + n0 * y.stride_n;
                int64_t n = 0;
                for (; y.stride_n == 1 && n + 4 <= height; n += 4) __builtin_memcpy(to + n, out + i * RANGE + n, 16);
                for (; n < height; ++n) to[n * y.stride_n] = out[i * RANGE + n];
            }
        }
    });
}

static int64_t few_workspace(const Int8Matrix& w) { return (FEW + 1) * (w.columns + LANES); }

// Row m of x as words, and its scale.
static void few_quantised(const tk_view& x, int64_t m, float* row, int32_t* words, float& s, int32_t& z) {
    const int64_t whole = ceil_div(x.n, LANES) * LANES;
    const float* const from = x.data + m * x.stride_m;
    if (x.stride_n == 1) __builtin_memcpy(row, from, sizeof(float) * static_cast<size_t>(x.n));
    else for (int64_t n = 0; n < x.n; ++n) row[n] = from[n * x.stride_n];
    for (int64_t n = x.n; n < whole; ++n) row[n] = 0.0f;
    Range range;
    for (int64_t n = 0; n < whole; n += LANES) range.add(load(row + n));
    const Scale scale(of_all_lanes(range));
    for (int64_t n = 0; n < whole; n += LANES) store_words(words + n, scale.quantised(load(row + n)));
    s = scale.s[0];
    z = scale.z[0];
}

template <class N>
static void few(const tk_parallel* p, const Int8Matrix& w, const tk_view& x, const float* bias, int32_t act, const tk_view& y,
                float* work) {
    FewSamples in{};
    in.pitch = ceil_div(w.columns, LANES) * LANES;
    int32_t* const words = reinterpret_cast<int32_t*>(work + in.pitch);
    in.words = words;
    for (int64_t m = 0; m < x.m; ++m) few_quantised(x, m, work, words + m * in.pitch, in.s[m], in.z[m]);
    if (x.m == 1) return few_units<N, 1>(p, w, in, 1, bias, act, y);
    if (x.m == 2) return few_units<N, 2>(p, w, in, 2, bias, act, y);
    for (int64_t n = 0; x.m == 3 && n < in.pitch; ++n) words[3 * in.pitch + n] = 0;  // read, and then left out
    few_units<N, FEW>(p, w, in, x.m, bias, act, y);
}
