// A convolution as products of lines, one line a position and channel of `width` images of the batch.
//
// An input is packed with its borders, lines [position][channel]; so the line that a weight meets for an output position
// is the position's own plus an offset which only the weight's column decides. The inner kernels of linear layers run
// on these offsets as their columns: no patch is ever copied. A transposed convolution with stride s is s^dims plain
// ones, each with the taps that reach its outputs (a phase).
#pragma once
#include <vector>

#include "parallel.h"

namespace topkast {

// Scratch, handed out piece by piece, each on cache lines of its own.
struct Scratch {
    float* next;
    float* floats(int64_t count) {
        float* found = next;
        next += ceil_div(count, 16) * 16;
        return found;
    }
    int32_t* ints(int64_t count) { return reinterpret_cast<int32_t*>(floats(count)); }
    int64_t* longs(int64_t count) { return reinterpret_cast<int64_t*>(floats(2 * count)); }
};

// Of one group and phase: its weights as single columns, where each meets the input, and where it came from.
struct Part {
    tk_matrix offsets;      // r x 1; cols: int32, lines from the position's own
    tk_matrix columns;      // the same with the matrix's columns, which ascend, from the group's first
    const int32_t* origin;  // slot * c + column of the block; null where the entries are the slots themselves
    int64_t first;          // of its entries among those of all parts, 0 where they are the slots themselves
};

struct ConvPlan {
    ConvPlan(const tk_matrix& w, const tk_conv& conv);

    // Parts [group][phase], with `lines` channels a position of the input; once for a plan.
    const Part* parts(const tk_parallel* p, int64_t lines, Scratch& scratch);

    const tk_matrix& w;
    const tk_conv& conv;
    int64_t in_positions, out_positions, plane;  // plane: positions of an input with its borders
    int64_t group_channels, group_rows;          // of input; of the matrix
    int64_t block_rows, taps, phases;            // block rows of a group
    int64_t entries, forward;                    // used slots * c, and those of A: of all parts together, or more
    const int32_t* in_at;                        // [in_positions] where it lies on the plane, -1 if nothing reads it
    const int32_t* out_at;                       // [out_positions] its own position on the plane
    const int32_t* phase_of;                     // [out_positions]
    const int32_t* border;                       // [borders] positions of the plane on which no input lies
    int64_t borders;

   private:
    int64_t tap(int d, int64_t phase, int64_t k) const;
    Part part(const tk_parallel* p, int64_t group, int64_t phase, int64_t lines, Scratch& scratch) const;
    int64_t before_[3], plane_[3], advance_[3], step_[3];
    std::vector<int32_t> in_at_, out_at_, phase_of_, border_;
    std::vector<Part> parts_;
};

}  // namespace topkast
