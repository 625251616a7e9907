// dW where a block has whole vectors of rows or of columns: these are the vector axis, in panels; the other side is
// broadcast, and nothing is summed across lanes. One chunk of the batch at a time is packed: it stays in the cache.

static constexpr int64_t ROWS_CHUNK = 256;         // samples, where rows are the vector axis
static constexpr int64_t COLUMNS_CHUNK = 128;      // a block's panels of both operands stay in the first-level cache
static constexpr int64_t CELL_BYTES = 512 * 1024;  // of x in a chunk under the columns that are walked at once

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

static constexpr int64_t RANGE = 512;  // block rows of dW in one task, at most

// f(begin, end, slots): block rows begin..end in one cell of `wide` block columns after the other.
template <class Col, class F>
static void each_cell(const tk_parallel* p, const tk_matrix& w, int64_t wide, const F& f) {
    const Col* cols = static_cast<const Col*>(w.cols);
    const int64_t rows = blocks_down(w), step = std::min(ceil_div(rows, 4 * p->threads), RANGE);
    parallel(p, ceil_div(rows, step), [&](int64_t task) {
        const int64_t begin = task * step, end = std::min(begin + step, rows);
        Slots slots[RANGE];
        for (int64_t i = begin; i < end; ++i) slots[i - begin] = {0, w.row_ptr[i], 0, w.row_fwd[i]};
        for (int64_t k = 0; k < blocks_across(w); k += wide) {
            for (int64_t i = begin; i < end; ++i)
                slots[i - begin].advance(cols, k + wide, w.row_fwd[i], w.row_ptr[i + 1]);
            f(begin, end, slots);
        }
    });
}

// acc[j][v] = the sum over the chunk's pairs of samples m, m + 1 of vectors left[v] times the pairs at right(j, m).
template <int J, int VN, class Right>
static inline void outer(const Half* const* left, const Right& right, int64_t width, Sums (&acc)[J][VN]) {
    UNROLL for (int j = 0; j < J; ++j) UNROLL for (int v = 0; v < VN; ++v) acc[j][v] = _mm512_setzero_ps();
    for (int64_t m = 0; m < width; m += 2) {
        Halves vectors[VN];
        UNROLL for (int v = 0; v < VN; ++v) vectors[v] = load(left[v] + m * LANES);
        UNROLL for (int j = 0; j < J; ++j) {
            const Halves same = splat(right(j, m));
            UNROLL for (int v = 0; v < VN; ++v) acc[j][v] = multiplied(acc[j][v], vectors[v], same);
        }
    }
}

static inline void put(float* to, Sums found, bool add) {
    _mm512_storeu_ps(to, add ? _mm512_add_ps(_mm512_loadu_ps(to), found) : found);
}

// VN vectors of rows of a block times J columns, which lie anywhere.
template <int J, int VN, class Col>
static inline void rows_outer(const tk_matrix& w, const Slots& slots, const Half* dy, const Half* x, int64_t width,
                              bool add, float* grad) {
    const Col* cols = static_cast<const Col*>(w.cols);
    const int64_t flat = slots.count() * w.c;
    for (int q0 = 0; q0 < w.r; q0 += VN * LANES)
        for (int64_t f = 0; f < flat; f += J) {
            const Half *left[VN], *right[J];
            float* to[J];
            UNROLL for (int v = 0; v < VN; ++v) left[v] = dy + (q0 + v * LANES) * width;
            UNROLL for (int j = 0; j < J; ++j) {
                const int64_t here = f + j < flat ? f + j : flat - 1, s = slots[here / w.c];
                right[j] = x + (cols[s] * w.c + here % w.c) * width;
                to[j] = grad + (s * w.r + q0) * w.c + here % w.c;
            }
            Sums acc[J][VN];
            outer<J, VN>(left, [&](int j, int64_t m) { return right[j] + m; }, width, acc);
            UNROLL for (int j = 0; j < J; ++j) UNROLL for (int v = 0; v < VN; ++v) {
                float* const here = to[j] + v * LANES * w.c;
                if (f + j >= flat) continue;
                if (w.c == 1) put(here, acc[j][v], add);
                else for (int q = 0; q < LANES; ++q) here[q * w.c] = acc[j][v][q] + (add ? here[q * w.c] : 0.0f);
            }
        }
}

// R rows of a block times VN vectors of columns, of one slot or of several.
template <int R, int VN, class Col>
static inline void columns_outer(const tk_matrix& w, const Slots& slots, int64_t f, const Half* dy, bool panels,
                                 const Half* x, int64_t width, int q0, bool add, float* grad) {
    const Col* cols = static_cast<const Col*>(w.cols);
    const int64_t vectors = w.c / LANES;
    const Half* left[VN];
    float* to[VN];
    UNROLL for (int v = 0; v < VN; ++v) {
        const int64_t s = slots[(f + v) / vectors], column = (f + v) % vectors * LANES;
        left[v] = x + (cols[s] * w.c + column) * width;
        to[v] = grad + s * w.r * w.c + column;
    }
    for (; q0 + R <= w.r; q0 += R) {
        Sums acc[R][VN];
        // Rows of a panel lie side by side, so one address serves all of them.
        const Half* const right = dy + (panels ? q0 / LANES * LANES * width + q0 % LANES * 2 : q0 * width);
        if (panels) outer<R, VN>(left, [&](int q, int64_t m) { return right + m * LANES + 2 * q; }, width, acc);
        else outer<R, VN>(left, [&](int q, int64_t m) { return right + q * width + m; }, width, acc);
        UNROLL for (int q = 0; q < R; ++q) UNROLL for (int v = 0; v < VN; ++v)
            put(to[v] + (q0 + q) * w.c, acc[q][v], add);
    }
    if constexpr (R > 1) {
        if (q0 < w.r) columns_outer<R / 2, VN, Col>(w, slots, f, dy, panels, x, width, q0, add, grad);
    }
}

// How many samples at once, all chunks about as many, in whole vectors.
static inline int64_t chunk_of(int64_t m, int64_t most) {
    m = ceil_div(m, HALVES);
    return ceil_div(m, ceil_div(m * HALVES, most)) * HALVES;
}

template <class Col>
static void sddmm_outer(const tk_parallel* p, const tk_matrix& w, const tk_view& dy, const tk_view& x, float* grad,
                        Room& room) {
    const bool columns = w.c % LANES == 0, rows = w.r % LANES == 0;
    const int64_t in = blocks_across(w) * w.c, out = blocks_down(w) * w.r;
    const int64_t chunk = chunk_of(x.m, columns ? COLUMNS_CHUNK : ROWS_CHUNK);
    const int64_t in_parts = ceil_div(in, PART), out_parts = ceil_div(out, PART);
    Half *const px = room.take<Half>(in * chunk), *const pdy = room.take<Half>(out * chunk);
    for (int64_t m0 = 0; m0 < x.m; m0 += chunk) {
        const int64_t width = std::min(chunk, ceil_div(x.m - m0, HALVES) * HALVES);
        parallel(p, in_parts + out_parts, [&](int64_t part) {
            const bool of_x = part < in_parts;
            const int64_t n0 = (of_x ? part : part - in_parts) * PART, n1 = std::min(n0 + PART, of_x ? in : out);
            ((of_x ? columns : rows) ? pack_panels : pack)(of_x ? x : dy, m0, width, n0, n1, (of_x ? px : pdy) + n0 * width);
        });
        const int64_t wide = std::max<int64_t>(1, CELL_BYTES / (2 * width * w.c));
        each_cell<Col>(p, w, wide, [&](int64_t begin, int64_t end, const Slots* slots) {
            for (int64_t i = begin; i < end; ++i) {
                const Slots& mine = slots[i - begin];
                const Half* left = pdy + i * w.r * width;
                if (columns) {
                    const int64_t flat = mine.count() * (w.c / LANES);
                    int64_t f = 0;
                    for (; f + 2 <= flat; f += 2) columns_outer<8, 2, Col>(w, mine, f, left, rows, px, width, 0, m0 > 0, grad);
                    if (f < flat) columns_outer<8, 1, Col>(w, mine, f, left, rows, px, width, 0, m0 > 0, grad);
                } else if (w.r % HALVES == 0) {
                    rows_outer<8, 2, Col>(w, mine, left, px, width, m0 > 0, grad);
                } else {
                    rows_outer<8, 1, Col>(w, mine, left, px, width, m0 > 0, grad);
                }
            }
        });
    }
}
