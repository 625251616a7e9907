// The C functions of bf16.h. Without the instruction tk_bf16 says so, and the others do nothing.
#include "bf16.h"

#include "processor.h"

#ifdef TOPKAST_BF16
using namespace topkast;

int32_t tk_bf16(void) { return tk_isa() == 2 && processor().bf16; }
int64_t tk_bf16_workspace(const tk_parallel* p, const tk_matrix* w, int64_t m) { return bf16::workspace(p, *w, m); }
void tk_bf16_spmm(const tk_parallel* p, const tk_matrix* w, const tk_view* x, const float* bias, tk_view* y,
                  float* work) {
    bf16::spmm(p, *w, *x, bias, *y, work);
}
void tk_bf16_spmm_t(const tk_parallel* p, const tk_matrix* w, const tk_view* dy, tk_view* dx, float* work) {
    bf16::spmm_t(p, *w, *dy, *dx, work);
}
void tk_bf16_sddmm(const tk_parallel* p, const tk_matrix* w, const tk_view* dy, const tk_view* x, float* grad,
                   float* work) {
    bf16::sddmm(p, *w, *dy, *x, grad, work);
}
#else
int32_t tk_bf16(void) { return 0; }
int64_t tk_bf16_workspace(const tk_parallel*, const tk_matrix*, int64_t) { return 0; }
void tk_bf16_spmm(const tk_parallel*, const tk_matrix*, const tk_view*, const float*, tk_view*, float*) {}
void tk_bf16_spmm_t(const tk_parallel*, const tk_matrix*, const tk_view*, tk_view*, float*) {}
void tk_bf16_sddmm(const tk_parallel*, const tk_matrix*, const tk_view*, const tk_view*, float*, float*) {}
#endif
