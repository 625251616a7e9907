// One product and one convolution of the kernels KERNELS, called from Python.
#include "int8.h"

using namespace topkast;

const Int8Kernels& topkast::int8_kernels() { return KERNELS::int8; }

void tk_run_serial(void*, tk_body body, void* context, int64_t count) {
    for (int64_t i = 0; i < count; ++i) body(context, i);
}

extern "C" __attribute__((visibility("default"))) void product(const tk_matrix* index, const int8_t* values, const float* scale,
                                                               const float* bias, const tk_view* x, const tk_view* y) {
    const Int8Weight weight(*index, values, scale);
    std::vector<float> work(weight.kernels().workspace(weight.matrix(), x->m));
    const tk_parallel one{tk_run_serial, nullptr, 1};
    weight.kernels().product(&one, weight.matrix(), *x, bias, TK_NONE, *y, work.data());
}

extern "C" __attribute__((visibility("default"))) void convolution(const tk_matrix* index, const int8_t* values, const float* scale,
                                                                   const float* bias, const tk_conv* conv, int by_position,
                                                                   const float* x, float* y) {
    const Int8Weight weight(*index, values, scale, true);
    std::vector<float> work(weight.convolution_workspace(*conv, by_position));
    const tk_parallel one{tk_run_serial, nullptr, 1};
    weight.convolve(&one, *conv, by_position, x, bias, TK_NONE, y, work.data());
}
