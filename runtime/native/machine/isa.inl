// One instruction set's kernels behind the table of dispatch.h. Included by isa_*.cpp, which set LANES and the tiles:
// B rows of a block at once, and vectors of batch TB beside them (T1 for single weights), as registers allow.

#include "pack.inl"
#include "epilogue.inl"
#include "products.inl"
#include "cells.inl"
#include "transposed.inl"
#include "few.inl"
#include "sddmm.inl"
#include "images.inl"
#include "conv.inl"
#include "planes.inl"
#include "positions.inl"

// Vectors of batch in a tile, where there are rows enough to fill it.
template <int RB>
static constexpr int WIDE = RB >= 8 ? TB : LANES == 8 && RB == 1 ? 8 : 4;

template <int RB, int C, class Col>
static void spmm_b(const tk_parallel* p, const tk_matrix& w, const tk_view& x, const float* bias, int32_t act,
                   const tk_view& y, float* work) {
    constexpr int T = WIDE<RB>;
    if constexpr (RB == 1 && C == 1) {
        if (sorts(w.rows, w.columns, forward_slots(w), x.m)) return spmm_cells<T, Col>(p, w, x, bias, act, y, work);
    }
    if (x.m <= LANES) return spmm_tiles<1, RB, C, Col>(p, w, x, bias, act, y, work);
    if (x.m <= 2 * LANES || T == 2) return spmm_tiles<2, RB, C, Col>(p, w, x, bias, act, y, work);
    spmm_tiles<T, RB, C, Col>(p, w, x, bias, act, y, work);
}

template <int RB, int C, class Col>
static void spmm_t_b(const tk_parallel* p, const tk_matrix& w, const tk_view& dy, const tk_view& dx, float* work) {
    constexpr int T = WIDE<RB>;
    if (dy.m <= LANES) return spmm_t_tiles<1, RB, C, Col>(p, w, dy, dx, work);
    if (dy.m <= 2 * LANES || T == 2) return spmm_t_tiles<2, RB, C, Col>(p, w, dy, dx, work);
    spmm_t_tiles<T, RB, C, Col>(p, w, dy, dx, work);
}

template <class Col>
static void spmm_t_turned(const tk_parallel* p, const tk_matrix& w, const tk_view& dy, const tk_view& dx, float* work) {
    float* const spare = work + turned_floats(w);
    if (w.rows <= 1 << 16) {
        spmm_b<1, 1, uint16_t>(p, transposed<Col, uint16_t>(p, w, work, spare), dy, nullptr, TK_NONE, dx, spare);
    } else {
        spmm_b<1, 1, int32_t>(p, transposed<Col, int32_t>(p, w, work, spare), dy, nullptr, TK_NONE, dx, spare);
    }
}

// f<RB, C, Col>: the largest group of rows that the block has, single columns known to the compiler.
#define DISPATCH(F, ...)                                                                \
    do {                                                                                \
        if (w->col_bytes == 2) {                                                        \
            DISPATCH_ROWS(F, uint16_t, __VA_ARGS__)                                     \
        } else {                                                                        \
            DISPATCH_ROWS(F, int32_t, __VA_ARGS__)                                      \
        }                                                                               \
    } while (0)
#define DISPATCH_ROWS(F, Col, ...)                                                      \
    if (w->c > 1) {                                                                     \
        if (w->r >= BLOCK_ROWS) F<BLOCK_ROWS, 0, Col>(__VA_ARGS__);                     \
        else F<1, 0, Col>(__VA_ARGS__);                                                 \
    } else if (w->r >= 8 && BLOCK_ROWS >= 8) F<BLOCK_ROWS, 1, Col>(__VA_ARGS__);        \
    else if (w->r >= 4) F<4, 1, Col>(__VA_ARGS__);                                      \
    else if (w->r >= 2) F<2, 1, Col>(__VA_ARGS__);                                      \
    else F<1, 1, Col>(__VA_ARGS__);

static void spmm(const tk_parallel* p, const tk_matrix* w, const tk_view* x, const float* bias, int32_t act, tk_view* y,
                 float* work) {
    if (x->width || y->width || !few(*w, x->m)) {
        DISPATCH(spmm_b, p, *w, *x, bias, act, *y, work);
    } else if (w->col_bytes == 2) {
        spmm_few<FEW, uint16_t>(p, *w, *x, bias, act, *y, work);
    } else {
        spmm_few<FEW, int32_t>(p, *w, *x, bias, act, *y, work);
    }
}
static void spmm_t(const tk_parallel* p, const tk_matrix* w, const tk_view* dy, tk_view* dx, float* work) {
    if (!turns(*w, dy->m)) {
        DISPATCH(spmm_t_b, p, *w, *dy, *dx, work);
    } else if (w->col_bytes == 2) {
        spmm_t_turned<uint16_t>(p, *w, *dy, *dx, work);
    } else {
        spmm_t_turned<int32_t>(p, *w, *dy, *dx, work);
    }
}

static void sddmm(const tk_parallel* p, const tk_matrix* w, const tk_view* dy, const tk_view* x, float* grad, float* work) {
    DISPATCH(sddmm_b, p, *w, *dy, *x, grad, work);
}

template <int RB, int C, class Col>
static void width_b(int64_t& found) {
    found = WIDE<RB> * LANES;
}
static int64_t width(const tk_matrix* w) {
    int64_t found = 0;
    DISPATCH(width_b, found);
    return found;
}

static void pack(const tk_parallel* p, const tk_view* from, tk_view* to) {
    const int64_t width = from->width + to->width, parts = ceil_div(from->n, PART);
    parallel(p, from->m / width * parts, [&](int64_t task) {
        const int64_t tile = task / parts, n0 = task % parts * PART;
        const int64_t n1 = n0 + PART < from->n ? n0 + PART : from->n;
        if (to->width) {
            pack(*from, tile * width, width, n0, n1, to->data + (tile * to->n + n0) * width);
        } else {
            unpack(from->data + (tile * from->n + n0) * width, tile * width, width, n0, n1, *to);
        }
    });
}

const Isa isa = {width, pack, spmm, spmm_t, sddmm, conv_forward, conv_input_grad, conv_weight_grad, conv_positions};
