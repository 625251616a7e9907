// dW = dY^T X at B: one dot product over the batch for every value, RB rows times J columns of them at once.

static constexpr int64_t CHUNK = 256;  // rows of activations taken together: a column of them is then 1 KB

// What a task works on: packed activations of some tiles, and where the tiles lie.
struct Dots {
    const float *dy, *x;  // first row of the block, first column of the matrix, of the first tile
    int64_t dy_tile, x_tile, tiles, width;
};

// grad at rows row..row+RB of the block, flat columns f..f+count (count <= J) of the block row's slots; flat column
// s * c + j is column j of slot s.
template <int RB, int J, int C, class Col>
static inline void dots(const tk_matrix& w, const Dots& d, int64_t f, int count, int row, bool add, float* grad) {
    const Col* cols = static_cast<const Col*>(w.cols);
    const int64_t c = C ? C : w.c;
    const float* xs[J];
#pragma GCC unroll 16
    for (int j = 0; j < J; ++j) {
        const int64_t here = f + (j < count ? j : count - 1), s = here / c;
        xs[j] = d.x + (cols[s] * c + here % c) * d.width;
    }
    V acc[RB * J];
#pragma GCC unroll 32
    for (int i = 0; i < RB * J; ++i) acc[i] = V{};
    for (int64_t tile = 0; tile < d.tiles; ++tile) {
        const float* dy = d.dy + tile * d.dy_tile + row * d.width;
        for (int64_t t = 0; t < d.width; t += LANES) {
            V left[RB];
#pragma GCC unroll 8
            for (int q = 0; q < RB; ++q) left[q] = load(dy + q * d.width + t);
#pragma GCC unroll 16
            for (int j = 0; j < J; ++j) {
                const V right = load(xs[j] + tile * d.x_tile + t);
#pragma GCC unroll 8
                for (int q = 0; q < RB; ++q) acc[j * RB + q] += left[q] * right;
            }
        }
    }
    constexpr int group = RB * J < LANES ? RB * J : LANES;
    float found[RB * J < LANES ? LANES : RB * J];
#pragma GCC unroll 8
    for (int i = 0; i < RB * J; i += group) store(found + i, sums<group>(acc + i));
    for (int j = 0; j < count; ++j) {
        const int64_t here = f + j, s = here / c;
        float* to = grad + (s * w.r + row) * c + here % c;
#pragma GCC unroll 8
        for (int q = 0; q < RB; ++q) to[q * c] = add ? to[q * c] + found[j * RB + q] : found[j * RB + q];
    }
}

template <int RB, int J, int C, class Col>
static inline void block_dots(const tk_matrix& w, const Dots& d, int64_t s, int64_t end, int row, bool add,
                              float* grad) {
    const int64_t c = C ? C : w.c;
    for (; row + RB <= w.r; row += RB)
        for (int64_t f = s * c; f < end * c; f += J)
            dots<RB, J, C, Col>(w, d, f, static_cast<int>(end * c - f < J ? end * c - f : J), row, add, grad);
    if constexpr (RB > 1) {
        if (row < w.r) block_dots<RB / 2, J, C, Col>(w, d, s, end, row, add, grad);
    }
}

// The same where a block has whole vectors of rows: RV of them are the vector axis, x is broadcast, nothing is summed
// across lanes. dy is packed in panels [LANES rows][m] for it.
template <int RV, int J, int C, class Col>
static inline void outer(const tk_matrix& w, const Dots& d, int64_t f, int count, int row, bool add, float* grad) {
    const Col* cols = static_cast<const Col*>(w.cols);
    const int64_t c = C ? C : w.c;
    const float* xs[J];
#pragma GCC unroll 16
    for (int j = 0; j < J; ++j) {
        const int64_t here = f + (j < count ? j : count - 1), s = here / c;
        xs[j] = d.x + (cols[s] * c + here % c) * d.width;
    }
    V acc[J][RV];
#pragma GCC unroll 16
    for (int j = 0; j < J; ++j)
#pragma GCC unroll 2
        for (int v = 0; v < RV; ++v) acc[j][v] = V{};
    for (int64_t tile = 0; tile < d.tiles; ++tile) {
        const float* dy = d.dy + tile * d.dy_tile + row * d.width;
        const int64_t shift = tile * d.x_tile;
        for (int64_t m = 0; m < d.width; ++m) {
            V left[RV];
#pragma GCC unroll 2
            for (int v = 0; v < RV; ++v) left[v] = load(dy + (v * d.width + m) * LANES);
#pragma GCC unroll 16
            for (int j = 0; j < J; ++j) {
                const V right = splat(xs[j][shift + m]);
#pragma GCC unroll 2
                for (int v = 0; v < RV; ++v) acc[j][v] += left[v] * right;
            }
        }
    }
    for (int j = 0; j < count; ++j) {
        const int64_t here = f + j, s = here / c;
        float* to = grad + (s * w.r + row) * c + here % c;
#pragma GCC unroll 2
        for (int v = 0; v < RV; ++v, to += LANES * c) {
            if (C == 1) {
                store(to, add ? load(to) + acc[j][v] : acc[j][v]);
            } else {
                float found[LANES];
                store(found, acc[j][v]);
                for (int q = 0; q < LANES; ++q) to[q * c] = add ? to[q * c] + found[q] : found[q];
            }
        }
    }
}

template <int RV, int C, class Col>
static inline void block_outer(const tk_matrix& w, const Dots& d, int64_t s, int64_t end, bool add, float* grad) {
    const int64_t c = C ? C : w.c;
    constexpr int J = RV == 1 && C == 1 ? 8 : SDDMM_OUTER / RV;
    for (int row = 0; row < w.r; row += RV * LANES)
        for (int64_t f = s * c; f < end * c; f += J)
            outer<RV, J, C, Col>(w, d, f, static_cast<int>(end * c - f < J ? end * c - f : J), row, add, grad);
}

// Panels of LANES columns n: out[(n - n0) / LANES][m][LANES].
static void pack_panels(const tk_view& x, int64_t m0, int64_t width, int64_t n0, int64_t n1, float* out) {
    if (x.width) return panel_tiles(x, m0, width, n0, n1, out);
    for (int64_t n = n0; n < n1; n += LANES, out += width * LANES)
        for (int64_t m = 0; m < width; ++m) {
            const float* from = x.data + (m0 + m) * x.stride_m + n * x.stride_n;
            float* to = out + m * LANES;
            if (m0 + m < x.m && x.stride_n == 1 && n + LANES <= x.n) {
                store(to, load(from));
            } else {
                for (int64_t j = 0; j < LANES; ++j) to[j] = m0 + m < x.m && n + j < x.n ? from[j * x.stride_n] : 0.0f;
            }
        }
}

template <int RB, int J, int C, class Col>
static void sddmm_tiles(const tk_parallel* p, const tk_matrix& w, const tk_view& dy, const tk_view& x, float* grad,
                    float* work) {
    const int64_t lanes = ceil_div(x.m, LANES), width = (lanes < 4 ? lanes : 4) * LANES;
    const int64_t tiles = ceil_div(x.m, width), rows = ceil_div(w.rows, w.r);
    const int64_t grid_cols = ceil_div(w.columns, w.c), in = grid_cols * w.c, out = rows * w.r;
    const bool panels = w.r % LANES == 0;
    float *px = work, *pdy = px + tiles * in * width;
    const int64_t part = 512, parts = ceil_div(in, part) + ceil_div(out, part);
    parallel(p, tiles * parts, [&](int64_t task) {
        const int64_t tile = task / parts, m0 = tile * width;
        int64_t n0 = task % parts * part;
        if (n0 < in) {
            pack(x, m0, width, n0, n0 + part < in ? n0 + part : in, px + (tile * in + n0) * width);
        } else {
            n0 -= ceil_div(in, part) * part;
            (panels ? pack_panels : pack)(dy, m0, width, n0, n0 + part < out ? n0 + part : out,
                                          pdy + (tile * out + n0) * width);
        }
    });
    const int64_t chunk = CHUNK / width;
    const int64_t cell = cell_width(w, chunk * width, RB == 1 ? 32 * L1 : 16 * L1), cells = ceil_div(grid_cols, cell);
    int32_t* starts = reinterpret_cast<int32_t*>(pdy + tiles * out * width);
    int32_t* explored = starts + (cells + 1) * rows;
    find_starts<Col>(p, w, cell, cells, 0, starts);
    find_starts<Col>(p, w, cell, cells, 1, explored);
    const int32_t* const both[2] = {starts, explored};
    const int64_t step = ceil_div(ROWS, w.r);
    parallel(p, ceil_div(rows, step), [&](int64_t task) {
        const int64_t i0 = task * step, i1 = i0 + step < rows ? i0 + step : rows;
        for (int64_t t0 = 0; t0 < tiles; t0 += chunk)
            for (int64_t k = 0; k < cells; ++k)
                for (int64_t i = i0; i < i1; ++i) {
                    const Dots d{pdy + (t0 * out + i * w.r) * width, px + t0 * in * width, out * width, in * width,
                                 tiles - t0 < chunk ? tiles - t0 : chunk, width};
                    for (const int32_t* part : both) {
                        const int64_t s = part[k * rows + i], end = part[(k + 1) * rows + i];
                        if (w.r % (2 * LANES) == 0 && C != 1) {
                            block_outer<2, C, Col>(w, d, s, end, t0 > 0, grad);
                        } else if (panels) {
                            block_outer<1, C, Col>(w, d, s, end, t0 > 0, grad);
                        } else {
                            block_dots<RB, J, C, Col>(w, d, s, end, 0, t0 > 0, grad);
                        }
                    }
                }
    });
    for (int64_t s = w.row_ptr[rows] * w.r * w.c; s < w.slots * w.r * w.c; ++s) grad[s] = 0.0f;
}
