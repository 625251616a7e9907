// Where dX is computed on a transpose of A (transposed.inl), and the scratch that the transpose needs.
#pragma once
#include "cells.h"
#include "topkast.h"

namespace topkast {

static constexpr int64_t TURNED_ROWS = 128;  // rows of activations from which on the transpose pays (measured)

inline int64_t forward_slots(const tk_matrix& w) {
    int64_t slots = 0;
    for (int64_t i = 0; i < w.rows; ++i) slots += w.row_fwd[i] - w.row_ptr[i];
    return slots;
}

// Only if the transpose is not larger than the dense weight. Beyond that density a dense product is faster anyway.
inline bool turns(const tk_matrix& w, int64_t m) {
    return w.r == 1 && w.c == 1 && m >= TURNED_ROWS && 2 * forward_slots(w) <= w.rows * w.columns;
}

// Floats of the transpose: pointers, values and columns, in whole lines of the cache.
inline int64_t turned_floats(int64_t columns, int64_t slots) { return (2 * (columns + 1) + 2 * slots + 15) / 16 * 16; }
inline int64_t turned_floats(const tk_matrix& w) { return turned_floats(w.columns, forward_slots(w)); }

}  // namespace topkast
