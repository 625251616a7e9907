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

// Whether the instruction set in use and the processor have these products, and the library was built with them.
int32_t tk_bf16(void);
// Floats of scratch that any of the products needs for m rows of activations.
int64_t tk_bf16_workspace(const tk_parallel* p, const tk_matrix* w, int64_t m);
// Y = X W_A^T + bias; bias is in float32 and may be null.
void tk_bf16_spmm(const tk_parallel* p, const tk_matrix* w, const tk_view* x, const float* bias, tk_view* y, float* work);
// dX = dY W_A.
void tk_bf16_spmm_t(const tk_parallel* p, const tk_matrix* w, const tk_view* dy, tk_view* dx, float* work);
// dW = dY^T X at B, into grad [slots * r * c] in float32; unused slots get zero.
void tk_bf16_sddmm(const tk_parallel* p, const tk_matrix* w, const tk_view* dy, const tk_view* x, float* grad, float* work);

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
void spmm(const tk_parallel* p, const tk_matrix& w, const tk_view& x, const float* bias, const tk_view& y, float* work);
void spmm_t(const tk_parallel* p, const tk_matrix& w, const tk_view& dy, const tk_view& dx, float* work);
void sddmm(const tk_parallel* p, const tk_matrix& w, const tk_view& dy, const tk_view& x, float* grad, float* work);

}  // namespace bf16
}  // namespace topkast
#endif
