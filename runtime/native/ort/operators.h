// The operators of the domain "topkast", and what they have in common.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "tensor.h"

namespace topkast {
namespace ort {

// An operator, and what its kernels are told of it.
struct Operator : CustomOp {
    Operator(const CustomOp& op, std::string label, int32_t act) : CustomOp(op), label(std::move(label)), act(act) {}
    std::string label;
    int32_t act;  // of topkast.h
};

const std::vector<Operator>& sparse_matmul();
const std::vector<Operator>& sparse_conv();
const std::vector<Operator>& sparse_matmul_int8();
const std::vector<Operator>& sparse_conv_int8();
const std::vector<Operator>& sparse_conv_per_image_int8();

// What ONNX Runtime holds of a node.
template <class Kernel>
struct Holder {
    Api api;
    std::unique_ptr<Kernel> kernel;
};

template <class Kernel>
Status* compute(void* held, Context* context) {
    const Holder<Kernel>& holder = *static_cast<Holder<Kernel>*>(held);
    return guarded(holder.api, [&] { holder.kernel->compute(context); });
}

template <class Kernel>
void destroy(void* held) {
    delete static_cast<Holder<Kernel>*>(held);
}

// One output, on the CPU, of every version.
inline CustomOp plain_operator() {
    const auto zero = [](const CustomOp*) { return 0; };
    CustomOp op{};
    op.version = VERSION;
    op.name = [](const CustomOp* op) { return static_cast<const Operator*>(op)->label.c_str(); };
    op.provider = [](const CustomOp*) { return "CPUExecutionProvider"; };
    op.outputs = [](const CustomOp*) { return size_t{1}; };
    op.output_kind = op.input_memory = [](const CustomOp*, size_t) { return 0; };
    op.variadic_inputs_minimum = op.variadic_inputs_alike = zero;
    op.variadic_outputs_minimum = op.variadic_outputs_alike = zero;
    op.first_version = [](const CustomOp*) { return 1; };
    op.last_version = [](const CustomOp*) { return INT32_MAX; };
    return op;
}

}  // namespace ort
}  // namespace topkast
