// Y = act(X W_A^T + bias) for single weights and many rows of activations: outputs in ranges, inputs in cells whose
// activations stay in the first-level cache. In a cell the outputs are sorted by the number of their weights, so that the
// loop over an output's weights ends where the processor expects (.73 of the time at 2,048 rows, sorting included).

struct Weight {
    int32_t from;  // floats from the begin of a tile
    float value;
};
struct Output {
    uint16_t row, count;
};

// A's weights in the order in which tiles use them.
struct Cells {
    int64_t cells, ranges;
    int64_t* weight_of;   // [ranges + 1]
    int32_t* outputs;     // [ranges][cells]: how many outputs have weights there
    Output* output;       // [ranges][cells][CELL_OUTPUTS]
    Weight* weights;
};

template <class Col>
static void sort_range(const tk_matrix& w, const Cells& all, int64_t range, int64_t width) {
    const Col* cols = static_cast<const Col*>(w.cols);
    const int64_t i0 = range * CELL_OUTPUTS, count = w.rows - i0 < CELL_OUTPUTS ? w.rows - i0 : CELL_OUTPUTS;
    int64_t next[CELL_OUTPUTS];
    for (int64_t i = 0; i < count; ++i) next[i] = w.row_ptr[i0 + i];
    Weight* to = all.weights + all.weight_of[range];
    for (int64_t cell = 0; cell < all.cells; ++cell) {
        uint16_t counts[CELL_OUTPUTS];
        int32_t first[CELL_INPUTS + 2] = {};
        int64_t ends[CELL_OUTPUTS];
        for (int64_t i = 0; i < count; ++i) {
            int64_t s = next[i];
            for (const int64_t limit = (cell + 1) * CELL_INPUTS, last = w.row_fwd[i0 + i]; s < last && cols[s] < limit;) ++s;
            counts[i] = static_cast<uint16_t>(s - next[i]);
            ends[i] = s;
            ++first[counts[i] + 1];
        }
        const int32_t none = first[1];
        for (int64_t n = 0; n <= CELL_INPUTS; ++n) first[n + 1] += first[n];
        Output* const output = all.output + (range * all.cells + cell) * CELL_OUTPUTS;
        all.outputs[range * all.cells + cell] = static_cast<int32_t>(count) - none;
        for (int64_t i = 0; i < count; ++i)
            if (counts[i]) output[first[counts[i]]++ - none] = {static_cast<uint16_t>(i), counts[i]};
        for (int64_t o = 0; o < count - none; ++o) {
            const int64_t i = output[o].row;
            for (int64_t s = next[i]; s < ends[i]; ++s) *to++ = {static_cast<int32_t>(cols[s] * width), w.values[s]};
        }
        for (int64_t i = 0; i < count; ++i) next[i] = ends[i];
    }
}

template <int T>
static inline void cell_products(const Cells& all, int64_t range, const float* x, float* sums) {
    const Weight* weight = all.weights + all.weight_of[range];
    for (int64_t cell = 0; cell < all.cells; ++cell) {
        const Output* output = all.output + (range * all.cells + cell) * CELL_OUTPUTS;
        for (const Output* last = output + all.outputs[range * all.cells + cell]; output < last; ++output) {
            float* const to = sums + output->row * (T * LANES);
            V acc[T];
#pragma GCC unroll 8
            for (int t = 0; t < T; ++t) acc[t] = V{};
            for (const Weight* end = weight + output->count; weight < end; ++weight) {
                const float* const in = x + weight->from;
                const V value = splat(weight->value);
#pragma GCC unroll 8
                for (int t = 0; t < T; ++t) acc[t] += value * load(in + t * LANES);
            }
#pragma GCC unroll 8
            for (int t = 0; t < T; ++t) store(to + t * LANES, load(to + t * LANES) + acc[t]);
        }
    }
}

template <int T, class Col>
static void spmm_cells(const tk_parallel* p, const tk_matrix& w, const tk_view& x, const float* bias, int32_t act,
                       const tk_view& y, float* work) {
    const int64_t width = T * LANES, tiles = ceil_div(x.m, width), padded = w.columns;
    Cells all{cells_of(w.columns), ranges_of(w.rows), nullptr, nullptr, nullptr, nullptr};
    all.weight_of = reinterpret_cast<int64_t*>(work + ceil_div(tiles * padded * width, 2) * 2);
    all.outputs = reinterpret_cast<int32_t*>(all.weight_of + all.ranges + 1);
    all.output = reinterpret_cast<Output*>(all.outputs + all.ranges * all.cells);
    all.weights = reinterpret_cast<Weight*>(all.output + all.ranges * all.cells * CELL_OUTPUTS);
    all.weight_of[0] = 0;
    for (int64_t range = 0; range < all.ranges; ++range) {
        int64_t count = 0;
        for (int64_t i = range * CELL_OUTPUTS; i < w.rows && i < (range + 1) * CELL_OUTPUTS; ++i) count += w.row_fwd[i] - w.row_ptr[i];
        all.weight_of[range + 1] = all.weight_of[range] + count;
    }
    parallel(p, all.ranges, [&](int64_t range) { sort_range<Col>(w, all, range, width); });
    packed(p, tiles, ceil_div(padded, PART), all.ranges, [&](int64_t tile, int64_t part) {
        const int64_t n0 = part * PART, n1 = n0 + PART < padded ? n0 + PART : padded;
        pack(x, tile * width, width, n0, n1, work + (tile * padded + n0) * width);
    }, [&](int64_t tile, int64_t range) {
        const int64_t i0 = range * CELL_OUTPUTS, i1 = i0 + CELL_OUTPUTS < w.rows ? i0 + CELL_OUTPUTS : w.rows;
        alignas(64) float own[CELL_OUTPUTS * T * LANES];
        float* const out = place(y, tile, i0, own);
        for (int64_t n = i0; n < i1; ++n) {
            const V start = splat(bias ? bias[n] : 0.0f);
            for (int t = 0; t < T; ++t) store(out + (n - i0) * width + t * LANES, start);
        }
        cell_products<T>(all, range, work + tile * padded * width, out);
        activate(act, out, (i1 - i0) * width);
        if (!y.width) unpack(out, tile * width, width, i0, i1, y);
    });
}
