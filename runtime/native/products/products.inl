// The three products of a sparse layer, for any block, with the batch as the vector axis.
//
// What decides the speed is how often a line of activations is loaded: RB rows of a block share every load, and single
// weights (RB = 1) are walked in cells of columns whose activations stay in the first-level cache.

static constexpr int64_t L1 = 32 * 1024;

// Where every block row's slots begin in every cell of columns: starts[cell * block_rows + row], one cell more than
// there are. Of A.
template <class Col>
static void find_starts(const tk_parallel* p, const tk_matrix& w, int64_t width, int64_t cells, int32_t* starts) {
    const Col* cols = static_cast<const Col*>(w.cols);
    const int64_t rows = ceil_div(w.rows, w.r), step = 256;
    parallel(p, ceil_div(rows, step), [&](int64_t task) {
        for (int64_t i = task * step; i < rows && i < (task + 1) * step; ++i) {
            int64_t s = w.row_ptr[i];
            const int64_t end = w.row_fwd[i];
            for (int64_t cell = 0; cell < cells; ++cell) {
                starts[cell * rows + i] = static_cast<int32_t>(s);
                if (cell + 1 == cells) break;
                for (const int64_t limit = (cell + 1) * width; s < end && cols[s] < limit;) ++s;
            }
            starts[cells * rows + i] = static_cast<int32_t>(end);
        }
    });
}

static constexpr int TERMS = 64;  // of a sum in one chain of additions; longer ones are summed by pieces, for accuracy

// RB rows of Y += A's slots s..end times packed X; x and out are tiles of T vectors a row.
template <int T, int RB, int C, class Col>
static inline void gather_rows(const tk_matrix& w, int64_t s, int64_t end, int row, const float* x, float* out) {
    const Col* cols = static_cast<const Col*>(w.cols);
    const int c = C ? C : w.c, unit = w.r * c, piece = c < TERMS ? TERMS / c : 1;
    while (s < end) {
        V acc[RB][T];
#pragma GCC unroll 8
        for (int q = 0; q < RB; ++q)
#pragma GCC unroll 8
            for (int t = 0; t < T; ++t) acc[q][t] = V{};
        for (const int64_t stop = end - s < piece ? end : s + piece; s < stop; ++s) {
            const float* v = w.values + s * unit + row * c;
            const float* in = x + static_cast<int64_t>(cols[s]) * (c * T * LANES);
            for (int j = 0; j < c; ++j, in += T * LANES) {
                V xs[T];
#pragma GCC unroll 8
                for (int t = 0; t < T; ++t) xs[t] = load(in + t * LANES);
#pragma GCC unroll 8
                for (int q = 0; q < RB; ++q) {
                    const V value = splat(v[q * c + j]);
#pragma GCC unroll 8
                    for (int t = 0; t < T; ++t) acc[q][t] += value * xs[t];
                }
            }
        }
#pragma GCC unroll 8
        for (int q = 0; q < RB; ++q)
#pragma GCC unroll 8
            for (int t = 0; t < T; ++t) {
                float* to = out + (q * T + t) * LANES;
                store(to, load(to) + acc[q][t]);
            }
    }
}

// Packed dX += A's slots s..end transposed times RB rows of packed dY.
template <int T, int RB, int C, class Col>
static inline void scatter_rows(const tk_matrix& w, int64_t s, int64_t end, int row, const float* dy, float* out) {
    const Col* cols = static_cast<const Col*>(w.cols);
    const int c = C ? C : w.c, unit = w.r * c;
    V d[RB][T];
#pragma GCC unroll 8
    for (int q = 0; q < RB; ++q)
#pragma GCC unroll 8
        for (int t = 0; t < T; ++t) d[q][t] = load(dy + (q * T + t) * LANES);
    for (; s < end; ++s) {
        const float* v = w.values + s * unit + row * c;
        float* to = out + static_cast<int64_t>(cols[s]) * (c * T * LANES);
        for (int j = 0; j < c; ++j, to += T * LANES) {
            V sum[T];
#pragma GCC unroll 8
            for (int t = 0; t < T; ++t) sum[t] = load(to + t * LANES);
#pragma GCC unroll 8
            for (int q = 0; q < RB; ++q) {
                const V value = splat(v[q * c + j]);
#pragma GCC unroll 8
                for (int t = 0; t < T; ++t) sum[t] += value * d[q][t];
            }
#pragma GCC unroll 8
            for (int t = 0; t < T; ++t) store(to + t * LANES, sum[t]);
        }
    }
}

// The block's rows in groups of RB, then of half as many, down to one.
template <int T, int RB, int C, class Col, bool gather>
static inline void block_row(const tk_matrix& w, int64_t s, int64_t end, int row, const float* in, float* out) {
    for (; row + RB <= w.r; row += RB) {
        if constexpr (gather) {
            gather_rows<T, RB, C, Col>(w, s, end, row, in, out + row * T * LANES);
        } else {
            scatter_rows<T, RB, C, Col>(w, s, end, row, in + row * T * LANES, out);
        }
    }
    if constexpr (RB > 1) {
        if (row < w.r) block_row<T, RB / 2, C, Col, gather>(w, s, end, row, in, out);
    }
}

// The slots of a row in a cell lie far from those of the next row: fetch them some rows ahead.
template <class Col>
static inline void prefetch(const tk_matrix& w, const int32_t* starts, int64_t i, int64_t end) {
    if (i + 8 >= end) return;
    const int64_t s = starts[i + 8];
    if (w.values) {
        __builtin_prefetch(w.values + s * w.r * w.c);
        __builtin_prefetch(w.values + s * w.r * w.c + 16);
    }
    __builtin_prefetch(static_cast<const Col*>(w.cols) + s);
}

// Cells: how many block columns at once, so that `width` floats for each of them stay in `bytes`.
static inline int64_t cell_width(const tk_matrix& w, int64_t width, int64_t bytes) {
    const int64_t fit = bytes / (4 * width * w.c);
    return fit < 1 ? 1 : fit;
}

static constexpr int64_t ROWS = 128;  // rows of Y in one task: their sums stay in the second-level cache

// First every part of every tile is packed, then every tile is computed by ranges. Where there are tiles enough for
// all threads, one task does both for its tile, while that is still in the cache.
template <class Pack, class Compute>
static void packed(const tk_parallel* p, int64_t tiles, int64_t parts, int64_t ranges, const Pack& pack_part,
                   const Compute& compute) {
    if (tiles >= 4 * p->threads) {
        parallel(p, tiles, [&](int64_t tile) {
            for (int64_t part = 0; part < parts; ++part) pack_part(tile, part);
            for (int64_t range = 0; range < ranges; ++range) compute(tile, range);
        });
    } else {
        parallel(p, tiles * parts, [&](int64_t task) { pack_part(task / parts, task % parts); });
        parallel(p, tiles * ranges, [&](int64_t task) { compute(task / ranges, task % ranges); });
    }
}

static constexpr int64_t PART = 512;  // rows of a packed tile in one task

// Where the sums of a tile's rows n0.. go: straight to their place where the result is to be tiles.
static inline float* place(const tk_view& y, int64_t tile, int64_t n0, float* own) {
    return y.width ? y.data + (tile * y.n + n0) * y.width : own;
}

template <int T, int RB, int C, class Col>
static void spmm_tiles(const tk_parallel* p, const tk_matrix& w, const tk_view& x, const float* bias, int32_t act,
                     const tk_view& y, float* work) {
    const int64_t width = T * LANES, tiles = ceil_div(x.m, width), rows = ceil_div(w.rows, w.r);
    const int64_t grid_cols = ceil_div(w.columns, w.c), padded = grid_cols * w.c;
    const auto pack_part = [&](int64_t tile, int64_t part) {
        const int64_t n0 = part * PART, n1 = n0 + PART < padded ? n0 + PART : padded;
        pack(x, tile * width, width, n0, n1, work + (tile * padded + n0) * width);
    };
    // No cells of columns here: rows are long then, and loops that end unforeseen cost more than the first-level cache
    // gains (measured: 41 against 33 GFLOP/s for single weights).
    const int64_t cell = grid_cols, cells = 1;
    int32_t* starts = reinterpret_cast<int32_t*>(work + tiles * padded * width);
    find_starts<Col>(p, w, cell, cells, starts);
    const int64_t step = ceil_div(ROWS, w.r), ranges = ceil_div(rows, step);
    packed(p, tiles, ceil_div(padded, PART), ranges, pack_part, [&](int64_t tile, int64_t range) {
        const int64_t i0 = range * step, i1 = i0 + step < rows ? i0 + step : rows;
        alignas(64) float own[(ROWS + 64) * T * LANES];
        float* const out = place(y, tile, i0 * w.r, own);
        for (int64_t n = i0 * w.r; n < i1 * w.r; ++n) {
            const V start = splat(bias && n < w.rows ? bias[n] : 0.0f);
            for (int t = 0; t < T; ++t) store(out + (n - i0 * w.r) * width + t * LANES, start);
        }
        for (int64_t k = 0; k < cells; ++k)
            for (int64_t i = i0; i < i1; ++i) {
                prefetch<Col>(w, starts + k * rows, i, i1);
                block_row<T, RB, C, Col, true>(w, starts[k * rows + i], starts[(k + 1) * rows + i], 0,
                                               work + tile * padded * width, out + (i - i0) * w.r * width);
            }
        activate(act, out, (i1 - i0) * w.r * width);
        if (!y.width) unpack(out, tile * width, width, i0 * w.r, i1 * w.r, y);
    });
}

// dX under a cell of columns is added to in place; single weights add so often that it must be close by (measured).
template <int RB>
static constexpr int64_t DX_CELL = (RB == 1 ? 4 : 6) * L1;

template <int T, int RB, int C, class Col>
static void spmm_t_tiles(const tk_parallel* p, const tk_matrix& w, const tk_view& dy, const tk_view& dx, float* work) {
    const int64_t width = T * LANES, tiles = ceil_div(dy.m, width), rows = ceil_div(w.rows, w.r);
    const int64_t grid_cols = ceil_div(w.columns, w.c), padded = rows * w.r;
    const auto pack_part = [&](int64_t tile, int64_t part) {
        const int64_t n0 = part * PART, n1 = n0 + PART < padded ? n0 + PART : padded;
        pack(dy, tile * width, width, n0, n1, work + (tile * padded + n0) * width);
    };
    // Tiles are read where they lie: row after row, and once for each cell.
    const float* const in = dy.width ? dy.data : work;
    const int64_t cell = cell_width(w, width, DX_CELL<RB>), cells = ceil_div(grid_cols, cell);
    int32_t* starts = reinterpret_cast<int32_t*>(work + tiles * padded * width);
    find_starts<Col>(p, w, cell, cells, starts);
    packed(p, tiles, dy.width ? 0 : ceil_div(padded, PART), cells, pack_part, [&](int64_t tile, int64_t k) {
        const int64_t n0 = k * cell * w.c, n1 = n0 + cell * w.c < w.columns ? n0 + cell * w.c : w.columns;
        alignas(64) float own[DX_CELL<RB> / 4 + 64 * T * LANES];
        float* const out = place(dx, tile, n0, own);
        const int64_t end = dx.width ? n1 - n0 : cell * w.c;  // a block may hang over the edge of rows
        for (int64_t i = 0; i < end * width; i += LANES) store(out + i, V{});
        for (int64_t i = 0; i < rows; ++i) {
            prefetch<Col>(w, starts + k * rows, i, rows);
            block_row<T, RB, C, Col, false>(w, starts[k * rows + i], starts[(k + 1) * rows + i], 0,
                                            in + (tile * padded + i * w.r) * width, out - n0 * width);
        }
        if (!dx.width) unpack(out, tile * width, width, n0, n1, dx);
    });
}
