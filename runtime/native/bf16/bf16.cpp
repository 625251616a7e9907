// The C functions of bf16.h. Without the instruction tk_bf16 says so, and the others do nothing.
#include "bf16.h"

#include "processor.h"

#ifdef TOPKAST_BF16
using namespace topkast;

int32_t tk_bf16(void) { return tk_isa() == 2 && processor().bf16; }
int64_t tk_bf16_workspace(const tk_parallel* p, const tk_matrix* w, int64_t m) { return bf16::workspace(p, *w, m); }
void tk_bf16_spmm(const tk_parallel* p, const tk_matrix* w, const tk_view* x, const float* bias, tk_view* y,
                  const tk_bf16_after* after, float* work) {
    bf16::spmm(p, *w, *x, bias, *y, after, work);
}
void tk_bf16_spmm_t(const tk_parallel* p, const tk_matrix* w, const tk_view* dy, tk_view* dx, const tk_bf16_after* after,
                    float* work) {
    bf16::spmm_t(p, *w, *dy, *dx, after, work);
}
void tk_bf16_sddmm(const tk_parallel* p, const tk_matrix* w, const tk_view* dy, const tk_view* x, float* grad,
                   float* work) {
    bf16::sddmm(p, *w, *dy, *x, grad, work);
}
void tk_bf16_activate_grad(const tk_parallel* p, int32_t act, const void* x, const void* dy, void* dx, int64_t count) {
    bf16::activate_grad(p, act, x, dy, dx, count);
}
#else
int32_t tk_bf16(void) { return 0; }
int64_t tk_bf16_workspace(const tk_parallel*, const tk_matrix*, int64_t) { return 0; }
void tk_bf16_spmm(const tk_parallel*, const tk_matrix*, const tk_view*, const float*, tk_view*, const tk_bf16_after*,
                  float*) {}
void tk_bf16_spmm_t(const tk_parallel*, const tk_matrix*, const tk_view*, tk_view*, const tk_bf16_after*, float*) {}
void tk_bf16_sddmm(const tk_parallel*, const tk_matrix*, const tk_view*, const tk_view*, float*, float*) {}
void tk_bf16_activate_grad(const tk_parallel*, int32_t, const void*, const void*, void*, int64_t) {}
#endif
