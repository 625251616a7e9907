// All of θ from B's values and the reservoir, and back; and what belongs to B's values from one index to the next.
//
// The reservoir holds the blocks outside B in the order of the grid. A block row with n blocks in B leaves grid_cols - n
// of them there, so where a row's part begins follows from row_ptr alone, and rows can be worked on in any order.
#include <string.h>

#include <vector>

#include "parallel.h"

using namespace topkast;

namespace {

// f(i, slot_of): slot_of[k] is the slot of block column k in block row i, -1 outside B.
template <class Col, class F>
void each_row(const tk_parallel* p, const tk_matrix& w, const F& f) {
    const Col* cols = static_cast<const Col*>(w.cols);
    const int64_t rows = ceil_div(w.rows, w.r), grid_cols = ceil_div(w.columns, w.c), step = ceil_div(64, w.r);
    parallel(p, ceil_div(rows, step), [&](int64_t task) {
        std::vector<int32_t> slot_of(grid_cols);
        for (int64_t i = task * step; i < rows && i < (task + 1) * step; ++i) {
            memset(slot_of.data(), -1, sizeof(int32_t) * grid_cols);
            for (int64_t s = w.row_ptr[i]; s < w.row_ptr[i + 1]; ++s) slot_of[cols[s]] = static_cast<int32_t>(s);
            f(i, slot_of.data());
        }
    });
}

void clear_unused(const tk_matrix& w, float* values) {
    const int64_t used = w.row_ptr[ceil_div(w.rows, w.r)], size = static_cast<int64_t>(w.r) * w.c;
    memset(values + used * size, 0, sizeof(float) * (w.slots - used) * size);
}

// Every block between the dense matrix and where it is stored; what hangs over the matrix' edge is zero there.
template <class Col, bool store>
void blocks(const tk_parallel* p, const tk_matrix& w, float* values, float* reservoir, float* dense) {
    const int64_t grid_cols = ceil_div(w.columns, w.c), size = static_cast<int64_t>(w.r) * w.c;
    each_row<Col>(p, w, [&](int64_t i, const int32_t* slot_of) {
        float* outside = reservoir + (i * grid_cols - w.row_ptr[i]) * size;
        const int64_t n0 = i * w.r, height = w.rows - n0 < w.r ? w.rows - n0 : w.r;
        for (int64_t k = 0; k < grid_cols; ++k) {
            float* unit = values + slot_of[k] * size;
            if (slot_of[k] < 0) unit = outside, outside += size;
            const int64_t k0 = k * w.c, length = w.columns - k0 < w.c ? w.columns - k0 : w.c;
            if (store && (height < w.r || length < w.c)) memset(unit, 0, sizeof(float) * size);
            for (int64_t q = 0; q < height; ++q) {
                float *there = dense + (n0 + q) * w.columns + k0, *here = unit + q * w.c;
                for (int64_t j = 0; j < length; ++j) store ? here[j] = there[j] : there[j] = here[j];
            }
        }
    });
    if (store) clear_unused(w, values);
}

template <class Col>
void follow(const tk_parallel* p, const tk_matrix& before, const tk_matrix& after, const float* from, float* to) {
    const Col* cols = static_cast<const Col*>(after.cols);
    const int64_t size = static_cast<int64_t>(after.r) * after.c;
    each_row<Col>(p, before, [&](int64_t i, const int32_t* slot_of) {
        for (int64_t s = after.row_ptr[i]; s < after.row_ptr[i + 1]; ++s) {
            const int64_t old = slot_of[cols[s]];
            if (old < 0) {
                memset(to + s * size, 0, sizeof(float) * size);
            } else {
                memcpy(to + s * size, from + old * size, sizeof(float) * size);
            }
        }
    });
    clear_unused(after, to);
}

}  // namespace

void tk_assemble(const tk_parallel* p, const tk_matrix* w, const float* reservoir, float* dense) {
    float *values = const_cast<float*>(w->values), *outside = const_cast<float*>(reservoir);  // only read
    w->col_bytes == 2 ? blocks<uint16_t, false>(p, *w, values, outside, dense)
                      : blocks<int32_t, false>(p, *w, values, outside, dense);
}
void tk_store(const tk_parallel* p, const tk_matrix* w, const float* dense, float* values, float* reservoir) {
    float* from = const_cast<float*>(dense);  // only read
    w->col_bytes == 2 ? blocks<uint16_t, true>(p, *w, values, reservoir, from)
                      : blocks<int32_t, true>(p, *w, values, reservoir, from);
}
void tk_follow(const tk_parallel* p, const tk_matrix* before, const tk_matrix* after, const float* from, float* to) {
    after->col_bytes == 2 ? follow<uint16_t>(p, *before, *after, from, to) : follow<int32_t>(p, *before, *after, from, to);
}
