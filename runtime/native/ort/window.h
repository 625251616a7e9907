// The attributes of a convolution: what slides over an image, as ONNX's Conv has it, of 1 to 3 dims.
#pragma once
#include "node.h"

namespace topkast {
namespace ort {

constexpr size_t DIMS = 3;  // at most

// A list of `count` integers from `least` on, behind as many `fill` as three dims lack.
inline void sizes(const Api& api, const KernelInfo* info, const char* name, size_t count, int64_t least, int64_t fill,
           int64_t* out) {
    for (size_t d = 0; d < DIMS - count; ++d) out[d] = fill;
    out += DIMS - count;
    size_t found = count;
    Status* failed = api.attributes(info, name, out, &found);
    if (failed) api.release_status(failed);
    require(!failed && found == count, std::string("attribute ") + name + " must hold " +
                                           text(static_cast<int64_t>(count)) + " integers, as kernel_shape does");
    for (size_t d = 0; d < count; ++d)
        require(out[d] >= least && out[d] <= INT32_MAX, std::string(name) + " holds " + text(out[d]) +
                                                            ", must be from " + text(least) + " to 2147483647");
}

struct Window {
    Window(const Api& api, const KernelInfo* info) {
        int64_t unused[DIMS];
        Status* failed = api.attributes(info, "kernel_shape", unused, &dims);
        if (failed) api.release_status(failed);
        require(!failed && dims >= 1, "attribute kernel_shape must hold 1 to 3 integers");
        sizes(api, info, "kernel_shape", dims, 1, 1, shape.kernel);
        sizes(api, info, "strides", dims, 1, 1, shape.stride);
        sizes(api, info, "dilations", dims, 1, 1, shape.dilation);
        int64_t pads[2 * DIMS];
        attribute(api, info, "pads", pads, 2 * dims);
        for (size_t d = 0; d < 2 * dims; ++d)
            require(pads[d] >= 0 && pads[d] <= INT32_MAX, "pads holds " + text(pads[d]) + ", must be from 0 to 2147483647");
        for (size_t d = 0; d < dims; ++d) {
            shape.padding[DIMS - dims + d] = pads[d];
            behind[DIMS - dims + d] = pads[dims + d];
        }
        int64_t groups = 0;
        attribute(api, info, "group", &groups, 1);
        require(groups >= 1 && groups <= INT32_MAX, "group is " + text(groups) + ", must be from 1 to 2147483647");
        shape.groups = static_cast<int32_t>(groups);
    }

    size_t dims = DIMS;
    tk_conv shape{};  // padding: what lies before an image
    int64_t behind[DIMS] = {0, 0, 0};
};

}  // namespace ort
}  // namespace topkast
