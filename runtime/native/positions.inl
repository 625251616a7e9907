// Y = act(X * W_A + bias + Z) with positions as the vector axis, see positions.h.

static constexpr int SUMS = LANES >= 16 ? 24 : 12;  // vectors of sums that registers hold
static constexpr int LONGEST = 8;                   // vectors of positions in a run

// Vectors in the longest run where that many rows of a block are computed together.
static constexpr int longest_run(int rows) { return SUMS / rows < LONGEST ? SUMS / rows : LONGEST; }

// RB rows at T vectors of positions += A's slots s..end; out has T vectors a row.
template <int T, int RB, int C, class Col>
static inline void rows_at(const tk_matrix& w, int64_t s, int64_t end, int row, const int32_t* offset, const float* x,
                           float* out) {
    const Col* cols = static_cast<const Col*>(w.cols);
    const int c = C ? C : w.c, unit = w.r * c, piece = c < TERMS ? TERMS / c : 1;
    while (s < end) {
        V acc[RB][T] = {};
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
                float* to = out + (q * T + t) * LANES;
                store(to, load(to) + acc[q][t]);
            }
    }
}

// A block's rows, as many at once as registers hold.
template <int T, int RB, int C, class Col>
static inline void block_at(const tk_matrix& w, int64_t s, int64_t end, int row, const int32_t* offset, const float* x,
                            float* out) {
    if constexpr (RB * T <= SUMS)
        for (; row + RB <= w.r; row += RB) rows_at<T, RB, C, Col>(w, s, end, row, offset, x, out + row * T * LANES);
    if constexpr (RB > 1)
        if (row < w.r) block_at<T, RB / 2, C, Col>(w, s, end, row, offset, x, out);
}

// Some block rows at one run, whose vectors are T or, by recursion, fewer.
template <int T, int C, class Col, class Finish>
static void run_at(const Positions& plan, int64_t vectors, int64_t i0, int64_t i1, const float* bias, const float* x,
                   const Finish& finish) {
    if constexpr (T > 1) {
        if (vectors < T) return run_at<T - 1, C, Col>(plan, vectors, i0, i1, bias, x, finish);
    }
    const tk_matrix& w = plan.w;
    alignas(64) float out[64 * T * LANES];
    for (int64_t i = i0; i < i1; ++i) {
        const int64_t n0 = i * w.r, height = w.rows - n0 < w.r ? w.rows - n0 : w.r;
        for (int64_t n = 0; n < w.r; ++n) {
            const V start = splat(bias && n < height ? bias[n0 + n] : 0.0f);
            for (int t = 0; t < T; ++t) store(out + (n * T + t) * LANES, start);
        }
        block_at<T, 4, C, Col>(w, w.row_ptr[i], w.row_fwd[i], 0, plan.offset.data(), x, out);
        finish(n0, height, out);
    }
}

// One channel of some images, onto its planes.
static void pack_plane(const Positions& plan, const float* x, int64_t b0, int64_t channel, float* to) {
    const tk_conv& conv = plan.conv;
    const int64_t here = conv.batch - b0 < plan.images ? conv.batch - b0 : plan.images;
    for (const int64_t z0 : plan.places[0])
        for (const int64_t y0 : plan.places[1])
            for (const int64_t x0 : plan.places[2]) {
                // Of a row of the plane, left..right are read from the image.
                const int64_t stride = conv.stride[2], shift = x0 - conv.padding[2];
                const int64_t left = shift < 0 ? ceil_div(-shift, stride) : 0;
                const int64_t most = conv.in[2] - shift > 0 ? ceil_div(conv.in[2] - shift, stride) : 0;
                const int64_t start = left < plan.size[2] ? left : plan.size[2];
                const int64_t right = most < start ? start : most < plan.size[2] ? most : plan.size[2];
                for (int64_t b = 0; b < here; ++b)
                    for (int64_t z = 0; z < plan.size[0]; ++z)
                        for (int64_t y = 0; y < plan.size[1]; ++y, to += plan.size[2]) {
                            const int64_t in_z = z * conv.stride[0] + z0 - conv.padding[0];
                            const int64_t in_y = y * conv.stride[1] + y0 - conv.padding[1];
                            const bool inside = in_z >= 0 && in_z < conv.in[0] && in_y >= 0 && in_y < conv.in[1];
                            const int64_t end = inside ? right : start;
                            for (int64_t i = 0; i < start; ++i) to[i] = 0.0f;
                            for (int64_t i = end; i < plan.size[2]; ++i) to[i] = 0.0f;
                            if (!inside) continue;
                            const float* from = x + ((b0 + b) * conv.channels + channel) * plan.in_positions +
                                                (in_z * conv.in[1] + in_y) * conv.in[2] + shift;
                            if (stride == 1) {
                                for (int64_t i = start; i < end; ++i) to[i] = from[i];
                            } else {
                                for (int64_t i = start; i < end; ++i) to[i] = from[i * stride];
                            }
                        }
                to += (plan.images - here) * plan.image;
            }
}

static constexpr int64_t PLANES = 16 * 1024;  // floats of planes that one task packs

template <int C, class Col>
static void conv_positions_c(const tk_parallel* p, const Positions& plan, const float* x, const float* bias,
                             int32_t act, float* y, float* work) {
    const tk_matrix& w = plan.w;
    const tk_conv& conv = plan.conv;
    const int64_t channels = conv.channels / conv.groups, group_rows = w.rows / conv.groups;
    const int64_t rows = ceil_div(group_rows, w.r), runs = static_cast<int64_t>(plan.runs.size());
    // Rows are cut no finer than the threads need: a run's images are read again for each range.
    const int64_t wanted = p->threads > 1 ? ceil_div(4 * p->threads, conv.groups * runs) : 1;
    const int64_t step = ceil_div(rows, wanted), ranges = ceil_div(rows, step);
    const int64_t together = ceil_div(PLANES, plan.pitch);
    for (int64_t b0 = 0; b0 < conv.batch; b0 += plan.images) {
        parallel(p, ceil_div(conv.channels, together), [&](int64_t task) {
            for (int64_t channel = task * together; channel < conv.channels && channel < (task + 1) * together; ++channel)
                pack_plane(plan, x, b0, channel, work + channel * plan.pitch);
        });
        parallel(p, conv.groups * runs * ranges, [&](int64_t task) {
            const int64_t group = task / ranges / runs, range = task % ranges;
            const Positions::Run& run = plan.runs[task / ranges % runs];
            const int64_t i0 = group * rows + range * step, i1 = i0 + step < (group + 1) * rows ? i0 + step : (group + 1) * rows;
            const int64_t width = run.vectors * LANES;
            const auto finish = [&](int64_t n0, int64_t height, float* out) {
                activate(act, out, height * width);
                for (int64_t n = 0; n < height; ++n)
                    for (int64_t k = run.first; k < run.last; ++k) {
                        const Positions::Piece& piece = plan.pieces[k];
                        const int64_t b = b0 + piece.image;
                        if (b >= conv.batch) break;
                        float* to = y + (b * w.rows + n0 + n) * plan.out_positions + piece.y;
                        const float* from = out + n * width + piece.q - run.q0;
                        for (int64_t i = 0; i < piece.count; ++i) to[i] = from[i];
                    }
            };
            const float* in = work + group * channels * plan.pitch + run.q0;
            run_at<LONGEST, C, Col>(plan, run.vectors, i0, i1, bias, in, finish);
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
