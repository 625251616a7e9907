// The three products of a convolution on the inner kernels of products.inl and sddmm.inl, see conv.h.

// An input with its borders, lines [position of the plane][channel].
static void pack_input(const tk_parallel* p, const ConvPlan& plan, const tk_image& x, int64_t b0, int64_t width,
                       float* lines) {
    const int64_t channels = plan.conv.channels;
    parallel(p, plan.borders, [&](int64_t i) {
        float* line = lines + plan.border[i] * channels * width;
        for (int64_t j = 0; j < channels * width; j += LANES) store(line + j, V{});
    });
    pack_images(p, x, plan.conv.batch, b0, width, 1, channels, channels, plan.in_positions, plan.in_at, lines);
}

static constexpr int64_t RUN = 16;  // positions of Y in one task: the weights of its rows stay in the first-level cache

template <int T, int RB>
static void conv_forward_tiles(const tk_parallel* p, ConvPlan& plan, const tk_image& x,
                               const float* bias, const tk_image& y, float* work) {
    const tk_matrix& w = plan.w;
    const tk_conv& conv = plan.conv;
    Scratch scratch{work};
    const int64_t width = T * LANES, channels = conv.channels, rows = plan.block_rows;
    const Part* parts = plan.parts(p, channels, scratch);
    float* px = scratch.floats(plan.plane * channels * width);
    const int64_t runs = plan.out_positions < 2 * RUN ? 1 : plan.out_positions / RUN;
    const int64_t step = ceil_div(ROWS / 2, w.r), ranges = ceil_div(rows, step);
    for (int64_t b0 = 0; b0 < conv.batch; b0 += width) {
        pack_input(p, plan, x, b0, width, px);
        parallel(p, conv.groups * runs * ranges, [&](int64_t task) {
            const int64_t group = task / ranges / runs, run = task / ranges % runs, range = task % ranges;
            const int64_t p0 = run * RUN, p1 = run + 1 == runs ? plan.out_positions : p0 + RUN;
            const int64_t i0 = range * step, i1 = i0 + step < rows ? i0 + step : rows;
            const int64_t n0 = i0 * w.r, pitch = (i1 - i0) * w.r;
            const int64_t n1 = i1 * w.r < plan.group_rows ? i1 * w.r : plan.group_rows;
            alignas(64) float out[(2 * RUN) * (ROWS / 2 + 64) * T * LANES];
            for (int64_t o = p0; o < p1; ++o) {
                const tk_matrix& part = parts[group * plan.phases + plan.phase_of[o]].offsets;
                const float* in = px + (plan.out_at[o] * channels + group * plan.group_channels) * width;
                float* sums = out + (o - p0) * pitch * width;
                for (int64_t n = 0; n < pitch; ++n) {
                    const V start = splat(bias && n0 + n < n1 ? bias[group * plan.group_rows + n0 + n] : 0.0f);
                    for (int t = 0; t < T; ++t) store(sums + n * width + t * LANES, start);
                }
                for (int64_t i = i0; i < i1; ++i)
                    block_row<T, RB, 1, int32_t, true>(part, part.row_ptr[i], part.row_fwd[i], 0, in,
                                                       sums + (i - i0) * w.r * width);
            }
            const int64_t c0 = group * plan.group_rows;
            const Box box{conv.groups * plan.group_rows, plan.out_positions, c0 + n0, c0 + n1, p0, p1, nullptr, pitch};
            move_box<false>(y, conv.batch, b0, width, box, out - (c0 + n0) * width);
        });
    }
}

template <int T, int RB>
static void conv_input_grad_tiles(const tk_parallel* p, ConvPlan& plan, const tk_image& dy,
                                  const tk_image& dx, float* work) {
    const tk_matrix& w = plan.w;
    const tk_conv& conv = plan.conv;
    Scratch scratch{work};
    const int64_t width = T * LANES, rows = plan.block_rows, padded = rows * w.r;
    // A task has some channels of dX, at all positions: enough tasks for the threads, and what one position of Y adds
    // to is close by. Each sum is made in the order of the positions, however the channels are cut.
    const int64_t fit = DX_CELL<RB> / (4 * width * plan.taps);
    int64_t cells = ceil_div(plan.group_channels, fit < 1 ? 1 : fit);
    const int64_t wanted = p->threads > 1 ? ceil_div(2 * p->threads, conv.groups) : 1;
    cells = cells < wanted ? wanted : cells;
    const int64_t cell = ceil_div(plan.group_channels, cells);
    cells = ceil_div(plan.group_channels, cell);
    const Part* parts = plan.parts(p, cell, scratch);
    const int64_t count = conv.groups * plan.phases, size = (cells + 1) * rows;
    int32_t* starts = scratch.ints(count * size);
    for (int64_t k = 0; k < count; ++k)
        find_starts<int32_t>(p, parts[k].columns, cell * plan.taps, cells, starts + k * size);
    float* pdy = scratch.floats(plan.out_positions * conv.groups * padded * width);
    const int64_t floats = plan.plane * cell * width;
    float* pdx = scratch.floats(2 * conv.groups * cells * floats);
    // Long sums are made by pieces, for accuracy: a line gets so many terms, on average, from each block row.
    const int64_t terms = 1 + plan.forward * w.r / (rows * conv.channels);
    const int64_t step = terms < TERMS ? TERMS / terms : 1;
    for (int64_t b0 = 0; b0 < conv.batch; b0 += width) {
        pack_images(p, dy, conv.batch, b0, width, conv.groups, plan.group_rows, padded, plan.out_positions, nullptr, pdy);
        parallel(p, conv.groups * cells, [&](int64_t task) {
            const int64_t group = task / cells, k = task % cells, c0 = k * cell;
            const int64_t c1 = c0 + cell < plan.group_channels ? c0 + cell : plan.group_channels;
            float *dest = pdx + 2 * task * floats, *piece = dest + floats;
            for (int64_t i0 = 0; i0 < rows; i0 += step) {
                const int64_t i1 = i0 + step < rows ? i0 + step : rows;
                float* out = i0 ? piece : dest;
                for (int64_t i = 0; i < floats; i += LANES) store(out + i, V{});
                for (int64_t o = 0; o < plan.out_positions; ++o) {
                    const int64_t part = group * plan.phases + plan.phase_of[o];
                    const float* in = pdy + (o * conv.groups + group) * padded * width;
                    float* to = out + (plan.out_at[o] * cell - c0) * width;
                    const int32_t *begin = starts + part * size + k * rows, *end = begin + rows;
                    for (int64_t i = i0; i < i1; ++i)
                        block_row<T, RB, 1, int32_t, false>(parts[part].offsets, begin[i], end[i], 0,
                                                            in + i * w.r * width, to);
                }
                if (i0)
                    for (int64_t i = 0; i < floats; i += LANES) store(dest + i, load(dest + i) + load(piece + i));
            }
            const int64_t first = group * plan.group_channels;
            const Box box{conv.channels, plan.in_positions, first + c0, first + c1, 0, plan.in_positions,
                          plan.in_at, cell};
            move_box<false>(dx, conv.batch, b0, width, box, dest - (first + c0) * width);
        });
    }
}

// Lines [LANES rows] of dY as panels [width][LANES], in place.
static void to_panels(const tk_parallel* p, int64_t count, int64_t width, float* lines) {
    parallel(p, ceil_div(count, 16), [&](int64_t task) {
        for (int64_t panel = task * 16; panel < count && panel < (task + 1) * 16; ++panel) {
            float* at = lines + panel * LANES * width;
            V v[4 * LANES];
            for (int64_t i = 0; i < width / LANES; ++i) {
                for (int j = 0; j < LANES; ++j) v[i * LANES + j] = load(at + j * width + i * LANES);
                transpose(v + i * LANES);
            }
            for (int64_t m = 0; m < width; ++m) store(at + m * LANES, v[m]);
        }
    });
}

template <int RB>
static void conv_weight_grad_b(const tk_parallel* p, ConvPlan& plan, const tk_image& dy,
                                   const tk_image& x, float* grad, float* work) {
    const tk_matrix& w = plan.w;
    const tk_conv& conv = plan.conv;
    Scratch scratch{work};
    const int64_t lanes = ceil_div(conv.batch, LANES), width = (lanes < 4 ? lanes : 4) * LANES;
    const int64_t channels = conv.channels, rows = plan.block_rows, padded = rows * w.r, lines = conv.groups * padded;
    const bool panels = w.r % LANES == 0;
    const Part* parts = plan.parts(p, channels, scratch);
    float* px = scratch.floats(plan.plane * channels * width);
    float* pdy = scratch.floats(plan.out_positions * lines * width);
    const bool in_place = !parts[0].origin;
    float* found = in_place ? grad : scratch.floats(plan.entries * w.r);
    const int64_t chunk = 4 * TERMS / width;  // positions whose sums are one chain of additions
    const int64_t most = ceil_div(ROWS, w.r), each = ceil_div(rows, 2 * p->threads), step = each < most ? each : most;
    const int64_t ranges = ceil_div(rows, step);
    for (int64_t b0 = 0; b0 < conv.batch; b0 += width) {
        pack_input(p, plan, x, b0, width, px);
        pack_images(p, dy, conv.batch, b0, width, conv.groups, plan.group_rows, padded, plan.out_positions, nullptr, pdy);
        if (panels) to_panels(p, plan.out_positions * lines / LANES, width, pdy);
        parallel(p, conv.groups * plan.phases * ranges, [&](int64_t task) {
            const int64_t which = task / ranges, group = which / plan.phases, phase = which % plan.phases;
            const int64_t i0 = task % ranges * step, i1 = i0 + step < rows ? i0 + step : rows;
            const tk_matrix& part = parts[which].offsets;
            bool add = b0 > 0;
            for (int64_t o = 0; o < plan.out_positions;) {
                if (plan.phase_of[o] != phase) {
                    ++o;
                    continue;
                }
                // As many positions as lie at equal distances, in Y and on the plane.
                int64_t next = o + 1, count = 1, dy_step = 0, x_step = 0;
                for (int64_t from = o; count < chunk; ++count, from = next++) {
                    while (next < plan.out_positions && plan.phase_of[next] != phase) ++next;
                    if (next == plan.out_positions) break;
                    if (count == 1) {
                        dy_step = next - from;
                        x_step = plan.out_at[next] - plan.out_at[from];
                    } else if (next - from != dy_step || plan.out_at[next] - plan.out_at[from] != x_step) {
                        break;
                    }
                }
                const Stretches span{width, count, dy_step * lines * width, x_step * channels * width};
                const float* in = px + (plan.out_at[o] * channels + group * plan.group_channels) * width;
                float* to = found + parts[which].first * w.r;
                for (int64_t i = i0; i < i1; ++i) {
                    const float* from = pdy + (o * lines + group * padded + i * w.r) * width;
                    const Slots slots{part.row_ptr[i], part.row_ptr[i + 1], 0, 0};
                    if (panels) {
                        rows_outer<1, int32_t>(part, slots, from, in, span, add, to);
                    } else {
                        block_dots<RB, 1, int32_t>(part, slots, from, in, span, 0, add, to);
                    }
                }
                add = true;
                o = next;
            }
            if (add) return;
            for (int64_t n = part.row_ptr[i0] * w.r; n < part.row_ptr[i1] * w.r; ++n)  // no output has these taps
                found[parts[which].first * w.r + n] = 0.0f;
        });
    }
    const int64_t unit = w.r * w.c;
    for (int64_t i = in_place ? plan.entries * unit : 0; i < w.slots * unit; ++i) grad[i] = 0.0f;
    if (in_place) return;
    for (int64_t k = 0; k < conv.groups * plan.phases; ++k) {
        const Part& part = parts[k];
        parallel(p, rows, [&](int64_t i) {
            for (int64_t n = part.offsets.row_ptr[i]; n < part.offsets.row_ptr[i + 1]; ++n) {
                float* to = grad + part.origin[n] / w.c * unit + part.origin[n] % w.c;
                for (int q = 0; q < w.r; ++q) to[q * w.c] = found[(part.first + n) * w.r + q];
            }
        });
    }
}

template <int RB>
static void conv_forward_b(const tk_parallel* p, ConvPlan& plan, const tk_image& x, const float* bias,
                           const tk_image& y, float* work) {
    constexpr int T = RB >= 8 ? TB : 4;
    if (plan.conv.batch <= LANES) return conv_forward_tiles<1, RB>(p, plan, x, bias, y, work);
    if (plan.conv.batch <= 2 * LANES || T == 2) return conv_forward_tiles<2, RB>(p, plan, x, bias, y, work);
    conv_forward_tiles<T, RB>(p, plan, x, bias, y, work);
}

template <int RB>
static void conv_input_grad_b(const tk_parallel* p, ConvPlan& plan, const tk_image& dy, const tk_image& dx,
                              float* work) {
    constexpr int T = RB >= 8 ? TB : 4;
    if (plan.conv.batch <= LANES) return conv_input_grad_tiles<1, RB>(p, plan, dy, dx, work);
    if (plan.conv.batch <= 2 * LANES || T == 2) return conv_input_grad_tiles<2, RB>(p, plan, dy, dx, work);
    conv_input_grad_tiles<T, RB>(p, plan, dy, dx, work);
}

#define DISPATCH_CONV(F, ...)                                                \
    do {                                                                     \
        const int32_t r = plan.w.r;                                          \
        if (r >= 8 && BLOCK_ROWS >= 8) return F<BLOCK_ROWS>(__VA_ARGS__);    \
        if (r >= 4) return F<4>(__VA_ARGS__);                                \
        if (r >= 2) return F<2>(__VA_ARGS__);                                \
        return F<1>(__VA_ARGS__);                                            \
    } while (0)

static void conv_forward(const tk_parallel* p, ConvPlan& plan, const tk_image& x, const float* bias,
                         const tk_image& y, float* work) {
    DISPATCH_CONV(conv_forward_b, p, plan, x, bias, y, work);
}
static void conv_input_grad(const tk_parallel* p, ConvPlan& plan, const tk_image& dy, const tk_image& dx,
                            float* work) {
    DISPATCH_CONV(conv_input_grad_b, p, plan, dy, dx, work);
}
static void conv_weight_grad(const tk_parallel* p, ConvPlan& plan, const tk_image& dy, const tk_image& x, float* grad,
                             float* work) {
    DISPATCH_CONV(conv_weight_grad_b, p, plan, dy, x, grad, work);
}
