// dW = dY^T X at B: what is packed, and in which order the slots are walked. The products themselves lie in dots.inl
// (the batch is the vector axis), outer.inl (a block's rows or columns are) and single.inl (single weights).

// Both operands in chunks of the batch. Column n of chunk t lies at base + n * width(t): `width` floats, or, in panels,
// LANES columns side by side.
struct Chunks {
    const float *dy, *x;
    int64_t m, chunk, out, in;  // m in whole vectors; columns of dy and of x

    int64_t count() const { return ceil_div(m, chunk); }
    int64_t width(int64_t t) const { return m - t * chunk < chunk ? m - t * chunk : chunk; }
    const float* dy_at(int64_t t, int64_t n) const { return dy + t * chunk * out + n * width(t); }
    const float* x_at(int64_t t) const { return x + t * chunk * in; }
};

// A block row's slots in a cell of columns: those of A, then those of B \ A.
struct Slots {
    int64_t a, a_end, b, b_end;

    int64_t count() const { return a_end - a + b_end - b; }
    int64_t operator[](int64_t i) const { return i < a_end - a ? a + i : b + i - (a_end - a); }

    // On to the slots whose columns are below `limit`; the ends of the whole row are given.
    template <class Col>
    void advance(const Col* cols, int64_t limit, int64_t a_last, int64_t b_last) {
        for (a = a_end; a_end < a_last && cols[a_end] < limit;) ++a_end;
        for (b = b_end; b_end < b_last && cols[b_end] < limit;) ++b_end;
    }
};

// The rows of the batch in one product: `count` stretches of `width`, which lie so many floats apart; or one, known to
// the compiler, as a loop around it would cost registers (measured: 0.34 of dense instead of 0.25).
struct Stretches {
    int64_t width, count, dy_step, x_step;
};
struct Stretch {
    int64_t width;
    static constexpr int64_t count = 1, dy_step = 0, x_step = 0;
};

#include "dots.inl"
#include "outer.inl"
#include "single.inl"

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

static constexpr int64_t BATCH = 256;  // rows of the batch that are packed at once, at least

// Rows m0.. of x, `count` of them at most; of tiles, whole tiles.
static inline tk_view rows_of(const tk_view& x, int64_t m0, int64_t count) {
    tk_view part = x;
    part.data += x.width ? m0 * x.n : m0 * x.stride_m;
    part.m = x.m - m0 < count ? x.m - m0 : count;
    return part;
}

static constexpr int64_t RANGE = 512;  // rows of dW in one task, at most: x is read anew for each

// cell(begin, end, slots, chunks): the products of block rows begin..end in one cell of columns. chunk: rows of the
// batch at once, at most; wide: block columns of a cell; range: rows of dW in one task, at most.
template <class Col, class Cell>
static void sddmm_tiles(const tk_parallel* p, const tk_matrix& w, const tk_view& dy, const tk_view& x, float* grad,
                        float* work, int64_t chunk, int64_t wide, int64_t range, bool dy_panels, bool x_panels,
                        const Cell& cell) {
    const int64_t rows = ceil_div(w.rows, w.r), grid_cols = ceil_div(w.columns, w.c);
    const int64_t m = ceil_div(x.m, LANES) * LANES, in = grid_cols * w.c, out = rows * w.r;
    chunk = ceil_div(ceil_div(m, ceil_div(m, chunk)), LANES) * LANES;  // all about as wide
    float *px = work, *pdy = px + in * m;
    const Chunks chunks{pdy, px, m, chunk, out, in};
    const int64_t part = 512, parts = ceil_div(in, part) + ceil_div(out, part);
    parallel(p, chunks.count() * parts, [&](int64_t task) {
        const int64_t t = task / parts, m0 = t * chunk, width = chunks.width(t);
        int64_t n0 = task % parts * part;
        if (n0 < in) {
            (x_panels ? pack_panels : pack)(x, m0, width, n0, n0 + part < in ? n0 + part : in,
                                            px + m0 * in + n0 * width);
        } else {
            n0 -= ceil_div(in, part) * part;
            (dy_panels ? pack_panels : pack)(dy, m0, width, n0, n0 + part < out ? n0 + part : out,
                                             pdy + m0 * out + n0 * width);
        }
    });
    const Col* cols = static_cast<const Col*>(w.cols);
    const int64_t fair = ceil_div(rows, 2 * p->threads), most = ceil_div(range, w.r), step = fair < most ? fair : most;
    parallel(p, ceil_div(rows, step), [&](int64_t task) {
        const int64_t begin = task * step, end = begin + step < rows ? begin + step : rows;
        Slots slots[RANGE];
        for (int64_t i = begin; i < end; ++i)
            slots[i - begin] = {0, w.row_ptr[i], 0, w.row_fwd[i]};
        for (int64_t k = 0; k < grid_cols; k += wide) {
            for (int64_t i = begin; i < end; ++i)
                slots[i - begin].advance(cols, k + wide, w.row_fwd[i], w.row_ptr[i + 1]);
            cell(begin, end, slots, chunks);
        }
    });
    for (int64_t s = w.row_ptr[rows] * w.r * w.c; s < w.slots * w.r * w.c; ++s) grad[s] = 0.0f;
}

// What dispatch calls: the kernel for the block.
template <int RB, int C, class Col>
static void sddmm_b(const tk_parallel* p, const tk_matrix& w, const tk_view& dy, const tk_view& x, float* grad,
                    float* work) {
    const bool rows = w.r % LANES == 0, columns = C != 1 && w.c % LANES == 0;
    // Every block row's slots, chunk by chunk, in a cell whose x stays in the second-level cache. What is packed at once
    // stays in the third-level cache until it is read (.88 of the time at 2,048 rows).
    const auto run = [&](int64_t chunk, const auto& row) {
        const int64_t batch = chunk > BATCH ? chunk : BATCH;
        for (int64_t m0 = 0; m0 < x.m; m0 += batch)
            sddmm_tiles<Col>(p, w, rows_of(dy, m0, batch), rows_of(x, m0, batch), grad, work, chunk,
                             cell_width(w, chunk, 16 * L1), RANGE, rows, columns,
                             [&](int64_t begin, int64_t end, const Slots* slots, const Chunks& all) {
                                 for (int64_t t = 0; t < all.count(); ++t) {
                                     const float* in = all.x_at(t);
                                     for (int64_t i = begin; i < end; ++i)
                                         row(slots[i - begin], all.dy_at(t, i * w.r), in, all.width(t), m0 + t > 0);
                                 }
                             });
    };
    if constexpr (RB == 1 && C == 1) {
        sddmm_tiles<Col>(p, w, dy, x, grad, work, SINGLE * LANES, SINGLE_COLS, SINGLE_RANGE, false, false,
                         [&](int64_t begin, int64_t end, const Slots* slots, const Chunks& all) {
                             single_cell<Col>(w, begin, end, slots, all, grad);
                         });
    } else if (columns) {
        run(2 * TERMS, [&](const Slots& s, const float* left, const float* right, int64_t width, bool add) {
            columns_outer<Col>(w, s, left, rows, right, width, add, grad);
        });
    } else if (rows) {
        run(2 * TERMS, [&](const Slots& s, const float* left, const float* right, int64_t width, bool add) {
            rows_outer<C, Col>(w, s, left, right, Stretch{width}, add, grad);
        });
    } else {
        run(TERMS / 2 * LANES, [&](const Slots& s, const float* left, const float* right, int64_t width, bool add) {
            block_dots<RB, C, Col>(w, s, left, right, Stretch{width}, 0, add, grad);
        });
    }
}
