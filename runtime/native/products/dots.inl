// dW where the batch is the vector axis: dot products of RB rows of a block with J columns at once.

// How many columns beside RB rows: as many sums as there are registers for.
static constexpr int dots_cols(int rows) { return DOTS / rows < 8 ? DOTS / rows : 8; }

// grad at rows row..row+RB of the block, flat columns f..f+J of the row's slots, as far as there are; flat column
// i * c + j is column j of slot i.
template <int RB, int J, int C, class Col, class Span>
static inline void dots(const tk_matrix& w, const Slots& slots, int64_t f, const float* dy, const float* x,
                        const Span& span, int row, bool add, float* grad) {
    const Col* cols = static_cast<const Col*>(w.cols);
    const int64_t c = C ? C : w.c, last = slots.count() * c - 1;
    const float* xs[J];
    float* to[J];
#pragma GCC unroll 8
    for (int j = 0; j < J; ++j) {
        const int64_t here = f + j < last ? f + j : last, s = slots[here / c];
        xs[j] = x + (cols[s] * c + here % c) * span.width;
        to[j] = grad + (s * w.r + row) * c + here % c;
    }
    dy += row * span.width;
    V acc[RB * J];
#pragma GCC unroll 32
    for (int i = 0; i < RB * J; ++i) acc[i] = V{};
    for (int64_t t = 0; t < span.count; ++t) {
        const float *from = dy + t * span.dy_step, *at[J];
#pragma GCC unroll 8
        for (int j = 0; j < J; ++j) at[j] = xs[j] + t * span.x_step;
        for (int64_t m = 0; m < span.width; m += LANES) {
            V left[RB];
#pragma GCC unroll 8
            for (int q = 0; q < RB; ++q) left[q] = load(from + q * span.width + m);
#pragma GCC unroll 8
            for (int j = 0; j < J; ++j) {
                const V right = load(at[j] + m);
#pragma GCC unroll 8
                for (int q = 0; q < RB; ++q) acc[j * RB + q] += left[q] * right;
            }
        }
    }
    constexpr int even = (RB * J) & -(RB * J), group = even < LANES ? even : LANES;
    float found[RB * J - group + LANES];
#pragma GCC unroll 8
    for (int i = 0; i < RB * J; i += group) store(found + i, sums<group>(acc + i));
    const int64_t here = last + 1 - f;
    for (int j = 0; j < J && j < here; ++j)
#pragma GCC unroll 8
        for (int q = 0; q < RB; ++q) to[j][q * c] = add ? to[j][q * c] + found[j * RB + q] : found[j * RB + q];
}

template <int RB, int C, class Col, class Span>
static inline void block_dots(const tk_matrix& w, const Slots& slots, const float* dy, const float* x, const Span& span,
                              int row, bool add, float* grad) {
    constexpr int J = dots_cols(RB);
    const int64_t flat = slots.count() * (C ? C : w.c);
    for (; row + RB <= w.r; row += RB)
        for (int64_t f = 0; f < flat; f += J) dots<RB, J, C, Col>(w, slots, f, dy, x, span, row, add, grad);
    if constexpr (RB > 1) {
        if (row < w.r) block_dots<RB / 2, C, Col>(w, slots, dy, x, span, row, add, grad);
    }
}
