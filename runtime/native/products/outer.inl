// dW where a block has whole vectors of rows or of columns: these are the vector axis, the other side is broadcast, and
// nothing is summed across lanes. The vector side is packed in panels [LANES][m].

// acc[j][v] = the sum over a stretch's m of vectors left[v][m] times right[j][m * stride]; the next stretches begin
// `left_step` and `right_step` floats further.
template <int J, int VN>
static inline void outer(const float* const* left, const float* const* right, int64_t stride, int64_t width,
                         V (&acc)[J][VN], int64_t count = 1, int64_t left_step = 0, int64_t right_step = 0) {
#pragma GCC unroll 16
    for (int j = 0; j < J; ++j)
#pragma GCC unroll 4
        for (int v = 0; v < VN; ++v) acc[j][v] = V{};
    for (int64_t t = 0; t < count; ++t) {
        const float *vector[VN], *scalar[J];
#pragma GCC unroll 4
        for (int v = 0; v < VN; ++v) vector[v] = left[v] + t * left_step;
#pragma GCC unroll 16
        for (int j = 0; j < J; ++j) scalar[j] = right[j] + t * right_step;
        for (int64_t m = 0; m < width; ++m) {
            V vectors[VN];
#pragma GCC unroll 4
            for (int v = 0; v < VN; ++v) vectors[v] = load(vector[v] + m * LANES);
#pragma GCC unroll 16
            for (int j = 0; j < J; ++j) {
                const V same = splat(scalar[j][m * stride]);
#pragma GCC unroll 4
                for (int v = 0; v < VN; ++v) acc[j][v] += vectors[v] * same;
            }
        }
    }
}

// VN vectors of rows of the block times J columns at once, which lie anywhere.
template <int J, int VN, int C, class Col, class Span>
static inline void rows_outer(const tk_matrix& w, const Slots& slots, const float* dy, const float* x, const Span& span,
                              bool add, float* grad) {
    const Col* cols = static_cast<const Col*>(w.cols);
    const int64_t c = C ? C : w.c, flat = slots.count() * c;
    for (int row = 0; row < w.r; row += VN * LANES)
        for (int64_t f = 0; f < flat; f += J) {
            const float *left[VN], *right[J];
            float* to[J];
            for (int v = 0; v < VN; ++v) left[v] = dy + (row + v * LANES) * span.width;
#pragma GCC unroll 16
            for (int j = 0; j < J; ++j) {
                const int64_t here = f + j < flat ? f + j : flat - 1, s = slots[here / c];
                right[j] = x + (cols[s] * c + here % c) * span.width;
                to[j] = grad + (s * w.r + row) * c + here % c;
            }
            V acc[J][VN];
            outer<J, VN>(left, right, 1, span.width, acc, span.count, span.dy_step, span.x_step);
#pragma GCC unroll 16
            for (int j = 0; j < J; ++j) {
                if (f + j >= flat) break;
#pragma GCC unroll 4
                for (int v = 0; v < VN; ++v) {
                    float* here = to[j] + v * LANES * c;
                    if (C == 1) {
                        store(here, add ? load(here) + acc[j][v] : acc[j][v]);
                    } else {
                        for (int q = 0; q < LANES; ++q) here[q * c] = acc[j][v][q] + (add ? here[q * c] : 0.0f);
                    }
                }
            }
        }
}

template <int C, class Col, class Span>
static inline void rows_outer(const tk_matrix& w, const Slots& slots, const float* dy, const float* x, const Span& span,
                              bool add, float* grad) {
    if (w.r % (2 * LANES) == 0) {
        rows_outer<OUTER_TILE, 2, C, Col>(w, slots, dy, x, span, add, grad);
    } else {
        rows_outer<OUTER, 1, C, Col>(w, slots, dy, x, span, add, grad);
    }
}

// RB rows of the block times VN vectors of columns at once, of one slot or of several.
template <int RB, int VN, class Col>
static inline void columns_outer(const tk_matrix& w, const Slots& slots, int64_t f, const float* dy, bool panels,
                                 const float* x, int64_t width, int row, bool add, float* grad) {
    const Col* cols = static_cast<const Col*>(w.cols);
    const int64_t vectors = w.c / LANES;
    const float *left[VN], *right[RB];
    float* to[VN];
#pragma GCC unroll 4
    for (int v = 0; v < VN; ++v) {
        const int64_t s = slots[(f + v) / vectors], at = (f + v) % vectors * LANES;
        left[v] = x + (cols[s] * w.c + at) * width;
        to[v] = grad + s * w.r * w.c + at;
    }
    for (; row + RB <= w.r; row += RB) {
#pragma GCC unroll 16
        for (int q = 0; q < RB; ++q) {
            const int n = row + q;
            right[q] = dy + (panels ? n / LANES * LANES * width + n % LANES : n * width);
        }
        V acc[RB][VN];
        outer<RB, VN>(left, right, panels ? LANES : 1, width, acc);
#pragma GCC unroll 16
        for (int q = 0; q < RB; ++q)
#pragma GCC unroll 4
            for (int v = 0; v < VN; ++v) {
                float* here = to[v] + (row + q) * w.c;
                store(here, add ? load(here) + acc[q][v] : acc[q][v]);
            }
    }
    if constexpr (RB > 1) {
        if (row < w.r) columns_outer<RB / 2, VN, Col>(w, slots, f, dy, panels, x, width, row, add, grad);
    }
}

template <class Col>
static inline void columns_outer(const tk_matrix& w, const Slots& slots, const float* dy, bool panels, const float* x,
                                 int64_t width, bool add, float* grad) {
    const int64_t flat = slots.count() * (w.c / LANES);
    int64_t f = 0;
    for (; f + 2 <= flat; f += 2)
        columns_outer<OUTER_TILE, 2, Col>(w, slots, f, dy, panels, x, width, 0, add, grad);
    if (f < flat) columns_outer<OUTER_TILE, 1, Col>(w, slots, f, dy, panels, x, width, 0, add, grad);
}
