// Blocks of whole vectors of rows, times a tile of samples: the rows are the vector axis. A unit's words are gathered once
// for all of its rows, and each then meets its weights as a broadcast.

static constexpr int64_t GATHERED = 4096;  // words gathered at once: they stay in the first-level cache

template <int T>
struct Gathered {
    static constexpr int64_t W = T * LANES, PIECE = GATHERED / W;
    alignas(64) int32_t words[PIECE * W];  // [group][sample]
    alignas(64) int32_t sums[W * RANGE];   // [sample][row of the unit]
};

// RV vectors of rows, from `row` on, of groups begin .. end, times S samples, from `sample` on.
template <int T, int RV, int S>
static inline void lanes_sums(const Int8Matrix& w, int64_t begin, int64_t end, int row, int64_t sample, bool fresh,
                              Gathered<T>& in) {
    I acc[S][RV];
    int32_t* const sums = in.sums + sample * w.r + row;
#pragma GCC unroll 16
    for (int j = 0; j < S; ++j)
#pragma GCC unroll 4
        for (int v = 0; v < RV; ++v) acc[j][v] = fresh ? I{} : load_words(sums + j * w.r + v * LANES);
    const int8_t* weights = w.packed + (begin * w.r + row) * GROUP;
    const int32_t* x = in.words + sample;
    for (int64_t g = begin; g < end; ++g, weights += w.r * GROUP, x += Gathered<T>::W) {
        I right[RV];
#pragma GCC unroll 4
        for (int v = 0; v < RV; ++v) right[v] = widened(weights + v * LANES * GROUP);
#pragma GCC unroll 16
        for (int j = 0; j < S; ++j) {
            const I left = I{} + x[j];
#pragma GCC unroll 4
            for (int v = 0; v < RV; ++v) acc[j][v] = dot(acc[j][v], left, right[v]);
        }
    }
#pragma GCC unroll 16
    for (int j = 0; j < S; ++j)
#pragma GCC unroll 4
        for (int v = 0; v < RV; ++v) store_words(sums + j * w.r + v * LANES, acc[j][v]);
}

template <int T, int RV>
static inline int lanes_rows(const Int8Matrix& w, int64_t begin, int64_t end, int row, bool fresh, Gathered<T>& in) {
    constexpr int64_t W = Gathered<T>::W, S = SUMS / RV < W ? SUMS / RV : W;
    for (; row + RV * LANES <= w.r; row += RV * LANES)
        for (int64_t sample = 0; sample < W; sample += S) lanes_sums<T, RV, S>(w, begin, end, row, sample, fresh, in);
    return row;
}

// Unit `unit` of y, out [sample][pitch].
template <int T>
static inline void lanes_unit(const Int8Matrix& w, int64_t unit, const Samples& in, const float* bias, Gathered<T>& gathered,
                              float* out, int64_t pitch) {
    constexpr int64_t W = Gathered<T>::W, PIECE = Gathered<T>::PIECE;
    const int64_t first = w.starts[unit], end = w.starts[unit + 1];
    if (first == end) __builtin_memset(gathered.sums, 0, sizeof(int32_t) * static_cast<size_t>(W * w.r));
    for (int64_t begin = first; begin < end; begin += PIECE) {
        const int64_t stop = end - begin < PIECE ? end : begin + PIECE;
        for (int64_t g = begin; g < stop; ++g) {
            I x[T];
            operands<T>(in, w.cols + g * GROUP, x);
#pragma GCC unroll 4
            for (int t = 0; t < T; ++t) store_words(gathered.words + (g - begin) * W + t * LANES, x[t]);
        }
        const int row = lanes_rows<T, 2>(w, begin, stop, 0, begin == first, gathered);
        lanes_rows<T, 1>(w, begin, stop, row, begin == first, gathered);
    }
    const int64_t n = unit * w.r;
    alignas(64) float rest[RANGE];  // the bias ends with the matrix, not with the block
    for (int64_t i = 0; i < w.r; ++i) rest[i] = bias && n + i < w.rows ? bias[n + i] : 0.0f;
    for (int64_t m = 0; m < W; ++m) {
        const I z = I{} + in.z[m];
        const V s = splat(in.s[m]);
        for (int row = 0; row < w.r; row += LANES)
            store(out + m * pitch + row, finished(load_words(gathered.sums + m * w.r + row), z, load_words(w.sums + n + row), s,
                                                  load(w.scale + n + row), load(rest + row)));
    }
}

// y[m0 .., n0 .. n1) = in [sample][n1 - n0], within y.
static void copy_lanes(const float* in, int64_t m0, int64_t count, int64_t n0, int64_t n1, const tk_view& y) {
    const int64_t pitch = n1 - n0, width = n1 < y.n ? pitch : y.n - n0;
    if (y.stride_n != 1) return unpack(in, n0, pitch, m0, m0 + count, {y.data, y.n, y.m, y.stride_n, y.stride_m, 0});
    for (int64_t m = 0; m < count && m0 + m < y.m; ++m)
        __builtin_memcpy(y.data + (m0 + m) * y.stride_m + n0, in + m * pitch, sizeof(float) * static_cast<size_t>(width));
}
