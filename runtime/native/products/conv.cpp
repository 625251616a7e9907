// Where the weights and positions of a convolution lie, see conv.h.
#include "conv.h"

#include <algorithm>

#include "dispatch.h"
#include "positions.h"

using namespace topkast;

static int64_t product(const int64_t* of) { return of[0] * of[1] * of[2]; }

template <class F>
static void each_position(const int64_t* size, const F& f) {
    int64_t at[3];
    for (at[0] = 0; at[0] < size[0]; ++at[0])
        for (at[1] = 0; at[1] < size[1]; ++at[1])
            for (at[2] = 0; at[2] < size[2]; ++at[2]) f(at);
}

// Position on the plane, along one dim, of tap k for the first output of a phase; negative if the phase lacks the tap.
int64_t ConvPlan::tap(int d, int64_t phase, int64_t k) const {
    if (!conv.transposed) return k * conv.dilation[d];
    const int64_t shift = phase + conv.padding[d] - k * conv.dilation[d];
    return shift % conv.stride[d] ? -1 : shift / conv.stride[d] + before_[d];
}

ConvPlan::ConvPlan(const tk_matrix& w, const tk_conv& conv) : w(w), conv(conv) {
    in_positions = product(conv.in);
    out_positions = product(conv.out);
    taps = product(conv.kernel);
    group_channels = conv.channels / conv.groups;
    group_rows = conv.transposed ? w.rows : w.rows / conv.groups;
    block_rows = ceil_div(group_rows, w.r);
    const int64_t all = ceil_div(w.rows, w.r);
    entries = w.row_ptr[all] * w.c;
    forward = 0;
    for (int64_t i = 0; i < all; ++i) forward += (w.row_fwd[i] - w.row_ptr[i]) * w.c;
    std::vector<bool> read[3];  // whether a tap reaches a position, by dim
    for (int d = 0; d < 3; ++d) {
        step_[d] = conv.transposed ? conv.stride[d] : 1;
        advance_[d] = conv.transposed ? 1 : conv.stride[d];
        const int64_t reach = (conv.kernel[d] - 1) * conv.dilation[d];
        before_[d] = conv.transposed ? ceil_div(reach, conv.stride[d]) : conv.padding[d];
        read[d].resize(before_[d] + conv.in[d]);
        for (int64_t o = 0; o < conv.out[d]; ++o)
            for (int64_t k = 0; k < conv.kernel[d]; ++k) {
                const int64_t first = tap(d, o % step_[d], k);
                if (first < 0) continue;
                const int64_t at = first + o / step_[d] * advance_[d];
                if (at >= static_cast<int64_t>(read[d].size())) read[d].resize(at + 1);
                read[d][at] = true;
            }
        plane_[d] = static_cast<int64_t>(read[d].size());
    }
    plane = product(plane_);
    phases = product(step_);
    std::vector<bool> inside(plane);
    each_position(conv.in, [&](const int64_t* at) {
        int64_t where = 0;
        bool used = true;
        for (int d = 0; d < 3; ++d) {
            where = where * plane_[d] + at[d] + before_[d];
            used = used && read[d][at[d] + before_[d]];
        }
        inside[where] = true;
        in_at_.push_back(used ? static_cast<int32_t>(where) : -1);
    });
    each_position(conv.out, [&](const int64_t* at) {
        int64_t where = 0, phase = 0;
        for (int d = 0; d < 3; ++d) {
            where = where * plane_[d] + at[d] / step_[d] * advance_[d];
            phase = phase * step_[d] + at[d] % step_[d];
        }
        out_at_.push_back(static_cast<int32_t>(where));
        phase_of_.push_back(static_cast<int32_t>(phase));
    });
    for (int64_t where = 0; where < plane; ++where)
        if (!inside[where]) border_.push_back(static_cast<int32_t>(where));
    in_at = in_at_.data();
    out_at = out_at_.data();
    phase_of = phase_of_.data();
    border = border_.data();
    borders = static_cast<int64_t>(border_.size());
}

const Part* ConvPlan::parts(const tk_parallel* p, int64_t lines, Scratch& scratch) {
    for (int64_t group = 0; group < conv.groups; ++group)
        for (int64_t phase = 0; phase < phases; ++phase) parts_.push_back(part(p, group, phase, lines, scratch));
    return parts_.data();
}

// f(slot, its block column) over the first (explored = 0) or second part of a block row.
template <class F>
static void each_slot(const tk_matrix& w, int64_t row, int explored, const F& f) {
    const int64_t begin = explored ? w.row_fwd[row] : w.row_ptr[row];
    const int64_t end = explored ? w.row_ptr[row + 1] : w.row_fwd[row];
    for (int64_t s = begin; s < end; ++s)
        f(s, w.col_bytes == 2 ? static_cast<const uint16_t*>(w.cols)[s] : static_cast<const int32_t*>(w.cols)[s]);
}

Part ConvPlan::part(const tk_parallel* p, int64_t group, int64_t phase, int64_t lines, Scratch& scratch) const {
    // By column of the matrix: its offset, negative if it is another part's, or past the last column of the matrix.
    const int64_t columns = ceil_div(w.columns, w.c) * w.c;
    int32_t* offset = scratch.ints(columns);
    std::fill_n(offset, columns, -1);
    const int64_t f[3] = {phase / step_[2] / step_[1], phase / step_[2] % step_[1], phase % step_[2]};
    const int64_t first = conv.transposed ? group * group_channels : 0;
    for (int64_t channel = 0; channel < group_channels; ++channel)
        for (int64_t k = 0; k < taps; ++k) {
            const int64_t z = tap(0, f[0], k / conv.kernel[2] / conv.kernel[1]);
            const int64_t y = tap(1, f[1], k / conv.kernel[2] % conv.kernel[1]), x = tap(2, f[2], k % conv.kernel[2]);
            if (z < 0 || y < 0 || x < 0) continue;
            const int64_t line = ((z * plane_[1] + y) * plane_[2] + x) * lines + channel;
            offset[(first + channel) * taps + k] = static_cast<int32_t>(line);
        }
    Part found;
    tk_matrix of = w;
    const int64_t row0 = conv.transposed ? 0 : group * block_rows;
    of.rows = group_rows;
    of.c = 1;
    of.col_bytes = 4;
    const auto over_rows = [&](const auto& body) {
        const int64_t step = 64;
        parallel(p, ceil_div(block_rows, step), [&](int64_t task) {
            for (int64_t i = task * step; i < block_rows && i < (task + 1) * step; ++i) body(i);
        });
    };
    int32_t *offsets, *ascending, *origin = nullptr;
    if (w.c == 1 && !conv.transposed) {
        of.row_ptr += row0;
        of.row_fwd += row0;
        const int64_t begin = of.row_ptr[0], count = of.row_ptr[block_rows] - begin;
        offsets = scratch.ints(count) - begin;
        ascending = scratch.ints(count) - begin;
        over_rows([&](int64_t i) {
            for (int explored = 0; explored < 2; ++explored)
                each_slot(w, row0 + i, explored, [&](int64_t s, int64_t col) {
                    offsets[s] = offset[col];
                    ascending[s] = static_cast<int32_t>(col);
                });
        });
    } else {
        int64_t* row_ptr = scratch.longs(block_rows + 1);
        int64_t* row_fwd = scratch.longs(block_rows);
        row_ptr[0] = 0;
        over_rows([&](int64_t i) {
            int64_t count[2] = {0, 0};
            for (int explored = 0; explored < 2; ++explored)
                each_slot(w, row0 + i, explored, [&](int64_t, int64_t col) {
                    for (int j = 0; j < w.c; ++j) count[explored] += offset[col * w.c + j] >= 0;
                });
            row_fwd[i] = count[0];
            row_ptr[i + 1] = count[0] + count[1];
        });
        for (int64_t i = 0; i < block_rows; ++i) {
            row_fwd[i] += row_ptr[i];
            row_ptr[i + 1] += row_ptr[i];
        }
        of.row_ptr = row_ptr;
        of.row_fwd = row_fwd;
        const int64_t count = row_ptr[block_rows];
        offsets = scratch.ints(count);
        ascending = scratch.ints(count);
        origin = scratch.ints(count);
        float* values = w.values ? scratch.floats(count * w.r) : nullptr;
        over_rows([&](int64_t i) {
            int64_t n = row_ptr[i];
            for (int explored = 0; explored < 2; ++explored)
                each_slot(w, row0 + i, explored, [&](int64_t s, int64_t col) {
                    for (int j = 0; j < w.c; ++j) {
                        if (offset[col * w.c + j] < 0) continue;
                        offsets[n] = offset[col * w.c + j];
                        ascending[n] = static_cast<int32_t>(col * w.c + j - first * taps);
                        origin[n] = static_cast<int32_t>(s * w.c + j);
                        if (values)
                            for (int q = 0; q < w.r; ++q) values[n * w.r + q] = w.values[(s * w.r + q) * w.c + j];
                        ++n;
                    }
                });
        });
        of.values = values;
    }
    found.offsets = found.columns = of;
    found.offsets.cols = offsets;
    found.columns.cols = ascending;
    found.origin = origin;
    found.first = 0;
    if (origin)
        for (const Part& before : parts_) found.first += before.offsets.row_ptr[block_rows];
    return found;
}

int64_t tk_conv_workspace(const tk_matrix* w, const tk_conv* conv) {
    const ConvPlan plan(*w, *conv);
    const int64_t parts = conv->groups * plan.phases;
    // Lines of 64 at most; cells of dX round the channels up. Where rows start in cells of at least one channel.
    const int64_t lanes = conv->batch < 64 ? ceil_div(conv->batch, 16) * 16 : 64;
    const int64_t lines = 4 * conv->channels * plan.plane + plan.out_positions * conv->groups * plan.block_rows * w->r;
    const int64_t starts = 2 * (plan.group_channels + 2) * plan.block_rows;
    const int64_t tables = ceil_div(w->columns, w->c) * w->c + starts + 4 * (plan.block_rows + 1) + 10 * 16;
    return lanes * lines + parts * tables + plan.entries * (3 + 2 * w->r) + 64;
}

void tk_conv_forward(const tk_parallel* p, const tk_matrix* w, const tk_conv* conv, const tk_image* x,
                     const float* bias, const tk_image* y, float* work) {
    ConvPlan plan(*w, *conv);
    isa().conv_forward(p, plan, *x, bias, *y, work);
}
void tk_conv_input_grad(const tk_parallel* p, const tk_matrix* w, const tk_conv* conv, const tk_image* dy,
                        const tk_image* dx, float* work) {
    ConvPlan plan(*w, *conv);
    isa().conv_input_grad(p, plan, *dy, *dx, work);
}
void tk_conv_weight_grad(const tk_parallel* p, const tk_matrix* w, const tk_conv* conv, const tk_image* dy,
                         const tk_image* x, float* grad, float* work) {
    ConvPlan plan(*w, *conv);
    isa().conv_weight_grad(p, plan, *dy, *x, grad, work);
}
int64_t tk_conv_positions_workspace(const tk_matrix* w, const tk_conv* conv) { return Positions(*w, *conv).floats(); }
void tk_conv_positions(const tk_parallel* p, const tk_matrix* w, const tk_conv* conv, const float* x, const float* bias,
                       int32_t act, float* y, float* work) {
    Positions plan(*w, *conv);
    isa().conv_positions(p, plan, x, bias, act, y, work);
}
