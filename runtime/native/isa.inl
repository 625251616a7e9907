// One instruction set's kernels behind the table of dispatch.h. Included by isa_*.cpp, which set LANES and the tiles:
// B rows of a block at once, and vectors of batch TB beside them (T1 for single weights), as registers allow.

#include "vec.inl"
#include "pack.inl"
#include "products.inl"
#include "sddmm.inl"
#include "images.inl"
#include "conv.inl"

template <int RB, int C, class Col>
static void spmm_b(const tk_parallel* p, const tk_matrix& w, const tk_view& x, const float* bias, const tk_view& y,
                   float* work) {
    constexpr int T = RB >= 8 ? TB : 4;
    if (x.m <= LANES) return spmm_tiles<1, RB, C, Col>(p, w, x, bias, y, work);
    if (x.m <= 2 * LANES || T == 2) return spmm_tiles<2, RB, C, Col>(p, w, x, bias, y, work);
    spmm_tiles<T, RB, C, Col>(p, w, x, bias, y, work);
}

template <int RB, int C, class Col>
static void spmm_t_b(const tk_parallel* p, const tk_matrix& w, const tk_view& dy, const tk_view& dx, float* work) {
    constexpr int T = RB >= 8 ? TB : 4;
    if (dy.m <= LANES) return spmm_t_tiles<1, RB, C, Col>(p, w, dy, dx, work);
    if (dy.m <= 2 * LANES || T == 2) return spmm_t_tiles<2, RB, C, Col>(p, w, dy, dx, work);
    spmm_t_tiles<T, RB, C, Col>(p, w, dy, dx, work);
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

static void spmm(const tk_parallel* p, const tk_matrix* w, const tk_view* x, const float* bias, tk_view* y, float* work) {
    DISPATCH(spmm_b, p, *w, *x, bias, *y, work);
}
static void spmm_t(const tk_parallel* p, const tk_matrix* w, const tk_view* dy, tk_view* dx, float* work) {
    DISPATCH(spmm_t_b, p, *w, *dy, *dx, work);
}

template <int RB, int C, class Col>
static void sddmm_b(const tk_parallel* p, const tk_matrix& w, const tk_view& dy, const tk_view& x, float* grad,
                    float* work) {
    sddmm_tiles<(RB > 4 ? 4 : RB), SDDMM_COLS, C, Col>(p, w, dy, x, grad, work);
}
static void sddmm(const tk_parallel* p, const tk_matrix* w, const tk_view* dy, const tk_view* x, float* grad, float* work) {
    DISPATCH(sddmm_b, p, *w, *dy, *x, grad, work);
}

const Isa isa = {spmm, spmm_t, sddmm, conv_forward, conv_input_grad, conv_weight_grad};
