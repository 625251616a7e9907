// Products in bfloat16: operands of 16 bits, sums in float32, as dense products in bfloat16 are made. They are for
// processors with AVX512_BF16, whose vdpbf16ps multiplies two pairs of numbers in each lane. It reads denormals as zero
// and gives none, as the dense products that use it do.
//
// tk_matrix and tk_view are those of topkast.h, but `values` and `data` point to bfloat16 and strides count such
// numbers. Results are rows: stride_n is 1. No activations are tiles.
#pragma once
#include "topkast.h"

#pragma GCC visibility push(default)
#ifdef __cplusplus
extern "C" {
#endif

// An activation of a result, computed while the result is in the cache: other = act(y), or if `backward` y = act'(other) y.
// act is 0 for GELU, 1 for GELU by tanh, 2 for SiLU. `other` has the size and the strides of y.
typedef struct {
    int32_t act, backward;
    tk_view other;
} tk_bf16_after;

// Whether the instruction set in use and the processor have these products, and the library was built with them.
int32_t tk_bf16(void);
// Floats of scratch that any of the products needs for m rows of activations.
int64_t tk_bf16_workspace(const tk_parallel* p, const tk_matrix* w, int64_t m);
// Y = X W_A^T + bias; bias is in float32. bias and after may be null.
void tk_bf16_spmm(const tk_parallel* p, const tk_matrix* w, const tk_view* x, const float* bias, tk_view* y,
                  const tk_bf16_after* after, float* work);
// dX = dY W_A. after may be null.
void tk_bf16_spmm_t(const tk_parallel* p, const tk_matrix* w, const tk_view* dy, tk_view* dx, const tk_bf16_after* after,
                    float* work);
// dW = dY^T X at B, into grad [slots * r * c] in float32; unused slots get zero.
void tk_bf16_sddmm(const tk_parallel* p, const tk_matrix* w, const tk_view* dy, const tk_view* x, float* grad, float* work);
// dx = act'(x) dy for `count` numbers side by side; dx may be dy.
void tk_bf16_activate_grad(const tk_parallel* p, int32_t act, const void* x, const void* dy, void* dx, int64_t count);

#ifdef __cplusplus
}
#endif
#pragma GCC visibility pop

// GCC 9 and older compilers do not know the instruction.
#if defined(__x86_64__) && (defined(__clang__) || __GNUC__ >= 10)
#define TOPKAST_BF16
namespace topkast {
namespace bf16 {

int64_t workspace(const tk_parallel* p, const tk_matrix& w, int64_t m);
void spmm(const tk_parallel* p, const tk_matrix& w, const tk_view& x, const float* bias, const tk_view& y,
          const tk_bf16_after* after, float* work);
void spmm_t(const tk_parallel* p, const tk_matrix& w, const tk_view& dy, const tk_view& dx, const tk_bf16_after* after,
            float* work);
void sddmm(const tk_parallel* p, const tk_matrix& w, const tk_view& dy, const tk_view& x, float* grad, float* work);
void activate_grad(const tk_parallel* p, int32_t act, const void* x, const void* dy, void* dx, int64_t count);

}  // namespace bf16
}  // namespace topkast
#endif
