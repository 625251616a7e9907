// Blocks of any other number of rows, times a tile of samples: the samples are the vector axis, and each row gathers
// for itself, or with its neighbours.

struct Out {  // rows of whole vectors, `pitch` floats apart
    float* data;
    int64_t pitch;
};

// RB rows of a unit, from `row` on, as rows of `out`.
template <int T, int RB, class In>
static inline void tile_rows(const Int8Matrix& w, int64_t unit, int row, const In& in, const float* bias, Out out) {
    I acc[RB][T];
#pragma GCC unroll 8
    for (int q = 0; q < RB; ++q)
#pragma GCC unroll 8
        for (int t = 0; t < T; ++t) acc[q][t] = I{};
    const int64_t end = w.starts[unit + 1];
    const int32_t *cols = w.cols + w.starts[unit] * GROUP, *words = w.words + w.starts[unit] * w.r + row;
    for (int64_t g = w.starts[unit]; g < end; ++g, cols += GROUP, words += w.r) {
        I x[T];
        operands<T>(in, cols, x);
#pragma GCC unroll 8
        for (int q = 0; q < RB; ++q) {
            const I word = I{} + words[q];
#pragma GCC unroll 8
            for (int t = 0; t < T; ++t) acc[q][t] = dot(acc[q][t], x[t], word);
        }
    }
#pragma GCC unroll 8
    for (int q = 0; q < RB; ++q) {
        const int64_t n = unit * w.r + row + q;
        in_order<T>(in, acc[q]);
        const I sum = I{} + w.sums[n];
        const V scale = splat(w.scale[n]), added = splat(bias && n < w.rows ? bias[n] : 0.0f);
#pragma GCC unroll 8
        for (int t = 0; t < T; ++t)
            store(out.data + (row + q) * out.pitch + t * LANES,
                  finished(acc[q][t], load_words(in.z + t * LANES), sum, load(in.s + t * LANES), scale, added));
    }
}

template <int T, int RB, class In>
static inline void unit_rows(const Int8Matrix& w, int64_t unit, int row, const In& in, const float* bias, Out out) {
    for (; row + RB <= w.r; row += RB) tile_rows<T, RB>(w, unit, row, in, bias, out);
    if constexpr (RB > 1) {
        if (row < w.r) unit_rows<T, RB / 2>(w, unit, row, in, bias, out);
    }
}
