// Y = act(X * W_A + bias + Z) with positions as the vector axis, see positions.h.

static constexpr int SUMS = LANES >= 16 ? 24 : 12;  // vectors of sums that registers hold
static constexpr int LONGEST = 8;                   // vectors of positions in a run

// Vectors in the longest run where that many rows of a block are computed together.
static constexpr int longest_run(int rows) { return SUMS / rows < LONGEST ? SUMS / rows : LONGEST; }

// Where a run's sums go: rows of whole vectors, `pitch` floats apart.
struct Sums {
    float* data;
    int64_t pitch;
};

// RB rows at T vectors of positions = start + A's slots s..end.
template <int T, int RB, int C, class Col>
static inline void rows_at(const tk_matrix& w, int64_t s, int64_t end, int row, const float* start,
                           const int32_t* offset, const float* x, Sums out) {
    const Col* cols = static_cast<const Col*>(w.cols);
    const int c = C ? C : w.c, unit = w.r * c, piece = c < TERMS ? TERMS / c : 1;
    V acc[RB][T];
#pragma GCC unroll 4
    for (int q = 0; q < RB; ++q)
#pragma GCC unroll 8
        for (int t = 0; t < T; ++t) acc[q][t] = splat(start[row + q]);
    for (bool more = false;; more = true) {
        for (const int64_t stop = end - s < piece ? end : s + piece; s < stop; ++s) {
            const float* v = w.values + s * unit + row * c;
            const int64_t col = cols[s] * static_cast<int64_t>(c);
            const int here = C || col + c <= w.columns ? c : static_cast<int>(w.columns - col);
            for (int j = 0; j < here; ++j) {
                const float* in = x + offset[col + j];
                V values[RB];
#pragma GCC unroll 4
                for (int q = 0; q < RB; ++q) values[q] = splat(v[q * c + j]);
#pragma GCC unroll 8
                for (int t = 0; t < T; ++t) {
                    const V right = load(in + t * LANES);
#pragma GCC unroll 4
                    for (int q = 0; q < RB; ++q) acc[q][t] += values[q] * right;
                }
            }
        }
#pragma GCC unroll 4
        for (int q = 0; q < RB; ++q)
#pragma GCC unroll 8
            for (int t = 0; t < T; ++t) {
                float* to = out.data + (row + q) * out.pitch + t * LANES;
                store(to, more ? load(to) + acc[q][t] : acc[q][t]);
                acc[q][t] = V{};
            }
        if (s == end) return;
    }
}

// A block's rows, as many at once as registers hold.
template <int T, int RB, int C, class Col>
static inline void block_at(const tk_matrix& w, int64_t s, int64_t end, int row, const float* start,
                            const int32_t* offset, const float* x, Sums out) {
    if constexpr (RB * T <= SUMS)
        for (; row + RB <= w.r; row += RB) rows_at<T, RB, C, Col>(w, s, end, row, start, offset, x, out);
    if constexpr (RB > 1)
        if (row < w.r) block_at<T, RB / 2, C, Col>(w, s, end, row, start, offset, x, out);
}

// Block rows i0..i1 at one run, whose vectors are T or, by recursion, fewer. `y` is the first of the run's images.
template <int T, int C, class Col>
static void run_at(const Positions& plan, const Positions::Run& run, int64_t i0, int64_t i1, const float* bias,
                   int32_t act, const float* x, int64_t images, float* y) {
    if constexpr (T > 1) {
        if (run.vectors < T) return run_at<T - 1, C, Col>(plan, run, i0, i1, bias, act, x, images, y);
    }
    constexpr int64_t width = T * LANES;
    const tk_matrix& w = plan.w;
    const Positions::Piece* pieces = plan.pieces.data();
    const bool straight = run.last - run.first == 1 && pieces[run.first].count == width;  // a piece of Y as it lies
    alignas(64) float own[64 * width], start[64];
    for (int64_t i = i0; i < i1; ++i) {
        const int64_t n0 = i * w.r, height = w.rows - n0 < w.r ? w.rows - n0 : w.r;
        for (int64_t n = 0; n < w.r; ++n) start[n] = bias && n < height ? bias[n0 + n] : 0.0f;
        const auto at = [&](const Positions::Piece& piece, int64_t n) {
            return y + (piece.image * w.rows + n0 + n) * plan.out_positions + piece.y;
        };
        if (straight && height == w.r && pieces[run.first].image < images) {
            const Sums out{at(pieces[run.first], 0), plan.out_positions};
            block_at<T, 4, C, Col>(w, w.row_ptr[i], w.row_fwd[i], 0, start, plan.offset.data(), x, out);
            for (int64_t n = 0; n < height; ++n) activate(act, out.data + n * out.pitch, width);
            continue;
        }
        block_at<T, 4, C, Col>(w, w.row_ptr[i], w.row_fwd[i], 0, start, plan.offset.data(), x, {own, width});
        activate(act, own, height * width);
        for (int64_t n = 0; n < height; ++n)
            for (int64_t k = run.first; k < run.last && pieces[k].image < images; ++k) {
                const float* from = own + n * width + pieces[k].q - run.q0;
                float* to = at(pieces[k], n);
                for (int64_t j = 0; j < pieces[k].count; ++j) to[j] = from[j];
            }
    }
}

template <int C, class Col>
static void conv_positions_c(const tk_parallel* p, const Positions& plan, const float* x, const float* bias,
                             int32_t act, float* y, float* work) {
    const tk_matrix& w = plan.w;
    const tk_conv& conv = plan.conv;
    const int64_t channels = conv.channels / conv.groups, rows = ceil_div(w.rows / conv.groups, w.r);
    const int64_t runs = static_cast<int64_t>(plan.runs.size()), together = ceil_div(PLANES, plan.pitch);
    // Rows are cut no finer than the threads need: a run's images are read again for each range.
    const int64_t wanted = p->threads > 1 ? ceil_div(4 * p->threads, conv.groups * runs) : 1;
    const int64_t step = ceil_div(rows, wanted), ranges = ceil_div(rows, step);
    for (int64_t b0 = 0; b0 < conv.batch; b0 += plan.images) {
        const int64_t images = conv.batch - b0 < plan.images ? conv.batch - b0 : plan.images;
        const float* from = x + b0 * conv.channels * plan.in_positions;
        if (!plan.in_place)
            parallel(p, ceil_div(conv.channels, together), [&](int64_t task) {
                for (int64_t k = task * together; k < conv.channels && k < (task + 1) * together; ++k)
                    pack_plane(plan, from, images, k, [](int64_t) { return 0.0f; }, work + k * plan.pitch);
            });
        parallel(p, conv.groups * runs * ranges, [&](int64_t task) {
            const int64_t group = task / ranges / runs, range = task % ranges, end = (group + 1) * rows;
            const Positions::Run& run = plan.runs[task / ranges % runs];
            const int64_t i0 = group * rows + range * step, i1 = i0 + step < end ? i0 + step : end;
            const float* in = (plan.in_place ? from : work) + group * channels * plan.pitch + run.q0;
            run_at<LONGEST, C, Col>(plan, run, i0, i1, bias, act, in, images, y + b0 * w.rows * plan.out_positions);
        });
    }
}

static void conv_positions(const tk_parallel* p, Positions& plan, const float* x, const float* bias, int32_t act,
                           float* y, float* work) {
    const tk_matrix& w = plan.w;
    plan.cut(LANES, longest_run(w.r < 4 ? 2 : 4));
    if (w.c == 1 && w.col_bytes == 2) return conv_positions_c<1, uint16_t>(p, plan, x, bias, act, y, work);
    if (w.c == 1) return conv_positions_c<1, int32_t>(p, plan, x, bias, act, y, work);
    if (w.col_bytes == 2) return conv_positions_c<0, uint16_t>(p, plan, x, bias, act, y, work);
    conv_positions_c<0, int32_t>(p, plan, x, bias, act, y, work);
}
