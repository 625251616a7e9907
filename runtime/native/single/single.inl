// dW of single weights: no two share a load of x, so x must come from the first-level cache. A cell is so few columns
// that SINGLE vectors of the batch of each stay there, while a row's own are in registers.

static constexpr int64_t SINGLE_COLS = L1 * 3 / 2 / (4 * SINGLE * LANES);  // more than fits: long rows of slots pay
static constexpr int64_t SINGLE_RANGE = 24 * 1024 / SINGLE_COLS;           // rows of dW in one task
static constexpr int GROUP = LANES < 8 ? LANES : 8;  // slots whose sums across lanes are made together

// sums[f] += the row's T vectors of dy times those of x that begin at floats offsets[f]; count is a multiple of GROUP.
template <int T>
static inline void single_row(const float* dy, const float* x, const int32_t* offsets, int64_t count, float* found) {
    V left[T];
#pragma GCC unroll 16
    for (int t = 0; t < T; ++t) left[t] = load(dy + t * LANES);
    for (int64_t f = 0; f < count; f += GROUP) {
        V acc[GROUP];
#pragma GCC unroll 16
        for (int j = 0; j < GROUP; ++j) {
            const float* right = x + offsets[f + j] * (T * LANES);
            acc[j] = left[0] * load(right);
#pragma GCC unroll 16
            for (int t = 1; t < T; ++t) acc[j] += left[t] * load(right + t * LANES);
        }
        add<GROUP>(found + f, sums<GROUP>(acc));
    }
}

template <int T>
static inline void single_chunk(const Chunks& chunks, int64_t t, int64_t begin, int64_t end, const int64_t* at,
                                const int32_t* offsets, int32_t first, int32_t last, float* found) {
    if constexpr (T > 1) {
        if (chunks.width(t) < T * LANES) return single_chunk<T - 1>(chunks, t, begin, end, at, offsets, first, last, found);
    }
    const int64_t line = 16, each = ceil_div((last + 1 - first) * (T * LANES), (end - begin) * line);
    const float* ahead = chunks.x_at(t + 1) + first * (T * LANES);
    for (int64_t i = begin; i < end; ++i) {
        const int64_t f = at[i - begin];
        const float* const later = chunks.dy_at(t, i + 4);
        for (int64_t k = 0; k < T * LANES; k += line) __builtin_prefetch(later + k);
        for (int64_t k = 0; k < each; ++k, ahead += line) __builtin_prefetch(ahead, 0, 2);
        single_row<T>(chunks.dy_at(t, i), chunks.x_at(t), offsets + f, at[i - begin + 1] - f, found + f);
    }
}

// One cell of columns: its slots row by row, in whole groups, and their sums beside them.
template <class Col>
static void single_cell(const tk_matrix& w, int64_t begin, int64_t end, const Slots* slots, const Chunks& chunks,
                        float* grad) {
    const Col* cols = static_cast<const Col*>(w.cols);
    constexpr int64_t most = SINGLE_RANGE * (SINGLE_COLS + GROUP);
    int64_t at[SINGLE_RANGE + 1], n = 0;
    int32_t offsets[most];
    alignas(64) float found[most];
    for (int64_t i = begin; i < end; ++i) {
        const Slots& row = slots[i - begin];
        at[i - begin] = n;
        for (int64_t s = row.a; s < row.a_end; ++s) offsets[n++] = cols[s];
        for (int64_t s = row.b; s < row.b_end; ++s) offsets[n++] = cols[s];
        for (; n % GROUP; ++n) offsets[n] = offsets[n - 1];
    }
    at[end - begin] = n;
    int32_t first = INT32_MAX, last = 0;
    for (int64_t f = 0; f < n; ++f) {
        first = offsets[f] < first ? offsets[f] : first;
        last = offsets[f] > last ? offsets[f] : last;
    }
    if (n == 0) return;
    for (int64_t f = 0; f < n; ++f) found[f] = 0.0f;
    for (int64_t t = 0; t < chunks.count(); ++t) single_chunk<SINGLE>(chunks, t, begin, end, at, offsets, first, last, found);
    for (int64_t i = begin; i < end; ++i) {
        const Slots& row = slots[i - begin];
        const float* from = found + at[i - begin];
        for (int64_t s = row.a; s < row.a_end; ++s) grad[s] = *from++;
        for (int64_t s = row.b; s < row.b_end; ++s) grad[s] = *from++;
    }
}
