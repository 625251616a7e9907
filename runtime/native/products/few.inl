// Y = X W_A^T for a few rows of activations, as inference has them: so few that they fill no vector, and reading the
// values is most of the work. The vector axis is what lies together in the values: a block's rows, or its columns;
// single weights have only the batch, in a vector as narrow as it.

static constexpr int FEW = 8;  // rows of activations, at most

template <int W>
struct Narrow {
    typedef float V __attribute__((vector_size(4 * W), aligned(4), may_alias));
    static V load(const float* p) { return *reinterpret_cast<const V*>(p); }
    static void store(float* p, V v) { *reinterpret_cast<V*>(p) = v; }
};
template <>
struct Narrow<1> {  // a vector of one float would live in memory
    typedef float V;
    static V load(const float* p) { return *p; }
    static void store(float* p, V v) { *p = v; }
};

// step(s, u) for slots s..end, u counting the sums side by side, U of them, so that additions need not wait for one
// another; flush() after each piece of TERMS of them.
template <int U, class Step, class Flush>
static inline void by_pieces(int64_t s, int64_t end, const Step& step, const Flush& flush) {
    while (s < end) {
        const int64_t stop = end - s < U * TERMS ? end : s + U * TERMS;
        for (; s + U <= stop; s += U) {
#pragma GCC unroll 8
            for (int u = 0; u < U; ++u) step(s + u, u);
        }
        for (; s < stop; ++s) step(s, 0);
        flush();
    }
}

// Block row i times x [columns][M], into y [r][M]: single weights.
template <int M, class Col>
static inline void few_singles(const tk_matrix& w, int64_t i, const float* x, float* y) {
    typedef Narrow<M> N;
    constexpr int U = 8;
    const Col* cols = static_cast<const Col*>(w.cols);
    typename N::V sum{}, acc[U] = {};
    by_pieces<U>(
        w.row_ptr[i], w.row_fwd[i],
        [&](int64_t s, int u) { acc[u] += w.values[s] * N::load(x + cols[s] * static_cast<int64_t>(M)); },
        [&] {
#pragma GCC unroll 8
            for (int u = 0; u < U; ++u) sum += acc[u], acc[u] = typename N::V{};
        });
    N::store(y, sum);
}

// The same where a block has one column and R rows at a time are the vector.
template <int M, int R, class Col>
static inline void few_rows(const tk_matrix& w, int64_t i, const float* x, float* y) {
    typedef Narrow<R> N;
    constexpr int U = M < 8 ? 8 / M : 1;
    const Col* cols = static_cast<const Col*>(w.cols);
    for (int row = 0; row < w.r; row += R) {
        typename N::V sum[M] = {}, acc[U][M] = {};
        by_pieces<U>(
            w.row_ptr[i], w.row_fwd[i],
            [&](int64_t s, int u) {
                const typename N::V v = N::load(w.values + s * w.r + row);
                const float* in = x + cols[s] * static_cast<int64_t>(M);
#pragma GCC unroll 8
                for (int m = 0; m < M; ++m) acc[u][m] += v * in[m];
            },
            [&] {
#pragma GCC unroll 8
                for (int u = 0; u < U; ++u)
#pragma GCC unroll 8
                    for (int m = 0; m < M; ++m) sum[m] += acc[u][m], acc[u][m] = typename N::V{};
            });
        for (int m = 0; m < M; ++m) {
            float rows[R];
            N::store(rows, sum[m]);
            for (int q = 0; q < R; ++q) y[(row + q) * M + m] = rows[q];
        }
    }
}

// The same where a block has whole vectors of columns; x is [M][columns].
template <int M, class Col>
static inline void few_columns(const tk_matrix& w, int64_t i, const float* x, int64_t columns, float* y) {
    constexpr int RB = M < 4 ? 4 : 2;
    const Col* cols = static_cast<const Col*>(w.cols);
    const int64_t vectors = w.c / LANES;
    int row = 0;
    const auto rows = [&](auto count) {
        constexpr int R = decltype(count)::value;
        for (; row + R <= w.r; row += R) {
            V sum[R][M] = {}, acc[R][M] = {};
            by_pieces<1>(
                w.row_ptr[i] * vectors, w.row_fwd[i] * vectors,
                [&](int64_t f, int) {
                    const int64_t s = f / vectors, at = f % vectors * LANES;
                    const float *v = w.values + (s * w.r + row) * w.c + at, *in = x + cols[s] * w.c + at;
#pragma GCC unroll 8
                    for (int m = 0; m < M; ++m) {
                        const V right = load(in + m * columns);
#pragma GCC unroll 8
                        for (int q = 0; q < R; ++q) acc[q][m] += load(v + q * w.c) * right;
                    }
                },
                [&] {
#pragma GCC unroll 8
                    for (int q = 0; q < R; ++q)
#pragma GCC unroll 8
                        for (int m = 0; m < M; ++m) sum[q][m] += acc[q][m], acc[q][m] = V{};
                });
            for (int q = 0; q < R; ++q)
                for (int m = 0; m < M; ++m) y[(row + q) * M + m] = sums<1>(&sum[q][m])[0];
        }
    };
    rows(std::integral_constant<int, RB>());
    rows(std::integral_constant<int, 1>());
}

// Whether this file computes it: elsewhere a slot costs r multiplications, here m for each vector of rows.
static inline bool few(const tk_matrix& w, int64_t m) {
    return m <= FEW && (w.c == 1 ? w.r == 1 || (w.r % 4 == 0 && 2 * m <= w.r) : w.c % LANES == 0);
}

template <int M, class Col>
static void spmm_few(const tk_parallel* p, const tk_matrix& w, const tk_view& x, const float* bias, int32_t act,
                     const tk_view& y, float* work) {
    if constexpr (M > 1) {
        if (x.m <= M / 2) return spmm_few<M / 2, Col>(p, w, x, bias, act, y, work);
    }
    const int64_t rows = ceil_div(w.rows, w.r), columns = ceil_div(w.columns, w.c) * w.c;
    const int64_t step_m = w.c == 1 ? 1 : columns, step_n = w.c == 1 ? M : 1;
    for (int64_t m = 0; m < M; ++m)
        for (int64_t n = 0; n < columns; ++n)
            work[m * step_m + n * step_n] = m < x.m && n < x.n ? x.data[m * x.stride_m + n * x.stride_n] : 0.0f;
    const int64_t step = ceil_div(rows, 8 * p->threads);
    parallel(p, ceil_div(rows, step), [&](int64_t task) {
        alignas(64) float out[64 * M] = {};
        for (int64_t i = task * step; i < rows && i < (task + 1) * step; ++i) {
            if (w.c > 1) {
                few_columns<M, Col>(w, i, work, columns, out);
            } else if (w.r == 1) {
                few_singles<M, Col>(w, i, work, out);
            } else if (LANES >= 16 && w.r % 16 == 0) {
                few_rows<M, 16, Col>(w, i, work, out);
            } else if (LANES >= 8 && w.r % 8 == 0) {
                few_rows<M, 8, Col>(w, i, work, out);
            } else {
                few_rows<M, 4, Col>(w, i, work, out);
            }
            const int64_t n0 = i * w.r, height = w.rows - n0 < w.r ? w.rows - n0 : w.r;
            for (int64_t j = 0; bias && j < height * M; ++j) out[j] += bias[n0 + j / M];
            activate(act, out, w.r * M);
            for (int64_t n = 0; n < height; ++n)
                for (int64_t m = 0; m < x.m; ++m) y.data[m * y.stride_m + (n0 + n) * y.stride_n] = out[n * M + m];
        }
    });
}
