// What passes over a weight's values once: to and from the dense matrix [rows, columns], and the decay of B \ A. Bound by
// memory, the same on every instruction set.
#include <string.h>

#include "parallel.h"

using namespace topkast;

namespace {

// f(value position, matrix row, matrix column, length) for every row of every block of a block row's slots s..end.
template <class Col, class F>
inline void runs(const tk_matrix& w, int64_t i, int64_t s, int64_t end, const F& f) {
    const Col* cols = static_cast<const Col*>(w.cols);
    for (; s < end; ++s) {
        const int64_t k = static_cast<int64_t>(cols[s]) * w.c, length = w.columns - k < w.c ? w.columns - k : w.c;
        for (int64_t q = 0; q < w.r && i * w.r + q < w.rows; ++q) f((s * w.r + q) * w.c, i * w.r + q, k, length);
    }
}

void clear(float* data, int64_t begin, int64_t end) {
    if (begin < end) memset(data + begin, 0, sizeof(float) * (end - begin));
}

template <class F>
void each_row(const tk_parallel* p, const tk_matrix& w, const F& f) {
    const int64_t rows = ceil_div(w.rows, w.r), step = ceil_div(64, w.r);
    parallel(p, ceil_div(rows, step), [&](int64_t task) {
        for (int64_t i = task * step; i < rows && i < (task + 1) * step; ++i) f(i);
    });
}

template <class Col>
void scatter(const tk_parallel* p, const tk_matrix& w, float* dense) {
    each_row(p, w, [&](int64_t i) {
        const int64_t n0 = i * w.r, n1 = n0 + w.r < w.rows ? n0 + w.r : w.rows;
        clear(dense, n0 * w.columns, n1 * w.columns);
        runs<Col>(w, i, w.row_ptr[i], w.row_fwd[i], [&](int64_t v, int64_t n, int64_t k, int64_t length) {
            for (int64_t j = 0; j < length; ++j) dense[n * w.columns + k + j] = w.values[v + j];
        });
    });
}

template <class Col>
void gather(const tk_parallel* p, const tk_matrix& w, const tk_view& dense, float* grad) {
    each_row(p, w, [&](int64_t i) {
        if (w.r * w.c > 1)  // what hangs over the matrix' edge has no gradient
            clear(grad, w.row_ptr[i] * w.r * w.c, w.row_ptr[i + 1] * w.r * w.c);
        runs<Col>(w, i, w.row_ptr[i], w.row_ptr[i + 1], [&](int64_t v, int64_t n, int64_t k, int64_t length) {
            const float* from = dense.data + n * dense.stride_m + k * dense.stride_n;
            for (int64_t j = 0; j < length; ++j) grad[v + j] = from[j * dense.stride_n];
        });
    });
    const int64_t used = w.row_ptr[ceil_div(w.rows, w.r)];
    clear(grad, used * w.r * w.c, w.slots * w.r * w.c);
}

}  // namespace

void tk_dense(const tk_parallel* p, const tk_matrix* w, float* dense) {
    w->col_bytes == 2 ? scatter<uint16_t>(p, *w, dense) : scatter<int32_t>(p, *w, dense);
}
void tk_gather(const tk_parallel* p, const tk_matrix* w, const tk_view* dense, float* grad) {
    w->col_bytes == 2 ? gather<uint16_t>(p, *w, *dense, grad) : gather<int32_t>(p, *w, *dense, grad);
}
void tk_squares(const tk_parallel* p, const tk_matrix* w, const float* values, double* rows) {
    each_row(p, *w, [&](int64_t i) {
        // Eight sums side by side: one would wait for itself at every term.
        double sums[8] = {0};
        const int64_t end = w->row_fwd[i] * w->r * w->c;
        int64_t v = w->row_ptr[i] * w->r * w->c;
        for (; v + 8 <= end; v += 8)
            for (int64_t j = 0; j < 8; ++j) sums[j] += double(values[v + j]) * values[v + j];
        for (; v < end; ++v) sums[0] += double(values[v]) * values[v];
        rows[i] = ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
    });
}
void tk_scale_explored_once(const tk_parallel* p, const tk_matrix* w, float* factor, float* values) {
    const float by = *factor;
    each_row(p, *w, [&](int64_t i) {
        for (int64_t v = w->row_fwd[i] * w->r * w->c; v < w->row_ptr[i + 1] * w->r * w->c; ++v) values[v] *= by;
    });
    *factor = 1;
}

void tk_squares_of_all(const tk_parallel* p, const tk_matrix* w, int64_t count, double* rows, double* sums) {
    for (int64_t n = 0; n < count; ++n) {
        tk_squares(p, w + n, w[n].values, rows);
        sums[n] = 0;
        for (int64_t i = 0; i < ceil_div(w[n].rows, w[n].r); ++i) sums[n] += rows[i];
    }
}
void tk_scale_all_once(const tk_parallel* p, const tk_matrix* w, int64_t count, float* factors) {
    for (int64_t n = 0; n < count; ++n) tk_scale_explored_once(p, w + n, factors + n, const_cast<float*>(w[n].values));
}
