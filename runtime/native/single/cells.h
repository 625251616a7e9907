// Where products of single weights sort A by cells (cells.inl), and the scratch that this needs.
#pragma once
#include <stdint.h>

namespace topkast {

static constexpr int64_t CELL_INPUTS = 96;    // 64 rows of activations of them fill three quarters of the first-level cache
static constexpr int64_t CELL_OUTPUTS = 256;  // outputs of a range: their sums stay in the second-level cache
static constexpr int64_t CELL_ROWS = 256;     // rows of activations from which on sorting pays (measured)
static constexpr int64_t CELL_WEIGHTS = 8;    // weights of an output in a cell from which on it pays (measured)

inline int64_t cells_of(int64_t inputs) { return (inputs + CELL_INPUTS - 1) / CELL_INPUTS; }
inline int64_t ranges_of(int64_t outputs) { return (outputs + CELL_OUTPUTS - 1) / CELL_OUTPUTS; }

// Whether a product of A, with `slots` single weights, and m rows of activations sorts A.
inline bool sorts(int64_t outputs, int64_t inputs, int64_t slots, int64_t m) {
    return m >= CELL_ROWS && slots >= CELL_WEIGHTS * outputs * cells_of(inputs) && inputs < 1 << 24;
}

// Words of 32 bits of the sorted weights.
inline int64_t sorted_words(int64_t outputs, int64_t inputs, int64_t slots) {
    const int64_t ranges = ranges_of(outputs), cells = cells_of(inputs);
    return 2 * (ranges + 1) + ranges * cells * (1 + CELL_OUTPUTS) + 2 * slots + 16;
}

}  // namespace topkast
